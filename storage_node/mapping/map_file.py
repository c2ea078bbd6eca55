"""The map of a view as a file of the node.

    pages of rows, pages of allocated runs       one behind the other
    table                                        8 bytes per page: where it ends
    header                                       what `view.map` is answered with
    prefix of the end, 32 bytes                  magic, format, where the table begins, pages, header bytes, CRC32C

The builder writes it into a file that has no name yet; the node gives it its name when it is whole.  A map is a copy
of what the view says: whatever is wrong with the file, mapping again is the answer.  So a damaged one counts as none.
"""

from __future__ import annotations

import os
import struct
import tempfile
from array import array
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Final

from backplane.crc import crc32c
from backplane.errors import MediumError, NotFoundError
from backplane.ids import ViewId
from storage_node.mapping.spool import ROOM_EVERY_BYTES, require_room, write_all

MAGIC: Final = b"SDFMAP\r\n"
FORMAT_VERSION: Final = 1
PAGE_BYTES_MAX: Final = 512 * 1024
HEADER_BYTES_MAX: Final = 960 * 1024
"""What an answer can hold."""

PAGES_MAX: Final = 16_000_000

_END: Final = struct.Struct(">8sIQIII")
_SUFFIX: Final = ".map"
_NEW_SUFFIX: Final = ".new"


class MapWriter:
    """Writes a map into an open, empty file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ends = array("Q")
        self._at = 0
        self._looked_at = -ROOM_EVERY_BYTES
        self._digest = sha256()

    @property
    def page_count(self) -> int:
        """Pages until now."""
        return len(self._ends)

    @property
    def digest(self) -> str:
        """SHA-256 of all pages in order, in hexadecimal."""
        return self._digest.hexdigest()

    def add(self, page: bytes) -> None:
        """Append a page."""
        assert len(page) <= PAGE_BYTES_MAX
        if self._at - self._looked_at >= ROOM_EVERY_BYTES:
            self._looked_at = self._at
            require_room(self._descriptor)
        write_all(self._descriptor, page, self._at)
        self._digest.update(page)
        self._at += len(page)
        self._ends.append(self._at)

    def finish(self, header: bytes) -> None:
        """Append everything else and make it durable."""
        assert len(header) <= HEADER_BYTES_MAX
        table = _packed(self._ends)
        end = _END.pack(
            MAGIC, FORMAT_VERSION, self._at, len(self._ends), len(header), _checksum(table, header)
        )
        write_all(self._descriptor, table + header + end, self._at)
        os.fsync(self._descriptor)


def _packed(numbers: array[int]) -> bytes:
    return struct.pack(f">{len(numbers)}Q", *numbers)


def _checksum(table: bytes, header: bytes) -> int:
    return crc32c(header, start=crc32c(table))


class MapFile:
    """A whole map, read."""

    def __init__(self, path: Path) -> None:
        """Open it; raises `NotFoundError` if there is none, `MediumError` if it is damaged."""
        try:
            with path.open("rb") as file:
                self._read_end(file.fileno())
        except FileNotFoundError as error:
            raise NotFoundError("the view has not been mapped") from error
        except OSError as error:
            raise MediumError(f"cannot read {path}: {error.strerror}") from error
        self._path = path

    def _read_end(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        found = os.pread(descriptor, _END.size, max(0, size - _END.size))
        if len(found) != _END.size:
            raise MediumError("a file map of the node is too short")
        magic, version, table_at, pages, header_bytes, checksum = _END.unpack(found)
        table_bytes = 8 * pages
        is_whole = table_at + table_bytes + header_bytes + _END.size == size
        if (magic, version) != (MAGIC, FORMAT_VERSION) or not is_whole or pages > PAGES_MAX:
            raise MediumError("a file map of the node is damaged")
        rest = os.pread(descriptor, table_bytes + header_bytes, table_at)
        table, self.header = rest[:table_bytes], rest[table_bytes:]
        if len(rest) != table_bytes + header_bytes or _checksum(table, self.header) != checksum:
            raise MediumError("a file map of the node is damaged")
        self._ends = struct.unpack(f">{pages}Q", table)

    @property
    def page_count(self) -> int:
        """How many pages there are."""
        return len(self._ends)

    def page(self, number: int) -> bytes:
        """Return a page; `NotFoundError` if there is no such page."""
        if not 0 <= number < len(self._ends):
            raise NotFoundError(f"the map has pages 0 to {len(self._ends) - 1}, not {number}")
        begin = self._ends[number - 1] if number else 0
        count = self._ends[number] - begin
        if not 0 < count <= PAGE_BYTES_MAX:
            raise MediumError("a file map of the node is damaged")
        try:
            with self._path.open("rb") as file:
                page = os.pread(file.fileno(), count, begin)
        except OSError as error:
            raise MediumError(f"cannot read {self._path}: {error.strerror}") from error
        if len(page) != count:
            raise MediumError("a file map of the node is damaged")
        return page


class MapFolder:
    """Where the maps of a node are: one file per view."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, view: ViewId) -> MapFile:
        """Open the map of a view; raises what `MapFile` raises."""
        return MapFile(self._map(view))

    def new(self, view: ViewId) -> int:
        """Return the descriptor of an empty file, which `publish` makes the view's map."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._new(view), flags, 0o600)

    def spool(self) -> int:
        """Return the descriptor of an empty file that has no name."""
        with tempfile.TemporaryFile(dir=self.path) as file:
            return os.dup(file.fileno())

    def publish(self, view: ViewId) -> MapFile:
        """Make the new file, which has to be whole, the map of the view."""
        MapFile(self._new(view))
        self._new(view).replace(self._map(view))
        return self.open(view)

    def remove(self, view: ViewId) -> None:
        """Remove whatever there is of a view; nothing is fine."""
        for path in (self._map(view), self._new(view)):
            path.unlink(missing_ok=True)

    def discard_new(self, view: ViewId) -> None:
        """Remove what was begun and is not whole."""
        self._new(view).unlink(missing_ok=True)

    def sweep(self, views: Collection[ViewId]) -> list[str]:
        """Remove everything that is not the map of one of these views; return the names."""
        wanted = {self._map(view) for view in views}
        removed = []
        for path in sorted(self.path.iterdir()):
            if path not in wanted:
                path.unlink()
                removed.append(path.name)
        return removed

    def _map(self, view: ViewId) -> Path:
        # A view is named by who asks: nothing but an identifier may become part of a path.
        if len(view) != 32 or set(view) - set("0123456789abcdef"):
            raise NotFoundError(f"{view!r} is no static view")
        return self.path / f"{view}{_SUFFIX}"

    def _new(self, view: ViewId) -> Path:
        return self._map(view).with_name(f".{view}{_NEW_SUFFIX}")
