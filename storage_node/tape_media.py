"""What the node reads from a cartridge for others to decide with: metadata, attributes, and what forbids to erase it.

All of it through a head for looking (`LibraryDrive.looking`): nobody's position moves.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from backplane.errors import BackupError, MediumError, NotFoundError, VolumeError
from backplane.ids import CartridgeId, Designator, Epoch, VolumeTag
from backplane.scsi.attribute import (
    MEBIBYTE,
    Attribute,
    AttributeId,
    Coherency,
    ascii_text,
    binary,
    encode_attributes,
    long_text,
)
from backplane.scsi.sense import SenseKey
from backplane.tape_format import (
    METADATA_RECORD_BYTES_MAX,
    PartHeader,
    PartTrailer,
    decode_record,
)
from backplane.tape_format.content import EXTENT_LISTS
from backplane.units import KIB
from backplane.wire.messages import CartridgeState, DriveState
from storage_node.core.retention import EraseFacts, latest
from storage_node.core.tape_alert import Health, medium_alerts
from storage_node.tape.drive import Drive
from storage_node.tape.drive_counters import DriveCounters
from storage_node.tape.equipment import Library, LibraryDrive, LoadedCartridge
from storage_node.tape.library import CartridgeFacts
from storage_node.tape.medium_facts import POOL_CHARACTERS_MAX, MediumFacts
from storage_node.tape.modelled_drive import ModelledDrive
from storage_node.tape.volume_reader import (
    LabelState,
    TapeEnd,
    find_last_trailer,
    read_label,
    read_metadata,
)

METADATA_ANSWER_BYTES_MAX: Final = 900 * KIB
"""Of records in one answer to tape.metadata: less than a message, more than three records."""

DETAIL_CHARACTERS_MAX: Final = 80
"""Of a cartridge's detail: an inventory of 2048 cartridges is one control message."""

PARTS_READ_MAX: Final = 100_000
"""Parts whose headers are read before a cartridge is erased; with more, only the node's own record of retention and the
last trailer would count, so it takes force."""

Facts = TypeVar("Facts", bound=MediumFacts)
_LENGTH: Final = struct.Struct(">I")
VENDOR: Final = "SDV"


def metadata_records(drive: Drive, start: int) -> tuple[bytes, int]:
    """Return metadata records from an object on, each as `>I` length and bytes, and the object behind the last one.

    Ends at a filemark, at end of data, at a record that is no metadata, before a damaged one, and when the answer is
    full.  Raises `MediumError` if the first one is damaged, `NotFoundError` beyond end of data.
    """
    buffer = memoryview(bytearray(METADATA_RECORD_BYTES_MAX))
    packed, number = bytearray(), start
    if start < 0 or not drive.locate(start).is_good:
        raise NotFoundError(f"object {start} is behind end of data")
    while True:
        outcome = drive.read_record(buffer)
        sense = outcome.sense
        if sense is not None and sense.key is SenseKey.MEDIUM_ERROR:
            if packed:
                return bytes(packed), number  # Who asks for this one is told.
            raise MediumError(f"object {number} cannot be read: {sense.describe()}")
        is_longer = sense is not None and (sense.information or 0) < 0
        if outcome.data is None or is_longer:
            return bytes(packed), number
        try:
            decode_record(outcome.data)
        except VolumeError:
            return bytes(packed), number
        if len(packed) + _LENGTH.size + len(outcome.data) > METADATA_ANSWER_BYTES_MAX:
            return bytes(packed), number
        packed += _LENGTH.pack(len(outcome.data)) + outcome.data
        number += 1


def erase_facts(cartridge: LoadedCartridge, drive: Drive) -> EraseFacts:
    """Return what is known of a loaded cartridge, with the retention of every part that is on it."""
    info = cartridge.info
    moments, unknown = [info.retain_until], ""
    if not cartridge.is_appendable:
        unknown = "; ".join(cartridge.damage)
    try:
        on_tape, reason = _retention_on_tape(drive, info.tag)
    except BackupError as error:
        on_tape, reason = [], str(error)
    return EraseFacts(
        tag=info.tag,
        retain_until=tuple(moments + on_tape),
        is_held=info.is_held,
        is_worm=info.is_worm,
        is_write_protected=info.is_write_protected,
        unknown=unknown or reason,
    )


