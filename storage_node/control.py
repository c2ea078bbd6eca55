"""Requests from the controller: to a worker, and back as an answer.

    loop thread:  message -> key -> worker ............ -> answer -> send
    worker:                          DiskControl, TapeControl, Access

The key is the designator of the volume or drive, so requests about one thing run in order and never block the loop.
Each receipt of a request is answered once; doing it twice is harmless (see the cores).

Waiting for quiet costs no worker: a `view.create` that has to wait is a timer here, and is tried again by a worker when
the rules say that it may succeed.  A double of a waiting request joins it, with the time that is left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from backplane.errors import BackupError, NotFoundError, UsageError
from backplane.ids import Designator, ViewId, VolumeId
from backplane.runtime import failpoints
from backplane.runtime.loop import Loop, Timer
from backplane.scsi.designator import designator_of
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    UnitFence,
    UnitFenced,
    ViewCreate,
    ViewExtents,
    ViewMap,
    ViewMapPage,
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
from storage_node.access import Access
from storage_node.core.repeated_words import RepeatedWords
from storage_node.core.write_inactivity import AskAgain, QuietWait
from storage_node.disk_control import DiskControl
from storage_node.map_control import MapControl
from storage_node.mapping.mapper import Mapper
from storage_node.tape_control import TapeControl
from storage_node.tape_requests import TapeMessage, tape_work
from storage_node.view_control import ViewControl
from storage_node.workers import KeyedWorkers

log = logging.getLogger(__name__)

INVENTORY_PAUSE_S: Final = 0.2
"""Changes within this time are told in one inventory."""

SYNC_TIMEOUT_S_MAX: Final = 86400.0
WAITING_PAUSE_S: Final = 1.0
"""How a wait for quiet stands is told at most this often."""

RESERVES_PAUSE_S: Final = 5.0
SPACE_PAUSE_S: Final = 5.0
"""How often the disk under the tape library is looked at: a job may wait for it to have room again."""

ALONE_S: Final = 60.0
"""How long no controller is heard before a nearly full snapshot is released: longer than one takes to restart."""


@dataclass(slots=True)
class _Wait:
    """A `view.create` that waits for quiet, with the numbers of all receipts to answer."""

    message: ViewCreate
    rule: QuietWait
    requests: list[int]
    tell_again_s: float = -math.inf
    timer: Timer | None = None
    is_released: bool = False

    def is_for(self, view: ViewId) -> bool:
        """Say whether this view is among those that are waited for."""
        return view == self.message.view or any(each.view == view for each in self.message.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What the inventory says of the node itself."""

    boot_id: bytes
    public_key: bytes
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    nbd_addresses: tuple[str, ...] = ()


@dataclass(slots=True)
class _Views:
    """Views of this node as the loop needs them: which volume's key, and when their time is over."""

    volumes: dict[ViewId, VolumeId] = field(default_factory=dict)
    expiries: dict[ViewId, Timer] = field(default_factory=dict)


