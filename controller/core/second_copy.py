"""A second copy of a backup: from tape to tape, by movers, record by record.

    claim a cartridge to read and one to write, with a drive each -> read, write -> trailer, commit -> the next part

A copy is a backup of its own: number, UUID, parts with headers and trailers, map.  Its stream is that of its original,
so what stands on the original stands on the copy as well, and whatever cannot be read of one is read of the other
(`copies`).  No part of it is on a cartridge that has a part of the original, or of another copy.

Each part is read from one part of the original: it ends where that ends, at early warning of its own cartridge, or
before a record that cannot be read.  So both cartridges and both drives are claimed in one step when a part begins, or
neither, and both are given back when it ends: no job ever waits with a drive or a cartridge in hand for which another
waits, and nobody can wait in a circle.

In the plan, besides what `part_writer` keeps:

    from       [backup, part, end]   what the part under way is read from, up to which byte of the stream
    spoiled    backup -> [first, end]   records of its stream that could not be read
    shunned    barcodes of cartridges that are not read any more
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from backplane.errors import (
    BackupError,
    MediaNeededError,
    MediumError,
    NotFoundError,
    RefusedError,
    VolumeError,
)
from backplane.ids import BackupId, Designator, VolumeTag
from controller.catalog.store import BackupRow, CopyMap, ExtentsRow, ItemRow, PartRow
from controller.core import drives
from controller.core.allocation import OperatorRequest, is_pool_request
from controller.core.copies import (
    Rank,
    Source,
    families,
    look,
    others_of,
    parts_of,
    sources,
)
from controller.core.damage import Records, bad_of, damage_of, merged_records, with_damage
from controller.core.desk import Desk
from controller.core.drives import ask_fence_drive
from controller.core.effects import UnitUse
from controller.core.extent_runs import ExtentRuns
from controller.core.file_maps import drop_map, reserve
from controller.core.items import (
    BACKOFF_BASE_S,
    adopt_item,
    ledger_total,
    pause,
    tape_use,
    tolerantly,
)
from controller.core.job import Job, JobState, place_of
from controller.core.job_row import job_row
from controller.core.lineage import head, origin
from controller.core.media import Mounted
from controller.core.part_reader import CartridgeLostError, PartReader
from controller.core.part_source import Unread
from controller.core.part_writer import PartWriter
from controller.core.planner import PartData, PlannedList
from controller.core.pools import checked_pool
from controller.core.procedure import Extents, NotYet, Procedure, Step
from controller.core.tally import Counted
from controller.core.tape_lists import plan_copy

KIND: Final = "copy"
SEAT: Final = drives.SOURCE


class SourceLostError(BackupError):
    """What a part is read from cannot be read any more; another copy may have it."""


class RecordLostError(SourceLostError):
    """Not the cartridge, but the first record that was wanted of it."""


class SourceMissingError(SourceLostError):
    """The cartridge was not there to be loaded: it is read when it is back, if no other copy has the same."""


def submit_copy(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin a second copy of a backup."""
    asked = desk.backups.get(BackupId(arguments["backup"] or 0))
    if asked is None or asked.state != "completed":
        raise NotFoundError(
            f"no completed backup has number {arguments['backup']}", hint="ctl backup list"
        )
    original = head(origin(asked), desk.backups) or asked
    parts = list(parts_of(original, desk.registry))
    if any(part.stream_start % original.record_bytes for part in parts):
        raise RefusedError(f"backup {original.backup} is cut within records and cannot be copied")
    pool = checked_pool(desk.registry, arguments["pool"])
    plan: dict[str, Any] = {"pool": pool, "of": original.backup, "view_time": original.created}
    if arguments["no_wait_media"]:
        plan["no_wait_media"] = True
    return desk.begin_job(
        job_row(
            desk,
            KIND,
            arguments["token"],
            subject=f"backup {original.backup} -> pool {pool}",
            volume=desk.registry.volumes[original.volume],
            plan=plan,
        )
    )


