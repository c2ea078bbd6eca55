"""Files put back beneath a volume that stays online: only what is proved is written, and nobody else is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from backplane.errors import BusyError, RefusedError
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Identity, Kind
from backplane.ids import JobId
from backplane.wire.grants import Rights
from backplane.wire.messages import ViewMap, ViewMapPage, VolumeReserve, VolumeUnreserve, VolumeZero
from controller.core import effects as core
from controller.core import in_place
from controller.core.in_place import Proof
from tests.site.disk import Volume
from tests.site.maps import row
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    check_end,
    connected,
    content,
    first_record,
)

TABLE = {
    "etc/c": (35, 36, 50),
    "home/a": (10, 11, 30, 31),
    "home/b": (32, 33, 34),
    "z": (51, 60),
}
"""Block 60 was never written: it reads as zeros, and no tape has it."""

META = (0, 1, 2, 3)


def new(*lbas: int) -> dict[int, bytes]:
    """Return what has been written since the backup."""
    return {lba: bytes([200, lba]) * 256 for lba in lbas}


def with_files(site: Site, *odd: FileRow) -> Volume:
    """Make a volume with files, back it up (number 1), and change every block since."""
    volume = site.make_volume("vol", data=DATA)
    volume.files.odd = list(odd)
    volume.files.table = dict(TABLE)
    volume.files.free = set(range(40, 50))
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    changed = {lba for lbas in TABLE.values() for lba in lbas}
    volume.write(new(*changed, 40, 41))
    site.connect("disk")
    return volume


@pytest.fixture
def volume(site: Site) -> Volume:
    return with_files(site)


def submit(site: Site, *paths: str, **arguments: Any) -> int:
    return site.submit("restore", backup=1, paths=list(paths), **arguments)


def result(site: Site, job: int) -> Any:
    return json.loads(site.job(job).result)


def expected(*paths: str) -> dict[int, bytes]:
    """Return what is on the volume when these files were put back, and nothing else was written."""
    back = {lba for path in paths for lba in TABLE[path]}
    everything = {lba for lbas in TABLE.values() for lba in lbas} | {40, 41}
    old = DATA | {60: bytes(512)}
    found = {lba: old[lba] for lba in META} | new(*everything - back)
    return found | {lba: old[lba] for lba in back}


def until(site: Site, kind: type) -> Any:
    """Let things happen until a message of a kind is next on the wire."""
    while not isinstance(site.wire[0][1], kind):
        site.deliver(*site.wire.pop(0))
    return site.wire[0][1]


def check(site: Site, job: int, volume: Volume, *paths: str, state: str = "completed") -> None:
    """The job has ended, these files and no other block were put back, and the volume is everybody's again."""
    check_end(site, job, state)
    assert volume.data == expected(*paths)
    assert volume.row.state == "online"
    assert not site.disk.reserved


# --- the good way --------------------------------------------------------------------------------


def test_files_come_back_to_where_they_were_and_nothing_else_is_written(
    site: Site, volume: Volume
) -> None:
    job = submit(site, "home/a", "etc")
    site.run()
    check(site, job, volume, "home/a", "etc/c")
    files = result(site, job)["files"]
    assert files == {"restored": 2, "bytes": 7 * 512, "failed": 0, "listed": []}
    assert (result(site, job)["way"], result(site, job)["volume"]) == ("in-place", "vol")
    assert site.job(job).subject == "files of backup 1 -> in place on volume vol"
    assert site.job(job).done_bytes == site.job(job).planned_bytes == 7 * 512


def test_blocks_that_the_backup_knows_as_zeros_are_zeroed(site: Site, volume: Volume) -> None:
    job = submit(site, "z")
    site.run()
    check(site, job, volume, "z")


def test_a_file_of_nothing_but_zeros_needs_no_tape(site: Site) -> None:
    volume = site.make_volume("vol", data=content(1))
    volume.files.table = {"hole": (7, 8)}
    site.submit("backup", volume="vol")
    site.run()
    volume.write(new(7, 8, 9))
    job = submit(site, "hole")
    site.run()
    check_end(site, job)
    assert volume.data == content(1) | {7: bytes(512), 8: bytes(512)} | new(9)
    assert not site.items(job)


def test_grants_cover_the_blocks_that_are_proved_and_no_others(site: Site, volume: Volume) -> None:
    granted: set[int] = set()

    def note(work: core.SendWork) -> None:
        (use,) = [use for use in work.uses if use.designator == volume.row.designator]
        assert use.rights == Rights.READ | Rights.WRITE
        granted.update(lba + n for lba, blocks in use.extents for n in range(blocks))

    site.before_work = note
    job = submit(site, "home", "z")
    site.run()
    check(site, job, volume, "home/a", "home/b", "z")
    assert granted == {10, 11, 30, 31, 32, 33, 34, 51}


