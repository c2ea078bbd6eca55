"""Walks through trees: everything once and in order, and a gap for each node that is not believed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from backplane.testing.btrfs_forge import (
    COPY_PLACE,
    DATA_LOGICAL,
    HEADER,
    ITEM,
    METADATA_PLACE,
    MIB,
    POINTER,
    Forge,
    Items,
    Node,
)
from storage_node.mapping.btrfs_chunks import DATA, METADATA, Chunk, ChunkMap
from storage_node.mapping.btrfs_superblock import read_superblock
from storage_node.mapping.btrfs_tree import (
    HEADER_BYTES,
    KEY_END,
    KEY_MIN,
    Gap,
    Key,
    Leaf,
    Root,
    TreeReader,
    is_subvolume,
)
from storage_node.mapping.reader import BytesSource, DamagedError, Source

NUMBERS = range(1000, 4000)


class CountedSource(BytesSource):
    """Counts reads, and cannot read some places."""

    def __init__(self, data: bytes | bytearray, broken: range = range(0)) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []
        self._broken = broken

    def read(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        if max(offset, self._broken.start) < min(offset + count, self._broken.stop):
            raise DamagedError("the medium has an error there")
        return super().read(offset, count)


def items() -> Items:
    return [((number, 1, 2), b"item %d" % number) for number in NUMBERS]


def forged(*, is_dup: bool = False, tree: int = 5) -> tuple[Forge, Node]:
    """A volume with one tree of three levels."""
    forge = Forge(is_dup=is_dup)
    root = forge.tree(tree, items())
    assert root.level == 1
    forge.finish()
    return forge, root


def reader_of(source: Source, *, is_dup: bool = False, kind: int = METADATA) -> TreeReader:
    superblock = read_superblock(source)
    chunks = ChunkMap(superblock)
    places = (METADATA_PLACE, COPY_PLACE) if is_dup else (METADATA_PLACE,)
    start = 0x1D0_0000
    chunks.replace([Chunk(start, start + 2 * MIB, kind, places)])
    return TreeReader(source, superblock, chunks)


def root_of(node: Node) -> Root:
    return Root(node.tree, node.logical, 7, node.level)


def walked(forge: Forge, root: Node, *, is_dup: bool = False) -> tuple[list[int], list[Gap]]:
    """Return the objects of all items, and the gaps."""
    numbers: list[int] = []
    gaps = []
    for part in reader_of(BytesSource(forge.image), is_dup=is_dup).walk(root_of(root)):
        if isinstance(part, Gap):
            gaps.append(part)
            continue
        for number, kind, offset, start, size in part.items:
            at = HEADER_BYTES + start
            assert (kind, offset, part.data[at : at + size]) == (1, 2, b"item %d" % number)
            numbers.append(number)
    return numbers, gaps


def leaves_of(forge: Forge, root: Node) -> list[Node]:
    return [node for node in forge.nodes if node.tree == root.tree and not node.level]


def test_a_walk_yields_every_item_once_and_in_order() -> None:
    forge, root = forged()
    assert walked(forge, root) == (list(NUMBERS), [])


def test_a_tree_of_three_levels() -> None:
    forge = Forge()
    wide: Items = [((number, 1, 2), b"item %d" % number) for number in range(16_000)]
    root = forge.tree(5, wide)
    assert root.level == 2
    forge.finish()
    assert walked(forge, root) == (list(range(16_000)), [])


def test_an_empty_tree_has_no_items_and_no_gaps() -> None:
    forge = Forge()
    root = forge.tree(7, [])
    forge.finish()
    assert walked(forge, root) == ([], [])


# Nodes that are not believed.


def put(layout: str, place: int, value: int) -> Callable[[Forge, Node], None]:
    def change(forge: Forge, node: Node) -> None:
        struct.pack_into(layout, forge.image, node.place + place, value)

    return change


def swap_items(forge: Forge, node: Node) -> None:
    at = node.place + HEADER.size + 5 * ITEM.size
    first, second = slice(at, at + 17), slice(at + ITEM.size, at + ITEM.size + 17)
    forge.image[first], forge.image[second] = forge.image[second], forge.image[first]


def double_item(forge: Forge, node: Node) -> None:
    at = node.place + HEADER.size + 5 * ITEM.size
    forge.image[at + ITEM.size : at + ITEM.size + 17] = forge.image[at : at + 17]


def stretch_last_item(forge: Forge, node: Node) -> None:
    """Let the data of the last item begin where the items themselves are."""
    count = int.from_bytes(forge.image[node.place + 96 : node.place + 100], "little")
    at = node.place + HEADER.size + (count - 1) * ITEM.size + 17
    start, size = struct.unpack_from("<II", forge.image, at)
    struct.pack_into("<II", forge.image, at, 8, start + size - 8)


LAST_KEY = 101 + 25 * 20
"""Of an item in the middle of a leaf."""

DAMAGES: dict[str, tuple[Callable[[Forge, Node], None], str]] = {
    "address": (put("<Q", 48, 4096), "another node"),
    "file system": (put("<Q", 32, 1), "another node"),
    "generation": (put("<Q", 80, 6), "generation is 6, not 7"),
    "owner": (put("<Q", 88, 2), "belongs to tree 2, not 5"),
    "level": (put("<B", 100, 1), "level is 1, not 0"),
    "no items": (put("<I", 96, 0), "0 items"),
    "many items": (put("<I", 96, 4000), "4000 items"),
    "more items than there are": (put("<I", 96, 150), "beyond the next"),
    "first key": (put("<Q", 101, 999), "first key"),
    "last key": (put("<Q", 101 + 25 * 10, 9999), "do not ascend"),
    "order": (swap_items, "do not ascend"),
    "the same key twice": (double_item, "do not ascend"),
    "an item over the items": (stretch_last_item, "over each other"),
    "place of an item": (put("<I", LAST_KEY + 17, 1000), "beside each other"),
    "size of an item": (put("<I", LAST_KEY + 21, 0xFFFFFFFF), "beside each other"),
    "size of an item by one": (put("<I", LAST_KEY + 21, 10), "beside each other"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_leaf_that_contradicts_its_pointer_or_itself_is_a_gap(damage: str) -> None:
    """Its checksum is right each time; everything else of the tree is still there."""
    forge, root = forged()
    leaves = leaves_of(forge, root)
    change, reason = DAMAGES[damage]
    change(forge, leaves[3])
    forge.reseal(leaves[3])
    numbers, gaps = walked(forge, root)
    first, end = leaves[3].first, leaves[4].first
    assert [(gap.first, gap.end) for gap in gaps] == [(first, end)]
    assert reason in gaps[0].reason
    assert numbers == [number for number in NUMBERS if not first[0] <= number < end[0]]


def test_a_leaf_whose_last_key_is_the_next_ones_first_is_a_gap() -> None:
    forge, root = forged()
    leaves = leaves_of(forge, root)
    count = int.from_bytes(forge.image[leaves[3].place + 96 : leaves[3].place + 100], "little")
    put("<Q", 101 + 25 * (count - 1), leaves[4].first[0])(forge, leaves[3])
    forge.reseal(leaves[3])
    _, gaps = walked(forge, root)
    assert [gap.first for gap in gaps] == [leaves[3].first]
    assert "beyond" in gaps[0].reason


def test_a_wrong_checksum_is_a_gap() -> None:
    forge, root = forged()
    leaf = leaves_of(forge, root)[-1]
    forge.image[leaf.place + 3000] ^= 1
    numbers, gaps = walked(forge, root)
    assert [(gap.first, gap.end) for gap in gaps] == [(leaf.first, KEY_END)]
    assert "checksum" in gaps[0].reason
    assert numbers == [number for number in NUMBERS if number < leaf.first[0]]


def test_a_root_that_cannot_be_read_is_a_gap_of_everything() -> None:
    forge, root = forged()
    forge.image[root.place + 50] ^= 1
    numbers, gaps = walked(forge, root)
    assert (numbers, [(gap.first, gap.end) for gap in gaps]) == ([], [(KEY_MIN, KEY_END)])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (DATA_LOGICAL, "no chunk of metadata"),
        (0, "no chunk of metadata"),
        (0x1D0_0000 + 2 * MIB - 2048, "between sectors"),
    ],
)
def test_a_pointer_to_where_no_node_can_be(value: int, reason: str) -> None:
    forge, root = forged()
    put("<Q", 101 + 33 * 2 + 17, value)(forge, root)
    forge.reseal(root)
    numbers, gaps = walked(forge, root)
    assert len(gaps) == 1
    assert reason in gaps[0].reason
    assert len(numbers) < len(NUMBERS)


def test_pointers_that_do_not_ascend_cost_the_node_they_are_in() -> None:
    forge, root = forged()
    put("<Q", 101 + POINTER.size, 1)(forge, root)
    forge.reseal(root)
    numbers, gaps = walked(forge, root)
    assert numbers == []
    assert "do not ascend" in gaps[0].reason


def test_a_tree_that_points_at_itself_ends() -> None:
    """Level, first key and the next key are checked, so no node can come twice."""
    forge, root = forged()
    leaves = leaves_of(forge, root)
    for index in range(1, 8):
        put("<Q", 101 + 33 * index + 17, root.logical if index % 2 else leaves[0].logical)(
            forge, root
        )
    forge.reseal(root)
    numbers, gaps = walked(forge, root)
    assert len(gaps) == 7
    assert numbers == sorted(set(numbers))


# Copies and reads.


def test_the_second_copy_serves_when_the_first_is_damaged() -> None:
    forge, root = forged(is_dup=True)
    for node in forge.nodes:
        if node.tree == 5:
            forge.image[node.place + 200] ^= 0xFF
    assert walked(forge, root, is_dup=True) == (list(NUMBERS), [])


def test_what_lies_in_a_leaf_is_where_the_copy_is_that_was_believed() -> None:
    forge, root = forged(is_dup=True)
    leaves = leaves_of(forge, root)
    forge.image[leaves[1].place + 200] ^= 0xFF
    parts = list(reader_of(BytesSource(forge.image), is_dup=True).walk(root_of(root)))
    places = [part.place for part in parts if isinstance(part, Leaf)]
    expected = [leaf.place for leaf in leaves]
    expected[1] += COPY_PLACE - METADATA_PLACE
    assert places == expected


def test_neighbours_are_read_together() -> None:
    forge, root = forged()
    source = CountedSource(forge.image)
    reader = reader_of(source)
    source.reads.clear()
    assert len(list(reader.walk(root_of(root)))) > 20
    assert len(source.reads) == 2  # the root, and all leaves


def test_a_place_that_cannot_be_read_costs_only_its_own_node() -> None:
    forge, root = forged()
    leaf = leaves_of(forge, root)[5]
    source = CountedSource(forge.image, broken=range(leaf.place, leaf.place + 1))
    gaps = [p for p in reader_of(source).walk(root_of(root)) if isinstance(p, Gap)]
    assert [gap.first for gap in gaps] == [leaf.first]
    assert "medium" in gaps[0].reason


def test_in_a_mixed_chunk_nothing_between_nodes_is_read() -> None:
    """Between them there may be files' data."""
    forge = Forge()
    first = forge.write(5, items()[:50])
    forge.write(9, items()[:50])  # in between
    second = forge.write(5, items()[50:100])
    pointers = [(node.first, node) for node in (first, second)]
    root = forge._write_above([node for _, node in pointers], 0x1D0_0000, 7)
    forge.finish()
    for kind, reads in ((METADATA, 2), (METADATA | DATA, 3)):
        source = CountedSource(forge.image)
        reader = reader_of(source, kind=kind)
        source.reads.clear()
        assert len(list(reader.walk(root_of(root)))) == 2
        assert len(source.reads) == reads


