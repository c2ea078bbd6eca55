"""Cloned files, on a real XFS where one can be made and mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError, RefusedError
from backplane.testing.loop_mounts import mount_image
from storage_node.disk.device import DeviceError
from storage_node.disk.reflink import can_reflink, clone

XFS_BYTES = 512 * 1024 * 1024


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A mounted XFS with reflinks."""
    if not shutil.which("mkfs.xfs") or os.geteuid() != 0:
        pytest.skip("needs mkfs.xfs and root")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(XFS_BYTES)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True, capture_output=True)
    mounted = mount_image(image, folder)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no XFS: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True, capture_output=True)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder without reflinks."""
    if can_reflink(tmp_path):
        pytest.skip("temporary files are on a file system with reflinks")
    return tmp_path


def test_a_clone_is_the_old_content_and_takes_no_space(xfs: Path) -> None:
    old = os.urandom(8 * 1024 * 1024)
    (xfs / "live").write_bytes(old)
    assert can_reflink(xfs)
    assert can_reflink(xfs / "live")
    os.sync()
    before = shutil.disk_usage(xfs).free
    clone(xfs / "live", xfs / "view")
    assert before - shutil.disk_usage(xfs).free < 1024 * 1024
    with (xfs / "live").open("r+b") as live:
        live.write(b"new" * 1000)
    assert (xfs / "view").read_bytes() == old


def test_an_open_file_is_cloned_with_what_was_just_written(xfs: Path) -> None:
    with (xfs / "live").open("w+b", buffering=0) as live:
        live.write(b"a" * 100_000)
        clone(live.fileno(), xfs / "view")
        live.seek(0)
        live.write(b"b" * 100_000)
    assert (xfs / "view").read_bytes() == b"a" * 100_000


def test_a_file_system_without_reflinks_is_found_by_asking(plain: Path) -> None:
    assert not can_reflink(plain)
    assert not can_reflink(plain / "no such file")
    assert list(plain.iterdir()) == []


def test_a_clone_that_fails_leaves_nothing(plain: Path) -> None:
    (plain / "live").write_bytes(b"x" * 5000)
    with pytest.raises(DeviceError):
        clone(plain / "live", plain / "view")
    with pytest.raises(DeviceError):
        clone(plain / "gone", plain / "view")
    assert not (plain / "view").exists()


def test_a_clone_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "live").write_bytes(b"x")
    (tmp_path / "view").write_bytes(b"precious")
    with pytest.raises(RefusedError):
        clone(tmp_path / "live", tmp_path / "view")
    with pytest.raises(BackupError):
        clone(tmp_path / "live", tmp_path / "no" / "folder")
    assert (tmp_path / "view").read_bytes() == b"precious"
