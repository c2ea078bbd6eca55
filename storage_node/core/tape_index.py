"""Bytes of a cartridge file: object entries, the durable mark, the header of the index.

One entry of 32 bytes stands for one object.  It is written twice: in the data file right before the bytes of the
record, and in the index, where object n stands at `entry_offset(n)`.  The index makes LOCATE one read and says what
was committed; the copy in the data file repairs an index that has gone bad.

    offset  size  field
    0       1     kind         01h record, 02h filemark
    1       1     format       01h
    2       2     reserved     0
    4       4     length       bytes of the record; 0 for a filemark
    8       8     offset       where the entry stands in the data file; the record's bytes follow it
    16      4     crc32c       of the record's bytes
    20      4     file number  filemarks before this object
    24      4     generation   of the cartridge when the object was written
    28      4     crc32c       of bytes 0..27, started with the cartridge's seed and the object number

Because of how the last field is started, an entry of another cartridge, or of another place, is a bad entry.

The durable mark says: objects 0..n-1 have been synchronised.  It is written after the synchronisation, alternately to
two slots, and not itself synchronised: it may be late, never early.  What it covers and is bad was damaged later;
what lies behind it may be the torn end of an interrupted flush.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from backplane.crc import crc32c

FORMAT: Final = 1
FORMAT_COMPRESSED: Final = 2
"""Of an entry whose record is compressed (zstd); everything else has the other format."""

_LENGTH_MASK: Final = (1 << 24) - 1
INDEX_HEADER_BYTES: Final = 4096
"""One page: header at 0, durable marks at 1024 and 2048, so that a torn write meets one of the three at most."""

MARK_OFFSETS: Final = (1024, 2048)

FILE_BYTES_END: Final = 1 << 62
"""No file is as long: what says so was written by nobody, and no system call takes it."""

GENERATION_END: Final = 1 << 31
"""Nor was any tape overwritten so often; the next generation has to fit as well."""

_ENTRY: Final = struct.Struct(">BBHIQIIII")
ENTRY_BYTES: Final = _ENTRY.size
_MARK: Final = struct.Struct(">QQQII")
MARK_BYTES: Final = _MARK.size
_HEADER: Final = struct.Struct(">8sHH16sI")
HEADER_BYTES: Final = _HEADER.size
_MAGIC: Final = b"SDVINDEX"

assert ENTRY_BYTES == 32
assert MARK_BYTES == 32


class ObjectKind(IntEnum):
    """What a logical object is."""

    RECORD = 1
    FILEMARK = 2


_KINDS: Final = tuple(int(kind) for kind in ObjectKind)
_FILEMARK: Final = int(ObjectKind.FILEMARK)


class Entry(NamedTuple):
    """One logical object of a cartridge."""

    kind: ObjectKind
    length: int
    offset: int
    crc32c: int
    file_number: int
    generation: int
    stored: int = 0
    """Bytes that a compressed record takes; 0 if it is stored as it is."""

    @property
    def medium_bytes(self) -> int:
        """What its bytes take in the data file."""
        return self.stored or self.length

    @property
    def data_offset(self) -> int:
        """Where the record's bytes begin in the data file."""
        return self.offset + ENTRY_BYTES

    @property
    def end_offset(self) -> int:
        """Where the next object begins in the data file."""
        return self.offset + ENTRY_BYTES + self.medium_bytes

    @property
    def is_filemark(self) -> bool:
        """Whether it is a filemark."""
        return self.kind is ObjectKind.FILEMARK


@dataclass(frozen=True, slots=True)
class DurableMark:
    """Objects 0..`objects`-1, `data_bytes` of the data file, were synchronised."""

    sequence: int
    objects: int
    data_bytes: int
    generation: int


class Continuation(NamedTuple):
    """What the next entry has to continue: object number, offset, filemarks before it, generation at least.

    `record_bytes` are those of the records before it, as they were written.
    """

    object_number: int
    data_bytes: int
    filemarks: int
    generation: int
    record_bytes: int = 0


def seed_of(serial: bytes) -> int:
    """Return what the checksums of a cartridge start with."""
    assert len(serial) == 16
    return crc32c(serial)


def entry_offset(object_number: int) -> int:
    """Return where the entry of an object stands in the index."""
    return INDEX_HEADER_BYTES + object_number * ENTRY_BYTES


