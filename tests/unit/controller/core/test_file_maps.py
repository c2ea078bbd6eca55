"""Maps of files on their way from a node into the catalog, and what a backup makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    ExitCode,
    MediumError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    UsageError,
)
from backplane.file_map.packed import pack_rows
from backplane.ids import NodeName, ViewId
from backplane.wire.messages import (
    NodeReply,
    UnitFenced,
    ViewExtents,
    ViewMap,
    ViewMapPage,
    ViewMapping,
    ViewNarrow,
)
from controller.catalog.store import BackupRow, DropMap, MapHeaderRow, MapPageRow
from controller.core import effects as core
from controller.core import file_maps, views
from controller.core.extent_runs import ExtentRuns
from controller.core.procedure import JobCancelledError
from controller.core.samples import unpack_samples
from tests.site.disk import Volume
from tests.site.maps import Made, make_map, row
from tests.site.site import DATA, ControllerDied, Site, check_end, connected, content, restored

TABLE = {
    "bin/sh": (0, 1),
    "home/a/x.txt": (10, 11),
    "home/a/y.iso": (30, 31, 32),
    "home/b/z.txt": (50,),
    "var/log": (33, 34),
}
"""Blocks 2, 3, 35, 36 and 51 of `DATA` are nobody's content: metadata."""


@pytest.fixture
def volume(site: Site) -> Volume:
    return prepared(site)


def prepared(site: Site, **files: Any) -> Volume:
    made = site.make_volume("vol", data=DATA)
    made.track()
    made.files = replace(made.files, table=dict(TABLE), rows_per_page=2, **files)
    return made


def backed_up(site: Site, **arguments: Any) -> BackupRow:
    """Back the volume up and return the row."""
    job = site.submit("backup", volume="vol", **arguments)
    site.run()
    check_end(site, job)
    return site.machine.backups[site.job(job).backup]


def failed(site: Site, **arguments: Any) -> Any:
    """Fail to back the volume up, leave nothing of a map, and return the job's row."""
    job = site.submit("backup", volume="vol", **arguments)
    site.run()
    check_end(site, job, "failed")
    check_no_maps(site)
    return site.job(job)


def check_no_maps(site: Site) -> None:
    for backup in range(9):
        assert not list(site.catalog.map_pages(backup))
        assert site.catalog.map_header(backup) is None


def check_map(site: Site, row: BackupRow, told: Made) -> None:
    """The catalog has exactly this map of a backup."""
    assert site.catalog.map_header(row.backup) == told.packed_header
    pages = list(site.catalog.map_pages(row.backup))
    assert [page.packed for page in pages] == list(told.pages)
    assert [page.page for page in pages] == list(range(len(told.pages)))
    assert site.catalog.load().partial_maps == ()


def result(site: Site, row: Any) -> Any:
    return json.loads(site.job(row.job).result)


def runs_of(site: Site, row: BackupRow) -> ExtentRuns:
    packed = site.catalog.extents(row.backup)
    assert packed is not None
    return ExtentRuns.unpack(packed)


def told_map(volume: Volume) -> Made:
    return volume.files.map(blocks=volume.row.blocks, block_bytes=512)


def levels(site: Site, job: int) -> dict[str, list[str]]:
    """Return a job's log by level."""
    found: dict[str, list[str]] = {}
    for event in site.catalog.events(job, after=0, limit=200):
        found.setdefault(event.level, []).append(event.text)
    return found


def deliver_until(site: Site, kind: type, count: int = 1) -> list[Any]:
    """Let things happen until so many messages of a kind are on their way."""
    while True:
        found = [message for _, message in site.wire if isinstance(message, kind)]
        if len(found) >= count:
            return found
        site.deliver(*site.wire.pop(0))


# --- every backup carries its map ----------------------------------------------------------------


def test_a_backup_has_the_map_of_its_view(site: Site, volume: Volume) -> None:
    told = told_map(volume)
    row = backed_up(site)
    assert (row.map_state, row.files, row.selection) == ("complete", 5, "")
    check_map(site, row, told)
    assert result(site, row)["map"] == {
        "state": "complete",
        "files": 5,
        "paths": 11,
        "pages": len(told.pages),
        "file_systems": [{"kind": "ext4", "prefix": "", "state": "clean"}],
        "reasons": [],
    }
    assert list(levels(site, row.job)) == ["info"]
    assert restored(site, row.backup) == DATA


