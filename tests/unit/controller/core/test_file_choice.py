"""Which blocks a restore of files takes, and what becomes of files that cannot come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent, Kind
from backplane.file_map.selection import Selection
from controller.core import file_choice
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns
from controller.core.file_choice import (
    NOT_COPIED,
    FileChoice,
    LostFiles,
    blocks_of,
    content_runs,
    only,
    without,
)
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
META = content(0, 1, 2, 3)


def extent(at: int, lba: int, blocks: int = 1, flags: int = 0) -> FileExtent:
    return FileExtent(at * 512, lba * 512, blocks * 512, flags)


def chosen(*rows: Any, is_volume: bool = False, **limits: Any) -> FileChoice:
    paths = limits.get("paths", ())
    choice = FileChoice(Selection(paths=paths), within=limits.get("within"), is_volume=is_volume)
    for each in rows:
        choice.add(each)
    choice.finish(limits.get("allocated", [(0, 64 * 512)]), block_bytes=512)
    return choice


# --- which blocks --------------------------------------------------------------------------------


def test_content_alone_is_taken_for_files_and_everything_else_in_use_for_a_volume() -> None:
    rows = row("a", extents=(extent(0, 10, 2),)), row("b", extents=(extent(0, 20),))
    assert list(chosen(*rows, paths=("a",)).wanted) == [(10, 2)]
    choice = chosen(*rows, paths=("a",), is_volume=True, allocated=[(0, 30 * 512)])
    assert list(choice.wanted) == [(0, 20), (21, 9)]
    assert (choice.paths, choice.files, choice.file_bytes, choice.failed) == (1, 1, 1024, 0)


def test_holes_and_unwritten_space_are_not_taken() -> None:
    space = extent(1, 11, flags=ExtentFlag.UNWRITTEN)
    choice = chosen(row("a", extents=(extent(0, 10), space, extent(4, 14)), size=5 * 512))
    assert list(choice.wanted) == [(10, 1), (14, 1)]


def test_bytes_that_are_no_whole_blocks_are_rounded_out_once() -> None:
    one = FileExtent(0, 1000, 100, int(ExtentFlag.INLINE))
    other = FileExtent(0, 1100, 100, int(ExtentFlag.INLINE))
    choice = chosen(row("a", extents=(one,)), row("b", extents=(other,)))
    assert list(choice.wanted) == [(1, 2)]
    assert list(blocks_of([(0, 1), (511, 513), (1024, 1024)], block_bytes=512)) == [(0, 2)]


def test_what_an_extent_has_behind_the_end_of_its_file_is_not_taken() -> None:
    assert list(content_runs(row("a", extents=(extent(0, 10, 8),), size=700))) == [(5120, 5820)]


def test_a_compressed_unit_is_taken_as_it_is_stored() -> None:
    unit = FileExtent(0, 5120, 4096, int(ExtentFlag.COMPRESSED), 700, 4096, 0, "zlib")
    assert list(chosen(row("a", extents=(unit,))).wanted) == [(10, 2)]


# --- which files ---------------------------------------------------------------------------------


def test_a_file_that_cannot_be_a_file_is_listed_and_comes_back_with_a_volume() -> None:
    secret = row("s", extents=(extent(0, 10, flags=ExtentFlag.ENCRYPTED),))
    choice = chosen(secret, row("a", extents=(extent(0, 20),)))
    assert (choice.files, choice.failed) == (1, 1)
    assert choice.listed[0]["path"] == "s"
    assert "it is encrypted" in choice.listed[0]["reason"]
    assert list(choice.wanted) == [(20, 1)]
    assert chosen(secret, is_volume=True).failed == 0


def test_extents_that_overlap_are_a_reason_and_no_crash_in_either_way() -> None:
    """The rows come from a node: nothing of them is an invariant of ours."""
    bad = row("a", extents=(extent(0, 10, 4), extent(2, 20, 4)))
    assert "overlap" in chosen(bad).listed[0]["reason"]
    assert chosen(bad, is_volume=True).files == 1


def test_what_a_backup_of_chosen_files_does_not_have_is_said() -> None:
    rows = [row(path, extents=(extent(0, lba),)) for path, lba in (("in", 10), ("out", 20))]
    within = Selection(paths=("in",))
    choice = chosen(*rows, paths=("in", "out"), within=within)
    assert choice.listed == [{"path": "out", "reason": NOT_COPIED}]
    choice = chosen(*rows, within=within)
    assert (choice.files, choice.listed) == (1, [])
    volume = chosen(*rows, within=within, is_volume=True, allocated=[(0, 30 * 512)])
    assert list(volume.wanted) == [(0, 20), (21, 9)]


def test_kinds_that_have_no_content_count_as_paths_only() -> None:
    choice = chosen(row("d", Kind.DIRECTORY), row("l", Kind.SYMLINK), row("p", Kind.FIFO))
    assert (choice.paths, choice.files, choice.failed) == (3, 0, 0)


def test_the_list_has_an_end_and_the_count_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_choice, "LISTED_MAX", 2)
    choice = chosen(*(row(f"{n}")._replace(error="torn") for n in range(5)))
    assert (choice.failed, len(choice.listed)) == (5, 2)


# --- picks ---------------------------------------------------------------------------------------

PICKS = Picks([(0, 100, 4), (6, 200, 2), (8, 50, 8)])


def test_only_what_is_wanted_is_picked_at_its_place_in_the_stream() -> None:
    wanted = ExtentRuns([(52, 1), (56, 40), (101, 1), (103, 98)])
    assert list(only(PICKS, wanted).slice(0, 99)) == [
        (1, 101, 1), (3, 103, 1), (6, 200, 1), (10, 52, 1), (14, 56, 2)
    ]  # fmt: skip
    assert only(PICKS, ExtentRuns()).total_blocks == 0


def test_holes_in_the_stream_are_left_out() -> None:
    picks = without(PICKS, [(2, 7), (10, 12)])
    assert list(picks.slice(0, 99)) == [(0, 100, 2), (7, 201, 1), (8, 50, 2), (12, 54, 4)]
    assert without(PICKS, []).total_blocks == PICKS.total_blocks


# --- lost blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_volume", [False, True])
def test_lost_blocks_are_given_their_names(is_volume: bool) -> None:
    found = LostFiles([[20, 2], (10, 1), (10, 1)], block_bytes=512, is_volume=is_volume)
    found.add(row("hit", extents=(extent(0, 21, 3), extent(3, 8, 1))))
    found.add(row("near", extents=(extent(0, 22), extent(1, 11))))
    found.add(row("space", extents=(extent(0, 20, 2, ExtentFlag.UNWRITTEN),)))
    assert (found.paths, found.file_bytes) == ([b"hit"], 4 * 512)
    assert found.has_more
    found.add(row("rest", extents=(extent(0, 20), extent(1, 10))))
    assert not found.has_more


def test_a_file_that_overlaps_itself_is_found_where_whole_volumes_come_back() -> None:
    found = LostFiles([(10, 1)], block_bytes=512, is_volume=True)
    found.add(row("a", extents=(extent(0, 10, 4), extent(2, 8, 4), extent(9, 12, 4))))
    assert found.paths == [b"a"]


# --- whole jobs, onto volumes of their own -------------------------------------------------------


def with_files(site: Site, **arguments: Any) -> Volume:
    volume = site.make_volume("vol", data=DATA)
    volume.files.table = dict(TABLE)
    volume.files.free = set(range(40, 50))
    volume.files.rows_per_page = 2
    job = site.submit("backup", volume="vol", **arguments)
    site.run()
    check_end(site, job)
    return volume


def restored(site: Site, *paths: str, state: str = "completed", **arguments: Any) -> Any:
    """Restore files to a volume and return what is on it, and what the job says of files."""
    asked: dict[str, Any] = {"backup": 1, "new": "copy", "paths": list(paths)}
    job = site.submit("restore", **(asked | arguments))
    site.run()
    check_end(site, job, state)
    return site.disk.by_name("copy").data, json.loads(site.job(job).result)["files"]


def test_a_volume_with_chosen_files_has_everything_but_the_others_contents(site: Site) -> None:
    with_files(site)
    data, files = restored(site, "home/a")
    assert data == META | content(*TABLE["home/a"])
    assert files == {"restored": 1, "bytes": 2048, "failed": 0, "listed": []}


def test_a_staging_volume_has_the_contents_and_nothing_else(site: Site) -> None:
    with_files(site)
    data, _ = restored(site, "home", "z", excludes=["b"], staging=True)
    assert data == content(*TABLE["home/a"], 51)


def test_a_backup_of_chosen_files_comes_back_as_a_volume_or_in_part(site: Site) -> None:
    with_files(site, paths=["home"])
    data, files = restored(site)
    assert data == META | content(*TABLE["home/a"], *TABLE["home/b"])
    assert (files["restored"], files["failed"]) == (2, 0)
    data, files = restored(site, "home/b", "etc", new="", to="copy", force=True, state="partial")
    assert data == META | content(*TABLE["home/b"])
    assert files["listed"] == [{"path": "etc/c", "reason": NOT_COPIED}]


def test_files_come_from_all_backups_of_a_chain(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    volume.files.table = dict(TABLE)
    expected = []
    for step in range(3):
        site.submit("backup", volume="vol", level="auto")
        site.run()
        expected.append({lba: volume.data.get(lba) for lba in TABLE["home/a"]})
        volume.write({10 + step: bytes([step]) * 512})
        volume.trim(30 + step)
    for number, blocks in enumerate(expected, start=1):
        data, _ = restored(site, "home/a", backup=number, staging=True)
        assert {lba: data.get(lba) for lba in TABLE["home/a"]} == blocks
        assert set(data) <= set(TABLE["home/a"])
        site.call("volume.delete", name="copy", force=True)


def test_where_the_map_is_incomplete_nothing_is_left_out(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.files.table = dict(TABLE)
    volume.files.reasons = ("inode 7 is damaged",)
    site.submit("backup", volume="vol")
    site.run()
    data, _ = restored(site, "home/a")
    assert data == DATA
    assert any("nothing is left out: inode 7" in line for line in site.log(2))


def test_damage_costs_the_files_in_it_and_no_others(site: Site) -> None:
    """The records have 0 to 3, then 10 11 30 31, then 32 to 35, then 36 50 51."""
    with_files(site)
    first = first_record(site, 1)
    site.tapes["LTO001L8"].bad = {first + 2, first + 3}
    data, files = restored(site, "home", "z", state="partial")
    assert data == META | content(*TABLE["home/a"])
    assert [each["path"] for each in files["listed"]] == ["home/b", "z"]
    assert (files["restored"], files["failed"]) == (1, 2)
    assert files["bytes"] == 2048
    row = site.job(2)
    assert (row.exit_code, row.error_count) == (3, 2)
    assert row.reason.startswith("not restored: home/b (some of its blocks could not be read)")


def test_damage_to_what_belongs_to_no_file_says_that_a_volume_may_not_be_mountable(
    site: Site,
) -> None:
    with_files(site)
    site.tapes["LTO001L8"].bad = {first_record(site, 1)}
    data, files = restored(site, "home", state="partial")
    assert data == content(*TABLE["home/a"], *TABLE["home/b"])
    assert files["listed"][0]["path"] == "(metadata)"
    assert files["restored"] == 2


def test_more_damaged_records_than_a_list_may_be_tried_end_no_job(site: Site) -> None:
    site.make_volume("vol", data=content(*range(64)))
    site.disk.by_name("vol").files.table = {f"{n:02}": (n,) for n in range(64)}
    site.submit("backup", volume="vol")
    site.run()
    first = first_record(site, 1)
    site.tapes["LTO001L8"].bad = set(range(first, first + 16, 2))
    data, files = restored(site, "??", state="partial")
    good = [n for n in range(64) if n // 4 % 2]
    assert data == content(*good)
    assert (files["restored"], files["failed"]) == (32, 32)


@pytest.mark.parametrize(
    ("paths", "code", "words"),
    [
        (["nix"], 4, "backup 1 has nothing that matches nix"),
        (["torn"], 5, "none of 1 files can be restored: torn: its map is not to be trusted: bad"),
    ],
)
def test_nothing_and_nothing_that_can_come_back_end_before_anything_is_made(
    site: Site, paths: list[str], code: int, words: str
) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.files.odd = [row("torn")._replace(error="bad")]
    site.submit("backup", volume="vol")
    site.run()
    job = site.submit("restore", backup=1, new="copy", paths=paths, staging=True)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == code
    assert words in site.job(job).reason
    assert [each.row.name for each in site.volumes.values()] == ["vol"]


def test_a_controller_that_dies_anywhere_in_a_restore_of_files_goes_on() -> None:
    """With a damaged record on the way: each file is named once, whenever we die."""
    for crash_at in range(200):
        site = connected()
        with_files(site)
        site.tapes["LTO001L8"].bad = {first_record(site, 1) + 2}
        job = site.submit("restore", backup=1, new="copy", paths=["home", "z"])
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        site.crash_at = None
        check_end(site, job, "partial")
        assert site.disk.by_name("copy").data == META | content(*TABLE["home/a"], 51)
        files = json.loads(site.job(job).result)["files"]
        assert [each["path"] for each in files["listed"]] == ["home/b"], crash_at
        assert (files["restored"], files["failed"], files["bytes"]) == (2, 1, 3072)
        if is_through:
            return
    pytest.fail("the job never came to its end: let it die later still")


@pytest.mark.parametrize("steps", range(0, 40, 3))
def test_a_cancel_at_any_step_leaves_no_volume_that_looks_good(steps: int) -> None:
    site = connected()
    with_files(site)
    job = site.submit("restore", backup=1, new="copy", paths=["home"], staging=True)
    site.settle(steps=steps)
    if not site.machine.jobs:
        return
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    for volume in [each for each in site.volumes.values() if each.row.name == "copy"]:
        is_whole = volume.data == content(*TABLE["home/a"], *TABLE["home/b"])
        assert volume.row.state == "restore-failed" or (volume.row.state == "online" and is_whole)
