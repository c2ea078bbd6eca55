"""RECEIVE COPY replies: byte tables of extended-copy.md section 7, by hand."""

from __future__ import annotations

import pytest

from backplane.errors import LocalProtocolError
from backplane.scsi.copy_status import (
    DISK_PARAMETERS,
    MOVER_PARAMETERS,
    UPDATE_DELAY_FINISHED,
    WIDEST_PARAMETERS,
    CopyCommandStatus,
    CopyOperationStatus,
    CopyStatusError,
    FailureDetails,
    OperatingParameters,
    StatusLid1,
    StatusLid4,
    TransferCountUnits,
    transfer_count_of,
)


def test_7_1_operating_parameters_by_hand() -> None:
    parameters = OperatingParameters(
        snlid=True,
        maximum_cscd_descriptor_count=0x0102,
        maximum_segment_descriptor_count=0x0304,
        maximum_descriptor_list_length=0x05060708,
        maximum_segment_length=0x11121314,
        maximum_inline_data_length=0x15161718,
        held_data_limit=0x21222324,
        maximum_stream_device_transfer_size=0x25262728,
        total_concurrent_copies=0x3132,
        maximum_concurrent_copies=0x33,
        data_segment_granularity=0x34,
        inline_data_granularity=0x35,
        held_data_granularity=0x36,
        implemented_descriptor_list=(0x00, 0x02, 0xE4),
    )
    expected = bytes.fromhex(
        "0000002b 01 000000 0102 0304 05060708 11121314 15161718 21222324 25262728 0000 3132 33 34 35 36"
        "000000 03 0002e4"
    )
    assert parameters.encode() == expected
    assert OperatingParameters.decode(expected) == parameters
    assert OperatingParameters.decode(expected + b"more") == parameters


def test_7_1_our_mover_advertises_what_was_decided() -> None:
    implemented = (*range(0x0B), 0x10, 0x11, 0x12, 0x13, 0xE4)
    assert MOVER_PARAMETERS.implemented_descriptor_list == implemented
    assert MOVER_PARAMETERS.maximum_inline_data_length == 524_288
    assert MOVER_PARAMETERS.maximum_stream_device_transfer_size == 16_777_215
    assert MOVER_PARAMETERS.data_segment_granularity == 9
    assert DISK_PARAMETERS.implemented_descriptor_list == tuple(c for c in implemented if c != 3)


@pytest.mark.parametrize("parameters", [MOVER_PARAMETERS, DISK_PARAMETERS, WIDEST_PARAMETERS])
def test_7_1_libiscsi_wants_40_bytes_available_and_a_total(parameters: OperatingParameters) -> None:
    encoded = parameters.encode()
    assert int.from_bytes(encoded[:4], "big") == len(encoded) - 4 >= 40
    assert parameters.total_concurrent_copies >= parameters.maximum_concurrent_copies
    assert OperatingParameters.decode(encoded) == parameters


@pytest.mark.parametrize(
    "change",
    [
        {"implemented_descriptor_list": (2, 1)},
        {"implemented_descriptor_list": (1, 1)},
        {"implemented_descriptor_list": (256,)},
        {"implemented_descriptor_list": tuple(range(256))},
        {"maximum_cscd_descriptor_count": 65536},
    ],
)
def test_7_1_parameters_that_cannot_be_encoded_cannot_be_made(change: dict[str, object]) -> None:
    values = {
        "snlid": True,
        "maximum_cscd_descriptor_count": 1,
        "maximum_segment_descriptor_count": 1,
        "maximum_descriptor_list_length": 1,
        "maximum_inline_data_length": 0,
        "implemented_descriptor_list": (),
    }
    with pytest.raises(LocalProtocolError):
        OperatingParameters(**(values | change))  # type: ignore[arg-type]


def test_7_3_status_lid1_by_hand() -> None:
    status = StatusLid1(
        hdd=True,
        copy_command_status=CopyCommandStatus.COMPLETED_WITH_ERRORS,
        segments_processed=0x0102,
        transfer_count_units=TransferCountUnits.DESTINATION_BLOCKS,
        transfer_count=0x11121314,
    )
    expected = bytes.fromhex("00000008 82 0102 f1 11121314")
    assert status.encode() == expected
    assert StatusLid1.decode(expected) == status
    assert "completed with errors" in status.describe()
    assert status.fields()["available_data"] == 8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(3),
        bytes(4),
        bytes(12),
        bytes.fromhex("00000008 00 0000 00 000000"),
        bytes.fromhex("00000008 03 0000 00 00000000"),
        bytes.fromhex("00000008 00 0000 07 00000000"),
        bytes.fromhex("00000009 00 0000 00 00000000"),
    ],
)
def test_7_3_what_is_no_status_is_a_named_error(data: bytes) -> None:
    with pytest.raises(CopyStatusError):
        StatusLid1.decode(data)


