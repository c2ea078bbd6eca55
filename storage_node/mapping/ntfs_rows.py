"""Rows of the map from records of `$MFT`: names, attributes, and where the content is.

A file has a row for each name, and for each of its streams (alternate data) another one with the path `name:stream`:
the stream has the identity of its file, is a regular file of its own, and has always one link.  Names of the DOS name
space are second names of the same entry and have no row.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from backplane.file_map.model import (
    NAME_BYTES_MAX,
    NO_TIME,
    PATH_BYTES_MAX,
    ExtentFlag,
    FileExtent,
    FileRow,
    Identity,
    Kind,
)
from storage_node.mapping.ntfs_boot import Geometry
from storage_node.mapping.ntfs_content import value_of
from storage_node.mapping.ntfs_mft import Mft
from storage_node.mapping.ntfs_names import (
    DOS_NAME,
    HIDDEN,
    ROOT_RECORD,
    Directories,
    FileName,
    decode_name,
    join_path,
    lost_path,
    mended,
    parse_file_name,
)
from storage_node.mapping.ntfs_record import (
    DATA,
    EXTENDED_ATTRIBUTES,
    FILE_NAME,
    INDEX_ALLOCATION,
    IS_DIRECTORY,
    OBJECT_ID,
    REPARSE_POINT,
    SECURITY_DESCRIPTOR,
    STANDARD_INFORMATION,
    Attribute,
    Record,
)
from storage_node.mapping.ntfs_reparse import (
    INTERIX_BYTES_MAX,
    REPARSE_BYTES_MAX,
    Meaning,
    decode_interix,
    decode_reparse,
)
from storage_node.mapping.ntfs_runs import ENCRYPTED, extents_of, join_pieces
from storage_node.mapping.ntfs_security import SecurityDescriptors
from storage_node.mapping.reader import DamagedError, Source

XATTR_BYTES_MAX: Final = 256 * 1024
FILE_MODE: Final = 0o644
INDEX_NAME: Final = "$I30".encode("utf-16-le")

_MODES: Final = {Kind.DIRECTORY: 0o755, Kind.SYMLINK: 0o777}
_KINDS_WITH_CONTENT: Final = (Kind.FILE, Kind.DIRECTORY, Kind.OTHER)
_TICKS_TO_1970: Final = 116_444_736_000_000_000
"""Of 100 ns, since 1601."""
_STANDARD: Final = struct.Struct("<qqqqI")
"""Times of birth, of the data, of the record, of the last access; flags."""
_SECURITY_AT: Final = 0x34
_SECURITY_NUMBER: Final = struct.Struct("<I")
_SYSTEM: Final = 0x04
_DIRECTORY: Final = 0x10
_NORMAL: Final = 0x80
_XATTRS: Final = (
    (EXTENDED_ATTRIBUTES, b"system.ntfs_ea"),
    (OBJECT_ID, b"system.ntfs_object_id"),
    (REPARSE_POINT, b"system.ntfs_reparse_data"),
)


class Standard(NamedTuple):
    """What $STANDARD_INFORMATION says."""

    birth_ns: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    flags: int
    security: int


class Content(NamedTuple):
    """What one stream of a file has."""

    size: int = 0
    extents: tuple[FileExtent, ...] = ()
    defect: str = ""


class Parts:
    """The attributes of one file, by what they are for."""

    __slots__ = ("data", "defect", "names", "others", "standard")

    def __init__(self, attributes: list[Attribute]) -> None:
        self.names: list[FileName] = []
        self.data: dict[bytes, list[Attribute]] = {}
        self.others: dict[int, list[Attribute]] = {}
        self.standard: bytes = b""
        self.defect = ""
        for found in attributes:
            type_ = found.type
            if type_ == FILE_NAME:
                self._add_name(found.value or b"")
            elif type_ == DATA:
                self.data.setdefault(found.name, []).append(found)
            elif type_ == STANDARD_INFORMATION:
                self.standard = found.value or b""
            elif not found.name or found.name == INDEX_NAME:
                self.others.setdefault(type_, []).append(found)

    def _add_name(self, value: bytes) -> None:
        try:
            self.names.append(parse_file_name(value))
        except DamagedError as error:
            self.defect = error.reason

    def shown_names(self) -> list[FileName]:
        """Return the names that are rows: a DOS name only where there is no other."""
        return [name for name in self.names if name.space != DOS_NAME] or self.names


class RowBuilder:
    """Makes rows, with all that it takes to make them."""

    def __init__(
        self,
        source: Source,
        geometry: Geometry,
        mft: Mft,
        directories: Directories,
        descriptors: SecurityDescriptors,
    ) -> None:
        self._source = source
        self._geometry = geometry
        self._mft = mft
        self._directories = directories
        self._descriptors = descriptors

    def add_directory(self, record: Record) -> None:
        """Remember a directory's name, so that its children get paths."""
        if record.number == ROOT_RECORD:
            return
        # What is wrong with it is in its own row; its children have a path as long as it has a name.
        names = Parts(self._mft.attributes(record)[0]).shown_names()
        if names:
            self._directories.add(record.number, record.sequence, names[0])

    def rows(self, record: Record, *, is_final: bool) -> list[FileRow] | None:
        """Return the rows of a file; None if a directory of it is not known yet, and may be later."""
        attributes, defect = self._mft.attributes(record)
        parts = Parts(attributes)
        defects = [*filter(None, (defect, parts.defect))]
        places = self._places(record, parts, is_final=is_final)
        if places is None:
            return None
        if not places:
            return []
        if record.links > len(parts.names):
            defects.append(f"{record.links} names are counted, {len(parts.names)} are there")
        row, streams = self._file(record, parts, defects)
        rows = []
        for path, defect in places:
            both = "; ".join(filter(None, (row.error, defect)))
            rows.append(row._replace(path=path, error=both))
            for name, stream in streams:
                rows.append(_stream_row(row, path, name, stream, defect))
        return rows

    def _places(
        self, record: Record, parts: Parts, *, is_final: bool
    ) -> list[tuple[bytes, str]] | None:
        """Return (path, defect) for each name; none for what belongs to the file system itself."""
        if record.number == ROOT_RECORD:
            return [(b"", "")]
        names = parts.shown_names()
        if not names:
            return [(lost_path(record.number), "it has no name")]
        places = []
        for found in names:
            directory = self._directories.path(found.parent)
            if directory is None:
                if not is_final:
                    return None
                defect = self._directories.why_lost(found.parent)
                places.append((lost_path(record.number, found.name), defect))
            elif directory != HIDDEN:
                places.append(_place(directory, found.name, record.number))
        return places

    def _file(
        self, record: Record, parts: Parts, defects: list[str]
    ) -> tuple[FileRow, list[tuple[bytes, Content]]]:
        """Return the row of a file, without a path, and its streams."""
        is_directory = bool(record.flags & IS_DIRECTORY)
        standard = _standard(parts.standard, defects)
        if is_directory:
            content = self._content(parts.others.get(INDEX_ALLOCATION, []))
        elif b"" in parts.data:
            content = self._content(parts.data[b""])
        else:
            content = Content(defect="it has no data attribute")
        if content.defect:
            defects.append(content.defect)
        xattrs = self._xattrs(parts, standard, defects, is_directory=is_directory)
        meaning = self._meaning(parts, standard, xattrs, content, is_directory=is_directory)
        if meaning.error:
            defects.append(meaning.error)
        kind = meaning.kind
        if kind is None:
            kind = Kind.DIRECTORY if is_directory else Kind.FILE
        if kind not in _KINDS_WITH_CONTENT:
            content = Content(len(meaning.target))
        row = FileRow(
            path=b"",
            kind=kind,
            size=content.size,
            mode=_MODES.get(kind, FILE_MODE),
            uid=-1,
            gid=-1,
            mtime_ns=standard.mtime_ns,
            atime_ns=standard.atime_ns,
            ctime_ns=standard.ctime_ns,
            birth_ns=standard.birth_ns,
            links=max(1, len(parts.shown_names())),
            identity=Identity(0, record.number, record.sequence),
            device=meaning.device,
            target=meaning.target,
            xattrs=tuple(sorted(xattrs.items())),
            extents=content.extents,
            error="; ".join(defects),
        )
        streams = [
            (decode_name(name), self._content(found)) for name, found in parts.data.items() if name
        ]
        return row, streams

    def _content(self, attributes: list[Attribute]) -> Content:
        """Return what a stream has, as far as it can be told."""
        if not attributes:
            return Content()
        head = attributes[0]
        if head.value is not None and len(attributes) == 1:
            size = len(head.value)
            return Content(size, tuple(self._inline(head, size)) if size else ())
        try:
            stream = join_pieces(attributes, self._geometry)
        except DamagedError as error:
            first = min(
                (found.piece for found in attributes if found.piece),
                key=lambda piece: piece.first_vcn,
                default=None,
            )
            size = first.size if first and first.size >= 0 else 0
            return Content(size, defect=error.reason)
        extents, defect = extents_of(stream, self._geometry.cluster_bytes)
        return Content(stream.size, tuple(extents), defect)

    def _inline(self, found: Attribute, size: int) -> list[FileExtent]:
        flags = int(ExtentFlag.INLINE)
        if found.flags & ENCRYPTED:
            flags |= ExtentFlag.ENCRYPTED
        extents = []
        at = 0
        for place, count in self._mft.places(found.record, found.usa_at, found.value_at, size):
            extents.append(FileExtent(at, place, count, flags))
            at += count
        return extents

    def _xattrs(
        self, parts: Parts, standard: Standard, defects: list[str], *, is_directory: bool
    ) -> dict[bytes, bytes]:
        """Return the attributes as ntfs-3g shows them to Linux."""
        flags = standard.flags & ~_DIRECTORY | (_DIRECTORY if is_directory else 0)
        xattrs = {b"system.ntfs_attrib_be": (flags or _NORMAL).to_bytes(4, "big")}
        descriptor = self._descriptor(parts, standard, defects)
        if descriptor:
            xattrs[b"system.ntfs_acl"] = descriptor
        for type_, name in _XATTRS:
            if type_ in parts.others:
                value = self._value(parts.others[type_], defects)
                if value:
                    xattrs[name] = value
        if sum(map(len, xattrs.values())) > XATTR_BYTES_MAX:
            defects.append(f"its attributes have more than {XATTR_BYTES_MAX} bytes")
            return {}
        return xattrs

    def _descriptor(self, parts: Parts, standard: Standard, defects: list[str]) -> bytes:
        """Return the security descriptor: that of the volume's table, or, before NTFS 3.0, the file's own."""
        if standard.security:
            descriptor = self._descriptors.get(standard.security)
            if descriptor is not None:
                return descriptor
            defects.append(f"its security descriptor {standard.security} is missing")
        if SECURITY_DESCRIPTOR in parts.others:
            return self._value(parts.others[SECURITY_DESCRIPTOR], defects)
        return b""

    def _value(self, attributes: list[Attribute], defects: list[str]) -> bytes:
        try:
            return value_of(self._source, self._geometry, attributes, REPARSE_BYTES_MAX)
        except DamagedError as error:
            defects.append(f"attribute {attributes[0].type:X}h: {error.reason}")
            return b""

    def _meaning(
        self,
        parts: Parts,
        standard: Standard,
        xattrs: dict[bytes, bytes],
        content: Content,
        *,
        is_directory: bool,
    ) -> Meaning:
        """Say what the file is, if it is not what it looks like."""
        if REPARSE_POINT in parts.others:
            data = xattrs.get(b"system.ntfs_reparse_data", b"")
            extended = xattrs.get(b"system.ntfs_ea", b"")
            return decode_reparse(data, is_directory=is_directory, extended=extended)
        is_short = 8 < content.size <= INTERIX_BYTES_MAX
        if standard.flags & _SYSTEM and is_short and not is_directory and b"" in parts.data:
            # The target of such a link is its data: the one place where data of a file are looked at.
            data = self._value(parts.data[b""], [])
            return decode_interix(data)
        return Meaning()


