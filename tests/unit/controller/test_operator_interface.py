"""The verbs of ctl: arguments from outside, and answers that need nothing but reading."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import NotFoundError
from backplane.file_map.header import unpack_header
from backplane.file_map.packed import unpack_rows
from backplane.ids import BackupId, ItemId, JobId
from backplane.wire.messages import REPLY_BYTES_MAX
from controller import operator_interface
from controller.catalog.store import ItemRow
from controller.core import planner
from controller.operator_interface import OperatorInterface
from controller.operator_verbs import VERBS, scheduled_arguments
from tests.site.arguments import good, parse
from tests.site.site import DATA, Site, backed_up, connected, content

# --- reading --------------------------------------------------------------------------------------


def interface(site: Site) -> OperatorInterface:
    return OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)


def read(site: Site, verb: str, **arguments: Any) -> dict[str, Any]:
    parsed = parse(verb, arguments)
    document = interface(site).read(verb, parsed, wall=site.wall)
    assert document is not None
    json.dumps(document)
    return document


@pytest.fixture
def full(site: Site) -> Site:
    """A site in which a little has happened."""
    backed_up(site)
    job = site.submit("verify", backup=1)
    site.run()
    assert site.job(job).state == "completed"
    return site


def test_verbs_that_change_something_are_not_answered_here(full: Site) -> None:
    changing = {
        "job.submit",
        "schedule.create",
        "schedule.delete",
        "schedule.enable",
        "schedule.run",
        "view.create",
        "view.release",
        "volume.mirror",
        "job.cancel",
        "catalog.rebuild",
        "catalog.accept",
        "restore.renew",
        "volume.create",
        "volume.attach",
        "volume.delete",
        "volume.set",
        "volume.import_begin",
        "volume.import_end",
        "volume.export_begin",
        "volume.export_end",
        "volume.extents",
        "tape.add",
        "tape.forget",
        "tape.scan",
        "tape.load",
        "tape.unload",
        "tape.export",
        "tape.import",
        "tape.protect",
        "tape.unprotect",
        "tape.set",
        "tape.vault",
        "drive.down",
        "drive.up",
        "pool.create",
        "pool.set",
        "pool.delete",
        "backup.prune",
        "backup.protect",
    }
    full.call("pool.create", name="vol", retain="0", allocation="continue", scratch=True)
    submitted = scheduled_arguments('{"kind": "backup", "volume": "vol"}')
    full.call("schedule.create", name="vol", calendar="daily", arguments=submitted)
    there: dict[str, Any] = {"job": 1, "name": "vol", "tag": "LTO001L8"}
    there |= dict.fromkeys(("backup", "before", "after"), "1") | {"volumes": ["vol"]}
    there["pool"] = "default"
    full.tape.take_out("LTO002L8")  # Only what is in no library can be lost.
    full.connect("tape")
    for verb in VERBS:
        arguments = parse(verb, good(verb)) | {
            name: value
            for name, value in there.items()
            if name in VERBS[verb] and VERBS[verb][name].kind is type(value)
        }
        if verb == "tape.losses":
            arguments["tag"] = "LTO002L8"
        document = interface(full).read(verb, arguments, wall=full.wall)
        assert (document is None) == (verb in changing), verb


def test_jobs_are_listed_newest_first(full: Site) -> None:
    assert [job["job"] for job in read(full, "job.list")["jobs"]] == [2, 1]
    assert [job["job"] for job in read(full, "job.list", limit=1)["jobs"]] == [2]
    assert read(full, "job.list", state="failed")["jobs"] == []
    assert len(read(full, "job.list", limit=0)["jobs"]) == 2, "no limit is the largest"


def test_a_job_that_is_not_there_is_not_found(full: Site) -> None:
    for verb in ("job.show", "job.log"):
        with pytest.raises(NotFoundError, match="no job has number 9"):
            read(full, verb, job=9)


def test_the_log_goes_on_where_it_was_left(full: Site) -> None:
    events = read(full, "job.log", job=1)["events"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    rest = read(full, "job.log", job=1, after=3)["events"]
    assert rest == events[3:]


@pytest.mark.parametrize("name", ["1", "vol/latest", "vol/2026-01-11T00:00:00Z"])
def test_a_backup_is_found_by_each_of_its_names(full: Site, name: str) -> None:
    assert read(full, "backup.show", backup=name)["backup"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        "2",
        "²",
        "٣",
        "9" * 30,
        "latest",
        "vol",
        "/latest",
        "nix/latest",
        "vol/",
        "vol/2026",
        "-1",
    ],
)
def test_what_is_no_name_of_a_backup_is_not_found(full: Site, name: str) -> None:
    with pytest.raises(NotFoundError, match="no backup is called"):
        read(full, "backup.show", backup=name)


def test_schedules_are_listed_by_name_and_shown(full: Site) -> None:
    submitted = scheduled_arguments('{"kind": "backup", "volume": "vol"}')
    for name in ("b", "a"):
        full.call("schedule.create", name=name, calendar="02:00", arguments=submitted)
    listed = read(full, "schedule.list")["schedules"]
    assert [each["schedule"] for each in listed] == ["a", "b"]
    assert read(full, "schedule.show", name="a") == listed[0]
    assert listed[0]["next_run"].endswith("T02:00:00Z")
    with pytest.raises(NotFoundError, match="no schedule is named 'c'"):
        read(full, "schedule.show", name="c")


def test_a_name_means_the_original_and_not_its_copy_as_long_as_it_is_there(full: Site) -> None:
    original = max(row.backup for row in full.machine.backups.values() if row.state == "completed")
    row = full.machine.backups[original]
    made = replace(row, backup=BackupId(99), copy_of=original)
    full.machine.backups[made.backup] = made
    for name in ("vol/latest", f"vol/{row.created}"):
        assert read(full, "backup.show", backup=name)["backup"] == original
    shown = read(full, "backup.show", backup="99")
    assert (shown["copy_of"], shown["copies"]) == (original, [])
    assert read(full, "backup.show", backup=str(original))["copies"] == [99]
    full.machine.backups[original] = replace(row, state="failed")
    assert read(full, "backup.show", backup=f"vol/{row.created}")["backup"] == 99


def test_the_latest_backup_is_the_latest_that_was_completed(full: Site) -> None:
    full.submit("backup", volume="vol")
    full.run()
    failed = full.submit("backup", volume="vol")
    full.settle(steps=12)
    full.begin_call("job.cancel", job=failed)
    full.run()
    assert read(full, "backup.show", backup="vol/latest")["backup"] == 2
    assert read(full, "backup.show", backup="3")["state"] == "failed"
    assert [b["backup"] for b in read(full, "backup.list")["backups"]] == [2, 1]
    assert read(full, "backup.list", volume="nix")["backups"] == []


# --- maps of files --------------------------------------------------------------------------------


@pytest.fixture
def mapped(site: Site) -> Site:
    """A site with a backup of many files, whose map has a page for every two of them."""
    volume = site.make_volume("vol", data=DATA)
    volume.files.rows_per_page = 2
    volume.files.table = {f"{folder}/f{n}": (n,) for folder in ("a", "b", "c") for n in range(4)}
    site.submit("backup", volume="vol")
    site.run()
    return site


def made_map(site: Site) -> Any:
    volume = site.disk.by_name("vol")
    return volume.files.map(blocks=volume.row.blocks, block_bytes=512)


def fetched(site: Site, **arguments: Any) -> list[tuple[int, bytes]]:
    """Fetch pages as `ctl` does, until there are no more."""
    found: list[tuple[int, bytes]] = []
    first: int | None = 0
    while first is not None:
        told = read(site, "map.pages", **({"backup": "1", "first": first} | arguments))
        found += [(each["page"], base64.b64decode(each["packed"])) for each in told["pages"]]
        first = told["next"]
    return found


def test_a_backup_says_what_became_of_its_map(mapped: Site) -> None:
    told = read(mapped, "backup.show", backup="1")
    assert (told["map_state"], told["files"], told["selection"]) == ("complete", 12, None)
    mapped.submit("backup", volume="vol", paths=["a"], excludes=["f3"], token="U")
    mapped.run()
    told = read(mapped, "backup.show", backup="2")
    assert told["selection"] == {"paths": ["a"], "excludes": ["f3"]}


def test_the_header_of_a_map_is_told_in_words_and_as_it_was_made(mapped: Site) -> None:
    told = read(mapped, "map.header", backup="vol/latest")
    header = made_map(mapped).header
    assert unpack_header(base64.b64decode(told["packed"])) == header
    assert (told["backup"], told["volume"], told["map_state"]) == (1, "vol", "complete")
    assert (told["files"], told["rows"], told["run_pages"]) == (12, 16, 1)
    assert told["file_systems"][0]["kind"] == "ext4"
    assert told["digest"] == header.digest


def test_all_pages_of_a_map_come_answer_by_answer(
    mapped: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(enumerate(made_map(mapped).pages))
    assert fetched(mapped) == expected
    monkeypatch.setattr(operator_interface, "MAP_PAGES_MAX", 2)
    first = read(mapped, "map.pages", backup="1")
    assert [len(first["pages"]), first["next"]] == [2, 2]
    assert fetched(mapped) == expected
    monkeypatch.setattr(operator_interface, "MAP_BYTES_MAX", 1)
    assert len(read(mapped, "map.pages", backup="1")["pages"]) == 1, "one is always sent"
    assert fetched(mapped) == expected


@pytest.mark.parametrize("under", ["b", "/b/", "b/f2"])
def test_pages_beneath_a_folder_come_alone_and_without_runs(mapped: Site, under: str) -> None:
    pages = fetched(mapped, under=under)
    assert 0 < len(pages) < len(made_map(mapped).pages) - 3
    rows = [row.path for _, page in pages for row in unpack_rows(page)]
    wanted = under.strip("/").encode()
    below = [path for path in rows if path == wanted or path.startswith(wanted + b"/")]
    assert len(below) == (5 if wanted == b"b" else 1)


def test_what_is_behind_the_last_page_or_beneath_nothing_is_empty(mapped: Site) -> None:
    empty: dict[str, Any] = {"pages": [], "next": None}
    assert read(mapped, "map.pages", backup="1", first=2**62) == empty
    assert read(mapped, "map.pages", backup="1", under="zzz") == empty


@pytest.mark.parametrize("verb", ["map.header", "map.pages"])
def test_a_backup_without_a_map_says_why(mapped: Site, verb: str) -> None:
    mapped.submit("backup", volume="vol", raw=True, token="R")
    mapped.run()
    with pytest.raises(NotFoundError, match="backup 2 has no map of files: it was made with --raw"):
        read(mapped, verb, backup="2")
    mapped.disk.by_name("vol").map_error = NotFoundError("nothing")
    mapped.submit("backup", volume="vol", token="N")
    mapped.run()
    with pytest.raises(NotFoundError, match="backup 3 has no map of files: nothing on the volume"):
        read(mapped, verb, backup="3")
    with pytest.raises(NotFoundError, match="no backup is called"):
        read(mapped, verb, backup="9")


def test_a_cartridge_shows_its_parts(full: Site) -> None:
    told = read(full, "tape.show", tag="LTO001L8")
    assert [part["sequence"] for part in told["parts_detail"]] == [1]
    assert len(read(full, "tape.list")["cartridges"]) == 2


def test_a_backup_says_what_it_waited_for_and_how_it_was_viewed(full: Site) -> None:
    told = read(full, "job.show", job=1)
    assert (told["wait"]["quiet_s"], told["wait"]["quiet_from"]) == (3.0, "controller")
    assert told["wait"]["asked"] == "2026-01-11T00:00:00Z"
    assert told["view"] == {"asked": "auto", "means": "hold", "time": "2026-01-11T00:00:00Z"}
    assert told["group"] == []
    verify = read(full, "job.show", job=2)
    assert (verify["wait"], verify["view"], verify["group"]) == ({}, {}, [])


def test_the_history_of_quiet_is_by_the_hours_of_the_controllers_time_zone(
    full: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    try:
        told = read(full, "volume.quiet", name="vol")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told["zone"] == "XYZ (UTC+05:30)"
    assert (told["waits"], told["found"], told["quiet_s"]) == (1, 1, [3.0])
    assert [(hour["hour"], hour["found"]) for hour in told["hours"]] == [(5, 1)]
    assert told["in_force"]["sync_timeout_s"] == 80.0
    with pytest.raises(NotFoundError):
        read(full, "volume.quiet", name="nix")


# --- job.show in pages ----------------------------------------------------------------------------


def many_items(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2048)
    site = connected()
    backed_up(site, content(*range(60)))
    return site


def test_a_job_with_many_items_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    site = many_items(monkeypatch)
    seen: list[int] = []
    following = 0
    while True:
        page = read(site, "job.show", job=1, items_from=following, items_max=4)
        assert len(page["items"]) <= 4
        assert page["items_total"] == 18
        assert page["ledger"]["is_balanced"], "of the whole job, whatever the page"
        seen += [item["item"] for item in page["items"]]
        following = page["next_item"]
        if not following:
            break
    assert seen == list(range(1, 19))


def test_a_page_ends_when_its_lists_are_too_large_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = many_items(monkeypatch)
    monkeypatch.setattr(operator_interface, "ITEM_BYTES_PER_PAGE", 700)
    page = read(site, "job.show", job=1, items_max=64)
    assert 1 <= len(page["items"]) < 18
    assert page["next_item"] == page["items"][-1]["item"] + 1


def test_the_largest_answer_fits_in_a_message() -> None:
    """In hexadecimal, lists take twice their size; the result of a job is bounded by what is listed in it."""
    lists = 2 * (operator_interface.ITEM_BYTES_PER_PAGE + 900 * 1024)
    damage = 1000 * (64 * 24 + 1000)
    assert lists + damage + 256 * 4096 < REPLY_BYTES_MAX


def test_no_items_are_a_page_too(full: Site) -> None:
    page = read(full, "job.show", job=1, items_max=0)
    assert (page["items"], page["next_item"]) == ([], 1)


def test_following_a_job_does_not_read_what_has_ended_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job of a large volume has thousands of lists of a hundred kilobytes; ctl asks four times a second."""
    site = many_items(monkeypatch)
    shown = interface(site)
    arguments = parse("job.show", {"job": 1, "items_max": 1})
    before = shown.read("job.show", arguments, wall=site.wall)
    asked: list[ItemId] = []
    original = site.catalog.items

    def items(job: JobId, *, first: ItemId, limit: int) -> list[ItemRow]:
        found = original(job, first=first, limit=limit)
        asked.extend(row.item for row in found)
        return found

    monkeypatch.setattr(site.catalog, "items", items)
    assert shown.read("job.show", arguments, wall=site.wall) == before
    assert len(asked) <= 2, "the page, and the item behind it"


