"""Attributes of a cartridge's memory: bytes of READ ATTRIBUTE, and what does not fit them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from backplane.scsi.attribute import (
    Attribute,
    AttributeFormat,
    AttributeId,
    Coherency,
    ascii_text,
    binary,
    decode_attributes,
    decode_coherency,
    encode_attributes,
    long_text,
)

COHERENCY = Coherency(
    change_reference=7, sequence=3, object_number=120, volume="00112233445566778899aabbccddeeff"
)


def test_a_reply_is_as_the_reference_says() -> None:
    reply = encode_attributes(
        [
            ascii_text(AttributeId.BARCODE, "LTO001L8", length=32),
            binary(AttributeId.VOLUME_CHANGE_REFERENCE, 5, length=4),
        ]
    )
    device = bytes.fromhex("0009 80 0004 00000005")
    host = bytes.fromhex("0806 01 0020") + b"LTO001L8".ljust(32)
    assert reply == (len(device) + len(host)).to_bytes(4, "big") + device + host


def test_attributes_come_back() -> None:
    made = [
        binary(AttributeId.LOAD_COUNT, 12),
        ascii_text(AttributeId.SERIAL_NUMBER, "ab" * 20, length=32),
        long_text(AttributeId.MEDIA_POOL, "wöchentlich", length=160),
        COHERENCY.encode(),
    ]
    found = decode_attributes(encode_attributes(made))
    assert found == {attribute.id: attribute for attribute in made}
    assert found[AttributeId.LOAD_COUNT].number == 12
    assert found[AttributeId.SERIAL_NUMBER].text == ("ab" * 20)[:32]
    assert found[AttributeId.MEDIA_POOL].text == "wöchentlich"
    assert found[AttributeId.MEDIA_POOL].format is AttributeFormat.TEXT


def test_text_is_cut_between_characters() -> None:
    assert long_text(AttributeId.MEDIA_POOL, "ö" * 100, length=5).value == "öö".encode() + b"\0"


def test_coherency_is_as_the_reference_says_and_comes_back() -> None:
    attribute = COHERENCY.encode()
    assert len(attribute.value) == 69
    assert attribute.value[0] == 8
    assert attribute.value[25:31] == bytes.fromhex("002a") + b"SDV\0"
    assert attribute.value[31:67] == b"00112233-4455-6677-8899-aabbccddeeff"
    assert decode_coherency(attribute) == COHERENCY


@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytes(69),
        COHERENCY.encode().value + b"\0",
        COHERENCY.encode().value.replace(b"SDV\0", b"LTFS"),
        COHERENCY.encode().value.replace(b"0011", b"zzzz"),
        COHERENCY.encode().value.replace(b"0011", b"\xff\xff\xff\xff"),
    ],
)
def test_coherency_of_others_is_not_ours(value: bytes) -> None:
    attribute = Attribute(id=0x080C, format=AttributeFormat.BINARY, value=value)
    assert decode_coherency(attribute) is None


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        bytes(3),
        bytes.fromhex("00000001"),
        bytes.fromhex("00000004 00098000"),
        bytes.fromhex("00000006 0009800004 00"),
        bytes.fromhex("00000005 0009830000"),
        bytes.fromhex("0000000a 0009800000 0009800000"),
        encode_attributes([binary(n, 0) for n in range(257)]),
        encode_attributes([binary(0, 0, length=1025)]),
    ],
)
def test_replies_that_make_no_sense_are_refused(reply: bytes) -> None:
    with pytest.raises(UsageError):
        decode_attributes(reply)


@given(st.binary(max_size=100))
def test_no_bytes_do_harm(data: bytes) -> None:
    for reply in (data, len(data).to_bytes(4, "big") + data):
        with contextlib.suppress(UsageError):
            assert encode_attributes(list(decode_attributes(reply).values()))
