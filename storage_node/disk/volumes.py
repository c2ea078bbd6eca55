"""The volumes of a node on its disk.

    STATE/volumes/UUID/volume.json    what the volume is; replaced atomically
    STATE/volumes/UUID/data.img       its blocks, a sparse file; not there for an attached device or image
    STATE/volumes/UUID/changes/       which blocks changed, by generation
    STATE/volumes/UUID/mirror/, legs/ what is known of the legs of its mirror, and legs that lie beside it
    STATE/views/UUID.json             one file per static view

A volume is made in a folder with another name and renamed when it is complete, and removed the other way round, so that
a crash leaves a whole volume or a folder that the next start sweeps away.  Folders that cannot be understood are left
alone and reported.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError, UsageError
from backplane.ids import Designator, Epoch, JobId, ViewId, VolumeId
from storage_node.core.mirror import LegStatus
from storage_node.core.volume_state import (
    DropView,
    DropVolume,
    MakeVolume,
    Means,
    RecordView,
    RecordVolume,
    State,
    ViewRecord,
    VolumeRecord,
)
from storage_node.disk.change_store import ChangeTracker
from storage_node.disk.checksummed import ChecksummedDevice
from storage_node.disk.device import BlockDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.mirror import MirroredDevice
from storage_node.state_file import (
    DamagedStateError,
    StateError,
    read_json,
    sync_folder,
    write_json,
)
from storage_node.state_reserve import StateReserve

VERSION: Final = 1
GATE_TRIES: Final = 500
GATE_PAUSE_S: Final = 0.01
"""How long to wait for an instant without a write, in which a mirror is put below a volume."""

_PENDING: Final = ".pending-"
log = logging.getLogger(__name__)

Durable = MakeVolume | RecordVolume | DropVolume | RecordView | DropView


class VolumeStore:
    """Carries out the effects of the volume book.  Not thread-safe for one volume; different ones may overlap."""

    def __init__(
        self,
        folder: Path,
        *,
        attach_paths: Sequence[Path] = (),
        boot_id: str,
        new_id: Callable[[], str],
        has_checksums: bool = True,
        reserve: StateReserve | None = None,
    ) -> None:
        """`boot_id` is the kernel's; `new_id` names a new history of changes.

        With `has_checksums` the node notices when volumes of its own are not any more what was written to them.
        """
        self._has_checksums = has_checksums
        self._reserve = reserve
        self._boot_id = boot_id
        self._new_id = new_id
        self._volumes = folder / "volumes"
        self._views = folder / "views"
        self._attach_paths = tuple(Path(os.path.realpath(path)) for path in attach_paths)
        self.devices: dict[VolumeId, BlockDevice] = {}
        self.trackers: dict[VolumeId, ChangeTracker] = {}
        self.mirrors: dict[VolumeId, MirroredDevice] = {}
        for path in (self._volumes, self._views):
            path.mkdir(parents=True, exist_ok=True)

    def load(self) -> tuple[list[VolumeRecord], list[ViewRecord]]:
        """Open every volume that is there; sweep what a crash left unfinished."""
        volumes = []
        for path in sorted(self._volumes.iterdir()):
            if path.name.startswith(_PENDING):
                shutil.rmtree(path)
                continue
            try:
                record = _volume_from(read_json(path / "volume.json"))
                self._take_up(record)
                volumes.append(record)
            except BackupError as error:
                log.warning("volume folder %s left alone: %s", path.name, error)
        views = []
        for path in sorted(self._views.glob("[!.]*.json")):
            try:
                view = _view_from(read_json(path))
            except BackupError as error:
                log.warning("view file %s left alone: %s", path.name, error)
                continue
            if view.volume in self.devices:
                views.append(view)
            else:
                log.warning("view %s left alone: its volume is not here", view.view)
        return volumes, views

    def resolve(self, path: str) -> Path:
        """Return the real path of something to attach, if the configuration allows it."""
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(allowed) for allowed in self._attach_paths):
            raise RefusedError(
                f"this node may not attach {path}",
                hint="add its folder to attach_paths in the node's configuration",
            )
        if not real.exists():
            raise NotFoundError(f"{path} does not exist on this node")
        return real

    def probe(self, path: Path, *, block_bytes: int) -> int:
        """Return the size of something to attach, after having opened it as exclusively as the kernel allows."""
        device = FileDevice(path, block_bytes=block_bytes, is_shared=False)
        device.close()
        return device.size_bytes

    def perform(self, effect: Durable) -> None:
        """Carry out one effect durably; raises `StateError` if it may have failed halfway."""
        try:
            match effect:
                case MakeVolume(record):
                    self._make(record)
                case RecordVolume(record):
                    path = self._folder(record) / "volume.json"
                    write_json(path, _volume_document(record), reserve=self._reserve)
                case DropVolume(record):
                    self._drop(record)
                case RecordView(view):
                    path = self._views / f"{view.view}.json"
                    write_json(path, _view_document(view), reserve=self._reserve)
                case DropView(view):
                    (self._views / f"{view.view}.json").unlink(missing_ok=True)
                    sync_folder(self._views)
        except OSError as error:
            raise StateError(
                f"cannot keep the state of a volume: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Close all devices."""
        for device in self.devices.values():
            device.close()
        for tracker in self.trackers.values():
            tracker.close()
        self.devices.clear()
        self.trackers.clear()
        self.mirrors.clear()

    def _folder(self, record: VolumeRecord) -> Path:
        return self._volumes / record.volume

    def path(self, record: VolumeRecord) -> Path:
        """Return where the data of a volume are."""
        return Path(record.path) if record.path else self._folder(record) / "data.img"

    def _open(self, record: VolumeRecord) -> BlockDevice:
        path = self.path(record)
        device = FileDevice(path, block_bytes=record.block_bytes, is_shared=not record.path)
        if device.size_bytes != record.size_bytes:
            device.close()
            raise DamagedStateError(
                f"{path} has {device.size_bytes} bytes, the volume has {record.size_bytes}"
            )
        if record.path or not self._has_checksums:
            # What is attached may be written by others, who tell nobody.
            return device
        try:
            return ChecksummedDevice(device, self._folder(record) / "checksums")
        except OSError as error:
            device.close()
            raise DamagedStateError(f"cannot take over the checksums of {path}: {error}") from error

    def _make(self, record: VolumeRecord) -> None:
        pending = self._volumes / f"{_PENDING}{record.volume}"
        if pending.exists():
            shutil.rmtree(pending)
        pending.mkdir(mode=0o700)
        try:
            if not record.path:
                make_sparse_file(pending / "data.img", size_bytes=record.size_bytes)
            write_json(pending / "volume.json", _volume_document(record))
            pending.rename(self._folder(record))
        except (OSError, BackupError) as error:
            # Nothing carries the volume's name yet: no state is in doubt, unlike with the other effects.
            shutil.rmtree(pending, ignore_errors=True)
            raise BackupError(f"cannot make volume {record.name!r}: {error}") from error
        sync_folder(self._volumes)
        self._take_up(record)

    def _take_up(self, record: VolumeRecord) -> None:
        """Open everything that a volume consists of, or nothing."""
        folder = self._folder(record)
        with ExitStack() as undo:
            primary = self._open(record)
            undo.callback(primary.close)
            tracker = ChangeTracker.open(
                folder / "changes",
                size_bytes=record.size_bytes,
                boot_id=self._boot_id,
                new_id=self._new_id,
            )
            undo.callback(tracker.close)
            if (folder / "mirror").exists():
                self.mirrors[record.volume] = self._open_mirror(record, primary)
            undo.pop_all()
        self.trackers[record.volume] = tracker
        self.devices[record.volume] = self.mirrors.get(record.volume, primary)

    # --- the backup mirror -----------------------------------------------------------------------

    def _open_mirror(self, record: VolumeRecord, primary: BlockDevice) -> MirroredDevice:
        return MirroredDevice(
            primary,
            self._folder(record) / "mirror",
            boot_id=self._boot_id,
            open_leg=lambda _name, path: FileDevice(path, block_bytes=record.block_bytes),
            on_change=_tell_leg,
        )

    def change_mirror(
        self, record: VolumeRecord, action: str, *, leg: str, path: str, live: LiveVolume
    ) -> None:
        """Add a leg, remove one, or copy one as a whole.  `path` is where a new leg is to lie; "" beside the volume."""
        mirror = self.mirrors.get(record.volume)
        if action == "add":
            self._add_leg(record, leg, path, live)
        elif mirror is None:
            raise NotFoundError(f"volume {record.name!r} has no backup mirror")
        elif action == "remove":
            mirror.remove_leg(leg)
        elif action == "resync":
            mirror.resynchronise(leg)
        else:
            raise UsageError(f"{action!r} is nothing to do with a mirror: add, remove or resync")

    def _add_leg(self, record: VolumeRecord, leg: str, path: str, live: LiveVolume) -> None:
        folder = self._folder(record) / "legs" if not path else self.resolve(path)
        if not path:
            folder.mkdir(mode=0o700, exist_ok=True)
        place = folder / f"{record.volume}-{leg}.img" if folder.is_dir() else folder
        is_new = not place.exists()
        try:
            if is_new:
                make_sparse_file(place, size_bytes=record.size_bytes)
            elif place.is_file():
                raise RefusedError(f"{place} exists", hint="remove it, or choose another leg name")
            device = FileDevice(place, block_bytes=record.block_bytes, is_shared=is_new)
        except OSError as error:
            raise BackupError(f"no leg at {place}: {error.strerror or error}") from error
        try:
            self._mirror_for(record, live).add_leg(leg, device, path=place)
        except BaseException:
            device.close()
            if is_new:
                place.unlink()
            raise

    def _mirror_for(self, record: VolumeRecord, live: LiveVolume) -> MirroredDevice:
        """Return the volume's mirror; the first time, put one below the volume while nobody writes."""
        known = self.mirrors.get(record.volume)
        if known is not None:
            return known
        for _ in range(GATE_TRIES):
            if live.try_close():
                break
            threading.Event().wait(GATE_PAUSE_S)
        else:
            raise BusyError(f"volume {record.name!r} is written without a pause", hint="try again")
        try:
            mirror = self._open_mirror(record, self.devices[record.volume])
            live.replace_device(mirror)
        finally:
            live.open()
        self.mirrors[record.volume] = self.devices[record.volume] = mirror
        return mirror

    def _drop(self, record: VolumeRecord) -> None:
        device = self.devices.pop(record.volume, None)
        tracker = self.trackers.pop(record.volume, None)
        legs = self.mirrors.pop(record.volume, None)
        if legs is not None:
            self._remove_own_legs(legs)
        pending = self._volumes / f"{_PENDING}{record.volume}"
        if self._folder(record).exists():
            self._folder(record).rename(pending)
            sync_folder(self._volumes)
        if device is not None:
            device.close()
        if tracker is not None:
            tracker.close()
        if pending.exists():
            shutil.rmtree(pending)

    def _remove_own_legs(self, mirror: MirroredDevice) -> None:
        """Remove the files that were made for legs elsewhere; what lies in the volume's folder goes with it."""
        for leg in mirror.legs():
            path = Path(leg.path)
            if path.is_file():
                path.unlink(missing_ok=True)


