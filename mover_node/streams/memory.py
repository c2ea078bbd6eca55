"""Disks and tapes in memory, with the same two ways of use as real ones.

`MemoryTape` has the semantics of tape.md sections 4 to 6 as far as a copy manager meets them: records and filemarks
with object numbers, ILI, FILEMARK and BLANK CHECK on read, early warning, programmable early warning and VOLUME
OVERFLOW on write, overwriting that truncates, SPACE and LOCATE.  Capacities count record bytes; a filemark takes none.

Many requests in flight: a request is carried out when all of it is there, its answer waits to be taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from backplane import crc
from backplane.scsi.cscd import PeripheralDeviceType
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Entry, EntryKind, Status
from mover_node.core.commands import (
    Command,
    Completed,
    Flush,
    Locate,
    ReadBlocks,
    ReadRecord,
    Space,
    TestUnitReady,
    UnitInfo,
    WriteBlocks,
    WriteFilemarks,
    WriteRecord,
)
from mover_node.streams.base import Head

RECORD_BYTES_MAX: Final = 0xFF_FFFF
GUARD_CHECK_FAILED: Final = Sense(key=SenseKey.ABORTED_COMMAND, asc=0x10, ascq=0x01)
POSITION_REFUSED: Final = Sense(key=SenseKey.ABORTED_COMMAND, asc=0x3B, ascq=0x00)
OUT_OF_RANGE: Final = Sense(key=SenseKey.ILLEGAL_REQUEST, asc=0x21, ascq=0x00)


class Filemark:
    """One filemark; all are alike."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filemark)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "FM"


FILEMARK: Final = Filemark()
TapeObject: TypeAlias = bytes | Filemark


def checked(sense: Sense, *, data: bytes = b"", position: int = 0) -> Completed:
    """Return CHECK CONDITION."""
    return Completed(
        Status.CHECK_CONDITION,
        sense.encode_fixed(),
        memoryview(data) if data else None,
        crc.crc32c(data),
        position,
    )


class MemoryDevice(ABC):
    """The common half: requests and answers that wait."""

    def __init__(self, info: UnitInfo) -> None:
        self.info = info
        self.position = info.position
        self._replies: deque[Completed] = deque()
        self._answers: deque[Completed] = deque()
        self._reply_data = memoryview(b"")
        self._announced: _Announced | None = None

    def receive_head(self) -> Head:
        """Take the next reply."""
        reply = self._replies.popleft()
        self._reply_data = reply.data if reply.data is not None else memoryview(b"")
        answer = Completed(reply.status, reply.sense, None, reply.crc32c, reply.position)
        return Head(answer, len(self._reply_data))

    def has_head(self) -> bool:
        """Say whether a reply waits."""
        return bool(self._replies)

    def take_data(self, byte_count: int) -> bytes:
        """Take data of the reply."""
        taken, self._reply_data = self._reply_data[:byte_count], self._reply_data[byte_count:]
        assert len(taken) == byte_count
        return bytes(taken)

    def drop(self, byte_count: int) -> None:
        """Throw data of the reply away."""
        self.take_data(byte_count)

    def check(self, byte_count: int, crc32c: int) -> bool:
        """Throw data of the reply away, and compare their CRC."""
        return crc.crc32c(self.take_data(byte_count)) == crc32c

    def announce(
        self, entries: tuple[Entry, ...], byte_count: int, crc32c: int, position: int = 0
    ) -> None:
        """Begin a request that has data."""
        assert self._announced is None
        self._announced = _Announced(entries, byte_count, crc32c, position)

    def put_data(self, data: bytes | bytearray) -> None:
        """Give data to the request that was announced."""
        assert self._announced is not None
        self._announced.data += data
        if len(self._announced.data) == self._announced.byte_count:
            announced, self._announced = self._announced, None
            self._answers.append(self.take_in(announced))

    @abstractmethod
    def take_in(self, announced: _Announced) -> Completed:
        """Carry out a request whose data have arrived."""

    def has_answer(self) -> bool:
        """Say whether an answer waits."""
        return bool(self._answers)

    def receive_answer(self) -> Completed:
        """Take the next answer."""
        return self._answers.popleft()

    def is_lost(self) -> bool:
        """Memory does not go away."""
        return False

    def abort(self) -> None:
        """Nobody waits: forget what is under way."""
        self._announced = None

    def close(self) -> None:
        """Forget what is under way."""
        self._replies.clear()
        self._answers.clear()


@dataclass(slots=True)
class _Announced:
    entries: tuple[Entry, ...]
    byte_count: int
    crc32c: int
    position: int
    data: bytearray = field(default_factory=bytearray)


