"""Questions to a map."""

from __future__ import annotations

import pytest

from backplane.file_map.listing import children, find, owners, row_at
from backplane.file_map.model import ExtentFlag, FileExtent, Kind
from backplane.file_map.paths import path_key
from backplane.file_map.pattern import Pattern
from backplane.testing.file_rows import make_file, make_row

FOLDERS = (b"", b"a", b"a/b", b"empty")
PATHS = [b"", b"a", b"a/b", b"a/b/c", b"a/z", b"a-file", b"a.txt", b"empty", b"z"]
ROWS = [make_row(path, Kind.DIRECTORY if path in FOLDERS else Kind.FILE) for path in PATHS]


def paths_in(path: bytes, *, recursive: bool = False) -> list[bytes]:
    return [row.path for row in children(iter(ROWS), path, recursive=recursive)]


def test_the_rows_of_these_tests_are_in_order() -> None:
    assert sorted(PATHS, key=path_key) == PATHS


def test_a_directory_is_listed() -> None:
    assert paths_in(b"") == [b"a", b"a-file", b"a.txt", b"empty", b"z"]
    assert paths_in(b"a") == [b"a/b", b"a/z"]
    assert paths_in(b"a/b") == [b"a/b/c"]
    assert paths_in(b"empty") == []


def test_a_directory_is_listed_with_all_that_is_in_it() -> None:
    assert paths_in(b"", recursive=True) == PATHS[1:]
    assert paths_in(b"a", recursive=True) == [b"a/b", b"a/b/c", b"a/z"]


def test_what_is_no_directory_is_listed_itself() -> None:
    assert paths_in(b"a/z") == paths_in(b"a/z", recursive=True) == [b"a/z"]


@pytest.mark.parametrize("path", [b"b", b"a/b/d", b"zz", b"a/z/x"])
def test_what_is_not_there_is_nothing(path: bytes) -> None:
    assert paths_in(path) == []
    assert row_at(ROWS, path) is None


def test_a_listing_ends_where_the_directory_ends() -> None:
    source = iter(ROWS)
    assert [row.path for row in children(source, b"a")] == [b"a/b", b"a/z"]
    assert next(source).path == b"a.txt"


def test_a_row_is_found_by_its_path() -> None:
    for row in ROWS:
        assert row_at(iter(ROWS), row.path) is row


def test_a_pattern_finds_what_it_means_and_not_what_is_below() -> None:
    assert [row.path for row in find(ROWS, Pattern("a*"))] == [b"a", b"a-file", b"a.txt"]
    assert [row.path for row in find(ROWS, Pattern("b/"))] == [b"a/b"]
    assert [row.path for row in find(ROWS, Pattern("a/**"))] == [b"a/b", b"a/b/c", b"a/z"]


FILES = [
    make_file(b"f", FileExtent(0, 1000, 500), FileExtent(500, 3000, 500)),
    make_file(b"g", FileExtent(0, 1200, 100, int(ExtentFlag.SHARED))),
    make_file(b"p", FileExtent(0, 5000, 9000, int(ExtentFlag.COMPRESSED), 700, 9000, 0, "zlib")),
    make_file(b"u", FileExtent(0, -1, 10_000, int(ExtentFlag.UNWRITTEN))),
]


def owned(first: int, end: int) -> list[tuple[bytes, int, int, int]]:
    return [
        (owner.row.path, owner.file_byte, owner.volume_byte, owner.byte_count)
        for owner in owners(FILES, first, end)
    ]


def test_bytes_have_owners() -> None:
    assert owned(1100, 1250) == [(b"f", 100, 1100, 150), (b"g", 0, 1200, 50)]
    assert owned(0, 10_000) == [
        (b"f", 0, 1000, 500),
        (b"f", 500, 3000, 500),
        (b"g", 0, 1200, 100),
        (b"p", 0, 5000, 700),
    ]
    assert owned(3499, 3500) == [(b"f", 999, 3499, 1)]


@pytest.mark.parametrize(("first", "end"), [(0, 1000), (1500, 3000), (3500, 5000), (5700, 9000)])
def test_bytes_may_have_no_owner(first: int, end: int) -> None:
    assert owned(first, end) == []


def test_of_a_compressed_unit_the_whole_is_told() -> None:
    assert owned(5100, 5101) == [(b"p", 0, 5000, 700)]
