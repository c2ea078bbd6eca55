"""A drive on a data channel: opcodes to commands, positions, the newest session, the orphan tail."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import BackupError, MediumError
from backplane.ids import Designator, Epoch, VolumeTag
from backplane.scsi.sense import Sense
from backplane.scsi.tape_alert import words_of
from backplane.testing.clock import ManualClock
from backplane.testing.tape_content import (
    Object,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from backplane.transport.stream import Channel, Reply
from backplane.wire.frames import ANY_POSITION, Entry, Opcode, Protection
from backplane.wire.grants import Rights
from backplane.wire.messages import TapeAdd, TapeErase, TapeLoad, TapeRetain, TapeUnload
from storage_node.core.admission import Unit, UnitKind
from storage_node.node_clock import NodeClock
from storage_node.tape.library import TapeLibrary
from storage_node.tape.volume_reader import find_last_trailer
from storage_node.tape_control import TapeControl
from storage_node.tape_unit import TapeUnit

TAG = VolumeTag("SDV001L8")
RETAINED = "2027-01-11T10:43:48Z"
TAPE = Designator(b"\x30tape...")
BOTH = Rights.READ | Rights.APPEND
POSITION = (0x0B, 0x3B, 0x00)
GUARD = (0x0B, 0x10, 0x01)
DENIED = (0x05, 0x26, 0x15)
STALE = (0x06, 0x29, 0x00)
Ask = Callable[..., tuple[Reply, bytes]]


@pytest.fixture
def tape(bench: Any, tmp_path: Path) -> Iterator[Any]:
    with TapeLibrary(tmp_path / "library") as library:
        library.add("SDV001L8", capacity_bytes=1 << 24, created="2026-01-11T10:43:48Z")
        library.load("SDV001L8")
        library.drives[0].test_unit_ready()
        bench.units[TAPE] = TapeUnit("drive-0", TAPE, library.drives[0], bench.access)
        bench.access.put_unit(Unit(designator=TAPE, kind=UnitKind.TAPE))
        yield bench
        bench.server.close()


def opened(bench: Any, rights: Rights = BOTH, **changes: Any) -> Channel:
    channel = bench.open(bench.grant(TAPE, rights, **changes))
    assert isinstance(channel, Channel)
    return channel


def append(channel: Channel, ask: Ask, *records: bytes, at: int) -> None:
    for number, record in enumerate(records):
        reply, _ = ask(channel, Opcode.WRITE_RECORD, address=at + number, data=record)
        assert reply.is_good
        assert reply.header.address == at + number + 1


def test_the_drive_describes_itself(tape: Any) -> None:
    with opened(tape) as channel:
        assert channel.opened.peripheral_device_type == 1
        assert channel.opened.position == 0
        assert channel.opened.record_bytes_max == (1 << 24) - 1


def test_records_and_filemarks_are_written_and_read(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"first", b"second record", at=0)
        reply, _ = ask(channel, Opcode.WRITE_FILEMARKS, address=2, length=2, modifier=1)
        assert (reply.is_good, reply.header.address) == (True, 4)
        assert ask(channel, Opcode.FLUSH)[0].is_good
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert ask(channel, Opcode.READ_RECORD, address=0, length=5)[1] == b"first"

        reply, data = ask(channel, Opcode.READ_RECORD, address=ANY_POSITION, length=100)
        sense = Sense.decode(reply.sense)
        assert (data, sense.incorrect_length, sense.information) == (b"second record", True, 87)
        reply, data = ask(channel, Opcode.READ_RECORD, address=2, length=100)
        assert (data, Sense.decode(reply.sense).filemark) == (b"", True)
        assert reply.header.address == 3
        assert ask(channel, Opcode.LOCATE, address=1)[0].is_good
        reply, data = ask(channel, Opcode.READ_RECORD, address=1, length=6)
        assert (data, Sense.decode(reply.sense).information) == (b"second", -7)
        assert reply.header.crc32c == crc32c(b"second")
        # SILI: a short record is no exception.
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        reply, data = ask(channel, Opcode.READ_RECORD, address=0, length=9, modifier=1)
        assert (reply.is_good, data) == (True, b"first")


def test_errors_and_bytes_are_counted_and_raise_alerts(
    tape: Any, ask: Ask, triple: Any, tmp_path: Path
) -> None:
    unit = tape.units[TAPE]
    with opened(tape) as channel:
        append(channel, ask, b"first", b"second", at=0)
        assert ask(channel, Opcode.WRITE_FILEMARKS, address=2, length=1)[0].is_good
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert ask(channel, Opcode.READ_RECORD, address=0, length=5)[0].is_good
        health = unit.health
        assert (health.bytes_written, health.bytes_read, health.alerts) == (11, 5, 0)
        path = tmp_path / "library" / "SDV001L8" / "data"
        path.write_bytes(path.read_bytes().replace(b"second", b"Second"))
        reply, _ = ask(channel, Opcode.READ_RECORD, address=1, length=6)
        assert triple(reply) == (0x03, 0x11, 0x00)
    assert (health.read_errors, health.write_errors, health.bytes_read) == (1, 0, 5)
    assert words_of(health.alerts) == ("hard error", "media", "read failure")


def test_motions_carry_a_signed_count(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"a", b"b", b"c", at=0)
        reply, _ = ask(channel, Opcode.SPACE, length=(1 << 32) - 2)
        assert (reply.is_good, reply.header.address) == (True, 1)
        reply, _ = ask(channel, Opcode.SPACE, length=5)
        assert (triple(reply), reply.header.address) == ((0x08, 0x00, 0x05), 3)
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert ask(channel, Opcode.SPACE, modifier=3)[0].header.address == 3
        reply, data = ask(channel, Opcode.READ_POSITION)
        assert (len(data), int.from_bytes(data[8:16], "big")) == (32, 3)


def test_a_record_for_another_place_is_not_written(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"a", at=0)
        for address in (0, 2, ANY_POSITION):
            for opcode, fields in (
                (Opcode.WRITE_RECORD, {"data": b"x"}),
                (Opcode.WRITE_FILEMARKS, {"length": 1}),
            ):
                reply, _ = ask(channel, opcode, address=address, **fields)
                assert (triple(reply), reply.header.address) == (POSITION, 1)
        reply, _ = ask(channel, Opcode.READ_RECORD, address=0, length=5)
        assert triple(reply) == POSITION
        append(channel, ask, b"b", at=1)


@pytest.mark.parametrize("protection", [Protection.CRC32C, Protection.NONE])
def test_a_damaged_or_unprotected_record_is_not_written(
    tape: Any, ask: Ask, triple: Any, protection: Protection
) -> None:
    with opened(tape) as channel:
        channel.request(
            Opcode.WRITE_RECORD, length=4, protection=protection, crc32c=1, data_follows=True
        )
        channel.sock.sendall(b"data")
        reply = channel.reply()
        assert (triple(reply), reply.header.address) == (GUARD, 0)
        append(channel, ask, b"data", at=0)


def test_rights_and_budget_are_checked(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape, Rights.READ, extents=(), bytes_max=10) as channel:
        assert triple(ask(channel, Opcode.WRITE_RECORD, data=b"x")[0]) == DENIED
        assert triple(ask(channel, Opcode.WRITE_FILEMARKS, length=1)[0]) == DENIED
        assert triple(ask(channel, Opcode.READ_RECORD, length=11)[0]) == DENIED
        assert ask(channel, Opcode.TEST_UNIT_READY)[0].is_good
    with opened(tape, Rights.APPEND, epoch=Epoch(6)) as channel:
        assert triple(ask(channel, Opcode.READ_RECORD, length=11)[0]) == DENIED


def test_requests_that_make_no_sense_are_refused(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as channel:
        for opcode, fields in (
            (Opcode.READ, {}),
            (Opcode.WRITE, {"data": b"x" * 500_000}),
            (Opcode.LOCATE, {"entries": [Entry(0, 1)]}),
            (Opcode.READ_RECORD, {"length": 1 << 24}),
            (Opcode.WRITE_RECORD, {"data": bytes(1 << 24)}),
        ):
            assert triple(ask(channel, opcode, **fields)[0]) == (0x05, 0x24, 0x00)
        assert ask(channel, Opcode.TEST_UNIT_READY)[0].is_good


def test_the_newest_session_has_the_drive(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as old:
        append(old, ask, b"a", at=0)
        with opened(tape) as new:
            assert new.opened.position == 1
            append(new, ask, b"b", at=1)
            for opcode in (Opcode.LOCATE, Opcode.FLUSH, Opcode.READ_POSITION):
                assert triple(ask(old, opcode)[0]) == STALE
            assert triple(ask(old, Opcode.WRITE_RECORD, address=2, data=b"x")[0]) == STALE


def test_a_grant_appends_from_its_position_over_the_tail_once(
    tape: Any, ask: Ask, triple: Any
) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"kept", b"tail", b"tail", at=0)
    with opened(tape, epoch=Epoch(6), position=1) as channel:
        # Not before the granted position, not from the middle of the tail.
        for place in (0, 2):
            assert ask(channel, Opcode.LOCATE, address=place)[0].is_good
        reply, _ = ask(channel, Opcode.WRITE_RECORD, address=2, data=b"x")
        assert triple(reply) == (0x07, 0x30, 0x0C)
    with opened(tape, epoch=Epoch(7), position=1) as channel:
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert triple(ask(channel, Opcode.WRITE_RECORD, data=b"x")[0]) == POSITION
        assert ask(channel, Opcode.LOCATE, address=1)[0].is_good
        append(channel, ask, b"new", at=1)
        assert triple(ask(channel, Opcode.READ_RECORD, address=2, length=9)[0]) == (8, 0, 5)
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert ask(channel, Opcode.READ_RECORD, address=0, length=4)[1] == b"kept"


def test_what_a_session_has_appended_it_cannot_overwrite(tape: Any, ask: Ask, triple: Any) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"mine", b"mine", at=0)
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        reply, _ = ask(channel, Opcode.WRITE_RECORD, address=0, data=b"x")
        assert triple(reply) == (0x07, 0x30, 0x0C)
        reply, _ = ask(channel, Opcode.WRITE_FILEMARKS, address=0, length=1)
        assert triple(reply) == (0x07, 0x30, 0x0C)


def test_what_is_committed_is_not_overwritten_whatever_the_grant_says(
    tape: Any, ask: Ask, triple: Any
) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"kept", at=0)
    tape.units[TAPE].committed_end = 1
    with opened(tape, epoch=Epoch(6), position=0) as channel:
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        reply, _ = ask(channel, Opcode.WRITE_RECORD, address=0, data=b"x")
        assert triple(reply) == (0x07, 0x30, 0x0C)


# --- what is protected ---------------------------------------------------------------------------


@pytest.fixture
def role(bench: Any, tmp_path: Path) -> Iterator[TapeControl]:
    """The whole tape role behind the data server: one drive with a labelled cartridge of one committed part."""
    library = TapeLibrary(tmp_path / "library")
    made = TapeControl(
        library,
        bench.access,
        state_folder=tmp_path,
        clock=NodeClock(ManualClock(wall=datetime(2026, 1, 11, tzinfo=UTC)), boot="", folder=None),
        new_uuid=lambda: "ab" * 16,
    )
    made.add(TapeAdd(request=1, tag=TAG, capacity_bytes=1 << 24))
    made.load(TapeLoad(request=2, drive="drive-0", tag=TAG, epoch=Epoch(1)))
    objects, _ = part_objects([b"kept" * 128] * 3, retain_until=RETAINED)
    write_objects(library.drives[0], [*label_objects(volume_header(tag=TAG)), *objects])
    made.load(TapeLoad(request=3, drive="drive-0", tag=TAG, epoch=Epoch(2)))
    bench.units.update(made.units)
    yield made
    bench.server.close()
    made.close()


def unit_of(role: TapeControl) -> TapeUnit:
    [unit] = role.units.values()
    return unit


def test_what_was_committed_since_the_load_is_not_overwritten_either(
    bench: Any, role: TapeControl, ask: Ask, triple: Any
) -> None:
    """T14: a grant may name any position; where the tape is committed, the tape says."""
    unit = unit_of(role)
    start = unit.position
    first = unit.committed_end
    assert start == first
    [previous] = [find_last_trailer(unit.drive.side_view(), volume_header(tag=TAG)).trailer]  # type: ignore[attr-defined]
    objects, _ = part_objects([b"more"], first_object=start, previous=previous)
    with bench.open(bench.grant(unit.designator, BOTH, position=start)) as channel:
        put(channel, ask, objects, at=start)
    end = unit.position
    content = snapshot(role)
    for epoch, position in ((6, start), (7, start + 2), (8, 0)):
        grant = bench.grant(unit.designator, BOTH, position=position, epoch=Epoch(epoch))
        with bench.open(grant) as channel:
            assert ask(channel, Opcode.LOCATE, address=position)[0].is_good
            reply, _ = ask(channel, Opcode.WRITE_RECORD, address=position, data=b"x")
            assert triple(reply) == (0x07, 0x30, 0x0C)
            reply, _ = ask(channel, Opcode.WRITE_FILEMARKS, address=position, length=1)
            assert triple(reply) == (0x07, 0x30, 0x0C)
    assert snapshot(role) == content
    # What follows the commit is an orphan tail, and may go.
    with bench.open(bench.grant(unit.designator, BOTH, epoch=Epoch(9), position=end)) as channel:
        assert ask(channel, Opcode.LOCATE, address=end)[0].is_good
        append(channel, ask, b"orphan", at=end)
    with bench.open(bench.grant(unit.designator, BOTH, epoch=Epoch(10), position=end)) as channel:
        assert ask(channel, Opcode.LOCATE, address=end)[0].is_good
        append(channel, ask, b"again", at=end)
    assert snapshot(role)[: len(content)] == content


def put(channel: Channel, ask: Ask, objects: list[Object], *, at: int) -> None:
    for number, item in enumerate(objects, at):
        if isinstance(item, bytes):
            reply, _ = ask(channel, Opcode.WRITE_RECORD, address=number, data=item)
        else:
            reply, _ = ask(channel, Opcode.WRITE_FILEMARKS, address=number, length=1)
        assert reply.is_good


def snapshot(role: TapeControl) -> bytes:
    unit = unit_of(role)
    with unit.mutex:
        cartridge = unit.drive.cartridge  # type: ignore[attr-defined]
        return bytes((cartridge.folder / "data").read_bytes())


def test_a_tape_that_must_not_be_written_to_takes_nothing_and_the_audit_says_why(
    bench: Any, role: TapeControl, ask: Ask, triple: Any, caplog: pytest.LogCaptureFixture
) -> None:
    unit = unit_of(role)
    unit.refusal = "an LTFS volume, 'ABC123'"
    content = snapshot(role)
    place = unit.position
    with (
        caplog.at_level(logging.WARNING, "storage_node.audit"),
        bench.open(bench.grant(unit.designator, BOTH, position=place)) as channel,
    ):
        for opcode, fields in (
            (Opcode.WRITE_RECORD, {"data": b"x"}),
            (Opcode.WRITE_FILEMARKS, {"length": 1}),
        ):
            reply, _ = ask(channel, opcode, address=place, **fields)
            assert triple(reply) == (0x07, 0x30, 0x05)
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        assert ask(channel, Opcode.READ_RECORD, address=0, length=1 << 16, modifier=1)[0].is_good
    assert [r.reason for r in caplog.records if r.name == "storage_node.audit"] == [  # type: ignore[attr-defined]
        unit.refusal
    ] * 2
    assert snapshot(role) == content


def test_a_last_commit_that_cannot_be_looked_up_is_protected(
    tape: Any, ask: Ask, triple: Any
) -> None:
    with opened(tape) as channel:
        append(channel, ask, b"kept", at=0)

    def fail() -> int:
        raise MediumError("unreadable")

    tape.units[TAPE].find_committed_end = fail
    with opened(tape, epoch=Epoch(6)) as channel:
        assert ask(channel, Opcode.LOCATE, address=0)[0].is_good
        reply, _ = ask(channel, Opcode.WRITE_RECORD, address=0, data=b"x")
        assert triple(reply) == (0x07, 0x30, 0x0C)


@pytest.mark.parametrize("seed", range(12))
def test_no_grant_and_no_request_changes_what_is_retained(
    bench: Any, role: TapeControl, ask: Ask, seed: int
) -> None:
    """T14 by fuzz: every request that a mover can make, under grants for anything, and the controller's own."""
    chance = random.Random(seed)
    unit = unit_of(role)
    content = snapshot(role)
    epoch = 10
    for _ in range(12):
        epoch += chance.choice((0, 1, 1, 2))
        with contextlib.suppress(BackupError):
            anything_of_the_controller(role, chance, epoch)
        grant = bench.grant(
            unit.designator,
            chance.choice((Rights.APPEND, BOTH, BOTH, Rights.READ)),
            epoch=Epoch(epoch),
            extents=(),
            position=chance.choice((0, 0, 3, 4, 7, unit.committed_end, unit.position)),
        )
        try:
            channel = bench.open(grant)
        except BackupError:
            continue
        with channel:
            for _ in range(12):
                anything_of_a_mover(channel, ask, chance, unit)
        assert snapshot(role)[: len(content)] == content
    epoch += 1
    reply = role.load(TapeLoad(request=9, drive="drive-0", tag=TAG, epoch=Epoch(epoch)))
    assert reply.trailer_sequence == 1
    assert reply.cartridges[0].retain_until == RETAINED


