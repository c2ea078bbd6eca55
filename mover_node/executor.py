"""Perform the commands of a copy manager over devices, in a thread of its own.

    CopyManager.run() --command--> Performer --> Device          one command at a time
                                             --> runs.carry_out  many in flight
                      <--outcome--

`Execution` is one work item on its way.  It ends by itself, or because `abort` shut its channels down; whatever blocks
on one of them then fails, and the item ends as aborted.  Nothing here decides about segments.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from backplane.errors import BackupError, NotAuthorizedError
from backplane.runtime import failpoints
from backplane.runtime.scheduling import prefer_throughput
from backplane.scsi.parameter_list import ParameterList
from mover_node.core.abort import Ended, aborted
from mover_node.core.commands import (
    Command,
    Denied,
    Kind,
    Open,
    Outcome,
    Ran,
    RunTransfers,
    Transfer,
    UnitInfo,
    Unreachable,
)
from mover_node.core.copy_manager import CopyManager
from mover_node.runs import LOST, InFlight, carry_out
from mover_node.streams.base import Carrier, Device, Source, Target

log = logging.getLogger(__name__)

OpenDevice = Callable[[bytes], Device]
"""Opens the logical unit with this designator, or raises a `BackupError`."""


class AbortedError(BackupError):
    """Somebody wants the item to stop."""

    kind = "aborted"


class Performer:
    """Performs the commands of one copy manager.  `abort` may be called from any thread."""

    def __init__(
        self,
        parameters: ParameterList,
        open_device: OpenDevice,
        carrier: Carrier[Source, Target],
        *,
        limits: InFlight,
    ) -> None:
        self._designators = [cscd.designator for cscd in parameters.cscds]
        self._open_device = open_device
        self._carrier = carrier
        self._limits = limits
        self._lock = threading.Lock()
        self._devices: dict[bytes, Device] = {}
        self._is_aborted = False
        self.run_read = self.run_written = 0
        """Bytes of the present run of transfers, which the ledger does not have yet."""
        self.run_segment = 0

    def perform(self, command: Command) -> Outcome:
        """Carry out one command; raises `AbortedError`."""
        if self._is_aborted:
            raise AbortedError("aborted")
        if isinstance(command, Open):
            return self._open(command.cscd)
        if isinstance(command, RunTransfers):
            return self._run(command)
        device = self._device(command.cscd)
        try:
            return device.perform(command)
        except LOST as error:
            return Unreachable(error.message)

    def abort(self) -> None:
        """Shut all devices down; whoever waits for them fails."""
        with self._lock:
            self._is_aborted = True
            devices = list(self._devices.values())
        for device in devices:
            device.abort()

    def close(self) -> None:
        """Let go of all devices."""
        with self._lock:
            devices, self._devices = list(self._devices.values()), {}
        for device in devices:
            device.close()
        self._carrier.close()

    def _device(self, cscd: int) -> Device:
        return self._devices[self._designators[cscd]]

    def _open(self, cscd: int) -> UnitInfo | Unreachable | Denied:
        designator = self._designators[cscd]
        try:
            device = self._open_device(designator)
        except NotAuthorizedError as error:
            return Denied(str(error))
        except BackupError as error:
            return Unreachable(str(error))
        with self._lock:
            self._devices[designator] = device
            if not self._is_aborted:
                failpoints.passed("mover.open")
                return device.info
        raise AbortedError("aborted")

    def _run(self, run: RunTransfers) -> Ran:
        source = cast("Source", self._device(run.source))
        target = None
        if run.kind is not Kind.DISCARD:
            target = cast("Target", self._device(run.destination))

        def on_done(transfer: Transfer) -> None:
            self.run_read += transfer.byte_count
            self.run_written += 0 if target is None else transfer.byte_count
            self.run_segment = transfer.end.segment

        try:
            return carry_out(
                run, source, target, self._carrier, limits=self._limits, on_done=on_done
            )
        finally:
            self.run_read = self.run_written = 0


def execute(manager: CopyManager, performer: Performer) -> Ended:
    """Run a list to its end; raises `AbortedError`."""
    steps = manager.run()
    try:
        command = next(steps)
        while True:
            command = steps.send(performer.perform(command))
    except StopIteration as stop:
        ended: Ended = stop.value
        return ended


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an item has come."""

    segment: int
    bytes_read: int
    bytes_written: int


CRASHED: Final = "the copy manager crashed: see the mover's log"


class Execution:
    """One item in its thread.  `on_ended` is called once, in that thread."""

    def __init__(
        self,
        manager: CopyManager,
        performer: Performer,
        *,
        name: str,
        on_ended: Callable[[Ended], None],
    ) -> None:
        self._manager = manager
        self._performer = performer
        self._on_ended = on_ended
        self._reason = ""
        self._progress = Progress(0, 0, 0)
        self._thread = threading.Thread(target=self._work, name=name)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def abort(self, reason: str) -> None:
        """Stop soon; from any thread."""
        self._reason = reason
        self._performer.abort()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def progress(self) -> Progress:
        """Say how far it is; never less than before.  From any thread."""
        bytes_read, bytes_written = self._manager.ledger.totals()
        known, performer = self._progress, self._performer
        self._progress = Progress(
            max(known.segment, self._manager.segment, performer.run_segment),
            max(known.bytes_read, bytes_read + performer.run_read),
            max(known.bytes_written, bytes_written + performer.run_written),
        )
        return self._progress

    def _work(self) -> None:
        prefer_throughput()
        try:
            ended = self._execute()
        except Exception:
            log.exception("copy manager crashed")
            ended = aborted(self._manager.segment + 1, CRASHED)
        finally:
            self._performer.close()
        failpoints.passed("mover.ended")
        self._on_ended(ended)

    def _execute(self) -> Ended:
        try:
            ended = execute(self._manager, self._performer)
        except AbortedError:
            return aborted(self._manager.segment + 1, self._reason)
        if self._reason and not ended.is_good:
            # The channels were shut down on purpose: that is why a device was lost, whatever it looks like.
            return aborted(ended.segments, self._reason)
        return ended
