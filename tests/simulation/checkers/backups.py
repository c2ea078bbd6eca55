"""I1, I2: what is catalogued reads back from the medium equal to the static view, now and later; nothing twice.

A part may go from its cartridge, by being cut off, when nobody wants it any more: its backup is pruned or has failed,
no living one stands on it, the retention of its pool is over, and the cartridge is not held.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.simulation.checkers import tape_reader
from tests.simulation.checkers.clocks import Clocks
from tests.simulation.checkers.interface import Violation, Window, kind
from tests.simulation.facts import ClockSet, Committed, TapeCut, TapeWritten, ViewKept, WormMade

BLOCK = 512
ENDED = ("completed", "partial", "failed", "cancelled")
LIVING = ("building", "completed")


class BackupChecker:
    """Reads every part when it is committed, every backup when it is completed, and all of them at the end."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._views: dict[str, bytes] = {}
        self._view_of_job: dict[int, str] = {}
        self._restores: dict[int, int] = {}
        self._backups: dict[int, Any] = {}
        self._parts: dict[int, dict[int, Any]] = defaultdict(dict)
        self._digests: dict[tuple[int, int], str] = {}
        self._gone: set[tuple[int, int]] = set()
        self._contents: dict[int, bytes] = {}
        """What each backup restores to, as its cartridges said when they were last read."""
        self._retain_s: dict[str, int] = defaultdict(int)
        self._holds: dict[str, str] = {}
        self._worm: set[str] = set()
        self._clocks = Clocks()

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case ViewKept(view=view, content=content):
                self._views[view] = content
            case Committed(rows=rows):
                for row in rows:
                    self._take(row, now)
                for row in rows:
                    if kind(row) == "BackupRow" and row.state == "completed":
                        self._read_back(row)
            case WormMade(tag=tag):
                self._worm.add(tag)
            case TapeCut(tag=tag) if tag in self._worm:
                raise Violation("I1", f"{tag} is cut, and can be written only once")
            case TapeCut(tag=tag, number=number):
                for part in self._parts_on(tag):
                    if number < part.end:
                        self._cut(part, number, now)
            case TapeWritten(tag=tag, number=number):
                self._clocks.written(tag, number, now)
            case ClockSet(place=place, offset_s=offset_s):
                self._clocks.jump(place, offset_s, now)
            case _:
                pass

    def finish(self) -> None:
        """Read everything again, what others stand on first."""
        self._contents.clear()
        for row in self._backups.values():
            if row.state == "completed" and row.backup not in self._contents:
                self._read_back(row)
        for parts in self._parts.values():
            for part in parts.values():
                if (part.backup, part.part) in self._gone:
                    continue
                if self._digest(part) != self._digests[part.backup, part.part]:
                    raise Violation("I1", f"{_name(part)} has changed after its commit")

    def _take(self, row: Any, now: float) -> None:
        match kind(row):
            case "JobRow":
                self._view_of_job[row.job] = row.view
                if row.kind == "restore":
                    self._restores[row.job] = row.backup
                if row.state in ENDED:
                    self._restores.pop(row.job, None)
            case "BackupRow":
                old = self._backups.get(row.backup)
                after = {"completed": ("completed", "pruned"), "pruned": ("pruned",)}
                if old is not None and row.state not in after.get(old.state, (row.state,)):
                    raise Violation("I5", f"backup {row.backup} was {old.state}, is {row.state}")
                self._backups[row.backup] = row
                if row.state == "pruned" and old is not None and old.state == "completed":
                    self._judge_prune(row)
                    self._judge_readers(row)
            case "PartRow":
                self._take_part(row)
                self._clocks.note(row, now)
            case "PoolRow":
                self._retain_s[row.pool] = row.retain_s
            case "CartridgeRow":
                self._holds[row.tag] = row.hold
            case _:
                pass

    def _judge_prune(self, row: Any) -> None:
        """A backup may go if nothing that lives stands on it, or a copy stands in for it."""
        if self._stand_in(row) is not row:
            return
        first = self._origin(row)
        for other in self._backups.values():
            under = list(self._stands_on(other)) if other.state in LIVING else []
            if any(self._origin(self._backups[number]) is first for number in under):
                raise Violation(
                    "I1", f"backup {row.backup} is pruned, and {other.backup} stands on it"
                )

    def _judge_readers(self, row: Any) -> None:
        """Nor may it go while a restore reads it."""
        for job, number in self._restores.items():
            if row.backup in self._stands_on(self._backups.get(number)):
                raise Violation("I1", f"backup {row.backup} is pruned while job {job} restores it")

    def _cut(self, part: Any, number: int, now: float) -> None:
        why = self._why_wanted(part, now)
        if why:
            raise Violation("I1", f"{part.tag} is cut at {number}, before {_name(part)}: {why}")
        self._gone.add((part.backup, part.part))

    def _why_wanted(self, part: Any, now: float) -> str:
        for row in self._backups.values():
            if row.state in LIVING and part.backup in self._stands_on(row):
                return f"backup {row.backup} is {row.state}"
        why = self._clocks.why_retained(part, self._retain_s[self._backups[part.backup].pool], now)
        if why:
            return why
        return f"held: {self._holds[part.tag]}" if self._holds.get(part.tag) else ""

    def _stands_on(self, row: Any) -> Iterator[int]:
        while row is not None:
            yield row.backup
            parent = self._backups.get(row.parent)
            row = parent if parent is None else self._stand_in(parent)

    def _stand_in(self, row: Any) -> Any:
        """What is pruned is not needed where a copy has the same records."""
        same = [
            other
            for other in self._backups.values()
            if other.state == "completed" and self._origin(other) is self._origin(row)
        ]
        return row if row.state == "completed" or not same else min(same, key=lambda r: r.backup)

    def _take_part(self, row: Any) -> None:
        known = self._parts[row.backup].get(row.part)
        if known is not None:
            raise Violation("double commit", f"{_name(row)} is committed a second time")
        for other in self._parts_on(row.tag):
            if row.header_object < other.end and other.header_object < row.end:
                raise Violation("double commit", f"{_name(row)} lies over {_name(other)}")
        self._parts[row.backup][row.part] = row
        self._digests[row.backup, row.part] = self._digest(row)

    def _parts_on(self, tag: str) -> list[Any]:
        parts = [p for parts in self._parts.values() for p in parts.values()]
        return [p for p in parts if p.tag == tag and (p.backup, p.part) not in self._gone]

    def _tape(self, part: Any) -> list[bytes | None]:
        tape = tape_reader.objects(self._window.tape(part.tag))
        if len(tape) < part.end:
            raise Violation(
                "I1", f"{_name(part)} reaches to object {part.end}, durable are {len(tape)}"
            )
        return tape

    def _digest(self, part: Any) -> str:
        digest = hashlib.sha256()
        for item in self._tape(part)[part.header_object : part.end]:
            digest.update(b"mark" if item is None else b"record" + item)
        return digest.hexdigest()

    def _read_back(self, row: Any) -> None:
        view = self._views.get(self._view_of_job[self._origin(row).job])
        if view is None:
            raise Violation("I1", f"backup {row.backup} was made without a static view")
        numbers = sorted(self._parts[row.backup])
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            raise Violation("I1", f"backup {row.backup} has parts {numbers}")
        parts = sorted(self._parts[row.backup].values(), key=lambda p: (p.stream_start, p.part))
        self._judge_lanes(row, parts)
        self._judge_copy(row, parts)
        content = self._below(row, len(view))
        stream = 0
        for part in parts:
            if part.stream_start != stream:
                raise Violation("I2", f"{_name(part)} does not continue the one before it")
            stream += self._read_part(part, content, row.record_bytes)
        if stream != row.stream_bytes:
            raise Violation("I1", f"backup {row.backup} has {stream} of {row.stream_bytes} bytes")
        self._contents[row.backup] = bytes(content)
        if content != view:
            wrong = [n for n in range(len(view) // BLOCK) if _block(content, n) != _block(view, n)]
            raise Violation("I1", f"backup {row.backup} differs from its view at blocks {wrong}")

    def _below(self, row: Any, size: int) -> bytearray:
        """Return what a backup is laid over: nothing but zeros, or what it stands on as cartridges have it."""
        if (row.level == "full") != (row.parent == 0):
            raise Violation("I1", f"backup {row.backup} is {row.level} and stands on {row.parent}")
        if row.level == "full":
            return bytearray(size)
        parent = self._backups.get(row.parent)
        if parent is not None and row.level == "differential" and parent.level != "full":
            raise Violation(
                "I1", f"differential backup {row.backup} stands on a {parent.level} one"
            )
        found = None if parent is None else self._stand_in(parent)
        if found is None or found.state != "completed" or found.backup == row.backup:
            raise Violation("I1", f"backup {row.backup} stands on {row.parent}, which is not there")
        if found.backup not in self._contents:
            self._read_back(found)
        return bytearray(self._contents[found.backup])

    def _origin(self, row: Any) -> Any:
        while row.copy_of:
            row = self._backups[row.copy_of]
        return row

    def _judge_lanes(self, row: Any, parts: list[Any]) -> None:
        """Each lane has one stretch of the stream, in the order of its parts, and ends once."""
        lanes = [part.lane for part in parts]
        ends = [
            lane for lane, after in zip(lanes, [*lanes[1:], None], strict=True) if lane != after
        ]
        if ends != list(range(row.lanes)):
            raise Violation("I2", f"backup {row.backup} of {row.lanes} lanes has them as {lanes}")
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            is_end = after is None or after.lane != part.lane
            if part.is_last != is_end or (not is_end and after.part < part.part):
                raise Violation("I2", f"{_name(part)} does not end its lane, or is not in order")

    def _judge_copy(self, row: Any, parts: list[Any]) -> None:
        """A copy is nowhere where another one has a part: one bad cartridge must not take both."""
        first = self._origin(row).backup
        family = [
            other
            for other in self._backups.values()
            if other.backup != row.backup and self._origin(other).backup == first
        ]
        theirs = {p.tag for o in family if o.state == "completed" for p in self._present(o)}
        shared = sorted(theirs & {part.tag for part in parts})
        if row.copy_of and shared:
            raise Violation("I2", f"backup {row.backup}, a copy of {first}, shares {shared}")

    def _present(self, row: Any) -> list[Any]:
        parts = self._parts[row.backup].values()
        return [part for part in parts if (part.backup, part.part) not in self._gone]

    def _read_part(self, part: Any, content: bytearray, record_bytes: int) -> int:
        tape = self._tape(part)
        try:
            header, behind = tape_reader.metadata(tape, part.header_object, tape_reader.HEADER)
            trailer, end = tape_reader.metadata(tape, part.trailer_object, tape_reader.TRAILER)
        except tape_reader.UnreadableError as error:
            raise Violation("I1", f"{_name(part)}: {error}") from error
        records = tape[part.data_object : part.data_object + part.records]
        marks = [behind, part.data_object + part.records, end]
        if behind + 1 != part.data_object or any(tape[at] is not None for at in marks):
            raise Violation("I2", f"{_name(part)}: its filemarks do not stand where they should")
        for name in ("backup_uuid", "part", "cartridge", "sequence"):
            if header[name] != trailer[name]:
                raise Violation("I2", f"{_name(part)}: header and trailer differ in {name}")
        if [tape_reader.crc32c(r or b"") for r in records] != trailer["record_crc32c"]:
            raise Violation("I1", f"{_name(part)}: the checksums of the trailer are not its data's")
        if any(record is None or len(record) != record_bytes for record in records):
            raise Violation("I2", f"{_name(part)}: a record is missing or of another length")
        if header["zero_extents"] != trailer["zero_extents"] or (
            header["zero_extents"] and part.part != 1
        ):
            raise Violation("I2", f"{_name(part)}: its zeros are not said once, and the same twice")
        for lba, blocks in header["zero_extents"]:
            content[lba * BLOCK : (lba + blocks) * BLOCK] = bytes(blocks * BLOCK)
        data = b"".join(record or b"" for record in records)
        at = 0
        for lba, blocks in trailer["extents"]:
            size = blocks * BLOCK
            content[lba * BLOCK : lba * BLOCK + size] = data[at : at + size]
            at += size
        if at != part.stream_bytes:
            raise Violation("I1", f"{_name(part)}: extents of {at}, not {part.stream_bytes} bytes")
        return at


def _block(content: bytes | bytearray, number: int) -> bytes:
    return bytes(content[number * BLOCK : (number + 1) * BLOCK])


def _name(part: Any) -> str:
    return f"part {part.part} of backup {part.backup} on {part.tag}"
