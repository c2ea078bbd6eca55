"""Which cartridge is written next.  Pure.

A job gets a cartridge when it first writes, not when it is queued, and the pool gets the cartridge with its label.  In
order, and of each kind those that are in a library before those that are not:

    own         what the job itself has begun and not filled
    writable    of the pool, as its policy says: the fullest (`continue`), none (`always`), the fullest of those first
                written not longer ago than that (`every:SECONDS`)
    unused      of the pool: blank, or labelled and never written
    scratch     the same of no pool, if the pool takes scratch
    recyclable  of the pool, and then of no pool if it takes scratch: what was written longest ago first

A cartridge is recyclable when nothing is left on it that anybody may want: its retention is over, at its node as well
as here, nobody holds it, and no backup that has not been pruned has a part on it, nor has one on which such a backup
stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from backplane.ids import BackupId, NodeName, VolumeTag
from backplane.wire.messages import CartridgeState
from controller.catalog.store import BackupRow, CartridgeRow, PoolRow
from controller.core.lineage import parent_of
from controller.core.pools import ALWAYS, SET_BACK_S, allocation_of, seconds_between
from controller.core.procedure import NotYet
from controller.core.registry import Keeping, Needed, Registry

ALTERNATIVES_MAX: Final = 3
"""Cartridges that a request to an operator names beside what would do as well."""

_REQUEST: Final = re.compile(
    r"waiting: (scratch cartridge for pool |a cartridge for pool |a copy needs two drives|"
    r"cartridge \S+ (\(|is quarantined|is foreign)|the disk under the library )"
)
_FOR_POOL: Final = re.compile(r"waiting: (scratch|a) cartridge for pool ")


@dataclass(frozen=True, slots=True)
class OperatorRequest(NotYet):
    """What only an operator can bring about; `alternative` is what would do, in the words of a list."""

    alternative: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A cartridge that could be written, and whether what is on it has to be erased first."""

    row: CartridgeRow
    must_erase: bool = False


def is_request(reason: str) -> bool:
    """Say whether a job's reason for waiting is a request to operators."""
    return bool(_REQUEST.match(reason))


def is_pool_request(reason: str) -> bool:
    """Say whether it is one that the end of a retention may grant."""
    return bool(_FOR_POOL.match(reason))


def is_unused(row: CartridgeRow) -> bool:
    """Say whether nothing was ever written behind the label, if it has one."""
    return row.status == "blank" or (row.status == "writable" and not row.sequence)


def state_of(registry: Registry, row: CartridgeRow) -> CartridgeState | None:
    """Return what the node of a cartridge says of it, None while that is away or does not have it."""
    node = registry.nodes.get(row.node)
    return node.cartridges.get(row.tag) if node is not None and node.is_online else None


def place_of(row: CartridgeRow, state: CartridgeState | None) -> str:
    """Return the location of a cartridge: its element, the vault that it was brought to, or `offline`."""
    if state is not None:
        return state.element or "slot"
    return f"vault {row.vault}" if row.vault else "offline"


def candidates(
    registry: Registry,
    pool: PoolRow,
    *,
    own: frozenset[VolumeTag],
    backups: Mapping[BackupId, BackupRow],
    wall: str,
) -> Iterator[Choice]:
    """Yield what could be written for a pool, in order; lazily, because recyclable ones take a look at all parts."""
    rows = list(registry.cartridges.values())
    ours = [row for row in rows if row.pool == pool.pool]
    scratch = [row for row in rows if not row.pool] if pool.takes_scratch else []
    writable = [row for row in ours if row.status == "writable" and not is_unused(row)]
    for row in sorted(writable, key=lambda row: (row.tag not in own, -row.end, row.tag)):
        if row.tag in own or _is_open(row, pool, wall=wall):
            yield Choice(row)
    for group in (ours, scratch):
        unused = [row for row in group if is_unused(row)]
        # One with a label is as good as done; a blank one of the pool may be half labelled.
        unused.sort(key=lambda row: (row.status != "writable", not row.cartridge, row.tag))
        yield from map(Choice, unused)
    used = needed_now(registry, backups)
    for group in (ours, scratch):
        written = [row for row in group if not is_unused(row)]
        old = [row for row in written if not why_kept(row, registry, used=used, wall=wall)]
        old = [row for row in old if not _kept(registry, row.tag, wall=wall)]
        old.sort(key=lambda row: (row.last_written, row.tag))
        yield from (Choice(row, must_erase=True) for row in old)


