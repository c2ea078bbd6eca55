"""Refusals carry the sense data that a copy manager answers with."""

from __future__ import annotations

from backplane.errors import CopyError, ExitCode, SenseTriple, error_from_kind
from backplane.scsi.refusal import (
    PARAMETER_LIST_LENGTH_ERROR,
    UNSUPPORTED_SEGMENT_TYPE,
    CdbError,
    ParameterListError,
)
from backplane.scsi.sense import FieldPointer, SenseKey


def test_a_parameter_list_error_points_at_the_field() -> None:
    error = ParameterListError("wrong", field=7, bit=3)
    assert isinstance(error, CopyError)
    assert error.exit_code is ExitCode.FAILED
    assert error.sense == SenseTriple(0x05, 0x26, 0x00)
    assert error.sense_data.key is SenseKey.ILLEGAL_REQUEST
    assert error.sense_data.information is None
    assert error.sense_data.field_pointer == FieldPointer(field=7, bit=3)


def test_a_field_beyond_64_kib_cannot_be_pointed_at() -> None:
    assert ParameterListError("far", field=0x10000).sense_data.field_pointer is None
    assert ParameterListError("near", field=0xFFFF).sense_data.field_pointer is not None


def test_the_hint_says_what_the_copy_manager_answers() -> None:
    error = ParameterListError("wrong type", sense=UNSUPPORTED_SEGMENT_TYPE, field=80)
    assert "26h/09h UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE" in error.hint
    assert "byte 80 of the parameter list" in error.hint
    assert "wrong type" in str(error)


def test_a_cdb_error_points_into_the_cdb() -> None:
    pointer = CdbError("unknown", field=1).sense_data.field_pointer
    assert pointer == FieldPointer(field=1, in_command=True)


def test_a_descriptor_error_moves_with_its_descriptor() -> None:
    moved = ParameterListError("too long", field=7, bit=1).moved(48, prefix="CSCD 1")
    assert moved.message == "CSCD 1: too long"
    assert moved.sense_data.field_pointer == FieldPointer(field=55, bit=1)
    without = ParameterListError("cut", sense=PARAMETER_LIST_LENGTH_ERROR).moved(48, prefix="it")
    assert without.sense == PARAMETER_LIST_LENGTH_ERROR
    assert without.field is None


def test_a_refusal_survives_the_wire() -> None:
    rebuilt = error_from_kind("parameter-list", "wrong", hint="look there")
    assert isinstance(rebuilt, ParameterListError)
    assert rebuilt.hint == "look there"
