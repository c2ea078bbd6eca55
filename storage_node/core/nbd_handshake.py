"""How an NBD client and we agree on an export: fixed newstyle negotiation, without I/O.

Bytes go in by `receive`; `next_event` says what the shell has to find out, and goes no further before it was told;
`take_output` gives the bytes that are to be sent.  Clause numbers are those of the NBD project's `doc/proto.md`.

    greeting ------------------------------------------------> client
    WAIT_FLAGS  <- client flags
    WAIT_OPTION <- option -> NamesWanted  -> `list_names`          --> WAIT_OPTION
                          -> ExportWanted -> `describe`, `refuse`  --> WAIT_OPTION, or READY after GO and EXPORT_NAME
                          -> (answered here: STRUCTURED_REPLY, unknown ones, mistakes)
                          -> ABORT, or anything that cannot be answered --> ENDED

Nothing that a client says is believed before it was compared with a limit: the length of an option before its data are
kept, the length of a name against the data that are there, the number of queries and of options.  An option that is
too long is answered and ends the negotiation, because its data would have to be taken in.

There is no TLS, and STARTTLS is answered as an unknown option: no state from before it can reach behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final, NamedTuple, assert_never

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
)

GREETING: Final = struct.pack(">8sQH", b"NBDMAGIC", 0x49484156454F5054, 0b11)
"""Both magic numbers, and that we speak fixed newstyle and can leave out the 124 zeros."""

OPTION_MAGIC: Final = 0x49484156454F5054
REPLY_MAGIC: Final = 0x0003E889045565A9

OPTION_BYTES_MAX: Final = 64 * 1024
"""Data of one option.  The longest sensible one, a full list of queries, is far shorter."""
NAME_BYTES_MAX: Final = 4096
"""Of an export name or a query (proto.md: "string lengths are limited to 4096 bytes")."""
QUERIES_MAX: Final = 64
"""Queries of one meta context option."""
OPTIONS_MAX: Final = 4096
"""Options of one negotiation: a client that lists asks two or three things about each export."""
MESSAGE_BYTES_MAX: Final = 1024
"""What we say to people, cut if an error has more to tell."""

BASE_ALLOCATION: Final = "base:allocation"
CHANGED: Final = "sb:changed"
"""Our dirty-bitmap context: which bytes were written since the last backup that the volume knows of."""
CONTEXTS: Final = (BASE_ALLOCATION, CHANGED)
"""In the order of their numbers; a context's number on the wire is its index plus one."""

_OPTION: Final = struct.Struct(">QII")
_REPLY: Final = struct.Struct(">QIII")
_FLAGS: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">I")
_COUNT: Final = struct.Struct(">H")
_EXPORT: Final = struct.Struct(">QH")
_INFO_EXPORT: Final = struct.Struct(">HQH")
_INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")


class Option(IntEnum):
    """Option types (proto.md, "Option types").  Those that are not here are answered as unknown."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(IntEnum):
    """Option reply types (proto.md, "Option reply types")."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 0x8000_0001
    POLICY = 0x8000_0002
    INVALID = 0x8000_0003
    UNKNOWN = 0x8000_0006
    TOO_BIG = 0x8000_0009


