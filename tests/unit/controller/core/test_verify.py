"""Verifies: everything that is damaged is on the list, and only that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import MediumError, NotFoundError
from backplane.ids import BackupId
from backplane.wire.messages import NodeReply, TapeDigest, TapeLoad
from controller.core import effects as core
from controller.core import planner
from controller.core.damage import bad_of, changed_of, damage_of
from controller.core.verify import damage_words
from tests.site.mover import STALE, copy_aborted
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    backed_up,
    check_end,
    connected,
    content,
    first_record,
    ledger,
)

TAG = "LTO001L8"


def verify(site: Site, backup: int) -> int:
    job = site.submit("verify", backup=backup)
    site.run()
    return job


def damage(site: Site, job: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(site.job(job).result)["damage"]
    return found


def test_verify_of_a_good_backup_reads_every_record(site: Site) -> None:
    job = verify(site, backed_up(site))
    check_end(site, job)
    row = site.job(job)
    assert (row.exit_code, row.done_bytes, row.planned_bytes) == (0, 8192, 8192)
    assert damage(site, job) == []


@pytest.mark.parametrize("bad", [{0}, {3}, {1, 2}, {0, 2, 3}, {0, 1, 2, 3}])
def test_every_damaged_record_is_listed_with_its_blocks(bad: set[int]) -> None:
    site = connected()
    backup = backed_up(site)
    part = site.machine.registry.parts_of(backup)[0]
    site.tapes[TAG].bad = {part.data_object + record for record in bad}
    job = verify(site, backup)
    check_end(site, job, "failed")
    row = site.job(job)
    assert (row.exit_code, row.error_count) == (8, len(bad))
    found = damage(site, job)
    assert [entry["record"] for entry in found] == sorted(bad)
    lbas = sorted(DATA)
    for entry in found:
        record = int(str(entry["record"]))
        held = lbas[record * 4 : record * 4 + 4]
        assert (entry["first_lba"], entry["last_lba"]) == (held[0], held[-1])
        assert entry["blocks"] == len(held)
    assert ledger(site, job)["residual_bytes"] == len(bad) * 2048


def test_damage_in_the_second_part_is_found_on_its_cartridge(site: Site) -> None:
    site.tapes[TAG].capacity = 8
    backup = backed_up(site)
    first, second = site.machine.registry.parts_of(backup)
    site.tapes[second.tag].bad = {second.data_object}
    job = verify(site, backup)
    (entry,) = damage(site, job)
    assert (entry["tag"], entry["object"]) == (second.tag, second.data_object)
    lbas = sorted(DATA)[first.records * 4 :]
    assert entry["first_lba"] == lbas[0]


def test_digests_that_are_not_those_that_were_committed_are_a_mismatch(site: Site) -> None:
    backup = backed_up(site)
    part = site.machine.registry.parts_of(backup)[0]
    site.tapes[TAG].objects[part.data_object] = b"\0" * 2048
    job = verify(site, backup)
    check_end(site, job, "failed")
    row = site.job(job)
    assert row.exit_code == 8
    assert "the digests of part 1 of backup 1 are not those that were committed" in row.reason


def test_a_cartridge_that_is_shorter_than_the_catalog_is_damage_and_the_other_is_still_read(
    site: Site,
) -> None:
    site.tapes[TAG].capacity = 8
    backup = backed_up(site)
    first, second = site.machine.registry.parts_of(backup)
    del site.tapes[first.tag].objects[-1:]
    site.tapes[second.tag].bad = {second.data_object}
    job = verify(site, backup)
    row = site.job(job)
    assert (row.state, row.exit_code, row.error_count) == ("failed", 8, 2)
    assert "shorter than the catalog" in row.reason
    assert f"{first.records * 4} blocks of part 1 of backup 1 cannot be read" in row.reason
    assert f"{second.tag} object {second.data_object}" in row.reason


def test_what_was_read_before_a_mover_lost_its_way_is_not_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = backed_up(site)
    job = site.submit("verify", backup=backup)
    while not any(isinstance(message, core.SendWork) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    monkeypatch.setattr("tests.site.mover.Execution.run", fail_after_two)
    site.deliver(*site.wire.pop(0))
    monkeypatch.undo()
    site.run()
    check_end(site, job)
    assert [item.planned_bytes for item in site.items(job)] == [8192, 4096]


def fail_after_two(execution: object) -> object:
    """Read two records, then be refused."""
    locate = execution.list.segments[0]  # type: ignore[attr-defined]
    execution.drive.position = locate.logical_object_identifier  # type: ignore[attr-defined]
    for _ in range(2):
        count = len(execution._read())  # type: ignore[attr-defined]
        execution._count("drop", count)  # type: ignore[attr-defined]
    return copy_aborted(segment=1, source=STALE)


@pytest.mark.parametrize("steps", range(12))
def test_a_tape_node_that_restarts_at_any_step_is_no_damage(steps: int) -> None:
    site = connected()
    backup = backed_up(site)
    job = site.submit("verify", backup=backup)
    site.settle(steps=steps)
    site.restart_node("tape")
    site.run()
    check_end(site, job)


def test_a_drive_that_never_gives_digests_is_a_mismatch_in_the_end(site: Site) -> None:
    backup = backed_up(site)
    answer = site.tape.answer

    def empty_drive(message: object) -> object:
        if isinstance(message, TapeDigest):
            raise NotFoundError("no cartridge is loaded")
        return answer(message)

    site.tape.answer = empty_drive  # type: ignore[method-assign]
    job = verify(site, backup)
    assert "digests of part 1" in site.job(job).reason


def test_a_long_backup_is_verified_by_many_lists(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 3 * 2048)
    job = verify(site, backed_up(site, content(*range(60))))
    check_end(site, job)
    assert len(site.items(job)) == 5


def test_much_damage_is_told_in_a_line() -> None:
    entry = {"backup": 1, "tag": TAG, "object": 6, "first_lba": 0, "last_lba": 3}
    told = damage_words({"damage": [entry] * 9, "damaged_records": 9})
    assert told.count("object 6") == 4
    assert told.endswith("and 5 records more")


def test_a_backup_that_stands_on_others_is_verified_by_itself_and_says_what_it_needs(
    site: Site,
) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    for step in range(2):
        site.submit("backup", volume="vol", level="auto")
        site.run()
        volume.write({step: bytes([step + 1]) * 512})
    full = site.machine.registry.parts[1, 1]
    site.tapes["LTO001L8"].bad.add(full.data_object)
    job = site.submit("verify", backup=2)
    site.run()
    check_end(site, job)
    result = json.loads(site.job(job).result)
    assert (result["level"], result["parents"], result["needs"]) == (
        "incremental",
        [1],
        ["LTO001L8"],
    )
    assert any("it stands on 1, a restore needs LTO001L8" in line for line in site.log(job))
    job = site.submit("verify", backup=1)
    site.run()
    check_end(site, job, "failed")
    assert "parents" not in json.loads(site.job(job).result)


def test_nothing_new_stands_on_a_backup_that_was_found_damaged(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    levels = []
    bad = site.tapes["LTO001L8"].bad
    for is_damaged in (False, True, False):
        site.submit("backup", volume="vol", level="auto")
        site.run()
        newest = max(site.machine.backups)
        levels.append(site.machine.backups[newest].level)
        bad.clear()
        if is_damaged:
            bad.add(site.machine.registry.parts[1, 1].data_object)
        site.submit("verify", backup=1)
        site.run()
        site.restart()
    assert levels == ["full", "incremental", "full"]
    assert damage_of(site.machine.backups[BackupId(1)]) == ""


# --- which files, and what stays known ------------------------------------------------------------

FILES = {"home/a": (10, 11), "home/b": (32, 33, 34, 35, 36), "z": (50,)}
"""The records have 0 to 3, then 10 11 30 31, then 32 to 35, then 36 50 51."""


def with_files(site: Site, *, name: str = "vol") -> int:
    volume = site.make_volume(name, data=DATA)
    volume.files.table = dict(FILES)
    job = site.submit("backup", volume=name)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


def result_of(site: Site, job: int) -> Any:
    return json.loads(site.job(job).result)


def known_bad(site: Site, backup: int) -> list[tuple[int, int]]:
    return list(bad_of(site.machine.backups[BackupId(backup)]))


def test_each_damaged_record_names_its_files_and_all_are_counted_once(site: Site) -> None:
    first = first_record(site, with_files(site))
    site.tapes[TAG].bad = {first, first + 2, first + 3}
    job = verify(site, 1)
    check_end(site, job, "failed")
    files = [entry["files"] for entry in result_of(site, job)["damage"]]
    assert files == [
        {"count": 0, "listed": []},
        {"count": 1, "listed": ["home/b"]},
        {"count": 2, "listed": ["home/b", "z"]},
    ]
    [hit] = result_of(site, job)["hit"]
    assert (hit["backup"], hit["count"], hit["listed"]) == (1, 2, ["home/b", "z"])
    assert hit["has_more"]
    assert site.job(job).reason.endswith("; 2 files are hit")


def test_a_part_that_cannot_be_read_at_all_hits_its_files(site: Site) -> None:
    with_files(site)
    site.tapes[TAG].unreadable = "index damaged"
    job = verify(site, 1)
    check_end(site, job, "failed")
    assert result_of(site, job)["hit"][0]["listed"] == ["home/a", "home/b", "z"]
    assert known_bad(site, 1) == [(0, 4)]


def test_what_is_known_to_be_bad_is_taken_back_by_who_reads_all_of_it(site: Site) -> None:
    first = first_record(site, with_files(site))
    site.tapes[TAG].bad = {first + 1, first + 2}
    verify(site, 1)
    assert known_bad(site, 1) == [(1, 3)]
    site.tapes[TAG].bad = {first + 2}
    verify(site, 1)
    assert known_bad(site, 1) == [(2, 3)]
    site.tapes[TAG].bad = set()
    site.submit("verify", backup=1, sample="2")
    site.run()
    assert known_bad(site, 1) == [(2, 3)], "a sample has not read it"
    assert f"object {first + 2}" in damage_of(site.machine.backups[BackupId(1)])
    verify(site, 1)
    assert known_bad(site, 1) == []
    assert damage_of(site.machine.backups[BackupId(1)]) == ""


def test_who_could_not_compare_the_digests_does_not_take_back_that_records_were_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them reads without an error, so reading proves nothing."""
    first, objects = first_record(site, backed_up(site)), site.tapes[TAG].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    verify(site, 1)
    assert changed_of(site.machine.backups[BackupId(1)]) == [1]

    def lost(*_: Any) -> NodeReply:
        raise MediumError(f"object {first + 3} of {TAG} is lost")

    monkeypatch.setattr(site.tape, "_digest", lost)
    check_end(site, verify(site, 1), "failed")
    assert changed_of(site.machine.backups[BackupId(1)]) == [1]
    assert known_bad(site, 1) == [(0, 4)]


