"""The job that writes a label, and nothing else.

    claim cartridge and drive -> load -> erase, if there is anything on it that nobody wants -> label -> unload

What may be labelled: a blank cartridge; one of ours that may be erased (`allocation.why_kept`); with `force` also one
that is foreign or in error, if no living backup is on it.  A tape with data that somebody may want is never labelled,
forced or not: not by its barcode, and not by its label, should those two have been mixed up.  The node has the last
word about erasing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from backplane.errors import NotFoundError, RefusedError, VolumeError
from backplane.ids import Designator, NodeName, VolumeTag
from backplane.tape_format import VolumeHeader
from backplane.tape_format.payload import decode_payload
from backplane.wire.messages import NodeReply, TapeUnload, UnitFence
from controller.catalog.store import CartridgeRow, ItemRow
from controller.core import drives
from controller.core.allocation import (
    is_unused,
    needed_tags,
    place_of,
    state_of,
    why_kept,
    why_kept_elsewhere,
)
from controller.core.cartridge_writer import CartridgeWriter, DiskFullError, KeptError
from controller.core.desk import Desk
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.media import Mounted, mount, put_into_error, tag_claims
from controller.core.procedure import Ask, Claim, NotYet, Procedure, Step

OURS: Final = ("writable", "full")
FORCED: Final = (*OURS, "foreign", "error")
NEVER: Final = ("quarantined", "cleaning")


def submit_label(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin to label a cartridge; raises if that is not possible, and says why."""
    row = desk.registry.cartridge(arguments["tag"])
    pool = desk.registry.pool(arguments["pool"]).pool if arguments["pool"] else row.pool
    is_forced = bool(arguments["force"])
    why = objection(desk, row, is_forced=is_forced)
    if why:
        may_force = row.status in ("foreign", "error") and not is_forced
        hint = "--force, if nobody wants it" if may_force else f"ctl tape show {row.tag}"
        raise RefusedError(f"cartridge {row.tag} is not labelled: {why}", hint=hint)
    state = state_of(desk.registry, row)
    if state is None:
        raise NotFoundError(f"cartridge {row.tag} is in no library: {place_of(row, None)}")
    if state.is_write_protected:
        raise RefusedError(f"cartridge {row.tag} is write protected")
    return desk.begin_job(
        job_row(
            desk,
            "label",
            arguments["token"],
            subject=f"cartridge {row.tag}{f' for pool {pool}' if pool else ''}",
            volume=None,
            plan={"target": row.tag, "pool": pool, "force": is_forced},
        )
    )


def objection(desk: Desk, row: CartridgeRow, *, is_forced: bool) -> str:
    """Say why a cartridge must not be labelled, empty if it may."""
    if row.status == "blank":
        return ""
    used = needed_tags(desk.registry, desk.backups)
    statuses = FORCED if is_forced else OURS
    return why_kept(row, desk.registry, used=used, wall=desk.wall, statuses=statuses)


class _Labeller(CartridgeWriter):
    def __init__(self, desk: Desk, job: Job) -> None:
        super().__init__(desk, job, pool=job.plan["pool"], record_bytes=desk.record_bytes)
        self.erasable = FORCED if job.plan["force"] else OURS

    def check_erasable(self, reply: NodeReply) -> None:
        """Compare the label only where it has to be ours; any other may be that of a cartridge that somebody wants."""
        if self.cartridge.status in OURS:
            super().check_erasable(reply)
            return
        desk = self.desk
        why = objection(desk, self.cartridge, is_forced=bool(self.plan["force"]))
        if reply.header and not why:
            label = decode_payload(reply.header, VolumeHeader).cartridge
            why = why_kept_elsewhere(
                label, self.tag, desk.registry, backups=desk.backups, wall=desk.wall
            )
        if why:
            raise KeptError(f"cartridge {self.tag} is not erased: {why}")

    def mount(self) -> Step:
        """Claim the cartridge and a drive."""

        def attempt() -> Mounted | NotYet:
            row = self.desk.registry.cartridge(self.plan["target"])
            found = mount(
                self.desk.registry,
                self.job.row.job,
                row,
                claims=tag_claims(self.desk),
                untouched=NEVER,
            )
            if isinstance(found, Mounted):
                drives.take(self.desk, self.job, found)
                if row.status != "blank":
                    self.plan["erase"] = True
            return found

        yield Claim(attempt=attempt)
        self.desk.enter(self.job, JobState.COPYING)


def label(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a label job."""
    writer = _Labeller(desk, job)
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall)
        job.plan.setdefault("tries", 0)
        yield from writer.mount()
    yield from adopt_item(desk, job, item)
    if job.state is JobState.COPYING:
        try:
            yield from writer.load()
            while not _is_labelled(writer):
                yield from writer.write_label()
        except VolumeError as error:
            is_kept = isinstance(error, (KeptError, DiskFullError, drives.CartridgeMissingError))
            if writer.cartridge.status in ("blank", *OURS) and not is_kept:
                put_into_error(desk, writer.tag, error.message)
            raise
        desk.enter(job, JobState.COMMITTING, replace(writer.cartridge, pool=writer.pool))
    yield from _unload(desk, job)
    job.result["tags"] = [job.plan["target"]]
    job.result["cartridge"] = desk.registry.cartridges[VolumeTag(job.plan["target"])].cartridge
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def _is_labelled(writer: CartridgeWriter) -> bool:
    row = writer.cartridge
    return is_unused(row) and row.status == "writable"


def _unload(desk: Desk, job: Job) -> Step:
    if "tag" not in job.plan:
        return
    epoch = desk.next_epoch()
    yield from tolerantly(
        desk,
        job,
        Ask(
            node=NodeName(job.plan["tape_node"]),
            make=lambda request: TapeUnload(request=request, drive=job.plan["drive"], epoch=epoch),
            what="unload the drive",
            gives_up=True,
        ),
    )
    drives.give_back(desk, job)


def clean_up_label(desk: Desk, job: Job) -> Step:
    """Fence what a mover may still write; a label half written is finished by whoever uses the cartridge next."""
    if "drive_unit" not in job.plan:
        return
    unit, epoch = Designator(bytes.fromhex(job.plan["drive_unit"])), desk.next_epoch()
    yield from tolerantly(
        desk,
        job,
        Ask(
            node=NodeName(job.plan["tape_node"]),
            make=lambda request: UnitFence(request=request, designator=unit, epoch=epoch),
            what="fence the drive",
            gives_up=True,
        ),
    )
