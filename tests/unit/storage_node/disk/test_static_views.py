"""The data of a view, by each means: prepared, installed, released, found again; and what nobody owns is swept."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError, NotFoundError, RefusedError
from backplane.ids import JobId, ViewId, VolumeId
from backplane.scsi.designator import designator_of
from backplane.testing.contracts.block_device import read
from backplane.units import KIB, MIB
from storage_node.core.mirror import LegState
from storage_node.core.volume_state import Means, ViewRecord
from storage_node.disk import reflink, static_views
from storage_node.disk.device import BlockDevice, DeviceError
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.mirror import MirroredDevice
from storage_node.disk.static_views import LostView, SnapshotRules, StaticView, ViewMaker

SIZE = MIB
VIEW = ViewId("33" * 16)
CONTENT = random.Random(5).randbytes(SIZE)
WAIT_S = 10.0


class Bench:
    """A volume in a file, perhaps with a mirror, and a maker of views."""

    def __init__(self, folder: Path, *, kernel: str = "a" * 36) -> None:
        self.folder = folder
        self.kernel = kernel
        self.path = folder / "data.img"
        if not self.path.exists():
            make_sparse_file(self.path, size_bytes=SIZE)
        self.mirror: MirroredDevice | None = None
        device: BlockDevice = FileDevice(self.path, block_bytes=512)
        if (folder / "mirror").exists():
            device = self.mirror = self._mirrored(device)
        self.live = LiveVolume(
            device,
            monotonic=time.monotonic,
            on_first_write=lambda: None,
            on_flush_failed=lambda: None,
        )
        self.maker = ViewMaker(folder, boot_id=kernel, rules=SnapshotRules(budget_s=WAIT_S))

    def _mirrored(self, device: BlockDevice) -> MirroredDevice:
        return MirroredDevice(
            device,
            self.folder / "mirror",
            boot_id=self.kernel,
            open_leg=lambda _name, path: FileDevice(path, block_bytes=512),
        )

    def add_mirror(self) -> MirroredDevice:
        mirror = self._mirrored(self.live.device)
        assert self.live.try_close()
        self.live.replace_device(mirror)
        self.live.open()
        make_sparse_file(self.folder / "leg.img", size_bytes=SIZE)
        device = FileDevice(self.folder / "leg.img", block_bytes=512)
        mirror.add_leg("b", device, path=self.folder / "leg.img")
        self.mirror = mirror
        wait_for_sync(mirror)
        return mirror

    def prepare(self, wanted: str, *, protected: list[tuple[int, int]] | None = None) -> StaticView:
        return self.maker.prepare(VIEW, wanted, self.live, self.path, protected=protected)

    def make(self, wanted: str) -> StaticView:
        made = self.prepare(wanted)
        assert self.live.try_close()
        made.install()
        self.live.open()
        return made

    def write(self, data: bytes, at: int = 0) -> None:
        self.live.write(at, memoryview(data))

    def restart(self, *views: StaticView, kernel: str = "") -> Bench:
        for view in views:
            view.close()
        self.live.close()
        return Bench(self.folder, kernel=kernel or self.kernel)

    def names(self) -> list[str]:
        return [path.name for path in (self.folder / "snapshots").iterdir()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.write(CONTENT)
    yield made
    made.live.close()


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that clones, as far as anybody can see from here."""
    monkeypatch.setattr(reflink, "can_reflink", lambda _: True)
    monkeypatch.setattr(reflink, "clone", shutil.copyfile)


def wait_for_sync(mirror: MirroredDevice) -> None:
    ends = time.monotonic() + WAIT_S
    while [leg.state for leg in mirror.legs()] != [LegState.IN_SYNC]:
        assert time.monotonic() < ends, mirror.legs()
        time.sleep(0.001)


def content(device: BlockDevice) -> bytes:
    return read(device, 0, SIZE)


def record(means: Means, *, leg: str = "") -> ViewRecord:
    return ViewRecord(
        view=VIEW,
        volume=VolumeId("11" * 16),
        job=JobId(1),
        designator=designator_of(VIEW),
        ttl_s=1.0,
        created="",
        means=means,
        leg=leg,
    )


MEANS = ["snapshot", "clone", "mirror"]


@pytest.fixture
def ready(bench: Bench, request: pytest.FixtureRequest, cloning: None) -> Bench:
    """A volume that can have views of every means."""
    if request.node.callspec.params["means"] == "mirror":
        bench.add_mirror()
    return bench


