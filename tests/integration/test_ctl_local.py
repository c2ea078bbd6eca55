"""A whole cluster by `ctl` alone, with real processes: the first day of an operator, and what goes wrong on it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.runtime.keys import create_key_pair
from backplane.runtime.supervise import Identity

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
CTL = (sys.executable, "-c", "import sys; from controller.cli import main; sys.exit(main())")
MIB = 1024 * 1024
TIMEOUT_S = 100


class Trial:
    """One cluster in a folder of its own, and `ctl` to drive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CTL_")}
        return subprocess.Popen(
            [*CTL, "--state", str(self.state), *arguments],
            cwd=ROOT,
            env=environment | {"NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
            return process.returncode, out, err

    def ok(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert code == 0, f"ctl {' '.join(arguments)}: exit code {code}\n{out}\n{err}"
        return out

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--output", "json"))

    def refused(self, *arguments: str) -> tuple[int, str]:
        """Run what must fail; returns the exit code and the first line of the message."""
        code, out, err = self.run(*arguments)
        assert out == "", "an error is no data"
        assert err.startswith("ctl: ")
        return code, err.splitlines()[0]

    def identities(self) -> dict[str, Identity]:
        record = json.loads((self.state / "local.json").read_text())
        return {p["name"]: Identity(p["pid"], p["start_ticks"]) for p in record["processes"]}

    def kill(self, name: str) -> None:
        identity = self.identities()[name]
        os.kill(identity.pid, signal.SIGKILL)
        pause = threading.Event()
        while identity.is_running:
            pause.wait(0.01)

    def image(self, size: int) -> Path:
        """Make an image with data, a hole, zeros and an end that is no whole block."""
        data = random.Random(size).randbytes(size // 4)
        path = self.folder / f"image-{size}"
        with path.open("wb") as file:
            file.write(data)
            file.write(bytes(size // 8))
            file.seek(size // 2)
            file.write(data)
            file.truncate(size)
        return path

    def digest(self, volume: str, *, size: int) -> str:
        """The SHA-256 of a volume's own file, without its padding."""
        content = Path(self.ask("volume", "show", volume)["path"]).read_bytes()
        assert not any(content[size:])
        return hashlib.sha256(content[:size]).hexdigest()


@pytest.fixture
def trial() -> Iterator[Trial]:
    # A short path: the addresses of unix sockets are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sb-"))
    made = Trial(folder)
    try:
        yield made
    finally:
        code, _, err = made.run("local", "down")
        shutil.rmtree(folder)
        assert code == 0, err


def test_a_volume_goes_to_tape_and_back_and_the_report_proves_it(trial: Trial) -> None:
    size = 24 * MIB + 100
    image = trial.image(size)
    wanted = hashlib.sha256(image.read_bytes()).hexdigest()
    trial.ok("local", "up", "--detach", "--movers", "2", "--capacity", "1GiB")
    status = trial.ask("local", "status")
    assert status["is_running"]
    assert len(status["processes"]) == 5
    trial.ok("volume", "create", "office", "--from", str(image))
    assert trial.digest("office", size=size) == wanted
    trial.ok("submit", "backup", "office", "--inactivity", "200ms", "--wait")
    trial.ok("submit", "restore", "office/latest", "--new", "copy", "--wait")
    assert trial.digest("copy", size=size) == wanted
    trial.ok("submit", "verify", "1", "--wait")

    jobs = trial.ask("job", "list")["jobs"]
    assert [job["kind"] for job in jobs] == ["verify", "restore", "backup", "import"]
    for job in jobs[:-1]:
        detail = trial.ask("job", "show", str(job["job"]))
        assert detail["state"] == "completed"
        assert detail["ledger"]["is_balanced"]
        assert detail["ledger"]["controller_payload_bytes"] == 0
        assert detail["tags"] == ["LTO001L8"]
        for item in detail["items"]:
            assert bytes.fromhex(item["parameter_list"])
            assert item["mover"].startswith("mover-")
            assert item["status"] == "00h"
            assert item["ledger"]
    decoded = trial.ask("debug", "decode", "--hex", detail["items"][-1]["parameter_list"])
    assert decoded
    assert "Termination:  Backup OK" in trial.ok("job", "show", "2")
    assert "completed" in trial.ok("job", "log", "2")
    assert trial.ask("backup", "show", "office/latest")["tags"] == ["LTO001L8"]
    (part,) = trial.ask("tape", "show", "LTO001L8")["parts_detail"]
    assert part["volume"] == "office"

    exported = trial.folder / "exported"
    trial.ok("volume", "export", "copy", str(exported))
    with exported.open("rb") as file:
        assert hashlib.sha256(file.read(size)).hexdigest() == wanted
    assert exported.stat().st_blocks * 512 < 16 * MIB, "holes stay holes"


def test_bad_input_has_a_clear_message_and_its_exit_code_and_loses_nothing(trial: Trial) -> None:
    size = 2 * MIB
    trial.ok("local", "up", "--detach", "--cartridges", "1", "--capacity", "64MiB")
    trial.ok("volume", "create", "a", "--from", str(trial.image(size)))
    trial.ok("volume", "create", "small", "--size", "1MiB")
    before = trial.digest("a", size=size)
    trial.ok("submit", "backup", "a", "--inactivity", "0s", "--wait")
    assert trial.refused("submit", "backup", "nobody")[0] == 4
    assert trial.refused("submit", "restore", "99", "--new", "b")[0] == 4
    assert trial.refused("submit", "restore", "1", "--to", "nobody")[0] == 4
    code, told = trial.refused("submit", "restore", "1", "--to", "small")
    assert (code, "small" in told) == (5, True)
    code, told = trial.refused("submit", "restore", "1", "--to", "a")
    assert (code, "not empty" in told) == (5, True)
    assert trial.refused("submit", "restore", "1", "--new", "a")[0] == 5
    assert trial.refused("volume", "create", "a", "--size", "1MiB")[0] == 5
    assert trial.refused("volume", "delete", "a", "--yes")[0] == 5
    assert trial.refused("tape", "add", "LTO001L8")[0] == 5
    assert trial.refused("tape", "add", "nonsense!")[0] == 2
    assert trial.refused("job", "show", "99")[0] == 4
    assert trial.digest("a", size=size) == before

    create_key_pair(trial.folder / "stranger", role="operator", name="stranger")
    key = trial.folder / "stranger" / "stranger.secret"
    code, told = trial.refused("node", "list", "--key", str(key), "--timeout", "2s")
    assert (code, "stranger.secret" in told) == (5, True)
    key.chmod(0o644)
    code, told = trial.refused("node", "list", "--key", str(key))
    assert (code, "can be read by others" in told) == (5, True)

    # Random data, so that nothing is skipped: more than the one cartridge can take.
    big = trial.folder / "big"
    big.write_bytes(random.Random(1).randbytes(70 * MIB))
    trial.ok("volume", "create", "big", "--from", str(big))
    backup = ("submit", "backup", "big", "--inactivity", "0s", "--wait")
    code, out, err = trial.run(*backup, "--no-wait-media")
    assert code == 7
    assert "*** Backup Error ***" in out
    assert "media are needed" in err
    # What was on the cartridge is still there, and more media help.
    trial.ok("submit", "verify", "a/latest", "--wait")
    trial.ok("tape", "add", "LTO002L8", "--capacity", "1GiB")
    trial.ok("submit", "backup", "big", "--inactivity", "0s", "--wait")


def test_a_job_waits_for_a_node_that_is_away_and_goes_on_when_it_returns(trial: Trial) -> None:
    trial.ok("local", "up", "--detach", "--capacity", "1GiB")
    trial.ok("volume", "create", "a", "--from", str(trial.image(2 * MIB)))
    before = trial.identities()
    trial.kill("disk")
    code, out, _ = trial.run("local", "status")
    assert (code, "dead" in out) == (9, True)
    with trial.start("submit", "backup", "a", "--wait", "--output", "jsonl") as watching:
        assert watching.stdout is not None
        for line in watching.stdout:
            status = json.loads(line)
            assert status["message_type"] == "status"
            if "disk" in status["reason"]:
                break
        else:
            pytest.fail("the job never said for what it waits")
        trial.ok("local", "up", "--detach")
        *_, last = watching.stdout
        assert json.loads(last)["message_type"] == "summary"
        watching.communicate(timeout=TIMEOUT_S)
        assert watching.returncode == 0
    after = trial.identities()
    assert after.pop("disk") != before.pop("disk")
    assert after == before, "what ran was left alone"


def test_waiting_for_a_job_survives_a_restart_of_the_controller(trial: Trial) -> None:
    trial.ok("local", "up", "--detach", "--capacity", "1GiB")
    trial.ok("volume", "create", "a", "--from", str(trial.image(2 * MIB)))
    with trial.start(
        *("submit", "backup", "a", "--inactivity", "2s"), "--wait", "--output", "jsonl"
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["message_type"] == "status"
        trial.kill("controller")
        assert trial.refused("node", "list", "--timeout", "500ms")[0] == 9
        trial.ok("local", "up", "--detach")
        out, err = watching.communicate(timeout=TIMEOUT_S)
        assert watching.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["state"] == "completed"


def test_two_at_once_end_in_one_cluster_and_one_clear_refusal(trial: Trial) -> None:
    with (
        trial.start("local", "up", "--detach", "--cartridges", "1") as first,
        trial.start("local", "up", "--detach", "--cartridges", "1") as second,
    ):
        told = [each.communicate(timeout=TIMEOUT_S) for each in (first, second)]
        ended = sorted(zip((first.returncode, second.returncode), told, strict=True))
    (code, _), (refused, (out, err)) = ended
    assert (code, refused, out) == (0, 5, "")
    assert "in use by pid" in err
    assert trial.ask("local", "status")["is_running"]
    assert len(trial.ask("tape", "list")["cartridges"]) == 1


def test_a_foreground_cluster_ends_with_sigterm_and_starts_again_with_its_data(
    trial: Trial,
) -> None:
    with trial.start("local", "up", "--capacity", "1GiB") as serving:
        assert serving.stderr is not None
        for line in serving.stderr:
            if "until Ctrl-C" in line:
                break
        trial.ok("volume", "create", "a", "--size", "1MiB")
        assert trial.refused("local", "up", "--detach")[0] == 5
        running = trial.identities()
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=TIMEOUT_S)
        assert serving.returncode == 0
    assert not any(identity.is_running for identity in running.values())
    trial.ok("local", "up", "--detach", "--movers", "2")
    assert [volume["name"] for volume in trial.ask("volume", "list")["volumes"]] == ["a"]
    movers = trial.ask("mover", "list")["movers"]
    assert [mover["state"] for mover in movers] == ["idle", "idle"]


def test_a_daemon_that_cannot_start_is_quoted_and_nothing_is_left_running(trial: Trial) -> None:
    trial.ok("local", "up", "--detach")
    trial.ok("local", "down")
    (trial.state / "disk" / "conf.d").mkdir()
    (trial.state / "disk" / "conf.d" / "wrong.toml").write_text("colour = 'red'\n")
    code, out, err = trial.run("local", "up", "--detach")
    assert (code, out) == (1, "")
    assert "colour: unknown key" in err
    status = json.loads(trial.run("local", "status", "--output", "json")[1])
    assert [process["state"] for process in status["processes"]] == ["dead"] * 4
