"""Being a process: loop, clock, configuration, keys, logs, signals, children."""
