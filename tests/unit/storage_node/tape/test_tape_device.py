"""The system calls of a tape's device file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from backplane.errors import MediumError
from storage_node.tape.linux_st import LinuxTapeDrive
from storage_node.tape.tape_device import DeviceFile, Identity, identity_of

NO_MEDIUM: Final = (0x02, 0x3A, 0x00)


def test_a_device_that_is_not_there_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="no-such-nst: No such file"):
        DeviceFile(tmp_path / "no-such-nst")


def test_a_device_file_asks_the_kernel(tmp_path: Path) -> None:
    """A plain file is no tape: the kernel takes reads and writes, and refuses every tape operation."""
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    device = DeviceFile(path)
    try:
        buffer = memoryview(bytearray(4))
        assert (device.read(buffer), bytes(buffer)) == (4, b"1234")
        assert device.write(memoryview(b"ab")) == 2
        for call in (device.status, device.position):
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                call()
        assert LinuxTapeDrive(device).test_unit_ready().triple == NO_MEDIUM
    finally:
        device.close()


def test_a_drive_is_called_what_the_kernel_has_of_its_inquiry(tmp_path: Path) -> None:
    folder = tmp_path / "sys" / "nst3" / "device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("IBM     \n")
    (folder / "model").write_text("ULT3580-TD8     \n")
    (folder / "vpd_pg80").write_bytes(b"\x01\x80\x00\x0c10WT012345  ")
    device = tmp_path / "nst3"
    device.touch()
    link = tmp_path / "by-id-nst"
    link.symlink_to(device)
    found = identity_of(link, sys_folder=tmp_path / "sys")
    assert found == Identity(product="IBM ULT3580-TD8", serial="10WT012345")
    nobody = identity_of(tmp_path / "nst4", sys_folder=tmp_path / "sys")
    assert nobody == Identity(product="", serial="")
