"""The golden vectors, byte-exact both ways; every vector is used, and nothing is left over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backplane.scsi.cdb import Cdb
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.cscd import decode_cscd
from backplane.scsi.parameter_list import Form, ParameterList, decode_parameter_list
from backplane.scsi.segment import SEGMENT_TYPES, decode_segment

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "golden" / "vectors.json").read_text(encoding="utf-8")
)
BY_NAME = {vector["name"]: vector for vector in VECTORS}


def bytes_of(name: str) -> bytes:
    return bytes.fromhex(BY_NAME[name]["hex"])


def names(prefix: str = "", suffix: str = "") -> list[str]:
    return [name for name in BY_NAME if name.startswith(prefix) and name.endswith(suffix)]


def decoded_list(form: str) -> ParameterList:
    decoded = decode_parameter_list(
        bytes_of(f"{form}_parameter_list"), limits=MOVER_PARAMETERS, form=form
    )
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("name", names("cscd_"))
def test_a_cscd_vector_is_read_and_written_byte_for_byte(name: str) -> None:
    cscd = decode_cscd(bytes_of(name))
    assert list(cscd.fields().items()) == list(BY_NAME[name]["fields"].items())
    assert cscd.encode() == bytes_of(name)


@pytest.mark.parametrize("name", names("seg_"))
def test_a_segment_vector_is_read_and_written_byte_for_byte(name: str) -> None:
    segment = decode_segment(bytes_of(name))
    assert list(segment.fields().items()) == list(BY_NAME[name]["fields"].items())
    assert segment.encode() == bytes_of(name)
    assert segment.encoded_bytes == len(bytes_of(name))


@pytest.mark.parametrize("form", list(Form))
def test_a_cdb_vector_is_read_and_written_byte_for_byte(form: Form) -> None:
    cdb = Cdb.decode(bytes_of(f"{form}_cdb"))
    assert cdb.fields() == BY_NAME[f"{form}_cdb"]["fields"]
    assert cdb.encode() == bytes_of(f"{form}_cdb")
    assert cdb.parameter_list_length == len(bytes_of(f"{form}_parameter_list"))


@pytest.mark.parametrize("form", list(Form))
def test_a_parameter_list_vector_is_read_and_written_byte_for_byte(form: Form) -> None:
    decoded = decoded_list(form)
    assert decoded.fields() == BY_NAME[f"{form}_parameter_list"]["fields"]
    assert decoded.encode() == bytes_of(f"{form}_parameter_list")


@pytest.mark.parametrize("form", list(Form))
def test_a_header_vector_is_the_start_of_its_list(form: Form) -> None:
    decoded = decoded_list(form)
    assert decoded.header_fields() == BY_NAME[f"{form}_header"]["fields"]
    assert decoded.encode()[: form.header_bytes] == bytes_of(f"{form}_header")


@pytest.mark.parametrize("form", list(Form))
def test_the_segments_of_both_forms_name_the_same_devices(form: Form) -> None:
    """The trap of extended-copy 3.2: in LID4 the first CSCD has the ID 1."""
    decoded = decoded_list(form)
    copy, mark = decoded.segments
    assert copy.source_id is not None
    assert copy.destination_id is not None
    assert mark.destination_id is not None
    assert decoded.cscd(copy.source_id) == decode_cscd(bytes_of("cscd_disk_naa6_512"))
    assert decoded.cscd(copy.destination_id) == decode_cscd(bytes_of("cscd_tape_variable_pad"))
    assert decoded.cscd(mark.destination_id) == decode_cscd(bytes_of("cscd_tape_variable_pad"))


def test_no_vector_is_forgotten() -> None:
    used = [*names("cscd_"), *names("seg_")]
    used += [f"{form}_{part}" for form in Form for part in ("cdb", "header", "parameter_list")]
    assert sorted(used) == sorted(BY_NAME)
    assert len(used) == len(VECTORS) == 26


def test_every_segment_type_has_a_vector() -> None:
    types = {bytes_of(name)[0] for name in names("seg_")}
    assert types == {cls.CODE for cls in SEGMENT_TYPES} == {*range(0x0B), *range(0x10, 0x15)}
