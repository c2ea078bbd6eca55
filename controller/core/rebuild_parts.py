"""What a cartridge says of one of its parts, put together from what can still be read of it.  Pure.

    header     before the data: who, of what, by whom; what was planned; where the map of the files stands
    trailer    behind the data: what has been written; what commits the part
    entry      a line for it in the directory of every later trailer of the cartridge

Trailer and header together are everything.  Without the trailer, the directory and the header are enough; without the
header, the trailer is, but for how the view was made and for the map.  What contradicts itself is refused: everything
here comes from a medium and may be anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Final

from backplane.errors import UsageError, VolumeError
from backplane.file_map.selection import Selection
from backplane.tape_format import DirectoryEntry, PartHeader, PartTrailer, VolumeFacts
from backplane.tape_format.content import NAME_CHARACTERS_MAX, Extents
from backplane.tape_format.scan import COUNTER_END, require_entry, require_same
from controller.core.extent_runs import EXTENTS_MAX, LBA_END_MAX, ExtentRuns, unite

NUMBER_END: Final = 1 << 63
"""The catalog keeps numbers of 64 bits with a sign; a tape may say anything."""
UUID_CHARACTERS: Final = 32
BLOCK_BYTES: Final = (512, 4096)

UNKNOWN: Final = "unknown"
"""Of a view whose header cannot be read any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMap:
    """Where the file map of a backup stands: `records` records from object `first_object` on."""

    first_object: int
    records: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPart:
    """A committed part, as its cartridge describes it.

    `runs` are extents of the whole backup as far as this part knows them: what was planned from here on, and what was
    written; its `zeros` are there in part 1 of a backup that is not full.  `end` is the object behind the filemark that
    commits.  `damage` says what of the part cannot be read any more, empty if everything can.
    """

    backup: int
    backup_uuid: str
    part: int
    sequence: int
    level: str
    parent_uuid: str
    copy_of_uuid: str
    volume: VolumeFacts
    record_bytes: int
    header_object: int
    data_object: int
    trailer_object: int
    end: int
    records: int
    stream_start: int
    stream_bytes: int
    root: str
    is_last: bool
    created: str
    lane: int
    lanes: int
    tracking: str
    generation: int
    map_state: str
    selection: str
    pool: str
    retain_until: str
    runs: ExtentRuns
    job: int = 0
    view_means: str = UNKNOWN
    consistency: str = UNKNOWN
    backup_created: str = ""
    samples: bytes = b""
    previous_cartridge: str = ""
    map: FoundMap | None = None
    damage: str = ""

    def __post_init__(self) -> None:
        numbers = [
            value for field in fields(self) if isinstance(value := getattr(self, field.name), int)
        ]
        _require(max(numbers) < NUMBER_END, "a number that is too large")
        _require(0 < self.backup < COUNTER_END and self.job < COUNTER_END, "a number of no backup")
        _require(self.end > self.trailer_object, "it ends before its trailer")
        _require(self.volume.block_bytes in BLOCK_BYTES, "blocks of a length that no volume has")
        _require(self.runs.end_lba <= self.volume.blocks, "an extent outside of the volume")
        zeros = self.runs.zeros
        _require(
            zeros is None or zeros.end_lba <= self.volume.blocks, "zeros outside of the volume"
        )
        is_whole = not self.stream_bytes % self.volume.block_bytes
        _require(is_whole and not self.stream_start % self.volume.block_bytes, "half a block")
        for text in (self.volume.name, self.view_means, self.consistency, self.tracking, self.pool):
            _require(len(text) <= NAME_CHARACTERS_MAX and text.isprintable(), "a text that is none")
        _require(bool(self.volume.name), "a volume without a name")
        _require(_is_uuid(self.volume.id), "a volume whose identifier is none")
        _require_selection(self.selection)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise VolumeError(sentence)


def _is_uuid(text: str) -> bool:
    return len(text) == UUID_CHARACTERS and set(text) <= set("0123456789abcdef")


def _require_selection(text: str) -> None:
    if not text:
        return
    try:
        Selection.from_json(json.loads(text))
    except (ValueError, RecursionError, UsageError) as error:
        raise VolumeError(f"a selection that is none: {error}") from error


