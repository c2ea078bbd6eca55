"""The numbers and values of the NBD protocol, for the client of the tests.

Written down a second time, from the specification and not from our server: a wrong number in one place is found by the
other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

GREETING: Final = b"NBDMAGICIHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

DEFAULT_PORT: Final = 10809
BASE_ALLOCATION: Final = "base:allocation"

REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")


class Option(IntEnum):
    """NBD_OPT_*."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Answer(IntEnum):
    """NBD_REP_*; errors have the highest bit set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 0x80000001
    POLICY = 0x80000002
    INVALID = 0x80000003
    PLATFORM = 0x80000004
    TLS_REQUIRED = 0x80000005
    UNKNOWN = 0x80000006
    SHUTDOWN = 0x80000007
    BLOCK_SIZE_REQUIRED = 0x80000008
    TOO_BIG = 0x80000009


class Info(IntEnum):
    """NBD_INFO_*."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Can(IntFlag):
    """Transmission flags: what an export says of itself."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    FLUSH = 1 << 2
    FUA = 1 << 3
    ROTATIONAL = 1 << 4
    TRIM = 1 << 5
    WRITE_ZEROES = 1 << 6
    DF = 1 << 7
    MULTI_CONNECTION = 1 << 8
    RESIZE = 1 << 9
    CACHE = 1 << 10
    FAST_ZERO = 1 << 11


class Command(IntEnum):
    """NBD_CMD_*."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Flag(IntFlag):
    """Command flags."""

    NONE = 0
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ChunkKind(IntEnum):
    """Types of structured reply chunks."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


HOLE: Final = 1
"""Extent flag of base:allocation: no space is allocated."""
ZERO: Final = 2
"""Extent flag of base:allocation: reads as zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionReply:
    """One reply during the negotiation."""

    answer: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a reply as it came.  A simple reply counts as one chunk of data, or of error."""

    kind: int
    address: int = 0
    data: bytes = b""
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Bytes in the same state; `flags` mean what their context says."""

    start: int
    end: int
    flags: int


@dataclass(slots=True, kw_only=True)
class Reply:
    """Everything that came for one request; `error` is 0 if it was carried out."""

    cookie: int
    error: int = 0
    message: str = ""
    chunks: list[Chunk] = field(default_factory=list)
    extents: dict[str, list[Extent]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInfo:
    """What INFO or GO said of an export; block sizes are 0 if the server keeps them to itself."""

    size_bytes: int
    can: Can
    block_bytes_min: int = 0
    block_bytes_preferred: int = 0
    payload_bytes_max: int = 0
    name: str = ""
    description: str = ""


def context_query(export: str, queries: Sequence[str]) -> bytes:
    """Lay out the data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    name = export.encode()
    parts = [struct.pack(">I", len(name)), name, struct.pack(">I", len(queries))]
    for query in queries:
        parts += [struct.pack(">I", len(query.encode())), query.encode()]
    return b"".join(parts)


def info_query(export: str, wanted: Sequence[int]) -> bytes:
    """Lay out the data of INFO and GO."""
    name = export.encode()
    return struct.pack(
        f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted
    )  # fmt: skip
