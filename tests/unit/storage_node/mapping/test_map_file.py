"""The file of a map: found whole or not at all, page by page, and never outside of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backplane.errors import MediumError, NotFoundError
from backplane.file_map.header import map_digest
from backplane.ids import ViewId
from storage_node.mapping.map_file import PAGE_BYTES_MAX, MapFile, MapFolder, MapWriter

VIEW = ViewId("ab" * 16)
OTHER = ViewId("cd" * 16)
PAGES = [b"first page", b"x" * PAGE_BYTES_MAX, b"3"]


@pytest.fixture
def folder(tmp_path: Path) -> MapFolder:
    return MapFolder(tmp_path / "maps")


def write(folder: MapFolder, view: ViewId = VIEW, header: bytes = b"the header") -> MapFile:
    descriptor = folder.new(view)
    writer = MapWriter(descriptor)
    for page in PAGES:
        writer.add(page)
    writer.finish(header)
    os.close(descriptor)
    assert writer.digest == map_digest(PAGES)
    assert writer.page_count == len(PAGES)
    return folder.publish(view)


def test_a_map_is_found_as_it_was_written(folder: MapFolder) -> None:
    write(folder)
    found = folder.open(VIEW)
    assert found.header == b"the header"
    assert [found.page(number) for number in range(found.page_count)] == PAGES


@pytest.mark.parametrize("number", [3, 4, 1 << 60, -1])
def test_a_page_that_does_not_exist_is_not_found(folder: MapFolder, number: int) -> None:
    with pytest.raises(NotFoundError, match="pages 0 to 2"):
        write(folder).page(number)


def test_only_the_owner_can_read_it(folder: MapFolder) -> None:
    write(folder)
    [file] = folder.path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_map_that_was_not_published_is_not_there(folder: MapFolder) -> None:
    os.close(folder.new(VIEW))
    with pytest.raises(NotFoundError, match="not been mapped"):
        folder.open(VIEW)
    with pytest.raises(MediumError, match="too short"):
        folder.publish(VIEW)
    folder.discard_new(VIEW)
    folder.discard_new(VIEW)
    assert not list(folder.path.iterdir())


def test_a_new_map_replaces_the_old_one_as_a_whole(folder: MapFolder) -> None:
    write(folder)
    descriptor = folder.new(VIEW)
    assert folder.open(VIEW).header == b"the header"
    MapWriter(descriptor).finish(b"another")
    os.close(descriptor)
    folder.publish(VIEW)
    assert (folder.open(VIEW).header, folder.open(VIEW).page_count) == (b"another", 0)


def test_every_damage_behind_the_pages_is_noticed(folder: MapFolder) -> None:
    """The pages have checksums of their own."""
    write(folder)
    [file] = folder.path.iterdir()
    whole = file.read_bytes()
    for at in range(sum(map(len, PAGES)), len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(MediumError, match="damaged"):
            folder.open(VIEW)
    for size in (0, 5, 31, 32, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(MediumError):
            folder.open(VIEW)


def test_a_file_that_has_become_shorter_is_told(folder: MapFolder) -> None:
    found = write(folder)
    [file] = folder.path.iterdir()
    os.truncate(file, 100)
    with pytest.raises(MediumError):
        found.page(1)
    file.unlink()
    with pytest.raises(MediumError, match="cannot read"):
        found.page(1)


@pytest.mark.parametrize("view", ["", "../maps", "AB" * 16, "ab" * 15 + "/.", "ab" * 17])
def test_only_an_identifier_names_a_file(folder: MapFolder, view: str) -> None:
    """Who asks for a map chooses the name of its view."""
    for ask in (folder.open, folder.new, folder.remove, folder.publish):
        with pytest.raises(NotFoundError, match="no static view"):
            ask(ViewId(view))


def test_a_link_in_the_place_of_a_new_map_is_not_followed(
    folder: MapFolder, tmp_path: Path
) -> None:
    (folder.path / f".{VIEW}.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        folder.new(VIEW)


def test_what_is_removed_is_gone(folder: MapFolder) -> None:
    write(folder)
    os.close(folder.new(VIEW))
    folder.remove(VIEW)
    folder.remove(VIEW)
    assert not list(folder.path.iterdir())


def test_a_sweep_leaves_the_maps_of_views_that_are_there(folder: MapFolder) -> None:
    write(folder)
    write(folder, OTHER)
    os.close(folder.new(VIEW))
    removed = folder.sweep({VIEW})
    assert removed == [f".{VIEW}.new", f"{OTHER}.map"]
    assert [path.name for path in folder.path.iterdir()] == [f"{VIEW}.map"]
    assert folder.sweep({VIEW}) == []


def test_what_is_sorted_lies_in_a_file_without_a_name(folder: MapFolder) -> None:
    descriptor = folder.spool()
    assert os.pwrite(descriptor, b"x", 0) == 1
    assert not list(folder.path.iterdir())
    os.close(descriptor)


def test_a_map_stops_growing_before_the_state_of_the_node_has_no_room(
    folder: MapFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_node.mapping.map_file.require_room", _full)
    descriptor = folder.new(VIEW)
    with pytest.raises(OSError, match="full"):
        MapWriter(descriptor).add(b"page")
    os.close(descriptor)


def _full(_descriptor: int) -> None:
    raise OSError("full")
