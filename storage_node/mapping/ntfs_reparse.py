"""Reparse points: files that are links, devices, or whose content is somewhere else.

A reparse point is a tag and what the program behind the tag makes of it.  Links of Windows and the special files of
Linux on Windows are decoded.  With compression by WOF, deduplication or a cloud the content is not where a file's
content is: then nobody may take what is there for it, and the row says so.

Before there were reparse points for it, Interix kept links and devices in system files that begin with a mark, and
ntfs-3g still does; those are decoded too.  Its pipes and sockets are system files of no and of one byte: Windows has
such files as well, so they stay files.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from backplane.file_map.model import Kind
from storage_node.mapping.ntfs_names import decode_name

TARGET_BYTES_MAX: Final = 64 * 1024
INTERIX_BYTES_MAX: Final = 8 + 2 * 4096
"""Of a symbolic link as Interix and ntfs-3g make it: its mark, and a path of Linux in UTF-16."""

MOUNT_POINT: Final = 0xA0000003
SYMLINK: Final = 0xA000000C
LINUX_SYMLINK: Final = 0xA000001D
_CLOUD_MASK: Final = 0xFFFF0FFF
_CLOUD: Final = 0x9000001A

_SPECIAL: Final = {
    0x80000023: Kind.SOCKET,
    0x80000024: Kind.FIFO,
    0x80000025: Kind.CHARACTER,
    0x80000026: Kind.BLOCK,
}
"""Special files of the Linux subsystem; the numbers of a device are in the extended attribute $LXDEV."""

_ELSEWHERE: Final = {
    0x80000013: "Windows deduplication",
    0x80000017: "WOF compression",
    0x80000007: "single-instance storage",
    0x80000021: "OneDrive",
    0xC0000004: "hierarchical storage",
    0x80000006: "hierarchical storage",
}
"""Whose files have their content elsewhere."""

_HEAD: Final = struct.Struct("<IHH")
_LINK: Final = struct.Struct("<HHHH")
_INTERIX_DEVICE: Final = struct.Struct("<QQ")
_EXTENDED: Final = struct.Struct("<IBBH")


class Meaning(NamedTuple):
    """What a reparse point makes of its file; `kind` is None if it stays what it is."""

    kind: Kind | None = None
    target: bytes = b""
    error: str = ""
    device: int = 0


def decode_reparse(data: bytes, *, is_directory: bool, extended: bytes = b"") -> Meaning:
    """Say what a reparse point means.  `extended` is the file's $EA attribute."""
    if len(data) < _HEAD.size:
        return Meaning(error="its reparse point is damaged")
    tag, count, _ = _HEAD.unpack_from(data)
    content = data[_HEAD.size :]
    if tag in (MOUNT_POINT, SYMLINK):
        return _windows_link(content, 4 if tag == SYMLINK else 0)
    if tag == LINUX_SYMLINK:
        target = content[4:count]
        if count > len(content) or not target or len(target) > TARGET_BYTES_MAX:
            return Meaning(error="the target of the link is damaged")
        return Meaning(Kind.SYMLINK, target)
    if tag in _SPECIAL:
        kind = _SPECIAL[tag]
        if kind in (Kind.SOCKET, Kind.FIFO):
            return Meaning(kind)
        device = _linux_device(extended)
        return Meaning(kind, error="" if device else "its device numbers are lost", device=device)
    if tag in _ELSEWHERE:
        return Meaning(error=f"its content is elsewhere: {_ELSEWHERE[tag]}")
    if tag & _CLOUD_MASK == _CLOUD:
        # A directory of a cloud is a directory: what is in it has rows of its own.
        return Meaning(error="" if is_directory else "its content is elsewhere: a cloud file")
    error = f"unknown reparse point {tag:08X}h"
    return Meaning(None if is_directory else Kind.OTHER, error=error)


def decode_interix(data: bytes) -> Meaning:
    """Say what a system file is that begins like those of Interix, as ntfs-3g makes them; else nothing."""
    mark, content = data[:8], data[8:]
    if mark == b"IntxLNK\1" and content:
        even = content[: len(content) & ~1]
        return Meaning(Kind.SYMLINK, decode_name(even))
    if mark in (b"IntxCHR\0", b"IntxBLK\0") and len(content) == _INTERIX_DEVICE.size:
        major, minor = _INTERIX_DEVICE.unpack(content)
        kind = Kind.CHARACTER if mark == b"IntxCHR\0" else Kind.BLOCK
        if max(major, minor) >> 32:
            return Meaning(kind, error="its device numbers are damaged")
        return Meaning(kind, device=major << 32 | minor)
    return Meaning()


def _windows_link(content: bytes, paths_at: int) -> Meaning:
    """A link has a target for the system and one to show: the system's is the one that works."""
    paths_at += _LINK.size
    if len(content) < paths_at:
        return Meaning(error="the target of the link is damaged")
    offset, count, _, _ = _LINK.unpack_from(content)
    target = content[paths_at + offset : paths_at + offset + count]
    if len(target) != count or not count or count & 1:
        return Meaning(error="the target of the link is damaged")
    name = decode_name(target)
    for system, shown in ((b"\\??\\UNC\\", b"\\\\"), (b"\\??\\", b"")):
        if name.startswith(system):
            name = shown + name.removeprefix(system)
            break
    return Meaning(Kind.SYMLINK, name.replace(b"\\", b"/"))


def _linux_device(extended: bytes) -> int:
    """Find $LXDEV in the list of extended attributes: major and minor number, 32 bits each."""
    at = 0
    while at + _EXTENDED.size <= len(extended):
        distance, _, name_bytes, value_bytes = _EXTENDED.unpack_from(extended, at)
        name_at = at + _EXTENDED.size
        value_at = name_at + name_bytes + 1
        value = extended[value_at : value_at + value_bytes]
        if extended[name_at : name_at + name_bytes] == b"$LXDEV" and len(value) == 8:
            return int.from_bytes(value[:4], "little") << 32 | int.from_bytes(value[4:], "little")
        if distance < _EXTENDED.size:
            break
        at += distance
    return 0
