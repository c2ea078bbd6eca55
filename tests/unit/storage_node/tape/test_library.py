"""The folder of cartridges: what is in it, who may use it, what goes into which drive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    NotReadyError,
    RefusedError,
    UsageError,
    VolumeError,
)
from backplane.runtime import failpoints
from backplane.testing.tape_content import (
    CARTRIDGE,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node.core.changer import TWICE
from storage_node.core.tape_sense import END_UNKNOWN
from storage_node.tape import drive_counters
from storage_node.tape.cartridge_info import load_cartridge_info
from storage_node.tape.drive_counters import DriveCounters
from storage_node.tape.library import COPIED, CartridgeStatus, TapeLibrary

CAPACITY = 1 << 20
MOMENT = "2026-01-11T10:43:48Z"


@pytest.fixture
def library(tmp_path: Path) -> Iterator[TapeLibrary]:
    with TapeLibrary(tmp_path / "library", drives=2) as library:
        yield library


def add(library: TapeLibrary, tag: str, *, capacity_bytes: int = CAPACITY) -> None:
    library.add(tag, capacity_bytes=capacity_bytes, created=MOMENT)


def add_labelled(library: TapeLibrary, tag: str, *, volume: str = CARTRIDGE) -> None:
    add(library, tag)
    library.load(tag)
    library.drives[0].test_unit_ready()
    write_objects(library.drives[0], label_objects(volume_header(tag=tag, cartridge=volume)))
    assert library.unload().is_good


def status(library: TapeLibrary) -> dict[str, CartridgeStatus]:
    return {facts.tag: facts.status for facts in library.cartridges()}


def test_a_library_begins_empty(library: TapeLibrary) -> None:
    assert library.cartridges() == []


def test_an_added_cartridge_is_blank(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    (facts,) = library.cartridges()
    assert (facts.tag, facts.status, facts.capacity_bytes) == (
        "LTO001L8",
        CartridgeStatus.BLANK,
        CAPACITY,
    )
    assert (facts.used_bytes, facts.end, facts.load_count, facts.volume) == (0, 0, 0, "")


def test_a_labelled_cartridge_is_writable_and_known_by_its_volume_uuid(
    library: TapeLibrary,
) -> None:
    add_labelled(library, "LTO001L8")
    facts = library.facts("LTO001L8")
    assert (facts.status, facts.volume, facts.end) == (CartridgeStatus.WRITABLE, CARTRIDGE, 4)


def test_a_cartridge_is_found_again_by_the_next_process(tmp_path: Path) -> None:
    with TapeLibrary(tmp_path) as library:
        add_labelled(library, "LTO001L8")
    with TapeLibrary(tmp_path) as library:
        assert status(library) == {"LTO001L8": CartridgeStatus.WRITABLE}


def test_two_processes_never_use_one_library(library: TapeLibrary) -> None:
    with pytest.raises(BusyError):
        TapeLibrary(library.folder)


def test_a_library_that_was_closed_can_be_used_by_another(tmp_path: Path) -> None:
    TapeLibrary(tmp_path).close()
    TapeLibrary(tmp_path).close()


@pytest.mark.parametrize("tag", ["", "lto001", "A B", "../X", "A" * 33, "LTO001L8.", "É"])
def test_a_barcode_that_is_none_is_refused(library: TapeLibrary, tag: str) -> None:
    with pytest.raises(RefusedError):
        add(library, tag)
    with pytest.raises(NotFoundError):
        library.find(tag)


def test_a_barcode_is_given_once(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    with pytest.raises(RefusedError):
        add(library, "LTO001L8")


@pytest.mark.parametrize("capacity", [0, 1023, (1 << 60) + 1])
def test_an_impossible_capacity_is_refused_and_leaves_nothing(
    library: TapeLibrary, capacity: int
) -> None:
    with pytest.raises(RefusedError):
        add(library, "LTO001L8", capacity_bytes=capacity)
    assert library.tags() == []


def test_a_creation_that_was_interrupted_is_no_cartridge_and_can_be_repeated(
    library: TapeLibrary,
) -> None:
    folder = library.folder / "LTO001L8"
    folder.mkdir()
    (folder / "data").write_bytes(b"half")
    assert library.tags() == []
    add(library, "LTO001L8")
    assert status(library) == {"LTO001L8": CartridgeStatus.BLANK}


def test_a_cartridge_of_somebody_else_is_foreign(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    library.load("LTO001L8")
    library.drives[0].test_unit_ready()
    write_objects(library.drives[0], [b"HDR1 of somebody else"])
    facts = library.facts("LTO001L8")
    assert facts.status is CartridgeStatus.FOREIGN
    assert facts.detail


def test_a_cartridge_beyond_programmable_early_warning_is_full(library: TapeLibrary) -> None:
    add_labelled(library, "LTO001L8")
    library.load("LTO001L8")
    drive = library.drives[0]
    drive.test_unit_ready()
    drive.space(3)
    write_objects(drive, [bytes(CAPACITY - CAPACITY // 8)])
    assert library.facts("LTO001L8").status is CartridgeStatus.FULL


def test_a_copied_cartridge_puts_both_in_error(library: TapeLibrary) -> None:
    """T6: nobody knows which of them the next write would make wrong."""
    add_labelled(library, "LTO001L8")
    add_labelled(library, "LTO002L8", volume="ff" * 16)
    shutil.copytree(library.folder / "LTO001L8", library.folder / "LTO009L8")
    assert status(library) == {
        "LTO001L8": CartridgeStatus.ERROR,
        "LTO002L8": CartridgeStatus.WRITABLE,
        "LTO009L8": CartridgeStatus.ERROR,
    }


def test_two_cartridges_with_one_volume_uuid_are_both_in_error(library: TapeLibrary) -> None:
    add_labelled(library, "LTO001L8")
    add_labelled(library, "LTO002L8")
    assert set(status(library).values()) == {CartridgeStatus.ERROR}


def test_a_copy_at_the_door_is_quarantined_as_well(library: TapeLibrary) -> None:
    """T6: the same serial number under another barcode, and the same barcode twice."""
    add_labelled(library, "LTO001L8")
    shutil.copytree(library.folder / "LTO001L8", library.folder / "io" / "LTO009L8")
    found = {facts.tag: facts for facts in library.cartridges()}
    assert {facts.status for facts in found.values()} == {CartridgeStatus.ERROR}
    assert {facts.detail for facts in found.values()} == {COPIED}
    assert library.places() == {"LTO001L8": "slot-1", "LTO009L8": "io-1"}
    (library.folder / "io" / "LTO009L8").rename(library.folder / "io" / "LTO001L8")
    (facts,) = library.cartridges()
    assert (facts.status, facts.detail) == (CartridgeStatus.ERROR, TWICE)
    with pytest.raises(RefusedError):
        library.load("LTO001L8")
    shutil.rmtree(library.folder / "io" / "LTO001L8")
    assert status(library) == {"LTO001L8": CartridgeStatus.WRITABLE}
    library.load("LTO001L8")


def test_swapped_files_are_in_error_and_nothing_is_written_to_them(library: TapeLibrary) -> None:
    """T5: the data of one cartridge under the barcode of the other, as a swap of cartridges looks from inside."""
    for tag, volume in (("LTO001L8", CARTRIDGE), ("LTO002L8", "ff" * 16)):
        add_labelled(library, tag, volume=volume)
    first, second = (library.folder / tag for tag in ("LTO001L8", "LTO002L8"))
    for name in ("data", "index"):
        (first / name).rename(first / "aside")
        (second / name).rename(first / name)
        (first / "aside").rename(second / name)
    content = {path: path.read_bytes() for path in (first / "data", second / "data")}
    assert set(status(library).values()) == {CartridgeStatus.ERROR}
    library.load("LTO001L8")
    drive = library.drives[0]
    drive.test_unit_ready()
    drive.space(3)
    outcome = drive.write_record(memoryview(b"x"), crc32c=crc32c(b"x"))
    assert outcome.triple == END_UNKNOWN
    library.unload()
    assert {path: path.read_bytes() for path in content} == content


def test_a_cartridge_in_the_wrong_folder_is_in_error_and_not_loaded(library: TapeLibrary) -> None:
    """T5: somebody swapped files."""
    add(library, "LTO001L8")
    (library.folder / "LTO001L8").rename(library.folder / "LTO002L8")
    assert status(library) == {"LTO002L8": CartridgeStatus.ERROR}
    with pytest.raises(VolumeError):
        library.load("LTO002L8")


def test_a_label_with_another_barcode_is_an_error(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    library.load("LTO001L8")
    library.drives[0].test_unit_ready()
    write_objects(library.drives[0], label_objects(volume_header(tag="LTO002L8")))
    assert status(library) == {"LTO001L8": CartridgeStatus.ERROR}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format_version": 3}', '{"format_version": 1}']
)
def test_an_unreadable_cartridge_is_an_error_with_a_reason(
    library: TapeLibrary, content: str
) -> None:
    add(library, "LTO001L8")
    (library.folder / "LTO001L8" / "cartridge.json").write_text(content)
    (facts,) = library.cartridges()
    assert facts.status is CartridgeStatus.ERROR
    assert "cartridge.json" in facts.detail


@pytest.mark.parametrize("name", ["data", "index"])
def test_a_cartridge_without_one_of_its_files_is_an_error(library: TapeLibrary, name: str) -> None:
    add(library, "LTO001L8")
    (library.folder / "LTO001L8" / name).unlink()
    assert status(library) == {"LTO001L8": CartridgeStatus.ERROR}


def test_a_loaded_cartridge_is_looked_at_without_being_moved(library: TapeLibrary) -> None:
    add_labelled(library, "LTO001L8")
    library.load("LTO001L8", drive=1)
    drive = library.drives[1]
    drive.test_unit_ready()
    drive.space(3)
    objects, _ = part_objects([b"x" * 100])
    write_objects(drive, objects[:3])
    facts = library.facts("LTO001L8")
    assert (facts.status, facts.end, facts.load_count) == (CartridgeStatus.WRITABLE, 7, 2)
    report = drive.read_position().report
    assert report is not None
    assert (report.object_number, report.durable_object) == (7, 4)


def test_a_cartridge_is_in_one_drive_at_a_time(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    add(library, "LTO002L8")
    library.load("LTO001L8")
    with pytest.raises(BusyError):
        library.load("LTO001L8", drive=1)
    with pytest.raises(BusyError):
        library.load("LTO002L8", drive=0)
    library.load("LTO002L8", drive=1)
    assert library.drive_with("LTO002L8") is library.drives[1]
    assert library.unload(drive=1).is_good
    assert library.drive_with("LTO002L8") is None


def test_there_is_no_drive_beyond_the_last(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    for number in (-1, 2):
        with pytest.raises(NotFoundError):
            library.load("LTO001L8", drive=number)


def test_looking_at_a_cartridge_is_no_load(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    library.cartridges()
    assert library.facts("LTO001L8").load_count == 0


# --- the changer ---------------------------------------------------------------------------------


def test_a_cartridge_goes_to_the_drive_and_back_to_its_slot(library: TapeLibrary) -> None:
    for tag in ("LTO001L8", "LTO002L8"):
        add(library, tag)
    library.load("LTO002L8", drive=1)
    assert library.places() == {"LTO001L8": "slot-1", "LTO002L8": "drive-1"}
    with pytest.raises(BusyError, match="drive-1"):
        library.move("LTO002L8", "io")
    add(library, "LTO003L8")
    library.unload(drive=1)
    assert library.places()["LTO002L8"] == "slot-2"
    assert library.unload(drive=1).triple == (0x02, 0x3A, 0x00)


def test_exports_and_imports(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    assert library.move("LTO001L8", "io") == "io-1"
    assert library.move("LTO001L8", "io") == "io-1"
    assert library.move("LTO001L8", "io-2") == "io-2"
    with pytest.raises(RefusedError, match="taken out"):
        library.load("LTO001L8")
    assert library.facts("LTO001L8").status is CartridgeStatus.BLANK
    with pytest.raises(RefusedError, match="already"):
        add(library, "LTO001L8")
    assert library.move("LTO001L8", "slot-7") == "slot-7"
    assert library.move("LTO001L8", "slot") == "slot-7"
    for to in ("drive-0", "picker"):
        with pytest.raises(UsageError):
            library.move("LTO001L8", to)
    for to in ("shelf", "slot-9999", "slot-"):
        with pytest.raises(NotFoundError):
            library.move("LTO001L8", to)
    with pytest.raises(NotFoundError):
        library.move("LTO009L8", "io")


def test_a_library_without_a_free_slot_takes_nothing_and_says_what_is_left_over(
    tmp_path: Path,
) -> None:
    with TapeLibrary(tmp_path, slots=2, io_slots=0) as library:
        add(library, "LTO001L8")
        add(library, "LTO002L8")
        with pytest.raises(RefusedError, match="no free slot"):
            add(library, "LTO003L8")
        with pytest.raises(RefusedError, match="no free io"):
            library.move("LTO001L8", "io")
    with TapeLibrary(tmp_path, slots=1, io_slots=0) as library:
        found = {facts.tag: facts for facts in library.cartridges()}
        assert found["LTO002L8"].status is CartridgeStatus.ERROR
        assert "no free element" in found["LTO002L8"].detail
        with pytest.raises(NotFoundError):
            library.load("LTO002L8")


def test_a_cartridge_that_cannot_be_opened_goes_back_to_its_slot(library: TapeLibrary) -> None:
    add(library, "LTO001L8")
    (library.folder / "LTO001L8" / "index").unlink()
    with pytest.raises(MediumError):
        library.load("LTO001L8")
    assert library.places() == {"LTO001L8": "slot-1"}
    assert library.counters(0) == DriveCounters()


def test_loads_are_counted_by_drive_and_survive(tmp_path: Path) -> None:
    with TapeLibrary(tmp_path, drives=2) as library:
        add(library, "LTO001L8")
        library.load("LTO001L8", drive=1)
        library.unload(drive=1)
    with TapeLibrary(tmp_path, drives=2) as library:
        assert [library.counters(n).loads for n in (0, 1)] == [0, 1]


def test_a_library_whose_numbers_are_damaged_lets_go_of_its_folder(tmp_path: Path) -> None:
    TapeLibrary(tmp_path).close()
    (tmp_path / "changer.json").write_text("{")
    for _ in range(2):
        with pytest.raises(VolumeError, match="delete it"):
            TapeLibrary(tmp_path)


# --- cleaning ------------------------------------------------------------------------------------


def test_a_cleaning_cartridge_cleans_and_is_used_up(
    library: TapeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive_counters, "LOADS_PER_CLEANING", 3)
    add(library, "CLN001CU")
    add(library, "LTO001L8")
    for _ in range(3):
        assert not library.counters(0).needs_cleaning
        library.load("LTO001L8")
        library.unload()
    assert library.counters(0).needs_cleaning
    library.clean("CLN001CU", drive=0)
    assert not library.counters(0).needs_cleaning
    assert library.counters(0).loads == 3
    facts = library.facts("CLN001CU")
    assert (facts.status, facts.detail) == (CartridgeStatus.CLEANING, "49 cleanings left")
    assert library.places()["CLN001CU"] == "slot-1"
    for _ in range(49):
        library.clean("CLN001CU", drive=1)
    with pytest.raises(RefusedError, match="used up"):
        library.clean("CLN001CU", drive=1)
    assert load_cartridge_info(library.find("CLN001CU")).load_count == 50


def test_a_cleaning_cartridge_is_never_loaded_for_data(library: TapeLibrary) -> None:
    add(library, "CLN001CU")
    with pytest.raises(RefusedError, match="cleaning"):
        library.load("CLN001CU")
    add(library, "LTO001L8")
    library.load("LTO001L8")
    with pytest.raises(BusyError):
        library.clean("CLN001CU", drive=0)
    library.move("CLN001CU", "io")
    with pytest.raises(RefusedError):
        library.clean("CLN001CU", drive=1)
    assert library.info("CLN001CU").cleanings_left == 50


def test_a_drive_that_does_not_get_ready_gives_the_cartridge_back(library: TapeLibrary) -> None:
    """T10: a load that comes to nothing, and a cartridge that the drive does not let go of."""
    library.add("SDV009L8", capacity_bytes=1 << 24, created="2026-01-11T10:43:48Z")
    slot = library.places()["SDV009L8"]
    failpoints.arm("tape.load.drive-0:1=raise:ETIMEDOUT;tape.unload.drive-0:1=raise:ETIMEDOUT")
    try:
        with pytest.raises(NotReadyError, match="drive-0 does not get ready with cartridge SDV009"):
            library.load("SDV009L8")
        assert library.places()["SDV009L8"] == slot
        library.load("SDV009L8")
        with pytest.raises(NotReadyError, match="drive-0 does not let go of cartridge SDV009L8"):
            library.unload()
        assert library.places()["SDV009L8"] == "drive-0"
        assert library.unload().is_good
        assert library.places()["SDV009L8"] == slot
    finally:
        failpoints.arm("")
