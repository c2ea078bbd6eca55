"""What `$Volume`, `$LogFile` and `$Bitmap` say: label, version, whether all was written, what is in use."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.file_map.model import ByteRun
from storage_node.mapping.ntfs_content import ClusterContent, note
from storage_node.mapping.ntfs_record import (
    VOLUME_INFORMATION,
    VOLUME_NAME,
    Attribute,
    without_fixups,
)
from storage_node.mapping.reader import DamagedError, UnsupportedError

LOG_FILE_RECORD: Final = 2
VOLUME_RECORD: Final = 3
BITMAP_RECORD: Final = 6
VERSIONS: Final = ((1, 1), (1, 2), (3, 0), (3, 1))
IS_DIRTY: Final = 1
RESTART_BYTES: Final = 4096
"""Of a page that says whether the log is in use; there are two, one behind the other."""
BITMAP_PIECE_BYTES: Final = 1024 * 1024

_INFORMATION: Final = struct.Struct("<8xBBH")
_RESTART: Final = struct.Struct("<4sHH8xIIH")
"""Magic, update sequence array (place, words), size of a page, size of a log page, place of the restart area."""
_AREA: Final = struct.Struct("<8xHHHH")
"""Clients, first free client, first client in use, flags."""
_NO_CLIENT: Final = 0xFFFF
_LOG_IS_CLEAN: Final = 2

_INTERESTING: Final = re.compile(rb"\xff+|[^\x00\xff]")


class VolumeFacts(NamedTuple):
    """What `$Volume` says."""

    label: str
    version: tuple[int, int]
    is_dirty: bool


def read_facts(attributes: list[Attribute]) -> VolumeFacts:
    """Read the attributes of `$Volume`; `UnsupportedError` if it is a version that nobody knows."""
    label = ""
    facts: VolumeFacts | None = None
    for found in attributes:
        if found.type == VOLUME_NAME and found.value:
            label = found.value.decode("utf-16-le", "replace")
        if found.type == VOLUME_INFORMATION and found.value:
            if len(found.value) < _INFORMATION.size:
                break
            major, minor, flags = _INFORMATION.unpack_from(found.value)
            facts = VolumeFacts("", (major, minor), bool(flags & IS_DIRTY))
    if facts is None:
        raise DamagedError("$Volume does not say which version it is")
    if facts.version not in VERSIONS:
        raise UnsupportedError(f"NTFS version {facts.version[0]}.{facts.version[1]}")
    return facts._replace(label=label)


def why_log_is_open(content: ClusterContent) -> str:
    """Say why `$LogFile` may hold what is not in its place yet ("" if all is).

    A log that nobody writes to is filled with ones, or its restart page says that it was closed.
    """
    pages = [
        content.read(at, RESTART_BYTES)
        for at in (0, RESTART_BYTES)
        if at + RESTART_BYTES <= content.size_bytes
    ]
    known = [page for page in pages if page[:4] in (b"RSTR", b"CHKD")]
    if not known:
        is_empty = all(page[:4] in (b"\xff" * 4, bytes(4)) for page in pages)
        return "" if is_empty else "its restart pages are damaged"
    for page in known:
        try:
            if _is_closed(page):
                continue
        except DamagedError as error:
            return error.reason
        return "it was not closed"
    return ""


def set_runs(
    content: ClusterContent, clusters: int, cluster_bytes: int, problems: list[str]
) -> Iterator[ByteRun]:
    """Yield what `$Bitmap` calls in use, ascending and disjoint; bits behind the last cluster mean nothing.

    What cannot be read is a problem, and all that it stands for is in use.
    """
    end = (clusters + 7) // 8
    open_first = open_end = 0
    for start in range(0, end, BITMAP_PIECE_BYTES):
        count = min(BITMAP_PIECE_BYTES, end - start)
        try:
            piece = content.read(start, count)
        except DamagedError as error:
            note(problems, f"$Bitmap is damaged: {error.reason}")
            piece = b"\xff" * count
        for first, last in _set_bits(piece):
            first, last = start * 8 + first, min(start * 8 + last, clusters)
            if first >= last:
                continue
            if first != open_end:
                if open_end:
                    yield open_first * cluster_bytes, open_end * cluster_bytes
                open_first = first
            open_end = last
    if open_end:
        yield open_first * cluster_bytes, open_end * cluster_bytes


def _is_closed(page: bytes) -> bool:
    magic, usa_at, words, page_bytes, _, area_at = _RESTART.unpack_from(page)
    if page_bytes != RESTART_BYTES and magic == b"RSTR":
        raise DamagedError("its restart page has an unknown size")
    whole = without_fixups(page, usa_at, words)
    if area_at + _AREA.size > len(whole):
        raise DamagedError("its restart page is damaged")
    _, _, in_use, flags = _AREA.unpack_from(whole, area_at)
    return in_use == _NO_CLIENT or bool(flags & _LOG_IS_CLEAN)


def _set_bits(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the stretches of set bits of each stretch of bytes; neighbours may touch."""
    for match in _INTERESTING.finditer(data):
        byte = data[match.start()]
        if byte == 0xFF:
            yield match.start() * 8, match.end() * 8
        else:
            base = match.start() * 8
            yield from ((base + first, base + end) for first, end in _BYTE_RUNS[byte])


def _runs_of_byte(byte: int) -> tuple[tuple[int, int], ...]:
    bits = [bit for bit in range(9) if (byte >> bit ^ byte << 1 >> bit) & 1]
    return tuple(zip(bits[::2], bits[1::2], strict=True))


_BYTE_RUNS: Final = tuple(_runs_of_byte(byte) for byte in range(256))
