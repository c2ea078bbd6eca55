"""A small NBD client, written from the protocol and sharing no code with our server, so that it can disagree with it.

    with connect("nbd://127.0.0.1:10809/volume") as client:
        client.write(0, data, flags=Flag.FUA)
        assert client.read(0, len(data)) == data

Every method sends one request, waits for its reply, and raises `NbdError` with the number that the server sent.  For
several requests at once, and for requests that no honest client sends, there is a floor below: `send` and `receive`,
and below the export `Negotiation`.  Whatever the server answers is checked as strictly as the protocol allows: a reply
to nobody, a chunk outside its request or an overlap is a `NbdProtocolError`, never overlooked.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from backplane.testing.nbd_words import (
    BASE_ALLOCATION,
    DEFAULT_PORT,
    FIXED_NEWSTYLE,
    GREETING,
    NO_ZEROES,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
    Answer,
    Can,
    Chunk,
    ChunkKind,
    Command,
    ExportInfo,
    Extent,
    Flag,
    Info,
    Option,
    OptionReply,
    Reply,
    context_query,
    info_query,
)

TIMEOUT_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 80 << 20
"""Longer answers are a server gone mad, not data that a test asked for."""

_DONE: Final = 1
_ERROR_BIT: Final = 0x8000
_NO_PAYLOAD_LIMIT: Final = 0xFFFFFFFF


class NbdError(Exception):
    """The server refused a request; `errno` is its reason."""

    def __init__(self, code: int, message: str = "") -> None:
        name = errno.errorcode.get(code, str(code))
        super().__init__(f"{name}: {message or os.strerror(code)}")
        self.errno = code


class NbdProtocolError(Exception):
    """The server said what no server may say."""


class NbdOptionError(Exception):
    """The server refused an option; `answer` is the type of its reply."""

    def __init__(self, option: int, answer: int, message: str) -> None:
        super().__init__(f"option {option} was refused with {answer:#x}: {message}")
        self.answer = answer


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A request on its way."""

    command: int
    address: int
    count: int
    reply: Reply


def nbd_uri(address: str, export: str = "") -> str:
    """Turn a server's address (tcp://HOST:PORT, unix:///PATH) into the URI of one of its exports."""
    name = quote(export, safe="@")
    if address.startswith("unix://"):
        return f"nbd+unix:///{name}?socket={quote(address.removeprefix('unix://'))}"
    return f"nbd://{address.removeprefix('tcp://')}/{name}"


def open_socket(uri: str, *, timeout_s: float = TIMEOUT_S) -> tuple[socket.socket, str]:
    """Connect to the server of an NBD URI and say nothing yet; returns the export's name as well."""
    parts = urlsplit(uri)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd+unix":
        peer = socket.socket(socket.AF_UNIX)
        address: str | tuple[str, int] = parse_qs(parts.query)["socket"][0]
    elif parts.scheme == "nbd":
        host = parts.hostname or "localhost"
        peer = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        address = (host, parts.port or DEFAULT_PORT)
    else:
        raise ValueError(f"{uri}: the scheme must be nbd or nbd+unix")
    try:
        peer.settimeout(timeout_s)
        peer.connect(address)
        if parts.scheme == "nbd":
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        peer.close()
        raise
    return peer, name


def connect(
    uri: str,
    *,
    is_structured: bool = True,
    contexts: Sequence[str] = (BASE_ALLOCATION,),
    timeout_s: float = TIMEOUT_S,
) -> NbdClient:
    """Negotiate the export of a URI; contexts need structured replies, and those the server lacks are left out."""
    peer, name = open_socket(uri, timeout_s=timeout_s)
    negotiation = Negotiation(peer)
    try:
        negotiation.greet()
        if is_structured:
            negotiation.structured_replies()
            if contexts:
                negotiation.set_contexts(name, contexts)
        return negotiation.go(name)
    except BaseException:
        peer.close()
        raise


