"""Items of inodes, names and extended attributes, byte by byte."""

from __future__ import annotations

import stat
import struct

import pytest

from backplane.file_map.model import NO_TIME, FileExtent, Identity, Kind
from backplane.testing.btrfs_forge import (
    directory_item,
    entry,
    inode_item,
    name_extref,
    name_ref,
)
from storage_node.mapping import btrfs_inode
from storage_node.mapping.btrfs_extent import InodeDefect
from storage_node.mapping.btrfs_inode import (
    XATTR_BYTES_MAX,
    Inode,
    parse_entry,
    parse_extrefs,
    parse_refs,
    parse_xattrs,
)

SECOND = 1_000_000_000


def inode_of(item: bytes) -> Inode:
    inode = Inode(300)
    inode.set_item(item)
    return inode


def test_a_row_has_what_the_inode_says() -> None:
    inode = inode_of(inode_item(stat.S_IFREG | 0o4751, size=12345, links=3))
    inode.add_xattrs(entry(0, b"user.b", value=b"2"))
    inode.add_xattrs(entry(0, b"user.a", value=b"1"))
    extent = FileExtent(0, 4096, 4096)
    inode.add_extent(extent)
    row = inode.row(256, b"home/file")
    assert row.path == b"home/file"
    assert (row.kind, row.size, row.mode, row.links) == (Kind.FILE, 12345, 0o4751, 3)
    assert (row.uid, row.gid) == (1000, 100)
    assert (row.atime_ns, row.ctime_ns) == (SECOND + 2, 3 * SECOND + 4)
    assert (row.mtime_ns, row.birth_ns) == (5 * SECOND + 6, 7 * SECOND + 8)
    assert row.identity == Identity(256, 300, 7)
    assert row.xattrs == ((b"user.a", b"1"), (b"user.b", b"2"))
    assert (row.extents, row.error) == ((extent,), "")


def test_times_before_1970_are_negative() -> None:
    item = bytearray(inode_item())
    struct.pack_into("<qI", item, 136, -2, 5)
    assert inode_of(bytes(item)).row(5, b"x").mtime_ns == -2 * SECOND + 5


def test_an_inode_without_a_time_of_birth_has_none() -> None:
    item = bytearray(inode_item())
    item[148:160] = bytes(12)
    assert inode_of(bytes(item)).row(5, b"x").birth_ns == NO_TIME


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (stat.S_IFREG, Kind.FILE),
        (stat.S_IFDIR, Kind.DIRECTORY),
        (stat.S_IFLNK, Kind.SYMLINK),
        (stat.S_IFIFO, Kind.FIFO),
        (stat.S_IFSOCK, Kind.SOCKET),
        (stat.S_IFCHR, Kind.CHARACTER),
        (stat.S_IFBLK, Kind.BLOCK),
    ],
)
def test_the_kind_follows_from_the_mode(form: int, kind: Kind) -> None:
    row = inode_of(inode_item(form | 0o600, device=1234 << 20 | 567_890)).row(5, b"x")
    assert row.kind == kind
    is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
    assert row.device == (1234 << 32 | 567_890 if is_device else 0)
    assert not row.error


@pytest.mark.parametrize("mode", [0, 0o3000600, 0o170000, 1 << 16 | stat.S_IFREG])
def test_a_mode_that_nobody_knows_is_an_error(mode: int) -> None:
    assert "mode" in inode_of(inode_item(mode)).row(5, b"x").error


def test_a_size_beyond_all_files_is_an_error() -> None:
    row = inode_of(inode_item(size=1 << 63)).row(5, b"x")
    assert (row.size, row.error) == (0, f"a size of {1 << 63} bytes")


@pytest.mark.parametrize("count", [0, 159, 161])
def test_an_inode_of_another_length_is_a_defect(count: int) -> None:
    with pytest.raises(InodeDefect, match=f"{count} bytes"):
        inode_of(inode_item().ljust(161)[:count])


def test_an_inode_that_was_never_seen_has_a_row_with_an_error() -> None:
    row = Inode(300).row(5, b"x")
    assert (row.kind, row.error) == (Kind.OTHER, "its inode cannot be read")
    assert (row.identity, row.uid, row.mtime_ns) == (Identity(5, 300, 0), -1, NO_TIME)


