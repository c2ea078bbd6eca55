"""How small a packed map is, and how fast it is packed, read and asked: a made-up tree, or one of this machine.

    python tests/benchmarks/bench_file_map.py [--files 100000] [--tree /usr]

CPU-seconds of one core.  The extents of `--tree` are invented (a file lies behind the one before); the rest is real.
"""

from __future__ import annotations

import argparse
import gc
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from backplane.file_map.changes import diff
from backplane.file_map.kept import KeptRuns
from backplane.file_map.listing import find
from backplane.file_map.model import FileExtent, FileRow, Identity, Kind
from backplane.file_map.packed import join_rows, pack_rows
from backplane.file_map.paths import path_key
from backplane.file_map.pattern import Pattern
from backplane.file_map.selection import Selection
from backplane.testing.file_rows import BLOCK, ordinary_tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--tree", type=Path, help="a directory, read with lstat")
    arguments = parser.parse_args()
    if arguments.tree:
        rows = sorted(tree_rows(arguments.tree, arguments.files), key=lambda r: path_key(r.path))
    else:
        rows = ordinary_tree(arguments.files)
    gc.collect()
    gc.freeze()  # the rows that are packed here would not be there elsewhere
    pages: list[bytes] = []
    packing = seconds(lambda: pages.extend(pack_rows(rows)))
    selection = Selection(("**/*a*/**",), ("*.iso",))
    collector = KeptRuns(selection)
    tasks: dict[str, Callable[[], object]] = {
        "read": lambda: sum(1 for _ in join_rows(pages)),
        "read and find": lambda: sum(1 for _ in find(join_rows(pages), Pattern("*.iso"))),
        "read and choose": lambda: [collector.add(row) for row in join_rows(pages)],
        "read two and compare": lambda: sum(1 for _ in diff(join_rows(pages), join_rows(pages))),
    }
    print(
        f"{len(rows)} rows, {len(pages)} pages, {sum(map(len, pages)) / len(rows):.1f} bytes a row"
    )
    print(f"{'pack':<22}{len(rows) / packing:>10.0f} rows/s")
    for name, task in tasks.items():
        print(f"{name:<22}{len(rows) / seconds(task):>10.0f} rows/s")
    return 0


def seconds(task: Callable[[], object]) -> float:
    started = time.process_time()
    task()
    return time.process_time() - started


def tree_rows(top: Path, most: int) -> Iterator[FileRow]:
    place, count = 1024 * BLOCK, 0
    for folder, folders, names in os.walk(os.fsencode(top)):
        for name in (*folders, *names):
            if count >= most:
                return
            path = os.path.join(folder, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            stored = -(-status.st_size // BLOCK) * BLOCK
            is_file = stat.S_ISREG(status.st_mode)
            yield FileRow(
                path=os.path.relpath(path, os.fsencode(top)),
                kind=int(kind_of(status.st_mode)),
                size=status.st_size,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime_ns=status.st_mtime_ns,
                atime_ns=status.st_atime_ns,
                ctime_ns=status.st_ctime_ns,
                birth_ns=status.st_ctime_ns,
                links=status.st_nlink,
                identity=Identity(0, status.st_ino, 0),
                target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else b"",  # noqa: PTH115 - bytes
                extents=(FileExtent(0, place, stored),) if is_file and stored else (),
            )
            place += stored if is_file else 0
            count += 1


def kind_of(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    return Kind.SYMLINK if stat.S_ISLNK(mode) else Kind.OTHER


if __name__ == "__main__":
    sys.exit(main())
