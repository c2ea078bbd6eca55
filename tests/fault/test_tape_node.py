"""The faults of a tape node, row by row (T1 to T14 of the fault tables), with a node that really runs.

Each test is named after its row.  Other tests that belong to a row, closer to the core or over the whole system
(unit/... is tests/unit/storage_node/tape):

| row | what | also in |
|-----|------|---------|
| T1  | a crash between append and flush | unit/.../test_recovery (every cut, every power cut); simulation |
| T2  | a torn record at the tail | unit/.../test_recovery (data, index and both cut at every byte) |
| T3  | the end of the medium within a record | contracts/tape_drive; scenarios/a-cartridge-too-short.txt |
| T4  | early warning | contracts/tape_drive; scenarios/early-warning.txt |
| T5  | the wrong cartridge | unit/.../test_library, unit/storage_node/test_tape_control |
| T6  | one identity twice | unit/.../test_library, unit/storage_node/test_tape_control |
| T7  | longer than the catalog | unit/.../test_volume_reader; fault/test_kills_and_pauses |
| T8  | shorter than the catalog | unit/.../test_recovery, test_virtual_drive; simulation |
| T9  | another position than expected | unit/storage_node/test_tape_unit; simulation |
| T10 | write protection, cleaning, load timeout | fault/test_stuck_drives; unit/.../test_head, test_library |
| T11 | EIO when writing a record | unit/.../test_virtual_drive |
| T12 | EIO when synchronising | unit/.../test_virtual_drive, test_cartridge |
| T13 | bits that rot, records of others | unit/.../test_virtual_drive; fault/test_damage (verify and restore) |
| T14 | erasing and overwriting what is retained | unit/storage_node/test_tape_unit (fuzz), test_tape_control |

T15 and T16 are about keys of sealed records.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backplane.errors import BackupError
from backplane.ids import VolumeTag
from backplane.scsi.sense import Sense
from backplane.tape_format import PartTrailer
from backplane.testing.tape_content import CARTRIDGE, Filemark, Object, part_objects
from backplane.units import KIB, MIB
from backplane.wire.frames import Opcode
from backplane.wire.grants import Rights
from backplane.wire.messages import TapeErase, TapeLoad, TapeMove, TapeRetain
from tests.site.tape_process import DRIVE, TapeProcess, ask, read, triple, write

pytestmark = [pytest.mark.processes, pytest.mark.fault]

TAG, OTHER = "LTO001L8", "LTO002L8"
CLEANER = "CLN001CU"
WAIT_S = 20.0
OVERWRITE_REFUSED = (0x07, 0x30, 0x0C)
CANNOT_WRITE = (0x07, 0x30, 0x05)
WRITE_ERROR = (0x03, 0x0C, 0x00)
READ_ERROR = (0x03, 0x11, 0x00)
OVERFLOW = (0x0D, 0x00, 0x02)
END_OF_MEDIUM = (0x00, 0x00, 0x02)


def works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=WAIT_S).returncode == 0


needs_strace = pytest.mark.skipif(
    not works("strace", "-o", "/dev/null", "-e", "inject=getppid:error=EIO", "true"),
    reason="needs strace, and the permission to trace",
)


@pytest.fixture
def node(short_folder: Path) -> Iterator[TapeProcess]:
    with TapeProcess(short_folder) as made:
        yield made


def committed(node: TapeProcess, *, records: int = 3, **options: str) -> PartTrailer:
    """Put a labelled cartridge with one committed part into the drive."""
    node.add(TAG)
    node.label(TAG)
    objects, trailer = part_objects([bytes([n]) * 512 for n in range(records)], **options)  # type: ignore[arg-type]
    with node.append() as channel:
        assert write(channel, objects, at=node.end)[-1].is_good
    node.load(TAG)
    return trailer


def data_of(node: TapeProcess, tag: str = TAG) -> Path:
    return node.library / tag / "data"


def edit_info(node: TapeProcess, folder: str, **changes: object) -> None:
    path = node.library / folder / "cartridge.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_t1_what_was_not_flushed_is_gone_and_the_old_session_with_it(node: TapeProcess) -> None:
    committed(node)
    end = node.end
    grant = node.grant()
    channel = node.open(grant)
    assert write(channel, [b"unflushed" * 100] * 5, at=end)[-1].is_good
    node.kill()
    with pytest.raises((BackupError, OSError)):
        write(channel, [b"x"], at=end + 5)
    channel.close()
    node.start()
    assert node.found is not None
    reply = node.load(TAG)
    assert (reply.end, reply.trailer_sequence) == (end, 1)
    with pytest.raises(BackupError):
        node.open(grant)
    with node.append() as channel:
        assert write(channel, [b"next", Filemark.SYNCHRONOUS], at=end)[-1].is_good


def test_t2_a_torn_record_at_the_tail_is_cut_off(node: TapeProcess) -> None:
    committed(node)
    end = node.end
    with node.append() as channel:
        write(channel, [b"a" * 700, b"b" * 700], at=end)
        node.kill()
    whole = data_of(node).stat().st_size
    for left in (whole - 5, whole - 2 * 732 + 1):
        with data_of(node).open("r+b") as stream:
            stream.truncate(left)
        node.start()
        reply = node.load(TAG)
        assert (reply.end, reply.trailer_sequence) == (end, 1)
        assert reply.cartridges[0].status == "writable"
        node.kill()
    node.start()
    node.load(TAG)
    with node.append() as channel:
        assert write(channel, [b"new", Filemark.SYNCHRONOUS], at=end)[-1].is_good
        assert read(channel, end, 100) == b"new"


def test_t3_t4_early_warning_leaves_room_for_the_trailer_and_the_end_takes_nothing_half(
    node: TapeProcess,
) -> None:
    node.add(TAG, capacity_bytes=256 * KIB)
    node.label(TAG)
    record = random.Random(1).randbytes(8 * KIB)  # which no compression makes shorter
    with node.append() as channel:
        place = start = node.end
        warned: list[int] = []
        while True:
            [reply] = write(channel, [record], at=place)
            if reply.header.address != place + 1:
                break
            place += 1
            if not reply.is_good and triple(reply) == END_OF_MEDIUM:
                warned.append(place)
        # The record that does not fit is not there, not even its beginning; a smaller one still fits.
        assert triple(reply) == OVERFLOW
        assert (reply.header.address, Sense.decode(reply.sense).information) == (place, len(record))
        assert warned[0] > start
        assert warned == list(range(warned[0], place + 1))
        assert isinstance(read(channel, place - 1, len(record)), bytes)
        [mark] = write(channel, [Filemark.SYNCHRONOUS], at=place)
        assert triple(mark) == END_OF_MEDIUM
    reply = node.load(TAG)
    assert (reply.end, reply.durable_end) == (place + 1, place + 1)
    assert reply.cartridges[0].status == "full"
    # Whoever stops at early warning has room for the trailer that commits.
    node.add(OTHER, capacity_bytes=256 * KIB)
    node.label(OTHER, cartridge="ff" * 16)
    data = [record] * (warned[0] - start)
    objects, trailer = part_objects(data, cartridge="ff" * 16)
    with node.append() as channel:
        replies = write(channel, objects, at=start)
    assert len(replies) == len(objects)
    assert not replies[-1].is_good
    reply = node.load(OTHER)
    assert (reply.trailer_sequence, reply.end) == (1, trailer.trailer_object + 2)
    assert reply.cartridges[0].status == "full"


def test_t5_swapped_cartridges_are_noticed_and_nothing_is_written_to_them(
    node: TapeProcess,
) -> None:
    for tag, volume in ((TAG, CARTRIDGE), (OTHER, "ff" * 16)):
        node.add(tag)
        node.label(tag, cartridge=volume)
    node.unload()
    one, other = node.library / TAG, node.library / OTHER
    one.rename(node.library / "aside")
    other.rename(one)
    (node.library / "aside").rename(other)
    assert {state.status for state in node.scan().values()} == {"error"}
    refused = node.refused(TapeLoad, drive=DRIVE, tag=VolumeTag(TAG), epoch=node.next_epoch())
    assert (refused.error, "another barcode" in refused.reason) == ("volume", True)
    # Even if the chips agree with the stickers, the label does not.
    for tag in (TAG, OTHER):
        edit_info(node, tag, tag=tag)
    before = data_of(node).read_bytes()
    state = node.load(TAG).cartridges[0]
    assert (state.status, f"barcode {OTHER}" in state.detail) == ("error", True)
    with node.append() as channel:
        assert triple(write(channel, [b"x"], at=node.end)[0]) == CANNOT_WRITE
        assert triple(write(channel, [Filemark.SYNCHRONOUS], at=node.end)[0]) == CANNOT_WRITE
    node.unload()
    assert data_of(node).read_bytes() == before


def test_t6_a_copied_cartridge_is_quarantined_with_its_copy(node: TapeProcess) -> None:
    committed(node)
    node.unload()
    [state] = node.ask(TapeMove, tag=VolumeTag(TAG), to="io").cartridges
    assert state.element == "io-1"
    shutil.copytree(node.library / "io" / TAG, node.library / OTHER)
    found = node.scan()
    assert {(s.status, s.element) for s in found.values()} == {
        ("error", "io-1"),
        ("error", "slot-1"),
    }
    edit_info(node, OTHER, tag=OTHER)
    node.load(OTHER)
    with node.append() as channel:
        assert triple(write(channel, [b"x"], at=node.end)[0]) == CANNOT_WRITE
    # One of them leaves: which one it was is for a person to say.
    shutil.rmtree(node.library / "io" / TAG)
    edit = node.unload().cartridges[0]
    assert edit.tag == OTHER
    edit_info(node, OTHER, tag=TAG)
    (node.library / OTHER).rename(node.library / TAG)
    assert {tag: s.status for tag, s in node.scan().items()} == {TAG: "writable"}


def test_t7_an_orphan_tail_is_told_and_the_next_part_takes_its_place(node: TapeProcess) -> None:
    first = committed(node)
    end = node.end
    objects, second = part_objects([b"s" * 512], first_object=end, previous=first)
    with node.append() as channel:
        # All but the filemark that commits, and that one as well, but nobody hears of it.
        write(channel, objects[:-1], at=end)
        ask(channel, Opcode.FLUSH)
        node.kill()
    node.start()
    reply = node.load(TAG)
    assert (reply.trailer_sequence, reply.end) == (1, end + len(objects) - 1)
    with node.append(position=end) as channel:
        assert ask(channel, Opcode.LOCATE, address=end).is_good
        assert write(channel, objects, at=end)[-1].is_good
        node.kill()
    node.start()
    reply = node.load(TAG)
    assert (reply.trailer_sequence, reply.end) == (2, second.trailer_object + 2)
    # Now it is committed, and no grant takes it back.
    with node.append(position=end) as channel:
        assert ask(channel, Opcode.LOCATE, address=end).is_good
        assert triple(write(channel, [b"x"], at=end)[0]) == OVERWRITE_REFUSED


def test_t8_a_cartridge_that_became_shorter_is_in_error_and_takes_nothing(
    node: TapeProcess,
) -> None:
    committed(node)
    node.kill()
    with data_of(node).open("r+b") as stream:
        stream.truncate(data_of(node).stat().st_size - 300)
    node.start()
    reply = node.load(TAG)
    assert (reply.cartridges[0].status, reply.trailer_sequence) == ("error", 0)
    assert "too early" in reply.cartridges[0].detail
    with node.append() as channel:
        assert triple(write(channel, [b"x"], at=node.end)[0]) == (0x03, 0x31, 0x00)


def test_t9_a_mover_that_is_somewhere_else_writes_nothing(node: TapeProcess) -> None:
    committed(node)
    end, before = node.end, data_of(node).read_bytes()
    with node.append() as channel:
        for address in (end - 1, end + 1, 0):
            assert triple(write(channel, [b"x"], at=address)[0]) == (0x0B, 0x3B, 0x00)
        with node.append() as newer:
            # The older session is out, wherever it believes to be.
            assert triple(write(channel, [b"x"], at=end)[0]) == (0x06, 0x29, 0x00)
            assert write(newer, [b"mine"], at=end)[0].is_good
    assert data_of(node).read_bytes()[: len(before)] == before


def test_t10_write_protection_and_cleaning(node: TapeProcess) -> None:
    committed(node)
    node.add(CLEANER)
    node.unload()
    edit_info(node, TAG, is_write_protected=True)
    assert node.scan()[TAG].is_write_protected
    node.load(TAG)
    with node.append() as channel:
        assert triple(write(channel, [b"x"], at=node.end)[0]) == (0x07, 0x27, 0x00)
        assert isinstance(read(channel, 0, 16 * KIB), bytes)
    reply = node.load(CLEANER)
    assert (reply.drives[0].state, reply.cartridges[0].detail) == ("empty", "49 cleanings left")
    with node.append() as channel:
        assert triple(write(channel, [b"x"], at=0)[0]) == (0x02, 0x3A, 0x00)


@needs_strace
@pytest.mark.parametrize(
    ("call", "row"), [("pwritev,pwritev2", "T11"), ("fdatasync", "T12")], ids=["t11", "t12"]
)
def test_t11_t12_after_a_failed_write_the_last_good_position_counts_and_nothing_is_tried_again(
    node: TapeProcess, call: str, row: str
) -> None:
    committed(node)
    end = node.end
    channel = node.append()
    assert write(channel, [b"good", Filemark.SYNCHRONOUS], at=end)[-1].is_good
    with node.injecting(f"{call}:error=EIO:when=1", data_of(node)):
        replies = write(channel, [b"lost" * 100, Filemark.SYNCHRONOUS], at=end + 2)
        assert triple(replies[-1]) == WRITE_ERROR, row
    # The fault is over, and still: the session is dead until the cartridge was looked through again.
    place = replies[-1].header.address
    for opcode in (Opcode.WRITE_FILEMARKS, Opcode.FLUSH, Opcode.LOCATE):
        reply = ask(channel, opcode, address=place, length=int(opcode is Opcode.WRITE_FILEMARKS))
        assert triple(reply) == WRITE_ERROR
    channel.close()
    reply = node.load(TAG)
    assert reply.trailer_sequence == 1
    assert reply.end in (end + 2, end + 3, end + 4)
    assert reply.durable_end == reply.end
    with node.append() as channel:
        assert read(channel, end, 100) == b"good"
        assert ask(channel, Opcode.LOCATE, address=node.end).is_good
        assert write(channel, [b"on", Filemark.SYNCHRONOUS], at=node.end)[-1].is_good


def test_t13_what_has_rotted_is_an_error_at_its_record_and_nowhere_else(node: TapeProcess) -> None:
    """One bit, a whole record, two records swapped, and one of another cartridge."""
    node.add(OTHER)
    node.label(OTHER, cartridge="ff" * 16)
    with node.append() as channel:
        write(channel, [b"other" * 100, Filemark.SYNCHRONOUS], at=node.end)
    trailer = committed(node, records=7)
    first = trailer.data_object
    node.unload()
    step = 512 + 32
    data = bytearray(data_of(node).read_bytes())
    at = data.index(bytes(512)) - 32  # record 0 of the part is zeros
    data[at + 32 + 100] ^= 0x08
    data[at + step + 32 : at + 2 * step] = b"\xaa" * 512
    two, three = (slice(at + n * step, at + (n + 1) * step) for n in (2, 3))
    data[two], data[three] = bytes(data[three]), bytes(data[two])
    strange = data_of(node, OTHER).read_bytes()
    place = strange.index(b"other" * 100)
    data[at + 4 * step + 32 : at + 4 * step + 532] = strange[place : place + 500]
    data_of(node).write_bytes(data)
    node.load(TAG)
    with node.append(rights=Rights.READ) as channel:
        for number in range(5):
            found = read(channel, first + number, 600)
            assert isinstance(found, Sense)
            assert tuple(found.triple) == READ_ERROR
        for number in (5, 6):
            assert read(channel, first + number, 600) == bytes([number]) * 512


def test_t14_nobody_erases_or_overwrites_what_is_retained(node: TapeProcess) -> None:
    later = "2999-01-01T00:00:00Z"
    committed(node, retain_until=later)
    end, before = node.end, data_of(node).read_bytes()
    [state] = node.ask(
        TapeRetain, tag=VolumeTag(TAG), retain_until="2026-01-01T00:00:00Z", is_held=False
    ).cartridges
    assert state.retain_until == later
    for is_forced in (False, True):
        refused = node.refused(
            TapeErase,
            drive=DRIVE,
            tag=VolumeTag(TAG),
            epoch=node.next_epoch(),
            is_forced=is_forced,
        )
        assert (refused.error, later in refused.reason) == ("retained", True)
    for position in (0, 4, end - 1):
        with node.append(position=position) as channel:
            assert ask(channel, Opcode.LOCATE, address=position).is_good
            assert triple(write(channel, [b"x"], at=position)[0]) == OVERWRITE_REFUSED
    # Appending is not overwriting.
    with node.append() as channel:
        assert ask(channel, Opcode.LOCATE, address=end).is_good
        assert write(channel, [b"more"], at=end)[0].is_good
    node.kill()
    assert data_of(node).read_bytes()[: len(before)] == before
    assert node.log().count("refused") >= 5
    node.start()
    assert node.load(TAG).cartridges[0].retain_until == later


def test_no_clock_that_is_wrong_shortens_a_retention(node: TapeProcess) -> None:
    """A controller in the past, then a machine whose clock has leapt by 40 days, until a person has looked at it."""

    def moment(**ahead: float) -> str:
        return f"{datetime.now(UTC) + timedelta(**ahead):%Y-%m-%dT%H:%M:%SZ}"

    committed(node)
    request = {"tag": VolumeTag(TAG), "is_held": False}
    past = {"now": "2020-01-01T00:00:00Z", "retain_until": "2020-01-02T00:00:00Z"}
    reply = node.ask(TapeRetain, retain_s=2, **past, **request)
    [state] = reply.cartridges
    assert moment(seconds=-30) < reply.clock <= moment()
    assert reply.clock < state.retain_until <= moment(seconds=3)
    node.kill()
    # As if the node had believed the time of 40 days ago since the machine was started.
    kept = node.state / "clock.json"
    line = json.loads(kept.read_text())
    then = (datetime.fromisoformat(line["wall"]) - timedelta(days=40)).isoformat()
    kept.write_text(json.dumps(line | {"wall": then, "newest": then}))
    node.start()
    node.load(TAG)
    erase = {"drive": DRIVE, "tag": VolumeTag(TAG)}
    refused = node.refused(TapeErase, epoch=node.next_epoch(), now=moment(days=1), **erase)
    assert (refused.error, "it has leapt" in refused.reason) == ("retained", True), refused.reason
    command = [
        sys.executable,
        "-m",
        "storage_node",
        "accept-clock",
        "--config",
        str(node.folder / "node.toml"),
    ]
    assert subprocess.run(command, capture_output=True, timeout=WAIT_S).returncode == 5
    done = subprocess.run([*command, "--yes"], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "accepted"), done.stderr
    # A controller that is still in the past has it kept, and one that is right does not.
    early = node.refused(TapeErase, epoch=node.next_epoch(), now=past["now"], **erase)
    assert "which is at 2020-01-01T00:00:00Z" in early.reason
    while moment() <= state.retain_until:
        time.sleep(0.1)
    [state] = node.ask(TapeErase, epoch=node.next_epoch(), now=moment(), **erase).cartridges
    assert (state.status, state.retain_until) == ("blank", "")


@needs_strace
@pytest.mark.parametrize(
    ("name", "call", "is_erased"),
    [
        ("index", "pwritev,pwritev2", False),
        ("index", "ftruncate", False),
        ("data", "fdatasync", True),
    ],
)
def test_an_erase_that_is_killed_leaves_all_or_nothing(
    node: TapeProcess, name: str, call: str, is_erased: bool
) -> None:
    """Killed before the durable mark is lowered, before the index is cut, and when only the data are left to cut."""
    committed(node)
    end = node.end
    request = {"drive": DRIVE, "tag": VolumeTag(TAG)}
    with node.injecting(f"{call}:signal=KILL", node.library / TAG / name):
        node.post(TapeErase, epoch=node.next_epoch(), **request)
        assert node.child is not None
        node.child.wait(timeout_s=WAIT_S)
    node.start()
    reply = node.load(TAG)
    found = (reply.end, reply.trailer_sequence, reply.cartridges[0].status)
    assert found == ((0, 0, "blank") if is_erased else (end, 1, "writable"))
    state = node.ask(TapeErase, epoch=node.next_epoch(), **request).cartridges[0]
    assert (state.status, state.end) == ("blank", 0)
    node.label(TAG, cartridge="ee" * 16)
    assert node.load(TAG).cartridges[0].cartridge == "ee" * 16


def test_two_drives_stream_side_by_side(node: TapeProcess) -> None:
    for tag, volume in ((TAG, CARTRIDGE), (OTHER, "ff" * 16)):
        node.add(tag)
        node.label(tag, cartridge=volume)
        node.unload()
    for number, tag in enumerate((TAG, OTHER)):
        start = node.load(tag, drive=f"drive-{number}").end
    objects: list[Object] = [bytes([number]) * MIB for number in range(4)]
    with node.append(drive=0) as one, node.append(drive=1) as other:
        for number in range(4):
            for channel in (one, other):
                assert write(channel, [objects[number]], at=start + number)[0].is_good
        assert read(one, start + 1, MIB) == objects[1]
        assert write(other, [Filemark.SYNCHRONOUS], at=start + 4)[0].is_good
    assert node.unload(drive="drive-0").cartridges[0].end == start + 4
    found = node.scan()
    assert {tag: (s.end, s.element) for tag, s in found.items()} == {
        TAG: (start + 4, "slot-1"),
        OTHER: (start + 5, "drive-1"),
    }
