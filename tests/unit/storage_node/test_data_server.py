"""Accepting, counting and ending data channels."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from backplane.errors import NotAuthorizedError, UnreachableError
from backplane.ids import Designator
from backplane.transport.stream import Channel, Opened, Reply
from backplane.wire import frames
from backplane.wire.frames import Header, Opcode
from backplane.wire.grants import Rights
from storage_node.core.admission import Session, Unit, UnitKind
from storage_node.data_server import Exchange

DISK = Designator(b"\x30disk...")
Ask = Callable[..., tuple[Reply, bytes]]


class Echo:
    """A unit that answers everything with GOOD, or crashes when asked to."""

    def opened(self, boot_id: bytes) -> Opened:
        return Opened(boot_id=boot_id, peripheral_device_type=0, block_bytes=512, blocks=64)

    def handler(self, exchange: Exchange, session: Session) -> EchoHandler:
        return EchoHandler(exchange)


class EchoHandler:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def handle(self, header: Header, extra: bytes) -> None:
        if header.address == 666:
            raise ZeroDivisionError
        self._exchange.reply(header)


@pytest.fixture
def echo(bench: Any) -> Any:
    bench.units[DISK] = Echo()
    bench.access.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=64))
    return bench


def opened(bench: Any, **changes: Any) -> Channel:
    channel = bench.open(bench.grant(DISK, Rights.WRITE, **changes))
    assert isinstance(channel, Channel)
    return channel


def wait_for(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if holds():
            return
        pause.wait(0.005)
    raise AssertionError("it never came")


def is_ended(channel: Channel) -> bool:
    try:
        channel.request(Opcode.TEST_UNIT_READY)
        channel.reply()
    except UnreachableError:
        return True
    return False


def test_a_closed_connection_frees_its_session_and_its_place(echo: Any) -> None:
    for _ in range(10):  # more than may be open at once
        channel = opened(echo)
        assert not is_ended(channel)
        channel.close()
        wait_for(lambda: echo.server.connection_count == 0)
    with echo.access.locked():
        assert not echo.access.has_writer(DISK)


def test_more_than_the_limit_are_turned_away_and_the_others_stay(echo: Any) -> None:
    channels = [opened(echo) for _ in range(4)]
    with pytest.raises(UnreachableError):
        opened(echo)
    assert not any(is_ended(channel) for channel in channels)
    channels.pop().close()
    wait_for(lambda: echo.server.connection_count == 3)
    channels.append(opened(echo))
    for channel in channels:
        channel.close()


def test_a_refused_grant_is_audited_and_takes_no_place(
    echo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotAuthorizedError):
        opened(echo, holder=echo.node.public)
    wait_for(lambda: echo.server.connection_count == 0)
    refused = [vars(r) for r in caplog.records if r.name == "storage_node.audit"]
    assert [facts["request"] for facts in refused] == ["handshake"]


def test_a_unit_that_vanishes_during_the_handshake_is_refused(echo: Any) -> None:
    del echo.units[DISK]
    with pytest.raises(NotAuthorizedError):
        opened(echo)
    wait_for(lambda: echo.server.connection_count == 0)
    with echo.access.locked():
        assert not echo.access.has_writer(DISK)


@pytest.mark.parametrize("sequence", [0, 2])
def test_a_repeated_or_skipped_frame_ends_the_connection(echo: Any, sequence: int) -> None:
    """A frame that was recorded on the wire has a good MAC; its number gives it away."""
    with opened(echo) as channel:
        channel._sequence = sequence - 1
        assert is_ended(channel) is (sequence != 1)


def test_a_reply_in_place_of_a_request_ends_the_connection(echo: Any) -> None:
    with opened(echo) as channel:
        channel.send(Header(opcode=Opcode.FLUSH, is_reply=True, sequence=1))
        with pytest.raises(UnreachableError):
            channel.reply()


def test_a_wrong_mac_ends_the_connection(echo: Any) -> None:
    with opened(echo) as channel:
        channel.key = bytes(32)
        assert is_ended(channel)


def test_a_crash_in_a_handler_ends_its_connection_only(
    echo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(echo) as first, opened(echo) as second:
        first.request(Opcode.TEST_UNIT_READY, address=666)
        with pytest.raises(UnreachableError):
            first.reply()
        assert not is_ended(second)
    wait_for(lambda: echo.server.connection_count == 0)
    assert "crashed" in caplog.text


def test_an_idle_connection_ends_with_its_grant(echo: Any) -> None:
    with opened(echo, ttl_s=0.05) as channel:
        assert channel.sock.recv(1) == b""


def test_closing_the_server_ends_everything(echo: Any) -> None:
    channel = opened(echo)
    half_open = socket.socket(socket.AF_UNIX)
    half_open.connect(echo.address.removeprefix("unix://"))
    assert half_open.recv(frames.HEADER_BYTES)
    echo.server.close()
    assert is_ended(channel)
    channel.close()
    half_open.close()
    echo.server.close()


def test_it_listens_on_several_addresses(echo: Any) -> None:
    addresses = echo.server.start([f"unix://{echo.folder}/a", "tcp://127.0.0.1:0"])
    assert addresses[0] == f"unix://{echo.folder}/a"
    assert not addresses[1].endswith(":0")
    for address in addresses:
        echo.address = address
        with opened(echo) as channel:
            assert not is_ended(channel)
