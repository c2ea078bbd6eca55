"""What an outsider can see of a simulated site: the only thing that checkers know.

Plain values.  Whoever carries out an effect of the system (writes a block, keeps a row, carries a message) says so; the
system itself says nothing.  `Origin` is the truth about a data request that the system has no field for: which item,
of which epoch, made it - also if the packet met another session than the one it was sent in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose request it was."""

    mover: str
    item: int
    epoch: int
    lane: int = 0
    """The lane in which it may write a volume."""


@dataclass(frozen=True, slots=True)
class BlocksWritten:
    """A volume took bytes, from a mover or (no origin) from its workstation."""

    volume: str
    unit: str
    byte_address: int
    data: bytes
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class TapeWritten:
    """A cartridge took an object; `data` is None for a filemark."""

    tag: str
    unit: str
    number: int
    data: bytes | None
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class TapeCut:
    """Everything from object `number` on was cut off, to be written anew."""

    tag: str
    unit: str
    number: int
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class WormMade:
    """There is a cartridge that can be written only once."""

    tag: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A drive was cleaned with a cartridge that was good for so many cleanings before."""

    tag: str
    cleanings_left: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """A node has told somebody that it lets nothing below `epoch` into a unit any more, or into one lane of it."""

    unit: str
    epoch: int
    lane: int = 0


@dataclass(frozen=True, slots=True)
class VolumeKept:
    """The durable record of a volume changed.  `content` is what the volume holds at that moment."""

    volume: str
    unit: str
    state: str
    job: int
    content: bytes


@dataclass(frozen=True, slots=True)
class VolumeDropped:
    """A volume is no more."""

    volume: str


@dataclass(frozen=True, slots=True)
class ViewKept:
    """A static view became durable; `content` is what it shows."""

    view: str
    volume: str
    content: bytes


@dataclass(frozen=True, slots=True)
class ViewDropped:
    """A static view is no more."""

    view: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The catalog kept rows, in one transaction."""

    rows: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ControllerStarted:
    """A controller has found these job rows in its catalog."""

    jobs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """The controller sent a message."""

    message: Any


@dataclass(frozen=True, slots=True)
class Told:
    """An operator got an answer."""

    verb: str
    arguments: dict[str, Any]
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClockSet:
    """The time of day at a place, `controller` or `library`, is wrong by so much from now on."""

    place: str
    offset_s: float


@dataclass(frozen=True, slots=True)
class Broken:
    """A fault was injected that no retry mends: a job may fail for it.  `what` is a volume or a barcode."""

    what: str
    how: str


Fact = (
    BlocksWritten
    | TapeWritten
    | TapeCut
    | WormMade
    | Cleaned
    | Fenced
    | VolumeKept
    | VolumeDropped
    | ViewKept
    | ViewDropped
    | Committed
    | ControllerStarted
    | Sent
    | Told
    | ClockSet
    | Broken
)
