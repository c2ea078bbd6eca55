"""Bodies that no writer of ours makes: each is damage, by name."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from backplane.file_map.columns import write_column
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.model import FileExtent, Kind
from backplane.file_map.row_reader import read_rows
from backplane.file_map.row_writer import write_rows
from backplane.testing.file_rows import make_file, make_row, ordinary_tree

ROW_COLUMNS = [
    "shared",
    "suffix",
    "set",
    "size",
    "mtime",
    "mtime_ns",
    "atime",
    "atime_ns",
    "ctime",
    "ctime_ns",
    "birth",
    "birth_ns",
    "links",
    "tree",
    "inode",
    "generation",
    "device",
    "target",
    "xattrs",
    "error",
    "extents",
]
EXTENT_COLUMNS = ["gap", "place", "bytes", "flags", "stored", "raw", "offset", "algorithm"]
SET_COLUMNS = ["kind", "mode", "uid", "gid"]


def body_of(*suffixes: bytes, **changes: list[int]) -> bytes:
    """Return the body of rows with these paths, written by hand, so that it can be wrong."""
    rows, texts = len(suffixes), changes.pop("texts", [])
    counts = changes.pop("counts", None)
    columns: dict[str, list[int]] = {name: [0] * rows for name in ROW_COLUMNS}
    columns["suffix"] = list(map(len, suffixes))
    extents = len(changes.get("place", []))
    columns |= {name: [0] * extents for name in EXTENT_COLUMNS}
    columns |= {"bytes": [1] * extents} | {name: [0] for name in SET_COLUMNS}
    columns |= {"entries": [], "names": [], "values": [], "texts": list(map(len, texts))}
    columns |= changes
    counts = counts or [extents, 1, len(columns["entries"]), len(columns["names"]), len(texts)]
    strings = b"".join(suffixes) + b"".join(bytes(text) for text in texts)
    strings += bytes(sum(columns["target"]) + sum(columns["names"]) + sum(columns["values"]))
    return struct.pack(">5I", *counts) + b"".join(map(write_column, columns.values())) + strings


def test_the_body_made_by_hand_is_right_when_nothing_is_changed() -> None:
    rows = read_rows(body_of(b"a", b"b"), 2)
    assert [row.path for row in rows] == [b"a", b"b"]
    assert [row.mtime_ns for row in rows] == [0, 0]


CASES: dict[str, Callable[[], bytes]] = {
    "outside of 0 to 0": lambda: body_of(b"a", b"b", set=[0, 1]),
    "outside of 0 to 18446744073709551615": lambda: body_of(b"a", b"b", size=[0, 1 << 64]),
    "outside of -1 to 999999999": lambda: body_of(b"a", b"b", ctime_ns=[0, 1_000_000_000]),
    "outside of 0 to 7": lambda: body_of(b"a", b"b", kind=[8]),
    "outside of 0 to 4095": lambda: body_of(b"a", b"b", mode=[0o10000]),
    "outside of -1 to 4294967295": lambda: body_of(b"a", b"b", uid=[-2]),
    "more than the path before it": lambda: body_of(b"a", b"b", shared=[0, 2]),
    "begins like more": lambda: body_of(b"a", b"b", shared=[1, 0]),
    "not in order": lambda: body_of(b"b", b"a"),
    "are not in order": lambda: body_of(b"a", b"a"),
    "a path of a map is none": lambda: body_of(b"..", b"a"),
    "path of a map is none": lambda: body_of(b"a", b"/", shared=[0, 1]),
    "with counts": lambda: body_of(b"a", b"b", counts=[1 << 20, 1, 0, 0, 0]),
    "a map with counts": lambda: body_of(b"a", b"b", counts=[0, 3, 0, 0, 0]),
    "as many extents": lambda: body_of(b"a", b"b", place=[0], extents=[1, 1]),
    "not as many extents as": lambda: body_of(b"a", b"b", place=[0], extents=[0, 0]),
    "as many members": lambda: body_of(b"a", b"b", entries=[2], names=[0], values=[0]),
    "beyond all files and volumes": lambda: body_of(
        b"a", b"b", place=[0, 0], extents=[2, 0], gap=[0, -2]
    ),
    "an extent beyond all files": lambda: body_of(
        b"a", b"b", place=[(1 << 63) - 1], extents=[1, 0], bytes=[2]
    ),
    "an extent beyond": lambda: body_of(
        b"a", b"b", place=[1], extents=[1, 0], stored=[(1 << 63) - 1]
    ),
    "extent beyond all": lambda: body_of(
        b"a", b"b", place=[1], extents=[1, 0], gap=[(1 << 64) - 1]
    ),
    "no UTF-8": lambda: body_of(b"a", b"b", texts=[b"\xff"]),
    "shorter": lambda: body_of(b"a", b"b")[:-1],
    "longer": lambda: body_of(b"a", b"b") + b"c",
}


@pytest.mark.parametrize("reason", CASES)
def test_what_contradicts_itself_is_damage(reason: str) -> None:
    with pytest.raises(MapDamagedError, match=reason):
        read_rows(CASES[reason](), 2)


@pytest.mark.parametrize("count", [0, 1001])
def test_a_page_has_1_to_1000_rows(count: int) -> None:
    with pytest.raises(MapDamagedError, match=f"{count} rows"):
        read_rows(body_of(b"a"), count)


def test_paths_that_swell_are_damage() -> None:
    """Each path repeats the one before: a few bytes would become 32 MB of paths."""
    suffixes = [b"a" * 65000, *[b"a"] * 500]
    shared = [0, *range(65000, 65500)]
    with pytest.raises(MapDamagedError, match="too long"):
        read_rows(body_of(*suffixes, shared=shared), 501)


def test_a_path_beyond_its_limit_is_damage() -> None:
    with pytest.raises(MapDamagedError, match="none"):
        read_rows(body_of(b"a" * 65536, b"b", shared=[0, 65536]), 2)


def test_random_bytes_in_a_body_give_rows_or_damage() -> None:
    chance = random.Random(20)
    rows = ordinary_tree(40)
    body = write_rows(rows)
    damaged = 0
    for _ in range(2000):
        changed = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            read_rows(bytes(changed), len(rows))
        except MapDamagedError:
            damaged += 1
    assert damaged > 500


def test_extents_of_one_file_and_of_several_come_back() -> None:
    rows = [
        make_row(b"", Kind.DIRECTORY),
        make_file(
            b"a", FileExtent(0, 0, 4096), FileExtent(4096, 100, 4096), FileExtent(9000, 1, 1)
        ),
        make_file(b"b"),
        make_file(b"c", FileExtent(77, 4096, 8)),
    ]
    got: list[Any] = read_rows(write_rows(rows), 4)
    assert got == rows
    assert all(type(row) is type(rows[0]) for row in got)
    assert type(got[1].extents[0]) is FileExtent
