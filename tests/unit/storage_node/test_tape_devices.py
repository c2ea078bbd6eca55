"""The tape role over real drives: what it promises for virtual cartridges holds for these, in the models' words."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from backplane.crc import crc32c
from backplane.errors import BackupError, NotFoundError, RefusedError, StaleError
from backplane.ids import Epoch, VolumeTag
from backplane.scsi.attribute import AttributeId, decode_attributes
from backplane.tape_format import decode_record
from backplane.testing.clock import ManualClock
from backplane.testing.tape_content import (
    CARTRIDGE,
    Filemark,
    Object,
    label_objects,
    part_objects,
    volume_header,
)
from backplane.wire.frames import Opcode
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    CartridgeState,
    NodeReply,
    TapeAdd,
    TapeErase,
    TapeLoad,
    TapeMove,
    TapeRetain,
    TapeUnload,
)
from storage_node.core.tape_position import SpaceCode
from storage_node.node_clock import NodeClock
from storage_node.tape.device_drive import DeviceDrive
from storage_node.tape.device_library import DeviceLibrary
from storage_node.tape.smc_changer import SmcChanger
from storage_node.tape.tape_device import Identity
from storage_node.tape_control import TapeControl
from tests.site.rack import Rack
from tests.site.tape_process import ask, read, triple, write

FIRST, SECOND = VolumeTag("SDV001L8"), VolumeTag("SDV002L8")
NOW: Final = datetime(2026, 1, 11, 10, 43, 48, tzinfo=UTC)
PAST, FUTURE = "2026-01-11T10:43:48Z", "2026-01-11T10:43:49Z"
OTHER_VOLUME: Final = "ff" * 16
RECORDS: Final = [bytes([n]) * 512 for n in range(6)]
CANNOT_WRITE: Final = (0x07, 0x30, 0x05)
OVERWRITE_REFUSED: Final = (0x07, 0x30, 0x0C)
END_OF_MEDIUM: Final = (0x00, 0x00, 0x02)
FENCED: Final = (0x06, 0x29, 0x00)
NO_MEDIUM: Final = (0x02, 0x3A, 0x00)


class Node:
    """The tape role over a rack with two drives, with a controller and a mover."""

    def __init__(self, bench: Any, folder: Path, *, has_robot: bool) -> None:
        self.bench, self.folder, self.has_robot = bench, folder, has_robot
        self.rack = Rack(folder / "rack")
        self.clock = ManualClock(wall=NOW)
        self.epoch = 4
        self.loaded: NodeReply | None = None
        self.start()

    def start(self) -> None:
        drives = [
            DeviceDrive(
                Path(f"/dev/nst{number}"),
                open_device=self.rack.open,
                identity=Identity("MODEL DRIVE", f"SERIAL{number}"),
            )
            for number in range(2)
        ]
        numbers = itertools.count(1)
        self.library = DeviceLibrary(
            drives,
            state_folder=self.folder,
            changer=SmcChanger(self.rack.changer()) if self.has_robot else None,
            wait=lambda _: None,
        )
        self.tape = TapeControl(
            self.library,
            self.bench.access,
            state_folder=self.folder,
            clock=NodeClock(self.clock, boot="", folder=None),
            new_uuid=lambda: f"{next(numbers):032x}",
        )
        self.bench.units.update(self.tape.units)

    def crash(self) -> None:
        """End as a process that is killed: the kernel closes its tapes."""
        for device in list(self.rack.devices.values()):
            device.close()
        self.start()

    def next_epoch(self) -> Epoch:
        self.epoch += 1
        return Epoch(self.epoch)

    def load(self, tag: VolumeTag = FIRST, *, drive: str = "drive-0") -> NodeReply:
        message = TapeLoad(request=3, drive=drive, tag=tag, epoch=self.next_epoch())
        self.loaded = self.tape.load(message)
        return self.loaded

    def unload(self, *, drive: str = "drive-0") -> NodeReply:
        return self.tape.unload(TapeUnload(request=4, drive=drive, epoch=self.next_epoch()))

    def erase(self, tag: VolumeTag = FIRST, *, is_forced: bool = False) -> CartridgeState:
        epoch = self.next_epoch()
        message = TapeErase(request=6, drive="drive-0", tag=tag, epoch=epoch, is_forced=is_forced)
        return self.tape.erase(message).cartridges[0]

    def retain(self, until: str = "", *, is_held: bool = False) -> CartridgeState:
        return self.tape.retain(
            TapeRetain(request=7, tag=FIRST, retain_until=until, is_held=is_held)
        )

    def state(self, tag: VolumeTag = FIRST) -> CartridgeState:
        [found] = [c for c in self.tape.describe()[1] if c.tag == tag]
        return found

    def channel(self, *, position: int | None = None) -> Any:
        """Open drive-0 as a mover that appends, where the tape ended when it was loaded."""
        assert self.loaded is not None
        place = self.loaded.end if position is None else position
        grant = self.bench.grant(
            next(iter(self.tape.units)),
            Rights.READ | Rights.APPEND,
            position=place,
            epoch=self.next_epoch(),
        )
        return self.bench.open(grant)

    def append(self, objects: Iterable[Object]) -> list[Any]:
        assert self.loaded is not None
        with self.channel() as channel:
            return write(channel, objects, at=self.loaded.end)

    def label(self, tag: VolumeTag = FIRST, *, volume: str = CARTRIDGE) -> None:
        """Load a cartridge into drive-0, label it, and load it again."""
        self.load(tag)
        assert self.append(label_objects(volume_header(tag=tag, cartridge=volume)))[-1].is_good
        self.load(tag)


@pytest.fixture
def robot(bench: Any, tmp_path: Path) -> Iterator[Node]:
    """Two cartridges in slots, which were read."""
    rack = Rack(tmp_path / "rack")
    for number, tag in enumerate((FIRST, SECOND), 1):
        rack.make(tag)
        rack.put(tag, f"slot-{number}")
    made = Node(bench, tmp_path, has_robot=True)
    made.tape.scan()
    yield made
    made.tape.close()


@pytest.fixture
def hand(bench: Any, tmp_path: Path) -> Iterator[Node]:
    """One blank cartridge, which was put into drive-0 and has a name."""
    made = Node(bench, tmp_path, has_robot=False)
    made.rack.make(FIRST)
    made.rack.put(FIRST, "drive-0")
    made.tape.add(TapeAdd(request=1, tag=FIRST, capacity_bytes=1 << 26))
    yield made
    made.tape.close()


def sums(*records: bytes) -> bytes:
    return b"".join(struct.pack(">I", crc32c(record)) for record in records)


def test_a_whole_life_with_a_robot(robot: Node) -> None:
    drives, cartridges = robot.tape.describe()
    assert [(d.drive, d.product, d.serial, d.state) for d in drives] == [
        ("drive-0", "MODEL DRIVE", "SERIAL0", "empty"),
        ("drive-1", "MODEL DRIVE", "SERIAL1", "empty"),
    ]
    assert [(c.tag, c.status, c.element) for c in cartridges] == [
        (FIRST, "blank", "slot-1"),
        (SECOND, "blank", "slot-2"),
    ]
    robot.label()
    assert robot.state().cartridge == CARTRIDGE
    objects, trailer = part_objects(RECORDS, pool="daily", retain_until=FUTURE)
    assert robot.append(objects)[-1].is_good
    reply = robot.load()
    assert (reply.trailer_sequence, reply.end, reply.durable_end) == (1, reply.end, reply.end)
    assert reply.end == 4 + len(objects)
    state = reply.cartridges[0]
    assert (state.status, state.element, state.retain_until) == ("writable", "drive-0", FUTURE)
    assert state.used_bytes == 6 * 512
    first = trailer.data_object
    assert robot.tape.digest("SERIAL0", first, first + 6) == (sums(*RECORDS), first + 6)
    metadata = robot.tape.metadata("drive-0", 4)
    size = struct.unpack_from(">I", metadata.records)[0]
    assert decode_record(metadata.records[4 : 4 + size]).object_number == 4
    pieces = struct.pack(">QII", first + 1, 1, 3)
    assert robot.tape.sample("drive-0", pieces) == sums(RECORDS[1][1:4])
    with robot.channel() as channel:
        assert [read(channel, first + n, 512) for n in range(6)] == RECORDS
    found = decode_attributes(robot.tape.attributes(FIRST))
    assert found[AttributeId.MEDIA_POOL].text == "daily"
    robot.load()
    robot.append([b"left", b"over"])
    assert robot.unload().drives[0].state == "empty"
    assert (robot.state().status, robot.state().end) == ("writable", reply.end + 2)
    moved = robot.tape.move(TapeMove(request=5, tag=FIRST, to="io"))
    assert (moved.element, moved.status) == ("io-1", "writable")
    robot.rack.take("io-1")
    robot.tape.scan()
    assert [c.tag for c in robot.tape.describe()[1]] == [SECOND]


def test_another_node_finds_it_by_its_tape_alone(robot: Node) -> None:
    """The state folder is gone: label, trailer and retention are on the tape."""
    robot.label()
    objects, trailer = part_objects(RECORDS, retain_until=FUTURE)
    robot.append(objects)
    robot.load()
    robot.unload()
    robot.tape.close()
    for path in (robot.folder / "media").iterdir():
        path.unlink()
    robot.start()
    assert robot.tape.describe()[1] == ()
    robot.tape.scan()
    assert (robot.state().cartridge, robot.state().status) == (CARTRIDGE, "writable")
    reply = robot.load()
    assert (reply.trailer_sequence, reply.cartridges[0].retain_until) == (1, FUTURE)
    with pytest.raises(RefusedError, match=f"retained until {FUTURE}"):
        robot.erase(is_forced=True)
    first = trailer.data_object
    assert robot.tape.digest("drive-0", first, first + 6)[0] == sums(*RECORDS)


@pytest.mark.parametrize("written", [1, 2, 3, 6, 8, 9, 10])
def test_a_process_that_dies_leaves_a_tape_on_which_the_next_one_goes_on(
    robot: Node, written: int
) -> None:
    """T1, T2: also its driver's filemark, which nobody has asked for, is gone when the part is whole."""
    robot.label()
    objects, trailer = part_objects(RECORDS)
    with robot.channel() as channel:
        write(channel, objects[:written], at=4)
    robot.crash()
    reply = robot.load()
    if written == len(objects) - 1:
        # Only the filemark that commits was missing, and the driver's is as good.
        assert (reply.end, reply.trailer_sequence) == (4 + len(objects), 1)
    else:
        assert 4 <= reply.end <= 4 + written
        assert reply.trailer_sequence == 0
        assert robot.append(objects[reply.end - 4 :])[-1].is_good
    end = robot.load()
    assert (end.trailer_sequence, end.end) == (1, 4 + len(objects))
    first = trailer.data_object
    assert robot.tape.digest("drive-0", first, first + 6)[0] == sums(*RECORDS)


