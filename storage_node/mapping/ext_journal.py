"""Replay of a journal in memory: which copy of which block will be on the volume when a kernel has recovered it.

    ring    first ........ start [ D c c c C ][ D c c R C ][ D c c ... torn          D descriptor, c copies, R revoke,
            sequence                 12           13         14                      C commit

A transaction counts when its commit block is there; the first block that is not the next one of the log ends it.  A
revoke cancels all copies of its transaction and of those before; the newest copy that is left wins.  Only places are
kept.  Checksums decide as they do in the kernel: one that fails in a transaction that was never committed is the end
of the log, anywhere else the journal is damaged, and what was recovered until then is told to be incomplete.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Final

from backplane.units import MIB
from storage_node.mapping.ext_blocks import Run
from storage_node.mapping.ext_journal_format import (
    COMMIT,
    DESCRIPTOR,
    REVOKE,
    JournalSuperblock,
    Tag,
    commit_seconds,
    crc32_big,
    has_fast_commit,
    has_right_commit,
    has_right_copy,
    has_right_tail,
    parse_header,
    parse_revoked,
    parse_superblock,
    parse_tags,
)
from storage_node.mapping.ext_superblock import CRC_MASK
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError

READ_BYTES: Final = MIB
LOOK_AHEAD_BYTES: Final = 8 * MIB
"""Behind the end of the log, what is looked at for more of it."""
COPIES_MAX: Final = 1024 * 1024
"""Blocks that a journal may have changed: 4 GiB, with blocks of 4 KiB."""


class JournalFile:
    """The blocks of a journal by their number in it."""

    def __init__(self, source: Source, block_bytes: int, runs: list[Run]) -> None:
        self._source = source
        self.block_bytes = block_bytes
        self._firsts = [run.first for run in runs]
        self._runs = runs
        self.length = 0
        """Blocks before the first hole."""
        for run in runs:
            if run.first != self.length or run.is_unwritten:
                break
            self.length += run.length
        self._window_at = 0
        self._window = b""

    def byte_of(self, index: int) -> int:
        """Return where a block is on the volume."""
        run = self._runs[bisect_right(self._firsts, index) - 1]
        return (run.block + index - run.first) * self.block_bytes

    def read(self, index: int) -> bytes:
        """Read one block; what follows is read with it."""
        at = (index - self._window_at) * self.block_bytes
        if not 0 <= at < len(self._window):
            run = self._runs[bisect_right(self._firsts, index) - 1]
            count = min(run.first + run.length - index, max(READ_BYTES // self.block_bytes, 1))
            self._window = self._source.read(self.byte_of(index), count * self.block_bytes)
            self._window_at, at = index, 0
        return self._window[at : at + self.block_bytes]


class Replay:
    """Reads the log of a journal, once."""

    def __init__(self, file: JournalFile, block_count: int) -> None:
        self._file = file
        self._block_count = block_count
        if not file.length:
            raise DamagedError("the journal has no blocks")
        self.journal: JournalSuperblock = parse_superblock(file.read(0), file.length)
        self.problems: list[str] = []
        self.transactions = 0
        self._newest: dict[int, int] = {}
        """Block -> number of the copy that is the newest."""
        self._indexes = array("I")
        self._sequences = array("I")
        self._checksums = array("I")
        self._escaped = bytearray()
        """Of each copy: where in the journal, transaction, checksum, whether it is escaped."""
        self._left = self.journal.end - self.journal.first
        """Blocks of the ring that were not yet visited."""
        self._next = self.journal.start
        self._sequence = self.journal.sequence
        self._last_seconds = 0
        self._outside = 0
        """Copies of blocks that the volume has not."""

    def run(self) -> dict[int, int]:
        """Return the copies as an overlay takes them: block -> byte << 1 | escaped."""
        if self.journal.start:
            while self._take_transaction():
                self._sequence = self._sequence + 1 & CRC_MASK
                self.transactions += 1
            self._look_ahead()
            self._look_for_fast_commits()
        if self._outside:
            self.problems.append(
                f"the journal changes {self._outside} blocks outside of the volume"
            )
        return self._checked_copies()

    # --- one transaction ---------------------------------------------------------------------------

    def _take_transaction(self) -> bool:
        """Take the next transaction; say whether there was one."""
        copies: list[tuple[int, Tag]] = []
        revoked: list[int] = []
        is_doubtful = False
        whole_sum = CRC_MASK
        while self._left > 0:
            index = self._step()
            block = self._file.read(index)
            kind, sequence = parse_header(block)
            if sequence != self._sequence:
                return False
            if kind == COMMIT:
                if not self._is_committed(block, is_doubtful, whole_sum):
                    return False
                self._apply(copies, revoked)
                return True
            if kind not in (DESCRIPTOR, REVOKE):
                return False
            is_doubtful |= not has_right_tail(block, self.journal)
            if kind == REVOKE:
                try:
                    revoked += parse_revoked(block, self.journal)
                except DamagedError:
                    is_doubtful = True
                continue
            if self.journal.sums == 1:
                whole_sum = crc32_big(block, whole_sum)
            for tag in parse_tags(block, self.journal):
                index = self._step()
                copies.append((index, tag))
                if self.journal.sums == 1 and self._left >= 0:
                    whole_sum = crc32_big(self._file.read(index), whole_sum)
        if self._left < 0:
            self.problems.append("the journal has a transaction that is longer than its log")
        return False

    def _step(self) -> int:
        """Return the next block of the ring, and go on."""
        index = self._next
        self._left -= 1
        self._next = index + 1 if index + 1 < self.journal.end else self.journal.first
        return index

    def _is_committed(self, block: bytes, is_doubtful: bool, whole_sum: int) -> bool:
        seconds = commit_seconds(block)
        if not is_doubtful and has_right_commit(block, self.journal, whole_sum):
            self._last_seconds = seconds
            return True
        # What is older than the transaction before it was left there by an earlier life of the journal.
        is_stale = seconds < self._last_seconds
        if not is_stale and (is_doubtful or not self.journal.is_async or self._goes_on()):
            self._tell_damage()
        return False

    def _goes_on(self) -> bool:
        """Say whether a later transaction follows one that was torn: then it was no power cut that tore it."""
        if self._left <= 0:
            return False
        following = self._sequence + 1 & CRC_MASK
        kind, sequence = parse_header(self._file.read(self._next))
        return kind in (DESCRIPTOR, REVOKE, COMMIT) and sequence == following

    def _apply(self, copies: list[tuple[int, Tag]], revoked: list[int]) -> None:
        for index, tag in copies:
            if tag.block >= self._block_count:
                self._outside += 1
                continue
            self._newest[tag.block] = len(self._indexes)
            self._indexes.append(index)
            self._sequences.append(self._sequence)
            self._checksums.append(tag.checksum)
            self._escaped.append(tag.is_escaped)
        if len(self._newest) > COPIES_MAX:
            raise UnsupportedError(f"a journal that changes more than {COPIES_MAX} blocks")
        for block in revoked:
            self._newest.pop(block, None)

    # --- behind the last transaction ---------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Look for transactions behind the end of the log: then it has not ended, one of its blocks is damaged.

        No transaction begins before the one before it is complete.  Only checksums tell what follows from what an
        earlier life of the journal has left.
        """
        journal = self.journal
        if not journal.has_block_sums:
            return
        index = self._next
        for _ in range(min(self._left, LOOK_AHEAD_BYTES // self._file.block_bytes)):
            block = self._file.read(index)
            kind, sequence = parse_header(block)
            is_later = 0 < (sequence - self._sequence & CRC_MASK) <= journal.end
            if is_later and kind in (DESCRIPTOR, REVOKE) and has_right_tail(block, journal):
                self._tell_damage()
                return
            index = index + 1 if index + 1 < journal.end else journal.first

    def _tell_damage(self) -> None:
        problem = f"transaction {self._sequence} of the journal is damaged"
        if problem not in self.problems:
            self.problems.append(problem)

    def _look_for_fast_commits(self) -> None:
        journal = self.journal
        # The area begins one block behind the end of the ring.
        if not journal.has_fast_commit or journal.end + 1 >= journal.block_count:
            return
        area = map(self._file.read, range(journal.end + 1, journal.block_count))
        if has_fast_commit(area, self._sequence):
            self.problems.append(
                "the journal has fast commits, which are not replayed: the last changes are missing"
            )

    def _checked_copies(self) -> dict[int, int]:
        """Return the copies that win; those that fail their checksum are left out, and told."""
        damaged = []
        found = {}
        for block, number in sorted(self._newest.items(), key=lambda item: item[1]):
            index = self._indexes[number]
            if self.journal.has_block_sums and not has_right_copy(
                self._file.read(index),
                self._sequences[number],
                self._checksums[number],
                self.journal,
            ):
                damaged.append(block)
                continue
            found[block] = self._file.byte_of(index) << 1 | self._escaped[number]
        if damaged:
            self.problems.append(
                f"{len(damaged)} blocks in the journal fail their checksums, the first block {damaged[0]}"
            )
        return found
