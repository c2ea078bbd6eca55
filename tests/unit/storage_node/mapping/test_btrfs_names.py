"""Paths from names, and the sums that tell whether directories and inodes agree."""

from __future__ import annotations

import pytest

from backplane.file_map.paths import path_defect
from backplane.testing.btrfs_forge import Forge, Items, directory_item, name_ref
from storage_node.mapping import btrfs_names
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_names import (
    Directories,
    Name,
    NameSums,
    OddNames,
    joined,
    safe_name,
)
from storage_node.mapping.reader import BytesSource


def directories(parents: dict[int, tuple[int, bytes]], path: bytes = b"") -> Directories:
    """Directories that all must be looked up."""
    items: Items = [((256, 1, 0), directory_item()), ((256, 12, 256), name_ref(0, b".."))]
    for number, (parent, name) in parents.items():
        items += [
            ((number, 1, 0), directory_item()),
            ((number, 12, parent), name_ref(2, name)),
        ]
    forge = Forge()
    forge.tree(5, sorted(items))
    reader = BtrfsReader(BytesSource(forge.finish()))
    return Directories(reader._tree, reader._roots.subvolumes[5], path)


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"\0", b"n" * 2000, b"/../"]
)
def test_a_name_that_no_path_can_have_is_replaced_and_told(name: bytes) -> None:
    safe, wrong = safe_name(name)
    assert wrong
    assert safe
    assert not path_defect(b"a/" + safe)
    assert b"/" not in safe


@pytest.mark.parametrize("name", [b"a", b"...", b"\xff\xfe", b"a b\n", b"n" * 255])
def test_every_other_name_stays_as_it_is(name: bytes) -> None:
    assert safe_name(name) == (name, "")


def test_the_path_of_a_name_in_the_root_has_no_slash() -> None:
    assert joined(b"", b"a") == b"a"
    assert joined(b"home", b"a") == b"home/a"


def test_a_directory_that_was_not_met_yet_is_looked_up() -> None:
    """Whatever the order of their numbers: a directory may have been moved into a younger one."""
    known = directories({300: (700, b"c"), 700: (500, b"b"), 500: (256, b"a")}, b"sub")
    assert known.path(300) == b"sub/a/b/c"
    assert known.path(256) == b"sub"
    assert known.path(500) == b"sub/a"


def test_a_directory_that_was_met_is_not_looked_up() -> None:
    known = directories({})
    known.add(300, 256, b"a")
    known.add(400, 300, b"b")
    assert known.path(400) == b"a/b"


def test_a_directory_that_nobody_knows_has_no_path_and_neither_has_what_is_in_it() -> None:
    known = directories({300: (999, b"c")})
    assert known.path(999) is None
    assert known.path(300) is None
    known.add(999, 256, b"found")
    assert known.path(300) is None
    known.forget_lost()
    assert known.path(300) == b"found/c"


def test_directories_that_lie_in_each_other_have_no_path() -> None:
    known = directories({300: (400, b"a"), 400: (300, b"b"), 500: (500, b"c")})
    assert [known.path(number) for number in (300, 400, 500)] == [None] * 3


def test_a_directory_deeper_than_any_has_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_names, "DEPTH_MAX", 10)
    known = directories({})
    known.add(300, 256, b"top")
    for number in range(301, 400):
        known.add(number, number - 1, b"d")
    assert known.path(309) is not None
    chain = {number: (number - 1, b"d") for number in range(257, 300)}
    for count in range(1, 44):
        path = b"/".join([b"d"] * count)
        assert directories(chain).path(256 + count) == (path if count <= 10 else None)


def test_a_path_that_is_too_long_is_none() -> None:
    known = directories({})
    known.add(300, 256, b"n" * 255)
    for number in range(301, 600):
        known.add(number, number - 1, b"n" * 255)
    assert known.path(599) is None
    assert known.path(400) == b"/".join([b"n" * 255] * 101)
    lengths = [len(known.path(number) or b"") for number in range(300, 600)]
    assert lengths[:252] == [256 * count - 1 for count in range(1, 253)]
    assert not any(lengths[252:])


class Counted(dict[int, bytes]):
    """Counts how often somebody asks."""

    steps = 0

    def get(self, key: int, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        self.steps += 1
        return super().get(key, default)


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_chain_is_climbed_once_and_not_for_each_directory(order: int) -> None:
    """A hostile volume may have a million directories in each other, and ask from below."""
    known = directories({})
    for number in range(257, 257 + 3000):
        known.add(number, number - 1, b"d")
    known._known = asked = Counted(known._known)
    for number in range(257, 257 + 3000)[::order]:
        path = known.path(number)
        assert path is not None
        assert len(path) == 2 * (number - 256) - 1
    assert asked.steps < 3000 * 50


@pytest.mark.parametrize("top", [300, 3299])
def test_what_has_no_path_is_found_out_once_and_not_for_each_directory(top: int) -> None:
    """The chain ends in a directory that nobody knows, or in itself."""
    known = directories({})
    for number in range(301, 3300):
        known.add(number, number - 1, b"d")
    if top == 3299:
        known.add(300, top, b"d")
    known._known = asked = Counted(known._known)
    for number in range(301, 3300):
        assert known.path(number) is None
    for number in range(10_000, 10_500):
        known.add(number, 3000, b"later, and below the chain")
        assert known.path(number) is None
    assert asked.steps < 4 * btrfs_names.DEPTH_MAX + 3000


def test_only_so_many_paths_are_kept_and_all_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_names, "PATHS_BYTES_MAX", 100)
    known = directories({})
    for number in range(300, 400):
        known.add(number, 256, b"directory %d" % number)
    for _ in range(2):
        for number in range(300, 400):
            assert known.path(number) == b"directory %d" % number
            assert len(known._paths) < 10


# Sums.


def some_names(count: int) -> list[Name]:
    return [(256 + at % 7, at, 300 + at, b"name %d" % at) for at in range(count)]


def test_sums_are_even_when_both_sides_have_the_same_names_in_any_order() -> None:
    sums = NameSums()
    for name in some_names(1000):
        sums.add_reference(name)
    assert sums.odd_buckets()
    for name in reversed(some_names(1000)):
        sums.add_entry(name, 1)
    assert not sums.odd_buckets()


@pytest.mark.parametrize(
    "change", [(257, 5, 305, b"n"), (256, 6, 305, b"n"), (256, 5, 306, b"n"), (256, 5, 305, b"m")]
)
def test_a_name_that_differs_in_anything_is_odd(change: Name) -> None:
    sums = NameSums()
    sums.add_reference((256, 5, 305, b"n"))
    sums.add_entry(change, 1)
    assert sums.odd_buckets()


def test_a_second_look_at_odd_buckets_finds_the_names_that_one_side_lacks() -> None:
    names = some_names(5000)
    lost, stray = names[77], names[4000]
    sums = NameSums()
    for name in names:
        if name != lost:
            sums.add_reference(name)
        if name != stray:
            sums.add_entry(name, 2)
    odd = OddNames(sums.odd_buckets())
    for name in names:
        if name != stray:
            odd.add_entry(name, 2)
    for name in names:
        if name != lost:
            odd.add_reference(name)
    assert odd.only_entries() == [(lost, 2)]
    assert odd.only_references() == [stray]
    assert odd.is_complete


def test_only_so_many_odd_names_are_kept_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_names, "ODD_NAMES_MAX", 10)
    odd = OddNames(frozenset(range(btrfs_names.BUCKETS)))
    for name in some_names(20):
        odd.add_entry(name, 1)
    assert len(odd.only_entries()) == 10
    assert not odd.is_complete
