"""What a cartridge says about itself without its tape: capacity, barcode, switches, counters.

The virtual counterpart of the chip in a cartridge (medium auxiliary memory).  It is a small JSON file that is only
ever replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from backplane.errors import RefusedError, VolumeError
from backplane.units import KIB, MIB
from storage_node.core.tape_position import Marks
from storage_node.tape.medium import replace_file
from storage_node.tape.medium_facts import SINCE_2, MediumFacts

FORMAT_VERSION: Final = 3
"""2 added retention, hold, pool, coherency and cleanings, 3 bytes and errors; files without them are read as well."""

INFO_NAME: Final = "cartridge.json"
CAPACITY_BYTES_MIN: Final = 1 * KIB
CAPACITY_BYTES_MAX: Final = 1 << 60
RESERVE_BYTES_MAX: Final = 64 * MIB
"""Enough for the trailer of a part of 256 GiB in records of 1 MiB with tens of thousands of extents."""

CLEANINGS: Final = 50
"""What a new cleaning cartridge is good for."""

CLEANING_PREFIX: Final = "CLN"
_INFO_BYTES_MAX: Final = 64 * KIB
_TAG_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def is_volume_tag(text: str) -> bool:
    """Say whether a barcode is 1 to 32 capital letters and digits: what labels and file names can hold."""
    return 1 <= len(text) <= 32 and _TAG_CHARACTERS.issuperset(text)


def is_cleaning_tag(text: str) -> bool:
    """Say whether a barcode is that of a cleaning cartridge, which is never loaded for data."""
    return text.startswith(CLEANING_PREFIX)


def default_reserve_bytes(capacity_bytes: int) -> int:
    """Return the room that stays for a trailer behind early warning, and as much before it."""
    return min(RESERVE_BYTES_MAX, capacity_bytes // 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeInfo(MediumFacts):
    """Facts of one virtual cartridge.  `serial` is the medium's own number, not the volume UUID in its label.

    Early warning stands `early_warning_bytes` before the capacity, programmable early warning
    `programmable_early_warning_bytes` before that.  `cleanings_left` counts for cleaning cartridges.
    """

    serial: str
    capacity_bytes: int
    created: str
    early_warning_bytes: int
    programmable_early_warning_bytes: int
    cleanings_left: int = field(default=CLEANINGS, metadata=SINCE_2)

    def __post_init__(self) -> None:
        if len(self.serial) != 32 or not set(self.serial) <= set("0123456789abcdef"):
            raise VolumeError("the serial number of a cartridge has 32 hexadecimal digits")
        if not is_volume_tag(self.tag):
            raise VolumeError(f"no volume tag: {self.tag!r}")
        if not CAPACITY_BYTES_MIN <= self.capacity_bytes <= CAPACITY_BYTES_MAX:
            raise RefusedError(
                f"capacity of {self.capacity_bytes} bytes is outside "
                f"{CAPACITY_BYTES_MIN} to {CAPACITY_BYTES_MAX}"
            )
        reserves = (self.early_warning_bytes, self.programmable_early_warning_bytes)
        if min(reserves) < 0 or sum(reserves) > self.capacity_bytes:
            raise VolumeError("the early warning reserves do not fit the capacity")
        if self.cleanings_left < 0:
            raise VolumeError("a counter of the cartridge is impossible")
        MediumFacts.__post_init__(self)

    @property
    def seed_bytes(self) -> bytes:
        """The serial number as bytes."""
        return bytes.fromhex(self.serial)

    def marks(self, *, end_bytes_max: int | None = None) -> Marks:
        """Return early warning and the rest; a full file system moves the end of the medium to `end_bytes_max`."""
        end = self.capacity_bytes if end_bytes_max is None else end_bytes_max
        end = min(end, self.capacity_bytes)
        early = max(0, end - self.early_warning_bytes)
        return Marks(max(0, early - self.programmable_early_warning_bytes), early, end)

    def save(self, folder: Path) -> None:
        """Write it, durably."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        text = json.dumps(content, sort_keys=True, indent=2) + "\n"
        replace_file(folder / INFO_NAME, text.encode())


def new_cartridge_info(
    *,
    serial: str,
    tag: str,
    created: str,
    capacity_bytes: int,
    early_warning_bytes: int | None = None,
    programmable_early_warning_bytes: int | None = None,
    is_worm: bool = False,
) -> CartridgeInfo:
    """Return the facts of a new cartridge; reserves that are not given follow from the capacity."""
    reserve = default_reserve_bytes(capacity_bytes)
    early, programmable = early_warning_bytes, programmable_early_warning_bytes
    return CartridgeInfo(
        serial=serial,
        tag=tag,
        created=created,
        capacity_bytes=capacity_bytes,
        early_warning_bytes=reserve if early is None else early,
        programmable_early_warning_bytes=reserve if programmable is None else programmable,
        is_worm=is_worm,
    )


def load_cartridge_info(folder: Path) -> CartridgeInfo:
    """Read and check the facts of the cartridge in a folder; raises `VolumeError`."""
    path = folder / INFO_NAME
    try:
        with path.open("rb") as stream:
            raw = json.loads(stream.read(_INFO_BYTES_MAX))
    except (OSError, ValueError, RecursionError) as error:
        raise VolumeError(f"{path}: unreadable: {error}") from error
    version = raw.pop("format_version", None) if isinstance(raw, dict) else None
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise VolumeError(f"{path}: not format version 1 to {FORMAT_VERSION}")
    expected = {
        each.name: each.type
        for each in fields(CartridgeInfo)
        if each.metadata.get("since", 1) <= version
    }
    if raw.keys() != expected.keys():
        raise VolumeError(f"{path}: wrong fields: {sorted(raw.keys() ^ expected.keys())}")
    for name, value in raw.items():
        if type(value).__name__ != expected[name]:
            raise VolumeError(f"{path}: {name} is no {expected[name]}")
    try:
        return CartridgeInfo(**raw)
    except (VolumeError, RefusedError) as error:
        raise VolumeError(f"{path}: {error}") from error


def counted_load(info: CartridgeInfo) -> CartridgeInfo:
    """Return the facts after one more load."""
    return replace(info, load_count=info.load_count + 1)


def counted_change(info: CartridgeInfo) -> CartridgeInfo:
    """Return the facts before content may change."""
    reference = (info.volume_change_reference + 1) & 0xFFFF_FFFF
    return replace(info, volume_change_reference=reference)
