"""Snapshots over real files: saving, breaking, restarts, release."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, NotFoundError, RefusedError
from backplane.ids import ViewId
from backplane.testing.contracts.block_device import read
from storage_node.core.copy_on_write import ENTRY_BYTES, GRANULE_BYTES, BreakReason
from storage_node.disk.device import BlockDevice, DeviceError
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.snapshot_files import SnapshotFiles, list_snapshots
from storage_node.disk.snapshots import Snapshot, State

G = GRANULE_BYTES
ROOT = Path(__file__).resolve().parents[4]
GRANULES = 32
SIZE = GRANULES * G
RESERVE = 1 << 30
BUDGET_S = 0.2
LATE_S = 10 * BUDGET_S
"""What a loaded machine may add to a budget; a store that hangs would take for ever."""


class Bench:
    """A volume with known content, and its snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_sparse_file(folder / "live", size_bytes=SIZE)
        self.live = FileDevice(folder / "live", block_bytes=512)
        self.old = b"".join(bytes([1 + index]) * G for index in range(GRANULES))
        self.live.write(0, memoryview(self.old))
        self.told: list[str] = []
        self.is_told = threading.Event()
        self.snapshots: list[Snapshot] = []

    def _on_broken(self, reason: str) -> None:
        self.told.append(reason)
        self.is_told.set()

    def make(self, name: str = "s1", **changes: Any) -> Snapshot:
        given: dict[str, Any] = {
            "view": ViewId(f"view-{name}"),
            "live": self.live,
            "protected": None,
            "reserve_bytes": RESERVE,
            "budget_s": BUDGET_S,
            "boot_id": "boot-1",
            "on_broken": self._on_broken,
        }
        snapshot = Snapshot.create(self.folder / name, **(given | changes))
        self.snapshots.append(snapshot)
        return snapshot

    def reopen(self, name: str = "s1", **changes: Any) -> Snapshot:
        given: dict[str, Any] = {
            "live": self.live,
            "boot_id": "boot-1",
            "on_broken": self._on_broken,
            "budget_s": BUDGET_S,
        }
        snapshot = Snapshot.open(self.folder / name, **(given | changes))
        self.snapshots.append(snapshot)
        return snapshot

    def write(self, start: int, data: bytes, *snapshots: Snapshot) -> float:
        """Write as a volume does; return how long the snapshots took."""
        begin = time.monotonic()
        for snapshot in snapshots:
            snapshot.save_before(start, start + len(data))
        taken = time.monotonic() - begin
        self.live.write(start, memoryview(data))
        return taken


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for snapshot in bench.snapshots:
        snapshot.release()
    bench.live.close()


def content(snapshot: Snapshot) -> bytes:
    reader = snapshot.reader()
    try:
        return read(reader, 0, SIZE)
    finally:
        reader.close()


def breaks(snapshot: Snapshot, reason: BreakReason) -> None:
    """Check that a snapshot is broken and that nobody can read it."""
    assert (snapshot.state, snapshot.reason) == (State.BROKEN, reason)
    reader = snapshot.reader()
    with pytest.raises(DeviceError, match=reason.value):
        read(reader, 0, SIZE)
    with pytest.raises(DeviceError):
        list(reader.extents(0, SIZE))
    assert reader.file_range(0, 512) is None
    reader.close()


