"""Disks for tests: partition tables made by hand, copies of only what is allocated, and damage from a seed.

What is made here shares no code with the readers; tools of others are named by whoever needs them, and a test skips by
that name.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

SECTOR: Final = 512
FILLER: Final = 0xEE
LINUX: Final = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
"""The type of a Linux partition in a GPT, as it lies on the disk."""
PACKAGES: Final = {
    "mkfs.fat": "dosfstools",
    "fsck.fat": "dosfstools",
    "mcopy": "mtools",
    "mkfs.exfat": "exfatprogs",
    "fsck.exfat": "exfatprogs",
    "mount.exfat-fuse": "exfat-fuse",
    "sgdisk": "gdisk",
    "sfdisk": "fdisk",
    "parted": "parted",
    "mkfs.ext4": "e2fsprogs",
    "mkswap": "util-linux",
    "losetup": "mount",
    "lvcreate": "lvm2",
}


class Readable(Protocol):
    """Whatever has bytes to read."""

    @property
    def size_bytes(self) -> int:
        """All bytes."""

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly these."""


class Recording:
    """Hands every read on, and knows what was read."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.ranges: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        """All bytes."""
        return self._source.size_bytes

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly these, and remember."""
        self.ranges.append((offset, offset + count))
        return self._source.read(offset, count)


def missing(*tools: str) -> str:
    """Name the first tool that is not here, "" if all are."""
    for tool in tools:
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: {PACKAGES.get(tool, tool)})"
    return ""


def run(*command: str | Path, text: str = "", fails: bool = False) -> str:
    """Run a tool with UTC and UTF-8; return all that it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    )
    said = done.stdout.decode(errors="replace")
    assert bool(done.returncode) == fails, f"{command[0]} ended with {done.returncode}: {said}"
    return said


def meets(ranges: Iterable[tuple[int, int]], places: Iterable[tuple[int, int]]) -> bool:
    """Whether any (first, behind) of one list overlaps one of the other."""
    events = sorted([(*one, 0) for one in ranges] + [(*one, 1) for one in places])
    ends = [0, 0]
    for first, behind, side in events:
        if first < ends[1 - side]:
            return True
        ends[side] = max(ends[side], behind)
    return False


def kept_only(data: bytes, runs: Iterable[tuple[int, int]]) -> bytearray:
    """Return a copy in which everything outside of these runs is the filler; the runs are checked on the way."""
    copy = bytearray([FILLER]) * len(data)
    end = 0
    for first, behind in runs:
        assert end <= first < behind <= len(data), f"run {first}..{behind} behind {end}"
        copy[first:behind] = data[first:behind]
        end = behind
    return copy


class Damage(NamedTuple):
    """A damaged image, and what was done to it."""

    data: bytearray
    what: str


def damaged(
    data: bytes, places: Sequence[tuple[int, int]], *, count: int, seed: int
) -> Iterator[Damage]:
    """Yield `count` copies with one thing wrong each, somewhere in these places (first, behind)."""
    chance = random.Random(seed)
    copy = bytearray(data)
    for number in range(count):
        first, behind = chance.choice(places)
        at = chance.randrange(first, behind)
        size = min(chance.choice((1, 1, 1, 2, 4, 4, 8, 32, 512)), behind - at)
        kind = chance.choice(("bit", "zeros", "ones", "noise", "other"))
        if kind == "bit":
            size, new = 1, bytes([copy[at] ^ 1 << chance.randrange(8)])
        elif kind == "other":
            start = chance.randrange(first, behind - size + 1)
            new = bytes(copy[start : start + size])
        else:
            new = {"zeros": bytes(size), "ones": b"\xff" * size}.get(kind, chance.randbytes(size))
        old = bytes(copy[at : at + size])
        copy[at : at + size] = new
        yield Damage(copy, f"{number}: {kind} of {size} at {at}")
        copy[at : at + size] = old


# --- partition tables ------------------------------------------------------------------------------


def boot_record(*entries: tuple[int, int, int], indicator: int = 0) -> bytes:
    """Return a sector with up to four entries (type, first sector, sectors)."""
    table = b"".join(
        struct.pack("<B3sB3sII", indicator, b"", kind, b"", first, count)
        for kind, first, count in entries
    )
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


class GptEntry(NamedTuple):
    """A partition; the last sector belongs to it."""

    first: int
    last: int
    name: str = ""
    kind: bytes = LINUX


def gpt_disk(
    sectors: int, entries: Sequence[GptEntry], *, sector_bytes: int = SECTOR, slots: int = 128
) -> bytearray:
    """Return an empty disk with a GPT and its backup."""
    disk = bytearray(sectors * sector_bytes)
    disk[:SECTOR] = boot_record((0xEE, 1, sectors - 1))
    table = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            entry.kind if entry.last else bytes(16),
            bytes([number]) * 16,
            entry.first,
            entry.last,
            0,
            entry.name.encode("utf-16-le"),
        )
        for number, entry in enumerate(entries, 1)
    ).ljust(slots * 128, b"\0")
    table_sectors = -(-len(table) // sector_bytes)
    for own, other, at in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - table_sectors)):
        head = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            92,
            0,
            0,
            own,
            other,
            2 + table_sectors,
            sectors - 2 - table_sectors,
            b"disk" * 4,
            at,
            slots,
            128,
            zlib.crc32(table),
        )
        head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
        disk[own * sector_bytes : own * sector_bytes + len(head)] = head
        disk[at * sector_bytes : at * sector_bytes + len(table)] = table
    return disk
