"""Data channels: framed stream sockets (TCP or unix) between a data client and one logical unit.

The client is a mover (or `ctl`, importing an image); the server is a storage node.  Sockets are blocking and have
kernel timeouts (SO_RCVTIMEO, SO_SNDTIMEO) instead of Python's, because Python's would make the descriptor
non-blocking and `splice` needs it blocking.  Nothing is read ahead: after a header exactly its data are next in the
socket, so a relay may hand them to the kernel without looking.

    client                                          server
      | <----------- CHALLENGE (boot id, nonce) ------- |
      | -- OPEN (grant body, nonce, proof) -----------> |   check grant, holder, epoch
      | <----------- OPENED (what the unit is) -------- |   from here every frame has a keyed MAC
      | -- request ... -------------------------------> |
      | <----------------------------- reply ---------- |   in order, one per request

Addresses are `tcp://HOST:PORT` or `unix:///absolute/path`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from backplane import crc
from backplane.errors import (
    BackupError,
    BusyError,
    NotAuthorizedError,
    RemoteProtocolError,
    SenseTriple,
    StaleError,
    UnreachableError,
    UsageError,
)
from backplane.wire import frames, grants
from backplane.wire.frames import Entry, Header, Opcode, Protection, Status
from backplane.wire.packing import PackingError, pack, unpack

NO_KEY: Final = b""
"""Key of the frames before OPEN is answered."""

TIMEOUT_S: Final = 30.0
"""How long one send or receive may stand still before the connection counts as dead."""

HANDSHAKE_TIMEOUT_S: Final = 10.0
KEEPALIVE_S: Final = 15
"""Between probes of a silent TCP peer; TCP_USER_TIMEOUT, which is set as well, ends the waiting for an answer."""

UNIX_BUFFER_BYTES: Final = 2 * 1024 * 1024
"""Send buffer of a unix socket; without privileges the kernel gives what net.core.wmem_max allows."""

_SO_SNDBUFFORCE: Final = 32
PIPE_BYTES: Final = 1024 * 1024
_OPEN_BYTES_MAX: Final = grants.GRANT_BYTES_MAX + 1024
_HANDSHAKE_VERSION: Final = 1


class ConnectionClosedError(UnreachableError):
    """The peer closed the connection between two frames (a normal end) or inside one."""

    kind = "closed"

    def __init__(self, message: str, *, is_clean: bool) -> None:
        super().__init__(message)
        self.is_clean = is_clean


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the server says of the logical unit when it opens it.

    `peripheral_device_type` is 00h for a block device, 01h for a tape drive.  Block devices give `block_bytes` and
    `blocks`; drives give `position` (object number) and `record_bytes_max`.
    """

    boot_id: bytes
    peripheral_device_type: int
    block_bytes: int = 0
    blocks: int = 0
    position: int = 0
    record_bytes_max: int = 0


class FileRange(NamedTuple):
    """Where the data of a frame begin in an open file."""

    descriptor: int
    offset: int


class Reply(NamedTuple):
    """A reply header and its sense data; its data, if any, are still in the socket."""

    header: Header
    sense: bytes

    @property
    def is_good(self) -> bool:
        """The request was carried out."""
        return self.header.status == Status.GOOD


