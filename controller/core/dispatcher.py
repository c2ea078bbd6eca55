"""Which mover gets which work item, and for how long.

    offer --> READY --(a mover has credit: new epoch)--> LEASED --work.done--> ended
                ^                                          |
                |                 lease expired, mover restarted or gone
                +--- never the same item: the job settles (fences) and plans a new one

The lease is for progress only: when it expires the item counts as *lost*, and the job that planned it first fences
the logical units and asks where they stand.  Safety is the fence's business, not this file's.

A lease is counted from the sending of `work.item` or of the last `work.extended`, by the controller's monotonic
clock, and always for its full length; the mover counts from an earlier moment and stops at 0.8 of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from backplane.ids import Epoch, ItemId, NodeName
from backplane.wire.messages import WorkDone, WorkProgress
from controller.catalog.store import ItemRow
from controller.core.effects import UnitUse

LEASE_S: Final = 15.0
EXPLAIN_S: Final = 1.0
"""A mover asks for its next item right after it has reported one; that is no waiting worth a word."""
ATTEMPTS_MAX: Final = 5
"""A step of a job that made no progress in so many items is quarantined ..."""
MOVERS_MAX: Final = 3
"""... or in items on so many different movers that were lost with it."""


@dataclass(slots=True)
class Lease:
    """An item in a mover's hands."""

    row: ItemRow
    mover: NodeName
    deadline: float
    since: float
    heard: float
    """When its mover last said how far it is."""
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(slots=True)
class _Waiting:
    row: ItemRow
    uses: tuple[UnitUse, ...]
    avoid: frozenset[NodeName]
    explain_at: float
    """When people want to know why it still waits."""


class Dispatcher:
    """Items that wait, items that are leased, and the movers' credit."""

    def __init__(self, *, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.ready: dict[ItemId, _Waiting] = {}
        self.leases: dict[ItemId, Lease] = {}
        self.credit: dict[NodeName, int] = {}

    def offer(
        self,
        row: ItemRow,
        uses: tuple[UnitUse, ...],
        *,
        now: float,
        avoid: frozenset[NodeName] = frozenset(),
    ) -> None:
        """Queue a planned item.  `avoid` names movers to pass over while another has credit."""
        assert row.state == "planned"
        assert row.item not in self.ready
        assert row.item not in self.leases
        self.ready[row.item] = _Waiting(row, uses, avoid, now + EXPLAIN_S)

    def adopt(self, row: ItemRow, *, now: float) -> None:
        """After a restart: the item is still in its mover's hands, for one full lease from now."""
        assert row.state == "leased"
        assert row.movers
        self.leases[row.item] = Lease(row, NodeName(row.movers[-1]), now + self.lease_s, now, now)

    def request(self, mover: NodeName, credit: int) -> None:
        """A mover can take this many items; the newest word counts."""
        self.credit[mover] = credit

    def forget_mover(self, mover: NodeName) -> None:
        """The mover takes no more items for now; what it holds runs on until the lease ends."""
        self.credit.pop(mover, None)

    def assign(
        self, *, now: float, next_epoch: Callable[[], Epoch]
    ) -> list[tuple[ItemRow, NodeName, tuple[UnitUse, ...]]]:
        """Lease waiting items to movers with credit, oldest item first; returns what to record and send."""
        assigned = []
        for item in sorted(self.ready):
            waiting = self.ready[item]
            able = sorted(mover for mover, credit in self.credit.items() if credit > 0)
            if not able:
                break
            mover = next((name for name in able if name not in waiting.avoid), able[0])
            self.credit[mover] -= 1
            row = replace(
                waiting.row,
                state="leased",
                attempt=waiting.row.attempt + 1,
                movers=(*waiting.row.movers, mover),
                epoch=next_epoch(),
            )
            del self.ready[item]
            self.leases[item] = Lease(row, mover, now + self.lease_s, now, now)
            assigned.append((row, mover, waiting.uses))
        return assigned

    def progress(self, mover: NodeName, message: WorkProgress, *, now: float) -> bool:
        """Extend a lease.  False: the mover holds no such lease (any more) and has to stop."""
        lease = self._lease(mover, message.item, message.epoch)
        if lease is None:
            return False
        lease.deadline = now + self.lease_s
        lease.heard = now
        lease.bytes_read = message.bytes_read
        lease.bytes_written = message.bytes_written
        return True

    def done(self, mover: NodeName, message: WorkDone) -> ItemRow | None:
        """Take a result; None if it is not from the holder of the lease (late, doubled, fenced)."""
        lease = self._lease(mover, message.item, message.epoch)
        if lease is None:
            return None
        del self.leases[message.item]
        return lease.row

    def lose(self, *, now: float) -> list[ItemRow]:
        """Return the items whose lease has expired; they are nobody's from here on."""
        return self._lost([lease for lease in self.leases.values() if lease.deadline <= now])

    def lose_mover(self, mover: NodeName) -> list[ItemRow]:
        """Return the items of a mover that has restarted: it knows nothing of them any more."""
        return self._lost([lease for lease in self.leases.values() if lease.mover == mover])

    def _lost(self, leases: list[Lease]) -> list[ItemRow]:
        # What it copied counts, so the time does that is known to have gone into it.
        for lease in leases:
            del self.leases[lease.row.item]
        return [replace(lease.row, seconds=lease.heard - lease.since) for lease in leases]

    def withdraw(self, item: ItemId) -> Lease | None:
        """Take an item back: from the queue, or from a mover (returned, so that it can be told)."""
        self.ready.pop(item, None)
        return self.leases.pop(item, None)

    def deadline(self, *, now: float) -> float | None:
        """When something is due: the end of a lease, or a word about an item that still waits."""
        times = [lease.deadline for lease in self.leases.values()]
        times += [each.explain_at for each in self.ready.values() if each.explain_at > now]
        return min(times, default=None)

    def check(self) -> None:
        """Every item is waiting or leased, never both; credit is never negative."""
        assert not set(self.ready) & set(self.leases)
        assert all(credit >= 0 for credit in self.credit.values())
        assert all(lease.row.state == "leased" for lease in self.leases.values())
        assert all(waiting.row.state == "planned" for waiting in self.ready.values())

    def _lease(self, mover: NodeName, item: ItemId, epoch: Epoch) -> Lease | None:
        lease = self.leases.get(item)
        if lease is None or lease.mover != mover or lease.row.epoch != epoch:
            return None
        return lease
