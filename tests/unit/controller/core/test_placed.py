"""Files copied beneath prepared ones: only what a map proves is written, and only while somebody holds the files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.file_map.model import ExtentFlag, FileExtent
from backplane.ids import JobId
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    TapeSample,
    UnitFence,
    ViewMap,
    VolumeReserve,
    VolumeUnreserve,
    VolumeZero,
)
from controller.core import effects as core
from controller.core import placed
from controller.core.placed import RENEWED_S
from tests.site.disk import Volume
from tests.site.maps import row
from tests.site.site import DATA, Site, check_end, connected, first_record

TABLE = {
    "etc/c": (35, 36, 50),
    "home/a": (10, 11, 30, 31),
    "home/b": (32, 33, 34),
    "z": (51, 60),
}
"""Block 60 was never written: it reads as zeros, and no tape has it."""

ROOM = {
    "got/a.restoring": (40, 41, 44, 45),
    "got/c.restoring": (46, 42, 47),
    "got/z.restoring": (43, 48),
}
ONTO = {"home/a": "got/a.restoring", "etc/c": "got/c.restoring", "z": "got/z.restoring"}


@pytest.fixture
def site() -> Site:
    return connected()


@pytest.fixture
def volume(site: Site) -> Volume:
    """A volume that was backed up (number 1), is mounted, and has prepared files now."""
    made = site.make_volume("vol", data=DATA)
    made.files.table = dict(TABLE)
    made.files.free = set(range(40, 50))
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    made.row = replace(made.row, connections=1)
    prepare(made)
    return made


def prepare(volume: Volume, table: dict[str, tuple[int, ...]] = ROOM) -> None:
    volume.files.table = {"home/b": TABLE["home/b"], **table}
    volume.files.free = set()
    volume.write({lba: bytes(512) for lbas in table.values() for lba in lbas})
    volume.write({lba: b"other's" + bytes(505) for lba in (10, 11, 30, 31, 35, 36, 50, 51, 60)})


def submit(site: Site, *paths: str, **arguments: Any) -> int:
    onto = [ONTO.get(path, "got/x.restoring") for path in paths]
    return site.submit("restore", **{"backup": 1, "placed": list(paths), "onto": onto} | arguments)


def result(site: Site, job: int) -> Any:
    return json.loads(site.job(job).result)


def whole(path: str) -> bytes:
    return b"".join(DATA.get(lba, bytes(512)) for lba in TABLE[path])


def check(site: Site, job: int, volume: Volume, before: dict[int, bytes], *paths: str) -> None:
    """These files have gone into the prepared ones, no other block was written, and nobody holds anything."""
    expected = dict(before)
    for path in paths:
        for lba, old in zip(ROOM[ONTO[path]], TABLE[path], strict=True):
            expected[lba] = DATA.get(old, bytes(512))
    assert volume.data == expected
    assert not site.disk.reserved
    assert not site.disk.views
    told = result(site, job)
    assert told["is_fenced"]
    assert sorted(told["placed"], key=lambda each: str(each["from"])) == [
        {"from": path, "onto": ONTO[path], "size": len(whole(path)), "crc32c": crc32c(whole(path))}
        for path in sorted(paths)
    ]


def until(site: Site, kind: type) -> Any:
    """Let things happen until a message of a kind is next on the wire."""
    while not isinstance(site.wire[0][1], kind):
        site.deliver(*site.wire.pop(0))
    return site.wire[0][1]


# --- the good way --------------------------------------------------------------------------------


def test_files_go_into_prepared_ones_and_no_other_block_is_written(
    site: Site, volume: Volume
) -> None:
    before = dict(volume.data)
    job = submit(site, "home/a", "etc/c", "z")
    site.run()
    check_end(site, job)
    check(site, job, volume, before, "home/a", "etc/c", "z")
    files = result(site, job)["files"]
    assert files == {"restored": 3, "bytes": 9 * 512, "failed": 0, "listed": []}
    assert result(site, job)["way"] == "placed"
    assert site.job(job).done_bytes == site.job(job).planned_bytes == 8 * 512


def test_grants_cover_the_blocks_of_prepared_files_and_no_others(
    site: Site, volume: Volume
) -> None:
    granted: set[int] = set()

    def note(work: core.SendWork) -> None:
        (use,) = [use for use in work.uses if use.designator == volume.row.designator]
        assert use.rights == Rights.READ | Rights.WRITE
        granted.update(lba + n for lba, blocks in use.extents for n in range(blocks))

    site.before_work = note
    job = submit(site, "home/a", "etc/c")
    site.run()
    check_end(site, job)
    assert granted == {*ROOM["got/a.restoring"], *ROOM["got/c.restoring"]}


def test_the_volume_stays_in_use_and_is_fenced_before_and_after(site: Site, volume: Volume) -> None:
    job = submit(site, "home/a")
    reserve = until(site, VolumeReserve)
    assert (reserve.is_shared, reserve.ttl_s, reserve.job) == (True, RENEWED_S, job)
    until(site, UnitFence)
    until(site, ViewMap)
    until(site, VolumeZero)
    until(site, UnitFence)
    until(site, VolumeUnreserve)
    until(site, TapeSample)
    site.run()
    check_end(site, job)


def test_a_prepared_file_is_found_in_one_of_several_file_systems(
    site: Site, volume: Volume
) -> None:
    before = dict(volume.data)
    volume.files.table = {f"p1/{path}": lbas for path, lbas in volume.files.table.items()}
    job = submit(site, "home/a")
    site.run()
    check_end(site, job)
    check(site, job, volume, before, "home/a")


# --- what the map does not prove -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"got/a.restoring": ()}, "has 0 bytes, for 2048"),
        ({"got/a.restoring": (40, 41, 44)}, "has 1536 bytes, for 2048"),
        ({"got/c.restoring": (40, 42, 47)}, "shares blocks with another one"),
    ],
)
def test_prepared_files_that_are_not_what_they_should_be_are_left_alone(
    site: Site, volume: Volume, change: dict[str, tuple[int, ...]], words: str
) -> None:
    prepare(volume, ROOM | change)
    before = dict(volume.data)
    good, bad = ("home/a", "etc/c") if "got/c.restoring" in change else ("etc/c", "home/a")
    job = submit(site, "home/a", "etc/c")
    site.run()
    check_end(site, job, "partial")
    check(site, job, volume, before, good)
    (entry,) = result(site, job)["files"]["listed"]
    assert entry["path"] == bad
    assert words in entry["reason"]


@pytest.mark.parametrize("flag", [ExtentFlag.UNWRITTEN, ExtentFlag.SHARED, ExtentFlag.INLINE])
def test_a_prepared_file_with_an_extent_that_is_not_plain_is_left_alone(
    site: Site, volume: Volume, flag: ExtentFlag
) -> None:
    del volume.files.table["got/a.restoring"]
    odd = (FileExtent(0, 40 * 512, 4 * 512, flag),)
    volume.files.odd = [row("got/a.restoring", extents=odd)]
    before = dict(volume.data)
    job = submit(site, "home/a")
    site.run()
    check_end(site, job, "failed")
    assert volume.data == before
    assert flag.name is not None
    assert flag.name.lower() in site.job(job).reason


def test_a_folder_of_another_volume_is_found_out(site: Site, volume: Volume) -> None:
    """The operator has named a folder of something else: the prepared files are not on this volume."""
    volume.files.table = dict(TABLE)
    before = dict(volume.data)
    job = submit(site, "home/a")
    site.run()
    check_end(site, job, "failed")
    assert volume.data == before
    assert "not on the volume" in site.job(job).reason
    assert result(site, job)["is_fenced"]


def test_a_name_that_is_there_twice_proves_nothing(site: Site, volume: Volume) -> None:
    volume.files.table |= {"p2/got/a.restoring": (10, 11, 30, 31)}
    before = dict(volume.data)
    job = submit(site, "home/a", "etc/c")
    site.run()
    check_end(site, job, "partial")
    check(site, job, volume, before, "etc/c")
    assert "2 times" in result(site, job)["files"]["listed"][0]["reason"]


@pytest.mark.parametrize("state", ["dirty", "clean"])
def test_a_volume_of_which_the_map_does_not_tell_everything_is_refused(
    site: Site, volume: Volume, state: str
) -> None:
    volume.files.state = state
    volume.files.reasons = () if state == "dirty" else ("a tree is damaged",)
    before = dict(volume.data)
    job = submit(site, "home/a")
    site.run()
    check_end(site, job, "failed")
    assert volume.data == before


def test_a_path_that_the_backup_does_not_have_is_listed(site: Site, volume: Volume) -> None:
    before = dict(volume.data)
    job = submit(
        site, "home/a", "home", "nowhere", onto=[ONTO["home/a"], "b.restoring", "c.restoring"]
    )
    site.run()
    check_end(site, job, "partial")
    check(site, job, volume, before, "home/a")
    listed = result(site, job)["files"]["listed"]
    assert [each["path"] for each in listed] == ["home", "nowhere"]


# --- while somebody holds them -------------------------------------------------------------------


def test_a_job_that_nobody_renews_is_cancelled_and_fenced(site: Site, volume: Volume) -> None:
    site.lose_mover("m1")
    job = submit(site, "home/a")
    site.settle()
    site.run(RENEWED_S - 1)
    assert site.job(job).state == "copying"
    site.run(10.0)
    check_end(site, job, "cancelled")
    assert result(site, job)["is_fenced"]
    assert not site.disk.reserved
    assert any("not renewed for 30 s" in line for line in site.log(job))


def test_a_job_that_is_renewed_goes_on_and_stays_reserved(site: Site, volume: Volume) -> None:
    before = dict(volume.data)
    site.lose_mover("m1")
    job = submit(site, "home/a")
    site.settle()
    for _ in range(10):
        number = site.begin_call("restore.renew", job=job)
        message = until(site, VolumeZero)
        assert (message.job, message.extents) == (job, b"")
        site.run(20.0)
        assert site.answer_of(number) == {"job": job, "state": "copying"}
    site.connect_mover("m1")
    site.run()
    check_end(site, job)
    check(site, job, volume, before, "home/a")
    with pytest.raises(NotFoundError):
        site.call("restore.renew", job=job)


def test_only_a_job_with_prepared_files_is_renewed(site: Site, volume: Volume) -> None:
    site.lose_mover("m1")
    job = site.submit("backup", volume="vol")
    with pytest.raises(RefusedError, match="no prepared files"):
        site.call("restore.renew", job=job)


def test_a_lost_reservation_is_proved_again_before_anything_is_written(
    site: Site, volume: Volume
) -> None:
    before = dict(volume.data)
    job = submit(site, "home/a")
    until(site, VolumeZero)
    site.disk.reserved.clear()
    site.run()
    check_end(site, job)
    check(site, job, volume, before, "home/a")
    assert sum("prepared files are where" in line for line in site.log(job)) == 2


def test_a_file_that_was_prepared_anew_meanwhile_is_written_where_it_is_now(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(site, "home/a")
    until(site, VolumeZero)
    monkeypatch.setitem(ROOM, "got/a.restoring", (49, 48, 43, 40))
    prepare(volume, ROOM | {"got/z.restoring": ()})
    before = dict(volume.data)
    site.disk.reserved.clear()
    site.run()
    check_end(site, job)
    check(site, job, volume, before, "home/a")


def test_a_mover_that_dies_is_followed_by_another_under_the_same_proof(
    site: Site, volume: Volume
) -> None:
    before = dict(volume.data)
    site.connect_mover("m2")
    site.lose_after = [1]
    job = submit(site, "home/a", "etc/c")
    site.settle()
    for _ in range(4):
        site.begin_call("restore.renew", job=job)
        site.run(10.0)
    check_end(site, job)
    check(site, job, volume, before, "home/a", "etc/c")


def test_whoever_cancels_is_told_that_nobody_writes_any_more(site: Site, volume: Volume) -> None:
    site.lose_mover("m1")
    job = submit(site, "home/a")
    site.settle()
    site.call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert result(site, job)["is_fenced"]


def test_a_damaged_record_costs_the_files_in_it_and_no_others(site: Site, volume: Volume) -> None:
    before = dict(volume.data)
    site.tapes["LTO001L8"].bad = {first_record(site, 1) + 2}
    job = submit(site, "home/a", "etc/c", "z")
    site.run()
    check_end(site, job, "partial")
    told = result(site, job)
    assert told["is_fenced"]
    lost = {each["path"] for each in told["files"]["listed"]}
    good = {"home/a", "etc/c", "z"} - lost
    assert lost
    assert good
    assert {each["from"] for each in told["placed"]} == good
    for path in good:
        for place, old in zip(ROOM[ONTO[path]], TABLE[path], strict=True):
            assert volume.data[place] == DATA.get(old, bytes(512))
    assert {lba: volume.data[lba] for lba in TABLE["home/b"]} == {
        lba: before[lba] for lba in TABLE["home/b"]
    }


# --- what makes no sense -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"onto": []},
        {"onto": ["a.restoring", "b.restoring"]},
        {"placed": ["a", "a"], "onto": ["a.restoring", "b.restoring"]},
        {"placed": ["a", "b"], "onto": ["x/a.restoring", "y/a.restoring"]},
        {"onto": ["etc/passwd"]},
        {"new": "copy"},
        {"paths": ["a"]},
        {"staging": True},
        {"placed": [str(n) for n in range(257)], "onto": [f"{n}.restoring" for n in range(257)]},
    ],
)
def test_a_placement_that_makes_no_sense_is_refused(
    site: Site, volume: Volume, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        submit(site, "home/a", **arguments)


def test_a_volume_that_is_not_there_or_not_fit_is_refused(site: Site, volume: Volume) -> None:
    with pytest.raises(NotFoundError):
        submit(site, "home/a", to="nowhere")
    assert placed.FILES_MAX == 256


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
        monkeypatch.setattr("controller.core.placed.fingerprint", lambda readings: "other")
    site.restart()
    site.run()
    check_end(site, job)
    assert bool(json.loads(site.job(job).plan).get("repeated_bytes", 0)) == has_changed
