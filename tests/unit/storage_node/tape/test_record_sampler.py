"""Checksums of pieces of records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.errors import MediumError, UsageError
from backplane.ids import VolumeTag
from storage_node.tape import record_sampler
from storage_node.tape.library import TapeLibrary
from storage_node.tape.record_sampler import (
    RANGE,
    RANGES_MAX,
    Piece,
    sample_records,
    unpack_pieces,
)
from storage_node.tape.virtual_drive import VirtualDrive

RECORDS = [bytes([number]) * 500 + bytes(range(200)) for number in range(3)]
TAG = VolumeTag("SDV001L8")


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[VirtualDrive]:
    library = TapeLibrary(tmp_path / "library", drives=1)
    library.add(TAG, capacity_bytes=1 << 24, created="2026-01-01T00:00:00Z")
    library.load(TAG, drive=0)
    [drive] = library.drives
    drive.test_unit_ready()
    for record in RECORDS:
        assert drive.write_record(memoryview(record), crc32c=crc32c(record)).is_good
    assert drive.write_filemarks(1).is_good
    yield drive
    library.close()


def digests(*pieces: bytes) -> bytes:
    return b"".join(crc32c(piece).to_bytes(4, "big") for piece in pieces)


def test_pieces_are_summed_in_the_order_asked(drive: VirtualDrive) -> None:
    pieces = [Piece(2, 0, 700), Piece(0, 490, 20), Piece(0, 699, 1), Piece(1, 5, 0)]
    expected = digests(RECORDS[2], RECORDS[0][490:510], RECORDS[0][699:], b"")
    assert sample_records(drive.side_view(), pieces) == expected
    assert sample_records(drive.side_view(), []) == b""


@pytest.mark.parametrize("piece", [Piece(0, 0, 701), Piece(0, 700, 1), Piece(0, 4_000_000_000, 1)])
def test_a_piece_outside_of_its_record_is_refused(drive: VirtualDrive, piece: Piece) -> None:
    with pytest.raises(UsageError, match="700 bytes"):
        sample_records(drive.side_view(), [piece])


@pytest.mark.parametrize("number", [3, 4, 1 << 60])
def test_what_is_no_record_is_not_summed(drive: VirtualDrive, number: int) -> None:
    with pytest.raises(MediumError, match=f"object {number}"):
        sample_records(drive.side_view(), [Piece(number, 0, 1)])


def test_one_request_does_not_keep_the_drive_for_ever(
    drive: VirtualDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_sampler, "SAMPLE_BYTES_MAX", 1400)
    sample_records(drive.side_view(), [Piece(0, 0, 1), Piece(0, 5, 1), Piece(1, 0, 1)])
    with pytest.raises(UsageError, match="1400 bytes"):
        sample_records(drive.side_view(), [Piece(0, 0, 1), Piece(1, 0, 1), Piece(2, 0, 1)])


def test_what_is_asked_for_is_unpacked() -> None:
    packed = RANGE.pack(1 << 40, 7, 9) + RANGE.pack(2, 0, 1)
    assert unpack_pieces(packed) == [Piece(1 << 40, 7, 9), Piece(2, 0, 1)]
    for wrong in (packed[:-1], RANGE.pack(1, 2, 3) * (RANGES_MAX + 1)):
        with pytest.raises(UsageError):
            unpack_pieces(wrong)
