"""Rows for people and programs; names that cannot harm a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, Identity, Kind
from backplane.testing.file_rows import make_file, make_row
from controller.cli.file_rows import (
    exact_time,
    extent_document,
    flag_letters,
    flag_names,
    has_holes,
    local_time,
    long_line,
    name_fields,
    row_document,
    short_line,
    shown,
    shown_text,
)

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"plain name", "plain name"),
        ("ä→😀".encode(), "ä→😀"),
        (b"back\\slash", "back\\\\slash"),
        (b"caf\xe9", "caf\\xe9"),
        (b"\x1b[2J\r\n\x00\x7f", "\\x1b[2J\\x0d\\x0a\\x00\\x7f"),
        ("\x9b2J".encode(), "\\u009b2J"),
        ("\u202egpj.exe".encode(), "\\u202egpj.exe"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"\\xe9", "\\\\xe9"),
    ],
)
def test_a_name_is_shown_so_that_it_harms_nobody(name: bytes, expected: str) -> None:
    assert shown(name) == expected
    assert shown(name).isprintable()
    shown(name).encode()


def test_texts_of_nodes_are_shown_in_the_same_way() -> None:
    assert shown_text("bad \x1b \ud800") == "bad \\x1b \\ud800"


def test_a_path_in_json_is_text_or_has_its_bytes_beside_it() -> None:
    assert name_fields("ä\n".encode()) == {"path": "ä\n"}
    assert name_fields(b"caf\xe9") == {"path": "caf\\xe9", "path_hex": "636166e9"}


@pytest.mark.parametrize(
    ("time_ns", "exact", "local"),
    [
        (0, "1970-01-01T00:00:00.000000000Z", "1970-01-01 00:00:00"),
        (-1, "1969-12-31T23:59:59.999999999Z", "1969-12-31 23:59:59"),
        (5 * SECOND + 7, "1970-01-01T00:00:05.000000007Z", "1970-01-01 00:00:05"),
        (-60_000_000_000 * SECOND, "0068-09-03T13:20:00.000000000Z", "68-09-03 13:20:00"),
        (NO_TIME, None, "-"),
        (1 << 80, "@1208925819614629", "@1208925819614629"),
        (-(1 << 80), "@-1208925819614630", "@-1208925819614630"),
    ],
)
def test_any_time_can_be_shown(time_ns: int, exact: str | None, local: str) -> None:
    assert exact_time(time_ns) == exact
    assert local_time(time_ns).lstrip("0") == local.lstrip("0")


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (
            Kind.FILE,
            {"size": 12, "extents": (FileExtent(0, 0, 4096),)},
            "-rw-r--r--   1  1000  1000             12 2023-11-14 22:13:20 -    a",
        ),
        (
            Kind.DIRECTORY,
            {"mode": 0o1777, "uid": 0, "gid": -1, "links": 12},
            "drwxrwxrwt  12     0     -              0 2023-11-14 22:13:20 -    a/",
        ),
        (
            Kind.SYMLINK,
            {"target": b"../\x1b", "mode": 0o777},
            "lrwxrwxrwx   1  1000  1000              0 2023-11-14 22:13:20 -    a -> ../\\x1b",
        ),
        (
            Kind.BLOCK,
            {"device": 8 << 32 | 1, "mtime_ns": NO_TIME},
            "brw-r--r--   1  1000  1000           8, 1 -                   -    a",
        ),
        (
            Kind.OTHER,
            {"mode": 0o4755, "error": "odd\x07", "xattrs": ((b"user.a", b""),)},
            "?rwsr-xr-x   1  1000  1000              0 2023-11-14 22:13:20 x!   a  [odd\\x07]",
        ),
    ],
)
def test_a_long_line_is_like_that_of_ls(kind: Kind, fields: dict[str, Any], line: str) -> None:
    assert long_line(make_row(b"a", kind, **fields)) == line


def test_a_short_line_is_a_path() -> None:
    assert short_line(make_row(b"a/b\n")) == "a/b\\x0a"
    assert short_line(make_row(b"a", Kind.DIRECTORY)) == "a/"


@pytest.mark.parametrize(
    ("flag", "letter"),
    [
        (ExtentFlag.UNWRITTEN, "u"),
        (ExtentFlag.INLINE, "i"),
        (ExtentFlag.COMPRESSED, "c"),
        (ExtentFlag.ENCRYPTED, "e"),
        (ExtentFlag.SHARED, "s"),
        (ExtentFlag.JOURNAL | ExtentFlag.ESCAPED, "j"),
        (0, "-"),
    ],
)
def test_what_is_special_about_a_file_has_a_letter(flag: int, letter: str) -> None:
    assert flag_letters(make_file(b"a", FileExtent(0, 0, 4096, int(flag)))) == letter


def test_holes_have_a_letter_too() -> None:
    row = make_file(b"a", FileExtent(4096, 0, 4096), FileExtent(0, 0, 100, 1))
    assert has_holes(row)
    assert flag_letters(row) == "hu"
    assert flag_letters(make_row(b"a", size=1)) == "h"
    assert not has_holes(make_file(b"a", FileExtent(0, 0, 8192), size=5000))
    assert not has_holes(make_file(b"a", FileExtent(0, 0, 10), FileExtent(10, 0, 9), size=10))
    assert not has_holes(make_row(b"a", Kind.DIRECTORY, size=4096))


def test_flags_have_names() -> None:
    assert flag_names(0) == []
    assert flag_names(17 | 64) == ["unwritten", "shared", "escaped"]
    assert flag_names(2 | 0x300) == ["inline", "0x300"]


def test_a_row_is_a_document() -> None:
    row = make_row(
        b"caf\xe9",
        Kind.SYMLINK,
        size=3,
        mode=0o777,
        uid=-1,
        birth_ns=NO_TIME,
        links=2,
        identity=Identity(5, 12, 0),
        target=b"x\xff",
        xattrs=((b"user.a", b"1"),),
        error="bad \ud800",
    )
    document = row_document(row)
    assert json.loads(json.dumps(document)) == {
        "path": "caf\\xe9",
        "path_hex": "636166e9",
        "kind": "symlink",
        "size": 3,
        "mode": "0777",
        "uid": None,
        "gid": 1000,
        "mtime": "2023-11-14T22:13:20.000000000Z",
        "atime": "2023-11-14T22:13:20.000000000Z",
        "ctime": "2023-11-14T22:13:20.000000000Z",
        "birth": None,
        "links": 2,
        "tree": 5,
        "inode": 12,
        "flags": "x!",
        "extents_count": 0,
        "xattrs": ["user.a"],
        "error": "bad \\ud800",
        "target": "x\\xff",
    }
    assert row_document(make_row(b"a", Kind.BLOCK, device=(8 << 32) + 3))["device"] == "8:3"


def test_an_extent_is_a_document_with_blocks() -> None:
    flags = int(ExtentFlag.COMPRESSED)
    packed = FileExtent(0, 1000, 131072, flags, 1100, 131072, 0, "zlib")
    document = extent_document(packed, 512)
    assert (document["lba"], document["blocks"]) == (1, 4), "bytes 1000 to 2099"
    assert (document["flags"], document["algorithm"]) == (["compressed"], "zlib")
    plain = extent_document(FileExtent(0, 4096, 8192), 512)
    assert (plain["lba"], plain["blocks"], plain["volume_byte"]) == (8, 16, 4096)
    nowhere = extent_document(FileExtent(0, -1, 8192, 1), 512)
    assert (nowhere["lba"], nowhere["blocks"], nowhere["volume_byte"]) == (None, 0, None)
