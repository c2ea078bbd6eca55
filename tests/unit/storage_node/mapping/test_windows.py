"""Windows: reading through segments, and the way back to the bytes of the volume."""

from __future__ import annotations

import random

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow
from backplane.testing.file_rows import make_file, make_row
from storage_node.mapping import windows
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    BytesSource,
    DamagedError,
    UnsupportedError,
)
from storage_node.mapping.windows import Window, translate_row, translate_runs

VOLUME = BytesSource(bytes(range(256)) * 4)
TWO = Window(VOLUME, [(300, 100), (100, 200)])
"""Bytes 0..100 are 300..400 of the volume, bytes 100..300 are 100..300 of it."""


def row(*extents: FileExtent, size: int = 100) -> FileRow:
    return make_file(b"a", *extents, size=size)


def test_a_window_reads_its_segments_in_its_own_order() -> None:
    whole = VOLUME.read(0, 1024)
    assert TWO.size_bytes == 300
    assert TWO.read(0, 300) == whole[300:400] + whole[100:300]
    assert TWO.read(99, 2) == whole[399:400] + whole[100:101]
    assert TWO.read(300, 0) == b""


@pytest.mark.parametrize(("offset", "count"), [(-1, 2), (300, 1), (299, 2), (0, -1), (0, 301)])
def test_what_is_not_inside_cannot_be_read(offset: int, count: int) -> None:
    with pytest.raises(DamagedError):
        TWO.read(offset, count)


