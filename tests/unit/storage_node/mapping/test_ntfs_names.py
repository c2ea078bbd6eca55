"""Names and paths: whatever is in a name, and however directories point at each other."""

import struct

import pytest

from backplane.file_map.model import PATH_BYTES_MAX
from storage_node.mapping import ntfs_names
from storage_node.mapping.ntfs_names import (
    DEPTH_MAX,
    HIDDEN,
    Directories,
    FileName,
    decode_name,
    join_path,
    lost_path,
    mended,
    parse_file_name,
)
from storage_node.mapping.reader import DamagedError

ROOT = 5 << 48 | 5


def reference(number: int, sequence: int = 1) -> int:
    return sequence << 48 | number


def name(parent: int, text: bytes) -> FileName:
    return FileName(parent, 0, text)


@pytest.mark.parametrize(
    ("utf16", "utf8"),
    [
        ("plain".encode("utf-16-le"), b"plain"),
        ("ü \U0001f4be".encode("utf-16-le"), "ü \U0001f4be".encode()),
        (b"\x3d\xd8", b"\xed\xa0\xbd"),
        (b"a\0\x00\xdc", b"a\xed\xb0\x80"),
        (b"\x00\xdc\x3d\xd8", b"\xed\xb0\x80\xed\xa0\xbd"),
        (b"", b""),
    ],
)
def test_names_are_utf8_even_if_they_are_not_utf16(utf16: bytes, utf8: bytes) -> None:
    assert decode_name(utf16) == utf8


def test_a_name_says_where_it_is() -> None:
    value = struct.pack("<Q56xBB", reference(70, 9), 2, 1) + "ab".encode("utf-16-le")
    assert parse_file_name(value) == (reference(70, 9), 1, b"ab")


@pytest.mark.parametrize(
    "value",
    [b"", bytes(0x41), struct.pack("<Q56xBB", 1, 3, 0) + b"abcd", bytes(0x41) + b"\x04"],
)
def test_a_name_that_is_cut_off_is_refused(value: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_file_name(value)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (b"", b"?"),
        (b".", b"?"),
        (b"..", b"??"),
        (b"a/b\0", b"a?b?"),
        (b"a.b", b"a.b"),
        (b"...", b"..."),
    ],
)
def test_a_name_that_no_path_can_hold_is_mended(bad: bytes, good: bytes) -> None:
    assert mended(bad) == good


def test_what_is_lost_has_a_path_that_nothing_else_has() -> None:
    assert lost_path(70) == b"?70"
    assert lost_path(70, b"a/b") == b"?70/a?b"
    assert join_path(b"", b"a") == b"a"
    assert join_path(b"a", b"b") == b"a/b"


def test_paths_follow_the_directories_in_any_order() -> None:
    directories = Directories()
    directories.add(72, 3, name(reference(71, 2), b"c"))
    directories.add(71, 2, name(reference(70), b"b"))
    assert directories.path(reference(72, 3)) is None
    directories.add(70, 1, name(ROOT, b"a"))
    assert directories.path(reference(72, 3)) == b"a/b/c"
    assert directories.path(reference(71, 2)) == b"a/b"
    assert directories.path(ROOT) == b""
    assert len(directories) == 3


def test_a_record_that_was_used_again_is_another_directory() -> None:
    directories = Directories()
    directories.add(70, 4, name(ROOT, b"a"))
    assert directories.path(reference(70, 4)) == b"a"
    assert directories.path(reference(70, 3)) is None
    assert directories.path(reference(70, 0)) == b"a"  # an old reference, without a sequence number
    assert "another one" in directories.why_lost(reference(70, 3))


def test_what_is_beneath_extend_is_hidden() -> None:
    directories = Directories()
    directories.add(30, 1, name(reference(11, 11), b"$RmMetadata"))
    directories.add(31, 1, name(reference(30), b"$Txf"))
    assert directories.path(reference(31)) == HIDDEN
    assert directories.path(reference(11, 11)) == HIDDEN


def test_loops_and_orphans_have_no_path() -> None:
    directories = Directories()
    directories.add(70, 1, name(reference(71), b"a"))
    directories.add(71, 1, name(reference(70), b"b"))
    directories.add(72, 1, name(reference(73), b"c"))
    assert directories.path(reference(70)) is None
    assert "in a loop" in directories.why_lost(reference(70))
    assert directories.path(reference(72)) is None
    assert "is not there" in directories.why_lost(reference(73))


def chain(depth: int, text: bytes) -> Directories:
    directories = Directories()
    for number in range(depth):
        parent = reference(99 + number) if number else ROOT
        directories.add(100 + number, 1, name(parent, text))
    return directories


def test_what_is_lost_is_not_looked_for_again() -> None:
    """A chain of a million directories without an end would be walked a million times."""
    directories = chain(5000, b"d")
    found = [directories.path(reference(100 + number)) for number in range(5000)]
    assert found.count(None) == 5000 - DEPTH_MAX
    assert len(directories._lost) == 5000 - DEPTH_MAX
    orphan = Directories()
    orphan.add(70, 1, name(reference(71), b"a"))
    assert orphan.path(reference(70)) is None
    orphan.add(71, 1, name(ROOT, b"b"))
    assert orphan.path(reference(70)) == b"b/a"
    orphan.complete()
    assert orphan.path(reference(72)) is None
    assert orphan._lost == {reference(72)}


def test_depth_and_length_have_limits() -> None:
    directories = chain(DEPTH_MAX + 1, b"d")
    assert directories.path(reference(100 + DEPTH_MAX)) is None
    assert directories.path(reference(99 + DEPTH_MAX)) == b"/".join([b"d"] * DEPTH_MAX)
    long = chain(70, b"x" * 1000)
    assert long.path(reference(169)) is None
    found = long.path(reference(164))
    assert found is not None
    assert len(found) <= PATH_BYTES_MAX
    assert long.path(reference(165)) is None  # from what is remembered


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntfs_names, "CACHE_BYTES_MAX", 2000)
    directories = chain(60, b"directory")
    paths = [directories.path(reference(100 + number)) for number in range(60)]
    assert paths == [b"/".join([b"directory"] * (number + 1)) for number in range(60)]
    assert len(directories._cache) < 20
