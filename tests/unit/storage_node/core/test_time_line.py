"""What a node believes of its clock: never that time has leapt, and always what makes a retention longer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage_node.core.time_line import AWAY_MAX_S, LEAP_MAX_S, Reading, TimeLine, later, written

NOW = datetime(2026, 1, 11, 12, 0, 0, tzinfo=UTC)
DAY = 86400.0


def reading(*, up: float = 0.0, ahead: float = 0.0, boot: str = "a") -> Reading:
    """What the clocks say `up` seconds after the first reading, if the wall clock is ahead by so much."""
    return Reading(boot=boot, uptime_s=1000 + up, wall=NOW + timedelta(seconds=up + ahead))


BEGUN = TimeLine.begun(reading())


def test_a_clock_that_goes_as_time_does_is_believed_for_years() -> None:
    line = BEGUN
    for day in range(1000):
        at = reading(up=day * DAY, ahead=day * 0.5)
        line = line.following(at)
        assert (line.doubt(at), line.earliest(at), line.latest(at)) == ("", at.wall, at.wall)
    assert line.newest == at.wall


@pytest.mark.parametrize(("ahead", "is_believed"), [(LEAP_MAX_S, True), (LEAP_MAX_S + 1, False)])
def test_a_clock_that_leaps_forward_while_the_machine_is_up_is_not_believed(
    ahead: float, is_believed: bool
) -> None:
    at = reading(up=10, ahead=ahead)
    line = BEGUN.following(at)
    assert line.doubt(at) is not is_believed
    assert line.earliest(at) == reading(up=10, ahead=LEAP_MAX_S).wall
    assert line.latest(at) == at.wall, "if it is right, what begins now lasts as long as it should"
    assert line.newest == (at.wall if is_believed else NOW)


def test_small_leaps_do_not_add_up_to_a_large_one() -> None:
    line = BEGUN
    for step in range(1, 10):
        at = reading(up=step, ahead=step * LEAP_MAX_S / 2)
        line = line.following(at)
    assert line.doubt(at)
    assert line.earliest(at) == reading(up=9, ahead=LEAP_MAX_S).wall


def test_a_clock_that_falls_back_ends_nothing_earlier_and_begins_nothing_earlier() -> None:
    line = BEGUN.following(reading(up=DAY))
    back = reading(up=DAY + 1, ahead=-40 * DAY)
    line = line.following(back)
    assert line.doubt(back) == ""
    assert line.earliest(back) == back.wall
    assert line.latest(back) == reading(up=DAY).wall, "time never goes back"
    # And once it is right again, nothing has leapt.
    assert line.following(reading(up=DAY + 2)).doubt(reading(up=DAY + 2)) == ""


@pytest.mark.parametrize(("off", "is_believed"), [(AWAY_MAX_S, True), (AWAY_MAX_S + 1, False)])
def test_a_machine_may_have_been_off_for_a_week(off: float, is_believed: bool) -> None:
    at = Reading(boot="b", uptime_s=30, wall=NOW + timedelta(seconds=off))
    line = BEGUN.following(at)
    assert line.doubt(at) is not is_believed
    if is_believed:
        # From here on only the time since this start counts.
        after = Reading(boot="b", uptime_s=31, wall=at.wall + timedelta(seconds=LEAP_MAX_S + 2))
        assert "since this machine was started" in line.following(after).doubt(after)
    else:
        assert "before a restart of the machine, at 2026-01-11T12:00:00Z" in line.doubt(at)
        assert "storage-node accept-clock" in line.doubt(at)


def test_a_clock_that_is_wrong_at_the_start_and_is_put_right_then_has_not_leapt() -> None:
    early = Reading(boot="b", uptime_s=5, wall=datetime(1970, 1, 1, tzinfo=UTC))
    line = BEGUN.following(early)
    assert line == BEGUN
    assert line.latest(early) == NOW
    right = Reading(boot="b", uptime_s=65, wall=NOW + timedelta(hours=5))
    line = line.following(right)
    assert (line.doubt(right), line.boot, line.newest) == ("", "b", right.wall)


def test_what_a_person_has_looked_at_is_believed() -> None:
    leapt = reading(up=10, ahead=40 * DAY)
    assert BEGUN.following(leapt).doubt(leapt)
    line = TimeLine.begun(leapt)
    assert (line.doubt(leapt), line.earliest(leapt)) == ("", leapt.wall)


def test_a_line_is_kept_and_taken_up_again() -> None:
    line = BEGUN.following(reading(up=3.5))
    assert TimeLine.from_json(json.loads(json.dumps(line.to_json()))) == line


@pytest.mark.parametrize(
    "changes",
    [{"wall": "soon"}, {"wall": "2026-01-11T12:00:00"}, {"newest": 5}, {"uptime_s": "long"}],
)
def test_what_is_no_line_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        TimeLine.from_json(BEGUN.to_json() | changes)
    with pytest.raises(KeyError):
        TimeLine.from_json({})


def test_the_calendar_ends_and_nothing_breaks_there() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert later(last, 10.0) == datetime.max.replace(tzinfo=UTC)
    at = Reading(boot="a", uptime_s=1001, wall=last)
    assert written(TimeLine.begun(at).following(at).ceiling(at)) == "9999-12-31T23:59:59Z"
