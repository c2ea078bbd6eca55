"""From the blocks of a backup to those of prepared files: what is moved, and what is refused."""

from __future__ import annotations

import random

import pytest

from backplane.errors import RefusedError
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from controller.core.chain import Picks
from controller.core.translation import (
    GROWTH_BYTES_MAX,
    Move,
    Moves,
    content_of,
    moves_of,
    refuse_source,
    refuse_target,
    translated,
)
from tests.site.maps import row

B = 512


def extent(number: int, lba: int, blocks: int, flags: int = 0) -> FileExtent:
    return FileExtent(number * B, lba * B, blocks * B, flags)


def file(*extents: FileExtent, size: int = 0, path: str = "a") -> FileRow:
    return row(path, extents=extents, size=size)


def source(made: FileRow) -> str:
    return refuse_source(made, block_bytes=B)


def target(made: FileRow, size: int = 4 * B) -> str:
    return refuse_target(made, size=size, block_bytes=B)


def test_each_block_goes_where_the_prepared_file_has_room_for_it() -> None:
    old = file(extent(0, 100, 2), extent(2, 7, 2))
    new = file(extent(0, 55, 1), extent(1, 90, 3))
    assert moves_of(old, new, block_bytes=B) == [
        Move(100, 55, 1),
        Move(101, 90, 1),
        Move(7, 91, 2),
    ]


def test_holes_and_unwritten_space_are_not_moved() -> None:
    old = file(extent(1, 100, 1), extent(2, 200, 1, ExtentFlag.UNWRITTEN), size=5 * B)
    new = file(extent(0, 50, 5))
    assert moves_of(old, new, block_bytes=B) == [Move(100, 51, 1)]


def test_a_last_block_that_is_not_full_is_moved_whole_and_none_behind_it() -> None:
    old = file(extent(0, 100, 8), size=3 * B + 1)
    new = file(extent(0, 50, 8))
    assert source(old) == target(new, old.size) == ""
    assert moves_of(old, new, block_bytes=B) == [Move(100, 50, 4)]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (ExtentFlag.INLINE, "inline"),
        (ExtentFlag.COMPRESSED, "compressed"),
        (ExtentFlag.JOURNAL, "journal"),
        (ExtentFlag.JOURNAL | ExtentFlag.ESCAPED, "journal|escaped"),
        (ExtentFlag.ENCRYPTED, "encrypted"),
    ],
)
def test_content_that_is_not_plain_is_refused(flags: int, word: str) -> None:
    odd = extent(1, 200, 1, flags)
    if flags & ExtentFlag.COMPRESSED:
        odd = odd._replace(stored_bytes=B, raw_bytes=B, algorithm="zlib")
    assert word in source(file(extent(0, 100, 1), odd))


def test_content_that_shares_its_blocks_is_as_good_to_read_as_any() -> None:
    assert source(file(extent(0, 100, 1, ExtentFlag.SHARED))) == ""


def test_content_within_blocks_is_refused() -> None:
    for odd in (
        FileExtent(0, 100, 4 * B),
        FileExtent(256, 100 * B, 4 * B - 256),
        FileExtent(0, 100 * B, 256),
    ):
        assert "smaller than those of the volume" in source(file(odd, size=4 * B))


def test_what_is_no_plain_file_of_the_right_size_is_no_prepared_one() -> None:
    good = file(extent(0, 50, 4))
    assert target(good) == ""
    assert "not to be trusted" in target(good._replace(error="it is odd"))
    assert "no file of one name" in target(good._replace(links=2))
    assert "no file of one name" in target(good._replace(kind=Kind.SYMLINK))
    assert "has 2048 bytes, for 2049" in target(good, 4 * B + 1)
    assert "bytes, for 1" in target(good._replace(size=GROWTH_BYTES_MAX + 2), 1)


@pytest.mark.parametrize("flag", list(ExtentFlag))
def test_a_prepared_file_with_a_block_that_is_not_plain_is_refused(flag: ExtentFlag) -> None:
    assert flag.name is not None
    assert flag.name.lower() in target(file(extent(0, 50, 2), extent(2, 60, 2, flag)))


def test_a_prepared_file_with_holes_or_parts_of_blocks_is_refused() -> None:
    assert "hole" in target(file(extent(1, 50, 3), size=4 * B))
    assert "hole" in target(file(extent(0, 50, 1), extent(2, 60, 2), size=4 * B))
    assert "overlap" in target(file(extent(0, 50, 2), extent(1, 60, 3), size=4 * B))
    assert "blocks for 1536 of 2048" in target(file(extent(0, 50, 3), size=4 * B))
    for odd in (
        FileExtent(0, 50 * B + 1, 4 * B),
        FileExtent(0, 0, 4 * B),
        FileExtent(0, -1, 4 * B),
    ):
        assert "smaller" in target(file(odd, size=4 * B))
    assert "smaller" in target(file(FileExtent(0, 50 * B, 4 * B + 1), size=4 * B))


def test_no_block_is_taken_or_given_twice() -> None:
    moves = Moves()
    moves.add([Move(100, 50, 2), Move(10, 60, 1)])
    with pytest.raises(RefusedError, match="shares blocks with another file"):
        moves.add([Move(101, 70, 1)])
    with pytest.raises(RefusedError, match="prepared file shares"):
        moves.add([Move(200, 51, 1)])
    with pytest.raises(RefusedError, match="prepared file shares"):
        moves.add([Move(200, 80, 2), Move(300, 81, 1)])
    moves.add([Move(102, 52, 1)])
    assert moves.sorted() == [Move(10, 60, 1), Move(100, 50, 2), Move(102, 52, 1)]
    assert list(moves.wanted()) == [(10, 1), (100, 3)]


def test_picks_are_translated_in_the_order_of_the_stream() -> None:
    picks = Picks([(0, 100, 4), (10, 7, 3)])
    moves = [Move(7, 40, 2), Move(101, 20, 1), Move(102, 90, 5)]
    assert list(translated(picks, moves).slice(0, 99)) == [
        (1, 20, 1),
        (2, 90, 2),
        (10, 40, 2),
    ]


def test_whatever_the_pieces_every_byte_goes_where_it_belongs() -> None:
    """Random files, cut at random on both sides, against a model that knows single blocks."""
    dice = random.Random(4)
    for _ in range(200):
        blocks = dice.randint(1, 40)
        old, new = cut(dice, blocks, holes=True), cut(dice, blocks, holes=False)
        made = moves_of(old, new, block_bytes=B)
        wanted = {lba: place for place, lba in blocks_by_place(old).items()}
        room = blocks_by_place(new)
        moved = {m.lba + n: m.target_lba + n for m in made for n in range(m.blocks)}
        assert moved == {lba: room[place] for lba, place in wanted.items()}


def blocks_by_place(made: FileRow) -> dict[int, int]:
    return {
        run.file_byte // B + n: run.volume_byte // B + n
        for run in content_of(made)
        for n in range(-(-run.byte_count // B))
    }


def cut(dice: random.Random, blocks: int, *, holes: bool) -> FileRow:
    places = list(range(1, 200, 41))
    dice.shuffle(places)
    extents, at = [], 0
    for place in places:
        count = blocks - at if place == places[-1] else dice.randint(0, blocks - at)
        if count and not (holes and dice.random() < 0.3):
            extents.append(extent(at, place, count))
        at += count
    return file(*extents, size=blocks * B)
