"""Disks with real file systems: one that is all of it, several behind a partition table, one on a logical volume.

A part is worked on as a file of its own, so that no tool needs to know where it lies.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from backplane.testing import disk_images, lvm_images
from backplane.testing.disk_images import run
from backplane.testing.rubbish import write_sparse
from backplane.units import MIB
from tests.site.planted_tree import TINY, Facts
from tests.site.real_systems import Btrfs, Exfat, Ext, Fat, Ntfs, System, Xfs


class Part(NamedTuple):
    """Where a file system lies on a disk, and what its paths begin with."""

    system: System
    at: int = 0
    prefix: str = ""


@dataclass(frozen=True)
class Disk:
    """An image with file systems."""

    size_bytes: int
    parts: tuple[Part, ...]
    lay_out: Callable[[Path], None] | None = None
    """Makes the image with its tables; without it the image is the file system."""
    tools: tuple[str, ...] = ()

    def missing(self) -> str:
        """Name what this machine lacks, "" if nothing."""
        reasons = (part.system.missing() for part in self.parts)
        return disk_images.missing(*self.tools) or next(filter(None, reasons), "")

    def make(self, image: Path, tree: Path) -> None:
        """Make it, with the tree in every part."""
        if self.lay_out is None:
            self.parts[0].system.make(image, tree)
            return
        self.lay_out(image)
        for part in self.parts:
            with _piece_of(image, part, is_empty=True) as piece:
                part.system.make(piece, tree)

    def change(self, image: Path, more: Path) -> None:
        """Change every part."""
        for part in self.parts:
            with _piece_of(image, part) as piece:
                part.system.change(piece, more)

    def complaints(self, image: Path) -> list[str]:
        """Return what the checks of all parts have to say."""
        found = []
        for part in self.parts:
            with _piece_of(image, part) as piece:
                found.append(part.system.complaint(piece))
        return list(filter(None, found))

    def contents(self, image: Path, wanted: Callable[[str], bool]) -> dict[str, Facts]:
        """Return what is in the files that are wanted, as others than us read them."""
        found = {}
        for part in self.parts:
            folder = image.parent / "contents"
            folder.mkdir()
            with _piece_of(image, part) as piece, part.system.contents(piece, folder) as root:
                for path in sorted(root.rglob("*")):
                    name = str(path.relative_to(root))
                    if wanted(name) and stat.S_ISREG(path.lstat().st_mode):
                        content = path.read_bytes()
                        digest = hashlib.sha256(content).hexdigest()
                        found[path_in(part, name)] = Facts(len(content), digest)
            shutil.rmtree(folder)
        return found


def path_in(part: Part, path: str) -> str:
    """Return the path of a file of a part in the map of the disk."""
    return f"{part.prefix}/{path}" if part.prefix else path


@contextmanager
def _piece_of(image: Path, part: Part, *, is_empty: bool = False) -> Iterator[Path]:
    """Give a part as a file of its own, and take it back."""
    size = part.system.size_bytes
    if size == image.stat().st_size:
        yield image
        return
    piece = image.parent / f"{image.name}-{part.prefix}"
    with image.open("r+b") as file:
        if not is_empty:
            file.seek(part.at)
            write_sparse(piece, file.read(size))
        yield piece
        data = piece.read_bytes()
        assert len(data) == size
        file.seek(part.at)
        file.write(data)
    piece.unlink()


def _lay_out_gpt(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(GPT_BYTES)
    run("sgdisk", "-o", "-n", "1:2048:+40M", "-n", "2:0:+32M", image)


def _lay_out_lvm(image: Path) -> None:
    """A physical volume with one linear logical volume."""
    extents = LVM_PART_BYTES // lvm_images.EXTENT_BYTES
    text = lvm_images.group_text(
        "vg0", {"pv0": extents}, {"root": [lvm_images.Segment(extents, [("pv0", 0)])]}
    )
    write_sparse(image, bytes(lvm_images.physical_volume("pv0", LVM_BYTES, text)))


GPT_BYTES: Final = 80 * MIB
LVM_PART_BYTES: Final = 32 * MIB
LVM_BYTES: Final = lvm_images.DATA_AT + LVM_PART_BYTES + MIB

EXT4: Final = Ext(32 * MIB)
FAT32: Final = Fat(40 * MIB, has_links=False, has_modes=False, has_xattrs=False, has_holes=False)


def _alone(system: System) -> Disk:
    return Disk(system.size_bytes, (Part(system),))


DISKS: Final = {
    "ext4": _alone(EXT4),
    "ext4 with inline data": _alone(
        Ext(
            32 * MIB,
            options=("-t", "ext4", "-O", "inline_data"),
            needs_mount=True,  # debugfs reads 60 bytes of whatever is shorter
            not_in_place={TINY: "inline"},
        )
    ),
    "ext3": _alone(Ext(32 * MIB, options=("-t", "ext3", "-I", "128"))),
    "XFS": _alone(Xfs(64 * MIB, not_in_place={"clone": "shared"})),
    "NTFS": _alone(
        Ntfs(
            48 * MIB,
            has_modes=False,
            has_xattrs=False,
            is_scattered=False,  # ntfs-3g reserves what it will need
            not_in_place={TINY: "inline"},
        )
    ),
    "FAT32": _alone(FAT32),
    "exFAT": _alone(
        Exfat(48 * MIB, has_links=False, has_modes=False, has_xattrs=False, has_holes=False)
    ),
    "btrfs": _alone(
        Btrfs(
            128 * MIB,
            not_in_place={TINY: "inline", "clone": "shared", "squeezed": "compressed"},
        )
    ),
    "GPT": Disk(
        GPT_BYTES,
        (Part(FAT32, MIB, "p1"), Part(EXT4, 41 * MIB, "p2")),
        lay_out=_lay_out_gpt,
        tools=("sgdisk",),
    ),
    "LVM2": Disk(LVM_BYTES, (Part(EXT4, lvm_images.DATA_AT, "vg0-root"),), lay_out=_lay_out_lvm),
}
"""What is taken the whole way."""
