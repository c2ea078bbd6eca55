"""Every limit of a mapping, with its reason.

Who reaches one ends with an error that names it; nothing is cut off in silence.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from backplane.units import GIB, KIB, MIB

# --- what the node grants ------------------------------------------------------------------------


class MappingRules(NamedTuple):
    """What the configuration says."""

    seconds_max: float = 3600.0
    """From the start of the processes to the finished map."""
    memory_bytes_max: int = GIB
    """What each of the two processes may take beyond what an idle interpreter has."""


READS_BASE: Final = 1_000_000
READS_PER_GIB: Final = 20_000
"""Reads of a mapping: 1 million files of any file system take fewer, and a loop in a reader ends."""

READ_BYTES_BASE: Final = 4 * GIB
READ_SHARE: Final = 2
"""Bytes read of a mapping: so many, and the volume's size divided by this.  Metadata are rarely a fiftieth of it."""


def reads_max(volume_bytes: int) -> int:
    """Return how many reads a mapping may do."""
    return READS_BASE + READS_PER_GIB * (volume_bytes // GIB)


def read_bytes_max(volume_bytes: int) -> int:
    """Return how many bytes a mapping may read."""
    return READ_BYTES_BASE + volume_bytes // READ_SHARE


# --- between the processes -----------------------------------------------------------------------

FRAME_BYTES_MAX: Final = 64 * MIB
"""A row with `EXTENTS_PER_ROW_MAX` compressed extents fits; so it bounds what is decoded at once."""

BATCH_ROWS: Final = 512
BATCH_EXTENTS: Final = 4096
"""A frame of rows is sent when it has either."""

RUNS_PER_FRAME: Final = 16 * 1024

TEXT_BYTES_MAX: Final = 1000
"""A reason or an error: one sentence."""

# --- what a map may hold -------------------------------------------------------------------------

ROWS_MAX: Final = 200_000_000
"""Rows of one map.  The space for what is being sorted ends earlier, if the names are long."""

EXTENTS_PER_ROW_MAX: Final = 1_000_000
XATTRS_PER_ROW_MAX: Final = 4096
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB
"""What Linux has (XATTR_SIZE_MAX)."""
XATTR_BYTES_PER_ROW_MAX: Final = 256 * KIB
RAW_BYTES_MAX: Final = 2 * MIB
"""A compressed unit, uncompressed: 128 KiB in btrfs, 16 clusters in NTFS."""

FILE_SYSTEMS_MAX: Final = 1024
FAULTS_MAX: Final = 50
"""Different things that can be wrong with rows; more of them are counted together."""
REASONS_MAX: Final = 1000
"""What a parser may say of why a map is incomplete; the header of the map keeps fewer."""

CONTESTED_MAX: Final = 100_000
"""Places that several files claim, or that nobody has allocated.  With more, nothing in the map is worth anything."""

# --- what the builder takes ----------------------------------------------------------------------

SORT_BYTES: Final = 48 * MIB
"""What is sorted in memory, roughly; then it is put aside as one run, to be merged."""

SPOOL_BASE: Final = GIB
SPOOL_BYTES_MAX: Final = 64 * GIB


def spool_bytes_max(volume_bytes: int) -> int:
    """Return how much is put aside at most, and how long a map may be.

    A row needs less than what its file and its name need on the volume, but on small volumes full of empty files.
    """
    return min(SPOOL_BASE + volume_bytes, SPOOL_BYTES_MAX)


SPACE_RESERVE_BYTES: Final = 256 * MIB
"""What is left free where the node's state is: the fence floors are there, and without them it stops."""

SECTOR_BYTES: Final = 512
"""Data of a file begin at a multiple of this, on every file system and behind every partition table."""
