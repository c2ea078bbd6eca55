"""Pools: how long their cartridges are kept, and how they take new ones.

The pool `default` always exists.  A cartridge belongs to a pool from its label on; until then it is *scratch*, unless
an operator has given it to a pool beforehand.  What is retained is a cartridge, from the last write on, because a tape
can only be erased as a whole; it is the node that refuses to erase it (`tape.retain`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.ids import BackupId
from backplane.tape_format.retention import RETAIN_FOREVER
from backplane.units import parse_duration
from controller.catalog.store import BackupRow, DropRow, PoolRow
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.registry import Registry

DEFAULT: Final = "default"
RETAIN_FOREVER_WORD: Final = "forever"

CONTINUE: Final = "continue"
ALWAYS: Final = "always"
EVERY: Final = "every:"
SET_BACK_S: Final = 3600.0
"""A clock that is more than this before what it has once said was set back."""

NAME_CHARACTERS_MAX: Final = 64
POOLS_MAX: Final = 1000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def default_pool() -> PoolRow:
    """Return the pool that there is before anybody has made one."""
    return PoolRow(pool=DEFAULT, retain_s=0, allocation=CONTINUE, takes_scratch=True, created="")


# --- what people write ---------------------------------------------------------------------------


def parse_retention(text: str) -> int:
    """Read `30d`, `forever` or `0`, in seconds; -1 is for ever.  Raises `UsageError`."""
    if text == RETAIN_FOREVER_WORD:
        return RETAIN_FOREVER
    seconds = parse_duration(text)
    if seconds != int(seconds):
        raise UsageError(f"a retention has whole seconds, not {text}")
    return int(seconds)


def format_retention(seconds: int) -> str:
    """Write what `parse_retention` reads."""
    if seconds == RETAIN_FOREVER:
        return RETAIN_FOREVER_WORD
    return _exact(seconds) if seconds else "0"


def parse_allocation(text: str) -> str:
    """Read `continue`, `always` or `every:7d`; returns what the catalog keeps.  Raises `UsageError`."""
    if text in (CONTINUE, ALWAYS):
        return text
    if text.startswith(EVERY):
        seconds = parse_duration(text.removeprefix(EVERY))
        if seconds >= 1 and seconds == int(seconds):
            return f"{EVERY}{int(seconds)}"
    raise UsageError(
        f"{text!r} is no allocation policy", hint="continue, always, or every:DURATION as every:7d"
    )


def format_allocation(allocation: str) -> str:
    """Write what `parse_allocation` reads."""
    if allocation.startswith(EVERY):
        return f"{EVERY}{_exact(int(allocation.removeprefix(EVERY)))}"
    return allocation


def _exact(seconds: int) -> str:
    """Write seconds in the largest unit of which they are a whole number: people say 30d, not 4w2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def allocation_of(pool: PoolRow) -> tuple[str, int]:
    """Return the policy of a pool and its seconds, 0 if it has none."""
    kind, _, seconds = pool.allocation.partition(":")
    return kind, int(seconds or 0)


# --- time ----------------------------------------------------------------------------------------


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one moment (RFC 3339) to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


# --- verbs ---------------------------------------------------------------------------------------


def create_pool(desk: Desk, call: Call) -> None:
    """Make a pool; the same once more is found."""
    arguments = call.arguments
    name = arguments["name"]
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        raise UsageError(
            f"{name!r} is no name of a pool", hint="letters, digits, and . _ - behind the first"
        )
    if len(desk.registry.pools) >= POOLS_MAX:
        raise RefusedError(f"there are {POOLS_MAX} pools already")
    row = PoolRow(
        pool=name,
        retain_s=parse_retention(arguments["retain"]),
        allocation=parse_allocation(arguments["allocation"]),
        takes_scratch=arguments["scratch"],
        created=desk.wall,
    )
    known = desk.registry.pools.get(name)
    if known is not None and replace(row, created=known.created) != known:
        raise RefusedError(f"there is a pool {name} already", hint=f"ctl pool show {name}")
    if known is None:
        desk.record(row)
    desk.answer(call.call, pool_document(desk.registry, desk.registry.pools[name], desk.backups))


def set_pool(desk: Desk, call: Call) -> None:
    """Change a pool; what is empty stays.  What was retained under the old settings stays retained."""
    arguments = call.arguments
    row = desk.registry.pool(arguments["name"])
    if arguments["retain"]:
        row = replace(row, retain_s=parse_retention(arguments["retain"]))
    if arguments["allocation"]:
        row = replace(row, allocation=parse_allocation(arguments["allocation"]))
    if arguments["scratch"]:
        if arguments["scratch"] not in ("yes", "no"):
            raise UsageError("scratch is yes or no")
        row = replace(row, takes_scratch=arguments["scratch"] == "yes")
    desk.record(row)
    desk.answer(call.call, pool_document(desk.registry, row, desk.backups))


def delete_pool(desk: Desk, call: Call) -> None:
    """Delete a pool that nothing belongs to."""
    row = desk.registry.pool(call.arguments["name"])
    if row.pool == DEFAULT:
        raise RefusedError(f"the pool {DEFAULT} always exists")
    document = pool_document(desk.registry, row, desk.backups)
    for what in ("cartridges", "backups"):
        if document[what]:
            raise RefusedError(
                f"{document[what]} {what} belong to pool {row.pool}",
                hint=f"ctl tape list, ctl backup list: pool {row.pool}",
            )
    for job in desk.jobs.values():
        if not job.has_ended and job.plan.get("pool") == row.pool:
            raise RefusedError(f"job {job.row.job} writes to pool {row.pool}")
    desk.record(DropRow(row=row))
    desk.answer(call.call, {})


def pool_document(
    registry: Registry, row: PoolRow, backups: Mapping[BackupId, BackupRow]
) -> dict[str, Any]:
    """Describe a pool."""
    cartridges = [each for each in registry.cartridges.values() if each.pool == row.pool]
    return {
        "name": row.pool,
        "retain": format_retention(row.retain_s),
        "retain_s": row.retain_s,
        "allocation": format_allocation(row.allocation),
        "scratch": row.takes_scratch,
        "created": row.created,
        "cartridges": len(cartridges),
        "tags": sorted(each.tag for each in cartridges),
        "backups": sum(
            each.pool == row.pool and each.state in ("building", "completed")
            for each in backups.values()
        ),
    }


def pool_documents(
    registry: Registry, backups: Mapping[BackupId, BackupRow]
) -> list[dict[str, Any]]:
    """Describe all pools."""
    return [
        pool_document(registry, row, backups)
        for row in sorted(registry.pools.values(), key=lambda each: each.pool)
    ]


def checked_pool(registry: Registry, name: str) -> str:
    """Return the name of a pool that exists, the default one's for an empty name; raises `NotFoundError`."""
    return registry.pool(name or DEFAULT).pool


def pool_of_job(registry: Registry, name: str) -> PoolRow:
    """Return a pool by the name that a job's backup has; raises `NotFoundError` if it was taken away."""
    found = registry.pools.get(name or DEFAULT)
    if found is None:
        raise NotFoundError(f"there is no pool {name} any more", hint=f"ctl pool create {name}")
    return found
