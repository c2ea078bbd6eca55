"""What of a part can be put together from what can be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.tape_format import PartHeader, PartTrailer, VolumeFacts, record_digest_root
from controller.core.extent_runs import ExtentRuns
from controller.core.rebuild_parts import UNKNOWN, FoundMap, FoundPart, found_part

VOLUME = VolumeFacts(
    id="cd" * 16, name="home", designator="3123456789abcdef", blocks=100, block_bytes=512
)
NOW = "2026-01-11T10:43:48Z"
HEADER = PartHeader(
    cartridge="a" * 32,
    sequence=2,
    backup=7,
    backup_uuid="b" * 32,
    job=9,
    part=1,
    previous_cartridge="",
    volume=VOLUME,
    view="e" * 32,
    view_means="snapshot",
    consistency="crash",
    view_time="2026-01-11T10:00:00Z",
    record_bytes=1024,
    object=10,
    previous_trailer=8,
    stream_start=0,
    extents=((0, 4), (10, 4)),
    created=NOW,
    level="incremental",
    parent_uuid="c" * 32,
    zero_extents=((50, 2),),
    tracking="t",
    generation=3,
    map_state="complete",
    map_records=2,
    map_digest="1" * 64,
    pool="weekly",
    retain_until="2027-01-11T10:43:48Z",
    backup_created="2026-01-11T09:59:59Z",
    samples="00" * 16,
)
TRAILER = PartTrailer(
    cartridge="a" * 32,
    sequence=2,
    backup=7,
    backup_uuid="b" * 32,
    part=1,
    volume=VOLUME,
    record_bytes=1024,
    header_object=10,
    data_object=14,
    records=3,
    stream_bytes=6 * 512,
    stream_start=0,
    extents=((0, 4), (10, 2)),
    record_crc32c=(1, 2, 3),
    root=record_digest_root([1, 2, 3]),
    is_last=False,
    continued_on="next cartridge",
    results=(),
    directory=(),
    created="2026-01-11T11:00:00Z",
    level="incremental",
    parent_uuid="c" * 32,
    zero_extents=((50, 2),),
    tracking="t",
    generation=3,
    map_state="complete",
    pool="weekly",
    retain_until="2027-01-11T10:43:48Z",
)


def found(header: PartHeader | None = HEADER, trailer: PartTrailer | None = TRAILER) -> FoundPart:
    return found_part(
        header=header, trailer=trailer, entry=None, header_records=1, end=20, sequence=2
    )


def test_header_and_trailer_are_everything() -> None:
    part = found()
    assert (part.backup, part.job, part.part, part.sequence) == (7, 9, 1, 2)
    assert (part.stream_bytes, part.records, part.trailer_object, part.end) == (3072, 3, 18, 20)
    assert (part.view_means, part.consistency, part.pool) == ("snapshot", "crash", "weekly")
    assert (part.backup_created, part.created) == ("2026-01-11T09:59:59Z", "2026-01-11T11:00:00Z")
    assert part.samples == bytes(16)
    assert part.map == FoundMap(first_object=11, records=2, digest="1" * 64)
    # All that was planned, and not only what this part holds.
    assert list(part.runs) == [(0, 4), (10, 4)]
    assert part.runs.zeros == ExtentRuns([(50, 2)])


def test_without_a_header_what_was_written_is_known() -> None:
    part = found(header=None)
    assert (part.view_means, part.consistency, part.job, part.map) == (UNKNOWN, UNKNOWN, 0, None)
    assert list(part.runs) == [(0, 4), (10, 2)]
    assert part.runs.zeros == ExtentRuns([(50, 2)])


def test_without_a_trailer_the_directory_is_enough() -> None:
    whole = found()
    part = found_part(
        header=HEADER,
        trailer=None,
        entry=TRAILER.directory_entry(),
        header_records=1,
        end=20,
        sequence=2,
    )
    assert part == whole


def test_headers_of_before_have_the_time_of_the_view() -> None:
    assert found(header=replace(HEADER, backup_created="")).backup_created == HEADER.view_time
    part = found(header=replace(HEADER, backup_created="", view_time=""))
    assert part.backup_created == HEADER.created


@pytest.mark.parametrize(
    ("header", "trailer"),
    [
        ({"part": 2, "map_records": 0, "map_digest": "", "zero_extents": ()}, {}),
        ({"sequence": 3}, {}),
        ({"backup": 8}, {}),
        ({"lanes": 2}, {}),
        ({"object": 9}, {}),
        ({"volume": replace(VOLUME, blocks=99)}, {}),
        ({}, {"extents": ((0, 4),)}),
        ({}, {"extents": ((10, 2), (0, 4))}),
        ({}, {"extents": ((98, 6),)}),
        ({}, {"zero_extents": ((99, 2),)}),
        ({"extents": ((0, 200),)}, {}),
        ({"job": 1 << 62}, {}),
        ({"generation": 1 << 63}, {"generation": 1 << 63}),
        ({"backup": 0}, {"backup": 0}),
        ({"view_means": "a\nb"}, {}),
        ({"consistency": "\ud800"}, {}),
        ({"tracking": "t" * 256}, {"tracking": "t" * 256}),
        ({"selection": "{}"}, {"selection": "{}"}),
        ({"selection": "[" * 9000}, {"selection": "[" * 9000}),
    ],
)
def test_what_contradicts_itself_or_cannot_be_is_refused(
    header: dict[str, Any], trailer: dict[str, Any]
) -> None:
    with pytest.raises(VolumeError):
        found(replace(HEADER, **header), replace(TRAILER, **trailer))


@pytest.mark.parametrize(
    "volume",
    [{"id": "home"}, {"name": ""}, {"name": "a\0b"}, {"block_bytes": 1024}],
)
def test_a_volume_that_none_can_be_is_refused(volume: dict[str, Any]) -> None:
    wrong = replace(VOLUME, **volume)
    with pytest.raises(VolumeError):
        found(replace(HEADER, volume=wrong), replace(TRAILER, volume=wrong))


@pytest.mark.parametrize(
    "entry", [{"backup": 8}, {"data_object": 15, "trailer_object": 19}, {"stream_bytes": 9 * 512}]
)
def test_a_directory_that_does_not_fit_the_header_is_refused(entry: dict[str, Any]) -> None:
    told = replace(TRAILER.directory_entry(), **entry)
    with pytest.raises(VolumeError):
        found_part(header=HEADER, trailer=None, entry=told, header_records=1, end=20, sequence=2)
    with pytest.raises(VolumeError):
        found_part(header=HEADER, trailer=TRAILER, entry=told, header_records=1, end=20, sequence=2)


def test_neither_header_nor_trailer_are_not_enough() -> None:
    told = TRAILER.directory_entry()
    with pytest.raises(VolumeError, match="neither"):
        found_part(header=None, trailer=None, entry=told, header_records=1, end=20, sequence=2)
    with pytest.raises(VolumeError, match="it says that it is part 2 here"):
        found_part(header=None, trailer=TRAILER, entry=told, header_records=1, end=20, sequence=1)
