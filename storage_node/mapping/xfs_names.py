"""The names of a file system, kept by inode, in little memory: about 20 bytes and the name itself.

Directories are read first, and what they say is put here; then inodes come in the order of the volume and ask for their
names.  A record is (slot, type, length of the name, directory, name), in one byte string for each 64 inodes, so there
is no object for each name.  Paths are made when they are asked for, from the names of directories upwards.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Final

from backplane.file_map.model import PATH_BYTES_MAX
from backplane.units import MIB

RECORDS_BYTES_MAX: Final = 512 * MIB
"""All names of 15 million files.  Who has more is told that the map is not complete."""
PATHS_BYTES_MAX: Final = 16 * MIB
"""Paths of directories that are remembered; then they are made anew."""

SLOT_BITS: Final = 6
SLOT_MASK: Final = (1 << SLOT_BITS) - 1
_RECORD: Final = struct.Struct("<BBBI")
_RECORD_BYTES: Final = _RECORD.size
_NAME_BYTES_AT: Final = 2
_pack: Final = _RECORD.pack
_PATH_OVERHEAD_BYTES: Final = 150


Name = tuple[int, int, bytes]
"""(directory, type, name) of an inode; the directory by the number that `Names.add_directory` has given."""


class Names:
    """All names, found by inode."""

    def __init__(self, root_inode: int) -> None:
        self._root = root_inode
        self._records: dict[int, bytearray] = {}
        self._bytes = 0
        self._directories = array("Q")
        self._naming = array("q")
        """Where the record is that names a directory: in the byte string of its inode; -1 before it was looked for."""
        self._lost: set[int] = set()
        self._left: dict[int, int] = {}
        """Which slots were not taken of those that were looked at: a bit each."""
        self._paths: dict[int, bytes] = {}
        self._paths_bytes = 0
        self._taken_key = -1
        self._taken: dict[int, list[Name]] = {}

    def add_directory(self, inode: int) -> int:
        """Take a directory, and return the number that its entries give."""
        self._directories.append(inode)
        self._naming.append(-1)
        return len(self._directories) - 1

    def add(self, inode: int, kind: int, name: bytes, directory: int) -> bool:
        """Take a name; say whether there was room for it."""
        record = _pack(inode & SLOT_MASK, kind, len(name), directory) + name
        self._bytes += len(record)
        if self._bytes > RECORDS_BYTES_MAX:
            return False
        key = inode >> SLOT_BITS
        records = self._records.get(key)
        if records is None:
            self._records[key] = bytearray(record)
        else:
            records += record
        return True

    def take(self, inode: int) -> list[Name]:
        """Return the names of an inode, once: what is left at the end leads to no inode."""
        return self.near(inode).pop(inode & SLOT_MASK, [])

    def near(self, inode: int) -> dict[int, list[Name]]:
        """Return the names of the 64 inodes around one, by its low bits; who takes them out has taken them."""
        key = inode >> SLOT_BITS
        if key != self._taken_key:
            self._leave()
            self._taken_key, self._taken = key, self._unpack(key)
        return self._taken

    def untaken(self) -> Iterator[tuple[int, list[Name]]]:
        """Yield (inode, names) of what was not taken."""
        self._leave()
        for key in sorted(self._records):
            for slot, names in self._unpack(key).items():
                yield key << SLOT_BITS | slot, names

    def _leave(self) -> None:
        """Remember what is left of the 64 inodes that were looked at last."""
        if self._taken_key >= 0:
            self._left[self._taken_key] = sum(1 << slot for slot in self._taken)
        self._taken_key = -1

    def path(self, directory: int) -> bytes | None:
        """Return the path of a directory; None if no chain of names leads to it from the root, or it is too long."""
        found = self._paths.get(directory)
        if found is not None:
            return found
        chain: dict[int, bytes] = {}
        number = directory
        while (path := self._paths.get(number)) is None:
            if self._directories[number] == self._root:
                path = b""
                break
            above = self._above(number)
            if above is None or number in chain:
                self._lost.update(chain, (number,))
                return None
            chain[number] = shown(above[2])
            number = above[0]
        # Only this one is remembered: a deep tree would have paths of gigabytes.
        path = b"/".join([path, *reversed(chain.values())] if path else reversed(chain.values()))
        if len(path) > PATH_BYTES_MAX:
            self._lost.add(directory)
            return None
        self._remember(directory, path)
        return path

    def _remember(self, directory: int, path: bytes) -> None:
        self._paths_bytes += len(path) + _PATH_OVERHEAD_BYTES
        if self._paths_bytes > PATHS_BYTES_MAX:
            self._paths.clear()
            self._paths_bytes = 0
        self._paths[directory] = path

    def _above(self, directory: int) -> Name | None:
        """Return the first name of a directory, and what it is in; None if there is none, or it leads nowhere."""
        if directory in self._lost:
            return None
        inode = self._directories[directory]
        records = self._records.get(inode >> SLOT_BITS, b"")
        if self._naming[directory] < 0:
            slot = inode & SLOT_MASK
            self._naming[directory] = _first_place(records, slot)
        at = self._naming[directory]
        if at >= len(records):
            return None
        _, kind, name_bytes, above = _RECORD.unpack_from(records, at)
        at += _RECORD.size
        return above, kind, bytes(records[at : at + name_bytes])

    def _unpack(self, key: int) -> dict[int, list[Name]]:
        left = self._left.get(key, -1)
        names: dict[int, list[Name]] = {}
        data = bytes(self._records.get(key, b""))
        unpack = _RECORD.unpack_from
        at, count = 0, len(data)
        while at < count:
            slot, kind, name_bytes, directory = unpack(data, at)
            at += _RECORD_BYTES
            if left >> slot & 1:
                name = (directory, kind, data[at : at + name_bytes])
                if slot in names:
                    names[slot].append(name)
                else:
                    names[slot] = [name]
            at += name_bytes
        return names


def shown(name: bytes) -> bytes:
    """Return a name with what no name can have replaced by `?`."""
    if not name or name in (b".", b".."):
        return b"?" * max(1, len(name))
    if b"/" in name or b"\0" in name:
        return name.replace(b"/", b"?").replace(b"\0", b"?")
    return name


def _first_place(records: bytes | bytearray, slot: int) -> int:
    """Return where the first record of a slot is; behind the last one if there is none."""
    at = 0
    while at < len(records) and records[at] != slot:
        at += _RECORD_BYTES + records[at + _NAME_BYTES_AT]
    return at
