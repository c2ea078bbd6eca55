"""Copying what a restore takes, part by part, onto its target; and what happens where it cannot be read.

A record that is damaged, or a cartridge that is not there or not what it should be, is first looked for elsewhere: if a
second copy has the records, they are read from there, behind all other parts (`again` in the plan).  What nobody has is
*lost*, and

    by default             the restore ends there
    files are chosen       a damaged record costs the files in it; what is wrong with a cartridge ends the restore
    with --keep-going      neither ends it: all else comes back, and the holes stay zeros and are listed

In the plan, where a restart finds it, `part` counts the readings from 1, those of `again` included; and

    again      [reading that could not, backup, part, first, end]   records of a stream, to be read from another part
    shunned    barcodes of cartridges that this job does not read any more
    spoiled    backup -> [first, end] of records of its stream that could not be read
    doubted    backups of which records were changed on their cartridge, and are taken because nothing else has them
    gaps       [reading, first, end]   what is lost of a whole volume (`gap_list`)
    bad        records of the part that cannot be read, from the next list on; `bad_seen` counts those before, too
    lost       [LBA, blocks]           what is lost of chosen files
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from backplane.errors import BackupError, MediumError, SenseTriple, VolumeError
from backplane.ids import BackupId, VolumeTag
from backplane.wire.grants import Rights
from backplane.wire.messages import UnitFence
from controller.catalog.store import BackupRow, ItemRow, PartRow, VolumeRow
from controller.core.chain import Picks, Reading
from controller.core.copies import Rank, Source, families, look, sources
from controller.core.damage import (
    Records,
    bad_of,
    changed_of,
    damage_of,
    few_records,
    merged_records,
    with_damage,
    without_records,
)
from controller.core.desk import Desk
from controller.core.file_check import check_list
from controller.core.file_choice import without
from controller.core.gap_list import note_gaps
from controller.core.items import (
    disk_use,
    forwarded_of,
    ledger_total,
    list_identifier,
    progress,
    tape_use,
)
from controller.core.job import Job
from controller.core.layout import KEEP_GOING
from controller.core.lineage import head, origin
from controller.core.part_reader import CartridgeLostError, PartReader
from controller.core.planner import PartPicks, plan_restore
from controller.core.procedure import Ask, Step

LOST_EXTENTS_MAX: Final = 50_000
"""Pieces that could not be restored, in one job: more is no restore."""

DAMAGED_TO_LEAVE: Final = 32
"""A cartridge with so many damaged records in one part is left for another copy, if there is one."""

NO_SPACE: Final = SenseTriple(0x07, 0x27, 0x07)
"""What a node answers to a write when its disk is full (SBC: SPACE ALLOCATION FAILED WRITE PROTECT)."""


def going(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the plan of a restore says if it is to go on behind whatever cannot be read."""
    return {"keep_going": True} if arguments["keep_going"] else {}


def _nothing() -> Step:
    yield from ()


def take_done(desk: Desk, job: Job, ended: ItemRow) -> None:
    """Move on behind a list that was done; whether it is right is looked at later, also after a restart."""
    volume, plan = desk.registry.volumes[job.row.volume], job.plan
    written = ledger_total(ended, volume.designator, "bytes_written")
    if written != ended.planned_bytes:
        raise BackupError(
            f"item {ended.item}: the mover reports {written} bytes written, "
            f"{ended.planned_bytes} were planned"
        )
    if plan.get("is_checked"):
        plan["unchecked"] = [plan["record"], plan["next_record"]]
    plan["record"] = plan["next_record"]
    job.update(done_bytes=job.row.done_bytes + ended.planned_bytes)
    desk.save(job)


def note_lost(job: Job, extents: Iterable[Sequence[int]]) -> None:
    """Remember blocks (LBA, blocks) that are not there, so that their files can be named; the caller saves the job.

    Raises `MediumError` if they are more than `LOST_EXTENTS_MAX`.
    """
    lost = job.plan.setdefault("lost", [])
    lost += [list(extent) for extent in extents]
    if len(lost) > LOST_EXTENTS_MAX:
        raise MediumError(
            f"more than {LOST_EXTENTS_MAX} pieces cannot be restored",
            hint=f"ctl submit verify {job.row.backup} lists all damage",
        )


def copy_readings(
    desk: Desk,
    job: Job,
    readings: Sequence[Reading],
    ended: ItemRow | None,
    *,
    before_list: Callable[[], Step] = _nothing,
) -> Step:
    """Copy everything that is taken onto the target, from where the plan says.

    `ended` is the list that was under way before a restart; `before_list` is done before each one.
    """
    course = _Course(desk, job, readings, before_list)
    while job.plan["part"] <= len(course.readings):
        try:
            if ended is not None:
                taken, ended = ended, None
                course.take(taken)
            yield from course.restore_part()
        except CartridgeLostError as error:
            course.leave(error)


