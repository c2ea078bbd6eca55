"""A placement as a conversation: `ctl` asks in JSON lines, this process holds the files and answers.

    {"op": "prepare", "temporary": ..., "size": ...}       -> {"ok": true, "digest": ..., "path": ..., ...}
    {"op": "expose"}                                       -> {"ok": true}      from here on movers may write
    {"op": "fenced"}                                       -> {"ok": true}      from here on they cannot
    {"op": "verify", "temporary": ..., "name": ..., ...}   -> {"ok": true}      the file has its name
    {"op": "abandon", "temporary": ...}                    -> {"ok": true}      the file is gone
                       {"event": "broken", "temporary": ...}     somebody else wants the file: stop the movers

What cannot be done is answered with {"ok": false, "reason": ...}; a file that could not be verified is still held.

Blocks must not become free while a mover may still write them: they would be another file's by then.  So whoever asks
says `fenced` before he abandons what was exposed.  If he is gone before that, or this process is to end, exposed files
are held for `hold_s` more, longer than any mover is let write without him.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from backplane.errors import BackupError, UsageError
from backplane.units import KIB
from storage_node.placing.prepared import Attributes, PreparedFile, prepare
from storage_node.placing.surroundings import (
    check_surroundings,
    find_mount,
    path_in_file_system,
)

FILES_MAX: Final = 256
LINE_BYTES_MAX: Final = 512 * KIB
XATTRS_MAX: Final = 256
HOLD_S: Final = 120.0
_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Ended(Exception):  # noqa: N818 - no error
    """Nobody is there any more, or this process is to end."""


class Session:
    """What was prepared for one caller, who speaks through two descriptors."""

    def __init__(self, folder: int, source: int, target: int, *, hold_s: float) -> None:
        """`folder` is open; `source` and `target` are the caller's lines and ours."""
        self._folder = folder
        self._source = source
        self._target = target
        self._hold_s = hold_s
        self._files: dict[bytes, PreparedFile] = {}
        self._broken: set[bytes] = set()
        self._exposed: set[bytes] = set()
        self._held = bytearray()
        self._is_to_end = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until the caller is gone; nothing is left then but what was verified."""
        try:
            with self._signals(), suppress(_Ended):
                try:
                    for line in self._lines():
                        self._say(self._answer(line))
                finally:
                    self._hold()
        finally:
            os.close(self._wake)
            os.close(self._woken)

    # --- signals ---------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        heard = [each for each in _END_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._end) for number in heard}
        before[signal.SIGIO] = signal.signal(signal.SIGIO, _ignored)
        descriptor = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._is_to_end = True

    def _hold(self) -> None:
        """Let go of all files, of those that a mover may be writing when it cannot any more."""
        self._drop(self._files.keys() - self._exposed)
        if self._exposed:
            select.select([], [], [], self._hold_s)  # signals do not cut it short
        self._drop(self._files.keys())

    def _drop(self, temporaries: Iterable[bytes]) -> None:
        for temporary in list(temporaries):
            self._files.pop(temporary).drop()

    # --- lines -----------------------------------------------------------------------------------

    def _lines(self) -> Iterator[bytes]:
        while True:
            while (end := self._held.find(b"\n")) >= 0:
                line = bytes(self._held[:end])
                del self._held[: end + 1]
                yield line
            if len(self._held) > LINE_BYTES_MAX:
                raise UsageError(f"a line has more than {LINE_BYTES_MAX} bytes")
            self._wait()
            data = os.read(self._source, 64 * KIB)
            if not data:
                raise _Ended
            self._held += data

    def _wait(self) -> None:
        """Wait for the caller; tell him meanwhile which leases are broken."""
        while True:
            if self._is_to_end:
                raise _Ended
            self._tell_broken()
            ready, _, _ = select.select([self._source, self._wake], [], [])
            if self._wake in ready:
                os.read(self._wake, 4096)
            if self._source in ready:
                return

    def _tick(self) -> None:
        """Between two pieces of long work: is anybody there who wants it?"""
        poll = select.poll()
        poll.register(self._source, 0)
        if self._is_to_end or poll.poll(0):
            raise _Ended

    def _tell_broken(self) -> None:
        for temporary, made in self._files.items():
            if temporary not in self._broken and not made.has_lease:
                self._broken.add(temporary)
                self._say({"event": "broken", "temporary": os.fsdecode(temporary)})

    def _say(self, document: dict[str, Any]) -> None:
        data = memoryview(json.dumps(document).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BrokenPipeError as error:
            raise _Ended from error

    # --- questions -------------------------------------------------------------------------------

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = _document(line)
            return {"ok": True} | self._carry_out(asked)
        except BackupError as error:
            return {"ok": False, "kind": error.kind, "reason": error.message}
        except OSError as error:
            return {"ok": False, "kind": "refused", "reason": error.strerror or str(error)}

    def _carry_out(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked.get("op"):
            case "prepare":
                return self._prepare(_path(asked, "temporary"), _number(asked, "size"))
            case "expose":
                self._exposed |= self._files.keys()
                return {}
            case "fenced":
                self._exposed.clear()
                return {}
            case "verify":
                return self._verify(asked)
            case "abandon":
                temporary = _path(asked, "temporary")
                if temporary in self._exposed:
                    raise UsageError("movers may be writing the file")
                self._require(temporary).drop()
                self._forget(temporary)
                return {}
            case other:
                raise UsageError(f"nothing is called {other!r}")

    def _prepare(self, temporary: bytes, size: int) -> dict[str, Any]:
        if temporary in self._files:
            raise UsageError("the file is prepared already")
        if len(self._files) >= FILES_MAX:
            raise UsageError(f"at most {FILES_MAX} files are prepared at once")
        mount = find_mount(self._folder)
        check_surroundings(mount)
        path = path_in_file_system(mount, self._folder, temporary)
        made = prepare(self._folder, temporary, size, self._tick)
        self._files[temporary] = made
        return {
            "digest": made.digest,
            "extents": [list(each[:3]) for each in made.extents],
            "path": os.fsdecode(path),
        }

    def _verify(self, asked: dict[str, Any]) -> dict[str, Any]:
        temporary, name = _path(asked, "temporary"), _path(asked, "name")
        attributes = _attributes(asked)
        made = self._require(temporary)
        if b"/" in name or name in (b"", b".", b".."):
            raise UsageError("a name is no path")
        if asked.get("digest") != made.digest:
            raise UsageError("the digest is none of this file")
        made.verify(_number(asked, "size"), _number(asked, "crc32c"), self._tick)
        lost = made.dress(attributes)
        made.name(name)
        self._forget(temporary)
        return {"attributes_lost": lost}

    def _require(self, temporary: bytes) -> PreparedFile:
        made = self._files.get(temporary)
        if made is None:
            raise UsageError("no such file is prepared")
        return made

    def _forget(self, temporary: bytes) -> None:
        del self._files[temporary]
        self._broken.discard(temporary)
        self._exposed.discard(temporary)


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Take a signal: that it came is told by the wake-up descriptor."""


