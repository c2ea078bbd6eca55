"""What a parser tells its builder: frames in this order, each kind decoded by this file and by nobody else.

    SANDBOXED     what could not be given up: before a byte of the volume is read
    ROWS ...      batches of rows (row_codec.py)
    RUNS ...      allocated runs, `QQ` each in the machine's order, ascending
    FACTS         the file systems and what was kept whole: msgpack
    REASONS ...   why the map is incomplete, one each
    END
    or, instead of the rest, one of the failures with a reason

The builder believes nothing of it; see checks.py and claims.py for what it asks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import chain

from backplane.file_map.model import ByteRun, FileRow, FileSystem
from backplane.wire.packing import PackingError, pack, unpack
from storage_node.mapping.channel import Channel
from storage_node.mapping.limits import (
    BATCH_EXTENTS,
    BATCH_ROWS,
    FILE_SYSTEMS_MAX,
    REASONS_MAX,
    RUNS_PER_FRAME,
    TEXT_BYTES_MAX,
)
from storage_node.mapping.row_codec import RowFormatError, encode_rows


class UnbelievableError(Exception):
    """What the parser says cannot be a map of this volume, whatever is left out of it."""


class Say(IntEnum):
    """Kinds of frames."""

    SANDBOXED = 1
    ROWS = 2
    RUNS = 3
    FACTS = 4
    REASONS = 5
    END = 6
    UNSUPPORTED = 7
    DAMAGED = 8
    NOTHING_KNOWN = 9
    NO_MEMORY = 10
    CRASHED = 11


class Teller:
    """The parser's side."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rows: list[FileRow] = []
        self._extents = 0

    def say(self, kind: Say, text: str = "") -> None:
        """Send a frame with nothing but a text."""
        self._channel.send(kind, text[:TEXT_BYTES_MAX].encode("utf-8", "replace"))

    def rows(self, rows: Iterable[FileRow]) -> None:
        """Send rows, in batches."""
        for row in rows:
            self._rows.append(row)
            self._extents += len(row.extents)
            if len(self._rows) == BATCH_ROWS or self._extents >= BATCH_EXTENTS:
                self._flush()
        self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._channel.send(Say.ROWS, encode_rows(self._rows))
        self._rows = []
        self._extents = 0

    def runs(self, runs: Iterable[ByteRun]) -> None:
        """Send allocated runs."""
        batch: list[ByteRun] = []
        for run in runs:
            batch.append(run)
            if len(batch) == RUNS_PER_FRAME:
                self._channel.send(Say.RUNS, encode_runs(batch))
                batch = []
        self._channel.send(Say.RUNS, encode_runs(batch))

    def facts(self, file_systems: Sequence[FileSystem], notes: Sequence[str]) -> None:
        """Send what is known as a whole."""
        systems = [_packable(system) for system in file_systems]
        self._channel.send(Say.FACTS, pack([systems, _packable(notes)]))


def _packable(value: object) -> object:
    """Return lists for tuples, and texts without lone surrogates, which have no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, tuple | list):
        return [_packable(element) for element in value]
    return value


def encode_runs(runs: Iterable[ByteRun]) -> bytes:
    """Return runs as bytes."""
    return array("Q", chain.from_iterable(runs)).tobytes()


def decode_runs(payload: bytes) -> list[ByteRun]:
    """Return the runs of a payload that anybody may have made, or raise `RowFormatError`."""
    if len(payload) % 16:
        raise RowFormatError("no whole number of runs")
    numbers = array("Q", payload)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def decode_text(payload: bytes) -> str:
    """Return a text of bounded length without what could forge a line of a log."""
    text = payload.decode("utf-8", "replace")[:TEXT_BYTES_MAX]
    return "".join(c if c.isprintable() else "?" for c in text)


def decode_facts(payload: bytes) -> tuple[list[FileSystem], list[str]]:
    """Return the file systems and notes of a payload that anybody may have made, or raise `RowFormatError`."""
    try:
        systems, notes = unpack(payload)
        found = [_file_system(fields) for fields in systems]
        texts = [_text(note) for note in notes]
    except (PackingError, TypeError, ValueError) as error:
        raise RowFormatError(f"no facts of file systems: {error}") from error
    if len(found) > FILE_SYSTEMS_MAX or len(texts) > REASONS_MAX:
        raise RowFormatError(f"{len(found)} file systems and {len(texts)} notes")
    return found, texts


def _file_system(fields: Sequence[object]) -> FileSystem:
    kind, prefix, label, uuid, block_bytes, size_bytes, state, place, features = fields
    if not isinstance(features, list):
        raise TypeError("features")
    return FileSystem(
        kind=_text(kind),
        prefix=_text(prefix),
        label=_text(label),
        uuid=_text(uuid),
        block_bytes=_number(block_bytes),
        size_bytes=_number(size_bytes),
        state=_text(state),
        place=_text(place),
        features=tuple(_text(feature) for feature in features),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return decode_text(value.encode("utf-8", "replace"))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r} is no number of bytes")
    return value
