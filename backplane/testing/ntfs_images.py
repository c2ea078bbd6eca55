"""Volumes of NTFS for tests: made by mkntfs, filled through ntfs-3g, and what ntfs-3g then says is in them.

Every image is filled with a pattern first, so that whoever reads what was never written is found out.  `mounted` keeps
ntfs-3g as a child of its own and is only over when that has ended.  `tree_truth` mounts read-only and asks for all that
Linux shows: it shares nothing with the reader under test.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from backplane.file_map.model import Kind
from backplane.testing import rubbish

STALE: Final = b"What somebody has deleted, and nobody may see again. " * 20
MOUNT_S: Final = 30
LARGE_BYTES: Final = 64 * 1024 * 1024
"""Of a sparse file: larger than the volume it is in."""
_TICKS_TO_1970: Final = 116_444_736_000_000_000

_TOOLS: Final = {
    "mkntfs": "ntfs-3g",
    "ntfs-3g": "ntfs-3g",
    "ntfsfix": "ntfs-3g",
    "setpriv": "util-linux",
    "umount": "mount",
}
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
    """What ntfs-3g says of one path, or of one stream (then only its size and digest are known)."""

    kind: Kind
    size: int
    digest: str = ""
    target: bytes = b""
    times: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Of birth, data, record, access."""
    device: int = 0
    record: int = 0
    acl: bytes = b""
    flags: bytes = b""
    reparse: bytes = b""


def missing() -> str:
    """Name what volumes of NTFS need here and do not find ("" if nothing)."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: {package})"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    return "" if os.geteuid() == 0 else "needs root, to mount"


def make_volume(image: Path, size_bytes: int, *options: str) -> Path:
    """Make a volume over stale data."""
    with image.open("wb") as file:
        rubbish.fill(file, size_bytes, STALE)
    run("mkntfs", "-q", "-F", "-f", *options, str(image))
    return image


def run(*command: str) -> None:
    """Run a program that has to succeed."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert not done.returncode, f"{command}: {done.stdout!r} {done.stderr!r}"


@contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """Mount a volume; yields its root.

    Not in a folder of the test: pytest removes those of older runs, and a run that was killed may have left a mount.
    For the same reason ntfs-3g ends, and unmounts, when its parent does.
    """
    folder = Path(tempfile.mkdtemp(prefix="sb-ntfs-"))
    words = f"compression,streams_interface=xattr,big_writes,no_detach{options and ','}{options}"
    command = ["setpriv", "--pdeathsig", "TERM", "ntfs-3g", "-o", words, str(image), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + MOUNT_S
            while not folder.is_mount():
                assert process.poll() is None, f"ntfs-3g does not mount {image}"
                assert time.monotonic() < end, "ntfs-3g takes too long"
                time.sleep(0.01)
            yield folder
        finally:
            _unmount(folder, process)
            folder.rmdir()


def _unmount(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Leave no mount and no ntfs-3g behind, even if somebody else looks into the folder, or holds a copy of it."""
    end = time.monotonic() + MOUNT_S
    while folder.is_mount():
        # Lazily at last: then nobody finds it any more, and it ends when they let go.
        options = ["-l"] if time.monotonic() > end else []
        subprocess.run(["umount", *options, str(folder)], capture_output=True, check=False)
        time.sleep(0.01)
    try:
        process.wait(MOUNT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def tree_truth(image: Path, options: str = "ro") -> dict[bytes, Truth]:
    """Say what is in a volume: path -> truth, streams as `path:stream`."""
    found: dict[bytes, Truth] = {}
    with mounted(image, options) as root:
        waiting = [root]
        while waiting:
            place = waiting.pop()
            path = b"" if place == root else os.fsencode(place.relative_to(root))
            found[path] = _truth_of(place)
            if found[path].kind == Kind.DIRECTORY:
                waiting += place.iterdir()
            for name in os.listxattr(place, follow_symlinks=False):
                if name.startswith("user."):
                    value = os.getxattr(place, name, follow_symlinks=False)
                    stream = path + b":" + os.fsencode(name).removeprefix(b"user.")
                    found[stream] = Truth(Kind.FILE, len(value), hashlib.sha256(value).hexdigest())
    return found


def set_flags(place: Path, flags: int) -> None:
    """Set the flags of Windows: 800h is compressed, 4h is system."""
    os.setxattr(place, "system.ntfs_attrib_be", flags.to_bytes(4, "big"))


def set_reparse(place: Path, tag: int, data: bytes) -> None:
    """Make a file or a directory a reparse point."""
    value = struct.pack("<IHH", tag, len(data), 0) + data
    os.setxattr(place, "system.ntfs_reparse_data", value)


def populate(root: Path, *, files: int = 600) -> None:
    """Fill a volume with what a tree may have, but for links and special files."""
    generator = random.Random(4)
    (root / "sizes").mkdir()
    for size in (*range(12), 300, 480, 511, 512, 513, 600, 640, 700, 720, 900, 4095, 4096, 4097):
        (root / f"sizes/{size}").write_bytes(generator.randbytes(size))
    (root / "sizes/large").write_bytes(generator.randbytes((1 << 20) + 3))
    _populate_sparse(root, generator)
    _populate_names(root, generator)
    _populate_many(root / "many", generator, files)
    _populate_links_and_streams(root, generator)
    (root / "times").mkdir()
    for year, second in ((1902, -2145916800), (1969, -1), (2040, 2208988800), (2300, 10413792000)):
        (root / f"times/{year}").write_bytes(b"old")
        when = second * 1_000_000_000 + 123_456_700
        os.utime(root / f"times/{year}", ns=(when + 100, when))


def _populate_sparse(root: Path, generator: random.Random) -> None:
    (root / "sparse").mkdir()
    (root / "sparse/empty").touch()
    os.truncate(root / "sparse/empty", LARGE_BYTES)
    with (root / "sparse/holes").open("wb") as file:
        for place in (0, 1 << 20, (1 << 20) + 70000, 40 << 20, LARGE_BYTES - 9000):
            file.seek(place)
            file.write(generator.randbytes(9000))
    with (root / "sparse/tail").open("wb") as file:
        file.write(generator.randbytes(5000))
        file.truncate(900_000)


def _populate_names(root: Path, generator: random.Random) -> None:
    (root / "names").mkdir()
    for name in (
        b"a" * 255,
        "ü".encode() * 120,
        "\U0001f4be".encode() * 60,
        b"\xed\xa0\xbd alone",
        b"back\xed\xb0\x80wards",
        b'q?u*o"t<e>d|',
        b"trailing dot.",
        b"trailing blank ",
        b"$MFT",
        b"-",
    ):
        content = generator.randbytes(generator.randrange(2000))
        (root / "names" / os.fsdecode(name)).write_bytes(content)
    deep = root / "deep"
    for level in range(60):
        deep.mkdir()
        (deep / "file").write_bytes(b"%d" % level)
        deep /= f"level {level}"


def _populate_many(folder: Path, generator: random.Random, files: int) -> None:
    """A third of the files is deleted again, and leaves records and names behind."""
    folder.mkdir()
    for number in range(files):
        content = generator.randbytes(generator.choice((0, 30, 400, 3000)))
        (folder / f"file number {number:04}").write_bytes(content)
    for number in range(0, files, 3):
        (folder / f"file number {number:04}").unlink()


def _populate_links_and_streams(root: Path, generator: random.Random) -> None:
    (root / "links").mkdir()
    first = root / "links/first"
    first.write_bytes(generator.randbytes(20_000))
    for name in ("links/second", "third", "names/fourth"):
        (root / name).hardlink_to(first)
    (root / "streams").mkdir()
    file = root / "streams/file"
    file.write_bytes(b"the file itself")
    for name, size in (("small", 11), ("large", 50_000), ("empty", 0), ("ü \U0001f4be", 300)):
        os.setxattr(file, f"user.{name}", generator.randbytes(size))
    os.setxattr(root / "streams", "user.of a directory", b"directories have streams as well")


def fragment(root: Path, pieces: int) -> None:
    """Make `comb`, with a hole behind each of its clusters, and `between`, which has to lie in all the gaps of it."""
    generator = random.Random(5)
    (root / "spare").write_bytes(bytes(1 << 20))
    with (root / "comb").open("wb", buffering=0) as file:
        for number in range(pieces):
            file.seek(number * 8192)
            file.write(generator.randbytes(4096))
    fill(root / "between")
    (root / "spare").unlink()


def fill(place: Path) -> None:
    """Write until there is no room."""
    with place.open("wb", buffering=0) as file:
        block = STALE[:1024] * 1024
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2 if len(block) > 4096 else 0]


def patch(image: Path, place: int, content: bytes) -> bytes:
    """Change some bytes of an image; returns what was there."""
    with image.open("r+b") as file:
        file.seek(place)
        before = file.read(len(content))
        file.seek(place)
        file.write(content)
    return before


def _truth_of(place: Path) -> Truth:
    info = place.lstat()
    kind = next(kind for is_kind, kind in _KINDS if is_kind(info.st_mode))
    times = struct.unpack("<4q", os.getxattr(place, "system.ntfs_times", follow_symlinks=False))
    birth, mtime, atime, ctime = ((ticks - _TICKS_TO_1970) * 100 for ticks in times)
    return Truth(
        kind=kind,
        size=info.st_size,
        digest=_digest(place, info.st_size) if kind == Kind.FILE else "",
        target=os.fsencode(place.readlink()) if kind == Kind.SYMLINK else b"",
        times=(birth, mtime, ctime, atime),
        device=os.major(info.st_rdev) << 32 | os.minor(info.st_rdev),
        record=info.st_ino,
        acl=_xattr(place, "system.ntfs_acl"),
        flags=_xattr(place, "system.ntfs_attrib_be"),
        reparse=_xattr(place, "system.ntfs_reparse_data"),
    )


def _xattr(place: Path, name: str) -> bytes:
    try:
        return os.getxattr(place, name, follow_symlinks=False)
    except OSError:
        return b""


def _digest(place: Path, size: int) -> str:
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
        assert file.tell() == size
    return digest.hexdigest()
