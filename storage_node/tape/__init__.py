"""Drives, cartridges and the library; SSC semantics on files."""
