"""Fences, grants and boot ids: table S3 of the fault catalogue and the rules of OPEN, request and FENCE."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import BusyError, NotAuthorizedError, RefusedError, StaleError, UsageError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.wire.frames import DATA_BYTES_MAX, Entry, EntryKind, Opcode, boot_bits
from backplane.wire.grants import LANES_MAX, Grant, Rights
from storage_node.core import admission
from storage_node.core.admission import (
    Admission,
    PositionError,
    Request,
    Session,
    Unit,
    UnitKind,
    WriteGate,
    entries_bytes,
)
from storage_node.core.floors import Floor, Floors, RecordFloor

BOOT = bytes(range(16))
DISK = Designator(b"\x30disk...")
TAPE = Designator(b"\x30tape...")
HOLDER = b"h" * 32
OTHER = b"o" * 32

GRANT = Grant(
    node=NodeName("node-1"),
    designator=DISK,
    rights=Rights.READ | Rights.WRITE,
    extents=((10, 10), (20, 5), (40, 2)),
    position=0,
    job=JobId(1),
    item=ItemId(7),
    epoch=Epoch(5),
    holder=HOLDER,
    ttl_s=60.0,
    bytes_max=1_000_000,
)
TAPE_GRANT = replace(
    GRANT,
    designator=TAPE,
    rights=Rights.READ | Rights.APPEND,
    extents=(),
    position=4,
)


def node(kind: type[Admission] = Admission) -> Admission:
    rules = kind(node=NodeName("node-1"), boot_id=BOOT)
    rules.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=100))
    rules.put_unit(Unit(designator=TAPE, kind=UnitKind.TAPE))
    return rules


def opened(rules: Admission, grant: Grant = GRANT, *, now: float = 0.0) -> Session:
    session, _ = rules.open(grant, now=now)
    rules.check_invariants()
    return session


def asks(opcode: Opcode, *entries: Entry, address: int = 0) -> Request:
    return Request(
        opcode=opcode,
        boot=boot_bits(BOOT),
        moved_bytes=entries_bytes(entries),
        entries=entries,
        address=address,
    )


READ = asks(Opcode.READ, Entry(10 * 512, 512))
WRITE = asks(Opcode.WRITE, Entry(10 * 512, 512))


# --- grants (S3) ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grant",
    [
        replace(GRANT, node=NodeName("node-2")),
        replace(GRANT, designator=Designator(b"\x30unknown")),
        replace(GRANT, rights=Rights(0)),
        replace(GRANT, rights=Rights.APPEND),
        replace(GRANT, extents=((99, 2),)),
        replace(TAPE_GRANT, rights=Rights.WRITE),
        replace(TAPE_GRANT, extents=((0, 1),)),
        replace(TAPE_GRANT, lane=1),
        replace(GRANT, rights=Rights.READ, lane=1),
    ],
)
def test_a_grant_that_does_not_fit_the_node_is_refused_with_the_one_error(grant: Grant) -> None:
    with pytest.raises(NotAuthorizedError) as caught:
        node().open(grant, now=0.0)
    assert str(caught.value) == "grant refused"
    assert caught.value.sense == (0x05, 0x26, 0x15)
    assert caught.value.__notes__


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(9 * 512, 512)],
        [Entry(9 * 512 + 511, 2)],
        [Entry(10 * 512, 15 * 512 + 1)],
        [Entry(25 * 512, 1)],
        [Entry(39 * 512, 3 * 512)],
        [Entry(10 * 512, 512), Entry(0, 1)],
        [Entry((1 << 64) - 512, 512)],
    ],
)
def test_an_entry_that_touches_a_block_outside_the_extents_is_refused(
    entries: list[Entry],
) -> None:
    rules = node()
    session = opened(rules)
    with pytest.raises(NotAuthorizedError):
        rules.check(session, asks(Opcode.READ, *entries), now=0.0)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(10 * 512, 15 * 512)],
        [Entry(24 * 512 + 511, 1)],
        [Entry(40 * 512 + 100, 900)],
        [Entry(0, 512, EntryKind.PAD), Entry(41 * 512, 512)],
        [Entry(0, 0)],
        [],
    ],
)
def test_entries_within_merged_extents_are_let_in(entries: list[Entry]) -> None:
    rules = node()
    rules.check(opened(rules), asks(Opcode.READ, *entries), now=0.0)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=6),
    st.lists(st.tuples(st.integers(0, 620), st.integers(0, 90)), max_size=3),
)
def test_extents_agree_with_marking_every_block(
    extents: list[tuple[int, int]], pieces: list[tuple[int, int]]
) -> None:
    rules = Admission(node=NodeName("node-1"), boot_id=BOOT)
    rules.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=8, blocks=100))
    session = opened(rules, replace(GRANT, extents=tuple(extents)))
    granted = {lba for first, count in extents for lba in range(first, first + count)}
    wanted = {(at + n) // 8 for at, count in pieces for n in range(count)}
    request = asks(Opcode.READ, *(Entry(at, count) for at, count in pieces))
    if wanted <= granted:
        rules.check(session, request, now=0.0)
    else:
        with pytest.raises(NotAuthorizedError):
            rules.check(session, request, now=0.0)


@pytest.mark.parametrize(
    ("rights", "request_"),
    [
        (Rights.READ, WRITE),
        (Rights.WRITE, READ),
        (Rights.READ, asks(Opcode.WRITE_RECORD)),
        (Rights.READ, asks(Opcode.WRITE_FILEMARKS)),
        (Rights.APPEND, asks(Opcode.READ_RECORD)),
    ],
)
def test_a_right_that_was_not_granted_is_refused(rights: Rights, request_: Request) -> None:
    rules = node()
    is_disk = request_.opcode in (Opcode.READ, Opcode.WRITE)
    session = opened(rules, replace(GRANT if is_disk else TAPE_GRANT, rights=rights))
    with pytest.raises(NotAuthorizedError):
        rules.check(session, request_, now=0.0)


def test_requests_for_the_other_kind_of_unit_make_no_sense() -> None:
    rules = node()
    with pytest.raises(UsageError):
        rules.check(opened(rules), asks(Opcode.LOCATE), now=0.0)
    with pytest.raises(UsageError):
        rules.check(opened(rules, TAPE_GRANT), asks(Opcode.READ), now=0.0)
    with pytest.raises(UsageError):
        rules.check(opened(rules, TAPE_GRANT), asks(Opcode.LOCATE, Entry(0, 1)), now=0.0)


def test_the_bytes_of_all_sessions_of_a_grant_count_together() -> None:
    rules = node()
    grant = replace(GRANT, bytes_max=1024)
    first = opened(rules, grant)
    rules.check(first, READ, now=0.0)
    rules.close(first)
    second = opened(rules, grant)
    rules.check(second, READ, now=0.0)
    with pytest.raises(NotAuthorizedError):
        rules.check(second, READ, now=0.0)
    rules.check_invariants()


def test_the_time_to_live_counts_from_the_first_use() -> None:
    rules = node()
    session = opened(rules, now=1000.0)
    rules.check(session, READ, now=1059.9)
    rules.close(session)
    session = opened(rules, now=1059.9)
    for refused in (
        lambda: rules.check(session, READ, now=1060.0),
        lambda: rules.recheck(session, WRITE, now=1060.0),
        lambda: rules.open(GRANT, now=1060.0),
    ):
        with pytest.raises(NotAuthorizedError):
            refused()


def test_a_grant_that_was_forgotten_does_not_start_a_new_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "GRANTS_KEPT_MAX", 8)
    rules = node()
    reader = replace(GRANT, rights=Rights.READ)
    session = opened(rules, reader)
    for epoch in range(6, 6 + 20):
        opened(rules, replace(reader, epoch=Epoch(epoch)))
    with pytest.raises(NotAuthorizedError):
        rules.open(reader, now=0.0)
    with pytest.raises(NotAuthorizedError):
        rules.check(session, READ, now=0.0)


# --- epochs and floors ---------------------------------------------------------------------------


def test_opening_for_writing_returns_the_floor_to_record() -> None:
    rules = node()
    _, effects = rules.open(GRANT, now=0.0)
    floor = Floor(epoch=Epoch(5), holder=HOLDER)
    assert effects == [RecordFloor(designator=DISK, floor=floor)]
    assert rules.floor(DISK) == floor


def test_a_lower_epoch_is_stale_at_open_and_at_every_request() -> None:
    rules = node()
    old = opened(rules)
    opened(rules, replace(GRANT, epoch=Epoch(6), holder=OTHER))
    with pytest.raises(StaleError):
        rules.open(GRANT, now=0.0)
    for opcode in (Opcode.READ, Opcode.WRITE, Opcode.FLUSH, Opcode.TEST_UNIT_READY):
        with pytest.raises(StaleError):
            rules.check(old, asks(opcode), now=0.0)
        with pytest.raises(StaleError):
            rules.recheck(old, asks(opcode), now=0.0)


def test_the_same_holder_may_come_back_with_the_same_epoch_and_nobody_else() -> None:
    rules = node()
    opened(rules)
    opened(rules)
    with pytest.raises(NotAuthorizedError):
        rules.open(replace(GRANT, holder=OTHER), now=0.0)


def test_floors_survive_in_what_was_recorded() -> None:
    floors = {(DISK, 0): Floor(epoch=Epoch(5), holder=HOLDER)}
    rules = Admission(node=NodeName("node-1"), boot_id=BOOT, floors=floors)
    rules.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=100))
    with pytest.raises(StaleError):
        rules.open(replace(GRANT, epoch=Epoch(4)), now=0.0)
    with pytest.raises(NotAuthorizedError):
        rules.open(replace(GRANT, holder=OTHER), now=0.0)
    opened(rules)


def test_a_fence_refuses_what_is_below_it_and_lets_its_own_epoch_in_once() -> None:
    rules = node()
    old = opened(rules)
    assert rules.fence(DISK, Epoch(9)) == [
        RecordFloor(designator=DISK, floor=Floor(epoch=Epoch(9)))
    ]
    with pytest.raises(StaleError):
        rules.check(old, WRITE, now=0.0)
    opened(rules, replace(GRANT, epoch=Epoch(9)))
    with pytest.raises(NotAuthorizedError):
        rules.open(replace(GRANT, epoch=Epoch(9), holder=OTHER), now=0.0)


def test_a_lower_fence_changes_nothing_but_is_recorded_so_that_it_waits() -> None:
    rules = node()
    session = opened(rules)
    floor = Floor(epoch=Epoch(5), holder=HOLDER)
    for epoch in (0, 4, 5):
        assert rules.fence(DISK, Epoch(epoch)) == [RecordFloor(designator=DISK, floor=floor)]
    rules.check(session, WRITE, now=0.0)


def test_readers_of_a_block_device_share_it_and_are_fenced() -> None:
    rules = node()
    reader = replace(GRANT, rights=Rights.READ)
    first = opened(rules, reader)
    second = opened(rules, replace(reader, epoch=Epoch(6), holder=OTHER))
    rules.check(first, READ, now=0.0)
    rules.check(second, READ, now=0.0)
    assert rules.floor(DISK) == Floor()
    rules.fence(DISK, Epoch(6))
    rules.check(second, READ, now=0.0)
    with pytest.raises(StaleError):
        rules.check(first, READ, now=0.0)


def test_a_drive_has_one_session_and_the_newest_wins() -> None:
    rules = node()
    old = opened(rules, TAPE_GRANT)
    new = opened(rules, TAPE_GRANT)
    rules.check(new, asks(Opcode.READ_POSITION), now=0.0)
    with pytest.raises(StaleError):
        rules.check(old, asks(Opcode.READ_POSITION), now=0.0)


def test_a_fenced_or_closed_writer_does_not_count_as_one() -> None:
    rules = node()
    assert not rules.has_writer(DISK)
    session = opened(rules)
    assert rules.has_writer(DISK)
    rules.fence(DISK, Epoch(6))
    assert not rules.has_writer(DISK)
    session = opened(rules, replace(GRANT, epoch=Epoch(6)))
    assert rules.has_writer(DISK)
    rules.close(session)
    assert not rules.has_writer(DISK)
    assert not rules.has_writer(Designator(b"\x30unknown"))


# --- lanes ---------------------------------------------------------------------------------------


def lane(number: int, epoch: int, **changes: Any) -> Grant:
    """Lane n has the ten blocks from 10 n on."""
    fields: dict[str, Any] = {"extents": ((10 * number, 10),), "lane": number}
    return replace(GRANT, epoch=Epoch(epoch), **(fields | changes))


def writes(session: Session) -> Request:
    return asks(Opcode.WRITE, Entry(512 * session.grant.extents[0][0], 512))


def is_stale(rules: Admission, session: Session) -> bool:
    try:
        rules.check(session, writes(session), now=0.0)
        rules.recheck(session, writes(session), now=0.0)
    except StaleError:
        return True
    return False


def test_lanes_write_at_once_and_each_raises_its_own_floor() -> None:
    rules = node()
    rules.fence(DISK, Epoch(5))
    sessions = [opened(rules, lane(number, 5 + number, holder=HOLDER)) for number in (3, 1, 2)]
    assert not any(is_stale(rules, session) for session in sessions)
    assert rules.floor(DISK) == Floor(epoch=Epoch(5))
    assert rules.lane_floor(DISK, 3) == Floor(epoch=Epoch(8), holder=HOLDER)
    assert rules.lane_floor(DISK, 4) == rules.floor(DISK)
    assert rules.highest_floor(DISK).epoch == 8
    assert rules.has_writer(DISK)


def test_opening_a_lane_returns_the_floors_of_unit_and_lane_to_record() -> None:
    """It relies on both: that of the unit may still be on its way to the disk."""
    rules = node()
    rules.fence(DISK, Epoch(5))
    _, effects = rules.open(lane(2, 7), now=0.0)
    assert effects == [
        RecordFloor(designator=DISK, floor=Floor(epoch=Epoch(5))),
        RecordFloor(designator=DISK, floor=Floor(epoch=Epoch(7), holder=HOLDER), lane=2),
    ]


def test_a_newer_epoch_of_a_lane_ends_the_older_one_and_no_other_lane() -> None:
    rules = node()
    old, other = opened(rules, lane(1, 6)), opened(rules, lane(2, 7))
    new = opened(rules, lane(1, 8, holder=OTHER))
    assert [is_stale(rules, session) for session in (old, other, new)] == [True, False, False]
    with pytest.raises(StaleError, match="lane 1 of the unit is at 8"):
        rules.open(lane(1, 6), now=0.0)


def test_a_fence_of_a_lane_refuses_what_is_below_it_in_that_lane_only() -> None:
    rules = node()
    old, other = opened(rules, lane(1, 6)), opened(rules, lane(2, 7))
    effects = rules.fence(DISK, Epoch(9), 1)
    assert effects[-1] == RecordFloor(designator=DISK, floor=Floor(epoch=Epoch(9)), lane=1)
    assert [is_stale(rules, session) for session in (old, other)] == [True, False]
    opened(rules, lane(1, 9))
    with pytest.raises(NotAuthorizedError):
        rules.open(lane(1, 9, holder=OTHER), now=0.0)


def test_a_fence_of_a_lane_below_its_unit_says_what_the_unit_says() -> None:
    rules = node()
    rules.fence(DISK, Epoch(9))
    assert rules.fence(DISK, Epoch(9), 1) == rules.fence(DISK, Epoch(4), 1)
    assert rules.fence(DISK, Epoch(9), 1) == [
        RecordFloor(designator=DISK, floor=Floor(epoch=Epoch(9)))
    ]


@pytest.mark.parametrize("fence", [8, 7])
def test_a_fence_of_the_unit_ends_all_lanes_up_to_its_epoch(fence: int) -> None:
    rules = node()
    first, second = opened(rules, lane(1, 6)), opened(rules, lane(2, 7))
    rules.fence(DISK, Epoch(fence))
    assert is_stale(rules, first)
    assert is_stale(rules, second)
    assert not rules.has_writer(DISK)
    with pytest.raises(StaleError):
        rules.open(lane(2, fence), now=0.0)
    opened(rules, lane(2, fence + 1))


def test_a_lane_above_a_fence_of_the_unit_goes_on() -> None:
    rules = node()
    late, other = opened(rules, lane(1, 9)), opened(rules, lane(2, 6))
    rules.fence(DISK, Epoch(7))
    assert [is_stale(rules, session) for session in (late, other)] == [False, True]
    assert rules.highest_floor(DISK) == Floor(epoch=Epoch(9), holder=HOLDER)


def test_a_later_writer_of_the_whole_unit_ends_all_lanes() -> None:
    rules = node()
    first, second = opened(rules, lane(1, 6)), opened(rules, lane(2, 7))
    whole = opened(rules, replace(GRANT, epoch=Epoch(8), holder=OTHER))
    assert [is_stale(rules, session) for session in (first, second, whole)] == [True, True, False]


@pytest.mark.parametrize("epoch", [5, 6, 7])
def test_an_earlier_writer_of_the_whole_unit_stays_out_while_lanes_write(epoch: int) -> None:
    """It was not fenced and it slept: the unit's floor is 5, so nothing but the lanes tells that it is late."""
    rules = node()
    rules.fence(DISK, Epoch(5))
    first, second = opened(rules, lane(1, 6)), opened(rules, lane(2, 7))
    with pytest.raises(StaleError, match="a lane of the unit is at 7"):
        rules.open(replace(GRANT, epoch=Epoch(epoch)), now=0.0)
    assert not is_stale(rules, first)
    assert not is_stale(rules, second)


