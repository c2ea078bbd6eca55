"""Who may do what at this node: fences, grants and boot ids, decided without I/O.

Four questions stand between a request and a medium, each a method of its own so that a test can take one away and watch
something break:

    `_boot_matches`       was the session opened since this process started?       no: StaleError
    `_epoch_is_current`   has nobody with a newer epoch taken the unit over?       no: StaleError
    `_allows`             does the grant cover it (rights, range, bytes, age)?     no: NotAuthorizedError, one for all
    `_position_matches`   is the tape where the sender believes it to be?          no: PositionError

    grant --open--> Session --check--> medium          fence(designator, epoch)
             |                  ^                          |
             +-- RecordFloor ---+--------------------------+   durable before anything is answered

Floors.  The *floor* of a unit is the highest epoch that a writer (or any user of a drive) opened it with, or that the
controller raised it to.  Lower epochs are refused at open and at every request.  With equal epochs only the holder who
took the floor may come back; a floor raised by `fence` has no holder yet, the first grant of that very epoch gets it.
Readers of a block device must reach the floor but do not raise it, so that several movers can read one static view.  A
drive has one position and therefore one user: the newest session supersedes older ones of the same epoch.

The floor in memory may run ahead of the durable one (it then refuses more, never less); every call that relies on it
returns a `RecordFloor`, also when nothing changed, so that its caller waits until an earlier one is durable.

Time is `now`, seconds of a monotonic clock.  A grant's time to live counts from its first use here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

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
from backplane.wire.grants import Grant, Rights

GRANTS_KEPT_MAX: Final = 1024
"""Grants per logical unit whose first use and byte count are remembered.  Beyond it the lowest epochs are forgotten,
and refused from then on: a forgotten grant would otherwise start a new life."""


NEVER_GRANTED: Final = Epoch(0)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The lowest epoch that is let in, and who opened the unit with exactly that epoch."""

    epoch: Epoch = NEVER_GRANTED
    holder: bytes = b""


_NO_FLOOR: Final = Floor()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFloor:
    """Effect: make the floor durable before the cause of it is answered."""

    designator: Designator
    floor: Floor


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
    spans: tuple[tuple[int, ...], tuple[int, ...]]
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
        self, *, node: NodeName, boot_id: bytes, floors: Mapping[Designator, Floor] | None = None
    ) -> None:
        self.node = node
        self.boot_id = boot_id
        self._boot_bits = boot_bits(boot_id)
        self._floors: dict[Designator, Floor] = dict(floors or {})
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
        """Return the floor of a unit."""
        return self._floors.get(designator, _NO_FLOOR)

    def has_writer(self, designator: Designator) -> bool:
        """Tell whether a session that may write is open and not fenced."""
        state = self._units.get(designator)
        if state is None:
            return False
        floor = self.floor(designator).epoch
        return any(
            session.grant.rights & (Rights.WRITE | Rights.APPEND) and session.grant.epoch >= floor
            for session in state.sessions.values()
        )

    # --- opening ---------------------------------------------------------------------------------

    def open(self, grant: Grant, *, now: float) -> tuple[Session, list[RecordFloor]]:
        """Admit the holder of a grant, who has proved to be it.  The effects come before the answer."""
        state = self._units.get(grant.designator)
        if grant.node != self.node or state is None:
            raise denied("other node" if grant.node != self.node else "no such logical unit")
        number = self._session_count + 1
        floor = self.floor(grant.designator)
        if not self._epoch_is_current(grant.designator, grant.epoch, number):
            raise _stale(grant.epoch, floor.epoch)
        _check_shape(grant, state.unit)
        raises_floor = state.unit.kind is UnitKind.TAPE or bool(grant.rights & Rights.WRITE)
        if raises_floor and grant.epoch == floor.epoch and floor.holder not in (b"", grant.holder):
            raise denied("another holder has this epoch")
        if grant.rights & Rights.WRITE:
            _check_gate(state.unit)
        use = self._use(state, grant, now)
        self._session_count = number
        session = Session(
            number=number,
            grant=grant,
            spans=_spans(grant, state.unit),
            permitted=_permitted(grant.rights),
            use=use,
        )
        state.sessions[number] = session
        if not raises_floor:
            return session, []
        state.newest_session = number
        return session, [self._raise_floor(grant.designator, grant.epoch, grant.holder)]

    def close(self, session: Session) -> None:
        """The connection of a session ended."""
        state = self._units.get(session.grant.designator)
        if state is not None:
            state.sessions.pop(session.number, None)

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
        floor = self.floor(state.unit.designator).epoch
        if len(state.uses) > GRANTS_KEPT_MAX:
            for grant in [grant for grant in state.uses if grant.epoch < floor]:
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
        if not self._epoch_is_current(grant.designator, grant.epoch, session.number):
            raise _stale(grant.epoch, self.floor(grant.designator).epoch)
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

    def _epoch_is_current(self, designator: Designator, epoch: Epoch, number: int) -> bool:
        """The epoch reaches the floor and, on a unit with one user, no newer session was opened."""
        if epoch < self.floor(designator).epoch:
            return False
        state = self._units[designator]
        return state.unit.kind is UnitKind.BLOCK or number >= state.newest_session

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

    def fence(self, designator: Designator, epoch: Epoch) -> list[RecordFloor]:
        """Raise the floor to `epoch`; a higher one stays.  Also for units that are not here (now)."""
        return [self._raise_floor(designator, epoch, b"")]

    def _raise_floor(self, designator: Designator, epoch: Epoch, holder: bytes) -> RecordFloor:
        floor = self.floor(designator)
        if epoch > floor.epoch or (epoch == floor.epoch and not floor.holder):
            floor = Floor(epoch=epoch, holder=holder)
            self._floors[designator] = floor
        return RecordFloor(designator=designator, floor=floor)

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
        for floor in self._floors.values():
            assert floor.epoch >= 0


def _stale(epoch: int, floor: int) -> BackupError:
    return StaleError(f"epoch {epoch} was overtaken, the unit is at {floor}")


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
    if grant.lane:
        raise denied("lanes are not served")
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


def _spans(grant: Grant, unit: Unit) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