def _retention_on_tape(drive: Drive, tag: str) -> tuple[list[str], str]:
    """Return every moment that the parts of a cartridge name, and why that may not be all of them."""
    label = read_label(drive)
    if label.state in (LabelState.BLANK, LabelState.UNFINISHED):
        return [], ""
    if label.header is None or label.state is not LabelState.OURS:
        return [], label.reason
    unknown = "" if label.header.tag == tag else f"the label says barcode {label.header.tag}"
    end = find_last_trailer(drive, label.header)
    if end.unreadable:
        unknown = f"object {end.unreadable[0]} cannot be read"
    if end.trailer is None:
        return [], unknown
    moments = [end.trailer.retain_until]
    if len(end.trailer.directory) > PARTS_READ_MAX:
        unknown = f"{len(end.trailer.directory)} parts are more than are read"
    for entry in end.trailer.directory[:PARTS_READ_MAX]:
        try:
            moments.append(_header_at(drive, entry.header_object).retain_until)
        except BackupError as error:
            unknown = f"the part at object {entry.header_object}: {error.message}"
    return moments, unknown


def _header_at(drive: Drive, object_number: int) -> PartHeader:
    header, _ = read_metadata(drive, object_number, without=EXTENT_LISTS)
    if not isinstance(header, PartHeader):
        raise VolumeError("no part header")
    return header


def erase_everything(cartridge: LoadedCartridge, drive: Drive) -> bool:
    """Make a loaded cartridge blank; False if that takes a new index, which is done to one that is in no drive.

    A crash leaves it as it was, or blank.  Raises `MediumError`.
    """
    if cartridge.failure is not None or not cartridge.is_appendable:
        return False
    for outcome in (drive.rewind(), drive.allow_overwrite(0), drive.erase()):
        if not outcome.is_good:
            words = outcome.sense.describe() if outcome.sense is not None else "busy"
            raise MediumError(f"cartridge {cartridge.info.tag} cannot be erased: {words}")
    return True


def erased_info(info: Facts) -> Facts:
    """Return the facts of a cartridge that was made blank: what was on it retains nothing any more."""
    return replace(
        info,
        retain_until="",
        pool="",
        coherent_reference=0,
        coherent_sequence=0,
        coherent_object=0,
    )


def is_known(library: Library, tag: str) -> bool:
    """Say whether a library knows a cartridge that it does not have: one that a person took out of a drive."""
    with suppress(BackupError):
        library.info(tag)
        return True
    return False


def informed(info: Facts, end: TapeEnd) -> Facts:
    """Return the facts of a cartridge after its end was read: which trailer is its last, and what that retains.

    The node keeps the retention itself, so that damage to a trailer does not shorten it.
    """
    trailer: PartTrailer | None = end.trailer
    if trailer is None:
        return info
    return replace(
        info,
        retain_until=latest((info.retain_until, trailer.retain_until)),
        pool=trailer.pool[:POOL_CHARACTERS_MAX],
        coherent_reference=info.volume_change_reference,
        coherent_sequence=trailer.sequence,
        coherent_object=end.trailer_object,
    )


def after_load(info: Facts, health: Health) -> Facts:
    """Return the facts of a cartridge with what a load has counted."""
    return replace(
        info,
        bytes_written=info.bytes_written + health.bytes_written,
        bytes_read=info.bytes_read + health.bytes_read,
        last_bytes_written=health.bytes_written,
        last_bytes_read=health.bytes_read,
        read_errors=info.read_errors + health.read_errors,
        write_errors=info.write_errors + health.write_errors,
    )