def test_no_lane_is_opened_while_a_writer_of_the_whole_unit_may_come_back() -> None:
    rules = node()
    whole = opened(rules)
    rules.close(whole)
    with pytest.raises(BusyError, match="whole") as caught:
        rules.open(lane(1, 6), now=0.0)
    assert "fence" in caught.value.hint
    rules.fence(DISK, Epoch(7))
    opened(rules, lane(1, 8))
    with pytest.raises(StaleError):
        rules.open(GRANT, now=0.0)


def test_floors_of_lanes_survive_in_what_was_recorded() -> None:
    first = node()
    floors = Floors()
    for effects in (
        first.fence(DISK, Epoch(5)),
        first.open(lane(1, 8), now=0.0)[1],
        first.fence(DISK, Epoch(9), 2),
    ):
        for effect in effects:
            floors.put(effect)
    rules = Admission(node=NodeName("node-1"), boot_id=BOOT, floors=floors.all)
    rules.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=100))
    for late in (lane(1, 7), lane(2, 8), replace(GRANT, epoch=Epoch(7))):
        with pytest.raises(StaleError):
            rules.open(late, now=0.0)
    with pytest.raises(NotAuthorizedError):
        rules.open(lane(1, 8, holder=OTHER), now=0.0)
    opened(rules, lane(1, 8))
    opened(rules, lane(2, 10))


