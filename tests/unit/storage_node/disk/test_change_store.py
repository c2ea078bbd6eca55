"""Tracking through files: every crash, every error and every cut costs the history or nothing, never a change."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, UsageError
from storage_node.core import change_tracking
from storage_node.core.change_tracking import GRANULE_BYTES as GRANULE
from storage_node.core.change_tracking import Point
from storage_node.disk import change_store
from storage_node.disk.change_store import ChangeTracker
from storage_node.state_file import StateError

SIZE = 100 * GRANULE - 4096
_ids = itertools.count(1)


def new_id() -> str:
    return f"{next(_ids):032x}"


def open_tracker(folder: Path, *, boot: str = "boot-1", size: int = SIZE) -> ChangeTracker:
    return ChangeTracker.open(folder, size_bytes=size, boot_id=boot, new_id=new_id)


def abandon(tracker: ChangeTracker) -> None:
    """The process was killed."""
    tracker._close_files()


def mark(tracker: ChangeTracker, *granules: int) -> None:
    for granule in granules:
        tracker.mark(granule * GRANULE + 512, granule * GRANULE + 1024)


def granules(runs: Iterator[tuple[int, int]]) -> set[int]:
    return {
        granule for start, end in runs for granule in range(start // GRANULE, -(-end // GRANULE))
    }


def changed(tracker: ChangeTracker, since: Point, up_to: Point) -> set[int] | None:
    """What changed, or None if that is lost."""
    try:
        assert up_to.tracking == tracker.tracking
        return granules(tracker.changed_since(since, up_to.generation))
    except NotFoundError as error:
        return None if "history lost: " in error.message else {-1}


class Crash(BaseException):
    """The process is dead."""


class Steps:
    """Counts the system calls that change something; at one of them the process dies, or an error comes."""

    CALLS = ("open", "pwrite", "ftruncate", "fsync")

    def __init__(self, *, crash_at: int = 0, error_at: int = 0, times: int = 1) -> None:
        self.crash_at, self.error_at, self.times = crash_at, error_at, times
        self.seen = 0
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self.counted(call) if name in self.CALLS else call

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.seen += 1
            if self.is_dead or self.seen == self.crash_at:
                self.is_dead = True
                raise Crash
            if self.error_at and self.error_at <= self.seen < self.error_at + self.times:
                raise OSError(errno.EIO, "injected")
            return call(*arguments, **keywords)

        return wrapped

    @contextmanager
    def watch(self) -> Iterator[Steps]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(change_store, "os", self)
            patch.setattr(Path, "rename", self.counted(Path.rename))
            patch.setattr(Path, "unlink", self.counted(Path.unlink))
            yield self


# --- what it says ------------------------------------------------------------------------------------


def test_an_incremental_gets_what_was_written_after_its_parents_view(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path / "new")
    assert (tracker.generation, tracker.lost_reason) == (1, "no changes were tracked before")
    mark(tracker, 1)
    first = tracker.turn()
    assert first == Point(tracker.tracking, 1)
    mark(tracker, 2, 3, 3)
    second = tracker.turn()
    mark(tracker, 4)
    third = tracker.turn()
    mark(tracker, 5)
    assert changed(tracker, first, third) == {2, 3, 4}
    assert changed(tracker, first, second) == {2, 3}
    assert changed(tracker, second, third) == {4}
    assert changed(tracker, third, third) == set()
    assert granules(tracker.changed_since(second, 4)) == {4, 5}, "with the current generation"
    with pytest.raises(UsageError):
        tracker.changed_since(second, 5)
    tracker.close()


def test_marks_cover_every_granule_that_is_touched_and_end_with_the_volume(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    first = tracker.turn()
    tracker.mark(0, 0)
    tracker.mark(GRANULE - 1, GRANULE + 1)
    tracker.mark(4 * GRANULE, 5 * GRANULE)
    tracker.mark(11 * GRANULE + 5, 90 * GRANULE)
    tracker.mark(SIZE - 1, SIZE)
    assert list(tracker.changed_since(first, tracker.turn().generation)) == [
        (0, 2 * GRANULE),
        (4 * GRANULE, 5 * GRANULE),
        (11 * GRANULE, 90 * GRANULE),
        (99 * GRANULE, SIZE),
    ]
    tracker.close()


def test_old_generations_are_merged_and_forgotten_on_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_tracking, "SPANS_MAX", 3)
    tracker = open_tracker(tmp_path)
    points = []
    for granule in range(8):
        mark(tracker, granule)
        points.append(tracker.turn())
    tracker.tidy()
    assert len(list(tmp_path.glob("*.bits"))) == 4
    assert changed(tracker, points[5], points[7]) == {6, 7}
    assert changed(tracker, points[2], points[7]) == {0, 1, 2, 3, 4, 5, 6, 7}
    abandon(tracker)
    tracker = open_tracker(tmp_path)
    assert changed(tracker, points[2], points[7]) == {0, 1, 2, 3, 4, 5, 6, 7}
    tracker.forget_before(points[6].generation)
    assert len(list(tmp_path.glob("*.bits"))) == 2
    assert changed(tracker, points[6], points[7]) == {7}
    assert changed(tracker, points[5], points[7]) is None
    tracker.close()


# --- who survives what -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["killed", "closed"])
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_restarts_keep_the_history_unless_the_machine_went_down_in_use(
    tmp_path: Path, end: str, boot: str
) -> None:
    tracker = open_tracker(tmp_path)
    first = tracker.turn()
    mark(tracker, 7)
    second = tracker.turn()
    mark(tracker, 8)
    (abandon if end == "killed" else ChangeTracker.close)(tracker)
    tracker = open_tracker(tmp_path, boot=boot)
    if (end, boot) == ("killed", "boot-2"):
        assert tracker.tracking != first.tracking
        assert "the machine went down" in tracker.lost_reason
        assert changed(tracker, first, tracker.turn()) is None
    else:
        mark(tracker, 9)
        third = tracker.turn()
        assert changed(tracker, second, third) == {8, 9}
        assert changed(tracker, first, third) == {7, 8, 9}
    tracker.close()


def test_a_reset_begins_a_history_that_answers_no_old_question(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    first = tracker.turn()
    tracker.reset("the volume was restored")
    assert len(list(tmp_path.glob("*.bits"))) == 1, "the old ones are gone"
    assert changed(tracker, first, tracker.turn()) is None
    abandon(tracker)
    tracker = open_tracker(tmp_path)
    assert tracker.lost_reason == "the volume was restored"
    assert tracker.tracking != first.tracking
    tracker.close()


def test_another_size_is_another_volume(tmp_path: Path) -> None:
    open_tracker(tmp_path).close()
    tracker = open_tracker(tmp_path, size=SIZE + 4096)
    assert "bytes then" in tracker.lost_reason
    tracker.close()


def test_two_processes_do_not_track_one_volume(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    with pytest.raises(BusyError):
        open_tracker(tmp_path)
    tracker.close()
    tracker.close()
    open_tracker(tmp_path).close()


def test_a_write_after_the_end_is_a_bug(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.close()
    with pytest.raises(AssertionError):
        mark(tracker, 1)


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("pattern", ["changes", "*-1-1.bits", "*-2-2.bits"])
def test_a_file_cut_at_any_byte_is_known_to_be_damaged(
    tmp_path: Path, pattern: str, is_closed: bool
) -> None:
    tracker = open_tracker(tmp_path / "good")
    zero = tracker.turn()
    mark(tracker, 3, 97)
    (ChangeTracker.close if is_closed else abandon)(tracker)
    (path,) = (tmp_path / "good").glob(pattern)
    content = path.read_bytes()
    # Every byte of the bitmaps; every byte of the record is the business of its own test.
    for length in range(0, len(content), 1 if pattern.endswith("bits") else 40):
        shutil.copytree(tmp_path / "good", tmp_path / "cut")
        (tmp_path / "cut" / path.name).write_bytes(content[:length])
        tracker = open_tracker(tmp_path / "cut")
        # Question 1 to 2 needs the second bitmap only; the first may be cut.
        assert changed(tracker, zero, tracker.turn()) == ({3, 97} if "1-1" in path.name else None)
        tracker.close()
        shutil.rmtree(tmp_path / "cut")


def test_nothing_is_said_of_the_changes_of_a_volume_that_is_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for is_deleted in (True, False):
        tracker = open_tracker(tmp_path / "volume")
        tracker.turn()
        mark(tracker, 3)
        tracker.turn()
        if is_deleted:
            shutil.rmtree(tmp_path / "volume")
        else:
            for path in (tmp_path / "volume").glob("*.bits"):
                path.unlink()
        tracker.close()
        assert ("are lost at its end" in caplog.text) != is_deleted


@pytest.mark.parametrize("pattern", ["*-2-2.bits", "*-3-3.bits"])
def test_a_flipped_bit_in_what_was_closed_is_known(tmp_path: Path, pattern: str) -> None:
    tracker = open_tracker(tmp_path / "good")
    first = tracker.turn()
    mark(tracker, 3)
    tracker.turn()
    mark(tracker, 4)
    tracker.close()
    (path,) = (tmp_path / "good").glob(pattern)
    content = path.read_bytes()
    for at in range(len(content)):
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        flipped = content[:at] + bytes([content[at] ^ 0x08]) + content[at + 1 :]
        (tmp_path / "bad" / path.name).write_bytes(flipped)
        tracker = open_tracker(tmp_path / "bad", boot="boot-2")
        up_to = tracker.turn()
        assert changed(tracker, first, up_to) is None
        assert tracker.tracking != first.tracking, "once seen, never trusted again"
        tracker.close()
        shutil.rmtree(tmp_path / "bad")


# --- every step --------------------------------------------------------------------------------------


def mark_new(tracker: ChangeTracker) -> None:
    mark(tracker, 50, 51)


def forget(tracker: ChangeTracker) -> None:
    tracker.forget_before(2)


ACTIONS: dict[str, Callable[[ChangeTracker], object]] = {
    "turn": ChangeTracker.turn,
    "mark": mark_new,
    "tidy": ChangeTracker.tidy,
    "forget": forget,
    "close": ChangeTracker.close,
}


def used_tracker(folder: Path) -> tuple[ChangeTracker, Point]:
    """Five generations; the point is the second one, after which 12, 13 and 14 were written."""
    tracker = open_tracker(folder)
    points = []
    for granule in range(10, 14):
        mark(tracker, granule)
        points.append(tracker.turn())
    mark(tracker, 14)
    return tracker, points[1]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_that_dies_at_any_step_loses_nothing(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_tracking, "SPANS_MAX", 3)
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        tracker, since = used_tracker(folder)
        with Steps(crash_at=at).watch() as steps, suppress(Crash):
            ACTIONS[action](tracker)
        abandon(tracker)
        # The first start dies at each of its steps as well, the second one lives.
        for start_at in itertools.count(1):
            with Steps(crash_at=start_at).watch() as start, suppress(Crash):
                tracker = open_tracker(folder)
            if not start.is_dead:
                break
        mark(tracker, 20)
        found = changed(tracker, since, tracker.turn())
        assert found is not None
        assert found >= {12, 13, 14, 20}
        assert found <= {10, 11, 12, 13, 14, 20, 50, 51}
        assert len(list(folder.glob("*.bits"))) == len(tracker._history.spans) + 1
        tracker.close()
        if not steps.is_dead:
            break
    assert at > 2


@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("action", [*ACTIONS, "reset"])
def test_an_error_at_any_step_costs_the_history_or_nothing(
    tmp_path: Path, action: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes and views go on; afterwards, and after a restart, either nothing is missing or it is lost."""
    monkeypatch.setattr(change_tracking, "SPANS_MAX", 3)
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        tracker, since = used_tracker(folder)
        with Steps(error_at=at, times=times).watch() as steps:
            try:
                if action == "reset":
                    tracker.reset("the volume was restored")
                else:
                    ACTIONS[action](tracker)
            except StateError:
                assert action == "reset" or (action, times) == ("mark", 1000)
        if action != "close":
            mark(tracker, 20)
            up_to = tracker.turn()
            mark(tracker, 21)
            found = changed(tracker, since, up_to)
            assert found is None or found >= {12, 13, 14, 20}
            assert found is None or action != "reset"
            assert changed(tracker, up_to, tracker.turn()) in (None, {21})
            abandon(tracker)
        for boot in ("boot-1", "boot-2"):
            shutil.copytree(folder, tmp_path / boot)
            tracker = open_tracker(tmp_path / boot, boot=boot)
            mark(tracker, 22)
            found = changed(tracker, since, tracker.turn())
            wanted = {12, 13, 14, 22} | (set() if action == "close" else {20, 21})
            assert found is None or found >= wanted
            assert found is None or action != "reset"
            assert found is None or boot == "boot-1" or action == "close"
            tracker.close()
            shutil.rmtree(tmp_path / boot)
        if steps.seen < at:
            break
    assert at > 2


