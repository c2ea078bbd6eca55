"""Identifiers.  One NewType each, so that swapped arguments do not type-check."""

from __future__ import annotations

from typing import NewType

JobId = NewType("JobId", int)
"""Small integer that people type; never reused."""

ItemId = NewType("ItemId", int)
"""One work item (one parameter list); never reused, also not for a retry."""

Epoch = NewType("Epoch", int)
"""Fencing number from the catalog's one counter; 0 means "never granted"."""

NodeName = NewType("NodeName", str)
"""Configured name of a storage node or mover, bound to its CURVE key."""

VolumeId = NewType("VolumeId", str)
"""UUID of a volume, 32 hex digits."""

ViewId = NewType("ViewId", str)
"""UUID of a static view, 32 hex digits."""

CartridgeId = NewType("CartridgeId", str)
"""UUID in the volume header of a cartridge, 32 hex digits; the barcode is only a hint."""

VolumeTag = NewType("VolumeTag", str)
"""Barcode of a cartridge, such as LTO001L8."""

BackupId = NewType("BackupId", int)
"""Number of a backup in the catalog."""

Designator = NewType("Designator", bytes)
"""Eight bytes: NAA locally assigned (type 3h) designator of a logical unit."""

BootId = NewType("BootId", bytes)
"""Sixteen random bytes, new at each start of a process."""
