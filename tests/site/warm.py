"""A process that has imported all roles and forks: `ctl local` and the daemons that it starts, without their imports.

    python -m tests.site.warm PADDING      a request as a line of JSON on standard input, its answer on standard output

An interpreter that imports SQLAlchemy, ZeroMQ and the messages takes a second of processor time for what then takes
milliseconds, and tests start hundreds of daemons.  Here `ctl local up` is a fork, and so is each daemon: a process of
its own in a session of its own, with its own command line, environment, folder and log.  What differs from a real start
is the interpreter's: `test_ctl_local.py`, `test_controller.py` and `test_compose.py` start for real.

`supervise.start` of the tests' own process forks its daemons here as well: those of tests of single nodes.

The padding is room for the command lines of daemons: `ctl local` finds them by these.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NoReturn, cast

from backplane.runtime import supervise

ROLES: Final = ("controller", "storage_node", "mover_node")
PADDING: Final = "-" * 1024
DESCRIPTORS_CLOSED: Final = 4096
POLL_S: Final = 0.01
END_S: Final = 30.0

OPTIONS: Final = {"stdin", "stdout", "stderr", "cwd", "env", "start_new_session"}
"""What `supervise.start` says of a process."""

_SUBPROCESS: Final = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
"""What `backplane.runtime.supervise` uses of the module, but for `Popen`."""

_lock = threading.Lock()
_of_controller: set[str] = set()
"""The modules that the controller imports, which is the first role."""


# --- on the side of the tests --------------------------------------------------------------------


class Warm:
    """Start `ctl` and daemons in a process that is forked.  Whoever makes one closes it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.site.warm", PADDING],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # with the `ctl` that it forks, and without the daemons
        )
        # Right after its start a process has no command line yet, and tests look for what is new after them.
        shown = Path(f"/proc/{self._process.pid}/cmdline")
        end = time.monotonic() + END_S
        while PADDING.encode() not in shown.read_bytes():
            assert time.monotonic() < end, "the process that is forked has not begun"
            time.sleep(POLL_S)
        vars(supervise)["subprocess"] = SimpleNamespace(**{**_SUBPROCESS, "Popen": self._start})

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `ctl` to its end.  Raises `AssertionError` if it hangs; then this object is of no more use."""
        request = {"ctl": list(arguments), "environment": dict(environment)}
        answer = self._ask(request, timeout_s=timeout_s)
        return subprocess.CompletedProcess(
            arguments, answer["status"], answer["out"], answer["err"]
        )

    def status_of(self, pid: int) -> int | None:
        """Return the exit status of a daemon; None while it runs."""
        return cast("int | None", self._ask({"poll": pid})["status"])

    def close(self) -> None:
        """End the process.  Clusters run on."""
        vars(supervise)["subprocess"] = subprocess
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(END_S)
        self._process.stdout.close()

    def _start(self, command: Sequence[str], **options: Any) -> Any:
        if command[:2] != [sys.executable, "-m"] or command[2] not in ROLES:
            return subprocess.Popen(command, **options)
        assert options.keys() == OPTIONS
        request = {
            "daemon": list(command),
            "log": f"/proc/{os.getpid()}/fd/{options['stdout']}",
            "folder": str(options["cwd"] or Path.cwd()),
            "environment": dict(options["env"] or os.environ),
        }
        return _Forked(int(self._ask(request)["pid"]), self.status_of)

    def _ask(self, request: Mapping[str, Any], *, timeout_s: float = END_S) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with _lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                os.killpg(self._process.pid, signal.SIGKILL)
                raise AssertionError(f"{request} hangs")
            return json.loads(self._process.stdout.readline())


class _Forked:
    """What `supervise.Child` uses of a `Popen`."""

    def __init__(self, pid: int, status_of: Callable[[int], int | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status_of = status_of

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked daemon", timeout)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


# --- the process that is forked ------------------------------------------------------------------


def main() -> None:
    """Answer requests until standard input ends."""
    for role in ROLES:
        importlib.import_module(f"{role}.__main__")
        importlib.import_module(f"{role}.service")
        del sys.modules[f"{role}.__main__"]  # each daemon runs it anew, as its main module
        if role == "controller":
            _of_controller.update(sys.modules)
    importlib.import_module("controller.cli")
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would not be forked"
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "poll" in request:
            answer: dict[str, Any] = {"status": _status_of(request["poll"])}
        elif "daemon" in request:
            answer = {"pid": _fork_daemon(request)}
        else:
            answer = _run_ctl(request)
        print(json.dumps(answer), flush=True)


def _fork_daemon(request: Mapping[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    try:
        options = {"stdout": log, "stderr": log, "cwd": request["folder"]}
        options |= {"env": request["environment"], "stdin": None, "start_new_session": True}
        return int(_start(request["daemon"], **options).pid)
    finally:
        os.close(log)


def _run_ctl(request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _become_ctl(request, out.fileno(), err.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [os.pread(each.fileno(), 1 << 24, 0).decode() for each in (out, err)]
    return {"status": status, "out": texts[0], "err": texts[1]}


def _become_ctl(request: Mapping[str, Any], out: int, err: int) -> NoReturn:
    from controller.cli import main as ctl

    _take_over(out, err, request["environment"])
    vars(supervise)["subprocess"] = SimpleNamespace(**{**_SUBPROCESS, "Popen": _start})
    sys.argv = ["ctl", *request["ctl"]]
    _end(lambda: sys.exit(ctl()))


def _start(command: Sequence[str], **options: Any) -> Any:
    """Do as `subprocess.Popen` does; a daemon is forked."""
    interpreter, option, role, *arguments = command
    assert (interpreter, option) == (sys.executable, "-m"), command
    assert role in ROLES, command
    assert options.keys() == OPTIONS
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        vars(supervise)["subprocess"] = subprocess
        _set_command_line(command)
        os.setsid()
        os.chdir(options["cwd"])
        _take_over(options["stdout"], options["stderr"], options["env"])
        if role == "controller":
            # It looks for itself that it has nothing to do with data.
            for name in sys.modules.keys() - _of_controller:
                del sys.modules[name]
        sys.argv = [role, *arguments]
        _end(lambda: runpy.run_module(role, run_name="__main__", alter_sys=True))
    return _Forked(pid, _status_of)


def _status_of(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _take_over(out: int, err: int, environment: Mapping[str, str]) -> None:
    """Have what a new process has: files, environment and signals of its own."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
    os.closerange(3, DESCRIPTORS_CLOSED)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger().handlers.clear()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _set_command_line(command: Sequence[str]) -> None:
    """Write over the arguments that the kernel shows of us, which our children see as well."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    words = b"\0".join(map(os.fsencode, command)) + b"\0"
    assert len(words) < end - begin, f"a longer command line than there is room for: {command}"
    ctypes.memmove(begin, words.ljust(end - begin, b"\0"), end - begin)


def _end(run: Callable[[], object]) -> NoReturn:
    """Run a program and end as the interpreter would."""
    status = 0
    try:
        run()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does: told, and status 1
        traceback.print_exc()
        status = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
