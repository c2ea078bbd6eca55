"""The controller's core: the only entry point, and the only place where the parts meet.

    event --> handle --> [Record ..., Send ..., SendWork ..., Answer ...]

`handle` takes one event with the monotonic time and the wall-clock text, lets everything happen that can happen, and
returns the effects in order.  It holds tasks (a procedure and the wish it waits for), the registry and the
dispatcher.  Whatever a restart needs is in rows that were returned in a `Record` before anything depended on it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, assert_never

from backplane.errors import BackupError, NotFoundError, UnreachableError, error_from_kind
from backplane.ids import Epoch, ItemId, JobId, NodeName
from backplane.scsi.sense import Sense
from backplane.wire.frames import Status
from backplane.wire.messages import (
    LedgerEntry,
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    UnitFenced,
    ViewRelease,
    WorkAcknowledged,
    WorkDone,
    WorkExtended,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from controller.catalog.store import (
    CartridgeRow,
    CounterRow,
    EventRow,
    ItemRow,
    JobRow,
    NodeRow,
    PartRow,
    Row,
    Snapshot,
    VolumeRow,
)
from controller.core import jobs as procedures
from controller.core.dispatcher import LEASE_S, Dispatcher
from controller.core.effects import (
    Alarm,
    Answer,
    Call,
    Effect,
    Event,
    ExtentsFetched,
    FetchExtents,
    FromPeer,
    PeerLost,
    PeerReady,
    Record,
    Refuse,
    Send,
    SendWork,
    Tick,
    UnitUse,
)
from controller.core.job import ENDED, Job, JobState
from controller.core.planner import RECORD_BYTES
from controller.core.procedure import (
    Ask,
    Claim,
    Extents,
    JobCancelledError,
    NotYet,
    Procedure,
    Run,
    Signal,
    Wish,
)
from controller.core.registry import Mover, Node, Registry

RESEND_S: Final = 3.0
"""How long a request to a node may go unanswered before it is sent again."""

CALL_TIMEOUT_S: Final = 60.0
"""How long an operator's call may wait for a storage node."""


@dataclass(slots=True)
class _Task:
    """A procedure and what it waits for."""

    number: int
    procedure: Procedure
    job: Job | None
    call: int = 0
    wish: Wish | None = None
    request: int = 0
    resend_at: float = 0.0
    deadline: float | None = None
    item: ItemId = ItemId(0)  # noqa: RUF009 - a number
    is_cleanup: bool = False