def test_what_nobody_uses_is_not_copied(site: Site) -> None:
    volume = prepared(site, free={2, 3, 4, 35})
    row = backed_up(site)
    assert list(runs_of(site, row)) == [(0, 2), (10, 2), (30, 5), (36, 1), (50, 2)]
    assert runs_of(site, row).zeros is None
    left = {lba: data for lba, data in DATA.items() if lba not in volume.files.free}
    assert restored(site, row.backup) == left


def test_samples_are_taken_of_what_is_used_only(site: Site) -> None:
    """What is free may be rewritten by anything, and says nothing about what was copied."""
    prepared(site, free=set(range(30, 60)))
    samples = unpack_samples(backed_up(site).samples, block_bytes=512)
    assert samples
    assert all(each.lba + each.blocks <= 30 for each in samples)


def test_runs_of_the_map_are_rounded_out_to_blocks(site: Site, volume: Volume) -> None:
    told = make_map([row("")], [(100, 513), (5121, 5122)], volume_bytes=64 * 512)
    deliver_map(site, told)
    row_made = next(iter(site.machine.backups.values()))
    assert list(runs_of(site, row_made)) == [(0, 2), (10, 1)]


def deliver_map(site: Site, told: Made, **arguments: Any) -> int:
    """Back the volume up with a node that has this map."""
    job = site.submit("backup", volume="vol", **arguments)
    deliver_until(site, ViewMap)
    site.disk.maps[next(iter(site.disk.views))] = told
    site.run()
    return job


def test_a_raw_backup_has_no_map_and_asks_for_none(site: Site) -> None:
    prepared(site, free={2, 3})
    asked: list[Any] = []
    answer = site.disk.answer
    site.disk.answer = lambda message: (asked.append(message), answer(message))[1]
    row = backed_up(site, raw=True)
    assert not [message for message in asked if isinstance(message, ViewMap)]
    assert (row.map_state, row.files) == ("raw", 0)
    assert result(site, row)["map"] == {"state": "raw"}
    check_no_maps(site)
    assert restored(site, row.backup) == DATA
    assert list(levels(site, row.job)) == ["info"]


# --- what cannot be mapped -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [NotFoundError("nothing is known"), ProtocolError("what map?")])
def test_a_volume_on_which_nothing_is_known_is_copied_raw_with_a_warning(
    site: Site, volume: Volume, error: BackupError
) -> None:
    volume.map_error = error
    volume.files.free = {2}
    row = backed_up(site)
    assert (row.map_state, row.files) == ("none", 0)
    assert result(site, row)["map"] == {"state": "none", "why": error.message}
    warning = f"copied raw, without a map of files: {error.message}"
    assert levels(site, row.job)["warning"] == [warning]
    check_no_maps(site)
    assert restored(site, row.backup) == DATA


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (RefusedError("the volume cannot be mapped: LUKS2 in partition 2"), ExitCode.REFUSED),
        (MediumError("ext4: the superblock is damaged"), ExitCode.DAMAGED),
    ],
)
def test_what_is_known_and_cannot_be_read_fails_the_job_by_its_name(
    site: Site, volume: Volume, error: BackupError, exit_code: ExitCode
) -> None:
    volume.map_error = error
    row = failed(site)
    what = error.message.rpartition(": ")[2]
    assert row.reason.startswith("volume vol cannot be mapped: ")
    assert row.reason.count("cannot be mapped") == 1
    assert f"{what} (" in row.reason
    assert "--raw" in row.reason
    assert row.exit_code == exit_code
    assert not site.machine.backups
    assert backed_up(site, raw=True).map_state == "raw"


def test_a_view_that_broke_while_it_was_mapped_is_to_blame(site: Site, volume: Volume) -> None:
    volume.map_error = MediumError("a block of the view cannot be read")
    site.disk.broken_because = "reserve-used-up"
    row = failed(site)
    assert row.reason.startswith("the static view of volume vol is broken: reserve-used-up")


def test_an_error_of_another_kind_fails_the_job_as_it_is(site: Site, volume: Volume) -> None:
    volume.map_error = BusyError("too many maps at once")
    assert failed(site).reason == "too many maps at once"


def test_a_node_cannot_cancel_a_job(site: Site, volume: Volume) -> None:
    """Only operators do; whatever a node calls its error, the job has failed."""
    volume.map_error = JobCancelledError("the mapping was cancelled")
    assert failed(site).reason == "the mapping was cancelled"


