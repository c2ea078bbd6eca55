"""Until when a cartridge must not be erased, and everything else that forbids it: the node's own refusal.

Nobody is asked but the cartridge and the clock: not the controller, not a grant.  Retention is only ever extended, so
a message that comes late or twice takes nothing back.  The one thing that `force` overrides is not knowing what is on a
tape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from backplane.errors import UsageError

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)


def moment(text: str) -> datetime:
    """Return a moment in UTC, as RFC 3339 writes it with `Z`; raises `UsageError`."""
    if not _MOMENT.fullmatch(text):
        raise UsageError(f"no moment in UTC: {text[:40]!r}")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"no moment in UTC: {text!r} ({error})") from error


def latest(moments: Iterable[str]) -> str:
    """Return the latest of some moments; "" is none at all."""
    return max(filter(None, moments), key=moment, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseFacts:
    """What is known of a cartridge before it is erased.

    `retain_until` are all moments that anything about it names.  `unknown` says why it is not known what is on it (a
    tape of somebody else, damage), "" for a blank one and for one of ours.
    """

    tag: str
    retain_until: tuple[str, ...] = ()
    is_held: bool = False
    is_worm: bool = False
    is_write_protected: bool = False
    unknown: str = ""


def kept_because(facts: EraseFacts, *, now: datetime, doubt: str = "") -> str:
    """Say what keeps a cartridge for now, "" if nothing does; `now` is the clock of this node, which is named.

    `doubt` says why the clock is not believed, if it is not.
    """
    if facts.is_held:
        return f"cartridge {facts.tag} is held: nothing is erased while a hold lasts"
    until = latest(facts.retain_until)
    if until and now < moment(until):
        clock = f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return (
            f"cartridge {facts.tag} is retained until {until} "
            f"by the clock of its node, which is at {clock}"
        ) + (f" ({doubt})" if doubt else "")
    return ""


def erase_refusal(facts: EraseFacts, *, now: datetime, is_forced: bool, doubt: str = "") -> str:
    """Say why a cartridge must not be erased, "" if it may be."""
    kept = kept_because(facts, now=now, doubt=doubt)
    if kept:
        return kept
    if facts.is_worm:
        return f"cartridge {facts.tag} is WORM: it is written once"
    if facts.is_write_protected:
        return f"cartridge {facts.tag} is write-protected"
    if facts.unknown and not is_forced:
        return f"cartridge {facts.tag} is none of ours: {facts.unknown}"
    return ""
