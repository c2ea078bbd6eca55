"""Volumes and views as NBD exports: who may open what, who keeps whom out, and what a released view answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backplane.errors import BackupError, BusyError, MediumError, NotFoundError
from backplane.ids import Epoch, JobId, ViewId, VolumeId
from backplane.units import KIB, MIB
from backplane.wire.messages import VolumeReserve, VolumeUnreserve
from storage_node.disk.device import DeviceError
from storage_node.disk.faulty import Fault
from storage_node.nbd.export import Export
from storage_node.volume_exports import VolumeExports, clipped
from tests.unit.storage_node.disk_role import VIEW, VIEW_UNIT, VOLUME, Node

OTHER = VolumeId("22" * 16)
OTHER_VIEW = ViewId("44" * 16)
CLIENT = "192.0.2.7:40000"
CONTENT = bytes(range(256)) * (MIB // 256)


@pytest.fixture
def node(bench: Any) -> Iterator[Node]:
    made = Node(bench)
    made.create(size_bytes=MIB)
    made.put(CONTENT)
    yield made
    made.close()


@pytest.fixture
def exports(node: Node) -> VolumeExports:
    return VolumeExports(node.disk)


def read(export: Export, at: int, count: int) -> bytes:
    buffer = bytearray(b"\xa5" * count)
    export.read_into(at, memoryview(buffer))
    return bytes(buffer)


def used_by(node: Node) -> int:
    return node.disk.describe()[0][0].connections


# --- names ---------------------------------------------------------------------------------------


def test_volumes_that_are_online_and_views_are_listed(node: Node, exports: VolumeExports) -> None:
    node.create("importing", OTHER, name="another")
    assert exports.names() == ["vol"]
    node.make()
    assert exports.names() == ["vol", f"vol@{VIEW}"]
    node.views.release(VIEW)
    node.offline()
    assert exports.names() == []


@pytest.mark.parametrize("name", ["", "@", "nothing", "vol@", "vol@nothing", "vol@@", "@vol"])
def test_what_is_not_there_is_not_found(exports: VolumeExports, name: str) -> None:
    with pytest.raises(NotFoundError):
        exports.open(name, CLIENT)


def test_a_view_is_found_under_its_own_volume_only(node: Node, exports: VolumeExports) -> None:
    node.create(volume=OTHER, name="other")
    node.make()
    with pytest.raises(NotFoundError):
        exports.open(f"other@{VIEW}", CLIENT)


# --- volumes -------------------------------------------------------------------------------------


def test_a_volume_is_read_and_written(node: Node, exports: VolumeExports) -> None:
    export = exports.open("vol", CLIENT)
    assert (export.name, export.size_bytes, export.block_bytes) == ("vol", MIB, 512)
    assert (export.is_read_only, export.can_multi_conn) == (False, True)
    export.write(1000, memoryview(b"data"), fua=False)
    export.zero(5000, 100, may_punch=False, is_fast_only=False, fua=True)
    expected = bytearray(CONTENT)
    expected[1000:1004] = b"data"
    expected[5000:5100] = bytes(100)
    assert read(export, 0, MIB) == node.content() == bytes(expected)
    assert list(export.extents(0, MIB)) == [(0, MIB)]
    found = export.file_range(512, 512)
    assert found is not None
    assert found.offset == 512


def test_the_writer_is_told(node: Node, exports: VolumeExports) -> None:
    export = exports.open("vol", CLIENT)
    node.clock.advance(5.0)
    export.write(0, memoryview(b"x"), fua=False)
    node.clock.advance(2.0)
    (volume,), _ = node.disk.describe()
    assert (volume.last_writer, volume.idle_s) == (CLIENT, 2.0)
    export.zero(0, 512, may_punch=True, is_fast_only=False, fua=False)
    assert node.disk.describe()[0][0].idle_s == 0.0


@pytest.mark.parametrize("fua", [False, True])
def test_what_is_to_be_durable_is_flushed(node: Node, exports: VolumeExports, fua: bool) -> None:
    node.break_device(Fault(call="flush"))
    export = exports.open("vol", CLIENT)

    def write() -> None:
        export.write(0, memoryview(b"x"), fua=fua)
        export.zero(0, 512, may_punch=True, is_fast_only=False, fua=fua)

    if not fua:
        write()
        with pytest.raises(MediumError):
            export.flush()
    else:
        with pytest.raises(MediumError):
            write()
    with pytest.raises(DeviceError, match="takes no writes"):
        export.write(0, memoryview(b"y"), fua=False)
    later = exports.open("vol", CLIENT)
    assert later.is_read_only
    later.read_into(0, memoryview(bytearray(512)))
    later.close()
    assert node.disk.describe()[0][0].is_read_only


def test_connections_keep_others_from_the_volume(node: Node, exports: VolumeExports) -> None:
    first, second = exports.open("vol", CLIENT), exports.open("vol", "another")
    assert used_by(node) == 2
    for refused in (lambda: node.disk.delete(VOLUME), node.offline):
        with pytest.raises(BusyError, match="2 NBD connections"):
            refused()
    first.close()
    first.close()
    assert used_by(node) == 1
    with pytest.raises(BusyError, match="1 NBD connection "):
        node.offline()
    read(second, 0, 512)
    second.close()
    assert used_by(node) == 0
    assert node.offline().state == "restoring"


def test_a_volume_that_files_are_put_back_onto_is_nobody_elses(
    node: Node, exports: VolumeExports
) -> None:
    reserve = VolumeReserve(request=1, volume=VOLUME, job=JobId(7), ttl_s=60.0, epoch=Epoch(99))
    export = exports.open("vol", CLIENT)
    with pytest.raises(BusyError, match="1 workstation is connected"):
        node.disk.reserve(reserve)
    export.close()
    node.disk.reserve(reserve)
    with pytest.raises(BusyError, match="job 7"):
        exports.open("vol", CLIENT)
    assert used_by(node) == 0
    node.write(b"restored", at=0)
    node.disk.unreserve(VolumeUnreserve(request=2, volume=VOLUME, job=JobId(7)))
    export = exports.open("vol", CLIENT)
    assert read(export, 0, 8) == b"restored"
    export.close()


def test_a_volume_that_is_not_online_is_not_reserved(node: Node) -> None:
    node.offline()
    with pytest.raises(BusyError, match="restoring"):
        node.disk.reserve(
            VolumeReserve(request=1, volume=VOLUME, job=JobId(7), ttl_s=60.0, epoch=Epoch(99))
        )


def test_restores_and_imports_have_a_volume_for_themselves(
    node: Node, exports: VolumeExports
) -> None:
    node.create("importing", OTHER, name="other")
    with pytest.raises(BusyError, match="importing"):
        exports.open("other", CLIENT)
    node.offline()
    with pytest.raises(BusyError, match="restoring"):
        exports.open("vol", CLIENT)
    node.publish("restore-failed")
    with pytest.raises(BusyError, match="restore-failed"):
        exports.open("vol", CLIENT)
    assert used_by(node) == 0


def test_a_hold_refuses_writes_and_gives_reads(node: Node, exports: VolumeExports) -> None:
    export = exports.open("vol", CLIENT)
    node.make("hold")
    for write in (
        lambda: export.write(0, memoryview(b"x"), fua=False),
        lambda: export.zero(0, 512, may_punch=True, is_fast_only=False, fua=False),
    ):
        with pytest.raises(DeviceError, match="job 7"):
            write()
    assert read(export, 0, 512) == CONTENT[:512]
    export.flush()
    node.views.release(VIEW)
    export.write(0, memoryview(b"x"), fua=False)


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_connections_do_not_keep_a_view_from_being_made(
    node: Node, exports: VolumeExports, means: str
) -> None:
    export = exports.open("vol", CLIENT)
    assert isinstance(node.make(means), tuple)
    export.close()


# --- what changed --------------------------------------------------------------------------------


def test_what_changed_since_the_last_view_is_told(node: Node, exports: VolumeExports) -> None:
    export = exports.open("vol", CLIENT)
    granule = 64 * KIB

    def changed(start: int = 0, end: int = MIB) -> list[tuple[int, int]]:
        found = export.changed(start, end)
        assert found is not None
        return list(found)

    assert changed() == [(0, MIB)]  # nobody knows from when on
    assert changed(0, 0) == []
    node.make()
    assert changed() == []
    export.write(granule + 5, memoryview(b"x"), fua=False)
    export.write(9 * granule - 1, memoryview(b"xx"), fua=False)
    assert changed() == [(granule, 2 * granule), (8 * granule, 10 * granule)]
    assert changed(granule + 512, 9 * granule) == [
        (granule + 512, 2 * granule),
        (8 * granule, 9 * granule),
    ]
    assert changed(2 * granule, 8 * granule) == []
    node.make(view=OTHER_VIEW)
    assert changed() == []


def test_a_volume_that_is_not_tracked_says_so(node: Node, exports: VolumeExports) -> None:
    export = exports.open("vol", CLIENT)
    node.store.trackers.pop(VOLUME).close()
    assert export.changed(0, MIB) is None
    assert export.changed(0, 0) is None


def test_runs_are_clipped() -> None:
    runs = [(0, 10), (20, 30), (40, 50)]
    assert list(clipped(iter(runs), 5, 45)) == [(5, 10), (20, 30), (40, 45)]
    assert list(clipped(iter(runs), 10, 20)) == []
    assert list(clipped(iter(runs), 22, 28)) == [(22, 28)]


# --- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_a_view_is_read_and_not_written(node: Node, exports: VolumeExports, means: str) -> None:
    node.make(means)
    view = exports.open(f"vol@{VIEW}", CLIENT)
    assert (view.name, view.size_bytes, view.block_bytes) == (f"vol@{VIEW}", MIB, 512)
    assert view.is_read_only
    assert read(view, 0, MIB) == CONTENT
    assert list(view.extents(0, MIB)) == [(0, MIB)]
    assert view.file_range(0, 512) is None
    assert view.changed(0, MIB) is None
    assert used_by(node) == 0  # who reads a view uses no volume
    view.close()


def test_a_view_stays_as_it_was(node: Node, exports: VolumeExports) -> None:
    node.make()
    view = exports.open(f"vol@{VIEW}", CLIENT)
    exports.open("vol", CLIENT).write(0, memoryview(b"\xff" * MIB), fua=False)
    assert read(view, 0, MIB) == CONTENT


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_a_released_view_gives_nothing(node: Node, exports: VolumeExports, means: str) -> None:
    """Least of all what the volume has become."""
    node.make(means)
    view = exports.open(f"vol@{VIEW}", CLIENT)
    node.views.release(VIEW)
    node.put(b"\xff" * 512)
    with pytest.raises(BackupError):
        read(view, 0, 512)
    with pytest.raises(BackupError):
        list(view.extents(0, MIB))
    with pytest.raises(NotFoundError):
        exports.open(f"vol@{VIEW}", CLIENT)


def test_a_release_during_a_read_is_seen_by_the_reader(node: Node, exports: VolumeExports) -> None:
    """The bytes were taken after the release: they may be the volume's."""
    node.make("hold")
    view: Any = exports.open(f"vol@{VIEW}", CLIENT)
    device = view._device

    class Late:
        def read_into(self, byte_address: int, buffer: memoryview) -> None:
            node.views.release(VIEW)
            node.put(b"\xff" * 512)
            device.read_into(byte_address, buffer)

    view._device = Late()
    with pytest.raises(DeviceError, match="released"):
        read(view, 0, 512)


def test_a_broken_view_gives_errors(node: Node, exports: VolumeExports) -> None:
    node.make()
    again = node.restart(kernel="b" * 36)
    view = VolumeExports(again.disk).open(f"vol@{VIEW}", CLIENT)
    with pytest.raises(BackupError):
        read(view, 0, 512)
    assert VIEW_UNIT in again.disk.units
    again.close()
