"""Images to and from volumes: the one thing that `ctl` moves itself, straight between a file and the disk node.

Not through the controller: it only gives the grant.  Requests are pipelined up to `WINDOW_REQUESTS`; each frame
carries the CRC32C of its data, and a frame that arrives damaged is sent or read again, at most `ATTEMPTS_MAX` times.
Holes are skipped by SEEK_DATA and runs of zeros by looking, so that a sparse image stays sparse on both sides.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backplane import crc
from backplane.errors import (
    BackupError,
    CopyError,
    MediumError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from backplane.transport.stream import Channel
from backplane.units import KIB, MIB, align_down, align_up
from backplane.wire.frames import Entry, Opcode, Protection
from controller.cli.channel import check_reply

PIECE_BYTES: Final = MIB
"""Data of one frame: large enough that headers cost nothing, small enough that a window is a few MiB."""

GRAIN_BYTES: Final = 64 * KIB
"""Runs of zeros are found in steps of this size."""

WINDOW_REQUESTS: Final = 4
ATTEMPTS_MAX: Final = 3

_ZEROS: Final = bytes(GRAIN_BYTES)
_GUARD_CHECK_FAILED: Final = b"\x10\x01"

Report = Callable[[int], None]


@dataclass(slots=True)
class _Request:
    """A frame in flight."""

    byte_address: int
    byte_count: int
    data: bytes | bytearray = b""
    attempts: int = 1


@contextmanager
def open_image(path: Path) -> Iterator[tuple[int, int]]:
    """Open an image (regular file or block device) and yield its descriptor and size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"no such image: {path}") from error
    except OSError as error:
        raise RefusedError(f"cannot open {path}: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{path} is neither a regular file nor a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size == 0:
            raise UsageError(f"{path} is empty")
        yield descriptor, size
    finally:
        os.close(descriptor)


def data_runs(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is not a hole; everything, where the file system knows no holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise MediumError(f"cannot read the image: {error.strerror}") from error
            start, end = at, size
        yield start, min(end, size)
        at = max(end, at + 1)


def image_pieces(
    descriptor: int, size: int, *, block_bytes: int
) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yield (byte address, data) of all that is not zero, in whole blocks, at most `PIECE_BYTES` each.

    The last block is filled up with zeros if the image ends inside it.
    """
    done = 0  # two runs may share a block once they are widened to whole blocks
    for start, end in data_runs(descriptor, size):
        at, stop = max(align_down(start, block_bytes), done), align_up(end, block_bytes)
        while at < stop:
            # Grains are aligned, so that equal images give equal pieces wherever their runs begin.
            length = min(stop - at, PIECE_BYTES - at % GRAIN_BYTES)
            data = _read(descriptor, at, min(length, size - at))
            data += bytes(length - len(data))
            for first, last in nonzero_runs(data):
                yield at + first, data[first:last]
            at += length
        done = max(done, stop)


def nonzero_runs(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of the runs of grains that hold anything but zeros."""
    first = -1
    for at in range(0, len(data), GRAIN_BYTES):
        grain = bytes(data[at : at + GRAIN_BYTES])
        is_zero = grain == _ZEROS[: len(grain)]
        if not is_zero and first < 0:
            first = at
        elif is_zero and first >= 0:
            yield first, at
            first = -1
    if first >= 0:
        yield first, len(data)


def _read(descriptor: int, at: int, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    try:
        while view:
            count = os.preadv(descriptor, [view], at)
            if not count:
                raise MediumError(f"the image ended early, at byte {at}: it is being changed")
            view, at = view[count:], at + count
    except OSError as error:
        raise MediumError(f"cannot read the image: {error.strerror}") from error
    return data


def send_image(
    channel: Channel, descriptor: int, size: int, *, block_bytes: int, report: Report
) -> int:
    """Write an image to an opened unit, durably; return the bytes that were sent.

    `report` is called with the byte address that is reached.
    """
    sent, before = 0, _stamp(descriptor)
    in_flight: deque[_Request] = deque()
    for address, data in image_pieces(descriptor, size, block_bytes=block_bytes):
        if len(in_flight) == WINDOW_REQUESTS:
            _settle_write(channel, in_flight)
        _send(channel, in_flight, _Request(address, len(data), data))
        sent += len(data)
        report(address)
    while in_flight:
        _settle_write(channel, in_flight)
    if _stamp(descriptor) != before:
        raise MediumError("the image was changed while it was read", hint="nothing may write to it")
    channel.request(Opcode.FLUSH)
    check_reply(channel.reply(), what="making the volume durable")
    report(size)
    return sent


def _stamp(descriptor: int) -> tuple[int, int]:
    """What changes when somebody writes to a regular file or cuts it short; holes at its end do not tell."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _send(channel: Channel, in_flight: deque[_Request], request: _Request) -> None:
    entry = Entry(request.byte_address, request.byte_count)
    channel.request(Opcode.WRITE, entries=[entry], data=request.data)
    in_flight.append(request)


def _settle_write(channel: Channel, in_flight: deque[_Request]) -> None:
    """Take the reply to the oldest write; send it again if it arrived damaged."""
    request = in_flight.popleft()
    reply = channel.reply()
    if reply.sense[12:14] == _GUARD_CHECK_FAILED and request.attempts < ATTEMPTS_MAX:
        request.attempts += 1
        _send(channel, in_flight, request)
        return
    check_reply(reply, what=f"writing byte {request.byte_address}")


def receive_image(
    channel: Channel,
    descriptor: int,
    extents: Iterable[tuple[int, int]],
    *,
    block_bytes: int,
    report: Report,
) -> int:
    """Read extents (LBA, blocks) of an opened unit into a file; return the bytes that were received.

    Zeros are not written: the file is new and reads as zeros where nothing was written.
    """
    received = 0
    buffer = memoryview(bytearray(PIECE_BYTES))
    in_flight: deque[_Request] = deque()
    for request in _reads(extents, block_bytes=block_bytes):
        if len(in_flight) == WINDOW_REQUESTS:
            received += _settle_read(channel, in_flight, descriptor, buffer)
        _ask(channel, in_flight, request)
        report(request.byte_address)
    while in_flight:
        received += _settle_read(channel, in_flight, descriptor, buffer)
    return received


def _reads(extents: Iterable[tuple[int, int]], *, block_bytes: int) -> Iterator[_Request]:
    for lba, blocks in extents:
        at, end = lba * block_bytes, (lba + blocks) * block_bytes
        while at < end:
            count = min(PIECE_BYTES, end - at)
            yield _Request(at, count)
            at += count


def _ask(channel: Channel, in_flight: deque[_Request], request: _Request) -> None:
    entry = Entry(request.byte_address, request.byte_count)
    channel.request(Opcode.READ, entries=[entry], length=request.byte_count)
    in_flight.append(request)


def _settle_read(
    channel: Channel, in_flight: deque[_Request], descriptor: int, buffer: memoryview
) -> int:
    """Take the reply to the oldest read and store it; ask again if it arrived damaged."""
    request = in_flight.popleft()
    reply = channel.reply()
    check_reply(reply, what=f"reading byte {request.byte_address}")
    header = reply.header
    if header.length != request.byte_count or header.protection is not Protection.CRC32C:
        raise CopyError(
            f"the node answered a read of {request.byte_count} bytes with {header.length} bytes"
        )
    data = buffer[: header.length]
    channel.receive_into(data)
    if crc.crc32c(data) != header.crc32c:
        if request.attempts == ATTEMPTS_MAX:
            raise MediumError(
                f"bytes {request.byte_address} to {request.byte_address + request.byte_count - 1}"
                f" arrived with a wrong checksum {ATTEMPTS_MAX} times"
            )
        request.attempts += 1
        _ask(channel, in_flight, request)
        return 0
    for first, last in nonzero_runs(data):
        _write(descriptor, data[first:last], request.byte_address + first)
    return header.length


def _write(descriptor: int, data: memoryview, at: int) -> None:
    try:
        while data:
            count = os.pwrite(descriptor, data, at)
            data, at = data[count:], at + count
    except OSError as error:
        raise BackupError(f"cannot write the file: {error.strerror}") from error


@contextmanager
def new_file(path: Path, *, size: int, is_forced: bool) -> Iterator[int]:
    """Make a file that appears under its name only when complete and durable."""
    check_new_file(path, is_forced=is_forced)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except OSError as error:
        raise RefusedError(f"cannot create {temporary}: {error.strerror}") from error
    try:
        try:
            os.ftruncate(descriptor, size)
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _publish(temporary, path, is_forced=is_forced)
    except OSError as error:
        raise BackupError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_new_file(path: Path, *, is_forced: bool) -> None:
    """Refuse what would overwrite something, or could not be a new file."""
    if not path.parent.is_dir():
        raise NotFoundError(f"no such folder: {path.parent}")
    if path.exists() or path.is_symlink():
        if not path.is_file() or path.is_symlink():
            raise RefusedError(f"{path} is not a regular file")
        if not is_forced:
            raise RefusedError(f"{path} exists already", hint="--force overwrites it")


def _publish(temporary: Path, path: Path, *, is_forced: bool) -> None:
    if is_forced:
        temporary.replace(path)
    else:
        try:
            path.hardlink_to(temporary)  # unlike rename, fails if the name was taken meanwhile
        except FileExistsError as error:
            raise RefusedError(f"{path} exists already", hint="--force overwrites it") from error
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
