"""What rows of FAT and exFAT have in common."""

from __future__ import annotations

from typing import Final

from backplane.file_map.model import NO_TIME, FileExtent, FileRow, Identity, Kind

FILE_KIND: Final = Kind.FILE
DIRECTORY_KIND: Final = Kind.DIRECTORY
"""Looked up once: that costs a tenth of a row."""
FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
EMPTY_FILE: Final = 1 << 62
"""Added to the place of a directory entry, so that it cannot be a cluster."""
PROBLEMS_MAX: Final = 1000
"""Most reasons that one reader gives."""


def root_row(inode: int, size: int, extents: tuple[FileExtent, ...], error: str) -> FileRow:
    """Return the row of the root directory, which nobody has named or given a time."""
    return FileRow(
        b"",
        Kind.DIRECTORY,
        size,
        DIRECTORY_MODE,
        -1,
        -1,
        NO_TIME,
        NO_TIME,
        NO_TIME,
        NO_TIME,
        1,
        Identity(0, inode, 0),
        extents=extents,
        error=error,
    )


def another_name(name: bytes, names: set[bytes]) -> bytes:
    """Return a name that is not there yet: every path has one row."""
    again = 2
    while (other := b"%s?%d" % (name, again)) in names:
        again += 1
    return other


def shown(path: bytes) -> str:
    """Return a path as people write it, for a reason."""
    return "/" + path.decode("utf-8", "backslashreplace")[:200]


class Problems(list[str]):
    """Reasons why a map is not complete: each once, and not more than anybody reads."""

    def add(self, reason: str) -> None:
        """Append a reason."""
        if len(self) == PROBLEMS_MAX:
            self.append("and more")
        if len(self) < PROBLEMS_MAX and reason not in self:
            self.append(reason)
