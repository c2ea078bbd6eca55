"""What a file map says: file systems, files, and where their bytes are.

A map is made of *rows*, one per path.  A file with several names (hard links) has one row per name, and `identity`
tells that they are one file.  All places are bytes of the volume; `FileExtent.volume_byte` is what a mover can read.

    the file's bytes      0 ......... 8192 ........ 16384 ........ 40960 .. size
    extents               [ data      ] [ unwritten ]   (hole)     [ data   ]
    reads as                data          zeros          zeros       data

What no extent covers reads as zeros.  An extent that is `UNWRITTEN` reads as zeros too, whatever is in its blocks:
they may hold what somebody else has deleted, so they are never copied.  Rows are tuples because there are millions.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

PATH_BYTES_MAX: Final = 64 * 1024
NAME_BYTES_MAX: Final = 1024
"""255 characters of UTF-16 are at most 765 bytes; every other file system has 255 bytes."""


class Kind(IntEnum):
    """What a path names."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    FIFO = 3
    SOCKET = 4
    CHARACTER = 5
    BLOCK = 6
    OTHER = 7
    """Something that this file system has and we do not know, such as an unknown reparse point."""


class ExtentFlag(IntFlag):
    """What is special about an extent.  0 is plain data: the file's bytes are the volume's bytes."""

    UNWRITTEN = 1
    """Allocated, reads as zeros (also behind an NTFS or exFAT valid data length).  Never copied."""

    INLINE = 2
    """The bytes lie inside a metadata structure, at `volume_byte`, at no block boundary."""

    COMPRESSED = 4
    """`volume_byte` and `stored_bytes` are the whole compressed unit; see `FileExtent`."""

    ENCRYPTED = 8
    """Ciphertext: can be brought back with its volume, not as a file."""

    SHARED = 16
    """Other files may own the same blocks (reflink, deduplication, snapshot of a subvolume)."""

    JOURNAL = 32
    """The newest content lies in the journal, at `volume_byte` (ext4 with data=journal)."""

    ESCAPED = 64
    """With JOURNAL: the first four bytes must be replaced by C0 3B 39 98 (jbd2 escaping)."""


class FileExtent(NamedTuple):
    """A run of a file.

    `file_byte` and `byte_count` say which bytes of the file; the last extent may go beyond the file's size (the rest
    of its last block, or space that was allocated ahead).  `volume_byte` is where they are; -1 where there is no place
    (unwritten space may have none).

    With COMPRESSED: `volume_byte` and `stored_bytes` are the compressed unit as it lies there, `algorithm` is `zlib`,
    `lzo`, `zstd` or `lznt1`, `raw_bytes` is what it becomes, and the file shows `byte_count` bytes of that, from
    `raw_offset` on.  Else those four are 0 and "".
    """

    file_byte: int
    volume_byte: int
    byte_count: int
    flags: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    raw_offset: int = 0
    algorithm: str = ""


class Identity(NamedTuple):
    """What a file is, whatever its names.  `tree` is the btrfs subvolume, else 0; `generation` may be 0."""

    tree: int
    inode: int
    generation: int


NO_TIME: Final = -(1 << 127)
"""A time that the file system does not keep."""


class FileRow(NamedTuple):
    """One path.

    `path` has no leading slash, its components are joined by `/`; b"" is the root of the file system.  A component
    is the name's bytes as they are on the volume; names that are UTF-16 there are UTF-8 here, with lone surrogates
    encoded as if they were characters ("surrogatepass").  A name that holds `/` or a zero byte, or is empty, `.` or
    `..`, is a defect: its row has an `error`, and what is wrong is replaced by `?`.

    Times are nanoseconds since 1970, negative before, `NO_TIME` if there is none.  `mode` are the permission bits
    (07777); where a file system has none it is 0755 for directories and 0644 for files, and `uid` and `gid` are -1.
    `device` is major << 32 | minor.  `xattrs` are (full name, value), sorted, as Linux shows them.
    `error` is empty, or says why this row, its content or its attributes are not to be trusted: then `extents` may be
    empty or short, and nobody restores it silently.
    """

    path: bytes
    kind: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    birth_ns: int
    links: int
    identity: Identity
    device: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[FileExtent, ...] = ()
    error: str = ""


class FileSystem(NamedTuple):
    """One file system of a volume.

    `prefix` is what its paths begin with, empty if it is the only one of the volume (`p2` for the second partition,
    `vg0-root` for a logical volume).  `state` is `clean`, `replayed` (a journal or log was applied in memory) or
    `dirty` (there was something to replay that could not be: recent changes may be missing).  `place` says in words
    where it is.
    """

    kind: str
    prefix: str
    label: str
    uuid: str
    block_bytes: int
    size_bytes: int
    state: str
    place: str
    features: tuple[str, ...] = ()


ByteRun = tuple[int, int]
"""(first byte, byte behind the last)."""
