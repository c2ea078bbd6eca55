"""Maps: packed rows come back, strangers' pages are rows or damage, and sets of bytes agree about what is copied."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map import packed
from backplane.file_map.changes import ChangeKind, diff
from backplane.file_map.columns import ColumnReader, write_column
from backplane.file_map.content import pieces, refuse
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.kept import KeptRuns
from backplane.file_map.limits import OWNER_MAX, SIZE_MAX, TIME_MAX, TIME_MIN, row_defect
from backplane.file_map.listing import children, owners
from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity, Kind
from backplane.file_map.packed import join_rows, join_runs, pack_rows, pack_runs, unpack_rows
from backplane.file_map.paths import is_below, may_hold, path_key
from backplane.file_map.pattern import AnyOf, Pattern
from backplane.file_map.row_reader import read_rows
from backplane.file_map.row_writer import write_rows
from backplane.file_map.runs import RunCollector, intersected, merged, subtracted
from backplane.file_map.selection import Selection
from backplane.testing.file_rows import make_row
from backplane.testing.file_truth import content_pieces

# --- rows ------------------------------------------------------------------------------------------

NUMBER = st.integers(0, 3) | st.integers(0, SIZE_MAX) | st.sampled_from((1 << 63, SIZE_MAX))
OWNER = st.integers(-1, 1001) | st.integers(-1, OWNER_MAX)
TIME = st.integers(-(10**18), 10**19) | st.integers(TIME_MIN, TIME_MAX) | st.just(NO_TIME)
TEXT = st.text(max_size=12) | st.just("a lone \udc00") | st.just("")
COMPONENT = (
    st.sampled_from((b"a", b"b", b"ab", "ü".encode(), b"\xed\xa0\x80", b"\xff", b"...", b"a\n"))
    | st.binary(min_size=1, max_size=20)
).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 0x2F})
PATH = st.lists(COMPONENT, max_size=4).map(b"/".join)
XATTR = st.tuples(st.binary(max_size=9) | st.just(b"user.a"), st.binary(max_size=30))
EXTENT = st.builds(
    FileExtent,
    file_byte=st.integers(0, 1 << 20) | st.integers(0, 1 << 63),
    volume_byte=st.integers(-1, 1 << 20) | st.integers(-1, 1 << 61),
    byte_count=st.integers(1, 1 << 16) | st.integers(1, 1 << 61),
    flags=st.integers(0, 127) | st.integers(0, 0xFFFF),
    stored_bytes=st.integers(0, 1 << 20),
    raw_bytes=st.integers(0, 1 << 20) | st.integers(0, 1 << 62),
    raw_offset=st.integers(0, 1 << 20),
    algorithm=st.sampled_from(("", "zlib", "lzo", "zstd")) | TEXT,
)
ROW = st.builds(
    FileRow,
    path=PATH,
    kind=st.integers(0, 7),
    size=NUMBER,
    mode=st.integers(0, 0o7777),
    uid=OWNER,
    gid=OWNER,
    mtime_ns=TIME,
    atime_ns=TIME,
    ctime_ns=TIME,
    birth_ns=TIME,
    links=NUMBER,
    identity=st.builds(Identity, NUMBER, NUMBER, NUMBER),
    device=NUMBER,
    target=st.binary(max_size=20),
    xattrs=st.lists(XATTR, max_size=3).map(tuple),
    extents=st.lists(EXTENT, max_size=5).map(tuple),
    error=TEXT,
)
ROWS = st.lists(ROW, max_size=30, unique_by=lambda row: row.path).map(
    lambda rows: sorted(rows, key=lambda row: path_key(row.path))
)


@given(ROWS)
def test_rows_come_back_exactly(rows: list[FileRow]) -> None:
    assert not any(map(row_defect, rows))
    got = list(join_rows(pack_rows(rows)))
    assert got == rows
    assert [type(value) for row in got for value in row] == [
        type(value) for row in rows for value in row
    ]


@given(ROWS, st.integers(1, 4), st.integers(100, 2000))
def test_rows_come_back_however_they_are_cut(
    rows: list[FileRow], extents: int, weight: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PIECE_EXTENTS", extents)
        patch.setattr(packed, "PIECE_XATTR_BYTES", 50)
        patch.setattr(packed, "PIECE_WEIGHT", weight // 4)
        patch.setattr(packed, "PAGE_WEIGHT", weight)
        pages = pack_rows(rows)
        assert list(join_rows(pages)) == rows
        for page in pages:
            held = [row.path for row in unpack_rows(page)]
            assert packed.page_range(page) == (held[0], held[-1])


@given(st.lists(st.integers(-(1 << 127), (1 << 127) - 1) | st.integers(-5, 5000), max_size=20))
def test_columns_come_back(values: list[int]) -> None:
    for neighbour in (None, [number * 7 for number in values]):
        if neighbour and any(abs(number) >= 1 << 126 for number in (*values, *neighbour)):
            continue
        reader = ColumnReader(write_column(values, neighbour))
        assert list(reader.numbers(len(values), -(1 << 127), 1 << 127, neighbour)) == values
        reader.finish()


@given(ROWS.filter(bool), st.data())
def test_a_changed_body_is_rows_or_damage(rows: list[FileRow], data: st.DataObject) -> None:
    """The checksum is left out: somebody may compute it as well as we do."""
    body = bytearray(write_rows(rows))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = read_rows(bytes(body), len(rows))
    except MapDamagedError:
        return
    assert not any(map(row_defect, got))
    assert list(join_rows(pack_rows(got))) == got


@given(st.binary(max_size=400), st.integers(0, 1001))
def test_any_bytes_are_damage(body: bytes, count: int) -> None:
    with pytest.raises(MapDamagedError):
        read_rows(body, count)
    with pytest.raises(MapDamagedError):
        unpack_rows(body)


# --- paths -----------------------------------------------------------------------------------------


@given(st.lists(PATH, min_size=1, unique=True), PATH)
def test_a_folder_is_one_stretch_of_the_map(paths: list[bytes], folder: bytes) -> None:
    ordered = sorted(paths, key=path_key)
    inside = [path == folder or is_below(path, folder) for path in ordered]
    assert sum(1 for before, after in pairwise([False, *inside]) if after and not before) <= 1
    assert may_hold(ordered[0], ordered[-1], folder) or not any(inside)


@given(ROWS, PATH)
def test_listings_agree_with_a_look_at_every_row(rows: list[FileRow], folder: bytes) -> None:
    inside = [row for row in rows if is_below(row.path, folder)]
    itself = [row for row in rows if row.path == folder and row.kind != Kind.DIRECTORY]
    assert list(children(iter(rows), folder, recursive=True)) == itself + inside
    depth = folder.count(b"/") + bool(folder)
    assert list(children(iter(rows), folder)) == itself + [
        row for row in inside if row.path.count(b"/") == depth
    ]


# --- patterns --------------------------------------------------------------------------------------

PATTERN_COMPONENT = st.text("ab*?", min_size=1, max_size=5) | st.just("**")
NAME = st.text("abc", min_size=1, max_size=5)


def means(pattern: list[str], path: list[str]) -> bool:
    """Match components the slow and obvious way."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(means(pattern[1:], path[at:]) for at in range(len(path) + 1))
    return bool(path) and is_like(pattern[0], path[0]) and means(pattern[1:], path[1:])