class Connection:
    """One framed socket.  Not thread-safe; `abort` may be called from any thread."""

    def __init__(self, sock: socket.socket, *, key: bytes = NO_KEY) -> None:
        self.sock = sock
        self.key = key
        self.boot = 0

    def send(
        self,
        header: Header,
        *,
        extra: bytes = b"",
        data: bytes | bytearray | memoryview | None = None,
        more: bool = False,
    ) -> None:
        """Send one frame.  With `more`, the caller sends the data itself, right after this."""
        head = frames.encode_header(header, key=self.key, extra=extra) + extra
        try:
            if data is None or not len(data):
                self.sock.sendall(head, socket.MSG_MORE if more else 0)
                return
            # One system call in the common case: sendmsg gathers both, then the rest by sendall.
            sent = self.sock.sendmsg([head, data])
            if sent < len(head):
                self.sock.sendall(head[sent:], socket.MSG_MORE)
                sent = len(head)
            if sent < len(head) + len(data):
                self.sock.sendall(memoryview(data)[sent - len(head) :])
        except OSError as error:
            raise _lost(error) from error

    def send_file(self, header: Header, source: FileRange, *, extra: bytes = b"") -> None:
        """Send a frame whose data are in a file, without copying them to user space.

        The caller has read the same bytes for the header's checksum.  Should the file change in between, the checksum
        says so at the other end; should it become shorter, the connection ends.
        """
        self.send(header, extra=extra, more=True)
        offset, left = source.offset, header.length
        try:
            while left:
                count = os.sendfile(self.sock.fileno(), source.descriptor, offset, left)
                if not count:
                    raise ConnectionClosedError("the file ended inside a frame", is_clean=False)
                offset += count
                left -= count
        except OSError as error:
            raise _lost(error) from error

    def receive_header(self) -> tuple[Header, bytes]:
        """Receive a header with its extra bytes, and check its MAC."""
        raw = self._receive_exactly(frames.HEADER_BYTES, at_boundary=True)
        header = frames.decode_header(raw)
        extra = self._receive_exactly(header.extra_bytes) if header.extra else b""
        frames.check_mac(raw, extra, key=self.key)
        return header, extra

    def receive_into(self, buffer: memoryview) -> None:
        """Fill the buffer with data of the current frame."""
        try:
            while buffer:
                count = self.sock.recv_into(buffer, 0, socket.MSG_WAITALL)
                if not count:
                    raise ConnectionClosedError("connection closed inside a frame", is_clean=False)
                buffer = buffer[count:]
        except OSError as error:
            raise _lost(error) from error

    def receive_data(self, length: int) -> bytearray:
        """Receive `length` bytes of data into a new buffer."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return data

    def abort(self) -> None:
        """Unblock whoever waits on this connection, from any thread."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _receive_exactly(self, count: int, *, at_boundary: bool = False) -> bytes:
        try:
            data = self.sock.recv(count, socket.MSG_WAITALL)
            while len(data) < count:
                rest = self.sock.recv(count - len(data), socket.MSG_WAITALL)
                if not rest:
                    clean = at_boundary and not data
                    where = "between frames" if clean else "inside a frame"
                    raise ConnectionClosedError(f"connection closed {where}", is_clean=clean)
                data += rest
        except OSError as error:
            raise _lost(error) from error
        return data


class Channel(Connection):
    """The client's end: an opened logical unit.  Use as a context manager."""

    def __init__(self, sock: socket.socket, *, key: bytes, opened: Opened) -> None:
        super().__init__(sock, key=key)
        self.opened = opened
        self.boot = frames.boot_bits(opened.boot_id)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(
        self,
        opcode: Opcode,
        *,
        modifier: int = 0,
        address: int = 0,
        length: int = 0,
        crc32c: int = 0,
        protection: Protection = Protection.NONE,
        entries: tuple[Entry, ...] | list[Entry] = (),
        data: bytes | bytearray | memoryview | None = None,
        data_follows: bool = False,
    ) -> int:
        """Send a request and return its sequence number.

        With `data_follows`, only the header (and entries) are sent; `length` bytes of data have to be relayed or sent
        on `sock` before anything else.  With `data`, the CRC is computed unless `protection` is given already.
        """
        if data is not None:
            length = len(data)
            if protection is Protection.NONE:
                protection, crc32c = Protection.CRC32C, crc.crc32c(data)
        self._sequence += 1
        header = Header(
            opcode=opcode,
            is_reply=False,
            sequence=self._sequence,
            status=modifier,
            protection=protection,
            address=address,
            length=length,
            crc32c=crc32c,
            extra=len(entries),
            boot=self.boot,
        )
        extra = frames.encode_entries(entries) if entries else b""
        self.send(header, extra=extra, data=data, more=data_follows)
        return self._sequence

    def reply(self) -> Reply:
        """Receive the next reply header and its sense."""
        header, sense = self.receive_header()
        if not header.is_reply or header.boot != self.boot:
            raise RemoteProtocolError("data channel: not a reply of the node that opened the unit")
        return Reply(header, sense)


class Relay(Protocol):
    """Moves the data of one frame from one connection to another."""

    def move(self, source: Connection, target: Connection, length: int) -> None:
        """Move exactly `length` bytes or raise; after an error neither connection is usable."""

    def close(self) -> None:
        """Free what the relay holds."""


