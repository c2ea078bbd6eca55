"""Moving frames: ZeroMQ endpoints for talk, stream sockets for data."""
