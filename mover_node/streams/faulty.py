"""A layer that damages data on their way to or from a device in memory.

A fault is data, not code: a place (byte address of a disk, object number of a tape), a direction and how often.  The
CRC stays that of the good data, as when a byte flips on a wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from backplane.wire.frames import Entry, EntryKind
from mover_node.core.commands import Command, Completed, ReadBlocks, ReadRecord, WriteBlocks
from mover_node.core.commands import WriteRecord as WriteRecordCommand
from mover_node.core.pieces import Payload
from mover_node.streams.memory import MemoryDisk, MemoryTape


@dataclass(slots=True)
class Damage:
    """Flip a byte of what is read from, or written to, a place; `times` times."""

    direction: Literal["read", "write"]
    place: int
    times: int = 1


class _Faults:
    def __init__(self, damages: Iterable[Damage]) -> None:
        self._damages = list(damages)

    def hit(self, direction: str, start: int, end: int) -> bool:
        found = False
        for damage in self._damages:
            if damage.times and damage.direction == direction and start <= damage.place < end:
                damage.times -= 1
                found = True
        return found

    def hit_any(self, direction: str, entries: tuple[Entry, ...]) -> bool:
        hits = [
            self.hit(direction, e.byte_address, e.byte_address + e.byte_count)
            for e in entries
            if e.kind is EntryKind.DATA
        ]
        return any(hits)


def flipped(data: bytes | bytearray) -> bytes:
    """Return data with one bit changed."""
    return bytes([data[0] ^ 0x40]) + bytes(data[1:]) if data else b""


def _flipped_answer(answer: Completed) -> Completed:
    if answer.data is None:
        return answer
    data = memoryview(flipped(bytes(answer.data)))
    return Completed(answer.status, answer.sense, data, answer.crc32c, answer.position)


def _flipped_payload(payload: Payload) -> Payload:
    return Payload((memoryview(flipped(payload.joined())),), payload.byte_count, payload.crc32c)


class FaultyDisk(MemoryDisk):
    """A disk behind a bad wire."""

    def __init__(
        self, content: bytes | bytearray, *, block_bytes: int, damages: Iterable[Damage]
    ) -> None:
        super().__init__(content, block_bytes=block_bytes)
        self._faults = _Faults(damages)

    def perform(self, command: Command) -> Completed:
        """Carry out one command, and damage it on its way."""
        match command:
            case ReadBlocks(_, address, byte_count):
                answer = super().perform(command)
                is_hit = self._faults.hit("read", address, address + byte_count)
                return _flipped_answer(answer) if is_hit else answer
            case WriteBlocks(cscd, address, payload):
                if self._faults.hit("write", address, address + payload.byte_count):
                    command = WriteBlocks(cscd, address, _flipped_payload(payload))
                return super().perform(command)
            case _:
                return super().perform(command)

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        """Ask for blocks that are damaged on their way."""
        super().ask_blocks(entries, byte_count)
        if self._faults.hit_any("read", entries):
            self._replies.append(_flipped_answer(self._replies.pop()))

    def put_data(self, data: bytes | bytearray) -> None:
        """Give data that are damaged on their way."""
        assert self._announced is not None
        is_hit = self._faults.hit_any("write", self._announced.entries)
        super().put_data(flipped(data) if is_hit else data)


class FaultyTape(MemoryTape):
    """A tape behind a bad wire."""

    def __init__(self, *args: object, damages: Iterable[Damage], **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # passed on as they came
        self._faults = _Faults(damages)

    def perform(self, command: Command) -> Completed:
        """Carry out one command, and damage it on its way."""
        start = self.position
        match command:
            case ReadRecord():
                answer = super().perform(command)
                return _flipped_answer(answer) if self._hit("read", start) else answer
            case WriteRecordCommand(cscd, payload):
                if self._hit("write", start):
                    command = WriteRecordCommand(cscd, _flipped_payload(payload))
                return super().perform(command)
            case _:
                return super().perform(command)

    def ask_record(self, byte_count: int) -> None:
        """Ask for a record that is damaged on its way."""
        start = self.position
        super().ask_record(byte_count)
        if self._hit("read", start):
            self._replies.append(_flipped_answer(self._replies.pop()))

    def put_data(self, data: bytes | bytearray) -> None:
        """Give data that are damaged on their way."""
        assert self._announced is not None
        is_hit = self._hit("write", self._announced.position)
        super().put_data(flipped(data) if is_hit else data)

    def _hit(self, direction: str, place: int) -> bool:
        return self._faults.hit(direction, place, place + 1)