class CopyRelay:
    """The readable oracle: receive into a buffer, send it on."""

    def __init__(self, *, buffer_bytes: int = 256 * 1024) -> None:
        self._buffer = memoryview(bytearray(buffer_bytes))

    def move(self, source: Connection, target: Connection, length: int) -> None:
        """Move exactly `length` bytes through user space."""
        try:
            while length:
                count = source.sock.recv_into(self._buffer, min(length, len(self._buffer)))
                if not count:
                    raise ConnectionClosedError("source closed inside a frame", is_clean=False)
                length -= count
                target.sock.sendall(self._buffer[:count], socket.MSG_MORE if length else 0)
        except OSError as error:
            raise _lost(error) from error

    def close(self) -> None:
        """Nothing to free."""


_SPLICE_MOVE: Final = 1
_SPLICE_MORE: Final = 4


class SpliceRelay:
    """Moves bytes socket -> pipe -> socket inside the kernel; no byte enters this process.

    After an error the pipe may hold bytes that belong to nobody: it is thrown away, and the next move makes a new one.
    """

    def __init__(self, *, pipe_bytes: int = PIPE_BYTES) -> None:
        self._wanted_bytes = pipe_bytes
        self._ends: tuple[int, int] | None = None
        self._pipe_bytes = 0
        self._make_pipe()

    def _make_pipe(self) -> tuple[int, int]:
        self._ends = os.pipe()
        try:
            self._pipe_bytes = fcntl.fcntl(self._ends[1], fcntl.F_SETPIPE_SZ, self._wanted_bytes)
        except OSError:
            # Over the user's pipe budget: the default size works, only with more system calls.
            self._pipe_bytes = fcntl.fcntl(self._ends[1], fcntl.F_GETPIPE_SZ)
        return self._ends

    def move(self, source: Connection, target: Connection, length: int) -> None:
        """Move exactly `length` bytes without copying them to user space."""
        read_end, write_end = self._ends or self._make_pipe()
        source_fd, target_fd = source.sock.fileno(), target.sock.fileno()
        try:
            while length:
                taken = os.splice(
                    source_fd, write_end, min(length, self._pipe_bytes), flags=_SPLICE_MOVE
                )
                if not taken:
                    raise ConnectionClosedError("source closed inside a frame", is_clean=False)
                length -= taken
                flags = _SPLICE_MOVE | (_SPLICE_MORE if length else 0)
                while taken:
                    given = os.splice(read_end, target_fd, taken, flags=flags)
                    taken -= given
        except OSError as error:
            self.close()
            raise _lost(error) from error

    def close(self) -> None:
        """Close the pipe; twice is once."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None


def open_relay(kind: str = "auto") -> Relay:
    """Return a relay: `splice`, `copy`, or `auto` (splice where the kernel has it)."""
    if kind == "copy" or (kind == "auto" and not hasattr(os, "splice")):
        return CopyRelay()
    return SpliceRelay()


def parse_address(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """Split an address into family and socket address; raises `UsageError`."""
    if address.startswith("unix://"):
        path = address.removeprefix("unix://")
        if path.startswith("/"):
            return socket.AF_UNIX, path
    elif address.startswith("tcp://"):
        host, colon, port = address.removeprefix("tcp://").rpartition(":")
        if colon and host and port.isdigit() and int(port) < 65536:
            bare = host.removeprefix("[").removesuffix("]")
            return (socket.AF_INET6 if ":" in bare else socket.AF_INET), (bare, int(port))
    raise UsageError(
        f"not a data address: {address!r}", hint="use tcp://HOST:PORT or unix:///absolute/path"
    )


def listen(address: str, *, backlog: int = 64) -> tuple[socket.socket, str]:
    """Bind and listen; return the socket and the address with the real port."""
    family, where = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            assert isinstance(where, str)
            Path(where).unlink(missing_ok=True)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise UnreachableError(f"cannot listen on {address}: {error.strerror}") from error
    if family == socket.AF_UNIX:
        return sock, address
    host, port = sock.getsockname()[:2]
    return sock, f"tcp://[{host}]:{port}" if family == socket.AF_INET6 else f"tcp://{host}:{port}"


def tune(sock: socket.socket, *, timeout_s: float) -> None:
    """Set the options of a data socket: no delay, kernel timeouts, a fair congestion control on loopback."""
    sock.setblocking(True)
    seconds, fraction = divmod(timeout_s, 1.0)
    timeval = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    if sock.family == socket.AF_UNIX:
        # Unix sockets do not tune their buffers; the usual default is a fraction of a record.
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, UNIX_BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that has lost its power says nothing: ask it, or its connection would stay for hours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
    peer = sock.getpeername()[0]
    if peer in ("127.0.0.1", "::1"):
        # bbr paces loopback to a fraction of what reno moves (measured: 2 to 4 times slower).
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EPERM):
                raise


def connect(address: str, *, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Connect to a data address; raises `UnreachableError`."""
    family, where = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(min(timeout_s, HANDSHAKE_TIMEOUT_S))
        sock.connect(where)
        tune(sock, timeout_s=timeout_s)
    except OSError as error:
        sock.close()
        raise UnreachableError(f"cannot connect to {address}: {error.strerror or error}") from error
    return sock


