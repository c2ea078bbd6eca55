"""An image that is only looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backplane.errors import MediumError, NotFoundError, UsageError
from storage_node.mapping.image import Image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    made.write_bytes(bytes(range(256)) * 8 + b"rest")
    return made


def test_bytes_are_read_by_position_and_a_part_of_a_sector_is_not_there(path: Path) -> None:
    buffer = bytearray(300)
    with Image(path) as image:
        assert (image.size_bytes, image.block_bytes) == (2048, 512)
        image.read_into(250, memoryview(buffer))
    assert bytes(buffer) == path.read_bytes()[250:550]


def test_an_image_that_may_only_be_read_is_enough(path: Path) -> None:
    path.chmod(0o400)
    with Image(path) as image:
        descriptor = image._descriptor
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_image_that_became_shorter_is_an_error_and_never_zeros(path: Path) -> None:
    with Image(path) as image:
        os.truncate(path, 512)
        with pytest.raises(MediumError, match="ends at byte 512"):
            image.read_into(256, memoryview(bytearray(512)))


def test_what_is_no_disk_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No such file"):
        Image(tmp_path / "missing")
    with pytest.raises(UsageError, match="neither a file nor a block device"):
        Image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a block device"):
        Image(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(bytes(511))
    with pytest.raises(UsageError, match="511 bytes: that is no disk"):
        Image(tmp_path / "short")


def test_a_refused_image_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UsageError):
        Image(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
