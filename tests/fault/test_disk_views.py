"""The faults of a disk node's static views and mirrors, row by row (D1 to D14, D18, D19), with a node that really runs.

Each test is named after its row.  D2 (the boundaries of quiet) has no test here: a real clock never stops at 80.0 s; it
is a property of the core.  The power of the machine is not cut either: a node that finds another boot id of the kernel
has to believe that it was, whatever the page cache still has (D8, D13).
"""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from backplane.ids import JobId, ViewId
from backplane.testing.cluster import LocalCluster
from backplane.testing.nbd_client import NbdClient, NbdError, NbdOptionError, connect, nbd_uri
from backplane.testing.nbd_words import Command
from backplane.units import KIB, MIB
from backplane.wire.messages import (
    LegState,
    ViewCreate,
    ViewExtents,
    ViewMember,
    ViewState,
    VolumeDelete,
)
from tests.site.disk_process import DAY_S, WAIT_S, DiskProcess, volume_id

pytestmark = [pytest.mark.processes, pytest.mark.fault]

VIEW = ViewId("33" * 16)
OTHER_VIEW = ViewId("44" * 16)
THIRD_VIEW = ViewId("55" * 16)
OTHER_BOOT = "00000000-0000-4000-8000-000000000001"
PAGE = 4 * KIB
GRANULE = 64 * KIB
PATIENCE_S = 5.0
"""What no write of a workstation may take; the budget of a snapshot is 0.2 s, the rest is for a busy machine."""

HANG = "delay_enter=60000000"
"""Longer than any test waits, in microseconds; strace lets the call go when it leaves."""


