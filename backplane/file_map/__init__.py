"""The map from a volume's blocks to its files: rows, their packed form, and what can be asked of it.  Pure."""
