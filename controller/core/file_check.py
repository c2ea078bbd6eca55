"""The digests of what was put back: what the cartridge has, record by record, against what the target has now.

After each list of a restore of files, the tape node reads the records again and sums the pieces that were taken of
them; the disk node sums the blocks they went to.  The copy itself has carried checksums all the way; this compares the
two ends, and so also whether each piece went where it belongs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from backplane.errors import MediumError
from backplane.wire.messages import NodeReply, TapeSample, ViewSample
from controller.catalog.store import PartRow, VolumeRow
from controller.core.part_reader import PartReader
from controller.core.planner import PartPicks
from controller.core.procedure import Ask, Step
from controller.core.samples import pack_ranges, unpack_digests

RANGE: Final = struct.Struct(">QII")
BYTES_PER_CHECK: Final = 32 * 1024 * 1024
RANGES_PER_CHECK: Final = 8192
RECORDS_BYTES_PER_CHECK: Final = 128 * 1024 * 1024
"""Records are read whole, however little of them is compared."""

Piece = tuple[int, int, int, int]
"""(record of the part, first byte of it, LBA, bytes)."""


def check_list(
    reader: PartReader,
    part: PartRow,
    content: PartPicks,
    volume: VolumeRow,
    *,
    first: int,
    end: int,
) -> Step:
    """Compare what was taken of the records `first` .. `end` - 1; returns the extents (LBA, blocks) that differ."""
    wrong: list[tuple[int, int]] = []
    for batch in _batches(content, first, end):
        yield from _check(reader, part, content, volume, batch, wrong)
    return wrong


def _pieces(content: PartPicks, first: int, end: int) -> Iterator[Piece]:
    """Yield what was taken, no piece of it in two records, none so long that it needs a check of its own."""
    size = content.record_bytes
    for start, lba, count in content.pieces(first, end):
        while count:
            record, offset = divmod(start, size)
            taken = min(count, size - offset)
            yield record, offset, lba, taken
            start, lba, count = start + taken, lba + taken // content.block_bytes, count - taken


def _batches(content: PartPicks, first: int, end: int) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    total = records = 0
    last = -1
    for piece in _pieces(content, first, end):
        total += piece[3]
        records += content.record_bytes if piece[0] != last else 0
        is_full = len(batch) == RANGES_PER_CHECK or records > RECORDS_BYTES_PER_CHECK
        if batch and (is_full or total > BYTES_PER_CHECK):
            yield batch
            batch, total, records = [], piece[3], content.record_bytes
        batch.append(piece)
        last = piece[0]
    if batch:
        yield batch


def _check(
    reader: PartReader,
    part: PartRow,
    content: PartPicks,
    volume: VolumeRow,
    batch: list[Piece],
    wrong: list[tuple[int, int]],
) -> Step:
    on_tape = b"".join(
        RANGE.pack(part.data_object + record, offset, count) for record, offset, _, count in batch
    )
    on_disk = pack_ranges([(lba, count // content.block_bytes) for _, _, lba, count in batch])
    reply = yield Ask(
        node=reader.node,
        make=lambda request: TapeSample(
            request=request, drive=reader.plan["drive"], ranges=on_tape
        ),
        what="read the restored records once more",
    )
    assert isinstance(reply, NodeReply)
    expected = unpack_digests(reply.digests, count=len(batch), node=reader.node)
    try:
        reply = yield Ask(
            node=volume.node,
            make=lambda request: ViewSample(
                request=request, designator=volume.designator, extents=on_disk
            ),
            what="read what was restored",
        )
        assert isinstance(reply, NodeReply)
        found = unpack_digests(reply.digests, count=len(batch), node=volume.node)
    except MediumError:
        found = [-1] * len(batch)
    for (_, _, lba, count), left, right in zip(batch, expected, found, strict=True):
        if left != right:
            wrong.append((lba, count // content.block_bytes))
