"""The NBD front door: exports, and the server that workstations connect to.

Knows no volume and no snapshot: what it serves is handed to it as an `Export`.
"""
