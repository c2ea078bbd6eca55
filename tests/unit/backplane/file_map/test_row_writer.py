"""The body of a page, as docs/file-map.md describes it: read here with `struct` and nothing of ours."""

from __future__ import annotations

import struct

import pytest

from backplane.file_map import row_writer
from backplane.file_map.model import NO_TIME, FileExtent, Identity, Kind
from backplane.file_map.row_writer import write_rows
from backplane.testing.file_rows import make_file, make_row

SECOND = 1_000_000_000


def columns_of(body: bytes, rows: int) -> tuple[list[list[int]], bytes]:
    """Return all columns of a body, as written (none of them beside another), and the strings behind them."""
    extents, sets, xattrs, entries, texts = struct.unpack(">5I", body[:20])
    lengths = [rows] * 21 + [extents] * 8 + [sets] * 4 + [xattrs] + [entries] * 2 + [texts]
    at, columns = 20, []
    for count in lengths:
        width, form, factor, base, start = struct.unpack(">BBQ16s16s", body[at : at + 42])
        at += 42
        planes = [body[at + count * plane : at + count * (plane + 1)] for plane in range(width)]
        at += count * width
        value = int.from_bytes(start, "big", signed=True)
        column = []
        for number in range(count):
            stored = int.from_bytes(bytes(plane[number] for plane in planes), "big")
            step = int.from_bytes(base, "big", signed=True) + factor * stored
            value = value + step if form == 1 else step
            column.append(value)
        assert form in (0, 1)
        columns.append(column)
    return columns, body[at:]


ROWS = [
    make_row(b"", Kind.DIRECTORY, identity=Identity(0, 2, 7), links=3),
    make_file(
        b"home/a",
        FileExtent(0, 40960, 8192),
        FileExtent(16384, 4096, 100, 4, 50, 131072, 9, "zstd"),
        identity=Identity(5, 12, 8),
        mtime_ns=-SECOND + 5,
        atime_ns=NO_TIME,
        ctime_ns=3 * SECOND,
        birth_ns=0,
        xattrs=((b"user.x", b"1"), (b"user.y", b"22")),
    ),
    make_row(b"home/ab", Kind.SYMLINK, target=b"a", error="seen twice", uid=-1, device=8 << 32),
]


def test_every_column_is_where_the_page_says() -> None:
    columns, strings = columns_of(write_rows(ROWS), 3)
    t = 1_700_000_000
    assert columns[:4] == [[0, 0, 6], [0, 6, 1], [0, 1, 2], [0, 16484, 0]]
    assert columns[4:6] == [[t, -1, t], [0, 5, 0]], "modified"
    assert columns[6:8] == [[t, 0, t], [0, -1, 0]], "accessed"
    assert columns[8:10] == [[t, 3, t], [0, 0, 0]], "changed"
    assert columns[10:12] == [[t, 0, t], [0, 0, 0]], "born"
    assert columns[12:17] == [[3, 1, 1], [0, 5, 0], [2, 12, 12], [7, 8, 0], [0, 0, 8 << 32]]
    assert columns[17:21] == [[0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 2, 0]]
    assert columns[21:25] == [[0, 8192], [40960, 4096], [8192, 100], [0, 4]]
    assert columns[25:29] == [[0, 50], [0, 131072], [0, 9], [0, 2]]
    assert columns[29:33] == [
        [1, 0, 2],
        [0o755, 0o644, 0o644],
        [1000, 1000, -1],
        [1000, 1000, 1000],
    ]
    assert columns[33:] == [[2], [6, 6], [1, 2], [10, 4]]
    assert strings == b"home/aba" + b"user.xuser.y" + b"122" + b"seen twice" + b"zstd"


def test_what_rows_share_is_written_once() -> None:
    label = ((b"security.selinux", b"system_u:object_r:user_home_t:s0\0"),)
    rows = [make_row(b"f%03d" % number, xattrs=label) for number in range(100)]
    body = write_rows(rows)
    assert body.count(b"security.selinux") == 1
    assert struct.unpack(">5I", body[:20]) == (0, 1, 1, 1, 0)


def test_a_row_with_a_defect_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"b'a': no size is -1"):
        write_rows([make_row(b""), make_row(b"a", size=-1)])


@pytest.mark.parametrize(
    "paths",
    [
        [b""],
        [b"", b"a"],
        [b"a", b"ab", b"ab/c", b"abc"],
        [b"a/b", b"a/c", b"b"],
        [b"x" * 900, b"y"],
    ],
)
def test_a_path_is_written_as_what_it_has_of_its_own(
    paths: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the longest of them is: very long ones are compared in another way."""
    rows = [make_row(path) for path in paths]
    body = write_rows(rows)
    columns, strings = columns_of(body, len(rows))
    rest = b"".join(path[count:] for path, count in zip(paths, columns[0], strict=True))
    assert strings == rest
    for before, path, count in zip([b"", *paths], paths, columns[0], strict=False):
        assert path[:count] == before[:count]
        assert path[count : count + 1] != before[count : count + 1] or path == before
    monkeypatch.setattr(row_writer, "_PADDED_BYTES_MAX", 1)
    assert write_rows(rows) == body
