"""Rows between processes: nothing is lost on the way, and no bytes of a stranger do more than fail."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity
from backplane.file_map.row_columns import Attributes
from storage_node.mapping import row_codec
from storage_node.mapping.row_codec import (
    ALGORITHMS,
    RowFormatError,
    decode_batch,
    decode_rows,
    encode_rows,
)
from tests.site.mapping_parser import GOOD, row, synthetic

U64 = st.integers(0, (1 << 64) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
TIMES = st.one_of(I64, st.just(NO_TIME), st.integers(-(1 << 100), 1 << 100))
SHORT = st.binary(max_size=20)
NOT_COMPRESSED = st.integers(0, 127).map(lambda flags: flags & ~int(ExtentFlag.COMPRESSED))
PLAIN = st.tuples(U64, I64, U64, NOT_COMPRESSED).map(lambda fields: FileExtent(*fields))
PACKED = st.builds(
    FileExtent,
    *(U64, I64, U64, st.just(int(ExtentFlag.COMPRESSED | ExtentFlag.SHARED))),
    *(U64, U64, U64, st.sampled_from(ALGORITHMS)),
)
ROWS = st.builds(
    FileRow,
    path=SHORT,
    kind=st.integers(0, 255),
    size=U64,
    mode=st.integers(0, 65535),
    uid=I64,
    gid=I64,
    mtime_ns=TIMES,
    atime_ns=TIMES,
    ctime_ns=TIMES,
    birth_ns=TIMES,
    links=U64,
    identity=st.builds(Identity, U64, U64, U64),
    device=U64,
    target=SHORT,
    xattrs=st.lists(st.tuples(SHORT, SHORT), max_size=3).map(tuple),
    extents=st.lists(st.one_of(PLAIN, PACKED), max_size=4).map(tuple),
    error=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
)


@given(st.lists(ROWS, max_size=5))
def test_rows_come_as_they_went(rows: list[FileRow]) -> None:
    assert decode_rows(encode_rows(rows)) == rows


def test_rows_have_their_own_types() -> None:
    [found] = decode_rows(encode_rows([row("a", (4096, 4096))]))
    assert type(found) is FileRow
    assert type(found.identity) is Identity
    assert type(found.extents[0]) is FileExtent


LABEL = ((b"security.selinux", b"system_u:object_r:user_home_t:s0"),)


def test_attributes_that_many_rows_have_come_once() -> None:
    rows = [row(f"f{at}", xattrs=LABEL) for at in range(100)]
    batch = encode_rows(rows)
    assert batch.count(b"security.selinux") == 1
    assert decode_rows(batch) == rows
    assert decode_batch(batch).sets == [(), LABEL]


@pytest.mark.parametrize("number", [2, (1 << 32) - 1])
@pytest.mark.parametrize("sets", [[()], [(), LABEL]])
def test_a_set_of_attributes_that_has_not_come_is_refused(
    monkeypatch: pytest.MonkeyPatch, sets: list[Attributes], number: int
) -> None:
    monkeypatch.setattr(row_codec, "shared", lambda *_: (sets, [number]))
    batch = encode_rows([row("f", xattrs=LABEL)])
    with pytest.raises(RowFormatError, match="has not come"):
        decode_rows(batch)


def test_rows_cannot_have_more_attributes_together_than_could_have_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often a set is used: a stranger's 64 MiB are not to become gigabytes."""
    monkeypatch.setattr(row_codec, "FRAME_BYTES_MAX", 1000)
    few = ((b"n" * 92, b""),)
    assert len(decode_rows(encode_rows([row("f", xattrs=few)] * 10))) == 10
    with pytest.raises(RowFormatError, match="attributes"):
        decode_rows(encode_rows([row("f", xattrs=few)] * 11))
    with pytest.raises(RowFormatError, match="attributes"):
        decode_rows(encode_rows([row("f", xattrs=((b"", b""),) * 20)] * 10))


def test_times_that_no_row_has_take_nothing() -> None:
    rows = [row("a", birth_ns=NO_TIME), row("b", birth_ns=NO_TIME)]
    mixed = [rows[0], row("b", birth_ns=5)]
    assert decode_rows(encode_rows(rows)) == rows
    assert decode_rows(encode_rows(mixed)) == mixed
    assert len(encode_rows(rows)) < len(encode_rows(mixed)) - 2 * 15


def test_a_row_with_a_number_that_no_row_has_is_not_sent() -> None:
    with pytest.raises(OverflowError):
        encode_rows([row("a", size=1 << 64)])
    extent = FileExtent(0, 0, 1, int(ExtentFlag.COMPRESSED), 1, 1, 0, "rot13")
    with pytest.raises(ValueError):  # noqa: PT011 - the words are those of `tuple.index`
        encode_rows([row("a", extents=(extent,))])


def test_an_unknown_algorithm_is_refused() -> None:
    extent = FileExtent(0, 0, 1, int(ExtentFlag.COMPRESSED), 1, 1, 0, "lznt1")
    batch = encode_rows([row("", extents=(extent,))])
    assert decode_rows(batch)[0].extents == (extent,)
    at = batch.rindex(b"\4")
    with pytest.raises(RowFormatError, match="algorithm"):
        decode_rows(batch[:at] + b"\5" + batch[at + 1 :])


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 50, -1])
def test_a_batch_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(RowFormatError, match="shorter"):
        decode_rows(encode_rows(GOOD)[:cut])


def test_a_batch_with_something_behind_it_is_refused() -> None:
    with pytest.raises(RowFormatError, match="longer"):
        decode_rows(encode_rows(GOOD) + b"\0")


@pytest.mark.parametrize("count", [5, 1 << 20, (1 << 32) - 1])
def test_a_count_that_lies_takes_no_memory(count: int) -> None:
    batch = count.to_bytes(4, "little") + encode_rows(GOOD)[4:]
    with pytest.raises(RowFormatError):
        decode_rows(batch)


def test_no_bytes_do_more_than_fail() -> None:
    chance = random.Random(5)
    whole = encode_rows(list(synthetic(20)))
    for _ in range(2000):
        batch = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            batch[chance.randrange(len(batch))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        try:
            rows = decode_rows(bytes(batch))
        except RowFormatError:
            continue
        assert all(type(each) is FileRow for each in rows)


def test_an_error_that_is_no_text_becomes_one() -> None:
    batch = encode_rows([row("", error="XX")]).replace(b"XX", b"\xff\xfe")
    assert decode_rows(batch)[0].error == "\ufffd\ufffd"
