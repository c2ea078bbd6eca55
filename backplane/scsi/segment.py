"""Segment descriptors: the steps of a copy (SPC-4 6.4.6).

Every type is a frozen dataclass whose `LAYOUT` says where its fields stand; encoder, decoder, range checks, field
pointers and the names that people see all come from that one table.  All types share their first four bytes:

    byte   0      DESCRIPTOR TYPE CODE
           1      DC (bit 1, only in 02h/0Dh) | CAT (bit 0)
           2-3    DESCRIPTOR LENGTH: number of bytes after byte 3

`hold` chooses the second code of a type ("+ application client"): a copy of the processed data is held for RECEIVE
COPY DATA.  Reserved fields are written as 0 and ignored when read.  Values are checked when they are made, so a
descriptor that exists can be encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias, get_args

from backplane.errors import LocalProtocolError
from backplane.scsi.layout import Field, Layout, flag, offset_of, read_fields, whole
from backplane.scsi.refusal import (
    PARAMETER_LIST_LENGTH_ERROR,
    UNSUPPORTED_SEGMENT_TYPE,
    ParameterListError,
)

HEADER_BYTES: Final = 4
STREAM_DEVICE_TRANSFER_LENGTH_MAX: Final = 0xFF_FFFF
BLOCK_DEVICE_NUMBER_OF_BLOCKS_MAX: Final = 0xFFFF
NUMBER_OF_BYTES_MAX: Final = 0xFFFF_FFFF

INLINE_DATA_ALIGNMENT: Final = 4
"""INLINE DATA OFFSET is a multiple of this (extended-copy 5.6)."""

_EMBEDDED_HEADER_BYTES: Final = 16
EMBEDDED_DATA_BYTES_MAX: Final = 0xFFFC - (_EMBEDDED_HEADER_BYTES - HEADER_BYTES)
"""DESCRIPTOR LENGTH is a multiple of 4 below 2**16 and counts 12 bytes before the data."""

SPACE_BLOCKS: Final = 0
SPACE_FILEMARKS: Final = 1
SPACE_END_OF_DATA: Final = 3


_CAT: Final = flag("cat", 1)
_DC: Final = flag("dc", 1, bit=1)
_SOURCE: Final = whole("source_cscd_descriptor_id", 4, 2)
_DESTINATION: Final = whole("destination_cscd_descriptor_id", 6, 2)
_TRANSFER_LENGTH: Final = whole("stream_device_transfer_length", 9, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentDescriptor:
    """What all segment descriptors have."""

    NAME: ClassVar[str]
    CODE: ClassVar[int]
    HOLD_CODE: ClassVar[int | None] = None
    SIZE: ClassVar[int]
    LAYOUT: ClassVar[Layout]

    hold: bool = False
    cat: bool = False

    def __post_init__(self) -> None:
        if self.hold and self.HOLD_CODE is None:
            raise LocalProtocolError(f"segment type {self.CODE:02X}h cannot hold data")
        for field in self.LAYOUT:
            value = getattr(self, field.name)
            if not field.holds(value):
                raise LocalProtocolError(
                    f"{self.NAME}: {field.name} {value} does not fit {field.bits} bits"
                )

    @property
    def descriptor_type_code(self) -> int:
        """The DESCRIPTOR TYPE CODE, which also says whether data are held."""
        return self.HOLD_CODE if self.hold and self.HOLD_CODE is not None else self.CODE

    @property
    def descriptor_length(self) -> int:
        """The DESCRIPTOR LENGTH: all bytes but the first four."""
        return self.SIZE - HEADER_BYTES

    @property
    def encoded_bytes(self) -> int:
        """Size of the whole descriptor."""
        return HEADER_BYTES + self.descriptor_length

    @property
    def source_id(self) -> int | None:
        """SOURCE CSCD DESCRIPTOR ID; None if the type has no source."""
        found: int | None = getattr(self, _SOURCE.name, None)
        return found

    @property
    def destination_id(self) -> int | None:
        """DESTINATION CSCD DESCRIPTOR ID; None if the type has no destination."""
        found: int | None = getattr(self, _DESTINATION.name, None)
        return found

    @property
    def type_name(self) -> str:
        """The name of the type, for people."""
        return f"{self.NAME}, hold data" if self.hold else self.NAME

    def encode(self) -> bytes:
        """Return the descriptor."""
        data = bytearray(self.encoded_bytes)
        data[0] = self.descriptor_type_code
        data[2:4] = self.descriptor_length.to_bytes(2, "big")
        for field in self.LAYOUT:
            field.put(data, getattr(self, field.name))
        return bytes(data)

    def fields(self) -> dict[str, int | str]:
        """Return every field under its name in the standard, in lower case and in the order of the bytes."""
        shown: dict[str, int | str] = {"descriptor_type_code": self.descriptor_type_code}
        for field in self.LAYOUT:
            if field.byte > 1:
                shown.setdefault("descriptor_length", self.descriptor_length)
            shown[field.name] = field.shown(getattr(self, field.name))
        return shown

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Return the byte at which a field starts, for field pointers."""
        return offset_of(cls.LAYOUT, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockToStream(SegmentDescriptor):
    """00h, 0Bh: read so many blocks, write records (extended-copy 5.3)."""

    NAME: ClassVar[str] = "block to stream"
    CODE: ClassVar[int] = 0x00
    HOLD_CODE: ClassVar[int | None] = 0x0B
    SIZE: ClassVar[int] = 24
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _SOURCE,
        _DESTINATION,
        _TRANSFER_LENGTH,
        whole("block_device_number_of_blocks", 14, 2),
        whole("block_device_logical_block_address", 16, 8),
    )

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    block_device_number_of_blocks: int
    block_device_logical_block_address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamToBlock(SegmentDescriptor):
    """01h, 0Ch: read records, write so many blocks (extended-copy 5.3)."""

    NAME: ClassVar[str] = "stream to block"
    CODE: ClassVar[int] = 0x01
    HOLD_CODE: ClassVar[int | None] = 0x0C
    SIZE: ClassVar[int] = 24
    LAYOUT: ClassVar[Layout] = BlockToStream.LAYOUT

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    block_device_number_of_blocks: int
    block_device_logical_block_address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockToBlock(SegmentDescriptor):
    """02h, 0Dh: blocks to blocks; `dc` says whose blocks are counted (extended-copy 5.4)."""

    NAME: ClassVar[str] = "block to block"
    CODE: ClassVar[int] = 0x02
    HOLD_CODE: ClassVar[int | None] = 0x0D
    SIZE: ClassVar[int] = 28
    LAYOUT: ClassVar[Layout] = (
        _DC,
        _CAT,
        _SOURCE,
        _DESTINATION,
        whole("block_device_number_of_blocks", 10, 2),
        whole("source_block_device_logical_block_address", 12, 8),
        whole("destination_block_device_logical_block_address", 20, 8),
    )

    dc: bool = False
    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    block_device_number_of_blocks: int
    source_block_device_logical_block_address: int
    destination_block_device_logical_block_address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamToStream(SegmentDescriptor):
    """03h, 0Eh: records to records, of sizes of their own (extended-copy 5.5)."""

    NAME: ClassVar[str] = "stream to stream"
    CODE: ClassVar[int] = 0x03
    HOLD_CODE: ClassVar[int | None] = 0x0E
    SIZE: ClassVar[int] = 20
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _SOURCE,
        _DESTINATION,
        whole("source_stream_device_transfer_length", 9, 3),
        whole("destination_stream_device_transfer_length", 13, 3),
        whole("byte_count", 16, 4),
    )

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    source_stream_device_transfer_length: int
    destination_stream_device_transfer_length: int
    byte_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineToStream(SegmentDescriptor):
    """04h: bytes from the inline data of the list to tape (extended-copy 5.6)."""

    NAME: ClassVar[str] = "inline data to stream"
    CODE: ClassVar[int] = 0x04
    SIZE: ClassVar[int] = 20
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        _TRANSFER_LENGTH,
        whole("inline_data_offset", 12, 4),
        whole("inline_data_number_of_bytes", 16, 4),
    )

    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    inline_data_offset: int
    inline_data_number_of_bytes: int

    def __post_init__(self) -> None:
        SegmentDescriptor.__post_init__(self)
        if self.inline_data_offset % INLINE_DATA_ALIGNMENT:
            raise LocalProtocolError(
                f"INLINE DATA OFFSET {self.inline_data_offset} is no multiple of 4"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedToStream(SegmentDescriptor):
    """05h: bytes from the descriptor itself to tape (extended-copy 5.6)."""

    NAME: ClassVar[str] = "embedded data to stream"
    CODE: ClassVar[int] = 0x05
    SIZE: ClassVar[int] = _EMBEDDED_HEADER_BYTES
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        _TRANSFER_LENGTH,
        whole("embedded_data_number_of_bytes", 12, 2),
    )

    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    embedded_data: bytes

    def __post_init__(self) -> None:
        SegmentDescriptor.__post_init__(self)
        if len(self.embedded_data) > EMBEDDED_DATA_BYTES_MAX:
            raise LocalProtocolError(f"{len(self.embedded_data)} bytes do not fit a descriptor")

    @property
    def embedded_data_number_of_bytes(self) -> int:
        """EMBEDDED DATA NUMBER OF BYTES."""
        return len(self.embedded_data)

    @property
    def descriptor_length(self) -> int:
        """The DESCRIPTOR LENGTH; the data are padded to a multiple of 4."""
        return self.SIZE - HEADER_BYTES + (len(self.embedded_data) + 3) // 4 * 4

    def encode(self) -> bytes:
        """Return the descriptor."""
        data = bytearray(SegmentDescriptor.encode(self))
        data[self.SIZE : self.SIZE + len(self.embedded_data)] = self.embedded_data
        return bytes(data)

    def fields(self) -> dict[str, int | str]:
        """Return every field; the data in hex."""
        return {**SegmentDescriptor.fields(self), "embedded_data": self.embedded_data.hex()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamToDiscard(SegmentDescriptor):
    """06h, 0Fh: read records and drop so many bytes (extended-copy 5.7)."""

    NAME: ClassVar[str] = "stream to discard"
    CODE: ClassVar[int] = 0x06
    HOLD_CODE: ClassVar[int | None] = 0x0F
    SIZE: ClassVar[int] = 16
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _SOURCE,
        _TRANSFER_LENGTH,
        whole("number_of_bytes", 12, 4),
    )

    source_cscd_descriptor_id: int
    stream_device_transfer_length: int
    number_of_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyCscd(SegmentDescriptor):
    """07h: is the device there?  `tur` also asks whether it is ready (extended-copy 5.7)."""

    NAME: ClassVar[str] = "verify CSCD"
    CODE: ClassVar[int] = 0x07
    SIZE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (_CAT, _SOURCE, flag("tur", 8))

    source_cscd_descriptor_id: int
    tur: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOffsetToStream(SegmentDescriptor):
    """08h: bytes from a byte offset within a block, write records (extended-copy 5.8)."""

    NAME: ClassVar[str] = "block with byte offset to stream"
    CODE: ClassVar[int] = 0x08
    SIZE: ClassVar[int] = 28
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _SOURCE,
        _DESTINATION,
        _TRANSFER_LENGTH,
        whole("number_of_bytes", 12, 4),
        whole("block_device_logical_block_address", 16, 8),
        whole("block_device_byte_offset", 26, 2),
    )

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    number_of_bytes: int
    block_device_logical_block_address: int
    block_device_byte_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamToBlockOffset(SegmentDescriptor):
    """09h: read records, write bytes from a byte offset within a block (extended-copy 5.8)."""

    NAME: ClassVar[str] = "stream to block with byte offset"
    CODE: ClassVar[int] = 0x09
    SIZE: ClassVar[int] = 28
    LAYOUT: ClassVar[Layout] = BlockOffsetToStream.LAYOUT

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    stream_device_transfer_length: int
    number_of_bytes: int
    block_device_logical_block_address: int
    block_device_byte_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOffsetToBlockOffset(SegmentDescriptor):
    """0Ah: bytes to bytes of block devices (extended-copy 5.8)."""

    NAME: ClassVar[str] = "block with offset to block with offset"
    CODE: ClassVar[int] = 0x0A
    SIZE: ClassVar[int] = 32
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _SOURCE,
        _DESTINATION,
        whole("number_of_bytes", 8, 4),
        whole("source_block_device_logical_block_address", 12, 8),
        whole("destination_block_device_logical_block_address", 20, 8),
        whole("source_block_device_byte_offset", 28, 2),
        whole("destination_block_device_byte_offset", 30, 2),
    )

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    number_of_bytes: int
    source_block_device_logical_block_address: int
    destination_block_device_logical_block_address: int
    source_block_device_byte_offset: int = 0
    destination_block_device_byte_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFilemarks(SegmentDescriptor):
    """10h: one WRITE FILEMARKS command (extended-copy 5.9)."""

    NAME: ClassVar[str] = "write filemarks"
    CODE: ClassVar[int] = 0x10
    SIZE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        flag("w_immed", 8),
        whole("filemark_count", 9, 3),
    )

    destination_cscd_descriptor_id: int
    w_immed: bool = False
    filemark_count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Space(SegmentDescriptor):
    """11h: one SPACE command; `code` as in SPACE(6), `count` is signed (extended-copy 5.9)."""

    NAME: ClassVar[str] = "space"
    CODE: ClassVar[int] = 0x11
    SIZE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        Field("code", 8, 1, 4),
        Field("count", 9, 3, 24, is_signed=True),
    )

    destination_cscd_descriptor_id: int
    code: int
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Locate(SegmentDescriptor):
    """12h: one LOCATE command within the current partition (extended-copy 5.9)."""

    NAME: ClassVar[str] = "locate"
    CODE: ClassVar[int] = 0x12
    SIZE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        whole("logical_object_identifier", 8, 4),
    )

    destination_cscd_descriptor_id: int
    logical_object_identifier: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeImageCopy(SegmentDescriptor):
    """13h: records and filemarks as they are, until `count` consecutive filemarks or the end (extended-copy 5.9)."""

    NAME: ClassVar[str] = "tape image copy"
    CODE: ClassVar[int] = 0x13
    SIZE: ClassVar[int] = 12
    LAYOUT: ClassVar[Layout] = (_CAT, _SOURCE, _DESTINATION, whole("count", 8, 4))

    source_cscd_descriptor_id: int
    destination_cscd_descriptor_id: int
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterKey(SegmentDescriptor):
    """14h: register a persistent reservation key (extended-copy 5.10)."""

    NAME: ClassVar[str] = "register persistent reservation key"
    CODE: ClassVar[int] = 0x14
    SIZE: ClassVar[int] = 28
    LAYOUT: ClassVar[Layout] = (
        _CAT,
        _DESTINATION,
        whole("reservation_key", 8, 8, is_key=True),
        whole("service_action_reservation_key", 16, 8, is_key=True),
    )

    destination_cscd_descriptor_id: int
    reservation_key: int
    service_action_reservation_key: int = 0


