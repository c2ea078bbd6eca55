"""Plain files: whatever their inodes are, their rows are those that are made in full."""

from __future__ import annotations

import struct

import pytest

from backplane.file_map.model import FileExtent, FileRow
from backplane.testing.xfs_forge import (
    BLOCKS,
    INODE_BYTES,
    ROOT,
    ForgedLog,
    ForgedVolume,
    extent,
    map_intent,
    sealed,
)
from storage_node.mapping import xfs_plain
from storage_node.mapping.reader import BytesSource
from storage_node.mapping.xfs import XfsReader
from storage_node.mapping.xfs_names import Names
from storage_node.mapping.xfs_plain import PlainFiles
from storage_node.mapping.xfs_superblock import read_geometry

FILE = 0o100644
FORKS_AT = (24, 96)
CHANGED = 192
UUID_BYTES = range(160, 176)
"""Where another one makes no seal right."""
LABEL = struct.pack(">HBxBBB", 15, 1, 4, 4, 4) + b"name" + b"text"
"""A short attribute fork."""
ATTRIBUTES = ((b"security.name", b"text"),)

Found = tuple[list[FileRow], list[str]]


def read(image: bytes) -> Found:
    reader = XfsReader(BytesSource(image))
    return list(reader.rows()), reader.problems


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes whose rows were made in few steps; attributes are known from the beginning."""
    numbers: list[int] = []
    ordinary = PlainFiles.rows

    def watched(self: PlainFiles, first: int, data: bytes, in_use: int) -> list[FileRow | None]:
        for at in FORKS_AT:
            self.learn(LABEL.ljust(INODE_BYTES - 176 - at, b"\0"), ATTRIBUTES)
        rows = ordinary(self, first, data, in_use)
        numbers.extend(first + at for at, row in enumerate(rows) if row is not None)
        return rows

    monkeypatch.setattr(PlainFiles, "rows", watched)
    return numbers


def in_full(image: bytes) -> Found:
    """Read an image as if no file was plain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xfs_plain, "_FORM", -1)
        return read(image)


def volume(*numbers: int, name: bytes = b"file-%d", kind: int = 1) -> ForgedVolume:
    forged = ForgedVolume()
    names = [(name % number if b"%" in name else name, number, kind) for number in numbers]
    forged.add_directory(ROOT, names)
    return forged


def both(forged: ForgedVolume) -> Found:
    """Read a volume in both ways, and return what both of them find."""
    image = bytes(forged.image())
    found = read(image)
    assert found == in_full(image)
    return found


def test_plain_files_are_made_in_few_steps(made: list[int]) -> None:
    forged = volume(65, 66, 67, 68)
    forged.add_inode(65, FILE)
    forged.add_inode(66, FILE, extent(0, 100, 3), count=1, size=9000)
    forged.add_inode(67, FILE, extent(0, 110, 1), count=1, size=1, attribute_at=24 * 8)
    forged.add_inode(68, 0o104755, flags2=0x18)
    rows, problems = both(forged)
    assert made == [65, 66, 67, 68]
    assert problems == []
    assert [row.path for row in rows] == [b"", b"file-65", b"file-66", b"file-67", b"file-68"]
    assert rows[2].extents == (FileExtent(0, 100 * 4096, 3 * 4096),)
    assert rows[4].mode == 0o4755


def test_extents_are_counted_where_there_may_be_many(made: list[int]) -> None:
    forged = volume(65, 66)
    for number, count in ((65, 1), (66, 2)):
        forged.add_inode(number, FILE, extent(0, 100, 3) + extent(3, 110, 1), flags2=0x18)
        raw = bytearray(forged.inodes[number])
        raw[24:32] = count.to_bytes(8, "big")
        forged.inodes[number] = sealed(raw, 100)
    rows, _ = both(forged)
    assert made == [65]
    assert [len(row.extents) for row in rows] == [0, 1, 2]


@pytest.mark.parametrize("flags2", [0x8, 0x18])
@pytest.mark.parametrize("at", FORKS_AT)
@pytest.mark.parametrize("attribute_form", [1, 2])
def test_every_other_byte_of_an_inode_makes_the_same_row(
    flags2: int, at: int, attribute_form: int, made: list[int]
) -> None:
    """Each byte of core, first extent and attributes, changed under a right seal."""
    numbers = range(65, 85)
    places = [byte for byte in range(CHANGED) if byte not in UUID_BYTES]
    changes = [(byte, value) for byte in places for value in (0x00, 0x01, 0x80, 0xFF)]
    for start in range(0, len(changes), len(numbers)):
        forged = volume(*numbers)
        some = changes[start : start + len(numbers)]
        for number, (byte, value) in zip(numbers, some, strict=False):
            label = {"attribute_at": at, "attribute": LABEL, "attribute_form": attribute_form}
            fork = extent(0, 100, 3)
            forged.add_inode(number, FILE, fork, count=1, size=9000, flags2=flags2, **label)  # type: ignore[arg-type]
            raw = bytearray(forged.inodes[number])
            if flags2 & 0x10:
                raw[24:32], raw[76:80] = (1).to_bytes(8, "big"), bytes(4)
            raw[byte] = value
            forged.inodes[number] = sealed(raw, 100)
        both(forged)
    assert len(changes) // 4 < len(made) < len(changes)


