"""Conditions as sense data."""

from __future__ import annotations

from backplane.scsi.sense import SenseKey
from storage_node.core import tape_sense


def test_only_the_filemark_condition_sets_the_filemark_bit() -> None:
    assert tape_sense.sense_of(tape_sense.FILEMARK, information=5).filemark
    assert not tape_sense.sense_of(tape_sense.END_OF_DATA, information=5).filemark


def test_a_condition_becomes_fixed_format_sense_data() -> None:
    sense = tape_sense.sense_of(tape_sense.INCORRECT_LENGTH, information=-40, incorrect_length=True)
    assert sense.key is SenseKey.NO_SENSE
    assert sense.encode_fixed().hex() == "f00020ffffffd80a00000000000000000000"


def test_early_warning_is_no_sense_with_the_end_of_medium_bit() -> None:
    sense = tape_sense.sense_of(tape_sense.END_OF_MEDIUM, information=0, end_of_medium=True)
    assert sense.encode_fixed()[:14].hex() == "f00040000000000a000000000002"
