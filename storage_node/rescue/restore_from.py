"""`storage-node restore-from`: a volume, or one file, out of nothing but cartridges.

The backup and all that it stands on are laid over each other from the full one on.  For a file only the records that
hold its blocks are read, into a sparse scratch image, from which it is then put together.

What is written stands in a temporary file beside its target until it is whole, or what is missing is told: nothing
half done ever has the name that was asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from backplane.errors import (
    MediaNeededError,
    MediumError,
    NotFoundError,
    RefusedError,
    UsageError,
    VolumeError,
)
from backplane.file_map.content import JBD2_MAGIC, pieces, refuse
from backplane.file_map.decompress import decompress
from backplane.file_map.header import unpack_header
from backplane.file_map.model import ByteRun, FileRow, Kind
from backplane.file_map.packed import join_rows
from backplane.file_map.runs import merged
from backplane.file_map.selection import Selection
from backplane.tape_format.content import VOLUME_BYTES_END
from storage_node.core.reassembly import (
    Found,
    PartContent,
    chain_of,
    missing_parts,
    slices,
    zero_runs,
)
from storage_node.rescue.shelf import Shelved

COPY_BYTES: Final = 1 << 20
LOST_LISTED_MAX: Final = 1000
_ZEROS: Final = bytes(COPY_BYTES)

Tell = Callable[[str], None]
"""Says a line of progress."""


@dataclass(slots=True)
class Losses:
    """What could not be read: runs of bytes of the volume."""

    runs: list[ByteRun] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, runs: Sequence[ByteRun], reason: str) -> None:
        """Note a loss."""
        self.runs += runs
        if len(self.reasons) < LOST_LISTED_MAX:
            self.reasons.append(reason)


def parts_by_backup(shelf: Sequence[Shelved]) -> dict[str, list[Found]]:
    """Return the parts of each backup UUID, in their order; a part that is there twice counts once."""
    found: dict[str, dict[int, Found]] = defaultdict(dict)
    for number, cartridge in enumerate(shelf):
        for each in cartridge.parts(number):
            found[each.entry.backup_uuid].setdefault(each.entry.part, each)
    return {uuid: [parts[n] for n in sorted(parts)] for uuid, parts in found.items()}


def find_backup(name: str, found: dict[str, list[Found]]) -> str:
    """Return the UUID of a backup that is named by its number or the beginning of its UUID."""
    if name.isascii() and name.isdecimal() and len(name) < 20:
        hits = [uuid for uuid, parts in found.items() if parts[0].entry.backup == int(name)]
    else:
        hits = [uuid for uuid in found if name and uuid.startswith(name.lower())]
    if not hits:
        raise NotFoundError(f"no backup {name} is on these cartridges", hint="--list shows them")
    if len(hits) > 1:
        raise UsageError(f"{name} is more than one backup", hint=f"one of {', '.join(hits)}")
    return hits[0]


def list_backups(shelf: Sequence[Shelved]) -> list[str]:
    """Return a line for each backup, and one for each thing that it lacks."""
    found = parts_by_backup(shelf)
    lines = []
    for uuid, parts in found.items():
        first = parts[0].entry
        tags = ", ".join(dict.fromkeys(shelf[each.shelf].header.tag for each in parts))
        level = f"{first.level} on {first.parent_uuid}" if first.parent_uuid else first.level
        size = sum(each.entry.stream_bytes for each in parts)
        lines.append(
            f"backup {first.backup} ({uuid}) of {first.volume_name}, {first.created}, {level}, "
            f"{size} bytes on {tags}"
        )
        lines += [f"    {each.damage}" for each in parts if each.damage]
        lines += [f"    {words}" for words in _what_is_missing(shelf, parts)]
    return lines


def _what_is_missing(shelf: Sequence[Shelved], parts: Sequence[Found]) -> Iterator[str]:
    last, lanes = parts[-1], 1
    # Whoever needs this part will say that it is damaged.
    with suppress(MediumError, VolumeError):
        lanes = shelf[last.shelf].content(last).lanes
    for number in missing_parts(parts, lanes):
        if number:
            where = _where(shelf, parts, parts[0].entry.backup_uuid)
            yield f"part {number} is not on these cartridges{where}"
        else:
            # Nobody knew when this was written.
            yield f"it goes on behind part {last.entry.part}, on another cartridge"


def _where(shelf: Sequence[Shelved], parts: Sequence[Found], uuid: str) -> str:
    """Name the cartridges with a backup that are not here, as the headers of some parts say; else nothing."""
    here = {each.header.cartridge for each in shelf}
    names: dict[str, None] = {}
    for each in parts:
        with suppress(MediumError, VolumeError):
            header, _ = shelf[each.shelf].part_header(each)
            for backup, cartridge, tag in header.needs:
                if backup == uuid and cartridge not in here:
                    names[f"{tag} (UUID {cartridge})"] = None
            before = header.previous_cartridge
            is_told = any(before in name for name in names)
            if before and before not in here and not is_told and uuid == header.backup_uuid:
                names[f"the one with UUID {before}"] = None
    return f": bring cartridge {', '.join(names)}" if names else ""


def _whole(shelf: Sequence[Shelved], uuid: str, found: dict[str, list[Found]]) -> str:
    """Return a backup, or if something of it is missing or damaged one of the same family of which nothing is.

    If there is none, one that is only damaged is better than one of which something is missing.
    """

    def origin(each: str) -> str:
        return found[each][0].entry.copy_of_uuid or each

    family = [uuid, *(each for each in found if each != uuid and origin(each) == origin(uuid))]
    whole = [each for each in family if not any(_what_is_missing(shelf, found[each]))]
    sound = (each for each in whole if not any(part.damage for part in found[each]))
    return next(sound, next(iter(whole), uuid))


class Reassembly:
    """One backup and what it stands on, to be laid over each other into an image."""

    def __init__(
        self, shelf: Sequence[Shelved], backup: str, *, keeps_going: bool, tell: Tell
    ) -> None:
        """Find everything before anything is written; raises `MediaNeededError` if something is not there."""
        self._shelf, self._keeps_going, self._tell = shelf, keeps_going, tell
        self.losses = Losses()
        self.doubts: list[str] = []
        found = parts_by_backup(shelf)
        self.uuid = find_backup(backup, found)
        self.members: list[list[Found]] = []
        chain, lost = chain_of(self.uuid, found)
        if lost:
            child = found[chain[0]][0].entry.backup
            top = [part for uuid in chain for part in found[uuid]]
            told = f"backup {lost}, on which backup {child} stands, is on none of these cartridges"
            self._lack(f"{told}{_where(shelf, top, lost)}")
        chain = [_whole(shelf, uuid, found) for uuid in chain]
        for uuid in chain:
            number = found[uuid][0].entry.backup
            for words in _what_is_missing(shelf, found[uuid]):
                self._lack(f"backup {number} is not complete: {words}")
            self.members.append([each for each in found[uuid] if self._can_be_read(each)])
        if not self.members[-1]:
            raise MediumError(f"nothing of backup {backup} can be read")
        self.first = self.members[-1][0]
        self._facts = replace(self._content(self.first), extents=(), zero_extents=())

    def _content(self, found: Found) -> PartContent:
        return self._shelf[found.shelf].content(found)

    def _can_be_read(self, found: Found) -> bool:
        """Say whether it is known what a part holds; notes what nobody vouches for."""
        try:
            doubt = self._content(found).doubt
        except (MediumError, VolumeError) as error:
            if not self._keeps_going:
                raise
            self.losses.add([], f"{error.message}: what it held is as without it")
            return False
        if doubt:
            self.doubts.append(doubt)
        return True

    def _lack(self, words: str) -> None:
        """A cartridge is not here: that ends it, or its blocks are zeros, or as in an older backup."""
        if not self._keeps_going:
            raise MediaNeededError(words, hint="--keep-going restores everything else")
        self.losses.reasons.append(words)

    @property
    def volume_bytes(self) -> int:
        """The size of the volume."""
        volume = self._facts.volume
        return volume.blocks * volume.block_bytes

    @property
    def selection(self) -> str:
        """Which files alone are in it, empty if all are."""
        return self._facts.selection

    def write(self, descriptor: int, *, wanted: Sequence[ByteRun] | None = None) -> None:
        """Write the volume, or the runs that are wanted of it, to an empty file."""
        os.ftruncate(descriptor, self.volume_bytes)
        for member in self.members:
            for found in member:
                content = self._content(found)
                if content.volume.blocks * content.volume.block_bytes > self.volume_bytes:
                    raise VolumeError(f"part {content.part}: of a larger volume than its backup")
                for begin, end in zero_runs(content, wanted=wanted):
                    _write_zeros(descriptor, begin, end)
                self._write_part(descriptor, found, content, wanted)

    def _write_part(
        self, descriptor: int, found: Found, content: PartContent, wanted: Sequence[ByteRun] | None
    ) -> None:
        cartridge = self._shelf[found.shelf]
        buffer = memoryview(
            bytearray(content.record_bytes)
        )  # A record that is longer or shorter is damage.
        read = 0
        for number, taken in slices(content, wanted=wanted):
            try:
                data = cartridge.data_record(found, number, buffer)
            except MediumError as error:
                self._lost(
                    descriptor,
                    [(s.volume_byte, s.volume_byte + s.byte_count) for s in taken],
                    error,
                )
                continue
            read += 1
            for offset, at, count in taken:
                _write_sparse(descriptor, data[offset : offset + count], at)
        self._tell(
            f"cartridge {cartridge.header.tag}: part {content.part} of backup {content.backup}, "
            f"{read} of {content.records} records read"
        )

    def _lost(self, descriptor: int, runs: list[ByteRun], error: MediumError) -> None:
        if not self._keeps_going:
            raise MediumError(
                f"{error.message}: bytes {runs[0][0]} to {runs[-1][1]} of the volume are lost",
                hint="--keep-going restores everything else",
            ) from error
        self.losses.add(runs, f"{error.message}: bytes {runs[0][0]} to {runs[-1][1]} of the volume")
        for begin, end in runs:  # Not what an older backup says: that may be anything.
            _write_zeros(descriptor, begin, end)

    # --- one file --------------------------------------------------------------------------------

    def find_file(self, path: str) -> FileRow:
        """Find a file in the map on the cartridge; raises `NotFoundError` or `RefusedError`."""
        found, facts = self.first, self._facts
        items = self._shelf[found.shelf].map_items(found)
        packed = next(items, None)
        if packed is None or facts.part != 1:
            raise NotFoundError(
                f"backup {facts.backup} has no map of its files here",
                hint="restore the volume, without --path, and mount it",
            )
        pages = unpack_header(packed).row_pages
        key = os.fsencode(path).strip(b"/")
        rows = join_rows(page for _, page in zip(range(pages), items, strict=False))
        row = next((row for row in rows if row.path == key), None)
        if row is None:
            raise NotFoundError(f"no file {path} is in backup {facts.backup}")
        if row.kind != Kind.FILE:
            raise RefusedError(f"{path} is a {Kind(row.kind).name.lower()}, and no regular file")
        self._require_chosen(row, path)
        why_not = refuse(row)
        if row.size >= VOLUME_BYTES_END:
            why_not = f"its map says that it has {row.size} bytes"
        if why_not:
            raise RefusedError(f"{path} cannot come back as a file: {why_not}")
        return row

    def write_file(self, descriptor: int, row: FileRow, scratch: int) -> None:
        """Put a file together; `scratch` is an empty file for the parts of the volume that it needs."""
        wanted = list(merged(_needed(row)))
        self.write(scratch, wanted=wanted)
        os.ftruncate(descriptor, row.size)
        for piece in pieces(row):
            if piece.volume_byte is None:
                continue
            if piece.algorithm:
                stored = _read(scratch, piece.volume_byte, piece.stored_bytes)
                raw = decompress(piece.algorithm, stored, piece.raw_bytes)
                raw = raw[piece.raw_offset : piece.raw_offset + piece.byte_count]
                _write(descriptor, raw, piece.file_byte)
                continue
            for at in range(0, piece.byte_count, COPY_BYTES):
                count = min(COPY_BYTES, piece.byte_count - at)
                data = bytearray(_read(scratch, piece.volume_byte + at, count))
                if piece.is_escaped and at == 0:
                    data[: len(JBD2_MAGIC)] = JBD2_MAGIC[: len(data)]
                _write_sparse(descriptor, memoryview(data), piece.file_byte + at)

    def _require_chosen(self, row: FileRow, path: str) -> None:
        """A backup of chosen files lacks the content of all others."""
        if self.selection and not Selection.from_json(json.loads(self.selection)).picks(row):
            raise RefusedError(
                f"{path} is not among the files that were chosen for backup {self._facts.backup}"
            )


def _needed(row: FileRow) -> Iterator[ByteRun]:
    runs = (
        (piece.volume_byte, piece.volume_byte + (piece.stored_bytes or piece.byte_count))
        for piece in pieces(row)
        if piece.volume_byte is not None
    )
    yield from sorted(runs)


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def whole_or_nothing(target: Path, *, is_forced: bool) -> Iterator[int]:
    """Open a temporary file beside the target; it gets the target's name when all went well.

    Raises `RefusedError` if there is something of that name, unless forced.
    """
    if (target.exists() or target.is_symlink()) and not is_forced:
        raise RefusedError(f"{target} is there already", hint="--force replaces it")
    descriptor, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}.", suffix=".partial"
    )
    temporary = Path(name)
    try:
        yield descriptor
        os.fsync(descriptor)
        if is_forced:
            temporary.replace(target)
        else:
            os.link(temporary, target)
            temporary.unlink()
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_file(folder: Path) -> Iterator[int]:
    """Open a file without a name."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file.fileno()


def _write(descriptor: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count


def _write_sparse(descriptor: int, data: memoryview, at: int) -> None:
    """Write data; zeros where nothing was written stay holes."""
    if data.nbytes <= COPY_BYTES and data == _ZEROS[: data.nbytes]:
        _write_zeros(descriptor, at, at + data.nbytes)
    else:
        _write(descriptor, data, at)


def _write_zeros(descriptor: int, begin: int, end: int) -> None:
    """Make a range zeros, as a hole where nothing was written."""
    try:
        start = os.lseek(descriptor, begin, os.SEEK_DATA)
    except OSError:
        return  # Nothing but a hole from here on.
    while start < end:
        count = min(COPY_BYTES, end - start)
        _write(descriptor, _ZEROS[:count], start)
        start += count


def _read(descriptor: int, at: int, count: int) -> bytes:
    data = os.pread(descriptor, count, at)
    if len(data) != count:
        raise VolumeError(f"bytes {at} to {at + count} are not on the volume")
    return data
