"""What is in use and what is shared, from the extent tree."""

from __future__ import annotations

import struct
from itertools import pairwise

from backplane.testing.btrfs_forge import (
    COPY_PLACE,
    DATA_BYTES,
    DATA_LOGICAL,
    DATA_PLACE,
    METADATA_LOGICAL,
    METADATA_PLACE,
    SYSTEM_PLACE,
    Forge,
    Items,
    used_item,
)
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_space import BOOT_BYTES, Space
from storage_node.mapping.reader import BytesSource

BLOCK = 4096


def reader_of(items: Items, *, is_dup: bool = False) -> tuple[BtrfsReader, Forge]:
    forge = Forge(is_dup=is_dup)
    forge.tree(5, [])
    forge.extent_items = items
    forge.finish()
    return BtrfsReader(BytesSource(forge.image)), forge


def space_of(items: Items) -> Space:
    return reader_of(items)[0]._read_space()


def data_ref(count: int, *, owner: int = 257, place: int = 0) -> bytes:
    return struct.pack("<BQQQI", 178, 5, owner, place, count)


def test_runs_that_touch_are_one_and_every_copy_is_in_use() -> None:
    items: Items = [
        ((METADATA_LOGICAL, 169, 0), used_item(1, is_node=True)),
        ((METADATA_LOGICAL + BLOCK, 169, 1), used_item(1, is_node=True)),
        ((METADATA_LOGICAL + 8 * BLOCK, 168, BLOCK), used_item(1, is_node=True)),
        ((DATA_LOGICAL + BLOCK, 168, 10 * BLOCK), used_item(1)),
    ]
    reader, _ = reader_of(items, is_dup=True)
    assert list(reader.allocated()) == [
        (0, BOOT_BYTES),
        *[
            (place + start * BLOCK, place + end * BLOCK)
            for place in (METADATA_PLACE, COPY_PLACE)
            for start, end in ((0, 2), (8, 9))
        ],
        (DATA_PLACE + BLOCK, DATA_PLACE + 11 * BLOCK),
    ]
    assert not reader.problems


def test_an_extent_is_shared_if_it_has_users_other_than_one_place_of_one_file() -> None:
    owner_ref = struct.pack("<BQ", 172, 5)
    refs = {
        1: (1, data_ref(1)),
        2: (2, data_ref(2)),  # one file, whose extent was overwritten in the middle
        3: (2, owner_ref + data_ref(2)),
        4: (2, data_ref(1) + data_ref(1, owner=258)),
        5: (3, data_ref(2)),
        6: (2, struct.pack("<BQI", 184, METADATA_LOGICAL, 1)),
        7: (2, b""),
        8: (1 << 40, data_ref(5)),
    }
    space = space_of(
        [
            ((DATA_LOGICAL + at * BLOCK, 168, BLOCK), used_item(users, refs=ref))
            for at, (users, ref) in refs.items()
        ]
    )
    shared = [at for at in range(10) if space.is_extent_shared(DATA_LOGICAL + at * BLOCK)]
    assert shared == [4, 5, 6, 7, 8]


def test_references_that_are_cut_off_say_nothing() -> None:
    """The item stands at the end of its leaf, and what would come next does not exist."""
    for refs in (b"", data_ref(2)[:-1], struct.pack("<BQ", 172, 5)):
        assert space_of([((DATA_LOGICAL, 168, BLOCK), used_item(2, refs=refs))]).is_extent_shared(
            DATA_LOGICAL
        )


def test_a_node_is_shared_if_two_trees_point_at_it() -> None:
    space = space_of(
        [
            ((METADATA_LOGICAL, 169, 0), used_item(1, is_node=True)),
            ((METADATA_LOGICAL + BLOCK, 169, 0), used_item(2, is_node=True)),
            ((METADATA_LOGICAL + 2 * BLOCK, 168, BLOCK), used_item(2, is_node=True)),
        ]
    )
    shared = [at for at in range(4) if space.is_node_shared(METADATA_LOGICAL + at * BLOCK)]
    assert shared == [1, 2]


def test_an_extent_outside_of_all_chunks_is_told_and_left_out() -> None:
    reader, _ = reader_of(
        [
            ((DATA_LOGICAL, 168, BLOCK), used_item(1)),
            ((DATA_LOGICAL + DATA_BYTES - BLOCK, 168, 2 * BLOCK), used_item(1)),
            ((1 << 50, 168, BLOCK), used_item(1)),
        ]
    )
    runs = list(reader.allocated())
    assert runs[1:] == [(DATA_PLACE, DATA_PLACE + BLOCK)]
    assert len([one for one in reader.problems if "lie in no chunk" in one]) == 2


def test_extents_over_each_other_are_told() -> None:
    reader, _ = reader_of(
        [
            ((DATA_LOGICAL, 168, 4 * BLOCK), used_item(1)),
            ((DATA_LOGICAL + BLOCK, 168, BLOCK), used_item(1)),
        ]
    )
    assert list(reader.allocated())[1:] == [(DATA_PLACE, DATA_PLACE + 4 * BLOCK)]
    assert [one for one in reader.problems if "overlap" in one]


def many() -> Items:
    return [((DATA_LOGICAL + at * 2 * BLOCK, 168, BLOCK), used_item(1)) for at in range(900)]


def test_what_a_damaged_node_may_have_held_is_in_use_and_shared() -> None:
    reader, forge = reader_of(many())
    leaves = [node for node in forge.nodes if node.tree == 2 and not node.level]
    assert len(leaves) > 5
    forge.image[leaves[2].place + 70] ^= 1
    reader = BtrfsReader(BytesSource(forge.image))
    space = reader._read_space()
    start, end = leaves[2].first[0], leaves[3].first[0]
    runs = set(space.runs())
    assert (start - DATA_LOGICAL + DATA_PLACE, end + BLOCK - DATA_LOGICAL + DATA_PLACE) in runs
    assert [one for one in reader.problems if "checksum" in one]
    for logical, is_unknown in ((start - 1, False), (start, True), (end - 1, True), (end, False)):
        assert space.is_extent_shared(logical) == space.is_node_shared(logical) == is_unknown


def test_without_an_extent_tree_everything_that_a_chunk_has_is_in_use() -> None:
    _, forge = reader_of(many())
    root = next(node for node in forge.nodes if node.tree == 2 and node.level)
    forge.image[root.place + 70] ^= 1
    reader = BtrfsReader(BytesSource(forge.image))
    runs = list(reader.allocated())
    assert (DATA_PLACE, DATA_PLACE + DATA_BYTES) in runs
    assert any(start <= SYSTEM_PLACE < end for start, end in runs)
    assert reader.problems


def test_a_tree_of_roots_without_an_extent_tree_is_told() -> None:
    forge = Forge()
    forge.tree(5, [])
    forge.finish()
    root_tree = next(node for node in forge.nodes if node.tree == 1)
    at = bytes(forge.image).index(struct.pack("<QBQ", 2, 132, 0), root_tree.place)
    struct.pack_into("<Q", forge.image, at, 3)
    forge.reseal(root_tree)
    reader = BtrfsReader(BytesSource(forge.image))
    assert (DATA_PLACE, DATA_PLACE + DATA_BYTES) in set(reader.allocated())
    assert "extent tree: its root cannot be read" in reader.problems


def test_runs_are_ascending_and_disjoint_whatever_the_order_of_chunks_on_the_device() -> None:
    reader, _ = reader_of([*many(), ((METADATA_LOGICAL, 169, 0), used_item(1, is_node=True))])
    runs = list(reader.allocated())
    assert len(runs) == 902
    assert all(one[1] < other[0] for one, other in pairwise(runs))
