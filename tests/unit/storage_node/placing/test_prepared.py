"""One prepared file, on a real file system; what movers write is written here through the file itself."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.errors import MediumError, RefusedError, UsageError
from backplane.units import MIB
from storage_node.core.placement import MappedExtent
from storage_node.placing import prepared
from storage_node.placing.prepared import Attributes, PreparedFile, components, prepare

SIZE = 5 * MIB + 777
TEMPORARY = b"file.1.restoring"
PLAIN = Attributes(mode=0o640, uid=-1, gid=-1, mtime_ns=10**18, atime_ns=2 * 10**18)


def no_tick() -> None:
    pass


@contextmanager
def made(folder: int, size: int = SIZE, temporary: bytes = TEMPORARY) -> Iterator[PreparedFile]:
    """Prepare a file, and let go of it unless the test has named it."""
    file = prepare(folder, temporary, size, no_tick)
    try:
        yield file
    finally:
        try:
            os.fstat(file._descriptor)
        except OSError:
            pass  # named, or dropped
        else:
            file.drop()


def opener(path: Path) -> subprocess.Popen[bytes]:
    """Open a file in another process, as nobody should."""
    return subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}).close()"])


def test_a_prepared_file_is_zeros_in_written_blocks_that_nobody_else_may_open(
    folder: int, tmp_path: Path
) -> None:
    with made(folder) as file:
        status = (tmp_path / os.fsdecode(TEMPORARY)).stat()
        assert status.st_mode & 0o777 == 0o600
        assert status.st_size == sum(each.byte_count for each in file.extents) >= SIZE
        assert status.st_size % 4096 == 0
        assert all(each.physical_byte and not each.flags for each in file.extents)
        assert file.has_lease
        with pytest.raises(BlockingIOError):
            os.open(tmp_path / os.fsdecode(TEMPORARY), os.O_RDONLY | os.O_NONBLOCK)
    assert list(tmp_path.iterdir()) == []


def test_a_verified_file_has_its_size_content_attributes_and_name(
    folder: int, tmp_path: Path
) -> None:
    with made(folder) as file:
        file.verify(SIZE, crc32c(bytes(SIZE)), no_tick)
        lost = file.dress(PLAIN._replace(xattrs=((b"user.a", b"1"), (b"user.b", b"\0"))))
        file.name(b"file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    path = tmp_path / "file"
    assert path.read_bytes() == bytes(SIZE)
    status = path.stat()
    assert status.st_mode & 0o7777 == 0o640
    assert status.st_mtime_ns == 10**18
    assert lost == 2 - len(os.listxattr(path))


def test_other_content_is_refused_and_the_file_is_still_nameless(
    folder: int, tmp_path: Path
) -> None:
    with made(folder) as file:
        with pytest.raises(MediumError, match="CRC32C"):
            file.verify(SIZE, crc32c(bytes(SIZE - 1) + b"x"), no_tick)
        assert [path.name for path in tmp_path.iterdir()] == [os.fsdecode(TEMPORARY)]
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_meanwhile_is_what_is_read_back(folder: int, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    with made(folder) as file:
        prepared._write(
            file._descriptor, aligned(data + bytes(-SIZE % 4096)), 0
        )  # in the same blocks
        file.verify(SIZE, crc32c(data), no_tick)
        file.name(b"file")
    assert (tmp_path / "file").read_bytes() == data


def aligned(data: bytes) -> memoryview:

    view = memoryview(mmap.mmap(-1, len(data)))
    view[:] = data
    return view


def test_a_file_whose_blocks_have_changed_is_refused(folder: int) -> None:
    with made(folder) as file:
        file.digest = "of another map"
        with pytest.raises(RefusedError, match="other blocks"):
            file.verify(SIZE, crc32c(bytes(SIZE)), no_tick)


def test_a_file_that_somebody_wants_to_open_is_refused(folder: int, tmp_path: Path) -> None:
    with made(folder) as file:
        with opener(tmp_path / os.fsdecode(TEMPORARY)) as process:
            while file.has_lease:
                assert process.poll() is None
            with pytest.raises(RefusedError, match="lease is gone"):
                file.verify(SIZE, crc32c(bytes(SIZE)), no_tick)
            file.drop()  # he may go on
        assert process.returncode == 0


def test_a_name_that_is_taken_stays_what_it_was(folder: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with made(folder) as file:
        file.verify(SIZE, crc32c(bytes(SIZE)), no_tick)
        with pytest.raises(FileExistsError):
            file.name(b"file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_whose_temporary_name_was_taken_away_is_still_the_one_that_was_verified(
    folder: int, tmp_path: Path
) -> None:
    """Somebody renames another file over the temporary one: neither is lost, and his is not removed."""
    temporary = tmp_path / os.fsdecode(TEMPORARY)
    with made(folder) as file:
        os.link(temporary, tmp_path / "kept")
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").rename(temporary)
        file.verify(SIZE, crc32c(bytes(SIZE)), no_tick)
        file.name(b"file")
    assert (tmp_path / "file").stat().st_ino == (tmp_path / "kept").stat().st_ino
    assert temporary.read_text() == "other"


def test_an_existing_file_or_link_is_never_prepared(folder: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("safe")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in (b"elsewhere", b"link"):
        with pytest.raises(FileExistsError):
            prepare(folder, name, SIZE, no_tick)
    assert (tmp_path / "elsewhere").read_text() == "safe"


def test_no_link_on_the_way_is_followed(folder: int, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match=r"Not a directory|Too many"):
        prepare(folder, b"link/file", SIZE, no_tick)
    assert list((tmp_path / "real").iterdir()) == []
    with made(folder, temporary=b"real/file"):
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]


@pytest.mark.parametrize("path", [b"", b"/etc/x", b"a//b", b"../x", b"a/./b", b"a/..", b"a\0b"])
def test_a_path_that_leads_elsewhere_is_refused(path: bytes) -> None:
    with pytest.raises(UsageError):
        components(path)


@pytest.mark.parametrize("size", [0, -1, (1 << 44) + 1])
def test_a_size_that_cannot_be_is_refused(folder: int, size: int) -> None:
    with pytest.raises(UsageError):
        prepare(folder, TEMPORARY, size, no_tick)


def test_a_map_with_a_flag_leaves_nothing(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = MappedExtent(0, 4096, MIB, 0x2001)
    monkeypatch.setattr(prepared, "read_map", lambda _: [shared])
    with pytest.raises(RefusedError, match="shared"):
        prepare(folder, TEMPORARY, MIB, no_tick)
    assert list(tmp_path.iterdir()) == []


def test_an_inode_with_a_flag_leaves_nothing(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "inode_flags", lambda _: (0x4000, 0))
    with pytest.raises(RefusedError, match="chattr"):
        prepare(folder, TEMPORARY, MIB, no_tick)
    assert list(tmp_path.iterdir()) == []


def test_whoever_does_not_want_it_any_more_gets_nothing(folder: int, tmp_path: Path) -> None:
    ticks = iter([None, None])

    def tick() -> None:
        if next(ticks, "over") is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, TEMPORARY, 64 * MIB, tick)
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_leaves_nothing(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        prepare(folder, TEMPORARY, MIB, no_tick)
    assert list(tmp_path.iterdir()) == []
