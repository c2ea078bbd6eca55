"""The NBD client against a server that is a list of bytes: it says the right thing and believes no wrong one."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backplane.testing.nbd_client import (
    NbdClient,
    NbdError,
    NbdOptionError,
    NbdProtocolError,
    Negotiation,
    nbd_uri,
)
from backplane.testing.nbd_words import (
    BASE_ALLOCATION,
    HOLE,
    REQUEST,
    ZERO,
    Answer,
    Can,
    Command,
    ExportInfo,
    Extent,
    Flag,
    Info,
    Option,
)

COOKIE = 0x5EED0000_00000001
"""The first request's."""
DONE = 1


@dataclass
class Bench:
    """Both ends of a connection; the server's answers are put there before the client asks."""

    client: NbdClient
    server: socket.socket

    def chunk(
        self, kind: int, payload: bytes = b"", *, flags: int = DONE, cookie: int = COOKIE
    ) -> None:
        head = struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload))
        self.server.sendall(head + payload)

    def simple(self, error: int = 0, data: bytes = b"", *, cookie: int = COOKIE) -> None:
        self.server.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)

    def asked(self) -> tuple[int, ...]:
        """Flags, command, cookie, address and count of the next request."""
        magic, *rest = REQUEST.unpack(self.server.recv(REQUEST.size, socket.MSG_WAITALL))
        assert magic == 0x25609513
        return tuple(rest)


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.settimeout(10)
        client = NbdClient(
            ours,
            info=ExportInfo(size_bytes=1 << 20, can=Can.HAS_FLAGS),
            is_structured=request.param,
            contexts={7: BASE_ALLOCATION} if request.param else {},
        )
        yield Bench(client, theirs)


