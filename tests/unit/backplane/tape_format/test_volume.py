"""Labels, headers and trailers: values to records and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.tape_format import (
    DirectoryEntry,
    MetadataFeed,
    MetadataRecord,
    PartHeader,
    PartTrailer,
    RecordType,
    VolumeFacts,
    VolumeHeader,
    decode_metadata,
    decode_record,
    decode_vol1,
    encode_label,
    encode_part_header,
    encode_part_trailer,
    encode_records,
    join_records,
    record_digest_root,
)
from backplane.tape_format.content import NEEDS_MAX, PRUNED_RUNS_MAX
from backplane.tape_format.payload import encode_payload
from backplane.tape_format.record import RECORD_VERSIONS

CARTRIDGE = "00112233445566778899aabbccddeeff"
BACKUP = "0f" * 16
MOMENT = "2026-01-11T10:43:48Z"
HEADER = VolumeHeader(
    format_version=1,
    cartridge=CARTRIDGE,
    tag="LTO001L8",
    created=MOMENT,
    owner="SDV",
    store="ab" * 16,
    record_bytes=1 << 20,
)
VOLUME = VolumeFacts(
    id="cd" * 16, name="home", designator="3123456789abcdef", blocks=2048, block_bytes=512
)
PART = PartHeader(
    cartridge=CARTRIDGE,
    sequence=1,
    backup=7,
    backup_uuid=BACKUP,
    job=3,
    part=1,
    previous_cartridge="",
    volume=VOLUME,
    view="ee" * 16,
    view_means="snapshot",
    consistency="crash",
    view_time=MOMENT,
    record_bytes=1024,
    object=4,
    previous_trailer=0,
    stream_start=0,
    extents=((0, 4), (100, 2)),
    created=MOMENT,
)
CRCS = (1, 0xFFFFFFFF, 77)
TRAILER = PartTrailer(
    cartridge=CARTRIDGE,
    sequence=1,
    backup=7,
    backup_uuid=BACKUP,
    part=1,
    volume=VOLUME,
    record_bytes=1024,
    header_object=4,
    data_object=6,
    records=3,
    stream_bytes=3072,
    stream_start=0,
    extents=((0, 4), (100, 2)),
    record_crc32c=CRCS,
    root=record_digest_root(CRCS),
    is_last=True,
    continued_on="",
    results=((1, "good", {"residual": 0}), (2, "good", None)),
    directory=(
        DirectoryEntry(
            backup_uuid=BACKUP,
            backup=7,
            part=1,
            header_object=4,
            data_object=6,
            trailer_object=10,
            stream_bytes=3072,
            records=3,
            root=record_digest_root(CRCS),
            is_last=True,
            volume_name="home",
            created=MOMENT,
            stream_start=0,
        ),
    ),
    created=MOMENT,
)


def decoded(records: list[bytes]) -> list[MetadataRecord]:
    return [decode_record(record) for record in records]


def test_a_label_is_vol1_and_the_volume_header_twice() -> None:
    vol1, first, second = encode_label(HEADER)
    assert decode_vol1(vol1).identifier == "LTO001"
    assert decode_metadata([decode_record(first)]) == HEADER
    assert decode_metadata([decode_record(second)]) == HEADER
    assert [decode_record(raw).object_number for raw in (first, second)] == [1, 2]


def test_a_part_header_is_read_back() -> None:
    assert decode_metadata(decoded(encode_part_header(PART))) == PART


def test_a_part_trailer_is_read_back() -> None:
    records = encode_part_trailer(TRAILER, record_bytes_max=400)
    assert len(records) == 4
    found = decode_metadata(decoded(records))
    assert found == TRAILER
    assert TRAILER.trailer_object == 10
    assert TRAILER.directory_entry() == TRAILER.directory[0]


def test_what_a_backup_stands_on_and_declares_zero_is_read_back() -> None:
    grown: dict[str, Any] = {
        "level": "incremental",
        "parent_uuid": "ab" * 16,
        "zero_extents": ((6, 2), (50, 1)),
        "tracking": "t1",
        "generation": 9,
    }
    header, trailer = replace(PART, **grown), replace(TRAILER, **grown)
    assert decode_metadata(decoded(encode_part_header(header))) == header
    assert decode_metadata(decoded(encode_part_trailer(trailer))) == trailer


def test_pool_retention_copy_and_lane_are_read_back() -> None:
    grown: dict[str, Any] = {
        "pool": "weekly",
        "retain_until": "2027-01-01T00:00:00Z",
        "copy_of_uuid": "ab" * 16,
        "lane": 1,
        "lanes": 2,
    }
    header, trailer = replace(PART, **grown), replace(TRAILER, **grown)
    assert decode_metadata(decoded(encode_part_header(header))) == header
    assert decode_metadata(decoded(encode_part_trailer(trailer))) == trailer
    assert trailer.directory_entry().copy_of_uuid == "ab" * 16
    for wrong in (
        {"lane": 2},
        {"lanes": 0},
        {"lanes": 65},
        {"lane": -1},
        {"retain_until": "soon"},
        {"copy_of_uuid": "1"},
    ):
        for value in (header, trailer):
            with pytest.raises(VolumeError):
                replace(value, **wrong)


def test_what_else_is_needed_is_read_back() -> None:
    header = replace(PART, needs=((BACKUP, "ab" * 16, "LTO001L8"),))
    assert decode_metadata(decoded(encode_part_header(header))) == header
    for wrong in (("1", "ab" * 16, "A"), (BACKUP, "1", "A"), (BACKUP, "ab" * 16, "")):
        with pytest.raises(VolumeError, match="no cartridge"):
            replace(PART, needs=(wrong,))
    with pytest.raises(VolumeError, match="more places"):
        replace(PART, needs=header.needs * (NEEDS_MAX + 1))


def test_the_numbers_of_pruned_backups_are_read_back() -> None:
    trailer = replace(TRAILER, pruned=((1, 3), (7, 1)))
    assert decode_metadata(decoded(encode_part_trailer(trailer))) == trailer
    for wrong in (((1, 0),), ((-1, 2),), ((1, 3), (3, 1)), ((1, 3), (4, 1)), ((7, 1), (1, 3))):
        with pytest.raises(VolumeError, match="pruned backups"):
            replace(TRAILER, pruned=wrong)
    many = tuple((2 * number, 1) for number in range(PRUNED_RUNS_MAX + 1))
    assert replace(TRAILER, pruned=many[1:]).pruned == many[1:]
    with pytest.raises(VolumeError, match="more pruned backups"):
        replace(TRAILER, pruned=many)


def test_a_directory_says_where_in_the_stream_each_part_is_and_whose_it_is() -> None:
    entry = replace(TRAILER, stream_start=4096, lane=1, lanes=2).directory_entry()
    assert (entry.stream_start, entry.lane) == (4096, 1)
    assert not entry.is_same(replace(entry, stream_start=0))
    for wrong in ({"stream_start": -2}, {"lane": -1}, {"lane": 64}):
        with pytest.raises(VolumeError):
            replace(entry, **wrong)


def test_the_moment_and_the_samples_of_a_backup_are_in_its_headers() -> None:
    known = {"backup_created": "2026-01-11T10:43:48Z", "samples": "0123456789abcdef" * 2 * 64}
    header = replace(PART, **known)
    assert decode_metadata(decoded(encode_part_header(header))) == header
    for wrong in ({"backup_created": "soon"}, {"samples": "00"}, {"samples": "00" * 16 * 65}):
        with pytest.raises(VolumeError):
            replace(header, **wrong)


@pytest.mark.parametrize(
    "moment",
    [
        *(
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-01-11T24:00:00Z",
            "0001-01-01T00:00:00Z",
        ),
        *("2026-01-11T10:43:60Z", "9999-12-31T23:59:59Z", "2026-01-11T10:43:48", "yesterday"),
    ],
)
def test_a_moment_is_one_of_the_calendar(moment: str) -> None:
    """Whoever reads it calculates with it: in the node's retention, in the rules of pruning, in local time."""
    entry = TRAILER.directory_entry()
    for value, name in (
        *((HEADER, "created"), (PART, "created"), (PART, "view_time"), (PART, "backup_created")),
        *(
            (TRAILER, "created"),
            (entry, "created"),
            (PART, "retain_until"),
            (TRAILER, "retain_until"),
        ),
    ):
        if name != "retain_until" or not moment.startswith("9999"):
            with pytest.raises(VolumeError, match="no moment in UTC"):
                replace(value, **{name: moment})  # type: ignore[arg-type]


