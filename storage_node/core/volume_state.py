"""What a node knows about its volumes and static views, and which changes are allowed.

    create(online) ------------------> online <------------- publish(online) ----+
    attach --------------------------> online ----- offline(job) -----> restoring
    create(importing) -> importing --- publish(online) -> online           |  ^
                             |                                             |  | offline(job)
                             +--- publish(restore-failed) -> restore-failed <-+

Every method either raises and changes nothing, or changes the books and returns effects in the order in which they have
to be carried out; the answer goes out after the last one.  All of it is idempotent by content: the same message again
finds the work done and returns what is missing, usually nothing.

* `offline` first makes `restoring` and `needs_discard` durable, then discards: a crash between leaves a volume that
  takes no writer and is discarded when the message comes again.  A late double never discards what was restored since:
  within the job nothing is left to do, after publishing its epoch is below the floor.
* `publish` demands a floor that no writer holds (`_may_publish`): the fence is durable before the state changes.
* While a view of the means "hold" is there, nobody writes the volume.  The other means do not mind; but under no view
  is a volume deleted or restored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from backplane.errors import (
    BusyError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    StaleError,
    UsageError,
)
from backplane.ids import Designator, Epoch, JobId, ViewId, VolumeId
from backplane.scsi.designator import designator_of
from storage_node.core.admission import WriteGate
from storage_node.core.floors import Floor

VOLUMES_MAX: Final = 512
VIEWS_MAX: Final = 512
"""Both bound the inventory, which is one control message."""

RELEASED_VIEWS_MAX: Final = 1024
"""Released and failed views that are remembered, so that a late double of `view.create` does not bring one back."""

BLOCK_BYTES_ALLOWED: Final = (512, 1024, 2048, 4096)
SIZE_BYTES_MAX: Final = 1 << 56


class Means(Enum):
    """How a view is kept as it is; the values are those of `ViewState.means` on the wire."""

    HOLD = "hold"  # writers are refused
    SNAPSHOT = "snapshot"  # copy before write
    CLONE = "clone"  # a copy that shares its blocks (reflink)
    MIRROR = "mirror"  # a leg that was split off


class State(Enum):
    """What a volume is good for; the values are those of `VolumeState.state` on the wire."""

    ONLINE = "online"
    RESTORING = "restoring"
    RESTORE_FAILED = "restore-failed"
    IMPORTING = "importing"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A volume as it is kept on disk.

    `path` is the device or image that was attached, "" for the node's own sparse file.  `job` is the restore that
    owns the volume while it is offline; `epoch` that of the last change by `offline` or `publish`.
    """

    volume: VolumeId
    name: str
    designator: Designator
    size_bytes: int
    block_bytes: int
    path: str
    state: State
    job: JobId
    epoch: Epoch
    is_empty: bool
    needs_discard: bool

    @property
    def blocks(self) -> int:
        """Logical blocks of the volume."""
        return self.size_bytes // self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRecord:
    """A static view as it is kept on disk.

    The view contains everything up to and including `generation` of the history `tracking`.  `leg` is the leg of the
    mirror that was split for it.  `created` is wall-clock text for people.  The time to live does not use it: it counts
    on the monotonic clock from the making of the view, and anew from each start of the node.
    """

    view: ViewId
    volume: VolumeId
    job: JobId
    designator: Designator
    ttl_s: float
    created: str
    means: Means = Means.HOLD
    tracking: str = ""
    generation: int = 0
    consistency: str = "crash"
    leg: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeView:
    """What was made for a view, in the instant of its making."""

    means: Means = Means.HOLD
    tracking: str = ""
    generation: int = 0
    consistency: str = "crash"
    leg: str = ""


@dataclass(frozen=True, slots=True)
class MakeVolume:
    """Effect: make the volume and its data file, or open the attached one; durable as a whole or not at all."""

    record: VolumeRecord


@dataclass(frozen=True, slots=True)
class RecordVolume:
    """Effect: replace the durable record."""

    record: VolumeRecord


@dataclass(frozen=True, slots=True)
class DropVolume:
    """Effect: remove record and, unless attached, data."""

    record: VolumeRecord


@dataclass(frozen=True, slots=True)
class DiscardData:
    """Effect: make every block read as zeros, durably; then call `discarded`."""

    volume: VolumeId


@dataclass(frozen=True, slots=True)
class SyncData:
    """Effect: make all written data durable; on failure call `failed` and go no further."""

    volume: VolumeId


