"""Compressed extents: each format by hand, against its own compressor where Python has one, and hostile bytes.

Units of real file systems, made by their drivers, are undone in tests/unit/storage_node/mapping.
"""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from backplane.errors import ExitCode, MediumError, RefusedError
from backplane.file_map.decompress import (
    RAW_BYTES_MAX,
    ContentError,
    UnsupportedContentError,
    decompress,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"What is missing behind the end of a stream reads as zeros. " * 80
LZO_END = b"\x11\0\0"
ALGORITHMS = ("zlib", "zstd", "lzo", "lznt1")


def literals(data: bytes) -> bytes:
    """The LZO1X instruction for more than three bytes as they are."""
    if len(data) <= 18:
        return bytes([len(data) - 3]) + data
    zeros, last = divmod(len(data) - 19, 255)
    return b"\0" * (zeros + 1) + bytes([last + 1]) + data


def repeat(count: int) -> bytes:
    """The LZO1X instruction for the last byte, once more and again."""
    if count <= 33:
        return bytes([0x20 | count - 2, 0, 0])
    zeros, last = divmod(count - 34, 255)
    return b"\x20" + bytes(zeros) + bytes([last + 1, 0, 0])


def lzo(*streams: bytes, sector: int = 4096) -> bytes:
    """Frame LZO1X streams as btrfs does."""
    framed = bytearray(4)
    for stream in streams:
        if -len(framed) % sector < 4:
            framed += bytes(-len(framed) % sector)
        framed += len(stream).to_bytes(4, "little") + stream
    framed[:4] = len(framed).to_bytes(4, "little")
    return bytes(framed)


def lzo_raw(stream: bytes, count: int) -> bytes:
    return decompress("lzo", lzo(stream), count)


def plain_chunk(data: bytes) -> bytes:
    return (0x3000 | len(data) - 1).to_bytes(2, "little") + data


def packed_chunk(data: bytes) -> bytes:
    return (0xB000 | len(data) - 1).to_bytes(2, "little") + data


def example(algorithm: str) -> bytes:
    """A stream that stands for TEXT."""
    if algorithm == "zlib":
        return zlib.compress(TEXT)
    if algorithm == "zstd":
        return zstd.compress(TEXT)
    if algorithm == "lznt1":
        return plain_chunk(TEXT[:4096]) + plain_chunk(TEXT[4096:])
    # A match that reaches into itself: 59 bytes back, over and over, up to the end of the sector.
    again = bytearray(repeat(4096 - 59))
    again[-2:] = (58 << 2).to_bytes(2, "little")
    return lzo(literals(TEXT[:59]) + again + LZO_END, literals(TEXT[4096:]) + LZO_END)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stream_becomes_what_it_was_made_of(algorithm: str) -> None:
    assert decompress(algorithm, example(algorithm), len(TEXT)) == TEXT


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_fills_the_last_sector_behind_the_stream_is_nothing(algorithm: str) -> None:
    assert decompress(algorithm, example(algorithm) + bytes(700), len(TEXT)) == TEXT


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_missing_behind_the_end_of_a_stream_is_zeros(algorithm: str) -> None:
    raw = decompress(algorithm, example(algorithm) + bytes(9), len(TEXT) + 5000)
    assert raw == TEXT + bytes(5000)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_stream_has_beyond_the_unit_is_left_out(algorithm: str) -> None:
    assert decompress(algorithm, example(algorithm), 4101) == TEXT[:4101]
    assert decompress(algorithm, example(algorithm), 100) == TEXT[:100]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_becomes_nothing(algorithm: str) -> None:
    """zlib takes a limit of zero for none at all."""
    assert decompress(algorithm, example(algorithm), 0) == b""


@pytest.mark.parametrize("algorithm", ["zlib", "zstd", "lzo"])
def test_a_stream_that_is_cut_off_is_no_stream_with_zeros_behind_it(algorithm: str) -> None:
    stream = example(algorithm)
    for count in (0, 3, len(stream) // 2, len(stream) - 1):
        with pytest.raises(ContentError):
            decompress(algorithm, stream[:count], len(TEXT) + 1)


def test_a_chunk_that_is_cut_off_is_an_error_and_a_list_of_chunks_need_not_have_an_end() -> None:
    stream = example("lznt1")
    assert decompress("lznt1", stream[: 4096 + 2], 8192) == TEXT[:4096] + bytes(4096)
    for count in (4000, len(stream) - 1):
        with pytest.raises(ContentError):
            decompress("lznt1", stream[:count], 8192)


def test_a_wrong_checksum_of_zlib_is_found_when_the_unit_is_exactly_full() -> None:
    stream = bytearray(zlib.compress(TEXT))
    stream[-1] ^= 1
    with pytest.raises(ContentError, match="zlib"):
        decompress("zlib", bytes(stream), len(TEXT))


def test_a_stream_that_would_fill_the_memory_is_not_even_begun() -> None:
    with pytest.raises(ContentError, match="allowed"):
        decompress("zstd", zstd.compress(bytes(100)), RAW_BYTES_MAX + 1)
    with pytest.raises(ContentError, match="allowed"):
        decompress("zlib", zlib.compress(bytes(100)), -1)


def test_a_window_that_would_fill_the_memory_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 25}
    compressor = zstd.ZstdCompressor(options=options)
    wide = compressor.compress(TEXT) + compressor.flush()
    with pytest.raises(ContentError, match="zstd"):
        decompress("zstd", wide, len(TEXT))


@pytest.mark.parametrize("algorithm", ["", "lzma", "ZLIB", "xpress4k"])
def test_an_algorithm_that_nobody_knows_is_refused_by_name(algorithm: str) -> None:
    with pytest.raises(UnsupportedContentError, match=repr(algorithm)) as caught:
        decompress(algorithm, b"", 1)
    assert isinstance(caught.value, RefusedError)


def test_damage_is_damage_of_the_medium() -> None:
    with pytest.raises(MediumError) as caught:
        decompress("zlib", b"no stream", 10)
    assert caught.value.exit_code == ExitCode.DAMAGED


# LZO1X, instruction by instruction.


@pytest.mark.parametrize("count", [4, 17, 18, 19, 273, 274, 275, 600, 4000])
def test_lzo_a_run_of_literals_of_any_length(count: int) -> None:
    data = bytes(at * 7 % 251 for at in range(count))
    assert lzo_raw(literals(data) + LZO_END, count) == data


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 238])
def test_lzo_the_first_byte_alone_may_bring_literals(count: int) -> None:
    data = bytes(range(count))
    assert lzo_raw(bytes([17 + count]) + data + LZO_END, count) == data


