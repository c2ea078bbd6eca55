"""How the data of a static view are kept as they are: what is prepared before the instant, done in it, and undone.

    prepare (may take its time, the gate is open) -> install (in the instant, the gate is closed) -> StaticView
                                                 \\-> abandon
    StaticView: a read-only device until `release`; `reopen` finds it again after a restart of the node

One class for each means.  Whether a view is still good is asked of it: a snapshot may break, the others cannot.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from backplane.errors import BackupError, RefusedError
from backplane.ids import ViewId, VolumeId
from backplane.units import MIB
from storage_node.core.copy_on_write import BreakReason
from storage_node.core.mirror import LegState
from storage_node.core.volume_state import Means, ViewRecord
from storage_node.disk import reflink, snapshot_files
from storage_node.disk.device import BlockDevice
from storage_node.disk.file import FileDevice
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.lost import LostDevice
from storage_node.disk.mirror import MirroredDevice
from storage_node.disk.snapshots import Snapshot

log = logging.getLogger(__name__)

RESERVE_BYTES_MIN: Final = 64 * MIB
"""A snapshot of a small volume may become as large as this, whatever its share would be."""

CLONE_NAME: Final = "clone.img"
CLONE_BOOT_NAME: Final = "boot-id"
"""Under which kernel a clone was made.  Nobody waits until it is durable: a machine that was down may have lost it."""


class StaticView(Protocol):
    """The data of one view."""

    means: Means
    leg: str

    @property
    def device(self) -> BlockDevice:
        """What the volume was in the instant; read-only."""

    @property
    def broken(self) -> str:
        """Why the view is no good any more; "" if it is."""

    @property
    def used_bytes(self) -> int:
        """What it takes beside the volume."""

    @property
    def used_share(self) -> float:
        """What of its reserve is used: 1 is all; 0 for what has none."""

    def install(self) -> None:
        """Begin, in the instant; raises `BackupError` if the view cannot be."""

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """Only these byte runs (start, end) will be read any more; what the rest costs may be saved."""

    def release(self) -> None:
        """End it and give its space back; twice is once.  Also what ends a view that was only prepared."""

    def close(self) -> None:
        """The node ends, the view does not: leave it to be opened again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRules:
    """`reserve_percent` of the volume's size is what a snapshot may take; `budget_s` what it may cost a write."""

    reserve_percent: int = 20
    budget_s: float = 0.2


class HeldView:
    """The volume itself, whose writers are refused meanwhile."""

    means = Means.HOLD
    leg = ""
    broken = ""
    used_bytes = 0
    used_share = 0.0

    def __init__(self, volume: LiveVolume) -> None:
        self.device: BlockDevice = volume.device

    def install(self) -> None:
        """The gate of the rules does it."""

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """A hold costs the same, whatever is read."""

    def release(self) -> None:
        """The gate of the rules does it."""

    def close(self) -> None:
        """Nothing to close."""


class SnapshotView:
    """What writes would overwrite is saved before."""

    means = Means.SNAPSHOT
    leg = ""

    def __init__(self, volume: LiveVolume, snapshot: Snapshot) -> None:
        self._volume = volume
        self._snapshot = snapshot
        self.device: BlockDevice = snapshot.reader()

    @property
    def broken(self) -> str:
        """A snapshot breaks rather than harm the volume."""
        reason = self._snapshot.reason
        return "" if reason is None else reason.value

    @property
    def used_bytes(self) -> int:
        """What was saved."""
        return self._snapshot.used_bytes

    @property
    def used_share(self) -> float:
        """How near the reserve's end is."""
        return self._snapshot.used_bytes / max(1, self._snapshot.reserve_bytes)

    def install(self) -> None:
        """From the next write on, what is there is saved."""
        self._volume.attach(self._snapshot)

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """Save only what will be read."""
        self._snapshot.narrow(kept)

    def release(self) -> None:
        """Save no more, and give the space back."""
        # In this order: a write between the two must find a snapshot that is no good any more, not one that is not fed.
        self._snapshot.release()
        self._volume.detach(self._snapshot)
        self.device.close()

    def close(self) -> None:
        """Leave the store as it is; a write that should come all the same breaks it."""
        self._snapshot.close()
        self.device.close()


