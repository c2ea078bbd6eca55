"""Commands around the making of a view, and what others write to a device: what the view control makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storage_node.core.hook_rules import Hook, HookPair
from storage_node.core.write_inactivity import AskAgain
from storage_node.hooks import HookError, HookRound
from storage_node.state_file import write_json
from tests.unit.storage_node.disk_role import VIEW, VOLUME, Node


@pytest.fixture
def node(bench: Any) -> Iterator[Node]:
    made = Node(bench)
    made.create()
    yield made
    made.close()


def noting(log: Path, *, fails: bool = False, on_error: str = "fail") -> Hook:
    """A command that notes what it was told."""
    script = f'echo "$SB_PHASE $SB_VOLUME $SB_VIEW $SB_JOB" >> {log}; exit {int(fails)}'
    return Hook(command=("/bin/sh", "-c", script), on_error=on_error)  # type: ignore[arg-type]


def told(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def hooked(node: Node, pair: HookPair) -> None:
    node.disk.hooks = {"vol": pair}


def test_commands_run_around_the_view_and_make_it_consistent(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooked(node, HookPair(before=noting(log), after=noting(log), consistency="application"))
    made = node.make()
    assert not isinstance(made, AskAgain)
    assert made[0].consistency == "application"
    assert told(log) == [f"before vol {VIEW} 7", f"after vol {VIEW} 7"]


def test_another_volume_has_none_of_them(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    node.disk.hooks = {"other": HookPair(before=noting(log), consistency="application")}
    made = node.make()
    assert not isinstance(made, AskAgain)
    assert made[0].consistency == "crash"
    assert told(log) == []


def test_a_volume_that_is_not_quiet_is_not_disturbed(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooked(node, HookPair(before=noting(log)))
    node.put(b"x")
    assert isinstance(node.make(quiet_s=3.0), AskAgain)
    assert told(log) == []


def test_a_command_that_has_to_succeed_and_fails_makes_no_view(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooked(node, HookPair(before=noting(log, fails=True), after=noting(log)))
    with pytest.raises(HookError):
        node.make()
    assert [line.split()[0] for line in told(log)] == ["before", "after"]
    assert not node.disk.book.views
    assert list((node.folder / "snapshots").iterdir()) == []
    node.put(b"goes on")


def test_a_command_behind_the_view_that_fails_takes_the_view_with_it(
    node: Node, tmp_path: Path
) -> None:
    hooked(node, HookPair(after=noting(tmp_path / "log", fails=True)))
    with pytest.raises(HookError):
        node.make()
    assert not node.disk.book.views
    assert list((node.folder / "snapshots").iterdir()) == []


def test_a_failure_that_is_only_warned_of_leaves_a_crash_consistent_view(
    node: Node, tmp_path: Path
) -> None:
    before = noting(tmp_path / "log", fails=True, on_error="warn")
    hooked(node, HookPair(before=before, consistency="file-system"))
    made = node.make()
    assert not isinstance(made, AskAgain)
    assert made[0].consistency == "crash"


@pytest.mark.parametrize("consistency", ["crash", "file-system"])
def test_what_a_freezing_command_writes_does_not_begin_another_wait(
    node: Node, monkeypatch: pytest.MonkeyPatch, consistency: Any
) -> None:
    """A file system that is frozen first writes what it has in memory."""

    @contextmanager
    def freezing(*_: object, **__: object) -> Iterator[HookRound]:
        node.put(b"from memory")
        yield HookRound(consistency=consistency)

    monkeypatch.setattr(node.disk, "around_view", freezing)
    node.clock.advance(10.0)
    made = node.make(quiet_s=3.0)
    assert isinstance(made, AskAgain) is (consistency == "crash")


def test_what_a_dead_node_left_frozen_is_taken_back_at_the_start(
    node: Node, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    marker = node.disk.maker.marker(VOLUME)
    write_json(marker, {"SB_VOLUME": "vol", "SB_VIEW": VIEW, "SB_JOB": "7"})
    again = node.restart(hooks={"vol": HookPair(after=noting(log))})
    assert told(log) == [f"after vol {VIEW} 7"]
    assert not marker.exists()
    again.close()


def test_a_device_that_somebody_else_writes_is_not_quiet(node: Node) -> None:
    class Written:
        """Counters of a block device that somebody wrote a second ago."""

        def sample(self, now: float) -> float:
            return now - 1.0

    node.clock.advance(100.0)
    node.disk._device_activity[VOLUME] = Written()  # type: ignore[assignment]
    now = node.clock.monotonic()
    assert node.make(quiet_s=3.0) == AskAgain(now + 2.0)
    del node.disk._device_activity[VOLUME]
    assert not isinstance(node.make(quiet_s=3.0), AskAgain)
