"""Restores: the target is offline until it is whole, and a failed one says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from backplane.ids import BackupId, JobId, VolumeTag
from backplane.wire.messages import TapeLoad, VolumeCreate, VolumeOffline, VolumePublish
from controller.core import effects as core
from controller.core import planner
from tests.site.disk import Volume
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    backed_up,
    check_end,
    connected,
    content,
    ledger,
    restored,
)


def until(site: Site, kind: type) -> None:
    """Let things happen until a message of a kind is next on the wire."""
    while not isinstance(site.wire[0][1], kind):
        site.deliver(*site.wire.pop(0))


# --- refused before anything happens --------------------------------------------------------------


def test_a_restore_onto_what_cannot_take_it_is_refused_before_anything_happens(site: Site) -> None:
    backup = backed_up(site)
    site.make_volume("small", blocks=8)
    with pytest.raises(RefusedError, match="has 4096 bytes"):
        site.submit("restore", backup=backup, to="small")
    full = site.make_volume("full", data=content(1))
    site.connect("disk")
    with pytest.raises(RefusedError, match="not empty"):
        site.submit("restore", backup=backup, to="full")
    with pytest.raises(NotFoundError, match="no completed backup has number 99"):
        site.submit("restore", backup=99, new="x")
    with pytest.raises(NotFoundError, match="no volume is named 'nix'"):
        site.submit("restore", backup=backup, to="nix")
    with pytest.raises(UsageError, match="either to an existing volume or to a new one"):
        site.submit("restore", backup=backup, to="full", new="x")
    with pytest.raises(UsageError, match="either to an existing volume or to a new one"):
        site.submit("restore", backup=backup)
    with pytest.raises(RefusedError, match="a volume named full exists"):
        site.submit("restore", backup=backup, new="full")
    full.row = replace(full.row, held_by=JobId(7))
    site.connect("disk")
    with pytest.raises(BusyError, match="held by job 7"):
        site.submit("restore", backup=backup, to="full", force=True)
    assert not site.machine.jobs


def test_a_volume_with_other_blocks_cannot_take_a_backup(site: Site) -> None:
    backup = backed_up(site)
    site.call("volume.create", token="4k", name="big", size_bytes=2**20, block_bytes=4096, node="")
    with pytest.raises(RefusedError, match="blocks of 4096 bytes, the backup blocks of 512"):
        site.submit("restore", backup=backup, to="big")


def test_a_backup_that_failed_cannot_be_restored(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=12)
    site.begin_call("job.cancel", job=job)
    site.run()
    with pytest.raises(NotFoundError, match="no completed backup has number 1"):
        site.submit("restore", backup=1, new="copy")


# --- the good way ---------------------------------------------------------------------------------


def test_a_restore_with_force_replaces_what_was_there(site: Site) -> None:
    backup = backed_up(site)
    full = site.make_volume("full", data=content(5, 6))
    site.connect("disk")
    job = site.submit("restore", backup=backup, to="full", force=True)
    site.run()
    check_end(site, job)
    assert full.data == DATA
    assert full.row.state == "online"


def test_nothing_is_written_before_the_target_is_offline_and_it_is_online_only_at_the_end(
    site: Site,
) -> None:
    """The fakes refuse writes to a volume that is not restoring; here is what is asked, in order."""
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    asked: list[str] = []
    while site.wire:
        target, message = site.wire.pop(0)
        if isinstance(message, VolumeCreate | VolumeOffline | VolumePublish | core.SendWork):
            asked.append(type(message).__name__)
        site.deliver(target, message)
    assert asked == ["VolumeCreate", "VolumeOffline", "SendWork", "VolumePublish"]
    check_end(site, job)


def test_the_ledger_of_a_restore_adds_up_also_if_a_mover_died(site: Site) -> None:
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    site.lose_after = [2]
    site.run(30)
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    book = ledger(site, job)
    assert (book["written_bytes"], book["read_bytes"], book["discarded_bytes"]) == (
        7680,
        8192,
        512,
    )


def test_a_list_that_ended_just_before_we_died_is_not_counted_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result came while the job was on its way to wait for it; then we died again."""
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * 2048)
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    until(site, core.SendWork)
    site.deliver(*site.wire.pop(0))
    site.restart()  # The mover reports on reconnecting; the extents are not here yet.
    assert site.items(job)[0].state == "done"
    site.restart()
    site.run()
    check_end(site, job)
    assert [item.state for item in site.items(job)] == ["done", "done"]


