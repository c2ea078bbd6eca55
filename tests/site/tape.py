"""A tape node: cartridges as lists of objects, drives, and what a load finds on a cartridge."""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backplane import tape_format
from backplane.crc import crc32c
from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    NotReadyError,
    RefusedError,
    RetainedError,
    SourceEmptyError,
    StaleError,
    VolumeError,
)
from backplane.scsi.designator import designator_of
from backplane.tape_format.payload import encode_payload
from backplane.tape_format.retention import retain_until
from backplane.wire.messages import (
    CartridgeState,
    DriveState,
    NodeInventory,
    NodeReply,
    TapeAdd,
    TapeDigest,
    TapeErase,
    TapeLoad,
    TapeMetadata,
    TapeMove,
    TapeRetain,
    TapeSample,
    TapeScan,
    TapeUnload,
    UnitFence,
    UnitFenced,
)

FM = None


@dataclass
class Tape:
    """A cartridge: objects (bytes or FM).

    Writes beyond `capacity` objects warn, beyond `end` do not fit; `bad` objects cannot be read; `durable` is up to
    where it survives a crash of its node.  `unreadable` is a reason why it cannot be loaded at all.
    """

    tag: str
    objects: list[bytes | None] = field(default_factory=list)
    capacity: int = 10**9
    end: int = 10**9
    bad: set[int] = field(default_factory=set)
    durable: int = 0
    unreadable: str = ""
    write_error: int = 10**9
    """From this object on, writes fail with a medium error."""
    element: str = ""
    """Where it is when it is in no drive: `slot-N` or `io-N`."""
    retain_until: str = ""
    is_held: bool = False
    is_worm: bool = False
    is_write_protected: bool = False
    is_on_full_disk: bool = False
    """It is the disk below that has no room beyond `capacity`, not the cartridge."""
    is_stuck: bool = False
    """No drive gets ready with it."""
    refuses_erase: str = ""
    """A reason of its own not to erase it."""
    status: str = ""
    """What its node says of it, if that is not what the objects say."""


@dataclass
class Drive:
    """A data transfer element."""

    name: str
    unit: bytes
    loaded: str = ""
    position: int = 0
    is_in_error: bool = False
    stuck: int = 0
    """So many loads more come to nothing: the drive does not get ready."""


