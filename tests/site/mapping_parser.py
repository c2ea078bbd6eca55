"""A parser of mappings that does what a test wants: `python tests/site/mapping_parser.py MODE` and the real arguments.

It gives up what the real one gives up, and then shows what somebody could do who has taken it over.  `parser` returns
the command for a `Mapper`; what comes behind a colon in MODE only marks the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from backplane.errors import MediumError
from backplane.file_map.model import NO_TIME, FileExtent, FileRow, FileSystem, Identity, Kind
from storage_node.mapping.parser_process import run
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError
from storage_node.mapping.row_codec import encode_rows
from storage_node.mapping.stream import Say, Teller

BLOCK: Final = 4096
FILE_SYSTEM: Final = FileSystem("test", "", "label", "uuid", BLOCK, 0, "clean", "whole volume")


def parser(mode: str, mark: str = "") -> list[str]:
    """Return the command of a parser that does this."""
    return [sys.executable, "-P", str(Path(__file__).resolve()), f"{mode}:{mark}"]


def running(mark: str) -> list[int]:
    """Return the processes with this mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # gone meanwhile
        if any(word.endswith(b":" + mark.encode()) for word in words):
            found.append(int(folder.name))
    return found


def row(path: str, *extents: tuple[int, int], inode: int = 0, **changes: Any) -> FileRow:
    """Return a row whose extents, (volume byte, byte count), follow each other in the file."""
    found, at = [], 0
    for begin, count in extents:
        found.append(FileExtent(at, begin, count))
        at += count
    made = FileRow(
        path=path.encode(),
        kind=Kind.FILE if extents else Kind.DIRECTORY,
        size=at,
        mode=0o644,
        uid=0,
        gid=0,
        mtime_ns=10**18,
        atime_ns=10**18,
        ctime_ns=10**18,
        birth_ns=NO_TIME,
        links=1,
        identity=Identity(0, inode or zlib.crc32(path.encode()) + 1, 1),
        extents=tuple(found),
    )
    return made._replace(**changes)


def tell(teller: Teller, rows: list[FileRow], runs: list[tuple[int, int]]) -> None:
    """Tell a whole map."""
    teller.rows(rows)
    teller.runs(runs)
    teller.facts([FILE_SYSTEM], ["a note"])


ROOT: Final = row("")
GOOD: Final = [ROOT, row("b", (BLOCK, BLOCK)), row("a"), row("a/c", (3 * BLOCK, 2 * BLOCK))]