def test_nobody_reads_more_at_once_than_the_source_allows() -> None:
    big = BytesSource(bytes(READ_BYTES_MAX + 2))
    halves = Window(
        big, [(0, READ_BYTES_MAX // 2), (READ_BYTES_MAX // 2 + 1, READ_BYTES_MAX // 2 + 1)]
    )
    assert len(halves.read(0, READ_BYTES_MAX)) == READ_BYTES_MAX
    with pytest.raises(DamagedError, match="too many"):
        halves.read(0, READ_BYTES_MAX + 1)


@pytest.mark.parametrize("segment", [(-1, 5), (1020, 5), (0, 0), (5, -1), (1024, 1)])
def test_a_segment_that_is_not_on_the_volume_makes_no_window(segment: tuple[int, int]) -> None:
    with pytest.raises(DamagedError):
        Window(VOLUME, [segment])


def test_neighbouring_segments_are_one() -> None:
    window = Window(VOLUME, [(10, 10), (20, 30), (100, 1)])
    assert list(window.segments()) == [(0, 10, 40), (40, 100, 1)]
    assert window.translate(5, 20) == [(15, 20)]


def test_a_window_of_a_window_translates_to_the_volume_at_once() -> None:
    inner = Window(TWO, [(90, 20), (0, 10)])
    assert inner.root is VOLUME
    assert inner.translate(0, 30) == [(390, 10), (100, 10), (300, 10)]
    assert inner.read(0, 30) == TWO.read(90, 20) + TWO.read(0, 10)
    with pytest.raises(DamagedError):
        Window(TWO, [(290, 11)])


def test_too_many_segments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SEGMENTS_MAX", 3)
    assert Window(VOLUME, [(at, 1) for at in (0, 2, 4)]).size_bytes == 3
    with pytest.raises(UnsupportedError, match="3 segments"):
        Window(VOLUME, [(at, 1) for at in (0, 2, 4, 6)])


def test_a_row_gets_its_prefix_and_the_places_of_the_volume() -> None:
    window = Window(VOLUME, [(512, 400)])
    moved = translate_row(row(FileExtent(0, 8, 100)), window, b"p1")
    assert moved.path == b"p1/a"
    assert moved.extents == (FileExtent(0, 520, 100),)
    assert moved.error == ""
    assert translate_row(make_row(b""), window, b"p1").path == b"p1"
    assert translate_row(make_row(b""), window, b"").path == b""


def test_a_row_of_the_whole_volume_stays_as_it_is() -> None:
    before = row(FileExtent(0, 8, 100), FileExtent(100, -1, 5, ExtentFlag.UNWRITTEN))
    assert translate_row(before, Window.whole(VOLUME), b"") == before


def test_an_extent_over_a_border_becomes_two() -> None:
    moved = translate_row(row(FileExtent(50, 90, 30, ExtentFlag.SHARED)), TWO, b"")
    assert moved.extents == (
        FileExtent(50, 390, 10, ExtentFlag.SHARED),
        FileExtent(60, 100, 20, ExtentFlag.SHARED),
    )


def test_space_without_a_place_has_none_afterwards() -> None:
    extent = FileExtent(0, -1, 30, ExtentFlag.UNWRITTEN)
    for window in (TWO, Window(VOLUME, [(512, 400)])):
        assert translate_row(row(extent), window, b"x").extents == (extent,)


def test_only_the_first_piece_of_an_escaped_block_is_escaped() -> None:
    flags = ExtentFlag.JOURNAL | ExtentFlag.ESCAPED
    moved = translate_row(row(FileExtent(0, 90, 30, flags)), TWO, b"")
    assert [extent.flags for extent in moved.extents] == [flags, ExtentFlag.JOURNAL]
    torn = translate_row(row(FileExtent(0, 98, 30, flags)), TWO, b"")
    assert "escaped" in torn.error
    assert torn.extents == ()


def compressed(place: int) -> FileExtent:
    return FileExtent(0, place, 4096, ExtentFlag.COMPRESSED, 40, 4096, 0, "zlib")


def test_a_compressed_extent_moves_by_what_is_stored() -> None:
    moved = translate_row(row(compressed(60)), TWO, b"")
    assert moved.extents == (compressed(360),)
    assert translate_row(row(compressed(60)), Window(VOLUME, [(0, 100)]), b"").error == ""


def test_a_compressed_extent_over_a_border_is_told_and_not_shown() -> None:
    moved = translate_row(row(compressed(61), FileExtent(4096, 0, 10)), TWO, b"")
    assert "compressed" in moved.error
    assert moved.extents == (FileExtent(4096, 300, 10),)


@pytest.mark.parametrize("window", [TWO, Window(VOLUME, [(0, 300)])])
@pytest.mark.parametrize(
    "extent", [FileExtent(0, 299, 2), FileExtent(0, 1 << 70, 1), compressed(261)]
)
def test_an_extent_outside_of_its_window_is_told_and_not_shown(
    window: Window, extent: FileExtent
) -> None:
    moved = translate_row(row(extent)._replace(error="before"), window, b"")
    assert moved.extents == ()
    assert moved.error.startswith("before; ")
    assert "outside" in moved.error


def test_a_file_does_not_get_more_extents_than_anybody_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "EXTENTS_MAX", 2)
    scattered = Window(VOLUME, [(at, 1) for at in (0, 2, 4, 6)])
    moved = translate_row(row(FileExtent(0, 0, 4)), scattered, b"")
    assert len(moved.extents) == 2
    assert "more than 2" in moved.error


def by_bytes(runs: list[tuple[int, int]], window: Window) -> list[tuple[int, int]]:
    """The same, one byte after the other."""
    places = sorted(
        window.translate(at, 1)[0][0] for first, end in runs for at in range(first, end)
    )
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, end in runs:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_runs_arrive_ascending_whatever_the_order_of_segments(seed: int) -> None:
    chance = random.Random(seed)
    borders = sorted(chance.sample(range(1025), 12))
    segments = [(a, b - a) for a, b in zip(borders[::2], borders[1::2], strict=True)]
    if seed % 3:
        chance.shuffle(segments)
    window = Window(VOLUME, segments)
    ends = sorted(chance.sample(range(window.size_bytes + 1), 10))
    runs = list(zip(ends[::2], ends[1::2], strict=True))
    got = list(translate_runs(runs, window))
    assert all(first < end for first, end in got)
    assert joined(got) == by_bytes(runs, window)


@pytest.mark.parametrize("runs", [[(0, 10), (5, 20)], [(10, 10)], [(290, 301)], [(5, 20), (0, 2)]])
@pytest.mark.parametrize("window", [TWO, Window(VOLUME, [(0, 300)])])
def test_runs_that_contradict_themselves_are_refused(
    runs: list[tuple[int, int]], window: Window
) -> None:
    with pytest.raises(DamagedError):
        list(translate_runs(runs, window))


def test_too_many_runs_to_be_sorted_mean_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "RUNS_MAX", 2)
    runs = [(0, 1), (10, 11), (20, 21)]
    assert joined(list(translate_runs(runs, TWO))) == [(100, 400)]
