"""What an outcome says about itself."""

from __future__ import annotations

from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Status
from storage_node.core import tape_sense
from storage_node.tape.drive import DriveMode, Outcome


def outcome(sense: Sense | None) -> Outcome:
    status = Status.GOOD if sense is None else Status.CHECK_CONDITION
    return Outcome(status=status, position=1, sense=sense)


def test_good_is_done() -> None:
    assert outcome(None).is_good
    assert outcome(None).is_done
    assert outcome(None).triple is None


def test_a_warning_about_the_end_of_the_medium_is_done_and_not_good() -> None:
    for triple in (tape_sense.END_OF_MEDIUM, tape_sense.PROGRAMMABLE_WARNING):
        found = outcome(tape_sense.sense_of(triple, information=0, end_of_medium=True))
        assert found.is_done
        assert not found.is_good
        assert found.triple == triple


def test_an_error_is_not_done() -> None:
    for triple in (tape_sense.OVERFLOW, tape_sense.WRITE_ERROR, tape_sense.MEDIUM_CHANGED):
        assert not outcome(tape_sense.sense_of(triple)).is_done
    assert not outcome(Sense(key=SenseKey.NO_SENSE, information=5)).is_done


def test_a_new_drive_is_variable_buffered_and_append_only() -> None:
    assert DriveMode() == DriveMode(block_length=0, is_buffered=True, is_append_only=True)
