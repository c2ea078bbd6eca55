"""Reading the parts of a backup record by record, for a restore or a verify.

    claim drive and cartridge -> load, fence, compare -> lists from `plan["record"]` on -> next part

`plan["part"]` counts the parts that the job visits, in its order, from 1; `plan["record"]` is the first record of that
part that is not dealt with.  Both move only together with the outcome of the list that dealt with the records before,
so a list is never counted twice.

A record that cannot be read is *damage*: named by cartridge, object and the LBAs of the volume that it holds.  A
cartridge that cannot be used at all is lost to the job; one that is not there is waited for, unless the job has
another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from backplane.errors import VolumeError
from backplane.ids import Designator, ItemId, NodeName, VolumeTag
from backplane.scsi.sense import SenseKey
from backplane.wire.messages import NodeReply
from controller.catalog.store import ItemRow, PartRow
from controller.core import drives
from controller.core.allocation import is_at_door, state_of
from controller.core.desk import Desk
from controller.core.effects import UnitUse
from controller.core.items import forwarded_of, ledger_total, run_list
from controller.core.job import Job, place_of
from controller.core.media import (
    Mounted,
    check_known_trailer,
    check_label,
    mount,
    put_into_error,
    tag_claims,
)
from controller.core.planner import PlannedList
from controller.core.procedure import Claim, NotYet, Step

DAMAGE_LISTED_MAX: Final = 1000
"""More damaged records than this are counted, not listed."""

EXTENTS_LISTED_MAX: Final = 64
"""Extents of one damaged record that are listed."""


class CartridgeLostError(VolumeError):
    """A cartridge that this job cannot read any part of."""


class CartridgeAwayError(CartridgeLostError):
    """A cartridge that is not there now, or that nobody may touch: nothing is known against what is on it."""


class CartridgeGoneError(CartridgeLostError):
    """A cartridge that the catalog does not count on any more: it says so by itself, as long as that is so."""


class Content(Protocol):
    """What of a part is read: everything, a sample, or what a restore wants of it."""

    @property
    def records(self) -> int:
        """Records of the whole part."""

    def extents_of(self, first: int, end: int) -> list[tuple[int, int]]:
        """Extents whose blocks are read of the records `first` .. `end` - 1."""

    def record_behind(self, first: int, read: int) -> int:
        """Return the record that follows when `read` records were read from `first` on."""


class PartReader:
    """Reads one part after the other."""

    def __init__(
        self,
        desk: Desk,
        job: Job,
        *,
        waits: Callable[[PartRow], bool] | None = None,
        seat: str = "",
    ) -> None:
        """`waits` says of a part whether its cartridge is waited for if it is not there; by default it is."""
        self.desk, self.job, self.plan = desk, job, job.plan
        self._waits, self._seat = waits, seat
        self._mounted: tuple[VolumeTag, int] | None = None
        """The cartridge that was loaded and compared in this life, and where it ends."""

    @property
    def node(self) -> NodeName:
        """The node with the drive."""
        return NodeName(place_of(self.plan, self._seat)["tape_node"])

    @property
    def drive_unit(self) -> Designator:
        """The drive's logical unit."""
        return Designator(bytes.fromhex(place_of(self.plan, self._seat)["drive_unit"]))

    def turn_to(self, part: PartRow) -> Step:
        """Have the part's cartridge in the drive: it may be there from the part before."""
        if self._mounted is None or self._mounted[0] != part.tag:
            yield from self.load(part)
            return
        try:
            self._check_end(part, self._mounted[1])
        except VolumeError as error:
            put_into_error(self.desk, part.tag, error.message)
            raise CartridgeLostError(error.message) from error

    def load(self, part: PartRow) -> Step:
        """Claim a drive for the part's cartridge, load it, check that it is the one; or raise `CartridgeLostError`."""
        while True:
            yield Claim(attempt=lambda: self.claim(part))
            self.desk.enter(self.job, self.job.state)
            try:
                yield from self.load_claimed(part)
            except drives.CartridgeMissingError as error:
                # The drive is for others while this one is looked for.
                drives.give_back(self.desk, self.job, seat=self._seat)
                self._mounted = None
                self.desk.log(self.job, "warning", error.message)
                self.desk.save(self.job)
            else:
                return

    def claim(self, part: PartRow) -> Mounted | NotYet:
        """Claim the part's cartridge and a drive for it."""
        registry = self.desk.registry
        row = registry.cartridges.get(part.tag)
        if row is None:
            raise CartridgeGoneError(
                f"cartridge {part.tag} with part {part.part} of backup {part.backup} is not in the catalog any more"
            )
        if row.cartridge != part.cartridge:
            raise CartridgeGoneError(
                f"cartridge {part.tag} is not the one any more that part {part.part} of "
                f"backup {part.backup} was written on"
            )
        node = registry.nodes.get(row.node)
        state = state_of(registry, row)
        is_there = state is not None and not is_at_door(state)
        is_missing = not is_there and (row.vault != "" or (node is not None and node.is_online))
        is_quarantined = row.status == "quarantined"
        may_wait = self._waits is None or self._waits(part)
        if (is_missing or is_quarantined) and not may_wait:
            where = (
                f"at {state.element}" if state is not None else f"not in the library of {row.node}"
            )
            why = row.status if is_quarantined else where
            raise CartridgeAwayError(f"cartridge {part.tag} is {why}")
        claims = tag_claims(self.desk)
        found = mount(registry, self.job.row.job, row, claims=claims, seat=self._seat)
        if isinstance(found, Mounted):
            drives.take(self.desk, self.job, found, seat=self._seat)
        return found

    def load_claimed(self, part: PartRow) -> Step:
        """Load the part's cartridge, which the job has claimed with a drive, and check that it is the one.

        Raises `CartridgeLostError`, or `CartridgeMissingError` if it was not there to be loaded.
        """
        try:
            reply: NodeReply = yield from drives.load_cartridge(
                self.desk, self.job, seat=self._seat
            )
            self._check(part, reply)
        except drives.CartridgeMissingError:
            raise
        except VolumeError as error:
            put_into_error(self.desk, part.tag, error.message)
            raise CartridgeLostError(error.message) from error
        self._mounted = part.tag, reply.end

    def _check(self, part: PartRow, reply: NodeReply) -> None:
        check_label(self.desk.registry.cartridges[part.tag], reply, store="")
        check_known_trailer(part.tag, reply, self.desk.registry.parts_on(part.tag))
        self._check_end(part, reply.end)

    def _check_end(self, part: PartRow, end: int) -> None:
        if end < part.end:
            raise VolumeError(
                f"cartridge {part.tag} is shorter than the catalog: it ends at object {end}, "
                f"part {part.part} of backup {part.backup} reaches to {part.end}"
            )

    def run(self, planned: PlannedList, purpose: str, uses: tuple[UnitUse, ...]) -> Step:
        """Run a list that deals with `plan["record"]` and those that follow."""
        self.plan["next_record"] = planned.end
        return (
            yield from run_list(
                self.desk,
                self.job,
                planned,
                item=ItemId(self.desk.next_number("item")),
                purpose=purpose,
                uses=uses,
            )
        )

    def records_read(self, ended: ItemRow) -> int:
        """Return how many records an ended list has read from the drive."""
        return ledger_total(ended, self.drive_unit, "records_read")

    def next_part(self, following: PartRow | None = None) -> None:
        """Go on with the part behind this one; the drive is kept if that is `following` on the same cartridge."""
        self.plan.update(part=self.plan["part"] + 1, record=0)
        if following is None or self.plan.get("tag") != following.tag:
            drives.give_back(self.desk, self.job)
            self._mounted = None
        self.desk.save(self.job)

    # --- damage ---

    def damaged_record(self, ended: ItemRow, data: Content) -> int | None:
        """Return the record that the drive could not read, None if something else went wrong."""
        told = forwarded_of(ended).source
        if told is None or told.key not in (SenseKey.MEDIUM_ERROR, SenseKey.BLANK_CHECK):
            return None
        record = data.record_behind(self.plan["record"], self.records_read(ended))
        return record if record < data.records else None

    def note_damage(
        self, part: PartRow, data: Content, record: int, ended: ItemRow
    ) -> dict[str, Any]:
        """Note what a damaged record takes with it; the caller saves the job."""
        blocks = data.extents_of(record, record + 1)
        ordered = sorted(blocks)
        entry = {
            "backup": part.backup,
            "part": part.part,
            "tag": part.tag,
            "object": part.data_object + record,
            "record": record,
            "first_lba": ordered[0][0],
            "last_lba": ordered[-1][0] + ordered[-1][1] - 1,
            "blocks": sum(count for _, count in blocks),
            "extents": [list(extent) for extent in ordered[:EXTENTS_LISTED_MAX]],
            "reason": self.plan.get("trouble", ""),
            "item": ended.item,
        }
        result = self.job.result
        listed = result.setdefault("damage", [])
        if len(listed) < DAMAGE_LISTED_MAX:
            listed.append(entry)
        result["damaged_records"] = result.get("damaged_records", 0) + 1
        self.job.update(error_count=self.job.row.error_count + 1)
        self.desk.log(
            self.job,
            "error",
            f"cartridge {part.tag}: object {entry['object']} is damaged: "
            f"LBA {entry['first_lba']} to {entry['last_lba']} ({entry['blocks']} blocks)",
        )
        return entry
