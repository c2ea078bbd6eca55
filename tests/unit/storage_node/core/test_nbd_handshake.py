"""The negotiation, option by option, and what it does with clients that lie."""

from __future__ import annotations

import struct

import pytest

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError
from backplane.testing.nbd_words import Can, Info, context_query, info_query
from storage_node.core.nbd_handshake import (
    BASE_ALLOCATION,
    CHANGED,
    GREETING,
    NAME_BYTES_MAX,
    OPTION_BYTES_MAX,
    OPTIONS_MAX,
    QUERIES_MAX,
    Answer,
    Ended,
    Event,
    ExportFacts,
    ExportWanted,
    Handshake,
    NamesWanted,
    Option,
    Ready,
    context_number,
)

FIXED, NO_ZEROES = 1, 2
FACTS = ExportFacts(
    name="volume",
    description="for tests",
    size_bytes=1 << 30,
    block_bytes=512,
    preferred_bytes=4096,
    payload_bytes_max=1 << 25,
    is_read_only=False,
    can_multi_conn=True,
    has_changed=True,
)
UNTRACKED = ExportFacts(
    name="volume@view",
    description="",
    size_bytes=4096,
    block_bytes=1,
    preferred_bytes=4096,
    payload_bytes_max=1 << 25,
    is_read_only=True,
    can_multi_conn=False,
    has_changed=False,
)


def option(number: int, data: bytes = b"", *, claimed: int | None = None) -> bytes:
    return (
        b"IHAVEOPT" + struct.pack(">II", number, len(data) if claimed is None else claimed) + data
    )


def replies(output: bytes) -> list[tuple[int, int, bytes]]:
    """Split into (option, answer, data)."""
    found = []
    while output:
        magic, number, answer, length = struct.unpack_from(">QIII", output)
        assert magic == 0x3E889045565A9
        found.append((number, answer, output[20 : 20 + length]))
        assert len(found[-1][2]) == length
        output = output[20 + length :]
    return found


def answers(output: bytes) -> list[int]:
    return [answer for _, answer, _ in replies(output)]


def begun(*, flags: int = FIXED | NO_ZEROES, is_structured: bool = False) -> Handshake:
    """A negotiation in which the client has said hello."""
    handshake = Handshake()
    assert handshake.take_output() == GREETING
    handshake.receive(struct.pack(">I", flags))
    if is_structured:
        handshake.receive(option(Option.STRUCTURED_REPLY))
    assert handshake.next_event() is None
    assert answers(handshake.take_output()) == ([Answer.ACK] if is_structured else [])
    return handshake


def say(handshake: Handshake, data: bytes) -> Event | None:
    handshake.receive(data)
    return handshake.next_event()


def ended(handshake: Handshake, data: bytes) -> str:
    """Say something after which nothing can follow; return the reason."""
    event = say(handshake, data)
    assert isinstance(event, Ended)
    handshake.receive(option(Option.LIST))
    assert handshake.next_event() is None
    return event.reason


def test_the_greeting_is_that_of_fixed_newstyle() -> None:
    assert GREETING == b"NBDMAGICIHAVEOPT\0\3"


def test_go_describes_the_export_and_begins() -> None:
    handshake = begun(is_structured=True)
    event = say(handshake, option(Option.GO, info_query("volume", ())) + b"a request")
    assert event == ExportWanted("volume", is_final=True)
    assert handshake.next_event() is None, "nothing goes on before the shell has answered"
    handshake.describe(FACTS)
    export, limits, (number, answer, _) = replies(handshake.take_output())
    kind, size, flags = struct.unpack(">HQH", export[2])
    assert (kind, size) == (Info.EXPORT, 1 << 30)
    assert Can(flags) == (
        Can.HAS_FLAGS | Can.FLUSH | Can.FUA | Can.TRIM | Can.WRITE_ZEROES | Can.DF
        | Can.MULTI_CONNECTION | Can.CACHE | Can.FAST_ZERO
    )  # fmt: skip
    assert struct.unpack(">HIII", limits[2]) == (Info.BLOCK_SIZE, 512, 4096, 1 << 25)
    assert (number, answer) == (Option.GO, Answer.ACK)
    assert handshake.next_event() == Ready("volume", True, (), b"a request")
    assert handshake.next_event() is None


