"""Samples: random ranges of what is allocated, kept with their checksums."""

from __future__ import annotations

import struct

import pytest

from backplane.errors import RemoteProtocolError
from controller.core.extent_runs import ExtentRuns
from controller.core.samples import (
    SAMPLE_BYTES_MAX,
    SAMPLES_MAX,
    Sample,
    choose_ranges,
    differing,
    pack_ranges,
    pack_samples,
    unpack_digests,
    unpack_samples,
    untouched,
)

RUNS = ExtentRuns([(10, 3), (100, 5000), (10_000, 1)])


def chosen(seed: str = "a", runs: ExtentRuns = RUNS) -> list[tuple[int, int]]:
    return choose_ranges(runs, block_bytes=512, seed=seed)


def test_ranges_lie_within_the_extents_and_are_not_too_long() -> None:
    ranges = chosen()
    assert ranges == sorted(set(ranges))
    assert 1 <= len(ranges) <= SAMPLES_MAX
    assert all(0 < blocks <= SAMPLE_BYTES_MAX // 512 for _, blocks in ranges)
    allocated = {lba + n for lba, blocks in RUNS for n in range(blocks)}
    assert {lba + n for lba, blocks in ranges for n in range(blocks)} <= allocated


def test_the_seed_decides_and_nothing_else() -> None:
    assert chosen("a") == chosen("a")
    assert chosen("a") != chosen("b")


def test_every_block_can_be_sampled() -> None:
    """A range that could never be drawn would hide there for ever."""
    small = ExtentRuns([(3, 1), (7, 2), (20, 1)])
    seen = {
        lba + n
        for seed in range(20)
        for lba, blocks in chosen(str(seed), small)
        for n in range(blocks)
    }
    assert seen == {3, 7, 8, 20}


def test_nothing_allocated_is_nothing_to_sample() -> None:
    assert chosen(runs=ExtentRuns()) == []


def test_blocks_larger_than_a_sample_are_sampled_one_by_one() -> None:
    ranges = choose_ranges(RUNS, block_bytes=4 * SAMPLE_BYTES_MAX, seed="a")
    assert {blocks for _, blocks in ranges} == {1}


def test_ranges_are_asked_for_as_the_message_says() -> None:
    assert pack_ranges([(1, 2), (3, 4)]) == struct.pack(">QQQQ", 1, 2, 3, 4)


def test_samples_are_kept_in_bytes_and_come_back_in_blocks() -> None:
    samples = [Sample(2, 4, 0xFFFFFFFF), Sample(1 << 40, 1, 0)]
    packed = pack_samples(samples, block_bytes=512)
    assert packed == struct.pack(">QIIQII", 1024, 2048, 0xFFFFFFFF, 512 << 40, 512, 0)
    assert unpack_samples(packed, block_bytes=512) == samples
    assert unpack_samples(b"", block_bytes=512) == []


@pytest.mark.parametrize("digests", [b"", b"\0" * 7, b"\0" * 12])
def test_a_node_that_does_not_answer_for_each_sample_is_wrong(digests: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="a checksum per sample"):
        unpack_digests(digests, count=2, node="disk")
    assert unpack_digests(b"\0\0\0\1\0\0\0\2", count=2, node="disk") == [1, 2]


def test_only_samples_outside_the_change_map_are_asked_again() -> None:
    samples = [Sample(0, 4, 1), Sample(6, 2, 2), Sample(8, 8, 3), Sample(20, 1, 4)]
    assert untouched(samples, ExtentRuns([(3, 1), (8, 1), (15, 5)])) == [samples[1], samples[3]]
    assert untouched(samples, ExtentRuns()) == samples


def test_a_sample_differs_by_its_checksum() -> None:
    samples = [Sample(0, 4, 1), Sample(6, 2, 2)]
    assert differing(samples, [1, 2]) == []
    assert differing(samples, [1, 3]) == [samples[1]]
