"""What the copy manager asks of devices, and what they answer.

The copy manager is a generator: it yields one of the commands below and is sent the outcome.  A command names a device
by its CSCD descriptor id; whoever performs it knows what that is (a data channel, or a simulated device in a test).

    Open                   -> UnitInfo | Unreachable | Denied
    device commands        -> Completed | Unreachable
    RunTransfers           -> Ran

`Completed` is a status with its sense data, as the device gave them; data may come together with CHECK CONDITION (a
short record, for example).  `Unreachable` means that no status came at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from backplane.wire.frames import Entry, Status
from mover_node.core.pieces import Payload


@dataclass(frozen=True, slots=True)
class Open:
    """Reach the device for the first time."""

    cscd: int


@dataclass(frozen=True, slots=True)
class TestUnitReady:
    """Ask whether the device is ready."""

    cscd: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Make everything that was written to a block device durable."""

    cscd: int


@dataclass(frozen=True, slots=True)
class ReadBlocks:
    """Read whole blocks."""

    cscd: int
    byte_address: int
    byte_count: int


@dataclass(frozen=True, slots=True)
class WriteBlocks:
    """Write whole blocks."""

    cscd: int
    byte_address: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """Read one record, asking for `byte_count` bytes, SILI=0."""

    cscd: int
    byte_count: int


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Write one record at the current position."""

    cscd: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class WriteFilemarks:
    """Write filemarks; not immediate means that everything before them is durable when it is answered."""

    cscd: int
    count: int
    is_immediate: bool


@dataclass(frozen=True, slots=True)
class Space:
    """Move by `count` objects of the kind that `code` names (0 blocks, 1 filemarks, 3 to end of data)."""

    cscd: int
    code: int
    count: int


@dataclass(frozen=True, slots=True)
class Locate:
    """Move to a logical object."""

    cscd: int
    object_number: int


class Kind(Enum):
    """What a run of transfers does."""

    BACKUP = "gather blocks, write one record each"
    RESTORE = "read records, scatter each over blocks"
    DISCARD = "read records, check them, write nothing"


# Tuples, where there is one or more to each record: they cost less to make than frozen dataclasses.


class Point(NamedTuple):
    """How far a list has come: everything before it is written.

    `processed` counts bytes of segment `segment`, `inherited` the destination residue with which that segment began,
    `written` what it has written so far, in the units of its residual count.
    """

    segment: int
    processed: int
    inherited: int
    written: int


class Transfer(NamedTuple):
    """One record of a run.

    `entries` are the blocks to gather from (backup) or to scatter to (restore), PAD for padding or discarded bytes.
    `needs_earlier_writes` forbids the read before everything asked for earlier is written (SPC-4 6.4.5.4: no read-ahead
    on streams across segments).  `end` is where the list stands when the transfer is done.
    """

    byte_count: int
    padding_bytes: int
    entries: tuple[Entry, ...]
    needs_earlier_writes: bool
    end: Point


@dataclass(frozen=True, slots=True)
class RunTransfers:
    """Carry out transfers in order, many in flight, until they end or one does not go well."""

    kind: Kind
    source: int
    destination: int
    transfers: Iterator[Transfer]


Command: TypeAlias = (
    Open
    | TestUnitReady
    | Flush
    | ReadBlocks
    | WriteBlocks
    | ReadRecord
    | WriteRecord
    | WriteFilemarks
    | Space
    | Locate
    | RunTransfers
)


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """What a device is, as it said when it was opened."""

    peripheral_device_type: int
    block_bytes: int = 0
    blocks: int = 0
    position: int = 0
    record_bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The device could not be reached, or was lost on the way."""

    reason: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The node that has the device does not let us in."""

    reason: str


class Completed(NamedTuple):
    """A device's answer."""

    status: int = Status.GOOD
    sense: bytes = b""
    data: memoryview | None = None
    crc32c: int = 0
    position: int = 0

    @property
    def is_good(self) -> bool:
        """The command did all that was asked."""
        return self.status == Status.GOOD


class Stop(Enum):
    """Why a run of transfers ended."""

    DONE = "all transfers are done"
    WARNED = "the last transfer that counts was written, with a warning: `answer` has it"
    REFUSED = "one transfer was not carried out: the ordinary way has to find out why"
    DAMAGED = "one transfer was refused because its data did not match their CRC"
    LOST_SOURCE = "the connection to the source broke"
    LOST_DESTINATION = "the connection to the destination broke"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run of transfers ended.  `last` is the last transfer that is written, in order; None: not one.

    `source_position` and `destination_position` are object numbers (0 for block devices) of streams, as far as known;
    the source may stand further on than `last`, because it read ahead.
    """

    stop: Stop
    last: Transfer | None
    transfers: int
    data_bytes: int
    padding_bytes: int
    answer: Completed | None
    source_position: int
    destination_position: int
    reason: str = ""
    under_runs: int = 0
    """How often the destination was idle for lack of data."""


Outcome: TypeAlias = UnitInfo | Unreachable | Denied | Completed | Ran
