"""The digests of what was put back: what the cartridge has, record by record, against what the target has now.

After each list of a restore of files, the tape node reads the records again and sums the pieces that were taken of
them; the disk node sums the blocks they went to.  The copy itself has carried checksums all the way; this compares the
two ends, and so also whether each piece went where it belongs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from backplane.errors import MediumError, NotFoundError
from backplane.wire.messages import NodeReply, TapeSample, ViewSample
from controller.catalog.store import PartRow, VolumeRow
from controller.core.items import BACKOFF_BASE_S, pause
from controller.core.part_reader import CartridgeLostError, PartReader
from controller.core.planner import PartPicks
from controller.core.procedure import Ask, Step
from controller.core.samples import pack_ranges, unpack_digests

RANGE: Final = struct.Struct(">QII")
BYTES_PER_CHECK: Final = 32 * 1024 * 1024
RANGES_PER_CHECK: Final = 8192
RECORDS_BYTES_PER_CHECK: Final = 128 * 1024 * 1024
"""Records are read whole, however little of them is compared."""

NARROWED_MAX: Final = 64
"""More pieces than this that differ at once are believed to differ from end to end."""

LOADS_MAX: Final = 5
"""How often a cartridge is loaded again for one reading, because its node has restarted."""

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
    """Compare what was taken of the records `first` .. `end` - 1; returns the extents (LBA, blocks) that differ.

    What cannot be read, on either side, differs.
    """
    wrong: list[tuple[int, int]] = []
    for batch in _batches(content, first, end):
        waiting = [batch]
        while waiting:
            some = waiting.pop()
            differing = yield from _differing(reader, part, volume, some, content.block_bytes)
            if differing is None:
                # One of them cannot be read; the others can be compared.
                half = len(some) // 2
                waiting += [some[half:], some[:half]]
            elif len(differing) > NARROWED_MAX:
                wrong += _extents(differing, content.block_bytes)
            else:
                wrong += _extents(
                    [each for each in differing if each[3] == content.block_bytes],
                    content.block_bytes,
                )
                halves = list(_halves(differing, content.block_bytes))
                waiting += [halves] if halves else []
    return wrong


def _differing(
    reader: PartReader,
    part: PartRow,
    volume: VolumeRow,
    batch: list[Piece],
    block_bytes: int,
) -> Step:
    """Return the pieces that differ; None if one of several cannot be read."""
    try:
        expected = yield from on_tape(reader, part, batch)
        found = yield from _on_disk(volume, batch, block_bytes)
    except MediumError:
        return batch if len(batch) == 1 else None
    return [
        piece for piece, left, right in zip(batch, expected, found, strict=True) if left != right
    ]


def _halves(pieces: Sequence[Piece], block_bytes: int) -> Iterator[Piece]:
    """Yield pieces cut in two, those of one block left out: a file is not to blame for its neighbour."""
    for record, offset, lba, count in pieces:
        blocks = count // block_bytes
        if blocks > 1:
            left = blocks // 2 * block_bytes
            yield record, offset, lba, left
            yield record, offset + left, lba + blocks // 2, count - left


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


def on_tape(reader: PartReader, part: PartRow, batch: list[Piece]) -> Step:
    """Return the checksums of pieces as the cartridge has them; raises `MediumError` if one cannot be read."""
    ranges = b"".join(
        RANGE.pack(part.data_object + record, offset, count) for record, offset, _, count in batch
    )
    for tries in range(1, LOADS_MAX + 1):
        try:
            reply = yield Ask(
                node=reader.node,
                make=lambda request: TapeSample(
                    request=request, drive=reader.plan["drive"], ranges=ranges
                ),
                what="read the restored records once more",
            )
        except NotFoundError:
            # Its node has restarted and the drive is empty.
            yield from pause(reader.desk, reader.job, BACKOFF_BASE_S * tries)
            yield from reader.load(part)
            continue
        assert isinstance(reply, NodeReply)
        return unpack_digests(reply.digests, count=len(batch), node=reader.node)
    raise CartridgeLostError(f"cartridge {part.tag} does not stay in its drive")


def _on_disk(volume: VolumeRow, batch: list[Piece], block_bytes: int) -> Step:
    """Return the checksums of what was restored; raises `MediumError` if it cannot be read."""
    extents = pack_ranges(_extents(batch, block_bytes))
    reply = yield Ask(
        node=volume.node,
        make=lambda request: ViewSample(
            request=request, designator=volume.designator, extents=extents
        ),
        what="read what was restored",
    )
    assert isinstance(reply, NodeReply)
    return unpack_digests(reply.digests, count=len(batch), node=volume.node)


def _extents(batch: Sequence[Piece], block_bytes: int) -> list[tuple[int, int]]:
    return [(lba, count // block_bytes) for _, _, lba, count in batch]