def test_a_grant_has_no_gaps_however_many_pieces_a_record_has(monkeypatch: Any) -> None:
    """A cover that closes the smallest gaps would let a mover write what belongs to others."""
    monkeypatch.setattr("controller.core.planner.GRANT_EXTENTS_MAX", 2)
    site = connected(records=32)
    volume = site.make_volume("vol", data=content(*range(64)))
    volume.files.table = {"even": tuple(range(0, 64, 2))}
    site.submit("backup", volume="vol")
    site.run()
    volume.write(new(*range(64)))
    sizes: list[int] = []
    site.before_work = lambda work: sizes.extend(
        blocks for use in work.uses for _, blocks in use.extents
    )
    job = submit(site, "even")
    site.run()
    check_end(site, job)
    assert set(sizes) == {1}
    assert volume.data == new(*range(1, 64, 2)) | content(*range(0, 64, 2))


def test_a_file_that_several_backups_of_a_chain_have_comes_back_whole(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    volume.files.table = dict(TABLE)
    site.submit("backup", volume="vol")
    site.run()
    volume.write(new(11))
    volume.trim(30)
    site.submit("backup", volume="vol", level="incremental")
    site.run()
    volume.write(dict.fromkeys((10, 11, 30, 31, 32), b"!" * 512))
    job = site.submit("restore", backup=2, paths=["home/a"])
    site.run()
    check_end(site, job)
    assert volume.data == DATA | new(11) | {30: bytes(512), 32: b"!" * 512}


def test_a_folder_without_files_is_no_work_and_no_failure(site: Site, volume: Volume) -> None:
    volume.files.odd = []
    job = submit(site, "home", excludes=["a", "b"])
    site.run()
    check(site, job, volume)
    assert result(site, job)["files"]["restored"] == 0


# --- what is not proved --------------------------------------------------------------------------


def gone(volume: Volume) -> None:
    del volume.files.table["home/a"]


def moved(volume: Volume) -> None:
    volume.files.table["home/a"] = (10, 11, 30, 40)


def replaced(volume: Volume) -> None:
    volume.files.inodes["home/a"] = 99


def shortened(volume: Volume) -> None:
    volume.files.table["home/a"] = (10, 11, 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gone, "it is not on the volume any more"),
        (moved, "it has other blocks now"),
        (replaced, "another file has its name now"),
        (shortened, "it has 1536 bytes now, and had 2048"),
    ],
)
def test_a_file_that_is_not_what_it_was_is_named_and_left_alone(
    site: Site, volume: Volume, change: Callable[[Volume], None], words: str
) -> None:
    change(volume)
    job = submit(site, "home")
    site.run()
    check(site, job, volume, "home/b", state="partial")
    assert site.job(job).exit_code == 3
    assert result(site, job)["files"]["listed"] == [{"path": "home/a", "reason": words}]
    assert site.job(job).reason == f"not restored: home/a ({words})"


def test_if_no_file_is_what_it_was_the_job_is_refused_before_anything_is_written(
    site: Site, volume: Volume
) -> None:
    moved(volume)
    job = submit(site, "home/a")
    site.run()
    check(site, job, volume, state="failed")
    assert site.job(job).exit_code == 5
    assert "no file can be put back in place: home/a: it has other blocks now" in site.log(job)[-2]
    assert not any("mixture" in line for line in site.log(job))


LINK = row("home/l", kind=Kind.SYMLINK)._replace(target=b"a")
FOLDER = row("home/d", kind=Kind.DIRECTORY)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (LINK, LINK, ""),
        (LINK, LINK._replace(target=b"b"), "it is something else now, and only contents"),
        (LINK, FOLDER._replace(path=b"home/l"), "it is something else now, and only contents"),
        (LINK, None, "it is not on the volume any more"),
        (FOLDER, FOLDER, ""),
        (FOLDER, None, "it is not on the volume any more"),
    ],
)
def test_a_link_or_a_folder_that_is_not_what_it_was_is_named_too(
    site: Site, before: FileRow, after: FileRow | None, words: str
) -> None:
    """Nothing of them can be put back: who has asked for one and hears that all is well has been lied to."""
    name = before.path.decode()
    volume = with_files(site, before)
    volume.files.odd = [after] if after is not None else []
    job = submit(site, "home")
    site.run()
    check(site, job, volume, "home/a", "home/b", state="partial" if words else "completed")
    listed = result(site, job)["files"]["listed"]
    assert [each["path"] for each in listed] == ([name] if words else [])
    assert all(words in each["reason"] for each in listed)
    alone = submit(site, name)
    site.run()
    assert site.job(alone).exit_code == (5 if words else 0)
    assert words in site.job(alone).reason


