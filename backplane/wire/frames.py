"""Frames of the data plane: a fixed 32-byte header, then extra bytes, then data.

One stream socket joins one mover to one logical unit of a node.  Every frame, in both directions:

    header (32 bytes) | extra (entries of a request, or sense data of a reply) | data (`length` bytes)

    offset  size  field
    0       1     version      01h
    1       1     opcode       `Opcode`; replies have bit 80h set
    2       1     status       replies: SCSI status byte; requests: modifier (see below)
    3       1     protection   type of protection information: 0 none, 1 CRC32C of the data
    4       4     sequence     request number on this connection, from 1; a reply echoes it
    8       8     address      requests to tape: expected object number (or `ANY_POSITION`);
                               LOCATE: the object wanted; replies from tape: object number now
    16      4     length       bytes of data that follow the extra bytes; a request that carries no
                               data states here how many bytes it wants (`carries_data` decides)
    20      4     crc32c       of the data, computed where they were read, carried unchanged
    24      2     extra        requests: number of 16-byte entries; replies: bytes of sense data
    26      2     boot         low 16 bits of the node's boot id (the whole id is in the MAC's key)
    28      4     mac          keyed BLAKE2b over header bytes 0..27 and the extra bytes

Entries say where data belong on a block device, so one frame can gather or scatter many extents and a
record of a tape is always exactly one frame: `Entry(byte_address, byte_count, kind)`, kind DATA or PAD.
PAD reads as zeros and, on write, drops that many bytes of the data.

Modifiers (status byte of a request): WRITE_FILEMARKS bit 0 IMMED; SPACE bits 0-3 CODE; READ_RECORD bit 0
SILI (never set by our movers).  SPACE and WRITE_FILEMARKS carry their count in `length`; a backward SPACE
is the 32-bit two's complement.

The MAC is truncated to 32 bits; a connection ends at its first wrong one, so a forger has one try in 2**32
per connection.  It authenticates who asks for what, not the data: those have the CRC against accidents.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from backplane.errors import RemoteProtocolError

VERSION: Final = 1
HEADER: Final = struct.Struct(">BBBBIQIIHHI")
HEADER_BYTES: Final = HEADER.size
ENTRY: Final = struct.Struct(">QII")
ENTRY_BYTES: Final = ENTRY.size

DATA_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest data part of a frame: one record of 16 MiB - 1 B fits (SDTL has 24 bits)."""

ENTRIES_MAX: Final = 4096
"""Most extents in one frame; 64 KiB of entries."""

SENSE_BYTES_MAX: Final = 252
"""Fixed and descriptor format sense data never exceed this (SPC-4 4.5.1)."""

ANY_POSITION: Final = 0xFFFF_FFFF_FFFF_FFFF
REPLY: Final = 0x80

assert HEADER_BYTES == 32
assert ENTRY_BYTES == 16


class Opcode(IntEnum):
    """What a frame asks for."""

    CHALLENGE = 0x01
    OPEN = 0x02
    READ = 0x10
    WRITE = 0x11
    FLUSH = 0x12
    TEST_UNIT_READY = 0x13
    WRITE_RECORD = 0x20
    READ_RECORD = 0x21
    WRITE_FILEMARKS = 0x22
    SPACE = 0x23
    LOCATE = 0x24
    READ_POSITION = 0x25


MUTATING: Final = frozenset({Opcode.WRITE, Opcode.WRITE_RECORD, Opcode.WRITE_FILEMARKS})
"""Requests that change a medium: they carry the expected position (tape) and are fenced."""

_REQUESTS_WITH_DATA: Final = frozenset({Opcode.OPEN, Opcode.WRITE, Opcode.WRITE_RECORD})
_REPLIES_WITH_DATA: Final = frozenset(
    {Opcode.CHALLENGE, Opcode.OPEN, Opcode.READ, Opcode.READ_RECORD, Opcode.READ_POSITION}
)


_OPCODES: Final[dict[int, Opcode]] = {
    code | bit: opcode for opcode in Opcode for code in (int(opcode),) for bit in (0, REPLY)
}
_CARRIES_DATA: Final = tuple(
    _OPCODES.get(code) in (_REPLIES_WITH_DATA if code & REPLY else _REQUESTS_WITH_DATA)
    for code in range(256)
)
# Tables by number: looking a number up in an Enum class costs more than decoding the rest of a header.


class Status(IntEnum):
    """SCSI status byte (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_ABORTED = 0x40


class Protection(IntEnum):
    """Protection information of a frame's data."""

    NONE = 0
    CRC32C = 1


_PROTECTIONS: Final = {int(kind): kind for kind in Protection}


class EntryKind(IntEnum):
    """What an entry stands for."""

    DATA = 0
    PAD = 1


