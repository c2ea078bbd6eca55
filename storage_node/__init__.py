"""The storage node: disk role, tape role, or both."""