def test_nothing_that_matches_is_not_found(site: Site, volume: Volume) -> None:
    job = submit(site, "nix/**")
    site.run()
    check(site, job, volume, state="failed")
    assert site.job(job).exit_code == 4
    assert "backup 1 has nothing that matches nix/**" in site.job(job).reason


@pytest.mark.parametrize(
    ("state", "reasons", "words"),
    [
        ("dirty", (), "its newest changes cannot be told from its blocks"),
        ("clean", ("inode 7 is damaged",), "nobody knows whose its blocks are: inode 7"),
    ],
)
def test_a_volume_of_which_the_map_does_not_tell_everything_is_refused(
    site: Site, volume: Volume, state: str, reasons: tuple[str, ...], words: str
) -> None:
    volume.files.state, volume.files.reasons = state, reasons
    job = submit(site, "home")
    site.run()
    check(site, job, volume, state="failed")
    assert words in site.job(job).reason
    assert site.job(job).exit_code == 5


def test_a_workstation_that_has_gone_is_not_held_against_the_files(
    site: Site, volume: Volume
) -> None:
    """A node does not tell of each one that comes or goes."""
    site.disk.connect("vol")
    site.connect("disk")
    site.disk.disconnect("vol")
    job = submit(site, "home")
    site.run()
    check(site, job, volume, "home/a", "home/b")


def test_a_workstation_that_comes_before_the_reservation_is_told_by_the_node(
    site: Site, volume: Volume
) -> None:
    job = submit(site, "home")
    site.disk.connect("vol")
    site.run()
    check(site, job, volume, state="failed")
    assert "volume vol is in use: 1 workstation is connected" in site.job(job).reason
    assert site.job(job).exit_code == 5


def test_nobody_connects_while_files_are_put_back(site: Site, volume: Volume) -> None:
    job = submit(site, "home")
    until(site, core.SendWork)
    with pytest.raises(BusyError):
        site.disk.connect("vol")
    site.run()
    check(site, job, volume, "home/a", "home/b")
    site.disk.connect("vol")


def test_a_volume_that_is_gone_or_not_online_is_refused(site: Site, volume: Volume) -> None:
    site.submit("restore", backup=1, to="vol", force=True)
    until(site, core.SendWork)
    with pytest.raises(BusyError, match="volume vol is restoring"):
        submit(site, "home")
    site.run()
    site.call("volume.delete", name="vol", force=True)
    with pytest.raises(RefusedError, match="volume vol, which the files came from, is not there"):
        submit(site, "home")


def test_a_volume_whose_node_is_away_is_waited_for(site: Site, volume: Volume) -> None:
    site.disconnect("disk")
    job = submit(site, "home/b")
    site.run(5)
    assert site.job(job).reason == "waiting: storage node disk is away"
    site.connect("disk")
    site.run()
    check(site, job, volume, "home/b")


def test_more_files_than_are_held_in_memory_are_refused_by_name(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "FILES_MAX", 1)
    job = submit(site, "home")
    site.run()
    check(site, job, volume, state="failed")
    assert "more than 1 files and folders are too many" in site.job(job).reason


# --- the proof itself ----------------------------------------------------------------------------


def file(*extents: FileExtent, size: int = 0, inode: int = 7, error: str = "") -> Any:
    made = row("f", extents=extents, size=size)
    return made._replace(identity=Identity(0, inode, 0), error=error)


def objection_to(expected_row: Any, now: Any) -> str:
    proof = Proof(block_bytes=512)
    proof.expect(expected_row)
    proof.compare(now)
    reasons = [reason for _, reason in proof.objections()]
    assert len(reasons) + proof.files == 1
    assert bool(list(proof.wanted())) == proof.files
    return "".join(reasons)


PLAIN = FileExtent(0, 4096, 1024)


