"""The storage node process: state folder, roles, data server, session with the controller.

What it holds is opened in the order of `open_node` and closed the other way round: first nobody comes in any more, then
the requests under way end, then the buffers of the drives and the floors are made durable.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from backplane import crc
from backplane.errors import BackupError, ConfigError, RefusedError
from backplane.ids import Designator, NodeName
from backplane.runtime.clock import Clock, SystemClock
from backplane.runtime.keys import KeyPair, load_key_pair, load_public_key
from backplane.runtime.loop import Loop
from backplane.runtime.peer import Peer
from backplane.runtime.signals import SignalHandlers
from backplane.transport.zeromq import DealerEndpoint
from backplane.wire.messages import Message, SessionRefused, SessionWelcome
from storage_node.access import Access
from storage_node.config import StorageNodeConfig
from storage_node.control import Control, NodeIdentity
from storage_node.core.admission import Admission
from storage_node.core.drive_model import SPECIFICATIONS
from storage_node.data_server import DataServer, LogicalUnit, NodeKeys
from storage_node.disk.static_views import SnapshotRules, ViewMaker
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_control import DiskControl
from storage_node.floor_store import FloorStore
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import Mapper
from storage_node.nbd.server import NbdServer
from storage_node.node_clock import NodeClock, kernel_boot_id
from storage_node.state_file import StateError, write_file
from storage_node.state_reserve import StateReserve
from storage_node.tape.device_drive import DeviceDrive
from storage_node.tape.device_library import DeviceLibrary
from storage_node.tape.equipment import Library
from storage_node.tape.library import TapeLibrary
from storage_node.tape.modelled_drive import ModelledDrive
from storage_node.tape.smc_changer import SgDevice, SmcChanger
from storage_node.tape.tape_device import DeviceFile, identity_of
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape_control import TapeControl
from storage_node.volume_exports import VolumeExports
from storage_node.workers import THREADS, KeyedWorkers

log = logging.getLogger(__name__)

ROLE: Final = "storage"
BOOT_ID_BYTES: Final = 16


class StorageNode:
    """One node; `run` returns when it was told to stop."""

    def __init__(
        self, config: StorageNodeConfig, *, loop: Loop, stack: ExitStack, clock: Clock
    ) -> None:
        self._config = config
        self._loop = loop
        self._failure: BackupError | None = None
        self._keys = _node_keys(config)
        controller = load_public_key(config.controller_key_file)
        boot_id = secrets.token_bytes(BOOT_ID_BYTES)
        self._reserve = StateReserve(config.state_folder)
        floors = stack.enter_context(
            FloorStore(config.state_folder / "floors", reserve=self._reserve)
        )
        self._access = Access(
            Admission(node=NodeName(config.name), boot_id=boot_id, floors=floors.floors),
            floors,
            monotonic=clock.monotonic,
            on_fatal=self._on_fatal,
        )
        self._nbd: NbdServer | None = None
        self._disk = self._open_disk(stack, clock) if "disk" in config.roles else None
        self._tape = self._open_tape(stack, clock) if "tape" in config.roles else None
        # A drive that threads or rewinds keeps its worker as long as that takes.
        workers = KeyedWorkers(
            threads=THREADS + (len(self._tape.units) if self._tape is not None else 0)
        )
        stack.callback(workers.close)
        server = DataServer(
            keys=NodeKeys(
                boot_id=boot_id,
                secret_key=self._keys.secret,
                controller_key=controller.public,
            ),
            access=self._access,
            unit=self._unit,
            connections_max=config.connections_max,
        )
        stack.callback(server.close)
        addresses = server.start(config.listen)
        nbd_addresses = self._open_nbd(stack) if config.nbd_listen else ()
        endpoint = DealerEndpoint(
            config.controller, keys=self._keys, server_key=controller.public, now=loop.now
        )
        stack.callback(endpoint.close)
        self._peer = Peer(
            loop,
            endpoint,
            role=ROLE,
            name=config.name,
            boot_id=boot_id,
            program=f"storage-node {_version()}",
            on_ready=self._on_ready,
            on_message=self._on_message,
            on_refused=self._on_refused,
        )
        self._control = Control(
            loop=loop,
            workers=workers,
            access=self._access,
            identity=NodeIdentity(
                boot_id=boot_id,
                public_key=self._keys.public,
                addresses=config.advertise or addresses,
                roles=config.roles,
                nbd_addresses=config.nbd_advertise or nbd_addresses,
            ),
            disk=self._disk,
            tape=self._tape,
            mapper=self._open_mapper(clock) if self._disk is not None else None,
            mappings_max=config.mappings_max,
            send=self._peer.send,
            is_alone=lambda: not self._peer.is_ready,
        )
        stack.callback(self._control.close)
        self._server = server
        told = {"addresses": addresses, "roles": config.roles, "nbd": nbd_addresses}
        log.info("serving", extra=told)

    def run(self) -> None:
        """Serve until a signal; raises what made the node unable to go on."""
        self._peer.start()
        with SignalHandlers(self._loop, on_stop=self._loop.stop, on_dump=self._dump):
            try:
                self._loop.run()
            finally:
                self._peer.close()
                if self._config.ready_file is not None:
                    self._config.ready_file.unlink(missing_ok=True)
        if self._failure is not None:
            raise self._failure
        log.info("stopping")

    def _open_disk(self, stack: ExitStack, clock: Clock) -> DiskControl:
        config, boot_id = self._config, kernel_boot_id()
        store = VolumeStore(
            config.state_folder,
            attach_paths=config.attach_paths,
            boot_id=boot_id,
            new_id=lambda: uuid.uuid4().hex,
            has_checksums=config.volume_checksums,
            reserve=self._reserve,
        )
        stack.callback(store.close)
        rules = SnapshotRules(
            reserve_percent=config.snapshot_reserve_percent,
            budget_s=config.snapshot_budget_ms / 1000,
        )
        maker = ViewMaker(config.state_folder, boot_id=boot_id, rules=rules)
        disk = DiskControl(
            store,
            self._access,
            clock=clock,
            maker=maker,
            hooks={hooks.volume: hooks.pair for hooks in config.hooks},
            on_fatal=self._on_fatal,
        )
        stack.callback(disk.close)
        return disk

    def _open_mapper(self, clock: Clock) -> Mapper:
        config = self._config
        rules = MappingRules(
            seconds_max=config.mapping_seconds_max, memory_bytes_max=config.mapping_memory_max
        )
        return Mapper(config.state_folder / "maps", rules=rules, clock=clock)

    def _open_nbd(self, stack: ExitStack) -> tuple[str, ...]:
        """Let workstations in, last of all: everything that a write needs is there."""
        assert self._disk is not None
        self._nbd = NbdServer(
            VolumeExports(self._disk), connections_max=self._config.nbd_connections_max
        )
        stack.callback(self._nbd.close)
        return self._nbd.start(self._config.nbd_listen)

    def _open_tape(self, stack: ExitStack, clock: Clock) -> TapeControl:
        config = self._config
        library: Library = (
            _device_library(config, stack) if config.tape_devices else _folder_library(config)
        )
        stack.callback(library.close)
        tape = TapeControl(
            library,
            self._access,
            state_folder=self._config.state_folder,
            clock=NodeClock(clock, boot=kernel_boot_id(), folder=self._config.state_folder),
            new_uuid=lambda: uuid.uuid4().hex,
        )
        stack.callback(tape.end)
        return tape

    def _unit(self, designator: Designator) -> LogicalUnit | None:
        """Find a logical unit; called by the threads of the data server."""
        found: LogicalUnit | None = None
        if self._disk is not None:
            found = self._disk.units.get(designator)
        if found is None and self._tape is not None:
            found = self._tape.units.get(designator)
        return found

    def _on_ready(self, welcome: SessionWelcome) -> None:
        self._control.send_inventory()
        if self._config.ready_file is not None and not self._config.ready_file.exists():
            write_file(self._config.ready_file, f"{welcome.store}\n".encode())

    def _on_message(self, message: Message) -> None:
        self._control.handle(message)

    def _on_refused(self, message: SessionRefused) -> None:
        self._stop(RefusedError(f"the controller refused us: {message.reason}", hint=message.hint))

    def _on_fatal(self, error: StateError) -> None:
        """The node cannot keep its promises any more; called by any thread."""
        log.critical("the node has to stop", extra={"reason": str(error)})
        self._loop.post(lambda: self._stop(error))

    def _stop(self, error: BackupError) -> None:
        self._failure = self._failure or error
        self._loop.stop()

    def _dump(self) -> None:
        log.info(
            "state",
            extra={
                "session": "ready" if self._peer.is_ready else self._peer.waiting_for,
                "connections": self._server.connection_count,
                "nbd_connections": self._nbd.connection_count if self._nbd else 0,
                "disk": self._disk.describe() if self._disk else None,
                "tape": self._tape.describe() if self._tape else None,
            },
        )


def run(config: StorageNodeConfig) -> None:
    """Run a node until it is told to stop; raises a `BackupError` if it cannot."""
    with ExitStack() as stack:
        stack.enter_context(_locked(config.state_folder))
        crc.load()  # now, and not in the middle of the first job
        loop = Loop()
        stack.callback(loop.close)
        StorageNode(config, loop=loop, stack=stack, clock=SystemClock()).run()


def _folder_library(config: StorageNodeConfig) -> TapeLibrary:
    return TapeLibrary(
        config.library,
        drives=config.drives,
        slots=config.slots,
        io_slots=config.io_slots,
        is_compressing=config.compression,
        make_drive=partial(_make_drive, config),
    )


def _device_library(config: StorageNodeConfig, stack: ExitStack) -> DeviceLibrary:
    changer = None
    if config.changer_device is not None:
        device = SgDevice(config.changer_device)
        stack.callback(device.close)
        changer = SmcChanger(device)
    drives = [
        DeviceDrive(path, open_device=DeviceFile, identity=identity_of(path))
        for path in config.tape_devices
    ]
    return DeviceLibrary(drives, state_folder=config.state_folder, changer=changer)


def _make_drive(config: StorageNodeConfig) -> VirtualDrive:
    if config.drive_model == "none":
        return VirtualDrive()
    return ModelledDrive(SPECIFICATIONS[config.drive_model], pace=config.drive_model_speed)


def _version() -> str:
    try:
        return importlib.metadata.version("serverless-backup")
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout"


def _node_keys(config: StorageNodeConfig) -> KeyPair:
    keys = load_key_pair(config.key_file)
    if (keys.role, keys.name) != (ROLE, config.name):
        raise ConfigError(
            [f"{config.key_file} belongs to {keys.role} {keys.name!r}, not {ROLE} {config.name!r}"]
        )
    return keys


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the state folder for this process alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RefusedError(f"cannot use state folder {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"state folder in use: {folder}", hint="another storage node runs on it"
            ) from error
        yield
    finally:
        os.close(descriptor)
