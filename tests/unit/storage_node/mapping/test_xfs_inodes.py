"""All inodes of a volume: chunks, chunks with holes, and what is read of them."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.xfs_forge import INODE_BYTES, UUID, ForgedVolume, sealed
from storage_node.mapping import xfs_inodes
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_inodes import (
    Inodes,
    are_sealed,
    check_inode,
    read_inodes_header,
)
from storage_node.mapping.xfs_superblock import read_geometry

ALL = (1 << 64) - 1


class Watched(BytesSource):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        return super().read(offset, count)


def blocks(
    records: list[tuple[int, int, int]], *, is_sparse: bool = False
) -> tuple[Blocks, Watched]:
    """Return a volume with (first inode, missing parts, free) as its chunks."""
    volume = ForgedVolume()
    volume.incompatible |= 2 * is_sparse
    layout = ">IHHQ" if is_sparse else ">IIQ"
    data = b"".join(
        struct.pack(layout, *([f, m, 0, free] if is_sparse else [f, 0, free]))
        for f, m, free in records
    )
    volume.blocks[2] = volume.tree_block(2, b"IAB3", data, len(records))
    source = Watched(bytes(volume.image()))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, Overlay(), Problems()), source


def test_chunks_that_follow_each_other_are_read_at_once() -> None:
    found, source = blocks([(64, 0, ALL ^ 1), (128, 0, ALL ^ 6), (320, 0, ALL ^ 1 << 63)])
    source.reads.clear()
    pieces = [(first, len(data) // 512, used) for first, data, used in Inodes(found).pieces()]
    assert pieces == [(64, 64, 1), (128, 64, 6), (320, 64, 1 << 63)]
    assert source.reads[2:] == [(64 * 512, 128 * 512), (320 * 512, 64 * 512)]


def test_chunks_without_an_inode_in_use_are_not_read() -> None:
    found, _ = blocks([(64, 0, ALL), (128, 0, 0)])
    assert [first for first, _, _ in Inodes(found).pieces()] == [128]


def test_parts_that_do_not_exist_are_not_read() -> None:
    """Parts 2 to 7 belong to somebody else, and what lies behind them begins in part 8."""
    found, source = blocks([(64, 0xFC, 0)], is_sparse=True)
    source.reads.clear()
    pieces = [(first, len(data) // 512, used) for first, data, used in Inodes(found).pieces()]
    assert pieces == [(64, 8, 0xFF), (96, 32, 0xFFFFFFFF)]
    assert source.reads[2:] == [(64 * 512, 8 * 512), (96 * 512, 32 * 512)]


def test_what_was_read_is_kept_for_the_second_time() -> None:
    found, source = blocks([(64, 0, 0)])
    inodes = Inodes(found)
    first = list(inodes.pieces())
    count = len(source.reads)
    assert list(inodes.pieces()) == first
    assert not any(size == 64 * 512 for _, size in source.reads[count:])


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_inodes, "KEPT_BYTES_MAX", 64 * 512 - 1)
    found, source = blocks([(64, 0, 0)])
    inodes = Inodes(found)
    list(inodes.pieces())
    count = len(source.reads)
    list(inodes.pieces())
    assert (64 * 512, 64 * 512) in source.reads[count:]


@pytest.mark.parametrize("bad", [96, 4090, 1 << 12, 0xFFFFFFF0])
def test_chunks_that_overlap_or_are_outside_are_told(bad: int) -> None:
    found, _ = blocks([(64, 0, 0), (bad, 0, 0)])
    assert [first for first, _, _ in Inodes(found).pieces()] == [64]
    assert len(found.problems.texts()) == 1


def test_a_group_whose_header_is_damaged_is_told() -> None:
    found, _ = blocks([(64, 0, 0)])
    image = bytearray(ForgedVolume().image())
    image[1024:1028] = b"XAGF"
    image[1024:1536] = sealed(image[1024:1536], 312)
    broken = Blocks(BytesSource(bytes(image)), found.geometry, Overlay(), Problems())
    assert list(Inodes(broken).pieces()) == []
    assert broken.problems.texts() == ["header of the inodes of group 0 is not one"]
    with pytest.raises(DamagedError):
        read_inodes_header(broken, 0)
    assert read_inodes_header(found, 0) == (2, 1)


def test_an_inode_has_a_seal_of_its_own() -> None:
    volume = ForgedVolume()
    volume.add_inode(70, 0o100644)
    found, _ = blocks([])
    raw = volume.inodes[70]
    check_inode(found, raw, 70)
    with pytest.raises(DamagedError):
        check_inode(found, raw, 71)
    with pytest.raises(DamagedError):
        check_inode(found, raw[:-1] + b"\1", 70)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_one_checksum_tells_of_each_wrong_seal(count: int) -> None:
    volume = ForgedVolume()
    for number in range(70, 70 + count):
        volume.add_inode(number, 0o100644, size=number)
    data = b"".join(volume.inodes.values())
    assert are_sealed(data, INODE_BYTES, UUID)
    for at in range(0, len(data), 3):
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        assert not are_sealed(bytes(wrong), INODE_BYTES, UUID)


def test_wrong_seals_do_not_make_up_for_each_other() -> None:
    volume = ForgedVolume()
    for number in range(70, 74):
        volume.add_inode(number, 0o100644, size=number)
    right = list(volume.inodes.values())
    unsealed = [raw[:100] + bytes(4) + raw[104:] for raw in right]
    swapped = [right[0], right[1][:100] + right[2][100:], right[2][:100] + right[1][100:], right[3]]
    emptied = [right[0], bytes(512), bytes(512), right[3]]
    for wrong in (unsealed, swapped, emptied):
        assert not are_sealed(b"".join(wrong), INODE_BYTES, UUID)


def test_an_inode_of_another_file_system_is_not_sealed() -> None:
    volume = ForgedVolume()
    volume.add_inode(70, 0o100644)
    volume.add_inode(71, 0o100644)
    for at in range(160, 176):
        other = bytearray(volume.inodes[71])
        other[at] ^= 1
        data = volume.inodes[70] + sealed(other, 100)
        assert not are_sealed(data, INODE_BYTES, UUID)
        assert not are_sealed(data[INODE_BYTES:], INODE_BYTES, UUID)
