"""Real file systems with a planted tree: made, changed, checked and read by their own tools, and never by us.

    planted tree --make--> image --change--> image as it is a day later
                             |                  |
                       complaint, contents: what the tools of this file system say

Whatever a machine lacks is named by `missing`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backplane.testing import (
    btrfs_images,
    disk_images,
    ext_images,
    ntfs_images,
    rubbish,
    xfs_images,
)
from backplane.testing.disk_images import run
from backplane.units import KIB
from tests.site.planted_tree import (
    CHANGED_AT,
    LARGE,
    REMOVED,
    SCATTERED,
    SYMLINK,
    changed_piece,
    old_piece,
)


@dataclass(frozen=True)
class System(ABC):
    """A file system and what it can keep; its image is a file of its own."""

    size_bytes: int
    has_links: bool = True
    has_modes: bool = True
    has_xattrs: bool = True
    has_holes: bool = True
    is_scattered: bool = True
    """Whether the scattered file has several extents."""
    not_in_place: Mapping[str, str] = field(default_factory=dict)
    """Files that are not put back in place, and a word of the reason."""

    @abstractmethod
    def missing(self) -> str:
        """Name what this machine lacks, "" if nothing."""

    @abstractmethod
    def make(self, image: Path, tree: Path) -> None:
        """Make an image with this tree."""

    @abstractmethod
    def change(self, image: Path, more: Path) -> None:
        """Add the files of `more`, remove one, overwrite the middle of the large one."""

    @abstractmethod
    def complaint(self, image: Path) -> str:
        """Return what the file system's own check has against an image, "" if nothing."""

    @abstractmethod
    def contents(self, image: Path, folder: Path) -> AbstractContextManager[Path]:
        """Show the files of an image, read by somebody else than us, in a folder."""


def overwrite_in_image(image: Path, old: bytes) -> None:
    """Overwrite the changed piece where it is, as a driver would: what it replaces occurs nowhere else."""
    data = image.read_bytes()
    assert data.count(old) == 1, f"the piece occurs {data.count(old)} times"
    with image.open("r+b") as file:
        file.seek(data.index(old))
        file.write(changed_piece())


@dataclass(frozen=True)
class Ext(System):
    """ext3 and ext4, by mke2fs and debugfs; the kernel reads them where it may."""

    options: tuple[str, ...] = ("-t", "ext4", "-b", "1024")
    needs_mount: bool = False

    def missing(self) -> str:
        return ext_images.missing(needs_mount=self.needs_mount)

    def make(self, image: Path, tree: Path) -> None:
        """The scattered file is written when only the places of removed files are free at the front."""
        with _without(tree, SCATTERED) as scattered, _fillers(tree) as fillers:
            ext_images.make_volume(image, self.size_bytes, *self.options, tree=tree)
            removed = [f"rm /{name}" for name in fillers[::2]]
            ext_images.debugfs(image, *removed, f"write {scattered} {SCATTERED}")
            ext_images.debugfs(image, *(f"rm /{name}" for name in fillers[1::2]))

    def change(self, image: Path, more: Path) -> None:
        requests = ["mkdir new", "cd new"]
        requests += [f"write {path} {path.name}" for path in sorted((more / "new").iterdir())]
        ext_images.debugfs(image, f'rm "/{REMOVED}"', *requests)
        overwrite_in_image(image, old_piece())

    def complaint(self, image: Path) -> str:
        return _complaint("e2fsck", "-fn", image)

    @contextmanager
    def contents(self, image: Path, folder: Path) -> Iterator[Path]:
        if ext_images.missing(needs_mount=True):
            ext_images.debugfs(image, f"rdump / {folder}")
            yield folder
        else:
            with ext_images.mounted(image, folder, "ro") as root:
                yield root