def test_an_old_session_does_not_outlive_the_next_load(robot: Node) -> None:
    robot.label()
    with robot.channel() as channel:
        assert write(channel, [b"x"], at=4)[-1].is_good
        with pytest.raises(StaleError):
            robot.tape.load(TapeLoad(request=1, drive="drive-0", tag=FIRST, epoch=Epoch(3)))
        robot.load()
        assert triple(write(channel, [b"y"], at=5)[-1]) == FENCED


def test_early_warning_leaves_room_for_the_trailer(bench: Any, tmp_path: Path) -> None:
    """T4: the driver tells it with ENOSPC, one write late."""
    rack = Rack(tmp_path / "rack")
    rack.make(FIRST, capacity_bytes=256 << 10, early_warning_bytes=64 << 10)
    rack.put(FIRST, "slot-1")
    node = Node(bench, tmp_path, has_robot=True)
    node.tape.scan()
    node.label()
    chance = random.Random(1)
    records: list[bytes] = []
    header, _ = part_objects([])
    with node.channel() as channel:
        at = write(channel, header[:2], at=4)[-1].header.address
        start = at
        while True:
            record = chance.randbytes(8 << 10)
            [reply] = write(channel, [record], at=at)
            at = reply.header.address
            records.append(record)
            if not reply.is_good:
                break
        assert triple(reply) == END_OF_MEDIUM
        # The record that met it is written, and what follows fits.
        assert at == start + len(records)
        for item in (Filemark.IMMEDIATE, b"trailer", Filemark.SYNCHRONOUS):
            [reply] = write(channel, [item], at=at)
            at = reply.header.address
        assert read(channel, start + len(records) - 1, 8 << 10) == records[-1]
    assert node.load().cartridges[0].status == "full"
    node.unload()
    assert node.state().status == "full"
    node.tape.close()


