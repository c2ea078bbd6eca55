"""Blocks of metadata: read, laid over with what a replayed log says, and checked.

In version 5 every block of metadata carries a seal: a checksum, the UUID of its file system, its own place, and what it
belongs to.  A block is believed when all four are right.  Version 4 has none of it; there the readers of the blocks
compare every number with every other.

A block that a log has changed in memory carries the checksum of an older version of itself (whoever writes it back
renews it).  The version on the volume is checked instead, if it is one of the same block.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from backplane.crc import crc32c
from storage_node.mapping.limits import REASONS_MAX
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source
from storage_node.mapping.xfs_superblock import BASIC_SHIFT, Geometry

BASIC_BYTES: Final = 1 << BASIC_SHIFT
_NO_SUM: Final = bytes(4)


class Problems:
    """What makes a map incomplete: so many reasons are kept, and the rest is counted."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._more = 0

    def add(self, text: str) -> None:
        if len(self._texts) < REASONS_MAX:
            self._texts[text] = None
        elif text not in self._texts:
            self._more += 1

    def add_all(self, others: Problems) -> None:
        for text in others.texts():
            self.add(text)

    def texts(self) -> list[str]:
        more = [f"and {self._more} more"] if self._more else []
        return [*self._texts, *more]


class Overlay:
    """Basic blocks as a replayed log left them."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, byte: int, data: bytes) -> None:
        """Remember whole basic blocks."""
        first = byte >> BASIC_SHIFT
        for at in range(0, len(data), BASIC_BYTES):
            self._blocks[first + (at >> BASIC_SHIFT)] = data[at : at + BASIC_BYTES]

    def covers(self, byte: int, count: int) -> bool:
        """Say whether any of these bytes was changed."""
        return bool(self._blocks) and not self._blocks.keys().isdisjoint(_basic(byte, count))

    def whole(self, byte: int, count: int) -> bytes | None:
        """Return basic blocks that were all changed; None if one was not."""
        pieces = [self._blocks.get(number) for number in _basic(byte, count)]
        return None if None in pieces else b"".join(piece for piece in pieces if piece)

    def patch(self, byte: int, data: bytes) -> bytes:
        """Return what was read at `byte`, as the log left it."""
        changed = [n for n in _basic(byte, len(data)) if n in self._blocks] if self._blocks else ()
        if not changed:
            return data
        first = byte & ~(BASIC_BYTES - 1)
        patched = bytearray(byte - first) + data
        for number in changed:
            at = (number << BASIC_SHIFT) - first
            patched[at : at + BASIC_BYTES] = self._blocks[number]
        return bytes(patched[byte - first : byte - first + len(data)])


def _basic(byte: int, count: int) -> range:
    return range(byte >> BASIC_SHIFT, (byte + count + BASIC_BYTES - 1) >> BASIC_SHIFT)


class Seal(NamedTuple):
    """Where a kind of block carries what proves it; a place of -1 if it does not carry it."""

    magic: slice
    crc: int
    uuid: int
    place: int
    owner: int
    owner_bytes: int


SHORT_TREE: Final = Seal(slice(0, 4), crc=52, uuid=32, place=16, owner=48, owner_bytes=4)
LONG_TREE: Final = Seal(slice(0, 4), crc=64, uuid=40, place=24, owner=56, owner_bytes=8)
DIRECTORY: Final = Seal(slice(0, 4), crc=4, uuid=24, place=8, owner=40, owner_bytes=8)
ATTRIBUTE: Final = Seal(slice(8, 10), crc=12, uuid=32, place=16, owner=48, owner_bytes=8)
REMOTE: Final = Seal(slice(0, 4), crc=12, uuid=16, place=40, owner=32, owner_bytes=8)
"""Values of attributes and targets of links in blocks of their own."""
FREE_SPACE_HEADER: Final = Seal(slice(0, 4), crc=216, uuid=64, place=-1, owner=-1, owner_bytes=0)
INODES_HEADER: Final = Seal(slice(0, 4), crc=312, uuid=296, place=-1, owner=-1, owner_bytes=0)
INODE: Final = Seal(slice(0, 2), crc=100, uuid=160, place=-1, owner=152, owner_bytes=8)


def seal_sum(data: bytes | memoryview, at: int) -> int:
    """Return the checksum of a block that carries it at `at`: as if there were zeros."""
    value = crc32c(_NO_SUM, start=crc32c(data[:at]))
    return crc32c(data[at + 4 :], start=value)


class Blocks:
    """The metadata of a volume."""

    def __init__(
        self, source: Source, geometry: Geometry, overlay: Overlay, problems: Problems
    ) -> None:
        self.geometry: Final = geometry
        self.problems: Final = problems
        self.overlay: Final = overlay
        self._source = source

    def read(self, byte: int, count: int) -> bytes:
        """Return bytes as the log left them."""
        pieces = []
        for at in range(byte, byte + count, READ_BYTES_MAX):
            piece = self._source.read(at, min(READ_BYTES_MAX, byte + count - at))
            pieces.append(self.overlay.patch(at, piece))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_sealed(self, byte: int, count: int, seal: Seal, owner: int, what: str) -> bytes:
        """Read a block and check its seal; `DamagedError` says `what` it is."""
        data = self.read(byte, count)
        self.check(data, [(byte, count)], seal, owner, what)
        return data

    def read_older(self, byte: int, count: int) -> bytes:
        """Return bytes as they lie on the volume: at most one read."""
        return self._source.read(byte, count)

    def check(
        self,
        data: bytes,
        places: list[tuple[int, int]],
        seal: Seal,
        owner: int,
        what: str,
        older: bytes | None = None,
    ) -> None:
        """Check the seal of a block that was put together from `places`.

        `older` is what lies there on the volume, if that has been read already.
        """
        if not self.geometry.has_checksums:
            return
        self.check_identity(data, places[0][0], seal, owner, what)
        if any(self.overlay.covers(byte, count) for byte, count in places):
            if older is None:
                older = b"".join(self.read_older(*place) for place in places)
            self._check_older(data, older, places[0][0], seal, owner, what)
        elif not self.has_right_sum(data, seal):
            raise DamagedError(f"{what} fails its checksum")

    def check_identity(self, data: bytes, byte: int, seal: Seal, owner: int, what: str) -> None:
        """Check whose block this is, and whether it belongs where it is."""
        if data[seal.uuid : seal.uuid + 16] != self.geometry.meta_uuid:
            raise DamagedError(f"{what} belongs to another file system")
        place = int.from_bytes(data[seal.place : seal.place + 8], "big")
        if seal.place >= 0 and place != byte >> BASIC_SHIFT:
            raise DamagedError(f"{what} belongs to another place")
        said = int.from_bytes(data[seal.owner : seal.owner + seal.owner_bytes], "big")
        if seal.owner >= 0 and owner >= 0 and said != owner:
            raise DamagedError(f"{what} belongs to {said}, not to {owner}")

    @staticmethod
    def has_right_sum(data: bytes | memoryview, seal: Seal) -> bool:
        """Say whether a block has the checksum that it carries."""
        stored = int.from_bytes(data[seal.crc : seal.crc + 4], "little")
        return seal_sum(data, seal.crc) == stored

    def _check_older(
        self, data: bytes, older: bytes, byte: int, seal: Seal, owner: int, what: str
    ) -> None:
        """Check what the volume has, where the log has changed it: what it did not log comes from there."""
        try:
            self.check_identity(older, byte, seal, owner, what)
        except DamagedError:
            return
        if older[seal.magic] == data[seal.magic] and not self.has_right_sum(older, seal):
            self.problems.add(f"{what} failed its checksum before the log was replayed")