def test_lzo_short_matches_near_by() -> None:
    """64 to 127: three or four bytes, 128 to 255: five to eight, up to 2 KiB back."""
    data = bytes(range(40))
    near = literals(data) + bytes([0x40 | 7 << 2, 0])  # 3 bytes, 8 back
    near += bytes([0x60, 4])  # 4 bytes, 33 back
    near += bytes([0x80 | 1 << 2, 0])  # 5 bytes, 2 back
    near += bytes([0xE0, 0])  # 8 bytes, 1 back
    expected = bytearray(data)
    for distance, count in ((8, 3), (33, 4), (2, 5), (1, 8)):
        for _ in range(count):
            expected.append(expected[-distance])
    assert lzo_raw(near + LZO_END, len(expected)) == bytes(expected)


def test_lzo_the_literals_behind_a_match_change_what_the_next_instruction_means() -> None:
    """After one to three literals a low code is a match of two bytes; after four or more, one of three far bytes."""
    data = bytes(at % 256 for at in range(2100))
    stream = literals(data) + bytes([2 << 2, 1])  # 3 bytes, 2049 + 2 + 4 back
    stream += bytes([0x40 | 1, 0]) + b"A"  # 3 bytes, 1 back, one literal
    stream += bytes([1 << 2 | 2, 3]) + b"BC"  # 2 bytes, 3 * 4 + 1 + 1 back, two literals
    expected = bytearray(data)
    for distance, count, behind in ((2055, 3, b""), (1, 3, b"A"), (14, 2, b"BC")):
        for _ in range(count):
            expected.append(expected[-distance])
        expected += behind
    assert lzo_raw(stream + LZO_END, len(expected)) == bytes(expected)


