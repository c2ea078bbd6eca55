"""Control requests about volumes: each method carries one out, blocking, and returns what it concerns.

Every change is one *step*: the book changes, the gates follow, the record becomes durable; whoever describes volumes
and views (`describe`, the inventory) waits for the step to end, so nothing is told that a crash could take back.  What
may take long (flush, discard, waiting for requests under way) is done outside of steps: a request that is inside a unit
may itself need a step, for its first write or its failed flush.  The caller serialises requests about one volume.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backplane.errors import BackupError, BusyError, StaleError, UsageError
from backplane.ids import Designator, Epoch, JobId, ViewId, VolumeId
from backplane.runtime.clock import Clock
from backplane.wire.messages import (
    LegState,
    ViewState,
    VolumeAttach,
    VolumeCreate,
    VolumeMirror,
    VolumeOffline,
    VolumePublish,
    VolumeReserve,
    VolumeState,
    VolumeUnreserve,
    VolumeZero,
)
from storage_node.access import Access
from storage_node.core.admission import Admission, Unit, UnitKind, WriteGate
from storage_node.core.hook_rules import HookPair, hook_environment
from storage_node.core.reservations import Reservations
from storage_node.core.volume_state import (
    NO_JOB,
    DiscardData,
    Effect,
    MakeVolume,
    Means,
    State,
    SyncData,
    ViewRecord,
    VolumeBook,
    VolumeRecord,
    whose,
)
from storage_node.core.write_inactivity import NEVER_WRITTEN
from storage_node.disk.device import DeviceError
from storage_node.disk.device_activity import DeviceActivity
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.static_views import LostView, StaticView, ViewMaker
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_unit import DiskUnit
from storage_node.hooks import HookRound, around_view, run_leftover
from storage_node.state_file import StateError

log = logging.getLogger(__name__)

EXTENT: Final = struct.Struct(">QQ")
NEARLY_FULL: Final = 0.9
"""Of a snapshot's reserve: beyond it nobody keeps one for a controller that is away."""
NO_HOOKS: Final[Mapping[str, HookPair]] = MappingProxyType({})