@pytest.mark.parametrize("extents", [((19, 1),), ((0, 100),), ((40, 1), (12, 2), (60, 3))])
def test_a_lane_gets_no_block_that_another_open_lane_may_write(
    extents: tuple[tuple[int, int], ...],
) -> None:
    rules = node()
    session = opened(rules, lane(1, 6))
    with pytest.raises(NotAuthorizedError) as caught:
        rules.open(lane(2, 7, extents=extents), now=0.0)
    assert caught.value.__notes__ == ["extents of another lane"]
    assert rules.highest_floor(DISK).epoch == 6
    rules.close(session)
    opened(rules, lane(2, 7, extents=extents))


def test_a_lane_that_was_fenced_has_no_blocks() -> None:
    rules = node()
    opened(rules, lane(1, 6))
    rules.fence(DISK, Epoch(7), 1)
    opened(rules, lane(2, 8, extents=((10, 10),)))
    opened(rules, lane(1, 9, extents=((30, 10), (20, 10))))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=5),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=5),
)
def test_extents_of_lanes_are_compared_as_by_marking_every_block(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    rules = node()
    opened(rules, lane(1, 6, extents=tuple(one)))
    blocks = [{lba + n for lba, count in each for n in range(count)} for each in (one, other)]
    if blocks[0] & blocks[1]:
        with pytest.raises(NotAuthorizedError):
            rules.open(lane(2, 7, extents=tuple(other)), now=0.0)
    else:
        opened(rules, lane(2, 7, extents=tuple(other)))


def test_readers_and_lanes_do_not_mind_each_other() -> None:
    rules = node()
    rules.fence(DISK, Epoch(5))
    reader = opened(rules, replace(GRANT, rights=Rights.READ))
    opened(rules, lane(1, 6))
    opened(rules, replace(GRANT, rights=Rights.READ, epoch=Epoch(7)))
    rules.check(reader, READ, now=0.0)


def test_a_drive_has_no_lanes_to_fence_and_no_unit_has_more_than_the_limit() -> None:
    rules = node()
    with pytest.raises(UsageError, match="a drive has no lanes"):
        rules.fence(TAPE, Epoch(9), 1)
    for wrong in (-1, LANES_MAX + 1):
        with pytest.raises(UsageError, match="lanes are 1 to 64"):
            rules.fence(DISK, Epoch(9), wrong)
    assert rules.floor(DISK) == rules.floor(TAPE) == Floor()


def test_beyond_the_limit_lanes_that_nobody_writes_are_given_up_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "LANE_FLOORS_MAX", 3)
    rules = node()
    gone = Designator(b"\x30gone...")
    rules.fence(gone, Epoch(3), 1)
    rules.fence(gone, Epoch(4), 2)
    opened(rules, lane(1, 6))
    _, effects = rules.open(lane(2, 7), now=0.0)
    assert effects[0] == RecordFloor(designator=gone, floor=Floor(epoch=Epoch(4)))
    assert rules.highest_floor(gone) == rules.floor(gone)
    opened(rules, lane(3, 8))
    for refused in (
        lambda: rules.open(lane(4, 9), now=0.0),
        lambda: rules.fence(gone, Epoch(9), 1),
    ):
        with pytest.raises(BusyError, match="3 lanes"):
            refused()
    opened(rules, lane(1, 9))  # One that is kept already needs no room.
    rules.check_invariants()


