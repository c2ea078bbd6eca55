"""The NBD server: who may connect, and a thread for each connection that has come to an agreement.

One thread accepts and carries on all negotiations at once, so a client that begins one and falls silent costs a
descriptor and a few hundred bytes, for ten seconds at most.  When too many are unfinished the one goes that was not
heard from for the longest time: a real client answers at once, so it outlives any number of those that fall silent.

    accept --> Negotiation (selector, deadline) --GO--> Transmission (thread) --> end
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

from backplane.errors import BackupError, BusyError, RemoteProtocolError
from backplane.runtime.clock import Clock, SystemClock
from backplane.runtime.scheduling import prefer_throughput
from backplane.transport import stream
from backplane.transport.stream import ConnectionClosedError
from storage_node.core.nbd_handshake import (
    Ended,
    ExportWanted,
    Handshake,
    NamesWanted,
    Ready,
)
from storage_node.nbd.connection import Transmission
from storage_node.nbd.crew import LIGHT_REQUESTS, Crews
from storage_node.nbd.export import Export, Exports, facts_of

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 64
"""Default for how many connections are served at once; each has a thread and buffers."""
HANDSHAKE_S: Final = 10.0
"""Default for how long a negotiation may take in all."""
HANDSHAKES_MAX: Final = 256
"""Unfinished negotiations; with the data of one option each they hold 16 MiB."""
BACKLOG: Final = 1024
"""Connections that wait in the kernel while we look elsewhere."""

ACCEPT_AT_ONCE: Final = 64
"""Before negotiations have their turn again."""
ACCEPT_PAUSE_S: Final = 0.1
RECEIVE_BYTES: Final = 16 * 1024


class OpenExport(Protocol):
    """Opens an export for a negotiation."""

    def __call__(self, name: str, client: str, *, is_final: bool) -> Export:
        """Open it; with `is_final` to be served."""
        ...


class NbdServer:
    """Listens, negotiates, and serves each connection in a thread of its own."""

    def __init__(
        self,
        exports: Exports,
        *,
        connections_max: int = CONNECTIONS_MAX,
        handshake_s: float = HANDSHAKE_S,
        handshakes_max: int = HANDSHAKES_MAX,
        clock: Clock | None = None,
        light_requests: int = LIGHT_REQUESTS,
    ) -> None:
        self._exports = exports
        self._connections_max = connections_max
        self._handshake_s = handshake_s
        self._handshakes_max = handshakes_max
        self._clock = clock or SystemClock()
        self._crews = Crews(self._clock, light_requests=light_requests)
        self._flood_told = -math.inf
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._connections: dict[threading.Thread, socket.socket] = {}
        # Oldest first: dictionaries keep the order of insertion.
        self._negotiations: dict[socket.socket, Negotiation] = {}
        self._heard = 0
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._acceptor: threading.Thread | None = None
        self._is_closing = threading.Event()

    def start(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Listen on all addresses; return them with their real ports."""
        bound = []
        for address in addresses:
            listener, real = stream.listen(address, backlog=BACKLOG)
            listener.setblocking(False)
            self._listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ)
            bound.append(real)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._acceptor = threading.Thread(target=self._run, name="NBD accept")
        self._acceptor.start()
        return tuple(bound)

    @property
    def connection_count(self) -> int:
        """How many connections are being served."""
        with self._lock:
            return len(self._connections)

    @property
    def handshake_count(self) -> int:
        """How many negotiations are unfinished."""
        return len(self._negotiations)

    def close(self) -> None:
        """Stop listening, end all connections and wait for their threads; twice is once."""
        self._is_closing.set()
        self._waker.close()
        if self._acceptor is not None:
            self._acceptor.join()
            self._acceptor = None
        with self._lock:
            open_connections = dict(self._connections)
            for sock in open_connections.values():
                _shut(sock)
        for thread in open_connections:
            thread.join()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._woken.close()
        self._selector.close()

    # The accepting thread.

    def _run(self) -> None:
        try:
            while not self._is_closing.is_set():
                self._turn()
        except Exception:
            log.exception("the NBD server has stopped accepting")
        finally:
            for negotiation in list(self._negotiations.values()):
                self._drop(negotiation, "")

    def _turn(self) -> None:
        """Wait for something and deal with it."""
        for key, _ in self._selector.select(self._patience()):
            if key.data is not None:
                negotiation: Negotiation = key.data
                # One that was dropped earlier in this turn is not to be touched.
                if negotiation.sock in self._negotiations:
                    self._advance(negotiation)
            elif key.fileobj is not self._woken:
                assert isinstance(key.fileobj, socket.socket)
                self._accept(key.fileobj)
        now = self._clock.monotonic()
        while (oldest := self._oldest()) is not None and oldest.deadline <= now:
            self._drop(oldest, f"not finished within {self._handshake_s:g} s")

    def _oldest(self) -> Negotiation | None:
        return next(iter(self._negotiations.values()), None)

    def _quietest(self) -> Negotiation | None:
        return min(self._negotiations.values(), key=lambda each: each.heard, default=None)

    def _patience(self) -> float | None:
        oldest = self._oldest()
        return None if oldest is None else max(0.0, oldest.deadline - self._clock.monotonic())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, most likely.  Whoever has begun and not gone on gives one back.
                log.warning("accept failed: %s", error.strerror)
                quietest = self._quietest()
                if quietest is None:
                    self._is_closing.wait(ACCEPT_PAUSE_S)
                else:
                    self._drop(quietest, "out of descriptors")
                return
            sock.setblocking(False)
            if len(self._negotiations) >= self._handshakes_max:
                quietest = self._quietest()
                assert quietest is not None
                # Not a line for each: whoever wants to fill the log would only have to connect.
                self._drop(quietest, "")
                self._warn_of_a_flood()
            client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
            negotiation = Negotiation(
                sock, client=client, deadline=self._clock.monotonic() + self._handshake_s
            )
            self._negotiations[sock] = negotiation
            self._selector.register(sock, selectors.EVENT_READ, negotiation)
            self._advance(negotiation)

    def _advance(self, negotiation: Negotiation) -> None:
        """Go on with a negotiation as far as that needs no waiting."""
        self._heard += 1
        negotiation.heard = self._heard
        try:
            ready = negotiation.advance(self._open, self._exports.names)
        except (BackupError, OSError) as error:
            self._drop(negotiation, str(error))
            return
        except Exception:
            log.exception("NBD negotiation with %s crashed", negotiation.client)
            self._drop(negotiation, "")
            return
        if ready is not None:
            self._forget(negotiation)
            self._begin(negotiation, ready)
            return
        wanted = selectors.EVENT_WRITE if negotiation.has_output else selectors.EVENT_READ
        if self._selector.get_key(negotiation.sock).events != wanted:
            self._selector.modify(negotiation.sock, wanted, negotiation)

    def _open(self, name: str, client: str, *, is_final: bool) -> Export:
        if is_final and self.connection_count >= self._connections_max:
            raise BusyError(
                f"{self._connections_max} connections are open, which is all this node serves",
                hint="end one, or raise the limit",
            )
        return self._exports.open(name, client)

    def _forget(self, negotiation: Negotiation) -> None:
        del self._negotiations[negotiation.sock]
        self._selector.unregister(negotiation.sock)

    def _warn_of_a_flood(self) -> None:
        now = self._clock.monotonic()
        if now >= self._flood_told + self._handshake_s:
            self._flood_told = now
            log.warning(
                "more than %d unfinished NBD negotiations: the oldest ones make room",
                self._handshakes_max,
            )

    def _drop(self, negotiation: Negotiation, reason: str) -> None:
        self._forget(negotiation)
        negotiation.close()
        if reason:
            log.info("NBD negotiation with %s ended: %s", negotiation.client, reason)

    def _begin(self, negotiation: Negotiation, ready: Ready) -> None:
        export = negotiation.take_export()
        thread = threading.Thread(
            target=self._serve,
            args=(negotiation.sock, negotiation.client, export, ready),
            name=f"NBD {export.name}",
        )
        with self._lock:
            self._connections[thread] = negotiation.sock
            try:
                thread.start()
            except RuntimeError as error:
                # The machine has no more threads to give; everybody else goes on.
                log.warning("%s, %s: %s", negotiation.client, export.name, error)
                del self._connections[thread]
                export.close()
                negotiation.sock.close()

    # The thread of a connection.

    def _serve(self, sock: socket.socket, client: str, export: Export, ready: Ready) -> None:
        prefer_throughput()
        log.info("%s uses %s", client, export.name)
        try:
            # No timeouts: a client may rest for days.  One that is gone is found by the keepalives.
            stream.tune(sock, timeout_s=0.0)
            with self._crews.of(export.name) as crew:
                Transmission(sock, export, ready, crew).serve()
        except ConnectionClosedError as error:
            log.info("%s, %s: %s", client, export.name, error)
        except (BackupError, OSError) as error:
            log.warning("%s, %s: connection ended: %s", client, export.name, error)
        except Exception:
            log.exception("%s, %s: connection crashed", client, export.name)
        finally:
            # The export first: who sees the connection end may rely on its being released.
            export.close()
            with self._lock:
                del self._connections[threading.current_thread()]
            sock.close()


