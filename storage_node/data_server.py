"""The data server: accepts data channels and gives each a thread and a logical unit.

A refusal (a `BackupError` about one request) is answered with sense data and leaves the connection usable; the data of
the refused request are taken off the socket first.  A protocol error or a wrong MAC ends the connection.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from backplane.errors import BackupError, RemoteProtocolError, UnreachableError
from backplane.ids import Designator
from backplane.runtime.scheduling import prefer_throughput
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport import stream
from backplane.transport.stream import Connection, ConnectionClosedError, FileRange, Opened
from backplane.wire.frames import Header, Protection, Status
from backplane.wire.grants import Grant
from storage_node.access import Access, audit_refusal
from storage_node.core.admission import Session, denied

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 64
"""Default for how many data channels are open at once; each has a thread and buffers."""

FROM_FILE_BYTES_MIN: Final = 64 * 1024
"""Shorter data are cheaper to copy than to hand over page by page."""

ACCEPT_PAUSE_S: Final = 0.1
DRAIN_BYTES: Final = 256 * 1024


class Exchange:
    """One connection as a logical unit sees it: replies, and buffers that are reused."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._buffer = bytearray(0)

    def buffer(self, count: int) -> memoryview:
        """Return `count` bytes of the connection's buffer; their content is whatever was there."""
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        return memoryview(self._buffer)[:count]

    def receive(self, header: Header) -> memoryview:
        """Receive all data of a request."""
        data = self.buffer(header.length)
        self.connection.receive_into(data)
        return data

    def drain(self, header: Header) -> None:
        """Take the data of a refused request off the socket."""
        left = header.data_bytes
        while left:
            count = min(left, DRAIN_BYTES)
            self.connection.receive_into(self.buffer(count))
            left -= count

    def reply(
        self,
        request: Header,
        *,
        data: memoryview | bytes | None = None,
        crc32c: int | None = None,
        address: int = 0,
        sense: Sense | None = None,
    ) -> None:
        """Answer a request: GOOD, or CHECK CONDITION if there is sense."""
        extra = b"" if sense is None else encode_sense(sense)
        header = Header(
            opcode=request.opcode,
            is_reply=True,
            sequence=request.sequence,
            status=Status.GOOD if sense is None else Status.CHECK_CONDITION,
            protection=Protection.NONE if crc32c is None else Protection.CRC32C,
            address=address,
            length=0 if data is None else len(data),
            crc32c=crc32c or 0,
            extra=len(extra),
            boot=self.connection.boot,
        )
        self.connection.send(header, extra=extra, data=data)

    def reply_from_file(
        self, request: Header, file: FileRange, *, length: int, crc32c: int, address: int = 0
    ) -> None:
        """Answer with data that leave from a file, without another copy; the CRC is of what was read there."""
        header = Header(
            opcode=request.opcode,
            is_reply=True,
            sequence=request.sequence,
            protection=Protection.CRC32C,
            address=address,
            length=length,
            crc32c=crc32c,
            boot=self.connection.boot,
        )
        self.connection.send_file(header, file)

    def refuse(
        self, request: Header, error: BackupError, *, address: int = 0, lba: int | None = None
    ) -> None:
        """Answer a request that was not carried out."""
        triple = error.sense
        sense = Sense(key=SenseKey(triple.key), asc=triple.asc, ascq=triple.ascq, information=lba)
        self.reply(request, address=address, sense=sense)


def encode_sense(sense: Sense) -> bytes:
    """Return fixed-format sense data, or descriptor format where INFORMATION needs 64 bits."""
    if sense.information is not None and sense.information > 0xFFFF_FFFF:
        return sense.encode_descriptor()
    return sense.encode_fixed()


class UnitHandler(Protocol):
    """Serves one connection's requests to one logical unit."""

    def handle(self, header: Header, extra: bytes) -> None:
        """Receive the data of one request and answer it; raise only if the connection has to end."""
        ...


