"""Items of extents: what they mean, and what they cannot."""

from __future__ import annotations

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent
from backplane.testing.btrfs_forge import (
    DATA_BYTES,
    DATA_LOGICAL,
    DATA_PLACE,
    METADATA_LOGICAL,
    Forge,
    extent_item,
    inline_extent,
    used_item,
)
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.btrfs_extent import ExtentReader, InodeDefect
from storage_node.mapping.reader import BytesSource

KIB = 1024
SHARED_AT = DATA_LOGICAL + 64 * KIB
LEAF_PLACE = 1 << 20
AT = 300


@pytest.fixture(scope="module")
def extents() -> ExtentReader:
    forge = Forge()
    forge.tree(5, [])
    forge.extent_items = [((SHARED_AT, 168, 4096), used_item(2))]
    reader = BtrfsReader(BytesSource(forge.finish()))
    return ExtentReader(reader._chunks, reader._read_space(), 4096)


def read(
    extents: ExtentReader, item: bytes, *, file_byte: int = 0, is_shared: bool = False
) -> FileExtent | None:
    """Read an item as it lies in a leaf."""
    data = bytes(AT) + item + b"\xff" * 99
    return extents.read(file_byte, data, AT, len(item), LEAF_PLACE, is_shared=is_shared)


def test_a_regular_extent_is_a_part_of_what_is_stored(extents: ExtentReader) -> None:
    item = extent_item(DATA_LOGICAL + 4096, 8192, disk_bytes=65536, offset=4096)
    assert read(extents, item, file_byte=12288) == FileExtent(12288, DATA_PLACE + 8192, 8192)


def test_an_extent_without_an_address_is_a_hole(extents: ExtentReader) -> None:
    assert read(extents, extent_item(0, 1 << 40)) is None


def test_a_preallocated_extent_is_unwritten(extents: ExtentReader) -> None:
    found = read(extents, extent_item(DATA_LOGICAL, 8192, kind=2))
    assert found == FileExtent(0, DATA_PLACE, 8192, ExtentFlag.UNWRITTEN)


@pytest.mark.parametrize(("number", "name"), [(1, "zlib"), (2, "lzo"), (3, "zstd")])
def test_a_compressed_extent_is_stored_as_a_whole(
    extents: ExtentReader, number: int, name: str
) -> None:
    item = extent_item(
        DATA_LOGICAL, 8192, disk_bytes=4096, offset=16384, raw_bytes=131072, compression=number
    )
    flags = ExtentFlag.COMPRESSED
    expected = FileExtent(4096, DATA_PLACE, 8192, flags, 4096, 131072, 16384, name)
    assert read(extents, item, file_byte=4096) == expected


def test_an_inline_extent_lies_in_the_leaf(extents: ExtentReader) -> None:
    place = LEAF_PLACE + AT + 21
    assert read(extents, inline_extent(b"abc")) == FileExtent(0, place, 3, ExtentFlag.INLINE)
    packed = inline_extent(b"packed", raw_bytes=3000, compression=3)
    flags = ExtentFlag.INLINE | ExtentFlag.COMPRESSED
    assert read(extents, packed) == FileExtent(0, place, 3000, flags, 6, 3000, 0, "zstd")
    assert read(extents, inline_extent(b"")) is None


def test_what_is_shared_is_said_by_the_leaf_or_by_the_extent(extents: ExtentReader) -> None:
    for item, is_shared, expected in (
        (extent_item(DATA_LOGICAL, 4096), False, 0),
        (extent_item(DATA_LOGICAL, 4096), True, ExtentFlag.SHARED),
        (extent_item(SHARED_AT, 4096), False, ExtentFlag.SHARED),
        (extent_item(SHARED_AT, 4096, kind=2), True, ExtentFlag.SHARED | ExtentFlag.UNWRITTEN),
        (inline_extent(b"abc"), True, ExtentFlag.SHARED | ExtentFlag.INLINE),
    ):
        found = read(extents, item, is_shared=is_shared)
        assert found is not None
        assert found.flags == expected


