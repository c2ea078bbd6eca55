"""Rows of forged volumes: what is told of names and inodes that do not fit together."""

from __future__ import annotations

import pytest

from backplane.file_map.model import FileExtent, FileRow, Identity, Kind
from backplane.testing.xfs_forge import ROOT, ForgedVolume, extent, sealed
from storage_node.mapping.reader import BytesSource
from storage_node.mapping.xfs import XfsReader

FILE = 0o100644
FOLDER = 0o040755

VERSIONS = pytest.mark.parametrize("version", [4, 5])


def read(volume: ForgedVolume) -> tuple[dict[bytes, FileRow], list[str]]:
    reader = XfsReader(BytesSource(bytes(volume.image())))
    rows = list(reader.rows())
    found = {row.path: row for row in rows}
    assert len(found) == len(rows)
    return found, reader.problems


def errors(volume: ForgedVolume) -> dict[bytes, str]:
    return {path: row.error for path, row in read(volume)[0].items() if row.error}


def volume(*entries: tuple[bytes, int, int], version: int = 5) -> ForgedVolume:
    made = ForgedVolume(version=version)
    made.add_directory(ROOT, entries)
    return made


@VERSIONS
def test_a_small_tree_is_read(version: int) -> None:
    made = volume((b"a", 65, 1), (b"d", 66, 2), (b"b", 65, 1), version=version)
    made.add_directory(66, [(b"e", 67, 2), (b"f", 68, 6)])
    made.add_directory(67, [(b"link", 69, 7)])
    made.add_inode(65, FILE, extent(0, 100, 2), size=5000, count=1, links=2)
    made.add_inode(68, 0o140644, form=0)
    made.add_inode(69, 0o120777, b"target", form=1, size=6)
    rows, problems = read(made)
    assert problems == []
    assert rows.keys() == {b"", b"a", b"b", b"d", b"d/e", b"d/f", b"d/e/link"}
    assert not any(row.error for row in rows.values())
    assert rows[b"a"]._replace(path=b"b") == rows[b"b"]
    assert rows[b"a"].extents == (FileExtent(0, 100 * 4096, 2 * 4096),)
    assert rows[b"a"].identity == Identity(0, 65, 77)
    assert (rows[b"a"].uid, rows[b"a"].gid, rows[b"a"].links) == (1000, 100, 2)
    assert rows[b"d/e/link"].target == b"target"
    assert rows[b"d/f"].kind == Kind.SOCKET


def test_deleted_files_that_are_still_open_are_left_out() -> None:
    made = volume((b"a", 65, 1))
    made.add_inode(65, FILE)
    made.add_inode(66, FILE, links=0)
    made.add_inode(67, 0)
    made.add_directory(68, [(b"b", 65, 1)], links=0)
    rows, problems = read(made)
    assert rows.keys() == {b"", b"a"}
    assert problems == []


def test_names_that_lead_nowhere_are_rows_with_an_error() -> None:
    made = volume((b"deleted", 65, 1), (b"free", 66, 2), (b"far", 1000, 7), (b"unused", 68, 0))
    made.add_inode(65, FILE, links=0)
    made.add_inode(68, 0)
    rows, _ = read(made)
    assert {path: row.kind for path, row in rows.items()} == {
        b"": Kind.DIRECTORY,
        b"deleted": Kind.FILE,
        b"free": Kind.DIRECTORY,
        b"far": Kind.SYMLINK,
        b"unused": Kind.OTHER,
    }
    assert all("is not in use" in row.error for path, row in rows.items() if path)


def test_an_entry_with_an_impossible_inode_is_told_with_its_directory() -> None:
    assert "leads to inode 4096" in errors(volume((b"far", 4096, 1)))[b""]


def test_inodes_without_a_name_are_told() -> None:
    made = volume((b"a", 65, 1))
    made.add_inode(65, FILE, links=2)
    made.add_inode(66, FILE)
    assert read(made)[1] == [
        "inode 65 has 2 links, 1 names",
        "inode 66 is in use, and no directory names it",
    ]


def test_an_inode_that_fails_its_checksum_is_a_row_with_an_error() -> None:
    made = volume((b"a", 65, 1), (b"b", 66, 1))
    made.add_inode(65, FILE)
    made.add_inode(66, FILE)
    made.inodes[65] = made.inodes[65][:-1] + b"\1"
    assert errors(made) == {b"a": "inode 65 fails its checksum"}
    # Nobody names it: then it is a problem of the map.
    made.add_inode(67, FILE)
    made.inodes[67] = made.inodes[67][:-1] + b"\1"
    assert read(made)[1] == ["inode 67 fails its checksum"]


