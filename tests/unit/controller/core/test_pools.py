"""Pools: what people write, how long it is, and the verbs."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError, UsageError
from controller.core import pools
from controller.core.pools import default_pool
from tests.site.site import DATA, Site, backed_up, check_end

NOON = "2026-01-11T12:00:00Z"


def create(site: Site, name: str = "weekly", **changes: Any) -> dict[str, Any]:
    asked = {"retain": "30d", "allocation": "every:7d", "scratch": True} | changes
    return site.call("pool.create", name=name, **asked)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30d", 30 * 86400), ("1h30m", 5400), ("90", 90), ("forever", -1)],
)
def test_a_retention_is_a_duration_or_for_ever(text: str, seconds: int) -> None:
    assert pools.parse_retention(text) == seconds
    assert pools.parse_retention(pools.format_retention(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "-1", "500ms", "soon", "forever 1d"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        pools.parse_retention(text)


@pytest.mark.parametrize("seconds", [1, 59, 3601, 86400, 86401, 90061, 10**9])
def test_what_is_shown_of_a_retention_reads_back_as_it_is(seconds: int) -> None:
    assert pools.parse_retention(pools.format_retention(seconds)) == seconds
    allocation = f"every:{seconds}"
    assert pools.parse_allocation(pools.format_allocation(allocation)) == allocation


@pytest.mark.parametrize("text", ["", "never", "every:", "every:0", "every:1.5s", "every:-1d"])
def test_what_is_no_allocation_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        pools.parse_allocation(text)


def test_the_default_pool_is_there_before_anybody_makes_one(site: Site) -> None:
    assert site.machine.registry.pool("default") == default_pool()
    site.call("pool.set", name="default", retain="1d", allocation="", scratch="no")
    site.restart()
    row = site.machine.registry.pool("default")
    assert (row.retain_s, row.allocation, row.takes_scratch) == (86400, "continue", False)
    with pytest.raises(RefusedError, match="always exists"):
        site.call("pool.delete", name="default")


def test_a_pool_is_made_once_and_outlives_a_restart(site: Site) -> None:
    made = create(site)
    assert (made["retain"], made["retain_s"]) == ("30d", 30 * 86400)
    assert (made["allocation"], made["scratch"]) == ("every:7d", True)
    assert create(site) == made, "the same call once more"
    with pytest.raises(RefusedError, match="there is a pool weekly already"):
        create(site, retain="31d")
    site.restart()
    assert site.machine.registry.pools.keys() == {"default", "weekly"}


@pytest.mark.parametrize("name", ["", ".x", "a b", "x" * 65, "ä"])
def test_what_is_no_name_is_refused(site: Site, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a pool"):
        create(site, name)


def test_a_pool_changes_only_where_it_is_told_to(site: Site) -> None:
    create(site)
    told = site.call("pool.set", name="weekly", retain="", allocation="", scratch="no")
    assert (told["retain"], told["allocation"], told["scratch"]) == ("30d", "every:7d", False)
    told = site.call("pool.set", name="weekly", retain="forever", allocation="always", scratch="")
    assert (told["retain_s"], told["allocation"], told["scratch"]) == (-1, "always", False)
    with pytest.raises(UsageError, match="yes or no"):
        site.call("pool.set", name="weekly", retain="", allocation="", scratch="maybe")
    with pytest.raises(NotFoundError):
        site.call("pool.set", name="monthly", retain="", allocation="", scratch="")


def test_a_pool_goes_only_when_nothing_belongs_to_it(site: Site) -> None:
    create(site)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", pool="weekly")
    with pytest.raises(RefusedError, match=f"job {job} writes to pool weekly"):
        site.call_now("pool.delete", name="weekly")
    site.run()
    check_end(site, job)
    with pytest.raises(RefusedError, match="1 cartridges belong to pool weekly"):
        site.call("pool.delete", name="weekly")
    site.set_cartridge("LTO001L8", pool="")
    with pytest.raises(RefusedError, match="1 backups belong to pool weekly"):
        site.call("pool.delete", name="weekly")
    create(site, "idle")
    site.call("pool.delete", name="idle")
    site.restart()
    assert "idle" not in site.machine.registry.pools


def test_a_backup_to_a_pool_that_is_not_there_is_refused(site: Site) -> None:
    backed_up(site)
    with pytest.raises(NotFoundError, match="no pool is named 'monthly'"):
        site.submit("backup", volume="vol", pool="monthly")
