"""What a node keeps of a real cartridge that cannot be had from its tape, and what it saw there last.

    STATE_FOLDER/media/LTO001L8.json    one per barcode, replaced as a whole

Who it is, what is on it and how long that is retained, is said by the tape itself: label and trailers.  Here is what
has no place there (a retention or a hold that was set by a person, counters, errors), and a picture of the tape from
the last time that it was in a drive: for inventories, which load nothing.  The picture never permits anything: before a
cartridge is written or erased, the tape is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, VolumeError
from backplane.units import KIB
from storage_node.core.media_id import medium_of
from storage_node.tape.cartridge_info import is_volume_tag
from storage_node.tape.library import CartridgeFacts, CartridgeStatus
from storage_node.tape.medium import replace_file
from storage_node.tape.medium_facts import MediumFacts

FORMAT_VERSION: Final = 1
NOT_READ: Final = "it was never read here: ctl tape scan"
_FILE_BYTES_MAX: Final = 64 * KIB
_HINT: Final = (
    "what it retains by hand is in it: restore the file, or delete it and run ctl tape scan"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediumRecord(MediumFacts):
    """One cartridge.  `status` "" means that it was never read; `volume` and `store` are what its label said.

    `used_bytes` are those of the records, which are all that can be counted.
    """

    status: str = ""
    detail: str = ""
    volume: str = ""
    store: str = ""
    end: int = 0
    used_bytes: int = 0


class MediumRecords:
    """The records of a node.  Raises `VolumeError` for one that cannot be understood."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._known: dict[str, MediumRecord] = {}

    def get(self, tag: str) -> MediumRecord | None:
        """Return what is known of a barcode, None if it was never here."""
        if tag not in self._known and is_volume_tag(tag):
            found = _load(self.folder / f"{tag}.json", tag)
            if found is not None:
                self._known[tag] = found
        return self._known.get(tag)

    def save(self, record: MediumRecord) -> None:
        """Replace one, durably; raises `VolumeError`."""
        if self._known.get(record.tag) == record:
            return
        document = {"format_version": FORMAT_VERSION, **asdict(record)}
        text = json.dumps(document, sort_keys=True, indent=2) + "\n"
        path = self.folder / f"{record.tag}.json"
        try:
            replace_file(path, text.encode())
        except OSError as error:
            raise VolumeError(f"{path} cannot be written: {error.strerror}") from error
        self._known[record.tag] = record


def new_record(tag: str) -> MediumRecord:
    """Return the record of a cartridge that was never here: what its barcode says."""
    medium = medium_of(tag)
    return MediumRecord(tag=tag, capacity_bytes=medium.capacity_bytes, is_worm=medium.is_worm)


def counted_load(record: MediumRecord) -> MediumRecord:
    """Return it after one more load."""
    return replace(record, load_count=record.load_count + 1)


def counted_change(record: MediumRecord) -> MediumRecord:
    """Return it before content may change."""
    reference = (record.volume_change_reference + 1) & 0xFFFF_FFFF
    return replace(record, volume_change_reference=reference)


def facts_of(record: MediumRecord) -> CartridgeFacts:
    """Return what an inventory shows of a cartridge that is in no drive."""
    status = CartridgeStatus(record.status) if record.status else CartridgeStatus.ERROR
    return CartridgeFacts(
        tag=record.tag,
        status=status,
        detail=record.detail if record.status else NOT_READ,
        serial=record.serial,
        volume=record.volume,
        capacity_bytes=record.capacity_bytes,
        used_bytes=record.used_bytes,
        record_bytes=record.used_bytes,
        end=record.end,
        is_write_protected=record.is_write_protected,
        load_count=record.load_count,
        volume_change_reference=record.volume_change_reference,
        store=record.store,
        is_worm=record.is_worm,
        retain_until=record.retain_until,
        is_held=record.is_held,
        read_errors=record.read_errors,
        write_errors=record.write_errors,
    )


def _load(path: Path, tag: str) -> MediumRecord | None:
    try:
        with path.open("rb") as stream:
            raw = json.loads(stream.read(_FILE_BYTES_MAX))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise VolumeError(f"{path}: unreadable: {error}", hint=_HINT) from error
    if not isinstance(raw, dict) or raw.pop("format_version", None) != FORMAT_VERSION:
        raise VolumeError(f"{path}: not format version {FORMAT_VERSION}", hint=_HINT)
    expected = {each.name: each.type for each in fields(MediumRecord)}
    if raw.keys() != expected.keys():
        wrong = sorted(raw.keys() ^ expected.keys())
        raise VolumeError(f"{path}: wrong fields: {wrong}", hint=_HINT)
    for name, value in raw.items():
        if type(value).__name__ != expected[name]:
            raise VolumeError(f"{path}: {name} is no {expected[name]}", hint=_HINT)
    if raw["tag"] != tag:
        raise VolumeError(f"{path}: it is that of {raw['tag'][:40]!r}", hint=_HINT)
    try:
        return MediumRecord(**raw)
    except BackupError as error:
        raise VolumeError(f"{path}: {error.message}", hint=_HINT) from error
