"""Attributes of a cartridge's memory (medium auxiliary memory) as READ ATTRIBUTE answers them (tape reference 7.2).

    reply      0-3   available data: bytes that follow
    attribute  0-1   identifier
               2     bit 7 read only; bits 1-0 format: 0 binary, 1 ASCII, 2 text
               3-4   length
               5-    value

    volume coherency information (080Ch), its value
               0     length of the volume change reference: 8
               1-8   volume change reference when the last trailer was written
               9-16  coherency count: sequence number of that trailer
               17-24 coherency set identifier: its object number
               25-26 length of what follows: 42
               27-30 "SDV" and 00h
               31-67 UUID of the volume as text, and 00h
               68    version: 1

If the volume change reference of the cartridge (0009h) is that of its coherency information, nothing has been written
since that trailer.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from backplane.errors import UsageError

ATTRIBUTES_MAX: Final = 256
ATTRIBUTE_BYTES_MAX: Final = 1024
MEBIBYTE: Final = 1 << 20
"""Unit of the capacities."""

_HEADER: Final = struct.Struct(">HBH")
_AVAILABLE: Final = struct.Struct(">I")
_READ_ONLY: Final = 0x80
_COHERENCY: Final = struct.Struct(">BQQQH4s37sB")
_OWNER: Final = b"SDV\0"
_UUID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class AttributeFormat(IntEnum):
    """What a value is."""

    BINARY = 0
    ASCII = 1
    TEXT = 2


class AttributeId(IntEnum):
    """The attributes that we keep."""

    REMAINING_CAPACITY = 0x0000
    MAXIMUM_CAPACITY = 0x0001
    TAPE_ALERT_FLAGS = 0x0002
    LOAD_COUNT = 0x0003
    VOLUME_CHANGE_REFERENCE = 0x0009
    BYTES_WRITTEN_IN_LIFE = 0x0220
    BYTES_READ_IN_LIFE = 0x0221
    BYTES_WRITTEN_IN_LAST_LOAD = 0x0222
    BYTES_READ_IN_LAST_LOAD = 0x0223
    SERIAL_NUMBER = 0x0401
    APPLICATION_VENDOR = 0x0800
    BARCODE = 0x0806
    MEDIA_POOL = 0x0808
    COHERENCY = 0x080C


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute: identifier, format, value.  Those of the device (below 0800h) are read only."""

    id: int
    format: AttributeFormat
    value: bytes

    @property
    def number(self) -> int:
        """A binary value as a number."""
        return int.from_bytes(self.value, "big")

    @property
    def text(self) -> str:
        """An ASCII or text value without its filling."""
        return self.value.decode("utf-8", errors="replace").rstrip(" \0")


def binary(identifier: int, value: int, *, length: int = 8) -> Attribute:
    """Return a number."""
    return Attribute(
        id=identifier, format=AttributeFormat.BINARY, value=value.to_bytes(length, "big")
    )


def ascii_text(identifier: int, value: str, *, length: int) -> Attribute:
    """Return left-aligned ASCII, filled up with spaces, cut at `length`."""
    raw = value.encode("ascii", errors="replace")[:length].ljust(length)
    return Attribute(id=identifier, format=AttributeFormat.ASCII, value=raw)


def long_text(identifier: int, value: str, *, length: int) -> Attribute:
    """Return text in UTF-8, filled up with zeros, cut at `length`."""
    raw = value.encode()[:length].decode(errors="ignore").encode().ljust(length, b"\0")
    return Attribute(id=identifier, format=AttributeFormat.TEXT, value=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coherency:
    """Which trailer was the last one when the cartridge had which volume change reference."""

    change_reference: int
    sequence: int
    object_number: int
    volume: str

    def encode(self) -> Attribute:
        """Return the attribute."""
        value = _COHERENCY.pack(
            8,
            self.change_reference,
            self.sequence,
            self.object_number,
            len(_OWNER) + 37 + 1,
            _OWNER,
            _dashed(self.volume).encode("ascii"),
            1,
        )
        return Attribute(id=AttributeId.COHERENCY, format=AttributeFormat.BINARY, value=value)


def _dashed(uuid: str) -> str:
    """Return 32 hexadecimal digits as a UUID is written."""
    return "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))


def decode_coherency(attribute: Attribute) -> Coherency | None:
    """Return what the attribute says, None if it is not of our making."""
    if len(attribute.value) != _COHERENCY.size:
        return None
    size, reference, sequence, place, _, owner, volume, version = _COHERENCY.unpack(attribute.value)
    if (size, owner, version) != (8, _OWNER, 1):
        return None
    uuid = volume.rstrip(b"\0").decode("latin-1").replace("-", "")
    if not _UUID.fullmatch(uuid) or _dashed(uuid).encode("ascii") != volume.rstrip(b"\0"):
        return None
    return Coherency(
        change_reference=reference, sequence=sequence, object_number=place, volume=uuid
    )


def encode_attributes(attributes: Sequence[Attribute]) -> bytes:
    """Return the reply of READ ATTRIBUTE, service action 00h: in ascending order of their identifiers."""
    body = b"".join(
        _HEADER.pack(
            attribute.id,
            attribute.format | (_READ_ONLY if attribute.id < 0x0800 else 0),
            len(attribute.value),
        )
        + attribute.value
        for attribute in sorted(attributes, key=lambda attribute: attribute.id)
    )
    return _AVAILABLE.pack(len(body)) + body


def decode_attributes(data: bytes) -> dict[int, Attribute]:
    """Return the attributes of a reply by identifier; raises `UsageError` for what is none."""
    if len(data) < _AVAILABLE.size or _AVAILABLE.unpack_from(data)[0] != len(data) - 4:
        raise UsageError("a reply of READ ATTRIBUTE with another length than it says")
    found: dict[int, Attribute] = {}
    at = _AVAILABLE.size
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise UsageError("an attribute that is cut off")
        identifier, form, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        value = data[at : at + length]
        if len(value) != length or length > ATTRIBUTE_BYTES_MAX or form & 3 == 3:
            raise UsageError(f"attribute {identifier:04X}h makes no sense")
        if identifier in found or len(found) == ATTRIBUTES_MAX:
            raise UsageError(f"attribute {identifier:04X}h is one too many")
        found[identifier] = Attribute(
            id=identifier, format=AttributeFormat(form & 3), value=bytes(value)
        )
        at += length
    return found
