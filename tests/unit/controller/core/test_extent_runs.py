"""Extents in stream order: slices, merging, and the packed form with every kind of damage."""

from __future__ import annotations

import zlib
from array import array

import pytest

from backplane.errors import MediumError
from controller.core.extent_runs import EXTENTS_MAX, LBA_END_MAX, ExtentRuns

SOME = [(10, 5), (20, 1), (100, 50)]


def packed(count: int, gaps: list[int], blocks: list[int], *, tail: bytes = b"") -> bytes:
    """Build the packed form by hand, as the module's docstring says, damaged or not."""
    planes = b"".join(
        bytes(number >> 8 * plane & 0xFF for number in table)
        for table in (gaps, blocks)
        for plane in range(8)
    )
    return b"\x01" + count.to_bytes(8, "big") + zlib.compress(planes) + tail


def test_neighbours_are_merged_and_the_stream_space_has_no_gaps() -> None:
    runs = ExtentRuns([(0, 4), (4, 4), (10, 2), (12, 1)])
    assert list(runs) == [(0, 8), (10, 3)]
    assert (len(runs), runs.total_blocks, runs.end_lba) == (2, 11, 13)


def test_no_extents_are_an_empty_stream() -> None:
    runs = ExtentRuns()
    assert (list(runs), len(runs), runs.total_blocks, runs.end_lba) == ([], 0, 0, 0)
    assert runs.slice(0, 0) == []
    assert ExtentRuns.unpack(runs.pack()) == runs


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (0, 56, SOME),
        (0, 0, []),
        (56, 56, []),
        (0, 5, [(10, 5)]),
        (5, 6, [(20, 1)]),
        (4, 7, [(14, 1), (20, 1), (100, 1)]),
        (55, 56, [(149, 1)]),
        (1, 3, [(11, 2)]),
    ],
)
def test_a_slice_of_the_stream_names_the_blocks_that_hold_it(
    first: int, end: int, expected: list[tuple[int, int]]
) -> None:
    assert ExtentRuns(SOME).slice(first, end) == expected


@pytest.mark.parametrize(("first", "end"), [(-1, 3), (3, 2), (0, 57), (57, 57)])
def test_a_slice_outside_the_stream_is_a_bug(first: int, end: int) -> None:
    with pytest.raises(AssertionError, match="outside the stream"):
        ExtentRuns(SOME).slice(first, end)


@pytest.mark.parametrize(
    ("lba", "blocks", "words"),
    [
        (149, 1, "out of order"),
        (0, 1, "out of order"),
        (200, 0, "empty"),
        (200, -1, "empty"),
        (LBA_END_MAX, 1, "too far"),
    ],
)
def test_an_extent_that_does_not_fit_behind_the_others_is_a_bug(
    lba: int, blocks: int, words: str
) -> None:
    runs = ExtentRuns(SOME)
    with pytest.raises(AssertionError, match=words):
        runs.append(lba, blocks)
    assert list(runs) == SOME


def test_the_last_block_of_the_largest_volume_can_be_named() -> None:
    runs = ExtentRuns([(LBA_END_MAX - 1, 1)])
    assert ExtentRuns.unpack(runs.pack()) == runs


def test_runs_are_equal_by_their_extents_and_to_nothing_else() -> None:
    assert ExtentRuns(SOME) == ExtentRuns([(10, 2), (12, 3), *SOME[1:]])
    assert ExtentRuns(SOME) != ExtentRuns(SOME[:2])
    assert ExtentRuns(SOME) != SOME
    assert repr(ExtentRuns(SOME)) == "<ExtentRuns 3 extents, 56 blocks, end 150>"


def test_unpacked_runs_can_be_sliced_and_grow() -> None:
    runs = ExtentRuns.unpack(ExtentRuns(SOME).pack())
    assert runs.slice(0, 56) == SOME
    runs.append(150, 1)
    assert list(runs)[-1] == (100, 51)


