"""Which blocks belong to which files: read from a static view's metadata, never mounted, never written."""
