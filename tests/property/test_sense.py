"""Sense data: total decoding, and both formats against each other."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.sense import (
    SENSE_BYTES_MAX,
    FieldPointer,
    Forwarded,
    Sense,
    SenseError,
    SenseKey,
)

BYTE = st.integers(0, 255)


@st.composite
def senses(draw: st.DrawFn, *, depth: int = 1) -> Sense:
    """Any sense data that the fixed format can hold whole."""
    key = draw(st.sampled_from(SenseKey))
    is_copy = key is SenseKey.COPY_ABORTED
    is_ili = draw(st.booleans())
    low, high = (-(1 << 31), (1 << 31) - 1) if is_ili else (0, (1 << 32) - 1)
    values: dict[str, Any] = {
        "key": key,
        "asc": draw(BYTE),
        "ascq": draw(BYTE),
        "information": draw(st.none() | st.integers(low, high)),
        "filemark": draw(st.booleans()),
        "end_of_medium": draw(st.booleans()),
        "incorrect_length": is_ili,
        "deferred": draw(st.booleans()),
    }
    if key in (SenseKey.COPY_ABORTED, SenseKey.ILLEGAL_REQUEST):
        pointers = st.builds(
            FieldPointer,
            field=st.integers(0, 0xFFFF),
            bit=st.none() | st.integers(0, 7),
            in_command=st.booleans(),
            in_segment=st.booleans(),
        )
        values["field_pointer"] = draw(st.none() | pointers)
    if is_copy:
        values["segment"] = draw(st.integers(0, 0xFFFF))
        if depth:
            inner = senses(depth=depth - 1).map(Sense.encode_fixed) | st.just(b"")
            forwarded = st.none() | st.builds(Forwarded, BYTE, inner)
            values["source"] = draw(forwarded)
            values["destination"] = draw(forwarded)
    else:
        values["command_specific"] = draw(st.integers(0, 0xFFFF_FFFF))
    return Sense(**values)


@given(senses())
def test_sense_data_survive_the_fixed_format(sense: Sense) -> None:
    encoded = sense.encode_fixed()
    assert len(encoded) == 8 + encoded[7] <= SENSE_BYTES_MAX
    assert Sense.decode(encoded) == sense


@given(senses())
def test_sense_data_survive_the_descriptor_format(sense: Sense) -> None:
    encoded = sense.encode_descriptor()
    assert len(encoded) == 8 + encoded[7] <= SENSE_BYTES_MAX
    assert Sense.decode(encoded) == sense


@given(st.binary(max_size=300))
def test_any_bytes_are_sense_data_or_a_named_error(data: bytes) -> None:
    try:
        sense = Sense.decode(data)
    except SenseError:
        return
    assert sense.describe()
    assert sense.fields()


@given(st.sampled_from([0x70, 0x71, 0x72, 0x73, 0xF0, 0xF1]), st.binary(min_size=7, max_size=260))
def test_any_content_behind_a_response_code_is_sense_data(code: int, rest: bytes) -> None:
    """Nothing that a drive sends may stop the mover; what was understood is kept by our own encoder."""
    sense = Sense.decode(bytes([code]) + rest)
    assert sense.describe()
    again = Sense.decode(sense.encode_fixed())
    assert again.triple == sense.triple
    assert again.field_pointer == sense.field_pointer


@given(senses(), st.data())
def test_truncated_sense_data_are_sense_data_or_a_named_error(
    sense: Sense, data: st.DataObject
) -> None:
    encoded = data.draw(st.sampled_from([sense.encode_fixed(), sense.encode_descriptor()]))
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    try:
        assert Sense.decode(cut).key is sense.key
    except SenseError:
        assert len(cut) < 8


@given(st.binary(max_size=252), st.binary(max_size=252), BYTE, BYTE)
def test_forwarded_sense_data_of_any_length_keep_their_status(
    source: bytes, destination: bytes, status: int, other: int
) -> None:
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        segment=0,
        source=Forwarded(status, source),
        destination=Forwarded(other, destination),
    )
    for decoded in (Sense.decode(sense.encode_fixed()), Sense.decode(sense.encode_descriptor())):
        assert decoded.source is not None
        assert decoded.destination is not None
        assert (decoded.source.status, decoded.destination.status) == (status, other)
        assert source.startswith(decoded.source.sense_data)
        assert destination.startswith(decoded.destination.sense_data)
        if len(source) + len(destination) <= 200:
            assert decoded.source.sense_data == source
            assert decoded.destination.sense_data == destination
