"""Sizes and durations: names, exact arithmetic, and the forms in which people write them.

Sizes are whole bytes, durations seconds as float.  People write `2GiB`, `64 MiB`, `1.5TB`, `80s`, `500ms`, `2 weeks`.
IEC prefixes are powers of 1024, SI prefixes powers of 1000, as their standards say; a bare number is bytes or
seconds.  What `format_size` and `format_duration` print, the parsers read back.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from backplane.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB
PIB: Final = 1024 * TIB

_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "pib": PIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "pb": 10**15,
}
_SECOND, _MINUTE, _HOUR, _DAY, _WEEK = 1, 60, 3600, 86400, 604800
_DURATION_UNITS: Final = {
    **dict.fromkeys(("us", "microsecond", "microseconds"), Decimal("0.000001")),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), Decimal(_SECOND)),
    **dict.fromkeys(("m", "min", "minute", "minutes"), Decimal(_MINUTE)),
    **dict.fromkeys(("h", "hour", "hours"), Decimal(_HOUR)),
    **dict.fromkeys(("d", "day", "days"), Decimal(_DAY)),
    **dict.fromkeys(("w", "week", "weeks"), Decimal(_WEEK)),
}
_PART: Final = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
_SIZE_MAX: Final = 2**64 - 1
_DURATION_MAX_S: Final = 1000 * 366 * _DAY
"""A thousand years: beyond it a duration is a typing mistake."""


def align_down(value: int, step: int) -> int:
    """Return the greatest multiple of `step` that is not above `value`."""
    assert value >= 0
    assert step > 0
    return value - value % step


def align_up(value: int, step: int) -> int:
    """Return the least multiple of `step` that is not below `value`."""
    return align_down(value + step - 1, step)


def div_up(value: int, step: int) -> int:
    """Return how many steps cover `value`."""
    return align_up(value, step) // step


def div_exact(value: int, step: int) -> int:
    """Divide where a remainder would be a bug."""
    quotient, rest = divmod(value, step)
    assert rest == 0, f"{value} is no multiple of {step}"
    return quotient


def parse_size(text: str) -> int:
    """Read a size such as `2GiB`, `512` or `1.5TB`; raises `UsageError`."""
    match = _PART.fullmatch(text)
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"not a size: {text!r}", hint="write for example 512, 64MiB or 1.5TB")
    exact = Decimal(match[1]) * factor
    if exact != int(exact):
        raise UsageError(f"not a whole number of bytes: {text!r}")
    if exact > _SIZE_MAX:
        raise UsageError(f"too large a size: {text!r}")
    return int(exact)


def format_size(size: int) -> str:
    """Write a size with an IEC unit: exactly if it is a whole number of units, else to three digits."""
    assert size >= 0
    for name, factor in (
        ("PiB", PIB),
        ("TiB", TIB),
        ("GiB", GIB),
        ("MiB", MIB),
        ("KiB", KIB),
    ):
        if size >= factor:
            whole, rest = divmod(size, factor)
            if not rest:
                return f"{whole}{name}"
            # Cut, not rounded: a size that is shown must never be more than there is.
            digits = 2 if whole < 10 else 1 if whole < 100 else 0
            shown = size * 10**digits // factor
            text = (
                str(shown)
                if not digits
                else f"{shown // 10**digits}.{shown % 10**digits:0{digits}}"
            )
            return f"{text}{name}"
    return f"{size}B"


def parse_duration(text: str) -> float:
    """Read a duration such as `80s`, `500ms`, `1h30m` or `2 weeks`, in seconds; raises `UsageError`."""
    total, at = Decimal(0), 0
    hint = "write for example 500ms, 80s, 1h30m or 2 weeks"
    if not text.strip():
        raise UsageError("an empty duration", hint=hint)
    while at < len(text):
        match = _PART.match(text, at)
        factor = _DURATION_UNITS.get(match[2].lower()) if match else None
        # A bare number is seconds only when it stands alone: "1h30" could be meant as minutes.
        is_alone = match is not None and match.span() == (0, len(text))
        if match is None or factor is None or not (match[2] or is_alone):
            raise UsageError(f"not a duration: {text!r}", hint=hint)
        total += Decimal(match[1]) * factor
        at = match.end()
    if total > _DURATION_MAX_S:
        raise UsageError(f"too long a duration: {text!r}")
    return float(total)


def format_duration(seconds: float) -> str:
    """Write a duration with its two largest units, such as `1h30m`, `80s` or `250ms`."""
    assert seconds >= 0
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 2 * _MINUTE:
        return f"{whole}s"
    for large, small, step, part in (
        ("w", "d", _WEEK, _DAY),
        ("d", "h", _DAY, _HOUR),
        ("h", "m", _HOUR, _MINUTE),
        ("m", "s", _MINUTE, _SECOND),
    ):
        if whole >= step:
            count, rest = whole // step, whole % step // part
            return f"{count}{large}{rest}{small}" if rest else f"{count}{large}"
    raise AssertionError("unreachable: at least two minutes")
