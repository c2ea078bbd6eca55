"""One NBD connection after the negotiation: requests in, replies out, one after the other in the order of arrival.

Every step of Python's is in the way of the next request, so small requests share system calls: one receive takes as
many requests as have arrived, their replies go into one buffer, and the buffer is sent when nothing more can be
answered without waiting.  Two rules follow from it:

    nothing is received while a reply waits in the buffer       so no client waits for what is here already
    a request is carried out wholly before the next is looked at so FLUSH covers everything that was answered before it

A connection has a thread of its own (`serve`).  While its requests are small and quick it is with its export's crew,
whose one thread calls `advance`.

Large data do not pass through these buffers.  Reads lend the pages of the file to the socket (file -> pipe -> socket):
the first half finds what cannot be read before any byte of the reply was promised, the second copies nothing.  Writes
are received into a piece that stays in the cache until the device has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import Final

from backplane.errors import BackupError, RemoteProtocolError
from backplane.transport.stream import ConnectionClosedError, FileRange
from storage_node.core import nbd_transmission as nbd
from storage_node.core.nbd_handshake import BASE_ALLOCATION, Ready, context_number
from storage_node.core.nbd_transmission import (
    BLOCK_STATUS,
    CACHE,
    CHUNK_MAGIC,
    DATA_CHUNK,
    DISCONNECT,
    DONE,
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    FLUSH,
    READ,
    REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Chunk,
    Limits,
    NbdError,
)
from storage_node.nbd.crew import Crew
from storage_node.nbd.export import Export

SMALL_BYTES: Final = 64 * 1024
"""Data up to here go through the buffers; beyond it a system call of its own is cheaper than a copy."""
BUFFER_BYTES: Final = 2 * SMALL_BYTES
"""Of the requests, and of the replies, that are here at once."""
RECEIVE_BYTES: Final = 32 * 1024
"""Taken at once if no request needs more: a client has its first replies while its last requests are carried out."""
PIECE_BYTES: Final = 256 * 1024
"""Of a large write: small enough to be still in the cache when it is written."""
UNIX_PIECE_BYTES: Final = 512 * 1024
"""The same over a unix socket, which holds less, so that a piece costs more calls."""
PIPE_BYTES: Final = 1024 * 1024
"""Of a large read: what is in the pipe is known to be readable."""
DRAIN_BYTES_MAX: Final = 64 * 1024 * 1024
"""A refused write's payload is taken in up to here, so that its client hears why; one that is longer ends it all."""

QUICK_S: Final = 50e-6
"""Mean time of a request that is no matter for a thread of its own: more than a page cache takes, less than a disk."""
QUICK_REQUESTS: Final = 256
"""What the mean is taken over, so that one pause of the machine does not count."""
REST_S: Final = 1.0
"""How long a connection that was not quick keeps its own thread."""

_PAGE_BYTES: Final = 4096
_ROOM_BYTES: Final = SMALL_BYTES + 4096
"""For any reply to a small request."""


