"""CSCD descriptors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import LocalProtocolError
from backplane.scsi.cscd import (
    COPY_MANAGER_UNIT,
    NULL_BLOCK_UNIT,
    IdentificationCscd,
    UnsupportedCscd,
    block_cscd,
    bytes_of_cscd_type,
    decode_cscd,
    describe_cscd_id,
    name_of_cscd_type,
    stream_cscd,
)
from backplane.scsi.designator import designator_of
from backplane.scsi.refusal import ParameterListError
from backplane.scsi.sense import FieldPointer

NAA8 = designator_of("00000000000000000000000000000001")
NAA16 = bytes.fromhex("60000000000000000e00000000010001")


@pytest.mark.parametrize("designator", [NAA8, NAA16], ids=["8 bytes", "16 bytes"])
def test_designators_of_both_lengths_go_through_a_descriptor(designator: bytes) -> None:
    for cscd in (block_cscd(designator, block_bytes=4096), stream_cscd(designator)):
        encoded = cscd.encode()
        assert len(encoded) == 32
        assert encoded[7] == len(designator)
        assert encoded[8 : 8 + len(designator)] == designator
        assert not any(encoded[8 + len(designator) : 28])
        assert decode_cscd(encoded) == cscd


def test_our_disk_and_our_tape_look_as_decided() -> None:
    disk = block_cscd(NAA8, block_bytes=512)
    tape = stream_cscd(NAA8)
    assert (disk.peripheral_device_type, disk.pad, disk.disk_block_length) == (0, False, 512)
    assert (tape.peripheral_device_type, tape.pad, tape.fixed) == (1, True, False)
    assert disk.encode()[28:] == bytes.fromhex("00 000200")
    assert tape.encode()[28:] == bytes.fromhex("04 000000")


def test_every_field_stands_where_table_4_3_says() -> None:
    cscd = IdentificationCscd(
        peripheral_device_type=0x1F,
        designator=b"\xaa\xbb",
        code_set=2,
        association=1,
        designator_type=8,
        relative_initiator_port_identifier=0x0102,
        lu_id_type=2,
        pad=True,
    )
    expected = "e4 9f 0102 02 18 00 02 aabb".replace(" ", "") + "00" * 18 + "04000000"
    assert cscd.encode().hex() == expected
    assert decode_cscd(cscd.encode()) == cscd


def test_reserved_and_obsolete_bits_are_ignored() -> None:
    plain = block_cscd(NAA8, block_bytes=512)
    noisy = bytearray(plain.encode())
    noisy[1] |= 0x20  # NUL, obsolete
    noisy[4] |= 0xF0
    noisy[5] |= 0xC0
    noisy[6] = 0xFF
    noisy[16:28] = b"\xff" * 12  # behind the designator
    noisy[28] |= 0xFB  # FIXED means nothing for a disk
    assert decode_cscd(bytes(noisy)) == plain


def test_spc_6_4_5_lu_id_type_is_ignored_for_identification_descriptors() -> None:
    """libiscsi's ValidTgtDescr sends LU ID TYPE 10b, which is reserved, and expects GOOD."""
    encoded = bytearray(block_cscd(NAA8, block_bytes=512).encode())
    encoded[1] |= 0x80
    decoded = decode_cscd(bytes(encoded))
    assert isinstance(decoded, IdentificationCscd)
    assert decoded.lu_id_type == 2


@pytest.mark.parametrize(
    ("flags", "length"), [(0x00, 512), (0x01, 0)], ids=["length without FIXED", "FIXED without"]
)
def test_spc_table_138_fixed_and_stream_block_length_must_match(flags: int, length: int) -> None:
    encoded = bytearray(stream_cscd(NAA8).encode())
    encoded[28] = flags
    encoded[29:32] = length.to_bytes(3, "big")
    with pytest.raises(ParameterListError, match="do not match") as caught:
        decode_cscd(bytes(encoded))
    assert caught.value.sense == (0x05, 0x26, 0x00)
    assert caught.value.sense_data.field_pointer == FieldPointer(field=29)