@dataclass(frozen=True, slots=True)
class RecordView:
    """Effect: write the durable record of a view."""

    record: ViewRecord


@dataclass(frozen=True, slots=True)
class DropView:
    """Effect: remove the durable record of a view."""

    record: ViewRecord


Effect = MakeVolume | RecordVolume | DropVolume | DiscardData | SyncData | RecordView | DropView


class VolumeBook:
    """Volumes and views of one node.  Not thread-safe: the shell serialises calls."""

    def __init__(
        self, *, volumes: Iterable[VolumeRecord] = (), views: Iterable[ViewRecord] = ()
    ) -> None:
        self.volumes: dict[VolumeId, VolumeRecord] = {record.volume: record for record in volumes}
        self.views: dict[ViewId, ViewRecord] = {record.view: record for record in views}
        self._gone_views: OrderedDict[ViewId, str] = OrderedDict()

    # --- looking ---------------------------------------------------------------------------------

    def volume(self, volume: VolumeId) -> VolumeRecord:
        """Return a volume or raise `NotFoundError`."""
        try:
            return self.volumes[volume]
        except KeyError:
            raise NotFoundError(f"no volume {volume} on this node") from None

    def holders(self, volume: VolumeId) -> list[ViewRecord]:
        """Return the views that hold a volume."""
        return [view for view in self.views.values() if view.volume == volume]

    def gate(self, volume: VolumeId) -> WriteGate:
        """Say whether the volume takes writes."""
        record = self.volumes[volume]
        if any(view.means is Means.HOLD for view in self.holders(volume)):
            return WriteGate.HELD
        if record.needs_discard or record.state is State.RESTORE_FAILED:
            return WriteGate.OFFLINE
        return WriteGate.OPEN

    # --- making and removing ---------------------------------------------------------------------

    def create(
        self, *, volume: VolumeId, name: str, size_bytes: int, block_bytes: int, state: str
    ) -> list[Effect]:
        """Make an empty volume."""
        _check_id(volume)
        if state not in (State.ONLINE.value, State.IMPORTING.value):
            raise UsageError(f"a volume is created online or importing, not {state!r}")
        _check_geometry(size_bytes, block_bytes)
        record = VolumeRecord(
            volume=volume,
            name=name,
            designator=designator_of(volume),
            size_bytes=size_bytes,
            block_bytes=block_bytes,
            path="",
            state=State(state),
            job=NO_JOB,
            epoch=NO_EPOCH,
            is_empty=True,
            needs_discard=False,
        )
        return self._add(record)

    def attach(
        self, *, volume: VolumeId, name: str, path: str, size_bytes: int, block_bytes: int
    ) -> list[Effect]:
        """Use what is at `path`; its size was found by the shell."""
        _check_id(volume)
        _check_geometry(size_bytes, block_bytes)
        for other in self.volumes.values():
            if other.path == path and other.volume != volume:
                raise RefusedError(f"{path} is already the volume {other.name!r}")
        record = VolumeRecord(
            volume=volume,
            name=name,
            designator=designator_of(volume),
            size_bytes=size_bytes,
            block_bytes=block_bytes,
            path=path,
            state=State.ONLINE,
            job=NO_JOB,
            epoch=NO_EPOCH,
            is_empty=False,
            needs_discard=False,
        )
        return self._add(record)

    def _add(self, record: VolumeRecord) -> list[Effect]:
        old = self.volumes.get(record.volume)
        if old is not None:
            same = (old.name, old.size_bytes, old.block_bytes, old.path)
            if same == (record.name, record.size_bytes, record.block_bytes, record.path):
                return []
            raise RefusedError(f"volume {record.volume} exists already and is another one")
        if len(self.volumes) >= VOLUMES_MAX:
            raise RefusedError(f"this node has {VOLUMES_MAX} volumes and takes no more")
        if any(other.designator == record.designator for other in self.volumes.values()):
            raise RefusedError("another volume has the same designator", hint="create it again")
        self.volumes[record.volume] = record
        return [MakeVolume(record)]

    def unmake_view(self, view: ViewId) -> None:
        """Its durable record could not be written, or another view of its group could not be made: it never was."""
        self.views.pop(view, None)

    def not_made(self, volume: VolumeId) -> None:
        """`MakeVolume` failed and left nothing: the volume does not exist."""
        self.volumes.pop(volume, None)

    def delete(self, volume: VolumeId, *, has_writer: bool) -> list[Effect]:
        """Remove a volume.  One that does not exist is removed."""
        record = self.volumes.get(volume)
        if record is None:
            return []
        self._refuse_if_held(record)
        if record.state is State.RESTORING:
            raise BusyError(f"volume {record.name!r} is being restored by job {record.job}")
        if has_writer:
            raise BusyError(f"volume {record.name!r} is being written")
        del self.volumes[volume]
        return [DropVolume(record)]

    # --- restore ---------------------------------------------------------------------------------

    def offline(
        self, volume: VolumeId, *, job: JobId, epoch: Epoch, is_forced: bool, floor: Floor
    ) -> list[Effect]:
        """Begin a restore; the caller raises the floor to `epoch` before it carries out the effects.

        `floor` is the highest of the unit and its lanes.
        """
        record = self.volume(volume)
        if record.state is State.RESTORING and record.job == job:
            return [DiscardData(volume)] if record.needs_discard else []
        if epoch < floor.epoch:
            raise StaleError(f"epoch {epoch} was overtaken, the volume is at {floor.epoch}")
        self._refuse_if_held(record)
        if record.state is State.RESTORING:
            raise BusyError(f"volume {record.name!r} is being restored by job {record.job}")
        if record.state is State.IMPORTING:
            raise BusyError(f"volume {record.name!r} is being imported")
        if not record.is_empty and not is_forced:
            raise RefusedError(
                f"volume {record.name!r} is not empty", hint="force it to lose what is there"
            )
        # Also if empty: the first write of a writer that is not fenced yet may be under way.
        record = replace(record, state=State.RESTORING, job=job, epoch=epoch, needs_discard=True)
        self.volumes[volume] = record
        return [RecordVolume(record), DiscardData(volume)]

    def discarded(self, volume: VolumeId) -> list[Effect]:
        """The content is gone: writers may come."""
        record = replace(self.volume(volume), needs_discard=False, is_empty=True)
        self.volumes[volume] = record
        return [RecordVolume(record)]

    def written(self, volume: VolumeId) -> list[Effect]:
        """A write is about to be let through."""
        record = self.volume(volume)
        if not record.is_empty:
            return []
        record = replace(record, is_empty=False)
        self.volumes[volume] = record
        return [RecordVolume(record)]

    def check_publish(self, volume: VolumeId, *, job: JobId, epoch: Epoch, state: str) -> bool:
        """Raise if the restore or import cannot be ended so; tell whether it was already.  Call before the fence."""
        record = self.volume(volume)
        if state not in (State.ONLINE.value, State.RESTORE_FAILED.value):
            raise UsageError(f"a volume is published online or restore-failed, not {state!r}")
        if record.state is State(state) and record.epoch == epoch:
            return True
        if record.state not in (State.RESTORING, State.IMPORTING):
            raise RefusedError(f"volume {record.name!r} is {record.state.value}, nothing to end")
        if record.job not in (NO_JOB, job):
            raise RefusedError(f"volume {record.name!r} is being restored by job {record.job}")
        if State(state) is State.ONLINE and record.needs_discard:
            raise RefusedError(f"volume {record.name!r} still has old content")
        return False

    def publish(
        self, volume: VolumeId, *, job: JobId, epoch: Epoch, state: str, floor: Floor
    ) -> list[Effect]:
        """End a restore or import.

        `floor` is the highest durable floor of the unit and its lanes; the caller has raised the unit's before.
        """
        if not self._may_publish(epoch=epoch, floor=floor):
            raise StaleError(
                f"epoch {epoch} does not fence the writers of the volume, it is at {floor.epoch}",
                hint="publish with a new epoch",
            )
        if self.check_publish(volume, job=job, epoch=epoch, state=state):
            return []
        record, wanted = self.volume(volume), State(state)
        record = replace(record, state=wanted, job=NO_JOB, epoch=epoch)
        self.volumes[volume] = record
        # A failed restore is recorded also when its data cannot be made durable any more.
        first: list[Effect] = [SyncData(volume)] if wanted is State.ONLINE else []
        return [*first, RecordVolume(record)]

    def _may_publish(self, *, epoch: Epoch, floor: Floor) -> bool:
        """The floor stands at exactly this epoch, no lane is above it, and no writer ever opened the volume with it."""
        return floor.epoch == epoch and not floor.holder

    def failed(self, volume: VolumeId) -> list[Effect]:
        """Data that were written may be lost (a failed flush): a volume that is being filled is no good any more."""
        record = self.volume(volume)
        if record.state is State.ONLINE:
            return []
        record = replace(record, state=State.RESTORE_FAILED, job=NO_JOB)
        self.volumes[volume] = record
        return [RecordVolume(record)]

    # --- static views ----------------------------------------------------------------------------

    def may_view(self, view: ViewId, volume: VolumeId) -> ViewRecord | None:
        """Return the view if it exists; raise if it can never be made."""
        _check_id(view)
        existing = self.views.get(view)
        if existing is not None:
            if existing.volume != volume:
                raise RefusedError(f"view {view} exists already and is another one")
            return existing
        not_quiet = self._gone_views.get(view)
        if not_quiet:
            raise NotQuietError(not_quiet, hint="stop the writers, or allow a longer sync timeout")
        if not_quiet is not None:
            raise NotFoundError(f"view {view} was released")
        record = self.volume(volume)
        if record.state is not State.ONLINE:
            raise RefusedError(f"volume {record.name!r} is {record.state.value}")
        if len(self.views) >= VIEWS_MAX:
            raise RefusedError(f"this node has {VIEWS_MAX} static views and takes no more")
        return None

    def make_view(
        self,
        view: ViewId,
        volume: VolumeId,
        *,
        job: JobId,
        ttl_s: float,
        created: str,
        made: MadeView | None = None,
    ) -> list[Effect]:
        """Add a view; the caller knows that the volume is quiet and without writers.  Unless `made` says it, a hold."""
        if self.may_view(view, volume) is not None:
            return []
        made = made or MadeView()
        record = ViewRecord(
            view=view,
            volume=volume,
            job=job,
            designator=designator_of(view),
            ttl_s=ttl_s,
            created=created,
            means=made.means,
            tracking=made.tracking,
            generation=made.generation,
            consistency=made.consistency,
            leg=made.leg,
        )
        self.views[view] = record
        return [RecordView(record)]

    def give_up_view(self, view: ViewId, not_quiet: str) -> NotQuietError:
        """The volume did not become quiet: every double of the request gets the same answer, returned here."""
        assert view not in self.views
        self._forget_view(view, not_quiet)
        return NotQuietError(not_quiet, hint="stop the writers, or allow a longer sync timeout")

    def release(self, view: ViewId) -> list[Effect]:
        """Release a view.  One that does not exist is released, and will not be made by a late double."""
        self._forget_view(view, "")
        record = self.views.pop(view, None)
        return [] if record is None else [DropView(record)]

    def _forget_view(self, view: ViewId, why: str) -> None:
        self._gone_views[view] = why
        while len(self._gone_views) > RELEASED_VIEWS_MAX:
            self._gone_views.popitem(last=False)

    def _refuse_if_held(self, record: VolumeRecord) -> None:
        holders = self.holders(record.volume)
        if holders:
            job = holders[0].job
            raise BusyError(
                f"volume {record.name!r} is held by a static view {whose(job)}",
                hint="wait for the backup to end" if job else "ctl view list, ctl view release",
            )

    def check_invariants(self) -> None:
        """Assert what must hold over all state."""
        assert len(self.volumes) <= VOLUMES_MAX
        assert len(self.views) <= VIEWS_MAX
        for volume, record in self.volumes.items():
            assert record.volume == volume
            assert record.size_bytes % record.block_bytes == 0
            assert record.state is State.RESTORING or not record.job
            if record.needs_discard:
                assert record.state in (State.RESTORING, State.RESTORE_FAILED)
        for view, held in self.views.items():
            assert held.view == view
            assert self.volumes[held.volume].state is State.ONLINE
            assert view not in self._gone_views


NO_JOB: Final = JobId(0)
NO_EPOCH: Final = Epoch(0)


def whose(job: JobId) -> str:
    """Say in words whose a view is."""
    return f"of job {job}" if job else "that was made by hand"


def _check_id(uuid_hex: str) -> None:
    if len(uuid_hex) != 32 or set(uuid_hex) - set("0123456789abcdef"):
        raise UsageError(f"{uuid_hex!r} is no UUID of 32 hex digits")


def _check_geometry(size_bytes: int, block_bytes: int) -> None:
    if block_bytes not in BLOCK_BYTES_ALLOWED:
        raise UsageError(f"blocks of {block_bytes} bytes; allowed are {BLOCK_BYTES_ALLOWED}")
    if not 0 < size_bytes <= SIZE_BYTES_MAX:
        raise UsageError(f"a volume of {size_bytes} bytes cannot be made")
    if size_bytes % block_bytes:
        raise UsageError(f"{size_bytes} bytes are no whole number of {block_bytes}-byte blocks")
