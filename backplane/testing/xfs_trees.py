"""Trees of hard cases for XFS, and somebody who never stops changing one.

`make_tree` fills a mounted file system with one of everything that a reader has to understand; `make_small_tree` with
less, for what is read very often; `write_proto` describes a tree that `mkfs.xfs` copies by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from backplane.testing.xfs_images import run
from backplane.units import KIB, MIB

_FICLONERANGE: Final = 0x4020940D
_KEEP_SIZE: Final = 1
_PUNCH: Final = 3


def write_proto(top: Path, proto: Path) -> None:
    """Describe a tree of directories, files, links and pipes for `mkfs.xfs -p`."""
    lines = ["/", "0 0", "d--755 0 0"]

    def describe(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                lines.append(f"{path.name} l--777 0 0 {path.readlink()}")
            elif path.is_dir():
                lines.append(f"{path.name} d--{mode:03o} 1000 100")
                describe(path)
                lines.append("$")
            elif path.is_fifo():
                lines.append(f"{path.name} p--{mode:03o} 0 0")
            else:
                lines.append(f"{path.name} ---{mode:03o} 1000 100 {path}")

    describe(top)
    proto.write_text("\n".join([*lines, "$", "$", ""]), encoding="utf-8")


def data(seed: int, count: int) -> bytes:
    """Return bytes that nothing else has."""
    return random.Random(seed).randbytes(count)


def write(path: Path, content: bytes, *places: int) -> None:
    """Write a file, or parts of one at some places."""
    with path.open("r+b" if path.exists() else "wb") as file:
        for place in places or (0,):
            file.seek(place)
            file.write(content)


def reflink(source: Path, target: Path, *, from_byte: int, count: int, to_byte: int) -> None:
    """Let a part of one file be shared by another."""
    with source.open("rb") as give, target.open("r+b") as take:
        request = struct.pack("qQQQ", give.fileno(), from_byte, count, to_byte)
        fcntl.ioctl(take.fileno(), _FICLONERANGE, request)


def make_tree(top: Path, *, has_reflinks: bool = True) -> None:
    """Fill a mounted file system with one of everything."""
    _make_kinds(top / "kinds")
    _make_names(top / "names")
    _make_extents(top / "extents")
    _make_attributes(top / "attributes")
    _make_links(top / "links")
    if has_reflinks:
        _make_reflinks(top / "reflinks")
    os.sync()


def cut_free_space(top: Path, hole_bytes: int, step_bytes: int) -> None:
    """Leave nothing free on a mounted file system but holes of this size, so far apart."""
    # The kernel keeps a reserve, if it is let.
    run("xfs_io", "-x", "-c", "resblks 0", top)
    count = 0
    for size in (64 * MIB, 16 * MIB, 4 * MIB, MIB, 64 * KIB, 4 * KIB):
        with suppress(OSError):
            while True:
                with (top / f"full {count}").open("wb") as file:
                    fallocate(file.fileno(), 0, 0, size)
                count += 1
    for full in top.glob("full *"):
        size = full.stat().st_size
        punch(full, range(0, size - step_bytes, step_bytes), hole_bytes)


def _make_kinds(top: Path) -> None:
    top.mkdir()
    write(top / "file", data(1, 10_000))
    write(top / "empty", b"")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(top)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    write(top / "owned", data(2, 300))
    os.chown(top / "owned", 4_000_000_000, 70_000)
    (top / "owned").chmod(0o4751)
    for name, seconds in (("early", -14_182_940), ("late", 2_208_988_800)):
        write(top / name, data(3, 50))
        os.utime(top / name, ns=(seconds * 10**9 + 123_456_789, seconds * 10**9 + 987_654_321))
    write(top / "removed", data(4, 5_000))
    (top / "removed").unlink()


def _make_names(top: Path) -> None:
    top.mkdir()
    for count in (3, 60, 700, 2500):
        folder = top / f"{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"an entry with the number {number}").touch()
    for number in range(0, 2500, 3):
        (top / "2500" / f"an entry with the number {number}").unlink()
    (top / os.fsdecode(b"not utf-8 \xff\xfe")).mkdir()
    write(top / ("n" * 255), data(5, 100))
    deep = top
    for number in range(40):
        deep = deep / f"level {number}"
        deep.mkdir()
    write(deep / "at the bottom", data(6, 100))


def _make_extents(top: Path) -> None:
    top.mkdir()
    write(top / "large", data(10, 3 * MIB + 17))
    write(top / "hole", data(11, 5000), 0, 100 * KIB, MIB)
    with (top / "sparse terabyte").open("wb") as file:
        file.truncate(1 << 40)
    write(top / "sparse terabyte", b"at the end", (1 << 40) - 10)
    for name, size, length, mode in (
        ("unwritten", 0, MIB, 0),
        ("kept size", 10_000, MIB, _KEEP_SIZE),
        ("kept far", 100, 2 * MIB, _KEEP_SIZE),
    ):
        write(top / name, data(12, size))
        _allocate(top / name, length, mode)
    write(top / "partly written", b"")
    _allocate(top / "partly written", MIB, 0)
    write(top / "partly written", data(13, 9000), 500_000)
    many = data(14, 4096)
    write(top / "many", many, *range(0, 6000 * 8192, 8192))
    parts = [top / f"in turn {number}" for number in range(3)]
    for number in range(50):
        for part in parts:
            with part.open("ab") as file:
                file.write(data(number, 4096))
                file.flush()
                os.fsync(file.fileno())


def _allocate(path: Path, length: int, mode: int) -> None:
    with path.open("r+b") as file:
        fallocate(file.fileno(), mode, 0, length)


def punch(path: Path, places: Iterable[int], count: int) -> None:
    """Make holes in a file."""
    with path.open("r+b") as file:
        for place in places:
            fallocate(file.fileno(), _PUNCH, place, count)


def fallocate(descriptor: int, mode: int, offset: int, count: int) -> None:
    """Call what the standard library has only without a mode."""
    arguments = (
        ctypes.c_int(descriptor),
        ctypes.c_int(mode),
        ctypes.c_int64(offset),
        ctypes.c_int64(count),
    )
    library = ctypes.CDLL(None, use_errno=True)
    if library.fallocate(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _make_attributes(top: Path) -> None:
    top.mkdir()
    for name, sizes in {
        "short": (3, 0, 20),
        "leaf": (300, 900, 1200, 5),
        "remote": (60_000, 10, 4096),
        "node": (1500,) * 40 + (30_000,),
    }.items():
        write(top / name, data(20, 100))
        for number, size in enumerate(sizes):
            os.setxattr(top / name, f"user.number {number}", data(number, size))
    os.setxattr(top / "short", "trusted.secret", b"known to root")
    os.setxattr(top / "short", "security.label", b"label\0")
    os.removexattr(top / "node", "user.number 7")
    (top / "listed").mkdir()
    write(top / "removed again", b"")
    os.setxattr(top / "removed again", "user.some", b"thing")
    os.removexattr(top / "removed again", "user.some")
    for name, text in (
        ("system.posix_acl_access", _ACCESS_LIST),
        ("system.posix_acl_default", _ACCESS_LIST),
    ):
        os.setxattr(top / "listed", name, text)


_ACCESS_LIST: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, allowed, owner)
    for tag, allowed, owner in (
        (1, 7, 0xFFFFFFFF),
        (2, 5, 1000),
        (2, 4, 70_000),
        (4, 5, 0xFFFFFFFF),
        (8, 6, 4_000_000_000),
        (16, 7, 0xFFFFFFFF),
        (32, 1, 0xFFFFFFFF),
    )
)


def _make_links(top: Path) -> None:
    top.mkdir()
    for size in (1, 59, 150, 340, 700, 1000, 1023):
        (top / f"target of {size}").symlink_to("t" * size)
    write(top / "first name", data(30, 5000))
    (top / "folder").mkdir()
    for number in range(5):
        os.link(top / "first name", top / "folder" / f"name {number}")


def _make_reflinks(top: Path) -> None:
    top.mkdir()
    write(top / "whole", data(40, 2 * MIB))
    run("cp", "--reflink=always", top / "whole", top / "copy")
    os.sync()
    for at in range(0, 2 * MIB, 400_000):
        write(top / "copy", data(at, 7000), at)
    write(top / "other", data(41, MIB))
    reflink(top / "whole", top / "other", from_byte=256 * KIB, count=128 * KIB, to_byte=512 * KIB)
    run("cp", "--reflink=always", top / "other", top / "third")
    (top / "third").unlink()


def make_small_tree(top: Path) -> None:
    """Fill a mounted file system with a little of everything: for what is read very often."""
    _make_kinds(top / "kinds")
    _make_attributes(top / "attributes")
    _make_links(top / "links")
    _make_reflinks(top / "reflinks")
    (top / "names").mkdir()
    for number in range(300):
        (top / "names" / f"an entry with the number {number}").touch()
    many = top / "many"
    write(many, data(60, 4096), *range(0, 600 * 8192, 8192))
    run("sync", "-f", top)


def keep_busy(top: Path, seed: int, stop: threading.Event) -> None:
    """Change a tree in every way that comes to mind, until told to stop."""
    chance = random.Random(seed)
    top.mkdir()
    folders = [top / f"folder {number}" for number in range(8)]
    files: list[Path] = []
    number = 0
    while not stop.is_set():
        number += 1
        for folder in folders:
            folder.mkdir(exist_ok=True)
        path = chance.choice(folders) / f"{number} {'x' * chance.randrange(60)}"
        if len(files) < 5 or chance.random() < 0.3:
            write(path, chance.randbytes(chance.choice((0, 10, 3000, 9000, 60_000))))
            files.append(path)
            continue
        index = chance.randrange(len(files))
        with suppress(OSError):
            _change(files, index, path, chance)
        if chance.random() < 0.003:
            gone = chance.choice(folders)
            shutil.rmtree(gone)
            files = [file for file in files if file.parent != gone]


def _change(files: list[Path], index: int, path: Path, chance: random.Random) -> None:
    file = files[index]
    size = chance.randrange(30_000)
    match chance.randrange(9):
        case 0:
            file.rename(path)
            files[index] = path
        case 1:
            files.pop(index).unlink()
        case 2:
            with file.open("ab") as opened:
                opened.write(chance.randbytes(size))
                os.fsync(opened.fileno())
        case 3:
            os.truncate(file, size)
        case 4:
            count = chance.choice((5, 200, 2000))
            os.setxattr(file, f"user.{chance.randrange(9)}", chance.randbytes(count))
        case 5:
            with file.open("r+b") as opened:
                fallocate(opened.fileno(), chance.choice((0, _KEEP_SIZE, _PUNCH)), size, size + 1)
        case 6:
            run("cp", "--reflink=always", file, path)
            write(path, bytes(size), size)
            files.append(path)
        case 7:
            path.symlink_to("t" * chance.randrange(1, 900))
        case _:
            os.link(file, path)
            files.append(path)