def works(*command: str) -> bool:
    """Say whether a program is there and may do what it is for."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=WAIT_S).returncode == 0


needs_strace = pytest.mark.skipif(
    not works("strace", "-o", "/dev/null", "-e", "inject=getppid:error=EIO", "true"),
    reason="needs strace, and the permission to trace",
)
needs_mounts = pytest.mark.skipif(
    not works("unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"),
    reason="needs unshare and mount, and the permission to mount",
)


def content(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def numbered(number: int) -> bytes:
    """Return a page that says in every word which write it is from."""
    return struct.pack(">Q", number) * (PAGE // 8)


@pytest.fixture
def node(short_folder: Path) -> Iterator[DiskProcess]:
    with DiskProcess(short_folder) as made:
        yield made


@pytest.fixture
def filled(node: DiskProcess) -> bytes:
    """Volume `a`, full of random bytes; returns them."""
    data = content(1, 4 * MIB)
    node.make("a", size_bytes=len(data))
    with node.nbd("a") as workstation:
        workstation.write(0, data)
        workstation.flush()
    return data


def whole(client: NbdClient) -> bytes:
    return b"".join(
        client.read(at, min(MIB, client.size_bytes - at)) for at in range(0, client.size_bytes, MIB)
    )


def exported(node: DiskProcess, name: str) -> bytes:
    with node.nbd(name) as client:
        return whole(client)


class Writer:
    """A workstation that writes as fast as it is served, or with pauses, until it is told to stop.

    `write` is called with 1, 2, 3...; what it raises is raised again by the end of the block.
    """

    def __init__(self, write: Callable[[int], None], *, pause_s: float = 0.0) -> None:
        self._write = write
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workstation")
        self.count = 0
        self.longest_s = 0.0
        self.error: Exception | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                begun = time.monotonic()
                self._write(self.count + 1)
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
                self.count += 1
                self._first.set()
                self._stop.wait(self._pause_s)
        except (OSError, EOFError, NbdError) as error:
            self.error = error
        finally:
            self._first.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._first.wait(WAIT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if kind is None and self.error is not None:
            raise self.error

    def loses_its_server(self) -> None:
        """Wait for the error that the next write meets, which is as it should be."""
        self._thread.join(WAIT_S)
        assert isinstance(self.error, EOFError | OSError), self.error
        self.error = None

    def stop(self) -> None:
        """Stop; twice is once."""
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


class Pipeline:
    """Writes pages in a ring with many requests on their way; page i holds the number of the write that was last there.

    So the content of the ring at an instant follows from one number alone: how many writes were before it.
    """

    DEPTH = 16
    PAGES = 256

    def __init__(self, client: NbdClient) -> None:
        self._client = client
        self._pending: deque[int] = deque()
        self.sent = 0
        self.answered = 0

    def write(self, number: int) -> None:
        if len(self._pending) == self.DEPTH:
            self.settle()
        address = (number - 1) % self.PAGES * PAGE
        # Counted before: "at most so many can have arrived" must never be too low.
        self.sent += 1
        cookie = self._client.send(Command.WRITE, address, PAGE, data=numbered(number))
        self._pending.append(cookie)

    def settle(self) -> None:
        """Wait for the oldest answer."""
        reply = self._client.wait(self._pending.popleft())
        assert not reply.error
        self.answered += 1

    def finish(self) -> None:
        while self._pending:
            self.settle()

    @classmethod
    def content_after(cls, writes: int) -> bytes:
        pages = [bytes(PAGE)] * cls.PAGES
        for number in range(max(1, writes - cls.PAGES + 1), writes + 1):
            pages[(number - 1) % cls.PAGES] = numbered(number)
        return b"".join(pages)


def writes_in(ring: bytes) -> int:
    return max(struct.unpack_from(">Q", ring, at)[0] for at in range(0, len(ring), PAGE))


# --- waiting for quiet ---------------------------------------------------------------------------


def test_d1_a_volume_that_is_never_quiet_has_no_view_and_its_workstation_notices_nothing(
    node: DiskProcess,
) -> None:
    node.make("a", size_bytes=MIB)
    with node.nbd("a") as client:
        with Writer(lambda n: client.write(0, numbered(n)), pause_s=0.05) as writer:
            asked = time.monotonic()
            failed = node.refused(
                ViewCreate, **node.view_fields("a", VIEW, quiet_s=1.5, timeout_s=2.0)
            )
            took_s = time.monotonic() - asked
        assert failed.error == "not-quiet", failed
        assert "no 1.5 s without writes within 2 s" in failed.reason
        assert 2.0 <= took_s < 2.0 + PATIENCE_S
        assert writer.longest_s < PATIENCE_S
        assert node.exports() == ["a"]
        assert node.snapshot_files() == []
        # No gate is left closed, and the next view is made as if nothing had been.
        client.write(0, numbered(0))
        assert node.view("a", OTHER_VIEW).state == "active"


def test_d3_d4_a_view_between_pipelined_writes_has_each_wholly_or_not_at_all(
    node: DiskProcess,
) -> None:
    """
    workstation   --w1--w2--w3--w4--w5-->           sixteen on their way at any time
    node          --w1--w2--|view|--w3-->           what was answered before the view was asked for is in it
    """
    node.make("a", size_bytes=Pipeline.PAGES * PAGE)
    with node.nbd("a") as client:
        pipeline = Pipeline(client)
        with Writer(pipeline.write):
            for number in range(8):
                view = ViewId(f"{number:032x}")
                at_least = pipeline.answered
                assert node.view("a", view).state == "active"
                at_most = pipeline.sent
                ring = exported(node, f"a@{view}")
                writes = writes_in(ring)
                assert at_least <= writes <= at_most
                assert ring == Pipeline.content_after(writes)
                assert exported(node, f"a@{view}") == ring, "a view that changes"
                node.release(view)
        pipeline.finish()
        assert pipeline.answered > 8 * Pipeline.DEPTH
        assert whole(client) == Pipeline.content_after(pipeline.answered)
    assert node.snapshot_files() == []


# --- the store of a snapshot ---------------------------------------------------------------------


@needs_strace
def test_d5_a_flush_that_fails_before_the_view_is_told_and_there_is_no_view(
    node: DiskProcess, filled: bytes
) -> None:
    node.make("b", size_bytes=MIB)
    data = node.describe("a").path
    with node.nbd("a") as client, node.nbd("b") as other:
        client.write(0, content(2, PAGE))
        with node.injecting("fdatasync:error=EIO:when=1", Path(data)):
            group = (ViewMember(view=OTHER_VIEW, volume=volume_id("b")),)
            failed = node.refused(ViewCreate, **node.view_fields("a", VIEW, group=group))
        assert "cannot flush: Input/output error" in failed.reason
        assert node.exports() == ["a", "b"]
        assert node.snapshot_files() == []
        # The next fdatasync would succeed and prove nothing: what was to be written may be gone.
        with pytest.raises(NbdError, match="takes no writes"):
            client.write(0, content(3, PAGE))
        with pytest.raises(NbdError, match="EIO"):
            client.flush()
        assert client.read(PAGE, PAGE) == filled[PAGE : 2 * PAGE]
        other.write(0, content(3, PAGE))
        other.flush()


@needs_strace
@pytest.mark.parametrize("place", [f".{VIEW}.json.new", "."])
def test_d5_a_record_that_cannot_be_made_durable_ends_the_node_and_no_view_is_good_afterwards(
    node: DiskProcess, filled: bytes, place: str
) -> None:
    """The record itself, or its name in the folder: then it may be there at the next start, but nobody was told."""
    with node.injecting("fsync:error=EIO", node.state / "views" / place):
        request = node.post(ViewCreate, **node.view_fields("a", VIEW))
        assert node.child is not None
        assert node.child.wait(timeout_s=WAIT_S) not in (None, 0), node.log()
    assert "the node has to stop" in node.log()
    views = node.start().views
    assert not node.has_answered(request)
    assert [view.state for view in views] == ([] if place != "." else ["broken"])
    node.release(VIEW)
    assert node.snapshot_files() == []
    assert exported(node, "a") == filled
    with node.nbd("a") as client:
        client.write(0, content(2, PAGE))


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """Put a small file system over a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def broken_view(node: DiskProcess, name: str = "a") -> ViewState:
    """Return the view when the node tells that it is broken."""
    return node.wait_until(
        lambda: found if (found := node.view(name, VIEW)).state == "broken" else None,
        what="the view to break",
    )


