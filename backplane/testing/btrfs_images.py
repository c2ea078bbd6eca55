"""Volumes of btrfs for tests: made by mkfs.btrfs, filled through the kernel, and what the kernel then shows.

Every image is filled with a pattern first, so that whoever reads what was never written is found out.  `tree_truth`
asks for all that Linux shows of a mounted tree: it shares nothing with the reader under test.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.file_map.model import Kind
from backplane.testing import rubbish
from backplane.testing.loop_mounts import mount_image

STALE: Final = b"What somebody has deleted, and nobody may see again. " * 20
SUPERBLOCK_PLACE: Final = 65536
KIB: Final = 1024
MIB: Final = 1024 * 1024
SECOND_NS: Final = 1_000_000_000
LARGE_BYTES: Final = 1 << 30
"""A file of this size is mostly a hole; see `sparse_digest`."""

FICLONE: Final = 0x40049409
FICLONERANGE: Final = 0x4020940D
FIEMAP: Final = 0xC020660B
FIEMAP_SHARED: Final = 0x2000
FIEMAP_UNWRITTEN: Final = 0x800
FIEMAP_INLINE: Final = 0x200
FIEMAP_ENCODED: Final = 0x8
_FIEMAP_EXTENTS: Final = 1000
_FIEMAP_EXTENT: Final = struct.Struct("<QQQ16xI12x")

_KINDS: Final = (
    (stat.S_ISREG, Kind.FILE),
    (stat.S_ISDIR, Kind.DIRECTORY),
    (stat.S_ISLNK, Kind.SYMLINK),
    (stat.S_ISFIFO, Kind.FIFO),
    (stat.S_ISSOCK, Kind.SOCKET),
    (stat.S_ISCHR, Kind.CHARACTER),
    (stat.S_ISBLK, Kind.BLOCK),
)


class Truth(NamedTuple):
    """What the kernel shows of one path."""

    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    links: int
    inode: int
    device: int
    """The number of the volume that the kernel invents: each subvolume has one of its own."""
    special: tuple[int, int]
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    digest: str
    runs: tuple[tuple[int, int, int], ...]
    """(byte of the file, count, flags of FIEMAP)"""


def missing() -> str:
    """Name what an image needs that nobody mounts ("" if nothing)."""
    for tool in ("mkfs.btrfs", "btrfs"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: btrfs-progs)"
    return ""


def missing_mount() -> str:
    """Name what a mounted image needs and is not there ("" if nothing)."""
    if missing():
        return missing()
    for tool, package in (("mount", "mount"), ("setfacl", "acl"), ("fallocate", "util-linux")):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: {package})"
    if os.geteuid():
        return "needs root, to mount"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    is_known = "btrfs" in Path("/proc/filesystems").read_text(encoding="ascii").split()
    return "" if is_known else "needs btrfs in the kernel"


def run(*command: str | Path) -> str:
    """Run a program that has to succeed."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert not done.returncode, f"{' '.join(map(str, command))}: {said}"
    return said


def make_volume(image: Path, size_bytes: int, *options: str | Path) -> Path:
    """Make a volume over stale data."""
    with image.open("wb") as file:
        rubbish.fill(file, size_bytes, STALE)
    run("mkfs.btrfs", "-q", "-f", "-K", *options, image)
    return image


@contextmanager
def mounted(image: Path, folder: Path, options: str = "noatime") -> Iterator[Path]:
    """Mount an image by a loop device, and take it away again."""
    folder.mkdir(exist_ok=True)
    done = mount_image(image, folder, options, kind="btrfs")
    assert not done.returncode, f"{image}: {done.stderr}"
    try:
        yield folder
    finally:
        run("umount", folder)


def copy_of(image: Path, copy: Path) -> Path:
    """Copy an image, also while it is mounted: what a power cut would leave."""
    run("cp", "--sparse=always", image, copy)
    return copy


# What is in a tree.


