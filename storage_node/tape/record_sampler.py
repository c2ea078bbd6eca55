"""The checksums of pieces of records: what a restored file is compared with."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.errors import MediumError, UsageError
from backplane.tape_format.content import RECORD_BYTES_MAX
from storage_node.tape.drive import Drive

RANGE: Final = struct.Struct(">QII")
DIGEST: Final = struct.Struct(">I")
RANGES_MAX: Final = 16 * 1024
"""In one request: 256 KiB of a message."""
SAMPLE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Records of one request together: it occupies the drive as long as it takes to read them."""


class Piece(NamedTuple):
    """`byte_count` bytes of a record, from `first_byte` on."""

    object_number: int
    first_byte: int
    byte_count: int


def unpack_pieces(packed: bytes) -> list[Piece]:
    """Return what a request asks for; raises `UsageError`."""
    if len(packed) % RANGE.size or len(packed) > RANGES_MAX * RANGE.size:
        raise UsageError(f"ranges: 0 to {RANGES_MAX} of {RANGE.size} bytes each")
    return [Piece(*fields) for fields in RANGE.iter_unpack(packed)]


def sample_records(drive: Drive, pieces: Sequence[Piece]) -> bytes:
    """Return the packed CRC32C of each piece, in their order; each record is read, and so checked, once in a row.

    Raises `MediumError` at the first record that cannot be read, `UsageError` for a piece outside of its record.
    """
    digests = bytearray()
    buffer = memoryview(bytearray(RECORD_BYTES_MAX if pieces else 0))
    record, held, total = buffer[:0], -1, 0
    for piece in pieces:
        if piece.object_number != held:
            record, held = _read(drive, piece.object_number, buffer), piece.object_number
            total += len(record)
            if total > SAMPLE_BYTES_MAX:
                raise UsageError(f"records of more than {SAMPLE_BYTES_MAX} bytes in one request")
        end = piece.first_byte + piece.byte_count
        if end > len(record):
            raise UsageError(f"object {held} has {len(record)} bytes, byte {end} was asked for")
        digests += DIGEST.pack(crc32c(record[piece.first_byte : end]))
    return bytes(digests)


def _read(drive: Drive, object_number: int, buffer: memoryview) -> memoryview:
    located = drive.locate(object_number)
    outcome = drive.read_record(buffer, suppress_length=True) if located.is_good else located
    if not outcome.is_good or outcome.data is None:
        raise MediumError(f"object {object_number} cannot be read as a record: {outcome.sense}")
    return outcome.data
