"""Carry out a run of transfers with many requests in flight (the fast path's edge; the decisions are in core/pipeline).

    source  <--ask-- up to `reads_max` requests and `bytes_max` bytes ahead
            --head-> carry (splice) --> target    up to `writes_max` without an answer
                                        <-answer-

One thread does all of it.  It cannot deadlock: replies of the target are so small and so few that they fit its socket
buffer whatever we do; requests to a source that is busy sending are kept below `request_bytes_max`, which fits as
well; so each side can always take what the other sends.  Back-pressure needs no code: a slow target blocks the
carrying, and a source whose data nobody takes blocks in its own send.

To a tape, records may be stored on the way, so that the drive gets them in long stretches (core/store); at the
beginning of a run, to find out how fast the source is, and as long as the source is the slower one.

The run stops at the first thing that is not plain success.  What was asked for is then taken and dropped, what was
begun is answered, and transfers count as written only up to the first one that is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from backplane.errors import RemoteProtocolError, UnreachableError
from backplane.runtime import failpoints
from backplane.runtime.clock import SystemClock
from backplane.units import KIB, MIB
from backplane.wire.frames import ENTRY_BYTES, HEADER_BYTES
from mover_node.core.abort import is_guard_failure, is_written
from mover_node.core.commands import Completed, Kind, Ran, RunTransfers, Stop, Transfer
from mover_node.core.store import RecordStore, WaterMarks
from mover_node.streams.base import (
    BlockSource,
    BlockTarget,
    Carrier,
    Source,
    StreamSource,
    StreamTarget,
    Target,
)

WAIT_S_MIN: Final = 0.001
"""Shorter waits for a source are not looked into."""

LOST: Final = (UnreachableError, RemoteProtocolError)
"""What devices raise when they cannot be used any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """How much of a run may be under way at once.

    `writes_max` is also how many records may still be written behind the one that meets early warning, so it is small;
    two keep a drive busy, the others cover its longer pauses.
    """

    reads_max: int = 8
    writes_max: int = 4
    bytes_max: int = 16 * MIB
    request_bytes_max: int = 64 * KIB
    store_bytes_max: int = 0
    """Records held back on their way to a tape; 0: none ever is.  Those that go from there are in flight beside the
    reads, up to `writes_max`."""


