"""The chunk tree and the tree of roots: what they bring, and how much of them may be damaged."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.btrfs_forge import DATA_LOGICAL, Forge, Node, root_backref, root_item
from storage_node.mapping import btrfs_roots
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_roots import Mount, parse_root
from storage_node.mapping.btrfs_tree import Root
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError


def forged(trees: int = 1) -> Forge:
    forge = Forge()
    root = forge.tree(5, [])
    for number in range(256, 255 + trees):
        forge.root_items.append(((number, 132, 0), root_item(root)))
        backref = root_backref(256, number, b"sub %d" % number)
        forge.root_items.append(((number, 144, 5), backref))
    forge.finish()
    return forge


def tree_nodes(forge: Forge, tree: int) -> list[Node]:
    return [node for node in forge.nodes if node.tree == tree]


def test_subvolumes_and_where_they_hang() -> None:
    roots = BtrfsReader(BytesSource(forged(3).image))._roots
    assert sorted(roots.subvolumes) == [5, 256, 257]
    assert roots.mounts[257] == Mount(5, 256, 257, b"sub 257")
    assert roots.extent_root is not None
    assert roots.extent_root.tree == 2


def test_a_subvolume_that_was_deleted_and_trees_without_files_are_left_out() -> None:
    forge = Forge()
    root = forge.tree(5, [])
    forge.root_items.append(((256, 132, 0), root_item(root, users=0)))
    for number in (4, 7, 9, (1 << 64) - 9, (1 << 64) - 8):
        forge.root_items.append(((number, 132, 0), root_item(root)))
    reader = BtrfsReader(BytesSource(forge.finish()))
    assert list(reader._roots.subvolumes) == [5]
    assert not reader.problems


def test_a_root_item_says_where_its_tree_is() -> None:
    item = root_item(Node(256, 3, 1 << 30, 0, (0, 0, 0)), users=2, generation=5)
    assert parse_root(256, item) == (Root(256, 1 << 30, 5, 3), 2)
    assert parse_root(256, item[:239]) == (Root(256, 1 << 30, 5, 3), 2)  # as old kernels wrote it
    assert parse_root(256, item[:238]) is None
    assert parse_root(256, item[:238] + b"\x08") is None


def test_a_damaged_root_item_is_told() -> None:
    forge = Forge()
    forge.tree(5, [])
    forge.root_items.append(((256, 132, 0), b"short"))
    forge.root_items.append(((257, 144, 5), b"short"))
    forge.root_items.append(((258, 144, 5), root_backref(256, 2, b"")))
    forge.root_items.append(((259, 144, 5), root_backref(256, 2, b"name")[:-1]))
    reader = BtrfsReader(BytesSource(forge.finish()))
    assert [int(problem.split()[4]) for problem in reader.problems[1:]] == [257, 258, 259]
    assert "tree 256" in reader.problems[0]


def test_a_subvolume_hangs_in_one_place() -> None:
    forge = Forge()
    root = forge.tree(5, [])
    forge.root_items.append(((256, 132, 0), root_item(root)))
    for parent in (5, 300):
        forge.root_items.append(((256, 144, parent), root_backref(256, 2, b"name")))
    reader = BtrfsReader(BytesSource(forge.finish()))
    assert reader._roots.mounts[256].tree == 5
    assert reader.problems


def test_there_may_be_only_so_many_subvolumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_roots, "SUBVOLUMES_MAX", 3)
    reader = BtrfsReader(BytesSource(forged(6).image))
    assert len(reader._roots.subvolumes) == len(reader._roots.mounts) == 3
    assert "more than 3 subvolumes" in reader.problems


@pytest.mark.parametrize(("tree", "name"), [(1, "root tree"), (3, "chunk tree")])
def test_a_tree_of_which_nothing_can_be_read_ends_it_all(tree: int, name: str) -> None:
    forge = forged()
    node = tree_nodes(forge, tree)[-1]
    forge.image[node.place + 200] ^= 1
    with pytest.raises(DamagedError, match=f"{name}.*checksum"):
        BtrfsReader(BytesSource(forge.image))


def test_a_part_of_the_tree_of_roots_that_cannot_be_read_costs_what_is_in_it() -> None:
    forge = forged(100)
    leaves = [node for node in tree_nodes(forge, 1) if not node.level]
    assert len(leaves) > 5
    forge.image[leaves[3].place + 200] ^= 1
    reader = BtrfsReader(BytesSource(forge.image))
    known = reader._roots.subvolumes.keys()
    lost = {number for number in range(256, 355) if number not in known}
    assert lost
    assert lost <= set(range(leaves[3].first[0], leaves[4].first[0] + 1))
    assert "checksum" in reader.problems[0]


def test_a_chunk_that_we_cannot_read_is_refused_at_once() -> None:
    forge = forged()
    chunk_leaf = tree_nodes(forge, 3)[0]
    key = struct.pack("<QBQ", 256, 228, DATA_LOGICAL)
    at = bytes(forge.image).index(key, chunk_leaf.place)
    start = int.from_bytes(forge.image[at + 17 : at + 21], "little")
    struct.pack_into("<Q", forge.image, chunk_leaf.place + 101 + start + 24, 0x1 | 0x8)
    forge.reseal(chunk_leaf)
    with pytest.raises(UnsupportedError, match="RAID0"):
        BtrfsReader(BytesSource(forge.image))
