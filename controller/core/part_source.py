"""Where the data of a part come from while it is written: a static view, or a cartridge.

`PartWriter` knows the tape that it writes; a `PartSource` knows the other end, and nothing of this one:

    claim        what is needed of both ends, in one step
    ready        whatever has to be so before a list can read
    plan         the next list, and what it may do at the source
    fence        after a list that did not end well: whoever may still read is shut out
    cannot_read  the source has said that it cannot read; returns if the part is to end where it stands

Errors of a source are never `VolumeError`: that is what is wrong with the cartridge that is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from backplane.errors import BackupError, MediumError, VolumeError
from backplane.ids import Designator
from backplane.scsi.sense import Sense
from backplane.wire.grants import Rights
from backplane.wire.messages import UnitFence
from controller.catalog.store import ItemRow
from controller.core.desk import Desk
from controller.core.effects import UnitUse
from controller.core.items import disk_use
from controller.core.job import Job
from controller.core.media import Mounted
from controller.core.planner import PartData, PlannedList, plan_data
from controller.core.procedure import Ask, NotYet, Step
from controller.core.tally import Counted
from controller.core.views import check_view


@dataclass(frozen=True, slots=True)
class Unread:
    """A list that its source could not serve: it began with record `first` of a part of which `written` are there."""

    told: Sense
    ended: ItemRow
    first: int
    written: int


class PartSource(Protocol):
    """The other end of a part that is written."""

    def counted(self, data: PartData) -> Counted:
        """Return how the records of a part are counted in the job's ledger."""

    def claim(self, target: Callable[[], Mounted | NotYet]) -> Mounted | NotYet:
        """Claim what reading needs, and with it the target; both or neither."""

    def ready(self) -> Step:
        """See to it that the next list can read."""

    def plan(
        self, data: PartData, *, first: int, tape: Designator, identifier: int
    ) -> tuple[PlannedList, UnitUse]:
        """Plan the list that writes record `first` of the part and those behind it."""

    def fence(self) -> Step:
        """Shut out whoever may still read."""

    def cannot_read(self, unread: Unread) -> Step:
        """Take the word of the source that it cannot read; returns whether the part ends here."""

    def give_back(self) -> None:
        """Let go what was claimed; the caller saves the job."""


class ViewSource:
    """A static view."""

    def __init__(self, desk: Desk, job: Job) -> None:
        self._desk, self._job = desk, job

    @property
    def _view(self) -> Designator:
        return Designator(bytes.fromhex(self._job.plan["view_unit"]))

    def counted(self, data: PartData) -> Counted:
        """Of the last record only what is not padding."""
        return data

    def claim(self, target: Callable[[], Mounted | NotYet]) -> Mounted | NotYet:
        """A view needs no claim: the job has it."""
        return target()

    def ready(self) -> Step:
        """A view is always ready."""
        yield from ()

    def plan(
        self, data: PartData, *, first: int, tape: Designator, identifier: int
    ) -> tuple[PlannedList, UnitUse]:
        """Plan blocks with offset to stream (08h)."""
        planned = plan_data(data, first=first, disk=self._view, tape=tape, identifier=identifier)
        node = self._desk.registry.volumes[self._job.row.volume].node
        return planned, disk_use(node, self._view, planned, rights=Rights.READ)

    def fence(self) -> Step:
        """Raise the floor of the view."""
        volume = self._desk.registry.volumes[self._job.row.volume]
        epoch = self._desk.next_epoch()
        try:
            yield Ask(
                node=volume.node,
                make=lambda request: UnitFence(request=request, designator=self._view, epoch=epoch),
                what="fence the static view",
            )
        except VolumeError as error:
            # The disk node's: no cartridge is at fault.
            raise BackupError(error.message) from error

    def cannot_read(self, unread: Unread) -> Step:
        """A view that cannot be read is broken, or its volume is: there is no other one."""
        yield from check_view(self._desk, self._job)
        lba = unread.told.information
        where = "" if lba is None else f" at LBA {lba}"
        raise MediumError(f"volume {self._job.row.volume_name} cannot be read{where}")

    def give_back(self) -> None:
        """The view stays until the job's end."""
