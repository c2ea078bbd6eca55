"""Rows are asked again: what is right passes untouched, and every way to be wrong is named and costs the extents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.model import NAME_BYTES_MAX, NO_TIME, ExtentFlag, FileExtent, FileRow, Kind
from storage_node.mapping import checks
from storage_node.mapping.checks import Faults, RowChecks
from storage_node.mapping.limits import FAULTS_MAX, RAW_BYTES_MAX
from storage_node.mapping.row_codec import ALGORITHMS, Batch, decode_batch, encode_rows
from tests.site.mapping_parser import GOOD, row, synthetic

VOLUME = 1 << 20
BLOCK = 4096


def checked(*rows: FileRow) -> tuple[list[FileRow], list[str]]:
    faults = Faults()
    found = RowChecks(VOLUME, faults).checked(batch_of(rows))
    return found.rows(), faults.reasons()


def batch_of(rows: Sequence[FileRow]) -> Batch:
    return decode_batch(encode_rows(rows))


def with_extents(*extents: FileExtent, **changes: Any) -> FileRow:
    return row("f", extents=tuple(extents), kind=Kind.FILE, **changes)


def unit(**changes: Any) -> FileExtent:
    """Return a compressed extent that is right."""
    made = FileExtent(0, BLOCK, 8192, int(ExtentFlag.COMPRESSED), BLOCK, 8192, 0, "zlib")
    return made._replace(**changes)


RIGHT = {
    "files and directories": GOOD,
    "no time": [row("a", mtime_ns=NO_TIME)],
    "attributes": [row("a", xattrs=((b"user.x", b"y" * 5000), (b"user.z", b"")))],
    "few small attributes": [row("a", xattrs=((b"security.selinux", b"label"),))],
    "an error": [row("a", error="its inode is damaged")],
    "a long path": [row("/".join(["d" * 255] * 9))],
    "no owner": [row("a", uid=-1, gid=-1)],
    "several extents": [row("a", (BLOCK, BLOCK), (9 * BLOCK, BLOCK))],
    "a hole": [with_extents(FileExtent(0, BLOCK, BLOCK), FileExtent(1 << 40, 0, BLOCK))],
    "unwritten, nowhere": [with_extents(FileExtent(0, -1, 100, int(ExtentFlag.UNWRITTEN)))],
    "unwritten within a sector": [with_extents(FileExtent(0, 77, 100, int(ExtentFlag.UNWRITTEN)))],
    "inline": [with_extents(FileExtent(0, 77, 100, int(ExtentFlag.INLINE)))],
    "in the journal": [
        with_extents(FileExtent(0, 512 + 12, 8, int(ExtentFlag.JOURNAL | ExtentFlag.ESCAPED)))
    ],
    "compressed": [with_extents(unit())],
    "a part of a compressed unit": [with_extents(unit(raw_offset=4096, byte_count=4096))],
    "the last byte of the volume": [row("a", (VOLUME - 512, 512))],
}


@pytest.mark.parametrize("rows", RIGHT.values(), ids=RIGHT.keys())
def test_what_is_right_passes_as_it_is(rows: list[FileRow]) -> None:
    assert checked(*rows) == (rows, [])


def test_most_batches_need_no_look_at_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows are checked in seconds because of that."""
    monkeypatch.setattr(RowChecks, "_checked", lambda *_: pytest.fail("a row was looked at"))
    remarkable = ("a long path",)
    plain = [rows for name, rows in RIGHT.items() if name not in remarkable]
    for rows in (list(synthetic(200)), [], *plain):
        batch = batch_of(rows)
        assert RowChecks(VOLUME, Faults()).checked(batch) is batch