def test_a_volume_is_no_larger_than_a_file_can_be() -> None:
    with pytest.raises(VolumeError, match="too large"):
        replace(VOLUME, blocks=1 << 63)


FIELDS_OF = {
    2: ("level", "parent_uuid", "zero_extents", "tracking", "generation"),
    3: ("map_state", "map_records", "map_digest", "selection"),
    4: (
        *("pool", "retain_until", "copy_of_uuid", "lane", "lanes"),
        *("backup_created", "samples", "pruned", "needs"),
    ),
}


def of_version(raw: bytes, version: int) -> bytes:
    """Take out of a payload what came later."""
    value = json.loads(raw)
    for entry in value.get("directory", ()) if version < 4 else ():
        del entry["stream_start"]
    for each in [value, *value.get("directory", ())]:
        for since, names in FIELDS_OF.items():
            for name in names:
                if since > version:
                    each.pop(name, None)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("value", [PART, TRAILER], ids=lambda value: value.TYPE_NAME)
def test_a_cartridge_of_an_earlier_version_is_read_as_full_backups_without_maps(
    monkeypatch: pytest.MonkeyPatch, value: Any, version: int
) -> None:
    is_header = isinstance(value, PartHeader)
    kind = RecordType.PART_HEADER if is_header else RecordType.PART_TRAILER
    place = value.object if is_header else value.trailer_object
    old = of_version(encode_payload(value), version)
    with monkeypatch.context() as patch:
        patch.setitem(RECORD_VERSIONS, kind, version)
        records = encode_records(kind, old, volume_uuid=CARTRIDGE, first_object=place)
    found = decode_metadata(decoded(records))
    if isinstance(found, PartTrailer):
        [entry] = found.directory
        assert entry.stream_start == -1
        assert entry.is_same(value.directory[0])
        assert value.directory[0].is_same(entry)
        assert not entry.is_same(replace(value.directory[0], lane=1))
        found = replace(found, directory=value.directory)
    assert found == value
    # What a version says is there has to be there, and nothing else.
    with pytest.raises(VolumeError, match="missing or unknown"):
        decode_metadata(
            decoded(encode_records(kind, old, volume_uuid=CARTRIDGE, first_object=place))
        )
    with monkeypatch.context() as patch:
        patch.setitem(RECORD_VERSIONS, kind, version)
        records = encode_records(
            kind, encode_payload(value), volume_uuid=CARTRIDGE, first_object=place
        )
    with pytest.raises(VolumeError, match="missing or unknown"):
        decode_metadata(decoded(records))


