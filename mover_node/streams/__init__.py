"""Where blocks and records come from and go to; layers have the same form."""