class Disk(Steps):
    """A disk that keeps, after a power cut, what was synchronised and nothing else."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.contents: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.held: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return self.fsync if name == "fsync" else getattr(os, name)

    def fsync(self, file: int) -> None:
        status = os.fstat(file)
        if not stat.S_ISDIR(status.st_mode):
            self.contents[status.st_ino] = Path(f"/proc/self/fd/{file}").read_bytes()
            self.held.append(os.dup(file))  # so that no other file gets its number
        elif status.st_ino == self.folder.stat().st_ino:
            self.names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def after_power_cut(self, target: Path) -> Path:
        target.mkdir()
        for name, inode in self.names.items():
            (target / name).write_bytes(self.contents.get(inode, b""))
        return target


def test_a_power_cut_at_any_time_loses_the_history_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    disk = Disk(folder)
    cuts = itertools.count(1)

    def cut(since: Point, wanted: set[int], *, is_kept: bool) -> None:
        tracker = open_tracker(disk.after_power_cut(tmp_path / f"cut-{next(cuts)}"), boot="boot-9")
        found = changed(tracker, since, tracker.turn())
        assert found == (wanted if is_kept else None)
        tracker.close()

    with disk.watch():
        tracker = open_tracker(folder)
        since = tracker.turn()
        mark(tracker, 1)
        cut(since, set(), is_kept=False)
        tracker.turn()
        mark(tracker, 2)
        cut(since, set(), is_kept=False)
        tracker.close()
        cut(since, {1, 2}, is_kept=True)
        tracker = open_tracker(folder, boot="boot-2")
        cut(since, set(), is_kept=False)  # it was opened again: the word was taken back
        mark(tracker, 3)
        cut(since, set(), is_kept=False)
        tracker.close()
        cut(since, {1, 2, 3}, is_kept=True)
        tracker = open_tracker(folder, boot="boot-3")
        tracker.reset("the volume was restored")
        tracker.close()
        cut(since, set(), is_kept=False)
    for file in disk.held:
        os.close(file)


def test_what_cannot_be_recorded_and_not_be_called_lost_is_not_written(tmp_path: Path) -> None:
    """The disk with the record takes nothing any more, not even that the record is removed; later it recovers."""
    tracker = open_tracker(tmp_path / "good")
    since = tracker.turn()
    mark(tracker, 1)
    tracker.close()
    refused = [0, 0]
    for at in itertools.count(1):
        shutil.copytree(tmp_path / "good", tmp_path / "copy")
        wanted = {1}
        with Steps(error_at=at, times=1000).watch() as steps:
            try:
                tracker = open_tracker(tmp_path / "copy", boot="boot-2")
            except StateError:
                refused[0] += 1
            else:
                try:
                    mark(tracker, 2)
                    wanted = {1, 2}
                except StateError:
                    refused[1] += 1
                    with pytest.raises(StateError):
                        mark(tracker, 2)
                abandon(tracker)
        tracker = open_tracker(tmp_path / "copy", boot="boot-2")
        assert changed(tracker, since, tracker.turn()) in (None, wanted)
        tracker.close()
        shutil.rmtree(tmp_path / "copy")
        if steps.seen < at:
            break
    assert min(refused) > 0, "of openings and of writes"


def test_writes_go_on_when_the_record_could_be_removed_after_all(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    first = tracker.turn()
    with Steps(error_at=1, times=1000).watch(), pytest.raises(StateError):
        mark(tracker, 1)
    mark(tracker, 1)
    second = tracker.turn()
    assert second.tracking != first.tracking
    assert changed(tracker, first, second) is None
    mark(tracker, 2)
    third = tracker.turn()
    abandon(tracker)
    tracker = open_tracker(tmp_path)
    assert changed(tracker, second, third) == {2}
    tracker.close()


# --- threads -----------------------------------------------------------------------------------------


def test_threads_that_mark_neighbours_lose_none_of_each_other(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, size=4096 * GRANULE)
    first = tracker.turn()
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait()
        for granule in range(number, 4096, 4):
            mark(tracker, granule)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    abandon(tracker)
    tracker = open_tracker(tmp_path, size=4096 * GRANULE)
    assert changed(tracker, first, tracker.turn()) == set(range(4096))
    tracker.close()


def test_a_bit_is_in_the_file_before_another_writer_can_see_it(tmp_path: Path) -> None:
    """Else the other one would write its block, the process would die, and the change would be forgotten."""
    tracker = open_tracker(tmp_path)
    seen: list[bytes] = []

    class Watching(Steps):
        def __getattr__(self, name: str) -> Any:
            if name == "pwrite":
                seen.append(bytes(tracker._bits))
            return getattr(os, name)

    with Watching().watch():
        mark(tracker, 8)
        mark(tracker, 8)
        tracker.mark(16 * GRANULE, 40 * GRANULE)
    one = b"\x00\x01" + bytes(11)
    assert seen == [bytes(13), one]
    assert bytes(tracker._bits) == b"\x00\x01\xff\xff\xff" + bytes(8)
    tracker.close()
