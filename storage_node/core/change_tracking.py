"""Which generations of changes a volume remembers, and which of them answer a question.

    generation   1        2        3        4 (current)
                 |--------|--------|--------|------->
                        view     view     view

A *history* is an unbroken record of everything that was written to a volume; its `tracking` is a random name, so that a
history that was lost is never taken for its successor.  A view ends a generation in the instant in which it is made and
contains all writes of that generation and before.  What a backup of the view of generation u must copy, if its parent
was the view of generation s, are the changes of the generations s + 1 to u.

Ended generations are kept in *spans*: neighbours may be merged, and then answer for both.  An answer may name more than
was written, never less.  Nothing here touches bits or files: this is the book, `disk/change_store.py` keeps it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from backplane.crc import crc32c
from backplane.errors import MediumError, NotFoundError, UsageError

GRANULE_BYTES: Final = 64 * 1024
"""What one bit stands for: a 4 KiB write costs an incremental 64 KiB, and 6 TB need 12 MiB of bits per generation."""
SPANS_MAX: Final = 32
"""Ended spans that are kept apart; the oldest two become one when there are more."""
_VERSION: Final = 1
_TRACKING: Final = re.compile(r"[0-9a-f]{32}")
_CHECKSUM_CHARACTERS: Final = 9


class Point(NamedTuple):
    """A place in a history: "everything up to and including this generation".

    The two belong together: a generation without its history may name a place in another one.
    """

    tracking: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Ended generations whose changes lie in one bitmap; `checksum` is that of its bytes, if somebody computed it."""

    first: int
    last: int
    checksum: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"no span from generation {self.first} to {self.last}")


def history_lost(reason: str) -> NotFoundError:
    """Make the answer to a question that cannot be answered any more."""
    return NotFoundError(f"history lost: {reason}", hint="make a full backup")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Spans are ascending and without gaps, and end before `generation`, which collects the writes of now."""

    tracking: str
    reason: str
    """Why this history began, and the one before it was lost."""
    generation: int = 1
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if not _TRACKING.fullmatch(self.tracking):
            raise ValueError(f"{self.tracking!r} names no history")
        ends = [span.last for span in self.spans]
        begins = [span.first for span in self.spans] + [self.generation]
        if self.generation < 1 or any(
            begin != end + 1 for end, begin in zip(ends, begins[1:], strict=True)
        ):
            raise ValueError("the generations of the history have gaps")

    @property
    def oldest(self) -> int:
        """The oldest generation since whose end everything is remembered; 0 is the beginning."""
        return (self.spans[0].first if self.spans else self.generation) - 1

    def turned(self) -> History:
        """End the current generation and begin the next one."""
        ended = Span(first=self.generation, last=self.generation)
        return replace(self, generation=self.generation + 1, spans=(*self.spans, ended))

    def merge_due(self) -> tuple[Span, Span] | None:
        """Return the two spans that should become one."""
        return (self.spans[0], self.spans[1]) if len(self.spans) > SPANS_MAX else None

    def merged(self, pair: tuple[Span, Span], checksum: int) -> History:
        """Put one span in the place of two neighbours."""
        at = self.spans.index(pair[0])
        assert self.spans[at : at + 2] == pair
        one = Span(first=pair[0].first, last=pair[1].last, checksum=checksum)
        return replace(self, spans=(*self.spans[:at], one, *self.spans[at + 2 :]))

    def forgotten(self, before: int) -> History:
        """Drop what only questions about times before the end of generation `before` need."""
        return replace(self, spans=tuple(span for span in self.spans if span.last > before))

    def spans_between(self, since: Point, up_to: int) -> tuple[Span, ...]:
        """Return the ended spans that hold the generations after `since` up to `up_to`.

        Raises `NotFoundError` if some are not remembered.  If `up_to` is the current one, that has to be added.
        """
        if since.tracking != self.tracking:
            raise history_lost(self.reason)
        # No view ever was of generation 0, so whoever asks for it has mistaken something.
        if not 1 <= since.generation <= up_to <= self.generation:
            raise UsageError(
                f"there are no generations after {since.generation} up to {up_to}; {self.generation} is the current one"
            )
        if since.generation < self.oldest:
            raise history_lost(f"changes of generations up to {self.oldest} are not kept any more")
        return tuple(
            span for span in self.spans if span.last > since.generation and span.first <= up_to
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What stands beside the bitmaps."""

    history: History
    size_bytes: int
    boot_id: str
    """Under which boot of the machine it was in use."""
    closed_checksum: int | None
    """Checksum of the current bitmap, if everything was closed and is durable; None while it is in use."""

    def encode(self) -> bytes:
        """Return one line of JSON and one with its checksum."""
        history = self.history
        document = {
            "version": _VERSION,
            "granule_bytes": GRANULE_BYTES,
            "size_bytes": self.size_bytes,
            "boot_id": self.boot_id,
            "closed_checksum": self.closed_checksum,
            "tracking": history.tracking,
            "reason": history.reason,
            "generation": history.generation,
            "spans": [[span.first, span.last, span.checksum] for span in history.spans],
        }
        body = json.dumps(document, sort_keys=True).encode() + b"\n"
        return body + b"%08x\n" % crc32c(body)

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read what `encode` wrote, or raise `MediumError`."""
        body, checksum = data[:-_CHECKSUM_CHARACTERS], data[-_CHECKSUM_CHARACTERS:]
        if checksum != b"%08x\n" % crc32c(body):
            raise MediumError("the record of changes is damaged")
        try:
            document: dict[str, Any] = json.loads(body)
            if (document["version"], document["granule_bytes"]) != (_VERSION, GRANULE_BYTES):
                raise MediumError("the record of changes has another form")
            return cls(
                history=History(
                    tracking=document["tracking"],
                    reason=document["reason"],
                    generation=document["generation"],
                    spans=tuple(
                        Span(first=first, last=last, checksum=checksum)
                        for first, last, checksum in document["spans"]
                    ),
                ),
                size_bytes=document["size_bytes"],
                boot_id=document["boot_id"],
                closed_checksum=document["closed_checksum"],
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MediumError(f"the record of changes makes no sense: {error}") from error
