"""The tape role's requests: load, unload, move, erase, retain, and the lasting names of the drives."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    RefusedError,
    RetainedError,
    SourceEmptyError,
    StaleError,
    UsageError,
    VolumeError,
)
from backplane.ids import Epoch, VolumeTag
from backplane.runtime.clock import SystemClock
from backplane.scsi.attribute import AttributeId, decode_attributes
from backplane.scsi.tape_alert import words_of
from backplane.tape_format import VolumeHeader, encode_label
from backplane.tape_format.payload import encode_payload
from backplane.tape_format.retention import retain_until
from backplane.testing.clock import ManualClock
from backplane.testing.tape_content import (
    CARTRIDGE,
    Object,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from backplane.wire.codec import decode, encode
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    MESSAGE_BYTES_MAX,
    CartridgeState,
    NodeInventory,
    NodeReply,
    TapeAdd,
    TapeErase,
    TapeLoad,
    TapeMove,
    TapeRetain,
    TapeUnload,
)
from storage_node import tape_control
from storage_node.core.drive_model import SPECIFICATIONS
from storage_node.core.tape_sense import READ_ERROR
from storage_node.core.time_line import written
from storage_node.node_clock import NodeClock
from storage_node.state_file import DamagedStateError
from storage_node.tape.drive_counters import LOADS_PER_CLEANING
from storage_node.tape.library import TapeLibrary
from storage_node.tape.modelled_drive import ModelledDrive
from storage_node.tape_control import TapeControl
from storage_node.tape_media import DETAIL_CHARACTERS_MAX

FIRST, SECOND, THIRD = (VolumeTag(f"SDV00{n}L8") for n in (1, 2, 3))
CLEANER = VolumeTag("CLN001CU")
NOW = datetime(2026, 1, 11, 10, 43, 48, tzinfo=UTC)
PAST, FUTURE = "2026-01-11T10:43:48Z", "2026-01-11T10:43:49Z"
BOOT = "this start of the machine"
OTHER_VOLUME = "ff" * 16
WAIT_S = 20.0


class Node:
    """The tape role over a folder with two drives."""

    def __init__(self, bench: Any, folder: Path, drives: int = 2, **options: Any) -> None:
        self.bench = bench
        self.folder = folder
        self.library = TapeLibrary(folder / "library", drives=drives, **options)
        numbers = itertools.count(1)
        self.clock = ManualClock(wall=NOW)
        self.tape = TapeControl(
            self.library,
            bench.access,
            state_folder=folder,
            clock=NodeClock(self.clock, boot=BOOT, folder=folder),
            new_uuid=lambda: f"{next(numbers):032x}",
        )

    def restart(self) -> None:
        self.tape.close()
        self.__init__(self.bench, self.folder)  # type: ignore[misc]

    def add(self, tag: VolumeTag = FIRST, capacity_bytes: int = 1 << 24) -> Any:
        return self.tape.add(TapeAdd(request=1, tag=tag, capacity_bytes=capacity_bytes))

    def load(self, tag: VolumeTag = FIRST, *, epoch: int, drive: str = "drive-0") -> NodeReply:
        return self.tape.load(TapeLoad(request=3, drive=drive, tag=tag, epoch=Epoch(epoch)))

    def unload(self, *, epoch: int, drive: str = "drive-0") -> NodeReply:
        return self.tape.unload(TapeUnload(request=4, drive=drive, epoch=Epoch(epoch)))

    def move(self, tag: VolumeTag, to: str) -> Any:
        return self.tape.move(TapeMove(request=5, tag=tag, to=to))

    def erase(self, tag: VolumeTag = FIRST, *, epoch: int, is_forced: bool = False) -> NodeReply:
        return self.tape.erase(
            TapeErase(request=6, drive="drive-0", tag=tag, epoch=Epoch(epoch), is_forced=is_forced)
        )

    def retain(self, until: str = "", *, is_held: bool = False, tag: VolumeTag = FIRST) -> Any:
        message = TapeRetain(request=7, tag=tag, retain_until=until, is_held=is_held)
        return self.tape.retain(message).cartridges[0]

    def write(self, objects: Sequence[Object], *, drive: int = 0) -> int:
        head = self.library.drives[drive]
        head.locate(head.cartridge.object_count if head.cartridge else 0)
        return write_objects(head, objects)

    def label(self, tag: VolumeTag = FIRST, *, epoch: int, volume: str = CARTRIDGE) -> None:
        """Load a cartridge into drive-0 and label it."""
        self.load(tag, epoch=epoch)
        self.write(label_objects(volume_header(tag=tag, cartridge=volume)))

    def state(self, tag: VolumeTag = FIRST) -> CartridgeState:
        [found] = [c for c in self.tape.describe()[1] if c.tag == tag]
        return found

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
            clock=NodeClock(SystemClock(), boot=BOOT, folder=None),
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


# --- the library ---------------------------------------------------------------------------------


def test_two_drives_hold_two_cartridges_and_move_independently(node: Node) -> None:
    for tag in (FIRST, SECOND):
        node.add(tag)
    for number, tag in enumerate((FIRST, SECOND)):
        reply = node.load(tag, epoch=5, drive=f"drive-{number}")
        assert reply.cartridges[0].element == f"drive-{number}"
        bench = [bytes([number]) * 100] * (number + 3)
        node.write(bench, drive=number)
    drives, cartridges = node.tape.describe()
    assert [(d.drive, d.loaded, d.loads) for d in drives] == [
        ("drive-0", FIRST, 1),
        ("drive-1", SECOND, 1),
    ]
    assert [(c.tag, c.end, c.element) for c in cartridges] == [
        (FIRST, 3, "drive-0"),
        (SECOND, 4, "drive-1"),
    ]
    one, other = node.library.drives
    one.locate(1)
    assert (one.read_position().position, other.read_position().position) == (1, 4)
    # A fence on one drive is none on the other, and unloading one leaves the other where it is.
    reply = node.unload(epoch=6)
    assert (reply.drives[0].state, reply.drives[0].epoch) == ("empty", 6)
    assert (reply.cartridges[0].tag, reply.cartridges[0].element) == (FIRST, "slot-1")
    assert other.read_position().position == 4
    assert node.tape.describe()[0][1].epoch == 5
    node.load(FIRST, epoch=7)
    assert node.unload(epoch=8).cartridges[0].loads == 2


def test_drives_are_known_by_their_serial_number(node: Node) -> None:
    node.add()
    drives, _ = node.tape.describe()
    serials = [d.serial for d in drives]
    assert len(set(serials)) == 2
    assert all(d.product for d in drives)
    assert node.load(epoch=5, drive=serials[1]).drives[0].drive == "drive-1"


def test_serial_numbers_survive_a_restart(bench: Any, tmp_path: Path) -> None:
    first = Node(bench, tmp_path, drives=2)
    serials = [d.serial for d in first.tape.describe()[0]]
    first.tape.close()
    second = Node(bench, tmp_path, drives=1)
    assert [d.serial for d in second.tape.describe()[0]] == serials[:1]
    second.tape.close()


def test_unloading_an_empty_drive_is_no_error(node: Node) -> None:
    reply = node.unload(epoch=5)
    assert (reply.request, reply.drives[0].state, reply.cartridges) == (4, "empty", ())
    with pytest.raises(StaleError):
        node.unload(epoch=4)
    with pytest.raises(NotFoundError):
        node.unload(epoch=6, drive="drive-7")


def test_unloading_takes_the_drive_from_whoever_has_it(node: Node) -> None:
    """The lease: with the fence, a session that is open loses its drive before the cartridge moves."""
    node.add()
    unit = node.load(epoch=5).drives[0].designator
    node.bench.access.open(node.bench.grant(unit, Rights.APPEND, epoch=Epoch(6)))
    with pytest.raises(StaleError):
        node.unload(epoch=6)
    assert node.tape.describe()[0][0].loaded == FIRST
    assert node.unload(epoch=7).drives[0].loaded == ""
    with pytest.raises(StaleError):
        node.bench.access.open(node.bench.grant(unit, Rights.APPEND, epoch=Epoch(6)))


def test_cartridges_are_exported_and_imported(node: Node) -> None:
    for tag in (FIRST, SECOND):
        node.add(tag)
    node.load(SECOND, epoch=5)
    with pytest.raises(BusyError):
        node.move(SECOND, "io")
    assert node.move(FIRST, "io").element == "io-1"
    assert node.move(FIRST, "io").element == "io-1"
    with pytest.raises(RefusedError, match="taken out"):
        node.load(FIRST, epoch=6)
    # What cannot be loaded unloads nothing.
    assert node.tape.describe()[0][0].loaded == SECOND
    assert node.move(FIRST, "slot-9").element == "slot-9"
    assert node.state().element == "slot-9"


def test_a_scan_finds_what_an_operator_did(node: Node, tmp_path: Path) -> None:
    for tag in (FIRST, SECOND):
        node.add(tag)
    node.label(SECOND, epoch=5)
    node.move(FIRST, "io")
    shutil.move(tmp_path / "library" / "io" / FIRST, tmp_path / "vault")
    assert node.state().element == "io-1"
    node.tape.scan()
    assert [c.tag for c in node.tape.describe()[1]] == [SECOND]
    shutil.move(tmp_path / "vault", tmp_path / "library" / "io" / FIRST)
    node.tape.scan()
    assert node.state().element == "io-1"
    assert (node.state(SECOND).status, node.state(SECOND).store) == ("writable", "ab" * 16)
    # It is seen as well when something else moves through the door.
    shutil.move(tmp_path / "library" / "io" / FIRST, tmp_path / "vault")
    node.unload(epoch=6)
    node.move(SECOND, "io-2")
    assert [c.tag for c in node.tape.describe()[1]] == [SECOND]


def test_a_drive_whose_cartridge_was_taken_out_by_hand_is_free(node: Node, tmp_path: Path) -> None:
    for tag in (FIRST, SECOND):
        node.add(tag)
    node.load(epoch=5)
    shutil.rmtree(tmp_path / "library" / FIRST)
    assert node.load(SECOND, epoch=6).drives[0].loaded == SECOND
    shutil.rmtree(tmp_path / "library" / SECOND)
    reply = node.unload(epoch=7)
    assert (reply.drives[0].loaded, reply.cartridges) == ("", ())
    assert node.tape.describe()[1] == ()


def test_a_cartridge_that_was_taken_out_of_its_slot_is_not_there_any_more(
    node: Node, tmp_path: Path
) -> None:
    for tag in (FIRST, SECOND, THIRD):
        node.add(tag)
    shutil.move(tmp_path / "library" / FIRST, tmp_path / "vault")
    with pytest.raises(SourceEmptyError, match=f"cartridge {FIRST} is not in slot-1 any more"):
        node.load(epoch=5)
    assert [c.tag for c in node.tape.describe()[1]] == [SECOND, THIRD]
    assert node.load(SECOND, epoch=7).drives[0].loaded == SECOND
    # At the door it is found, by whoever looks for it, and not loaded.
    shutil.move(tmp_path / "library" / THIRD, tmp_path / "library" / "io" / THIRD)
    with pytest.raises(RefusedError, match="where it may be taken out"):
        node.load(THIRD, epoch=8)
    # Whoever looks for one finds what has come back meanwhile.
    node.tape.scan()
    shutil.move(tmp_path / "vault", tmp_path / "library" / FIRST)
    with pytest.raises(SourceEmptyError, match="SDV009L8 is not in the library"):
        node.load(VolumeTag("SDV009L8"), epoch=8)
    assert FIRST in [c.tag for c in node.tape.describe()[1]]
    assert node.load(epoch=9).drives[0].loaded == FIRST
    places = [(c.tag, c.element) for c in node.tape.describe()[1]]
    assert places == [(FIRST, "drive-0"), (SECOND, "slot-2"), (THIRD, "io-1")]
    shutil.rmtree(tmp_path / "library" / SECOND)
    with pytest.raises(SourceEmptyError, match="is not in slot-2 any more"):
        node.move(SECOND, "io")


def test_a_copied_cartridge_is_quarantined_wherever_it_is_and_not_written_to(
    node: Node, tmp_path: Path
) -> None:
    """T6."""
    node.add()
    node.label(epoch=5)
    node.unload(epoch=6)
    shutil.copytree(tmp_path / "library" / FIRST, tmp_path / "library" / "io" / SECOND)
    node.tape.scan()
    for tag in (FIRST, SECOND):
        assert node.state(tag).status == "error"
        assert "one is a copy" in node.state(tag).detail
    reply = node.load(epoch=7)
    assert reply.cartridges[0].status == "error"
    unit = node.tape.units[reply.drives[0].designator]
    assert "one is a copy" in unit.refusal
    # Describing looks at what is loaded afresh, and still sees the other one.
    assert node.state().status == "error"
    shutil.rmtree(tmp_path / "library" / "io" / SECOND)
    node.tape.scan()
    assert node.state().status == "writable"
    assert unit.refusal == ""


def test_a_cartridge_under_another_ones_barcode_is_never_written_to(
    node: Node, tmp_path: Path
) -> None:
    """T5: two cartridges were swapped, chips and all, and the chips say what the stickers say."""
    for tag, volume in ((FIRST, CARTRIDGE), (SECOND, OTHER_VOLUME)):
        node.add(tag)
        epoch = 5 if tag == FIRST else 6
        node.label(tag, epoch=epoch, volume=volume)
    node.unload(epoch=7)
    library = tmp_path / "library"
    (library / FIRST).rename(library / "aside")
    (library / SECOND).rename(library / FIRST)
    (library / "aside").rename(library / SECOND)
    node.tape.scan()
    for tag in (FIRST, SECOND):
        assert node.state(tag).status == "error"
    with pytest.raises(VolumeError, match="another barcode"):
        node.load(epoch=8)
    for tag in (FIRST, SECOND):
        path = library / tag / "cartridge.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tag": tag}))
    content = (library / FIRST / "data").read_bytes()
    reply = node.load(epoch=9)
    assert (reply.cartridges[0].status, reply.cartridges[0].cartridge) == ("error", OTHER_VOLUME)
    assert f"the label says barcode {SECOND}" in reply.cartridges[0].detail
    unit = node.tape.units[reply.drives[0].designator]
    assert f"the label says barcode {SECOND}" in unit.refusal
    node.unload(epoch=10)
    assert (library / FIRST / "data").read_bytes() == content


def test_a_foreign_tape_is_called_by_name_and_not_written_to(node: Node) -> None:
    node.add()
    node.load(epoch=5)
    node.write([b"VOL1ABC123L" + b" " * 13 + b"LTFS".ljust(13) + b" " * 42 + b"4"])
    reply = node.load(epoch=6)
    assert (reply.cartridges[0].status, reply.cartridges[0].detail) == (
        "foreign",
        "an LTFS volume, 'ABC123'",
    )
    unit = node.tape.units[reply.drives[0].designator]
    assert "LTFS" in unit.refusal
    assert unit.committed_end == 1


def test_a_write_protected_cartridge_says_so(node: Node, tmp_path: Path) -> None:
    """T10."""
    node.add()
    path = tmp_path / "library" / FIRST / "cartridge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_write_protected": True}))
    node.tape.scan()
    assert node.state().is_write_protected
    assert node.load(epoch=5).cartridges[0].is_write_protected
    outcome = node.library.drives[0].write_record(memoryview(b"x"), crc32c=crc32c(b"x"))
    assert outcome.triple == (0x07, 0x27, 0x00)
    with pytest.raises(RefusedError, match="write-protected"):
        node.erase(epoch=6, is_forced=True)


def test_loading_a_cleaning_cartridge_cleans_the_drive(node: Node) -> None:
    node.add()
    assert node.add(CLEANER).status == "cleaning"
    path = node.folder / "library" / "drives.json"
    counters = {"loads": 500, "loads_since_cleaning": LOADS_PER_CLEANING - 1, "cleanings": 0}
    path.write_text(json.dumps({"format_version": 1, "drives": {"drive-0": counters}}))
    node.restart()
    assert not node.tape.describe()[0][0].needs_cleaning
    node.load(epoch=5)
    drive = node.tape.describe()[0][0]
    assert (drive.needs_cleaning, drive.alerts) == (True, 1 << 20)
    reply = node.load(CLEANER, epoch=1000)
    assert (reply.drives[0].state, reply.drives[0].needs_cleaning) == ("empty", False)
    assert (reply.cartridges[0].tag, reply.cartridges[0].status) == (CLEANER, "cleaning")
    assert reply.cartridges[0].detail == "49 cleanings left"
    assert node.state().element == "slot-1"
    assert node.load(epoch=1001).drives[0].loaded == FIRST


def test_a_used_up_cleaning_cartridge_raises_an_alert(node: Node) -> None:
    node.add(CLEANER)
    path = node.folder / "library" / CLEANER / "cartridge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cleanings_left": 0}))
    with pytest.raises(RefusedError, match="used up"):
        node.load(CLEANER, epoch=5)
    assert words_of(node.tape.describe()[0][0].alerts) == ("expired cleaning media",)


# --- errors, and a model of a drive --------------------------------------------------------------


@pytest.mark.parametrize("is_taken_out", [True, False])
def test_errors_of_a_load_stay_with_the_cartridge_and_the_drive(
    node: Node, *, is_taken_out: bool
) -> None:
    node.add()
    designator = node.load(epoch=5).drives[0].designator
    health = node.tape.units[designator].health
    health.count(READ_ERROR, written=3 << 20, read=2 << 20)
    drive = node.tape.describe()[0][0]
    assert (drive.read_errors, drive.write_errors) == (1, 0)
    assert words_of(drive.alerts) == ("hard error", "media", "read failure")
    loaded = decode_attributes(node.tape.attributes(FIRST))
    assert loaded[AttributeId.BYTES_READ_IN_LIFE].number == 2
    assert words_of(loaded[AttributeId.TAPE_ALERT_FLAGS].number) == words_of(drive.alerts)
    if is_taken_out:
        node.unload(epoch=1000)
    node.restart()
    drive, other = node.tape.describe()[0]
    assert (drive.read_errors, drive.alerts, other.read_errors) == (1, 0, 0)
    state = node.state()
    assert (state.read_errors, state.write_errors) == (1, 0)
    assert words_of(state.alerts) == ("media",)
    again = decode_attributes(node.tape.attributes(FIRST))
    assert again[AttributeId.BYTES_WRITTEN_IN_LIFE].number == 3
    assert again[AttributeId.BYTES_WRITTEN_IN_LAST_LOAD].number == 3


def test_a_drive_with_a_model_tells_what_a_real_one_would_have_spent(
    bench: Any, tmp_path: Path
) -> None:
    node = Node(bench, tmp_path, make_drive=lambda: ModelledDrive(SPECIFICATIONS["lto8"]))
    node.add()
    assert node.load(epoch=5).drives[0].usage[0].load_s == 15
    node.append(b"x" * 100)
    reply = node.unload(epoch=6)
    [usage] = reply.drives[0].usage
    assert (usage.model, usage.loads, usage.load_s) == ("lto8", 1, 39)
    assert usage.bytes_written > 100
    assert decode(encode(reply)) == reply
    node.tape.close()


# --- retention -----------------------------------------------------------------------------------


def test_retention_is_only_ever_extended(node: Node) -> None:
    node.add()
    assert node.retain(FUTURE).retain_until == FUTURE
    assert node.retain(PAST).retain_until == FUTURE
    assert node.retain("").retain_until == FUTURE
    assert node.retain("", is_held=True).is_held
    assert node.retain("2027-01-01T00:00:00Z").retain_until == "2027-01-01T00:00:00Z"
    assert not node.state().is_held
    with pytest.raises(UsageError):
        node.retain("tomorrow")
    with pytest.raises(NotFoundError):
        node.retain(FUTURE, tag=SECOND)
    assert node.state().retain_until == "2027-01-01T00:00:00Z"


def test_a_retention_does_not_begin_before_the_last_trailer_on_the_cartridge(node: Node) -> None:
    """The node's clock and the controller's have fallen back, and its record of the time is lost."""
    node.add()
    node.label(epoch=5)
    objects, trailer = part_objects([b"x" * 512])
    node.write(objects)
    node.clock.jump(NOW - timedelta(days=4000))
    node.tape._clock = NodeClock(node.clock, boot=BOOT, folder=None)
    node.load(epoch=6)
    message = TapeRetain(request=7, tag=FIRST, retain_until="", is_held=False, retain_s=3600)
    reply = node.tape.retain(message)
    assert reply.cartridges[0].retain_until == retain_until(3600, trailer.created)
    assert reply.clock == written(node.clock.wall())


def test_retention_survives_a_restart_also_of_a_loaded_cartridge(
    bench: Any, tmp_path: Path
) -> None:
    node = Node(bench, tmp_path)
    node.add()
    node.load(epoch=5)
    node.retain(FUTURE, is_held=True)
    node.append(b"x")  # which writes cartridge.json again
    node.tape.close()
    again = Node(bench, tmp_path)
    assert (again.state().retain_until, again.state().is_held) == (FUTURE, True)
    again.tape.close()


def test_erasing_makes_blank_and_forgets_what_was_retained(node: Node) -> None:
    node.add()
    node.label(epoch=5)
    objects, _ = part_objects([b"x" * 512], pool="daily", retain_until=PAST)
    node.write(objects)
    node.retain(PAST)
    generation = node.state().generation
    reply = node.erase(epoch=6)
    state = reply.cartridges[0]
    assert (state.status, state.end, state.cartridge, state.retain_until) == ("blank", 0, "", "")
    assert state.generation > generation
    assert (reply.drives[0].epoch, reply.drives[0].loaded) == (6, FIRST)
    unit = node.tape.units[reply.drives[0].designator]
    assert (unit.position, unit.committed_end, unit.refusal) == (0, 0, "")
    # Twice is once, and it can be labelled again.
    assert node.erase(epoch=7).cartridges[0].status == "blank"
    node.label(epoch=8, volume=OTHER_VOLUME)
    assert node.state().cartridge == OTHER_VOLUME


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda node: node.retain(FUTURE), f"retained until {FUTURE}"),
        (lambda node: node.retain("", is_held=True), "held"),
        (
            lambda node: node.write(part_objects([b"x"], retain_until=FUTURE)[0]),
            f"retained until {FUTURE}",
        ),
    ],
    ids=["retained by the node", "held", "retained by the last part"],
)
def test_nobody_erases_what_is_retained(
    node: Node, caplog: pytest.LogCaptureFixture, prepare: Any, reason: str
) -> None:
    """T14."""
    node.add()
    node.label(epoch=5)
    prepare(node)
    end = node.state().end
    data = (node.folder / "library" / FIRST / "data").read_bytes()
    with caplog.at_level(logging.INFO, "storage_node.audit"):
        for epoch, is_forced in ((6, False), (7, True)):
            with pytest.raises(RetainedError, match=reason):
                node.erase(epoch=epoch, is_forced=is_forced)
    told = [r for r in caplog.records if r.name == "storage_node.audit"]
    assert [(r.message, r.request, r.cartridge, r.forced) for r in told] == [  # type: ignore[attr-defined]
        ("refused", "tape.erase", FIRST, False),
        ("refused", "tape.erase", FIRST, True),
    ]
    assert all(reason in r.reason for r in told)  # type: ignore[attr-defined]
    assert node.state().end == end
    assert (node.folder / "library" / FIRST / "data").read_bytes() == data
    # When it is over, it is over.
    node.retain("", is_held=False)
    node.clock.advance(1)
    assert node.erase(epoch=8).cartridges[0].status == "blank"


def test_every_part_counts_not_only_the_last(node: Node) -> None:
    node.add()
    node.label(epoch=5)
    one, first = part_objects([b"x"], retain_until=FUTURE)
    two, _ = part_objects([b"y"], first_object=4 + len(one), previous=first, retain_until=PAST)
    node.write([*one, *two])
    with pytest.raises(RefusedError, match=FUTURE):
        node.erase(epoch=6)


def test_the_node_keeps_what_a_trailer_retains(node: Node, tmp_path: Path) -> None:
    """So damage to the trailer does not shorten it, not even for who uses force."""
    node.add()
    node.label(epoch=5)
    objects, trailer = part_objects([b"x" * 512], retain_until=FUTURE)
    node.write(objects)
    node.unload(epoch=6)
    assert node.state().retain_until == FUTURE
    path = tmp_path / "library" / FIRST / "data"
    content = bytearray(path.read_bytes())
    content[content.rindex(b'"retain_until"')] ^= 1
    path.write_bytes(content)
    reply = node.load(epoch=7)
    # What the damaged trailer committed is not known, so none of it is taken for an orphan tail.
    unit = node.tape.units[reply.drives[0].designator]
    assert (reply.trailer_sequence, unit.committed_end) == (0, reply.end)
    node.library.drives[0].locate(4)
    assert unit.find_committed_end() == reply.end
    with pytest.raises(RefusedError, match="retained"):
        node.erase(epoch=8, is_forced=True)
    node.clock.advance(1)
    # Now it is only unknown what the damaged part would say.
    with pytest.raises(RefusedError, match=f"object {trailer.trailer_object} cannot be read"):
        node.erase(epoch=9)
    assert node.erase(epoch=10, is_forced=True).cartridges[0].status == "blank"


def test_a_worm_cartridge_is_written_once(node: Node) -> None:
    node.tape.add(TapeAdd(request=1, tag=FIRST, capacity_bytes=1 << 24, is_worm=True))
    assert node.state().is_worm
    with pytest.raises(RefusedError, match="already"):
        node.add()
    node.label(epoch=5)
    with pytest.raises(RefusedError, match="WORM"):
        node.erase(epoch=6, is_forced=True)
    assert node.state().end == 4


def test_a_foreign_tape_is_erased_by_force_only(node: Node) -> None:
    node.add()
    node.load(epoch=5)
    node.write([b"AMANDA: TAPESTART DATE X TAPE DAILY-07\n"])
    with pytest.raises(RefusedError, match=r"Amanda tape, label 'DAILY-07'.*--force"):
        node.erase(epoch=6)
    assert node.state().end == 1
    assert node.erase(epoch=7, is_forced=True).cartridges[0].status == "blank"


def test_a_cartridge_whose_end_is_lost_is_erased_by_force_and_used_again(
    node: Node, tmp_path: Path
) -> None:
    node.add()
    node.label(epoch=5)
    node.unload(epoch=6)
    path = tmp_path / "library" / FIRST / "data"
    path.write_bytes(path.read_bytes()[:-200])
    node.load(epoch=7)
    before = node.state()
    assert before.status == "error"
    with pytest.raises(RefusedError):
        node.erase(epoch=8)
    state = node.erase(epoch=9, is_forced=True).cartridges[0]
    assert (state.status, state.end, state.element) == ("blank", 0, "drive-0")
    assert state.generation > before.generation
    assert path.stat().st_size == 0
    node.label(epoch=10)
    node.unload(epoch=11)
    assert node.state().status == "writable"


@pytest.mark.parametrize(
    "ask",
    [
        lambda node: node.load(SECOND, epoch=10),
        lambda node: node.unload(epoch=10),
        lambda node: node.erase(epoch=10),
    ],
)
def test_who_was_overtaken_while_the_drive_was_busy_does_nothing_any_more(
    node: Node, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Node], NodeReply]
) -> None:
    """Its fence was there first, then another one, and the other one was answered: nobody expects it any more."""
    for tag in (FIRST, SECOND):
        node.add(tag)
    node.label(epoch=5)
    real = node.bench.access.fence

    def overtaken(designator: Any, epoch: Epoch, lane: int = 0) -> None:
        real(designator, epoch, lane)
        real(designator, Epoch(epoch + 1), lane)

    monkeypatch.setattr(node.bench.access, "fence", overtaken)
    with pytest.raises(StaleError, match="epoch 10 was overtaken, the drive is at 11"):
        ask(node)
    there = node.library.drives[0].cartridge
    assert there is not None
    assert (there.info.tag, there.object_count) == (FIRST, 4)


def test_what_is_not_in_the_drive_is_not_erased(node: Node) -> None:
    for tag in (FIRST, SECOND):
        node.add(tag)
    with pytest.raises(NotFoundError, match="empty"):
        node.erase(epoch=5)
    node.load(SECOND, epoch=6)
    with pytest.raises(NotFoundError, match=f"{SECOND} is"):
        node.erase(epoch=7)
    with pytest.raises(StaleError):
        node.erase(SECOND, epoch=6)


def test_an_inventory_of_a_full_library_is_one_message(node: Node) -> None:
    node.add()
    node.label(epoch=5)
    state = replace(
        node.state(),
        tag=VolumeTag("A" * 32),
        detail="x" * DETAIL_CHARACTERS_MAX,
        capacity_bytes=1 << 60,
        used_bytes=1 << 60,
        record_bytes=1 << 60,
        end=1 << 40,
        element="slot-2000",
        retain_until="2026-01-11T10:43:48.123456789Z",
        status="quarantined",
        loads=1 << 20,
        generation=1 << 31,
    )
    inventory = NodeInventory(
        boot_id=bytes(16),
        public_key=bytes(32),
        addresses=("tcp://tape.example:7748",),
        roles=("tape",),
        volumes=(),
        views=(),
        drives=node.tape.describe()[0],
        cartridges=(state,) * 2048,
    )
    assert len(encode(inventory)) < MESSAGE_BYTES_MAX


# --- drives side by side -------------------------------------------------------------------------


class Slow:
    """Two played drives; each command that takes time waits until its drive's gate is open."""

    def __init__(self, bench: Any, folder: Path) -> None:
        self.gates: list[threading.Event] = []
        self.asleep: list[threading.Event] = []
        self.node = Node(bench, folder, make_drive=self._drive)

    def _drive(self) -> ModelledDrive:
        gate, asleep = threading.Event(), threading.Event()
        gate.set()
        self.gates.append(gate)
        self.asleep.append(asleep)

        def sleep(_: float) -> None:
            asleep.set()
            assert gate.wait(WAIT_S)

        return ModelledDrive(SPECIFICATIONS["lto9"], pace=1.0, sleep=sleep)

    @contextlib.contextmanager
    def during(self, work: Callable[[], object], *, drive: int = 0) -> Iterator[threading.Thread]:
        """Begin what takes a drive time, and let it go on only behind the block."""
        self.gates[drive].clear()
        self.asleep[drive].clear()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert self.asleep[drive].wait(WAIT_S)
            yield thread
            assert thread.is_alive()
        finally:
            self.gates[drive].set()
            thread.join(WAIT_S)