def _place(directory: bytes, name: bytes, number: int) -> tuple[bytes, str]:
    good = mended(name)
    path = join_path(directory, good)
    if len(path) > PATH_BYTES_MAX or len(good) > NAME_BYTES_MAX:
        return lost_path(number), "its path is too long"
    return path, "" if good == name else "its name has characters that no name may have"


def _stream_row(row: FileRow, path: bytes, name: bytes, content: Content, defect: str) -> FileRow:
    good = mended(name)
    whole = path + b":" + good
    if len(whole) > PATH_BYTES_MAX:
        whole = lost_path(row.identity.inode) + b":" + good
        defect = "its path is too long"
    if good != name:
        defect = "; ".join(filter(None, (defect, "its name has characters that no name may have")))
    return row._replace(
        path=whole,
        kind=Kind.FILE,
        size=content.size,
        mode=FILE_MODE,
        links=1,
        device=0,
        target=b"",
        xattrs=(),
        extents=content.extents,
        error="; ".join(filter(None, (defect, content.defect))),
    )


def _standard(value: bytes, defects: list[str]) -> Standard:
    if len(value) < _STANDARD.size:
        defects.append("its standard information is missing")
        return Standard(NO_TIME, NO_TIME, NO_TIME, NO_TIME, 0, 0)
    birth, mtime, ctime, atime, flags = _STANDARD.unpack_from(value)
    security = 0
    if len(value) >= _SECURITY_AT + 4:
        (security,) = _SECURITY_NUMBER.unpack_from(value, _SECURITY_AT)
    return Standard(
        (birth - _TICKS_TO_1970) * 100,
        (mtime - _TICKS_TO_1970) * 100,
        (ctime - _TICKS_TO_1970) * 100,
        (atime - _TICKS_TO_1970) * 100,
        flags,
        security,
    )
