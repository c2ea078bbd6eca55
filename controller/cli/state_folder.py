"""The state folder of a local cluster: what lies where, who is using it, and what is written into it.

    STATE/lock                      held by `ctl local` while it starts, serves or stops the cluster
    STATE/local.json                where the controller is; written at once, never half
    STATE/keys/NAME.secret          keys/authorized/NAME.public
    STATE/NAME/NAME.toml            configuration, NAME/ready when it serves; the rest of NAME/ belongs to the daemon
    STATE/logs/NAME.log

Everything is found again from the folder alone: a daemon is recognised by the configuration file on its command
line, so a lost or torn `local.json` never leaves a process behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, RefusedError, UsageError
from backplane.runtime.keys import ensure_key_pair, load_public_key

MOVERS_MAX: Final = 64
UNIX_PATH_BYTES_MAX: Final = 107
"""Longest path of a unix socket on Linux (sun_path has 108 bytes with its end)."""

LOCK_BYTES_MAX: Final = 4096
LOCK_ATTEMPTS: Final = 5
LOCK_PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process of a local cluster."""

    name: str
    role: str
    folder: Path

    @property
    def config_file(self) -> Path:
        """Its configuration; also how its process is recognised."""
        return self.folder / f"{self.name}.toml"

    @property
    def ready_file(self) -> Path:
        """Exists while it serves."""
        return self.folder / "ready"

    @property
    def log_file(self) -> Path:
        """Where its messages go."""
        return self.folder.parent / "logs" / f"{self.name}.log"


@dataclass(frozen=True, slots=True)
class Record:
    """What `local.json` says."""

    address: str
    controller_public_key: str
    movers: int
    processes: tuple[Mapping[str, object], ...] = field(default=())
    tape_model: str = ""
    """What the drives keep account as; "" for none."""
    drives: int = 1
    """Of the tape node."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of one local cluster."""

    path: Path

    @property
    def record_file(self) -> Path:
        """Where the record is."""
        return self.path / "local.json"

    @property
    def keys(self) -> Path:
        """The folder of the keys."""
        return self.path / "keys"

    def daemons(self, movers: int) -> list[Daemon]:
        """Return the processes of a cluster, in the order in which they start."""
        named = [("controller", "controller"), ("disk", "storage"), ("tape", "storage")]
        named += [(f"mover-{number}", "mover") for number in range(1, movers + 1)]
        return [Daemon(name, role, self.path / name) for name, role in named]

    def create(self) -> None:
        """Make the folder, for its owner only; refuses one that others may enter."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "logs").mkdir(mode=0o700, exist_ok=True)
            status = self.path.stat()
        except OSError as error:
            raise RefusedError(
                f"cannot use {self.path} as a state folder: {error.strerror}"
            ) from error
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise RefusedError(
                f"others may write to the state folder {self.path}",
                hint=f"chown it to yourself and chmod 700 {self.path}",
            )

    def record(self) -> Record | None:
        """Return what is known of the cluster, None if it never ran."""
        try:
            values = json.loads(self.record_file.read_bytes())
            return Record(
                address=str(values["address"]),
                controller_public_key=str(values["controller_public_key"]),
                movers=int(values["movers"]),
                processes=tuple(values["processes"]),
                tape_model=str(values.get("tape_model", "")),
                drives=int(values.get("drives", 1)),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(
                f"{self.record_file} cannot be read: {error}",
                hint="it holds no data: stop the cluster with `ctl local down`, remove the file, start again",
            ) from error

    def store(self, record: Record) -> None:
        """Replace the record at once."""
        text = json.dumps(asdict(record), indent=2) + "\n"
        write_whole(self.record_file, text)

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """Own the folder while starting, serving or stopping a cluster.

        Raises `RefusedError` naming the owner if somebody else does.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(descriptor):
                raise _in_use(self.path, _owner(descriptor))
            os.ftruncate(descriptor, 0)
            told = json.dumps({"pid": os.getpid(), "doing": doing}).encode()
            os.pwrite(descriptor, told, 0)
            # Never removed: a lock file that is unlinked while another waits for it is two lock files.
            yield
        finally:
            os.close(descriptor)

    def owner(self) -> tuple[int, str] | None:
        """Return (pid, what it does) of the `ctl local` that owns the folder, None if nobody does."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _owner(descriptor)
        finally:
            os.close(descriptor)
        return None

    def make_keys(self, daemons: list[Daemon]) -> str:
        """Make the keys that are missing; return the controller's public key."""
        ensure_key_pair(self.keys, role="operator", name="operator")
        for daemon in daemons:
            ensure_key_pair(self.keys, role=daemon.role, name=daemon.name)
        return load_public_key(self.keys / "authorized" / "controller.public").public.hex()

    def write_configs(
        self, daemons: list[Daemon], *, address: str, tape_model: str = "", drives: int = 1
    ) -> None:
        """Write the configuration of every daemon."""
        for daemon in daemons:
            daemon.folder.mkdir(mode=0o700, exist_ok=True)
            values = self.config_of(daemon, address=address, tape_model=tape_model, drives=drives)
            write_whole(daemon.config_file, toml(values))

    def config_of(
        self, daemon: Daemon, *, address: str, tape_model: str = "", drives: int = 1
    ) -> dict[str, object]:
        """Return the configuration of one daemon."""
        values: dict[str, object] = {
            "config_version": 1,
            "name": daemon.name,
            "key_file": str(self.keys / f"{daemon.name}.secret"),
            "state_folder": str(daemon.folder),
            "ready_file": str(daemon.ready_file),
            "log_level": "info",
            "log_format": "text",
        }
        if daemon.role == "controller":
            return values | {
                "listen": address,
                "authorized_folder": str(self.keys / "authorized"),
            }
        values |= {
            "controller": address,
            "controller_key_file": str(self.keys / "authorized" / "controller.public"),
        }
        if daemon.role == "mover":
            return values
        values |= {"roles": [daemon.name], "listen": _addresses(daemon.folder / "data.sock")}
        if daemon.name == "disk":
            values |= {"nbd_listen": _addresses(daemon.folder / "nbd.sock")}
        if daemon.name == "tape":
            values |= {"library_folder": str(daemon.folder / "library"), "drives": drives}
            values |= {"drive_model": tape_model} if tape_model else {}
        return values


