"""Rules of keeping: each by itself against a plain model, chains, and the borders of periods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from backplane.ids import BackupId
from controller.core.retention import DAY_S, Candidate, Rules, decide

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
GROUP = ("vol", "default")


def same(time: datetime) -> datetime:
    return time


def at(number: int, created: datetime, parent: int = 0, **more: Any) -> Candidate:
    fields = {"group": GROUP} | more
    return Candidate(backup=BackupId(number), created=created, parent=BackupId(parent), **fields)


def kept(rules: Rules, candidates: list[Candidate], **more: Any) -> list[int]:
    verdicts = decide(rules, candidates, **({"now": NOW, "to_local": same} | more))
    assert set(verdicts) == {each.backup for each in candidates}
    return sorted(number for number, verdict in verdicts.items() if verdict.is_kept)


def daily(count: int) -> list[Candidate]:
    """One full backup a day, the newest today: number 1 is the oldest."""
    return [at(n, NOW - timedelta(days=count - n)) for n in range(1, count + 1)]


def test_without_a_rule_everything_is_kept() -> None:
    assert kept(Rules(), daily(3)) == [1, 2, 3]


def test_the_last_ones_are_kept() -> None:
    assert kept(Rules(last=2), daily(5)) == [4, 5]
    assert kept(Rules(last=9), daily(5)) == [1, 2, 3, 4, 5]


def test_of_a_period_the_newest_is_kept() -> None:
    one_day = [at(n, datetime(2026, 3, 30, n, tzinfo=UTC)) for n in range(1, 6)]
    assert kept(Rules(daily=3), one_day) == [5]
    assert kept(Rules(hourly=3), one_day) == [3, 4, 5]


def test_weeks_are_those_of_the_calendar_also_around_new_year() -> None:
    # 2026-12-31 and 2027-01-03 are of week 53 of 2026, 2027-01-04 of the next.
    times = [datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 3, tzinfo=UTC)]
    times.append(datetime(2027, 1, 4, tzinfo=UTC))
    backups = [at(n, time) for n, time in enumerate(times, start=1)]
    assert kept(Rules(weekly=9), backups) == [2, 3]
    assert kept(Rules(monthly=9), backups) == [1, 3]
    assert kept(Rules(yearly=9), backups) == [1, 3]


def test_periods_without_a_backup_do_not_count() -> None:
    far = [at(1, datetime(2020, 5, 5, tzinfo=UTC)), at(2, datetime(2025, 5, 5, tzinfo=UTC))]
    assert kept(Rules(yearly=2), far) == [1, 2]


def test_a_day_is_one_of_local_time() -> None:
    late = [
        at(1, datetime(2026, 3, 29, 22, 30, tzinfo=UTC)),
        at(2, datetime(2026, 3, 30, 1, tzinfo=UTC)),
    ]
    assert kept(Rules(daily=2), late) == [1, 2]
    east = timezone(timedelta(hours=2))
    assert kept(Rules(daily=2), late, to_local=lambda t: t.astimezone(east)) == [2]


def test_an_hour_that_comes_twice_in_a_night_is_two_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    night = [at(n, datetime(2026, 10, 25, hour, 30, tzinfo=UTC)) for n, hour in ((1, 0), (2, 1))]
    local = [each.created.astimezone(berlin).hour for each in night]
    assert local == [2, 2]
    assert kept(Rules(hourly=2), night, to_local=lambda t: t.astimezone(berlin)) == [1, 2]


def test_what_is_not_older_is_kept() -> None:
    backups = [at(1, NOW - timedelta(seconds=61)), at(2, NOW - timedelta(seconds=60))]
    assert kept(Rules(within_s=60), backups) == [2]


def test_groups_do_not_know_of_each_other() -> None:
    backups = [*daily(3), at(9, NOW, group=("vol", "weekly")), at(10, NOW, group=("b", "default"))]
    assert kept(Rules(last=1), backups) == [3, 9, 10]


def test_all_reasons_are_told() -> None:
    (verdict,) = decide(
        Rules(last=2, hourly=1, daily=7, weekly=2, monthly=3, yearly=4, within_s=30 * DAY_S),
        [at(1, NOW, is_protected=True, user="used by job 7 (verify)")],
        now=NOW,
        to_local=same,
    ).values()
    assert verdict.reasons == (
        "last 1 of 2",
        f"hourly 1 of 1 ({NOW:%Y-%m-%d %H} h UTC+0000)",
        f"daily 1 of 7 ({NOW:%Y-%m-%d})",
        f"weekly 1 of 2 ({NOW:%G-W%V})",
        f"monthly 1 of 3 ({NOW:%Y-%m})",
        f"yearly 1 of 4 ({NOW:%Y})",
        "within 30 days",
        "protected",
        "used by job 7 (verify)",
    )


def test_other_durations_have_their_units() -> None:
    verdicts = decide(Rules(within_s=5400), [at(1, NOW)], now=NOW, to_local=same)
    assert verdicts[BackupId(1)].reasons == ("within 1h30m",)


def test_days_are_those_of_local_time_and_a_duration_is_not() -> None:
    """In the night to 2026-03-29 clocks in Berlin went from 02:00 to 03:00: that day had 23 hours."""
    berlin = ZoneInfo("Europe/Berlin")
    backups = [
        at(1, datetime(2026, 3, 28, 22, 59, tzinfo=UTC)),  # 23:59 on the 28th
        at(2, datetime(2026, 3, 28, 23, 1, tzinfo=UTC)),  # 00:01 on the 29th
        at(3, datetime(2026, 3, 29, 21, 59, tzinfo=UTC)),  # 23:59 on the 29th
        at(4, datetime(2026, 3, 29, 22, 1, tzinfo=UTC)),  # 00:01 on the 30th
    ]

    def reasons(rules: Rules, now: datetime) -> dict[int, tuple[str, ...]]:
        found = decide(rules, backups, now=now, to_local=lambda time: time.astimezone(berlin))
        return {int(number): each.reasons for number, each in found.items()}

    now = datetime(2026, 3, 29, 23, 0, tzinfo=UTC)
    assert reasons(Rules(daily=3), now) == {
        4: ("daily 1 of 3 (2026-03-30)",),
        3: ("daily 2 of 3 (2026-03-29)",),
        2: (),
        1: ("daily 3 of 3 (2026-03-28)",),
    }
    # 24 hours are 24 hours: at 01:01 on the 30th they reach back to 00:01 on the 29th.
    now = datetime(2026, 3, 29, 23, 1, tzinfo=UTC)
    told = ("within 1 day",)
    assert reasons(Rules(within_s=DAY_S), now) == {4: told, 3: told, 2: told, 1: ()}
    now += timedelta(seconds=1)
    assert reasons(Rules(within_s=DAY_S), now)[2] == ()


def test_what_a_kept_one_stands_on_is_kept_and_says_why() -> None:
    chain = [
        at(1, NOW - timedelta(days=9)),
        at(2, NOW, 1),
        at(3, NOW, 2),
        at(4, NOW - timedelta(days=8)),
    ]
    verdicts = decide(Rules(last=1), chain, now=NOW, to_local=same)
    assert verdicts[BackupId(2)].reasons == ("backup 3 stands on it",)
    assert verdicts[BackupId(1)].reasons == ("backup 2 stands on it",)
    assert verdicts[BackupId(4)].reasons == ()


@pytest.mark.parametrize(
    "rule", ["last", "hourly", "daily", "weekly", "monthly", "yearly", "within_s"]
)
def test_numbers_that_mean_nothing_are_refused_by_name(rule: str) -> None:
    with pytest.raises(UsageError, match=f"keep-{rule.removesuffix('_s')} -1"):
        Rules(**{rule: -1})
    if rule != "within_s":
        with pytest.raises(UsageError, match="out of range"):
            Rules(**{rule: 1_000_001})


times = st.integers(0, 3 * 366 * 24).map(lambda hours: NOW - timedelta(hours=hours))
PERIOD = {
    "hourly": "%Y-%m-%d %H",
    "daily": "%Y-%m-%d",
    "weekly": "%G-%V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}


@given(
    created=st.lists(times, max_size=12),
    counts=st.dictionaries(st.sampled_from(sorted(PERIOD)), st.integers(1, 4)),
)
def test_rules_together_keep_what_each_keeps(
    created: list[datetime], counts: dict[str, int]
) -> None:
    backups = [at(n, time) for n, time in enumerate(sorted(created), start=1)]
    wanted: set[int] = set()
    for rule, count in counts.items():
        newest = {each.created.strftime(PERIOD[rule]): each.backup for each in backups}
        wanted |= {newest[name] for name in sorted(newest, reverse=True)[:count]}
    if not counts:
        wanted = {each.backup for each in backups}
    assert kept(Rules(**counts), backups) == sorted(wanted)


@given(data=st.data())
def test_no_kept_backup_ever_loses_a_parent(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    chain = [
        at(
            n,
            data.draw(times),
            data.draw(st.integers(0, n - 1)),
            is_protected=data.draw(st.booleans()),
        )
        for n in range(1, count + 1)
    ]
    left = kept(Rules(last=1), chain)
    assert all(each.parent in left for each in chain if each.backup in left and each.parent)
