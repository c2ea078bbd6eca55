"""Marks, the list after a crash, and removal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import NotFoundError
from storage_node.core.copy_on_write import BreakReason, JournalHeader, JournalWriter
from storage_node.disk.device import DeviceError
from storage_node.disk.snapshot_files import SnapshotFiles, list_snapshots, remove, write_all

HEADER = JournalHeader(view="view-1", boot_id="boot-1", size_bytes=1 << 20, reserve_bytes=1 << 20)
BEGINNING = JournalWriter.begin(HEADER, [(0, 16)])[1]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SnapshotFiles]:
    files = SnapshotFiles(tmp_path / "s1", None)
    files.create(BEGINNING)
    yield files
    files.close()


def test_what_is_made_is_intact_and_locked(files: SnapshotFiles) -> None:
    assert files.broken_reason() is None
    other = SnapshotFiles(files.folder, None)
    with pytest.raises(BlockingIOError):
        other.open()
    files.close()
    files.close()
    other.open()
    assert other.read_journal() == BEGINNING
    other.close()
    with pytest.raises(NotFoundError):
        SnapshotFiles(files.folder / "gone", None).open()


def test_a_snapshot_that_was_not_finished_is_broken(files: SnapshotFiles) -> None:
    """The mark is made last."""
    (files.folder / "s1.intact").unlink()
    assert files.broken_reason() is BreakReason.UNKNOWN


def test_a_break_is_noted_with_its_reason_once(files: SnapshotFiles) -> None:
    assert files.mark_broken(BreakReason.STORE_FULL)
    assert files.mark_broken(BreakReason.TOO_SLOW)
    assert files.broken_reason() is BreakReason.STORE_FULL


@pytest.mark.parametrize("failing", [("rename",), ("rename", "unlink")])
def test_a_break_is_noted_in_another_way_when_names_cannot_change(
    files: SnapshotFiles, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in failing:
        monkeypatch.setattr(Path, name, fail)
    assert files.mark_broken(BreakReason.TOO_SLOW)
    monkeypatch.undo()
    if "unlink" in failing:
        assert files.read_journal()[: len(BEGINNING)] != BEGINNING
        [found] = list_snapshots(files.folder.parent)
        assert found.broken is BreakReason.JOURNAL_DAMAGED
    else:
        assert files.broken_reason() is BreakReason.UNKNOWN


def test_a_break_that_cannot_be_noted_is_said(
    files: SnapshotFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("rename", "unlink"):
        monkeypatch.setattr(Path, name, fail)
    monkeypatch.setattr(os, "pwrite", fail)
    assert not files.mark_broken(BreakReason.TOO_SLOW)


def test_a_crash_leaves_a_list_of_what_there_is(tmp_path: Path, files: SnapshotFiles) -> None:
    files.write_store(memoryview(b"x" * 65536), 0)
    (tmp_path / "s2").mkdir()
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "journal").write_bytes(BEGINNING[:-40])
    (tmp_path / "no folder").write_bytes(b"")
    whole, empty, torn = list_snapshots(tmp_path)
    assert (whole.folder, whole.view, whole.broken) == (tmp_path / "s1", "view-1", None)
    assert whole.header == HEADER
    assert whole.used_bytes >= 65536
    assert (empty.view, empty.broken, empty.used_bytes) == (None, BreakReason.UNKNOWN, 0)
    assert torn.broken is BreakReason.UNKNOWN
    assert list_snapshots(tmp_path / "nowhere") == []


def test_everything_that_can_be_left_can_be_removed(tmp_path: Path, files: SnapshotFiles) -> None:
    files.mark_broken(BreakReason.LIVE_ERROR)
    (tmp_path / "s2").mkdir()
    for name in ("s1", "s2", "s2", "never was"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_marks_that_were_left_behind_are_not_believed(tmp_path: Path) -> None:
    """A folder that was removed by hand leaves its marks on the tmpfs."""
    for name in ("s1.intact", "s1.broken-too-slow"):
        (tmp_path / name).write_bytes(b"")
    files = SnapshotFiles(tmp_path / "folders" / "s1", tmp_path)
    files.folder.parent.mkdir()
    files.create(BEGINNING)
    assert files.broken_reason() is None
    assert not (tmp_path / "s1.broken-too-slow").exists()
    files.mark_broken(BreakReason.STORE_FULL)
    assert files.broken_reason() is BreakReason.STORE_FULL
    files.close()


def test_removal_frees_the_space_of_a_store_that_is_still_open(files: SnapshotFiles) -> None:
    files.write_store(memoryview(b"x" * 65536), 0)
    remove(files.folder)
    assert os.fstat(files.store_descriptor).st_blocks == 0
    with pytest.raises(DeviceError):
        files.read_store(0, memoryview(bytearray(1)))


def test_removal_leaves_what_is_not_ours(files: SnapshotFiles) -> None:
    (files.folder / "precious").write_bytes(b"x")
    with pytest.raises(DeviceError):
        remove(files.folder)
    assert [path.name for path in files.folder.iterdir()] == ["precious"]


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    with (tmp_path / "file").open("wb") as file:
        write_all(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"
