"""The copy manager's decisions, pure: which segment, which bytes, which residual."""
