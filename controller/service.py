"""The controller process: one socket, the catalog, the core, and nothing that decides.

    receive -> session layer -> core -> commit every Record in one transaction -> perform the rest

A commit that fails ends the process: the catalog may or may not have the rows, and only a restart finds out (an fsync
that failed is never tried again).  No data channel is opened here, whatever happens: there is no code for it.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, assert_never

from backplane.errors import BackupError, NotAuthorizedError
from backplane.ids import Epoch, ItemId, JobId
from backplane.runtime import failpoints
from backplane.runtime.keys import KeyPair, KeyTable
from backplane.runtime.loop import Loop, Timer
from backplane.transport.base import Received
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire import grants, session
from backplane.wire.messages import (
    REPLY_BYTES_MAX,
    Message,
    NodeInventory,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    Resolution,
    WorkItem,
)
from controller.catalog.identity import CatalogIdentity
from controller.catalog.store import Catalog, Snapshot, TakeStore
from controller.core import effects as core
from controller.core.extent_runs import ExtentRuns
from controller.core.inactivity import Inactivity
from controller.core.job_row import submitted_document
from controller.core.lanes import STRETCH_BYTES_MIN
from controller.core.machine import Machine
from controller.operator_interface import OperatorInterface
from controller.operator_verbs import parse_arguments, scheduled_arguments

_logger = logging.getLogger(__name__)

GRANT_TTL_S: Final = 12 * 3600.0
"""A bound in case everything else is forgotten; what revokes a grant is the fence."""

DOCUMENT_BYTES_MAX: Final = REPLY_BYTES_MAX - 4096
"""`OperatorReply.document`."""

ANSWERS_KEPT_MAX: Final = 256
"""Answers kept for calls that are sent again because their answer was lost."""


_Slot: TypeAlias = tuple[bytes, bytes, int]
"""A call of one process: key, boot id, number of the request."""


def _current(snapshot: Snapshot) -> Snapshot:
    """Complete what schedules submit: the catalog may have it from an earlier release, which knew fewer arguments."""
    rows = tuple(
        replace(row, arguments=json.dumps(scheduled_arguments(row.arguments), sort_keys=True))
        for row in snapshot.schedules
    )
    return replace(snapshot, schedules=rows)


@dataclass(slots=True)
class _Call:
    """Where the answer to an operator's call goes."""

    peer: bytes
    request: int
    slot: _Slot


