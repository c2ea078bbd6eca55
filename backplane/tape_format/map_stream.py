"""A file map on tape: its packed header and pages in a row, cut into records of the part header's file.

    stream     [length | map header] [length | page 0] [length | page 1] ...        length: 32 bits, big-endian
    records    |<---- piece ---->|<---- piece ---->|<-- rest -->|

Items and records do not know of each other's borders.  A map may be large and is never needed whole: whoever writes
record k takes the items that lie in it, whoever reads gets items as they are complete.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from backplane.errors import VolumeError
from backplane.tape_format.record import (
    METADATA_RECORD_BYTES_MAX,
    PREFIX_BYTES,
    RECORDS_MAX,
    RecordType,
    encode_record,
)
from backplane.units import MIB

LENGTH_BYTES: Final = 4
PIECE_BYTES: Final = METADATA_RECORD_BYTES_MAX - PREFIX_BYTES
"""Of the stream in each record but the last."""
ITEM_BYTES_MAX: Final = 4 * MIB


class MapLayout:
    """Where the items of a map stand in its stream, and the stream in records."""

    def __init__(self, item_bytes: Sequence[int]) -> None:
        """Lay out items of these lengths; raises `VolumeError` if they are too long or too many."""
        if any(not 0 < count <= ITEM_BYTES_MAX for count in item_bytes):
            raise VolumeError(f"a page of a file map has 1 to {ITEM_BYTES_MAX} bytes")
        self._ends = list(accumulate(LENGTH_BYTES + count for count in item_bytes))
        self.stream_bytes = self._ends[-1] if self._ends else 0
        self.records = -(-self.stream_bytes // PIECE_BYTES)
        if self.records > RECORDS_MAX:
            raise VolumeError(f"a file map in {self.records} records, at most {RECORDS_MAX}")

    def items_of(self, record: int) -> range:
        """Return the numbers of the items that lie, in part at least, in a record (from 0)."""
        start, end = self._bounds(record)
        return range(bisect_right(self._ends, start), bisect_right(self._ends, end - 1) + 1)

    def encode(
        self, record: int, item: Callable[[int], bytes], *, volume_uuid: str, first_object: int
    ) -> bytes:
        """Return a record (from 0) of the map whose first one becomes object `first_object`."""
        start, end = self._bounds(record)
        numbers = self.items_of(record)
        base = self._ends[numbers[0] - 1] if numbers[0] else 0
        data = bytearray()
        for number in numbers:
            content = item(number)
            data += len(content).to_bytes(LENGTH_BYTES, "big") + content
            if base + len(data) != self._ends[number]:
                raise VolumeError(
                    f"page {number} of a file map has not the length that was planned"
                )
        return encode_record(
            RecordType.FILE_MAP,
            bytes(data[start - base : end - base]),
            volume_uuid=volume_uuid,
            object_number=first_object + record,
            number=record + 1,
            count=self.records,
        )

    def _bounds(self, record: int) -> tuple[int, int]:
        assert 0 <= record < self.records
        return record * PIECE_BYTES, min(self.stream_bytes, (record + 1) * PIECE_BYTES)


class ItemFeed:
    """The items of a stream, as the payloads of its records come."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, payload: bytes) -> Iterator[bytes]:
        """Yield the items that are whole with this payload; raises `VolumeError`.  Take all of them."""
        held = self._held
        held += payload
        start = 0
        while (item := _item_at(held, start)) is not None:
            yield item
            start += LENGTH_BYTES + len(item)
        del held[:start]

    def finish(self) -> None:
        """No payload follows; raises `VolumeError` if an item is not whole."""
        if self._held:
            raise VolumeError("a file map that ends within a page")


def items_from(payloads: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the items of a stream from the payloads of its records; raises `VolumeError`."""
    feed = ItemFeed()
    for payload in payloads:
        yield from feed.feed(payload)
    feed.finish()


def _item_at(held: bytearray, start: int) -> bytes | None:
    """Return the item that begins at `start`, None if it is not all there."""
    content = start + LENGTH_BYTES
    if content > len(held):
        return None
    count = int.from_bytes(held[start:content], "big")
    if not 0 < count <= ITEM_BYTES_MAX:
        raise VolumeError(f"a page of a file map with {count} bytes")
    return bytes(held[content : content + count]) if content + count <= len(held) else None
