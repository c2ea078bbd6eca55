"""The log tree: not replayed, but in use."""

from __future__ import annotations

import struct

from backplane.testing.btrfs_forge import (
    DATA_LOGICAL,
    DATA_PLACE,
    GENERATION,
    SUPERBLOCK,
    Forge,
    Items,
    Node,
    extent_item,
    inline_extent,
    root_item,
    used_item,
)
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_log import LOG_PROBLEM
from storage_node.mapping.reader import BytesSource

LOG = (1 << 64) - 6
BLOCK = 4096


def forged() -> tuple[Forge, list[Node]]:
    """A volume with a log of one subvolume, in which two files have new extents."""
    forge = Forge()
    forge.tree(5, [])
    forge.extent_items = [((DATA_LOGICAL, 168, BLOCK), used_item(1))]
    items: Items = [
        ((300, 108, 0), extent_item(DATA_LOGICAL + 10 * BLOCK, BLOCK, disk_bytes=2 * BLOCK)),
        ((300, 108, 65536), extent_item(0, BLOCK)),
        ((301, 108, 0), inline_extent(b"inline")),
        ((302, 108, 0), extent_item(DATA_LOGICAL + 20 * BLOCK, BLOCK, kind=2)),
    ]
    log = forge.write(LOG, items, generation=GENERATION + 1)
    top_items: Items = [((LOG, 132, 5), root_item(log, generation=GENERATION + 1))]
    top = forge.write(LOG, top_items, generation=GENERATION + 1)
    forge.log_root = top.logical
    forge.finish()
    return forge, [log, top]


def test_nodes_and_extents_of_the_log_are_in_use() -> None:
    forge, nodes = forged()
    reader = BtrfsReader(BytesSource(forge.image))
    runs = list(reader.allocated())
    for node in nodes:
        assert any(start <= node.place and node.place + BLOCK <= end for start, end in runs)
    assert (DATA_PLACE, DATA_PLACE + BLOCK) in runs
    assert (DATA_PLACE + 10 * BLOCK, DATA_PLACE + 12 * BLOCK) in runs
    assert (DATA_PLACE + 20 * BLOCK, DATA_PLACE + 21 * BLOCK) in runs


def test_a_volume_with_a_log_is_dirty_and_says_what_may_be_missing() -> None:
    forge, _ = forged()
    reader = BtrfsReader(BytesSource(forge.image))
    assert reader.facts.state == "dirty"
    list(reader.rows())
    assert reader.problems == [LOG_PROBLEM]


def test_a_volume_without_a_log_is_clean() -> None:
    forge = Forge()
    forge.tree(5, [])
    reader = BtrfsReader(BytesSource(forge.finish()))
    assert reader.facts.state == "clean"
    list(reader.allocated())
    assert not reader.problems


def test_a_log_that_cannot_be_read_is_told() -> None:
    for index in (0, 1):
        forge, nodes = forged()
        forge.image[nodes[index].place + 99] ^= 1
        reader = BtrfsReader(BytesSource(forge.image))
        list(reader.allocated())
        assert len(reader.problems) == 2
        assert reader.problems[1].startswith("log tree: node")


def test_a_log_of_an_older_transaction_is_not_believed() -> None:
    forge, _ = forged()
    struct.pack_into("<Q", forge.image, SUPERBLOCK + 72, GENERATION + 1)
    forge.reseal_superblock()
    root_tree = next(node for node in forge.nodes if node.tree == 1)
    struct.pack_into("<Q", forge.image, root_tree.place + 80, GENERATION + 1)
    forge.reseal(root_tree)
    reader = BtrfsReader(BytesSource(forge.image))
    list(reader.allocated())
    assert f"its generation is {GENERATION + 1}, not {GENERATION + 2}" in reader.problems[1]


def test_an_extent_of_the_log_outside_of_all_chunks_is_told() -> None:
    forge, nodes = forged()
    at = bytes(forge.image).index(struct.pack("<Q", DATA_LOGICAL + 10 * BLOCK), nodes[0].place)
    struct.pack_into("<Q", forge.image, at, 1 << 60)
    forge.reseal(nodes[0])
    reader = BtrfsReader(BytesSource(forge.image))
    list(reader.allocated())
    assert "in no chunk" in reader.problems[1]