@pytest.mark.parametrize("node", ["disk", "tape"])
@pytest.mark.parametrize("steps", range(0, 16, 2))
def test_a_node_that_restarts_at_any_step_costs_nothing_but_time(node: str, steps: int) -> None:
    site = connected()
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    site.settle(steps=steps)
    site.restart_node(node)
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == DATA


# --- the bad ways ---------------------------------------------------------------------------------


def test_a_damaged_record_stops_a_restore_and_is_named_with_its_blocks(site: Site) -> None:
    backup = backed_up(site)
    part = site.machine.registry.parts_of(backup)[0]
    site.tapes["LTO001L8"].bad = {part.data_object + 1}
    job = site.submit("restore", backup=backup, new="copy")
    site.run()
    check_end(site, job, "failed")
    row = site.job(job)
    # Record 1 holds stream blocks 4..7: LBA 10, 11, 30, 31.
    assert row.exit_code == 8
    assert "LBA 10 to 31 of the volume cannot be restored" in row.reason
    assert site.disk.by_name("copy").row.state == "restore-failed"


def test_a_failed_restore_can_be_done_again_onto_the_same_volume(site: Site) -> None:
    backup = backed_up(site)
    part = site.machine.registry.parts_of(backup)[0]
    site.tapes["LTO001L8"].bad = {part.data_object + 1}
    site.submit("restore", backup=backup, new="copy")
    site.run()
    site.tapes["LTO001L8"].bad = set()
    site.connect("disk")
    job = site.submit("restore", backup=backup, to="copy", force=True)
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == DATA


def test_a_cartridge_that_is_shorter_than_the_catalog_fails_the_restore(site: Site) -> None:
    backup = backed_up(site)
    del site.tapes["LTO001L8"].objects[-2:]
    job = site.submit("restore", backup=backup, new="copy")
    site.run()
    check_end(site, job, "failed")
    assert "shorter than the catalog" in site.job(job).reason
    assert site.machine.registry.cartridges["LTO001L8"].status == "error"  # type: ignore[index]
    assert len(site.alarms) == 1


def test_a_new_volume_that_was_never_made_leaves_no_name(site: Site) -> None:
    backup = backed_up(site)
    site.disconnect("disk")
    job = site.submit("restore", backup=backup, new="copy")
    site.begin_call("job.cancel", job=job)
    site.run(5)
    assert site.job(job).state == "cancelled"
    with pytest.raises(NotFoundError):
        site.machine.registry.volume_by_name("copy")
    site.connect("disk")
    assert restored(site, backup) == DATA


@pytest.mark.parametrize("kind", [VolumeCreate, VolumeOffline])
@pytest.mark.parametrize("arrives", [False, True])
def test_a_cancel_while_the_target_is_made_leaves_no_volume_half_way(
    kind: type, arrives: bool
) -> None:
    """Whether the request arrives before the clean-up or never: nothing stays online and half, or without a name."""
    site = connected()
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    until(site, kind)
    if not arrives:
        site.wire.pop(0)
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    left = [volume.row for volume in site.volumes.values() if volume.row.name == "copy"]
    names = [row.name for row in site.machine.registry.volumes.values() if not row.is_deleted]
    if kind is VolumeOffline and arrives:
        assert [row.state for row in left] == ["restore-failed"]
        assert "copy" in names
    else:
        assert left == []
        assert "copy" not in names


def test_a_word_to_go_offline_that_arrives_after_the_clean_up_is_too_late(site: Site) -> None:
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    until(site, VolumeOffline)
    late = site.wire.pop(0)
    site.begin_call("job.cancel", job=job)
    until(site, VolumePublish)
    site.wire.insert(0, late)
    site.run()
    check_end(site, job, "cancelled")
    assert [volume.row.name for volume in site.volumes.values()] == ["vol"]