class MemoryCarrier:
    """Moves bytes between two devices in memory."""

    def carry(self, source: MemoryDevice, target: MemoryDevice, byte_count: int) -> None:
        """Move the data of a reply into a request."""
        target.put_data(source.take_data(byte_count))

    def close(self) -> None:
        """Nothing to let go."""


class MemoryDisk(MemoryDevice):
    """A block device.  `bad_addresses` cannot be read."""

    def __init__(self, content: bytes | bytearray, *, block_bytes: int) -> None:
        assert len(content) % block_bytes == 0
        super().__init__(
            UnitInfo(
                peripheral_device_type=PeripheralDeviceType.BLOCK,
                block_bytes=block_bytes,
                blocks=len(content) // block_bytes,
            )
        )
        self.content = bytearray(content)
        self.bad_addresses: set[int] = set()

    def perform(self, command: Command) -> Completed:
        """Carry out one command."""
        match command:
            case ReadBlocks(_, address, byte_count):
                return self._gather((Entry(address, byte_count),))
            case WriteBlocks(_, address, payload):
                entries = (Entry(address, payload.byte_count),)
                return self._scatter(entries, payload.joined(), payload.crc32c)
            case Flush() | TestUnitReady():
                return Completed()
            case _:
                raise AssertionError(f"{type(command).__name__} is no command for a disk")

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        """Ask for blocks."""
        assert byte_count == sum(entry.byte_count for entry in entries)
        self._replies.append(self._gather(entries))

    def begin_blocks(self, entries: tuple[Entry, ...], byte_count: int, crc32c: int) -> None:
        """Announce blocks."""
        assert byte_count == sum(entry.byte_count for entry in entries)
        self.announce(entries, byte_count, crc32c)

    def take_in(self, announced: _Announced) -> Completed:
        """Write blocks that have arrived."""
        return self._scatter(announced.entries, bytes(announced.data), announced.crc32c)

    def _gather(self, entries: tuple[Entry, ...]) -> Completed:
        data = bytearray()
        for entry in entries:
            end = entry.byte_address + entry.byte_count
            if entry.kind is EntryKind.PAD:
                data += bytes(entry.byte_count)
            elif end > len(self.content):
                return checked(OUT_OF_RANGE)
            elif any(entry.byte_address <= bad < end for bad in self.bad_addresses):
                return checked(Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0x00))
            else:
                data += self.content[entry.byte_address : end]
        return Completed(data=memoryview(bytes(data)), crc32c=crc.crc32c(data))

    def _scatter(self, entries: tuple[Entry, ...], data: bytes, crc32c: int) -> Completed:
        if crc.crc32c(data) != crc32c:
            return checked(GUARD_CHECK_FAILED)
        start = 0
        for entry in entries:
            if entry.kind is EntryKind.DATA:
                end = entry.byte_address + entry.byte_count
                if end > len(self.content):
                    return checked(OUT_OF_RANGE)
                self.content[entry.byte_address : end] = data[start : start + entry.byte_count]
            start += entry.byte_count
        return Completed()


