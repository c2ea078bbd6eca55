"""Who may do what at this node: fences, grants and boot ids, decided without I/O.

Four questions stand between a request and a medium, each a method of its own so that a test can take one away and watch
something break:

    `_boot_matches`       was the session opened since this process started?       no: StaleError
    `_epoch_is_current`   has nobody with a newer epoch taken the unit over?       no: StaleError
    `_allows`             does the grant cover it (rights, range, bytes, age)?     no: NotAuthorizedError, one for all
    `_position_matches`   is the tape where the sender believes it to be?          no: PositionError

    grant --open--> Session --check--> medium          fence(designator, epoch, lane)
             |                  ^                          |
             +-- RecordFloor ---+--------------------------+   durable before anything is answered

Floors (`floors.py`).  The *floor* of a unit is the highest epoch that a writer (or any user of a drive) opened it with,
or that the controller raised it to.  Lower epochs are refused at open and at every request.  With equal epochs only the
holder who took the floor may come back; a floor raised by `fence` has no holder yet, the first grant of that very epoch
gets it.  Readers of a block device must reach the floor but do not raise it, so that several movers can read one static
view.  A drive has one position and therefore one user: the newest session supersedes older ones of the same epoch.

Lanes.  A block device may have several writers at once, each in a *lane* of its own and each for extents of its own
(`_takes_from_lane`).  Opening lane k for writing at an epoch above the unit's floor raises the floor of lane k and no
other.  Whoever writes the whole unit and whoever writes a lane of it exclude each other, in both orders:

    a lane is opened        only while the unit's floor has no holder.  A whole-unit writer that is let in always holds
                            the floor, since a later one, or a fence, would have raised it beyond its epoch; so "no
                            holder" is "no whole-unit writer, not even one that is away and may come back".  Merely
                            raising the unit's floor to the lane's epoch would not do: it would fence the other lanes.
    a whole-unit writer     only at an epoch above every lane's floor; it raises the unit's floor and so ends them all.

So lanes begin with a fence of the whole unit, whose answer says that nobody older is inside, and end with another one.
Both hold over a restart, because both ask floors, which are durable, and no session.

The floor in memory may run ahead of the durable one (it then refuses more, never less); every call that relies on it
returns a `RecordFloor`, also when nothing changed, so that its caller waits until an earlier one is durable; opening a
lane relies on two.

Time is `now`, seconds of a monotonic clock.  A grant's time to live counts from its first use here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from backplane.errors import (
    BackupError,
    BusyError,
    NotAuthorizedError,
    RefusedError,
    SenseTriple,
    StaleError,
    UsageError,
)
from backplane.ids import Designator, Epoch, NodeName
from backplane.wire.frames import DATA_BYTES_MAX, Entry, EntryKind, Opcode, boot_bits
from backplane.wire.grants import LANES_MAX, Grant, Rights
from storage_node.core.floors import (
    LANE_FLOORS_MAX,
    WHOLE_UNIT,
    Floor,
    Floors,
    Place,
    RecordFloor,
)

GRANTS_KEPT_MAX: Final = 1024
"""Grants per logical unit whose first use and byte count are remembered.  Beyond it the lowest epochs are forgotten,
and refused from then on: a forgotten grant would otherwise start a new life."""


Spans: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Byte ranges, sorted and merged: where they start, and where they end."""


class PositionError(StaleError):
    """The tape is not where the sender believes it to be: nothing was written."""

    kind = "position"
    default_sense = SenseTriple(0x0B, 0x3B, 0x00)


class UnitKind(Enum):
    """What a logical unit is."""

    BLOCK = "block"
    TAPE = "tape"


class WriteGate(Enum):
    """Whether a block device takes writes now, apart from any grant."""

    OPEN = "open"
    HELD = "held"  # a static view holds the volume
    OFFLINE = "offline"  # a failed restore, or old content not yet discarded
    NEVER = "never"  # a static view


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A logical unit as the rules see it; replaced as a whole when something about it changes."""

    designator: Designator
    kind: UnitKind
    block_bytes: int = 0
    blocks: int = 0
    gate: WriteGate = WriteGate.OPEN


class Request(NamedTuple):
    """What is asked for, as far as the rules care.

    `moved_bytes` counts against the grant; `address` is the expected object number of a tape request.
    """

    opcode: Opcode
    boot: int
    moved_bytes: int = 0
    address: int = 0
    entries: tuple[Entry, ...] = ()


@dataclass(slots=True)
class Use:
    """What was done with one grant, in all of its sessions together."""

    first_s: float
    moved_bytes: int = 0
    is_forgotten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An opened logical unit.  `spans` are the granted byte ranges: sorted, merged, as (starts, ends); `permitted`
    what the grant's rights cover.

    The session carries its `use`: a grant of thousands of extents is too long to be looked up for each request.
    """

    number: int
    grant: Grant
    spans: Spans
    permitted: frozenset[Opcode]
    use: Use = field(compare=False)


