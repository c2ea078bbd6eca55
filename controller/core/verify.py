"""The verify of a backup: read every record, compare the stored digests, list everything that is damaged.

A verify goes on behind a damaged record, and behind a cartridge that cannot be used at all: its answer is the list.
It writes nothing and holds nothing but its drive.

A backup that stands on others is verified by itself: its own records.  What a restore needs besides is told with it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from backplane.errors import BackupError, ExitCode, MediumError, VolumeError
from controller.catalog.store import BackupRow, ItemRow, PartRow
from controller.core import drives
from controller.core.chain import chain_of, needed_tags
from controller.core.copies import families
from controller.core.damage import with_damage
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
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
from controller.core.part_reader import PartReader
from controller.core.planner import PartData, plan_verify
from controller.core.procedure import Extents, Procedure, Step

MISMATCHES_LISTED_MAX: Final = 100
DIGEST_TRIES_MAX: Final = 5
FOUND: Final = "damage found: "


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
        _tell_what_it_needs(desk, job, row)
        desk.enter(job, JobState.COPYING)
    runs = yield Extents(backup=row.backup)
    reader = PartReader(desk, job)
    ended = yield from adopt_item(desk, job, item)
    if ended is not None:
        _take(reader, row, parts[job.plan["part"] - 1], runs, ended)
    for part in parts[job.plan["part"] - 1 :]:
        try:
            yield from _verify_part(reader, row, part, runs)
        except VolumeError as error:
            data = part_data(row, part, runs)
            lbas = (
                f"{sum(n for _, n in data.extents_of(0, part.records))} blocks of part {part.part}"
            )
            _mismatch(reader, f"{error.message}; {lbas} cannot be read")
        reader.next_part()
    desk.enter(job, JobState.COMMITTING)
    if job.result.get("damaged_records") or job.result.get("mismatches"):
        reason, code = damage_words(job.result), int(ExitCode.DAMAGED)
        desk.end_job(
            job,
            JobState.FAILED,
            _noted(desk, row, reason.removeprefix(FOUND)),
            reason=reason,
            exit_code=code,
        )
    else:
        desk.end_job(job, JobState.COMPLETED, _noted(desk, row, ""), reason="", exit_code=0)


def _noted(desk: Desk, row: BackupRow, words: str) -> BackupRow:
    """Keep the outcome with the backup: nothing new is to stand on a damaged one."""
    row = with_damage(desk.backups[row.backup], words)
    desk.backups[row.backup] = row
    return row


def damage_words(result: dict[str, Any]) -> str:
    """Say in a line what was found; the job's result has it all."""
    words = [
        f"{entry['tag']} object {entry['object']}: LBA {entry['first_lba']} to {entry['last_lba']}"
        for entry in result.get("damage", [])[:4]
    ]
    words += result.get("mismatches", [])[:4]
    more = result.get("damaged_records", 0) - 4
    return FOUND + "; ".join(words) + (f"; and {more} records more" if more > 0 else "")


def part_data(row: BackupRow, part: PartRow, runs: ExtentRuns) -> PartData:
    """Return what a part holds."""
    return PartData(
        runs=runs,
        block_bytes=row.block_bytes,
        record_bytes=row.record_bytes,
        stream_start=part.stream_start,
        stream_bytes=part.stream_bytes,
    )


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


def _verify_part(reader: PartReader, row: BackupRow, part: PartRow, runs: ExtentRuns) -> Step:
    """Read what is left of one part's records, and compare the stored digests with the catalog's root."""
    plan = reader.plan
    yield from reader.load(part)
    yield from _compare_root(reader, part)
    while plan["record"] < part.records:
        planned = plan_verify(
            first=plan["record"],
            records=part.records - plan["record"],
            record_bytes=row.record_bytes,
            data_object=part.data_object,
            tape=reader.drive_unit,
            identifier=list_identifier(reader.desk.next_number("list")),
        )
        uses = (tape_use(reader.node, reader.drive_unit, planned),)
        ended = yield from reader.run(planned, "verify", uses)
        _take(reader, row, part, runs, ended)
        if ended.state != "done":
            yield from reader.load(part)  # Fences whoever may still read.


def _take(
    reader: PartReader, row: BackupRow, part: PartRow, runs: ExtentRuns, ended: ItemRow
) -> None:
    """Move on by what a list has read, and over the record that it could not read."""
    plan = reader.plan
    if ended.state == "done":
        read = ledger_total(ended, reader.drive_unit, "bytes_discarded")
        if read != ended.planned_bytes:
            raise BackupError(
                f"item {ended.item}: the mover reports {read} bytes read, "
                f"{ended.planned_bytes} were planned"
            )
        plan["record"] = plan["next_record"]
    elif ended.state == "failed":
        data = part_data(row, part, runs)
        damaged = reader.damaged_record(ended, data)
        if damaged is not None:
            reader.note_damage(part, data, damaged, ended)
            plan["record"] = damaged + 1
            progress(reader.job)
        else:
            read = min(reader.records_read(ended), part.records - plan["record"])
            plan["record"] += read
            if read:
                progress(reader.job)
    before = sum(
        each.records for each in reader.desk.registry.parts_of(part.backup) if each.part < part.part
    )
    reader.job.update(done_bytes=(before + plan["record"]) * row.record_bytes)
    reader.desk.save(reader.job)


def _compare_root(reader: PartReader, part: PartRow) -> Step:
    """The digests that the cartridge keeps must be those that were committed."""
    start, end = part.data_object, part.data_object + part.records
    for tries in range(1, DIGEST_TRIES_MAX + 1):
        try:
            digests = yield from drives.read_digests(reader.job, start=start, end=end)
        except MediumError as error:
            _mismatch(reader, f"cartridge {part.tag}: {error.message}")
            return
        if digests is not None:
            break
        # Its node has restarted and the drive is empty.
        yield from pause(reader.desk, reader.job, BACKOFF_BASE_S * tries)
        yield from reader.load(part)
    if digests is None or hashlib.sha256(digests).hexdigest() != part.root:
        _mismatch(
            reader,
            f"cartridge {part.tag}: the digests of part {part.part} are not those that were committed",
        )


def _mismatch(reader: PartReader, text: str) -> None:
    found = reader.job.result.setdefault("mismatches", [])
    if text in found:
        return  # Found before a restart of ours.
    if len(found) < MISMATCHES_LISTED_MAX:
        found.append(text)
    reader.job.update(error_count=reader.job.row.error_count + 1)
    reader.desk.log(reader.job, "error", text)
    reader.desk.save(reader.job)