def test_lzo_matches_far_away() -> None:
    """32 to 63 reach 16 KiB, 16 to 31 reach 48 KiB; exactly 16 KiB by the first is not the end of the stream."""
    data = random.Random(5).randbytes(40000)
    stream = literals(data)
    expected = bytearray(data)
    for distance, count in (
        (16384, 33),
        (1, 2 + 5),
        (16385, 2 + 7),
        (16384 + 16384, 9),
        (39000, 4),
    ):
        back = distance - 1 if distance <= 16384 else distance - 16384
        code = 0x20 if distance <= 16384 else 0x10 | back >> 14 << 3
        limit = 31 if distance <= 16384 else 7
        stream += bytes([code | count - 2]) if count - 2 <= limit else b""
        stream += ((back & 16383) << 2).to_bytes(2, "little")
        for _ in range(count):
            expected.append(expected[-distance])
    framed = lzo(stream + LZO_END, sector=65536)
    assert decompress("lzo", framed, len(expected)) == bytes(expected)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (literals(b"abcd"), "cut off"),
        (literals(b"abcd")[:-1] + LZO_END[:1], "cut off"),
        (b"\x11\x04\0" + LZO_END, "back, after 0"),
        (literals(b"abcd") + b"\x40\x01" + LZO_END, "back, after 4"),
        (literals(b"abcd") + LZO_END + b"x", "behind the end"),
        (bytes(300), "without an end"),
        (literals(b"abcd") + b"\x20" + bytes(260) + b"\x01\0\0" + LZO_END, "without an end"),
        (literals(b"abcd") + repeat(40000) * 2 + LZO_END, "more than 65536"),
        (b"\xffabc", "cut off"),
    ],
)
def test_lzo_a_stream_that_breaks_a_rule_is_refused(stream: bytes, reason: str) -> None:
    with pytest.raises(ContentError, match=reason):
        lzo_raw(stream, 5)


# The frame that btrfs puts around LZO1X.


def test_lzo_a_length_never_crosses_a_sector_of_the_disk() -> None:
    """With lengths of every residue, the padding is one, two, three bytes or none."""
    raw = random.Random(7).randbytes(2 * 4096)
    paddings = set()
    for count in range(4060, 4094):
        filled = literals(raw[:count]) + repeat(4096 - count) + LZO_END
        framed = lzo(filled, literals(raw[4096:]) + LZO_END)
        paddings.add(-(8 + len(filled)) % 4096)
        expected = raw[:count] + raw[count - 1 : count] * (4096 - count) + raw[4096:]
        assert decompress("lzo", framed, 8192) == expected
    assert paddings >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sector", [2048, 4096, 8192, 16384, 32768, 65536])
def test_lzo_the_size_of_a_sector_follows_from_the_first_segment(sector: int) -> None:
    rng = random.Random(sector)
    raw = rng.randbytes(3 * sector + 77)
    pieces = [raw[at : at + sector] for at in range(0, len(raw), sector)]
    framed = lzo(*[literals(piece) + LZO_END for piece in pieces], sector=sector)
    assert decompress("lzo", framed, len(raw)) == raw


