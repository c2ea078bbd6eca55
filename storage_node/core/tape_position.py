"""Where a tape is and where a motion ends (SSC: SPACE, LOCATE, READ POSITION, early warning).

A tape is a row of logical objects, records and filemarks, numbered from 0.  A position is the gap before an
object; end of data is the gap after the last one.  Everything here follows from two things: the sorted object
numbers of the filemarks, and end of data.

    object      0    1    2    3    4    5
             | R0 | R1 | FM | R3 | R4 | FM |
    gap      0    1    2    3    4    5    6 = end of data
    file     0    0    0    1    1    1    2

Distances to the end of the medium are *charged bytes*: what the objects before a gap take up.  Three marks stand
on that scale, programmable early warning <= early warning <= end of partition.  A gap that has reached a mark is
beyond it; an object that would end behind end of partition is not written.

Residuals are magnitudes also for backward motions: objects or filemarks that were asked for and not passed.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

RECORD_BYTES_MAX: Final = (1 << 24) - 1
"""Longest record: TRANSFER LENGTH and the block limits have 24 bits."""

OBJECT_NUMBER_MAX: Final = (1 << 64) - 2
"""Largest position; the value above means "any" in a data frame."""


class SpaceCode(IntEnum):
    """CODE of SPACE(6) and SPACE(16)."""

    BLOCKS = 0
    FILEMARKS = 1
    END_OF_DATA = 3


class Ending(Enum):
    """Why a motion stopped."""

    DONE = "done"
    FILEMARK = "filemark"
    END_OF_DATA = "end of data"
    BEGINNING_OF_PARTITION = "beginning of partition"


@dataclass(frozen=True, slots=True)
class Motion:
    """The end of a motion: position, reason and what was not passed."""

    position: int
    ending: Ending = Ending.DONE
    residual: int = 0


def file_number(position: int, *, filemarks: Sequence[int]) -> int:
    """Return the logical file number of a position: the filemarks before it."""
    return bisect_left(filemarks, position)


def space_blocks(start: int, count: int, *, filemarks: Sequence[int], end_of_data: int) -> Motion:
    """Pass `count` records; a filemark in the way stops behind it (forward) or before it (backward)."""
    assert 0 <= start <= end_of_data
    index = bisect_left(filemarks, start)
    if count >= 0:
        mark = filemarks[index] if index < len(filemarks) else None
        if mark is not None and mark - start < count:
            return Motion(mark + 1, Ending.FILEMARK, count - (mark - start))
        if end_of_data - start < count:
            return Motion(end_of_data, Ending.END_OF_DATA, count - (end_of_data - start))
        return Motion(start + count)
    wanted = -count
    mark = filemarks[index - 1] if index > 0 else None
    if mark is not None and start - mark - 1 < wanted:
        return Motion(mark, Ending.FILEMARK, wanted - (start - mark - 1))
    if start < wanted:
        return Motion(0, Ending.BEGINNING_OF_PARTITION, wanted - start)
    return Motion(start - wanted)


def space_filemarks(
    start: int, count: int, *, filemarks: Sequence[int], end_of_data: int
) -> Motion:
    """Pass `count` filemarks: end behind the last one (forward) or on its BOP side (backward)."""
    assert 0 <= start <= end_of_data
    index = bisect_left(filemarks, start)
    if count == 0:
        return Motion(start)
    if count > 0:
        if index + count > len(filemarks):
            passed = len(filemarks) - index
            return Motion(end_of_data, Ending.END_OF_DATA, count - passed)
        return Motion(filemarks[index + count - 1] + 1)
    wanted = -count
    if wanted > index:
        return Motion(0, Ending.BEGINNING_OF_PARTITION, wanted - index)
    return Motion(filemarks[index - wanted])


def locate_object(target: int, *, end_of_data: int) -> Motion:
    """Go to the gap before object `target`."""
    if target > end_of_data:
        return Motion(end_of_data, Ending.END_OF_DATA)
    return Motion(target)


def locate_file(target: int, *, filemarks: Sequence[int], end_of_data: int) -> Motion:
    """Go to the first gap with logical file number `target`."""
    if target > len(filemarks):
        return Motion(end_of_data, Ending.END_OF_DATA)
    return Motion(filemarks[target - 1] + 1 if target else 0)


# --- length of a record against the length asked for ----------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadLength:
    """What a READ delivers of one record, and whether its length is reported as incorrect."""

    delivered_bytes: int
    is_incorrect: bool = False
    information: int = 0


def variable_read(
    record_bytes: int, transfer_bytes: int, *, suppress: bool, block_length: int
) -> ReadLength:
    """Judge a record read in variable mode; `suppress` is SILI, `block_length` that of the mode parameters.

    INFORMATION is T - R: negative if the record is longer.  SILI hides a longer record only while the block length
    is 0, because with another block length the difference could be no accident of the format.
    """
    delivered = min(record_bytes, transfer_bytes)
    difference = transfer_bytes - record_bytes
    hidden = suppress and (difference > 0 or block_length == 0)
    if difference == 0 or hidden:
        return ReadLength(delivered)
    return ReadLength(delivered, is_incorrect=True, information=difference)


# --- early warning ---------------------------------------------------------------------------------


class Room(Enum):
    """What there is to say about an object that is to be written."""

    FREE = "free"
    PROGRAMMABLE_EARLY_WARNING = "crosses programmable early warning"
    EARLY_WARNING = "beyond early warning"
    NONE = "does not fit"


@dataclass(frozen=True, slots=True)
class Marks:
    """The three positions near the end of the medium, in charged bytes."""

    programmable_early_warning: int
    early_warning: int
    end_of_partition: int

    def __post_init__(self) -> None:
        assert self.programmable_early_warning <= self.early_warning <= self.end_of_partition, (
            f"marks out of order: {self}"
        )

    def room(self, before: int, charge: int) -> Room:
        """Say what happens to an object of `charge` bytes that starts at `before`."""
        after = before + charge
        if after > self.end_of_partition:
            return Room.NONE
        if after >= self.early_warning:
            return Room.EARLY_WARNING
        # Reported once, when crossing; the BPEW flag of READ POSITION stays (tape 5.4).
        if before < self.programmable_early_warning <= after:
            return Room.PROGRAMMABLE_EARLY_WARNING
        return Room.FREE


# --- READ POSITION ---------------------------------------------------------------------------------

_BOP: Final = 0x80
_EOP: Final = 0x40
_PERR: Final = 0x02
_BPEW: Final = 0x01
_EXTENDED_ADDITIONAL_BYTES: Final = 0x1C

_SHORT: Final = struct.Struct(
    ">BBxxIIII"
)  # 20 bytes; the last two are objects and bytes in the buffer
_LONG: Final = struct.Struct(">B3xIQQ8x")  # 32 bytes
_EXTENDED: Final = struct.Struct(">BBHIQQQ")  # 32 bytes; byte 4 and the 24-bit count share one word


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionReport:
    """What READ POSITION says.

    `durable_object` is the first object that is not yet on the medium ("last object"); it equals `object_number`
    while the buffer is empty.  The difference tells what a loss of power would take.
    """

    object_number: int
    file_number: int
    durable_object: int
    buffered_bytes: int = 0
    is_beyond_early_warning: bool = False
    is_beyond_programmable_early_warning: bool = False
    partition: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.durable_object <= self.object_number <= OBJECT_NUMBER_MAX

    @property
    def buffered_objects(self) -> int:
        """Objects that are not yet on the medium."""
        return self.object_number - self.durable_object

    def _flags(self) -> int:
        return (
            (_BOP if self.object_number == 0 else 0)
            | (_EOP if self.is_beyond_early_warning else 0)
            | (_BPEW if self.is_beyond_programmable_early_warning else 0)
        )

    def encode_short(self) -> bytes:
        """Return the 20 bytes of service action 00h; PERR is set if a number does not fit."""
        numbers = (self.object_number, self.durable_object)
        counts = (self.buffered_objects, self.buffered_bytes)
        if max(*numbers, counts[1]) > 0xFFFF_FFFF or counts[0] > 0xFF_FFFF:
            return _SHORT.pack(self._flags() | _PERR, self.partition, 0, 0, 0, 0)
        return _SHORT.pack(self._flags(), self.partition, *numbers, *counts)

    def encode_long(self) -> bytes:
        """Return the 32 bytes of service action 06h."""
        return _LONG.pack(self._flags(), self.partition, self.object_number, self.file_number)

    def encode_extended(self) -> bytes:
        """Return the 32 bytes of service action 08h."""
        return _EXTENDED.pack(
            self._flags(),
            self.partition,
            _EXTENDED_ADDITIONAL_BYTES,
            min(self.buffered_objects, 0xFF_FFFF),
            self.object_number,
            self.durable_object,
            self.buffered_bytes,
        )


assert _SHORT.size == 20
assert _LONG.size == 32
assert _EXTENDED.size == 32


def block_limits() -> bytes:
    """Return the 6 bytes of READ BLOCK LIMITS: granularity 0, 1 byte to 16 MiB - 1 byte."""
    return RECORD_BYTES_MAX.to_bytes(4, "big") + (1).to_bytes(2, "big")
