"""The parser: how it reads, what it tells of what it finds, and how each way to fail is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.file_map.model import FileRow
from storage_node.mapping import parser_process, sandbox
from storage_node.mapping.channel import Channel, ChannelClosedError
from storage_node.mapping.parser_process import ViewSource, _guarded, parse
from storage_node.mapping.probe import NothingKnownError
from storage_node.mapping.read_server import FAILED, READ, REQUEST
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    BytesSource,
    DamagedError,
    Source,
    UnsupportedError,
)
from storage_node.mapping.row_codec import decode_rows
from storage_node.mapping.stream import Say, Teller, decode_facts, decode_runs, decode_text

CONTENT = bytes(range(256)) * 16


def heard(parse: Callable[[Source, Teller], None], source: Source) -> list[tuple[int, bytes]]:
    """Return all frames of a parser."""
    ours, theirs = socket.socketpair()
    found = []
    with ours:

        def run() -> None:
            with theirs:
                _guarded(parse, source, Teller(Channel(theirs)))

        thread = threading.Thread(target=run)
        thread.start()
        channel = Channel(ours)
        try:
            while True:
                found.append(channel.receive(bytes_max=1 << 26))
        except ChannelClosedError:
            thread.join()
    return found


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (UnsupportedError("LUKS2"), Say.UNSUPPORTED, "LUKS2"),
        (DamagedError("no superblock"), Say.DAMAGED, "no superblock"),
        (NothingKnownError("zeros"), Say.NOTHING_KNOWN, "zeros"),
        (MemoryError(), Say.NO_MEMORY, ""),
    ],
)
def test_each_failure_is_told_as_what_it_is(error: Exception, kind: Say, told: str) -> None:
    def fail(_source: Source, _teller: Teller) -> None:
        raise error

    assert heard(fail, BytesSource(b"")) == [(kind, told.encode())]


def test_a_bug_is_told_with_its_place() -> None:
    def crash(_source: Source, _teller: Teller) -> None:
        raise ZeroDivisionError("of our own")

    [(kind, payload)] = heard(crash, BytesSource(b""))
    assert kind == Say.CRASHED
    told = decode_text(payload)
    assert told.startswith("ZeroDivisionError: of our own (at ")
    assert f"{Path(__file__).name}:" in told
    assert str(Path(__file__).parent) not in told


def test_an_endless_recursion_is_told_as_a_bug() -> None:
    def deeper(source: Source, teller: Teller) -> None:
        deeper(source, teller)

    [(kind, payload)] = heard(deeper, BytesSource(b""))
    assert (kind, payload[:14]) == (Say.CRASHED, b"RecursionError")


def test_a_builder_that_is_gone_is_told_nothing() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        _guarded(lambda source, teller: teller.runs([]), BytesSource(b""), Teller(Channel(theirs)))


def test_a_volume_of_zeros_is_nothing_known() -> None:
    [(kind, payload)] = heard(parse, BytesSource(bytes(1 << 20)))
    assert kind == Say.NOTHING_KNOWN
    assert b"no known file system" in payload


def test_a_volume_that_is_known_is_told_whole(fat_image: bytes) -> None:
    frames = heard(parse, BytesSource(fat_image))
    kinds = [kind for kind, _ in frames]
    assert kinds[-1] == Say.END
    rows: list[FileRow] = [
        row for kind, payload in frames if kind == Say.ROWS for row in decode_rows(payload)
    ]
    assert b"" in {row.path for row in rows}
    runs = [run for kind, payload in frames if kind == Say.RUNS for run in decode_runs(payload)]
    assert runs[0][0] == 0
    [facts] = [payload for kind, payload in frames if kind == Say.FACTS]
    [system], notes = decode_facts(facts)
    assert (system.prefix, system.place, notes) == ("", "whole volume", [])


@pytest.fixture(scope="module")
def fat_image() -> bytes:
    """An empty FAT16, written here: a boot sector, two FATs and a root directory."""
    sectors, fat_sectors = 20_000, 78
    boot = bytearray(512)
    boot[0:11] = b"\xeb\x3c\x90MAPTEST "
    boot[11:36] = (
        (512).to_bytes(2, "little")
        + bytes([1])  # sectors per cluster
        + (1).to_bytes(2, "little")  # reserved sectors
        + bytes([2])  # FATs
        + (512).to_bytes(2, "little")  # entries of the root directory
        + sectors.to_bytes(2, "little")
        + bytes([0xF8])
        + fat_sectors.to_bytes(2, "little")
        + (32).to_bytes(2, "little")
        + (64).to_bytes(2, "little")
        + bytes(8)
    )
    boot[36:62] = bytes([0x80, 0, 0x29]) + b"\1\2\3\4" + b"NO NAME    " + b"FAT16   "
    boot[510:512] = b"\x55\xaa"
    fat = b"\xf8\xff\xff\xff".ljust(fat_sectors * 512, b"\0")
    return (bytes(boot) + fat + fat).ljust(sectors * 512, b"\0")


# --- reads ---------------------------------------------------------------------------------------


@pytest.fixture
def node() -> Iterator[tuple[ViewSource, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ViewSource(Channel(theirs), len(CONTENT)), Channel(ours)


def answering(node: Channel, kind: int, *answers: bytes) -> threading.Thread:
    def run() -> None:
        for answer in answers:
            node.exactly(REQUEST.size)
            node.send(kind, answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_read_is_asked_of_the_node(node: tuple[ViewSource, Channel]) -> None:
    source, channel = node
    thread = answering(channel, READ, CONTENT[5:9], CONTENT)
    assert source.size_bytes == len(CONTENT)
    assert source.read(5, 4) == CONTENT[5:9]
    assert source.read(0, len(CONTENT)) == CONTENT
    assert source.read(7, 0) == b"", "nothing is not worth a question"
    thread.join()


@pytest.mark.parametrize(
    ("offset", "count"), [(-1, 2), (0, len(CONTENT) + 1), (len(CONTENT), 1), (2, -1)]
)
def test_a_read_outside_never_leaves(
    node: tuple[ViewSource, Channel], offset: int, count: int
) -> None:
    with pytest.raises(DamagedError, match="outside"):
        node[0].read(offset, count)


def test_a_read_that_is_too_long_never_leaves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = ViewSource(Channel(theirs), 1 << 40)
        with pytest.raises(DamagedError, match=f"{READ_BYTES_MAX + 1} bytes"):
            source.read(0, READ_BYTES_MAX + 1)


@pytest.mark.parametrize(("kind", "answer"), [(FAILED, b""), (READ, b"xyz")])
def test_a_read_that_fails_is_damage(
    node: tuple[ViewSource, Channel], kind: int, answer: bytes
) -> None:
    thread = answering(node[1], kind, answer)
    with pytest.raises(DamagedError, match="4 bytes at 8 cannot be read"):
        node[0].read(8, 4)
    thread.join()


def test_without_the_node_there_is_nothing_to_go_on_with(
    node: tuple[ViewSource, Channel],
) -> None:
    """A reader survives damage; it must not take this for damage."""
    node[1].close()
    for _ in range(2):
        with pytest.raises(SystemExit):
            node[0].read(8, 4)


def test_the_module_is_the_one_that_is_started() -> None:
    assert parser_process.parse.__module__ == sandbox.PARSER