@dataclass(frozen=True)
class Fat(System):
    """FAT32 by mtools: nothing is mounted."""

    def missing(self) -> str:
        return disk_images.missing("mkfs.fat", "fsck.fat", "mcopy")

    def make(self, image: Path, tree: Path) -> None:
        _fill(image, self.size_bytes)
        run("mkfs.fat", "-F", "32", "-s", "1", image)
        with _without(tree, SCATTERED) as scattered, _without(tree, SYMLINK), _fillers(tree):
            run("mcopy", "-s", "-m", "-i", image, *sorted(tree.iterdir()), "::")
            run("mdel", "-i", image, "::filler-*[02468]")
            _forget_where_clusters_are_free(image)
            run("mcopy", "-m", "-i", image, scattered, f"::{SCATTERED}")
            run("mdel", "-i", image, "::filler-*")

    def change(self, image: Path, more: Path) -> None:
        run("mdel", "-i", image, f"::{REMOVED}")
        run("mcopy", "-s", "-m", "-i", image, more / "new", "::")
        overwrite_in_image(image, old_piece())

    def complaint(self, image: Path) -> str:
        return _complaint("fsck.fat", "-n", image)

    @contextmanager
    def contents(self, image: Path, folder: Path) -> Iterator[Path]:
        run("mcopy", "-s", "-n", "-i", image, "::*", folder)
        yield folder


class Mounted(System):
    """A file system that is filled and read through a mount."""

    copy_options: tuple[str, ...] = ("-a",)

    @abstractmethod
    def format(self, image: Path) -> None:
        """Make an empty one."""

    @abstractmethod
    def opened(
        self, image: Path, folder: Path, *, is_read_only: bool
    ) -> AbstractContextManager[Path]:
        """Mount it."""

    def add_special(self, root: Path) -> None:
        """Add what only this file system has."""

    def make(self, image: Path, tree: Path) -> None:
        self.format(image)
        with (
            _without(tree, SCATTERED) as scattered,
            self.opened(image, image.parent / "mounted", is_read_only=False) as root,
        ):
            with _without(tree, "" if self.has_links else SYMLINK):
                run("cp", *self.copy_options, *sorted(tree.iterdir()), root)
            _write_in_turn(root, scattered.read_bytes())
            self.add_special(root)

    def change(self, image: Path, more: Path) -> None:
        with self.opened(image, image.parent / "mounted", is_read_only=False) as root:
            (root / REMOVED).unlink()
            run("cp", "-r", more / "new", root)
            with (root / LARGE).open("r+b") as file:
                file.seek(CHANGED_AT)
                file.write(changed_piece())

    @contextmanager
    def contents(self, image: Path, folder: Path) -> Iterator[Path]:
        with self.opened(image, folder, is_read_only=True) as root:
            yield root


class Xfs(Mounted):
    """XFS by the kernel, with a clone."""

    def missing(self) -> str:
        return xfs_images.missing_for_mounts()

    def format(self, image: Path) -> None:
        xfs_images.make_image(image, size_bytes=self.size_bytes)

    def opened(
        self, image: Path, folder: Path, *, is_read_only: bool
    ) -> AbstractContextManager[Path]:
        return xfs_images.mounted(image, folder, *(["ro"] if is_read_only else []))

    def add_special(self, root: Path) -> None:
        _write_clones(root)

    def complaint(self, image: Path) -> str:
        return xfs_images.repair_finds(image)


class Btrfs(Mounted):
    """btrfs by the kernel, with a clone and a compressed file."""

    def missing(self) -> str:
        return btrfs_images.missing_mount()

    def format(self, image: Path) -> None:
        btrfs_images.make_volume(image, self.size_bytes)

    def opened(
        self, image: Path, folder: Path, *, is_read_only: bool
    ) -> AbstractContextManager[Path]:
        return btrfs_images.mounted(image, folder, "ro" if is_read_only else "noatime")

    def add_special(self, root: Path) -> None:
        _write_clones(root)
        (root / "squeezed").touch()
        run("btrfs", "property", "set", root / "squeezed", "compression", "zstd")
        with (root / "squeezed").open("wb") as file:
            file.write(btrfs_images.text(200_000, 5))

    def complaint(self, image: Path) -> str:
        return _complaint("btrfs", "check", "--readonly", image)


