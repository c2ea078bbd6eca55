"""The protocol between nodes, pure: messages, codec, frames, grants, sessions."""
