"""The log of XFS: where it begins and ends, and its records.

The log is a ring of basic blocks (512 bytes).  Each turn around it has a number, the *cycle*, and the first four bytes
of every block are replaced by it, so the *head* is where the cycle changes: behind it lie blocks of the turn before.

    cycle     7 7 7 7 7 7 7 7 6 6 6 6 6 6 6 6
              ......tail ...head

A record is a header (or several, one for each 32 KiB), and data.  The header keeps what the cycle numbers replaced, a
checksum over everything, and the *tail*: where the oldest change lies that may not be on the volume yet.  A log whose
last record is an unmount record has nothing to apply.

Several records are written at once, so a power cut can leave holes in the last ones: the first record that fails its
checksum among the last eight ends the log.  One further back is damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.units import KIB, MIB
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError
from storage_node.mapping.xfs_blocks import BASIC_BYTES
from storage_node.mapping.xfs_superblock import BASIC_SHIFT, Geometry

RECORD_BYTES_MAX: Final = 256 * KIB
RECORDS_AT_ONCE: Final = 8
"""So many records may be on their way to the volume at a time."""
LOOK_BACK: Final = RECORDS_AT_ONCE * RECORD_BYTES_MAX // BASIC_BYTES
"""Before the place where the cycle changes, so many blocks may be missing."""
KEPT_BYTES_MAX: Final = 16 * MIB
"""What is read of the log is read twice, so the first of it is kept."""

MAGIC: Final = b"\xfe\xed\xba\xbe"
UNMOUNT_FLAG: Final = 0x20
OPERATION_BYTES: Final = 12

_CYCLE_BYTES: Final = 32 * KIB
"""What one header covers."""
_HEADER: Final = struct.Struct(">4sIIIQQIII256sI16sI")
"""Magic, cycle, version, bytes, place, tail, checksum, block before, operations, replaced bytes, format, UUID, size."""
_CRC_AT: Final = 32
_HEADER_SIZES: Final = (328, 324)
"""What the checksum covers of a header: depends on how the writer's machine aligns."""
_EXTENSION_BYTES: Final = 260
_LITTLE_ENDIAN: Final = 1


class Record(NamedTuple):
    """A record, its header read."""

    block: int
    cycle: int
    header_blocks: int
    data_blocks: int
    data_bytes: int
    place: int
    """Cycle and block in one number: the *log sequence number*, which only grows."""
    tail: int
    operations: int
    byte_order: int

    @property
    def blocks(self) -> int:
        return self.header_blocks + self.data_blocks


class LogRange(NamedTuple):
    """What has to be applied: the records from `tail` to `head`, blocks of the log."""

    tail: int
    head: int
    is_clean: bool
    last: Record | None


