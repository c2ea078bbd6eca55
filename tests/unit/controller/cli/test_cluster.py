"""Starting and stopping, with daemons that do nothing but be there."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.runtime.supervise import StartError
from controller.cli.cluster import Cluster
from controller.cli.state_folder import StateFolder

DAEMON = """
import os, pathlib, signal, sys, tomllib
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
folder = config.parent
if (folder / "fails").exists():
    sys.exit("boom: it cannot start")
values = tomllib.loads(config.read_text())
def end(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if not (folder / "hangs").exists():
    pathlib.Path(values["ready_file"]).write_text("ready")
if (folder / "dies").exists():
    sys.exit("gone again")
while True:
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "cluster")
    made.create()
    return made


@pytest.fixture
def clusters(folder: StateFolder, tmp_path: Path) -> Iterator[Callable[[], Cluster]]:
    """Make clusters that look at one state folder; all processes are stopped at the end."""
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON)
    program = (sys.executable, "-I", "-S", str(script))
    made: list[Cluster] = []

    def make() -> Cluster:
        programs = dict.fromkeys(("controller", "storage", "mover"), program)
        made.append(Cluster(folder, programs=programs))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop(grace_s=5.0)


@pytest.fixture
def cluster(clusters: Callable[[], Cluster]) -> Cluster:
    return clusters()


def words(cluster: Cluster, movers: int) -> dict[str, str]:
    return {state.daemon.name: state.word for state in cluster.look(movers)}


def pids(cluster: Cluster) -> dict[str, int]:
    return {name: identity.pid for name, identity in cluster.living().items()}


def quiet(_: str) -> None:
    pass


def test_start_starts_everything_and_writes_down_where_it_is(
    cluster: Cluster, folder: StateFolder
) -> None:
    told: list[str] = []
    started = cluster.start(2, talk=told.append)
    assert started == ["controller", "disk", "tape", "mover-1", "mover-2"]
    assert told == [f"starting {name}" for name in started]
    assert set(words(cluster, 2).values()) == {"running"}
    record = folder.record()
    assert record is not None
    assert record.movers == 2
    assert {each["name"]: each["pid"] for each in record.processes} == pids(cluster)


def test_what_runs_already_is_left_alone(cluster: Cluster) -> None:
    cluster.start(1, talk=quiet)
    before = pids(cluster)
    assert cluster.start(1, talk=quiet) == []
    assert pids(cluster) == before


def test_another_ctl_finds_what_runs_and_starts_only_what_is_dead(
    clusters: Callable[[], Cluster], folder: StateFolder
) -> None:
    first = clusters()
    first.start(1, talk=quiet)
    before, record = pids(first), folder.record()
    os.kill(before["disk"], signal.SIGKILL)
    first._children["disk"].wait(timeout_s=5.0)
    second = clusters()
    assert words(second, 1)["disk"] == "dead"
    assert second.start(1, talk=quiet) == ["disk"]
    after = pids(second)
    assert after.pop("disk") != before.pop("disk")
    assert after == before
    known = folder.record()
    assert record is not None
    assert known is not None
    assert known.address == record.address, "nodes know the controller by its address"


def test_a_start_that_fails_quotes_the_log_and_stops_what_was_started(
    cluster: Cluster, folder: StateFolder
) -> None:
    (folder.path / "tape").mkdir()
    (folder.path / "tape" / "fails").touch()
    with pytest.raises(StartError, match="boom: it cannot start") as caught:
        cluster.start(1, talk=quiet)
    assert caught.value.message.startswith("tape ended with status 1")
    assert "tape.log" in caught.value.hint
    assert pids(cluster) == {}


def test_a_start_that_fails_leaves_alone_what_ran_before(
    cluster: Cluster, folder: StateFolder
) -> None:
    cluster.start(1, talk=quiet)
    before = pids(cluster)
    (folder.path / "mover-2").mkdir()
    (folder.path / "mover-2" / "fails").touch()
    with pytest.raises(StartError):
        cluster.start(2, talk=quiet)
    assert pids(cluster) == before


def test_a_daemon_that_never_gets_ready_is_given_up(cluster: Cluster, folder: StateFolder) -> None:
    (folder.path / "disk").mkdir()
    (folder.path / "disk" / "hangs").touch()
    with pytest.raises(StartError, match=r"disk was not ready within 0\.5 s"):
        cluster.start(1, talk=quiet, ready_timeout_s=0.5)
    assert pids(cluster) == {}