class ControllerService:
    """Joins endpoint, sessions, core and catalog."""

    def __init__(
        self,
        *,
        loop: Loop,
        endpoint: RouterEndpoint,
        keys: KeyPair,
        table: KeyTable,
        catalog: Catalog,
        version: str,
        lease_s: float,
        heartbeat_s: float,
        inactivity: Inactivity | None = None,
        identity: CatalogIdentity | None = None,
        stretch_bytes_min: int = STRETCH_BYTES_MIN,
    ) -> None:
        self._loop = loop
        self._identity = identity
        self._endpoint = endpoint
        self._keys = keys
        self._table = table
        self._catalog = catalog
        self._sessions = session.Sessions(store=catalog.store, heartbeat_s=heartbeat_s)
        self._machine = Machine(
            _current(catalog.load()),
            new_uuid=lambda: uuid.uuid4().hex,
            lease_s=lease_s,
            inactivity=inactivity,
            stretch_bytes_min=stretch_bytes_min,
        )
        self._operators = OperatorInterface(
            self._machine, catalog, version=version, started=self._wall()
        )
        self._calls: dict[int, _Call] = {}
        self._open_calls: dict[_Slot, int] = {}
        self._answered: OrderedDict[_Slot, Message] = OrderedDict()
        self._next_call = 1
        self._timer: Timer | None = None

    def start(self) -> None:
        """Take up where the catalog left off, and listen."""
        self._perform(self._machine.start(now=self._loop.now(), wall=self._wall()))
        self._loop.watch(self._endpoint, self._on_received)
        self._arm()

    def dump(self) -> None:
        """Log the state (SIGUSR1)."""
        for job in self._machine.jobs.values():
            _logger.info(
                "job", extra={"job": job.row.job, "state": job.row.state, "reason": job.row.reason}
            )
        for lease in self._machine.dispatcher.leases.values():
            _logger.info("lease", extra={"item": lease.row.item, "mover": lease.mover})
        for live in self._sessions.live:
            _logger.info("session", extra={"role": live.role, "peer": live.name})

    # --- in --------------------------------------------------------------------------------------

    def _wall(self) -> str:
        return self._loop.clock.wall().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _on_received(self, received: Received) -> None:
        event = session.Heard(
            peer=received.peer,
            key=received.key,
            authorized=self._table.lookup(received.key),
            message=received.message,
        )
        self._perform_sessions(self._sessions.handle(event, now=self._loop.now()))
        self._arm()

    def _on_timer(self) -> None:
        now = self._loop.now()
        self._perform_sessions(self._sessions.handle(session.Tick(), now=now))
        self._feed(core.Tick())
        self._arm()

    def _arm(self) -> None:
        times = [t for t in (self._machine.deadline(), self._sessions.deadline()) if t is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = self._loop.after(min(times) - self._loop.now(), self._on_timer)

    def _perform_sessions(self, effects: Iterable[session.SessionsEffect]) -> None:
        for effect in effects:
            match effect:
                case session.SendTo():
                    self._endpoint.send(effect.message, peer=effect.peer)
                case session.PeerReady():
                    self._on_peer_ready(effect.session, is_new=effect.is_new)
                case session.PeerLost():
                    _logger.info(
                        "peer lost", extra={"peer": effect.session.name, "reason": effect.reason}
                    )
                    if effect.session.role != session.OPERATOR:
                        self._feed(
                            core.PeerLost(name=effect.session.name, role=effect.session.role)
                        )
                case session.FromPeer():
                    self._on_message(effect.session, effect.message)
                case session.Fault():
                    _logger.warning("protocol fault: %s", effect.reason)
                case _:
                    assert_never(effect)

    def _on_peer_ready(self, live: session.Session, *, is_new: bool) -> None:
        if is_new:
            _logger.info("peer ready", extra={"peer": live.name, "role": live.role})
        if live.role != session.OPERATOR:
            self._feed(
                core.PeerReady(name=live.name, role=live.role, boot_id=live.boot_id, key=live.key)
            )

    def _on_message(self, live: session.Session, message: Message) -> None:
        if isinstance(message, OperatorCall):
            self._on_call(live, message)
        elif isinstance(message, NodeInventory) and message.public_key != live.key:
            # Grants are made for this key: it has to be the one that the session has proved.
            _logger.warning("inventory with another key", extra={"peer": live.name})
        else:
            self._feed(core.FromPeer(name=live.name, message=message))

    def _feed(self, event: core.Event) -> None:
        self._perform(self._machine.handle(event, now=self._loop.now(), wall=self._wall()))

    # --- operators -------------------------------------------------------------------------------

    def _on_call(self, live: session.Session, message: OperatorCall) -> None:
        # The boot id is the operator's own choice: with the key, nobody is given the answers of another.
        slot = (live.key, live.boot_id, message.request)
        if slot in self._answered:
            self._endpoint.send(self._answered[slot], peer=live.peer)
            return
        if slot in self._open_calls:
            self._calls[self._open_calls[slot]].peer = live.peer
            return  # Sent again while we are at it.
        number = self._next_call
        self._next_call += 1
        self._calls[number] = _Call(live.peer, message.request, slot)
        self._open_calls[slot] = number
        try:
            arguments = parse_arguments(message.verb, message.arguments)
            document = self._operators.read(message.verb, arguments, wall=self._wall())
            if document is not None:
                self._answer(number, document, is_kept=False)
                return
            event = self._changing_call(number, live, message.verb, arguments)
        except BackupError as error:
            self._refuse(number, error)
            return
        if event is not None:
            self._feed(event)

    def _changing_call(
        self, number: int, live: session.Session, verb: str, arguments: dict[str, Any]
    ) -> core.Call | None:
        """Look names up, and let the core do the rest; None if the call is answered already."""
        if "holder" in arguments and arguments["holder"] != live.key.hex():
            raise NotAuthorizedError("a grant is made for the key that asks, and for no other")
        if verb == "schedule.create":
            arguments["arguments"] = scheduled_arguments(arguments["arguments"])
        if verb in ("job.submit", "catalog.rebuild", "schedule.run"):
            earlier = self._operators.submitted(arguments["token"])
            if earlier is not None:
                self._answer(number, submitted_document(earlier))
                return None
            if arguments.get("backup"):
                arguments["backup"] = self._operators.find_backup(arguments["backup"]).backup
        elif verb == "job.cancel":
            row = self._operators.require_job(arguments["job"])
            if row.exit_code >= 0:
                self._answer(number, {"job": row.job, "state": row.state})
                return None
        return core.Call(call=number, verb=verb, arguments=arguments, holder=live.key)

    def _answer(self, number: int, document: dict[str, Any], *, is_kept: bool = True) -> None:
        call = self._calls[number]
        data = json.dumps(document).encode()
        if len(data) > DOCUMENT_BYTES_MAX:
            self._refuse(number, BackupError("the answer is larger than a message can be"))
            return
        self._reply(number, OperatorReply(request=call.request, document=data), is_kept=is_kept)

    def _refuse(self, number: int, error: BackupError) -> None:
        call = self._calls[number]
        self._reply(
            number,
            OperatorFailed(
                request=call.request,
                error=error.kind,
                reason=error.message[:4096],
                hint=error.hint[:4096],
                exit_code=int(error.exit_code),
            ),
            is_kept=False,
        )

    def _reply(self, number: int, message: Message, *, is_kept: bool) -> None:
        call = self._calls.pop(number)
        del self._open_calls[call.slot]
        if is_kept:
            self._answered[call.slot] = message
            while len(self._answered) > ANSWERS_KEPT_MAX:
                self._answered.popitem(last=False)
        self._endpoint.send(message, peer=call.peer)

    # --- out -------------------------------------------------------------------------------------

    def _perform(self, effects: list[core.Effect]) -> None:
        rows = [row for effect in effects if isinstance(effect, core.Record) for row in effect.rows]
        if rows:
            stores = [row.store for row in rows if isinstance(row, TakeStore)]
            if stores and self._identity is not None:
                self._identity.remember(stores[-1], self._catalog.store)
            failpoints.passed("controller.commit.before")
            self._catalog.commit(rows)
            failpoints.passed("controller.commit.after")
            if stores and self._identity is not None:
                self._identity.remember(self._catalog.store)
            if stores:
                self._sessions.take_store(self._catalog.store)
        for effect in effects:
            match effect:
                case core.Record():
                    pass  # Durable already.
                case core.Send():
                    self._send(effect.peer, effect.message)
                case core.SendWork():
                    self._send_work(effect)
                case core.FetchExtents():
                    self._fetch_extents(effect)
                case core.FetchMap():
                    self._fetch_map(effect)
                case core.Answer():
                    self._answer_call(effect)
                case core.Refuse():
                    if effect.call in self._calls:
                        self._refuse(effect.call, effect.error)
                case core.Alarm():
                    _logger.error("ALARM: %s", effect.text)
                case _:
                    assert_never(effect)

    def _send(self, name: str, message: Message) -> None:
        # A mover and a storage node may have the same name; no message is for both.
        role = "mover" if message.kind.startswith("work.") else "storage"
        live = self._sessions.find(name, role=role)
        # A peer that is away says hello when it is back; whatever it needs is sent again then.
        if live is not None:
            self._endpoint.send(message, peer=live.peer)

    def _send_work(self, effect: core.SendWork) -> None:
        live = self._sessions.find(effect.mover, role="mover")
        if live is None or self._table.lookup(live.key) is None:
            return  # It went away, or lost its key, this instant: the lease will end.
        item = effect.item
        units = tuple(
            self._resolve(use, holder=live.key, job=item.job, item=item.item, epoch=item.epoch)
            for use in effect.uses
        )
        work = WorkItem(
            item=item.item,
            job=item.job,
            epoch=item.epoch,
            lease_s=effect.lease_s,
            parameter_list=item.parameter_list,
            units=units,
        )
        failpoints.passed("controller.work")
        self._endpoint.send(work, peer=live.peer)

    def _resolve(
        self, use: core.UnitUse, *, holder: bytes, job: JobId, item: ItemId, epoch: Epoch
    ) -> Resolution:
        """Make the grant for one use, bound to the holder's key."""
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
        key = grants.grant_key(grants.agree(self._keys.secret, node.public_key))
        return Resolution(
            designator=use.designator,
            node=use.node,
            addresses=node.addresses,
            node_key=node.public_key,
            grant=body,
            tag=grants.grant_tag(body, key=key),
        )

    def _answer_call(self, effect: core.Answer) -> None:
        if effect.call not in self._calls:
            return  # Asked before a restart; the operator asks again.
        document = effect.document
        if effect.uses and self._table.lookup(effect.holder) is None:
            self._refuse(effect.call, NotAuthorizedError("the key is not authorized any more"))
            return
        if effect.uses:
            unit = self._resolve(
                effect.uses[0],
                holder=effect.holder,
                job=JobId(document["job"]),
                item=ItemId(0),
                epoch=effect.epoch,
            )
            document = {
                **document,
                "channel": {
                    "designator": unit.designator.hex(),
                    "addresses": list(unit.addresses),
                    "node_key": unit.node_key.hex(),
                    "grant": unit.grant.hex(),
                    "tag": unit.tag.hex(),
                },
            }
        self._answer(effect.call, document)

    def _fetch_extents(self, effect: core.FetchExtents) -> None:
        packed = self._catalog.extents(effect.backup)
        runs = ExtentRuns.unpack(packed) if packed is not None else ExtentRuns()
        event = core.ExtentsFetched(job=effect.job, backup=effect.backup, runs=runs)
        self._loop.post(lambda: self._feed_later(event))

    def _fetch_map(self, effect: core.FetchMap) -> None:
        if effect.page is None:
            packed = self._catalog.map_header(effect.backup)
        else:
            row = self._catalog.map_page(effect.backup, effect.page)
            packed = row.packed if row is not None else None
        event = core.MapFetched(
            job=effect.job, backup=effect.backup, page=effect.page, packed=packed
        )
        self._loop.post(lambda: self._feed_later(event))

    def _feed_later(self, event: core.Event) -> None:
        self._feed(event)
        self._arm()
