"""What counts as written, and how COPY ABORTED is put together."""

from __future__ import annotations

import pytest

from backplane.scsi.sense import FieldPointer, Forwarded, Sense, SenseKey
from backplane.wire.frames import Status
from mover_node.core.abort import (
    NOT_REACHABLE,
    CopyAbortedError,
    aborted,
    is_guard_failure,
    is_written,
    sense_of,
)
from mover_node.core.commands import Completed


def checked(**fields: object) -> Completed:
    sense = Sense(**{"key": SenseKey.NO_SENSE, **fields})  # type: ignore[arg-type]
    return Completed(Status.CHECK_CONDITION, sense.encode_fixed())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Completed(), True),
        # Early warning, and programmable early warning: the record is on the tape.
        (checked(end_of_medium=True, ascq=0x02), True),
        (checked(end_of_medium=True, ascq=0x07), True),
        # EOM alone is not enough: VOLUME OVERFLOW has it as well, and nothing was written.
        (checked(key=SenseKey.VOLUME_OVERFLOW, end_of_medium=True, ascq=0x02), False),
        # A deferred error is about an earlier record.
        (checked(end_of_medium=True, deferred=True), False),
        (checked(filemark=True), False),
        (Completed(Status.BUSY), False),
        (Completed(Status.CHECK_CONDITION), False),
    ],
)
def test_a_write_counts_if_it_was_good_or_only_warned(answer: Completed, expected: bool) -> None:
    assert is_written(answer) is expected


def test_a_guard_failure_is_known_by_its_sense() -> None:
    assert is_guard_failure(checked(key=SenseKey.ABORTED_COMMAND, asc=0x10, ascq=0x01))
    assert not is_guard_failure(checked(key=SenseKey.ABORTED_COMMAND, asc=0x3B))
    assert not is_guard_failure(Completed())
    assert not is_guard_failure(Completed(Status.CHECK_CONDITION, b"\x00"))


def test_sense_that_means_nothing_is_no_sense() -> None:
    assert sense_of(Completed(Status.CHECK_CONDITION, b"\xff" * 20)) is None


def test_a_residual_that_does_not_fit_is_not_valid_rather_than_wrong() -> None:
    error = CopyAbortedError(
        "away",
        NOT_REACHABLE,
        pointer=FieldPointer(field=16),
        destination=Forwarded(Status.BUSY, b""),
    )
    assert error.sense_data(segment=3, residual=0xFFFF_FFFF).information == 0xFFFF_FFFF
    sense = error.sense_data(segment=3, residual=1 << 32)
    assert (sense.information, sense.segment, sense.asc, sense.ascq) == (None, 3, 0x0D, 0x02)


def test_a_list_that_was_told_to_stop_says_commands_cleared() -> None:
    ended = aborted(2, "revoked")
    sense = Sense.decode(ended.sense)
    assert (ended.status, ended.detail) == (Status.TASK_ABORTED, "revoked")
    assert (sense.asc, sense.ascq, sense.segment) == (0x2F, 0x02, 1)
