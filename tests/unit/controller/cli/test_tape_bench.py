"""`ctl tape bench`: what is measured, and that nothing is left behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, RefusedError
from backplane.units import MIB
from controller.cli.render import Screen
from controller.cli.tape_bench import bench, bench_page, random_file, run_bench

TAPE = {"role": "tape", "name": "LTO001L8", "under_runs": 2}
DISK = {"role": "disk", "name": "bench", "under_runs": 0}


class FakeController:
    """Knows one pool, one volume, one cartridge; fails the verbs or kinds of jobs it is told to."""

    def __init__(self, *, failing: str = "", refused: str = "") -> None:
        self.failing, self.refused = failing, refused
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.kinds: list[str] = []
        self.pool, self.owner, self.parts = "", "", 0
        self.volumes: list[str] = []
        self.backups: list[int] = []

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        self.calls.append((verb, arguments))
        if verb == self.refused:
            raise RefusedError(f"{verb} is refused")
        match verb:
            case "pool.create":
                self.pool = arguments["name"]
            case "pool.delete":
                assert self.owner != self.pool, "a cartridge belongs to it"
                self.pool = ""
            case "volume.delete":
                assert arguments["force"]
                self.volumes.remove(arguments["name"])
            case "job.submit":
                self._run(arguments)
                return {"job": len(self.kinds)}
            case "job.show":
                return self._job(arguments["job"])
            case "backup.list":
                return {"backups": [{"backup": number} for number in self.backups]}
            case "backup.prune":
                self.backups = [n for n in self.backups if str(n) not in arguments["backups"]]
            case "backup.show":
                return {"tags": ["LTO001L8"]}
            case "tape.list":
                other = {"tag": "LTO002L8", "pool": "weekly", "parts": 3}
                mine = {"tag": "LTO001L8", "pool": self.owner, "parts": self.parts}
                return {"cartridges": [other, mine]}
            case "tape.set":
                assert (arguments["tag"], self.parts) == ("LTO001L8", 0)
                self.owner = "" if arguments["pool"] == "scratch" else arguments["pool"]
            case _:
                raise AssertionError(verb)
        return {}

    def _run(self, arguments: dict[str, Any]) -> None:
        kind = arguments["kind"]
        self.kinds.append(kind)
        if kind == "backup":
            assert (arguments["volume"], arguments["raw"]) == (self.volumes[0], True)
            self.owner = arguments["pool"]
            self.parts = 1
            if self.failing != "backup":
                self.backups.append(3)
        elif kind == "label":
            assert not self.backups, "what is wanted is not erased"
            self.parts = 0
        else:
            assert arguments["backup"] == "3"

    def _job(self, number: int) -> dict[str, Any]:
        kind = self.kinds[number - 1]
        is_failed = kind == self.failing
        return {
            "job": number,
            "kind": kind,
            "state": "failed" if is_failed else "completed",
            "reason": "no drive" if is_failed else "",
            "exit_code": 7 if is_failed else 0,
            "backup": 3 if kind == "backup" and not is_failed else 0,
            "next_item": 0,
            "items": [{"mover": "mover-1"}],
            "seconds_copying": 2.0 if kind == "backup" else 1.0,
            "ledger": {"devices": [DISK, TAPE]},
        }


def measured(fake: FakeController) -> dict[str, Any]:
    def bring(name: str, source: Path) -> None:
        assert source.stat().st_size == 4 * MIB
        fake.volumes.append(name)

    return bench(fake, size_bytes=4 * MIB, bring=bring, screen=Screen("table"))


def test_what_is_measured_and_that_nothing_is_left() -> None:
    fake = FakeController()
    document = measured(fake)
    assert document == {
        "size_bytes": 4 * MIB,
        "drive": "",
        "tags": ["LTO001L8"],
        "movers": ["mover-1"],
        "write_seconds": 2.0,
        "write_rate": 2 * MIB,
        "read_seconds": 1.0,
        "read_rate": 4 * MIB,
        "under_runs": 2,
    }
    assert fake.kinds == ["backup", "verify", "label"]
    assert (fake.pool, fake.owner, fake.volumes, fake.backups) == ("", "", [], [])
    page = bench_page(document)
    assert "Disk to tape:  2MiB/s (2.0 s)" in page
    assert "Under-runs:    2" in page


def test_a_drive_that_is_named_is_asked_for_in_what_is_measured() -> None:
    fake = FakeController()
    document = bench(
        fake,
        size_bytes=4 * MIB,
        bring=lambda name, _: fake.volumes.append(name),
        screen=Screen("table"),
        drive="tape/drive-1",
    )
    asked = [
        (arguments["kind"], arguments.get("drive"))
        for verb, arguments in fake.calls
        if verb == "job.submit"
    ]
    assert asked == [("backup", "tape/drive-1"), ("verify", "tape/drive-1"), ("label", None)]
    assert "Drive:         tape/drive-1" in bench_page(document)


@pytest.mark.parametrize(("failing", "kinds"), [("backup", 2), ("verify", 3)])
def test_a_job_that_fails_leaves_nothing_either(failing: str, kinds: int) -> None:
    fake = FakeController(failing=failing)
    document = measured(fake)
    assert document["exit_code"] == 7
    assert f"({failing}): failed: no drive" in document["failed"]
    assert len(fake.kinds) == kinds
    assert (fake.pool, fake.owner, fake.volumes, fake.backups) == ("", "", [], [])


def test_what_cannot_be_tidied_up_is_said_and_the_rest_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = FakeController(refused="volume.delete")
    measured(fake)
    assert len(fake.volumes) == 1
    assert (fake.pool, fake.owner) == ("", "")
    name = fake.volumes[0]
    assert f"volume {name} is left behind: volume.delete is refused" in capsys.readouterr().err


def test_it_never_waits_for_an_operator() -> None:
    controller = FakeController()
    measured(controller)
    submitted = [given for verb, given in controller.calls if verb == "job.submit"]
    assert [given.get("no_wait_media") for given in submitted if given["kind"] == "backup"] == [
        True
    ]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_who_ends_it_finds_nothing_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = FakeController()

    def bring(*_arguments: Any, **_options: Any) -> None:
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr("controller.cli.tape_bench.run_import", bring)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_bench(controller, size_bytes=MIB, drive="", screen=Screen("table"))  # type: ignore[arg-type]
    assert controller.pool == ""
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_pool_that_cannot_be_made_ends_it() -> None:
    fake = FakeController(refused="pool.create")
    with pytest.raises(BackupError, match="refused"):
        measured(fake)
    assert [verb for verb, _ in fake.calls] == ["pool.create"]


def test_the_data_are_random_and_gone_afterwards() -> None:
    with random_file(MIB + 512) as one, random_file(MIB + 512) as other:
        assert one.stat().st_size == MIB + 512
        assert one.read_bytes() != other.read_bytes()
    assert not one.exists()
