"""NBD requests and replies after the negotiation: their bytes, and which requests are refused.  No I/O.

    request         magic, flags, command, cookie, address, count                 then, for WRITE, `count` bytes
    simple reply    magic, error, cookie                                          then, for READ, `count` bytes
    chunk           magic, flags, type, cookie, length                            then `length` bytes, by type:
        OFFSET_DATA address, data
        BLOCK_STATUS context number, (count, status)...
        ERROR errno, message

With structured replies everything that can carry more than "done" is chunks, the last of which has the flag DONE.  The
structs are public because the shell packs straight into its buffers: thousands of small requests per second leave no
room for an object per request.  What a request may be is decided in one place, `Limits.refusal`.  Clause names are
those of the NBD project's `doc/proto.md`, "Transmission phase".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from backplane.errors import BackupError, MediumError, NotAuthorizedError, SenseTriple

REQUEST_MAGIC: Final = 0x25609513
REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, flags, command, cookie, address, count."""
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK: Final = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, length of what follows."""
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""A chunk with the address of its data."""
_ERROR: Final = struct.Struct(">IH")
_NUMBER: Final = struct.Struct(">I")

DESCRIPTORS_MAX: Final = 4096
"""Of one context in one reply to BLOCK_STATUS (32 KiB); a client asks again from where the last one ended."""
ERROR_MESSAGE_BYTES_MAX: Final = 1024

ALLOCATION_HOLE_AND_ZERO: Final = 0b11
"""base:allocation: NBD_STATE_HOLE and NBD_STATE_ZERO; what is allocated is 0."""
CHANGED_DIRTY: Final = 1
"""sb:changed: written since; the same bit as in QEMU's dirty bitmaps."""

READ: Final = 0
WRITE: Final = 1
DISCONNECT: Final = 2
FLUSH: Final = 3
TRIM: Final = 4
CACHE: Final = 5
WRITE_ZEROES: Final = 6
BLOCK_STATUS: Final = 7
# Plain numbers, no enum: comparing them is in the way of every request.

FLAG_FUA: Final = 1 << 0
FLAG_NO_HOLE: Final = 1 << 1
FLAG_DF: Final = 1 << 2
FLAG_REQ_ONE: Final = 1 << 3
FLAG_FAST_ZERO: Final = 1 << 4

DONE: Final = 1
"""Flag of the last chunk."""


class Chunk(IntEnum):
    """Structured reply types."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = 0x8001


class NbdError(IntEnum):
    """Error values (proto.md, "Error values")."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_FLAGS: Final = {
    READ: FLAG_DF,
    WRITE: FLAG_FUA,
    DISCONNECT: 0,
    FLUSH: FLAG_FUA,
    TRIM: FLAG_FUA,
    CACHE: 0,
    WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    BLOCK_STATUS: FLAG_REQ_ONE,
}
"""Which flags each command takes.  FUA on READ, CACHE and BLOCK_STATUS says nothing and is let through."""

_WRITING: Final = frozenset({WRITE, TRIM, WRITE_ZEROES})
_WITH_PAYLOAD: Final = frozenset({READ, WRITE})

