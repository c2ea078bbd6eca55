"""Rows between the parser and the builder, and between the builder and the file where it puts sorted rows aside.

A batch is written column by column, because `array` and slices go over a column in C:

    count of rows                                    4 bytes
    kind, mode, size, uid, gid, links, device, tree, inode, generation, 4 times
    lengths of path, target, error; counts of attributes and extents
    for all attributes   lengths of name and value
    for all extents      file_byte, volume_byte, byte_count, flags; with COMPRESSED what else there is
    paths, targets, errors, names and values of attributes

Numbers are in the machine's own order: both sides run on it.  A column of times is 8 bytes wide, or 16 if one does not
fit; a byte before it says which.  Nothing is compressed, because nothing is kept.

The other side may be anybody.  What comes out of `decode_rows` are rows of the right types, as many as there is room
for in the payload; whether they make sense is asked later (checks.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, Final, TypeVar

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Identity

ALGORITHMS: Final = ("", "zlib", "lzo", "zstd", "lznt1")
"""By their number in a batch."""

_NUMBERS: Final = ("B", "H", "Q", "q", "q", "Q", "Q")
"""kind, mode, size, uid, gid, links, device."""
_COMPRESSED: Final = int(ExtentFlag.COMPRESSED)
_TIME_BYTES: Final = 16
_NARROW: Final = b"\x08"
_WIDE: Final = b"\x10"

T = TypeVar("T")

_new_row: Final = partial(tuple.__new__, FileRow)
_new_extent: Final = partial(tuple.__new__, FileExtent)
_new_identity: Final = partial(tuple.__new__, Identity)


class RowFormatError(Exception):
    """The bytes are no batch of rows."""


# --- rows -> bytes -------------------------------------------------------------------------------


def encode_rows(rows: Sequence[FileRow]) -> bytes:
    """Return a batch; `OverflowError` for a number that no row may have, `ValueError` for an unknown algorithm."""
    # Every field is a column here.
    field: Any = FileRow._make(_columns(rows, len(FileRow._fields)))
    numbers = (field.kind, field.mode, field.size, field.uid, field.gid, field.links, field.device)
    errors = [error.encode("utf-8", "surrogatepass") if error else b"" for error in field.error]
    entries = list(chain.from_iterable(field.xattrs))
    extents = list(chain.from_iterable(field.extents))
    return b"".join(
        (
            _pack("I", (len(rows),)),
            *(_pack(code, column) for code, column in zip(_NUMBERS, numbers, strict=True)),
            *(_pack("Q", column) for column in _columns(field.identity, 3)),
            *(_pack_times(t) for t in (field.mtime_ns, field.atime_ns, field.ctime_ns)),
            _pack_times(field.birth_ns),
            *(_lengths(column) for column in (field.path, field.target, errors)),
            *(_lengths(column) for column in (field.xattrs, field.extents)),
            *(_lengths(column) for column in _columns(entries, 2)),
            *_extent_columns(extents),
            *chain(field.path, field.target, errors),
            *chain.from_iterable(_columns(entries, 2)),
        )
    )


def _pack(code: str, numbers: Iterable[int]) -> bytes:
    return array(code, numbers).tobytes()


def _lengths(column: Iterable[Sequence[object]]) -> bytes:
    return array("I", map(len, column)).tobytes()


def _columns(tuples: Sequence[tuple[Any, ...]], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*tuples, strict=True)) if tuples else [()] * width


def _pack_times(times: Sequence[int]) -> bytes:
    try:
        return _NARROW + _pack("q", times)
    except OverflowError:
        return _WIDE + b"".join(time.to_bytes(_TIME_BYTES, "little", signed=True) for time in times)


def _extent_columns(extents: Sequence[FileExtent]) -> Iterator[bytes]:
    columns = _columns(extents, 8)
    for code, column in zip("QqQH", columns[:4], strict=True):
        yield _pack(code, column)
    packed = [extent for extent in extents if extent.flags & _COMPRESSED]
    columns = _columns(packed, 8)
    for column in columns[4:7]:
        yield _pack("Q", column)
    yield _pack("B", map(ALGORITHMS.index, columns[7]))


# --- bytes -> rows -------------------------------------------------------------------------------


def decode_rows(payload: bytes) -> list[FileRow]:
    """Return the rows of a batch that anybody may have made, or raise `RowFormatError`."""
    take = _Taker(payload)
    (count,) = take.numbers("I", 1)
    kinds, modes, sizes, uids, gids, links, devices = (
        take.numbers(code, count) for code in _NUMBERS
    )
    identities = [take.numbers("Q", count) for _ in range(3)]
    times = [take.times(count) for _ in range(4)]
    path_lengths, target_lengths, error_lengths, xattr_counts, extent_counts = (
        take.numbers("I", count) for _ in range(5)
    )
    entry_count, extent_count = sum(xattr_counts), sum(extent_counts)
    name_lengths, value_lengths = (take.numbers("I", entry_count) for _ in range(2))
    extents = _extents(take, extent_count)
    paths, targets, errors = map(take.pieces, (path_lengths, target_lengths, error_lengths))
    entries = list(zip(take.pieces(name_lengths), take.pieces(value_lengths), strict=True))
    take.finish()
    columns = (
        *(paths, kinds, sizes, modes, uids, gids, *times, links),
        map(_new_identity, zip(*identities, strict=True)),
        *(devices, targets),
        _groups(entries, xattr_counts),
        _groups(extents, extent_counts),
        map(_text, errors),
    )
    return list(map(_new_row, zip(*columns, strict=True)))


def _extents(take: _Taker, count: int) -> list[FileExtent]:
    columns = [take.numbers(code, count) for code in "QqQH"]
    packed = [place for place, flags in enumerate(columns[3]) if flags & _COMPRESSED]
    units = [take.numbers("Q", len(packed)) for _ in range(3)]
    numbers = take.numbers("B", len(packed))
    if numbers and max(numbers) >= len(ALGORITHMS):
        raise RowFormatError("an algorithm that is not known")
    zeros = repeat(0)
    extents = list(map(_new_extent, zip(*columns, zeros, zeros, zeros, repeat(""))))
    for place, *unit, number in zip(packed, *units, numbers, strict=True):
        extents[place] = _new_extent((*extents[place][:4], *unit, ALGORITHMS[number]))
    return extents


class _Taker:
    """Takes columns from the beginning of a payload, and never more than there is."""

    def __init__(self, payload: bytes) -> None:
        self._payload = memoryview(payload)
        self._at = 0

    def next(self, count: int) -> memoryview:
        """Return the next bytes."""
        piece = self._payload[self._at : self._at + count]
        if len(piece) != count:
            raise RowFormatError("a batch that is shorter than what it says of itself")
        self._at += count
        return piece

    def numbers(self, code: str, count: int) -> array[int]:
        """Return a column."""
        column = array(code)
        column.frombytes(self.next(count * column.itemsize))
        return column

    def times(self, count: int) -> Sequence[int]:
        """Return a column of times."""
        width = bytes(self.next(1))
        if width == _NARROW:
            return self.numbers("q", count)
        if width != _WIDE:
            raise RowFormatError("a column of times of another width")
        data = self.next(count * _TIME_BYTES)
        places = range(0, len(data), _TIME_BYTES)
        return [int.from_bytes(data[at : at + _TIME_BYTES], "little", signed=True) for at in places]

    def pieces(self, lengths: Iterable[int]) -> list[bytes]:
        """Return byte strings of these lengths."""
        ends = list(accumulate(lengths, initial=0))
        data = bytes(self.next(ends[-1]))
        return [data[begin:end] for begin, end in pairwise(ends)]

    def finish(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self._at != len(self._payload):
            raise RowFormatError("a batch that is longer than what it says of itself")


def _groups(elements: Sequence[T], counts: Iterable[int]) -> Iterator[tuple[T, ...]]:
    return (tuple(elements[begin:end]) for begin, end in pairwise(accumulate(counts, initial=0)))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace") if data else ""
