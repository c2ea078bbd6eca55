"""Second copies: record by record the same, on other cartridges, and read when the first cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import ExitCode, NotFoundError
from backplane.ids import BackupId, JobId, NodeName, VolumeTag
from backplane.tape_format import decode_metadata, decode_record
from controller.core import planner
from controller.core.allocation import is_request
from controller.core.damage import bad_of
from controller.core.lineage import origin
from tests.site.disk import Volume
from tests.site.rows import data_records as records
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    check_end,
    connected,
    content,
    first_record,
    ledger,
)
from tests.site.tape import TapeNode

ONE, TWO, THREE = "LTO001L8", "LTO002L8", "LTO003L8"
FILES = {"home/a": (10, 11), "home/b": (32, 33, 34, 35, 36), "z": (50,)}


@pytest.fixture
def site() -> Site:
    return library()


def library(*, drives: int = 2, tags: int = 4) -> Site:
    """A site with a backup of one part on the first cartridge."""
    site = connected(drives=drives, tags=tuple(f"LTO00{n}L8" for n in range(1, tags + 1)))
    volume = site.make_volume("vol", data=DATA)
    volume.files.table = dict(FILES)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    return site


def copy(site: Site, backup: int = 1, *, state: str = "completed") -> int:
    """Copy a backup; returns the job."""
    job = site.submit("copy", backup=backup)
    site.run()
    check_end(site, job, state)
    return job


def restore(site: Site, *, backup: int = 1, state: str = "completed", **options: Any) -> Any:
    name = f"copy-{site.call_number}"
    job = site.submit("restore", backup=backup, new=name, **options)
    site.run()
    check_end(site, job, state)
    return dict(site.disk.by_name(name).data), json.loads(site.job(job).result)


def tags(site: Site, backup: int) -> list[str]:
    return [part.tag for part in site.machine.registry.parts_of(backup)]


# --- the copy itself ------------------------------------------------------------------------------


def test_a_copy_has_the_same_records_on_another_cartridge_and_a_row_of_its_own(site: Site) -> None:
    job = copy(site)
    original, made = (site.machine.backups[BackupId(n)] for n in (1, 2))
    assert records(site, 2) == records(site, 1)
    assert (tags(site, 1), tags(site, 2)) == ([ONE], [TWO])
    assert made == replace(
        original,
        backup=BackupId(2),
        backup_uuid=made.backup_uuid,
        job=made.job,
        copy_of=BackupId(1),
    )
    assert made.backup_uuid != original.backup_uuid
    assert (origin(made), made.state) == (1, "completed")
    book = ledger(site, job)
    assert (book["read_bytes"], book["written_bytes"], book["padded_bytes"]) == (8192, 8192, 0)
    assert site.job(job).done_bytes == site.job(job).planned_bytes == 8192


def test_the_cartridge_says_of_what_it_is_a_copy(site: Site) -> None:
    copy(site)
    part, uuid = site.machine.registry.parts[2, 1], site.machine.backups[BackupId(1)].backup_uuid
    objects = site.tapes[TWO].objects
    for at in (part.header_object, part.trailer_object):
        record = decode_record(objects[at])  # type: ignore[arg-type]
        value: Any = decode_metadata(
            [decode_record(objects[at + n]) for n in range(record.count)]  # type: ignore[arg-type]
        )
        assert (value.copy_of_uuid, value.level, value.backup) == (uuid, "full", 2)
    assert value.directory_entry().copy_of_uuid == uuid


def test_a_copy_can_be_restored_by_itself_with_its_files(site: Site) -> None:
    copy(site)
    del site.tapes[ONE]
    site.connect("tape")
    assert restore(site, backup=2)[0] == DATA
    data, result = restore(site, backup=2, paths=["home/a"], staging=True)
    assert data == content(10, 11)
    assert result["files"]["restored"] == 1


def test_a_copy_of_an_incremental_stands_on_the_originals_parent(site: Site) -> None:
    volume = volume_of(site)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    volume.write({10: b"n" * 512})
    volume.trim(50)
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    copy(site, 3)
    made = site.machine.backups[BackupId(4)]
    assert (made.level, made.parent, made.copy_of) == ("incremental", 2, 3)
    assert restore(site, backup=4)[0] == volume.data
    volume.write({11: b"m" * 512})
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    assert site.machine.backups[BackupId(5)].parent == 3, "nothing stands on a copy"


def volume_of(site: Site) -> Volume:
    return site.disk.by_name("vol")


def test_a_copy_of_a_copy_is_one_of_the_original_and_on_a_third_cartridge(site: Site) -> None:
    copy(site)
    copy(site, 2)
    assert site.machine.backups[BackupId(3)].copy_of == 1
    assert tags(site, 3) == [THREE]


def test_what_is_not_there_cannot_be_copied(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no completed backup has number 9"):
        site.submit("copy", backup=9)
    with pytest.raises(NotFoundError, match="pool"):
        site.submit("copy", backup=1, pool="nix")


def test_a_backup_of_nothing_is_copied(site: Site) -> None:
    site.make_volume("empty", data={})
    site.submit("backup", volume="empty", raw=True)
    site.run()
    copy(site, 2)
    assert [part.records for part in site.machine.registry.parts_of(3)] == [0]


def test_one_original_on_two_cartridges_becomes_three_parts_on_two_others() -> None:
    site = connected(drives=2, tags=tuple(f"LTO00{n}L8" for n in range(1, 6)), records=2)
    lbas = range(60)
    site.make_volume("vol", data=content(*lbas))
    site.tapes[ONE].capacity = 25
    site.submit("backup", volume="vol")
    site.run()
    assert tags(site, 1) == [ONE, TWO]
    site.tapes[THREE].capacity = 17
    copy(site)
    assert records(site, 2) == records(site, 1)
    found = site.machine.registry.parts_of(2)
    assert len(found) == 3
    assert tags(site, 2)[0] == THREE
    assert [part.is_last for part in found] == [False, False, True]
    registry = site.machine.registry
    assert registry.cartridges[VolumeTag(THREE)].status == "full"
    assert registry.cartridges[VolumeTag("LTO004L8")].status == "writable", "cut is not full"
    ends = [part.stream_start + part.stream_bytes for part in found]
    assert [part.stream_start for part in found] == [0, *ends[:-1]]
    assert restore(site, backup=2)[0] == content(*lbas)


# --- drives ---------------------------------------------------------------------------------------


def test_with_one_drive_a_copy_waits_and_holds_nothing_meanwhile() -> None:
    site = library(drives=1)
    job = site.submit("copy", backup=1)
    site.run(60)
    assert "waiting:" in site.job(job).reason
    registry = site.machine.registry
    assert not registry.drive_claims
    assert "tag" not in json.loads(site.job(job).plan)
    # Others go on.
    site.submit("verify", backup=1)
    site.run(60)
    assert site.job(job + 1).state == "completed"
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert site.machine.backups[BackupId(2)].state == "failed"


@pytest.mark.parametrize("loaded", [(ONE, TWO), (TWO, ONE), (TWO, THREE), (THREE, ONE)])
def test_whatever_the_drives_hold_both_cartridges_find_one(
    site: Site, loaded: tuple[str, str]
) -> None:
    """Either may be in the drive that the other would take first."""
    site.set_cartridge(THREE, status="retired")
    site.set_cartridge("LTO004L8", status="retired")
    for drive, tag in zip(site.tape.drives.values(), loaded, strict=True):
        drive.loaded = tag
    site.connect("tape")
    copy(site)
    assert tags(site, 2) == [TWO]


def test_two_copies_across_each_other_both_end() -> None:
    """Each reads what the other writes on: neither may hold one end and wait for the other."""
    site = connected(drives=4, tags=(ONE, TWO))
    for number, (name, tag) in enumerate((("a", ONE), ("b", TWO)), start=1):
        site.make_volume(name, data=DATA)
        for other in (ONE, TWO):
            status = "writable" if site.tapes[other].objects else "blank"
            site.set_cartridge(other, status=status if other == tag else "retired")
        site.submit("backup", volume=name)
        site.run()
        assert tags(site, number) == [tag]
    for tag in (ONE, TWO):
        site.set_cartridge(tag, status="writable")
    jobs = [site.submit("copy", backup=1), site.submit("copy", backup=2)]
    site.connect_mover("m2")
    site.run()
    for job in jobs:
        check_end(site, job)
    assert (tags(site, 3), tags(site, 4)) == ([TWO], [ONE])
    assert records(site, 3) == records(site, 4)


# --- what goes wrong ------------------------------------------------------------------------------


def test_two_copies_at_the_same_time_share_no_cartridge() -> None:
    site = library(drives=4, tags=3)
    jobs = [site.submit("copy", backup=1) for _ in range(2)]
    site.run()
    for job in jobs:
        check_end(site, job)
    assert sorted(tags(site, 2) + tags(site, 3)) == [TWO, THREE]


def test_a_damaged_record_ends_a_copy_and_is_named(site: Site) -> None:
    first = first_record(site, 1)
    site.tapes[ONE].bad = {first + 2}
    job = copy(site, state="failed")
    assert f"object {first + 2} cannot be read" in site.job(job).reason
    assert site.job(job).exit_code == 8
    assert bad_of(site.machine.backups[BackupId(1)]) == [(2, 3)]
    assert site.machine.backups[BackupId(2)].state == "failed"


@pytest.mark.parametrize("bad", [{0}, {2}, {3}, {0, 1}, {1, 3}])
def test_what_is_damaged_of_one_is_copied_from_another(site: Site, bad: set[int]) -> None:
    copy(site)
    site.tapes[ONE].bad = {first_record(site, 1) + number for number in bad}
    job = copy(site)
    assert [record is not None for record in records(site, 3)] == [True] * 4
    assert records(site, 3) == records(site, 2)
    assert bad_of(site.machine.backups[BackupId(1)])[0][0] == min(bad)
    assert site.job(job).exit_code == 0


def test_a_cartridge_that_is_lost_in_the_middle_is_made_up_for_by_another_copy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2048)
    copy(site)
    seen = 0

    def before(work: Any) -> None:
        nonlocal seen
        seen += work.item.purpose == "data"
        if seen == 2:
            site.tapes[ONE].unreadable = "index damaged"
            site.tapes[ONE].bad = set(range(100))

    site.before_work = before
    copy(site)
    assert records(site, 3) == records(site, 2)
    assert len(site.machine.registry.parts_of(3)) == 2
    assert site.machine.registry.cartridges[VolumeTag(ONE)].status == "error"


@pytest.mark.parametrize("steps", range(0, 40, 3))
def test_a_tape_node_that_restarts_at_any_step_costs_nothing_but_time(steps: int) -> None:
    site = library()
    job = site.submit("copy", backup=1)
    site.settle(steps=steps)
    site.restart_node("tape")
    site.run()
    check_end(site, job)
    assert records(site, 2) == records(site, 1)


def test_a_mover_that_dies_anywhere_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * 2048)
    for objects in range(6):
        site = library()
        job = site.submit("copy", backup=1)
        site.settle(steps=12)
        site.lose_after = [objects]
        site.run(30)
        site.connect_mover("m2")
        site.run()
        check_end(site, job)
        assert records(site, 2) == records(site, 1)


def test_a_controller_that_dies_anywhere_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * 2048)
    for crash_at in range(400):
        site = library()
        job = site.submit("copy", backup=1)
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job)
        assert records(site, 2) == records(site, 1)
        if is_through:
            return
    raise AssertionError("it never gets through")


# --- reading the one instead of the other ---------------------------------------------------------


def test_a_damaged_record_is_read_from_the_copy_and_nothing_is_missing(site: Site) -> None:
    copy(site)
    first = first_record(site, 1)
    site.tapes[ONE].bad = {first + 1, first + 2}
    data, result = restore(site)
    assert data == DATA
    assert {entry["instead"] for entry in result["damage"]} == {f"backup 2 on {TWO}"}
    assert result["damaged_records"] == 2
    data, result = restore(site)
    assert (data, result.get("damage", [])) == (DATA, [])
    assert "backup 1 is known to be damaged" in result["warnings"][0]


def test_records_that_are_not_those_that_were_committed_are_read_from_the_copy(site: Site) -> None:
    """Each of them reads without an error; only the digest over all tells."""
    copy(site)
    first, objects = first_record(site, 1), site.tapes[ONE].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    job = site.submit("verify", backup=1)
    site.run()
    check_end(site, job, "failed")
    data, result = restore(site)
    assert data == DATA
    assert "are not those that were committed" in result["warnings"][0]


def test_records_that_are_not_those_that_were_committed_are_not_copied(site: Site) -> None:
    """A copy of them would have a digest of its own, and be verified without a fault."""
    first, objects = first_record(site, 1), site.tapes[ONE].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    job = copy(site, state="failed")
    told = f"cartridge {ONE}: the digests of part 1 of backup 1 are not those that were committed"
    assert told in site.job(job).reason
    assert bad_of(site.machine.backups[BackupId(1)]) == [(0, 4)]
    assert data_parts(site, 2) == []


def test_they_are_copied_from_another_copy(site: Site) -> None:
    copy(site)
    first, objects = first_record(site, 1), site.tapes[ONE].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    copy(site)
    assert records(site, 3) == records(site, 2) != records(site, 1)


def changed_copy(site: Site) -> None:
    """Two records of the copy have changed places on its cartridge, which a verification has found."""
    copy(site)
    first, objects = first_record(site, 2), site.tapes[TWO].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    job = site.submit("verify", backup=2)
    site.run()
    check_end(site, job, "failed")


@pytest.mark.parametrize("harm", ["record", "cartridge"])
def test_nobody_vouches_for_what_is_read_half_way_from_a_copy_that_was_changed(
    site: Site, harm: str
) -> None:
    changed_copy(site)
    if harm == "record":
        site.tapes[ONE].bad = {first_record(site, 1)}
    else:
        site.tapes[ONE].unreadable = "index damaged"
    _, result = restore(site, state="partial")
    assert ("holes" in result, result["needs"]) == (False, [ONE])
    [job, *_] = site.catalog.jobs(limit=1)
    assert "not all that backup 2 has on tape is what was written there" in job.reason


def data_parts(site: Site, backup: int) -> list[int]:
    return [part.part for part in site.machine.registry.parts_of(backup) if part.records]


@pytest.mark.parametrize("harm", ["error", "missing", "unreadable", "quarantined", "gone"])
def test_a_cartridge_that_cannot_be_used_is_made_up_for_by_the_copy(site: Site, harm: str) -> None:
    copy(site)
    if harm == "missing":
        del site.tapes[ONE]
        site.connect("tape")
    elif harm == "unreadable":
        site.tapes[ONE].unreadable = "index damaged"
    elif harm == "gone":
        site.set_cartridge(ONE, cartridge="e" * 32)
    else:
        site.set_cartridge(ONE, status=harm)
    assert restore(site)[0] == DATA


def test_what_both_lack_is_a_hole_and_nothing_more(site: Site) -> None:
    copy(site)
    site.tapes[ONE].bad = {first_record(site, 1) + n for n in (1, 2)}
    site.tapes[TWO].bad = {first_record(site, 2) + n for n in (2, 3)}
    data, result = restore(site, state="partial", keep_going=True)
    assert result["holes"]["extents"] == [[32, 4]]
    assert data == {lba: DATA[lba] for lba in DATA if lba not in (32, 33, 34, 35)}
    restore(site, state="failed")


def test_a_backup_with_a_good_copy_is_not_broken_and_can_be_stood_on(site: Site) -> None:
    volume = volume_of(site)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    copy(site, 2)
    site.tapes[ONE].bad = {first_record(site, 2)}
    site.submit("verify", backup=2)
    site.run()
    volume.write({10: b"n" * 512})
    site.submit("backup", volume="vol", level="auto")
    site.run()
    made = site.machine.backups[BackupId(4)]
    assert (made.level, made.parent) == ("incremental", 2)
    assert restore(site, backup=4)[0] == volume.data


def test_a_controller_that_dies_while_it_reads_the_copy_goes_on() -> None:
    for crash_at in range(200):
        site = library()
        copy(site)
        first = first_record(site, 1)
        site.tapes[ONE].bad = {first + 1, first + 3}
        job = site.submit("restore", backup=1, new="new")
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job)
        assert site.disk.by_name("new").data == DATA
        if is_through:
            return
    raise AssertionError("it never gets through")


def test_a_cartridge_with_much_damage_is_left_for_the_copy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.restoring.DAMAGED_TO_LEAVE", 2)
    copy(site)
    site.tapes[ONE].bad = set(range(first_record(site, 1), 100))
    data, result = restore(site)
    assert data == DATA
    assert result["damaged_records"] == 2, "the others were not even tried"


def test_a_cartridge_at_the_door_is_not_waited_for_where_a_copy_has_the_same(site: Site) -> None:
    copy(site)
    site.call("tape.export", tag=ONE)
    assert restore(site)[0] == DATA


def test_one_that_goes_to_the_door_while_a_restore_waits_is_not_waited_for(site: Site) -> None:
    copy(site)
    job = site.submit("restore", backup=1, new="other")
    for drive in site.tape.drives.values():
        drive.loaded = ""
    site.tapes[ONE].element = "io-1"
    site.connect("tape")
    site.run()
    check_end(site, job)


def test_copies_of_a_copy_whose_original_is_pruned_know_each_other(site: Site) -> None:
    copy(site)
    site.call("backup.prune", backups=["1"])
    site.tape.take_out(ONE)
    site.connect("tape")
    site.set_cartridge(ONE, status="retired")
    copy(site, backup=2)
    assert (tags(site, 2), tags(site, 3)) == ([TWO], [THREE])
    for asked, tag in ((2, TWO), (3, THREE)):
        taken = site.tape.take_out(tag)
        site.connect("tape")
        assert restore(site, backup=asked)[0] == DATA
        site.tape.put(taken)
        site.connect("tape")


# --- what it lacks, in words ----------------------------------------------------------------------

TWO_DRIVES = "a copy needs two drives, one to read and one to write; node tape has 1"


def reason(site: Site, **arguments: Any) -> str:
    job = site.submit("copy", backup=1, **arguments)
    site.run()
    row = site.machine.jobs[JobId(job)].row
    site.call("job.cancel", job=job)
    site.run()
    return row.reason


def test_one_drive_in_all_is_said_at_once_with_whatever_else_is_missing() -> None:
    assert reason(library(drives=1)) == f"waiting: {TWO_DRIVES}"
    site = library(drives=1, tags=1)
    words = "waiting: scratch cartridge for pool default; not on LTO001L8, where it is already"
    assert reason(site) == f"{words}; {TWO_DRIVES}"
    site.tape.take_out(ONE)
    site.connect("tape")
    assert reason(site) == f"waiting: cartridge LTO001L8 (offline); {TWO_DRIVES}"


def test_one_drive_is_an_operators_matter_and_the_job_goes_on_with_the_second() -> None:
    site = library(drives=1)
    job = site.submit("copy", backup=1)
    site.run()
    assert is_request(site.machine.jobs[JobId(job)].row.reason)
    second = TapeNode.with_drives(2, tags=()).drives
    name = next(name for name in second if name not in site.tape.drives)
    site.tape.drives[name] = second[name]
    site.connect("tape")
    site.run()
    check_end(site, job)


def test_whoever_does_not_wait_for_media_does_not_wait_for_a_drive_that_is_not_there() -> None:
    site = library(drives=1)
    job = site.submit("copy", backup=1, no_wait_media=True)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == ExitCode.MEDIA_NEEDED
    assert TWO_DRIVES in site.job(job).reason


def test_where_two_drives_are_one_of_them_is_waited_for(site: Site) -> None:
    site.call("drive.down", drive="drive-1", reason="noisy")
    assert reason(site) == "waiting: a free drive at tape (drive-1 is down: noisy)"
    site = library(tags=1)
    words = "waiting: scratch cartridge for pool default; not on LTO001L8, where it is already"
    assert reason(site) == words


def test_a_drive_at_another_node_counts_unless_both_cartridges_are_at_one() -> None:
    site = library(drives=1)
    registry = site.machine.registry
    node = registry.nodes[NodeName("tape")]
    row = replace(node.row, name=NodeName("far"))
    registry.nodes[row.name] = replace(node, row=row, cartridges={})
    assert reason(site) == f"waiting: {TWO_DRIVES}"
    for tag in (TWO, "LTO003L8", "LTO004L8"):
        site.set_cartridge(tag, status="full", pool="other")
    words = "waiting: scratch cartridge for pool default"
    assert reason(site) == f"{words}; not on LTO001L8, where it is already"
