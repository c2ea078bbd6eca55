"""Files made among others: what was there stays what it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RefusedError
from backplane.file_map.model import FileExtent, FileRow, Identity, Kind
from controller.cli.populated_folder import PopulatedFolder


def row(path: str, kind: Kind = Kind.FILE, size: int = 0, **fields: Any) -> FileRow:
    facts: dict[str, Any] = {
        "path": path.encode(),
        "kind": kind,
        "size": size,
        "mode": 0o700,
        "uid": -1,
        "gid": -1,
        "mtime_ns": 10**18,
        "atime_ns": 10**18,
        "ctime_ns": 0,
        "birth_ns": 0,
        "links": 1,
        "identity": Identity(0, 7, 0),
        "extents": (FileExtent(0, 0, size),) if size else (),
    }
    return FileRow(**(facts | fields))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[PopulatedFolder]:
    with closing(PopulatedFolder(tmp_path)) as made:
        made.read_from(lambda _, count: (yield bytes(count)))
        yield made


def test_files_are_made_beside_others_which_stay_what_they_were(
    folder: PopulatedFolder, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for path in ("mine", "link", "new"):
        folder.add(row(path, size=10))
    folder.add(row("sym", Kind.SYMLINK, target=b"mine"))
    folder.finish()
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == bytes(10)
    assert (folder.files, folder.failed) == (1, 2)
    assert [each["path"] for each in folder.listed] == ["mine", "link"]


def test_a_folder_that_was_there_keeps_its_attributes_and_a_new_one_gets_its_own(
    folder: PopulatedFolder, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)  # whatever our mask is
    before = tmp_path.stat().st_mode
    for path in ("old", "old/new"):
        folder.add(row(path, Kind.DIRECTORY))
    folder.add(row("old/new/deep", size=1))
    folder.finish()
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "old").stat().st_mtime_ns != 10**18
    assert (tmp_path / "old/new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "old/new").stat().st_mtime_ns == 10**18
    assert tmp_path.stat().st_mode == before


def test_no_link_on_the_way_is_followed(folder: PopulatedFolder, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    folder.add(row("link/file", size=1))
    assert folder.failed == 1
    assert list((tmp_path / "real").iterdir()) == []
    with pytest.raises(OSError, match=r"Not a directory|Too many"):
        folder.has(b"link/file")


def test_a_name_that_is_taken_is_seen_and_the_way_to_one_that_is_free_is_made(
    folder: PopulatedFolder, tmp_path: Path
) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    assert folder.has(b"gone")
    assert not folder.has(b"a/b/c")
    assert (tmp_path / "a/b").is_dir()


def test_other_names_of_a_file_that_somebody_else_has_made_are_linked_to_it(
    folder: PopulatedFolder, tmp_path: Path
) -> None:
    (tmp_path / "placed").write_text("by movers")
    folder.adopt(row("placed", size=9, links=2), attributes_lost=1)
    folder.add(row("other", size=9, links=2))
    folder.finish()
    assert (tmp_path / "other").read_text() == "by movers"
    assert (tmp_path / "other").stat().st_nlink == 2
    assert (folder.files, folder.file_bytes, folder.attributes_lost) == (2, 9, 1)


def test_a_temporary_file_is_removed_and_one_that_is_gone_is(
    folder: PopulatedFolder, tmp_path: Path
) -> None:
    (tmp_path / "x.restoring").write_text("")
    for _ in range(2):
        folder.remove(b"x.restoring")
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - names


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="cannot make files"):
        PopulatedFolder(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
