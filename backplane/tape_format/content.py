"""What headers and trailers say.  Every field is in docs/tape-format.md.

Values are checked when they are made, so neither a program nor a tape can bring a contradictory one into being.
Object numbers are those of this cartridge; `stream` bytes count along the whole backup, over all its parts.

A backup of level `differential` or `incremental` stands on another one, its parent.  Every block has one of three
fates: it is in the stream (`extents`), it is zero although the parent may say otherwise (`zero_extents`, in part 1 for
the whole backup), or it is as in the parent.  So a chain can be laid over each other from its cartridges alone.

The map of a volume's files follows the part header of part 1, in `map_records` records of its own (`map_stream`);
`map_digest` is the SHA-256 of its pages.  A backup of chosen files says in `selection` which: what else its blocks
belong to is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar, Final

from backplane.errors import VolumeError
from backplane.tape_format.schema import Json
from backplane.units import KIB, MIB

FORMAT_VERSION: Final = 1
OWNER: Final = "SDV"
RECORD_BYTES_MIN: Final = 512
RECORD_BYTES_MAX: Final = (1 << 24) - 1
LABEL_OBJECTS: Final = 4
LEVELS: Final = ("full", "differential", "incremental")
SINCE_2: Final = {"since": 2}
"""Fields that records of version 1 do not have: everything was a full backup."""
SINCE_3: Final = {"since": 3}
"""Fields that records before version 3 do not have: no backup had a file map, and each was of a whole volume."""
SINCE_4: Final = {"since": 4}
"""Fields that records before version 4 do not have: no pool, no retention, no copies, and one drive for each backup."""
LANES_MAX: Final = 64
UNKNOWN_START: Final = -1
NEEDS_MAX: Final = 256
"""Places that a header names, of what belongs to its backup and is elsewhere."""
PRUNED_RUNS_MAX: Final = 4096
"""Runs of numbers of pruned backups in a trailer; of more, those of the oldest backups are left out."""
VOLUME_BYTES_END: Final = 1 << 63
"""What a file offset can say; the image of a volume is a file."""
MAP_STATES: Final = ("none", "raw", "complete", "incomplete")
"""Nobody could make a map; nobody wanted one; there is one; there is one that lacks what its reasons say."""
SELECTION_CHARACTERS_MAX: Final = 1 << 20
NAME_CHARACTERS_MAX: Final = 255
"""Of a volume."""
EXTENTS_MAX: Final = 8 * MIB
"""Of one part, and as many zero extents: more than fit into a header with numbers of usual length."""
RECORDS_MAX: Final = 16 * MIB
"""Data records of one part: more than there are checksums in a trailer."""
DIRECTORY_MAX: Final = 100_000
"""Parts of one cartridge."""
RESULTS_TEXT_BYTES_MAX: Final = 64 * KIB
"""JSON text of what a trailer carries without understanding it."""

_UUID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){1,32}", re.ASCII)
_SAMPLES: Final = re.compile(r"(?:[0-9a-f]{32}){0,64}", re.ASCII)
"""At most 64 samples of 16 bytes: address, bytes, CRC32C."""
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)
Extents = Sequence[tuple[int, int]]
"""(LBA, blocks), in the order of the stream."""
EXTENT_LISTS: Final = ("extents", "zero_extents")
"""What is long about a header."""
_EXTENTS: Final = {"items_max": EXTENTS_MAX}
_SELECTION: Final = {"text_bytes_max": 12 * SELECTION_CHARACTERS_MAX + 2}
"""JSON takes at most twelve characters for one."""
Needs = tuple[tuple[str, str, str], ...]
"""(backup UUID, volume UUID, barcode) of cartridges."""
Runs = tuple[tuple[int, int], ...]
"""(first number, count), ascending; they neither overlap nor touch."""


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise VolumeError(sentence)


def _require_moment(text: str, *, end: str = "9999") -> None:
    """Raise unless it is a moment of the calendar: others calculate with it, and turn it into local time."""
    sentence = f"no moment in UTC: {text[:40]!r}"
    _require(bool(_MOMENT.fullmatch(text)) and "1970" <= text < end, sentence)
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise VolumeError(sentence) from error


def _require_extents(extents: Extents) -> None:
    _require(all(lba >= 0 and blocks > 0 for lba, blocks in extents), "an extent is empty")


def _require_level(level: str, parent_uuid: str) -> None:
    _require(level in LEVELS, f"no level is called {level!r}")
    _require(not parent_uuid or bool(_UUID.fullmatch(parent_uuid)), "the parent's UUID is no UUID")
    _require((level == "full") == (not parent_uuid), "a backup that is not full has a parent")


def _require_zeros(zero_extents: Extents, *, level: str, part: int) -> None:
    _require_extents(zero_extents)
    is_possible = level != "full" and part == 1
    _require(is_possible or not zero_extents, "zero extents where none belong")


def _require_life(retain_until: str, copy_of_uuid: str, *, lane: int = 0, lanes: int = 1) -> None:
    if retain_until:
        _require_moment(retain_until, end=":")  # The last second of the year 9999 is for ever.
    _require(not copy_of_uuid or bool(_UUID.fullmatch(copy_of_uuid)), "no UUID of a backup")
    _require(1 <= lanes <= LANES_MAX and 0 <= lane < lanes, "a lane that is not one of the lanes")


def _require_needs(needs: Needs) -> None:
    _require(len(needs) <= NEEDS_MAX, "more places than a header names")
    for backup_uuid, cartridge, tag in needs:
        is_uuid = _UUID.fullmatch(backup_uuid) and _UUID.fullmatch(cartridge)
        _require(bool(is_uuid) and 1 <= len(tag) <= 32, "a place that is no cartridge")


def _require_runs(runs: Runs) -> None:
    _require(len(runs) <= PRUNED_RUNS_MAX, "more pruned backups than are told")
    behind = -1
    for first, count in runs:
        _require(behind < first and count > 0, "numbers of pruned backups out of order")
        behind = first + count


def _require_selection(map_state: str, selection: str) -> None:
    _require(map_state in MAP_STATES, f"no map is {map_state!r}")
    _require(len(selection) <= SELECTION_CHARACTERS_MAX, "the selection is too long")
    _require(not selection or map_state == "complete", "a selection without a complete map")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHeader:
    """Who a cartridge is.  `cartridge` is its volume UUID; the barcode `tag` is only a hint; `store` is the catalog."""

    format_version: int
    cartridge: str
    tag: str
    created: str
    owner: str
    store: str
    record_bytes: int

    TYPE_NAME: ClassVar[str] = "volume header"

    def __post_init__(self) -> None:
        _require(self.format_version == FORMAT_VERSION, f"format version {self.format_version}")
        _require(bool(_UUID.fullmatch(self.cartridge)), "the volume UUID is no UUID")
        _require(bool(_UUID.fullmatch(self.store)), "the catalog UUID is no UUID")
        _require(1 <= len(self.tag) <= 32, "the volume tag has 1 to 32 characters")
        _require_moment(self.created)
        _require(self.owner == OWNER, f"owner {self.owner!r}")
        _require_record_bytes(self.record_bytes)


def _require_record_bytes(record_bytes: int) -> None:
    _require(
        RECORD_BYTES_MIN <= record_bytes <= RECORD_BYTES_MAX,
        f"records of {record_bytes} bytes: outside {RECORD_BYTES_MIN} to {RECORD_BYTES_MAX}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """The volume that was backed up."""

    id: str
    name: str
    designator: str
    blocks: int
    block_bytes: int

    def __post_init__(self) -> None:
        _require(bool(_HEX.fullmatch(self.designator)), "the designator is not hexadecimal")
        _require(len(self.name) <= NAME_CHARACTERS_MAX, "the name of a volume is too long")
        _require(self.blocks >= 0 and self.block_bytes > 0, "a volume without blocks")
        _require(self.blocks * self.block_bytes < VOLUME_BYTES_END, "a volume that is too large")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHeader:
    """What a part is going to be: written before its data.

    `sequence` counts the parts of this cartridge, `part` those of the backup, both from 1.  `object` is the header's
    own object number.  `extents` are what is planned; the trailer says what happened.  `backup_created` is when the
    backup was begun, which is what it is called by; `samples` are for a later incremental's doubt, in hexadecimal.
    `needs` are the cartridges with earlier parts, and with what the backup stands on, all the way down.
    """

    cartridge: str
    sequence: int
    backup: int
    backup_uuid: str
    job: int
    part: int
    previous_cartridge: str
    volume: VolumeFacts
    view: str
    view_means: str
    consistency: str
    view_time: str
    record_bytes: int
    object: int
    previous_trailer: int
    stream_start: int
    extents: Extents = field(metadata=_EXTENTS)
    created: str
    level: str = field(default="full", metadata=SINCE_2)
    parent_uuid: str = field(default="", metadata=SINCE_2)
    zero_extents: Extents = field(default=(), metadata=SINCE_2 | _EXTENTS)
    tracking: str = field(default="", metadata=SINCE_2)
    generation: int = field(default=0, metadata=SINCE_2)
    map_state: str = field(default="none", metadata=SINCE_3)
    map_records: int = field(default=0, metadata=SINCE_3)
    map_digest: str = field(default="", metadata=SINCE_3)
    selection: str = field(default="", metadata=SINCE_3 | _SELECTION)
    pool: str = field(default="", metadata=SINCE_4)
    retain_until: str = field(default="", metadata=SINCE_4)
    copy_of_uuid: str = field(default="", metadata=SINCE_4)
    lane: int = field(default=0, metadata=SINCE_4)
    lanes: int = field(default=1, metadata=SINCE_4)
    backup_created: str = field(default="", metadata=SINCE_4)
    samples: str = field(default="", metadata=SINCE_4)
    needs: Needs = field(default=(), metadata=SINCE_4)

    TYPE_NAME: ClassVar[str] = "part header"

    def __post_init__(self) -> None:
        for uuid in (self.cartridge, self.backup_uuid):
            _require(bool(_UUID.fullmatch(uuid)), "an identifier of the part header is no UUID")
        previous = self.previous_cartridge
        _require(not previous or bool(_UUID.fullmatch(previous)), "no UUID of a previous cartridge")
        _require(self.sequence >= 1 and self.part >= 1, "parts are counted from 1")
        numbers = (self.backup, self.job, self.stream_start, self.generation)
        _require(min(numbers) >= 0, "a negative number")
        _require_level(self.level, self.parent_uuid)
        _require_zeros(self.zero_extents, level=self.level, part=self.part)
        _require_selection(self.map_state, self.selection)
        _require(
            self.map_records >= 0 and bool(self.map_records) == bool(self.map_digest),
            "a file map has records and a digest, or neither",
        )
        _require(self.part == 1 or not self.map_records, "a file map stands in the first part")
        is_digest = not self.map_digest or bool(_SHA256.fullmatch(self.map_digest))
        _require(is_digest, "the digest of the map is no SHA-256")
        _require_life(self.retain_until, self.copy_of_uuid, lane=self.lane, lanes=self.lanes)
        _require(self.object >= LABEL_OBJECTS, "a part header inside the label")
        _require(0 <= self.previous_trailer < self.object, "a previous trailer behind the header")
        _require_record_bytes(self.record_bytes)
        _require_extents(self.extents)
        for moment in filter(None, (self.view_time, self.created, self.backup_created)):
            _require_moment(moment)
        _require(bool(self.created), "a part without a time")
        _require_needs(self.needs)
        _require(bool(_SAMPLES.fullmatch(self.samples)), "samples that are not hexadecimal")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """One committed part of this cartridge.  `stream_start` is -1 in directories from before version 4."""

    backup_uuid: str
    backup: int
    part: int
    header_object: int
    data_object: int
    trailer_object: int
    stream_bytes: int
    records: int
    root: str
    is_last: bool
    volume_name: str
    created: str
    level: str = field(default="full", metadata=SINCE_2)
    parent_uuid: str = field(default="", metadata=SINCE_2)
    copy_of_uuid: str = field(default="", metadata=SINCE_4)
    stream_start: int = field(default=UNKNOWN_START, metadata=SINCE_4)
    lane: int = field(default=0, metadata=SINCE_4)

    def __post_init__(self) -> None:
        _require_level(self.level, self.parent_uuid)
        _require_life("", self.copy_of_uuid, lane=self.lane, lanes=LANES_MAX)
        _require(self.stream_start >= UNKNOWN_START, "a negative number")
        _require_moment(self.created)
        _require_objects(self.header_object, self.data_object, self.records, self.trailer_object)
        _require(len(self.volume_name) <= NAME_CHARACTERS_MAX, "the name of a volume is too long")
        _require(bool(_UUID.fullmatch(self.backup_uuid)), "a backup UUID is no UUID")
        _require(bool(_SHA256.fullmatch(self.root)), "a root is no SHA-256")

    def is_same(self, other: DirectoryEntry) -> bool:
        """Say whether two entries tell the same, as far as both tell it."""
        if UNKNOWN_START in (self.stream_start, other.stream_start):
            return replace(self, stream_start=other.stream_start) == other
        return self == other


def _require_objects(header: int, data: int, records: int, trailer: int) -> None:
    _require(
        LABEL_OBJECTS <= header < header + 1 < data
        and records >= 0
        and data + records + 1 == trailer,
        "the object numbers of a part contradict each other",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTrailer:
    """What a part has become: written after its data, committed by the filemark that follows.

    `record_crc32c` are the checksums of its data records, `root` the digest over them.  `results` says what happened to
    each work item; it is carried, not interpreted.  `directory` lists every part of the cartridge including this one.
    `pruned` are the numbers of all backups, on whatever cartridge, that the catalog had pruned when this was written.
    """

    cartridge: str
    sequence: int
    backup: int
    backup_uuid: str
    part: int
    volume: VolumeFacts
    record_bytes: int
    header_object: int
    data_object: int
    records: int
    stream_bytes: int
    stream_start: int
    extents: Extents = field(metadata=_EXTENTS)
    record_crc32c: Sequence[int] = field(metadata={"items_max": RECORDS_MAX})
    root: str
    is_last: bool
    continued_on: str
    results: tuple[Json, ...] = field(metadata={"text_bytes_max": RESULTS_TEXT_BYTES_MAX})
    directory: tuple[DirectoryEntry, ...] = field(metadata={"items_max": DIRECTORY_MAX})
    created: str
    level: str = field(default="full", metadata=SINCE_2)
    parent_uuid: str = field(default="", metadata=SINCE_2)
    zero_extents: Extents = field(default=(), metadata=SINCE_2 | _EXTENTS)
    tracking: str = field(default="", metadata=SINCE_2)
    generation: int = field(default=0, metadata=SINCE_2)
    map_state: str = field(default="none", metadata=SINCE_3)
    selection: str = field(default="", metadata=SINCE_3 | _SELECTION)
    pool: str = field(default="", metadata=SINCE_4)
    retain_until: str = field(default="", metadata=SINCE_4)
    copy_of_uuid: str = field(default="", metadata=SINCE_4)
    lane: int = field(default=0, metadata=SINCE_4)
    lanes: int = field(default=1, metadata=SINCE_4)
    pruned: Runs = field(default=(), metadata=SINCE_4)

    TYPE_NAME: ClassVar[str] = "part trailer"

    def __post_init__(self) -> None:
        for uuid in (self.cartridge, self.backup_uuid):
            _require(bool(_UUID.fullmatch(uuid)), "an identifier of the part trailer is no UUID")
        _require(self.sequence >= 1 and self.part >= 1, "parts are counted from 1")
        numbers = (self.backup, self.stream_bytes, self.stream_start, self.generation)
        _require(min(numbers) >= 0, "a negative number")
        _require_level(self.level, self.parent_uuid)
        _require_selection(self.map_state, self.selection)
        _require_zeros(self.zero_extents, level=self.level, part=self.part)
        _require_life(self.retain_until, self.copy_of_uuid, lane=self.lane, lanes=self.lanes)
        _require_runs(self.pruned)
        _require_objects(self.header_object, self.data_object, self.records, self.trailer_object)
        _require_record_bytes(self.record_bytes)
        _require_extents(self.extents)
        _require(len(self.record_crc32c) == self.records, "not one checksum per record")
        _require(
            not self.record_crc32c
            or (min(self.record_crc32c) >= 0 and max(self.record_crc32c) <= 0xFFFF_FFFF),
            "a checksum of a record has 32 bits",
        )
        _require(bool(_SHA256.fullmatch(self.root)), "the root is no SHA-256")
        _require(
            self.stream_bytes <= self.records * self.record_bytes,
            "more bytes than the records hold",
        )
        _require_moment(self.created)

    @property
    def trailer_object(self) -> int:
        """Where the trailer itself begins: behind the filemark of the data."""
        return self.data_object + self.records + 1

    def directory_entry(self) -> DirectoryEntry:
        """Return this part's own line of the directory."""
        return DirectoryEntry(
            backup_uuid=self.backup_uuid,
            backup=self.backup,
            part=self.part,
            header_object=self.header_object,
            data_object=self.data_object,
            trailer_object=self.trailer_object,
            stream_bytes=self.stream_bytes,
            records=self.records,
            root=self.root,
            is_last=self.is_last,
            volume_name=self.volume.name,
            created=self.created,
            level=self.level,
            parent_uuid=self.parent_uuid,
            copy_of_uuid=self.copy_of_uuid,
            stream_start=self.stream_start,
            lane=self.lane,
        )