EXTENTS = st.builds(
    FileExtent,
    file_byte=st.sampled_from([0, 1, BLOCK, 3 * BLOCK, (1 << 63) - 1, (1 << 64) - 1]),
    volume_byte=st.sampled_from([-2, -1, 0, 77, BLOCK, VOLUME - 512, VOLUME, 1 << 62]),
    byte_count=st.sampled_from([0, 1, 512, BLOCK, VOLUME, 1 << 63]),
    flags=st.sampled_from([0, 1, 2, 4, 4, 5, 8, 16, 20, 32, 96, 3, 1 << 7, 1 << 15]),
    stored_bytes=st.sampled_from([0, 512, BLOCK, VOLUME, RAW_BYTES_MAX + 1]),
    raw_bytes=st.sampled_from([0, BLOCK, RAW_BYTES_MAX, RAW_BYTES_MAX + 1, 1 << 63]),
    raw_offset=st.sampled_from([0, 1, 1 << 63]),
    algorithm=st.sampled_from(ALGORITHMS),
)
ROWS = st.builds(
    row,
    st.sampled_from(["", "a", "a//b", "b/../c", "n" * (NAME_BYTES_MAX + 1)]),
    kind=st.sampled_from([0, 1, 7, 8]),
    size=st.sampled_from([0, (1 << 63) - 1, 1 << 63]),
    mode=st.sampled_from([0, 0o7777, 0o10000]),
    uid=st.sampled_from([-2, -1, 0, (1 << 32) - 1, 1 << 32]),
    birth_ns=st.sampled_from([0, NO_TIME, 1 << 80, 1 << 100]),
    extents=st.lists(EXTENTS, max_size=3).map(tuple),
)


@given(st.lists(st.one_of(ROWS, st.sampled_from(GOOD)), max_size=4))
def test_a_batch_that_passes_as_a_whole_would_pass_row_by_row(rows: list[FileRow]) -> None:
    batch = batch_of(rows)
    if RowChecks(VOLUME, Faults()).checked(batch) is not batch:
        return
    faults = Faults()
    checks = RowChecks(VOLUME, faults)
    assert [checks._checked(each) for each in batch.rows()] == batch.rows()
    assert faults.reasons() == []


@pytest.mark.parametrize("extents", [2, 3])
def test_only_extents_of_one_file_have_to_be_in_order(extents: int) -> None:
    """The next file begins at its own beginning, wherever the one before it ends."""
    places = [(at * BLOCK, BLOCK) for at in range(extents)]
    rows = [row("a", *places), row("b"), row("c", *places), row("d"), row("e", (0, BLOCK))]
    batch = batch_of(rows)
    assert RowChecks(VOLUME, Faults()).checked(batch) is batch
    upset = rows[2]._replace(extents=rows[2].extents[::-1])
    assert checked(rows[0], rows[1], upset)[0] == rows[:3]


WRONG_EXTENTS = {
    "an extent outside of the volume": [FileExtent(0, VOLUME - 512, 1024)],
    "an extent without a place": [FileExtent(0, -1, 512)],
    "an extent that begins within a sector": [FileExtent(0, 100, 512)],
    "its extents overlap": [FileExtent(0, 0, 1024), FileExtent(512, 4096, 1024)],
    "an extent with unknown flags": [FileExtent(0, 0, 512, 1 << 9)],
    "an extent that no file can have": [FileExtent((1 << 63) - 10, 0, 512)],
    "a compressed extent that contradicts itself": [unit(raw_offset=1)],
    f"a compressed extent of more than {RAW_BYTES_MAX} bytes": [
        unit(raw_bytes=RAW_BYTES_MAX + 1, byte_count=512)
    ],
    "an extent whose number of bytes is 0": [FileExtent(0, 0, 0)],
}


@pytest.mark.parametrize(("fault", "extents"), WRONG_EXTENTS.items(), ids=WRONG_EXTENTS.keys())
def test_wrong_extents_are_taken_away_and_told(fault: str, extents: list[FileExtent]) -> None:
    rows, reasons = checked(*GOOD, with_extents(*extents))
    assert rows[:-1] == GOOD
    assert rows[-1].extents == ()
    assert rows[-1].error == fault
    assert reasons == [f"{fault}: 1 rows, the first b'f'"]


