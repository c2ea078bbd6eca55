"""What an executor needs of devices.  Two ways to use each of them:

* one command at a time (`perform`): the ordinary path, data come into this process and their CRC is looked at;
* many requests in flight: `ask_...` sends a request, `receive_head` takes the next reply up to its data, and a
  `Carrier` moves those data to the target to which a request for them was announced (`begin_...`).  Answers of a target
  are taken in order.

A device that is lost raises `UnreachableError` or `RemoteProtocolError` from any of these; then it can only be closed.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from backplane.wire.frames import Entry
from mover_node.core.commands import Command, Completed, UnitInfo

S_contra = TypeVar("S_contra", contravariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Head(NamedTuple):
    """A reply up to its data: `byte_count` bytes are next on the channel and have to be carried or dropped."""

    answer: Completed
    byte_count: int


class Device(Protocol):
    """An opened logical unit."""

    info: UnitInfo
    position: int
    """Object number at which a tape stands, as far as known; 0 for block devices."""

    def perform(self, command: Command) -> Completed:
        """Carry out one command and wait for its end.  Nothing else may be in flight."""

    def is_lost(self) -> bool:
        """Say whether the other end has gone, when an error does not tell which of two ends it was."""

    def abort(self) -> None:
        """Make whoever waits for this device fail; from any thread."""

    def close(self) -> None:
        """Let go."""


class Source(Device, Protocol):
    """What all sources can do."""

    def receive_head(self) -> Head:
        """Wait for the next reply."""

    def has_head(self) -> bool:
        """Say whether a reply has begun to arrive."""

    def take_data(self, byte_count: int) -> bytes | bytearray:
        """Take the data of the reply into memory."""

    def drop(self, byte_count: int) -> None:
        """Throw the data of the reply away."""

    def check(self, byte_count: int, crc32c: int) -> bool:
        """Throw the data of the reply away, and say whether they match their CRC."""


class BlockSource(Source, Protocol):
    """A disk to read from."""

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        """Ask for the concatenation of the entries."""


class StreamSource(Source, Protocol):
    """A tape to read from."""

    def ask_record(self, byte_count: int) -> None:
        """Ask for the record behind those that were asked for already."""


class Target(Device, Protocol):
    """What all targets can do."""

    def has_answer(self) -> bool:
        """Say whether an answer can be taken without waiting."""

    def receive_answer(self) -> Completed:
        """Wait for the next answer."""


class BlockTarget(Target, Protocol):
    """A disk to write to."""

    def begin_blocks(self, entries: tuple[Entry, ...], byte_count: int, crc32c: int) -> None:
        """Announce data that are to be scattered over the entries."""


class StreamTarget(Target, Protocol):
    """A tape to write to."""

    def begin_record(self, byte_count: int, crc32c: int) -> None:
        """Announce the record behind those that were announced already."""

    def put_data(self, data: bytes | bytearray) -> None:
        """Send the whole of what was announced."""


class Carrier(Protocol[S_contra, T_contra]):
    """Moves the data of one reply into one request."""

    def carry(self, source: S_contra, target: T_contra, byte_count: int) -> None:
        """Move exactly so many bytes, or raise; after an error neither device can be used."""

    def close(self) -> None:
        """Let go."""
