"""A catalog from nothing but cartridges: the job, whose cartridges they are, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backplane.errors import ExitCode, NotFoundError, RefusedError, UsageError
from controller.catalog.store import CounterRow
from controller.core import documents
from controller.core import effects as core
from tests.site.disk import Volume
from tests.site.rebuilding import NEW_STORE, everything, facts, lose_catalog, rebuild
from tests.site.site import DATA, Site, backed_up, check_end, connected, content, restored

TABLE = {"bin/sh": (0, 1), "home/a/x.txt": (10, 11), "home/b/z.txt": (50,), "var/log": (33, 34)}


def mapped(site: Site, name: str = "vol") -> Volume:
    made = site.make_volume(name, data=DATA)
    made.track()
    made.files = replace(made.files, table=dict(TABLE), rows_per_page=2)
    return made


def stored(site: Site, **arguments: object) -> int:
    job = site.submit("backup", **arguments)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


def two_volumes(site: Site) -> list[int]:
    """A full and an incremental backup of a volume with a map, and one of a volume without."""
    volume = mapped(site)
    numbers = [stored(site, volume="vol")]
    volume.write(content(11, 60))
    numbers.append(stored(site, volume="vol", level="incremental"))
    site.make_volume("raw", data=content(5, 6))
    numbers.append(stored(site, volume="raw", raw=True))
    return numbers


def test_everything_comes_back_as_it_was(site: Site) -> None:
    numbers = two_volumes(site)
    before, store = everything(site), site.machine.store
    chain = restored(site, numbers[1])
    lose_catalog(site)
    job = rebuild(site)
    check_end(site, job.job)
    after = everything(site)
    for name in ("backups", "parts", "extents", "headers", "pages", "store"):
        assert after[name] == before[name], name
    assert site.machine.store == store != NEW_STORE
    tag = before["parts"][0].tag
    was, is_ = (
        next(row for row in each["cartridges"] if row.tag == tag) for each in (before, after)
    )
    assert is_ == was
    assert restored(site, numbers[1], name="again") == chain
    result = json.loads(job.result)
    assert (result["backups"], result["parts"], result["maps"]) == (3, 3, 2)
    assert not result["notes"]


def test_backups_go_on_where_they_were(site: Site) -> None:
    """Numbers behind the highest, appended to the same cartridge, standing on what was read back."""
    numbers = two_volumes(site)
    lose_catalog(site)
    rebuild(site)
    site.disk.by_name("vol").write(content(12))
    following = stored(site, volume="vol", level="incremental")
    row = site.machine.backups[following]  # type: ignore[index]
    assert (following, row.parent) == (max(numbers) + 1, numbers[1])
    parts = {part.backup: part for part in site.machine.registry.parts.values()}
    assert parts[following].sequence == parts[numbers[2]].sequence + 1  # type: ignore[index]
    assert parts[following].tag == parts[numbers[2]].tag  # type: ignore[index]
    assert not site.alarms[1:]


def test_the_same_cartridges_once_more_change_nothing(site: Site) -> None:
    two_volumes(site)
    here = everything(site)
    assert json.loads(rebuild(site).result)["backups"] == 0
    assert everything(site) == here
    lose_catalog(site)
    rebuild(site)
    once = everything(site)
    assert json.loads(rebuild(site).result)["parts"] == 0
    assert everything(site) == once


@pytest.mark.parametrize("order", [("LTO001L8", "LTO002L8"), ("LTO002L8", "LTO001L8")])
def test_a_backup_over_two_cartridges_is_whole_when_both_are_read(order: tuple[str, str]) -> None:
    site = connected()
    site.tapes["LTO001L8"].capacity = 9
    number = backed_up(site)
    before, data = facts(site), restored(site, number)
    assert {part.tag for part in before["parts"]} == set(order)
    lose_catalog(site)
    job = rebuild(site, order[0])
    assert (job.state, job.exit_code) == ("partial", ExitCode.PARTIAL)
    row = site.machine.backups[number]  # type: ignore[index]
    assert (row.state, row.is_protected) == ("failed", True)
    assert "part" in json.loads(row.detail)["missing"]
    assert json.loads(job.result)["incomplete"] == [
        f"vol/{row.created} (backup {number}) lacks {json.loads(row.detail)['missing']}"
    ]
    job = rebuild(site, order[1])
    check_end(site, job.job)
    assert facts(site) == before
    assert restored(site, number, name="again") == data


def test_the_cartridge_that_comes_before_is_named(site: Site) -> None:
    site.tapes["LTO001L8"].capacity = 9
    backed_up(site)
    lose_catalog(site)
    job = rebuild(site, "LTO002L8")
    assert "lacks what comes before part 2, on LTO001L8" in job.reason


# --- whose cartridges ----------------------------------------------------------------------------


def other_sites_cartridge(site: Site) -> str:
    """Put a cartridge of another catalog into the library; returns its barcode."""
    other = connected(tags=("XYZ001L8",))
    other.catalog = type(other.catalog)(store="d" * 32)
    other.ids = iter(range(1000, 10**6))  # type: ignore[assignment]
    other.restart()
    for _ in range(3):
        backed_up(other, name=f"theirs{_}")
    site.tapes["XYZ001L8"] = other.tapes["XYZ001L8"]
    site.connect("tape")
    return "XYZ001L8"


def test_cartridges_of_another_catalog_are_only_taken_on_demand_and_never_written(
    site: Site,
) -> None:
    backed_up(site)
    tag = other_sites_cartridge(site)
    store = site.machine.store
    job = rebuild(site, tag)
    assert (job.state, job.exit_code) == ("failed", ExitCode.REFUSED)
    assert "labelled by another catalog" in job.reason
    before = everything(site)
    job = rebuild(site, tag, adopt=True)
    # Number 1 is taken; 2 and 3 are not.
    assert job.state == "partial"
    [line] = json.loads(job.result)["refused"]
    assert "number 1 is that of another backup in this catalog: vol/" in line
    row = site.machine.registry.cartridges[tag]  # type: ignore[index]
    assert (row.status, row.sequence, site.machine.store) == ("full", 3, store)
    assert "another catalog" in row.detail
    assert row.hold == "1 of its parts are not in this catalog"
    assert [each.backup for each in before["backups"].values()] == [1]
    assert sorted(site.machine.backups) == [1, 2, 3]
    assert restored(site, 2) == DATA
    assert stored(site, volume="vol") == 4


def test_a_refused_backup_leaves_nothing_behind(site: Site) -> None:
    backed_up(site)
    before = facts(site)
    rebuild(site, other_sites_cartridge(site), adopt=True)
    assert facts(site, [1]) == before
    volumes = {row.name for row in site.machine.registry.volumes.values()}
    assert volumes == {"vol", "theirs1", "theirs2"}


def test_a_backup_that_is_being_written_is_refused_and_holds_no_cartridge(site: Site) -> None:
    site.tapes["LTO001L8"].capacity = 9
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    while not site.machine.registry.parts:
        site.deliver(*site.wire.pop(0))
    site.set_cartridge("LTO002L8", status="retired")  # Its second part waits.
    site.settle()
    asked = {"token": "t", "tags": ["LTO001L8"], "all": False, "adopt": False}
    job = site.call("catalog.rebuild", **asked, with_pruned=False)["job"]
    site.run(5)
    [line] = json.loads(site.job(job).result)["refused"]
    assert "is being written by job 1" in line
    assert site.machine.registry.cartridges["LTO001L8"].hold == ""  # type: ignore[index]


def test_what_has_no_label_of_ours_is_left_out(site: Site) -> None:
    backed_up(site)
    site.tapes["LTO002L8"].objects = [b"tar" * 100, None]
    site.set_cartridge("LTO002L8", status="foreign")
    job = rebuild(site, "LTO001L8", "LTO002L8")
    assert job.state == "partial"
    assert (
        "LTO002L8: cartridge LTO002L8 has no label of ours" in json.loads(job.result)["failed"][0]
    )
    job = rebuild(site, "LTO002L8")
    assert (job.state, job.exit_code) == ("failed", ExitCode.FAILED)


def test_a_barcode_that_is_known_with_another_cartridge_is_refused(site: Site) -> None:
    backed_up(site)
    site.set_cartridge("LTO001L8", cartridge="f" * 32)
    job = rebuild(site, "LTO001L8")
    assert "is that of another cartridge in this catalog" in job.reason


def test_two_cartridges_with_one_uuid_are_refused(site: Site) -> None:
    backed_up(site)
    site.tapes["LTO002L8"].objects = list(site.tapes["LTO001L8"].objects)
    job = rebuild(site, "LTO002L8")
    assert "have the same UUID" in job.reason


# --- submitting ----------------------------------------------------------------------------------


def test_what_can_be_asked_for(site: Site) -> None:
    with pytest.raises(UsageError):
        site.call_now(
            "catalog.rebuild", token="t", tags=[], all=False, adopt=False, with_pruned=False
        )
    with pytest.raises(UsageError):
        site.call_now(
            "catalog.rebuild",
            token="t",
            tags=["LTO001L8"],
            all=True,
            adopt=False,
            with_pruned=False,
        )
    with pytest.raises(NotFoundError):
        site.call_now(
            "catalog.rebuild",
            token="t",
            tags=["NONE01L8"],
            all=False,
            adopt=False,
            with_pruned=False,
        )
    with pytest.raises(NotFoundError, match="anything on it"):
        rebuild(site)
    site.disconnect("tape")
    with pytest.raises(RefusedError, match="no storage node of the tape role"):
        rebuild(site)


def test_one_rebuild_at_a_time_and_a_doubled_call_is_the_same(site: Site) -> None:
    backed_up(site)
    asked = {"token": "t", "tags": ["LTO001L8"], "all": False, "adopt": False, "with_pruned": False}
    first = site.call_now("catalog.rebuild", **asked)
    assert site.call_now("catalog.rebuild", **asked) == first
    with pytest.raises(RefusedError, match="rebuilds the catalog already"):
        site.call_now("catalog.rebuild", **(asked | {"token": "u"}))


# --- everything that can happen meanwhile --------------------------------------------------------


def test_the_controller_may_die_anywhere(site: Site) -> None:
    two_volumes(site)
    before = facts(site)
    steps = 0
    while True:
        lose_catalog(site)
        site.crash_at, site.effects_seen = steps, 0
        try:
            rebuild(site)
        except Exception as error:
            if type(error).__name__ != "ControllerDied":
                raise
            site.crash_at = None
            site.restart()
            if site.machine.jobs:
                site.run()
            else:  # It died before the job was durable, or after it had ended.
                rebuild(site)
            assert facts(site) == before, steps
            steps += 1
            continue
        site.crash_at = None
        break
    assert steps > 15
    assert facts(site) == before


def test_the_tape_node_may_restart(site: Site) -> None:
    two_volumes(site)
    before = facts(site)
    lose_catalog(site)
    site.call_now("catalog.rebuild", token="t", tags=[], all=True, adopt=False, with_pruned=False)
    for steps in range(1, 12):
        site.settle(steps=steps)
        site.restart_node("tape")
    site.run()
    check_end(site, 1)
    assert facts(site) == before


def test_a_cancelled_rebuild_leaves_whole_cartridges_and_no_half_map(site: Site) -> None:
    two_volumes(site)
    lose_catalog(site)
    number = site.call_now(
        "catalog.rebuild", token="t", tags=[], all=True, adopt=False, with_pruned=False
    )["job"]
    while not site.catalog.load().partial_maps:
        site.settle(steps=1)
    site.call_now("job.cancel", job=number)
    site.run()
    check_end(site, number, "cancelled")
    snapshot = site.catalog.load()
    assert (snapshot.backups, snapshot.parts, snapshot.partial_maps) == ((), (), ())


def test_a_rebuilt_pool_is_kept_for_ever(site: Site) -> None:
    site.call_now("pool.create", name="weekly", retain="0", allocation="continue", scratch=True)
    site.make_volume("vol", data=DATA)
    number = stored(site, volume="vol", pool="weekly")
    lose_catalog(site)
    rebuild(site)
    assert site.machine.backups[number].pool == "weekly"  # type: ignore[index]
    assert site.machine.registry.pools["weekly"].retain_s == -1


def test_volumes_are_found_again_at_their_nodes(site: Site) -> None:
    backed_up(site)
    site.make_volume("fresh", data=content(1))
    lose_catalog(site)
    rebuild(site)
    for name in ("vol", "fresh"):
        row = site.machine.registry.volume_by_name(name)
        assert (row.node, row.is_deleted) == ("disk", False)


def test_a_volume_that_is_gone_is_restored_to_a_new_one(site: Site) -> None:
    number = backed_up(site)
    site.disk.volumes.clear()
    lose_catalog(site)
    rebuild(site)
    assert restored(site, number) == DATA


def test_a_volume_whose_node_is_away_is_found_when_that_is_back(site: Site) -> None:
    backed_up(site)
    site.catalog = type(site.catalog)(store=NEW_STORE)
    site.disconnect("disk")
    site.restart()
    rebuild(site)
    with pytest.raises(NotFoundError):
        site.machine.registry.volume_by_name("vol")
    site.connect("disk")
    assert site.machine.registry.volume_by_name("vol").node == "disk"


def test_a_number_that_never_reached_a_tape_makes_way(site: Site) -> None:
    """An old copy gave a number again before anybody noticed; that job has failed."""
    number = backed_up(site)
    row = site.machine.backups[number]  # type: ignore[index]
    before = facts(site)
    lose_catalog(site)
    failed = replace(row, backup_uuid="9" * 32, state="failed")
    site.catalog.commit([failed, CounterRow(name="backup", value=number)])
    site.restart()
    job = rebuild(site, adopt=True)
    assert job.state == "completed", job.reason
    assert facts(site) == before


def test_a_map_that_is_damaged_on_tape_leaves_the_backup_and_is_told(site: Site) -> None:
    mapped(site)
    number = stored(site, volume="vol")
    tape = site.tapes["LTO001L8"]
    part = site.machine.registry.parts[number, 1]
    tape.bad.add(part.data_object - 2)
    lose_catalog(site)
    job = rebuild(site)
    assert job.state == "completed"
    assert f"the map of backup {number} cannot be read" in json.loads(job.result)["notes"][0]
    assert site.catalog.map_header(number) is None  # type: ignore[arg-type]
    assert not site.catalog.load().partial_maps
    assert restored(site, number) == DATA
    site.disk.by_name("vol").write(content(60))
    following = stored(site, volume="vol", level="incremental")
    assert site.machine.backups[following].level == "full"  # type: ignore[index]


def test_the_job_needs_no_mover(site: Site) -> None:
    backed_up(site)
    site.lose_mover("m1")
    lose_catalog(site)
    assert rebuild(site).state == "completed"
    assert not any(isinstance(message, core.SendWork) for _, message in site.wire)


# --- copies and several drives -------------------------------------------------------------------


@pytest.mark.parametrize("order", [("LTO001L8", "LTO002L8"), ("LTO002L8", "LTO001L8")])
def test_a_second_copy_knows_its_original_in_whatever_order_they_are_read(
    order: tuple[str, str],
) -> None:
    site = connected(drives=2)
    mapped(site)
    original = stored(site, volume="vol")
    job = site.submit("copy", backup=original)
    site.run()
    check_end(site, job)
    before = facts(site)
    lose_catalog(site)
    for tag in order:
        rebuild(site, tag)
    assert facts(site) == before
    assert site.machine.backups[original + 1].copy_of == original  # type: ignore[index]


def test_a_backup_over_two_drives_is_whole_when_both_cartridges_are_read() -> None:
    site = connected(drives=2, tags=("LTO001L8", "LTO002L8", "LTO003L8"))
    site.machine.stretch_bytes_min = 1
    site.connect_mover("m2")
    volume = site.make_volume("vol", data=content(*range(48)))
    volume.track()
    volume.files = replace(volume.files, table=dict(TABLE), rows_per_page=2)
    leader = site.submit("backup", volume="vol", drives=2)
    site.run()
    number = int(site.job(leader).backup)
    before = facts(site)
    tags = sorted({part.tag for part in before["parts"]})
    assert len(tags) == 2
    lose_catalog(site)
    job = rebuild(site, tags[1])
    assert job.state == "partial"
    assert "lacks what drives 1 wrote" in job.reason or "lacks what drives 2 wrote" in job.reason
    check_end(site, rebuild(site, tags[0]).job)
    assert facts(site) == before
    assert restored(site, number) == content(*range(48))


def test_what_a_backup_lacks_is_shown_with_it() -> None:
    site = connected()
    site.tapes["LTO001L8"].capacity = 9
    number = backed_up(site)
    lose_catalog(site)
    rebuild(site, "LTO001L8")
    row = site.machine.backups[number]  # type: ignore[index]
    shown = documents.backup_document(row, site.machine.registry, site.machine.backups)
    assert shown["broken"].startswith(f"backup {number} is failed: it lacks what comes behind part")


@pytest.mark.parametrize("full", ["LTO001L8", "LTO002L8"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_end_of_a_lane_is_missed_even_if_no_header_says_how_long_it_was(
    full: str, is_damaged: bool
) -> None:
    site = connected(drives=2, tags=("LTO001L8", "LTO002L8", "LTO003L8"))
    site.machine.stretch_bytes_min = 1
    site.make_volume("vol", data=content(*range(48)))
    site.tapes[full].capacity = 9
    site.submit("backup", volume="vol", drives=2)
    site.run()
    parts = site.machine.registry.parts_of(1)
    [end] = [part.tag for part in parts if part.part == 3]
    for part in parts:
        if is_damaged and not part.is_last:
            site.tapes[part.tag].bad.add(part.header_object)
    lose_catalog(site)
    for tag in sorted({part.tag for part in parts} - {end}):
        rebuild(site, tag)
    [row] = site.machine.backups.values()
    assert (row.state, row.is_protected) == ("failed", True)
    rebuild(site, end)
    assert restored(site, 1) == content(*range(48))


def test_a_cartridge_that_was_recycled_after_the_old_copy_was_made_is_read_as_what_it_is(
    site: Site,
) -> None:
    backed_up(site)
    copy = site.catalog.reopen()
    site.catalog = copy.reopen()
    site.restart()
    site.now += 60
    site.call("backup.prune", backups=["1"])
    site.set_cartridge("LTO001L8", status="full")
    site.set_cartridge("LTO002L8", status="retired")
    following = stored(site, volume="vol")
    assert site.tape.erased == ["LTO001L8"]
    site.catalog = copy
    site.restart()
    assert site.machine.registry.cartridges["LTO001L8"].status == "quarantined"  # type: ignore[index]
    job = rebuild(site)
    check_end(site, job.job)
    assert restored(site, following) == DATA
    lost = site.submit("restore", backup=1, new="lost")
    site.run()
    assert "is not the one any more" in site.job(lost).reason