@dataclass(slots=True)
class _UnitState:
    unit: Unit
    newest_session: int = 0
    forgotten_below: int = 0
    uses: dict[Grant, Use] = field(default_factory=dict)
    sessions: dict[int, Session] = field(default_factory=dict)


_RIGHT_NEEDED: Final[Mapping[Opcode, Rights]] = {
    Opcode.READ: Rights.READ,
    Opcode.READ_RECORD: Rights.READ,
    Opcode.WRITE: Rights.WRITE,
    Opcode.WRITE_RECORD: Rights.APPEND,
    Opcode.WRITE_FILEMARKS: Rights.APPEND,
}
_BLOCK_OPCODES: Final = frozenset({Opcode.READ, Opcode.WRITE, Opcode.FLUSH, Opcode.TEST_UNIT_READY})
_TAPE_OPCODES: Final = frozenset(
    {
        Opcode.WRITE_RECORD,
        Opcode.READ_RECORD,
        Opcode.WRITE_FILEMARKS,
        Opcode.SPACE,
        Opcode.LOCATE,
        Opcode.READ_POSITION,
        Opcode.FLUSH,
        Opcode.TEST_UNIT_READY,
    }
)
_APPENDING: Final = frozenset({Opcode.WRITE_RECORD, Opcode.WRITE_FILEMARKS})


def denied(reason: str) -> NotAuthorizedError:
    """Return the one error for every refused grant; the reason is a note for the audit, not for the peer."""
    error = NotAuthorizedError("grant refused")
    error.add_note(reason)
    return error