class _Wire:
    """Whole messages over a socket."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer

    def send(self, *parts: bytes | memoryview) -> None:
        self.socket.sendall(b"".join(parts))

    def receive(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            got = self.socket.recv_into(view)
            if not got:
                raise EOFError(f"the server closed the connection, {len(view)} bytes early")
            view = view[got:]
        return bytes(buffer)

    def close(self) -> None:
        self.socket.close()


class Negotiation:
    """The handshake, option by option; leave it by `go`, `abort` or `close`."""

    def __init__(self, peer: socket.socket) -> None:
        self.wire = _Wire(peer)
        self.server_flags = 0
        self.is_structured = False
        self.contexts: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up without a word."""
        self.wire.close()

    def greet(self, *, client_flags: int = FIXED_NEWSTYLE | NO_ZEROES) -> None:
        """Take the server's greeting and answer it."""
        if (magic := self.wire.receive(len(GREETING))) != GREETING:
            raise NbdProtocolError(f"not the greeting of a newstyle server: {magic!r}")
        (self.server_flags,) = struct.unpack(">H", self.wire.receive(2))
        if not self.server_flags & FIXED_NEWSTYLE:
            raise NbdProtocolError("the server does not speak the fixed newstyle")
        self.wire.send(struct.pack(">I", client_flags))

    def send_option(self, option: int, data: bytes = b"", *, claimed: int | None = None) -> None:
        """Send an option; `claimed` is the length it says it has, if that is to be a lie."""
        count = len(data) if claimed is None else claimed
        self.wire.send(struct.pack(">8sII", b"IHAVEOPT", option, count), data)

    def receive_option_reply(self, option: int) -> OptionReply:
        """Take one reply to an option."""
        magic, echoed, answer, count = struct.unpack(">QIII", self.wire.receive(20))
        if magic != OPTION_REPLY_MAGIC:
            raise NbdProtocolError(f"not an option reply: {magic:#x}")
        if echoed != option:
            raise NbdProtocolError(f"a reply to option {echoed} instead of {option}")
        if count > ANSWER_BYTES_MAX:
            raise NbdProtocolError(f"an option reply of {count} bytes")
        return OptionReply(answer=answer, data=self.wire.receive(count))

    def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        """Send an option and return its replies without the final ACK, or raise `NbdOptionError`."""
        self.send_option(option, data)
        replies: list[OptionReply] = []
        while True:
            reply = self.receive_option_reply(option)
            if reply.answer == Answer.ACK:
                return replies
            if reply.answer & 0x80000000:
                raise NbdOptionError(option, reply.answer, reply.data.decode(errors="replace"))
            replies.append(reply)

    def structured_replies(self) -> None:
        """Ask for structured replies."""
        self.option(Option.STRUCTURED_REPLY)
        self.is_structured = True

    def list_exports(self) -> list[str]:
        """Return the names of the exports."""
        names = []
        for reply in self.option(Option.LIST):
            (count,) = struct.unpack_from(">I", reply.data)
            names.append(reply.data[4 : 4 + count].decode())
        return names

    def list_contexts(self, export: str, queries: Sequence[str] = ()) -> list[str]:
        """Return the metadata contexts of an export that match, without selecting any."""
        replies = self.option(Option.LIST_META_CONTEXT, context_query(export, queries))
        return [reply.data[4:].decode() for reply in replies]

    def set_contexts(self, export: str, queries: Sequence[str]) -> dict[int, str]:
        """Select metadata contexts; returns those that the server has, by their number."""
        replies = self.option(Option.SET_META_CONTEXT, context_query(export, queries))
        self.contexts = {
            struct.unpack_from(">I", reply.data)[0]: reply.data[4:].decode() for reply in replies
        }
        return self.contexts

    def info(self, export: str, *, wanted: Sequence[int] = (Info.BLOCK_SIZE,)) -> ExportInfo:
        """Ask for an export's size, flags and limits."""
        return _export_info(self.option(Option.INFO, info_query(export, wanted)))

    def go(self, export: str) -> NbdClient:
        """Enter the transmission phase.  The socket belongs to the client returned."""
        replies = self.option(Option.GO, info_query(export, (Info.BLOCK_SIZE,)))
        return NbdClient(
            self.wire.socket,
            info=_export_info(replies),
            is_structured=self.is_structured,
            contexts=self.contexts,
        )

    def go_the_old_way(self, export: str) -> NbdClient:
        """Enter the transmission phase by NBD_OPT_EXPORT_NAME, which cannot be refused but by hanging up."""
        self.send_option(Option.EXPORT_NAME, export.encode())
        size, flags = struct.unpack(">QH", self.wire.receive(10))
        return NbdClient(
            self.wire.socket,
            info=ExportInfo(size_bytes=size, can=Can(flags)),
            is_structured=self.is_structured,
            contexts=self.contexts,
        )

    def abort(self) -> None:
        """Take leave."""
        self.option(Option.ABORT)
        self.close()


