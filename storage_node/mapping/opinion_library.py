"""What pytsk3 says of a file system, as rows: the only module that imports it.

The library is asked through a window, so partitions and logical volumes look to it like whole volumes.  It shows more
than files: deleted names, names of its own (`$OrphanFiles`, `$FAT1`), the metadata of NTFS and exFAT.  No map has
those, so they are left out here.  Only what is compared is in a row; directories have no extents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytsk3

from backplane.file_map.model import NO_TIME, PATH_BYTES_MAX, FileExtent, FileRow, Identity, Kind
from storage_node.mapping.limits import TEXT_BYTES_MAX
from storage_node.mapping.opinion_compare import CONTENT, Content
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source

TYPES: Final = {
    "ext2": pytsk3.TSK_FS_TYPE_EXT_DETECT,
    "ext3": pytsk3.TSK_FS_TYPE_EXT_DETECT,
    "ext4": pytsk3.TSK_FS_TYPE_EXT_DETECT,
    "ntfs": pytsk3.TSK_FS_TYPE_NTFS,
    "fat12": pytsk3.TSK_FS_TYPE_FAT_DETECT,
    "fat16": pytsk3.TSK_FS_TYPE_FAT_DETECT,
    "fat32": pytsk3.TSK_FS_TYPE_FAT_DETECT,
    "exfat": pytsk3.TSK_FS_TYPE_EXFAT,
}
"""What the library has to open, by our names: left to itself it may see another file system that was there before."""

PROBLEMS_MAX: Final = 100

_IS_ALLOCATED: Final = 1
"""TSK_FS_NAME_FLAG_ALLOC."""
_RESIDENT: Final = 0x04
_COMPRESSED: Final = 0x10
"""TSK_FS_ATTR_RES, TSK_FS_ATTR_COMP."""
_FILLER: Final = 0x01
_SPARSE: Final = 0x02
"""TSK_FS_ATTR_RUN_FLAG_FILLER and _SPARSE: no data.  Unwritten extents of ext4 are sparse to the library."""
_NTFS_RECORDS: Final = 24
"""Records below are the file system's own; 5 is the root directory, whose `.` is left out as well."""
_EXFAT_NAMES: Final = (b"$ALLOC_BITMAP", b"$UPCASE_TABLE", b"$VOLUME_GUID", b"$TEX_FAT", b"$ACT")
_LABEL: Final = b" (Volume Label Entry)"

_KINDS: Final = {
    int(pytsk3.TSK_FS_META_TYPE_REG): Kind.FILE,
    int(pytsk3.TSK_FS_META_TYPE_DIR): Kind.DIRECTORY,
    int(pytsk3.TSK_FS_META_TYPE_LNK): Kind.SYMLINK,
    int(pytsk3.TSK_FS_META_TYPE_FIFO): Kind.FIFO,
    int(pytsk3.TSK_FS_META_TYPE_SOCK): Kind.SOCKET,
    int(pytsk3.TSK_FS_META_TYPE_CHR): Kind.CHARACTER,
    int(pytsk3.TSK_FS_META_TYPE_BLK): Kind.BLOCK,
}
_VIRTUAL: Final = (int(pytsk3.TSK_FS_META_TYPE_VIRT), int(pytsk3.TSK_FS_META_TYPE_VIRT_DIR))
_DEFAULT: Final = int(pytsk3.TSK_FS_ATTR_TYPE_DEFAULT)
_NTFS_DATA: Final = int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA)

_Failures: Final = (OSError, RuntimeError)
"""What the binding raises: its own errors, and what goes wrong in a read."""


class _Image(pytsk3.Img_Info):  # type: ignore[misc]
    """The bytes of a source, for the library."""

    def __init__(self, source: Source) -> None:
        self._source = source
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def get_size(self) -> int:
        return self._source.size_bytes

    def read(self, offset: int, count: int) -> bytes:
        end = min(offset + count, self._source.size_bytes)
        steps = range(offset, end, READ_BYTES_MAX)
        return b"".join(self._source.read(at, min(READ_BYTES_MAX, end - at)) for at in steps)

    def close(self) -> None:
        """Nothing: the source is somebody else's."""


