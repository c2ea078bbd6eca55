"""Restores with nothing but cartridges: no controller, no catalog, no mover."""
