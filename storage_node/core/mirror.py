"""The legs of a backup mirror: which may be split off, and which blocks one of them still lacks.

         added, all bits set
                 |
                 v              synced                  split
    +--> RESYNCHRONISING ---------------> IN_SYNC ---------------> SPLIT (a static view)
    |            ^  ^                        |                        |
    |            |  +------- diverged -------+                        |
    |            +------------------- rejoin: from the bitmap --------+
    |
    +-- renew: all bits set -- FAILED <-- error, from every state

One rule holds in every state but FAILED, and everything else follows from it:

    a granule whose bit is clear, and to which no write is under way, is the same on the leg and on the primary.

While a leg is split, a write sets its bits before it touches the primary; the leg itself stays as it was.  While it
resynchronises or is in sync, writes go to both; whatever may have reached only one of them has its bits set again
(`diverged`).  The copy clears a bit when the granule was copied, with no write to it under way.  So a leg is in sync
when no bit is set, and a leg whose bitmap cannot be believed has all of them set.

Everything here is pure and locks nothing; storage_node/disk/mirror.py moves the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn

from backplane.errors import InvalidTransition, RefusedError
from backplane.units import KIB, MIB, div_up, format_size
from storage_node.core.bitmap import Bitmap

GRANULE_BYTES: Final = 64 * KIB
"""What one bit stands for: 2 MiB of bits for a volume of 1 TiB."""

PIECE_BYTES_MAX: Final = 1 * MIB
"""What is copied in one step of a resynchronisation; a live write to the same place waits for no more than this."""

STORY_LENGTH_MAX: Final = 16

assert PIECE_BYTES_MAX % GRANULE_BYTES == 0


class LegState(Enum):
    """What people see."""

    RESYNCHRONISING = "resynchronising"
    IN_SYNC = "in-sync"
    SPLIT = "split"
    FAILED = "failed"
    REMOVED = "removed"


class LegEvent(Enum):
    """What moves a leg from state to state."""

    SYNCED = "synced"
    SPLIT = "split"
    REJOIN = "rejoin"
    DIVERGED = "diverged"
    BITMAP_LOST = "bitmap lost"
    ERROR = "error"
    RENEW = "renew"
    REMOVE = "remove"


TRANSITIONS: Final[dict[LegState, dict[LegEvent, LegState]]] = {
    LegState.RESYNCHRONISING: {
        LegEvent.SYNCED: LegState.IN_SYNC,
        LegEvent.DIVERGED: LegState.RESYNCHRONISING,
        LegEvent.BITMAP_LOST: LegState.RESYNCHRONISING,
        LegEvent.ERROR: LegState.FAILED,
        LegEvent.RENEW: LegState.RESYNCHRONISING,
        LegEvent.REMOVE: LegState.REMOVED,
    },
    LegState.IN_SYNC: {
        LegEvent.SPLIT: LegState.SPLIT,
        LegEvent.DIVERGED: LegState.RESYNCHRONISING,
        LegEvent.BITMAP_LOST: LegState.RESYNCHRONISING,
        LegEvent.ERROR: LegState.FAILED,
        LegEvent.RENEW: LegState.RESYNCHRONISING,
        LegEvent.REMOVE: LegState.REMOVED,
    },
    LegState.SPLIT: {
        LegEvent.REJOIN: LegState.RESYNCHRONISING,
        # The primary is no longer what it was; the leg, and so the view, still is.
        LegEvent.DIVERGED: LegState.SPLIT,
        # Only at a start: what the leg holds may then be older than the view.
        LegEvent.BITMAP_LOST: LegState.RESYNCHRONISING,
        LegEvent.ERROR: LegState.FAILED,
    },
    LegState.FAILED: {
        # Another write that was under way when the leg was dropped.
        LegEvent.ERROR: LegState.FAILED,
        LegEvent.RENEW: LegState.RESYNCHRONISING,
        LegEvent.REMOVE: LegState.REMOVED,
    },
    LegState.REMOVED: {},
}

_WISHES: Final = {
    LegEvent.SPLIT: "split",
    LegEvent.REJOIN: "joined again",
    LegEvent.RENEW: "resynchronised as a whole",
    LegEvent.REMOVE: "removed",
}
"""What people and other programs ask for: refused where it does not fit.  The other events are facts."""

_HINTS: Final = {
    LegState.RESYNCHRONISING: "wait until it is in sync",
    LegState.IN_SYNC: "",
    LegState.SPLIT: "release its static view first",
    LegState.FAILED: "mend the device and resynchronise the leg, or remove it",
    LegState.REMOVED: "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LegStatus:
    """A leg as people see it.  `bytes_left` is what it lacks of the primary; of a split leg, what changed since."""

    name: str
    path: str
    state: LegState
    reason: str
    bytes_left: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLeg:
    """What a start finds of a leg; `in_flight` are the (start, end) of writes that may have reached one device only."""

    state: LegState
    reason: str
    boot_id: str
    was_closed: bool
    in_flight: tuple[tuple[int, int], ...]


class Leg:
    """One leg.  Only `handle` assigns the state."""

    def __init__(
        self, name: str, *, path: str, size_bytes: int, changed: Bitmap, state: LegState
    ) -> None:
        """`changed` has a bit per granule, in memory that survives the process."""
        assert changed.bits == granules(size_bytes)
        self.name: Final = name
        self.path: Final = path
        self.size_bytes: Final = size_bytes
        self.reason = ""
        self._changed = changed
        self._state = state
        self._bytes_total = size_bytes
        self._story: list[str] = []

    @classmethod
    def added(cls, name: str, *, path: str, size_bytes: int, changed: Bitmap) -> Leg:
        """A new leg lacks everything."""
        changed.set_range(0, changed.bits)
        return cls(
            name,
            path=path,
            size_bytes=size_bytes,
            changed=changed,
            state=LegState.RESYNCHRONISING,
        )

    @classmethod
    def found(
        cls,
        name: str,
        *,
        path: str,
        size_bytes: int,
        changed: Bitmap,
        found: FoundLeg | None,
        boot_id: str,
    ) -> Leg:
        """Take up a leg at a start; `found` is None if its bitmap is missing or damaged.

        Without a clean end, the bitmap is believed only under the kernel that wrote it: a process that dies leaves
        its mapped pages behind, a machine does not.  And even then, a leg in sync first goes back to resynchronising,
        because its last words, an error of its device perhaps, may not have been heard.
        """
        state = found.state if found is not None else LegState.RESYNCHRONISING
        leg = cls(name, path=path, size_bytes=size_bytes, changed=changed, state=state)
        if found is None:
            leg.handle(LegEvent.BITMAP_LOST, reason="its bitmap is missing or damaged")
        elif found.state is LegState.FAILED:
            leg.reason = found.reason
        elif found.was_closed:
            leg.reason = found.reason
            leg._count()
        elif found.boot_id != boot_id:
            leg.handle(LegEvent.BITMAP_LOST, reason="the machine ended without closing it")
        else:
            for start, end in found.in_flight:
                leg.mark(start, min(end, size_bytes))
            leg.reason = found.reason
            if found.state is LegState.IN_SYNC:
                leg.handle(LegEvent.DIVERGED, reason="the node ended without closing it")
            leg._count()
        leg.check()
        return leg

    @property
    def state(self) -> LegState:
        """Where the leg stands."""
        return self._state

    def handle(self, event: LegEvent, *, reason: str = "") -> None:
        """Take one event; raise `RefusedError` for a wish that does not fit, and change nothing."""
        following = TRANSITIONS[self._state].get(event)
        if following is None:
            self._refuse(event)
        old = self._state
        if event is LegEvent.SYNCED:
            assert not self._changed.any(), "in sync with bits set"
        if event in (LegEvent.BITMAP_LOST, LegEvent.RENEW):
            # Before the state: whoever finds the new state finds the bits.
            self._changed.set_range(0, self._changed.bits)
        self._state = following
        if not (old is following is LegState.FAILED):  # the first error is the one that counts
            self.reason = reason
        if following is LegState.RESYNCHRONISING:
            self._count()
        if following is not old:
            self._story.append(f"{event.value} -> {following.value}")
            del self._story[:-STORY_LENGTH_MAX]

    def _refuse(self, event: LegEvent) -> NoReturn:
        if event not in _WISHES:
            raise InvalidTransition(
                machine=f"leg {self.name}",
                state=self._state.value,
                event=event.value,
                story=tuple(self._story),
            )
        far = ""
        if self._state is LegState.RESYNCHRONISING:
            status = self.status()
            left, total = format_size(status.bytes_left), format_size(status.bytes_total)
            far = f" ({left} of {total} left)"
        why = f": {self.reason}" if self.reason else ""
        raise RefusedError(
            f"leg {self.name} is {self._state.value}{far}{why}; it cannot be {_WISHES[event]}",
            hint=_HINTS[self._state],
        )

    # --- what the leg lacks ------------------------------------------------------------------------

    def mark(self, start_byte: int, end_byte: int) -> None:
        """The leg may lack these bytes."""
        if start_byte < end_byte:
            self._changed.set_range(start_byte // GRANULE_BYTES, div_up(end_byte, GRANULE_BYTES))

    def mark_all(self) -> None:
        """The leg may lack everything."""
        self._changed.set_range(0, self._changed.bits)

    def is_marked(self, start_byte: int, end_byte: int) -> bool:
        """Say whether marking these bytes would change nothing."""
        return self._changed.covers(start_byte // GRANULE_BYTES, div_up(end_byte, GRANULE_BYTES))

    @property
    def lacks_something(self) -> bool:
        """Whether a bit is set."""
        return self._changed.any()

    def next_piece(
        self, start_byte: int, *, bytes_max: int = PIECE_BYTES_MAX
    ) -> tuple[int, int] | None:
        """Return (start, end) of the next whole granules to copy at or behind `start_byte`, from the beginning if none.

        None means that nothing is left.
        """
        first, bits = start_byte // GRANULE_BYTES, self._changed.bits
        low = self._changed.next_set(first, bits)
        if low == bits:
            low = self._changed.next_set(0, bits)
            if low == bits:
                return None
        high = self._changed.next_clear(low, min(bits, low + max(1, bytes_max // GRANULE_BYTES)))
        return low * GRANULE_BYTES, min(self.size_bytes, high * GRANULE_BYTES)

    def copied(self, start_byte: int, end_byte: int) -> None:
        """Whole granules are the same on both, and no write to them is under way."""
        assert self._state is LegState.RESYNCHRONISING
        assert start_byte % GRANULE_BYTES == 0
        assert end_byte % GRANULE_BYTES == 0 or end_byte == self.size_bytes
        self._changed.clear_range(start_byte // GRANULE_BYTES, div_up(end_byte, GRANULE_BYTES))

    def status(self) -> LegStatus:
        """Describe the leg."""
        left = self._bytes_left() if self._state is not LegState.FAILED else self.size_bytes
        if self._state is LegState.RESYNCHRONISING:
            # Writes to the primary that failed may have added to it.
            self._bytes_total = max(self._bytes_total, left)
        return LegStatus(
            name=self.name,
            path=self.path,
            state=self._state,
            reason=self.reason,
            bytes_left=left,
            bytes_total=self._bytes_total
            if self._state is LegState.RESYNCHRONISING
            else self.size_bytes,
        )

    def check(self) -> None:
        """Assert what always holds."""
        assert self._state is not LegState.IN_SYNC or not self._changed.any()

    def _bytes_left(self) -> int:
        changed = self._changed
        left = changed.count() * GRANULE_BYTES
        if changed[changed.bits - 1]:
            left -= -self.size_bytes % GRANULE_BYTES
        return left

    def _count(self) -> None:
        self._bytes_total = self._bytes_left()


def granules(size_bytes: int) -> int:
    """Return how many granules a device has."""
    return div_up(size_bytes, GRANULE_BYTES)