def test_a_read_only_export_offers_nothing_that_changes_it() -> None:
    handshake = begun()
    say(handshake, option(Option.INFO, info_query("volume@view", ())))
    handshake.describe(UNTRACKED)
    _, _, flags = struct.unpack(">HQH", replies(handshake.take_output())[0][2])
    assert Can(flags) == Can.HAS_FLAGS | Can.READ_ONLY | Can.FLUSH | Can.CACHE


def test_info_tells_what_was_asked_and_does_not_begin() -> None:
    handshake = begun()
    wanted = (Info.NAME, Info.DESCRIPTION, Info.NAME, 77)
    event = say(handshake, option(Option.INFO, info_query("", wanted)))
    assert event == ExportWanted("", is_final=False)
    handshake.describe(FACTS)
    told = [data for _, answer, data in replies(handshake.take_output()) if answer == Answer.INFO]
    assert told[2:] == [b"\0\1volume", b"\0\2for tests"]
    assert handshake.next_event() is None
    assert say(handshake, option(Option.LIST)) == NamesWanted()


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (NotFoundError("no such volume"), Answer.UNKNOWN),
        (RefusedError("offline"), Answer.POLICY),
        (BusyError("being restored", hint="wait"), Answer.POLICY),
        (BackupError("strange"), Answer.INVALID),
    ],
)
def test_a_refused_export_leaves_the_client_free_to_ask_for_another(
    error: BackupError, answer: Answer
) -> None:
    handshake = begun()
    say(handshake, option(Option.GO, info_query("a", ())))
    handshake.refuse(error)
    assert replies(handshake.take_output()) == [(Option.GO, answer, str(error).encode())]
    event = say(handshake, option(Option.GO, info_query("b", ())))
    assert event == ExportWanted("b", is_final=True)


@pytest.mark.parametrize(("flags", "zeros"), [(FIXED, 124), (FIXED | NO_ZEROES, 0), (0, 124)])
def test_export_name_answers_the_old_way(flags: int, zeros: int) -> None:
    handshake = begun(flags=flags)
    event = say(handshake, option(Option.EXPORT_NAME, "völume".encode()))
    assert event == ExportWanted("völume", is_final=True)
    handshake.describe(FACTS)
    output = handshake.take_output()
    assert len(output) == 10 + zeros
    assert struct.unpack_from(">Q", output) == (1 << 30,)
    assert output[10:] == bytes(zeros)
    assert handshake.next_event() == Ready("völume", False, (), b"")


def test_export_name_can_only_be_refused_by_closing() -> None:
    handshake = begun()
    say(handshake, option(Option.EXPORT_NAME, b"nothing"))
    handshake.refuse(NotFoundError("no such export"))
    assert handshake.take_output() == b""
    assert isinstance(handshake.next_event(), Ended)


def test_list_names_every_export() -> None:
    handshake = begun()
    assert say(handshake, option(Option.LIST)) == NamesWanted()
    handshake.list_names(["one", "zwei@ü"])
    assert replies(handshake.take_output()) == [
        (Option.LIST, Answer.SERVER, b"\0\0\0\3one"),
        (Option.LIST, Answer.SERVER, b"\0\0\0\x07zwei@\xc3\xbc"),
        (Option.LIST, Answer.ACK, b""),
    ]


def test_abort_is_acknowledged_and_ends() -> None:
    handshake = begun()
    ended(handshake, option(Option.ABORT))
    assert answers(handshake.take_output()) == [Answer.ACK]


@pytest.mark.parametrize(
    ("number", "name"), [(4, "PEEK_EXPORT"), (5, "STARTTLS"), (11, "EXTENDED_HEADERS"), (999, "?")]
)
def test_options_that_are_not_known_are_answered_as_such(number: int, name: str) -> None:
    handshake = begun()
    assert say(handshake, option(number, b"whatever")) is None
    assert [(n, a) for n, a, _ in replies(handshake.take_output())] == [
        (number, Answer.UNSUPPORTED)
    ], name
    assert say(handshake, option(Option.LIST)) == NamesWanted()


