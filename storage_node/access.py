"""The admission rules at work: one lock around them, durable floors, the requests under way, and the audit.

A request is let in (`enter`), touches the medium and leaves (`leave`).  `fence` first raises the floor, so that nobody
with a lower epoch is let in any more, then waits for those who are inside, then makes the floor durable.  So after its
return no request of a lower epoch can touch the medium, and requests of one unit need not wait for each other.  A fence
of one lane waits for those in that lane only.

The lock is held for microseconds and never during I/O.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from backplane.errors import BackupError
from backplane.ids import Designator, Epoch
from backplane.wire.grants import Grant
from storage_node.core.admission import Admission, Request, Session, Unit
from storage_node.core.floors import WHOLE_UNIT, RecordFloor
from storage_node.core.write_inactivity import NEVER_WRITTEN
from storage_node.floor_store import FloorStore
from storage_node.state_file import StateError

audit = logging.getLogger("storage_node.audit")

DRAIN_S: Final = 60.0
"""How long a fence waits for a request that is inside; a medium that hangs longer makes the fence fail, not lie."""


class Access:
    """Thread-safe front of `Admission`."""

    def __init__(
        self,
        admission: Admission,
        store: FloorStore,
        *,
        monotonic: Callable[[], float],
        on_fatal: Callable[[StateError], None],
    ) -> None:
        self._admission = admission
        self._store = store
        self._monotonic = monotonic
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._waiting = 0
        self._inside: dict[tuple[Designator, int, Epoch], int] = {}
        """How many requests are inside a unit, by lane and epoch."""
        self._last_write_s: dict[Designator, float] = {}

    # --- connections -----------------------------------------------------------------------------

    def open(self, grant: Grant) -> Session:
        """Open a unit; the floor is durable when this returns."""
        try:
            with self._lock:
                session, effects = self._admission.open(grant, now=self._monotonic())
        except BackupError as error:
            audit_refusal("open", grant, error)
            raise
        try:
            self.record(effects)
        except BaseException:
            self.close(session)
            raise
        return session

    def close(self, session: Session) -> None:
        """Forget a session."""
        with self._lock:
            self._admission.close(session)

    def check(self, session: Session, request: Request) -> None:
        """Check a request whose data are still to come; `enter` with `is_checked` follows."""
        try:
            with self._lock:
                self._admission.check(session, request, now=self._monotonic())
        except BackupError as error:
            audit_refusal(request.opcode.name, session.grant, error)
            raise

    def enter(
        self,
        session: Session,
        request: Request,
        *,
        is_checked: bool = False,
        position: int | None = None,
    ) -> None:
        """Let a request in or raise.  Whoever is in must `leave`."""
        rule = self._admission.recheck if is_checked else self._admission.check
        try:
            with self._lock:
                rule(session, request, now=self._monotonic(), position=position)
                key = _place_of(session)
                self._inside[key] = self._inside.get(key, 0) + 1
        except BackupError as error:
            audit_refusal(request.opcode.name, session.grant, error)
            raise

    def leave(self, session: Session, *, has_written: bool = False) -> None:
        """The request is done with the medium."""
        key = _place_of(session)
        with self._lock:
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key]
            if has_written:
                self._last_write_s[key[0]] = self._monotonic()
            if self._waiting:
                self._left.notify_all()

    # --- the control side ------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[Admission]:
        """Give the rules themselves for a step that must be atomic; no I/O inside."""
        with self._lock:
            yield self._admission

    def fence(self, designator: Designator, epoch: Epoch, lane: int = WHOLE_UNIT) -> None:
        """Raise the floor of a unit, or of one lane; on return it is durable and nobody below it is inside."""

        def is_fenced(inside_lane: int, inside_epoch: Epoch) -> bool:
            if lane:
                return inside_lane == lane and inside_epoch < epoch
            # A unit's floor ends lanes of its own epoch, too.
            return inside_epoch < epoch or (inside_lane != WHOLE_UNIT and inside_epoch == epoch)

        with self._lock:
            effects = self._admission.fence(designator, epoch, lane)
            self._drain(designator, is_fenced)
        self.record(effects)

    def remove_unit(self, designator: Designator) -> None:
        """Forget a unit; on return nobody is inside."""
        with self._lock:
            self._admission.remove_unit(designator)
            self._drain(designator, lambda _lane, _epoch: True)
            self._last_write_s.pop(designator, None)

    def put_unit(self, unit: Unit, *, last_write_s: float | None = None) -> None:
        """Make a unit known, or replace it."""
        with self._lock:
            self._admission.put_unit(unit)
            if last_write_s is not None:
                self._last_write_s[unit.designator] = last_write_s

    def record(self, effects: list[RecordFloor]) -> None:
        """Make floors durable; a failure is the end of the process."""
        try:
            for effect in effects:
                self._store.record(effect)
        except StateError as error:
            self._on_fatal(error)
            raise

    def last_write_s(self, designator: Designator) -> float:
        """When the last write ended; call within `locked`."""
        return self._last_write_s.get(designator, NEVER_WRITTEN)

    def has_writer(self, designator: Designator) -> bool:
        """Tell whether anybody may be writing; call within `locked`."""
        inside = any(unit == designator for unit, _, _ in self._inside)
        return inside or self._admission.has_writer(designator)

    def _drain(self, designator: Designator, is_waited_for: Callable[[int, Epoch], bool]) -> None:
        def is_clear() -> bool:
            return not any(
                unit == designator and is_waited_for(lane, epoch)
                for unit, lane, epoch in self._inside
            )

        self._waiting += 1
        try:
            if not self._left.wait_for(is_clear, DRAIN_S):
                raise BackupError(
                    f"a request has been inside the logical unit for {DRAIN_S:.0f} s",
                    hint="the medium does not answer; look at the node",
                )
        finally:
            self._waiting -= 1


def _place_of(session: Session) -> tuple[Designator, int, Epoch]:
    return session.grant.designator, session.grant.lane, session.grant.epoch


def audit_refusal(what: str, grant: Grant | None, error: BackupError) -> None:
    """Write the audit line of a refusal, with the reason that the peer is not told."""
    facts: dict[str, object] = {
        "request": what,
        "reason": "; ".join([error.message, *getattr(error, "__notes__", ())]),
    }
    if grant is not None:
        facts |= {
            "unit": grant.designator.hex(),
            "job": grant.job,
            "item": grant.item,
            "epoch": grant.epoch,
            "lane": grant.lane,
            "holder": grant.holder.hex()[:16],
        }
    audit.warning("refused", extra=facts)
