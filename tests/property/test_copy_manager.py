"""The copy manager against a naive model of SPC-4 5.17.7.2 (extended-copy sections 6, 8 and 10).

The model shares no code with the mover.  It moves one byte at a time between plain lists, so that "just enough whole
reads" and "as many whole writes as possible" are the only way it can work.  The residual count is not computed by a
formula: the failing segment is done once more on devices that never fail, and what was written is subtracted.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.ids import Designator
from backplane.scsi import segment as seg
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.cscd import (
    NULL_BLOCK_UNIT,
    NULL_STREAM_UNIT,
    IdentificationCscd,
    block_cscd,
    stream_cscd,
)
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.sense import Sense
from mover_node.core import destination, source
from mover_node.core.abort import Ended
from mover_node.core.copy_manager import CopyManager
from mover_node.executor import Performer, execute
from mover_node.runs import InFlight
from mover_node.streams.base import Device
from mover_node.streams.faulty import Damage, FaultyDisk, FaultyTape
from mover_node.streams.memory import FILEMARK, MemoryCarrier, MemoryDisk, MemoryTape, TapeObject

OPERATING = replace(MOVER_PARAMETERS, data_segment_granularity=0)
BLOCK = 8

# --- the model -----------------------------------------------------------------------------------


class Failed(Exception):  # noqa: N818 - an outcome of the model
    """A segment ended: (asc, ascq) and whose answer it was."""

    def __init__(self, asc: int, ascq: int, who: str = "", *, done: bool = False) -> None:
        super().__init__(asc, ascq, who)
        self.code = (asc, ascq)
        self.who = who
        self.done = done


UNREACHABLE = (0x08, 0x04)


@dataclass
class ModelDisk:
    data: bytearray
    block: int
    bad: set[int] = field(default_factory=set)
    ideal: bool = False

    def read(self, lba: int) -> bytes:
        if self.ideal:
            return bytes(self.block)
        if lba in self.bad:
            raise Failed(0x0D, 0x01, "failed")
        return bytes(self.data[lba * self.block : (lba + 1) * self.block])

    def write(self, address: int, data: bytes) -> None:
        if not self.ideal:
            self.data[address : address + len(data)] = data


@dataclass
class ModelTape:
    objects: list[TapeObject]
    position: int = 0
    warning: int = 1 << 60
    capacity: int = 1 << 60
    bad: set[int] = field(default_factory=set)
    ideal: bool = False

    def read(self, size: int) -> bytes:
        if self.ideal:
            return bytes(size)
        at = self.position
        if at >= len(self.objects) or at in self.bad:
            raise Failed(0x0D, 0x01, "failed")
        self.position += 1
        found = self.objects[at]
        if not isinstance(found, bytes) or len(found) != size:
            raise Failed(0x0D, 0x01, "failed")
        return found

    def write(self, data: bytes) -> bool:
        """Write a record; returns whether early warning was met."""
        if self.ideal:
            return False
        before = sum(len(o) for o in self.objects[: self.position] if isinstance(o, bytes))
        if before + len(data) > self.capacity:
            raise Failed(0x0D, 0x01, "failed")
        self.objects[self.position :] = [data]
        self.position += 1
        return before + len(data) > self.warning

    def mark(self, count: int) -> bool:
        if count:
            self.objects[self.position :] = [FILEMARK] * count
            self.position += count
        used = sum(len(o) for o in self.objects[: self.position] if isinstance(o, bytes))
        return used > self.warning


@dataclass
class Result:
    """What both sides are compared by."""

    code: tuple[int, int] | None
    segment: int
    residual: int | None
    forwards: str


class Model:
    """Processes a list byte by byte."""

    def __init__(self, parameters: ParameterList, devices: list[ModelDisk | ModelTape]) -> None:
        self.parameters = parameters
        self.devices = devices
        self.source: list[int] = []
        self.destination: list[int] = []
        self.written = 0
        self.ideal = False

    def run(self) -> Result:
        for number in range(len(self.parameters.segments)):
            ideal = copy.deepcopy(self)
            ideal.ideal = True
            for device in ideal.devices:
                device.ideal = True
            self.written = 0
            try:
                self.one(number)
            except Failed as failed:
                residual = None
                if self.written:
                    ideal.written = 0
                    with contextlib.suppress(Failed):
                        ideal.one(number)
                    residual = ideal.written - self.written
                if failed.done:
                    residual = 0
                return Result(failed.code, number, residual, failed.who)
        return Result(None, len(self.parameters.segments), None, "")

    def one(self, number: int) -> None:
        s = self.parameters.segments[number]
        match s:
            case seg.WriteFilemarks():
                tape = self.tape(s.destination_cscd_descriptor_id)
                if tape.mark(s.filemark_count):
                    raise Failed(0x0D, 0x01, "destination", done=True)
                return
            case seg.Locate():
                tape = self.tape(s.destination_cscd_descriptor_id)
                wanted = s.logical_object_identifier
                if not tape.ideal:
                    tape.position = min(wanted, len(tape.objects))
                    if wanted > len(tape.objects):
                        raise Failed(0x0D, 0x01, "destination")
                return
            case seg.VerifyCscd():
                self.unit(s.source_cscd_descriptor_id)
                if s.tur and s.source_cscd_descriptor_id >= 0xC000:
                    raise Failed(*UNREACHABLE)
                return
        self.move(s)

    # Devices by CSCD id; null units are None with the type asked for.

    def unit(self, number: int) -> tuple[IdentificationCscd | None, ModelDisk | ModelTape | None]:
        if number in (NULL_BLOCK_UNIT, NULL_STREAM_UNIT):
            return None, None
        if number >= len(self.parameters.cscds):
            raise Failed(*UNREACHABLE)
        return self.parameters.cscds[number], self.devices[number]

    def tape(self, number: int) -> ModelTape:
        _, device = self.unit(number)
        if device is None:
            if number != NULL_STREAM_UNIT:
                raise Failed(0x26, 0x0C)
            raise Failed(*UNREACHABLE)
        if not isinstance(device, ModelTape):
            raise Failed(0x26, 0x0C)
        return device

    def end(
        self, s: seg.SegmentDescriptor, name: str, kind: type
    ) -> tuple[IdentificationCscd | None, ModelDisk | ModelTape | None]:
        number = getattr(s, f"{name}_cscd_descriptor_id")
        cscd, device = self.unit(number)
        null = {ModelDisk: NULL_BLOCK_UNIT, ModelTape: NULL_STREAM_UNIT}[kind]
        if (device is None and number != null) or (device is not None and type(device) is not kind):
            raise Failed(0x26, 0x0C)
        return cscd, device

    def move(self, s: seg.SegmentDescriptor) -> None:
        has_source = hasattr(s, "source_cscd_descriptor_id")
        has_destination = hasattr(s, "destination_cscd_descriptor_id")
        from_disk = isinstance(
            s,
            seg.BlockToStream
            | seg.BlockOffsetToStream
            | seg.BlockToBlock
            | seg.BlockOffsetToBlockOffset,
        )
        to_disk = isinstance(
            s,
            seg.StreamToBlock
            | seg.StreamToBlockOffset
            | seg.BlockToBlock
            | seg.BlockOffsetToBlockOffset,
        )
        if has_source:
            self.unit(s.source_cscd_descriptor_id)
        if has_destination:
            self.unit(s.destination_cscd_descriptor_id)
        source_cscd = source_device = target_cscd = target = None
        if has_source:
            source_cscd, source_device = self.end(
                s, "source", ModelDisk if from_disk else ModelTape
            )
        if has_destination:
            target_cscd, target = self.end(s, "destination", ModelDisk if to_disk else ModelTape)
        self.Mover(self, s, source_cscd, source_device, target_cscd, target).go()

    class Mover:
        """One data segment."""

        def __init__(self, model, s, source_cscd, source, target_cscd, target) -> None:
            self.model, self.s = model, s
            self.source_cscd, self.source = source_cscd, source
            self.target_cscd, self.target = target_cscd, target
            self.source_pad = hasattr(s, "source_cscd_descriptor_id") and (
                source_cscd is None or source_cscd.pad
            )
            self.target_pad = hasattr(s, "destination_cscd_descriptor_id") and (
                target_cscd is None or target_cscd.pad
            )
            self.room: int | None = None  # bytes of a bounded range
            self.skip = 0
            self.read_at = self.write_at = 0
            self.append = b""
            self.count = 0
            self.describe()

        def describe(self) -> None:
            s, block = self.s, self.source.block if isinstance(self.source, ModelDisk) else 1
            to_block = self.target.block if isinstance(self.target, ModelDisk) else 1
            match s:
                case seg.BlockToStream():
                    self.count = s.block_device_number_of_blocks * block
                    self.read_at = s.block_device_logical_block_address * block
                case seg.BlockOffsetToStream():
                    self.count = s.number_of_bytes
                    self.read_at = (
                        s.block_device_logical_block_address * block + s.block_device_byte_offset
                    )
                case seg.StreamToBlock():
                    self.room = s.block_device_number_of_blocks * to_block
                    self.count = max(0, self.room - len(self.model.destination))
                    self.write_at = s.block_device_logical_block_address * to_block
                case seg.StreamToBlockOffset():
                    self.room = self.count = s.number_of_bytes
                    self.write_at = (
                        s.block_device_logical_block_address * to_block + s.block_device_byte_offset
                    )
                case seg.BlockToBlock():
                    self.read_at = s.source_block_device_logical_block_address * block
                    self.write_at = s.destination_block_device_logical_block_address * to_block
                    if s.dc:
                        self.room = s.block_device_number_of_blocks * to_block
                        self.count = max(0, self.room - len(self.model.destination))
                    else:
                        self.count = s.block_device_number_of_blocks * block
                case seg.BlockOffsetToBlockOffset():
                    self.room = self.count = s.number_of_bytes
                    self.read_at = (
                        s.source_block_device_logical_block_address * block
                        + s.source_block_device_byte_offset
                    )
                    self.write_at = (
                        s.destination_block_device_logical_block_address * to_block
                        + s.destination_block_device_byte_offset
                    )
                case seg.StreamToStream():
                    self.count = s.byte_count
                case seg.StreamToDiscard():
                    self.count = s.number_of_bytes
                case seg.InlineToStream():
                    start = s.inline_data_offset
                    end = start + s.inline_data_number_of_bytes
                    if end > len(self.model.parameters.inline_data):
                        raise Failed(0x26, 0x0B)
                    self.append = self.model.parameters.inline_data[start:end]
                case seg.EmbeddedToStream():
                    self.append = s.embedded_data

        def go(self) -> None:
            self.check()
            model = self.model
            model.destination += self.append
            self.write()
            for _ in range(self.count):
                if not model.source:
                    self.read()
                byte = model.source.pop(0)
                if hasattr(self.s, "destination_cscd_descriptor_id"):
                    model.destination.append(byte)
                    self.write()
            self.residue()

        def check(self) -> None:
            if isinstance(self.source, ModelDisk):
                end = self.read_at + self.count
                if self.count and end > len(self.source.data):
                    raise Failed(0x00, 0x00)
            if isinstance(self.target, ModelDisk):
                size = len(self.target.data)
                # What would be written: found by doing the segment on paper.
                total = len(self.model.destination) + self.count
                if self.room is not None:
                    last = self.write_at + self.room if self.room else 0
                else:
                    block = self.target.block
                    whole = total // block * block
                    pads = self.target_pad and not self.s.cat and total % block
                    last = self.write_at + whole + (block if pads else 0) if whole or pads else 0
                if last > size:
                    raise Failed(0x00, 0x00)

        def read(self) -> None:
            if self.source is None and self.model.ideal:
                self.model.source.append(0)
                return
            if self.source is None:
                raise Failed(*UNREACHABLE)
            try:
                if isinstance(self.source, ModelDisk):
                    lba, skip = divmod(self.read_at, self.source.block)
                    self.model.source += self.source.read(lba)[skip:]
                    self.read_at = (lba + 1) * self.source.block
                    return
                name = "stream_device_transfer_length"
                length = getattr(self.s, name, getattr(self.s, "source_" + name, 0))
                size = self.source_cscd.stream_block_length
                for part in [size] * length if size else [length]:
                    self.model.source += self.source.read(part)
            except Failed as failed:
                raise Failed(*failed.code, "source") from None

        def write(self, *, padded: bool = False) -> None:
            try:
                if isinstance(self.target, ModelTape):
                    self.write_records(padded)
                elif isinstance(self.target, ModelDisk):
                    self.write_blocks(padded)
                elif self.target_cscd is None and hasattr(self.s, "destination_cscd_descriptor_id"):
                    self.write_null(padded)
            except Failed as failed:
                raise Failed(*failed.code, failed.who and "destination") from None

        def write_null(self, padded: bool) -> None:
            name = "stream_device_transfer_length"
            length = getattr(self.s, name, getattr(self.s, "destination_" + name, None))
            if length is None or isinstance(self.s, seg.StreamToBlock | seg.StreamToBlockOffset):
                # A null block device has no block length: any byte is a block to be written.
                if self.model.destination and self.room != 0:
                    raise Failed(*UNREACHABLE)
            elif padded or (length and len(self.model.destination) >= length):
                raise Failed(*UNREACHABLE)

        def write_records(self, padded: bool) -> None:
            name = "stream_device_transfer_length"
            length = getattr(self.s, name, getattr(self.s, "destination_" + name, 0))
            size = self.target_cscd.stream_block_length
            transfer = length * (size or 1)
            data = self.model.destination
            if padded:
                data += bytes(transfer - len(data))
            while transfer and len(data) >= transfer:
                warned = False
                for part in [size] * length if size else [transfer]:
                    warned |= self.target.write(bytes(data[:part]))
                    del data[:part]
                    self.model.written += 1 if size else part
                if warned:
                    raise Failed(0x0D, 0x01, "failed")

        def write_blocks(self, padded: bool) -> None:
            data, block = self.model.destination, self.target.block
            if padded:
                data += bytes(-(self.write_at + len(data)) % block)
            while data and (self.room is None or self.room):
                missing = block - self.write_at % block
                if self.room is not None:
                    missing = min(missing, self.room)
                if len(data) < missing:
                    return
                if missing < block and not self.target.ideal:
                    # Read-modify-write of a block that stays in part.
                    self.target.read(self.write_at // block)
                self.target.write(self.write_at, bytes(data[:missing]))
                del data[:missing]
                self.write_at += missing
                self.model.written += 1
                if self.room is not None:
                    self.room -= missing

        def residue(self) -> None:
            model = self.model
            if self.s.cat:
                return
            bounded = self.room is not None
            if self.target_pad and self.source_pad:
                model.source.clear()
            if self.target_pad:
                if model.destination:
                    if bounded:
                        raise Failed(0x26, 0x0A)
                    self.write(padded=True)
            elif self.source_pad:
                model.source.clear()
                model.destination.clear()
            elif model.source or model.destination:
                raise Failed(0x26, 0x0A)


# --- the real thing over the same devices ----------------------------------------------------------


@dataclass
class World:
    """Devices and the CSCDs that name them; `wiring[i]` is the device of CSCD i."""

    disks: list[MemoryDisk]
    tapes: list[MemoryTape]
    cscds: tuple[IdentificationCscd, ...]
    wiring: list[tuple[str, int]]

    def device(self, cscd: int) -> Device:
        kind, index = self.wiring[cscd]
        return self.disks[index] if kind == "disk" else self.tapes[index]

    def open(self, designator: bytes) -> Device:
        return self.device([c.designator for c in self.cscds].index(designator))

    def model_devices(self) -> list[ModelDisk | ModelTape]:
        disks = [
            ModelDisk(
                bytearray(d.content),
                d.info.block_bytes,
                {address // d.info.block_bytes for address in d.bad_addresses},
            )
            for d in self.disks
        ]
        tapes = [
            ModelTape(
                list(t.objects), t.position, t.warning_bytes, t.capacity_bytes, set(t.bad_objects)
            )
            for t in self.tapes
        ]
        return [disks[i] if kind == "disk" else tapes[i] for kind, i in self.wiring]

    def media(self) -> list[object]:
        return [bytes(d.content) for d in self.disks] + [
            (list(t.objects), t.position) for t in self.tapes
        ]

    def execute(
        self, parameters: ParameterList, *, use_runs: bool, limits: InFlight | None = None
    ) -> tuple[Ended, CopyManager]:
        manager = CopyManager(parameters, operating=OPERATING, use_runs=use_runs)
        performer = Performer(parameters, self.open, MemoryCarrier(), limits=limits or InFlight())
        return execute(manager, performer), manager


def result_of(ended: Ended) -> Result:
    if ended.is_good:
        return Result(None, ended.segments, None, "")
    sense = Sense.decode(ended.sense)
    forwards = "source" if sense.source else "destination" if sense.destination else ""
    assert sense.segment == ended.segments - 1
    return Result((sense.asc, sense.ascq), sense.segment, sense.information, forwards)


def designator(index: int) -> bytes:
    return Designator(bytes([0x30, 0, 0, 0, 0, 0, 0, index]))


contents = st.binary(min_size=BLOCK * 12, max_size=BLOCK * 12)
record_sizes = st.sampled_from([4, 8, 12, 16, 24])


@st.composite
def tapes(draw: Callable[..., object]) -> MemoryTape:
    size = draw(record_sizes)
    kinds = draw(st.lists(st.sampled_from("RRRRRRRSLF"), max_size=10))
    objects: list[TapeObject] = []
    for index, kind in enumerate(kinds):
        length = {"R": size, "S": size - 1, "L": size + 1}.get(kind, 0)
        objects.append(
            FILEMARK if kind == "F" else bytes((index * 16 + i) % 256 for i in range(length))
        )
    tape = MemoryTape(objects, position=draw(st.integers(0, len(objects))))
    if draw(st.integers(0, 3)) == 0:
        tape.warning_bytes = draw(st.integers(0, 120))
        tape.capacity_bytes = tape.warning_bytes + draw(st.integers(0, 60))
    if draw(st.integers(0, 3)) == 0:
        tape.bad_objects = {draw(st.integers(0, 8))}
    return tape


@st.composite
def worlds(draw: Callable[..., object]) -> World:
    disks = [
        MemoryDisk(draw(contents), block_bytes=BLOCK),
        MemoryDisk(draw(contents), block_bytes=draw(st.sampled_from([4, 12]))),
    ]
    for disk in disks:
        if draw(st.integers(0, 3)) == 0:
            disk.bad_addresses = {draw(st.integers(0, BLOCK * 12 - 1))}
    drives = [draw(tapes()), draw(tapes())]
    cscds: list[IdentificationCscd] = []
    wiring = []
    # Disks are 0 and 1, tapes 2 and 3; PAD and FIXED as they come.
    for index, disk in enumerate(disks):
        length = disk.info.block_bytes if draw(st.booleans()) else 0
        cscds.append(block_cscd(designator(index), block_bytes=length, pad=draw(st.booleans())))
        wiring.append(("disk", index))
    for index in range(2):
        fixed = draw(st.sampled_from([0, 0, 0, 4]))
        cscds.append(
            stream_cscd(
                designator(2 + index),
                pad=draw(st.booleans()),
                fixed=bool(fixed),
                stream_block_length=fixed,
            )
        )
        wiring.append(("tape", index))
    return World(disks, drives, tuple(cscds), wiring)


disk_ids = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 1, NULL_BLOCK_UNIT, 2, 4])
tape_ids = st.sampled_from([2, 2, 2, 2, 3, 3, 3, 3, NULL_STREAM_UNIT, 0, 0xFFFF])
lengths = st.sampled_from([1, 4, 8, 12, 16, 24])
lbas = st.integers(0, 14)
block_counts = st.integers(0, 6)
byte_counts = st.one_of(st.just(0), st.integers(0, 50), st.sampled_from([8, 16, 24, 48]))
offsets = st.sampled_from([0, 0, 0, 3, 7])
INLINE = bytes(range(200, 240))


def _both(**more: st.SearchStrategy[object]) -> dict[str, st.SearchStrategy[object]]:
    return {"cat": st.booleans(), **more}


segments = st.one_of(
    st.builds(
        seg.BlockToStream,
        **_both(
            source_cscd_descriptor_id=disk_ids,
            destination_cscd_descriptor_id=tape_ids,
            stream_device_transfer_length=lengths,
            block_device_number_of_blocks=block_counts,
            block_device_logical_block_address=lbas,
        ),
    ),
    st.builds(
        seg.StreamToBlock,
        **_both(
            source_cscd_descriptor_id=tape_ids,
            destination_cscd_descriptor_id=disk_ids,
            stream_device_transfer_length=lengths,
            block_device_number_of_blocks=block_counts,
            block_device_logical_block_address=lbas,
        ),
    ),
    st.builds(
        seg.BlockToBlock,
        **_both(
            source_cscd_descriptor_id=disk_ids,
            destination_cscd_descriptor_id=disk_ids,
            dc=st.booleans(),
            block_device_number_of_blocks=block_counts,
            source_block_device_logical_block_address=lbas,
            destination_block_device_logical_block_address=lbas,
        ),
    ),
    st.builds(
        seg.StreamToStream,
        **_both(
            source_cscd_descriptor_id=st.just(2),
            destination_cscd_descriptor_id=st.sampled_from([3, 3, 3, NULL_STREAM_UNIT, 1]),
            source_stream_device_transfer_length=lengths,
            destination_stream_device_transfer_length=lengths,
            byte_count=byte_counts,
        ),
    ),
    st.builds(
        seg.InlineToStream,
        **_both(
            destination_cscd_descriptor_id=tape_ids,
            stream_device_transfer_length=lengths,
            inline_data_offset=st.sampled_from([0, 4, 16, 36]),
            inline_data_number_of_bytes=st.sampled_from([0, 1, 4, 7, 24]),
        ),
    ),
    st.builds(
        seg.EmbeddedToStream,
        **_both(
            destination_cscd_descriptor_id=tape_ids,
            stream_device_transfer_length=lengths,
            embedded_data=st.binary(max_size=9),
        ),
    ),
    st.builds(
        seg.StreamToDiscard,
        **_both(
            source_cscd_descriptor_id=tape_ids,
            stream_device_transfer_length=lengths,
            number_of_bytes=byte_counts,
        ),
    ),
    st.builds(
        seg.BlockOffsetToStream,
        **_both(
            source_cscd_descriptor_id=disk_ids,
            destination_cscd_descriptor_id=tape_ids,
            stream_device_transfer_length=lengths,
            number_of_bytes=byte_counts,
            block_device_logical_block_address=lbas,
            block_device_byte_offset=offsets,
        ),
    ),
    st.builds(
        seg.StreamToBlockOffset,
        **_both(
            source_cscd_descriptor_id=tape_ids,
            destination_cscd_descriptor_id=disk_ids,
            stream_device_transfer_length=lengths,
            number_of_bytes=byte_counts,
            block_device_logical_block_address=lbas,
            block_device_byte_offset=offsets,
        ),
    ),
    st.builds(
        seg.BlockOffsetToBlockOffset,
        **_both(
            source_cscd_descriptor_id=disk_ids,
            destination_cscd_descriptor_id=disk_ids,
            number_of_bytes=byte_counts,
            source_block_device_logical_block_address=lbas,
            destination_block_device_logical_block_address=lbas,
            source_block_device_byte_offset=offsets,
            destination_block_device_byte_offset=offsets,
        ),
    ),
    st.builds(
        seg.WriteFilemarks,
        destination_cscd_descriptor_id=tape_ids,
        filemark_count=st.integers(0, 2),
    ),
    st.builds(
        seg.Locate,
        destination_cscd_descriptor_id=tape_ids,
        logical_object_identifier=st.integers(0, 8),
    ),
    st.builds(seg.VerifyCscd, source_cscd_descriptor_id=disk_ids, tur=st.booleans()),
)
segment_lists = st.lists(segments, min_size=1, max_size=6)


@pytest.fixture
def small_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ordinary path use one block per command, as the model does."""
    monkeypatch.setattr(source, "READ_BYTES_MAX", 1)
    monkeypatch.setattr(destination, "WRITE_BYTES_MAX", 1)


