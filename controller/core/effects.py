"""Events that enter the controller's core and effects that leave it.

The shell commits every `Record` of one call of `handle` in one transaction *before* it performs anything else of that
call: no message ever depends on a state that a crash could take back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from backplane.errors import BackupError
from backplane.ids import BackupId, Designator, Epoch, JobId, NodeName
from backplane.wire.grants import Rights
from backplane.wire.messages import Message
from controller.catalog.store import Change, ItemRow
from controller.core.extent_runs import ExtentRuns

# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReady:
    """A mover or storage node said hello and was welcomed.  A new `boot_id` means that it restarted."""

    name: NodeName
    role: str
    boot_id: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLost:
    """A peer has not been heard for too long.  A mover and a storage node may have the same name."""

    name: NodeName
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FromPeer:
    """A message of a welcomed mover or storage node."""

    name: NodeName
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A changing verb of an operator, its arguments already checked; `call` addresses the answer.

    `holder` is the operator's CURVE key, to which grants for import and export are bound.
    """

    call: int
    verb: str
    arguments: dict[str, Any]
    holder: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentsFetched:
    """The answer to `FetchExtents`."""

    job: JobId
    backup: BackupId
    runs: ExtentRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFetched:
    """The answer to `FetchMap`; `packed` is None if there is no such thing in the catalog."""

    job: JobId
    backup: BackupId
    page: int | None
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come."""


Event: TypeAlias = PeerReady | PeerLost | FromPeer | Call | ExtentsFetched | MapFetched | Tick

# --- effects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitUse:
    """What a work item may do at one logical unit: the content of a grant.

    `lane` 0 is the whole unit, which then has one writer; 1 to `LANES_MAX` one of several writers of disjoint extents.
    """

    designator: Designator
    node: NodeName
    rights: Rights
    extents: tuple[tuple[int, int], ...]
    position: int
    bytes_max: int
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Make rows durable, and drop what is to be dropped, in order."""

    rows: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a message to a welcomed peer."""

    peer: NodeName
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class SendWork:
    """Send a leased item to a mover, with a grant per use bound to the mover's key."""

    mover: NodeName
    item: ItemRow
    uses: tuple[UnitUse, ...]
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchExtents:
    """Read the extents of a backup from the catalog; answered by `ExtentsFetched`."""

    job: JobId
    backup: BackupId


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchMap:
    """Read a page of a backup's map of files from the catalog, or (None) its header; answered by `MapFetched`."""

    job: JobId
    backup: BackupId
    page: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer an operator's call."""

    call: int
    document: dict[str, Any]
    uses: tuple[UnitUse, ...] = ()
    """For import and export: the grant to make for the operator's own data channel."""
    holder: bytes = b""
    epoch: Epoch = Epoch(0)  # noqa: RUF009 - a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Answer an operator's call with an error."""

    call: int
    error: BackupError


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Tell a person: something is wrong that no retry will mend."""

    text: str


Effect: TypeAlias = Record | Send | SendWork | FetchExtents | FetchMap | Answer | Refuse | Alarm
