"""The CRC32C of whole files, of what the cartridges have of them: what a file is compared with when it is in its place.

The tape nodes read the records again and sum the pieces that belong to a file; holes, and what no cartridge has because
it was zero, are summed without anybody reading them.  All of it is put together in the order of the file.

A record that cannot be read takes those files with it that have a piece of it, and no others: a request that fails is
cut in two until it is one record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from backplane.crc import EMPTY, combine, crc32c
from backplane.errors import MediumError
from backplane.file_map.model import FileRow
from controller.catalog.store import PartRow
from controller.core.chain import Reading
from controller.core.desk import Desk
from controller.core.file_check import RANGES_PER_CHECK, RECORDS_BYTES_PER_CHECK, on_tape
from controller.core.job import Job
from controller.core.part_reader import PartReader
from controller.core.procedure import Step
from controller.core.translation import content_of

SPAN_BYTES_MAX: Final = 1 << 62
_ZERO: Final = crc32c(b"\0")


class Span(NamedTuple):
    """Bytes of a record that are bytes of a file."""

    record: int
    first_byte: int
    byte_count: int
    file: int
    file_byte: int


class FileSums:
    """The sums of files, which come in any order."""

    def __init__(self, files: Sequence[FileRow]) -> None:
        self._files = files
        self._sums: list[list[tuple[int, int, int]]] = [[] for _ in files]
        self._lost: set[int] = set()
        self._runs = sorted(
            (run.volume_byte, run.byte_count, number, run.file_byte)
            for number, row in enumerate(files)
            for run in content_of(row)
        )
        self._ends = [begin + count for begin, count, _, _ in self._runs]

    def spans(self, reading: Reading) -> Iterator[Span]:
        """Yield what a part has of the files, in its order; no span lies in two records."""
        block_bytes, size = reading.row.block_bytes, reading.row.record_bytes
        start = reading.part.stream_start
        first, end = start // block_bytes, (start + reading.part.stream_bytes) // block_bytes
        for position, lba, blocks in reading.picks.slice(first, end):
            at = position * block_bytes - start
            for offset, count, file, file_byte in self._within(
                lba * block_bytes, blocks * block_bytes
            ):
                yield from _cut(at + offset, count, file, file_byte, record_bytes=size)

    def _within(self, begin: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        index = bisect_right(self._ends, begin)
        while index < len(self._runs) and self._runs[index][0] < begin + count:
            place, _, file, file_byte = self._runs[index]
            first, end = max(begin, place), min(begin + count, self._ends[index])
            yield first - begin, end - first, file, file_byte + first - place
            index += 1

    def take(self, spans: Sequence[Span], crcs: Sequence[int]) -> None:
        """Take the sums of spans."""
        for span, crc in zip(spans, crcs, strict=True):
            self._sums[span.file].append((span.file_byte, span.byte_count, crc))

    def lose(self, spans: Iterable[Span]) -> None:
        """Take note that spans cannot be read."""
        self._lost.update(span.file for span in spans)

    def whole(self, number: int) -> int | None:
        """Return the sum of a whole file, None if some of it could not be read."""
        if number in self._lost:
            return None
        total, at = EMPTY, 0
        for file_byte, count, crc in sorted(self._sums[number]):
            assert file_byte >= at, "a piece of a file was summed twice"
            total = combine(
                combine(total, zeros(file_byte - at), second_bytes=file_byte - at),
                crc,
                second_bytes=count,
            )
            at = file_byte + count
        left = self._files[number].size - at
        return combine(total, zeros(left), second_bytes=left)


def zeros(count: int) -> int:
    """Return the CRC32C of `count` zeros."""
    assert 0 <= count <= SPAN_BYTES_MAX
    total, power, size = EMPTY, _ZERO, 1
    while count:
        if count & 1:
            total = combine(total, power, second_bytes=size)
        power = combine(power, power, second_bytes=size)
        size *= 2
        count >>= 1
    return total


def _cut(at: int, count: int, file: int, file_byte: int, *, record_bytes: int) -> Iterator[Span]:
    while count:
        record, offset = divmod(at, record_bytes)
        taken = min(count, record_bytes - offset)
        yield Span(record, offset, taken, file, file_byte)
        at, file_byte, count = at + taken, file_byte + taken, count - taken


def sum_files(desk: Desk, job: Job, readings: Sequence[Reading], files: Sequence[FileRow]) -> Step:
    """Have the records of files read once more; returns their `FileSums`.  `plan["part"]` counts from 1 here, too."""
    sums = FileSums(files)
    reader = PartReader(desk, job)
    job.plan.update(part=1, record=0)
    for number, reading in enumerate(readings):
        yield from reader.turn_to(reading.part)
        for batch in _batches(sums.spans(reading), record_bytes=reading.row.record_bytes):
            yield from _sum(reader, reading.part, sums, batch)
        behind = readings[number + 1 :]
        reader.next_part(behind[0].part if behind else None)
    return sums


def _batches(spans: Iterable[Span], *, record_bytes: int) -> Iterator[list[Span]]:
    batch: list[Span] = []
    records, last = 0, -1
    for span in spans:
        records += span.record != last
        if batch and (
            len(batch) == RANGES_PER_CHECK or records * record_bytes > RECORDS_BYTES_PER_CHECK
        ):
            yield batch
            batch, records = [], 1
        batch.append(span)
        last = span.record
    if batch:
        yield batch


def _sum(reader: PartReader, part: PartRow, sums: FileSums, batch: Sequence[Span]) -> Step:
    waiting = [batch]
    while waiting:
        some = waiting.pop()
        ranges = [(span.record, span.first_byte, 0, span.byte_count) for span in some]
        try:
            sums.take(some, (yield from on_tape(reader, part, ranges)))
        except MediumError:
            first, middle, last = (some[at].record for at in (0, len(some) // 2, -1))
            if first == last:
                sums.lose(some)
                continue
            middle += middle == first
            waiting += (
                [span for span in some if span.record >= middle],
                [span for span in some if span.record < middle],
            )
