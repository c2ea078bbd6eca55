"""Decoders of the tape format are total, and what was encoded comes back."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import VolumeError
from backplane.tape_format import (
    METADATA_RECORD_BYTES_MAX,
    PREFIX_BYTES,
    RecordType,
    decode_metadata,
    decode_record,
    decode_vol1,
    encode_records,
    encode_vol1,
    join_records,
)
from backplane.testing.tape_content import CARTRIDGE, part_objects
from storage_node.core.tape_index import (
    Entry,
    ObjectKind,
    decode_entry,
    encode_entry,
)

TAGS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=1, max_size=32)
WORDS24 = st.integers(0, (1 << 24) - 1)
WORDS32 = st.integers(0, 0xFFFFFFFF)
WORDS64 = st.integers(0, (1 << 64) - 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_one_error(data: bytes) -> None:
    for candidate in (data, b"SDVMETA\0" + data):
        try:
            decode_record(candidate)
        except VolumeError:
            continue


@given(st.binary(max_size=100))
def test_any_bytes_are_a_label_or_one_error(data: bytes) -> None:
    for candidate in (data, b"VOL1" + data[:76].ljust(76)):
        try:
            decode_vol1(candidate)
        except VolumeError:
            continue


@given(TAGS)
def test_every_barcode_makes_a_label(tag: str) -> None:
    assert decode_vol1(encode_vol1(tag)).identifier == tag[:6]


@given(
    st.binary(max_size=3000),
    st.integers(PREFIX_BYTES + 1, 1000),
    st.integers(0, 1 << 60),
    st.sampled_from(RecordType),
)
def test_payloads_survive_being_split(
    payload: bytes, size: int, first: int, kind: RecordType
) -> None:
    records = encode_records(
        kind, payload, volume_uuid=CARTRIDGE, first_object=first, record_bytes_max=size
    )
    assert all(len(record) <= size <= METADATA_RECORD_BYTES_MAX for record in records)
    assert join_records([decode_record(record) for record in records]) == payload


@given(st.data())
def test_any_text_is_a_trailer_or_one_error(data: st.DataObject) -> None:
    """Mutations of a valid text, with checksums that fit: what another program or an attacker may write."""
    objects, _ = part_objects([b"x" * 10])
    record = objects[4]
    assert isinstance(record, bytes)
    text = bytearray(decode_record(record).payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        count = data.draw(st.integers(0, 5))
        text[at : at + count] = data.draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from([b"[", b"{}", b"-1", b"1e9", b'"', b"9" * 30]),
            )
        )
    first = decode_record(record).object_number
    kind = data.draw(st.sampled_from(RecordType))
    records = encode_records(kind, bytes(text), volume_uuid=CARTRIDGE, first_object=first)
    with contextlib.suppress(VolumeError):
        decode_metadata([decode_record(raw) for raw in records])


@given(st.sampled_from(ObjectKind), WORDS24, WORDS64, WORDS32, WORDS32, WORDS32, WORDS64, WORDS32)
def test_entries_come_back_and_fit_no_other_place(
    kind: ObjectKind,
    length: int,
    offset: int,
    crc: int,
    file_number: int,
    generation: int,
    number: int,
    seed: int,
) -> None:
    entry = Entry(kind, length, offset, crc, file_number, generation)
    raw = encode_entry(entry, object_number=number, seed=seed)
    assert decode_entry(raw, object_number=number, seed=seed) == entry
    assert decode_entry(raw, object_number=number + 1, seed=seed) is None
    assert decode_entry(raw, object_number=number, seed=seed ^ 1) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_an_entry_or_none(data: bytes) -> None:
    assert decode_entry(data, object_number=1, seed=2) is None
