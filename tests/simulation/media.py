"""What a storage node keeps, without a disk under it: volumes, floors, cartridges.

Each class has the interface of the one that it stands for, and the semantics of the hardware below that: what was not
synchronised is lost in a crash, in part; reads and synchronisations fail now and then.  Everything above it - the stack
of a volume, the drive, the cartridge's log and its recovery - is the real code.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backplane.errors import MediumError
from backplane.ids import ViewId, VolumeId
from backplane.testing.simulator import Process
from storage_node.core.floors import Floor, Floors, Place, RecordFloor
from storage_node.core.tape_index import (
    INDEX_HEADER_BYTES,
    MARK_OFFSETS,
    DurableMark,
    encode_index_header,
    encode_mark,
    seed_of,
)
from storage_node.core.volume_state import (
    DropView,
    DropVolume,
    MakeVolume,
    RecordView,
    RecordVolume,
    ViewRecord,
    VolumeRecord,
)
from storage_node.disk.device import READ_ERROR, WRITE_ERROR, DeviceError
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.volumes import Durable
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import (
    CartridgeInfo,
    counted_load,
)
from storage_node.tape.medium import Buffer
from storage_node.tape.recovery import recover
from storage_node.tape.virtual_drive import VirtualDrive
from tests.simulation.changes import SimulatedTracker
from tests.simulation.facts import (
    BlocksWritten,
    Broken,
    Fact,
    Origin,
    TapeCut,
    TapeWritten,
    ViewDropped,
    ViewKept,
    VolumeDropped,
    VolumeKept,
)


@dataclass(slots=True)
class MediaFaults:
    """Probabilities per operation."""

    disk_read: float = 0.0
    disk_flush: float = 0.0
    tape_read: float = 0.0
    tape_flush: float = 0.0


@dataclass(slots=True)
class Site:
    """What the media of one node share: their process, the faults, whose request is being served, who watches."""

    process: Process
    faults: MediaFaults
    emit: Callable[[Fact], None]
    origin: Origin | None = None
    """Whose data request is being served; None outside of one."""

    def fails(self, probability: float) -> bool:
        """Draw a media fault."""
        return self.process.simulation.chance(probability)


# --- floors --------------------------------------------------------------------------------------


class DurableFloors:
    """Stands for `FloorStore`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._floors = Floors()

    @property
    def floors(self) -> dict[Place, Floor]:
        """A copy of all floors."""
        return self._floors.all

    def record(self, effect: RecordFloor) -> None:
        """Keep a floor."""
        self._site.process.crash_point()
        if self._floors.put(effect):
            self._site.process.crash_point()


# --- volumes -------------------------------------------------------------------------------------