class Negotiation:
    """A handshake and its socket, which never blocks.  Belongs to the accepting thread."""

    def __init__(self, sock: socket.socket, *, client: str, deadline: float) -> None:
        self.sock = sock
        self.client = client
        self.deadline = deadline
        self.heard = 0
        self._handshake = Handshake()
        self._output = b""
        self._export: Export | None = None
        self._end: Ready | Ended | None = None

    @property
    def has_output(self) -> bool:
        """Something is to be sent before anything else happens."""
        return bool(self._output)

    def advance(self, open_export: OpenExport, names: Callable[[], list[str]]) -> Ready | None:
        """Go on until the socket would block, or has been read once so that others have their turn.

        Returns how the transmission begins, once everything before it is sent.  Raises `BackupError` or `OSError` if
        it ends in another way.  Nothing is read while something is to be sent: a client that does not take its
        answers gets no more of them.
        """
        has_received = False
        while True:
            self._output += self._handshake.take_output()
            if self._output and not self._send():
                return None
            if isinstance(self._end, Ready):
                return self._end
            if self._end is not None:
                raise RemoteProtocolError(self._end.reason)
            event = self._handshake.next_event()
            match event:
                case None:
                    self._output += self._handshake.take_output()
                    if self._output:
                        continue
                    if has_received or not self._receive():
                        return None
                    has_received = True
                case NamesWanted():
                    self._handshake.list_names(names())
                case ExportWanted(name, is_final):
                    self._answer(open_export, name, is_final=is_final)
                case Ready() | Ended():
                    self._end = event
                case _:
                    assert_never(event)

    def take_export(self) -> Export:
        """Return the export that the client chose; it is the caller's to close."""
        assert self._export is not None
        export, self._export = self._export, None
        return export

    def close(self) -> None:
        """Close the socket, and the export if one was opened."""
        self.sock.close()
        if self._export is not None:
            self.take_export().close()

    def _answer(self, open_export: OpenExport, name: str, *, is_final: bool) -> None:
        try:
            export = open_export(name, self.client, is_final=is_final)
        except BackupError as error:
            self._handshake.refuse(error)
            return
        if is_final:
            self._export = export
        try:
            self._handshake.describe(facts_of(export))
        finally:
            if not is_final:
                export.close()

    def _send(self) -> bool:
        """Send what is to be sent; False if not all of it could be."""
        try:
            sent = self.sock.send(self._output)
        except BlockingIOError:
            sent = 0
        self._output = self._output[sent:]
        return not self._output

    def _receive(self) -> bool:
        """Receive something; False if there is nothing yet."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionClosedError("the client left", is_clean=True)
        self._handshake.receive(data)
        return True


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("socket was closed already")
