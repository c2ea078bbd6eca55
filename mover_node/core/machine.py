"""The mover's side of the work protocol: pull items, keep leases, report results.  Pure.

One item, by (item, epoch):

    work.item --> RUNNING --Ended------------------> REPORTING --work.acknowledged--> KEPT
                     |                                  ^   \\--again, backing off
                     +--lease over, revoked, drain--> STOPPING --Ended--^

* Work is pulled: `work.request` states how many more items we can take, and is repeated until one comes.
* The lease is courtesy, the nodes' fences are safety.  Progress is reported every fifth of the lease; the item is
  stopped at 0.8 of the lease, counted from the *sending* of the last progress that was answered.
* A result is repeated until it is acknowledged, across sessions, and kept for a while after that: a doubled
  `work.item` is answered with it, never executed again.
* A list that the copy manager would refuse is answered at once, before any device is touched.

Nothing here is durable.  A mover that dies takes its items with it; their leases end, and their epochs fence it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias, assert_never

from backplane.errors import InvalidTransition
from backplane.ids import Epoch, ItemId
from backplane.scsi.copy_status import MOVER_PARAMETERS, OperatingParameters
from backplane.scsi.parameter_list import ParameterList, ParameterListError, decode_parameter_list
from backplane.wire.frames import Status
from backplane.wire.messages import (
    LedgerEntry,
    Message,
    WorkAcknowledged,
    WorkDone,
    WorkExtended,
    WorkItem,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from mover_node.core.abort import Ended as ListEnded
from mover_node.core.abort import aborted

REQUEST_REPEAT_S: Final = 5.0
"""How often an unanswered request for work is repeated: only a lost message makes that necessary."""

PROGRESS_PER_LEASE: Final = 5
LEASE_SHARE: Final = 0.8
"""The mover stops by itself when so much of the lease is over."""

REPORT_FIRST_S: Final = 0.5
REPORT_MAX_S: Final = 30.0
RESULTS_KEPT_MAX: Final = 256
UNACKNOWLEDGED_MAX: Final = 64
"""With so many results that nobody has acknowledged, no further work is taken."""

SENT_KEPT_MAX: Final = 64
"""Progress messages whose sending time is remembered; an answer to an older one is not worth much."""

DETAIL_CHARACTERS_MAX: Final = 2000


# --- events and effects --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """A session with the controller stands (again)."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no session with the controller now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Drain:
    """End within `grace_s`: take no more work, finish what runs or stop it, report, leave."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """How far a running item is."""

    item: ItemId
    epoch: Epoch
    segment: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The copy manager is done with an item."""

    item: ItemId
    epoch: Epoch
    ended: ListEnded
    ledger: tuple[LedgerEntry, ...]


@dataclass(frozen=True, slots=True)
class StopItem:
    """An item has to stop; never comes from outside, but it is an event of the item's table."""


