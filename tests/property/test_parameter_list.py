"""Parameter lists: round trips of everything that can be made, and a named error for everything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.copy_status import MOVER_PARAMETERS, WIDEST_PARAMETERS, OperatingParameters
from backplane.scsi.cscd import BLOCK_DEVICE_TYPES, IdentificationCscd, PeripheralDeviceType
from backplane.scsi.parameter_list import (
    Form,
    ListIdUsage,
    ParameterList,
    ParameterListError,
    decode_parameter_list,
)
from backplane.scsi.segment import SEGMENT_TYPES, EmbeddedToStream, Segment, decode_segment

LIMITS = st.sampled_from([MOVER_PARAMETERS, WIDEST_PARAMETERS])

REFUSALS = {
    (0x1A, 0x00),
    (0x24, 0x00),
    (0x26, 0x00),
    (0x26, 0x06),
    (0x26, 0x07),
    (0x26, 0x08),
    (0x26, 0x09),
}
"""Additional sense of everything that the reference allows before the first segment is processed."""


@st.composite
def cscds(draw: st.DrawFn) -> IdentificationCscd:
    """Any Identification descriptor."""
    device_type = draw(st.integers(0, 31))
    values: dict[str, Any] = {
        "peripheral_device_type": device_type,
        "designator": draw(st.binary(max_size=20)),
        "code_set": draw(st.integers(0, 15)),
        "association": draw(st.integers(0, 3)),
        "designator_type": draw(st.integers(0, 15)),
        "relative_initiator_port_identifier": draw(st.integers(0, 0xFFFF)),
        "lu_id_type": draw(st.integers(0, 3)),
        "pad": draw(st.booleans()),
    }
    if device_type == PeripheralDeviceType.STREAM and draw(st.booleans()):
        values["fixed"] = True
        values["stream_block_length"] = draw(st.integers(1, 0xFF_FFFF))
    if device_type in BLOCK_DEVICE_TYPES:
        values["disk_block_length"] = draw(st.integers(0, 0xFF_FFFF))
    return IdentificationCscd(**values)


@st.composite
def segments(draw: st.DrawFn, *, can_hold: bool = True) -> Segment:
    """Any segment of any type, each field over its whole range."""
    cls = draw(st.sampled_from(SEGMENT_TYPES))
    values: dict[str, Any] = {}
    for field in cls.LAYOUT:
        low = -(1 << field.bits - 1) if field.is_signed else 0
        number = st.integers(low, low + (1 << field.bits) - 1)
        values[field.name] = draw(st.booleans() if field.is_flag else number)
    if "inline_data_offset" in values:
        values["inline_data_offset"] &= ~3
    if cls is EmbeddedToStream:
        del values["embedded_data_number_of_bytes"]
        values["embedded_data"] = draw(st.binary(max_size=40))
    if can_hold and cls.HOLD_CODE is not None:
        values["hold"] = draw(st.booleans())
    return cls(**values)


@st.composite
def parameter_lists(draw: st.DrawFn) -> ParameterList:
    """Any list of either form."""
    form = draw(st.sampled_from(Form))
    usage = draw(st.sampled_from(ListIdUsage))
    is_disabled = usage is ListIdUsage.DISABLE
    immed = form is Form.LID4 and not is_disabled and draw(st.booleans())
    id_max = 0xFF if form is Form.LID1 else 0xFFFF_FFFF
    return ParameterList(
        form=form,
        list_identifier=0 if is_disabled else draw(st.integers(0, id_max)),
        list_id_usage=usage,
        priority=draw(st.integers(0, 7)),
        str_=draw(st.booleans()),
        immed=immed,
        g_sense=form is Form.LID4 and not immed and draw(st.booleans()),
        cscds=tuple(draw(st.lists(cscds(), max_size=4))),
        segments=tuple(draw(st.lists(segments(can_hold=not is_disabled), max_size=6))),
        inline_data=draw(st.binary(max_size=40)),
    )


@given(segments())
def test_segments_round_trip(segment: Segment) -> None:
    encoded = segment.encode()
    assert len(encoded) == segment.encoded_bytes
    assert len(encoded) % 4 == 0
    assert decode_segment(encoded) == segment


@given(parameter_lists())
def test_lists_round_trip(parameters: ParameterList) -> None:
    encoded = parameters.encode()
    decoded = decode_parameter_list(encoded, limits=WIDEST_PARAMETERS, form=parameters.form)
    assert decoded == parameters
    for index, segment in enumerate(parameters.segments):
        offset = parameters.segment_offset(index)
        assert encoded[offset : offset + segment.encoded_bytes] == segment.encode()


def decodes_or_is_refused(data: bytes, limits: OperatingParameters, form: Form) -> None:
    """The whole promise of the decoder."""
    try:
        decoded = decode_parameter_list(data, limits=limits, form=form)
    except ParameterListError as error:
        sense = error.sense_data
    else:
        sense = None
    if sense is not None:
        assert sense.key == 0x05
        assert (sense.asc, sense.ascq) in REFUSALS
        assert sense.information is None
        assert sense.field_pointer is None or sense.field_pointer.field < len(data)
        return
    if decoded is None:
        assert not data
        return
    again = decode_parameter_list(decoded.encode(), limits=limits, form=form)
    assert again == decoded
    assert len(decoded.encode()) <= len(data)


@given(st.binary(max_size=200), LIMITS, st.sampled_from(Form))
def test_random_bytes_are_a_list_or_a_named_error(
    data: bytes, limits: OperatingParameters, form: Form
) -> None:
    decodes_or_is_refused(data, limits, form)


@given(
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
    st.lists(
        st.tuples(st.integers(0, 0x20), st.integers(0, 36), st.binary(min_size=36, max_size=36)),
        max_size=4,
    ),
    st.sampled_from(ListIdUsage),
    LIMITS,
)
def test_random_descriptors_in_a_sound_frame_are_a_list_or_a_named_error(
    raw_cscds: list[bytes],
    raw_segments: list[tuple[int, int, bytes]],
    usage: ListIdUsage,
    limits: OperatingParameters,
) -> None:
    cscd_part = b"".join(b"\xe4" + raw[1:] for raw in raw_cscds)
    segment_part = b"".join(
        bytes([code, 0, 0, length]) + content[:length] for code, length, content in raw_segments
    )
    header = bytes([0, usage << 3]) + len(cscd_part).to_bytes(2, "big") + bytes(4)
    header += len(segment_part).to_bytes(4, "big") + bytes(4)
    decodes_or_is_refused(header + cscd_part + segment_part, limits, Form.LID1)


@given(parameter_lists(), st.data(), LIMITS)
def test_a_list_with_flipped_bits_is_a_list_or_a_named_error(
    parameters: ParameterList, data: st.DataObject, limits: OperatingParameters
) -> None:
    damaged = bytearray(parameters.encode())
    for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    decodes_or_is_refused(bytes(damaged), limits, parameters.form)


@given(parameter_lists(), st.data())
def test_a_list_that_is_cut_short_is_1ah_00h(
    parameters: ParameterList, data: st.DataObject
) -> None:
    encoded = parameters.encode()
    cut = encoded[: data.draw(st.integers(1, len(encoded) - 1))]
    with pytest.raises(ParameterListError) as caught:
        decode_parameter_list(cut, limits=WIDEST_PARAMETERS, form=parameters.form)
    assert caught.value.sense == (0x05, 0x1A, 0x00)


@given(parameter_lists())
def test_the_other_form_is_a_list_or_a_named_error(parameters: ParameterList) -> None:
    other = Form.LID4 if parameters.form is Form.LID1 else Form.LID1
    decodes_or_is_refused(parameters.encode(), WIDEST_PARAMETERS, other)
