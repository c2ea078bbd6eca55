"""Sense data: how a command says why it did not simply succeed (SPC-4 4.5).

`Sense` is the value; two formats carry it.  The fixed format (70h, 71h) is what we send; the descriptor format
(72h, 73h) is understood, too.  A copy manager's COPY ABORTED sense has its own use of the COMMAND-SPECIFIC
INFORMATION field (SPC-4 5.17.7.4, extended-copy 10.3):

    byte   0      70h, or F0h with VALID; 71h/F1h for a deferred error
           2      FILEMARK 80h | EOM 40h | ILI 20h | sense key
           3-6    INFORMATION
           7      number of bytes after byte 7
           8, 9   offsets of the areas with status byte and sense data of the copy source and the copy destination
           10-11  segment number
           12-13  ASC, ASCQ
           15-17  SKSV 80h | C/D 40h | SD 20h | BPV 08h | bit pointer; FIELD POINTER
           18..   forwarded areas

INFORMATION is a two's complement number if ILI is set (a record longer than asked for has a negative
difference), otherwise unsigned.  A value that does not fit the format is sent as "not valid" (SPC-4 4.5.3).

Decoding is total: any bytes give a `Sense` or a `SenseError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from backplane.errors import LocalProtocolError, RemoteProtocolError, SenseTriple
from backplane.scsi.sense_codes import SenseKey, name_of_additional_sense, name_of_key

__all__ = ["SENSE_BYTES_MAX", "FieldPointer", "Forwarded", "Sense", "SenseError", "SenseKey"]

SENSE_BYTES_MAX: Final = 252
"""Most bytes of sense data (SPC-4 4.5.1: ADDITIONAL SENSE LENGTH is at most 244)."""

_FIXED: Final = struct.Struct(">BBBIBIBBBBH")  # bytes 0 to 17
_FIXED_BYTES: Final = 18
_HEADER_BYTES: Final = 8

_VALID: Final = 0x80
_FILEMARK: Final = 0x80
_EOM: Final = 0x40
_ILI: Final = 0x20

_SKSV: Final = 0x80
_COMMAND_DATA: Final = 0x40
_SEGMENT_DESCRIPTOR: Final = 0x20
_BPV: Final = 0x08

_KEYS_WITH_FIELD_POINTER: Final = frozenset({SenseKey.ILLEGAL_REQUEST, SenseKey.COPY_ABORTED})

assert _FIXED.size == _FIXED_BYTES


class SenseError(RemoteProtocolError):
    """The bytes are no sense data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPointer:
    """The field in error: the SENSE KEY SPECIFIC field of ILLEGAL REQUEST and COPY ABORTED (SPC-4 4.5.2.4.2, .4).

    `field` counts bytes from the start of the parameter list; of the CDB if `in_command` (C/D, only with ILLEGAL
    REQUEST); of the segment descriptor if `in_segment` (SD, only with COPY ABORTED).
    """

    field: int
    bit: int | None = None
    in_command: bool = False
    in_segment: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.field <= 0xFFFF:
            raise LocalProtocolError(f"field pointer {self.field} does not fit 16 bits")
        if self.bit is not None and not 0 <= self.bit <= 7:
            raise LocalProtocolError(f"bit pointer {self.bit} is none of 0 to 7")

    def encode(self) -> bytes:
        """Return the three bytes with SKSV set."""
        first = _SKSV
        first |= _COMMAND_DATA if self.in_command else 0
        first |= _SEGMENT_DESCRIPTOR if self.in_segment else 0
        first |= 0 if self.bit is None else _BPV | self.bit
        return bytes([first]) + self.field.to_bytes(2, "big")

    @classmethod
    def decode(cls, data: bytes) -> FieldPointer | None:
        """Decode the three bytes; None without SKSV."""
        if not data[0] & _SKSV:
            return None
        return cls(
            field=int.from_bytes(data[1:3], "big"),
            bit=data[0] & 7 if data[0] & _BPV else None,
            in_command=bool(data[0] & _COMMAND_DATA),
            in_segment=bool(data[0] & _SEGMENT_DESCRIPTOR),
        )

    def fields(self) -> dict[str, object]:
        """Return the parts by name."""
        return {
            "field_pointer": self.field,
            "bit_pointer": self.bit,
            "command_data": self.in_command,
            "segment_descriptor": self.in_segment,
            "words": self.describe(),
        }

    def describe(self) -> str:
        """Say where the field is."""
        place = "segment descriptor" if self.in_segment else "parameter list"
        where = "CDB" if self.in_command else place
        bit = "" if self.bit is None else f", bit {self.bit}"
        return f"byte {self.field}{bit} of the {where}"


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Status and sense data that a copy source or copy destination gave to the copy manager.

    `truncated` says that not all of the sense data are here.
    """

    status: int
    sense_data: bytes = b""
    truncated: bool = False

    def sense(self) -> Sense | None:
        """Decode the forwarded sense data; None if there are none that can be decoded."""
        try:
            return Sense.decode(self.sense_data)
        except SenseError:
            return None

    def fields(self) -> dict[str, object]:
        """Return the parts by name; the sense data in hex and decoded."""
        sense = self.sense()
        return {
            "status": self.status,
            "truncated": self.truncated,
            "sense_data": self.sense_data.hex(),
            "sense": sense.fields() if sense else None,
        }

    def describe(self) -> str:
        """Say what the device answered."""
        sense = self.sense()
        words = sense.describe() if sense else "no sense data"
        return f"status {self.status:02X}h, {words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sense:
    """Why a command ended as it did.

    `information` None means VALID=0.  `segment`, `source` and `destination` belong to COPY ABORTED only;
    `command_specific` to all other keys (COMPLETED, 00h/20h: the number of segments processed).
    """

    key: SenseKey
    asc: int = 0
    ascq: int = 0
    information: int | None = None
    filemark: bool = False
    end_of_medium: bool = False
    incorrect_length: bool = False
    deferred: bool = False
    segment: int | None = None
    command_specific: int = 0
    field_pointer: FieldPointer | None = None
    source: Forwarded | None = None
    destination: Forwarded | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.asc <= 0xFF and 0 <= self.ascq <= 0xFF):
            raise LocalProtocolError("ASC and ASCQ have 8 bits each")
        if self.information is not None:
            low, high = _information_range(64, is_signed=self.incorrect_length)
            if not low <= self.information <= high:
                raise LocalProtocolError(f"INFORMATION {self.information} does not fit 64 bits")
        if not 0 <= self.command_specific <= 0xFFFF_FFFF:
            raise LocalProtocolError("COMMAND-SPECIFIC INFORMATION has 32 bits")
        if self.key == SenseKey.COPY_ABORTED:
            if self.command_specific:
                raise LocalProtocolError("COPY ABORTED uses the command-specific field itself")
            if self.segment is not None and not 0 <= self.segment <= 0xFFFF:
                raise LocalProtocolError(f"segment number {self.segment} does not fit 16 bits")
        elif self.segment is not None or self.source or self.destination:
            raise LocalProtocolError("only COPY ABORTED has a segment and forwarded sense data")
        if self.field_pointer and self.key not in _KEYS_WITH_FIELD_POINTER:
            raise LocalProtocolError(f"{name_of_key(self.key)} has no field pointer")

    @property
    def triple(self) -> SenseTriple:
        """The part that says which condition it is."""
        return SenseTriple(self.key, self.asc, self.ascq)

    def encode_fixed(self) -> bytes:
        """Return fixed-format sense data, at most 252 bytes; forwarded sense data are cut to fit."""
        information = _fitting(self.information, bits=32, is_signed=self.incorrect_length)
        source, destination = _areas(self.source, self.destination)
        source_at = _FIXED_BYTES if source else 0
        destination_at = _FIXED_BYTES + len(source) if destination else 0
        if self.key == SenseKey.COPY_ABORTED:
            specific = source_at << 24 | destination_at << 16 | (self.segment or 0)
        else:
            specific = self.command_specific
        pointer = self.field_pointer.encode() if self.field_pointer else bytes(3)
        head = _FIXED.pack(
            0x70 | int(self.deferred) | (0 if information is None else _VALID),
            0,
            self._flags() | self.key,
            (information or 0) & 0xFFFF_FFFF,
            _FIXED_BYTES - _HEADER_BYTES + len(source) + len(destination),
            specific,
            self.asc,
            self.ascq,
            0,
            pointer[0],
            int.from_bytes(pointer[1:], "big"),
        )
        return head + source + destination

    def encode_descriptor(self) -> bytes:
        """Return descriptor-format sense data; forwarded sense data are cut to fit."""
        body = bytearray()
        information = _fitting(self.information, bits=64, is_signed=self.incorrect_length)
        if information is not None:
            body += b"\x00\x0a\x80\x00" + (information & (1 << 64) - 1).to_bytes(8, "big")
        # The 4-byte value of the fixed format, right-justified in 8 bytes (extended-copy 10.4).
        specific = self.command_specific if self.segment is None else self.segment
        if specific or self.segment is not None:
            body += b"\x01\x0a\x00\x00" + specific.to_bytes(8, "big")
        if self.field_pointer:
            body += b"\x02\x06\x00\x00" + self.field_pointer.encode() + b"\x00"
        if self._flags():
            # Stream commands descriptor (SSC-4 4.5.2): not in the reference pages, but the only place for these bits.
            body += bytes([0x04, 0x02, 0x00, self._flags()])
        room = SENSE_BYTES_MAX - _HEADER_BYTES - len(body)
        body += _forwarded_descriptors(self.source, self.destination, room=room)
        head = bytes([0x72 | int(self.deferred), self.key, self.asc, self.ascq, 0, 0, 0, len(body)])
        return head + bytes(body)

    @classmethod
    def decode(cls, data: bytes) -> Sense:
        """Decode sense data of either format; raises `SenseError`."""
        if len(data) < _HEADER_BYTES:
            raise SenseError(f"sense data of {len(data)} bytes, at least {_HEADER_BYTES} expected")
        code = data[0] & 0x7F
        if code in (0x70, 0x71):
            return _decode_fixed(data)
        if code in (0x72, 0x73):
            return _decode_descriptor(data)
        raise SenseError(f"sense data with response code {code:02X}h, expected 70h to 73h")

    def fields(self) -> dict[str, object]:
        """Return every part by name, with the words for codes; for JSON."""
        shown: dict[str, object] = {
            "sense_key": int(self.key),
            "sense_key_name": name_of_key(self.key),
            "additional_sense_code": self.asc,
            "additional_sense_code_qualifier": self.ascq,
            "additional_sense_name": name_of_additional_sense(self.asc, self.ascq),
            "deferred": self.deferred,
            "valid": self.information is not None,
            "information": self.information,
            "filemark": self.filemark,
            "end_of_medium": self.end_of_medium,
            "incorrect_length": self.incorrect_length,
            "sense_key_specific": self.field_pointer.fields() if self.field_pointer else None,
        }
        if self.key == SenseKey.COPY_ABORTED:
            shown["segment_number"] = self.segment
            shown["source"] = self.source.fields() if self.source else None
            shown["destination"] = self.destination.fields() if self.destination else None
        else:
            shown["command_specific_information"] = self.command_specific
        return {**shown, "words": self.describe()}

    def describe(self) -> str:
        """Say it in words, for people."""
        code = f"{self.asc:02X}h/{self.ascq:02X}h"
        name = name_of_additional_sense(self.asc, self.ascq)
        parts = [f"{name_of_key(self.key)}, {code} {name}"]
        if self.deferred:
            parts.append("deferred error of an earlier command")
        flags = ((self.filemark, "FILEMARK"), (self.end_of_medium, "EOM"))
        parts += [name for is_set, name in (*flags, (self.incorrect_length, "ILI")) if is_set]
        if self.segment is not None:
            parts.append(f"segment {self.segment}")
        if self.information is not None:
            is_copy = self.key == SenseKey.COPY_ABORTED
            parts.append(f"{'residual' if is_copy else 'information'} {self.information}")
        if self.command_specific:
            parts.append(f"command-specific information {self.command_specific}")
        if self.field_pointer:
            parts.append(f"see {self.field_pointer.describe()}")
        for name, forwarded in (("source", self.source), ("destination", self.destination)):
            if forwarded:
                parts.append(f"copy {name} answered [{forwarded.describe()}]")
        return "; ".join(parts)

    def _flags(self) -> int:
        return (
            (_FILEMARK if self.filemark else 0)
            | (_EOM if self.end_of_medium else 0)
            | (_ILI if self.incorrect_length else 0)
        )


def _information_range(bits: int, *, is_signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)


def _fitting(information: int | None, *, bits: int, is_signed: bool) -> int | None:
    """Return the value if the field can hold it, else None (VALID=0)."""
    low, high = _information_range(bits, is_signed=is_signed)
    return information if information is not None and low <= information <= high else None


def _signed(value: int, *, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def _shares(source: int, destination: int, *, room: int) -> tuple[int, int]:
    """Divide the room between two areas: nobody gets more than it needs, or less than a fair half of the room."""
    half = room // 2
    source_share = min(source, max(half, room - destination))
    return source_share, min(destination, room - source_share)


def _areas(source: Forwarded | None, destination: Forwarded | None) -> tuple[bytes, bytes]:
    """Return status byte and sense data of both devices, cut so that the whole fits."""
    whole = [b"" if f is None else bytes([f.status]) + f.sense_data for f in (source, destination)]
    shares = _shares(len(whole[0]), len(whole[1]), room=SENSE_BYTES_MAX - _FIXED_BYTES)
    return whole[0][: shares[0]], whole[1][: shares[1]]


def _forwarded_descriptors(
    source: Forwarded | None, destination: Forwarded | None, *, room: int
) -> bytes:
    """Return forwarded sense data descriptors (0Ch): 4 bytes of header each, then the sense data."""
    sizes = [0 if f is None else 4 + len(f.sense_data) for f in (source, destination)]
    encoded = bytearray()
    shares = _shares(sizes[0], sizes[1], room=room)
    for which, forwarded, share in zip((1, 2), (source, destination), shares, strict=True):
        if forwarded is None:
            continue
        kept = forwarded.sense_data[: share - 4]
        is_cut = forwarded.truncated or len(kept) < len(forwarded.sense_data)
        encoded += bytes([0x0C, 2 + len(kept), (0x80 if is_cut else 0) | which, forwarded.status])
        encoded += kept
    return bytes(encoded)


def _is_incomplete(sense_data: bytes) -> bool:
    """Say whether sense data announce more bytes than are here (the fixed format has no FSDT bit)."""
    if not sense_data:
        return False
    return len(sense_data) < _HEADER_BYTES or len(sense_data) < _HEADER_BYTES + sense_data[7]


def _decode_fixed(data: bytes) -> Sense:
    data = data[: _HEADER_BYTES + data[7]]
    padded = data.ljust(_FIXED_BYTES, b"\x00")
    first, _, flags, raw_information, _, specific, asc, ascq, _, _, _ = _FIXED.unpack(
        padded[:_FIXED_BYTES]
    )
    key = SenseKey(flags & 0x0F)
    is_copy = key is SenseKey.COPY_ABORTED
    incorrect_length = bool(flags & _ILI)
    information = _signed(raw_information, bits=32) if incorrect_length else raw_information
    source, destination = _decode_areas(data) if is_copy else (None, None)
    has_pointer = key in _KEYS_WITH_FIELD_POINTER
    return Sense(
        key=key,
        asc=asc,
        ascq=ascq,
        information=information if first & _VALID else None,
        filemark=bool(flags & _FILEMARK),
        end_of_medium=bool(flags & _EOM),
        incorrect_length=incorrect_length,
        deferred=first & 0x7F == 0x71,
        segment=specific & 0xFFFF if is_copy else None,
        command_specific=0 if is_copy else specific,
        field_pointer=FieldPointer.decode(padded[15:18]) if has_pointer else None,
        source=source,
        destination=destination,
    )


def _decode_areas(data: bytes) -> tuple[Forwarded | None, Forwarded | None]:
    """Find the forwarded areas by the offsets in bytes 8 and 9; an offset outside the additional bytes is none."""
    offsets = [at if _FIXED_BYTES <= at < len(data) else 0 for at in data[8:10].ljust(2, b"\x00")]
    found: list[Forwarded | None] = []
    for at, other in (offsets, offsets[::-1]):
        end = other if other > at else len(data)
        sense_data = data[at + 1 : end]
        truncated = _is_incomplete(sense_data)
        found.append(Forwarded(data[at], sense_data, truncated) if at else None)
    return found[0], found[1]


def _decode_descriptor(data: bytes) -> Sense:
    key = SenseKey(data[1] & 0x0F)
    is_copy = key is SenseKey.COPY_ABORTED
    found: dict[int, bytes] = {}
    forwarded: dict[int, Forwarded] = {}
    rest = data[_HEADER_BYTES : _HEADER_BYTES + data[7]]
    while len(rest) >= 2:
        size = 2 + rest[1]
        descriptor, rest = rest[:size], rest[size:]
        if descriptor[0] == 0x0C and len(descriptor) >= 4:
            is_cut = bool(descriptor[2] & 0x80) or len(descriptor) < size
            forwarded.setdefault(
                descriptor[2] & 0x0F, Forwarded(descriptor[3], descriptor[4:], is_cut)
            )
        elif len(descriptor) == size:
            found.setdefault(descriptor[0], descriptor)
    # 04h is for stream commands, 05h for block commands (ILI only).
    marks = found.get(0x04, found.get(0x05, b""))
    flags = marks[3] if len(marks) >= 4 else 0
    information = _eight_bytes(found.get(0x00, b""))
    if information is not None and flags & _ILI:
        information = _signed(information, bits=64)
    is_valid = information is not None and bool(found[0x00][2] & _VALID)
    specific = _eight_bytes(found.get(0x01, b""))
    pointer = found.get(0x02, b"")
    has_pointer = key in _KEYS_WITH_FIELD_POINTER and len(pointer) >= 7
    return Sense(
        key=key,
        asc=data[2],
        ascq=data[3],
        information=information if is_valid else None,
        filemark=bool(flags & _FILEMARK),
        end_of_medium=bool(flags & _EOM),
        incorrect_length=bool(flags & _ILI),
        deferred=data[0] & 0x7F == 0x73,
        segment=specific & 0xFFFF if is_copy and specific is not None else None,
        command_specific=0 if is_copy else (specific or 0) & 0xFFFF_FFFF,
        field_pointer=FieldPointer.decode(pointer[4:7]) if has_pointer else None,
        source=forwarded.get(1) if is_copy else None,
        destination=forwarded.get(2) if is_copy else None,
    )


def _eight_bytes(descriptor: bytes) -> int | None:
    return int.from_bytes(descriptor[4:12], "big") if len(descriptor) >= 12 else None
