"""Data channels: handshake and its refusals (S3), frames in pieces, closed peers, and both relays."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from backplane.crc import crc32c
from backplane.errors import (
    BackupError,
    BusyError,
    NotAuthorizedError,
    RemoteProtocolError,
    StaleError,
    UnreachableError,
    UsageError,
)
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.transport import stream
from backplane.transport.stream import (
    Channel,
    Connection,
    ConnectionClosedError,
    CopyRelay,
    Opened,
    Relay,
    SpliceRelay,
    connect,
    listen,
    open_relay,
    open_unit,
    parse_address,
    serve_handshake,
    tune,
)
from backplane.wire import frames, grants
from backplane.wire.frames import Entry, Header, Opcode, Protection, Status
from backplane.wire.grants import Grant, Rights

BOOT = bytes(range(16))
OPENED = Opened(
    boot_id=BOOT, peripheral_device_type=0, block_bytes=512, blocks=64, record_bytes_max=7
)


@dataclass(frozen=True)
class Keys:
    secret: bytes
    public: bytes

    @classmethod
    def new(cls) -> Keys:
        key = X25519PrivateKey.generate()
        return cls(key.private_bytes_raw(), key.public_key().public_bytes_raw())


CONTROLLER, NODE, MOVER, OTHER = Keys.new(), Keys.new(), Keys.new(), Keys.new()
GRANT = Grant(
    node=NodeName("node-1"),
    designator=Designator(b"\x30abcdefg"),
    rights=Rights.READ,
    extents=((0, 64),),
    position=0,
    job=JobId(1),
    item=ItemId(2),
    epoch=Epoch(3),
    holder=MOVER.public,
    ttl_s=60.0,
    bytes_max=1 << 20,
)
BODY = grants.encode_grant(GRANT)


def tag_of(body: bytes, *, controller: Keys = CONTROLLER, node: Keys = NODE) -> bytes:
    return grants.grant_tag(
        body, key=grants.grant_key(grants.agree(controller.secret, node.public))
    )


def admit_all(_: Grant) -> Opened:
    return OPENED


class Server:
    """Accepts one connection in a thread, shakes hands, and gives the connection to `serve`."""

    def __init__(
        self,
        address: str,
        *,
        admit: Callable[[Grant], Opened] = admit_all,
        serve: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        self._listener, self.address = listen(address)
        self._admit = admit
        self._serve = serve
        self.error: BackupError | None = None
        self.grant: Grant | None = None
        self._thread = threading.Thread(target=self._run, name="test server")
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        try:
            connection, self.grant = serve_handshake(
                sock,
                boot_id=BOOT,
                secret_key=NODE.secret,
                controller_key=CONTROLLER.public,
                admit=self._admit,
            )
            self._serve(connection)
        except BackupError as error:
            self.error = error
        finally:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A client that never came leaves the thread in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def client(
    address: str, *, body: bytes = BODY, tag: bytes | None = None, keys: Keys = MOVER
) -> Channel:
    return open_unit(
        [address],
        node_key=NODE.public,
        body=body,
        tag=tag_of(body) if tag is None else tag,
        secret_key=keys.secret,
        timeout_s=5.0,
    )


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, short_folder: Path) -> str:
    return f"unix://{short_folder}/s" if request.param == "unix" else "tcp://127.0.0.1:0"


# --- the handshake -------------------------------------------------------------------------------


def test_a_unit_is_opened_and_described(address: str) -> None:
    with Server(address) as server, client(server.address) as channel:
        assert channel.opened == OPENED
        assert channel.key
        assert channel.boot == frames.boot_bits(BOOT)
    assert server.grant == GRANT


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


WRONG: dict[str, tuple[bytes, bytes, Keys]] = {
    "tag of another controller": (BODY, tag_of(BODY, controller=OTHER), MOVER),
    "tag for another node": (BODY, tag_of(BODY, node=OTHER), MOVER),
    "tag of another grant": (BODY, tag_of(grants.encode_grant(replace(GRANT, epoch=Epoch(9)))), MOVER),
    "flipped bit in the body": (flipped(BODY), tag_of(BODY), MOVER),
    "flipped bit in the tag": (BODY, flipped(tag_of(BODY)), MOVER),
    "truncated body": (BODY[:-3], tag_of(BODY[:-3]), MOVER),
    "no body": (b"", tag_of(b""), MOVER),
    "replayed with another mover's key": (BODY, tag_of(BODY), OTHER),
    "holder is a low-order point": (
        grants.encode_grant(replace(GRANT, holder=bytes(32))),
        tag_of(grants.encode_grant(replace(GRANT, holder=bytes(32)))),
        MOVER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_grant_gets_the_same_refusal(name: str, short_folder: Path) -> None:
    body, tag, keys = WRONG[name]
    asked: list[Grant] = []

    def admit(grant: Grant) -> Opened:
        asked.append(grant)
        return OPENED

    with Server(f"unix://{short_folder}/s", admit=admit) as server:
        with pytest.raises(NotAuthorizedError) as caught:
            client(server.address, body=body, tag=tag, keys=keys)
        assert (str(caught.value), caught.value.sense) == ("grant refused", (0x05, 0x26, 0x15))
    assert isinstance(server.error, NotAuthorizedError)
    assert not asked  # the unit is not even looked up


@pytest.mark.parametrize(
    "refusal",
    [
        NotAuthorizedError("grant refused"),
        StaleError("overtaken", hint="stop"),
        BusyError("held"),
        BackupError("odd", sense=StaleError.default_sense._replace(ascq=7)),
    ],
)
def test_a_refusal_of_the_node_arrives_as_what_it_is(
    refusal: BackupError, short_folder: Path
) -> None:
    def admit(_: Grant) -> Opened:
        raise refusal

    with Server(f"unix://{short_folder}/s", admit=admit) as server:
        with pytest.raises(type(refusal)) as caught:
            client(server.address)
        assert type(caught.value) is type(refusal)
        assert (caught.value.message, caught.value.hint) == (refusal.message, refusal.hint)
        assert caught.value.sense == refusal.sense


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"GET / HTTP/1.0\r\n\r\n".ljust(64),
        frames.encode_header(Header(opcode=Opcode.READ, is_reply=False, sequence=0), key=b""),
        frames.encode_header(
            Header(opcode=Opcode.OPEN, is_reply=False, sequence=0, length=1 << 20), key=b""
        ),
        frames.encode_header(
            Header(opcode=Opcode.OPEN, is_reply=False, sequence=0, length=3), key=b""
        )
        + b"\xc1\xc1\xc1",
        frames.encode_header(
            Header(opcode=Opcode.OPEN, is_reply=False, sequence=0, length=1), key=b"k" * 32
        )
        + b"\xc0",
    ],
)
def test_a_client_that_speaks_something_else_is_dropped(answer: bytes, short_folder: Path) -> None:
    with (
        Server(f"unix://{short_folder}/s") as server,
        connect(server.address) as sock,
        contextlib.suppress(ConnectionResetError),
    ):
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    assert isinstance(server.error, RemoteProtocolError | ConnectionClosedError)


def test_a_server_that_speaks_something_else_is_refused(short_folder: Path) -> None:
    for answer in (b"SSH-2.0-OpenSSH_9.2\r\n".ljust(64), b"", b"\x01"):
        listener, address = listen(f"unix://{short_folder}/s")

        def serve(listener: socket.socket = listener, answer: bytes = answer) -> None:
            sock, _ = listener.accept()
            sock.sendall(answer)
            sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises((RemoteProtocolError, UnreachableError)):
            client(address)
        thread.join()
        listener.close()


def test_the_next_address_is_tried_and_all_problems_are_told(short_folder: Path) -> None:
    gone = f"unix://{short_folder}/gone"
    with Server(f"unix://{short_folder}/s") as server:
        channel = open_unit(
            [gone, server.address],
            node_key=NODE.public,
            body=BODY,
            tag=tag_of(BODY),
            secret_key=MOVER.secret,
        )
        channel.close()
    for addresses, told in (([gone, gone], "gone.*gone"), ([], "no data address")):
        with pytest.raises(UnreachableError, match=told):
            open_unit(addresses, node_key=b"", body=b"", tag=b"", secret_key=b"")


# --- frames --------------------------------------------------------------------------------------


@contextmanager
def connections(address: str) -> Iterator[tuple[Connection, Connection]]:
    """Two ends of one socket of the family of `address`, with short timeouts."""
    listener, real = listen(address)
    near = connect(real, timeout_s=2.0)
    far, _ = listener.accept()
    tune(far, timeout_s=2.0)
    listener.close()
    try:
        yield Connection(near, key=b"k" * 32), Connection(far, key=b"k" * 32)
    finally:
        near.close()
        far.close()


def test_a_frame_in_single_bytes_is_put_together(address: str) -> None:
    header = Header(opcode=Opcode.WRITE, is_reply=False, sequence=1, length=5, extra=1)
    entries = frames.encode_entries([Entry(0, 5)])
    with connections(address) as (near, far):
        raw = frames.encode_header(header, key=near.key, extra=entries) + entries + b"hello"

        def drip() -> None:
            for byte in raw:
                near.sock.sendall(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        assert far.receive_header() == (header, entries)
        assert far.receive_data(5) == b"hello"
        thread.join()


def test_a_large_frame_arrives_whole(address: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    header = Header(opcode=Opcode.WRITE, is_reply=False, sequence=1, length=len(data))
    with connections(address) as (near, far):
        thread = threading.Thread(target=near.send, args=(header,), kwargs={"data": data})
        thread.start()
        assert far.receive_header()[0] == header
        assert far.receive_data(len(data)) == data
        thread.join()


def test_the_end_between_frames_is_clean_and_inside_one_it_is_not(address: str) -> None:
    raw = frames.encode_header(
        Header(opcode=Opcode.WRITE, is_reply=False, sequence=1, length=9), key=b"k" * 32
    )
    for sent, is_clean in ((b"", True), (raw[:1], False), (raw[:31], False), (raw + b"x", False)):
        with connections(address) as (near, far):
            near.sock.sendall(sent)
            near.close()
            with pytest.raises(ConnectionClosedError) as caught:
                far.receive_data(far.receive_header()[0].length)
            assert caught.value.is_clean is is_clean


def test_a_wrong_mac_is_a_protocol_error(address: str) -> None:
    with connections(address) as (near, far):
        near.key = b"K" * 32
        near.send(Header(opcode=Opcode.FLUSH, is_reply=False, sequence=1))
        with pytest.raises(RemoteProtocolError, match="MAC"):
            far.receive_header()


def test_a_peer_that_stands_still_is_noticed(address: str) -> None:
    with connections(address) as (near, far):
        tune(far.sock, timeout_s=0.05)
        near.sock.sendall(b"\x01")
        with pytest.raises(UnreachableError, match="stood still"):
            far.receive_header()
        tune(near.sock, timeout_s=0.05)
        with pytest.raises(UnreachableError, match="stood still"):
            near.send(
                Header(opcode=Opcode.WRITE, is_reply=False, sequence=1, length=1 << 24),
                data=bytes(1 << 24),
            )


def test_a_peer_that_has_gone_is_noticed_when_sending(address: str) -> None:
    with connections(address) as (near, far):
        far.close()
        header = Header(opcode=Opcode.FLUSH, is_reply=False, sequence=1)

        def send_until_noticed() -> None:
            for _ in range(100):
                near.send(header)

        with pytest.raises(ConnectionClosedError):
            send_until_noticed()


def test_another_thread_can_end_the_waiting(address: str) -> None:
    with connections(address) as (near, far):
        thread = threading.Thread(target=far.abort)
        thread.start()
        with pytest.raises(ConnectionClosedError):
            far.receive_header()
        thread.join()
        far.abort()
        near.close()
        near.abort()


def test_a_channel_numbers_its_requests_and_checks_its_data(address: str) -> None:
    with connections(address) as (near, far):
        channel = Channel(near.sock, key=near.key, opened=OPENED)
        far.boot = channel.boot
        assert channel.request(Opcode.FLUSH) == 1
        assert channel.request(Opcode.WRITE, entries=[Entry(5, 4)], data=b"data") == 2
        first, _ = far.receive_header()
        second, extra = far.receive_header()
        assert (first.sequence, second.sequence) == (1, 2)
        assert (second.protection, second.crc32c) == (Protection.CRC32C, crc32c(b"data"))
        assert frames.decode_entries(extra) == (Entry(5, 4),)
        assert far.receive_data(4) == b"data"
        far.send(
            Header(
                opcode=Opcode.FLUSH,
                is_reply=True,
                sequence=1,
                status=Status.CHECK_CONDITION,
                extra=3,
                boot=far.boot,
            ),
            extra=b"abc",
        )
        reply = channel.reply()
        assert (reply.is_good, reply.sense) == (False, b"abc")
        far.send(Header(opcode=Opcode.FLUSH, is_reply=True, sequence=2, boot=far.boot ^ 1))
        with pytest.raises(RemoteProtocolError):
            channel.reply()


# --- relays --------------------------------------------------------------------------------------


@pytest.fixture(params=["copy", "splice"])
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    made = open_relay(request.param)
    yield made
    made.close()
    made.close()


@pytest.mark.parametrize("length", [0, 1, 65_536, 1_048_577, 5_000_000])
def test_a_relay_moves_exactly_what_it_is_told(relay: Relay, address: str, length: int) -> None:
    """What follows in the socket is the next header: it must stay there."""
    data = random.Random(length).randbytes(length)
    with connections(address) as (source, entry), connections(address) as (exit_, target):
        found = bytearray(length)
        sender = threading.Thread(target=source.sock.sendall, args=(data + b"next",))
        receiver = threading.Thread(target=target.receive_into, args=(memoryview(found),))
        sender.start()
        receiver.start()
        relay.move(entry, exit_, length)
        sender.join()
        receiver.join()
        assert found == data
        assert entry.receive_data(4) == b"next"


def test_a_relay_between_the_families(relay: Relay, short_folder: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    near, far = connections(f"unix://{short_folder}/s"), connections("tcp://127.0.0.1:0")
    with near as (source, entry), far as (exit_, target):
        sender = threading.Thread(target=source.sock.sendall, args=(data,))
        sender.start()
        receiver = threading.Thread(target=relay.move, args=(entry, exit_, len(data)))
        receiver.start()
        assert target.receive_data(len(data)) == data
        sender.join()
        receiver.join()


def test_a_source_that_ends_inside_a_frame_is_noticed(relay: Relay, address: str) -> None:
    with connections(address) as (source, entry), connections(address) as (exit_, _):
        source.sock.sendall(b"half")
        source.close()
        with pytest.raises(ConnectionClosedError) as caught:
            relay.move(entry, exit_, 8)
        assert not caught.value.is_clean


def test_a_source_that_stands_still_is_noticed(relay: Relay, address: str) -> None:
    with connections(address) as (_, entry), connections(address) as (exit_, _):
        tune(entry.sock, timeout_s=0.05)
        with pytest.raises(UnreachableError, match="stood still"):
            relay.move(entry, exit_, 8)


def test_a_relay_forgets_the_bytes_of_a_target_that_has_gone(relay: Relay, address: str) -> None:
    """What was in the pipe belongs to nobody: it must not reach the next target."""
    with connections(address) as (source, entry), connections(address) as (exit_, target):
        target.close()
        source.sock.sendall(b"lost" * 30_000)

        def move_until_noticed() -> None:
            for _ in range(30):
                relay.move(entry, exit_, 4_000)

        with pytest.raises(ConnectionClosedError):
            move_until_noticed()
    with connections(address) as (source, entry), connections(address) as (exit_, target):
        source.sock.sendall(b"good")
        relay.move(entry, exit_, 4)
        assert target.receive_data(4) == b"good"


def test_the_relay_is_chosen_by_name_and_by_what_the_system_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(open_relay("copy"), CopyRelay)
    chosen = open_relay("auto")
    assert isinstance(chosen, SpliceRelay)
    chosen.close()
    monkeypatch.delattr(os, "splice")
    assert isinstance(open_relay("auto"), CopyRelay)


def test_a_pipe_over_the_budget_falls_back_to_a_small_one() -> None:
    relay = SpliceRelay(pipe_bytes=1 << 40)
    assert 0 < relay._pipe_bytes < 1 << 40
    relay.close()


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:80", (socket.AF_INET, ("127.0.0.1", 80))),
        ("tcp://[::1]:0", (socket.AF_INET6, ("::1", 0))),
        ("tcp://node.example:65535", (socket.AF_INET, ("node.example", 65535))),
        ("unix:///run/x", (socket.AF_UNIX, "/run/x")),
    ],
)
def test_addresses_are_understood(address: str, expected: object) -> None:
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", "tcp://", "tcp://host", "tcp://:1", "tcp://h:65536", "tcp://h:x", "unix://x", "x:1"]
)  # fmt: skip
def test_what_is_no_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError):
        parse_address(address)


def test_listening_replaces_a_stale_socket_and_reports_a_taken_port(short_folder: Path) -> None:
    path = f"unix://{short_folder}/s"
    listen(path)[0].close()
    listen(path)[0].close()
    taken, address = listen("tcp://127.0.0.1:0")
    with taken, pytest.raises(UnreachableError, match="cannot listen"):
        listen(address)


def test_timeouts_are_those_of_the_module() -> None:
    """A frame that stands still for longer than this ends the connection; grants rely on it being finite."""
    assert 0 < stream.HANDSHAKE_TIMEOUT_S <= stream.TIMEOUT_S < 120
