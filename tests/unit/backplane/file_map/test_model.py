"""Rows as tuples: what is left out has a meaning, and the numbers of kinds and flags are for ever."""

from __future__ import annotations

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Identity, Kind


def test_what_a_row_leaves_out_is_nothing() -> None:
    row = FileRow(b"a", Kind.FILE, 0, 0o644, 0, 0, 0, 0, 0, 0, 1, Identity(0, 12, 1))
    assert (row.device, row.target, row.xattrs, row.extents, row.error) == (0, b"", (), (), "")


def test_extents_sort_by_their_place_in_the_file() -> None:
    late, early = FileExtent(8192, 0, 4096), FileExtent(0, 65536, 4096)
    assert sorted([late, early]) == [early, late]


def test_the_numbers_on_tape_do_not_change() -> None:
    """docs/file-map.md has them; a map that was written must be read for ever."""
    assert [kind.name for kind in Kind] == [
        "FILE",
        "DIRECTORY",
        "SYMLINK",
        "FIFO",
        "SOCKET",
        "CHARACTER",
        "BLOCK",
        "OTHER",
    ]
    assert {flag.name: flag.value for flag in ExtentFlag} == {
        "UNWRITTEN": 1,
        "INLINE": 2,
        "COMPRESSED": 4,
        "ENCRYPTED": 8,
        "SHARED": 16,
        "JOURNAL": 32,
        "ESCAPED": 64,
    }