def test_nothing_committed_is_overwritten(robot: Node) -> None:
    """T14: whoever asks, with whatever grant."""
    robot.label()
    objects, trailer = part_objects(RECORDS)
    robot.append(objects)
    end = robot.load().end
    robot.append([b"orphan", b"tail"])
    robot.load()
    for place in (0, 4, trailer.data_object, end - 1):
        with robot.channel(position=place) as channel:
            ask(channel, Opcode.LOCATE, address=place)
            assert triple(write(channel, [b"x"], at=place)[-1]) == OVERWRITE_REFUSED
    assert robot.load().end == end + 2
    with robot.channel(position=end) as channel:
        ask(channel, Opcode.LOCATE, address=end)
        assert write(channel, [b"x", Filemark.SYNCHRONOUS], at=end)[-1].is_good
    assert robot.load().trailer_sequence == 1


def test_a_tape_that_is_not_the_one_it_should_be_is_never_written(robot: Node) -> None:
    """T5: two cartridges have each other's barcodes."""
    robot.label(FIRST)
    robot.label(SECOND, volume=OTHER_VOLUME)
    robot.unload()
    cartridges = robot.rack.cartridges
    (cartridges / FIRST).rename(cartridges / "aside")
    (cartridges / SECOND).rename(cartridges / FIRST)
    (cartridges / "aside").rename(cartridges / SECOND)
    reply = robot.load()
    assert reply.cartridges[0].status == "error"
    assert f"the label says barcode {SECOND}" in reply.cartridges[0].detail
    assert triple(robot.append([b"x"])[-1]) == CANNOT_WRITE
    with pytest.raises(RefusedError, match=SECOND):
        robot.erase()


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda node: node.retain(FUTURE), f"retained until {FUTURE}"),
        (lambda node: node.retain("", is_held=True), "held"),
        (
            lambda node: node.append(part_objects([b"x"], retain_until=FUTURE)[0]),
            f"retained until {FUTURE}",
        ),
    ],
    ids=["retained by the node", "held", "retained by a part"],
)
def test_nobody_erases_what_is_retained(robot: Node, prepare: Any, reason: str) -> None:
    robot.label()
    prepare(robot)
    end = robot.load().end
    for is_forced in (False, True):
        with pytest.raises(RefusedError, match=reason):
            robot.erase(is_forced=is_forced)
    robot.unload()
    robot.tape.close()
    robot.start()
    assert robot.load().end == end
    with pytest.raises(RefusedError, match=reason):
        robot.erase(is_forced=True)
    robot.retain("", is_held=False)
    robot.clock.advance(1)
    state = robot.erase()
    assert (state.status, state.end, state.cartridge, state.retain_until) == ("blank", 0, "", "")
    robot.label(volume=OTHER_VOLUME)
    assert robot.state().cartridge == OTHER_VOLUME