def test_everything_below_a_shared_node_is_shared() -> None:
    forge, root = forged()
    leaves = leaves_of(forge, root)
    reader = reader_of(BytesSource(forge.image))

    def shared(*logical: int) -> list[bool]:
        parts = reader.walk(root_of(root), is_shared=lambda one: one in logical)
        return [part.is_shared for part in parts if isinstance(part, Leaf)]

    assert not any(shared())
    assert all(shared(root.logical))
    assert shared(leaves[2].logical) == [leaf == leaves[2] for leaf in leaves]


def test_a_visitor_is_told_of_every_node() -> None:
    forge, root = forged()
    visited: list[int] = []
    for _ in reader_of(BytesSource(forge.image)).walk(root_of(root), visited=visited.append):
        pass
    assert set(visited) == {node.logical for node in forge.nodes if node.tree == 5}
    assert len(visited) == len(set(visited))


# Searches.


def test_a_search_reads_what_may_hold_the_keys_and_nothing_else() -> None:
    forge, root = forged()
    source = CountedSource(forge.image)
    reader = reader_of(source)
    for number in (*NUMBERS[::97], 1, 9999):
        low: Key = (number, 0, 0)
        high: Key = (number, 255, (1 << 64) - 1)
        parts = list(reader.search(root_of(root), low, high))
        assert len(parts) <= 2
        found = {item[0] for part in parts if isinstance(part, Leaf) for item in part.items}
        assert (number in found) == (number in NUMBERS)


