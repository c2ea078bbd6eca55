"""The checkers themselves: each must be able to say no, and none may know the system from inside."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.simulation.checkers import Violation, Window, tape_reader
from tests.simulation.checkers.backups import BackupChecker
from tests.simulation.checkers.drives import DriveChecker
from tests.simulation.checkers.epochs import EpochChecker
from tests.simulation.checkers.fences import FenceChecker
from tests.simulation.checkers.jobs import JobChecker
from tests.simulation.checkers.ledgers import LedgerChecker
from tests.simulation.checkers.volumes import VolumeChecker
from tests.simulation.facts import (
    BlocksWritten,
    Broken,
    Cleaned,
    ClockSet,
    Committed,
    ControllerStarted,
    Fenced,
    Origin,
    Sent,
    TapeCut,
    TapeWritten,
    Told,
    ViewKept,
    VolumeKept,
    WormMade,
)

CHECKERS = Path(__file__).with_name("checkers")
BLOCK = bytes(range(256)) * 2
EMPTY = Window(lambda tag: b"", lambda volume: b"")


# Rows as the checkers see them: by the name of their type, and by attributes.
@dataclass(frozen=True)
class JobRow:
    job: int
    kind: str = "backup"
    state: str = "copying"
    reason: str = ""
    token: str = ""
    view: str = "view"
    backup: int = 0
    planned_bytes: int = 512
    plan: str = "{}"


@dataclass(frozen=True)
class CounterRow:
    name: str
    value: int


@dataclass(frozen=True)
class BackupRow:
    backup: int
    job: int
    state: str = "completed"
    record_bytes: int = 512
    stream_bytes: int = 512
    pool: str = "default"
    copy_of: int = 0
    parent: int = 0
    level: str = "full"
    lanes: int = 1


@dataclass(frozen=True)
class PartRow:
    backup: int = 1
    part: int = 1
    tag: str = "TAPE"
    header_object: int = 4
    end: int = 9
    created: str = "2026-01-11T00:00:00Z"
    lane: int = 0
    stream_start: int = 0
    is_last: bool = True
    data_object: int = 6
    trailer_object: int = 8
    records: int = 1
    stream_bytes: int = 512


@dataclass(frozen=True)
class PoolRow:
    pool: str = "default"
    retain_s: int = 0


@dataclass(frozen=True)
class CartridgeRow:
    tag: str = "TAPE"
    hold: str = ""


@dataclass(frozen=True)
class ItemRow:
    item: int
    job: int
    purpose: str = "data"
    state: str = "done"
    ledger: str = "[]"


@dataclass(frozen=True)
class WorkItem:
    item: int
    epoch: int


@dataclass(frozen=True)
class UnitFence:
    request: int
    epoch: int
    designator: bytes = b"unit"
    lane: int = 0


@dataclass
class Judge:
    """Feeds a checker."""

    checker: object

    def sees(self, *facts: object) -> Judge:
        for fact in facts:
            self.checker.see(fact, 0.0)  # type: ignore[attr-defined]
        return self

    def refuses(self, fact: object, *, match: str) -> None:
        with pytest.raises(Violation, match=match):
            self.checker.see(fact, 0.0)  # type: ignore[attr-defined]


def rows(*found: object) -> Committed:
    return Committed(tuple(found))


def test_no_checker_imports_the_system() -> None:
    """A checker that shares code with the system shares its mistakes."""
    allowed = {"__future__", "awscrt", "collections", "dataclasses", "hashlib", "json", "struct"}
    allowed |= {"datetime", "typing", "tests"}
    for path in CHECKERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                if name.startswith("tests."):
                    assert name.startswith(("tests.simulation.checkers", "tests.simulation.facts"))


# --- fences and epochs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "late",
    [
        BlocksWritten("volume", "unit", 0, BLOCK, Origin("m1", 1, 6)),
        TapeWritten("TAPE", "unit", 3, BLOCK, Origin("m1", 1, 6)),
    ],
)
def test_a_write_below_a_fence_that_was_told_is_a_violation(late: object) -> None:
    good = replace(late, origin=Origin("m2", 2, 7))  # type: ignore[type-var]
    Judge(FenceChecker()).sees(late, Fenced("unit", 7), good).refuses(late, match="I3")


def test_a_fence_of_a_lane_binds_that_lane_and_one_of_the_unit_all() -> None:
    def write(lane: int, epoch: int) -> BlocksWritten:
        return BlocksWritten("volume", "unit", 0, BLOCK, Origin("m1", 1, epoch, lane))

    judge = Judge(FenceChecker()).sees(Fenced("unit", 7, 1), write(2, 6), write(0, 6), write(1, 7))
    judge.refuses(write(1, 6), match="lane 1; it was told to be at 7")
    judge.sees(Fenced("unit", 8), write(2, 8)).refuses(write(2, 7), match="I3")


def test_an_epoch_that_is_used_before_it_is_durable_is_a_violation() -> None:
    Judge(EpochChecker()).sees(rows(CounterRow("epoch", 3))).refuses(
        Sent(WorkItem(1, 4)), match="durable"
    )


def test_an_epoch_that_is_used_twice_is_a_violation() -> None:
    judge = Judge(EpochChecker()).sees(rows(CounterRow("epoch", 3)), Sent(WorkItem(1, 3)))
    judge.refuses(Sent(UnitFence(9, 3)), match="is used for")
    judge = Judge(EpochChecker()).sees(rows(CounterRow("epoch", 3)), Sent(UnitFence(9, 3)))
    judge.refuses(Sent(UnitFence(9, 3, b"other")), match="is used for")
    judge.refuses(Sent(UnitFence(9, 3, lane=1)), match="is used for")


def test_a_fence_that_the_next_life_asks_for_again_is_the_same_use() -> None:
    judge = Judge(EpochChecker()).sees(rows(CounterRow("epoch", 3)), Sent(UnitFence(9, 3)))
    judge.sees(Sent(UnitFence(1 << 33, 3)))


def test_a_counter_that_goes_back_is_a_violation() -> None:
    Judge(EpochChecker()).sees(rows(CounterRow("epoch", 3))).refuses(
        rows(CounterRow("epoch", 3)), match="after 3"
    )


# --- jobs ----------------------------------------------------------------------------------------


def test_a_job_that_goes_back_is_a_violation() -> None:
    Judge(JobChecker()).sees(rows(JobRow(1))).refuses(
        rows(JobRow(1, state="queued")), match="goes from copying to queued"
    )


def test_a_job_that_is_told_before_it_is_durable_is_a_violation() -> None:
    Judge(JobChecker()).refuses(Told("job.submit", {}, {"job": 1}), match="not durable")


def test_a_job_that_vanishes_in_a_restart_is_a_violation() -> None:
    Judge(JobChecker()).sees(rows(JobRow(1))).refuses(ControllerStarted(()), match="job 1")


def test_one_submit_that_makes_two_jobs_is_a_violation() -> None:
    Judge(JobChecker()).sees(rows(JobRow(1, token="t"))).refuses(
        rows(JobRow(2, token="t")), match="one submit"
    )


def test_a_job_that_fails_without_a_cause_is_a_violation() -> None:
    failed = rows(JobRow(1, state="failed", reason="volume v cannot be read at LBA 4"))
    Judge(JobChecker()).refuses(failed, match="without a cause")
    Judge(JobChecker()).sees(Broken("volume", "disk read"), failed)


def test_a_job_that_never_ends_is_a_violation() -> None:
    judge = Judge(JobChecker()).sees(rows(JobRow(1)), Told("job.submit", {}, {"job": 1}))
    with pytest.raises(Violation, match="is copying at the end"):
        judge.checker.finish()  # type: ignore[attr-defined]


def test_a_job_that_waits_without_a_word_is_a_violation() -> None:
    told = {"job": 1, "state": "copying", "exit_code": None, "reason": ""}
    judge = Judge(JobChecker()).sees(rows(JobRow(1)))
    said = Told("job.list", {}, {"jobs": [told | {"reason": "waiting: a free drive"}]})
    judge.checker.see(said, 500.0)  # type: ignore[attr-defined]
    silent = Told("job.list", {}, {"jobs": [told]})
    judge.checker.see(silent, 50.0)  # type: ignore[attr-defined]
    with pytest.raises(Violation, match="copying for 70 s without a word"):
        judge.checker.see(silent, 70.0)  # type: ignore[attr-defined]
    judge.checker.see(rows(ItemRow(1, 1)), 69.0)  # type: ignore[attr-defined]
    judge.checker.see(silent, 70.0)  # type: ignore[attr-defined]


# --- volumes and backups -------------------------------------------------------------------------

KEPT = VolumeKept("volume", "unit", "online", 0, bytes(512))


def test_a_movers_write_into_an_online_volume_is_a_violation() -> None:
    write = BlocksWritten("volume", "unit", 0, BLOCK, Origin("m1", 1, 1))
    Judge(VolumeChecker(EMPTY)).sees(KEPT).refuses(write, match="is online and is written")


def test_a_write_under_a_static_view_is_a_violation() -> None:
    view = ViewKept("view", "volume", bytes(512))
    write = BlocksWritten("volume", "unit", 0, BLOCK, None)
    Judge(VolumeChecker(EMPTY)).sees(KEPT, view).refuses(write, match="while a view holds it")


def test_a_volume_that_comes_online_with_a_hole_is_a_violation() -> None:
    judge = Judge(VolumeChecker(EMPTY)).sees(
        VolumeKept("source", "s", "online", 0, bytes(512)),
        BlocksWritten("source", "s", 0, BLOCK, None),
        ViewKept("view", "source", BLOCK),
        rows(JobRow(1, view="view"), BackupRow(1, job=1)),
        rows(JobRow(2, kind="restore", backup=1)),
        KEPT,
        replace(KEPT, state="restoring", job=2),
    )
    judge.refuses(KEPT, match=r"is wrong .* blocks \[0\]")


def test_a_completed_backup_without_its_parts_is_a_violation() -> None:
    Judge(BackupChecker(EMPTY)).sees(ViewKept("view", "v", BLOCK), rows(JobRow(1))).refuses(
        rows(BackupRow(1, job=1)), match="has parts"
    )


def test_a_part_beyond_what_is_durable_is_a_violation() -> None:
    Judge(BackupChecker(EMPTY)).refuses(rows(PartRow()), match="durable are 0")


# --- cartridges that are used again, lanes, copies ------------------------------------------------

TAPE = b"".join(tape_reader.ENTRY.pack(2, 0, 0, 0, 32 * n, 0, 0, 0, 0) for n in range(9))
"""Nine filemarks."""

FULL = Window(lambda tag: TAPE, lambda volume: b"")
CUT = TapeCut("TAPE", "unit", 0, None)


def committed(*more: object, state: str = "pruned") -> Judge:
    return Judge(BackupChecker(FULL)).sees(
        rows(*more, BackupRow(1, job=1, state="building"), PartRow()),
        rows(BackupRow(1, job=1, state=state)),
    )


def completed() -> Judge:
    """The same backup, as if it had been read back."""
    judge = committed(state="building")
    judge.checker._backups[1] = BackupRow(1, job=1)  # type: ignore[attr-defined]
    return judge


@pytest.mark.parametrize("state", ["pruned", "failed"])
def test_what_nobody_wants_may_be_cut_off_and_is_not_looked_at_again(state: str) -> None:
    judge = committed(state=state).sees(CUT, rows(PartRow(backup=2)))
    judge.checker.finish()  # type: ignore[attr-defined]


def test_cutting_what_a_living_backup_needs_is_a_violation() -> None:
    committed(state="building").refuses(CUT, match="backup 1 is building")
    child = BackupRow(2, job=2, state="building", parent=1, level="incremental")
    judge = completed().sees(rows(child))
    judge.refuses(CUT, match="backup 1 is completed")
    judge.refuses(rows(BackupRow(1, job=1, state="pruned")), match="2 stands on it")
    judge.refuses(CUT, match="backup 2 is building")


def test_a_copy_stands_in_for_what_is_pruned_and_cut() -> None:
    for state in ("completed", "failed"):
        judge = committed()
        known = judge.checker._backups  # type: ignore[attr-defined]
        known[2] = BackupRow(2, job=2, state=state, copy_of=1)
        known[3] = BackupRow(3, job=3, state="building", parent=1)
        if state == "completed":
            judge.sees(CUT)
        else:
            judge.refuses(CUT, match="backup 3 is building")


def test_pruning_what_a_restore_reads_is_a_violation() -> None:
    judge = completed().sees(rows(JobRow(7, kind="restore", backup=1)))
    pruned = rows(BackupRow(1, job=1, state="pruned"))
    judge.refuses(pruned, match="while job 7 restores it")
    again = completed().sees(rows(JobRow(7, kind="restore", backup=1)))
    again.sees(rows(JobRow(7, kind="restore", backup=1, state="failed")), pruned)


def test_cutting_what_is_retained_is_a_violation() -> None:
    judge = committed(PoolRow(retain_s=30))
    judge.refuses(CUT, match="retained until 30 s")
    judge.checker.see(CUT, 30.0)  # type: ignore[attr-defined]


def test_a_retention_is_over_when_both_clocks_have_said_so() -> None:
    ahead, right = ClockSet("library", 60), ClockSet("library", 0)
    judge = committed(PoolRow(retain_s=30)).sees(ahead)
    judge.refuses(CUT, match="the controller has seen 0")
    judge.sees(right, ClockSet("controller", 60)).refuses(CUT, match="at its node it is 0")
    # Its clock goes back again, but it has seen the end.
    judge.sees(ClockSet("controller", 0), ahead)
    judge.checker.see(CUT, 25.0)  # type: ignore[attr-defined]
    # Without a retention no clock is asked.
    committed().sees(ClockSet("library", -60), CUT)
    # What it saw before the commit tells nothing.
    early = Judge(BackupChecker(FULL)).sees(ClockSet("controller", 60))
    early.checker.see(ClockSet("controller", 0), 1.0)  # type: ignore[attr-defined]
    more = rows(PoolRow(retain_s=30), BackupRow(1, job=1, state="failed"), PartRow())
    early.checker.see(more, 2.0)  # type: ignore[attr-defined]
    early.checker.see(ahead, 3.0)  # type: ignore[attr-defined]
    with pytest.raises(Violation, match="the controller has seen 3"):
        early.checker.see(CUT, 3.0)  # type: ignore[attr-defined]


def test_a_retention_that_comes_out_short_is_a_violation() -> None:
    def cut(at: float, *facts: object) -> None:
        judge = Judge(BackupChecker(FULL))
        judge.sees(ClockSet("controller", -60), *facts, TapeWritten("TAPE", "unit", 4, None, None))
        part = replace(PartRow(), created="2026-01-10T23:59:00Z")
        judge.sees(rows(PoolRow(retain_s=30), BackupRow(1, job=1, state="failed"), part))
        judge.sees(ClockSet("controller", 0), ClockSet("library", 60))
        judge.checker.see(CUT, at)  # type: ignore[attr-defined]

    with pytest.raises(Violation, match="for 30 s, and 20"):
        cut(20.0)
    cut(23.0)
    # If both were behind, nobody could know better.
    cut(20.0, ClockSet("library", -60))


def test_cutting_what_is_written_once_is_a_violation() -> None:
    committed().sees(WormMade("OTHER"), CUT)
    committed().sees(WormMade("TAPE")).refuses(CUT, match="only once")


def test_cutting_what_is_held_is_a_violation() -> None:
    committed(CartridgeRow(hold="audit")).refuses(CUT, match="held: audit")


def test_a_pruned_backup_that_comes_back_is_a_violation() -> None:
    committed().refuses(rows(BackupRow(1, job=1, state="building")), match="was pruned")


@pytest.mark.parametrize(
    "wrong",
    [
        [PartRow(part=1), PartRow(part=2, lane=1, is_last=False)],
        [PartRow(part=1, lane=1), PartRow(part=2, lane=0, stream_start=512)],
        [PartRow(part=1), PartRow(part=2, stream_start=512)],
        [PartRow(part=1, lane=2), PartRow(part=2, lane=1, stream_start=512)],
    ],
)
def test_lanes_that_do_not_follow_each_other_are_a_violation(wrong: list[PartRow]) -> None:
    parts = [replace(part, header_object=n, end=n + 1) for n, part in enumerate(wrong)]
    judge = Judge(BackupChecker(FULL)).sees(ViewKept("view", "v", BLOCK), rows(JobRow(1), *parts))
    judge.refuses(rows(BackupRow(1, job=1, lanes=2)), match="lane")


def test_a_copy_on_the_cartridge_of_its_original_is_a_violation() -> None:
    first = rows(JobRow(1), BackupRow(1, job=1, state="building"), PartRow(end=5))
    judge = Judge(BackupChecker(FULL)).sees(ViewKept("view", "v", BLOCK), first)
    judge.checker._backups[1] = BackupRow(1, job=1)  # type: ignore[attr-defined]
    judge.sees(rows(PartRow(backup=2, header_object=5)))
    judge.refuses(rows(BackupRow(2, job=2, copy_of=1)), match="shares")


# --- chains --------------------------------------------------------------------------------------

OTHER = BLOCK[::-1]


def tape(*parts: tuple[list[tuple[int, int]], list[tuple[int, int]], list[bytes]]) -> bytes:
    """A cartridge with parts of (extents, zeros, records), each of as many objects as it has records, and five."""
    data = bytearray()
    number = 0

    def put(body: bytes | None) -> None:
        nonlocal data, number
        kind, content = (2, b"") if body is None else (1, body)
        crc = tape_reader.crc32c(content)
        data += tape_reader.ENTRY.pack(kind, 0, 0, len(content), len(data), crc, 0, 0, 0) + content
        number += 1

    def metadata(kind: int, document: dict[str, object]) -> bytes:
        body = json.dumps(document).encode()
        crc = tape_reader.crc32c(body)
        prefix = (tape_reader.MAGIC, kind, 0, 0, bytes(16), number, len(body), 1, 1, crc, 0)
        return tape_reader.PREFIX.pack(*prefix, bytes(8)) + body

    for sequence, (extents, zeros, records) in enumerate(parts, start=1):
        names = {"backup_uuid": f"u{sequence}", "part": 1, "cartridge": "c", "sequence": sequence}
        both = names | {"zero_extents": zeros}
        sums = [tape_reader.crc32c(record) for record in records]
        put(metadata(tape_reader.HEADER, both))
        put(None)
        for record in records:
            put(record)
        put(None)
        put(metadata(tape_reader.TRAILER, both | {"extents": extents, "record_crc32c": sums}))
        put(None)
    return bytes(data)


def chain(view: bytes, *, zeros: bool = True, level: str = "incremental") -> Judge:
    """A full backup of three blocks, and one on it that copies the second and gives back the third."""
    content = tape(
        ([(0, 3)], [], [BLOCK, BLOCK, BLOCK]), ([(1, 1)], [(2, 1)] if zeros else [], [OTHER])
    )
    first = PartRow(
        header_object=0, data_object=2, records=3, trailer_object=6, end=8, stream_bytes=1536
    )
    second = PartRow(2, header_object=8, data_object=10, records=1, trailer_object=12, end=14)
    judge = Judge(BackupChecker(Window(lambda tag: content, lambda volume: b"")))
    judge.sees(ViewKept("first", "v", BLOCK * 3), ViewKept("second", "v", view))
    judge.sees(rows(JobRow(1, view="first"), JobRow(2, view="second"), first))
    judge.sees(rows(BackupRow(1, job=1, stream_bytes=1536), second))
    return judge.sees(rows(BackupRow(2, job=2, parent=1, level=level)))


def test_a_chain_is_read_back_laid_over_each_other() -> None:
    judge = chain(BLOCK + OTHER + bytes(512))
    judge.checker.finish()  # type: ignore[attr-defined]
    judge.checker._views["first"] = OTHER * 3  # type: ignore[attr-defined]
    with pytest.raises(Violation, match="backup 1 differs"):
        judge.checker.finish()  # type: ignore[attr-defined]


def test_a_chain_that_does_not_give_its_view_is_a_violation() -> None:
    with pytest.raises(Violation, match=r"backup 2 differs from its view at blocks \[1\]"):
        chain(BLOCK + BLOCK + bytes(512))
    with pytest.raises(Violation, match=r"backup 2 differs from its view at blocks \[2\]"):
        chain(BLOCK + OTHER + bytes(512), zeros=False)
    with pytest.raises(Violation, match="backup 2 is full and stands on 1"):
        chain(BLOCK + OTHER + bytes(512), level="full")


def test_a_backup_on_one_that_is_gone_is_a_violation() -> None:
    judge = chain(BLOCK + OTHER + bytes(512))
    judge.checker._backups[1] = BackupRow(1, job=1, state="failed")  # type: ignore[attr-defined]
    with pytest.raises(Violation, match="which is not there"):
        judge.checker.finish()  # type: ignore[attr-defined]


def place(job: int, drive: str, tag: str, *, state: str = "copying", seat: str = "") -> JobRow:
    found: dict[str, object] = {"tag": tag, "tape_node": "node", "drive": drive}
    plan = {"seats": {seat: found}} if seat else found
    return JobRow(job, state=state, plan=json.dumps(plan))


def test_a_drive_or_a_cartridge_with_two_users_is_a_violation() -> None:
    Judge(DriveChecker()).sees(rows(place(1, "drive-0", "A"))).refuses(
        rows(place(2, "drive-0", "B")), match="node/drive-0 has two users: jobs 1 and 2"
    )
    Judge(DriveChecker()).sees(rows(place(1, "drive-0", "A", seat="source"))).refuses(
        rows(place(2, "drive-1", "A")), match="cartridge A has two users"
    )


def test_a_cleaning_cartridge_that_is_used_for_data_is_a_violation() -> None:
    judge = Judge(DriveChecker()).sees(Cleaned("CLN001L1", 1))
    judge.refuses(Cleaned("CLN001L1", 0), match="used up")
    judge.refuses(TapeWritten("CLN001L1", "unit", 0, BLOCK, None), match="is written")
    judge.refuses(rows(place(1, "drive-0", "CLN001L1")), match="is given to job 1")


def test_a_drive_that_is_handed_on_has_one_user() -> None:
    judge = Judge(DriveChecker()).sees(rows(place(1, "drive-0", "A")))
    judge.sees(rows(JobRow(1), place(2, "drive-0", "A")))
    judge.sees(rows(place(2, "drive-0", "A", state="failed"), place(3, "drive-0", "A")))
    with pytest.raises(Violation, match="at the end"):
        judge.checker.finish()  # type: ignore[attr-defined]


def test_a_lane_that_never_ends_is_a_violation() -> None:
    judge = Judge(JobChecker()).sees(rows(JobRow(1, kind="lane"), JobRow(2, kind="lane")))
    with pytest.raises(Violation, match="is copying at the end"):
        judge.checker.finish()  # type: ignore[attr-defined]


def test_lanes_that_planned_less_than_their_backup_are_a_violation() -> None:
    leader = JobRow(1, state="completed", plan='{"lane_jobs": [2]}')
    lane = JobRow(2, kind="lane", state="completed", planned_bytes=0)
    with pytest.raises(Violation, match="I13"):
        Judge(LedgerChecker()).sees(rows(leader, lane)).checker.finish()  # type: ignore[attr-defined]


def test_a_ledger_that_does_not_add_up_is_a_violation() -> None:
    ledger = (
        '[{"bytes_read": 512, "bytes_written": 0, "bytes_padded": 0, "bytes_discarded": 0}, '
        '{"bytes_read": 0, "bytes_written": 511, "bytes_padded": 0, "bytes_discarded": 0}]'
    )
    judge = Judge(LedgerChecker()).sees(
        rows(JobRow(1, state="completed"), ItemRow(1, 1, ledger=ledger))
    )
    with pytest.raises(Violation, match="I13"):
        judge.checker.finish()  # type: ignore[attr-defined]
