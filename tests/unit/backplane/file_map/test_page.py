"""Pages: sealed, opened, and refused when anything about them is not as it was sealed."""

from __future__ import annotations

import struct
import zlib

import pytest

from backplane.crc import crc32c
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.page import (
    BODY_BYTES_MAX,
    PAGE_BYTES_MAX,
    PageKind,
    open_page,
    seal_page,
)

BODY = b"the body of a page " * 50
PREFIX_BYTES = 28


def page_of(body: bytes = BODY) -> bytes:
    return seal_page(PageKind.ROWS, 7, body, flags=1, first_path=b"home", last_path=b"home/z")


def resealed(page: bytes, at: int, data: bytes) -> bytes:
    """Return a page with other bytes somewhere, and the checksum that goes with them."""
    changed = bytearray(page)
    changed[at : at + len(data)] = data
    changed[24:28] = bytes(4)
    struct.pack_into(">I", changed, 24, crc32c(changed))
    return bytes(changed)


def test_a_page_comes_back() -> None:
    page = open_page(page_of(), PageKind.ROWS)
    assert (page.flags, page.members) == (1, 7)
    assert (page.first_path, page.last_path) == (b"home", b"home/z")
    assert page.body() == BODY


def test_the_prefix_is_as_described() -> None:
    page = page_of()
    assert page[:8] == b"SDFP" + bytes([1, 1, 1, 0])
    assert struct.unpack(">IIII", page[8:24]) == (7, len(BODY), 4, 6)
    assert page[24:28] == crc32c(page[:24] + bytes(4) + page[28:]).to_bytes(4, "big")
    assert page[28:38] == b"homehome/z"
    assert zlib.decompress(page[38:]) == BODY


def test_every_changed_byte_is_found() -> None:
    page = page_of()
    for at in range(len(page)):
        changed = bytearray(page)
        changed[at] ^= 0x10
        with pytest.raises(MapDamagedError):
            open_page(bytes(changed), PageKind.ROWS)


def test_every_cut_is_found() -> None:
    page = page_of()
    for length in range(len(page)):
        with pytest.raises(MapDamagedError):
            open_page(page[:length], PageKind.ROWS)


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (0, b"SDFQ", "no page"),
        (4, b"\x02", "format 2"),
        (5, b"\x02", "contradicts"),
        (6, b"\x04", "contradicts"),
        (7, b"\x01", "contradicts"),
        (12, struct.pack(">I", BODY_BYTES_MAX + 1), "contradicts"),
        (16, struct.pack(">I", 1 << 31), "contradicts"),
        (20, struct.pack(">I", (1 << 32) - 1), "contradicts"),
    ],
)
def test_a_wrong_prefix_under_a_right_checksum_is_damage(at: int, data: bytes, reason: str) -> None:
    with pytest.raises(MapDamagedError, match=reason):
        open_page(resealed(page_of(), at, data), PageKind.ROWS)


def test_a_page_of_runs_is_no_page_of_rows() -> None:
    with pytest.raises(MapDamagedError, match="contradicts"):
        open_page(seal_page(PageKind.RUNS, 1, BODY), PageKind.ROWS)


def test_a_page_that_is_too_long_is_not_even_looked_at() -> None:
    with pytest.raises(MapDamagedError, match=f"{PAGE_BYTES_MAX + 1} bytes"):
        open_page(bytes(PAGE_BYTES_MAX + 1), PageKind.ROWS)


@pytest.mark.parametrize("claimed", [0, len(BODY) - 1, len(BODY) + 1])
def test_a_body_of_another_length_is_damage(claimed: int) -> None:
    page = open_page(resealed(page_of(), 12, struct.pack(">I", claimed)), PageKind.ROWS)
    with pytest.raises(MapDamagedError, match="length"):
        page.body()


def test_a_body_that_swells_is_cut_off_at_what_it_says() -> None:
    bomb = seal_page(PageKind.ROWS, 1, bytes(BODY_BYTES_MAX))
    page = open_page(resealed(bomb, 12, struct.pack(">I", 1000)), PageKind.ROWS)
    with pytest.raises(MapDamagedError, match="length"):
        page.body()


def test_bytes_behind_the_body_are_damage() -> None:
    page = open_page(resealed(page_of() + b"more", 0, b"SDFP"), PageKind.ROWS)
    with pytest.raises(MapDamagedError, match="length"):
        page.body()


def test_a_body_that_is_not_compressed_is_damage() -> None:
    page = open_page(resealed(page_of(), 38, b"????????"), PageKind.ROWS)
    with pytest.raises(MapDamagedError, match="decompressed"):
        page.body()