def is_like(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(is_like(pattern[1:], name[at:]) for at in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and is_like(pattern[1:], name[1:])


@given(st.lists(PATTERN_COMPONENT, min_size=1, max_size=5), st.lists(NAME, min_size=1, max_size=6))
def test_patterns_agree_with_trying_everything(pattern: list[str], path: list[str]) -> None:
    compiled = Pattern("/" + "/".join(pattern))
    slow = ["**", *pattern[1:]] if pattern[0] == "**" else pattern
    for is_directory in (False, True):
        text = "/".join(path).encode()
        assert compiled.matches(text, is_directory=is_directory) == means(slow, path)
    above = [path[:count] for count in range(1, len(path) + 1)]
    assert AnyOf([compiled]).picks("/".join(path).encode()) == any(
        means(slow, folder) for folder in above
    )


# --- runs ------------------------------------------------------------------------------------------

BYTE = st.integers(0, 60)
RUN = st.tuples(BYTE, BYTE).map(lambda pair: (min(pair), max(pair) + 1))
RUNS = st.lists(RUN, max_size=8)


def bytes_of(runs: list[tuple[int, int]]) -> set[int]:
    return {byte for first, end in runs for byte in range(first, end)}


def require_joined(runs: list[tuple[int, int]]) -> None:
    assert all(first < end for first, end in runs)
    assert all(before[1] < after[0] for before, after in pairwise(runs))


@given(RUNS, RUNS)
def test_runs_are_the_bytes_of_sets(
    some: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    collector = RunCollector()
    for run in some:
        collector.add(*run)
    left, right = list(collector.runs()), list(merged(sorted(others)))
    require_joined(left)
    assert bytes_of(left) == bytes_of(some)
    assert bytes_of(list(intersected(left, right))) == bytes_of(some) & bytes_of(others)
    assert bytes_of(list(subtracted(left, right))) == bytes_of(some) - bytes_of(others)
    assert list(join_runs(pack_runs(left))) == left


SMALL_EXTENT = st.builds(
    FileExtent,
    file_byte=st.just(0),
    volume_byte=st.integers(-1, 60),
    byte_count=st.integers(1, 20),
    flags=st.sampled_from((0, 0, 0, 1, 2, 4, 8, 16, 17, 32, 96)),
    stored_bytes=st.integers(1, 5),
)
SMALL_FILE = st.builds(
    make_row,
    st.sampled_from((b"in/a", b"in/b", b"in/out/c", b"d", b"e")),
    st.sampled_from((Kind.FILE, Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)),
    extents=st.lists(SMALL_EXTENT, max_size=3).map(tuple),
    error=st.sampled_from(("", "", "", "torn")),
)


def places(row: FileRow, flags: int) -> set[int]:
    """Return the bytes of the volume of all extents whose flags, of these four, are exactly these."""
    found = set[int]()
    for extent in row.extents:
        if extent.volume_byte >= 0 and extent.flags & 0b100011 == flags:
            count = extent.stored_bytes if extent.flags & 4 else extent.byte_count
            found |= set(range(extent.volume_byte, extent.volume_byte + count))
    return found


@given(RUNS, st.lists(SMALL_FILE, max_size=6))
def test_what_is_kept_is_what_sets_of_bytes_say(
    allocated: list[tuple[int, int]], rows: list[FileRow]
) -> None:
    selection = Selection(("in",), ("out",))
    collector = KeptRuns(selection)
    needed, dropped = set[int](), set[int]()
    for row in rows:
        collector.add(row)
        if row.kind != Kind.FILE:
            continue
        data, unwritten = places(row, 0), places(row, int(ExtentFlag.UNWRITTEN))
        if row.error or row.path in (b"in/a", b"in/b"):
            needed |= data
        else:
            dropped |= data
        if not row.error:
            dropped |= unwritten
    in_use = list(merged(sorted(allocated)))
    kept = collector.kept(in_use)
    require_joined(kept)
    assert bytes_of(kept) == bytes_of(in_use) - (dropped - needed)


@given(RUN, st.lists(SMALL_FILE, max_size=6))
def test_owners_are_those_whose_extents_have_the_bytes(
    run: tuple[int, int], rows: list[FileRow]
) -> None:
    asked = bytes_of([run])
    expected = {
        (at, byte)
        for at, row in enumerate(rows)
        for flags in (0, 1, 2, 3, 32)
        for byte in places(row, flags) & asked
    }
    numbered = [row._replace(links=at) for at, row in enumerate(rows)]
    got = {
        (owner.row.links, byte)
        for owner in owners(numbered, *run)
        for byte in range(owner.volume_byte, owner.volume_byte + owner.byte_count)
        if byte in asked
    }
    assert got == expected


# --- content and changes ---------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(1, 9),
            st.integers(0, 90),
            st.sampled_from((0, 1, 2, 16, 96)),
        ),
        max_size=5,
    ),
    st.integers(0, 60),
)
def test_pieces_give_what_extents_give(extents: list[tuple[int, int, int, int]], size: int) -> None:
    volume = bytes(range(1, 101))
    made, at = [], 0
    for gap, count, place, flags in extents:
        made.append(FileExtent(at + gap, place, count, flags))
        at += gap + count
    row = make_row(b"f", size=size, extents=tuple(reversed(made)))
    assert refuse(row) == ""
    content = b""
    for piece in pieces(row):
        assert piece.file_byte == len(content)
        if piece.volume_byte is None:
            content += bytes(piece.byte_count)
            continue
        data = volume[piece.volume_byte : piece.volume_byte + piece.byte_count]
        content += (b"\xc0\x3b\x39\x98" + data[4:])[: len(data)] if piece.is_escaped else data
    assert content == b"".join(content_pieces(row, lambda at, n: volume[at : at + n]))


@given(ROWS, ROWS)
def test_changes_lead_from_one_map_to_the_other(old: list[FileRow], new: list[FileRow]) -> None:
    before, after = {row.path: row for row in old}, {row.path: row for row in new}
    found = list(diff(iter(old), iter(new)))
    assert [path_key(change.path) for change in found] == sorted(
        {path_key(change.path) for change in found}
    )
    added = {change.path for change in found if change.kind == ChangeKind.ADDED}
    removed = {change.path for change in found if change.kind == ChangeKind.REMOVED}
    assert added == after.keys() - before.keys()
    assert removed == before.keys() - after.keys()
    for change in found:
        assert (change.before, change.after) == (before.get(change.path), after.get(change.path))
    assert not list(diff(iter(old), iter(old))) or any(row.error for row in old)
