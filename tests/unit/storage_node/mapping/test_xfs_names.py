"""Names, kept by inode, and the paths that they make."""

from __future__ import annotations

import pytest

from backplane.file_map.model import PATH_BYTES_MAX
from storage_node.mapping import xfs_names
from storage_node.mapping.xfs_names import SLOT_MASK, Names, shown

ROOT = 64


def tree(*entries: tuple[int, int, bytes]) -> Names:
    """Return names of (inode, directory's inode, name); whatever is a directory is one."""
    names = Names(ROOT)
    numbers = {
        inode: names.add_directory(inode)
        for inode in sorted({parent for _, parent, _ in entries} | {ROOT})
    }
    for inode, parent, name in entries:
        assert names.add(inode, 2, name, numbers[parent])
    return names


def path(names: Names, inode: int) -> bytes | None:
    ((directory, _, name),) = names.take(inode)
    parent = names.path(directory)
    return None if parent is None else b"/".join(part for part in (parent, name) if part)


def test_paths_are_made_from_the_root() -> None:
    names = tree((70, 64, b"home"), (90, 70, b"a"), (200, 90, b"file"), (65, 64, b"top"))
    assert path(names, 200) == b"home/a/file"
    assert path(names, 65) == b"top"
    assert path(names, 90) == b"home/a"


def test_an_inode_has_all_its_names_once() -> None:
    names = tree((70, 64, b"d"), (200, 64, b"one"), (201, 64, b"other"), (200, 70, b"two"))
    assert names.take(200) == [(0, 2, b"one"), (1, 2, b"two")]
    assert names.take(200) == []
    assert names.take(999) == []


def test_what_nobody_took_is_left() -> None:
    names = tree(
        (70, 64, b"d"), (200, 64, b"one"), (201, 64, b"two"), (500, 70, b"three"), (5, 64, b"four")
    )
    names.take(201)
    names.take(70)
    # The same 64 inodes again, in another chunk.
    names.take(199)
    left = {number: [name for _, _, name in found] for number, found in names.untaken()}
    assert left == {200: [b"one"], 500: [b"three"], 5: [b"four"]}


def test_what_is_taken_out_of_the_names_around_an_inode_is_taken() -> None:
    names = tree((200, 64, b"one"), (201, 64, b"two"), (300, 64, b"three"))
    near = names.near(199)
    assert near == {200 & SLOT_MASK: [(0, 2, b"one")], 201 & SLOT_MASK: [(0, 2, b"two")]}
    del near[200 & SLOT_MASK]
    assert names.take(200) == []
    assert names.take(300) == [(0, 2, b"three")]
    assert names.near(199) == {201 & SLOT_MASK: [(0, 2, b"two")]}


def test_directories_in_a_circle_or_without_a_name_have_no_path() -> None:
    names = tree((70, 90, b"a"), (90, 70, b"b"), (200, 90, b"c"), (300, 400, b"d"), (500, 64, b"e"))
    assert path(names, 200) is None
    assert path(names, 200 + 100) is None
    assert path(names, 500) == b"e"
    assert names.path(1) is None


def test_deep_trees_are_walked_without_a_stack() -> None:
    entries = [(100 + number + 1, 100 + number if number else 64, b"d") for number in range(30_000)]
    names = tree(*entries, (100_000, 100 + 29_999, b"file"))
    assert path(names, 100_000) == b"d/" * 29_999 + b"file"


def test_a_path_that_is_too_long_is_none() -> None:
    count = PATH_BYTES_MAX // 256 + 1
    entries = [
        (100 + number + 1, 100 + number if number else 64, b"n" * 255) for number in range(count)
    ]
    names = tree(*entries, (100_000, 100 + count, b"file"), (100_001, 200, b"file"))
    assert path(names, 100_000) is None
    assert path(names, 100_001) == (b"n" * 255 + b"/") * 100 + b"file"


def test_remembered_paths_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_names, "PATHS_BYTES_MAX", 400)
    entries = [(100 + number, 64, b"%d" % number) for number in range(50)]
    names = tree(*entries, *((1000 + number, 100 + number, b"file") for number in range(50)))
    assert [path(names, 1000 + number) for number in range(50)] == [
        b"%d/file" % number for number in range(50)
    ]
    assert len(names._paths) < 5


def test_names_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_names, "RECORDS_BYTES_MAX", 30)
    names = Names(ROOT)
    names.add_directory(ROOT)
    assert names.add(70, 1, b"n" * 20, 0)
    assert not names.add(71, 1, b"n" * 20, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a", b"a"),
        (b"a/b", b"a?b"),
        (b"a\0", b"a?"),
        (b"", b"?"),
        (b".", b"?"),
        (b"..", b"??"),
        (b"...", b"..."),
    ],
)
def test_what_no_name_can_have_is_replaced(name: bytes, expected: bytes) -> None:
    assert shown(name) == expected
