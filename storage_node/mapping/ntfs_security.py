"""Security descriptors: who owns a file of Windows, and who may do what.

They are kept once each, in the stream `$SDS` of `$Secure`, and files name them by number.  The stream is written twice,
256 KiB at a time, so each descriptor has a copy; and each has a hash, the only checksum in NTFS.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from storage_node.mapping.ntfs_content import ClusterContent, note
from storage_node.mapping.reader import DamagedError

SECURE_RECORD: Final = 9
SDS_NAME: Final = "$SDS".encode("utf-16-le")
BLOCK_BYTES: Final = 256 * 1024
DESCRIPTOR_BYTES_MAX: Final = 64 * 1024
DESCRIPTORS_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of all descriptors of a volume that are kept; what is behind has a row error where it is used."""

TABLE_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Of `$SDS`, which on large servers has some megabytes."""

_ENTRY: Final = struct.Struct("<IIQI")
"""Hash, number, place in the stream, length with this header."""


def descriptor_hash(descriptor: bytes) -> int:
    """Return the hash that `$SDS` keeps of a descriptor: rotate by three, add a word."""
    value = 0
    words = memoryview(descriptor + bytes(-len(descriptor) % 4)).cast("I")
    for word in words:
        value = (((value << 3 | value >> 29) & 0xFFFFFFFF) + word) & 0xFFFFFFFF
    return value


class SecurityDescriptors:
    """All descriptors of a volume, by number."""

    def __init__(self) -> None:
        self._found: dict[int, bytes] = {}
        self._bytes = 0
        self.problems: list[str] = []

    def load(self, content: ClusterContent) -> None:
        """Read `$SDS`.  A block that cannot be read, or holds damage, is taken from its copy."""
        if content.size_bytes > TABLE_BYTES_MAX:
            note(self.problems, f"security descriptors of {content.size_bytes} bytes are not read")
            return
        for start in range(0, content.size_bytes, 2 * BLOCK_BYTES):
            damage = self._add_block(content, start, start)
            if damage and self._add_block(content, start + BLOCK_BYTES, start):
                note(self.problems, f"security descriptors at {start} are damaged: {damage}")

    def get(self, number: int) -> bytes | None:
        """Return a descriptor, or None if there is none of this number."""
        return self._found.get(number)

    def _add_block(self, content: ClusterContent, place: int, start: int) -> str:
        """Add the descriptors of a block, or of its copy; say what is wrong with it."""
        count = min(BLOCK_BYTES, content.size_bytes - place)
        if count <= 0:
            return "there is no copy"
        try:
            for number, descriptor in _descriptors(content.read(place, count), start):
                if number in self._found:
                    continue
                self._bytes += len(descriptor)
                if self._bytes > DESCRIPTORS_BYTES_MAX:
                    return f"they are more than {DESCRIPTORS_BYTES_MAX} bytes"
                self._found[number] = descriptor
        except DamagedError as error:
            return error.reason
        return ""


def _descriptors(block: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, descriptor) of a block; zeros, or an entry from before, end it."""
    at = 0
    while at + _ENTRY.size <= len(block):
        hash_, number, place, length = _ENTRY.unpack_from(block, at)
        if not length:
            return
        if place != start + at or not _ENTRY.size <= length <= DESCRIPTOR_BYTES_MAX:
            raise DamagedError(f"entry at {at}")
        descriptor = block[at + _ENTRY.size : at + length]
        if len(descriptor) + _ENTRY.size != length or descriptor_hash(descriptor) != hash_:
            raise DamagedError(f"entry at {at} of a wrong hash")
        yield number, descriptor
        at += -(-length // 16) * 16