def test_nobody_waits_for_nodes_whose_controller_has_died(
    cluster: Cluster, folder: StateFolder
) -> None:
    for name, how in (("controller", "dies"), ("disk", "hangs")):
        (folder.path / name).mkdir()
        (folder.path / name / how).touch()
    with pytest.raises(StartError, match="gone again") as caught:
        cluster.start(1, talk=quiet, ready_timeout_s=3600)
    assert caught.value.message.startswith("controller ended with status 1")
    assert pids(cluster) == {}


def test_the_number_of_movers_can_change_while_it_runs(cluster: Cluster) -> None:
    cluster.start(1, talk=quiet)
    assert cluster.start(3, talk=quiet) == ["mover-2", "mover-3"]
    assert cluster.start(2, talk=quiet) == []
    assert sorted(pids(cluster)) == ["controller", "disk", "mover-1", "mover-2", "tape"]


def test_the_model_of_the_drives_is_kept_until_another_is_asked_for(
    cluster: Cluster, folder: StateFolder
) -> None:
    told: list[str] = []

    def model(asked: str | None) -> str:
        cluster.start(1, talk=told.append, tape_model=asked)
        record = folder.record()
        assert record is not None
        text = (folder.path / "tape" / "tape.toml").read_text()
        assert ("drive_model" in text) == bool(record.tape_model)
        return record.tape_model

    assert [model(asked) for asked in (None, "lto9", None)] == ["", "lto9", "lto9"]
    assert [line for line in told if "model" in line] == [
        "the tape node runs already: its drives have another model when it starts anew"
    ]
    cluster.stop()
    assert model("") == ""
    assert len([line for line in told if "model" in line]) == 1


def test_the_number_of_drives_is_kept_until_another_is_asked_for(
    cluster: Cluster, folder: StateFolder
) -> None:
    told: list[str] = []

    def drives(asked: int | None) -> int:
        cluster.start(1, talk=told.append, drives=asked)
        record = folder.record()
        assert record is not None
        config = (folder.path / "tape" / "tape.toml").read_text()
        assert f"drives = {record.drives}\n" in config
        return record.drives

    assert [drives(asked) for asked in (None, 2, None)] == [1, 2, 2]
    assert [line for line in told if "drives" in line] == [
        "the tape node runs already: it has 2 drives when it starts anew"
    ]
    cluster.stop()
    assert drives(3) == 3
    assert len([line for line in told if "drives" in line]) == 1


def test_stop_stops_users_before_what_they_use_and_may_be_called_again(cluster: Cluster) -> None:
    cluster.start(1, talk=quiet)
    assert cluster.stop() == ["mover-1", "tape", "disk", "controller"]
    assert cluster.stop() == []
    assert set(words(cluster, 1).values()) == {"dead"}


def test_a_paused_process_is_stopped_too(cluster: Cluster) -> None:
    cluster.start(1, talk=quiet)
    os.kill(pids(cluster)["mover-1"], signal.SIGSTOP)
    assert "mover-1" in cluster.stop(grace_s=5.0)


def test_a_port_that_was_taken_meanwhile_is_given_up(cluster: Cluster, folder: StateFolder) -> None:
    cluster.start(1, talk=quiet)
    cluster.stop()
    before = folder.record()
    assert before is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(before.address.rpartition(":")[2])))
        taken.listen()
        told: list[str] = []
        cluster.start(1, talk=told.append)
    after = folder.record()
    assert after is not None
    assert after.address != before.address
    assert "has taken" in told[0]
    assert after.address in (folder.path / "disk" / "disk.toml").read_text()


def test_a_lost_record_leaves_no_process_behind(cluster: Cluster, folder: StateFolder) -> None:
    cluster.start(1, talk=quiet)
    folder.record_file.write_text("{")
    assert len(cluster.stop()) == 4


def test_a_released_cluster_runs_on(clusters: Callable[[], Cluster]) -> None:
    first = clusters()
    first.start(1, talk=quiet)
    children = dict(first._children)
    first.release()
    assert set(words(clusters(), 1).values()) == {"running"}
    clusters().stop()
    for child in children.values():
        os.waitpid(child.pid, 0)  # in a test nobody else reaps them


def test_a_process_that_only_mentions_the_configuration_is_not_ours(
    cluster: Cluster, folder: StateFolder
) -> None:
    """An editor, say: it must not be stopped."""
    cluster.start(1, talk=quiet)
    config = str(folder.path / "disk" / "disk.toml")
    found = cluster.living()
    assert found["disk"].pid != os.getpid()
    pid = os.spawnl(
        os.P_NOWAIT,
        sys.executable,
        *(sys.executable, "-I", "-S", "-c", "import signal; signal.pause()", config),
    )
    try:
        assert cluster.living() == found
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