def copy_backup(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a copy."""
    original = desk.backups[BackupId(job.plan["of"])]
    runs: ExtentRuns = yield Extents(backup=original.backup)
    if job.state is JobState.QUEUED:
        _begin(desk, job, original, runs)
    if job.state is JobState.COPYING:
        yield from _Copying(desk, job, original, runs).copy(item)
        desk.enter(job, JobState.COMMITTING)
    row = replace(desk.backups[job.row.backup], state="completed")
    desk.backups[row.backup] = row
    job.result.update(backup=row.backup, copy_of=original.backup)
    desk.end_job(job, JobState.COMPLETED, row, reason="", exit_code=0)


def clean_up_copy(desk: Desk, job: Job) -> Step:
    """After a failure or cancel: give up the copy, and fence what movers may still write."""
    row = desk.backups.get(job.row.backup)
    if row is not None and row.state == "building":
        failed = replace(row, state="failed")
        desk.backups[row.backup] = failed
        desk.record(failed)
    drop_map(desk, job)
    if job.plan.get("drive_unit"):
        yield from tolerantly(desk, job, ask_fence_drive(desk, job))


def _begin(desk: Desk, job: Job, original: BackupRow, runs: ExtentRuns) -> None:
    """Make the row of the copy, with all that the catalog knows of the original."""
    row = replace(
        original,
        backup=reserve(desk, job),
        backup_uuid=desk.new_uuid(),
        job=job.row.job,
        state="building",
        detail="{}",
        pool=job.plan["pool"],
        is_protected=False,
        copy_of=origin(original),
        lanes=1,
    )
    desk.backups[row.backup] = row
    records = -(-row.stream_bytes // row.record_bytes)
    job.plan.update(part=1, stream_start=0, tries=0, unlucky=[], item=0)
    job.update(started=desk.wall, backup=row.backup, planned_bytes=records * row.record_bytes)
    job.result.update(copy_of=original.backup, level=row.level)
    extents = ExtentsRow(backup=row.backup, packed=runs.pack())
    desk.enter(
        job,
        JobState.COPYING,
        row,
        extents,
        CopyMap(backup=row.backup, source=original.backup),
    )


class _Copying:
    """The parts of a copy, one after the other."""

    def __init__(self, desk: Desk, job: Job, original: BackupRow, runs: ExtentRuns) -> None:
        self.desk, self.job, self.plan = desk, job, job.plan
        self.original, self.runs = original, runs
        self.row = desk.backups[job.row.backup]

    def copy(self, item: ItemRow | None) -> Step:
        """Write parts until the whole stream is committed."""
        ended = yield from adopt_item(self.desk, self.job, item)
        while not self._is_whole():
            part, end = self._source()
            row = self.desk.backups[part.backup]
            source = TapeSource(self.desk, self.job, part, row, besides=self._besides)
            writer = PartWriter(
                self.desk,
                self.job,
                self.runs,
                self.row,
                source=source,
                stream_end=end,
                besides=self._besides,
            )
            if ended is not None:
                writer.count(ended)
                ended = None
            yield from self._write(writer, source)

    def _write(self, writer: PartWriter, source: TapeSource) -> Step:
        try:
            yield from writer.write()
        except SourceLostError as error:
            self._lose(source.part, error)
            if writer.written:
                writer.end_part(writer.written)
                return  # Its trailer is written next.
            writer.let_go()
        except VolumeError as error:
            # The cartridge is full, or not what the catalog says: the part goes elsewhere.
            writer.give_up(error)
        self.plan.pop("from", None)
        self.desk.save(self.job)

    def _is_whole(self) -> bool:
        last = self.desk.registry.parts.get((self.row.backup, self.plan["part"] - 1))
        return last is not None and last.is_last

    def _besides(self) -> list[VolumeTag]:
        """Return the cartridges that this copy is not written on: all with the same stream, or that will have it."""
        backups, registry = self.desk.backups, self.desk.registry
        family = others_of(self.row, backups, families(backups))
        family += [
            row.backup
            for row in backups.values()
            if (row.state, row.copy_of) == ("building", self.row.copy_of)
            and row.backup != self.row.backup
        ]
        return list(
            dict.fromkeys(
                part.tag for number in family for part in parts_of(backups[number], registry)
            )
        )

    # --- where the next part is read ---

    def _source(self) -> tuple[PartRow, int]:
        """Return the part that the next part is read from, and up to which byte of the stream."""
        if "from" not in self.plan:
            found = self._choose()
            self.plan["from"] = [found.row.backup, found.part.part, self._end_of(found)]
            self.desk.save(self.job)
        backup, part, end = self.plan["from"]
        return self.desk.registry.parts[BackupId(backup), part], end

    def _choose(self) -> Source:
        backups, registry = self.desk.backups, self.desk.registry
        first = self.plan["stream_start"] // self.row.record_bytes
        if not self.row.stream_bytes:
            part = registry.parts[self.original.backup, 1]
            return Source(self.original, part, 0, 0, Rank.GOOD)
        found = sources(
            self.original,
            look([self.original], backups, registry, families(backups)),
            backups,
            registry,
            besides=self.plan.get("shunned", ()),
            spoiled={
                BackupId(number): self._spoiled(BackupId(number))
                for number in self._spoiled_backups()
            },
        )
        for each in found:
            if each.rank is not Rank.GONE and each.first <= first < each.end:
                return each
        why = self.plan.get("why", f"record {first} of backup {self.original.backup} is nowhere")
        raise MediumError(
            f"backup {self.original.backup} cannot be copied whole: {why}",
            hint=f"ctl submit verify {self.original.backup} lists all damage",
        )

    def _spoiled_backups(self) -> Iterator[int]:
        yield from map(int, self.plan.get("spoiled", {}))

    def _spoiled(self, backup: BackupId) -> Records:
        return [(a, b) for a, b in self.plan.get("spoiled", {}).get(str(backup), [])]

    def _end_of(self, found: Source) -> int:
        """Return up to where a part is read once it is chosen: to its end, or to the next record known to be bad."""
        row, part = found.row, found.part
        end = part.stream_start // row.record_bytes + part.records
        known = [*bad_of(row), *self._spoiled(row.backup)]
        ends = [first for first, _ in known if found.end <= first < end]
        return min(min([end, *ends]) * row.record_bytes, self.row.stream_bytes)

    def _lose(self, part: PartRow, error: SourceLostError) -> None:
        """Another copy has to do."""
        shunned = self.plan.setdefault("shunned", [])
        if part.tag not in shunned and not isinstance(error, (RecordLostError, SourceMissingError)):
            shunned.append(part.tag)
        self.plan["why"] = error.message
        self.desk.log(self.job, "warning", error.message)
        self.desk.save(self.job)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Records of a copy count whole: what is padded in them was padded before."""

    record_bytes: int

    def bytes_before(self, record: int) -> int:
        """Bytes that stand in the records before `record`."""
        return record * self.record_bytes


class TapeSource:
    """A part of a backup on a cartridge, to be read in a drive of its own."""

    def __init__(
        self,
        desk: Desk,
        job: Job,
        part: PartRow,
        row: BackupRow,
        *,
        besides: Callable[[], Sequence[VolumeTag]] = tuple,
    ) -> None:
        """`besides` are the cartridges that may not be written, because they have the same stream."""
        self._desk, self._job, self.part, self._row = desk, job, part, row
        self._besides = besides
        self._reader = PartReader(desk, job, waits=self._waits, seat=SEAT)
        self._is_ready = self._is_compared = False

    def counted(self, data: PartData) -> Counted:
        """Whole records."""
        return _Whole(data.record_bytes)

    def _waits(self, part: PartRow) -> bool:
        """Say whether a cartridge that is not there is waited for: if no other copy has the same."""
        desk = self._desk
        row = head(origin(self._row), desk.backups) or self._row
        shunned = [*self._job.plan.get("shunned", ()), part.tag]
        outlook = look([row], desk.backups, desk.registry, families(desk.backups))
        found = sources(row, outlook, desk.backups, desk.registry, besides=shunned)
        first = self._job.plan["stream_start"] // self._row.record_bytes
        return not any(each.first <= first < each.end for each in found)

    # --- claiming ---

    def claim(self, target: Callable[[], Mounted | NotYet]) -> Mounted | NotYet:
        """Claim both cartridges, each with a drive, or none of them.

        Either may be in the drive that the other would take, so both orders are tried.
        """
        found, can_be_had = NotYet(""), list[Mounted]()
        for claims in (
            (target, self._claim_source),
            (self._claim_source, target),
        ):
            try:
                answers = [claims[0]()]
                if isinstance(answers[0], Mounted):
                    answers.append(claims[1]())
            except BackupError:
                self._release()
                raise
            if all(isinstance(each, Mounted) for each in answers):
                return answers[claims.index(target)]
            self._release()
            can_be_had += [each for each in answers if isinstance(each, Mounted)]
            found = next(each for each in answers if isinstance(each, NotYet))
        return self._why_not(found, can_be_had)

    def _why_not(self, found: NotYet, can_be_had: Sequence[Mounted]) -> NotYet:
        """Say what is waited for; that there is no second drive at once, and not when all else is there."""
        words = found.reason
        besides = ", ".join(self._besides())
        if isinstance(found, OperatorRequest) and is_pool_request(words) and besides:
            words += f"; not on {besides}, where it is already"
        short = self._short_of_drives(can_be_had)
        if short and self._job.plan.get("no_wait_media"):
            raise MediaNeededError(short, hint="ctl drive list")
        if short:
            asks = isinstance(found, OperatorRequest)
            words = f"{words}; {short}" if asks else f"waiting: {short}"
        return replace(found, reason=words)

    def _short_of_drives(self, can_be_had: Sequence[Mounted]) -> str:
        """Say that two drives are needed where there are not two, even if nobody used them; else nothing."""
        registry = self._desk.registry
        drives_of = {
            name: len(node.drives)
            for name, node in registry.nodes.items()
            if node.is_online and "tape" in node.row.roles
        }
        places = {each.node for each in can_be_had}
        if len(can_be_had) == 2 and len(places) == 1:
            # Each can be had without the other, and nothing else keeps them apart.
            drives_of = {name: count for name, count in drives_of.items() if name in places}
        if not drives_of or sum(drives_of.values()) > 1:
            return ""
        have = ", ".join(f"node {name} has {count or 'none'}" for name, count in drives_of.items())
        return f"a copy needs two drives, one to read and one to write; {have}"

    def _claim_source(self) -> Mounted | NotYet:
        try:
            return self._reader.claim(self.part)
        except CartridgeLostError as error:
            raise SourceLostError(error.message) from error

    def _release(self) -> None:
        drives.give_back(self._desk, self._job)
        drives.give_back(self._desk, self._job, seat=SEAT)

    def give_back(self) -> None:
        """Let cartridge and drive go."""
        drives.give_back(self._desk, self._job, seat=SEAT)
        self._is_ready = False

    # --- reading ---

    @property
    def _unit(self) -> Designator:
        return Designator(bytes.fromhex(place_of(self._job.plan, SEAT)["drive_unit"]))

    def ready(self) -> Step:
        """Have the cartridge in its drive."""
        if not self._is_ready:
            yield from self._load()

    def fence(self) -> Step:
        """Load again: that raises the drive's floor, and shows whether the cartridge is still there."""
        yield from self._load()

    def _load(self) -> Step:
        try:
            yield from self._reader.load_claimed(self.part)
            while not self._is_compared:
                yield from self._compare()
        except drives.CartridgeMissingError as error:
            raise SourceMissingError(error.message) from error
        except CartridgeLostError as error:
            raise SourceLostError(error.message) from error
        self._is_ready = True

    def _compare(self) -> Step:
        """See that the records are those that were committed: a copy of others would be verified without a fault."""
        part = self.part
        start, end = part.data_object, part.data_object + part.records
        try:
            digests = yield from drives.read_digests(self._job, start=start, end=end, seat=SEAT)
        except MediumError:
            self._is_compared = True  # Which record is lost is found out when it is read.
            return
        if digests is None:  # Its node has restarted, and the drive is empty.
            yield from pause(self._desk, self._job, BACKOFF_BASE_S)
            yield from self._reader.load_claimed(part)
            return
        self._is_compared = True
        if hashlib.sha256(digests).hexdigest() != part.root:
            which = f"the digests of part {part.part} of backup {part.backup}"
            told = f"cartridge {part.tag}: {which} are not those that were committed"
            first = part.stream_start // self._row.record_bytes
            self._spoil((first, first + part.records), told)
            self._job.update(error_count=self._job.row.error_count + 1)
            raise SourceLostError(told)

    def plan(
        self, data: PartData, *, first: int, tape: Designator, identifier: int
    ) -> tuple[PlannedList, UnitUse]:
        """Plan records from stream to stream (03h)."""
        planned = plan_copy(
            source_object=self.part.data_object + self._place(data, first),
            records=data.records - first,
            record_bytes=data.record_bytes,
            source=self._unit,
            target=tape,
            identifier=identifier,
        )
        return planned, tape_use(self._reader.node, self._unit, planned)

    def _place(self, data: PartData, record: int) -> int:
        """Return which record of the source's part a record of the part that is written is."""
        return (data.stream_start - self.part.stream_start) // data.record_bytes + record

    def cannot_read(self, unread: Unread) -> Step:
        """The part ends before a damaged record; what reads it next must not be this cartridge."""
        yield from ()
        read = ledger_total(unread.ended, self._unit, "records_read")
        damaged = unread.first + read
        if damaged > unread.written:
            return False  # Not all that was read has come to be written: that comes first.
        start = self._job.plan["stream_start"] // self._row.record_bytes
        before = start - self.part.stream_start // self._row.record_bytes
        number = self.part.data_object + before + damaged
        told = f"cartridge {self.part.tag}: object {number} cannot be read"
        record = start + damaged
        words = f"object {number} of {self.part.tag} could not be read by job {self._job.row.job}"
        self._spoil((record, record + 1), words)
        self._job.plan["why"] = told
        self._desk.log(self._job, "error", told)
        self._job.update(error_count=self._job.row.error_count + 1)
        if not unread.written:
            raise RecordLostError(told)
        return True

    def _spoil(self, records: tuple[int, int], words: str) -> None:
        """Remember that records cannot be read, in this job and with the backup."""
        spoiled = self._job.plan.setdefault("spoiled", {})
        key = str(self._row.backup)
        mine: Records = [(a, b) for a, b in spoiled.get(key, [])]
        spoiled[key] = merged_records([*mine, records])
        row = self._desk.backups[self._row.backup]
        row = with_damage(row, damage_of(row) or words, merged_records([*bad_of(row), records]))
        self._desk.backups[row.backup] = row
        self._desk.save(self._job, row)
