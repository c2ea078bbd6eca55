"""Writing on a cartridge: loading it, making it blank if nothing on it is wanted any more, labelling it.

What every writer shares; `part_writer` writes parts of backups, `labelling` nothing but labels.  The place of the
cartridge and the drive stands in the job's plan:

    tag, tape_node, drive, drive_unit    what the job has claimed
    erase                                the cartridge is recycled: erased before anything else, once

Erasing is the node's to do and to refuse.  It is asked for only if the label is the one that the catalog knows, so
what is erased is what was looked at; and whether anybody wants what is on it is looked at once more before.  The row is
blank only when the node has said that the cartridge is; a job that is taken up again in between finds the cartridge
empty and goes on from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from backplane.errors import (
    MediumError,
    NotFoundError,
    RefusedError,
    RetainedError,
    StaleError,
    VolumeError,
)
from backplane.ids import CartridgeId, Designator, ItemId, NodeName, VolumeTag
from backplane.scsi.sense import Sense, SenseKey
from backplane.tape_format.content import LABEL_OBJECTS
from backplane.wire.messages import NodeReply, TapeErase
from controller.catalog.store import CartridgeRow
from controller.core import drives
from controller.core.allocation import disk_is_full, needed_tags, state_of, why_kept
from controller.core.desk import Desk
from controller.core.dispatcher import ATTEMPTS_MAX
from controller.core.items import (
    BACKOFF_BASE_S,
    forwarded_of,
    list_identifier,
    pause,
    run_list,
    tape_use,
)
from controller.core.job import Job
from controller.core.media import check_label, keep
from controller.core.part_content import label_objects
from controller.core.planner import MetadataObject, plan_metadata
from controller.core.procedure import Ask, Claim, NotYet, Step

BAD_MEDIUM: Final = frozenset({SenseKey.MEDIUM_ERROR, SenseKey.DATA_PROTECT})
"""A drive that answers a write so will not write this cartridge the next time either."""


ERASING: Final = "it is being erased"
"""Detail of a cartridge from before its node is asked until the answer: if nobody lives to hear that, the next one who
finds it empty knows why.
"""


class NoRoomError(VolumeError):
    """The cartridge is full before the part is complete.  Nothing is wrong with it otherwise."""


class KeptError(VolumeError):
    """Somebody came to want what is on the cartridge before it was erased.  Nothing is wrong with it."""


class DiskFullError(VolumeError):
    """There is no room under the virtual library.  The cartridge has some, and nothing is wrong with it."""


class CartridgeWriter:
    """One job with one cartridge in one drive."""

    erasable: tuple[str, ...] = ("writable", "full")
    """Statuses of what may be erased."""

    def __init__(self, desk: Desk, job: Job, *, pool: str, record_bytes: int) -> None:
        """`pool` is the one that a cartridge is labelled for, empty for scratch."""
        self.desk, self.job, self.plan = desk, job, job.plan
        self.pool = pool
        self.record_bytes = record_bytes
        self.end = 0

    @property
    def tag(self) -> VolumeTag:
        return VolumeTag(self.plan["tag"])

    @property
    def node(self) -> NodeName:
        return NodeName(self.plan["tape_node"])

    @property
    def drive_unit(self) -> Designator:
        return Designator(bytes.fromhex(self.plan["drive_unit"]))

    @property
    def cartridge(self) -> CartridgeRow:
        return self.desk.registry.cartridges[self.tag]

    @property
    def is_disk_full(self) -> bool:
        """Whether the cartridge has room, as its node said last, and the disk below it has none."""
        state = state_of(self.desk.registry, self.cartridge)
        return state is not None and state.is_out_of_space

    # --- loading ---

    def load(self) -> Step:
        """Fence and load; compare the cartridge with the catalog; learn where it ends."""
        yield Claim(attempt=self._claim_drive)
        reply: NodeReply = yield from drives.load_cartridge(self.desk, self.job)
        was_erased = self.cartridge.detail == ERASING and not reply.end
        if self.plan.get("erase") or was_erased:
            reply = yield from self._make_blank(reply)
        self.check(reply)
        if (
            self.cartridge.detail == ERASING
        ):  # It came to nothing, and no earlier epoch gets through.
            self.desk.record(replace(self.cartridge, detail=""))
        self.end = reply.end

    def _claim_drive(self) -> bool | NotYet:
        key = (self.node, self.plan["drive"])
        if not self.desk.registry.may_claim(key, job=self.job.row.job):
            holder = self.desk.registry.drive_claims[key]
            return NotYet(f"waiting: drive {self.plan['drive']} is used by job {holder}")
        self.desk.registry.claim_drive(self.job.row.job, *key)
        return True

    def check(self, reply: NodeReply) -> None:
        """Raise `VolumeError` if what is in the drive is not what the catalog says."""
        row = self.cartridge
        if row.status != "blank":
            check_label(row, reply, store=self.desk.store)
        elif reply.end and not row.cartridge:
            raise VolumeError(f"cartridge {row.tag} was blank and is not any more")
        elif reply.end >= LABEL_OBJECTS:
            check_label(row, reply, store=self.desk.store)

    # --- erasing ---

    def _make_blank(self, reply: NodeReply) -> Step:
        """Erase what is in the drive; returns what is found there afterwards: nothing."""
        tries = 0
        while reply.end:
            self.check_erasable(reply)
            if self.cartridge.status in CartridgeWriter.erasable:
                self.desk.record(replace(self.cartridge, detail=ERASING))
            try:
                yield self._ask_erase()
                break
            except (StaleError, NotFoundError) as error:
                # The node has restarted, or its drive has been fenced: load, and see what is on the tape.
                tries += 1
                if tries >= ATTEMPTS_MAX:
                    raise VolumeError(
                        f"cartridge {self.tag} cannot be erased: {error.message}"
                    ) from error
                yield from pause(self.desk, self.job, BACKOFF_BASE_S * tries, why=error.message)
                reply = yield from drives.load_cartridge(self.desk, self.job)
            except RetainedError as error:
                self._note_kept(error)
                raise KeptError(f"cartridge {self.tag} is not erased: {error.message}") from error
            except (RefusedError, MediumError) as error:
                raise VolumeError(
                    f"cartridge {self.tag} cannot be erased: {error.message}"
                ) from error
        self._note_erased()
        return replace(
            reply,
            end=0,
            durable_end=0,
            header=b"",
            trailer=b"",
            trailer_digest=b"",
            trailer_sequence=0,
        )

    def check_erasable(self, reply: NodeReply) -> None:
        """Raise `VolumeError` unless this is the cartridge that was meant, and nothing on it is wanted."""
        check_label(self.cartridge, reply, store=self.desk.store)
        used = needed_tags(self.desk.registry, self.desk.backups)
        why = why_kept(
            self.cartridge,
            self.desk.registry,
            used=used,
            wall=self.desk.wall,
            statuses=self.erasable,
        )
        if why:
            raise KeptError(f"cartridge {self.tag} is not erased: {why}")

    def _ask_erase(self) -> Ask:
        epoch = self.desk.next_epoch()
        is_forced = bool(self.plan.get("force"))
        return Ask(
            node=self.node,
            make=lambda request: TapeErase(
                request=request,
                drive=self.plan["drive"],
                tag=self.tag,
                epoch=epoch,
                is_forced=is_forced,
                now=self.desk.wall,
            ),
            what=f"erase cartridge {self.tag}",
        )

    def _note_kept(self, error: RetainedError) -> None:
        """Its node has the last word, and its own clock: nothing is wrong with the cartridge, which is left alone."""
        keep(self.desk, self.cartridge, error.message)
        if self.cartridge.detail == ERASING:
            self.desk.record(replace(self.cartridge, detail=""))

    def _note_erased(self) -> None:
        row = self.cartridge
        self.desk.registry.kept.pop(row.tag, None)
        gone = {part.backup for part in self.desk.registry.parts_on(self.tag)}
        blank = replace(
            row,
            status="blank",
            detail="",
            cartridge=CartridgeId(""),
            end=0,
            sequence=0,
            first_written="",
            last_written="",
            retain_until="",
        )
        self.plan.pop("erase", None)
        self.desk.save(self.job, blank)
        self.desk.log(self.job, "info", f"cartridge {self.tag} is erased")
        for backup in sorted(gone):
            state = self.desk.backups[backup].state
            told = f"backup {backup}, which is {state}, is gone from cartridge {self.tag}"
            self.desk.log(self.job, "info", told)

    # --- writing metadata ---

    def write_label(self) -> Step:
        """Write the label; its identifier is recorded first, so that a label half written is known as ours."""
        if not self.cartridge.cartridge:
            row = replace(
                self.cartridge,
                cartridge=CartridgeId(self.desk.new_uuid()),
                pool=self.pool,
                created=self.desk.wall,
            )
            self.desk.record(replace(row, detail="its label is being written"))
        if self.end < LABEL_OBJECTS:
            objects = label_objects(
                self.cartridge, store=self.desk.store, record_bytes=self.record_bytes
            )
            yield from self.write_objects(objects, 0, "label")
        if self.end >= LABEL_OBJECTS:
            row = replace(self.cartridge, status="writable", detail="", end=LABEL_OBJECTS)
            self.desk.save(self.job, replace(row, sequence=0))

    def write_objects(self, objects: list[MetadataObject], first: int, purpose: str) -> Step:
        """Write what one list can of the metadata objects that start at object `first`."""
        planned = plan_metadata(
            objects,
            first=self.end - first,
            tape=self.drive_unit,
            identifier=list_identifier(self.desk.next_number("list")),
        )
        ended = yield from run_list(
            self.desk,
            self.job,
            planned,
            item=self.new_item(),
            purpose=purpose,
            uses=(tape_use(self.node, self.drive_unit, planned, position=self.end),),
        )
        if ended.state == "done":
            self.end += planned.tape_objects
            return
        told = forwarded_of(ended).destination
        yield from self.settle()
        if told is not None:
            self.check_medium(told, purpose)

    def settle(self) -> Step:
        """After an item that did not end well: raise the drive's fence, then see what is on the tape."""
        yield from self.load()

    def new_item(self) -> ItemId:
        """Return the number of an item."""
        return ItemId(self.desk.next_number("item"))

    def check_medium(self, told: Sense, purpose: str) -> None:
        """Raise if the drive has said that the cartridge is full or bad."""
        if told.key is SenseKey.VOLUME_OVERFLOW and self.is_disk_full:
            raise DiskFullError(f"no room for the {purpose}: {disk_is_full(self.node)}")
        if told.key is SenseKey.VOLUME_OVERFLOW:
            raise NoRoomError(f"no room for the {purpose}")
        if told.key in BAD_MEDIUM:
            raise VolumeError(f"the {purpose} cannot be written: {told.describe()}")
