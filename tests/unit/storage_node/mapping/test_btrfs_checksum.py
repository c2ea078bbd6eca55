"""The checksums of btrfs, against published values."""

from __future__ import annotations

import pytest

from storage_node.mapping.btrfs_checksum import CHECKSUM_BYTES, CHECKSUM_NAMES, checksum, xxh64


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_xxh64_of_known_strings(data: bytes, expected: int) -> None:
    assert xxh64(data) == expected


def test_xxh64_of_every_length_of_a_tail_is_another_one() -> None:
    """Stripes of 32, lanes of 8, 4 and 1: each has its own loop."""
    assert len({xxh64(bytes(range(count))) for count in range(100)}) == 100


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (0, "839206e3"),
        (1, "83aee640db41b88c"),
        (2, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        (3, "16e0bf1f85594a11e75030981c0b670370b3ad83a43f49ae58a2fd6f6513cde9"),
    ],
)
def test_a_checksum_is_stored_as_the_disk_has_it(kind: int, expected: str) -> None:
    """The published value of each for the string that all checksums are shown with."""
    stored = checksum(kind, b"123456789")
    assert len(stored) == CHECKSUM_BYTES[kind], CHECKSUM_NAMES[kind]
    assert stored.hex() == expected