def assert_broken(node: DiskProcess, reason: str) -> None:
    assert broken_view(node).reason == reason
    with node.nbd(f"a@{VIEW}") as reader, pytest.raises(NbdError, match="EIO") as refused:
        reader.read(0, PAGE)
    assert reason in str(refused.value)


@needs_mounts
def test_d6_a_snapshot_whose_store_is_full_breaks_and_every_live_write_succeeds(
    node: DiskProcess, filled: bytes
) -> None:
    del filled
    with tmpfs(node.state / "snapshots", "512k"):
        assert node.view("a", VIEW).state == "active"
        wanted = content(2, 4 * MIB)
        longest_s = 0.0
        with node.nbd("a") as client:
            for at in range(0, len(wanted), GRANULE):
                begun = time.monotonic()
                client.write(at, wanted[at : at + GRANULE])
                longest_s = max(longest_s, time.monotonic() - begun)
            assert whole(client) == wanted
        assert longest_s < PATIENCE_S
        assert_broken(node, "store-full")
        node.release(VIEW)
        assert node.snapshot_files() == []


@needs_strace
@pytest.mark.parametrize(
    ("fault", "reason"),
    [(f"pwrite64:{HANG}", "too-slow"), ("pwrite64:error=EIO", "store-error")],
)
def test_d7_a_snapshot_whose_store_is_slow_or_bad_breaks_within_the_budget_of_the_write(
    node: DiskProcess, filled: bytes, fault: str, reason: str
) -> None:
    node.view("a", VIEW)
    store = node.state / "snapshots" / VIEW / "store"
    wanted = content(2, PAGE)
    with node.nbd("a") as client:
        client.write(
            MIB, content(3, PAGE)
        )  # saved while the store is well: the view has it, and is lost all the same
        with node.injecting(fault, store):
            begun = time.monotonic()
            client.write(0, wanted)
            assert time.monotonic() - begun < PATIENCE_S
            assert_broken(node, reason)
            # The next writes have nobody to wait for.
            begun = time.monotonic()
            for at in range(0, MIB, GRANULE):
                client.write(at, wanted)
            assert time.monotonic() - begun < PATIENCE_S
        assert client.read(0, PAGE) == wanted
        assert client.read(PAGE, PAGE) == filled[PAGE : 2 * PAGE]
    node.release(VIEW)
    node.wait_until(lambda: node.snapshot_files() == [], what="the files to go")


# --- crashes -------------------------------------------------------------------------------------


