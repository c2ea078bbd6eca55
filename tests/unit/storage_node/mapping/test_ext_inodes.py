"""Tables of inodes: read in bulk, each part once, and remembered in three ways."""

from __future__ import annotations

import pytest

from backplane.testing.ext_forge import make_descriptor, make_volume
from storage_node.mapping import ext_inodes
from storage_node.mapping.ext_groups import Groups
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError

GDT_CSUM = 0x10
METADATA_CSUM = 0x400
GROUP_INODES = 2048
GROUPS = 4
FIELDS = {
    "blocks": 1 + GROUPS * 1024,
    "group_blocks": 1024,
    "group_clusters": 1024,
    "group_inodes": GROUP_INODES,
    "inodes": GROUPS * GROUP_INODES,
}
"""Four groups with 2,048 inodes of 256 bytes: two segments each."""


class Counted(BytesSource):
    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.reads = 0

    def read(self, offset: int, count: int) -> bytes:
        self.reads += 1
        return super().read(offset, count)


def table_of(*, unused: int = 0, read_only: int = METADATA_CSUM) -> tuple[InodeTable, Counted]:
    """A table in which each inode has its number in all its words; no checksums of inodes."""
    content = make_volume(FIELDS["blocks"] * 1024, **FIELDS, read_only=read_only, incompatible=0x80)
    for group in range(GROUPS):
        first = 1 + group * 1024
        descriptor = make_descriptor(group, inode_table=first + 16, unused_inodes=unused)
        content[2048 + group * 64 : 2048 + group * 64 + 64] = descriptor
        for index in range(GROUP_INODES):
            at = (first + 16) * 1024 + index * 256
            number = group * GROUP_INODES + index + 1
            content[at : at + 256] = number.to_bytes(4, "little") * 64
    source = Counted(content)
    superblock = read_superblock(source)
    groups = Groups(superblock, source)
    superblock = superblock._replace(read_only=0)
    source.reads = 0
    return InodeTable(superblock, groups, source), source


def test_every_inode_is_found_and_each_segment_is_read_once() -> None:
    table, source = table_of()
    for number in range(1, GROUPS * GROUP_INODES + 1):
        assert table.read(number) == number.to_bytes(4, "little") * 64
    assert source.reads == GROUPS * 2
    assert source.read(table.byte_of(5000), 4) == (5000).to_bytes(4, "little")


@pytest.mark.parametrize("number", [0, GROUPS * GROUP_INODES + 1, 1 << 32, -1])
def test_there_are_no_other_inodes(number: int) -> None:
    table, source = table_of()
    with pytest.raises(DamagedError, match="there is no inode"):
        table.read(number)
    assert source.reads == 0


@pytest.mark.parametrize("unused", [100, 1500, 2048])
def test_inodes_that_were_never_in_use_are_not_read(unused: int) -> None:
    table, source = table_of(unused=unused)
    used = GROUP_INODES - unused
    for _ in range(3):
        for number in range(1, GROUP_INODES + 1):
            if number <= used:
                assert table.read(number) == number.to_bytes(4, "little") * 64
            else:
                with pytest.raises(DamagedError, match="never in use"):
                    table.read(number)
    assert source.reads == -(-used // 1024)


def test_an_inode_of_a_damaged_group_says_so() -> None:
    table, _ = table_of()
    table._groups.damage[1] = "of a reason"
    with pytest.raises(DamagedError, match="in group 1: of a reason"):
        table.read(GROUP_INODES + 1)


def test_an_inode_that_fails_its_checksum_says_so() -> None:
    table, _ = table_of()
    table._seed = 5
    with pytest.raises(DamagedError, match="its inode fails its checksum"):
        table.read(1)


def test_older_chunks_are_compressed_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few chunks, all inodes are still found; only without room for compressed ones are they reread."""
    monkeypatch.setattr(ext_inodes, "PLAIN_CHUNKS_MAX", 10)
    table, source = table_of()
    everything = [*range(1, GROUPS * GROUP_INODES + 1, 100)] * 3
    for number in everything:
        assert table.read(number) == number.to_bytes(4, "little") * 64
    assert source.reads <= GROUPS * 2 + 2
    assert 0 < table._packed_bytes < 10_000 * GROUPS * GROUP_INODES // 128
    monkeypatch.setattr(ext_inodes, "PACKED_BYTES_MAX", 0)
    table, source = table_of()
    for number in everything:
        assert table.read(number) == number.to_bytes(4, "little") * 64
    assert source.reads > GROUPS * 2 + 2
    assert len(table._newest) + len(table._older) <= 20
