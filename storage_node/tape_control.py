"""Control requests of the tape role: each method carries one out, blocking, and returns what it concerns.

Two kinds of locks: the library's, for moving cartridges and looking at those in their slots, and each drive's mutex,
for whatever touches the tape in it.  The library's is taken first.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from backplane.errors import BusyError, NotFoundError, RefusedError, StaleError
from backplane.ids import CartridgeId, Designator, Epoch, VolumeTag
from backplane.runtime.clock import Clock
from backplane.scsi.designator import designator_of
from backplane.tape_format.payload import encode_payload
from backplane.wire.messages import CartridgeState, DriveState, NodeReply, TapeAdd, TapeLoad
from storage_node.access import Access
from storage_node.core.admission import Unit, UnitKind
from storage_node.core.tape_position import SpaceCode
from storage_node.state_file import DamagedStateError, read_json, write_json
from storage_node.tape.library import CartridgeFacts, TapeLibrary
from storage_node.tape.record_sampler import sample_records, unpack_pieces
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import LabelState, find_last_trailer, read_label
from storage_node.tape_unit import TapeUnit

DIGESTS_MAX: Final = 200_000
"""Objects looked at for one tape.digest: at most 4 bytes each in a control message of 1 MiB."""

DETAIL_CHARACTERS_MAX: Final = 80
"""Of a cartridge's detail: an inventory of 2048 cartridges is one control message."""

log = logging.getLogger(__name__)


