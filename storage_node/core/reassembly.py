"""Where the blocks of a volume lie in the parts of its backups: what `restore-from` needs to know.  Pure.

The data records of a part, joined, hold its extents in their order.  A *slice* is a run of bytes that is one piece in a
record and on the volume.  With `wanted`, only what of it somebody asked for is a slice, and a record without one need
not be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from backplane.errors import VolumeError
from backplane.file_map.model import ByteRun
from backplane.file_map.runs import intersected
from backplane.tape_format import DirectoryEntry, PartHeader, PartTrailer, VolumeFacts
from backplane.tape_format.content import Extents


class Slice(NamedTuple):
    """Bytes of a record, and where they belong on the volume."""

    offset: int
    volume_byte: int
    byte_count: int


MISSING_MAX: Final = 1000
"""Missing parts that are named: a tape may say that it has part 9,000,000,000,000,000,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartContent:
    """What a part holds: as its trailer says, or if that is lost as its header planned it.

    `doubt` says in words what nobody vouches for, empty if the trailer does.
    """

    backup: int
    part: int
    lanes: int
    volume: VolumeFacts
    selection: str
    record_bytes: int
    records: int
    stream_bytes: int
    extents: Extents
    zero_extents: Extents
    is_planned: bool = False
    doubt: str = ""


def content_of_trailer(trailer: PartTrailer) -> PartContent:
    """Return what a trailer says."""
    return PartContent(
        backup=trailer.backup,
        part=trailer.part,
        lanes=trailer.lanes,
        volume=trailer.volume,
        selection=trailer.selection,
        record_bytes=trailer.record_bytes,
        records=trailer.records,
        stream_bytes=trailer.stream_bytes,
        extents=trailer.extents,
        zero_extents=trailer.zero_extents,
    )


def content_of_header(header: PartHeader, entry: DirectoryEntry, *, doubt: str) -> PartContent:
    """Return what was planned, as far as it was written."""
    return PartContent(
        backup=header.backup,
        part=header.part,
        lanes=header.lanes,
        volume=header.volume,
        selection=header.selection,
        record_bytes=header.record_bytes,
        records=entry.records,
        stream_bytes=entry.stream_bytes,
        extents=header.extents,
        zero_extents=header.zero_extents,
        is_planned=True,
        doubt=doubt,
    )


def volume_runs(content: PartContent) -> Iterator[tuple[int, int, int]]:
    """Yield the extents of a part as (byte of the part's data, byte on the volume, bytes); raises `VolumeError`."""
    size = content.volume.block_bytes
    volume_bytes = content.volume.blocks * size
    total = sum(blocks for _, blocks in content.extents) * size
    if total < content.stream_bytes or (total > content.stream_bytes and not content.is_planned):
        raise VolumeError(
            f"part {content.part}: extents of {total} bytes, and {content.stream_bytes} in the records"
        )
    at = 0
    for lba, blocks in content.extents:
        begin, count = lba * size, min(blocks * size, content.stream_bytes - at)
        if begin + blocks * size > volume_bytes:
            raise VolumeError(f"part {content.part}: an extent behind the end of the volume")
        if count == 0:
            return
        yield at, begin, count
        at += count


def slices(
    content: PartContent, *, wanted: Sequence[ByteRun] | None = None
) -> Iterator[tuple[int, list[Slice]]]:
    """Yield the records of a part that are needed, in their order, with what to take of each; raises `VolumeError`.

    `wanted` are ascending runs of bytes of the volume; None means everything.
    """
    size = content.record_bytes
    record = 0
    here: list[Slice] = []
    for at, begin, count in volume_runs(content):
        for first, end in _only(begin, begin + count, wanted):
            position = at + first - begin
            while first < end:
                number, offset = divmod(position, size)
                taken = min(end - first, size - offset)
                if number != record and here:
                    yield record, here
                    here = []
                record = number
                here.append(Slice(offset, first, taken))
                first, position = first + taken, position + taken
    if here:
        yield record, here


def _only(begin: int, end: int, wanted: Sequence[ByteRun] | None) -> Iterable[ByteRun]:
    return [(begin, end)] if wanted is None else intersected([(begin, end)], wanted)


def zero_runs(
    content: PartContent, *, wanted: Sequence[ByteRun] | None = None
) -> Iterator[ByteRun]:
    """Yield what a part declares zero, as ascending runs of bytes of the volume; raises `VolumeError`."""
    runs = _zeros(content)
    return runs if wanted is None else intersected(runs, wanted)


def _zeros(content: PartContent) -> Iterator[ByteRun]:
    size, end = content.volume.block_bytes, 0
    for lba, blocks in content.zero_extents:
        if lba < end:
            raise VolumeError(f"part {content.part}: its zeros are out of order")
        end = lba + blocks
        if end > content.volume.blocks:
            raise VolumeError(f"part {content.part}: zeros behind the end of the volume")
        yield lba * size, end * size


class Found(NamedTuple):
    """A committed part, and on which cartridge it is: `shelf` is the number of that in the order they were given."""

    shelf: int
    entry: DirectoryEntry
    damage: str = ""
    """What cannot be read of it although no trailer of the cartridge tells it, empty if nothing."""


def chain_of(uuid: str, found: Mapping[str, Sequence[Found]]) -> tuple[list[str], str]:
    """Return the UUIDs of a backup and all that it stands on, the full one first, and the UUID of what is missing.

    `found` are the parts of each backup UUID; a copy is as good as its original.  Nothing is missing if the chain is
    whole: an empty string.  Raises `VolumeError` if it never ends.
    """
    copies: dict[str, str] = {}
    for each, parts in found.items():
        copies.setdefault(parts[0].entry.copy_of_uuid, each)
    chain: list[str] = []
    while uuid:
        if uuid not in found:
            if uuid not in copies:
                return chain[::-1], uuid
            uuid = copies[uuid]
        if uuid in chain:
            raise VolumeError(f"backup {uuid} stands on itself")
        chain.append(uuid)
        uuid = found[uuid][0].entry.parent_uuid
    return chain[::-1], ""


def missing_parts(parts: Sequence[Found], lanes: int = 1) -> list[int]:
    """Return the numbers of parts that are not there, the first `MISSING_MAX`; 0 stands for what follows the last one.

    `lanes` is how many drives wrote the backup at once; each ended with a part that says so.
    """
    numbers = {each.entry.part for each in parts}
    gaps = (number for number in range(1, max(numbers)) if number not in numbers)
    missing = list(islice(gaps, MISSING_MAX))
    return missing if sum(each.entry.is_last for each in parts) >= lanes else [*missing, 0]
