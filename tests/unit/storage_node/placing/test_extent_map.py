"""What the kernel says of a file's extents and flags, on the file system that tests run on."""

from __future__ import annotations

import errno
import fcntl
import struct
from pathlib import Path
from typing import Any

import pytest

from storage_node.core.placement import EXTENTS_MAX
from storage_node.placing.extent_map import inode_flags, read_map


class Kernel:
    """Answers FIEMAP for a file of so many pieces of a block, and leaves a gap behind each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
        self.pieces = pieces
        self.calls = 0
        monkeypatch.setattr(fcntl, "ioctl", self.answer)

    def answer(self, descriptor: int, number: int, buffer: Any) -> int:
        assert (descriptor, number) == (7, 0xC020660B)
        start, length, flags, _, room, _ = struct.unpack_from("=QQIIII", buffer)
        assert start + length == (1 << 64) - 1
        assert flags == 1, "what is dirty has to be written first"
        self.calls += 1
        first = -(-start // 4096)
        some = range(first, min(first + room, self.pieces))
        struct.pack_into("=I", buffer, 20, len(some))
        for index, number in enumerate(some):
            row = (number * 4096, number * 8192 + 4096, 4096, 0, 0, int(number == self.pieces - 1))
            struct.pack_into("=QQQQQI", buffer, 32 + index * 56, *row)
        return 0


def test_a_map_is_read_to_its_end_however_often_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, 700)
    found = read_map(7)
    assert kernel.calls == 3
    assert found == [(at * 4096, at * 8192 + 4096, 4096, int(at == 699)) for at in range(700)]


def test_a_map_without_end_is_read_so_far_that_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Kernel(monkeypatch, 10 * EXTENTS_MAX)
    assert len(read_map(7)) == EXTENTS_MAX + 1


def test_the_map_of_an_empty_file_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, 0)
    assert read_map(7) == []


def test_flags_that_a_file_system_does_not_have_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENOTTY, "no such thing")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert inode_flags(7) == (0, 0)


def test_an_error_about_flags_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "it is broken")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    with pytest.raises(OSError, match="broken"):
        inode_flags(7)


def test_a_real_file_has_the_extents_that_it_was_written_with(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as file:
        try:
            found = read_map(file.fileno())
        except OSError as error:
            pytest.skip(f"the file system of {tmp_path} has no FIEMAP: {error.strerror}")
        assert found[0].file_byte == 0
        assert sum(each.byte_count for each in found) >= 10_000
        assert found[-1].flags & 1
        inode_flags(file.fileno())
