"""The negotiation under any bytes in any portions, and the transmission against a model of a disk."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import BackupError, NotFoundError
from backplane.testing.nbd_client import NbdClient, connect, nbd_uri
from backplane.testing.nbd_words import Can, Command, ExportInfo, context_query, info_query
from storage_node.core.nbd_handshake import (
    BASE_ALLOCATION,
    GREETING,
    NAME_BYTES_MAX,
    OPTION_BYTES_MAX,
    Ended,
    Event,
    ExportFacts,
    ExportWanted,
    Handshake,
    NamesWanted,
    Ready,
)
from storage_node.core.nbd_transmission import describe_runs
from storage_node.disk.memory import MemoryDevice
from storage_node.nbd.connection import Transmission
from storage_node.nbd.export import DeviceExport
from storage_node.nbd.server import NbdServer

NAMES = ("", "volume", "volume@view")
FACTS = ExportFacts(
    name="volume",
    description="",
    size_bytes=1 << 20,
    block_bytes=1,
    preferred_bytes=4096,
    payload_bytes_max=1 << 20,
    is_read_only=False,
    can_multi_conn=True,
    has_changed=True,
)


def play(portions: Sequence[bytes]) -> tuple[list[Event], bytes]:
    """Negotiate as a shell would; return what happened and what was said."""
    handshake = Handshake()
    events: list[Event] = []
    output = b""
    for portion in portions:
        handshake.receive(portion)
        while (event := handshake.next_event()) is not None:
            events.append(event)
            if isinstance(event, NamesWanted):
                handshake.list_names(NAMES)
            elif isinstance(event, ExportWanted) and event.name in NAMES:
                handshake.describe(FACTS)
            elif isinstance(event, ExportWanted):
                handshake.refuse(NotFoundError("no such export"))
        output += handshake.take_output()
        if events and isinstance(events[-1], Ready | Ended):
            break
    return events, output


def option(number: int, data: bytes) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


NAME = st.sampled_from([*NAMES, "nothing", "ü", "n" * NAME_BYTES_MAX, "n" * (NAME_BYTES_MAX + 1)])
QUERIES = st.lists(st.sampled_from(["base:", "base:allocation", "sb:changed", "?"]), max_size=70)
OPTIONS = st.one_of(
    st.builds(option, st.sampled_from([1, 2, 3, 5, 8, 11, 99]), st.just(b"")),
    st.builds(option, st.integers(0, 12), st.binary(max_size=40)),
    st.builds(lambda name: option(1, name.encode()), NAME),
    st.builds(
        lambda number, name, wanted: option(number, info_query(name, wanted)),
        st.sampled_from([6, 7]),
        NAME,
        st.lists(st.integers(0, 9), max_size=5),
    ),
    st.builds(
        lambda number, name, queries: option(number, context_query(name, queries)),
        st.sampled_from([9, 10]),
        NAME,
        QUERIES,
    ),
    st.binary(max_size=30),
)
DIALOGUES = st.builds(
    lambda flags, options: struct.pack(">I", flags) + b"".join(options),
    st.sampled_from([0, 1, 2, 3, 3, 3, 4]),
    st.lists(OPTIONS, max_size=8),
)
PLACES = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(st.binary(max_size=400), PLACES)
def test_any_bytes_have_a_clean_outcome(data: bytes, places: list[int]) -> None:
    for said in (data, b"\0\0\0\3" + data, b"\0\0\0\3IHAVEOPT" + data):
        events, output = play(cut(said, places))
        assert output.startswith(GREETING) or not said
        assert all(isinstance(event, Event) for event in events)


@given(DIALOGUES, PLACES)
def test_portions_make_no_difference(data: bytes, places: list[int]) -> None:
    """Ready carries what was left over of its last portion, so that is compared without it."""
    whole, said = play([data])
    pieces, said_in_pieces = play(cut(data, places))
    if whole and isinstance(whole[-1], Ready):
        assert isinstance(pieces[-1], Ready)
        assert whole[-1].leftover.startswith(pieces[-1].leftover)
        whole[-1] = whole[-1]._replace(leftover=b"")
        pieces[-1] = pieces[-1]._replace(leftover=b"")
    assert pieces == whole
    assert said_in_pieces == said


@given(DIALOGUES, PLACES)
def test_what_is_kept_is_bounded_by_one_option(data: bytes, places: list[int]) -> None:
    handshake = Handshake()
    for portion in cut(data, places):
        handshake.receive(portion)
        while (event := handshake.next_event()) is not None:
            if isinstance(event, ExportWanted):
                handshake.refuse(BackupError("no"))
            elif isinstance(event, NamesWanted):
                handshake.list_names([])
        assert len(handshake._input) < 16 + OPTION_BYTES_MAX


@given(
    st.lists(st.integers(1, 50), max_size=20),
    st.integers(0, 100),
    st.integers(1, 400),
    st.integers(1, 30),
)
def test_descriptors_say_what_the_runs_say(
    gaps: list[int], start: int, length: int, count_max: int
) -> None:
    """Byte by byte, for as far as the descriptors reach; and they reach the end unless there are too many."""
    edges = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    runs = list(zip(edges[::2], edges[1::2], strict=False))
    end = start + length
    clipped = [(max(a, start), min(b, end)) for a, b in runs if a < end and b > start]
    found = describe_runs(
        iter(clipped), start_byte=start, end_byte=end, inside=7, outside=9, count_max=count_max
    )
    said = [status for count, status in found for _ in range(count)]
    wanted = [7 if any(a <= at < b for a, b in runs) else 9 for at in range(start, end)]
    assert said == wanted[: len(said)]
    assert len(found) == count_max or len(said) == length
    assert all(a[1] != b[1] for a, b in itertools.pairwise(found))


# The transmission against a bytearray.

SIZE_BYTES = 1 << 20
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([Command.READ, Command.WRITE, Command.WRITE_ZEROES, Command.TRIM]),
        st.integers(0, SIZE_BYTES),
        st.one_of(st.integers(0, 5000), st.integers(60_000, 300_000)),
    ),
    min_size=1,
    max_size=12,
)


@contextlib.contextmanager
def transmission(device: MemoryDevice, *, is_structured: bool) -> Iterator[NbdClient]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(30)
    # Every reply of a burst fits, so that a client may send all before it receives anything.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    export = DeviceExport(device, name="volume")
    ready = Ready("volume", is_structured, (), b"")
    thread = threading.Thread(target=Transmission(ours, export, ready).serve)
    thread.start()
    client = NbdClient(
        theirs,
        info=ExportInfo(size_bytes=device.size_bytes, can=Can(0)),
        is_structured=is_structured,
        contexts={},
    )
    try:
        yield client
    finally:
        client.disconnect()
        thread.join()
        ours.close()


@settings(max_examples=30)
@given(REQUESTS, st.booleans(), st.integers(0, 1000))
def test_a_disk_over_nbd_is_a_disk(
    requests: list[tuple[Command, int, int]], is_structured: bool, seed: int
) -> None:
    model = bytearray(SIZE_BYTES)
    rng = random.Random(seed)
    with transmission(
        MemoryDevice(SIZE_BYTES, block_bytes=4096), is_structured=is_structured
    ) as it:
        for command, address, count in requests:
            is_inside = address + count <= SIZE_BYTES
            data = rng.randbytes(count) if command == Command.WRITE else b""
            reply = it.wait(it.send(command, address, count, data=data))
            if not is_inside:
                beyond = errno.EINVAL if command in (Command.READ, Command.TRIM) else errno.ENOSPC
                assert reply.error == beyond
                continue
            assert not reply.error
            if command == Command.READ:
                assert (
                    b"".join(chunk.data for chunk in reply.chunks)
                    == (model[address : address + count])
                )
            else:
                model[address : address + count] = data or bytes(count)
        assert it.read(0, SIZE_BYTES) == model


# A bounded fuzz: the abuses of the faults table (D15), bent a little, against a server that has to survive them all.

HELLO = b"\0\0\0\3"
GO = HELLO + option(8, b"") + option(10, context_query("volume", [BASE_ALLOCATION]))
GO += option(7, info_query("volume", (3,)))


def request(command: int, address: int, count: int, data: bytes = b"", *, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, 1, address, count) + data


CORPUS = (
    HELLO + option(1, b"n" * 4097),
    HELLO + option(7, info_query("n" * 4097, ())),
    HELLO + option(4242, b"unknown"),
    HELLO + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF),
    HELLO + b"IHAVEOPT" + struct.pack(">II", 7, OPTION_BYTES_MAX) + b"\xff" * OPTION_BYTES_MAX,
    HELLO + option(8, b"") + option(9, context_query("volume", ["base:"] * 64)),
    HELLO + option(3, b"") * 50 + option(2, b""),
    GO + request(0, (1 << 64) - 1, 4096),
    GO + request(0, 0, 0xFFFFFFFF),
    GO + request(1, 0, 0xFFFFFFFF, b"x" * 100),
    GO + request(1, (1 << 64) - 4096, 4096, b"x" * 4096),
    GO + request(2, 0, 0) + request(1, 0, 4, b"late"),
    GO + request(7, 0, SIZE_BYTES) + request(7, 0, 0) + request(7, 0, 1, flags=8),
    GO + request(1, 0, 70_000, b"y" * 70_000) + request(0, 0, 70_000, flags=4),
    GO + request(6, 0, SIZE_BYTES, flags=18) + request(4, 0, SIZE_BYTES) + request(3, 0, 0),
    GO + request(99, 1, 1) + request(0, 0, 1, flags=0xFFFF) + b"GET / HTTP/1.1\r\n\r\n",
)
FUZZ_ROUNDS = 12


def bent(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, cut, double, or join with another."""
    buffer = bytearray(data)
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(buffer))
        kind = rng.randrange(5)
        if kind == 0:
            buffer[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            buffer[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\0\0\x10\1"])
        elif kind == 2:
            del buffer[place : place + rng.randrange(1, 64)]
        elif kind == 3:
            buffer[place:place] = buffer[place : place + 64]
        else:
            buffer += rng.choice(CORPUS)
        buffer = buffer or bytearray(1)
    return bytes(buffer)


class OneVolume:
    """Exports with one volume."""

    def __init__(self) -> None:
        self.device = MemoryDevice(SIZE_BYTES, block_bytes=4096)

    def names(self) -> list[str]:
        return ["volume"]

    def open(self, name: str, client: str) -> DeviceExport:
        if name != "volume":
            raise NotFoundError("no such export")
        return DeviceExport(self.device, name="volume")


def converse(address: str, data: bytes) -> None:
    """Say all of it, hang up our side, and listen until the server has hung up as well."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(address.removeprefix("unix://"))

        def speak() -> None:
            with contextlib.suppress(OSError):  # it may have had enough
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1 << 16):
                pass
        speaker.join()


def test_whatever_is_said_the_server_goes_on(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(15)
    server = NbdServer(OneVolume())
    (address,) = server.start([f"unix://{short_folder}/nbd.sock"])
    try:
        for data in CORPUS:
            converse(address, data)
            for _ in range(FUZZ_ROUNDS):
                converse(address, bent(data, rng))
        with connect(nbd_uri(address, "volume")) as client:
            client.write(0, b"unharmed")
            assert client.read(0, 8) == b"unharmed"
    finally:
        server.close()
    assert not [record for record in caplog.records if record.exc_info], "something crashed"
