"""Samples lie where nothing changed, repeat with their seed, and prefer no place."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_node.core.sampling import choose_samples, subtract

PIECES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=8)
"""(gap before, length)."""


def runs_of(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], -1
    for gap, length in pieces:
        found.append((at + gap, at + gap + length))
        at += gap + length
    return found


def bytes_of(runs: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in runs for byte in range(start, end)}


@given(PIECES, PIECES)
def test_subtract_is_the_difference(
    runs: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    found = list(subtract(runs_of(runs), runs_of(holes)))
    assert bytes_of(found) == bytes_of(runs_of(runs)) - bytes_of(runs_of(holes))
    assert found == sorted(found)
    assert sum(end - start for start, end in found) == len(bytes_of(found))
    assert all(start < end for start, end in found)


@given(PIECES, PIECES, st.integers(1, 120), st.integers(0, 12), st.integers(1, 9), st.binary())
def test_samples_are_different_and_lie_in_the_unchanged_allocated_part(
    allocated: list[tuple[int, int]],
    changed: list[tuple[int, int]],
    size_bytes: int,
    samples: int,
    sample_bytes: int,
    seed: bytes,
) -> None:
    part = bytes_of(runs_of(allocated)) - bytes_of(runs_of(changed))
    part = {byte for byte in part if byte < size_bytes}

    def choose(count: int) -> list[tuple[int, int]]:
        return choose_samples(
            seed=seed,
            size_bytes=size_bytes,
            allocated=runs_of(allocated),
            changed=runs_of(changed),
            samples=count,
            sample_bytes=sample_bytes,
        )

    found = choose(samples)
    assert found == choose(samples)
    assert found == sorted(found)
    read = [byte for start, count in found for byte in range(start, start + count)]
    assert len(read) == len(set(read))
    assert set(read) <= part
    assert all(0 < count <= sample_bytes for _, count in found)
    everything = choose(1000)
    assert len(found) == min(samples, len(everything))
    assert {byte for start, count in everything for byte in range(start, start + count)} == part


def test_every_byte_is_read_equally_often() -> None:
    """Runs of unequal lengths, cut at odd places: 4000 draws of 3 out of 14 pieces."""
    seen = Counter[int]()
    for round_number in range(4000):
        for start, count in choose_samples(
            seed=round_number.to_bytes(4, "big"),
            size_bytes=100,
            allocated=[(3, 40), (50, 97)],
            changed=[(10, 13), (60, 64)],
            samples=3,
            sample_bytes=8,
        ):
            seen.update(range(start, start + count))
    assert set(seen) == (set(range(3, 40)) | set(range(50, 97))) - set(range(10, 13)) - set(
        range(60, 64)
    )
    expected = 4000 * 3 / 14
    assert min(seen.values()) == pytest.approx(expected, rel=0.15)
    assert max(seen.values()) == pytest.approx(expected, rel=0.15)


def test_nothing_unchanged_gives_no_samples() -> None:
    arguments = {"seed": b"", "size_bytes": 100, "samples": 5, "sample_bytes": 8}
    assert choose_samples(allocated=[], changed=[], **arguments) == []  # type: ignore[arg-type]
    assert choose_samples(allocated=[(0, 50)], changed=[(0, 50)], **arguments) == []  # type: ignore[arg-type]
