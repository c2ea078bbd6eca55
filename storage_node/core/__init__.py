"""The storage node's decisions, pure: admission, positions, states of volumes."""
