"""Transactions of the log of XFS: from records to the changes that were committed.

A record holds *operations*: a transaction's number, flags, and a *region*, some bytes.  Regions may go on in the next
record.  A transaction starts, names itself in a header, brings items of one or several regions each, and is committed;
what was never committed never happened.  The first region of an item says what it is and how many regions follow.

    start | header | item: 3 regions | item: 2 regions | ... | commit

Headers of operations are big-endian; regions are in the byte order of the machine that wrote them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from backplane.units import MIB
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_log import OPERATION_BYTES, UNMOUNT_FLAG, Log, LogRange

REGIONS_PER_ITEM_MAX: Final = 257
"""A block of 64 KiB has 512 pieces of 128 bytes: every second one changed, and the item's own region."""
TRANSACTIONS_MAX: Final = 4096
"""Transactions that have started and not ended."""
OPEN_BYTES_MAX: Final = 192 * MIB
"""Regions of transactions that have not ended.  Linux commits when it has 64 MiB."""
REGION_OVERHEAD_BYTES: Final = 64

START: Final = 0x01
COMMIT: Final = 0x02
CONTINUE: Final = 0x04
WAS_CONTINUED: Final = 0x08
END: Final = 0x10

_CLIENTS: Final = (0x69, 0xAA)
"""A transaction, and the log itself."""
_OPERATION: Final = struct.Struct(">IIBBxx")
_HEADER_MAGIC: Final = b"NART"
_HEADER_BYTES: Final = 16
_ITEM: Final = struct.Struct("<HH")
"""Type, regions."""


class Item:
    """A change: its regions, or only the first if the others are not wanted."""

    __slots__ = ("count", "regions", "type")

    def __init__(self, first: bytes) -> None:
        if len(first) < _ITEM.size:
            raise DamagedError(f"an item of the log in {len(first)} bytes")
        self.type: int
        self.count: int
        self.type, self.count = _ITEM.unpack_from(first)
        if not 0 < self.count <= REGIONS_PER_ITEM_MAX:
            raise DamagedError(f"an item of the log with {self.count} regions")
        self.regions = [first]

    @property
    def is_whole(self) -> bool:
        return len(self.regions) == self.count


class _Open:
    """A transaction that has started."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.header = b""
        self.items: list[Item] = []
        self.bytes = 0


class Assembler:
    """Puts transactions together from operations."""

    def __init__(self, *, is_data_wanted: bool) -> None:
        self._is_data_wanted = is_data_wanted
        self._open: dict[int, _Open] = {}
        self._bytes = 0

    def take(self, number: int, client: int, flags: int, region: bytes, place: int) -> _Open | None:
        """Take an operation; return the transaction that it commits."""
        if client not in _CLIENTS:
            raise DamagedError(f"an operation of the log of client {client:#x}")
        if flags & START:
            if number in self._open or len(self._open) >= TRANSACTIONS_MAX:
                raise DamagedError(
                    f"transaction {number:#x} of the log starts twice, or one too many"
                )
            self._open[number] = _Open(place)
            return None
        transaction = self._open.get(number)
        if transaction is None:
            # It started before the tail, so it is on the volume already.
            return None
        flags &= ~END
        if flags & WAS_CONTINUED:
            self._go_on(transaction, region)
        elif flags in (0, CONTINUE):
            self._add(transaction, region)
        elif flags in (COMMIT, UNMOUNT_FLAG):
            self._bytes -= self._open.pop(number).bytes
            return transaction if flags == COMMIT else None
        else:
            raise DamagedError(f"an operation of the log with flags {flags:#x}")
        return None

    def _add(self, transaction: _Open, region: bytes) -> None:
        if not region:
            return
        if not transaction.header:
            if region[:4] != _HEADER_MAGIC or len(region) > _HEADER_BYTES:
                raise DamagedError("a transaction of the log without a header")
            transaction.header = region
            return
        if not transaction.items or transaction.items[-1].is_whole:
            transaction.items.append(Item(region))
        else:
            transaction.items[-1].regions.append(region if self._is_data_wanted else b"")
        self._count(transaction, region)

    def _go_on(self, transaction: _Open, region: bytes) -> None:
        """Lengthen the last region by its part in this record."""
        if not transaction.items:
            transaction.header += region
            if len(transaction.header) > _HEADER_BYTES:
                raise DamagedError("a transaction of the log with a long header")
            return
        regions = transaction.items[-1].regions
        if self._is_data_wanted or len(regions) == 1:
            regions[-1] += region
            self._count(transaction, region)

    def _count(self, transaction: _Open, region: bytes) -> None:
        size = (len(region) if self._is_data_wanted else 0) + REGION_OVERHEAD_BYTES
        transaction.bytes += size
        self._bytes += size
        if self._bytes > OPEN_BYTES_MAX:
            raise DamagedError(f"transactions of the log of more than {OPEN_BYTES_MAX} bytes")


def transactions(
    log: Log, found: LogRange, *, is_data_wanted: bool
) -> Iterator[tuple[int, list[Item]]]:
    """Yield (place of its start, items) of each transaction that was committed, in the order of the commits."""
    assembler = Assembler(is_data_wanted=is_data_wanted)
    for record in log.records(found):
        data = log.data(record)[: record.data_bytes]
        at = 0
        for _ in range(record.operations):
            if at + OPERATION_BYTES > len(data):
                raise DamagedError(f"the record in block {record.block} of the log ends too early")
            number, size, client, flags = _OPERATION.unpack_from(data, at)
            at += OPERATION_BYTES
            if at + size > len(data):
                raise DamagedError(f"the record in block {record.block} of the log ends too early")
            ended = assembler.take(number, client, flags, data[at : at + size], record.place)
            at += size
            if ended is not None:
                if not all(item.is_whole for item in ended.items):
                    raise DamagedError("a transaction of the log with half an item")
                yield ended.place, ended.items
