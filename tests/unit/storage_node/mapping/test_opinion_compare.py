"""Two maps of one file system: what is the same, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity, Kind
from backplane.file_map.paths import path_key
from storage_node.mapping import opinion_compare
from storage_node.mapping.opinion_compare import (
    CONTENT,
    Comparison,
    Content,
    Difference,
    What,
    compare,
)

BLOCK = 4096


def row(path: str, *extents: FileExtent, kind: Kind = Kind.FILE, **changes: Any) -> FileRow:
    made = FileRow(
        path=path.encode(),
        kind=kind,
        size=sum(extent.byte_count for extent in extents),
        mode=0,
        uid=0,
        gid=0,
        mtime_ns=NO_TIME,
        atime_ns=NO_TIME,
        ctime_ns=NO_TIME,
        birth_ns=NO_TIME,
        links=1,
        identity=Identity(0, 1, 0),
        extents=extents,
    )
    return made._replace(**changes)


def at(file_block: int, volume_block: int, blocks: int = 1, flags: int = 0) -> FileExtent:
    return FileExtent(file_block * BLOCK, volume_block * BLOCK, blocks * BLOCK, flags)


def compared(ours: list[FileRow], library: list[FileRow]) -> Comparison:
    def key(row: FileRow) -> bytes:
        return path_key(row.path)

    return compare(sorted(ours, key=key), sorted(library, key=key))


def one(ours: FileRow, library: FileRow) -> Difference:
    (found,) = compared([ours], [library]).differences
    return found


def test_the_same_twice_agrees() -> None:
    rows = [row("", kind=Kind.DIRECTORY), row("a", at(0, 5)), row("b", at(0, 7), at(2, 9))]
    found = compared(rows, rows)
    assert found.agrees
    assert (found.paths, found.data_compared, found.data_left) == (3, 2, 0)


def test_paths_that_one_has_are_found_in_the_order_of_maps() -> None:
    """`a.b` sorts before `a/x` as bytes, and behind it in a map."""
    ours = [row("a", kind=Kind.DIRECTORY), row("a/x"), row("a.b"), row("c")]
    library = [row("a", kind=Kind.DIRECTORY), row("a.b"), row("b"), row("d", at(0, 1))]
    found = compared(ours, library)
    assert found.differences == [
        Difference(b"a/x", What.ONLY_OURS, ours="file of 0 bytes"),
        Difference(b"b", What.ONLY_LIBRARY, library="file of 0 bytes"),
        Difference(b"c", What.ONLY_OURS, ours="file of 0 bytes"),
        Difference(b"d", What.ONLY_LIBRARY, library="file of 4096 bytes"),
    ]
    assert found.paths == 2
    assert not found.agrees


@pytest.mark.parametrize("nobody", [[], [row("x")]])
def test_a_side_without_rows_has_nothing(nobody: list[FileRow]) -> None:
    assert compared(nobody, []).counts == ({What.ONLY_OURS: 1} if nobody else {})
    assert compared([], nobody).counts == ({What.ONLY_LIBRARY: 1} if nobody else {})


def test_of_another_kind_nothing_else_is_asked() -> None:
    found = one(row("a", size=5), row("a", kind=Kind.DIRECTORY, size=9))
    assert found == Difference(b"a", What.KIND, "file of 5 bytes", "directory")


def test_sizes_count_for_files_and_not_for_directories() -> None:
    assert one(row("a", size=5), row("a", size=6))[1:] == (What.SIZE, "5", "6")
    both = [row("a", kind=Kind.DIRECTORY, size=size) for size in (5, 6)]
    assert compared(both[:1], both[1:]).agrees


def test_targets_are_compared() -> None:
    link = row("a", kind=Kind.SYMLINK, target=b"x\xff")
    assert compared([link], [link]).agrees
    assert one(link, link._replace(target=b""))[1:] == (What.TARGET, "x\\xff", "")


def test_how_data_are_cut_into_extents_does_not_matter() -> None:
    ours = row("a", at(0, 5, 3), at(5, 10), size=6 * BLOCK - 100)
    library = row("a", at(5, 10, 4), at(0, 5), at(1, 6, 2), size=6 * BLOCK - 100)
    found = compared([ours], [library])
    assert found.agrees
    assert found.data_compared == 1


def test_unwritten_space_and_space_behind_the_end_is_no_data() -> None:
    ours = row("a", at(0, 5), at(1, 6, 2, ExtentFlag.UNWRITTEN), at(4, 9, 3), size=4 * BLOCK)
    assert compared([ours], [row("a", at(0, 5), size=4 * BLOCK)]).agrees


def test_a_library_that_takes_unwritten_space_for_data_is_found_out() -> None:
    ours = row("a", at(0, 5), at(1, 6, 1, ExtentFlag.UNWRITTEN))
    assert one(ours, row("a", at(0, 5, 2))) == Difference(
        b"a",
        What.DATA,
        f"bytes 0 to 4096 at byte {5 * BLOCK} of the volume",
        f"bytes 0 to 8192 at byte {5 * BLOCK} of the volume",
    )


@pytest.mark.parametrize(
    "other",
    [
        (at(0, 5), at(1, 8)),
        (at(0, 5),),
        (at(0, 5), at(2, 7)),
        (at(0, 5), at(1, 7), at(2, 8)),
        (at(0, 7), at(1, 5)),
    ],
)
def test_data_in_another_place_differ(other: tuple[FileExtent, ...]) -> None:
    size = 3 * BLOCK
    ours = row("a", at(0, 5), at(1, 7), size=size)
    assert one(ours, row("a", *other, size=size)).what == What.DATA
    assert one(row("a", *other, size=size), ours).what == What.DATA


def test_less_data_are_told_as_no_more() -> None:
    found = one(row("a", at(0, 5), size=3 * BLOCK), row("a", at(0, 5), at(2, 9), size=3 * BLOCK))
    assert found.ours == "no more data"
    assert found.library == f"bytes 8192 to 12288 at byte {9 * BLOCK} of the volume"


def of(content: Content) -> tuple[tuple[bytes, bytes], ...]:
    return ((CONTENT, content.encode()),)


@pytest.mark.parametrize(
    ("flags", "content"),
    [
        (ExtentFlag.INLINE, Content.INLINE),
        (ExtentFlag.COMPRESSED, Content.OTHER),
        (ExtentFlag.JOURNAL, Content.PLAIN),
        (0, Content.OTHER),
    ],
)
def test_what_is_not_plain_is_counted_and_left_alone(flags: int, content: Content) -> None:
    found = compared([row("a", at(0, 5, 1, flags))], [row("a", size=BLOCK, xattrs=of(content))])
    assert found.agrees
    assert (found.data_compared, found.data_left) == (0, 1)


def test_inline_content_that_a_library_takes_for_plain_is_a_difference() -> None:
    ours = row("a", FileExtent(0, 100, 10, ExtentFlag.INLINE))
    assert one(ours, row("a", size=10)) == Difference(b"a", What.CONTENT, "inline", "plain")
    empty = ours._replace(size=0, extents=())
    assert compared([empty], [row("a", xattrs=of(Content.INLINE))]).agrees


def test_shared_and_encrypted_data_are_where_they_are() -> None:
    ours = row("a", at(0, 5, 1, ExtentFlag.SHARED | ExtentFlag.ENCRYPTED))
    assert compared([ours], [row("a", at(0, 5))]).agrees
    assert one(ours, row("a", at(0, 6))).what == What.DATA


def test_an_error_of_one_is_a_difference_and_of_both_is_not() -> None:
    bad = row("a", size=9, error="a checksum is wrong")
    assert one(bad, row("a", at(0, 5), size=9))[1:] == (What.ERROR, "a checksum is wrong", "")
    assert one(row("a", size=9), bad)[1:] == (What.ERROR, "", "a checksum is wrong")
    found = compared([bad], [bad])
    assert found.agrees
    assert (found.data_compared, found.data_left) == (0, 1)


def test_all_differences_are_counted_and_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinion_compare, "DIFFERENCES_MAX", 3)
    found = compared([row(f"{number}") for number in range(10)], [])
    assert found.counts == {What.ONLY_OURS: 10}
    assert len(found.differences) == 3
