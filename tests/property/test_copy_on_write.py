"""Snapshots against a model that simply copies the volume, over random stories with restarts, crashes and full stores.

The files are real; a crash of the process is: all descriptors closed, nothing written any more, and the journal cut
anywhere within what was being appended.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from backplane.ids import ViewId
from storage_node.core.copy_on_write import GRANULE_BYTES
from storage_node.disk.device import DeviceError
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.snapshot_files import SnapshotFiles, list_snapshots
from storage_node.disk.snapshots import Snapshot, State

SIZE = 6 * GRANULE_BYTES + 512
PLENTY = 1 << 30
ADDRESSES = st.one_of(
    st.integers(0, SIZE - 1),
    st.builds(
        lambda granule, off: min(SIZE - 1, max(0, granule * GRANULE_BYTES + off)),
        st.integers(0, 6),
        st.integers(-1, 1),
    ),
)
COUNTS = st.one_of(st.integers(1, 600), st.integers(1, SIZE))


@dataclass
class Kept:
    """A snapshot, and what the model knows about it."""

    name: str
    snapshot: Snapshot
    content: bytes
    granules: set[int]
    has_plenty: bool
    is_broken: bool = False
    doubtful: set[int] = field(default_factory=set)
    """Promised once and not any more: what was saved by then is still there, the rest is refused."""


class Files(SnapshotFiles):
    """Files whose store fails when it is told to."""

    is_full = False

    def write_store(self, data: memoryview, offset: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_store(data, offset)


class Story(RuleBasedStateMachine):
    """What can happen to a volume with snapshots."""

    kept = Bundle("kept")

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("storage_node.disk.snapshots.SnapshotFiles", Files)
        self.temporary = tempfile.TemporaryDirectory(prefix="cow-")
        self.folder = Path(self.temporary.name)
        self.all: list[Kept] = []
        self.boot = 1
        self.made = 0

    @initialize(data=st.binary(min_size=1, max_size=8))
    def begin(self, data: bytes) -> None:
        make_sparse_file(self.folder / "live", size_bytes=SIZE)
        self.live = FileDevice(self.folder / "live", block_bytes=512)
        self.model = bytearray(SIZE)
        first = data * (3 * GRANULE_BYTES // len(data))
        self.live.write(0, memoryview(first))
        self.model[: len(first)] = first

    def _save(self, start: int, end: int) -> None:
        for kept in self.all:
            kept.snapshot.save_before(start, end)
            self._expect(kept)

    def _expect(self, kept: Kept) -> None:
        """A snapshot with room that nothing happened to is good; a broken one stays broken."""
        if kept.is_broken:
            assert kept.snapshot.state is State.BROKEN
        elif kept.has_plenty:
            assert kept.snapshot.state is State.ACTIVE
        kept.is_broken = kept.snapshot.state is State.BROKEN

    @rule(start=ADDRESSES, count=COUNTS, byte=st.integers(0, 255))
    def write(self, start: int, count: int, byte: int) -> None:
        data = bytes([byte]) * min(count, SIZE - start)
        self._save(start, start + len(data))
        self.live.write(start, memoryview(data))
        self.model[start : start + len(data)] = data

    @rule(start=ADDRESSES, count=COUNTS, may_punch=st.booleans())
    def zero(self, start: int, count: int, may_punch: bool) -> None:
        count = min(count, SIZE - start)
        self._save(start, start + count)
        self.live.zero(start, count, may_punch=may_punch)
        self.model[start : start + count] = bytes(count)

    @rule(
        target=kept,
        protected=st.none() | st.lists(st.tuples(ADDRESSES, COUNTS), max_size=3),
        reserve=st.sampled_from([PLENTY, PLENTY, PLENTY, 2 * GRANULE_BYTES]),
    )
    def make(self, protected: list[tuple[int, int]] | None, reserve: int) -> object:
        if len(self.all) >= 3:
            return multiple()
        self.made += 1
        name = f"s{self.made}"
        runs = None if protected is None else [(a, min(SIZE, a + n)) for a, n in protected]
        snapshot = Snapshot.create(
            self.folder / name,
            view=ViewId(name),
            live=self.live,
            protected=runs,
            reserve_bytes=reserve,
            budget_s=60.0,
            boot_id=f"boot-{self.boot}",
            on_broken=lambda _reason: None,
        )
        whole = [(0, SIZE)] if runs is None else runs
        granules = {g for a, b in whole for g in range(a // GRANULE_BYTES, -(-b // GRANULE_BYTES))}
        kept = Kept(name, snapshot, bytes(self.model), granules, reserve == PLENTY)
        self.all.append(kept)
        return kept

    @rule(kept=kept, start=ADDRESSES, count=COUNTS)
    def read(self, kept: Kept, start: int, count: int) -> None:
        if kept not in self.all:
            return
        count = min(count, SIZE - start)
        buffer = bytearray(b"\xa5" * count)
        reader = kept.snapshot.reader()
        try:
            wanted = set(range(start // GRANULE_BYTES, -(-(start + count) // GRANULE_BYTES)))
            if kept.is_broken or not wanted <= kept.granules | kept.doubtful:
                with pytest.raises(DeviceError):
                    reader.read_into(start, memoryview(buffer))
                return
            try:
                reader.read_into(start, memoryview(buffer))
            except DeviceError:
                assert not wanted <= kept.granules
                return
            assert buffer == kept.content[start : start + count]
            found = reader.file_range(start, count)
            assert found is None or os.pread(found.descriptor, count, found.offset) == buffer
        finally:
            reader.close()

    @rule(kept=kept, start=ADDRESSES, count=COUNTS)
    def ask_for_extents(self, kept: Kept, start: int, count: int) -> None:
        if kept not in self.all or kept.is_broken:
            return
        start, end = start - start % 512, min(SIZE, start + count)
        end += -end % 512
        left = bytearray(kept.content)
        last = start - 1
        reader = kept.snapshot.reader()
        for low, high in reader.extents(start, end):
            assert start <= low < high <= end
            assert low > last
            assert low % 512 == high % 512 == 0
            left[low:high] = bytes(high - low)
            last = high
        reader.close()
        assert not any(left[start:end])

    @rule(kept=kept, runs=st.lists(st.tuples(ADDRESSES, COUNTS), max_size=3))
    def narrow(self, kept: Kept, runs: list[tuple[int, int]]) -> None:
        if kept not in self.all:
            return
        left = [(start, min(SIZE, start + count)) for start, count in runs]
        if kept.is_broken:
            with pytest.raises(DeviceError):
                kept.snapshot.narrow(left)
            return
        kept.snapshot.narrow(left)
        promised = {
            g for a, b in left for g in range(a // GRANULE_BYTES, -(-b // GRANULE_BYTES))
        } & kept.granules
        kept.doubtful |= kept.granules - promised
        kept.granules = promised

    @rule(kept=consumes(kept))
    def release(self, kept: Kept) -> None:
        if kept not in self.all:
            return
        kept.snapshot.release()
        assert not (self.folder / kept.name).exists()
        self.all.remove(kept)

    @rule()
    def store_is_full(self) -> None:
        """Every snapshot that has to save something breaks; the write does not notice."""
        Files.is_full = True
        try:
            for kept in self.all:
                kept.has_plenty = False
            self.write(0, SIZE, 7)
        finally:
            Files.is_full = False

    @rule(is_machine=st.booleans())
    def restart(self, is_machine: bool) -> None:
        for kept in self.all:
            kept.snapshot.close()
        self._reopen(is_machine=is_machine)

    @rule(start=ADDRESSES, count=COUNTS, data=st.data())
    def crash_while_saving(self, start: int, count: int, data: st.DataObject) -> None:
        """The process dies before the write reaches the volume, with the journal cut anywhere behind its last end."""
        before = {kept.name: self._journal(kept).stat().st_size for kept in self.all}
        self._save(start, min(SIZE, start + count))
        for kept in self.all:
            kept.snapshot.close()
            path = self._journal(kept)
            cut = data.draw(st.integers(before[kept.name], path.stat().st_size))
            os.truncate(path, cut)
        self._reopen(is_machine=False)

    def _journal(self, kept: Kept) -> Path:
        return self.folder / kept.name / "journal"

    def _reopen(self, *, is_machine: bool) -> None:
        self.boot += is_machine
        assert {found.folder.name for found in list_snapshots(self.folder)} == {
            kept.name for kept in self.all
        }
        for kept in self.all:
            was_broken = kept.is_broken
            kept.snapshot = Snapshot.open(
                self.folder / kept.name,
                live=self.live,
                boot_id=f"boot-{self.boot}",
                budget_s=60.0,
                on_broken=lambda _reason: None,
            )
            kept.is_broken = was_broken or is_machine
            expected = State.BROKEN if kept.is_broken else State.ACTIVE
            assert kept.snapshot.state is expected

    @invariant()
    def the_volume_is_never_harmed(self) -> None:
        if not hasattr(self, "live"):
            return
        buffer = bytearray(SIZE)
        self.live.read_into(0, memoryview(buffer))
        assert buffer == self.model

    def teardown(self) -> None:
        try:
            for kept in self.all:
                kept.snapshot.release()
            if hasattr(self, "live"):
                self.live.close()
                assert [path.name for path in self.folder.iterdir()] == ["live"]
        finally:
            self.temporary.cleanup()
            self.patch.undo()


TestStory = Story.TestCase
