"""Copy commands and their answers in words: bytes in, a document out.

`decode` turns bytes of a known kind into a document for JSON; `kind_of` guesses the kind from the shape, which is
possible because lengths inside the bytes must fit; `page` renders a document for people.  Nothing is read or
written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from backplane.errors import BackupError
from backplane.scsi.cdb import CDB_BYTES, Cdb
from backplane.scsi.copy_status import (
    WIDEST_PARAMETERS,
    FailureDetails,
    OperatingParameters,
    StatusLid1,
    StatusLid4,
)
from backplane.scsi.cscd import CSCD_BYTES, IDENTIFICATION, decode_cscd, describe_cscd_id
from backplane.scsi.parameter_list import (
    Form,
    ListIdUsage,
    ParameterList,
    ParameterListError,
    decode_parameter_list,
    first_cscd_id,
)
from backplane.scsi.segment import Segment, decode_segment, name_of_segment_type
from backplane.scsi.sense import Sense
from controller.cli import render

Document: TypeAlias = dict[str, Any]

KINDS: Final = (
    "cdb",
    "lid1",
    "lid4",
    "cscd",
    "segment",
    "sense",
    "status-lid1",
    "status-lid4",
    "parameters",
    "failure",
)

_NAMES: Final = {
    "cdb": "command descriptor block",
    "lid1": "EXTENDED COPY(LID1) parameter list",
    "lid4": "EXTENDED COPY(LID4) parameter list",
    "cscd": "CSCD descriptor",
    "segment": "segment descriptor",
    "sense": "sense data",
    "status-lid1": "RECEIVE COPY STATUS(LID1)",
    "status-lid4": "RECEIVE COPY STATUS(LID4)",
    "parameters": "RECEIVE COPY OPERATING PARAMETERS",
    "failure": "RECEIVE COPY FAILURE DETAILS(LID1)",
}

_USAGE_WORDS: Final = {
    ListIdUsage.HOLD: "status and held data are kept",
    ListIdUsage.DISCARD: "held data may be discarded",
    ListIdUsage.DISABLE: "no list identifier, nothing can be retrieved",
}


# --- which kind ----------------------------------------------------------------------------------


def kind_of(data: bytes) -> str | None:
    """Guess what the bytes are; None if their lengths fit nothing."""
    for kind, looks_like in _SHAPES:
        if looks_like(data):
            return kind
    return None


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _is_cdb(data: bytes) -> bool:
    return len(data) == CDB_BYTES and data[0] in (0x83, 0x84)


def _is_lid4(data: bytes) -> bool:
    return len(data) >= 48 and data[0] == 0x01 and data[2:4] == b"\x00\x20" and data[16] == 0xFF


def _is_lid1(data: bytes) -> bool:
    parts = _number(data, 2, 2) + _number(data, 8, 4) + _number(data, 12, 4)
    return not data or (len(data) >= 16 and len(data) == 16 + parts)


def _is_cscd(data: bytes) -> bool:
    is_one = len(data) == CSCD_BYTES and data[0] >= 0xC0
    return is_one or (len(data) == 2 * CSCD_BYTES and data[0] in (0xEA, 0xEB))


def _is_sense(data: bytes) -> bool:
    if len(data) < 8:
        return False
    is_whole = len(data) == 8 + data[7]
    return (data[0] & 0x7F in (0x70, 0x71) and (is_whole or len(data) >= 18)) or (
        data[0] in (0x72, 0x73) and is_whole
    )


def _announces_itself(data: bytes) -> bool:
    return len(data) >= 4 and len(data) == 4 + _number(data, 0, 4)


def _is_parameters(data: bytes) -> bool:
    return _announces_itself(data) and len(data) >= 44 and len(data) == 44 + data[43]


def _is_failure(data: bytes) -> bool:
    is_whole = _announces_itself(data) and len(data) >= 60
    return is_whole and not any(data[4:56]) and len(data) == 60 + _number(data, 58, 2)


def _is_status4(data: bytes) -> bool:
    return _announces_itself(data) and len(data) >= 32 and len(data) == 32 + data[13]


def _is_segment(data: bytes) -> bool:
    return len(data) >= 4 and data[0] < 0xC0 and len(data) == 4 + _number(data, 2, 2)


_SHAPES: Final[tuple[tuple[str, Callable[[bytes], bool]], ...]] = (
    ("cdb", _is_cdb),
    ("lid4", _is_lid4),
    ("lid1", _is_lid1),
    ("cscd", _is_cscd),
    ("sense", _is_sense),
    ("status-lid1", lambda data: _announces_itself(data) and len(data) == 12),
    ("parameters", _is_parameters),
    ("failure", _is_failure),
    ("status-lid4", _is_status4),
    ("segment", _is_segment),
)


# --- documents -----------------------------------------------------------------------------------


def decode(data: bytes, kind: str, *, limits: OperatingParameters = WIDEST_PARAMETERS) -> Document:
    """Return every field by name, and words for them.

    Raises a `BackupError` if the bytes are not of that kind, or if a copy manager with these limits refuses them.
    """
    head: Document = {"kind": kind, "name": _NAMES[kind], "bytes": len(data)}
    if kind in ("lid1", "lid4"):
        return {**head, **_list_document(data, Form(kind), limits=limits)}
    return {**head, **_DECODERS[kind](data)}


def decode_anything(data: bytes, *, limits: OperatingParameters = WIDEST_PARAMETERS) -> Document:
    """Guess the kind, then decode; bytes that fit nothing are judged as a LID1 parameter list."""
    kind = kind_of(data)
    if kind is not None:
        return decode(data, kind, limits=limits)
    try:
        return decode(data, "lid1", limits=limits)
    except ParameterListError as error:
        raise error.moved(
            0, prefix="not recognized as any kind; read as a LID1 parameter list"
        ) from None


def _cdb_document(data: bytes) -> Document:
    cdb = Cdb.decode(data)
    return {**cdb.fields(), "words": cdb.name}


def _cscd_document(data: bytes) -> Document:
    cscd = decode_cscd(data)
    return {**cscd.fields(), "words": cscd.describe()}


def _segment_document(data: bytes) -> Document:
    segment = decode_segment(data)
    shown: Document = {**segment.fields(), "type_name": segment.type_name}
    for role, descriptor_id in _roles(segment):
        shown[role] = describe_cscd_id(descriptor_id)
    return {**shown, "words": _segment_words(shown)}


def _sense_document(data: bytes) -> Document:
    sense = Sense.decode(data)
    form = "fixed" if data[0] & 0x7F < 0x72 else "descriptor"
    return {"format": form, "response_code": data[0] & 0x7F, **sense.fields()}


def _parameters_document(data: bytes) -> Document:
    parameters = OperatingParameters.decode(data)
    codes = parameters.implemented_descriptor_list
    names = [f"{code:02X}h {_descriptor_name(code)}" for code in codes]
    words = (
        f"at most {parameters.maximum_cscd_descriptor_count} CSCDs, "
        f"{parameters.maximum_segment_descriptor_count} segments, "
        f"{parameters.maximum_descriptor_list_length} bytes of descriptors, "
        f"{parameters.maximum_inline_data_length} bytes of inline data"
    )
    return {**parameters.fields(), "implemented_descriptor_names": names, "words": words}


def _status1_document(data: bytes) -> Document:
    status = StatusLid1.decode(data)
    return {**status.fields(), "words": status.describe()}


def _status4_document(data: bytes) -> Document:
    status = StatusLid4.decode(data)
    return {
        **status.fields(),
        "sense": _forwarded(status.sense_data),
        "words": status.describe(),
    }


def _failure_document(data: bytes) -> Document:
    details = FailureDetails.decode(data)
    return {
        **details.fields(),
        "sense": _forwarded(details.sense_data),
        "words": details.describe(),
    }


_DECODERS: Final[dict[str, Callable[[bytes], Document]]] = {
    "cdb": _cdb_document,
    "cscd": _cscd_document,
    "segment": _segment_document,
    "sense": _sense_document,
    "status-lid1": _status1_document,
    "status-lid4": _status4_document,
    "parameters": _parameters_document,
    "failure": _failure_document,
}


def _forwarded(sense_data: bytes) -> Document | None:
    """Show sense data within a reply; None if there are none that can be read."""
    try:
        return _sense_document(sense_data)
    except BackupError:
        return None


def _descriptor_name(code: int) -> str:
    return "Identification CSCD" if code == IDENTIFICATION else name_of_segment_type(code)


def _roles(segment: Segment) -> list[tuple[str, int]]:
    pairs = (("source", segment.source_id), ("destination", segment.destination_id))
    return [(role, descriptor_id) for role, descriptor_id in pairs if descriptor_id is not None]


def _list_document(data: bytes, form: Form, *, limits: OperatingParameters) -> Document:
    decoded = decode_parameter_list(data, limits=limits, form=form)
    if decoded is None:
        return {"words": "PARAMETER LIST LENGTH = 0: no list, nothing is copied, status GOOD"}
    shown: Document = dict(decoded.header_fields())
    shown["list_id_usage_name"] = decoded.list_id_usage.name
    shown["words"] = (
        f"list {decoded.list_identifier} ({_USAGE_WORDS[decoded.list_id_usage]}), "
        f"{len(decoded.cscds)} CSCDs, {len(decoded.segments)} segments, "
        f"{len(decoded.inline_data)} bytes of inline data"
    )
    shown["cscd_descriptors"] = _cscd_rows(decoded)
    shown["segment_descriptors"] = _segment_rows(decoded)
    shown["inline_data"] = decoded.inline_data.hex()
    return shown


def _cscd_rows(decoded: ParameterList) -> list[Document]:
    uses = Counter(use for segment in decoded.segments for use in _roles(segment))
    rows = []
    for descriptor_id, cscd in enumerate(decoded.cscds, first_cscd_id(decoded.form)):
        counts = [(role, uses[role, descriptor_id]) for role in ("source", "destination")]
        rows.append(
            {
                "cscd_descriptor_id": descriptor_id,
                "offset": decoded.cscd_offset(descriptor_id),
                **cscd.fields(),
                "roles": [f"{role} ({count}x)" for role, count in counts if count],
                "words": cscd.describe(),
            }
        )
    return rows


def _segment_rows(decoded: ParameterList) -> list[Document]:
    rows = []
    offset = decoded.segment_offset(0)
    for number, segment in enumerate(decoded.segments):
        shown: Document = {"segment_number": number, "offset": offset}
        shown |= {**segment.fields(), "type_name": segment.type_name}
        for role, descriptor_id in _roles(segment):
            shown[role] = _who(decoded, descriptor_id)
        shown["words"] = _segment_words(shown)
        rows.append(shown)
        offset += segment.encoded_bytes
    return rows


def _who(decoded: ParameterList, descriptor_id: int) -> str:
    cscd = decoded.cscd(descriptor_id)
    name = describe_cscd_id(descriptor_id)
    if cscd is not None:
        return f"{name}: {cscd.describe()}"
    return f"{name} (no such descriptor in this list)" if name.startswith("CSCD ") else name


_NOT_IN_WORDS: Final = frozenset(
    {
        "segment_number",
        "offset",
        "descriptor_type_code",
        "descriptor_length",
        "source_cscd_descriptor_id",
        "destination_cscd_descriptor_id",
        "type_name",
        "source",
        "destination",
        "words",
    }
)


def _segment_words(shown: Document) -> str:
    """Say what a segment does: type, roles, then every number that is not 0."""
    places = [
        f"{word} {str(shown[role]).split(':')[0]}"
        for role, word in (("source", "from"), ("destination", "to"))
        if role in shown
    ]
    numbers = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in shown.items()
        if name not in _NOT_IN_WORDS and (value or name in ("cat", "code"))
    ]
    return ", ".join([" ".join([shown["type_name"], *places]), *numbers])


# --- for people ----------------------------------------------------------------------------------


def page(document: Mapping[str, Any]) -> str:
    """Render a document as text."""
    lists = ("cscd_descriptors", "segment_descriptors")
    scalars = [
        (name, _shown(value))
        for name, value in document.items()
        if name not in ("name", "kind", "bytes", *lists) and not isinstance(value, Mapping)
    ]
    parts = [
        f"{document['name']}, {document['bytes']} bytes",
        render.block([("in words", str(document["words"]))]),
        render.block([pair for pair in scalars if pair[0] != "words"]),
    ]
    if "cscd_descriptors" in document:
        parts.append(_cscd_table(document["cscd_descriptors"]))
        parts.append(_segment_table(document["segment_descriptors"]))
    for name, value in document.items():
        if isinstance(value, Mapping):
            pairs = [(key, _shown(inner)) for key, inner in value.items()]
            parts.append(f"{name}:\n{render.block(pairs)}")
    return "\n\n".join(part for part in parts if part)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value} ({value:02X}h)" if value > 9 else str(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "-"
    if isinstance(value, Mapping):
        return str(value.get("words", dict(value)))
    return "-" if value in (None, "") else str(value)


def _cscd_table(rows: list[Document]) -> str:
    return render.table(
        (
            ("CSCD", render.text_of("cscd_descriptor_id")),
            ("AT", render.text_of("offset")),
            ("ROLES", render.text_of("roles")),
            ("WHAT", render.text_of("words")),
        ),
        rows,
        right=("CSCD", "AT"),
        empty="no CSCD descriptors",
    )


def _segment_table(rows: list[Document]) -> str:
    return render.table(
        (
            ("SEGMENT", render.text_of("segment_number")),
            ("AT", render.text_of("offset")),
            ("TYPE", lambda row: f"{row['descriptor_type_code']:02X}h"),
            ("WHAT", render.text_of("words")),
        ),
        rows,
        right=("SEGMENT", "AT"),
        empty="no segment descriptors",
    )


def lines(document: Document) -> list[Document]:
    """Cut a document into JSON lines: the list itself, then one line per descriptor."""
    rest = {k: v for k, v in document.items() if not k.endswith("_descriptors")}
    found: list[Document] = [{"message_type": document["kind"], **rest}]
    for name in ("cscd_descriptors", "segment_descriptors"):
        kind = name.removesuffix("s")
        found += [{"message_type": kind, **row} for row in document.get(name, [])]
    return found
