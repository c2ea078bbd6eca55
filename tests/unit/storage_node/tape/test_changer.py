"""The virtual changer: folders are cartridges, and where a folder is, is where the cartridge is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from backplane.errors import (
    BusyError,
    NotFoundError,
    RefusedError,
    SourceEmptyError,
    VolumeError,
)
from storage_node.core.changer import TWICE, ElementKind, Geometry, free_element, places
from storage_node.tape import changer as changer_module
from storage_node.tape.changer import VirtualChanger

GEOMETRY = Geometry(slots=4, io_slots=2, drives=2)


def put(folder: Path, tag: str) -> Path:
    """Put a folder that looks like a cartridge."""
    path = folder / tag
    path.mkdir(parents=True)
    (path / "cartridge.json").write_text("{}")
    (path / "data").write_text(tag)
    return path


@pytest.fixture
def changer(tmp_path: Path) -> VirtualChanger:
    for tag in ("A", "B"):
        put(tmp_path, tag)
    return VirtualChanger(tmp_path, GEOMETRY)


def where(changer: VirtualChanger) -> dict[str, str]:
    return places(changer.elements())


def test_folders_get_slots_and_keep_them(changer: VirtualChanger) -> None:
    assert where(changer) == {"A": "slot-1", "B": "slot-2"}
    changer.move("slot-1", "slot-4")
    put(changer.folder, "AA")
    (changer.folder / "not-a-cartridge").mkdir()
    again = VirtualChanger(changer.folder, GEOMETRY)
    assert where(again) == {"A": "slot-4", "AA": "slot-1", "B": "slot-2"}
    assert again.folder_of("A") == changer.folder / "A"
    with pytest.raises(NotFoundError):
        again.folder_of("C")


def test_an_export_moves_the_folder_and_an_import_brings_it_back(changer: VirtualChanger) -> None:
    changer.move("slot-1", "io-1")
    assert not (changer.folder / "A").exists()
    assert changer.folder_of("A") == changer.folder / "io" / "A"
    assert where(VirtualChanger(changer.folder, GEOMETRY))["A"] == "io-1"
    changer.move("io-1", "slot-3")
    assert (changer.folder / "A" / "data").read_text() == "A"
    assert where(changer) == {"A": "slot-3", "B": "slot-2"}


def test_what_an_operator_does_at_the_door_is_seen(changer: VirtualChanger, tmp_path: Path) -> None:
    changer.move("slot-1", "io-1")
    shutil.move(changer.folder / "io" / "A", tmp_path.parent / "vault-A")
    put(changer.folder / "io", "C")
    with pytest.raises(NotFoundError, match="empty"):
        changer.move("io-2", "slot-1")
    assert where(changer) == {"B": "slot-2", "C": "io-1"}
    changer.move("io-1", "slot-1")
    assert where(changer) == {"B": "slot-2", "C": "slot-1"}
    shutil.move(tmp_path.parent / "vault-A", changer.folder / "io" / "A")
    changer.initialize()
    assert where(changer)["A"] == "io-1"


def test_a_cartridge_that_was_taken_out_of_its_slot_is_not_moved(changer: VirtualChanger) -> None:
    shutil.rmtree(changer.folder / "A")
    changer.look_for("B")
    with pytest.raises(SourceEmptyError, match="A is not in slot-1 any more: it was taken out"):
        changer.move("slot-1", "io-1")
    assert where(changer) == {"B": "slot-2"}
    with pytest.raises(SourceEmptyError, match="A is not in the library"):
        changer.look_for("A")


def test_a_cartridge_that_was_moved_by_hand_is_found_where_it_is(changer: VirtualChanger) -> None:
    shutil.move(changer.folder / "A", changer.folder / "io" / "A")
    with pytest.raises(SourceEmptyError, match="A is not in slot-1 any more: it was moved"):
        changer.move("slot-1", "drive-0")
    assert where(changer) == {"A": "io-1", "B": "slot-2"}


def test_what_cannot_be_looked_at_is_not_taken_for_gone(
    changer: VirtualChanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", fail)
    changer.look_for("A")
    assert where(changer) == {"A": "slot-1", "B": "slot-2"}


def test_a_folder_at_the_destination_is_never_overwritten(
    changer: VirtualChanger,
) -> None:
    rest = changer.folder / "io" / "A"
    rest.mkdir()
    (rest / "data").write_text("half a cartridge, copied by hand")
    with pytest.raises(VolumeError, match="cannot be moved"):
        changer.move("slot-1", "io-1")
    assert where(changer)["A"] == "slot-1"
    assert (changer.folder / "A" / "data").read_text() == "A"


def test_the_same_barcode_inside_and_at_the_door_is_moved_by_nobody(
    changer: VirtualChanger,
) -> None:
    put(changer.folder / "io", "A")
    changer.initialize()
    assert {s.element for s in changer.elements() if s.exception == TWICE} == {"slot-1", "io-1"}
    for source, destination in (("slot-1", "slot-3"), ("io-1", "slot-3"), ("slot-1", "drive-0")):
        with pytest.raises(RefusedError):
            changer.move(source, destination)


def test_a_cartridge_in_a_drive_stays_there_and_keeps_its_slot(changer: VirtualChanger) -> None:
    changer.move("slot-2", "drive-1")
    changer.prevent("drive-1", is_prevented=True)
    put(changer.folder, "C")
    put(changer.folder, "D")
    changer.initialize()
    assert where(changer) == {"A": "slot-1", "B": "drive-1", "C": "slot-3", "D": "slot-4"}
    with pytest.raises(RefusedError):
        free_element(changer.elements(), ElementKind.SLOT)
    with pytest.raises(BusyError):
        changer.move("drive-1", "slot-2")
    # After a crash drives are empty, and the cartridge is in its slot.
    assert where(VirtualChanger(changer.folder, GEOMETRY))["B"] == "slot-2"


def test_numbers_are_all_that_a_crash_between_the_two_steps_can_cost(
    changer: VirtualChanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    changer.move("slot-1", "slot-3")

    def crash(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(changer_module, "replace_file", crash)
    with pytest.raises(KeyboardInterrupt):
        changer.move("slot-3", "io-2")
    monkeypatch.undo()
    again = VirtualChanger(changer.folder, GEOMETRY)
    assert where(again) == {"A": "io-1", "B": "slot-2"}


def test_numbers_that_cannot_be_written_are_an_error(
    changer: VirtualChanger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(changer_module, "replace_file", fail)
    with pytest.raises(VolumeError, match="No space left"):
        changer.move("slot-1", "slot-3")
    assert where(changer)["A"] == "slot-3"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 2, "elements": {}}',
        '{"format_version": 1, "elements": {"A": 1}}',
    ],
)
def test_a_file_of_numbers_that_says_something_else_is_refused_with_a_hint(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "changer.json").write_text(content)
    with pytest.raises(VolumeError, match="delete it"):
        VirtualChanger(tmp_path, GEOMETRY)


def test_numbers_of_elements_that_are_not_there_are_given_anew(tmp_path: Path) -> None:
    put(tmp_path, "A")
    document = {"format_version": 1, "elements": {"A": "slot-99", "B": "../../etc", "C": "io-1"}}
    (tmp_path / "changer.json").write_text(json.dumps(document))
    assert where(VirtualChanger(tmp_path, GEOMETRY)) == {"A": "slot-1"}
