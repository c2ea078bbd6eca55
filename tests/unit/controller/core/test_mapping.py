"""What is copied of a view: levels and their fallbacks, and samples that find out a tracker that lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backplane.wire.messages import ViewExtents
from controller.catalog.store import BackupRow
from controller.core import mapping
from controller.core.extent_runs import ExtentRuns
from controller.core.samples import unpack_samples
from tests.site.disk import Volume
from tests.site.site import DATA, ControllerDied, Site, check_end, connected, restored


def new(lba: int) -> bytes:
    """Return a block that is not the one that `content` makes."""
    return bytes([lba + 1]) * 512


@pytest.fixture
def volume(site: Site) -> Volume:
    made = site.make_volume("vol", data=DATA)
    made.track()
    return made


def backed_up(site: Site, level: str = "full") -> BackupRow:
    """Back the volume up at a level and return the row."""
    job = site.submit("backup", volume="vol", level=level)
    site.run()
    check_end(site, job)
    return site.machine.backups[site.job(job).backup]


def result(site: Site, row: BackupRow) -> Any:
    return json.loads(site.job(row.job).result)


def runs_of(site: Site, row: BackupRow) -> ExtentRuns:
    packed = site.catalog.extents(row.backup)
    assert packed is not None
    return ExtentRuns.unpack(packed)


def check_full(site: Site, row: BackupRow, words: str) -> None:
    """The backup is a full one instead, says why everywhere, and no less of a backup for it."""
    assert (row.level, row.parent) == ("full", 0)
    assert runs_of(site, row).zeros is None
    assert words in result(site, row)["fallback"]
    assert result(site, row)["level"] == "full"
    assert any(line.startswith("full instead of") and words in line for line in site.log(row.job))


# --- incremental and differential ----------------------------------------------------------------


def test_an_incremental_copies_what_is_changed_and_allocated_and_declares_the_rest_zero(
    site: Site, volume: Volume
) -> None:
    full = backed_up(site)
    assert (full.level, full.tracking, full.generation) == ("full", "h1", 0)
    volume.write({1: new(1), 40: new(40)})
    volume.trim(10, 11, 60)
    row = backed_up(site, "incremental")
    assert (row.level, row.parent, row.tracking, row.generation) == ("incremental", 1, "h1", 1)
    runs = runs_of(site, row)
    assert list(runs) == [(1, 1), (40, 1)]
    assert runs.zeros is not None
    assert list(runs.zeros) == [(10, 2), (60, 1)]
    assert row.stream_bytes == 2 * 512
    assert result(site, row)["parent"] == 1
    assert restored(site, row.backup) == volume.data
    assert restored(site, full.backup, name="old") == DATA


def test_a_chain_is_restored_at_each_of_its_points(site: Site, volume: Volume) -> None:
    states = []
    for step, level in enumerate(
        ["full", "incremental", "incremental", "differential", "incremental", "full", "incremental"]
    ):
        row = backed_up(site, level)
        assert row.level == level
        states.append((row.backup, row.parent, dict(volume.data)))
        volume.write({step: new(100 + step), 33: new(step), 50 + step: new(step)})
        volume.trim(30 + step, 2 * step)
    assert [parent for _, parent, _ in states] == [0, 1, 2, 1, 4, 0, 6]
    for backup, _, data in states:
        assert restored(site, backup, name=f"copy{backup}") == data


def test_nothing_changed_is_an_empty_backup_that_restores(site: Site, volume: Volume) -> None:
    backed_up(site)
    row = backed_up(site, "incremental")
    assert (row.level, row.stream_bytes) == ("incremental", 0)
    assert restored(site, row.backup) == DATA


def test_everything_given_back_restores_to_nothing(site: Site, volume: Volume) -> None:
    backed_up(site)
    volume.trim(*DATA)
    row = backed_up(site, "incremental")
    assert row.level == "incremental"
    assert restored(site, row.backup) == {}


def test_auto_is_full_at_first_and_incremental_from_then_on(site: Site, volume: Volume) -> None:
    assert backed_up(site, "auto").level == "full"
    assert backed_up(site, "auto").level == "incremental"
    assert backed_up(site, "auto").parent == 2


def test_changes_are_fetched_page_by_page(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "EXTENTS_PER_PAGE", 2)
    backed_up(site)
    volume.write({lba: new(lba) for lba in range(0, 64, 3)})
    row = backed_up(site, "incremental")
    assert len(runs_of(site, row)) == 22
    assert restored(site, row.backup) == volume.data


def test_what_was_written_after_the_view_is_in_the_next_backup(site: Site, volume: Volume) -> None:
    backed_up(site)
    volume.write({1: new(1)})
    job = site.submit("backup", volume="vol", level="incremental")
    while not site.disk.views:
        site.deliver(*site.wire.pop(0))
    volume.write({2: new(2)})
    site.run()
    check_end(site, job)
    row = backed_up(site, "incremental")
    assert list(runs_of(site, row)) == [(2, 1)]
    assert restored(site, row.backup) == volume.data


# --- falling back --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["incremental", "differential"])
def test_without_a_backup_before_it_is_a_full_one(site: Site, volume: Volume, level: str) -> None:
    check_full(site, backed_up(site, level), "there is no completed")


def test_an_untracked_volume_is_backed_up_in_full_and_no_sample_is_taken(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    assert backed_up(site).samples == b""
    check_full(site, backed_up(site, "incremental"), "not tracked")


def test_a_history_that_began_anew_is_a_full_backup(site: Site, volume: Volume) -> None:
    backed_up(site)
    volume.track("h2")
    check_full(site, backed_up(site, "incremental"), "began after the last backup")
    assert backed_up(site, "incremental").level == "incremental"


def test_a_node_that_has_lost_the_history_gets_a_full_backup(site: Site, volume: Volume) -> None:
    """The view still names its history, but when it is asked the node does not know any more."""
    backed_up(site)
    job = site.submit("backup", volume="vol", level="incremental")
    deliver_until(site, lambda: any(is_about_changes(message) for _, message in site.wire))
    for name, view in site.disk.views.items():
        site.disk.views[name] = replace(view, tracking="h9")
    site.run()
    check_end(site, job)
    check_full(site, site.machine.backups[site.job(job).backup], "cannot say what has changed")


def is_about_changes(message: Any) -> bool:
    return isinstance(message, ViewExtents) and bool(message.tracking)


def deliver_until(site: Site, is_there: Callable[[], bool]) -> None:
    while not is_there():
        site.deliver(*site.wire.pop(0))


def test_a_cartridge_in_error_under_the_chain_is_a_full_backup(site: Site, volume: Volume) -> None:
    backed_up(site)
    site.set_cartridge("LTO001L8", status="error")
    row = backed_up(site, "incremental")
    check_full(site, row, "cartridge LTO001L8 with part 1 of backup 1 is in error")
    assert restored(site, row.backup) == DATA


def test_too_many_changes_are_a_full_backup(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    backed_up(site)
    monkeypatch.setattr(mapping, "MAP_EXTENTS_MAX", 3)
    volume.write({0: new(0), 2: new(2)})
    volume.trim(5)
    assert backed_up(site, "incremental").level == "incremental"
    volume.write({0: new(1), 2: new(1)})
    volume.trim(5, 7)
    check_full(site, backed_up(site, "incremental"), "4 changed extents are more than 3")


def test_auto_does_not_warn_of_what_it_was_asked_to_decide(site: Site, volume: Volume) -> None:
    job = backed_up(site, "auto").job
    levels = {e.level for e in site.catalog.events(job, after=0, limit=100)}
    assert levels == {"info"}
    job = backed_up(site, "differential").job
    assert {e.level for e in site.catalog.events(job, after=0, limit=100)} == {"info"}
    volume.track("h2")
    job = backed_up(site, "differential").job
    assert "warning" in {e.level for e in site.catalog.events(job, after=0, limit=100)}


# --- doubt ---------------------------------------------------------------------------------------


def test_samples_are_kept_with_the_backup(site: Site, volume: Volume) -> None:
    samples = unpack_samples(backed_up(site).samples, block_bytes=512)
    assert samples
    sampled = {each.lba + n for each in samples for n in range(each.blocks)}
    assert sampled <= set(DATA)


def test_a_tracker_that_misses_a_change_is_found_out(site: Site, volume: Volume) -> None:
    full = backed_up(site)
    first = unpack_samples(full.samples, block_bytes=512)[0]
    volume.data[first.lba] = new(77)
    row = backed_up(site, "incremental")
    check_full(site, row, f"the first at LBA {first.lba}: the map of changes is wrong")
    assert any("map of changes is wrong" in alarm for alarm in site.alarms)
    assert "error" in {e.level for e in site.catalog.events(row.job, after=0, limit=100)}
    assert restored(site, row.backup) == volume.data


def test_a_tracker_that_misses_a_trim_is_found_out(site: Site, volume: Volume) -> None:
    full = backed_up(site)
    first = unpack_samples(full.samples, block_bytes=512)[0]
    del volume.data[first.lba]
    check_full(site, backed_up(site, "incremental"), "the map of changes is wrong")


def test_what_is_said_to_have_changed_is_not_asked_again(site: Site, volume: Volume) -> None:
    backed_up(site)
    volume.write({lba: new(lba) for lba in DATA})
    assert backed_up(site, "incremental").level == "incremental"
    assert site.alarms == []


def test_samples_of_an_incremental_are_of_the_whole_volume(site: Site, volume: Volume) -> None:
    """Otherwise what was sampled once and never again could change unseen."""
    backed_up(site)
    volume.write({1: new(1)})
    samples = unpack_samples(backed_up(site, "incremental").samples, block_bytes=512)
    assert {each.lba for each in samples} - {1}


def test_blocks_that_cannot_be_sampled_do_not_fail_a_backup(site: Site, volume: Volume) -> None:
    """A full one that has to copy them fails, and names the block."""
    backed_up(site)
    site.disk.bad_lbas = set(DATA)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    assert any("no samples are taken" in line for line in site.log(job))
    assert "cannot be read at LBA 0" in site.job(job).reason


def test_a_node_that_answers_for_fewer_samples_fails_the_job(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.disk, "_digests", lambda message: b"\0\0\0\1")
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    assert "a checksum per sample" in site.job(job).reason


# --- restarts ------------------------------------------------------------------------------------


def test_a_controller_that_dies_anywhere_makes_an_incremental_that_restores() -> None:
    """Once at each effect; the level, its parent and its zeros come through."""
    done = False
    for crash_at in range(0, 200, 3):
        site = connected()
        volume = site.make_volume("vol", data=DATA)
        volume.track()
        backed_up(site)
        volume.write({1: new(1)})
        volume.trim(2)
        job = site.submit("backup", volume="vol", level="incremental")
        site.crash_at = site.effects_seen + crash_at
        try:
            site.run()
            done = True
        except ControllerDied:
            site.restart()
            site.run()
        site.crash_at = None
        check_end(site, job)
        row = site.machine.backups[site.job(job).backup]
        assert row.level == "incremental"
        assert restored(site, row.backup) == volume.data
        if done:
            break
    assert done, "the job never came to its end: let it die later still"


def test_a_restore_of_a_chain_goes_on_after_a_restart_of_the_controller(
    site: Site, volume: Volume
) -> None:
    backed_up(site)
    volume.write({1: new(1), 33: new(33)})
    row = backed_up(site, "incremental")
    job = site.submit("restore", backup=row.backup, new="copy")
    while len(site.items(job, "restore")) < 2:
        site.deliver(*site.wire.pop(0))
    site.restart()
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == volume.data
