"""Small durable files: a new content replaces the old one as a whole, or not at all.

A failure here is final: what is on the disk is then unknown, an fsync is never retried, and the process has to end
(`StateError`).  Only a disk that is full is another matter, as long as there is a reserve (`state_reserve`): the old
file is still there, and the new one is written from its beginning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from backplane.errors import BackupError
from storage_node.state_reserve import NO_ROOM, StateReserve

STATE_FILE_BYTES_MAX: Final = 1024 * 1024


class StateError(BackupError):
    """The node's own state cannot be kept; it must stop."""

    kind = "state"


class DamagedStateError(BackupError):
    """A state file is there but cannot be understood."""

    kind = "state-damaged"


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, *, reserve: StateReserve | None = None) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_name(f".{path.name}.new")
    while not _write_new(temporary, content, reserve):
        pass  # Each time, the reserve has given; it does so a few times at most.
    try:
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error
    if reserve is not None:
        reserve.fill()


def _write_new(path: Path, content: bytes, reserve: StateReserve | None) -> bool:
    """Write a file that nobody knows yet; returns False if that is worth another attempt, in a file of its own."""
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in NO_ROOM and reserve is not None and reserve.give():
            return False
        raise StateError(f"cannot write {path}: {error.strerror}") from error
    return True


def write_json(
    path: Path, document: dict[str, Any], *, reserve: StateReserve | None = None
) -> None:
    """Replace a JSON file atomically and durably."""
    text = json.dumps(document, indent=1, sort_keys=True)
    write_file(path, text.encode() + b"\n", reserve=reserve)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object or raise `DamagedStateError`."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(STATE_FILE_BYTES_MAX))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedStateError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise DamagedStateError(f"{path} holds no JSON object")
    return document


def lasting_uuids(path: Path, names: Iterable[str], new_uuid: Callable[[], str]) -> dict[str, str]:
    """Return a UUID for each name, which it keeps as long as the file lives; raises `DamagedStateError`."""
    known: dict[str, str] = {}
    if path.exists():
        document = read_json(path)
        if not all(isinstance(value, str) for value in document.values()):
            raise DamagedStateError(f"{path} holds no identifiers")
        known = document
    missing = [name for name in names if name not in known]
    if missing:
        known |= {name: new_uuid() for name in missing}
        write_json(path, known)
    return known
