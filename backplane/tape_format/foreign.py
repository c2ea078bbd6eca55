"""Whose tape is it, if it is not ours: by the first record, as other programs write it (tape reference, section 10).

    LTFS            VOL1 of 80 bytes with "LTFS" in bytes 24-27
    NetBackup       media header of 1024 bytes that begins with VOL1
    ANSI            VOL1 of 80 bytes of anybody else (also IBM's, in EBCDIC); IBM Storage Protect has one
    Bareos, Bacula  block header with "BB02" (or "BB01") in bytes 12-15
    Amanda          text "AMANDA: TAPESTART DATE ... TAPE label"
    tar, cpio       "ustar" in bytes 257-261; 070701 or 070707

What a foreign tape says of itself is hostile: a report is short and printable, whatever stands there.
"""

from __future__ import annotations

from typing import Final

FOREIGN_CHARACTERS_MAX: Final = 78
"""Of a report: as much as an inventory carries of a cartridge's detail."""

_VOL1: Final = b"VOL1"
_VOL1_EBCDIC: Final = bytes.fromhex("e5d6d3f1")
_ANSI_BYTES: Final = 80
_NETBACKUP_BYTES: Final = 1024
_BAREOS_ID: Final = slice(12, 16)
_TAR_MAGIC: Final = slice(257, 262)
_CPIO: Final = (b"070701", b"070702", b"070707", b"\xc7\x71", b"\x71\xc7")
_AMANDA: Final = b"AMANDA: TAPESTART"
_TEXT_MAX: Final = 32


def describe_foreign(record: bytes | memoryview, *, length: int | None = None) -> str:
    """Say whose tape begins with this record.

    `record` is its beginning (1 KiB is enough), `length` how many bytes it has altogether.
    """
    head = bytes(record[:_NETBACKUP_BYTES])
    size = len(record) if length is None else length
    return _described(head, size)[:FOREIGN_CHARACTERS_MAX]


def _described(head: bytes, size: int) -> str:
    if head.startswith(_VOL1):
        return _labelled(head, size)
    if head.startswith(_VOL1_EBCDIC):
        return f"ANSI label (EBCDIC) of {_text(head[4:10].decode('cp500'))}"
    if head[_BAREOS_ID] in (b"BB01", b"BB02"):
        # The first block holds the volume label, whose record begins with the program's name.
        return "a Bareos volume" if b"Bareos " in head else "a Bacula or Bareos volume"
    if head.startswith(_AMANDA):
        words = head.split(b"\n", 1)[0].split()
        label = words[words.index(b"TAPE") + 1 :][:1] if b"TAPE" in words else []
        return f"an Amanda tape, label {_ascii(label[0])}" if label else "an Amanda tape"
    if head[_TAR_MAGIC] == b"ustar":
        return f"a tar archive, first member {_ascii(head[:100].split(bytes(1))[0])}"
    if head.startswith(_CPIO):
        return "a cpio archive"
    if head.startswith(b"SDVMETA\0"):
        return "a volume of ours without its label"
    if not size:
        return "unknown: it begins with a filemark"
    if not head.strip(b"\0"):
        return f"unknown: the first record is {size} zero bytes"
    return f"unknown: the first record has {size} bytes and begins {head[:8].hex(' ')}"


def _labelled(head: bytes, size: int) -> str:
    name = _ascii(head[4:10])
    if size == _NETBACKUP_BYTES:
        return f"a NetBackup volume, media id {name}"
    if size == _ANSI_BYTES and head[24:28] == b"LTFS":
        return f"an LTFS volume, {name}"
    owner = _ascii(head[37:51])
    return f"ANSI label of volume {name}" + (f", owner {owner}" if owner != "''" else "")


def _ascii(raw: bytes) -> str:
    return _text(raw.decode("latin-1"))


def _text(text: str) -> str:
    kept = text.strip().strip("\0")[:_TEXT_MAX]
    shown = "".join(c if c.isascii() and c.isprintable() and c != "'" else "?" for c in kept)
    return f"'{shown}'"
