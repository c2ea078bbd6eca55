"""Writing one part of a backup onto one cartridge.

The position of the tape drives the copying.  A part's objects are known before the first is written, so after
anything whatsoever (a lost mover, a restarted tape node, our own restart) one question is enough: *where does the
cartridge end?*  It is asked after the fence is raised, and what is still missing is planned from there:

    end < data_object                  the rest of the part header
    end < data_object + records        the rest of the data
    end < end of the trailer           the rest of the trailer file, its synchronous filemark last
    otherwise                          the part is committed: record it

Early warning ends a part: its trailer says "continued", and the next part begins on another cartridge at the stream
byte after the last record that was written (D5: the record that met early warning was written).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Final

from backplane.errors import BackupError, MediumError, NotFoundError, VolumeError
from backplane.ids import CartridgeId, Designator, ItemId, NodeName, VolumeTag
from backplane.scsi.sense import SenseKey
from backplane.tape_format import (
    DirectoryEntry,
    PartHeader,
    PartTrailer,
    VolumeFacts,
    VolumeHeader,
    encode_label,
    encode_part_header,
    encode_part_trailer,
)
from backplane.tape_format.content import FORMAT_VERSION, OWNER
from backplane.tape_format.payload import encode_payload
from backplane.wire.grants import Rights
from backplane.wire.messages import NodeReply, TapeDigest, TapeLoad, UnitFence
from controller.catalog.store import BackupRow, CartridgeRow, ItemRow, PartRow
from controller.core.desk import Desk
from controller.core.dispatcher import ATTEMPTS_MAX
from controller.core.extent_runs import ExtentRuns
from controller.core.items import (
    disk_use,
    forwarded_of,
    ledger_total,
    list_identifier,
    progress,
    run_list,
    tape_use,
)
from controller.core.job import Job
from controller.core.media import Mounted, check_label, check_tail, choose_for_append, tag_claims
from controller.core.planner import Mark, MetadataObject, PartData, plan_data, plan_metadata
from controller.core.procedure import Ask, Claim, NotYet, Step

LABEL_OBJECTS: Final = 4
"""VOL1, two volume headers, a filemark."""


class PartWriter:
    """One part on one cartridge, as far as it has come."""

    def __init__(self, desk: Desk, job: Job, runs: ExtentRuns, row: BackupRow) -> None:
        self.desk, self.job, self.plan, self.row = desk, job, job.plan, row
        start = self.plan["stream_start"]
        self.data = PartData(
            runs=runs,
            block_bytes=row.block_bytes,
            record_bytes=row.record_bytes,
            stream_start=start,
            stream_bytes=row.stream_bytes - start,
        )
        self.end = 0
        self.digest_failures = 0

    # --- where everything stands ---

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
    def records(self) -> int:
        """Records of this part: all, or as many as fitted before early warning."""
        ended: int | None = self.plan.get("records")
        return self.data.records if ended is None else ended

    @property
    def is_last(self) -> bool:
        return self.records == self.data.records

    @property
    def stream_bytes(self) -> int:
        return self.data.bytes_before(self.records)

    # --- the course of a part ---

    def write(self) -> Step:
        """Write the part, or what is missing of it, and record its commit."""
        if "tag" not in self.plan:
            yield from self._mount()
        yield from self._load()
        if not self.cartridge.cartridge:
            yield from self._label()
        while not (yield from self._write_next()):
            pass

    def _write_next(self) -> Step:
        """Write what is missing next; True when the part is over.

        A crash takes what was only in the drive's buffer: the tape may come back shorter than it was, and then this
        goes back as far as that.
        """
        header_object = self._begin_part()
        header = self._header_objects()
        data_object = header_object + len(header)
        data_end = data_object + self.records
        if self.end < data_object:
            yield from self._write_objects(header, header_object, "header")
            return False
        if self.end < data_end:
            yield from self._write_data(data_object)
            return False
        if self.records == 0 and not self.is_last:
            # Not one record fitted: no trailer for nothing; the header is an orphan tail.
            self._cartridge_is_full()
            self._forget_cartridge()
            return True
        trailer, objects = yield from self._trailer(data_object)
        if trailer is None:
            return False
        if self.end < data_end + len(objects):
            yield from self._write_objects(objects, data_end, "trailer")
            return False
        yield from self._commit(trailer, data_object, len(objects))
        return True

    def _begin_part(self) -> int:
        """Return where the header stands or will stand."""
        if self.end < self.plan.get("header_object", 0):
            # Even what was before the header (an orphan tail) had never left the drive's buffer.
            for name in ("header_object", "trailer_created", "records"):
                self.plan.pop(name, None)
        if "header_object" not in self.plan:
            self.plan.update(header_object=self.end, part_created=self.desk.wall)
            self.desk.save(self.job)
        found: int = self.plan["header_object"]
        return found

    def reject(self, error: VolumeError) -> None:
        """Put the cartridge into error and begin the part anew elsewhere."""
        row = replace(self.cartridge, status="error", detail=error.message)
        self.desk.alarm(f"cartridge {row.tag}: {error.message}")
        self.desk.log(self.job, "error", f"cartridge {row.tag} is not used: {error.message}")
        self.desk.record(row)
        self._forget_cartridge()

    def _forget_cartridge(self) -> None:
        for name in ("tag", "tape_node", "drive", "drive_unit", "label", "records"):
            self.plan.pop(name, None)
        for name in ("header_object", "part_created", "trailer_created", "results"):
            self.plan.pop(name, None)
        self.desk.registry.drive_claims = {
            key: job
            for key, job in self.desk.registry.drive_claims.items()
            if job != self.job.row.job
        }
        self.desk.save(self.job)

    def _mount(self) -> Step:
        def attempt() -> Mounted | NotYet:
            claims = tag_claims(self.desk.jobs)
            found = choose_for_append(self.desk.registry, self.job.row.job, claims=claims)
            if isinstance(found, Mounted):
                key = (found.node, found.drive.name)
                self.desk.registry.drive_claims[key] = self.job.row.job
            return found

        mounted: Mounted = yield Claim(attempt=attempt)
        self.plan.update(
            tag=mounted.tag,
            tape_node=mounted.node,
            drive=mounted.drive.name,
            drive_unit=mounted.drive.designator.hex(),
        )
        self.desk.enter(self.job, self.job.state)
        self.desk.log(self.job, "info", f"cartridge {mounted.tag} in {mounted.drive.name}")

    def _claim_drive(self) -> bool | NotYet:
        key = (self.node, self.plan["drive"])
        holder = self.desk.registry.drive_claims.get(key, self.job.row.job)
        if holder != self.job.row.job:
            return NotYet(f"waiting: drive {self.plan['drive']} is used by job {holder}")
        self.desk.registry.drive_claims[key] = self.job.row.job
        return True

    def _load(self) -> Step:
        """Fence and load; compare the cartridge with the catalog; learn where it ends."""
        yield Claim(attempt=self._claim_drive)
        epoch = self.desk.next_epoch()
        reply = yield Ask(
            node=self.node,
            make=lambda request: TapeLoad(
                request=request, drive=self.plan["drive"], tag=self.tag, epoch=epoch
            ),
            what=f"load cartridge {self.tag}",
        )
        assert isinstance(reply, NodeReply)
        row = self.cartridge
        if row.cartridge:
            check_label(row, reply, store=self.desk.store)
            own = (self.row.backup_uuid, self.plan["part"])
            check_tail(row, reply, self.desk.registry.last_part(row.tag), own=own)
        elif reply.end and "label" not in self.plan:
            raise VolumeError(f"cartridge {row.tag} was blank and is not any more")
        self.end = reply.end

    def _settle(self) -> Step:
        """After an item that did not end well: raise every fence, then see what is on the tape."""
        before = self.end
        yield from self._load()
        volume = self.desk.registry.volumes[self.job.row.volume]
        epoch = self.desk.next_epoch()
        yield Ask(
            node=volume.node,
            make=lambda request: UnitFence(
                request=request,
                designator=Designator(bytes.fromhex(self.plan["view_unit"])),
                epoch=epoch,
            ),
            what="fence the static view",
        )
        if self.end > before:
            progress(self.job)

    def _item(self) -> ItemId:
        return ItemId(self.desk.next_number("item"))

    # --- metadata ---

    def _label(self) -> Step:
        if "label" not in self.plan:
            self.plan["label"] = {"cartridge": self.desk.new_uuid(), "created": self.desk.wall}
            self.desk.save(self.job)
        label = self.plan["label"]
        header = VolumeHeader(
            format_version=FORMAT_VERSION,
            cartridge=label["cartridge"],
            tag=self.tag,
            created=label["created"],
            owner=OWNER,
            store=self.desk.store,
            record_bytes=self.row.record_bytes,
        )
        objects: list[MetadataObject] = [*encode_label(header), Mark(is_synchronous=True)]
        assert len(objects) == LABEL_OBJECTS
        yield from self._write_objects(objects, 0, "label")
        self.desk.save(
            self.job,
            replace(
                self.cartridge,
                cartridge=CartridgeId(label["cartridge"]),
                status="writable",
                detail="",
                end=LABEL_OBJECTS,
                sequence=0,
            ),
        )

    def _volume(self) -> VolumeFacts:
        volume = self.desk.registry.volumes[self.job.row.volume]
        return VolumeFacts(
            id=volume.volume,
            name=volume.name,
            designator=volume.designator.hex(),
            blocks=volume.blocks,
            block_bytes=volume.block_bytes,
        )

    def _header_objects(self) -> list[MetadataObject]:
        previous = self.desk.registry.parts.get((self.row.backup, self.plan["part"] - 1))
        last = self.desk.registry.last_part(self.tag)
        header = PartHeader(
            cartridge=self.cartridge.cartridge,
            sequence=self.cartridge.sequence + 1,
            backup=self.row.backup,
            backup_uuid=self.row.backup_uuid,
            job=self.job.row.job,
            part=self.plan["part"],
            previous_cartridge=previous.cartridge if previous is not None else "",
            volume=self._volume(),
            view=self.job.row.view,
            view_means=self.row.view_means,
            consistency=self.row.consistency,
            view_time=self.plan["view_time"],
            record_bytes=self.row.record_bytes,
            object=self.plan["header_object"],
            previous_trailer=last.trailer_object if last is not None else 0,
            stream_start=self.data.stream_start,
            extents=tuple(self.data.extents_of(0, self.data.records)),
            created=self.plan["part_created"],
        )
        return [*encode_part_header(header), Mark(is_synchronous=False)]

    def _write_objects(self, objects: list[MetadataObject], first: int, purpose: str) -> Step:
        """Write metadata objects that start at object `first` until the tape has them all, or ends before them."""
        while first <= self.end < first + len(objects):
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
                item=self._item(),
                purpose=purpose,
                uses=(tape_use(self.node, self.drive_unit, planned, position=self.end),),
            )
            if ended.state == "done":
                self.end += planned.tape_objects
                continue
            told = forwarded_of(ended).destination
            yield from self._settle()
            if told is not None and told.key == SenseKey.VOLUME_OVERFLOW:
                raise VolumeError(f"cartridge {self.tag}: no room for the {purpose}")

    # --- data ---

    def _write_data(self, data_object: int) -> Step:
        while data_object <= self.end < data_object + self.records:
            first = self.end - data_object
            view = Designator(bytes.fromhex(self.plan["view_unit"]))
            planned = plan_data(
                self.data,
                first=first,
                disk=view,
                tape=self.drive_unit,
                identifier=list_identifier(self.desk.next_number("list")),
            )
            volume = self.desk.registry.volumes[self.job.row.volume]
            ended = yield from run_list(
                self.desk,
                self.job,
                planned,
                item=self._item(),
                purpose="data",
                uses=(
                    disk_use(volume.node, view, planned, rights=Rights.READ),
                    tape_use(self.node, self.drive_unit, planned, position=self.end),
                ),
            )
            if ended.state == "done":
                self._check_ledger(ended, planned.records)
                self.end += planned.tape_objects
            else:
                yield from self._data_item_failed(ended, data_object, first)
            self._show_progress(data_object)

    def _data_item_failed(self, ended: ItemRow, data_object: int, first: int) -> Step:
        told = forwarded_of(ended)
        yield from self._settle()
        written = self.end - data_object - first
        if ended.state == "lost" and written > 0:
            self.desk.log(
                self.job,
                "info",
                f"item {ended.item}: {written} records are on the tape; going on behind them",
            )
            self.job.plan["observed_records"] = self.job.plan.get("observed_records", 0) + written
        if told.destination is not None and (
            told.destination.end_of_medium or told.destination.key == SenseKey.VOLUME_OVERFLOW
        ):
            # D5: early warning ends the part.  What is on the tape is this part; the rest goes elsewhere.
            self.plan["records"] = max(0, self.end - data_object)
            self.desk.save(self.job)
            self.desk.log(
                self.job,
                "info",
                f"early warning on {self.tag} after {self.plan['records']} records of part {self.plan['part']}",
            )
        elif told.source is not None and told.source.key == SenseKey.MEDIUM_ERROR:
            where = "" if told.source.information is None else f" at LBA {told.source.information}"
            raise MediumError(f"volume {self.row.volume_name} cannot be read{where}")

    def _check_ledger(self, ended: ItemRow, records: int) -> None:
        written = ledger_total(ended, self.drive_unit, "records_written")
        if written != records:
            raise BackupError(
                f"item {ended.item}: the mover reports {written} records written, {records} were planned"
            )

    def _show_progress(self, data_object: int) -> None:
        here = self.data.bytes_before(min(max(0, self.end - data_object), self.data.records))
        self.job.update(done_bytes=self.data.stream_start + here)
        self.desk.save(self.job)

    # --- commit ---

    def _trailer(self, data_object: int) -> Step:
        """Build the trailer from what the drive says is on the tape; None if the tape has to be looked at again."""
        try:
            digests = yield from self._digests(data_object, data_object + self.records)
        except NotFoundError as error:
            # The node has restarted: its drive is empty, or the tape has come back shorter.
            self.digest_failures += 1
            if self.digest_failures > ATTEMPTS_MAX:
                raise VolumeError(f"cartridge {self.tag}: {error.message}") from error
            yield from self._settle()
            return None, []
        if len(digests) != 4 * self.records:
            raise VolumeError(
                f"cartridge {self.tag}: {len(digests) // 4} data records in the part, {self.records} expected"
            )
        if "trailer_created" not in self.plan:
            self.plan.update(trailer_created=self.desk.wall)
            self.desk.save(self.job)
        directory = [
            _directory_entry(self.desk, part) for part in self.desk.registry.parts_on(self.tag)
        ]
        trailer = PartTrailer(
            cartridge=self.cartridge.cartridge,
            sequence=self.cartridge.sequence + 1,
            backup=self.row.backup,
            backup_uuid=self.row.backup_uuid,
            part=self.plan["part"],
            volume=self._volume(),
            record_bytes=self.row.record_bytes,
            header_object=self.plan["header_object"],
            data_object=data_object,
            records=self.records,
            stream_bytes=self.stream_bytes,
            stream_start=self.data.stream_start,
            extents=tuple(self.data.extents_of(0, self.records)),
            record_crc32c=struct.unpack(f">{self.records}I", digests),
            root=hashlib.sha256(digests).hexdigest(),
            is_last=self.is_last,
            continued_on="" if self.is_last else "next cartridge",
            results=(),
            directory=tuple(directory),
            created=self.plan["trailer_created"],
        )
        # The directory includes the part itself, so that the last trailer alone is enough.
        trailer = replace(trailer, directory=(*trailer.directory, trailer.directory_entry()))
        records = encode_part_trailer(trailer)
        return trailer, [Mark(is_synchronous=False), *records, Mark(is_synchronous=True)]

    def _digests(self, first: int, end: int) -> Step:
        digests = b""
        while first < end:
            start = first
            reply = yield Ask(
                node=self.node,
                make=lambda request, start=start: TapeDigest(  # type: ignore[misc]
                    request=request, drive=self.plan["drive"], start=start, end=end
                ),
                what="read the digests of the part",
            )
            assert isinstance(reply, NodeReply)
            if reply.next_object <= start:
                raise VolumeError(
                    f"cartridge {self.tag}: the drive gives no digests from object {start}"
                )
            digests += reply.digests
            first = reply.next_object
        return digests

    def _commit(self, trailer: PartTrailer, data_object: int, trailer_objects: int) -> Step:
        """Read the trailer back from the tape; only then is the part in the catalog."""
        end = data_object + self.records + trailer_objects
        epoch = self.desk.next_epoch()
        reply = yield Ask(
            node=self.node,
            make=lambda request: TapeLoad(
                request=request, drive=self.plan["drive"], tag=self.tag, epoch=epoch
            ),
            what="read the trailer back",
        )
        assert isinstance(reply, NodeReply)
        trailer_object = trailer.trailer_object
        if (
            reply.durable_end < end
            or reply.trailer_sequence != trailer.sequence
            or reply.trailer_digest != hashlib.sha256(encode_payload(trailer)).digest()
        ):
            raise VolumeError(
                f"cartridge {self.tag}: the trailer at object {trailer_object} does not read back as written"
            )
        part = PartRow(
            backup=self.row.backup,
            part=self.plan["part"],
            tag=self.tag,
            cartridge=self.cartridge.cartridge,
            sequence=trailer.sequence,
            header_object=self.plan["header_object"],
            data_object=data_object,
            trailer_object=trailer_object,
            end=end,
            records=self.records,
            stream_start=self.data.stream_start,
            stream_bytes=self.stream_bytes,
            root=trailer.root,
            is_last=self.is_last,
            created=trailer.created,
        )
        cartridge = replace(self.cartridge, end=end, sequence=trailer.sequence)
        if not self.is_last:
            cartridge = replace(cartridge, status="full", detail="early warning")
        self.plan["part"] += 1
        self.plan["stream_start"] = self.data.stream_start + self.stream_bytes
        self.job.result.setdefault("tags", []).append(self.tag)
        self.desk.save(self.job, part, cartridge)
        self.desk.log(
            self.job,
            "info",
            f"part {part.part} is committed on {self.tag}: {part.records} records, trailer at object {trailer_object}",
        )
        self._forget_cartridge()

    def _cartridge_is_full(self) -> None:
        self.desk.record(replace(self.cartridge, status="full", detail="no room for a part"))


def _directory_entry(desk: Desk, part: PartRow) -> DirectoryEntry:
    row = desk.backups[part.backup]
    return DirectoryEntry(
        backup_uuid=row.backup_uuid,
        backup=part.backup,
        part=part.part,
        header_object=part.header_object,
        data_object=part.data_object,
        trailer_object=part.trailer_object,
        stream_bytes=part.stream_bytes,
        records=part.records,
        root=part.root,
        is_last=part.is_last,
        volume_name=row.volume_name,
        created=part.created,
    )
