"""The read-only device of a snapshot: refusals, extents, ranges of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError
from backplane.ids import ViewId
from backplane.testing.contracts.block_device import read
from storage_node.core.copy_on_write import GRANULE_BYTES
from storage_node.disk.device import DeviceError
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.snapshot_device import WRITE_PROTECTED, SnapshotDevice
from storage_node.disk.snapshots import Snapshot

G = GRANULE_BYTES
SIZE = 16 * G


@pytest.fixture
def live(tmp_path: Path) -> Iterator[FileDevice]:
    """Data in granules 2, 3 and 8, holes elsewhere."""
    make_sparse_file(tmp_path / "live", size_bytes=SIZE)
    live = FileDevice(tmp_path / "live", block_bytes=512)
    live.write(2 * G, memoryview(b"a" * 2 * G))
    live.write(8 * G, memoryview(b"b" * G))
    yield live
    live.close()


@pytest.fixture
def snapshot(tmp_path: Path, live: FileDevice) -> Iterator[Snapshot]:
    snapshot = Snapshot.create(
        tmp_path / "snapshot",
        view=ViewId("view-1"),
        live=live,
        protected=None,
        reserve_bytes=1 << 30,
        budget_s=60.0,
        boot_id="boot-1",
        on_broken=lambda _reason: None,
    )
    yield snapshot
    snapshot.release()


@pytest.fixture
def reader(snapshot: Snapshot) -> Iterator[SnapshotDevice]:
    reader = snapshot.reader()
    yield reader
    reader.close()


def write(snapshot: Snapshot, start: int, count: int) -> None:
    snapshot.save_before(start, start + count)
    snapshot.live.write(start, memoryview(b"\xff" * count))


def test_nothing_can_be_written(reader: SnapshotDevice) -> None:
    for call in (
        lambda: reader.write(0, memoryview(b"x")),
        lambda: reader.zero(0, 1, may_punch=True),
        reader.discard_all,
    ):
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.sense == WRITE_PROTECTED
    reader.flush()


def test_a_range_beyond_the_end_is_refused(reader: SnapshotDevice) -> None:
    for start, count in ((SIZE, 1), (SIZE - 1, 2), (-1, 1)):
        with pytest.raises(BackupError):
            read(reader, start, count)
        assert reader.file_range(start, count) is None
    assert read(reader, SIZE, 0) == b""


def test_extents_are_those_of_the_view(snapshot: Snapshot, reader: SnapshotDevice) -> None:
    expected = [(2 * G, 4 * G), (8 * G, 9 * G)]
    assert list(reader.extents(0, SIZE)) == expected
    write(snapshot, 0, 512)  # was a hole
    write(snapshot, 3 * G, 512)
    write(snapshot, 5 * G, 5 * G)
    snapshot.save_before(8 * G, 9 * G)
    snapshot.live.zero(8 * G, G, may_punch=True)  # data then, a hole now
    assert list(reader.extents(0, SIZE)) == expected
    assert list(reader.extents(2 * G + 512, 8 * G + 1024)) == [
        (2 * G + 512, 4 * G),
        (8 * G, 8 * G + 1024),
    ]
    assert list(reader.extents(SIZE, SIZE)) == []


def test_extents_that_are_drawn_slowly_meet_writes_on_the_way(
    snapshot: Snapshot, reader: SnapshotDevice
) -> None:
    found = reader.extents(0, SIZE)
    first = next(found)
    snapshot.save_before(0, SIZE)
    snapshot.live.zero(0, SIZE, may_punch=True)
    covered = [first, *found]
    for start, end in ((2 * G, 4 * G), (8 * G, 9 * G)):
        assert any(low <= start and end <= high for low, high in covered)


def test_a_snapshot_that_breaks_ends_the_list_of_extents(
    snapshot: Snapshot, reader: SnapshotDevice
) -> None:
    found = reader.extents(0, SIZE)
    next(found)
    snapshot.release()
    with pytest.raises(DeviceError):
        list(found)


def test_bytes_that_lie_together_can_be_sent_from_their_file(
    snapshot: Snapshot, reader: SnapshotDevice, live: FileDevice
) -> None:
    assert reader.file_range(2 * G, 2 * G) == live.file_range(2 * G, 2 * G)
    write(snapshot, 8 * G, 1)
    write(snapshot, 2 * G, 2 * G)
    write(snapshot, 0, 1)
    found = reader.file_range(2 * G + 5, G)
    assert found is not None
    assert found.offset == G + 5, "behind the granule that was saved first"
    assert os.pread(found.descriptor, G, found.offset) == b"a" * G
    for start, count in ((G, 2 * G), (0, 1), (0, SIZE)):
        assert reader.file_range(start, count) is None


def test_a_closed_reader_reads_nothing_and_the_others_go_on(
    snapshot: Snapshot, reader: SnapshotDevice
) -> None:
    other = snapshot.reader()
    other.close()
    other.close()
    with pytest.raises(DeviceError, match="closed"):
        read(other, 0, 1)
    assert other.file_range(2 * G, 1) is None
    write(snapshot, 2 * G, 1)
    assert read(reader, 2 * G, 1) == b"a"


def test_a_volume_that_is_no_file_has_snapshots_too(tmp_path: Path) -> None:
    live = MemoryDevice(SIZE)
    live.write(0, memoryview(b"old"))
    snapshot = Snapshot.create(
        tmp_path / "snapshot",
        view=ViewId("view-1"),
        live=live,
        protected=None,
        reserve_bytes=1 << 30,
        budget_s=60.0,
        boot_id="boot-1",
        on_broken=lambda _reason: None,
    )
    write(snapshot, 0, 5)
    reader = snapshot.reader()
    assert read(reader, 0, 5) == b"old\0\0"
    assert reader.file_range(G, 1) is None
    reader.close()
    snapshot.release()