class Ntfs(Mounted):
    """NTFS by ntfs-3g.  Its attributes of Linux are streams, so there are none here."""

    copy_options = ("-r", "--no-dereference", "--preserve=links,timestamps")

    def missing(self) -> str:
        return ntfs_images.missing()

    def format(self, image: Path) -> None:
        ntfs_images.make_volume(image, self.size_bytes)

    def opened(
        self, image: Path, folder: Path, *, is_read_only: bool
    ) -> AbstractContextManager[Path]:
        return ntfs_images.mounted(image, "ro" if is_read_only else "")

    def complaint(self, image: Path) -> str:
        return _complaint("ntfsfix", "-n", image)


class Exfat(Mounted):
    """exFAT by exfat-fuse."""

    copy_options = ("-r", "--preserve=timestamps")

    def missing(self) -> str:
        if os.geteuid() or not Path("/dev/fuse").exists():
            return "needs root and /dev/fuse"
        if not Path("/dev/loop-control").exists():
            return "needs loop devices"
        return disk_images.missing("mkfs.exfat", "mount.exfat-fuse", "losetup", "fsck.exfat")

    def format(self, image: Path) -> None:
        _fill(image, self.size_bytes)
        run("mkfs.exfat", "-c", "4096", image)

    @contextmanager
    def opened(self, image: Path, folder: Path, *, is_read_only: bool) -> Iterator[Path]:
        folder.mkdir(exist_ok=True)
        device = run("losetup", "--find", "--show", image).strip()
        try:
            run("mount.exfat-fuse", *(["-o", "ro"] if is_read_only else []), device, folder)
            try:
                yield folder
            finally:
                run("umount", folder)
        finally:
            run("losetup", "--detach", device)

    def complaint(self, image: Path) -> str:
        return _complaint("fsck.exfat", "-n", image)


# --- how trees come to images --------------------------------------------------------------------


@contextmanager
def _without(tree: Path, name: str) -> Iterator[Path]:
    """Take a path out of a tree for a while; yields where it is meanwhile."""
    if not name:
        yield tree
        return
    aside = tree.parent / f"aside-{name.replace('/', '-')}"
    (tree / name).rename(aside)
    try:
        yield aside
    finally:
        aside.rename(tree / name)


@contextmanager
def _fillers(tree: Path) -> Iterator[list[str]]:
    """Add files of which every other one is removed again, so that what comes next has to lie between them."""
    names = [f"filler-{number:02}" for number in range(40)]
    for name in names:
        (tree / name).write_bytes(name.encode() * 300)
    try:
        yield names
    finally:
        for name in names:
            (tree / name).unlink()


def _write_clones(root: Path) -> None:
    (root / "cloned").write_bytes(btrfs_images.noise(90_000, 6))
    btrfs_images.settle(root / "cloned")
    btrfs_images.clone(root / "cloned", root / "clone")


def _write_in_turn(root: Path, content: bytes) -> None:
    """Write the scattered file in turn with another one, each piece for good before the next."""
    step = 16 * KIB
    with (root / SCATTERED).open("wb") as file, (root / "between").open("wb") as other:
        for at in range(0, len(content), step):
            for each, data in ((file, content[at : at + step]), (other, bytes([at % 251]) * step)):
                each.write(data)
                each.flush()
                os.fsync(each.fileno())


def _fill(image: Path, size_bytes: int) -> None:
    """Fill a file with what somebody has deleted."""
    with image.open("wb") as file:
        rubbish.fill(file, size_bytes, ntfs_images.STALE)


def _complaint(*command: str | Path) -> str:
    """Run a check; return what it says if it does not end well."""
    try:
        run(*command)
    except AssertionError as error:
        return str(error)
    return ""


def _forget_where_clusters_are_free(image: Path) -> None:
    """Have whoever writes next begin to look at the front."""
    with image.open("r+b") as file:
        file.seek(512 + 492)
        file.write(b"\xff" * 4)