def open_unit(
    addresses: tuple[str, ...] | list[str],
    *,
    node_key: bytes,
    body: bytes,
    tag: bytes,
    secret_key: bytes,
    timeout_s: float = TIMEOUT_S,
) -> Channel:
    """Connect to the first address that answers and open the logical unit that the grant names.

    `node_key` is the node's public CURVE key, `secret_key` ours.  Raises `UnreachableError`,
    `NotAuthorizedError` (the node refused the grant) or `RemoteProtocolError`.
    """
    problems = []
    for address in addresses:
        try:
            sock = connect(address, timeout_s=timeout_s)
        except UnreachableError as error:
            problems.append(error.message)
            continue
        try:
            return _client_handshake(
                sock, node_key=node_key, body=body, tag=tag, secret_key=secret_key
            )
        except BaseException:
            sock.close()
            raise
    raise UnreachableError("; ".join(problems) or "the logical unit has no data address")


def _client_handshake(
    sock: socket.socket, *, node_key: bytes, body: bytes, tag: bytes, secret_key: bytes
) -> Channel:
    raw = Connection(sock)
    header, _ = raw.receive_header()
    if header.opcode is not Opcode.CHALLENGE or header.length > 256:
        raise RemoteProtocolError("data channel: the node did not begin with a challenge")
    version, boot_id, node_nonce = _fields(raw.receive_data(header.length), 3)
    if version != _HANDSHAKE_VERSION or type(boot_id) is not bytes or type(node_nonce) is not bytes:
        raise RemoteProtocolError("data channel: challenge of an unknown version")
    mover_nonce = secrets.token_bytes(grants.NONCE_BYTES)
    key = grants.session_key(
        tag=tag,
        holder_secret=grants.agree(secret_key, node_key),
        node_nonce=node_nonce,
        mover_nonce=mover_nonce,
        boot_id=boot_id,
    )
    payload = pack([body, mover_nonce, grants.open_proof(key, body)])
    raw.send(
        Header(opcode=Opcode.OPEN, is_reply=False, sequence=0, length=len(payload)), data=payload
    )
    try:
        answer = raw.sock.recv(frames.HEADER_BYTES, socket.MSG_PEEK | socket.MSG_WAITALL)
    except OSError as error:
        raise _lost(error) from error
    if len(answer) == frames.HEADER_BYTES and frames.decode_header(answer).status == Status.GOOD:
        raw.key = key
    header, sense = raw.receive_header()
    if header.opcode is not Opcode.OPEN or not header.is_reply or header.length > 4096:
        raise RemoteProtocolError("data channel: OPEN was not answered")
    data = raw.receive_data(header.length)
    if header.status != Status.GOOD:
        reason, hint = _fields(data, 2)
        raise _refusal(sense, str(reason), str(hint))
    device_type, block_bytes, blocks, position, record_bytes_max = _fields(data, 5)
    opened = Opened(
        boot_id=boot_id,
        peripheral_device_type=int(device_type),
        block_bytes=int(block_bytes),
        blocks=int(blocks),
        position=int(position),
        record_bytes_max=int(record_bytes_max),
    )
    return Channel(sock, key=key, opened=opened)


