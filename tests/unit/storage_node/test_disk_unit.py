"""READ gathers, WRITE scatters, and what goes wrong is told with its address."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import RefusedError, RemoteProtocolError, UnreachableError
from backplane.ids import Designator
from backplane.scsi.sense import Sense
from backplane.testing.contracts.block_device import read as read_device
from backplane.transport.stream import Channel, Reply
from backplane.wire.frames import DATA_BYTES_MAX, Entry, EntryKind, Opcode, Protection
from backplane.wire.grants import Rights
from storage_node.core.admission import Unit, UnitKind, WriteGate
from storage_node.disk.device import BlockDevice
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.memory import MemoryDevice
from storage_node.disk_unit import DiskUnit

DISK = Designator(b"\x30disk...")
SIZE = 64 * 512
CONTENT = random.Random(7).randbytes(SIZE)
BOTH = Rights.READ | Rights.WRITE
Ask = Callable[..., tuple[Reply, bytes]]


class Events(list[str]):
    """What the volume told its owner."""


def served(bench: Any, device: BlockDevice | None = None, **grant: Any) -> tuple[Channel, Any]:
    if device is None:
        device = MemoryDevice(SIZE)
    if not isinstance(device, FaultyDevice):
        device.write(0, memoryview(CONTENT))
    events = Events()
    live = LiveVolume(
        device,
        monotonic=time.monotonic,
        on_first_write=lambda: events.append("write"),
        on_flush_failed=lambda: events.append("flush failed"),
    )
    bench.units[DISK] = DiskUnit(live, bench.access)
    bench.access.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=64))
    return bench.open(bench.grant(DISK, grant.pop("rights", BOTH), **grant)), events


def faulty(*faults: Fault) -> FaultyDevice:
    device = MemoryDevice(SIZE)
    device.write(0, memoryview(CONTENT))
    return FaultyDevice(device, faults)


def test_the_unit_describes_itself(bench: Any) -> None:
    channel, _ = served(bench)
    with channel:
        opened = channel.opened
    assert (opened.peripheral_device_type, opened.block_bytes, opened.blocks) == (0, 512, 64)


def test_what_the_volume_refuses_is_not_written_whatever_the_grant_says(
    bench: Any, ask: Ask
) -> None:
    channel, _ = served(bench)
    unit = bench.units[DISK]

    def check(job: int) -> None:
        raise RefusedError(f"job {job} has not reserved the volume")

    with channel:
        unit.check_writer = check
        reply, _ = ask(channel, Opcode.WRITE, entries=[Entry(0, 512)], data=b"x" * 512)
        assert Sense.decode(reply.sense).triple == RefusedError.default_sense
        assert read_device(unit.device, 0, 512) == CONTENT[:512]
        unit.check_writer = lambda _: None
        assert ask(channel, Opcode.WRITE, entries=[Entry(0, 512)], data=b"x" * 512)[0].is_good


def test_a_read_gathers_and_pads(bench: Any, ask: Ask) -> None:
    channel, _ = served(bench)
    with channel:
        for _ in range(2):  # the buffer is reused: padding must be zeros the second time, too
            reply, data = ask(
                channel,
                Opcode.READ,
                entries=[Entry(5, 100), Entry(0, 33, EntryKind.PAD), Entry(9000, 1), Entry(0, 0)],
            )
            assert reply.is_good
            assert data == CONTENT[5:105] + bytes(33) + CONTENT[9000:9001]
            assert ask(channel, Opcode.READ, entries=[Entry(0, 4096)])[1] == CONTENT[:4096]
        reply, data = ask(channel, Opcode.READ)
        assert (reply.is_good, data) == (True, b"")


def test_a_write_scatters_and_drops_padding(bench: Any, ask: Ask) -> None:
    device = MemoryDevice(SIZE)
    channel, events = served(bench, device)
    with channel:
        entries = [Entry(100, 3), Entry(0, 2, EntryKind.PAD), Entry(1000, 4)]
        reply, _ = ask(channel, Opcode.WRITE, entries=entries, data=b"abcXXdefg")
        assert reply.is_good
    assert read_device(device, 99, 5) == CONTENT[99:100] + b"abc" + CONTENT[103:104]
    assert read_device(device, 1000, 4) == b"defg"
    assert events == ["write"]


@pytest.mark.parametrize(
    ("protection", "checksum"),
    [(Protection.CRC32C, 1), (Protection.CRC32C, crc32c(b"other")), (Protection.NONE, 0)],
)
def test_damaged_or_unprotected_data_are_never_written(
    bench: Any, ask: Ask, triple: Any, protection: Protection, checksum: int
) -> None:
    device = MemoryDevice(SIZE)
    channel, events = served(bench, device)
    with channel:
        channel.request(
            Opcode.WRITE,
            entries=[Entry(0, 4)],
            length=4,
            protection=protection,
            crc32c=checksum,
            data_follows=True,
        )
        channel.sock.sendall(b"data")
        assert triple(channel.reply()) == (0x0B, 0x10, 0x01)
        assert ask(channel, Opcode.TEST_UNIT_READY)[0].is_good
    assert read_device(device, 0, SIZE) == CONTENT
    assert not events


def test_lengths_that_contradict_each_other_are_refused_and_drained(
    bench: Any, ask: Ask, triple: Any
) -> None:
    channel, events = served(bench)
    with channel:
        reply, _ = ask(channel, Opcode.READ, entries=[Entry(0, 5)], length=6)
        assert triple(reply) == (0x05, 0x24, 0x00)
        reply, _ = ask(channel, Opcode.WRITE, entries=[Entry(0, 5)], data=b"x" * 1_000_000)
        assert triple(reply) == (0x05, 0x24, 0x00)
        huge = [Entry(0, DATA_BYTES_MAX), Entry(0, 1)]
        assert triple(ask(channel, Opcode.READ, entries=huge)[0]) == (0x05, 0x24, 0x00)
        assert ask(channel, Opcode.READ, entries=[Entry(0, 3)])[1] == CONTENT[:3]
    assert not events


def test_requests_for_a_tape_are_refused_and_drained(bench: Any, ask: Ask, triple: Any) -> None:
    channel, _ = served(bench)
    with channel:
        for opcode, fields in (
            (Opcode.LOCATE, {"address": 5}),
            (Opcode.WRITE_RECORD, {"data": b"x" * 600_000}),
            (Opcode.OPEN, {"data": b"again"}),
            (Opcode.WRITE_FILEMARKS, {"length": 1}),
        ):
            assert triple(ask(channel, opcode, **fields)[0]) == (0x05, 0x24, 0x00)
        assert ask(channel, Opcode.TEST_UNIT_READY)[0].is_good


def test_what_is_refused_leaves_the_connection_usable(bench: Any, ask: Ask, triple: Any) -> None:
    channel, events = served(bench, rights=Rights.READ, extents=((0, 2),))
    with channel:
        outside = ask(channel, Opcode.READ, entries=[Entry(1024, 1)])[0]
        assert triple(outside) == (0x05, 0x26, 0x15)
        refused = ask(channel, Opcode.WRITE, entries=[Entry(0, 700_000)], data=bytes(700_000))[0]
        assert triple(refused) == (0x05, 0x26, 0x15)
        assert ask(channel, Opcode.READ, entries=[Entry(0, 1024)])[1] == CONTENT[:1024]
    assert not events


def test_a_read_error_names_the_block_and_delivers_nothing(
    bench: Any, ask: Ask, triple: Any
) -> None:
    device = faulty(Fault(call="read", start_byte=3000, end_byte=3001, times=9))
    channel, _ = served(bench, device)
    with channel:
        reply, data = ask(channel, Opcode.READ, entries=[Entry(0, 1024), Entry(2048, 2048)])
        assert (triple(reply), data) == ((0x03, 0x11, 0x00), b"")
        assert Sense.decode(reply.sense).information == 3000 // 512
        assert ask(channel, Opcode.READ, entries=[Entry(0, 9)])[1] == CONTENT[:9]


def test_a_full_device_is_not_a_medium_error(bench: Any, ask: Ask, triple: Any) -> None:
    device = faulty(Fault(call="write", code=errno.ENOSPC, start_byte=1024))
    channel, _ = served(bench, device)
    with channel:
        reply, _ = ask(channel, Opcode.WRITE, entries=[Entry(512, 1024)], data=bytes(1024))
        assert triple(reply) == (0x07, 0x27, 0x07)
        assert Sense.decode(reply.sense).information == 2


def test_a_failed_flush_is_told_to_both_sides(bench: Any, ask: Ask, triple: Any) -> None:
    channel, events = served(bench, faulty(Fault(call="flush")))
    with channel:
        assert triple(ask(channel, Opcode.FLUSH)[0]) == (0x03, 0x0C, 0x00)
        assert events == ["flush failed"]
        # Nobody knows what the device still has: no later flush may say otherwise.
        assert triple(ask(channel, Opcode.FLUSH)[0]) == (0x03, 0x0C, 0x00)
        assert triple(ask(channel, Opcode.WRITE, entries=[Entry(0, 4)], data=b"data")[0])[0] == 0x07
        assert events == ["flush failed"]


def test_an_address_beyond_four_bytes_has_descriptor_format_sense() -> None:
    from storage_node.data_server import encode_sense

    for lba in (7, 0xFFFF_FFFF, 0x1_0000_0000):
        sense = Sense(key=Sense.decode(b"\x70\x00\x03" + bytes(15)).key, information=lba)
        assert Sense.decode(encode_sense(sense)).information == lba


def test_a_gate_that_closes_between_check_and_write_is_seen(
    bench: Any, ask: Ask, triple: Any
) -> None:
    """The data of a write arrive slowly; meanwhile a static view takes hold."""
    device = MemoryDevice(SIZE)
    channel, events = served(bench, device)
    with channel:
        channel.request(
            Opcode.WRITE,
            entries=[Entry(0, 4)],
            length=4,
            protection=Protection.CRC32C,
            crc32c=crc32c(b"late"),
            data_follows=True,
        )
        channel.sock.sendall(b"la")
        bench.access.put_unit(
            Unit(
                designator=DISK,
                kind=UnitKind.BLOCK,
                block_bytes=512,
                blocks=64,
                gate=WriteGate.HELD,
            )
        )
        channel.sock.sendall(b"te")
        assert triple(channel.reply()) == (0x02, 0x04, 0x07)
    assert read_device(device, 0, SIZE) == CONTENT
    assert not events


def test_entries_that_are_none_end_the_connection(bench: Any) -> None:
    channel, _ = served(bench)
    with channel:
        bad = Entry(0, 1, 7)  # type: ignore[arg-type]
        channel.request(Opcode.READ, entries=[bad], length=1)
        with pytest.raises((UnreachableError, RemoteProtocolError)):
            channel.reply()
