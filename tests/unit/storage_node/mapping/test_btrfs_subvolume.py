"""Rows of subvolumes: where they hang, and what is left of them when nodes are damaged.

What a damaged node costs is asked for every leaf of a tree in turn: each path of the whole tree must then either be as
it was, or have an error, or (if nothing but that leaf has known of it) its loss must be told.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from backplane.file_map.model import FileRow, Identity, Kind
from backplane.testing.btrfs_forge import (
    DATA_LOGICAL,
    Forge,
    Items,
    Key,
    Node,
    directory_item,
    entry,
    extent_item,
    file_items,
    inode_item,
    name_extref,
    name_ref,
    root_backref,
    small_tree,
)
from storage_node.mapping import btrfs_subvolume
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.reader import BytesSource

END: Key = (1 << 64, 0, 0)
TOP: Items = [((256, 1, 0), directory_item()), ((256, 12, 256), name_ref(0, b".."))]


class Outcome(NamedTuple):
    rows: dict[bytes, FileRow]
    problems: list[str]


def outcome_of(forge: Forge) -> Outcome:
    reader = BtrfsReader(BytesSource(forge.image))
    rows: dict[bytes, FileRow] = {}
    for row in reader.rows():
        assert row.path not in rows
        rows[row.path] = row
    return Outcome(rows, reader.problems)


def mapped(items: Items) -> Outcome:
    forge = Forge()
    forge.tree(5, sorted(items))
    forge.finish()
    return outcome_of(forge)


def directory(number: int, parent: int, index: int, name: bytes) -> Items:
    """The items of a directory, and its entry in the one above."""
    return [
        ((number, 1, 0), directory_item()),
        ((number, 12, parent), name_ref(index, name)),
        ((parent, 96, index), entry(number, name, kind=2)),
    ]


def file(number: int, parent: int, index: int, name: bytes) -> Items:
    return [
        *file_items(number, parent, index, name),
        ((parent, 96, index), entry(number, name)),
    ]


def test_each_name_of_a_file_has_a_row() -> None:
    items: Items = [
        *TOP,
        *directory(300, 256, 2, b"a"),
        *directory(400, 300, 2, b"b"),
        *file(500, 400, 2, b"one"),
        ((500, 12, 256), name_ref(3, b"two") + name_ref(4, b"three")),
        ((256, 96, 3), entry(500, b"two")),
        ((256, 96, 4), entry(500, b"three")),
    ]
    rows, problems = mapped(items)
    assert sorted(rows) == [b"", b"a", b"a/b", b"a/b/one", b"three", b"two"]
    assert len({rows[path].identity for path in (b"a/b/one", b"two", b"three")}) == 1
    assert not problems


def test_an_inode_without_a_name_has_no_row() -> None:
    """It was deleted while it was open."""
    rows, problems = mapped([*TOP, ((300, 1, 0), inode_item(links=0))])
    assert list(rows) == [b""]
    assert not problems


def test_names_that_cannot_be_in_a_path_have_an_error() -> None:
    rows, _ = mapped([*TOP, *file(300, 256, 2, b"a/b"), *file(301, 256, 3, b"..")])
    assert rows[b"a?b"].error
    assert rows[b"??"].error


# Subvolumes in subvolumes.


def subvolume_entry(tree: int, index: int, name: bytes) -> bytes:
    return entry(tree, name, kind=2, key_kind=132)


def forged_subvolumes() -> Forge:
    """home (256) with nested (257) in home/folder; snapshot (300) of home, whose nested is only an entry."""
    forge = Forge()
    home: Items = [
        *TOP,
        *directory(300, 256, 2, b"folder"),
        ((300, 96, 5), subvolume_entry(257, 5, b"nested")),
        *file(301, 300, 6, b"file"),
    ]
    forge.tree(
        5,
        sorted(
            [
                *TOP,
                ((256, 96, 2), subvolume_entry(256, 2, b"home")),
                ((256, 96, 3), subvolume_entry(300, 3, b"snapshot")),
            ]
        ),
    )
    forge.tree(256, sorted(home))
    forge.tree(257, sorted([*TOP, *file(258, 256, 2, b"inner")]))
    forge.tree(300, sorted(home))
    forge.root_items += [
        ((256, 144, 5), root_backref(256, 2, b"home")),
        ((257, 144, 256), root_backref(300, 5, b"nested")),
        ((300, 144, 5), root_backref(256, 3, b"snapshot")),
    ]
    return forge


def test_subvolumes_hang_where_their_entries_are_and_each_has_its_rows_once() -> None:
    forge = forged_subvolumes()
    forge.finish()
    rows, problems = outcome_of(forge)
    assert sorted(rows) == [
        b"",
        b"home",
        b"home/folder",
        b"home/folder/file",
        b"home/folder/nested",
        b"home/folder/nested/inner",
        b"snapshot",
        b"snapshot/folder",
        b"snapshot/folder/file",
        b"snapshot/folder/nested",
    ]
    assert rows[b"home"].identity == Identity(256, 256, 7)
    assert rows[b"home/folder/nested"].identity == Identity(257, 256, 7)
    assert rows[b"snapshot/folder/file"].identity == Identity(300, 301, 7)
    stub = rows[b"snapshot/folder/nested"]
    assert (stub.kind, stub.mode, stub.identity.inode) == (Kind.DIRECTORY, 0o755, 2)
    assert not any(row.error for row in rows.values())
    assert not problems


def test_a_subvolume_whose_root_is_lost_has_a_row_that_says_so() -> None:
    forge = forged_subvolumes()
    forge.root_items = [item for item in forge.root_items if item[0] != (257, 132, 0)]
    forge.finish()
    rows, _ = outcome_of(forge)
    assert rows[b"home/folder/nested"].error == "subvolume 257 cannot be read"
    assert b"home/folder/nested/inner" not in rows


def test_a_subvolume_of_which_nothing_can_be_read_has_a_row_that_says_so() -> None:
    forge = forged_subvolumes()
    forge.finish()
    root = next(node for node in forge.nodes if node.tree == 257)
    forge.image[root.place + 99] ^= 1
    rows, problems = outcome_of(forge)
    assert rows[b"home/folder/nested"].error == "its inode cannot be read"
    assert "checksum" in problems[0]


@pytest.mark.parametrize("lost", [256, 257])
def test_a_subvolume_that_hangs_nowhere_is_told(lost: int) -> None:
    forge = forged_subvolumes()
    forge.root_items = [item for item in forge.root_items if item[0][:2] != (lost, 144)]
    forge.finish()
    rows, problems = outcome_of(forge)
    assert f"subvolume {lost}: nobody knows where it hangs" in problems
    assert b"home/folder/nested/inner" not in rows
    assert b"snapshot/folder/file" in rows


def test_subvolumes_that_hang_in_each_other_are_told() -> None:
    forge = forged_subvolumes()
    forge.root_items = [item for item in forge.root_items if item[0] != (256, 144, 5)]
    forge.root_items.append(((256, 144, 257), root_backref(256, 2, b"home")))
    forge.finish()
    rows, problems = outcome_of(forge)
    assert len([one for one in problems if "nobody knows where" in one]) == 2
    assert b"snapshot/folder/file" in rows


# Damage, leaf by leaf.


def deep_tree() -> Items:
    """Directories in directories, of which some are younger than what is in them, and enough for many leaves."""
    items = list(TOP)
    index = 2
    for number in range(300, 340):
        parent = 256 if number < 310 else number - 10
        items += directory(number, parent, index, b"directory %d" % number)
        for at in range(5):
            items += file(1000 + number * 5 + at, number, index + 1 + at, b"f" * 100 + b"%d" % at)
        index += 10
    items += directory(280, 335, 999, b"older than its parent")
    items += file(281, 280, 3, b"in it")
    large = 5000
    items += file(large, 256, 5, b"large")
    items += [((large, 108, at * 8192), extent_item(DATA_LOGICAL, 4096)) for at in range(100)]
    return sorted(items)


def damaged_leaf(index: int) -> tuple[Outcome, list[Node]]:
    forge = Forge()
    forge.tree(5, deep_tree())
    forge.finish()
    leaves = [node for node in forge.nodes if node.tree == 5 and not node.level]
    forge.image[leaves[index].place + 1000] ^= 1
    return outcome_of(forge), leaves


def unknown_inodes(items: Items, first: Key, end: Key) -> set[int]:
    """Return the inodes of which everything that tells a name lies in one gap."""
    told = set()
    for key, data in items:
        if first <= key < end:
            continue
        if key[1] == 12:
            told.add(key[0])
        elif key[1] == 96:
            told.add(int.from_bytes(data[:8], "little"))
    return {key[0] for key, _ in items} - told


def test_every_path_is_as_it_was_or_has_an_error_whichever_leaf_is_damaged() -> None:
    whole = mapped(deep_tree())
    assert len(whole.rows) == 244
    assert not whole.problems
    forge = Forge()
    forge.tree(5, deep_tree())
    count = len([node for node in forge.nodes if node.tree == 5 and not node.level])
    assert count > 15
    for index in range(count):
        (rows, problems), leaves = damaged_leaf(index)
        assert any("checksum" in problem for problem in problems)
        gap = (leaves[index].first, leaves[index + 1].first if index + 1 < count else END)
        unknown = unknown_inodes(deep_tree(), *gap)
        missing = [row for path, row in whole.rows.items() if path not in rows]
        known = [row for row in missing if row.identity.inode not in unknown]
        told = sum(int(one.split()[2]) for one in problems if "lie in directories" in one)
        assert len(known) == told, (index, known)
        for row in known:
            above = {row.path[:at] for at in range(len(row.path)) if row.path[at : at + 1] == b"/"}
            assert any(one.path in above for one in missing), (index, row.path)
        assert not rows.keys() - whole.rows.keys()
        for path, row in rows.items():
            assert row.error or row == whole.rows[path], (index, path)
        assert any(row.error for row in rows.values())


def test_an_inode_that_cannot_be_read_has_the_name_and_kind_that_its_directory_knows() -> None:
    whole = mapped(small_tree([b"n%04d" % number for number in range(300)]))
    forge = Forge()
    forge.tree(5, small_tree([b"n%04d" % number for number in range(300)]))
    forge.finish()
    leaves = [node for node in forge.nodes if node.tree == 5 and not node.level]
    forge.image[leaves[-1].place + 99] ^= 1
    rows, _ = outcome_of(forge)
    assert rows.keys() == whole.rows.keys()
    lost = [row for row in rows.values() if row.error]
    assert lost
    assert {row.kind for row in lost} == {Kind.FILE}
    assert all(row.identity.inode >= leaves[-1].first[0] for row in lost)


def test_a_directory_that_cannot_be_read_keeps_what_is_in_it() -> None:
    """Its own name is found in the directory above, in a second walk; its files then in a third."""
    items: Items = [*TOP, *directory(300, 256, 2, b"lost")]
    items += [((256, 96, 100 + at), entry(400 + at, b"x" * 150 + b"%d" % at)) for at in range(30)]
    items += file(500, 300, 2, b"kept")
    items += directory(600, 300, 3, b"below")
    items += file(601, 600, 3, b"deeper")
    items += [((601, 13, 5), name_extref(256, 4, b"elsewhere"))]
    items += [((256, 96, 4), entry(601, b"elsewhere"))]
    # What is in inode 300's leaf, and only that.
    items += [((299, 24, at), b"f" * 1000) for at in range(4)]
    items += [((301, 24, at), b"f" * 1000) for at in range(4)]
    forge = Forge()
    forge.tree(5, sorted(items))
    forge.finish()
    leaf = max(
        (
            node
            for node in forge.nodes
            if node.tree == 5 and not node.level and node.first[0] <= 300
        ),
        key=lambda node: node.first,
    )
    forge.image[leaf.place + 99] ^= 1
    rows, problems = outcome_of(forge)
    assert "inode 300 cannot be read" in rows[b"lost"].error
    assert rows[b"lost"].kind == Kind.DIRECTORY
    for path in (b"lost/kept", b"lost/below", b"lost/below/deeper", b"elsewhere"):
        assert not rows[path].error
    assert not [one for one in problems if "lie in directories" in one]


def test_names_that_only_one_side_has_are_told_although_nothing_is_damaged() -> None:
    rows, problems = mapped([*TOP, ((256, 96, 2), entry(300, b"no inode"))])
    assert "does not know of this name" in rows[b"no inode"].error
    assert not problems
    rows, problems = mapped([*TOP, *file_items(300, 256, 2, b"no entry")])
    assert rows[b"no entry"].size == 0
    assert problems == ["subvolume 5: names that no directory has"]


def test_a_name_that_is_another_one_in_its_directory_is_told() -> None:
    items: Items = [*TOP, *file_items(300, 256, 2, b"one"), ((256, 96, 2), entry(300, b"other"))]
    rows, problems = mapped(items)
    assert rows[b"other"].error
    assert problems


def test_directories_that_lie_in_each_other_are_told() -> None:
    items: Items = [
        *TOP,
        *directory(300, 400, 2, b"a"),
        *directory(400, 300, 2, b"b"),
        *file(500, 400, 3, b"f"),
    ]
    rows, problems = mapped(items)
    assert list(rows) == [b""]
    assert problems == ["subvolume 5: 3 names lie in directories that cannot be read"]


def test_only_so_many_unplaced_directories_are_remembered_and_all_names_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(btrfs_subvolume, "UNPLACED_MAX", 5)
    items = list(TOP)
    for number in range(300, 320):
        items += file(1000 + number, 2000 + number, 2, b"name")
    _, problems = mapped(items)
    assert "subvolume 5: 20 names lie in directories that cannot be read" in problems