def found_part(
    *,
    header: PartHeader | None,
    trailer: PartTrailer | None,
    entry: DirectoryEntry | None,
    header_records: int,
    end: int,
    sequence: int,
) -> FoundPart:
    """Put a part together; raises `VolumeError` if that contradicts itself, or is not enough.

    `header_records` is how many records the header has, `end` the object behind the part.  A part has a trailer, or
    else a header and an entry.
    """
    if trailer is None:
        if header is None or entry is None:
            raise VolumeError("neither its header nor its trailer can be read")
        return _from_entry(header, entry, header_records, end=end)
    if entry is not None and not entry.is_same(trailer.directory_entry()):
        raise VolumeError("its trailer says something else than the directory")
    _require(trailer.sequence == sequence, f"it says that it is part {trailer.sequence} here")
    if header is not None:
        require_same(header, trailer)
    runs = _runs(trailer.extents, trailer.zero_extents, trailer.level, trailer.part)
    written = runs.total_blocks * trailer.volume.block_bytes
    _require(written == trailer.stream_bytes, "its extents are not what it holds")
    if header is not None:
        planned = _runs(header.extents, (), header.level, 0)
        zeros, runs = runs.zeros, unite(planned, runs)
        runs.zeros = zeros
    return _put_together(trailer, trailer, header, header_records, runs=runs, end=end)


def _from_entry(
    header: PartHeader, entry: DirectoryEntry, header_records: int, *, end: int
) -> FoundPart:
    """The trailer is lost: the header says what was planned, the entry how much of it was written."""
    require_entry(header, header_records, entry)
    runs = _runs(header.extents, header.zero_extents, header.level, header.part)
    return _put_together(header, entry, header, header_records, runs=runs, end=end)


def _put_together(
    said: PartTrailer | PartHeader,
    told: PartTrailer | DirectoryEntry,
    header: PartHeader | None,
    header_records: int,
    *,
    runs: ExtentRuns,
    end: int,
) -> FoundPart:
    """Return a part: `said` has what it was to be, `told` where it is and how much of it there is."""
    return FoundPart(
        backup=said.backup,
        backup_uuid=said.backup_uuid,
        part=said.part,
        sequence=said.sequence,
        level=said.level,
        parent_uuid=said.parent_uuid,
        copy_of_uuid=said.copy_of_uuid,
        volume=said.volume,
        record_bytes=said.record_bytes,
        header_object=told.header_object,
        data_object=told.data_object,
        trailer_object=told.trailer_object,
        end=end,
        records=told.records,
        stream_start=said.stream_start,
        stream_bytes=told.stream_bytes,
        root=told.root,
        is_last=told.is_last,
        created=told.created,
        lane=said.lane,
        lanes=said.lanes,
        tracking=said.tracking,
        generation=said.generation,
        map_state=said.map_state,
        selection=said.selection,
        pool=said.pool,
        retain_until=said.retain_until,
        runs=runs,
        **({} if header is None else _of_header(header, header_records)),  # type: ignore[arg-type]
    )


def _of_header(header: PartHeader, header_records: int) -> dict[str, object]:
    """Return what only a header says."""
    found = None
    if header.map_records:
        found = FoundMap(
            first_object=header.object + header_records,
            records=header.map_records,
            digest=header.map_digest,
        )
    return {
        "job": header.job,
        "view_means": header.view_means,
        "consistency": header.consistency,
        "backup_created": header.backup_created or header.view_time or header.created,
        "samples": bytes.fromhex(header.samples),
        "previous_cartridge": header.previous_cartridge,
        "map": found,
    }


def _runs(extents: Extents, zeros: Extents, level: str, part: int) -> ExtentRuns:
    """Return extents of a tape as runs, with `zeros` where part 1 of a backup that is not full declares them."""
    made = _checked_runs(extents)
    if level != "full" and part == 1:
        made.zeros = _checked_runs(zeros)
    return made


def _checked_runs(extents: Extents) -> ExtentRuns:
    _require(len(extents) <= EXTENTS_MAX, "more extents than any backup has")
    made = ExtentRuns()
    for lba, blocks in extents:
        _require(made.end_lba <= lba <= LBA_END_MAX - blocks, "its extents are out of order")
        made.append(lba, blocks)
    return made
