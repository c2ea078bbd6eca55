"""Requests and replies over a real socket: small and large, good and bad, one at a time and many."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RemoteProtocolError
from backplane.testing.nbd_client import NbdError
from backplane.testing.nbd_words import ChunkKind, Command, Extent, Flag
from backplane.transport.stream import ConnectionClosedError, FileRange
from storage_node.core.nbd_handshake import BASE_ALLOCATION, CHANGED, Ready
from storage_node.core.nbd_transmission import DESCRIPTORS_MAX
from storage_node.disk.device import BlockDevice
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice
from storage_node.nbd.connection import (
    BUFFER_BYTES,
    DRAIN_BYTES_MAX,
    PIECE_BYTES,
    PIPE_BYTES,
    SMALL_BYTES,
    Pipe,
    Transmission,
)
from storage_node.nbd.export import DeviceExport

KIB, MIB = 1 << 10, 1 << 20
SIZE_BYTES = 8 * MIB
LENGTHS = (
    1,
    4096,
    SMALL_BYTES - 1,
    SMALL_BYTES,
    SMALL_BYTES + 1,
    PIECE_BYTES,
    PIECE_BYTES + 3,
    PIPE_BYTES,
    PIPE_BYTES + 1,
    3 * MIB + 17,
)


@pytest.fixture(params=["memory", "file"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
    if request.param == "memory":
        yield MemoryDevice(SIZE_BYTES, block_bytes=4096)
        return
    make_sparse_file(tmp_path / "image", size_bytes=SIZE_BYTES)
    file = FileDevice(tmp_path / "image", block_bytes=4096)
    yield file
    file.close()


def export(device: BlockDevice, **changes: Any) -> DeviceExport:
    return DeviceExport(device, name="volume", **changes)


def content(device: BlockDevice, address: int, count: int) -> bytes:
    buffer = bytearray(count)
    device.read_into(address, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("is_structured", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("address", [0, 4097])
def test_what_was_written_is_read_back(
    serve: Any, device: BlockDevice, is_structured: bool, length: int, address: int
) -> None:
    data = random.Random(length).randbytes(length)
    client = serve(export(device), is_structured=is_structured).client
    client.write(address, data)
    assert content(device, address, length) == data
    assert client.read(address, length) == data
    whole = client.read(0, address + length + 1)
    assert whole == bytes(address) + data + b"\0"


@pytest.mark.parametrize("length", LENGTHS)
def test_df_asks_for_one_piece(serve: Any, device: BlockDevice, length: int) -> None:
    data = random.Random(length).randbytes(length)
    device.write(100, memoryview(data))
    client = serve(export(device)).client
    chunks = client.read_chunks(100, length, flags=Flag.DF)
    assert [(chunk.kind, chunk.data) for chunk in chunks] == [(ChunkKind.DATA, data)]


@pytest.mark.parametrize("is_structured", [False, True])
def test_reading_nothing_is_answered(serve: Any, device: BlockDevice, is_structured: bool) -> None:
    client = serve(export(device), is_structured=is_structured).client
    assert client.read(SIZE_BYTES, 0) == b""
    assert client.read(0, 1) == b"\0"


@pytest.mark.parametrize("is_structured", [False, True])
def test_many_requests_at_once_are_carried_out_in_order(
    serve: Any, device: BlockDevice, is_structured: bool
) -> None:
    """Reads of all sizes between writes, all sent before anything is received: replies pile up, buffers wrap."""
    served = serve(export(device), is_structured=is_structured)
    client, seed = served.client, random.Random(5)
    model = bytearray(256 * KIB)
    expected = []
    for _ in range(304):
        address = seed.randrange(len(model))
        count = min(seed.choice([1, 512, 4096, 9000]), len(model) - address)
        if seed.random() < 0.5:
            data = seed.randbytes(count)
            model[address : address + count] = data
            expected.append((client.send(Command.WRITE, address, count, data=data), None))
        else:
            cookie = client.send(Command.READ, address, count)
            expected.append((cookie, bytes(model[address : address + count])))
        if len(expected) == 8:
            for cookie, wanted in expected:
                reply = client.receive()
                assert reply.cookie == cookie
                assert not reply.error
                if wanted is not None:
                    assert b"".join(chunk.data for chunk in reply.chunks) == wanted
            expected.clear()
    assert content(device, 0, len(model)) == model


def test_requests_that_came_with_the_negotiation_are_answered(
    serve: Any, device: BlockDevice
) -> None:
    device.write(0, memoryview(b"early"))
    request = struct.pack(">IHHQQI", 0x25609513, 0, Command.READ, 77, 0, 5)
    served = serve(export(device), is_structured=False, leftover=request)
    head = struct.pack(">IIQ", 0x67446698, 0, 77)
    assert served.client.wire.receive(21) == head + b"early"


def test_a_request_in_single_bytes_is_a_request(serve: Any, device: BlockDevice) -> None:
    served = serve(export(device), is_structured=False)
    request = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 77, 3, 4) + b"slow"
    for byte in request:
        served.sock.sendall(bytes([byte]))
    assert served.client.wire.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 77)
    assert content(device, 3, 4) == b"slow"


@pytest.mark.parametrize("length", [4096, PIECE_BYTES])
def test_no_reply_waits_for_the_payload_of_a_later_request(
    serve: Any, device: BlockDevice, length: int
) -> None:
    client = serve(export(device)).client
    cookie = client.send(Command.READ, 0, 512)
    late = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 77, 0, length)
    client.wire.send(struct.pack(">IHHQQI", 0x25609513, 0, Command.FLUSH, 78, 0, 0) + late)
    assert client.wait(cookie).error == 0
    assert client.wire.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 78)
    client.wire.send(b"x" * length)
    assert client.wire.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 77)


# Flushing, zeroing, and hints.


@pytest.mark.parametrize("length", [512, PIECE_BYTES, PIECE_BYTES + 512])
def test_fua_is_durable_when_it_is_answered(serve: Any, length: int) -> None:
    device = MemoryDevice(SIZE_BYTES, block_bytes=4096)
    client = serve(export(device)).client
    client.write(0, b"d" * length, flags=Flag.FUA)
    client.write(0, b"v" * length)
    device.crash()
    assert content(device, 0, length) == b"d" * length


def test_a_flush_on_one_connection_covers_what_was_answered_on_another(serve: Any) -> None:
    """This is what allows several connections to be advertised."""
    device = MemoryDevice(SIZE_BYTES, block_bytes=4096)
    one, other = serve(export(device)).client, serve(export(device)).client
    one.write(0, b"kept")
    other.flush()
    device.crash()
    assert one.read(0, 4) == b"kept"


def test_zeroes_and_trim(serve: Any, device: BlockDevice) -> None:
    client = serve(export(device)).client
    client.write(0, b"x" * 64 * KIB)
    client.zero(4096, 4096)
    client.zero(8192, 4096, flags=Flag.NO_HOLE | Flag.FUA)
    client.zero(12 * KIB, 4096, flags=Flag.FAST_ZERO)
    client.trim(16 * KIB, 16 * KIB)
    client.cache(0, SIZE_BYTES)
    assert client.read(0, 64 * KIB) == b"x" * 4096 + bytes(28 * KIB) + b"x" * 32 * KIB


class OnlySlow(MemoryDevice):
    """Zeros have to be written."""

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        FaultyDevice(
            MemoryDevice(self.size_bytes), [Fault(call="zero", code=errno.EOPNOTSUPP)]
        ).zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)
        self.write(byte_address, memoryview(bytes(count)))


def test_a_device_that_writes_its_zeros_says_so_to_who_wants_it_fast(serve: Any) -> None:
    client = serve(export(OnlySlow(SIZE_BYTES))).client
    client.write(0, b"x" * 4096)
    with pytest.raises(NbdError) as caught:
        client.zero(0, 4096, flags=Flag.FAST_ZERO)
    assert caught.value.errno == errno.EOPNOTSUPP
    client.trim(0, 4096)
    assert client.read(0, 4096) == b"x" * 4096, "TRIM is a hint, and not worth writing for"
    client.zero(0, 4096)
    assert client.read(0, 4096) == bytes(4096)


# Block status.


class Tracked(DeviceExport):
    """Has changed in one place."""

    tracks = True

    def changed(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]] | None:
        return iter([(4096, 8192)]) if self.tracks else None


def test_block_status_tells_holes_and_changes(serve: Any, device: BlockDevice) -> None:
    device.write(64 * KIB, memoryview(b"x" * 4096))
    tracked = Tracked(device, name="volume")
    client = serve(tracked, contexts=(BASE_ALLOCATION, CHANGED)).client
    reply = client.wait(client.send(Command.BLOCK_STATUS, 0, 128 * KIB))
    assert reply.extents == {
        BASE_ALLOCATION: [
            Extent(start=0, end=64 * KIB, flags=3),
            Extent(start=64 * KIB, end=68 * KIB, flags=0),
            Extent(start=68 * KIB, end=128 * KIB, flags=3),
        ],
        CHANGED: [
            Extent(start=0, end=4096, flags=0),
            Extent(start=4096, end=8192, flags=1),
            Extent(start=8192, end=128 * KIB, flags=0),
        ],
    }
    one = client.wait(client.send(Command.BLOCK_STATUS, 0, 128 * KIB, flags=Flag.REQ_ONE))
    assert [extents[0].end for extents in one.extents.values()] == [64 * KIB, 4096]
    assert [len(extents) for extents in one.extents.values()] == [1, 1]


def test_tracking_that_has_stopped_means_that_everything_may_have_changed(
    serve: Any, device: BlockDevice
) -> None:
    tracked = Tracked(device, name="volume")
    tracked.tracks = False
    client = serve(tracked, contexts=(CHANGED,)).client
    assert client.block_status(0, 4096, context=CHANGED) == [Extent(start=0, end=4096, flags=1)]


def test_block_status_of_a_shredded_device_comes_in_portions(serve: Any) -> None:
    device = MemoryDevice(SIZE_BYTES, block_bytes=512)
    for address in range(0, SIZE_BYTES, 1024):
        device.write(address, memoryview(b"x" * 512))
    client = serve(export(device)).client
    first = client.block_status(0, SIZE_BYTES)
    assert len(first) == DESCRIPTORS_MAX
    assert first[-1].end == DESCRIPTORS_MAX * 512
    assert len(client.map()) == SIZE_BYTES // 512


# Errors.


def refused(call: Any, *arguments: Any, **more: Any) -> int:
    with pytest.raises(NbdError) as caught:
        call(*arguments, **more)
    return caught.value.errno


@pytest.mark.parametrize("is_structured", [False, True])
def test_what_is_refused_leaves_the_connection_usable(
    serve: Any, device: BlockDevice, is_structured: bool
) -> None:
    client = serve(
        export(device, block_bytes=512, payload_bytes_max=MIB), is_structured=is_structured
    ).client
    assert refused(client.read, SIZE_BYTES, 512) == errno.EINVAL
    assert refused(client.read, 0, MIB + 512) == errno.EINVAL
    assert refused(client.read, (1 << 64) - 512, 512) == errno.EINVAL
    assert refused(client.read, 0, 0xFFFFFFFF) == errno.EINVAL
    assert refused(client.write, SIZE_BYTES - 512, b"x" * 1024) == errno.ENOSPC
    assert refused(client.write, (1 << 64) - 512, b"x" * 512) == errno.ENOSPC
    assert refused(client.write, 0, b"x" * (MIB + 512)) == errno.EINVAL
    assert refused(client.write, 3, b"x" * 512) == errno.EINVAL
    assert refused(client.trim, 0, SIZE_BYTES + 512) == errno.EINVAL
    assert client.wait(client.send(99, 5, 5)).error == errno.EINVAL
    client.write(0, b"y" * 512)
    assert client.read(0, 512) == b"y" * 512


def test_a_read_only_export_is_not_written(serve: Any, device: BlockDevice) -> None:
    client = serve(export(device, is_read_only=True)).client
    assert refused(client.write, 0, b"x" * (MIB + 1)) == errno.EPERM
    assert refused(client.zero, 0, 4096) == errno.EPERM
    assert refused(client.trim, 0, 4096) == errno.EPERM
    client.flush()
    assert client.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("is_structured", [False, True])
@pytest.mark.parametrize("length", [512, PIECE_BYTES, MIB + 512])
def test_errors_of_the_device_are_told_and_survived(
    serve: Any, is_structured: bool, length: int
) -> None:
    bad = {"start_byte": 0, "end_byte": length}
    device = FaultyDevice(
        MemoryDevice(SIZE_BYTES, block_bytes=4096),
        [
            Fault(call="read", code=errno.EIO, **bad),
            Fault(call="write", code=errno.ENOSPC, **bad),
            Fault(call="flush", code=errno.EIO),
        ],
    )
    client = serve(export(device), is_structured=is_structured).client
    assert refused(client.read, 0, length) == errno.EIO
    assert refused(client.write, 0, b"x" * length) == errno.ENOSPC
    assert refused(client.flush) == errno.EIO
    client.write(0, b"y" * length)
    client.flush()
    assert client.read(0, length) == b"y" * length


class Short:
    """A file that is shorter than it says: what a medium error looks like to a pipe."""

    def __init__(self, device: FileDevice, file: FileRange) -> None:
        self._device = device
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def file_range(self, byte_address: int, count: int) -> FileRange:
        return self._file


@pytest.mark.parametrize("is_structured", [False, True])
def test_a_file_that_cannot_be_lent_is_read(
    serve: Any, tmp_path: Path, is_structured: bool
) -> None:
    """Nothing was promised to the client before the pages were there, so it never sees the attempt."""
    make_sparse_file(tmp_path / "image", size_bytes=SIZE_BYTES)
    device = FileDevice(tmp_path / "image", block_bytes=4096)
    device.write(0, memoryview(b"r" * MIB))
    (tmp_path / "short").write_bytes(b"s" * 100_000)
    with (tmp_path / "short").open("rb") as short:
        shrunk: Any = Short(device, FileRange(short.fileno(), 0))
        client = serve(export(shrunk), is_structured=is_structured).client
        assert client.read(0, 200_000) == b"r" * 200_000
        assert client.read(0, 4096) == b"r" * 4096
        client.disconnect()
    device.close()


def test_a_pipe_takes_what_fits_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3 * PIPE_BYTES))
    with (tmp_path / "file").open("rb") as file:
        pipe = Pipe()
        assert pipe.fits(FileRange(file.fileno(), 4096), PIPE_BYTES)
        assert not pipe.fits(FileRange(file.fileno(), 0), PIPE_BYTES + 1)
        assert not pipe.fits(FileRange(file.fileno(), 1), PIPE_BYTES)
        assert not pipe.fill(FileRange(file.fileno(), 3 * PIPE_BYTES - 10), 11)
        pipe.close()
        pipe = Pipe()
        assert not pipe.fill(FileRange(file.fileno(), 0), 2 * PIPE_BYTES), (
            "or it would wait for ever"
        )
        pipe.close()


# Ends.


def test_disconnect_ends_it_after_everything_was_answered(serve: Any, device: BlockDevice) -> None:
    served = serve(export(device))
    cookie = served.client.send(Command.WRITE, 0, 4, data=b"last")
    # At once: the server may close before another call could send the rest.
    served.client.wire.send(
        struct.pack(">IHHQQI", 0x25609513, 0, Command.DISCONNECT, 2, 0, 0)
        + struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 3, 0, 4)
        + b"late"
    )
    assert served.client.wait(cookie).error == 0
    assert served.end() is None
    assert content(device, 0, 4) == b"last", "nothing is done after a disconnect"


def test_a_client_that_is_gone_right_after_its_disconnect_has_ended_well(
    device: BlockDevice,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    disconnect = struct.pack(">IHHQQI", 0x25609513, 0, Command.DISCONNECT, 1, 0, 0)
    with ours:
        Transmission(ours, export(device), Ready("volume", True, (), disconnect)).serve()


def test_closing_between_requests_is_a_normal_end(serve: Any, device: BlockDevice) -> None:
    served = serve(export(device))
    served.client.write(0, b"x")
    served.client.close()
    assert served.end() is None


@pytest.mark.parametrize("length", [BUFFER_BYTES // 4, MIB])
def test_a_write_that_is_cut_off_is_not_answered(
    serve: Any, device: BlockDevice, length: int
) -> None:
    served = serve(export(device))
    request = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, length)
    served.sock.sendall(request + b"x" * 100)
    served.sock.close()
    assert isinstance(served.end(), ConnectionClosedError)
    assert content(device, 0, 100) == bytes(100)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        bytes(28),
        struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, DRAIN_BYTES_MAX + 1),
        struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, 0xFFFFFFFF),
    ],
)
def test_what_is_no_request_ends_the_connection(
    serve: Any, device: BlockDevice, request_bytes: bytes
) -> None:
    served = serve(export(device))
    served.sock.sendall(request_bytes)
    assert isinstance(served.end(), RemoteProtocolError)
    assert served.sock.recv(1) == b""