@pytest.mark.parametrize(
    ("extent", "words"),
    [
        (PLAIN, ""),
        (PLAIN._replace(flags=int(ExtentFlag.SHARED)), "not its own alone, or not plain (shared)"),
        (PLAIN._replace(flags=int(ExtentFlag.INLINE)), "(inline)"),
        (PLAIN._replace(flags=int(ExtentFlag.JOURNAL)), "(journal)"),
        (
            PLAIN._replace(
                flags=int(ExtentFlag.COMPRESSED), stored_bytes=512, raw_bytes=1024, algorithm="zlib"
            ),
            "(compressed)",
        ),
        (PLAIN._replace(volume_byte=4097), "its blocks are smaller than those of the volume"),
        (PLAIN._replace(byte_count=1000), "its blocks are smaller than those of the volume"),
    ],
)
def test_only_plain_blocks_of_a_file_alone_are_proved(extent: FileExtent, words: str) -> None:
    assert words in objection_to(file(extent), file(extent))
    assert bool(words) == bool(objection_to(file(extent), file(extent)))


def test_unwritten_space_is_no_obstacle_and_is_not_written() -> None:
    space = FileExtent(1024, 8192, 1024, int(ExtentFlag.UNWRITTEN))
    proof = Proof(block_bytes=512)
    proof.expect(file(PLAIN, space))
    proof.compare(file(PLAIN, space))
    assert list(proof.wanted()) == [(8, 2)]


def test_the_last_block_of_a_file_is_written_whole_and_no_block_behind_it() -> None:
    extent = FileExtent(0, 4096, 4096)
    proof = Proof(block_bytes=512)
    proof.expect(file(extent, size=700))
    proof.compare(file(extent, size=700))
    assert list(proof.wanted()) == [(8, 2)]


def test_extents_in_another_order_are_the_same() -> None:
    other = FileExtent(1024, 512, 512)
    assert objection_to(file(PLAIN, other), file(other, PLAIN)) == ""


def test_a_row_that_is_not_to_be_trusted_proves_nothing() -> None:
    assert "not to be trusted: torn" in objection_to(file(PLAIN), file(PLAIN, error="torn"))


# --- the reservation is lost ---------------------------------------------------------------------


def strike(site: Site) -> None:
    """The node restarts, and before anybody can reserve again a workstation makes another file of a's blocks."""
    volume = site.disk.by_name("vol")
    site.disconnect("disk")
    site.disk.restart()
    site.disk.connect("vol")
    volume.files.table["home/a"] = (40, 41)
    volume.files.table["other"] = TABLE["home/a"]
    volume.write(new(*TABLE["home/a"]))
    site.disk.disconnect("vol")
    site.connect("disk")


@pytest.mark.parametrize("steps", range(40))
def test_a_node_that_restarts_at_any_step_has_it_proved_again(steps: int) -> None:
    """Whatever was on its way when the reservation was lost: no block of another file is written."""
    site = connected()
    volume = with_files(site)
    job = submit(site, "home")
    site.settle(steps=steps)
    if not site.machine.jobs:
        return
    was_written = volume.data == expected("home/a", "home/b")
    strike(site)
    site.run()
    row = site.job(job)
    other = {lba: volume.data[lba] for lba in TABLE["home/a"]}
    assert other == new(*TABLE["home/a"]), row.reason
    if was_written:
        # All was put back before the workstation came; whether that was seen before or after it is the same.
        check_end(site, job, row.state)
        assert row.state in ("completed", "partial")
        assert not site.disk.reserved
        return
    check(site, job, volume, "home/b", state="partial")
    assert "home/a" in row.reason


def test_a_list_that_is_on_its_way_when_the_reservation_is_lost_writes_nothing(
    site: Site, volume: Volume
) -> None:
    job = submit(site, "home")
    until(site, core.SendWork)
    late = site.wire.pop(0)
    strike(site)
    site.deliver(*late)
    assert volume.data == expected()
    site.run()
    check(site, job, volume, "home/b", state="partial")
    assert any("it has to be proved again" in line for line in site.log(job))


