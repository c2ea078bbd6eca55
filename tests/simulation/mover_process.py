"""A mover in the simulator: the real service, machine and copy manager; data requests go over simulated streams.

`Execution` stands for the thread of an item.  It drives the copy manager's generator and performs each command as one
request, or as a run of transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backplane.ids import Designator
from backplane.runtime.keys import KeyPair
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import ParameterList
from backplane.testing.simulated_network import Network, Switchboard
from backplane.testing.simulator import Process
from backplane.wire.frames import Entry, Opcode
from backplane.wire.grants import decode_grant
from backplane.wire.messages import WorkItem
from mover_node.config import MoverConfig
from mover_node.core.abort import Ended, aborted
from mover_node.core.commands import (
    Command,
    Completed,
    Flush,
    Kind,
    Locate,
    Open,
    Outcome,
    Ran,
    ReadBlocks,
    ReadRecord,
    RunTransfers,
    Space,
    TestUnitReady,
    Unreachable,
    WriteBlocks,
    WriteFilemarks,
    WriteRecord,
)
from mover_node.core.copy_manager import CopyManager
from mover_node.core.machine import Key, MoverMachine
from mover_node.executor import Progress
from mover_node.service import MoverService
from tests.simulation.data_channel import Link, Run
from tests.simulation.facts import Origin
from tests.simulation.storage_process import StorageHost, refused


class Execution:
    """One item on its way; has the methods that the service wants of the thread it stands for."""

    def __init__(
        self,
        service: SimulatedMover,
        item: WorkItem,
        manager: CopyManager,
        parameters: ParameterList,
        *,
        on_ended: Callable[[Ended], None],
    ) -> None:
        self.process = service.process
        self.network = service.network
        lane = max(decode_grant(unit.grant).lane for unit in item.units)
        self.origin = Origin(service.process.name, item.item, item.epoch, lane)
        self._hosts = service.hosts
        self._units = {unit.designator: unit for unit in item.units}
        self._designators = [cscd.designator for cscd in parameters.cscds]
        self._manager = manager
        self._on_ended = on_ended
        self._links: dict[bytes, Link] = {}
        self._run: Run | None = None
        self._steps: Generator[Command, Outcome, Ended] = manager.run()
        self._is_over = False

    def start(self) -> None:
        """Begin."""
        self._advance(None)

    def abort(self, reason: str) -> None:
        """Stop: shut the channels down, as the thread would find them."""
        if not self._is_over:
            self._end(aborted(self._manager.segment + 1, reason))

    def join(self) -> None:
        """There is no thread."""

    def progress(self) -> Progress:
        """Say how far it is."""
        bytes_read, bytes_written = self._manager.ledger.totals()
        run = self._run
        moved = run.data_bytes + run.padding_bytes if run is not None else 0
        return Progress(self._manager.segment, bytes_read + moved, bytes_written + moved)

    def carried(self, data: bytes) -> bytes:
        """Return data as they arrive: a byte may have flipped."""
        if data and self.network.is_damaged():
            self.process.simulation.probe("data damaged on their way")
            at = self.process.simulation.random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        return data

    def _advance(self, outcome: Outcome | None) -> None:
        if self._is_over:
            return
        try:
            command = self._steps.send(outcome)  # type: ignore[arg-type]
        except StopIteration as stop:
            self._end(stop.value)
            return
        self._perform(command)

    def _end(self, ended: Ended) -> None:
        self._is_over = True
        for link in self._links.values():
            link.close()
        self._on_ended(ended)

    def _perform(self, command: Command) -> None:
        if isinstance(command, Open):
            self._open(command.cscd)
        elif isinstance(command, RunTransfers):
            self._carry_out(command)
        else:
            self._single(self._link(command.cscd), command)

    def _link(self, cscd: int) -> Link:
        return self._links[self._designators[cscd]]

    def _open(self, cscd: int) -> None:
        unit = self._units.get(Designator(self._designators[cscd]))
        if unit is None:
            self._advance(Unreachable("no address"))
            return
        link = Link(self, self._hosts[unit.node], unit.grant)
        self._links[self._designators[cscd]] = link
        link.open(self._advance)

    def _carry_out(self, command: RunTransfers) -> None:
        source = self._link(command.source)
        target = None if command.kind is Kind.DISCARD else self._link(command.destination)

        def ran(outcome: Ran) -> None:
            self._run = None
            self._advance(outcome)

        self._run = Run(command, source, target, ran)
        self._run.pump()

    def _single(self, link: Link, command: Any) -> None:
        def then(answer: Completed | Unreachable, data: bytes) -> None:
            if isinstance(answer, Completed) and data:
                answer = Completed(
                    answer.status, answer.sense, memoryview(data), answer.crc32c, answer.position
                )
            self._advance(answer)

        match command:
            case ReadBlocks(_, address, count):
                link.request(Opcode.READ, then, entries=(Entry(address, count),), length=count)
            case WriteBlocks(_, address, payload):
                link.request(
                    Opcode.WRITE,
                    then,
                    entries=(Entry(address, payload.byte_count),),
                    length=payload.byte_count,
                    data=payload.joined(),
                    crc32c=payload.crc32c,
                )
            case ReadRecord(_, count):
                link.request(Opcode.READ_RECORD, then, address=link.next_position(), length=count)
            case WriteRecord(_, payload):
                link.request(
                    Opcode.WRITE_RECORD,
                    then,
                    address=link.next_position(),
                    length=payload.byte_count,
                    data=payload.joined(),
                    crc32c=payload.crc32c,
                )
            case WriteFilemarks(_, count, is_immediate):
                link.request(
                    Opcode.WRITE_FILEMARKS,
                    then,
                    modifier=int(is_immediate),
                    address=link.position,
                    length=count,
                )
            case Space(_, code, count):
                link.request(
                    Opcode.SPACE,
                    then,
                    modifier=code,
                    address=link.position,
                    length=count & 0xFFFF_FFFF,
                )
            case Locate(_, number):
                link.request(Opcode.LOCATE, then, address=number)
            case Flush():
                link.request(Opcode.FLUSH, then)
            case TestUnitReady():
                link.request(Opcode.TEST_UNIT_READY, then)
            case _:
                raise AssertionError(f"no request for {command}")


@dataclass(slots=True)
class MoverHost:
    """A mover keeps nothing over a crash."""

    network: Network
    switchboard: Switchboard
    hosts: dict[str, StorageHost]
    process: Process = field(init=False)

    def boot(self) -> None:
        """Start the mover."""
        SimulatedMover(self.process, self.network, self.switchboard, self.hosts).start()

    def crash(self) -> None:
        """Lose everything."""
        self.network.on_crash(self.process)


class SimulatedMover(MoverService):
    """The real service; only the threads are simulated."""

    def __init__(
        self,
        process: Process,
        network: Network,
        switchboard: Switchboard,
        hosts: dict[str, StorageHost],
    ) -> None:
        self.process = process
        self.network = network
        self.hosts = hosts
        key = process.name.encode().ljust(32, b"-")
        super().__init__(
            _config(process.name),
            loop=process,  # type: ignore[arg-type]
            endpoint=switchboard.dealer(process, key=key),
            keys=KeyPair(public=key, secret=key, role="mover", name=process.name),
            boot_id=process.simulation.bytes(16),
            program="simulated",
        )
        self._machine = MoverMachine(jitter=process.simulation.random.random)
        session = self._peer._session
        session._jitter = process.simulation.random.random

    def _feed(self, event: Any) -> None:
        super()._feed(event)
        self._machine.check()

    def _on_refused(self, refusal: object) -> None:
        refused(self.process)

    def _begin(self, item: WorkItem, parameters: ParameterList) -> None:
        key: Key = (item.item, item.epoch)
        manager = CopyManager(parameters, operating=MOVER_PARAMETERS)
        execution = Execution(self, item, manager, parameters, on_ended=self._poster(key, manager))
        self._executions[key] = execution  # type: ignore[assignment]
        execution.start()


def _config(name: str) -> MoverConfig:
    nowhere = Path("/nowhere")
    return MoverConfig(
        name=name, controller="simulated", controller_key_file=nowhere, key_file=nowhere
    )
