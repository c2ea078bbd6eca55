"""A map that is not what was packed.

The controller decodes maps that a storage node made, `ctl` those that the controller sends, and both those that a
cartridge has kept for years.  So whatever the bytes are: they are rows, or they are this error.
"""

from __future__ import annotations

from backplane.errors import MediumError


class MapDamagedError(MediumError):
    """The bytes of a map contradict themselves, or go beyond what a map may hold."""