@pytest.mark.parametrize(
    "record",
    [
        extent(0, 100, 0),
        extent(0, BLOCKS - 1, 1),
        extent(0, BLOCKS - 1, 2),
        extent(0, BLOCKS, 1),
        extent(1, 100, 1),
        extent(0, 1 << 43, 1),
        extent(0, 100, 1, is_unwritten=True),
        extent(0, 2 << 9 | 100, 1),
    ],
)
def test_extents_are_checked(record: bytes) -> None:
    forged = volume(65)
    forged.add_inode(65, FILE, record, count=1, size=9000)
    both(forged)


@pytest.mark.parametrize(
    "name", [b"a/b", b"a\0bc", b"..", b".", b"x", b"", b"...", b"\xff\xfe\xfd"]
)
@pytest.mark.parametrize("kind", [0, 1, 2, 7, 200])
def test_names_are_checked(name: bytes, kind: int) -> None:
    forged = volume(65, name=name, kind=kind)
    forged.add_inode(65, FILE)
    both(forged)


def test_a_file_with_several_names_is_none(made: list[int]) -> None:
    forged = volume(65, 65, 66, name=b"file")
    names = [(b"one", 65, 1), (b"two", 65, 1), (b"three", 66, 1), (b"four", 67, 1), (b"4", 67, 1)]
    forged.add_directory(ROOT, names)
    forged.add_inode(65, FILE, links=2)
    forged.add_inode(66, FILE, links=2)
    forged.add_inode(67, FILE, links=1)
    forged.add_inode(68, FILE)
    both(forged)
    assert made == []


def test_an_inode_that_is_not_in_use_is_no_file() -> None:
    forged = volume()
    forged.add_inode(65, FILE)
    forged.add_inode(66, FILE)
    source = BytesSource(bytes(forged.image()))
    names = Names(ROOT)
    names.add_directory(ROOT)
    for number in (65, 66):
        names.add(number, 1, b"%d" % (100 * number), 0)
    files = PlainFiles(read_geometry(source.read, source.size_bytes), names, set())
    rows = files.rows(65, forged.inodes[65] + forged.inodes[66], 0b10)
    assert [row and row.path for row in rows] == [None, b"6600"]
    assert names.take(66) == []
    assert names.take(65) == [(0, 1, b"6500")]


def test_known_attributes_are_found_by_their_fork(made: list[int]) -> None:
    forged = volume(65, 66, 67)
    other = LABEL[:-1] + b"T"
    for number, label, at in ((65, LABEL, 96), (66, other, 96), (67, LABEL, 48)):
        forged.add_inode(number, FILE, attribute=label, attribute_at=at, attribute_form=1)
    rows, _ = both(forged)
    assert made == [65]
    assert [row.xattrs[0][1] for row in rows[1:]] == [b"text", b"texT", b"text"]


def test_attributes_are_learned_from_files_that_are_read_in_full() -> None:
    forged = volume(65, 66)
    for number in (65, 66):
        forged.add_inode(number, FILE, attribute=LABEL, attribute_at=96, attribute_form=1)
    reader = XfsReader(BytesSource(bytes(forged.image())))
    learned: dict[bytes, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainFiles, "learn", lambda _, fork, found: learned.setdefault(fork, found))
        list(reader.rows())
    assert learned == {LABEL.ljust(INODE_BYTES - 176 - 96, b"\0"): ATTRIBUTES}


def test_not_more_is_learned_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xfs_plain, "FORKS_MAX", 2)
    source = BytesSource(bytes(volume().image()))
    files = PlainFiles(read_geometry(source.read, source.size_bytes), Names(ROOT), set())
    for number in range(3):
        files.learn(b"%d" % number, ())
    assert len(files._forks) == 2


def test_a_file_that_the_log_tells_of_is_not_plain(made: list[int]) -> None:
    forged = volume(65, 66)
    forged.add_inode(65, FILE, extent(0, 100, 3), count=1, size=9000)
    forged.add_inode(66, FILE, extent(0, 110, 3), count=1, size=9000)
    forged.log = ForgedLog()
    forged.log.transaction(map_intent(7, (65, 120, 3, 2, 1)))
    both(forged)
    assert made == [66]
