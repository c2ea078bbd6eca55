"""Restores that meet what cannot be read: they end there, or go on behind it and say what is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.ids import BackupId
from controller.core import gap_list, planner, restoring
from controller.core.damage import bad_of, changed_of
from tests.site.disk import Volume
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    backed_up,
    check_end,
    connected,
    content,
    first_record,
)

TAG, SECOND = "LTO001L8", "LTO002L8"
FILES = {"home/a": (10, 11), "home/b": (32, 33, 34, 35, 36), "z": (50,)}
"""The records have 0 to 3, then 10 11 30 31, then 32 to 35, then 36 50 51."""


def backed_up_with_files(site: Site) -> Volume:
    volume = site.make_volume("vol", data=DATA)
    volume.files.table = dict(FILES)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    return volume


def restore(site: Site, state: str, *, backup: int = 1, **options: Any) -> Any:
    """Restore to a new volume; returns the job's result."""
    job = site.submit("restore", backup=backup, new="copy", **options)
    site.run()
    check_end(site, job, state)
    return json.loads(site.job(job).result)


def without(*lbas: int) -> dict[int, bytes]:
    return {lba: data for lba, data in DATA.items() if lba not in lbas}


def test_behind_damage_everything_else_comes_back_and_the_holes_are_named(site: Site) -> None:
    backed_up_with_files(site)
    site.tapes[TAG].bad = {first_record(site, 1) + 1, first_record(site, 1) + 3}
    result = restore(site, "partial", keep_going=True)
    target = site.disk.by_name("copy")
    assert target.data == without(10, 11, 30, 31, 36, 50, 51)
    assert target.row.state == "online"
    assert result["holes"] == {
        "count": 4,
        "blocks": 7,
        "block_bytes": 512,
        "extents": [[10, 2], [30, 2], [36, 1], [50, 2]],
    }
    [hit] = result["hit"]
    assert (hit["count"], hit["listed"]) == (3, ["home/a", "home/b", "z"])
    assert hit["has_more"], "nobody has 30, 31 and 51"
    row = site.job(2)
    assert (row.exit_code, row.error_count) == (3, 2)
    assert row.reason == (
        "7 blocks could not be read and are zeros: LBA 10 to 11, 30 to 31, 36 to 36, 50 to 51; "
        "in files home/a, home/b, z"
    )


def test_without_damage_keeping_going_is_an_ordinary_restore(site: Site) -> None:
    backed_up_with_files(site)
    result = restore(site, "completed", keep_going=True)
    assert site.disk.by_name("copy").data == DATA
    assert "holes" not in result
    assert site.job(2).exit_code == 0


def test_a_restore_that_stops_says_how_it_would_not_have(site: Site) -> None:
    backed_up_with_files(site)
    site.tapes[TAG].bad = {first_record(site, 1) + 1}
    restore(site, "failed")
    assert "--keep-going" in site.job(2).reason
    assert site.job(2).exit_code == 8


@pytest.fixture
def two() -> Site:
    site = connected()
    volume = site.make_volume("vol", data=DATA)
    volume.files.table = dict(FILES)
    # Label and header take 8 objects or so: two records fit before the warning.
    site.tapes[TAG].capacity = 9
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    assert [part.tag for part in site.machine.registry.parts_of(1)] == [TAG, SECOND]
    return site


def missing(site: Site) -> None:
    del site.tapes[SECOND]
    site.connect("tape")


def unreadable(site: Site) -> None:
    site.tapes[SECOND].unreadable = "index damaged"


def relabelled(site: Site) -> None:
    site.set_cartridge(SECOND, cartridge="e" * 32)


def quarantined(site: Site) -> None:
    site.set_cartridge(SECOND, status="quarantined", detail="two have this barcode")


@pytest.mark.parametrize("harm", [missing, unreadable, relabelled, quarantined])
def test_a_cartridge_that_cannot_be_used_costs_what_is_on_it_and_nothing_else(
    two: Site, harm: Any
) -> None:
    harm(two)
    result = restore(two, "partial", keep_going=True)
    part = two.machine.registry.parts_of(1)[0]
    there = sorted(DATA)[: part.records * 4]
    assert two.disk.by_name("copy").data == content(*there)
    assert result["holes"]["blocks"] == len(DATA) - len(there)
    assert two.job(2).exit_code == 3
    assert f"cartridge {SECOND}" in result["unreadable"][0]