def test_grants_of_lanes_that_are_fenced_are_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow lane is not refused because the others have had many grants."""
    monkeypatch.setattr(admission, "GRANTS_KEPT_MAX", 8)
    rules = node()
    slow = opened(rules, lane(1, 6))
    for epoch in range(7, 40):
        opened(rules, lane(2, epoch))
    rules.check(slow, writes(slow), now=0.0)


# --- boot id, position, gates --------------------------------------------------------------------


def test_a_request_for_another_boot_is_stale() -> None:
    rules = node()
    session = opened(rules)
    with pytest.raises(StaleError, match="restarted"):
        rules.check(session, READ._replace(boot=boot_bits(BOOT) ^ 1), now=0.0)


@pytest.mark.parametrize("opcode", [Opcode.WRITE_RECORD, Opcode.WRITE_FILEMARKS])
def test_appending_needs_the_position_and_never_before_the_granted_one(opcode: Opcode) -> None:
    rules = node()
    session = opened(rules, TAPE_GRANT)
    rules.check(session, asks(opcode, address=4), now=0.0, position=4)
    rules.recheck(session, asks(opcode, address=9), now=0.0, position=9)
    for address, position in ((4, 5), (5, 4), (3, 3), ((1 << 64) - 1, 4)):
        with pytest.raises(PositionError) as caught:
            rules.check(session, asks(opcode, address=address), now=0.0, position=position)
        assert caught.value.sense == (0x0B, 0x3B, 0x00)


def test_moving_and_reading_do_not_need_the_position() -> None:
    rules = node()
    session = opened(rules, TAPE_GRANT)
    for opcode in (Opcode.LOCATE, Opcode.SPACE, Opcode.READ_RECORD, Opcode.FLUSH):
        rules.check(session, asks(opcode, address=77), now=0.0, position=3)


@pytest.mark.parametrize(
    ("gate", "error"),
    [
        (WriteGate.HELD, BusyError),
        (WriteGate.OFFLINE, RefusedError),
        (WriteGate.NEVER, NotAuthorizedError),
    ],
)
def test_a_closed_gate_refuses_writers_and_lets_readers_in(
    gate: WriteGate, error: type[Exception]
) -> None:
    rules = node()
    writer = opened(rules)
    unit = Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=100, gate=gate)
    rules.put_unit(unit)
    with pytest.raises(error):
        rules.open(GRANT, now=0.0)
    with pytest.raises(error):
        rules.recheck(writer, WRITE, now=0.0)
    rules.check(opened(rules, replace(GRANT, rights=Rights.READ)), READ, now=0.0)


def test_a_unit_that_is_removed_refuses_its_sessions_and_keeps_its_floor() -> None:
    rules = node()
    session = opened(rules)
    rules.remove_unit(DISK)
    with pytest.raises(NotAuthorizedError):
        rules.check(session, READ, now=0.0)
    rules.close(session)
    assert rules.floor(DISK).epoch == 5


def test_entries_beyond_the_limit_of_a_frame_are_refused() -> None:
    assert entries_bytes([Entry(0, DATA_BYTES_MAX)]) == DATA_BYTES_MAX
    with pytest.raises(UsageError):
        entries_bytes([Entry(0, DATA_BYTES_MAX), Entry(0, 1)])


# --- each check can be taken away, and is then missed --------------------------------------------


class NoEpochCheck(Admission):
    def _epoch_is_current(self, grant: Grant, number: int) -> bool:
        return True


class NoBootCheck(Admission):
    def _boot_matches(self, request: Request) -> bool:
        return True


class NoPositionCheck(Admission):
    def _position_matches(self, session: Session, request: Request, position: int) -> bool:
        return True


def test_without_the_epoch_check_an_overtaken_writer_gets_in() -> None:
    rules = node(NoEpochCheck)
    old = opened(rules)
    opened(rules, replace(GRANT, epoch=Epoch(6), holder=OTHER))
    rules.check(old, WRITE, now=0.0)


def test_without_the_boot_check_a_session_outlives_the_node() -> None:
    rules = node(NoBootCheck)
    rules.check(opened(rules), WRITE._replace(boot=0), now=0.0)


def test_without_the_position_check_a_record_goes_anywhere() -> None:
    rules = node(NoPositionCheck)
    rules.check(opened(rules, TAPE_GRANT), asks(Opcode.WRITE_RECORD), now=0.0, position=99)