class Ledger:
    """Writes numbered pages anywhere and remembers what was answered."""

    def __init__(self, client: NbdClient, *, pages: int, flush_every: int = 16) -> None:
        self._client = client
        self._chance = random.Random(7)
        self._pages = pages
        self._flush_every = flush_every
        self.answered: dict[int, int] = {}
        self.asked: dict[int, set[int]] = {}
        self.durable: dict[int, int] = {}

    def write(self, number: int) -> None:
        page = self._chance.randrange(self._pages)
        self.asked.setdefault(page, set()).add(number)
        self._client.write(page * PAGE, numbered(number))
        self.answered[page] = number
        if number % self._flush_every == 0:
            self._client.flush()
            self.durable = dict(self.answered)

    def assert_in(self, found: bytes, before: bytes) -> None:
        """A page has its last flushed write or a later one, and is whole; pages never written are as before."""
        for page in range(self._pages):
            data = found[page * PAGE : (page + 1) * PAGE]
            possible = {before[page * PAGE : (page + 1) * PAGE]}
            if page in self.durable:
                possible.clear()
            least = self.durable.get(page, 0)
            possible |= {numbered(n) for n in self.asked.get(page, ()) if n >= least}
            assert data in possible, f"page {page} has none of the contents that it may have"


def crash_while_writing(node: DiskProcess, writes: int) -> Ledger:
    """Kill the node while a workstation writes and flushes; returns what it was told."""
    client = node.nbd("a")
    ledger = Ledger(client, pages=4 * MIB // PAGE)
    try:
        with Writer(ledger.write) as writer:
            node.wait_until(lambda: writer.count >= writes, what="writes")
            node.kill()
            writer.loses_its_server()
    finally:
        client.close()
    assert ledger.durable
    return ledger


def test_d8_a_snapshot_survives_a_killed_node_with_writes_under_way(
    node: DiskProcess, filled: bytes
) -> None:
    node.view("a", VIEW)
    for _ in range(2):
        before = exported(node, "a")
        ledger = crash_while_writing(node, writes=200)
        [found] = node.start().views
        assert (found.view, found.state, found.reason) == (VIEW, "active", "")
        assert exported(node, f"a@{VIEW}") == filled
        ledger.assert_in(exported(node, "a"), before)
    with node.nbd("a") as client:
        client.write(0, content(2, 4 * MIB))
    assert exported(node, f"a@{VIEW}") == filled
    node.release(VIEW)
    assert node.snapshot_files() == []


@needs_mounts
def test_d8_a_snapshot_is_broken_after_the_machine_has_crashed_and_never_a_mixture(
    node: DiskProcess, filled: bytes
) -> None:
    node.view("a", VIEW)
    ledger = crash_while_writing(node, writes=50)
    [found] = node.start(boot=OTHER_BOOT).views
    assert (found.state, found.reason) == ("broken", "machine-restarted")
    assert_broken(node, "machine-restarted")
    ledger.assert_in(exported(node, "a"), filled)
    node.release(VIEW)
    assert node.snapshot_files() == []


def test_d14_each_page_is_old_or_new_after_a_crash_and_what_was_flushed_is_there(
    node: DiskProcess, filled: bytes
) -> None:
    ledger = crash_while_writing(node, writes=300)
    node.start()
    ledger.assert_in(exported(node, "a"), filled)


# --- views that nobody releases ------------------------------------------------------------------


def test_d9_a_view_whose_controller_is_gone_is_released_by_its_node_when_its_time_is_over(
    node: DiskProcess, filled: bytes
) -> None:
    node.view("a", VIEW, ttl_s=1.0)
    node.view("a", OTHER_VIEW, ttl_s=DAY_S)
    node.controller_dies()
    with node.nbd("a") as client, node.nbd(f"a@{VIEW}") as reader:
        client.write(0, content(2, PAGE))
        node.wait_until(lambda: f"a@{VIEW}" not in node.exports(), what="the view to end")
        # Its reader gets nothing at all, above all not what is in the volume now.
        with pytest.raises(NbdError, match="EIO"):
            reader.read(0, PAGE)
    assert node.exports() == ["a", f"a@{OTHER_VIEW}"]
    assert exported(node, f"a@{OTHER_VIEW}") == filled
    assert not [path for path in node.snapshot_files() if VIEW in path]
    assert "a static view has outlived its time" in node.log()


def test_d9_a_view_that_its_controller_does_not_know_is_in_the_inventory_and_its_time_goes_on(
    node: DiskProcess, filled: bytes
) -> None:
    del filled
    node.view("a", VIEW, ttl_s=1.0, job=JobId(7))
    node.kill()
    [orphan] = node.start().views
    assert (orphan.view, orphan.job, orphan.state) == (VIEW, 7, "active")
    node.inventory(lambda inventory: not inventory.views)
    assert node.exports() == ["a"]
    assert node.snapshot_files() == []


def test_d10_views_that_come_and_go_with_crashes_between_leave_nothing(
    node: DiskProcess, filled: bytes
) -> None:
    del filled

    def cycle(number: int, client: NbdClient) -> None:
        view = ViewId(f"{number:032x}")
        node.view("a", view)
        client.write(number % 64 * GRANULE, content(number, PAGE))
        node.release(view)

    def descriptors() -> int:
        return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))

    def used() -> int:
        return sum(path.stat().st_blocks for path in (node.state / "snapshots").rglob("*"))

    number = 0
    for _ in range(3):
        with node.nbd("a") as client:
            cycle(number := number + 1, client)
            before = descriptors()
            for _ in range(30):
                cycle(number := number + 1, client)
            node.wait_until(lambda before=before: descriptors() <= before, what="closed files")  # type: ignore[misc]
        assert node.snapshot_files() == []
        # A crash between the making of a snapshot and its record: the next start sweeps it away.
        node.view("a", VIEW)
        node.kill()
        for record in (node.state / "views").glob("*.json"):
            record.unlink()
        assert node.start().views == ()
        assert (node.snapshot_files(), used()) == ([], 0)