# Meta contexts.


def contexts(handshake: Handshake, number: Option, export: str, *queries: str) -> list[str]:
    """Ask for contexts of an export that has change tracking; return those that were named."""
    event = say(handshake, option(number, context_query(export, queries)))
    assert event == ExportWanted(export, is_final=False)
    handshake.describe(FACTS)
    *told, last = replies(handshake.take_output())
    assert last[1] == Answer.ACK
    found = []
    for _, answer, data in told:
        assert answer == Answer.META_CONTEXT
        is_set = number is Option.SET_META_CONTEXT
        assert struct.unpack_from(">I", data)[0] == (
            context_number(data[4:].decode()) if is_set else 0
        )
        found.append(data[4:].decode())
    return found


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ((), [BASE_ALLOCATION, CHANGED]),
        (("base:",), [BASE_ALLOCATION]),
        (("sb:", "base:allocation"), [BASE_ALLOCATION, CHANGED]),
        (("sb:change",), []),
        (("qemu:",), []),
    ],
)
def test_contexts_are_listed(queries: tuple[str, ...], found: list[str]) -> None:
    handshake = begun(is_structured=True)
    assert contexts(handshake, Option.LIST_META_CONTEXT, "volume", *queries) == found


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ((), []),
        (("base:",), []),
        (("base:allocation", "nonsense"), [BASE_ALLOCATION]),
        (("sb:changed", "base:allocation"), [BASE_ALLOCATION, CHANGED]),
    ],
)
def test_contexts_are_chosen_by_their_whole_name(
    queries: tuple[str, ...], found: list[str]
) -> None:
    handshake = begun(is_structured=True)
    assert contexts(handshake, Option.SET_META_CONTEXT, "volume", *queries) == found
    say(handshake, option(Option.GO, info_query("volume", ())))
    handshake.describe(FACTS)
    assert handshake.next_event() == Ready("volume", True, tuple(found), b"")


def test_an_export_without_change_tracking_offers_no_such_context() -> None:
    handshake = begun(is_structured=True)
    say(handshake, option(Option.LIST_META_CONTEXT, context_query("volume@view", ())))
    handshake.describe(UNTRACKED)
    assert [data[4:] for _, _, data in replies(handshake.take_output())[:-1]] == [
        b"base:allocation"
    ]


def test_contexts_chosen_for_one_export_do_not_serve_another() -> None:
    handshake = begun(is_structured=True)
    contexts(handshake, Option.SET_META_CONTEXT, "volume", "base:allocation")
    say(handshake, option(Option.GO, info_query("other", ())))
    handshake.describe(FACTS)
    assert handshake.next_event() == Ready("other", True, (), b"")


def test_a_choice_that_fails_leaves_none() -> None:
    handshake = begun(is_structured=True)
    contexts(handshake, Option.SET_META_CONTEXT, "volume", "base:allocation")
    assert say(handshake, option(Option.SET_META_CONTEXT, b"\0")) is None
    assert answers(handshake.take_output()) == [Answer.INVALID]
    say(handshake, option(Option.GO, info_query("volume", ())))
    handshake.describe(FACTS)
    assert handshake.next_event() == Ready("volume", True, (), b"")


def test_contexts_need_structured_replies() -> None:
    handshake = begun()
    query = context_query("volume", ["base:allocation"])
    assert say(handshake, option(Option.SET_META_CONTEXT, query)) is None
    assert answers(handshake.take_output()) == [Answer.INVALID]


# Clients that lie.


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


