"""Tasks: procedures, and the wishes they wait for.

A task is a generator with at most one wish outstanding.  `Tasks` sends requests to nodes (again, until they answer),
offers items to the dispatcher, tries claims, and steps a generator when its wish is granted or refused.  What happens
to a job when its procedure fails is the machine's business (`Host`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, assert_never

from backplane.errors import BackupError, RemoteProtocolError, UnreachableError
from backplane.ids import ItemId, NodeName
from backplane.units import format_duration
from backplane.wire.messages import NodeReply, UnitFence, UnitFenced, WorkRevoked
from controller.catalog.store import Change, ItemRow
from controller.core.dispatcher import Dispatcher
from controller.core.effects import (
    Alarm,
    Effect,
    ExtentsFetched,
    FetchExtents,
    FetchMap,
    MapFetched,
    Send,
)
from controller.core.job import Job
from controller.core.procedure import (
    Ask,
    Claim,
    Extents,
    MapPiece,
    NotYet,
    Procedure,
    Run,
    Signal,
    Wish,
)
from controller.core.registry import Registry

RESEND_S: Final = 3.0
"""How long a request to a node may go unanswered before it is sent again."""

CALL_TIMEOUT_S: Final = 60.0
"""How long an operator's call may wait for a storage node."""

WAITING: Final = "waiting:"
WAITING_FOR_NODE: Final = f"{WAITING} storage node"


@dataclass(slots=True)
class Task:
    """A procedure and what it waits for."""

    number: int
    procedure: Procedure
    job: Job | None
    call: int = 0
    wish: Wish | None = None
    request: int = 0
    expects: type[NodeReply | UnitFenced] = NodeReply
    resend_at: float = 0.0
    slow_at: float | None = None
    deadline: float | None = None
    item: ItemId = ItemId(0)  # noqa: RUF009 - a number
    is_cleanup: bool = False


class Host(Protocol):
    """What tasks need of the machine."""

    now: float
    registry: Registry
    dispatcher: Dispatcher

    def record(self, *rows: Change) -> None:
        """Make rows durable."""

    def emit(self, effect: Effect) -> None:
        """Add an effect."""

    def give_reason(self, job: Job, reason: str) -> None:
        """Show why a job waits; empty when it goes on."""

    def task_failed(self, task: Task, error: BackupError) -> None:
        """A procedure ended in an error."""