@dataclass
class TapeNode:
    """A storage node of the tape role."""

    name: str = "tape"
    boot: bytes = b"t" * 16
    tapes: dict[str, Tape] = field(default_factory=dict)
    drives: dict[str, Drive] = field(default_factory=dict)
    floor: dict[bytes, int] = field(default_factory=dict)
    wall: Callable[[], str] = lambda: ""
    erased: list[str] = field(default_factory=list)

    @classmethod
    def with_drives(cls, count: int, *, tags: tuple[str, ...]) -> TapeNode:
        """Make a node."""
        made = cls()
        for tag in tags:
            made.put(Tape(tag))
        made.put_drives(count)
        return made

    def put_drives(self, count: int) -> None:
        """Have so many drives; those that are there stay."""
        for number in range(len(self.drives), count):
            name = f"drive-{number}"
            self.drives[name] = Drive(name, designator_of("d" * 31 + str(number)))

    def put(self, tape: Tape) -> None:
        """Have an operator put a cartridge into a free slot."""
        self.tapes[tape.tag] = tape
        tape.element = self._free("slot")

    def take_out(self, tag: str) -> Tape:
        """Have an operator take a cartridge away."""
        for drive in self.drives.values():
            if drive.loaded == tag:
                drive.loaded = ""
        return self.tapes.pop(tag)

    def _free(self, kind: str) -> str:
        taken = {tape.element for tape in self.tapes.values()}
        return next(name for n in itertools.count() if (name := f"{kind}-{n}") not in taken)

    def restart(self) -> None:
        """Die and start again: drives are empty, what was not durable is lost."""
        self.boot = bytes([self.boot[0] + 1]) * 16
        for tape in self.tapes.values():
            del tape.objects[tape.durable :]
        for drive in self.drives.values():
            drive.loaded, drive.position, drive.is_in_error = "", 0, False

    def drive_with(self, unit: bytes) -> Drive:
        """Return a drive by its designator."""
        return next(drive for drive in self.drives.values() if drive.unit == unit)

    def raise_floor(self, unit: bytes, epoch: int) -> None:
        """Let nobody with a lower epoch in."""
        self.floor[unit] = max(self.floor.get(unit, 0), epoch)

    # --- describing ------------------------------------------------------------------------------

    def inventory(self) -> NodeInventory:
        """Say what is here."""
        return NodeInventory(
            boot_id=self.boot,
            public_key=b"n" * 32,
            addresses=("tcp://127.0.0.1:2",),
            roles=("tape",),
            volumes=(),
            views=(),
            drives=tuple(self.drive_state(drive) for drive in self.drives.values()),
            cartridges=tuple(self.cartridge_state(tag) for tag in self.tapes),
        )

    def drive_state(self, drive: Drive) -> DriveState:
        """Describe a drive."""
        state = "error" if drive.is_in_error else "loaded" if drive.loaded else "empty"
        return DriveState(
            drive=drive.name,
            designator=drive.unit,  # type: ignore[arg-type]
            state=state,
            loaded=drive.loaded,
            epoch=self.floor.get(drive.unit, 0),  # type: ignore[arg-type]
        )

    def cartridge_state(self, tag: str) -> CartridgeState:
        """Describe a cartridge."""
        tape = self.tapes[tag]
        header = self._header(tape)
        where = [drive.name for drive in self.drives.values() if drive.loaded == tag]
        return CartridgeState(
            tag=tag,  # type: ignore[arg-type]
            cartridge=header.cartridge if header else "",  # type: ignore[arg-type]
            status=tape.status or ("writable" if tape.objects else "blank"),
            detail="",
            capacity_bytes=10**9,
            used_bytes=0,
            end=len(tape.objects),
            generation=0,
            element=where[0] if where else tape.element,
            store=header.store if header else "",
            retain_until=tape.retain_until,
            is_held=tape.is_held,
            is_worm=tape.is_worm,
            is_write_protected=tape.is_write_protected,
            is_out_of_space=tape.is_on_full_disk and len(tape.objects) >= tape.capacity,
        )

    @staticmethod
    def _header(tape: Tape) -> Any:
        if len(tape.objects) < 4 or not (tape.objects[1] or b"").startswith(b"SDVMETA"):
            return None
        return tape_format.decode_metadata([tape_format.decode_record(tape.objects[1] or b"")])

    # --- requests --------------------------------------------------------------------------------

    def answer(self, message: Any) -> Any:
        """Carry out a request."""
        reply = {"request": message.request, "boot_id": self.boot}
        match message:
            case UnitFence():
                self.raise_floor(message.designator, message.epoch)
                return UnitFenced(
                    request=message.request,
                    designator=message.designator,
                    epoch=message.epoch,
                    boot_id=self.boot,
                    position=0,
                )
            case TapeLoad():
                return self._load(message, reply | {"clock": self.wall()})
            case TapeDigest():
                return self._digest(message, reply)
            case TapeSample():
                return NodeReply(**reply, digests=self._sample(message))
            case TapeMetadata():
                return self._metadata(message, reply)
            case TapeAdd():
                if message.tag not in self.tapes:
                    self.put(Tape(message.tag))
                return NodeReply(**reply, cartridges=(self.cartridge_state(message.tag),))
            case TapeScan():
                return NodeReply(**reply)
            case TapeMove():
                return self._move(message, reply)
            case TapeUnload():
                return self._unload(message, reply)
            case TapeErase():
                return self._erase(message, reply)
            case TapeRetain():
                tape = self._tape(message.tag)
                times = [self.wall(), message.now] if message.retain_s else []
                reckoned = retain_until(message.retain_s, max(times, default=""))
                tape.retain_until = max(tape.retain_until, message.retain_until, reckoned)
                tape.is_held = message.is_held
                return NodeReply(**reply, cartridges=(self.cartridge_state(tape.tag),))
            case _:
                raise AssertionError(message)

    def _tape(self, tag: str) -> Tape:
        if tag not in self.tapes:
            raise NotFoundError(f"there is no cartridge {tag}")
        return self.tapes[tag]

    def _fence(self, name: str, epoch: int) -> Drive:
        drive = self.drives[name]
        if epoch < self.floor.get(drive.unit, 0):
            raise StaleError("overtaken")
        self.raise_floor(drive.unit, epoch)
        return drive

    def _move(self, message: TapeMove, reply: dict[str, Any]) -> NodeReply:
        tape = self._tape(message.tag)
        if any(drive.loaded == tape.tag for drive in self.drives.values()):
            raise BusyError(f"cartridge {tape.tag} is in a drive")
        kind = message.to.partition("-")[0]
        if message.to != kind:
            tape.element = message.to
        elif not tape.element.startswith(f"{kind}-"):
            tape.element = self._free(kind)
        return NodeReply(**reply, cartridges=(self.cartridge_state(tape.tag),))

    def _unload(self, message: TapeUnload, reply: dict[str, Any]) -> NodeReply:
        drive = self._fence(message.drive, message.epoch)
        tag, drive.loaded, drive.position = drive.loaded, "", 0
        states = (self.cartridge_state(tag),) if tag else ()
        return NodeReply(**reply, drives=(self.drive_state(drive),), cartridges=states)

    def _erase(self, message: TapeErase, reply: dict[str, Any]) -> NodeReply:
        drive = self._fence(message.drive, message.epoch)
        if drive.loaded != message.tag:
            raise NotFoundError(f"cartridge {message.tag} is not in drive {drive.name}")
        tape = self.tapes[message.tag]
        if tape.is_held or tape.retain_until > self.wall():
            raise RetainedError(
                f"cartridge {tape.tag} is retained until {tape.retain_until} by the clock of its node, "
                f"which is at {self.wall()}"
            )
        if tape.refuses_erase or tape.is_worm:
            raise RefusedError(tape.refuses_erase or f"cartridge {tape.tag} is WORM")
        if tape.objects and self._header(tape) is None and not message.is_forced:
            raise RefusedError(f"cartridge {tape.tag} is none of ours")
        tape.objects, tape.durable, tape.bad, drive.position = [], 0, set(), 0
        tape.retain_until, tape.status = "", ""
        self.erased.append(tape.tag)
        return self._look(drive, tape, reply)

    def _load(self, message: TapeLoad, reply: dict[str, Any]) -> NodeReply:
        drive = self._fence(message.drive, message.epoch)
        if message.tag not in self.tapes:
            raise SourceEmptyError(f"cartridge {message.tag} is not in slot-1 any more")
        if drive.stuck or self.tapes[message.tag].is_stuck:
            drive.stuck -= bool(drive.stuck)
            raise NotReadyError(f"{drive.name} does not get ready with cartridge {message.tag}")
        if any(d.loaded == message.tag and d is not drive for d in self.drives.values()):
            raise BusyError(f"cartridge {message.tag} is in another drive")
        if message.tag in self.tapes and self.tapes[message.tag].element.startswith("io-"):
            hint = f"ctl tape import {message.tag}"
            raise RefusedError(f"cartridge {message.tag} is at the door", hint=hint)
        tape = self.tapes[message.tag]
        if tape.unreadable:
            raise MediumError(tape.unreadable)
        drive.loaded, drive.position, drive.is_in_error = message.tag, len(tape.objects), False
        return self._look(drive, tape, reply)

    def _digest(self, message: TapeDigest, reply: dict[str, Any]) -> NodeReply:
        drive = self.drives[message.drive]
        if not drive.loaded or message.end > len(self.tapes[drive.loaded].objects):
            raise NotFoundError("not on the tape")
        stop = min(message.end, message.start + 3)
        objects = self.tapes[drive.loaded].objects[message.start : stop]
        digests = b"".join(struct.pack(">I", zlib.crc32(item)) for item in objects if item)
        return NodeReply(**reply, digests=digests, next_object=stop)

    def _sample(self, message: TapeSample) -> bytes:
        drive = self.drives[message.drive]
        if not drive.loaded:
            raise NotFoundError(f"drive {message.drive} is empty")
        tape = self.tapes[drive.loaded]
        digests = b""
        for number, first, count in struct.iter_unpack(">QII", message.ranges):
            record = tape.objects[number]
            if number in tape.bad or record is None:
                raise MediumError(f"object {number} cannot be read")
            assert 0 < count <= len(record) - first
            digests += struct.pack(">I", crc32c(record[first : first + count]))
        return digests

    def _metadata(self, message: TapeMetadata, reply: dict[str, Any]) -> NodeReply:
        drive = self.drives[message.drive]
        if not drive.loaded:
            raise NotFoundError(f"drive {message.drive} is empty")
        tape = self.tapes[drive.loaded]
        found, at = b"", message.start
        for record in tape.objects[at : at + 3]:
            if at in tape.bad:
                if found:
                    break
                raise MediumError(f"object {at} cannot be read")
            if record is None or not record.startswith(b"SDVMETA"):
                break
            found += struct.pack(">I", len(record)) + record
            at += 1
        return NodeReply(**reply, records=found, next_object=at)

    def _look(self, drive: Drive, tape: Tape, reply: dict[str, Any]) -> NodeReply:
        """Find label and last committed trailer by looking at everything."""
        header, trailer, sequence, digest = b"", b"", 0, b""
        if len(tape.objects) >= 4 and tape.objects[1]:
            header = tape_format.join_records([tape_format.decode_record(tape.objects[1])])
        for records in self._files(tape)[1:-1]:
            if not records or not records[0].startswith(b"SDVMETA"):
                continue
            try:
                decoded = [tape_format.decode_record(record) for record in records]
            except VolumeError:
                continue
            if len(decoded) != decoded[0].count:
                continue  # An orphan tail, and a header behind it.
            if decoded[0].type is tape_format.RecordType.PART_TRAILER:
                value: Any = tape_format.decode_metadata(decoded)
                trailer = encode_payload(value.directory_entry())
                payload = tape_format.join_records(decoded)
                sequence, digest = value.sequence, hashlib.sha256(payload).digest()
        return NodeReply(
            **reply,
            drives=(self.drive_state(drive),),
            cartridges=(self.cartridge_state(tape.tag),),
            header=header,
            trailer=trailer,
            trailer_sequence=sequence,
            trailer_digest=digest,
            end=len(tape.objects),
            durable_end=tape.durable,
        )

    @staticmethod
    def _files(tape: Tape) -> list[list[bytes]]:
        files: list[list[bytes]] = [[]]
        for item in tape.objects:
            if item is FM:
                files.append([])
            else:
                files[-1].append(item)
        return files