def test_what_is_encrypted_says_so(extents: ExtentReader) -> None:
    found = read(extents, extent_item(DATA_LOGICAL, 4096, encryption=1))
    assert found is not None
    assert found.flags == ExtentFlag.ENCRYPTED


LAST = DATA_LOGICAL + DATA_BYTES - 4096


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"", "0 bytes"),
        (extent_item(DATA_LOGICAL, 4096)[:20], "20 bytes"),
        (extent_item(DATA_LOGICAL, 4096)[:-1], "52 bytes"),
        (extent_item(DATA_LOGICAL, 4096) + b"x", "54 bytes"),
        (extent_item(DATA_LOGICAL, 4096, kind=3), "type 3"),
        (extent_item(DATA_LOGICAL, 4096, other=1), "encoding 1"),
        (extent_item(0, 4096, kind=2), "in no chunk"),
        (extent_item(DATA_LOGICAL + 512, 4096), "whole sectors"),
        (extent_item(DATA_LOGICAL, 4096, disk_bytes=5000), "whole sectors"),
        (extent_item(DATA_LOGICAL, 4096, disk_bytes=8192, offset=1), "whole sectors"),
        (extent_item(DATA_LOGICAL, 4095, disk_bytes=4096), "whole sectors"),
        (extent_item(DATA_LOGICAL, 0, disk_bytes=4096), "whole sectors"),
        (extent_item(DATA_LOGICAL, 1 << 63, disk_bytes=4096), "bytes"),
        (extent_item(DATA_LOGICAL, 8192, disk_bytes=4096), "beyond what is stored"),
        (extent_item(DATA_LOGICAL, 4096, disk_bytes=4096, offset=4096), "beyond what is stored"),
        (extent_item(LAST, 8192), "in no chunk"),
        (extent_item(METADATA_LOGICAL, 4096), "in no chunk"),
        (extent_item(1 << 62, 4096), "in no chunk"),
        (extent_item(DATA_LOGICAL, 4096, compression=4), "compression 4"),
        (extent_item(DATA_LOGICAL, 4096, kind=2, compression=1), "compressed"),
        (extent_item(DATA_LOGICAL, 8192, compression=1, raw_bytes=4096), "what is compressed"),
        (extent_item(DATA_LOGICAL, 4096, compression=1, raw_bytes=1 << 21), "compressed bytes"),
        (
            extent_item(DATA_LOGICAL, 4096, disk_bytes=1 << 21, compression=1, raw_bytes=4096),
            "compressed bytes",
        ),
        (inline_extent(b"abc", raw_bytes=4), "has 3"),
        (inline_extent(b"abc", raw_bytes=0, compression=1), "compressed bytes"),
        (inline_extent(b"abc", raw_bytes=1 << 40, compression=1), "compressed bytes"),
        (inline_extent(b"abc", raw_bytes=9, compression=200), "compression 200"),
    ],
)
def test_what_an_extent_cannot_be_is_a_defect_of_its_file(
    extents: ExtentReader, item: bytes, reason: str
) -> None:
    with pytest.raises(InodeDefect, match=reason):
        read(extents, item)


def test_an_inline_extent_is_the_beginning_of_a_file(extents: ExtentReader) -> None:
    with pytest.raises(InodeDefect, match="inline extent at byte 4096"):
        read(extents, inline_extent(b"abc"), file_byte=4096)


def test_an_extent_begins_at_a_sector_of_its_file(extents: ExtentReader) -> None:
    with pytest.raises(InodeDefect, match="whole sectors"):
        read(extents, extent_item(DATA_LOGICAL, 4096), file_byte=100)
    with pytest.raises(InodeDefect, match="4096 bytes"):
        read(extents, extent_item(DATA_LOGICAL, 4096), file_byte=(1 << 63) - 4096)
