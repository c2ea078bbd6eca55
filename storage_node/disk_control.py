"""Control requests of the disk role: each method carries one out, blocking, and returns what it concerns.

Every change is one *step*: the book changes, the gates follow, the record becomes durable; whoever describes volumes
and views (`describe`, the inventory) waits for the step to end, so nothing is told that a crash could take back.  What
may take long (flush, discard, waiting for requests under way) is done outside of steps: a request that is inside a unit
may itself need a step, for its first write or its failed flush.  The caller serialises requests about one volume.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Final

from backplane.errors import BackupError, NotFoundError, UsageError
from backplane.ids import Designator, ViewId, VolumeId
from backplane.runtime.clock import Clock
from backplane.wire.messages import (
    ViewCreate,
    ViewExtents,
    ViewState,
    VolumeAttach,
    VolumeCreate,
    VolumeOffline,
    VolumePublish,
    VolumeState,
)
from storage_node.access import Access
from storage_node.core.admission import Admission, Unit, UnitKind, WriteGate
from storage_node.core.volume_state import (
    NO_JOB,
    DiscardData,
    Effect,
    MakeVolume,
    State,
    SyncData,
    ViewRecord,
    VolumeBook,
    VolumeRecord,
)
from storage_node.core.write_inactivity import (
    AskAgain,
    Quiet,
    QuietWait,
)
from storage_node.disk.device import DeviceError
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_unit import DiskUnit
from storage_node.state_file import StateError

EXTENTS_MAX: Final = 50_000
"""Extents in one answer: 16 bytes each in a control message of at most 1 MiB."""

EXTENT: Final = struct.Struct(">QQ")
MEANS: Final = "hold"
TTL_S_MAX: Final = 30 * 86400.0


class DiskControl:
    """The volumes and views of a node, with their logical units."""

    def __init__(
        self,
        store: VolumeStore,
        access: Access,
        *,
        clock: Clock,
        on_fatal: Callable[[StateError], None],
    ) -> None:
        self._store = store
        self._access = access
        self._clock = clock
        self._on_fatal = on_fatal
        self._step = threading.Lock()
        self._noting = threading.Lock()
        self._noted: set[VolumeId] = set()
        self.units: dict[Designator, DiskUnit] = {}
        volumes, views = store.load()
        self._book = VolumeBook(volumes=volumes, views=views)
        now = clock.monotonic()
        for record in volumes:
            self._register_volume(record, last_write_s=now)
        for view in views:
            self._register_view(view)

    # --- describing ------------------------------------------------------------------------------

    def describe(self) -> tuple[tuple[VolumeState, ...], tuple[ViewState, ...]]:
        """Return all volumes and views."""
        with self._step:
            volumes = tuple(self._volume_state(record) for record in self._book.volumes.values())
            views = tuple(self._view_state(view) for view in self._book.views.values())
        return volumes, views

    def volume_of(self, designator: Designator) -> VolumeId | None:
        """Return the volume behind a designator of a volume or a view."""
        with self._step:
            for record in self._book.volumes.values():
                if record.designator == designator:
                    return record.volume
            for view in self._book.views.values():
                if view.designator == designator:
                    return view.volume
        return None

    def views(self) -> list[ViewRecord]:
        """Return the views there are."""
        with self._step:
            return list(self._book.views.values())

    def _volume_state(self, record: VolumeRecord) -> VolumeState:
        holders = self._book.holders(record.volume)
        with self._access.locked() as rules:
            epoch = rules.floor(record.designator).epoch
        return VolumeState(
            volume=record.volume,
            name=record.name,
            designator=record.designator,
            blocks=record.blocks,
            block_bytes=record.block_bytes,
            used_bytes=self._store.devices[record.volume].used_bytes(),
            state=record.state.value,
            held_by=holders[0].job if holders else NO_JOB,
            is_empty=record.is_empty,
            epoch=epoch,
            path=str(self._store.path(record)),
        )

    def _view_state(self, view: ViewRecord) -> ViewState:
        record = self._book.volumes[view.volume]
        return ViewState(
            view=view.view,
            volume=view.volume,
            job=view.job,
            designator=view.designator,
            blocks=record.blocks,
            block_bytes=record.block_bytes,
            means=MEANS,
            state="active",
            reason="",
        )

    def _told(self, volume: VolumeId) -> VolumeState:
        with self._step:
            return self._volume_state(self._book.volume(volume))

    # --- volumes ---------------------------------------------------------------------------------

    def create(self, message: VolumeCreate) -> VolumeState:
        """Make an empty volume."""

        def change(_: Admission) -> list[Effect]:
            return self._book.create(
                volume=message.volume,
                name=message.name,
                size_bytes=message.size_bytes,
                block_bytes=message.block_bytes,
                state=message.state,
            )

        return self._make(message.volume, change)

    def attach(self, message: VolumeAttach) -> VolumeState:
        """Use an existing device or image in place."""
        path = self._store.resolve(message.path)
        with self._step:
            known = self._book.volumes.get(message.volume)
        if known is not None and known.path == str(path):
            size_bytes = known.size_bytes
        else:
            size_bytes = self._store.probe(path, block_bytes=message.block_bytes)

        def change(_: Admission) -> list[Effect]:
            return self._book.attach(
                volume=message.volume,
                name=message.name,
                path=str(path),
                size_bytes=size_bytes,
                block_bytes=message.block_bytes,
            )

        return self._make(message.volume, change)

    def _make(self, volume: VolumeId, change: Callable[[Admission], list[Effect]]) -> VolumeState:
        effects = self._change(change)
        if effects:
            self._register_volume(self._book.volume(volume))
        return self._told(volume)

    def delete(self, volume: VolumeId) -> None:
        """Delete a volume and its data; attached ones only lose their record."""

        def change(rules: Admission) -> list[Effect]:
            record = self._book.volumes.get(volume)
            if record is None:
                return []
            # Nobody is inside if this succeeds, and with the unit gone nobody comes in.
            has_writer = self._access.has_writer(record.designator)
            effects = self._book.delete(volume, has_writer=has_writer)
            rules.remove_unit(record.designator)
            self.units.pop(record.designator, None)
            self._noted.discard(volume)
            return effects

        self._change(change)

    def offline(self, message: VolumeOffline) -> VolumeState:
        """Begin a restore: fence, discard, durably."""
        volume = message.volume

        def change(rules: Admission) -> list[Effect]:
            record = self._book.volume(volume)
            effects = self._book.offline(
                volume,
                job=message.job,
                epoch=message.epoch,
                is_forced=message.is_forced,
                floor=rules.floor(record.designator),
            )
            self._set_gate(rules, volume)
            return effects

        effects = self._change(change)
        self._access.fence(self._book.volume(volume).designator, message.epoch)
        if any(isinstance(effect, DiscardData) for effect in effects):
            self._store.devices[volume].discard_all()
            self._noted.discard(volume)

            def discarded(rules: Admission) -> list[Effect]:
                done = self._book.discarded(volume)
                self._set_gate(rules, volume)
                return done

            self._change(discarded)
        return self._told(volume)

    def publish(self, message: VolumePublish) -> VolumeState:
        """End a restore or import: fence, flush, and only then change the state."""
        volume, epoch = message.volume, message.epoch
        with self._step, self._access.locked():
            designator = self._book.volume(volume).designator
            self._book.check_publish(volume, job=message.job, epoch=epoch, state=message.state)
        self._access.fence(designator, epoch)
        if message.state == State.ONLINE.value:
            self._flush(volume)  # the long one; the flush within the step finds nothing to do

        def change(rules: Admission) -> list[Effect]:
            effects = self._book.publish(
                volume,
                job=message.job,
                epoch=epoch,
                state=message.state,
                floor=rules.floor(designator),
            )
            self._set_gate(rules, volume)
            return effects

        self._change(change)
        return self._told(volume)

    # --- views -----------------------------------------------------------------------------------

    def create_view(self, message: ViewCreate, wait: QuietWait) -> ViewState | AskAgain:
        """Make the view if the volume is quiet; otherwise say when to ask again, or raise `NotQuietError`."""
        if not 0 < message.ttl_s <= TTL_S_MAX:
            raise UsageError(f"a view lives longer than 0 and at most {TTL_S_MAX:.0f} s")
        later: list[AskAgain] = []

        def change(rules: Admission) -> list[Effect]:
            if self._book.may_view(message.view, message.volume) is not None:
                return []
            designator = self._book.volume(message.volume).designator
            answer = wait.decide(
                last_write_s=self._access.last_write_s(designator),
                has_writer=self._access.has_writer(designator),
                now=self._clock.monotonic(),
            )
            if isinstance(answer, AskAgain):
                later.append(answer)
                return []
            if not isinstance(answer, Quiet):
                raise self._book.give_up_view(
                    message.view,
                    f"no {wait.quiet_s:g} s without writes within {wait.timeout_s:g} s",
                )
            effects = self._book.make_view(
                message.view,
                message.volume,
                job=message.job,
                ttl_s=message.ttl_s,
                created=self._clock.wall().isoformat(timespec="seconds"),
            )
            self._set_gate(rules, message.volume)
            return effects

        effects = self._change(change)
        if later:
            return later[0]
        with self._step:
            view = self._book.views[message.view]
            if effects:
                self._register_view(view)
            return self._view_state(view)

    def release_view(self, view: ViewId) -> bool:
        """Release a view: its readers first, then its record, then the gate.  Tells whether there was one."""
        with self._step:
            known = self._book.views.get(view)
        if known is not None:
            self.units.pop(known.designator, None)
            self._access.remove_unit(known.designator)
        self._change(lambda _: self._book.release(view))
        if known is not None:
            with self._step, self._access.locked() as rules:
                self._set_gate(rules, known.volume)
        return known is not None

    def extents(self, message: ViewExtents) -> tuple[bytes, int]:
        """Return packed (LBA, blocks) pairs of what is allocated, and the LBA to go on from."""
        unit = self.units.get(message.designator)
        if unit is None:
            raise NotFoundError(f"no volume or view {message.designator.hex()} on this node")
        if message.extents_max < 1:
            raise UsageError("extents_max must be at least 1")
        device, most = unit.device, min(message.extents_max, EXTENTS_MAX)
        size, packed = device.block_bytes, bytearray()
        found = device.extents(message.start_lba * size, device.size_bytes)
        for count, (start, end) in enumerate(found):
            if count == most:
                return bytes(packed), start // size
            packed += EXTENT.pack(start // size, (end - start) // size)
        return bytes(packed), device.size_bytes // size

    # --- steps -----------------------------------------------------------------------------------

    def _change(self, change: Callable[[Admission], list[Effect]]) -> list[Effect]:
        with self._step:
            with self._access.locked() as rules:
                effects = change(rules)
            self._perform(effects)
            return effects

    def _perform(self, effects: list[Effect]) -> None:
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
                        self._store.perform(effect)
        except StateError as error:
            self._on_fatal(error)
            raise

    def _sync_again(self, volume: VolumeId) -> None:
        """The data were flushed a moment ago and nobody writes: a failure now leaves the book ahead of the disk."""
        try:
            self._store.devices[volume].flush()
        except DeviceError as error:
            raise StateError(f"cannot publish volume {volume}: {error}") from error

    def _make_or_forget(self, record: VolumeRecord) -> None:
        try:
            self._store.perform(MakeVolume(record))
        except StateError:
            raise
        except BackupError:
            with self._access.locked():
                self._book.not_made(record.volume)
            raise

    def _flush(self, volume: VolumeId) -> None:
        try:
            self._store.devices[volume].flush()
        except DeviceError:
            self._flush_failed(volume)
            raise

    def _flush_failed(self, volume: VolumeId) -> None:
        def change(rules: Admission) -> list[Effect]:
            effects = self._book.failed(volume)
            self._set_gate(rules, volume)
            return effects

        self._change(change)

    def _note_write(self, volume: VolumeId) -> None:
        """Make "not empty" durable before the first write; later ones find it noted."""
        if volume in self._noted:
            return
        with self._noting:
            self._change(lambda _: self._book.written(volume))
            self._noted.add(volume)

    # --- units -----------------------------------------------------------------------------------

    def _set_gate(self, rules: Admission, volume: VolumeId) -> None:
        rules.put_unit(self._unit(self._book.volumes[volume]))

    def _unit(self, record: VolumeRecord) -> Unit:
        return Unit(
            designator=record.designator,
            kind=UnitKind.BLOCK,
            block_bytes=record.block_bytes,
            blocks=record.blocks,
            gate=self._book.gate(record.volume),
        )

    def _register_volume(self, record: VolumeRecord, *, last_write_s: float | None = None) -> None:
        volume = record.volume
        self.units[record.designator] = DiskUnit(
            self._store.devices[volume],
            self._access,
            before_write=lambda: self._note_write(volume),
            on_flush_failed=lambda: self._flush_failed(volume),
        )
        self._access.put_unit(self._unit(record), last_write_s=last_write_s)

    def _register_view(self, view: ViewRecord) -> None:
        record = self._book.volumes[view.volume]
        self.units[view.designator] = DiskUnit(self._store.devices[view.volume], self._access)
        self._access.put_unit(
            Unit(
                designator=view.designator,
                kind=UnitKind.BLOCK,
                block_bytes=record.block_bytes,
                blocks=record.blocks,
                gate=WriteGate.NEVER,
            )
        )
