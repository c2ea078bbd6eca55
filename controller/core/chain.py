"""Levels of backups, the chains that they make, and how a chain is laid over each other.  Pure.

    full <---- incremental <---- incremental          each stands on the newest backup of the same history
     ^
     +-------- differential                           stands on the newest full one

A *member* of a chain says of every block one of three things: here are its data; it is zero; it is as in my parent.
The full one at the end never says the third.  So, from the newest member to the full one, each block is taken from the
first that says anything about it, and what is superseded is read only where it shares a record with what is not.

A parent is only chosen if all that stands under it could be read today, as far as the catalog knows: its cartridges are
not in error, and the last verification found no damage, or a second copy has what is damaged (`copies`).  Otherwise the
new backup is a full one.  Nothing stands on a second copy: its original is the same.

What no file system uses need not be copied, if a map says so that is complete.  With

    allocated   what the device has of the view; everything else reads as zeros
    used        what the file systems of the view use, metadata included; the whole volume if there is no such map
    known       what those of the parent's view used
    changed     what was written or given back since the parent's view

a full backup copies the *used* of what is *allocated*, and promises: restored, every used block is as it was in the
view.  About the others it promises nothing; they come back as zeros or as something older.  So a block that is used now
and was not used then is not known to be right in the parent, changed or not: a file may come to own a block without
writing it.  The next members keep the promise if they look at

    doubtful = changed or (used and not known)       whatever else is used is right in the parent

and copy what of it is used and allocated, and declare zero what of it is not allocated, because that is what it is on
the device.  A block that is allocated and used by nobody is never declared zero: it may be anything but that.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backplane.errors import VolumeError
from backplane.ids import BackupId, VolumeTag
from controller.catalog.store import BackupRow, PartRow, VolumeRow
from controller.core.copies import (
    Families,
    Outlook,
    Rank,
    Source,
    covers,
    families,
    is_gone,
    look,
    parts_of,
    sources,
)
from controller.core.damage import damage_of
from controller.core.extent_runs import ExtentRuns, intersect, remainders, subtract, unite
from controller.core.lineage import is_head, origin, parent_of
from controller.core.registry import Registry

FULL: Final = "full"
DIFFERENTIAL: Final = "differential"
INCREMENTAL: Final = "incremental"
AUTO: Final = "auto"
"""Incremental where that is possible, full where it is not; neither is worth a warning."""

LEVELS_ASKED: Final = (FULL, DIFFERENTIAL, INCREMENTAL, AUTO)

CHAIN_MEMBERS_MAX: Final = 64
"""A restore may need a cartridge per member, and merges as many maps; the next backup is a full one."""

MAP_EXTENTS_MAX: Final = 2_000_000
"""Changed and zeroed extents of one backup: twice as many would fill the header of its first part."""


# --- choosing what to stand on -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoParent:
    """Why a backup cannot stand on another one and has to be full."""

    reason: str


def chain_of(row: BackupRow, backups: Mapping[BackupId, BackupRow]) -> list[BackupRow]:
    """Return a backup and all that it stands on, newest first; raises `VolumeError` if that leads nowhere."""
    chain = [row]
    while chain[-1].level != FULL:
        child = chain[-1]
        parent = parent_of(child, backups)
        if parent is None or parent in chain:
            raise VolumeError(f"backup {child.backup} stands on {child.parent}, which is not there")
        chain.append(parent)
    return chain


def why_broken(
    chain: Sequence[BackupRow],
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> str:
    """Say what keeps a chain from being restored, as far as the catalog knows; empty if nothing does."""
    for row in chain:
        if row.state != "completed":
            lacks = json.loads(row.detail).get("missing", "")
            told = f"backup {row.backup} is {row.state}"
            return f"{told}: it lacks {lacks}" if lacks else told
        why = why_broken_alone(row, registry)
        if why and not _is_whole_together(row, registry, backups, known):
            return why
    return ""


def why_broken_alone(row: BackupRow, registry: Registry) -> str:
    """Say what keeps the own records of a backup from being read, without its copies; empty if nothing does."""
    if damage_of(row):
        return f"backup {row.backup} is damaged: {damage_of(row)}"
    parts = list(parts_of(row, registry))
    if sum(part.is_last for part in parts) < row.lanes:
        return f"parts of backup {row.backup} are missing"
    for part in parts:
        which = f"cartridge {part.tag} with part {part.part} of backup {row.backup}"
        if is_gone(part, registry):
            return f"{which} is gone"
        if registry.cartridges[part.tag].status == "error":
            return f"{which} is in error"
    return ""


def is_lost(row: BackupRow, registry: Registry) -> bool:
    """Tell whether nothing of a backup's own is left: every cartridge with a part of it was forgotten."""
    parts = list(parts_of(row, registry))
    return bool(parts) and all(is_gone(part, registry) for part in parts)