@pytest.mark.parametrize("harm", [unreadable, relabelled])
def test_a_cartridge_that_cannot_be_used_ends_a_restore_that_was_not_to_go_on(
    two: Site, harm: Any
) -> None:
    harm(two)
    restore(two, "failed")
    assert f"cartridge {SECOND}" in two.job(2).reason
    assert "--keep-going" in two.job(2).reason


def test_a_cartridge_that_is_missing_is_waited_for_by_a_restore_that_was_not_to_go_on(
    two: Site,
) -> None:
    tape = two.tapes[SECOND]
    missing(two)
    job = two.submit("restore", backup=1, new="copy")
    two.run(60)
    assert SECOND in two.job(job).reason
    two.tapes[SECOND] = tape
    two.connect("tape")
    two.run()
    check_end(two, job)


def test_a_backup_without_a_map_says_that_files_are_not_known(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol", raw=True)
    site.run()
    site.tapes[TAG].bad = {first_record(site, 1)}
    result = restore(site, "partial", keep_going=True)
    assert result["hit"][0]["count"] == 0
    assert site.job(2).reason.endswith("the backup has no map of files")


def test_in_a_chain_a_hole_is_never_filled_with_what_is_older(site: Site) -> None:
    volume = backed_up_with_files(site)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    volume.write({10: b"n" * 512, 11: b"n" * 512})
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    site.tapes[TAG].bad = {first_record(site, 3)}
    result = restore(site, "partial", backup=3, keep_going=True)
    assert result["holes"]["extents"] == [[10, 2]]
    assert result["hit"][0]["listed"] == ["home/a"]
    assert site.disk.by_name("copy").data == without(10, 11)


def test_what_cannot_be_read_stays_with_the_backup_and_warns_the_next_restore(site: Site) -> None:
    backed_up_with_files(site)
    bad = first_record(site, 1) + 1
    site.tapes[TAG].bad = {bad}
    restore(site, "partial", keep_going=True)
    assert bad_of(site.machine.backups[BackupId(1)]) == [(1, 2)]
    assert (
        f"object {bad} of {TAG}" in json.loads(site.machine.backups[BackupId(1)].detail)["damage"]
    )
    site.tapes[TAG].bad = set()
    site.call("volume.delete", name="copy", force=True)
    result = restore(site, "completed")
    assert site.job(3).exit_code == 0, "what was damaged could be read after all"
    assert "backup 1 is known to be damaged" in result["warnings"][0]


def test_records_that_were_changed_on_tape_are_restored_and_nobody_vouches_for_them(
    site: Site,
) -> None:
    backed_up_with_files(site)
    right = site.tapes[TAG].objects[first_record(site, 1)]
    assert right is not None
    site.tapes[TAG].objects[first_record(site, 1)] = b"\0" * len(right)
    site.submit("verify", backup=1)
    site.run()
    assert changed_of(site.machine.backups[BackupId(1)]) == [1]
    result = restore(site, "partial")
    job = site.job(3)
    assert (job.exit_code, "holes" in result) == (3, False)
    assert "not all that backup 1 has on tape is what was written there" in job.reason

    site.tapes[TAG].objects[first_record(site, 1)] = right
    site.submit("verify", backup=1)
    site.run()
    assert changed_of(site.machine.backups[BackupId(1)]) == []
    site.call("volume.delete", name="copy", force=True)
    restore(site, "completed")


def test_chosen_files_go_on_behind_a_cartridge_only_if_they_are_told_to(two: Site) -> None:
    unreadable(two)
    restore(two, "failed", paths=["home"])
    two.connect("disk")
    two.call("volume.delete", name="copy", force=True)
    result = restore(two, "partial", paths=["home"], keep_going=True)
    assert [each["path"] for each in result["files"]["listed"]] == ["home/b", "(metadata)"]
    assert result["files"]["restored"] == 1


def test_a_controller_that_dies_anywhere_goes_on_and_lists_the_same_holes() -> None:
    for crash_at in range(200):
        site = connected()
        backed_up_with_files(site)
        first = first_record(site, 1)
        site.tapes[TAG].bad = {first + 1, first + 3}
        job = site.submit("restore", backup=1, new="copy", keep_going=True)
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job, "partial")
        result = json.loads(site.job(job).result)
        assert result["holes"]["extents"] == [[10, 2], [30, 2], [36, 1], [50, 2]]
        assert result["hit"][0]["count"] == 3
        if is_through:
            return
    raise AssertionError("it never gets through")


