"""The mover process: a session with the controller, the machine, and one thread per running item.

Peer --messages--> MoverMachine --effects--> Peer, Execution
                        ^                        |
                        +------- Ended ----------+   posted by the item's thread
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, assert_never, cast

from backplane.errors import RefusedError, RemoteProtocolError, UnreachableError
from backplane.ids import Designator
from backplane.runtime.keys import KeyPair
from backplane.runtime.loop import Loop, Timer
from backplane.runtime.peer import Peer
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.cscd import PeripheralDeviceType
from backplane.scsi.parameter_list import ParameterList
from backplane.transport.base import Endpoint
from backplane.transport.stream import open_relay, open_unit
from backplane.wire.messages import (
    Message,
    Resolution,
    SessionRefused,
    SessionWelcome,
    WorkAcknowledged,
    WorkExtended,
    WorkItem,
    WorkRevoked,
)
from mover_node.config import MoverConfig
from mover_node.core.abort import Ended as ListEnded
from mover_node.core.copy_manager import CopyManager
from mover_node.core.machine import (
    Abort,
    Connected,
    Disconnected,
    Drain,
    Effect,
    Ended,
    Event,
    Exit,
    Key,
    Measured,
    MoverMachine,
    Send,
    Start,
    Tick,
)
from mover_node.executor import Execution, Performer
from mover_node.streams.base import Carrier, Device, Source, Target
from mover_node.streams.channel import RelayCarrier
from mover_node.streams.disk_node import DiskNode
from mover_node.streams.tape_node import TapeNode

_logger = logging.getLogger(__name__)

STATE_FILE: Final = "state.json"


class DeviceOpener:
    """Opens logical units by the resolution table of one work item."""

    def __init__(
        self, units: tuple[Resolution, ...], *, secret_key: bytes, timeout_s: float
    ) -> None:
        self._units = {unit.designator: unit for unit in units}
        self._secret_key = secret_key
        self._timeout_s = timeout_s

    def __call__(self, designator: bytes) -> Device:
        """Open a unit; raises `UnreachableError`, `NotAuthorizedError` or another `BackupError`."""
        unit = self._units.get(Designator(designator))
        if unit is None:
            raise UnreachableError(f"the work item has no address of unit {designator.hex()}")
        channel = open_unit(
            unit.addresses,
            node_key=unit.node_key,
            body=unit.grant,
            tag=unit.tag,
            secret_key=self._secret_key,
            timeout_s=self._timeout_s,
        )
        device_type = channel.opened.peripheral_device_type
        if device_type == PeripheralDeviceType.STREAM:
            return TapeNode(channel)
        if device_type == PeripheralDeviceType.BLOCK:
            return DiskNode(channel)
        channel.close()
        raise RemoteProtocolError(f"node {unit.node} opened a device of type {device_type:02X}h")


class MoverService:
    """Everything of one mover but its sockets and signals."""

    def __init__(
        self,
        config: MoverConfig,
        *,
        loop: Loop,
        endpoint: Endpoint,
        keys: KeyPair,
        boot_id: bytes,
        program: str,
    ) -> None:
        self._config = config
        self._loop = loop
        self._keys = keys
        # Jitter needs no secrecy.
        self._machine = MoverMachine(jitter=random.random, items_max=config.items)
        self._executions: dict[Key, Execution] = {}
        self._timer: Timer | None = None
        self.refusal: RefusedError | None = None
        """Why the controller does not want us."""
        self._peer = Peer(
            loop,
            endpoint,
            role=keys.role,
            name=keys.name,
            boot_id=boot_id,
            program=program,
            on_ready=self._on_ready,
            on_message=self._on_message,
            on_refused=self._on_refused,
            on_lost=self._on_lost,
        )

    def start(self) -> None:
        """Say hello."""
        self._peer.start()

    def drain(self) -> None:
        """Take no more work, end what runs, then stop the loop (SIGTERM)."""
        _logger.info("draining", extra={"grace_s": self._config.drain_grace})
        self._feed(Drain(self._config.drain_grace))

    def dump(self) -> None:
        """Log the state (SIGUSR1), and put it into the state folder if there is one."""
        self._measure()
        state = self._machine.describe()
        _logger.info(
            "state", extra={"items": json.dumps(state), "waiting_for": self._peer.waiting_for}
        )
        if self._config.state_folder is not None:
            path = self._config.state_folder / STATE_FILE
            try:
                path.write_text(json.dumps({"name": self._keys.name, "items": state}) + "\n")
            except OSError as error:
                _logger.warning("cannot write %s: %s", path, error.strerror)

    def close(self) -> None:
        """Stop what still runs, and wait for it."""
        if self._timer is not None:
            self._timer.cancel()
        self._peer.close()
        for execution in self._executions.values():
            execution.abort("the mover ends")
        for execution in self._executions.values():
            execution.join()
        self._executions.clear()

    # --- in --------------------------------------------------------------------------------------

    def _on_ready(self, welcome: SessionWelcome) -> None:
        if self._config.ready_file is not None:
            _write_ready(self._config.ready_file, self._keys.name)
        _logger.info("connected", extra={"store": welcome.store})
        self._feed(Connected())

    def _on_lost(self, reason: str) -> None:
        _logger.warning("disconnected", extra={"reason": reason})
        self._feed(Disconnected())

    def _on_refused(self, refusal: SessionRefused) -> None:
        self.refusal = RefusedError(refusal.reason, hint=refusal.hint)
        self._loop.stop()

    def _on_message(self, message: Message) -> None:
        if isinstance(message, WorkItem | WorkExtended | WorkAcknowledged | WorkRevoked):
            self._feed(message)
        else:
            _logger.warning("unexpected message", extra={"kind": message.kind})

    def _on_ended(self, key: Key, manager: CopyManager, ended: ListEnded) -> None:
        execution = self._executions.pop(key, None)
        if execution is None:
            return  # `close` was faster.
        execution.join()
        _logger.info(
            "item ended",
            extra={"item": key[0], "epoch": key[1], "status": ended.status, "detail": ended.detail},
        )
        self._feed(Ended(*key, ended, manager.ledger.entries()))

    def _on_timer(self) -> None:
        self._timer = None
        self._measure()  # before the time counts: a progress report says how far it is now
        self._feed(Tick())

    def _measure(self) -> None:
        for (item, epoch), execution in list(self._executions.items()):
            told = execution.progress()
            self._feed(Measured(item, epoch, told.segment, told.bytes_read, told.bytes_written))

    # --- out -------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for effect in self._machine.handle(event, now=self._loop.now()):
            self._perform(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._machine.deadline()
        if deadline is not None:
            self._timer = self._loop.after(deadline - self._loop.now(), self._on_timer)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self._peer.send(message)
            case Start(item, parameters):
                self._begin(item, parameters)
            case Abort(item_id, epoch, reason):
                _logger.warning(
                    "item stopped", extra={"item": item_id, "epoch": epoch, "reason": reason}
                )
                execution = self._executions.get((item_id, epoch))
                if execution is not None:
                    execution.abort(reason)
            case Exit(reason):
                _logger.info("leaving", extra={"reason": reason})
                self._loop.stop()
            case _:
                assert_never(effect)

    def _begin(self, item: WorkItem, parameters: ParameterList) -> None:
        key = (item.item, item.epoch)
        _logger.info(
            "item begins",
            extra={
                "item": item.item,
                "job": item.job,
                "epoch": item.epoch,
                "segments": len(parameters.segments),
            },
        )
        manager = CopyManager(parameters, operating=MOVER_PARAMETERS)
        opener = DeviceOpener(
            item.units, secret_key=self._keys.secret, timeout_s=self._config.data_timeout
        )
        # The adapters of this module are channels, so that is what the carrier gets.
        carrier = cast("Carrier[Source, Target]", RelayCarrier(open_relay(self._config.relay)))
        performer = Performer(parameters, opener, carrier, limits=self._config.in_flight)
        execution = Execution(
            manager,
            performer,
            name=f"item {item.item}",
            on_ended=self._poster(key, manager),
        )
        self._executions[key] = execution
        execution.start()

    def _poster(self, key: Key, manager: CopyManager) -> Callable[[ListEnded], None]:
        def post(ended: ListEnded) -> None:
            self._loop.post(lambda: self._on_ended(key, manager, ended))

        return post


def _write_ready(path: Path, name: str) -> None:
    try:
        path.write_text(name + "\n")
    except OSError as error:
        raise RefusedError(f"cannot write {path}: {error.strerror}") from error