class TapeControl:
    """The library of a node, with a logical unit per drive."""

    def __init__(
        self,
        library: TapeLibrary,
        access: Access,
        *,
        state_folder: Path,
        clock: Clock,
        new_uuid: Callable[[], str],
    ) -> None:
        self._library = library
        self._access = access
        self._clock = clock
        self._lock = threading.Lock()
        self.units: dict[Designator, TapeUnit] = {}
        self._drives: dict[str, tuple[int, TapeUnit, VirtualDrive]] = {}
        uuids = _drive_uuids(state_folder / "drives.json", len(library.drives), new_uuid)
        for number, drive in enumerate(library.drives):
            name = f"drive-{number}"
            unit = TapeUnit(name, designator_of(uuids[name]), drive, access)
            self._drives[name] = number, unit, drive
            self.units[unit.designator] = unit
            access.put_unit(Unit(designator=unit.designator, kind=UnitKind.TAPE))
        self._facts = {facts.tag: facts for facts in library.cartridges()}

    # --- describing ------------------------------------------------------------------------------

    def describe(self) -> tuple[tuple[DriveState, ...], tuple[CartridgeState, ...]]:
        """Return all drives and cartridges; those in drives are looked at afresh."""
        with self._lock:
            for _, unit, drive in self._drives.values():
                self._look(unit, drive)
            drives = tuple(self._drive_state(unit, d) for _, unit, d in self._drives.values())
            cartridges = tuple(_cartridge_state(facts) for _, facts in sorted(self._facts.items()))
        return drives, cartridges

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
        """Fence the drive, put the cartridge in, read label and last committed trailer; the tape is then at its end."""
        number, unit, drive = self._drive(message.drive)
        self._fence(unit, message.epoch)
        with self._lock:
            with unit.mutex:
                self._put_in(number, unit, drive, message.tag)
                reply, unit.committed_end = self._read_ends(drive)
                # Who appends next finds the tape where this reply says; who reads locates first anyway.
                unit.position = drive.space(SpaceCode.END_OF_DATA).position
            self._look(unit, drive)
            return replace(
                reply,
                request=message.request,
                drives=(self._drive_state(unit, drive),),
                cartridges=(_cartridge_state(self._facts[message.tag]),),
            )

    def digest(self, drive_name: str, start: int, end: int) -> tuple[bytes, int]:
        """Return stored CRC32C values of records, and the object to go on from."""
        _, unit, drive = self._drive(drive_name)
        stop = min(end, start + DIGESTS_MAX)
        with unit.mutex:
            return drive.stored_crcs(start, stop), stop

    def sample(self, drive_name: str, ranges: bytes) -> bytes:
        """Return the CRC32C of pieces of records, read by a head of its own: nobody's position changes."""
        pieces = unpack_pieces(ranges)
        _, unit, drive = self._drive(drive_name)
        with unit.mutex:
            if drive.cartridge is None:
                raise NotFoundError(f"drive {drive_name} is empty")
            return sample_records(drive.side_view(), pieces)

    def add(self, message: TapeAdd) -> CartridgeState:
        """Add a blank cartridge; the same one again is found."""
        with self._lock:
            if message.tag in self._library.tags():
                facts = self._facts.get(message.tag) or self._library.facts(message.tag)
                if facts.capacity_bytes != message.capacity_bytes:
                    raise RefusedError(f"there is a cartridge {message.tag} already")
            else:
                facts = self._library.add(
                    message.tag,
                    capacity_bytes=message.capacity_bytes,
                    created=f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}",
                )
            self._facts[message.tag] = facts
        return _cartridge_state(facts)

    def close(self) -> None:
        """Unload all drives; what is in their buffers becomes durable."""
        with self._lock:
            self._library.close()

    # --- inside ----------------------------------------------------------------------------------

    def _drive(self, name: str) -> tuple[int, TapeUnit, VirtualDrive]:
        try:
            return self._drives[name]
        except KeyError:
            raise NotFoundError(f"there is no drive {name} on this node") from None

    def _fence(self, unit: TapeUnit, epoch: Epoch) -> None:
        with self._access.locked() as rules:
            floor = rules.floor(unit.designator)
            if epoch < floor.epoch or (epoch == floor.epoch and floor.holder):
                raise StaleError(f"epoch {epoch} was overtaken, the drive is at {floor.epoch}")
        self._access.fence(unit.designator, epoch)

    def _put_in(self, number: int, unit: TapeUnit, drive: VirtualDrive, tag: VolumeTag) -> None:
        """Load, unloading what is there.  One that is there already stays, unless a write to it has failed."""
        there = drive.cartridge
        if there is not None and there.info.tag == tag and there.failure is None:
            return
        self._library.find(tag)  # a barcode that is not there unloads nothing
        other = self._library.drive_with(tag)
        if other is not None and other is not drive:
            raise BusyError(f"cartridge {tag} is in another drive")
        if there is not None:
            outcome = self._library.unload(drive=number)
            if not outcome.is_good:
                log.warning(
                    "cartridge was unloaded after a failed write",
                    extra={"cartridge": there.info.tag},
                )
            unit.position = 0
            self._facts[there.info.tag] = self._library.facts(there.info.tag)
        report = self._library.load(tag, drive=number)
        drive.test_unit_ready()  # takes the unit attention: whoever opens the drive next expects it
        unit.position = drive.read_position().position
        log.info("cartridge loaded", extra={"cartridge": tag, "drive": unit.name, "report": report})

    def _read_ends(self, drive: VirtualDrive) -> tuple[NodeReply, int]:
        """Look at label and end with a head of its own, so that nobody's position changes.

        Returns the reply and the object behind the last commit, before which nothing may be overwritten.
        """
        cartridge = drive.cartridge
        assert cartridge is not None
        label = read_label(drive.side_view())
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
        end = find_last_trailer(drive.side_view(), label.header)
        trailer = end.trailer
        if trailer is None:
            return facts, end.committed_end
        reply = replace(
            facts,
            trailer_sequence=trailer.sequence,
            trailer=encode_payload(trailer.directory_entry()),
            trailer_digest=hashlib.sha256(encode_payload(trailer)).digest(),
        )
        return reply, end.committed_end

    def _look(self, unit: TapeUnit, drive: VirtualDrive) -> None:
        with unit.mutex:
            if drive.cartridge is not None:
                tag = drive.cartridge.info.tag
                self._facts[tag] = self._library.facts(tag)

    def _drive_state(self, unit: TapeUnit, drive: VirtualDrive) -> DriveState:
        with self._access.locked() as rules:
            epoch = rules.floor(unit.designator).epoch
        there = drive.cartridge
        state = "empty" if there is None else "loaded" if there.failure is None else "error"
        return DriveState(
            drive=unit.name,
            designator=unit.designator,
            state=state,
            loaded=there.info.tag if there is not None else "",
            epoch=epoch,
        )


def _cartridge_state(facts: CartridgeFacts) -> CartridgeState:
    return CartridgeState(
        tag=VolumeTag(facts.tag),
        cartridge=CartridgeId(facts.volume),
        status=facts.status.value,
        detail=facts.detail[:DETAIL_CHARACTERS_MAX],
        capacity_bytes=facts.capacity_bytes,
        used_bytes=facts.used_bytes,
        end=facts.end,
        generation=facts.generation,
    )


def _drive_uuids(path: Path, count: int, new_uuid: Callable[[], str]) -> dict[str, str]:
    """Return the UUIDs of the drives, which keep them as long as the state folder lives."""
    known: dict[str, str] = {}
    if path.exists():
        document = read_json(path)
        if not all(isinstance(value, str) for value in document.values()):
            raise DamagedStateError(f"{path} holds no identifiers")
        known = document
    names = [f"drive-{number}" for number in range(count)]
    if set(names) - set(known):
        known |= {name: new_uuid() for name in names if name not in known}
        write_json(path, known)
    return known
