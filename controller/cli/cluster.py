"""A local cluster as real processes: start what is missing, see what lives, stop it all.

    up:    lock -> keys, port, configurations -> start what does not live -> wait for ready files
                                                        |
                                                        +-- one fails: stop what this call started, quote its log
    down:  lock -> SIGTERM movers, nodes, controller -> wait -> SIGKILL -> look again

What lives is asked from the system, not from a file: a daemon is the process whose command line names our
configuration file.  So `up` after any crash starts exactly what is dead, and `down` leaves nothing.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

from backplane.errors import BackupError
from backplane.runtime import supervise
from backplane.runtime.clock import Clock, SystemClock
from backplane.runtime.supervise import Child, Identity, StartError
from controller.cli.state_folder import MOVERS_MAX, Daemon, Record, StateFolder

Talk: TypeAlias = Callable[[str], None]
"""Tells a person what is being done."""

READY_TIMEOUT_S: Final = 30.0
STOP_GRACE_S: Final = 15.0
POLL_S: Final = 0.02
COMMAND_LINE_BYTES_MAX: Final = 16 * 1024

PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "controller": (sys.executable, "-m", "controller"),
    "storage": (sys.executable, "-m", "storage_node"),
    "mover": (sys.executable, "-m", "mover_node"),
}


@dataclass(frozen=True, slots=True)
class DaemonState:
    """How one daemon is."""

    daemon: Daemon
    process: Identity | None

    @property
    def word(self) -> str:
        """`running`, `starting` or `dead`."""
        if self.process is None:
            return "dead"
        return "running" if self.daemon.ready_file.exists() else "starting"


class Cluster:
    """The processes of one state folder.  Whoever starts one ends with `stop` or `release`."""

    def __init__(
        self,
        state: StateFolder,
        *,
        programs: Mapping[str, Sequence[str]] = PROGRAMS,
        clock: Clock | None = None,
    ) -> None:
        self._state = state
        self._programs = programs
        self._clock = clock if clock is not None else SystemClock()
        self._children: dict[str, Child] = {}

    def look(self, movers: int) -> list[DaemonState]:
        """Say how each daemon is."""
        living = self.living()
        return [DaemonState(d, living.get(d.name)) for d in self._state.daemons(movers)]

    def start(
        self,
        movers: int,
        *,
        talk: Talk,
        ready_timeout_s: float = READY_TIMEOUT_S,
        tape_model: str | None = None,
        drives: int | None = None,
    ) -> list[str]:
        """Start what is not running and wait until everything serves; return the names of what was started.

        The caller has locked the state folder.  Movers beyond the number asked for are stopped.  If a start fails, what
        this call started is stopped again.  `tape_model` and `drives` None are what they were before.
        """
        daemons = self._state.daemons(movers)
        self._stop_surplus({daemon.name for daemon in daemons}, talk=talk)
        public_key = self._state.make_keys(daemons)
        address = self._address(talk=talk)
        known = self._state.record()
        before = known.tape_model if known is not None else ""
        model = before if tape_model is None else tape_model
        if model != before and "tape" in self.living():
            talk("the tape node runs already: its drives have another model when it starts anew")
        had = known.drives if known is not None else 1
        count = had if drives is None else drives
        if count != had and "tape" in self.living():
            talk(f"the tape node runs already: it has {count} drives when it starts anew")
        self._state.write_configs(daemons, address=address, tape_model=model, drives=count)
        started: list[str] = []
        try:
            # The controller first: the others are ready only when it has welcomed them.
            for group in (daemons[:1], daemons[1:]):
                self._start_missing(group, started, talk=talk)
                self._store(address, public_key, movers, model, count)
                self._wait_ready(group, needed=daemons[:1], timeout_s=ready_timeout_s)
        except BaseException:
            self.stop(set(started))
            self._store(address, public_key, movers, model, count)
            raise
        return started

    def stop(self, names: set[str] | None = None, *, grace_s: float = STOP_GRACE_S) -> list[str]:
        """Stop processes, by default all of the state folder, and return the names of those that ran.

        First those that use others, last the controller.  Idempotent.
        """
        stopped = []
        for daemon in reversed(self._state.daemons(MOVERS_MAX)):
            if (names is not None and daemon.name not in names) or not daemon.config_file.exists():
                continue
            identity = self.living().get(daemon.name)
            if identity is not None:
                supervise.stop(identity, grace_s=grace_s)
                stopped.append(daemon.name)
            daemon.ready_file.unlink(missing_ok=True)
            child = self._children.pop(daemon.name, None)
            if child is not None:
                child.stop()  # reaps it
        left = [name for name in self.living() if names is None or name in names]
        if left:
            raise BackupError(f"could not stop {', '.join(sorted(left))}")
        return stopped

    def release(self) -> None:
        """Let what was started here run on without us."""
        for child in self._children.values():
            child.release()
        self._children.clear()

    def living(self) -> dict[str, Identity]:
        """Find our processes by the configuration file on their command line."""
        # Our own children are known anyhow: right after its start a process has no command line to be read yet.
        found = {n: c.identity for n, c in self._children.items() if c.exit_status is None}
        wanted = {str(d.config_file): d.name for d in self._state.daemons(MOVERS_MAX)}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            # The identity before the command line: a pid that changes hands in between then matches nobody.
            identity = Identity.of(int(entry.name))
            for option, value in pairwise(_command_line(entry)):
                if option == "--config" and value in wanted and identity is not None:
                    found[wanted[value]] = identity
        return found

    def _store(
        self, address: str, public_key: str, movers: int, tape_model: str, drives: int
    ) -> None:
        processes = tuple(
            {
                "name": state.daemon.name,
                "role": state.daemon.role,
                "pid": state.process.pid,
                "start_ticks": state.process.start_ticks,
            }
            for state in self.look(movers)
            if state.process is not None
        )
        self._state.store(Record(address, public_key, movers, processes, tape_model, drives))

    def _address(self, *, talk: Talk) -> str:
        """Keep the controller's port as long as it is ours or free; otherwise choose another one."""
        known = self._state.record()
        if known is not None:
            if "controller" in self.living() or _is_free(known.address):
                return known.address
            talk(f"another program has taken {known.address}: choosing another port")
            self.stop()  # whoever still runs knows only the old address
        return f"tcp://127.0.0.1:{_free_port()}"

    def _start_missing(self, daemons: Iterable[Daemon], started: list[str], *, talk: Talk) -> None:
        living = self.living()
        for daemon in daemons:
            if daemon.name in living:
                continue
            daemon.ready_file.unlink(missing_ok=True)
            talk(f"starting {daemon.name}")
            started.append(daemon.name)
            self._children[daemon.name] = supervise.start(
                [*self._programs[daemon.role], "--config", str(daemon.config_file)],
                name=daemon.name,
                log=daemon.log_file,
                folder=daemon.folder,
                environment=_same_code(),
            )

    def _wait_ready(
        self, daemons: Sequence[Daemon], *, needed: Sequence[Daemon], timeout_s: float
    ) -> None:
        """Wait for a whole group at once: its members start side by side.  Without those `needed` nobody gets ready."""
        deadline = self._clock.monotonic() + timeout_s
        waiting = list(daemons)
        while waiting := [d for d in waiting if not d.ready_file.exists()]:
            for daemon in (*needed, *waiting):
                child = self._children.get(daemon.name)
                if child is not None and child.exit_status is not None:
                    raise self._failed(daemon, f"ended with status {child.exit_status}")
            if self._clock.monotonic() >= deadline:
                raise self._failed(waiting[0], f"was not ready within {timeout_s:g} s")
            threading.Event().wait(POLL_S)

    def _failed(self, daemon: Daemon, what: str) -> StartError:
        child = self._children.get(daemon.name)
        tail = child.log_tail() if child else supervise.tail(daemon.log_file)
        told = "".join(f"\n    {line}" for line in tail.splitlines())
        return StartError(
            f"{daemon.name} {what}" + (f"; the end of its log:{told}" if told else ""),
            hint=f"its whole log is {daemon.log_file}",
        )

    def _stop_surplus(self, wanted: set[str], *, talk: Talk) -> None:
        surplus = self.living().keys() - wanted
        if surplus:
            talk(f"stopping {', '.join(sorted(surplus))}")
            self.stop(surplus)


def _same_code() -> dict[str, str]:
    """Let the daemons run the code that this `ctl` runs, also from a checkout that is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))}


def _command_line(process: Path) -> list[str]:
    try:
        with (process / "cmdline").open("rb") as file:
            data = file.read(COMMAND_LINE_BYTES_MAX)
    except OSError:
        return []  # gone while we look, or somebody else's
    return os.fsdecode(data).split("\0")


def _is_free(address: str) -> bool:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, int(port)))
        except (OSError, ValueError, OverflowError):
            return False
    return True


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
