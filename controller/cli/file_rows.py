"""Rows of maps for people and for programs: names that cannot harm a terminal, lines like those of `ls`, JSON.

A name is bytes that anybody may have chosen.  What is printable UTF-8 is shown as it is; a backslash is doubled, a byte
that is no UTF-8 is `\\xNN`, and any character that is not printable (escape sequences, marks that turn the direction of
writing) is `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`.  So two names never look the same, and none moves the cursor.
"""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from typing import Any, Final

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Kind
from controller.cli.render import Document
from controller.core.printable import printable, printable_name

_SECOND_NS: Final = 1_000_000_000
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799
"""Of the years 1 to 9999, which is what a calendar has here."""

KIND_NAMES: Final = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
    Kind.CHARACTER: "character",
    Kind.BLOCK: "block",
    Kind.OTHER: "other",
}
_FORMATS: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.OTHER: 0,
}
_FLAG_NAMES: Final = {
    ExtentFlag.UNWRITTEN: ("u", "unwritten"),
    ExtentFlag.INLINE: ("i", "inline"),
    ExtentFlag.COMPRESSED: ("c", "compressed"),
    ExtentFlag.ENCRYPTED: ("e", "encrypted"),
    ExtentFlag.SHARED: ("s", "shared"),
    ExtentFlag.JOURNAL: ("j", "journal"),
    ExtentFlag.ESCAPED: ("", "escaped"),
}
FLAGS_HELP: Final = (
    "h holes, u unwritten space, i inside metadata, c compressed, e encrypted, s shared with other files, "
    "j partly in the journal, x extended attributes, ! not to be trusted"
)


# --- names -----------------------------------------------------------------------------------------


def shown(name: bytes) -> str:
    """Return a name or path so that it can be printed."""
    return printable_name(name)


def shown_text(text: str) -> str:
    """Return a text that a node has made, so that it can be printed."""
    return printable(text)


def name_fields(path: bytes) -> dict[str, str]:
    """Return the fields of a path in JSON: as text if it is text, and its bytes if that is not all."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return {"path": shown(path), "path_hex": path.hex()}
    return {"path": text}


# --- times -----------------------------------------------------------------------------------------


def exact_time(time_ns: int) -> str | None:
    """Return a time in RFC 3339 with nanoseconds, `@SECONDS` if no calendar has it, None if it is not kept."""
    if time_ns == NO_TIME:
        return None
    seconds, rest = divmod(time_ns, _SECOND_NS)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        return f"@{seconds}"
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"{moment.isoformat()}.{rest:09}Z"


def local_time(time_ns: int) -> str:
    """Return a time as people here read it."""
    if time_ns == NO_TIME:
        return "-"
    seconds = time_ns // _SECOND_NS
    day_s = 24 * 60 * 60  # no time zone is further away
    if not _FIRST_SECOND + day_s <= seconds <= _LAST_SECOND - day_s:
        return f"@{seconds}"
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


# --- rows ------------------------------------------------------------------------------------------


def short_line(row: FileRow) -> str:
    """Return the path of a row; directories end in a slash."""
    return shown(row.path) + ("/" if row.kind == Kind.DIRECTORY else "")


def long_line(row: FileRow) -> str:
    """Return a row as `ls -l` has it, with a column of flags."""
    target = f" -> {shown(row.target)}" if row.kind == Kind.SYMLINK else ""
    error = f"  [{shown_text(row.error)}]" if row.error else ""
    return (
        f"{mode_text(row)} {row.links:>3} {_owner(row.uid):>5} {_owner(row.gid):>5} "
        f"{size_text(row):>14} {local_time(row.mtime_ns):<19} {flag_letters(row):<4} "
        f"{short_line(row)}{target}{error}"
    )


def mode_text(row: FileRow) -> str:
    """Return kind and permissions in ten letters."""
    return stat.filemode(_FORMATS[Kind(row.kind)] | row.mode)


def size_text(row: FileRow) -> str:
    """Return the size, or of a device its number."""
    if row.kind in (Kind.CHARACTER, Kind.BLOCK):
        return device_text(row.device, ", ")
    return str(row.size)


def device_text(device: int, between: str = ":") -> str:
    """Return major and minor of a device number."""
    return f"{device >> 32}{between}{device & 0xFFFF_FFFF}"


def _owner(number: int) -> str:
    return "-" if number < 0 else str(number)


def flag_letters(row: FileRow) -> str:
    """Return what is special about a file, a letter each; see `FLAGS_HELP`."""
    letters = "h" if has_holes(row) else ""
    flags = 0
    for extent in row.extents:
        flags |= extent.flags
    letters += "".join(letter for flag, (letter, _) in _FLAG_NAMES.items() if flags & flag)
    letters += "x" if row.xattrs else ""
    return letters + ("!" if row.error else "") or "-"


def flag_names(flags: int) -> list[str]:
    """Return the names of an extent's flags."""
    names = [name for flag, (_, name) in _FLAG_NAMES.items() if flags & flag]
    unknown = flags & ~sum(_FLAG_NAMES)
    return [*names, f"{unknown:#x}"] if unknown else names


def has_holes(row: FileRow) -> bool:
    """Tell whether some of a regular file is in no extent."""
    if row.kind != Kind.FILE:
        return False
    inside = (min(e.byte_count, row.size - e.file_byte) for e in row.extents)
    return sum(count for count in inside if count > 0) < row.size


def row_document(row: FileRow) -> Document:
    """Return a row for JSON."""
    document: dict[str, Any] = {
        **name_fields(row.path),
        "kind": KIND_NAMES[Kind(row.kind)],
        "size": row.size,
        "mode": f"{row.mode:04o}",
        "uid": None if row.uid < 0 else row.uid,
        "gid": None if row.gid < 0 else row.gid,
        "mtime": exact_time(row.mtime_ns),
        "atime": exact_time(row.atime_ns),
        "ctime": exact_time(row.ctime_ns),
        "birth": exact_time(row.birth_ns),
        "links": row.links,
        "tree": row.identity.tree,
        "inode": row.identity.inode,
        "flags": flag_letters(row),
        "extents_count": len(row.extents),
        "xattrs": [shown(name) for name, _ in row.xattrs],
        "error": shown_text(row.error),
    }
    if row.kind == Kind.SYMLINK:
        document["target"] = shown(row.target)
    if row.kind in (Kind.CHARACTER, Kind.BLOCK):
        document["device"] = device_text(row.device)
    return document


def extent_document(extent: FileExtent, block_bytes: int) -> Document:
    """Return an extent for JSON; its LBAs are null where it has no place."""
    has_place = extent.volume_byte >= 0
    stored = extent.stored_bytes if extent.flags & ExtentFlag.COMPRESSED else extent.byte_count
    last = (extent.volume_byte + stored - 1) // block_bytes
    first = extent.volume_byte // block_bytes
    return {
        "file_byte": extent.file_byte,
        "byte_count": extent.byte_count,
        "volume_byte": extent.volume_byte if has_place else None,
        "lba": first if has_place else None,
        "blocks": last - first + 1 if has_place else 0,
        "flags": flag_names(extent.flags),
        "stored_bytes": extent.stored_bytes,
        "raw_bytes": extent.raw_bytes,
        "raw_offset": extent.raw_offset,
        "algorithm": shown_text(extent.algorithm),
    }
