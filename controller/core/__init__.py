"""The controller's decisions, pure: events in, effects out, time as an argument."""
