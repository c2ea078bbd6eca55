"""A disk node: volumes and static views, and the rules by which they change."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from backplane.crc import crc32c
from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    StaleError,
)
from backplane.ids import JobId
from backplane.scsi.designator import designator_of
from backplane.wire.messages import (
    LegState,
    NodeInventory,
    NodeReply,
    UnitFence,
    UnitFenced,
    ViewCreate,
    ViewExtents,
    ViewMap,
    ViewMapPage,
    ViewMember,
    ViewNarrow,
    ViewRelease,
    ViewSample,
    ViewState,
    ViewWaiting,
    VolumeAttach,
    VolumeCreate,
    VolumeDelete,
    VolumeMirror,
    VolumeOffline,
    VolumePublish,
    VolumeReserve,
    VolumeState,
    VolumeUnreserve,
    VolumeZero,
)
from tests.site.maps import Files, Made

BLOCK = 512


@dataclass
class Volume:
    """A volume; `data` holds the blocks that were written, `job` the restore that owns it."""

    row: VolumeState
    data: dict[int, bytes] = field(default_factory=dict)
    job: int = 0
    generation: int = 0
    changes: dict[int, int] = field(default_factory=dict)
    """The generation in which a block was last written or trimmed."""
    files: Files = field(default_factory=Files)
    map_error: BackupError | None = None
    """Why the volume cannot be mapped."""

    def track(self, history: str = "h1") -> None:
        """Begin a history of changes; what was before is not known in it."""
        self.row = replace(self.row, tracking=history)
        self.changes.clear()

    def write(self, blocks: dict[int, bytes]) -> None:
        """Write blocks as a workstation does: the tracker sees it, which `data` alone does not tell it."""
        self.data.update(blocks)
        self.changes.update(dict.fromkeys(blocks, self.generation))

    def trim(self, *lbas: int) -> None:
        """Give blocks back."""
        for lba in lbas:
            self.data.pop(lba, None)
            self.changes[lba] = self.generation


@dataclass
class DiskNode:
    """A storage node of the disk role.  What it keeps survives `restart`."""

    name: str = "disk"
    boot: bytes = b"b" * 16
    volumes: dict[str, Volume] = field(default_factory=dict)
    views: dict[str, ViewState] = field(default_factory=dict)
    view_data: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    view_changes: dict[bytes, dict[int, int]] = field(default_factory=dict)
    view_files: dict[str, Files] = field(default_factory=dict)
    maps: dict[str, Made] = field(default_factory=dict)
    """Maps of views; they do not survive `restart`."""
    narrowed: dict[str, set[int]] = field(default_factory=dict)
    """Of views that were narrowed: the blocks that can still be read."""
    narrow_error: BackupError | None = None
    released: set[str] = field(default_factory=set)
    floor: dict[bytes, int] = field(default_factory=dict)
    lane_floor: dict[tuple[bytes, int], int] = field(default_factory=dict)
    held_whole: set[bytes] = field(default_factory=set)
    """Units whose floor a writer of the whole unit has: no lane is let in before the unit is fenced."""
    never_quiet: set[str] = field(default_factory=set)
    writers: dict[str, str] = field(default_factory=dict)
    """Volumes that are being written all the time, and by whom: they are waited for until the timeout."""
    waits: dict[str, float] = field(default_factory=dict)
    """When the wait for a view began."""
    instants: dict[str, int] = field(default_factory=dict)
    """In which instant a view was made, for those who want to know whether two are of the same."""
    clock: Callable[[], float] = lambda: 0.0
    bad_lbas: set[int] = field(default_factory=set)
    reserved: dict[str, int] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    """Volumes that workstations may go on using while a job has reserved them."""
    """Which job has which volume; not kept over `restart`."""
    misdirected: dict[int, int] = field(default_factory=dict)
    """Where a mover that errs writes a block instead."""
    broken_because: str = ""
    """What is told of a view that is asked for again."""
    nbd_addresses: tuple[str, ...] = ("tcp://127.0.0.1:10809",)

    def inventory(self) -> NodeInventory:
        """Say what is here."""
        return NodeInventory(
            boot_id=self.boot,
            public_key=b"n" * 32,
            addresses=("tcp://127.0.0.1:1",),
            roles=("disk",),
            volumes=tuple(self.state(volume) for volume in self.volumes.values()),
            views=tuple(self.views.values()),
            drives=(),
            cartridges=(),
            nbd_addresses=self.nbd_addresses,
        )

    def state(self, volume: Volume) -> VolumeState:
        """Describe a volume as it is now."""
        holders = [view.job for view in self.views.values() if view.volume == volume.row.volume]
        is_empty = volume.row.is_empty and not volume.data
        held_by = holders[0] if holders else volume.row.held_by
        return replace(volume.row, is_empty=is_empty, held_by=held_by)

    def by_name(self, name: str) -> Volume:
        """Return a volume by its name."""
        return next(volume for volume in self.volumes.values() if volume.row.name == name)

    def by_unit(self, designator: bytes) -> Volume:
        """Return a volume by its designator."""
        return next(v for v in self.volumes.values() if v.row.designator == designator)

    def restart(self) -> None:
        """Start again: what was durable is here, doubles of earlier requests are not remembered."""
        self.boot = bytes([self.boot[0] + 1]) * 16
        self.released.clear()
        self.waits.clear()
        self.maps.clear()
        self.reserved.clear()

    def connect(self, name: str) -> None:
        """A workstation opens a volume; raises `BusyError` while a job has it."""
        volume = self.by_name(name)
        if volume.row.volume in self.reserved:
            raise BusyError(f"job {self.reserved[volume.row.volume]} puts files back")
        volume.row = replace(volume.row, connections=volume.row.connections + 1)

    def disconnect(self, name: str) -> None:
        """It has gone."""
        volume = self.by_name(name)
        volume.row = replace(volume.row, connections=volume.row.connections - 1)

    def raise_floor(self, unit: bytes, epoch: int, lane: int = 0) -> None:
        """Let nobody with a lower epoch in; with a lane: nobody into that lane."""
        if lane:
            key = unit, lane
            self.lane_floor[key] = max(self.lane_floor.get(key, 0), epoch)
        elif epoch > self.floor.get(unit, 0):
            self.floor[unit] = epoch
            self.held_whole.discard(unit)

    def opened(self, unit: bytes, epoch: int, *, lane: int, is_writer: bool) -> str:
        """Let a mover in, or say why not: "stale" or "busy"."""
        floor = self.floor.get(unit, 0)
        lanes = {n: at for (of, n), at in self.lane_floor.items() if of == unit and at > floor}
        if lane:
            if epoch <= floor or epoch < lanes.get(lane, 0):
                return "stale"
            if unit in self.held_whole:
                return "busy"
        elif epoch < floor or (is_writer and epoch <= max(lanes.values(), default=0)):
            return "stale"
        # Opening raises the floor, as it does at a real node.
        self.raise_floor(unit, epoch, lane)
        if is_writer and not lane:
            self.held_whole.add(unit)
        return ""

    # --- requests --------------------------------------------------------------------------------

    def answer(self, message: Any) -> Any:
        """Carry out a request."""
        reply = {"request": message.request, "boot_id": self.boot}
        match message:
            case UnitFence():
                self.raise_floor(message.designator, message.epoch, message.lane)
                return UnitFenced(
                    request=message.request,
                    designator=message.designator,
                    epoch=message.epoch,
                    boot_id=self.boot,
                    position=0,
                )
            case VolumeCreate():
                assert message.state in ("online", "importing")
                return NodeReply(**reply, volumes=(self._create(message),))
            case VolumeAttach():
                create = VolumeCreate(
                    request=0,
                    volume=message.volume,
                    name=message.name,
                    size_bytes=32 * BLOCK,
                    block_bytes=message.block_bytes,
                    state="online",
                )
                return NodeReply(**reply, volumes=(self._create(create),))
            case VolumeDelete():
                self._delete(message.volume)
                return NodeReply(**reply)
            case VolumeOffline():
                return NodeReply(**reply, volumes=(self._offline(message),))
            case VolumePublish():
                return NodeReply(**reply, volumes=(self._publish(message),))
            case VolumeReserve():
                self._reserve(message)
                return NodeReply(**reply, volumes=(self.state(self._volume(message.volume)),))
            case VolumeZero():
                self._zero(message)
                return NodeReply(**reply)
            case VolumeUnreserve():
                if self.reserved.get(message.volume) == message.job:
                    del self.reserved[message.volume]
                return NodeReply(**reply)
            case VolumeMirror():
                return NodeReply(**reply, volumes=(self._mirror(message),))
            case ViewCreate():
                waiting = self._wait(message)
                return waiting or NodeReply(**reply, views=self._views(message))
            case ViewRelease():
                self.released.add(message.view)
                self.views.pop(message.view, None)
                self.maps.pop(message.view, None)
                return NodeReply(**reply)
            case ViewMap():
                return NodeReply(**reply, map_header=self._map(message.view).packed_header)
            case ViewMapPage():
                return NodeReply(**reply, map_page=self._map_page(message))
            case ViewNarrow():
                self._narrow(message)
                return NodeReply(**reply)
            case ViewExtents():
                return self._extents(message, reply)
            case ViewSample():
                return NodeReply(**reply, digests=self._digests(message))
            case _:
                raise AssertionError(message)

    def _volume(self, volume: str) -> Volume:
        if volume not in self.volumes:
            raise NotFoundError(f"no volume {volume} on this node")
        return self.volumes[volume]

    def _create(self, message: VolumeCreate) -> VolumeState:
        if message.volume not in self.volumes:
            self.volumes[message.volume] = Volume(
                VolumeState(
                    volume=message.volume,
                    name=message.name,
                    designator=designator_of(message.volume),
                    blocks=message.size_bytes // message.block_bytes,
                    block_bytes=message.block_bytes,
                    used_bytes=0,
                    state=message.state,
                    held_by=0,  # type: ignore[arg-type]
                    is_empty=True,
                    epoch=0,  # type: ignore[arg-type]
                    path="/x",
                )
            )
        return self.state(self.volumes[message.volume])

    def _delete(self, volume: str) -> None:
        known = self.volumes.get(volume)
        if known is None:
            return
        if known.row.state == "restoring" or any(v.volume == volume for v in self.views.values()):
            raise BusyError(f"volume {known.row.name!r} is in use")
        del self.volumes[volume]

    def _offline(self, message: VolumeOffline) -> VolumeState:
        volume = self._volume(message.volume)
        state = self.state(volume)
        if state.state == "restoring" and volume.job == message.job:
            return state
        if message.epoch < self.floor.get(volume.row.designator, 0):
            raise StaleError("overtaken")
        if state.held_by or state.state in ("restoring", "importing"):
            raise BusyError(f"volume {state.name!r} is in use")
        if not state.is_empty and not message.is_forced:
            raise RefusedError(f"volume {state.name!r} is not empty")
        self.raise_floor(volume.row.designator, message.epoch)
        volume.data.clear()
        if volume.row.tracking:
            volume.track(f"{volume.row.tracking}+")  # A restore is another beginning.
        volume.job = message.job
        volume.row = replace(volume.row, state="restoring", is_empty=True)
        return self.state(volume)

    def _publish(self, message: VolumePublish) -> VolumeState:
        volume = self._volume(message.volume)
        unit = volume.row.designator
        if volume.row.state == message.state and volume.row.epoch == message.epoch:
            return self.state(volume)
        if volume.row.state not in ("restoring", "importing"):
            raise RefusedError(f"volume {volume.row.name!r} is {volume.row.state}, nothing to end")
        if volume.job not in (0, message.job):
            raise RefusedError("another job's")
        if message.epoch < self.floor.get(unit, 0):
            raise StaleError("overtaken")
        self.raise_floor(unit, message.epoch)
        volume.job = 0
        volume.row = replace(volume.row, state=message.state, epoch=message.epoch)
        return self.state(volume)

    def _reserve(self, message: VolumeReserve) -> None:
        volume = self._volume(message.volume)
        if volume.row.state != "online":
            raise BusyError(f"volume {volume.row.name} is {volume.row.state}")
        if volume.row.connections and not message.is_shared:
            raise BusyError(f"{volume.row.connections} workstation is connected", hint="unmount it")
        self._check_epoch(volume, message.epoch)
        if self.reserved.setdefault(message.volume, message.job) != message.job:
            raise BusyError(f"job {self.reserved[message.volume]} has it")
        (self.shared.add if message.is_shared else self.shared.discard)(message.volume)

    def _check_epoch(self, volume: Volume, epoch: int) -> None:
        if epoch < self.floor.get(volume.row.designator, 0):
            raise StaleError("overtaken")

    def _zero(self, message: VolumeZero) -> None:
        volume = self._volume(message.volume)
        if self.reserved.get(message.volume) != message.job:
            raise RefusedError(f"job {message.job} has not reserved the volume")
        if message.extents:
            self._check_epoch(volume, message.epoch)
        for lba, blocks in struct.iter_unpack(">QQ", message.extents):
            assert lba + blocks <= volume.row.blocks
            volume.write({lba + n: bytes(BLOCK) for n in range(blocks)})

    def _mirror(self, message: VolumeMirror) -> VolumeState:
        volume = self._volume(message.volume)
        legs = {leg.name: leg for leg in volume.row.legs}
        if message.action == "add":
            size = volume.row.blocks * BLOCK
            legs[message.leg] = LegState(
                name=message.leg,
                path=message.path or f"/x.{message.leg}",
                state="resynchronising",
                reason="",
                bytes_left=size,
                bytes_total=size,
            )
        elif legs.pop(message.leg, None) is None:
            raise NotFoundError(f"volume {volume.row.name!r} has no leg {message.leg!r}")
        volume.row = replace(volume.row, legs=tuple(legs.values()))
        return self.state(volume)

    def _members(self, message: ViewCreate) -> list[ViewMember]:
        return [ViewMember(view=message.view, volume=message.volume), *message.group]

    def _check_view(self, member: ViewMember) -> None:
        """Raise unless there may be such a view; one that was released never comes again."""
        if member.view in self.released:
            raise NotFoundError(f"view {member.view} was released")
        volume = self._volume(member.volume)
        if volume.row.state != "online":
            raise RefusedError(f"volume {volume.row.name!r} is {volume.row.state}")

    def _wait(self, message: ViewCreate) -> ViewWaiting | None:
        """Say how the wait stands while a volume of the group is being written; None when it is over."""
        members = self._members(message)
        if message.view in self.views:
            return None
        for member in members:
            self._check_view(member)
        not_quiet = f"no {message.quiet_s:g} s without writes within {message.timeout_s:g} s"
        if any(member.volume in self.never_quiet for member in members):
            raise NotQuietError(not_quiet, hint="stop the writers")
        writers = [self.writers[m.volume] for m in members if m.volume in self.writers]
        asked = self.waits.setdefault(message.view, self.clock())
        if not writers:
            del self.waits[message.view]
            return None
        waited = self.clock() - asked
        if waited >= message.timeout_s:
            del self.waits[message.view]
            raise NotQuietError(not_quiet, hint="stop the writers")
        return ViewWaiting(view=message.view, waited_s=waited, idle_s=0.5, last_writer=writers[-1])

    def _views(self, message: ViewCreate) -> tuple[ViewState, ...]:
        """Make all views of a group at once, unless they exist; some of them never exist without the others."""
        members = self._members(message)
        if message.view not in self.views:
            assert not any(member.view in self.views for member in members), "half a group"
            instant = len(self.instants) + 1
            for member in members:
                self._make_view(member, job=message.job)
                self.instants[member.view] = instant
        elif self.broken_because:
            self.views[message.view] = replace(
                self.views[message.view], state="broken", reason=self.broken_because
            )
        return tuple(self.views[member.view] for member in members if member.view in self.views)

    def _make_view(self, member: ViewMember, *, job: JobId) -> None:
        volume = self._volume(member.volume)
        view = ViewState(
            view=member.view,
            volume=member.volume,
            job=job,
            designator=designator_of(member.view),
            blocks=volume.row.blocks,
            block_bytes=BLOCK,
            means="hold",
            state="active",
            reason="",
            tracking=volume.row.tracking,
            generation=volume.generation,
        )
        self.views[member.view] = view
        self.view_data[view.designator] = dict(volume.data)
        self.view_changes[view.designator] = dict(volume.changes)
        self.view_files[member.view] = volume.files.copy()
        volume.generation += 1  # What is written from here on is not in the view.

    # --- maps ------------------------------------------------------------------------------------

    def _map(self, view: str) -> Made:
        if view not in self.views:
            raise NotFoundError(f"no view {view}")
        error = self._volume(self.views[view].volume).map_error
        if error is not None:
            raise error
        if view not in self.maps:
            blocks = self.views[view].blocks
            self.maps[view] = self.view_files[view].map(blocks=blocks, block_bytes=BLOCK)
        return self.maps[view]

    def _map_page(self, message: ViewMapPage) -> bytes:
        made = self.maps.get(message.view)
        if made is None or message.page >= len(made.pages):
            raise NotFoundError(f"no page {message.page} of a map of view {message.view}")
        return made.pages[message.page]

    def _narrow(self, message: ViewNarrow) -> None:
        if self.narrow_error is not None:
            raise self.narrow_error
        if message.view not in self.views:
            raise NotFoundError(f"no view {message.view}")
        left = {
            lba + n
            for lba, blocks in struct.iter_unpack(">QQ", message.extents)
            for n in range(blocks)
        }
        self.narrowed[message.view] = self.narrowed.get(message.view, left) & left

    def _require_wide(self, designator: bytes) -> None:
        """Refuse to tell anything about a view of which a part is not protected any more."""
        view = next((v.view for v in self.views.values() if v.designator == designator), None)
        if view is None:
            raise NotFoundError("no such view")
        if view in self.narrowed:
            raise RefusedError("the view was narrowed")

    # --- what is allocated -----------------------------------------------------------------------

    def _extents(self, message: ViewExtents, reply: dict[str, Any]) -> NodeReply:
        self._require_wide(message.designator)
        lbas = sorted(self.view_data[message.designator])
        if message.tracking:
            view = next(v for v in self.views.values() if v.designator == message.designator)
            if message.tracking != view.tracking:
                raise NotFoundError(f"there is no history {message.tracking}")
            changes = self.view_changes[message.designator]
            lbas = sorted(lba for lba, at in changes.items() if at > message.since_generation)
        wanted = [lba for lba in lbas if lba >= message.start_lba]
        page = wanted[: message.extents_max]
        following = wanted[len(page)] if len(page) < len(wanted) else 10**9
        packed = b"".join(struct.pack(">QQ", lba, 1) for lba in page)
        return NodeReply(**reply, extents=packed, next_lba=following)

    def _digests(self, message: ViewSample) -> bytes:
        data = self.view_data.get(message.designator)
        if data is None:
            data = self.by_unit(message.designator).data
        else:
            self._require_wide(message.designator)
        digests = b""
        for lba, blocks in struct.iter_unpack(">QQ", message.extents):
            content = b"".join(data.get(lba + n, bytes(BLOCK)) for n in range(blocks))
            if self.bad_lbas & set(range(lba, lba + blocks)):
                raise MediumError(f"LBA {lba} cannot be read")
            digests += struct.pack(">I", crc32c(content))
        return digests

    # --- data ------------------------------------------------------------------------------------

    def read(self, view: bytes, lba: int, blocks: int) -> Iterator[bytes]:
        """Yield blocks of a static view."""
        name = next((v.view for v in self.views.values() if v.designator == view), "")
        for number in range(lba, lba + blocks):
            assert number in self.narrowed.get(name, {number}), f"LBA {number} is not protected"
            yield self.view_data[view][number]
