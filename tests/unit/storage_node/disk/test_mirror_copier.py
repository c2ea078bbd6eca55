"""The thread that copies."""

import threading

import pytest

from storage_node.disk import mirror_copier
from storage_node.disk.device import READ_ERROR, DeviceError
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.mirror_copier import Copier, gaps_and_runs


class Work:
    """Pieces of work; None is one that fails."""

    def __init__(self, *pieces: int | None) -> None:
        self.pieces = list(pieces)
        self.tries = 0
        self.done = threading.Event()

    def step(self) -> int | None:
        self.tries += 1
        piece = self.pieces.pop(0)
        if not self.pieces:
            self.done.set()
        if piece is None:
            raise DeviceError("unreadable", sense=READ_ERROR)
        return piece

    def copier(self, *, bytes_per_s: int = 0) -> Copier:
        return Copier(step=self.step, has_work=lambda: bool(self.pieces), bytes_per_s=bytes_per_s)


def test_it_works_while_there_is_work_and_again_when_there_is_more() -> None:
    work = Work(1, 0, 2)
    copier = work.copier()
    copier.want()
    assert work.done.wait(60)
    work.done.clear()
    work.pieces += [3, 4]
    copier.want()
    assert work.done.wait(60)
    copier.stop()
    copier.stop()
    assert work.tries == 5


def test_no_thread_is_started_without_work() -> None:
    copier = Work().copier()
    before = threading.active_count()
    copier.want()
    assert threading.active_count() == before
    copier.stop()


def test_a_stopped_copier_starts_nothing() -> None:
    work = Work(1)
    copier = work.copier()
    copier.stop()
    copier.want()
    assert work.tries == 0


def test_what_cannot_be_read_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_copier, "RETRY_S_MIN", 0.001)
    work = Work(None, None, 5)
    copier = work.copier()
    copier.want()
    assert work.done.wait(60)
    copier.stop()
    assert work.tries == 3


@pytest.mark.parametrize(("bytes_per_s", "piece"), [(1, 1 << 30), (0, None)])
def test_stopping_does_not_wait_for_a_pause(bytes_per_s: int, piece: int | None) -> None:
    """The first pause is thirty years, or the first retry; the second piece of work never comes."""
    work = Work(piece, 1)
    copier = work.copier(bytes_per_s=bytes_per_s)
    copier.want()
    while not work.tries:
        work.done.wait(0.001)
    copier.stop()
    assert work.tries == 1


def test_all_of_a_range_is_named_as_gap_or_data() -> None:
    device = MemoryDevice(65536)
    device.write(4096, memoryview(b"x" * 8192))
    device.write(65535, memoryview(b"x"))
    assert list(gaps_and_runs(device, 0, 65536)) == [(0, 4096, 12288), (12288, 65024, 65536)]
    assert list(gaps_and_runs(device, 8192, 16384)) == [(8192, 8192, 12288), (12288, 16384, 16384)]
    assert list(gaps_and_runs(device, 20480, 24576)) == [(20480, 24576, 24576)]


def test_a_device_that_cannot_say_has_data_everywhere() -> None:
    device = FaultyDevice(MemoryDevice(65536), [Fault(call="extents")])
    assert list(gaps_and_runs(device, 512, 1024)) == [(512, 512, 1024)]