class Transmission:
    """Serves one connection until it ends.  Belongs to one thread at a time."""

    def __init__(
        self, sock: socket.socket, export: Export, ready: Ready, crew: Crew | None = None
    ) -> None:
        self._sock = sock
        self._export = export
        self._is_structured = ready.is_structured
        self._contexts = ready.contexts
        self._limits = Limits(
            size_bytes=export.size_bytes,
            block_bytes=export.block_bytes,
            payload_bytes_max=export.payload_bytes_max,
            is_read_only=export.is_read_only,
            is_structured=ready.is_structured,
            has_contexts=bool(ready.contexts),
        )
        self._input = memoryview(bytearray(BUFFER_BYTES + len(ready.leftover)))
        self._input[: len(ready.leftover)] = ready.leftover
        self._start, self._end = 0, len(ready.leftover)
        self._output = memoryview(bytearray(BUFFER_BYTES))
        self._output_end = 0
        self._piece = memoryview(b"")
        is_unix = sock.family == socket.AF_UNIX
        self._piece_bytes = UNIX_PIECE_BYTES if is_unix else PIECE_BYTES
        self._pipe: Pipe | None = None
        self._crew = crew
        self._light = 0
        self._own_until = 0.0
        self._quick = 0
        self._quick_s = 0.0

    def serve(self) -> None:
        """Answer requests until the client disconnects.  Raises `BackupError` if it ends in another way."""
        try:
            while True:
                while self._end - self._start < REQUEST.size:
                    if self._is_for_crew():
                        self._join_crew()
                    elif not self._receive():
                        return
                magic, flags, command, cookie, address, count = REQUEST.unpack_from(
                    self._input, self._start
                )
                if magic != REQUEST_MAGIC:
                    raise RemoteProtocolError(f"NBD: a request begins with {magic:#x}")
                self._start += REQUEST.size
                if not self._limits.allows(command, flags, address, count):
                    self._refuse(command, flags, cookie, address, count)
                elif command == READ:
                    self._read(flags, cookie, address, count)
                elif command == WRITE:
                    self._write(flags, cookie, address, count)
                elif command == DISCONNECT:
                    if self._output_end:
                        self._send()
                    return
                else:
                    self._other(command, flags, cookie, address, count)
        except OSError as error:
            raise ConnectionClosedError(
                f"NBD connection lost: {error.strerror or error}", is_clean=False
            ) from error
        finally:
            if self._pipe is not None:
                self._pipe.close()

    # Together with others.

    def _is_for_crew(self) -> bool:
        """Say whether the last requests were such that one thread can serve several connections."""
        crew = self._crew
        if crew is None or self._light < crew.light_requests:
            return False
        return crew.monotonic() >= self._own_until

    def _join_crew(self) -> None:
        """Be served by the crew, as long as it goes well."""
        assert self._crew is not None
        if self._output_end:
            self._send()
        self._quick, self._quick_s = 0, 0.0
        self._crew.look_after(self)
        self._light = 0

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    def advance(self) -> bool:
        """Serve the small requests that have arrived, without waiting.

        False if the next step may take long: it has not begun, and whatever waits is in the buffers, as `serve` wants
        it.  A request that is here in part stays in the buffer until the rest comes.
        """
        held = self._end - self._start
        if self._start:
            self._input[:held] = self._input[self._start : self._end]
            self._start, self._end = 0, held
        room = self._input[held : held + RECEIVE_BYTES]
        try:
            received = self._sock.recv_into(room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if not received:
            return False
        self._end += received
        assert self._crew is not None
        begin = self._crew.monotonic()
        goes_on = self._serve_small()
        now = self._crew.monotonic()
        self._quick_s += now - begin
        if self._quick_s > QUICK_S * max(self._quick, QUICK_REQUESTS):
            self._own_until = now + REST_S
            goes_on = False
        return self._send_some() and goes_on

    def _serve_small(self) -> bool:
        """Serve what is in the buffer; False at a request that may take long."""
        while self._end - self._start >= REQUEST.size:
            magic, flags, command, cookie, address, count = REQUEST.unpack_from(
                self._input, self._start
            )
            is_small = magic == REQUEST_MAGIC and 0 < count <= SMALL_BYTES
            if not is_small or not self._limits.allows(command, flags, address, count):
                return False
            if self._output_end > BUFFER_BYTES - _ROOM_BYTES and not self._send_some():
                return False
            if command == READ:
                self._start += REQUEST.size
                self._read(flags, cookie, address, count)
            elif command != WRITE or flags & FLAG_FUA:
                return False
            elif self._end - self._start < REQUEST.size + count:
                return True
            else:
                self._start += REQUEST.size
                self._write(flags, cookie, address, count)
            self._quick += 1
        return True

    def _send_some(self) -> bool:
        """Send of the replies what the client takes at once; False if some are left."""
        if not self._output_end:
            return True
        try:
            sent = self._sock.send(self._output[: self._output_end], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        left = self._output_end - sent
        if left:
            self._output[:left] = self._output[sent : self._output_end]
        self._output_end = left
        return not left

    # Bytes in and out.

    def _receive(self, count_max: int = RECEIVE_BYTES) -> bool:
        """Receive what there is; False if the client has closed between two requests."""
        if self._output_end:
            self._send()
        held = self._end - self._start
        if self._start:
            # What is left of the last receive: less than a request and its payload.
            self._input[:held] = self._input[self._start : self._end]
            self._start, self._end = 0, held
        count = self._sock.recv_into(self._input[held : held + count_max])
        if not count:
            if held:
                raise ConnectionClosedError("NBD: closed inside a request", is_clean=False)
            return False
        self._end += count
        return True

    def _take_into(self, buffer: memoryview) -> None:
        """Fill a buffer with payload: what was received already, then straight from the socket."""
        held = min(self._end - self._start, len(buffer))
        buffer[:held] = self._input[self._start : self._start + held]
        self._start += held
        if held < len(buffer) and self._output_end:
            self._send()
        while held < len(buffer):
            count = self._sock.recv_into(buffer[held:], 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionClosedError("NBD: closed inside a payload", is_clean=False)
            held += count

    def _send(self, flags: int = 0) -> None:
        """Send the replies that wait."""
        self._sock.sendall(self._output[: self._output_end], flags)
        self._output_end = 0

    def _put(self, data: bytes) -> None:
        """Add bytes to the replies that wait."""
        if self._output_end + len(data) > BUFFER_BYTES:
            self._send()
        self._output[self._output_end : self._output_end + len(data)] = data
        self._output_end += len(data)

    def _done(self, cookie: int) -> None:
        """Answer a request that was carried out and has nothing to tell."""
        if self._output_end + SIMPLE_REPLY.size > BUFFER_BYTES:
            self._send()
        SIMPLE_REPLY.pack_into(self._output, self._output_end, REPLY_MAGIC, 0, cookie)
        self._output_end += SIMPLE_REPLY.size

    def _fail(self, cookie: int, error: BackupError | MemoryError) -> None:
        number = nbd.error_number(error)
        self._put(nbd.encode_error(cookie, number, str(error), is_structured=self._is_structured))

    def _refuse(self, command: int, flags: int, cookie: int, address: int, count: int) -> None:
        """Answer a request that may not be carried out."""
        if command == WRITE:
            if count > DRAIN_BYTES_MAX:
                raise RemoteProtocolError(f"NBD: a write of {count} bytes")
            self._drain(count)
        error, message = self._limits.refusal(command, flags, address, count)
        self._put(nbd.encode_error(cookie, error, message, is_structured=self._is_structured))

    def _drain(self, count: int) -> None:
        while count:
            piece = self._buffer(min(count, self._piece_bytes))
            self._take_into(piece)
            count -= len(piece)

    def _buffer(self, count: int) -> memoryview:
        """Return `count` bytes for large data, kept for the next time unless they are many."""
        if count > PIPE_BYTES:
            return memoryview(bytearray(count))
        if len(self._piece) < count:
            self._piece = memoryview(
                bytearray(self._piece_bytes if count <= self._piece_bytes else PIPE_BYTES)
            )
        return self._piece[:count]

    # Reading.

    def _read(self, flags: int, cookie: int, address: int, count: int) -> None:
        if count > SMALL_BYTES:
            self._light = 0
            self._read_large(flags, cookie, address, count)
            return
        self._light += 1
        if not count:
            self._put(nbd.encode_done(cookie)) if self._is_structured else self._done(cookie)
            return
        head_bytes = DATA_CHUNK.size if self._is_structured else SIMPLE_REPLY.size
        if self._output_end + head_bytes + count > BUFFER_BYTES:
            self._send()
        start = self._output_end
        end = start + head_bytes + count
        try:
            self._export.read_into(address, self._output[start + head_bytes : end])
        except (BackupError, MemoryError) as error:
            self._fail(cookie, error)
            return
        self._put_data_head(cookie, address, count, flags=DONE)
        self._output_end = end

    def _put_data_head(self, cookie: int, address: int, count: int, *, flags: int) -> None:
        """Add what comes before data; the caller has made room."""
        at = self._output_end
        if self._is_structured:
            DATA_CHUNK.pack_into(
                self._output, at,
                CHUNK_MAGIC, flags, Chunk.OFFSET_DATA, cookie, 8 + count, address,
            )  # fmt: skip
            self._output_end = at + DATA_CHUNK.size
        else:
            SIMPLE_REPLY.pack_into(self._output, at, REPLY_MAGIC, 0, cookie)
            self._output_end = at + SIMPLE_REPLY.size

    def _read_large(self, flags: int, cookie: int, address: int, count: int) -> None:
        """Send data in one run, or in several where the client takes them.

        Holes are sent as zeros: asking for them at each read costs more than it saves (a tmpfs looks at every page up
        to the next hole, which may be at the end of the file), and who cares asks for the block status of far more at
        once.
        """
        can_split = self._is_structured and not flags & FLAG_DF
        end = address + count
        try:
            while address < end:
                piece = min(end - address, PIPE_BYTES) if can_split else count
                done = DONE if address + piece == end else 0
                self._read_piece(cookie, address, piece, flags=done)
                address += piece
        except (BackupError, MemoryError) as error:
            if isinstance(error, ConnectionClosedError):
                raise
            # Chunks that went before keep their meaning: the read has failed as a whole.
            self._fail(cookie, error)

    def _read_piece(self, cookie: int, address: int, count: int, *, flags: int) -> None:
        """Send one run of data with its head; nothing is promised before it was read."""
        file = self._export.file_range(address, count) if count <= PIPE_BYTES else None
        if file is not None and self._lend(file, count):
            assert self._pipe is not None
            self._make_room()
            self._put_data_head(cookie, address, count, flags=flags)
            self._send(socket.MSG_MORE)
            self._pipe.send(self._sock, count)
            return
        data = self._buffer(count)
        self._export.read_into(address, data)
        self._make_room()
        self._put_data_head(cookie, address, count, flags=flags)
        head = self._output[: self._output_end]
        sent = self._sock.sendmsg([head, data])
        if sent < len(head):
            self._sock.sendall(head[sent:], socket.MSG_MORE)
            sent = len(head)
        self._output_end = 0
        if sent < len(head) + count:
            self._sock.sendall(data[sent - len(head) :])

    def _make_room(self) -> None:
        if self._output_end + DATA_CHUNK.size > BUFFER_BYTES:
            self._send()

    def _lend(self, file: FileRange, count: int) -> bool:
        """Put a file's pages into the pipe; False if they do not all fit, or cannot be had: then read them."""
        try:
            if self._pipe is None:
                self._pipe = Pipe()
            if not self._pipe.fits(file, count):
                return False
            if self._pipe.fill(file, count):
                return True
            self._pipe.close()
        except OSError:
            # Reading will say what is wrong, if it still is.
            if self._pipe is not None:
                self._pipe.close()
        self._pipe = None
        return False

    # Writing.

    def _write(self, flags: int, cookie: int, address: int, count: int) -> None:
        if count > SMALL_BYTES:
            self._light = 0
            self._write_large(flags, cookie, address, count)
            return
        self._light += 1
        while (missing := count - (self._end - self._start)) > 0:
            if not self._receive(max(missing, RECEIVE_BYTES)):
                raise ConnectionClosedError("NBD: closed inside a payload", is_clean=False)
        start = self._start
        self._start = start + count
        try:
            self._export.write(
                address, self._input[start : start + count], fua=bool(flags & FLAG_FUA)
            )
        except (BackupError, MemoryError) as error:
            self._fail(cookie, error)
            return
        self._done(cookie)

    def _write_large(self, flags: int, cookie: int, address: int, count: int) -> None:
        """Write in pieces.  After an error the rest is only taken in; what was written stays."""
        failed: BackupError | MemoryError | None = None
        fua = bool(flags & FLAG_FUA)
        is_single = count <= self._piece_bytes
        end = address + count
        while address < end:
            piece = self._buffer(min(end - address, self._piece_bytes))
            self._take_into(piece)
            if failed is None:
                try:
                    self._export.write(address, piece, fua=fua and is_single)
                except (BackupError, MemoryError) as error:
                    failed = error
            address += len(piece)
        try:
            if failed is None and fua and not is_single:
                self._export.flush()
        except BackupError as error:
            failed = error
        if failed is not None:
            self._fail(cookie, failed)
        else:
            self._done(cookie)

    # Everything else is rare enough for one more call.

    def _other(self, command: int, flags: int, cookie: int, address: int, count: int) -> None:
        self._light = 0
        try:
            if command == FLUSH:
                self._export.flush()
            elif command == TRIM:
                self._trim(address, count, fua=bool(flags & FLAG_FUA))
            elif command == WRITE_ZEROES:
                self._export.zero(
                    address,
                    count,
                    may_punch=not flags & FLAG_NO_HOLE,
                    is_fast_only=bool(flags & FLAG_FAST_ZERO),
                    fua=bool(flags & FLAG_FUA),
                )
            elif command == CACHE:
                self._cache(address, count)
            else:
                assert command == BLOCK_STATUS
                self._put(self._statuses(flags, cookie, address, count))
                return
        except (BackupError, MemoryError) as error:
            self._fail(cookie, error)
            return
        self._done(cookie)

    def _trim(self, address: int, count: int, *, fua: bool) -> None:
        """Give space back where that is cheap.  TRIM is a hint: nobody wants gigabytes of zeros written for it."""
        try:
            self._export.zero(address, count, may_punch=True, is_fast_only=True, fua=fua)
        except BackupError as error:
            if nbd.error_number(error) is not NbdError.ENOTSUP:
                raise

    def _cache(self, address: int, count: int) -> None:
        """Ask the kernel to read ahead; an export that is no file has nothing that would be faster."""
        file = self._export.file_range(address, count)
        if file is not None:
            os.posix_fadvise(file.descriptor, file.offset, count, os.POSIX_FADV_WILLNEED)

    def _statuses(self, flags: int, cookie: int, address: int, count: int) -> bytes:
        end = address + count
        reply = b""
        for context in self._contexts:
            inside, outside = nbd.CHANGED_DIRTY, 0
            if context == BASE_ALLOCATION:
                inside, outside = 0, nbd.ALLOCATION_HOLE_AND_ZERO
            descriptors = nbd.describe_runs(
                self._runs(context, address, end),
                start_byte=address,
                end_byte=end,
                inside=inside,
                outside=outside,
                count_max=1 if flags & FLAG_REQ_ONE else nbd.DESCRIPTORS_MAX,
            )
            is_last = context == self._contexts[-1]
            reply += nbd.encode_statuses(
                cookie, context_number(context), descriptors, is_last=is_last
            )
        return reply

    def _runs(self, context: str, address: int, end: int) -> Iterator[tuple[int, int]]:
        if context == BASE_ALLOCATION:
            return self._export.extents(address, end)
        changed = self._export.changed(address, end)
        # Whoever kept track has stopped since the negotiation: everything may have changed.
        return iter([(address, end)]) if changed is None else changed


class Pipe:
    """Lends pages of a file to a socket."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        try:
            self._bytes = fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            # Over the user's budget for pipes: large reads are copied.
            self._bytes = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ)

    def fits(self, file: FileRange, count: int) -> bool:
        """Say whether the pipe has room for all the pages that `count` bytes lie in."""
        return file.offset % _PAGE_BYTES + count <= self._bytes

    def fill(self, file: FileRange, count: int) -> bool:
        """Take `count` bytes from the file; False if they do not fit or the file is too short: then close the pipe."""
        taken = 0
        while taken < count:
            try:
                more = os.splice(
                    file.descriptor,
                    self._in,
                    count - taken,
                    offset_src=file.offset + taken,
                    flags=os.SPLICE_F_NONBLOCK,
                )
            except OSError as error:
                if error.errno == errno.EAGAIN:  # pages in more pieces than the pipe has places
                    return False
                raise
            if not more:
                return False
            taken += more
        return True

    def send(self, sock: socket.socket, count: int) -> None:
        """Give all that is in the pipe to a socket."""
        target = sock.fileno()
        while count:
            count -= os.splice(self._out, target, count)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._out)
        os.close(self._in)
