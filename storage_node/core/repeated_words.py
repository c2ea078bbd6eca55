"""What is said again and again, said when it changes, and otherwise now and then.

A controller asks until it is answered, so what cannot be done is refused every few seconds, in the same words.  About
one thing the same words are told at once, then after a minute, and then each time after twice as long, at most an hour:
who reads the log sees that it lasts, and still finds everything else in it.  What was not heard for a minute is new.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

AGAIN_S: Final = 60.0
"""How long the same words about the same thing are left out, the first time."""

AGAIN_MAX_S: Final = 3600.0

THINGS_MAX: Final = 1000
"""Things of which is remembered what was said last; of more, the one that was heard of longest ago is forgotten."""


@dataclass(slots=True)
class _Said:
    words: str
    heard_at: float
    again_at: float
    pause_s: float = AGAIN_S
    left_out: int = 0


class RepeatedWords:
    """What was said last of each thing.  Not for several threads at once."""

    def __init__(self) -> None:
        self._said: dict[Hashable, _Said] = {}

    def left_out(self, thing: Hashable, words: str, *, now: float) -> int | None:
        """Return how often these words were left out since they were said last, if they are to be said; else None.

        `now` is monotonic, in seconds.
        """
        known = self._said.pop(thing, None)
        if known is None or known.words != words or now - known.heard_at > AGAIN_S:
            self._put(thing, _Said(words=words, heard_at=now, again_at=now + AGAIN_S))
            return 0
        self._put(thing, known)
        known.heard_at = now
        if now < known.again_at:
            known.left_out += 1
            return None
        known.pause_s = min(2 * known.pause_s, AGAIN_MAX_S)
        known.again_at = now + known.pause_s
        told, known.left_out = known.left_out, 0
        return told

    def _put(self, thing: Hashable, said: _Said) -> None:
        self._said[thing] = said
        if len(self._said) > THINGS_MAX:
            del self._said[next(iter(self._said))]