class Entry(NamedTuple):
    """A run of bytes on a block device, or padding that exists on no device."""

    byte_address: int
    byte_count: int
    kind: EntryKind = EntryKind.DATA


class Header(NamedTuple):
    """One decoded header.  `opcode` is without the reply bit; `is_reply` tells.

    A tuple, because there are four of them to every record and a frozen dataclass costs more to make.
    """

    opcode: Opcode
    is_reply: bool
    sequence: int
    status: int = 0
    protection: Protection = Protection.NONE
    address: int = 0
    length: int = 0
    crc32c: int = 0
    extra: int = 0
    boot: int = 0

    @property
    def extra_bytes(self) -> int:
        """Bytes between the header and the data."""
        return self.extra if self.is_reply else self.extra * ENTRY_BYTES

    @property
    def data_bytes(self) -> int:
        """Bytes of data that really follow."""
        return self.length if carries_data(self.opcode, is_reply=self.is_reply) else 0


_ENTRY_KINDS: Final = {int(kind): kind for kind in EntryKind}


def carries_data(opcode: Opcode, *, is_reply: bool) -> bool:
    """Say whether `length` bytes of data follow, or `length` is only a number."""
    return _CARRIES_DATA[opcode | REPLY if is_reply else opcode]


def boot_bits(boot_id: bytes) -> int:
    """Return the 16 bits of a boot id that every header shows."""
    return int.from_bytes(boot_id[-2:], "big")


def _mac(key: bytes, body: bytes, extra: bytes) -> int:
    digest = hashlib.blake2b(body + extra, key=key, digest_size=4).digest()
    return int.from_bytes(digest, "big")


def encode_header(header: Header, *, key: bytes, extra: bytes = b"") -> bytes:
    """Return the 32 bytes of a header, authenticated together with the extra bytes."""
    assert len(extra) == header.extra_bytes
    opcode = header.opcode | (REPLY if header.is_reply else 0)
    packed = HEADER.pack(
        VERSION,
        opcode,
        header.status,
        header.protection,
        header.sequence,
        header.address,
        header.length,
        header.crc32c,
        header.extra,
        header.boot,
        0,
    )
    body = packed[:28]
    return body + _mac(key, body, extra).to_bytes(4, "big")


def decode_header(data: bytes) -> Header:
    """Decode 32 bytes and check every limit, but not yet the MAC (the extra bytes are not here).

    Raises `RemoteProtocolError` for anything that is no header of ours.
    """
    if len(data) != HEADER_BYTES:
        raise RemoteProtocolError(
            f"data frame header of {len(data)} bytes, expected {HEADER_BYTES}"
        )
    version, code, status, protection, sequence, address, length, crc, extra, boot, _ = (
        HEADER.unpack(data)
    )
    if version != VERSION:
        raise RemoteProtocolError(f"data frame version {version}, expected {VERSION}")
    is_reply = bool(code & REPLY)
    opcode, kind = _OPCODES.get(code), _PROTECTIONS.get(protection)
    if opcode is None or kind is None:
        raise RemoteProtocolError(f"data frame: opcode {code:02X}h, protection {protection}")
    header = Header(opcode, is_reply, sequence, status, kind, address, length, crc, extra, boot)
    limit = SENSE_BYTES_MAX if is_reply else ENTRIES_MAX
    if extra > limit:
        raise RemoteProtocolError(f"data frame: {extra} extra units, at most {limit}")
    if header.data_bytes > DATA_BYTES_MAX:
        raise RemoteProtocolError(f"data frame: {length} bytes of data, at most {DATA_BYTES_MAX}")
    return header


def check_mac(data: bytes, extra: bytes, *, key: bytes) -> None:
    """Raise `RemoteProtocolError` unless the header and extra bytes were sent by a holder of `key`."""
    expected = _mac(key, data[:28], extra)
    # Compared as integers of fixed width: no early exit that depends on where they differ.
    if (expected ^ int.from_bytes(data[28:32], "big")) != 0:
        raise RemoteProtocolError("data frame: wrong MAC")


def encode_entries(entries: tuple[Entry, ...] | list[Entry]) -> bytes:
    """Return the extra bytes of a READ or WRITE request."""
    assert len(entries) <= ENTRIES_MAX
    return b"".join([ENTRY.pack(*entry) for entry in entries])


def decode_entries(extra: bytes) -> tuple[Entry, ...]:
    """Decode the extra bytes of a request; raises `RemoteProtocolError`."""
    try:
        return tuple(
            Entry(address, count, _ENTRY_KINDS[kind])
            for address, count, kind in ENTRY.iter_unpack(extra)
        )
    except (struct.error, KeyError) as error:
        raise RemoteProtocolError(f"data frame entries: {error}") from error
