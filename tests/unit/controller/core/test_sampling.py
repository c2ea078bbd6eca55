"""Samples: the same for the same seed, spread over the part, never without its ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from controller.core.extent_runs import ExtentRuns
from controller.core.planner import PartData
from controller.core.sampling import Sample, SampledPart, chosen

HERE = {"seed": "s", "place": "p 1"}


@pytest.mark.parametrize(
    ("text", "records", "size"),
    [
        ("", 1000, 1000),
        ("100%", 1000, 1000),
        ("5%", 1000, 50),
        ("0.1%", 1000, 2),
        ("0.15%", 10_000, 15),
        ("7", 1000, 7),
        ("1", 1000, 2),
        ("7", 3, 3),
        ("5%", 1, 1),
    ],
)
def test_how_many_records_a_sample_has(text: str, records: int, size: int) -> None:
    sample = Sample.parse(text)
    assert sample.size(records) == size
    assert sample.is_everything == (text in ("", "100%"))
    assert len(chosen(sample, records, **HERE)) == size


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "5 %", "x", "1.5", "5%%", "1e3", "٣"])
def test_what_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Sample.parse(text)


@given(st.integers(1, 500), st.integers(1, 400), st.text(max_size=5))
def test_a_sample_ascends_has_both_ends_and_is_the_same_again(
    records: int, count: int, seed: str
) -> None:
    sample = Sample(count=count)
    numbers = chosen(sample, records, seed=seed, place="p")
    assert len(numbers) == len(set(numbers)) == sample.size(records)
    assert list(numbers) == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, records - 1)
    assert numbers == chosen(sample, records, seed=seed, place="p")


def test_a_sample_is_spread_and_another_seed_or_part_is_another_sample() -> None:
    numbers = chosen(Sample(count=102), 10_002, **HERE)
    assert [(number - 1) // 100 for number in numbers[1:-1]] == list(range(100))
    assert len({number % 100 for number in numbers}) > 30, "no pattern"
    assert numbers != chosen(Sample(count=102), 10_002, seed="t", place="p 1")
    assert numbers != chosen(Sample(count=102), 10_002, seed="s", place="p 2")


def sampled(*numbers: int) -> SampledPart:
    data = PartData(
        runs=ExtentRuns([(0, 40)]),
        block_bytes=512,
        record_bytes=2048,
        stream_start=0,
        stream_bytes=40 * 512,
    )
    return SampledPart(data, numbers)


def test_records_are_counted_among_those_that_are_read() -> None:
    part = sampled(0, 3, 4, 9)
    assert [part.record_behind(0, read) for read in range(5)] == [0, 3, 4, 9, 10]
    assert part.record_behind(1, 1) == 4
    assert part.record_behind(3, 1) == 4
    assert [part.before(record) for record in (0, 1, 4, 10)] == [0, 1, 2, 4]
    assert list(part.runs(0)) == [(0, 1), (3, 5), (9, 10)]
    assert list(part.runs(4)) == [(4, 5), (9, 10)]
    assert list(part.runs(10)) == []
    assert part.extents_of(3, 4) == [(12, 4)]
    assert part.records == 10
