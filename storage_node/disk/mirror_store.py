"""What a node knows about the legs of a mirror: a list of them, and for each a mapped file.

    FOLDER/legs.json   which legs there are, and where their devices are; replaced atomically
    FOLDER/NAME.leg:

    0      identity: "SBLEG" and a version, size of the device, bytes per granule, boot id of the kernel, and the
           CRC32C of these
    64     state (1 byte), closed (1 byte), length of the reason (2 bytes), reason
    4092   CRC32C of the whole file, counted with zeros in its own place; good only while "closed" is set
    4096   256 slots of 16 bytes: (start, end) of writes under way, one per region lock; empty if end <= start
    8192   one bit per granule

A store into a mapped page outlives the process at once and needs no system call, so state, slots and bits
can be set *before* the write that they tell of.  It does not outlive the machine: under another boot id only a file
that was closed counts, and its CRC32C must be right.  Opening it makes "not closed" durable before the first write.

All of the file is allocated when it is made, because a store into a hole of a full file system kills the process.
It lies with the primary and not with the leg: a leg whose disk dies must not take the process with it.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Final

from backplane.crc import crc32c
from backplane.errors import UsageError
from storage_node.core.bitmap import Bitmap, bytes_for
from storage_node.core.mirror import GRANULE_BYTES, FoundLeg, LegState, granules
from storage_node.disk.region_locks import REGIONS
from storage_node.state_file import (
    DamagedStateError,
    StateError,
    read_json,
    sync_folder,
    write_json,
)

MAGIC: Final = b"SBLEG\0\0\x01"
REASON_BYTES_MAX: Final = 1024

VERSION: Final = 1

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_IDENTITY: Final = struct.Struct("<8sQI36s")
_CRC: Final = struct.Struct("<I")
_SLOT: Final = struct.Struct("<QQ")
_STATE_AT: Final = 64
_CLOSED_AT: Final = 65
_REASON_AT: Final = 66
_CLOSING_CRC_AT: Final = 4092
_SLOTS_AT: Final = 4096
_BITS_AT: Final = _SLOTS_AT + REGIONS * _SLOT.size
_NO_SLOTS: Final = bytes(REGIONS * _SLOT.size)

_CODES: Final = {
    LegState.RESYNCHRONISING: 1,
    LegState.IN_SYNC: 2,
    LegState.SPLIT: 3,
    LegState.FAILED: 4,
}
_STATES: Final = {code: state for state, code in _CODES.items()}

assert _IDENTITY.size + _CRC.size <= _STATE_AT
assert _BITS_AT == 8192

log = logging.getLogger(__name__)


class LegStore:
    """The open file of one leg.  Each slot is its lock holder's; everything else is the mirror's to lock."""

    def __init__(self, path: Path, mapped: mmap.mmap, *, size_bytes: int) -> None:
        self.path: Final = path
        self._map = mapped
        self._all = memoryview(mapped)
        self._bits = self._all[_BITS_AT:]
        self.changed: Final = Bitmap.over(self._bits, granules(size_bytes))

    @classmethod
    def create(cls, path: Path, *, size_bytes: int, boot_id: str) -> LegStore:
        """Make a file with all bits set, replacing any other; durable, with its name."""
        temporary = path.with_name(f".{path.name}.new")
        length = _BITS_AT + bytes_for(granules(size_bytes))
        try:
            descriptor = os.open(
                temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            try:
                os.posix_fallocate(descriptor, 0, length)
                store = cls(path, mmap.mmap(descriptor, length), size_bytes=size_bytes)
            finally:
                os.close(descriptor)
            store.changed.set_range(0, store.changed.bits)
            store.record(LegState.RESYNCHRONISING, "")
            store.begin(size_bytes=size_bytes, boot_id=boot_id)
            temporary.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise StateError(f"cannot make {path}: {error.strerror}") from error
        return store

    @classmethod
    def open(cls, path: Path, *, size_bytes: int, boot_id: str) -> tuple[LegStore, FoundLeg | None]:
        """Return the file and what it says; a new one and None if it is missing or cannot be believed.

        It stays as it was found: `begin` comes when bits and state are what they have to be from now on.
        """
        mapped = _map(path, _BITS_AT + bytes_for(granules(size_bytes)))
        if mapped is not None:
            store = cls(path, mapped, size_bytes=size_bytes)
            found = store._found(size_bytes)
            if found is not None:
                return store, found
            store.abandon()
        return cls.create(path, size_bytes=size_bytes, boot_id=boot_id), None

    def _found(self, size_bytes: int) -> FoundLeg | None:
        magic, size, granule, boot_id = _IDENTITY.unpack_from(self._map, 0)
        [crc] = _CRC.unpack_from(self._map, _IDENTITY.size)
        if (magic, size, granule) != (MAGIC, size_bytes, GRANULE_BYTES):
            return None
        if crc != crc32c(self._map[: _IDENTITY.size]):
            return None
        state = _STATES.get(self._map[_STATE_AT])
        was_closed = self._map[_CLOSED_AT] != 0
        [closing] = _CRC.unpack_from(self._map, _CLOSING_CRC_AT)
        if state is None or (was_closed and closing != self._closing_crc()):
            return None
        slots = _SLOT.iter_unpack(self._map[_SLOTS_AT:_BITS_AT])
        length = min(REASON_BYTES_MAX, int.from_bytes(self._map[_REASON_AT : _REASON_AT + 2]))
        reason = self._map[_REASON_AT + 2 : _REASON_AT + 2 + length]
        return FoundLeg(
            state=state,
            reason=reason.decode(errors="replace"),
            boot_id=boot_id.rstrip(b"\0").decode("ascii", errors="replace"),
            was_closed=was_closed,
            in_flight=tuple((start, end) for start, end in slots if start < end),
        )

    def begin(self, *, size_bytes: int, boot_id: str) -> None:
        """Say durably that from now on only this kernel's page cache knows the truth.

        Comes after the bits of an earlier process were put right, and before the first write.
        """
        identity = _IDENTITY.pack(MAGIC, size_bytes, GRANULE_BYTES, boot_id.encode("ascii"))
        # A crash between these lines leaves "not closed" with the old boot id or a wrong checksum: all is copied anew.
        self._map[_CLOSED_AT] = 0
        self._map[: _IDENTITY.size] = identity
        _CRC.pack_into(self._map, _IDENTITY.size, crc32c(identity))
        self._sync()

    def clear_slots(self) -> None:
        """Forget the writes of an earlier process; their bits are set."""
        self._map[_SLOTS_AT:_BITS_AT] = _NO_SLOTS

    def enter(self, slot: int, start_byte: int, end_byte: int) -> None:
        """A write is about to reach one device before the other."""
        _SLOT.pack_into(self._map, _SLOTS_AT + slot * _SLOT.size, start_byte, end_byte)

    def leave(self, slot: int) -> None:
        """It has reached both, or its bits are set."""
        _SLOT.pack_into(self._map, _SLOTS_AT + slot * _SLOT.size, 0, 0)

    @property
    def is_in_flight(self) -> bool:
        """Whether a write is under way."""
        return self._map[_SLOTS_AT:_BITS_AT] != _NO_SLOTS

    def record(self, state: LegState, reason: str) -> None:
        """Keep state and reason.  The state is one byte, and so never half of one."""
        text = reason.encode()[:REASON_BYTES_MAX]
        self._map[_REASON_AT : _REASON_AT + 2 + len(text)] = len(text).to_bytes(2) + text
        self._map[_STATE_AT] = _CODES[state]

    def close(self) -> None:
        """Say durably that the file is the truth under any kernel: both devices were flushed, no write is under way."""
        assert not self.is_in_flight
        self._map[_CLOSED_AT] = 1
        _CRC.pack_into(self._map, _CLOSING_CRC_AT, self._closing_crc())
        try:
            self._sync()
        except StateError as error:
            log.warning("%s; the leg will be copied anew", error.message)
        self.abandon()

    def abandon(self) -> None:
        """Unmap the file as it is; twice is once."""
        self._bits.release()
        self._all.release()
        self._map.close()

    def remove(self) -> None:
        """Delete the file."""
        self.abandon()
        self.path.unlink(missing_ok=True)

    def _closing_crc(self) -> int:
        before = crc32c(self._all[:_CLOSING_CRC_AT])
        return crc32c(self._all[_SLOTS_AT:], start=crc32c(bytes(_CRC.size), start=before))

    def _sync(self) -> None:
        try:
            self._map.flush()
        except OSError as error:
            raise StateError(f"cannot write {self.path}: {error.strerror}") from error


def _map(path: Path, length: int) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot open {path}: {error.strerror}") from error
    try:
        if os.fstat(descriptor).st_size != length:
            return None
        os.posix_fallocate(descriptor, 0, length)
        return mmap.mmap(descriptor, length)
    except OSError as error:
        raise StateError(f"cannot map {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def check_name(name: str) -> None:
    """Raise for what cannot be the name of a leg, and so of its file."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a leg", hint="up to 32 small letters, digits and dashes"
        )


def read_legs(folder: Path) -> dict[str, str]:
    """Return the path of each leg by its name."""
    path = folder / "legs.json"
    if not path.exists():
        return {}
    document = read_json(path)
    legs = document.get("legs")
    if document.get("version") != VERSION or not isinstance(legs, dict):
        raise DamagedStateError(f"{path} is no list of legs")
    for name, leg in legs.items():
        if not _NAME.fullmatch(name) or not isinstance(leg, str):
            raise DamagedStateError(f"{path} names a leg {name!r} that cannot be")
    return legs


def write_legs(folder: Path, legs: dict[str, str]) -> None:
    """Replace the list durably."""
    write_json(folder / "legs.json", {"version": VERSION, "legs": legs})
