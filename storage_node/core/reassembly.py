"""Where the blocks of a volume lie in the parts of its backups: what `restore-from` needs to know.  Pure.

The data records of a part, joined, hold its extents in their order.  A *slice* is a run of bytes that is one piece in a
record and on the volume.  With `wanted`, only what of it somebody asked for is a slice, and a record without one need
not be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from backplane.errors import VolumeError
from backplane.file_map.model import ByteRun
from backplane.file_map.runs import intersected
from backplane.tape_format import DirectoryEntry, PartTrailer


class Slice(NamedTuple):
    """Bytes of a record, and where they belong on the volume."""

    offset: int
    volume_byte: int
    byte_count: int


def volume_runs(trailer: PartTrailer) -> list[tuple[int, int, int]]:
    """Return the extents of a part as (byte of the part's data, byte on the volume, bytes); raises `VolumeError`."""
    size = trailer.volume.block_bytes
    volume_bytes = trailer.volume.blocks * size
    at, runs = 0, []
    for lba, blocks in trailer.extents:
        begin, count = lba * size, blocks * size
        if begin + count > volume_bytes:
            raise VolumeError(f"part {trailer.part}: an extent behind the end of the volume")
        runs.append((at, begin, count))
        at += count
    if at != trailer.stream_bytes:
        raise VolumeError(
            f"part {trailer.part}: extents of {at} bytes, and {trailer.stream_bytes} in the records"
        )
    return runs


def slices(
    trailer: PartTrailer, *, wanted: Sequence[ByteRun] | None = None
) -> Iterator[tuple[int, list[Slice]]]:
    """Yield the records of a part that are needed, in their order, with what to take of each; raises `VolumeError`.

    `wanted` are ascending runs of bytes of the volume; None means everything.
    """
    size = trailer.record_bytes
    record = 0
    here: list[Slice] = []
    for at, begin, count in volume_runs(trailer):
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


def zero_runs(trailer: PartTrailer, *, wanted: Sequence[ByteRun] | None = None) -> list[ByteRun]:
    """Return what a part declares zero, as ascending runs of bytes of the volume."""
    size = trailer.volume.block_bytes
    end = trailer.volume.blocks * size
    runs = sorted((lba * size, (lba + blocks) * size) for lba, blocks in trailer.zero_extents)
    if any(last > end for _, last in runs):
        raise VolumeError(f"part {trailer.part}: zeros behind the end of the volume")
    return runs if wanted is None else list(intersected(runs, wanted))


class Found(NamedTuple):
    """A committed part, and on which cartridge it is: `shelf` is the number of that in the order they were given."""

    shelf: int
    entry: DirectoryEntry


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
    """Return the numbers of parts that are not there; 0 stands for whatever follows the last one.

    `lanes` is how many drives wrote the backup at once; each ended with a part that says so.
    """
    numbers = {each.entry.part for each in parts}
    missing = sorted(set(range(1, max(numbers) + 1)) - numbers)
    return missing if sum(each.entry.is_last for each in parts) >= lanes else [*missing, 0]
