"""Control requests about file maps: at most one mapping of a view, few of a node, and the answer to all who asked.

    view.map   is there a map?  (worker) --yes--> its header
                     | no
                     v
               waiting --slot free--> mapping (a thread of its own) --> header, or why not, to every receipt
                  |                      |
                  +------ release -------+      cancelled; the map goes with the view

A mapping takes as long as a volume is large, so it has no worker: those are for requests that end.  Meanwhile
`view.mapping` tells how it stands.  All methods belong to the loop's thread, but what says otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backplane.errors import BackupError, MediumError, NotFoundError
from backplane.ids import ViewId
from backplane.runtime.loop import Loop, Timer
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeReply,
    ViewMap,
    ViewMapPage,
    ViewMapping,
)
from storage_node.disk.static_views import StaticView
from storage_node.disk_control import DiskControl
from storage_node.mapping.mapper import Mapper, Mapping
from storage_node.workers import KeyedWorkers

log = logging.getLogger(__name__)

TELL_S: Final = 1.0
"""How often a mapping is told."""

TEXT_MAX: Final = 4000
"""Characters of a reason, within what a message takes."""

REQUESTS_MAX: Final = 64
"""Receipts of one mapping that are answered; a sender needs one."""


@dataclass(slots=True, eq=False)
class _Job:
    """A mapping that is wanted, waits or runs, with the numbers of all receipts to answer."""

    view: ViewId
    requests: list[int]
    mapping: Mapping | None = None
    thread: threading.Thread | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    """Nothing of it runs, and nothing is written, any more."""


class MapControl:
    """The mappings of a node."""

    def __init__(
        self,
        *,
        loop: Loop,
        workers: KeyedWorkers,
        disk: DiskControl,
        mapper: Mapper,
        mappings_max: int,
        boot_id: bytes,
        send: Callable[[Message], None],
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._disk = disk
        self._mapper = mapper
        self._mappings_max = mappings_max
        self._boot_id = boot_id
        self._send = send
        self._jobs: dict[ViewId, _Job] = {}
        """In the order in which they were asked for."""
        self._leaving: set[ViewId] = set()
        self._teller: Timer | None = None
        with disk.step:
            swept = mapper.folder.sweep(set(disk.book.views))
        if swept:
            log.info("removed file maps without a static view", extra={"names": swept})

    # --- requests --------------------------------------------------------------------------------

    def map(self, message: ViewMap) -> None:
        """Answer with the map that exists, or make it."""
        view, request = message.view, message.request
        job = self._jobs.get(view)
        if job is not None:
            if request not in job.requests and len(job.requests) < REQUESTS_MAX:
                job.requests.append(request)
            return
        if view in self._leaving:
            self._fail(request, NotFoundError("the static view is being released"))
            return
        job = self._jobs[view] = _Job(view, [request])
        self._submit(view, lambda: self._look(view), lambda found: self._looked(job, found))

    def page(self, message: ViewMapPage) -> None:
        """Answer with a page of a map."""

        def answer(page: bytes | Mapping | BackupError) -> None:
            if isinstance(page, bytes):
                self._send(NodeReply(request=message.request, boot_id=self._boot_id, map_page=page))
            else:
                assert isinstance(page, BackupError)
                self._fail(message.request, page)

        self._submit(message.view, lambda: self._read_page(message), answer)

    def releasing(self, view: ViewId) -> Callable[[], None]:
        """End what is done for a view, and return what has to be called by a worker before the view goes."""
        self._leaving.add(view)
        job = self._jobs.get(view)
        if job is not None and job.thread is None:
            self._end(job, NotFoundError("the static view was released before it was mapped"))
        elif job is not None:
            assert job.mapping is not None
            job.mapping.cancel()
        return lambda: self._forget(view, job)

    def released(self, view: ViewId) -> None:
        """The view is gone."""
        self._leaving.discard(view)

    def close(self) -> None:
        """End all mappings and wait for their threads; the loop does not run any more."""
        running = [job for job in self._jobs.values() if job.thread is not None]
        for job in running:
            assert job.mapping is not None
            job.mapping.cancel()
        for job in running:
            assert job.thread is not None
            job.thread.join()

    # --- in workers --------------------------------------------------------------------------------

    def _submit(
        self,
        view: ViewId,
        work: Callable[[], bytes | Mapping],
        answer: Callable[[bytes | Mapping | BackupError], None],
    ) -> None:
        """Have a worker do something short, and take its result or its error in the loop's thread."""

        def run() -> None:
            try:
                found: bytes | Mapping | BackupError = work()
            except BackupError as error:
                found = error
            self._loop.post(lambda: answer(found))

        try:
            self._workers.submit(("map", view), run)
        except BackupError as error:
            answer(error)

    def _look(self, view: ViewId) -> bytes | Mapping:
        """Return the header of the map, or a mapping to be run."""
        data = self._data(view)
        try:
            return self._mapper.folder.open(view).header
        except NotFoundError:
            pass
        except MediumError as error:
            log.warning("a file map is made anew", extra={"view": view, "reason": str(error)})
        if data.broken:
            raise MediumError(f"the static view is broken: {data.broken}")
        return self._mapper.mapping(view, data.device)

    def _read_page(self, message: ViewMapPage) -> bytes:
        self._data(message.view)
        return self._mapper.folder.open(message.view).page(message.page)

    def _data(self, view: ViewId) -> StaticView:
        with self._disk.step:
            data = self._disk.view_data.get(view)
        if data is None:
            raise NotFoundError(f"no static view {view[:64]!r} on this node")
        return data

    def _forget(self, view: ViewId, job: _Job | None) -> None:
        if job is not None:
            job.ended.wait()
        try:
            self._mapper.folder.remove(view)
        except NotFoundError:
            pass  # no identifier, so there never was a map
        except OSError as error:
            # The sweep at the next start finds it, and nothing depends on it.
            log.warning("a file map stays", extra={"view": view, "reason": str(error)})

    # --- a mapping ---------------------------------------------------------------------------------

    def _looked(self, job: _Job, found: bytes | Mapping | BackupError) -> None:
        if job.ended.is_set():
            return  # released meanwhile
        if not isinstance(found, Mapping):
            self._end(job, found)
            return
        job.mapping = found
        if self._teller is None:
            self._teller = self._loop.after(TELL_S, self._tell)
        self._start_next()

    def _start_next(self) -> None:
        free = self._mappings_max - sum(job.thread is not None for job in self._jobs.values())
        waiting = [job for job in self._jobs.values() if job.mapping and job.thread is None]
        for job in waiting[: max(0, free)]:
            job.thread = threading.Thread(
                target=self._map, args=(job, job.mapping), name="mapping of a view"
            )
            job.thread.start()

    def _map(self, job: _Job, mapping: Mapping) -> None:
        """The thread of a mapping."""
        try:
            answer: bytes | BackupError = mapping.run()
        except BackupError as error:
            answer = error
        except Exception:
            log.exception("a mapping crashed")
            answer = BackupError("the mapping crashed; the node's log has more")
        job.ended.set()
        self._loop.post(lambda: self._mapped(job, answer))

    def _mapped(self, job: _Job, answer: bytes | BackupError) -> None:
        assert job.thread is not None
        job.thread.join()
        if job.view in self._leaving:
            answer = NotFoundError("the static view was released while it was mapped")
        self._end(job, answer)

    def _end(self, job: _Job, answer: bytes | BackupError) -> None:
        """Answer all receipts."""
        del self._jobs[job.view]
        job.ended.set()
        if isinstance(answer, BackupError):
            told = {"view": job.view, "error": answer.kind, "reason": str(answer)}
            log.info("a view was not mapped", extra=told)
        for request in job.requests:
            if isinstance(answer, BackupError):
                self._fail(request, answer)
            else:
                self._send(NodeReply(request=request, boot_id=self._boot_id, map_header=answer))
        self._start_next()

    def _tell(self) -> None:
        """Tell how all mappings stand, also those that wait: that somebody lives is worth knowing."""
        jobs = [job for job in self._jobs.values() if job.mapping is not None]
        for job in jobs:
            assert job.mapping is not None
            self._send(
                ViewMapping(
                    view=job.view, files=job.mapping.rows, bytes_read=job.mapping.bytes_read
                )
            )
        self._teller = self._loop.after(TELL_S, self._tell) if jobs else None

    def _fail(self, request: int, error: BackupError) -> None:
        self._send(
            NodeFailed(
                request=request,
                error=error.kind,
                reason=error.message[:TEXT_MAX],
                hint=error.hint[:TEXT_MAX],
            )
        )