# --- the backup mirror ---------------------------------------------------------------------------


def leg_of(node: DiskProcess) -> LegState:
    [leg] = node.describe("a").legs
    return leg


def wait_for_leg(node: DiskProcess, state: str) -> None:
    node.wait_until(lambda: leg_of(node).state == state, what=f"the leg to be {state}")


def leg_path(node: DiskProcess) -> Path:
    """Return where the node puts leg b of volume a, also before it is there."""
    volume = volume_id("a")
    return node.state / "volumes" / volume / "legs" / f"{volume}-b.img"


SLOW_LEG = "pwrite64,pwritev,fallocate:delay_enter=300000"


@needs_strace
def test_d11_a_leg_that_is_not_in_sync_is_not_split(node: DiskProcess, filled: bytes) -> None:
    with node.injecting(SLOW_LEG, leg_path(node)):
        node.mirror("a", "add")
        refused = node.refused(ViewCreate, **node.view_fields("a", VIEW, means="mirror"))
        assert "b is resynchronising" in refused.reason
        assert leg_of(node).state == "resynchronising"
    wait_for_leg(node, "in-sync")
    assert node.view("a", VIEW, means="mirror").means == "mirror"
    with node.nbd("a") as client:
        client.write(0, content(2, MIB))
    assert exported(node, f"a@{VIEW}") == filled
    refused = node.refused(ViewCreate, **node.view_fields("a", OTHER_VIEW, means="mirror"))
    assert "b is split" in refused.reason
    with node.injecting(SLOW_LEG, leg_path(node)):
        node.release(VIEW)
        refused = node.refused(ViewCreate, **node.view_fields("a", OTHER_VIEW, means="mirror"))
        assert "b is resynchronising" in refused.reason
    wait_for_leg(node, "in-sync")
    assert node.view("a", THIRD_VIEW, means="mirror").state == "active"
    assert exported(node, f"a@{THIRD_VIEW}") == exported(node, "a")


@needs_strace
def test_d12_a_leg_that_cannot_be_written_is_dropped_and_the_volume_goes_on(
    node: DiskProcess, filled: bytes
) -> None:
    node.mirror("a", "add")
    wait_for_leg(node, "in-sync")
    wanted = content(2, MIB)
    with node.nbd("a") as client:
        with node.injecting("pwrite64,pwritev:error=EIO", leg_path(node)):
            client.write(0, wanted)
            client.flush()
            assert client.read(0, MIB) == wanted
        assert leg_of(node).state == "failed"
        assert "Input/output error" in leg_of(node).reason
        refused = node.refused(ViewCreate, **node.view_fields("a", VIEW, means="mirror"))
        assert "b is failed" in refused.reason
        client.write(MIB, wanted)
    node.mirror("a", "resync")
    wait_for_leg(node, "in-sync")
    node.view("a", VIEW, means="mirror")
    assert exported(node, f"a@{VIEW}") == wanted * 2 + filled[2 * MIB :]


