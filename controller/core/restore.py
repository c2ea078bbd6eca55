"""The restore of a backup onto a volume, and the verify of a backup: both read parts in order, record by record.

The target of a restore is OFFLINE from before the first block is written until the node has durably raised the fence
floor and said so (*publish after fence*).  A list of a restore may run twice: it writes the same blocks again to a
volume that nobody can read.  A restore that fails leaves the volume offline, in state restore-failed, never half
restored and online.

A record that cannot be read is *damage*: named by cartridge, object and the LBAs of the volume that it holds.  A
restore stops there; a verify goes on behind it and lists everything that is damaged.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

from backplane.errors import BackupError, ExitCode, MediumError, RefusedError, VolumeError
from backplane.ids import Designator, ItemId, NodeName
from backplane.scsi.sense import SenseKey
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    NodeReply,
    TapeDigest,
    TapeLoad,
    UnitFence,
    VolumeCreate,
    VolumeOffline,
    VolumePublish,
)
from controller.catalog.store import BackupRow, ItemRow, PartRow
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
from controller.core.items import (
    disk_use,
    forwarded_of,
    ledger_total,
    list_identifier,
    note_outcome,
    run_list,
    tape_use,
)
from controller.core.job import Job, JobState
from controller.core.media import check_label, mount, tag_claims
from controller.core.planner import (
    PartData,
    PlannedList,
    blocks_of_record,
    plan_restore,
    plan_verify,
)
from controller.core.procedure import Ask, Claim, Extents, NotYet, Procedure, Run, Step

DAMAGE_LISTED_MAX: Final = 1000
"""More damaged records than this are counted, not listed."""


def restore(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a restore job."""
    row = desk.backups[job.row.backup]
    target = desk.registry.volumes[job.row.volume]
    yield Claim(attempt=lambda: _claim_target(desk, job))
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.stream_bytes)
        job.plan.update(tries=0, unlucky=[], item=0, part=1, record=0)
        desk.save(job)
        yield from _take_offline(desk, job)
        desk.enter(job, JobState.COPYING)
    if job.state is JobState.COPYING:
        runs = yield Extents(backup=row.backup)
        yield from _adopt_item(desk, job, item)
        reader = _PartReader(desk, job, row, runs)
        for part in desk.registry.parts_of(row.backup)[job.plan["part"] - 1 :]:
            yield from reader.restore_part(part)
        desk.enter(job, JobState.COMMITTING)
    if job.state is JobState.COMMITTING:
        yield from _publish(desk, job, "online")
    job.result["volume"] = target.name
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def clean_up_restore(desk: Desk, job: Job) -> Step:
    """The target stays offline, fenced, and says that its restore failed; one never made leaves no name."""
    volume = desk.registry.volumes[job.row.volume]
    if not job.plan.get("is_offline"):
        if job.plan["is_new"]:
            desk.record(replace(volume, is_deleted=True))
        return
    if desk.registry.is_online(volume.node):
        yield from _publish(desk, job, "restore-failed", gives_up=True)


