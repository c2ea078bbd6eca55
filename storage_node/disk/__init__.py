"""Block devices, the layers over them, and the volumes made of both."""
