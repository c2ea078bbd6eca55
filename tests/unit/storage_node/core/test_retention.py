"""What forbids to erase a cartridge, in which order it is told, and that force overrides nothing but not knowing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from backplane.errors import UsageError
from storage_node.core.retention import EraseFacts, erase_refusal, kept_because, latest, moment

NOW = datetime(2026, 1, 11, 10, 43, 48, tzinfo=UTC)
PAST, FUTURE = "2026-01-11T10:43:48Z", "2026-01-11T10:43:49Z"
FREE = EraseFacts(tag="LTO001L8")


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"retain_until": (PAST,)}, ""),
        ({"retain_until": ("", "")}, ""),
        ({"retain_until": (PAST, FUTURE, PAST)}, f"retained until {FUTURE}"),
        ({"retain_until": ("2026-01-11T10:43:48.000001Z",)}, "retained until"),
        ({"retain_until": ("9999-12-31T23:59:59Z",)}, "retained until"),
        ({"is_held": True}, "is held"),
        ({"is_held": True, "is_worm": True, "retain_until": (FUTURE,)}, "is held"),
        ({"is_worm": True}, "WORM"),
        ({"is_worm": True, "retain_until": (FUTURE,)}, "retained until"),
        ({"is_write_protected": True}, "write-protected"),
    ],
)
def test_what_forbids_to_erase(changes: dict[str, Any], reason: str, is_forced: bool) -> None:
    told = erase_refusal(replace(FREE, **changes), now=NOW, is_forced=is_forced)
    assert bool(told) == bool(reason)
    assert reason in told
    # Not knowing what is on it makes nothing of that easier.
    unknown = replace(FREE, **changes, unknown="an LTFS volume")
    assert bool(erase_refusal(unknown, now=NOW, is_forced=True)) == bool(reason)


def test_force_is_for_what_is_not_known() -> None:
    facts = replace(FREE, unknown="an LTFS volume, 'ABC123'")
    assert "LTFS" in erase_refusal(facts, now=NOW, is_forced=False)
    assert erase_refusal(facts, now=NOW, is_forced=True) == ""


def test_retention_ends_at_its_moment() -> None:
    facts = replace(FREE, retain_until=(FUTURE,))
    assert erase_refusal(facts, now=NOW, is_forced=False)
    assert not erase_refusal(facts, now=NOW + timedelta(seconds=1), is_forced=False)


def test_who_keeps_for_a_while_says_what_time_it_is() -> None:
    facts = replace(FREE, retain_until=(FUTURE,))
    there = NOW.astimezone(timezone(timedelta(hours=2)))
    assert kept_because(facts, now=there) == (
        f"cartridge LTO001L8 is retained until {FUTURE} by the clock of its node, which is at {PAST}"
    )
    assert kept_because(replace(FREE, is_held=True), now=NOW)
    for lasting in ({"is_worm": True}, {"is_write_protected": True}, {"unknown": "LTFS"}):
        assert kept_because(replace(FREE, **lasting), now=NOW) == ""  # type: ignore[arg-type]


def test_the_latest_moment_counts_not_the_longest_text() -> None:
    assert latest(["", PAST, "2026-01-11T10:43:48.5Z", ""]) == "2026-01-11T10:43:48.5Z"
    assert latest([FUTURE, PAST]) == latest([PAST, FUTURE]) == FUTURE
    assert latest([]) == latest(["", ""]) == ""


@pytest.mark.parametrize(
    "text",
    ["", "tomorrow", "2026-01-11", "2026-01-11T10:43:48", "2026-13-11T10:43:48Z", FUTURE + "Z"],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        moment(text)