class Run:
    """One run on its way."""

    def __init__(
        self,
        run: RunTransfers,
        source: Source,
        target: Target | None,
        carrier: Carrier[Source, Target],
        *,
        limits: InFlight,
        on_done: Callable[[Transfer], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock if clock is not None else SystemClock().monotonic
        self._store: RecordStore | None = None
        if run.kind is Kind.BACKUP and limits.store_bytes_max:
            self._store = RecordStore(
                WaterMarks(high_bytes=limits.store_bytes_max), now=self._clock()
            )
        self._stored: deque[tuple[Transfer, int, bytes | bytearray]] = deque()
        """Records that are held back, with their CRC."""
        self._kind = run.kind
        self._transfers = run.transfers
        self._source = source
        self._target = target
        self._carrier = carrier
        self._limits = limits
        self._on_done = on_done
        self._next: Transfer | None = next(run.transfers, None)
        self._asked: deque[Transfer] = deque()
        self._begun: deque[Transfer] = deque()
        self._bytes_in_flight = 0
        self._request_bytes = 0
        self._stop = Stop.DONE
        self._has_gap = False
        self._answer: Completed | None = None
        self._last: Transfer | None = None
        self._count = self._data_bytes = self._padding_bytes = 0
        self._reason = ""
        self._waits_for: Stop | None = None
        """Whose loss an error would be; None while data go from one to the other."""

    def carry_out(self) -> Ran:
        """Do all transfers, or as many as go well."""
        try:
            self._work()
        except LOST as error:
            self._lose(error.message)
        return Ran(
            stop=self._stop,
            last=self._last,
            transfers=self._count,
            data_bytes=self._data_bytes,
            padding_bytes=self._padding_bytes,
            answer=self._answer,
            source_position=self._source.position,
            destination_position=self._target.position if self._target is not None else 0,
            reason=self._reason,
            under_runs=self._store.under_runs if self._store is not None else 0,
        )

    def _work(self) -> None:
        while True:
            self._ask_ahead()
            if self._target is not None:
                while self._begun and (
                    len(self._begun) >= self._limits.writes_max
                    or not (self._asked or self._stored)
                    or self._target.has_answer()
                ):
                    self._take_answer(self._target)
            if self._store is not None and self._next_is_stored(self._store):
                self._send_stored(self._store)
            elif self._asked:
                self._move()
            elif self._next is None or self._stop is not Stop.DONE:
                return

    # --- storing ---------------------------------------------------------------------------------

    def _next_is_stored(self, store: RecordStore) -> bool:
        """Say whether a stored record goes next; before it, what has arrived may be stored."""
        if not self._asked:
            store.ended()
        elif store.sends and store.takes(self._asked[0].byte_count) and self._source.has_head():
            return False
        return store.sends

    def _send_stored(self, store: RecordStore) -> None:
        transfer, crc32c, data = self._stored.popleft()
        store.sent(transfer.byte_count)
        self._bytes_in_flight += transfer.byte_count
        self._waits_for = Stop.LOST_DESTINATION
        records = cast("StreamTarget", self._target)
        records.begin_record(transfer.byte_count, crc32c)
        records.put_data(data)
        self._begun.append(transfer)
        failpoints.passed("mover.transfer")

    def _notice_wait(self, store: RecordStore, seconds: float) -> None:
        """See whether the tape was idle while the source was waited for."""
        target = self._target
        if target is None or seconds < WAIT_S_MIN:
            return
        while self._begun and target.has_answer():
            self._take_answer(target)
        if self._count:
            store.waited(seconds, is_idle=not self._begun, now=self._clock())

    def _send_rest(self) -> None:
        """The source is gone: what was held back still goes to the tape."""
        store, target = self._store, self._target
        if store is None or target is None:
            return
        store.ended()
        while self._stored:
            if len(self._begun) >= self._limits.writes_max:
                self._take_answer(target)
            else:
                self._send_stored(store)

    def _drop_stored(self) -> None:
        if self._store is not None:
            self._stored.clear()
            self._store.drop()

    # --- reading ---------------------------------------------------------------------------------

    def _ask_ahead(self) -> None:
        while self._stop is Stop.DONE and self._next is not None and self._may_ask(self._next):
            transfer = self._next
            self._next = None
            self._waits_for = Stop.LOST_SOURCE
            if self._kind is Kind.BACKUP:
                blocks = cast("BlockSource", self._source)
                blocks.ask_blocks(transfer.entries, transfer.byte_count)
            else:
                cast("StreamSource", self._source).ask_record(transfer.byte_count)
            self._asked.append(transfer)
            self._bytes_in_flight += transfer.byte_count
            self._request_bytes += self._size_of_request(transfer)
            self._next = next(self._transfers, None)

    def _may_ask(self, transfer: Transfer) -> bool:
        busy = len(self._asked) + len(self._begun)
        if not busy:
            return True
        if transfer.needs_earlier_writes:
            return False
        limits = self._limits
        if (
            busy >= limits.reads_max
            or self._bytes_in_flight + transfer.byte_count > limits.bytes_max
        ):
            return False
        size = self._size_of_request(transfer)
        return not self._asked or self._request_bytes + size <= limits.request_bytes_max

    def _size_of_request(self, transfer: Transfer) -> int:
        entries = len(transfer.entries) if self._kind is Kind.BACKUP else 0
        return HEADER_BYTES + ENTRY_BYTES * entries

    def _move(self) -> None:
        """Take one reply of the source, and pass it on if all is well."""
        transfer = self._asked[0]
        self._waits_for = Stop.LOST_SOURCE
        store = self._store
        if store is None:
            head = self._source.receive_head()
        else:
            begun_at = self._clock()
            head = self._source.receive_head()
            self._notice_wait(store, self._clock() - begun_at)
        self._asked.popleft()
        self._request_bytes -= self._size_of_request(transfer)
        is_whole = head.answer.is_good and head.byte_count == transfer.byte_count
        if self._stop is Stop.DONE and not is_whole:
            self._stop = Stop.REFUSED
        if self._stop is not Stop.DONE:
            self._source.drop(head.byte_count)
            self._bytes_in_flight -= transfer.byte_count
            return
        if self._target is None:
            self._bytes_in_flight -= transfer.byte_count
            if self._source.check(head.byte_count, head.answer.crc32c):
                self._count_done(transfer)
            else:
                self._stop = Stop.DAMAGED
            return
        if store is not None and store.takes(transfer.byte_count):
            self._waits_for = Stop.LOST_SOURCE
            data = self._source.take_data(transfer.byte_count)
            self._stored.append((transfer, head.answer.crc32c, data))
            self._bytes_in_flight -= transfer.byte_count
            store.stored(transfer.byte_count, now=self._clock())
            return
        self._waits_for = Stop.LOST_DESTINATION
        if self._kind is Kind.BACKUP:
            records = cast("StreamTarget", self._target)
            records.begin_record(transfer.byte_count, head.answer.crc32c)
        else:
            blocks = cast("BlockTarget", self._target)
            blocks.begin_blocks(transfer.entries, transfer.byte_count, head.answer.crc32c)
        self._waits_for = None
        self._carrier.carry(self._source, self._target, transfer.byte_count)
        if store is not None:
            store.passed(transfer.byte_count)
        self._begun.append(transfer)
        failpoints.passed("mover.transfer")

    # --- writing ---------------------------------------------------------------------------------

    def _take_answer(self, target: Target) -> None:
        self._waits_for = Stop.LOST_DESTINATION
        answer = target.receive_answer()
        transfer = self._begun.popleft()
        self._bytes_in_flight -= transfer.byte_count
        if self._has_gap:
            return
        if is_written(answer):
            self._count_done(transfer)
            if not answer.is_good:
                self._stop, self._answer = Stop.WARNED, answer
                self._drop_stored()
            return
        self._has_gap = True
        self._drop_stored()
        if self._stop is not Stop.WARNED:
            # What happened to an earlier transfer counts more than what a later read has met meanwhile.
            self._stop = Stop.DAMAGED if is_guard_failure(answer) else Stop.REFUSED

    def _count_done(self, transfer: Transfer) -> None:
        self._last = transfer
        self._count += 1
        self._data_bytes += transfer.byte_count - transfer.padding_bytes
        self._padding_bytes += transfer.padding_bytes
        self._on_done(transfer)

    def _lose(self, reason: str) -> None:
        """One end has gone: find out which, and take what the target still answers."""
        self._reason = reason
        lost = self._waits_for
        if lost is None:
            lost = Stop.LOST_SOURCE if self._source.is_lost() else Stop.LOST_DESTINATION
        try:
            if lost is Stop.LOST_SOURCE:
                self._send_rest()
            while self._begun and self._target is not None:
                self._take_answer(self._target)
        except LOST:
            # Expected if it is the target that has gone, or if a frame to it broke off in the middle.
            self._has_gap = True
        if self._stop is not Stop.WARNED:
            self._stop = lost


def carry_out(
    run: RunTransfers,
    source: Source,
    target: Target | None,
    carrier: Carrier[Source, Target],
    *,
    limits: InFlight,
    on_done: Callable[[Transfer], None],
) -> Ran:
    """Carry out a run."""
    return Run(run, source, target, carrier, limits=limits, on_done=on_done).carry_out()
