"""Reading what a cartridge says about itself, through a tape node (`backplane.tape_format.scan`).

Metadata only, never a record of data: `tape.metadata` and `tape.digest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from backplane.errors import BackupError, MediumError, NotFoundError, RemoteProtocolError
from backplane.ids import NodeName
from backplane.tape_format import DirectoryEntry, RecordType
from backplane.tape_format.payload import decode_payload
from backplane.tape_format.scan import (
    Findings,
    Look,
    ReadDigests,
    ReadRecords,
    Scan,
    Sighting,
    TapeScan,
    Unreadable,
)
from backplane.wire.messages import NodeReply, TapeDigest, TapeMetadata
from controller.core.procedure import Ask, Step
from controller.core.rebuild_parts import FoundPart, found_part

_LENGTH_BYTES: Final = 4
_CRC_BYTES: Final = 4


class DriveLostError(BackupError):
    """The drive does not have the cartridge any more: its node has restarted.  Load it, and read it again."""

    kind = "drive-lost"
    retryable = True


class CartridgeScan:
    """One cartridge in one drive of a node."""

    def __init__(
        self,
        *,
        node: NodeName,
        drive: str,
        cartridge: str,
        end: int,
        progress: Callable[[int], None],
    ) -> None:
        """`cartridge` is the UUID in its label, `end` its end of data; `progress` hears how many parts are found."""
        self._node, self._drive = node, drive
        self._scan: TapeScan[FoundPart] = TapeScan(
            cartridge=cartridge, end=end, put_together=_put_together, progress=progress
        )

    @property
    def found(self) -> Findings[FoundPart]:
        """What is found so far."""
        return self._scan.found

    def run(self, *, entry: bytes, sequence: int) -> Step:
        """Find all parts; `entry` and `sequence` are those of the last trailer, as the load told them.

        Raises `DriveLostError` if it has to be begun again.
        """
        last = decode_payload(entry, DirectoryEntry) if sequence else None
        return (yield from self._asked(self._scan.run(last=last, sequence=sequence)))

    def records(self, at: int) -> Step:
        """Return the records of metadata from an object on, as many as one answer has, or `Unreadable`."""
        return (yield from self._asked(self._scan.records(at)))

    def map_payloads(self, at: int) -> Step:
        """Return the payloads of the map's records from an object on, as many as one answer has, or `Unreadable`."""
        found = yield from self.records(at)
        if isinstance(found, Unreadable):
            return found
        payloads = [each.payload for each in found if each.type is RecordType.FILE_MAP]
        return payloads or Unreadable(f"object {at} belongs to no file map")

    def _asked(self, scan: Scan) -> Step:
        """Have the node answer what a scan asks; returns what the scan returns."""
        answer: object = None
        error: BackupError | None = None
        while True:
            try:
                look = scan.send(answer) if error is None else scan.throw(error)
            except StopIteration as done:
                return done.value
            try:
                answer, error = (yield from self._ask(look)), None
            except NotFoundError as lost:
                raise DriveLostError(lost.message) from lost
            except MediumError as damage:
                error = damage

    def _ask(self, look: Look) -> Step:
        if isinstance(look, ReadRecords):
            reply = yield Ask(
                node=self._node,
                make=lambda request: TapeMetadata(
                    request=request, drive=self._drive, start=look.start
                ),
                what="read metadata of the cartridge",
            )
            assert isinstance(reply, NodeReply)
            return list(_split(reply.records, node=self._node))
        return (yield from self._ask_digests(look))

    def _ask_digests(self, look: ReadDigests) -> Step:
        reply = yield Ask(
            node=self._node,
            make=lambda request: TapeDigest(
                request=request, drive=self._drive, start=look.start, end=look.end
            ),
            what="read digests of the cartridge",
        )
        assert isinstance(reply, NodeReply)
        objects = min(reply.next_object, look.end) - look.start
        if objects <= 0 or len(reply.digests) > _CRC_BYTES * objects:
            raise RemoteProtocolError(f"storage node {self._node} does not get on with digests")
        return reply.digests, reply.next_object


def _put_together(seen: Sighting) -> FoundPart:
    part = found_part(
        header=seen.header,
        trailer=seen.trailer,
        entry=seen.entry,
        header_records=seen.header_records,
        end=seen.end,
        sequence=seen.sequence,
    )
    return replace(part, damage=seen.damage)


def _split(packed: bytes, *, node: NodeName) -> Iterator[bytes]:
    """Yield the records of an answer."""
    start = 0
    while start < len(packed):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(packed[begin - _LENGTH_BYTES : begin], "big")
        if begin >= start or start > len(packed):
            raise RemoteProtocolError(f"storage node {node} sent half a record")
        yield packed[begin:start]
