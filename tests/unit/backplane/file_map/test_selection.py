"""Selections: patterns that pick, patterns that take out."""

from __future__ import annotations

import pytest

from backplane.errors import UsageError
from backplane.file_map.model import Kind
from backplane.file_map.selection import PATTERNS_MAX, Selection
from backplane.testing.file_rows import make_row

PATHS = [
    b"home",
    b"home/a.txt",
    b"home/b.iso",
    b"home/tmp",
    b"home/tmp/c.txt",
    b"var",
    b"var/d.txt",
]
FOLDERS = (b"home", b"home/tmp", b"var")


def picked(*paths: str, excludes: tuple[str, ...] = ()) -> list[bytes]:
    selection = Selection(paths, excludes)
    return [
        path
        for path in PATHS
        if selection.picks(make_row(path, Kind.DIRECTORY if path in FOLDERS else Kind.FILE))
    ]


def test_without_patterns_everything_is_picked() -> None:
    assert picked() == PATHS
    assert Selection().is_everything
    assert Selection((), ()).picks(make_row(b"", Kind.DIRECTORY))


def test_a_pattern_picks_files_and_all_that_is_in_directories() -> None:
    assert picked("home/**") == PATHS[1:5]
    assert picked("home") == PATHS[:5]
    assert picked("*.txt") == [b"home/a.txt", b"home/tmp/c.txt", b"var/d.txt"]
    assert picked("tmp", "var/d.txt") == [b"home/tmp", b"home/tmp/c.txt", b"var/d.txt"]


def test_excludes_win() -> None:
    assert picked("home/**", excludes=("*.iso",)) == [b"home/a.txt", b"home/tmp", b"home/tmp/c.txt"]
    assert picked("home/tmp/c.txt", excludes=("tmp",)) == []
    assert picked(excludes=("home",)) == [b"var", b"var/d.txt"]


def test_a_pattern_for_directories_takes_only_these() -> None:
    assert picked("tmp/") == [b"home/tmp", b"home/tmp/c.txt"]
    assert picked("a.txt/") == []


def test_a_selection_goes_through_json() -> None:
    selection = Selection(("home/**",), ("*.iso", "b"))
    assert selection.to_json() == {"paths": ["home/**"], "excludes": ["*.iso", "b"]}
    again = Selection.from_json(selection.to_json())
    assert again == selection
    assert len({selection, again, Selection()}) == 2
    assert "home/**" in repr(again)
    assert not again.is_everything


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"paths": []},
        {"paths": [], "excludes": [], "more": 1},
        {"paths": "home", "excludes": []},
        {"paths": [1], "excludes": []},
        {"paths": [], "excludes": [""]},
    ],
)
def test_what_is_no_selection_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        Selection.from_json(value)


def test_too_many_patterns_are_refused() -> None:
    Selection(("a",) * PATTERNS_MAX)
    with pytest.raises(UsageError, match="patterns"):
        Selection(("a",) * PATTERNS_MAX, ("b",))
