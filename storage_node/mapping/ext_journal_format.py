"""What is in the journal of ext3 and ext4 (jbd2): its superblock, and the blocks of its log.

    descriptor   header, tags: to which block each of the blocks that follow belongs
    commit       header, checksum, time: the transaction is complete
    revoke       header, numbers of blocks: copies in this transaction and before it are no longer wanted

Everything is big-endian.  There are three generations of checksums: one for a whole transaction in its commit block,
and two with one for each block, of which the first keeps only 16 bits for a copy.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from backplane.crc import crc32c
from storage_node.mapping.ext_overlay import JOURNAL_MAGIC
from storage_node.mapping.ext_superblock import CRC_MASK
from storage_node.mapping.reader import DamagedError, UnsupportedError

DESCRIPTOR: Final = 1
COMMIT: Final = 2
REVOKE: Final = 5

BLOCKS_MAX: Final = 10_240_000
"""The largest journal that mke2fs makes."""
FAST_BLOCKS_DEFAULT: Final = 256
RING_BLOCKS_MIN: Final = 1024
"""If the fast-commit area left less than this, there is none."""
HEADER_BYTES: Final = 12

_HEADER: Final = struct.Struct(">4sII")
_SUPERBLOCK: Final = struct.Struct(">IIIIIIIII16s")
"""From 12: block size, blocks, first block of the log, sequence, start, error, three words of features, UUID."""
_SUPERBLOCK_BYTES: Final = 1024
_SUPERBLOCK_OLD: Final = 3
_SUPERBLOCK_NEW: Final = 4
_SUM_KIND_AT: Final = 0x50
_SUM_AT: Final = 0xFC
_FAST_BLOCKS_AT: Final = 0x54

_WHOLE_SUMS: Final = 0x1
_BITS64: Final = 0x2
_ASYNC_COMMIT: Final = 0x4
_SUMS_V2: Final = 0x8
_SUMS_V3: Final = 0x10
_FAST_COMMIT: Final = 0x20
_KNOWN: Final = 0x1 | _BITS64 | _ASYNC_COMMIT | _SUMS_V2 | _SUMS_V3 | _FAST_COMMIT

_ESCAPED: Final = 0x1
_SAME_UUID: Final = 0x2
_LAST_TAG: Final = 0x8
_UUID_BYTES: Final = 16
_TAIL_BYTES: Final = 4
_COMMIT_SUM_AT: Final = 16
_CRC32C: Final = 4
_CRC32: Final = 1

_FAST_TAG: Final = struct.Struct("<HH")
_FAST_TAIL: Final = 8
_FAST_HEAD: Final = 9


class JournalSuperblock(NamedTuple):
    """What the journal says of itself."""

    first: int
    end: int
    """The log is a ring from `first` to before `end`."""
    block_count: int
    sequence: int
    start: int
    """Where the log begins; 0 if there is none."""
    sums: int
    """Generation of the checksums; 0 if there are none."""
    has_bits64: bool
    is_async: bool
    """A commit block may have been written before the blocks of its transaction."""
    has_fast_commit: bool
    seed: int

    @property
    def has_block_sums(self) -> bool:
        return self.sums >= 2

    @property
    def tag_bytes(self) -> int:
        if self.sums == 3:
            return 16
        return 8 + (2 if self.sums == 2 else 0) + (4 if self.has_bits64 else 0)


class Tag(NamedTuple):
    """What a descriptor says of a copy."""

    block: int
    is_escaped: bool
    checksum: int


def parse_superblock(block: bytes, length: int) -> JournalSuperblock:
    """Read the first block of a journal of `length` blocks."""
    magic, kind, _ = _HEADER.unpack_from(block)
    if magic != JOURNAL_MAGIC or kind not in (_SUPERBLOCK_OLD, _SUPERBLOCK_NEW):
        raise DamagedError("the journal has no superblock")
    block_bytes, count, first, sequence, start, _, *words, uuid = _SUPERBLOCK.unpack_from(block, 12)
    compatible, incompatible, read_only = words if kind == _SUPERBLOCK_NEW else (0, 0, 0)
    if incompatible & ~_KNOWN or read_only:
        unknown = incompatible & ~_KNOWN or read_only
        raise UnsupportedError(f"unknown features of the journal ({unknown:#x})")
    sums = _generation(compatible, incompatible)
    if sums >= 2:
        _check_sum(block)
    is_right = block_bytes == len(block) and count <= min(length, BLOCKS_MAX)
    if not is_right or not 0 < first < count:
        raise DamagedError("the sizes in the superblock of the journal contradict each other")
    fast_blocks = 0
    if incompatible & _FAST_COMMIT:
        fast_blocks = int.from_bytes(block[_FAST_BLOCKS_AT : _FAST_BLOCKS_AT + 4], "big")
        fast_blocks = fast_blocks or FAST_BLOCKS_DEFAULT
        if count - fast_blocks < RING_BLOCKS_MIN:
            fast_blocks = 0
    end = count - fast_blocks
    if start and not first <= start < end:
        raise DamagedError(f"the log of the journal begins at its block {start}: outside")
    return JournalSuperblock(
        first=first,
        end=end,
        block_count=count,
        sequence=sequence,
        start=start,
        sums=sums,
        has_bits64=bool(incompatible & _BITS64),
        is_async=bool(incompatible & _ASYNC_COMMIT),
        has_fast_commit=bool(fast_blocks),
        seed=crc32c(uuid),
    )


def _generation(compatible: int, incompatible: int) -> int:
    found = [
        generation
        for generation, is_there in (
            (1, compatible & _WHOLE_SUMS),
            (2, incompatible & _SUMS_V2),
            (3, incompatible & _SUMS_V3),
        )
        if is_there
    ]
    if len(found) > 1:
        raise DamagedError("the journal has several generations of checksums")
    return found[0] if found else 0


def _check_sum(block: bytes) -> None:
    raw = block[:_SUPERBLOCK_BYTES]
    if raw[_SUM_KIND_AT] != _CRC32C:
        raise UnsupportedError(f"the journal has checksums of kind {raw[_SUM_KIND_AT]}")
    covered = raw[:_SUM_AT] + bytes(4) + raw[_SUM_AT + 4 :]
    if crc32c(covered) ^ CRC_MASK != int.from_bytes(raw[_SUM_AT : _SUM_AT + 4], "big"):
        raise DamagedError("the superblock of the journal fails its checksum")


def parse_header(block: bytes) -> tuple[int, int]:
    """Return (kind, sequence) of a block of the log; (0, 0) if it is none."""
    magic, kind, sequence = _HEADER.unpack_from(block)
    return (kind, sequence) if magic == JOURNAL_MAGIC else (0, 0)


def parse_tags(block: bytes, journal: JournalSuperblock) -> list[Tag]:
    """Return the tags of a descriptor, as many as are inside of it."""
    tags = []
    at = HEADER_BYTES
    end = len(block) - (_TAIL_BYTES if journal.has_block_sums else 0)
    size = journal.tag_bytes
    while at + size <= end:
        low = int.from_bytes(block[at : at + 4], "big")
        high = 0
        if journal.sums == 3:
            flags, high, checksum = struct.unpack_from(">III", block, at + 4)
        else:
            checksum, flags = struct.unpack_from(">HH", block, at + 4)
            if journal.has_bits64:
                high = int.from_bytes(block[at + 8 : at + 12], "big")
        if not journal.has_bits64:
            high = 0
        tags.append(Tag(high << 32 | low, bool(flags & _ESCAPED), checksum))
        at += size
        if not flags & _SAME_UUID:
            at += _UUID_BYTES
        if flags & _LAST_TAG:
            break
    return tags


def parse_revoked(block: bytes, journal: JournalSuperblock) -> list[int]:
    """Return the blocks that a revoke block tells."""
    end = int.from_bytes(block[HEADER_BYTES : HEADER_BYTES + 4], "big")
    if end > len(block) - (_TAIL_BYTES if journal.has_block_sums else 0):
        raise DamagedError("a list of revoked blocks in the journal is longer than its block")
    size = 8 if journal.has_bits64 else 4
    first = HEADER_BYTES + 4
    return [
        int.from_bytes(block[at : at + size], "big") for at in range(first, end - size + 1, size)
    ]


def commit_seconds(block: bytes) -> int:
    """Return when a transaction was committed."""
    return int.from_bytes(block[48:56], "big")


def has_right_tail(block: bytes, journal: JournalSuperblock) -> bool:
    """Compare a descriptor or a revoke block with its checksum, if it has one."""
    if not journal.has_block_sums:
        return True
    covered = block[:-_TAIL_BYTES] + bytes(_TAIL_BYTES)
    stored = int.from_bytes(block[-_TAIL_BYTES:], "big")
    return crc32c(covered, start=journal.seed) ^ CRC_MASK == stored


def has_right_commit(block: bytes, journal: JournalSuperblock, whole_sum: int) -> bool:
    """Compare a commit block with its checksum, or the transaction's if that is the generation."""
    stored = int.from_bytes(block[_COMMIT_SUM_AT : _COMMIT_SUM_AT + 4], "big")
    if journal.sums == 1:
        kind, size = block[HEADER_BYTES], block[HEADER_BYTES + 1]
        is_right = stored == whole_sum and kind == _CRC32 and size == 4
        return is_right or stored == kind == size == 0
    if not journal.has_block_sums:
        return True
    head = block[:_COMMIT_SUM_AT] + bytes(4)
    # Some kernels have computed it over the header alone, as if zeros followed.
    for covered in (head + block[_COMMIT_SUM_AT + 4 :], _only_header(head, block)):
        if crc32c(covered, start=journal.seed) ^ CRC_MASK == stored:
            return True
    return False