# --- samples, cartridges, pools -------------------------------------------------------------------


def test_a_sample_reads_the_ends_and_as_many_as_were_asked_for(site: Site) -> None:
    backup = backed_up(site, content(*range(64)))
    first = first_record(site, backup)
    job = site.submit("verify", backup=backup, sample="4")
    site.run()
    check_end(site, job)
    row, sample = site.job(job), result_of(site, job)["sample"]
    assert (row.planned_bytes, row.done_bytes) == (4 * 2048, 4 * 2048)
    assert (sample["asked"], sample["records"], sample["of"]) == ("4", 4, 16)
    assert any(f"seed {sample['seed']}" in line for line in site.log(job))
    site.tapes[TAG].bad = {first, first + 15}
    job = site.submit("verify", backup=backup, sample="10%")
    site.run()
    check_end(site, job, "failed")
    assert [entry["record"] for entry in result_of(site, job)["damage"]] == [0, 15]
    assert known_bad(site, backup) == [(0, 1), (15, 16)]


def two_volumes(site: Site) -> None:
    """The first volume ends on a second cartridge, the other follows it there."""
    site.tapes[TAG].capacity = 9
    with_files(site, name="one")
    with_files(site, name="two")
    parts = [(p.backup, p.part, p.tag) for p in site.machine.registry.parts.values()]
    assert parts == [(1, 1, TAG), (1, 2, "LTO002L8"), (2, 1, "LTO002L8")]


