"""The mover: pulls work items, executes their parameter lists, reports."""
