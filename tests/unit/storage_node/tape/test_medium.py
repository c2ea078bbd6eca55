"""Files that write and read less than they were asked to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage_node.tape.medium import FileMedium, replace_file


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[FileMedium]:
    medium = FileMedium(tmp_path / "file", create=True)
    yield medium
    medium.close()


def test_several_buffers_are_one_piece(medium: FileMedium) -> None:
    medium.write([b"ab", memoryview(b"cde")], 3)
    assert medium.size() == 8
    one, two = bytearray(4), bytearray(10)
    assert medium.read([one, two], 0) == 8
    assert bytes(one + two) == b"\0\0\0abcde" + bytes(6)
    assert medium.free_bytes() > 0


def test_short_writes_are_continued(medium: FileMedium, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite

    def short(descriptor: int, data: bytes, offset: int) -> int:
        return whole(descriptor, bytes(data)[:2], offset)

    def shorter(descriptor: int, buffers: Sequence[bytes], offset: int) -> int:
        return whole(descriptor, b"".join(buffers)[:3], offset)

    monkeypatch.setattr(os, "pwrite", short)
    monkeypatch.setattr(os, "pwritev", shorter)
    medium.write([b"head", b"and the record"], 5)
    found = bytearray(18)
    assert medium.read([found], 5) == 18
    assert found == b"headand the record"


def test_the_error_behind_a_short_write_is_seen(
    medium: FileMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwritev", lambda *_: 3)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        medium.write([b"head", b"data"], 0)


def test_short_reads_are_continued(medium: FileMedium, monkeypatch: pytest.MonkeyPatch) -> None:
    medium.write([b"0123456789"], 0)
    whole = os.preadv

    def short(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(descriptor, [memoryview(buffers[0])[:3]], offset)

    monkeypatch.setattr(os, "preadv", short)
    one, two = bytearray(4), bytearray(10)
    assert medium.read([one, two], 0) == 10
    assert bytes(one + two) == b"0123456789" + bytes(4)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    for content in (b"old and long", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts"]