def _addresses(socket_path: Path) -> list[str]:
    """Unix first: it is faster, and clients try addresses in order.  Too long a path leaves TCP alone."""
    addresses = ["tcp://127.0.0.1:0"]
    if len(os.fsencode(socket_path)) <= UNIX_PATH_BYTES_MAX:
        addresses.insert(0, f"unix://{socket_path}")
    return addresses


def _lock(descriptor: int) -> bool:
    """Take the lock; patient for as long as somebody only looks who owns it (`StateFolder.owner`)."""
    for attempt in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < LOCK_ATTEMPTS:
                threading.Event().wait(LOCK_PAUSE_S)
        else:
            return True
    return False


def _owner(descriptor: int) -> tuple[int, str]:
    try:
        told = json.loads(os.pread(descriptor, LOCK_BYTES_MAX, 0))
        return int(told["pid"]), str(told["doing"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, "starting"  # it has the lock, but has not written its name yet


def _in_use(path: Path, owner: tuple[int, str]) -> RefusedError:
    pid, doing = owner
    who = f"pid {pid} ({doing})" if pid else "another process"
    return RefusedError(
        f"state folder {path} in use by {who}",
        hint="`ctl local status` shows the cluster, `ctl local down` stops it",
    )


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half; raises `BackupError` if it cannot be written, such as on a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BackupError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def toml(values: Mapping[str, object]) -> str:
    """Write flat TOML.  JSON's strings, numbers and lists of strings are TOML's as well."""
    for key, value in values.items():
        if not isinstance(value, str | int | list):
            raise UsageError(f"cannot write {key} to TOML: {value!r}")
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
    )
