"""What is found on a cartridge, whatever of it can still be read."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError, NotFoundError, RemoteProtocolError
from backplane.ids import NodeName
from backplane.tape_format import decode_record, encode_part_trailer
from backplane.tape_format.scan import Findings, Unreadable
from backplane.testing.tape_content import (
    CARTRIDGE,
    RECORD_BYTES,
    Filemark,
    label_objects,
    part_objects,
    volume_header,
)
from backplane.wire.messages import NodeReply
from controller.core.procedure import Ask
from controller.core.rebuild_parts import FoundPart
from controller.core.rebuild_scan import CartridgeScan, DriveLostError
from tests.site.tape import TapeNode

TAG = "TAPE01L8"
DATA = [bytes([number]) * RECORD_BYTES for number in range(1, 6)]
DAMAGED = b"SDVMETA\0 what is left of a record"


class Bench:
    """A cartridge in a drive of a node, and a scan of it."""

    def __init__(self, *, parts: Sequence[int] = (5, 3, 4), map_bytes: int = 0) -> None:
        self.node = TapeNode.with_drives(1, tags=(TAG,))
        self.tape = self.node.tapes[TAG]
        self.trailers: list[Any] = []
        self.write(label_objects(volume_header(tag=TAG)))
        for count in parts:
            self.part(count, map_bytes=map_bytes)
        self.drive.loaded = TAG
        self.asked: list[Any] = []

    @property
    def drive(self) -> Any:
        return self.node.drives["drive-0"]

    def write(self, objects: Sequence[Any]) -> None:
        made = [None if isinstance(item, Filemark) else item for item in objects]
        self.tape.objects += made

    def part(self, count: int, *, map_bytes: int = 0, cut: int | None = None) -> None:
        """Write a part, or only so many of its objects."""
        objects, trailer = part_objects(
            DATA[:count],
            first_object=len(self.tape.objects),
            previous=self.trailers[-1] if self.trailers else None,
            map_items=[b"m" * map_bytes, b"p" * map_bytes] if map_bytes else (),
        )
        self.write(objects[:cut])
        if cut is None:
            self.trailers.append(trailer)

    def scan(self, *, change: Callable[[Any], Any] = lambda reply: reply) -> Findings[FoundPart]:
        reply = self.node._look(self.drive, self.tape, {"request": 1, "boot_id": b"t" * 16})
        scan = CartridgeScan(
            node=NodeName("tape"),
            drive="drive-0",
            cartridge=CARTRIDGE,
            end=len(self.tape.objects),
            progress=lambda parts: None,
        )
        steps = scan.run(entry=reply.trailer, sequence=reply.trailer_sequence)
        return self.drive_steps(steps, change=change)  # type: ignore[no-any-return]

    def drive_steps(self, steps: Any, *, change: Callable[[Any], Any]) -> Any:
        answer: Any = None
        error: BackupError | None = None
        while True:
            try:
                wish = steps.throw(error) if error is not None else steps.send(answer)
            except StopIteration as end:
                return end.value
            assert isinstance(wish, Ask)
            answer, error = None, None
            message = wish.make(1)
            self.asked.append(message)
            try:
                answer = change(self.node.answer(message))
            except BackupError as failure:
                error = failure


def seen(found: Findings[FoundPart]) -> list[tuple[int, int, int, bool]]:
    return [(each.backup, each.records, each.end, bool(each.damage)) for each in found.parts]


def as_written(bench: Bench, *numbers: int) -> list[tuple[int, int, int, bool]]:
    made = [bench.trailers[number - 1] for number in numbers]
    return [(each.backup, each.records, each.trailer_object + 2, False) for each in made]


def test_the_last_trailer_names_every_part() -> None:
    bench = Bench()
    found = bench.scan()
    assert seen(found) == as_written(bench, 1, 2, 3)
    assert (found.way, found.is_clean, found.notes) == ("trailers", True, [])
    # A header and a trailer of each, and the last trailer first.
    assert len(bench.asked) == 7
    part = found.parts[1]
    trailer = bench.trailers[1]
    assert (part.root, part.stream_bytes, part.sequence) == (trailer.root, 3 * RECORD_BYTES, 2)
    assert (part.job, part.view_means, part.consistency) == (2, "snapshot", "crash")
    assert list(part.runs) == [(0, 3)]


def test_only_metadata_is_asked_for() -> None:
    bench = Bench(map_bytes=100)
    bench.scan()
    places = {message.start for message in bench.asked}
    for trailer in bench.trailers:
        assert not places & set(range(trailer.data_object, trailer.data_object + trailer.records))


def test_an_empty_cartridge_has_no_parts_and_may_be_written() -> None:
    found = Bench(parts=()).scan()
    assert (found.parts, found.is_clean, found.notes) == ([], True, [])


@pytest.mark.parametrize("cut", [1, 2, 4, 7, 8, 9])
def test_a_torn_part_is_told_and_left_out_and_harms_nobody(cut: int) -> None:
    """After the header, its filemark, some data, all data, their filemark, and the trailer without its own."""
    bench = Bench()
    bench.part(5, cut=cut)
    found = bench.scan()
    assert seen(found) == as_written(bench, 1, 2, 3)
    assert found.is_clean
    [note] = found.notes
    assert "part 1 of backup 4 (volume home) was never committed and is left out" in note


@pytest.mark.parametrize("map_bytes", [0, 300_000])
def test_without_any_trailer_parts_are_found_by_their_headers(map_bytes: int) -> None:
    """The plan of a header says where its trailer is; nobody told where the headers are."""
    bench = Bench(map_bytes=map_bytes)
    for trailer in bench.trailers:
        bench.tape.bad.add(trailer.trailer_object)
    bench.tape.bad.discard(bench.trailers[1].trailer_object)
    found = walk(bench)
    assert [(each.backup, bool(each.damage)) for each in found.parts] == [
        (1, True),
        (2, False),
        (3, True),
    ]
    assert found.way == "headers"
    assert not found.is_clean
    assert [each.records for each in found.parts] == [5, 3, 4]
    assert all(each.map is not None for each in found.parts) == bool(map_bytes)


def walk(bench: Bench) -> Findings[FoundPart]:
    """Scan as if the load had found no trailer at all."""
    scan = CartridgeScan(
        node=NodeName("tape"),
        drive="drive-0",
        cartridge=CARTRIDGE,
        end=len(bench.tape.objects),
        progress=lambda parts: None,
    )
    return bench.drive_steps(  # type: ignore[no-any-return]
        scan.run(entry=b"", sequence=0), change=lambda reply: reply
    )


def test_a_damaged_trailer_in_the_middle_is_made_up_for_by_the_directory() -> None:
    bench = Bench()
    before = bench.scan().parts[0]
    bench.tape.bad.add(bench.trailers[0].trailer_object)
    found = bench.scan()
    assert found.parts[0] == before
    assert "the trailer of part 1 of backup 1 cannot be read" in found.notes[0]
    assert found.is_clean


def test_a_damaged_header_costs_what_only_it_says() -> None:
    bench = Bench()
    bench.tape.bad.add(bench.trailers[0].header_object)
    found = bench.scan()
    assert seen(found) == as_written(bench, 1, 2, 3)
    assert (found.parts[0].view_means, found.parts[0].job) == ("unknown", 0)
    assert "the header of part 1 of backup 1 cannot be read" in found.notes[0]


def test_a_part_without_header_and_trailer_is_left_out() -> None:
    bench = Bench()
    bench.tape.bad |= {bench.trailers[0].header_object, bench.trailers[0].trailer_object}
    found = bench.scan()
    assert seen(found) == as_written(bench, 2, 3)
    assert not found.is_clean
    assert "part 1 of backup 1 is left out" in found.notes[-1]


def test_parts_behind_the_last_readable_trailer_are_found_all_the_same() -> None:
    bench = Bench()
    # The load goes back to the trailer before.
    place = bench.trailers[2].trailer_object
    bench.tape.objects[place] = DAMAGED
    found = bench.scan()
    assert seen(found)[:2] == as_written(bench, 1, 2)
    last = found.parts[2]
    assert (last.backup, last.records, last.damage) == (3, 4, "the trailer of part 1 is damaged")
    crcs = [zlib.crc32(item) for item in DATA[:4]]
    assert last.root == hashlib.sha256(struct.pack(">4I", *crcs)).hexdigest()
    assert (found.way, found.is_clean) == ("headers", False)


def test_torn_data_with_another_part_behind_them_are_no_part() -> None:
    """Nothing stands between them, and their trailer was never written."""
    bench = Bench()
    bench.part(5, cut=4)
    bench.part(2)
    found = walk(bench)
    assert [(each.backup, each.damage) for each in found.parts] == [
        *((number, "") for number in (1, 2, 3)),
        (4, ""),
    ]
    assert found.parts[3].records == 2


def test_a_header_that_is_lost_is_made_up_for_by_the_trailer_behind_the_data() -> None:
    bench = Bench()
    bench.tape.objects[bench.trailers[1].header_object] = DAMAGED
    found = walk(bench)
    assert seen(found) == as_written(bench, 1, 2, 3)
    assert found.parts[1].view_means == "unknown"


def test_data_that_look_like_a_trailer_are_data() -> None:
    """Data have no filemarks around them, and no object number that fits."""
    bench = Bench(parts=(5,))
    image = [item for item in bench.tape.objects if item is not None]
    objects, trailer = part_objects(
        image, first_object=len(bench.tape.objects), previous=bench.trailers[0]
    )
    bench.write(objects)
    bench.trailers.append(trailer)
    for place in (trailer.header_object, bench.trailers[0].trailer_object):
        bench.tape.bad.add(place)
    found = walk(bench)
    assert [each.backup for each in found.parts] == [1, 2]
    forged = decode_record(image[-1])
    assert forged.volume_uuid == CARTRIDGE


def test_another_cartridges_records_are_none_of_ours() -> None:
    bench = Bench()
    scan = CartridgeScan(
        node=NodeName("tape"),
        drive="drive-0",
        cartridge="0" * 32,
        end=len(bench.tape.objects),
        progress=lambda parts: None,
    )
    found = bench.drive_steps(scan.run(entry=b"", sequence=0), change=lambda reply: reply)
    assert found.parts == []


def test_a_trailer_that_says_something_else_than_the_directory_is_left_out() -> None:
    bench = Bench()
    other = Bench(parts=(4, 3, 4))
    place = bench.trailers[1].trailer_object
    assert other.trailers[1].trailer_object == place - 1
    # The trailer of another life of this cartridge, at the same place.
    objects, _ = part_objects(DATA[:3], first_object=bench.trailers[1].header_object)
    bench.tape.objects[place] = objects[-2]  # type: ignore[call-overload]
    found = bench.scan()
    assert [each.backup for each in found.parts] == [1, 3]
    assert found.left_out == 1
    assert "says something else than the directory" in found.notes[0]


def test_a_directory_that_points_behind_end_of_data_is_no_reason_to_give_up() -> None:
    bench = Bench(parts=(5, 3))
    last = bench.trailers[1]
    far = replace(last.directory[0], trailer_object=9000, data_object=8994)
    lying = replace(last, directory=(far, last.directory[1]))
    bench.tape.objects[last.trailer_object] = encode_part_trailer(lying)[0]
    found = bench.scan()
    assert [each.backup for each in found.parts] == [2]
    assert not found.is_clean


def test_a_node_that_has_lost_the_cartridge_ends_the_scan() -> None:
    bench = Bench()

    def lose(reply: Any) -> Any:
        raise NotFoundError("drive drive-0 is empty")

    with pytest.raises(DriveLostError):
        bench.scan(change=lose)


@pytest.mark.parametrize("records", [b"\0\0\0", b"\0\0\0\5abc", b"\0\0\0\0"])
def test_half_an_answer_is_the_nodes_fault(records: bytes) -> None:
    bench = Bench()

    def break_it(reply: NodeReply) -> Any:
        return NodeReply(request=1, boot_id=b"t" * 16, records=records, next_object=9)

    with pytest.raises(RemoteProtocolError):
        bench.scan(change=break_it)


def test_digests_that_do_not_get_on_are_the_nodes_fault() -> None:
    bench = Bench()

    def stand_still(reply: Any) -> Any:
        if reply.digests:
            return NodeReply(request=1, boot_id=b"t" * 16, digests=b"", next_object=0)
        return reply

    bench.part(5, cut=7)
    with pytest.raises(RemoteProtocolError):
        bench.scan(change=stand_still)


def test_nothing_of_a_tape_can_stop_a_scan(bench_bytes: list[bytes]) -> None:
    for garbage in bench_bytes:
        bench = Bench()
        for trailer in bench.trailers:
            bench.tape.objects[trailer.trailer_object] = garbage
            bench.tape.objects[trailer.header_object] = garbage
        assert walk(bench).parts == []


@pytest.fixture
def bench_bytes() -> list[bytes]:
    bench = Bench()
    trailer = bench.tape.objects[bench.trailers[0].trailer_object]
    assert trailer is not None
    return [b"", b"SDVMETA\0", DAMAGED, trailer[:-1], b"x" * 64, trailer[:64]]


def test_a_reading_of_a_lost_object_says_so() -> None:
    bench = Bench()
    bench.tape.bad.add(4)
    scan = CartridgeScan(
        node=NodeName("tape"), drive="drive-0", cartridge=CARTRIDGE, end=9, progress=print
    )
    found = bench.drive_steps(scan.records(4), change=lambda reply: reply)
    assert found == Unreadable("object 4 cannot be read", is_damaged=True)
