"""`ctl local` with daemons that do nothing but be there; the real ones are in tests/integration."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RefusedError, UnreachableError, UsageError
from controller.cli.client import connect
from controller.cli.cluster import Cluster
from controller.cli.local import (
    SERVING,
    fill_library,
    run_down,
    run_status,
    run_up,
    wait_until_known,
)
from controller.cli.options import CARTRIDGE_BYTES_MIN, Settings
from controller.cli.render import Screen
from controller.cli.state_folder import StateFolder
from controller.core import volumes

ROOT = Path(__file__).resolve().parents[4]

DAEMON = """
import pathlib, signal, sys, tomllib
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(tomllib.loads(config.read_text())["ready_file"]).write_text("ready")
while True:
    signal.pause()
"""

FOREGROUND = """
import sys
from pathlib import Path
from controller.cli.cluster import Cluster
from controller.cli.local import run_up
from controller.cli.options import Settings
from controller.cli.render import Screen
from controller.cli.state_folder import StateFolder
state, script = Path(sys.argv[1]), sys.argv[2]
programs = dict.fromkeys(("controller", "storage", "mover"), (sys.executable, "-I", "-S", script))
sys.exit(run_up(Settings(state=state), movers=1, is_detached=False, cartridges=0, capacity_bytes=0,
    screen=Screen("table"), cluster=Cluster(StateFolder(state), programs=programs),
    greet=lambda *_: None))