def test_an_inode_of_another_file_system_or_place_is_a_row_with_an_error() -> None:
    made = volume((b"a", 65, 1), (b"b", 66, 1))
    made.add_inode(65, FILE)
    made.add_inode(66, FILE)
    other = bytearray(made.inodes[65])
    other[160:176] = bytes(16)
    made.inodes[65], made.inodes[66] = sealed(other, 100), made.inodes[65]
    assert errors(made) == {
        b"a": "inode 65 belongs to another file system",
        b"b": "inode 66: the inode says that it is 65",
    }


@VERSIONS
def test_names_that_no_file_can_have_are_told_and_replaced(version: int) -> None:
    made = volume((b"a/b", 65, 1), (b"c\0d", 66, 1), (b"good", 67, 1), version=version)
    for number in (65, 66, 67):
        made.add_inode(number, FILE)
    assert errors(made) == dict.fromkeys((b"a?b", b"c?d"), "a name that no file can have")


def test_a_type_that_is_not_that_of_the_inode_is_told() -> None:
    made = volume((b"a", 65, 2), (b"b", 66, 0), (b"c", 67, 99))
    for number in (65, 66, 67):
        made.add_inode(number, FILE)
    assert errors(made) == {
        b"a": "the directory says that it is a directory",
        b"c": "the directory says that it is of a kind that we do not know",
    }


@VERSIONS
def test_a_directory_has_one_name(version: int) -> None:
    made = volume((b"d", 65, 2), (b"e", 65, 2), (b"root", ROOT, 2), version=version)
    made.add_directory(65, [(b"f", 66, 1)])
    made.add_inode(66, FILE)
    assert errors(made) == {b"e": "a directory with a second name", b"root": "the root directory"}
    assert b"d/f" in read(made)[0]


def test_directories_that_hang_on_nothing_are_told() -> None:
    made = volume((b"a", 65, 1))
    made.add_inode(65, FILE)
    made.add_directory(66, [(b"circle", 67, 2)])
    made.add_directory(67, [(b"circle", 66, 2), (b"file", 68, 1)])
    made.add_inode(68, FILE)
    rows, problems = read(made)
    assert rows.keys() == {b"", b"a"}
    assert problems == ["directories that cannot be reached from the root, or are too deep"]


def test_a_volume_without_its_root_directory_is_told() -> None:
    made = ForgedVolume()
    made.add_inode(65, FILE)
    rows, problems = read(made)
    assert rows == {}
    assert "the root directory is missing" in problems
    made.add_inode(ROOT, FILE)
    assert "the root directory is none" in read(made)[1]
    made.inodes[ROOT] = bytes(512)
    rows, problems = read(made)
    assert rows[b""].error
    assert any(text.startswith("the root directory: ") for text in problems)


def test_content_that_is_damaged_leaves_the_row() -> None:
    made = volume((b"a", 65, 1), (b"b", 66, 7), (b"c", 67, 1), (b"d", 68, 3), (b"e", 69, 1))
    made.add_inode(65, FILE, extent(0, 511, 2), count=1, size=9)
    made.add_inode(66, 0o120777, b"", form=1, size=0)
    made.add_inode(67, FILE, attribute_at=96, attribute=b"\xff" * 9, attribute_form=1)
    made.add_inode(68, 0o020644, form=1)
    made.add_inode(69, FILE, flags=1)
    found = errors(made)
    assert found.keys() == {b"a", b"b", b"c", b"d", b"e"}
    assert "attributes" in found[b"c"]
    assert "realtime" in found[b"e"]
    assert read(made)[0][b"a"].size == 9


def test_a_directory_that_was_not_read_wholly_says_so() -> None:
    made = volume((b"d", 65, 2))
    made.add_inode(65, FOLDER, b"\2\0\0\0\0\x40", form=1, size=6)
    assert errors(made) == {b"d": "a directory that ends within an entry"}


def test_quota_and_realtime_inodes_need_no_name() -> None:
    made = volume()
    made.add_inode(65, FILE)
    image = made.image()
    image[160:168] = (65).to_bytes(8, "big")
    image[:512] = sealed(image[:512], 224)
    reader = XfsReader(BytesSource(bytes(image)))
    assert [row.path for row in reader.rows()] == [b""]
    assert reader.problems == []