@needs_strace
def test_d12_a_split_leg_that_cannot_be_read_fails_its_readers_and_not_the_volume(
    node: DiskProcess, filled: bytes
) -> None:
    node.mirror("a", "add")
    wait_for_leg(node, "in-sync")
    node.view("a", VIEW, means="mirror")
    wanted = content(2, MIB)
    with node.nbd("a") as client, node.nbd(f"a@{VIEW}") as reader:
        with node.injecting("pread64,preadv,preadv2,splice,sendfile:error=EIO", leg_path(node)):
            with pytest.raises(NbdError, match="EIO"):
                reader.read(0, MIB)
            client.write(0, wanted)
            client.flush()
            assert client.read(0, 2 * MIB) == wanted + filled[MIB : 2 * MIB]
        assert whole(reader) == filled
    node.release(VIEW)
    wait_for_leg(node, "in-sync")
    node.view("a", OTHER_VIEW, means="mirror")
    assert exported(node, f"a@{OTHER_VIEW}") == wanted + filled[MIB:]


def crash_with_a_split_leg(node: DiskProcess, *, boot: str) -> None:
    """Split the leg, change a page, crash, change a byte of the leg where nobody else does, start again."""
    node.mirror("a", "add")
    wait_for_leg(node, "in-sync")
    node.view("a", VIEW, means="mirror")
    with node.nbd("a") as client:
        client.write(0, content(2, PAGE))
        client.flush()
    node.kill()
    with leg_path(node).open("r+b") as file:
        file.seek(3 * MIB)
        byte = file.read(1)
        file.seek(3 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    node.start(boot=boot)


@needs_mounts
def test_d13_a_map_of_changes_that_the_machine_has_lost_means_a_full_copy(
    node: DiskProcess, filled: bytes
) -> None:
    crash_with_a_split_leg(node, boot=OTHER_BOOT)
    assert broken_view(node).means == "mirror"
    node.release(VIEW)
    wait_for_leg(node, "in-sync")
    node.view("a", OTHER_VIEW, means="mirror")
    assert exported(node, f"a@{OTHER_VIEW}") == content(2, PAGE) + filled[PAGE:]


def test_d13_a_killed_process_loses_no_map_and_only_what_has_changed_is_copied(
    node: DiskProcess, filled: bytes
) -> None:
    crash_with_a_split_leg(node, boot="")
    assert node.view("a", VIEW).state == "active"
    assert exported(node, f"a@{VIEW}")[:MIB] == filled[:MIB]
    node.release(VIEW)
    wait_for_leg(node, "in-sync")
    node.view("a", OTHER_VIEW, means="mirror")
    found = exported(node, f"a@{OTHER_VIEW}")
    wanted = content(2, PAGE) + filled[PAGE:]
    # The byte that we changed behind the node's back is the proof: a full copy would have mended it.
    assert [at for at in range(len(wanted)) if found[at] != wanted[at]] == [3 * MIB]


# --- names ---------------------------------------------------------------------------------------


def test_d19_the_name_of_a_released_view_finds_nothing_ever_again(
    node: DiskProcess, filled: bytes
) -> None:
    unit = node.view("a", VIEW).designator
    reader = node.nbd(f"a@{VIEW}")
    try:
        node.release(VIEW)
        with node.nbd("a") as client:
            client.write(0, content(2, MIB))
        with pytest.raises(NbdError, match="EIO"):
            reader.read(0, PAGE)
        again = node.refused(ViewCreate, **node.view_fields("a", VIEW))
        assert (again.error, "was released" in again.reason) == ("not-found", True)
        asked = {"designator": unit, "start_lba": 0, "extents_max": 10}
        assert node.refused(ViewExtents, **asked).error == "not-found"
        with pytest.raises(NbdOptionError, match="no static view"):
            node.nbd(f"a@{VIEW}")
        node.view("a", OTHER_VIEW)
        with pytest.raises(NbdError, match="EIO"):
            reader.read(0, PAGE)
    finally:
        reader.close()
    assert exported(node, f"a@{OTHER_VIEW}") == content(2, MIB) + filled[MIB:]
    # A volume of the same name that comes later is another one.
    assert node.refused(VolumeDelete, volume=volume_id("a")).error == "busy"
    node.release(OTHER_VIEW)
    node.ask(VolumeDelete, volume=volume_id("a"))
    node.make("a", size_bytes=MIB)
    assert not any(exported(node, "a"))
    with pytest.raises(NbdOptionError, match="no static view"):
        node.nbd(f"a@{OTHER_VIEW}")


# --- what comes of it for a job ------------------------------------------------------------------


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    made = new_cluster()
    made.up()
    return made


def workstation(cluster: LocalCluster, name: str) -> NbdClient:
    return connect(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock", name))


def nothing_is_left(cluster: LocalCluster) -> bool:
    disk = cluster.state / "disk"
    folders = ("snapshots", "snapshot-marks", "views")
    return not [path for folder in folders for path in (disk / folder).iterdir()]


def test_d6_a_job_whose_snapshot_has_used_up_its_reserve_fails_and_says_so(
    cluster: LocalCluster,
) -> None:
    cluster.ctl("volume", "create", "vol", "--size", "80MiB")
    piece = content(1, 8 * MIB)
    with workstation(cluster, "vol") as client:
        for at in range(0, client.size_bytes, len(piece)):
            client.write(at, piece)
        cluster.kill("mover-1")
        number = cluster.submit("backup", "vol", "--inactivity", "0s")
        cluster.wait_until(lambda: cluster.job(number)["state"] == "copying", what="the view")
        # The least reserve is 64 MiB: all of the volume does not fit.
        newer = content(2, 8 * MIB)
        for at in range(0, client.size_bytes, len(newer)):
            client.write(at, newer)
        client.flush()
        cluster.up()
        job = cluster.wait_job(number)
        assert job["state"] == "failed", job
        assert "static view of volume vol is broken: reserve-used-up" in job["reason"], job[
            "reason"
        ]
        assert "is broken: reserve-used-up" in (cluster.state / "logs" / "disk.log").read_text()
        for at in range(0, client.size_bytes, len(newer)):
            assert client.read(at, len(newer)) == newer
    assert cluster.ctl("backup", "list")["backups"] == []
    cluster.wait_until(lambda: nothing_is_left(cluster), what="the view to go")


@pytest.mark.parametrize("is_down", [False, True], ids=["while it runs", "while it is down"])
def test_d18_a_block_that_has_rotted_is_told_and_never_copied_as_good(
    cluster: LocalCluster, is_down: bool
) -> None:
    cluster.ctl("volume", "create", "vol", "--size", "4MiB")
    image = content(1, 4 * MIB)
    with workstation(cluster, "vol") as client:
        client.write(0, image)
        client.flush()
    (data_file,) = (cluster.state / "disk" / "volumes").glob("*/data.img")
    if is_down:
        cluster.down()
    with data_file.open("r+b") as file:
        file.seek(3 * MIB + 5)
        file.write(bytes([image[3 * MIB + 5] ^ 1]))
    if is_down:
        cluster.up()
    number = cluster.submit("backup", "vol", "--inactivity", "0s")
    job = cluster.wait_job(number)
    assert job["state"] == "failed", job
    assert f"volume vol cannot be read at LBA {3 * MIB // 512}" in job["reason"], job["reason"]
    assert cluster.ctl("backup", "list")["backups"] == []
    # What is written anew is good again.
    with workstation(cluster, "vol") as client:
        client.write(3 * MIB, image[3 * MIB :])
        client.flush()
    assert cluster.finish("backup", "vol", "--inactivity", "0s")["state"] == "completed"


def test_d8_a_backup_goes_on_after_its_disk_node_was_killed_with_writes_under_way(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    """
    mover-1       --record 1..4--STOP..............CONT--record 5..12-->
    workstation      --write, write, write--| (its server is gone)
    disk                                  KILL  start
    """
    cluster = new_cluster()
    cluster.up(failpoints="mover.transfer:4=stop")
    image = content(1, 12 * MIB)
    cluster.ctl("volume", "create", "vol", "--size", "12MiB")
    client = workstation(cluster, "vol")
    try:
        client.write(0, image)
        client.flush()
        number = cluster.submit("backup", "vol", "--inactivity", "0s")
        mover = cluster.pid("mover-1")
        cluster.wait_until(lambda: is_stopped(mover), what="the mover to sleep")
        ledger = Ledger(client, pages=len(image) // PAGE)
        with Writer(ledger.write) as writer:
            cluster.wait_until(lambda: writer.count >= 300, what="writes")
            cluster.kill("disk")
            writer.loses_its_server()
    finally:
        client.close()
    cluster.send_signal("mover-1", signal.SIGCONT)
    cluster.up()
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    restored = cluster.finish("restore", "vol/latest", "--new", "copy")
    assert restored["state"] == "completed", restored
    assert cluster.volume_file("copy").read_bytes() == image
    ledger.assert_in(cluster.volume_file("vol").read_bytes(), image)
    cluster.wait_until(lambda: nothing_is_left(cluster), what="the view to go")


def is_stopped(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"