def test_an_item_under_way_is_shown_as_it_is_now(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    shown = interface(site)
    arguments = parse("job.show", {"job": job})
    states = []
    while site.wire:
        site.deliver(*site.wire.pop(0))
        document = shown.read("job.show", arguments, wall=site.wall)
        assert document is not None
        states.append([item["state"] for item in document["items"]])
        assert document["items_total"] == len(document["items"])
    assert ["leased"] in states
    assert states[-1] == ["done"] * 4
    document = shown.read("job.show", arguments, wall=site.wall)
    assert document is not None
    assert document["ledger"]["is_balanced"]


def test_only_so_many_jobs_are_remembered(full: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_interface, "JOBS_CACHED_MAX", 1)
    shown = interface(full)
    for job in (1, 2, 1):
        document = shown.read("job.show", parse("job.show", {"job": job}), wall=full.wall)
        assert document is not None
        assert document["items_total"] > 0
    assert len(shown._books._ended) == 1


# --- libraries -----------------------------------------------------------------------------------


def test_drives_pools_and_requests_are_shown(full: Site) -> None:
    (pool,) = read(full, "pool.list")["pools"]
    assert pool == read(full, "pool.show", name="default")
    assert (pool["name"], pool["retain"], pool["tags"]) == ("default", "0", ["LTO001L8"])
    (drive,) = read(full, "drive.list")["drives"]
    assert (drive["name"], drive["state"], drive["tag"]) == ("tape/drive-0", "Up", "LTO001L8")
    told = read(full, "tape.status")
    assert told == {
        "drives": [drive],
        "requests": [],
        "cartridges": {"blank": 1, "writable": 1},
    }


def test_a_job_says_its_pool(full: Site) -> None:
    assert read(full, "job.show", job=1)["pool"] == "default"