def test_a_target_that_its_node_refuses_to_give_up_is_left_as_it_is(site: Site) -> None:
    """The node knows better than we do: somebody has written to the volume meanwhile."""
    backup = backed_up(site)
    target = site.make_volume("target")
    job = site.submit("restore", backup=backup, to="target")
    target.data.update(content(3))
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == RefusedError.exit_code
    assert (target.row.state, target.data) == ("online", content(3))


def test_a_cancelled_restore_waits_for_a_node_that_is_away_because_only_it_can_end_it(
    site: Site,
) -> None:
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    until(site, core.SendWork)
    site.disconnect("disk")
    site.begin_call("job.cancel", job=job)
    site.run(60)
    assert site.job(job).reason == "waiting: storage node disk is away"
    site.restart()
    site.connect("disk")
    site.run()
    check_end(site, job, "cancelled")
    assert site.disk.by_name("copy").row.state == "restore-failed"


def test_a_clean_up_that_was_interrupted_by_our_own_death_is_done_again(site: Site) -> None:
    backup = backed_up(site)
    job = site.submit("restore", backup=backup, new="copy")
    until(site, core.SendWork)
    site.begin_call("job.cancel", job=job)
    until(site, VolumePublish)
    site.deliver(*site.wire.pop(0))  # The node has done it; we die before we hear of it.
    site.restart()
    site.run()
    check_end(site, job, "cancelled")
    assert site.disk.by_name("copy").row.state == "restore-failed"


# --- chains ---------------------------------------------------------------------------------------


def chained(site: Site, steps: int = 3) -> Volume:
    """Back up a volume in full and then what changes; the newest backup has number `steps`."""
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    for step in range(steps):
        job = site.submit("backup", volume="vol", level="auto")
        site.run()
        check_end(site, job)
        volume.write({30 + step: bytes([step + 1]) * 512, step: bytes([step + 1]) * 512})
        volume.trim(50 + step)
    return volume


