"""Verification: read every record, or a sample, compare the stored digests, list everything that is damaged.

A verification goes on behind a damaged record, and behind a cartridge that cannot be used at all: its answer is the
list.  It writes nothing and holds nothing but its drive.  What is damaged is named by LBA and, from the maps of the
backups, by file; it stays with the backups (`damage`), so that it is read from a second copy and nothing new is to
stand on it.  Only who has read all of a part, and compared its digests, takes back what was known against it: records
that have changed places read without an error, each of them.

A backup that stands on others is verified by itself: its own records.  What a restore needs besides is told with it.  A
verification of a pool skips cartridges that are not there and says so; all others wait for theirs.

In the plan `part` counts the parts from 1 and `record` is the next to read of that part, as `part_reader` has it, and

    parts     [backup, part] in the order in which they are read
    found     backup -> [first, end] of records of its stream that are damaged
    wrong     backup -> sentences about what is wrong besides damaged records
    read      [backup, part] of which everything was read and compared
    gone      [backup, part] on cartridges that were forgotten: listed, and not kept with backups, which say so anyhow
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from backplane.errors import BackupError, ExitCode, MediumError, VolumeError
from backplane.ids import BackupId
from controller.catalog.store import BackupRow, ItemRow, PartRow
from controller.core import drives
from controller.core.allocation import needed_words
from controller.core.chain import chain_of, needed_tags
from controller.core.copies import families
from controller.core.damage import (
    Records,
    bad_of,
    changed_of,
    damage_of,
    merged_records,
    with_damage,
    without_records,
)
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
from controller.core.files_hit import find_files, hit_document
from controller.core.items import (
    BACKOFF_BASE_S,
    adopt_item,
    ledger_total,
    list_identifier,
    pause,
    progress,
    tape_use,
)
from controller.core.job import Job, JobState
from controller.core.part_reader import CartridgeAwayError, CartridgeGoneError, PartReader
from controller.core.planner import PartData
from controller.core.procedure import Extents, Procedure, Step
from controller.core.sampling import Sample, SampledPart, chosen
from controller.core.tape_lists import plan_verify

MISMATCHES_LISTED_MAX: Final = 100
DIGEST_TRIES_MAX: Final = 5
WORDS_MAX: Final = 4
"""Findings that are named in one line."""

FOUND: Final = "damage found: "


def verify(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a verification."""
    work = _Verification(desk, job)
    if job.state is JobState.QUEUED:
        work.begin()
        desk.enter(job, JobState.COPYING)
    if job.plan["part"] <= len(work.parts):
        # In this order: between the end of a list and what is made of it, nothing may come.
        yield from work.turn()
        ended = yield from adopt_item(desk, job, item)
        if ended is not None:
            work.take(ended)
    while job.plan["part"] <= len(work.parts):
        yield from work.turn()
        yield from work.read_part()
    desk.enter(job, JobState.COMMITTING)
    yield from work.name_files()
    work.end()


def damage_words(result: dict[str, Any], *, backup: int = 0) -> str:
    """Say in a line what was found, in one backup or in all; the job's result has it all."""
    entries = [each for each in result.get("damage", []) if backup in (0, each["backup"])]
    words = [
        f"{entry['tag']} object {entry['object']}: LBA {entry['first_lba']} to {entry['last_lba']}"
        for entry in entries[:WORDS_MAX]
    ]
    if not backup:
        words += result.get("mismatches", [])[:WORDS_MAX]
    count = len(entries) if backup else result.get("damaged_records", 0)
    more = count - WORDS_MAX
    return "; ".join(words) + (f"; and {more} records more" if more > 0 else "")


def part_data(row: BackupRow, part: PartRow, runs: ExtentRuns) -> PartData:
    """Return what a part holds."""
    return PartData(
        runs=runs,
        block_bytes=row.block_bytes,
        record_bytes=row.record_bytes,
        stream_start=part.stream_start,
        stream_bytes=part.stream_bytes,
    )


