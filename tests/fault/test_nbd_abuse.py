"""Row D15 of the faults: clients that lie, stop, flood or never listen.

Each of them is answered with an error or with the end of its connection, and nobody else notices: at the end of every
test a real client is served by the same process, which has grown by no more than its limits allow and has logged no
traceback.  What happens inside is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from backplane.testing.nbd_client import (
    NbdClient,
    NbdOptionError,
    Negotiation,
    connect,
    open_socket,
)
from backplane.testing.nbd_words import (
    GREETING,
    REQUEST,
    REQUEST_MAGIC,
    Answer,
    Command,
    Flag,
    Info,
    Option,
    context_query,
    info_query,
)
from backplane.units import KIB, MIB
from tests.site.nbd_process import NbdProcess

CONTENT_BYTES = 16 * MIB
SIZE = 96 * MIB
"""More than one request may ask for, so that the limit of requests is not hidden by the end of the volume."""
GROWTH_BYTES_MAX = 64 * MIB
"""Limits of the server: 256 negotiations with an option of 64 KiB each, and buffers for each connection."""
HALF_OPEN = 10_000
HANDSHAKE_S = 2.0
"""The server's deadline in tests that wait for it; the real one is 10 s."""
NO_DEADLINE_S = 3600.0
"""In all others, where the deadline must not be what ended the connection."""
PATIENCE_S = 60.0
LENGTH_MAX = 0xFFFFFFFF

pytestmark = [pytest.mark.processes, pytest.mark.fault]


class Victim:
    """A server, and the ways to be unkind to it."""

    def __init__(
        self, folder: Path, *, handshake_s: float = NO_DEADLINE_S, **settings: object
    ) -> None:
        self.file = folder / "volume"
        self.file.write_bytes(random.Random(0).randbytes(CONTENT_BYTES))
        os.truncate(self.file, SIZE)
        self.server = NbdProcess(
            {"volume": self.file},
            ["tcp://127.0.0.1:0", f"unix://{folder}/socket"],
            handshake_s=handshake_s,
            **settings,
        )
        self.assert_serves()  # warm: what it needs for one client is no growth
        self.process = psutil.Process(self.server.pid)
        self.start_bytes = self.server.rss_bytes()
        self.start_descriptors = self.process.num_fds()

    def dial(self, *, unix: bool = False) -> socket.socket:
        """Connect and say nothing."""
        return open_socket(self.server.uri("volume", unix=unix))[0]

    @contextlib.contextmanager
    def negotiation(self) -> Iterator[Negotiation]:
        """Greet as everybody does."""
        with Negotiation(self.dial()) as talk:
            talk.greet()
            yield talk

    @contextlib.contextmanager
    def client(self) -> Iterator[NbdClient]:
        """A client in the transmission phase, which hangs up at the end without a word."""
        client = connect(self.server.uri("volume"))
        with contextlib.closing(client):
            yield client

    def assert_serves(self) -> None:
        """A real client gets in and is served."""
        with connect(self.server.uri("volume", unix=True)) as client:
            address = 8 * MIB
            client.write(address, b"honest", flags=Flag.FUA)
            assert client.read(address, 6) == b"honest"

    def assert_bounded(self) -> None:
        grown = self.server.rss_bytes() - self.start_bytes
        assert grown < GROWTH_BYTES_MAX, f"the server has grown by {grown >> 20} MiB"

    def assert_gives_back(self) -> None:
        """Descriptors of those who left are closed."""
        wait_until(lambda: self.process.num_fds() <= self.start_descriptors)


@pytest.fixture
def new_victim(short_folder: Path) -> Iterator[Callable[..., Victim]]:
    made: list[Victim] = []

    def make(**settings: object) -> Victim:
        made.append(Victim(short_folder, **settings))
        return made[-1]

    yield make
    for victim in made:
        try:
            assert victim.server.is_running, "the server is dead"
            victim.assert_serves()
            victim.assert_bounded()
        finally:
            log = victim.server.stop()
        assert "Traceback" not in log, log


@pytest.fixture
def victim(new_victim: Callable[..., Victim]) -> Victim:
    return new_victim()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def refusal(talk: Negotiation, option: int) -> int | None:
    """Return the error that answers an option; None if the server hung up instead."""
    try:
        reply = talk.receive_option_reply(option)
    except (EOFError, ConnectionError):
        return None
    assert reply.answer & 0x80000000, f"option {option} was not refused: {reply.answer}"
    return reply.answer