class Tasks:
    """All procedures that are under way."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tasks: dict[int, Task] = {}
        self._runnable: deque[tuple[Task, Any, BackupError | None]] = deque()
        self._answers: dict[int, Task] = {}
        self._next_task = 1
        self._request = 0
        self.adopted: dict[ItemId, ItemRow] = {}
        """Items of an earlier life whose job has not come to wait for them yet, in their present state."""

    def begin_requests_at(self, number: int) -> None:
        """Number requests from here on: answers to an earlier life's must never match."""
        self._request = number

    def all(self) -> list[Task]:
        """Return all tasks, oldest first."""
        return [self._tasks[number] for number in sorted(self._tasks)]

    def spawn(
        self,
        procedure: Procedure,
        *,
        job: Job | None = None,
        call: int = 0,
        is_cleanup: bool = False,
    ) -> None:
        """Begin a procedure."""
        task = Task(
            number=self._next_task, procedure=procedure, job=job, call=call, is_cleanup=is_cleanup
        )
        if call:
            task.deadline = self._host.now + CALL_TIMEOUT_S
        self._next_task += 1
        self._tasks[task.number] = task
        self._runnable.append((task, None, None))

    def deadline(self) -> float | None:
        """When `tick` is wanted."""
        times = []
        for task in self._tasks.values():
            if isinstance(task.wish, Ask) and self._host.registry.is_online(task.wish.node):
                times.append(task.resend_at)
            if task.deadline is not None:
                times.append(task.deadline)
        return min(times, default=None)

    def check(self) -> None:
        """Every task waits for exactly one thing, and every item that is held is waited for."""
        dispatcher = self._host.dispatcher
        waiting = {task.item for task in self._tasks.values() if task.item}
        held = set(dispatcher.ready) | set(dispatcher.leases)
        adopted = {item for item, row in self.adopted.items() if row.state == "leased"}
        assert held == waiting | adopted, (
            f"{held} are held, {waiting} waited for, {adopted} adopted"
        )
        assert not self._runnable
        for task in self._tasks.values():
            assert task.wish is not None
            assert not task.request or self._answers.get(task.request) is task
            if task.job is not None and not task.is_cleanup:
                assert not task.job.has_ended

    # --- what happens ----------------------------------------------------------------------------

    def tick(self) -> None:
        """Send again what was not answered; end what has waited long enough."""
        now = self._host.now
        for task in self.all():
            if task.deadline is not None and task.deadline <= now:
                self._time_is_up(task)
            elif isinstance(task.wish, Ask) and task.resend_at <= now:
                self._send_request(task, task.wish, is_again=True)
                self._explain(task, task.wish)

    def node_is_here(self, name: NodeName) -> None:
        """Send everything that waits for this node."""
        for task in self.all():
            if isinstance(task.wish, Ask) and task.wish.node == name:
                self._send_request(task, task.wish)

    def node_is_away(self, name: NodeName) -> None:
        """Tell or refuse everything that waits for this node."""
        for task in self.all():
            if isinstance(task.wish, Ask) and task.wish.node == name:
                self._node_is_away(task, task.wish)

    def waits_for(self, request: int, *, node: NodeName) -> bool:
        """Say whether an answer is still wanted (not late, not doubled, from the node that was asked)."""
        task = self._answers.get(request)
        return task is not None and isinstance(task.wish, Ask) and task.wish.node == node

    def answered(self, message: NodeReply | UnitFenced) -> None:
        """Grant the request that a node has answered."""
        task = self._answers[message.request]
        if isinstance(message, task.expects):
            self._grant(task, message)
        else:
            self._refuse(task, RemoteProtocolError(f"a storage node answers with {message.kind}"))

    def refused(self, request: int, error: BackupError) -> None:
        """Refuse the request that a node has answered with an error."""
        self._refuse(self._answers[request], error)

    def item_ended(self, row: ItemRow) -> None:
        """Grant whoever waits for an item."""
        for task in self.all():
            if task.item == row.item:
                self._grant(task, row)
        if row.item in self.adopted:
            self.adopted[row.item] = row

    def extents_fetched(self, event: ExtentsFetched) -> None:
        """Grant whoever waits for the extents of a backup."""
        for task in self.all():
            wish = task.wish
            if (
                isinstance(wish, Extents)
                and task.job is not None
                and task.job.row.job == event.job
                and wish.backup == event.backup
            ):
                self._grant(task, event.runs)

    def map_fetched(self, event: MapFetched) -> None:
        """Grant whoever waits for this piece of a map."""
        for task in self.all():
            if (
                task.wish == MapPiece(backup=event.backup, page=event.page)
                and task.job is not None
                and task.job.row.job == event.job
            ):
                self._grant(task, event.packed)

    def signal(self, name: str, value: Any) -> bool:
        """Wake the task that waits for an operator's word; False when none does."""
        for task in self.all():
            if isinstance(task.wish, Signal) and task.wish.name == name:
                self._grant(task, value)
                return True
        return False

    def interrupt(self, job: Job, error: BackupError) -> None:
        """Raise an error in a job's procedure, wherever it waits; its clean-up is left alone."""
        for task in self.all():
            if task.job is job and not task.is_cleanup:
                self._refuse(task, error)

    def drop_adopted(self, job: Job) -> None:
        """The job will not come to wait for its items of an earlier life."""
        for item in [item for item, row in self.adopted.items() if row.job == job.row.job]:
            del self.adopted[item]
            self._revoke(item)

    # --- stepping --------------------------------------------------------------------------------

    def run(self) -> bool:
        """Step what can be stepped, try all claims; returns whether anything moved."""
        moved = False
        while self._runnable:
            moved = True
            task, value, error = self._runnable.popleft()
            if task.number in self._tasks:
                self._step(task, value, error)
        self._try_claims()
        return moved or bool(self._runnable)

    def _step(self, task: Task, value: Any, error: BackupError | None) -> None:
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
            self._host.task_failed(task, failure)
            return
        self._wish(task, task.wish)

    def _wish(self, task: Task, wish: Wish) -> None:
        match wish:
            case Ask():
                self._request += 1
                task.request = self._request
                self._answers[task.request] = task
                self._send_request(task, wish)
            case Run():
                task.item = wish.row.item
                if wish.row.state == "planned":
                    self._host.dispatcher.offer(
                        wish.row, wish.uses, now=self._host.now, avoid=self._unlucky(task)
                    )
                else:
                    adopted = self.adopted.pop(wish.row.item)
                    if adopted.state != "leased":
                        self._grant(task, adopted)  # It ended while the job was on its way here.
            case Extents():
                assert task.job is not None
                self._host.emit(FetchExtents(job=task.job.row.job, backup=wish.backup))
            case MapPiece():
                assert task.job is not None
                self._host.emit(FetchMap(job=task.job.row.job, backup=wish.backup, page=wish.page))
            case Signal():
                task.deadline = self._host.now + wish.timeout_s
            case Claim():
                pass  # Tried in `_try_claims`.
            case _:
                assert_never(wish)

    def _unlucky(self, task: Task) -> frozenset[NodeName]:
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
                self._refuse(task, error)
                continue
            if isinstance(result, NotYet):
                if task.job is not None:
                    self._host.give_reason(task.job, result.reason)
            else:
                if task.job is not None and task.job.row.reason.startswith(WAITING):
                    self._host.give_reason(task.job, "")
                self._grant(task, result)

    def _send_request(self, task: Task, wish: Ask, *, is_again: bool = False) -> None:
        if not self._host.registry.is_online(wish.node):
            self._node_is_away(task, wish)
            return
        message = wish.make(task.request)
        task.expects = UnitFenced if isinstance(message, UnitFence) else NodeReply
        task.resend_at = self._host.now + RESEND_S
        self._host.emit(Send(peer=wish.node, message=message))
        if is_again:
            return
        task.slow_at = self._host.now + wish.slow_s if wish.slow_s else None
        if task.job is not None and task.job.row.reason.startswith(WAITING_FOR_NODE):
            self._host.give_reason(task.job, "")

    def _explain(self, task: Task, wish: Ask) -> None:
        """A node takes its time: say so, unless the job has a reason of its own."""
        if task.job is not None and not task.job.row.reason:
            self._host.give_reason(task.job, f"{WAITING_FOR_NODE} {wish.node} to {wish.what}")
        if task.slow_at is not None and task.slow_at <= self._host.now:
            task.slow_at = None
            told = f"storage node {wish.node} takes longer than {format_duration(wish.slow_s)}"
            self._host.emit(Alarm(text=f"{told} to {wish.what}: look at its library"))

    def _node_is_away(self, task: Task, wish: Ask) -> None:
        if wish.gives_up or task.call:
            self._refuse(task, UnreachableError(f"{wish.what}: storage node {wish.node} is away"))
        elif task.job is not None:
            self._host.give_reason(task.job, f"{WAITING_FOR_NODE} {wish.node} is away")

    def _grant(self, task: Task, value: Any) -> None:
        self._withdraw(task)
        self._runnable.append((task, value, None))

    def _refuse(self, task: Task, error: BackupError) -> None:
        self._withdraw(task)
        self._runnable.append((task, None, error))

    def _time_is_up(self, task: Task) -> None:
        if isinstance(task.wish, Signal):
            self._grant(task, None)
            return
        task.deadline = None
        what = task.wish.what if isinstance(task.wish, Ask) else "the call"
        self._refuse(task, UnreachableError(f"{what}: no answer within {CALL_TIMEOUT_S:.0f} s"))

    def _withdraw(self, task: Task) -> None:
        """Forget what a task waits for."""
        self._answers.pop(task.request, None)
        task.request = 0
        if task.item:
            self._revoke(task.item)
            task.item = ItemId(0)
        if isinstance(task.wish, Signal):
            task.deadline = None
        task.wish = None

    def _revoke(self, item: ItemId) -> None:
        """Take an item back, wherever it is; one that has ended is nowhere."""
        waiting = self._host.dispatcher.ready.get(item)
        lease = self._host.dispatcher.withdraw(item)
        if waiting is not None:
            self._host.record(replace(waiting.row, state="revoked", detail="cancelled"))
        if lease is not None:
            message = WorkRevoked(item=item, epoch=lease.row.epoch, reason="cancelled")
            self._host.emit(Send(peer=lease.mover, message=message))
            self._host.record(replace(lease.row, state="revoked", detail="cancelled"))