"""


class Trial:
    """One state folder and what is said about it."""

    def __init__(self, path: Path) -> None:
        self.state = StateFolder(path / "cluster")
        self.script = path / "daemon.py"
        self.script.write_text(DAEMON)
        self.out, self.err = io.StringIO(), io.StringIO()
        self.screen = Screen("table", stdout=self.out, stderr=self.err, has_colour=False)

    def cluster(self) -> Cluster:
        program = (sys.executable, "-I", "-S", str(self.script))
        programs = dict.fromkeys(("controller", "storage", "mover"), program)
        return Cluster(self.state, programs=programs)

    def up(self, *, is_detached: bool = False, movers: int | None = None) -> int:
        return run_up(
            Settings(state=self.state.path),
            movers=movers,
            is_detached=is_detached,
            cartridges=0,
            capacity_bytes=0,
            screen=self.screen,
            cluster=self.cluster(),
            greet=lambda *_: None,
        )

    def when_serving(self, act: Any) -> threading.Thread:
        """Do something as soon as a cluster serves in the foreground."""

        def wait() -> None:
            pause = threading.Event()
            for _ in range(2000):
                owner = self.state.owner()
                if owner is not None and owner[1] == SERVING and "until Ctrl-C" in self.talk():
                    break
                pause.wait(0.01)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def talk(self) -> str:
        return self.err.getvalue()


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path)
    yield made
    if made.state.path.is_dir():
        made.cluster().stop(grace_s=5.0)


def reap(trial: Trial) -> None:
    """What a detached `up` leaves is a child of the test here, and of init in real life."""
    for identity in trial.cluster().living().values():
        os.kill(identity.pid, signal.SIGTERM)
        os.waitpid(identity.pid, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_it_serves_until_a_signal_and_stops_everything(
    trial: Trial, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    thread = trial.when_serving(lambda: os.kill(os.getpid(), number))
    assert trial.up() == 0
    thread.join()
    assert trial.cluster().living() == {}
    assert "stopping the cluster" in trial.talk()
    assert trial.state.owner() is None
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_a_hangup_that_nohup_has_ignored_ends_nothing(trial: Trial) -> None:
    def act() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        threading.Event().wait(0.1)
        served.append("stopping" not in trial.talk())
        os.kill(os.getpid(), signal.SIGTERM)

    served: list[bool] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        thread = trial.when_serving(act)
        assert trial.up() == 0
        thread.join()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert served == [True]


def test_the_foreground_says_when_a_process_ends_by_itself(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.cli.local.WATCH_S", 0.02)

    def act() -> None:
        os.kill(trial.cluster().living()["mover-1"].pid, signal.SIGKILL)
        pause = threading.Event()
        while "mover-1 has ended" not in trial.talk():
            pause.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = trial.when_serving(act)
    assert trial.up() == 0
    thread.join()
    assert trial.talk().count("mover-1 has ended by itself") == 1


def test_two_at_once_the_second_says_so_and_changes_nothing(trial: Trial) -> None:
    trial.state.create()
    with (
        trial.state.locked("starting a cluster"),
        pytest.raises(RefusedError, match=f"in use by pid {os.getpid()}"),
    ):
        trial.up()
    assert sorted(path.name for path in trial.state.path.iterdir()) == ["lock", "logs"]


def test_detached_it_returns_and_says_what_runs(trial: Trial) -> None:
    try:
        assert trial.up(is_detached=True, movers=2) == 0
        assert trial.state.owner() is None
        document = run_status(trial.state)
        assert document["is_running"]
        assert [process["name"] for process in document["processes"]] == [
            "controller",
            "disk",
            "tape",
            "mover-1",
            "mover-2",
        ]
        assert trial.out.getvalue().count("running") == 5
        # Again, without a number: as many movers as before, and none is started anew.
        before = trial.cluster().living()
        assert trial.up(is_detached=True) == 0
        assert trial.cluster().living() == before
    finally:
        reap(trial)


def test_down_of_nothing_does_nothing(trial: Trial) -> None:
    assert run_down(trial.state, screen=trial.screen) == []
    assert not trial.state.path.exists()
    trial.state.create()
    assert run_down(trial.state, screen=trial.screen) == []


def test_down_ends_a_foreground_that_somebody_else_runs(trial: Trial) -> None:
    trial.state.create()
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, str(trial.state.path), str(trial.script)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "until Ctrl-C" in line:
                break
        stopped = run_down(trial.state, screen=trial.screen)
        assert stopped == ["controller", "disk", "mover-1", "tape"]
        assert process.wait(timeout=20) == 0
        assert trial.cluster().living() == {}
        assert "asking `ctl local up`" in trial.talk()
    finally:
        process.kill()
        process.communicate()


def test_status_before_anything_ran(trial: Trial, ctl: Any) -> None:
    code, out, err = ctl("local", "status", "--output", "json")
    assert code == 9
    document = json.loads(out)
    assert (document["is_running"], document["processes"]) == (False, [])
    assert "ctl local up" in err


def test_a_local_cluster_makes_its_own_controller(ctl: Any) -> None:
    code, _, err = ctl("local", "up", "--controller", "tcp://127.0.0.1:1")
    assert code == 2
    assert "leave --controller out" in err


def test_settings_of_another_cluster_are_refused(trial: Trial) -> None:
    with pytest.raises(UsageError):
        run_up(
            Settings(state=trial.state.path, key=Path("/key")),
            movers=1,
            is_detached=True,
            cartridges=0,
            capacity_bytes=0,
            screen=trial.screen,
        )


def test_cartridges_that_are_too_small_are_refused_before_anything_starts(trial: Trial) -> None:
    with pytest.raises(UsageError, match="at least 64MiB"):
        run_up(
            Settings(state=trial.state.path),
            movers=1,
            is_detached=True,
            cartridges=1,
            capacity_bytes=CARTRIDGE_BYTES_MIN - 1,
            screen=trial.screen,
            cluster=trial.cluster(),
        )
    assert not trial.state.path.exists()


def test_the_smallest_cartridge_is_the_controllers() -> None:
    assert volumes.CARTRIDGE_BYTES_MIN == CARTRIDGE_BYTES_MIN


def fill(state: Path, trial: Trial, *, count: int = 3) -> None:
    with connect(Settings(state=state)) as client:
        fill_library(client, count=count, capacity_bytes=2**30, screen=trial.screen)


def test_an_empty_library_is_filled(controller: Any, state: Path, trial: Trial) -> None:
    controller.answers |= {"tape.list": {"cartridges": []}, "tape.add": {}}
    fill(state, trial)
    added = [arguments for verb, arguments in controller.calls if verb == "tape.add"]
    assert added == [
        {"tag": f"LTO00{number}L8", "capacity_bytes": 2**30, "node": "tape"} for number in (1, 2, 3)
    ]
    assert "added 3 blank cartridges of 1GiB" in trial.talk()


def test_a_library_with_cartridges_is_left_alone(
    controller: Any, state: Path, trial: Trial, documents: Any
) -> None:
    controller.answers["tape.list"] = {"cartridges": [documents["cartridge"]]}
    fill(state, trial)
    assert [verb for verb, _ in controller.calls] == ["tape.list"]


def test_a_cluster_is_up_when_the_controller_knows_every_node(
    controller: Any, state: Path, documents: Any
) -> None:
    """Before its inventory, the library looks empty and the disk node has no volumes."""
    node, mover = documents["node"], documents["mover"]
    away = node | {"name": "tape", "state": "away"}
    controller.answers |= {
        "node.list": [
            {"nodes": []},
            {"nodes": [node, away]},
            {"nodes": [node, node | {"name": "tape"}]},
        ],
        "mover.list": {"movers": [mover]},
    }
    with connect(Settings(state=state)) as client:
        told: list[str] = []
        daemons = StateFolder(state).daemons(1)
        started = {daemon.name for daemon in daemons}
        wait_until_known(client, daemons, started=started, talk=told.append)
    assert [verb for verb, _ in controller.calls].count("node.list") == 3
    assert told == []


def test_a_process_that_ran_before_and_is_not_heard_is_only_told_of(
    controller: Any, state: Path, documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused mover must not take the one that was started in its place down with it."""
    monkeypatch.setattr("controller.cli.local.RETURN_S", 0.05)
    node, mover = documents["node"], documents["mover"]
    controller.answers |= {
        "node.list": {"nodes": [node, node | {"name": "tape"}]},
        "mover.list": {"movers": [mover | {"state": "away"}]},
    }
    told: list[str] = []
    with connect(Settings(state=state)) as client:
        daemons = StateFolder(state).daemons(1)
        wait_until_known(client, daemons, started=set(), talk=told.append)
    assert told == [f"the controller does not hear {mover['name']}"]


def test_a_cluster_that_cannot_be_spoken_to_is_stopped_again(trial: Trial) -> None:
    """The processes run, but none of these is a controller."""
    with pytest.raises(UnreachableError):
        run_up(
            Settings(state=trial.state.path, timeout_s=0.1),
            movers=1,
            is_detached=True,
            cartridges=1,
            capacity_bytes=2**30,
            screen=trial.screen,
            cluster=trial.cluster(),
        )
    assert trial.cluster().living() == {}