def _tell_leg(leg: LegStatus) -> None:
    log.info(
        "leg of a mirror", extra={"leg": leg.name, "state": leg.state.value, "reason": leg.reason}
    )


def _volume_document(record: VolumeRecord) -> dict[str, Any]:
    return {
        "version": VERSION,
        "volume": record.volume,
        "name": record.name,
        "designator": record.designator.hex(),
        "size_bytes": record.size_bytes,
        "block_bytes": record.block_bytes,
        "path": record.path,
        "state": record.state.value,
        "job": record.job,
        "epoch": record.epoch,
        "is_empty": record.is_empty,
        "needs_discard": record.needs_discard,
    }


def _volume_from(document: dict[str, Any]) -> VolumeRecord:
    try:
        _expect_version(document)
        return VolumeRecord(
            volume=VolumeId(str(document["volume"])),
            name=str(document["name"]),
            designator=Designator(bytes.fromhex(document["designator"])),
            size_bytes=int(document["size_bytes"]),
            block_bytes=int(document["block_bytes"]),
            path=str(document["path"]),
            state=State(document["state"]),
            job=JobId(int(document["job"])),
            epoch=Epoch(int(document["epoch"])),
            is_empty=bool(document["is_empty"]),
            needs_discard=bool(document["needs_discard"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStateError(f"volume.json: {error!r}") from error


def _view_document(view: ViewRecord) -> dict[str, Any]:
    return {
        "version": VERSION,
        "view": view.view,
        "volume": view.volume,
        "job": view.job,
        "designator": view.designator.hex(),
        "ttl_s": view.ttl_s,
        "created": view.created,
        "means": view.means.value,
        "tracking": view.tracking,
        "generation": view.generation,
        "consistency": view.consistency,
        "leg": view.leg,
    }


def _view_from(document: dict[str, Any]) -> ViewRecord:
    try:
        _expect_version(document)
        return ViewRecord(
            view=ViewId(str(document["view"])),
            volume=VolumeId(str(document["volume"])),
            job=JobId(int(document["job"])),
            designator=Designator(bytes.fromhex(document["designator"])),
            ttl_s=float(document["ttl_s"]),
            created=str(document["created"]),
            means=Means(document["means"]),
            tracking=str(document["tracking"]),
            generation=int(document["generation"]),
            consistency=str(document["consistency"]),
            leg=str(document["leg"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStateError(f"view: {error!r}") from error


def _expect_version(document: dict[str, Any]) -> None:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, this program knows {VERSION}")
