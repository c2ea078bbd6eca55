"""What a backup of chosen files copies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backplane.file_map.kept import KeptRuns, extent_run
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.selection import Selection
from backplane.testing.file_rows import make_file, make_row

BLOCK = 4096
CHOSEN = Selection(("a", "d"))


def blocks(*numbers: int) -> list[tuple[int, int]]:
    """Return runs of single blocks, joined by nobody."""
    return [(number * BLOCK, (number + 1) * BLOCK) for number in numbers]


def at(block: int, count: int = 1, flags: int = 0, **fields: object) -> FileExtent:
    return FileExtent(0, block * BLOCK, count * BLOCK, flags, **fields)  # type: ignore[arg-type]


def kept(*rows: FileRow, allocated: tuple[int, ...] = (0, 2, 4, 6, 8)) -> list[tuple[int, int]]:
    collector = KeptRuns(CHOSEN)
    for row in rows:
        collector.add(row)
    return collector.kept(blocks(*allocated))


def test_metadata_and_chosen_files_are_kept() -> None:
    rows = (make_file(b"a", at(2)), make_file(b"b", at(4)), make_file(b"c", at(6)))
    assert kept(*rows) == blocks(0, 2, 8)


def test_without_files_all_that_is_in_use_is_kept() -> None:
    assert kept(allocated=(0, 1, 5)) == [(0, 2 * BLOCK), *blocks(5)]


def test_what_a_chosen_file_owns_stays_whoever_else_owns_it() -> None:
    shared = int(ExtentFlag.SHARED)
    rows = (make_file(b"b", at(4, 3, shared)), make_file(b"a", at(6, 1, shared)))
    assert kept(*rows) == kept(*reversed(rows)) == blocks(0, 2, 6, 8)


def test_unwritten_space_is_left_out_even_of_a_chosen_file() -> None:
    unwritten = int(ExtentFlag.UNWRITTEN)
    rows = (make_file(b"a", at(2), at(4, 1, unwritten)), make_file(b"b", at(6, 1, unwritten)))
    assert kept(*rows) == blocks(0, 2, 8)


@pytest.mark.parametrize("flag", [ExtentFlag.INLINE, ExtentFlag.JOURNAL])
def test_content_inside_metadata_stays(flag: ExtentFlag) -> None:
    assert kept(make_file(b"b", at(4, 1, int(flag)))) == blocks(0, 2, 4, 6, 8)


def test_nothing_is_left_out_on_the_word_of_a_row_with_an_error() -> None:
    unwritten = int(ExtentFlag.UNWRITTEN)
    rows = (make_file(b"b", at(4), at(6, 1, unwritten), error="torn"), make_file(b"c", at(4)))
    assert kept(*rows) == blocks(0, 2, 4, 6, 8)


def test_directories_links_and_devices_keep_their_blocks() -> None:
    kinds = (Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO, Kind.BLOCK, Kind.OTHER)
    rows = [make_row(b"x%d" % kind, kind, extents=(at(4),)) for kind in kinds]
    assert kept(*rows) == blocks(0, 2, 4, 6, 8)


def test_a_compressed_unit_is_as_long_as_it_is_stored() -> None:
    packed = FileExtent(0, 2 * BLOCK, 32 * BLOCK, int(ExtentFlag.COMPRESSED), BLOCK, 32 * BLOCK)
    assert extent_run(packed) == (2 * BLOCK, 3 * BLOCK)
    assert kept(make_file(b"b", packed)) == blocks(0, 4, 6, 8)


def test_an_extent_without_a_place_changes_nothing() -> None:
    assert kept(make_file(b"b", FileExtent(0, -1, BLOCK))) == blocks(0, 2, 4, 6, 8)


def test_what_nobody_has_allocated_is_not_kept() -> None:
    assert kept(make_file(b"a", at(3, 1))) == blocks(0, 2, 4, 6, 8)


def test_whether_anything_was_chosen_is_told() -> None:
    collector = KeptRuns(CHOSEN)
    collector.add(make_file(b"b", at(2)))
    collector.add(make_row(b"d", Kind.DIRECTORY))
    assert not collector.has_picked
    collector.add(make_file(b"d/x"))
    assert collector.has_picked


def test_runs_come_before_all_of_them_are_known() -> None:
    """A million scattered files are neither listed nor done at once."""
    collector = KeptRuns(CHOSEN)
    for number in range(1000):
        collector.add(make_file(b"b", at(10 * number)))
        collector.add(make_file(b"a", at(10 * number + 2)))
    taken = 0

    def allocated() -> Iterator[tuple[int, int]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield (10 * number * BLOCK, (10 * number + 5) * BLOCK)

    runs = collector.iterate(allocated())
    assert next(runs) == (BLOCK, 5 * BLOCK)
    assert next(runs) == (11 * BLOCK, 15 * BLOCK)
    assert taken < 10
    assert len(list(runs)) == 998