class Gate:
    """Holds up a method of all snapshots' files, as a file system that hangs does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        original: Callable[..., Any] = getattr(SnapshotFiles, name)

        def held(files: SnapshotFiles, *arguments: Any) -> Any:
            self.entered.set()
            self.opened.wait()
            return original(files, *arguments)

        monkeypatch.setattr(SnapshotFiles, name, held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Gate]]:
    gates: list[Gate] = []

    def make(name: str) -> Gate:
        gates.append(Gate(monkeypatch, name))
        return gates[-1]

    yield make
    for one in gates:
        one.opened.set()


# --- saving --------------------------------------------------------------------------------------


def test_a_snapshot_keeps_what_was_there(bench: Bench) -> None:
    snapshot = bench.make()
    for start, count in ((0, 1), (5 * G - 1, 2), (SIZE - 512, 512), (8 * G, 20 * G), (7, G)):
        bench.write(start, b"\xff" * count, snapshot)
    assert content(snapshot) == bench.old
    assert read(bench.live, 8 * G, 20 * G) == b"\xff" * 20 * G


def test_several_snapshots_keep_each_its_own(bench: Bench) -> None:
    first = bench.make("s1")
    bench.write(0, b"a" * 3 * G, first)
    second = bench.make("s2")
    between = read(bench.live, 0, SIZE)
    bench.write(2 * G, b"b" * 3 * G, first, second)
    assert content(first) == bench.old
    assert content(second) == between
    first.release()
    bench.write(0, b"c" * SIZE, second)
    assert content(second) == between


def test_a_granule_is_copied_once_and_neighbours_lie_together(bench: Bench) -> None:
    snapshot = bench.make()
    empty = snapshot.used_bytes
    for _ in range(3):
        bench.write(4 * G + 5, b"x" * 3 * G, snapshot)
    assert snapshot.used_bytes == empty + 4 * G + ENTRY_BYTES
    assert (bench.folder / "s1" / "store").stat().st_size == 4 * G


def test_holes_and_zeros_cost_no_space(bench: Bench) -> None:
    bench.live.zero(0, SIZE, may_punch=True)
    bench.live.write(20 * G, memoryview(bytes(G)))
    snapshot = bench.make()
    bench.write(0, b"x", snapshot)
    bench.write(20 * G, b"y", snapshot)
    bench.write(0, b"z" * SIZE, snapshot)
    assert (bench.folder / "s1" / "store").stat().st_size == 0
    assert content(snapshot) == bytes(SIZE)


def test_only_the_relevant_portion_is_saved_and_readable(bench: Bench) -> None:
    snapshot = bench.make(protected=[(2 * G, 3 * G), (10 * G + 5, 10 * G + 6)])
    empty = snapshot.used_bytes
    bench.write(0, b"x" * SIZE, snapshot)
    assert snapshot.used_bytes == empty + 2 * G + 2 * ENTRY_BYTES
    reader = snapshot.reader()
    assert read(reader, 10 * G, G) == bench.old[10 * G : 11 * G]
    for start, count in ((0, 1), (3 * G - 1, 2), (SIZE - 1, 1)):
        with pytest.raises(DeviceError, match="does not protect"):
            read(reader, start, count)
    # What is not protected is reported: whoever believed it to be zeros would be wrong.
    assert list(reader.extents(0, SIZE)) == [(0, SIZE)]
    reader.close()


def test_the_second_writer_of_a_granule_waits_for_the_first_ones_save(
    bench: Bench, gate: Callable[[str], Gate]
) -> None:
    snapshot = bench.make(budget_s=60.0)
    store = gate("write_store")
    order: list[str] = []

    def writer(name: str) -> None:
        snapshot.save_before(0, 4096)
        order.append(name)

    threads = [threading.Thread(target=writer, args=(name,)) for name in ("first", "second")]
    threads[0].start()
    assert store.entered.wait(30)
    threads[1].start()
    threads[1].join(0.05)
    assert order == []
    store.opened.set()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["first", "second"]
    assert (bench.folder / "s1" / "store").stat().st_size == G


def test_a_reader_sees_the_old_content_while_writers_are_at_work(bench: Bench) -> None:
    snapshot = bench.make(budget_s=60.0)
    is_over = threading.Event()

    def writer(seed: int) -> None:
        turn = seed
        while not is_over.is_set():
            turn = (turn * 1103515245 + 12345) % (1 << 31)
            start = turn % (SIZE - 3 * G)
            bench.write(start, bytes([128 + turn % 100]) * (turn % (3 * G) + 1), snapshot)

    threads = [threading.Thread(target=writer, args=(seed,)) for seed in (1, 2)]
    reader = snapshot.reader()
    for thread in threads:
        thread.start()
    try:
        for turn in range(300):
            start = (turn * 977 * 512) % (SIZE - 4 * G)
            assert read(reader, start, 4 * G) == bench.old[start : start + 4 * G]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        reader.close()
    assert snapshot.state is State.ACTIVE
    assert content(snapshot) == bench.old
    assert read(bench.live, 0, SIZE) != bench.old


def test_a_write_between_the_look_and_the_read_is_not_seen(bench: Bench) -> None:
    """Time line: reader plans (pending) - writer saves - writer overwrites - reader reads new - reader looks again."""
    late: list[tuple[int, bytes]] = []

    class Racing(FileDevice):
        def read_into(self, byte_address: int, buffer: memoryview) -> None:
            if threading.current_thread() is threading.main_thread():
                while late:
                    start, data = late.pop()
                    bench.write(start, data, snapshot)
            super().read_into(byte_address, buffer)

    live = Racing(bench.folder / "live", block_bytes=512)
    snapshot = bench.make(live=live, budget_s=60.0)
    reader = snapshot.reader()
    late += [(G + 5, b"new"), (3 * G - 1, b"new")]
    assert read(reader, 512, 5 * G) == bench.old[512 : 5 * G + 512]
    assert read(bench.live, G + 5, 3) == b"new"
    late += [(6 * G, b"n" * 3 * G)]
    assert read(reader, 7 * G + 1, G) == bench.old[7 * G + 1 : 8 * G + 1]
    assert not late
    reader.close()
    live.close()


# --- breaking: the write is never harmed ---------------------------------------------------------


def test_a_store_that_hangs_breaks_the_snapshot_within_the_budget(
    bench: Bench, gate: Callable[[str], Gate]
) -> None:
    snapshot = bench.make()
    store = gate("write_store")
    assert bench.write(3, b"new", snapshot) < BUDGET_S + LATE_S
    assert read(bench.live, 0, 7) == b"\x01\x01\x01new\x01"
    breaks(snapshot, BreakReason.TOO_SLOW)
    # Nobody waits a second time, and a later process finds it broken although the worker still hangs.
    assert bench.write(G, b"new", snapshot) < BUDGET_S
    assert bench.is_told.wait(30)
    assert bench.told == ["too-slow"]
    assert SnapshotFiles(bench.folder / "s1", None).broken_reason() is BreakReason.TOO_SLOW
    breaks(bench.reopen(), BreakReason.IN_USE)
    store.opened.set()


def test_a_journal_that_hangs_breaks_the_snapshot_too(
    bench: Bench, gate: Callable[[str], Gate]
) -> None:
    snapshot = bench.make()
    journal = gate("append_journal")
    assert bench.write(0, b"new", snapshot) < BUDGET_S + LATE_S
    breaks(snapshot, BreakReason.TOO_SLOW)
    journal.opened.set()


def test_a_mark_that_hangs_holds_up_no_write_and_leaves_the_snapshot_in_use(
    bench: Bench, gate: Callable[[str], Gate]
) -> None:
    """The window that remains (snapshot_files.py): the lock closes it while the call hangs."""
    snapshot = bench.make()
    store, mark = gate("write_store"), gate("mark_broken")
    assert bench.write(0, b"new", snapshot) < BUDGET_S + LATE_S
    assert mark.entered.is_set()
    breaks(snapshot, BreakReason.TOO_SLOW)
    assert snapshot._settled.is_set(), "the next writes do not wait for the mark again"
    files = SnapshotFiles(bench.folder / "s1", None)
    with pytest.raises(BlockingIOError):
        files.open()
    mark.opened.set()
    store.opened.set()
    assert bench.is_told.wait(30)
    assert files.broken_reason() is BreakReason.TOO_SLOW


def test_no_writer_goes_on_before_the_break_is_noted(
    bench: Bench, gate: Callable[[str], Gate]
) -> None:
    """B meets a snapshot that A is just breaking: were B let through, a crash would leave a wrong snapshot."""
    snapshot = bench.make(budget_s=60.0)
    mark = gate("mark_broken")
    snapshot._break(BreakReason.STORE_ERROR)
    assert mark.entered.wait(30)
    is_through = threading.Event()

    def writer() -> None:
        snapshot.save_before(0, 512)
        is_through.set()

    thread = threading.Thread(target=writer)
    thread.start()
    assert not is_through.wait(0.05)
    mark.opened.set()
    assert is_through.wait(30)
    thread.join()


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        ("write_store", errno.ENOSPC, BreakReason.STORE_FULL),
        ("write_store", errno.EDQUOT, BreakReason.STORE_FULL),
        ("write_store", errno.EIO, BreakReason.STORE_ERROR),
        ("append_journal", errno.ENOSPC, BreakReason.STORE_FULL),
        ("append_journal", errno.EIO, BreakReason.STORE_ERROR),
        ("write_store", None, BreakReason.STORE_ERROR),
    ],
)
def test_a_failing_store_breaks_the_snapshot_and_not_the_write(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int | None,
    reason: BreakReason,
) -> None:
    snapshot = bench.make(budget_s=60.0)
    bench.write(9 * G, b"saved", snapshot)

    def fail(*_: Any) -> None:
        raise ValueError("a bug") if code is None else OSError(code, os.strerror(code))

    monkeypatch.setattr(SnapshotFiles, call, fail)
    bench.write(0, b"new", snapshot)
    assert read(bench.live, 0, 4) == b"new\x01"
    breaks(snapshot, reason)
    assert bench.is_told.wait(30)
    assert bench.told == [reason.value]
    monkeypatch.undo()
    snapshot.close()
    breaks(bench.reopen(), reason)


def test_a_full_file_system_breaks_the_snapshot_as_full(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={4 * G}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        snapshot = bench.make("full/s1", budget_s=60.0)
        bench.write(0, b"x" * 2 * G, snapshot)
        assert snapshot.state is State.ACTIVE
        bench.write(0, b"x" * SIZE, snapshot)
        breaks(snapshot, BreakReason.STORE_FULL)
        assert read(bench.live, 0, SIZE) == b"x" * SIZE
        snapshot.close()
        again = bench.reopen("full/s1")
        breaks(again, BreakReason.STORE_FULL)
        again.release()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_reserve_is_never_exceeded(bench: Bench) -> None:
    snapshot = bench.make(reserve_bytes=3 * G, budget_s=60.0)
    bench.write(0, b"x" * 2 * G, snapshot)
    assert snapshot.state is State.ACTIVE
    assert snapshot.used_bytes < snapshot.reserve_bytes
    bench.write(2 * G, b"x", snapshot)
    breaks(snapshot, BreakReason.RESERVE_USED_UP)
    files = ("journal", "store")
    assert sum((bench.folder / "s1" / name).stat().st_size for name in files) <= 3 * G


def test_old_content_that_cannot_be_read_breaks_the_snapshot(bench: Bench) -> None:
    faults = [Fault(call="read", start_byte=5 * G, end_byte=6 * G, times=99)]
    snapshot = bench.make(live=FaultyDevice(bench.live, faults), budget_s=60.0)
    bench.write(0, b"x", snapshot)
    assert snapshot.state is State.ACTIVE
    bench.write(5 * G, b"x", snapshot)
    breaks(snapshot, BreakReason.LIVE_ERROR)


def test_a_snapshot_that_breaks_while_it_is_read_is_an_error(bench: Bench) -> None:
    """The reader has read new content when the break comes: it must not hand it out."""

    class Racing(FileDevice):
        def read_into(self, byte_address: int, buffer: memoryview) -> None:
            snapshot._break(BreakReason.TOO_SLOW)
            bench.live.write(0, memoryview(b"new"))
            super().read_into(byte_address, buffer)

    live = Racing(bench.folder / "live", block_bytes=512)
    snapshot = bench.make(live=live)
    reader = snapshot.reader()
    with pytest.raises(DeviceError, match="too-slow"):
        read(reader, 0, 512)
    reader.close()
    live.close()


def test_an_answer_without_a_save_breaks_the_snapshot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the worker did: a write never goes on unsaved under a snapshot that is still good."""
    snapshot = bench.make(budget_s=60.0)
    monkeypatch.setattr(snapshot, "_save_all", lambda *_: None)
    bench.write(0, b"x", snapshot)
    assert snapshot.state is State.BROKEN


