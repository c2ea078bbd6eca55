"""`storage-node place` as a child of `ctl`: what is asked of it, and what it tells unasked.

It gets no signal that a terminal sends, because it has to outlive `ctl` for as long as a mover may be writing.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from backplane.crc import crc32c
from backplane.errors import BackupError
from backplane.file_map.model import FileRow
from backplane.units import KIB
from controller.cli.file_folder import times_of

END_S: Final = 10.0
"""How long it may take to remove what nobody can be writing."""

NAME_BYTES_MAX: Final = 255
ANSWER_BYTES_MAX: Final = 1024 * KIB


class PlacerLostError(BackupError):
    """The process that holds prepared files has ended."""

    def __init__(self) -> None:
        super().__init__("storage-node place has ended: nobody holds the prepared files any more")


class Refusal(BackupError):  # noqa: N818 - an answer
    """Why a file cannot be placed."""


class Placer:
    """A conversation with a process that prepares files below a folder."""

    def __init__(
        self, folder: Path, *, start: Callable[..., subprocess.Popen[bytes]] | None = None
    ):
        """Start it; `start` is how, for tests."""
        command = [sys.executable, "-m", "storage_node", "place", "--folder", str(folder)]
        self._process = (start or subprocess.Popen)(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._held = bytearray()
        self._is_over = False
        self._is_exposed = False
        self._broken = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_exposed(self) -> bool:
        """Whether movers may be writing what it holds."""
        return self._is_exposed

    def close(self) -> None:
        """End the conversation.  What movers may be writing is held a while longer, and the process with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        if not self._is_exposed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        else:
            self._process.returncode = self._process.poll() or 0  # it is nobody's child any more

    # --- asking ----------------------------------------------------------------------------------

    def prepare(self, temporary: bytes, size: int) -> tuple[str, str]:
        """Have a file prepared; returns the digest of its map and its path in the file system."""
        answer = self._ask(op="prepare", temporary=os.fsdecode(temporary), size=size)
        return str(answer["digest"]), str(answer["path"])

    def expose(self) -> None:
        """Say that movers may write from here on."""
        self._is_exposed = True
        self._ask(op="expose")

    def fenced(self) -> None:
        """Say that no mover can write any more."""
        self._is_exposed = False
        self._ask(op="fenced")

    def verify(self, temporary: bytes, row: FileRow, *, digest: str, crc: int) -> int:
        """Have a file verified and named; returns how many attributes it could not get."""
        accessed, modified = times_of(row)
        xattrs = [[base64.b64encode(text).decode() for text in pair] for pair in row.xattrs]
        answer = self._ask(
            op="verify",
            temporary=os.fsdecode(temporary),
            name=os.fsdecode(row.path.rpartition(b"/")[2]),
            digest=digest,
            size=row.size,
            crc32c=crc,
            mode=row.mode & 0o7777,
            uid=row.uid,
            gid=row.gid,
            mtime_ns=modified,
            atime_ns=accessed,
            xattrs=xattrs,
        )
        return int(answer["attributes_lost"])

    def abandon(self, temporary: bytes) -> None:
        """Have a file removed."""
        self._ask(op="abandon", temporary=os.fsdecode(temporary))

    def trouble(self) -> str:
        """Say why movers have to be stopped, empty if they need not."""
        self._take_events()  # One may have come together with an answer.
        with suppress(PlacerLostError):
            while not self._is_over and self._has_news():
                self._read()
                self._take_events()
        return str(PlacerLostError()) if self._is_over else self._broken

    # --- lines -----------------------------------------------------------------------------------

    def _ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            self._is_over = True
            raise PlacerLostError from error
        while True:
            line = self._line()
            if line is None:
                self._read()
                continue
            document: dict[str, Any] = json.loads(line)
            if "event" in document:
                self._note(document)
            elif document["ok"]:
                return document
            else:
                raise Refusal(str(document["reason"]))

    def _line(self) -> bytes | None:
        end = self._held.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    def _take_events(self) -> None:
        while (line := self._line()) is not None:
            self._note(json.loads(line))

    def _note(self, document: dict[str, Any]) -> None:
        name = os.fsencode(document.get("temporary", "")).decode(errors="replace")
        self._broken = f"somebody else has opened {name}"

    def _has_news(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def _read(self) -> None:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), 64 * KIB)
        if not data or len(self._held) > ANSWER_BYTES_MAX:
            self._is_over = True
            raise PlacerLostError
        self._held += data


def temporary_name(path: bytes, *, mark: str) -> bytes:
    """Return the path of the temporary file: the name that a file will have, a mark, and `.restoring`."""
    folder, slash, name = path.rpartition(b"/")
    # Marked with a number that nobody else has, so that it tells this file from any other of its name: of an earlier
    # attempt, and of a copy of the volume.
    end = f".{mark}-{crc32c(path):08x}.restoring".encode()
    return folder + slash + name[: NAME_BYTES_MAX - len(end)] + end