class Machine:
    """The whole controller, without a clock, a socket or a file."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        new_uuid: Callable[[], str],
        lease_s: float = LEASE_S,
        record_bytes: int = RECORD_BYTES,
    ) -> None:
        self.store = snapshot.store
        self.new_uuid = new_uuid
        self.record_bytes = record_bytes
        self.now = 0.0
        self.wall = ""
        self.registry = Registry()
        self.dispatcher = Dispatcher(lease_s=lease_s)
        self.jobs: dict[JobId, Job] = {}
        self.backups = {row.backup: row for row in snapshot.backups}
        self._snapshot: Snapshot | None = snapshot
        self._counters = dict(snapshot.counters)
        self._event_sequences = dict(snapshot.event_sequences)
        self._tasks: dict[int, _Task] = {}
        self._next_task = 1
        self._runnable: deque[tuple[_Task, Any, BackupError | None]] = deque()
        self._effects: list[Effect] = []
        self._answers: dict[int, _Task] = {}
        self._adopted: dict[ItemId, ItemRow] = {}
        """Items of an earlier life whose job has not come to wait for them yet, in their present state."""
        self._request = 0

    # --- driving ---------------------------------------------------------------------------------

    def start(self, *, now: float, wall: str) -> list[Effect]:
        """Take up where the catalog left off.  Call once, before any event."""
        assert self._snapshot is not None
        snapshot, self._snapshot = self._snapshot, None
        self.now, self.wall = now, wall
        # Answers to requests of an earlier life must never match one of ours.
        self._request = self.next_number("boot") << 32
        for node in snapshot.nodes:
            self.registry.nodes[node.name] = Node(row=node, since=wall)
        self.registry.volumes = {row.volume: row for row in snapshot.volumes}
        self.registry.cartridges = {row.tag: row for row in snapshot.cartridges}
        self.registry.parts = {(row.backup, row.part): row for row in snapshot.parts}
        items = {row.item: row for row in snapshot.items}
        for row in sorted(snapshot.jobs, key=lambda each: each.job):
            job = Job.from_row(row)
            self.jobs[row.job] = job
            self._take_up(job, items.get(ItemId(job.plan.get("item", 0))))
        self._settle()
        return self._take_effects()

    def handle(self, event: Event, *, now: float, wall: str) -> list[Effect]:
        """Let one event happen; returns effects in the order in which they must be performed."""
        assert now >= self.now, "the monotonic clock went backwards"
        self.now, self.wall = now, wall
        match event:
            case PeerReady():
                self._on_peer_ready(event)
            case PeerLost():
                self._on_peer_lost(event.name)
            case FromPeer():
                self._on_message(event.name, event.message)
            case Call():
                self._on_call(event)
            case ExtentsFetched():
                self._on_extents(event)
            case Tick():
                self._on_tick()
            case _:
                assert_never(event)
        self._settle()
        return self._take_effects()

    def deadline(self) -> float | None:
        """When the core wants a `Tick`."""
        times = [] if (lease := self.dispatcher.deadline()) is None else [lease]
        for task in self._tasks.values():
            if task.request and self._is_reachable(task):
                times.append(task.resend_at)
            if task.deadline is not None:
                times.append(task.deadline)
        return min(times, default=None)

    def check(self) -> None:
        """Assert the invariants over all state."""
        self.dispatcher.check()
        waiting = {task.item for task in self._tasks.values() if task.item}
        held = set(self.dispatcher.ready) | set(self.dispatcher.leases)
        adopted = {item for item, row in self._adopted.items() if row.state == "leased"}
        assert held == waiting | adopted, (
            f"{held} are held, {waiting} waited for, {adopted} adopted"
        )
        for task in self._tasks.values():
            assert task.wish is not None
            assert not task.request or self._answers.get(task.request) is task
            if task.job is not None and not task.is_cleanup:
                assert not task.job.has_ended
        for claims in (self.registry.drive_claims, self.registry.volume_claims):
            for job in claims.values():
                assert job in self.jobs
                assert not self.jobs[job].has_ended

    # --- what procedures use ---------------------------------------------------------------------

    def record(self, *rows: Row) -> None:
        """Make rows durable before anything that follows, and keep the registry true to them."""
        for row in rows:
            match row:
                case VolumeRow():
                    self.registry.volumes[row.volume] = row
                case CartridgeRow():
                    self.registry.cartridges[row.tag] = row
                case PartRow():
                    self.registry.parts[row.backup, row.part] = row
                case _:
                    pass
        self._effects.append(Record(rows=tuple(rows)))

    def save(self, job: Job, *rows: Row) -> None:
        """Record a job together with other rows, in one transaction."""
        self.record(job.to_row(), *rows)

    def enter(self, job: Job, state: JobState, *rows: Row, reason: str = "") -> None:
        """Change a job's state or its reason, durably."""
        if state is not job.state and state not in ENDED:
            self.log(job, "info", f"{state.value}{': ' + reason if reason else ''}")
        job.enter(state, reason=reason)
        self.save(job, *rows)

    def log(self, job: Job, level: str, text: str) -> None:
        """Add a line to a job's log."""
        sequence = self._event_sequences.get(job.row.job, 0) + 1
        self._event_sequences[job.row.job] = sequence
        self._effects.append(
            Record(
                rows=(
                    EventRow(
                        job=job.row.job, sequence=sequence, time=self.wall, level=level, text=text
                    ),
                )
            )
        )

    def next_number(self, counter: str) -> int:
        """Take the next number of a counter; it is durable before anything that uses it."""
        value = self._counters.get(counter, 0) + 1
        self._counters[counter] = value
        self._effects.append(Record(rows=(CounterRow(name=counter, value=value),)))
        return value

    def next_epoch(self) -> Epoch:
        """Take a fencing number."""
        return Epoch(self.next_number("epoch"))

    def alarm(self, text: str) -> None:
        """Tell a person."""
        self._effects.append(Alarm(text=text))

    def counter(self, name: str) -> int:
        """Return the value of a counter without taking one."""
        return self._counters.get(name, 0)

    def spawn(self, procedure: Procedure, *, job: Job | None = None, call: int = 0) -> None:
        """Begin a procedure."""
        task = _Task(number=self._next_task, procedure=procedure, job=job, call=call)
        if call:
            task.deadline = self.now + CALL_TIMEOUT_S
        self._next_task += 1
        self._tasks[task.number] = task
        self._runnable.append((task, None, None))

    def answer(
        self,
        call: int,
        document: dict[str, Any],
        *,
        uses: tuple[UnitUse, ...] = (),
        holder: bytes = b"",
    ) -> None:
        """Answer an operator's call; with `uses`, a grant for the operator's own data channel is made as well."""
        epoch = self.next_epoch() if uses else Epoch(0)
        self._effects.append(
            Answer(call=call, document=document, uses=uses, holder=holder, epoch=epoch)
        )

    def begin_job(self, row: JobRow) -> Job:
        """Make a submitted job durable and begin it."""
        job = Job.from_row(row)
        self.jobs[row.job] = job
        self.save(job)
        self.log(job, "info", f"submitted: {row.kind} {row.subject}")
        self.spawn(procedures.begin(self, job), job=job)
        return job

    def signal(self, name: str, value: Any) -> bool:
        """Wake the procedure that waits for an operator's word; False when none does."""
        for task in self._tasks.values():
            if isinstance(task.wish, Signal) and task.wish.name == name:
                self._grant(task, value)
                return True
        return False

    def cancel(self, job: Job) -> None:
        """Stop a job: its wish is withdrawn and `JobCancelledError` raised there."""
        job.update(is_cancelled=True)
        self.save(job)
        for task in list(self._tasks.values()):
            if task.job is job and not task.is_cleanup:
                self._withdraw(task)
                self._runnable.append((task, None, JobCancelledError("cancelled by an operator")))

    # --- events ----------------------------------------------------------------------------------

    def _on_peer_ready(self, event: PeerReady) -> None:
        if event.role == "mover":
            known = self.registry.movers.get(event.name)
            if known is not None and known.boot_id != event.boot_id:
                for row in self.dispatcher.lose_mover(event.name):
                    self._item_lost(row, "its mover has restarted")
            self.registry.movers[event.name] = Mover(
                name=event.name,
                key=event.key,
                boot_id=event.boot_id,
                is_online=True,
                since=self.wall,
            )
        elif event.role == "storage" and event.name in self.registry.nodes:
            # Requests wait for the inventory: only then do we know what the node has.
            self.registry.nodes[event.name].is_online = False

    def _on_peer_lost(self, name: NodeName) -> None:
        if name in self.registry.movers:
            self.dispatcher.forget_mover(name)
            self.registry.movers[name].is_online = False
            self.registry.movers[name].since = self.wall
        if name in self.registry.nodes:
            self.registry.nodes[name].is_online = False
            self.registry.nodes[name].since = self.wall
            for task in list(self._tasks.values()):
                if isinstance(task.wish, Ask) and task.wish.node == name:
                    self._node_is_away(task, task.wish)

    def _on_message(self, name: NodeName, message: Message) -> None:
        match message:
            case NodeInventory():
                self._on_inventory(name, message)
            case NodeReply() | UnitFenced() | NodeFailed():
                self._on_answer(name, message)
            case WorkRequest():
                self.dispatcher.request(name, message.credit)
            case WorkProgress():
                self._on_progress(name, message)
            case WorkDone():
                self._on_done(name, message)
            case _:
                # Welcomed peers send nothing else; the session layer has handled the rest.
                self.alarm(f"{name} sent {message.kind}, which is not for the controller")

    def _on_inventory(self, name: NodeName, inventory: NodeInventory) -> None:
        row = NodeRow(
            name=name,
            public_key=inventory.public_key,
            addresses=inventory.addresses,
            roles=inventory.roles,
            boot_id=inventory.boot_id,
            seen=self.wall,
        )
        node = self.registry.nodes.get(name)
        if node is None:
            node = self.registry.nodes[name] = Node(row=row)
        is_new_boot = node.row.boot_id != row.boot_id or not node.is_online
        node.row = row
        if is_new_boot:
            node.is_online, node.since = True, self.wall
            self.record(row)
        self.registry.take_inventory(node, inventory)
        self._adopt_media(node)
        active = {job.row.view for job in self.jobs.values() if not job.has_ended}
        for view in node.views.values():
            if view.view not in active:
                self.spawn(self._release_orphan(name, view.view))
        for task in self._tasks.values():
            if isinstance(task.wish, Ask) and task.wish.node == name:
                self._send_request(task, task.wish)

    def _release_orphan(self, node: NodeName, view: str) -> Procedure:
        """Release a view whose job has ended while its node was away."""
        try:
            yield Ask(
                node=node,
                make=lambda request: ViewRelease(request=request, view=view),  # type: ignore[arg-type]
                what="release an orphaned view",
                gives_up=True,
            )
        except UnreachableError:
            return  # The node is away again; its next inventory brings us back here.

    def _adopt_media(self, node: Node) -> None:
        """Give rows to cartridges that are new in the library."""
        for state in node.cartridges.values():
            known = self.registry.cartridges.get(state.tag)
            if known is not None and known.node == node.row.name:
                continue
            status, detail = state.status, state.detail
            if status in ("writable", "full"):
                # Somebody else's data, or a catalog older than the tape: never to be written by us.
                status, detail = "foreign", "has data that this catalog does not know"
            if known is not None:
                self.alarm(
                    f"barcode {state.tag} is at {known.node} and at {node.row.name}: not used"
                )
                continue
            self.record(
                CartridgeRow(
                    tag=state.tag,
                    cartridge=state.cartridge,
                    node=node.row.name,
                    status=status,
                    detail=detail,
                    end=0,
                    sequence=0,
                    capacity_bytes=state.capacity_bytes,
                    created=self.wall,
                )
            )

    def _on_answer(self, name: NodeName, message: NodeReply | UnitFenced | NodeFailed) -> None:
        task = self._answers.get(message.request)
        if task is None or not isinstance(task.wish, Ask) or task.wish.node != name:
            return  # Late or doubled: answered already.
        if isinstance(message, NodeFailed):
            self._withdraw(task)
            error = error_from_kind(message.error, message.reason, hint=message.hint)
            self._runnable.append((task, None, error))
            return
        if isinstance(message, NodeReply):
            self._learn(name, message)
        self._grant(task, message)

    def _learn(self, name: NodeName, reply: NodeReply) -> None:
        node = self.registry.nodes[name]
        node.volumes.update({state.volume: state for state in reply.volumes})
        node.views.update({state.view: state for state in reply.views})
        node.drives.update({state.drive: state for state in reply.drives})
        node.cartridges.update({state.tag: state for state in reply.cartridges})
        self._adopt_media(node)

    def _on_progress(self, name: NodeName, message: WorkProgress) -> None:
        mover = self.registry.movers.get(name)
        if not self.dispatcher.progress(name, message, now=self.now):
            self._effects.append(
                Send(
                    peer=name,
                    message=WorkRevoked(
                        item=message.item, epoch=message.epoch, reason="the lease is not yours"
                    ),
                )
            )
            return
        if mover is not None:
            mover.bytes_read, mover.bytes_written = message.bytes_read, message.bytes_written
        self._effects.append(
            Send(
                peer=name,
                message=WorkExtended(
                    item=message.item,
                    epoch=message.epoch,
                    sequence=message.sequence,
                    lease_s=self.dispatcher.lease_s,
                ),
            )
        )

    def _on_done(self, name: NodeName, message: WorkDone) -> None:
        row = self.dispatcher.done(name, message)
        if row is not None:
            good = message.status == Status.GOOD
            row = replace(
                row,
                state="done" if good else "failed",
                status=message.status,
                sense=message.sense,
                segments=message.segments,
                seconds=message.seconds,
                ledger=ledger_text(message.ledger),
                detail=message.detail,
            )
            self.record(row)
            self._item_ended(row)
        # Acknowledged in any case: a result that is not wanted any more need not be sent again.
        self._effects.append(
            Send(peer=name, message=WorkAcknowledged(item=message.item, epoch=message.epoch))
        )

    def _on_call(self, call: Call) -> None:
        try:
            procedures.answer_call(self, call)
        except BackupError as error:
            self._effects.append(Refuse(call=call.call, error=error))

    def _on_extents(self, event: ExtentsFetched) -> None:
        for task in list(self._tasks.values()):
            wish = task.wish
            if (
                isinstance(wish, Extents)
                and task.job is not None
                and task.job.row.job == event.job
                and wish.backup == event.backup
            ):
                self._grant(task, event.runs)

    def _on_tick(self) -> None:
        for row in self.dispatcher.lose(now=self.now):
            self._item_lost(row, "the mover's lease has expired")
        for task in list(self._tasks.values()):
            if task.deadline is not None and task.deadline <= self.now:
                self._time_is_up(task)
            elif task.request and task.resend_at <= self.now and isinstance(task.wish, Ask):
                self._send_request(task, task.wish)

    def _time_is_up(self, task: _Task) -> None:
        wish = task.wish
        if isinstance(wish, Signal):
            self._grant(task, None)
            return
        self._withdraw(task)
        task.deadline = None
        what = wish.what if isinstance(wish, Ask) else "the call"
        self._runnable.append(
            (task, None, UnreachableError(f"{what}: no answer within {CALL_TIMEOUT_S:.0f} s"))
        )

    # --- items -----------------------------------------------------------------------------------

    def _item_lost(self, row: ItemRow, why: str) -> None:
        row = replace(row, state="lost", detail=why)
        self.record(row)
        mover = NodeName(row.movers[-1])
        self._effects.append(
            Send(peer=mover, message=WorkRevoked(item=row.item, epoch=row.epoch, reason=why))
        )
        job = self.jobs.get(row.job)
        if job is not None:
            self.log(job, "warning", f"item {row.item} on {mover} is lost: {why}")
        self._item_ended(row)

    def _item_ended(self, row: ItemRow) -> None:
        for mover in self.registry.movers.values():
            if mover.item == row.item:
                mover.item = mover.job = 0
        for task in list(self._tasks.values()):
            if task.item == row.item:
                self._grant(task, row)
        if row.item in self._adopted:
            self._adopted[row.item] = row

    def _assign(self) -> None:
        for row, name, uses in self.dispatcher.assign(now=self.now, next_epoch=self.next_epoch):
            self.record(row)
            self._effects.append(
                SendWork(mover=name, item=row, uses=uses, lease_s=self.dispatcher.lease_s)
            )
            mover = self.registry.movers[name]
            mover.item, mover.job = row.item, row.job
            mover.bytes_read = mover.bytes_written = 0
            job = self.jobs[row.job]
            if job.row.reason:
                self.enter(job, job.state)
        online = any(mover.is_online for mover in self.registry.movers.values())
        for waiting in self.dispatcher.ready.values():
            reason = "waiting: all movers are busy" if online else "waiting: no mover is connected"
            self._give_reason(self.jobs[waiting.row.job], reason)

    # --- tasks -----------------------------------------------------------------------------------

    def _take_up(self, job: Job, item: ItemRow | None) -> None:
        """Begin the procedure of a job that was there before the controller started."""
        self.log(job, "info", f"taken up again after a restart, in state {job.state.value}")
        if item is not None and item.state == "planned":
            self.record(replace(item, state="revoked", detail="never sent"))
        if "ending" in job.plan:
            self._spawn_cleanup(job)
        elif job.row.is_cancelled:
            self._fail(job, JobCancelledError("cancelled by an operator"))
        else:
            if item is not None and item.state == "leased":
                self.dispatcher.adopt(item, now=self.now)
                self._adopted[item.item] = item
            self.spawn(procedures.begin(self, job, item=item), job=job)

    def _settle(self) -> None:
        """Run what can run, hand out items, try claims again, until nothing moves any more."""
        while True:
            while self._runnable:
                task, value, error = self._runnable.popleft()
                if task.number in self._tasks:
                    self._step(task, value, error)
            self._try_claims()
            self._assign()
            if not self._runnable:
                return

    def _step(self, task: _Task, value: Any, error: BackupError | None) -> None:
        try:
            if error is not None:
                task.wish = task.procedure.throw(error)
            else:
                task.wish = task.procedure.send(value)
        except StopIteration:
            del self._tasks[task.number]
            return
        except BackupError as failure:
            del self._tasks[task.number]
            self._task_failed(task, failure)
            return
        self._wish(task, task.wish)

    def _wish(self, task: _Task, wish: Wish) -> None:
        match wish:
            case Ask():
                self._request += 1
                task.request = self._request
                self._answers[task.request] = task
                self._send_request(task, wish)
            case Run():
                task.item = wish.row.item
                if wish.row.state == "planned":
                    self.dispatcher.offer(wish.row, wish.uses, avoid=self._unlucky(task))
                else:
                    adopted = self._adopted.pop(wish.row.item)
                    if adopted.state != "leased":
                        self._grant(task, adopted)  # It ended while the job was on its way here.
            case Extents():
                assert task.job is not None
                self._effects.append(FetchExtents(job=task.job.row.job, backup=wish.backup))
            case Signal():
                task.deadline = self.now + wish.timeout_s
            case Claim():
                pass  # Tried in `_try_claims`.
            case _:
                assert_never(wish)

    def _unlucky(self, task: _Task) -> frozenset[NodeName]:
        if task.job is None:
            return frozenset()
        return frozenset(NodeName(name) for name in task.job.plan.get("unlucky", []))

    def _try_claims(self) -> None:
        for task in sorted(self._tasks.values(), key=lambda each: each.number):
            if not isinstance(task.wish, Claim):
                continue
            try:
                result = task.wish.attempt()
            except BackupError as error:
                self._withdraw(task)
                self._runnable.append((task, None, error))
                continue
            if isinstance(result, NotYet):
                if task.job is not None:
                    self._give_reason(task.job, result.reason)
            else:
                self._grant(task, result)

    def _give_reason(self, job: Job, reason: str) -> None:
        if not job.has_ended and job.row.reason != reason:
            self.enter(job, job.state, reason=reason)
            self.log(job, "info", reason)

    def _send_request(self, task: _Task, wish: Ask) -> None:
        if not self.registry.is_online(wish.node):
            self._node_is_away(task, wish)
            return
        if task.job is not None and task.job.row.reason.startswith("waiting: storage node"):
            self.enter(task.job, task.job.state)
        task.resend_at = self.now + RESEND_S
        self._effects.append(Send(peer=wish.node, message=wish.make(task.request)))

    def _node_is_away(self, task: _Task, wish: Ask) -> None:
        if wish.gives_up or task.call:
            self._withdraw(task)
            self._runnable.append(
                (task, None, UnreachableError(f"{wish.what}: storage node {wish.node} is away"))
            )
        elif task.job is not None:
            self._give_reason(task.job, f"waiting: storage node {wish.node} is away")

    def _is_reachable(self, task: _Task) -> bool:
        return isinstance(task.wish, Ask) and self.registry.is_online(task.wish.node)

    def _grant(self, task: _Task, value: Any) -> None:
        self._withdraw(task)
        self._runnable.append((task, value, None))

    def _withdraw(self, task: _Task) -> None:
        """Forget what a task waits for."""
        self._answers.pop(task.request, None)
        task.request = 0
        if task.item:
            lease = self.dispatcher.withdraw(task.item)
            if lease is not None:
                self._effects.append(
                    Send(
                        peer=lease.mover,
                        message=WorkRevoked(
                            item=task.item, epoch=lease.row.epoch, reason="cancelled"
                        ),
                    )
                )
                self.record(replace(lease.row, state="revoked", detail="cancelled"))
            task.item = ItemId(0)
        if isinstance(task.wish, Signal):
            task.deadline = None
        task.wish = None

    def _task_failed(self, task: _Task, error: BackupError) -> None:
        if task.call:
            self._effects.append(Refuse(call=task.call, error=error))
        elif task.job is None:
            self.alarm(str(error))
        elif task.is_cleanup:
            self.log(task.job, "warning", f"clean-up: {error}")
            self._end(task.job)
        else:
            self._fail(task.job, error)

    def _fail(self, job: Job, error: BackupError) -> None:
        """A job's procedure ended in an error: decide how the job ends, durably, then clean up."""
        for item in [item for item, row in self._adopted.items() if row.job == job.row.job]:
            del self._adopted[item]
            self.dispatcher.withdraw(item)
        is_cancelled = isinstance(error, JobCancelledError)
        state = JobState.CANCELLED if is_cancelled else JobState.FAILED
        job.plan["ending"] = {
            "state": state.value,
            "reason": str(error),
            "exit_code": int(error.exit_code),
        }
        if not is_cancelled:
            job.update(error_count=job.row.error_count + 1)
        self.save(job)
        self.log(job, "warning" if is_cancelled else "error", str(error))
        self._spawn_cleanup(job)

    def _spawn_cleanup(self, job: Job) -> None:
        task = _Task(number=self._next_task, procedure=self._cleanup(job), job=job, is_cleanup=True)
        self._next_task += 1
        self._tasks[task.number] = task
        self._runnable.append((task, None, None))

    def _cleanup(self, job: Job) -> Procedure:
        yield from procedures.clean_up(self, job)
        self._end(job)

    def _end(self, job: Job) -> None:
        ending = job.plan["ending"]
        self.end_job(
            job, JobState(ending["state"]), reason=ending["reason"], exit_code=ending["exit_code"]
        )

    def end_job(self, job: Job, state: JobState, *rows: Row, reason: str, exit_code: int) -> None:
        """Bring a job to an ended state."""
        job.update(ended=self.wall, exit_code=exit_code)
        self.log(
            job,
            "info" if exit_code == 0 else "error",
            f"{state.value}{': ' + reason if reason else ''}",
        )
        self.enter(job, state, *rows, reason=reason)
        self.registry.release(job.row.job)
        self.jobs.pop(job.row.job, None)

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def require_job(self, number: int) -> Job:
        """Return an active job; raises `NotFoundError`."""
        job = self.jobs.get(JobId(number))
        if job is None:
            raise NotFoundError(
                f"no active job has number {number}", hint="ctl job list shows them"
            )
        return job


def ledger_text(ledger: tuple[LedgerEntry, ...]) -> str:
    """Return a ledger as the JSON text that an item's row keeps."""
    return json.dumps(
        [
            {
                "designator": entry.designator.hex(),
                "bytes_read": entry.bytes_read,
                "bytes_written": entry.bytes_written,
                "bytes_padded": entry.bytes_padded,
                "bytes_discarded": entry.bytes_discarded,
                "records_read": entry.records_read,
                "records_written": entry.records_written,
                "filemarks_written": entry.filemarks_written,
                "rereads": entry.rereads,
                "position": entry.position,
            }
            for entry in ledger
        ]
    )


def sense_of(row: ItemRow) -> Sense | None:
    """Return the decoded sense of an ended item, None if it has none."""
    return Sense.decode(row.sense) if row.sense else None
