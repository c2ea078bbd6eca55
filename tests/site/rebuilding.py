"""Losing a catalog and reading it back from the cartridges, and what has to be the same afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controller.catalog.memory import MemoryCatalog
from tests.site.site import Site

NEW_STORE = "e" * 32


def lose_catalog(site: Site, *, store: str = NEW_STORE) -> None:
    """The controller starts with a catalog that has nothing in it."""
    site.catalog = MemoryCatalog(store=store)
    site.restart()


def rebuild(site: Site, *tags: str, adopt: bool = False, with_pruned: bool = False) -> Any:
    """Read cartridges back, all if none is named; returns the row of the job."""
    number = site.call_now(
        "catalog.rebuild",
        token=f"rebuild-{site.call_number}",
        tags=list(tags),
        all=not tags,
        adopt=adopt,
        with_pruned=with_pruned,
    )["job"]
    site.run()
    return site.job(number)


def facts(site: Site, backups: Iterable[int] | None = None) -> dict[str, Any]:
    """Return what a rebuild has to bring back: of these backups, or of all that are complete."""
    catalog, snapshot = site.catalog, site.catalog.load()
    wanted = {
        row.backup
        for row in snapshot.backups
        if (row.state == "completed" if backups is None else row.backup in set(backups))
    }
    return {
        "backups": {row.backup: row for row in snapshot.backups if row.backup in wanted},
        "parts": [row for row in snapshot.parts if row.backup in wanted],
        "extents": {number: catalog.extents(number) for number in wanted},
        "headers": {number: catalog.map_header(number) for number in wanted},
        "pages": {number: list(catalog.map_pages(number)) for number in wanted},
    }


def everything(site: Site) -> dict[str, Any]:
    """Return all that a rebuild could change."""
    snapshot = site.catalog.load()
    every = [row.backup for row in snapshot.backups]
    return facts(site, every) | {
        "cartridges": snapshot.cartridges,
        "volumes": snapshot.volumes,
        "pools": snapshot.pools,
        "store": snapshot.store,
        "numbers": {
            name: snapshot.counters.get(name) for name in ("backup", "behind", "caught-up")
        },
    }