class Log:
    """A ring of basic blocks, read in bulk."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self._source = source
        self._uuid = geometry.uuid
        self._is_v5 = geometry.has_checksums
        self._byte = geometry.run_byte(geometry.log_block, geometry.log_blocks)
        self.blocks: Final = (geometry.log_blocks << geometry.block_shift) >> BASIC_SHIFT
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0
        self._last: tuple[int, bytes] = (-1, b"")

    def read(self, block: int, count: int) -> bytes:
        """Return basic blocks; behind the end of the log comes its beginning."""
        block %= self.blocks
        first = min(count, self.blocks - block)
        data = self._window(block, first)
        return data if first == count else data + self._window(0, count - first)

    def _window(self, block: int, count: int) -> bytes:
        """Read in windows of 1 MiB, and keep the first ones."""
        size = MIB >> BASIC_SHIFT
        pieces = []
        while count:
            first = block - block % size
            data = self._read_window(first, min(size, self.blocks - first))
            at = block - first
            taken = min(count, size - at)
            pieces.append(data[at << BASIC_SHIFT : (at + taken) << BASIC_SHIFT])
            block += taken
            count -= taken
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_window(self, first: int, count: int) -> bytes:
        if self._last[0] == first:
            return self._last[1]
        data = self._kept.get(first)
        if data is None:
            data = self._source.read(self._byte + (first << BASIC_SHIFT), count << BASIC_SHIFT)
            if self._kept_bytes < KEPT_BYTES_MAX:
                self._kept[first] = data
                self._kept_bytes += len(data)
        self._last = (first, data)
        return data

    def cycle(self, block: int) -> int:
        """Return the cycle in which a block was written; 0 if it never was."""
        return _cycle(self._source.read(self._byte + (block << BASIC_SHIFT), BASIC_BYTES), 0)

    def cycles(self, block: int, count: int) -> list[int]:
        """Return the cycles of blocks that do not go beyond the end of the log."""
        data = self.read(block, count)
        return [_cycle(data, at) for at in range(0, len(data), BASIC_BYTES)]

    def header(self, block: int) -> Record:
        """Read a header; `DamagedError` if there is none."""
        fields = _HEADER.unpack_from(self.read(block, 1))
        magic, cycle, version, data_bytes, place, tail, _, _, operations, _, form, uuid, size = (
            fields
        )
        if magic != MAGIC or version not in (1, 2):
            raise DamagedError(f"no record in block {block} of the log")
        if uuid not in (self._uuid, bytes(16)):
            raise DamagedError("the log belongs to another file system")
        if place != cycle << 32 | block % self.blocks or data_bytes > RECORD_BYTES_MAX:
            raise DamagedError(f"a record of {data_bytes} bytes in block {block} of the log")
        if data_bytes < operations * OPERATION_BYTES:
            raise DamagedError(f"a record of {operations} operations in block {block} of the log")
        header_blocks = 1
        if version == 2:
            header_blocks = max(1, -(-min(size, RECORD_BYTES_MAX) // _CYCLE_BYTES))
        return Record(
            block=block % self.blocks,
            cycle=cycle,
            header_blocks=header_blocks,
            data_blocks=-(-data_bytes // BASIC_BYTES),
            data_bytes=data_bytes,
            place=place,
            tail=tail,
            operations=operations,
            byte_order=form,
        )

    def is_whole(self, record: Record) -> bool:
        """Say whether a record has the checksum that it carries.  0 is none: mkfs.xfs writes it so."""
        header = self.read(record.block, record.header_blocks)
        stored = int.from_bytes(header[_CRC_AT : _CRC_AT + 4], "little")
        if not stored:
            return True
        data = self.read(record.block + record.header_blocks, record.data_blocks)
        extensions = -(-record.data_bytes // _CYCLE_BYTES)
        for size in _HEADER_SIZES:
            value = crc32c(header[:_CRC_AT] + bytes(4) + header[_CRC_AT + 4 : size])
            for number in range(1, min(extensions, record.header_blocks)):
                at = number << BASIC_SHIFT
                value = crc32c(header[at : at + _EXTENSION_BYTES], start=value)
            if crc32c(data[: record.data_bytes], start=value) == stored:
                return True
        return False

    def data(self, record: Record) -> bytes:
        """Return a record's data, as they were before the cycle numbers were put in."""
        header = self.read(record.block, record.header_blocks)
        data = bytearray(self.read(record.block + record.header_blocks, record.data_blocks))
        per_header = _CYCLE_BYTES >> BASIC_SHIFT
        if record.data_blocks > per_header * record.header_blocks:
            raise DamagedError(f"the record in block {record.block} of the log lacks headers")
        for number in range(record.data_blocks):
            extension, index = divmod(number, per_header)
            at = (extension << BASIC_SHIFT) + (4 if extension else 44) + index * 4
            data[number << BASIC_SHIFT : (number << BASIC_SHIFT) + 4] = header[at : at + 4]
        return bytes(data)

    def records(self, found: LogRange) -> Iterator[Record]:
        """Yield the records to apply, oldest first; `DamagedError` if one of them is not whole."""
        block, left = found.tail, (found.head - found.tail) % self.blocks
        place = 0
        while left:
            record = self.header(block)
            if record.blocks > left or not record.data_blocks or record.place <= place:
                raise DamagedError(f"the record in block {block} of the log does not fit there")
            if record.byte_order != _LITTLE_ENDIAN:
                form = record.byte_order
                raise UnsupportedError(f"a log of a machine with another byte order ({form})")
            if not self.is_whole(record):
                raise DamagedError(f"the record in block {block} of the log fails its checksum")
            yield record
            place = record.place
            left -= record.blocks
            block = (block + record.blocks) % self.blocks