def test_an_incomplete_map_is_kept_with_its_reasons_and_not_trusted(site: Site) -> None:
    volume = prepared(site, free={2, 3}, reasons=("inode 7 is damaged", "inode 9 too"))
    told = told_map(volume)
    row = backed_up(site)
    assert (row.map_state, row.files) == ("incomplete", 5)
    check_map(site, row, told)
    assert result(site, row)["map"]["reasons"] == list(volume.files.reasons)
    (warning,) = levels(site, row.job)["warning"]
    assert warning == (
        "the map is incomplete, all that is allocated is copied: inode 7 is damaged; inode 9 too"
    )
    assert restored(site, row.backup) == DATA


def test_a_file_system_whose_journal_could_not_be_followed_is_not_trusted(
    site: Site, volume: Volume
) -> None:
    told = make_map([row("")], [(0, 512)], volume_bytes=64 * 512, state="dirty")
    deliver_map(site, told)
    (made,) = site.machine.backups.values()
    assert made.map_state == "incomplete"
    assert result(site, made)["map"]["reasons"] == [
        "ext4 the whole volume: recent changes may be missing"
    ]
    assert restored(site, made.backup) == DATA


# --- chains --------------------------------------------------------------------------------------


def test_a_block_that_was_free_in_the_parent_and_is_used_now_is_copied(site: Site) -> None:
    volume = prepared(site, free={2, 3, 35})
    backed_up(site)
    volume.files.free = {35, 51}
    volume.write({1: b"n" * 512, 51: b"f" * 512})
    row = backed_up(site, level="incremental")
    assert (row.level, row.map_state) == ("incremental", "complete")
    runs = runs_of(site, row)
    assert list(runs) == [(1, 3)]
    assert runs.zeros is not None
    assert list(runs.zeros) == []
    found = restored(site, row.backup)
    used = {lba: data for lba, data in volume.data.items() if lba not in volume.files.free}
    assert {lba: data for lba, data in found.items() if lba in used} == used


def test_a_raw_incremental_on_a_mapped_backup_restores_all_of_the_volume(site: Site) -> None:
    prepared(site, free={2, 3, 35})
    backed_up(site)
    row = backed_up(site, level="incremental", raw=True)
    assert list(runs_of(site, row)) == [(2, 2), (35, 1)]
    assert restored(site, row.backup) == DATA


def test_a_mapped_incremental_on_a_raw_backup_copies_nothing_twice(site: Site) -> None:
    prepared(site, free={2, 3, 35})
    backed_up(site, raw=True)
    row = backed_up(site, level="incremental")
    assert list(runs_of(site, row)) == []
    assert restored(site, row.backup) == DATA


def test_a_parent_whose_map_is_lost_makes_it_a_full_backup(site: Site, volume: Volume) -> None:
    parent = backed_up(site)
    site.catalog.commit([DropMap(backup=parent.backup)])
    row = backed_up(site, level="incremental")
    assert row.level == "full"
    assert "no map of backup 1 that can be read" in result(site, row)["fallback"]


@pytest.mark.parametrize("part", ["header", "page", "missing"])
def test_a_parent_whose_map_is_damaged_makes_it_a_full_backup(
    site: Site, volume: Volume, part: str
) -> None:
    parent = backed_up(site)
    damage(site.catalog._tables, parent, part)
    row = backed_up(site, level="incremental")
    assert row.level == "full"
    assert restored(site, row.backup) == DATA


def damage(tables: Any, parent: BackupRow, part: str) -> None:
    if part == "header":
        rows = tables[MapHeaderRow]
        rows[parent.backup] = replace(rows[parent.backup], packed=b"?")
        return
    rows = tables[MapPageRow]
    last = max(rows)
    if part == "missing":
        del rows[last]
    else:
        rows[last] = replace(rows[last], packed=b"?")


# --- chosen files --------------------------------------------------------------------------------


def test_chosen_files_are_copied_with_all_that_is_no_content(site: Site, volume: Volume) -> None:
    row = backed_up(site, paths=["home/**"], excludes=["*.iso"])
    assert json.loads(row.selection) == {"paths": ["home/**"], "excludes": ["*.iso"]}
    assert (row.level, row.map_state, row.samples) == ("full", "complete", b"")
    kept = {2, 3, 10, 11, 35, 36, 50, 51}
    assert list(runs_of(site, row)) == [(2, 2), (10, 2), (35, 2), (50, 2)]
    assert restored(site, row.backup) == {lba: DATA[lba] for lba in kept}
    assert result(site, row)["chosen_paths"] == 4, "two files and their folders"
    check_map(site, row, told_map(volume))


