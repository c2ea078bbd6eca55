"""What every process plugs into.  Nothing here decides."""
