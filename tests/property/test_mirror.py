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

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

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
ADDRESSES = st.one_of(
    st.integers(0, SIZE - 1),
    st.integers(0, GRANULES - 1).map(lambda n: n * GRANULE_BYTES),
    st.integers(1, GRANULES - 1).map(lambda n: n * GRANULE_BYTES - 1),
)
COUNTS = st.sampled_from([1, 2, BLOCK, 4096, GRANULE_BYTES, GRANULE_BYTES + 1, SIZE])


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


class MirrorMachine(RuleBasedStateMachine):
    """Drives one mirror; `copy_piece` is a step like any other."""

    def __init__(self) -> None:
        super().__init__()
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

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        data = random.Random(seed).randbytes(SIZE)
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

    @rule(address=ADDRESSES, count=COUNTS, how=st.sampled_from(["write", "write", "zero"]))
    def change_some(self, address: int, count: int, how: str) -> None:
        count = min(count, SIZE - address)
        seed = address + count + len(self.views)
        data = bytes(count) if how == "zero" else random.Random(seed).randbytes(count)
        self.change(address, data, how=how)

    @rule()
    def discard_everything(self) -> None:
        self.change(0, bytes(SIZE), how="discard")

    @rule()
    def flush(self) -> None:
        is_failing = self.primary.fails_flush
        try:
            self.open().flush()
        except DeviceError:
            assert is_failing

    @rule(
        address=ADDRESSES,
        count=COUNTS,
        done=st.sampled_from([0, 1, 5000]),
        where=st.sampled_from(["primary", *NAMES]),
        is_end=st.booleans(),
    )
    def change_that_breaks_off(
        self, address: int, count: int, done: int, where: str, is_end: bool
    ) -> None:
        """One device fails in the middle, or the process ends there."""
        disk = self.primary if where == "primary" else self.disks[where]
        if is_end:
            disk.kills_after = done
        else:
            disk.fails_after = done
        self.change_some(address, count, "write")
        disk.disarm()

    @rule(where=st.sampled_from(["primary", *NAMES]))
    def flush_that_fails(self, where: str) -> None:
        disk = self.primary if where == "primary" else self.disks[where]
        disk.fails_flush = True
        self.flush()
        disk.disarm()

    @rule()
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

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        assume(self.state(name) is LegState.REMOVED)
        self.open().add_leg(name, self.disks[name], path=Path(name))

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        with contextlib.suppress(RefusedError, NotFoundError):
            self.open().remove_leg(name)

    @rule(steps=st.sampled_from([1, 2, 20]), fails=st.sampled_from(["", "", "", *NAMES]))
    def copy(self, steps: int, fails: str) -> None:
        if fails:
            self.disks[fails].fails_after = 3000
        for _ in range(steps):
            if self.open().copy_piece() is None:
                break
        if fails:
            self.disks[fails].disarm()

    @rule(name=st.sampled_from(NAMES), fault=st.sampled_from(["", "leg", "kill"]))
    def copy_with_a_fault(self, name: str, fault: str) -> None:
        """The copy reads a primary that cannot be read, or the process ends in the middle of a piece."""
        if fault == "kill":
            self.disks[name].kills_after = 5000
        else:
            self.primary.fails_read = True
        try:
            self.open().copy_piece()
        except DeviceError:
            pass
        except Killed:
            self.end_process()
        self.primary.disarm()
        self.disks[name].disarm()

    @rule(name=st.sampled_from(NAMES))
    def split(self, name: str) -> None:
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

    @rule(name=st.sampled_from(NAMES))
    def rejoin(self, name: str) -> None:
        with contextlib.suppress(RefusedError, NotFoundError):
            self.open().rejoin(name)

    @rule(name=st.sampled_from(NAMES))
    def resynchronise(self, name: str) -> None:
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

    @rule()
    def end_the_process(self) -> None:
        self.end_process()

    @rule(is_written_back=st.booleans())
    def end_the_machine(self, is_written_back: bool) -> None:
        self.mirror = None
        for disk in (self.primary, *self.disks.values()):
            disk.crash()
        self.model[:] = self.primary.content()
        if not is_written_back:
            for path, data in self.durable.items():
                if path.exists():
                    path.write_bytes(data)
        self.boots += 1
        self.start_again()
        assert not self.views, "no view is believed after the machine ended"
        assert all(s.state is not LegState.IN_SYNC for s in self.open().legs())

    @rule(is_new_boot=st.booleans())
    def close_and_open(self, is_new_boot: bool) -> None:
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

    @invariant()
    @precondition(lambda self: self.mirror is not None)
    def the_volume_is_what_was_written(self) -> None:
        assert self.primary.content() == self.model

    @invariant()
    @precondition(lambda self: self.mirror is not None)
    def a_leg_in_sync_is_the_primary(self) -> None:
        for status in self.open().legs():
            if status.state is LegState.IN_SYNC:
                assert self.disks[status.name].content() == self.model

    @invariant()
    @precondition(lambda self: self.mirror is not None)
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


MirrorMachine.TestCase.settings = settings(stateful_step_count=40)
test_a_mirror_and_byte_arrays = MirrorMachine.TestCase
