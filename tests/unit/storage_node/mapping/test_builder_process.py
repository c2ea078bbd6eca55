"""The builder, with the node played here: what it says in which order, and that it takes its parser with it."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import pytest

from backplane.file_map.header import unpack_header
from backplane.runtime import supervise
from backplane.wire.packing import pack, unpack
from storage_node.mapping import sandbox
from storage_node.mapping.builder_process import CONTROL_BYTES_MAX, Failure, Order, Report
from storage_node.mapping.channel import Channel
from tests.site.mapping_parser import parser, running

MIB = 1 << 20
WAIT_S = 20.0


class Node:
    """The node's end."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        ours, theirs = socket.socketpair()
        self.reads, parsers = socket.socketpair()
        self.control = Channel(ours)
        ours.settimeout(WAIT_S)
        self._files = ExitStack()
        new = tempfile.TemporaryFile
        files = [self._files.enter_context(new()) for _ in range(2)]
        with theirs, parsers:
            given = [each.fileno() for each in (theirs, parsers, *files)]
            self.builder = supervise.start_with(
                [*sandbox.python(sandbox.BUILDER), *map(str, (os.getpid(), *given))],
                name="builder",
                descriptors=given,
                environment=sandbox.python_environment(),
            )
        self.parser = -1

    def order(self, mode: str) -> None:
        """Give an order and take the parser's descriptor."""
        order = Order(
            MIB, 512, MIB * 512, 60, parser(mode, self.mark), sandbox.python_environment()
        )
        self.control.send(Report.ORDER, pack(list(order)))
        word, descriptors, _, _ = socket.recv_fds(self.control.socket, 1, 1)
        assert word == b"P"
        [self.parser] = descriptors

    def next(self) -> tuple[int, bytes]:
        """Return what is told next, but not what is not to be had here: ordinary users have no network namespace."""
        kind, payload = self.control.receive(bytes_max=CONTROL_BYTES_MAX)
        is_missing = kind == Report.LOG and payload.startswith(b"the parser runs without ")
        return self.next() if is_missing else (kind, payload)

    def parser_ends(self) -> bool:
        """Wait for the parser's end; a pidfd is readable then."""
        return bool(select.select([self.parser], [], [], WAIT_S)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for closed in (self.control, self.reads, self._files):
            closed.close()
        self.builder.stop()
        if self.parser >= 0:
            assert self.parser_ends()
            os.close(self.parser)
        assert running(self.mark) == []


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


def test_a_map_is_told_in_this_order(node: Node) -> None:
    node.order("escapes")  # reads twice, but before that it tries to get away
    for _ in range(2):
        node.reads.recv(12)
        node.reads.sendall(b"\1" + (4096).to_bytes(4, "big") + bytes(4096))
    assert node.next() == (Report.LOG, b"a note")
    assert node.next() == (Report.STANDS, pack(4))
    assert node.next() == (Report.COUNT, b"")
    node.control.send(Report.COUNTS, pack([5, 77, ["a read failed"]]))
    kind, payload = node.next()
    assert kind == Report.DONE
    header = unpack_header(payload)
    assert (header.reads, header.bytes_read, header.reasons) == (5, 77, ("a read failed",))
    assert node.builder.wait(timeout_s=WAIT_S) == 0


def test_a_failure_is_told_with_its_kind(node: Node) -> None:
    node.order("unsupported")
    kind, payload = node.next()
    assert (kind, unpack(payload)) == (
        Report.FAILED,
        [int(Failure.UNSUPPORTED), "LUKS2 encryption"],
    )
    assert node.builder.wait(timeout_s=WAIT_S) == 0


@pytest.mark.parametrize("mode", ["sleeps", "stubborn"])
def test_a_builder_that_is_asked_to_end_takes_its_parser_with_it(node: Node, mode: str) -> None:
    node.order(mode)
    node.reads.recv(12)  # it has begun
    node.builder.signal(signal.SIGTERM)
    assert node.builder.wait(timeout_s=WAIT_S) == 1
    assert node.parser_ends()


@pytest.mark.parametrize("mode", ["sleeps", "stubborn"])
def test_a_builder_that_is_killed_takes_its_parser_with_it(node: Node, mode: str) -> None:
    node.order(mode)
    node.reads.recv(12)
    node.builder.signal(signal.SIGKILL)
    assert node.parser_ends()


def test_a_node_that_is_gone_before_the_order_ends_the_builder(node: Node) -> None:
    node.control.close()
    assert node.builder.wait(timeout_s=WAIT_S) == 0


def test_a_node_that_is_gone_before_the_map_ends_the_builder(node: Node) -> None:
    node.order("good")
    node.control.close()
    node.reads.close()
    assert node.builder.wait(timeout_s=WAIT_S) == 0
    assert node.parser_ends()