def test_retention_that_was_seen_once_outlives_a_damaged_trailer(robot: Node) -> None:
    robot.label()
    robot.append(part_objects(RECORDS, retain_until=FUTURE)[0])
    robot.load()
    robot.unload()
    path = robot.rack.cartridges / FIRST / "data"
    content = bytearray(path.read_bytes())
    content[content.rindex(b'"retain_until"')] ^= 1
    path.write_bytes(content)
    reply = robot.load()
    assert reply.trailer_sequence == 0
    with pytest.raises(RefusedError, match="retained"):
        robot.erase(is_forced=True)
    unit = next(iter(robot.tape.units.values()))
    assert unit.committed_end == reply.end


def test_a_foreign_tape_is_erased_by_force_only(robot: Node) -> None:
    robot.load()
    drive = robot.library.drives[0]
    record = b"AMANDA: TAPESTART DATE X TAPE DAILY-07\n"
    drive.write_record(memoryview(record), crc32c=crc32c(record))
    robot.unload()
    reply = robot.load()
    assert reply.cartridges[0].status == "foreign"
    assert triple(robot.append([b"x"])[-1]) == CANNOT_WRITE
    with pytest.raises(RefusedError, match=r"Amanda tape, label 'DAILY-07'.*--force"):
        robot.erase()
    assert robot.erase(is_forced=True).status == "blank"


