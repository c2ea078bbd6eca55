"""A mirror against byte arrays: random changes, splits, faults, and ends of process and machine.

What is checked after every step, whatever happened before:

* the volume is what was written to it (after a write that failed: old or new, byte by byte);
* a leg that says "in sync" is the same as the primary, byte for byte;
* the view of a split leg is the volume at the instant at which it was split;
* an error of a leg never reaches the writer.

A process that ends leaves the devices and the mapped files as they are, even in the middle of a write.  A machine that
ends takes what was not flushed from the devices; of the mapped files it leaves what was made durable when they were
opened, or what they were at the end.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from backplane.errors import NotFoundError, RefusedError
from storage_node.core.mirror import GRANULE_BYTES, LegState
from storage_node.disk.device import READ_ERROR, WRITE_ERROR, DeviceError, device_error
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.mirror import MirroredDevice
from storage_node.disk.mirror_leg import SplitView

GRANULES = 5
SIZE = GRANULES * GRANULE_BYTES - 2048
BLOCK = 2048
NAMES = ("b", "c")
STEPS = 150
COUNTS = (1, 2, BLOCK, 4096, GRANULE_BYTES, GRANULE_BYTES + 1, SIZE)


class Killed(BaseException):
    """The process ends here."""


class Disk(MemoryDevice):
    """Memory with three switches: the next change fails after a part of it; the next flush fails; the process ends."""

    def __init__(self, on_kill: Callable[[], None]) -> None:
        super().__init__(SIZE, block_bytes=BLOCK)
        self.on_kill = on_kill
        self.fails_after: int | None = None
        self.kills_after: int | None = None
        self.fails_flush = False
        self.fails_read = False

    def content(self) -> bytes:
        data = bytearray(SIZE)
        MemoryDevice.read_into(self, 0, memoryview(data))
        return bytes(data)

    def disarm(self) -> None:
        self.fails_after = self.kills_after = None
        self.fails_flush = self.fails_read = False

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        if self.fails_read:
            raise DeviceError("injected", sense=READ_ERROR, byte_address=byte_address)
        super().read_into(byte_address, buffer)

    def _partly(self, byte_address: int, data: memoryview) -> None:
        limit = self.kills_after
        if limit is not None:
            self.disarm()
            super().write(byte_address, data[:limit])
            self.on_kill()
            raise Killed
        limit = self.fails_after
        if limit is not None:
            self.disarm()
            super().write(byte_address, data[:limit])
            raise device_error(OSError(errno.EIO, "injected"), "write", sense=WRITE_ERROR)

    def write(self, byte_address: int, data: memoryview) -> None:
        self._partly(byte_address, data)
        super().write(byte_address, data)

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        self._partly(byte_address, memoryview(bytes(count)))
        super().zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)

    def discard_all(self) -> None:
        self._partly(0, memoryview(bytes(SIZE)))
        super().discard_all()

    def flush(self) -> None:
        if self.fails_flush:
            self.disarm()
            raise DeviceError("injected", sense=WRITE_ERROR)
        super().flush()


class Story:
    """Drives one mirror; copying is a step like any other.

    Uniform chance would hardly ever have a leg in sync, so the steps have weights: much that is ordinary, little that
    is not, and each end in the middle of something.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="sb-mirror-"))
        self.primary = Disk(self.keep_files)
        self.disks = {name: Disk(self.keep_files) for name in NAMES}
        self.views: dict[str, tuple[SplitView, bytes]] = {}
        self.model = bytearray(SIZE)
        self.boots = 0
        self.durable: dict[Path, bytes] = {}
        self.kept: dict[Path, bytes] = {}
        self.mirror: MirroredDevice | None = None

    def teardown(self) -> None:
        if self.mirror is not None:
            self.mirror.close()
        shutil.rmtree(self.folder)

    def begin(self) -> None:
        data = self.chance.randbytes(SIZE)
        self.primary.write(0, memoryview(data))
        self.model[:] = data
        self.start()

    def start(self) -> None:
        self.mirror = MirroredDevice(
            self.primary,
            self.folder,
            boot_id=f"boot {self.boots}",
            open_leg=lambda name, _: self.disks[name],
            copies_by_itself=False,
        )
        self.keep_files()
        self.durable, self.kept = self.kept, {}

    def keep_files(self) -> None:
        self.kept = {path: path.read_bytes() for path in self.folder.glob("*.leg")}

    def open(self) -> MirroredDevice:
        assert self.mirror is not None
        return self.mirror

    def state(self, name: str) -> LegState:
        return next((s.state for s in self.open().legs() if s.name == name), LegState.REMOVED)

    # --- changes -----------------------------------------------------------------------------

    def change(self, address: int, data: bytes, *, how: str) -> None:
        before = bytes(self.model[address : address + len(data)])
        try:
            if how == "discard":
                self.open().discard_all()
            elif how == "zero":
                self.open().zero(address, len(data), may_punch=True)
            else:
                self.open().write(address, memoryview(data))
        except (DeviceError, Killed) as error:
            after = self.primary.content()[address : address + len(data)]
            assert all(a in (b, d) for a, b, d in zip(after, before, data, strict=True))
            self.model[address : address + len(data)] = after
            if isinstance(error, Killed):
                self.end_process()
        else:
            self.model[address : address + len(data)] = data

    def change_some(self) -> None:
        place = self.chance.randrange(GRANULES) * GRANULE_BYTES
        address = self.chance.choice((place, max(0, place - 1), self.chance.randrange(SIZE)))
        count = min(self.chance.choice(COUNTS), SIZE - address)
        how = self.chance.choice(("write", "write", "zero"))
        data = bytes(count) if how == "zero" else self.chance.randbytes(count)
        self.change(address, data, how=how)

    def discard_everything(self) -> None:
        self.change(0, bytes(SIZE), how="discard")

    def flush(self) -> None:
        is_failing = self.primary.fails_flush
        try:
            self.open().flush()
        except DeviceError:
            assert is_failing

    def any_disk(self) -> Disk:
        return self.chance.choice((self.primary, *self.disks.values()))

    def a_change_that_fails(self) -> None:
        disk = self.any_disk()
        disk.fails_after = self.chance.choice((0, 1, 5000))
        self.change_some()
        disk.disarm()

    def a_change_in_which_the_process_ends(self) -> None:
        disk = self.any_disk()
        disk.kills_after = self.chance.choice((0, 1, 5000))
        self.change_some()
        disk.disarm()

    def flush_that_fails(self) -> None:
        disk = self.any_disk()
        disk.fails_flush = True
        self.flush()
        disk.disarm()

    def read_that_fails_on_the_primary(self) -> None:
        self.primary.fails_read = True
        buffer = bytearray(SIZE)
        has_help = any(s.state is LegState.IN_SYNC for s in self.open().legs())
        try:
            self.open().read_into(0, memoryview(buffer))
        except DeviceError:
            assert not has_help
        else:
            assert has_help
            assert buffer == self.model
        self.primary.disarm()

    # --- legs ------------------------------------------------------------------------------------

    def any_name(self) -> str:
        return self.chance.choice(NAMES)

    def add(self) -> None:
        name = self.any_name()
        if self.state(name) is LegState.REMOVED:
            self.open().add_leg(name, self.disks[name], path=Path(name))

    def remove(self) -> None:
        name = self.any_name()
        with contextlib.suppress(RefusedError, NotFoundError):
            self.open().remove_leg(name)

    def copy_all(self) -> None:
        while self.open().copy_piece() is not None:
            pass

    def copy_one(self) -> None:
        self.open().copy_piece()

    def copy_with_a_fault(self) -> None:
        """A leg fails, the primary cannot be read, or the process ends in the middle of a piece."""
        disk = self.disks[self.any_name()]
        fault = self.chance.choice(("leg", "primary", "end"))
        if fault == "leg":
            disk.fails_after = 3000
        elif fault == "primary":
            self.primary.fails_read = True
        else:
            disk.kills_after = 5000
        try:
            self.open().copy_piece()
        except DeviceError:
            assert fault == "primary"
        except Killed:
            self.end_process()
        self.primary.disarm()
        disk.disarm()

    def split(self) -> None:
        name = self.any_name()
        state = self.state(name)
        try:
            view = self.open().split(name)
        except NotFoundError:
            assert state is LegState.REMOVED
        except RefusedError:
            assert state is not LegState.IN_SYNC
        else:
            assert state is LegState.IN_SYNC
            self.views[name] = view, bytes(self.model)

    def rejoin(self) -> None:
        name = self.any_name()
        with contextlib.suppress(RefusedError, NotFoundError):
            self.open().rejoin(name)

    def resynchronise(self) -> None:
        name = self.any_name()
        with contextlib.suppress(RefusedError, NotFoundError):
            self.open().resynchronise(name)

    # --- ends --------------------------------------------------------------------------------------

    def end_process(self) -> None:
        """The mirror's memory is gone; its files are as they were then, whatever unwinding did to them since."""
        self.mirror = None
        for path, data in self.kept.items():
            path.write_bytes(data)
        self.kept = {}
        for disk in (self.primary, *self.disks.values()):
            disk.disarm()
        self.start_again()

    def start_again(self) -> None:
        self.start()
        for name, (_, content) in list(self.views.items()):
            if self.state(name) is LegState.SPLIT:
                self.views[name] = self.open().view(name), content
            else:
                del self.views[name]

    def end_the_machine(self) -> None:
        self.mirror = None
        for disk in (self.primary, *self.disks.values()):
            disk.crash()
        self.model[:] = self.primary.content()
        if self.chance.random() < 0.5:
            for path, data in self.durable.items():
                if path.exists():
                    path.write_bytes(data)
        self.boots += 1
        self.start_again()
        assert not self.views, "no view is believed after the machine ended"
        assert all(s.state is not LegState.IN_SYNC for s in self.open().legs())

    def close_and_open(self) -> None:
        is_new_boot = self.chance.random() < 0.5
        before = {s.name: s.state for s in self.open().legs()}
        is_doubtful = self.open()._is_doubtful
        self.open().close()
        if is_new_boot:
            for disk in (self.primary, *self.disks.values()):
                disk.crash()
            self.model[:] = self.primary.content()
            self.boots += 1
        self.start_again()
        if not is_doubtful:
            assert {s.name: s.state for s in self.open().legs()} == before

    # --- what always holds ---------------------------------------------------------------------

    def the_volume_is_what_was_written(self) -> None:
        assert self.primary.content() == self.model

    def a_leg_in_sync_is_the_primary(self) -> None:
        for status in self.open().legs():
            if status.state is LegState.IN_SYNC:
                assert self.disks[status.name].content() == self.model

    def a_view_is_the_volume_when_it_was_split(self) -> None:
        for name, (view, content) in list(self.views.items()):
            buffer = bytearray(SIZE)
            try:
                view.read_into(0, memoryview(buffer))
            except DeviceError:
                assert self.state(name) is not LegState.SPLIT
                del self.views[name]
            else:
                assert buffer == content

    def check(self) -> None:
        self.the_volume_is_what_was_written()
        self.a_leg_in_sync_is_the_primary()
        self.a_view_is_the_volume_when_it_was_split()

    def play(self) -> None:
        weights = {
            self.change_some: 30,
            self.copy_one: 15,
            self.copy_all: 12,
            self.split: 12,
            self.rejoin: 10,
            self.add: 8,
            self.flush: 4,
            self.close_and_open: 3,
            self.a_change_in_which_the_process_ends: 3,
            self.a_change_that_fails: 2,
            self.copy_with_a_fault: 2,
            self.end_process: 2,
            self.resynchronise: 2,
            self.read_that_fails_on_the_primary: 2,
            self.end_the_machine: 1,
            self.flush_that_fails: 1,
            self.discard_everything: 1,
            self.remove: 1,
        }
        self.begin()
        for step in self.chance.choices(list(weights), list(weights.values()), k=STEPS):
            step()
            self.check()


@given(seed=st.integers(0, 1 << 32))
@example(seed=0)
def test_a_mirror_and_byte_arrays_tell_the_same_story(seed: int) -> None:
    story = Story(seed)
    try:
        story.play()
    finally:
        story.teardown()