def _is_open(row: CartridgeRow, pool: PoolRow, *, wall: str) -> bool:
    """Say whether a pool's policy lets jobs that did not begin a cartridge write behind what is on it."""
    kind, every_s = allocation_of(pool)
    if kind == ALWAYS:
        return False
    # First written far in the future: the clock was ahead then, and nobody waits for that day.
    passed = seconds_between(row.first_written or row.created, wall)
    return not every_s or -SET_BACK_S <= passed < every_s


# --- recycling -----------------------------------------------------------------------------------


def needed_tags(
    registry: Registry, backups: Mapping[BackupId, BackupRow]
) -> dict[VolumeTag, BackupId]:
    """Return the cartridges with parts of living backups, each with one of these."""
    living = _living(backups)
    found: dict[VolumeTag, BackupId] = {}
    for part in registry.parts.values():
        row_of_tag = registry.cartridges.get(part.tag)
        is_there = row_of_tag is not None and row_of_tag.cartridge == part.cartridge
        if part.backup in living and is_there:
            found.setdefault(part.tag, part.backup)
    return found


def _living(backups: Mapping[BackupId, BackupRow]) -> set[BackupId]:
    """Return the backups that somebody may want, and those on which these stand."""
    living: set[BackupId] = set()
    for row in backups.values():
        each: BackupRow | None = row
        is_living = row.state in ("building", "completed") or row.is_protected
        while is_living and each is not None and each.backup not in living:
            living.add(each.backup)
            each = parent_of(each, backups)
    return living


def why_kept_elsewhere(
    label: str,
    tag: VolumeTag,
    registry: Registry,
    *,
    backups: Mapping[BackupId, BackupRow],
    wall: str,
) -> str:
    """Say what keeps a cartridge that has barcode `tag`, by what the catalog knows of its `label`, empty if nothing.

    Under its own barcode it may be a cartridge that nobody wants: but somebody has swapped the stickers.
    """
    living = _living(backups)
    on_it = (part for part in registry.parts.values() if part.cartridge == label)
    found = next((part for part in on_it if part.backup in living), None)
    if found is not None:
        return f"its label says that it is {found.tag}: backup {found.backup} is on it"
    for row in registry.cartridges.values():
        if row.cartridge != label or row.tag == tag:
            continue
        if row.hold:
            return f"its label says that it is {row.tag}, which is held: {row.hold}"
        if row.retain_until > wall:
            return (
                f"its label says that it is {row.tag}, which is retained until {row.retain_until}"
            )
    return ""


def needed_now(
    registry: Registry, backups: Mapping[BackupId, BackupRow]
) -> dict[VolumeTag, BackupId]:
    """Return `needed_tags` again, if nothing has changed: every job that waits for a cartridge asks at every event."""
    known = registry.needed
    if known is None or known.lineage != registry.lineage or known.backups is not backups:
        tags = needed_tags(registry, backups)
        known = registry.needed = Needed(registry.lineage, backups, tags)
    return known.tags


def why_kept(
    row: CartridgeRow,
    registry: Registry,
    *,
    used: Mapping[VolumeTag, BackupId],
    wall: str,
    statuses: tuple[str, ...] = ("writable", "full"),
) -> str:
    """Say why a cartridge with data may not be erased, empty if it may; `used` is what `needed_tags` has found."""
    state = state_of(registry, row)
    if row.status not in statuses:
        return f"it is {row.status}{f': {row.detail}' if row.detail else ''}"
    if row.hold or (state is not None and state.is_held):
        return f"it is held: {row.hold or 'its node says so'}"
    until = max(row.retain_until, state.retain_until if state is not None else "")
    if until > wall:
        return f"it is retained until {until}"
    if state is not None and state.is_worm:
        return "it can be written only once"
    if row.tag in used:
        return f"backup {used[row.tag]} is on it, or stands on what is"
    return ""


