"""Images of XFS made by the real tools, trees of hard cases in them, and what the kernel says of them.

An image is filled with a pattern first, and nothing discards it: whoever reads a block that was never written sees it.
`TEST_DIR` and its companions are what mkfs.xfs asks for before it makes file systems as small as these.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, Kind
from backplane.testing.file_truth import content_digest
from backplane.units import KIB, MIB

IMAGE_BYTES: Final = 64 * MIB
STALE: Final = b"stale data of somebody else! " * 4519
"""131,051 bytes: at no offset does it repeat with a block."""

_FICLONERANGE: Final = 0x4020940D
_FIEMAP: Final = 0xC020660B
_FIEMAP_SYNC: Final = 1
_FIEMAP_LAST: Final = 0x1
_FIEMAP_UNWRITTEN: Final = 0x800
_FIEMAP_SHARED: Final = 0x2000
_FIEMAP_AT_ONCE: Final = 512
_KEEP_SIZE: Final = 1
_PUNCH: Final = 3
_COMMAND_S: Final = 60

KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}


def run(*command: str | Path) -> str:
    """Run a program; its output is in the error if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def missing_for_images() -> str:
    """Return which program an image needs and this machine has not."""
    return "" if shutil.which("mkfs.xfs") else "mkfs.xfs is missing (package xfsprogs)"


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


def missing_for_mounts() -> str:
    """Return why nothing can be mounted here."""
    if missing_for_images():
        return missing_for_images()
    if os.geteuid():
        return "only root mounts"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    return "" if "xfs" in known else "this kernel has not loaded XFS"