class LogicalUnit(Protocol):
    """What the data server needs of a logical unit."""

    def opened(self, boot_id: bytes) -> Opened:
        """Describe the unit to the client that opens it."""
        ...

    def handler(self, exchange: Exchange, session: Session) -> UnitHandler:
        """Begin to serve a connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys:
    """What the handshake needs to know."""

    boot_id: bytes
    secret_key: bytes
    controller_key: bytes


class DataServer:
    """Listens, and serves each connection in a thread of its own."""

    def __init__(
        self,
        *,
        keys: NodeKeys,
        access: Access,
        unit: Callable[[Designator], LogicalUnit | None],
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._keys = keys
        self._access = access
        self._unit = unit
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._acceptors: list[threading.Thread] = []
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._closing = threading.Event()

    def start(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Listen on all addresses; return them with their real ports."""
        bound = []
        for address in addresses:
            listener, real = stream.listen(address)
            self._listeners.append(listener)
            bound.append(real)
        for listener, address in zip(self._listeners, bound, strict=True):
            thread = threading.Thread(
                target=self._accept, args=(listener,), name=f"accept {address}"
            )
            self._acceptors.append(thread)
            thread.start()
        return tuple(bound)

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """Stop listening, end all connections and wait for their threads."""
        with self._lock:
            self._closing.set()
            open_sockets = list(self._connections.values())
        for listener in self._listeners:
            _shut(listener)
        for sock in open_sockets:
            _shut(sock)
        for thread in self._acceptors:
            thread.join()
        for listener in self._listeners:
            listener.close()
        with self._lock:
            threads = list(self._connections)
        for thread in threads:
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.warning("accept failed: %s", error.strerror)
                # Out of descriptors, most likely: one ends when a connection does.
                self._closing.wait(ACCEPT_PAUSE_S)
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self._run, args=(sock,), name="data channel")
        with self._lock:
            is_full = len(self._connections) >= self._connections_max
            if not is_full and not self._closing.is_set():
                self._connections[thread] = sock
                thread.start()
                return
        sock.close()
        if is_full:
            log.warning("data connection refused: %d are open", self._connections_max)

    def _run(self, sock: socket.socket) -> None:
        prefer_throughput()
        try:
            self._serve(sock)
        except ConnectionClosedError as error:
            if not error.is_clean:
                log.info("%s", error)
        except (RemoteProtocolError, UnreachableError) as error:
            log.warning("data channel ended: %s", error)
        except BackupError as error:
            log.info("data channel closed: %s", error)
        except Exception:
            log.exception("data channel crashed")
        finally:
            sock.close()
            with self._lock:
                del self._connections[threading.current_thread()]

    def _serve(self, sock: socket.socket) -> None:
        admitted: list[tuple[Session, LogicalUnit]] = []

        def admit(grant: Grant) -> Opened:
            session = self._access.open(grant)
            unit = self._unit(grant.designator)
            if unit is None:  # removed since it was admitted
                self._access.close(session)
                raise denied("no such logical unit")
            admitted.append((session, unit))
            return unit.opened(self._keys.boot_id)

        try:
            try:
                connection, grant = stream.serve_handshake(
                    sock,
                    boot_id=self._keys.boot_id,
                    secret_key=self._keys.secret_key,
                    controller_key=self._keys.controller_key,
                    admit=admit,
                )
            except BackupError as error:
                if not admitted and not isinstance(error, UnreachableError):
                    audit_refusal("handshake", None, error)
                raise
            session, unit = admitted[0]
            handler = unit.handler(Exchange(connection), session)
            self._serve_requests(connection, handler, idle_s=grant.ttl_s)
        finally:
            for session, _ in admitted:
                self._access.close(session)

    def _serve_requests(
        self, connection: Connection, handler: UnitHandler, *, idle_s: float
    ) -> None:
        # The kernel's receive timeout bounds a frame; between frames a client may rest as long as its grant lives.
        poller = select.poll()
        poller.register(connection.sock, select.POLLIN)
        sequence = 0
        while True:
            if not poller.poll(idle_s * 1000):
                raise ConnectionClosedError("the grant of an idle connection ended", is_clean=True)
            header, extra = connection.receive_header()
            sequence += 1
            if header.is_reply or header.sequence != sequence:
                raise RemoteProtocolError("data channel: a frame out of turn")
            handler.handle(header, extra)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("socket was closed already")