def text(count: int, seed: int) -> bytes:
    """Return bytes that can be compressed, but not to nothing."""
    rng = random.Random(seed)
    words = [rng.randbytes(5).hex().encode() for _ in range(300)]
    made = bytearray()
    while len(made) < count:
        made += rng.choice(words) + b" "
    return bytes(made[:count])


def noise(count: int, seed: int) -> bytes:
    """Return bytes that cannot be compressed."""
    return random.Random(seed).randbytes(count)


def same_hash_names() -> tuple[bytes, bytes]:
    """Return two names of extended attributes that btrfs keeps in one item."""
    seen: dict[int, bytes] = {}
    rng = random.Random(1)
    for _ in range(1_000_000):
        name = b"user." + rng.randbytes(6).hex().encode()
        other = seen.setdefault(crc32c(name), name)
        if other != name:
            return other, name
    raise AssertionError("no two names have the same checksum")


def write_sizes(folder: Path) -> None:
    """Write files of the sizes around which something changes."""
    folder.mkdir()
    for size in (0, 1, 100, 2047, 2048, 2049, 4095, 4096, 4097, 10_000, 131_072, 131_073, MIB + 3):
        (folder / f"noise-{size}").write_bytes(noise(size, size))
        (folder / f"text-{size}").write_bytes(text(size, size))
    (folder / "zeros").write_bytes(bytes(300_000))
    (folder / "mixed").write_bytes(text(200_000, 1) + noise(200_000, 2) + bytes(200_000))
    rewritten = folder / "rewritten"
    rewritten.write_bytes(text(900_000, 3))
    settle(rewritten)
    with rewritten.open("r+b") as file:
        for place in range(50_000, 800_000, 130_000):
            file.seek(place)
            file.write(noise(7000, place))
            file.flush()
            os.fsync(file.fileno())


def write_holes(folder: Path, extents: int = 1500) -> None:
    """Write files with holes, with space that was never written, and in many pieces."""
    folder.mkdir()
    with (folder / "tebibyte").open("wb") as file:
        for place in (0, 1 << 30, (1 << 40) - 5000):
            file.seek(place)
            file.write(noise(5000, place))
    with (folder / "pieces").open("wb") as file:
        for index in range(extents):
            file.seek(index * 8192)
            file.write(noise(4096, index))
            if index % 100 == 99:
                file.flush()
                os.fsync(file.fileno())
    (folder / "empty-end").write_bytes(b"x")
    os.truncate(folder / "empty-end", 1 << 20)
    for name, head, options in (
        ("never-written", b"", ("-l", "1MiB")),
        ("behind-the-end", noise(10_000, 7), ("-n", "-o", "16KiB", "-l", "1MiB")),
        ("far-behind-the-end", noise(100, 8), ("-n", "-o", "1MiB", "-l", "1MiB")),
        ("punched", noise(300_000, 9), ("-p", "-o", "40KiB", "-l", "100KiB")),
        ("zeroed", noise(300_000, 10), ("-z", "-o", "40KiB", "-l", "100KiB")),
    ):
        (folder / name).write_bytes(head)
        settle(folder / name)
        run("fallocate", *options, folder / name)
    for name, size in (("middle", 1 << 20), ("long-middle", 6 << 20)):
        (folder / name).touch()
        run("fallocate", "-l", str(size), folder / name)
        with (folder / name).open("r+b") as file:
            file.seek(size // 2)
            file.write(noise(9000, size))


def write_names(folder: Path, files: int = 900) -> None:
    """Write many names, long, strange and several of one file."""
    folder.mkdir()
    crowd = folder / "crowd"
    crowd.mkdir()
    for index in range(files):
        (crowd / f"file number {index:05d}").write_bytes(b"%d" % index * (index % 40))
    for index in range(0, files, 3):
        (crowd / f"file number {index:05d}").unlink()
    strange = os.fsencode(folder / "strange")
    Path(os.fsdecode(strange)).mkdir()
    for name in (b"\xff\xfe\x80", b"line\nfeed", b"-rf", b" ", b"a" * 255, "ä€😀".encode(), b"..."):
        with open(strange + b"/" + name, "wb") as file:
            file.write(name)
    linked = folder / "linked"
    linked.mkdir()
    (linked / "original").write_bytes(noise(9000, 1))
    (folder / "elsewhere").hardlink_to(linked / "original")
    for index in range(120):  # more than one item can hold
        (linked / f"{index:03d}{'l' * 240}").hardlink_to(linked / "original")
    deep = folder
    for level in range(60):
        deep /= f"level {level}"
        deep.mkdir()
    (deep / "bottom").write_bytes(b"here")
    # Directories that are younger than what is in them.
    (folder / "moved").mkdir()
    (folder / "moved" / "inner").mkdir()
    (folder / "moved" / "inner" / "file").write_bytes(b"moved")
    (folder / "young").mkdir()
    (folder / "young" / "younger").mkdir()
    (folder / "moved").rename(folder / "young" / "younger" / "moved")


def write_kinds(folder: Path) -> None:
    """Write what is no file, and what files have beside their bytes."""
    folder.mkdir()
    for count in (1, 60, 300, 1500, 3900):
        (folder / f"link-{count}").symlink_to("t" * count)
    (folder / "link-bytes").symlink_to(os.fsdecode(b"\xff\xfe/\x80"))
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "character", stat.S_IFCHR | 0o640, os.makedev(1234, 567_890))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(folder / "socket"))
    for name, seconds in (("1969", -1), ("1901", -(1 << 31)), ("2040", 1 << 31), ("2300", 1 << 33)):
        (folder / name).write_bytes(b"")
        time_ns = seconds * SECOND_NS + 123_456_789
        os.utime(folder / name, ns=(time_ns, time_ns + 1))
    owned = folder / "owned"
    owned.write_bytes(b"")
    os.chown(owned, 4_000_000_000, 4_000_000_001)
    owned.chmod(0o6751)
    _write_xattrs(folder)


