"""Rows as columns: what rows share is found, times are split as a page has them, and a defect is told."""

from __future__ import annotations

import pytest

from backplane.file_map.model import NO_TIME, FileExtent, Identity
from backplane.file_map.row_columns import columns_of, shared, split_times
from backplane.testing.file_rows import make_file, make_row

SECOND = 1_000_000_000


def test_fields_become_columns() -> None:
    rows = [
        make_row(b"a", identity=Identity(1, 2, 3), xattrs=((b"user.x", b"1"),), error="seen twice"),
        make_file(b"b", FileExtent(0, 4096, 8), FileExtent(8, 512, 9, 4, 5, 6, 7, "zstd")),
        make_row(b"c", xattrs=((b"user.x", b"1"),)),
    ]
    columns = columns_of(rows)
    assert list(columns.paths) == [b"a", b"b", b"c"]
    assert (columns.trees[0], columns.inodes[0], columns.generations[0]) == (1, 2, 3)
    assert list(columns.attributes) == [(), ((b"user.x", b"1"),)]
    assert columns.attributes_of == [1, 0, 1]
    assert list(columns.errors) == ["seen twice", "", ""]
    assert columns.extents_of == [0, 2, 0]
    extents = [(0, 8), (4096, 512), (8, 9), (0, 4), (0, 5), (0, 6), (0, 7)]
    assert list(map(tuple, columns.extents)) == extents
    assert list(columns.algorithms) == ["", "zstd"]


def test_extents_without_an_algorithm_have_no_column_of_them() -> None:
    assert columns_of([make_file(b"b", FileExtent(0, 4096, 8))]).algorithms == ()
    assert [len(column) for column in columns_of([make_row(b"a")]).extents] == [0] * 7


def test_a_defect_is_told() -> None:
    with pytest.raises(ValueError, match="b'b': no size is -1"):
        columns_of([make_row(b"a"), make_row(b"b", size=-1)])


def test_what_is_shared_has_the_number_of_its_first_coming() -> None:
    assert shared("abcab") == (["a", "b", "c"], [0, 1, 2, 0, 1])
    assert shared("ab", "b") == (["b", "a"], [1, 0])
    assert shared("aa") == (["a"], [0, 0])
    assert shared((), "a") == (["a"], [])


def test_times_are_split_into_seconds_and_a_rest_that_is_not_negative() -> None:
    assert split_times([5, -1, 3 * SECOND]) == ([0, -1, 3], [5, SECOND - 1, 0])
    assert split_times([NO_TIME, NO_TIME]) == ([0, 0], [-1, -1])
    assert split_times([5, NO_TIME, -1]) == ([0, 0, -1], [5, -1, SECOND - 1])