@pytest.fixture
def handshake() -> Iterator[tuple[Negotiation, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs, Negotiation(ours) as negotiation:
        for end in (ours, theirs):
            end.settimeout(10)
        yield negotiation, theirs


structured = pytest.mark.parametrize("bench", [True], ids=["structured"], indirect=True)
simple = pytest.mark.parametrize("bench", [False], ids=["simple"], indirect=True)


# --- requests ------------------------------------------------------------------------------------


def test_a_write_carries_its_flags_address_count_and_data(bench: Bench) -> None:
    bench.simple()
    bench.client.write(4096, b"data", flags=Flag.FUA)
    assert bench.asked() == (1, Command.WRITE, COOKIE, 4096, 4)
    assert bench.server.recv(4) == b"data"


def test_each_short_word_sends_its_command(bench: Bench) -> None:
    client = bench.client
    for number, (ask, expected) in enumerate(
        [
            (client.flush, (0, 3, 0, 0)),
            (lambda: client.trim(512, 1024), (0, 4, 512, 1024)),
            (lambda: client.cache(512, 1024), (0, 5, 512, 1024)),
            (lambda: client.zero(512, 1024, flags=Flag.NO_HOLE), (2, 6, 512, 1024)),
        ]
    ):
        bench.simple(cookie=COOKIE + number)
        ask()
        flags, command, _, address, count = bench.asked()
        assert (flags, command, address, count) == expected


def test_the_server_s_error_is_raised_with_its_number(bench: Bench) -> None:
    bench.simple(errno.ENOSPC)
    with pytest.raises(NbdError) as caught:
        bench.client.write(0, b"x")
    assert caught.value.errno == errno.ENOSPC


@simple
def test_a_simple_reply_brings_the_data(bench: Bench) -> None:
    bench.simple(data=b"abcd")
    assert bench.client.read(0, 4) == b"abcd"


@structured
def test_chunks_in_any_order_make_up_a_read(bench: Bench) -> None:
    bench.chunk(1, struct.pack(">Q", 108) + b"tail", flags=0)
    bench.chunk(2, struct.pack(">QI", 104, 4), flags=0)
    bench.chunk(1, struct.pack(">Q", 100) + b"head")
    assert bench.client.read(100, 12) == b"head\0\0\0\0tail"


@structured
def test_an_error_chunk_says_what_and_where(bench: Bench) -> None:
    bench.chunk(0x8002, struct.pack(">IH3sQ", errno.EIO, 3, b"bad", 104), flags=0)
    bench.chunk(0)
    with pytest.raises(NbdError, match="bad") as caught:
        bench.client.read(100, 12)
    assert caught.value.errno == errno.EIO


@structured
def test_replies_may_come_in_any_order(bench: Bench) -> None:
    first = bench.client.send(Command.FLUSH)
    second = bench.client.send(Command.FLUSH)
    bench.simple(cookie=second)
    bench.chunk(0x8001, struct.pack(">IH", errno.EIO, 0), cookie=first)
    assert bench.client.wait(first).error == errno.EIO
    assert bench.client.wait(second).error == 0


@structured
def test_block_status_counts_from_the_request(bench: Bench) -> None:
    bench.chunk(5, struct.pack(">IIIII", 7, 512, 0, 1024, HOLE | ZERO))
    assert bench.client.block_status(512, 1024) == [
        Extent(start=512, end=1024, flags=0),
        Extent(start=1024, end=2048, flags=HOLE | ZERO),
    ]


@structured
def test_the_map_joins_neighbours_in_the_same_state(bench: Bench) -> None:
    bench.chunk(5, struct.pack(">III", 7, 1 << 19, 0), cookie=COOKIE)
    bench.chunk(5, struct.pack(">III", 7, 1 << 19, 0), cookie=COOKIE + 1)
    assert bench.client.map() == [Extent(start=0, end=1 << 20, flags=0)]


def test_disconnect_says_goodbye_once(bench: Bench) -> None:
    bench.client.disconnect()
    bench.client.disconnect()
    assert bench.asked()[1] == Command.DISCONNECT
    assert bench.server.recv(1) == b""


# --- what no server may say ----------------------------------------------------------------------


@structured
@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (1, struct.pack(">Q", 99) + b"outside ...."),
        (1, struct.pack(">Q", 108) + b"beyond"),
        (1, struct.pack(">Q", 100)),
        (1, struct.pack(">Q", 100) + b"short"),
        (2, struct.pack(">QI", 100, 0)),
        (2, struct.pack(">QI", 96, 16)),
        (0, b"content"),
        (0x8001, struct.pack(">IH", 0, 0)),
        (5, struct.pack(">III", 7, 12, 0)),
        (9, b""),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else str(value),
)
def test_a_chunk_that_no_server_may_send_is_found_out(
    bench: Bench, kind: int, payload: bytes
) -> None:
    bench.chunk(kind, payload)
    with pytest.raises(NbdProtocolError):
        bench.client.read(100, 12)


@structured
def test_bytes_that_come_twice_are_found_out(bench: Bench) -> None:
    bench.chunk(2, struct.pack(">QI", 100, 8), flags=0)
    bench.chunk(1, struct.pack(">Q", 104) + b"overlaps")
    with pytest.raises(NbdProtocolError, match="twice"):
        bench.client.read(100, 12)


@structured
@pytest.mark.parametrize(
    "payload",
    [
        struct.pack(">III", 8, 1024, 0),
        struct.pack(">I", 7),
        struct.pack(">III", 7, 0, 0),
        struct.pack(">IIIII", 7, 1024, 0, 512, 0),
    ],
    ids=["unknown context", "nothing", "no size", "begins beyond"],
)
def test_a_status_that_no_server_may_send_is_found_out(bench: Bench, payload: bytes) -> None:
    bench.chunk(5, payload)
    with pytest.raises(NbdProtocolError):
        bench.client.block_status(0, 1024)


@structured
def test_a_read_is_not_answered_simply_once_structured_replies_are_agreed(bench: Bench) -> None:
    bench.simple(data=b"abcd")
    with pytest.raises(NbdProtocolError, match="simple"):
        bench.client.read(0, 4)


@simple
def test_nothing_is_structured_without_agreement(bench: Bench) -> None:
    bench.chunk(0)
    with pytest.raises(NbdProtocolError, match="negotiated"):
        bench.client.flush()


def test_a_reply_to_nobody_is_found_out(bench: Bench) -> None:
    bench.simple(cookie=1)
    with pytest.raises(NbdProtocolError, match="nobody"):
        bench.client.flush()


def test_junk_is_no_reply_and_an_end_is_no_reply(bench: Bench) -> None:
    bench.server.sendall(b"junk")
    with pytest.raises(NbdProtocolError):
        bench.client.flush()
    bench.server.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        bench.client.flush()


# --- negotiation ---------------------------------------------------------------------------------


def option_reply(option: int, answer: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, answer, len(data)) + data


def test_the_negotiation_reads_what_go_says(
    handshake: tuple[Negotiation, socket.socket],
) -> None:
    negotiation, server = handshake
    server.sendall(b"NBDMAGICIHAVEOPT\0\3")
    server.sendall(option_reply(Option.STRUCTURED_REPLY, Answer.ACK))
    server.sendall(option_reply(10, Answer.META_CONTEXT, struct.pack(">I", 3) + b"base:allocation"))
    server.sendall(option_reply(10, Answer.ACK))
    server.sendall(option_reply(7, Answer.INFO, struct.pack(">HQH", 0, 1 << 20, 0x103)))
    server.sendall(option_reply(7, Answer.INFO, struct.pack(">HIII", 3, 512, 4096, 1 << 25)))
    server.sendall(option_reply(7, Answer.ACK))
    negotiation.greet()
    negotiation.structured_replies()
    assert negotiation.set_contexts("volume", [BASE_ALLOCATION]) == {3: BASE_ALLOCATION}
    client = negotiation.go("volume")
    assert client.info == ExportInfo(
        size_bytes=1 << 20,
        can=Can.HAS_FLAGS | Can.READ_ONLY | Can.MULTI_CONNECTION,
        block_bytes_min=512,
        block_bytes_preferred=4096,
        payload_bytes_max=1 << 25,
    )
    assert client.is_structured
    said = server.recv(1000)
    assert said.startswith(struct.pack(">I8sII", 3, b"IHAVEOPT", 8, 0))
    query = struct.pack(">I6sII15s", 6, b"volume", 1, 15, b"base:allocation")
    assert struct.pack(">8sII", b"IHAVEOPT", 10, len(query)) + query in said
    assert said.endswith(struct.pack(">II6sHH", 14, 6, b"volume", 1, Info.BLOCK_SIZE))


def test_a_refused_option_raises_with_the_answer(
    handshake: tuple[Negotiation, socket.socket],
) -> None:
    negotiation, server = handshake
    server.sendall(option_reply(Option.LIST, Answer.POLICY, b"no"))
    with pytest.raises(NbdOptionError, match="no") as caught:
        negotiation.list_exports()
    assert caught.value.answer == Answer.POLICY


@pytest.mark.parametrize(
    "reply",
    [
        option_reply(Option.GO, Answer.ACK),
        struct.pack(">QIII", 1, Option.LIST, Answer.ACK, 0),
        struct.pack(">QIII", 0x3E889045565A9, Option.LIST, Answer.SERVER, 1 << 31),
    ],
    ids=["another option", "junk", "too long"],
)
def test_a_wrong_option_reply_is_found_out(
    handshake: tuple[Negotiation, socket.socket], reply: bytes
) -> None:
    negotiation, server = handshake
    server.sendall(reply)
    with pytest.raises(NbdProtocolError):
        negotiation.list_exports()


@pytest.mark.parametrize(
    "greeting", [b"NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\0\0", b"NBDMAGICIHAVEOPT\0\0"]
)
def test_an_old_server_is_refused(
    handshake: tuple[Negotiation, socket.socket], greeting: bytes
) -> None:
    negotiation, server = handshake
    server.sendall(greeting)
    with pytest.raises(NbdProtocolError):
        negotiation.greet()


def test_uris_name_the_server_and_the_export() -> None:
    assert nbd_uri("tcp://127.0.0.1:99", "vol@view 1") == "nbd://127.0.0.1:99/vol@view%201"
    assert nbd_uri("unix:///run/s", "vol") == "nbd+unix:///vol?socket=/run/s"
