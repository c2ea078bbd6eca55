"""What an open folder lies in: its file system, how that is mounted, and the devices below it.

All of it is read from /proc and /sys, by the mount and device numbers of the open folder itself: the path that somebody
has typed may lead elsewhere by now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from backplane.errors import RefusedError
from storage_node.core.placement import (
    BlockDevice,
    refuse_devices,
    refuse_file_system,
    refuse_lease_time,
)

DEVICES_MAX: Final = 64


class Mount(NamedTuple):
    """A row of mountinfo."""

    device: str
    """major:minor"""
    root: str
    """What of the file system is mounted, `/` if all of it."""
    point: str
    kind: str
    options: tuple[str, ...]


def find_mount(descriptor: int) -> Mount:
    """Return the mount that an open file or folder is in."""
    told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    number = next(line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:"))
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if line.split(" ", 1)[0] == number:
                return parse_mount(line)
    raise RefusedError("the folder is in no mount of this process")


def parse_mount(line: str) -> Mount:
    """Take a row of mountinfo apart: 36 35 98:0 /root /point options - kind source superblock-options."""
    before, _, behind = line.rstrip("\n").partition(" - ")
    _, _, device, root, point, options, *_ = before.split(" ")
    kind, _, deeper = behind.split(" ")
    return Mount(
        device,
        _unescaped(root),
        _unescaped(point),
        kind,
        (*options.split(","), *deeper.split(",")),
    )


def path_in_file_system(mount: Mount, descriptor: int, below: bytes) -> bytes:
    """Return the path, from the root of the file system, of what is below an open folder."""
    here = os.fsencode(Path(f"/proc/self/fd/{descriptor}").readlink())
    point, root = (os.fsencode(path).rstrip(b"/") for path in (mount.point, mount.root))
    if here != point and not here.startswith(point + b"/"):
        raise RefusedError("the folder has been moved or removed")
    return (root + here[len(point) :] + b"/" + below).lstrip(b"/")


def _unescaped(text: str) -> str:
    """Undo what the kernel does to spaces, tabs, line ends and backslashes."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace(f"\\{code}", character)
    return text


def check_surroundings(mount: Mount, *, system: Path = Path("/")) -> None:
    """Raise `RefusedError` by name if nothing can be placed there."""
    options = mount.options
    reason = refuse_file_system(mount.kind, options)
    if not reason and mount.kind == "ext4":
        reason = refuse_file_system(mount.kind, (*options, *_ext_options(mount, system)))
    reason = reason or refuse_devices(_devices(mount.device, system))
    if not reason:
        told = (system / "proc/sys/fs/lease-break-time").read_text()
        reason = refuse_lease_time(int(told))
    if reason:
        raise RefusedError(reason)


def _ext_options(mount: Mount, system: Path) -> list[str]:
    """Return all options of an ext4: mountinfo leaves out what its superblock has made the default."""
    name = (system / "sys/dev/block" / mount.device).resolve().name
    try:
        return (system / "proc/fs/ext4" / name / "options").read_text().split("\n")
    except OSError as error:
        raise RefusedError("nothing says how the file system journals its data") from error


def _devices(device: str, system: Path) -> Iterator[BlockDevice]:
    """Yield a device and all that it is made of."""
    first = (system / "sys/dev/block" / device).resolve()
    if not first.is_dir():
        raise RefusedError(f"nothing says what device {device} is made of")
    waiting, count = [first], 0
    while waiting:
        folder = waiting.pop()
        count += 1
        if count > DEVICES_MAX:
            raise RefusedError(f"more than {DEVICES_MAX} devices are below the file system")
        yield _device(folder)
        if (folder / "partition").exists():
            waiting.append(folder.parent)
        slaves = folder / "slaves"
        if slaves.is_dir():
            waiting += sorted(each.resolve() for each in slaves.iterdir())


def _device(folder: Path) -> BlockDevice:
    uuid, direct = folder / "dm/uuid", folder / "loop/dio"
    is_loop = direct.parent.is_dir()
    return BlockDevice(
        name=folder.name,
        dm_uuid=(uuid.read_text().strip() or "?") if uuid.exists() else "",
        is_raid=(folder / "md").is_dir(),
        is_cache=(folder / "bcache").exists(),
        is_buffered_loop=is_loop and not (direct.exists() and int(direct.read_text())),
    )