def test_a_designator_that_does_not_fit_is_refused() -> None:
    encoded = bytearray(block_cscd(NAA8, block_bytes=512).encode())
    encoded[7] = 21
    with pytest.raises(ParameterListError) as caught:
        decode_cscd(bytes(encoded))
    assert caught.value.sense == (0x05, 0x26, 0x00)
    assert caught.value.sense_data.field_pointer == FieldPointer(field=7)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0xE0, "Fibre Channel name"),
        (0xE1, "Fibre Channel N_Port_ID"),
        (0xE3, "parallel SCSI T_L"),
        (0xE5, "IPv4"),
        (0xE6, "Alias"),
        (0xE7, "RDMA"),
        (0xE8, "IEEE 1394"),
        (0xE9, "SAS"),
        (0xEC, "Multiple Device"),
        (0xFE, "ROD"),
        (0xFF, "extension"),
        (0xC0, "vendor specific"),
        (0xDF, "vendor specific"),
        (0xF0, "reserved"),
    ],
)
def test_other_types_are_parsed_by_name(code: int, name: str) -> None:
    raw = bytes([code, *range(31)])
    cscd = decode_cscd(raw)
    assert cscd == UnsupportedCscd(code, name, raw)
    assert cscd.encode() == raw
    assert name in cscd.describe()


@pytest.mark.parametrize("code", [0xEA, 0xEB])
def test_ip_descriptors_have_64_bytes(code: int) -> None:
    assert bytes_of_cscd_type(code) == 64
    with pytest.raises(ParameterListError):
        decode_cscd(bytes([code, *bytes(62)]))
    assert len(decode_cscd(bytes([code, *bytes(63)])).encode()) == 64


def test_a_segment_type_is_no_cscd_type() -> None:
    with pytest.raises(ParameterListError) as caught:
        decode_cscd(bytes(32))
    assert caught.value.sense == (0x05, 0x26, 0x07)
    assert name_of_cscd_type(0) == "a segment descriptor type"


@pytest.mark.parametrize(
    "wrong",
    [
        {"peripheral_device_type": 0, "designator": bytes(21)},
        {"peripheral_device_type": 32, "designator": b""},
        {"peripheral_device_type": 1, "designator": b"", "fixed": True},
        {"peripheral_device_type": 1, "designator": b"", "stream_block_length": 512},
        {"peripheral_device_type": 1, "designator": b"", "disk_block_length": 512},
        {"peripheral_device_type": 0, "designator": b"", "fixed": True},
        {"peripheral_device_type": 0, "designator": b"", "disk_block_length": 1 << 24},
    ],
)
def test_what_breaks_a_rule_cannot_be_made(wrong: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        IdentificationCscd(**wrong)  # type: ignore[arg-type]


def test_spc_table_138_transfer_length_counts_bytes_or_blocks() -> None:
    assert stream_cscd(NAA8).transfer_bytes(65536) == 65536
    fixed = stream_cscd(NAA8, fixed=True, stream_block_length=512)
    assert fixed.transfer_bytes(128) == 65536


@pytest.mark.parametrize(
    ("descriptor_id", "words"),
    [
        (0, "CSCD 0"),
        (0x7FF, "CSCD 2047"),
        (0x800, "reserved CSCD id 0800h"),
        (NULL_BLOCK_UNIT, "null block logical unit"),
        (COPY_MANAGER_UNIT, "logical unit of the copy manager"),
    ],
)
def test_ids_are_said_in_words(descriptor_id: int, words: str) -> None:
    assert describe_cscd_id(descriptor_id) == words


@given(st.binary(max_size=70))
def test_any_bytes_are_a_descriptor_or_a_named_error(data: bytes) -> None:
    try:
        cscd = decode_cscd(data)
    except ParameterListError:
        return
    assert decode_cscd(cscd.encode()) == cscd
    assert cscd.describe()


@given(st.binary(min_size=31, max_size=31))
def test_any_identification_descriptor_keeps_its_meaning(rest: bytes) -> None:
    try:
        cscd = decode_cscd(b"\xe4" + rest)
    except ParameterListError:
        return
    assert decode_cscd(cscd.encode()) == cscd
