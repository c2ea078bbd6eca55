"""Volumes of ext2, ext3 and ext4 for tests: made by mke2fs, filled through the kernel or by mke2fs itself.

Every image is filled with a pattern first, so that whoever reads what was never written is found out.  `tree_truth`
asks for all that Linux shows of a tree, mounted or not: it shares nothing with the reader under test.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
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

from backplane.file_map.model import FileRow, Kind
from backplane.testing import rubbish
from backplane.testing.file_truth import Read, content_digest
from backplane.testing.loop_mounts import mount_image

STALE: Final = b"What somebody has deleted, and nobody may see again. " * 20_000
TOOLS: Final = ("mke2fs", "debugfs", "e2fsck")
SPARSE_BYTES: Final = (1 << 40, 1 << 33)
"""Of a file that is nearly all hole: the larger one where the file system can have it."""

VOLUMES: Final = {
    "default and ea_inode": ("-t", "ext4", "-O", "ea_inode"),
    "inline data": ("-t", "ext4", "-O", "inline_data"),
    "bigalloc": ("-t", "ext4", "-O", "bigalloc", "-C", "65536"),
    "bigalloc 1 KiB": ("-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"),
    "meta_bg without sums": (
        *("-t", "ext4", "-b", "1024"),
        *("-O", "meta_bg,^resize_inode,^64bit,^metadata_csum"),
    ),
    "meta_bg 64 bits inline": (
        *("-t", "ext4", "-b", "1024"),
        *("-O", "meta_bg,^resize_inode,inline_data,ea_inode"),
    ),
    "old sums 2 KiB": ("-t", "ext4", "-b", "2048", "-O", "^metadata_csum,uninit_bg,64bit"),
    "sparse_super2": (
        *("-t", "ext4", "-b", "1024"),
        *("-O", "sparse_super2,orphan_file,large_dir,metadata_csum_seed,^resize_inode"),
    ),
    "no flex_bg": ("-t", "ext4", "-b", "1024", "-O", "mmp,^flex_bg,^resize_inode"),
    "large inodes": ("-t", "ext4", "-I", "1024", "-O", "^has_journal,fast_commit"),
    "ext3": ("-t", "ext3", "-I", "128"),
    "ext2": ("-t", "ext2", "-b", "1024"),
    "revision 0": ("-t", "ext2", "-r", "0", "-b", "1024"),
}
"""What makes volumes that differ, by name."""

_KINDS: Final = (
    (stat.S_ISREG, Kind.FILE),
    (stat.S_ISDIR, Kind.DIRECTORY),
    (stat.S_ISLNK, Kind.SYMLINK),
    (stat.S_ISFIFO, Kind.FIFO),
    (stat.S_ISSOCK, Kind.SOCKET),
    (stat.S_ISCHR, Kind.CHARACTER),
    (stat.S_ISBLK, Kind.BLOCK),
)
_CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
_YEAR_S: Final = 31_557_600


class Truth(NamedTuple):
    """What Linux says of one path."""

    kind: Kind
    size: int
    digest: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    links: int
    inode: int
    device: int
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


def missing(*, needs_mount: bool = False) -> str:
    """Name what volumes of ext need here and do not find ("" if nothing)."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} (e2fsprogs) is not installed"
    if needs_mount and (os.geteuid() or not Path("/dev/loop-control").exists()):
        return "mounting needs root and loop devices"
    return ""


def make_volume(image: Path, size_bytes: int, *options: str, tree: Path | None = None) -> Path:
    """Make a volume on top of what somebody has deleted, with the files of a tree."""
    with image.open("wb") as target:
        rubbish.fill(target, size_bytes, STALE)
    source = ("-d", str(tree)) if tree else ()
    run("mke2fs", "-q", "-F", "-E", "nodiscard", *options, *source, str(image))
    return image


def run(*command: str) -> str:
    """Run a tool that must succeed, and return what it says."""
    done = subprocess.run(command, capture_output=True, check=False)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command}: {said} {done.stderr.decode(errors='replace')}"
    return said


def debugfs(image: Path, *requests: str) -> str:
    """Change or ask a volume that is not mounted."""
    script = "\n".join(requests) + "\n"
    done = subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", str(image)],
        input=script.encode(),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(errors="replace")


