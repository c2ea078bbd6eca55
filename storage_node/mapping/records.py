"""A row as one byte string that sorts by its path: what is sorted, put aside, and made into pages.

    key         the path; `/` as 1, and 1 and 2 in names as 2 1 and 2 2
    0           which no key has, so that a directory comes before what is below it
    number      8 bytes, big-endian: rows with the same path stay in the order of their coming
    fixed       numbers of the row, weight and lengths of what follows
    target, error, attributes, extents (4 numbers each), units of the compressed ones among them (4 numbers each)

Numbers but the first are in the machine's own order: nobody else reads this.  A batch of rows becomes records, and
records become the columns of a page, without a look at single numbers: they are copied from one stride to another.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, compress, pairwise, repeat
from operator import add, floordiv, mod, mul
from typing import Any, Final, NamedTuple

from backplane.file_map.limits import SECOND_NS
from backplane.file_map.model import NO_TIME, FileExtent, FileRow, Identity
from backplane.file_map.packed import PART_WEIGHT, ROW_WEIGHT, attributes_weight
from backplane.file_map.row_columns import Attributes, Numbers, RowColumns, shared, split_times
from storage_node.mapping.row_codec import (
    ALGORITHMS,
    Batch,
    decode_batch,
    encode_rows,
    is_compressed,
)

Part = tuple[bytes, bytes, bytes]
"""A record in three: key, 0, and everything else."""

_WORDS: Final = 21
_FIXED: Final = 8 * _WORDS
_HEAD: Final = slice(8, 32)
"""Size, links, kind and weight: what is looked at of every row when rows are in order."""
_HEAD_WORDS: Final = 3

# Words of 8 bytes ...
_NUMBER, _SIZE, _LINKS = 0, 1, 2
_DEVICE, _TREE, _INODE, _GENERATION, _UID, _GID, _TIMES = 7, 8, 9, 10, 11, 12, 13
# ... and words of 4 bytes, in the same count of bytes.
_KIND, _WEIGHT, _MODE, _TARGET, _ERROR, _ATTRIBUTES, _EXTENTS, _UNITS = range(6, 14)

_EXTENT_WORDS: Final = 4
_EXTENT_BYTES: Final = 8 * _EXTENT_WORDS

_TO_KEY: Final = bytes.maketrans(b"/", b"\1")
_TO_PATH: Final = bytes.maketrans(b"\1", b"/")
_ESCAPED: Final = re.compile(b"\2([\1\2])|\1")


# --- keys ------------------------------------------------------------------------------------------


def key_of(path: bytes) -> bytes:
    """Return what a record with this path begins with."""
    return path.replace(b"\2", b"\2\2").replace(b"\1", b"\2\1").translate(_TO_KEY)


def path_of(key: bytes) -> bytes:
    """Return the path with this key."""
    return _ESCAPED.sub(lambda found: found[1] or b"/", key)


def _keys(paths: Sequence[bytes]) -> list[bytes]:
    text = b"\0".join(paths)
    if b"\1" in text or b"\2" in text:
        return list(map(key_of, paths))
    return text.translate(_TO_KEY).split(b"\0")


def _paths(keys: Sequence[bytes]) -> list[bytes]:
    text = b"\0".join(keys)
    if b"\2" in text:
        return list(map(path_of, keys))
    return text.translate(_TO_PATH).split(b"\0")


# --- batch -> records ------------------------------------------------------------------------------


def records_of(batch: Batch, first: int) -> list[bytes]:
    """Return the records of a batch that was checked; `first` is the number of its first row."""
    count = len(batch.paths)
    if not count:
        return []
    lengths = [array("I", map(len, strings)) for strings in (batch.targets, batch.errors)]
    blobs = list(map(_attributes_blob, batch.sets))
    units_of = _units_of(batch)
    fixed = bytearray(_FIXED * count)
    large = memoryview(fixed).cast("Q")
    numbers = array("Q", range(first, first + count))
    if sys.byteorder == "little":
        numbers.byteswap()
    for at, column in (
        (_NUMBER, numbers),
        (_SIZE, batch.sizes),
        (_LINKS, batch.links),
        (_DEVICE, batch.devices),
        (_TREE, batch.trees),
        (_INODE, batch.inodes),
        (_GENERATION, batch.generations),
        (_UID, batch.uids),
        (_GID, batch.gids),
        *enumerate(_split_all(batch.times), _TIMES),
    ):
        large[at::_WORDS] = memoryview(column).cast("B").cast("Q")
    small = memoryview(fixed).cast("I")
    for at, values in (
        (_KIND, batch.kinds),
        (_WEIGHT, _weights(batch)),
        (_MODE, batch.modes),
        (_TARGET, lengths[0]),
        (_ERROR, lengths[1]),
        (_ATTRIBUTES, [len(blobs[number]) for number in batch.set_of] if blobs[1:] else None),
        (_EXTENTS, batch.extents_of),
        (_UNITS, units_of),
    ):
        if values is not None:
            small[at :: 2 * _WORDS] = memoryview(array("I", values))
    parts: list[Iterable[bytes]] = [_keys(batch.paths), repeat(b"\0"), _cut(fixed, _FIXED)]
    parts += [strings for strings in (batch.targets, batch.errors) if any(strings)]
    if blobs[1:]:
        parts.append(map(blobs.__getitem__, batch.set_of))
    if batch.extents[0]:
        parts.append(_cut_many(_interleaved(batch.extents), batch.extents_of))
    if units_of is not None:
        parts.append(_cut_many(_interleaved(batch.units), units_of))
    return list(map(b"".join, zip(*parts, strict=False)))


def _weights(batch: Batch) -> Iterable[int]:
    weights: Iterable[int] = map(add, map(len, batch.paths), repeat(ROW_WEIGHT))
    if batch.extents[0]:
        weights = map(add, weights, map(mul, batch.extents_of, repeat(PART_WEIGHT)))
    if any(batch.targets):
        weights = map(add, weights, map(len, batch.targets))
    if any(batch.errors):
        weights = map(add, weights, (len(_text(error)) for error in batch.errors))
    if batch.sets[1:]:
        of_sets = list(map(attributes_weight, batch.sets))
        weights = map(add, weights, map(of_sets.__getitem__, batch.set_of))
    return weights


def _split_all(times: Sequence[Numbers]) -> Iterator[array[int]]:
    """Yield seconds and nanoseconds of all times; many files have the same time twice."""
    done: dict[bytes, tuple[array[int], array[int]]] = {}
    for column in times:
        if not isinstance(column, array):
            seconds, rest = split_times(column)
            yield from (array("q", seconds), array("q", rest))
            continue
        known = column.tobytes()
        if known not in done:
            done[known] = (
                array("q", map(floordiv, column, repeat(SECOND_NS))),
                array("q", map(mod, column, repeat(SECOND_NS))),
            )
        yield from done[known]


def _units_of(batch: Batch) -> list[int] | None:
    """Return how many compressed extents each row has; nothing if there are none at all."""
    if not batch.units[0]:
        return None
    before = list(accumulate(map(is_compressed, batch.extents[3]), initial=0))
    ends = accumulate(batch.extents_of, initial=0)
    return [before[end] - before[begin] for begin, end in pairwise(ends)]


def _interleaved(columns: Sequence[array[int]]) -> bytes:
    """Return four columns as records of four numbers."""
    words = bytearray(_EXTENT_BYTES * len(columns[0]))
    view = memoryview(words).cast("Q")
    for at, column in enumerate(columns):
        whole = column if column.itemsize == 8 else array("Q", column)
        view[at::_EXTENT_WORDS] = memoryview(whole).cast("B").cast("Q")
    return bytes(words)


def _cut(data: bytes | bytearray, count: int) -> list[bytes]:
    whole = bytes(data)
    return [whole[at : at + count] for at in range(0, len(whole), count)]


def _cut_many(data: bytes, counts: Iterable[int]) -> list[bytes]:
    ends = accumulate(map(mul, counts, repeat(_EXTENT_BYTES)), initial=0)
    return [data[begin:end] for begin, end in pairwise(ends)]


def _attributes_blob(attributes: Attributes) -> bytes:
    if not attributes:
        return b""
    lengths = array("I", [len(attributes)])
    for name, value in attributes:
        lengths.extend((len(name), len(value)))
    return lengths.tobytes() + b"".join(map(b"".join, attributes))


def _attributes(blob: bytes) -> Attributes:
    if not blob:
        return ()
    count = 2 * int.from_bytes(blob[:4], sys.byteorder)
    lengths = array("I", blob[4 : 4 + 4 * count])
    ends = accumulate(lengths, initial=4 + 4 * count)
    strings = iter([blob[begin:end] for begin, end in pairwise(ends)])
    return tuple(zip(strings, strings, strict=True))


# --- records -> columns of a page ------------------------------------------------------------------


def part_of(record: bytes) -> Part:
    """Return a record in three."""
    return record.partition(b"\0")


class Heads(NamedTuple):
    """What is looked at of every row when rows are in order."""

    kinds: Numbers
    sizes: Numbers
    links: Numbers
    weights: Numbers


def heads_of(parts: Sequence[Part]) -> Heads:
    """Return these columns of rows."""
    data = b"".join([rest[_HEAD] for _, _, rest in parts])
    large = memoryview(data).cast("Q")
    small = memoryview(data).cast("I")
    return Heads(
        kinds=small[4 :: 2 * _HEAD_WORDS].tolist(),
        sizes=large[0::_HEAD_WORDS].tolist(),
        links=large[1::_HEAD_WORDS].tolist(),
        weights=small[5 :: 2 * _HEAD_WORDS].tolist(),
    )


def columns_of_parts(parts: Sequence[Part]) -> RowColumns:
    """Return rows as a page has them."""
    keys, _, rests = zip(*parts, strict=True)
    fixed = b"".join([rest[:_FIXED] for rest in rests])
    large = memoryview(fixed).cast("Q")
    signed = memoryview(fixed).cast("q")
    small = memoryview(fixed).cast("I")
    step = 2 * _WORDS
    targets, errors, blobs, tails = _strings(
        rests, *(small[at::step].tolist() for at in (_TARGET, _ERROR, _ATTRIBUTES))
    )
    attributes, attributes_of = _shared_attributes(blobs)
    times = [signed[at::_WORDS].tolist() for at in range(_TIMES, _TIMES + 8)]
    extents_of = small[_EXTENTS::step].tolist()
    extents, algorithms = _extents(tails, extents_of, small[_UNITS::step].tolist())
    return RowColumns(
        paths=_paths(keys),
        kinds=small[_KIND::step].tolist(),
        sizes=large[_SIZE::_WORDS].tolist(),
        modes=small[_MODE::step].tolist(),
        uids=signed[_UID::_WORDS].tolist(),
        gids=signed[_GID::_WORDS].tolist(),
        times=list(zip(times[::2], times[1::2], strict=True)),
        links=large[_LINKS::_WORDS].tolist(),
        trees=large[_TREE::_WORDS].tolist(),
        inodes=large[_INODE::_WORDS].tolist(),
        generations=large[_GENERATION::_WORDS].tolist(),
        devices=large[_DEVICE::_WORDS].tolist(),
        targets=targets,
        attributes=attributes,
        attributes_of=attributes_of,
        errors=list(map(_text, errors)) if any(errors) else [""] * len(errors),
        extents_of=extents_of,
        extents=extents,
        algorithms=algorithms,
    )


def _strings(rests: Sequence[bytes], *columns: list[int]) -> list[list[bytes]]:
    """Return what follows the fixed part: one list for each column of lengths, and what is behind."""
    found = []
    tails = [rest[_FIXED:] for rest in rests]
    for lengths in columns:
        if not any(lengths):
            found.append([b""] * len(lengths))
            continue
        found.append([tail[:count] for tail, count in zip(tails, lengths, strict=True)])
        tails = [tail[count:] for tail, count in zip(tails, lengths, strict=True)]
    return [*found, tails]


def _shared_attributes(blobs: Sequence[bytes]) -> tuple[list[Attributes], Numbers]:
    if not any(blobs):
        return [()], bytes(len(blobs))
    different, places = shared(blobs, b"")
    return list(map(_attributes, different)), places


def _extents(
    tails: list[bytes], extents_of: list[int], units_of: list[int]
) -> tuple[list[Numbers], Sequence[str]]:
    """Return the seven columns of numbers of extents, and their algorithms."""
    if not any(units_of):
        columns = _columns(tails)
        return [*columns, *[bytes(len(columns[0]))] * 3], ()
    ends = [_EXTENT_BYTES * count for count in extents_of]
    columns = _columns([tail[:end] for tail, end in zip(tails, ends, strict=True)])
    units = _columns([tail[end:] for tail, end in zip(tails, ends, strict=True)])
    count = len(columns[0])
    numbers = [[0] * count for _ in range(3)]
    algorithms = [""] * count
    places = compress(range(count), map(is_compressed, columns[3]))
    for at, *unit, algorithm in zip(places, *units, strict=True):
        for column, value in zip(numbers, unit, strict=True):
            column[at] = value
        algorithms[at] = ALGORITHMS[algorithm]
    return [*columns, *numbers], algorithms


def _columns(pieces: Sequence[bytes]) -> list[list[int]]:
    data = b"".join(pieces)
    if not data:
        return [[]] * _EXTENT_WORDS
    words = memoryview(data).cast("q")
    return [words[at::_EXTENT_WORDS].tolist() for at in range(_EXTENT_WORDS)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- single rows -----------------------------------------------------------------------------------


def row_of(part: Part) -> FileRow:
    """Return a record as a row."""
    columns: Any = columns_of_parts([part])
    extents = zip(*columns.extents, columns.algorithms or repeat(""), strict=False)
    return FileRow(
        path=columns.paths[0],
        kind=columns.kinds[0],
        size=columns.sizes[0],
        mode=columns.modes[0],
        uid=columns.uids[0],
        gid=columns.gids[0],
        **dict(zip(_TIME_FIELDS, map(_time, columns.times), strict=True)),
        links=columns.links[0],
        identity=Identity(columns.trees[0], columns.inodes[0], columns.generations[0]),
        device=columns.devices[0],
        target=columns.targets[0],
        xattrs=columns.attributes[columns.attributes_of[0]],
        extents=tuple(FileExtent(*extent) for extent in extents),
        error=columns.errors[0],
    )


_TIME_FIELDS: Final = ("mtime_ns", "atime_ns", "ctime_ns", "birth_ns")


def _time(column: tuple[Numbers, Numbers]) -> int:
    (seconds,), (rest,) = column
    return NO_TIME if rest < 0 else seconds * SECOND_NS + rest


def part_of_row(row: FileRow) -> Part:
    """Return a row that was checked as a record."""
    [record] = records_of(decode_batch(encode_rows([row])), 0)
    return part_of(record)
