"""Metadata in answers of bounded size, attributes of a cartridge's memory, what is known before an erase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backplane.errors import MediumError, NotFoundError
from backplane.scsi.attribute import AttributeId, decode_attributes, decode_coherency
from backplane.tape_format import PartHeader, PartTrailer, decode_metadata, decode_record
from backplane.testing.tape_content import (
    CARTRIDGE,
    Filemark,
    Object,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node import tape_media
from storage_node.core import tape_sense
from storage_node.core.tape_alert import Health
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.library import CartridgeFacts, CartridgeStatus, TapeLibrary
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import find_last_trailer
from storage_node.tape_media import (
    METADATA_ANSWER_BYTES_MAX,
    after_load,
    attributes_of,
    cartridge_state,
    erase_facts,
    erased_info,
    informed,
    is_out_of_space,
    metadata_records,
)

TAG = "TAPE01L8"
FUTURE = "2027-01-11T10:43:48Z"


@pytest.fixture
def library(tmp_path: Path) -> Iterator[TapeLibrary]:
    with TapeLibrary(tmp_path / "library") as library:
        library.add(TAG, capacity_bytes=64 << 20, created="2026-01-11T10:43:48Z")
        library.load(TAG)
        library.drives[0].test_unit_ready()
        yield library


@pytest.fixture
def drive(library: TapeLibrary) -> VirtualDrive:
    return library.drives[0]


def write_parts(drive: VirtualDrive, *parts: Sequence[Object]) -> None:
    write_objects(drive, [*label_objects(volume_header()), *(o for part in parts for o in part)])


def unpacked(packed: bytes) -> list[bytes]:
    records = []
    while packed:
        size = int.from_bytes(packed[:4], "big")
        records.append(packed[4 : 4 + size])
        packed = packed[4 + size :]
    return records


# --- metadata ------------------------------------------------------------------------------------


def test_headers_and_trailers_are_answered_record_by_record(drive: VirtualDrive) -> None:
    objects, trailer = part_objects([b"x" * 512] * 3, record_bytes_max=300)
    write_parts(drive, objects)
    position = drive.read_position().position
    for start, kind in ((4, PartHeader), (trailer.trailer_object, PartTrailer)):
        packed, following = metadata_records(drive.side_view(), start)
        records = unpacked(packed)
        assert following == start + len(records)
        assert len(records) > 2
        assert isinstance(decode_metadata([decode_record(r) for r in records]), kind)
    assert drive.read_position().position == position


def test_what_is_no_metadata_ends_the_answer(drive: VirtualDrive) -> None:
    objects, trailer = part_objects([b"x" * 512])
    write_parts(drive, objects)
    end = drive.read_position().position
    assert metadata_records(drive.side_view(), 0) == (b"", 0)  # VOL1
    assert metadata_records(drive.side_view(), 3) == (b"", 3)  # filemark
    assert metadata_records(drive.side_view(), trailer.data_object) == (b"", trailer.data_object)
    assert metadata_records(drive.side_view(), end) == (b"", end)
    records, following = metadata_records(drive.side_view(), 1)  # both volume headers
    assert (len(unpacked(records)), following) == (2, 3)
    for start in (-1, end + 1):
        with pytest.raises(NotFoundError):
            metadata_records(drive.side_view(), start)


def test_data_longer_than_any_metadata_is_none_even_if_it_looks_like_it(
    drive: VirtualDrive,
) -> None:
    header = part_objects([b"x"])[0][0]
    assert isinstance(header, bytes)
    write_parts(drive, [header.ljust(1 << 20, b"\0")])
    assert metadata_records(drive.side_view(), 4) == (b"", 4)


def test_an_answer_is_never_longer_than_a_message_and_the_next_goes_on(
    drive: VirtualDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, trailer = part_objects([b"x" * 512] * 20, record_bytes_max=300)
    write_parts(drive, objects)
    monkeypatch.setattr(tape_media, "METADATA_ANSWER_BYTES_MAX", 1000)
    start, records = trailer.trailer_object, []
    while True:
        packed, following = metadata_records(drive.side_view(), start)
        assert len(packed) <= 1000
        if following == start:
            break
        records += unpacked(packed)
        start = following
    content = decode_metadata([decode_record(record) for record in records])
    assert content == trailer


def test_the_largest_records_fit_an_answer() -> None:
    assert METADATA_ANSWER_BYTES_MAX >= 3 * ((256 << 10) + 4)


def test_damaged_metadata_are_a_medium_error(library: TapeLibrary, drive: VirtualDrive) -> None:
    objects, _ = part_objects([b"x" * 512])
    write_parts(drive, objects)
    drive.flush()
    path = library.folder / TAG / "data"
    content = bytearray(path.read_bytes())
    content[content.index(b'"previous_trailer"')] ^= 1
    path.write_bytes(content)
    with pytest.raises(MediumError, match="object 4"):
        metadata_records(drive.side_view(), 4)


def test_what_stands_before_a_damaged_record_is_answered(
    library: TapeLibrary, drive: VirtualDrive
) -> None:
    objects, trailer = part_objects([b"x" * 512] * 20, record_bytes_max=300)
    write_parts(drive, objects)
    drive.flush()
    path = library.folder / TAG / "data"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"SDVMETA") + 70] ^= 1
    path.write_bytes(content)
    packed, damaged = metadata_records(drive.side_view(), trailer.trailer_object)
    assert len(unpacked(packed)) == damaged - trailer.trailer_object > 1
    with pytest.raises(MediumError, match=f"object {damaged}"):
        metadata_records(drive.side_view(), damaged)


# --- before an erase -----------------------------------------------------------------------------


def known(drive: VirtualDrive) -> tuple[tuple[str, ...], str]:
    assert drive.cartridge is not None
    facts = erase_facts(drive.cartridge, drive.side_view())
    return tuple(filter(None, facts.retain_until)), facts.unknown


def test_a_blank_and_a_labelled_cartridge_retain_nothing(drive: VirtualDrive) -> None:
    assert known(drive) == ((), "")
    write_objects(drive, label_objects(volume_header())[:2])
    assert known(drive) == ((), "")
    write_objects(drive, label_objects(volume_header())[2:])
    assert known(drive) == ((), "")


def test_each_part_is_asked(drive: VirtualDrive) -> None:
    one, first = part_objects([b"x"], retain_until=FUTURE)
    two, _ = part_objects([b"y"], first_object=4 + len(one), previous=first)
    write_parts(drive, one, two)
    assert known(drive) == ((FUTURE,), "")


def test_more_parts_than_are_read_take_force(
    drive: VirtualDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, first = part_objects([b"x"], retain_until=FUTURE)
    two, _ = part_objects([b"y"], first_object=4 + len(one), previous=first)
    write_parts(drive, one, two)
    monkeypatch.setattr(tape_media, "PARTS_READ_MAX", 1)
    assert known(drive) == ((FUTURE,), "2 parts are more than are read")


def test_what_is_not_known_is_said(drive: VirtualDrive) -> None:
    write_objects(drive, [b"somebody's", Filemark.IMMEDIATE])
    assert "unknown" in known(drive)[1]


def test_a_label_with_another_barcode_takes_force(drive: VirtualDrive) -> None:
    write_objects(drive, label_objects(volume_header(tag="TAPE02L8")))
    assert known(drive) == ((), "the label says barcode TAPE02L8")


# --- attributes ----------------------------------------------------------------------------------


def test_attributes_say_what_the_cartridge_knows_of_itself(
    library: TapeLibrary, drive: VirtualDrive
) -> None:
    objects, _ = part_objects([b"x" * 512], pool="weekly")
    write_parts(drive, objects)
    facts = library.facts(TAG)
    found = decode_attributes(attributes_of(library.info(TAG), facts, alerts=1 << 20))
    assert found[AttributeId.MAXIMUM_CAPACITY].number == 64
    assert found[AttributeId.REMAINING_CAPACITY].number == 63
    assert found[AttributeId.TAPE_ALERT_FLAGS].number == 1 << 20
    assert found[AttributeId.LOAD_COUNT].number == 1
    assert found[AttributeId.BYTES_WRITTEN_IN_LIFE].number == 0
    assert found[AttributeId.VOLUME_CHANGE_REFERENCE].number == 1
    assert found[AttributeId.SERIAL_NUMBER].text == library.info(TAG).serial
    assert found[AttributeId.BARCODE].text == TAG
    assert found[AttributeId.MEDIA_POOL].text == ""
    assert AttributeId.COHERENCY not in found


def test_bytes_and_errors_of_a_load_are_added_to_those_of_the_life() -> None:
    health = Health()
    health.count(None, written=5 << 20, read=3 << 20)
    health.count(tape_sense.READ_ERROR)
    info = new_cartridge_info(serial="0" * 32, tag=TAG, created="", capacity_bytes=1 << 30)
    once = after_load(info, health)
    twice = after_load(once, health)
    assert after_load(twice, Health()).read_errors == 2
    facts = CartridgeFacts(tag=TAG, status=CartridgeStatus.WRITABLE)
    found = decode_attributes(attributes_of(twice, facts, alerts=0))
    life = (AttributeId.BYTES_WRITTEN_IN_LIFE, AttributeId.BYTES_READ_IN_LIFE)
    last = (AttributeId.BYTES_WRITTEN_IN_LAST_LOAD, AttributeId.BYTES_READ_IN_LAST_LOAD)
    assert [found[each].number for each in (*life, *last)] == [10, 6, 5, 3]


def test_coherency_tells_whether_something_was_written_since_the_last_trailer(
    library: TapeLibrary, drive: VirtualDrive
) -> None:
    objects, trailer = part_objects([b"x" * 512], pool="weekly", retain_until=FUTURE)
    write_parts(drive, objects)
    info = informed(library.info(TAG), find_last_trailer(drive.side_view(), volume_header()))
    library.save_info(info)
    assert info.retain_until == FUTURE
    assert informed(info, find_last_trailer(drive.side_view(), volume_header())) == info

    def read() -> tuple[int, int]:
        replied = attributes_of(library.info(TAG), library.facts(TAG), alerts=0)
        found = decode_attributes(replied)
        assert found[AttributeId.MEDIA_POOL].text == "weekly"
        coherency = decode_coherency(found[AttributeId.COHERENCY])
        assert coherency is not None
        assert (coherency.sequence, coherency.volume) == (1, CARTRIDGE)
        assert coherency.object_number == trailer.trailer_object
        reference = found[AttributeId.VOLUME_CHANGE_REFERENCE].number
        return reference, coherency.change_reference

    assert read() == (1, 1)
    library.unload()
    library.load(TAG)
    drive.test_unit_ready()
    assert read() == (1, 1)
    drive.space(3)
    write_objects(drive, [b"an orphan"])
    assert read() == (2, 1)


def test_nothing_of_what_was_on_it_is_left_after_an_erase(library: TapeLibrary) -> None:
    info = library.info(TAG)
    used = replace(info, retain_until=FUTURE, pool="p", coherent_reference=1, coherent_sequence=1)
    assert erased_info(replace(used, coherent_object=9)) == info


@pytest.mark.parametrize(
    ("used", "free", "is_out"),
    [
        (0, 100, True),  # as much as the reserves: the next record warns
        (0, 101, False),
        (0, 0, True),
        (899, 0, True),
        (900, 0, False),  # the cartridge itself warns there
        (950, 10, False),
    ],
)
def test_a_cartridge_is_out_of_space_if_the_disk_warns_before_it_does(
    used: int, free: int, is_out: bool
) -> None:
    facts = CartridgeFacts(
        tag=TAG,
        status=CartridgeStatus.WRITABLE,
        capacity_bytes=1000,
        used_bytes=used,
        warning_bytes=100,
    )
    assert is_out_of_space(facts, free) is is_out
    assert cartridge_state(facts, {}, free_bytes=free).is_out_of_space is is_out
    assert not is_out_of_space(CartridgeFacts(tag="CLN001CU", status=facts.status), 0)