class Control:
    """Routes requests.  All methods belong to the loop's thread."""

    def __init__(
        self,
        *,
        loop: Loop,
        workers: KeyedWorkers,
        access: Access,
        identity: NodeIdentity,
        disk: DiskControl | None,
        tape: TapeControl | None,
        mapper: Mapper | None = None,
        mappings_max: int = 1,
        send: Callable[[Message], None],
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_alone`: no controller is heard."""
        self._loop = loop
        self._is_alone = is_alone
        self._alone_since: float | None = None
        self._workers = workers
        self._access = access
        self._identity = identity
        self._disk = disk
        self._tape = tape
        self._send = send
        self._waits: dict[ViewId, _Wait] = {}
        self._reading: set[int] = set()
        self._failures = RepeatedWords()
        """Requests for samples that are under way."""
        self._known = _Views()
        self._views = ViewControl(disk) if disk is not None else None
        self._maps: MapControl | None = None
        if disk is not None and mapper is not None:
            self._maps = MapControl(
                loop=loop,
                workers=workers,
                disk=disk,
                mapper=mapper,
                mappings_max=mappings_max,
                boot_id=identity.boot_id,
                send=send,
            )
        if disk is not None:
            disk.maker.on_broken = lambda: loop.post(self._changed)
        self._inventory_timer: Timer | None = None
        for view in self._views.views() if self._views is not None else ():
            self._remember_view(view.view, view.volume, view.ttl_s)
        if disk is not None:
            self._loop.after(RESERVES_PAUSE_S, self._look_after_reserves)
        if tape is not None:
            self._loop.after(SPACE_PAUSE_S, partial(self._look_after_space, tape))

    # --- inventory -------------------------------------------------------------------------------

    def send_inventory(self) -> None:
        """Tell the controller everything that is here."""
        self._inventory_timer = None

        def look() -> None:
            inventory = self._inventory()
            self._loop.post(lambda: self._send(inventory))

        try:
            self._workers.submit("inventory", look)
        except BackupError as error:
            log.warning("no inventory", extra={"reason": str(error)})

    def _changed(self) -> None:
        if self._inventory_timer is None:
            self._inventory_timer = self._loop.after(INVENTORY_PAUSE_S, self.send_inventory)

    def _inventory(self) -> NodeInventory:
        volumes, views = self._disk.describe() if self._disk is not None else ((), ())
        drives, cartridges = self._tape.describe() if self._tape is not None else ((), ())
        return NodeInventory(
            boot_id=self._identity.boot_id,
            public_key=self._identity.public_key,
            addresses=self._identity.addresses,
            roles=self._identity.roles,
            volumes=volumes,
            views=views,
            drives=drives,
            cartridges=cartridges,
            nbd_addresses=self._identity.nbd_addresses,
        )

    # --- requests --------------------------------------------------------------------------------

    def handle(self, message: Message) -> None:
        """Take one message of the controller."""
        if isinstance(message, TapeMessage):
            self._tape_message(message)
            return
        match message:
            case UnitFence():
                # What a drive has counted is told when somebody begins or ends to use it.
                is_drive = self._tape is not None and self._tape.is_drive(message.designator)
                self._run(
                    self._key(message.designator),
                    message.request,
                    lambda: self._fence(message),
                    is_change=is_drive,
                )
            case VolumeCreate():
                self._volume(message, lambda disk: disk.create(message))
            case VolumeAttach():
                self._volume(message, lambda disk: disk.attach(message))
            case VolumeDelete():
                self._volume(message, lambda disk: disk.delete(message.volume))
            case VolumeOffline():
                self._volume(message, lambda disk: disk.offline(message))
            case VolumePublish():
                self._volume(message, lambda disk: disk.publish(message))
            case VolumeMirror():
                self._volume(message, lambda disk: disk.mirror(message))
            case ViewCreate():
                self._create_view(message)
            case ViewRelease():
                self._release_view(message)
            case VolumeReserve():
                self._volume(message, lambda disk: disk.reserve(message))
            case VolumeZero():
                self._volume(message, lambda disk: disk.zero(message))
            case VolumeUnreserve():
                self._volume(message, lambda disk: disk.unreserve(message))
            case ViewNarrow():
                self._run(message.view, message.request, lambda: self._narrow(message))
            case ViewExtents():
                self._run(
                    self._key(message.designator), message.request, lambda: self._extents(message)
                )
            case ViewSample():
                self._run_once(
                    self._key(message.designator), message.request, lambda: self._sample(message)
                )
            case ViewMap() | ViewMapPage():
                self._map(message)
            case _:
                log.warning("a message that is not for storage nodes", extra={"kind": message.kind})

    def _volume(
        self,
        message: (
            VolumeCreate
            | VolumeAttach
            | VolumeDelete
            | VolumeOffline
            | VolumePublish
            | VolumeMirror
            | VolumeReserve
            | VolumeUnreserve
            | VolumeZero
        ),
        work: Callable[[DiskControl], VolumeState | None],
    ) -> None:
        def run() -> NodeReply:
            found = work(self._disk_role())
            volumes = () if found is None else (found,)
            return NodeReply(request=message.request, boot_id=b"", volumes=volumes)

        self._run(_volume_key(message.volume), message.request, run, is_change=True)

    def _tape_message(self, message: TapeMessage) -> None:
        work = tape_work(message, self._tape_role)

        def run() -> NodeReply:
            done = work.run()
            failpoints.passed(f"storage.{message.kind}")  # Done, and nobody knows.
            return done

        if work.is_long:
            self._run_once(work.key, message.request, run)
        else:
            self._run(work.key, message.request, run, is_change=work.is_change)

    def _fence(self, message: UnitFence) -> UnitFenced:
        self._access.fence(message.designator, message.epoch, message.lane)
        position = 0
        if self._tape is not None and self._tape.is_drive(message.designator):
            position = self._tape.end_of_data(message.designator)
        with self._access.locked() as rules:
            epoch = (
                rules.lane_floor(message.designator, message.lane)
                if message.lane
                else rules.floor(message.designator)
            ).epoch
        return UnitFenced(
            request=message.request,
            designator=message.designator,
            epoch=epoch,
            boot_id=self._identity.boot_id,
            position=position,
        )

    def _extents(self, message: ViewExtents) -> NodeReply:
        extents, next_lba = self._view_role().extents(message)
        return NodeReply(request=message.request, boot_id=b"", extents=extents, next_lba=next_lba)

    def _sample(self, message: ViewSample) -> NodeReply:
        digests = self._view_role().sample(message)
        return NodeReply(request=message.request, boot_id=b"", digests=digests)

    def _narrow(self, message: ViewNarrow) -> NodeReply:
        view = self._view_role().narrow(message)
        return NodeReply(request=message.request, boot_id=b"", views=(view,))

    def _disk_role(self) -> DiskControl:
        if self._disk is None:
            raise NotFoundError("this node has no disk role")
        return self._disk

    def _view_role(self) -> ViewControl:
        if self._views is None:
            raise NotFoundError("this node has no disk role")
        return self._views

    def _map(self, message: ViewMap | ViewMapPage) -> None:
        if self._maps is None:
            self._send(_failed(message.request, NotFoundError("this node maps no volumes")))
        elif isinstance(message, ViewMap):
            self._maps.map(message)
        else:
            self._maps.page(message)

    def _tape_role(self) -> TapeControl:
        if self._tape is None:
            raise NotFoundError("this node has no tape role")
        return self._tape

    # --- views -----------------------------------------------------------------------------------

    def _create_view(self, message: ViewCreate) -> None:
        waiting = self._waits.get(message.view)
        if waiting is not None:
            if message.request not in waiting.requests:
                waiting.requests.append(message.request)
            return
        if not (message.quiet_s >= 0 and 0 <= message.timeout_s <= SYNC_TIMEOUT_S_MAX):
            error = UsageError(f"a sync timeout of 0 to {SYNC_TIMEOUT_S_MAX:g} s")
            self._send(_failed(message.request, error))
            return
        rule = QuietWait(
            asked_s=self._loop.now(), quiet_s=message.quiet_s, timeout_s=message.timeout_s
        )
        wait = self._waits[message.view] = _Wait(message, rule, [message.request])
        self._known.volumes[message.view] = message.volume
        self._try_view(wait)

    def _try_view(self, wait: _Wait) -> None:
        wait.timer = None

        def attempt() -> None:
            try:
                answer: tuple[ViewState, ...] | AskAgain | BackupError = self._view_role().create(
                    wait.message, wait.rule
                )
                if isinstance(answer, AskAgain):
                    told = self._view_role().waiting(wait.message, wait.rule)
                    self._loop.post(lambda: self._tell_waiting(wait, told))
            except BackupError as error:
                answer = error
            self._loop.post(lambda: self._view_tried(wait, answer))

        try:
            self._workers.submit(_volume_key(wait.message.volume), attempt)
        except BackupError as error:
            self._view_tried(wait, error)

    def _tell_waiting(self, wait: _Wait, told: ViewWaiting) -> None:
        """Tell how the wait stands, now and then: it is for people."""
        if wait.is_released or self._loop.now() < wait.tell_again_s:
            return
        wait.tell_again_s = self._loop.now() + WAITING_PAUSE_S
        self._send(told)

    def _view_tried(
        self, wait: _Wait, answer: tuple[ViewState, ...] | AskAgain | BackupError
    ) -> None:
        if isinstance(answer, AskAgain) and wait.is_released:
            answer = NotFoundError("the view was released while it waited for quiet")
        if isinstance(answer, AskAgain):
            delay_s = answer.at_s - self._loop.now()
            wait.timer = self._loop.after(delay_s, lambda: self._try_view(wait))
            return
        if self._waits.get(wait.message.view) is wait:
            del self._waits[wait.message.view]
        for request in wait.requests:
            if isinstance(answer, BackupError):
                self._send(_failed(request, answer))
            else:
                reply = NodeReply(request=request, boot_id=self._identity.boot_id, views=answer)
                self._send(reply)
        if isinstance(answer, tuple):
            for view in answer:
                if view.view not in self._known.expiries and not wait.is_released:
                    self._remember_view(view.view, view.volume, wait.message.ttl_s)
            self._changed()

    def _release_view(self, message: ViewRelease) -> None:
        self._release(message.view, message.request)

    def _release(self, view: ViewId, request: int | None) -> None:
        # Whoever releases one view of a group wants none of it any more.
        wait = next((wait for wait in self._waits.values() if wait.is_for(view)), None)
        if wait is not None:
            del self._waits[wait.message.view]
            wait.is_released = True
            if wait.timer is not None:
                wait.timer.cancel()
                self._view_tried(wait, AskAgain(self._loop.now()))
        volume = self._known.volumes.pop(view, None)
        expiry = self._known.expiries.pop(view, None)
        if expiry is not None:
            expiry.cancel()

        forget_map = None if self._maps is None else self._maps.releasing(view)

        def run() -> NodeReply:
            try:
                if forget_map is not None:
                    forget_map()
                self._view_role().release(view)
            finally:
                self._loop.post(lambda: self._released(view))
            return NodeReply(request=request or 0, boot_id=b"")

        key = view if volume is None else _volume_key(volume)
        self._run(key, request, run, is_change=True)

    def _released(self, view: ViewId) -> None:
        if self._maps is not None:
            self._maps.released(view)

    def close(self) -> None:
        """End what would go on for long.  The loop does not run any more."""
        if self._maps is not None:
            self._maps.close()

    def _remember_view(self, view: ViewId, volume: VolumeId, ttl_s: float) -> None:
        def expire() -> None:
            log.warning("a static view has outlived its time", extra={"view": view})
            self._release(view, None)

        self._known.volumes[view] = volume
        self._known.expiries[view] = self._loop.after(ttl_s, expire)

    def _look_after_reserves(self) -> None:
        """Release snapshots that nobody may ever ask for again, before they use up their reserve.

        A snapshot breaks at the end of its reserve, and what it has saved then takes space for nothing.  With a
        controller that is heard, that is for the job to see.
        """
        self._loop.after(RESERVES_PAUSE_S, self._look_after_reserves)
        if self._disk is None or not self._is_alone():
            self._alone_since = None
            return
        now = self._loop.now()
        if self._alone_since is None:
            self._alone_since = now
        if now - self._alone_since < ALONE_S:
            return
        disk = self._disk

        def look() -> None:
            found = disk.nearly_full()
            self._loop.post(lambda: self._give_up(found))

        with suppress(BackupError):  # the workers have too much to do: next time, then
            self._workers.submit("reserves", look)

    def _look_after_space(self, tape: TapeControl) -> None:
        """Tell when the disk under the library gets full, and when it has room again."""
        self._loop.after(SPACE_PAUSE_S, partial(self._look_after_space, tape))

        def look() -> None:
            if tape.has_space_changed():
                self._loop.post(self._changed)

        with suppress(BackupError):  # the workers have too much to do: next time, then
            self._workers.submit("space", look)

    def _give_up(self, views: Sequence[ViewId]) -> None:
        for view in views:
            log.warning("released a snapshot that no controller asks for", extra={"view": view})
            self._release(view, None)

    # --- workers ---------------------------------------------------------------------------------

    def _key(self, designator: Designator) -> Hashable:
        """Return the key of the volume, view or drive behind a designator."""
        for view, volume in self._known.volumes.items():
            if _volume_key(view) == designator:
                return _volume_key(volume)
        return designator

    def _run_once(self, key: Hashable, request: int, work: Callable[[], NodeReply]) -> None:
        """Carry out what takes long and changes nothing; a double of it, while it is under way, adds nothing."""
        if request not in self._reading:
            self._reading.add(request)
            self._run(key, request, work)

    def _run(
        self,
        key: Hashable,
        request: int | None,
        work: Callable[[], NodeReply | UnitFenced],
        *,
        is_change: bool = False,
    ) -> None:
        def run() -> None:
            answer: Message
            try:
                done = work()
                answer = replace(done, boot_id=self._identity.boot_id)
            except BackupError as error:
                answer = _failed(request or 0, error)
            self._loop.post(lambda: self._answer(key, answer, request, is_change=is_change))

        try:
            self._workers.submit(key, run)
        except BackupError as error:
            if request is not None:
                self._reading.discard(request)
                self._send(_failed(request, error))

    def _answer(
        self, key: Hashable, answer: Message, request: int | None, *, is_change: bool
    ) -> None:
        if isinstance(answer, NodeFailed):
            self._tell_failed(key, answer)
        if request is not None:
            self._reading.discard(request)
            self._send(answer)
        if is_change:
            self._changed()

    def _tell_failed(self, key: Hashable, answer: NodeFailed) -> None:
        """Log that a request failed; what is tried again every few seconds, now and then."""
        left_out = self._failures.left_out(key, answer.reason, now=self._loop.now())
        if left_out is None:
            return
        told = {"error": answer.error, "reason": answer.reason}
        log.info("request failed", extra=told | ({"times": left_out + 1} if left_out else {}))


def _volume_key(uuid_hex: str) -> Hashable:
    try:
        return designator_of(uuid_hex)
    except BackupError:
        return uuid_hex  # no identifier: the request will be refused


def _failed(request: int, error: BackupError) -> NodeFailed:
    return NodeFailed(
        request=request, error=error.kind, reason=error.message[:4000], hint=error.hint[:4000]
    )
