"""Rows of maps for tests: one at a time, or a tree as ordinary as those on people's disks."""

from __future__ import annotations

import random
from typing import Any

from backplane.file_map.model import FileExtent, FileRow, Identity, Kind
from backplane.file_map.paths import path_key

BLOCK = 4096
_SECOND = 1_000_000_000


def make_row(path: bytes, kind: Kind = Kind.FILE, **fields: Any) -> FileRow:
    """Return a row with unremarkable values for whatever is not given."""
    row = FileRow(
        path=path,
        kind=int(kind),
        size=0,
        mode=0o755 if kind == Kind.DIRECTORY else 0o644,
        uid=1000,
        gid=1000,
        mtime_ns=1_700_000_000 * _SECOND,
        atime_ns=1_700_000_000 * _SECOND,
        ctime_ns=1_700_000_000 * _SECOND,
        birth_ns=1_700_000_000 * _SECOND,
        links=1,
        identity=Identity(0, 12, 0),
    )
    return row._replace(**fields)


def make_file(path: bytes, *extents: FileExtent, **fields: Any) -> FileRow:
    """Return a regular file with these extents, as long as they are."""
    size = max((extent.file_byte + extent.byte_count for extent in extents), default=0)
    return make_row(path, extents=extents, **({"size": size} | fields))


def ordinary_tree(files: int, seed: int = 1) -> list[FileRow]:
    """Return a sorted tree of that many files, in directories of about a dozen."""
    chance = random.Random(seed)
    rows = [make_row(b"", Kind.DIRECTORY, identity=Identity(0, 2, 0))]
    place = 1024 * BLOCK
    folder = b"srv"
    for number in range(files):
        if number % 12 == 0:
            parent = folder if chance.random() < 0.3 else b"srv"
            folder = b"%s/%s-%d" % (parent, _word(chance), number)
            rows.append(_tree_row(chance, folder, Kind.DIRECTORY, 12 + len(rows)))
        size = int(chance.lognormvariate(9, 2))
        stored = -(-size // BLOCK) * BLOCK
        extents = (FileExtent(0, place, stored),) if stored else ()
        place += stored + BLOCK * chance.randrange(3)
        row = _tree_row(
            chance,
            b"%s/%s_%d.%s" % (folder, _word(chance), number, _word(chance)[:3]),
            Kind.FILE,
            12 + len(rows),
        )
        rows.append(row._replace(size=size, extents=extents))
    rows.insert(1, make_row(b"srv", Kind.DIRECTORY, identity=Identity(0, 11, 0)))
    return sorted(rows, key=lambda row: path_key(row.path))


def _word(chance: random.Random) -> bytes:
    return bytes(chance.choices(b"aeioulnrstdm", k=chance.randint(3, 9)))


def _tree_row(chance: random.Random, path: bytes, kind: Kind, inode: int) -> FileRow:
    written = chance.randrange(1_600_000_000, 1_700_000_000) * _SECOND + chance.randrange(_SECOND)
    created = written - chance.randrange(3) * chance.randrange(_SECOND)
    return make_row(
        path,
        kind,
        mtime_ns=written,
        atime_ns=written + chance.randrange(1_000_000) * _SECOND,
        ctime_ns=written,
        birth_ns=created,
        identity=Identity(0, inode, chance.getrandbits(32)),
    )
