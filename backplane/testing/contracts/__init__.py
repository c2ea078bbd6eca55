"""One suite of tests per interface, run over every implementation."""
