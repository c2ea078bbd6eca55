"""Whose clock decides: the later one when a retention begins, the earlier one when it ends."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backplane.errors import RefusedError, RetainedError, UsageError
from backplane.ids import Epoch, VolumeTag
from backplane.testing.clock import ManualClock
from backplane.wire.messages import TapeErase, TapeRetain
from storage_node.core.retention import EraseFacts
from storage_node.node_clock import NodeClock
from storage_node.tape.medium_record import new_record
from storage_node.tape_keeping import permit_erase, retained

TAG = VolumeTag("LTO001L8")
NOW = datetime(2026, 1, 11, 12, 0, 0, tzinfo=UTC)
DAY = 86400
HOUR_LATER, DAY_LATER = "2026-01-11T13:00:00Z", "2026-01-12T12:00:00Z"


@pytest.fixture
def wall() -> ManualClock:
    return ManualClock(wall=NOW)


@pytest.fixture
def clock(wall: ManualClock) -> NodeClock:
    return NodeClock(wall, boot="a", folder=None)


def until(clock: NodeClock, written_last: str = "", **asked: Any) -> str:
    options = {"retain_until": "", "is_held": False} | asked
    message = TapeRetain(request=1, tag=TAG, **options)
    return retained(new_record(TAG), message, clock, written_last=written_last).retain_until


def erase(clock: NodeClock, now: str = "", **facts: Any) -> None:
    message = TapeErase(request=1, drive="drive-0", tag=TAG, epoch=Epoch(1), now=now)
    permit_erase(message, EraseFacts(tag=TAG, **facts), clock)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ""),
        ({"retain_s": DAY}, DAY_LATER),
        ({"retain_s": DAY, "now": "2020-01-01T00:00:00Z"}, DAY_LATER),
        ({"retain_s": DAY, "now": "2026-03-01T00:00:00Z"}, "2026-03-02T00:00:00Z"),
        ({"retain_s": DAY, "written_last": "2026-02-01T00:00:00Z"}, "2026-02-02T00:00:00Z"),
        ({"retain_s": DAY, "retain_until": HOUR_LATER}, DAY_LATER),
        ({"retain_s": DAY, "retain_until": "2027-01-01T00:00:00Z"}, "2027-01-01T00:00:00Z"),
        ({"retain_s": -1}, "9999-12-31T23:59:59Z"),
        ({"now": "2026-03-01T00:00:00Z"}, ""),
    ],
)
def test_a_retention_counts_from_the_latest_of_all_times(
    clock: NodeClock, asked: dict[str, Any], expected: str
) -> None:
    assert until(clock, **asked) == expected


def test_a_clock_that_has_fallen_back_shortens_nothing(wall: ManualClock, clock: NodeClock) -> None:
    wall.jump(NOW - timedelta(days=400))
    assert until(clock, retain_s=DAY, now="2025-01-01T00:00:00Z") == DAY_LATER


def test_a_part_of_a_second_is_not_lost(wall: ManualClock, clock: NodeClock) -> None:
    wall.advance(0.25)
    assert until(clock, retain_s=DAY) == "2026-01-12T12:00:01Z"


def test_what_is_no_moment_is_refused_and_both_clocks_are_in_the_audit(
    clock: NodeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError):
        until(clock, retain_s=DAY, now="soon")
    with pytest.raises(UsageError):
        erase(clock, now="soon")
    with caplog.at_level(logging.INFO, logger="storage_node.audit"):
        until(clock, retain_s=DAY, now=HOUR_LATER)
    [line] = [record for record in caplog.records if record.getMessage() == "retained"]
    assert (line.controller, line.clock) == (HOUR_LATER, "2026-01-11T12:00:00Z")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ours", "theirs", "is_over"),
    [(3600, 3600, True), (3600, 3599, False), (3599, 3600, False), (3600, None, True)],
)
def test_a_retention_is_over_when_both_clocks_say_so(
    wall: ManualClock, clock: NodeClock, ours: int, theirs: int | None, is_over: bool
) -> None:
    wall.advance(ours)
    told = "" if theirs is None else f"{NOW + timedelta(seconds=theirs):%Y-%m-%dT%H:%M:%SZ}"
    if is_over:
        erase(clock, told, retain_until=(HOUR_LATER,))
    else:
        with pytest.raises(RetainedError, match=f"is retained until {HOUR_LATER}"):
            erase(clock, told, retain_until=(HOUR_LATER,))


def test_a_clock_that_has_leapt_ends_no_retention_whoever_agrees(
    wall: ManualClock, clock: NodeClock
) -> None:
    wall.jump(NOW + timedelta(days=400))
    with pytest.raises(RetainedError, match=r"it has leapt .* storage-node accept-clock"):
        erase(clock, "2027-02-15T12:00:00Z", retain_until=(DAY_LATER,))
    erase(clock, retain_until=(HOUR_LATER,))  # Over also by what is believed.
    erase(clock)
    with pytest.raises(RefusedError, match="WORM"):
        erase(clock, is_worm=True)
