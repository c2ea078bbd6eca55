"""Rows between the parser and the builder.

A batch is written column by column, because `array` and slices go over a column in C:

    count of rows                                    4 bytes
    kind, mode, size, uid, gid, links, device, tree, inode, generation, 4 times
    lengths of path, target, error; number of the set of attributes; count of extents
    count of sets of attributes; how many each has; for all of them lengths of name and value
    for all extents      file_byte, volume_byte, byte_count, flags; with COMPRESSED what else there is
    paths, targets, errors, names and values of attributes

Numbers are in the machine's own order: both sides run on it.  A set of attributes that many rows have comes once; 0 is
the empty one, which does not come.  A column of times is 8 bytes wide, or 16 if one does not fit, or has nothing if
none of them is known; a byte before it says which.  Nothing is compressed, because nothing is kept.

The other side may be anybody.  What comes out of `decode_batch` are columns of the right types and of one length, as
many as there is room for in the payload; whether they make sense is asked later (checks.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import accumulate, chain, pairwise, repeat
from operator import or_
from typing import Any, Final, NamedTuple, TypeVar

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity
from backplane.file_map.row_columns import Attributes, Numbers, shared
from storage_node.mapping.limits import FRAME_BYTES_MAX

ALGORITHMS: Final = ("", "zlib", "lzo", "zstd", "lznt1")
"""By their number in a batch."""

_NUMBERS: Final = ("B", "H", "Q", "q", "q", "Q", "Q")
"""kind, mode, size, uid, gid, links, device."""
_COMPRESSED: Final = int(ExtentFlag.COMPRESSED)
_TIME_BYTES: Final = 16
_ENTRY_BYTES: Final = 8
"""Of an attribute, besides its name and its value."""
_UNKNOWN: Final = b"\x00"
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
    sets, set_of = shared(field.xattrs, ())
    entries = list(chain.from_iterable(sets))
    extents = list(chain.from_iterable(field.extents))
    return b"".join(
        (
            _pack("I", (len(rows),)),
            *(_pack(code, column) for code, column in zip(_NUMBERS, numbers, strict=True)),
            *(_pack("Q", column) for column in _columns(field.identity, 3)),
            *(_pack_times(t) for t in (field.mtime_ns, field.atime_ns, field.ctime_ns)),
            _pack_times(field.birth_ns),
            *(_lengths(column) for column in (field.path, field.target, errors)),
            _pack("I", set_of),
            _lengths(field.extents),
            _pack("I", (len(sets) - 1,)),
            _lengths(sets[1:]),
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
    if times and times[0] == NO_TIME == max(times):
        return _UNKNOWN
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


class Batch(NamedTuple):
    """Rows as columns, as they came."""

    paths: list[bytes]
    kinds: array[int]
    modes: array[int]
    sizes: array[int]
    uids: array[int]
    gids: array[int]
    links: array[int]
    devices: array[int]
    trees: array[int]
    inodes: array[int]
    generations: array[int]
    times: list[Numbers]
    """Modified, accessed, changed, born."""
    targets: list[bytes]
    errors: list[bytes]
    sets: list[Attributes]
    """The different sets of attributes, the first empty; `set_of` says which of them each row has."""
    set_of: array[int]
    extents_of: array[int]
    """How many extents each row has."""
    extents: list[array[int]]
    """file_byte, volume_byte, byte_count, flags of all extents."""
    units: list[array[int]]
    """stored_bytes, raw_bytes, raw_offset, and number of the algorithm of the compressed ones among them."""

    def rows(self) -> list[FileRow]:
        """Return the rows, one by one."""
        columns = (
            *(self.paths, self.kinds, self.sizes, self.modes, self.uids, self.gids),
            *(*self.times, self.links),
            map(_new_identity, zip(self.trees, self.inodes, self.generations, strict=True)),
            *(self.devices, self.targets),
            map(self.sets.__getitem__, self.set_of),
            _groups(self._extents(), self.extents_of),
            map(_text, self.errors),
        )
        return list(map(_new_row, zip(*columns, strict=True)))

    def _extents(self) -> list[FileExtent]:
        zeros = repeat(0)
        extents = list(map(_new_extent, zip(*self.extents, zeros, zeros, zeros, repeat(""))))
        places = (at for at, flags in enumerate(self.extents[3]) if flags & _COMPRESSED)
        for place, *unit, number in zip(places, *self.units, strict=True):
            extents[place] = _new_extent((*extents[place][:4], *unit, ALGORITHMS[number]))
        return extents


def decode_rows(payload: bytes) -> list[FileRow]:
    """Return the rows of a batch that anybody may have made, or raise `RowFormatError`."""
    return decode_batch(payload).rows()


def decode_batch(payload: bytes) -> Batch:
    """Return the columns of a batch that anybody may have made, or raise `RowFormatError`."""
    take = _Taker(payload)
    (count,) = take.numbers("I", 1)
    kinds, modes, sizes, uids, gids, links, devices = (
        take.numbers(code, count) for code in _NUMBERS
    )
    trees, inodes, generations = (take.numbers("Q", count) for _ in range(3))
    times = [take.times(count) for _ in range(4)]
    path_lengths, target_lengths, error_lengths, set_of, extents_of = (
        take.numbers("I", count) for _ in range(5)
    )
    (set_count,) = take.numbers("I", 1)
    entries_of = take.numbers("I", set_count)
    name_lengths, value_lengths = (take.numbers("I", sum(entries_of)) for _ in range(2))
    extents = [take.numbers(code, sum(extents_of)) for code in "QqQH"]
    units = _units(take, extents[3])
    paths, targets, errors = map(take.pieces, (path_lengths, target_lengths, error_lengths))
    entries = list(zip(take.pieces(name_lengths), take.pieces(value_lengths), strict=True))
    take.finish()
    return Batch(
        paths=paths,
        kinds=kinds,
        modes=modes,
        sizes=sizes,
        uids=uids,
        gids=gids,
        links=links,
        devices=devices,
        trees=trees,
        inodes=inodes,
        generations=generations,
        times=times,
        targets=targets,
        errors=errors,
        sets=_sets(entries, entries_of, set_of),
        set_of=set_of,
        extents_of=extents_of,
        extents=extents,
        units=units,
    )


def _units(take: _Taker, flags: array[int]) -> list[array[int]]:
    count = sum(map(is_compressed, flags)) if reduce(or_, flags, 0) & _COMPRESSED else 0
    units = [take.numbers("Q", count) for _ in range(3)]
    algorithms = take.numbers("B", count)
    if algorithms and max(algorithms) >= len(ALGORITHMS):
        raise RowFormatError("an algorithm that is not known")
    return [*units, algorithms]


def is_compressed(flags: int) -> bool:
    """Say whether there is a unit of an extent with these flags."""
    return flags & _COMPRESSED != 0


def _sets(
    entries: list[tuple[bytes, bytes]], entries_of: array[int], set_of: array[int]
) -> list[Attributes]:
    """Return the sets of attributes; refuse more of them in the rows than could have come one by one."""
    if not entries_of and not any(set_of):
        return [()]
    sets = [(), *_groups(entries, entries_of)]
    if set_of and max(set_of) >= len(sets):
        raise RowFormatError("a set of attributes that has not come")
    sizes = [sum(_ENTRY_BYTES + len(name) + len(value) for name, value in each) for each in sets]
    if sum(map(sizes.__getitem__, set_of)) > FRAME_BYTES_MAX:
        raise RowFormatError(f"more than {FRAME_BYTES_MAX} bytes of attributes in a batch")
    return sets


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
        if width == _UNKNOWN:
            return [NO_TIME] * count
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
        if not ends[-1]:
            return [b""] * (len(ends) - 1)
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
