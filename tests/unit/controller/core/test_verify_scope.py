"""What a verification is of: one thing, that is there, and has something to read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError, UsageError
from controller.core import verify_scope
from controller.core.verify_scope import tape_order
from tests.site.site import Site, backed_up


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, UsageError, "one backup, one cartridge or one pool"),
        ({"backup": 1, "tag": "LTO001L8"}, UsageError, "one backup, one cartridge"),
        ({"tag": "LTO001L8", "pool": "default"}, UsageError, "one backup, one cartridge"),
        ({"backup": 99}, NotFoundError, "no completed backup has number 99"),
        ({"tag": "NIX001L8"}, NotFoundError, "no cartridge has the barcode"),
        ({"pool": "nix"}, NotFoundError, "nix"),
        ({"backup": 1, "sample": "many"}, UsageError, "is no sample"),
        ({"tag": "LTO002L8"}, RefusedError, "cartridge LTO002L8 has no backup"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_there_is_a_job(
    site: Site, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    backed_up(site)
    with pytest.raises(error, match=words):
        site.submit("verify", **asked)
    assert not site.machine.jobs


def test_more_parts_than_a_plan_can_hold_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_scope, "PARTS_MAX", 1)
    for name in ("one", "two"):
        backed_up(site, name=name)
    with pytest.raises(RefusedError, match="has 2 parts, 1 can be verified at once"):
        site.submit("verify", tag="LTO001L8")


def test_what_a_failed_job_has_left_is_not_read(site: Site) -> None:
    backed_up(site)
    registry = site.machine.registry
    failed = site.machine.backups[registry.parts[1, 1].backup]
    site.machine.backups[failed.backup] = replace(failed, state="failed")
    with pytest.raises(RefusedError, match="has no backup"):
        site.submit("verify", tag="LTO001L8")


def test_parts_are_read_in_the_order_of_the_tapes(site: Site) -> None:
    site.tapes["LTO001L8"].capacity = 9
    backed_up(site)
    first, second = site.machine.registry.parts_of(1)
    assert tape_order([second, first]) == [second, first]
    later = replace(first, part=3, data_object=first.data_object + 50)
    assert tape_order([first, second, later]) == [first, later, second]
    job = site.submit("verify", backup=1)
    assert json.loads(site.job(job).plan)["parts"] == [[1, 1], [1, 2]]
