"""Running commands before and after a view is made, so that nothing of them stays behind.

Two promises.  No command outlives its time: it runs in a process group of its own, which is asked to end and then
killed, also when the command itself has ended and left something in the background.  (Who starts a new session leaves
the group and our reach.)  And a file system does not stay frozen: `around_view` runs the second command whatever
happens to the view, and a marker file makes the node run it at its next start if the node itself was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backplane.errors import BackupError
from backplane.runtime import supervise
from backplane.runtime.clock import Clock, SystemClock
from storage_node.core.hook_rules import (
    HOOK_OUTPUT_BYTES_MAX,
    Consistency,
    Hook,
    HookPair,
    HookResult,
    Phase,
    consistency_reached,
    needs_after,
)
from storage_node.state_file import DamagedStateError, read_json, write_json

TERM_GRACE_S: Final = 2.0
"""Between asking a command to end and killing it: time to take back what it did."""
KILL_TIMEOUT_S: Final = 5.0
"""A killed command that has not ended by then is stuck in the kernel."""
READ_BYTES: Final = 65536
"""All that fits into a pipe."""

_stuck: list[supervise.Child] = []
"""Killed, but not ended yet: collected at a later call, or by init after us."""


class HookError(BackupError):
    """A command that has to succeed did not."""

    kind = "hook"


Runner = Callable[[Hook, Mapping[str, str]], HookResult]


def run_hook(
    hook: Hook, environment: Mapping[str, str], *, clock: Clock | None = None
) -> HookResult:
    """Run a command to its end or its timeout.  `environment` is added to ours; errors are results."""
    clock = clock or SystemClock()
    began = clock.monotonic()
    _stuck[:] = [child for child in _stuck if child.exit_status is None]
    try:
        child, read_end = _start(hook, environment)
    except (supervise.StartError, OSError) as error:
        return HookResult(is_ok=False, was_started=False, reason=f"did not run: {error}")
    try:
        watch = _Watch(child, read_end, clock)
        reason = watch.run(hook.timeout_s)
    finally:
        os.close(read_end)
    return HookResult(
        is_ok=not reason,
        output=watch.output.decode("utf-8", "replace"),
        seconds=clock.monotonic() - began,
        reason=reason,
    )


def _start(hook: Hook, environment: Mapping[str, str]) -> tuple[supervise.Child, int]:
    """Start a command; return it and the end of a pipe from which its output can be read."""
    read_end, write_end = os.pipe()
    try:
        os.set_blocking(read_end, False)
        # The log of a child is named by a path: this one is our pipe, so that no disk fills with it.
        log = Path(f"/proc/self/fd/{write_end}")
        child = supervise.start(
            hook.command, name=hook.command[0], log=log, environment=environment
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return child, read_end


class _Watch:
    """One running command.

    The group is signalled only while its leader has not been reaped: until then its number belongs to nobody else.
    """

    def __init__(self, child: supervise.Child, read_end: int, clock: Clock) -> None:
        self._child = child
        self._read_end = read_end
        self._clock = clock
        self.output = b""
        self._has_ended = False
        self._poller = select.poll()

    def run(self, timeout_s: float) -> str:
        """Return when the command has ended; say what was wrong with its end."""
        reason = ""
        descriptor = -1
        try:
            descriptor = os.pidfd_open(self._child.pid)
            self._poller.register(descriptor, select.POLLIN)
            self._poller.register(self._read_end, select.POLLIN)
            if not self._wait(timeout_s):
                reason = f"did not end within {timeout_s:g} s"
                self._signal(signal.SIGTERM)
                self._signal(signal.SIGCONT)
                self._wait(TERM_GRACE_S)
        except OSError as error:
            # It runs and cannot be watched (no descriptors left): what cannot be watched must not run.
            reason = f"cannot be watched: {error.strerror}"
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._signal(signal.SIGKILL)
            status = self._child.wait(timeout_s=KILL_TIMEOUT_S)
            if status is None:
                _stuck.append(self._child)
        self._read()  # once: who left the group may write for ever
        if status is None:
            reason = (
                f"{reason or 'ended'}, but does not die (stuck in the kernel, or of another user?)"
            )
        elif status and not reason:
            reason = _told(status)
        return reason

    def _wait(self, timeout_s: float) -> bool:
        """Read along until the command ends; return whether it did in time."""
        deadline = self._clock.monotonic() + timeout_s
        while not self._has_ended:
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                return False
            for descriptor, _ in self._poller.poll(left_s * 1000):
                if descriptor != self._read_end:
                    self._has_ended = True
                elif not self._read():
                    self._poller.unregister(self._read_end)
        return True

    def _read(self) -> bool:
        """Read once; return False at the end of the output."""
        try:
            data = os.read(self._read_end, READ_BYTES)
        except BlockingIOError:
            return True
        self.output = (self.output + data)[-HOOK_OUTPUT_BYTES_MAX:]
        return bool(data)

    def _signal(self, number: signal.Signals) -> None:
        # PermissionError: all of them belong to somebody else (sudo).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)


def _told(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


# --- around a view -------------------------------------------------------------------------------


@dataclass(slots=True)
class HookRound:
    """What the commands around one view did."""

    consistency: Consistency = "crash"
    before: HookResult | None = None
    after: HookResult | None = None

    def warnings(self) -> list[str]:
        """Say what went wrong, for the record of the backup."""
        results: tuple[tuple[Phase, HookResult | None], ...]
        results = (("before", self.before), ("after", self.after))
        return [_complaint(phase, it) for phase, it in results if it is not None and not it.is_ok]


@contextlib.contextmanager
def around_view(
    pair: HookPair,
    environment: Mapping[str, str],
    *,
    marker: Path | None = None,
    run: Runner = run_hook,
) -> Iterator[HookRound]:
    """Make the view inside of this.  What the round is told inside is good from the first moment, `after` later.

    `before` that fails and has to succeed raises `HookError` before the view is made; `after` does so in the end.  An
    error of the view goes through unchanged; if `after` fails then, too, a note on it says so.  `marker` is a file
    outside of what may be frozen.
    """
    outcome = HookRound()
    if marker is not None and pair.after is not None:
        write_json(marker, dict(environment))
    try:
        if pair.before is not None:
            outcome.before = run(pair.before, _told_phase(environment, "before"))
            outcome.consistency = consistency_reached(pair, outcome.before)
            _demand(pair.before, outcome.before, "before")
        yield outcome
    except BaseException as error:
        _take_back(pair, environment, outcome, marker, run)
        if outcome.after is not None and not outcome.after.is_ok:
            error.add_note(_complaint("after", outcome.after))
        raise
    _take_back(pair, environment, outcome, marker, run)
    if pair.after is not None and outcome.after is not None:
        _demand(pair.after, outcome.after, "after")


def run_leftover(pair: HookPair, marker: Path, *, run: Runner = run_hook) -> HookResult | None:
    """Run `after` for a view during whose making the node ended; None if there was none.  To be called at start.

    It is tried once: after a restart of the machine nothing is frozen any more, and the command may well fail.
    """
    if not marker.exists():
        return None
    try:
        kept = {str(key): str(value) for key, value in read_json(marker).items()}
    except DamagedStateError:
        kept = {}
    result = run(pair.after, _told_phase(kept, "after")) if pair.after is not None else None
    marker.unlink(missing_ok=True)
    return result


def _take_back(
    pair: HookPair,
    environment: Mapping[str, str],
    outcome: HookRound,
    marker: Path | None,
    run: Runner,
) -> None:
    if pair.after is not None and needs_after(pair, outcome.before):
        outcome.after = run(pair.after, _told_phase(environment, "after"))
        if not outcome.after.is_ok:
            return  # the marker stays: the next start tries again
    if marker is not None:
        marker.unlink(missing_ok=True)


def _told_phase(environment: Mapping[str, str], phase: Phase) -> dict[str, str]:
    return {**environment, "SB_PHASE": phase}


def _demand(hook: Hook, result: HookResult, phase: Phase) -> None:
    if not result.is_ok and hook.on_error == "fail":
        raise HookError(_complaint(phase, result))


def _complaint(phase: Phase, result: HookResult) -> str:
    lines = result.output.strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return f"the command {phase} the view {result.reason}{said}"
