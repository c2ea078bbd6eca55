"""A catalog that is older than the tapes: what it may do, and how that ends."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import ExitCode, RefusedError
from backplane.ids import NodeName
from controller.core import effects as core
from controller.core.catalog_age import is_behind
from tests.site.rebuilding import NEW_STORE, everything, facts, lose_catalog, rebuild
from tests.site.site import DATA, Site, backed_up, check_end, content, restored


def old_copy(site: Site) -> Any:
    return site.catalog.reopen()


def put_back(site: Site, copy: Any) -> None:
    """An operator puts an old copy of the catalog in its place."""
    site.catalog = copy
    site.restart()


@pytest.fixture
def stale(site: Site) -> Site:
    """A backup that the catalog knows, and one that it does not."""
    backed_up(site)
    copy = old_copy(site)
    site.catalog = copy.reopen()
    site.restart()
    backed_up(site, content(7, 8, 9), name="later")
    put_back(site, copy.reopen())
    return site


def test_it_is_noticed_and_stays_so_over_restarts(stale: Site) -> None:
    assert is_behind(stale.machine)
    assert len(stale.alarms) == 1
    stale.restart()
    assert is_behind(stale.machine)
    assert len(stale.alarms) == 1


def test_nothing_is_written_and_nothing_is_forgotten(stale: Site) -> None:
    before = everything(stale)
    with pytest.raises(RefusedError, match="older than the tapes") as caught:
        stale.submit("backup", volume="vol")
    assert caught.value.exit_code is ExitCode.REFUSED
    assert "ctl catalog rebuild --all" in caught.value.hint
    assert "ctl catalog accept" in caught.value.hint
    with pytest.raises(RefusedError, match="older than the tapes"):
        stale.submit("label", tag="LTO002L8")
    with pytest.raises(RefusedError, match="older than the tapes"):
        stale.call_now("backup.prune", backups=[1], rules={}, is_dry=False)
    assert everything(stale) == before


def test_restores_and_verifications_go_on(stale: Site) -> None:
    assert restored(stale, 1) == DATA
    job = stale.submit("verify", backup=1)
    stale.run()
    check_end(stale, job)


def test_a_rebuild_of_all_mends_it(stale: Site) -> None:
    job = rebuild(stale)
    check_end(stale, job.job)
    assert json.loads(job.result)["backups"] == 1
    assert not is_behind(stale.machine)
    assert restored(stale, 2) == content(7, 8, 9)
    job = stale.submit("backup", volume="vol")
    stale.run()
    check_end(stale, job)
    assert stale.job(job).backup == 3


def test_a_rebuild_of_some_does_not(stale: Site) -> None:
    rebuild(stale, "LTO001L8")
    assert is_behind(stale.machine)


def test_a_rebuild_that_could_not_read_a_cartridge_does_not(stale: Site) -> None:
    stale.tapes["LTO001L8"].unreadable = "it smells"
    assert rebuild(stale).state == "failed"
    assert is_behind(stale.machine)


def test_a_tape_of_others_is_named_with_what_to_do_about_it(stale: Site) -> None:
    stale.tapes["LTO002L8"].objects = [b"tar" * 100, None]
    stale.set_cartridge("LTO002L8", status="foreign")
    job = rebuild(stale)
    assert job.state == "partial"
    assert (
        "cartridges are left out: LTO002L8: cartridge LTO002L8 has no label of ours" in job.reason
    )
    assert job.reason.endswith("; if nothing of ours is in what was not read: ctl catalog accept")
    assert is_behind(stale.machine), "only a person knows"


def test_an_operator_may_say_that_nothing_is_missing(stale: Site) -> None:
    assert stale.call_now("catalog.accept") == {"was_behind": True}
    assert not is_behind(stale.machine)
    assert stale.call_now("catalog.accept") == {"was_behind": False}
    stale.restart()
    assert not is_behind(stale.machine)


def test_it_can_happen_again(stale: Site) -> None:
    stale.call_now("catalog.accept")
    copy = old_copy(stale)
    stale.catalog = copy.reopen()
    stale.restart()
    stale.set_cartridge("LTO001L8", status="full")  # Its tail is not known here.
    backed_up(stale, name="third")
    put_back(stale, copy)
    assert is_behind(stale.machine)


def test_a_job_that_the_old_copy_was_at_is_stopped(site: Site) -> None:
    """It would give a number again that is on tape already."""
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    while not site.catalog.load().backups:
        site.settle(steps=1)
    copy = old_copy(site)
    site.catalog = copy.reopen()
    site.restart()
    site.run()
    assert site.job(1).state == "completed"
    before = facts(site)
    put_back(site, copy.reopen())
    site.run()
    row = site.job(1)
    assert (row.state, row.exit_code) == ("failed", ExitCode.REFUSED)
    assert "older than the tapes" in row.reason
    job = rebuild(site)
    check_end(site, job.job)
    assert facts(site) == before


def test_a_new_catalog_with_old_nodes_is_behind_until_they_are_read(site: Site) -> None:
    backed_up(site)
    lose_catalog(site)
    assert is_behind(site.machine)
    assert site.machine.store == NEW_STORE
    with pytest.raises(RefusedError):
        site.submit("backup", volume="vol")
    rebuild(site)
    assert not is_behind(site.machine)


def test_a_first_start_is_not_behind(site: Site) -> None:
    assert not is_behind(site.machine)
    inventory = site.tape.inventory()
    drives = tuple(replace(drive, epoch=1 << 62) for drive in inventory.drives)
    message = replace(inventory, drives=drives)
    site.feed(core.FromPeer(name=NodeName("tape"), message=message))
    assert not is_behind(site.machine)  # Nobody ever gave such a number.