def test_a_volume_that_is_taken_by_a_workstation_meanwhile_ends_the_job_and_says_what_may_be_left(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.planner.LIST_BYTES_MAX", 4 * 512)
    job = submit(site, "home")
    until(site, core.SendWork)
    site.deliver(*site.wire.pop(0))
    site.disk.restart()
    site.disk.connect("vol")
    site.connect("disk")
    site.run()
    check_end(site, job, "failed")
    assert "volume vol is in use" in site.job(job).reason
    assert site.log(job)[-2] == in_place.MIXTURE
    assert not site.disk.reserved


def test_a_volume_that_does_not_stay_reserved_ends_the_job(site: Site, volume: Volume) -> None:
    job = submit(site, "home")
    deliver = site.deliver

    def lose(target: str, message: Any) -> None:
        if isinstance(message, VolumeZero):
            site.disk.reserved.clear()
        deliver(target, message)

    site.deliver = lose  # type: ignore[method-assign]
    site.run()
    check(site, job, volume, state="failed")
    assert "does not stay reserved" in site.job(job).reason
    asked = [line for line in site.log(job) if "it has to be proved again" in line]
    assert len(asked) == in_place.PROOFS_MAX


def test_a_map_that_is_lost_with_its_node_is_made_again(site: Site, volume: Volume) -> None:
    volume.files.rows_per_page = 1
    job = submit(site, "home")
    until(site, ViewMapPage)
    site.restart_node("disk")
    site.run()
    check(site, job, volume, "home/a", "home/b")


# --- what a mover does wrong, and damage ---------------------------------------------------------


def test_a_damaged_record_costs_the_files_in_it_and_says_that_they_may_be_mixtures(
    site: Site, volume: Volume
) -> None:
    """Record 1 has 10, 11, 30 and 31; record 2 has 32 to 35."""
    site.tapes["LTO001L8"].bad = {first_record(site, 1) + 2}
    job = submit(site, "home", "z")
    site.run()
    check(site, job, volume, "home/a", "z", state="partial")
    (listed,) = result(site, job)["files"]["listed"]
    assert listed["path"] == "home/b"
    assert "mixture of what it was and what it is" in listed["reason"]
    assert result(site, job)["files"]["restored"] == 2


def test_a_mover_that_writes_to_another_place_is_found_out(site: Site, volume: Volume) -> None:
    site.disk.misdirected = {31: 30}
    job = submit(site, "home")
    site.run()
    check_end(site, job, "partial")
    assert [each["path"] for each in result(site, job)["files"]["listed"]] == ["home/a"]


# --- our own death, and cancels ------------------------------------------------------------------


def test_a_controller_that_dies_anywhere_goes_on() -> None:
    """Once at each effect, with and without the messages that were on their way."""
    for crash_at in range(200):
        site = connected()
        volume = with_files(site)
        job = submit(site, "home/a", "z")
        site.crash_at = site.effects_seen + crash_at
        try:
            site.run()
        except ControllerDied:
            site.restart(keeps_wire=crash_at % 2 == 0)
            site.run()
            site.crash_at = None
            check(site, job, volume, "home/a", "z")
            continue
        site.crash_at = None
        check(site, job, volume, "home/a", "z")
        return
    pytest.fail("the job never came to its end: let it die later still")


@pytest.mark.parametrize("steps", range(45))
def test_a_cancel_at_any_step_gives_the_volume_back(steps: int) -> None:
    site = connected()
    volume = with_files(site)
    job = submit(site, "home", "z")
    site.settle(steps=steps)
    if not site.machine.jobs:
        return
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert not site.disk.reserved
    assert not site.disk.views
    is_told = any("may be a mixture now" in line for line in site.log(job))
    assert ("attention" in result(site, job)) == is_told
    assert is_told or volume.data == expected()
    untouched = {lba: data for lba, data in volume.data.items() if lba in (35, 36, 40, 41, 50)}
    assert untouched == new(35, 36, 40, 41, 50)
    assert set(volume.data) == set(expected())
    site.disk.connect("vol")


@pytest.mark.parametrize("kind", [VolumeReserve, ViewMap, VolumeUnreserve])
def test_a_controller_that_dies_before_an_answer_asks_again(
    site: Site, volume: Volume, kind: type
) -> None:
    job = submit(site, "home/a")
    until(site, kind)
    site.deliver(*site.wire.pop(0))
    site.restart()
    site.run()
    check(site, job, volume, "home/a")


def test_two_jobs_for_one_volume_wait_for_each_other(site: Site, volume: Volume) -> None:
    first = submit(site, "home/a")
    second = submit(site, "etc")
    assert site.job(second).reason == "waiting: volume vol is used by job 2"
    site.run()
    check_end(site, first)
    check(site, second, volume, "home/a", "etc/c")
    assert JobId(2) == first


@pytest.mark.parametrize("has_changed", [False, True])
def test_what_is_read_belongs_to_the_proof_and_everything_begins_anew_if_it_is_something_else(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch, has_changed: bool
) -> None:
    """How far a job has come is counted in what it reads: in something else that would mean other records."""
    monkeypatch.setattr("controller.core.planner.LIST_BYTES_MAX", 4 * 512)
    job = submit(site, "home/a", "etc/c")
    while not site.machine.jobs[JobId(job)].row.done_bytes:
        site.settle(steps=1)
    if has_changed:
        monkeypatch.setattr("controller.core.in_place.fingerprint", lambda readings: "other")
    site.restart()
    site.run()
    check_end(site, job)
    assert bool(json.loads(site.job(job).plan).get("repeated_bytes", 0)) == has_changed