class _Verification:
    """The parts of a job, and what was found so far."""

    def __init__(self, desk: Desk, job: Job) -> None:
        self.desk, self.job, self.plan = desk, job, job.plan
        if "parts" not in job.plan:  # A job of a release that knew only whole backups.
            parts = desk.registry.parts_of(job.row.backup)
            job.plan.update(parts=[[part.backup, part.part] for part in parts], sample="", seed="")
        self.parts = [
            desk.registry.parts[BackupId(backup), part] for backup, part in job.plan["parts"]
        ]
        self.sample = Sample.parse(job.plan["sample"])
        self._reader = PartReader(desk, job, waits=lambda _: "skips" not in job.plan)
        self._runs: tuple[BackupId, ExtentRuns] | None = None
        self._content: SampledPart | None = None

    def begin(self) -> None:
        """Say what is going to be read."""
        job = self.job
        total = sum(part.records for part in self.parts)
        sizes = [
            (self.sample.size(part.records), self._row(part).record_bytes) for part in self.parts
        ]
        job.update(started=self.desk.wall, planned_bytes=sum(n * size for n, size in sizes))
        job.plan.update(tries=0, unlucky=[], item=0, part=1, record=0, before=0)
        job.plan.update(found={}, wrong={}, read=[])
        job.result.setdefault("damage", [])
        if not self.sample.is_everything:
            records = sum(n for n, _ in sizes)
            asked = {"asked": job.plan["sample"], "seed": job.plan["seed"]}
            job.result["sample"] = asked | {"records": records, "of": total}
            told = f"a sample of {records} of {total} records is read, with seed {job.plan['seed']}"
            self.desk.log(job, "info", told)
        needed = needed_words(self.desk.registry, [part.tag for part in self.parts])
        self.desk.log(job, "info", f"cartridges needed, in order: {needed}")
        if job.row.backup:
            _tell_what_it_needs(self.desk, job, self.desk.backups[job.row.backup])

    # --- a part ---

    @property
    def part(self) -> PartRow:
        """The part that it is at."""
        number: int = self.plan["part"]
        return self.parts[number - 1]

    def _row(self, part: PartRow) -> BackupRow:
        return self.desk.backups[part.backup]

    @property
    def content(self) -> SampledPart:
        """What is read of that part."""
        assert self._content is not None
        return self._content

    def turn(self) -> Step:
        """Look up what is read of the part that it is at."""
        part = self.part
        if self._runs is None or self._runs[0] != part.backup:
            runs = yield Extents(backup=part.backup)
            self._runs = part.backup, runs
        row = self._row(part)
        numbers = chosen(
            self.sample,
            part.records,
            seed=self.plan["seed"],
            place=f"{row.backup_uuid} {part.part}",
        )
        self._content = SampledPart(part_data(row, part, self._runs[1]), numbers)

    def read_part(self) -> Step:
        """Read what is left of the part, and compare the stored digests with the catalog's root."""
        part = self.part
        try:
            yield from self._reader.turn_to(part)
            is_compared = yield from self._compare_root()
            while self.plan["record"] < part.records:
                yield from self._read_list()
        except CartridgeAwayError as error:
            self._skip(error.message)
        except CartridgeGoneError as error:
            self._lose_rest(error.message, is_kept=False)
        except VolumeError as error:
            self._lose_rest(error.message)
        else:
            if self.sample.is_everything and is_compared:
                self.plan["read"].append([part.backup, part.part])
        self.plan["before"] += len(self.content.numbers) * self._row(part).record_bytes
        behind = self.parts[self.plan["part"] :]
        self._reader.next_part(behind[0] if behind else None)

    def _read_list(self) -> Step:
        reader, part = self._reader, self.part
        planned = plan_verify(
            self.content.runs(self.plan["record"]),
            record_bytes=self._row(part).record_bytes,
            data_object=part.data_object,
            tape=reader.drive_unit,
            identifier=list_identifier(self.desk.next_number("list")),
        )
        uses = (tape_use(reader.node, reader.drive_unit, planned),)
        ended = yield from reader.run(planned, "verify", uses)
        self.take(ended)
        if ended.state != "done":
            yield from reader.load(part)  # Fences whoever may still read.

    def take(self, ended: ItemRow) -> None:
        """Move on by what a list has read, and over the record that it could not read."""
        plan, reader, content = self.plan, self._reader, self.content
        if ended.state == "done":
            read = ledger_total(ended, reader.drive_unit, "bytes_discarded")
            if read != ended.planned_bytes:
                raise BackupError(
                    f"item {ended.item}: the mover reports {read} bytes read, "
                    f"{ended.planned_bytes} were planned"
                )
            plan["record"] = plan["next_record"]
        elif ended.state == "failed":
            damaged = reader.damaged_record(ended, content)
            if damaged is not None:
                reader.note_damage(self.part, content, damaged, ended)
                self._find([(damaged, damaged + 1)])
                plan["record"] = content.record_behind(damaged, 1)
                progress(self.job)
            elif read := reader.records_read(ended):
                plan["record"] = content.record_behind(plan["record"], read)
                progress(self.job)
        done = content.before(plan["record"]) * self._row(self.part).record_bytes
        self.job.update(done_bytes=plan["before"] + done)
        self.desk.save(self.job)

    def _compare_root(self) -> Step:
        """The digests that the cartridge keeps must be those that were committed; False if it does not give them."""
        part = self.part
        start, end = part.data_object, part.data_object + part.records
        for tries in range(1, DIGEST_TRIES_MAX + 1):
            try:
                digests = yield from drives.read_digests(self.job, start=start, end=end)
            except MediumError as error:
                self._mismatch(f"cartridge {part.tag}: {error.message}")
                return False
            if digests is not None:
                break
            # Its node has restarted and the drive is empty.
            yield from pause(self.desk, self.job, BACKOFF_BASE_S * tries)
            yield from self._reader.load(part)
        if digests is None or hashlib.sha256(digests).hexdigest() != part.root:
            if digests is not None:
                # Which records are meant nobody can say: all are read elsewhere, if they can be.
                self._find([(0, part.records)])
                changed = self.plan.setdefault("changed", [])
                if [part.backup, part.part] not in changed:
                    changed.append([part.backup, part.part])
            which = f"the digests of part {part.part} of backup {part.backup}"
            self._mismatch(f"cartridge {part.tag}: {which} are not those that were committed")
        return digests is not None

    # --- what is found ---

    def _find(self, records: Iterable[tuple[int, int]]) -> None:
        """Remember records of the part as damaged."""
        part = self.part
        start = part.stream_start // self._row(part).record_bytes
        found = self.plan["found"]
        mine = [(first, end) for first, end in found.get(str(part.backup), [])]
        more = [(start + first, start + end) for first, end in records]
        found[str(part.backup)] = merged_records([*mine, *more])

    def _lose_rest(self, why: str, *, is_kept: bool = True) -> None:
        """Nothing more of the part can be read; with the backup that is kept unless the catalog says it anyhow."""
        part, record = self.part, self.plan["record"]
        blocks = sum(count for _, count in self.content.extents_of(record, part.records))
        told = f"{blocks} blocks of part {part.part} of backup {part.backup} cannot be read"
        self._find([(record, part.records)])
        if not is_kept:
            self.plan.setdefault("gone", []).append([part.backup, part.part])
        self._mismatch(f"{why}; {told}", is_kept=is_kept)

    def _skip(self, why: str) -> None:
        skipped = self.job.result.setdefault("skipped", [])
        if self.part.tag not in [each["tag"] for each in skipped]:
            skipped.append({"tag": self.part.tag, "reason": why})
            self.desk.log(self.job, "warning", f"not verified: {why}")

    def _mismatch(self, text: str, *, is_kept: bool = True) -> None:
        listed = self.job.result.setdefault("mismatches", [])
        if text in listed:
            return  # Found before a restart of ours.
        if len(listed) < MISMATCHES_LISTED_MAX:
            listed.append(text)
        wrong = self.plan["wrong"].setdefault(str(self.part.backup), [])
        if is_kept and len(wrong) < WORDS_MAX:
            wrong.append(text)
        self.job.update(error_count=self.job.row.error_count + 1)
        self.desk.log(self.job, "error", text)
        self.desk.save(self.job)

    def name_files(self) -> Step:
        """Name the files that damage hits: with each damaged record, and of each backup together."""
        hits = []
        for key, ranges in self.plan["found"].items():
            row = self.desk.backups[BackupId(int(key))]
            runs = yield Extents(backup=row.backup)
            entries = [e for e in self.job.result["damage"] if e["backup"] == row.backup]
            own = merged_records([self._place(row, entry) for entry in entries])
            rest = without_records([(first, end) for first, end in ranges], own)
            lost = [_extents(row, runs, [self._place(row, entry)]) for entry in entries]
            found = yield from find_files(
                row, [*lost, _extents(row, runs, rest)], entries=len(entries)
            )
            if found is not None:
                for entry, hit in zip(entries, found.by_entry, strict=True):
                    entry["files"] = hit.document()
            hits.append(hit_document(row, found))
        self.job.result["hit"] = hits

    def _place(self, row: BackupRow, entry: dict[str, Any]) -> tuple[int, int]:
        """Return which record of the stream a damaged record is."""
        part = self.desk.registry.parts[row.backup, entry["part"]]
        first = part.stream_start // row.record_bytes + entry["record"]
        return first, first + 1

    # --- the end ---

    def end(self) -> None:
        """Say what was found, and keep it with the backups."""
        result = self.job.result
        away = {each["tag"] for each in result.get("skipped", ())}
        read = dict.fromkeys(part.tag for part in self.parts)
        result["tags"] = [tag for tag in read if tag not in away]
        rows = [self._noted(row) for row in dict.fromkeys(self._row(part) for part in self.parts)]
        for row in rows:
            self.desk.backups[row.backup] = row
        state, reason, code = JobState.COMPLETED, "", ExitCode.OK
        if result.get("damaged_records") or result.get("mismatches"):
            state, reason, code = JobState.FAILED, FOUND + damage_words(result), ExitCode.DAMAGED
            files = sum(hit["count"] for hit in result["hit"])
            reason += f"; {files} files are hit" if files else ""
        elif skipped := result.get("skipped"):
            first = ", ".join(each["tag"] for each in skipped[:WORDS_MAX])
            more = len(skipped) - WORDS_MAX
            reason = f"not verified: {first}" + (f" and {more} more" if more > 0 else "")
            state, code = JobState.PARTIAL, ExitCode.PARTIAL
        self.desk.end_job(self.job, state, *rows, reason=reason, exit_code=int(code))

    def _noted(self, row: BackupRow) -> BackupRow:
        """Return a backup with what is known of its damage now."""
        gone = [number for backup, number in self.plan.get("gone", ()) if backup == row.backup]
        found = without_records(
            [(a, b) for a, b in self.plan["found"].get(str(row.backup), [])],
            merged_records(_records(row, self.desk.registry.parts[row.backup, n]) for n in gone),
        )
        read = [part for backup, part in self.plan["read"] if backup == row.backup]
        parts = [self.desk.registry.parts[row.backup, number] for number in read]
        bad = without_records(bad_of(row), merged_records(_records(row, part) for part in parts))
        bad = merged_records([*bad, *found])
        wrong = self.plan["wrong"].get(str(row.backup), [])
        words = "; ".join(
            [*filter(None, [damage_words(self.job.result, backup=row.backup)]), *wrong]
        )
        is_all = sum(part.records for part in parts) * row.record_bytes >= row.stream_bytes
        if not words and (bad or not is_all):
            words = damage_of(row)
        changed = {part for backup, part in self.plan.get("changed", ()) if backup == row.backup}
        changed |= set(changed_of(row)) - set(read)
        return with_damage(row, words, bad, changed=changed)


def _records(row: BackupRow, part: PartRow) -> tuple[int, int]:
    first = part.stream_start // row.record_bytes
    return first, first + part.records


def _extents(row: BackupRow, runs: ExtentRuns, records: Records) -> Sequence[tuple[int, int]]:
    """Return the blocks of the volume that stand in some records of a stream."""
    size, end = row.record_bytes // row.block_bytes, row.stream_bytes // row.block_bytes
    return [
        extent
        for first, stop in records
        for extent in runs.slice(min(first * size, end), min(stop * size, end))
    ]


def _tell_what_it_needs(desk: Desk, job: Job, row: BackupRow) -> None:
    chain = chain_of(row, desk.backups)
    job.result["level"] = row.level
    if len(chain) == 1:
        return
    parents = [each.backup for each in chain[1:]]
    tags = needed_tags(chain, desk.registry, desk.backups, families(desk.backups))
    job.result.update(parents=parents, needs=tags)
    names = ", ".join(str(number) for number in parents)
    told = f"backup {row.backup} is {row.level}: only its own records are verified"
    desk.log(job, "info", f"{told}; it stands on {names}, a restore needs {', '.join(tags)}")
