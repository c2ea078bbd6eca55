"""Which backups are kept: rules over the times of backups, and what stands on what.  Pure.

    keep-last N                      the N newest
    keep-hourly|daily|...|yearly N   the newest of each of the last N hours, days, ISO weeks ... with a backup
    keep-within D                    everything not older than D

The rules are asked one by one and do not know of each other: a backup that several want is kept once and told with all
reasons.  They are asked for each *group* by itself: the backups of one volume in one pool.  Periods are those of local
time.  Beside what the rules want, a backup is kept if

    it is protected,
    a kept one stands on it: an incremental is nothing without its parents, or
    somebody uses it: the caller says who.

Without any rule everything is kept: forgetting has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Final

from backplane.errors import UsageError
from backplane.ids import BackupId
from backplane.units import format_duration

DAY_S: Final = 86_400
COUNT_MAX: Final = 1_000_000
"""Of one rule: nobody has more backups of a volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How many of each kind are kept; 0 leaves a rule out.  Raises `UsageError` for numbers that mean nothing."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_s: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value < 0 or (each.name != "within_s" and value > COUNT_MAX):
                raise UsageError(f"keep-{each.name.removesuffix('_s')} {value} is out of range")

    @property
    def are_empty(self) -> bool:
        """Whether nothing was said."""
        return self == Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A completed backup.  `parent` is the one it stands on, 0 if none; `user` says who uses it, empty if nobody."""

    backup: BackupId
    group: tuple[str, str]
    created: datetime
    parent: BackupId
    is_protected: bool = False
    is_lost: bool = False
    """Nothing of it is left on any cartridge: no rule wants it."""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a backup.  `reasons` is what keeps it; empty if nothing does, and it may go."""

    backup: BackupId
    reasons: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether anything keeps it."""
        return bool(self.reasons)


def _week(time: datetime) -> str:
    year, week, _ = time.isocalendar()
    return f"{year:04}-W{week:02}"


_PERIODS: Final[tuple[tuple[str, Callable[[datetime], str]], ...]] = (
    ("hourly", lambda time: time.strftime("%Y-%m-%d %H h UTC%z")),
    ("daily", lambda time: time.strftime("%Y-%m-%d")),
    ("weekly", _week),
    ("monthly", lambda time: time.strftime("%Y-%m")),
    ("yearly", lambda time: time.strftime("%Y")),
)
"""Rule, and the name of the period, which two backups of one have in common.

An hour that comes twice in a night is two hours: the offset from UTC is in its name.
"""


def decide(
    rules: Rules,
    candidates: Iterable[Candidate],
    *,
    now: datetime,
    to_local: Callable[[datetime], datetime],
) -> dict[BackupId, Verdict]:
    """Return a verdict for each candidate; times must have a zone.

    Parents that are no candidates are nobody's business here: the caller has all completed backups of a volume among
    the candidates, or chains across the border of its choice are not seen.
    """
    known = {each.backup: each for each in candidates}
    verdicts = {number: Verdict(backup=number) for number in known}
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for each in known.values():
        if not each.is_lost or rules.are_empty:
            groups.setdefault(each.group, []).append(each)
    for members in groups.values():
        members.sort(key=lambda each: (each.created, each.backup), reverse=True)
        for number, reason in _wanted(rules, members, now=now, to_local=to_local):
            _add(verdicts, number, reason)
    for each in known.values():
        if each.is_protected:
            _add(verdicts, each.backup, "protected")
        if each.user:
            _add(verdicts, each.backup, each.user)
    _keep_parents(known, verdicts)
    return verdicts


def _wanted(
    rules: Rules,
    members: Sequence[Candidate],
    *,
    now: datetime,
    to_local: Callable[[datetime], datetime],
) -> Iterable[tuple[BackupId, str]]:
    """Yield which of a group, newest first, the rules want, and why."""
    if rules.are_empty:
        yield from ((each.backup, "no rule") for each in members)
        return
    for number, each in enumerate(members[: rules.last], start=1):
        yield each.backup, f"last {number} of {rules.last}"
    for name, period_of in _PERIODS:
        wanted = getattr(rules, name)
        seen: set[str] = set()
        for each in members:
            if len(seen) == wanted:
                break
            period = period_of(to_local(each.created))
            if period not in seen:
                seen.add(period)
                yield each.backup, f"{name} {len(seen)} of {wanted} ({period})"
    if rules.within_s:
        for each in members:
            if (now - each.created).total_seconds() <= rules.within_s:
                yield each.backup, f"within {_span(rules.within_s)}"


def _span(seconds: float) -> str:
    """Write a duration as people do that count in days; 30 days are no `4w2d`."""
    days, rest = divmod(seconds, DAY_S)
    if rest:
        return format_duration(seconds)
    return "1 day" if days == 1 else f"{days:.0f} days"


def _add(verdicts: dict[BackupId, Verdict], number: BackupId, reason: str) -> None:
    before = verdicts[number]
    verdicts[number] = replace(before, reasons=(*before.reasons, reason))


def _keep_parents(known: Mapping[BackupId, Candidate], verdicts: dict[BackupId, Verdict]) -> None:
    """Keep what kept ones stand on, and what that stands on; a copy that stands for its original may be newer."""
    todo = [number for number in sorted(known) if verdicts[number].is_kept]
    while todo:
        number = todo.pop()
        parent = known[number].parent
        if parent in known and parent != number:
            if not verdicts[parent].is_kept:
                todo.append(parent)
            _add(verdicts, parent, f"backup {number} stands on it")