def test_7_5_status_lid4_by_hand() -> None:
    status = StatusLid4(
        response_to_service_action=0x01,
        copy_operation_status=CopyOperationStatus.TERMINATED,
        operation_counter=0x0102,
        estimated_status_update_delay=UPDATE_DELAY_FINISHED,
        extended_copy_completion_status=0x40,
        transfer_count_units=TransferCountUnits.MEBIBYTES,
        transfer_count=0x1112131415161718,
        segments_processed=0x2122,
        sense_data=bytes.fromhex("7000050000"),
    )
    expected = bytes.fromhex(
        "00000024 01 60 0102 fffffffe 40 08 05 02 1112131415161718 2122 000000000000 7000050000 000000"
    )
    assert status.encode() == expected
    assert StatusLid4.decode(expected) == status
    assert status.fields()["length_of_the_sense_data_field"] == 8
    assert "terminated" in status.describe()


@pytest.mark.parametrize(("at", "value"), [(13, 4), (14, 9), (5, 0x05), (15, 0x08), (3, 0x1B)])
def test_7_5_lengths_and_codes_that_do_not_fit_are_a_named_error(at: int, value: int) -> None:
    status = StatusLid4(
        copy_operation_status=CopyOperationStatus.COMPLETED,
        segments_processed=1,
        transfer_count=1,
        sense_data=bytes(8),
    )
    data = bytearray(status.encode())
    data[at] = value
    with pytest.raises(CopyStatusError):
        StatusLid4.decode(bytes(data))


def test_7_4_failure_details_by_hand() -> None:
    details = FailureDetails(extended_copy_command_status=2, sense_data=b"\x70\x00\x0a")
    expected = bytes.fromhex("0000003b") + bytes(52) + bytes.fromhex("02 00 0003 70000a")
    assert details.encode() == expected
    assert FailureDetails.decode(expected) == details
    assert "02h" in details.describe()


def test_7_4_nothing_held_is_available_data_0() -> None:
    nothing = FailureDetails(extended_copy_command_status=None)
    assert nothing.encode() == bytes(4)
    assert FailureDetails.decode(bytes(4)) == nothing
    assert nothing.fields() == {"available_data": 0}
    assert "no failure details" in nothing.describe()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes.fromhex("00000038"),
        bytes.fromhex("00000037") + bytes(56),
        bytes.fromhex("00000038") + bytes(54) + b"\x00\x01",
    ],
)
def test_7_4_details_that_are_cut_short_are_a_named_error(data: bytes) -> None:
    with pytest.raises(CopyStatusError):
        FailureDetails.decode(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"extended_copy_command_status": None, "sense_data": b"x"},
        {"extended_copy_command_status": 256},
        {"extended_copy_command_status": 2, "sense_data": bytes(65536)},
    ],
)
def test_7_4_details_that_cannot_be_encoded_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        FailureDetails(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("byte_count", "expected"),
    [
        (0, (TransferCountUnits.BYTES, 0)),
        ((1 << 32) - 1, (TransferCountUnits.BYTES, (1 << 32) - 1)),
        (1 << 32, (TransferCountUnits.KIBIBYTES, 1 << 22)),
        ((1 << 42) + 5, (TransferCountUnits.MEBIBYTES, 1 << 22)),
    ],
)
def test_7_3_a_transfer_count_takes_the_finest_unit(
    byte_count: int, expected: tuple[TransferCountUnits, int]
) -> None:
    units, count = transfer_count_of(byte_count, bits=32)
    assert (units, count) == expected
    counted = units.bytes_of(count)
    assert counted is not None
    assert 0 <= byte_count - counted < 1 << 10 * units


def test_7_3_destination_blocks_have_no_bytes_without_the_destination() -> None:
    assert TransferCountUnits.DESTINATION_BLOCKS.bytes_of(7) is None
