"""The controller's core: the only entry point, and the only place where the parts meet.

    event --> handle --> [Record ..., Send ..., SendWork ..., Answer ...]

`handle` takes one event with the monotonic time and the wall-clock text, lets everything happen that can happen, and
returns the effects in order.  It holds tasks (a procedure and the wish it waits for), the registry and the
dispatcher.  Whatever a restart needs is in rows that were returned in a `Record` before anything depended on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, assert_never

from backplane.errors import BackupError, NotFoundError, error_from_kind
from backplane.ids import Epoch, ItemId, JobId, NodeName
from backplane.wire.frames import Status
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    SessionUnknown,
    UnitFenced,
    ViewMapping,
    ViewWaiting,
    WorkAcknowledged,
    WorkDone,
    WorkExtended,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from controller.catalog.store import (
    Change,
    CounterRow,
    DropMap,
    EventRow,
    ItemRow,
    JobRow,
    NodeRow,
    Snapshot,
    TakeStore,
)
from controller.core import documents, file_maps, groups, quiet_waits, schedules
from controller.core import jobs as procedures
from controller.core.arrivals import NUMBER_MAX, Arrivals
from controller.core.dispatcher import LEASE_S, Dispatcher
from controller.core.effects import (
    Alarm,
    Answer,
    Call,
    Effect,
    Event,
    ExtentsFetched,
    FromPeer,
    MapFetched,
    PeerLost,
    PeerReady,
    Record,
    Refuse,
    Send,
    SendWork,
    Tick,
    UnitUse,
)
from controller.core.inactivity import Inactivity
from controller.core.job import ENDED, Job, JobState, places_of
from controller.core.lanes import STRETCH_BYTES_MIN
from controller.core.media import media_deadline
from controller.core.planner import RECORD_BYTES
from controller.core.pools import default_pool
from controller.core.procedure import JobCancelledError, Procedure
from controller.core.registry import Mover, Node, Registry
from controller.core.tasks import Task, Tasks

SECONDS_MAX: Final = 366 * 86400.0
"""No item takes longer; a mover that says so does not spoil the sums."""


class Machine:
    """The whole controller, without a clock, a socket or a file."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        new_uuid: Callable[[], str],
        lease_s: float = LEASE_S,
        record_bytes: int = RECORD_BYTES,
        stretch_bytes_min: int = STRETCH_BYTES_MIN,
        inactivity: Inactivity | None = None,
    ) -> None:
        self.store = snapshot.store
        self.new_uuid = new_uuid
        self.record_bytes = record_bytes
        self.stretch_bytes_min = stretch_bytes_min
        self.now = 0.0
        self.wall = ""
        self.registry = Registry(inactivity=inactivity)
        self.dispatcher = Dispatcher(lease_s=lease_s)
        self.jobs: dict[JobId, Job] = {}
        self.backups = {row.backup: row for row in snapshot.backups}
        self._snapshot: Snapshot | None = snapshot
        self._counters = dict(snapshot.counters)
        self._event_sequences = dict(snapshot.event_sequences)
        self._effects: list[Effect] = []
        self._tasks = Tasks(self)
        self._arrivals = Arrivals(self)

    # --- driving ---------------------------------------------------------------------------------

    def start(self, *, now: float, wall: str) -> list[Effect]:
        """Take up where the catalog left off.  Call once, before any event."""
        assert self._snapshot is not None
        snapshot, self._snapshot = self._snapshot, None
        self.now, self.wall = now, wall
        # Answers to requests of an earlier life must never match one of ours.
        self._tasks.begin_requests_at(self.next_number("boot") << 32)
        for node in snapshot.nodes:
            self.registry.nodes[node.name] = Node(row=node, since=wall)
        self.registry.volumes = {row.volume: row for row in snapshot.volumes}
        self.registry.cartridges = {row.tag: row for row in snapshot.cartridges}
        self.registry.parts = {(row.backup, row.part): row for row in snapshot.parts}
        self.registry.drives = {(row.node, row.drive): row for row in snapshot.drives}
        self.registry.pools = {row.pool: row for row in (default_pool(), *snapshot.pools)}
        self.registry.schedules = {row.schedule: row for row in snapshot.schedules}
        if snapshot.partial_maps:
            self.record(*(DropMap(backup=backup) for backup in snapshot.partial_maps))
        items = {row.item: row for row in snapshot.items}
        active = [Job.from_row(row) for row in sorted(snapshot.jobs, key=lambda each: each.job)]
        for job in active:
            self.jobs[job.row.job] = job
            for seat, place in places_of(job.plan):
                # Before any procedure runs: nobody may take a drive that a mover may still be writing.
                where = NodeName(place["tape_node"]), place["drive"]
                self.registry.claim_drive(job.row.job, *where, seat=seat)
        for job in active:
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
                self._on_peer_lost(event)
            case FromPeer():
                self._on_message(event.name, event.message)
            case Call():
                self._on_call(event)
            case ExtentsFetched():
                self._tasks.extents_fetched(event)
            case MapFetched():
                self._tasks.map_fetched(event)
            case Tick():
                self._on_tick()
            case _:
                assert_never(event)
        self._settle()
        return self._take_effects()

    def deadline(self) -> float | None:
        """When the core wants a `Tick`."""
        inventory = min(self.registry.inventory_due.values(), default=None)
        media = media_deadline(self.registry, self.jobs, now=self.now, wall=self.wall)
        clock = schedules.deadline(self.registry, now=self.now, wall=self.wall)
        tasks = self._tasks.deadline()
        times = (self.dispatcher.deadline(now=self.now), tasks, inventory, media, clock)
        return min((time for time in times if time is not None), default=None)

    def check(self) -> None:
        """Assert the invariants over all state."""
        self.dispatcher.check()
        self._tasks.check()
        for claims in (self.registry.drive_claims, self.registry.volume_claims):
            for job in claims.values():
                assert job in self.jobs
                assert not self.jobs[job].has_ended
        without_drive = self.jobs.keys() - self.registry.drive_claims.values()
        assert not any(any(places_of(self.jobs[job].plan)) for job in without_drive)

    # --- what procedures use ---------------------------------------------------------------------

    def record(self, *rows: Change) -> None:
        """Make rows durable before anything that follows, and keep the registry true to them."""
        for row in rows:
            self.registry.remember(row)
            if isinstance(row, TakeStore):
                self.store = row.store
        self._effects.append(Record(rows=tuple(rows)))

    def save(self, job: Job, *rows: Change) -> None:
        """Record a job together with other rows, in one transaction."""
        self.record(job.to_row(), *rows)

    def enter(self, job: Job, state: JobState, *rows: Change, reason: str = "") -> None:
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

    def reach(self, counter: str, value: int) -> None:
        """Let a counter go on behind a value; durable like `next_number`."""
        assert value > self.counter(counter)
        self._counters[counter] = value
        self._effects.append(Record(rows=(CounterRow(name=counter, value=value),)))

    def next_epoch(self) -> Epoch:
        """Take a fencing number."""
        return Epoch(self.next_number("epoch"))

    def alarm(self, text: str) -> None:
        """Tell a person."""
        self._effects.append(Alarm(text=text))

    def counter(self, name: str) -> int:
        """Return the value of a counter without taking one."""
        return self._counters.get(name, 0)

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def spawn(self, procedure: Procedure, *, job: Job | None = None, call: int = 0) -> None:
        """Begin a procedure."""
        self._tasks.spawn(procedure, job=job, call=call)

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
        return self._tasks.signal(name, value)

    def cancel(self, job: Job) -> None:
        """Stop a job: its wish is withdrawn and `JobCancelledError` raised there."""
        job.update(is_cancelled=True)
        self.save(job)
        self._tasks.interrupt(job, JobCancelledError("cancelled by an operator"))

    def interrupt(self, job: Job, error: BackupError) -> None:
        """Let a job fail: its wish is withdrawn and the error raised there."""
        self._tasks.interrupt(job, error)

    def give_reason(self, job: Job, reason: str) -> None:
        """Show why a job waits; empty when it goes on."""
        if not job.has_ended and job.row.reason != reason:
            self.enter(job, job.state, reason=reason)
            if reason:
                self.log(job, "info", reason)

    # --- events ----------------------------------------------------------------------------------

    def _on_peer_ready(self, event: PeerReady) -> None:
        if event.role == "mover":
            known = self.registry.movers.get(event.name)
            if known is not None and known.boot_id != event.boot_id:
                for row in self.dispatcher.lose_mover(event.name):
                    self._item_lost(row, "its mover has restarted")
            mover = Mover(
                name=event.name,
                key=event.key,
                boot_id=event.boot_id,
                is_online=True,
                since=self.wall,
            )
            for lease in self.dispatcher.leases.values():
                if lease.mover == event.name:
                    mover.item, mover.job = lease.row.item, lease.row.job
            self.registry.movers[event.name] = mover
        elif event.role == "storage":
            self.registry.node_welcomed(event.name, event.boot_id, now=self.now)

    def _on_peer_lost(self, event: PeerLost) -> None:
        if event.role == "mover" and event.name in self.registry.movers:
            self.dispatcher.forget_mover(event.name)
            self.registry.movers[event.name].is_online = False
            self.registry.movers[event.name].since = self.wall
        if event.role == "storage":
            self.registry.inventory_due.pop(event.name, None)
        if event.role == "storage" and event.name in self.registry.nodes:
            self.registry.nodes[event.name].is_online = False
            self.registry.nodes[event.name].since = self.wall
            self._tasks.node_is_away(event.name)

    def _on_message(self, name: NodeName, message: Message) -> None:
        match message:
            case NodeInventory():
                self._on_inventory(name, message)
            case NodeReply() | UnitFenced() | NodeFailed():
                self._on_answer(name, message)
            case ViewWaiting():
                quiet_waits.heard(self, name, message)
            case ViewMapping():
                file_maps.heard(self, name, message)
            case WorkRequest():
                mover = self.registry.movers.get(name)
                if mover is not None and mover.is_online:
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
        self._arrivals.on_inventory(node, inventory)
        if is_new_boot:  # Otherwise it has our requests, and is at work on them.
            self._tasks.node_is_here(name)

    def _on_answer(self, name: NodeName, message: NodeReply | UnitFenced | NodeFailed) -> None:
        if not self._tasks.waits_for(message.request, node=name):
            return  # Late or doubled: answered already.
        if isinstance(message, NodeFailed):
            error = error_from_kind(message.error, message.reason, hint=message.hint)
            if isinstance(error, JobCancelledError):  # That is what operators do, and no node.
                error = BackupError(message.reason, hint=message.hint)
            self._tasks.refused(message.request, error)
            return
        if isinstance(message, NodeReply):
            self._learn(name, message)
        self._tasks.answered(message)

    def _learn(self, name: NodeName, reply: NodeReply) -> None:
        node = self.registry.nodes[name]
        node.volumes.update({state.volume: state for state in reply.volumes})
        node.views.update({state.view: state for state in reply.views})
        node.drives.update({state.drive: state for state in reply.drives})
        node.cartridges.update({state.tag: state for state in reply.cartridges})
        self._arrivals.adopt_media(node)

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
                segments=min(message.segments, NUMBER_MAX),
                seconds=min(max(0.0, message.seconds), SECONDS_MAX),
                ledger=documents.ledger_text(message.ledger),
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

    def _on_tick(self) -> None:
        for row in self.dispatcher.lose(now=self.now):
            self._item_lost(row, "the mover's lease has expired")
        for name in self.registry.missed_inventories(now=self.now):
            # It, or the welcome that should have brought it, was lost: have the node say hello again.
            self._effects.append(Send(peer=name, message=SessionUnknown()))
        schedules.run_due(self, submit=procedures.submit)
        self._tasks.tick()

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
        self._tasks.item_ended(row)

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
            self.give_reason(job, "")
        online = any(mover.is_online for mover in self.registry.movers.values())
        for waiting in self.dispatcher.ready.values():
            job = self.jobs[waiting.row.job]
            if not online:
                self.give_reason(job, "waiting: no mover is connected")
            elif self.now >= waiting.explain_at:
                self.give_reason(job, "waiting: all movers are busy")

    # --- tasks -----------------------------------------------------------------------------------

    def _take_up(self, job: Job, item: ItemRow | None) -> None:
        """Begin the procedure of a job that was there before the controller started."""
        self.log(job, "info", f"taken up again after a restart, in state {job.state.value}")
        if item is not None and item.state == "planned":
            # It never left, so it was no attempt.
            item = replace(item, state="revoked", detail="never sent")
            self.record(item)
            job.plan["tries"] = max(0, job.plan.get("tries", 0) - 1)
        if "ending" in job.plan or job.row.is_cancelled:
            if item is not None and item.state == "leased":
                self.record(replace(item, state="revoked", detail="its job is ending"))
            if "ending" in job.plan:
                self._spawn_cleanup(job)
            else:
                self._fail(job, JobCancelledError("cancelled by an operator"))
            return
        if item is not None and item.state == "leased":
            self.dispatcher.adopt(item, now=self.now)
            self._tasks.adopted[item.item] = item
        self.spawn(procedures.begin(self, job, item=item), job=job)

    def _settle(self) -> None:
        """Run what can run, hand out items, try claims again, until nothing moves any more."""
        while True:
            moved = self._tasks.run()
            self._assign()
            if not moved:
                return

    def task_failed(self, task: Task, error: BackupError) -> None:
        """A procedure ended in an error: tell whoever asked for it, or end its job."""
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
        self._tasks.drop_adopted(job)
        is_cancelled = isinstance(error, JobCancelledError)
        state = JobState.CANCELLED if is_cancelled else JobState.FAILED
        job.plan["ending"] = {
            "state": state.value,
            "reason": str(error),
            "exit_code": int(error.exit_code),
            "kind": error.kind,
        }
        if not is_cancelled:
            job.update(error_count=job.row.error_count + 1)
        self.save(job)
        self.log(job, "warning" if is_cancelled else "error", str(error))
        self._spawn_cleanup(job)
        for other, its_error in groups.fallen_with(self, job, error):
            self._tasks.interrupt(other, its_error)

    def _spawn_cleanup(self, job: Job) -> None:
        self._tasks.spawn(self._cleanup(job), job=job, is_cleanup=True)

    def _cleanup(self, job: Job) -> Procedure:
        yield from procedures.clean_up(self, job)
        self._end(job)

    def _end(self, job: Job) -> None:
        ending = job.plan["ending"]
        self.end_job(
            job, JobState(ending["state"]), reason=ending["reason"], exit_code=ending["exit_code"]
        )

    def end_job(
        self, job: Job, state: JobState, *rows: Change, reason: str, exit_code: int
    ) -> None:
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