def test_a_listener_that_fails_harms_nobody(bench: Bench) -> None:
    def fail(_reason: str) -> None:
        bench.is_told.set()
        raise ValueError("a bug")

    snapshot = bench.make(reserve_bytes=0, on_broken=fail)
    bench.write(0, b"x", snapshot)
    assert bench.is_told.wait(30)
    breaks(snapshot, BreakReason.RESERVE_USED_UP)


# --- restarts ------------------------------------------------------------------------------------


def test_a_snapshot_goes_on_after_a_restart_of_the_process(bench: Bench) -> None:
    snapshot = bench.make(protected=[(0, 20 * G)])
    bench.write(3 * G, b"x" * 2 * G, snapshot)
    snapshot.close()
    again = bench.reopen()
    assert (again.state, again.view) == (State.ACTIVE, "view-s1")
    assert again.reserve_bytes == RESERVE
    assert again.used_bytes == snapshot.used_bytes
    bench.write(0, b"y" * SIZE, again)
    again.close()
    third = bench.reopen()
    reader = third.reader()
    assert read(reader, 0, 20 * G) == bench.old[: 20 * G]
    reader.close()


def test_a_snapshot_does_not_outlive_the_machine(bench: Bench) -> None:
    bench.make().close()
    other = bench.reopen(boot_id="boot-2", budget_s=1000.0)
    breaks(other, BreakReason.MACHINE_RESTARTED)
    bench.write(0, b"x", other)  # would wait for the budget if it waited at all
    other.close()
    # Not even when the identifier comes back: the volume was written meanwhile.
    breaks(bench.reopen(), BreakReason.MACHINE_RESTARTED)


