"""What every reader of a file system has, and what it is given.

A reader is a pure function of `Source.read`: no file, no clock, no other input.  It reads in bulk (a volume may be a
network away), believes no number before it was compared with the volume, and reads metadata only.

    recognise(source) -> bool       the magic is there: this module answers for what happens next
    Reader(source)                  raises `UnsupportedError` or `DamagedError`; nothing else, whatever the bytes are
    reader.facts                    what is known of the file system as a whole
    reader.rows()                   every path once, in any order; defects of one file are in its row
    reader.allocated()              what is in use, metadata included: ascending, disjoint (first byte, byte behind)
    reader.problems                 what makes the whole map incomplete; complete only when rows() has ended

All bytes are those of the source that the reader was given; whoever made a window of a larger volume translates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from backplane.file_map.model import ByteRun, FileRow, FileSystem

READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""Most bytes of one read: who wants more asks again."""


class MappingError(Exception):
    """A volume, or a part of it, that cannot be mapped.  `reason` names what, in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnsupportedError(MappingError):
    """It is well-formed for all we know, and we cannot read it: an unknown feature, an unknown layer."""


class DamagedError(MappingError):
    """What has to be right for anything else to be found is not."""


class Source(Protocol):
    """The bytes of a static view, or a part of it."""

    @property
    def size_bytes(self) -> int:
        """All bytes that can be read."""

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes; `DamagedError` if they are not inside, or cannot be read."""


class Reader(Protocol):
    """A file system."""

    @property
    def facts(self) -> FileSystem:
        """What it is.  `prefix` and `place` are empty: only the layer above knows them."""

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete; empty if it is, once `rows` has ended."""

    def rows(self) -> Iterator[FileRow]:
        """Every path, the root directory (b"") included."""

    def allocated(self) -> Iterator[ByteRun]:
        """Everything in use, ascending and disjoint."""


class BytesSource:
    """A source in memory, or in anything else that can be sliced (tests, windows)."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read(self, offset: int, count: int) -> bytes:
        if not 0 <= offset <= offset + count <= len(self._data) or count > READ_BYTES_MAX:
            raise DamagedError(f"read of {count} bytes at {offset}: outside of {len(self._data)}")
        return bytes(self._data[offset : offset + count])
