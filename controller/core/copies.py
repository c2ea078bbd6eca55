"""Second copies, and from which of them each record of a backup is read.  Pure.

A copy is a backup of its own whose stream is that of its *original*, record by record, in parts that may be cut
elsewhere.  So whatever is wanted of a stream can be read from any of them, and from several at once.  Of all that have
a record the best is taken:

    GOOD        its cartridge is in a library, and nothing is known against it
    DOUBTFUL    its cartridge is in error: it can often be read, so it is tried before anybody is sent for another one
    AWAY        its cartridge is in a vault or at the door, its node is away, or nobody may touch it now: it has a twin,
                or has come back and the catalog has not read it yet
    BAD         the record could not be read when it was last looked at
    GONE        its cartridge has another label now, or nobody knows it

and of equals the backup that was asked for, then the original, then the older copy.  Nothing is read of a backup that
is pruned, whatever of it may still be on tape.

An `Outlook` is all that the choice depends on, as it was at one time.  A job keeps it: after a restart it chooses the
same again, whatever has happened meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeAlias

from backplane.ids import BackupId, CartridgeId, VolumeTag
from controller.catalog.store import BackupRow, PartRow
from controller.core.allocation import is_at_door
from controller.core.damage import Records, bad_of
from controller.core.lineage import origin
from controller.core.registry import Registry

Families: TypeAlias = Mapping[BackupId, Sequence[BackupId]]
"""The completed copies of each original, oldest first."""


class Rank(IntEnum):
    """How good a source is; less is better."""

    GOOD = 0
    DOUBTFUL = 1
    AWAY = 2
    BAD = 3
    GONE = 4


@dataclass(frozen=True, slots=True)
class Source:
    """Where records `first` .. `end` - 1 of a stream are read."""

    row: BackupRow
    part: PartRow
    first: int
    end: int
    rank: Rank


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was known of the sources of some backups at one time.

    `others` has for each backup of a chain what can be read instead; `ranks` what is not `GOOD`.
    """

    others: Mapping[BackupId, Sequence[BackupId]] = field(default_factory=dict)
    ranks: Mapping[CartridgeId, Rank] = field(default_factory=dict)
    bad: Mapping[BackupId, Records] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {
            "others": {str(key): list(value) for key, value in self.others.items()},
            "ranks": {cartridge: int(rank) for cartridge, rank in self.ranks.items()},
            "bad": {str(key): [list(each) for each in value] for key, value in self.bad.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outlook:
        """Take up the outlook of a job's plan."""
        return cls(
            others={
                BackupId(int(key)): [BackupId(each) for each in others]
                for key, others in value["others"].items()
            },
            ranks={CartridgeId(key): Rank(rank) for key, rank in value["ranks"].items()},
            bad={
                BackupId(int(key)): [(first, end) for first, end in ranges]
                for key, ranges in value["bad"].items()
            },
        )


def families(backups: Mapping[BackupId, BackupRow]) -> Families:
    """Return all copies that can be read."""
    found: dict[BackupId, list[BackupId]] = {}
    for number in sorted(backups):
        row = backups[number]
        if row.copy_of and row.state == "completed":
            found.setdefault(row.copy_of, []).append(number)
    return found


def others_of(
    row: BackupRow, backups: Mapping[BackupId, BackupRow], known: Families
) -> list[BackupId]:
    """Return what has the same stream as a backup, besides itself: the original first."""
    first = origin(row)
    found = []
    for number in (first, *known.get(first, ())):
        other = backups.get(number)
        if (
            number != row.backup
            and other is not None
            and other.state == "completed"
            and _stream_of(other) == _stream_of(row)
        ):
            found.append(number)
    return found


def _stream_of(row: BackupRow) -> tuple[str, int, int, int]:
    return row.volume, row.stream_bytes, row.record_bytes, row.block_bytes


def parts_of(row: BackupRow, registry: Registry) -> Iterator[PartRow]:
    """Yield the parts of a backup in order, up to the first that is missing; no part of another one is looked at."""
    for number in count(1):
        part = registry.parts.get((row.backup, number))
        if part is None:
            return
        yield part


def is_gone(part: PartRow, registry: Registry) -> bool:
    """Tell whether nothing can be read of a part any more: its cartridge has another label, or is unknown."""
    cartridge = registry.cartridges.get(part.tag)
    return cartridge is None or cartridge.cartridge != part.cartridge


def rank_of(part: PartRow, registry: Registry) -> Rank:
    """Say how good the cartridge of a part is to read from now."""
    if is_gone(part, registry):
        return Rank.GONE
    cartridge = registry.cartridges[part.tag]
    node = registry.nodes.get(cartridge.node)
    is_untouched = cartridge.status in ("quarantined", "foreign")
    if is_untouched or node is None or not node.is_online:
        return Rank.AWAY
    state = node.cartridges.get(part.tag)
    if state is None or is_at_door(state):
        return Rank.AWAY
    return Rank.DOUBTFUL if cartridge.status == "error" else Rank.GOOD


def look(
    chain: Iterable[BackupRow],
    backups: Mapping[BackupId, BackupRow],
    registry: Registry,
    known: Families,
) -> Outlook:
    """Return how the sources of a chain stand now; of backups without a second copy there is nothing to say."""
    others, ranks, bad = {}, dict[CartridgeId, Rank](), {}
    for row in chain:
        found = others_of(row, backups, known)
        if not found:
            continue
        others[row.backup] = found
        for each in (row, *(backups[number] for number in found)):
            if ranges := bad_of(each):
                bad[each.backup] = ranges
            ranks |= {part.cartridge: rank_of(part, registry) for part in parts_of(each, registry)}
    return Outlook(others, {key: rank for key, rank in ranks.items() if rank}, bad)


def sources(
    row: BackupRow,
    outlook: Outlook,
    backups: Mapping[BackupId, BackupRow],
    registry: Registry,
    *,
    besides: Sequence[VolumeTag] = (),
    spoiled: Mapping[BackupId, Records] | None = None,
) -> list[Source]:
    """Return where to read each record of a stream, in its order; what nobody has is in none of them.

    Nothing is read on cartridges in `besides`, nor are the records in `spoiled`.
    """
    rows = [row, *(backups[number] for number in outlook.others.get(row.backup, ()))]
    offers = []
    for order, each in enumerate(rows):
        bad = outlook.bad.get(each.backup, ())
        lost = (spoiled or {}).get(each.backup, ())
        for part in parts_of(each, registry):
            if part.tag in besides or part.stream_start % each.record_bytes:
                continue  # The latter is cut where no other copy can be.
            first = part.stream_start // each.record_bytes
            rank = outlook.ranks.get(part.cartridge, Rank.GOOD)
            for start, end in _without(first, first + part.records, lost):
                offers += [
                    (at, (int(r), order, part.part), Source(each, part, at, to, r))
                    for at, to, r in _ranked(start, end, bad, rank)
                ]
    return _best(offers)


def _without(first: int, end: int, holes: Records) -> Iterator[tuple[int, int]]:
    """Yield what of a range is outside of some ranges, which are ascending and do not overlap."""
    for start, stop in holes:
        if first < min(start, end):
            yield first, min(start, end)
        first = max(first, stop)
    if first < end:
        yield first, end


def _ranked(first: int, end: int, bad: Records, rank: Rank) -> Iterator[tuple[int, int, Rank]]:
    for start, stop in _without(first, end, bad):
        yield start, stop, rank
    for start, stop in bad:
        if max(first, start) < min(end, stop):
            yield max(first, start), min(end, stop), max(rank, Rank.BAD)


_Offer: TypeAlias = tuple[int, tuple[int, int, int], Source]
"""(first record, what decides, what is offered)."""


def _best(offers: list[_Offer]) -> list[Source]:
    """Sweep over the stream: at each record the best of what is offered there."""
    offers.sort(key=lambda each: each[0])
    heap: list[tuple[tuple[int, int, int], int, Source]] = []
    found: list[Source] = []
    at = number = 0
    while number < len(offers) or heap:
        if not heap:
            at = max(at, offers[number][0])
        while number < len(offers) and offers[number][0] <= at:
            heappush(heap, (offers[number][1], number, offers[number][2]))
            number += 1
        if heap[0][2].end <= at:
            heappop(heap)
            continue
        best = heap[0][2]
        to = best.end if number == len(offers) else min(best.end, offers[number][0])
        last = found[-1] if found else None
        if (
            last is not None
            and last.end == at
            and (last.row.backup, last.part.part, last.rank)
            == (best.row.backup, best.part.part, best.rank)
        ):
            found.pop()
            found.append(Source(last.row, last.part, last.first, to, last.rank))
        else:
            found.append(Source(best.row, best.part, at, to, best.rank))
        at = to
    return found


def covers(found: Iterable[Source], first: int, end: int) -> bool:
    """Tell whether every record of a range has a source."""
    for each in found:
        if each.first > first:
            break
        first = max(first, each.end)
    return first >= end
