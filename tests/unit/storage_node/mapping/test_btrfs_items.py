"""Items put together to inodes, with what is damaged left out and told."""

from __future__ import annotations

import stat

from backplane.file_map.model import ExtentFlag, FileExtent
from backplane.testing.btrfs_forge import (
    DATA_LOGICAL,
    DATA_PLACE,
    Forge,
    Items,
    directory_item,
    entry,
    extent_item,
    file_items,
    inline_extent,
    inode_item,
    name_extref,
    name_ref,
    small_tree,
)
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_extent import ExtentReader
from storage_node.mapping.btrfs_inode import Inode
from storage_node.mapping.btrfs_items import InodeWalk, NoNames
from storage_node.mapping.btrfs_names import Name
from storage_node.mapping.reader import BytesSource


class HeardNames:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.references: list[Name] = []
        self.entries: list[tuple[Name, int]] = []

    def add_reference(self, name: Name) -> None:
        self.references.append(name)

    def add_entry(self, name: Name, kind: int) -> None:
        self.entries.append((name, kind))


def walk_of(forge: Forge, reports: list[str]) -> InodeWalk:
    reader = BtrfsReader(BytesSource(forge.image))
    space = reader._read_space()
    return InodeWalk(
        reader._tree,
        reader._roots.subvolumes[5],
        ExtentReader(reader._chunks, space, 4096),
        is_shared=space.is_node_shared,
        report=reports.append,
    )


def inodes_of(items: Items, names: HeardNames | None = None) -> dict[int, Inode]:
    forge = Forge()
    forge.tree(5, sorted(items))
    forge.finish()
    reports: list[str] = []
    found = {inode.number: inode for inode in walk_of(forge, reports).inodes(names or NoNames())}
    assert not reports
    return found


def test_all_items_of_an_inode_come_together() -> None:
    heard = HeardNames()
    items: Items = [
        *file_items(300, 256, 9, b"name", size=9000),
        ((300, 13, 77), name_extref(400, 3, b"other")),
        ((300, 24, 1), entry(0, b"user.a", value=b"1")),
        ((300, 24, 2), entry(0, b"user.b", value=b"2")),
        ((300, 108, 0), extent_item(DATA_LOGICAL, 4096)),
        ((300, 108, 8192), extent_item(DATA_LOGICAL + 4096, 4096, kind=2)),
        ((300, 48, 0), b"of a type that says nothing to us"),
    ]
    inode = inodes_of(items, heard)[300]
    assert inode.names == [(256, 9, b"name"), (400, 3, b"other")]
    assert heard.references == [(256, 9, 300, b"name"), (400, 3, 300, b"other")]
    assert inode.xattrs == ((b"user.a", b"1"), (b"user.b", b"2"))
    assert inode.extents == [
        FileExtent(0, DATA_PLACE, 4096),
        FileExtent(8192, DATA_PLACE + 4096, 4096, ExtentFlag.UNWRITTEN),
    ]
    assert not inode.defect


def test_entries_are_heard_once_and_those_of_subvolumes_are_kept() -> None:
    heard = HeardNames()
    items: Items = [
        ((256, 1, 0), directory_item()),
        ((256, 84, 12345), entry(300, b"name")),
        ((256, 96, 2), entry(300, b"name")),
        ((256, 96, 3), entry(257, b"home", kind=2, key_kind=132)),
        ((256, 12, 256), name_ref(0, b"..")),
    ]
    inode = inodes_of(items, heard)[256]
    assert heard.entries == [((256, 2, 300, b"name"), 1)]
    assert inode.subvolumes == [(3, b"home", 257)]
    assert (heard.references, list(inode.names)) == ([], [])


def test_the_target_of_a_link_is_its_inline_extent_and_no_other() -> None:
    mode = stat.S_IFLNK | 0o777
    items: Items = [
        ((300, 1, 0), inode_item(mode, size=6)),
        ((300, 108, 0), inline_extent(b"target")),
        ((301, 1, 0), inode_item(mode, size=6)),
        ((301, 108, 0), inline_extent(b"packed", raw_bytes=6, compression=1)),
        ((302, 1, 0), inode_item(mode, size=4096)),
        ((302, 108, 0), extent_item(DATA_LOGICAL, 4096)),
        ((303, 1, 0), inode_item(size=6)),
        ((303, 108, 0), inline_extent(b"a file")),
    ]
    found = inodes_of(items)
    assert [found[number].target for number in range(300, 304)] == [b"target", b"", b"", b""]


def test_an_item_that_is_wrong_costs_nothing_but_itself() -> None:
    items: Items = [
        *file_items(300, 256, 9, b"name"),
        ((300, 24, 1), b"short"),
        ((300, 108, 0), b"short"),
        ((300, 108, 4096), extent_item(DATA_LOGICAL, 4096)),
        *file_items(301, 256, 10, b"next"),
        ((302, 1, 0), b"short"),
        ((302, 12, 256), b"short"),
        ((302, 96, 5), b"short"),
    ]
    found = inodes_of(items)
    assert len(found[300].extents) == 1
    assert "cut off" in found[300].defect
    assert not found[301].defect
    assert "inode of 5 bytes" in found[302].defect


def test_an_inode_with_a_gap_within_is_blamed_and_its_neighbours_are_not() -> None:
    """The items of one large file fill several leaves, of which the second is damaged."""
    items = small_tree([b"before", b"large", b"after"])
    place = DATA_LOGICAL + 100 * 4096
    items += [((258, 108, at * 8192), extent_item(place, 4096)) for at in range(1, 200)]
    forge = Forge()
    forge.tree(5, sorted(items))
    forge.finish()
    leaves = [node for node in forge.nodes if node.tree == 5 and not node.level]
    assert leaves[2].first[0] == leaves[1].first[0] == 258
    forge.image[leaves[1].place + 99] ^= 1
    reports: list[str] = []
    walk = walk_of(forge, reports)
    found = {inode.number: inode for inode in walk.inodes(NoNames())}
    assert walk.has_gaps
    assert "checksum" in reports[0]
    assert [number for number, inode in found.items() if inode.defect] == [258]
    assert 0 < len(found[258].extents) < 200


def test_a_gap_between_two_inodes_blames_none_of_them() -> None:
    names = [b"n" * 200 + b"%04d" % number for number in range(60)]
    forge = Forge()
    forge.tree(5, small_tree(names))
    forge.finish()
    leaves = [node for node in forge.nodes if node.tree == 5 and not node.level]
    # Take a leaf that begins with a new inode.
    index = next(at for at, leaf in enumerate(leaves) if leaf.first[1] == 1 and leaf.first[0] > 256)
    forge.image[leaves[index].place + 99] ^= 1
    reports: list[str] = []
    found = {inode.number: inode for inode in walk_of(forge, reports).inodes(NoNames())}
    assert reports
    assert not found[leaves[index].first[0] - 1].defect