def test_a_second_search_nearby_reads_nothing() -> None:
    forge, root = forged()
    source = CountedSource(forge.image)
    reader = reader_of(source)
    list(reader.search(root_of(root), (2000, 0, 0), (2000, 255, 0)))
    source.reads.clear()
    list(reader.search(root_of(root), (2001, 0, 0), (2001, 255, 0)))
    assert source.reads == []


def test_a_search_tells_of_a_gap() -> None:
    forge, root = forged()
    leaf = leaves_of(forge, root)[3]
    forge.image[leaf.place + 99] ^= 1
    reader = reader_of(BytesSource(forge.image))
    number = leaf.first[0] + 1
    parts = list(reader.search(root_of(root), (number, 0, 0), (number, 255, 0)))
    assert [type(part) for part in parts] == [Gap]


@pytest.mark.parametrize(
    ("tree", "is_one"),
    [
        (5, True),
        (256, True),
        ((1 << 64) - 256, True),
        (2, False),
        ((1 << 64) - 9, False),
        (0, False),
    ],
)
def test_which_trees_hold_files(tree: int, is_one: bool) -> None:
    assert is_subvolume(tree) == is_one


def test_a_snapshots_nodes_may_have_been_made_for_another_subvolume() -> None:
    forge, root = forged(tree=256)
    reader = reader_of(BytesSource(forge.image))
    other = root_of(root)._replace(tree=300)
    assert not [part for part in reader.walk(other) if isinstance(part, Gap)]
    parts = list(reader.walk(root_of(root)._replace(tree=2)))
    assert [type(part) for part in parts] == [Gap]
