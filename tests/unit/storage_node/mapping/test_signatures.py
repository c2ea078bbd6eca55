"""Magics of what we cannot read: each found by its name, and nothing found where there is nothing."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from backplane.testing.disk_images import missing, run
from storage_node.mapping.reader import BytesSource
from storage_node.mapping.signatures import signatures

KIB = 1024
SIZE = 4096 * KIB

CASES = [
    ("LUKS1 encryption", 0, b"LUKS\xba\xbe\x00\x01aes"),
    ("LUKS2 encryption", 0, b"LUKS\xba\xbe\x00\x02"),
    ("BitLocker encryption", 0, b"\xeb\x58\x90-FVE-FS-"),
    ("BitLocker encryption", 424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),
    ("LVM1", 0, b"HM\x01\x00"),
    ("ReFS", 0, b"\0\0\0ReFS\0\0\0\0"),
    ("APFS", 32, b"NXSB"),
    ("HFS+", 1024, b"H+\x00\x04"),
    ("HFSX", 1024, b"HX\x00\x05"),
    ("F2FS", 1024, struct.pack("<I", 0xF2F52010)),
    ("EROFS", 1024, struct.pack("<I", 0xE0F5E1E2)),
    ("bcachefs", 4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    ("bcache", 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    ("squashfs", 0, b"hsqs"),
    ("cramfs", 0, struct.pack("<I", 0x28CD3D45)),
    ("ISO 9660", 32 * KIB + 1, b"CD001"),
    ("UDF", 32 * KIB + 1, b"BEA01"),
    ("JFS", 32 * KIB, b"JFS1"),
    ("ReiserFS", 64 * KIB + 52, b"ReIsEr2Fs"),
    ("Reiser4", 64 * KIB, b"ReIsEr4"),
    ("GFS2", 64 * KIB, struct.pack(">II", 0x01161970, 1)),
    ("OCFS2", 8 * KIB, b"OCFSV2"),
    ("UFS1", 8 * KIB + 1372, struct.pack("<I", 0x00011954)),
    ("UFS2", 64 * KIB + 1372, struct.pack("<I", 0x19540119)),
    ("NILFS2", 1024, struct.pack("<IHHHH", 2, 0, 0x3434, 280, 0)),
    ("VMFS", 1024 * KIB, struct.pack("<I", 0xC001D00D)),
    ("VMFS", 2048 * KIB, struct.pack("<I", 0x2FABF15E)),
    ("ZFS", 128 * KIB + 5 * KIB, struct.pack("<Q", 0x00BAB10C)),
    ("ZFS", 128 * KIB + 127 * KIB, struct.pack(">Q", 0x00BAB10C)),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("swap", 65536 - 10, b"SWAPSPACE2"),
    ("md RAID 1.1", 0, struct.pack("<II136xQ", 0xA92B4EFC, 1, 0)),
    ("md RAID 1.2", 4096, struct.pack("<II136xQ", 0xA92B4EFC, 1, 8)),
    ("md RAID 1.0", SIZE - 8192, struct.pack("<II136xQ", 0xA92B4EFC, 1, SIZE // 512 - 16)),
    ("md RAID 0.90", SIZE - 64 * KIB, struct.pack("<II", 0xA92B4EFC, 0)),
    ("md RAID 0.90", SIZE - 64 * KIB, struct.pack(">II", 0xA92B4EFC, 0)),
    ("DRBD", SIZE - 4096 + 60, struct.pack(">I", 0x8374026B)),
    ("DRBD", SIZE - 4096 + 60, struct.pack(">I", 0x8374026D)),
    ("Intel firmware RAID", SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00"),
    ("DDF firmware RAID", SIZE - 512, struct.pack(">I", 0xDE11DE11)),
]


def disk(*pieces: tuple[int, bytes], size: int = SIZE) -> BytesSource:
    data = bytearray(size)
    for at, piece in pieces:
        data[at : at + len(piece)] = piece
    return BytesSource(data)


@pytest.mark.parametrize(("name", "at", "magic"), CASES, ids=lambda value: str(value)[:24])
def test_a_magic_is_found_by_its_name(name: str, at: int, magic: bytes) -> None:
    (found,) = signatures(disk((at, magic)))
    assert found.name == name
    assert at <= found.at + 64
    assert found.at <= at + len(magic)


@pytest.mark.parametrize(
    ("at", "magic"),
    [
        (1024, struct.pack("<IHHHH", 3, 0, 0x3434, 280, 0)),
        (1024, struct.pack("<IHHHH", 2, 0, 0x3434, 0, 0)),
        (4096, struct.pack("<II136xQ", 0xA92B4EFC, 1, 16)),
        (SIZE - 8192, struct.pack("<II136xQ", 0xA92B4EFC, 1, 77)),
        (0, struct.pack("<II136xQ", 0xA92B4EFC, 2, 0)),
        (127 * KIB, struct.pack("<Q", 0x00BAB10C)),
    ],
)
def test_a_magic_in_the_wrong_company_is_none(at: int, magic: bytes) -> None:
    assert list(signatures(disk((at, magic)))) == []


@pytest.mark.parametrize("size", [0, 1, 511, 1030, 5000, 70_000, 262_000, 262_144, 300_000, SIZE])
@pytest.mark.parametrize("filler", [0, 0xEE, 0xFF])
def test_nothing_is_found_in_nothing(size: int, filler: int) -> None:
    assert list(signatures(BytesSource(bytes([filler]) * size))) == []


def test_every_name_is_told_once() -> None:
    found = list(signatures(disk((4086, b"SWAPSPACE2"), (8182, b"SWAPSPACE2"), (0, b"hsqs"))))
    assert sorted(one.name for one in found) == ["squashfs", "swap"]


def test_noise_is_nothing_and_crashes_nothing() -> None:
    chance = random.Random(6)
    for _ in range(20):
        data = chance.randbytes(chance.randrange(1, 600_000))
        assert list(signatures(BytesSource(data))) == []


@pytest.mark.skipif(bool(missing("mkswap")), reason=missing("mkswap"))
def test_swap_of_mkswap_is_found(tmp_path: Path) -> None:
    image = tmp_path / "swap"
    image.write_bytes(bytes(SIZE))
    image.chmod(0o600)
    run("mkswap", image)
    assert [one.name for one in signatures(BytesSource(image.read_bytes()))] == ["swap"]
