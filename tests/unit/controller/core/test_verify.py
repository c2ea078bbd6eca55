"""Verifies: everything that is damaged is on the list, and only that."""

from __future__ import annotations

import json

import pytest

from backplane.errors import NotFoundError
from backplane.ids import BackupId
from backplane.wire.messages import TapeDigest
from controller.core import chain, planner
from controller.core import effects as core
from controller.core.verify import damage_words
from tests.site.mover import STALE, copy_aborted
from tests.site.site import DATA, Site, backed_up, check_end, connected, content, ledger

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
    assert "the digests of part 1 are not those that were committed" in row.reason


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
    assert f"{first.records * 4} blocks of part 1 cannot be read" in row.reason
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
    entry = {"tag": TAG, "object": 6, "first_lba": 0, "last_lba": 3}
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
    assert chain.damage_of(site.machine.backups[BackupId(1)]) == ""
