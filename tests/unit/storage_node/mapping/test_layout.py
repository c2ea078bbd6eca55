"""Layouts: every byte is in a file system or in a named region, and what is allocated is never too little."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import pytest

from backplane.file_map.model import PATH_BYTES_MAX, ByteRun, FileExtent, FileRow, FileSystem
from backplane.testing.file_rows import make_file, make_row
from storage_node.mapping.layout import (
    OUTSIDE,
    Layout,
    Mapped,
    Region,
    allocated,
    mapped_segments,
    regions,
    rows,
)
from storage_node.mapping.reader import BytesSource, DamagedError, MappingError
from storage_node.mapping.windows import Window

VOLUME = BytesSource(bytes(10_000))


class FakeReader:
    """Says what a test wants it to say; an exception among its words is raised."""

    def __init__(
        self,
        runs: Iterable[ByteRun | MappingError] = (),
        listed: Iterable[FileRow | MappingError] = (),
        size: int = 1 << 40,
        problems: Sequence[str] = (),
    ) -> None:
        self._runs = runs
        self._rows = listed
        self.problems = list(problems)
        self.facts = FileSystem("fake", "", "", "", 512, size, "clean", "")

    def rows(self) -> Iterator[FileRow]:
        for one in self._rows:
            if isinstance(one, MappingError):
                raise one
            yield one

    def allocated(self) -> Iterator[ByteRun]:
        for one in self._runs:
            if isinstance(one, MappingError):
                raise one
            yield one


def mapped(segments: list[tuple[int, int]], reader: FakeReader, prefix: str = "p1") -> Mapped:
    return Mapped(Window(VOLUME, segments), reader, prefix, "somewhere")


def layout(*file_systems: Mapped, labels: tuple[Region, ...] = ()) -> Layout:
    return Layout(VOLUME.size_bytes, file_systems, labels=labels)


def test_what_lies_in_no_file_system_is_allocated() -> None:
    one = mapped([(1000, 1000)], FakeReader([(0, 100), (500, 600)]))
    two = mapped([(5000, 1000)], FakeReader([(0, 10)]), "p2")
    assert list(allocated(layout(one, two))) == [
        (0, 1100),
        (1500, 1600),
        (2000, 5010),
        (6000, 10_000),
    ]


def test_runs_that_touch_are_one() -> None:
    one = mapped([(0, 5000)], FakeReader([(4000, 5000)]))
    two = mapped([(5000, 5000)], FakeReader([(0, 7), (7, 9)]), "p2")
    assert list(allocated(layout(one, two))) == [(4000, 5009)]


def test_file_systems_in_pieces_interleave() -> None:
    one = mapped([(0, 2500), (5000, 2500)], FakeReader([(2000, 3000)]))
    two = mapped([(7500, 2500), (2500, 2500)], FakeReader([(0, 1), (2499, 2501)]), "p2")
    assert list(allocated(layout(one, two))) == [
        (2000, 2501),
        (5000, 5500),
        (7500, 7501),
        (9999, 10_000),
    ]


def test_what_is_behind_the_end_of_a_file_system_is_allocated() -> None:
    one = mapped([(0, 10_000)], FakeReader([(0, 100)], size=9000), "")
    assert list(allocated(layout(one))) == [(0, 100), (9000, 10_000)]
    beyond = mapped([(0, 10_000)], FakeReader([(0, 9500)], size=9000), "")
    assert list(allocated(layout(beyond))) == [(0, 10_000)]


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 100), DamagedError("torn")],
        [(0, 100), (50, 200)],
        [(0, 100), (300, 300)],
        [(0, 100), (200, 1001)],
    ],
)
@pytest.mark.parametrize("segments", [[(0, 1000)], [(500, 500), (0, 500)]])
def test_a_reader_that_goes_wrong_leaves_the_rest_of_its_window_allocated(
    runs: list[ByteRun | MappingError], segments: list[tuple[int, int]]
) -> None:
    found = layout(mapped(segments, FakeReader(runs)))
    assert list(allocated(found)) == [(0, 10_000)]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("p1: ")


def test_rows_get_prefixes_and_places() -> None:
    listed = [make_row(b""), make_file(b"a", FileExtent(0, 10, 5), size=5)]
    one = mapped([(1000, 100)], FakeReader(listed=listed))
    two = mapped([(2000, 100)], FakeReader(listed=listed), "vg-home")
    found = list(rows(layout(one, two)))
    assert [row.path for row in found] == [b"p1", b"p1/a", b"vg-home", b"vg-home/a"]
    assert found[3].extents == (FileExtent(0, 2010, 5),)


def test_a_reader_that_breaks_off_is_told_and_the_others_go_on() -> None:
    broken = FakeReader(listed=[make_row(b""), DamagedError("torn")], problems=["a bad node"])
    found = layout(
        mapped([(0, 10)], broken), mapped([(10, 10)], FakeReader(listed=[make_row(b"")]), "p2")
    )
    assert [row.path for row in rows(found)] == [b"p1", b"p2"]
    assert found.problems == ["p1: torn", "p1: a bad node"]


def test_a_path_that_its_prefix_makes_too_long_is_told() -> None:
    listed = [make_row(b"a" * PATH_BYTES_MAX), make_row(b"b")]
    found = layout(mapped([(0, 10)], FakeReader(listed=listed)))
    assert [row.path for row in rows(found)] == [b"p1/b"]
    assert "longer" in found.problems[0]


def test_facts_say_where_it_is() -> None:
    facts = mapped([(0, 10)], FakeReader()).facts
    assert (facts.kind, facts.prefix, facts.place) == ("fake", "p1", "somewhere")


def test_two_file_systems_on_the_same_bytes_are_refused() -> None:
    one, two = mapped([(0, 100)], FakeReader()), mapped([(500, 10), (99, 10)], FakeReader())
    with pytest.raises(DamagedError, match="byte 99"):
        list(mapped_segments([one, two]))


def test_a_region_has_the_name_of_the_innermost_layer() -> None:
    labels = (
        Region(0, 10_000, "table"),
        Region(2000, 4000, "refused"),
        Region(6000, 8000, "LVM2"),
        Region(7000, 7100, "thin"),
    )
    found = layout(mapped([(1000, 500), (6000, 500)], FakeReader()), labels=labels)
    assert list(regions(found)) == [
        Region(0, 1000, "table"),
        Region(1500, 2000, "table"),
        Region(2000, 4000, "refused"),
        Region(4000, 6000, "table"),
        Region(6500, 7000, "LVM2"),
        Region(7000, 7100, "thin"),
        Region(7100, 8000, "LVM2"),
        Region(8000, 10_000, "table"),
    ]
    assert list(regions(layout())) == [Region(0, 10_000, OUTSIDE)]


@pytest.mark.parametrize("seed", range(30))
def test_regions_and_windows_are_the_whole_volume(seed: int) -> None:
    chance = random.Random(seed)
    cuts = sorted(chance.sample(range(10_001), 16))
    pieces = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    chance.shuffle(pieces)
    file_systems = [mapped(pieces[:3], FakeReader()), mapped(pieces[3:], FakeReader(), "p2")]
    labels = []
    for number in range(8):
        first = chance.randrange(10_000)
        labels.append(Region(first, chance.randrange(first + 1, 10_001), str(number)))
    found = layout(*file_systems, labels=tuple(labels))
    named = list(regions(found))
    every = sorted(
        [(one.first_byte, one.end_byte) for one in named] + list(mapped_segments(file_systems))
    )
    at = 0
    for first, end in every:
        assert first == at < end
        at = end
    assert at == 10_000
    for one in named:
        inner = [label for label in labels if label.first_byte <= one.first_byte < label.end_byte]
        assert one.what == (inner[-1].what if inner else OUTSIDE)
