"""Drives in CTA's words, and what is asked of operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import NodeName
from controller.catalog.store import DriveRow
from controller.core import library_documents as words
from tests.site.site import DATA, Site

KEY = (NodeName("tape"), "drive-0")


def activity(site: Site) -> tuple[str, str]:
    return words.activity_of(site.machine.registry, site.machine.jobs, *KEY)


def set_down(site: Site, reason: str = "squeaks") -> None:
    row = DriveRow(node=KEY[0], drive=KEY[1], is_down=True, reason=reason, since="")
    site.machine.registry.drives[KEY] = row


def medium(site: Site, **changes: Any) -> None:
    drives = site.machine.registry.nodes[KEY[0]].drives
    drives["drive-0"] = replace(drives["drive-0"], **changes)


def test_a_free_drive_is_up_and_says_what_ails_it(site: Site) -> None:
    assert activity(site) == ("Up", "")
    medium(site, state="error")
    assert activity(site) == ("Up", "the last write failed")
    medium(site, needs_cleaning=True)
    assert activity(site) == ("Up", "asks for a cleaning cartridge")


def test_what_a_job_does_comes_before_what_an_operator_has_said(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while KEY not in site.machine.registry.drive_claims:
        site.deliver(*site.wire.pop(0))
    site.machine.registry.drive_activity.clear()
    assert activity(site) == ("Starting", "")
    site.machine.registry.drive_activity[KEY] = words.TRANSFERRING
    set_down(site)
    assert activity(site) == ("Transferring", "squeaks")
    site.machine.jobs[job].plan["ending"] = {}  # type: ignore[index]
    assert activity(site) == ("CleaningUp", "squeaks")
    site.machine.registry.release(job)  # type: ignore[arg-type]
    assert activity(site) == ("Down", "squeaks")


def test_a_drive_whose_node_is_away_is_unknown(site: Site) -> None:
    set_down(site)
    site.disconnect("tape")
    assert activity(site) == ("Unknown", "squeaks")


@pytest.mark.parametrize(
    ("what", "state"), [("unload", "Unloading"), ("load LTO001L8", "Mounting")]
)
def test_an_operators_call_is_seen(site: Site, what: str, state: str) -> None:
    with site.machine.registry.by_hand(*KEY, what):
        assert activity(site) == (state, what)


def test_the_status_counts_cartridges_and_lists_drives(site: Site) -> None:
    site.set_cartridge("LTO001L8", status="full")
    told = words.status_document(site.machine.registry, site.machine.jobs)
    assert told["cartridges"] == {"blank": 1, "full": 1}
    (drive,) = told["drives"]
    assert (drive["name"], drive["state"], drive["is_down"]) == ("tape/drive-0", "Up", False)
    assert told["requests"] == []


def test_what_jobs_ask_of_operators_is_listed_by_job(site: Site) -> None:
    for tag in site.tapes:
        site.set_cartridge(tag, status="retired")
    for name in ("a", "b"):
        site.make_volume(name, data=DATA)
    jobs = [site.submit("backup", volume=name) for name in ("a", "b")]
    site.run(60)
    told = words.request_documents(site.machine.jobs)
    request = "scratch cartridge for pool default"
    assert told == [{"job": job, "request": request} for job in jobs]