def the_list(world: World, segments: list[seg.Segment]) -> ParameterList:
    return ParameterList(
        list_identifier=1, cscds=world.cscds, segments=tuple(segments), inline_data=INLINE
    )


@pytest.mark.usefixtures("small_commands")
@given(worlds(), segment_lists)
def test_any_list_does_what_the_naive_model_does(world: World, segments: list[seg.Segment]) -> None:
    parameters = the_list(world, segments)
    model = Model(parameters, world.model_devices())
    expected = model.run()
    ended, _ = world.execute(parameters, use_runs=False)
    assert result_of(ended) == expected, ended.detail
    for cscd, device in enumerate(model.devices):
        real = world.device(cscd)
        if isinstance(device, ModelDisk):
            assert isinstance(real, MemoryDisk)
            assert real.content == device.data
        else:
            assert isinstance(real, MemoryTape)
            assert real.objects == device.objects
            assert real.position == device.position


# --- runs of transfers against the ordinary way ----------------------------------------------------

SIZE = BLOCK * 40
FAR = 1 << 60


@dataclass
class Story:
    """A list over one disk and one tape, and what goes wrong."""

    record_bytes: int
    segments: list[seg.Segment]
    objects: list[TapeObject]
    position: int
    disk_pad: bool
    tape_pad: bool
    warning: int
    capacity: int
    programmable: int
    bad_block: int | None
    bad_object: int | None
    disk_damages: list[Damage]
    tape_damages: list[Damage]
    reads_max: int

    def world(self) -> World:
        disk = FaultyDisk(
            bytes((7 * i + i // 256) % 256 for i in range(SIZE)),
            block_bytes=BLOCK,
            damages=[copy.copy(d) for d in self.disk_damages],
        )
        tape = FaultyTape(
            self.objects,
            position=self.position,
            warning_bytes=self.warning,
            capacity_bytes=self.capacity,
            programmable_bytes=self.programmable,
            damages=[copy.copy(d) for d in self.tape_damages],
        )
        if self.bad_block is not None:
            disk.bad_addresses = {self.bad_block * BLOCK}
        if self.bad_object is not None:
            tape.bad_objects = {self.bad_object}
        cscds = (
            block_cscd(designator(0), block_bytes=BLOCK, pad=self.disk_pad),
            stream_cscd(designator(1), pad=self.tape_pad),
        )
        return World([disk], [tape], cscds, [("disk", 0), ("tape", 0)])


def _damages(place: st.SearchStrategy[int]) -> st.SearchStrategy[list[Damage]]:
    one = st.builds(
        Damage, st.sampled_from(["read", "write"]), place, st.sampled_from([1, 1 << 30])
    )
    return st.lists(one, max_size=1)


def _segment(kind: str, lba: int, blocks: int, *, size: int, cat: bool) -> seg.Segment:
    ends = {"source_cscd_descriptor_id": 0, "destination_cscd_descriptor_id": 1}
    back = {"source_cscd_descriptor_id": 1, "destination_cscd_descriptor_id": 0}
    more = {"cat": cat, "stream_device_transfer_length": size}
    place = {"block_device_logical_block_address": lba}
    counted = {"block_device_number_of_blocks": blocks, **place}
    ranged = {"number_of_bytes": blocks * BLOCK, **place}
    match kind:
        case "08":
            return seg.BlockOffsetToStream(**ends, **more, **ranged)
        case "00":
            return seg.BlockToStream(**ends, **more, **counted)
        case "09":
            return seg.StreamToBlockOffset(**back, **more, **ranged)
        case "01":
            return seg.StreamToBlock(**back, **more, **counted)
        case "06":
            return seg.StreamToDiscard(
                source_cscd_descriptor_id=1, **more, number_of_bytes=blocks * BLOCK
            )
        case "04":
            return seg.InlineToStream(
                destination_cscd_descriptor_id=1,
                **more,
                inline_data_offset=0,
                inline_data_number_of_bytes=size,
            )
        case "10":
            return seg.WriteFilemarks(destination_cscd_descriptor_id=1)
        case _:
            return seg.Locate(destination_cscd_descriptor_id=1, logical_object_identifier=blocks)


@st.composite
def stories(draw: Callable[..., object]) -> Story:
    size = draw(st.sampled_from([8, 16, 16, 24, 20]))
    cats = st.sampled_from([True, True, True, False])
    places = st.tuples(st.integers(0, 30), st.integers(0, 9))
    kinds = st.sampled_from(["08", "08", "00", "09", "09", "01", "06", "04", "10", "12"])
    segments = [
        _segment(draw(kinds), lba, blocks, size=size, cat=draw(cats))
        for lba, blocks in draw(st.lists(places, min_size=1, max_size=8))
    ]
    count = draw(st.integers(0, 16))
    objects: list[TapeObject] = [
        bytes((k * 31 + i) % 256 for i in range(size)) for k in range(count)
    ]
    if objects and draw(st.integers(0, 2)) == 0:
        index = draw(st.integers(0, count - 1))
        objects[index] = draw(st.sampled_from([FILEMARK, bytes(size - 1), bytes(size + 1)]))
    warning = draw(st.sampled_from([FAR, FAR, 30, 100, 200]))
    # One wire at a time: which of two damages in one record is met first differs between the two ways.
    tape_damages = draw(_damages(st.integers(0, 14)))
    disk_damages = [] if tape_damages else draw(_damages(st.integers(0, SIZE - 1)))
    return Story(
        record_bytes=size,
        segments=segments,
        objects=objects,
        position=draw(st.sampled_from([0, 0, count])),
        disk_pad=draw(st.booleans()),
        tape_pad=draw(st.sampled_from([True, True, False])),
        warning=warning,
        capacity=warning + draw(st.sampled_from([0, 20, 100])),
        programmable=draw(st.sampled_from([0, 0, 50])),
        bad_block=draw(st.sampled_from([None, None, None, 3, 17, 33])),
        bad_object=draw(st.sampled_from([None, None, None, 1, 5])),
        disk_damages=disk_damages,
        tape_damages=tape_damages,
        reads_max=draw(st.integers(1, 8)),
    )


def outcome(story: Story, *, use_runs: bool, writes_max: int = 1) -> dict[str, object]:
    world = story.world()
    limits = InFlight(reads_max=max(story.reads_max, writes_max), writes_max=writes_max)
    parameters = ParameterList(
        list_identifier=1,
        cscds=world.cscds,
        segments=tuple(story.segments),
        inline_data=bytes(range(64)),
    )
    ended, manager = world.execute(parameters, use_runs=use_runs, limits=limits)
    return {
        "status": ended.status,
        "sense": ended.sense.hex(),
        "segments": ended.segments,
        "media": world.media(),
        "ledger": manager.ledger.entries(),
    }


@given(stories())
def test_a_run_of_transfers_ends_like_the_ordinary_way(story: Story) -> None:
    assert outcome(story, use_runs=True) == outcome(story, use_runs=False)


# --- restart from the residual ---------------------------------------------------------------------

RECORD = 16


def restart_byte(segments: list[seg.BlockOffsetToStream], sense: Sense) -> int:
    """Return how many bytes of the stream are on tape: the rule of docs/work-item.md, from the sense data alone."""
    failing = sense.segment
    assert failing is not None
    before = sum(s.number_of_bytes for s in segments[:failing])
    whole_before = before // RECORD * RECORD
    if sense.information is None:
        return whole_before
    end = before + segments[failing].number_of_bytes
    is_padded = not segments[failing].cat
    planned = (-(-end // RECORD) if is_padded else end // RECORD) * RECORD - whole_before
    return whole_before + planned - sense.information


def backup_segments(extents: list[tuple[int, int]]) -> list[seg.BlockOffsetToStream]:
    return [
        seg.BlockOffsetToStream(
            cat=index < len(extents) - 1,
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=1,
            stream_device_transfer_length=RECORD,
            number_of_bytes=blocks * BLOCK,
            block_device_logical_block_address=lba,
        )
        for index, (lba, blocks) in enumerate(extents)
    ]


def rest_of(extents: list[tuple[int, int]], done: int) -> list[tuple[int, int]]:
    rest = []
    for lba, blocks in extents:
        skip = min(blocks, done // BLOCK)
        done -= skip * BLOCK
        if skip < blocks:
            rest.append((lba + skip, blocks - skip))
    return rest


@given(
    extents=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=8),
    warnings=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    room=st.integers(0, 80),
    damages=_damages(st.integers(0, 12)),
    writes_max=st.integers(1, 5),
    use_runs=st.booleans(),
)
def test_a_restart_from_the_residual_loses_and_doubles_nothing(
    extents: list[tuple[int, int]],
    warnings: list[int],
    room: int,
    damages: list[Damage],
    writes_max: int,
    use_runs: bool,
) -> None:
    content = bytes((7 * i + i // 256) % 256 for i in range(SIZE))
    stream = b"".join(content[lba * BLOCK : (lba + blocks) * BLOCK] for lba, blocks in extents)
    records: list[TapeObject] = []
    # Full cartridges, then one that takes the rest; only the first one has a bad wire.
    for turn, warning in enumerate([*warnings, FAR]):
        tape = FaultyTape(
            warning_bytes=warning,
            capacity_bytes=warning + room,
            damages=[replace(d) for d in damages] if not turn else [],
        )
        cscds = (block_cscd(designator(0), block_bytes=BLOCK), stream_cscd(designator(1)))
        disk = MemoryDisk(content, block_bytes=BLOCK)
        world = World([disk], [tape], cscds, [("disk", 0), ("tape", 0)])
        segments = backup_segments(extents)
        parameters = ParameterList(list_identifier=1, cscds=cscds, segments=tuple(segments))
        limits = InFlight(writes_max=writes_max)
        ended, manager = world.execute(parameters, use_runs=use_runs, limits=limits)
        assert manager.ledger.of(1).records_written == len(tape.objects)
        records += tape.objects
        if ended.is_good:
            break
        done = restart_byte(segments, Sense.decode(ended.sense))
        assert done == len(tape.objects) * RECORD
        extents = rest_of(extents, done)
        if not extents:
            break
    joined = b"".join(o for o in records if isinstance(o, bytes))
    assert joined == stream + bytes(-len(stream) % RECORD)
