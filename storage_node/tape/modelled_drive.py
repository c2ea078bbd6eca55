"""A virtual drive that keeps account of what a real one would have spent, or plays it.

    accounted   (pace 0)   nothing waits; the totals grow
    played      (pace 1)   every command really takes that long; with pace 10 a tenth of it

What the node looks up with a head of its own (`side_view`: labels, trailers, inventories) costs nothing here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from backplane.runtime.clock import SystemClock
from backplane.wire.messages import DriveUsage
from storage_node.core.drive_model import DriveModel, Specification
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.drive import Outcome
from storage_node.tape.virtual_drive import VirtualDrive


class ModelledDrive(VirtualDrive):
    """Implements `Drive`.  `clock` is monotonic, in seconds; `sleep` waits for so many, by default until `hurry`."""

    def __init__(
        self,
        specification: Specification,
        *,
        pace: float = 0.0,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        super().__init__()
        assert pace >= 0
        self._model = DriveModel(specification)
        self._pace = pace
        self._clock = clock if clock is not None else SystemClock().monotonic
        self._is_hurried = threading.Event()
        self._sleep = sleep if sleep is not None else self._is_hurried.wait

    @property
    def usage(self) -> DriveUsage:
        """The totals so far."""
        return self._model.usage()

    def hurry(self) -> None:
        """Never wait again: the node ends.  From any thread."""
        self._is_hurried.set()

    def side_view(self) -> VirtualDrive:  # type: ignore[override]
        """Return a second head on the same cartridge; it has no model."""
        return VirtualDrive(viewing=self._cartridge)

    # --- medium ----------------------------------------------------------------------------------

    def load(self, folder: Path, *, announce: bool = True) -> Cartridge:
        """Put a cartridge in and thread it."""
        cartridge = super().load(folder, announce=announce)
        self._take(self._model.load(self._clock()))
        return cartridge

    def unload(self) -> Outcome:
        """Flush, rewind and take the cartridge out."""
        was_loaded, byte = self._cartridge is not None, self._byte()
        outcome = super().unload()
        if was_loaded:
            self._take(self._model.unload(self._clock(), byte))
        return outcome

    # --- data ------------------------------------------------------------------------------------

    def write_record(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write one record."""
        byte = self._byte()
        outcome = super().write_record(data, crc32c=crc32c, expected_position=expected_position)
        self._take_write(byte)
        return outcome

    def write_blocks(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write records of the block length of the mode parameters."""
        byte = self._byte()
        outcome = super().write_blocks(data, crc32c=crc32c, expected_position=expected_position)
        self._take_write(byte)
        return outcome

    def write_filemarks(
        self, count: int, *, immediate: bool = False, expected_position: int | None = None
    ) -> Outcome:
        """Write filemarks; unless `immediate`, the tape stops behind them."""
        byte = self._byte()
        outcome = super().write_filemarks(
            count, immediate=immediate, expected_position=expected_position
        )
        self._take_write(byte)
        if not immediate and outcome.is_done:
            self._take(self._model.synchronise(self._clock()))
        return outcome

    def flush(self, *, expected_position: int | None = None) -> Outcome:
        """Have everything written on the medium; the tape stops."""
        outcome = super().flush(expected_position=expected_position)
        if outcome.is_good:
            self._take(self._model.synchronise(self._clock()))
        return outcome

    def read_record(
        self,
        buffer: memoryview,
        *,
        suppress_length: bool = False,
        expected_position: int | None = None,
    ) -> Outcome:
        """Read the next record."""
        byte = self._byte()
        outcome = super().read_record(
            buffer, suppress_length=suppress_length, expected_position=expected_position
        )
        self._take_read(byte)
        return outcome

    def read_blocks(
        self, buffer: memoryview, *, count: int, suppress_length: bool = False
    ) -> Outcome:
        """Read records of the block length of the mode parameters."""
        byte = self._byte()
        outcome = super().read_blocks(buffer, count=count, suppress_length=suppress_length)
        self._take_read(byte)
        return outcome

    # --- motion ----------------------------------------------------------------------------------

    def space(self, code: SpaceCode | int, count: int = 0) -> Outcome:
        """Pass records or filemarks."""
        byte = self._byte()
        return self._take_motion(byte, super().space(code, count))

    def locate(self, object_number: int, *, partition: int | None = None) -> Outcome:
        """Go to an object."""
        byte = self._byte()
        return self._take_motion(byte, super().locate(object_number, partition=partition))

    def locate_file(self, file_number: int) -> Outcome:
        """Go to the beginning of a logical file."""
        byte = self._byte()
        return self._take_motion(byte, super().locate_file(file_number))

    def rewind(self) -> Outcome:
        """Go to the beginning."""
        byte = self._byte()
        outcome = super().rewind()
        if outcome.is_good:
            self._take(self._model.rewind(self._clock(), byte))
        return outcome

    # --- account ---------------------------------------------------------------------------------

    def _byte(self) -> int:
        """Return where the head is: bytes of the medium before it."""
        return self._cartridge.charge_before(self._position) if self._cartridge is not None else 0

    def _take_write(self, before: int) -> None:
        if self._byte() > before:
            self._take(self._model.write(self._clock(), self._byte() - before))

    def _take_read(self, before: int) -> None:
        if self._byte() > before:
            self._take(self._model.read(self._clock(), self._byte() - before))

    def _take_motion(self, before: int, outcome: Outcome) -> Outcome:
        if self._byte() != before:
            self._take(self._model.locate(self._clock(), before, self._byte()))
        return outcome

    def _take(self, seconds: float) -> None:
        if self._pace and seconds and not self._is_hurried.is_set():
            waited = seconds / self._pace
            self._sleep(waited)
            self._model.waited(waited)
