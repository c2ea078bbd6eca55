"""The virtual drive against a list: whatever is done in whatever order, both say the same.

The model is a plain list of records (bytes) and filemarks (None) and walks over it one object at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backplane.crc import crc32c
from storage_node.core.tape_index import ENTRY_BYTES, entry_offset
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import Outcome
from storage_node.tape.virtual_drive import VirtualDrive

CAPACITY, EARLY, PROGRAMMABLE = 4000, 800, 700

Answer = tuple[tuple[int, int, int] | None, int | None, bytes | None]
"""Sense key, ASC, ASCQ; INFORMATION; data."""

FILEMARK = (0x00, 0x00, 0x01)
END_OF_MEDIUM = (0x00, 0x00, 0x02)
BEGINNING = (0x00, 0x00, 0x04)
PROGRAMMABLE_WARNING = (0x00, 0x00, 0x07)
INCORRECT_LENGTH = (0x00, 0x00, 0x00)
END_OF_DATA = (0x08, 0x00, 0x05)
OVERWRITE_REFUSED = (0x07, 0x30, 0x0C)
OVERFLOW = (0x0D, 0x00, 0x02)

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Synchronising is most of what this test does; on a disk it would be all."""

SIZES = st.one_of(st.integers(1, 60), st.sampled_from([200, 500, 900]))


class Tape:
    """The model."""

    def __init__(self) -> None:
        self.objects: list[bytes | None] = []
        self.position = 0
        self.durable = 0

    def charge(self, count: int) -> int:
        return sum(32 + len(item or b"") for item in self.objects[:count])

    def write(self, item: bytes | None) -> Answer:
        before = self.charge(self.position)
        after = before + 32 + len(item or b"")
        if after > CAPACITY:
            return OVERFLOW, 1 if item is None else len(item), None
        del self.objects[self.position :]
        self.durable = min(self.durable, self.position)
        self.objects.append(item)
        self.position += 1
        early = CAPACITY - EARLY
        if after >= early:
            if before < early:
                self.flush()
            return END_OF_MEDIUM, 0, None
        if before < early - PROGRAMMABLE <= after:
            return PROGRAMMABLE_WARNING, 0, None
        return None, None, None

    def flush(self) -> None:
        self.durable = len(self.objects)

    def read(self, size: int, *, suppress: bool) -> Answer:
        self.flush()
        if self.position == len(self.objects):
            return END_OF_DATA, size, None
        item = self.objects[self.position]
        self.position += 1
        if item is None:
            return FILEMARK, size, None
        if len(item) != size and not suppress:
            return INCORRECT_LENGTH, size - len(item), item[:size]
        return None, None, item[:size]

    def space_blocks(self, count: int) -> Answer:
        self.flush()
        while count > 0:
            if self.position == len(self.objects):
                return END_OF_DATA, count, None
            self.position += 1
            if self.objects[self.position - 1] is None:
                return FILEMARK, count, None
            count -= 1
        while count < 0:
            if self.position == 0:
                return BEGINNING, -count, None
            self.position -= 1
            if self.objects[self.position] is None:
                return FILEMARK, -count, None
            count += 1
        return None, None, None

    def space_filemarks(self, count: int) -> Answer:
        self.flush()
        while count > 0:
            if self.position == len(self.objects):
                return END_OF_DATA, count, None
            self.position += 1
            count -= self.objects[self.position - 1] is None
        while count < 0:
            if self.position == 0:
                return BEGINNING, -count, None
            self.position -= 1
            count += self.objects[self.position] is None
        return None, None, None

    def locate(self, number: int) -> Answer:
        self.flush()
        self.position = min(number, len(self.objects))
        return (END_OF_DATA if number > len(self.objects) else None), None, None