def test_the_root_is_the_digest_of_the_packed_checksums() -> None:
    assert record_digest_root([]) == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert record_digest_root([1, 2]) != record_digest_root([2, 1])


def test_metadata_elsewhere_than_they_say_are_refused() -> None:
    text = join_records(decoded(encode_part_header(PART)))
    moved = encode_records(RecordType.PART_HEADER, text, volume_uuid=CARTRIDGE, first_object=5)
    with pytest.raises(VolumeError, match="object 4"):
        decode_metadata(decoded(moved))


def test_metadata_of_another_cartridge_are_refused() -> None:
    text = join_records(decoded(encode_part_header(PART)))
    foreign = encode_records(RecordType.PART_HEADER, text, volume_uuid=BACKUP, first_object=4)
    with pytest.raises(VolumeError, match="another cartridge"):
        decode_metadata(decoded(foreign))


# --- as the records come -------------------------------------------------------------------------


def test_a_set_is_decoded_record_by_record() -> None:
    feed = MetadataFeed()
    records = decoded(encode_part_trailer(TRAILER, record_bytes_max=200))
    for count, record in enumerate(records):
        assert (feed.count, feed.is_complete) == (count, False)
        feed.feed(record)
    assert feed.is_complete
    assert feed.finish() == TRAILER


def test_a_record_that_does_not_belong_to_the_ones_before_it_is_refused() -> None:
    one, two, three, *_ = decoded(encode_part_trailer(TRAILER, record_bytes_max=200))
    for wrong in (
        one,
        three,
        replace(two, object_number=9),
        replace(two, count=99),
        replace(two, type=RecordType.PART_HEADER),
        replace(two, volume_uuid="0" * 32),
        replace(two, version=3),
    ):
        feed = MetadataFeed()
        feed.feed(one)
        with pytest.raises(VolumeError, match="record 2 does not belong to the ones before it"):
            feed.feed(wrong)
    with pytest.raises(VolumeError, match="1 metadata records of"):
        decode_metadata([one])
    with pytest.raises(VolumeError, match="no metadata records"):
        decode_metadata([])


def test_long_lists_that_nobody_wants_are_not_kept() -> None:
    feed = MetadataFeed(without=("extents", "record_crc32c", "zero_extents"))
    for record in decoded(encode_part_header(PART)):
        feed.feed(record)
    assert feed.finish() == replace(PART, extents=())
