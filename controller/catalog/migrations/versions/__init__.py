"""One file per schema version; a file that has been released never changes."""
