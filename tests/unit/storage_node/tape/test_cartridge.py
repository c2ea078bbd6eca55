"""A cartridge without a drive: creation, charges, truncation, failure.  Crashes: test_recovery.py."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.errors import MediumError, RefusedError
from storage_node.core.tape_index import ENTRY_BYTES, ObjectKind
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.medium import FileMedium

INFO = new_cartridge_info(
    serial="ab" * 16, tag="TAPE01L8", created="2026-01-11T10:43:48Z", capacity_bytes=1 << 20
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Cartridge.create(tmp_path / "A", INFO)
    return tmp_path / "A"


@pytest.fixture
def cartridge(folder: Path) -> Iterator[Cartridge]:
    cartridge = Cartridge.open(folder)
    yield cartridge
    cartridge.close()


def put(cartridge: Cartridge, *records: bytes) -> None:
    for record in records:
        cartridge.append_record(record, crc32c=crc32c(record))


def test_a_cartridge_is_created_once(folder: Path) -> None:
    with pytest.raises(RefusedError):
        Cartridge.create(folder, INFO)


def test_a_new_cartridge_is_empty_and_clean(cartridge: Cartridge) -> None:
    assert (cartridge.object_count, cartridge.used_bytes, cartridge.generation) == (0, 0, 1)
    assert cartridge.recovered.is_clean


def test_used_bytes_are_the_bytes_of_the_data_file(cartridge: Cartridge, folder: Path) -> None:
    put(cartridge, b"a" * 100, b"b" * 7)
    cartridge.append_filemark()
    assert cartridge.used_bytes == 107 + 3 * ENTRY_BYTES
    assert (folder / "data").stat().st_size == cartridge.used_bytes
    assert [cartridge.charge_before(number) for number in range(4)] == [0, 132, 171, 203]


def test_entries_are_the_same_before_and_after_a_flush(cartridge: Cartridge) -> None:
    put(cartridge, b"one")
    cartridge.append_filemark()
    put(cartridge, b"two")
    before = [cartridge.entry(number) for number in range(3)]
    cartridge.flush()
    assert [cartridge.entry(number) for number in range(3)] == before
    assert [entry.kind for entry in before if entry] == [
        ObjectKind.RECORD,
        ObjectKind.FILEMARK,
        ObjectKind.RECORD,
    ]
    assert [entry.file_number for entry in before if entry] == [0, 0, 1]


def test_reading_through_the_cache_sees_what_a_later_flush_added(cartridge: Cartridge) -> None:
    for number in range(700):
        put(cartridge, number.to_bytes(2, "big"))
        if number % 70 == 3:
            cartridge.flush()
            assert cartridge.entry(number) is not None
    found = [cartridge.entry(number) for number in range(700)]
    assert [entry.offset for entry in found if entry] == [number * 34 for number in range(700)]


@pytest.mark.parametrize("flushed", [0, 2, 4])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_truncation_works_in_the_buffer_and_on_the_medium(
    folder: Path, flushed: int, number: int
) -> None:
    cartridge = Cartridge.open(folder)
    for count, record in enumerate((b"one", None, b"two", None)):
        if count == flushed:
            cartridge.flush()
        if record is None:
            cartridge.append_filemark()
        else:
            put(cartridge, record)
    if flushed == 4:
        cartridge.flush()
    cartridge.truncate(number)
    assert cartridge.object_count == number
    assert cartridge.filemarks.tolist() == [mark for mark in (1, 3) if mark < number]
    assert (folder / "data").stat().st_size == cartridge.used_bytes
    put(cartridge, b"new")
    cartridge.close()
    again = Cartridge.open(folder)
    assert again.object_count == number + 1
    assert again.recovered.is_clean
    again.close()


def test_a_folder_without_its_files_cannot_be_opened(folder: Path) -> None:
    (folder / "index").unlink()
    with pytest.raises(MediumError):
        Cartridge.open(folder)


class FailingMedium(FileMedium):
    """A file whose synchronisation fails when told to."""

    fails = False

    def file_range(self, offset: int) -> None:
        return None

    def synchronise(self) -> None:
        if FailingMedium.fails:
            raise OSError(errno.EIO, "no more")
        super().synchronise()


def test_a_cartridge_that_failed_is_not_flushed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cartridge = Cartridge.open(folder, open_medium=FailingMedium)
    cartridge.append_filemark()
    monkeypatch.setattr(FailingMedium, "fails", True)
    with pytest.raises(OSError, match="no more"):
        cartridge.flush()
    monkeypatch.setattr(FailingMedium, "fails", False)
    with pytest.raises(OSError, match="no more"):
        cartridge.flush()
    assert cartridge.durable_count == 0
    cartridge.close()


def test_reformatting_is_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new index takes the place of the old one in one step; then the data go."""
    opened = Cartridge.open(folder)
    put(opened, b"old", b"older")
    opened.close()
    generation = opened.generation

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for owner, name, objects in (
        (FileMedium, "synchronise", 2),  # the new index is written aside
        (Path, "replace", 2),
        (FileMedium, "truncate", None),
    ):
        with monkeypatch.context() as patch:
            original = getattr(owner, name)
            if objects is None:

                def only_data(medium: FileMedium, size: int) -> None:
                    if size == 0:
                        raise KeyboardInterrupt
                    original(medium, size)  # noqa: B023 - called within this round

                patch.setattr(owner, name, only_data)
            else:
                patch.setattr(owner, name, crash)
            with pytest.raises(KeyboardInterrupt):
                Cartridge.reformat(folder, INFO, generation=generation + 1)
        found = Cartridge.open(folder)
        assert found.object_count == (objects or 0)
        found.abandon()
    Cartridge.reformat(folder, INFO, generation=generation + 2)
    found = Cartridge.open(folder)
    assert (found.object_count, found.generation) == (0, generation + 2)
    assert found.recovered.is_clean
    assert (folder / "data").stat().st_size == 0
    put(found, b"new")
    found.close()
    found = Cartridge.open(folder)
    assert (found.object_count, found.used_bytes) == (1, 32 + 3)
    found.abandon()