def test_a_write_protected_cartridge_says_so(robot: Node) -> None:
    robot.rack.make("SDV003L8")
    robot.rack.put("SDV003L8", "slot-3")
    info = robot.rack.cartridges / "SDV003L8" / "cartridge.json"
    info.write_text(
        info.read_text().replace('"is_write_protected": false', '"is_write_protected": true')
    )
    robot.tape.scan()
    tag = VolumeTag("SDV003L8")
    assert robot.state(tag).is_write_protected
    assert robot.load(tag).cartridges[0].is_write_protected
    with pytest.raises(RefusedError, match="write-protected"):
        robot.erase(tag, is_forced=True)


# --- by hand -------------------------------------------------------------------------------------


def test_a_part_goes_to_a_drive_that_is_loaded_by_hand_and_back(hand: Node) -> None:
    hand.label()
    objects, trailer = part_objects(RECORDS)
    assert hand.append(objects)[-1].is_good
    assert hand.load().trailer_sequence == 1
    with hand.channel() as channel:
        assert read(channel, trailer.data_object + 2, 512) == RECORDS[2]
    reply = hand.unload()
    assert (reply.drives[0].state, reply.cartridges[0].element) == ("empty", "")
    assert hand.tape.describe()[1] == ()
    assert hand.rack.take("drive-0") == FIRST
    hand.rack.put(FIRST, "drive-1")
    hand.tape.scan()
    assert hand.state().element == "drive-1"
    with pytest.raises(BackupError, match="drive-1"):
        hand.load()
    assert hand.load(drive="drive-1").trailer_sequence == 1


def test_the_wrong_cartridge_in_the_drive_is_not_taken_for_the_right_one(hand: Node) -> None:
    """T5, by hand."""
    hand.label()
    hand.unload()
    hand.rack.take("drive-0")
    hand.rack.make("OTHER")
    hand.rack.put("OTHER", "drive-0")
    hand.tape.scan()
    assert hand.tape.describe()[1] == ()
    with pytest.raises(NotFoundError, match=FIRST):
        hand.load()
    hand.tape.add(TapeAdd(request=1, tag=SECOND, capacity_bytes=1 << 26))
    hand.label(SECOND, volume=OTHER_VOLUME)
    with pytest.raises(NotFoundError, match=FIRST):
        hand.load(FIRST)
    # What is in the drive was not given out for it.
    assert hand.state(SECOND).element == "drive-0"
    assert hand.rack.devices["drive-0"].is_locked


def test_a_restarted_node_finds_what_is_in_its_drive(hand: Node) -> None:
    hand.label()
    objects, _ = part_objects(RECORDS)
    with hand.channel() as channel:
        write(channel, objects[:5], at=4)
    hand.crash()
    assert (hand.state().element, hand.state().cartridge) == ("drive-0", CARTRIDGE)
    reply = hand.load()
    hand.append(objects[reply.end - 4 :])
    assert hand.load().trailer_sequence == 1


def test_an_empty_drive_answers_who_has_a_grant_for_it(hand: Node) -> None:
    hand.load()
    grant = hand.bench.grant(
        next(iter(hand.tape.units)), Rights.READ | Rights.APPEND, epoch=hand.next_epoch()
    )
    hand.unload()
    with pytest.raises(BackupError):
        hand.bench.open(grant)
    hand.library.drives[0].space(SpaceCode.END_OF_DATA)
    assert hand.library.drives[0].test_unit_ready().triple == NO_MEDIUM