def loads(site: Site) -> list[str]:
    """Watch which cartridges are loaded."""
    seen: list[str] = []
    answer = site.tape.answer

    def watched(message: object) -> object:
        if isinstance(message, TapeLoad):
            seen.append(message.tag)
        return answer(message)

    site.tape.answer = watched  # type: ignore[method-assign]
    return seen


def test_all_that_is_on_a_cartridge_is_verified_with_one_load(site: Site) -> None:
    two_volumes(site)
    seen = loads(site)
    job = site.submit("verify", tag="LTO002L8")
    site.run()
    check_end(site, job)
    assert seen == ["LTO002L8"]
    first, second = site.machine.registry.parts[1, 2], site.machine.registry.parts[2, 1]
    assert site.job(job).done_bytes == (first.records + second.records) * 2048
    assert (site.job(job).subject, site.job(job).volume_name) == ("cartridge LTO002L8", "")


def test_damage_on_a_cartridge_is_told_and_kept_by_backup(site: Site) -> None:
    two_volumes(site)
    first, second = site.machine.registry.parts[1, 2], site.machine.registry.parts[2, 1]
    site.tapes["LTO002L8"].bad = {first.data_object, second.data_object + 2}
    job = site.submit("verify", tag="LTO002L8")
    site.run()
    check_end(site, job, "failed")
    assert [(e["backup"], e["part"]) for e in result_of(site, job)["damage"]] == [(1, 2), (2, 1)]
    assert [hit["backup"] for hit in result_of(site, job)["hit"]] == [1, 2]
    start = first.stream_start // 2048
    assert known_bad(site, 1) == [(start, start + 1)]
    assert known_bad(site, 2) == [(2, 3)]
    words = damage_of(site.machine.backups[BackupId(2)])
    assert words == f"LTO002L8 object {second.data_object + 2}: LBA 32 to 35"
    site.tapes["LTO002L8"].bad = set()
    site.submit("verify", tag="LTO002L8")
    site.run()
    assert damage_of(site.machine.backups[BackupId(2)]) == ""
    assert known_bad(site, 1) == []


