"""Which names of a map are names of one file.

A file is told by its identity, which is its file system's own: two partitions made alike have files of the same
numbers.  So the file system counts as well, and so do size and extents: whatever a map says of identities, a name is
only ever linked to a file that has its content.
"""

from __future__ import annotations

from collections.abc import Iterable

from backplane.file_map.model import FileExtent, FileRow, FileSystem, Identity

FileKey = tuple[bytes, Identity, int, tuple[FileExtent, ...]]
"""(prefix of its file system, identity, size, extents)"""


class HardLinks:
    """Tells the files of a volume with these file systems apart."""

    def __init__(self, file_systems: Iterable[FileSystem] = ()) -> None:
        prefixes = {each.prefix.encode("utf-8", "surrogatepass") for each in file_systems}
        self._prefixes = sorted(prefixes, key=len, reverse=True)

    def key(self, row: FileRow) -> FileKey:
        """Return what all names of a file have in common, and no others."""
        return self._prefix(row.path), row.identity, row.size, row.extents

    def _prefix(self, path: bytes) -> bytes:
        return next((each for each in self._prefixes if (path + b"/").startswith(each + b"/")), b"")