Event: TypeAlias = (
    Connected
    | Disconnected
    | Tick
    | Drain
    | Measured
    | Ended
    | WorkItem
    | WorkExtended
    | WorkAcknowledged
    | WorkRevoked
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the controller."""

    message: Message


@dataclass(frozen=True, slots=True)
class Start:
    """Execute a list that was accepted."""

    item: WorkItem
    parameters: ParameterList


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop a running item; it will end with `Ended`."""

    item: ItemId
    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Drained: the process may end."""

    reason: str


Effect: TypeAlias = Send | Start | Abort | Exit


# --- one item ------------------------------------------------------------------------------------


class ItemState(Enum):
    """Where an item stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    REPORTING = "reporting"
    KEPT = "kept"


TRANSITIONS: Final[dict[ItemState, dict[type, ItemState]]] = {
    ItemState.RUNNING: {StopItem: ItemState.STOPPING, Ended: ItemState.REPORTING},
    ItemState.STOPPING: {Ended: ItemState.REPORTING},
    ItemState.REPORTING: {WorkAcknowledged: ItemState.KEPT},
    ItemState.KEPT: {},
}

Key: TypeAlias = tuple[ItemId, Epoch]


@dataclass(slots=True)
class _Item:
    """What the machine knows of one item."""

    key: Key
    started_at: float
    lease_s: float
    lease_end: float
    next_progress: float
    state: ItemState = ItemState.RUNNING
    sequence: int = 0
    sent: OrderedDict[int, float] = field(default_factory=OrderedDict)
    measured: tuple[int, int, int] = (0, 0, 0)
    reason: str = ""
    done: WorkDone | None = None
    reports: int = 0
    next_report: float = 0.0

    @property
    def is_active(self) -> bool:
        return self.state in (ItemState.RUNNING, ItemState.STOPPING)

    def move(self, event: type) -> None:
        """Change the state; the only place that does."""
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise InvalidTransition(
                machine=f"item {self.key}", state=self.state.value, event=event.__name__
            ) from None


class MoverMachine:
    """All items of one mover."""

    def __init__(
        self,
        *,
        jitter: Callable[[], float],
        items_max: int = 1,
        parameters: OperatingParameters = MOVER_PARAMETERS,
    ) -> None:
        assert 0 < items_max <= parameters.maximum_concurrent_copies
        self._jitter = jitter
        self._items_max = items_max
        self._parameters = parameters
        self._items: OrderedDict[Key, _Item] = OrderedDict()
        self._is_connected = False
        self._next_request = 0.0
        self._drain_until: float | None = None
        self._is_late = False
        """The time to drain is over."""
        self._has_left = False

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take one event; return what has to be done, in this order."""
        effects = self._dispatch(event, now)
        effects += self._elapse(now)
        return effects

    def _dispatch(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Connected():
                return self._on_connected(now)
            case Disconnected():
                self._is_connected = False
            case Tick():
                pass
            case Drain():
                return self._on_drain(event, now)
            case Measured():
                self._on_measured(event)
            case Ended():
                return self._on_ended(event, now)
            case WorkItem():
                return self._on_item(event, now)
            case WorkExtended():
                self._on_extended(event)
            case WorkAcknowledged():
                self._on_acknowledged(event)
            case WorkRevoked():
                return self._on_revoked(event)
            case _:
                assert_never(event)
        return []

    def deadline(self) -> float | None:
        """Return when the next `Tick` is wanted."""
        times = []
        if self._is_connected and self._credit():
            times.append(self._next_request)
        for item in self._items.values():
            if item.is_active and self._is_connected:
                times.append(item.next_progress)
            if item.state is ItemState.RUNNING:
                times.append(item.lease_end)
            if item.state is ItemState.REPORTING and self._is_connected:
                times.append(item.next_report)
        if self._drain_until is not None and not self._is_late and not self._has_left:
            times.append(self._drain_until)
        return min(times, default=None)

    def check(self) -> None:
        """Assert what must hold over all state."""
        active = [item for item in self._items.values() if item.is_active]
        assert len(active) <= self._parameters.maximum_concurrent_copies
        for key, item in self._items.items():
            assert item.key == key
            assert (item.done is None) == item.is_active
            assert len(item.sent) <= SENT_KEPT_MAX
        assert self._kept() <= RESULTS_KEPT_MAX

    def describe(self) -> list[dict[str, object]]:
        """Return the state, for people (SIGUSR1)."""
        return [
            {
                "item": item.key[0],
                "epoch": item.key[1],
                "state": item.state.value,
                "segment": item.measured[0],
                "bytes_read": item.measured[1],
                "bytes_written": item.measured[2],
                "reason": item.reason,
            }
            for item in self._items.values()
        ]

    # --- events ----------------------------------------------------------------------------------

    def _on_connected(self, now: float) -> list[Effect]:
        self._is_connected = True
        self._next_request = now
        for item in self._items.values():
            item.next_progress = now
            item.next_report = now
        return []

    def _on_drain(self, event: Drain, now: float) -> list[Effect]:
        self._drain_until = now + event.grace_s
        # A credit that is still known to the controller would bring an item that we do not want.
        return [Send(WorkRequest(credit=0))] if self._is_connected else []

    def _on_measured(self, event: Measured) -> None:
        item = self._items.get((event.item, event.epoch))
        if item is not None and item.is_active:
            item.measured = (event.segment, event.bytes_read, event.bytes_written)

    def _on_ended(self, event: Ended, now: float) -> list[Effect]:
        item = self._items[(event.item, event.epoch)]
        item.move(Ended)
        item.done = self._done(
            item.key, event.ended, ledger=event.ledger, seconds=now - item.started_at
        )
        item.next_report = now
        self._next_request = now
        return []

    def _on_item(self, message: WorkItem, now: float) -> list[Effect]:
        key = (message.item, message.epoch)
        known = self._items.get(key)
        if known is not None:
            if known.done is not None:
                known.next_report = now
                if known.state is ItemState.KEPT:
                    return [Send(known.done)]
            return []
        active = sum(item.is_active for item in self._items.values())
        if self._drain_until is not None or active >= self._parameters.maximum_concurrent_copies:
            why = (
                "the mover is being stopped" if self._drain_until is not None else "too many items"
            )
            return self._refuse(key, ListEnded(Status.BUSY, b"", 0, why), message, now)
        try:
            parameters = decode_parameter_list(message.parameter_list, limits=self._parameters)
        except ParameterListError as error:
            sense = error.sense_data.encode_fixed()
            ended = ListEnded(Status.CHECK_CONDITION, sense, 0, error.message)
            return self._refuse(key, ended, message, now)
        if parameters is None:
            # No list is not an error: nothing is moved (SPC-4 6.4.1).
            return self._refuse(key, ListEnded(Status.GOOD, b"", 0, "empty list"), message, now)
        self._items[key] = self._item(message, now)
        return [Start(message, parameters)]

    def _item(self, message: WorkItem, now: float) -> _Item:
        return _Item(
            key=(message.item, message.epoch),
            started_at=now,
            lease_s=message.lease_s,
            lease_end=now + LEASE_SHARE * message.lease_s,
            next_progress=now,
        )

    def _refuse(self, key: Key, ended: ListEnded, message: WorkItem, now: float) -> list[Effect]:
        item = self._items[key] = self._item(message, now)
        item.move(Ended)
        item.done = self._done(key, ended, ledger=(), seconds=0.0)
        item.next_report = self._next_request = now
        return []

    def _on_extended(self, message: WorkExtended) -> None:
        item = self._items.get((message.item, message.epoch))
        sent_at = item.sent.get(message.sequence) if item is not None else None
        if item is None or sent_at is None or item.state is not ItemState.RUNNING:
            return
        item.lease_s = message.lease_s
        item.lease_end = max(item.lease_end, sent_at + LEASE_SHARE * message.lease_s)
        for sequence in [s for s in item.sent if s <= message.sequence]:
            del item.sent[sequence]

    def _on_acknowledged(self, message: WorkAcknowledged) -> None:
        item = self._items.get((message.item, message.epoch))
        if item is None or item.state is not ItemState.REPORTING:
            return  # Doubled, or for a result that was forgotten long ago.
        item.move(WorkAcknowledged)
        self._items.move_to_end(item.key)
        while self._kept() > RESULTS_KEPT_MAX:
            oldest = next(k for k, i in self._items.items() if i.state is ItemState.KEPT)
            del self._items[oldest]

    def _on_revoked(self, message: WorkRevoked) -> list[Effect]:
        key = (message.item, message.epoch)
        item = self._items.get(key)
        if item is None:
            return [Send(self._done(key, aborted(0, message.reason), ledger=(), seconds=0.0))]
        if item.done is not None:
            return [Send(item.done)]
        return self._stop(item, message.reason or "revoked")

    # --- time ------------------------------------------------------------------------------------

    def _elapse(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for item in self._items.values():
            if item.state is ItemState.RUNNING and now >= item.lease_end:
                effects += self._stop(item, "the lease was not extended in time")
        if self._is_connected:
            for item in self._items.values():
                effects += self._report(item, now)
            if self._credit() and now >= self._next_request:
                self._next_request = now + REQUEST_REPEAT_S
                effects.append(Send(WorkRequest(credit=self._credit())))
        if self._drain_until is not None:
            effects += self._drain(now)
        return effects

    def _report(self, item: _Item, now: float) -> list[Effect]:
        if item.is_active and now >= item.next_progress:
            item.sequence += 1
            item.sent[item.sequence] = now
            while len(item.sent) > SENT_KEPT_MAX:
                item.sent.popitem(last=False)
            item.next_progress = now + item.lease_s / PROGRESS_PER_LEASE
            segment, bytes_read, bytes_written = item.measured
            return [
                Send(
                    WorkProgress(
                        item=item.key[0],
                        epoch=item.key[1],
                        sequence=item.sequence,
                        segment=segment,
                        bytes_read=bytes_read,
                        bytes_written=bytes_written,
                    )
                )
            ]
        if item.state is ItemState.REPORTING and now >= item.next_report:
            assert item.done is not None
            pause = min(REPORT_MAX_S, REPORT_FIRST_S * 2.0 ** min(item.reports, 16))
            item.reports += 1
            item.next_report = now + pause * (0.5 + 0.5 * self._jitter())
            return [Send(item.done)]
        return []

    def _drain(self, now: float) -> list[Effect]:
        assert self._drain_until is not None
        effects: list[Effect] = []
        if now >= self._drain_until:
            self._is_late = True
            for item in self._items.values():
                if item.state is ItemState.RUNNING:
                    effects += self._stop(item, "the mover is being stopped")
        waiting = [i for i in self._items.values() if i.state is not ItemState.KEPT]
        is_given_up = self._is_late and not any(item.is_active for item in waiting)
        if not self._has_left and (not waiting or is_given_up):
            self._has_left = True
            # Given up: every result was told at least once; where nobody heard it, the lease ends by itself.
            effects.append(Exit("drained"))
        return effects

    def _stop(self, item: _Item, reason: str) -> list[Effect]:
        if item.state is not ItemState.RUNNING:
            return []
        item.move(StopItem)
        item.reason = reason
        return [Abort(item.key[0], item.key[1], reason)]

    # --- helpers of all --------------------------------------------------------------------------

    def _credit(self) -> int:
        if self._drain_until is not None:
            return 0
        states = [item.state for item in self._items.values()]
        if states.count(ItemState.REPORTING) >= UNACKNOWLEDGED_MAX:
            return 0
        active = states.count(ItemState.RUNNING) + states.count(ItemState.STOPPING)
        return max(0, self._items_max - active)

    def _kept(self) -> int:
        return sum(item.state is ItemState.KEPT for item in self._items.values())

    def _done(
        self, key: Key, ended: ListEnded, *, ledger: tuple[LedgerEntry, ...], seconds: float
    ) -> WorkDone:
        return WorkDone(
            item=key[0],
            epoch=key[1],
            status=ended.status,
            sense=ended.sense,
            segments=ended.segments,
            ledger=ledger,
            seconds=max(0.0, seconds),
            detail=ended.detail[:DETAIL_CHARACTERS_MAX],
        )