class MemoryView:
    """A view in memory; `read_into` can be made to fail, or to wait."""

    block_bytes = 512

    def __init__(self, size_bytes: int = 1 << 20, *, bad_byte: int = -1) -> None:
        self.size_bytes = size_bytes
        self.bad_byte = bad_byte

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Zeros, but for the bad byte."""
        if byte_address <= self.bad_byte < byte_address + len(buffer):
            raise MediumError(f"byte {self.bad_byte} cannot be read")
        buffer[:] = bytes(len(buffer))


# --- maps ----------------------------------------------------------------------------------------


def good(source: Source, teller: Teller) -> None:
    """Two files."""
    source.read(0, BLOCK)
    source.read(BLOCK, BLOCK)
    tell(teller, GOOD, [(0, 5 * BLOCK)])


def incomplete(source: Source, teller: Teller) -> None:
    """Something was wrong with the file system."""
    tell(teller, GOOD, [(0, 5 * BLOCK)])
    teller.say(Say.REASONS, "a bitmap is damaged")


def outside(source: Source, teller: Teller) -> None:
    """A file that ends behind the volume."""
    tell(teller, [*GOOD, row("evil", (source.size_bytes - BLOCK, 2 * BLOCK))], [(0, 5 * BLOCK)])


def unallocated(source: Source, teller: Teller) -> None:
    """A file in free space."""
    tell(teller, [*GOOD, row("evil", (8 * BLOCK, BLOCK))], [(0, 5 * BLOCK)])


def stolen(source: Source, teller: Teller) -> None:
    """A file that shows the blocks of another one."""
    tell(teller, [*GOOD, row("evil", (4 * BLOCK, BLOCK))], [(0, 5 * BLOCK)])


def many(source: Source, teller: Teller) -> None:
    """As many small files as blocks, in directories of a thousand, in the order of nothing."""
    count = source.size_bytes // BLOCK - 1
    teller.rows(synthetic(count))
    teller.runs([(0, source.size_bytes)])
    teller.facts([FILE_SYSTEM], [])


def synthetic(count: int) -> Iterator[FileRow]:
    """Yield rows as a reader does that makes each one from what it has read."""
    yield ROOT
    for folder in range(count // 1000 + 1):
        yield row(f"d{folder:05}", inode=10**9 + folder)
    stride = 7919  # a prime: neighbours in the stream are far from each other in the tree
    for at in range(count):
        number = at * stride % count
        when = 1_700_000_000_000_000_000 + number * 1_234_567
        yield FileRow(
            path=b"d%05d/file-%07d.txt" % (number // 1000, number),
            kind=0,
            size=number % BLOCK,
            mode=0o644,
            uid=1000,
            gid=1000,
            mtime_ns=when,
            atime_ns=when,
            ctime_ns=when + 1,
            birth_ns=when,
            links=1,
            identity=Identity(0, number + 1000, 77),
            extents=(FileExtent(0, (number + 1) * BLOCK, BLOCK),),
        )


# --- failures ------------------------------------------------------------------------------------


def unsupported(source: Source, teller: Teller) -> None:
    """A layer that cannot be read."""
    raise UnsupportedError("LUKS2 encryption")


def damaged(source: Source, teller: Teller) -> None:
    """A superblock that is none."""
    raise DamagedError("the superblock is damaged")


def unread(source: Source, teller: Teller) -> None:
    """A reader that needs a block that cannot be read."""
    source.read(0, BLOCK)
    good(source, teller)


def tolerant(source: Source, teller: Teller) -> None:
    """A reader that goes on without a block."""
    try:
        source.read(2 * BLOCK, BLOCK)
    except DamagedError:
        good(source, teller)


def crash(source: Source, teller: Teller) -> None:
    """A bug."""
    raise ZeroDivisionError("of our own")


def segfault(source: Source, teller: Teller) -> None:
    """A bug of somebody else."""
    ctypes.string_at(0)


def vanish(source: Source, teller: Teller) -> None:
    """An end without a word."""
    os._exit(0)


# --- attacks -------------------------------------------------------------------------------------


def garbage(source: Source, teller: Teller) -> None:
    """Bytes that are no frames."""
    teller._channel.socket.sendall(bytes(range(256)) * 1000)


def huge_frame(source: Source, teller: Teller) -> None:
    """A frame that says to be longer than memory."""
    teller._channel.socket.sendall(bytes([Say.ROWS]) + b"\xff\xff\xff\xff")
    time.sleep(1000)


def lying_batch(source: Source, teller: Teller) -> None:
    """A batch that says to have more rows than it has."""
    batch = bytearray(encode_rows(GOOD))
    batch[0:4] = b"\xff\xff\xff\x0f"
    teller._channel.send(Say.ROWS, bytes(batch))


def overlapping_runs(source: Source, teller: Teller) -> None:
    """Allocated runs that overlap."""
    tell(teller, GOOD, [(0, 3 * BLOCK), (2 * BLOCK, 5 * BLOCK)])


def endless(source: Source, teller: Teller) -> None:
    """Rows without an end."""
    source.read(0, 512)
    while True:
        teller.rows(GOOD * 128)


def reads_outside(source: Source, teller: Teller) -> None:
    """A read behind the view."""
    _ask(source, source.size_bytes, 512)
    time.sleep(1000)


def reads_too_much(source: Source, teller: Teller) -> None:
    """A read that no reader may do, or the node would need that much memory."""
    _ask(source, 0, 0xFFFFFFFF)
    time.sleep(1000)


def reads_forever(source: Source, teller: Teller) -> None:
    """The same block, again and again."""
    while True:
        source.read(0, 512)


def takes_no_answers(source: Source, teller: Teller) -> None:
    """Reads that are asked for and never taken."""
    for _ in range(10_000):
        _ask(source, 0, 1024 * 1024)


def _ask(source: Any, offset: int, count: int) -> None:
    source._channel.socket.sendall(offset.to_bytes(8, "big") + count.to_bytes(4, "big"))


def sleeps(source: Source, teller: Teller) -> None:
    """Nothing at all."""
    source.read(0, 512)
    time.sleep(1000)


def stubborn(source: Source, teller: Teller) -> None:
    """Nothing at all, and no end when asked for one."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleeps(source, teller)


def allocates(source: Source, teller: Teller) -> None:
    """All memory there is."""
    taken = []
    while True:
        taken.append(bytearray(1024 * 1024))


def spins(source: Source, teller: Teller) -> None:
    """All processor time there is."""
    source.read(0, 512)
    while True:
        pass


def escapes(source: Source, teller: Teller) -> None:
    """Everything that must not be possible any more: what succeeds is told as a crash."""
    done = [name for name, attempt in ATTEMPTS.items() if _succeeds(attempt)]
    if done:
        raise RuntimeError(f"it could {', '.join(done)}")
    good(source, teller)


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, ValueError):
        return False
    return True


def _opens_with_a_free_number() -> None:
    os.close(0)
    os.open("/etc/passwd", os.O_RDONLY)


def _system_call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


ATTEMPTS: Final[dict[str, Callable[[], Any]]] = {
    "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "open a file with the number of another": _opens_with_a_free_number,
    "make a file": lambda: os.open("/tmp/escaped", os.O_CREAT | os.O_WRONLY),
    "look at a file": lambda: Path("/etc/passwd").stat(),
    "remove a file": lambda: Path("/tmp/escaped").unlink(),
    "list a folder": lambda: list(Path("/").iterdir()),
    "fork": os.fork,
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "open a socket": socket.socket,
    "make a pipe": os.pipe,
    "become root": lambda: os.setuid(0),
    "leave the session": os.setsid,
    "signal its parent": lambda: os.kill(os.getppid() or 1, 0),
    "outlive its parent": lambda: _system_call("prctl", 1, 0, 0, 0, 0),
    "be looked into again": lambda: _system_call("prctl", 4, 1, 0, 0, 0),
    "trace another process": lambda: _system_call("ptrace", 16, os.getpid(), 0, 0),
    "raise a limit": lambda: _system_call("prlimit", 0, 7, (ctypes.c_uint64 * 2)(99, 99), None),
}


if __name__ == "__main__":
    run(globals()[sys.argv[1].partition(":")[0]], sys.argv[2:])
