"""An overlay is the volume as it will be: compared with a volume that was really changed."""

from __future__ import annotations

import random

import pytest

from backplane.file_map.model import ExtentFlag
from storage_node.mapping.ext_overlay import JOURNAL_MAGIC, Overlay
from storage_node.mapping.reader import BytesSource

BLOCK = 1024
BLOCKS = 64
JOURNAL = 40
"""Where copies begin."""


def volume(copies: dict[int, int]) -> tuple[Overlay, bytes]:
    """An overlay, and what it must read as; `copies` is block -> block of the journal << 1 | escaped."""
    generator = random.Random(1)
    content = generator.randbytes(BLOCKS * BLOCK)
    changed = bytearray(content)
    for block, copy in copies.items():
        at = (copy >> 1) * BLOCK
        data = content[at : at + BLOCK]
        if copy & 1:
            data = JOURNAL_MAGIC + data[4:]
        changed[block * BLOCK : (block + 1) * BLOCK] = data
    places = {block: ((copy >> 1) * BLOCK) << 1 | copy & 1 for block, copy in copies.items()}
    return Overlay(BytesSource(content), BLOCK, places), bytes(changed)


COPIES = {5: 40 << 1, 6: 41 << 1, 7: 42 << 1 | 1, 9: 43 << 1, 20: 50 << 1 | 1, 63: 45 << 1}


@pytest.mark.parametrize("seed", range(4))
def test_any_range_reads_as_if_the_copies_were_in_place(seed: int) -> None:
    overlay, changed = volume(COPIES)
    generator = random.Random(seed)
    for _ in range(300):
        begin = generator.randrange(BLOCKS * BLOCK)
        count = generator.randrange(1, min(12 * BLOCK, BLOCKS * BLOCK - begin + 1))
        if generator.random() < 0.4:
            begin = begin // BLOCK * BLOCK
            count = min(BLOCK, BLOCKS * BLOCK - begin)
        assert overlay.read(begin, count) == changed[begin : begin + count], (begin, count)
    assert overlay.size_bytes == BLOCKS * BLOCK


def test_copies_that_lie_side_by_side_are_read_at_once() -> None:
    reads = []

    class Told(BytesSource):
        def read(self, offset: int, count: int) -> bytes:
            reads.append((offset, count))
            return super().read(offset, count)

    source = Told(bytes(BLOCKS * BLOCK))
    overlay = Overlay(source, BLOCK, {block: (block + 35) * BLOCK << 1 for block in (5, 6, 7, 9)})
    overlay.read(5 * BLOCK, 5 * BLOCK)
    assert reads == [(5 * BLOCK, 5 * BLOCK), (40 * BLOCK, 3 * BLOCK), (44 * BLOCK, BLOCK)]


def test_a_byte_is_where_the_newest_copy_of_its_block_is() -> None:
    overlay, _ = volume(COPIES)
    assert overlay.place_of(4 * BLOCK + 100) == 4 * BLOCK + 100
    assert overlay.place_of(6 * BLOCK + 100) == 41 * BLOCK + 100
    assert overlay.place_of(63 * BLOCK) == 45 * BLOCK


def test_a_run_is_cut_where_its_blocks_are_in_the_journal() -> None:
    overlay, _ = volume(COPIES)
    journal = int(ExtentFlag.JOURNAL)
    escaped = journal | int(ExtentFlag.ESCAPED)
    assert list(overlay.cut(4, 7)) == [
        (4, 1, 4 * BLOCK, 0),
        (5, 1, 40 * BLOCK, journal),
        (6, 1, 41 * BLOCK, journal),
        (7, 1, 42 * BLOCK, escaped),
        (8, 1, 8 * BLOCK, 0),
        (9, 1, 43 * BLOCK, journal),
        (10, 1, 10 * BLOCK, 0),
    ]
    assert list(overlay.cut(30, 5)) == [(30, 5, 30 * BLOCK, 0)]
    assert list(overlay.cut(63, 1)) == [(63, 1, 45 * BLOCK, journal)]