def assert_hangs_up(peer: socket.socket, *, bytes_max: int = MIB) -> bytes:
    """Take what still comes until the server closes; it must close."""
    peer.settimeout(PATIENCE_S)
    taken = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := peer.recv(MIB):
            taken += data
            assert len(taken) <= bytes_max, "it talks on"
    return bytes(taken)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (Option.GO, info_query("x" * 4097, [Info.BLOCK_SIZE])),
        (Option.INFO, info_query("x" * 4097, [])),
        (Option.LIST_META_CONTEXT, context_query("x" * 4097, [])),
        (Option.SET_META_CONTEXT, context_query("volume", ["x" * 4097])),
        (Option.GO, struct.pack(">I", LENGTH_MAX) + b"volume\0\0"),
        (Option.GO, struct.pack(">I6sH", 6, b"volume", 0xFFFF)),
        (Option.GO, struct.pack(">I6sH", 6, b"volume", 0) + b"more"),
        (Option.GO, b""),
        (Option.GO, struct.pack(">I2sH", 2, b"\xff\xfe", 0)),
        (Option.SET_META_CONTEXT, struct.pack(">I6sI", 6, b"volume", LENGTH_MAX)),
        (Option.SET_META_CONTEXT, struct.pack(">I6sII", 6, b"volume", 1, LENGTH_MAX) + b"base"),
        (Option.LIST, b"no data allowed here"),
        (Option.STRUCTURED_REPLY, b"nor here"),
    ],
    ids=[
        "GO, name of 4097 bytes",
        "INFO, name of 4097 bytes",
        "LIST_META_CONTEXT, name of 4097 bytes",
        "query of 4097 bytes",
        "name longer than the option",
        "65535 requests for information that are not there",
        "bytes behind the end",
        "empty GO",
        "name that is no UTF-8",
        "4294967295 queries that are not there",
        "query longer than the option",
        "LIST with data",
        "STRUCTURED_REPLY with data",
    ],
)
def test_an_option_that_lies_about_itself_is_refused(
    victim: Victim, option: int, data: bytes
) -> None:
    with victim.negotiation() as talk:
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            talk.structured_replies()
        talk.send_option(option, data)
        if refusal(talk, option) is not None:
            # Refused, not confused: the next option is read from where it begins.
            assert talk.list_exports() == ["volume"]


@pytest.mark.parametrize("count", [4096, 4097, 64 * KIB])
def test_the_old_option_for_an_export_can_only_be_refused_by_hanging_up(
    victim: Victim, count: int
) -> None:
    with victim.negotiation() as talk:
        talk.send_option(Option.EXPORT_NAME, b"x" * count)
        assert assert_hangs_up(talk.wire.socket) == b""


@pytest.mark.parametrize("option", [0, 4, Option.STARTTLS, Option.EXTENDED_HEADERS, 99, LENGTH_MAX])
def test_an_unknown_option_is_refused_with_its_data_and_the_next_one_is_heard(
    victim: Victim, option: int
) -> None:
    with victim.negotiation() as talk:
        for data in (b"", b"some data of an option that nobody knows"):
            with pytest.raises(NbdOptionError) as caught:
                talk.option(option, data)
            assert caught.value.answer == Answer.UNSUPPORTED
        assert talk.list_exports() == ["volume"]


@pytest.mark.parametrize("option", [Option.GO, Option.LIST, Option.SET_META_CONTEXT, 99])
def test_an_option_of_4_gib_is_not_waited_for(victim: Victim, option: int) -> None:
    """Neither its memory nor its time is spent: the answer comes before the data, which then go nowhere."""
    with victim.negotiation() as talk:
        talk.send_option(option, b"x" * KIB, claimed=LENGTH_MAX)
        assert refusal(talk, option) in (None, Answer.TOO_BIG, Answer.INVALID, Answer.UNSUPPORTED)
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                talk.wire.send(bytes(64 * KIB))
        victim.assert_bounded()


def test_options_without_end_come_to_one(victim: Victim) -> None:
    """A client that asks and asks, and takes the answers, still has no more than its handshake's time or number."""
    with victim.negotiation() as talk:
        with contextlib.suppress(EOFError, ConnectionError):
            for _ in range(100_000):
                talk.list_exports()
            pytest.fail("it may ask for ever")
        victim.assert_bounded()


