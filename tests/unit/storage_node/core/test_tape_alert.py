"""What a load counts, and which flags conditions raise."""

from __future__ import annotations

import pytest

from backplane.errors import SenseTriple
from backplane.scsi.tape_alert import TapeAlert, flags_of, words_of
from storage_node.core import tape_sense
from storage_node.core.tape_alert import LOADS_MAX, NEARING_LOADS, Health, medium_alerts


@pytest.mark.parametrize(
    ("triple", "words"),
    [
        (tape_sense.READ_ERROR, ("hard error", "media", "read failure")),
        (tape_sense.WRITE_ERROR, ("hard error", "media", "write failure")),
        (tape_sense.END_UNKNOWN, ("tape directory corrupted",)),
        (tape_sense.WRITE_PROTECTED, ("write protect",)),
        (tape_sense.OVERWRITE_REFUSED, ("write protect",)),
        (tape_sense.CANNOT_WRITE, ("unsupported format",)),
        (tape_sense.FILEMARK, ()),
        (tape_sense.GUARD_CHECK, ()),
        (None, ()),
    ],
)
def test_conditions_raise_flags(triple: SenseTriple | None, words: tuple[str, ...]) -> None:
    health = Health()
    health.count(triple)
    assert words_of(health.alerts) == words


def test_errors_and_bytes_add_up_and_flags_stay() -> None:
    health = Health()
    health.count(None, written=5)
    health.count(tape_sense.READ_ERROR)
    health.count(tape_sense.READ_ERROR)
    health.count(tape_sense.WRITE_ERROR)
    health.count(None, written=2, read=7)
    health.raise_alert(TapeAlert.EXPIRED_CLEANING)
    assert (health.bytes_written, health.bytes_read) == (7, 7)
    assert (health.read_errors, health.write_errors) == (2, 1)
    assert words_of(health.alerts)[-1] == "expired cleaning media"
    assert "read failure" in words_of(health.alerts)


@pytest.mark.parametrize(
    ("loads", "errors", "alerts"),
    [
        (0, 0, []),
        (NEARING_LOADS - 1, 0, []),
        (NEARING_LOADS, 0, [TapeAlert.NEARING_MEDIA_LIFE]),
        (LOADS_MAX, 0, [TapeAlert.MEDIA_LIFE]),
        (LOADS_MAX + 1, 1, [TapeAlert.MEDIA_LIFE, TapeAlert.MEDIA]),
    ],
)
def test_a_medium_carries_its_flags(loads: int, errors: int, alerts: list[TapeAlert]) -> None:
    assert medium_alerts(loads=loads, errors=errors) == flags_of(alerts)
