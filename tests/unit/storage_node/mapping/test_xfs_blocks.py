"""Blocks of metadata: seals, and what a log has changed of them."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.xfs_forge import UUID, ForgedVolume, sealed
from storage_node.mapping.limits import REASONS_MAX
from storage_node.mapping.reader import READ_BYTES_MAX, BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import SHORT_TREE, Blocks, Overlay, Problems
from storage_node.mapping.xfs_superblock import read_geometry

BYTE = 4096


def blocks(block: bytes, overlay: Overlay | None = None, *, version: int = 5) -> Blocks:
    volume = ForgedVolume(version=version)
    volume.blocks[1] = block
    source = BytesSource(bytes(volume.image()))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, overlay or Overlay(), Problems())


def block(*, place: int = 8, uuid: bytes = UUID, owner: int = 0) -> bytes:
    raw = bytearray(4096)
    struct.pack_into(">4s12xQ8x16sI", raw, 0, b"AB3B", place, uuid, owner)
    return sealed(raw, 52)


def read(found: Blocks) -> bytes:
    return found.read_sealed(BYTE, 4096, SHORT_TREE, 0, "the block")


def test_a_block_with_its_seal_is_believed() -> None:
    assert read(blocks(block())) == block()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (block(place=9), "another place"),
        (block(uuid=bytes(16)), "another file system"),
        (block(owner=1), "belongs to 1"),
        (block()[:-1] + b"\1", "checksum"),
    ],
)
def test_a_block_is_not_believed_if_one_thing_is_wrong(bad: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        read(blocks(bad))


def test_version_4_has_no_seals() -> None:
    assert read(blocks(bytes(4096), version=4)) == bytes(4096)


def test_an_overlay_replaces_whole_basic_blocks_wherever_a_read_begins() -> None:
    overlay = Overlay()
    overlay.put(1024, b"a" * 512 + b"b" * 512)
    data = bytes(4096)
    assert overlay.patch(0, data) == bytes(1024) + b"a" * 512 + b"b" * 512 + bytes(2048)
    assert overlay.patch(1500, bytes(100)) == b"a" * 36 + b"b" * 64
    assert overlay.patch(1000, bytes(30)) == bytes(24) + b"a" * 6
    assert overlay.patch(2040, bytes(20)) == b"b" * 8 + bytes(12)
    assert overlay.covers(1535, 1)
    assert overlay.covers(0, 1025)
    assert not overlay.covers(0, 1024)
    assert not overlay.covers(2048, 512)
    assert overlay.whole(1024, 1024) == b"a" * 512 + b"b" * 512
    assert overlay.whole(1024, 1025) is None


def test_a_block_that_a_log_changed_need_not_have_its_checksum() -> None:
    overlay = Overlay()
    overlay.put(BYTE + 1024, b"x" * 512)
    found = blocks(block(), overlay)
    assert read(found)[1024:1536] == b"x" * 512
    assert found.problems.texts() == []
    # But it must still be the one that belongs there.
    overlay.put(BYTE, block(place=9)[:512])
    with pytest.raises(DamagedError, match="another place"):
        read(found)


def test_damage_from_before_the_log_is_told() -> None:
    overlay = Overlay()
    overlay.put(BYTE + 1024, b"x" * 512)
    found = blocks(block()[:-1] + b"\1", overlay)
    read(found)
    assert found.problems.texts() == ["the block failed its checksum before the log was replayed"]


def test_what_lay_there_before_may_be_anything() -> None:
    overlay = Overlay()
    overlay.put(BYTE, block()[:512])
    found = blocks(b"data of a file" * 300, overlay)
    read(found)
    assert found.problems.texts() == []


def test_large_reads_are_made_of_small_ones() -> None:
    counts = []

    class Watched(BytesSource):
        def read(self, offset: int, count: int) -> bytes:
            counts.append(count)
            return super().read(offset, count)

    source = Watched(bytes(READ_BYTES_MAX + 10))
    geometry = blocks(block()).geometry
    found = Blocks(source, geometry, Overlay(), Problems())
    assert found.read(5, READ_BYTES_MAX + 5) == bytes(READ_BYTES_MAX + 5)
    assert counts == [READ_BYTES_MAX, 5]


def test_problems_are_counted_when_they_are_many() -> None:
    problems = Problems()
    for number in range(REASONS_MAX + 5):
        problems.add(f"{number}")
        problems.add("0")
    others = Problems()
    others.add_all(problems)
    assert problems.texts()[-2:] == [f"{REASONS_MAX - 1}", "and 5 more"]
    assert len(others.texts()) == REASONS_MAX + 1