# --- greetings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"\xff\xff\xff\xff", b"\0\0\0\x83", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", GREETING, bytes(64)],
    ids=["all flags", "an unknown flag", "HTTP", "our own greeting", "zeros"],
)  # fmt: skip
def test_junk_instead_of_the_client_flags_ends_the_connection(victim: Victim, said: bytes) -> None:
    with victim.dial() as peer:
        peer.sendall(said)
        taken = assert_hangs_up(peer)
    assert taken.startswith(GREETING)
    victim.assert_gives_back()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_who_says_nothing_is_sent_away(new_victim: Callable[..., Victim], unix: bool) -> None:
    victim = new_victim(handshake_s=HANDSHAKE_S)
    with victim.dial(unix=unix) as peer:
        started = time.monotonic()
        assert_hangs_up(peer)
        assert time.monotonic() - started > HANDSHAKE_S / 2, "a slow client was given no time"


def test_who_says_one_byte_at_a_time_is_sent_away_as_well(
    new_victim: Callable[..., Victim],
) -> None:
    """The deadline is for the whole handshake, not for each byte of it."""
    victim = new_victim(handshake_s=HANDSHAKE_S)
    with victim.dial() as peer:
        end = time.monotonic() + PATIENCE_S
        with pytest.raises(ConnectionError):  # noqa: PT012 - how many bytes it takes is not known
            peer.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 99, 32 * KIB))
            while time.monotonic() < end:
                peer.sendall(b"x")
                select.select([], [], [], 0.05)  # the pace of the drip


# --- requests ------------------------------------------------------------------------------------


def request(command: int, address: int, count: int, *, flags: int = 0, cookie: int = 1) -> bytes:
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, address, count)


@pytest.mark.parametrize("command", [Command.READ, Command.BLOCK_STATUS, Command.CACHE, 77])
def test_a_request_for_4_gib_is_refused_and_the_connection_goes_on(
    victim: Victim, command: int
) -> None:
    with victim.client() as client:
        for address in (0, 1 << 63, (1 << 64) - 1):
            assert client.wait(client.send(command, address, LENGTH_MAX)).error
        victim.assert_bounded()
        assert client.read(8 * MIB, 6) == b"honest"


@pytest.mark.parametrize("address", [0, (1 << 64) - 1], ids=["at 0", "at 2^64-1"])
def test_a_write_of_4_gib_is_refused_or_ends_the_connection(victim: Victim, address: int) -> None:
    """Its data cannot be told from the next request unless all of them are taken: an end is an answer."""
    before = victim.file.read_bytes()
    with victim.client() as client, contextlib.suppress(ConnectionError, EOFError):
        cookie = client.send(Command.WRITE, address, LENGTH_MAX, data=b"x" * MIB)
        assert client.wait(cookie).error
    victim.assert_bounded()
    assert victim.file.read_bytes() == before


@pytest.mark.parametrize("count", [33 * MIB, 64 * MIB])
def test_a_write_longer_than_the_limit_is_refused_or_ends_the_connection(
    victim: Victim, count: int
) -> None:
    before = victim.file.read_bytes()
    with victim.client() as client, contextlib.suppress(ConnectionError, EOFError):
        assert client.wait(client.send(Command.WRITE, 0, count, data=bytes(count))).error
        assert client.read(8 * MIB, 6) == b"honest", "refused, so the connection goes on"
    victim.assert_bounded()
    assert victim.file.read_bytes() == before


def test_nothing_is_done_after_a_disconnect(victim: Victim) -> None:
    before = victim.file.read_bytes()
    with victim.client() as client:
        client.wire.send(
            request(Command.DISCONNECT, 0, 0),
            request(Command.WRITE, 0, 5, cookie=2) + b"ghost",
            request(Command.READ, 0, 512, cookie=3),
        )
        assert assert_hangs_up(client.wire.socket) == b"", (
            "a request after the disconnect was answered"
        )
    assert victim.file.read_bytes() == before


