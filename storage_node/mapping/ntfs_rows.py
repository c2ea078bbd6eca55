"""Rows of the map from records of `$MFT`: names, attributes, and where the content is.

A file has a row for each name, and for each of its streams (alternate data) another one with the path `name:stream`:
the stream has the identity of its file, is a regular file of its own, and has always one link.  Names of the DOS name
space are second names of the same entry and have no row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
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
    Meaning,
    decode_interix,
    decode_reparse,
)
from storage_node.mapping.ntfs_runs import ENCRYPTED, extents_of, join_pieces
from storage_node.mapping.ntfs_security import SecurityDescriptors
from storage_node.mapping.reader import DamagedError, Source

XATTR_BYTES_MAX: Final = 64 * 1024
"""Of one attribute, which is what Linux allows; a file has five at most."""
FILE_MODE: Final = 0o644
INDEX_NAME: Final = "$I30".encode("utf-16-le")

LINK_MODE: Final = 0o777
_FILE_KIND: Final = Kind.FILE
_DIRECTORY_KIND: Final = Kind.DIRECTORY
_INLINE: Final = int(ExtentFlag.INLINE)
_ENCRYPTED: Final = int(ExtentFlag.ENCRYPTED)
_NOTHING: Final[list[Attribute]] = []
_KINDS_WITH_CONTENT: Final = (Kind.FILE, Kind.DIRECTORY, Kind.OTHER)
_TICKS_TO_1970: Final = 116_444_736_000_000_000
"""Of 100 ns, since 1601."""
_STANDARD: Final = struct.Struct("<qqqqI16xI")
"""Times of birth, of the data, of the record, of the last access; flags; from 34h, since NTFS 3.0, the number of the
security descriptor."""
_STANDARD_BYTES: Final = _STANDARD.size
_STANDARD_OLD: Final = struct.Struct("<qqqqI")
_SYSTEM: Final = 0x04
_DIRECTORY: Final = 0x10
_NORMAL: Final = 0x80
_XATTRS: Final = (
    (EXTENDED_ATTRIBUTES, b"system.ntfs_ea"),
    (OBJECT_ID, b"system.ntfs_object_id"),
    (REPARSE_POINT, b"system.ntfs_reparse_data"),
)
_XATTR_TYPES: Final = frozenset(type_ for type_, _ in _XATTRS)


class Content(NamedTuple):
    """What one stream of a file has."""

    size: int
    extents: tuple[FileExtent, ...]
    defect: str


_EMPTY: Final = Content(0, (), "")
_NONE: Final = Content(0, (), "it has no data attribute")

_new_content: Final = partial(tuple.__new__, Content)
_new_row: Final = partial(tuple.__new__, FileRow)
_new_extent: Final = partial(tuple.__new__, FileExtent)
_new_identity: Final = partial(tuple.__new__, Identity)


class Parts:
    """The attributes of one file, by what they are for."""

    __slots__ = ("data", "defect", "names", "others", "standard")

    def __init__(self, attributes: list[Attribute]) -> None:
        self.names: list[FileName] = []
        self.data: dict[bytes, list[Attribute]] = {}
        self.others: dict[int, list[Attribute]] = {}
        self.standard = b""
        self.defect = ""
        for found in attributes:
            type_ = found[0]
            if type_ == FILE_NAME:
                self._add_name(found.value or b"")
            elif type_ == DATA:
                name = found.name
                if name in self.data:
                    self.data[name].append(found)
                else:
                    self.data[name] = [found]
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
        if len(self.names) == 1:
            return self.names
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
        names = parts.shown_names()
        places = self._places(record, names, is_final=is_final)
        if not places:
            return None if places is None else []
        defects = [text for text in (defect, parts.defect) if text]
        if record.links > len(parts.names):
            defects.append(f"{record.links} names are counted, {len(parts.names)} are there")
        row = self._row(places[0], record, parts, len(names) or 1, defects)
        rows = [row]
        for path, lost in places[1:]:
            error = "; ".join(filter(None, (*defects, lost)))
            rows.append(row._replace(path=path, error=error))
        if len(parts.data) > (b"" in parts.data):
            rows += self._stream_rows(row, places, parts)
        return rows

    def _stream_rows(
        self, row: FileRow, places: list[tuple[bytes, str]], parts: Parts
    ) -> Iterator[FileRow]:
        """Yield a row for each stream that has a name, under each name of the file."""
        for name, found in parts.data.items():
            if name:
                content = self._content(found)
                for path, defect in places:
                    yield _stream_row(row, path, decode_name(name), content, defect)

    def _places(
        self, record: Record, names: list[FileName], *, is_final: bool
    ) -> list[tuple[bytes, str]] | None:
        """Return (path, defect) for each name; none for what belongs to the file system itself."""
        if record.number == ROOT_RECORD:
            return [(b"", "")]
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

    def _row(
        self,
        place: tuple[bytes, str],
        record: Record,
        parts: Parts,
        links: int,
        defects: list[str],
    ) -> FileRow:
        """Return the row of a file; what is wrong with it, whatever its name, is added to `defects`."""
        is_directory = record.flags & IS_DIRECTORY != 0
        birth, mtime, ctime, atime, flags, security = _standard(parts.standard, defects)
        kind, mode = (_DIRECTORY_KIND, 0o755) if is_directory else (_FILE_KIND, FILE_MODE)
        if is_directory:
            content = self._content(parts.others.get(INDEX_ALLOCATION, _NOTHING))
        elif b"" in parts.data:
            content = self._content(parts.data[b""])
        else:
            content = _NONE
        size, extents, defect = content
        if defect:
            defects.append(defect)
        descriptor = self._descriptor(parts, security, defects)
        xattrs = self._xattrs(parts, descriptor, flags, defects, is_directory=is_directory)
        device, target = 0, b""
        if flags & _SYSTEM or REPARSE_POINT in parts.others:
            meaning = self._meaning(parts, flags, xattrs, size, is_directory=is_directory)
            if meaning.error:
                defects.append(meaning.error)
            if meaning.kind is not None:
                kind, device, target = meaning.kind, meaning.device, meaning.target
            if kind not in _KINDS_WITH_CONTENT:
                size, extents = len(target), ()
                mode = LINK_MODE if kind == Kind.SYMLINK else FILE_MODE
        path, lost = place
        error = "; ".join((*defects, lost) if lost else defects) if defects or lost else ""
        identity = _new_identity((0, record.number, record.sequence))
        return _new_row((
            path, kind, size, mode, -1, -1, mtime, atime, ctime, birth, links,
            identity, device, target, xattrs, extents, error,
        ))  # fmt: skip

    def _content(self, attributes: list[Attribute]) -> Content:
        """Return what a stream has, as far as it can be told."""
        if not attributes:
            return _EMPTY
        head = attributes[0]
        if head.value is not None and len(attributes) == 1:
            size = len(head.value)
            return _new_content((size, self._inline(head, size) if size else (), ""))
        try:
            stream = join_pieces(attributes, self._geometry)
        except DamagedError as error:
            first = min(
                (found.piece for found in attributes if found.piece),
                key=lambda piece: piece.first_vcn,
                default=None,
            )
            size = first.size if first and first.size >= 0 else 0
            return Content(size, (), error.reason)
        extents, defect = extents_of(stream, self._geometry.cluster_bytes)
        return _new_content((stream.size, tuple(extents), defect))

    def _inline(self, found: Attribute, size: int) -> tuple[FileExtent, ...]:
        flags = _INLINE | (_ENCRYPTED if found.flags & ENCRYPTED else 0)
        extents = []
        at = 0
        for place, count in self._mft.places(found.record, found.usa_at, found.value_at, size):
            extents.append(_new_extent((at, place, count, flags, 0, 0, 0, "")))
            at += count
        return tuple(extents)

    def _descriptor(self, parts: Parts, security: int, defects: list[str]) -> bytes:
        """Return the security descriptor: that of the volume's table, or, before NTFS 3.0, the file's own."""
        if security:
            descriptor = self._descriptors.get(security)
            if descriptor is not None:
                return descriptor
            defects.append(f"its security descriptor {security} is missing")
        if SECURITY_DESCRIPTOR in parts.others:
            return self._value(parts.others[SECURITY_DESCRIPTOR], defects)
        return b""

    def _xattrs(
        self,
        parts: Parts,
        descriptor: bytes,
        flags: int,
        defects: list[str],
        *,
        is_directory: bool,
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes as ntfs-3g shows them to Linux, in the order of their names."""
        flags = flags & ~_DIRECTORY | (_DIRECTORY if is_directory else 0)
        shown = (b"system.ntfs_attrib_be", (flags or _NORMAL).to_bytes(4, "big"))
        xattrs = ((b"system.ntfs_acl", descriptor), shown) if descriptor else (shown,)
        if _XATTR_TYPES.isdisjoint(parts.others):
            return xattrs
        values = (
            (name, self._value(parts.others[type_], defects))
            for type_, name in _XATTRS
            if type_ in parts.others
        )
        return *xattrs, *(found for found in values if found[1])

    def _value(self, attributes: list[Attribute], defects: list[str]) -> bytes:
        try:
            return value_of(self._source, self._geometry, attributes, XATTR_BYTES_MAX)
        except DamagedError as error:
            defects.append(f"attribute {attributes[0].type:X}h: {error.reason}")
            return b""

    def _meaning(
        self,
        parts: Parts,
        flags: int,
        xattrs: tuple[tuple[bytes, bytes], ...],
        size: int,
        *,
        is_directory: bool,
    ) -> Meaning:
        """Say what the file is, if it is not what it looks like."""
        if REPARSE_POINT in parts.others:
            named = dict(xattrs)
            data = named.get(b"system.ntfs_reparse_data", b"")
            extended = named.get(b"system.ntfs_ea", b"")
            return decode_reparse(data, is_directory=is_directory, extended=extended)
        if flags & _SYSTEM and 8 < size <= INTERIX_BYTES_MAX and b"" in parts.data:
            # The target of such a link is its data: the one place where data of a file are looked at.
            return decode_interix(self._value(parts.data[b""], []))
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
    if len(whole) > PATH_BYTES_MAX or len(whole) - whole.rfind(b"/") - 1 > NAME_BYTES_MAX:
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


def _standard(value: bytes, defects: list[str]) -> tuple[int, int, int, int, int, int]:
    """Return the times of birth, data, record and access, the flags, and the number of the security descriptor."""
    security = 0
    if len(value) >= _STANDARD_BYTES:
        birth, mtime, ctime, atime, flags, security = _STANDARD.unpack_from(value)
    elif len(value) >= _STANDARD_OLD.size:
        birth, mtime, ctime, atime, flags = _STANDARD_OLD.unpack_from(value)
    else:
        defects.append("its standard information is missing")
        return NO_TIME, NO_TIME, NO_TIME, NO_TIME, 0, 0
    return (
        (birth - _TICKS_TO_1970) * 100,
        (mtime - _TICKS_TO_1970) * 100,
        (ctime - _TICKS_TO_1970) * 100,
        (atime - _TICKS_TO_1970) * 100,
        flags,
        security,
    )
