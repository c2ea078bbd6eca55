"""Control requests of the tape role: each method carries one out, blocking, and returns what it concerns.

Two kinds of locks: each drive's mutex, for whatever touches the tape in it, and the library's, for moving cartridges
and looking at those in their slots.  The mutex is taken first, and nobody who has the library's waits for one: so
drives load, locate and rewind side by side, and only the picker is shared.  An inventory waits for no drive for long;
of a cartridge in one that is busy it says what was known.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from backplane.errors import (
    BackupError,
    NotFoundError,
    RefusedError,
    SourceEmptyError,
    StaleError,
)
from backplane.ids import Designator, Epoch, VolumeTag
from backplane.scsi.designator import designator_of
from backplane.scsi.tape_alert import TapeAlert
from backplane.tape_format.payload import encode_payload
from backplane.wire.messages import (
    CartridgeState,
    DriveState,
    NodeReply,
    TapeAdd,
    TapeErase,
    TapeLoad,
    TapeMove,
    TapeRetain,
    TapeUnload,
)
from storage_node.access import Access
from storage_node.core.admission import Unit, UnitKind
from storage_node.core.tape_alert import Health
from storage_node.core.tape_position import SpaceCode
from storage_node.core.time_line import written
from storage_node.node_clock import NodeClock
from storage_node.state_file import lasting_uuids
from storage_node.tape.cartridge_info import is_cleaning_tag
from storage_node.tape.equipment import Library, LibraryDrive, LoadedCartridge
from storage_node.tape.library import CartridgeFacts, CartridgeStatus, quarantined
from storage_node.tape.modelled_drive import ModelledDrive
from storage_node.tape.record_sampler import sample_records, unpack_pieces
from storage_node.tape.volume_reader import LabelState, TapeEnd
from storage_node.tape_keeping import permit_erase, retained
from storage_node.tape_media import (
    after_load,
    alerts_of,
    attributes_of,
    cartridge_state,
    committed_end,
    drive_state,
    erase_everything,
    erase_facts,
    erased_info,
    informed,
    is_known,
    is_out_of_space,
    metadata_records,
    protected_end,
)
from storage_node.tape_unit import TapeUnit

DIGESTS_MAX: Final = 200_000
"""Objects looked at for one tape.digest: at most 4 bytes each in a control message of 1 MiB."""

BUSY_S: Final = 0.2
"""How long an inventory waits for a drive: longer than a record takes, shorter than a load."""

SERIAL_CHARACTERS: Final = 12
"""Of the serial number of a drive that has none of its own: the end of its UUID."""

log = logging.getLogger(__name__)


class TapeControl:
    """The library of a node, with a logical unit per drive."""

    def __init__(
        self,
        library: Library,
        access: Access,
        *,
        state_folder: Path,
        clock: NodeClock,
        new_uuid: Callable[[], str],
    ) -> None:
        self._library = library
        self._access = access
        self._clock = clock
        self._lock = library.lock
        self.units: dict[Designator, TapeUnit] = {}
        self._drives: dict[str, tuple[int, TapeUnit, LibraryDrive]] = {}
        self._serials: dict[str, str] = {}
        uuids = lasting_uuids(
            state_folder / "drives.json",
            [f"drive-{number}" for number in range(len(library.drives))],
            new_uuid,
        )
        for number, drive in enumerate(library.drives):
            name = f"drive-{number}"
            unit = TapeUnit(name, designator_of(uuids[name]), drive, access)
            self._drives[name] = number, unit, drive
            self._serials[name] = drive.serial or uuids[name][-SERIAL_CHARACTERS:].upper()
            unit.find_committed_end = partial(protected_end, drive)
            self.units[unit.designator] = unit
            access.put_unit(Unit(designator=unit.designator, kind=UnitKind.TAPE))
        self._short = frozenset[str]()
        self._written_last: dict[str, str] = {}
        self._facts = {facts.tag: facts for facts in library.cartridges()}

    # --- describing ------------------------------------------------------------------------------

    def describe(self) -> tuple[tuple[DriveState, ...], tuple[CartridgeState, ...]]:
        """Return all drives and cartridges; those in drives that are not busy are looked at afresh."""
        for _, unit, drive in self._drives.values():
            with _if_free(unit.mutex) as is_free:
                if is_free:
                    self._look(unit, drive)
        with self._lock:
            drives = tuple(self._drive_state(name) for name in self._drives)
            places = self._library.places()
            here = set(self._library.tags())
            free = self._library.free_bytes()
            cartridges = tuple(
                cartridge_state(facts, places, free_bytes=free)
                for facts in self._judged()
                if facts.tag in here
            )
            self._short = self._out_of_space()
        return drives, cartridges

    def has_space_changed(self) -> bool:
        """Say whether the disk below has become too small for a cartridge, or large enough, since `describe`.

        Asked every few seconds, so the clock is looked at as well.
        """
        self._clock.look()
        with self._lock:
            self._library.free_bytes(looks=True)
            return self._out_of_space() != self._short

    def is_drive(self, designator: Designator) -> bool:
        """Tell whether a designator is that of a drive."""
        return designator in self.units

    def end_of_data(self, designator: Designator) -> int:
        """Return the end of data of what is in a drive, 0 if it is empty."""
        for _, unit, drive in self._drives.values():
            if unit.designator == designator:
                with unit.mutex:
                    return drive.cartridge.object_count if drive.cartridge else 0
        raise NotFoundError(f"no drive {designator.hex()} on this node")

    # --- requests --------------------------------------------------------------------------------

    def load(self, message: TapeLoad) -> NodeReply:
        """Fence the drive, put the cartridge in, read label and last committed trailer; the tape is then at its end.

        A cleaning cartridge cleans the drive and goes back to its slot.
        """
        number, unit, drive = self._drive(message.drive)
        with self._fenced(unit, message.epoch):
            if is_cleaning_tag(message.tag):
                self._clean(number, unit, drive, message.tag)
                reply = NodeReply(request=0, boot_id=b"")
            else:
                self._put_in(number, unit, drive, message.tag)
                reply, unit.committed_end = self._read_ends(drive)
                # Who appends next finds the tape where this reply says; who reads locates first anyway.
                unit.position = drive.space(SpaceCode.END_OF_DATA).position
            self._look(unit, drive)
            return self._about(replace(reply, request=message.request), unit, message.tag)

    def unload(self, message: TapeUnload) -> NodeReply:
        """Fence the drive, flush it and put its cartridge back into its slot; an empty drive is no error."""
        number, unit, drive = self._drive(message.drive)
        with self._fenced(unit, message.epoch):
            tag = _tag_in(drive)
            if tag:
                self._take_out(number, unit, drive)
            return self._about(NodeReply(request=message.request, boot_id=b""), unit, tag)

    def scan(self) -> None:
        """Look into all elements, and at all cartridges, anew; what was never read is loaded for it, one by one."""
        with self._lock:
            self._library.scan()
        for number, unit, drive in self._drives.values():
            with _if_free(unit.mutex) as is_free:
                if is_free and drive.cartridge is None:
                    self._library.look(drive=number)
        for tag in self._library.unread():
            self._look_into(tag)
        with self._lock:
            tags = self._library.tags()
        for tag in tags:
            with self._hold(tag, waits=tag not in self._facts) as is_free:
                if is_free:
                    self._facts[tag] = self._library.facts(tag)
        with self._lock:
            for gone in self._facts.keys() - set(self._library.tags()):
                del self._facts[gone]

    def _look_into(self, tag: str) -> None:
        """Read a cartridge of which nothing is known, in a drive that is empty; if none is, it stays unknown."""
        for number, unit, drive in self._drives.values():
            # Whoever has an old grant for this drive waits for its mutex, and then finds it empty.
            with _if_free(unit.mutex) as is_free:
                if not is_free or drive.cartridge is not None:
                    continue
                try:
                    self._library.look_into(tag, drive=number)
                except BackupError as error:
                    told = {"cartridge": tag, "reason": str(error)}
                    log.warning("a cartridge could not be read", extra=told)
                return
        log.warning("no empty drive to read a cartridge", extra={"cartridge": tag})

    def move(self, message: TapeMove) -> CartridgeState:
        """Move a cartridge that is in no drive."""
        with self._lock:
            before = self._library.places()
            try:
                self._library.move(message.tag, message.to)
            except SourceEmptyError:
                self._follow_elements()
                raise
            if before.keys() != self._library.places().keys():
                log.info("somebody was at the import/export elements")
                self._follow_elements()
            if message.tag not in self._facts:
                self._facts[message.tag] = self._library.facts(message.tag)
            return self._state(message.tag)

    def erase(self, message: TapeErase) -> NodeReply:
        """Make the cartridge in a drive blank, unless something forbids it: see `core.retention`."""
        number, unit, drive = self._drive(message.drive)
        with self._fenced(unit, message.epoch):
            cartridge = _loaded(drive, unit.name)
            if cartridge.info.tag != message.tag:
                raise NotFoundError(
                    f"cartridge {message.tag} is not in {unit.name}: {cartridge.info.tag} is"
                )
            with drive.looking() as head:
                facts = erase_facts(cartridge, head)
            permit_erase(message, facts, self._clock)
            self._erase(number, unit, drive, cartridge)
            self._look(unit, drive)
            return self._about(NodeReply(request=message.request, boot_id=b""), unit, message.tag)

    def retain(self, message: TapeRetain) -> NodeReply:
        """Keep a cartridge from being erased; retention is only ever extended."""
        with self._hold(message.tag):
            info = self._library.info(message.tag)
            written_last = self._written_last.get(message.tag, "")
            changed = retained(info, message, self._clock, written_last=written_last)
            if changed != info:
                self._library.save_info(changed)
            self._facts[message.tag] = self._library.facts(message.tag)
            return NodeReply(
                request=message.request,
                boot_id=b"",
                cartridges=(self._state(message.tag),),
                clock=written(self._clock.wall()),
            )

    def metadata(self, drive_name: str, start: int) -> NodeReply:
        """Return metadata records from an object on, read by a head of its own."""
        _, unit, drive = self._drive(drive_name)
        with unit.mutex:
            cartridge = _loaded(drive, unit.name)
            with drive.looking() as head:
                records, following = metadata_records(head, start)
            return NodeReply(
                request=0,
                boot_id=b"",
                records=records,
                next_object=following,
                end=cartridge.object_count,
                durable_end=cartridge.durable_count,
            )

    def attributes(self, tag: str) -> bytes:
        """Return the attributes of a cartridge's memory, as READ ATTRIBUTE does."""
        with self._hold(tag):
            info = self._library.info(tag)
            facts = self._facts[tag] = self._library.facts(tag)
            alerts = 0
            for number, unit, drive in self._drives.values():
                if _tag_in(drive) == tag:
                    alerts = self._library.counters(number).alerts | unit.health.alerts
                    info = after_load(info, unit.health)
        return attributes_of(info, facts, alerts=alerts | alerts_of(facts, info))

    def digest(self, drive_name: str, start: int, end: int) -> tuple[bytes, int]:
        """Return CRC32C values of records, as they were written, and the object to go on from."""
        _, unit, drive = self._drive(drive_name)
        stop = min(end, start + DIGESTS_MAX)
        with unit.mutex:
            return drive.digests(start, stop)

    def sample(self, drive_name: str, ranges: bytes) -> bytes:
        """Return the CRC32C of pieces of records, read by a head of its own: nobody's position changes."""
        pieces = unpack_pieces(ranges)
        _, unit, drive = self._drive(drive_name)
        with unit.mutex:
            _loaded(drive, unit.name)
            with drive.looking() as head:
                return sample_records(head, pieces)

    def add(self, message: TapeAdd) -> CartridgeState:
        """Add a blank cartridge; the same one again is found."""
        with self._lock:
            if message.tag in self._library.tags():
                facts = self._facts.get(message.tag) or self._library.facts(message.tag)
                found = facts.capacity_bytes, facts.is_worm
                if found != (message.capacity_bytes, message.is_worm):
                    raise RefusedError(f"there is a cartridge {message.tag} already")
            else:
                facts = self._library.add(
                    message.tag,
                    capacity_bytes=message.capacity_bytes,
                    created=written(self._clock.wall()),
                    is_worm=message.is_worm,
                )
            self._facts[message.tag] = facts
            return self._state(message.tag)

    def end(self) -> None:
        """Keep what drives have counted; the library can be closed then."""
        for drive in self._library.drives:
            if isinstance(drive, ModelledDrive):
                drive.hurry()
        for number, unit, drive in self._drives.values():
            with unit.mutex:
                if drive.cartridge is not None:
                    self._note_load(number, unit, drive.cartridge)

    def close(self) -> None:
        """Unload all drives; what is in their buffers becomes durable."""
        self.end()
        with self._lock:
            self._library.close()

    # --- inside ----------------------------------------------------------------------------------

    def _drive(self, name: str) -> tuple[int, TapeUnit, LibraryDrive]:
        """Find a drive by its name or its serial number."""
        for known, found in self._drives.items():
            if name in (known, self._serials[known]):
                return found
        raise NotFoundError(f"there is no drive {name} on this node")

    @contextmanager
    def _hold(self, tag: str, *, waits: bool = True) -> Iterator[bool]:
        """Keep a cartridge where it is: have the mutex of the drive that it is in, if it is in one, and the library.

        Yields False, without the mutex, if the drive is busy and nobody `waits` for it.
        """
        while True:
            with self._lock:
                element = self._library.places().get(tag, "")
            mutex = self._drives[element][1].mutex if element in self._drives else None
            with _if_free(mutex, timeout_s=-1 if waits else BUSY_S) as is_free, self._lock:
                if self._library.places().get(tag, "") == element:
                    yield is_free
                    return

    @contextmanager
    def _fenced(self, unit: TapeUnit, epoch: Epoch) -> Iterator[None]:
        """Fence a drive and have its mutex; raises `StaleError` if it was fenced anew, also while we waited."""
        self._refuse_stale(unit, epoch)
        self._access.fence(unit.designator, epoch)
        with unit.mutex:
            self._refuse_stale(unit, epoch)
            yield

    def _refuse_stale(self, unit: TapeUnit, epoch: Epoch) -> None:
        with self._access.locked() as rules:
            floor = rules.floor(unit.designator)
            if epoch < floor.epoch or (epoch == floor.epoch and floor.holder):
                raise StaleError(f"epoch {epoch} was overtaken, the drive is at {floor.epoch}")

    def _put_in(self, number: int, unit: TapeUnit, drive: LibraryDrive, tag: VolumeTag) -> None:
        """Load, unloading what is there.  One that is there already stays, unless a write to it has failed."""
        try:
            self._exchange(number, unit, drive, tag)
        except SourceEmptyError:
            self._follow_elements()
            raise

    def _follow_elements(self) -> None:
        """Forget what is in the library no more, and look at what has come: somebody was at the elements."""
        with self._lock:
            self._facts = {
                tag: self._facts.get(tag) or self._library.facts(tag)
                for tag in self._library.tags()
            }

    def _exchange(self, number: int, unit: TapeUnit, drive: LibraryDrive, tag: VolumeTag) -> None:
        there = drive.cartridge
        if there is not None and there.info.tag == tag and there.failure is None:
            return
        if there is not None and there.info.tag == tag:
            unit.position, unit.committed_end, unit.refusal = 0, 0, ""
            self._note_load(number, unit, there)
            report = self._library.reload(drive=number)
        else:
            with self._lock:
                self._library.loadable(tag)  # what cannot be loaded unloads nothing
            if there is not None:
                self._take_out(number, unit, drive)
            report = self._library.load(tag, drive=number)
        unit.health = Health()
        drive.test_unit_ready()  # takes the unit attention: whoever opens the drive next expects it
        unit.position = drive.read_position().position
        log.info("cartridge loaded", extra={"cartridge": tag, "drive": unit.name, "report": report})

    def _take_out(self, number: int, unit: TapeUnit, drive: LibraryDrive) -> None:
        """Note what the tape ends with, flush, and put the cartridge back into its slot."""
        there = _loaded(drive, unit.name)
        tag = there.info.tag
        if there.failure is None and drive.flush().is_good:
            try:
                self._read_ends(drive)
            except BackupError as error:
                told = {"cartridge": tag, "reason": str(error)}
                log.warning("the end of the tape was not read", extra=told)
        unit.position, unit.committed_end, unit.refusal = 0, 0, ""
        self._note_load(number, unit, there)
        outcome = self._library.unload(drive=number)
        if not outcome.is_good:
            log.warning("cartridge was unloaded after a failed write", extra={"cartridge": tag})
        with self._lock:
            place = self._library.places().get(tag)
            if not place and not is_known(self._library, tag):
                log.warning("cartridge taken away while in its drive", extra={"cartridge": tag})
                self._follow_elements()
            elif place not in self._drives:  # Another one may have it by now.
                self._facts[tag] = self._library.facts(tag)

    def _note_load(self, number: int, unit: TapeUnit, cartridge: LoadedCartridge) -> None:
        """Keep what the drive has counted since the load, with the cartridge and with the drive."""
        health = unit.health
        try:
            with self._lock:
                self._library.save_info(after_load(cartridge.info, health))
                self._library.count_errors(
                    number, read_errors=health.read_errors, write_errors=health.write_errors
                )
        except BackupError as error:
            log.warning(
                "the counters of a load are lost",
                extra={"cartridge": cartridge.info.tag, "reason": str(error)},
            )
        unit.health = Health()

    def _clean(self, number: int, unit: TapeUnit, drive: LibraryDrive, tag: str) -> None:
        with self._lock:
            self._library.loadable(tag)
        if drive.cartridge is not None:
            self._take_out(number, unit, drive)
        with self._lock:
            if not self._library.cleanings_left(tag):
                unit.health.raise_alert(TapeAlert.EXPIRED_CLEANING)
            self._library.clean(tag, drive=number)
            self._facts[tag] = self._library.facts(tag)
        log.info("drive cleaned", extra={"cartridge": tag, "drive": unit.name})

    def _erase(
        self, number: int, unit: TapeUnit, drive: LibraryDrive, cartridge: LoadedCartridge
    ) -> None:
        tag = cartridge.info.tag
        if not erase_everything(cartridge, drive):
            self._library.reformat(drive=number)
        self._library.save_info(erased_info(self._library.info(tag)))
        unit.position, unit.committed_end = drive.read_position().position, 0

    def _read_ends(self, drive: LibraryDrive) -> tuple[NodeReply, int]:
        """Look at label and end with a head of its own, so that nobody's position changes.

        Returns the reply and the object behind the last commit, before which nothing may be overwritten.
        """
        cartridge = drive.cartridge
        assert cartridge is not None
        label = drive.label()
        facts = NodeReply(
            request=0,
            boot_id=b"",
            end=cartridge.object_count,
            durable_end=cartridge.durable_count,
            header=encode_payload(label.header) if label.header is not None else b"",
        )
        if label.state is not LabelState.OURS or label.header is None:
            is_ours = label.state in (LabelState.BLANK, LabelState.UNFINISHED)
            return facts, 0 if is_ours else cartridge.object_count
        end = drive.last_trailer(label.header)
        self._note_end(cartridge, end)
        trailer = end.trailer
        if trailer is None:
            return facts, committed_end(end)
        reply = replace(
            facts,
            trailer_sequence=trailer.sequence,
            trailer=encode_payload(trailer.directory_entry()),
            trailer_digest=hashlib.sha256(encode_payload(trailer)).digest(),
        )
        return reply, committed_end(end)

    def _note_end(self, cartridge: LoadedCartridge, end: TapeEnd) -> None:
        """Keep what the last trailer says with the cartridge, once it is on the medium."""
        if end.trailer is not None:
            self._written_last[cartridge.info.tag] = end.trailer.created
        info = informed(cartridge.info, end)
        if info != cartridge.info and cartridge.durable_count == cartridge.object_count:
            self._library.save_info(info)

    def _look(self, unit: TapeUnit, drive: LibraryDrive) -> None:
        """Look at what is in a drive, and decide whether it may be written to; call with its mutex."""
        there = drive.cartridge
        if there is None:
            return
        tag = there.info.tag
        with self._lock:
            self._facts[tag] = self._library.facts(tag)
            facts = next(each for each in self._judged() if each.tag == tag)
        is_wrong = facts.status is CartridgeStatus.FOREIGN
        if facts.status is CartridgeStatus.ERROR:
            # What is wrong with the medium the drive says by itself, and better.
            is_wrong = there.failure is None and there.is_appendable
        unit.refusal = (facts.detail or facts.status.value) if is_wrong else ""

    def _judged(self) -> list[CartridgeFacts]:
        facts = [self._facts[tag] for tag in sorted(self._facts)]
        return quarantined(facts, self._library.exceptions())

    def _state(self, tag: str) -> CartridgeState:
        facts = next(each for each in self._judged() if each.tag == tag)
        free = self._library.free_bytes()
        return cartridge_state(facts, self._library.places(), free_bytes=free)

    def _out_of_space(self) -> frozenset[str]:
        free = self._library.free_bytes()
        return frozenset(tag for tag, each in self._facts.items() if is_out_of_space(each, free))

    def _about(self, reply: NodeReply, unit: TapeUnit, tag: str) -> NodeReply:
        """Add the state of a drive and of a cartridge, if it is there, to an answer."""
        with self._lock:
            cartridges = (self._state(tag),) if tag in self._facts else ()
            drives = (self._drive_state(unit.name),)
        clock = written(self._clock.wall())
        return replace(reply, drives=drives, cartridges=cartridges, clock=clock)

    def _drive_state(self, name: str) -> DriveState:
        number, unit, drive = self._drives[name]
        with self._access.locked() as rules:
            epoch = rules.floor(unit.designator).epoch
        return drive_state(
            name,
            drive,
            designator=unit.designator,
            epoch=epoch,
            serial=self._serials[name],
            counters=self._library.counters(number),
            health=unit.health,
        )


def _tag_in(drive: LibraryDrive) -> str:
    there = drive.cartridge
    return there.info.tag if there is not None else ""


@contextmanager
def _if_free(mutex: threading.Lock | None, *, timeout_s: float = BUSY_S) -> Iterator[bool]:
    """Have a mutex, if there is one and it becomes free in time (-1: whenever); yields whether that is so."""
    is_free = mutex is None or mutex.acquire(timeout=timeout_s)
    try:
        yield is_free
    finally:
        if mutex is not None and is_free:
            mutex.release()


def _loaded(drive: LibraryDrive, name: str) -> LoadedCartridge:
    if drive.cartridge is None:
        raise NotFoundError(f"drive {name} is empty")
    return drive.cartridge
