"""Reparse points: links and special files are decoded, content that is elsewhere is named."""

import struct

import pytest

from backplane.file_map.model import Kind
from storage_node.mapping.ntfs_reparse import Meaning, decode_interix, decode_reparse

SYMLINK, MOUNT_POINT, LINUX = 0xA000000C, 0xA0000003, 0xA000001D


def point(tag: int, data: bytes) -> bytes:
    return struct.pack("<IHH", tag, len(data), 0) + data


def link(tag: int, target: str, *, before: bytes = b"") -> bytes:
    text = target.encode("utf-16-le")
    head = struct.pack("<HHHH", len(before), len(text), 0, 0)
    return point(tag, head + (bytes(4) if tag == SYMLINK else b"") + before + text)


def decoded(data: bytes, *, is_directory: bool = False, extended: bytes = b"") -> Meaning:
    return decode_reparse(data, is_directory=is_directory, extended=extended)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("..\\a\\b", b"../a/b"),
        ("\\??\\C:\\Users", b"C:/Users"),
        ("\\??\\UNC\\host\\share", b"//host/share"),
        ("\\??\\Volume{12}\\", b"Volume{12}/"),
        ("ü\udc00", "ü\udc00".encode("utf-8", "surrogatepass")),
    ],
)
def test_links_of_windows_are_shown_with_slashes(target: str, shown: bytes) -> None:
    text = target.encode("utf-16-le", "surrogatepass")
    for tag, flags in ((SYMLINK, bytes(4)), (MOUNT_POINT, b"")):
        head = struct.pack("<HHHH", 4, len(text), 0, 4)
        data = point(tag, head + flags + b"x\0y\0" + text)
        assert decoded(data) == Meaning(Kind.SYMLINK, shown)


def test_links_of_linux_are_bytes() -> None:
    assert decoded(point(LINUX, b"\2\0\0\0../\xff")) == Meaning(Kind.SYMLINK, b"../\xff")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        point(SYMLINK, b""),
        point(SYMLINK, bytes(12)),
        point(MOUNT_POINT, struct.pack("<HHHH", 0, 3, 0, 0) + b"abc"),
        point(MOUNT_POINT, struct.pack("<HHHH", 0, 4, 0, 0) + b"ab"),
        point(MOUNT_POINT, struct.pack("<HHHH", 65534, 4, 0, 0) + b"abcd"),
        point(LINUX, b"\2\0\0\0"),
        struct.pack("<IHH", LINUX, 50, 0) + b"\2\0\0\0target",
    ],
)
def test_a_damaged_link_is_told(data: bytes) -> None:
    found = decoded(data)
    assert "damaged" in found.error
    assert not found.target


def test_special_files_of_linux_have_their_kind() -> None:
    assert decoded(point(0x80000023, b"")) == Meaning(Kind.SOCKET)
    assert decoded(point(0x80000024, b"")) == Meaning(Kind.FIFO)


def extended(name: bytes, value: bytes, *, is_last: bool = True) -> bytes:
    length = -(-(8 + len(name) + 1 + len(value)) // 4) * 4
    head = struct.pack("<IBBH", 0 if is_last else length, 0, len(name), len(value))
    return (head + name + b"\0" + value).ljust(length, b"\0")


def test_devices_have_their_numbers_in_an_extended_attribute() -> None:
    other = extended(b"$LXUID", bytes(4), is_last=False)
    numbers = extended(b"$LXDEV", struct.pack("<II", 259, 70000))
    found = decoded(point(0x80000025, b""), extended=other + numbers)
    assert found == Meaning(Kind.CHARACTER, device=259 << 32 | 70000)


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\0\6\0\0", b"\0" * 40, b"\xff" * 40])
def test_devices_without_numbers_are_told(data: bytes) -> None:
    found = decoded(point(0x80000026, b""), extended=data)
    assert found.kind == Kind.BLOCK
    assert "numbers are lost" in found.error


@pytest.mark.parametrize("tag", [0x80000013, 0x80000017, 0x80000007, 0x9000001A, 0x9000F01A])
def test_content_that_is_elsewhere_is_named(tag: int) -> None:
    found = decoded(point(tag, bytes(20)))
    assert found.kind is None
    assert "elsewhere" in found.error


def test_a_directory_of_a_cloud_is_a_directory() -> None:
    assert decoded(point(0x9000701A, b""), is_directory=True) == Meaning()


def test_what_nobody_knows_is_named_by_its_number() -> None:
    assert decoded(point(0x80001234, b"")).kind == Kind.OTHER
    assert "80001234h" in decoded(point(0x80001234, b"")).error
    assert decoded(point(0x80001234, b""), is_directory=True).kind is None


def test_files_of_interix_are_what_their_mark_says() -> None:
    target = b"IntxLNK\1" + "a/ü".encode("utf-16-le")
    assert decode_interix(target) == Meaning(Kind.SYMLINK, "a/ü".encode())
    assert decode_interix(b"IntxCHR\0" + struct.pack("<QQ", 5, 6)).device == 5 << 32 | 6
    assert decode_interix(b"IntxBLK\0" + struct.pack("<QQ", 5, 6)).kind == Kind.BLOCK


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"IntxLNK\1",
        b"IntxLNK\2a\0",
        b"IntxCHR\0" + bytes(15),
        b"some system file, which is just a file",
    ],
)
def test_other_system_files_are_files(data: bytes) -> None:
    assert decode_interix(data) == Meaning()


def test_absurd_device_numbers_are_told() -> None:
    assert "damaged" in decode_interix(b"IntxCHR\0" + struct.pack("<QQ", 1 << 40, 6)).error
