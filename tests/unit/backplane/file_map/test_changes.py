"""What is different between two maps."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.file_map.changes import ChangedRuns, ChangeKind, diff, differences
from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity, Kind
from backplane.testing.file_rows import make_file, make_row

EXTENT = FileExtent(0, 8192, 4096)
NO_RUNS = ChangedRuns([])


def changes(before: str, after: str) -> str:
    """Compare maps of files: a name, and a sign if the file is another one."""

    def rows(names: str) -> list[FileRow]:
        return [make_row(name[:1].encode(), mode=len(name)) for name in names.split()]

    signs = {ChangeKind.ADDED: "+", ChangeKind.REMOVED: "-", ChangeKind.CHANGED: "!"}
    found = diff(iter(rows(before)), iter(rows(after)))
    return " ".join(signs[change.kind] + change.path.decode() for change in found)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", ""),
        ("a b c", "a b c", ""),
        ("a b d", "a c d*", "-b +c !d"),
        ("", "a b", "+a +b"),
        ("a b", "", "-a -b"),
        ("a", "b", "-a +b"),
        ("b", "a", "+a -b"),
        ("a b c", "b", "-a -c"),
        ("b", "a b* c", "+a !b +c"),
    ],
)
def test_maps_are_compared_path_by_path(before: str, after: str, expected: str) -> None:
    assert changes(before, after) == expected


def test_directories_are_compared_in_the_order_of_maps() -> None:
    before = [make_row(b"a", Kind.DIRECTORY), make_row(b"a/x"), make_row(b"a-b")]
    after = [make_row(b"a", Kind.DIRECTORY), make_row(b"a-b"), make_row(b"a-c")]
    found = [(change.kind, change.path) for change in diff(before, after)]
    assert found == [(ChangeKind.REMOVED, b"a/x"), (ChangeKind.ADDED, b"a-c")]


def test_a_change_has_both_rows() -> None:
    old, new = make_row(b"a"), make_row(b"a", mode=0o600)
    (change,) = diff([old], [new])
    assert (change.before, change.after, change.what) == (old, new, ("mode",))
    (gone,) = diff([old], [])
    assert (gone.before, gone.after) == (old, None)


FIELDS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ()),
    ({"size": 1}, ("size", "content")),
    ({"mtime_ns": 5}, ("content", "mtime")),
    ({"mode": 0o600}, ("mode",)),
    ({"uid": 5}, ("owner",)),
    ({"gid": 5}, ("owner",)),
    ({"xattrs": ((b"user.a", b""),)}, ("xattrs",)),
    ({"extents": (EXTENT._replace(volume_byte=4096),)}, ("content",)),
    ({"extents": ()}, ("content",)),
    ({"kind": int(Kind.FIFO)}, ("kind",)),
    ({"device": 5}, ("device",)),
    ({"error": "torn"}, ("content", "error")),
    ({"atime_ns": 1, "ctime_ns": 2, "birth_ns": 3}, ()),
    ({"links": 9, "identity": Identity(0, 99, 9)}, ()),
]


@pytest.mark.parametrize(("fields", "what"), FIELDS)
def test_what_has_changed_is_said(fields: dict[str, Any], what: tuple[str, ...]) -> None:
    old = make_file(b"a", EXTENT)
    assert differences(old, old._replace(**fields)) == what


def test_a_link_has_changed_when_it_leads_elsewhere() -> None:
    old = make_row(b"a", Kind.SYMLINK, target=b"x", size=1)
    assert differences(old, old._replace(target=b"yy", size=2)) == ("target",)


def test_how_a_file_system_keeps_a_directory_is_no_change() -> None:
    old = make_row(b"a", Kind.DIRECTORY, size=4096, extents=(EXTENT,))
    assert differences(old, old._replace(size=8192, extents=())) == ()


def test_changed_blocks_tell_what_times_do_not() -> None:
    row = make_file(b"a", EXTENT)
    assert differences(row, row, ChangedRuns([(12_000, 12_288)])) == ("nearby",)
    assert differences(row, row, ChangedRuns([(0, 8192), (12_288, 20_000)])) == ()
    assert differences(row, row, NO_RUNS) == ()


GRANULE = 65_536
LARGE = FileExtent(0, GRANULE - 4096, 3 * GRANULE)
"""It has granules 1 and 2 for itself, and shares 0 and 3."""


@pytest.mark.parametrize(
    ("runs", "fields", "what"),
    [
        ([(0, GRANULE)], {}, ("nearby",)),
        ([(GRANULE - 4096, GRANULE)], {}, ("nearby",)),
        ([(3 * GRANULE, 4 * GRANULE)], {}, ("nearby",)),
        ([(0, GRANULE), (3 * GRANULE, 4 * GRANULE)], {}, ("nearby",)),
        ([(0, GRANULE + 1)], {}, ("content",)),
        ([(3 * GRANULE - 1, 3 * GRANULE)], {}, ("content",)),
        ([(0, GRANULE)], {"ctime_ns": 9}, ("content",)),
        ([(0, GRANULE)], {"mtime_ns": 9}, ("content", "mtime")),
        ([(0, GRANULE)], {"mode": 0o600}, ("nearby", "mode")),
        ([(0, GRANULE)], {"error": "torn"}, ("content", "error")),
        ([(0, GRANULE - 4096), (4 * GRANULE - 4096, 9 * GRANULE)], {}, ()),
    ],
)
def test_a_file_beside_one_that_was_written_is_told_apart(
    runs: list[tuple[int, int]], fields: dict[str, Any], what: tuple[str, ...]
) -> None:
    row = make_file(b"a", LARGE)._replace(ctime_ns=3, mode=0o644)
    assert differences(row, row._replace(**fields), ChangedRuns(runs)) == what


def test_a_small_file_has_no_granule_for_itself() -> None:
    row = make_file(b"a", EXTENT)._replace(ctime_ns=3)
    assert differences(row, row, ChangedRuns([(8192, 12_288)])) == ("nearby",)
    assert differences(row, row._replace(ctime_ns=4), ChangedRuns([(0, 9000)])) == ("content",)


def test_without_a_time_of_change_a_neighbour_cannot_be_told_from_the_file() -> None:
    row = make_file(b"a", EXTENT)._replace(ctime_ns=NO_TIME)
    assert differences(row, row, ChangedRuns([(0, GRANULE)])) == ("content",)


def test_a_new_time_alone_is_no_new_content_where_blocks_are_known() -> None:
    row = make_file(b"a", EXTENT)
    assert differences(row, row._replace(mtime_ns=5), NO_RUNS) == ("mtime",)
    assert differences(row, row._replace(mtime_ns=5)) == ("content", "mtime")


def test_what_is_not_content_does_not_change_with_its_blocks() -> None:
    everything = ChangedRuns([(0, 1 << 40)])
    for flags, place in ((ExtentFlag.UNWRITTEN, 8192), (ExtentFlag.UNWRITTEN, -1), (0, -1)):
        row = make_file(b"a", FileExtent(0, place, 4096, int(flags)))
        assert differences(row, row, everything) == ()


def test_content_in_metadata_has_changed_only_with_a_time() -> None:
    row = make_file(b"a", EXTENT._replace(flags=int(ExtentFlag.INLINE)))
    everything = ChangedRuns([(0, 1 << 40)])
    assert differences(row, row, everything) == ()
    assert differences(row, row._replace(ctime_ns=7), everything) == ("content",)


@pytest.mark.parametrize(
    ("first", "end", "answer"),
    [
        (0, 10, False),
        (0, 11, True),
        (19, 20, True),
        (20, 30, False),
        (25, 99, True),
        (50, 60, False),
    ],
)
def test_changed_runs_are_asked(first: int, end: int, answer: bool) -> None:
    assert ChangedRuns([(10, 20), (30, 50)]).touches(first, end) is answer
