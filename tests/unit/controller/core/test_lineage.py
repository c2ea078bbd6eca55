"""A copy takes the place of its original when that is pruned: chains, names, rules, cartridges, rebuilds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import BackupId, VolumeTag
from backplane.tape_format import PartHeader, decode_metadata, decode_record
from controller.core.allocation import needed_tags
from controller.core.backup_names import find_backup
from controller.core.chain import chain_of
from controller.core.damage import with_damage
from controller.core.documents import backup_document
from controller.core.lineage import by_family, children_first, head, is_head, kept_by, origin
from controller.core.prune import users_of
from controller.operator_interface import OperatorInterface
from tests.site.arguments import parse
from tests.site.rebuilding import facts, lose_catalog, rebuild
from tests.site.site import DATA, Site, check_end, connected, content, first_record, restored

ORIGINALS, COPIES, MORE = VolumeTag("LTO001L8"), VolumeTag("LTO002L8"), VolumeTag("LTO003L8")


@pytest.fixture
def site() -> Site:
    """A full backup (1) with an incremental one (2) on one cartridge, copies of them (3, 4) on another."""
    made = connected(drives=2, tags=tuple(f"LTO00{number}L8" for number in range(1, 6)))
    made.make_volume("vol", data=DATA).track()
    for level in ("full", "incremental"):
        run(made, "backup", volume="vol", level=level)
        made.disk.by_name("vol").write(content(12))
    made.set_cartridge(ORIGINALS, status="full")
    for number in (1, 2):
        run(made, "copy", backup=number)
    rows = made.machine.backups.values()
    assert [(row.backup, row.parent, row.copy_of) for row in rows] == [
        *((1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 1, 2))
    ]
    return made


def run(site: Site, kind: str, **arguments: Any) -> int:
    site.now += 60.0
    job = site.submit(kind, **arguments)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


def prune(site: Site, *numbers: int) -> dict[int, str]:
    """Prune; returns what is kept, and why."""
    found = site.call("backup.prune", backups=[str(number) for number in numbers])
    kept = {each["backup"]: each["reason"] for each in found["kept"]}
    assert sorted([*found["pruned"], *kept]) == sorted(numbers)
    return kept


def preview(site: Site, **rules: Any) -> dict[int, list[str]]:
    interface = OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)
    verb = "backup.retention"
    document = interface.read(verb, parse(verb, rules), wall=site.wall)
    assert document is not None
    return {row["backup"]: row["reasons"] for row in document["backups"]}


def document(site: Site, number: int) -> dict[str, Any]:
    row = site.machine.backups[BackupId(number)]
    return backup_document(row, site.machine.registry, site.machine.backups)


def chain(site: Site, number: int) -> list[int]:
    backups = site.machine.backups
    return [row.backup for row in chain_of(backups[BackupId(number)], backups)]


# --- what may go, and what comes in its place ----------------------------------------------------


def test_the_originals_of_a_chain_may_go_when_copies_of_all_of_it_stay(site: Site) -> None:
    assert set(needed_tags(site.machine.registry, site.machine.backups)) == {ORIGINALS, COPIES}
    assert prune(site, 1, 2) == {}
    assert chain(site, 4) == [4, 3]
    # Their cartridge is free to be erased, and nothing is lacking.
    assert set(needed_tags(site.machine.registry, site.machine.backups)) == {COPIES}
    del site.tapes[ORIGINALS]
    site.connect("tape")
    assert restored(site, 4) == site.disk.by_name("vol").data | restored(site, 3, name="full")
    assert document(site, 4)["needs"] == [COPIES]
    assert not document(site, 4)["broken"]


def test_one_at_a_time_as_well(site: Site) -> None:
    assert prune(site, 1) == {1: "backup 2 stands on it"}
    assert prune(site, 2) == {}
    assert prune(site, 1) == {}
    assert prune(site, 3) == {3: "backup 4 stands on it"}
    assert prune(site, 3, 4) == {}


def test_an_original_keeps_the_original_on_which_it_was_made(site: Site) -> None:
    """Its copy may be in a vault."""
    assert prune(site, 1, 4) == {1: "backup 2 stands on it"}


def test_a_copy_that_is_damaged_lets_nothing_go(site: Site) -> None:
    rows = site.machine.backups
    rows[BackupId(3)] = with_damage(rows[BackupId(3)], "object 9 is bad")
    assert prune(site, 1, 2) == {1: "backup 4 stands on it"}


def test_copies_that_go_together_keep_nothing(site: Site) -> None:
    assert prune(site, 3, 4) == {}
    assert chain(site, 2) == [2, 1]


def test_what_is_backed_up_next_stands_on_the_copy(site: Site) -> None:
    prune(site, 1, 2)
    site.disk.by_name("vol").write(content(13))
    made = run(site, "backup", volume="vol", level="incremental")
    assert site.machine.backups[BackupId(made)].parent == 4
    assert chain(site, made) == [made, 4, 3]
    data = dict(site.disk.by_name("vol").data)
    assert restored(site, made) == data
    assert prune(site, 3, 4) == {4: f"backup {made} stands on it", 3: "backup 4 stands on it"}
    # A copy of that chain can take its place in turn.
    second = run(site, "copy", backup=4)
    assert site.machine.backups[BackupId(second)].copy_of == 2
    site.set_cartridge(COPIES, status="error")
    assert restored(site, second, name="again")


def test_the_newest_time_is_stood_on_and_not_the_newest_copy(site: Site) -> None:
    newest = run(site, "backup", volume="vol", level="incremental")
    run(site, "copy", backup=1)
    second = run(site, "copy", backup=2)
    prune(site, 4)
    rows = site.machine.backups
    rows[BackupId(2)] = replace(rows[BackupId(2)], state="pruned")
    assert head(BackupId(2), rows) is rows[BackupId(second)]
    made = run(site, "backup", volume="vol", level="incremental")
    assert rows[BackupId(made)].parent == newest


def test_a_job_uses_what_stands_in(site: Site) -> None:
    prune(site, 1, 2)
    site.submit("verify", backup=4)
    assert set(users_of(site.machine.backups, site.machine.jobs)) >= {3, 4}


def test_of_two_copies_the_next_takes_over(site: Site) -> None:
    third, fourth = run(site, "copy", backup=1), run(site, "copy", backup=2)
    prune(site, 1, 2)
    assert chain(site, 4) == [4, 3]
    assert prune(site, 3) == {}
    assert chain(site, 4) == [4, third]
    assert prune(site, third) == {third: "backup 4 stands on it"}
    assert prune(site, 4) == {}
    assert chain(site, fourth) == [fourth, third]


def test_a_header_names_the_cartridges_with_all_that_it_stands_on(site: Site) -> None:
    rows, parts = site.machine.backups, site.machine.registry.parts
    uuids = {int(number): row.backup_uuid for number, row in rows.items()}
    volumes = {tag: site.machine.registry.cartridges[tag].cartridge for tag in (ORIGINALS, COPIES)}

    def needs(number: int) -> list[tuple[str, str, str]]:
        part = parts[BackupId(number), 1]
        record = decode_record(site.tapes[part.tag].objects[part.header_object] or b"")
        value = decode_metadata([record])
        assert isinstance(value, PartHeader)
        return list(value.needs)

    assert needs(1) == needs(3) == []
    assert needs(2) == needs(4) == [(uuids[1], volumes[ORIGINALS], ORIGINALS)]
    prune(site, 1, 2)
    made = run(site, "backup", volume="vol", level="incremental")
    # The full one is called what the backup between says: its copy bears that name, too.
    assert needs(made) == [
        (uuids[4], volumes[COPIES], COPIES),
        (uuids[1], volumes[COPIES], COPIES),
    ]


# --- what people see -----------------------------------------------------------------------------


def test_it_says_for_what_it_stands_and_whether_it_is_the_only_one(site: Site) -> None:
    assert [document(site, n)["is_stand_in"] for n in (1, 2, 3, 4)] == [False] * 4
    assert (document(site, 1)["copies"], document(site, 3)["copies"]) == ([3], [])
    other = run(site, "copy", backup=1)
    prune(site, 1, 2)
    assert [document(site, n)["is_stand_in"] for n in (3, 4, other)] == [True, True, False]
    assert (document(site, 3)["copies"], document(site, other)["copies"]) == ([other], [3])
    assert document(site, 4)["copies"] == []


def test_names_mean_the_oldest_copy_when_the_original_is_gone(site: Site) -> None:
    other, rows = run(site, "copy", backup=2), site.machine.backups
    name = f"vol/{rows[BackupId(2)].created}"
    assert [find_backup(rows, text).backup for text in (name, "vol/latest")] == [2, 2]
    prune(site, 2)
    assert [find_backup(rows, text).backup for text in (name, "vol/latest")] == [4, 4]
    prune(site, 4)
    assert find_backup(rows, name).backup == other


def test_a_copy_that_stands_in_is_a_point_in_time(site: Site) -> None:
    assert preview(site, last=1) == {
        4: ["last 1 of 1"],
        3: ["backup 4 stands on it"],
        2: ["last 1 of 1"],
        1: ["backup 2 stands on it"],
    }
    prune(site, 2)
    # 1 and 4 are two times of one pool now.
    assert preview(site, last=1) == {
        4: ["last 1 of 1"],
        3: ["last 1 of 1", "backup 4 stands on it"],
        1: [],
    }
    assert preview(site, last=2)[1] == ["last 2 of 2"]


def test_what_is_pruned_is_not_read_although_it_is_still_on_tape(site: Site) -> None:
    prune(site, 1, 2)
    site.tapes[COPIES].bad.add(first_record(site, 3))
    job = site.submit("restore", backup=3, new="copy")
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == 8


def test_nor_is_it_read_rather_than_to_wait(site: Site) -> None:
    prune(site, 1, 2)
    tape = site.tape.take_out(COPIES)
    site.connect("tape")
    for kind, arguments in (("restore", {"new": "copy"}), ("copy", {})):
        job = site.submit(kind, backup=3, **arguments)
        site.run()
        assert "waiting: cartridge LTO002L8" in site.machine.jobs[job].row.reason, kind  # type: ignore[index]
        site.call("job.cancel", job=job)
        site.run()
    site.tape.put(tape)
    site.connect("tape")
    assert restored(site, 3, name="again")


# --- with nothing but cartridges -----------------------------------------------------------------


def test_originals_and_copies_are_related_again_after_a_rebuild(site: Site) -> None:
    before = facts(site)
    lose_catalog(site)
    rebuild(site)
    assert facts(site) == before
    for order in ((ORIGINALS, COPIES), (COPIES, ORIGINALS)):
        lose_catalog(site, store=f"{len(order[0]):032x}")
        for tag in order:
            rebuild(site, tag)
        assert facts(site) == before, order


def test_copies_whose_originals_are_on_no_tape_stand_for_them(site: Site) -> None:
    """They are related by a UUID that nobody has any more."""
    other = run(site, "copy", backup=1)
    prune(site, 1, 2)
    site.disk.by_name("vol").write(content(13))
    made = run(site, "backup", volume="vol", level="incremental")
    data = restored(site, made)
    before = facts(site)
    lost = site.tapes.pop(ORIGINALS)
    site.connect("tape")
    lose_catalog(site)
    rebuild(site)
    rows = site.machine.backups
    assert [(row.parent, row.copy_of) for _, row in sorted(rows.items())] == [
        *((0, 0), (3, 0), (0, 3), (4, 0))
    ]
    assert chain(site, made) == [made, 4, 3]
    assert restored(site, made, name="again") == data
    # What is appended says of them what their own headers say.
    last = run(site, "backup", volume="vol", level="incremental")
    assert chain(site, last) == [last, made, 4, 3]
    lose_catalog(site, store="f" * 32)
    assert not json.loads(rebuild(site).result)["notes"]
    assert chain(site, last) == [last, made, 4, 3]
    # And when the cartridge turns up, all is as it was.
    site.tapes[ORIGINALS] = lost
    site.connect("tape")
    rebuild(site, ORIGINALS, with_pruned=True)
    after = facts(site, before["backups"])["backups"]
    assert {n: (row.parent, row.copy_of) for n, row in after.items()} == {
        n: (row.parent, row.copy_of) for n, row in before["backups"].items()
    }
    assert site.machine.backups[BackupId(1)].state == "completed"
    assert chain(site, made) == [made, 4, 1]
    assert other in after


def test_a_cartridge_with_a_backup_whose_parent_nobody_knows_is_appended_to() -> None:
    site = connected()
    site.make_volume("vol", data=DATA).track()
    run(site, "backup", volume="vol")
    site.set_cartridge(ORIGINALS, status="full")
    run(site, "backup", volume="vol", level="incremental")
    site.tapes.pop(ORIGINALS)
    site.connect("tape")
    lose_catalog(site)
    rebuild(site)
    assert document(site, 2)["broken"]
    run(site, "backup", volume="vol")
    lose_catalog(site)
    assert not json.loads(rebuild(site).result)["notes"]


# --- pure ----------------------------------------------------------------------------------------


def test_the_parts_of_the_rule(site: Site) -> None:
    rows = site.machine.backups
    one, two, three, four = (rows[BackupId(number)] for number in (1, 2, 3, 4))
    assert [origin(row) for row in (one, two, three, four)] == [1, 2, 1, 2]
    families = by_family(rows.values())
    assert families == {1: [one, three], 2: [two, four]}
    assert (kept_by(two, rows, families), kept_by(four, rows, families)) == (1, 3)
    stays = {one.backup, two.backup}
    assert kept_by(four, rows, families, staying=stays) == 1
    assert kept_by(two, rows, families, staying={three.backup}) == 1
    assert kept_by(one, rows, families) is None
    assert kept_by(two, rows, {}) is None
    weekly = replace(three, backup=BackupId(9), pool="weekly")
    both = by_family([*rows.values(), weekly])
    assert kept_by(replace(four, pool="weekly"), rows, both) == 9
    assert children_first([BackupId(n) for n in (1, 2, 3, 4)], rows) == [4, 2, 3, 1]
    assert is_head(one, rows)
    assert not is_head(three, rows)
    rows[one.backup] = replace(one, state="pruned")
    assert is_head(three, rows)
    assert head(one.backup, rows) is three
    assert head(BackupId(77), rows) is None


@pytest.mark.parametrize("harm", ["error", "gone"])
def test_an_original_stays_while_the_copy_of_it_cannot_be_relied_on(site: Site, harm: str) -> None:
    """The copy of the incremental one would else stand on nothing that can be read."""
    run(site, "copy", backup=2)
    if harm == "gone":
        site.set_cartridge(COPIES, cartridge="9" * 32)
    else:
        site.set_cartridge(COPIES, status="error")
    assert prune(site, 1, 2) == {1: "backup 4 stands on it"}
    site.set_cartridge(COPIES, status="full", cartridge=facts_of(site, COPIES))
    assert prune(site, 1) == {}


def facts_of(site: Site, tag: VolumeTag) -> str:
    return next(p.cartridge for p in site.machine.registry.parts.values() if p.tag == tag)
