"""Pages of a map as they come: what is believed of them, and what is kept when they have passed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import map_digest
from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.packed import PIECE_EXTENTS, pack_rows, pack_runs
from backplane.file_map.selection import Selection
from backplane.ids import BackupId
from controller.catalog.store import MapPageRow
from controller.core import map_pages
from controller.core.extent_runs import ExtentRuns
from controller.core.map_pages import BlockRuns, Chosen, MapPages
from tests.site.maps import Made, make_map, row, rows_of

SIZE = 64 * 512
TABLE = {"bin/sh": (1, 2), "home/a/x": (5, 6, 9), "home/b": (7,), "var/log": (12, 13)}
BACKUP = BackupId(7)


def made(**changes: Any) -> Made:
    """Return a map of four files on pages of two rows each."""
    facts: dict[str, Any] = {"volume_bytes": SIZE, "rows_per_page": 2} | changes
    rows = facts.pop("rows", rows_of(TABLE, block_bytes=512))
    return make_map(rows, facts.pop("runs", [(0, 8 * 512), (9 * 512, 14 * 512)]), **facts)


def begun(told: Made, *, chosen: Chosen | None = None) -> MapPages:
    return MapPages(told.header, blocks=SIZE // 512, block_bytes=512, chosen=chosen)


def blocks_of(runs: Iterable[ByteRun]) -> ExtentRuns:
    made = BlockRuns(512)
    made.add(runs)
    return made.runs


def taken(told: Made, *, chosen: Chosen | None = None) -> tuple[MapPages, list[MapPageRow]]:
    """Take all pages and compare them with the header."""
    pages = begun(told, chosen=chosen)
    rows = [pages.take(BACKUP, packed) for packed in told.pages]
    pages.finish()
    return pages, rows


def with_pages(told: Made, *pages: bytes, row_pages: int | None = None, **changes: Any) -> Made:
    """Return a map of other pages whose header is right about them."""
    count = told.header.row_pages if row_pages is None else row_pages
    header = told.header._replace(
        row_pages=count, run_pages=len(pages) - count, digest=map_digest(pages)
    )
    return Made(header._replace(**changes), pages)


# --- what is kept --------------------------------------------------------------------------------


def test_each_page_becomes_a_row_that_says_what_is_on_it() -> None:
    _, rows = taken(made())
    assert [(each.page, each.is_run, each.rows) for each in rows] == [
        (0, False, 2),
        (1, False, 2),
        (2, False, 2),
        (3, False, 2),
        (4, False, 1),
        (5, True, 2),
    ]
    assert [(each.first_path, each.last_path) for each in rows] == [
        (b"", b"bin"),
        (b"bin\0sh", b"home"),
        (b"home\0a", b"home\0a\0x"),
        (b"home\0b", b"var"),
        (b"var\0log", b"var\0log"),
        (b"", b""),
    ]
    assert {each.backup for each in rows} == {BACKUP}
    assert tuple(each.packed for each in rows) == made().pages


def test_the_runs_of_all_pages_are_kept() -> None:
    told = made()
    runs = [*pack_runs([(0, 512)]), *pack_runs([(512, 1024), (2048, SIZE)])]
    told = with_pages(told, *told.pages[: told.header.row_pages], *runs)
    pages, _ = taken(told)
    assert list(pages.used) == [(0, 2), (4, 60)]


def test_a_map_without_any_row_or_run_is_one() -> None:
    pages, rows = taken(made(rows=[], runs=[]))
    assert rows == []
    assert list(pages.used) == []


def test_what_the_chosen_files_need_is_all_but_the_content_of_the_others() -> None:
    chosen = Chosen(Selection(paths=("home/**",), excludes=("b",)))
    taken(made(), chosen=chosen)
    assert chosen.paths == 2, "a folder and a file"
    assert list(blocks_of(chosen.runs())) == [(0, 1), (3, 4), (9, 3)]


def test_a_row_on_several_pages_is_one_row_and_is_picked_once() -> None:
    extents = tuple(
        FileExtent(2 * n * 512, 512 * (n % 60), 512) for n in range(3 * PIECE_EXTENTS // 2)
    )
    rows = [row("", Kind.DIRECTORY), row("big", extents=extents), row("small")]
    chosen = Chosen(Selection(paths=("big",)))
    told = made(rows=rows, rows_per_page=1000)
    assert told.header.row_pages > 1
    _, pages = taken(told, chosen=chosen)
    assert chosen.paths == 1
    assert sum(each.rows for each in pages if not each.is_run) == 3


# --- what is refused -----------------------------------------------------------------------------

BAD_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"volume_bytes": SIZE + 512}, "it maps 33280 bytes, and not 32768"),
    ({"row_pages": map_pages.PAGES_MAX}, "more than"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_HEADERS)
def test_a_header_that_is_not_of_this_volume_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    told = made()
    with pytest.raises(MapDamagedError, match=words):
        begun(Made(told.header._replace(**changes), told.pages))


def outside(
    volume_byte: int, count: int = 512, *, flags: int = 0, stored: int = 0
) -> list[FileRow]:
    extent = FileExtent(0, volume_byte, count, flags, stored)
    return [row("", Kind.DIRECTORY), row("home", Kind.DIRECTORY), row("home/x", extents=(extent,))]


BAD_ROWS = [
    outside(SIZE),
    outside(SIZE - 511),
    outside(0, SIZE + 1),
    outside(-1),
    outside(SIZE - 512, 512, flags=ExtentFlag.COMPRESSED, stored=1024),
    outside(SIZE, flags=ExtentFlag.UNWRITTEN),
]


@pytest.mark.parametrize("rows", BAD_ROWS)
def test_an_extent_outside_of_the_volume_is_refused_with_its_path(rows: list[FileRow]) -> None:
    with pytest.raises(MapDamagedError, match="home/x has an extent outside of the volume"):
        taken(made(rows=rows))


@pytest.mark.parametrize(
    "rows",
    [
        outside(SIZE - 512),
        outside(-1, SIZE * 10, flags=ExtentFlag.UNWRITTEN),
        outside(0, SIZE * 10, flags=ExtentFlag.COMPRESSED, stored=512),
    ],
)
def test_an_extent_inside_or_nowhere_is_taken(rows: list[FileRow]) -> None:
    taken(made(rows=rows))


def test_pages_in_another_order_are_refused() -> None:
    told = made()
    first, second, *others = told.pages
    with pytest.raises(MapDamagedError, match="not behind those of the page before"):
        taken(with_pages(told, second, first, *others))
    with pytest.raises(MapDamagedError, match="not behind those of the page before"):
        taken(with_pages(told, first, first, second, *others, row_pages=6, rows=11))


def test_runs_in_another_order_or_outside_are_refused() -> None:
    told = made()
    rows = told.pages[: told.header.row_pages]
    late, early = pack_runs([(4096, 8192)]), pack_runs([(0, 4097)])
    with pytest.raises(MapDamagedError, match="runs are not behind"):
        taken(with_pages(told, *rows, *late, *early))
    with pytest.raises(MapDamagedError, match="runs are not behind"):
        taken(with_pages(told, *rows, *early, *late))
    with pytest.raises(MapDamagedError, match="a run outside of the volume"):
        taken(made(runs=[(0, SIZE + 1)]))


def test_a_row_that_goes_on_nowhere_is_refused() -> None:
    extents = tuple(FileExtent(2 * n * 512, 0, 512) for n in range(2 * PIECE_EXTENTS))
    whole = made(rows=[row("big", extents=extents)], rows_per_page=1000, runs=[])
    first, second = whole.pages
    (other,) = pack_rows([row("big")])
    (behind,) = pack_rows([row("other")])
    bad: list[tuple[tuple[bytes, ...], int]] = [
        ((second,), 1),
        ((first, other), 2),
        ((first, behind), 2),
        ((other, second), 2),
        ((first, first), 2),
    ]
    for pages, row_pages in bad:
        with pytest.raises(MapDamagedError, match=r"on one page and not on the other|not behind"):
            taken(with_pages(whole, *pages, row_pages=row_pages))
    with pytest.raises(MapDamagedError, match="end within a row"):
        taken(with_pages(whole, first, row_pages=1))
    with pytest.raises(MapDamagedError, match="end within a row"):
        taken(with_pages(whole, first, *pack_runs([(0, 512)]), row_pages=1))


def swapped(told: Made) -> Made:
    """Rows where runs should be."""
    return Made(told.header._replace(row_pages=0, run_pages=len(told.pages)), told.pages)


SPOILED: list[Callable[[Made], Made]] = [
    swapped,
    lambda told: Made(told.header, (told.pages[-1], *told.pages[1:])),
    lambda told: Made(told.header, (b"", *told.pages[1:])),
    lambda told: Made(told.header, (told.pages[0][:-1], *told.pages[1:])),
    lambda told: Made(told.header, (b"\0" + told.pages[0][1:], *told.pages[1:])),
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_no_page_of_its_kind_is_refused(spoil: Callable[[Made], Made]) -> None:
    with pytest.raises(MapDamagedError):
        taken(spoil(made()))


def test_other_pages_than_the_header_names_are_refused() -> None:
    told = made()
    other = made(rows=rows_of(TABLE | {"var/log": (12, 14)}, block_bytes=512))
    with pytest.raises(MapDamagedError, match="another digest"):
        taken(Made(told.header, other.pages))
    with pytest.raises(MapDamagedError, match="it has 9 rows, and not 10"):
        taken(Made(told.header._replace(rows=10), told.pages))


# --- blocks and words ----------------------------------------------------------------------------


def test_runs_of_bytes_are_rounded_out_to_blocks() -> None:
    runs = [(100, 200), (300, 513), (600, 700), (1536, 2048), (2048, 2049), (5000, 5001)]
    assert list(blocks_of(runs)) == [(0, 2), (3, 2), (9, 1)]
    assert list(blocks_of([(0, 1), (1, 2), (510, 512)])) == [(0, 1)]
    assert list(blocks_of([])) == []


def test_runs_that_share_a_block_may_come_at_different_times() -> None:
    made = BlockRuns(4096)
    for run in ((0, 4097), (4099, 8000), (8000, 8192), (8192, 8193), (20480, 20481)):
        made.add([run])
    assert list(made.runs) == [(0, 3), (5, 1)]


# --- size ----------------------------------------------------------------------------------------


def test_a_map_that_passes_leaves_its_runs_and_nothing_else_in_memory() -> None:
    """Nothing of the rows, which would be megabytes; of each run that is in use, or is not wanted, its two ends."""
    rows = [row(f"f{n:06}", extents=(FileExtent(0, 0, 512),)) for n in range(1000)]
    told = made(rows=rows, rows_per_page=1000, runs=[(0, 512)])
    page = told.pages[0]
    pages = MapPages(
        told.header._replace(row_pages=9),
        blocks=SIZE // 512,
        block_bytes=512,
        chosen=Chosen(Selection(("f0",))),
    )
    pages.take(BACKUP, page)
    tracemalloc.start()
    try:
        for _ in range(8):
            pages._last_key = b""
            pages.take(BACKUP, page)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 4 * 8 * 1000 * 16
    assert most < 3_000_000
