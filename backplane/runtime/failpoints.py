"""Failpoints: places in our own code where a test may make the process die, stop or wait.

Armed by the environment of the process and by nothing else:

    SB_FAILPOINTS="ctl.commit.after:3=exit;mover.record:10=stop"

    name:N=action    at the N-th pass (from 1; 1 if left out)        exit      die at once, as by SIGKILL
    name:N+=action   at every pass from the N-th on                  stop      SIGSTOP: the whole process sleeps
                                                                     sleep:S   this thread waits S seconds
                                                                     raise:E   OSError with errno name E, such as EIO

Unarmed, a pass costs one look at an empty dictionary.  A daemon says at start, loudly, that failpoints are armed.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Final

from backplane.errors import ConfigError

VARIABLE: Final = "SB_FAILPOINTS"


@dataclass(slots=True)
class _Point:
    nth: int
    is_repeated: bool
    action: str
    argument: str
    passes: int = 0


_lock = threading.Lock()
_points: dict[str, list[_Point]] = {}


def arm(text: str | None = None) -> tuple[str, ...]:
    """Arm what the environment (or `text`) says, forgetting earlier ones; return the names."""
    found: dict[str, list[_Point]] = {}
    for part in (os.environ.get(VARIABLE, "") if text is None else text).split(";"):
        if part.strip():
            name, point = _parse(part.strip())
            found.setdefault(name, []).append(point)
    with _lock:
        _points.clear()
        _points.update(found)
    return tuple(sorted(found))


def _parse(part: str) -> tuple[str, _Point]:
    where, equals, what = part.partition("=")
    name, _, count = where.partition(":")
    action, _, argument = what.partition(":")
    is_repeated = count.endswith("+")
    count = count.removesuffix("+") or "1"
    if not equals or not name or not count.isdigit() or int(count) < 1:
        raise ConfigError([f"{VARIABLE}: {part!r} is not NAME[:N]=ACTION"])
    if action not in ("exit", "stop", "sleep", "raise"):
        raise ConfigError(
            [f"{VARIABLE}: no action {action!r}: exit, stop, sleep:SECONDS or raise:ERRNO"]
        )
    if action == "raise" and not hasattr(errno, argument):
        raise ConfigError([f"{VARIABLE}: no error number is called {argument!r}"])
    return name, _Point(int(count), is_repeated, action, argument)


def passed(name: str) -> None:
    """Pass a failpoint."""
    if not _points:
        return
    with _lock:
        due = []
        for point in _points.get(name, ()):
            point.passes += 1
            if point.passes == point.nth or (point.is_repeated and point.passes > point.nth):
                due.append(point)
    for point in due:
        _act(name, point)


def _act(name: str, point: _Point) -> None:
    if point.action == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif point.action == "sleep":
        time.sleep(float(point.argument))
    else:
        number = getattr(errno, point.argument)
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