def kept_for(keeping: Keeping, *, wall: str) -> float:
    """Return for how many seconds more a node is believed that keeps a cartridge; 0 if it may be asked again."""
    past = seconds_between(keeping.since, wall)
    return max(0.0, keeping.again_s - past) if past >= 0 else 0.0


def _kept(registry: Registry, tag: VolumeTag, *, wall: str) -> str:
    """Return the words of a node that keeps a cartridge, empty if it may be asked."""
    keeping = registry.kept.get(tag)
    return keeping.why if keeping is not None and kept_for(keeping, wall=wall) else ""


def next_expiry(registry: Registry, *, wall: str) -> CartridgeRow | None:
    """Return the cartridge whose retention is over next, None if none has any."""
    waiting = [
        row
        for row in registry.cartridges.values()
        if row.retain_until > wall and row.status in ("writable", "full") and not row.hold
    ]
    return min(waiting, key=lambda row: (row.retain_until, row.tag), default=None)


# --- requests to operators -----------------------------------------------------------------------


def request_for_pool(
    registry: Registry, pool: PoolRow, *, alternatives: list[str], wall: str
) -> OperatorRequest:
    """Ask for a cartridge; `alternatives` are those that would do if they were there."""
    if pool.takes_scratch:
        words = f"scratch cartridge for pool {pool.pool}"
    else:
        words = (
            f"a cartridge for pool {pool.pool} (takes no scratch): "
            f"ctl tape add TAG --pool {pool.pool}, or ctl pool set {pool.pool} --scratch"
        )
    # A writable one may be recyclable as well.
    others = list(dict.fromkeys(alternatives))
    words = ", or ".join([words, *others[:ALTERNATIVES_MAX]])
    following = next_expiry(registry, wall=wall)
    if following is not None and following.pool in (pool.pool, ""):
        words += f"; {following.tag} is retained until {following.retain_until}"
    # Its retention is over by our clock, and not by the node's.
    refused = [row.tag for row in registry.cartridges.values() if row.pool in (pool.pool, "")]
    for why in [why for tag in sorted(refused) if (why := _kept(registry, tag, wall=wall))][:1]:
        words += f"; {why}"
    return OperatorRequest(f"waiting: {words}")


def disk_is_full(node: NodeName) -> str:
    """Say that there is no room under a virtual library."""
    return f"the disk under the library of node {node} is full"


def request_for_space(row: CartridgeRow) -> OperatorRequest:
    """Ask for room under the library of a cartridge that is not full."""
    return OperatorRequest(
        f"waiting: {disk_is_full(row.node)}: free some of it, cartridge {row.tag} has room"
    )


def request_for_cartridge(row: CartridgeRow, state: CartridgeState | None) -> OperatorRequest:
    """Ask for one cartridge that no library has, or that is where somebody may take it at any moment."""
    if state is not None:
        place = f"at {state.element}: ctl tape import {row.tag}"
    else:
        place = f"in vault {row.vault}" if row.vault else "offline"
    words = f"{row.tag} ({place})"
    return OperatorRequest(f"waiting: cartridge {words}", words)


def needed_words(registry: Registry, tags: Iterable[VolumeTag]) -> str:
    """List cartridges in the order in which they are needed, and say of each that is not to hand where it is."""
    words = []
    for tag in dict.fromkeys(tags):
        row = registry.cartridges.get(tag)
        if row is None:
            words.append(f"{tag} (not in the catalog any more)")
            continue
        state = state_of(registry, row)
        is_asked_for = state is None or is_at_door(state)
        words.append(request_for_cartridge(row, state).alternative if is_asked_for else str(tag))
    return ", ".join(words) or "none"


def is_at_door(state: CartridgeState | None) -> bool:
    """Say whether a cartridge is in an import/export element, from which none is loaded."""
    return state is not None and state.element.startswith("io-")
