"""The client's end of simulated data channels: an opened unit, and a run of transfers between two of them.

`Link` is what `mover_node.streams` is over a socket: requests in order, positions believed, one answer per request.
`Run` moves many records by the rules of `mover_node.runs`: some reads ahead, some writes without an answer, and an end
at the first thing that is not plain success.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from backplane.crc import crc32c
from backplane.errors import NotAuthorizedError
from backplane.testing.simulated_network import Network, Stream
from backplane.testing.simulator import Process
from backplane.wire.frames import (
    MUTATING,
    Entry,
    Header,
    Opcode,
    Protection,
    boot_bits,
    encode_entries,
)
from mover_node.core.abort import is_guard_failure, is_written
from mover_node.core.commands import (
    Completed,
    Denied,
    Kind,
    Ran,
    RunTransfers,
    Stop,
    Transfer,
    UnitInfo,
    Unreachable,
)
from tests.simulation.facts import Origin
from tests.simulation.storage_process import OpenReply, Packet, Reply, StorageHost

REQUEST_TIMEOUT_S: Final = 10.0
"""Of one data request, as the kernel's timeouts on a data channel: two leases here as there."""

READS_MAX: Final = 4
WRITES_MAX: Final = 3

Answered = Callable[[Completed | Unreachable, bytes], None]
"""Takes the answer to a request, and the data that came with it."""


class Caller(Protocol):
    """Who uses a link."""

    process: Process
    network: Network
    origin: Origin

    def carried(self, data: bytes) -> bytes:
        """Return data as they arrive: a byte may have flipped."""


class Link:
    """An opened logical unit, as its client sees it."""

    def __init__(self, caller: Caller, host: StorageHost, grant: bytes) -> None:
        self._caller = caller
        self._host = host
        self._grant = grant
        self._process = caller.process
        self._network = caller.network
        self._stream = Stream(self._network, self._process, host.process)
        self._stream.on_reset = self._lose
        self._waiting: dict[int, Answered] = {}
        self._sequence = 0
        self._number = 0
        self._boot = 0
        self.position = 0
        self.in_flight = 0
        self.is_tape = False
        self.is_lost = False

    def open(self, then: Callable[[UnitInfo | Unreachable | Denied], None]) -> None:
        """Open the unit."""

        def opened(reply: OpenReply) -> None:
            if self._waiting.pop(0, None) is None:
                return
            if isinstance(reply.error, NotAuthorizedError):
                then(Denied(str(reply.error)))
                return
            if reply.opened is None:
                then(Unreachable(str(reply.error)))
                return
            self._number, self._boot = reply.number, boot_bits(reply.opened.boot_id)
            self.is_tape = reply.opened.peripheral_device_type == 1
            self.position = reply.opened.position
            then(
                UnitInfo(
                    peripheral_device_type=reply.opened.peripheral_device_type,
                    block_bytes=reply.opened.block_bytes,
                    blocks=reply.opened.blocks,
                    position=reply.opened.position,
                    record_bytes_max=reply.opened.record_bytes_max,
                )
            )

        def failed(answer: Completed | Unreachable, _: bytes) -> None:
            assert isinstance(answer, Unreachable)
            then(answer)

        self._wait(0, failed)
        stream, host, grant = self._stream, self._host, self._grant

        def answer(reply: OpenReply) -> None:
            stream.to_client(lambda: opened(reply), label="opened")

        stream.to_server(
            lambda: host.node.open(grant, stream, answer=answer),
            label=f"open item={self._caller.origin.item}",
        )

    def request(
        self,
        opcode: Opcode,
        then: Answered,
        *,
        modifier: int = 0,
        address: int = 0,
        entries: tuple[Entry, ...] = (),
        length: int = 0,
        data: bytes | None = None,
        crc32c: int = 0,
    ) -> None:
        """Send one request; `then` is called once."""
        self._sequence += 1
        header = Header(
            opcode=opcode,
            is_reply=False,
            sequence=self._sequence,
            status=modifier,
            protection=Protection.NONE if data is None else Protection.CRC32C,
            address=address,
            length=length,
            crc32c=crc32c,
            extra=len(entries),
            boot=self._boot,
        )
        self._wait(self._sequence, then)
        data = self._caller.carried(data or b"")
        packet = Packet(self._number, header, encode_entries(entries), data, self._caller.origin)
        stream, host, caller = self._stream, self._host, self._caller

        def answer(reply: Reply) -> None:
            arrived = Reply(reply.header, reply.sense, caller.carried(reply.data))
            stream.to_client(lambda: self._replied(arrived), label=f"reply {opcode.name}")

        stream.to_server(
            lambda: host.node.serve(packet, answer=answer),
            label=f"{opcode.name} item={packet.origin.item} at={address}",
            is_mutating=opcode in MUTATING,
        )

    def next_position(self) -> int:
        """Return the object that the next record request is about."""
        position = self.position + self.in_flight
        self.in_flight += 1
        return position

    def close(self) -> None:
        """Let go; nobody is called any more."""
        self._waiting.clear()
        self._stream.close()

    def _wait(self, sequence: int, then: Answered) -> None:
        self._waiting[sequence] = then

        def late() -> None:
            if sequence in self._waiting:
                self._process.simulation.probe("data request timed out")
                self._stream.close()
                self._lose()

        self._process.after(REQUEST_TIMEOUT_S, late)
        if not self._stream.is_open:
            self._process.post(self._lose)

    def _replied(self, reply: Reply) -> None:
        header = reply.header
        then = self._waiting.pop(header.sequence, None)
        if then is None:
            return
        if self.is_tape:
            self.position = header.address
            self.in_flight = max(0, self.in_flight - 1)
        then(Completed(header.status, reply.sense, None, header.crc32c, self.position), reply.data)

    def _lose(self) -> None:
        self.is_lost = True
        waiting, self._waiting = self._waiting, {}
        for then in waiting.values():
            then(Unreachable("the data channel broke"), b"")