def _start(seed: int, object_number: int) -> int:
    # For fixed bytes a CRC is one-to-one in its start value, so a neighbour's number never fits.
    return seed ^ (object_number & 0xFFFF_FFFF)


def encode_entry(entry: Entry, *, object_number: int, seed: int) -> bytes:
    """Return the 32 bytes of an entry."""
    body = _ENTRY.pack(
        entry.kind,
        FORMAT_COMPRESSED if entry.stored else FORMAT,
        entry.stored >> 8,
        (entry.stored & 0xFF) << 24 | entry.length,
        entry.offset,
        entry.crc32c,
        entry.file_number,
        entry.generation,
        0,
    )[:28]
    return body + crc32c(body, start=_start(seed, object_number)).to_bytes(4, "big")


def decode_entry(data: bytes | memoryview, *, object_number: int, seed: int) -> Entry | None:
    """Decode 32 bytes; None if they are not the entry of this object on this cartridge."""
    if len(data) != ENTRY_BYTES:
        return None
    kind, form, high, low, offset, crc, number, generation, own = _ENTRY.unpack(data)
    if crc32c(data[:28], start=_start(seed, object_number)) != own:
        return None
    stored = high << 8 | low >> 24
    if form != (FORMAT_COMPRESSED if stored else FORMAT) or kind not in _KINDS:
        return None
    if offset >= FILE_BYTES_END or generation >= GENERATION_END:
        return None
    return Entry(ObjectKind(kind), low & _LENGTH_MASK, offset, crc, number, generation, stored)


def take_good(
    block: memoryview, *, first: int, seed: int, objects: Continuation
) -> tuple[Continuation, list[int]]:
    """Take the run of good entries at the beginning of a block of the index; the entries are objects from `first` on.

    Returns where they lead, and the object numbers of the filemarks among them.  A block of good entries is what
    opening a cartridge consists of, so this is one loop over unpacked fields.
    """
    offset, marks, generation = objects.data_bytes, objects.filemarks, objects.generation
    found: list[int] = []
    number = first
    record_bytes = objects.record_bytes
    for kind, form, high, low, at, _, own_file, own_generation, own_crc in _ENTRY.iter_unpack(
        block
    ):
        start = (number - first) * ENTRY_BYTES
        crc = crc32c(block[start : start + 28], start=_start(seed, number))
        stored = high << 8 | low >> 24
        if crc != own_crc or at != offset or own_file != marks:
            break
        if form != (FORMAT_COMPRESSED if stored else FORMAT):
            break
        if not generation <= own_generation < GENERATION_END or kind not in _KINDS:
            break
        if kind == _FILEMARK:
            found.append(number)
            marks += 1
        length = low & _LENGTH_MASK
        offset, generation = at + ENTRY_BYTES + (stored or length), own_generation
        record_bytes += length
        number += 1
    return Continuation(number, offset, marks, generation, record_bytes), found


def encode_mark(mark: DurableMark, *, seed: int) -> bytes:
    """Return the 32 bytes of a durable mark."""
    body = _MARK.pack(mark.sequence, mark.objects, mark.data_bytes, mark.generation, 0)[:28]
    return body + crc32c(body, start=seed).to_bytes(4, "big")


def decode_mark(data: bytes, *, seed: int) -> DurableMark | None:
    """Decode 32 bytes; None if they are no durable mark of this cartridge."""
    if len(data) != MARK_BYTES or crc32c(data[:28], start=seed) != int.from_bytes(data[28:], "big"):
        return None
    sequence, objects, data_bytes, generation, _ = _MARK.unpack(data)
    if max(sequence, entry_offset(objects), data_bytes) >= FILE_BYTES_END:
        return None
    if generation >= GENERATION_END:
        return None
    return DurableMark(sequence, objects, data_bytes, generation)


def encode_index_header(serial: bytes) -> bytes:
    """Return the first bytes of an index."""
    body = _HEADER.pack(_MAGIC, FORMAT, 0, serial, 0)[:-4]
    return body + crc32c(body).to_bytes(4, "big")


def is_index_header(data: bytes, *, serial: bytes) -> bool:
    """Say whether these are the first bytes of the index of this cartridge."""
    return data == encode_index_header(serial)