def _refusal(sense: bytes, reason: str, hint: str) -> BackupError:
    """Rebuild the error with which the node refused OPEN from its fixed-format sense data."""
    if len(sense) < 14:
        raise RemoteProtocolError("data channel: OPEN was refused without sense data")
    triple = SenseTriple(sense[2] & 0x0F, sense[12], sense[13])
    for kind in (NotAuthorizedError, StaleError, BusyError):
        if triple == kind.default_sense:
            return kind(reason, hint=hint)
    return BackupError(reason, hint=hint, sense=triple)


def serve_handshake(
    sock: socket.socket,
    *,
    boot_id: bytes,
    secret_key: bytes,
    controller_key: bytes,
    admit: Callable[[grants.Grant], Opened],
    timeout_s: float = TIMEOUT_S,
) -> tuple[Connection, grants.Grant]:
    """The server's side of OPEN.  `admit` checks epoch, rights and existence, or raises a `BackupError`.

    Returns the connection, keyed, and the grant.  On refusal the client is told (one error for every reason
    that is about the grant), the socket stays the caller's to close, and the error is raised.
    """
    try:
        tune(sock, timeout_s=HANDSHAKE_TIMEOUT_S)
    except OSError as error:  # it has left already
        raise _lost(error) from error
    connection = Connection(sock)
    connection.boot = frames.boot_bits(boot_id)
    node_nonce = secrets.token_bytes(grants.NONCE_BYTES)
    challenge = pack([_HANDSHAKE_VERSION, boot_id, node_nonce])
    connection.send(
        Header(opcode=Opcode.CHALLENGE, is_reply=True, sequence=0, length=len(challenge)),
        data=challenge,
    )
    header, _ = connection.receive_header()
    if header.opcode is not Opcode.OPEN or header.is_reply or header.length > _OPEN_BYTES_MAX:
        raise RemoteProtocolError("data channel: the client did not send OPEN")
    fields = _fields(connection.receive_data(header.length), 3)
    try:
        body, mover_nonce, proof = fields
        if not all(type(field) is bytes for field in fields):
            raise NotAuthorizedError("grant refused")
        grant = grants.decode_grant(body)
        key = grants.session_key(
            tag=grants.grant_tag(
                body, key=grants.grant_key(grants.agree(secret_key, controller_key))
            ),
            holder_secret=grants.agree(secret_key, grant.holder),
            node_nonce=node_nonce,
            mover_nonce=mover_nonce,
            boot_id=boot_id,
        )
        if not grants.proof_matches(proof, grants.open_proof(key, body)):
            raise NotAuthorizedError("grant refused")
        opened = admit(grant)
    except BackupError as error:
        # Fixed-format sense; the sense module is not needed for these 18 bytes (SPC-4 4.5.3).
        triple = error.sense
        sense = bytes(
            [0x70, 0, triple.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, triple.asc, triple.ascq]
        ) + bytes(4)
        told = pack([error.message, error.hint])
        refusal = Header(
            opcode=Opcode.OPEN,
            is_reply=True,
            sequence=0,
            status=Status.CHECK_CONDITION,
            length=len(told),
            extra=len(sense),
            boot=connection.boot,
        )
        connection.send(refusal, extra=sense, data=told)
        raise
    connection.key = key
    told = pack(
        [
            opened.peripheral_device_type,
            opened.block_bytes,
            opened.blocks,
            opened.position,
            opened.record_bytes_max,
        ]
    )
    answer = Header(
        opcode=Opcode.OPEN, is_reply=True, sequence=0, length=len(told), boot=connection.boot
    )
    connection.send(answer, data=told)
    tune(sock, timeout_s=timeout_s)
    return connection, grant


def _fields(data: bytes | bytearray, count: int) -> list[Any]:
    try:
        fields = unpack(bytes(data))
    except PackingError as error:
        raise RemoteProtocolError(f"data channel handshake: {error}") from error
    if type(fields) is not list or len(fields) != count:
        raise RemoteProtocolError("data channel handshake: wrong number of fields")
    return fields


def _lost(error: OSError) -> UnreachableError:
    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
        return UnreachableError("the peer stood still for too long on the data channel")
    return ConnectionClosedError(f"data channel lost: {error.strerror or error}", is_clean=False)
