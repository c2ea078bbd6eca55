"""What the controller remembers: rows, their store, their migrations."""