def test_only_an_exclude_is_a_choice_of_all_others(site: Site, volume: Volume) -> None:
    row = backed_up(site, excludes=["*.iso"])
    assert json.loads(row.selection) == {"paths": [], "excludes": ["*.iso"]}
    assert set(restored(site, row.backup)) == set(DATA) - {30, 31, 32}


def test_nothing_stands_on_a_backup_of_chosen_files(site: Site, volume: Volume) -> None:
    backed_up(site)
    backed_up(site, paths=["home"])
    assert backed_up(site, level="incremental").parent == 1


def test_nothing_that_matches_is_not_found_and_the_patterns_are_named(
    site: Site, volume: Volume
) -> None:
    row = failed(site, paths=["hom/**", "srv"], excludes=["*.iso"])
    assert row.exit_code == ExitCode.NOT_FOUND
    assert row.reason == (
        "no file of volume vol matches --path 'hom/**' --path 'srv' --exclude '*.iso'"
    )


def test_files_cannot_be_chosen_without_a_complete_map(site: Site, volume: Volume) -> None:
    volume.files.reasons = ("inode 7 is damaged",)
    row = failed(site, paths=["home"])
    assert "its map is incomplete: inode 7 is damaged" in row.reason
    assert row.exit_code == ExitCode.REFUSED
    volume.map_error = NotFoundError("nothing is known")
    row = failed(site, paths=["home"])
    assert row.reason.startswith("files of volume vol cannot be chosen: nothing is known")
    assert row.exit_code == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"level": "incremental"}, "always a full backup, and not incremental"),
        ({"level": "auto"}, "always a full backup, and not auto"),
        ({"raw": True}, "a raw backup has none"),
        ({"paths": ["a/../b"]}, "is relative"),
        ({"paths": [""]}, "no pattern"),
        ({"paths": [], "excludes": [""]}, "no pattern"),
        ({"paths": ["x"] * 300}, "patterns"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    site: Site, volume: Volume, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        site.submit("backup", volume="vol", **({"paths": ["home"]} | arguments))
    assert not site.machine.jobs


# --- narrowing -----------------------------------------------------------------------------------


def test_only_what_is_copied_stays_protected_once_that_is_durable(
    site: Site, volume: Volume
) -> None:
    job = site.submit("backup", volume="vol", paths=["bin"])
    (asked,) = deliver_until(site, ViewNarrow)
    assert site.job(job).state == "copying"
    assert len(asked.extents) == 16 * 3, "of bin, and the metadata"
    site.run()
    check_end(site, job)
    assert list(site.disk.narrowed.values()) == [{0, 1, 2, 3, 35, 36, 51}]


def test_a_whole_backup_does_not_narrow_its_view(site: Site, volume: Volume) -> None:
    backed_up(site)
    assert not site.disk.narrowed


@pytest.mark.parametrize("error", [RefusedError("not this view"), ProtocolError("narrow?")])
def test_a_node_that_does_not_narrow_protects_more_and_the_backup_is_the_same(
    site: Site, volume: Volume, error: BackupError
) -> None:
    site.disk.narrow_error = error
    row = backed_up(site, paths=["home"])
    told = f"the view stays as wide as it is: {error.message}"
    assert told in levels(site, row.job)["info"]
    assert list(levels(site, row.job)) == ["info"]


def test_too_many_extents_for_a_message_are_not_sent(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "NARROW_EXTENTS_MAX", 4)
    row = backed_up(site, paths=["bin"])
    assert site.disk.narrowed
    site.disk.narrowed.clear()
    row = backed_up(site, paths=["bin", "home"])
    assert not site.disk.narrowed
    assert any("5 extents are too many" in line for line in levels(site, row.job)["info"])


def test_a_node_that_is_away_is_not_waited_for_to_narrow(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol", paths=["home"])
    deliver_until(site, ViewNarrow)
    site.disconnect("disk")
    site.settle()
    assert any("is away" in line for line in levels(site, job)["info"])
    site.connect("disk")
    site.run()
    check_end(site, job)


# --- progress ------------------------------------------------------------------------------------


def mapping(view: str, files: int) -> ViewMapping:
    return ViewMapping(view=ViewId(view), files=files, bytes_read=4096)


def test_people_see_how_many_files_are_mapped(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol")
    deliver_until(site, ViewMap)
    view = site.machine.jobs[job].row.view
    commits = site.catalog.commit_count
    for files in (0, 1200, 10**30):
        site.feed(core.FromPeer(name=NodeName("disk"), message=mapping(view, files)))
        shown = min(files, file_maps.NUMBER_SHOWN_MAX)
        assert site.machine.jobs[job].row.reason == f"mapping: {shown} files"
    assert site.catalog.commit_count == commits, "it is told every few seconds"
    site.run()
    check_end(site, job)
    assert site.job(job).reason == ""


def test_what_others_say_of_a_mapping_is_ignored(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol")
    deliver_until(site, ViewMap)
    view = site.machine.jobs[job].row.view
    site.feed(core.FromPeer(name=NodeName("tape"), message=mapping(view, 5)))
    site.feed(core.FromPeer(name=NodeName("disk"), message=mapping("f" * 32, 5)))
    assert site.machine.jobs[job].row.reason == ""
    site.run()
    site.feed(core.FromPeer(name=NodeName("disk"), message=mapping(view, 5)))
    assert site.job(job).reason == ""


def test_a_mapping_that_is_told_while_another_job_fails_is_not_its_reason(
    site: Site, volume: Volume
) -> None:
    job = site.submit("backup", volume="vol")
    deliver_until(site, ViewMapPage)
    view = site.machine.jobs[job].row.view
    site.begin_call("job.cancel", job=job)
    site.feed(core.FromPeer(name=NodeName("disk"), message=mapping(view, 777)))
    assert "777" not in site.machine.jobs[job].row.reason
    site.run()
    check_end(site, job, "cancelled")
    check_no_maps(site)


# --- nodes that send nonsense --------------------------------------------------------------------


def spoiled(told: Made, page: int, packed: bytes) -> Made:
    pages = list(told.pages)
    pages[page] = packed
    return Made(told.header, tuple(pages))


@pytest.mark.parametrize(
    ("page", "packed", "words"),
    [
        (0, b"", "page 0 of its map of volume vol, which contradicts itself"),
        (2, b"x" * 100, "page 2 of its map of volume vol, which contradicts itself"),
        (1, pack_rows([row("zzz")])[0], "page 2 of its map"),
        (5, pack_rows([row("zzz")])[0], "its map of volume vol, which contradicts itself: "),
        (6, pack_rows([row("zzzz")])[0], "page 6 of its map"),
    ],
)
def test_a_page_that_contradicts_itself_fails_the_job_by_name(
    site: Site, volume: Volume, page: int, packed: bytes, words: str
) -> None:
    job = deliver_map(site, spoiled(told_map(volume), page, packed))
    check_end(site, job, "failed")
    check_no_maps(site)
    reason = site.job(job).reason
    assert reason.startswith("storage node disk sent ")
    assert words in reason
    assert "--raw" in reason
    assert site.job(job).exit_code == ExitCode.FAILED, "the node's fault, and no medium's"


def test_a_map_of_another_volume_is_refused(site: Site, volume: Volume) -> None:
    told = make_map([row("")], [(0, 512)], volume_bytes=32 * 512)
    job = deliver_map(site, told)
    check_end(site, job, "failed")
    assert "the header of its map of volume vol" in site.job(job).reason
    check_no_maps(site)


@pytest.mark.parametrize("packed", [b"", b"garbage"])
def test_a_header_that_is_none_fails_the_job(site: Site, volume: Volume, packed: bytes) -> None:
    job = site.submit("backup", volume="vol")
    (asked,) = deliver_until(site, ViewMap)
    site.wire.clear()
    reply = NodeReply(request=asked.request, boot_id=site.disk.boot, map_header=packed)
    site.feed(core.FromPeer(name=NodeName("disk"), message=reply))
    site.run()
    check_end(site, job, "failed")
    assert "the header of its map of volume vol" in site.job(job).reason


def test_an_answer_of_another_kind_is_no_reason_to_copy_raw(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol")
    (asked,) = deliver_until(site, ViewMap)
    site.wire.clear()
    fenced = UnitFenced(
        request=asked.request,
        designator=b"12345678",
        epoch=1,
        boot_id=site.disk.boot,
        position=0,
    )
    site.feed(core.FromPeer(name=NodeName("disk"), message=fenced))
    site.run()
    check_end(site, job, "failed")
    assert "answers with unit.fenced" in site.job(job).reason


# --- restarts and cancels ------------------------------------------------------------------------


def test_a_node_that_has_lost_the_map_makes_it_again(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol")
    deliver_until(site, ViewMapPage)
    site.settle(steps=8)
    assert len(list(site.catalog.map_pages(1))) > len(told_map(volume).pages) // 2
    volume.files.rows_per_page = 1000
    next(iter(site.disk.view_files.values())).rows_per_page = 1000
    site.restart_node("disk")
    site.run()
    check_end(site, job)
    assert any("has to be mapped again" in line for line in site.log(job))
    check_map(site, site.machine.backups[site.job(job).backup], told_map(volume))


def test_a_node_that_never_keeps_its_map_fails_the_job(site: Site, volume: Volume) -> None:
    answer = site.disk.answer

    def forget(message: Any) -> Any:
        if isinstance(message, ViewMapPage) and message.page == 2:
            site.disk.maps.clear()
        return answer(message)

    site.disk.answer = forget
    row = failed(site)
    assert row.reason.startswith("the map of volume vol does not last: ")


@pytest.mark.parametrize("arguments", [{}, {"paths": ["home"]}, {"level": "incremental"}])
def test_a_controller_that_dies_between_any_two_effects_has_the_whole_map_at_the_end(
    arguments: dict[str, Any],
) -> None:
    """The map is another one after the restart, so pages of the first would show."""
    crash_at, done = 0, False
    while not done:
        site = connected()
        volume = prepared(site, free={2, 35})
        first = backed_up(site) if "level" in arguments else None
        volume.files.free = {3, 35}
        job = site.submit("backup", volume="vol", **arguments)
        site.crash_at = site.effects_seen + crash_at
        try:
            site.run()
            done = True
        except ControllerDied:
            if site.job(job).state in ("queued", "waiting-quiet", "viewing", "mapping"):
                volume.files.rows_per_page = 5
                for files in site.disk.view_files.values():
                    files.rows_per_page = 5
                site.disk.maps.clear()
            site.restart()
            site.run()
        site.crash_at = None
        check_end(site, job)
        made = site.machine.backups[site.job(job).backup]
        assert first is None or made.parent == first.backup
        check_map(site, made, told_map(volume))
        assert len({page.backup for page in site.catalog._tables[MapPageRow].values()}) == (
            1 if first is None else 2
        )
        crash_at += 1
    assert crash_at > 40, "the story is shorter than it should be"


@pytest.mark.parametrize("paths", [[], ["home"]], ids=["whole", "chosen"])
def test_a_job_that_is_cancelled_at_any_step_leaves_no_page(paths: list[str]) -> None:
    steps = 0
    while True:
        site = connected()
        prepared(site)
        job = site.submit("backup", volume="vol", paths=paths)
        site.settle(steps=steps)
        if not site.machine.jobs:
            break
        site.begin_call("job.cancel", job=job)
        site.run()
        check_end(site, job, "cancelled")
        check_no_maps(site)
        steps += 1
    assert steps > 40


def test_pages_that_nobody_fetches_any_more_are_swept_when_the_controller_starts(
    site: Site, volume: Volume
) -> None:
    made = backed_up(site)
    page = next(site.catalog.map_pages(made.backup))
    site.catalog.commit([replace(page, backup=77), replace(page, backup=78, page=3)])
    site.restart()
    assert site.catalog.load().partial_maps == ()
    assert not list(site.catalog.map_pages(77))
    check_map(site, made, told_map(volume))


def test_the_number_that_is_reserved_for_pages_is_the_backups(site: Site, volume: Volume) -> None:
    job = site.submit("backup", volume="vol")
    deliver_until(site, ViewExtents)
    assert json.loads(site.job(job).plan)["backup"] == 1
    assert {row.backup for row in site.catalog.map_pages(1)} == {1}
    site.restart()
    site.run()
    check_end(site, job)
    assert site.job(job).backup == 1
    assert list(site.machine.backups) == [1]


def test_a_backup_that_fails_while_it_is_copied_keeps_no_map(site: Site, volume: Volume) -> None:
    site.disk.bad_lbas = {33}
    failed(site)
    assert [row.state for row in site.machine.backups.values()] == ["failed"]


def test_volumes_of_a_group_have_maps_of_their_own(site: Site, volume: Volume) -> None:
    other = site.make_volume("other", data=content(1, 2))
    other.files.table = {"only": (1,)}
    job = site.submit("backup", group=["vol", "other"])
    site.run()
    numbers = json.loads(site.job(job).plan)["group"]
    for number, files in zip(numbers, (5, 1), strict=True):
        check_end(site, number)
        assert site.machine.backups[site.job(number).backup].files == files
