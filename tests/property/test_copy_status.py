"""RECEIVE COPY replies: round trips and total decoding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.copy_status import (
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

BYTE = st.integers(0, 0xFF)
SHORT = st.integers(0, 0xFFFF)
WORD = st.integers(0, 0xFFFF_FFFF)
UNITS = st.sampled_from(TransferCountUnits)

PARAMETERS = st.builds(
    OperatingParameters,
    snlid=st.booleans(),
    maximum_cscd_descriptor_count=SHORT,
    maximum_segment_descriptor_count=SHORT,
    maximum_descriptor_list_length=WORD,
    maximum_segment_length=WORD,
    maximum_inline_data_length=WORD,
    held_data_limit=WORD,
    maximum_stream_device_transfer_size=WORD,
    total_concurrent_copies=SHORT,
    maximum_concurrent_copies=BYTE,
    data_segment_granularity=BYTE,
    inline_data_granularity=BYTE,
    held_data_granularity=BYTE,
    implemented_descriptor_list=st.sets(BYTE, max_size=255).map(lambda s: tuple(sorted(s))),
)
STATUS1 = st.builds(
    StatusLid1,
    copy_command_status=st.sampled_from(CopyCommandStatus),
    segments_processed=SHORT,
    transfer_count=WORD,
    transfer_count_units=UNITS,
    hdd=st.booleans(),
)
STATUS4 = st.builds(
    StatusLid4,
    copy_operation_status=st.sampled_from(CopyOperationStatus),
    segments_processed=SHORT,
    transfer_count=st.integers(0, (1 << 64) - 1),
    transfer_count_units=UNITS,
    response_to_service_action=st.integers(0, 31),
    hdd=st.booleans(),
    operation_counter=SHORT,
    estimated_status_update_delay=WORD,
    extended_copy_completion_status=BYTE,
    sense_data=st.binary(max_size=252),
)
FAILURE = st.builds(
    FailureDetails, extended_copy_command_status=BYTE, sense_data=st.binary(max_size=300)
)
REPLIES = st.one_of(PARAMETERS, STATUS1, STATUS4, FAILURE)
TYPES = (OperatingParameters, StatusLid1, StatusLid4, FailureDetails)


@given(REPLIES, st.binary(max_size=4))
def test_replies_round_trip_whatever_follows_them(
    reply: OperatingParameters | StatusLid1 | StatusLid4 | FailureDetails, behind: bytes
) -> None:
    encoded = reply.encode()
    assert int.from_bytes(encoded[:4], "big") == len(encoded) - 4
    assert type(reply).decode(encoded + behind) == reply
    assert reply.fields()["available_data"] == len(encoded) - 4


@given(REPLIES, st.data())
def test_damaged_replies_are_a_reply_or_a_named_error(
    reply: OperatingParameters | StatusLid1 | StatusLid4 | FailureDetails, data: st.DataObject
) -> None:
    damaged = bytearray(reply.encode())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        decoded = type(reply).decode(bytes(damaged))
    except CopyStatusError:
        return
    assert type(reply).decode(decoded.encode()) == decoded


@given(st.sampled_from(TYPES), st.binary(max_size=120), st.booleans())
def test_any_bytes_are_a_reply_or_a_named_error(
    kind: type[OperatingParameters | StatusLid1 | StatusLid4 | FailureDetails],
    data: bytes,
    is_length_right: bool,
) -> None:
    if is_length_right:
        data = len(data).to_bytes(4, "big") + data
    try:
        decoded = kind.decode(data)
    except CopyStatusError:
        return
    assert kind.decode(decoded.encode()) == decoded


@given(st.integers(0, (1 << 62) - 1), st.sampled_from([32, 64]))
def test_a_transfer_count_is_rounded_down_by_less_than_a_unit(byte_count: int, bits: int) -> None:
    units, count = transfer_count_of(byte_count, bits=bits)
    assert count < 1 << bits
    counted = units.bytes_of(count)
    assert counted is not None
    assert 0 <= byte_count - counted < 1 << 10 * units
    if units:
        finer = TransferCountUnits(units - 1)
        assert byte_count >> 10 * finer >= 1 << bits
