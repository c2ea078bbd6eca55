"""Whose word counts: the job's, the volume's, the controller's."""

from __future__ import annotations

import pytest

from backplane.errors import NotFoundError, UsageError
from backplane.wire.messages import ViewCreate
from controller.catalog.store import VolumeRow
from controller.core.inactivity import Inactivity, in_force, inactivity_of
from tests.site.site import Site

DEFAULTS = Inactivity(quiet_s=3.0, sync_timeout_s=80.0)


def row(site: Site, name: str, **settings: float) -> VolumeRow:
    site.make_volume(name)
    site.call(
        "volume.set",
        **({"name": name, "quiet_s": -1.0, "sync_timeout_s": -1.0, "reset": []} | settings),
    )
    return site.machine.registry.volume_by_name(name)


def test_without_anything_else_the_controllers_word_counts(site: Site) -> None:
    assert in_force(DEFAULTS, [row(site, "a")]) == DEFAULTS


def test_a_volume_overrides_the_controller_and_a_job_the_volume(site: Site) -> None:
    volume = row(site, "a", quiet_s=5.0)
    found = in_force(DEFAULTS, [volume])
    assert (found.quiet_s, found.quiet_from) == (5.0, "volume a")
    assert (found.sync_timeout_s, found.sync_timeout_from) == (80.0, "controller")
    found = in_force(DEFAULTS, [volume], quiet_s=0.0, sync_timeout_s=7.0)
    assert (found.quiet_s, found.quiet_from) == (0.0, "job")
    assert (found.sync_timeout_s, found.sync_timeout_from) == (7.0, "job")


def test_a_group_waits_as_its_most_demanding_volume(site: Site) -> None:
    rows = [row(site, "a", quiet_s=2.0), row(site, "b"), row(site, "c", sync_timeout_s=200.0)]
    found = in_force(DEFAULTS, rows)
    assert (found.quiet_s, found.quiet_from) == (3.0, "controller")
    assert (found.sync_timeout_s, found.sync_timeout_from) == (200.0, "volume c")


def test_it_survives_the_way_through_a_plan() -> None:
    rule = Inactivity(
        quiet_s=1.0, sync_timeout_s=2.0, quiet_from="job", sync_timeout_from="volume x"
    )
    assert inactivity_of(rule.plan()) == rule
    assert inactivity_of({"quiet_s": 1.0, "sync_timeout_s": 2.0}).quiet_from == ""


# --- settings of volumes --------------------------------------------------------------------------


def test_a_setting_is_durable_and_reaches_the_node_with_the_next_job(site: Site) -> None:
    row(site, "vol", quiet_s=5.0, sync_timeout_s=120.0)
    site.restart()
    job = site.submit("backup", volume="vol")
    [asked] = [message for _, message in site.wire if isinstance(message, ViewCreate)]
    assert (asked.quiet_s, asked.timeout_s) == (5.0, 120.0)
    assert site.job(job).reason == "waiting: 5 s without writes within 120 s"


def test_a_setting_goes_back_to_the_controllers_and_leaves_the_other_alone(site: Site) -> None:
    row(site, "vol", quiet_s=5.0, sync_timeout_s=120.0)
    told = site.call("volume.set", name="vol", quiet_s=-1.0, sync_timeout_s=-1.0, reset=["quiet_s"])
    assert (told["quiet_s"], told["quiet_from"]) == (3.0, "controller")
    assert (told["sync_timeout_s"], told["sync_timeout_from"]) == (120.0, "volume vol")


def test_a_job_that_is_there_already_keeps_what_it_was_submitted_with(site: Site) -> None:
    row(site, "vol")
    site.disk.writers[site.disk.by_name("vol").row.volume] = "10.0.0.7"
    site.submit("backup", volume="vol")
    site.call("volume.set", name="vol", quiet_s=9.0, sync_timeout_s=-1.0, reset=[])
    site.restart()
    [asked] = [message for _, message in site.wire if isinstance(message, ViewCreate)]
    assert asked.quiet_s == 3.0


def test_what_makes_no_sense_is_refused(site: Site) -> None:
    row(site, "vol")
    words = {"quiet_s": -1.0, "sync_timeout_s": -1.0}
    with pytest.raises(NotFoundError):
        site.call("volume.set", name="nix", reset=[], **words)
    with pytest.raises(UsageError, match="'size' is no setting"):
        site.call("volume.set", name="vol", reset=["size"], **words)
    with pytest.raises(UsageError, match="set and reset at once"):
        site.call("volume.set", name="vol", reset=["quiet_s"], **(words | {"quiet_s": 4.0}))