def test_a_chain_is_restored_with_one_load_per_cartridge_and_books_that_balance(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    expected: dict[int, bytes] = {}
    for step in range(4):
        if (
            step == 1
        ):  # The second backup ends the first cartridge, the others follow on the next one.
            site.tapes["LTO001L8"].capacity = len(site.tapes["LTO001L8"].objects) + 3
        job = site.submit("backup", volume="vol", level="auto")
        site.run()
        check_end(site, job)
        expected = dict(volume.data)
        volume.write({lba: bytes([step + 1]) * 512 for lba in range(step, 40, 4)})
    parts = [(part.tag, part.backup) for part in site.machine.registry.parts.values()]
    assert sorted(parts) == [
        ("LTO001L8", 1), ("LTO001L8", 2), ("LTO002L8", 2), ("LTO002L8", 3), ("LTO002L8", 4)
    ]  # fmt: skip
    loads: list[str] = []
    deliver = site.deliver

    def listen(target: str, message: Any) -> None:
        if isinstance(message, TapeLoad) and (not loads or loads[-1] != message.tag):
            loads.append(message.tag)
        deliver(target, message)

    site.deliver = listen  # type: ignore[method-assign]
    job = site.submit("restore", backup=4, new="copy")
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == expected
    assert loads == ["LTO001L8", "LTO002L8"]
    book = ledger(site, job)
    assert book["written_bytes"] == len(expected) * 512 == site.job(job).planned_bytes
    assert site.job(job).done_bytes == site.job(job).planned_bytes
    assert book["discarded_bytes"] > 0, "what was superseded lay in records that were needed"
    result = json.loads(site.job(job).result)
    assert (result["level"], result["parents"]) == ("incremental", [3, 2, 1])
    assert result["needs"] == ["LTO001L8", "LTO002L8"]


def test_a_member_of_a_chain_of_which_nothing_is_left_is_not_read(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    site.set_cartridge("LTO001L8", status="full")
    volume.trim(*DATA)
    volume.write(content(5))
    job = site.submit("backup", volume="vol", level="incremental")
    site.run()
    check_end(site, job)
    site.tapes["LTO001L8"].unreadable = "broken since"
    assert restored(site, 2) == content(5)


def test_damage_in_a_chain_names_the_cartridge_and_only_what_was_wanted_of_it(site: Site) -> None:
    """The second record of the full backup holds 10, 11, 30 and 31; of these 30 and 31 were written again."""
    chained(site)
    full = site.machine.registry.parts[1, 1]
    site.tapes["LTO001L8"].bad.add(full.data_object + 1)
    job = site.submit("restore", backup=3, new="copy")
    site.run()
    check_end(site, job, "failed")
    (lost,) = json.loads(site.job(job).result)["damage"]
    assert (lost["tag"], lost["object"]) == ("LTO001L8", full.data_object + 1)
    assert lost["extents"] == [[10, 2]]
    assert "ctl submit verify 1 lists all damage" in site.job(job).reason


def test_damage_to_what_was_superseded_does_not_matter(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    volume.write({lba: bytes([9]) * 512 for lba in (10, 11, 30, 31)})
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    full = site.machine.registry.parts[1, 1]
    site.tapes["LTO001L8"].bad.add(full.data_object + 1)
    assert restored(site, 2) == volume.data


def test_a_chain_whose_parent_is_gone_is_not_begun(site: Site) -> None:
    """Nothing deletes backups yet; a catalog that lost one must not give half a volume."""
    chained(site)
    del site.machine.backups[BackupId(1)]
    job = site.submit("restore", backup=3, new="copy")
    site.run()
    check_end(site, job, "failed")
    assert "backup 2 stands on 1, which is not there" in site.job(job).reason
    assert all(volume.row.name != "copy" for volume in site.volumes.values())


@pytest.mark.parametrize("crash_at", range(0, 90, 4))
def test_a_controller_that_dies_anywhere_in_the_restore_of_a_chain_goes_on(crash_at: int) -> None:
    site = connected()
    chained(site, 2)
    volume = site.disk.by_name("vol")
    expected = dict(volume.data)
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    job = site.submit("restore", backup=3, new="copy")
    site.crash_at = site.effects_seen + crash_at
    try:
        site.run()
    except ControllerDied:
        site.restart()
        site.run()
    site.crash_at = None
    check_end(site, job)
    assert site.disk.by_name("copy").data == expected


def test_a_part_that_the_catalog_has_lost_ends_a_restore_before_anything_is_made(
    site: Site,
) -> None:
    """A volume that lacks the blocks of a part must not come online as if it were whole."""
    backup = backed_up(site)
    del site.machine.registry.parts[BackupId(backup), 1]
    job = site.submit("restore", backup=backup, new="copy")
    site.run()
    check_end(site, job, "failed")
    assert "parts of backup 1, or of one under it, are not in the catalog" in site.job(job).reason
    assert [volume.row.name for volume in site.volumes.values()] == ["vol"]


def test_a_restore_whose_books_lack_something_is_not_published(site: Site) -> None:
    """Whatever has made it leave out a part: that is not told as a success."""
    backed_up(site)
    job = site.submit("restore", backup=1, new="copy")
    while site.job(job).state != "copying":
        site.settle(steps=1)
    site.restart()
    site.machine.jobs[JobId(job)].plan["part"] = 2
    site.run()
    assert site.job(job).state == "failed"
    assert "were restored" in site.job(job).reason
    assert site.disk.by_name("copy").row.state == "restore-failed"


def test_a_cartridge_of_that_label_with_another_last_part_is_not_read(site: Site) -> None:
    """Somebody has copied the cartridge, and another controller has appended to one of the two."""
    backed_up(site)
    other = Site()
    for name in ("disk", "tape"):
        other.connect(name)
    other.connect_mover("m1")
    backed_up(other, content(*range(15)))
    tag = "LTO001L8"
    labels = [made.machine.registry.cartridges[VolumeTag(tag)] for made in (site, other)]
    assert labels[0].cartridge == labels[1].cartridge
    site.tapes[tag].objects = list(other.tapes[tag].objects)
    job = site.submit("restore", backup=1, new="copy")
    site.run()
    check_end(site, job, "failed")
    assert "its last part is not the one that the catalog knows" in site.job(job).reason
    assert site.disk.by_name("copy").row.state == "restore-failed"
