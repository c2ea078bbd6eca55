"""Files prepared beneath a mounted file system, so that movers can write their blocks: `storage-node place`."""