class SimulatedDisk(MemoryDevice):
    """A volume's blocks.  A crash keeps a random part of what was not flushed."""

    def __init__(self, site: Site, record: VolumeRecord) -> None:
        super().__init__(record.size_bytes, block_bytes=record.block_bytes)
        self._site = site
        self._volume = record.volume
        self._unit = record.designator.hex()

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read, or fail."""
        if self._site.fails(self._site.faults.disk_read):
            self._site.emit(Broken(self._volume, "disk read"))
            raise DeviceError("cannot read", sense=READ_ERROR, byte_address=byte_address)
        super().read_into(byte_address, buffer)

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write, and say so."""
        super().write(byte_address, data)
        self._site.emit(
            BlocksWritten(self._volume, self._unit, byte_address, bytes(data), self._site.origin)
        )

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Zero, and say so as a write of zeros."""
        super().zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)
        self._site.emit(
            BlocksWritten(self._volume, self._unit, byte_address, bytes(count), self._site.origin)
        )

    def write_through(self, lba: int, data: bytes) -> None:
        """Write blocks and make them durable at once: the workstation's writes are forced (FUA)."""
        super().write(lba * self.block_bytes, memoryview(data))
        for index in range(lba, lba + len(data) // self.block_bytes):
            self._make_durable(index)
        self._site.emit(BlocksWritten(self._volume, self._unit, lba * self.block_bytes, data, None))

    def punch_through(self, lba: int, blocks: int) -> None:
        """Give blocks back, durably; they are zeros from now on."""
        super().zero(lba * self.block_bytes, blocks * self.block_bytes, may_punch=True)
        for index in range(lba, lba + blocks):
            self._make_durable(index)
        zeros = bytes(blocks * self.block_bytes)
        self._site.emit(
            BlocksWritten(self._volume, self._unit, lba * self.block_bytes, zeros, None)
        )

    def flush(self) -> None:
        """Flush, or fail and lose what should have been flushed: the next flush has nothing to do and succeeds."""
        if self._written and self._site.fails(self._site.faults.disk_flush):
            self._site.emit(Broken(self._volume, "disk flush"))
            self._written.clear()
            raise DeviceError("cannot flush", sense=WRITE_ERROR)
        super().flush()

    def crash(self) -> None:
        """Lose a random part of what was not flushed."""
        random = self._site.process.simulation.random
        for index in sorted(self._written):
            if random.random() < 0.5:
                self._make_durable(index)
        self._written.clear()

    def durable_content(self) -> bytes:
        """Return everything that a crash would leave at least."""
        zeros = bytes(self.block_bytes)
        blocks = range(self.size_bytes // self.block_bytes)
        return b"".join(self._durable.get(number, zeros) for number in blocks)


class DurableVolumes:
    """Stands for `VolumeStore`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._records: dict[VolumeId, VolumeRecord] = {}
        self._views: dict[ViewId, ViewRecord] = {}
        self.devices: dict[VolumeId, SimulatedDisk] = {}
        self.trackers: dict[VolumeId, SimulatedTracker] = {}
        self.mirrors: dict[VolumeId, None] = {}

    def load(self) -> tuple[list[VolumeRecord], list[ViewRecord]]:
        """Return what a restarted node finds."""
        return list(self._records.values()), list(self._views.values())

    def path(self, record: VolumeRecord) -> Path:
        """Return a path for people."""
        return Path("/volumes") / record.volume

    def perform(self, effect: Durable) -> None:
        """Carry out one effect, durably."""
        self._site.process.crash_point()
        self._perform(effect)
        self._site.process.crash_point()

    def _perform(self, effect: Durable) -> None:
        match effect:
            case MakeVolume(record):
                self.devices[record.volume] = SimulatedDisk(self._site, record)
                self.trackers[record.volume] = SimulatedTracker(
                    self._site.process.simulation,
                    size_bytes=record.size_bytes,
                    block_bytes=record.block_bytes,
                )
                self._keep(record)
            case RecordVolume(record):
                self._keep(record)
            case DropVolume(record):
                del self._records[record.volume]
                del self.devices[record.volume]
                del self.trackers[record.volume]
                self._site.emit(VolumeDropped(record.volume))
            case RecordView(view):
                self._views[view.view] = view
                self._site.emit(
                    ViewKept(view.view, view.volume, self.devices[view.volume].durable_content())
                )
            case DropView(view):
                self._views.pop(view.view, None)
                self._site.emit(ViewDropped(view.view))

    def _keep(self, record: VolumeRecord) -> None:
        self._records[record.volume] = record
        self._site.emit(
            VolumeKept(
                volume=record.volume,
                unit=record.designator.hex(),
                state=record.state.value,
                job=record.job,
                content=self.devices[record.volume].durable_content(),
            )
        )

    def crash(self) -> None:
        """Lose what is volatile."""
        for device in self.devices.values():
            device.crash()
        for tracker in self.trackers.values():
            tracker.crash()

    def close(self) -> None:
        """Nothing to close."""


# --- cartridges ----------------------------------------------------------------------------------


class SimulatedMedium:
    """One file of a cartridge, with a cache: a crash keeps a prefix of what was not synchronised, its end torn."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.durable = bytearray()
        self._cached = bytearray()
        self._pending: list[tuple[int, bytes | None]] = []
        """(offset, bytes) of a write, (size, None) of a truncation."""

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write into the cache."""
        data = b"".join(buffers)
        _apply(self._cached, offset, data)
        self._pending.append((offset, data))

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Read from the cache."""
        done = 0
        for buffer in buffers:
            piece = self._cached[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
            if len(piece) < len(buffer):
                break
        return done

    def file_range(self, offset: int) -> None:
        """There is no file."""

    def synchronise(self) -> None:
        """Make it durable, or fail and lose it."""
        if not self._pending:
            return
        if self._site.fails(self._site.faults.tape_flush):
            self._pending.clear()
            self._site.process.simulation.probe("tape: synchronisation failed")
            self._site.emit(Broken("a cartridge", "tape flush"))
            raise OSError(errno.EIO, "simulated")
        self._site.process.crash_point()
        for offset, data in self._pending:
            _apply(self.durable, offset, data)
        self._pending.clear()
        self._site.process.crash_point()

    def truncate(self, size: int) -> None:
        """Set the size, in the cache."""
        _apply(self._cached, size, None)
        self._pending.append((size, None))

    def forget_cache(self, offset: int) -> None:
        """Look at the medium again."""
        if not self._pending:
            self._cached[:] = self.durable

    def size(self) -> int:
        """Return the size."""
        return len(self._cached)

    def free_bytes(self) -> int:
        """There is always room in the host's file system."""
        return 1 << 40

    def close(self) -> None:
        """Nothing to close."""

    def crash(self) -> None:
        """Keep a prefix of what was not synchronised, the last write of it torn."""
        random = self._site.process.simulation.random
        kept = random.randint(0, len(self._pending))
        for offset, data in self._pending[:kept]:
            _apply(self.durable, offset, data)
        if kept < len(self._pending):
            offset, data = self._pending[kept]
            if data is not None and random.random() < 0.5:
                self._site.process.simulation.probe("tape: torn write")
                _apply(self.durable, offset, data[: random.randrange(len(data) + 1)])
        self._pending.clear()
        self._cached[:] = self.durable


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


@dataclass(slots=True)
class Shelf:
    """A cartridge as a thing: its chip and its two files."""

    site: Site
    info: CartridgeInfo
    data: SimulatedMedium = field(init=False)
    index: SimulatedMedium = field(init=False)

    def __post_init__(self) -> None:
        self.data, self.index = SimulatedMedium(self.site), SimulatedMedium(self.site)
        seed = seed_of(self.info.seed_bytes)
        self.index.truncate(INDEX_HEADER_BYTES)
        self.index.write([encode_index_header(self.info.seed_bytes)], 0)
        self.index.write([encode_mark(DurableMark(1, 0, 0, 1), seed=seed)], MARK_OFFSETS[1])
        self.index.synchronise()

    def crash(self) -> None:
        """Lose what is volatile."""
        self.data.crash()
        self.index.crash()


class SimulatedCartridge(Cartridge):
    """The real log over simulated files."""

    shelf: Shelf
    unit: str

    @classmethod
    def on(cls, shelf: Shelf, *, unit: str) -> SimulatedCartridge:
        """Open what is on a shelf; as `Cartridge.open`."""
        seed = seed_of(shelf.info.seed_bytes)
        folder = Path(shelf.info.tag)
        try:
            found = recover(shelf.data, shelf.index, serial=shelf.info.seed_bytes, seed=seed)
            cartridge = cls(folder, shelf.info, data=shelf.data, index=shelf.index, found=found)
            cartridge.shelf, cartridge.unit = shelf, unit
            cartridge._adopt_tail()
        except OSError as error:
            raise MediumError(f"cartridge {shelf.info.tag} cannot be opened") from error
        return cartridge

    def save_info(self, info: CartridgeInfo) -> None:
        """Keep the facts of the cartridge."""
        self.info = self.shelf.info = info

    def append_record(self, data: Buffer, *, crc32c: int, length: int = 0) -> None:
        """Append, and say so."""
        assert not length, "the simulated drive does not compress"
        number = self.object_count
        super().append_record(data, crc32c=crc32c)
        self._say_written(number, bytes(data))

    def append_filemark(self) -> None:
        """Append, and say so."""
        number = self.object_count
        super().append_filemark()
        self._say_written(number, None)

    def _say_written(self, number: int, data: bytes | None) -> None:
        site = self.shelf.site
        site.emit(TapeWritten(self.info.tag, self.unit, number, data, site.origin))

    def truncate(self, number: int) -> None:
        """Truncate, and say so."""
        site = self.shelf.site
        what = "orphan tail overwritten" if number else "erased"
        site.process.simulation.probe(f"tape: {what}")
        site.emit(TapeCut(self.info.tag, self.unit, number, site.origin))
        super().truncate(number)

    def read(self, entry: object, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read, or fail."""
        site = self.shelf.site
        if site.origin is not None and site.fails(site.faults.tape_read):
            site.emit(Broken(self.info.tag, "tape read"))
            raise OSError(errno.EIO, "simulated")
        return super().read(entry, buffers)  # type: ignore[arg-type]


class SimulatedDrive(VirtualDrive):
    """The real drive; cartridges come from shelves."""

    unit = ""

    def load_shelf(self, shelf: Shelf, *, announce: bool = True) -> SimulatedCartridge:
        """Put a cartridge in; as `load`."""
        assert self._cartridge is None
        cartridge = SimulatedCartridge.on(shelf, unit=self.unit)
        if announce:
            cartridge.save_info(counted_load(cartridge.info))
        self._look_at_space(cartridge)
        self._cartridge = cartridge
        self._position = 0
        self._has_attention = announce
        self._permission = None
        return cartridge