Segment: TypeAlias = (
    BlockToStream
    | StreamToBlock
    | BlockToBlock
    | StreamToStream
    | InlineToStream
    | EmbeddedToStream
    | StreamToDiscard
    | VerifyCscd
    | BlockOffsetToStream
    | StreamToBlockOffset
    | BlockOffsetToBlockOffset
    | WriteFilemarks
    | Space
    | Locate
    | TapeImageCopy
    | RegisterKey
)

SEGMENT_TYPES: Final[tuple[type[Segment], ...]] = get_args(Segment)

_BY_CODE: Final[dict[int, type[Segment]]] = {
    code: cls for cls in SEGMENT_TYPES for code in (cls.CODE, cls.HOLD_CODE) if code is not None
}

SEGMENT_TYPE_CODES: Final = tuple(sorted(_BY_CODE))
"""Every type code that this module can decode."""

_OTHER_NAMES: Final = {
    0x15: "third-party persistent reservation source I_T nexus",
    0x16: "block image copy",
    0x17: "positioning to tape (SPC-5)",
    0x18: "logical object tape copy (SPC-5)",
    0x19: "tape stream mirror (SPC-5)",
    0xBE: "ROD from n block ranges",
    0xBF: "ROD from one block range",
}


def name_of_segment_type(type_code: int) -> str:
    """Return the name of a segment descriptor type."""
    if type_code in _BY_CODE:
        cls = _BY_CODE[type_code]
        return cls.NAME if type_code == cls.CODE else f"{cls.NAME}, hold data"
    if type_code >= 0xC0:
        return "no segment descriptor type"
    return _OTHER_NAMES.get(type_code, "reserved")


