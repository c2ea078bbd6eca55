"""Until when a cartridge is kept that was written last at some moment: reckoned alike wherever it is reckoned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

FOREVER: Final = "9999-12-31T23:59:59Z"
"""The moment that stands for "for ever"."""

RETAIN_FOREVER: Final = -1


def retain_until(retain_s: int, last_write: str) -> str:
    """Return until when a cartridge is kept that was written last then (RFC 3339); empty if it is not."""
    if retain_s == 0:
        return ""
    if retain_s == RETAIN_FOREVER:
        return FOREVER
    try:
        moment = datetime.fromisoformat(last_write) + timedelta(seconds=retain_s)
    except OverflowError:
        return FOREVER
    return min(moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), FOREVER)