def make_image(path: Path, *options: str | Path, size_bytes: int = IMAGE_BYTES) -> Path:
    """Make a file system in a new file."""
    with path.open("wb") as file:
        for at in range(0, size_bytes, len(STALE)):
            file.write(STALE[: size_bytes - at])
    environment = {**os.environ, "TEST_DIR": "/", "TEST_DEV": "/", "QA_CHECK_FS": "1"}
    done = subprocess.run(
        ["mkfs.xfs", "-q", "-f", "-K", *map(str, options), str(path)],
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return path


@contextmanager
def mounted(image: Path, point: Path, *options: str) -> Iterator[Path]:
    """Mount an image; the same UUID may be mounted elsewhere."""
    point.mkdir(exist_ok=True)
    run("mount", "-o", ",".join(("loop", "noatime", "nouuid", *options)), image, point)
    try:
        yield point
    finally:
        run("umount", point)


def repair_finds(image: Path) -> str:
    """Return what xfs_repair has to say against an image; empty if it is right."""
    done = subprocess.run(
        ["xfs_repair", "-n", "-f", str(image)],
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    return "" if not done.returncode else done.stdout + done.stderr


# --- trees of hard cases -----------------------------------------------------------------------


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


# --- what the kernel says ----------------------------------------------------------------------


@dataclass
class Truth:
    """A path, as the kernel shows it."""

    status: os.stat_result
    digest: str = ""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    extents: list[tuple[int, int, int, int]] = field(default_factory=list)


def kernel_truth(top: Path) -> dict[bytes, Truth]:
    """Return everything under a mount point."""
    os.sync()
    found: dict[bytes, Truth] = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        truth = _truth(path)
        found[os.fsencode(path.relative_to(top)) if path != top else b""] = truth
        if stat.S_ISDIR(truth.status.st_mode):
            waiting += path.iterdir()
    return found


def _truth(full: Path) -> Truth:
    truth = Truth(full.lstat())
    kind = stat.S_IFMT(truth.status.st_mode)
    if kind == stat.S_IFLNK:
        truth.target = os.fsencode(full.readlink())
    if kind == stat.S_IFREG:
        with full.open("rb") as file:
            if truth.status.st_blocks * 512 < truth.status.st_size // 64:
                truth.digest = ""
            else:
                truth.digest = hashlib.file_digest(file, "sha256").hexdigest()
            truth.extents = list(fiemap(file.fileno()))
    for name in os.listxattr(full, follow_symlinks=False):
        value = os.getxattr(full, name, follow_symlinks=False)
        if not name.startswith("trusted.SGI_ACL"):
            truth.xattrs[os.fsencode(name)] = value
    return truth


def fiemap(descriptor: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (byte of the file, byte of the volume, byte count, our flags) as the kernel tells it."""
    start = 0
    while True:
        head = struct.pack(
            "=QQIIII", start, (1 << 64) - 1 - start, _FIEMAP_SYNC, 0, _FIEMAP_AT_ONCE, 0
        )
        buffer = bytearray(head + bytes(56 * _FIEMAP_AT_ONCE))
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        (count,) = struct.unpack_from("=I", buffer, 20)
        flags = 0
        for number in range(count):
            logical, physical, length, flags = struct.unpack_from(
                "=QQQ16xI", buffer, 32 + 56 * number
            )
            ours = ExtentFlag.UNWRITTEN if flags & _FIEMAP_UNWRITTEN else 0
            ours |= ExtentFlag.SHARED if flags & _FIEMAP_SHARED else 0
            yield logical, physical, length, int(ours)
            start = logical + length
        if not count or flags & _FIEMAP_LAST:
            return


def merged(extents: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Join extents that go on where the last one ended, with the same flags."""
    joined: list[tuple[int, int, int, int]] = []
    for logical, physical, count, flags in extents:
        if joined:
            before = joined[-1]
            ends = (before[0] + before[2], before[1] + before[2], before[3])
            if ends == (logical, physical, flags):
                joined[-1] = (before[0], before[1], before[2] + count, flags)
                continue
        joined.append((logical, physical, count, flags))
    return joined


def differences(
    rows: Iterable[FileRow], truth: dict[bytes, Truth], image: Path, *, is_recovered: bool = False
) -> list[str]:
    """Compare rows with what the kernel said; files are put together from their extents.

    `is_recovered`: the kernel has deleted what was open and unlinked, so fewer extents are shared than before, and
    taken back what it had allocated behind the end of files.
    """
    found: list[str] = []
    seen: set[bytes] = set()
    with image.open("rb") as file:

        def read(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        for row in rows:
            known = truth.get(row.path)
            if row.path in seen:
                found.append(f"{row.path!r} twice")
            elif known is None:
                found.append(f"{row.path!r} is not there ({row.error})")
            else:
                found += [
                    f"{row.path!r}: {text}" for text in _differences(row, known, is_recovered)
                ]
                if known.digest and known.digest != content_digest(row, read):
                    found.append(f"{row.path!r}: content")
            seen.add(row.path)
    found += [f"{path!r} is missing" for path in truth.keys() - seen]
    return found


def _differences(row: FileRow, truth: Truth, is_recovered: bool) -> Iterator[str]:
    status = truth.status
    pairs = {
        "error": (row.error, ""),
        "kind": (row.kind, KINDS[stat.S_IFMT(status.st_mode)]),
        "mode": (row.mode, stat.S_IMODE(status.st_mode)),
        "size": (row.size, status.st_size),
        "owner": (row.uid, status.st_uid),
        "group": (row.gid, status.st_gid),
        "links": (row.links, status.st_nlink),
        "inode": (row.identity.inode, status.st_ino),
        "target": (row.target, truth.target),
        "xattrs": (dict(row.xattrs), truth.xattrs),
        "device": (row.device, os.major(status.st_rdev) << 32 | os.minor(status.st_rdev)),
        "mtime": (row.mtime_ns, status.st_mtime_ns),
        "atime": (row.atime_ns, status.st_atime_ns),
        "ctime": (row.ctime_ns, status.st_ctime_ns),
    }
    if row.kind == Kind.FILE:
        ours = [(e.file_byte, e.volume_byte, e.byte_count, int(e.flags)) for e in row.extents]
        theirs = truth.extents
        if is_recovered:
            if not shared_bytes(theirs) <= shared_bytes(ours):
                yield f"shared bytes are {shared_bytes(ours)}, not {shared_bytes(theirs)}"
            ours = _within(ours, row.size)
            theirs = _within(theirs, row.size)
        pairs["extents"] = (merged(ours), merged(theirs))
    for name, (ours_is, theirs_is) in pairs.items():
        if ours_is != theirs_is:
            yield f"{name} is {str(ours_is)[:300]}, not {str(theirs_is)[:300]}"


def shared_bytes(extents: Iterable[tuple[int, int, int, int]]) -> set[int]:
    """Return the places of the volume, by 512 bytes, that these extents call shared."""
    return {
        place >> 9
        for _, physical, count, flags in extents
        if flags & ExtentFlag.SHARED
        for place in range(physical, physical + count, 512)
    }


def _within(
    extents: Iterable[tuple[int, int, int, int]], size: int
) -> list[tuple[int, int, int, int]]:
    """Return the extents before the end of a file, whether they are shared or not."""
    return [
        (*extent[:3], extent[3] & ~int(ExtentFlag.SHARED)) for extent in extents if extent[0] < size
    ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def log_bytes(image: bytes) -> tuple[int, int]:
    """Return where the log is: its first byte, and the one behind it."""
    block_bytes, group_blocks = (struct.unpack_from(">I", image, at)[0] for at in (4, 84))
    start, count = struct.unpack_from(">Q", image, 48)[0], struct.unpack_from(">I", image, 96)[0]
    shift = image[124]
    first = (start >> shift) * group_blocks + (start & (1 << shift) - 1)
    return first * block_bytes, (first + count) * block_bytes


def inode_byte(image: Path, number: int) -> int:
    """Return where an inode is, as xfs_db says it."""
    said = run("xfs_db", "-r", "-c", f"convert inode {number} fsbyte", image)
    return int(said.split("(")[1].split(")")[0])


def copy_runs(image: Path, target: Path, runs: Iterable[ByteRun]) -> int:
    """Copy some bytes of an image into a file full of EEh; return how many."""
    total = 0
    with image.open("rb") as source, target.open("wb") as file:
        size = os.fstat(source.fileno()).st_size
        filler = b"\xee" * MIB
        for at in range(0, size, MIB):
            file.write(filler[: size - at])
        for first, end in runs:
            assert total <= first < end <= size
            file.seek(first)
            for at in range(first, end, MIB):
                file.write(os.pread(source.fileno(), min(MIB, end - at), at))
            total = max(total, end)
    return total


class FileSource:
    """An image as a reader's source, which remembers what was read of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size_bytes: Final = path.stat().st_size
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        found = os.pread(self._file.fileno(), count, offset)
        assert len(found) == count, f"a read of {count} bytes at {offset}"
        return found

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