@pytest.mark.parametrize("means", MEANS)
def test_a_view_is_what_the_volume_was_until_it_is_released(ready: Bench, means: str) -> None:
    made = ready.make(means)
    assert (made.means.value, made.leg, made.broken) == (
        means,
        "b" if means == "mirror" else "",
        "",
    )
    ready.write(b"\xff" * 300_000, 99)
    assert content(made.device) == CONTENT
    for _ in range(2):
        made.release()
    with pytest.raises(DeviceError):
        content(made.device)
    assert ready.names() == []
    if ready.mirror is not None:
        wait_for_sync(ready.mirror)
    ready.write(b"goes on")


@pytest.mark.parametrize("means", [*MEANS, "hold"])
def test_what_was_only_prepared_is_released_without_a_trace(ready: Bench, means: str) -> None:
    made = ready.prepare(means)
    made.release()
    assert ready.names() == []
    assert not ready.live._savers
    if ready.mirror is not None:
        assert [leg.state for leg in ready.mirror.legs()] == [LegState.IN_SYNC]
    ready.make(means).release()


@pytest.mark.parametrize("means", MEANS)
def test_a_view_is_found_again_under_the_same_kernel(ready: Bench, means: str) -> None:
    made = ready.make(means)
    ready.write(b"\xff" * 300_000)
    again = ready.restart(made)
    found = again.maker.reopen(record(Means(means), leg=made.leg), again.live)
    again.write(b"\xee" * 300_000, 400_000)
    assert found.broken == ""
    assert content(found.device) == CONTENT
    found.release()
    with pytest.raises(DeviceError):
        content(found.device)
    if again.mirror is not None:
        wait_for_sync(again.mirror)
        assert (again.folder / "leg.img").read_bytes() == again.path.read_bytes()
    assert again.names() == []
    again.live.close()


def test_a_snapshot_is_broken_under_another_kernel(bench: Bench) -> None:
    made = bench.make("snapshot")
    again = bench.restart(made, kernel="b" * 36)
    found = again.maker.reopen(record(Means.SNAPSHOT), again.live)
    assert found.broken == "machine-restarted"
    with pytest.raises(DeviceError):
        content(found.device)
    found.release()
    assert again.names() == []
    again.live.close()


def test_a_clone_is_lost_under_another_kernel(bench: Bench, cloning: None) -> None:
    made = bench.make("clone")
    again = bench.restart(made, kernel="b" * 36)
    with pytest.raises(BackupError, match="machine-restarted"):
        again.maker.reopen(record(Means.CLONE), again.live)
    again.live.close()


def test_what_is_gone_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFoundError):
        bench.maker.reopen(record(Means.SNAPSHOT), bench.live)
    with pytest.raises(OSError, match="boot-id"):
        bench.maker.reopen(record(Means.CLONE), bench.live)
    with pytest.raises(RefusedError):
        bench.maker.reopen(record(Means.MIRROR, leg="b"), bench.live)


def test_a_lost_view_says_why(bench: Bench) -> None:
    lost = LostView(Means.CLONE, bench.live, "it burnt")
    assert (lost.means, lost.broken) == (Means.CLONE, "it burnt")
    with pytest.raises(DeviceError, match="it burnt"):
        content(lost.device)
    lost.install()
    lost.release()
    lost.close()
    assert LostView(Means.CLONE, bench.live, "").broken


def test_a_held_view_is_the_volume(bench: Bench) -> None:
    made = bench.make("hold")
    assert (made.means, made.used_bytes) == (Means.HOLD, 0)
    assert content(made.device) == CONTENT
    again = bench.restart(made)
    assert content(again.maker.reopen(record(Means.HOLD), again.live).device) == CONTENT
    again.live.close()


# --- choosing ------------------------------------------------------------------------------------


def test_the_cheapest_means_is_chosen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflink, "can_reflink", lambda _: True)
    chosen = bench.prepare("auto")
    assert chosen.means is Means.CLONE
    chosen.release()
    monkeypatch.setattr(reflink, "can_reflink", lambda _: False)
    chosen = bench.prepare("auto")
    assert chosen.means is Means.SNAPSHOT
    chosen.release()