class MemoryTape(MemoryDevice):
    """A tape drive with a cartridge in it.

    `warning_bytes` and `capacity_bytes` are early warning and the end; 0 as `programmable_bytes` switches that warning
    off.  `bad_objects` cannot be read.
    """

    def __init__(
        self,
        objects: list[TapeObject] | None = None,
        *,
        warning_bytes: int = 1 << 62,
        capacity_bytes: int = 1 << 62,
        programmable_bytes: int = 0,
        position: int = 0,
    ) -> None:
        super().__init__(
            UnitInfo(
                peripheral_device_type=PeripheralDeviceType.STREAM,
                position=position,
                record_bytes_max=RECORD_BYTES_MAX,
            )
        )
        self.objects: list[TapeObject] = list(objects or [])
        self.warning_bytes = warning_bytes
        self.capacity_bytes = capacity_bytes
        self.programmable_bytes = programmable_bytes
        self.bad_objects: set[int] = set()
        self._believed = position
        """Where the sender of requests in flight believes the tape to be."""

    def perform(self, command: Command) -> Completed:
        """Carry out one command."""
        match command:
            case ReadRecord(_, byte_count):
                answer = self._read(byte_count)
            case WriteRecord(_, payload):
                answer = self._write(payload.joined(), payload.crc32c)
            case WriteFilemarks(_, count, _):
                answer = self._mark(count)
            case Space(_, code, count):
                answer = self._space(code, count)
            case Locate(_, object_number):
                answer = self._locate(object_number)
            case TestUnitReady():
                answer = self._good()
            case _:
                raise AssertionError(f"{type(command).__name__} is no command for a tape")
        self._believed = self.position
        return answer

    def ask_record(self, byte_count: int) -> None:
        """Ask for a record."""
        self._replies.append(self._read(byte_count))
        self._believed = self.position

    def begin_record(self, byte_count: int, crc32c: int) -> None:
        """Announce a record for the place behind the last one that was announced."""
        self.announce((), byte_count, crc32c, self._believed)
        self._believed += 1

    def receive_answer(self) -> Completed:
        """Take the next answer."""
        answer = super().receive_answer()
        if not self._answers:
            self._believed = self.position
        return answer

    def take_in(self, announced: _Announced) -> Completed:
        """Write a record that has arrived, if the tape is where it was meant for."""
        if announced.position != self.position:
            return checked(POSITION_REFUSED, position=self.position)
        return self._write(bytes(announced.data), announced.crc32c)

    # --- the medium ------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of the records before the position."""
        return sum(len(o) for o in self.objects[: self.position] if isinstance(o, bytes))

    def _good(self) -> Completed:
        return Completed(position=self.position)

    def _read(self, wanted: int) -> Completed:
        if not wanted:
            return self._good()
        if self.position >= len(self.objects):
            sense = Sense(key=SenseKey.BLANK_CHECK, ascq=0x05, information=wanted)
            return checked(sense, position=self.position)
        if self.position in self.bad_objects:
            sense = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0x00)
            return checked(sense, position=self.position)
        found = self.objects[self.position]
        self.position += 1
        if isinstance(found, Filemark):
            sense = Sense(key=SenseKey.NO_SENSE, ascq=1, filemark=True, information=wanted)
            return checked(sense, position=self.position)
        data = found[:wanted]
        if len(found) == wanted:
            return Completed(data=memoryview(data), crc32c=crc.crc32c(data), position=self.position)
        difference = wanted - len(found)
        sense = Sense(key=SenseKey.NO_SENSE, incorrect_length=True, information=difference)
        return checked(sense, data=data, position=self.position)

    def _write(self, data: bytes, crc32c: int) -> Completed:
        if crc.crc32c(data) != crc32c:
            return checked(GUARD_CHECK_FAILED, position=self.position)
        before = self.used_bytes
        if before + len(data) > self.capacity_bytes:
            sense = Sense(
                key=SenseKey.VOLUME_OVERFLOW, ascq=2, end_of_medium=True, information=len(data)
            )
            return checked(sense, position=self.position)
        del self.objects[self.position :]
        self.objects.append(data)
        self.position += 1
        return self._warned(before, before + len(data))

    def _mark(self, count: int) -> Completed:
        if count:
            del self.objects[self.position :]
            self.objects += [FILEMARK] * count
            self.position += count
        used = self.used_bytes
        return self._warned(used, used)

    def _warned(self, before: int, after: int) -> Completed:
        if after > self.warning_bytes:
            ascq = 0x02
        elif self.programmable_bytes and before <= self.programmable_bytes < after:
            ascq = 0x07
        else:
            return self._good()
        sense = Sense(key=SenseKey.NO_SENSE, ascq=ascq, end_of_medium=True, information=0)
        return checked(sense, position=self.position)

    def _space(self, code: int, count: int) -> Completed:
        if code == 3:
            self.position = len(self.objects)
            return self._good()
        step = 1 if count > 0 else -1
        for left in range(abs(count), 0, -1):
            is_met = False
            while not is_met:
                at = self.position if step > 0 else self.position - 1
                if not 0 <= at < len(self.objects):
                    key = SenseKey.BLANK_CHECK if step > 0 else SenseKey.NO_SENSE
                    sense = Sense(
                        key=key,
                        ascq=0x05 if step > 0 else 0x04,
                        end_of_medium=step < 0,
                        information=left,
                    )
                    return checked(sense, position=self.position)
                is_mark = isinstance(self.objects[at], Filemark)
                self.position += step
                if code == 0 and is_mark:
                    sense = Sense(key=SenseKey.NO_SENSE, ascq=0x01, filemark=True, information=left)
                    return checked(sense, position=self.position)
                is_met = code == 0 or is_mark
        return self._good()

    def _locate(self, object_number: int) -> Completed:
        self.position = min(object_number, len(self.objects))
        if object_number > len(self.objects):
            sense = Sense(key=SenseKey.BLANK_CHECK, ascq=0x05)
            return checked(sense, position=self.position)
        return self._good()
