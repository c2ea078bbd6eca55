"""Static views with real processes: a workstation writes over NBD, `ctl` backs up, and what is restored is one instant.

One cluster serves all tests.  Where a test needs a job that has its view and copies nothing yet, there is no mover
meanwhile (`held`).
"""

from __future__ import annotations

import random
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from backplane.testing.cluster import LocalCluster, is_running
from backplane.testing.nbd_client import (
    NbdClient,
    NbdError,
    NbdOptionError,
    Negotiation,
    connect,
    nbd_uri,
    open_socket,
)
from backplane.units import KIB, MIB

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("static views")]  # one cluster

PAGE = 4 * KIB
PATIENCE_S = 5.0
"""What no write of a workstation may take, on however busy a machine."""

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests of this file; each has volumes of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder))
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


def content(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def workstation(cluster: LocalCluster, export: str) -> NbdClient:
    return connect(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock", export))


def whole(client: NbdClient) -> bytes:
    return b"".join(
        client.read(at, min(MIB, client.size_bytes - at)) for at in range(0, client.size_bytes, MIB)
    )


def make(cluster: LocalCluster, name: str, *, mib: int) -> None:
    cluster.ctl("volume", "create", name, "--size", f"{mib}MiB")


def fill(client: NbdClient, seed: int) -> bytes:
    data = content(seed, client.size_bytes)
    for at in range(0, len(data), MIB):
        client.write(at, data[at : at + MIB])
    client.flush()
    return data


def left_behind(cluster: LocalCluster) -> list[str]:
    """Return what there is of static views on the disk node."""
    disk = cluster.state / "disk"
    folders = ("snapshots", "snapshot-marks", "views")
    return [str(path) for folder in folders for path in (disk / folder).iterdir()]


def assert_nothing_is_left(cluster: LocalCluster) -> None:
    # What the node has, and what it has told the controller.
    cluster.wait_until(lambda: not left_behind(cluster), what="the views to go", timeout_s=10)
    cluster.wait_until(
        lambda: cluster.ctl("view", "list")["views"] == [], what="word of it", timeout_s=10
    )


def restored(cluster: LocalCluster, backup: object, name: str) -> bytes:
    job = cluster.finish("restore", str(backup), "--new", name)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    return cluster.volume_file(name).read_bytes()


@contextmanager
def held(cluster: LocalCluster, *arguments: str) -> Iterator[int]:
    """Submit a backup that gets its view and waits for a mover until the end of the block; yields the job."""
    cluster.kill("mover-1")
    try:
        number = cluster.submit("backup", *arguments)
        cluster.wait_until(lambda: cluster.job(number)["state"] == "copying", what="the view")
        yield number
    finally:
        cluster.up()


class Workstation:
    """Writes, zeroes and trims pages at random until it is told to stop, and knows what the volume must hold.

    `paused` is a block in which it does nothing.  An error ends it, and is raised when its own block ends.
    """

    def __init__(self, client: NbdClient, known: bytes, *, seed: int, pause_s: float = 0.0) -> None:
        self._client = client
        self._chance = random.Random(seed)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="workstation")
        self.known = bytearray(known)
        self.count = 0
        self.longest_s = 0.0
        self.error: Exception | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._busy:
                    begun = time.monotonic()
                    self._step()
                    self.longest_s = max(self.longest_s, time.monotonic() - begun)
                    self.count += 1
                self._stop.wait(self._pause_s)
        except (OSError, EOFError, NbdError) as error:
            self.error = error

    def _step(self) -> None:
        at = self._chance.randrange(len(self.known) // PAGE) * PAGE
        count = min(self._chance.choice((PAGE, PAGE, 5 * PAGE, 64 * PAGE)), len(self.known) - at)
        kind = self._chance.randrange(10)
        data = bytes(count) if kind < 2 else self._chance.randbytes(count)
        if kind == 0:
            self._client.trim(at, count)
        elif kind == 1:
            self._client.zero(at, count)
        else:
            self._client.write(at, data)
        self.known[at : at + count] = data

    @contextmanager
    def paused(self) -> Iterator[bytes]:
        """Do nothing meanwhile; yields what the volume holds."""
        with self._busy:
            yield bytes(self.known)

    def wait_for_more(self, count: int = 50) -> None:
        """Wait until it has done so much more."""
        end, wanted = time.monotonic() + WAIT_S, self.count + count
        while self.count < wanted:
            assert self.error is None, self.error
            assert time.monotonic() < end, "the workstation does not get on"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self._thread.start()
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

    def stop(self) -> None:
        """Stop; twice is once."""
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


# --- one instant ---------------------------------------------------------------------------------


def test_a_backup_has_the_instant_of_its_view_while_the_volume_is_written_all_the_time(
    cluster: LocalCluster,
) -> None:
    """
    workstation   --writes--|300 ms of quiet|--writes-------------------------------------|
    job                          view       |--no mover--|--copies what the view has------|
    """
    make(cluster, "busy", mib=16)
    with workstation(cluster, "busy") as client:
        before = fill(client, 1)
        with Workstation(client, before, seed=1) as writer:
            writer.wait_for_more()
            no_mover = ExitStack()
            with writer.paused() as at_the_instant:
                number = no_mover.enter_context(held(cluster, "busy", "--inactivity", "300ms"))
            with no_mover:
                writer.wait_for_more(200)
                [view] = cluster.ctl("view", "list")["views"]
                assert (view["job"], view["state"], view["volume"]) == (number, "active", "busy")
                with workstation(cluster, f"busy@{view['view']}") as reader:
                    assert whole(reader) == at_the_instant
                    with pytest.raises(NbdError, match="EPERM"):
                        reader.write(0, bytes(PAGE))
            job = cluster.wait_job(number)
            writer.wait_for_more(1)
        assert job["state"] == "completed", (job["reason"], cluster.logs())
        assert job["ledger"]["is_balanced"]
        assert writer.longest_s < PATIENCE_S
        assert whole(client) == writer.known
    assert restored(cluster, job["result"]["backup"], "busy-copy") == at_the_instant
    assert bytes(writer.known) != at_the_instant
    assert_nothing_is_left(cluster)


@contextmanager
def view_by_hand(cluster: LocalCluster, volume: str) -> Iterator[dict[str, Any]]:
    """Make a view and release it at the end of the block."""
    view = cluster.ctl("view", "create", volume)
    try:
        yield view
    finally:
        cluster.ctl("view", "release", view["view"])


def test_a_view_made_by_hand_is_read_over_nbd_until_it_is_released(cluster: LocalCluster) -> None:
    make(cluster, "hand", mib=4)
    with workstation(cluster, "hand") as client, ExitStack() as readers:
        before = fill(client, 2)
        with view_by_hand(cluster, "hand") as view:
            assert len(view["nbd"]) == 2, view
            client.write(0, content(3, MIB))
            for uri in view["nbd"]:
                reader = readers.enter_context(connect(uri))
                assert whole(reader) == before
            assert f"hand@{view['view']}" in exports(cluster)
            with pytest.raises(NbdError, match="EPERM"):
                reader.write(0, bytes(PAGE))
            with pytest.raises(NbdError, match="EPERM"):
                reader.trim(0, PAGE)
            with pytest.raises(NbdError, match="EPERM"):
                reader.zero(0, PAGE)
        with pytest.raises(NbdError, match="EIO"):
            reader.read(0, PAGE)
        with pytest.raises(NbdOptionError, match="no static view"):
            connect(view["nbd"][0])
        assert whole(client) == content(3, MIB) + before[MIB:]
    assert_nothing_is_left(cluster)


def exports(cluster: LocalCluster) -> list[str]:
    peer, _ = open_socket(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock"))
    with Negotiation(peer) as negotiation:
        negotiation.greet()
        return negotiation.list_exports()


def test_a_backup_of_a_split_leg_has_its_instant_and_the_leg_catches_up(
    cluster: LocalCluster,
) -> None:
    make(cluster, "twice", mib=4)
    none = cluster.finish("backup", "twice", "--view", "mirror")
    assert (none["state"], none["exit_code"]) == ("failed", 5), none
    assert "has no backup mirror" in none["reason"]
    with workstation(cluster, "twice") as client, ExitStack() as no_mover:
        before = fill(client, 8)
        cluster.ctl("volume", "mirror", "add", "twice")
        wait_for_leg(cluster, "in-sync")
        with Workstation(client, before, seed=8) as writer:
            writer.wait_for_more()
            arguments = ("twice", "--view", "mirror", "--inactivity", "0s")
            with writer.paused() as at_the_instant:
                number = no_mover.enter_context(held(cluster, *arguments))
            with no_mover:
                writer.wait_for_more()
                assert leg(cluster)["state"] == "split"
            job = cluster.wait_job(number)
        assert job["state"] == "completed", (job["reason"], cluster.logs())
        assert job["view"]["means"] == "mirror"
        wait_for_leg(cluster, "in-sync")
        path = Path(leg(cluster)["path"])
        assert path.read_bytes() == whole(client) == writer.known
    assert restored(cluster, job["result"]["backup"], "twice-copy") == at_the_instant
    assert_nothing_is_left(cluster)


def leg(cluster: LocalCluster) -> dict[str, Any]:
    [found] = cluster.ctl("volume", "mirror", "status", "twice")["legs"]
    return dict(found)


def wait_for_leg(cluster: LocalCluster, state: str) -> None:
    cluster.wait_until(lambda: leg(cluster)["state"] == state, what=f"the leg to be {state}")


def test_a_group_is_viewed_in_one_instant_between_the_writes_to_its_volumes(
    cluster: LocalCluster,
) -> None:
    """The workstation counts: the same number to a, then b, then c.  At every instant a >= b >= c >= a - 1."""
    names = ("group-a", "group-b", "group-c")
    for name in names:
        make(cluster, name, mib=1)
    clients = [workstation(cluster, name) for name in names]
    try:
        with Counter(clients) as counter:
            arguments = (*names, "--group", "--inactivity", "0s", "--sync-timeout", "20s")
            jobs = [
                int(each["job"]) for each in cluster.ctl("submit", "backup", *arguments)["jobs"]
            ]
            done = [cluster.wait_job(job) for job in jobs]
            assert {job["state"] for job in done} == {"completed"}, [job["reason"] for job in done]
    finally:
        for client in clients:
            client.close()
    found = [
        struct.unpack_from(">Q", restored(cluster, job["result"]["backup"], f"{name}-copy"))[0]
        for job, name in zip(done, names, strict=True)
    ]
    a, b, c = found
    assert a >= b >= c >= a - 1, found
    assert 0 < a < counter.number
    assert_nothing_is_left(cluster)


class Counter:
    """Writes 1, 2, 3... to several volumes, one after the other, each answered before the next."""

    def __init__(self, clients: list[NbdClient], *, pause_s: float = 0.0) -> None:
        self._clients = clients
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counter")
        self.number = 0
        self.longest_s = 0.0
        self.error: Exception | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.number += 1
                for client in self._clients:
                    begun = time.monotonic()
                    client.write(0, struct.pack(">Q", self.number) * (PAGE // 8))
                    self.longest_s = max(self.longest_s, time.monotonic() - begun)
                self._started.set()
                self._stop.wait(self._pause_s)
        except (OSError, EOFError, NbdError) as error:
            self.error = error
            self._started.set()

    def stop(self) -> None:
        """Stop; twice is once."""
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(WAIT_S)
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


# --- waiting for quiet ---------------------------------------------------------------------------


def test_a_job_that_finds_no_quiet_ends_with_code_6_and_the_workstation_notices_nothing(
    cluster: LocalCluster,
) -> None:
    make(cluster, "restless", mib=1)
    make(cluster, "calm", mib=1)
    waiting = ("--inactivity", "900ms", "--sync-timeout", "1500ms", "--wait")
    with workstation(cluster, "restless") as client:
        with Counter([client], pause_s=0.05) as counter:
            alone = cluster.run_ctl("submit", "backup", "restless", *waiting)
            assert alone.returncode == 6, (alone.stdout, alone.stderr)
            # A group has its views all or none, however calm the others are.
            group = cluster.run_ctl("submit", "backup", "calm", "restless", "--group", *waiting)
            assert group.returncode == 6, (group.stdout, group.stderr)
        assert counter.longest_s < PATIENCE_S
        client.flush()
    jobs = {job["job"]: job for job in cluster.ctl("job", "list")["jobs"]}
    failed = [job for job in jobs.values() if job["volume"] in ("restless", "calm")]
    assert [(job["state"], job["exit_code"]) for job in failed] == [("failed", 6)] * 3
    assert all("no 0.9 s without writes within 1.5 s" in job["reason"] for job in failed), failed
    detail = cluster.job(next(job["job"] for job in failed if job["volume"] == "restless"))
    assert detail["items"] == []
    assert detail["wait"]["last_writer"] == "unix", detail["wait"]
    assert_nothing_is_left(cluster)
    for name in ("restless", "calm"):
        cluster.wait_until(
            lambda name=name: cluster.ctl("volume", "show", name)["held_by"] == 0,
            what=f"{name} to be let go",
            timeout_s=10,
        )
    assert cluster.ctl("backup", "list", "--volume", "restless")["backups"] == []
    assert cluster.ctl("volume", "quiet", "restless")["found"] == 0
    # Nothing is in the way of the next one.
    assert cluster.finish("backup", "calm")["state"] == "completed"


def test_a_job_that_finds_quiet_says_how_long_it_waited_and_who_wrote_last(
    cluster: LocalCluster,
) -> None:
    make(cluster, "pausing", mib=1)
    arguments = ("pausing", "--inactivity", "700ms", "--sync-timeout", "30s")
    with workstation(cluster, "pausing") as client:
        with Counter([client], pause_s=0.05) as counter:
            number = cluster.submit("backup", *arguments)
            waiting = cluster.wait_until(
                lambda: job if (job := cluster.job(number))["wait"]["last_writer"] else None,
                what="the node to tell how the wait stands",
            )
            assert waiting["state"] == "waiting-quiet"
            assert "0.7 s without writes within 30 s" in waiting["reason"]
        job = cluster.wait_job(number)
    assert job["state"] == "completed", job["reason"]
    wait = job["wait"]
    assert wait["waited_s"] >= 0.7
    assert wait["last_writer"] == "unix"
    report = cluster.run_ctl("job", "show", str(number)).stdout
    assert "last written by unix" in report, report
    assert cluster.ctl("volume", "quiet", "pausing")["found"] == 1
    data = restored(cluster, job["result"]["backup"], "pausing-copy")
    assert struct.unpack_from(">Q", data)[0] == counter.number


# --- in use --------------------------------------------------------------------------------------


def test_a_volume_that_a_workstation_uses_is_neither_deleted_nor_restored_over(
    cluster: LocalCluster,
) -> None:
    make(cluster, "used", mib=1)
    with workstation(cluster, "used") as client:
        data = fill(client, 4)
        backup = cluster.finish("backup", "used", "--inactivity", "0s")
        number = str(backup["result"]["backup"])
        client.write(0, content(5, PAGE))

        deleted = cluster.run_ctl("volume", "delete", "used", "--force", "--yes")
        assert deleted.returncode == 5, deleted.stderr
        job = cluster.finish("restore", number, "--to", "used", "--force")
        assert (job["state"], job["exit_code"]) == ("failed", 5), job
        for told in (deleted.stderr, job["reason"]):
            assert "used by 1 NBD connection" in told, told
        assert "disconnect the workstations first" in deleted.stderr
        assert client.read(0, 2 * PAGE) == content(5, PAGE) + data[PAGE : 2 * PAGE]
        client.write(PAGE, content(6, PAGE))
    job = cluster.finish("restore", number, "--to", "used", "--force")
    assert job["state"] == "completed", job["reason"]
    assert cluster.volume_file("used").read_bytes() == data
    cluster.ctl("volume", "delete", "used", "--force", "--yes")


# --- levels --------------------------------------------------------------------------------------


def test_a_chain_of_incrementals_copies_little_and_restores_every_instant(
    cluster: LocalCluster,
) -> None:
    make(cluster, "chain", mib=16)
    instants: dict[int, bytes] = {}

    def backed_up(client: NbdClient, level: str) -> dict[str, Any]:
        job = cluster.finish("backup", "chain", "--level", level, "--inactivity", "0s")
        assert job["state"] == "completed", (job["reason"], cluster.logs())
        assert job["result"]["level"] == level, job
        instants[job["result"]["backup"]] = whole(client)
        return job

    chance = random.Random(9)
    with workstation(cluster, "chain") as client:
        fill(client, 7)
        full = backed_up(client, "full")
        for at in (chance.randrange(4096) * PAGE for _ in range(10)):
            client.write(at, chance.randbytes(PAGE))
        written = backed_up(client, "incremental")
        client.trim(2 * MIB, 3 * MIB)
        client.zero(9 * MIB, 64 * KIB)
        trimmed = backed_up(client, "incremental")
        client.write(3 * MIB, chance.randbytes(PAGE))
        client.flush()
    # Killed with changes that no view has: the map of them is in the page cache, and the kernel is the same.
    cluster.kill("disk")
    cluster.up()
    with workstation(cluster, "chain") as client:
        client.write(4 * MIB, chance.randbytes(PAGE))
        after = backed_up(client, "incremental")

    assert full["total_bytes"] == 16 * MIB
    assert 10 * PAGE <= written["total_bytes"] <= 10 * 64 * KIB
    assert trimmed["total_bytes"] <= 64 * KIB, "what was trimmed is told, not copied"
    assert 2 * PAGE <= after["total_bytes"] <= 2 * 64 * KIB
    for backup, wanted in instants.items():
        assert restored(cluster, backup, f"chain-{backup}") == wanted, backup
    assert_nothing_is_left(cluster)