def _export_info(replies: Sequence[OptionReply]) -> ExportInfo:
    size, can = None, Can(0)
    sizes = (0, 0, 0)
    texts = {Info.NAME: "", Info.DESCRIPTION: ""}
    for reply in replies:
        (kind,) = struct.unpack_from(">H", reply.data)
        if kind == Info.EXPORT:
            size, flags = struct.unpack_from(">QH", reply.data, 2)
            can = Can(flags)
        elif kind == Info.BLOCK_SIZE:
            sizes = struct.unpack_from(">III", reply.data, 2)
        elif kind in texts:
            texts[Info(kind)] = reply.data[2:].decode()
    if size is None:
        raise NbdProtocolError("the server did not say the size of the export")
    return ExportInfo(
        size_bytes=size,
        can=can,
        block_bytes_min=sizes[0],
        block_bytes_preferred=sizes[1],
        payload_bytes_max=sizes[2] if sizes[2] != _NO_PAYLOAD_LIMIT else 0,
        name=texts[Info.NAME],
        description=texts[Info.DESCRIPTION],
    )


class NbdClient:
    """One connection to one export."""

    def __init__(
        self,
        peer: socket.socket,
        *,
        info: ExportInfo,
        is_structured: bool,
        contexts: dict[int, str],
    ) -> None:
        self.wire = _Wire(peer)
        self.info = info
        self.is_structured = is_structured
        self.contexts = contexts
        self._cookie = (
            0x5EED0000_00000000  # far from zero, so that a server that forgets it is found out
        )
        self._pending: dict[int, _Pending] = {}
        self._ready: dict[int, Reply] = {}

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self.info.size_bytes

    @property
    def can(self) -> Can:
        """Transmission flags of the export."""
        return self.info.can

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.disconnect()
        else:
            self.close()

    # --- one request, one reply ------------------------------------------------------------------

    def read(self, address: int, count: int, *, flags: Flag = Flag.NONE) -> bytes:
        """Read bytes; holes are filled with zeros."""
        reply = self._ask(Command.READ, address, count, flags=flags)
        data = bytearray(count)
        for chunk in reply.chunks:
            if chunk.kind == ChunkKind.DATA:
                start = chunk.address - address
                data[start : start + len(chunk.data)] = chunk.data
        return bytes(data)

    def read_chunks(self, address: int, count: int, *, flags: Flag = Flag.NONE) -> list[Chunk]:
        """Read bytes and return the chunks in which they came, in ascending order."""
        reply = self._ask(Command.READ, address, count, flags=flags)
        return sorted(reply.chunks, key=lambda chunk: chunk.address)

    def write(self, address: int, data: bytes, *, flags: Flag = Flag.NONE) -> None:
        """Write bytes."""
        self._ask(Command.WRITE, address, len(data), flags=flags, data=data)

    def flush(self) -> None:
        """Make everything durable whose write was answered before."""
        self._ask(Command.FLUSH)

    def trim(self, address: int, count: int, *, flags: Flag = Flag.NONE) -> None:
        """Say that bytes are no longer needed."""
        self._ask(Command.TRIM, address, count, flags=flags)

    def zero(self, address: int, count: int, *, flags: Flag = Flag.NONE) -> None:
        """Make bytes read as zeros."""
        self._ask(Command.WRITE_ZEROES, address, count, flags=flags)

    def cache(self, address: int, count: int) -> None:
        """Say that bytes will be read soon."""
        self._ask(Command.CACHE, address, count)

    def block_status(
        self,
        address: int,
        count: int,
        *,
        context: str = BASE_ALLOCATION,
        flags: Flag = Flag.NONE,
    ) -> list[Extent]:
        """Return the states of bytes from `address` on; the server may stop early."""
        return self._ask(Command.BLOCK_STATUS, address, count, flags=flags).extents[context]

    def map(self, *, context: str = BASE_ALLOCATION) -> list[Extent]:
        """Return the states of the whole export, with neighbours in the same state joined."""
        found: list[Extent] = []
        address = 0
        while address < self.size_bytes:
            count = min(self.size_bytes - address, 1 << 30)
            for extent in self.block_status(address, count, context=context):
                end = min(extent.end, self.size_bytes)
                if found and found[-1].flags == extent.flags:
                    extent = Extent(start=found.pop().start, end=end, flags=extent.flags)
                found.append(Extent(start=extent.start, end=end, flags=extent.flags))
                address = end
        return found

    def disconnect(self) -> None:
        """Say goodbye; twice is once."""
        if self.wire.socket.fileno() >= 0:
            try:
                self.send(Command.DISCONNECT)
            except OSError:
                pass  # the server was faster
            finally:
                self.close()

    def close(self) -> None:
        """Hang up without a word."""
        self.wire.close()

    def _ask(
        self,
        command: int,
        address: int = 0,
        count: int = 0,
        *,
        flags: Flag = Flag.NONE,
        data: bytes = b"",
    ) -> Reply:
        reply = self.wait(self.send(command, address, count, flags=flags, data=data))
        if reply.error:
            raise NbdError(reply.error, reply.message)
        return reply

    # --- several requests at once ----------------------------------------------------------------

    def send(
        self,
        command: int,
        address: int = 0,
        count: int = 0,
        *,
        flags: int = 0,
        data: bytes = b"",
    ) -> int:
        """Send a request and return its cookie.  Nothing is checked: the server shall do that."""
        self._cookie += 1
        cookie = self._cookie
        if command != Command.DISCONNECT:
            self._pending[cookie] = _Pending(
                command=command, address=address, count=count, reply=Reply(cookie=cookie)
            )
        self.wire.send(
            REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, address, count), data
        )  # fmt: skip
        return cookie

    def wait(self, cookie: int) -> Reply:
        """Take replies until this request is answered; replies to others are kept for them."""
        while cookie not in self._ready:
            reply = self._receive()
            self._ready[reply.cookie] = reply
        return self._ready.pop(cookie)

    def receive(self) -> Reply:
        """Return the next complete reply, whichever request it answers."""
        if self._ready:
            return self._ready.pop(next(iter(self._ready)))
        return self._receive()

    def _receive(self) -> Reply:
        while True:
            (magic,) = struct.unpack(">I", head := self.wire.receive(4))
            if magic == SIMPLE_REPLY_MAGIC:
                return self._simple(head)
            if magic != STRUCTURED_REPLY_MAGIC:
                raise NbdProtocolError(f"not a reply: {magic:#x}")
            if not self.is_structured:
                raise NbdProtocolError("a structured reply that was not negotiated")
            if (reply := self._chunk(head)) is not None:
                return reply

    def _simple(self, head: bytes) -> Reply:
        _, error, cookie = SIMPLE_REPLY.unpack(head + self.wire.receive(SIMPLE_REPLY.size - 4))
        pending = self._find(cookie)
        if self.is_structured and pending.command in (Command.READ, Command.BLOCK_STATUS):
            raise NbdProtocolError("a simple reply where the answer must be structured")
        del self._pending[cookie]
        pending.reply.error = error
        if pending.command == Command.READ and not error:
            data = self.wire.receive(pending.count)
            pending.reply.chunks.append(
                Chunk(kind=ChunkKind.DATA, address=pending.address, data=data, count=len(data))
            )
        return pending.reply

    def _chunk(self, head: bytes) -> Reply | None:
        rest = self.wire.receive(STRUCTURED_REPLY.size - 4)
        _, flags, kind, cookie, count = STRUCTURED_REPLY.unpack(head + rest)
        pending = self._find(cookie)
        if count > ANSWER_BYTES_MAX:
            raise NbdProtocolError(f"a chunk of {count} bytes")
        self._take(pending, kind, self.wire.receive(count))
        if not flags & _DONE:
            return None
        del self._pending[cookie]
        if pending.command == Command.READ and not pending.reply.error:
            covered = sum(chunk.count for chunk in pending.reply.chunks)
            if covered != pending.count:
                raise NbdProtocolError(f"{covered} bytes for a read of {pending.count}")
        return pending.reply

    def _take(self, pending: _Pending, kind: int, payload: bytes) -> None:
        reply = pending.reply
        if kind & _ERROR_BIT:
            code, length = struct.unpack_from(">IH", payload)
            if not code:
                raise NbdProtocolError("an error chunk without an error")
            reply.error = reply.error or code
            reply.message = payload[6 : 6 + length].decode(errors="replace")
            if kind == ChunkKind.ERROR_OFFSET:
                (address,) = struct.unpack_from(">Q", payload, 6 + length)
                reply.chunks.append(Chunk(kind=kind, address=address))
        elif kind == ChunkKind.DATA and pending.command == Command.READ:
            (address,) = struct.unpack_from(">Q", payload)
            data = payload[8:]
            if not data:
                raise NbdProtocolError("a chunk without data")
            self._add(pending, Chunk(kind=kind, address=address, data=data, count=len(data)))
        elif kind == ChunkKind.HOLE and pending.command == Command.READ:
            address, count = struct.unpack(">QI", payload)
            if not count:
                raise NbdProtocolError("a hole of no size")
            self._add(pending, Chunk(kind=kind, address=address, count=count))
        elif kind == ChunkKind.BLOCK_STATUS and pending.command == Command.BLOCK_STATUS:
            self._add_extents(pending, payload)
        elif kind != ChunkKind.NONE:
            raise NbdProtocolError(f"a chunk of type {kind} for command {pending.command}")
        elif payload:
            raise NbdProtocolError("a chunk of type NONE with content")

    @staticmethod
    def _add(pending: _Pending, chunk: Chunk) -> None:
        start, end = chunk.address, chunk.address + chunk.count
        if start < pending.address or end > pending.address + pending.count:
            raise NbdProtocolError(f"bytes {start} to {end} lie outside the read")
        for other in pending.reply.chunks:
            if other.count and start < other.address + other.count and other.address < end:
                raise NbdProtocolError(f"bytes {start} to {end} came twice")
        pending.reply.chunks.append(chunk)

    def _add_extents(self, pending: _Pending, payload: bytes) -> None:
        (number,) = struct.unpack_from(">I", payload)
        if (context := self.contexts.get(number)) is None:
            raise NbdProtocolError(f"a status for context {number}, which was not selected")
        if context in pending.reply.extents:
            raise NbdProtocolError(f"the status of {context} came twice")
        if len(payload) < 12:
            raise NbdProtocolError(f"a status of {context} without extents")
        extents = []
        start = pending.address
        for count, flags in struct.iter_unpack(">II", payload[4:]):
            if not count:
                raise NbdProtocolError("an extent of no size")
            if start >= pending.address + pending.count:
                raise NbdProtocolError("an extent that begins beyond the request")
            extents.append(Extent(start=start, end=start + count, flags=flags))
            start += count
        pending.reply.extents[context] = extents

    def _find(self, cookie: int) -> _Pending:
        if (pending := self._pending.get(cookie)) is None:
            raise NbdProtocolError(f"a reply to cookie {cookie:#x}, which nobody sent")
        return pending