class Info(IntEnum):
    """Information types of INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ClientFlag(IntFlag):
    """What the client answers to the greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ExportFlag(IntFlag):
    """Transmission flags (proto.md, "Transmission flags")."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class State(Enum):
    """Where a negotiation is."""

    WAIT_FLAGS = "wait-flags"
    WAIT_OPTION = "wait-option"
    WAIT_SHELL = "wait-shell"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFacts:
    """What a client is told of an export."""

    name: str
    description: str
    size_bytes: int
    block_bytes: int
    preferred_bytes: int
    payload_bytes_max: int
    is_read_only: bool
    can_multi_conn: bool
    has_changed: bool

    @property
    def contexts(self) -> tuple[str, ...]:
        """The meta contexts that the export can answer."""
        return CONTEXTS if self.has_changed else (BASE_ALLOCATION,)

    def flags(self, *, is_structured: bool) -> ExportFlag:
        """Return the transmission flags."""
        flags = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_CACHE
        if is_structured:
            flags |= ExportFlag.SEND_DF
        if self.can_multi_conn:
            flags |= ExportFlag.CAN_MULTI_CONN
        if self.is_read_only:
            return flags | ExportFlag.READ_ONLY
        return (
            flags
            | ExportFlag.SEND_FUA
            | ExportFlag.SEND_TRIM
            | ExportFlag.SEND_WRITE_ZEROES
            | ExportFlag.SEND_FAST_ZERO
        )


class NamesWanted(NamedTuple):
    """The client lists: answer with `list_names`."""


class ExportWanted(NamedTuple):
    """The client asks for an export: answer with `describe` or `refuse`.

    With `is_final` it means to use it; `Ready` follows a description and must find the export still open.
    """

    name: str
    is_final: bool


class Ready(NamedTuple):
    """The transmission begins; what the client has sent already is in `leftover`."""

    name: str
    is_structured: bool
    contexts: tuple[str, ...]
    leftover: bytes


class Ended(NamedTuple):
    """There is nothing more to say; send what is left to send and close."""

    reason: str


Event = NamesWanted | ExportWanted | Ready | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What the shell is asked, and what for."""

    option: Option
    name: str = ""
    infos: frozenset[int] = frozenset()
    queries: tuple[str, ...] = ()