_NO_SPACE: Final = SenseTriple(0x07, 0x27, 0x07)
_LBA_OUT_OF_RANGE: Final = SenseTriple(0x05, 0x21, 0x00)
_INVALID_FIELD: Final = SenseTriple(0x05, 0x24, 0x00)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an export takes; the numbers it was advertised with."""

    size_bytes: int
    block_bytes: int
    payload_bytes_max: int
    is_read_only: bool
    is_structured: bool
    has_contexts: bool

    def refusal(self, command: int, flags: int, address: int, count: int) -> tuple[NbdError, str]:
        """Return why a request is refused.  Ask `allows` first; this one is slow and knows the words."""
        known = _FLAGS.get(command)
        if known is None:
            return NbdError.EINVAL, f"command {command} is not known here"
        if flags & ~(known | FLAG_FUA):
            return NbdError.EINVAL, f"flags {flags:#x} do not go with command {command}"
        if flags & FLAG_DF and not self.is_structured:
            return NbdError.EINVAL, "DF goes with structured replies only"
        if command in _WRITING and self.is_read_only:
            return NbdError.EPERM, "the export is read-only"
        if command in _WITH_PAYLOAD and count > self.payload_bytes_max:
            return NbdError.EINVAL, f"at most {self.payload_bytes_max} bytes per request"
        if address + count > self.size_bytes:
            # proto.md, "Error values": no space for what is written, no sense in what is read or trimmed.
            is_writing = command in (WRITE, WRITE_ZEROES)
            error = NbdError.ENOSPC if is_writing else NbdError.EINVAL
            return error, f"the export ends at byte {self.size_bytes}"
        if (address | count) & (self.block_bytes - 1):
            return NbdError.EINVAL, f"not a multiple of {self.block_bytes} bytes"
        if command == BLOCK_STATUS and not self.has_contexts:
            return NbdError.EINVAL, "no meta context was negotiated"
        return NbdError.EINVAL, "a request for no bytes"

    def allows(self, command: int, flags: int, address: int, count: int) -> bool:
        """Say whether a request may be carried out.  FLUSH and DISCONNECT have no range to be checked."""
        known = _FLAGS.get(command)
        if known is None or flags & ~(known | FLAG_FUA):
            return False
        if command in (FLUSH, DISCONNECT):
            return True
        if command in _WRITING and self.is_read_only:
            return False
        if flags & FLAG_DF and not self.is_structured:
            return False
        if command == BLOCK_STATUS and not (self.has_contexts and count):
            return False
        return (
            (count <= self.payload_bytes_max or command not in _WITH_PAYLOAD)
            and address + count <= self.size_bytes
            and not (address | count) & (self.block_bytes - 1)
        )


def error_number(error: Exception) -> NbdError:
    """Translate an error of an export."""
    if isinstance(error, MemoryError):
        return NbdError.ENOMEM
    if not isinstance(error, BackupError):
        return NbdError.EIO
    sense = error.sense
    if sense == _NO_SPACE:
        return NbdError.ENOSPC
    if sense == _LBA_OUT_OF_RANGE:
        return NbdError.EINVAL
    if sense == _INVALID_FIELD:
        # What "only if it is fast" is refused with.
        return NbdError.ENOTSUP
    if isinstance(error, MediumError):
        return NbdError.EIO
    if isinstance(error, NotAuthorizedError) or sense.key == 0x07:
        return NbdError.EPERM
    return NbdError.EIO


def encode_error(cookie: int, error: NbdError, message: str, *, is_structured: bool) -> bytes:
    """Return the reply to a request that was not carried out, or not wholly."""
    if not is_structured:
        return SIMPLE_REPLY.pack(REPLY_MAGIC, error, cookie)
    text = message.encode()[:ERROR_MESSAGE_BYTES_MAX].decode(errors="ignore").encode()
    data = _ERROR.pack(error, len(text)) + text
    return CHUNK.pack(CHUNK_MAGIC, DONE, Chunk.ERROR, cookie, len(data)) + data


def encode_done(cookie: int) -> bytes:
    """Return the chunk that ends a reply and carries nothing."""
    return CHUNK.pack(CHUNK_MAGIC, DONE, Chunk.NONE, cookie, 0)


def encode_statuses(
    cookie: int, number: int, descriptors: Iterable[tuple[int, int]], *, is_last: bool
) -> bytes:
    """Return the block status chunk of one context, from (count, status) pairs."""
    flat = [value for descriptor in descriptors for value in descriptor]
    data = _NUMBER.pack(number) + struct.pack(f">{len(flat)}I", *flat)
    flags = DONE if is_last else 0
    return CHUNK.pack(CHUNK_MAGIC, flags, Chunk.BLOCK_STATUS, cookie, len(data)) + data


def describe_runs(
    runs: Iterator[tuple[int, int]],
    *,
    start_byte: int,
    end_byte: int,
    inside: int,
    outside: int,
    count_max: int = DESCRIPTORS_MAX,
) -> list[tuple[int, int]]:
    """Return (count, status) from ascending runs: `inside` a run, `outside` between them.

    Covers the range from its start, all of it or as far as `count_max` descriptors reach; runs that meet are joined,
    and no more runs are asked for than are needed.
    """
    found: list[tuple[int, int]] = []
    at = start_byte
    pending: tuple[int, int] | None = None

    def add(end: int, status: int) -> None:
        nonlocal at, pending
        if end <= at:
            return
        if pending is not None and pending[1] == status:
            pending = pending[0] + end - at, status
        else:
            if pending is not None:
                found.append(pending)
            pending = end - at, status
        at = end

    for start, end in runs:
        add(min(start, end_byte), outside)
        add(min(end, end_byte), inside)
        if len(found) >= count_max or at >= end_byte:
            break
    else:
        add(end_byte, outside)
    if pending is not None:
        found.append(pending)
    return found[:count_max]