def find_range(log: Log) -> LogRange:
    """Find what has to be applied."""
    head = _find_head(log)
    if head is None:
        return LogRange(0, 0, is_clean=True, last=None)
    last = _last_record(log, head, log.blocks)
    if _is_unmount(log, last, head):
        return LogRange(head, head, is_clean=True, last=last)
    head, last = _without_torn_records(log, head, last)
    if _is_unmount(log, last, head):
        return LogRange(head, head, is_clean=True, last=last)
    tail_cycle, tail = last.tail >> 32, last.tail & 0xFFFFFFFF
    # The tail is before the head in this turn, or behind it in the one before.
    if tail >= log.blocks or tail_cycle != last.cycle - (tail > last.block):
        raise DamagedError(f"the log is said to begin in block {tail} of cycle {tail_cycle}")
    return LogRange(tail, head, is_clean=False, last=last)


def _cycle(data: bytes, at: int) -> int:
    if data[at : at + 4] == MAGIC:
        at += 4
    return int.from_bytes(data[at : at + 4], "big")


def _find_head(log: Log) -> int | None:
    """Return the block behind the last one that was written in order; None if none ever was."""
    first, last = log.cycle(0), log.cycle(log.blocks - 1)
    if not first:
        return None
    if first == last:
        # The whole log has this cycle, but for blocks near its end that were not written in time.
        head, missing = log.blocks, last - 1
    else:
        # `missing` is what blocks behind the head have: the cycle before, or 0 in the first turn.
        if last != first - 1:
            raise DamagedError(f"the log begins in cycle {first} and ends in cycle {last}")
        head, missing = _first_block_of(log, last), last
    return _without_holes(log, head, missing) % log.blocks


def _first_block_of(log: Log, cycle: int) -> int:
    """Return the first block of the older cycle, by halving."""
    low, high = 0, log.blocks - 1
    while high - low > 1:
        middle = (low + high) // 2
        if log.cycle(middle) == cycle:
            high = middle
        else:
            low = middle
    return high


def _without_holes(log: Log, head: int, missing: int) -> int:
    """Return the first block before the head that was not written in time, or the head."""
    count = min(LOOK_BACK, log.blocks)
    if head < count:
        # Behind the end of the log lies its beginning: look at the end of the turn before first.
        behind = count - head
        cycles = log.cycles(log.blocks - behind, behind)
        older = missing - 1
        if older in cycles:
            return log.blocks - behind + cycles.index(older)
        count = head
    cycles = log.cycles(head - count, count) if count else []
    return head - count + cycles.index(missing) if missing in cycles else head


def _last_record(log: Log, head: int, most: int) -> Record:
    """Return the last record that begins before a block."""
    most = min(most, log.blocks)
    done = 0
    step = LOOK_BACK
    while done < most:
        count = min(step, most - done)
        data = log.read((head - done - count) % log.blocks, count)
        at = data.rfind(MAGIC)
        while at >= 0:
            if not at % BASIC_BYTES:
                return log.header((head - done - count + (at >> BASIC_SHIFT)) % log.blocks)
            at = data.rfind(MAGIC, 0, at + 3)
        done += count
    raise DamagedError("the log has no record")


def _is_unmount(log: Log, last: Record, head: int) -> bool:
    """Say whether a record is the last one, and was written when the file system was unmounted."""
    if last.operations != 1 or not last.data_blocks:
        return False
    if (last.block + last.blocks) % log.blocks != head % log.blocks or not log.is_whole(last):
        return False
    return bool(log.read(last.block + last.header_blocks, 1)[9] & UNMOUNT_FLAG)


def _without_torn_records(log: Log, head: int, last: Record) -> tuple[int, Record]:
    """Leave out the last records, from the first one that is cut off or fails its checksum."""
    found = [last]
    tail = last.tail & 0xFFFFFFFF
    while len(found) < RECORDS_AT_ONCE and found[0].block != tail:
        found.insert(0, _last_record(log, found[0].block, LOOK_BACK))
    for index, record in enumerate(found):
        ends = (record.block + record.blocks) % log.blocks
        expected = found[index + 1].block if index + 1 < len(found) else head % log.blocks
        if ends == expected and log.is_whole(record):
            continue
        before = found[index - 1] if index else _last_record(log, record.block, LOOK_BACK)
        return record.block, before
    return head, last
