"""Command descriptor blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import LocalProtocolError
from backplane.scsi.cdb import Cdb, CdbError
from backplane.scsi.sense import FieldPointer


@pytest.mark.parametrize(
    ("cdb", "encoded"),
    [
        (
            Cdb(operation_code=0x83, service_action=0x1C, list_identifier=0x01020304),
            "831c 01020304 00000000 00000000 0000",
        ),
        (
            Cdb(operation_code=0x84, service_action=0, list_identifier=7, allocation_length=1024),
            "8400 07 000000 00000000 00000400 0000",
        ),
        (
            Cdb(operation_code=0x84, service_action=3, allocation_length=0x01020304, control=4),
            "8403 00000000 00000000 01020304 0004",
        ),
        (
            Cdb(operation_code=0x84, service_action=5, list_identifier=9, allocation_length=64),
            "8405 00000009 00000000 00000040 0000",
        ),
        (
            Cdb(
                operation_code=0x83,
                service_action=0x10,
                list_identifier=5,
                parameter_list_length=32,
                group_number=3,
            ),
            "8310 00000000 00000005 00000020 0300",
        ),
    ],
)
def test_fields_stand_where_the_standard_says(cdb: Cdb, encoded: str) -> None:
    assert cdb.encode() == bytes.fromhex(encoded)
    assert Cdb.decode(bytes.fromhex(encoded)) == cdb


def test_an_unknown_operation_code_is_20h_00h() -> None:
    with pytest.raises(CdbError) as caught:
        Cdb.decode(bytes([0x28, *bytes(15)]))
    assert caught.value.sense == (0x05, 0x20, 0x00)


def test_an_unknown_service_action_is_24h_00h_and_points_at_it() -> None:
    with pytest.raises(CdbError, match="service action 1Fh") as caught:
        Cdb.decode(bytes([0x83, 0x1F, *bytes(14)]))
    assert caught.value.sense == (0x05, 0x24, 0x00)
    pointer = caught.value.sense_data.field_pointer
    assert pointer == FieldPointer(field=1, bit=4, in_command=True)


@pytest.mark.parametrize("size", [0, 6, 15, 17])
def test_a_cdb_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(CdbError, match="16 expected"):
        Cdb.decode(b"\x83" * size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"operation_code": 0x83, "service_action": 0x02},
        {"operation_code": 0x83, "service_action": 0, "list_identifier": 1},
        {"operation_code": 0x84, "service_action": 0, "list_identifier": 256},
        {"operation_code": 0x84, "service_action": 3, "parameter_list_length": 1},
    ],
)
def test_a_command_that_does_not_exist_cannot_be_made(wrong: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        Cdb(**wrong)


@given(st.binary(min_size=16, max_size=16))
def test_any_16_bytes_are_a_command_or_a_named_error(data: bytes) -> None:
    try:
        cdb = Cdb.decode(data)
    except CdbError:
        return
    assert Cdb.decode(cdb.encode()) == cdb
