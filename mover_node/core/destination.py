"""The writing end of a segment: as many whole transfers as the data fill (SPC-4 5.17.7.2)."""

from __future__ import annotations

from typing import Final, Protocol

from backplane.units import align_down, align_up
from mover_node.core.abort import INEXACT_SEGMENT, CopyAbortedError
from mover_node.core.pieces import Piece, Residue, zero_payload
from mover_node.core.units import Role, Steps, Unit, Units

WRITE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of one WRITE to a block device on the ordinary path; a single larger block is still written whole."""


class Destination(Protocol):
    """Where the destination data of a segment go.  `written` is in the units of the residual count."""

    unit: Unit
    written: int

    def planned(self, byte_count: int, *, is_padded: bool) -> int:
        """Return what `byte_count` bytes of destination data will be written as, in units of the residual count."""

    def wanted(self, byte_count: int) -> int:
        """Return how many more bytes make a transfer worth writing, when `byte_count` are there."""

    def write_whole(self, data: Residue) -> Steps[None]:
        """Write every whole transfer."""

    def write_padded(self, data: Residue) -> Steps[None]:
        """Write the rest, padded with zeros to a whole transfer."""


class RecordWriter:
    """Records, or groups of fixed blocks, at the current position."""

    def __init__(self, units: Units, unit: Unit, *, transfer_length: int) -> None:
        self._units = units
        self.unit = unit
        self.written = 0
        self._fixed = unit.block_bytes
        self._blocks = transfer_length if self._fixed else 1
        self.transfer_bytes = transfer_length * (self._fixed or 1)

    def planned(self, byte_count: int, *, is_padded: bool) -> int:
        """Return bytes in variable mode, blocks in fixed mode."""
        if not self.transfer_bytes:
            return 0
        align = align_up if is_padded else align_down
        return align(byte_count, self.transfer_bytes) // (self._fixed or 1)

    def wanted(self, byte_count: int) -> int:
        """Return what is missing in the current transfer."""
        return self.transfer_bytes - byte_count

    def write_whole(self, data: Residue) -> Steps[None]:
        """Write whole transfers while there are any."""
        while self.transfer_bytes and data.byte_count >= self.transfer_bytes:
            yield from self._write(data)

    def write_padded(self, data: Residue) -> Steps[None]:
        """Fill the last transfer with zeros."""
        if not self.transfer_bytes and not self.unit.is_null:
            raise CopyAbortedError("nothing can be padded to 0 bytes", INEXACT_SEGMENT)
        yield from self._write(data)

    def _write(self, data: Residue) -> Steps[None]:
        size = self._fixed or self.transfer_bytes
        warning = None
        for index in range(self._blocks):
            zeros = max(0, size - data.byte_count)
            pieces = data.take(size - zeros)
            left = self._blocks - index if self._fixed else None
            try:
                answer = yield from self._units.write(
                    self.unit, [*pieces, *zero_payload(zeros)], information=left
                )
            except CopyAbortedError:
                put_back(data, pieces)
                raise
            account = self._units.account(self.unit)
            account.bytes_written += size
            account.bytes_padded += zeros
            account.records_written += 1
            self.written += 1 if self._fixed else size
            if not answer.is_good:
                # In fixed mode early warning is reported for the whole WRITE, after its last block.
                warning = answer
        if warning is not None:
            raise self._units.failed(self.unit, Role.DESTINATION, warning)


class BlockWriter:
    """Blocks from a byte address on, at most up to `end`; partial first and last blocks are merged.

    `end` is None for segments that count source bytes (02h with DC=0): they write every block that fills.
    """

    def __init__(self, units: Units, unit: Unit, *, address: int, end: int | None) -> None:
        self._units = units
        self.unit = unit
        self.address = address
        self.end = end
        self.written = 0

    def planned(self, byte_count: int, *, is_padded: bool) -> int:
        """Return blocks, counting partial ones at both ends of a byte range."""
        block = self.unit.block_bytes
        start = align_down(self.address, block)
        end = self.address + byte_count
        if self.end is not None:
            if end >= self.end:
                return (
                    (align_up(self.end, block) - start) // block if self.end > self.address else 0
                )
            return (align_down(end, block) - start) // block
        return ((align_up if is_padded else align_down)(end, block) - start) // block

    def wanted(self, byte_count: int) -> int:
        """Return what makes a large write, or completes the range."""
        most = max(self.unit.block_bytes, align_down(WRITE_BYTES_MAX, self.unit.block_bytes))
        if self.end is not None and self.address + byte_count >= self.end:
            return most  # The range is full: the rest becomes residue.
        return align_down(self.address, self.unit.block_bytes) + most - self.address - byte_count

    def write_whole(self, data: Residue) -> Steps[None]:
        """Write whole blocks, and partial ones where the range begins or ends inside a block."""
        block = self.unit.block_bytes
        while data:
            most = align_down(self.address, block) + max(block, align_down(WRITE_BYTES_MAX, block))
            end = min(self.address + data.byte_count, most)
            is_last = self.end is not None and end >= self.end
            end = self.end if is_last and self.end is not None else align_down(end, block)
            if end <= self.address:
                return
            yield from self._write(data, end=end, padding=0)

    def write_padded(self, data: Residue) -> Steps[None]:
        """Fill the last block with zeros."""
        end = align_up(self.address + data.byte_count, self.unit.block_bytes)
        yield from self._write(data, end=end, padding=end - self.address - data.byte_count)

    def _write(self, data: Residue, *, end: int, padding: int) -> Steps[None]:
        block = self.unit.block_bytes
        start, stop = align_down(self.address, block), align_up(end, block)
        before, after = yield from self._surroundings(start, stop, end)
        pieces = data.take(end - self.address - padding)
        whole = [*before, *pieces, *zero_payload(padding), *after]
        try:
            answer = yield from self._units.write(self.unit, whole, address=start)
        except CopyAbortedError:
            put_back(data, pieces)
            raise
        account = self._units.account(self.unit)
        account.bytes_written += end - self.address
        account.bytes_padded += padding
        self.written += (stop - start) // block
        self.address = end
        if not answer.is_good:
            raise self._units.failed(self.unit, Role.DESTINATION, answer)

    def _surroundings(
        self, start: int, stop: int, end: int
    ) -> Steps[tuple[list[Piece], list[Piece]]]:
        """Read what stays of the first and the last block (the "read" of read-modify-write)."""
        block = self.unit.block_bytes
        before: list[Piece] = []
        after: list[Piece] = []
        if start < self.address:
            piece = yield from self._units.read_blocks(self.unit, Role.DESTINATION, start, block)
            before = [piece.cut(self.address - start)[0]]
            if end < stop == start + block:
                after = [piece.cut(end - start)[1]]
        if end < stop and not after:
            piece = yield from self._units.read_blocks(
                self.unit, Role.DESTINATION, stop - block, block
            )
            after = [piece.cut(block - (stop - end))[1]]
        return before, after


def put_back(data: Residue, pieces: list[Piece]) -> None:
    """Return pieces of a write that did not happen, so that they are counted as what they are: not written."""
    rest = data.take(data.byte_count)
    for piece in [*pieces, *rest]:
        data.append(piece)
