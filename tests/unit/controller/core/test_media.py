"""Never append blind: what is compared, and what each difference is called."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.ids import BackupId, CartridgeId, JobId, NodeName, VolumeTag
from backplane.scsi.designator import designator_of
from backplane.tape_format import DirectoryEntry, VolumeHeader
from backplane.tape_format.content import UNKNOWN_START
from backplane.tape_format.payload import encode_payload
from backplane.wire.messages import CartridgeState, DriveState, NodeReply
from controller.catalog.store import BackupRow, CartridgeRow, NodeRow, PartRow
from controller.core.allocation import OperatorRequest
from controller.core.effects import Alarm
from controller.core.media import (
    Mounted,
    check_label,
    check_tail,
    choose_for_append,
    media_deadline,
    mount,
    orphan_part,
    put_into_error,
    tag_claims,
)
from controller.core.pools import default_pool, seconds_between
from controller.core.procedure import NotYet
from controller.core.registry import Node, Registry
from tests.site.site import DATA, Site

STORE, UUID = "a" * 32, "b" * 32
TAG = VolumeTag("LTO001L8")
JOB = JobId(1)
WALL = "2026-02-01T00:00:00Z"

ROW = CartridgeRow(
    tag=TAG,
    cartridge=CartridgeId(UUID),
    node=NodeName("tape"),
    status="writable",
    detail="",
    end=20,
    sequence=2,
    capacity_bytes=10**9,
    created="2026-01-11T10:43:48Z",
    pool="default",
)
PART = PartRow(
    backup=BackupId(5),
    part=1,
    tag=TAG,
    cartridge=CartridgeId(UUID),
    sequence=2,
    header_object=10,
    data_object=12,
    trailer_object=17,
    end=20,
    records=4,
    stream_start=0,
    stream_bytes=100,
    root="c" * 64,
    is_last=True,
    created="2026-01-11T10:43:48Z",
)
ENTRY = DirectoryEntry(
    backup_uuid="e" * 32,
    backup=5,
    part=1,
    header_object=10,
    data_object=12,
    trailer_object=17,
    stream_bytes=100,
    records=4,
    root="c" * 64,
    is_last=True,
    volume_name="vol",
    created="2026-01-11T10:43:48Z",
)
HEADER = VolumeHeader(
    format_version=1,
    cartridge=UUID,
    tag=TAG,
    created="2026-01-11T10:43:48Z",
    owner="SDV",
    store=STORE,
    record_bytes=2**20,
)


def reply(*, end: int = 20, sequence: int = 2, entry: DirectoryEntry | None = ENTRY) -> NodeReply:
    return NodeReply(
        request=1,
        boot_id=b"",
        header=encode_payload(HEADER),
        trailer_sequence=sequence if entry is not None else 0,
        trailer=encode_payload(entry) if entry is not None else b"",
        end=end,
    )


def test_the_cartridge_that_the_catalog_knows_is_appended_to() -> None:
    check_label(ROW, reply(), store=STORE)
    check_tail(ROW, reply(), PART, own=None)


def test_an_orphan_tail_is_harmless() -> None:
    check_tail(ROW, reply(end=23), PART, own=None)


def test_another_label_is_another_cartridge() -> None:
    with pytest.raises(VolumeError, match="is another one"):
        check_label(replace(ROW, cartridge=CartridgeId("9" * 32)), reply(), store=STORE)


def test_a_cartridge_of_another_catalog_is_refused() -> None:
    with pytest.raises(VolumeError, match="belongs to another catalog"):
        check_label(ROW, reply(), store="f" * 32)


def test_a_cartridge_without_a_label_is_refused() -> None:
    with pytest.raises(VolumeError, match="no label of ours"):
        check_label(ROW, NodeReply(request=1, boot_id=b""), store=STORE)


def test_shorter_than_the_catalog_is_refused() -> None:
    with pytest.raises(VolumeError, match="shorter than the catalog"):
        check_tail(ROW, reply(end=19), PART, own=None)


def test_a_trailer_that_the_catalog_does_not_know_is_refused() -> None:
    with pytest.raises(VolumeError, match="catalog is behind"):
        check_tail(ROW, reply(end=40, sequence=3), PART, own=None)


def test_a_missing_trailer_is_refused() -> None:
    with pytest.raises(VolumeError, match="no trailer"):
        check_tail(ROW, reply(entry=None), PART, own=None)


@pytest.mark.parametrize("change", [{"root": "d" * 64}, {"data_object": 13, "trailer_object": 18}])
def test_a_trailer_with_another_root_or_place_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(VolumeError, match="the catalog says part 2 at 17"):
        check_tail(ROW, reply(entry=replace(ENTRY, **change)), PART, own=None)


def test_the_trailer_of_the_part_in_hand_may_stand_there_already() -> None:
    """The mover committed, and nobody lived to tell: the job that wrote it goes on from there."""
    check_tail(ROW, reply(end=40, sequence=3), PART, own=("e" * 32, 1))


# --- choosing ------------------------------------------------------------------------------------


def registry(*rows: CartridgeRow, drives: int = 1, loaded: str = "") -> Registry:
    made = Registry()
    node_row = NodeRow(
        name=NodeName("tape"), public_key=b"", addresses=(), roles=("tape",), boot_id=b"", seen=""
    )
    node = Node(row=node_row, is_online=True)
    for row in rows:
        made.cartridges[row.tag] = row
        node.cartridges[row.tag] = CartridgeState(
            tag=row.tag,
            cartridge=row.cartridge,
            status="writable",
            detail="",
            capacity_bytes=0,
            used_bytes=0,
            end=row.end,
            generation=0,
        )
    for number in range(drives):
        name = f"drive-{number}"
        node.drives[name] = DriveState(
            drive=name,
            designator=designator_of(f"{number:032x}"),
            state="loaded" if loaded and number == drives - 1 else "empty",
            loaded=loaded if number == drives - 1 else "",
            epoch=0,
        )
    made.nodes[NodeName("tape")] = node
    return made


def chosen(made: Registry, claims: dict[VolumeTag, JobId] | None = None) -> str:
    found = choose_for_append(made, JOB, default_pool(), claims=claims or {}, backups={}, wall=WALL)
    return found.tag if isinstance(found, Mounted) else found.reason


BLANK = replace(ROW, tag=VolumeTag("LTO000L8"), status="blank", end=0, sequence=0, pool="")
FULLER = replace(ROW, tag=VolumeTag("LTO009L8"), end=90)


def test_the_fullest_writable_cartridge_comes_first_and_a_blank_one_last() -> None:
    assert chosen(registry(BLANK, ROW, FULLER)) == "LTO009L8"
    assert chosen(registry(BLANK)) == "LTO000L8"


def test_a_cartridge_that_another_job_uses_is_passed_over() -> None:
    made = registry(ROW, FULLER, drives=2)
    assert chosen(made, {FULLER.tag: JobId(7)}) == "LTO001L8"
    assert (
        chosen(registry(ROW), {ROW.tag: JobId(7)}) == "waiting: cartridge LTO001L8 is used by job 7"
    )


def test_without_any_cartridge_that_could_take_data_an_operator_is_asked() -> None:
    made = registry(replace(ROW, status="retired"), replace(FULLER, status="error"))
    assert chosen(made) == "waiting: scratch cartridge for pool default"


def test_a_job_waits_for_a_drive_that_another_has_claimed() -> None:
    made = registry(ROW)
    made.drive_claims[NodeName("tape"), "drive-0"] = JobId(7)
    assert chosen(made) == "waiting: a free drive at tape"


def test_the_drive_that_holds_the_cartridge_is_preferred() -> None:
    found = mount(registry(ROW, drives=2, loaded=ROW.tag), JOB, ROW, claims={})
    assert isinstance(found, Mounted)
    assert found.drive.name == "drive-1"


def test_a_cartridge_outside_the_library_or_at_a_node_away_is_waited_for() -> None:
    made = registry(ROW)
    del made.nodes[NodeName("tape")].cartridges[ROW.tag]
    asked = mount(made, JOB, ROW, claims={})
    assert isinstance(asked, OperatorRequest)
    assert asked.reason == "waiting: cartridge LTO001L8 (offline)"
    asked = mount(made, JOB, replace(ROW, vault="cellar"), claims={})
    assert isinstance(asked, OperatorRequest)
    assert asked.reason == "waiting: cartridge LTO001L8 (in vault cellar)"
    made.nodes[NodeName("tape")].is_online = False
    assert mount(made, JOB, ROW, claims={}) == NotYet("waiting: storage node tape is away")


# --- leftovers of jobs that failed ----------------------------------------------------------------

FAILED = BackupRow(
    backup=BackupId(9),
    backup_uuid="9" * 32,
    job=JobId(3),
    volume="d" * 32,  # type: ignore[arg-type]
    volume_name="vol",
    blocks=100,
    block_bytes=512,
    record_bytes=2048,
    stream_bytes=500,
    state="failed",
    created="",
    consistency="crash",
    view_means="hold",
    detail="{}",
)
LEFT = replace(
    ENTRY,
    backup_uuid="9" * 32,
    backup=9,
    header_object=20,
    data_object=22,
    trailer_object=27,
)


def orphan(
    entry: DirectoryEntry = LEFT, *, sequence: int = 3, backup: BackupRow = FAILED
) -> PartRow | None:
    known = Registry()
    known.parts[5, 1] = PART
    answer = replace(reply(end=35, sequence=sequence, entry=entry), durable_end=30)
    return orphan_part(ROW, answer, registry=known, backups={backup.backup: backup})


def test_a_complete_part_of_a_job_that_failed_is_taken_in() -> None:
    found = orphan()
    assert found is not None
    assert (found.backup, found.part, found.sequence, found.tag) == (9, 1, 3, TAG)
    assert (found.header_object, found.trailer_object, found.end) == (20, 27, 30)
    assert found.cartridge == UUID


def test_a_part_that_is_taken_in_is_where_its_cartridge_says_in_the_stream_and_of_that_lane() -> (
    None
):
    several = replace(FAILED, lanes=3)
    entry = replace(LEFT, part=2, stream_start=4096, lane=1)
    found = orphan(entry, backup=several)
    assert found is not None
    assert (found.part, found.stream_start, found.lane) == (2, 4096, 1)


def test_of_cartridges_that_do_not_say_so_it_is_behind_the_parts_before() -> None:
    assert LEFT.stream_start == UNKNOWN_START
    found = orphan()
    assert found is not None
    assert (found.stream_start, found.lane) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 2},
        {"sequence": 4},
        {"backup": replace(FAILED, state="building")},
        {"backup": replace(FAILED, state="completed")},
        {"backup": replace(FAILED, backup_uuid="8" * 32)},
        {"backup": replace(FAILED, backup=BackupId(8))},
        {"entry": replace(LEFT, part=2)},
    ],
    ids=["known", "too-far", "building", "completed", "other-uuid", "unknown", "no-first-part"],
)
def test_anything_else_behind_the_catalog_is_not(changes: dict[str, Any]) -> None:
    assert orphan(**changes) is None


def test_numbers_that_no_catalog_can_keep_are_not_taken_in() -> None:
    answer = replace(reply(end=35, sequence=3, entry=LEFT), durable_end=2**63)
    assert orphan_part(ROW, answer, registry=Registry(), backups={FAILED.backup: FAILED}) is None


def test_a_cartridge_is_put_into_error_once_for_one_reason(site: Site) -> None:
    for _ in range(2):
        put_into_error(site.machine, TAG, f"cartridge {TAG}: broken")
    put_into_error(site.machine, TAG, "broken again")
    assert site.machine.registry.cartridges[TAG].status == "error"
    alarms = [effect for effect in site.machine._take_effects() if isinstance(effect, Alarm)]
    assert [alarm.text for alarm in alarms] == [
        "cartridge LTO001L8 is put into error: broken",
        "cartridge LTO001L8 is put into error: broken again",
    ]


def test_a_cartridge_in_the_drive_of_another_job_has_to_wait() -> None:
    made = registry(ROW, drives=2, loaded=TAG)
    (drive,) = [d.drive for d in made.nodes[NodeName("tape")].drives.values() if d.loaded]
    made.drive_claims[NodeName("tape"), drive] = JobId(2)
    found = mount(made, JOB, ROW, claims={})
    assert isinstance(found, NotYet)
    assert "which is in use" in found.reason


def test_a_cartridge_at_the_door_is_asked_for() -> None:
    """Somebody may take it at any moment; an import brings it in."""
    made = registry(ROW)
    states = made.nodes[NodeName("tape")].cartridges
    states[TAG] = replace(states[TAG], element="io-1")
    asked = mount(made, JOB, ROW, claims={})
    assert isinstance(asked, OperatorRequest)
    assert asked.reason == "waiting: cartridge LTO001L8 (at io-1: ctl tape import LTO001L8)"
    assert chosen(made) == (
        "waiting: scratch cartridge for pool default, "
        "or LTO001L8 (at io-1: ctl tape import LTO001L8)"
    )


def test_the_end_of_a_retention_is_a_deadline_only_while_a_job_waits_for_media(site: Site) -> None:
    def deadline(now: float = 100.0) -> float | None:
        return media_deadline(site.machine.registry, site.machine.jobs, now=now, wall=site.wall)

    for tag in site.tapes:
        site.set_cartridge(tag, status="full", retain_until="2026-01-11T00:05:00Z", hold="")
    assert deadline() is None, "nobody waits"
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    site.settle()
    left = seconds_between(site.wall, "2026-01-11T00:05:00Z")
    assert deadline() == 100.0 + left + 1
    site.set_cartridge(TAG, retain_until="2027-01-01T00:00:00Z")
    site.set_cartridge("LTO002L8", hold="lawsuit")
    assert deadline() == 100.0 + 3600 + 1, "no further than the clock on the wall is believed"
    site.set_cartridge(TAG, status="retired")
    assert deadline() is None, "nothing will come of waiting"


def test_who_has_a_cartridge_is_found_without_a_look_at_jobs_that_have_no_drive() -> None:
    class Waiting:
        @property
        def plan(self) -> dict[str, Any]:
            raise AssertionError("it is asked about a cartridge, and has claimed no drive")

    made = registry(drives=2)
    made.claim_drive(JOB, NodeName("tape"), "drive-0")
    made.claim_drive(JOB, NodeName("tape"), "drive-1", seat="source")
    writer = SimpleNamespace(plan={"tag": TAG, "seats": {"source": {"tag": "LTO002L8"}}})
    jobs = {JobId(number): Waiting() for number in range(2, 1000)} | {JOB: writer}
    desk: Any = SimpleNamespace(registry=made, jobs=jobs)
    assert tag_claims(desk) == {TAG: JOB, "LTO002L8": JOB}
    made.release_drives(JOB)
    assert tag_claims(desk) == {}
