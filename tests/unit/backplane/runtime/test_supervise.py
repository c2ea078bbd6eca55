"""Child processes: real ones, small and short-lived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backplane.runtime import supervise
from backplane.runtime.supervise import Ended, Identity, StartError, start, stop

SLEEPER = "import sys,signal; open(sys.argv[1],'w').close(); signal.pause()"
STUBBORN = (
    "import sys,signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "open(sys.argv[1],'w').close()\nwhile True: signal.pause()"
)


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


def test_a_child_is_started_watched_and_stopped(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(SLEEPER, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    assert ready.exists()
    assert child.exit_status is None
    assert child.identity == Identity.of(child.pid)
    assert child.identity.is_running
    assert child.stop() is Ended.STOPPED
    assert child.exit_status == -signal.SIGTERM
    assert not child.identity.is_running
    assert child.stop() is Ended.GONE


def test_a_child_that_does_not_listen_is_killed_after_the_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(STUBBORN, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    assert child.stop(grace_s=0.05) is Ended.KILLED
    assert child.exit_status == -signal.SIGKILL


def test_a_paused_child_can_still_be_stopped(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(SLEEPER, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    child.signal(signal.SIGSTOP)
    assert child.stop() is Ended.STOPPED


def test_an_early_end_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("from an earlier run\n")
    code = "import sys; print('line\\n' * 50, flush=True); sys.exit('the port is taken')"
    with pytest.raises(StartError) as caught:
        start(python(code), name="controller", log=log, is_ready=tmp_path / "ready")
    message = caught.value.message
    assert message.startswith("controller ended with status 1")
    assert "the port is taken" in message
    assert "earlier run" not in message
    assert len(message.splitlines()) <= supervise.TAIL_LINES_MAX + 1


def test_a_child_that_is_not_ready_in_time_is_stopped(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = "import os,sys,signal; open(sys.argv[1],'w').write(str(os.getpid())); signal.pause()"
    with pytest.raises(StartError, match=r"was not ready within 0\.3 s.*is empty"):
        start(
            python(code, pid_file),
            name="x",
            log=tmp_path / "x.log",
            is_ready=lambda: False,
            timeout_s=0.3,
        )
    if pid_file.exists():
        assert Identity.of(int(pid_file.read_text())) is None


def test_a_ready_file_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    with pytest.raises(StartError):
        start(python("raise SystemExit(3)"), name="x", log=tmp_path / "x.log", is_ready=ready)


def test_a_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot start x: No such file"):
        start([str(tmp_path / "none")], name="x", log=tmp_path / "x.log")


def test_a_recycled_pid_is_never_hit(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(SLEEPER, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    earlier = Identity(child.pid, child.identity.start_ticks - 1)
    assert not earlier.is_running
    assert stop(earlier) is Ended.GONE
    assert child.exit_status is None
    child.stop()


def test_stopping_what_is_gone_is_no_error() -> None:
    process = subprocess.Popen(python("pass"))
    identity = Identity.of(process.pid)
    process.wait()
    assert stop(identity if identity is not None else Identity(process.pid, 1)) is Ended.GONE


def test_a_zombie_does_not_run(tmp_path: Path) -> None:
    child = start(python("pass"), name="x", log=tmp_path / "x.log")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Identity.of(child.pid) is None
    assert child.wait(timeout_s=5.0) == 0


def test_environment_and_folder_are_passed_on(tmp_path: Path) -> None:
    code = "import os; print(os.environ['COLOUR'], os.getcwd(), 'PATH' in os.environ)"
    child = start(
        python(code),
        name="x",
        log=tmp_path / "x.log",
        environment={"COLOUR": "red"},
        folder=tmp_path,
    )
    assert child.wait(timeout_s=10.0) == 0
    assert child.log_tail() == f"red {tmp_path} True"


def test_a_child_does_not_get_the_interrupt_of_our_terminal(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(SLEEPER, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    assert os.getsid(child.pid) == child.pid
    child.stop()


def test_a_released_child_runs_on_and_is_stopped_by_its_identity(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = start(python(SLEEPER, ready), name="x", log=tmp_path / "x.log", is_ready=ready)
    identity = child.release()
    assert identity.is_running
    assert stop(identity) is Ended.STOPPED
    assert not identity.is_running
    os.waitpid(identity.pid, 0)


def test_a_child_has_what_it_was_given_and_nothing_else_of_ours(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = (
        "import os,sys; seen = map(int, os.listdir('/proc/self/fd'))\n"
        "found = sorted(n for n in seen if os.path.exists(f'/proc/self/fd/{n}'))\n"
        "is_leader = os.getsid(0) == os.getpid()\n"
        "os.write(int(sys.argv[1]), repr((sorted(os.environ), found, is_leader)).encode())"
    )
    with told.open("wb") as file, (tmp_path / "secret").open("wb") as secret:
        os.set_inheritable(secret.fileno(), True)
        child = supervise.start_with(
            python(code, file.fileno()),
            name="x",
            descriptors=[file.fileno()],
            environment={"PYTHONPATH": "/nowhere", "LC_ALL": "C.UTF-8"},
        )
        assert child.wait(timeout_s=20) == 0
        names, descriptors, is_leader = eval(told.read_text())
        assert names == ["LC_ALL", "PYTHONPATH"]
        assert descriptors == [0, 1, 2, file.fileno()]
        assert is_leader
    assert child.log_tail() == ""


def test_a_command_that_does_not_exist_is_no_child() -> None:
    with pytest.raises(StartError, match="cannot start x: No such file or directory: /nowhere"):
        supervise.start_with(["/nowhere"], name="x", descriptors=[], environment={})
