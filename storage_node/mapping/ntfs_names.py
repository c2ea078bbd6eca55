"""Names of NTFS, and the paths that they make.

A file knows its names and, for each, the directory it is in; nothing else is needed, so directories are never read.
A reference to a directory carries the sequence number that its record had: a record that was used again is another
directory.  `Directories` keeps one small value for each directory, and builds paths when they are asked for.
"""

from __future__ import annotations

import struct
from codecs import utf_16_le_decode
from functools import partial
from typing import Final, NamedTuple

from backplane.file_map.model import PATH_BYTES_MAX
from storage_node.mapping.ntfs_record import RECORD_MASK
from storage_node.mapping.reader import DamagedError

ROOT_RECORD: Final = 5
EXTEND_RECORD: Final = 11
"""`$Extend`: what is beneath belongs to the file system itself."""
FIRST_USER_RECORD: Final = 24

DOS_NAME: Final = 2
"""The name space of 8.3 names; a file that has one has a long name as well."""
HIDDEN: Final = b"\0"
"""The path of everything beneath `$Extend`; no path holds a zero byte."""
DEPTH_MAX: Final = 1000
CACHE_BYTES_MAX: Final = 16 * 1024 * 1024

_FILE_NAME_BYTES: Final = 0x42
_LENGTH_AT: Final = 0x40
_REFERENCE: Final = struct.Struct("<Q")
_ENTRY: Final = struct.Struct("<QH")
_ENTRY_OVERHEAD_BYTES: Final = 200
_NO_NAMES: Final = (b"", b".", b"..")


class FileName(NamedTuple):
    """One name of a file."""

    parent: int
    """The reference of the directory."""
    space: int
    name: bytes


_new_name: Final = partial(tuple.__new__, FileName)


def parse_file_name(value: bytes) -> FileName:
    """Take the value of a $FILE_NAME attribute apart."""
    if len(value) < _FILE_NAME_BYTES:
        raise DamagedError("a name is cut off")
    characters, space = value[_LENGTH_AT], value[_LENGTH_AT + 1]
    end = _FILE_NAME_BYTES + 2 * characters
    if end > len(value) or space > 3:
        raise DamagedError("a name is damaged")
    (parent,) = _REFERENCE.unpack_from(value)
    return _new_name((parent, space, decode_name(value[_FILE_NAME_BYTES:end])))


def decode_name(utf16: bytes) -> bytes:
    """Return a name in UTF-8; lone surrogates are encoded as if they were characters."""
    # `bytes.decode` looks for this codec anew each time.
    text, _ = utf_16_le_decode(utf16, "surrogatepass", True)
    return text.encode("utf-8", "surrogatepass")


def mended(name: bytes) -> bytes:
    """Return a name that can be a component of a path: the same, unless it has a defect."""
    if b"/" not in name and b"\0" not in name and name not in _NO_NAMES:
        return name
    if name in _NO_NAMES:
        return b"?" * max(1, len(name))
    return name.replace(b"/", b"?").replace(b"\0", b"?")


def lost_path(number: int, name: bytes = b"") -> bytes:
    """Return the path of what has none: beneath a directory that cannot exist."""
    return b"?%d/%s" % (number, mended(name)) if name else b"?%d" % number


class Directories:
    """All directories that were met, and their paths."""

    def __init__(self) -> None:
        self._entries: dict[int, bytes] = {}
        self._cache: dict[int, bytes] = {}
        self._cache_bytes = 0
        self._lost: set[int] = set()
        self._is_complete = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, number: int, sequence: int, name: FileName) -> None:
        """Remember a directory.  It has one name: NTFS has no hard links to directories."""
        self._entries[number] = _ENTRY.pack(name.parent, sequence) + mended(name.name)

    def complete(self) -> None:
        """Say that there are no more: what has no path by now is lost."""
        self._is_complete = True

    def path(self, reference: int) -> bytes | None:
        """Return the path of a directory, `HIDDEN`, or None as long as not all of it is known."""
        found = self._cache.get(reference)
        if found is not None:
            return found
        found, is_for_good = self._walk(reference)
        if found is not None:
            self._remember(reference, found)
        elif is_for_good or self._is_complete:
            # So that a chain without an end is not walked for each of its members.
            self._lost.add(reference)
        return found

    def _walk(self, reference: int) -> tuple[bytes | None, bool]:
        """Return the path, or None and whether it will never be known."""
        names: list[bytes] = []
        at, length = reference, 0
        found: bytes | None = None
        while found is None:
            number, sequence = at & RECORD_MASK, at >> 48
            if number in (ROOT_RECORD, EXTEND_RECORD):
                found = b"" if number == ROOT_RECORD else HIDDEN
                break
            entry = self._entries.get(number)
            if entry is None or at in self._lost:
                return None, at in self._lost
            at, own_sequence = _ENTRY.unpack_from(entry)
            if sequence not in (own_sequence, 0):
                return None, False
            names.append(entry[_ENTRY.size :])
            length += len(names[-1]) + 1
            if len(names) > DEPTH_MAX or length > PATH_BYTES_MAX:
                return None, True
            found = self._cache.get(at)
        if found == HIDDEN:
            return found, True
        names.reverse()
        path = b"/".join([found, *names] if found else names)
        if len(path) > PATH_BYTES_MAX or path.count(b"/") >= DEPTH_MAX:
            return None, True
        return path, True

    def why_lost(self, reference: int) -> str:
        """Say why a directory has no path, once all are known."""
        number, sequence = reference & RECORD_MASK, reference >> 48
        entry = self._entries.get(number)
        if entry is None:
            return f"its directory, record {number}, is not there"
        if sequence not in (_ENTRY.unpack_from(entry)[1], 0):
            return f"its directory, record {number}, is another one by now"
        return f"its directory, record {number}, is lost, in a loop, or too deep"

    def _remember(self, reference: int, path: bytes) -> None:
        self._cache_bytes += len(path) + _ENTRY_OVERHEAD_BYTES
        if self._cache_bytes > CACHE_BYTES_MAX:
            self._cache.clear()
            self._cache_bytes = len(path) + _ENTRY_OVERHEAD_BYTES
        self._cache[reference] = path


def join_path(directory: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return directory + b"/" + name if directory else name