@pytest.fixture
def slow(bench: Any, tmp_path: Path) -> Iterator[Slow]:
    made = Slow(bench, tmp_path)
    for tag in (FIRST, SECOND):
        made.node.add(tag)
    yield made
    made.node.tape.close()


def test_while_a_drive_threads_everything_else_goes_on(slow: Slow) -> None:
    node = slow.node
    with slow.during(lambda: node.load(FIRST, epoch=5)):
        # Another drive loads, is written to, and unloads.
        assert node.load(SECOND, epoch=6, drive="drive-1").drives[0].loaded == SECOND
        node.write([b"x", b"y"], drive=1)
        begin = time.monotonic()
        drives, cartridges = node.tape.describe()
        assert time.monotonic() - begin < 5 * tape_control.BUSY_S
        assert {c.tag: c.element for c in cartridges} == {FIRST: "drive-0", SECOND: "drive-1"}
        assert [d.drive for d in drives] == ["drive-0", "drive-1"]
        assert node.unload(epoch=7, drive="drive-1").cartridges[0].element == "slot-2"
        # The library is open to others: cartridges come and are kept, and a scan leaves the one in the drive there.
        third = VolumeTag("SDV003L8")
        node.add(third)
        assert node.retain(FUTURE, tag=third).retain_until == FUTURE
        assert node.move(SECOND, "io").element == "io-1"
        node.tape.scan()
        assert node.state().element == "drive-0"
        # Nobody else gets it, and it is not moved.
        with pytest.raises(BusyError, match="in drive-0"):
            node.load(FIRST, epoch=8, drive="drive-1")
        with pytest.raises(BusyError, match="in drive-0"):
            node.move(FIRST, "io")
    found = node.state()
    assert (found.element, found.status) == ("drive-0", "blank")
    assert [d.loaded for d in node.tape.describe()[0]] == [FIRST, ""]