# --- what a line says ----------------------------------------------------------------------------


def _document(line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("a line is no JSON") from error
    if not isinstance(asked, dict):
        raise UsageError("a line is no JSON object")
    return asked


def _path(asked: dict[str, Any], name: str) -> bytes:
    value = asked.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} has to be text")
    try:
        return os.fsencode(value)
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is no path") from error


def _number(asked: dict[str, Any], name: str, *, least: int = 0) -> int:
    value = asked.get(name)
    if type(value) is not int or not least <= value < 1 << 63:
        raise UsageError(f"{name} has to be a number")
    return value


def _attributes(asked: dict[str, Any]) -> Attributes:
    pairs = asked.get("xattrs", [])
    if not isinstance(pairs, list) or len(pairs) > XATTRS_MAX:
        raise UsageError("xattrs have to be a list of pairs")
    try:
        xattrs = tuple(
            (base64.b64decode(name, validate=True), base64.b64decode(value, validate=True))
            for name, value in pairs
        )
    except (TypeError, ValueError, binascii.Error) as error:
        raise UsageError("xattrs have to be a list of pairs in base64") from error
    least = -(1 << 63)
    return Attributes(
        mode=_number(asked, "mode") & 0o7777,
        uid=_number(asked, "uid", least=-1),
        gid=_number(asked, "gid", least=-1),
        mtime_ns=_number(asked, "mtime_ns", least=least),
        atime_ns=_number(asked, "atime_ns", least=least),
        xattrs=xattrs,
    )