def test_a_pool_is_verified_cartridge_by_cartridge_and_what_is_away_is_named(site: Site) -> None:
    two_volumes(site)
    for tag in (TAG, "LTO002L8"):
        site.set_cartridge(tag, pool="default")
    seen = loads(site)
    job = site.submit("verify", pool="default")
    site.run()
    check_end(site, job)
    assert seen == [TAG, "LTO002L8"]
    del site.tapes["LTO002L8"]
    site.connect("tape")
    job = site.submit("verify", pool="default", sample="50%")
    site.run()
    check_end(site, job, "partial")
    row = site.job(job)
    assert (row.exit_code, row.reason) == (3, "not verified: LTO002L8")
    [skipped] = result_of(site, job)["skipped"]
    assert skipped["tag"] == "LTO002L8"
    assert result_of(site, job)["tags"] == ["LTO001L8"]
    assert known_bad(site, 1) == known_bad(site, 2) == []


def test_a_cartridge_that_is_missing_is_waited_for_if_it_was_named(site: Site) -> None:
    two_volumes(site)
    tape = site.tapes.pop("LTO002L8")
    site.connect("tape")
    job = site.submit("verify", tag="LTO002L8")
    site.run(60)
    assert "LTO002L8" in site.job(job).reason
    site.tapes["LTO002L8"] = tape
    site.connect("tape")
    site.run()
    check_end(site, job)


def test_a_controller_that_dies_anywhere_in_a_verification_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * 2048)
    for crash_at in range(200):
        site = connected()
        two_volumes(site)
        second = site.machine.registry.parts[2, 1]
        site.tapes["LTO002L8"].bad = {second.data_object + 2}
        for tag in (TAG, "LTO002L8"):
            site.set_cartridge(tag, pool="default")
        job = site.submit("verify", pool="default")
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job, "failed")
        result = result_of(site, job)
        assert [(e["backup"], e["record"]) for e in result["damage"]] == [(2, 2)]
        assert result["hit"][0]["listed"] == ["home/b"]
        assert known_bad(site, 2) == [(2, 3)]
        assert site.job(job).done_bytes == site.job(job).planned_bytes
        if is_through:
            return
    raise AssertionError("it never gets through")
