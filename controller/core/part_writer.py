"""Writing one part of a backup onto one cartridge.

The position of the tape drives the copying.  A part's objects are known before the first is written, so after
anything whatsoever (a lost mover, a restarted tape node, our own restart) one question is enough: *where does the
cartridge end?*  It is asked after the fence is raised, and one list is planned from the answer:

    end < 4                            the rest of the label
    end < header_object                the tape has lost an orphan tail: the part begins where the tape ends now
    end < data_object                  the rest of the part header
    end < data_object + records        the rest of the data
    end < end of the trailer           the rest of the trailer file, its synchronous filemark last
    otherwise                          read the trailer back, and record the commit

The end may also go back: what a tape node had acknowledged but not yet made durable is lost when it dies, and written
again.  Early warning ends a part: its trailer says "continued", and the next part begins on another cartridge at the
stream byte after the last record that was written (D5: the record that met early warning was written).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from backplane.errors import BackupError, MediaNeededError, MediumError, VolumeError
from backplane.ids import CartridgeId, VolumeTag
from backplane.scsi.sense import SenseKey
from backplane.tape_format import PartTrailer
from backplane.tape_format.content import LABEL_OBJECTS
from backplane.tape_format.payload import encode_payload
from backplane.units import format_size
from backplane.wire.messages import NodeReply
from controller.catalog.store import BackupRow, ItemRow
from controller.core import drives
from controller.core.allocation import OperatorRequest, disk_is_full, state_of
from controller.core.cartridge_writer import (
    CartridgeWriter,
    DiskFullError,
    KeptError,
    NoRoomError,
)
from controller.core.desk import Desk
from controller.core.dispatcher import ATTEMPTS_MAX
from controller.core.extent_runs import ExtentRuns
from controller.core.forgotten import pruned_runs
from controller.core.items import (
    BACKOFF_BASE_S,
    forwarded_of,
    ledger_total,
    list_identifier,
    pause,
    progress,
    run_list,
    tape_use,
)
from controller.core.job import Job
from controller.core.map_records import NO_MAP, PlannedObject, lay_out_map
from controller.core.media import (
    Mounted,
    ask_retain,
    check_tail,
    choose_for_append,
    kept_until,
    orphan_part,
    put_into_error,
    tag_claims,
)
from controller.core.part_content import (
    header_objects,
    needs_of,
    part_row,
    part_trailer,
    trailer_objects,
)
from controller.core.part_source import PartSource, Unread
from controller.core.planner import PartData
from controller.core.pools import pool_of_job
from controller.core.procedure import Claim, NotYet, Step
from controller.core.tally import Tally

UNREADABLE: Final = frozenset({SenseKey.MEDIUM_ERROR, SenseKey.BLANK_CHECK})
"""A source that answers a read so cannot read this record."""


class PartWriter(CartridgeWriter):
    """One part on one cartridge, as far as it has come.

    It reaches to the end of the stream, or to `stream_end` if its source has no more.  `besides` returns
    the cartridges that it must not be written on; it is asked at each attempt to claim one.
    """

    def __init__(
        self,
        desk: Desk,
        job: Job,
        runs: ExtentRuns,
        row: BackupRow,
        *,
        source: PartSource,
        stream_end: int | None = None,
        besides: Callable[[], Collection[VolumeTag]] = tuple,
    ) -> None:
        super().__init__(desk, job, pool=row.pool, record_bytes=row.record_bytes)
        self.row, self.source, self._besides = row, source, besides
        start = self.plan["stream_start"]
        self.data = PartData(
            runs=runs,
            block_bytes=row.block_bytes,
            record_bytes=row.record_bytes,
            stream_start=start,
            stream_bytes=(row.stream_bytes if stream_end is None else stream_end) - start,
        )
        self._counted = source.counted(self.data)
        self.tally = Tally(self.plan, self._counted)
        self._header: list[PlannedObject] | None = None
        self._map = NO_MAP
        self._trailer: PartTrailer | None = None

    # --- where everything stands ---

    @property
    def records(self) -> int:
        """Records of this part: all, or as many as there are before early warning or what cannot be read."""
        ended: int | None = self.plan.get("records")
        return self.data.records if ended is None else ended

    @property
    def is_whole(self) -> bool:
        """Whether the part has, or is going to have, all that it was to have."""
        return self.records == self.data.records

    @property
    def written(self) -> int:
        """Data records of this part that are on the tape."""
        if not LABEL_OBJECTS <= self.plan.get("header_object", 0) <= self.end:
            return 0
        return min(max(0, self.end - self.data_object), self.data.records)

    @property
    def header(self) -> list[PlannedObject]:
        """The header's objects; made once, because the extents of a large volume are many."""
        if self._header is None:
            self._header = header_objects(
                self.desk, self.job, self.row, self.cartridge, self.data, self._map
            )
        return self._header

    @property
    def data_object(self) -> int:
        object_number: int = self.plan["header_object"] + len(self.header)
        return object_number

    # --- the course of a part ---

    def write(self) -> Step:
        """Write the part, or what is missing of it, and record its commit."""
        self._map = yield from lay_out_map(self.row, part=self.plan["part"])
        if "tag" not in self.plan:
            yield from self._mount()
        yield from self.load()
        while not (yield from self._go_on()):
            pass

    def _go_on(self) -> Step:
        """Do what comes next, given where the tape ends; True when nothing is left to do here."""
        if self.cartridge.status == "blank":
            yield from self.write_label()
            return False
        if not LABEL_OBJECTS <= self.plan.get("header_object", 0) <= self.end:
            self._begin()
        if self.end < self.data_object:
            yield from self._write_header()
            return False
        if self.end < self.data_object + self.records:
            yield from self._write_data()
            return False
        if not self.records and not self.is_whole:
            # Not one record fitted: no trailer for nothing; the header is an orphan tail.
            if self.is_disk_full:
                raise DiskFullError(f"no room for a part: {disk_is_full(self.node)}")
            raise NoRoomError("no room for a part")
        return (yield from self._finish())

    def _write_header(self) -> Step:
        """Write what one list can of the header and the records of the map behind it."""
        first: int = self.plan["header_object"]
        begin = max(0, self.end - first)
        objects = yield from self._map.make(
            self.header[begin:],
            cartridge=self.cartridge.cartridge,
            first_object=self.data_object - 1 - self._map.count,
        )
        yield from self.write_objects(objects, first + begin, "header")

    def _begin(self) -> None:
        """The part begins where the tape ends."""
        pool = pool_of_job(self.desk.registry, self.pool)
        self.plan.update(
            header_object=self.end,
            part_created=self.desk.wall,
            retain_s=pool.retain_s,
            needs=needs_of(self.desk.backups, self.desk.registry, self.row),
        )
        for name in ("records", "is_cut", "trailer_created", "trailer_pruned", "trailer_retain"):
            self.plan.pop(name, None)
        self._header = None
        # One that was labelled as scratch belongs to the pool from its first part on.
        self.desk.save(self.job, replace(self.cartridge, pool=pool.pool))

    def give_up(self, error: VolumeError) -> None:
        """The part goes elsewhere.  A cartridge that is only full stays good for reading; any other is in error."""
        if isinstance(error, NoRoomError):
            if not self.cartridge.sequence:
                # There is nothing on it: it could be erased and tried again for ever.
                self.plan.setdefault("too_small", []).append(self.tag)
            self.desk.record(replace(self.cartridge, status=self._full(), detail=error.message))
            self.desk.log(self.job, "info", f"cartridge {self.tag}: {error.message}")
        elif isinstance(error, (KeptError, DiskFullError, drives.CartridgeMissingError)):
            told = error.message.removeprefix(f"cartridge {self.tag} ")
            self.desk.log(self.job, "info", f"cartridge {self.tag}: {told}")
        else:
            put_into_error(self.desk, self.tag, error.message)
            told = f"cartridge {self.tag} is put into error: {self.cartridge.detail}"
            self.desk.log(self.job, "error", told)
        self.tally.give_up()
        self._forget_cartridge()

    def let_go(self) -> None:
        """The part goes elsewhere, and no cartridge is at fault: its source was lost before it had anything."""
        self.tally.give_up()
        self._forget_cartridge()

    def _full(self) -> str:
        """Return the status of a cartridge without room: one that is written only once is never written again."""
        if self.cartridge.status == "quarantined":
            return "quarantined"
        state = state_of(self.desk.registry, self.cartridge)
        return "worm" if state is not None and state.is_worm else "full"

    def _forget_cartridge(self) -> None:
        drives.give_back(self.desk, self.job)
        self.source.give_back()
        for name in (
            "records",
            "is_cut",
            "header_object",
            "part_created",
            "trailer_created",
            "trailer_pruned",
            "trailer_retain",
            "retain_s",
            "needs",
        ):
            self.plan.pop(name, None)
        progress(self.job)  # Another cartridge is another chance.
        self.desk.save(self.job)

    # --- the cartridge ---

    def _mount(self) -> Step:
        def attempt() -> Mounted | NotYet:
            claims = tag_claims(self.desk)
            found = choose_for_append(
                self.desk.registry,
                self.job.row.job,
                pool_of_job(self.desk.registry, self.pool),
                claims=claims,
                backups=self.desk.backups,
                wall=self.desk.wall,
                own=self.job.result.get("tags", ()),
                besides=(*self._besides(), *self.plan.get("too_small", ())),
            )
            if isinstance(found, OperatorRequest) and self.plan.get("no_wait_media"):
                needed = found.reason.removeprefix("waiting: ")
                raise MediaNeededError(f"media are needed: {needed}", hint="ctl tape list")
            if isinstance(found, Mounted):
                drives.take(self.desk, self.job, found)
            return found

        mounted: Mounted = yield Claim(attempt=lambda: self.source.claim(attempt))
        self.desk.enter(self.job, self.job.state)
        self.desk.log(self.job, "info", f"cartridge {mounted.tag} in {mounted.drive.name}")

    def load(self) -> Step:
        """Fence and load; compare the cartridge with the catalog; learn where it ends."""
        yield from super().load()
        self._trailer = None
        self._compare_with_tally()

    def check(self, reply: NodeReply) -> None:
        """Compare the label, the last trailer and the end with the catalog; take in what a failed job has left."""
        super().check(reply)
        row, registry = self.cartridge, self.desk.registry
        if row.status == "blank":
            return
        orphan = orphan_part(row, reply, registry=registry, backups=self.desk.backups)
        if orphan is not None:
            row = replace(row, sequence=orphan.sequence, end=orphan.end)
            self.desk.record(orphan, row)
            told = f"part {orphan.part} of backup {orphan.backup}, which failed, is kept as it is"
            self.desk.log(self.job, "info", f"cartridge {row.tag}: {told}")
        own = (self.row.backup_uuid, self.plan["part"])
        check_tail(row, reply, registry.last_part(row.tag), own=own)

    def _compare_with_tally(self) -> None:
        seen = 0
        if LABEL_OBJECTS <= self.plan.get("header_object", 0) <= self.end:
            seen = min(max(0, self.end - self.data_object), self.records)
        difference = self.tally.see(seen)
        if difference:
            what = "more than movers could report" if difference > 0 else "lost before durable"
            told = f"{seen} data records are on {self.tag}, {abs(difference)} {what}"
            self.desk.log(self.job, "info", told)
            self.desk.save(self.job)

    def settle(self) -> Step:
        """After an item that did not end well: raise every fence, then see what is on the tape."""
        before = self.end
        yield from self.load()
        yield from self.source.fence()
        if self.end > before:
            progress(self.job)

    # --- data ---

    def _write_data(self) -> Step:
        """Write what one list can of the data."""
        for name in ("records", "is_cut"):  # If the tape has lost some, early warning comes again.
            self.plan.pop(name, None)
        yield from self.source.ready()
        first = self.end - self.data_object
        planned, use = self.source.plan(
            self.data,
            first=first,
            tape=self.drive_unit,
            identifier=list_identifier(self.desk.next_number("list")),
        )
        ended = yield from run_list(
            self.desk,
            self.job,
            planned,
            item=self.new_item(),
            purpose="data",
            uses=(use, tape_use(self.node, self.drive_unit, planned, position=self.end)),
        )
        self.count(ended)
        if ended.state == "done":
            self._check_ledger(ended, planned.records)
            self.end += planned.tape_objects
        else:
            yield from self._data_item_failed(ended, first)
        self._show_progress()

    def count(self, ended: ItemRow) -> None:
        """Take what the ledger of an ended item says about data records into the tally."""
        if ended.purpose == "data" and ended.state in ("done", "failed"):
            self.tally.count(ledger_total(ended, self.drive_unit, "records_written"))
            self.desk.save(self.job)

    def _data_item_failed(self, ended: ItemRow, first: int) -> Step:
        told = forwarded_of(ended)
        yield from self.settle()
        written = self.written
        if told.source is not None and told.source.key in UNREADABLE:
            if (yield from self.source.cannot_read(Unread(told.source, ended, first, written))):
                self.end_part(written)
            return
        if told.destination is None:
            return
        is_full = told.destination.key is SenseKey.VOLUME_OVERFLOW
        if told.destination.end_of_medium or is_full:
            # D5: early warning ends the part.  What is on the tape is this part; the rest goes elsewhere.
            # If it is the disk below that has no more, the cartridge is not full: more is written behind this part.
            is_cut = bool(written) and self.is_disk_full
            self.plan.update({"records": written} | ({"is_cut": True} if is_cut else {}))
            self.desk.save(self.job)
            self.desk.log(self.job, "info", self._end_words(is_full=is_full))
        else:
            self.check_medium(told.destination, "data")

    def _end_words(self, *, is_full: bool) -> str:
        """Say where the cartridge came to its end, what is written, and where the rest goes."""
        left = self.data.stream_bytes - self.data.bytes_before(self.written)
        what = "end of the medium" if is_full else "early warning"
        told = f"{what} on {self.tag} after {self.written} records of part {self.plan['part']}"
        if self.is_disk_full:
            return f"{told} ({disk_is_full(self.node)})"
        rest = f"the residual {format_size(left)} go to the next cartridge"
        return f"{told}: {rest if left else 'nothing is left to write'}"

    def end_part(self, records: int) -> None:
        """The part ends behind so many records, because its source does; the cartridge has room for more."""
        assert records
        self.plan.update(records=records, is_cut=True)
        self.desk.save(self.job)

    def _check_ledger(self, ended: ItemRow, records: int) -> None:
        written = ledger_total(ended, self.drive_unit, "records_written")
        if written != records:
            raise BackupError(
                f"item {ended.item}: the mover reports {written} records written, {records} were planned"
            )

    def _show_progress(self) -> None:
        here = self._counted.bytes_before(self.written)
        begin = self.plan.get("lane_begin", 0)
        self.job.update(done_bytes=self.data.stream_start + here - begin)
        self.desk.save(self.job)

    # --- commit ---

    def _finish(self) -> Step:
        """Write the trailer, or what is missing of it; then commit.  True when the part is committed."""
        if self._trailer is None:
            digests = yield from self._digests()
            if digests is None:
                yield from self._look_again()
                return False
            yield from self._date_trailer()
            self._trailer = self._make_trailer(digests)
        first = self.data_object + self.records
        objects = trailer_objects(self._trailer)
        if self.end < first + len(objects):
            yield from self.write_objects(objects, first, "trailer")
            return False
        yield from self._commit(self._trailer, first + len(objects))
        return True

    def _digests(self) -> Step:
        start = self.data_object
        try:
            return (yield from drives.read_digests(self.job, start=start, end=start + self.records))
        except MediumError as error:
            raise VolumeError(f"cartridge {self.tag}: {error.message}") from error

    def _look_again(self) -> Step:
        """The drive does not have the records (any more): load, and see where the tape ends."""
        tries = self.plan.get("tries", 0) + 1
        if tries > ATTEMPTS_MAX:
            raise VolumeError("the drive gives no digests of the part")
        self.plan["tries"] = tries
        yield from pause(self.desk, self.job, BACKOFF_BASE_S * tries)
        yield from self.load()

    def _date_trailer(self) -> Step:
        """Settle what the trailer says of now: after a restart it is made again, byte for byte.

        How long the cartridge is kept is reckoned by its node as well, and kept there, before the trailer says it.
        """
        if "trailer_created" in self.plan:
            return
        told, retain_s = "", self.plan.get("retain_s", 0)
        if retain_s:
            reply: NodeReply = yield ask_retain(
                self.desk.registry, self.tag, retain_s=retain_s, wall=self.desk.wall
            )
            told = kept_until(reply, self.tag)
        pruned = pruned_runs(self.desk.backups, self.desk.registry)
        created = self.desk.wall
        self.plan.update(trailer_created=created, trailer_pruned=pruned, trailer_retain=told)
        self.desk.save(self.job)

    def _make_trailer(self, digests: bytes) -> PartTrailer:
        if len(digests) != 4 * self.records:
            raise VolumeError(
                f"cartridge {self.tag}: {len(digests) // 4} data records in the part, {self.records} expected"
            )
        return part_trailer(
            self.desk,
            self.job,
            self.row,
            self.cartridge,
            self.data,
            data_object=self.data_object,
            records=self.records,
            digests=digests,
        )

    def _commit(self, trailer: PartTrailer, end: int) -> Step:
        """Read the trailer back from the tape; only then is the part in the catalog."""
        reply: NodeReply = yield from drives.load_cartridge(self.desk, self.job)
        digest = hashlib.sha256(encode_payload(trailer)).digest()
        is_there = (reply.trailer_sequence, reply.trailer_digest) == (trailer.sequence, digest)
        if reply.durable_end < end or not is_there:
            raise VolumeError(
                f"cartridge {self.tag}: the trailer at object {trailer.trailer_object} "
                "does not read back as written"
            )
        until = max(self.cartridge.retain_until, trailer.retain_until)
        if until or self.cartridge.hold:
            # Before the part counts: from here on nobody erases it, whatever becomes of this catalog.
            yield ask_retain(self.desk.registry, self.tag, retain_until=until)
        part = part_row(trailer, tag=self.tag, cartridge=CartridgeId(trailer.cartridge), end=end)
        cartridge = replace(
            self.cartridge,
            end=end,
            sequence=trailer.sequence,
            first_written=self.cartridge.first_written or trailer.created,
            last_written=trailer.created,
            retain_until=until,
        )
        if not self.is_whole and not self.plan.get("is_cut"):
            cartridge = replace(cartridge, status=self._full(), detail="early warning")
        self.plan["part"] += 1
        self.plan["stream_start"] = trailer.stream_start + trailer.stream_bytes
        self.job.result.setdefault("tags", []).append(self.tag)
        self.tally.commit()
        self.desk.save(self.job, part, cartridge)
        told = f"{part.records} records, trailer at object {part.trailer_object}"
        self.desk.log(self.job, "info", f"part {part.part} is committed on {self.tag}: {told}")
        self._forget_cartridge()