def test_requests_before_a_disconnect_are_done(victim: Victim) -> None:
    """And answered, although the client has said goodbye before it took the answer."""
    with victim.client() as client:
        client.wire.send(
            request(Command.WRITE, 0, 6) + b"before", request(Command.DISCONNECT, 0, 0)
        )
        assert len(assert_hangs_up(client.wire.socket)) >= 16
    assert victim.file.read_bytes()[:6] == b"before"


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n" * 4, bytes(28), b"\x25\x60\x95\x14" * 7])
def test_junk_instead_of_a_request_ends_the_connection(victim: Victim, junk: bytes) -> None:
    with victim.client() as client:
        client.wire.send(junk)
        assert_hangs_up(client.wire.socket)
    victim.assert_gives_back()


@pytest.mark.parametrize("sent", [0, 1, 100 * KIB, MIB - 1])
def test_a_client_that_stops_within_its_data_is_in_nobody_s_way(victim: Victim, sent: int) -> None:
    with victim.client() as client:
        client.wire.send(request(Command.WRITE, 0, MIB), bytes(sent))
        for _ in range(3):
            victim.assert_serves()
        victim.assert_bounded()
    victim.assert_gives_back()


def test_a_client_that_stops_within_a_request_is_in_nobody_s_way(victim: Victim) -> None:
    with victim.client() as client:
        client.wire.send(request(Command.READ, 0, 512)[:27])
        victim.assert_serves()
    victim.assert_gives_back()


def test_clients_that_never_take_their_replies_are_in_nobody_s_way(victim: Victim) -> None:
    """Large reads without end from several clients, none of which reads a byte."""
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(victim.client()) for _ in range(8)]
        for client in deaf:
            flood(client.wire.socket, request(Command.READ, 0, MIB) * 1000)
            victim.assert_serves()
            victim.assert_bounded()
    victim.assert_gives_back()


def test_small_replies_that_nobody_takes_are_not_kept(victim: Victim) -> None:
    """A reply of 16 bytes costs more to keep than to send; a client can ask for millions."""
    with victim.client() as client:
        flood(client.wire.socket, request(Command.CACHE, 0, 512) * 1000)
        victim.assert_serves()
        victim.assert_bounded()
    victim.assert_gives_back()


def test_a_server_with_a_deaf_client_still_stops(short_folder: Path) -> None:
    victim = Victim(short_folder)
    with victim.client() as client:
        flood(client.wire.socket, request(Command.READ, 0, MIB) * 1000)
        victim.server.stop()  # fails if it takes long
        assert not victim.server.is_running


def test_the_largest_replies_of_all_cost_no_more_than_one_each(victim: Victim) -> None:
    """Without structured replies a read of 32 MiB is promised as a whole, and the client takes none of it."""
    count = 6
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = connect(victim.server.uri("volume"), is_structured=False)
            stack.enter_context(contextlib.closing(client))
            flood(client.wire.socket, request(Command.READ, 0, 32 * MIB) * 1000)
        victim.assert_serves()
        grown = victim.server.rss_bytes() - victim.start_bytes
        assert grown < count * 33 * MIB + GROWTH_BYTES_MAX, f"grown by {grown >> 20} MiB"
    victim.assert_gives_back()


def flood(peer: socket.socket, data: bytes, *, bytes_max: int = 64 * MIB) -> None:
    """Send until nobody takes any more."""
    peer.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < bytes_max:
            sent += peer.send(data)


# --- many ----------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Raise our limit of open files as far as we may; yields how many sockets can be held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = HALF_OPEN + 1000
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    yield max(soft, allowed) - 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def silent(_peer: socket.socket) -> None:
    """Not even the client flags."""


def greeted(peer: socket.socket) -> None:
    peer.sendall(struct.pack(">I", 3))


def within_an_option(peer: socket.socket) -> None:
    """As much as the server may be made to keep for somebody who has not even named an export."""
    peer.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", Option.GO, 64 * KIB) + bytes(60 * KIB))


def asking(peer: socket.socket) -> None:
    """Asks for lists, and takes none."""
    peer.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", Option.LIST, 0) * 20)


