"""The library as a parser: what it tells, through which window, and what it still can do then."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from backplane.file_map.model import FileRow
from backplane.testing.disk_images import GptEntry, gpt_disk, missing, run
from backplane.units import MIB
from storage_node.mapping.channel import Channel, ChannelClosedError
from storage_node.mapping.limits import FRAME_BYTES_MAX
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.row_codec import decode_rows
from storage_node.mapping.stream import Say, Teller, decode_facts, decode_runs

pytest.importorskip("pytsk3", reason="needs pytsk3 (pip install '.[second-opinion]')")

from storage_node.mapping import opinion
from storage_node.mapping.opinion_process import MODULE, opine

pytestmark = pytest.mark.skipif(bool(missing("mkfs.fat", "mcopy")), reason="needs mtools")


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """A GPT with a FAT in its second partition."""
    (tmp_path / "file").write_bytes(b"content" * 1000)
    image = tmp_path / "fat"
    image.write_bytes(bytes(8 * MIB))
    run("mkfs.fat", "-F", "12", image)
    run("mcopy", "-i", image, tmp_path / "file", "::")
    made = gpt_disk(12 * 2048, [GptEntry(2048, 4095), GptEntry(4096, 10 * 2048 - 1)])
    made[2 * MIB : 10 * MIB] = image.read_bytes()
    return bytes(made)


def told(prefix: str, source: BytesSource) -> list[tuple[int, bytes]]:
    """Return the frames of a parser that ran in this process."""
    ours, theirs = socket.socketpair()
    frames = []
    with ours:
        with theirs:
            opine(prefix, source, Teller(Channel(theirs)))
        channel = Channel(ours)
        while True:
            try:
                frames.append(channel.receive(bytes_max=FRAME_BYTES_MAX))
            except ChannelClosedError:
                return frames


def test_rows_are_in_paths_and_bytes_of_the_volume(disk: bytes) -> None:
    frames = dict(told("p2", BytesSource(disk)))
    rows: dict[bytes, FileRow] = {row.path: row for row in decode_rows(frames[Say.ROWS])}
    assert rows.keys() == {b"p2", b"p2/file"}
    (extent,) = rows[b"p2/file"].extents
    assert disk[extent.volume_byte :][:7000] == b"content" * 1000
    assert decode_runs(frames[Say.RUNS]) == [(0, len(disk))]
    systems, notes = decode_facts(frames[Say.FACTS])
    assert [(system.kind, system.prefix) for system in systems] == [("fat12", "p2")]
    assert notes == []


def test_a_file_system_that_is_not_there_is_named(disk: bytes) -> None:
    with pytest.raises(DamagedError, match="no file system 'p7'"):
        told("p7", BytesSource(disk))


def test_it_is_the_process_that_is_started() -> None:
    assert MODULE == opinion.MODULE