@pytest.mark.parametrize(
    ("number", "data", "answer"),
    [
        (Option.LIST, b"x", Answer.INVALID),
        (Option.STRUCTURED_REPLY, b"x", Answer.INVALID),
        (Option.GO, b"", Answer.INVALID),
        (Option.GO, struct.pack(">IH", 0xFFFFFFFF, 0), Answer.TOO_BIG),
        (Option.GO, struct.pack(">IH", 3, 0), Answer.INVALID),
        (Option.GO, string(b"a"), Answer.INVALID),
        (Option.GO, string(b"a") + b"\0\1", Answer.INVALID),
        (Option.GO, string(b"a") + b"\0\0\0", Answer.INVALID),
        (Option.GO, string(b"\xff") + b"\0\0", Answer.INVALID),
        (Option.GO, string(b"a\0b") + b"\0\0", Answer.INVALID),
        (Option.INFO, string(b"a" * (NAME_BYTES_MAX + 1)) + b"\0\0", Answer.TOO_BIG),
        (Option.LIST_META_CONTEXT, string(b"a"), Answer.INVALID),
        (Option.LIST_META_CONTEXT, string(b"a") + b"\xff\xff\xff\xff", Answer.TOO_BIG),
        (
            Option.LIST_META_CONTEXT,
            context_query("a", ["q"] * (QUERIES_MAX + 1)),
            Answer.TOO_BIG,
        ),
        (Option.LIST_META_CONTEXT, string(b"a") + b"\0\0\0\1", Answer.INVALID),
        (Option.LIST_META_CONTEXT, context_query("a", ["q"]) + b"!", Answer.INVALID),
    ],
)
def test_options_that_make_no_sense_are_refused_and_the_next_one_is_heard(
    number: Option, data: bytes, answer: Answer
) -> None:
    handshake = begun(is_structured=True)
    assert say(handshake, option(number, data)) is None
    assert [(n, a) for n, a, _ in replies(handshake.take_output())] == [(number, answer)]
    assert say(handshake, option(Option.LIST)) == NamesWanted()


def test_the_longest_name_is_taken_and_one_byte_more_is_not() -> None:
    """qemu's stack smash was an export name of 4,097 bytes."""
    name = "n" * NAME_BYTES_MAX
    assert say(begun(), option(Option.GO, info_query(name, ()))) == ExportWanted(name, True)
    assert say(begun(), option(Option.EXPORT_NAME, name.encode())) == ExportWanted(name, True)
    assert "4097" in ended(begun(), option(Option.EXPORT_NAME, b"n" * (NAME_BYTES_MAX + 1)))


@pytest.mark.parametrize("number", [Option.GO, 999])
@pytest.mark.parametrize("length", [OPTION_BYTES_MAX + 1, 0xFFFFFFFF])
def test_an_option_that_claims_too_much_is_answered_before_its_data_come(
    number: int, length: int
) -> None:
    handshake = begun()
    ended(handshake, option(number, claimed=length))
    assert answers(handshake.take_output()) == [Answer.TOO_BIG]


def test_what_is_kept_of_a_client_is_bounded() -> None:
    """An option of the longest kind that never comes to its end, then what follows its refusal."""
    handshake = begun()
    handshake.receive(option(Option.GO, claimed=OPTION_BYTES_MAX))
    assert handshake.next_event() is None
    assert ended(handshake, b"\xff" * OPTION_BYTES_MAX + option(999, claimed=1 << 31)[:8] * 2)
    handshake.receive(bytes(1 << 20))
    assert len(handshake._input) == 0


def test_nobody_asks_for_ever() -> None:
    handshake = begun()
    reason = ended(handshake, option(999) * (OPTIONS_MAX + 1))
    assert str(OPTIONS_MAX) in reason


@pytest.mark.parametrize(
    "data", [struct.pack(">I", 4), struct.pack(">I", 0xFFFFFFFF), b"GET / HTTP/1.1\r\n\r\n"]
)
def test_unknown_client_flags_end_it(data: bytes) -> None:
    assert "flags" in ended(Handshake(), data)


def test_a_client_without_fixed_newstyle_may_only_name_its_export() -> None:
    assert "fixed newstyle" in ended(begun(flags=0), option(Option.LIST))


def test_an_option_without_its_magic_ends_it() -> None:
    assert "begins with" in ended(begun(), b"IHAVEOPS" + bytes(8))


def test_a_name_that_is_no_text_ends_the_old_way() -> None:
    assert "UTF-8" in ended(begun(), option(Option.EXPORT_NAME, b"\xff\xfe"))
