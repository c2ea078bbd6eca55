"""A crash at any byte leaves a cartridge that opens, with every committed part, and a torn tail that is reported.

Two models of a crash. *Cuts*: the files as they are, shortened at every byte of what was written last. *Played power
cuts*: every write, truncation and synchronisation is recorded; at every boundary each file keeps what it had
synchronised, and of the rest all, nothing, any beginning, all but one, or a torn last write.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backplane.tape_format import PartTrailer
from backplane.testing.tape_content import (
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node.core.tape_index import (
    ENTRY_BYTES,
    INDEX_HEADER_BYTES,
    MARK_BYTES,
    MARK_OFFSETS,
    DurableMark,
    encode_mark,
    seed_of,
)
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import Outcome
from storage_node.tape.medium import Buffer
from storage_node.tape.recovery import RecoveryReport
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import TapeEnd, find_last_trailer, read_label

HEADER = volume_header()
DATA = [bytes([value]) * 20 for value in (1, 2)]

Operation = tuple[str, str, int, bytes]
"""File, what ("write", "truncate", "synchronise"), offset or size, bytes."""

Files = dict[str, bytes]


@dataclass
class PlayedMedium:
    """A file in memory that records what is done to it."""

    name: str
    content: bytearray
    log: list[Operation] = field(default_factory=list)

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        data = b"".join(buffers)
        apply(self.content, (self.name, "write", offset, data))
        self.log.append((self.name, "write", offset, data))

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        start = offset
        for buffer in buffers:
            piece = self.content[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            offset += len(piece)
        return offset - start

    def file_range(self, offset: int) -> None:
        return None

    def synchronise(self) -> None:
        self.log.append((self.name, "synchronise", 0, b""))

    def truncate(self, size: int) -> None:
        apply(self.content, (self.name, "truncate", size, b""))
        self.log.append((self.name, "truncate", size, b""))

    def forget_cache(self, offset: int) -> None:
        pass

    def size(self) -> int:
        return len(self.content)

    def free_bytes(self) -> int:
        return 1 << 40

    def close(self) -> None:
        pass


def apply(content: bytearray, operation: Operation) -> None:
    _, what, offset, data = operation
    if what == "write":
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
    elif what == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))


@dataclass
class Recorder:
    """A cartridge whose files are played."""

    folder: Path
    log: list[Operation] = field(default_factory=list)
    media: dict[str, PlayedMedium] = field(default_factory=dict)

    def drive(self, files: Files) -> VirtualDrive:
        self.media = {
            name: PlayedMedium(name, bytearray(content), self.log)
            for name, content in files.items()
        }
        drive = VirtualDrive(open_medium=lambda path: self.media[path.name])
        drive.load(self.folder, announce=False)
        return drive

    def files(self) -> Files:
        return {name: bytes(medium.content) for name, medium in self.media.items()}


@dataclass(frozen=True)
class Found:
    report: RecoveryReport
    end: TapeEnd
    drive: VirtualDrive


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    folder = tmp_path / "TAPE01L8"
    info = new_cartridge_info(
        serial="ab" * 16, tag="TAPE01L8", created="2026-01-11T10:43:48Z", capacity_bytes=1 << 24
    )
    Cartridge.create(folder, info)
    return Recorder(folder)


def blank_files(recorder: Recorder) -> Files:
    return {name: (recorder.folder / name).read_bytes() for name in ("data", "index")}


def opened(recorder: Recorder, files: Files) -> Found:
    drive = Recorder(recorder.folder).drive(files)
    assert drive.cartridge is not None
    return Found(drive.cartridge.recovered, find_last_trailer(drive, HEADER), drive)


def records_of(drive: VirtualDrive, end: int) -> dict[int, bytes | None]:
    """Read every object; None is a filemark.  Nothing may be unreadable."""
    found: dict[int, bytes | None] = {}
    drive.rewind()
    buffer = memoryview(bytearray(1 << 16))
    for number in range(end):
        outcome = drive.read_record(buffer, suppress_length=True)
        assert outcome.is_good or (outcome.sense is not None and outcome.sense.filemark), number
        found[number] = None if outcome.data is None else bytes(outcome.data)
    return found


# --- cuts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """Two committed parts, and the files before and after a third one was committed."""

    before: Files
    after: Files
    unsynchronised: Files
    second: PartTrailer
    third: PartTrailer
    start: int
    offsets: list[int]
    objects: dict[int, bytes | None]


@pytest.fixture
def story(recorder: Recorder) -> Story:
    drive = recorder.drive(blank_files(recorder))
    one, first = part_objects(DATA)
    two, second = part_objects(DATA[:1], first_object=4 + len(one), previous=first)
    start = write_objects(drive, [*label_objects(HEADER), *one, *two])
    before = recorder.files()
    three, third = part_objects(DATA, first_object=start, previous=second)
    write_objects(drive, three[:-1])
    unsynchronised = recorder.files()
    end = write_objects(drive, three[-1:])
    cartridge = drive.cartridge
    assert cartridge is not None
    offsets = [cartridge.charge_before(number) for number in range(start, end + 1)]
    after = recorder.files()
    objects = records_of(drive, end)
    return Story(before, after, unsynchronised, second, third, start, offsets, objects)


def check_tail(story: Story, found: Found, *, objects: int) -> None:
    """The two parts, and `objects` objects of the third, are there, and no more."""
    whole = len(story.offsets) - 1
    assert found.report.is_appendable
    assert not found.report.damage
    assert found.report.objects == story.start + objects
    expected = story.third if objects == whole else story.second
    assert found.end.trailer == expected
    is_orphan = 0 < objects < whole
    assert found.end.orphan_object == (story.start if is_orphan else None)


def test_data_cut_at_every_byte_before_the_index_was_written(
    recorder: Recorder, story: Story
) -> None:
    """The crash came before the flush: nothing of the third part counts, all of it is reported."""
    start = len(story.before["data"])
    end = len(story.after["data"])
    assert story.unsynchronised["index"] == story.before["index"]
    for size in range(start, end + 1):
        files = {"data": story.after["data"][:size], "index": story.before["index"]}
        found = opened(recorder, files)
        check_tail(story, found, objects=0)
        assert found.report.torn_data_bytes == size - start
        assert found.report.torn_index_bytes == 0


def test_index_cut_at_every_byte_of_the_last_flush(recorder: Recorder, story: Story) -> None:
    start, end = len(story.before["index"]), len(story.after["index"])
    for size in range(start, end + 1):
        # The durable mark is written after everything else: it is still the old one.
        index = (
            story.before["index"][:INDEX_HEADER_BYTES]
            + story.after["index"][INDEX_HEADER_BYTES:size]
        )
        found = opened(recorder, {"data": story.after["data"], "index": index})
        objects, torn = divmod(size - start, ENTRY_BYTES)
        check_tail(story, found, objects=objects)
        assert found.report.torn_index_bytes == torn
        assert found.report.torn_data_bytes == story.offsets[-1] - story.offsets[objects]


def test_data_cut_at_every_byte_with_the_whole_index(recorder: Recorder, story: Story) -> None:
    """A medium that lied about its synchronisation: the bytes decide, not the index."""
    index = story.before["index"][:INDEX_HEADER_BYTES] + story.after["index"][INDEX_HEADER_BYTES:]
    for size in range(story.offsets[0], story.offsets[-1] + 1):
        found = opened(recorder, {"data": story.after["data"][:size], "index": index})
        check_tail(story, found, objects=sum(offset <= size for offset in story.offsets) - 1)


def test_a_committed_cartridge_cut_at_every_byte_shows_what_is_whole_and_takes_nothing_more(
    recorder: Recorder, story: Story
) -> None:
    """T8: the commit was acknowledged, its mark is durable, and somebody shortens the data.  The part whose bytes are
    missing is not taken for committed, the ones before it are there, and the end of the tape is not written over."""
    for size in range(story.offsets[-3], story.offsets[-1]):
        files = {"data": story.after["data"][:size], "index": story.after["index"]}
        found = opened(recorder, files)
        assert found.end.trailer == story.second or size >= story.offsets[-2], size
        if found.end.trailer != story.second:
            # Only (some of) the entry of the last filemark is gone, and the index still knows it.
            assert found.end.trailer == story.third
        assert not found.report.is_appendable
        assert found.report.damage
        cut = found.drive.write_filemarks(1)
        assert cut.triple == (0x03, 0x31, 0x00)


def test_an_index_cut_at_every_byte_behind_a_commit_is_mended_from_the_data(
    recorder: Recorder, story: Story
) -> None:
    start, end = len(story.before["index"]), len(story.after["index"])
    for size in range(start, end):
        files = {"data": story.after["data"], "index": story.after["index"][:size]}
        found = opened(recorder, files)
        assert found.end.trailer == story.third
        assert found.report.repaired_objects == (end - size + ENTRY_BYTES - 1) // ENTRY_BYTES
        assert records_of(found.drive, found.report.objects) == story.objects


def test_both_files_cut_at_every_object_boundary(recorder: Recorder, story: Story) -> None:
    count = len(story.offsets) - 1
    for data_objects in range(count + 1):
        for index_objects in range(count + 1):
            size = len(story.before["index"]) + index_objects * ENTRY_BYTES
            files = {
                "data": story.after["data"][: story.offsets[data_objects]],
                "index": story.before["index"][:INDEX_HEADER_BYTES]
                + story.after["index"][INDEX_HEADER_BYTES:size],
            }
            check_tail(story, opened(recorder, files), objects=min(data_objects, index_objects))


def test_a_hole_in_the_last_flush_is_its_end(recorder: Recorder, story: Story) -> None:
    """Pages of one write reach the medium in any order."""
    head = story.before["index"][:INDEX_HEADER_BYTES]
    for hole in range(len(story.offsets) - 1):
        index = bytearray(head + story.after["index"][INDEX_HEADER_BYTES:])
        at = len(story.before["index"]) + hole * ENTRY_BYTES
        index[at : at + ENTRY_BYTES] = bytes(ENTRY_BYTES)
        files = {"data": story.after["data"], "index": bytes(index)}
        check_tail(story, opened(recorder, files), objects=hole)


def test_bytes_missing_in_the_last_flush_of_data_are_its_end(
    recorder: Recorder, story: Story
) -> None:
    head = story.before["index"][:INDEX_HEADER_BYTES]
    index = head + story.after["index"][INDEX_HEADER_BYTES:]
    for at in range(story.offsets[0], story.offsets[-1], 3):
        data = bytearray(story.after["data"])
        data[at] ^= 0x40
        found = opened(recorder, {"data": bytes(data), "index": index})
        check_tail(story, found, objects=sum(offset <= at for offset in story.offsets) - 1)


def test_a_torn_durable_mark_leaves_the_other_one(recorder: Recorder, story: Story) -> None:
    old, new = story.before["index"], story.after["index"]
    (slot,) = [at for at in MARK_OFFSETS if old[at : at + MARK_BYTES] != new[at : at + MARK_BYTES]]
    for size in range(MARK_BYTES + 1):
        index = new[: slot + size] + old[slot + size : slot + MARK_BYTES] + new[slot + MARK_BYTES :]
        found = opened(recorder, {"data": story.after["data"], "index": index})
        check_tail(story, found, objects=len(story.offsets) - 1)
        assert found.report.is_clean


def test_after_a_crash_the_next_part_is_committed_and_nothing_comes_back(
    recorder: Recorder, story: Story
) -> None:
    head = story.before["index"][:INDEX_HEADER_BYTES]
    count = len(story.offsets) - 1
    for objects in range(count):
        size = len(story.before["index"]) + objects * ENTRY_BYTES + 5
        index = head + story.after["index"][INDEX_HEADER_BYTES:size]
        player = Recorder(recorder.folder)
        drive = player.drive({"data": story.after["data"], "index": index})
        start = drive.space(3).position
        assert start == story.start + objects
        fresh, trailer = part_objects([b"\x77" * 40], first_object=start, previous=story.second)
        end = write_objects(drive, fresh)
        found = opened(recorder, player.files())
        assert found.report.is_clean
        assert found.end.trailer == trailer
        assert found.end.end_of_data == end
        kept = records_of(found.drive, start)
        assert kept == {number: story.objects[number] for number in range(start)}


# --- played power cuts ---------------------------------------------------------------------------


def outcomes(base: Files, log: Sequence[Operation], upto: int) -> Iterator[Files]:
    """Yield what the files may be after a power cut behind the first `upto` operations."""
    durable = {name: bytearray(content) for name, content in base.items()}
    open_operations: list[Operation] = []
    for operation in log[:upto]:
        if operation[1] == "synchronise":
            for waiting in [other for other in open_operations if other[0] == operation[0]]:
                apply(durable[waiting[0]], waiting)
                open_operations.remove(waiting)
        else:
            open_operations.append(operation)
    yield from (kept(durable, choice) for choice in choices(open_operations))


def choices(operations: list[Operation]) -> Iterator[list[Operation]]:
    for count in range(len(operations) + 1):
        yield operations[:count]
    for dropped in range(len(operations) - 1):
        yield operations[:dropped] + operations[dropped + 1 :]
    if operations and operations[-1][1] == "write":
        name, what, offset, data = operations[-1]
        for size in (1, len(data) // 2, len(data) - 1):
            yield [*operations[:-1], (name, what, offset, data[:size])]


def kept(durable: dict[str, bytearray], operations: Sequence[Operation]) -> Files:
    files = {name: bytearray(content) for name, content in durable.items()}
    for operation in operations:
        apply(files[operation[0]], operation)
    return {name: bytes(content) for name, content in files.items()}


@dataclass
class Acknowledged:
    """After `operations` operations the user has been told that `trailer` is committed."""

    operations: int
    trailer: PartTrailer | None


def check_power_cuts(
    recorder: Recorder,
    base: Files,
    told: Sequence[Acknowledged],
    allowed: Callable[[int], Sequence[PartTrailer | None]],
) -> int:
    """Open the cartridge after every power cut; what was acknowledged must be there."""
    tried = 0
    seen: set[tuple[int, bytes, bytes]] = set()
    for upto in range(len(recorder.log) + 1):
        step = max(index for index, ack in enumerate(told) if ack.operations <= upto)
        for files in outcomes(base, recorder.log, upto):
            key = (step, files["data"], files["index"])
            if key in seen:
                continue
            seen.add(key)
            found = opened(recorder, files)
            assert found.end.trailer in allowed(step), (upto, step)
            assert found.report.is_appendable
            assert not found.report.damage
            assert not found.report.lost
            records_of(found.drive, found.report.objects)
            tried += 1
    return tried


def test_no_power_cut_takes_back_a_commit(recorder: Recorder) -> None:
    base = blank_files(recorder)
    drive = recorder.drive(base)
    write_objects(drive, label_objects(HEADER))
    told = [Acknowledged(0, None), Acknowledged(len(recorder.log), None)]
    trailer: PartTrailer | None = None
    for count in (1, 2, 0):
        start = drive.space(3).position
        objects, trailer = part_objects(DATA[:count], first_object=start, previous=trailer)
        write_objects(drive, objects)
        told.append(Acknowledged(len(recorder.log), trailer))
    trailers = [ack.trailer for ack in told]
    tried = check_power_cuts(recorder, base, told, lambda step: trailers[step : step + 2])
    assert tried > 150


def test_no_power_cut_while_overwriting_shows_a_mixture(recorder: Recorder) -> None:
    """The old parts are there, or the new one, or only the label: never old entries with new bytes."""
    drive = recorder.drive(blank_files(recorder))
    write_objects(drive, label_objects(HEADER))
    one, first = part_objects(DATA)
    two, second = part_objects(DATA, first_object=4 + len(one), previous=first)
    write_objects(drive, [*one, *two])
    drive.unload()
    base = recorder.files()
    recorder.log.clear()
    drive = recorder.drive(base)
    drive.locate(4)
    assert drive.allow_overwrite(4).is_good
    fresh, other = part_objects([b"\x55" * 700])
    write_objects(drive, fresh)
    told = [Acknowledged(0, second), Acknowledged(len(recorder.log), other)]
    allowed: list[Sequence[PartTrailer | None]] = [(second, first, None, other), (other,)]
    assert check_power_cuts(recorder, base, told, lambda step: allowed[step]) > 30


def test_no_power_cut_while_erasing_leaves_anything_between_all_and_nothing(
    recorder: Recorder,
) -> None:
    drive = recorder.drive(blank_files(recorder))
    one, first = part_objects(DATA)
    two, second = part_objects(DATA, first_object=4 + len(one), previous=first)
    end = write_objects(drive, [*label_objects(HEADER), *one, *two])
    drive.unload()
    base = recorder.files()
    recorder.log.clear()
    drive = recorder.drive(base)
    assert drive.allow_overwrite(0).is_good
    assert drive.erase().is_good
    operations = len(recorder.log)
    seen = set()
    for upto in range(operations + 1):
        for files in outcomes(base, recorder.log, upto):
            found = opened(recorder, files)
            assert found.report.is_appendable
            assert not found.report.damage
            assert (found.report.objects, found.end.trailer) in ((end, second), (0, None))
            assert upto < operations or found.report.objects == 0
            seen.add(found.report.objects)
    assert seen == {0, end}


def test_a_power_cut_after_recovery_takes_nothing_back(recorder: Recorder, story: Story) -> None:
    """What a reader was shown once, because it was found behind the durable mark, stays."""
    index = story.before["index"][:INDEX_HEADER_BYTES] + story.after["index"][INDEX_HEADER_BYTES:]
    player = Recorder(recorder.folder)
    base = {"data": story.after["data"], "index": index}
    player.drive(base)
    names = [name for name, what, _, _ in player.log if what == "synchronise"]
    assert names == ["data", "index"]
    assert player.log[2][:2] == ("index", "write")


# --- damage --------------------------------------------------------------------------------------


def everything(drive: VirtualDrive) -> list[Outcome]:
    drive.rewind()
    end = drive.space(3).position
    drive.rewind()
    return [
        drive.read_record(memoryview(bytearray(4096)), suppress_length=True) for _ in range(end)
    ]


def test_a_flipped_byte_of_a_record_is_an_error_at_that_object_and_nowhere_else(
    recorder: Recorder, story: Story
) -> None:
    drive = Recorder(recorder.folder).drive(story.after)
    cartridge = drive.cartridge
    assert cartridge is not None
    count = cartridge.object_count
    entries = [cartridge.charge_before(number) for number in range(count + 1)]
    step = 7
    for at in range(0, len(story.after["data"]), step):
        number = sum(offset <= at for offset in entries) - 1
        data = bytearray(story.after["data"])
        data[at] ^= 0x01
        files = {"data": bytes(data), "index": story.after["index"]}
        found = everything(Recorder(recorder.folder).drive(files))
        is_header = at - entries[number] < ENTRY_BYTES
        for other, outcome in enumerate(found):
            is_bad = outcome.triple == (0x03, 0x11, 0x00)
            assert is_bad == (other == number and not is_header), (at, other)
            assert outcome.position == other + 1


def test_a_flipped_byte_of_the_index_is_reported_and_repaired(
    recorder: Recorder, story: Story
) -> None:
    for at in range(INDEX_HEADER_BYTES, len(story.after["index"]), 5):
        index = bytearray(story.after["index"])
        index[at] ^= 0x01
        player = Recorder(recorder.folder)
        drive = player.drive({"data": story.after["data"], "index": bytes(index)})
        assert drive.cartridge is not None
        report = drive.cartridge.recovered
        assert report.repaired_objects == 1
        assert report.damage
        assert report.is_appendable
        assert records_of(drive, report.objects) == story.objects
        assert player.files()["index"] == story.after["index"]


class UnreadableMedium(PlayedMedium):
    """A file with one bad sector."""

    sector = (0, 0)

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        end = offset + sum(len(buffer) for buffer in buffers)
        if offset < self.sector[1] and self.sector[0] < end:
            raise OSError(errno.EIO, "bad sector")
        return super().read(buffers, offset)


def test_an_unreadable_sector_of_the_index_is_replaced_from_the_data(
    recorder: Recorder, story: Story
) -> None:
    media = {name: UnreadableMedium(name, bytearray(raw)) for name, raw in story.after.items()}
    media["index"].sector = (INDEX_HEADER_BYTES + 512, INDEX_HEADER_BYTES + 1024)
    cartridge = Cartridge.open(recorder.folder, open_medium=lambda path: media[path.name])
    assert cartridge.recovered.repaired_objects == min(16, len(story.objects) - 16)
    assert cartridge.object_count == len(story.objects)
    assert cartridge.recovered.is_appendable


def test_an_entry_that_is_bad_twice_loses_one_object_and_no_other(
    recorder: Recorder, story: Story
) -> None:
    for number, expected in story.objects.items():
        index, data = bytearray(story.after["index"]), bytearray(story.after["data"])
        cartridge = Recorder(recorder.folder).drive(story.after).cartridge
        assert cartridge is not None
        index[INDEX_HEADER_BYTES + number * ENTRY_BYTES] ^= 0xFF
        data[cartridge.charge_before(number)] ^= 0xFF
        drive = Recorder(recorder.folder).drive({"data": bytes(data), "index": bytes(index)})
        assert drive.cartridge is not None
        report = drive.cartridge.recovered
        found = everything(drive)
        is_last = number == len(story.objects) - 1
        if is_last:
            # No neighbour says where to go on: end of data is not known.
            assert not report.is_appendable
            assert len(found) == len(story.objects) - 1
            continue
        assert len(found) == len(story.objects)
        is_lost = [outcome.triple == (0x03, 0x11, 0x00) for outcome in found]
        # A lost filemark is known from its neighbours' file numbers.
        assert is_lost == [other == number and expected is not None for other in range(len(found))]
        assert drive.cartridge.filemarks.tolist() == [
            other for other, content in story.objects.items() if content is None
        ]


@pytest.mark.parametrize("size", [0, 100, INDEX_HEADER_BYTES, INDEX_HEADER_BYTES + 77])
def test_a_lost_index_is_rebuilt_from_the_data(recorder: Recorder, story: Story, size: int) -> None:
    drive = Recorder(recorder.folder).drive(
        {"data": story.after["data"], "index": story.after["index"][:size]}
    )
    assert drive.cartridge is not None
    report = drive.cartridge.recovered
    assert report.damage
    assert records_of(drive, report.objects) == story.objects
    # With the marks gone nobody knows whether this is all.
    assert report.is_appendable == (size >= INDEX_HEADER_BYTES)


def test_both_durable_marks_damaged_makes_a_cartridge_read_only(
    recorder: Recorder, story: Story
) -> None:
    index = bytearray(story.after["index"])
    for at in MARK_OFFSETS:
        index[at] ^= 0xFF
    drive = Recorder(recorder.folder).drive({"data": story.after["data"], "index": bytes(index)})
    assert drive.cartridge is not None
    assert not drive.cartridge.recovered.is_appendable
    assert records_of(drive, len(story.objects)) == story.objects
    drive.space(3)
    assert drive.write_filemarks(1).triple == (0x03, 0x31, 0x00)


def test_durable_marks_that_were_made_up_are_damage_and_no_crash(
    recorder: Recorder, story: Story
) -> None:
    """A cartridge comes from outside: one that cannot be opened must not keep all others from being looked at."""
    index = bytearray(story.after["index"])
    serial = json.loads((recorder.folder / "cartridge.json").read_text())["serial"]
    far = (1 << 64) - 1
    for at in MARK_OFFSETS:
        mark = DurableMark(far, far, far, (1 << 32) - 1)
        index[at : at + MARK_BYTES] = encode_mark(mark, seed=seed_of(bytes.fromhex(serial)))
    for name, content in (("data", story.after["data"]), ("index", bytes(index))):
        (recorder.folder / name).write_bytes(content)
    drive = VirtualDrive()
    cartridge = drive.load(recorder.folder, announce=False)
    assert not cartridge.recovered.is_appendable
    assert records_of(drive, len(story.objects)) == story.objects
    drive.unload()


def test_the_files_of_another_cartridge_are_noticed(recorder: Recorder, story: Story) -> None:
    path = recorder.folder / "cartridge.json"
    path.write_text(path.read_text().replace("ab" * 16, "cd" * 16))
    drive = Recorder(recorder.folder).drive(story.after)
    assert drive.cartridge is not None
    report = drive.cartridge.recovered
    assert report.objects == 0
    assert not report.is_appendable
    assert read_label(drive).header is None
