"""Labels: which cartridge gets one, and which never does."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError
from backplane.tape_format import decode_metadata, decode_record
from tests.site.site import DATA, ControllerDied, Site, backed_up, check_end, connected

TAG = "LTO001L8"


def row(site: Site, tag: str = TAG) -> Any:
    return site.machine.registry.cartridges[tag]  # type: ignore[index]


def labelled(site: Site, tag: str = TAG, **arguments: Any) -> int:
    job = site.submit("label", tag=tag, **arguments)
    site.run()
    return job


def weekly(site: Site) -> None:
    site.call("pool.create", name="weekly", retain="0", allocation="continue", scratch=False)


def test_a_blank_cartridge_gets_a_label_and_goes_back_to_its_slot(site: Site) -> None:
    weekly(site)
    job = labelled(site, pool="weekly")
    check_end(site, job)
    found = row(site)
    assert (found.status, found.pool, found.sequence, found.end) == ("writable", "weekly", 0, 4)
    header = decode_metadata([decode_record(site.tapes[TAG].objects[1] or b"")])
    assert header.cartridge == found.cartridge == json.loads(site.job(job).result)["cartridge"]
    assert header.tag == TAG
    assert site.tape.drives["drive-0"].loaded == ""
    site.make_volume("vol", data=DATA)
    backup = site.submit("backup", volume="vol", pool="weekly")
    site.run()
    check_end(site, backup)
    assert row(site).sequence == 1


def test_one_that_is_labelled_as_scratch_is_taken_by_the_first_pool(site: Site) -> None:
    check_end(site, labelled(site))
    assert row(site).pool == ""
    weekly(site)
    site.call("pool.set", name="weekly", retain="", allocation="", scratch="yes")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", pool="weekly")
    site.run()
    check_end(site, job)
    assert (row(site).pool, row(site).sequence) == ("weekly", 1)


def test_a_label_is_written_again_for_another_pool(site: Site) -> None:
    check_end(site, labelled(site))
    before = row(site).cartridge
    weekly(site)
    check_end(site, labelled(site, pool="weekly"))
    assert site.tape.erased == [TAG]
    assert row(site).pool == "weekly"
    assert row(site).cartridge != before


def test_what_holds_a_living_backup_is_never_labelled_forced_or_not(site: Site) -> None:
    backup = backed_up(site)
    for is_forced in (False, True):
        with pytest.raises(RefusedError, match=f"backup {backup} is on it"):
            site.submit("label", tag=TAG, force=is_forced)
    site.set_cartridge(TAG, status="error")
    with pytest.raises(RefusedError, match=f"backup {backup} is on it"):
        site.submit("label", tag=TAG, force=True)
    assert site.tape.erased == []


def test_what_nobody_wants_any_more_is_erased_first(site: Site) -> None:
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    job = labelled(site)
    check_end(site, job)
    assert site.tape.erased == [TAG]
    assert f"backup {backup}, which is pruned, is gone from cartridge {TAG}" in site.log(job)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hold": "lawsuit"}, "it is held: lawsuit"),
        ({"retain_until": "2026-03-01T00:00:00Z"}, "it is retained until"),
        ({"status": "quarantined", "detail": "two"}, "it is quarantined: two"),
        ({"status": "retired"}, "it is retired"),
        ({"status": "worm"}, "it is worm"),
        ({"status": "cleaning"}, "it is cleaning"),
    ],
)
def test_what_is_kept_is_not_labelled_whoever_asks(
    site: Site, changes: dict[str, Any], words: str
) -> None:
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    site.set_cartridge(TAG, **changes)
    for is_forced in (False, True):
        with pytest.raises(RefusedError, match=words):
            site.submit("label", tag=TAG, force=is_forced)


def foreign(site: Site) -> None:
    site.tapes[TAG].objects = [b"VOL1 of somebody else", None]
    site.tapes[TAG].status = "foreign"
    site.connect("tape")


def test_a_foreign_tape_is_labelled_only_with_force(site: Site) -> None:
    foreign(site)
    assert row(site).status == "foreign"
    with pytest.raises(RefusedError, match="it is foreign") as refused:
        site.submit("label", tag=TAG)
    assert "--force" in refused.value.hint
    check_end(site, labelled(site, force=True))
    assert site.tape.erased == [TAG]
    assert row(site).status == "writable"


def test_the_node_has_the_last_word(site: Site) -> None:
    foreign(site)
    site.tapes[TAG].refuses_erase = "retained by another catalog until 2030"
    job = labelled(site, force=True)
    check_end(site, job, "failed")
    assert "retained by another catalog until 2030" in site.job(job).reason
    assert row(site).status == "foreign", "it is as good as it was"
    assert site.tapes[TAG].objects


def test_a_cartridge_that_is_not_blank_after_all_is_not_labelled(site: Site) -> None:
    site.tapes[TAG].objects = [b"somebody's"]
    job = labelled(site)
    check_end(site, job, "failed")
    assert "was blank and is not any more" in site.job(job).reason
    assert site.tapes[TAG].objects == [b"somebody's"]
    assert row(site).status == "error"


def test_a_cartridge_that_is_away_or_protected_is_refused(site: Site) -> None:
    site.tapes[TAG].is_write_protected = True
    site.connect("tape")
    with pytest.raises(RefusedError, match="is write protected"):
        site.submit("label", tag=TAG)
    site.tape.take_out(TAG)
    site.connect("tape")
    with pytest.raises(NotFoundError, match="is in no library: offline"):
        site.submit("label", tag=TAG)


@pytest.mark.parametrize("objects", range(4))
def test_a_mover_that_dies_in_a_label_costs_nothing_but_time(objects: int) -> None:
    site = connected()
    site.lose_after = [objects]
    job = site.submit("label", tag=TAG)
    site.run(20)
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    assert row(site).status == "writable"


@pytest.mark.parametrize("effects", range(1, 40, 2))
def test_a_controller_that_dies_anywhere_goes_on_with_the_label(effects: int) -> None:
    site = connected()
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    job = site.submit("label", tag=TAG)
    site.crash_at = site.effects_seen + effects
    with contextlib.suppress(ControllerDied):
        site.run()
    if site.crash_at is not None:
        site.restart()
    site.run()
    check_end(site, job)
    assert (row(site).status, row(site).sequence) == ("writable", 0)


def test_a_label_that_is_cancelled_is_finished_by_the_next(site: Site) -> None:
    job = site.submit("label", tag=TAG)
    site.lose_after = [2]
    while site.movers["m1"].is_alive and site.wire:
        site.deliver(*site.wire.pop(0))
    site.begin_call("job.cancel", job=job)
    site.run(60)
    check_end(site, job, "cancelled")
    site.connect_mover("m2")
    check_end(site, labelled(site))
    assert row(site).status == "writable"
    assert site.alarms == []


def test_another_cartridge_than_the_one_that_was_looked_at_is_not_erased(site: Site) -> None:
    """It was swapped after the last inventory: what is on it, nobody has said that it may go."""
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    other = connected()
    other.ids = iter(range(10**6, 2 * 10**6))  # type: ignore[assignment]
    backed_up(other)
    site.tapes[TAG].objects = list(other.tapes[TAG].objects)
    job = labelled(site)
    check_end(site, job, "failed")
    assert "is another one" in site.job(job).reason
    assert site.tape.erased == []
    assert row(site).status == "error"


def test_force_does_not_erase_what_its_label_says_is_another_cartridge_with_a_living_backup(
    site: Site,
) -> None:
    """Somebody has swapped two stickers, and the one with the barcode that is wanted was taken away."""
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    site.call("tape.set", tag=TAG, status="full", node="", pool="")
    living = site.submit("backup", volume="vol")
    site.run()
    check_end(site, living)
    [part] = site.machine.registry.parts_of(2)
    other = part.tag
    assert other != TAG
    site.tapes[TAG].objects = site.tapes.pop(other).objects
    site.connect("tape")
    assert row(site).status == "quarantined"
    site.call("tape.set", tag=TAG, status="error", node="", pool="")
    job = labelled(site, force=True)
    check_end(site, job, "failed")
    assert site.tape.erased == []
    assert "backup 2 is on it" in site.job(job).reason
    assert row(site).status == "error"


@pytest.mark.parametrize("why", ["held", "retained"])
def test_force_does_not_erase_what_is_kept_under_another_barcode(site: Site, why: str) -> None:
    backup = backed_up(site)
    site.call("backup.prune", backups=[str(backup)])
    held = {"hold": "for the auditors"} if why == "held" else {"retain_until": "2030-01-01"}
    site.machine.record(replace(row(site), **held))
    second = "LTO002L8"
    site.tapes[second].objects = site.tapes.pop(TAG).objects
    site.connect("tape")
    site.call("tape.set", tag=second, status="error", node="", pool="")
    job = labelled(site, second, force=True)
    check_end(site, job, "failed")
    assert f"its label says that it is {TAG}, which is {why}" in site.job(job).reason
    site.machine.record(replace(row(site), hold="", retain_until=""))
    check_end(site, labelled(site, second, force=True))
    assert row(site, second).status == "writable"
