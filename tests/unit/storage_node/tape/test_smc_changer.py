"""The changer protocol over SCSI commands: names for addresses, and which commands are sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backplane.errors import MediumError, NotFoundError, RefusedError, SenseTriple, SourceEmptyError
from storage_node.tape.smc_changer import SgDevice, SmcChanger
from tests.site.smc_device import SmcDevice

READ_STATUS = "b8100000ffff"


@pytest.fixture
def device() -> SmcDevice:
    return SmcDevice(slot_1="LTO001L8", slot_3="LTO003L8", io_2="LTO009L8", drive_1="LTO002L8")


def tags(changer: SmcChanger) -> dict[str, str]:
    return {status.element: status.tag for status in changer.elements() if status.tag}


def test_elements_have_the_names_of_virtual_ones(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    names = [status.element for status in changer.elements()]
    assert names == [
        *("slot-1", "slot-2", "slot-3", "slot-4"),
        *("io-1", "io-2", "drive-0", "drive-1"),
    ]
    assert tags(changer) == {
        "slot-1": "LTO001L8",
        "slot-3": "LTO003L8",
        "io-2": "LTO009L8",
        "drive-1": "LTO002L8",
    }
    assert device.log[0] == "1a081d00ff00"
    assert device.log[1].startswith(READ_STATUS)


def test_a_move_is_one_command_and_then_the_changer_is_asked_again(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    device.log.clear()
    assert changer.move("slot-3", "drive-0") == "LTO003L8"
    assert device.log[0] == "a50000011002010000000000"
    assert [each[:12] for each in device.log[1:]] == [READ_STATUS]
    found = {status.element: status for status in changer.elements()}
    assert (found["drive-0"].tag, found["drive-0"].home) == ("LTO003L8", "slot-3")
    assert found["slot-3"].tag == ""
    assert changer.move("drive-0", "io-1") == "LTO003L8"
    assert tags(changer)["io-1"] == "LTO003L8"


def test_what_cannot_be_moved_is_refused_without_a_command(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    changer.prevent("drive-1", is_prevented=True)
    device.log.clear()
    refusals: list[tuple[str, str, type[Exception], str]] = [
        ("slot-2", "drive-0", SourceEmptyError, "slot-2 is empty"),
        ("slot-1", "drive-1", RefusedError, "drive-1 has cartridge LTO002L8"),
        ("drive-1", "slot-2", RefusedError, "holds on to LTO002L8"),
        ("slot-5", "slot-2", NotFoundError, "slot-5"),
        ("slot-1", "shelf-1", NotFoundError, "shelf-1"),
        ("slot-1", "drive-2", NotFoundError, "drive-2"),
    ]
    for source, destination, error, told in refusals:
        with pytest.raises(error, match=told):
            changer.move(source, destination)
    assert device.log == []
    changer.prevent("drive-1", is_prevented=False)
    assert changer.move("drive-1", "slot-2") == "LTO002L8"


def test_after_a_failed_move_the_changer_is_believed(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    device.fail = MediumError("changer: mechanical positioning error")
    with pytest.raises(MediumError, match="mechanical"):
        changer.move("slot-1", "drive-0")
    assert tags(changer)["slot-1"] == "LTO001L8"
    assert device.log[-1].startswith(READ_STATUS)


def test_a_slot_that_the_robot_finds_empty_is_no_fault_of_the_cartridge(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    device.fail = MediumError("changer: empty", sense=SenseTriple(0x05, 0x3B, 0x0E))
    with pytest.raises(SourceEmptyError, match="LTO001L8 is not in slot-1 any more"):
        changer.move("slot-1", "drive-0")
    assert device.log[-1].startswith(READ_STATUS)


def test_initialize_has_the_robot_look(device: SmcDevice) -> None:
    changer = SmcChanger(device)
    device.content[0x1001] = ("LTO007L8", None)
    device.log.clear()
    changer.initialize()
    assert device.log[0] == "070000000000"
    assert tags(changer)["slot-2"] == "LTO007L8"


def test_a_cartridge_without_a_barcode_is_told(device: SmcDevice) -> None:
    device.content[0x1001] = ("", None)
    found = {status.element: status for status in SmcChanger(device).elements()}
    assert found["slot-2"].exception == "a cartridge without a barcode that can be read"


def test_a_device_that_is_none_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="no-such-sg: No such file"):
        SgDevice(tmp_path / "no-such-sg")
    path = tmp_path / "file"
    path.touch()
    device: Any = SgDevice(path)
    try:
        with pytest.raises(MediumError, match="Inappropriate ioctl"):
            device.command(bytes(6), receive=4, timeout_s=60)
    finally:
        device.close()


def test_a_command_that_a_unit_attention_answers_is_sent_once_more(device: SmcDevice) -> None:
    """After it was switched on, and after somebody was at its door, the changer says so first."""
    device.fail = MediumError("changer: power on", sense=SenseTriple(0x06, 0x29, 0x00))
    changer = SmcChanger(device)
    assert device.log[:2] == ["1a081d00ff00"] * 2
    device.log.clear()
    device.fail = MediumError("changer: door", sense=SenseTriple(0x06, 0x28, 0x01))
    assert changer.move("slot-1", "drive-0") == "LTO001L8"
    assert device.log[0] == device.log[1]
    always = MediumError("changer: power on", sense=SenseTriple(0x06, 0x29, 0x00))

    def attention(*_arguments: Any, **_options: Any) -> bytes:
        raise always

    device.command = attention  # type: ignore[method-assign]
    with pytest.raises(MediumError, match="power on"):
        changer.initialize()