class Handshake:
    """One negotiation, from the greeting to the transmission.  Not thread-safe."""

    def __init__(self) -> None:
        self.state = State.WAIT_FLAGS
        self._input = bytearray()
        self._output = bytearray(GREETING)
        self._options = 0
        self._flags = ClientFlag(0)
        self._is_structured = False
        self._question: _Question | None = None
        self._contexts: tuple[str, tuple[str, ...]] = "", ()
        self._ready: Ready | None = None
        self._reason = ""

    def receive(self, data: bytes) -> None:
        """Take what the client has sent; call `next_event` until it has nothing."""
        if self.state is not State.ENDED:
            self._input += data

    def take_output(self) -> bytes:
        """Return what is to be sent now, and forget it."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def next_event(self) -> Event | None:
        """Return what happens next; None if more bytes are needed, or an answer to the last event."""
        while self.state in (State.WAIT_FLAGS, State.WAIT_OPTION):
            try:
                if not (
                    self._take_flags() if self.state is State.WAIT_FLAGS else self._take_option()
                ):
                    return None
            except RemoteProtocolError as error:
                self._end(error.message)
            if self._question is not None:
                self.state = State.WAIT_SHELL
                if self._question.option is Option.LIST:
                    return NamesWanted()
                is_final = self._question.option in (Option.GO, Option.EXPORT_NAME)
                return ExportWanted(self._question.name, is_final)
        if self.state is State.READY:
            ready, self._ready = self._ready, None
            return ready
        if self.state is State.ENDED and self._reason:
            reason, self._reason = self._reason, ""
            return Ended(reason)
        return None

    # What the shell found out.

    def list_names(self, names: Sequence[str]) -> None:
        """Answer `NamesWanted`."""
        question = self._answered()
        assert question.option is Option.LIST
        for name in names:
            self._reply(Option.LIST, Answer.SERVER, _string(name.encode()))
        self._reply(Option.LIST, Answer.ACK)

    def describe(self, facts: ExportFacts) -> None:
        """Answer `ExportWanted` with what there is."""
        question = self._answered()
        option = question.option
        match option:
            case Option.EXPORT_NAME:
                self._describe_old_style(question, facts)
            case Option.INFO | Option.GO:
                self._describe(question, facts)
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                self._choose_contexts(question, facts)
            case Option.ABORT | Option.LIST | Option.STRUCTURED_REPLY:
                raise AssertionError(f"{option.name} asks for no export")
            case _:
                assert_never(option)

    def refuse(self, error: BackupError) -> None:
        """Answer `ExportWanted` with a reason; the client may ask for something else."""
        question = self._answered()
        if question.option is Option.EXPORT_NAME:
            # This option has no reply for an error (proto.md: the server closes the connection).
            self._end(f"export {question.name!r}: {error.message}")
            return
        answer = Answer.INVALID
        if isinstance(error, NotFoundError):
            answer = Answer.UNKNOWN
        elif isinstance(error, RefusedError | BusyError):
            answer = Answer.POLICY
        self._reply(question.option, answer, _message(str(error)))

    def _answered(self) -> _Question:
        assert self.state is State.WAIT_SHELL
        assert self._question is not None
        question, self._question = self._question, None
        self.state = State.WAIT_OPTION
        return question

    def _describe_old_style(self, question: _Question, facts: ExportFacts) -> None:
        flags = facts.flags(is_structured=self._is_structured)
        self._output += _EXPORT.pack(facts.size_bytes, flags)
        if not self._flags & ClientFlag.NO_ZEROES:
            self._output += bytes(124)
        self._begin(question.name)

    def _describe(self, question: _Question, facts: ExportFacts) -> None:
        flags = facts.flags(is_structured=self._is_structured)
        told = [_INFO_EXPORT.pack(Info.EXPORT, facts.size_bytes, flags)]
        # Sent unasked as well: a client that knows the limits of its requests breaks them less often.
        told.append(
            _INFO_BLOCK_SIZE.pack(
                Info.BLOCK_SIZE, facts.block_bytes, facts.preferred_bytes, facts.payload_bytes_max
            )
        )
        if Info.NAME in question.infos:
            told.append(_COUNT.pack(Info.NAME) + facts.name.encode())
        if Info.DESCRIPTION in question.infos and facts.description:
            told.append(_COUNT.pack(Info.DESCRIPTION) + facts.description.encode())
        for info in told:
            self._reply(question.option, Answer.INFO, info)
        self._reply(question.option, Answer.ACK)
        if question.option is Option.GO:
            self._begin(question.name)

    def _choose_contexts(self, question: _Question, facts: ExportFacts) -> None:
        is_list = question.option is Option.LIST_META_CONTEXT
        chosen = tuple(
            context
            for context in facts.contexts
            if context in question.queries
            or (is_list and not question.queries)
            or (is_list and f"{context.partition(':')[0]}:" in question.queries)
        )
        for context in chosen:
            number = 0 if is_list else context_number(context)
            data = _LENGTH.pack(number) + context.encode()
            self._reply(question.option, Answer.META_CONTEXT, data)
        self._reply(question.option, Answer.ACK)
        if not is_list:
            self._contexts = question.name, chosen

    def _begin(self, name: str) -> None:
        # Contexts were chosen for one export; for another one they mean nothing.
        chosen_for, contexts = self._contexts
        self._ready = Ready(
            name,
            self._is_structured,
            contexts if chosen_for == name else (),
            bytes(self._input),
        )
        self._input.clear()
        self.state = State.READY

    # What the client says.

    def _take_flags(self) -> bool:
        if len(self._input) < _FLAGS.size:
            return False
        (flags,) = _FLAGS.unpack_from(self._input)
        del self._input[: _FLAGS.size]
        if flags & ~int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES):
            raise RemoteProtocolError(f"unknown client flags {flags:#x}")
        self._flags = ClientFlag(flags)
        self.state = State.WAIT_OPTION
        return True

    def _take_option(self) -> bool:
        """Handle one option; False if it is not complete."""
        if len(self._input) < _OPTION.size:
            return False
        magic, number, length = _OPTION.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            raise RemoteProtocolError(f"an option begins with {magic:#x}")
        if not self._flags & ClientFlag.FIXED_NEWSTYLE and number != Option.EXPORT_NAME:
            raise RemoteProtocolError("a client without fixed newstyle may only name its export")
        if number == Option.EXPORT_NAME and length > NAME_BYTES_MAX:
            raise RemoteProtocolError(f"an export name of {length} bytes")
        if length > OPTION_BYTES_MAX:
            self._reply(number, Answer.TOO_BIG, _message(f"at most {OPTION_BYTES_MAX} bytes"))
            raise RemoteProtocolError(f"an option with {length} bytes")
        if len(self._input) < _OPTION.size + length:
            return False
        data = bytes(self._input[_OPTION.size : _OPTION.size + length])
        del self._input[: _OPTION.size + length]
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise RemoteProtocolError(f"more than {OPTIONS_MAX} options")
        try:
            self._take(number, data)
        except _Refused as refused:
            self._reply(number, refused.answer, _message(refused.message))
        return True

    def _take(self, number: int, data: bytes) -> None:
        """Answer an option, or make it a question to the shell."""
        try:
            option = Option(number)
        except ValueError:
            raise _Refused(Answer.UNSUPPORTED, f"option {number} is not known here") from None
        match option:
            case Option.EXPORT_NAME:
                try:
                    name = _text(data)
                except _Refused as refused:
                    raise RemoteProtocolError(refused.message) from None
                self._question = _Question(option=option, name=name)
            case Option.ABORT:
                self._reply(option, Answer.ACK)
                self._end("the client gave up")
            case Option.LIST:
                _no_data(data)
                self._question = _Question(option=option)
            case Option.STRUCTURED_REPLY:
                _no_data(data)
                self._is_structured = True
                self._reply(option, Answer.ACK)
            case Option.INFO | Option.GO:
                self._question = _information_wanted(option, data)
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                self._take_queries(option, data)
            case _:
                assert_never(option)

    def _take_queries(self, option: Option, data: bytes) -> None:
        if option is Option.SET_META_CONTEXT:
            # A second choice replaces the first one, and one that fails leaves none (proto.md).
            self._contexts = "", ()
        if not self._is_structured:
            raise _Refused(Answer.INVALID, "negotiate structured replies first")
        self._question = _contexts_wanted(option, data)

    def _reply(self, option: int, answer: Answer, data: bytes = b"") -> None:
        self._output += _REPLY.pack(REPLY_MAGIC, option, answer, len(data)) + data

    def _end(self, reason: str) -> None:
        self.state = State.ENDED
        self._reason = reason
        self._input.clear()


def context_number(context: str) -> int:
    """Return the number under which block status is given for a context."""
    return CONTEXTS.index(context) + 1


class _Refused(Exception):  # noqa: N818 - carries an answer, is no error of its own
    """The option is answered with this; the negotiation goes on."""

    def __init__(self, answer: Answer, message: str) -> None:
        super().__init__(message)
        self.answer = answer
        self.message = message


def _information_wanted(option: Option, data: bytes) -> _Question:
    """Take the data of INFO or GO apart: name, then which information is asked for."""
    name, at = _take_string(data, 0)
    if len(data) < at + _COUNT.size:
        raise _Refused(Answer.INVALID, "the option is too short")
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    if len(data) != at + count * _COUNT.size:
        raise _Refused(Answer.INVALID, "the number of information requests is wrong")
    infos = frozenset(number for (number,) in _COUNT.iter_unpack(data[at:]))
    return _Question(option=option, name=name, infos=infos)


def _contexts_wanted(option: Option, data: bytes) -> _Question:
    """Take the data of a meta context option apart: name, then queries."""
    name, at = _take_string(data, 0)
    if len(data) < at + _LENGTH.size:
        raise _Refused(Answer.INVALID, "the option is too short")
    (count,) = _LENGTH.unpack_from(data, at)
    if count > QUERIES_MAX:
        raise _Refused(Answer.TOO_BIG, f"at most {QUERIES_MAX} queries")
    at += _LENGTH.size
    queries = []
    for _ in range(count):
        query, at = _take_string(data, at)
        queries.append(query)
    if at != len(data):
        raise _Refused(Answer.INVALID, "the option is too long")
    return _Question(option=option, name=name, queries=tuple(queries))


def _take_string(data: bytes, at: int) -> tuple[str, int]:
    """Return the string at a place and where it ends."""
    if len(data) < at + _LENGTH.size:
        raise _Refused(Answer.INVALID, "the option is too short")
    (length,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    if length > NAME_BYTES_MAX:
        raise _Refused(Answer.TOO_BIG, f"a name has at most {NAME_BYTES_MAX} bytes")
    if length > len(data) - at:
        raise _Refused(Answer.INVALID, "a name is longer than the option")
    return _text(data[at : at + length]), at + length


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _Refused(Answer.INVALID, "a name is not UTF-8") from None
    if "\0" in text:
        raise _Refused(Answer.INVALID, "a name contains a zero byte")
    return text


def _no_data(data: bytes) -> None:
    if data:
        raise _Refused(Answer.INVALID, "this option has no data")


def _string(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _message(text: str) -> bytes:
    """Return text for a person, cut at a whole character."""
    return text.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore").encode()
