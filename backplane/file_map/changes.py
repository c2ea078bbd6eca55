"""What is different between two maps, path by path.

    rows of A    a   b       d             both sorted: whoever is behind moves on
    rows of B    a       c   d*
    changes          -b  +c  d changed

A file counts as changed for what a person would call a change.  Access times, change times of the inode and the
numbers of inodes do not count; nor do sizes and extents of directories, which are how a file system keeps them.

Content is compared by what the maps know: size and places.  Extents that are elsewhere may still hold the same bytes,
so "content" means *may differ*.  Extents that are where they were may have been written in place: with the runs of
changed blocks between the two (from change bitmaps) that is known; without, a new time of modification tells it.

Such runs are larger than what was written, so a file may only have a neighbour that was.  If they touch only its ends
and its times are what they were, it is said to be "nearby", which is hardly ever more than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from backplane.file_map.kept import extent_run
from backplane.file_map.model import NO_TIME, ByteRun, ExtentFlag, FileRow, Kind
from backplane.file_map.paths import path_key
from backplane.units import KIB

GRANULE_BYTES: Final = 64 * KIB
"""What disk nodes know of changes: that something of such a piece, counted from the volume's beginning, was written."""


class ChangeKind(StrEnum):
    """What has happened to a path."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class Change(NamedTuple):
    """A path that is not as before.  `what` says in which ways, if it is in both maps."""

    kind: ChangeKind
    path: bytes
    before: FileRow | None
    after: FileRow | None
    what: tuple[str, ...] = ()


class ChangedRuns:
    """Runs of bytes of the volume that may have been written between two backups; ascending and disjoint."""

    def __init__(self, runs: Sequence[ByteRun]) -> None:
        self._firsts = [first for first, _ in runs]
        self._ends = [end for _, end in runs]

    def touches(self, first_byte: int, end_byte: int) -> bool:
        """Tell whether any of these bytes may have been written."""
        at = bisect_right(self._ends, first_byte)
        return at < len(self._firsts) and self._firsts[at] < end_byte

    def has_within(self, first_byte: int, end_byte: int) -> bool:
        """Tell whether a piece that has nothing but these bytes may have been written."""
        first = -(-first_byte // GRANULE_BYTES) * GRANULE_BYTES
        end = end_byte // GRANULE_BYTES * GRANULE_BYTES
        return first < end and self.touches(first, end)


def diff(
    before: Iterable[FileRow], after: Iterable[FileRow], changed_runs: ChangedRuns | None = None
) -> Iterator[Change]:
    """Yield what is different, in the order of the maps.  `changed_runs` is None if they are not known."""
    olds, news = iter(before), iter(after)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and path_key(old.path) < path_key(new.path)):
            assert old is not None
            yield Change(ChangeKind.REMOVED, old.path, old, None)
            old = next(olds, None)
        elif old is None or old.path != new.path:
            yield Change(ChangeKind.ADDED, new.path, None, new)
            new = next(news, None)
        else:
            what = differences(old, new, changed_runs)
            if what:
                yield Change(ChangeKind.CHANGED, new.path, old, new, what)
            old, new = next(olds, None), next(news, None)


def differences(
    old: FileRow, new: FileRow, changed_runs: ChangedRuns | None = None
) -> tuple[str, ...]:
    """Return in which ways two rows of one path differ."""
    is_file = old.kind == new.kind == Kind.FILE
    is_link = old.kind == new.kind == Kind.SYMLINK
    may_differ = is_file and _may_differ(old, new, changed_runs)
    is_nearby = may_differ and _is_nearby(old, new, changed_runs)
    found = {
        "kind": old.kind != new.kind,
        "size": is_file and old.size != new.size,
        "content": may_differ and not is_nearby,
        "nearby": is_nearby,
        "target": is_link and old.target != new.target,
        "device": old.device != new.device,
        "mtime": old.mtime_ns != new.mtime_ns,
        "mode": old.mode != new.mode,
        "owner": (old.uid, old.gid) != (new.uid, new.gid),
        "xattrs": old.xattrs != new.xattrs,
        "error": old.error != new.error,
    }
    return tuple(name for name, is_different in found.items() if is_different)


def _may_differ(old: FileRow, new: FileRow, changed_runs: ChangedRuns | None) -> bool:
    if old.size != new.size or old.extents != new.extents or old.error or new.error:
        return True
    if changed_runs is None:
        return old.mtime_ns != new.mtime_ns
    return any(
        _was_written(extent.flags, extent_run(extent), old, new, changed_runs)
        for extent in new.extents
        if extent.volume_byte >= 0 and not extent.flags & ExtentFlag.UNWRITTEN
    )


def _is_nearby(old: FileRow, new: FileRow, changed_runs: ChangedRuns | None) -> bool:
    """Tell whether all that speaks for another content are blocks that may as well be a neighbour's."""
    if changed_runs is None or _may_differ(old, new, None):
        return False
    if new.ctime_ns == NO_TIME or old.ctime_ns != new.ctime_ns:
        return False
    return not any(changed_runs.has_within(*extent_run(extent)) for extent in new.extents)


def _was_written(
    flags: int, run: ByteRun, old: FileRow, new: FileRow, changed_runs: ChangedRuns
) -> bool:
    if flags & ExtentFlag.INLINE and (old.mtime_ns, old.ctime_ns) == (new.mtime_ns, new.ctime_ns):
        return False  # its neighbours in the metadata block were written, or its access time
    return changed_runs.touches(*run)
