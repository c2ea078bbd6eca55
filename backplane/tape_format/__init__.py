"""The self-describing format of a cartridge: bytes <-> values (docs/tape-format.md).

Pure: the controller composes labels, headers and trailers with it, the tape node reads them.

    object 0   VOL1   ANSI label, 80 bytes
           1   VH     volume header
           2   VH     its copy
           3   FM     synchronous: the label is there

    each part: PH record(s), map records (part 1), FM, data records, FM, PT record(s), FM (synchronous: committed)
"""

from backplane.tape_format.content import (
    DirectoryEntry,
    PartHeader,
    PartTrailer,
    VolumeFacts,
    VolumeHeader,
)
from backplane.tape_format.label import VOL1_BYTES, Vol1, decode_vol1, encode_vol1
from backplane.tape_format.map_stream import ItemFeed, MapLayout, items_from
from backplane.tape_format.record import (
    METADATA_RECORD_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    PREFIX_BYTES,
    MetadataRecord,
    RecordType,
    UnknownVersionError,
    decode_record,
    encode_records,
    join_records,
)
from backplane.tape_format.volume import (
    FIRST_PART_OBJECT,
    LABEL_FILEMARK_OBJECT,
    VOLUME_HEADER_OBJECTS,
    MetadataFeed,
    decode_metadata,
    encode_label,
    encode_part_header,
    encode_part_trailer,
    record_digest_root,
)

__all__ = [
    "FIRST_PART_OBJECT",
    "LABEL_FILEMARK_OBJECT",
    "METADATA_RECORD_BYTES_MAX",
    "PAYLOAD_BYTES_MAX",
    "PREFIX_BYTES",
    "VOL1_BYTES",
    "VOLUME_HEADER_OBJECTS",
    "DirectoryEntry",
    "ItemFeed",
    "MapLayout",
    "MetadataFeed",
    "MetadataRecord",
    "PartHeader",
    "PartTrailer",
    "RecordType",
    "UnknownVersionError",
    "Vol1",
    "VolumeFacts",
    "VolumeHeader",
    "decode_metadata",
    "decode_record",
    "decode_vol1",
    "encode_label",
    "encode_part_header",
    "encode_part_trailer",
    "encode_records",
    "encode_vol1",
    "items_from",
    "join_records",
    "record_digest_root",
]
