"""A volume on several devices: the primary, and legs that follow it until one is split off as a static view.

    write -> locks of the range -> bits of split legs -> slot of each live leg -> primary -> live legs -> slot empty

"Live" legs resynchronise or are in sync.  What is true of a leg, and when, says storage_node/core/mirror.py; how it
survives a crash, mirror_store.py.

* **The primary is the volume.**  Its errors are the caller's.  A write that failed there may have changed a part of
  its range: the range's bits are set, and a leg in sync resynchronises.
* **An error of a leg is never the volume's.**  The leg is dropped, with the reason, and the write goes on.  But a leg
  that hangs without an error holds up the writes that go to it: its device has to have a timeout.
* **Copy and live writes.**  The copy of a piece holds the locks of its range from reading the primary to clearing the
  bits, and so does a write from setting bits to the last device.  They never overlap: a write that came before was read
  from the primary, one that comes after goes to both.  The copy overwrites nothing newer and clears no bit too early.
* **A new routing needs no pause.**  A write learns which legs there are *after* it got its locks.  One that got them
  before a leg joined goes to the primary only; the bits of its range are still set then, because the copy waits for
  its locks.  Only splitting wants that no write is under way, so that the view is of one instant: callers have a gate.
* **A primary that fails to flush** may lose writes that the legs have, and may show them until it forgets them.  Then
  all bits are set, nothing is copied until the node starts anew, and nothing is called clean.

Reads come from the primary.  Where it cannot be read, a leg in sync answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, NotFoundError, RefusedError, UsageError
from backplane.transport.stream import FileRange
from storage_node.core.mirror import (
    GRANULE_BYTES,
    PIECE_BYTES_MAX,
    Leg,
    LegEvent,
    LegState,
    LegStatus,
)
from storage_node.disk.device import (
    WRITE_ERROR,
    BlockDevice,
    DeviceError,
    NotFastError,
    check_range,
)
from storage_node.disk.mirror_copier import Copier, gaps_and_runs
from storage_node.disk.mirror_leg import MirrorLeg, SplitView
from storage_node.disk.mirror_store import LegStore, check_name, read_legs, write_legs
from storage_node.disk.region_locks import RegionLocks

LEGS_MAX: Final = 4
_LIVE: Final = (LegState.RESYNCHRONISING, LegState.IN_SYNC)

log = logging.getLogger(__name__)


def _ignore(status: LegStatus) -> None:
    """Default of `on_change`."""


class MirroredDevice:
    """Implements `BlockDevice`.  Owns the devices that are given to it."""

    def __init__(
        self,
        primary: BlockDevice,
        folder: Path,
        *,
        boot_id: str,
        open_leg: Callable[[str, Path], BlockDevice],
        on_change: Callable[[LegStatus], None] = _ignore,
        copy_bytes_per_s: int = 0,
        copies_by_itself: bool = True,
    ) -> None:
        """Open a mirror with the legs that its folder names; without the folder, one without legs.

        `open_leg(name, path)` opens the device of a leg; if it raises a `BackupError`, the leg has failed.
        `on_change` is told of every new state; it has to be quick and may not call back.  `copy_bytes_per_s` limits
        the resynchronisation; 0 is no limit.  Without `copies_by_itself` somebody has to call `copy_piece`.

        Raises `StateError` if the mirror's own files cannot be kept, and leaves the primary open then.
        """
        self._primary = primary
        self._size_bytes = primary.size_bytes
        self._folder = folder
        self._boot_id = boot_id
        self._on_change = on_change
        self._copies_by_itself = copies_by_itself
        self._regions = RegionLocks()
        self._lock = threading.Lock()
        """States, bits and routing; held for microseconds, and inside of all other locks."""
        self._parts: dict[str, MirrorLeg] = {}
        self._live: tuple[MirrorLeg, ...] = ()
        self._split: tuple[MirrorLeg, ...] = ()
        self._is_closed = False
        self._is_doubtful = False
        self._rescued_reads = 0
        self._copying = threading.Lock()
        """Held during each step of the copy, outside of all other locks."""
        self._buffer = memoryview(bytearray(PIECE_BYTES_MAX))
        self._copier = Copier(
            step=self.copy_piece, has_work=self._has_work, bytes_per_s=copy_bytes_per_s
        )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, path in read_legs(folder).items():
                self._take_up(name, path, open_leg)
        except BaseException:
            self._abandon()
            raise
        self._route()
        self._want_copying()

    def _take_up(self, name: str, path: str, open_leg: Callable[[str, Path], BlockDevice]) -> None:
        size = self.size_bytes
        store, found = LegStore.open(self._file(name), size_bytes=size, boot_id=self._boot_id)
        leg = Leg.found(
            name,
            path=path,
            size_bytes=size,
            changed=store.changed,
            found=found,
            boot_id=self._boot_id,
        )
        part = self._parts[name] = MirrorLeg(leg, store, None)
        try:
            part.device = open_leg(name, Path(path))
            self._check_size(part.device)
        except BackupError as error:
            leg.handle(LegEvent.ERROR, reason=error.message)
        store.record(leg.state, leg.reason)
        store.clear_slots()
        store.begin(size_bytes=size, boot_id=self._boot_id)

    def _abandon(self) -> None:
        for part in self._parts.values():
            part.store.abandon()
            if part.device is not None:
                part.device.close()

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.leg"

    def _check_size(self, device: BlockDevice) -> None:
        if device.size_bytes != self.size_bytes:
            raise UsageError(
                f"a leg of {device.size_bytes} bytes cannot mirror a volume of {self.size_bytes}"
            )

    # --- the device ------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._primary.block_bytes

    @property
    def rescued_reads(self) -> int:
        """How many reads a leg has answered because the primary could not."""
        return self._rescued_reads

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read the primary, or a leg in sync."""
        try:
            self._primary.read_into(byte_address, buffer)
        except DeviceError as error:
            if not self._rescue(byte_address, buffer, error):
                raise

    def _rescue(self, byte_address: int, buffer: memoryview, error: DeviceError) -> bool:
        for part in self._live:
            with part.flushing:
                if not part.is_(LegState.IN_SYNC):
                    continue
                try:
                    part.opened.read_into(byte_address, buffer)
                except BackupError as failed:
                    self._drop(part, failed)
                    continue
            # A leg that was dropped or split meanwhile may not have had what was written meanwhile.
            if not part.is_(LegState.IN_SYNC):
                continue
            with self._lock:
                self._rescued_reads += 1
                is_first = self._rescued_reads == 1
            if is_first:
                log.warning("%s; leg %s answers", error.message, part.leg.name)
            return True
        return False

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """The primary's; none once it could not be read, so that a leg can answer."""
        return None if self._rescued_reads else self._primary.file_range(byte_address, count)

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write to the primary, then to all live legs."""

        def act(device: BlockDevice) -> None:
            device.write(byte_address, data)

        self._change(byte_address, len(data), act, act)

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Zero the primary, then all live legs; only the primary is asked to be fast."""
        self._change(
            byte_address,
            count,
            lambda primary: primary.zero(
                byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only
            ),
            lambda leg: leg.zero(byte_address, count, may_punch=may_punch),
        )

    def discard_all(self) -> None:
        """Discard the primary, then all live legs."""
        self._change(0, self.size_bytes, _discard, _discard)

    def _change(
        self,
        start: int,
        count: int,
        on_primary: Callable[[BlockDevice], None],
        on_leg: Callable[[BlockDevice], None],
    ) -> None:
        end = start + count
        if start < 0 or end > self._size_bytes:
            check_range(self, start, count)
        if not count:
            return
        with self._regions.over(start, end):
            if self._is_closed:
                raise DeviceError("the mirror is closed", sense=WRITE_ERROR)
            for part in self._split:
                # Without the lock: only the copy clears bits, and it would need our regions.
                if not part.leg.is_marked(start, end):
                    with self._lock:
                        part.leg.mark(start, end)
            live = self._live
            if not live:
                on_primary(self._primary)
                return
            slot = self._regions.index(start)
            for part in live:
                part.store.enter(slot, start, end)
            try:
                on_primary(self._primary)
                for part in live:
                    try:
                        on_leg(part.opened)
                    except BackupError as error:
                        self._drop(part, error)
            except BaseException as error:
                if not (isinstance(error, NotFastError) and error.byte_address == start):
                    self._diverged(live, start, end, f"a write failed on the primary: {error}")
                raise
            finally:
                for part in live:
                    part.store.leave(slot)

    def flush(self) -> None:
        """Flush the primary, then all live legs."""
        try:
            self._primary.flush()
        except BaseException as error:
            self._is_doubtful = True
            self._diverged(
                tuple(self._parts.values()),
                0,
                self.size_bytes,
                f"the primary could not be flushed: {error}; waiting for a new start of the node",
            )
            raise
        for part in self._live:
            self._flush_leg(part)

    def _flush_leg(self, part: MirrorLeg) -> bool:
        with part.flushing:
            if part.leg.state in (LegState.FAILED, LegState.REMOVED):
                return False
            try:
                part.opened.flush()
            except BackupError as error:
                self._drop(part, error)
                return False
            return True

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Ask the primary."""
        return self._primary.extents(start_byte, end_byte)

    def used_bytes(self) -> int:
        """Ask the primary."""
        return self._primary.used_bytes()

    def close(self) -> None:
        """Stop copying, make everything durable, say so in the legs' files, close all devices; twice is once."""
        self._copier.stop()
        with self._copying, self._regions.all():
            if self._is_closed:
                return
            self._is_closed = True
            is_clean = not self._is_doubtful and self._is_primary_flushed()
            for part in self._parts.values():
                if part.leg.state in (
                    *_LIVE,
                    LegState.SPLIT,
                ):  # a view has to outlive the machine, too
                    self._flush_leg(part)
                if is_clean:
                    part.store.close()
                else:
                    part.leg.mark_all()
                    part.store.abandon()
                if part.device is not None:
                    part.device.close()
            self._parts, self._live, self._split = {}, (), ()
            self._primary.close()

    def _is_primary_flushed(self) -> bool:
        try:
            self._primary.flush()
        except BackupError as error:
            log.warning("the primary of a mirror could not be flushed: %s", error.message)
            return False
        return True

    # --- legs ------------------------------------------------------------------------------------

    def legs(self) -> tuple[LegStatus, ...]:
        """Describe all legs, by name."""
        with self._lock:
            return tuple(self._parts[name].leg.status() for name in sorted(self._parts))

    def add_leg(self, name: str, device: BlockDevice, *, path: Path) -> None:
        """Add a leg, which is then copied as a whole; `path` is what `open_leg` will be asked for at the next start.

        Takes the device over if it returns.
        """
        check_name(name)
        self._check_size(device)
        with self._copying:
            if self._is_closed:
                raise RefusedError("the mirror is closed")
            if name in self._parts:
                raise RefusedError(f"there is a leg {name} already")
            if len(self._parts) >= LEGS_MAX:
                raise RefusedError(f"a mirror has at most {LEGS_MAX} legs")
            store = LegStore.create(
                self._file(name), size_bytes=self.size_bytes, boot_id=self._boot_id
            )
            leg = Leg.added(name, path=str(path), size_bytes=self.size_bytes, changed=store.changed)
            part = MirrorLeg(leg, store, device)
            try:
                write_legs(self._folder, {**self._paths(), name: str(path)})
            except BaseException:
                store.abandon()
                raise
            with self._lock:
                self._parts = {**self._parts, name: part}
                if self._is_doubtful:
                    leg.reason = "waiting for a new start of the node"
                status = self._entered(part)
        self._on_change(status)
        self._want_copying()

    def remove_leg(self, name: str) -> None:
        """Remove a leg and close its device; refused while it is split.  Its data stay as they are."""
        part = self._part(name)
        with self._copying, self._regions.all(), part.flushing:
            with self._lock:
                part.leg.handle(LegEvent.REMOVE)
                self._parts = {key: kept for key, kept in self._parts.items() if key != name}
                status = self._entered(part)
            write_legs(self._folder, self._paths())
            part.store.remove()
            if part.device is not None:
                part.device.close()
        self._on_change(status)

    def split(self, name: str) -> SplitView:
        """Make a leg that is in sync the static view of this instant.

        A change of a flag in memory.  The caller guarantees that no write is under way, and that none begins before
        this returns; it flushes before, outside of its gate, if the view has to outlive the machine.
        """
        part = self._part(name)
        with self._lock:
            if part.store.is_in_flight:
                raise RefusedError("a write is under way")
            part.leg.handle(LegEvent.SPLIT)
            part.views += 1
            status = self._entered(part)
        self._on_change(status)
        return self.view(name)

    def view(self, name: str) -> SplitView:
        """Return the view of a leg that is split, also after a new start; refused for any other."""
        part = self._part(name)
        with self._lock:
            if part.leg.state is not LegState.SPLIT:
                raise RefusedError(f"leg {name} is {part.leg.state.value}, not split")
            views = part.views
        return SplitView(
            part.opened,
            name,
            is_good=lambda: part.views == views and part.leg.state is LegState.SPLIT,
        )

    def rejoin(self, name: str) -> None:
        """Release the view of a split leg and copy what changed since; nothing for one that is live.

        Readers of the view get errors from now on.
        """
        part = self._part(name)
        with self._lock:
            if part.leg.state in _LIVE:
                return
            # First the word, then the deed: a crash after the first copied block must not find "split".
            part.leg.handle(LegEvent.REJOIN)
            part.views += 1
            part.restart()
            status = self._entered(part)
        self._on_change(status)
        self._want_copying()

    def resynchronise(self, name: str, device: BlockDevice | None = None) -> None:
        """Copy a leg as a whole, for instance one that failed; with `device`, over another one of the same path.

        Refused while it is split.
        """
        part = self._part(name)
        if device is not None:
            self._check_size(device)
        elif part.device is None:
            raise RefusedError(f"the device of leg {name} could not be opened")
        old: BlockDevice | None = None
        with self._copying, self._regions.all(), part.flushing:
            with self._lock:
                part.leg.handle(LegEvent.RENEW)
                part.restart()
                if device is not None:
                    old, part.device = part.device, device
                status = self._entered(part)
            if old is not None:
                old.close()
        self._on_change(status)
        self._want_copying()

    def _part(self, name: str) -> MirrorLeg:
        part = self._parts.get(name)
        if part is None:
            raise NotFoundError(f"the mirror has no leg {name}")
        return part

    def _paths(self) -> dict[str, str]:
        return {name: part.leg.path for name, part in self._parts.items()}

    def _route(self) -> None:
        parts = self._parts.values()
        self._live = tuple(part for part in parts if part.leg.state in _LIVE)
        self._split = tuple(part for part in parts if part.leg.state is LegState.SPLIT)

    def _entered(self, part: MirrorLeg) -> LegStatus:
        """Keep and follow the new state of a leg, with the lock held; what it returns is for `on_change`, without."""
        if not part.is_(LegState.REMOVED):
            part.store.record(part.leg.state, part.leg.reason)
        self._route()
        return part.leg.status()

    def _drop(self, part: MirrorLeg, error: BackupError) -> None:
        """An error of a leg: the volume goes on without it."""
        with self._lock:
            if part.leg.state is LegState.FAILED:
                return
            part.leg.handle(LegEvent.ERROR, reason=error.message)
            status = self._entered(part)
        log.error("leg %s is dropped: %s", part.leg.name, error.message)
        self._on_change(status)

    def _diverged(self, parts: tuple[MirrorLeg, ...], start: int, end: int, reason: str) -> None:
        """The primary may have changed where these legs have not, or the other way round."""
        for part in parts:
            with self._lock:
                old = part.leg.state
                if old not in (*_LIVE, LegState.SPLIT):
                    continue
                part.leg.mark(start, end)
                part.leg.handle(LegEvent.DIVERGED, reason=reason)
                status = self._entered(part)
            if status.state is not old:
                log.warning("leg %s resynchronises: %s", part.leg.name, reason)
                self._on_change(status)
        self._want_copying()

    # --- the copy --------------------------------------------------------------------------------

    def copy_piece(self) -> int | None:
        """Do one step of a resynchronisation: return the bytes that were copied, None if there is nothing to do.

        Raises `DeviceError` for what neither the primary nor another leg can read; the next call tries the next place.
        """
        with self._copying:
            for part in self._live:
                if part.is_(LegState.RESYNCHRONISING) and not self._is_doubtful:
                    return self._step(part)
        return None

    def _step(self, part: MirrorLeg) -> int:
        with self._lock:
            piece = part.leg.next_piece(part.cursor, bytes_max=part.copy_bytes_max)
        if piece is None:
            self._finish(part)
            return 0
        start, end = piece
        part.cursor = end
        with self._regions.over(start, end):
            if not part.is_(LegState.RESYNCHRONISING):
                return 0
            try:
                is_copied = self._copy(part, start, end)
            except DeviceError:
                part.copy_bytes_max = (
                    GRANULE_BYTES  # so that its neighbours need not wait for the bad one
                )
                raise
            with self._lock:
                # A leg may have failed meanwhile; and what a doubtful primary shows, it may not keep.
                if not is_copied or self._is_doubtful or not part.is_(LegState.RESYNCHRONISING):
                    return 0
                part.leg.copied(start, end)
        return end - start

    def _copy(self, part: MirrorLeg, start: int, end: int) -> bool:
        """Make a range of the leg equal to the primary; False if the leg failed."""
        for at, low, high in gaps_and_runs(self._primary, start, end):
            piece = self._buffer[: high - low]
            if piece:
                self.read_into(low, piece)
            try:
                if at < low:
                    part.opened.zero(at, low - at, may_punch=True)
                if piece:
                    part.opened.write(low, piece)
            except BackupError as error:
                self._drop(part, error)
                return False
        return True

    def _finish(self, part: MirrorLeg) -> None:
        """No bit was set a moment ago: the leg is in sync if it can be flushed and that is still so."""
        if not self._flush_leg(part):
            return
        with self._lock:
            if not part.is_(LegState.RESYNCHRONISING) or part.leg.lacks_something:
                return
            part.leg.handle(LegEvent.SYNCED)
            part.restart()
            status = self._entered(part)
        log.info("leg %s is in sync", part.leg.name)
        self._on_change(status)

    def _has_work(self) -> bool:
        return not self._is_doubtful and any(
            part.is_(LegState.RESYNCHRONISING) for part in self._live
        )

    def _want_copying(self) -> None:
        if self._copies_by_itself:
            self._copier.want()


def _discard(device: BlockDevice) -> None:
    device.discard_all()