def decode_segment(data: bytes) -> Segment:
    """Decode the descriptor at the start of `data`.

    Raises `ParameterListError` with a field pointer that counts from the start of the descriptor.
    """
    if len(data) < HEADER_BYTES or len(data) < HEADER_BYTES + int.from_bytes(data[2:4], "big"):
        raise ParameterListError(
            f"a segment descriptor is cut short after {len(data)} bytes",
            sense=PARAMETER_LIST_LENGTH_ERROR,
        )
    cls = _BY_CODE.get(data[0])
    if cls is None:
        raise ParameterListError(
            f"type {data[0]:02X}h ({name_of_segment_type(data[0])}) is not supported",
            sense=UNSUPPORTED_SEGMENT_TYPE,
            field=0,
        )
    length = int.from_bytes(data[2:4], "big")
    if cls is EmbeddedToStream:
        return _decode_embedded(data[: HEADER_BYTES + length])
    if length != cls.SIZE - HEADER_BYTES:
        raise ParameterListError(
            f"DESCRIPTOR LENGTH is {length}, but type {data[0]:02X}h has {cls.SIZE - HEADER_BYTES}",
            field=2,
        )
    values = read_fields(cls.LAYOUT, data)
    offset = values.get("inline_data_offset", 0)
    if offset % INLINE_DATA_ALIGNMENT:
        raise ParameterListError(f"INLINE DATA OFFSET {offset} is no multiple of 4", field=12)
    make: Callable[..., Segment] = cls
    return make(hold=data[0] == cls.HOLD_CODE, **values)


def _decode_embedded(data: bytes) -> EmbeddedToStream:
    length = len(data) - HEADER_BYTES
    if length % 4 or len(data) < _EMBEDDED_HEADER_BYTES:
        raise ParameterListError(
            f"DESCRIPTOR LENGTH is {length}, but type 05h has a multiple of 4 from 12 up", field=2
        )
    count = int.from_bytes(data[12:14], "big")
    if count > len(data) - _EMBEDDED_HEADER_BYTES:
        raise ParameterListError(
            f"EMBEDDED DATA NUMBER OF BYTES is {count}, but the descriptor has room for "
            f"{len(data) - _EMBEDDED_HEADER_BYTES}",
            field=12,
        )
    return EmbeddedToStream(
        cat=bool(_CAT.get(data)),
        destination_cscd_descriptor_id=_DESTINATION.get(data),
        stream_device_transfer_length=_TRANSFER_LENGTH.get(data),
        embedded_data=bytes(data[_EMBEDDED_HEADER_BYTES : _EMBEDDED_HEADER_BYTES + count]),
    )
