"""What the property test of the bitmap does not reach: the large ones, other memory, and bytes that are no bitmap."""

import mmap
from pathlib import Path

import pytest

from backplane.errors import MediumError
from storage_node.core.bitmap import Bitmap, bytes_for

SIX_TERABYTES = 100_000_000


def test_runs_cross_the_pieces_in_which_it_looks() -> None:
    bitmap = Bitmap(SIX_TERABYTES)
    runs = [(0, 1), (2_097_151, 6_291_457), (8_388_608, 12_582_912), (99_999_999, 100_000_000)]
    for first, end in runs:
        bitmap.set_range(first, end)
    assert list(bitmap.runs()) == runs
    assert bitmap.count() == sum(end - first for first, end in runs)
    assert bitmap.covers(2_097_151, 6_291_457)
    assert not bitmap.covers(2_097_151, 6_291_458)
    other = Bitmap(SIX_TERABYTES)
    other.merge(bitmap)
    assert other == bitmap
    bitmap.clear_range(0, SIX_TERABYTES)
    assert not bitmap.any()
    assert other != bitmap


def test_a_sparse_bitmap_of_six_terabytes_gives_every_bit_that_is_set() -> None:
    bitmap = Bitmap(SIX_TERABYTES)
    wanted = [(bit, bit + 1) for bit in range(0, SIX_TERABYTES, 1_000_003)]
    for first, end in wanted:
        bitmap.set_range(first, end)
    assert list(bitmap.runs()) == wanted


def test_it_can_lie_in_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "bits"
    path.write_bytes(bytes(bytes_for(1001)))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        view = memoryview(mapped)
        bitmap = Bitmap.over(view, 1001)
        bitmap.set_range(3, 990)
        bitmap.clear_range(5, 8)
        other = Bitmap(1001)
        other.set_range(1000, 1001)
        bitmap.merge(other)
        assert list(bitmap.runs()) == [(3, 5), (8, 990), (1000, 1001)]
        del bitmap
        view.release()
    assert list(Bitmap.from_bytes(path.read_bytes(), 1001).runs()) == [
        (3, 5),
        (8, 990),
        (1000, 1001),
    ]


@pytest.mark.parametrize("data", [b"", b"\x00", bytes(3), b"\x00\x20", b"\xff\xff"])
def test_bytes_that_are_no_bitmap_of_that_size_are_refused(data: bytes) -> None:
    with pytest.raises(MediumError):
        Bitmap.from_bytes(data, 13)


def test_the_last_bits_of_the_last_byte_are_good() -> None:
    assert list(Bitmap.from_bytes(b"\x00\x10", 13).runs()) == [(12, 13)]


@pytest.mark.parametrize(("first", "end"), [(-1, 2), (0, 14), (5, 4)])
def test_a_range_that_is_none_is_a_bug(first: int, end: int) -> None:
    bitmap = Bitmap(13)
    for change in (bitmap.set_range, bitmap.clear_range):
        with pytest.raises(AssertionError):
            change(first, end)
    with pytest.raises(AssertionError):
        list(bitmap.runs(first, end))
    with pytest.raises(AssertionError):
        bitmap[13]
    assert not bitmap.any()


def test_every_run_of_eighteen_bits_is_cut_at_every_place() -> None:
    ranges = [(first, end) for end in range(19) for first in range(end + 1)]
    for start, stop in ranges:
        bitmap = Bitmap(18)
        bitmap.set_range(start, stop)
        holes = Bitmap(18)
        holes.set_range(0, 18)
        holes.clear_range(start, stop)
        for first, end in ranges:
            low, high = max(first, start), min(end, stop)
            assert list(bitmap.runs(first, end)) == ([(low, high)] if low < high else [])
            is_inside = first == end or start <= first < end <= stop
            assert bitmap.covers(first, end) == is_inside
            gaps = [(first, min(end, start)), (max(first, stop), end)]
            expected = [gap for gap in gaps if gap[0] < gap[1]] if start < stop else [(first, end)]
            assert list(holes.runs(first, end)) == [gap for gap in expected if gap[0] < gap[1]]
