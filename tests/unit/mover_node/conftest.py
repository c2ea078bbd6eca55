"""A bench: devices in memory, and a copy manager that runs lists over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from backplane.errors import NotAuthorizedError, UnreachableError
from backplane.scsi.copy_status import MOVER_PARAMETERS, OperatingParameters
from backplane.scsi.cscd import IdentificationCscd, block_cscd, stream_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import Segment
from backplane.scsi.sense import Sense
from mover_node.core.abort import Ended
from mover_node.core.commands import Command, Outcome, RunTransfers
from mover_node.core.copy_manager import CopyManager
from mover_node.executor import Performer, execute
from mover_node.runs import InFlight
from mover_node.streams.base import Device
from mover_node.streams.memory import MemoryCarrier, MemoryDisk, MemoryTape

FINE = replace(MOVER_PARAMETERS, data_segment_granularity=0)
"""Byte counts as they come: small numbers make tests readable."""


class Recorder(Performer):
    """Notes which commands were performed."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.commands: list[Command] = []

    def perform(self, command: Command) -> Outcome:
        self.commands.append(command)
        return super().perform(command)


@dataclass
class Bench:
    """Add devices, then run a list; CSCD ids count in the order of adding."""

    cscds: list[IdentificationCscd] = field(default_factory=list)
    devices: list[Device | Exception] = field(default_factory=list)
    operating: OperatingParameters = FINE
    limits: InFlight = field(default_factory=InFlight)
    use_runs: bool = True
    inline_data: bytes = b""
    commands: list[Command] = field(default_factory=list)
    manager: CopyManager | None = None

    def disk(self, device: MemoryDisk, *, pad: bool = False, block_bytes: int | None = None) -> int:
        length = device.info.block_bytes if block_bytes is None else block_bytes
        return self._add(lambda name: block_cscd(name, block_bytes=length, pad=pad), device)

    def tape(self, device: MemoryTape, *, pad: bool = True, fixed: int = 0) -> int:
        return self._add(
            lambda name: stream_cscd(name, pad=pad, fixed=bool(fixed), stream_block_length=fixed),
            device,
        )

    def unreachable(self) -> int:
        return self._add(lambda name: block_cscd(name, block_bytes=8), UnreachableError("away"))

    def denied(self) -> int:
        return self._add(stream_cscd, NotAuthorizedError("grant refused"))

    def again(self, cscd: int, **changes: object) -> int:
        """Add a second descriptor of a device that is there already."""
        self.cscds.append(replace(self.cscds[cscd], **changes))  # type: ignore[arg-type]
        self.devices.append(self.devices[cscd])
        return len(self.cscds) - 1

    def run(self, *segments: Segment) -> Ended:
        parameters = ParameterList(
            list_identifier=1,
            cscds=tuple(self.cscds),
            segments=segments,
            inline_data=self.inline_data,
        )
        self.manager = CopyManager(parameters, operating=self.operating, use_runs=self.use_runs)
        performer = Recorder(parameters, self._open, MemoryCarrier(), limits=self.limits)
        ended = execute(self.manager, performer)
        self.commands = performer.commands
        return ended

    def fail(self, *segments: Segment) -> Sense:
        """Run a list that is going to fail; return its sense."""
        ended = self.run(*segments)
        assert not ended.is_good
        return Sense.decode(ended.sense)

    @property
    def runs(self) -> int:
        return sum(isinstance(command, RunTransfers) for command in self.commands)

    def _add(self, make: Callable[[bytes], IdentificationCscd], device: Device | Exception) -> int:
        self.cscds.append(make(bytes([0x30, 0, 0, 0, 0, 0, 0, len(self.cscds)])))
        self.devices.append(device)
        return len(self.cscds) - 1

    def _open(self, designator: bytes) -> Device:
        device = self.devices[[c.designator for c in self.cscds].index(designator)]
        if isinstance(device, Exception):
            raise device
        return device


@pytest.fixture
def bench() -> Bench:
    """An empty bench."""
    return Bench()
