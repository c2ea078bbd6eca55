"""What was pruned stays pruned when the catalog is lost; and where nobody can say, it comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import BackupId, CartridgeId, VolumeTag
from backplane.tape_format import PartTrailer, decode_metadata, decode_record
from backplane.tape_format.content import PRUNED_RUNS_MAX
from controller.catalog.store import DropRow
from controller.core import forgotten
from controller.core.forgotten import Told, names, pruned_runs
from tests.site.rebuilding import lose_catalog, rebuild
from tests.site.site import DATA, Site, backed_up, check_end, content, restored

ONE, TWO = VolumeTag("LTO001L8"), VolumeTag("LTO002L8")


def backup(site: Site, **arguments: Any) -> int:
    site.now += 60.0
    job = site.submit("backup", volume="vol", **arguments)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


def states(site: Site) -> dict[int, str]:
    return {int(number): row.state for number, row in sorted(site.machine.backups.items())}


def prune(site: Site, *numbers: int) -> None:
    found = site.call("backup.prune", backups=[str(number) for number in numbers])
    assert found["pruned"] == list(numbers)


def last_trailer(site: Site, tag: VolumeTag = ONE) -> PartTrailer:
    part = site.machine.registry.last_part(tag)
    assert part is not None
    record = site.tapes[tag].objects[part.trailer_object]
    found = decode_metadata([decode_record(record or b"")])
    assert isinstance(found, PartTrailer)
    return found


@pytest.fixture
def mapped(site: Site) -> Site:
    """A volume with a map of files, and a backup of it."""
    made = site.make_volume("vol", data=DATA)
    made.track()
    made.files = replace(made.files, table={"a": (0, 1), "b": (10,)})
    backup(site)
    return site


@pytest.fixture
def two_tapes(site: Site) -> Site:
    """Backups 1 and 2 on one cartridge, 3 on another, whose trailer says that 1 was pruned."""
    backed_up(site)
    backup(site)
    site.set_cartridge(ONE, status="full")
    prune(site, 1)
    backup(site)
    assert site.machine.registry.parts[BackupId(3), 1].tag == TWO
    return site


def test_a_trailer_says_which_backups_are_pruned_and_a_rebuild_leaves_them_so(site: Site) -> None:
    first = backed_up(site)
    backup(site)
    assert last_trailer(site).pruned == ()
    prune(site, first)
    backup(site)
    assert last_trailer(site).pruned == ((1, 1),)
    lose_catalog(site)
    job = rebuild(site)
    check_end(site, job.job)
    assert states(site) == {1: "pruned", 2: "completed", 3: "completed"}
    row = site.machine.backups[BackupId(1)]
    assert json.loads(job.result)["pruned"] == [f"vol/{row.created} (backup 1)"]
    assert any("1 backups are pruned, as LTO001L8 says" in line for line in site.log(job.job))
    assert not json.loads(job.result)["notes"]
    assert restored(site, 2) == DATA
    # It goes on from there: the next trailer says so again.
    backup(site)
    assert last_trailer(site).pruned == ((1, 1),)


def test_what_was_pruned_behind_the_last_trailer_comes_back(site: Site) -> None:
    first = backed_up(site)
    prune(site, first)
    lose_catalog(site)
    rebuild(site)
    assert states(site) == {1: "completed"}


@pytest.mark.parametrize("order", [(ONE, TWO), (TWO, ONE)])
def test_what_one_cartridge_says_is_true_of_another_whichever_is_read_first(
    two_tapes: Site, order: tuple[VolumeTag, ...]
) -> None:
    lose_catalog(two_tapes)
    rebuild(two_tapes, *order)
    assert states(two_tapes) == {1: "pruned", 2: "completed", 3: "completed"}


def test_the_map_of_what_was_pruned_is_not_there(mapped: Site) -> None:
    backup(mapped)
    prune(mapped, 1)
    backup(mapped)
    lose_catalog(mapped)
    assert json.loads(rebuild(mapped).result)["maps"] == 2
    assert mapped.catalog.map_header(BackupId(1)) is None
    assert not list(mapped.catalog.map_pages(BackupId(1)))
    assert mapped.catalog.map_header(BackupId(2)) is not None


@pytest.mark.parametrize("is_lost", [True, False])
def test_with_pruned_brings_back_what_is_still_on_tape(mapped: Site, is_lost: bool) -> None:
    backup(mapped)
    prune(mapped, 1)
    backup(mapped)
    if is_lost:
        lose_catalog(mapped)
    assert json.loads(rebuild(mapped, with_pruned=True).result)["pruned"] == []
    assert states(mapped) == {1: "completed", 2: "completed", 3: "completed"}
    assert mapped.catalog.map_header(BackupId(1)) is not None
    assert restored(mapped, 1) == DATA
    # What the same trailer says does not count against it any more; the next one says it no more.
    rebuild(mapped)
    assert states(mapped)[1] == "completed"
    backup(mapped)
    assert last_trailer(mapped).pruned == ()
    # It can be pruned again, and that is what is told then.
    prune(mapped, 1)
    backup(mapped)
    lose_catalog(mapped)
    rebuild(mapped)
    assert states(mapped)[1] == "pruned"


def test_what_is_pruned_here_stays_so_without_being_asked_for(site: Site) -> None:
    first = backed_up(site)
    prune(site, first)
    rebuild(site)
    assert states(site) == {1: "pruned"}


def test_a_cartridge_that_is_not_the_newest_does_not_decide(two_tapes: Site) -> None:
    """It may have been brought back since: whoever cannot know keeps it."""
    site = two_tapes
    site.set_cartridge(TWO, status="full")
    site.set_cartridge(ONE, status="writable")
    backup(site)
    assert last_trailer(site, ONE).pruned == ((1, 1),)
    lose_catalog(site)
    rebuild(site, ONE)
    assert states(site) == {1: "pruned", 2: "completed", 4: "completed"}
    lose_catalog(site, store="f" * 32)
    older = rebuild(site, TWO)  # The newest that is known: it decides, and 1 is on another.
    assert states(site) == {3: "completed"}
    assert not json.loads(older.result)["notes"]
    site.tapes[TWO].objects, newest = site.tapes[ONE].objects, site.tapes[TWO].objects
    site.tapes[TWO].objects = newest
    rebuild(site, ONE)
    assert states(site)[1] == "pruned"


def test_an_older_cartridge_alone_takes_nothing_away(two_tapes: Site) -> None:
    site = two_tapes
    prune(site, 3)
    site.set_cartridge(ONE, status="writable")
    site.set_cartridge(TWO, status="full")
    later = backup(site)  # Its trailer, on the first cartridge, says that 1 and 3 are pruned.
    assert last_trailer(site, ONE).pruned == ((1, 1), (3, 1))
    lose_catalog(site)
    rebuild(site, ONE)
    assert states(site) == {1: "pruned", 2: "completed", later: "completed"}
    job = rebuild(site, TWO)
    assert states(site)[3] == "completed"
    note = "what LTO002L8 lists as pruned is not: there are newer cartridges"
    assert note in json.loads(job.result)["notes"]
    # Both at once, and the newest decides.
    rebuild(site)
    assert states(site)[3] == "pruned"


def test_what_only_an_older_cartridge_lists_comes_back_when_the_newest_is_read(
    two_tapes: Site,
) -> None:
    """2 was pruned when the trailer on the second cartridge was written, and is wanted again since."""
    site = two_tapes
    prune(site, 2)
    backup(site)
    assert last_trailer(site, TWO).pruned == ((1, 2),)
    rebuild(site, ONE, with_pruned=True)
    prune(site, 1)
    site.set_cartridge(ONE, status="writable")
    site.set_cartridge(TWO, status="full")
    backup(site)
    assert last_trailer(site, ONE).pruned == ((1, 1),)
    lose_catalog(site)
    site.catalog.commit([])
    # The newest is not read: 2 is on it, but what the older one says is all there is ...
    newest = site.tapes[ONE].objects
    cut = last_part_end(newest)
    site.tapes[ONE].objects = newest[:cut]
    rebuild(site)
    assert states(site)[2] == "pruned"
    # ... until it is.
    site.tapes[ONE].objects = newest
    job = rebuild(site)
    assert states(site)[2] == "completed"
    [note] = [each for each in json.loads(job.result)["notes"] if "not pruned any more" in each]
    assert "ctl catalog rebuild --with-pruned --from LTO001L8" in note


def last_part_end(objects: list[bytes | None]) -> int:
    """Return the object behind the part before the last one of a cartridge."""
    marks = [number for number, each in enumerate(objects) if each is None]
    return marks[-4] + 1


def test_what_a_living_backup_stands_on_is_kept_whatever_a_tape_says(site: Site) -> None:
    backed_up(site)
    backup(site)
    prune(site, 1)
    backup(site)
    lose_catalog(site)
    rebuild(site, with_pruned=True)
    rows = site.machine.backups
    rows[BackupId(2)] = replace(rows[BackupId(2)], level="incremental", parent=BackupId(1))
    rows[BackupId(1)] = replace(rows[BackupId(1)], detail="{}")
    told = Told(tag=ONE, as_of=site.wall, part=(9, 1), runs=((1, 1),))
    settled = forgotten.settle(site.machine, told)
    assert [(row.backup, why) for row, why in settled.kept] == [(1, "backup 2 stands on it")]
    assert states(site)[1] == "completed"
    # The same of one of which another cartridge is still to come.
    rows[BackupId(2)] = replace(
        rows[BackupId(2)], state="failed", is_protected=True, detail='{"missing": "a part"}'
    )
    assert forgotten.settle(site.machine, told).kept[0][1] == "backup 2 stands on it"
    assert site.call("backup.prune", backups=["1"])["kept"][0]["reason"] == "backup 2 stands on it"


def test_what_is_protected_here_is_kept_and_told(two_tapes: Site) -> None:
    site = two_tapes
    lose_catalog(site)
    rebuild(site, ONE)
    site.call("backup.protect", backup=1, protected=True)
    job = rebuild(site, TWO)
    assert states(site)[1] == "completed"
    assert json.loads(job.result)["notes"] == [
        "backup 1 was pruned, as LTO002L8 says, and is kept: protected"
    ]


def test_a_pruned_backup_of_which_a_cartridge_is_missing_is_not_asked_for(site: Site) -> None:
    site.tapes[ONE].capacity = 9
    first = backed_up(site)
    prune(site, first)
    backup(site)
    tags = {part.tag for part in site.machine.registry.parts_of(first)}
    assert tags == {ONE, TWO}
    assert last_trailer(site, TWO).pruned == ((1, 1),)
    lose_catalog(site)
    job = rebuild(site, TWO)
    check_end(site, job.job)
    row = site.machine.backups[BackupId(1)]
    assert (row.state, row.is_protected) == ("pruned", False)
    rebuild(site, ONE, with_pruned=True)
    row = site.machine.backups[BackupId(1)]
    assert (row.state, row.is_protected) == ("completed", False)
    assert "missing" not in row.detail
    assert restored(site, 1) == DATA


@pytest.mark.parametrize("why", ["used again", "forgotten"])
def test_what_comes_back_without_all_of_its_cartridges_is_not_called_complete(
    site: Site, why: str
) -> None:
    site.tapes[ONE].capacity = 9
    prune(site, backed_up(site))
    if why == "used again":
        label = site.submit("label", tag=ONE)
        site.run()
        check_end(site, label)
    else:
        del site.tapes[ONE]
        site.connect("tape")
        site.machine.record(DropRow(row=site.machine.registry.cartridges[ONE]))
    job = rebuild(site, TWO, with_pruned=True)
    row = site.machine.backups[BackupId(1)]
    assert (row.state, row.is_protected) == ("failed", True)
    [lacks] = json.loads(job.result)["incomplete"]
    assert "lacks what comes before part 2" in lacks


def test_what_stands_on_a_pruned_backup_is_told_with_the_command(two_tapes: Site) -> None:
    site = two_tapes
    rows = site.machine.backups
    child = replace(rows[BackupId(3)], level="incremental", parent=BackupId(1))
    rows[child.backup] = child
    job = rebuild(site, TWO, with_pruned=True)
    command = "ctl catalog rebuild --with-pruned --from LTO001L8"
    assert json.loads(job.result)["notes"] == [f"backup 3 stands on 1, which is pruned: {command}"]


def test_the_trailer_is_made_again_as_it_was_although_something_is_pruned_meanwhile(
    site: Site,
) -> None:
    """Half of it may be on the tape."""
    backed_up(site)
    job = site.submit("backup", volume="vol")
    while "trailer_created" not in site.machine.jobs[job].plan:  # type: ignore[index]
        site.settle(steps=1)
    assert site.call_now("backup.prune", backups=["1"])["pruned"] == [1]
    site.restart()
    site.run()
    check_end(site, job)
    assert last_trailer(site).pruned == ()


def test_only_what_is_on_a_cartridge_is_told_and_of_too_many_the_newest(site: Site) -> None:
    backed_up(site)
    row = site.machine.backups[BackupId(1)]
    part = site.machine.registry.parts[BackupId(1), 1]
    backups, registry = dict(site.machine.backups), site.machine.registry
    for number in range(2, 10):
        backups[BackupId(number)] = replace(row, backup=BackupId(number), state="pruned")
        registry.parts[BackupId(number), 1] = replace(part, backup=BackupId(number))
    backups[BackupId(5)] = row
    assert pruned_runs(backups, registry) == [[2, 3], [6, 4]]
    registry.parts[BackupId(7), 1] = replace(
        part, backup=BackupId(7), cartridge=CartridgeId("e" * 32)
    )
    assert pruned_runs(backups, registry) == [[2, 3], [6, 1], [8, 2]]
    many = range(10, 10 + 2 * PRUNED_RUNS_MAX, 2)
    for number in many:
        backups[BackupId(number)] = replace(row, backup=BackupId(number), state="pruned")
        registry.parts[BackupId(number), 1] = replace(part, backup=BackupId(number))
    runs = pruned_runs(backups, registry)
    assert (len(runs), runs[0], runs[-1]) == (PRUNED_RUNS_MAX, [8, 3], [many[-1], 1])


def test_a_number_is_found_in_the_runs() -> None:
    runs = ((2, 3), (6, 1), (8, 2))
    assert [number for number in range(12) if names(runs, number)] == [2, 3, 4, 6, 8, 9]
    assert not names((), 1)


def test_data_that_are_written_meanwhile_are_not_touched(two_tapes: Site) -> None:
    site = two_tapes
    site.disk.by_name("vol").write(content(12))
    backup(site)
    lose_catalog(site)
    rebuild(site)
    assert restored(site, 4) == DATA | content(12)
