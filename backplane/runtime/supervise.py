"""Child processes: start one and wait until it is ready, watch it, stop it, and never hit a stranger.

A process is named by its pid *and* the moment of its start (in clock ticks since boot, from the kernel), because pids
are used again.  Signals go through a pidfd that is opened before the identity is checked: even a process that dies in
between cannot make us signal its successor.  Needs Linux 5.3.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from backplane.errors import BackupError

READY_TIMEOUT_S: Final = 20.0
STOP_GRACE_S: Final = 10.0
KILL_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02
TAIL_LINES_MAX: Final = 15
TAIL_BYTES_MAX: Final = 4096


class StartError(BackupError):
    """A child process did not become ready; the message quotes the end of its log."""

    kind = "start"


class Ended(Enum):
    """How a process that was asked to stop ended."""

    GONE = "was not running"
    STOPPED = "stopped"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, and no later one with the same pid.  Both numbers can be kept in a file."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Return the identity of a running process; None if there is none (or only a zombie)."""
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command may contain anything, so count from its closing parenthesis: state is field 3, start field 22.
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else cls(pid, int(fields[19]))

    @property
    def is_running(self) -> bool:
        """Whether this very process runs."""
        return Identity.of(self.pid) == self


class Child:
    """A process that we started.  Whoever holds it stops it or lets it go with `release`."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], log: Path, log_start: int
    ) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._log_start = log_start
        identity = Identity.of(process.pid)
        # An unreaped child keeps its pid: at worst it is a zombie already, and never somebody else.
        self.identity = identity if identity is not None else Identity(process.pid, 0)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status if it has ended (negative: the signal), else None."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def wait(self, *, timeout_s: float) -> int | None:
        """Wait for its end; return the exit status, or None if it still runs."""
        try:
            return self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> Ended:
        """Ask it to stop, kill it if it does not within the grace, and reap it."""
        if self.exit_status is not None:
            return Ended.GONE
        ended = stop(self.identity, grace_s=grace_s)
        self._process.wait(timeout=KILL_TIMEOUT_S)
        return ended

    def release(self) -> Identity:
        """Let it run on without us; the operating system's init will reap it.  Returns its identity."""
        # Otherwise Popen warns, rightly for anybody else, that a process was forgotten.
        self._process.returncode = 0
        return self.identity

    def log_tail(self) -> str:
        """Return the last lines that it has logged since it was started."""
        return tail(self.log, start=self._log_start)


def start(
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    is_ready: Callable[[], bool] | Path | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Child:
    """Start a daemon in a session of its own, with its output in `log`, and wait until it is ready.

    `is_ready` is a file that the daemon makes when it is ready (an old one is removed first), or a predicate.
    `environment` is added to ours.  Raises `StartError` if the daemon ends or is not ready in time; it is stopped then.
    """
    if isinstance(is_ready, Path):
        is_ready.unlink(missing_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        log_start = os.fstat(descriptor).st_size
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=folder,
            env={**os.environ, **environment} if environment else None,
            start_new_session=True,  # an interrupt typed at the terminal is for ctl, not for the daemon
        )
    except OSError as error:
        raise StartError(f"cannot start {name}: {error.strerror}: {command[0]}") from error
    finally:
        os.close(descriptor)
    child = Child(name, process, log, log_start)
    try:
        _wait_until_ready(child, is_ready, timeout_s)
    except BaseException:
        child.stop()
        raise
    return child


def start_with(
    command: Sequence[str],
    *,
    name: str,
    descriptors: Sequence[int],
    environment: Mapping[str, str],
) -> Child:
    """Start a process in a session of its own with these open descriptors, this environment, and nothing else of ours.

    Only what it says on standard error comes with ours.  Raises `StartError` if it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise StartError(f"cannot start {name}: {error.strerror}: {command[0]}") from error
    return Child(name, process, Path(os.devnull), 0)


def _wait_until_ready(
    child: Child, is_ready: Callable[[], bool] | Path | None, timeout_s: float
) -> None:
    end = time.monotonic() + timeout_s
    while not (
        is_ready is None or (is_ready.exists() if isinstance(is_ready, Path) else is_ready())
    ):
        if child.exit_status is not None:
            raise StartError(_told(f"{child.name} ended with {_status(child.exit_status)}", child))
        if time.monotonic() >= end:
            raise StartError(_told(f"{child.name} was not ready within {timeout_s:g} s", child))
        time.sleep(POLL_S)


def stop(identity: Identity, *, grace_s: float = STOP_GRACE_S) -> Ended:
    """Stop a process, ours or not a child of ours: SIGTERM, then SIGKILL after the grace."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return Ended.GONE
    try:
        if not identity.is_running:
            return Ended.GONE
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            # A stopped process would never see it.
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        if _has_ended(descriptor, grace_s):
            return Ended.STOPPED
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not _has_ended(descriptor, KILL_TIMEOUT_S):
            raise BackupError(f"process {identity.pid} does not die (stuck in the kernel?)")
        return Ended.KILLED
    finally:
        os.close(descriptor)


def tail(log: Path, *, start: int = 0) -> str:
    """Return the last lines of a log, from byte `start` on."""
    try:
        with log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(min(start, end), end - TAIL_BYTES_MAX))
            text = stream.read(TAIL_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES_MAX:])


def _has_ended(descriptor: int, timeout_s: float) -> bool:
    # A pidfd becomes readable when its process ends, also when nobody has reaped it yet.
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def _status(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def _told(what: str, child: Child) -> str:
    lines = child.log_tail()
    return f"{what}; the end of {child.log}:\n{lines}" if lines else f"{what}; {child.log} is empty"