def lacks(
    row: BackupRow,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> bool:
    """Tell whether a restore would lack something for good: a cartridge of its chain is gone, and no copy has it."""
    try:
        chain = chain_of(row, backups)
    except VolumeError:
        return False
    return any(
        any(is_gone(part, registry) for part in parts_of(member, registry))
        and not _is_whole_together(member, registry, backups, known)
        for member in chain
    )


def _is_whole_together(
    row: BackupRow,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> bool:
    """Tell whether a backup and its copies have every record on some cartridge that nothing is known against."""
    outlook = look([row], backups, registry, known)
    if not outlook.others:
        return False
    # One that is away is as good as any here: it can be fetched.
    ranks = {key: rank for key, rank in outlook.ranks.items() if rank is not Rank.AWAY}
    found = sources(row, Outlook(outlook.others, ranks, outlook.bad), backups, registry)
    records = -(-row.stream_bytes // row.record_bytes)
    return covers(found, 0, records) and all(each.rank is Rank.GOOD for each in found)


def choose_parent(
    level: str,
    *,
    volume: VolumeRow,
    tracking: str,
    generation: int,
    backups: Mapping[BackupId, BackupRow],
    registry: Registry,
) -> BackupRow | NoParent:
    """Choose what a backup stands on whose view contains `generation` of the history `tracking`."""
    assert level != FULL
    if not tracking:
        return NoParent("changes of the volume are not tracked")
    known = [
        row
        for row in backups.values()
        if row.volume == volume.volume
        and row.state == "completed"
        and not row.selection  # What it lacks are files, and nobody may take them for free blocks.
        and is_head(row, backups)
        and (level != DIFFERENTIAL or row.level == FULL)
    ]
    if not known:
        what = "full backup" if level == DIFFERENTIAL else "backup"
        return NoParent(f"there is no completed {what} of the volume")
    known = [row for row in known if row.tracking == tracking]
    if not known:
        return NoParent("its history of changes began after the last backup")
    parent = max(known, key=origin)
    if parent.generation > generation:
        return NoParent(f"its history of changes has gone back behind backup {parent.backup}")
    if (parent.blocks, parent.block_bytes) != (volume.blocks, volume.block_bytes):
        return NoParent(f"the volume had another size in backup {parent.backup}")
    try:
        chain = chain_of(parent, backups)
    except VolumeError as error:
        return NoParent(error.message)
    if len(chain) >= CHAIN_MEMBERS_MAX:
        return NoParent(f"{len(chain)} backups stand on each other already")
    broken = why_broken(chain, registry, backups, families(backups))
    return NoParent(broken) if broken else parent


def everything(blocks: int) -> ExtentRuns:
    """Return what is used of a volume if nobody knows better."""
    return ExtentRuns([(0, blocks)] if blocks else [])


def change_map(
    allocated: ExtentRuns, changed: ExtentRuns, *, used: ExtentRuns, known: ExtentRuns
) -> ExtentRuns:
    """Return what a backup has to copy, and in `zeros` what of the doubtful reads as zeros; see the module."""
    doubtful = unite(changed, subtract(used, known))
    runs = intersect(intersect(doubtful, used), allocated)
    runs.zeros = subtract(doubtful, allocated)
    return runs


def needed_tags(
    chain: Sequence[BackupRow],
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> list[VolumeTag]:
    """Return the barcodes of all cartridges that a chain is read from, those of the full backup first."""
    outlook = look(chain, backups, registry, known)
    return list(
        dict.fromkeys(
            part.tag
            for row in reversed(chain)
            for part in (
                [each.part for each in sources(row, outlook, backups, registry)]
                if row.backup in outlook.others
                else parts_of(row, registry)
            )
        )
    )


# --- laying a chain over each other --------------------------------------------------------------


class Picks:
    """What is taken of one member's stream: pieces (stream block, LBA, blocks) in stream order."""

    __slots__ = ("_base", "_blocks", "_counts", "_lbas", "_positions", "total_blocks")

    def __init__(self, pieces: Iterable[tuple[int, int, int]] = ()) -> None:
        self._positions, self._lbas, self._blocks = array("Q"), array("Q"), array("Q")
        self._counts = array("Q")
        """Blocks taken before each piece, and `_base` more."""
        self._base = self.total_blocks = 0
        for position, lba, blocks in pieces:
            self._positions.append(position)
            self._lbas.append(lba)
            self._blocks.append(blocks)
            self._counts.append(self.total_blocks)
            self.total_blocks += blocks

    def feed(self, take: Callable[[array[int]], object]) -> None:
        """Show all of it to something that sums it."""
        for each in (self._positions, self._lbas, self._blocks):
            take(each)

    def before(self, position: int) -> int:
        """Return how many blocks are taken of the stream before a position."""
        index = bisect_left(self._positions, position) - 1
        if index < 0:
            return 0
        here = min(self._blocks[index], position - self._positions[index])
        return self._counts[index] - self._base + here

    def slice(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the pieces, or parts of pieces, within stream blocks `first` .. `end` - 1."""
        index = max(0, bisect_right(self._positions, first) - 1)
        while index < len(self._positions) and self._positions[index] < end:
            position, blocks = self._positions[index], self._blocks[index]
            start, stop = max(first, position), min(end, position + blocks)
            if start < stop:
                yield start, self._lbas[index] + start - position, stop - start
            index += 1

    def within(self, first: int, end: int) -> Picks:
        """Return what is taken of the stream blocks `first` .. `end` - 1; itself if that is all."""
        low, high = bisect_right(self._positions, first) - 1, bisect_left(self._positions, end)
        if low < 0 or self._positions[low] + self._blocks[low] <= first:
            low += 1
        made = Picks()
        if low >= high:
            return made
        skip = max(0, first - self._positions[low])
        over = max(0, self._positions[high - 1] + self._blocks[high - 1] - end)
        if (low, high, skip, over) == (0, len(self._positions), 0, 0):
            return self
        made._positions, made._lbas = self._positions[low:high], self._lbas[low:high]
        made._blocks, made._counts = self._blocks[low:high], self._counts[low:high]
        made._positions[0] += skip
        made._lbas[0] += skip
        made._blocks[0] -= skip
        made._base = made._counts[0] = made._counts[0] + skip
        made._blocks[-1] -= over
        made.total_blocks = made._counts[-1] - made._base + made._blocks[-1]
        return made


class Overlay:
    """The members of a chain, laid over each other one after the other, from the newest to the full one."""

    def __init__(self) -> None:
        self._covered = ExtentRuns()
        self._is_whole = False

    def take(self, runs: ExtentRuns) -> Picks:
        """Return what is taken of the next member: nothing that one before it has superseded.  The last is full."""
        assert not self._is_whole, "a full backup stands on none"
        found = Picks(remainders(runs, self._covered))
        if runs.zeros is None:
            self._is_whole = True
        else:
            self._covered = unite(self._covered, unite(runs, runs.zeros))
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """One part to visit in a restore, and what to take of its backup's stream."""

    row: BackupRow
    part: PartRow
    picks: Picks

    @property
    def blocks(self) -> int:
        """Blocks that are taken of this part."""
        start = self.part.stream_start // self.row.block_bytes
        end = start + self.part.stream_bytes // self.row.block_bytes
        return self.picks.before(end) - self.picks.before(start)


def cut(picks: Picks, found: Iterable[Source]) -> Iterator[Reading]:
    """Yield what is taken of each part, if each record is read from its source."""
    places: dict[tuple[BackupId, int], list[Source]] = {}
    for each in found:
        places.setdefault((each.row.backup, each.part.part), []).append(each)
    for here in places.values():
        row, part = here[0].row, here[0].part
        size = row.record_bytes // row.block_bytes
        taken = Picks(
            piece for each in here for piece in picks.slice(each.first * size, each.end * size)
        )
        if taken.total_blocks:
            yield Reading(row, part, taken)


def tape_order(
    chain: Sequence[BackupRow],
    picks: Sequence[Picks],
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    outlook: Outlook,
) -> list[Reading]:
    """Return the parts to visit: each cartridge once, from its beginning on, that of the full backup first."""
    readings: list[Reading] = []
    for row, taken in reversed(list(zip(chain, picks, strict=True))):
        if row.backup in outlook.others:
            readings += cut(taken, sources(row, outlook, backups, registry))
        else:
            readings += [
                reading
                for part in parts_of(row, registry)
                if (reading := Reading(row, part, taken)).blocks
            ]
    place = {tag: number for number, tag in enumerate(dict.fromkeys(r.part.tag for r in readings))}
    return sorted(readings, key=lambda each: (place[each.part.tag], each.part.data_object))
