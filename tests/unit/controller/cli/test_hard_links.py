"""Names of one file, and names of files that only have the same numbers."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.file_map.model import FileExtent, FileRow, FileSystem, Identity
from backplane.testing.file_rows import make_file
from controller.cli.hard_links import HardLinks

EXTENT = FileExtent(0, 8192, 4096)
FIRST = Identity(0, 12, 0)


def system(prefix: str) -> FileSystem:
    return FileSystem("ext4", prefix, "", "", 4096, 1 << 20, "clean", "")


def row(path: bytes, **fields: Any) -> FileRow:
    return make_file(path, EXTENT, identity=FIRST, links=2)._replace(**fields)


def test_two_names_of_a_file_are_one_file() -> None:
    links = HardLinks([system("p1"), system("p2")])
    assert links.key(row(b"p1/a")) == links.key(row(b"p1/b/c"))
    assert HardLinks([system("")]).key(row(b"a")) == HardLinks().key(row(b"b"))


@pytest.mark.parametrize(
    "other",
    [
        row(b"p2/a"),
        row(b"p1-home/a"),
        row(b"p1/a", identity=Identity(5, 12, 0)),
        row(b"p1/a", size=7),
        row(b"p1/a", extents=(EXTENT._replace(volume_byte=4096),)),
        row(b"p1/a", extents=()),
    ],
)
def test_the_same_number_elsewhere_is_another_file(other: FileRow) -> None:
    links = HardLinks([system("p1"), system("p2"), system("p1-home")])
    assert links.key(row(b"p1/a")) != links.key(other)


def test_empty_files_of_two_file_systems_are_two_files() -> None:
    links = HardLinks([system("p1"), system("p2")])
    empty = row(b"p1/a", size=0, extents=())
    assert links.key(empty) != links.key(empty._replace(path=b"p2/a"))
