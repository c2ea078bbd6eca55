"""The clock of a node over restarts of the node and of the machine, and what a person accepts."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from backplane.errors import NotFoundError
from backplane.testing.clock import ManualClock
from storage_node.__main__ import main
from storage_node.node_clock import (
    ACCEPTED_FILE,
    LINE_FILE,
    SAVE_S,
    NodeClock,
    accept,
    kept_doubt,
    kernel_boot_id,
)
from storage_node.state_file import DamagedStateError

NOW = datetime(2026, 1, 11, 12, 0, 0, tzinfo=UTC)
YEARS = timedelta(days=1000)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=NOW)


def made(clock: ManualClock, folder: Path | None, boot: str = "a") -> NodeClock:
    return NodeClock(clock, boot=boot, folder=folder)


def newest(folder: Path) -> str:
    return str(json.loads((folder / LINE_FILE).read_text())["newest"])


def test_a_leap_is_told_once_and_outlives_a_restart_of_the_node(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    node = made(clock, tmp_path)
    assert node.look() == ""
    clock.jump(NOW + YEARS)
    with caplog.at_level(logging.INFO, logger="storage_node.node_clock"):
        for each in (node, node, made(clock, tmp_path)):
            now, doubt = each.earliest()
            assert "it has leapt" in doubt
            assert now == NOW + timedelta(hours=1)
            assert each.latest() == each.wall() == NOW + YEARS
        told = [record.levelname for record in caplog.records]
        assert told == ["WARNING", "WARNING"], "once by each of the two"
        clock.jump(NOW)
        assert node.earliest() == (NOW, "")
    assert caplog.records[-1].getMessage() == "the clock is believed again"


def test_the_time_is_kept_now_and_then_for_the_next_start(
    tmp_path: Path, clock: ManualClock
) -> None:
    node = made(clock, tmp_path)
    clock.advance(SAVE_S - 1)
    node.look()
    assert newest(tmp_path) == NOW.isoformat()
    clock.advance(1)
    node.look()
    assert newest(tmp_path) == (NOW + timedelta(seconds=SAVE_S)).isoformat()
    clock.jump(NOW - YEARS)
    behind = made(clock, tmp_path, "b")
    assert behind.latest() == NOW + timedelta(seconds=SAVE_S), "time never goes back"


def test_what_a_person_accepts_is_taken_up_by_the_node_that_runs(
    tmp_path: Path, clock: ManualClock
) -> None:
    node = made(clock, tmp_path)
    clock.jump(NOW + YEARS)
    assert node.look() == kept_doubt(tmp_path, clock, boot="a") != ""
    accept(tmp_path, clock, boot="a")
    clock.advance(5)
    assert node.earliest() == (NOW + YEARS + timedelta(seconds=5), "")
    assert not (tmp_path / ACCEPTED_FILE).exists(), "it is for one leap"
    assert kept_doubt(tmp_path, clock, boot="a") == ""
    clock.jump(NOW + 2 * YEARS)
    assert node.look()


def test_what_was_accepted_is_no_leave_to_leap_further(tmp_path: Path, clock: ManualClock) -> None:
    node = made(clock, tmp_path)
    clock.jump(NOW + YEARS)
    accept(tmp_path, clock, boot="a")
    clock.jump(NOW + 2 * YEARS)
    assert node.look()
    (tmp_path / ACCEPTED_FILE).write_text("{}")
    assert node.look()


def test_what_was_kept_and_cannot_be_understood_is_for_a_person(
    tmp_path: Path, clock: ManualClock
) -> None:
    (tmp_path / LINE_FILE).write_text('{"boot": "a"}')
    with pytest.raises(DamagedStateError, match="holds no time"):
        made(clock, tmp_path)


def test_a_disk_that_takes_nothing_is_no_reason_to_stop(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    node = made(clock, tmp_path / "is not there")
    assert node.earliest() == (NOW, "")
    assert "the time was not kept" in caplog.text
    assert made(clock, None).earliest() == (NOW, "")


def test_the_command_says_what_is_not_believed_and_accepts_it_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "node.toml"
    lines = [
        "config_version = 1",
        'name = "tape-1"',
        'roles = ["tape"]',
        'controller = "tcp://127.0.0.1:1"',
        f'state_folder = "{tmp_path}"',
        f'key_file = "{tmp_path}/key"',
        f'controller_key_file = "{tmp_path}/controller.pub"',
        'listen = ["tcp://127.0.0.1:0"]',
    ]
    config.write_text("\n".join(lines))
    clock = ManualClock(wall=NOW)
    monkeypatch.setattr("storage_node.__main__.SystemClock", lambda: clock)

    def run(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["accept-clock", "--config", str(config), *options])
        return done.exit_code, done.output

    code, told = run()
    assert (code, "no node with a library" in told) == (4, True), told
    with pytest.raises(NotFoundError):
        kept_doubt(tmp_path, clock, boot="a")
    node = made(clock, tmp_path, kernel_boot_id())
    assert run() == (0, "believed: the clock is at 2026-01-11T12:00:00Z\n")
    clock.jump(NOW + YEARS)
    code, told = run()
    assert (code, "can be at 2026-01-11T13:00:00Z at most" in told) == (5, True), told
    assert node.look()
    assert run("--yes") == (0, "accepted: the clock is at 2028-10-07T12:00:00Z\n")
    assert node.look() == ""
