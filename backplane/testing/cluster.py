"""A whole cluster of real processes for tests, driven as a person would: by `ctl` alone.

    cluster = LocalCluster(folder, movers=2)
    cluster.up()
    cluster.ctl("submit", "backup", "vol", "--wait")
    cluster.kill("mover-1")            SIGKILL; `up()` starts again what is dead
    cluster.down()

Leases, heartbeats and the write inactivity period are short, so that a test of what happens after them is short as
well.  Failpoints are given per `up()`: they arm only the processes that this call starts.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Final

CTL_TIMEOUT_S: Final = 90.0
LEASE: Final = "3s"
HEARTBEAT: Final = "0.4s"
TOLD_S: Final = 2.0
"""Within this time a disk node has told the controller that a job has let go of its volumes."""
INACTIVITY: Final = "200ms"


class LocalCluster:
    """One state folder and what runs in it."""

    main: ClassVar[Callable[[Sequence[str]], int] | None] = None
    """`main` of `ctl`, where commands that are awaited are to run in this process: an interpreter and its imports cost
    ten times as much as what most commands do.  What starts, ends or fails processes is always a process."""

    run_local: ClassVar[
        Callable[[Sequence[str], Mapping[str, str], float], subprocess.CompletedProcess[str]] | None
    ] = None
    """Where `ctl local` is to be started otherwise: arguments, environment and the longest time in seconds."""

    def __init__(
        self, folder: Path, *, movers: int = 1, capacity: str = "2GiB", drives: int = 1
    ) -> None:
        self.state = folder / "s"
        self.folder = folder
        self.movers = movers
        self.capacity = capacity
        self.drives = drives

    # --- ctl -------------------------------------------------------------------------------------

    def environment(self, failpoints: str = "") -> dict[str, str]:
        """Return the environment of `ctl` and of the processes it starts."""
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return keep | {
            "CTL_STATE": str(self.state),
            "CONTROLLER_LEASE": LEASE,
            "CONTROLLER_HEARTBEAT": HEARTBEAT,
            "CONTROLLER_INACTIVITY_S": INACTIVITY,
            "SB_FAILPOINTS": failpoints,
            "NO_COLOR": "1",
        }

    def start_ctl(self, *arguments: str, failpoints: str = "") -> subprocess.Popen[str]:
        """Start a `ctl` command and return it running."""
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "ctl"), *arguments],
            env=self.environment(failpoints),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_ctl(
        self, *arguments: str, failpoints: str = "", timeout_s: float = CTL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a `ctl` command to its end, whatever that is."""
        main = type(self).main
        if main is not None and not failpoints and arguments[0] != "local":
            return self._run_here(main, arguments)
        run_local = type(self).run_local
        if run_local is not None and arguments[0] == "local":
            return run_local(arguments, self.environment(failpoints), timeout_s)
        process = self.start_ctl(*arguments, failpoints=failpoints)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"ctl {' '.join(arguments)} hangs\n{out}\n{err}\n{self.logs()}"
            ) from None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def _run_here(
        self, main: Callable[[Sequence[str]], int], arguments: tuple[str, ...]
    ) -> subprocess.CompletedProcess[str]:
        out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
        sys.stdin = io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = main(["--state", str(self.state), *arguments])
        finally:
            sys.stdin = stdin
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def ctl(self, *arguments: str, timeout_s: float = CTL_TIMEOUT_S) -> Any:
        """Run a `ctl` command that has to succeed; return its JSON document."""
        done = self.run_ctl(*arguments, "--output", "json", timeout_s=timeout_s)
        assert done.returncode == 0, (
            f"ctl {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        )
        return json.loads(done.stdout) if done.stdout.strip() else None

    # --- processes -------------------------------------------------------------------------------

    def up(self, *, failpoints: str = "", movers: int | None = None) -> None:
        """Start the cluster, or what is dead of it."""
        if movers is not None:
            self.movers = movers
        numbers = ("--movers", str(self.movers), "--drives", str(self.drives))
        arguments = (*numbers, "--capacity", self.capacity, "--detach")
        done = self.run_ctl("local", "up", *arguments, failpoints=failpoints)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"

    def down(self) -> None:
        """Stop everything; paused processes are woken first."""
        for process in self._processes():
            self._signal(process["pid"], signal.SIGCONT)
        done = self.run_ctl("local", "down")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"

    def pids(self) -> list[int]:
        """Return the process ids of all daemons."""
        return [int(each["pid"]) for each in self._processes()]

    def pid(self, name: str) -> int:
        """Return the process id of a daemon."""
        return int(next(each["pid"] for each in self._processes() if each["name"] == name))

    def runs(self, name: str) -> bool:
        """Say whether a daemon is alive."""
        found = [each["pid"] for each in self._processes() if each["name"] == name]
        return bool(found) and is_running(int(found[0]))

    def _processes(self) -> list[dict[str, Any]]:
        record = self.state / "local.json"
        if not record.exists():
            return []
        processes: list[dict[str, Any]] = json.loads(record.read_text())["processes"]
        return processes

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a daemon."""
        self._signal(self.pid(name), number)

    def kill(self, name: str) -> None:
        """Kill a daemon and wait until it is gone."""
        pid = self.pid(name)
        self._signal(pid, signal.SIGKILL)
        self.wait_until(lambda: not is_running(pid), what=f"{name} to die")

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # Dead already: a failpoint did it.

    def wait_until(self, holds: Callable[[], Any], *, what: str, timeout_s: float = 60.0) -> Any:
        """Wait until something holds; fails with the logs when it does not come."""
        end = time.monotonic() + timeout_s
        while not (result := holds()):
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}\n{self.logs()}"
            time.sleep(0.05)
        return result

    def logs(self) -> str:
        """Return the tails of all logs, for the message of a failed test."""
        texts = []
        for file in sorted((self.state / "logs").glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()[-25:]
            texts.append(f"--- {file.name}\n" + "\n".join(lines))
        return "\n".join(texts)

    # --- jobs ------------------------------------------------------------------------------------

    def submit(self, *arguments: str) -> int:
        """Submit a job and return its number."""
        return int(self.ctl("submit", *arguments)["job"])

    def job(self, number: int) -> dict[str, Any]:
        """Return a job's document."""
        document: dict[str, Any] = self.ctl("job", "show", str(number))
        return document

    def wait_job(self, number: int, *, timeout_s: float = 90.0) -> dict[str, Any]:
        """Wait until a job has ended; return its document."""
        patience = ("--timeout", f"{timeout_s:g}s")
        done = self.run_ctl(
            *("job", "wait", str(number), *patience, "--output", "json"), timeout_s=timeout_s + 10
        )
        return self._let_go(self._ended(done.stdout) or self._ended(json.dumps(self.job(number))))

    def finish(self, *arguments: str) -> dict[str, Any]:
        """Submit a job and wait until it has ended; return its document.  One `ctl` instead of three."""
        done = self.run_ctl("submit", *arguments, "--wait", "--output", "json")
        document = self._ended(done.stdout)
        assert document, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return self._let_go(document)

    def _let_go(self, document: dict[str, Any]) -> dict[str, Any]:
        """Give the disk node time to tell that the job has let go: the next command may come sooner than its report.

        Whether it has is for the tests to say.
        """
        end = time.monotonic() + TOLD_S
        while time.monotonic() < end:
            done = self.run_ctl("volume", "list", "--output", "json")
            volumes = json.loads(done.stdout)["volumes"] if done.returncode == 0 else []
            if document["job"] not in [volume["held_by"] for volume in volumes]:
                break
            time.sleep(0.05)
        return document

    def _ended(self, text: str) -> dict[str, Any]:
        """Return the document of an ended job; empty if `ctl` gave up before it could tell."""
        if not text.strip():
            return {}
        document: dict[str, Any] = json.loads(text)
        assert document["exit_code"] is not None, f"{document}\n{self.logs()}"
        return document

    def volume_file(self, name: str) -> Path:
        """Return the data file of a volume."""
        return Path(self.ctl("volume", "show", name)["path"])


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