class ClonedView:
    """A file that shares its blocks with the volume's."""

    means = Means.CLONE
    leg = ""
    used_share = 0.0
    broken = ""

    def __init__(self, volume: LiveVolume, source: Path, folder: Path) -> None:
        self._volume = volume
        self._source = source
        self._folder = folder
        self._device: FileDevice | None = None

    @property
    def device(self) -> BlockDevice:
        """The clone."""
        assert self._device is not None
        return self._device

    @property
    def used_bytes(self) -> int:
        """Unknown to the file system's users: shared blocks are counted in both files."""
        return 0

    def install(self) -> None:
        """Clone in the instant: a matter of metadata."""
        path = self._folder / CLONE_NAME
        reflink.clone(self._source, path)
        self.open()

    def open(self) -> None:
        """Open the clone."""
        self._device = FileDevice(
            self._folder / CLONE_NAME, block_bytes=self._volume.block_bytes, is_shared=True
        )

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """A clone costs the same, whatever is read."""

    def release(self) -> None:
        """Remove the clone."""
        self.close()
        _remove(self._folder)

    def close(self) -> None:
        """Close the clone."""
        if self._device is not None:
            self._device.close()


class MirrorView:
    """A leg of the backup mirror, split off."""

    means = Means.MIRROR
    used_bytes = 0
    used_share = 0.0

    def __init__(self, mirror: MirroredDevice, leg: str) -> None:
        self._mirror = mirror
        self._is_split = False
        self._device: BlockDevice | None = None
        self.leg = leg

    @property
    def device(self) -> BlockDevice:
        """The leg."""
        assert self._device is not None
        return self._device

    @property
    def broken(self) -> str:
        """A leg may fail, and is not split any more then."""
        for leg in self._mirror.legs():
            if leg.name == self.leg:
                is_good = leg.state is LegState.SPLIT
                return (
                    "" if is_good else f"leg {leg.name} is {leg.state.value} {leg.reason}".strip()
                )
        return f"leg {self.leg} is gone"

    def install(self) -> None:
        """Split the leg off."""
        self._device = self._mirror.split(self.leg)
        self._is_split = True

    def reopen(self) -> None:
        """Find the leg split, as it was left."""
        self._device = self._mirror.view(self.leg)
        self._is_split = True

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """A split leg costs the same, whatever is read."""

    def release(self) -> None:
        """Let the leg catch up in the background."""
        if self._is_split:
            self._is_split = False
            self._mirror.rejoin(self.leg)

    def close(self) -> None:
        """The mirror closes its legs."""


class LostView:
    """A view whose data could not be found after a restart; it is told as broken until it is released."""

    leg = ""
    used_share = 0.0
    used_bytes = 0

    def __init__(self, means: Means, volume: LiveVolume, reason: str) -> None:
        self.means = means
        self.broken = reason or "its data are gone"
        self.device: BlockDevice = LostDevice(volume.device, self.broken)

    def install(self) -> None:
        """There is nothing to begin."""

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """There is nothing to protect."""

    def release(self) -> None:
        """There is nothing to end; the sweep at the next start takes what may be left."""

    def close(self) -> None:
        """Nothing to close."""


