"""Logical addresses and their places on the device."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.btrfs_forge import (
    COPY_PLACE,
    DATA_BYTES,
    DATA_LOGICAL,
    DATA_PLACE,
    METADATA_BYTES,
    METADATA_LOGICAL,
    METADATA_PLACE,
    MIB,
    SYSTEM_LOGICAL,
    SYSTEM_PLACE,
    VOLUME_BYTES,
    Forge,
    chunk_item,
)
from storage_node.mapping.btrfs_chunks import (
    DATA,
    DUP,
    METADATA,
    PROFILE_NAMES,
    SYSTEM,
    Chunk,
    ChunkMap,
    parse_chunk,
)
from storage_node.mapping.btrfs_superblock import Superblock, read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError


@pytest.fixture(scope="module")
def superblock() -> Superblock:
    return read_superblock(BytesSource(Forge().finish()))


@pytest.fixture
def chunks(superblock: Superblock) -> ChunkMap:
    known = ChunkMap(superblock)
    known.replace(
        [
            parse_chunk(
                METADATA_LOGICAL,
                chunk_item(METADATA_BYTES, METADATA | DUP, [METADATA_PLACE, COPY_PLACE]),
                superblock,
            ),
            parse_chunk(DATA_LOGICAL, chunk_item(DATA_BYTES, DATA, [DATA_PLACE]), superblock),
        ]
    )
    return known


def test_the_superblock_brings_the_chunks_in_which_the_chunk_tree_lies(
    superblock: Superblock,
) -> None:
    known = ChunkMap(superblock)
    assert list(known) == [Chunk(SYSTEM_LOGICAL, SYSTEM_LOGICAL + MIB, SYSTEM, (SYSTEM_PLACE,))]


def test_an_address_has_as_many_places_as_its_chunk_has_copies(chunks: ChunkMap) -> None:
    at = METADATA_LOGICAL + 8192
    places = (METADATA_PLACE + 8192, COPY_PLACE + 8192)
    assert chunks.places(at, 4096, kind=METADATA) == places
    assert chunks.places(DATA_LOGICAL, 4096, kind=DATA) == (DATA_PLACE,)


def test_a_range_lies_within_one_chunk_of_the_right_kind_or_nowhere(chunks: ChunkMap) -> None:
    last = DATA_LOGICAL + DATA_BYTES - 4096
    assert chunks.places(last, 4096, kind=DATA)
    for start, count in (
        (last, 4097),
        (DATA_LOGICAL - 1, 2),
        (0, 1),
        (DATA_LOGICAL + DATA_BYTES, 1),
        (1 << 63, 1 << 63),
    ):
        assert chunks.places(start, count, kind=DATA) == ()
    assert chunks.places(last, 4096, kind=METADATA | SYSTEM) == ()


def test_chunks_of_a_range_of_addresses(chunks: ChunkMap) -> None:
    def starts(start: int, end: int) -> list[int]:
        return [chunk.start for chunk in chunks.between(start, end)]

    everything = [SYSTEM_LOGICAL, METADATA_LOGICAL, DATA_LOGICAL]
    assert starts(0, 1 << 64) == everything
    assert starts(SYSTEM_LOGICAL + 5, DATA_LOGICAL) == everything[:2]
    assert starts(SYSTEM_LOGICAL + MIB, METADATA_LOGICAL) == []
    assert starts(METADATA_LOGICAL + 1, METADATA_LOGICAL + 2) == [METADATA_LOGICAL]
    assert starts(DATA_LOGICAL + DATA_BYTES, 1 << 64) == []


@pytest.mark.parametrize(("bit", "name"), PROFILE_NAMES.items())
def test_a_profile_of_several_devices_is_refused_by_name(
    superblock: Superblock, bit: int, name: str
) -> None:
    with pytest.raises(UnsupportedError, match=name):
        parse_chunk(DATA_LOGICAL, chunk_item(MIB, DATA | bit, [DATA_PLACE] * 2), superblock)


@pytest.mark.parametrize("kind", [0, DUP, DATA | 1 << 11, 1 << 48 | DATA])
def test_a_type_that_nobody_knows_is_refused(superblock: Superblock, kind: int) -> None:
    with pytest.raises(UnsupportedError, match="type"):
        parse_chunk(DATA_LOGICAL, chunk_item(MIB, kind, [DATA_PLACE] * 2), superblock)


def test_a_chunk_on_another_device_is_refused(superblock: Superblock) -> None:
    with pytest.raises(UnsupportedError, match="device 2"):
        parse_chunk(DATA_LOGICAL, chunk_item(MIB, DATA, [DATA_PLACE], device=2), superblock)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (chunk_item(MIB, DATA, [DATA_PLACE, DATA_PLACE + MIB]), "2 stripes"),
        (chunk_item(MIB, DATA | DUP, [DATA_PLACE]), "1 stripes"),
        (chunk_item(MIB, DATA, []), "0 stripes"),
        (chunk_item(MIB, DATA, [DATA_PLACE])[:-1], "1 stripes"),
        (chunk_item(MIB, DATA, [DATA_PLACE])[:40], "too short"),
        (chunk_item(MIB, DATA, [VOLUME_BYTES - MIB + 4096]), "beyond the device"),
        (chunk_item(1 << 63, DATA, [0]), "beyond the device"),
        (chunk_item(0, DATA, [DATA_PLACE]), "0 bytes"),
        (chunk_item(MIB + 1, DATA, [DATA_PLACE]), "bytes"),
        (chunk_item(MIB, DATA, [DATA_PLACE + 512]), "bytes"),
    ],
)
def test_a_chunk_that_cannot_be_is_damage(superblock: Superblock, item: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        parse_chunk(DATA_LOGICAL, item, superblock)


@pytest.mark.parametrize(
    ("start", "item"),
    [
        (DATA_LOGICAL + MIB, chunk_item(MIB, DATA, [7 * MIB])),
        (1 << 40, chunk_item(2 * MIB, DATA, [DATA_PLACE - MIB])),
        (1 << 40, chunk_item(MIB, DATA | DUP, [6 * MIB, 6 * MIB + 65536])),
    ],
)
def test_chunks_that_lie_over_each_other_are_damage(
    chunks: ChunkMap, superblock: Superblock, start: int, item: bytes
) -> None:
    with pytest.raises(DamagedError, match="overlap"):
        chunks.replace([parse_chunk(start, item, superblock)])


def test_system_chunks_that_are_cut_off_or_have_another_key_are_damage(
    superblock: Superblock,
) -> None:
    packed = superblock.system_chunks
    for wrong in (
        packed[:-1],
        packed + packed[:20],
        struct.pack("<QBQ", 256, 229, 0) + packed[17:],
    ):
        with pytest.raises(DamagedError, match="chunk"):
            ChunkMap(superblock._replace(system_chunks=wrong))
