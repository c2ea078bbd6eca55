"""A drive on a data channel: opcodes to commands, positions, the newest session, the orphan tail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.ids import Designator, Epoch
from backplane.scsi.sense import Sense
from backplane.transport.stream import Channel, Reply
from backplane.wire.frames import ANY_POSITION, Entry, Opcode, Protection
from backplane.wire.grants import Rights
from storage_node.core.admission import Unit, UnitKind
from storage_node.tape.library import TapeLibrary
from storage_node.tape_unit import TapeUnit

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