class ViewMaker:
    """Makes, reopens and sweeps the data of views below one folder."""

    def __init__(self, folder: Path, *, boot_id: str, rules: SnapshotRules) -> None:
        """`boot_id` is the kernel's: what was not synchronised is good under the same one only."""
        self._folder = folder / "snapshots"
        self._marks = folder / "snapshot-marks"
        self._boot_id = boot_id
        self._rules = rules
        self._hooks = folder / "hooks"
        self.on_broken: Callable[[], None] = lambda: None
        """Told in the thread of a write that a view is good no more: has to be quick."""
        for path in (self._folder, self._marks, self._hooks):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def prepare(
        self,
        view: ViewId,
        wanted: str,
        volume: LiveVolume,
        path: Path,
        *,
        protected: Sequence[tuple[int, int]] | None,
    ) -> StaticView:
        """Get everything ready for a view.  `wanted` is a means or `auto`; `path` the volume's file.

        Raises `RefusedError` if the volume cannot have such a view, `BackupError` if there is no room for it.
        """
        if wanted == "auto":
            wanted = (Means.CLONE if self._can_clone(path) else Means.SNAPSHOT).value
        folder = self._folder / view
        if wanted == Means.HOLD.value:
            return HeldView(volume)
        if wanted == Means.MIRROR.value:
            mirror = _mirror_of(volume)
            return MirrorView(mirror, _leg_in_sync(mirror))
        try:
            self._remove(folder)
            if wanted == Means.CLONE.value:
                if not self._can_clone(path):
                    raise RefusedError(
                        f"{path} cannot be cloned, or not into the node's state folder"
                    )
                folder.mkdir(mode=0o700)
                (folder / CLONE_BOOT_NAME).write_text(self._boot_id, encoding="ascii")
                return ClonedView(volume, path, folder)
        except OSError as error:
            raise BackupError(f"no room for a static view: {error.strerror or error}") from error
        if wanted != Means.SNAPSHOT.value:
            raise RefusedError(
                f"{wanted!r} is no means of a static view",
                hint="use auto, snapshot, clone, mirror or hold",
            )
        snapshot = Snapshot.create(
            folder,
            view=view,
            live=volume.device,
            protected=protected,
            reserve_bytes=self._reserve(volume),
            budget_s=self._rules.budget_s,
            boot_id=self._boot_id,
            on_broken=lambda reason: self._tell_broken(view, reason),
            marks=self._marks,
        )
        return SnapshotView(volume, snapshot)

    def reopen(self, record: ViewRecord, volume: LiveVolume) -> StaticView:
        """Find the data of a view again; it may turn out to be broken.  Nobody writes the volume yet."""
        folder = self._folder / record.view
        match record.means:
            case Means.HOLD:
                return HeldView(volume)
            case Means.MIRROR:
                found = MirrorView(_mirror_of(volume), record.leg)
                found.reopen()
                return found
            case Means.CLONE:
                if (folder / CLONE_BOOT_NAME).read_text(encoding="ascii") != self._boot_id:
                    raise BackupError(BreakReason.MACHINE_RESTARTED.value)
                clone = ClonedView(volume, Path(), folder)
                clone.open()
                return clone
            case Means.SNAPSHOT:
                snapshot = Snapshot.open(
                    folder,
                    live=volume.device,
                    boot_id=self._boot_id,
                    on_broken=lambda reason: self._tell_broken(record.view, reason),
                    budget_s=self._rules.budget_s,
                    marks=self._marks,
                )
                view = SnapshotView(volume, snapshot)
                view.install()
                return view

    def rejoin(self, volume: LiveVolume, known: Iterable[str]) -> None:
        """Let legs that were split for no view catch up: a crash came between the making and the record."""
        if not isinstance(volume.device, MirroredDevice):
            return
        for leg in volume.device.legs():
            if leg.state is LegState.SPLIT and leg.name not in known:
                log.info("a leg was split for no static view", extra={"leg": leg.name})
                volume.device.rejoin(leg.name)

    def marker(self, volume: VolumeId) -> Path:
        """Return where it is noted that the commands before a view of a volume were begun."""
        return self._hooks / f"{volume}.json"

    def sweep(self, known: set[ViewId]) -> list[str]:
        """Remove what belongs to no view: a crash came between the making and the record.  Returns the names."""
        orphans = sorted(path.name for path in self._folder.iterdir() if path.name not in known)
        for name in orphans:
            self._remove(self._folder / name)
        return orphans

    def _remove(self, folder: Path) -> None:
        """Remove whatever is kept under a view's name."""
        snapshot_files.remove(folder, marks=self._marks)
        _remove(folder)

    def _tell_broken(self, view: ViewId, reason: str) -> None:
        """Called by the thread of a write, which waits."""
        log.warning("a snapshot is broken", extra={"view": view, "reason": reason})
        self.on_broken()

    def _reserve(self, volume: LiveVolume) -> int:
        return max(RESERVE_BYTES_MIN, volume.size_bytes * self._rules.reserve_percent // 100)

    def _can_clone(self, path: Path) -> bool:
        """A clone shares blocks within one file system; asked, because types and mount options do not tell."""
        try:
            same = path.stat().st_dev == self._folder.stat().st_dev
        except OSError:
            return False
        return same and path.is_file() and reflink.can_reflink(self._folder)


def _mirror_of(volume: LiveVolume) -> MirroredDevice:
    if not isinstance(volume.device, MirroredDevice):
        raise RefusedError(
            "the volume has no backup mirror", hint="add one: ctl volume mirror add NAME"
        )
    return volume.device


def _leg_in_sync(mirror: MirroredDevice) -> str:
    legs = mirror.legs()
    for leg in legs:
        if leg.state is LegState.IN_SYNC:
            return leg.name
    told = ", ".join(f"{leg.name} is {leg.state.value}" for leg in legs) or "it has no leg"
    raise RefusedError(f"no leg of the backup mirror can be split: {told}")


def _remove(folder: Path) -> None:
    """What cannot be removed is left to the next start."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("cannot remove the folder of a static view", extra={"reason": str(error)})
