"""Records of $MFT: fixups taken out, attributes found, every number compared with the record that it lies in.

A record is written in sectors, and a power cut may write some of them only.  So the last two bytes of each 512 bytes
on the volume are an update sequence number, the same in all of them, and the bytes that belong there are kept in the
update sequence array at the head of the record:

    record on the volume   FILE .. [n|a b|c d] ..... | n | ............. | n |
    record as it is meant  FILE .. [n|a b|c d] ..... |a b| ............. |c d|

A number that differs is a torn record: nothing in it can be believed.  NTFS has no other checksum.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final, NamedTuple

from storage_node.mapping.reader import DamagedError

STRIDE_BYTES: Final = 512
"""A fixup for each 512 bytes, whatever the sectors of the device are."""

STANDARD_INFORMATION: Final = 0x10
ATTRIBUTE_LIST: Final = 0x20
FILE_NAME: Final = 0x30
OBJECT_ID: Final = 0x40
SECURITY_DESCRIPTOR: Final = 0x50
VOLUME_NAME: Final = 0x60
VOLUME_INFORMATION: Final = 0x70
DATA: Final = 0x80
INDEX_ALLOCATION: Final = 0xA0
BITMAP: Final = 0xB0
REPARSE_POINT: Final = 0xC0
EXTENDED_ATTRIBUTES: Final = 0xE0
_LAST_TYPE: Final = 0x100
_END: Final = 0xFFFFFFFF

IN_USE: Final = 1
IS_DIRECTORY: Final = 2

_BEGINNING: Final = struct.Struct("<4sHH")
"""Magic, update sequence array (place, words)."""
_HEADER: Final = struct.Struct("<4xHH8xHHHHIIQ4xI")
"""From the update sequence array on: sequence, links, place of the attributes, flags, bytes used, bytes allocated, base
record, own number."""
_NUMBER_AT: Final = 0x2C
_ATTRIBUTE: Final = struct.Struct("<IIBBHHHIH")
"""Type, length, is not resident, characters and place of the name, flags, instance; then, of a value in the record,
its bytes and place."""
_PADDING: Final = bytes(_ATTRIBUTE.size)
"""Behind a record, so that the head of an attribute can be taken at once even where the record ends."""
_PIECE: Final = struct.Struct("<QQHB5xqqq")
"""At 10h: lowest and highest VCN, place of the runs, compression unit, sizes: allocated, data, initialized."""
_SIZES_END: Final = 0x40
_PIECE_SHORT: Final = struct.Struct("<QQHB")
"""The sizes are true in the first piece only; later ones need not have them."""
_FREE: Final = (1 << 64) - 1

RECORD_MASK: Final = (1 << 48) - 1
"""A reference is the number of a record (48 bits) and the sequence number it had (16 bits)."""


class Piece(NamedTuple):
    """The clusters from `first_vcn` up to `end_vcn` of an attribute that does not lie in its record."""

    first_vcn: int
    end_vcn: int
    unit_shift: int
    allocated: int
    size: int
    initialized: int
    runs: bytes


class Attribute(NamedTuple):
    """An attribute, or a piece of one.  `value` is None if it is not in the record; then there is a `piece`."""

    type: int
    name: bytes
    """In UTF-16, empty for most."""
    flags: int
    instance: int
    record: int
    usa_at: int
    value: bytes | None
    value_at: int
    piece: Piece | None


class Record(NamedTuple):
    """A record that is in use, whole and consistent in itself."""

    number: int
    sequence: int
    flags: int
    links: int
    base: int
    """The reference of the record that this one extends, or 0."""
    is_listed: bool
    """It has an attribute list, so there are more records of this file."""
    attributes: list[Attribute]


_new_record: Final = partial(tuple.__new__, Record)
_new_attribute: Final = partial(tuple.__new__, Attribute)
_new_piece: Final = partial(tuple.__new__, Piece)
"""Half the time of a call of the class, for what happens some times for each file."""


def without_fixups(raw: bytes, usa_at: int, words: int) -> bytes:
    """Put back what the update sequence number has replaced; `DamagedError` if the record is torn."""
    strides = len(raw) // STRIDE_BYTES
    if words != strides + 1 or usa_at & 1 or usa_at + 2 * words > STRIDE_BYTES - 2:
        raise DamagedError("its update sequence array is damaged")
    number = raw[usa_at : usa_at + 2]
    kept = usa_at + 2
    pieces: list[bytes] = []
    for start in range(0, len(raw), STRIDE_BYTES):
        end = start + STRIDE_BYTES - 2
        if raw[end : end + 2] != number:
            raise DamagedError("it is torn: not all of its sectors were written at one time")
        pieces += (raw[start:end], raw[kept : kept + 2])
        kept += 2
    return b"".join(pieces)


def all_without_fixups(piece: bytes, size: int) -> bytes | None:
    """Do the same for many records at once, and add `_PADDING`.

    None if one of them is torn, is none, or has its update sequence array elsewhere: then each has to be looked at.
    """
    _, usa_at, words = _BEGINNING.unpack_from(piece)
    strides = size // STRIDE_BYTES
    if words != strides + 1 or usa_at & 1 or usa_at + 2 * words > STRIDE_BYTES - 2:
        return None
    beginning = b"FILE" + piece[4 : _BEGINNING.size]
    for at, byte in enumerate(beginning):
        if piece[at::size].count(byte) * size != len(piece):
            return None
    whole = bytearray(piece)
    for at in range(2 * strides):
        end = (at // 2 + 1) * STRIDE_BYTES - 2 + at % 2
        if piece[end::size] != piece[usa_at + at % 2 :: size]:
            return None
        whole[end::size] = piece[usa_at + 2 + at :: size]
    return bytes(whole) + _PADDING


def parse_record(raw: bytes, number: int) -> Record:
    """Take a record apart; `DamagedError` if it is torn, or contradicts itself."""
    magic, usa_at, words = _BEGINNING.unpack_from(raw)
    if magic != b"FILE":
        raise DamagedError("it is marked as bad" if magic == b"BAAD" else "it is not a record")
    data = without_fixups(raw, usa_at, words)
    return parse_among(data + _PADDING, 0, len(raw), number)


def parse_among(data: bytes, start: int, size: int, number: int) -> Record:
    """Take a record apart that has its fixups out, and lies among others or before `_PADDING`."""
    header = _HEADER.unpack_from(data, start)
    usa_at, words, sequence, links, first, flags, used, allocated, base, own = header
    if allocated != size or not usa_at + 2 * words <= first < used <= size or first & 7:
        raise DamagedError("its header is damaged")
    if usa_at > _NUMBER_AT and own != number & 0xFFFFFFFF:
        raise DamagedError(f"it says that it is record {own}")
    attributes = _attributes(data, start, number, usa_at, first, used)
    # They are in the order of their types, and only $STANDARD_INFORMATION comes before the list.
    is_listed = False
    for found in attributes:
        if found[0] > STANDARD_INFORMATION:
            is_listed = found[0] == ATTRIBUTE_LIST
            break
    return _new_record((number, sequence, flags, links, base, is_listed, attributes))


def _attributes(
    data: bytes, start: int, number: int, usa_at: int, first: int, used: int
) -> list[Attribute]:
    found: list[Attribute] = []
    before = 0
    at, used = start + first, start + used
    unpack = _ATTRIBUTE.unpack_from
    while at + 4 <= used:
        type_, length, is_elsewhere, characters, name_at, flags, instance, count, offset = unpack(
            data, at
        )
        if type_ == _END:
            return found
        end = at + length
        if length < 24 or length & 7 or end > used or name_at + 2 * characters > length:
            raise DamagedError(f"attribute {type_:X}h goes beyond its record")
        if type_ < before or type_ > _LAST_TYPE or type_ & 15 or not type_:
            raise DamagedError(f"attribute {type_:X}h is unknown, or out of order")
        before = type_
        name = data[at + name_at : at + name_at + 2 * characters] if characters else b""
        value: bytes | None = None
        value_at = 0
        piece: Piece | None = None
        if is_elsewhere:
            piece = _piece(data, at, length)
        else:
            if offset + count > length:
                raise DamagedError(f"the value of attribute {type_:X}h goes beyond it")
            value_at = at + offset - start
            value = data[at + offset : at + offset + count]
        found.append(
            _new_attribute((type_, name, flags, instance, number, usa_at, value, value_at, piece))
        )
        at = end
    raise DamagedError("its attributes have no end")


def _piece(data: bytes, at: int, length: int) -> Piece:
    if length >= _SIZES_END:
        numbers = _PIECE.unpack_from(data, at + 16)
        first, last, runs_at, unit, allocated, size, initialized = numbers
    else:
        first, last, runs_at, unit = _PIECE_SHORT.unpack_from(data, at + 16)
        allocated = size = initialized = 0
        if not first:
            raise DamagedError("an attribute is too short for its sizes")
    end = 0 if last == _FREE and not first else last + 1
    if not 0x28 <= runs_at <= length or end < first or end >> 48:
        raise DamagedError("an attribute's clusters contradict each other")
    runs = data[at + runs_at : at + length]
    return _new_piece((first, end, unit, allocated, size, initialized, runs))
