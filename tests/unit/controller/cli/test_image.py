from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import (
    BackupError,
    CopyError,
    MediumError,
    NotAuthorizedError,
    NotFoundError,
    RefusedError,
)
from backplane.runtime.keys import KeyPair, create_key_pair
from backplane.transport.stream import Channel, open_unit
from backplane.wire.frames import Opcode
from controller.cli import image

MIB = 1024 * 1024


@pytest.fixture
def operator(tmp_path: Path) -> KeyPair:
    return create_key_pair(tmp_path / "keys", role="operator", name="operator")


@pytest.fixture
def channel(disk_node: Any, operator: KeyPair) -> Iterator[Channel]:
    told = disk_node.channel(operator.public.hex())
    opened = open_unit(
        told["addresses"],
        node_key=bytes.fromhex(told["node_key"]),
        body=bytes.fromhex(told["grant"]),
        tag=bytes.fromhex(told["tag"]),
        secret_key=operator.secret,
    )
    with opened:
        yield opened


def a_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "image"
    path.write_bytes(content)
    return path


def send(channel: Channel, path: Path, report: Callable[[int], None] = lambda _: None) -> int:
    with image.open_image(path) as (descriptor, size):
        return image.send_image(channel, descriptor, size, block_bytes=512, report=report)


def test_a_write_that_was_damaged_on_the_way_is_sent_again(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    content = os.urandom(3 * MIB)
    disk_node.damaged_writes = 2
    assert send(channel, a_file(tmp_path, content)) == 3 * MIB
    assert bytes(disk_node.content[: 3 * MIB]) == content


def test_a_path_that_always_damages_ends_the_import(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.damaged_writes = 1000
    with pytest.raises(CopyError, match="LOGICAL BLOCK GUARD CHECK FAILED"):
        send(channel, a_file(tmp_path, os.urandom(4096)))


def test_a_flush_that_fails_ends_the_import(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.failing = Opcode.FLUSH
    with pytest.raises(CopyError, match="durable"):
        send(channel, a_file(tmp_path, os.urandom(4096)))


def test_progress_reaches_the_end(channel: Channel, tmp_path: Path) -> None:
    reached: list[int] = []
    send(channel, a_file(tmp_path, os.urandom(2 * MIB)), reached.append)
    assert reached == sorted(reached)
    assert reached[-1] == 2 * MIB


def receive(channel: Channel, path: Path, *, blocks: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        return image.receive_image(
            channel, descriptor, [(0, blocks)], block_bytes=512, report=lambda _: None
        )
    finally:
        os.close(descriptor)


def test_a_read_that_was_damaged_on_the_way_is_asked_again(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.content[:] = os.urandom(len(disk_node.content))
    disk_node.damaged_reads = 2
    blocks = len(disk_node.content) // 512
    assert receive(channel, tmp_path / "out", blocks=blocks) == len(disk_node.content)
    assert (tmp_path / "out").read_bytes() == bytes(disk_node.content)


def test_a_read_that_is_always_damaged_names_the_bytes(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.content[:1024] = os.urandom(1024)
    disk_node.damaged_reads = 1000
    with pytest.raises(MediumError, match="bytes 0 to 1023 arrived with a wrong checksum 3 times"):
        receive(channel, tmp_path / "out", blocks=2)
    assert (tmp_path / "out").read_bytes() == b""


def test_a_read_error_of_the_node_is_told_in_words(
    channel: Channel, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.failing = Opcode.READ
    with pytest.raises(CopyError, match="UNRECOVERED READ ERROR"):
        receive(channel, tmp_path / "out", blocks=2)


def test_a_grant_for_another_key_opens_nothing(
    disk_node: Any, operator: KeyPair, tmp_path: Path
) -> None:
    thief = create_key_pair(tmp_path / "thief", role="operator", name="thief")
    told = disk_node.channel(operator.public.hex())
    with pytest.raises(NotAuthorizedError):
        open_unit(
            told["addresses"],
            node_key=bytes.fromhex(told["node_key"]),
            body=bytes.fromhex(told["grant"]),
            tag=bytes.fromhex(told["tag"]),
            secret_key=thief.secret,
        )


def nonzero_grains(content: bytes) -> set[int]:
    grain = image.GRAIN_BYTES
    return {at for at in range(0, len(content), grain) if any(content[at : at + grain])}


@given(
    pieces=st.lists(
        st.tuples(st.booleans(), st.integers(1, 150_000)),
        min_size=1,
        max_size=8,
    ),
    block_bytes=st.sampled_from((512, 4096)),
)
def test_pieces_are_whole_blocks_that_rebuild_the_image(
    pieces: list[tuple[bool, int]], block_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = b"".join((b"x" if is_data else b"\0") * count for is_data, count in pieces)
    path = tmp_path_factory.mktemp("image") / "image"
    with path.open("wb") as file:
        file.truncate(len(content))
        at = 0
        for is_data, count in pieces:
            if is_data:
                os.pwrite(file.fileno(), content[at : at + count], at)
            at += count
    size = -(-len(content) // block_bytes) * block_bytes
    rebuilt, sent, end = bytearray(size), 0, 0
    with image.open_image(path) as (descriptor, found):
        assert found == len(content)
        for address, data in image.image_pieces(descriptor, found, block_bytes=block_bytes):
            assert address % block_bytes == 0
            assert len(data) % block_bytes == 0
            assert 0 < len(data) <= image.PIECE_BYTES
            assert address >= end, "no byte is sent twice"
            rebuilt[address : address + len(data)] = data
            sent, end = sent + len(data), address + len(data)
    assert bytes(rebuilt) == content + bytes(size - len(content))
    assert sent <= len(nonzero_grains(content)) * 2 * image.GRAIN_BYTES


def test_where_the_file_system_knows_no_holes_everything_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path, b"abc")
    real = os.lseek

    def no_holes(descriptor: int, at: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, "Invalid argument")
        return real(descriptor, at, how)

    monkeypatch.setattr(os, "lseek", no_holes)
    with image.open_image(path) as (descriptor, size):
        assert list(image.data_runs(descriptor, size)) == [(0, 3)]


def test_an_image_that_shrinks_meanwhile_is_an_error(channel: Channel, tmp_path: Path) -> None:
    """What was cut off looks like a hole: without a second look it would arrive as zeros."""
    path = a_file(tmp_path, b"x" * 4096)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"y" * 4096)
    with pytest.raises(MediumError, match="was changed while it was read"):
        send(channel, path, lambda _: os.truncate(path, MIB))


def test_an_image_that_is_written_to_meanwhile_is_an_error(
    channel: Channel, tmp_path: Path
) -> None:
    path = a_file(tmp_path, b"x" * 2 * MIB)
    with pytest.raises(MediumError, match="was changed while it was read"):
        send(channel, path, lambda _: os.utime(path, ns=(1, 1)))


def test_a_read_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    path = a_file(tmp_path, b"x" * 1000)
    with image.open_image(path) as (descriptor, _), pytest.raises(MediumError, match="ended early"):
        image._read(descriptor, 512, 512)


def test_a_new_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with image.new_file(target, size=100, is_forced=False) as descriptor:
        os.pwrite(descriptor, b"end", 97)
        assert not target.exists()
    assert target.read_bytes() == bytes(97) + b"end"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        image.new_file(tmp_path / "out", size=100, is_forced=False),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(RefusedError, match="exists already"),
        image.new_file(target, size=1, is_forced=False),
    ):
        target.write_text("precious")
    assert target.read_text() == "precious"


def test_a_full_file_system_is_an_error_with_its_name() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(BackupError, match="No space left"),
    ):
        image._write(full.fileno(), memoryview(b"x"), 0)


@pytest.mark.parametrize("is_forced", [False, True])
def test_neither_links_nor_devices_are_overwritten(tmp_path: Path, is_forced: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", Path(os.devnull), tmp_path):
        with pytest.raises(RefusedError, match="not a regular file"):
            image.check_new_file(path, is_forced=is_forced)


def test_a_folder_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        image.check_new_file(tmp_path / "no" / "out", is_forced=False)