class Run:
    """A run of transfers; see `mover_node.runs.Run`, whose rules these are."""

    def __init__(
        self, run: RunTransfers, source: Link, target: Link | None, then: Callable[[Ran], None]
    ) -> None:
        self._kind = run.kind
        self._transfers = run.transfers
        self._source = source
        self._target = target
        self._then = then
        self._next: Transfer | None = next(run.transfers, None)
        self._asked: deque[Transfer] = deque()
        self._arrived: deque[tuple[Completed, bytes]] = deque()
        self._begun: deque[Transfer] = deque()
        self._stop = Stop.DONE
        self._has_gap = False
        self._is_over = False
        self._answer: Completed | None = None
        self._last: Transfer | None = None
        self._reason = ""
        self._lost: Stop | None = None
        self.count = self.data_bytes = self.padding_bytes = 0

    def pump(self) -> None:
        """Do what can be done now."""
        if self._is_over:
            return
        self._ask_ahead()
        while self._arrived and len(self._begun) < WRITES_MAX:
            self._move(*self._arrived.popleft())
            self._ask_ahead()
        if not self._asked and not self._begun and (self._next is None or self._has_stopped):
            self._is_over = True
            if self._lost is not None and self._stop is not Stop.WARNED:
                self._stop = self._lost
            self._then(
                Ran(
                    stop=self._stop,
                    last=self._last,
                    transfers=self.count,
                    data_bytes=self.data_bytes,
                    padding_bytes=self.padding_bytes,
                    answer=self._answer,
                    source_position=self._source.position,
                    destination_position=self._target.position if self._target else 0,
                    reason=self._reason,
                )
            )

    @property
    def _has_stopped(self) -> bool:
        return self._stop is not Stop.DONE

    def _ask_ahead(self) -> None:
        while not self._has_stopped and self._next is not None:
            transfer, busy = self._next, len(self._asked) + len(self._begun)
            if busy and (transfer.needs_earlier_writes or busy >= READS_MAX):
                return
            self._asked.append(transfer)
            self._next = next(self._transfers, None)
            if self._kind is Kind.BACKUP:
                self._source.request(
                    Opcode.READ,
                    self._on_read,
                    entries=transfer.entries,
                    length=transfer.byte_count,
                )
            else:
                self._source.request(
                    Opcode.READ_RECORD,
                    self._on_read,
                    address=self._source.next_position(),
                    length=transfer.byte_count,
                )

    def _on_read(self, answer: Completed | Unreachable, data: bytes) -> None:
        if isinstance(answer, Unreachable):
            self._lose(Stop.LOST_SOURCE, answer.reason)
            self._asked.clear()
            self._arrived.clear()
        else:
            self._arrived.append((answer, data))
        self.pump()

    def _move(self, answer: Completed, data: bytes) -> None:
        transfer = self._asked.popleft()
        if not self._has_stopped and not (answer.is_good and len(data) == transfer.byte_count):
            self._stop = Stop.REFUSED
        if self._has_stopped:
            return
        if self._target is None:
            if crc32c(data) == answer.crc32c:
                self._count_done(transfer)
            else:
                self._stop = Stop.DAMAGED
            return
        self._begun.append(transfer)
        if self._kind is Kind.BACKUP:
            self._target.request(
                Opcode.WRITE_RECORD,
                self._on_written,
                address=self._target.next_position(),
                length=transfer.byte_count,
                data=data,
                crc32c=answer.crc32c,
            )
        else:
            self._target.request(
                Opcode.WRITE,
                self._on_written,
                entries=transfer.entries,
                length=transfer.byte_count,
                data=data,
                crc32c=answer.crc32c,
            )

    def _on_written(self, answer: Completed | Unreachable, _: bytes) -> None:
        if isinstance(answer, Unreachable):
            self._has_gap = True
            self._begun.clear()
            self._lose(Stop.LOST_DESTINATION, answer.reason)
            self._asked.clear()
            self._arrived.clear()
        else:
            self._take_answer(answer)
        self.pump()

    def _take_answer(self, answer: Completed) -> None:
        transfer = self._begun.popleft()
        if self._has_gap:
            return
        if is_written(answer):
            self._count_done(transfer)
            if not answer.is_good:
                self._stop, self._answer = Stop.WARNED, answer
            return
        self._has_gap = True
        if self._stop is not Stop.WARNED:
            self._stop = Stop.DAMAGED if is_guard_failure(answer) else Stop.REFUSED

    def _count_done(self, transfer: Transfer) -> None:
        self._last = transfer
        self.count += 1
        self.data_bytes += transfer.byte_count - transfer.padding_bytes
        self.padding_bytes += transfer.padding_bytes

    def _lose(self, stop: Stop, reason: str) -> None:
        self._reason = reason
        self._lost = self._lost or stop
        if self._stop is not Stop.WARNED:
            self._stop = stop
