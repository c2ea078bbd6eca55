"""Records come back as they were, and only those are compressed that gain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_node.tape.record_compression import (
    RECORD_BYTES_MIN,
    RecordCompressor,
    decompress_record,
    zstd,
)

MIB = 1 << 20
TEXT = b"blocks of a volume, mostly text and tables " * 30000


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("record", [TEXT[:MIB], bytes(MIB), TEXT[:RECORD_BYTES_MIN]])
def test_what_gains_is_compressed(record: bytes) -> None:
    stored = RecordCompressor().compress(memoryview(record))
    assert stored is not None
    assert len(stored) < len(record) // 4
    assert decompress_record(memoryview(stored), len(record)) == record


@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES_MIN - 1])
def test_short_records_stay_readable(size: int) -> None:
    assert RecordCompressor().compress(memoryview(bytes(size))) is None


def test_what_does_not_gain_is_stored_as_it_is_and_not_even_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    frame = RecordCompressor._frame

    def watched(compressor: RecordCompressor, data: bytes | memoryview) -> bytes:
        tried.append(len(data))
        return frame(compressor, data)

    monkeypatch.setattr(RecordCompressor, "_frame", watched)
    assert RecordCompressor().compress(memoryview(noise(MIB))) is None
    assert tried == [16384]


def test_frames_of_one_compressor_are_each_whole() -> None:
    """What it keeps between records is room, not what they held: any of them is read without the others."""
    compressor = RecordCompressor()
    records = [TEXT[:MIB], bytes(MIB), noise(MIB), TEXT[7 : 7 + RECORD_BYTES_MIN], TEXT[:MIB]]
    frames = [compressor.compress(memoryview(record)) for record in records]
    assert frames == [RecordCompressor().compress(memoryview(record)) for record in records]
    for record, frame in zip(records, frames, strict=True):
        assert (frame is None) == (record is records[2])
        assert frame is None or decompress_record(memoryview(frame), len(record)) == record
        size = zstd.get_frame_info(frame).decompressed_size if frame is not None else len(record)
        assert size == len(record)


def test_a_record_that_only_promises_is_stored_as_it_is() -> None:
    """Its pieces look good, the rest is noise."""
    record = bytearray(noise(MIB))
    step = (MIB - 4096) // 3
    for number in range(4):
        record[number * step : number * step + 4096] = bytes(4096)
    assert RecordCompressor().compress(memoryview(record)) is None


@given(st.binary(max_size=64), st.integers(1, 4000), st.integers(0, 20_000))
def test_any_record_comes_back(piece: bytes, times: int, extra: int) -> None:
    record = (piece * times + noise(extra))[: 1 << 18]
    stored = RecordCompressor().compress(memoryview(record))
    if stored is not None:
        assert len(stored) < len(record)
        assert decompress_record(memoryview(stored), len(record)) == record


def test_what_is_no_frame_of_just_this_record_is_refused() -> None:
    stored = RecordCompressor().compress(memoryview(TEXT[:MIB]))
    assert stored is not None
    for wrong, length in (
        (b"", MIB),
        (stored[:-1], MIB),
        (stored + b"\0", MIB),
        (stored, MIB - 1),
        (stored, MIB + 1),
        (b"x" * 100, 100),
        (stored + stored, 2 * MIB),
    ):
        assert decompress_record(memoryview(wrong), length) is None
    for bit in range(0, len(stored) * 8, 97):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        found = decompress_record(memoryview(damaged), MIB)
        assert found is None or len(found) == MIB, "its checksum tells, one level up"


def test_a_frame_that_grows_without_end_is_cut_off() -> None:
    bomb = zstd.compress(bytes(1 << 28), 1)
    assert decompress_record(memoryview(bomb), MIB) is None
