"""Limits of a row, one by one and for many rows at once: both ways say the same."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from backplane.file_map.limits import (
    OWNER_MAX,
    PLACE_MAX,
    ROW_ENTRIES_MAX,
    SIZE_MAX,
    TARGET_BYTES_MAX,
    TEXT_BYTES_MAX,
    TIME_MAX,
    TIME_MIN,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    are_plain,
    row_defect,
)
from backplane.file_map.model import NO_TIME, PATH_BYTES_MAX, FileExtent, FileRow, Identity
from backplane.testing.file_rows import make_row


def is_plain(*rows: FileRow) -> bool:
    columns: list[Any] = list(zip(*rows, strict=True))
    return are_plain(columns, list(chain.from_iterable(row.extents for row in rows)))


GOOD: list[dict[str, Any]] = [
    {},
    {"size": SIZE_MAX, "links": SIZE_MAX, "device": SIZE_MAX},
    {"identity": Identity(SIZE_MAX, SIZE_MAX, SIZE_MAX)},
    {"mode": 0o7777, "uid": OWNER_MAX, "gid": -1, "kind": 7},
    {"mtime_ns": NO_TIME, "atime_ns": TIME_MAX, "ctime_ns": TIME_MIN, "birth_ns": NO_TIME},
    {"target": b"t" * TARGET_BYTES_MAX, "error": "e" * TEXT_BYTES_MAX},
    {"error": "a lone \ud800 surrogate"},
    {"xattrs": ((b"n" * XATTR_NAME_BYTES_MAX, b"v" * XATTR_VALUE_BYTES_MAX), (b"", b""))},
    {"path": b"p" * PATH_BYTES_MAX},
    {"extents": (FileExtent(0, -1, 1, 0xFFFF), FileExtent(SIZE_MAX - 1, PLACE_MAX - 1, 1))},
    {"extents": (FileExtent(5, PLACE_MAX - 9, 3, 4, 9, 100, 50, "lzo"),)},
]
BAD: list[dict[str, Any]] = [
    {"size": -1},
    {"size": SIZE_MAX + 1},
    {"links": -1},
    {"device": SIZE_MAX + 1},
    {"identity": Identity(0, -1, 0)},
    {"identity": Identity(0, 0, SIZE_MAX + 1)},
    {"kind": 8},
    {"kind": -1},
    {"mode": 0o10000},
    {"uid": -2},
    {"gid": OWNER_MAX + 1},
    {"mtime_ns": TIME_MAX + 1},
    {"birth_ns": TIME_MIN - 1},
    {"target": b"t" * (TARGET_BYTES_MAX + 1)},
    {"error": "ä" * (TEXT_BYTES_MAX // 2 + 1)},
    {"xattrs": ((b"n" * (XATTR_NAME_BYTES_MAX + 1), b""),)},
    {"xattrs": ((b"n", b"v" * (XATTR_VALUE_BYTES_MAX + 1)),)},
    {"xattrs": ((b"n", b"v"),) * (ROW_ENTRIES_MAX + 1)},
    {"path": b"p" * (PATH_BYTES_MAX + 1)},
    {"path": b"a/../b"},
    {"extents": (FileExtent(0, 0, 0),)},
    {"extents": (FileExtent(-1, 0, 1),)},
    {"extents": (FileExtent(SIZE_MAX, 0, 1),)},
    {"extents": (FileExtent(0, -2, 1),)},
    {"extents": (FileExtent(0, PLACE_MAX, 1),)},
    {"extents": (FileExtent(0, 0, 1, 0x10000),)},
    {"extents": (FileExtent(0, PLACE_MAX - 8, 3, 4, 9, 100, 50, "lzo"),)},
    {"extents": (FileExtent(0, 0, 1, 4, 1, -1, 0, "lzo"),)},
    {"extents": (FileExtent(0, 0, 1, 4, 1, 1, 0, "x" * (TEXT_BYTES_MAX + 1)),)},
]


@pytest.mark.parametrize("fields", GOOD, ids=",".join)
def test_what_a_file_system_may_say_can_be_packed(fields: dict[str, Any]) -> None:
    row = make_row(b"a")._replace(**fields)
    assert not row_defect(row)
    assert is_plain(row)
    assert is_plain(make_row(b""), row)


@pytest.mark.parametrize("fields", BAD, ids=",".join)
def test_what_no_file_system_says_is_named(fields: dict[str, Any]) -> None:
    row = make_row(b"a")._replace(**fields)
    assert row_defect(row)
    assert not is_plain(row)
    assert not is_plain(make_row(b""), row)
