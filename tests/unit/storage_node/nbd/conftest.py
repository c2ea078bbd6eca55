"""One transmission over a socket pair, with a client at its other end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from backplane.errors import BackupError
from backplane.runtime.clock import SystemClock
from backplane.testing.nbd_client import NbdClient
from backplane.testing.nbd_words import Can, ExportInfo
from storage_node.core.nbd_handshake import BASE_ALLOCATION, CONTEXTS, Ready, context_number
from storage_node.nbd.connection import Transmission
from storage_node.nbd.crew import Crew
from storage_node.nbd.export import Export

TIMEOUT_S = 30.0


class Served:
    """A transmission in a thread; `end` waits for it and returns how it ended."""

    def __init__(self, export: Export, ready: Ready, crew: Crew | None) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(True)
        theirs.settimeout(TIMEOUT_S)
        self.sock = theirs
        self.client = NbdClient(
            theirs,
            info=ExportInfo(size_bytes=export.size_bytes, can=Can(0)),
            is_structured=ready.is_structured,
            contexts={context_number(context): context for context in ready.contexts},
        )
        self.error: BaseException | None = None
        self._ours = ours
        self._thread = threading.Thread(target=self._run, args=(export, ready, crew))
        self._thread.start()

    def _run(self, export: Export, ready: Ready, crew: Crew | None) -> None:
        try:
            Transmission(self._ours, export, ready, crew).serve()
        except (BackupError, AssertionError) as error:
            self.error = error
        finally:
            self._ours.close()

    def end(self) -> BaseException | None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.sock.close()
        self._thread.join(TIMEOUT_S)


class Serve:
    """Begins transmissions."""

    def __init__(self, crew: Crew | None = None) -> None:
        self.crew = crew
        self._served: list[Served] = []

    def __call__(
        self,
        export: Export,
        *,
        is_structured: bool = True,
        contexts: tuple[str, ...] = (BASE_ALLOCATION,),
        leftover: bytes = b"",
    ) -> Served:
        assert set(contexts) <= set(CONTEXTS)
        ready = Ready("volume", is_structured, contexts if is_structured else (), leftover)
        self._served.append(Served(export, ready, self.crew))
        return self._served[-1]

    def close(self) -> None:
        for served in self._served:
            served.close()
        if self.crew is not None:
            self.crew.close()


@pytest.fixture(params=["own thread", "crew"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Begin transmissions that keep their threads, or go to the crew after each small request."""
    crew = Crew(SystemClock(), light_requests=1) if request.param == "crew" else None
    serve = Serve(crew)
    yield serve
    serve.close()
