"""What the items of a log say, and items that say too much."""

from __future__ import annotations

import struct

import pytest

from backplane.testing import xfs_forge as forge
from storage_node.mapping import xfs_log_items as items
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_transactions import Item


def item(regions: list[bytes]) -> Item:
    made = Item(regions[0])
    made.regions += regions[1:]
    return made


def test_each_region_of_a_buffer_replaces_a_run_of_pieces() -> None:
    pieces = {0: b"a" * 128, 1024: b"b" * 384, 4096 - 128: b"c" * 128}
    found = items.buffer_item(item(forge.buffer_item(800, 8, pieces)))
    assert (found.block, found.block_count, found.flags) == (800, 8, 0)
    assert found.pieces == sorted(pieces.items())


def test_a_run_may_be_parted_into_regions() -> None:
    """Its pages did not lie together in the memory of the machine."""
    head = struct.pack("<HHHHqII", 0x123C, 3, 0, 8, 800, 1, 0b1111 << 4)
    found = items.buffer_item(item([head, b"a" * 384, b"b" * 128]))
    assert found.pieces == [(512, b"a" * 384), (896, b"b" * 128)]


def test_what_a_cancelled_buffer_holds_is_not_asked() -> None:
    found = items.buffer_item(item(forge.cancel_item(800, 8)))
    assert found.flags & items.CANCEL
    assert found.pieces == []
    assert (
        items.buffer_item(
            item(forge.buffer_item(8, 8, {0: bytes(128)})), is_data_wanted=False
        ).pieces
        == []
    )


@pytest.mark.parametrize(
    "regions",
    [
        [struct.pack("<HHHHq", 0x123C, 1, 0, 8, 800)],
        [struct.pack("<HHHHqII", 0x123C, 1, 0, 0, 800, 1, 0)],
        [struct.pack("<HHHHqII", 0x123C, 1, 0, 129, 800, 1, 0)],
        [struct.pack("<HHHHqII", 0x123C, 1, 0, 8, -1, 1, 0)],
        [struct.pack("<HHHHqII", 0x123C, 1, 0, 8, 800, 2, 0)],
        [struct.pack("<HHHHqII", 0x123C, 1, 0, 8, 800, 1, 1)],
        [struct.pack("<HHHHqII", 0x123C, 2, 0, 8, 800, 1, 1), bytes(127)],
        [struct.pack("<HHHHqIQ", 0x123C, 2, 0, 8, 800, 2, 1 << 32), bytes(128)],
    ],
)
def test_a_buffer_whose_numbers_do_not_fit_is_damage(regions: list[bytes]) -> None:
    with pytest.raises(DamagedError):
        items.buffer_item(item(regions))


@pytest.mark.parametrize("is_short", [True, False])
def test_both_layouts_of_an_inode_are_read(is_short: bool) -> None:
    regions = forge.inode_item(
        66, b"core", b"data", b"attribute", fields=0x1 | 0x4 | 0x80, is_short=is_short
    )
    found = items.inode_item(item(regions))
    assert (found.number, found.byte, found.cluster_block, found.cluster_blocks) == (
        66,
        66 * 512,
        64,
        64,
    )
    assert (found.core, found.data, found.attribute) == (b"core", b"data", b"attribute")


def test_a_fork_alone_may_be_that_of_the_attributes() -> None:
    found = items.inode_item(item(forge.inode_item(66, b"core", b"x", fields=0x1 | 0x40)))
    assert (found.data, found.attribute) == (b"", b"x")
    found = items.inode_item(item(forge.inode_item(66, b"core", fields=0x1)))
    assert (found.data, found.attribute) == (b"", b"")


@pytest.mark.parametrize(
    "regions",
    [
        [bytes(4) + bytes(40), b"core"],
        forge.inode_item(66, b"core", fields=1)[:1],
        forge.inode_item(66, b"core", fields=1, cluster=(64, 0)),
        forge.inode_item(66, b"core", fields=1, cluster=(64, 2)),
        forge.inode_item(66, b"core", fields=1, cluster=(800, 64)),
    ],
)
def test_an_inode_whose_numbers_do_not_fit_is_damage(regions: list[bytes]) -> None:
    regions = [struct.pack("<HH", 0x123B, 2) + regions[0][4:], *regions[1:]]
    with pytest.raises(DamagedError):
        items.inode_item(item(regions))


def test_new_inodes_are_described_in_the_other_byte_order() -> None:
    found = items.create_item(item(forge.create_item(120, 8, group=2)))
    assert found == items.CreateItem(2, 120, 64, 512, 8, 99)
    with pytest.raises(DamagedError):
        items.create_item(item([forge.create_item(120, 8)[0][:-1]]))


def test_intents_name_what_is_left_to_be_done() -> None:
    made = item(forge.map_intent(7, (70, 100, 5, 2, items.MAP), (71, 200, 6, 3, items.UNMAP)))
    assert items.intent_number(made) == 7
    first, second = items.map_changes(made)
    assert first == items.MapChange(70, 100, 5, 2, items.MAP)
    assert (first.is_map, second.is_map) == (True, False)
    made = item(forge.share_intent(1 << 60, (100, 5, items.SHARE_MORE)))
    assert items.intent_number(made) == 1 << 60
    assert items.share_changes(made) == [items.ShareChange(100, 5, items.SHARE_MORE)]
    assert items.intent_number(item(forge.done_item(items.MAP_INTENT, 7))) == 7
    head = struct.pack("<HHIQQQ", items.EXCHANGE_INTENT, 1, 0, 9, 70, 71)
    assert items.inodes_of_intent(item([head])) == [70, 71]


def test_intents_that_are_not_whole_are_damage() -> None:
    whole = forge.map_intent(7, (70, 100, 5, 2, items.MAP))[0]
    with pytest.raises(DamagedError):
        items.map_changes(item([whole[:-1]]))
    with pytest.raises(DamagedError):
        items.intent_number(item([whole[:15]]))
    with pytest.raises(DamagedError):
        items.inodes_of_intent(item([struct.pack("<HHIQQ", items.EXCHANGE_INTENT, 1, 0, 9, 70)]))
