"""Paths: their order, what is below what, and what is none."""

from __future__ import annotations

import pytest

from backplane.file_map.model import PATH_BYTES_MAX
from backplane.file_map.paths import (
    has_defect,
    is_below,
    may_hold,
    parent_of,
    path_defect,
    path_key,
)


def test_a_directory_is_followed_by_all_that_is_in_it() -> None:
    paths = [b"a b", b"a", b"a/z", b"", b"a-b", b"b", b"a/b/c", b"a/b", b"a\x01"]
    in_order = [b"", b"a", b"a/b", b"a/b/c", b"a/z", b"a\x01", b"a b", b"a-b", b"b"]
    assert sorted(paths, key=path_key) == in_order


@pytest.mark.parametrize(
    ("path", "folder", "answer"),
    [
        (b"a/b", b"a", True),
        (b"a/b/c", b"a", True),
        (b"a", b"a", False),
        (b"ab", b"a", False),
        (b"a", b"", True),
        (b"", b"", False),
        (b"b/a", b"a", False),
    ],
)
def test_below_is_inside(path: bytes, folder: bytes, answer: bool) -> None:
    assert is_below(path, folder) is answer


@pytest.mark.parametrize(
    ("first", "last", "folder", "answer"),
    [
        (b"a", b"c", b"b", True),
        (b"a", b"c", b"", True),
        (b"c", b"d", b"b", False),
        (b"a", b"b", b"b", True),
        (b"b/x", b"b/z", b"b", True),
        (b"b/x", b"c", b"b", True),
        (b"b-x", b"c", b"b", False),
        (b"b\x01", b"c", b"b", False),
        (b"a", b"b/x/y", b"b/x", True),
        (b"b/x/y", b"b/x/z", b"b/y", False),
        (b"", b"a", b"b", False),
    ],
)
def test_a_page_is_skipped_only_if_it_cannot_hold_the_path(
    first: bytes, last: bytes, folder: bytes, answer: bool
) -> None:
    assert may_hold(first, last, folder) is answer


def test_the_parent_of_what_is_at_the_top_is_the_root() -> None:
    assert [parent_of(path) for path in (b"a/b/c", b"a", b"")] == [b"a/b", b"", b""]


GOOD = [b"", b"a", b"a/b", b"...", b".a", b"a.", b"a..b/..c", b"\xff\n", b"a/...", b" "]
BAD = [b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b", b"a\0b", b"/"]


@pytest.mark.parametrize("path", GOOD)
def test_a_path_is_one(path: bytes) -> None:
    assert not path_defect(path)
    assert not has_defect([path])


@pytest.mark.parametrize("path", BAD)
def test_what_leads_elsewhere_is_no_path(path: bytes) -> None:
    assert path_defect(path)
    for paths in ([path], [b"", path], [b"a", path], [path, b"z"], [b"", b"a", path, b"z"]):
        assert has_defect(paths)


def test_many_good_paths_are_good() -> None:
    assert not has_defect(sorted(GOOD, key=path_key))
    assert not has_defect([])
    assert has_defect([b"a", b"", b"b"]), "the root is first, or nowhere"


def test_a_path_that_is_too_long_is_none() -> None:
    assert not path_defect(b"a" * PATH_BYTES_MAX)
    assert path_defect(b"a" * (PATH_BYTES_MAX + 1))