class LibraryReader:
    """One file system, as the library reads it."""

    def __init__(self, source: Source, kind: str) -> None:
        """Open it; `DamagedError` if the library does not."""
        self._kind = kind
        try:
            self._image = _Image(source)
            self._library = pytsk3.FS_Info(self._image, offset=0, type=TYPES[kind])
        except _Failures as error:
            raise DamagedError(f"the library does not open it: {_told(error)}") from error
        self._block_bytes = int(self._library.info.block_size)
        self.problems: list[str] = []
        """What could not be listed; known when `rows` has ended."""

    def rows(self) -> Iterator[FileRow]:
        """Yield every path that it has."""
        root = int(self._library.info.root_inum)
        yield _row(b"", Kind.DIRECTORY, 0, root)
        seen = {root}
        waiting = [(root, b"")]
        while waiting:
            folder, path = waiting.pop()
            for entry in self._entries(folder, path):
                name = bytes(entry.info.name.name)
                below = path + b"/" + name if path else name
                if len(below) > PATH_BYTES_MAX:
                    self._problem(f"a path is longer than {PATH_BYTES_MAX} bytes")
                    continue
                rows = self._rows_of(entry, below)
                yield from rows
                inode = rows[0].identity.inode
                if rows[0].kind == Kind.DIRECTORY and inode not in seen:
                    seen.add(inode)
                    waiting.append((inode, below))

    def _entries(self, folder: int, path: bytes) -> Iterator[Any]:
        try:
            for entry in self._library.open_dir(inode=folder):
                if self._is_shown(entry.info, is_root=not path):
                    yield entry
        except _Failures as error:
            self._problem(f"{path.decode('utf-8', 'backslashreplace')}: {_told(error)}")

    def _problem(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem[:TEXT_BYTES_MAX])

    def _is_shown(self, info: Any, *, is_root: bool) -> bool:
        name, meta = info.name, info.meta
        if name.name in (None, b"", b".", b"..") or not int(name.flags) & _IS_ALLOCATED:
            return False
        if meta is None:
            return True
        if int(meta.type) in _VIRTUAL:
            return False
        if self._kind == "ntfs":
            return int(meta.addr) >= _NTFS_RECORDS
        if is_root and self._kind == "exfat" and name.name.startswith(_EXFAT_NAMES):
            return False
        return not (is_root and "fat" in self._kind and name.name.endswith(_LABEL))

    # --- one entry ----------------------------------------------------------------------------------

    def _rows_of(self, entry: Any, path: bytes) -> list[FileRow]:
        """Return the row of an entry, and those of its streams."""
        meta = entry.info.meta
        if meta is None:
            return [_row(path, Kind.OTHER, 0, 0, error="a name without an inode")]
        kind = _KINDS.get(int(meta.type), Kind.OTHER)
        inode, size = int(meta.addr), int(meta.size)
        row = _row(path, kind, max(0, size), inode)
        if size < 0:
            row = row._replace(error=f"a size of {size} bytes")
        if kind == Kind.SYMLINK:
            return [row._replace(target=bytes(meta.link or b""))]
        if kind != Kind.FILE and self._kind != "ntfs":
            return [row]
        streams: list[FileRow] = []
        try:
            for attribute in entry:
                which, name = int(attribute.info.type), attribute.info.name
                if which == _NTFS_DATA and name:
                    stream = path + b":" + bytes(name)
                    made = _row(stream, Kind.FILE, int(attribute.info.size), inode)
                    streams.append(self._with_content(made, attribute))
                elif which in (_DEFAULT, _NTFS_DATA) and kind == Kind.FILE:
                    row = self._with_content(row, attribute)
        except _Failures as error:
            row = row._replace(error=_told(error))
        return [row, *streams]

    def _with_content(self, row: FileRow, attribute: Any) -> FileRow:
        flags = int(attribute.info.flags)
        if flags & (_RESIDENT | _COMPRESSED):
            content = Content.INLINE if flags & _RESIDENT else Content.OTHER
            return row._replace(xattrs=((CONTENT, content.encode()),))
        size = self._block_bytes
        extents = [
            FileExtent(int(run.offset) * size, int(run.addr) * size, int(run.len) * size)
            for run in attribute
            if int(run.len) and not int(run.flags) & (_FILLER | _SPARSE)
        ]
        return row._replace(extents=tuple(sorted(extents)))


def _row(path: bytes, kind: Kind, size: int, inode: int, *, error: str = "") -> FileRow:
    return FileRow(
        path=path,
        kind=kind,
        size=size,
        mode=0,
        uid=-1,
        gid=-1,
        mtime_ns=NO_TIME,
        atime_ns=NO_TIME,
        ctime_ns=NO_TIME,
        birth_ns=NO_TIME,
        links=1,
        identity=Identity(0, inode, 0),
        error=error,
    )


def _told(error: Exception) -> str:
    return f"{error}"[:TEXT_BYTES_MAX]
