"""The controller in the simulator: the real service over a catalog that dies before or after a commit.

A commit takes time: the rows are durable at once, what depends on them leaves when the time is over, and the process
does nothing else meanwhile.  A crash in between is a crash after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backplane.errors import MediumError
from backplane.ids import ItemId, JobId
from backplane.testing.simulated_network import Network, SimulatedRouter, Switchboard
from backplane.testing.simulator import CrashedError, Process
from backplane.wire import grants
from backplane.wire.messages import Message, Resolution
from backplane.wire.session import Authorized
from controller.catalog.memory import MemoryCatalog
from controller.catalog.store import Row, Snapshot
from controller.core import effects as core
from controller.core.machine import Machine
from controller.operator_interface import OperatorInterface
from controller.service import GRANT_TTL_S, ControllerService
from tests.simulation.facts import Committed, ControllerStarted, Fact, Sent

ROLES = {"m": "mover", "n": "storage", "o": "operator"}
"""Roles by the first letter of a name: movers m1.., storage nodes node-.., operators operator-.."""


@dataclass(slots=True)
class CatalogFaults:
    """Of commits."""

    before: float = 0.0
    after: float = 0.0
    commit_s: float = 0.002


class _Table:
    """Stands for `KeyTable`: a key is its owner's name, filled up."""

    def lookup(self, key: bytes) -> Authorized:
        """Return whose key it is."""
        name = key.decode().rstrip("-")
        return Authorized(role=ROLES[name[0]], name=name)


class _Router:
    """Notes what the controller sends, and lets it wait for the commit."""

    def __init__(self, host: ControllerHost, router: SimulatedRouter) -> None:
        self._host = host
        self._router = router

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        host = self._host

        def leave() -> None:
            host.emit(Sent(message))
            self._router.send(message, peer=peer)

        life = host.process.life
        delay = host.ready_at - host.process.simulation.now
        if delay <= 0:
            leave()
        else:
            # Not a timer of the process: it has given the message away, and only dying takes it back.
            host.process.simulation.after(
                delay, lambda: leave() if life == host.process.life else None
            )
        return True

    def close(self) -> None:
        """Nothing to close."""


@dataclass(slots=True)
class ControllerHost:
    """A controller with its catalog."""

    network: Network
    switchboard: Switchboard
    faults: CatalogFaults
    emit: Callable[[Fact], None]
    lease_s: float
    heartbeat_s: float
    record_bytes: int
    process: Process = field(init=False)
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    service: SimulatedController = field(init=False)
    ready_at: float = 0.0

    def boot(self) -> None:
        """Start the controller."""
        self.catalog = self.catalog.reopen()
        self.ready_at = 0.0
        self.emit(ControllerStarted(self.catalog.load().jobs))
        self.service = SimulatedController(self)
        self.service.start()

    def commit(self, rows: Sequence[Row]) -> None:
        """Commit, or die."""
        simulation, faults = self.process.simulation, self.faults
        if not rows:
            return
        is_stored = simulation.chance(faults.after)
        if is_stored or simulation.chance(faults.before):
            simulation.probe(f"crash {'after' if is_stored else 'before'} a commit")
            self.catalog.fail_next_commit(is_stored=is_stored)
        try:
            self.catalog.commit(rows)
        except MediumError as error:
            if is_stored:
                self.emit(Committed(tuple(rows)))
            raise CrashedError from error
        self.emit(Committed(tuple(rows)))
        took = simulation.random.uniform(0.5, 1.5) * faults.commit_s
        self.ready_at = max(self.ready_at, simulation.now) + took
        self.process.hold(self.ready_at - simulation.now)


class _Catalog:
    """The catalog as the service holds it."""

    def __init__(self, host: ControllerHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host.catalog, name)

    def commit(self, rows: Sequence[Row]) -> None:
        """Commit, or die."""
        self._host.commit(rows)

    def load(self) -> Snapshot:
        """Return where the core left off."""
        return self._host.catalog.load()


class SimulatedController(ControllerService):
    """The real service; grants are handed over without a proof, identifiers come from the seed."""

    def __init__(self, host: ControllerHost) -> None:
        process, catalog = host.process, _Catalog(host)
        super().__init__(
            loop=process,  # type: ignore[arg-type]
            endpoint=_Router(host, host.switchboard.router(process)),  # type: ignore[arg-type]
            keys=None,  # type: ignore[arg-type]
            table=_Table(),  # type: ignore[arg-type]
            catalog=catalog,
            version="simulated",
            lease_s=host.lease_s,
            heartbeat_s=host.heartbeat_s,
        )
        self._machine = Machine(
            catalog.load(),
            new_uuid=lambda: process.simulation.bytes(16).hex(),
            lease_s=host.lease_s,
            record_bytes=host.record_bytes,
            stretch_bytes_min=1,  # Lanes also of volumes that a stretch would hold otherwise.
        )
        self._operators = OperatorInterface(
            self._machine,
            catalog,
            version="simulated",
            started=self._wall(),
        )

    def _feed(self, event: core.Event) -> None:
        super()._feed(event)
        self._machine.check()
        self._sessions.check()

    def _resolve(
        self, use: core.UnitUse, *, holder: bytes, job: JobId, item: ItemId, epoch: Any
    ) -> Resolution:
        node = self._machine.registry.nodes[use.node].row
        body = grants.encode_grant(
            grants.Grant(
                node=use.node,
                designator=use.designator,
                rights=use.rights,
                extents=use.extents,
                position=use.position,
                job=job,
                item=item,
                epoch=epoch,
                holder=holder,
                ttl_s=GRANT_TTL_S,
                bytes_max=use.bytes_max,
                lane=use.lane,
            )
        )
        return Resolution(
            designator=use.designator,
            node=use.node,
            addresses=node.addresses,
            node_key=node.public_key,
            grant=body,
            tag=b"",
        )
