"""`$MFT`: all records of a volume, in bulk, and files put together whose attributes are in several of them.

`$MFT` is a file like others: its record 0 says where it is, and may need further records for that, which lie in the
part that is already known.  `$MFTMirr` has a copy of the first records.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

from storage_node.mapping.ntfs_boot import Geometry
from storage_node.mapping.ntfs_content import ClusterContent, note, value_of
from storage_node.mapping.ntfs_record import (
    ATTRIBUTE_LIST,
    BITMAP,
    DATA,
    RECORD_MASK,
    STRIDE_BYTES,
    Attribute,
    Record,
    parse_record,
)
from storage_node.mapping.ntfs_runs import join_pieces
from storage_node.mapping.reader import DamagedError, Source

PIECE_BYTES: Final = 1024 * 1024
"""Of $MFT, what is read at a time."""
LIST_BYTES_MAX: Final = 256 * 1024
"""Of an attribute list: the limit of NTFS itself.  It bounds the records of a file, to 8,192."""
KEPT_RECORDS_MAX: Final = 16 * 1024
"""Records that are kept because they will be needed again, about 2 KiB each; the others are read again."""
DEFECTS_MAX: Final = 16
"""Records of a file that are not what its list says: nobody reads thousands of them for each of a million files."""
WINDOW_BYTES: Final = 64 * 1024
"""Of the bitmap of `$MFT`, what is read at a time."""
MIRROR_RECORDS: Final = 4

_FIXUP_AT: Final = STRIDE_BYTES - 2

_LIST_ENTRY: Final = struct.Struct("<IHBBQQH")
"""Type, length, characters and place of the name, lowest VCN, reference of the record, instance."""


_Key = tuple[int, int, int, bytes, int]
"""(record, type, instance, name, first VCN): what an entry of an attribute list says."""


class ListEntry(NamedTuple):
    """Where an attribute of a file is."""

    type: int
    name: bytes
    first_vcn: int
    reference: int
    instance: int


def parse_list(data: bytes) -> list[ListEntry]:
    """Take an attribute list apart."""
    entries = []
    at = 0
    while at < len(data):
        if at + _LIST_ENTRY.size > len(data):
            raise DamagedError("its attribute list is damaged")
        entry = _LIST_ENTRY.unpack_from(data, at)
        type_, length, characters, name_at, first_vcn, reference, instance = entry
        name_end = name_at + 2 * characters
        if length < _LIST_ENTRY.size or length & 7 or at + length > len(data) + 7:
            raise DamagedError("its attribute list is damaged")
        if characters and (name_at < _LIST_ENTRY.size or name_end > length):
            raise DamagedError("its attribute list is damaged")
        name = data[at + name_at : at + name_end] if characters else b""
        entries.append(ListEntry(type_, name, first_vcn, reference, instance))
        at += length
    return entries


class Mft:
    """All records, by number."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        """Find all parts of `$MFT`; `DamagedError` if there is no way to."""
        self._source = source
        self._geometry = geometry
        self._kept: dict[int, Record] = {}
        self._window: tuple[int, bytes] = 0, b""
        self.problems: list[str] = []
        self._content = self._from_first_record()
        self.record_count = self._content.size_bytes // geometry.record_bytes
        self._used = self._bitmap()

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield all records, as they are on the volume: (number of the first, many of them)."""
        record_bytes = self._geometry.record_bytes
        end = self.record_count * record_bytes
        for start in range(0, end, PIECE_BYTES):
            count = min(PIECE_BYTES, end - start)
            try:
                piece = self._content.read(start, count)
            except DamagedError as error:
                first = start // record_bytes
                last = (start + count) // record_bytes - 1
                note(self.problems, f"records {first} to {last}: {error.reason}")
                continue
            yield start // record_bytes, piece

    def record(self, number: int) -> Record:
        """Return one record, from what is kept or by a read of its own."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        record_bytes = self._geometry.record_bytes
        return parse_record(self._content.read(number * record_bytes, record_bytes), number)

    def records(self, numbers: array[int], problems: list[str]) -> Iterator[Record]:
        """Yield records that were good before, in ascending order; neighbours come with one read."""
        record_bytes = self._geometry.record_bytes
        per_piece = PIECE_BYTES // record_bytes
        for _, group in groupby(numbers, lambda number: number // per_piece):
            wanted = list(group)
            missing = [number for number in wanted if number not in self._kept]
            first, end = (missing[0], missing[-1] + 1) if missing else (0, 0)
            try:
                piece = self._content.read(first * record_bytes, (end - first) * record_bytes)
                for number in wanted:
                    at = (number - first) * record_bytes
                    kept = self._kept.get(number)
                    yield kept or parse_record(piece[at : at + record_bytes], number)
            except DamagedError as error:
                note(problems, f"records from {wanted[0]} on, at a second look: {error.reason}")

    def keep(self, record: Record) -> None:
        """Remember a record that will be asked for, if there is room."""
        if len(self._kept) < KEPT_RECORDS_MAX:
            self._kept[record.number] = record

    def marks(self, first: int, count: int) -> list[int] | None:
        """Return what the bitmap of `$MFT` says of some records, 1 for used; None if it cannot be read.

        `first` is a multiple of 8, and the records are those of one piece.
        """
        begin, end = first // 8, (first + count + 7) // 8
        if self._used is None or end > self._used.size_bytes:
            return None
        start, window = self._window
        if not start <= begin <= end <= start + len(window):
            try:
                window = self._used.read(begin, min(WINDOW_BYTES, self._used.size_bytes - begin))
            except DamagedError as error:
                note(self.problems, f"the bitmap of $MFT is damaged: {error.reason}")
                self._used = None
                return None
            start = begin
            self._window = start, window
        return [byte >> bit & 1 for byte in window[begin - start : end - start] for bit in range(8)]

    def attributes(self, base: Record) -> tuple[list[Attribute], str]:
        """Return the attributes of a file, and why they are not all ("" if they are)."""
        if not base.is_listed:
            return base.attributes, ""
        lists = [found for found in base.attributes if found.type == ATTRIBUTE_LIST]
        try:
            entries = parse_list(value_of(self._source, self._geometry, lists, LIST_BYTES_MAX))
        except DamagedError as error:
            return base.attributes, error.reason
        found, defects = self._everything(base, entries)
        joined = []
        for entry in entries:
            number = entry.reference & RECORD_MASK
            key = (number, entry.type, entry.instance, entry.name, entry.first_vcn)
            if key in found:
                joined.append(found.pop(key))
            else:
                defects.append(f"attribute {entry.type:X}h is missing in record {number}")
        if any(left.type != ATTRIBUTE_LIST for left in found.values()):
            defects.append("its attribute list does not name all attributes")
        return joined, defects[0] if defects else ""

    def places(self, number: int, usa_at: int, at: int, count: int) -> list[tuple[int, int]]:
        """Return (byte of the volume, bytes) of a part of a record; fixups have moved two bytes of each sector."""
        record_bytes = self._geometry.record_bytes
        start = number * record_bytes
        parts: list[tuple[int, int]] = []
        end = at + count
        while at < end:
            within = at % STRIDE_BYTES
            if within < _FIXUP_AT:
                place, until = at, at - within + _FIXUP_AT
            else:
                place = usa_at + 2 + at // STRIDE_BYTES * 2 + within - _FIXUP_AT
                until = at - within + STRIDE_BYTES
            if until > end:
                until = end
            parts.append((place, until - at))
            at = until
        whole = self._content.places(start, record_bytes)
        if len(whole) == 1:
            byte = whole[0][0]
            return [(byte + place, taken) for place, taken in parts]
        return [
            found for place, taken in parts for found in self._content.places(start + place, taken)
        ]

    def _everything(
        self, base: Record, entries: list[ListEntry]
    ) -> tuple[dict[_Key, Attribute], list[str]]:
        """Return what is in all records of a file, and what is wrong with those records."""
        own = base.sequence << 48 | base.number
        found = {_key(entry): entry for entry in base.attributes}
        defects = []
        for reference in sorted({entry.reference for entry in entries}):
            if reference & RECORD_MASK != base.number:
                try:
                    extension = self._extension(reference, own)
                except DamagedError as error:
                    defects.append(error.reason)
                    if len(defects) >= DEFECTS_MAX:
                        break
                    continue
                found |= {_key(entry): entry for entry in extension}
        return found, defects

    def _extension(self, reference: int, base: int) -> list[Attribute]:
        number = reference & RECORD_MASK
        try:
            record = self.record(number)
        except DamagedError as error:
            raise DamagedError(f"its record {number} is damaged: {error.reason}") from error
        if record.base != base or record.sequence != reference >> 48 or not record.flags & 1:
            raise DamagedError(f"record {number} belongs to another file")
        return record.attributes

    def _from_first_record(self) -> ClusterContent:
        """Begin with record 0, then add what further records say, each of which must lie in what is known."""
        first = self._first_records()
        self._base = first
        own = [found for found in first.attributes if _is_unnamed_data(found)]
        if not first.is_listed:
            return self._content_of(own)
        lists = [found for found in first.attributes if found.type == ATTRIBUTE_LIST]
        entries = parse_list(value_of(self._source, self._geometry, lists, LIST_BYTES_MAX))
        wanted = sorted(
            (entry.first_vcn, entry.reference)
            for entry in entries
            if entry.type == DATA and not entry.name and entry.reference & RECORD_MASK
        )
        for _, reference in wanted:
            self._content = self._content_of(own, is_whole=False)
            extension = self._extension(reference, first.sequence << 48)
            own += [found for found in extension if _is_unnamed_data(found)]
        return self._content_of(own)

    def _content_of(self, pieces: list[Attribute], *, is_whole: bool = True) -> ClusterContent:
        """Join the pieces of `$MFT`; as long as some are missing, the sizes are those of what is there."""
        head = pieces[0].piece if pieces else None
        if head is not None and not is_whole:
            end = max(found.piece.end_vcn for found in pieces if found.piece)
            allocated = end * self._geometry.cluster_bytes
            head = head._replace(allocated=allocated, size=allocated, initialized=allocated)
            pieces = [pieces[0]._replace(piece=head), *pieces[1:]]
        try:
            stream = join_pieces(pieces, self._geometry)
            return ClusterContent(self._source, stream, self._geometry)
        except DamagedError as error:
            raise DamagedError(f"$MFT is damaged: {error.reason}") from error

    def _first_records(self) -> Record:
        """Return record 0, from the mirror if it is torn, and compare the first records with their copies."""
        count = MIRROR_RECORDS * self._geometry.record_bytes
        original = self._source.read(self._geometry.mft_byte, count)
        try:
            mirror = self._source.read(self._geometry.mirror_byte, count)
        except DamagedError:
            mirror = bytes(count)  # which is no record, so each of them will be told
        first: Record | None = None
        for number in range(MIRROR_RECORDS):
            part = slice(
                number * self._geometry.record_bytes, (number + 1) * self._geometry.record_bytes
            )
            one, reason = _parsed(original[part], number)
            two, _ = _parsed(mirror[part], number)
            if one is None or one != two:
                text = reason or "it differs from its copy in $MFTMirr"
                note(self.problems, f"record {number} of $MFT: {text}")
            if not number:
                first = one or two
                if first is None:
                    raise DamagedError(f"$MFT is damaged, and so is its copy: {reason}")
        assert first is not None
        return first

    def _bitmap(self) -> ClusterContent | None:
        try:
            everything, _ = self.attributes(self._base)
            found = [entry for entry in everything if entry.type == BITMAP]
            stream = join_pieces(found, self._geometry)
            return ClusterContent(self._source, stream, self._geometry)
        except DamagedError as error:
            note(self.problems, f"the bitmap of $MFT is damaged: {error.reason}")
            return None


def _parsed(raw: bytes, number: int) -> tuple[Record | None, str]:
    try:
        return parse_record(raw, number), ""
    except DamagedError as error:
        return None, error.reason


def _key(found: Attribute) -> _Key:
    first_vcn = found.piece.first_vcn if found.piece else 0
    return found.record, found.type, found.instance, found.name, first_vcn


def _is_unnamed_data(found: Attribute) -> bool:
    return found.type == DATA and not found.name
