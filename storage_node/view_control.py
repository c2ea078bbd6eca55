"""Control requests about static views: the wait for quiet, the instant of the making, the release, what is in a view.

A view is made in four movements:

1. Look (within a step): may there be such a view, and do all volumes look quiet?  If not: when to ask again.
2. Prepare (outside of steps, writers go on): flush, make room, run the hooks.
3. The instant (within a step): close the gates of all volumes; with a write inside of any, it is not quiet.  Decide
   again with what is known now, install all views or none, open the gates.
4. Record: a view is told only when its record is durable.  What a crash leaves before that is swept at the next start.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from backplane.crc import EMPTY, crc32c
from backplane.errors import BackupError, BusyError, NotFoundError, UsageError
from backplane.ids import ViewId, VolumeId
from backplane.wire.messages import (
    ViewCreate,
    ViewExtents,
    ViewMember,
    ViewNarrow,
    ViewSample,
    ViewState,
    ViewWaiting,
)
from storage_node.core.change_tracking import Point
from storage_node.core.volume_state import DropView, Effect, MadeView, ViewRecord
from storage_node.core.write_inactivity import AskAgain, Quiet, QuietWait
from storage_node.disk.device import BlockDevice
from storage_node.disk.static_views import StaticView
from storage_node.disk_control import DiskControl
from storage_node.hooks import HookError
from storage_node.state_file import StateError

log = logging.getLogger(__name__)

EXTENTS_MAX: Final = 50_000
"""Extents in one answer: 16 bytes each in a control message of at most 1 MiB."""

EXTENT: Final = struct.Struct(">QQ")
DIGEST: Final = struct.Struct(">I")
TTL_S_MAX: Final = 30 * 86400.0
SAMPLE_BYTES_MAX: Final = 64 * 1024 * 1024
"""All ranges of one sample together."""

SAMPLE_PIECE_BYTES: Final = 256 * 1024
CRASH: Final = "crash"
GATE_PAUSE_S: Final = 0.02
"""A write was inside when the gate was to close: it is over soon, and a new period begins with its end."""


class ViewControl:
    """The views of a node."""

    def __init__(self, disk: DiskControl) -> None:
        self._disk = disk

    def views(self) -> list[ViewRecord]:
        """Return the views there are."""
        with self._disk.step:
            return list(self._disk.book.views.values())

    # --- making ----------------------------------------------------------------------------------

    def create(self, message: ViewCreate, wait: QuietWait) -> tuple[ViewState, ...] | AskAgain:
        """Make the views if the volumes are quiet; otherwise say when to ask again, or raise `NotQuietError`."""
        if not 0 < message.ttl_s <= TTL_S_MAX:
            raise UsageError(f"a view lives longer than 0 and at most {TTL_S_MAX:.0f} s")
        members = (ViewMember(view=message.view, volume=message.volume), *message.group)
        if len({m.volume for m in members}) != len(members):
            raise UsageError("a group has each volume once")
        with self._disk.step:
            existing = [self._disk.book.may_view(m.view, m.volume) for m in members]
            if all(existing):
                return self._states(members)
            self._drop([record for record in existing if record is not None])
            answer = self._decide(members, wait)
        if isinstance(answer, AskAgain):
            return answer
        protected = _byte_runs(message.protected, self._block_bytes(message.volume))
        with ExitStack() as undo:
            prepared: dict[ViewId, StaticView] = {}
            for member in members:
                with self._disk.step:
                    record = self._disk.book.volume(member.volume)
                    live = self._disk.live[member.volume]
                live.flush_if_dirty()
                data = self._disk.maker.prepare(
                    member.view,
                    message.means,
                    live,
                    self._disk.store.path(record),
                    protected=protected if member.volume == message.volume else None,
                )
                undo.callback(data.release)
                prepared[member.view] = data
            made = self._make_between_hooks(message, members, wait, prepared)
            if isinstance(made, AskAgain):
                return made
            undo.pop_all()
        for member in members:
            tracker = self._disk.store.trackers.get(member.volume)
            if tracker is not None:
                tracker.tidy()
        return made

    def _drop(self, remnants: list[ViewRecord]) -> None:
        """Forget views of a group that a crash left without the others: nobody was told of them.  Within a step."""
        for record in remnants:
            log.warning("dropped the remnant of a group", extra={"view": record.view})
            self._disk.units.pop(record.designator, None)
            self._disk.access.remove_unit(record.designator)
            self._disk.book.unmake_view(record.view)
            self._disk.perform([DropView(record)])
            self._disk.view_data.pop(record.view).release()
            with self._disk.access.locked() as rules:
                self._disk.set_gate(rules, record.volume)

    def _make_between_hooks(
        self,
        message: ViewCreate,
        members: Sequence[ViewMember],
        wait: QuietWait,
        prepared: dict[ViewId, StaticView],
    ) -> tuple[ViewState, ...] | AskAgain:
        """Make the views while every volume's commands before it are in force.  Raises what a command raises."""
        made: tuple[ViewState, ...] | AskAgain | None = None
        try:
            with ExitStack() as commands:
                rounds: dict[ViewId, str] = {}
                for member in members:
                    hooks = self._disk.around_view(member.view, member.volume, job=message.job)
                    rounds[member.view] = commands.enter_context(hooks).consistency
                if not all(rounds[member.view] == CRASH for member in members):
                    # A command has a file system or a database write what it had in memory: that, too.
                    self._flush(members)
                made = self._make(message, members, wait, prepared, rounds)
        except HookError:
            if isinstance(made, tuple):
                # The command behind the views failed and had to succeed: they are made, and not wanted.
                for member in members:
                    self.release(member.view)
            raise
        return made

    def _flush(self, members: Sequence[ViewMember]) -> None:
        for member in members:
            with self._disk.step:
                self._disk.book.volume(member.volume)
                live = self._disk.live[member.volume]
            live.flush_if_dirty()

    def waiting(self, message: ViewCreate, wait: QuietWait) -> ViewWaiting:
        """Say how a wait stands."""
        members = (message.volume, *(member.volume for member in message.group))
        now = self._disk.clock.monotonic()
        with self._disk.step:
            known = [self._disk.live[volume] for volume in members if volume in self._disk.live]
        last = max((live.activity() for live in known), default=None)
        is_idle = last is None or not last.writes
        return ViewWaiting(
            view=message.view,
            waited_s=now - wait.asked_s,
            idle_s=-1.0 if is_idle or last is None else max(0.0, now - last.last_write_s),
            last_writer="" if last is None else last.last_writer,
        )

    def _decide(self, members: Sequence[ViewMember], wait: QuietWait) -> Quiet | AskAgain:
        """Decide for all members together; called within a step.  Raises `NotQuietError` when the time is over."""
        records = [self._disk.book.volume(member.volume) for member in members]
        with self._disk.access.locked():
            answer = wait.decide(
                last_write_s=max(self._disk.last_write_s(record) for record in records),
                has_writer=any(self._disk.access.has_writer(r.designator) for r in records),
                now=self._disk.clock.monotonic(),
            )
            if isinstance(answer, Quiet | AskAgain):
                return answer
            told = f"no {wait.quiet_s:g} s without writes within {wait.timeout_s:g} s"
            errors = [self._disk.book.give_up_view(member.view, told) for member in members]
            raise errors[0]

    def _make(
        self,
        message: ViewCreate,
        members: Sequence[ViewMember],
        wait: QuietWait,
        prepared: dict[ViewId, StaticView],
        consistency: dict[ViewId, str],
    ) -> tuple[ViewState, ...] | AskAgain:
        disk = self._disk
        with disk.step:
            if any(disk.book.may_view(m.view, m.volume) for m in members):
                raise BusyError("a view of this group was made meanwhile", hint="ask again")
            with ExitStack() as gates:
                for member in members:
                    live = disk.live[member.volume]
                    if not live.try_close():
                        return AskAgain(disk.clock.monotonic() + GATE_PAUSE_S)
                    gates.callback(live.open)
                if CRASH in consistency.values():
                    answer = self._decide(members, wait)
                    if isinstance(answer, AskAgain):
                        return answer
                # Else all are at rest by command, which has written itself: that it was quiet before is what counts.
                effects = self._install(message, members, prepared, consistency)
            try:
                disk.perform(effects)
            except StateError:
                self._unmake(members)
                raise
            for member in members:
                disk.register_view(disk.book.views[member.view], prepared[member.view])
            return self._states(members)

    def _install(
        self,
        message: ViewCreate,
        members: Sequence[ViewMember],
        prepared: dict[ViewId, StaticView],
        consistency: dict[ViewId, str],
    ) -> list[Effect]:
        """In the instant: all views, or none and an error."""
        disk = self._disk
        for member in members:
            prepared[member.view].install()
        effects: list[Effect] = []
        created = disk.clock.wall().isoformat(timespec="seconds")
        turned = {m.view: self._turn(m.volume) for m in members}
        try:
            with disk.access.locked() as rules:
                for member in members:
                    data, (tracking, generation) = prepared[member.view], turned[member.view]
                    effects += disk.book.make_view(
                        member.view,
                        member.volume,
                        job=message.job,
                        ttl_s=message.ttl_s,
                        created=created,
                        made=MadeView(
                            means=data.means,
                            tracking=tracking,
                            generation=generation,
                            consistency=consistency[member.view],
                            leg=data.leg,
                        ),
                    )
                    disk.set_gate(rules, member.volume)
        except BackupError:
            # No room in the book for all of them.
            self._unmake(members)
            raise
        return effects

    def _unmake(self, members: Sequence[ViewMember]) -> None:
        disk = self._disk
        with disk.access.locked() as rules:
            for member in members:
                disk.book.unmake_view(member.view)
                disk.set_gate(rules, member.volume)

    def _turn(self, volume: VolumeId) -> tuple[str, int]:
        tracker = self._disk.store.trackers.get(volume)
        if tracker is None:
            return "", 0
        ended = tracker.turn()
        return ended.tracking, ended.generation

    def _states(self, members: Sequence[ViewMember]) -> tuple[ViewState, ...]:
        book = self._disk.book
        return tuple(self._disk.view_state(book.views[member.view]) for member in members)

    def _block_bytes(self, volume: VolumeId) -> int:
        return self._disk.book.volume(volume).block_bytes

    # --- releasing -------------------------------------------------------------------------------

    def release(self, view: ViewId) -> bool:
        """Release a view: its readers first, then its record, its data, the gate.  Tells whether there was one."""
        disk = self._disk
        with disk.step:
            known = disk.book.views.get(view)
        if known is not None:
            disk.units.pop(known.designator, None)
            disk.access.remove_unit(known.designator)
        disk.change(lambda _: disk.book.release(view))
        if known is not None:
            data = disk.view_data.pop(view, None)
            if data is not None:
                data.release()
            with disk.step, disk.access.locked() as rules:
                disk.set_gate(rules, known.volume)
        return known is not None

    def narrow(self, message: ViewNarrow) -> ViewState:
        """Protect only what will still be read of a view."""
        with self._disk.step:
            view = self._disk.book.views.get(message.view)
            if view is None:
                raise NotFoundError(f"no view {message.view} on this node")
            data = self._disk.view_data[message.view]
            block_bytes = self._block_bytes(view.volume)
        data.narrow(_byte_runs(message.extents, block_bytes) or [])
        with self._disk.step:
            known = self._disk.book.views.get(message.view)
            if known is None:
                raise NotFoundError(f"view {message.view} was released meanwhile")
            return self._disk.view_state(known)

    # --- what is in a view -----------------------------------------------------------------------

    def extents(self, message: ViewExtents) -> tuple[bytes, int]:
        """Return packed (LBA, blocks) pairs of what is allocated or changed, and the LBA to go on from."""
        device = self._device(message.designator)
        if message.extents_max < 1:
            raise UsageError("extents_max must be at least 1")
        most = min(message.extents_max, EXTENTS_MAX)
        size, packed = device.block_bytes, bytearray()
        start_byte = message.start_lba * size
        if message.tracking:
            found = self._changed(message, start_byte)
        else:
            found = iter(device.extents(start_byte, device.size_bytes))
        for count, (start, end) in enumerate(found):
            if count == most:
                return bytes(packed), start // size
            packed += EXTENT.pack(start // size, (end - start) // size)
        return bytes(packed), device.size_bytes // size

    def _changed(self, message: ViewExtents, start_byte: int) -> Iterator[tuple[int, int]]:
        with self._disk.step:
            view = next(
                (v for v in self._disk.book.views.values() if v.designator == message.designator),
                None,
            )
        if view is None:
            raise NotFoundError("changes are asked of a static view")
        if view.tracking != message.tracking:
            raise NotFoundError("the view belongs to another history of changes")
        tracker = self._disk.store.trackers.get(view.volume)
        if tracker is None:
            raise NotFoundError("changes of this volume are not tracked")
        size_bytes = self._disk.live[view.volume].size_bytes
        since = Point(message.tracking, message.since_generation)
        for start, end in tracker.changed_since(since, view.generation):
            if end > start_byte:
                yield max(start, start_byte), min(end, size_bytes)

    def sample(self, message: ViewSample) -> bytes:
        """Return the packed CRC32C of ranges of a view."""
        device = self._device(message.designator)
        if len(message.extents) % EXTENT.size:
            raise UsageError("extents: no whole number of pairs")
        pairs = list(EXTENT.iter_unpack(message.extents))
        size = device.block_bytes
        if sum(blocks for _, blocks in pairs) * size > SAMPLE_BYTES_MAX:
            raise UsageError(f"a sample of more than {SAMPLE_BYTES_MAX} bytes")
        buffer = memoryview(bytearray(SAMPLE_PIECE_BYTES))
        digests = bytearray()
        for lba, blocks in pairs:
            checksum, at, end = EMPTY, lba * size, (lba + blocks) * size
            while at < end:
                piece = buffer[: min(end - at, len(buffer))]
                device.read_into(at, piece)
                checksum = crc32c(piece, start=checksum)
                at += len(piece)
            digests += DIGEST.pack(checksum)
        return bytes(digests)

    def _device(self, designator: bytes) -> BlockDevice:
        unit = self._disk.units.get(designator)  # type: ignore[call-overload]
        if unit is None:
            raise NotFoundError(f"no volume or view {designator.hex()} on this node")
        device: BlockDevice = unit.device
        return device


def _byte_runs(packed: bytes, block_bytes: int) -> list[tuple[int, int]] | None:
    """Return ascending byte runs of packed extents; None if there are none."""
    if not packed:
        return None
    if len(packed) % EXTENT.size:
        raise UsageError("extents: no whole number of pairs")
    return sorted(
        (lba * block_bytes, (lba + blocks) * block_bytes)
        for lba, blocks in EXTENT.iter_unpack(packed)
    )
