"""The row of a job that was just submitted."""

from __future__ import annotations

import json

from controller.core.job_row import job_row
from tests.site.site import Site


def test_a_new_job_is_queued_and_nothing_has_happened_to_it(site: Site) -> None:
    site.make_volume("vol")
    volume = site.machine.registry.volume_by_name("vol")
    row = job_row(site.machine, "backup", "T", subject="vol", volume=volume, plan={"b": 1, "a": 2})
    assert (row.state, row.reason, row.exit_code, row.is_cancelled) == ("queued", "", -1, False)
    assert (row.started, row.ended, row.submitted) == ("", "", site.wall)
    assert (row.volume, row.volume_name, row.backup, row.view) == (volume.volume, "vol", 0, "")
    assert json.loads(row.plan) == {"a": 2, "b": 1}
    assert json.loads(row.result) == {}


def test_every_job_takes_a_new_number(site: Site) -> None:
    site.make_volume("vol")
    volume = site.machine.registry.volume_by_name("vol")
    rows = [
        job_row(site.machine, "backup", "T", subject="", volume=volume, plan={}) for _ in range(3)
    ]
    assert [row.job for row in rows] == [1, 2, 3]
