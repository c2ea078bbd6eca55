"""Pieces keep their CRC through every cut and join."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import crc
from mover_node.core.pieces import (
    INLINE,
    PAD_CHUNK_BYTES,
    DamagedError,
    Piece,
    Residue,
    inline_piece,
    payload_of,
    zero_payload,
)


def piece(data: bytes, origin: int = 0) -> Piece:
    return Piece(memoryview(data), crc.crc32c(data), origin)


@given(st.lists(st.binary(max_size=20), max_size=6), st.data())
def test_whatever_is_cut_and_joined_has_the_crc_of_its_bytes(
    parts: list[bytes], data: st.DataObject
) -> None:
    residue = Residue()
    for part in parts:
        residue.append(piece(part))
    whole = b"".join(parts)
    while residue:
        count = data.draw(st.integers(1, residue.byte_count))
        payload = payload_of(residue.take(count))
        assert payload.joined() == whole[:count]
        assert payload.crc32c == crc.crc32c(whole[:count])
        assert payload.byte_count == count
        whole = whole[count:]
    assert not whole


def test_a_byte_that_flips_in_memory_is_found_by_the_next_cut() -> None:
    memory = bytearray(b"0123456789")
    residue = Residue()
    residue.append(piece(b"abc"))
    residue.append(Piece(memoryview(memory), crc.crc32c(memory), 0))
    memory[4] ^= 1
    with pytest.raises(DamagedError):
        residue.take(6)
    assert residue.byte_count == 13
    assert residue.clear() == {0: 13}


def test_a_byte_that_flips_in_a_whole_piece_is_found_by_the_device_that_gets_it() -> None:
    memory = bytearray(b"0123456789")
    residue = Residue()
    residue.append(Piece(memoryview(memory), crc.crc32c(memory), 0))
    memory[4] ^= 1
    payload = payload_of(residue.take(10))
    assert crc.crc32c(payload.joined()) != payload.crc32c


def test_what_is_dropped_is_counted_by_origin() -> None:
    residue = Residue()
    for origin, data in ((1, b"aa"), (2, b"bbb"), (1, b"c"), (2, b"")):
        residue.append(piece(data, origin))
    residue.append(inline_piece(b"xx"))
    assert residue.clear() == {1: 3, 2: 3, INLINE: 2}
    assert not residue


def test_padding_is_zeros_in_bounded_pieces() -> None:
    pieces = zero_payload(PAD_CHUNK_BYTES + 5)
    assert [len(p.data) for p in pieces] == [PAD_CHUNK_BYTES, 5]
    assert payload_of(pieces).joined() == bytes(PAD_CHUNK_BYTES + 5)
    assert zero_payload(0) == []
