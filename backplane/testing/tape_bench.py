"""A drive on a bench: short words for what tests do with it, and for comparing its answers."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any, Final, Protocol

from backplane.crc import crc32c
from backplane.scsi.sense import Sense

OVERHEAD_BYTES: Final = 32
"""Charge of an object beside the bytes of a record."""

FILEMARK: Final = (0x00, 0x00, 0x01)
END_OF_MEDIUM: Final = (0x00, 0x00, 0x02)
BEGINNING: Final = (0x00, 0x00, 0x04)
PROGRAMMABLE_WARNING: Final = (0x00, 0x00, 0x07)
INCORRECT_LENGTH: Final = (0x00, 0x00, 0x00)
END_OF_DATA: Final = (0x08, 0x00, 0x05)
OVERFLOW: Final = (0x0D, 0x00, 0x02)
INVALID_FIELD: Final = (0x05, 0x24, 0x00)
OVERWRITE_REFUSED: Final = (0x07, 0x30, 0x0C)
WRONG_POSITION: Final = (0x0B, 0x3B, 0x00)
GUARD_CHECK: Final = (0x0B, 0x10, 0x01)

BLOCKS, FILEMARKS, TO_END = 0, 1, 3


class Answer(Protocol):
    """The shape of an outcome, repeated here because `backplane` may not import a role."""

    @property
    def status(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def sense(self) -> Sense | None: ...
    @property
    def data(self) -> memoryview | None: ...
    @property
    def crc32c(self) -> int: ...


class TapeBench:
    """A drive, and short words for what tests do with it."""

    def __init__(self, drive: Any) -> None:
        self.drive = drive

    def write(self, *sizes: int) -> None:
        """Write records of these sizes; 0 is a filemark.  The bytes depend on the position."""
        for size in sizes:
            if size == 0:
                outcome = self.drive.write_filemarks(1, immediate=True)
            else:
                outcome = self.put(content(self.position, size))
            assert outcome.is_done, outcome

    def put(self, data: bytes, **options: int) -> Any:
        options.setdefault("crc32c", crc32c(data))
        return self.drive.write_record(memoryview(data), **options)

    def get(self, size: int, **options: Any) -> Any:
        return self.drive.read_record(memoryview(bytearray(size)), **options)

    def get_blocks(self, count: int, length: int, **options: Any) -> Any:
        buffer = memoryview(bytearray(count * length))
        return self.drive.read_blocks(buffer, count=count, **options)

    @property
    def position(self) -> int:
        outcome = self.drive.read_position()
        assert outcome.report is not None
        return int(outcome.report.object_number)

    def set_mode(self, **changes: Any) -> None:
        assert self.drive.set_mode(replace(self.drive.mode, **changes)).is_good


def content(object_number: int, size: int) -> bytes:
    """Return bytes that tell records and places in them apart."""
    pattern = struct.pack(">HH", object_number % 65521, size % 65521)
    return (pattern * (size // len(pattern) + 1))[:size]


def check(
    outcome: Answer,
    triple: tuple[int, int, int],
    *,
    position: int,
    information: int | None = None,
    data: bytes | None = None,
    flags: str = "",
) -> None:
    """Compare a CHECK CONDITION with everything that the reference says about it."""
    sense = outcome.sense
    assert outcome.status == 0x02
    assert sense is not None
    found = {"FM": sense.filemark, "EOM": sense.end_of_medium, "ILI": sense.incorrect_length}
    assert (sense.key, sense.asc, sense.ascq) == triple
    assert sense.information == information
    assert {name for name, is_set in found.items() if is_set} == set(flags.split())
    assert outcome.position == position
    delivered = None if outcome.data is None else bytes(outcome.data)
    assert (delivered or None) == data


def good(outcome: Answer, *, position: int, data: bytes | None = None) -> None:
    """Compare a GOOD status."""
    assert outcome.sense is None
    assert outcome.status == 0x00
    assert outcome.position == position
    if data is not None:
        assert outcome.data is not None
        assert bytes(outcome.data) == data
        assert outcome.crc32c == crc32c(data)
