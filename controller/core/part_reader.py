"""Reading the parts of a backup record by record, for a restore or a verify.

    claim drive and cartridge -> load, fence, compare -> lists from `plan["record"]` on -> next part

`plan["part"]` counts the parts that the job visits, in its order, from 1; `plan["record"]` is the first record of that
part that is not dealt with.  Both move only together with the outcome of the list that dealt with the records before,
so a list is never counted twice.

A record that cannot be read is *damage*: named by cartridge, object and the LBAs of the volume that it holds.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from backplane.errors import VolumeError
from backplane.ids import Designator, ItemId, NodeName, VolumeTag
from backplane.scsi.sense import SenseKey
from backplane.wire.messages import NodeReply
from controller.catalog.store import ItemRow, PartRow
from controller.core import drives
from controller.core.desk import Desk
from controller.core.effects import UnitUse
from controller.core.items import forwarded_of, ledger_total, run_list
from controller.core.job import Job
from controller.core.media import Mounted, check_label, mount, put_into_error, tag_claims
from controller.core.planner import PartData, PartPicks, PlannedList
from controller.core.procedure import Claim, NotYet, Step

DAMAGE_LISTED_MAX: Final = 1000
"""More damaged records than this are counted, not listed."""

EXTENTS_LISTED_MAX: Final = 64
"""Extents of one damaged record that are listed."""

Content: TypeAlias = PartData | PartPicks
"""What of a part is read: everything, or what a restore wants of it."""


class PartReader:
    """Reads one part after the other."""

    def __init__(self, desk: Desk, job: Job) -> None:
        self.desk, self.job, self.plan = desk, job, job.plan
        self._mounted: tuple[VolumeTag, int] | None = None
        """The cartridge that was loaded and compared in this life, and where it ends."""

    @property
    def node(self) -> NodeName:
        """The node with the drive."""
        return NodeName(self.plan["tape_node"])

    @property
    def drive_unit(self) -> Designator:
        """The drive's logical unit."""
        return Designator(bytes.fromhex(self.plan["drive_unit"]))

    def turn_to(self, part: PartRow) -> Step:
        """Have the part's cartridge in the drive: it may be there from the part before."""
        if self._mounted is None or self._mounted[0] != part.tag:
            yield from self.load(part)
            return
        try:
            self._check_end(part, self._mounted[1])
        except VolumeError as error:
            put_into_error(self.desk, part.tag, error.message)
            raise

    def load(self, part: PartRow) -> Step:
        """Claim a drive for the part's cartridge, load it, check that it is the one."""

        def attempt() -> Mounted | NotYet:
            claims = tag_claims(self.desk.jobs)
            row = self.desk.registry.cartridges[part.tag]
            found = mount(self.desk.registry, self.job.row.job, row, claims=claims)
            if isinstance(found, Mounted):
                drives.take(self.desk, self.job, found)
            return found

        yield Claim(attempt=attempt)
        self.desk.enter(self.job, self.job.state)
        try:
            reply: NodeReply = yield from drives.load_cartridge(self.desk, self.job)
            self._check(part, reply)
        except VolumeError as error:
            put_into_error(self.desk, part.tag, error.message)
            raise
        self._mounted = part.tag, reply.end

    def _check(self, part: PartRow, reply: NodeReply) -> None:
        check_label(self.desk.registry.cartridges[part.tag], reply, store="")
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
