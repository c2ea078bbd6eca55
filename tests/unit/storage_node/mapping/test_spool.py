"""Sorting more than fits: the same as sorting all of it, in bounded memory, and told when there is no room."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_node.mapping.spool import (
    BLOCK_ELEMENTS,
    NoRoomError,
    Sorter,
    Spool,
    read_strings,
    require_room,
    write_all,
    write_strings,
)

RECORD = 4


@pytest.fixture
def spool() -> Iterator[Spool]:
    with tempfile.TemporaryFile() as file:
        yield Spool(file.fileno(), bytes_max=1 << 24)


def read(data: bytes) -> list[bytes]:
    return [data[at : at + RECORD] for at in range(0, len(data), RECORD)]


def sorter(spool: Spool, *, weight_max: int) -> Sorter:
    return Sorter(spool, write=b"".join, read=read, weight_max=weight_max)


def everything(sorter: Sorter) -> list[bytes]:
    return list(chain.from_iterable(sorter.blocks()))


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=30), st.integers(1, 40))
def test_it_sorts_whatever_comes_in_whatever_pieces(
    pieces: list[list[int]], weight_max: int
) -> None:
    with tempfile.TemporaryFile() as file:
        made = sorter(Spool(file.fileno(), bytes_max=1 << 20), weight_max=weight_max)
        for piece in pieces:
            made.add([b"%04d" % number for number in piece], weight=len(piece))
        expected = sorted(b"%04d" % number for piece in pieces for number in piece)
        assert everything(made) == expected


@pytest.mark.parametrize("weight_max", [1, 1000, 10**9])
def test_many_runs_of_many_blocks_are_merged(spool: Spool, weight_max: int) -> None:
    count = 3 * BLOCK_ELEMENTS + 7
    made = sorter(spool, weight_max=weight_max)
    for start in range(7):
        made.add([b"%04d" % (at * 7 % count) for at in range(start, count, 7)], weight=count // 7)
    assert everything(made) == [b"%04d" % at for at in range(count)]


@given(st.lists(st.binary(max_size=5)))
def test_strings_of_any_length_come_from_a_piece_as_they_went(strings: list[bytes]) -> None:
    assert read_strings(write_strings(strings)) == strings


@given(st.lists(st.binary(max_size=3), max_size=40), st.integers(1, 5))
def test_strings_of_any_length_are_sorted(strings: list[bytes], weight_max: int) -> None:
    with tempfile.TemporaryFile() as file:
        made = Sorter(
            Spool(file.fileno(), bytes_max=1 << 20),
            write=write_strings,
            read=read_strings,
            weight_max=weight_max,
        )
        for string in strings:
            made.add([string], weight=1)
        assert everything(made) == sorted(strings)


def test_no_block_is_longer_than_what_is_held_of_the_runs(spool: Spool) -> None:
    """A merge must not collect everything before it gives something."""
    made = sorter(spool, weight_max=BLOCK_ELEMENTS * 2)
    for start in range(4):
        made.add([b"%04d" % at for at in range(start, 8000, 4)], weight=2000)
    blocks: list[Sequence[bytes]] = list(made.blocks())
    assert max(map(len, blocks)) <= 4 * BLOCK_ELEMENTS
    assert list(chain.from_iterable(blocks)) == [b"%04d" % at for at in range(8000)]


def test_nothing_gives_nothing(spool: Spool) -> None:
    assert everything(sorter(spool, weight_max=1)) == []


def test_what_is_written_is_found_at_its_place(spool: Spool) -> None:
    places = [spool.write(data) for data in (b"one", b"", b"three")]
    assert [spool.read(place) for place in places] == [b"one", b"", b"three"]


def test_more_than_the_limit_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        spool = Spool(file.fileno(), bytes_max=5)
        spool.write(b"12345")
        with pytest.raises(NoRoomError, match="more than 5"):
            spool.write(b"6")


def test_space_that_others_need_is_left() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(NoRoomError, match="kept free"):
            Spool(file.fileno(), bytes_max=10, reserve_bytes=1 << 60).write(b"1")
        require_room(file.fileno(), 0)


def test_a_file_that_cannot_be_written_is_told() -> None:
    with pytest.raises(NoRoomError, match="No space"), open("/dev/full", "wb") as file:
        write_all(file.fileno(), b"x", 0)


def test_a_file_that_has_become_shorter_is_told() -> None:
    with tempfile.TemporaryFile() as file:
        spool = Spool(file.fileno(), bytes_max=10)
        place = spool.write(b"12345")
        os.ftruncate(file.fileno(), 3)
        with pytest.raises(NoRoomError, match="shorter"):
            spool.read(place)