def test_nothing_is_cloned_that_is_no_file_of_the_same_file_system(
    bench: Bench,
    cloning: None,
) -> None:
    for path in (bench.folder, bench.folder / "gone", Path("/dev/null")):
        chosen = bench.maker.prepare(VIEW, "auto", bench.live, path, protected=None)
        assert chosen.means is Means.SNAPSHOT
        chosen.release()
        with pytest.raises(RefusedError, match="cannot be cloned"):
            bench.maker.prepare(VIEW, "clone", bench.live, path, protected=None)
    assert bench.names() == []


def test_a_clone_that_fails_leaves_nothing(
    bench: Bench,
    cloning: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise BackupError("no space for metadata")

    monkeypatch.setattr(reflink, "clone", fails)
    made = bench.prepare("clone")
    with pytest.raises(BackupError, match="metadata"):
        made.install()
    made.release()
    assert bench.names() == []


@pytest.mark.parametrize("wanted", ["", "magic", "SNAPSHOT"])
def test_an_unknown_means_is_refused(bench: Bench, wanted: str) -> None:
    with pytest.raises(RefusedError):
        bench.prepare(wanted)
    assert bench.names() == []


def test_a_leg_that_is_not_in_sync_is_not_split(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="no backup mirror"):
        bench.prepare("mirror")
    mirror = bench.add_mirror()
    made = bench.make("mirror")
    with pytest.raises(RefusedError, match="b is split"):
        bench.prepare("mirror")
    made.release()
    wait_for_sync(mirror)
    late = bench.prepare("mirror")
    mirror.remove_leg("b")
    with pytest.raises(NotFoundError):
        late.install()
    late.release()
    with pytest.raises(RefusedError, match="it has no leg"):
        bench.prepare("mirror")


def test_a_leg_that_is_no_view_any_more_is_told(bench: Bench) -> None:
    """Whatever made it so: what is read from now on is not what was promised."""
    mirror = bench.add_mirror()
    made = bench.make("mirror")
    assert made.broken == ""
    mirror.rejoin("b")
    assert made.broken.startswith("leg b is ")
    wait_for_sync(mirror)
    mirror.remove_leg("b")
    assert made.broken == "leg b is gone"


# --- room ----------------------------------------------------------------------------------------


def test_a_snapshot_has_a_reserve_of_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_views, "RESERVE_BYTES_MIN", 0)
    made = bench.make("snapshot")  # 20 % of 1 MiB
    bench.write(b"\xff" * (128 * KIB))
    assert made.broken == ""
    assert made.used_bytes >= 128 * KIB
    bench.write(b"\xff" * SIZE)
    assert made.broken == "reserve-used-up"
    with pytest.raises(DeviceError):
        content(made.device)
    assert content(bench.live) == b"\xff" * SIZE
    made.release()
    assert bench.names() == []


def test_only_the_protected_part_is_saved(bench: Bench) -> None:
    made = bench.prepare("snapshot", protected=[(0, 64 * KIB)])
    made.install()
    bench.write(b"\xff" * SIZE)
    assert made.broken == ""
    assert made.used_bytes < 3 * 64 * KIB
    assert read(made.device, 0, 64 * KIB) == CONTENT[: 64 * KIB]
    with pytest.raises(DeviceError, match="protect"):
        read(made.device, 128 * KIB, 512)
    made.release()


def test_no_room_is_told(bench: Bench) -> None:
    shutil.rmtree(bench.folder / "snapshots")
    (bench.folder / "snapshots").touch()
    with pytest.raises(BackupError):
        bench.prepare("snapshot")


# --- sweeping ------------------------------------------------------------------------------------


def test_what_belongs_to_no_view_is_swept(bench: Bench) -> None:
    made = bench.make("snapshot")
    shutil.copytree(bench.folder / "snapshots" / VIEW, bench.folder / "snapshots" / "orphan")
    again = bench.restart(made)
    assert again.maker.sweep({VIEW}) == ["orphan"]
    assert again.names() == [VIEW]
    assert again.maker.sweep(set()) == [VIEW]
    assert again.names() == []
    assert again.maker.sweep(set()) == []
    again.live.close()


def test_a_leg_that_was_split_for_nobody_rejoins(bench: Bench) -> None:
    mirror = bench.add_mirror()
    made = bench.make("mirror")
    bench.maker.rejoin(bench.live, {"b"})
    assert made.broken == ""
    bench.maker.rejoin(bench.live, {""})
    wait_for_sync(mirror)


def test_a_volume_without_a_mirror_has_nothing_to_rejoin(bench: Bench) -> None:
    bench.maker.rejoin(bench.live, set())
    assert content(bench.live) == CONTENT
