"""The reading end of a segment: whole transfers, just enough of them (SPC-4 5.17.7.2)."""

from __future__ import annotations

from typing import Final, Protocol

from backplane.units import align_down, align_up
from mover_node.core.pieces import Residue
from mover_node.core.units import Role, Steps, Unit, Units

READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of one READ to a block device on the ordinary path; a single larger block would still be read whole."""


class Source(Protocol):
    """Where the source data of a segment come from."""

    unit: Unit

    def read(self, need: int, into: Residue) -> Steps[None]:
        """Read one or more whole transfers, no more than `need` bytes ask for."""


class BlockReader:
    """Blocks from a byte address on."""

    def __init__(self, units: Units, unit: Unit, *, address: int) -> None:
        self._units = units
        self.unit = unit
        self.address = address

    def read(self, need: int, into: Residue) -> Steps[None]:
        """Read the blocks that hold the next `need` bytes, or as many of them as one command may."""
        block = self.unit.block_bytes
        start = align_down(self.address, block)
        end = align_up(self.address + need, block)
        end = min(end, start + max(block, align_down(READ_BYTES_MAX, block)))
        piece = yield from self._units.read_blocks(self.unit, Role.SOURCE, start, end - start)
        account = self._units.account(self.unit)
        account.bytes_read += end - start
        skipped = self.address - start
        if skipped:
            # The byte offset of 08h and 0Ah: the bytes before it were read with their block, nothing more.
            account.bytes_discarded += skipped
            _, piece = piece.cut(skipped)
        into.append(piece)
        self.address = end


class RecordReader:
    """Records, or groups of fixed blocks, from the current position on."""

    def __init__(
        self, units: Units, unit: Unit, *, transfer_length: int, pays_attempt: bool
    ) -> None:
        self._units = units
        self.unit = unit
        self.transfer_length = transfer_length
        self.transfer_bytes = transfer_length * (unit.block_bytes or 1)
        # Where nothing is written (06h), a record that was read well earns the next attempt.
        self._pays_attempt = pays_attempt

    def read(self, need: int, into: Residue) -> Steps[None]:
        """Read one transfer: it is more than nothing, so it is needed."""
        assert need > 0
        length = self.transfer_length
        if not self.unit.block_bytes:
            yield from self._read_one(length, into, information=None)
            return
        for index in range(length):
            yield from self._read_one(self.unit.block_bytes, into, information=length - index)

    def _read_one(self, length: int, into: Residue, *, information: int | None) -> Steps[None]:
        piece, answer = yield from self._units.read_record(self.unit, Role.SOURCE, length)
        if not answer.is_good:
            raise self._units.failed(self.unit, Role.SOURCE, answer, information=information)
        account = self._units.account(self.unit)
        account.bytes_read += length
        account.records_read += 1
        if self._pays_attempt:
            self._units.earn_attempt()
        into.append(piece)