class DiskControl:
    """The volumes and views of a node, with their logical units."""

    def __init__(
        self,
        store: VolumeStore,
        access: Access,
        *,
        clock: Clock,
        maker: ViewMaker,
        hooks: Mapping[str, HookPair] = NO_HOOKS,
        on_fatal: Callable[[StateError], None],
    ) -> None:
        """`hooks` are the commands around views, by the volume's name."""
        self.store = store
        self.access = access
        self.clock = clock
        self.maker = maker
        self.hooks = hooks
        self._device_activity: dict[VolumeId, DeviceActivity] = {}
        self._on_fatal = on_fatal
        self.step = threading.RLock()
        """Reentrant: a flush that fails within a step is told within it."""
        self._noting = threading.Lock()
        self.units: dict[Designator, DiskUnit] = {}
        self.live: dict[VolumeId, LiveVolume] = {}
        self.view_data: dict[ViewId, StaticView] = {}
        self.connections: dict[VolumeId, int] = {}
        """Workstations that are connected; kept by the NBD exports, under `step`."""
        self._reservations = Reservations()
        volumes, views = store.load()
        self.book = VolumeBook(volumes=volumes, views=views)
        now = clock.monotonic()
        for record in volumes:
            self._register_volume(record, last_write_s=now)
        for view in views:
            self._find_view(view)
            with access.locked() as rules:
                self.set_gate(rules, view.volume)
        self._run_leftovers()
        for volume, live in self.live.items():
            maker.rejoin(live, {view.leg for view in self.book.holders(volume)})
        orphans = maker.sweep(set(self.book.views))
        if orphans:
            log.info("removed what belonged to no static view", extra={"names": orphans})

    def nearly_full(self) -> list[ViewId]:
        """Return the views whose reserve is nearly used up."""
        with self.step:
            return [view for view, data in self.view_data.items() if data.used_share >= NEARLY_FULL]

    def close(self) -> None:
        """Leave the data of the views to the next start."""
        for data in self.view_data.values():
            data.close()

    # --- describing ------------------------------------------------------------------------------

    def describe(self) -> tuple[tuple[VolumeState, ...], tuple[ViewState, ...]]:
        """Return all volumes and views."""
        with self.step:
            volumes = tuple(self._volume_state(record) for record in self.book.volumes.values())
            views = tuple(self.view_state(view) for view in self.book.views.values())
        return volumes, views

    def volume_of(self, designator: Designator) -> VolumeId | None:
        """Return the volume behind a designator of a volume or a view."""
        with self.step:
            for record in self.book.volumes.values():
                if record.designator == designator:
                    return record.volume
            for view in self.book.views.values():
                if view.designator == designator:
                    return view.volume
        return None

    def _volume_state(self, record: VolumeRecord) -> VolumeState:
        holders = self.book.holders(record.volume)
        with self.access.locked() as rules:
            epoch = rules.highest_floor(record.designator).epoch
        live = self.live[record.volume]
        activity, tracker = live.activity(), self.store.trackers.get(record.volume)
        return VolumeState(
            volume=record.volume,
            name=record.name,
            designator=record.designator,
            blocks=record.blocks,
            block_bytes=record.block_bytes,
            used_bytes=live.used_bytes(),
            state=record.state.value,
            held_by=holders[0].job if holders else NO_JOB,
            is_empty=record.is_empty,
            epoch=epoch,
            path=str(self.store.path(record)),
            idle_s=self._idle_s(record),
            last_writer=activity.last_writer,
            connections=self.connections.get(record.volume, 0),
            is_read_only=live.is_read_only,
            tracking="" if tracker is None else tracker.tracking,
            generation=0 if tracker is None else tracker.generation,
            legs=self._legs(record.volume),
        )

    def _idle_s(self, record: VolumeRecord) -> float:
        last = self.last_write_s(record)
        return -1.0 if last == NEVER_WRITTEN else max(0.0, self.clock.monotonic() - last)

    def last_write_s(self, record: VolumeRecord) -> float:
        """Return when the last write to a volume ended, ours or, on a block device, anybody's."""
        ours = self.live[record.volume].activity().last_write_s
        device = self._device_activity.get(record.volume)
        theirs = None if device is None else device.sample(self.clock.monotonic())
        return ours if theirs is None else max(ours, theirs)

    def around_view(
        self, view: ViewId, volume: VolumeId, *, job: JobId
    ) -> AbstractContextManager[HookRound]:
        """Return the commands around the making of a view; none, for a volume that has none."""
        name = self.book.volume(volume).name
        return around_view(
            self.hooks.get(name, HookPair()),
            hook_environment(volume=name, view=view, job=job),
            marker=self.maker.marker(volume),
        )

    def _run_leftovers(self) -> None:
        """Take back what commands did before views in whose making the node ended."""
        for record in self.book.volumes.values():
            pair = self.hooks.get(record.name)
            done = None if pair is None else run_leftover(pair, self.maker.marker(record.volume))
            if done is not None:
                log.warning(
                    "ran the command behind a view that was never made",
                    extra={"volume": record.name, "reason": done.reason or "it succeeded"},
                )

    def _legs(self, volume: VolumeId) -> tuple[LegState, ...]:
        mirror = self.store.mirrors.get(volume)
        if mirror is None:
            return ()
        return tuple(
            LegState(
                name=leg.name,
                path=leg.path,
                state=leg.state.value,
                reason=leg.reason,
                bytes_left=leg.bytes_left,
                bytes_total=leg.bytes_total,
            )
            for leg in mirror.legs()
        )

    def view_state(self, view: ViewRecord) -> ViewState:
        """Describe a view; called within a step."""
        record, data = self.book.volumes[view.volume], self.view_data[view.view]
        return ViewState(
            view=view.view,
            volume=view.volume,
            job=view.job,
            designator=view.designator,
            blocks=record.blocks,
            block_bytes=record.block_bytes,
            means=view.means.value,
            state="broken" if data.broken else "active",
            reason=data.broken,
            tracking=view.tracking,
            generation=view.generation,
            used_bytes=data.used_bytes,
            created=view.created,
            consistency=view.consistency,
        )

    def _told(self, volume: VolumeId) -> VolumeState:
        with self.step:
            return self._volume_state(self.book.volume(volume))

    # --- volumes ---------------------------------------------------------------------------------

    def create(self, message: VolumeCreate) -> VolumeState:
        """Make an empty volume."""

        def change(_: Admission) -> list[Effect]:
            return self.book.create(
                volume=message.volume,
                name=message.name,
                size_bytes=message.size_bytes,
                block_bytes=message.block_bytes,
                state=message.state,
            )

        return self._make(message.volume, change)

    def attach(self, message: VolumeAttach) -> VolumeState:
        """Use an existing device or image in place."""
        path = self.store.resolve(message.path)
        with self.step:
            known = self.book.volumes.get(message.volume)
        if known is not None and known.path == str(path):
            size_bytes = known.size_bytes
        else:
            size_bytes = self.store.probe(path, block_bytes=message.block_bytes)

        def change(_: Admission) -> list[Effect]:
            return self.book.attach(
                volume=message.volume,
                name=message.name,
                path=str(path),
                size_bytes=size_bytes,
                block_bytes=message.block_bytes,
            )

        return self._make(message.volume, change)

    def _make(self, volume: VolumeId, change: Callable[[Admission], list[Effect]]) -> VolumeState:
        effects = self.change(change)
        if effects:
            self._register_volume(self.book.volume(volume))
        return self._told(volume)

    def delete(self, volume: VolumeId) -> None:
        """Delete a volume and its data; attached ones only lose their record."""

        def change(rules: Admission) -> list[Effect]:
            record = self.book.volumes.get(volume)
            if record is None:
                return []
            # Nobody is inside if this succeeds, and with the unit gone nobody comes in.
            has_writer = self.access.has_writer(record.designator)
            self._refuse_if_connected(record)
            effects = self.book.delete(volume, has_writer=has_writer)
            rules.remove_unit(record.designator)
            self.units.pop(record.designator, None)
            self.live.pop(volume, None)
            self._device_activity.pop(volume, None)
            return effects

        self.change(change)

    def offline(self, message: VolumeOffline) -> VolumeState:
        """Begin a restore: fence, discard, durably."""
        volume = message.volume

        def change(rules: Admission) -> list[Effect]:
            record = self.book.volume(volume)
            if record.state is State.ONLINE:
                self._refuse_if_connected(record)
            effects = self.book.offline(
                volume,
                job=message.job,
                epoch=message.epoch,
                is_forced=message.is_forced,
                floor=rules.highest_floor(record.designator),
            )
            self.set_gate(rules, volume)
            return effects

        effects = self.change(change)
        self.access.fence(self.book.volume(volume).designator, message.epoch)
        if any(isinstance(effect, DiscardData) for effect in effects):
            self.live[volume].discard_all()

            def discarded(rules: Admission) -> list[Effect]:
                done = self.book.discarded(volume)
                self.set_gate(rules, volume)
                return done

            self.change(discarded)
        return self._told(volume)

    def publish(self, message: VolumePublish) -> VolumeState:
        """End a restore or import: fence, flush, and only then change the state."""
        volume, epoch = message.volume, message.epoch
        with self.step, self.access.locked():
            designator = self.book.volume(volume).designator
            self.book.check_publish(volume, job=message.job, epoch=epoch, state=message.state)
        self.access.fence(designator, epoch)
        if message.state == State.ONLINE.value:
            self.live[volume].flush()  # the long one; the flush within the step finds nothing to do

        def change(rules: Admission) -> list[Effect]:
            effects = self.book.publish(
                volume,
                job=message.job,
                epoch=epoch,
                state=message.state,
                floor=rules.highest_floor(designator),
            )
            self.set_gate(rules, volume)
            return effects

        self.change(change)
        return self._told(volume)

    # --- steps -----------------------------------------------------------------------------------

    def change(self, change: Callable[[Admission], list[Effect]]) -> list[Effect]:
        """One step: change the book, and make it durable."""
        with self.step:
            with self.access.locked() as rules:
                effects = change(rules)
            self.perform(effects)
            return effects

    def perform(self, effects: list[Effect]) -> None:
        """Carry out effects; called within a step."""
        try:
            for effect in effects:
                match effect:
                    case SyncData(volume):
                        self._sync_again(volume)
                    case DiscardData():
                        pass  # the caller's, outside of the step
                    case MakeVolume(record):
                        self._make_or_forget(record)
                    case _:
                        self.store.perform(effect)
        except StateError as error:
            self._on_fatal(error)
            raise

    def _sync_again(self, volume: VolumeId) -> None:
        """The data were flushed a moment ago and nobody writes: a failure now leaves the book ahead of the disk."""
        try:
            self.live[volume].flush()
        except DeviceError as error:
            raise StateError(f"cannot publish volume {volume}: {error}") from error

    def _make_or_forget(self, record: VolumeRecord) -> None:
        try:
            self.store.perform(MakeVolume(record))
        except StateError:
            raise
        except BackupError:
            with self.access.locked():
                self.book.not_made(record.volume)
            raise

    def _flush_failed(self, volume: VolumeId) -> None:
        def change(rules: Admission) -> list[Effect]:
            effects = self.book.failed(volume)
            self.set_gate(rules, volume)
            return effects

        self.change(change)

    def _note_write(self, volume: VolumeId) -> None:
        """Make "not empty" durable before the first write."""
        with self._noting:
            self.change(lambda _: self.book.written(volume))

    def reserve(self, message: VolumeReserve) -> VolumeState:
        """Keep workstations away from a volume for a job."""
        with self.step:
            record = self.book.volume(message.volume)
            if record.state is not State.ONLINE:
                raise BusyError(f"volume {record.name} is {record.state.value}")
            self._check_epoch(record, message.epoch)
            self._reservations.reserve(
                message.volume,
                message.job,
                ttl_s=message.ttl_s,
                connections=self.connections.get(message.volume, 0),
                has_writer=self._has_writer(record),
                now=self.clock.monotonic(),
                is_shared=message.is_shared,
            )
            return self._volume_state(record)

    def zero(self, message: VolumeZero) -> None:
        """Write zeros to extents of a reserved volume, durably; the reservation begins its time anew."""
        with self.step:
            record = self.book.volume(message.volume)
            self._reservations.prolong(message.volume, message.job, now=self.clock.monotonic())
            if message.extents:
                self._check_epoch(record, message.epoch)
            live = self.live[message.volume]
        if len(message.extents) % EXTENT.size:
            raise UsageError("extents: no whole number of pairs")
        extents = list(EXTENT.iter_unpack(message.extents))
        if any(lba + blocks > record.blocks for lba, blocks in extents):
            raise UsageError(f"extents beyond the {record.blocks} blocks of the volume")
        size = record.block_bytes
        for lba, blocks in extents:
            live.zero(lba * size, blocks * size, may_punch=True, writer=f"job {message.job}")
        if extents:
            live.flush()

    def _check_epoch(self, record: VolumeRecord, epoch: Epoch) -> None:
        """Raise `StaleError` for a request that a fence has overtaken."""
        with self.access.locked() as rules:
            floor = rules.highest_floor(record.designator).epoch
        if epoch < floor:
            raise StaleError(f"epoch {epoch} was overtaken, volume {record.name} is at {floor}")

    def check_writer(self, volume: VolumeId, job: JobId) -> None:
        """Raise `RefusedError` if a mover may not write to a volume, whatever its grant says.

        Called with each write.  What it finds holds until the write is done: a reservation ends behind a fence, which
        waits for those who are inside, and never by itself while a mover has the volume open for writing.
        """
        record = self.book.volumes.get(volume)
        if record is not None and record.state is State.ONLINE:
            self._reservations.require(volume, job, now=self.clock.monotonic())

    def unreserve(self, message: VolumeUnreserve) -> None:
        """Let workstations use the volume again; what was written is durable then."""
        with self.step:
            live = self.live.get(message.volume)
        if live is not None:
            live.flush_if_dirty()
        with self.step:
            self._reservations.unreserve(message.volume, message.job)

    def _has_writer(self, record: VolumeRecord) -> bool:
        with self.access.locked():
            return self.access.has_writer(record.designator)

    def connected(self, volume: VolumeId) -> None:
        """A workstation opens the volume; called within a step.  Raises `BusyError` while a job has it."""
        self._reservations.check(
            volume,
            has_writer=self._has_writer(self.book.volume(volume)),
            now=self.clock.monotonic(),
        )
        self.connections[volume] = self.connections.get(volume, 0) + 1

    def disconnected(self, volume: VolumeId) -> None:
        """A workstation's connection has ended."""
        with self.step:
            self.connections[volume] -= 1

    def _refuse_if_connected(self, record: VolumeRecord) -> None:
        count = self.connections.get(record.volume, 0)
        if count:
            raise BusyError(
                f"volume {record.name!r} is used by {count} NBD connection{'s' if count > 1 else ''}",
                hint="unmount and disconnect the workstations first",
            )

    # --- the backup mirror -----------------------------------------------------------------------

    def mirror(self, message: VolumeMirror) -> VolumeState:
        """Add a leg to a volume's mirror, remove one, or have one catch up."""
        with self.step:
            record = self.book.volume(message.volume)
            holder = next(
                (v for v in self.book.holders(message.volume) if v.leg == message.leg), None
            )
        if holder is not None:
            raise BusyError(f"leg {message.leg} is a static view {whose(holder.job)}")
        self.store.change_mirror(
            record,
            message.action,
            leg=message.leg,
            path=message.path,
            live=self.live[record.volume],
        )
        return self._told(message.volume)

    # --- units -----------------------------------------------------------------------------------

    def set_gate(self, rules: Admission, volume: VolumeId) -> None:
        """Have the rules, and the volume itself, follow the book."""
        self.live[volume].hold(
            [view.job for view in self.book.holders(volume) if view.means is Means.HOLD]
        )
        rules.put_unit(self._unit(self.book.volumes[volume]))

    def _unit(self, record: VolumeRecord) -> Unit:
        return Unit(
            designator=record.designator,
            kind=UnitKind.BLOCK,
            block_bytes=record.block_bytes,
            blocks=record.blocks,
            gate=self.book.gate(record.volume),
        )

    def _register_volume(self, record: VolumeRecord, *, last_write_s: float | None = None) -> None:
        volume = record.volume
        self.live[volume] = LiveVolume(
            self.store.devices[volume],
            monotonic=self.clock.monotonic,
            tracker=self.store.trackers.get(volume),
            on_first_write=lambda: self._note_write(volume),
            on_flush_failed=lambda: self._flush_failed(volume),
            last_write_s=NEVER_WRITTEN if last_write_s is None else last_write_s,
        )
        if record.path and Path(record.path).is_block_device():
            self._device_activity[volume] = DeviceActivity(Path(record.path))
        self.units[record.designator] = DiskUnit(
            self.live[volume],
            self.access,
            check_writer=lambda job: self.check_writer(volume, job),
        )
        self.access.put_unit(self._unit(record), last_write_s=last_write_s)

    def _find_view(self, view: ViewRecord) -> None:
        """Find a view after a restart; its data may be gone, and are told as broken then."""
        try:
            data = self.maker.reopen(view, self.live[view.volume])
        except (BackupError, OSError) as error:
            log.warning("a static view is lost", extra={"view": view.view, "reason": str(error)})
            data = LostView(view.means, self.live[view.volume], str(error))
        self.register_view(view, data)

    def register_view(self, view: ViewRecord, data: StaticView) -> None:
        """Make a view known to the data channels."""
        record = self.book.volumes[view.volume]
        self.view_data[view.view] = data
        self.units[view.designator] = DiskUnit(data.device, self.access)
        self.access.put_unit(
            Unit(
                designator=view.designator,
                kind=UnitKind.BLOCK,
                block_bytes=record.block_bytes,
                blocks=record.blocks,
                gate=WriteGate.NEVER,
            )
        )
