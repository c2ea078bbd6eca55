"""Extents: runs of logical blocks, and the algebra of sorted runs.

A *run list* is a tuple of extents in ascending order that neither overlap nor touch, without empty ones.
`merge` makes one from anything; all other functions want run lists and return them (`split` cuts on purpose, so
its pieces touch).  Everything is linear in the number of extents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from backplane.errors import LocalProtocolError


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`blocks` logical blocks from `lba` up."""

    lba: int
    blocks: int

    def __post_init__(self) -> None:
        if self.lba < 0 or self.blocks < 0:
            raise LocalProtocolError(f"no extent: LBA {self.lba}, {self.blocks} blocks")

    @property
    def end_lba(self) -> int:
        """The first LBA after the extent."""
        return self.lba + self.blocks

    def __contains__(self, lba: int) -> bool:
        return self.lba <= lba < self.end_lba

    def overlaps(self, other: Extent) -> bool:
        """Say whether a block belongs to both."""
        return max(self.lba, other.lba) < min(self.end_lba, other.end_lba)

    def intersect(self, other: Extent) -> Extent | None:
        """Return the blocks that belong to both; None if there are none."""
        lba = max(self.lba, other.lba)
        end = min(self.end_lba, other.end_lba)
        return Extent(lba, end - lba) if lba < end else None

    def split_at(self, blocks: int) -> tuple[Extent, Extent]:
        """Return the first `blocks` blocks and the rest."""
        assert 0 <= blocks <= self.blocks
        return Extent(self.lba, blocks), Extent(self.lba + blocks, self.blocks - blocks)

    def pieces(self, blocks_max: int) -> Iterator[Extent]:
        """Yield the extent in pieces of at most `blocks_max` blocks."""
        assert blocks_max > 0
        for lba in range(self.lba, self.end_lba, blocks_max):
            yield Extent(lba, min(blocks_max, self.end_lba - lba))


RunList: TypeAlias = tuple[Extent, ...]


def total_blocks(extents: Iterable[Extent]) -> int:
    """Return the number of blocks (counted twice where extents overlap)."""
    return sum(extent.blocks for extent in extents)


def is_run_list(extents: Sequence[Extent]) -> bool:
    """Say whether the extents are sorted, apart from each other, and not empty."""
    gaps = all(a.end_lba < b.lba for a, b in pairwise(extents))
    return gaps and all(extent.blocks for extent in extents)


def merge(*groups: Iterable[Extent], gap_blocks_max: int = 0) -> RunList:
    """Return the union as a run list; gaps of at most `gap_blocks_max` blocks are filled."""
    assert gap_blocks_max >= 0
    runs: list[Extent] = []
    for extent in sorted(extent for group in groups for extent in group if extent.blocks):
        if runs and extent.lba <= runs[-1].end_lba + gap_blocks_max:
            last = runs[-1]
            runs[-1] = Extent(last.lba, max(last.end_lba, extent.end_lba) - last.lba)
        else:
            runs.append(extent)
    return tuple(runs)


def intersect(left: Sequence[Extent], right: Sequence[Extent]) -> RunList:
    """Return the blocks that are in both run lists."""
    found: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        both = left[i].intersect(right[j])
        if both:
            found.append(both)
        if left[i].end_lba <= right[j].end_lba:
            i += 1
        else:
            j += 1
    return tuple(found)


def subtract(left: Sequence[Extent], right: Sequence[Extent]) -> RunList:
    """Return the blocks of the left run list that are not in the right one."""
    found: list[Extent] = []
    j = 0
    for extent in left:
        lba = extent.lba
        while j < len(right) and right[j].end_lba <= lba:
            j += 1
        k = j
        while k < len(right) and right[k].lba < extent.end_lba:
            if right[k].lba > lba:
                found.append(Extent(lba, right[k].lba - lba))
            lba = max(lba, right[k].end_lba)
            k += 1
        if lba < extent.end_lba:
            found.append(Extent(lba, extent.end_lba - lba))
        j = max(j, k - 1)
    return tuple(found)


def split(extents: Iterable[Extent], blocks_max: int) -> Iterator[Extent]:
    """Yield the extents in pieces of at most `blocks_max` blocks."""
    for extent in extents:
        yield from extent.pieces(blocks_max)


def split_off(extents: Sequence[Extent], blocks: int) -> tuple[RunList, RunList]:
    """Return the first `blocks` blocks of a run list, and the rest."""
    head: list[Extent] = []
    for index, extent in enumerate(extents):
        if blocks < extent.blocks:
            first, rest = extent.split_at(blocks)
            if first.blocks:
                head.append(first)
            return tuple(head), (rest, *extents[index + 1 :])
        head.append(extent)
        blocks -= extent.blocks
    return tuple(head), ()
