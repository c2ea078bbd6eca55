"""Images of XFS made by the real tools, and what the kernel says of them.

An image is filled with a pattern first, and nothing discards it: whoever reads a block that was never written sees it.
`TEST_DIR` and its companions are what mkfs.xfs asks for before it makes file systems as small as these.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, Kind
from backplane.testing import rubbish
from backplane.testing.file_truth import content_digest
from backplane.testing.loop_mounts import mount_image
from backplane.units import MIB

IMAGE_BYTES: Final = 64 * MIB
STALE: Final = b"stale data of somebody else! " * 4519
"""131,051 bytes: at no offset does it repeat with a block."""

_FIEMAP: Final = 0xC020660B
_FIEMAP_SYNC: Final = 1
_FIEMAP_LAST: Final = 0x1
_FIEMAP_UNWRITTEN: Final = 0x800
_FIEMAP_SHARED: Final = 0x2000
_FIEMAP_AT_ONCE: Final = 512
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
        rubbish.fill(file, size_bytes, STALE)
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
    done = mount_image(image, point, ",".join(("noatime", "nouuid", *options)))
    assert not done.returncode, f"{image}: {done.stderr}"
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
    """Copy some bytes of an image into a file of EEh and nothing; return how many."""
    total = 0
    with image.open("rb") as source, target.open("wb") as file:
        size = os.fstat(source.fileno()).st_size
        rubbish.fill(file, size, b"\xee")
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