def test_what_concerns_the_cartridge_that_is_threaded_waits_for_it(slow: Slow) -> None:
    node = slow.node
    told: list[Any] = []
    later = threading.Thread(target=lambda: told.append(node.retain(FUTURE)))
    with slow.during(lambda: node.load(FIRST, epoch=5)):
        later.start()
        later.join(0.3)
        assert later.is_alive()
        assert not told
    later.join(WAIT_S)
    assert [(state.retain_until, state.element) for state in told] == [(FUTURE, "drive-0")]
    assert node.library.info(FIRST).retain_until == FUTURE


def test_while_a_drive_rewinds_or_locates_another_one_works(slow: Slow) -> None:
    node = slow.node
    node.label(epoch=5)
    node.load(SECOND, epoch=6, drive="drive-1")
    head = node.library.drives[0]

    def locate() -> None:
        unit = node.tape.units[node.tape.describe()[0][0].designator]
        with unit.mutex:
            head.locate(0)

    with slow.during(locate):
        assert node.tape.describe()[0][1].loaded == SECOND
        assert node.unload(epoch=7, drive="drive-1").drives[0].loaded == ""
        end = node.state().end
    with slow.during(lambda: node.unload(epoch=8)):
        assert node.load(SECOND, epoch=9, drive="drive-1").drives[0].loaded == SECOND
        # It is out of the drive's sight and not yet in its slot: what was known is told.
        assert (node.state().end, node.state().element) == (end, "drive-0")
    assert node.state().element == "slot-1"


def test_a_cartridge_that_cannot_be_threaded_is_back_in_its_slot(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = slow.node

    def broken(folder: Path, **_: Any) -> None:
        raise MediumError("the leader pin is gone")

    monkeypatch.setattr(node.library.drives[0], "load", broken)
    with pytest.raises(MediumError, match="leader pin"):
        node.load(epoch=5)
    assert node.state().element == "slot-1"
    assert node.move(FIRST, "io").element == "io-1"


def test_a_disk_that_gets_full_and_has_room_again_is_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add()
    assert not node.state().is_out_of_space
    assert not node.tape.has_space_changed()
    asked: dict[str, bool] = {}
    monkeypatch.setattr(node.library, "free_bytes", lambda **how: asked.update(how) or 1000)
    assert node.tape.has_space_changed()
    assert asked == {"looks": True}
    assert node.state().is_out_of_space
    assert not node.tape.has_space_changed(), "it was told"
    assert node.load(epoch=5).cartridges[0].is_out_of_space
    monkeypatch.undo()
    assert node.tape.has_space_changed()
