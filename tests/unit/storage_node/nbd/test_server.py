"""Who may connect, for how long they may think about it, and how it all ends."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import NotFoundError, UnreachableError
from backplane.testing.clock import ManualClock
from backplane.testing.nbd_client import (
    NbdClient,
    NbdOptionError,
    Negotiation,
    connect,
    nbd_uri,
    open_socket,
)
from backplane.testing.nbd_words import Answer, Command, Info, Option
from backplane.transport.stream import parse_address
from storage_node.disk.memory import MemoryDevice
from storage_node.nbd.export import DeviceExport
from storage_node.nbd.server import HANDSHAKE_S, NbdServer

SIZE_BYTES = 1 << 20


class Counted(DeviceExport):
    """Knows whether it was closed."""

    def __init__(self, exports: FakeExports, name: str) -> None:
        super().__init__(exports.device, name=name)
        self._exports = exports

    def close(self) -> None:
        with self._exports.lock:
            self._exports.open_count -= 1


class FakeExports:
    """Two names for one device; counts what is open."""

    def __init__(self) -> None:
        self.device = MemoryDevice(SIZE_BYTES)
        self.lock = threading.Lock()
        self.open_count = 0
        self.clients: list[str] = []

    def names(self) -> list[str]:
        return ["volume", "volume@view"]

    def open(self, name: str, client: str) -> Counted:
        if name == "bug":
            raise ZeroDivisionError
        if name not in ("volume", "volume@view"):
            raise NotFoundError(f"there is no export {name!r}")
        self.clients.append(client)
        with self.lock:
            self.open_count += 1
        return Counted(self, name)


class Door:
    """A server, and the ways to it."""

    def __init__(self, address: str, **limits: Any) -> None:
        self.exports = FakeExports()
        self.server = NbdServer(self.exports, **limits)
        (self.address,) = self.server.start([address])

    def connect(self, name: str = "volume", **how: Any) -> NbdClient:
        return connect(nbd_uri(self.address, name), **how)

    def negotiate(self) -> Negotiation:
        negotiation = Negotiation(open_socket(nbd_uri(self.address))[0])
        negotiation.greet()
        return negotiation

    def raw(self) -> socket.socket:
        """Connect and say nothing."""
        family, where = parse_address(self.address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(30)
        try:
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return sock


Open = Callable[..., Door]


@pytest.fixture(params=["tcp", "unix"])
def open_door(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Open]:
    doors: list[Door] = []
    address = "tcp://127.0.0.1:0" if request.param == "tcp" else f"unix://{short_folder}/nbd.sock"

    def open_door(**limits: Any) -> Door:
        doors.append(Door(address, **limits))
        return doors[-1]

    yield open_door
    for door in doors:
        door.server.close()
        assert door.exports.open_count == 0, "an export was left open"
        assert door.server.connection_count == 0
        assert door.server.handshake_count == 0


def wait_for(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it does not come to pass")


def is_gone(sock: socket.socket) -> bool:
    """Read until the server has closed."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return True


def test_a_client_reads_and_writes(open_door: Open) -> None:
    door = open_door()
    with door.connect() as client:
        client.write(5, b"hello")
        client.flush()
        assert client.read(4, 7) == b"\0hello\0"
        assert client.contexts == {1: "base:allocation"}
        assert door.server.connection_count == 1
        assert client.info.payload_bytes_max == 1 << 25
    wait_for(lambda: door.server.connection_count == 0)
    assert len(door.exports.clients) == 2, "once for the contexts and once to stay"


def test_the_old_way_in_still_works(open_door: Open) -> None:
    door = open_door()
    with door.negotiate().go_the_old_way("volume") as client:
        client.write(0, b"old")
        assert client.read(0, 3) == b"old"


def test_exports_are_listed_and_described_without_being_used(open_door: Open) -> None:
    door = open_door()
    with door.negotiate() as negotiation:
        assert negotiation.list_exports() == ["volume", "volume@view"]
        info = negotiation.info("volume@view", wanted=(Info.NAME, Info.DESCRIPTION))
        assert (info.name, info.size_bytes) == ("volume@view", SIZE_BYTES)
        assert door.exports.open_count == 0
        negotiation.abort()
    assert door.server.connection_count == 0


def test_an_unknown_export_is_refused_and_another_can_be_asked_for(open_door: Open) -> None:
    with open_door().negotiate() as negotiation:
        with pytest.raises(NbdOptionError, match="there is no export 'nothing'") as caught:
            negotiation.go("nothing")
        assert caught.value.answer == Answer.UNKNOWN
        negotiation.go("volume").disconnect()


def test_an_unknown_export_ends_the_old_way(open_door: Open) -> None:
    with open_door().negotiate() as negotiation, pytest.raises(EOFError):
        negotiation.go_the_old_way("nothing")


