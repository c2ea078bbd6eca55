"""The header of a map: what was mapped, how many pages there are, and whether they are all that there is.

    bytes    field
    0-3      magic `SDFH`
    4-5      version, 1
    6-7      0
    8-11     CRC32C of everything, computed with these four bytes as 0
    12-      JSON, ASCII, keys sorted, no spaces: every field of `MapHeader`, and no other

`digest` is the SHA-256 over all pages in their order, so a header names exactly one map.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from backplane.crc import crc32c
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.limits import PLACE_MAX
from backplane.file_map.model import FileSystem

FORMAT_VERSION: Final = 1
MAGIC: Final = b"SDFH"
HEADER_BYTES_MAX: Final = 256 * 1024
FILE_SYSTEMS_MAX: Final = 128
FEATURES_MAX: Final = 128
REASONS_MAX: Final = 100
TEXT_CHARACTERS_MAX: Final = 300
"""Of every text of a header; a longer reason is cut by who gives it (`short_reasons`)."""

_PREFIX: Final = struct.Struct(">4sHHI")
_CRC_AT: Final = 8
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class MapHeader(NamedTuple):
    """What is known of a map as a whole.

    `rows` counts paths, `files` regular files (a file with two names once), `file_bytes` the sum of their sizes.
    `is_complete` is whether every file and every allocated run is in the map; if not, `reasons` says why.  `reads` and
    `bytes_read` are what making it has cost.
    """

    format_version: int
    volume_bytes: int
    block_bytes: int
    file_systems: tuple[FileSystem, ...]
    rows: int
    files: int
    file_bytes: int
    row_pages: int
    run_pages: int
    is_complete: bool
    reasons: tuple[str, ...]
    reads: int
    bytes_read: int
    digest: str


def map_digest(pages: Iterable[bytes]) -> str:
    """Return the digest over all pages, rows first, then runs."""
    digest = hashlib.sha256()
    for page in pages:
        digest.update(page)
    return digest.hexdigest()


def short_reasons(reasons: Iterable[str]) -> tuple[str, ...]:
    """Return reasons as a header takes them: each once, none too long, not too many."""
    different = list(dict.fromkeys(reason[:TEXT_CHARACTERS_MAX] for reason in reasons if reason))
    if len(different) <= REASONS_MAX:
        return tuple(different)
    kept = different[: REASONS_MAX - 1]
    return (*kept, f"and {len(different) - len(kept)} more reasons")


def pack_header(header: MapHeader) -> bytes:
    """Return a header as bytes; `ValueError` if it cannot be one."""
    systems = [system._asdict() for system in header.file_systems]
    fields = header._asdict() | {"file_systems": systems}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    data = bytearray(_PREFIX.pack(MAGIC, FORMAT_VERSION, 0, 0) + text.encode("ascii"))
    struct.pack_into(">I", data, _CRC_AT, crc32c(data))
    packed = bytes(data)
    try:
        is_same = unpack_header(packed) == header
    except MapDamagedError as error:
        raise ValueError(str(error)) from error
    assert is_same, "a header does not come back as it went"
    return packed


def unpack_header(data: bytes) -> MapHeader:
    """Return the header that these bytes are; raises `MapDamagedError` for anything else."""
    if not _PREFIX.size < len(data) <= HEADER_BYTES_MAX:
        raise MapDamagedError(f"a header of a map with {len(data)} bytes")
    magic, version, zero, crc = _PREFIX.unpack_from(data)
    if magic != MAGIC or zero:
        raise MapDamagedError("no header of a map")
    without_crc = data[:_CRC_AT] + bytes(4) + data[_PREFIX.size :]
    if crc32c(without_crc) != crc:
        raise MapDamagedError("the header of a map has another checksum than it says")
    if version != FORMAT_VERSION:
        raise MapDamagedError(
            f"the header of a map in format {version}; format {FORMAT_VERSION} is known"
        )
    try:
        fields = json.loads(
            data[_PREFIX.size :], parse_float=_refuse_number, parse_constant=_refuse_number
        )
    except (ValueError, RecursionError) as error:
        raise MapDamagedError(f"the header of a map is no JSON: {error}") from error
    return _header(fields)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"a number that is no integer: {text}")


# --- fields ----------------------------------------------------------------------------------------


def _header(fields: object) -> MapHeader:
    taken = _Fields(fields, MapHeader)
    header = MapHeader(
        format_version=taken.number("format_version"),
        volume_bytes=taken.number("volume_bytes"),
        block_bytes=taken.number("block_bytes"),
        file_systems=tuple(map(_file_system, taken.items("file_systems", FILE_SYSTEMS_MAX))),
        rows=taken.number("rows"),
        files=taken.number("files"),
        file_bytes=taken.number("file_bytes", most=1 << 127),
        row_pages=taken.number("row_pages"),
        run_pages=taken.number("run_pages"),
        is_complete=taken.boolean("is_complete"),
        reasons=taken.texts("reasons", REASONS_MAX),
        reads=taken.number("reads"),
        bytes_read=taken.number("bytes_read"),
        digest=taken.text("digest"),
    )
    if header.format_version != FORMAT_VERSION or not header.block_bytes:
        raise MapDamagedError("the header of a map has no blocks, or another format inside")
    if header.files > header.rows or bool(header.rows) != bool(header.row_pages):
        raise MapDamagedError("the counts in the header of a map contradict each other")
    if bool(header.reasons) == header.is_complete:
        raise MapDamagedError("a map is complete, or has reasons why it is not")
    if not _DIGEST.fullmatch(header.digest):
        raise MapDamagedError("the digest in the header of a map is no SHA-256")
    return header


def _file_system(fields: object) -> FileSystem:
    taken = _Fields(fields, FileSystem)
    return FileSystem(
        kind=taken.text("kind"),
        prefix=taken.text("prefix"),
        label=taken.text("label"),
        uuid=taken.text("uuid"),
        block_bytes=taken.number("block_bytes"),
        size_bytes=taken.number("size_bytes"),
        state=taken.text("state"),
        place=taken.text("place"),
        features=taken.texts("features", FEATURES_MAX),
    )


class _Fields:
    """The fields of a JSON object, each of the type and within the bounds that are asked for."""

    def __init__(self, fields: object, cls: type[NamedTuple]) -> None:
        names: tuple[str, ...] = cls._fields
        if not isinstance(fields, dict) or fields.keys() != set(names):
            raise MapDamagedError(f"the header of a map has not the fields of {cls.__name__}")
        self._fields: Mapping[str, Any] = fields

    def number(self, name: str, *, most: int = PLACE_MAX) -> int:
        value = self._fields[name]
        if type(value) is not int or not 0 <= value <= most:
            raise MapDamagedError(f"{name} in the header of a map is no number up to {most}")
        return value

    def boolean(self, name: str) -> bool:
        value = self._fields[name]
        if not isinstance(value, bool):
            raise MapDamagedError(f"{name} in the header of a map is neither true nor false")
        return value

    def text(self, name: str) -> str:
        return self._checked_text(name, self._fields[name])

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        return tuple(self._checked_text(name, value) for value in self.items(name, most))

    def items(self, name: str, most: int) -> list[Any]:
        value = self._fields[name]
        if not isinstance(value, list) or len(value) > most:
            raise MapDamagedError(f"{name} in the header of a map is no list of up to {most}")
        return value

    @staticmethod
    def _checked_text(name: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX:
            raise MapDamagedError(
                f"{name} in the header of a map is no text of up to {TEXT_CHARACTERS_MAX} characters"
            )
        return value