@pytest.mark.timeout(300)
def test_ten_thousand_half_open_handshakes_harm_nobody(
    victim: Victim, many_descriptors: int
) -> None:
    """They come faster than their deadline sends them away, and none of them is ever finished.

    All stay open on our side as far as our limit of descriptors allows; beyond it the oldest are closed.
    """
    half_open: list[socket.socket] = []
    manners = (silent, greeted, within_an_option, asking)
    descriptors = 0
    with connect(victim.server.uri("volume")) as resident:
        try:
            for number in range(HALF_OPEN):
                if len(half_open) >= many_descriptors:
                    half_open.pop(0).close()
                peer = victim.dial()
                half_open.append(peer)
                peer.setblocking(False)
                with contextlib.suppress(ConnectionError, BlockingIOError):
                    manners[number % len(manners)](peer)
                if number % 500 == 0:
                    assert resident.read(8 * MIB, 6) == b"honest"
                    victim.assert_serves()
                    victim.assert_bounded()
                    descriptors = max(descriptors, victim.process.num_fds())
            assert len(half_open) == min(HALF_OPEN, many_descriptors)
            assert resident.read(8 * MIB, 6) == b"honest"
            victim.assert_serves()
            victim.assert_bounded()
        finally:
            for peer in half_open:
                peer.close()
    assert descriptors < victim.start_descriptors + 1000, "the half-open ones are not limited"
    victim.assert_gives_back()


def test_more_connections_than_allowed_are_refused_until_one_ends(
    new_victim: Callable[..., Victim],
) -> None:
    victim = new_victim(connections_max=3)
    uri = victim.server.uri("volume")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(uri)) for _ in range(3)]
        with pytest.raises((NbdOptionError, EOFError, ConnectionError)):
            connect(uri)
        assert all(client.read(8 * MIB, 6) == b"honest" for client in clients)
        clients[0].disconnect()

        def is_let_in() -> bool:
            with contextlib.suppress(NbdOptionError, EOFError, ConnectionError):
                connect(uri).disconnect()
                return True
            return False

        wait_until(is_let_in)


# --- anything ------------------------------------------------------------------------------------


def conversation() -> list[bytes]:
    """What an honest client says from its flags to its goodbye, message by message."""

    def option(number: int, data: bytes = b"") -> bytes:
        return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data

    return [
        struct.pack(">I", 3),
        option(Option.LIST),
        option(Option.STRUCTURED_REPLY),
        option(Option.SET_META_CONTEXT, context_query("volume", ["base:allocation"])),
        option(Option.INFO, info_query("volume", [0, 1, 2, 3])),
        option(Option.GO, info_query("volume", [Info.BLOCK_SIZE])),
        request(Command.WRITE, 0, 100, flags=Flag.FUA) + bytes(100),
        request(Command.READ, 0, 8192),
        request(Command.BLOCK_STATUS, 0, MIB, flags=Flag.REQ_ONE),
        request(Command.WRITE_ZEROES, 4096, 4096, flags=Flag.NO_HOLE),
        request(Command.TRIM, 8192, 4096),
        request(Command.FLUSH, 0, 0),
        request(Command.DISCONNECT, 0, 0),
    ]


def spoiled(messages: list[bytes], chance: random.Random) -> bytes:
    """A conversation with a few things wrong with it."""
    messages = list(messages)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(messages))
        message = bytearray(messages[at])
        match chance.randrange(7):
            case 0:
                message[chance.randrange(len(message))] ^= 1 << chance.randrange(8)
            case 1:
                message[chance.randrange(len(message))] = chance.choice([0, 0x7F, 0x80, 0xFF])
            case 2:
                del message[chance.randrange(len(message)) :]
                message = message or bytearray(b"\0")
            case 3:
                start = chance.randrange(len(message))
                message[start:start] = chance.randbytes(chance.randrange(1, 40))
            case 4:
                start = chance.randrange(max(1, len(message) - 4))
                message[start : start + 4] = chance.choice(
                    [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\x10\x01"]
                )
            case 5:
                message *= 2
            case 6:
                message = bytearray(messages[chance.randrange(len(messages))])
        messages[at] = bytes(message)
    return b"".join(messages)


def test_spoiled_conversations_harm_nobody(victim: Victim) -> None:
    """A bounded fuzz run over the socket; the seed is the number of the conversation."""
    said = conversation()
    for number in range(2000):
        with victim.dial(unix=bool(number % 2)) as peer:
            with contextlib.suppress(ConnectionError):
                peer.sendall(spoiled(said, random.Random(number)))
                peer.shutdown(socket.SHUT_WR)
            # A read whose length was spoiled may ask for all there is, and is answered.
            assert_hangs_up(peer, bytes_max=256 * MIB)
        if number % 200 == 0:
            victim.assert_serves()
            victim.assert_bounded()
    assert victim.file.stat().st_size == SIZE
    victim.assert_gives_back()