def test_the_first_files_and_holes_are_named_and_the_others_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.restore.HOLES_LISTED_MAX", 2)
    lbas = range(0, 64, 2)
    volume = site.make_volume("vol", data=content(*lbas))
    volume.files.table = {f"{n:02}": (n,) for n in lbas}
    site.submit("backup", volume="vol")
    site.run()
    first = first_record(site, 1)
    site.tapes[TAG].bad = {first, first + 1}
    result = restore(site, "partial", keep_going=True)
    assert (result["holes"]["count"], len(result["holes"]["extents"])) == (8, 2)
    assert site.job(2).reason.endswith(
        "LBA 0 to 0, 2 to 2 and 6 more; in files 00, 02, 04, 06 and 4 more"
    )


def test_of_mass_damage_the_plan_stays_small_and_all_that_can_be_read_comes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gap_list, "GAPS_MAX", 1)
    monkeypatch.setattr("controller.core.damage.BAD_RANGES_MAX", 1)
    lbas = range(0, 64, 2)
    volume = site.make_volume("vol", data=content(*lbas))
    volume.files.table = {f"{n:02}": (n,) for n in lbas}
    site.submit("backup", volume="vol")
    site.run()
    first = first_record(site, 1)
    site.tapes[TAG].bad = {first, first + 2, first + 4, first + 6}
    job = site.submit("restore", backup=1, new="copy", keep_going=True)
    gaps, spoiled = [], []
    while job in site.machine.jobs:
        plan = site.machine.jobs[job].plan  # type: ignore[index]
        gaps.append(len(plan.get("gaps", ())))
        spoiled.append(len(plan.get("spoiled", {}).get("1", ())))
        if site.wire:
            site.deliver(*site.wire.pop(0))
        else:
            site.run(1)
    check_end(site, job, "partial")
    assert (max(gaps), max(spoiled)) == (2, 1)
    lost = {lba for at in (0, 2, 4, 6) for lba in range(8 * at, 8 * at + 8, 2)}
    assert site.disk.by_name("copy").data == content(*(set(lbas) - lost))
    holes = json.loads(site.job(job).result)["holes"]
    assert (holes["blocks"], holes["is_coarse"]) == (len(lost), True)
    told = {lba for start, count in holes["extents"] for lba in range(start, start + count)}
    assert lost < told, "more is named than is lost, never less"
    assert "some of it in files 00" in site.job(job).reason
    damaged = [line for line in site.log(job) if "is damaged: LBA" in line]
    assert len(damaged) == 4, "each is in the log"


def test_bad_records_behind_the_list_that_is_next_are_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lbas = range(0, 64, 2)
    site.make_volume("vol", data=content(*lbas))
    site.submit("backup", volume="vol")
    site.run()
    first = first_record(site, 1)
    site.tapes[TAG].bad = {first + at for at in (0, 2, 4, 6)}
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 4096)
    seen = []
    note = restoring._Course._note_bad

    def watch(course: Any, record: int) -> None:
        note(course, record)
        seen.append((course.plan["bad"], course.plan["bad_seen"]))

    monkeypatch.setattr(restoring._Course, "_note_bad", watch)
    restore(site, "partial", keep_going=True)
    assert [count for _, count in seen] == [1, 2, 3, 4]
    assert seen[-1][0][-1] == 6
    assert len(seen[-1][0]) < 4, seen


def test_more_than_a_restore_may_lose_ends_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "LOST_EXTENTS_MAX", 1)
    backed_up_with_files(site)
    site.tapes[TAG].bad = {first_record(site, 1) + 2, first_record(site, 1) + 3}
    restore(site, "failed", paths=["home", "z"])
    assert "more than 1 pieces cannot be restored" in site.job(2).reason


def test_a_backup_of_nothing_restores_to_nothing(site: Site) -> None:
    assert backed_up(site, {}) == 1
    restore(site, "completed", keep_going=True)
    assert site.disk.by_name("copy").data == {}


def test_with_keep_going_a_cartridge_at_the_door_is_not_waited_for(site: Site) -> None:
    backed_up_with_files(site)
    site.call("tape.export", tag=TAG)
    result = restore(site, "partial", keep_going=True)
    assert "is at io-" in result["unreadable"][0]
