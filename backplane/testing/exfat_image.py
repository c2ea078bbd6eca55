"""exFAT images for tests, made without a driver: where every cluster lies is the test's choice.

Free clusters hold a pattern instead of zeros, so that whoever reads what is not there gets caught.  Shares no code with
the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SECTOR: Final = 512
PATTERN: Final = b"\xa5stale! "
HEAP_SECTOR: Final = 2048
TABLE_SECTOR: Final = 128
FIRST: Final = 2
END: Final = 0xFFFFFFFF
STAMP: Final = (2024 - 1980) << 25 | 5 << 21 | 17 << 16 | 13 << 11 | 45 << 5 | 10
"""2024-05-17 13:45:20."""


@dataclass
class ExfatFile:
    """A file, or a directory if `data` is None.  Directories of a path are made if nobody names them."""

    path: str
    data: bytes | None = b""
    is_scattered: bool = False
    """Every cluster apart from the others, and in the FAT; else together and not in the FAT."""
    valid: int | None = None
    """How many of its bytes are valid; behind them the clusters keep the pattern."""
    zone: int = 0
    steps: int = 0


class ExfatImage:
    """An image under construction."""

    def __init__(
        self,
        size_bytes: int,
        *,
        cluster_bytes: int = 4096,
        label: str = "",
        scatter_bitmap: bool = False,
    ) -> None:
        self.cluster_bytes = cluster_bytes
        self.heap = HEAP_SECTOR * SECTOR
        self.clusters = (size_bytes - self.heap) // cluster_bytes
        self.data = bytearray((PATTERN * (size_bytes // len(PATTERN) + 1))[:size_bytes])
        self.table: dict[int, int] = {0: 0xFFFFFFF8, 1: END}
        self.used: set[int] = set()
        self._label = label
        self._low = FIRST
        self._high = FIRST + self.clusters - 1
        self._bitmap_bytes = (self.clusters + 7) // 8
        self._bitmap = self._take(self._bitmap_bytes, scattered=scatter_bitmap)
        self._upcase = self._take(len(upcase_table()), scattered=False)
        for chain in (self._bitmap, self._upcase):
            self._link(chain)

    def _take(self, size: int, *, scattered: bool) -> list[int]:
        """Reserve clusters from the low end, or every second one from the high end."""
        count = -(-size // self.cluster_bytes)
        if scattered:
            chain = [self._high - 2 * index for index in range(count)]
            self._high -= 2 * count
        else:
            chain = list(range(self._low, self._low + count))
            self._low += count
        assert self._low <= self._high, "the image is too small"
        self.used |= set(chain)
        return chain

    def _link(self, chain: Sequence[int]) -> None:
        for index, cluster in enumerate(chain):
            self.table[cluster] = chain[index + 1] if index + 1 < len(chain) else END

    def _write(self, chain: Sequence[int], data: bytes) -> None:
        for index, cluster in enumerate(chain):
            piece = data[index * self.cluster_bytes : (index + 1) * self.cluster_bytes]
            at = self.byte_of(cluster)
            self.data[at : at + len(piece)] = piece

    def byte_of(self, cluster: int) -> int:
        """Return the first byte of a cluster."""
        return self.heap + (cluster - FIRST) * self.cluster_bytes

    def build(self, files: Sequence[ExfatFile]) -> bytes:
        """Return the image with these files in it."""
        tree: dict[str, dict[str, ExfatFile | None]] = {"": {}}
        for file in files:
            parent = ""
            *above, name = file.path.split("/")
            for part in above:
                tree[parent].setdefault(part, None)
                parent = f"{parent}/{part}" if parent else part
                tree.setdefault(parent, {})
            tree[parent][name] = file if file.data is not None else None
            if file.data is None:
                tree.setdefault(file.path, {})
        root = self._directory(tree, "", self._singles())
        self._write(self._bitmap, self._bits())
        self._write(self._upcase, upcase_table())
        for cluster, following in self.table.items():
            struct.pack_into("<I", self.data, TABLE_SECTOR * SECTOR + 4 * cluster, following)
        for cluster in range(FIRST, FIRST + self.clusters):
            if cluster not in self.table:
                struct.pack_into("<I", self.data, TABLE_SECTOR * SECTOR + 4 * cluster, 0)
        self._boot(root[0])
        return bytes(self.data)

    def _singles(self) -> bytes:
        upcase = upcase_table()
        label = self._label.encode("utf-16-le")
        kind = 0x83 if label else 0x03
        return b"".join(
            (
                struct.pack("<BB22s8x", kind, len(self._label), label),
                struct.pack("<BB18xIQ", 0x81, 0, self._bitmap[0], self._bitmap_bytes),
                struct.pack("<B3xI12xIQ", 0x82, checksum_32(upcase), self._upcase[0], len(upcase)),
            )
        )

    def _directory(
        self, tree: dict[str, dict[str, ExfatFile | None]], path: str, head: bytes = b""
    ) -> list[int]:
        """Write a directory and everything below; return its clusters."""
        content = head
        for name, file in tree[path].items():
            below = f"{path}/{name}" if path else name
            if file is None:
                chain = self._directory(tree, below)
                size = len(chain) * self.cluster_bytes
                content += entry_set(name, 0x10, 1, chain[0], size, size)
            else:
                content += self._file(name, file)
        chain = self._take(max(len(content), 1), scattered=False)
        self._link(chain)
        self._write(chain, content.ljust(len(chain) * self.cluster_bytes, b"\0"))
        return chain

    def _file(self, name: str, file: ExfatFile) -> bytes:
        data = file.data or b""
        valid = len(data) if file.valid is None else file.valid
        chain = self._take(len(data), scattered=file.is_scattered)
        self._write(chain, data[:valid])
        flags = 0
        if chain:
            flags = 1 if file.is_scattered else 3
            if file.is_scattered:
                self._link(chain)
        first = chain[0] if chain else 0
        return entry_set(
            name, 0x20, flags, first, len(data), valid, zone=file.zone, steps=file.steps
        )

    def _bits(self) -> bytes:
        bits = bytearray(self._bitmap_bytes)
        for cluster in self.used:
            bits[(cluster - FIRST) // 8] |= 1 << (cluster - FIRST) % 8
        return bytes(bits)

    def _boot(self, root: int) -> None:
        sectors = len(self.data) // SECTOR
        shift = (self.cluster_bytes // SECTOR).bit_length() - 1
        head = b"\xeb\x76\x90EXFAT   ".ljust(64, b"\0") + struct.pack(
            "<QQIIIIIIHHBBBBB",
            0,
            sectors,
            TABLE_SECTOR,
            HEAP_SECTOR - TABLE_SECTOR,
            HEAP_SECTOR,
            self.clusters,
            root,
            0x1234ABCD,
            0x0100,
            0,
            9,
            shift,
            1,
            0x80,
            0xFF,
        )
        region = head.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
        region += (bytes(SECTOR - 4) + b"\0\0\x55\xaa") * 8 + bytes(2 * SECTOR)
        region += struct.pack("<I", checksum_32(region, skip=(106, 107, 112))) * (SECTOR // 4)
        assert len(region) == 12 * SECTOR
        self.data[: 24 * SECTOR] = region * 2


def entry_set(
    name: str,
    attributes: int,
    flags: int,
    first: int,
    size: int,
    valid: int,
    *,
    zone: int = 0,
    steps: int = 0,
) -> bytes:
    """Return the directory entries of one name, with their checksum."""
    units = name.encode("utf-16-le", "surrogatepass")
    characters = len(units) // 2
    parts = [units[at : at + 30] for at in range(0, len(units), 30)]
    stream = struct.pack(
        "<BBxBH2xQ4xIQ", 0xC0, flags, characters, name_hash(units), valid, first, size
    )
    names = b"".join(b"\xc1\0" + part.ljust(30, b"\0") for part in parts)
    file = struct.pack(
        "<BBHHHIIIBBBBB7x",
        0x85,
        1 + len(parts),
        0,
        attributes,
        0,
        STAMP,
        STAMP,
        STAMP,
        steps,
        steps,
        zone,
        zone,
        zone,
    )
    return with_checksum(file + stream + names)


def with_checksum(raw: bytes) -> bytes:
    """Return a set of entries with the checksum that it should have."""
    value = 0
    for index, byte in enumerate(raw):
        if index not in (2, 3):
            value = ((value >> 1 | value << 15) & 0xFFFF) + byte & 0xFFFF
    return raw[:2] + struct.pack("<H", value) + raw[4:]


def name_hash(units: bytes) -> int:
    """Return the hash of a name, in capitals as our table has them."""
    value = 0
    for at in range(0, len(units), 2):
        unit = int.from_bytes(units[at : at + 2], "little")
        unit -= 32 if 97 <= unit <= 122 else 0
        for byte in unit.to_bytes(2, "little"):
            value = ((value >> 1 | value << 15) & 0xFFFF) + byte & 0xFFFF
    return value


def checksum_32(data: bytes, *, skip: Sequence[int] = ()) -> int:
    """Return the checksum of boot regions and up-case tables."""
    value = 0
    for index, byte in enumerate(data):
        if index not in skip:
            value = ((value >> 1 | value << 31) & 0xFFFFFFFF) + byte & 0xFFFFFFFF
    return value


def upcase_table() -> bytes:
    """Return a table that knows ASCII; all other characters stay what they are."""
    ascii_part = [unit - 32 if 97 <= unit <= 122 else unit for unit in range(128)]
    return struct.pack("<130H", *ascii_part, 0xFFFF, 65536 - 128)
