"""Records: they sort as paths do, nothing is lost in them, and a page made of them is the page made of the rows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity
from backplane.file_map.packed import row_weight
from backplane.file_map.paths import path_key
from backplane.file_map.row_writer import write_columns, write_rows
from storage_node.mapping.records import (
    columns_of_parts,
    heads_of,
    key_of,
    part_of,
    part_of_row,
    path_of,
    records_of,
    row_of,
)
from storage_node.mapping.row_codec import ALGORITHMS, decode_batch, encode_rows
from tests.site.mapping_parser import row

PATHS = st.lists(st.sampled_from([b"\1", b"\2", b"\3", b"a", b"/", b"\xff"]), max_size=6).map(
    b"".join
)
U64 = st.integers(0, (1 << 64) - 1)
I62 = st.integers(0, (1 << 62) - 1)
TIMES = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.just(NO_TIME), st.integers(1 << 63, 1 << 90)
)
SHORT = st.binary(max_size=8)
PLAIN = st.tuples(I62, st.integers(-1, (1 << 62) - 1), I62, st.sampled_from([0, 1, 2, 16])).map(
    lambda fields: FileExtent(*fields)
)
PACKED = st.builds(
    FileExtent,
    *(I62, I62, st.integers(1, 9), st.just(int(ExtentFlag.COMPRESSED))),
    *(st.integers(1, 9), I62, I62, st.sampled_from(ALGORITHMS[1:])),
)


def in_file(extents: list[FileExtent]) -> tuple[FileExtent, ...]:
    """Return extents that follow each other with gaps."""
    found, at = [], 0
    for extent in extents:
        count = extent.byte_count % 99 + 1
        found.append(extent._replace(file_byte=at + extent.file_byte % 9, byte_count=count))
        at = found[-1].file_byte + count
    return tuple(found)


ROWS = st.builds(
    FileRow,
    path=PATHS.filter(lambda path: b"//" not in b"/" + path + b"/" or not path),
    kind=st.integers(0, 7),
    size=U64,
    mode=st.integers(0, 0o7777),
    uid=st.integers(-1, (1 << 32) - 1),
    gid=st.integers(-1, (1 << 32) - 1),
    mtime_ns=TIMES,
    atime_ns=TIMES,
    ctime_ns=TIMES,
    birth_ns=TIMES,
    links=U64,
    identity=st.builds(Identity, U64, U64, U64),
    device=U64,
    target=SHORT,
    xattrs=st.lists(st.tuples(SHORT, SHORT), max_size=3).map(tuple),
    extents=st.lists(st.one_of(PLAIN, PACKED), max_size=4).map(in_file),
    error=st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
SOME = st.lists(ROWS, min_size=1, max_size=6, unique_by=lambda row: row.path)


def records(rows: list[FileRow], first: int = 0) -> list[bytes]:
    return records_of(decode_batch(encode_rows(rows)), first)


@given(SOME)
def test_a_record_is_its_row(rows: list[FileRow]) -> None:
    assert [row_of(part_of(record)) for record in records(rows)] == rows
    assert [row_of(part_of_row(each)) for each in rows] == rows


@given(SOME)
def test_records_sort_as_paths_do_and_are_written_as_rows_are(rows: list[FileRow]) -> None:
    in_order = sorted(rows, key=lambda each: path_key(each.path))
    parts = list(map(part_of, sorted(records(rows))))
    assert [path_of(key) for key, _, _ in parts] == [each.path for each in in_order]
    assert write_columns(columns_of_parts(parts)) == write_rows(in_order)


@given(SOME)
def test_heads_are_what_rows_say(rows: list[FileRow]) -> None:
    heads = heads_of(list(map(part_of, records(rows))))
    assert heads.kinds == [each.kind for each in rows]
    assert heads.sizes == [each.size for each in rows]
    assert heads.links == [each.links for each in rows]
    assert heads.weights == list(map(row_weight, rows))


@given(PATHS, PATHS)
def test_a_key_has_no_zero_and_comes_back(one: bytes, other: bytes) -> None:
    assert path_of(key_of(one)) == one
    assert b"\0" not in key_of(one)
    keys = [key_of(path) + b"\0" for path in (one, other)]
    assert (keys[0] < keys[1]) == (path_key(one) < path_key(other))


def test_rows_with_one_path_stay_in_the_order_of_their_coming() -> None:
    """Whatever else they say, and in whichever batches they came."""
    sizes = [9, 3, 7, 1]
    found = records([row("a", size=sizes[2]), row("a", size=sizes[3])], 256)
    found += records([row("a", size=sizes[0]), row("a", size=sizes[1])], 254)
    assert [row_of(part_of(record)).size for record in sorted(found)] == sizes


def test_an_error_that_is_no_text_is_made_one() -> None:
    batch: Any = decode_batch(encode_rows([row("a", error="x" * 3)]))
    [record] = records_of(batch._replace(errors=[b"a\xffb"]), 0)
    assert row_of(part_of(record)).error == "a\ufffdb"


def test_no_rows_are_no_records() -> None:
    assert records([]) == []
