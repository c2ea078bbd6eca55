"""From where a file's content was to where another file has room for it.  Pure.

    backup     file 0 ....... 8192 ...... 16384        blocks 100, 101, 7, 8
    prepared   file 0 .. 4096 ................ 16384   blocks 55, 90, 91, 92

                moves     (7, 91, 2) (100, 55, 1) (101, 90, 1)

The prepared file is wholly made of plain blocks of its own, and at least as long; the backup's may have holes, which
the prepared one has as zeros already.  Whatever else it is, no move leads out of the prepared file's own blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from backplane.errors import RefusedError
from backplane.file_map.content import pieces, refuse
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns

GROWTH_BYTES_MAX: Final = 64 * 1024
"""How much longer a prepared file is than its content: it ends with a block of the largest file systems."""

_READABLE: Final = int(ExtentFlag.UNWRITTEN | ExtentFlag.SHARED)
"""Blocks of a backup that others own as well are as good to read as any."""


class ContentRun(NamedTuple):
    """Some bytes of a file, and where they lie."""

    file_byte: int
    byte_count: int
    volume_byte: int


class Move(NamedTuple):
    """Blocks of the backup, and where they go."""

    lba: int
    target_lba: int
    blocks: int


def refuse_source(row: FileRow, *, block_bytes: int) -> str:
    """Say why the content of a file of a backup cannot be copied block by block, or nothing."""
    if reason := refuse(row):
        return reason
    flags = 0
    for extent in row.extents:
        flags |= extent.flags
    if flags & ~_READABLE:
        return f"its content is not plain ({_words(flags & ~_READABLE)})"
    for piece in content_of(row):
        is_last = piece.file_byte + piece.byte_count == row.size
        if (
            piece.file_byte % block_bytes
            or piece.volume_byte % block_bytes
            or (piece.byte_count % block_bytes and not is_last)
        ):
            return "its blocks are smaller than those of the volume"
    return ""


def refuse_target(row: FileRow, *, size: int, block_bytes: int) -> str:
    """Say why a file cannot be written beneath, as the map of its volume shows it now, or nothing."""
    if row.error:
        return f"its map is not to be trusted: {row.error}"
    if row.kind != Kind.FILE or row.links != 1:
        return "the prepared file is no file of one name"
    if not size <= row.size <= size + GROWTH_BYTES_MAX:
        return f"the prepared file has {row.size} bytes, for {size}"
    at = 0
    for extent in sorted(row.extents):
        if extent.flags:
            return f"the blocks of the prepared file are not plain ({_words(extent.flags)})"
        if extent.file_byte != at:
            return f"the prepared file has a hole, or an overlap, at byte {at}"
        if (
            extent.volume_byte <= 0
            or extent.byte_count <= 0
            or extent.volume_byte % block_bytes
            or extent.byte_count % block_bytes
        ):
            return "the blocks of the prepared file are smaller than those of the volume"
        at += extent.byte_count
    if at < row.size:
        return f"the prepared file has blocks for {at} of {row.size} bytes"
    return ""


def moves_of(source: FileRow, target: FileRow, *, block_bytes: int) -> list[Move]:
    """Return the moves that bring a file's content into the blocks of a prepared one; both were not refused."""
    room = sorted(target.extents)
    begins = [extent.file_byte for extent in room]
    found = []
    for piece in content_of(source):
        at, lba = piece.file_byte, piece.volume_byte // block_bytes
        left = -(-piece.byte_count // block_bytes)
        while left:
            extent = room[bisect_right(begins, at) - 1]
            blocks = min(left, (extent.file_byte + extent.byte_count - at) // block_bytes)
            assert blocks > 0, "a prepared file is shorter than its content: `refuse_target`"
            found.append(Move(lba, _place(extent, at) // block_bytes, blocks))
            at, lba, left = at + blocks * block_bytes, lba + blocks, left - blocks
    return found


class Moves:
    """The moves of several files together: no block of the backup twice, and none of the volume."""

    def __init__(self) -> None:
        self._all: list[Move] = []
        self._taken = _Runs()
        self._given = _Runs()

    def add(self, moves: Sequence[Move]) -> None:
        """Take the moves of a file; raises `RefusedError`, and takes none, if they collide with those of another."""
        if self._taken.meets((each.lba, each.blocks) for each in moves):
            raise RefusedError(
                "it shares blocks with another file that is restored at the same time"
            )
        if self._given.meets((each.target_lba, each.blocks) for each in moves):
            raise RefusedError("its prepared file shares blocks with another one")
        self._taken.add((each.lba, each.blocks) for each in moves)
        self._given.add((each.target_lba, each.blocks) for each in moves)
        self._all += moves

    def wanted(self) -> ExtentRuns:
        """Return the blocks of the backup that are moved."""
        return ExtentRuns((each.lba, each.blocks) for each in self.sorted())

    def sorted(self) -> list[Move]:
        """Return all moves by where they begin."""
        return sorted(self._all)


class _Runs:
    """Runs of blocks that are asked about before they are added."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def meets(self, runs: Iterable[tuple[int, int]]) -> bool:
        """Tell whether runs overlap each other or what is here."""
        end = 0
        for lba, blocks in sorted([*self._runs, *runs]):
            if lba < end:
                return True
            end = lba + blocks
        return False

    def add(self, runs: Iterable[tuple[int, int]]) -> None:
        self._runs = sorted([*self._runs, *runs])


def translated(picks: Picks, moves: Sequence[Move]) -> Picks:
    """Return picks as they are moved, and nothing that is not; `moves` are sorted."""
    ends = [each.lba + each.blocks for each in moves]

    def found() -> Iterator[tuple[int, int, int]]:
        for position, lba, blocks in picks.slice(0, 1 << 63):
            index = bisect_right(ends, lba)
            while index < len(moves) and moves[index].lba < lba + blocks:
                move = moves[index]
                first, end = max(lba, move.lba), min(lba + blocks, ends[index])
                yield position + first - lba, move.target_lba + first - move.lba, end - first
                index += 1

    return Picks(found())


def content_of(row: FileRow) -> Iterator[ContentRun]:
    """Yield the runs of a file that lie on the volume, in the order of the file."""
    for piece in pieces(row):
        if piece.volume_byte is not None:
            yield ContentRun(piece.file_byte, piece.byte_count, piece.volume_byte)


def _place(extent: FileExtent, file_byte: int) -> int:
    return extent.volume_byte + file_byte - extent.file_byte


def _words(flags: int) -> str:
    return "|".join(flag.name or "?" for flag in ExtentFlag(flags)).lower()
