"""Small XFS volumes and logs made by hand: what no tool makes, and what is wrong in one place only.

A volume has one group of 512 blocks of 4 KiB:

    0  headers    1  free space    2  inodes' tree    3  shared blocks    8..15  inodes 64..127; 64 is the root
    32..95  log    100..255  for tests    256..511  free

What is here was written from the description of the format, and shares nothing with the reader but the checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from backplane.crc import crc32c

BLOCK_BYTES: Final = 4096
BLOCKS: Final = 512
INODE_BYTES: Final = 512
FIRST_INODE: Final = 64
ROOT: Final = 64
LOG_BLOCK: Final = 32
LOG_BLOCKS: Final = 64
FREE_BLOCK: Final = 256
UUID: Final = bytes(range(16, 32))
BASIC_BYTES: Final = 512

Operation = tuple[int, int, int, bytes]
"""(transaction, client, flags, region)."""


def sealed(data: bytes | bytearray, at: int) -> bytes:
    """Return an object with its checksum at `at`."""
    data = bytearray(data)
    data[at : at + 4] = bytes(4)
    data[at : at + 4] = crc32c(bytes(data)).to_bytes(4, "little")
    return bytes(data)


def extent(file_block: int, block: int, count: int, *, is_unwritten: bool = False) -> bytes:
    """Return the record of an extent."""
    number = is_unwritten << 127 | file_block << 73 | block << 21 | count
    return number.to_bytes(16, "big")


def short_directory(entries: Iterable[tuple[bytes, int, int]], *, parent: int = ROOT) -> bytes:
    """Return a directory of (name, inode, type) that is in its inode."""
    entries = list(entries)
    data = struct.pack(">BBI", len(entries), 0, parent)
    for name, number, kind in entries:
        data += struct.pack(">BH", len(name), 0x60) + name + struct.pack(">BI", kind, number)
    return data


class ForgedVolume:
    """A volume of version 5 or 4."""

    def __init__(self, *, version: int = 5) -> None:
        self.version = version
        self.incompatible = 0x1 | 0x8
        self.read_only = 0x4
        self.log_incompatible = 0
        self.inodes: dict[int, bytes] = {}
        self.free = [(FREE_BLOCK, BLOCKS - FREE_BLOCK)]
        self.shared: list[tuple[int, int, int]] = []
        self.log = ForgedLog()
        self.log.unmount()
        self.blocks: dict[int, bytes] = {}
        """By block: what tests put there."""

    @property
    def is_v5(self) -> bool:
        return self.version == 5

    def add_inode(
        self,
        number: int,
        mode: int,
        fork: bytes = b"",
        *,
        form: int = 2,
        size: int = 0,
        links: int = 1,
        count: int = 0,
        attribute: bytes = b"",
        attribute_at: int = 0,
        attribute_form: int = 2,
        attribute_count: int = 0,
        flags: int = 0,
        flags2: int = 0x8,
        place: int = 0,
    ) -> None:
        """Put an inode; what is not given is as in an ordinary one."""
        raw = bytearray(INODE_BYTES)
        struct.pack_into(">2sHBB", raw, 0, b"IN", mode, 3 if self.is_v5 else 2, form)
        struct.pack_into(">III", raw, 8, 1000, 100, links)
        for at in (32, 40, 48):
            struct.pack_into(
                ">Q", raw, at, 1_700_000_000_123_456_789 if self.is_v5 else 7 << 32 | 9
            )
        struct.pack_into(">Q", raw, 56, size)
        struct.pack_into(
            ">IHBB", raw, 76, count, attribute_count, attribute_at // 8, attribute_form
        )
        struct.pack_into(">HI", raw, 90, flags, 77)
        start = 100
        if self.is_v5:
            start = 176
            struct.pack_into(">QQ", raw, 112, place, flags2)
            struct.pack_into(">QQ16s", raw, 144, 5 << 30, number, UUID)
        raw[start : start + len(fork)] = fork
        if attribute_at:
            at = start + attribute_at
            raw[at : at + len(attribute)] = attribute
        self.inodes[number] = sealed(raw, 100) if self.is_v5 else bytes(raw)

    def add_directory(
        self, number: int, entries: Iterable[tuple[bytes, int, int]], *, links: int = 2
    ) -> None:
        data = short_directory(entries)
        self.add_inode(number, 0o040755, data, form=1, size=len(data), links=links)

    def tree_block(
        self, number: int, magic: bytes, records: bytes, count: int, level: int = 0
    ) -> bytes:
        """Return a block of a tree of the group; `magic` is that of version 5."""
        magic = magic if self.is_v5 else {b"AB3B": b"ABTB", b"IAB3": b"IABT"}.get(magic, magic)
        head = struct.pack(">4sHHII", magic, level, count, 0xFFFFFFFF, 0xFFFFFFFF)
        if not self.is_v5:
            return (head + records).ljust(BLOCK_BYTES, b"\0")
        head += struct.pack(">QQ16sII", number * 8, 0, UUID, 0, 0)
        return sealed((head + records).ljust(BLOCK_BYTES, b"\0"), 52)

    def superblock(self) -> bytes:
        raw = bytearray(512)
        struct.pack_into(">4sIQ16x16s", raw, 0, b"XFSB", BLOCK_BYTES, BLOCKS, UUID)
        struct.pack_into(">QQ", raw, 48, LOG_BLOCK, ROOT)
        struct.pack_into(">IIIII", raw, 80, 1, BLOCKS, 1, 0, LOG_BLOCKS)
        bits = 0xB4A5 if self.is_v5 else 0xB4A4
        struct.pack_into(">HHHH12s", raw, 100, bits, 512, INODE_BYTES, 8, b"forged")
        struct.pack_into(">BBBBB", raw, 120, 12, 9, 9, 3, 9)
        old = 0x18A if self.is_v5 else 0x28A
        struct.pack_into(">II", raw, 200, old, old)
        if not self.is_v5:
            return bytes(raw)
        features = (0, self.read_only, self.incompatible, self.log_incompatible)
        struct.pack_into(">IIII", raw, 208, *features)
        return sealed(raw, 224)

    def _space_header(self) -> bytes:
        raw = bytearray(512)
        count = sum(count for _, count in self.free)
        struct.pack_into(">4sIIII8xI", raw, 0, b"XAGF", 1, 0, BLOCKS, 1, 1)
        struct.pack_into(">I", raw, 52, count)
        raw[64:80] = UUID
        struct.pack_into(">II", raw, 88, 3, 1)
        return sealed(raw, 216) if self.is_v5 else bytes(raw)

    def _inodes_header(self) -> bytes:
        raw = bytearray(512)
        struct.pack_into(">4sIIIIII", raw, 0, b"XAGI", 1, 0, BLOCKS, 64, 2, 1)
        raw[296:312] = UUID
        return sealed(raw, 312) if self.is_v5 else bytes(raw)

    def image(self) -> bytearray:
        """Return the volume."""
        image = bytearray(BLOCKS * BLOCK_BYTES)
        image[0:512] = self.superblock()
        image[512:1024] = self._space_header()
        image[1024:1536] = self._inodes_header()
        free = (1 << 64) - 1
        for number, raw in self.inodes.items():
            free &= ~(1 << number - FIRST_INODE)
            at = 8 * BLOCK_BYTES + (number - FIRST_INODE) * INODE_BYTES
            image[at : at + INODE_BYTES] = raw
        records = {
            1: (b"AB3B", b"".join(struct.pack(">II", *run) for run in self.free), len(self.free)),
            2: (b"IAB3", struct.pack(">IIQ", FIRST_INODE, 0, free), 1),
            3: (
                b"R3FC",
                b"".join(struct.pack(">III", *run) for run in self.shared),
                len(self.shared),
            ),
        }
        for number, (magic, data, count) in records.items():
            block = self.tree_block(number, magic, data, count)
            image[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] = block
        at = LOG_BLOCK * BLOCK_BYTES
        image[at : at + len(self.log.ring)] = self.log.ring
        for number, data in self.blocks.items():
            image[number * BLOCK_BYTES : number * BLOCK_BYTES + len(data)] = data
        return image


# --- logs ---------------------------------------------------------------------------------------

START: Final = 1
COMMIT: Final = 2
CONTINUE: Final = 4
WAS_CONTINUED: Final = 8
END: Final = 16
UNMOUNT: Final = 32
CLIENT: Final = 0x69


class ForgedLog:
    """A log, written record by record."""

    def __init__(
        self, *, blocks: int = LOG_BLOCKS * BLOCK_BYTES // BASIC_BYTES, cycle: int = 1
    ) -> None:
        self.ring = bytearray(blocks * BASIC_BYTES)
        self.blocks = blocks
        self.cycle = cycle
        self.head = 0
        self.tail = cycle << 32
        self.size = 32 * 1024
        self.byte_order = 1
        self.uuid = UUID
        if cycle > 1:
            for block in range(blocks):
                self._stamp(block, cycle - 1)

    def _stamp(self, block: int, cycle: int) -> None:
        self.ring[block * BASIC_BYTES : block * BASIC_BYTES + 4] = cycle.to_bytes(4, "big")

    @property
    def place(self) -> int:
        """Of the next record."""
        return self.cycle << 32 | self.head

    def record(
        self, operations: Sequence[Operation], *, is_sealed: bool = True, is_torn: bool = False
    ) -> int:
        """Write a record; return its place.  `is_torn`: its second half is not written."""
        data = b"".join(
            struct.pack(">IIBBH", number, len(region), client, flags, 0) + region
            for number, client, flags, region in operations
        )
        blocks = max(1, -(-len(data) // BASIC_BYTES))
        padded = bytearray(data.ljust(blocks * BASIC_BYTES, b"\0"))
        headers = max(1, self.size // 32768)
        place, start = self.place, self.head
        originals = [bytes(padded[at * 512 : at * 512 + 4]) for at in range(blocks)]
        header = bytearray(headers * BASIC_BYTES)
        struct.pack_into(
            ">4sIIIQQIII",
            header,
            0,
            b"\xfe\xed\xba\xbe",
            self.cycle,
            2,
            len(padded),
            place,
            self.tail,
            0,
            0xFFFFFFFF,
            len(operations),
        )
        struct.pack_into(">I16sI", header, 300, self.byte_order, self.uuid, self.size)
        for number, original in enumerate(originals):
            extension, index = divmod(number, 64)
            at = extension * 512 + (4 if extension else 44) + index * 4
            header[at : at + 4] = original
        for number in range(blocks):
            cycle = self.cycle + (start + headers + number >= self.blocks)
            padded[number * 512 : number * 512 + 4] = cycle.to_bytes(4, "big")
        for extension in range(1, headers):
            cycle = self.cycle + (start + extension >= self.blocks)
            header[extension * 512 : extension * 512 + 4] = cycle.to_bytes(4, "big")
        if is_sealed:
            covered = header[:328]
            for extension in range(1, min(headers, -(-len(padded) // 32768))):
                covered += header[extension * 512 : extension * 512 + 260]
            header[32:36] = crc32c(bytes(covered + padded)).to_bytes(4, "little")
        whole = bytes(header + padded)
        for number in range(headers + blocks):
            block = (start + number) % self.blocks
            if is_torn and number > headers + blocks // 2:
                continue
            self.ring[block * 512 : block * 512 + 512] = whole[number * 512 : number * 512 + 512]
        self.cycle += start + headers + blocks >= self.blocks
        self.head = (start + headers + blocks) % self.blocks
        return place

    def unmount(self) -> int:
        """Write what ends a log that was closed in order."""
        self.tail = self.place
        place = self.record([(0xB0C0D0D0, 0xAA, UNMOUNT, b"nU".ljust(8, b"\0"))])
        self.tail = self.place
        return place

    def transaction(self, *items: Sequence[bytes], number: int = 1) -> int:
        """Write one committed transaction in a record of its own."""
        return self.record(transaction(*items, number=number))


def transaction(*items: Sequence[bytes], number: int = 1) -> list[Operation]:
    """Return the operations of a committed transaction."""
    header = struct.pack("<4sIII", b"NART", 40, number, len(items))
    regions = [header, *(region for item in items for region in item)]
    return [
        (number, CLIENT, START, b""),
        *((number, CLIENT, 0, region) for region in regions),
        (number, CLIENT, COMMIT, b""),
    ]


def buffer_item(
    block: int, blocks: int, pieces: dict[int, bytes], *, flags: int = 0
) -> list[bytes]:
    """Return the regions of a buffer: pieces of 128 bytes by their place, in basic blocks."""
    bits = 0
    for at, data in pieces.items():
        assert at % 128 == len(data) % 128 == 0
        bits |= (1 << len(data) // 128) - 1 << at // 128
    words = max(1, -(-bits.bit_length() // 32))
    head = struct.pack("<HHHHqI", 0x123C, 1 + len(pieces), flags, blocks, block, words)
    return [head + bits.to_bytes(words * 4, "little"), *(pieces[at] for at in sorted(pieces))]


def cancel_item(block: int, blocks: int) -> list[bytes]:
    """Return the regions of a cancelled buffer."""
    return [struct.pack("<HHHHqII", 0x123C, 1, 2, blocks, block, 1, 0)]


def inode_item(
    number: int,
    core: bytes,
    *forks: bytes,
    fields: int,
    cluster: tuple[int, int] = (64, 64),
    is_short: bool = False,
    device: int = 0,
    at: int | None = None,
) -> list[bytes]:
    """Return the regions of an inode, which is in these basic blocks."""
    if at is None:
        at = 8 * BLOCK_BYTES + (number - FIRST_INODE) * INODE_BYTES - cluster[0] * BASIC_BYTES
    count = 2 + len(forks)
    padding = b"" if is_short else bytes(4)
    head = struct.pack("<HHIHH", 0x123B, count, fields, 0, 0) + padding
    head += struct.pack("<QI12xqii", number, device, *cluster, at)
    return [head, core, *forks]


def host_core(stored: bytes, *, is_v5: bool = True) -> bytes:
    """Return the core of an inode as a machine logs it: in its own byte order."""
    layout = "HHBBHIIIHH6sHIIIIIIQQIIHBBIHHI"
    new_layout = "QQQI12sIIQ16s"
    core = struct.pack(f"<{layout}", *struct.unpack_from(f">{layout}", stored))
    if not is_v5:
        return core
    flags2 = int.from_bytes(stored[120:128], "big")
    more = struct.pack(f"<{new_layout}", *struct.unpack_from(f">{new_layout}", stored, 104))
    whole = bytearray(core + bytes(8) + more)
    if flags2 & 0x8:
        for at in (32, 40, 48, 144):
            whole[at : at + 8] = stored[at : at + 8][::-1]
    if flags2 & 0x10:
        whole[24:32], whole[76:80] = stored[24:32][::-1], stored[76:80][::-1]
    return bytes(whole)


def create_item(block: int, count: int, *, inodes: int = 64, group: int = 0) -> list[bytes]:
    """Return the region of an item that makes inodes in some blocks."""
    return [
        struct.pack("<HH", 0x123F, 1)
        + struct.pack(">IIIIII", group, block, inodes, INODE_BYTES, count, 99)
    ]


def map_intent(intent: int, *extents: tuple[int, int, int, int, int]) -> list[bytes]:
    """Return an intent to map (inode, block, block of the file, count, flags)."""
    head = struct.pack("<HHIQ", 0x1244, 1, len(extents), intent)
    return [head + b"".join(struct.pack("<QQQII", *fields) for fields in extents)]


def share_intent(intent: int, *extents: tuple[int, int, int]) -> list[bytes]:
    """Return an intent to share (block, count, flags)."""
    head = struct.pack("<HHIQ", 0x1242, 1, len(extents), intent)
    return [head + b"".join(struct.pack("<QII", *fields) for fields in extents)]


def done_item(kind: int, intent: int) -> list[bytes]:
    """Return what says that an intent of this kind is done."""
    return [struct.pack("<HHIQ", kind + 1, 1, 0, intent)]
