"""Connections that are served together, and when they are not."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from time import sleep

import pytest

from backplane.runtime.clock import SystemClock
from backplane.testing.clock import ManualClock
from storage_node.core.nbd_transmission import REQUEST, REQUEST_MAGIC, SIMPLE_REPLY, WRITE
from storage_node.disk.memory import MemoryDevice
from storage_node.nbd.connection import QUICK_REQUESTS, QUICK_S, REST_S, SMALL_BYTES
from storage_node.nbd.crew import Crew, Crews
from storage_node.nbd.export import DeviceExport
from tests.unit.storage_node.nbd.conftest import Serve, Served

SIZE_BYTES = 4 * 1024 * 1024
BLOCK = 4096


class Bell:
    """A member that counts how often it was called, and goes back at a byte `!`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.heard = b""
        self.error = error

    def fileno(self) -> int:
        return self.ours.fileno()

    def advance(self) -> bool:
        self.heard += self.ours.recv(100)
        if self.error is not None:
            raise self.error
        return not self.heard.endswith(b"!")

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def bells() -> Iterator[Callable[..., Bell]]:
    made: list[Bell] = []

    def make(error: Exception | None = None) -> Bell:
        made.append(Bell(error))
        return made[-1]

    yield make
    for bell in made:
        bell.close()


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(SystemClock())
    yield crew
    crew.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        sleep(0.01)
    raise AssertionError("it has not come to pass")


def test_a_crew_serves_whoever_has_something(crew: Crew, bells: Callable[..., Bell]) -> None:
    members = [bells() for _ in range(5)]
    threads = [threading.Thread(target=crew.look_after, args=(each,)) for each in members]
    for thread in threads:
        thread.start()
    until(lambda: crew.member_count == 5)
    for number, member in enumerate(members):
        member.theirs.send(b"%d" % number)
    until(lambda: all(member.heard for member in members))
    assert [member.heard for member in members] == [b"0", b"1", b"2", b"3", b"4"]
    for member, thread in zip(members, threads, strict=True):
        member.theirs.send(b"!")
        thread.join()
    assert not crew.member_count


def test_a_member_that_goes_back_can_come_again(crew: Crew, bells: Callable[..., Bell]) -> None:
    member = bells()
    for _ in range(100):
        member.theirs.send(b"!")
        crew.look_after(member)
    assert member.heard == b"!" * 100


def test_what_serving_raises_is_raised_in_the_members_own_thread(
    crew: Crew, bells: Callable[..., Bell]
) -> None:
    member, other = bells(ValueError("bad luck")), bells()
    member.theirs.send(b"x")
    with pytest.raises(ValueError, match="bad luck"):
        crew.look_after(member)
    other.theirs.send(b"!")
    crew.look_after(other)


def test_a_crew_that_nobody_came_to_can_be_closed() -> None:
    Crew(SystemClock()).close()


def test_each_export_has_a_crew_as_long_as_somebody_uses_it() -> None:
    crews = Crews(SystemClock())
    with crews.of("a") as first, crews.of("a") as again, crews.of("b") as other:
        assert first is again
        assert first is not other
    with crews.of("a") as later:
        assert later is not first


# --- with a connection ---------------------------------------------------------------------------


class Slowly(DeviceExport):
    """An export whose writes take as long as is said."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryDevice(SIZE_BYTES, block_bytes=BLOCK), name="slowly")
        self.clock = clock
        self.write_s = 0.0
        self.threads: list[str] = []

    def write(self, byte_address: int, data: memoryview, *, fua: bool) -> None:
        super().write(byte_address, data, fua=fua)
        self.clock.advance(self.write_s)
        self.threads.append(threading.current_thread().name)

    def served_by_crew(self) -> bool:
        return self.threads[-1] == "NBD crew"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def slowly(clock: ManualClock) -> Slowly:
    return Slowly(clock)


@pytest.fixture
def served(clock: ManualClock, slowly: Slowly) -> Iterator[Served]:
    serve = Serve(Crew(clock, light_requests=3))
    yield serve(slowly)
    serve.close()


def test_small_requests_in_a_row_make_a_connection_one_for_the_crew(
    served: Served, slowly: Slowly
) -> None:
    for _ in range(5):
        served.client.write(0, b"x" * BLOCK)
    assert [name == "NBD crew" for name in slowly.threads] == [False] * 3 + [True] * 2


def test_large_data_and_flushes_are_for_the_connections_own_thread(
    served: Served, slowly: Slowly
) -> None:
    large = random.Random(1).randbytes(SMALL_BYTES * 3)
    for _ in range(4):
        served.client.write(0, b"x" * BLOCK)
    assert slowly.served_by_crew()
    served.client.write(BLOCK, large)
    assert not slowly.served_by_crew()
    for _ in range(4):
        served.client.write(0, b"x" * BLOCK)
    assert slowly.served_by_crew()
    served.client.flush()
    served.client.write(0, b"y" * BLOCK)
    assert not slowly.served_by_crew()
    assert served.client.read(0, BLOCK + len(large)) == b"y" * BLOCK + large


def test_a_slow_device_gives_every_connection_its_own_thread(
    served: Served, slowly: Slowly, clock: ManualClock
) -> None:
    for _ in range(4):
        served.client.write(0, b"x" * BLOCK)
    assert slowly.served_by_crew()
    slowly.write_s = QUICK_S * QUICK_REQUESTS * 1.5
    served.client.write(0, b"x" * BLOCK)
    slowly.write_s = 0.0
    for _ in range(10):
        served.client.write(0, b"x" * BLOCK)
        assert not slowly.served_by_crew()
    clock.advance(REST_S)
    served.client.write(0, b"x" * BLOCK)
    served.client.write(0, b"x" * BLOCK)
    assert slowly.served_by_crew()


def test_a_request_that_comes_in_pieces_waits_for_its_rest_without_holding_up_others(
    slowly: Slowly, clock: ManualClock
) -> None:
    serve = Serve(Crew(clock, light_requests=1))
    first, second = serve(slowly, is_structured=False), serve(slowly, is_structured=False)
    for served in (first, second):
        served.client.write(0, b"x" * BLOCK)
    request = REQUEST.pack(REQUEST_MAGIC, 0, WRITE, 77, BLOCK, BLOCK) + b"z" * BLOCK
    for start, end in ((0, 5), (5, 100), (100, len(request))):
        first.sock.sendall(request[start:end])
        second.client.write(0, b"%d" % start * BLOCK if start == 5 else b"y" * BLOCK)
        assert slowly.served_by_crew()
    assert SIMPLE_REPLY.unpack(first.sock.recv(SIMPLE_REPLY.size))[1:] == (0, 77)
    assert second.client.read(BLOCK, BLOCK) == b"z" * BLOCK
    serve.close()


def test_a_client_that_takes_no_replies_holds_up_nobody_else(
    slowly: Slowly, clock: ManualClock
) -> None:
    serve = Serve(Crew(clock, light_requests=1))
    deaf, other = serve(slowly, is_structured=False), serve(slowly)
    for served in (deaf, other):
        served.client.write(0, b"x" * BLOCK)
    many = b"".join(REQUEST.pack(REQUEST_MAGIC, 0, 0, n, 0, 32768) for n in range(512))
    deaf.sock.sendall(many)
    for _ in range(100):
        other.client.write(0, b"y" * BLOCK)
    assert other.client.read(0, BLOCK) == b"y" * BLOCK
    # And it has them all when it asks at last.
    left = 512 * (SIMPLE_REPLY.size + 32768)
    while left:
        left -= len(deaf.sock.recv(left))
    serve.close()