def _only_header(head: bytes, block: bytes) -> bytes:
    header = head + block[_COMMIT_SUM_AT + 4 : 60]
    return header + bytes(len(block) - len(header))


def has_right_copy(copy: bytes, sequence: int, checksum: int, journal: JournalSuperblock) -> bool:
    """Compare a copy with the checksum in its tag, if there is one."""
    if not journal.has_block_sums:
        return True
    found = crc32c(sequence.to_bytes(4, "big") + copy, start=journal.seed) ^ CRC_MASK
    return checksum == (found if journal.sums == 3 else found & 0xFFFF)


# --- checksums of whole transactions -------------------------------------------------------------

_MIRRORED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def crc32_big(data: bytes, start: int) -> int:
    """Return the CRC-32 that begins with the highest bit, without inversions.

    It is the usual one with every byte and the result mirrored.
    """
    mirrored = zlib.crc32(data.translate(_MIRRORED), _mirror(start) ^ CRC_MASK)
    return _mirror(mirrored ^ CRC_MASK)


def _mirror(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_MIRRORED), "big")


# --- fast commits --------------------------------------------------------------------------------


def has_fast_commit(area: Iterable[bytes], sequence: int) -> bool:
    """Say whether the fast-commit area has a complete change that follows the transactions before `sequence`."""
    for index, block in enumerate(area):
        at = 0
        while at + _FAST_TAG.size <= len(block):
            kind, size = _FAST_TAG.unpack_from(block, at)
            value = block[at + _FAST_TAG.size : at + _FAST_TAG.size + size]
            if not index and not at and (kind != _FAST_HEAD or _word(value, 4) != sequence):
                return False
            if kind == _FAST_TAIL:
                return _word(value, 0) == sequence
            if not 0 < kind <= _FAST_HEAD:
                return False
            at += _FAST_TAG.size + size
    return False


def _word(value: bytes, at: int) -> int:
    return int.from_bytes(value[at : at + 4], "little")
