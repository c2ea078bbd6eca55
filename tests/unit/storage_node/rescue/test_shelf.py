"""Cartridges on a shelf are read and never changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import MediumError, VolumeError
from storage_node.rescue.shelf import shelved
from storage_node.tape.library import TapeLibrary
from tests.site.cartridges import RECORD, Writer, image_with

EXTENTS = ((0, 20), (40, 3))


@pytest.fixture
def library(tmp_path: Path) -> Iterator[TapeLibrary]:
    with TapeLibrary(tmp_path / "library") as made:
        yield made


@pytest.fixture
def written(library: TapeLibrary) -> Writer:
    made = Writer(library, "TAPE01L8", "1" * 32)
    made.part("a" * 32, image_with(EXTENTS, seed=1), EXTENTS)
    made.part("b" * 32, image_with(EXTENTS, seed=2), EXTENTS, is_cut=True)
    return made


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def test_what_is_committed_is_found_and_nothing_is_changed(written: Writer, tmp_path: Path) -> None:
    # What was flushed behind the mark is mended when a cartridge is opened for use: here it must not be.
    index = written.folder / "index"
    index.write_bytes(index.read_bytes() + b"torn")
    before = fingerprint(written.folder)
    with shelved([written.folder], scratch=tmp_path) as (cartridge,):
        (found,) = cartridge.parts(0)
        assert found.entry.backup_uuid == "a" * 32
        assert cartridge.content(found).extents == EXTENTS
        header, behind = cartridge.part_header(found)
        assert (header.backup_uuid, behind) == ("a" * 32, found.entry.data_object - 1)
        buffer = memoryview(bytearray(RECORD))
        image = image_with(EXTENTS, seed=1)
        assert bytes(cartridge.data_record(found, 1, buffer)) == image[RECORD : 2 * RECORD]
        assert bytes(cartridge.data_record(found, 0, buffer)) == image[:RECORD]
        assert list(cartridge.map_items(found)) == []
        with pytest.raises(MediumError, match=f"has {RECORD} bytes, and not 512"):
            cartridge.data_record(found, 0, memoryview(bytearray(512)))
    assert fingerprint(written.folder) == before


def test_a_damaged_record_is_told_with_its_object(written: Writer, tmp_path: Path) -> None:
    data = written.folder / "data"
    raw = bytearray(data.read_bytes())
    at = raw.find(image_with(EXTENTS, seed=1)[:64])
    raw[at] ^= 1
    data.write_bytes(raw)
    with shelved([written.folder], scratch=tmp_path) as (cartridge,):
        (found,) = cartridge.parts(0)
        with pytest.raises(MediumError, match=f"TAPE01L8: object {found.entry.data_object} "):
            cartridge.data_record(found, 0, memoryview(bytearray(RECORD)))


def test_what_is_no_cartridge_of_ours_is_refused(library: TapeLibrary, tmp_path: Path) -> None:
    def put_up(folder: Path) -> None:
        with shelved([folder], scratch=tmp_path):
            pass

    with pytest.raises(MediumError, match="no cartridge that can be read"):
        put_up(tmp_path / "nothing")
    library.add("BLANK1L8", capacity_bytes=1 << 20, created="2026-01-11T10:43:48Z")
    with pytest.raises(MediumError, match="has no label of ours: blank"):
        put_up(library.folder / "BLANK1L8")


def test_one_cartridge_twice_is_refused(written: Writer, tmp_path: Path) -> None:
    shutil.copytree(written.folder, tmp_path / "copy")
    for folders, told in (
        ([written.folder, tmp_path / "copy"], "is the same cartridge as"),
        ([written.folder] * 257, "at most 256"),
    ):
        with pytest.raises(VolumeError, match=told), shelved(folders, scratch=tmp_path):
            pass