def _write_xattrs(folder: Path) -> None:
    some = folder / "attributes"
    some.write_bytes(b"with attributes")
    for name in same_hash_names():
        os.setxattr(some, name, b"one of two: " + name)
    os.setxattr(some, "user.empty", b"")
    os.setxattr(some, "user.long", noise(3000, 3))
    os.setxattr(some, "trusted.own", b"\0\1\2")
    # VFS_CAP_REVISION_2, CAP_NET_RAW permitted and effective.
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(some, "security.capability", capability)
    for index in range(200):
        os.setxattr(folder / "owned", f"user.{index}", b"%d" % index * 20)
    run("setfacl", "-m", "u:1234:rw,g:4321:r", some)
    (folder / "inherits").mkdir()
    run("setfacl", "-d", "-m", "u:1234:rwx", folder / "inherits")
    (folder / "inherits" / "heir").write_bytes(b"")


def write_clones(folder: Path) -> None:
    """Write files that share blocks, wholly and partly."""
    folder.mkdir()
    (folder / "original").write_bytes(noise(2_000_000, 1))
    settle(folder / "original")
    clone(folder / "original", folder / "whole")
    clone(folder / "original", folder / "rewritten")
    with (folder / "rewritten").open("r+b") as file:
        for place in range(0, 2_000_000, 400_000):
            file.seek(place)
            file.write(noise(7000, place))
    (folder / "range").write_bytes(noise(500_000, 2))
    settle(folder / "range")
    clone_range(folder / "original", 409_600, 204_800, folder / "range", 102_400)
    (folder / "alone").write_bytes(noise(100_000, 5))
    settle(folder / "alone")
    with (folder / "alone").open("r+b") as file:
        file.seek(40_960)
        file.write(noise(8192, 6))


