"""Packed pages: where rows are cut into pages, how a long row goes on, and what is damage between pages."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backplane.file_map import packed
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.model import (
    NO_TIME,
    ExtentFlag,
    FileExtent,
    FileRow,
    Identity,
    Kind,
)
from backplane.file_map.packed import (
    join_rows,
    join_runs,
    pack_rows,
    pack_runs,
    page_range,
    row_pages,
    unpack_rows,
    unpack_runs,
)
from backplane.file_map.page import PAGE_BYTES_MAX
from backplane.file_map.row_writer import write_rows
from backplane.testing.file_rows import make_file, make_row, ordinary_tree

SCATTERED = tuple(
    FileExtent(number * 4096, (number * 7919 % 65536) * 4096, 4096) for number in range(10_000)
)


def test_a_tree_comes_back() -> None:
    rows = ordinary_tree(2500)
    pages = pack_rows(rows)
    assert [len(unpack_rows(page)) for page in pages] == [1000, 1000, len(rows) - 2000]
    assert list(join_rows(pages)) == rows


def test_no_rows_are_no_pages() -> None:
    assert pack_rows([]) == []
    assert list(join_rows([])) == []


def test_an_ordinary_file_needs_less_than_100_bytes() -> None:
    rows = ordinary_tree(3000)
    assert sum(map(len, pack_rows(rows))) < 100 * len(rows)


def test_a_page_says_which_paths_it_holds() -> None:
    rows = ordinary_tree(1500)
    first, second = pack_rows(rows)
    assert page_range(first) == (b"", rows[999].path)
    assert page_range(second) == (rows[1000].path, rows[-1].path)


def test_pages_come_as_soon_as_they_are_full() -> None:
    taken = []

    def rows() -> list[FileRow]:
        return ordinary_tree(3000)

    source = iter(rows())
    pages = row_pages(taken.append(row) or row for row in source)  # type: ignore[func-returns-value]
    next(pages)
    assert len(taken) <= 2000
    pages.close()


def test_a_row_with_very_many_extents_goes_on_over_pages() -> None:
    rows = [make_row(b"a"), make_file(b"b", *SCATTERED), make_row(b"c"), make_row(b"d")]
    pages = pack_rows(rows)
    paths = [[row.path for row in unpack_rows(page)] for page in pages]
    assert paths == [[b"a", b"b"], [b"b"], [b"b", b"c", b"d"]]
    assert list(join_rows(pages)) == rows


def test_a_row_that_goes_on_may_be_the_last() -> None:
    rows = [make_file(b"b", *SCATTERED)]
    pages = pack_rows(rows)
    assert len(pages) == 3
    assert list(join_rows(pages)) == rows


def test_a_row_with_very_large_attributes_goes_on_over_pages() -> None:
    chance = random.Random(3)
    xattrs = tuple((b"user.%02d" % number, chance.randbytes(60_000)) for number in range(20))
    rows = [make_file(b"b", *SCATTERED, xattrs=xattrs), make_row(b"c", target=b"t" * 60_000)]
    pages = pack_rows(rows)
    assert max(map(len, pages)) <= PAGE_BYTES_MAX
    assert list(join_rows(pages)) == rows


def test_the_worst_rows_stay_within_a_page() -> None:
    """As long, as random and as many as limits allow: no page is longer than what a reader takes."""
    chance = random.Random(4)
    alphabet = bytes(set(range(1, 256)) - {0x2F})
    rows = [
        make_file(
            b"%03d" % number + bytes(chance.choices(alphabet, k=60_000)),
            *(
                FileExtent(
                    chance.getrandbits(62),
                    chance.getrandbits(62),
                    chance.getrandbits(61) + 1,
                    chance.getrandbits(16),
                    chance.getrandbits(61),
                    chance.getrandbits(62),
                    chance.getrandbits(62),
                    "zlib",
                )
                for _ in range(4000)
            ),
            target=chance.randbytes(65_536),
            xattrs=((b"user.a", chance.randbytes(65_536)), (b"user.b", chance.randbytes(65_000))),
            size=1 << 63,
        )
        for number in range(4)
    ]
    pages = pack_rows(rows)
    assert max(map(len, pages)) <= PAGE_BYTES_MAX
    assert list(join_rows(pages)) == rows


def test_many_rows_that_do_not_compress_are_put_on_more_pages() -> None:
    chance = random.Random(5)
    rows = [
        make_row(
            b"%03d" % number,
            size=chance.getrandbits(64),
            mtime_ns=chance.getrandbits(90),
            target=chance.randbytes(1000),
        )
        for number in range(1000)
    ]
    pages = pack_rows(rows)
    assert len(pages) > 2
    assert list(join_rows(pages)) == rows


def test_a_page_that_came_out_too_long_is_made_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PAGE_BYTES_MAX", 6000)
    rows = ordinary_tree(900)
    pages = pack_rows(rows)
    assert len(pages) > 2
    assert list(join_rows(pages)) == rows


@pytest.mark.parametrize("paths", [(b"b", b"a"), (b"a", b"a"), (b"a", b"a-b", b"a/b")])
def test_rows_out_of_order_are_a_bug_of_who_packs(paths: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="does not come behind"):
        pack_rows(map(make_row, paths))


# --- damage between pages --------------------------------------------------------------------------


def test_pages_out_of_order_are_damage() -> None:
    first, second = pack_rows(ordinary_tree(1500))
    with pytest.raises(MapDamagedError, match="not in order"):
        list(join_rows([second, first]))
    with pytest.raises(MapDamagedError, match="not in order"):
        list(join_rows([first, first]))


LONG = pack_rows([make_row(b"a"), make_file(b"b", *SCATTERED), make_row(b"c")])
OTHER = pack_rows([make_file(b"b", *SCATTERED, uid=7), make_row(b"c")])
PLAIN = pack_rows([make_row(b"x")])


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (LONG[:2], "ends within a row"),
        (LONG[1:], "continued on one page"),
        ([LONG[0], *PLAIN], "continued on one page"),
        ([LONG[0], OTHER[2]], "goes on as another"),
        ([*PLAIN, LONG[2]], "continued on one page"),
        ([*LONG, LONG[2]], "continued on one page"),
    ],
)
def test_a_row_that_does_not_go_on_as_it_began_is_damage(pages: list[bytes], reason: str) -> None:
    with pytest.raises(MapDamagedError, match=reason):
        list(join_rows(pages))


def test_a_row_that_never_ends_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PIECES_MAX", 3)
    pages = [LONG[0], *[LONG[1]] * 50]
    with pytest.raises(MapDamagedError, match="more than 3 pieces"):
        list(join_rows(pages))


def test_a_row_with_more_extents_than_any_row_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ROW_EXTENTS_MAX", 9999)
    with pytest.raises(MapDamagedError, match="10000 extents"):
        list(join_rows(LONG))


def test_a_page_with_other_paths_than_it_says_is_damage() -> None:
    page = packed.seal_page(
        packed.PageKind.ROWS,
        1,
        write_rows([make_row(b"a", Kind.FILE)]),
        first_path=b"a",
        last_path=b"b",
    )
    with pytest.raises(MapDamagedError, match="other paths"):
        unpack_rows(page)


# --- runs ------------------------------------------------------------------------------------------


def test_runs_come_back() -> None:
    runs = [(4096 * at * 3, 4096 * (at * 3 + 1 + at % 3)) for at in range(40_000)]
    pages = pack_runs(runs)
    assert len(pages) == 3
    assert list(join_runs(pages)) == runs
    assert unpack_runs(pages[0]) == runs[: packed.RUNS_MAX]
    assert sum(map(len, pages)) < 2 * len(runs)


@pytest.mark.parametrize("runs", [[], [(0, 1)], [(0, (1 << 63) - 1)], [(1, 2), (2, 3), (9, 10)]])
def test_few_runs_come_back(runs: list[tuple[int, int]]) -> None:
    assert list(join_runs(pack_runs(runs))) == runs


@pytest.mark.parametrize(
    "runs", [[(5, 5)], [(5, 4)], [(-1, 4)], [(0, 9), (8, 10)], [(4, 5), (0, 1)], [(0, 1 << 63)]]
)
def test_runs_that_are_none_are_a_bug_of_who_packs(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="is not behind"):
        pack_runs(runs)


def test_runs_out_of_order_are_damage() -> None:
    first, second = (pack_runs([run])[0] for run in ((0, 9), (8, 12)))
    with pytest.raises(MapDamagedError, match="not in order"):
        list(join_runs([first, second]))


def runs_page(members: int, gaps: list[int], lengths: list[int], **fields: bytes) -> bytes:
    body = packed.write_column(gaps) + packed.write_column(lengths)
    return packed.seal_page(packed.PageKind.RUNS, members, body, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "page",
    [
        runs_page(0, [], []),
        runs_page(packed.RUNS_MAX + 1, [0] * (packed.RUNS_MAX + 1), [1] * (packed.RUNS_MAX + 1)),
        runs_page(1, [-1], [1]),
        runs_page(1, [0], [0]),
        runs_page(2, [0, (1 << 63) - 1], [1, 1]),
        runs_page(3, [0, 5], [1, 1]),
        runs_page(1, [0], [1], first_path=b"a"),
    ],
)
def test_a_page_of_runs_that_contradicts_itself_is_damage(page: bytes) -> None:
    with pytest.raises(MapDamagedError):
        unpack_runs(page)


def test_a_page_of_rows_is_no_page_of_runs() -> None:
    with pytest.raises(MapDamagedError, match="contradicts"):
        unpack_runs(PLAIN[0])


# --- what is on cartridges -------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[3] / "golden"
ON_TAPE = [
    make_row(b"", Kind.DIRECTORY, identity=Identity(0, 2, 7), links=3),
    make_file(
        b"home/a",
        FileExtent(0, 40960, 8192),
        FileExtent(16384, 4096, 100, int(ExtentFlag.COMPRESSED), 50, 131072, 9, "zstd"),
        identity=Identity(5, 12, 8),
        mtime_ns=-999_999_995,
        atime_ns=NO_TIME,
        xattrs=((b"user.x", b"1"), (b"user.y", b"22")),
    ),
    make_row(b"home/ab\xff", Kind.SYMLINK, target=b"a", error="seen twice", uid=-1, device=8 << 32),
]
RUNS_ON_TAPE = [(0, 8192), (8192, 12288), (40960, 49152)]


def test_pages_of_version_1_are_read_for_ever(is_rewriting: bool) -> None:
    """Cartridges have them.  What is written may change with the library that compresses; what is read may not."""
    path = GOLDEN / "file_map_1.hex"
    if is_rewriting:
        pages = [*pack_rows(ON_TAPE), *pack_runs(RUNS_ON_TAPE)]
        path.write_text("".join(f"{page.hex()}\n" for page in pages), encoding="ascii")
    rows, runs = map(bytes.fromhex, path.read_text(encoding="ascii").split())
    assert unpack_rows(rows) == ON_TAPE
    assert unpack_runs(runs) == RUNS_ON_TAPE