class Admission:
    """The rules of one node.  Not thread-safe: the shell serialises calls."""

    def __init__(
        self, *, node: NodeName, boot_id: bytes, floors: Mapping[Place, Floor] | None = None
    ) -> None:
        self.node = node
        self.boot_id = boot_id
        self._boot_bits = boot_bits(boot_id)
        self._floors = Floors(floors)
        self._units: dict[Designator, _UnitState] = {}
        self._session_count = 0

    # --- what there is ---------------------------------------------------------------------------

    def put_unit(self, unit: Unit) -> None:
        """Make a logical unit known, or replace what is known of it; sessions stay open."""
        state = self._units.get(unit.designator)
        if state is None:
            self._units[unit.designator] = _UnitState(unit)
        else:
            state.unit = unit

    def remove_unit(self, designator: Designator) -> None:
        """Forget a logical unit; requests of its sessions are refused from now on.  The floor is kept."""
        self._units.pop(designator, None)

    def floor(self, designator: Designator) -> Floor:
        """Return the floor of a whole unit."""
        return self._floors.unit(designator)

    def lane_floor(self, designator: Designator, lane: int) -> Floor:
        """Return the floor that a writer in a lane has to reach: the lane's, or the unit's if there is none."""
        floor = self._floors.lane(designator, lane)
        return floor if floor.epoch else self._floors.unit(designator)

    def highest_floor(self, designator: Designator) -> Floor:
        """Return the highest floor of a unit and its lanes: nobody has opened it with a higher epoch."""
        return self._floors.highest(designator)

    def has_writer(self, designator: Designator) -> bool:
        """Tell whether a session that may write is open and not fenced."""
        state = self._units.get(designator)
        if state is None:
            return False
        return any(
            session.grant.rights & (Rights.WRITE | Rights.APPEND)
            and self._has_reached_floor(session.grant)
            for session in state.sessions.values()
        )

    # --- opening ---------------------------------------------------------------------------------

    def open(self, grant: Grant, *, now: float) -> tuple[Session, list[RecordFloor]]:
        """Admit the holder of a grant, who has proved to be it.  The effects come before the answer."""
        state = self._units.get(grant.designator)
        if grant.node != self.node or state is None:
            raise denied("other node" if grant.node != self.node else "no such logical unit")
        number = self._session_count + 1
        if not self._epoch_is_current(grant, number):
            raise self._stale(grant)
        _check_shape(grant, state.unit)
        raises_floor = state.unit.kind is UnitKind.TAPE or bool(grant.rights & Rights.WRITE)
        if raises_floor:
            self._check_holder(grant)
        spans = _spans(grant, state.unit)
        if grant.rights & Rights.WRITE:
            self._check_lanes(state, grant, spans)
            _check_gate(state.unit)
        room = self._room_for_lane(grant.designator, grant.lane)
        use = self._use(state, grant, now)
        self._session_count = number
        session = Session(
            number=number,
            grant=grant,
            spans=spans,
            permitted=_permitted(grant.rights),
            use=use,
        )
        state.sessions[number] = session
        if not raises_floor:
            return session, []
        state.newest_session = number
        return session, room + self._raise_floor(
            grant.designator, grant.epoch, grant.holder, grant.lane
        )

    def close(self, session: Session) -> None:
        """The connection of a session ended."""
        state = self._units.get(session.grant.designator)
        if state is not None:
            state.sessions.pop(session.number, None)

    def _check_holder(self, grant: Grant) -> None:
        """With equal epochs only the holder who took the floor may come back."""
        floor = self._floor_for(grant)
        if grant.epoch == floor.epoch and floor.holder not in (b"", grant.holder):
            raise denied("another holder has this epoch")

    def _check_lanes(self, state: _UnitState, grant: Grant, spans: Spans) -> None:
        """Keep a writer of the whole unit and writers in its lanes apart, and lanes from each other."""
        name = grant.designator
        if grant.lane and self._is_held_whole(name):
            raise BusyError(
                "a writer of the whole logical unit has it", hint="fence the whole unit first"
            )
        if not grant.lane and self._has_lane_from(name, grant.epoch):
            raise StaleError(
                f"epoch {grant.epoch} was overtaken, a lane of the unit is at "
                f"{self.highest_floor(name).epoch}"
            )
        others = state.sessions.values()
        if grant.lane and any(self._takes_from_lane(grant, spans, other) for other in others):
            raise denied("extents of another lane")

    def _is_held_whole(self, designator: Designator) -> bool:
        """A writer of the whole unit has the floor, and may be writing or come back."""
        return bool(self._floors.unit(designator).holder)

    def _has_lane_from(self, designator: Designator, epoch: Epoch) -> bool:
        """A lane is at this epoch or a higher one: a writer of the whole unit would not end it."""
        return self._floors.has_lanes(designator) and self.highest_floor(designator).epoch >= epoch

    def _takes_from_lane(self, grant: Grant, spans: Spans, other: Session) -> bool:
        """The grant reaches for blocks that a writer may write who is open in another lane, and not fenced."""
        if other.grant.lane in (WHOLE_UNIT, grant.lane):
            return False
        return self._has_reached_floor(other.grant) and _overlap(spans, other.spans)

    def _room_for_lane(self, designator: Designator, lane: int) -> list[RecordFloor]:
        """See to it that one more lane floor may be kept, or raise `BusyError`.

        Lanes of units that nobody writes are given up for it: the unit's floor goes up to the highest of theirs.  That
        refuses more than before, never less, and whoever is refused for it comes again with a higher epoch.
        """
        if not lane or self._floors.lane(designator, lane).epoch:
            return []
        effects: list[RecordFloor] = []
        if self._floors.lane_count >= LANE_FLOORS_MAX:
            for name in self._floors.with_lanes:
                if name != designator and not self.has_writer(name):
                    effects += self._raise_floor(name, self.highest_floor(name).epoch, b"")
        if self._floors.lane_count >= LANE_FLOORS_MAX:
            raise BusyError(
                f"{LANE_FLOORS_MAX} lanes of logical units are in use, no more are kept",
                hint="wait for a restore to end",
            )
        return effects

    def _use(self, state: _UnitState, grant: Grant, now: float) -> Use:
        """Return what was done with the grant so far; refuse it when its time is over."""
        use = state.uses.get(grant)
        if use is None:
            if grant.epoch < state.forgotten_below:
                raise denied("older than the grants that are remembered")
            use = state.uses[grant] = Use(now)
            self._forget(state)
        _check_use(use, grant, now)
        return use

    def _forget(self, state: _UnitState) -> None:
        if len(state.uses) > GRANTS_KEPT_MAX:
            for grant in [each for each in state.uses if not self._has_reached_floor(each)]:
                state.uses.pop(grant).is_forgotten = True
        while len(state.uses) > GRANTS_KEPT_MAX:
            oldest = min(state.uses, key=lambda grant: grant.epoch)
            state.uses.pop(oldest).is_forgotten = True
            state.forgotten_below = max(state.forgotten_below, oldest.epoch + 1)

    # --- every request ---------------------------------------------------------------------------

    def check(
        self, session: Session, request: Request, *, now: float, position: int | None = None
    ) -> None:
        """Admit one request and count its bytes, or raise.  `position` is the drive's, if it is known already."""
        state = self._recheck(session, request, now=now, position=position)
        self._allows(session, request, state)
        use = session.use
        if use.moved_bytes + request.moved_bytes > session.grant.bytes_max:
            raise denied("more bytes than granted")
        use.moved_bytes += request.moved_bytes

    def recheck(
        self, session: Session, request: Request, *, now: float, position: int | None = None
    ) -> None:
        """Check again, at the medium, what may have changed since `check`: boot, fence, age, gate, position."""
        self._recheck(session, request, now=now, position=position)

    def _recheck(
        self, session: Session, request: Request, *, now: float, position: int | None
    ) -> _UnitState:
        grant = session.grant
        if not self._boot_matches(request):
            raise StaleError("the node has restarted since the unit was opened")
        state = self._units.get(grant.designator)
        if state is None:
            raise denied("the logical unit is gone")
        if not self._epoch_is_current(grant, session.number):
            raise self._stale(grant)
        _check_use(session.use, grant, now)
        if request.opcode is Opcode.WRITE:
            _check_gate(state.unit)
        if (
            position is not None
            and request.opcode in _APPENDING
            and not self._position_matches(session, request, position)
        ):
            raise PositionError(
                f"the tape is at object {position}, the request was made for {request.address}"
            )
        return state

    def _boot_matches(self, request: Request) -> bool:
        return request.boot == self._boot_bits

    def _epoch_is_current(self, grant: Grant, number: int) -> bool:
        """The epoch reaches the floor and, on a unit with one user, no newer session was opened."""
        if not self._has_reached_floor(grant):
            return False
        state = self._units[grant.designator]
        return state.unit.kind is UnitKind.BLOCK or number >= state.newest_session

    def _has_reached_floor(self, grant: Grant) -> bool:
        return self._has_reached_unit_floor(grant) and self._has_reached_lane_floor(grant)

    def _has_reached_unit_floor(self, grant: Grant) -> bool:
        """A lane has to be above it: see `floors.py`."""
        floor = self._floors.unit(grant.designator).epoch
        return grant.epoch > floor if grant.lane else grant.epoch >= floor

    def _has_reached_lane_floor(self, grant: Grant) -> bool:
        if not grant.lane:
            return True
        return grant.epoch >= self._floors.lane(grant.designator, grant.lane).epoch

    def _floor_for(self, grant: Grant) -> Floor:
        """Return the floor that a grant has to reach."""
        if grant.lane:
            return self.lane_floor(grant.designator, grant.lane)
        return self.floor(grant.designator)

    def _stale(self, grant: Grant) -> BackupError:
        where = f"lane {grant.lane} of the unit" if grant.lane else "the unit"
        floor = self._floor_for(grant).epoch
        return StaleError(f"epoch {grant.epoch} was overtaken, {where} is at {floor}")

    def _position_matches(self, session: Session, request: Request, position: int) -> bool:
        """The sender knows where the tape is, and that is not before the place it may append from."""
        return request.address == position and position >= session.grant.position

    def _allows(self, session: Session, request: Request, state: _UnitState) -> None:
        kind = state.unit.kind
        if request.opcode not in (_BLOCK_OPCODES if kind is UnitKind.BLOCK else _TAPE_OPCODES):
            raise UsageError(f"{request.opcode.name} is not a request for this kind of unit")
        if request.opcode not in session.permitted:
            raise denied(f"no right to {request.opcode.name}")
        if request.entries:
            if request.opcode not in (Opcode.READ, Opcode.WRITE):
                raise UsageError(f"{request.opcode.name} takes no entries")
            _check_entries(session, request.entries, state.unit.block_bytes)

    # --- fences ----------------------------------------------------------------------------------

    def fence(
        self, designator: Designator, epoch: Epoch, lane: int = WHOLE_UNIT
    ) -> list[RecordFloor]:
        """Raise the floor to `epoch`; a higher one stays.  Also for units that are not here (now).

        A fence of one lane raises that lane's floor only.  Raises `UsageError` for a lane that cannot be.
        """
        state = self._units.get(designator)
        if not 0 <= lane <= LANES_MAX:
            raise UsageError(f"there is no lane {lane}: lanes are 1 to {LANES_MAX}")
        if lane and state is not None and state.unit.kind is UnitKind.TAPE:
            raise UsageError("a drive has no lanes")
        if lane and epoch <= self._floors.unit(designator).epoch:
            lane = WHOLE_UNIT  # The unit's floor refuses as much: the lane needs none for it.
        room = self._room_for_lane(designator, lane)
        return room + self._raise_floor(designator, epoch, b"", lane)

    def _raise_floor(
        self, designator: Designator, epoch: Epoch, holder: bytes, lane: int = WHOLE_UNIT
    ) -> list[RecordFloor]:
        """Raise a floor, and return every floor that the caller relies on from here."""
        floor = Floor(epoch=epoch, holder=holder)
        self._floors.put(RecordFloor(designator=designator, floor=floor, lane=lane))
        unit = RecordFloor(designator=designator, floor=self._floors.unit(designator))
        if not lane:
            return [unit]
        kept = self._floors.lane(designator, lane)
        return [unit, RecordFloor(designator=designator, floor=kept, lane=lane)]

    def check_invariants(self) -> None:
        """Assert what must hold over all state."""
        for designator, state in self._units.items():
            assert state.unit.designator == designator
            assert len(state.uses) <= GRANTS_KEPT_MAX
            assert state.newest_session <= self._session_count
            for number, session in state.sessions.items():
                assert number == session.number <= self._session_count
                assert session.grant.designator == designator
            for grant, use in state.uses.items():
                assert 0 <= use.moved_bytes <= grant.bytes_max
        self._floors.check_invariants()
        assert self._floors.lane_count <= LANE_FLOORS_MAX