def settle(file: Path) -> None:
    """Let the extents of a file be what they are, and not what the kernel still has in mind."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def clone(source: Path, target: Path) -> None:
    """Make a file that shares all blocks with another one."""
    with source.open("rb") as from_file, target.open("wb") as to_file:
        fcntl.ioctl(to_file, FICLONE, from_file.fileno())


def clone_range(source: Path, source_byte: int, count: int, target: Path, target_byte: int) -> None:
    """Let a file share some blocks with another one."""
    with source.open("rb") as from_file, target.open("r+b") as to_file:
        order = struct.pack("<qQQQ", from_file.fileno(), source_byte, count, target_byte)
        fcntl.ioctl(to_file, FICLONERANGE, order)


# What the kernel shows.


def tree_truth(top: Path) -> dict[bytes, Truth]:
    """Return what the kernel shows of every path below a mounted directory, and of that directory itself."""
    truth = {b"": truth_of(os.fsencode(top))}
    folders = [b""]
    while folders:
        folder = folders.pop()
        for entry in os.scandir(os.fsencode(top) + b"/" + folder):
            path = folder + b"/" + entry.name if folder else entry.name
            truth[path] = truth_of(entry.path)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
    return truth


def truth_of(path: bytes) -> Truth:
    """Return what the kernel shows of one path."""
    told = os.lstat(path)
    kind = next(kind for is_kind, kind in _KINDS if is_kind(told.st_mode))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple(
        (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names
    )
    is_special = kind in (Kind.CHARACTER, Kind.BLOCK)
    return Truth(
        kind=kind,
        size=told.st_size,
        mode=stat.S_IMODE(told.st_mode),
        uid=told.st_uid,
        gid=told.st_gid,
        mtime_ns=told.st_mtime_ns,
        atime_ns=told.st_atime_ns,
        ctime_ns=told.st_ctime_ns,
        links=told.st_nlink,
        inode=told.st_ino,
        device=told.st_dev,
        special=(os.major(told.st_rdev), os.minor(told.st_rdev)) if is_special else (0, 0),
        target=os.fsencode(Path(os.fsdecode(path)).readlink()) if kind is Kind.SYMLINK else b"",
        xattrs=xattrs,
        digest=_digest(path) if kind is Kind.FILE else "",
        runs=tuple(file_runs(path)) if kind is Kind.FILE else (),
    )


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= LARGE_BYTES:
            return sparse_digest(_data(file.fileno(), size))
        digest = hashlib.sha256()
        while piece := file.read(MIB):
            digest.update(piece)
        return digest.hexdigest()


def _data(file: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # no data from here on
            raise
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, os.pread(file, end - at, at)
        at = end


def sparse_digest(pieces: Iterable[tuple[int, bytes]]) -> str:
    """Return a digest of a file of which most is zeros, of pieces that begin at whole blocks of 4 KiB."""
    digest = hashlib.sha256()
    for start, piece in pieces:
        assert not start % 4096, start
        for at in range(0, len(piece), 4096):
            block = piece[at : at + 4096].rstrip(b"\0")
            if block:
                digest.update(b"%d %d " % (start + at, len(block)) + block)
    return digest.hexdigest()


def file_runs(path: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the extents of a file as FIEMAP shows them."""
    with open(path, "rb") as file:
        start = 0
        while True:
            head = struct.pack("<QQIIII", start, (1 << 63) - start, 1, 0, _FIEMAP_EXTENTS, 0)
            order = bytearray(head + bytes(_FIEMAP_EXTENTS * _FIEMAP_EXTENT.size))
            fcntl.ioctl(file, FIEMAP, order)
            count = int.from_bytes(order[20:24], "little")
            if not count:
                return
            for index in range(count):
                at = len(head) + index * _FIEMAP_EXTENT.size
                file_byte, _, length, flags = _FIEMAP_EXTENT.unpack_from(order, at)
                yield file_byte, length, flags
                start = file_byte + length
                if flags & 1:
                    return