@pytest.mark.parametrize(
    "wrong",
    [unit(algorithm=""), unit(stored_bytes=0), unit(byte_count=8193), unit(volume_byte=-1)],
)
def test_a_compressed_unit_has_to_be_whole(wrong: FileExtent) -> None:
    [found], reasons = checked(with_extents(wrong))
    assert found.error
    assert reasons


@pytest.mark.parametrize(
    ("fault", "extent"),
    [
        ("an extent outside of the volume", unit(volume_byte=VOLUME - 512)),
        ("an extent outside of the volume", FileExtent(0, VOLUME, 512, int(ExtentFlag.UNWRITTEN))),
        ("an extent without a place", FileExtent(0, -1, 512, int(ExtentFlag.INLINE))),
        ("an extent without a place", FileExtent(0, -1, 512, 1 | int(ExtentFlag.SHARED))),
    ],
)
def test_what_is_special_about_an_extent_excuses_no_wrong_place(
    fault: str, extent: FileExtent
) -> None:
    for rows in ([], GOOD, [with_extents(unit(), unit(file_byte=8192))]):
        [*others, found], _ = checked(*rows, with_extents(extent))
        assert others == rows
        assert (found.extents, found.error) == ((), fault)


def test_extents_that_are_not_in_order_are_put_in_order() -> None:
    first, second = FileExtent(0, 8192, 512), FileExtent(512, 0, 512)
    [found], reasons = checked(with_extents(second, first))
    assert found.extents == (first, second)
    assert not reasons


def test_an_extent_fault_is_added_to_what_the_reader_has_said() -> None:
    [found], _ = checked(with_extents(FileExtent(0, -1, 512), error="no checksum", size=7))
    assert found.error == "no checksum; an extent without a place"
    assert found.size == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 99},
        {"mode": 0o10000},
        {"uid": 1 << 32},
        {"gid": -2},
        {"mtime_ns": 1 << 100},
        {"size": 1 << 63},
        {"target": b"t" * (64 * 1024 + 1)},
        {"xattrs": ((b"n" * 2000, b""),)},
        {"xattrs": ((b"n", b"v" * 65537),)},
        {"xattrs": tuple((b"%d" % at, b"v" * 60_000) for at in range(5))},
        {"xattrs": tuple((b"%d" % at, b"") for at in range(5000))},
        {"error": "e" * 1001},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_row_with_an_impossible_field_keeps_its_name_only(changes: dict[str, Any]) -> None:
    [found], reasons = checked(row("f", (0, 512), **changes))
    assert found.path == b"f"
    assert found.error
    assert (found.extents, found.xattrs, found.target, found.uid) == ((), (), b"", -1)
    assert len(reasons) == 1
    assert checked(found) == ([found], []), "what it was replaced by is right"


@pytest.mark.parametrize(
    "path",
    [b"/a", b"a/", b"a//b", b".", b"..", b"a/./b", b"a/../b", b"a\0b", b"x" * (NAME_BYTES_MAX + 1)],
)
def test_what_is_no_path_is_dropped_and_told(path: bytes) -> None:
    rows, reasons = checked(*GOOD, row("x")._replace(path=path))
    assert rows == GOOD
    assert len(reasons) == 1


def test_too_many_extents_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EXTENTS_PER_ROW_MAX", 2)
    [found], _ = checked(row("f", (0, 512), (512, 512), (1024, 512)))
    assert found.error == "more than 2 extents"


def test_faults_are_counted_with_the_first_example() -> None:
    faults = Faults()
    for path in (b"one", b"two", b"x" * 1000):
        faults.add("wrong", path)
    assert faults.reasons() == ["wrong: 3 rows, the first b'one'"]


def test_a_stranger_cannot_invent_faults_without_end() -> None:
    faults = Faults()
    for at in range(10 * FAULTS_MAX):
        faults.add(f"wrong in way {at}", b"x" * 100_000)
    reasons = faults.reasons()
    assert len(reasons) == FAULTS_MAX + 1
    assert "something else: 450 rows" in reasons[-1]
    assert max(map(len, reasons)) < 400