def verify(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a verify job."""
    row = desk.backups[job.row.backup]
    parts = desk.registry.parts_of(row.backup)
    if job.state is JobState.QUEUED:
        job.update(
            started=desk.wall, planned_bytes=sum(part.records * row.record_bytes for part in parts)
        )
        job.plan.update(tries=0, unlucky=[], item=0, part=1, record=0)
        job.result.setdefault("damage", [])
        desk.enter(job, JobState.COPYING)
    if job.state is JobState.COPYING:
        runs = yield Extents(backup=row.backup)
        yield from _adopt_item(desk, job, item)
        reader = _PartReader(desk, job, row, runs)
        for part in parts[job.plan["part"] - 1 :]:
            yield from reader.verify_part(part)
        desk.enter(job, JobState.COMMITTING)
    count = job.result.get("damaged_records", 0)
    if count or job.result.get("mismatches"):
        # No clean-up is due: a verify writes nothing and holds nothing but its drive.
        desk.end_job(
            job,
            JobState.FAILED,
            reason=_damage_words(job.result),
            exit_code=int(ExitCode.DAMAGED),
        )
        return
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def _damage_words(result: dict[str, Any]) -> str:
    words = [
        f"{entry['tag']} object {entry['object']}: LBA {entry['first_lba']} to {entry['last_lba']}"
        for entry in result.get("damage", [])[:4]
    ]
    words += result.get("mismatches", [])[:4]
    more = result.get("damaged_records", 0) - 4
    return "damage found: " + "; ".join(words) + (f"; and {more} records more" if more > 0 else "")


def _claim_target(desk: Desk, job: Job) -> bool | NotYet:
    volume = desk.registry.volumes[job.row.volume]
    holder = desk.registry.volume_claims.get(volume.volume, job.row.job)
    if holder != job.row.job:
        return NotYet(f"waiting: volume {volume.name} is used by job {holder}")
    if job.state is JobState.QUEUED and not desk.registry.is_online(volume.node):
        return NotYet(f"waiting: storage node {volume.node} is away")
    desk.registry.volume_claims[volume.volume] = job.row.job
    return True


def _take_offline(desk: Desk, job: Job) -> Step:
    """Make the target a volume that only this restore may write."""
    volume = desk.registry.volumes[job.row.volume]
    if job.plan["is_new"]:
        yield Ask(
            node=volume.node,
            make=lambda request: VolumeCreate(
                request=request,
                volume=volume.volume,
                name=volume.name,
                size_bytes=volume.blocks * volume.block_bytes,
                block_bytes=volume.block_bytes,
                state="online",
            ),
            what=f"create volume {volume.name}",
        )
    epoch = desk.next_epoch()
    yield Ask(
        node=volume.node,
        make=lambda request: VolumeOffline(
            request=request,
            volume=volume.volume,
            job=job.row.job,
            epoch=epoch,
            is_forced=job.plan["is_forced"],
        ),
        what=f"take volume {volume.name} offline",
    )
    job.plan["is_offline"] = True
    desk.save(job)


def _publish(desk: Desk, job: Job, state: str, *, gives_up: bool = False) -> Step:
    volume = desk.registry.volumes[job.row.volume]
    epoch = desk.next_epoch()
    yield Ask(
        node=volume.node,
        make=lambda request: VolumePublish(
            request=request, volume=volume.volume, job=job.row.job, epoch=epoch, state=state
        ),
        what=f"publish volume {volume.name} as {state}",
        gives_up=gives_up,
    )


def _adopt_item(desk: Desk, job: Job, item: ItemRow | None) -> Step:
    """Wait for the item that was under way when the controller stopped, and take up its result."""
    if item is not None and item.state == "leased":
        ended = yield Run(row=item, uses=())
        note_outcome(desk, job, ended)
        if ended.state == "done":
            job.plan["record"] = job.plan["next_record"]
            desk.save(job)


class _PartReader:
    """Reads the parts of one backup, for a restore or a verify."""

    def __init__(self, desk: Desk, job: Job, row: BackupRow, runs: ExtentRuns) -> None:
        self.desk, self.job, self.plan, self.row, self.runs = desk, job, job.plan, row, runs

    def _data(self, part: PartRow) -> PartData:
        return PartData(
            runs=self.runs,
            block_bytes=self.row.block_bytes,
            record_bytes=self.row.record_bytes,
            stream_start=part.stream_start,
            stream_bytes=part.stream_bytes,
        )

    @property
    def _node(self) -> NodeName:
        return NodeName(self.plan["tape_node"])

    @property
    def _drive_unit(self) -> Designator:
        return Designator(bytes.fromhex(self.plan["drive_unit"]))

    def restore_part(self, part: PartRow) -> Step:
        """Copy one part's records onto the target."""
        data = self._data(part)
        yield from self._load(part)
        volume = self.desk.registry.volumes[self.job.row.volume]
        while self.plan["record"] < part.records:
            first = self.plan["record"]
            planned = plan_restore(
                data,
                first=first,
                data_object=part.data_object,
                disk=volume.designator,
                tape=self._drive_unit,
                identifier=list_identifier(self.desk.next_number("list")),
            )
            uses = (
                disk_use(
                    volume.node, volume.designator, planned, rights=Rights.READ | Rights.WRITE
                ),
                tape_use(self._node, self._drive_unit, planned),
            )
            ended = yield from self._run(planned, "restore", uses, first=first)
            if ended.state == "done":
                written = ledger_total(ended, volume.designator, "bytes_written")
                if written != planned.data_bytes:
                    raise BackupError(
                        f"item {ended.item}: the mover reports {written} bytes written, "
                        f"{planned.data_bytes} were planned"
                    )
                self._advance(first + planned.records, part, data)
                continue
            damaged = self._damaged_record(ended, part, first)
            if damaged is not None:
                lost = self._damage(part, data, damaged, ended)
                raise MediumError(
                    f"cartridge {part.tag}: object {lost['object']} cannot be read; "
                    f"LBA {lost['first_lba']} to {lost['last_lba']} of the volume cannot be restored",
                    hint=f"the volume stays offline; ctl submit verify {part.backup} lists all damage",
                )
            yield from self._settle(part)
        self._next_part(part)

    def verify_part(self, part: PartRow) -> Step:
        """Read one part's records, and compare the stored digests with the catalog's root."""
        data = self._data(part)
        yield from self._load(part)
        yield from self._compare_root(part)
        while self.plan["record"] < part.records:
            first = self.plan["record"]
            planned = plan_verify(
                first=first,
                records=part.records - first,
                record_bytes=self.row.record_bytes,
                data_object=part.data_object,
                tape=self._drive_unit,
                identifier=list_identifier(self.desk.next_number("list")),
            )
            uses = (tape_use(self._node, self._drive_unit, planned),)
            ended = yield from self._run(planned, "verify", uses, first=first)
            if ended.state == "done":
                self._advance(first + planned.records, part, data)
                continue
            damaged = self._damaged_record(ended, part, first)
            if damaged is not None:
                self._damage(part, data, damaged, ended)
                self.plan["tries"] = 0
                self._advance(damaged + 1, part, data)
            yield from self._settle(part)
        self._next_part(part)

    def _run(self, planned: PlannedList, purpose: str, uses: Any, *, first: int) -> Step:
        self.plan["next_record"] = first + planned.records
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

    def _advance(self, record: int, part: PartRow, data: PartData) -> None:
        self.plan["record"] = record
        if self.job.row.kind == "verify":
            before = sum(
                each.records
                for each in self.desk.registry.parts_of(part.backup)
                if each.part < part.part
            )
            done = (before + record) * self.row.record_bytes
        else:
            done = part.stream_start + data.bytes_before(record)
        self.job.update(done_bytes=done)
        self.desk.save(self.job)

    def _next_part(self, part: PartRow) -> None:
        self.plan.update(part=part.part + 1, record=0)
        for name in ("tag", "tape_node", "drive", "drive_unit"):
            self.plan.pop(name, None)
        self.desk.registry.drive_claims = {
            key: job
            for key, job in self.desk.registry.drive_claims.items()
            if job != self.job.row.job
        }
        self.desk.save(self.job)

    # --- the cartridge ---

    def _load(self, part: PartRow) -> Step:
        """Claim a drive for the part's cartridge, load it, check that it is the one."""

        def attempt() -> Any:
            claims = tag_claims(self.desk.jobs)
            row = self.desk.registry.cartridges[part.tag]
            return mount(self.desk.registry, self.job.row.job, row, claims=claims)

        mounted = yield Claim(attempt=attempt)
        self.desk.registry.drive_claims[mounted.node, mounted.drive.name] = self.job.row.job
        self.plan.update(
            tag=part.tag,
            tape_node=mounted.node,
            drive=mounted.drive.name,
            drive_unit=mounted.drive.designator.hex(),
        )
        self.desk.enter(self.job, self.job.state)
        epoch = self.desk.next_epoch()
        reply = yield Ask(
            node=mounted.node,
            make=lambda request: TapeLoad(
                request=request, drive=mounted.drive.name, tag=part.tag, epoch=epoch
            ),
            what=f"load cartridge {part.tag}",
        )
        assert isinstance(reply, NodeReply)
        check_label(self.desk.registry.cartridges[part.tag], reply, store=self.desk.store)
        if reply.end < part.end:
            raise VolumeError(
                f"cartridge {part.tag} ends at object {reply.end}, part {part.part} of backup "
                f"{part.backup} reaches to {part.end}"
            )

    def _settle(self, part: PartRow) -> Step:
        """After an item that did not end well: raise every fence before the next one is planned."""
        yield from self._load(part)
        if self.job.row.kind != "restore":
            return
        volume = self.desk.registry.volumes[self.job.row.volume]
        epoch = self.desk.next_epoch()
        yield Ask(
            node=volume.node,
            make=lambda request: UnitFence(
                request=request, designator=volume.designator, epoch=epoch
            ),
            what=f"fence volume {volume.name}",
        )

    # --- damage ---

    def _damaged_record(self, ended: ItemRow, part: PartRow, first: int) -> int | None:
        """Return the record that the drive could not read, None if something else went wrong."""
        told = forwarded_of(ended).source
        if told is None or told.key not in (SenseKey.MEDIUM_ERROR, SenseKey.BLANK_CHECK):
            return None
        record = first + ledger_total(ended, self._drive_unit, "records_read")
        return record if record < part.records else None

    def _damage(self, part: PartRow, data: PartData, record: int, ended: ItemRow) -> dict[str, Any]:
        """Note what a damaged record takes with it."""
        blocks = blocks_of_record(data, record)
        ordered = sorted(blocks)
        entry = {
            "tag": part.tag,
            "object": part.data_object + record,
            "record": record,
            "first_lba": ordered[0][0],
            "last_lba": ordered[-1][0] + ordered[-1][1] - 1,
            "blocks": sum(count for _, count in blocks),
            "extents": [list(extent) for extent in ordered[:64]],
            "reason": self.plan.get("trouble", ""),
            "item": ended.item,
        }
        listed = self.job.result.setdefault("damage", [])
        if len(listed) < DAMAGE_LISTED_MAX:
            listed.append(entry)
        self.job.result["damaged_records"] = self.job.result.get("damaged_records", 0) + 1
        self.job.update(error_count=self.job.row.error_count + 1)
        self.desk.log(
            self.job,
            "error",
            f"cartridge {part.tag}: object {entry['object']} is damaged: "
            f"LBA {entry['first_lba']} to {entry['last_lba']} ({entry['blocks']} blocks)",
        )
        return entry

    def _compare_root(self, part: PartRow) -> Step:
        """The digests that the cartridge keeps must be those that were committed."""
        digests = b""
        following, end = part.data_object, part.data_object + part.records
        while following < end:
            start = following
            reply = yield Ask(
                node=self._node,
                make=lambda request, start=start: TapeDigest(  # type: ignore[misc]
                    request=request, drive=self.plan["drive"], start=start, end=end
                ),
                what="read the digests of the part",
            )
            if reply.next_object <= start:
                break
            digests += reply.digests
            following = reply.next_object
        if hashlib.sha256(digests).hexdigest() != part.root:
            text = f"cartridge {part.tag}: the digests of part {part.part} are not those that were committed"
            self.job.result.setdefault("mismatches", []).append(text)
            self.desk.log(self.job, "error", text)


def check_target_size(row: BackupRow, *, blocks: int, block_bytes: int, name: str) -> None:
    """Raise `RefusedError` unless a volume can take a backup."""
    if blocks * block_bytes < row.blocks * row.block_bytes:
        raise RefusedError(
            f"volume {name} has {blocks * block_bytes} bytes, the backup is of a volume of "
            f"{row.blocks * row.block_bytes}",
            hint="restore to a volume that is at least as large, or use --new NAME",
        )
    if block_bytes != row.block_bytes:
        raise RefusedError(
            f"volume {name} has blocks of {block_bytes} bytes, the backup blocks of {row.block_bytes}",
            hint="restore with --new NAME",
        )
