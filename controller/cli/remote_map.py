"""The map of a backup, as the controller gives it: pages on demand, decoded here.

The controller sends pages as they are in its catalog and does not look into them; which of them a question needs is
decided by the first and last path of each (`under`).  Whatever comes is checked: a page that is not where it belongs,
or fewer rows than the header says, is damage and not an answer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any, Final

from backplane.errors import RemoteProtocolError
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import MapHeader, unpack_header
from backplane.file_map.model import ByteRun, FileRow
from backplane.file_map.packed import join_rows, join_runs
from controller.cli.follow import Caller

HEARD_EVERY: Final = 1000
"""Rows between two calls of `heard`."""

Heard = Callable[[int], None]
"""Told how many rows have been read so far."""


class RemoteMap:
    """A map that is read from the controller.  Each question reads it anew, from its first page on."""

    def __init__(self, client: Caller, backup: str) -> None:
        """Fetch the header; raises `NotFoundError` if there is no such backup, or it has no map."""
        document = client.call("map.header", backup=backup)
        self._client = client
        self.header: MapHeader = unpack_header(_decoded(document, "packed"))
        self.backup = int(_field(document, "backup", int))
        """The number, so that `latest` stays the same backup from page to page."""
        self.volume = str(_field(document, "volume", str))

    def rows(self, under: bytes = b"", heard: Heard | None = None) -> Iterator[FileRow]:
        """Yield the rows of all pages that may have this path, or what is below it, in order."""
        count = 0
        for row in join_rows(self._row_pages(_askable(under))):
            count += 1
            if heard is not None and count % HEARD_EVERY == 0:
                heard(count)
            yield row
        if not under and count != self.header.rows:
            raise MapDamagedError(f"the map has {count} rows; its header says {self.header.rows}")

    def runs(self) -> Iterator[ByteRun]:
        """Yield the runs of the volume that are in use."""
        first = self.header.row_pages
        return join_runs(self._pages(first, first + self.header.run_pages, ""))

    def _row_pages(self, under: str) -> Iterator[bytes]:
        return self._pages(0, self.header.row_pages, under)

    def _pages(self, first: int, end: int, under: str) -> Iterator[bytes]:
        """Yield pages from `first` on: all of them, unless `under` lets the controller leave some out."""
        at: int | None = first
        expected = first
        while at is not None and at < end:
            answer = self._client.call("map.pages", backup=str(self.backup), first=at, under=under)
            for entry in _field(answer, "pages", list):
                number = _field(entry, "page", int)
                if number >= end:
                    break
                if number < expected or (number > expected and not under):
                    raise MapDamagedError(f"page {number} of a map came instead of {expected}")
                yield _decoded(entry, "packed")
                expected = number + 1
            following = answer.get("next")
            if following is not None and (type(following) is not int or following <= at):
                raise RemoteProtocolError("the controller's answer about a map never ends")
            at = following
        if expected < end and not under:
            raise MapDamagedError(f"a map ends before page {expected} of {end}")


def _askable(path: bytes) -> str:
    """Return the path, or the nearest above it that is text, as JSON has no other: a few pages more are read."""
    while path:
        try:
            return path.decode()
        except UnicodeDecodeError:
            path = path.rpartition(b"/")[0]
    return ""


def _field(document: Any, name: str, kind: type) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if type(value) is not kind:
        raise RemoteProtocolError(f"the controller's answer about a map has no {name}")
    return value


def _decoded(document: Any, name: str) -> bytes:
    try:
        return base64.b64decode(_field(document, name, str), validate=True)
    except binascii.Error as error:
        raise RemoteProtocolError(f"the controller's {name} of a map is no base64") from error