class DriveAgainstList(RuleBasedStateMachine):
    """The same commands for both."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="sb-tape-", dir=MEMORY))
        self.folder = self.home / "TAPE01L8"
        self.drive = VirtualDrive()
        self.tape = Tape()
        self.counter = 0

    @initialize()
    def create(self) -> None:
        info = new_cartridge_info(
            serial="ab" * 16,
            tag="TAPE01L8",
            created="2026-01-11T10:43:48Z",
            capacity_bytes=CAPACITY,
            early_warning_bytes=EARLY,
            programmable_early_warning_bytes=PROGRAMMABLE,
        )
        Cartridge.create(self.folder, info)
        self.load()

    def load(self) -> None:
        self.drive.load(self.folder)
        self.drive.test_unit_ready()
        self.tape.position = 0

    def teardown(self) -> None:
        self.drive.unload()
        shutil.rmtree(self.home)

    def agree(self, outcome: Outcome, answer: Answer) -> None:
        triple, information, data = answer
        assert outcome.triple == triple
        assert (outcome.sense.information if outcome.sense else None) == information
        assert (None if outcome.data is None else bytes(outcome.data)) == data
        if data is not None:
            assert outcome.crc32c == crc32c(data)
        assert outcome.position == self.tape.position

    def new_record(self, size: int) -> bytes:
        self.counter += 1
        return (self.counter.to_bytes(4, "big") * (size // 4 + 1))[:size]

    @rule(size=SIZES)
    def write_record(self, size: int) -> None:
        data = self.new_record(size)
        outcome = self.drive.write_record(memoryview(data), crc32c=crc32c(data))
        if self.tape.position < len(self.tape.objects):
            self.agree(outcome, (OVERWRITE_REFUSED, None, None))
        else:
            self.agree(outcome, self.tape.write(data))

    @rule(immediate=st.booleans())
    def write_filemark(self, immediate: bool) -> None:
        outcome = self.drive.write_filemarks(1, immediate=immediate)
        if self.tape.position < len(self.tape.objects):
            self.agree(outcome, (OVERWRITE_REFUSED, None, None))
            return
        answer = self.tape.write(None)
        if not immediate:
            self.tape.flush()
        self.agree(outcome, answer)

    @precondition(lambda self: self.tape.position < len(self.tape.objects))
    @rule(size=SIZES)
    def overwrite(self, size: int) -> None:
        data = self.new_record(size)
        assert self.drive.allow_overwrite(self.tape.position).is_good
        outcome = self.drive.write_record(memoryview(data), crc32c=crc32c(data))
        self.agree(outcome, self.tape.write(data))
        self.drive.allow_overwrite(None)

    @precondition(lambda self: self.tape.position < len(self.tape.objects))
    @rule()
    def erase(self) -> None:
        assert self.drive.allow_overwrite(self.tape.position).is_good
        assert self.drive.erase().is_good
        del self.tape.objects[self.tape.position :]
        self.tape.durable = min(self.tape.durable, len(self.tape.objects))

    @rule(size=SIZES, suppress=st.booleans())
    def read(self, size: int, suppress: bool) -> None:
        buffer = memoryview(bytearray(size))
        outcome = self.drive.read_record(buffer, suppress_length=suppress)
        self.agree(outcome, self.tape.read(size, suppress=suppress))

    @rule(count=st.integers(-6, 6))
    def space_blocks(self, count: int) -> None:
        self.agree(self.drive.space(0, count), self.tape.space_blocks(count))

    @rule(count=st.integers(-4, 4))
    def space_filemarks(self, count: int) -> None:
        self.agree(self.drive.space(1, count), self.tape.space_filemarks(count))

    @rule()
    def space_to_end(self) -> None:
        self.agree(self.drive.space(3), self.tape.locate(len(self.tape.objects)))

    @rule(number=st.integers(0, 12))
    def locate(self, number: int) -> None:
        self.agree(self.drive.locate(number), self.tape.locate(number))

    @rule()
    def flush(self) -> None:
        assert self.drive.flush().is_good
        self.tape.flush()

    @rule()
    def reload(self) -> None:
        assert self.drive.unload().is_good
        self.tape.flush()
        self.load()
        assert self.drive.cartridge is not None
        # A torn tail stays until the next write; anything else would be damage.
        assert not self.drive.cartridge.recovered.damage

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The process dies; of what was not flushed, any beginning may be on the medium."""
        cartridge = self.drive.cartridge
        assert cartridge is not None
        first = cartridge.durable_count
        pending = bytes(cartridge._pending)
        kept = data.draw(st.integers(0, len(pending) // ENTRY_BYTES), label="kept")
        torn = data.draw(st.integers(0, ENTRY_BYTES - 1), label="torn")
        end = cartridge.charge_before(first + kept)
        cut = data.draw(st.integers(end, max(end, cartridge.used_bytes)), label="data end")
        cartridge.abandon()
        self.drive._cartridge = None
        with (self.folder / "index").open("r+b") as index:
            index.seek(entry_offset(first))
            index.write(pending[: kept * ENTRY_BYTES + torn])
        with (self.folder / "data").open("r+b") as stream:
            # A torn entry of which all bytes arrived needs its record, too, to count.
            stream.truncate(cut)
        self.load()
        del self.tape.objects[first + kept :]
        self.tape.durable = len(self.tape.objects)

    @invariant()
    def both_stand_at_the_same_place(self) -> None:
        if self.drive.cartridge is None:
            return
        report = self.drive.read_position().report
        assert report is not None
        tape = self.tape
        assert report.object_number == tape.position
        assert report.file_number == tape.objects[: tape.position].count(None)
        assert report.durable_object == min(tape.position, tape.durable)
        charge = tape.charge(tape.position)
        assert report.is_beyond_early_warning == (charge >= CAPACITY - EARLY)
        assert report.is_beyond_programmable_early_warning == (
            charge >= CAPACITY - EARLY - PROGRAMMABLE
        )
        assert self.drive.cartridge.object_count == len(tape.objects)
        assert self.drive.cartridge.used_bytes == tape.charge(len(tape.objects))


TestDriveAgainstList = DriveAgainstList.TestCase
TestDriveAgainstList.settings = settings(settings.default, stateful_step_count=40)
