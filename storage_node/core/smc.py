"""The commands of a medium changer, and what it answers (SMC-3): bytes to values and back.  Pure.

    MODE SENSE(6), page 1Dh     element address assignment: where the elements of each type begin, how many there are
    READ ELEMENT STATUS         what is in them, with barcodes (VOLTAG=1)
    MOVE MEDIUM                 from one address to another
    INITIALIZE ELEMENT STATUS   have the robot look

What a changer answers is hostile input: lengths are compared with what is there before they are believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

from backplane.errors import RemoteProtocolError

INITIALIZE_ELEMENT_STATUS: Final = bytes([0x07, 0, 0, 0, 0, 0])
ASSIGNMENT_BYTES: Final = 255
"""Allocation length of MODE SENSE(6)."""

STATUS_BYTES_MAX: Final = (1 << 24) - 1
"""Allocation length of READ ELEMENT STATUS has 24 bits."""

_ASSIGNMENT_PAGE: Final = 0x1D
_STATUS_HEADER: Final = struct.Struct(">HHI")
_PAGE_HEADER: Final = struct.Struct(">BBHI")
_DESCRIPTOR: Final = struct.Struct(">HBBBBBBBBH")
_PRIMARY_TAG: Final = 0x80
_FULL, _EXCEPTION, _SOURCE_VALID = 0x01, 0x04, 0x80
_TAG_BYTES: Final = 32


class ElementType(IntEnum):
    """Element type codes."""

    TRANSPORT = 1
    STORAGE = 2
    IMPORT_EXPORT = 3
    DATA_TRANSFER = 4


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Elements of one type: the first address, and how many there are."""

    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which addresses the elements have."""

    transport: Span
    storage: Span
    import_export: Span
    data_transfer: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementDescriptor:
    """What is in an element.  `tag` is the barcode without the spaces behind it; `source` the address it came from."""

    type: ElementType
    address: int
    is_full: bool
    tag: str
    exception: tuple[int, int] | None
    source: int | None


def mode_sense_assignment() -> bytes:
    """Return the CDB of MODE SENSE(6) for page 1Dh, without block descriptors."""
    return bytes([0x1A, 0x08, _ASSIGNMENT_PAGE, 0, ASSIGNMENT_BYTES, 0])


def read_element_status(*, first: int, count: int, allocation: int) -> bytes:
    """Return the CDB of READ ELEMENT STATUS for all types, with barcodes."""
    assert 0 < allocation <= STATUS_BYTES_MAX
    return struct.pack(">BBHHI", 0xB8, 0x10, first, count, allocation) + bytes(2)


def move_medium(*, transport: int, source: int, destination: int) -> bytes:
    """Return the CDB of MOVE MEDIUM."""
    return struct.pack(">BBHHHHBB", 0xA5, 0, transport, source, destination, 0, 0, 0)


def decode_assignment(data: bytes) -> Assignment:
    """Decode the reply to `mode_sense_assignment`; raises `RemoteProtocolError`."""
    if len(data) < 4:
        raise RemoteProtocolError("the changer's mode data end early")
    page = data[4 + data[3] :]
    if len(page) < 18 or page[0] & 0x3F != _ASSIGNMENT_PAGE or page[1] < 16:
        raise RemoteProtocolError("the changer has no element address assignment page")
    numbers = struct.unpack(">8H", page[2:18])
    spans = [Span(*numbers[at : at + 2]) for at in range(0, 8, 2)]
    for span in spans:
        if span.first + span.count > 0x1_0000:
            raise RemoteProtocolError("the changer has elements behind the last address")
    taken = sorted(spans)
    if any(a.first + a.count > b.first for a, b in pairwise(taken) if a.count):
        raise RemoteProtocolError("the changer's elements overlap")
    return Assignment(
        transport=spans[0], storage=spans[1], import_export=spans[2], data_transfer=spans[3]
    )


def decode_status(data: bytes) -> list[ElementDescriptor]:
    """Decode the reply to `read_element_status`; raises `RemoteProtocolError`."""
    if len(data) < _STATUS_HEADER.size:
        raise RemoteProtocolError("the changer's element status ends early")
    _, count, size = _STATUS_HEADER.unpack_from(data)
    end = _STATUS_HEADER.size + (size & 0xFF_FFFF)
    if end > len(data):
        raise RemoteProtocolError("the changer's element status is longer than what it sent")
    found = list(_pages(data[_STATUS_HEADER.size : end]))
    if len(found) != count:
        raise RemoteProtocolError(
            f"the changer tells of {count} elements and describes {len(found)}"
        )
    if len({each.address for each in found}) != len(found):
        raise RemoteProtocolError("the changer describes an element twice")
    return found


def _pages(data: bytes) -> Iterator[ElementDescriptor]:
    at = 0
    while at < len(data):
        if at + _PAGE_HEADER.size > len(data):
            raise RemoteProtocolError("a page of the element status ends early")
        kind, flags, length, size = _PAGE_HEADER.unpack_from(data, at)
        at += _PAGE_HEADER.size
        size &= 0xFF_FFFF
        least = _DESCRIPTOR.size + (_TAG_BYTES if flags & _PRIMARY_TAG else 0)
        if (
            kind not in list(ElementType)
            or length < least
            or size % length
            or at + size > len(data)
        ):
            raise RemoteProtocolError("a page of the element status contradicts itself")
        for start in range(at, at + size, length):
            yield _descriptor(
                ElementType(kind), data[start : start + length], has_tag=bool(flags & _PRIMARY_TAG)
            )
        at += size


def _descriptor(kind: ElementType, data: bytes, *, has_tag: bool) -> ElementDescriptor:
    address, flags, _, asc, ascq, _, _, _, source_flags, source = _DESCRIPTOR.unpack_from(data)
    is_full = bool(flags & _FULL)
    tag = ""
    if has_tag and is_full:
        raw = data[_DESCRIPTOR.size : _DESCRIPTOR.size + _TAG_BYTES].rstrip(b" \0")
        # A barcode that cannot be read is none; whatever else it may be, it must not reach a terminal.
        tag = raw.decode("ascii", "replace")
        tag = tag if tag.isascii() and tag.isalnum() else ""
    return ElementDescriptor(
        type=kind,
        address=address,
        is_full=is_full,
        tag=tag,
        exception=(asc, ascq) if flags & _EXCEPTION else None,
        source=source if source_flags & _SOURCE_VALID else None,
    )
