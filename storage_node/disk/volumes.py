"""The volumes of a node on its disk.

    STATE/volumes/UUID/volume.json    what the volume is; replaced atomically
    STATE/volumes/UUID/data.img       its blocks, a sparse file; not there for an attached device or image
    STATE/views/UUID.json             one file per static view

A volume is made in a folder with another name and renamed when it is complete, and removed the other way round, so that
a crash leaves a whole volume or a folder that the next start sweeps away.  Folders that cannot be understood are left
alone and reported.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from backplane.errors import BackupError, NotFoundError, RefusedError
from backplane.ids import Designator, Epoch, JobId, ViewId, VolumeId
from storage_node.core.volume_state import (
    DropView,
    DropVolume,
    MakeVolume,
    RecordView,
    RecordVolume,
    State,
    ViewRecord,
    VolumeRecord,
)
from storage_node.disk.device import BlockDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.state_file import (
    DamagedStateError,
    StateError,
    read_json,
    sync_folder,
    write_json,
)

VERSION: Final = 1
_PENDING: Final = ".pending-"
log = logging.getLogger(__name__)

Durable = MakeVolume | RecordVolume | DropVolume | RecordView | DropView


class VolumeStore:
    """Carries out the effects of the volume book.  Not thread-safe for one volume; different ones may overlap."""

    def __init__(self, folder: Path, *, attach_paths: Sequence[Path] = ()) -> None:
        self._volumes = folder / "volumes"
        self._views = folder / "views"
        self._attach_paths = tuple(Path(os.path.realpath(path)) for path in attach_paths)
        self.devices: dict[VolumeId, BlockDevice] = {}
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
                self.devices[record.volume] = self._open(record)
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
                    write_json(self._folder(record) / "volume.json", _volume_document(record))
                case DropVolume(record):
                    self._drop(record)
                case RecordView(view):
                    write_json(self._views / f"{view.view}.json", _view_document(view))
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
        self.devices.clear()

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
        return device

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
        self.devices[record.volume] = self._open(record)

    def _drop(self, record: VolumeRecord) -> None:
        device = self.devices.pop(record.volume, None)
        pending = self._volumes / f"{_PENDING}{record.volume}"
        if self._folder(record).exists():
            self._folder(record).rename(pending)
            sync_folder(self._volumes)
        if device is not None:
            device.close()
        if pending.exists():
            shutil.rmtree(pending)


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
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStateError(f"view: {error!r}") from error


def _expect_version(document: dict[str, Any]) -> None:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, this program knows {VERSION}")