def test_a_bug_in_one_negotiation_ends_that_one(
    open_door: Open, caplog: pytest.LogCaptureFixture
) -> None:
    door = open_door()
    with door.negotiate() as negotiation, pytest.raises(EOFError):
        negotiation.go("bug")
    assert "ZeroDivisionError" in caplog.text
    door.connect().disconnect()


def test_a_full_house_says_so_and_takes_the_next_one_when_somebody_leaves(
    open_door: Open,
) -> None:
    door = open_door(connections_max=2)
    first, second = door.connect(), door.connect()
    with door.negotiate() as negotiation:
        negotiation.info("volume")
        with pytest.raises(NbdOptionError, match="2 connections are open") as caught:
            negotiation.go("volume")
        assert caught.value.answer == Answer.POLICY
        first.disconnect()
        wait_for(lambda: door.server.connection_count == 1)
        negotiation.go("volume").disconnect()
    second.disconnect()


def test_one_connection_does_not_wait_for_another(open_door: Open) -> None:
    """Half a request on one of them, which its thread waits for."""
    door = open_door()
    with door.connect() as busy, door.connect() as other:
        busy.wire.send(struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, 4096))
        other.write(0, b"through")
        assert other.read(0, 7) == b"through"
        busy.wire.send(bytes(4096))


# Clients that never finish.


def test_the_deadline_is_for_the_whole_negotiation(open_door: Open) -> None:
    """A byte now and then must not keep it alive."""
    clock = ManualClock()
    door = open_door(clock=clock)
    with door.negotiate() as slow, door.raw() as silent:
        wait_for(lambda: door.server.handshake_count == 2)
        for _ in range(3):
            clock.advance(HANDSHAKE_S / 4)
            slow.info("volume")
        clock.advance(HANDSHAKE_S / 4)
        with door.connect() as client:  # gives the server a turn
            client.flush()
        assert is_gone(slow.wire.socket)
        assert is_gone(silent)


def test_a_short_deadline_ends_a_silent_client_by_itself(open_door: Open) -> None:
    door = open_door(handshake_s=0.05)
    with door.raw() as silent:
        assert is_gone(silent)


def test_a_connection_has_no_deadline(open_door: Open) -> None:
    clock = ManualClock()
    door = open_door(clock=clock)
    with door.connect() as client:
        clock.advance(1_000_000)
        door.connect().disconnect()
        client.write(0, b"still here")


def test_the_oldest_unfinished_one_makes_room(
    open_door: Open, caplog: pytest.LogCaptureFixture
) -> None:
    door = open_door(handshakes_max=3, handshake_s=1000)
    silent = [door.raw() for _ in range(3)]
    wait_for(lambda: door.server.handshake_count == 3)
    with door.connect() as client:
        client.write(0, b"in")
        assert is_gone(silent[0])
    silent += [door.raw(), door.raw()]
    assert is_gone(silent[1])
    for sock in silent:
        sock.close()
    assert caplog.text.count("more than 3 unfinished") == 1, "a flood is told once, not per client"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "said", [b"", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT\0\0\0\7\0\1\0\0" + b"x" * 1024]
)
def test_ten_thousand_half_open_handshakes_cost_little_and_stop_nobody(
    open_door: Open, said: bytes
) -> None:
    """Faults table, D15.  None of them is closed by its client before the end: all that lie on the server count."""
    door = open_door(handshakes_max=100)
    before = resident_bytes()
    kept: list[socket.socket] = []
    most = 0
    for number in range(10_000):
        sock = door.raw()
        if said:
            sock.sendall(said)
        kept.append(sock)
        if (
            len(kept) > 400
        ):  # descriptors of our own are limited, too; the server has dropped this one already
            assert is_gone(kept[0])
            kept.pop(0).close()
        if number % 1000 == 500:
            most = max(most, door.server.handshake_count)
            with door.connect() as client:
                client.write(0, b"served")
                assert client.read(0, 6) == b"served"
    assert 0 < most <= 100
    assert resident_bytes() - before < 64 << 20
    for sock in kept:
        sock.close()
    wait_for(lambda: door.server.handshake_count == 0)


