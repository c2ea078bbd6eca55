"""Parts are found from what is on a cartridge alone; the same through a node: test_rebuild_scan."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import MediumError, VolumeError
from backplane.tape_format import PartHeader, PartTrailer, decode_metadata, decode_record
from backplane.tape_format.scan import (
    ReadRecords,
    Scan,
    Sighting,
    TapeScan,
    Unreadable,
    require_entry,
    require_same,
)
from backplane.testing.tape_content import (
    CARTRIDGE,
    RECORD_BYTES,
    Object,
    label_objects,
    part_objects,
    volume_header,
)

DATA = [bytes([number]) * RECORD_BYTES for number in range(1, 6)]


def cartridge(*, parts: Sequence[int]) -> tuple[list[Object], list[PartTrailer]]:
    objects = label_objects(volume_header())
    trailers: list[PartTrailer] = []
    for count in parts:
        last = trailers[-1] if trailers else None
        made, trailer = part_objects(DATA[:count], first_object=len(objects), previous=last)
        objects += made
        trailers.append(trailer)
    return objects, trailers


def answered(scan: Scan, objects: Sequence[Object], lost: Sequence[int] = ()) -> Any:
    """Answer what a scan asks from a list of objects."""
    answer: object = None
    error: MediumError | None = None
    while True:
        try:
            look = scan.send(answer) if error is None else scan.throw(error)
        except StopIteration as done:
            return done.value
        answer, error = None, None
        if isinstance(look, ReadRecords):
            found = objects[look.start]
            answer = [found] if isinstance(found, bytes) else []
            if look.start in lost:
                error = MediumError("lost")
        else:
            records = [each for each in objects[look.start : look.end] if isinstance(each, bytes)]
            answer = b"".join(zlib.crc32(each).to_bytes(4, "big") for each in records), look.end


def scan_of(objects: Sequence[Object]) -> TapeScan[Sighting]:
    return TapeScan(
        cartridge=CARTRIDGE,
        end=len(objects),
        put_together=lambda seen: seen,
        progress=lambda parts: None,
    )


def test_a_directory_names_all_parts_and_a_walk_finds_the_same() -> None:
    objects, trailers = cartridge(parts=(5, 3))
    scan = scan_of(objects)
    last = trailers[-1].directory_entry()
    found = answered(scan.run(last=last, sequence=2), objects)
    assert [each.trailer for each in found.parts] == trailers
    assert (found.way, found.is_clean, found.last) == ("trailers", True, trailers[-1])
    walked = scan_of(objects)
    answered(walked.walk(4), objects)
    assert [each.trailer for each in walked.found.parts] == trailers
    assert walked.found.way == "headers"


def test_without_its_trailer_a_part_is_what_its_header_and_the_drive_say() -> None:
    objects, trailers = cartridge(parts=(5, 3))
    scan = scan_of(objects)
    answered(scan.walk(4), objects, lost=[trailers[1].trailer_object])
    first, second = scan.found.parts
    assert (first.damage, second.damage) == ("", "the trailer of part 1 is damaged")
    assert second.trailer is None
    assert second.entry is not None
    assert second.entry.records == 3
    assert (second.entry.data_object, second.entry.is_last) == (trailers[1].data_object, True)


def test_a_part_that_whoever_scans_refuses_is_left_out_and_told() -> None:
    objects, _ = cartridge(parts=(5,))

    def refuse(seen: Sighting) -> Sighting:
        raise VolumeError("it is odd")

    scan: TapeScan[Sighting] = TapeScan(
        cartridge=CARTRIDGE, end=len(objects), put_together=refuse, progress=lambda parts: None
    )
    answered(scan.walk(4), objects)
    assert (scan.found.parts, scan.found.left_out) == ([], 1)
    assert scan.found.notes == ["part 1 of backup 1 is left out: it is odd"]


def test_records_of_other_cartridges_and_places_are_unreadable() -> None:
    objects, _ = cartridge(parts=(5,))
    moved = [*objects[:4], *objects[3:]]
    scan = scan_of(moved)
    assert answered(scan.records(5), moved) == Unreadable(
        "the record at object 5 belongs elsewhere", is_damaged=True
    )


def test_what_tells_of_two_parts_is_refused() -> None:
    objects, (trailer,) = cartridge(parts=(5,))
    assert isinstance(objects[4], bytes)
    header = decode_metadata([decode_record(objects[4])])
    assert isinstance(header, PartHeader)
    entry = trailer.directory_entry()
    require_same(header, trailer)
    require_entry(header, 1, entry)
    with pytest.raises(VolumeError, match="disagree about lanes"):
        require_same(replace(header, lanes=2), trailer)
    with pytest.raises(VolumeError, match="not where its trailer says"):
        require_same(replace(header, object=5), trailer)
    for other, count, told in (
        (replace(entry, backup=9), 1, "something else than the directory"),
        (entry, 2, "not behind its header"),
        (replace(entry, stream_bytes=1 << 20), 1, "more than was planned"),
    ):
        with pytest.raises(VolumeError, match=told):
            require_entry(header, count, other)
