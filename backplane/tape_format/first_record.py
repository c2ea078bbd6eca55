"""The first record of a cartridge: the ANSI label, and behind it plain text that says how everything else is read.

Whoever has nothing but the cartridge begins here: `dd if=/dev/nst0 bs=64k count=1` shows it on any terminal.  It must
stay true for as long as cartridges last, so it says only what docs/tape-format.md promises, and it is changed only
together with that.
"""

from __future__ import annotations

from typing import Final

from backplane.tape_format.label import VOL1_BYTES, encode_vol1

FIRST_RECORD_BYTES_MAX: Final = 8192

_TEXT: Final = """
This is a backup cartridge in the SDV format, version 1.  It can be read with nothing but sh, dd and od.

A record is what one read from a tape returns; a filemark (FM) ends a file of records.  Numbers are big-endian.

  record 0    this text; its first 80 bytes are an ANSI VOL1 label
  record 1,2  volume header, twice          FM
  then for each part of a backup:
    header    PH records, in part 1 followed by records with the map of files      FM
    data      raw records, all of the same length                                  FM
    trailer   PT records                                                           FM
The FM behind a trailer commits the part.  Without it the part is an interrupted one, and the next begins behind it.

Headers and trailers are metadata records: 64 bytes, then a piece of JSON in ASCII, its keys sorted, without spaces.
  bytes  0-7   SDVMETA and a zero byte
         8-9   1 volume header, 2 part header, 3 part trailer, 4 map of files
        10-11  version of this type
        16-31  UUID of the cartridge
        32-39  number of this record; records and filemarks are counted together, from 0
        40-43  bytes of JSON in this record
        44-47  piece k (2 bytes) of n (2 bytes); join the JSON of all pieces
        48-51  CRC32C of the JSON in this record; 52-55 of these 64 bytes with 52-55 as zero

To get a volume back, take the parts of one backup_uuid in the order of "part".  Of each, from its trailer (or, if that
is lost, its header):
  "volume"        {"blocks", "block_bytes", ...}: the size of the image to make, filled with zeros
  "record_bytes"  length of a data record, "records" how many there are, "stream_start" bytes of earlier parts
  "extents"       [[first block on the volume, blocks], ...] of this part, in the order in which the data records,
                  joined, hold them.  The last record is padded with zeros.  "stream_bytes" counts without padding.
  "is_last"       false: the backup goes on on another cartridge, whose header names this one in "previous_cartridge"
  "lanes"         how many drives wrote the backup at once, each a "lane" of its own, from 0, on cartridges of its own.
                  Of every lane the last part has "is_last", so the backup is whole when as many parts have it.
  "level"         not "full": first restore the backup "parent_uuid", then this one over it.  "zero_extents" (in part 1)
                  are blocks that have to be zeroed as well.
So byte stream_start + x of the backup is byte x of the part's data, and extents say to which block it belongs.
"record_crc32c" in the trailer are the CRC32C of the data records.

On a tape that is all.  A virtual cartridge is a folder; its file "data" has 32 bytes in front of each record, and for
each filemark: byte 0 is 1 for a record, 2 for a filemark; bytes 5-7 length of the record; bytes 2-4, if they are not
zero, how many bytes of the file it takes, compressed with zstd (zstd -d); else it takes its length.

The source of a shell program that does this is kept with the software: deploy/rescue/read-cartridge.sh
"""


def encode_first_record(tag: str) -> bytes:
    """Return record 0 of the cartridge with this barcode; raises `VolumeError` for a barcode no label can hold."""
    record = encode_vol1(tag) + f"\nCartridge {tag}\n{_TEXT}".encode("ascii")
    assert VOL1_BYTES < len(record) <= FIRST_RECORD_BYTES_MAX
    return record