def test_lzo_a_frame_that_breaks_a_rule_is_refused() -> None:
    one = literals(TEXT[:4096]) + LZO_END
    short = literals(TEXT[:3000]) + LZO_END
    longer = literals(TEXT[:4097]) + LZO_END
    for framed, reason in (
        (bytes(4096), "announced"),
        (b"\xff\xff\0\0" + lzo(one)[4:], "announced"),
        (lzo(one)[:4] + b"\xff\xff\0\0" + lzo(one)[8:], "beyond the stream"),
        (lzo(short, one), "no sector"),
        (lzo(one, longer), "behind the end|too far"),
    ):
        with pytest.raises(ContentError, match=reason):
            decompress("lzo", framed, 8192)


# LZNT1.


def test_lznt1_the_example_of_its_specification() -> None:
    """MS-XCA, section 3.3."""
    stored = bytes.fromhex(
        "38b08846232000204720410010a24701a045204400084501507900c045200524138805b4024a44ef0358028c"
        "0916014845 00be009e000401189000"
    )
    raw = (
        b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F#"
        b" D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0"
    )
    assert decompress("lznt1", stored, len(raw)) == raw


@pytest.mark.parametrize("filled", [1, 16, 17, 32, 33, 64, 65, 1024, 1025, 2048, 2049, 3600])
def test_lznt1_the_bits_of_a_token_move_with_the_place_in_the_chunk(filled: int) -> None:
    data = random.Random(filled).randbytes(filled)
    bits = 4
    while 1 << bits < filled:
        bits += 1
    token = (filled - 1 << 16 - bits) | 6 - 3  # as far back as the chunk goes, six bytes
    stream = b""
    for at in range(0, filled, 8):
        stream += b"\0" + data[at : at + 8]
    stream = stream if filled % 8 else stream + b"\0"
    flags = len(stream) - 1 - (filled % 8)
    stream = stream[:flags] + bytes([1 << filled % 8]) + stream[flags + 1 :]
    stream += token.to_bytes(2, "little")
    expected = bytearray(data)
    for _ in range(6):
        expected.append(expected[-filled])
    assert decompress("lznt1", packed_chunk(stream), len(expected)) == bytes(expected)


def test_lznt1_a_short_chunk_is_followed_by_zeros_up_to_the_next() -> None:
    stream = plain_chunk(b"one") + plain_chunk(b"two") + b"\0\0" + b"garbage"
    assert decompress("lznt1", stream, 8192) == b"one".ljust(4096, b"\0") + b"two".ljust(
        4096, b"\0"
    )


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x00\x80" + b"x", "no chunk begins"),
        (packed_chunk(b"\x01\x00\x00"), "back, after 0"),
        (packed_chunk(b"\x02a\x00"), "cut off in a token"),
        (packed_chunk(b"\x02a\x00\x10"), "back, after 1"),
        (packed_chunk(b"\x06a\xff\x0f\xff\x0f"), "more than 4096"),
        (packed_chunk(b"\x02a\xfc\x0fb"), "chunk of 4097"),
    ],
)
def test_lznt1_a_chunk_that_breaks_a_rule_is_refused(stream: bytes, reason: str) -> None:
    with pytest.raises(ContentError, match=reason):
        decompress("lznt1", stream, 4096)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hostile_bytes_give_a_unit_of_the_right_length_or_an_error(algorithm: str) -> None:
    """Nothing else may come out of any bytes: no other exception, no other length."""
    rng = random.Random(algorithm)
    good = example(algorithm)
    if algorithm == "lznt1":
        good += packed_chunk(b"\x00abcdefgh\xff" + bytes(range(1, 16)))
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        stored = bytearray(good if rng.random() < 0.9 else rng.randbytes(300))
        for _ in range(rng.randrange(1, 4)):
            stored[rng.randrange(len(stored))] = rng.randrange(256)
        raw_bytes = rng.choice((len(TEXT), 1, 4096, 65536))
        try:
            raw = decompress(algorithm, bytes(stored[: rng.choice((len(stored), 50))]), raw_bytes)
            assert len(raw) == raw_bytes
            outcomes[True] += 1
        except ContentError:
            outcomes[False] += 1
    assert all(outcomes.values()), outcomes