def _check_use(use: Use, grant: Grant, now: float) -> None:
    if use.is_forgotten:
        raise denied("older than the grants that are remembered")
    if now - use.first_s >= grant.ttl_s:
        raise denied("expired")


def _check_gate(unit: Unit) -> None:
    if unit.gate is WriteGate.HELD:
        raise BusyError("a static view holds the volume", hint="wait for the backup to end")
    if unit.gate is WriteGate.OFFLINE:
        raise RefusedError("the volume is offline and not being restored")
    if unit.gate is WriteGate.NEVER:
        raise denied("a static view is read-only")


def _check_shape(grant: Grant, unit: Unit) -> None:
    """Refuse grants that make no sense for the unit, whoever made them."""
    possible = Rights.READ | (Rights.WRITE if unit.kind is UnitKind.BLOCK else Rights.APPEND)
    if not grant.rights or grant.rights & ~possible:
        raise denied("rights that the unit does not have")
    if grant.lane and not (unit.kind is UnitKind.BLOCK and grant.rights & Rights.WRITE):
        raise denied("a lane that does not write a block device")
    if unit.kind is UnitKind.TAPE and grant.extents:
        raise denied("extents on a tape")
    if any(lba + blocks > unit.blocks for lba, blocks in grant.extents):
        raise denied("extents beyond the end of the unit")