@contextmanager
def mounted(image: Path, folder: Path, options: str = "noatime") -> Iterator[Path]:
    """Mount a volume while the block runs."""
    folder.mkdir(exist_ok=True)
    done = mount_image(image, folder, options, kind="ext4")
    assert not done.returncode, f"{image}: {done.stderr}"
    try:
        yield folder
    finally:
        run("umount", str(folder))


@contextmanager
def image_bytes(image: Path) -> Iterator[mmap.mmap]:
    """Give an image as bytes, read-only."""
    with (
        image.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as content,
    ):
        yield content


def copy_sparse(image: Path, copy: Path) -> Path:
    """Copy an image as it is this instant, which is what a power cut leaves if it is mounted."""
    run("cp", "--sparse=always", str(image), str(copy))
    return copy


# --- truth ---------------------------------------------------------------------------------------


def tree_truth(root: Path) -> dict[bytes, Truth]:
    """Return all that Linux shows of a tree, by path."""
    top = os.fsencode(root)
    found = {b"": _truth_of(top)}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            place = os.path.join(folder, name)  # noqa: PTH118 - names are bytes
            found[place[len(top) + 1 :]] = _truth_of(place)
    return found


def _truth_of(place: bytes) -> Truth:
    status = os.lstat(place)
    kind = next(kind for test, kind in _KINDS if test(status.st_mode))
    is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
    return Truth(
        kind=kind,
        size=status.st_size if kind in (Kind.FILE, Kind.SYMLINK) else 0,
        digest=_digest(place) if kind is Kind.FILE else "",
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        links=status.st_nlink,
        inode=status.st_ino,
        device=os.major(status.st_rdev) << 32 | os.minor(status.st_rdev) if is_device else 0,
        target=os.fsencode(Path(os.fsdecode(place)).readlink()) if kind is Kind.SYMLINK else b"",
        xattrs=tuple(
            sorted(
                (os.fsencode(name), os.getxattr(place, name, follow_symlinks=False))
                for name in os.listxattr(place, follow_symlinks=False)
            )
        ),
    )


