"""Settings of a storage node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from backplane.runtime.config import Between, Duration, Size
from backplane.units import GIB, MIB
from storage_node.core.changer import IO_SLOTS_MAX, SLOTS_MAX
from storage_node.core.hook_rules import Consistency, Hook, HookPair
from storage_node.data_server import CONNECTIONS_MAX
from storage_node.mapping.limits import MappingRules
from storage_node.nbd.server import CONNECTIONS_MAX as NBD_CONNECTIONS_MAX
from storage_node.tape.library import IO_SLOTS, SLOTS

RULES: Final = MappingRules()
DRIVE_MODEL_SPEED_MAX: Final = 1000
DRIVES_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHooks:
    """Commands around the making of a volume's views."""

    volume: str
    before: Hook | None = None
    after: Hook | None = None
    consistency: Consistency = "crash"

    @property
    def pair(self) -> HookPair:
        """The commands."""
        return HookPair(before=self.before, after=self.after, consistency=self.consistency)

    def __post_init__(self) -> None:
        self.pair  # noqa: B018 - refuses what makes no sense


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageNodeConfig:
    """One TOML file; `docs/config.md` describes the keys."""

    name: str
    roles: tuple[Literal["disk", "tape"], ...]
    controller: str
    controller_key_file: Path
    key_file: Path
    state_folder: Path
    listen: tuple[str, ...] = ("tcp://127.0.0.1:0",)
    advertise: tuple[str, ...] = ()
    attach_paths: tuple[Path, ...] = ()
    library_folder: Path | None = None
    drives: Annotated[int, Between(1, DRIVES_MAX)] = 1
    slots: Annotated[int, Between(1, SLOTS_MAX)] = SLOTS
    io_slots: Annotated[int, Between(0, IO_SLOTS_MAX)] = IO_SLOTS
    compression: bool = True
    drive_model: Literal["none", "lto7", "lto8", "lto9"] = "none"
    """Keep account of what such a drive would have spent."""
    drive_model_speed: Annotated[float, Between(0, DRIVE_MODEL_SPEED_MAX)] = 0.0
    """0 only keeps account; else waits, so many times faster than the drive."""
    tape_devices: tuple[Path, ...] = ()
    """Real drives, in the order of the changer's; the virtual library is not there then."""
    changer_device: Path | None = None
    connections_max: Annotated[int, Between(1, 4096)] = CONNECTIONS_MAX
    nbd_listen: tuple[str, ...] = ()
    nbd_advertise: tuple[str, ...] = ()
    nbd_connections_max: Annotated[int, Between(1, 4096)] = NBD_CONNECTIONS_MAX
    volume_checksums: bool = True
    snapshot_reserve_percent: Annotated[int, Between(1, 400)] = 20
    snapshot_budget_ms: Annotated[int, Between(1, 60_000)] = 200
    mappings_max: Annotated[int, Between(1, 16)] = 2
    mapping_seconds_max: Annotated[float, Duration(1.0, 86400.0)] = RULES.seconds_max
    mapping_memory_max: Annotated[int, Size(64 * MIB, 64 * GIB)] = RULES.memory_bytes_max
    hooks: tuple[VolumeHooks, ...] = ()
    ready_file: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.roles or len(set(self.roles)) != len(self.roles):
            raise ValueError("roles: one or both of disk and tape, each once")
        if not self.listen:
            raise ValueError("listen: at least one data address")
        if len(self.listen) > 8 or len(self.advertise) > 8:
            raise ValueError("listen, advertise: at most 8 addresses")
        if len(self.nbd_listen) > 8 or len(self.nbd_advertise) > 8:
            raise ValueError("nbd_listen, nbd_advertise: at most 8 addresses")
        if len({hooks.volume for hooks in self.hooks}) != len(self.hooks):
            raise ValueError("hooks: a volume twice")
        if self.drive_model_speed and self.drive_model == "none":
            raise ValueError("drive_model_speed is of no use without a drive_model")
        self._check_devices()
        if self.nbd_listen and "disk" not in self.roles:
            raise ValueError("nbd_listen: only a node with the disk role has volumes")
        if not self.advertise and any(
            address.startswith(("tcp://0.0.0.0:", "tcp://[::]:")) for address in self.listen
        ):
            raise ValueError("advertise: needed when listening on all addresses of the machine")

    def _check_devices(self) -> None:
        if self.changer_device is not None and not self.tape_devices:
            raise ValueError("changer_device: with which tape_devices?")
        if not self.tape_devices:
            return
        if "tape" not in self.roles:
            raise ValueError("tape_devices: only a node with the tape role has drives")
        if len(self.tape_devices) > DRIVES_MAX:
            raise ValueError(f"tape_devices: at most {DRIVES_MAX}")
        if len(set(self.tape_devices)) != len(self.tape_devices):
            raise ValueError("tape_devices: a device twice")
        virtual = {
            "library_folder": self.library_folder is not None,
            "drives": self.drives != 1,
            "slots": self.slots != SLOTS,
            "io_slots": self.io_slots != IO_SLOTS,
            "compression": not self.compression,
            "drive_model": self.drive_model != "none",
        }
        for key, is_given in virtual.items():
            if is_given:
                raise ValueError(f"{key}: of a virtual library, and tape_devices are real")

    @property
    def library(self) -> Path:
        """The folder of the tape library; beside the state if it is not given."""
        return self.library_folder or self.state_folder / "library"