def _permitted(rights: Rights) -> frozenset[Opcode]:
    return frozenset(
        opcode
        for opcode in _BLOCK_OPCODES | _TAPE_OPCODES
        if opcode not in _RIGHT_NEEDED or rights & _RIGHT_NEEDED[opcode]
    )


def _spans(grant: Grant, unit: Unit) -> Spans:
    starts: list[int] = []
    ends: list[int] = []
    for lba, blocks in sorted(grant.extents):
        start, end = lba * unit.block_bytes, (lba + blocks) * unit.block_bytes
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        elif end > start:
            starts.append(start)
            ends.append(end)
    return tuple(starts), tuple(ends)


def _overlap(one: Spans, other: Spans) -> bool:
    """Tell whether two sets of byte ranges, each sorted and merged, have a byte in common."""
    starts, ends = other
    for start, end in zip(*one, strict=True):
        index = bisect_right(ends, start)  # The first that ends behind our start.
        if index < len(starts) and starts[index] < end:
            return True
    return False


def _check_entries(session: Session, entries: Iterable[Entry], block_bytes: int) -> None:
    """Every block that an entry touches must be granted; entries may be finer than blocks."""
    starts, ends = session.spans
    for entry in entries:
        if entry.kind is EntryKind.PAD or not entry.byte_count:
            continue
        start = entry.byte_address - entry.byte_address % block_bytes
        end = entry.byte_address + entry.byte_count
        end += -end % block_bytes
        index = bisect_right(starts, start) - 1
        if index < 0 or end > ends[index]:
            raise denied("outside the granted extents")


def entries_bytes(entries: Iterable[Entry]) -> int:
    """Return how many bytes the entries stand for; raises `UsageError` above the limit of a frame."""
    total = sum(entry.byte_count for entry in entries)
    if total > DATA_BYTES_MAX:
        raise UsageError(f"entries for {total} bytes, at most {DATA_BYTES_MAX} in one frame")
    return total
