"""What operators say of cartridges, and what they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError, UsageError
from backplane.wire.messages import TapeRetain
from controller.core.effects import Tick
from tests.site.site import DATA, Site, backed_up

TAG = "LTO001L8"


def row(site: Site, tag: str = TAG) -> Any:
    return site.machine.registry.cartridges[tag]  # type: ignore[index]


def change(site: Site, tag: str = TAG, **changes: Any) -> dict[str, Any]:
    return site.call("tape.set", tag=tag, **({"status": "", "node": "", "pool": ""} | changes))


def test_a_hold_is_the_catalogs_and_the_nodes(site: Site) -> None:
    told = site.call("tape.protect", tag=TAG, reason="lawsuit 7")
    assert told["hold"] == "lawsuit 7"
    assert site.tapes[TAG].is_held
    site.restart()
    assert row(site).hold == "lawsuit 7"
    assert site.call("tape.unprotect", tag=TAG)["hold"] == ""
    assert not site.tapes[TAG].is_held


def test_a_hold_of_what_is_away_reaches_the_node_when_it_comes_back(site: Site) -> None:
    away = site.tape.take_out(TAG)
    site.connect("tape")
    assert site.call("tape.protect", tag=TAG, reason="lawsuit")["hold"] == "lawsuit"
    site.tape.put(away)
    site.connect("tape")
    site.settle()
    assert away.is_held


def test_a_hold_of_what_is_away_is_lifted_here_and_lasts_at_its_node(site: Site) -> None:
    """Or a cartridge that was destroyed could never be let go."""
    site.call("tape.protect", tag=TAG, reason="lawsuit 7")
    away = site.tape.take_out(TAG)
    site.connect("tape")
    assert site.call("tape.unprotect", tag=TAG)["hold"] == ""
    site.restart()
    assert row(site).hold == ""
    site.tape.put(away)
    site.connect("tape")
    site.settle()
    assert away.is_held
    assert site.call("tape.unprotect", tag=TAG)["hold"] == ""
    assert not away.is_held


def test_a_hold_that_only_the_node_knows_of_outlives_the_next_commit(site: Site) -> None:
    """A catalog that was rebuilt does not know who holds a cartridge, and lets nothing go."""
    backed_up(site)
    site.tapes[TAG].is_held = True
    site.connect("tape")
    site.call("pool.set", name="default", retain="30d", allocation="", scratch="")
    site.run(site.submit("backup", volume="vol"))
    assert row(site).retain_until
    assert site.tapes[TAG].is_held
    site.call("tape.unprotect", tag=TAG)
    assert not site.tapes[TAG].is_held


def test_a_hold_that_comes_while_a_part_is_committed_stays_when_the_commit_asks_again(
    site: Site,
) -> None:
    backed_up(site)
    site.call("pool.set", name="default", retain="30d", allocation="", scratch="")
    site.submit("backup", volume="vol")
    while not isinstance(site.wire[0][1], TapeRetain):
        site.deliver(*site.wire.pop(0))
    _, asked = site.wire.pop(0)  # It is lost.
    assert not asked.is_held
    site.call("tape.protect", tag=TAG, reason="lawsuit")
    site.now += 10
    site.feed(Tick())
    again = [message for _, message in site.wire if isinstance(message, TapeRetain)]
    assert [message.is_held for message in again] == [True]
    site.run()
    assert site.machine.backups[2].state == "completed"  # type: ignore[index]
    assert site.tapes[TAG].is_held


def test_a_hold_has_a_reason(site: Site) -> None:
    for reason in ("", "  ", "x" * 201):
        with pytest.raises(UsageError, match="a hold has a reason"):
            site.call("tape.protect", tag=TAG, reason=reason)


def test_a_cartridge_that_is_about_to_be_erased_cannot_be_held_any_more(site: Site) -> None:
    backed_up(site)
    site.set_cartridge(TAG, status="full")
    site.set_cartridge("LTO002L8", status="retired")
    site.call("backup.prune", backups=["1"])
    job = site.submit("backup", volume="vol")
    while not site.machine.jobs[job].plan.get("erase"):  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    with pytest.raises(RefusedError, match=f"job {job} is about to erase"):
        site.call_now("tape.protect", tag=TAG, reason="too late")


@pytest.mark.parametrize(
    ("before", "status", "after"),
    [
        ("writable", "retired", "retired"),
        ("quarantined", "writable", "writable"),
        ("error", "full", "full"),
        ("retired", "writable", "writable"),
        ("foreign", "retired", "retired"),
    ],
)
def test_an_operator_gives_a_status(site: Site, before: str, status: str, after: str) -> None:
    backed_up(site)
    site.set_cartridge(TAG, status=before)
    assert change(site, status=status)["status"] == after
    site.restart()
    assert row(site).status == after


@pytest.mark.parametrize(
    ("before", "status", "error", "words"),
    [
        ("writable", "foreign", UsageError, "is no status to give"),
        ("writable", "quarantined", UsageError, "is no status to give"),
        ("writable", "blank", RefusedError, "is not known to be blank"),
        ("foreign", "writable", RefusedError, "is foreign"),
        ("worm", "writable", RefusedError, "is worm"),
        ("cleaning", "blank", RefusedError, "is cleaning"),
        ("writable", "cleaning", RefusedError, "is not known to be a cleaning cartridge"),
    ],
)
def test_what_is_not_true_is_not_given(
    site: Site, before: str, status: str, error: type[BackupError], words: str
) -> None:
    backed_up(site)
    site.set_cartridge(TAG, status=before)
    with pytest.raises(error, match=words):
        change(site, status=status)
    assert row(site).status == before


def test_a_blank_cartridge_is_blank_again_and_not_writable(site: Site) -> None:
    change(site, status="retired")
    with pytest.raises(RefusedError, match="has no label of ours"):
        change(site, status="writable")
    assert change(site, status="blank")["status"] == "blank"


def test_a_cleaning_cartridge_that_was_retired_can_clean_again(site: Site) -> None:
    site.tapes[TAG].status = "cleaning"
    site.set_cartridge(TAG, status="cleaning")
    site.connect("tape")
    with pytest.raises(RefusedError, match="a cleaning cartridge: it belongs to no pool"):
        change(site, pool="default")
    assert change(site, status="retired")["status"] == "retired"
    for status in ("blank", "writable", "full"):
        with pytest.raises(RefusedError, match="is a cleaning cartridge"):
            change(site, status=status)
    assert change(site, status="cleaning")["status"] == "cleaning"


def test_only_a_cartridge_without_data_changes_its_pool(site: Site) -> None:
    site.call("pool.create", name="weekly", retain="0", allocation="continue", scratch=False)
    assert change(site, "LTO002L8", pool="weekly")["pool"] == "weekly"
    assert change(site, "LTO002L8", pool="scratch")["pool"] == ""
    with pytest.raises(NotFoundError, match="no pool is named"):
        change(site, "LTO002L8", pool="monthly")
    backed_up(site)
    with pytest.raises(RefusedError, match="has data of pool default"):
        change(site, pool="weekly")


def test_a_home_has_to_have_the_very_cartridge(site: Site) -> None:
    backed_up(site)
    with pytest.raises(NotFoundError, match="no storage node is named"):
        change(site, node="other")
    site.tape.take_out(TAG)
    site.connect("tape")
    with pytest.raises(NotFoundError, match="tape has no cartridge LTO001L8"):
        change(site, node="tape")


def test_a_vault_has_a_plain_name(site: Site) -> None:
    assert site.call("tape.vault", tag=TAG, vault="bank 3")["vault"] == "bank 3"
    assert site.call("tape.vault", tag=TAG, vault="")["vault"] == ""
    for name in ("x" * 65, "a\nb", "in (here"):
        with pytest.raises(UsageError, match="a vault has a name"):
            site.call("tape.vault", tag=TAG, vault=name)


def test_what_a_job_works_with_is_left_alone(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while "tag" not in site.machine.jobs[job].plan:  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    with pytest.raises(BusyError, match=f"used by job {job}"):
        site.call_now("tape.set", tag=TAG, status="retired", node="", pool="")
