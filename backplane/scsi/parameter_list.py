"""EXTENDED COPY parameter lists: one list is one work item (SPC-4 6.4.3 and 6.5).

Two forms.  LID1 is our work item (rule D1); LID4 differs in its header and in the numbering of CSCDs: a CSCD
descriptor ID names the entry at offset 16 + 32 * ID (SPC-4 table 148), and in LID4 the entry at offset 16 is the
end of the header.  So the first CSCD is ID 0 in LID1 and ID 1 in LID4; `first_cscd_id` says so, and descriptors
keep the IDs that they have on the wire.

`decode_parameter_list` is total - any bytes give a value or a `ParameterListError` - and checks in the order of
extended-copy 11.3, because conformance tests can tell:

    1. no list at all (PARAMETER LIST LENGTH = 0): nothing to do, no error
    2. header cut short                                      1Ah/00h
    3. CSCD + segment bytes > maximum; inline data > maximum; list cut short      1Ah/00h
    4. counts                                                26h/06h, 26h/08h
    5. types                                                 26h/07h, 26h/09h
    6. meaning: header, then CSCDs, then segments            26h/00h (IMMED conflicts 24h/00h)

The fixed part of a LID4 header decides where everything else stands, so it is checked right after 2.  Bytes after
the end of the list are not part of it.  What only the devices or the processing can tell (a CSCD ID without a
descriptor, inline data that end too early, LBAs beyond the end) is not checked here: those end a copy with COPY
ABORTED when its segment is processed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from backplane.errors import LocalProtocolError
from backplane.scsi.copy_status import OperatingParameters
from backplane.scsi.cscd import (
    CSCD_BYTES,
    IDENTIFICATION,
    IdentificationCscd,
    bytes_of_cscd_type,
    decode_identification,
    name_of_cscd_type,
)
from backplane.scsi.layout import Field, Layout, flag, offset_of, read_fields, whole, write_fields
from backplane.scsi.refusal import (
    INVALID_FIELD_IN_CDB,
    PARAMETER_LIST_LENGTH_ERROR,
    TOO_MANY_CSCDS,
    TOO_MANY_SEGMENTS,
    UNSUPPORTED_CSCD_TYPE,
    UNSUPPORTED_SEGMENT_TYPE,
    ParameterListError,
)
from backplane.scsi.segment import (
    HEADER_BYTES,
    SEGMENT_TYPE_CODES,
    Segment,
    decode_segment,
    name_of_segment_type,
)

__all__ = [
    "CSCD_COUNT_MAX",
    "Form",
    "ListIdUsage",
    "ParameterList",
    "ParameterListError",
    "decode_parameter_list",
    "first_cscd_id",
]

CSCD_COUNT_MAX: Final = 2047
"""CSCD DESCRIPTOR LIST LENGTH has 16 bits and counts bytes: at most 65504 = 2047 * 32."""

_PARAMETER_LIST_FORMAT: Final = 0x01
_HEADER_CSCD_BYTES: Final = 0x20
_HEADER_CSCD_TYPE: Final = 0xFF


class Form(StrEnum):
    """The two forms of the command."""

    LID1 = "lid1"
    LID4 = "lid4"

    @property
    def header_bytes(self) -> int:
        """Size of the header."""
        return 16 if self is Form.LID1 else 48

    @property
    def layout(self) -> Layout:
        """The fields of the header."""
        return _LID1 if self is Form.LID1 else _LID4


class ListIdUsage(IntEnum):
    """LIST ID USAGE (SPC-4 6.4.3.2): what happens to held data and status."""

    HOLD = 0
    DISCARD = 2
    DISABLE = 3


_SHARED: Final[Layout] = (
    flag("str", 1, bit=5),
    Field("list_id_usage", 1, 1, 2, low_bit=3),
    Field("priority", 1, 1, 3),
)
# SPC-4 table 172
_LID1: Final[Layout] = (
    whole("list_identifier", 0, 1),
    *_SHARED,
    whole("cscd_descriptor_list_length", 2, 2),
    whole("segment_descriptor_list_length", 8, 4),
    whole("inline_data_length", 12, 4),
)
# SPC-4 table 126
_LID4: Final[Layout] = (
    whole("parameter_list_format", 0, 1),
    *_SHARED,
    whole("header_cscd_descriptor_list_length", 2, 2),
    flag("g_sense", 15, bit=1),
    flag("immed", 15),
    whole("header_cscd_descriptor_type_code", 16, 1),
    whole("list_identifier", 20, 4),
    whole("cscd_descriptor_list_length", 42, 2),
    whole("segment_descriptor_list_length", 44, 2),
    whole("inline_data_length", 46, 2),
)


def first_cscd_id(form: Form | str) -> int:
    """Return the CSCD descriptor ID of the first CSCD of a list of this form."""
    return 0 if Form(form) is Form.LID1 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterList:
    """One EXTENDED COPY parameter list.  `immed` and `g_sense` exist in LID4 only."""

    list_identifier: int
    cscds: tuple[IdentificationCscd, ...]
    segments: tuple[Segment, ...]
    inline_data: bytes = b""
    list_id_usage: ListIdUsage = ListIdUsage.HOLD
    priority: int = 0
    str_: bool = False
    form: Form = Form.LID1
    immed: bool = False
    g_sense: bool = False

    def __post_init__(self) -> None:
        values = self.header_fields()
        for field in self.form.layout:
            if not field.holds(values[field.name]):
                raise LocalProtocolError(
                    f"parameter list: {field.name} {values[field.name]} does not fit {field.bits} bits"
                )
        if self.form is Form.LID1 and (self.immed or self.g_sense):
            raise LocalProtocolError("IMMED and G_SENSE exist in LID4 only")
        if self.immed and (self.g_sense or self.list_id_usage is ListIdUsage.DISABLE):
            raise LocalProtocolError("IMMED excludes G_SENSE and LIST ID USAGE 11b")
        if self.list_id_usage is ListIdUsage.DISABLE:
            if self.list_identifier:
                raise LocalProtocolError("LIST IDENTIFIER must be 0 with LIST ID USAGE 11b")
            if any(segment.hold for segment in self.segments):
                raise LocalProtocolError("LIST ID USAGE 11b holds no data")

    def cscd(self, descriptor_id: int) -> IdentificationCscd | None:
        """Return the descriptor that a segment means by this ID; None if the list has none there."""
        index = descriptor_id - first_cscd_id(self.form)
        return self.cscds[index] if 0 <= index < len(self.cscds) else None

    def cscd_offset(self, descriptor_id: int) -> int:
        """Return the byte of the list at which that descriptor starts, for field pointers."""
        return 16 + CSCD_BYTES * descriptor_id

    def segment_offset(self, index: int) -> int:
        """Return the byte of the list at which a segment descriptor starts."""
        before = sum(segment.encoded_bytes for segment in self.segments[:index])
        return self.form.header_bytes + CSCD_BYTES * len(self.cscds) + before

    def header_fields(self) -> dict[str, int]:
        """Return every field of the header under its name in the standard, in lower case."""
        values = {
            "list_identifier": self.list_identifier,
            "str": int(self.str_),
            "list_id_usage": int(self.list_id_usage),
            "priority": self.priority,
            "cscd_descriptor_list_length": CSCD_BYTES * len(self.cscds),
            "segment_descriptor_list_length": sum(s.encoded_bytes for s in self.segments),
            "inline_data_length": len(self.inline_data),
            "parameter_list_format": _PARAMETER_LIST_FORMAT,
            "header_cscd_descriptor_list_length": _HEADER_CSCD_BYTES,
            "header_cscd_descriptor_type_code": _HEADER_CSCD_TYPE,
            "g_sense": int(self.g_sense),
            "immed": int(self.immed),
        }
        return {field.name: values[field.name] for field in self.form.layout}

    def fields(self) -> dict[str, object]:
        """Return the header's fields and those of all descriptors; inline data in hex, if there are any."""
        shown: dict[str, object] = {
            **self.header_fields(),
            "cscd_descriptors": [cscd.fields() for cscd in self.cscds],
            "segment_descriptors": [segment.fields() for segment in self.segments],
        }
        if self.inline_data:
            shown["inline_data"] = self.inline_data.hex()
        return shown

    def encode(self) -> bytes:
        """Return the whole list."""
        header = write_fields(self.form.layout, self.form.header_bytes, self.header_fields())
        return b"".join(
            (
                header,
                *(cscd.encode() for cscd in self.cscds),
                *(segment.encode() for segment in self.segments),
                self.inline_data,
            )
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """One descriptor within the list; `is_cut` if the list ends before it does."""

    offset: int
    size: int
    type_code: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Parts:
    """The list after its lengths were checked."""

    form: Form
    header: dict[str, int]
    cscds: list[_Entry]
    segments: list[_Entry]
    inline_data: bytes

    def offset_of(self, name: str) -> int:
        return offset_of(self.form.layout, name)


def decode_parameter_list(
    data: bytes, *, limits: OperatingParameters, form: Form | str = Form.LID1
) -> ParameterList | None:
    """Decode and check a list as a copy manager with these limits does; None for no list at all.

    Raises `ParameterListError`.
    """
    if not data:
        return None
    parts = _split(data, limits=limits, form=Form(form))
    _check_counts(parts, limits=limits)
    _check_types(parts, limits=limits)
    _check_header(parts, limits=limits)
    cscds = tuple(
        _decode_cscd(data, entry, index, parts) for index, entry in enumerate(parts.cscds)
    )
    segments = tuple(
        _decode_segment(data, entry, index, parts) for index, entry in enumerate(parts.segments)
    )
    header = parts.header
    return ParameterList(
        list_identifier=header["list_identifier"],
        cscds=cscds,
        segments=segments,
        inline_data=parts.inline_data,
        list_id_usage=ListIdUsage(header["list_id_usage"]),
        priority=header["priority"],
        str_=bool(header["str"]),
        form=parts.form,
        immed=bool(header.get("immed", 0)),
        g_sense=bool(header.get("g_sense", 0)),
    )


def _split(data: bytes, *, limits: OperatingParameters, form: Form) -> _Parts:
    """Check all lengths and find the descriptors, without looking at what they are."""
    if len(data) < form.header_bytes:
        raise ParameterListError(
            f"the header has {form.header_bytes} bytes, {len(data)} were sent",
            sense=PARAMETER_LIST_LENGTH_ERROR,
        )
    header = read_fields(form.layout, data)
    if form is Form.LID4:
        _check_lid4_shape(header)
    segments_at = form.header_bytes + header["cscd_descriptor_list_length"]
    inline_at = segments_at + header["segment_descriptor_list_length"]
    end = inline_at + header["inline_data_length"]
    if inline_at - form.header_bytes > limits.maximum_descriptor_list_length:
        raise ParameterListError(
            f"{inline_at - form.header_bytes} bytes of descriptors, "
            f"at most {limits.maximum_descriptor_list_length}",
            sense=PARAMETER_LIST_LENGTH_ERROR,
        )
    if header["inline_data_length"] > limits.maximum_inline_data_length:
        raise ParameterListError(
            f"INLINE DATA LENGTH is {header['inline_data_length']}, "
            f"at most {limits.maximum_inline_data_length}",
            sense=PARAMETER_LIST_LENGTH_ERROR,
            field=offset_of(form.layout, "inline_data_length"),
        )
    if end > len(data):
        raise ParameterListError(
            f"the list has {end} bytes, {len(data)} were sent", sense=PARAMETER_LIST_LENGTH_ERROR
        )
    return _Parts(
        form=form,
        header=header,
        # One more than allowed is enough to refuse the list.
        cscds=_entries(
            data,
            form.header_bytes,
            segments_at,
            _cscd_size,
            limits.maximum_cscd_descriptor_count + 1,
        ),
        segments=_entries(
            data, segments_at, inline_at, _segment_size, limits.maximum_segment_descriptor_count + 1
        ),
        inline_data=bytes(data[inline_at:end]),
    )


def _check_lid4_shape(header: dict[str, int]) -> None:
    for name, expected in (
        ("parameter_list_format", _PARAMETER_LIST_FORMAT),
        ("header_cscd_descriptor_list_length", _HEADER_CSCD_BYTES),
        ("header_cscd_descriptor_type_code", _HEADER_CSCD_TYPE),
    ):
        if header[name] != expected:
            raise ParameterListError(
                f"{name.upper().replace('_', ' ')} is {header[name]:02X}h, not {expected:02X}h",
                field=offset_of(_LID4, name),
            )


def _cscd_size(data: bytes, offset: int) -> int:
    return bytes_of_cscd_type(data[offset])


def _segment_size(data: bytes, offset: int) -> int:
    return HEADER_BYTES + int.from_bytes(data[offset + 2 : offset + 4], "big")


def _entries(
    data: bytes, start: int, end: int, size_at: Callable[[bytes, int], int], count_max: int
) -> list[_Entry]:
    found: list[_Entry] = []
    while start < end and len(found) < count_max:
        room = end - start
        size = size_at(data, start) if room >= HEADER_BYTES else HEADER_BYTES
        found.append(_Entry(start, min(size, room), data[start], is_cut=size > room))
        start += size
    return found


def _check_counts(parts: _Parts, *, limits: OperatingParameters) -> None:
    if len(parts.cscds) > limits.maximum_cscd_descriptor_count:
        raise ParameterListError(
            f"more than {limits.maximum_cscd_descriptor_count} CSCD descriptors",
            sense=TOO_MANY_CSCDS,
            field=parts.offset_of("cscd_descriptor_list_length"),
        )
    if len(parts.segments) > limits.maximum_segment_descriptor_count:
        raise ParameterListError(
            f"more than {limits.maximum_segment_descriptor_count} segment descriptors",
            sense=TOO_MANY_SEGMENTS,
            field=parts.offset_of("segment_descriptor_list_length"),
        )


def _check_types(parts: _Parts, *, limits: OperatingParameters) -> None:
    for entry in parts.cscds:
        code = entry.type_code
        if code != IDENTIFICATION or not limits.implements(code):
            raise ParameterListError(
                f"CSCD descriptor type {code:02X}h ({name_of_cscd_type(code)}) is not supported",
                sense=UNSUPPORTED_CSCD_TYPE,
                field=entry.offset,
            )
    supported = set(limits.implemented_descriptor_list).intersection(SEGMENT_TYPE_CODES)
    for index, entry in enumerate(parts.segments):
        code = entry.type_code
        if code not in supported:
            raise ParameterListError(
                f"segment {index}: type {code:02X}h ({name_of_segment_type(code)}) is not supported",
                sense=UNSUPPORTED_SEGMENT_TYPE,
                field=entry.offset,
            )


def _check_header(parts: _Parts, *, limits: OperatingParameters) -> None:
    header = parts.header
    usage = header["list_id_usage"]
    if usage not in tuple(ListIdUsage):
        raise ParameterListError("LIST ID USAGE 01b is reserved", field=1, bit=4)
    if usage == ListIdUsage.DISABLE:
        if not limits.snlid:
            raise ParameterListError("LIST ID USAGE 11b is not supported", field=1, bit=4)
        if header["list_identifier"]:
            raise ParameterListError(
                f"LIST IDENTIFIER is {header['list_identifier']}, but LIST ID USAGE 11b wants 0",
                field=parts.offset_of("list_identifier"),
            )
    if header.get("immed", 0) and (header["g_sense"] or usage == ListIdUsage.DISABLE):
        raise ParameterListError(
            "IMMED=1 excludes G_SENSE=1 and LIST ID USAGE 11b", sense=INVALID_FIELD_IN_CDB
        )


def _decode_cscd(data: bytes, entry: _Entry, index: int, parts: _Parts) -> IdentificationCscd:
    name = f"CSCD {index + first_cscd_id(parts.form)}"
    if entry.is_cut:
        raise ParameterListError(
            f"{name}: CSCD DESCRIPTOR LIST LENGTH ends within the descriptor",
            field=parts.offset_of("cscd_descriptor_list_length"),
        )
    try:
        return decode_identification(data[entry.offset : entry.offset + entry.size])
    except ParameterListError as error:
        raise error.moved(entry.offset, prefix=name) from None


def _decode_segment(data: bytes, entry: _Entry, index: int, parts: _Parts) -> Segment:
    name = f"segment {index}"
    if entry.is_cut:
        raise ParameterListError(
            f"{name}: SEGMENT DESCRIPTOR LIST LENGTH ends within the descriptor",
            field=parts.offset_of("segment_descriptor_list_length"),
        )
    try:
        segment = decode_segment(data[entry.offset : entry.offset + entry.size])
    except ParameterListError as error:
        raise error.moved(entry.offset, prefix=name) from None
    if segment.hold and parts.header["list_id_usage"] == ListIdUsage.DISABLE:
        raise ParameterListError(
            f"{name}: LIST ID USAGE 11b holds no data, but type {entry.type_code:02X}h asks for it",
            field=entry.offset,
        )
    return segment