def _digest(place: bytes) -> str:
    """Digest a file; a hole is not read, for there may be a terabyte of it."""
    digest = hashlib.sha256()
    with open(place, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > 1 << 30:
            return sparse_digest(_data_of(opened.fileno(), size), size)
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _data_of(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    with contextlib.suppress(OSError):
        while at < size:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
            yield begin, os.pread(descriptor, at - begin, begin)


def sparse_digest(data: Iterable[tuple[int, bytes]], size: int) -> str:
    """Digest the places of a huge file that are not zeros, and its size."""
    digest = hashlib.sha256(str(size).encode())
    for at, piece in data:
        for start in range(0, len(piece), 512):
            sector = piece[start : start + 512][: max(size - at - start, 0)]
            if sector.strip(b"\0"):
                digest.update(f"{at + start}".encode() + sector.rstrip(b"\0"))
    return digest.hexdigest()


def row_truth(row: FileRow, read: Read) -> Truth:
    """Return what a row says, in the words of the truth; its content is put together from its extents."""
    digest = ""
    if row.kind == Kind.FILE:
        if row.size > 1 << 30:
            plain = [extent for extent in row.extents if not extent.flags & 1]
            pieces = ((one.file_byte, read(one.volume_byte, one.byte_count)) for one in plain)
            digest = sparse_digest(pieces, row.size)
        else:
            digest = content_digest(row, read)
    return Truth(
        kind=Kind(row.kind),
        size=row.size if row.kind in (Kind.FILE, Kind.SYMLINK) else 0,
        digest=digest,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        ctime_ns=row.ctime_ns,
        links=row.links,
        inode=row.identity.inode,
        device=row.device,
        target=row.target,
        xattrs=row.xattrs,
    )


def differences(rows: Iterable[FileRow], truth: dict[bytes, Truth], read: Read) -> list[str]:
    """Compare rows with the truth; an empty list says that they are the same."""
    found = []
    left = dict(truth)
    for row in rows:
        said = left.pop(row.path, None)
        if row.error:
            found.append(f"{row.path!r}: error {row.error}")
        elif said is None:
            found.append(f"{row.path!r}: is not there, or twice")
        else:
            mine = row_truth(row, read)
            found += [
                f"{row.path!r}: {name} {got!r:.80} instead of {right!r:.80}"
                for name, got, right in zip(Truth._fields, mine, said, strict=True)
                if got != right
            ]
    return found + [f"{path!r}: is missing" for path in left]


# --- trees ---------------------------------------------------------------------------------------


def populate(root: Path, *, files: int = 300, seed: int = 1) -> None:
    """Fill a folder with what anybody may have, and no privilege is needed for."""
    generator = random.Random(seed)
    _populate_sizes(root / "sizes", generator, files)
    _populate_names(root / "names")
    _populate_small(root / "small")
    _populate_links(root / "links")
    _populate_sparse(root / "sparse", generator)
    deep = root
    for depth in range(60):
        deep = deep / f"d{depth}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"here")
    crowd = root / "crowd"
    crowd.mkdir()
    for number in range(files * 4):
        (crowd / f"{number:x}-{'n' * (number % 90)}").write_bytes(b"%d" % number)
    for number in range(0, files * 4, 3):
        (crowd / f"{number:x}-{'n' * (number % 90)}").unlink()


def _populate_sizes(folder: Path, generator: random.Random, files: int) -> None:
    folder.mkdir()
    for size in (0, 1, 59, 60, 61, 100, 156, 160, 161, 1023, 1024, 4095, 4096, 4097, 1 << 20):
        (folder / f"size-{size}").write_bytes(generator.randbytes(size))
    for number in range(files):
        (folder / f"file-{number}").write_bytes(generator.randbytes(generator.randrange(20_000)))
    for number, years in enumerate((-1, 70, 330)):
        place = folder / f"time-{number}"
        place.write_bytes(b"when")
        moment = years * _YEAR_S * 1_000_000_000 + 123_456_789
        os.utime(place, ns=(moment, moment))


def _populate_small(folder: Path) -> None:
    """What may be inside an inode, and grows, shrinks or is full of holes there."""
    folder.mkdir()
    for size in (0, 7, 56, 63, 98, 140, 161):
        for name, sizes in (("up", (size + 50,)), ("down", (size // 2,)), ("both", (1, size))):
            place = folder / f"{name}-{size}"
            place.write_bytes(b"i" * size)
            for changed in sizes:
                os.truncate(place, changed)
        with (folder / f"hole-{size}").open("wb") as opened:
            opened.seek(size)
            opened.write(b"end")
        inner = folder / f"folder-{size}"
        for number in range(size // 10):
            (inner / f"{number}").mkdir(parents=True)
        for number in range(0, size // 10, 2):
            (inner / f"{number}").rmdir()


def _populate_names(folder: Path) -> None:
    folder.mkdir()
    for name in (
        b"\xff\xfe not utf-8 \x80",
        b"x" * 255,
        b"new\nline",
        b"\\",
        b" ",
        b"...",
        b"\x01",
    ):
        with open(os.fsencode(folder) + b"/" + name, "wb") as opened:
            opened.write(name)


def _populate_links(folder: Path) -> None:
    folder.mkdir()
    for length in (1, 58, 59, 60, 61, 157, 1000, 1023):
        (folder / f"link-{length}").symlink_to("t" * length if length < 256 else "t/" * 511 + "t")
    (folder / "first").write_bytes(b"one file " * 1000)
    for number in range(5):
        os.link(folder / "first", folder / f"again-{number}")
    os.mkfifo(folder / "fifo")


def _populate_sparse(folder: Path, generator: random.Random) -> None:
    folder.mkdir()
    with (folder / "holes").open("wb") as opened:
        for at in (70_000, 300_000, 8_000_000):
            opened.seek(at)
            opened.write(generator.randbytes(5000))
        opened.truncate(9_000_000)
    with (folder / "huge").open("wb") as opened:
        for size in SPARSE_BYTES:
            with contextlib.suppress(OSError):
                opened.truncate(size)
                opened.seek(size - 1_000_000)
                opened.write(b"far out")
                break
        opened.seek(5_000_000)
        opened.write(b"near")


def populate_mounted(root: Path, *, block_bytes: int, seed: int = 1) -> None:
    """Fill a mounted volume, as root, with everything else that is hard."""
    generator = random.Random(seed)
    folder = root / "mounted"
    folder.mkdir()
    _populate_special(folder)
    _populate_xattrs(folder, generator)
    _populate_allocated(folder, generator)
    with (folder / "scattered").open("wb") as opened:
        for number in range(1500):
            opened.seek(number * 2 * block_bytes)
            opened.write(generator.randbytes(16) * (block_bytes // 16))
    handles = [(folder / f"in-turn-{number}").open("wb") for number in range(3)]
    for _ in range(40):
        for handle in handles:
            handle.write(generator.randbytes(4096))
            handle.flush()
            os.fsync(handle.fileno())
    for handle in handles:
        handle.close()
    os.chown(folder / "scattered", 4_000_000_000, 4_000_000_001)


def _populate_special(folder: Path) -> None:
    for name, kind, device in (
        ("old-device", stat.S_IFCHR, os.makedev(4, 7)),
        ("new-device", stat.S_IFBLK, os.makedev(259, 70_000)),
    ):
        os.mknod(folder / name, kind | 0o640, device)
    with socket.socket(socket.AF_UNIX) as opened:
        place = os.open(folder, os.O_RDONLY)
        try:
            opened.bind(f"/proc/self/fd/{place}/socket")
        finally:
            os.close(place)
    (folder / "set-uid").write_bytes(b"#!")
    (folder / "set-uid").chmod(0o6755)
    (folder / "sticky").mkdir(mode=0o1777)


def _populate_xattrs(folder: Path, generator: random.Random) -> None:
    """Attributes in inodes, in blocks, in a block of several inodes, and as inodes of their own."""
    large = generator.randbytes(40_000)
    for number in range(6):
        place = folder / f"attributes-{number}"
        place.write_bytes(b"with attributes")
        os.setxattr(place, "user.small", b"%d" % number)
        os.setxattr(place, "trusted.shared", b"the same for all of them " * 20)
        with contextlib.suppress(OSError):
            os.setxattr(place, "user.large", large[: 20_000 * (number % 3)])
    os.setxattr(folder / "attributes-0", "user.empty", b"")
    os.setxattr(folder / "attributes-0", "security.capability", _CAPABILITY)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permissions, number)
        for tag, permissions, number in (
            (0x01, 6, 0xFFFFFFFF),
            (0x02, 7, 1234),
            (0x04, 4, 0xFFFFFFFF),
            (0x08, 5, 4321),
            (0x10, 7, 0xFFFFFFFF),
            (0x20, 0, 0xFFFFFFFF),
        )
    )
    os.setxattr(folder / "attributes-1", "system.posix_acl_access", acl)
    (folder / "with-default").mkdir()
    os.setxattr(folder / "with-default", "system.posix_acl_default", acl)
    (folder / "with-default" / "inherits").write_bytes(b"")
    (folder / "link").symlink_to("attributes-0")
    os.setxattr(folder / "link", "trusted.on-link", b"yes", follow_symlinks=False)


def _populate_allocated(folder: Path, generator: random.Random) -> None:
    """Space without content, where the file system has such: all of it must read as zeros."""
    content = generator.randbytes(1 << 20)
    steps: dict[str, list[tuple[str, ...]]] = {
        "untouched": [("-l", "1MiB")],
        "middle": [("-l", "1MiB")],
        "behind-end": [("--keep-size", "-l", "1MiB")],
        "far-behind-end": [("--keep-size", "-o", "1MiB", "-l", "64KiB")],
        "punched": [("--punch-hole", "-o", "131072", "-l", "262144")],
        "zeroed": [("--zero-range", "-o", "65536", "-l", "262144")],
        "collapsed": [("--collapse-range", "-o", "131072", "-l", "131072")],
        "inserted": [("--insert-range", "-o", "131072", "-l", "131072")],
    }
    for name, commands in steps.items():
        place = folder / f"allocated-{name}"
        if name in ("punched", "zeroed", "collapsed", "inserted"):
            place.write_bytes(content)
        elif name != "untouched":
            place.write_bytes(content[:100])
        for command in commands:
            # ext2 and ext3 cannot do it: then there is simply the file.
            subprocess.run(["fallocate", *command, str(place)], capture_output=True, check=False)
        if name == "middle" and place.stat().st_size > 500_000:
            with place.open("r+b") as opened:
                opened.seek(400_000)
                opened.write(content[:9000])