def test_a_torn_save_is_forgotten_and_its_place_used_again(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x", snapshot)
    snapshot.close()
    journal = bench.folder / "s1" / "journal"
    whole = journal.read_bytes()
    for cut in range(1, ENTRY_BYTES):
        journal.write_bytes(whole + b"\x55" * cut)
        again = bench.reopen()
        again.close()
        assert again.state is State.ACTIVE
        assert journal.read_bytes() == whole
    journal.write_bytes(whole + b"\x55")
    again = bench.reopen()
    bench.write(0, b"y" * SIZE, again)
    again.close()
    assert content(bench.reopen()) == bench.old


def test_a_damaged_journal_breaks_the_snapshot_for_good(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x", snapshot)
    snapshot.close()
    journal = bench.folder / "s1" / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = bench.reopen()
    breaks(again, BreakReason.JOURNAL_DAMAGED)
    again.close()
    journal.write_bytes(whole)
    breaks(bench.reopen(), BreakReason.JOURNAL_DAMAGED)


@pytest.mark.parametrize("name", ["journal", "store", "s1.intact"])
def test_a_missing_file_breaks_the_snapshot(bench: Bench, name: str) -> None:
    snapshot = bench.make()
    bench.write(0, b"x", snapshot)
    snapshot.close()
    (bench.folder / "s1" / name).unlink()
    again = bench.reopen()
    assert again.state is State.BROKEN
    breaks(again, again.reason or BreakReason.RELEASED)


def test_a_store_that_was_cut_breaks_the_snapshot(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x" * 2 * G, snapshot)
    snapshot.close()
    os.truncate(bench.folder / "s1" / "store", 2 * G - 1)
    breaks(bench.reopen(), BreakReason.STORE_ERROR)


def test_a_volume_of_another_size_breaks_the_snapshot(bench: Bench) -> None:
    bench.make().close()
    make_sparse_file(bench.folder / "other", size_bytes=SIZE + G)
    other = FileDevice(bench.folder / "other", block_bytes=512)
    breaks(bench.reopen(live=other), BreakReason.OTHER_VOLUME)
    other.close()


def test_a_snapshot_that_another_process_holds_is_broken_for_both(bench: Bench) -> None:
    snapshot = bench.make()
    breaks(bench.reopen(), BreakReason.IN_USE)
    snapshot.close()
    assert bench.reopen().state is State.BROKEN


def test_a_write_after_closing_breaks_the_snapshot(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x", snapshot)
    snapshot.close()
    bench.write(0, b"x", snapshot)
    assert snapshot.state is State.ACTIVE, "this one was saved before"
    bench.write(G, b"x", snapshot)
    assert snapshot.state is State.BROKEN
    breaks(bench.reopen(), BreakReason.CLOSED)


def test_marks_may_lie_elsewhere_and_are_believed_alone(bench: Bench, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    snapshot = bench.make(marks=marks)
    bench.write(0, b"x", snapshot)
    snapshot.close()
    again = bench.reopen(marks=marks)
    assert content(again) == bench.old
    again.close()
    (marks / "s1.intact").unlink()
    lost = bench.reopen(marks=marks)
    breaks(lost, BreakReason.UNKNOWN)
    lost.release()
    again.release()
    assert list(marks.iterdir()) == []


WRITER = """
import os, sys, threading
from pathlib import Path
from backplane.ids import ViewId
from storage_node.disk.file import FileDevice
from storage_node.disk.snapshots import Snapshot

folder = Path(sys.argv[1])
live = FileDevice(folder / "live", block_bytes=512)
snapshot = Snapshot.create(
    folder / "s1", view=ViewId("view-s1"), live=live, protected=None, reserve_bytes=1 << 30,
    budget_s=60.0, boot_id="boot-1", on_broken=print,
)

def write(turn):
    while True:
        turn = (turn * 1103515245 + 12345) % (1 << 31)
        start = turn % (live.size_bytes - 5000)
        snapshot.save_before(start, start + 5000)
        live.write(start, memoryview(bytes([128 + turn % 100]) * 5000))
        if snapshot.used_bytes > int(sys.argv[2]):
            os.write(1, b"killed here\\n")

threading.Thread(target=write, args=(1,), daemon=True).start()
write(2)
"""


@pytest.mark.parametrize("granules", [0, 3, 10, 25])
def test_a_killed_process_leaves_a_snapshot_that_is_right(bench: Bench, granules: int) -> None:
    """D8: SIGKILL among writes, each of which may be at any of its steps."""
    command = [sys.executable, "-c", WRITER, str(bench.folder), str(granules * G + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"killed here\n"
        child.kill()
    snapshot = bench.reopen()
    assert snapshot.state is State.ACTIVE
    assert snapshot.used_bytes > granules * G
    assert content(snapshot) == bench.old
    bench.write(0, b"z" * SIZE, snapshot)
    assert content(snapshot) == bench.old


# --- ending --------------------------------------------------------------------------------------


def test_release_frees_everything_and_ends_the_readers(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x" * SIZE, snapshot)
    reader = snapshot.reader()
    found = reader.file_range(0, SIZE)
    assert found is not None
    snapshot.release()
    snapshot.release()
    assert not (bench.folder / "s1").exists()
    with pytest.raises(DeviceError, match="released"):
        read(reader, 0, 1)
    # The descriptor still belongs to the (now empty) store, and not to the next file that is opened.
    assert os.pread(found.descriptor, 10, found.offset) == b""
    reader.close()
    assert bench.told == []
    bench.write(0, b"y" * SIZE, snapshot)
    with pytest.raises(NotFoundError):
        bench.reopen()


def test_release_with_a_store_that_hangs_cleans_up_behind_the_caller(
    bench: Bench, gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_node.disk.snapshots._RELEASE_S", 0.05)
    snapshot = bench.make()
    store = gate("write_store")
    bench.write(0, b"x", snapshot)
    snapshot.release()
    assert (bench.folder / "s1").exists()
    store.opened.set()
    assert snapshot._removed.wait(30)
    assert not (bench.folder / "s1").exists()


def test_a_thousand_snapshots_leave_no_space_behind(bench: Bench) -> None:
    before = sorted(bench.folder.iterdir())
    for turn in range(1000):
        reserve = RESERVE if turn % 3 else G
        snapshot = bench.make(f"s{turn}", reserve_bytes=reserve)
        bench.write(turn % GRANULES * G // 2, b"x" * 2 * G, snapshot)
        if turn % 5 == 0:
            snapshot.close()
            snapshot = bench.reopen(f"s{turn}", boot_id=f"boot-{1 + turn % 2}")
        snapshot.release()
        bench.snapshots.clear()
    assert sorted(bench.folder.iterdir()) == before
    assert list_snapshots(bench.folder) == []


def test_a_snapshot_is_never_made_over_another(bench: Bench) -> None:
    snapshot = bench.make()
    with pytest.raises(RefusedError):
        bench.make()
    assert content(snapshot) == bench.old


def test_a_snapshot_that_cannot_be_made_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SnapshotFiles, "append_journal", fail)
    with pytest.raises(BackupError):
        bench.make()
    with pytest.raises(BackupError):
        bench.make("no/such/folder")
    assert not (bench.folder / "s1").exists()


def test_the_snapshot_is_a_block_device(bench: Bench) -> None:
    """mypy checks the assignment."""
    reader: BlockDevice = bench.make().reader()
    assert (reader.size_bytes, reader.block_bytes) == (SIZE, 512)
    reader.close()


# --- narrowing -----------------------------------------------------------------------------------


def stored_bytes(bench: Bench, name: str = "s1") -> int:
    return (bench.folder / name / "store").stat().st_size


def test_what_nobody_will_read_is_not_saved_any_more(bench: Bench) -> None:
    snapshot = bench.make()
    bench.write(0, b"x" * G, snapshot)
    snapshot.narrow([(4 * G + 5, 6 * G)])
    bench.write(10 * G, b"x" * G, snapshot)
    assert stored_bytes(bench) == G
    bench.write(5 * G, b"x" * G, snapshot)
    assert stored_bytes(bench) == 2 * G
    reader = snapshot.reader()
    assert read(reader, 4 * G, 2 * G) == bench.old[4 * G : 6 * G]
    assert read(reader, 0, G) == bench.old[:G]
    for address in (10 * G, 20 * G):
        with pytest.raises(DeviceError, match="does not protect"):
            read(reader, address, 512)
    reader.close()
    assert snapshot.state is State.ACTIVE


def test_a_narrowed_snapshot_is_found_narrowed(bench: Bench) -> None:
    snapshot = bench.make()
    snapshot.narrow([(4 * G, 6 * G)])
    snapshot.narrow([(4 * G, 6 * G)])
    bench.write(10 * G, b"x" * G, snapshot)
    snapshot.close()
    again = bench.reopen()
    assert again.state is State.ACTIVE
    reader = again.reader()
    assert read(reader, 4 * G, 2 * G) == bench.old[4 * G : 6 * G]
    with pytest.raises(DeviceError, match="does not protect"):
        read(reader, 10 * G, 512)
    reader.close()


def test_a_snapshot_that_is_no_good_is_not_narrowed(bench: Bench) -> None:
    snapshot = bench.make(reserve_bytes=1)
    bench.write(0, b"x", snapshot)
    with pytest.raises(DeviceError, match="broken"):
        snapshot.narrow([])
    closed = bench.make("s2")
    closed.close()
    with pytest.raises(BackupError):
        closed.narrow([])


def test_a_snapshot_without_room_for_the_news_stays_as_it_was(bench: Bench) -> None:
    snapshot = bench.make(reserve_bytes=600)
    with pytest.raises(BackupError, match="no room"):
        snapshot.narrow([(index * 2 * G, index * 2 * G + 1) for index in range(GRANULES // 2)])
    assert snapshot.state is State.ACTIVE
    assert content(snapshot) == bench.old


def test_a_journal_that_cannot_be_written_breaks_the_snapshot_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = bench.make()

    def fail(_self: SnapshotFiles, _entries: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(SnapshotFiles, "append_journal", fail)
    with pytest.raises(BackupError, match="cannot be narrowed"):
        snapshot.narrow([(0, G)])
    breaks(snapshot, BreakReason.STORE_ERROR)


def test_writers_and_narrowing_at_once_lose_nothing_that_is_kept(bench: Bench) -> None:
    snapshot = bench.make()
    kept = (8 * G, 12 * G)

    def write_all() -> None:
        for granule in range(GRANULES):
            bench.write(granule * G, b"z" * G, snapshot)

    writer = threading.Thread(target=write_all)
    writer.start()
    snapshot.narrow([kept])
    writer.join()
    reader = snapshot.reader()
    assert read(reader, kept[0], kept[1] - kept[0]) == bench.old[kept[0] : kept[1]]
    reader.close()
