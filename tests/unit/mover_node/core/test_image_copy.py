"""13h tape image copy (extended-copy 5.9)."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.scsi import segment as seg
from mover_node.streams.memory import FILEMARK, MemoryTape


def restore(
    count: int, *, lba: int = 0, length: int = 4096, **more: Any
) -> seg.StreamToBlockOffset:
    return seg.StreamToBlockOffset(
        **{"source_cscd_descriptor_id": 0, "destination_cscd_descriptor_id": 1, **more},
        stream_device_transfer_length=length,
        number_of_bytes=count,
        block_device_logical_block_address=lba,
    )


def inline(
    count: int, *, length: int, offset: int = 0, to: int = 0, **more: Any
) -> seg.InlineToStream:
    return seg.InlineToStream(
        destination_cscd_descriptor_id=to,
        stream_device_transfer_length=length,
        inline_data_offset=offset,
        inline_data_number_of_bytes=count,
        **more,
    )


def records(tape: MemoryTape) -> list[int]:
    return [len(o) if isinstance(o, bytes) else 0 for o in tape.objects]


IMAGE = [b"label", FILEMARK, bytes(1000), bytes(17), FILEMARK, FILEMARK, b"after"]


@pytest.mark.parametrize(("count", "copied"), [(0, 7), (1, 2), (2, 6), (3, 7)])
def test_an_image_copy_takes_records_and_filemarks_as_they_are(
    bench: Any, count: int, copied: int
) -> None:
    """13h: until COUNT filemarks in a row, or the end of data."""
    source, target = MemoryTape(IMAGE), MemoryTape()
    bench.tape(source)
    bench.tape(target)
    ended = bench.run(
        seg.TapeImageCopy(
            source_cscd_descriptor_id=0, destination_cscd_descriptor_id=1, count=count
        )
    )
    assert ended.is_good
    assert target.objects == IMAGE[:copied]
    assert source.position == copied


def test_an_image_copy_has_no_residual(bench: Any) -> None:
    bench.tape(MemoryTape(IMAGE))
    bench.tape(MemoryTape(warning_bytes=500))
    segment = seg.TapeImageCopy(source_cscd_descriptor_id=0, destination_cscd_descriptor_id=1)
    sense = bench.fail(segment)
    assert (sense.asc, sense.ascq, sense.information) == (0x0D, 0x01, 0)