def test_the_packed_form_is_the_documented_one() -> None:
    """A catalog outlives the program that wrote it, so the bytes may not change under a version number."""
    ours = ExtentRuns(SOME).pack()
    by_hand = packed(3, [10, 5, 79], [5, 1, 50])
    assert ours[:9] == by_hand[:9]
    assert zlib.decompress(ours[9:]) == zlib.decompress(by_hand[9:])
    assert ExtentRuns.unpack(by_hand) == ExtentRuns(SOME)


GOOD = packed(3, [10, 5, 79], [5, 1, 50])


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"", "version"),
        (GOOD[:8], "version"),
        (b"\x03" + GOOD[1:], "version"),
        (b"\x01" + (EXTENTS_MAX + 1).to_bytes(8, "big") + GOOD[9:], "at most"),
        (GOOD[:9], "wrong length"),
        (GOOD[:-1], "wrong length"),
        (GOOD[:9] + b"rubbish", "damaged"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "damaged"),
        (GOOD + b"\x00", "wrong length"),
        (packed(2, [10, 5, 79], [5, 1, 50]), "wrong length"),
        (packed(4, [10, 5, 79], [5, 1, 50]), "wrong length"),
        (packed(0, [1], [1]), "wrong length"),
        (packed(2, [10, 5], [5, 0]), "empty or touching"),
        (packed(2, [10, 0], [5, 1]), "empty or touching"),
        (packed(1, [LBA_END_MAX], [1]), "too far"),
        (packed(2, [1, 2**64 - 1], [1, 1]), "too far"),
    ],
)
def test_a_damaged_map_is_a_medium_error_that_says_what_is_wrong(
    damaged: bytes, words: str
) -> None:
    with pytest.raises(MediumError, match=words):
        ExtentRuns.unpack(damaged)


def test_a_machine_of_the_other_byte_order_reads_the_same_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a big-endian machine `array` holds swapped numbers; here both directions are made to swap."""
    ours = ExtentRuns(SOME).pack()
    monkeypatch.setattr("controller.core.extent_runs.sys.byteorder", "big")
    swapped = ExtentRuns(SOME).pack()
    assert ExtentRuns.unpack(swapped) == ExtentRuns(SOME)
    native = array("Q", [10, 5, 79])
    native.byteswap()
    raw = native.tobytes()
    first_table = zlib.decompress(swapped[9:])[:24]
    assert first_table == b"".join(raw[plane::8] for plane in range(8))
    assert swapped != ours


def test_a_map_without_zeros_is_another_one_than_with_none_of_them() -> None:
    full, changes = ExtentRuns(SOME), ExtentRuns(SOME)
    changes.zeros = ExtentRuns()
    assert full != changes
    assert full.pack()[0] == 1
    assert changes.pack()[0] == 2
    assert ExtentRuns.unpack(full.pack()).zeros is None
    assert ExtentRuns.unpack(changes.pack()).zeros == ExtentRuns()


def test_the_packed_form_with_zeros_is_the_documented_one() -> None:
    runs = ExtentRuns([(10, 5)])
    runs.zeros = ExtentRuns([(3, 1), (20, 2)])
    packed_form = runs.pack()
    assert packed_form[:17] == b"\x02" + (1).to_bytes(8, "big") + (2).to_bytes(8, "big")
    planes = b"".join(
        bytes(number >> 8 * plane & 0xFF for number in table)
        for table in ((10,), (5,), (3, 16), (1, 2))
        for plane in range(8)
    )
    assert zlib.decompress(packed_form[17:]) == planes
    assert ExtentRuns.unpack(packed_form) == runs


def test_counts_that_are_too_many_together_are_damage() -> None:
    head = b"\x02" + EXTENTS_MAX.to_bytes(8, "big") + (1).to_bytes(8, "big")
    with pytest.raises(MediumError, match="at most"):
        ExtentRuns.unpack(head + zlib.compress(b""))
    with pytest.raises(MediumError, match="unknown version"):
        ExtentRuns.unpack(head[:16])