def test_a_directory_has_no_extents() -> None:
    inode = inode_of(directory_item())
    inode.add_extent(FileExtent(0, 4096, 4096))
    assert inode.row(5, b"x").extents == ()


def test_the_first_defect_is_told() -> None:
    inode = inode_of(inode_item())
    inode.blame("one")
    inode.blame("two")
    assert inode.row(5, b"x").error == "one"


def test_extents_over_each_other_are_a_defect() -> None:
    inode = inode_of(inode_item())
    inode.add_extent(FileExtent(0, 4096, 8192))
    with pytest.raises(InodeDefect, match="overlap at byte 4096"):
        inode.add_extent(FileExtent(4096, 65536, 4096))
    inode.add_extent(FileExtent(8192, 65536, 4096))
    assert len(inode.extents) == 2


def test_an_inode_may_have_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_inode, "EXTENTS_MAX", 2)
    monkeypatch.setattr(btrfs_inode, "NAMES_MAX", 2)
    inode = inode_of(inode_item())
    for at in (0, 4096):
        inode.add_extent(FileExtent(at, 4096, 4096))
    with pytest.raises(InodeDefect, match="2 extents"):
        inode.add_extent(FileExtent(8192, 4096, 4096))
    inode.add_names([(256, 2, b"a"), (256, 3, b"b")])
    with pytest.raises(InodeDefect, match="2 names"):
        inode.add_names([(256, 4, b"c")])
    value = bytes(60_000)
    for number in range(4):
        inode.add_xattrs(entry(0, b"user.%d" % number, value=value))
    with pytest.raises(InodeDefect, match=str(XATTR_BYTES_MAX)):
        inode.add_xattrs(entry(0, b"user.more", value=value))


def test_a_link_whose_target_is_too_short_is_an_error() -> None:
    inode = inode_of(inode_item(stat.S_IFLNK | 0o777, size=6))
    for target in (b"target", b"target\0", b"target and more"):
        inode.target = target
        assert inode.row(5, b"x").target == b"target"
        assert not inode.row(5, b"x").error
    inode.target = b"targe"
    assert "target of 5" in inode.row(5, b"x").error


# Names.


def test_one_name_and_several() -> None:
    one = name_ref(7, b"name")
    assert parse_refs(256, one) == [(256, 7, b"name")]
    assert parse_refs(256, one + name_ref(8, b"")) == [(256, 7, b"name"), (256, 8, b"")]
    assert parse_refs(256, b"") == []


def test_names_of_a_file_that_has_very_many_say_their_directory_themselves() -> None:
    packed = name_extref(256, 7, b"one") + name_extref(300, 9, b"two")
    assert parse_extrefs(packed) == [(256, 7, b"one"), (300, 9, b"two")]


@pytest.mark.parametrize("cut", [1, 4, 9, 12, 13])
def test_names_that_are_cut_off_are_a_defect(cut: int) -> None:
    with pytest.raises(InodeDefect, match="cut off"):
        parse_refs(256, name_ref(7, b"name")[:cut])
    with pytest.raises(InodeDefect, match="cut off"):
        parse_extrefs(name_extref(256, 7, b"name")[:cut])


def test_attributes_whose_names_have_the_same_hash_share_an_item() -> None:
    packed = entry(0, b"user.one", value=b"1") + entry(0, b"user.two", value=b"")
    assert parse_xattrs(packed) == [(b"user.one", b"1"), (b"user.two", b"")]


@pytest.mark.parametrize("cut", [1, 29, 31, 38])
def test_attributes_that_are_cut_off_are_a_defect(cut: int) -> None:
    with pytest.raises(InodeDefect, match="cut off"):
        parse_xattrs(entry(0, b"user.one", value=b"1")[:cut])


def test_an_entry_of_a_directory() -> None:
    packed = b"before" + entry(300, b"name", kind=2, key_kind=132) + b"behind"
    assert parse_entry(packed, 6, len(packed) - 12) == (300, 132, 2, b"name")
    for size in (0, 29, 33):
        with pytest.raises(InodeDefect, match="cut off"):
            parse_entry(packed, 6, size)