def doubt(job: Job, backups: Iterable[BackupId]) -> None:
    """Note that a restore takes records which are not those that were committed: nobody can vouch for what they hold.

    Each of them reads without an error.  The caller saves the job.
    """
    if known := {*job.plan.get("doubted", ()), *backups}:
        job.plan["doubted"] = sorted(known)


def _with_again(desk: Desk, plan: Mapping[str, Any], readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings of a job with those that came later: what is read from another part."""
    found = list(readings)
    for entry in plan.get("again", ()):
        found.append(_again(desk, found, entry))
    return found


def _again(desk: Desk, readings: Sequence[Reading], entry: Sequence[int]) -> Reading:
    index, backup, part, first, end = entry
    return Reading(
        desk.backups[BackupId(backup)],
        desk.registry.parts[backup, part],
        Picks(_slice(readings[index], first, end)),
    )


def gap_extents(
    desk: Desk, plan: Mapping[str, Any], readings: Sequence[Reading]
) -> Iterator[tuple[int, int]]:
    """Yield what of the volume is lost, as the plan of a job with these readings says: (LBA, blocks)."""
    found = _with_again(desk, plan, readings)
    for index, first, end in plan.get("gaps", ()):
        for _, lba, blocks in _slice(found[index], first, end):
            yield lba, blocks


def _slice(reading: Reading, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield what a reading takes of some records of the stream."""
    size = reading.row.record_bytes // reading.row.block_bytes
    return reading.picks.slice(first * size, end * size)


def _content(reading: Reading, bad: Sequence[int] = ()) -> PartPicks:
    """Return what is taken of a part; nothing of the records that are known to be bad."""
    size = reading.row.record_bytes // reading.row.block_bytes
    start = reading.part.stream_start // reading.row.block_bytes
    picks = reading.picks
    if bad:
        holes = [(start + number * size, start + (number + 1) * size) for number in sorted(bad)]
        picks = without(picks, holes)
    return PartPicks(
        picks=picks,
        block_bytes=reading.row.block_bytes,
        record_bytes=reading.row.record_bytes,
        stream_start=reading.part.stream_start,
        stream_bytes=reading.part.stream_bytes,
    )


class _Course:
    """The readings of a job, and how far it has come."""

    def __init__(
        self,
        desk: Desk,
        job: Job,
        readings: Sequence[Reading],
        before_list: Callable[[], Step],
    ) -> None:
        self.desk, self.job, self.plan = desk, job, job.plan
        self.readings = _with_again(desk, job.plan, readings)
        self.volume: VolumeRow = desk.registry.volumes[job.row.volume]
        self._before_list = before_list
        self._reader = PartReader(desk, job, waits=self._waits)

    @property
    def reading(self) -> Reading:
        """The reading that it is at."""
        number: int = self.plan["part"]
        return self.readings[number - 1]

    @property
    def _lane(self) -> int:
        """Which lane of a restore writes, from 1; 0 if it has no lanes."""
        lane: int = self.plan.get("lane", 0)
        return lane

    @property
    def _keeps_going(self) -> bool:
        return bool(self.plan.get("keep_going"))

    # --- the ordinary way ---

    def restore_part(self) -> Step:
        """Copy what is left to take of one part onto the target."""
        desk, plan, reader = self.desk, self.plan, self._reader
        reading = self.reading
        part = reading.part
        if part.tag in plan.get("shunned", ()):
            raise CartridgeLostError(f"cartridge {part.tag} is not read any more")
        yield from reader.turn_to(part)
        while True:
            content = _content(reading, plan.get("bad", ()))
            yield from self._check_copied(part, content)
            first = content.wanted_from(plan["record"])
            if first is None:
                break
            # What a list has read is counted from here: nobody wants the records before.
            plan["record"] = first
            planned = plan_restore(
                content,
                first=first,
                data_object=part.data_object,
                disk=self.volume.designator,
                tape=reader.drive_unit,
                identifier=list_identifier(desk.next_number("list")),
                # What is compared afterwards are the blocks of this list: it may write no others.  Nor may a lane:
                # what is between them may be another's.
                is_exact="way" in plan or self._lane > 0,
            )
            rights = Rights.READ | Rights.WRITE
            uses = (
                disk_use(
                    self.volume.node,
                    self.volume.designator,
                    planned,
                    rights=rights,
                    lane=self._lane,
                ),
                tape_use(reader.node, reader.drive_unit, planned),
            )
            yield from self._before_list()
            ended = yield from reader.run(planned, "restore", uses)
            self.take(ended)
            if ended.state != "done":
                yield from self._settle(part)
        self._next_part()

    def _next_part(self) -> None:
        behind = self.readings[self.plan["part"] :]
        self.plan.pop("bad", None)
        self.plan.pop("bad_seen", None)
        self._reader.next_part(behind[0].part if behind else None)

    def take(self, ended: ItemRow) -> None:
        """Move on behind a list that was done; stop at a damaged record, or go around it."""
        plan, reading = self.plan, self.reading
        if ended.state == "done":
            take_done(self.desk, self.job, ended)
            return
        content = _content(reading, plan.get("bad", ()))
        damaged = self._reader.damaged_record(ended, content)
        if damaged is None:
            self._stop_without_room(ended)
            return
        entry = self._reader.note_damage(reading.part, content, damaged, ended)
        first = self._stream_record(damaged)
        self._spoil(reading.row, first, f"object {entry['object']} of {reading.part.tag}")
        lost = self._read_elsewhere([(first, first + 1)], entry)
        self._note_bad(damaged)
        if lost:
            self._lose(lost, self._why(reading.part, entry))
        progress(self.job)  # One damaged record less to meet.
        self.desk.save(self.job)
        if plan["bad_seen"] >= DAMAGED_TO_LEAVE and self._has_others(reading):
            told = f"cartridge {reading.part.tag} has {DAMAGED_TO_LEAVE} damaged records in a part"
            raise CartridgeLostError(told)

    def _note_bad(self, record: int) -> None:
        """Go around a record of the part; those behind which everything is done need not be known any more."""
        plan = self.plan
        done, _ = plan.get("unchecked", (plan["record"], 0))
        bad = [number for number in plan.get("bad", ()) if number >= min(done, plan["record"])]
        plan.update(bad=[*bad, record], bad_seen=plan.get("bad_seen", len(bad)) + 1)

    def _stop_without_room(self, ended: ItemRow) -> None:
        """Raise if the target's disk is full: no other mover and no later attempt would find more room."""
        told = forwarded_of(ended).destination
        if told is not None and told.triple == NO_SPACE:
            volume = self.volume
            raise VolumeError(
                f"the disk under volume {volume.name} is full: storage node {volume.node} could not "
                f"write item {ended.item}",
                hint=f"make room on {volume.node}, or delete the volume, and restore again",
            )

    def _why(self, part: PartRow, entry: dict[str, Any]) -> MediumError:
        """Return what ends the restore, if a record that is lost ends it."""
        return MediumError(
            f"cartridge {part.tag}: object {entry['object']} cannot be read; "
            f"LBA {entry['first_lba']} to {entry['last_lba']} of the volume cannot be restored",
            hint=f"the volume stays offline; {KEEP_GOING}, "
            f"ctl submit verify {part.backup} lists all damage",
        )

    def _settle(self, part: PartRow) -> Step:
        """After an item that did not end well: raise every fence before the next one is planned.

        Of the volume only that of its own lane: others are at work on it.
        """
        yield from self._reader.load(part)
        epoch = self.desk.next_epoch()
        yield Ask(
            node=self.volume.node,
            make=lambda request: UnitFence(
                request=request,
                designator=self.volume.designator,
                epoch=epoch,
                lane=self._lane,
            ),
            what=f"fence volume {self.volume.name}",
        )

    def _check_copied(self, part: PartRow, content: PartPicks) -> Step:
        """Compare what the last list has copied with the cartridge."""
        if "unchecked" not in self.plan:
            return
        first, end = self.plan["unchecked"]
        wrong = yield from check_list(
            self._reader, part, content, self.volume, first=first, end=end
        )
        if wrong:
            told = (
                f"{len(wrong)} pieces of part {part.part} read differently "
                f"than they are on {part.tag}"
            )
            self.desk.log(self.job, "error", told)
            note_lost(self.job, wrong)
        del self.plan["unchecked"]
        self.desk.save(self.job)

    # --- what cannot be read ---

    def leave(self, error: CartridgeLostError) -> None:
        """The rest of this part is read elsewhere, or is lost."""
        plan, reading = self.plan, self.reading
        part = reading.part
        self._copy_unchecked_again()
        shunned = plan.setdefault("shunned", [])
        if part.tag not in shunned:
            shunned.append(part.tag)
            self.desk.log(self.job, "warning", error.message)
        start = self._stream_record(0)
        dealt = [(start + number, start + number + 1) for number in plan.get("bad", ())]
        rest = without_records(
            [(self._stream_record(plan["record"]), start + part.records)], merged_records(dealt)
        )
        lost = self._read_elsewhere(rest, None)
        if lost:
            if not self._keeps_going:
                error.hint = error.hint or KEEP_GOING
                raise error
            self._lose(lost, error)
            result = self.job.result
            told = f"{error.message}: {self._blocks(lost)} blocks of the volume cannot be restored"
            result.setdefault("unreadable", []).append(told)
            self.job.update(error_count=self.job.row.error_count + 1)
            self.desk.log(self.job, "error", told)
        progress(self.job)  # Another cartridge is another chance.
        self._next_part()

    def _copy_unchecked_again(self) -> None:
        """What was copied and not compared counts as not copied."""
        if "unchecked" not in self.plan:
            return
        first, end = self.plan.pop("unchecked")
        content = _content(self.reading, self.plan.get("bad", ()))
        count = content.bytes_before(end) - content.bytes_before(first)
        self.plan["repeated_bytes"] = self.plan.get("repeated_bytes", 0) + count
        self.plan["record"] = first
        self.job.update(done_bytes=self.job.row.done_bytes - count)

    def _waits(self, part: PartRow) -> bool:
        """Say whether a cartridge that is not there is waited for."""
        reading = self.reading
        first = part.stream_start // reading.row.record_bytes
        found = self._sources(reading, first, first + part.records, besides=[part.tag])
        return not self._keeps_going and not found

    def _has_others(self, reading: Reading) -> bool:
        first = self._stream_record(self.plan["record"])
        end = self._stream_record(reading.part.records)
        return bool(self._sources(reading, first, end, besides=[reading.part.tag]))

    def _stream_record(self, record: int) -> int:
        """Return the number in its stream of a record of the part."""
        return self.reading.part.stream_start // self.reading.row.record_bytes + record

    def _spoil(self, row: BackupRow, record: int, words: str) -> None:
        """Remember that a record cannot be read, in this job and with the backup."""
        spoiled = self.plan.setdefault("spoiled", {})
        mine = [(first, end) for first, end in spoiled.get(str(row.backup), ())]
        spoiled[str(row.backup)] = few_records(merged_records([*mine, (record, record + 1)]))
        row = self.desk.backups[row.backup]
        row = with_damage(
            row,
            damage_of(row) or f"{words} could not be read by job {self.job.row.job}",
            merged_records([*bad_of(row), (record, record + 1)]),
        )
        self.desk.backups[row.backup] = row
        self.desk.record(row)

    def _sources(
        self, reading: Reading, first: int, end: int, *, besides: Sequence[VolumeTag] = ()
    ) -> list[Source]:
        """Return where else records of a reading's stream can be read now."""
        backups, registry = self.desk.backups, self.desk.registry
        row = head(origin(reading.row), backups) or reading.row
        found = sources(
            row,
            look([row], backups, registry, families(backups)),
            backups,
            registry,
            besides=[*self.plan.get("shunned", ()), *besides],
            spoiled={
                BackupId(int(key)): [(a, b) for a, b in ranges]
                for key, ranges in self.plan.get("spoiled", {}).items()
            },
        )
        return [
            Source(each.row, each.part, max(first, each.first), min(end, each.end), each.rank)
            for each in found
            if each.rank is not Rank.GONE and max(first, each.first) < min(end, each.end)
        ]

    def _read_elsewhere(self, ranges: Records, entry: dict[str, Any] | None) -> Records:
        """Let another part give these records of the stream; returns those that none has and that are wanted."""
        lost, told = list[tuple[int, int]](), dict[str, None]()
        reading, again = self.reading, self.plan.setdefault("again", [])
        for first, end in ranges:
            found = self._sources(reading, first, end)
            for each in found:
                if next(_slice(reading, each.first, each.end), None) is not None:
                    place = each.row.backup, each.part.part, each.first, each.end
                    again.append([self.plan["part"] - 1, *place])
                    self.readings.append(_again(self.desk, self.readings, again[-1]))
                    told[f"backup {each.row.backup} on {each.part.tag}"] = None
                    if each.part.part in changed_of(each.row):
                        doubt(self.job, [each.row.backup])
            lost += without_records([(first, end)], [(each.first, each.end) for each in found])
        if told:
            where = ", ".join(told)
            self.desk.log(self.job, "info", f"what is missing is read from {where}")
            if entry is not None:
                entry["instead"] = where
        return [each for each in lost if next(_slice(reading, *each), None) is not None]

    def _blocks(self, lost: Records) -> int:
        return sum(blocks for each in lost for _, _, blocks in _slice(self.reading, *each))

    def _lose(self, lost: Records, error: BackupError) -> None:
        """These records of the stream do not come back; raises `error` if that ends the restore."""
        if "selection" in self.plan:
            for each in lost:
                note_lost(self.job, [(lba, n) for _, lba, n in _slice(self.reading, *each)])
        elif self._keeps_going:
            at = self.plan["part"] - 1
            gaps = [(at, first, end) for first, end in lost]
            note_gaps(self.plan, gaps, blocks=self._blocks(lost))
        else:
            raise error
