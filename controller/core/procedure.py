"""What a job's procedure may wish for.

A job is written down as a generator: it *yields* a wish, the machine grants it when it can and sends the answer in.
Between two wishes nothing else happens to the job, so the order of its steps can be read off the page.  The generator
holds nothing that matters: what a restarted controller needs stands in the job's plan, recorded before each wish, and
the generator, begun anew, goes on from there.

Wishes end in an answer or in a `BackupError` raised at the `yield`; `JobCancelledError` is raised when an operator
cancels.  Clean-up is a procedure of its own, run by the machine when the first one ends in an error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from backplane.errors import BackupError, ExitCode
from backplane.ids import BackupId, NodeName
from backplane.wire.messages import Message
from controller.catalog.store import ItemRow
from controller.core.effects import UnitUse


class JobCancelledError(BackupError):
    """An operator cancelled the job."""

    kind = "cancelled"
    exit_code = ExitCode.INTERRUPTED


@dataclass(frozen=True, slots=True)
class NotYet:
    """Why a claim cannot be granted now; shown as the job's reason for waiting."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send a request to a storage node until it answers.

    `make` builds the message for a request number.  Waits while the node is away, unless `gives_up`: then the node's
    absence raises `UnreachableError`.  The answer is `NodeReply` or `UnitFenced`; `NodeFailed` raises its error.  If a
    node that is there does not answer within `slow_s` seconds, a person is told once; 0 is never.
    """

    node: NodeName
    make: Callable[[int], Message]
    what: str
    gives_up: bool = False
    slow_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Have a mover execute an item.  The answer is the item's row in its final state: `done`, `failed` or `lost`."""

    row: ItemRow
    uses: tuple[UnitUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Try until it does not answer `NotYet`; the answer is what it returned.  Tried again when anything changes."""

    attempt: Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """Fetch the extents of a backup; the answer is `ExtentRuns`."""

    backup: BackupId


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPiece:
    """Fetch a page of a backup's map of files, or (None) its header; the answer is packed, None if it is not there."""

    backup: BackupId
    page: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Wait for an operator's word (the end of an import or export), at most `timeout_s`; None when it did not come."""

    name: str
    timeout_s: float


Wish: TypeAlias = Ask | Run | Claim | Extents | MapPiece | Signal
Procedure: TypeAlias = Generator[Wish, Any, None]
Step: TypeAlias = Generator[Wish, Any, Any]
