"""What compressed extents become: zlib, zstd and LZO of btrfs, LZNT1 of NTFS.  Bounded, whatever the bytes are.

Both file systems let a stream end before the extent does: what is missing then reads as zeros, and what a stream
holds beyond the extent's length is not part of the file (linux/btrfs.h says so of `unencoded_len`).  A stream that is
cut off or malformed is an error instead; nobody gets zeros for that.

    zlib, zstd    one stream; what lies behind its end fills the last sector
    lzo           total length, then for each sector of the file its segment: length, LZO1X stream.  A segment's length
                  does not cross a sector of the disk: fewer than four bytes before one are padding
    lznt1         chunks of 4096 bytes: a header of two bytes (signature, length), then bytes, or tokens in eights
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Final

from backplane.errors import MediumError, RefusedError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RAW_BYTES_MAX: Final = 1024 * 1024
"""Most bytes of one unit: btrfs has 128 KiB, NTFS 64 KiB."""

ZSTD_WINDOW_LOG_MAX: Final = 20
"""A window above 1 MiB is of no use to a unit of 128 KiB, and costs memory."""

LZO_SECTOR_BYTES: Final = tuple(1 << power for power in range(11, 17))
"""The sizes of a sector that btrfs has: 2 KiB to 64 KiB."""

LZNT1_CHUNK_BYTES: Final = 4096

_LZO_FAR_BYTES: Final = 16384
_LZO_END: Final = 0
"""The distance that means the end of the stream."""


class ContentError(MediumError):
    """A compressed extent that is not what its format demands."""


class UnsupportedContentError(RefusedError):
    """A compression that nothing here can undo."""


def decompress(algorithm: str, stored: bytes, raw_bytes: int) -> bytes:
    """Return the `raw_bytes` bytes that a compressed unit stands for.

    Raises `ContentError` if it is damaged, `UnsupportedContentError` if `algorithm` is none of ours.
    """
    decoder = _DECODERS.get(algorithm)
    if decoder is None:
        raise UnsupportedContentError(f"no decompression for {algorithm!r}")
    if not 0 <= raw_bytes <= RAW_BYTES_MAX:
        raise ContentError(f"a compressed unit of {raw_bytes} bytes; {RAW_BYTES_MAX} are allowed")
    if not raw_bytes:
        return b""
    raw = decoder(stored, raw_bytes)
    assert len(raw) <= raw_bytes
    return raw + bytes(raw_bytes - len(raw))


def _zlib(stored: bytes, raw_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, raw_bytes)
    except zlib.error as error:
        raise ContentError(f"zlib: {error}") from error
    if len(raw) < raw_bytes and not stream.eof:
        raise ContentError(f"zlib: the stream is cut off after {len(raw)} bytes")
    return raw


def _zstd(stored: bytes, raw_bytes: int) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG_MAX}
    stream = zstd.ZstdDecompressor(options=options)
    try:
        raw = stream.decompress(stored, max_length=raw_bytes)
    except zstd.ZstdError as error:
        raise ContentError(f"zstd: {error}") from error
    if len(raw) < raw_bytes and not stream.eof:
        raise ContentError(f"zstd: the stream is cut off after {len(raw)} bytes")
    return raw


def _lzo(stored: bytes, raw_bytes: int) -> bytes:
    total = int.from_bytes(stored[:4], "little")
    if not 8 < total <= len(stored):
        raise ContentError(f"lzo: {total} bytes are announced, {len(stored)} are there")
    raw = bytearray()
    sector = 0
    at = 4
    while at < total and len(raw) < raw_bytes:
        end = at + 4 + int.from_bytes(stored[at : at + 4], "little")
        if end > total:
            raise ContentError(f"lzo: the segment at byte {at} goes beyond the stream")
        segment = _lzo1x(stored[at + 4 : end], sector or LZO_SECTOR_BYTES[-1])
        raw += segment
        if not sector and end < total:
            # The stream does not say how large a sector is; its first segment fills one, unless it is the last.
            sector = len(segment)
            if sector not in LZO_SECTOR_BYTES:
                raise ContentError(f"lzo: the first segment becomes {sector} bytes: no sector")
        left = -end % (sector or LZO_SECTOR_BYTES[0])
        at = end + left if left < 4 else end
    return bytes(raw[:raw_bytes])


def _lzo1x(stored: bytes, raw_max: int) -> bytearray:
    """Undo LZO1X (the kernel's Documentation/staging/lzo.rst): a first byte for literals, then instructions."""
    raw = bytearray()
    try:
        at = 0
        literals = 0
        if stored[0] > 17:
            literals = stored[0] - 17
            at = 1 + literals
            raw += stored[1:at]
        while True:
            # What 0 to 15 mean depends on how many literals the instruction before has brought.
            at, length, distance, literals = _lzo_instruction(stored, at, min(literals, 4), raw_max)
            if length and distance == _LZO_END:
                break
            if length:
                _copy_back(raw, distance, length, raw_max, "lzo")
            raw += stored[at : at + literals]
            at += literals
            if at > len(stored):
                raise ContentError(f"lzo: a run of {literals} literals goes too far")
    except IndexError:
        raise ContentError("lzo: the stream is cut off") from None
    if at != len(stored) or len(raw) > raw_max:
        raise ContentError(f"lzo: {len(stored) - at} bytes behind the end of the stream")
    return raw


def _lzo_instruction(
    stored: bytes, at: int, literals: int, raw_max: int
) -> tuple[int, int, int, int]:
    """Read an instruction; return what is behind it, length and distance of the match, and its literals."""
    code = stored[at]
    if code >= 64:
        return at + 2, (code >> 5) + 1, (stored[at + 1] << 3) + (code >> 2 & 7) + 1, code & 3
    if code >= 16:
        at, length = _lzo_length(stored, at, 31 if code >= 32 else 7, raw_max)
        word = stored[at] | stored[at + 1] << 8
        distance = (word >> 2) + 1
        if code < 32:
            far = (word >> 2) + ((code & 8) << 11)
            distance = far + _LZO_FAR_BYTES if far else _LZO_END
        return at + 2, length + 2, distance, word & 3
    if not literals:
        at, length = _lzo_length(stored, at, 15, raw_max)
        return at, 0, 0, length + 3
    if literals < 4:
        return at + 2, 2, (stored[at + 1] << 2) + (code >> 2) + 1, code & 3
    return at + 2, 3, (stored[at + 1] << 2) + (code >> 2) + 2049, code & 3


def _lzo_length(stored: bytes, at: int, mask: int, raw_max: int) -> tuple[int, int]:
    """Read a length: the low bits of the code, or 255 for each zero byte that follows, and the byte behind them."""
    length = stored[at] & mask
    at += 1
    if length:
        return at, length
    length = mask
    while not stored[at]:
        length += 255
        at += 1
        if length > raw_max:
            raise ContentError("lzo: a length without an end")
    return at + 1, length + stored[at]


def _copy_back(raw: bytearray, distance: int, length: int, raw_max: int, name: str) -> None:
    """Append bytes that are already there; a match that reaches into itself repeats."""
    if distance > len(raw):
        raise ContentError(f"{name}: a match {distance} bytes back, after {len(raw)} bytes")
    if len(raw) + length > raw_max:
        raise ContentError(f"{name}: more than {raw_max} bytes")
    start = len(raw) - distance
    if distance >= length:
        raw += raw[start : start + length]
    else:
        pattern = bytes(raw[start:])
        raw += (pattern * (length // distance + 1))[:length]


def _lznt1(stored: bytes, raw_bytes: int) -> bytes:
    raw = bytearray()
    at = 0
    while at + 2 <= len(stored) and len(raw) < raw_bytes:
        header = stored[at] | stored[at + 1] << 8
        if not header:
            break
        if header & 0x7000 != 0x3000:
            raise ContentError(f"lznt1: no chunk begins with {header:04X}h at byte {at}")
        end = at + 3 + (header & 0xFFF)
        if end > len(stored):
            raise ContentError(f"lznt1: the chunk at byte {at} is cut off")
        # Every chunk but the last stands for 4096 bytes; what a shorter one leaves is zeros.
        raw += bytes(-len(raw) % LZNT1_CHUNK_BYTES)
        chunk = stored[at + 2 : end]
        raw += _lznt1_chunk(chunk) if header & 0x8000 else chunk
        at = end
    return bytes(raw[:raw_bytes])


def _lznt1_chunk(stored: bytes) -> bytearray:
    raw = bytearray()
    at = 0
    try:
        while at < len(stored):
            flags = stored[at]
            at += 1
            for bit in range(8):
                if at >= len(stored):
                    break
                if not flags >> bit & 1:
                    raw.append(stored[at])
                    at += 1
                    continue
                token = stored[at] | stored[at + 1] << 8
                at += 2
                # The further into the chunk, the more of a token's bits are distance: 4, up to 12.
                distance_bits = max(4, (len(raw) - 1).bit_length()) if raw else 4
                length = (token & (0xFFFF >> distance_bits)) + 3
                distance = (token >> (16 - distance_bits)) + 1
                _copy_back(raw, distance, length, LZNT1_CHUNK_BYTES, "lznt1")
    except IndexError:
        raise ContentError("lznt1: a chunk is cut off in a token") from None
    if len(raw) > LZNT1_CHUNK_BYTES:
        raise ContentError(f"lznt1: a chunk of {len(raw)} bytes")
    return raw


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "zlib": _zlib,
    "zstd": _zstd,
    "lzo": _lzo,
    "lznt1": _lznt1,
}