def anything_of_a_mover(channel: Channel, ask: Ask, chance: random.Random, unit: TapeUnit) -> None:
    place = chance.choice((0, 1, 4, 5, unit.position, unit.committed_end, 99, ANY_POSITION))
    opcode = chance.choice(
        (
            *(Opcode.WRITE_RECORD, Opcode.WRITE_RECORD, Opcode.WRITE_FILEMARKS, Opcode.LOCATE),
            *(Opcode.LOCATE, Opcode.SPACE, Opcode.READ_RECORD, Opcode.FLUSH),
        )
    )
    fields: dict[str, Any] = {"address": place}
    if opcode is Opcode.WRITE_RECORD:
        fields["data"] = chance.randbytes(chance.choice((1, 512, 5000)))
    elif opcode is Opcode.READ_RECORD:
        fields |= {"length": 70_000, "modifier": 1}
    elif opcode is Opcode.SPACE:
        fields |= {"modifier": chance.choice((0, 1, 3)), "length": chance.choice((1, 2, 2**32 - 1))}
    elif opcode is Opcode.WRITE_FILEMARKS:
        fields |= {"length": chance.choice((0, 1, 2)), "modifier": chance.choice((0, 1))}
    ask(channel, opcode, **fields)


def anything_of_the_controller(role: TapeControl, chance: random.Random, epoch: int) -> None:
    drive, raised = "drive-0", Epoch(epoch)
    match chance.randrange(6):
        case 0:
            forced = chance.random() < 0.5
            role.erase(TapeErase(request=1, drive=drive, tag=TAG, epoch=raised, is_forced=forced))
        case 1:
            role.retain(TapeRetain(request=1, tag=TAG, retain_until="", is_held=False))
        case 2:
            early = "2026-01-01T00:00:00Z"
            role.retain(TapeRetain(request=1, tag=TAG, retain_until=early, is_held=False))
        case 3:
            role.add(TapeAdd(request=1, tag=TAG, capacity_bytes=1 << 24))
        case 4:
            role.unload(TapeUnload(request=1, drive=drive, epoch=raised))
            role.load(TapeLoad(request=1, drive=drive, tag=TAG, epoch=raised))
        case _:
            role.load(TapeLoad(request=1, drive=drive, tag=TAG, epoch=raised))