def attributes_of(info: MediumFacts, facts: CartridgeFacts, *, alerts: int) -> bytes:
    """Return the attributes of a cartridge's memory as READ ATTRIBUTE does."""
    left = max(0, info.capacity_bytes - facts.used_bytes)
    found: list[Attribute] = [
        binary(AttributeId.REMAINING_CAPACITY, left // MEBIBYTE),
        binary(AttributeId.MAXIMUM_CAPACITY, info.capacity_bytes // MEBIBYTE),
        binary(AttributeId.TAPE_ALERT_FLAGS, alerts),
        binary(AttributeId.LOAD_COUNT, info.load_count),
        binary(AttributeId.VOLUME_CHANGE_REFERENCE, info.volume_change_reference, length=4),
        binary(AttributeId.BYTES_WRITTEN_IN_LIFE, info.bytes_written // MEBIBYTE),
        binary(AttributeId.BYTES_READ_IN_LIFE, info.bytes_read // MEBIBYTE),
        binary(AttributeId.BYTES_WRITTEN_IN_LAST_LOAD, info.last_bytes_written // MEBIBYTE),
        binary(AttributeId.BYTES_READ_IN_LAST_LOAD, info.last_bytes_read // MEBIBYTE),
        ascii_text(AttributeId.SERIAL_NUMBER, info.serial, length=32),
        ascii_text(AttributeId.APPLICATION_VENDOR, VENDOR, length=8),
        ascii_text(AttributeId.BARCODE, info.tag, length=32),
        long_text(AttributeId.MEDIA_POOL, info.pool, length=160),
    ]
    if info.coherent_sequence and facts.volume:
        coherency = Coherency(
            change_reference=info.coherent_reference,
            sequence=info.coherent_sequence,
            object_number=info.coherent_object,
            volume=facts.volume,
        )
        found.append(coherency.encode())
    return encode_attributes(found)


def is_out_of_space(facts: CartridgeFacts, free_bytes: int) -> bool:
    """Say whether a cartridge with room warns of its end because the disk below it has so many bytes free."""
    left = facts.capacity_bytes - facts.used_bytes
    return bool(facts.capacity_bytes) and free_bytes <= facts.warning_bytes < left


def cartridge_state(
    facts: CartridgeFacts, places: Mapping[str, str], *, free_bytes: int
) -> CartridgeState:
    """Describe a cartridge; `places` has the element of each barcode, `free_bytes` are those of the disk below."""
    return CartridgeState(
        tag=VolumeTag(facts.tag),
        cartridge=CartridgeId(facts.volume),
        status=facts.status.value,
        detail=facts.detail[:DETAIL_CHARACTERS_MAX],
        capacity_bytes=facts.capacity_bytes,
        used_bytes=facts.used_bytes,
        end=facts.end,
        generation=facts.generation,
        element=places.get(facts.tag, ""),
        store=facts.store,
        retain_until=facts.retain_until,
        is_held=facts.is_held,
        is_worm=facts.is_worm,
        is_write_protected=facts.is_write_protected,
        record_bytes=facts.record_bytes,
        loads=facts.load_count,
        alerts=alerts_of(facts),
        read_errors=facts.read_errors,
        write_errors=facts.write_errors,
        is_out_of_space=is_out_of_space(facts, free_bytes),
    )


def drive_state(
    name: str,
    drive: LibraryDrive,
    *,
    designator: Designator,
    epoch: Epoch,
    serial: str,
    counters: DriveCounters,
    health: Health,
) -> DriveState:
    """Describe a drive; `counters` are those of its life, `health` is what this load has counted."""
    there = drive.cartridge
    state = "empty" if there is None else "loaded" if there.failure is None else "error"
    return DriveState(
        drive=name,
        designator=designator,
        state=state,
        loaded=there.info.tag if there is not None else "",
        epoch=epoch,
        product=drive.product,
        serial=serial,
        alerts=counters.alerts | health.alerts,
        loads=counters.loads,
        needs_cleaning=counters.needs_cleaning,
        read_errors=counters.read_errors + health.read_errors,
        write_errors=counters.write_errors + health.write_errors,
        usage=(drive.usage,) if isinstance(drive, ModelledDrive) else (),
    )


def alerts_of(facts: CartridgeFacts, info: MediumFacts | None = None) -> int:
    """Return the TapeAlert flags of a medium; `info` may have counted more than the facts."""
    counted = info if info is not None else facts
    return medium_alerts(loads=facts.load_count, errors=counted.read_errors + counted.write_errors)


def committed_end(end: TapeEnd) -> int:
    """Return where overwriting may begin; where a trailer was damaged, what it committed is not known."""
    return end.end_of_data if end.unreadable else end.committed_end


def protected_end(drive: LibraryDrive) -> int:
    """Look up how far what is loaded is committed; the end of data if it is at it, or if nobody knows."""
    cartridge = drive.cartridge
    if cartridge is None:
        return 0
    position = drive.read_position()
    if position.is_good and position.position == cartridge.object_count:
        return cartridge.object_count
    label = drive.label()
    if label.state in (LabelState.BLANK, LabelState.UNFINISHED):
        return 0
    if label.state is LabelState.FOREIGN or label.header is None:
        return cartridge.object_count
    return committed_end(drive.last_trailer(label.header))
