"""Applying the log of XFS in memory: what recovery would write, laid over the volume instead.

Committed transactions are applied in order, twice over: first those are counted that *cancel* a buffer (its blocks were
freed and may hold a file's data by now), then everything is applied but what was cancelled later.  A block or an inode
that says it was written after the transaction is newer on the volume and stays as it is.

Within a transaction buffers and new inodes come first, then inodes.  Not applied: what is logged of buffers of inodes
(only the list of deleted ones) and of quotas, for a map does not show them.

At the end some intents may be left.  Who maps extents of a file is told to the reader (`maps`), who shares extents as
well; space that was to be freed stays in use, which is safe.  Files whose attributes or content were being exchanged
are named as doubtful.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final, NamedTuple

from backplane.units import MIB
from storage_node.mapping import xfs_log_items as items
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError
from storage_node.mapping.xfs_blocks import BASIC_BYTES, Overlay
from storage_node.mapping.xfs_inode import BIGTIME_FLAG, CORE_BYTES, CORE_BYTES_OLD, NREXT64_FLAG
from storage_node.mapping.xfs_log import Log, find_range
from storage_node.mapping.xfs_superblock import (
    BASIC_SHIFT,
    LOG_INCOMPATIBLE_KNOWN,
    Geometry,
)
from storage_node.mapping.xfs_transactions import Item, transactions

OVERLAY_BYTES_MAX: Final = 256 * MIB
"""Blocks that the log has changed.  Linux lets a log grow to 2 GiB, but most of it says the same blocks again."""
INTENTS_MAX: Final = 100_000
CLUSTERS_KEPT: Final = 64

_PLACES: Final = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC"), (24, 32)),
    b"BMA3": (32, 40),
    b"XAGF": (208, 64),
    b"XAGI": (320, 296),
    b"XAFL": (24, 8),
    b"XSLM": (48, 16),
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), (16, 24)),
}
"""Where a block of this magic says when it was written, and its UUID."""
_DA_MAGICS: Final = (b"\x3d\xf1", b"\x3d\xff", b"\x3b\xee", b"\x3e\xbe")
_DA_PLACES: Final = (24, 32)
_NO_PLACE: Final = (0, (1 << 64) - 1)

_CORE_OLD: Final = struct.Struct("<HHBBHIIIHH6sHIIIIIIQQIIHBBIHHI")
"""The core as it is logged, before the part that version 3 has more."""
_CORE_OLD_DISK: Final = struct.Struct(">HHBBHIIIHH6sHIIIIIIQQIIHBBIHHI")
_CORE_MORE: Final = struct.Struct("<QQQI12sIIQ16s")
"""From 104: changes, place, flags2, hint for copies on write, unused, birth, number, UUID."""
_CORE_MORE_DISK: Final = struct.Struct(">QQQI12sIIQ16s")
_BIG_COUNTS: Final = struct.Struct("<Q44xI")


class Replayed(NamedTuple):
    """What a log leaves behind."""

    overlay: Overlay
    state: str
    maps: dict[int, list[items.MapChange]]
    """By inode: extents that are still to be mapped, in order."""
    shares: list[items.ShareChange]
    owners: frozenset[int]
    """Inodes whose trees say that they belong to another."""
    doubts: dict[int, str]
    """Inodes that cannot be told right, and why."""
    reason: str = ""
    """Why the log could not be applied."""


def replay(source: Source, geometry: Geometry) -> Replayed:
    """Find what the log has to say, and apply it.

    A log that is damaged leaves the volume as it lies there, `dirty`; one that is not for us is refused.
    """
    try:
        return _Replay(source, geometry).run()
    except DamagedError as error:
        return Replayed(Overlay(), "dirty", {}, [], frozenset(), {}, error.reason)


class _Replay:
    """One run over a log."""

    def __init__(self, source: Source, geometry: Geometry) -> None:
        self._source = source
        self._geometry = geometry
        self._overlay = Overlay()
        self._cancelled: dict[int, Counter[int]] = {}
        """By first block: how often buffers of so many blocks are still going to be cancelled."""
        self._written: dict[int, int] = {}
        """By first block: when the volume's version of a buffer was written."""
        self._clusters: dict[tuple[int, int], bytes] = {}
        self._intents: dict[int, Item] = {}
        self._owners: set[int] = set()
        self._changes = 0

    def run(self) -> Replayed:
        log = Log(self._source, self._geometry)
        found = find_range(log)
        if found.is_clean:
            return Replayed(Overlay(), "clean", {}, [], frozenset(), {})
        unknown = self._geometry.log_incompatible & ~LOG_INCOMPATIBLE_KNOWN
        if unknown:
            raise UnsupportedError(f"unknown features of the log of XFS ({unknown:#x})")
        for _, changes in transactions(log, found, is_data_wanted=False):
            self._collect(changes)
        for place, changes in transactions(log, found, is_data_wanted=True):
            self._apply(changes, place)
        return self._finish()

    def _collect(self, changes: list[Item]) -> None:
        for item in changes:
            if item.type == items.BUFFER:
                buffer = items.buffer_item(item, is_data_wanted=False)
                if buffer.flags & items.CANCEL:
                    counts = self._cancelled.setdefault(buffer.block, Counter())
                    counts[buffer.block_count] += 1

    def _apply(self, changes: list[Item], place: int) -> None:
        """Apply a transaction: what others rely on comes first, what takes things away last."""
        later: list[items.BufferItem] = []
        middle: list[Item] = []
        for item in changes:
            if item.type == items.BUFFER:
                buffer = items.buffer_item(item)
                if buffer.flags & items.CANCEL:
                    later.append(buffer)
                elif not buffer.flags & (items.INODE_BUFFER | items.QUOTA_BUFFERS):
                    self._apply_buffer(buffer, place)
            elif item.type == items.CREATE:
                self._create(items.create_item(item))
            else:
                middle.append(item)
        for item in middle:
            self._apply_other(item, place)
        for buffer in later:
            self._cancelled.setdefault(buffer.block, Counter())[buffer.block_count] -= 1

    def _apply_other(self, item: Item, place: int) -> None:
        if item.type == items.INODE:
            self._apply_inode(items.inode_item(item), place)
        elif item.type in items.INTENTS:
            self._changes += 1
            self._intents[items.intent_number(item)] = item
            if len(self._intents) > INTENTS_MAX:
                raise DamagedError(f"more than {INTENTS_MAX} intents in the log")
        elif item.type in items.DONES:
            self._intents.pop(items.intent_number(item), None)
        elif item.type not in items.QUOTA:
            raise DamagedError(f"an item of kind {item.type:#x} in the log")

    # --- buffers -----------------------------------------------------------------------------------

    def _is_cancelled(self, block: int, count: int) -> bool:
        counts = self._cancelled.get(block)
        return counts is not None and counts[count] > 0

    def _apply_buffer(self, buffer: items.BufferItem, place: int) -> None:
        if self._is_cancelled(buffer.block, buffer.block_count):
            return
        self._changes += buffer.block > 0
        if self._written.get(buffer.block, -1) >= place:
            return
        first = buffer.block << BASIC_SHIFT
        older = self._read(first, buffer.block_count << BASIC_SHIFT)
        if self._geometry.has_checksums and not self._overlay.covers(first, BASIC_BYTES):
            written = self._when_written(older)
            self._written[buffer.block] = written
            if written >= place:
                return
        newer = bytearray(older)
        touched: set[int] = set()
        for at, data in buffer.pieces:
            newer[at : at + len(data)] = data
            touched.update(range(at >> BASIC_SHIFT, (at + len(data) - 1 >> BASIC_SHIFT) + 1))
        for number in touched:
            at = number << BASIC_SHIFT
            self._put(first + at, bytes(newer[at : at + BASIC_BYTES]))

    def _when_written(self, data: bytes) -> int:
        """Return when a block of the volume was written: after the transaction of this place; -1 if it does not say."""
        places = _PLACES.get(data[:4])
        if data[:4] == b"XFSB":
            has_old_uuid = self._geometry.meta_uuid != self._geometry.uuid
            places = (240, 248 if has_old_uuid else 32)
        elif places is None and data[8:10] in _DA_MAGICS:
            places = _DA_PLACES
        if places is None:
            return -1
        at, uuid_at = places
        written = int.from_bytes(data[at : at + 8], "big")
        if data[uuid_at : uuid_at + 16] != self._geometry.meta_uuid or written in _NO_PLACE:
            return -1
        return written

    # --- inodes ------------------------------------------------------------------------------------

    def _create(self, made: items.CreateItem) -> None:
        """Make inodes that nobody uses yet, where there were none."""
        geometry = self._geometry
        per_block = 1 << geometry.inodes_shift
        is_right = (
            made.inode_bytes == geometry.inode_bytes
            and 0 < made.inode_count == made.block_count * per_block <= max(64, per_block)
            and made.block + made.block_count <= geometry.group_blocks
        )
        if not is_right:
            raise DamagedError(
                f"{made.inode_count} new inodes in the log, in {made.block_count} blocks"
            )
        self._changes += 1
        first = geometry.group_byte(made.group) + (made.block << geometry.block_shift)
        size = made.block_count << geometry.block_shift
        for byte in range(first, first + size, geometry.block_bytes):
            if any(count > 0 for count in self._cancelled.get(byte >> BASIC_SHIFT, {}).values()):
                return
        number = made.group << geometry.group_shift + geometry.inodes_shift
        number |= made.block << geometry.inodes_shift
        data = b"".join(self._new_inode(number + at, made) for at in range(made.inode_count))
        self._put(first, data)

    def _new_inode(self, number: int, made: items.CreateItem) -> bytes:
        raw = bytearray(made.inode_bytes)
        raw[:2] = b"IN"
        raw[4] = 3 if self._geometry.has_checksums else 2
        raw[92:96] = made.generation.to_bytes(4, "big")
        if self._geometry.has_checksums:
            raw[152:160] = number.to_bytes(8, "big")
            raw[160:176] = self._geometry.meta_uuid
        return bytes(raw)

    def _apply_inode(self, item: items.InodeItem, place: int) -> None:
        if self._is_cancelled(item.cluster_block, item.cluster_blocks):
            return
        geometry = self._geometry
        size = geometry.inode_bytes
        end = (item.cluster_block + item.cluster_blocks) << BASIC_SHIFT
        if item.byte + size > end or item.byte != geometry.inode_byte(item.number):
            raise DamagedError(f"inode {item.number} in the log, at byte {item.byte}")
        self._changes += 1
        if item.fields & items.OWNERS:
            self._owners.add(item.number)
        older = self._read_inode(item)
        if older[:2] != b"IN" or item.core[:2] != b"NI":
            raise DamagedError(f"inode {item.number} in the log is none on the volume")
        if not self._overlay.covers(item.byte, size) and self._is_newer(older, item.core, place):
            return
        self._put_unaligned(item.byte, self._changed_inode(older, item, place))

    def _is_newer(self, older: bytes, core: bytes, place: int) -> bool:
        """Say whether the volume's inode was written after the log's."""
        if older[4] >= 3:
            written = int.from_bytes(older[112:120], "big")
            return written not in _NO_PLACE and written > place
        # Version 2 counts how often it was written, and begins anew at the end of its 16 bits.
        count = int.from_bytes(older[30:32], "big")
        logged = int.from_bytes(core[30:32], "little")
        return logged < count and not (count == 0xFFFF and logged < 0x7FFF)

    def _changed_inode(self, older: bytes, item: items.InodeItem, place: int) -> bytes:
        core = _core_as_stored(item.core, place)
        newer = bytearray(core + older[len(core) :])
        newer[96:100] = older[96:100]
        start = CORE_BYTES if newer[4] == 3 else CORE_BYTES_OLD
        attribute = start + newer[82] * 8 if newer[82] else len(newer)
        if attribute > len(newer):
            raise DamagedError(f"inode {item.number} in the log has attributes at {attribute}")
        if item.fields & items.DEVICE:
            newer[start : start + 4] = item.device.to_bytes(4, "big")
        is_root = bool(item.fields & items.DATA_ROOT)
        self._put_fork(newer, start, attribute, item.data, is_root=is_root)
        is_root = bool(item.fields & items.ATTRIBUTE_ROOT)
        self._put_fork(newer, attribute, len(newer), item.attribute, is_root=is_root)
        return bytes(newer)

    def _put_fork(
        self, newer: bytearray, start: int, end: int, fork: bytes, *, is_root: bool
    ) -> None:
        if is_root:
            fork = self._packed_root(fork, end - start)
        if len(fork) > end - start:
            raise DamagedError(f"a fork of {len(fork)} bytes in the log, for {end - start}")
        newer[start : start + len(fork)] = fork

    def _packed_root(self, block: bytes, room: int) -> bytes:
        """Return the root of a tree as it is in an inode; the log has it as a block."""
        head = 72 if self._geometry.has_checksums else 24
        if len(block) < head + 16 or room < 20:
            raise DamagedError("the root of a tree in the log that is not whole")
        level, count = struct.unpack_from(">HH", block, 4)
        most = (room - 4) // 16
        pointers = head + (len(block) - head) // 16 * 8
        if not 0 < count <= min(most, (len(block) - head) // 16):
            raise DamagedError(f"the root of a tree in the log with {count} entries")
        packed = bytearray(4 + most * 16)
        struct.pack_into(">HH", packed, 0, level, count)
        packed[4 : 4 + count * 8] = block[head : head + count * 8]
        at = 4 + most * 8
        packed[at : at + count * 8] = block[pointers : pointers + count * 8]
        return bytes(packed)

    # --- bytes -------------------------------------------------------------------------------------

    def _read(self, byte: int, count: int) -> bytes:
        known = self._overlay.whole(byte, count)
        if known is not None:
            return known
        return self._overlay.patch(byte, self._source.read(byte, count))

    def _read_inode(self, item: items.InodeItem) -> bytes:
        """Read an inode; its neighbours are likely to be wanted next."""
        key = (item.cluster_block, item.cluster_blocks)
        first = item.cluster_block << BASIC_SHIFT
        cluster = self._clusters.get(key)
        if cluster is None:
            cluster = self._source.read(first, item.cluster_blocks << BASIC_SHIFT)
            if len(self._clusters) >= CLUSTERS_KEPT:
                del self._clusters[next(iter(self._clusters))]
            self._clusters[key] = cluster
        at = item.byte - first
        return self._overlay.patch(item.byte, cluster[at : at + self._geometry.inode_bytes])

    def _put(self, byte: int, data: bytes) -> None:
        if byte + len(data) > self._source.size_bytes:
            raise DamagedError(f"the log changes byte {byte}, which the volume does not have")
        self._overlay.put(byte, data)
        if len(self._overlay) > OVERLAY_BYTES_MAX >> BASIC_SHIFT:
            raise DamagedError(f"a log that changes more than {OVERLAY_BYTES_MAX} bytes")

    def _put_unaligned(self, byte: int, data: bytes) -> None:
        """Put bytes that are not whole basic blocks: small inodes share one."""
        first = byte & ~(BASIC_BYTES - 1)
        count = -(-(byte + len(data) - first) // BASIC_BYTES) * BASIC_BYTES
        if count == len(data):
            self._put(byte, data)
            return
        around = bytearray(self._read(first, count))
        around[byte - first : byte - first + len(data)] = data
        self._put(first, bytes(around))

    # --- the end -----------------------------------------------------------------------------------

    def _finish(self) -> Replayed:
        maps: dict[int, list[items.MapChange]] = {}
        shares: list[items.ShareChange] = []
        doubts: dict[int, str] = {}
        for item in self._intents.values():
            if item.type == items.MAP_INTENT:
                for change in items.map_changes(item):
                    maps.setdefault(change.inode, []).append(change)
            elif item.type == items.SHARE_INTENT:
                more = (c for c in items.share_changes(item) if c.flags & 0xFF == items.SHARE_MORE)
                shares += more
            elif item.type in (items.ATTRIBUTE_INTENT, items.EXCHANGE_INTENT):
                for number in items.inodes_of_intent(item):
                    doubts[number] = "the log leaves a change of it unfinished"
        # A frozen file system logs its superblock and nothing else, on purpose.
        state = "replayed" if self._changes else "clean"
        return Replayed(self._overlay, state, maps, shares, frozenset(self._owners), doubts)


def _core_as_stored(core: bytes, place: int) -> bytes:
    """Return the core of an inode as it is on the volume: the log has it in the byte order of a machine."""
    if len(core) < _CORE_OLD.size:
        raise DamagedError(f"the core of an inode in the log, of {len(core)} bytes")
    is_new = core[4] == 3
    if is_new and len(core) < CORE_BYTES:
        raise DamagedError(f"the core of an inode in the log, of {len(core)} bytes")
    fields = list(_CORE_OLD.unpack_from(core))
    flags2 = int.from_bytes(core[120:128], "little") if is_new else 0
    stored = bytearray(_CORE_OLD_DISK.pack(*fields))
    stored[6:8] = bytes(2)
    if not is_new:
        stored[30:32] = bytes(2)
        return bytes(stored)
    if flags2 & BIGTIME_FLAG:
        for at in (32, 40, 48):
            stored[at : at + 8] = core[at : at + 8][::-1]
    if flags2 & NREXT64_FLAG:
        count, attributes = _BIG_COUNTS.unpack_from(core, 24)
        stored[24:32] = count.to_bytes(8, "big")
        stored[76:82] = attributes.to_bytes(4, "big") + bytes(2)
    more = list(_CORE_MORE.unpack_from(core, 104))
    more[1] = place
    tail = bytearray(_CORE_MORE_DISK.pack(*more))
    if flags2 & BIGTIME_FLAG:
        tail[40:48] = core[144:152][::-1]
    return bytes(stored) + bytes(8) + bytes(tail)