def test_answers_that_nobody_takes_do_not_pile_up(
    open_door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asks for long lists and never reads one: it is not read from either."""
    door = open_door()
    monkeypatch.setattr(door.exports, "names", lambda: ["n" * 1000] * 1000)
    before = resident_bytes()
    with door.raw() as sock:
        sock.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\3\0\0\0\0" * 4000)
        wait_for(lambda: any(n.has_output for n in list(door.server._negotiations.values())))
        door.connect().disconnect()
        assert resident_bytes() - before < 64 << 20, "there would be four gigabytes of them"
        wait_for(lambda: door.server.handshake_count == 1)


# Abuse, as the faults table has it.


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(
            b"\0\0\0\3IHAVEOPT\0\0\0\1\0\0\x10\1" + b"n" * 4097, id="a name of 4097 bytes"
        ),
        pytest.param(b"\0\0\0\3IHAVEOPT\0\0\0\7\xff\xff\xff\xff", id="a length of 2**32-1"),
        pytest.param(b"\0\0\0\7", id="unknown client flags"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n" + bytes(4096), id="another protocol"),
        pytest.param(b"\0\0\0\3" + b"IHAVEOPT\0\0\3\xe7\0\0\0\0" * 5000, id="5000 options"),
    ],
)
def test_abuse_ends_its_own_connection_and_nothing_else(open_door: Open, said: bytes) -> None:
    door = open_door()
    with door.raw() as sock:
        with contextlib.suppress(OSError):  # it may be over before all is said
            sock.sendall(said)
        assert is_gone(sock)
    door.connect().disconnect()


def test_an_unknown_option_is_answered(open_door: Open) -> None:
    with open_door().negotiate() as negotiation:
        for number in (Option.STARTTLS, Option.EXTENDED_HEADERS, 12345):
            with pytest.raises(NbdOptionError) as caught:
                negotiation.option(number)
            assert caught.value.answer == Answer.UNSUPPORTED
        negotiation.go("volume").disconnect()


def test_a_request_after_disconnect_is_not_carried_out(open_door: Open) -> None:
    door = open_door()
    client = door.connect()
    client.wire.send(
        struct.pack(">IHHQQI", 0x25609513, 0, Command.DISCONNECT, 1, 0, 0)
        + struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 2, 0, 4)
        + b"late"
    )
    assert is_gone(client.wire.socket)
    client.close()
    with door.connect() as other:
        assert other.read(0, 4) == bytes(4)


# Golden exchanges: every byte of a conversation, as a reader of the protocol would check it.

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.mark.parametrize("name", ["nbd_simple.txt", "nbd_structured.txt"])
def test_golden_exchanges(open_door: Open, name: str, is_rewriting: bool) -> None:
    """Lines with > are sent, those with < are what the server must answer; # and blank lines are for people."""
    door = open_door()
    door.exports.device.write(512, memoryview(b"golden bytes"))
    lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    played = []
    with door.raw() as sock:
        for line in lines:
            direction, _, text = line.partition(" ")
            if direction == ">":
                sock.sendall(bytes.fromhex(text))
            elif direction == "<" and is_rewriting:
                wait_for(lambda: bool(sock.recv(1, socket.MSG_PEEK)))
                threading.Event().wait(0.1)
                line = f"< {sock.recv(65536).hex(' ', -4)}"
            elif direction == "<":
                expected = bytes.fromhex(text)
                assert sock.recv(len(expected), socket.MSG_WAITALL) == expected, line
            played.append(line)
        assert sock.recv(1) == b"", "more was said than is written down"
    if is_rewriting:
        (GOLDEN / name).write_text("\n".join(played) + "\n", encoding="utf-8")


# Ends.


def test_closing_ends_everybody(open_door: Open) -> None:
    door = open_door()
    client, negotiation, silent = door.connect(), door.negotiate(), door.raw()
    half = door.connect()
    half.wire.send(b"\x25\x60")
    door.server.close()
    for sock in (client.wire.socket, negotiation.wire.socket, silent, half.wire.socket):
        assert is_gone(sock)
        sock.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused, reset, or no such file
        door.raw()
    door.server.close()


def test_a_crash_of_one_connection_is_logged_and_ends_that_one(
    open_door: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = open_door()
    healthy = door.connect()
    monkeypatch.setattr(Counted, "zero", lambda *_, **__: 1 // 0)
    with pytest.raises(EOFError), door.connect() as client:
        client.zero(0, 512)
    assert "connection crashed" in caplog.text
    healthy.write(0, b"unharmed")
    healthy.disconnect()


def test_several_addresses_are_one_server(short_folder: Path) -> None:
    exports = FakeExports()
    server = NbdServer(exports)
    bound = server.start(["tcp://127.0.0.1:0", f"unix://{short_folder}/a.sock"])
    for address in bound:
        connect(nbd_uri(address, "volume")).disconnect()
    assert not bound[0].endswith(":0")
    server.close()


def test_a_server_that_never_started_can_be_closed() -> None:
    NbdServer(FakeExports()).close()


def test_an_address_in_use_is_said(short_folder: Path) -> None:
    first, second = NbdServer(FakeExports()), NbdServer(FakeExports())
    (address,) = first.start(["tcp://127.0.0.1:0"])
    with pytest.raises(UnreachableError):
        second.start([address])
    second.close()
    first.close()
