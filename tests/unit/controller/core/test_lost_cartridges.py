"""A cartridge that was destroyed or lost: what forgetting it costs, who is asked, and what goes on without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import BusyError, ExitCode, NotFoundError, RefusedError, RetainedError
from backplane.ids import BackupId, JobId, VolumeTag
from backplane.wire.messages import TapeRetain
from controller.core.damage import bad_of, damage_of
from controller.core.effects import Tick
from controller.core.lost_cartridges import CHAIN, LOST, PARTIAL, WHOLE, consent_to, losses
from controller.operator_interface import OperatorInterface
from tests.site.arguments import parse
from tests.site.rebuilding import rebuild
from tests.site.site import DATA, Site, backed_up, check_end, connected
from tests.site.tape import Tape

ONE, TWO, THREE = "LTO001L8", "LTO002L8", "LTO003L8"


def lose(site: Site, tag: str = ONE) -> Tape:
    """Somebody takes a cartridge out of the library, and it burns."""
    lost = site.tape.take_out(tag)
    site.connect("tape")
    return lost


def read(site: Site, verb: str, **arguments: Any) -> dict[str, Any]:
    interface = OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)
    document = interface.read(verb, parse(verb, arguments), wall=site.wall)
    assert document is not None
    return document


def shown(site: Site, tag: str = ONE, *, retained: bool = False) -> dict[str, Any]:
    return read(site, "tape.losses", tag=tag, retained=retained)


def forget(site: Site, tag: str = ONE, **options: Any) -> dict[str, Any]:
    """Forget a cartridge, with consent to what is shown unless another one is given."""
    if "consent" not in options:
        options["consent"] = shown(site, tag, retained=options.get("retained", False))["consent"]
    return site.call("tape.forget", **({"tag": tag, "retained": False, "unseen": False} | options))


def outcomes(site: Site, tag: str = ONE) -> list[tuple[int, str]]:
    found = losses(site.machine.registry, site.machine.backups, VolumeTag(tag))
    return [(each.row.backup, each.outcome) for each in found]


def broken(site: Site, backup: int) -> str:
    return str(read(site, "backup.show", backup=str(backup))["broken"])


def stored(site: Site, **options: Any) -> int:
    job = site.submit("backup", volume="vol", **options)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


def restored(site: Site, backup: int, *, state: str = "completed", **options: Any) -> Any:
    name = f"copy-{site.call_number}"
    job = site.submit("restore", backup=backup, new=name, **options)
    site.run()
    check_end(site, job, state)
    return site.job(job), name


@pytest.fixture
def chain() -> Site:
    """A full backup on the first cartridge, an incremental on the second; three cartridges, two drives."""
    site = connected(drives=2, tags=(ONE, TWO, THREE))
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    stored(site)
    site.set_cartridge(ONE, status="full")
    site.now += 60
    volume.write({10: b"n" * 512})
    stored(site, level="incremental")
    assert [part.tag for part in site.machine.registry.parts.values()] == [ONE, TWO]
    return site


# --- what it costs --------------------------------------------------------------------------------


def test_what_a_cartridge_takes_with_it_is_said_of_each_backup(chain: Site) -> None:
    assert outcomes(chain) == [(1, LOST), (2, CHAIN)]
    assert outcomes(chain, TWO) == [(2, LOST)]
    assert outcomes(chain, THREE) == []
    lose(chain)
    document = shown(chain)
    assert (document["location"], document["backups_count"]) == ("offline", 2)
    assert [each["words"] for each in document["backups"]] == [
        "nothing of it is left",
        "its chain is broken: it stands on backup 1",
    ]
    assert ONE in chain.machine.registry.cartridges, "nothing has happened yet"


def test_a_second_copy_saves_a_backup_and_what_stands_on_it(chain: Site) -> None:
    chain.set_cartridge(TWO, status="full")
    job = chain.submit("copy", backup=1)
    chain.run()
    check_end(chain, job)
    (tag,) = {part.tag for part in chain.machine.registry.parts_of(3)}
    assert outcomes(chain) == [(1, WHOLE)]
    lose(chain)
    assert shown(chain)["backups"][0]["words"] == (
        "can still be restored: backup 3 of the same data"
    )
    forget(chain)
    assert (broken(chain, 1), broken(chain, 2)) == ("", "")
    assert read(chain, "backup.show", backup="1")["needs"] == [tag]
    _, name = restored(chain, 2)
    assert chain.disk.by_name(name).data == chain.disk.by_name("vol").data
    # What is left of both, and what stands on them, goes with the copy.
    assert outcomes(chain, tag) == [(1, LOST), (2, CHAIN), (3, LOST)]


def test_a_backup_over_two_cartridges_keeps_what_is_on_the_other() -> None:
    site = connected()
    site.tapes[ONE].capacity = 9
    backed_up(site)
    assert len({part.tag for part in site.machine.registry.parts_of(1)}) == 2
    assert outcomes(site) == [(1, PARTIAL)]
    lose(site)
    assert forget(site)["backups"][0]["words"] == (
        "1 of 2 parts are left: --keep-going restores what is on them"
    )
    parts = read(site, "backup.show", backup="1")["parts_detail"]
    assert [(each["is_gone"], each["is_forgotten"]) for each in parts] == [
        (True, True),
        (False, False),
    ]
    job, _ = restored(site, 1, state="partial", keep_going=True)
    assert (job.exit_code, json.loads(job.result)["holes"]["blocks"] > 0) == (3, True)


# --- who is asked ---------------------------------------------------------------------------------


def test_without_consent_to_all_that_is_lost_nothing_happens(chain: Site) -> None:
    lose(chain)
    for consent in ("", consent_to([]), "0" * 64):
        with pytest.raises(
            RefusedError, match=r"what backups need: 1 \(nothing of it is left\), 2"
        ):
            forget(chain, consent=consent)
    before = shown(chain)["consent"]
    chain.machine.backups.pop(BackupId(2))
    with pytest.raises(RefusedError, match="what backups need"):
        forget(chain, consent=before)
    assert ONE in chain.machine.registry.cartridges


def test_what_nobody_needs_goes_without_consent_and_a_second_time_is_no_error(site: Site) -> None:
    lose(site)
    assert forget(site, consent="")["forgotten"]
    assert ONE not in site.machine.registry.cartridges
    assert forget(site, consent="") == {
        "tag": ONE,
        "forgotten": False,
        "backups": [],
        "backups_count": 0,
    }
    site.restart()
    assert ONE not in site.machine.registry.cartridges
    assert site.alarms == []
    with pytest.raises(NotFoundError):
        shown(site)


def test_what_is_in_a_library_is_not_lost(site: Site) -> None:
    with pytest.raises(RefusedError, match="what is in a library is not lost"):
        forget(site, consent="")


def test_a_hold_is_lifted_before_and_a_retention_is_named(site: Site) -> None:
    site.call("pool.set", name="default", retain="30d", allocation="", scratch="")
    backed_up(site)
    site.call("tape.protect", tag=ONE, reason="lawsuit 7")
    lose(site)
    with pytest.raises(RetainedError, match="is held: lawsuit 7"):
        forget(site, retained=True)
    site.call("tape.unprotect", tag=ONE)
    with pytest.raises(RetainedError, match=r"is retained until 2026-02-"):
        forget(site)
    assert forget(site, retained=True)["forgotten"]


def test_while_its_node_is_away_somebody_has_to_say_that_it_is_lost_all_the_same(
    site: Site,
) -> None:
    site.disconnect("tape")
    with pytest.raises(BusyError, match="nobody can see that cartridge LTO001L8 is not in"):
        forget(site, consent="")
    assert not shown(site)["is_node_online"]
    assert forget(site, consent="", unseen=True)["forgotten"]
    # It was not: it comes back as what it is.
    site.connect("tape")
    assert site.machine.registry.cartridges[VolumeTag(ONE)].status == "blank"


def test_what_a_job_works_with_is_not_forgotten(chain: Site) -> None:
    job = chain.submit("verify", backup=1)
    while chain.machine.jobs[JobId(job)].plan.get("tag") != ONE:
        chain.deliver(*chain.wire.pop(0))
    lose(chain)
    with pytest.raises(BusyError, match=f"used by job {job}"):
        shown(chain)


def test_a_backup_that_goes_on_counts_on_what_it_has_written() -> None:
    site = connected(tags=(ONE,))
    site.tapes[ONE].capacity = 9
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason.startswith("waiting: scratch cartridge")
    lose(site)
    with pytest.raises(BusyError, match=rf"job {job} \(backup\) has written a part on it"):
        forget(site, consent="")


def test_a_rebuild_that_is_to_read_it_is_waited_for(chain: Site) -> None:
    asked: dict[str, Any] = {"token": "r", "tags": [TWO, ONE], "all": False}
    chain.call_now("catalog.rebuild", **asked, adopt=False, with_pruned=False)
    lose(chain)
    with pytest.raises(BusyError, match=r"\(rebuild\) reads it"):
        shown(chain)


def test_an_old_copy_of_the_catalog_forgets_nothing(site: Site) -> None:
    lose(site)
    site.machine.reach("behind", 1)
    with pytest.raises(RefusedError, match="older than the tapes"):
        forget(site, consent="")


def test_what_its_node_is_asked_meanwhile_is_asked_again_and_answered_in_vain(site: Site) -> None:
    lost = lose(site)
    site.call("tape.protect", tag=ONE, reason="lawsuit")
    site.tape.put(lost)
    site.connect("tape")
    assert any(isinstance(message, TapeRetain) for _, message in site.wire)
    site.wire.clear()  # It is lost, and so is the cartridge.
    lose(site)
    site.wire.clear()
    site.call_now("tape.unprotect", tag=ONE)
    forget(site)
    site.now += 10
    site.feed(Tick())
    assert any(isinstance(message, TapeRetain) for _, message in site.wire)
    site.settle()


# --- what goes on without it ----------------------------------------------------------------------


def test_a_lost_backup_says_so_and_the_next_one_is_full(chain: Site) -> None:
    lose(chain)
    forget(chain)
    assert chain.alarms[-1] == (
        "cartridge LTO001L8 was taken out of the catalog, with data of backups 1, 2"
    )
    assert broken(chain, 1) == "cartridge LTO001L8 with part 1 of backup 1 is gone"
    assert broken(chain, 2) == broken(chain, 1)
    job, name = restored(chain, 2, state="failed")
    assert job.exit_code == ExitCode.DAMAGED
    assert "cartridge LTO001L8 is not in the catalog any more, and no copy has it" in job.reason
    assert any(
        f"needed, in order: {ONE} (not in the catalog any more), {TWO}" in line
        for line in chain.log(job.job)
    )
    assert name not in [
        row.name for row in chain.machine.registry.volumes.values() if not row.is_deleted
    ]
    number = stored(chain, level="incremental")
    row = chain.machine.backups[BackupId(number)]
    assert (row.level, row.parent) == ("full", 0)
    fallback = json.loads(chain.job(row.job).result)["fallback"]
    assert "LTO001L8 with part 1 of backup 1 is gone" in fallback
    chain.restart()
    assert broken(chain, 1)
    _, name = restored(chain, number)
    assert chain.disk.by_name(name).data == chain.disk.by_name("vol").data


def test_a_job_that_waits_for_it_ends_or_takes_the_copy(chain: Site) -> None:
    lose(chain)
    waiting = chain.submit("restore", backup=1, new="one")
    chain.settle()
    assert chain.job(waiting).reason == "waiting: cartridge LTO001L8 (offline)"
    assert shown(chain)["jobs"] == [waiting]
    forget(chain)
    chain.run()
    check_end(chain, waiting, "failed")
    assert "LTO001L8 with part 1 of backup 1 is not in the catalog any more" in (
        chain.job(waiting).reason
    )
    assert read(chain, "tape.status")["requests"] == []


def test_a_label_job_for_it_fails_in_words(site: Site) -> None:
    site.call("drive.down", drive="drive-0", reason="dust")
    job = site.submit("label", tag=ONE)
    lose(site)
    forget(site)
    site.run()
    check_end(site, job, "failed")
    assert "no cartridge has the barcode" in site.job(job).reason


def test_a_verification_names_what_is_gone(chain: Site) -> None:
    lose(chain)
    forget(chain)
    job = chain.submit("verify", backup=1)
    chain.run()
    check_end(chain, job, "failed")
    assert "is not in the catalog any more" in chain.job(job).reason
    assert json.loads(chain.job(job).result)["hit"][0]["backup"] == 1
    row = chain.machine.backups[BackupId(1)]
    assert (damage_of(row), bad_of(row)) == ("", []), "the catalog says it while it is so"
    with pytest.raises(NotFoundError):
        chain.submit("verify", tag=ONE)
    job = chain.submit("verify", pool="default")
    chain.run()
    check_end(chain, job)


def test_a_schedule_that_names_it_is_told(site: Site) -> None:
    arguments = parse("job.submit", {"token": "-", "kind": "verify", "tag": ONE})
    del arguments["token"]
    site.call("schedule.create", name="weekly", calendar="daily", arguments=arguments)
    lose(site)
    assert shown(site)["schedules"] == ["weekly"]


# --- rules ----------------------------------------------------------------------------------------


def kept(site: Site, **rules: Any) -> dict[int, list[str]]:
    rows = read(site, "backup.retention", **rules)["backups"]
    return {row["backup"]: row["reasons"] for row in rows}


def test_what_is_lost_takes_no_place_in_the_rules(chain: Site) -> None:
    """Or a backup that can be restored would be pruned for the sake of one that cannot."""
    chain.set_cartridge(TWO, status="full")
    good = stored(chain)
    lose(chain, TWO)
    assert kept(chain, last=1) == {3: ["last 1 of 1"], 2: [], 1: []}
    forget(chain, TWO)
    assert kept(chain, last=2) == {3: ["last 1 of 2"], 2: [], 1: ["last 2 of 2"]}
    assert [row["is_lost"] for row in read(chain, "backup.retention", last=2)["backups"]] == [
        False,
        True,
        False,
    ]
    assert chain.call("backup.prune", backups=["2"])["pruned"] == [2]
    assert good == 3


def test_what_is_only_incomplete_is_counted_for_itself(chain: Site) -> None:
    """It has something that --keep-going restores, and it is no point in time any more."""
    lose(chain)
    forget(chain)
    assert kept(chain, last=1) == {2: ["last 1 of 1"], 1: ["backup 2 stands on it"]}
    good = stored(chain)
    assert kept(chain, last=1) == {
        good: ["last 1 of 1"],
        2: ["last 1 of 1"],
        1: ["backup 2 stands on it"],
    }


def test_the_copy_of_a_lost_original_is_the_point_in_time(chain: Site) -> None:
    job = chain.submit("copy", backup=2)
    chain.run()
    check_end(chain, job)
    chain.set_cartridge(THREE, status="full")
    assert [part.tag for part in chain.machine.registry.parts_of(3)] != [TWO]
    lose(chain, TWO)
    forget(chain, TWO)
    found = kept(chain, last=1)
    assert found == {3: ["last 1 of 1"], 2: [], 1: ["backup 3 stands on it"]}


def test_what_stands_on_a_lost_original_keeps_its_copy(chain: Site) -> None:
    chain.set_cartridge(TWO, status="full")
    job = chain.submit("copy", backup=1)
    chain.run()
    check_end(chain, job)
    lose(chain)
    forget(chain)
    assert kept(chain, last=1) == {2: ["last 1 of 1"], 3: ["backup 2 stands on it"], 1: []}
    found = chain.call("backup.prune", backups=["1", "3"])
    assert found == {"pruned": [1], "kept": [{"backup": 3, "reason": "backup 2 stands on it"}]}
    _, name = restored(chain, 2)
    assert chain.disk.by_name(name).data == chain.disk.by_name("vol").data


# --- it turns up again ----------------------------------------------------------------------------


def test_one_that_turns_up_again_is_recognised_and_a_rebuild_makes_all_good(chain: Site) -> None:
    lost = lose(chain)
    forget(chain)
    alarms = len(chain.alarms)
    chain.tape.put(lost)
    chain.connect("tape")
    row = chain.machine.registry.cartridges[VolumeTag(ONE)]
    assert (row.status, row.detail) == (
        "foreign",
        "it was forgotten, and has parts of backup 1: ctl catalog rebuild --from LTO001L8",
    )
    assert len(chain.alarms) == alarms, "no twin"
    with pytest.raises(RefusedError, match="backup 1 is on it"):
        chain.submit("label", tag=ONE, force=True)
    waiting = chain.submit("restore", backup=2, new="one")
    chain.settle()
    assert "ctl catalog rebuild --from LTO001L8" in chain.job(waiting).reason
    job = rebuild(chain, ONE)
    check_end(chain, job.job)
    row = chain.machine.registry.cartridges[VolumeTag(ONE)]
    assert (row.status, row.sequence, row.pool) == ("writable", 1, "default")
    chain.run()
    check_end(chain, waiting)
    assert chain.disk.by_name("one").data == chain.disk.by_name("vol").data
    assert broken(chain, 2) == ""
    number = stored(chain, level="incremental")
    assert chain.machine.backups[BackupId(number)].parent == 2


def test_its_barcode_may_be_another_cartridges(chain: Site) -> None:
    lost = lose(chain)
    forget(chain)
    chain.tape.put(connected(tags=(ONE,)).tape.take_out(ONE))
    chain.connect("tape")
    assert chain.machine.registry.cartridges[VolumeTag(ONE)].status == "blank"
    parts = read(chain, "backup.show", backup="1")["parts_detail"]
    assert (parts[0]["is_gone"], parts[0]["is_forgotten"]) == (True, True)
    chain.set_cartridge(TWO, status="full")
    chain.set_cartridge(THREE, status="retired")
    number = stored(chain)
    assert [part.tag for part in chain.machine.registry.parts_of(number)] == [ONE]
    assert broken(chain, number) == ""
    assert "is gone" in broken(chain, 1)
    # The old one in its place is another one, and nobody takes it for this.
    chain.tape.take_out(ONE)
    chain.tape.put(lost)
    chain.connect("tape")
    assert chain.machine.registry.cartridges[VolumeTag(ONE)].status == "quarantined"


def test_a_copy_is_read_before_one_that_has_come_back_and_was_not_read_in(chain: Site) -> None:
    job = chain.submit("copy", backup=1)
    chain.run()
    check_end(chain, job)
    lost = lose(chain)
    forget(chain)
    chain.tape.put(lost)
    chain.connect("tape")
    _, name = restored(chain, 1)
    assert chain.disk.by_name(name).data == DATA
