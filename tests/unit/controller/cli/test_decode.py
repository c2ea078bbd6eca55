"""Guessing what bytes are, and saying it in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import BackupError
from backplane.scsi.copy_status import (
    MOVER_PARAMETERS,
    CopyCommandStatus,
    CopyOperationStatus,
    FailureDetails,
    StatusLid1,
    StatusLid4,
)
from backplane.scsi.cscd import block_cscd
from backplane.scsi.parameter_list import ParameterList, ParameterListError
from backplane.scsi.segment import InlineToStream, VerifyCscd
from backplane.scsi.sense import FieldPointer, Forwarded, Sense, SenseKey
from controller.cli.decode import (
    KINDS,
    decode,
    decode_anything,
    kind_of,
    lines,
    page,
)

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "golden" / "vectors.json").read_text(encoding="utf-8")
)
WHOLE = {v["name"]: bytes.fromhex(v["hex"]) for v in VECTORS if not v["name"].endswith("_header")}
REFUSED = Sense(
    key=SenseKey.ILLEGAL_REQUEST, asc=0x26, ascq=0x07, field_pointer=FieldPointer(field=16)
)
ABORTED = Sense(
    key=SenseKey.COPY_ABORTED,
    asc=0x0D,
    ascq=0x01,
    information=512,
    segment=2,
    destination=Forwarded(2, Sense(key=SenseKey.VOLUME_OVERFLOW, ascq=2).encode_fixed()),
)
SAMPLES: dict[str, list[bytes]] = {
    "cdb": [WHOLE["lid1_cdb"], WHOLE["lid4_cdb"]],
    "lid1": [WHOLE["lid1_parameter_list"], b"", bytes(16)],
    "lid4": [WHOLE["lid4_parameter_list"]],
    "cscd": [data for name, data in WHOLE.items() if name.startswith("cscd_")]
    + [b"\xe5" + bytes(31), b"\xea" + bytes(63)],
    "segment": [data for name, data in WHOLE.items() if name.startswith("seg_")],
    "sense": [
        REFUSED.encode_fixed(),
        ABORTED.encode_fixed(),
        ABORTED.encode_descriptor(),
        Sense(key=SenseKey.NO_SENSE).encode_fixed(),
    ],
    "status-lid1": [
        StatusLid1(
            copy_command_status=CopyCommandStatus.COMPLETED, segments_processed=2, transfer_count=7
        ).encode()
    ],
    "status-lid4": [
        StatusLid4(
            copy_operation_status=CopyOperationStatus.COMPLETED_WITH_ERRORS,
            segments_processed=2,
            transfer_count=7,
            sense_data=ABORTED.encode_fixed(),
        ).encode(),
        StatusLid4(
            copy_operation_status=CopyOperationStatus.COMPLETED,
            segments_processed=2,
            transfer_count=7,
        ).encode(),
    ],
    "parameters": [MOVER_PARAMETERS.encode()],
    "failure": [
        FailureDetails(extended_copy_command_status=2, sense_data=ABORTED.encode_fixed()).encode(),
    ],
}


def test_there_is_a_sample_of_every_kind() -> None:
    assert set(SAMPLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_recognized_by_its_shape(kind: str) -> None:
    for data in SAMPLES[kind]:
        assert kind_of(data) == kind, data.hex()
        assert decode_anything(data) == decode(data, kind)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_every_field_of_every_vector_is_shown_by_its_name(vector: dict[str, Any]) -> None:
    name, fields = vector["name"], dict(vector["fields"])
    if name.endswith("_header"):
        document = decode(WHOLE[name.replace("_header", "_parameter_list")], name[:4])
    else:
        document = decode_anything(bytes.fromhex(vector["hex"]))
    for part in ("cscd_descriptors", "segment_descriptors"):
        for shown, expected in zip(document.get(part, []), fields.pop(part, []), strict=False):
            assert shown.items() >= expected.items()
    assert document.items() >= fields.items()
    assert document["words"]


def test_a_list_tells_who_copies_from_whom() -> None:
    document = decode_anything(WHOLE["lid1_parameter_list"])
    disk, tape = document["cscd_descriptors"]
    copy, mark = document["segment_descriptors"]
    assert (disk["cscd_descriptor_id"], disk["offset"]) == (0, 16)
    assert disk["roles"] == ["source (1x)"]
    assert tape["roles"] == ["destination (2x)"]
    assert copy["source"].startswith("CSCD 0: disk, 512-byte blocks")
    assert copy["destination"].startswith("CSCD 1: tape, variable-length records")
    assert copy["type_name"] == "block to stream"
    assert "from CSCD 0 to CSCD 1" in copy["words"]
    assert "source" not in mark
    assert (copy["offset"], mark["offset"]) == (80, 104)


def test_the_first_cscd_of_a_lid4_list_has_the_id_1() -> None:
    document = decode_anything(WHOLE["lid4_parameter_list"])
    assert [cscd["cscd_descriptor_id"] for cscd in document["cscd_descriptors"]] == [1, 2]
    assert document["segment_descriptors"][0]["source"].startswith("CSCD 1: disk")


def test_a_segment_that_names_no_descriptor_of_the_list_says_so() -> None:
    data = ParameterList(
        list_identifier=1,
        cscds=(block_cscd(bytes(8), block_bytes=512),),
        segments=(
            VerifyCscd(source_cscd_descriptor_id=7),
            VerifyCscd(source_cscd_descriptor_id=0xFFFF),
            InlineToStream(
                destination_cscd_descriptor_id=0xC001,
                stream_device_transfer_length=4,
                inline_data_offset=0,
                inline_data_number_of_bytes=4,
            ),
        ),
        inline_data=b"VOL1",
    ).encode()
    document = decode_anything(data)
    first, second, third = document["segment_descriptors"]
    assert first["source"] == "CSCD 7 (no such descriptor in this list)"
    assert second["source"] == "logical unit of the copy manager"
    assert third["destination"] == "null stream logical unit"
    assert document["inline_data"] == b"VOL1".hex()
    assert "4 bytes of inline data" in document["words"]


def test_sense_data_within_a_reply_are_decoded_too() -> None:
    for data in (SAMPLES["failure"][0], SAMPLES["status-lid4"][0]):
        document = decode_anything(data)
        assert document["sense"]["additional_sense_name"] == "THIRD PARTY DEVICE FAILURE"
        inner = document["sense"]["destination"]["sense"]
        assert inner["sense_key_name"] == "VOLUME OVERFLOW"
    assert decode_anything(SAMPLES["status-lid4"][1])["sense"] is None


def test_operating_parameters_name_what_is_implemented() -> None:
    document = decode_anything(MOVER_PARAMETERS.encode())
    assert "08h block with byte offset to stream" in document["implemented_descriptor_names"]
    assert "E4h Identification CSCD" in document["implemented_descriptor_names"]


def test_bytes_that_fit_nothing_are_refused_like_a_list() -> None:
    with pytest.raises(ParameterListError, match="not recognized") as caught:
        decode_anything(b"rubbish")
    assert caught.value.sense == (0x05, 0x1A, 0x00)


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_is_json_and_has_a_page_and_lines(kind: str) -> None:
    for data in SAMPLES[kind]:
        document = json.loads(json.dumps(decode(data, kind)))
        assert document["words"] in page(document)
        rows = lines(document)
        assert rows[0]["message_type"] == kind
        assert len(rows) == 1 + sum(
            len(document.get(part, [])) for part in ("cscd_descriptors", "segment_descriptors")
        )


@given(st.binary(max_size=120), st.sampled_from(KINDS))
def test_any_bytes_as_any_kind_give_a_page_or_a_named_error(data: bytes, kind: str) -> None:
    for decoder in (lambda: decode(data, kind), lambda: decode_anything(data)):
        try:
            document = decoder()
        except BackupError:
            continue
        assert page(document)
        assert json.dumps(document)
