"""Paths of a map: their order, and what is no path.

Rows are sorted as if `/` were the lowest of all bytes.  So a directory is followed by everything below it and by
nothing else, and a page can be skipped by its first and last path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backplane.file_map.model import PATH_BYTES_MAX

ROOT: Final = b""


def path_key(path: bytes) -> bytes:
    """Return what rows are sorted by.  No path contains a zero byte."""
    return path.replace(b"/", b"\0")


def is_below(path: bytes, folder: bytes) -> bool:
    """Tell whether a path is inside a directory, however deep.  Everything but the root is below the root."""
    if not folder:
        return bool(path)
    return path.startswith(folder) and path[len(folder) : len(folder) + 1] == b"/"


def may_hold(first_path: bytes, last_path: bytes, folder: bytes) -> bool:
    """Tell whether a page with these first and last paths can have a row of this path, or below it."""
    if not folder:
        return True
    begin = path_key(folder)
    return path_key(last_path) >= begin and path_key(first_path) < begin + b"\x01"


def parent_of(path: bytes) -> bytes:
    """Return the directory that a path is in; that of the root is the root."""
    return path.rpartition(b"/")[0]


def path_defect(path: bytes) -> str:
    """Say why these bytes are no path of a map, or nothing."""
    if len(path) > PATH_BYTES_MAX:
        return f"a path of {len(path)} bytes; {PATH_BYTES_MAX} is the most"
    between = b"/" + path + b"/"
    if path and (b"//" in between or b"/./" in between or b"/../" in between or b"\0" in path):
        return "a path with a zero byte, or with a component that is empty, `.` or `..`"
    return ""


def has_defect(paths: Sequence[bytes]) -> bool:
    """Tell whether one of many paths is none: fast, because every row that is decoded is asked."""
    inside = paths[1:] if paths and not paths[0] else paths
    if not inside:
        return False
    text = b"/" + b"/\0/".join(inside) + b"/"
    if text.count(b"\0") != len(inside) - 1:
        return True
    return b"//" in text or b"/./" in text or b"/../" in text
