"""The tape role's requests: load, digest, add, and the lasting names of the drives."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import BusyError, NotFoundError, RefusedError, StaleError
from backplane.ids import Epoch, VolumeTag
from backplane.runtime.clock import SystemClock
from backplane.tape_format import VolumeHeader, encode_label
from backplane.tape_format.payload import encode_payload
from backplane.wire.grants import Rights
from backplane.wire.messages import NodeReply, TapeAdd, TapeLoad
from storage_node import tape_control
from storage_node.state_file import DamagedStateError
from storage_node.tape.library import TapeLibrary
from storage_node.tape_control import TapeControl

FIRST, SECOND = VolumeTag("SDV001L8"), VolumeTag("SDV002L8")


class Node:
    """The tape role over a folder with two drives."""

    def __init__(self, bench: Any, folder: Path, drives: int = 2) -> None:
        self.bench = bench
        self.folder = folder
        self.library = TapeLibrary(folder / "library", drives=drives)
        numbers = itertools.count(1)
        self.tape = TapeControl(
            self.library,
            bench.access,
            state_folder=folder,
            clock=SystemClock(),
            new_uuid=lambda: f"{next(numbers):032x}",
        )

    def add(self, tag: VolumeTag = FIRST, capacity_bytes: int = 1 << 24) -> Any:
        return self.tape.add(TapeAdd(request=1, tag=tag, capacity_bytes=capacity_bytes))

    def load(self, tag: VolumeTag = FIRST, *, epoch: int, drive: str = "drive-0") -> NodeReply:
        return self.tape.load(TapeLoad(request=3, drive=drive, tag=tag, epoch=Epoch(epoch)))

    def append(self, *records: bytes) -> None:
        drive = self.library.drives[0]
        drive.locate(drive.cartridge.object_count if drive.cartridge else 0)
        for record in records:
            assert drive.write_record(memoryview(record), crc32c=crc32c(record)).is_good


@pytest.fixture
def node(bench: Any, tmp_path: Path) -> Iterator[Node]:
    made = Node(bench, tmp_path)
    yield made
    made.tape.close()


def test_cartridges_and_drives_are_described(node: Node) -> None:
    assert node.add().status == "blank"
    assert node.add().status == "blank"
    with pytest.raises(RefusedError):
        node.add(capacity_bytes=1 << 25)
    drives, cartridges = node.tape.describe()
    assert [(d.drive, d.state, d.loaded) for d in drives] == [
        ("drive-0", "empty", ""),
        ("drive-1", "empty", ""),
    ]
    assert [c.tag for c in cartridges] == [FIRST]
    assert all(node.tape.is_drive(d.designator) for d in drives)


def test_loading_tells_label_and_end(node: Node) -> None:
    node.add()
    reply = node.load(epoch=5)
    assert (reply.request, reply.end, reply.header, reply.drives[0].loaded) == (3, 0, b"", FIRST)
    header = VolumeHeader(
        format_version=1,
        cartridge="77" * 16,
        tag=FIRST,
        created="2026-01-11T10:43:48Z",
        owner="SDV",
        store="55" * 16,
        record_bytes=1 << 20,
    )
    node.append(*encode_label(header))
    drive = node.library.drives[0]
    assert drive.write_filemarks(1).is_good
    node.append(b"orphan")
    position = drive.read_position().position
    reply = node.load(epoch=6)
    assert reply.header == encode_payload(header)
    assert (reply.end, reply.durable_end, reply.trailer_sequence) == (5, 4, 0)
    assert (reply.cartridges[0].status, reply.cartridges[0].cartridge) == ("writable", "77" * 16)
    assert reply.drives[0].epoch == 6
    # Looking moved nothing, and the drive is ready for whoever opens it.
    assert drive.read_position().position == position
    assert node.tape.end_of_data(reply.drives[0].designator) == 5


def test_loading_fences_the_drive(node: Node) -> None:
    node.add()
    unit = node.load(epoch=5).drives[0].designator
    node.bench.access.open(node.bench.grant(unit, Rights.APPEND, epoch=Epoch(6)))
    for epoch in (4, 5, 6):
        with pytest.raises(StaleError):
            node.load(epoch=epoch)
    node.load(epoch=7)
    with pytest.raises(StaleError):
        node.bench.access.open(node.bench.grant(unit, Rights.APPEND, epoch=Epoch(6)))


def test_another_cartridge_takes_the_place_of_the_first(node: Node) -> None:
    node.add()
    node.add(SECOND)
    node.load(epoch=5)
    node.append(b"x" * 1000)
    reply = node.load(SECOND, epoch=6)
    assert (reply.drives[0].loaded, reply.end) == (SECOND, 0)
    first, second = node.tape.describe()[1]
    assert (first.end, second.end) == (1, 0)
    with pytest.raises(BusyError):
        node.load(SECOND, epoch=1, drive="drive-1")
    assert node.load(epoch=7).end == 1


def test_what_is_not_there_unloads_nothing(node: Node) -> None:
    node.add()
    node.load(epoch=5)
    with pytest.raises(NotFoundError):
        node.load(SECOND, epoch=6)
    with pytest.raises(NotFoundError):
        node.load(epoch=6, drive="drive-7")
    with pytest.raises(NotFoundError):
        node.tape.digest("drive-7", 0, 1)
    assert node.tape.describe()[0][0].loaded == FIRST


def test_digests_come_in_pages(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_control, "DIGESTS_MAX", 2)
    node.add()
    node.load(epoch=5)
    records = [bytes([n]) * 100 for n in range(3)]
    node.append(*records)
    node.library.drives[0].write_filemarks(1)
    node.append(b"last")
    packed, start = b"", 0
    while start < 5:
        page, start = node.tape.digest("drive-0", start, 5)
        packed += page
    assert packed == b"".join(crc32c(r).to_bytes(4, "big") for r in (*records, b"last"))
    with pytest.raises(NotFoundError):
        node.tape.digest("drive-0", 4, 9)
    assert len(hashlib.sha256(packed).digest()) == 32


def test_pieces_of_records_are_summed_without_moving_the_tape(node: Node) -> None:
    node.add()
    with pytest.raises(NotFoundError, match="empty"):
        node.tape.sample("drive-0", b"")
    node.load(epoch=5)
    node.append(b"first", b"second")
    drive = node.library.drives[0]
    before = drive.read_position().position
    packed = struct.pack(">QII", 1, 0, 6) + struct.pack(">QII", 0, 1, 3)
    expected = crc32c(b"second").to_bytes(4, "big") + crc32c(b"irs").to_bytes(4, "big")
    assert node.tape.sample("drive-0", packed) == expected
    assert drive.read_position().position == before


def test_drives_keep_their_names_over_restarts(bench: Any, tmp_path: Path) -> None:
    first = Node(bench, tmp_path, drives=1)
    names = list(first.tape.units)
    first.tape.close()
    second = Node(bench, tmp_path, drives=3)
    assert list(second.tape.units)[:1] == names
    second.tape.close()
    (tmp_path / "drives.json").write_text('{"drive-0": 7}')
    with TapeLibrary(tmp_path / "library") as library, pytest.raises(DamagedStateError):
        TapeControl(
            library,
            bench.access,
            state_folder=tmp_path,
            clock=SystemClock(),
            new_uuid=lambda: "0" * 32,
        )


def test_closing_makes_everything_durable(bench: Any, tmp_path: Path) -> None:
    node = Node(bench, tmp_path)
    node.add()
    node.load(epoch=5)
    node.append(b"buffered")
    node.tape.close()
    again = Node(bench, tmp_path)
    assert [c.end for c in again.tape.describe()[1]] == [1]
    again.tape.close()
