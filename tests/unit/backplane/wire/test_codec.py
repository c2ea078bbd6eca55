"""Messages and bytes: the form on the wire, limits, and the table of malformed input."""

from __future__ import annotations

import dataclasses
import enum
import resource
import struct
from typing import Annotated, Any, get_args, get_type_hints

import msgpack
import pytest

from backplane.errors import LocalProtocolError, RemoteProtocolError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.wire import codec, messages
from backplane.wire.messages import (
    MESSAGE_BYTES_MAX,
    REPLY_BYTES_MAX,
    LedgerEntry,
    NodeReply,
    OperatorCall,
    OperatorReply,
    ProtocolFault,
    SessionHello,
    SessionPing,
    SessionUnknown,
    SessionWelcome,
    UnitFence,
    WorkDone,
    WorkItem,
)

HELLO = SessionHello(
    role="mover", name=NodeName("m1"), versions=(1, 2), boot_id=bytes(16), program="p"
)
ENTRY = LedgerEntry(
    designator=Designator(bytes(8)),
    bytes_read=1,
    bytes_written=2,
    bytes_padded=3,
    bytes_discarded=4,
    records_read=5,
    records_written=6,
    filemarks_written=7,
    rereads=8,
    position=9,
)
DONE = WorkDone(
    item=ItemId(1),
    epoch=Epoch(2),
    status=0,
    sense=b"",
    segments=3,
    ledger=(ENTRY, ENTRY),
    seconds=1.5,
    detail="",
)


def test_a_message_is_its_kind_and_a_map_of_all_its_fields() -> None:
    assert msgpack.unpackb(codec.encode(HELLO)) == [
        "session.hello",
        {"role": "mover", "name": "m1", "versions": [1, 2], "boot_id": bytes(16), "program": "p"},
    ]


def test_golden_bytes() -> None:
    assert codec.encode(SessionPing(sequence=7)).hex() == (
        "92ac73657373696f6e2e70696e6781a873657175656e636507"
    )


def test_nested_records_come_back_as_records() -> None:
    decoded = codec.decode(codec.encode(DONE))
    assert decoded == DONE
    assert isinstance(decoded, WorkDone)
    assert type(decoded.ledger) is tuple
    assert type(decoded.ledger[0]) is LedgerEntry


def test_fields_with_a_default_are_sent_and_required_as_well() -> None:
    encoded = codec.encode(NodeReply(request=1, boot_id=bytes(16)))
    kind, fields = msgpack.unpackb(encoded)
    assert set(fields) == {field.name for field in dataclasses.fields(NodeReply)}
    del fields["trailer"]
    with pytest.raises(RemoteProtocolError, match=r"node\.reply: lacks trailer"):
        codec.decode(msgpack.packb([kind, fields]))


def test_an_int_stands_for_a_float_only_on_our_side() -> None:
    encoded = codec.encode(SessionWelcome(version=1, store="s", heartbeat_s=2))
    assert codec.decode(encoded) == SessionWelcome(version=1, store="s", heartbeat_s=2.0)
    kind, fields = msgpack.unpackb(encoded)
    with pytest.raises(RemoteProtocolError, match="heartbeat_s: not a finite number"):
        codec.decode(msgpack.packb([kind, {**fields, "heartbeat_s": 2}]))


class Code(enum.IntEnum):
    SEVEN = 7


class Role(enum.StrEnum):
    MOVER = "mover"


def test_enums_are_sent_as_what_they_stand_for() -> None:
    assert codec.decode(codec.encode(SessionPing(sequence=Code.SEVEN))) == SessionPing(sequence=7)
    decoded = codec.decode(codec.encode(dataclasses.replace(HELLO, role=Role.MOVER)))
    assert isinstance(decoded, SessionHello)
    assert type(decoded.role) is str


@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 1])
def test_integers_reach_from_zero_to_64_bits(number: int) -> None:
    assert codec.decode(codec.encode(SessionPing(sequence=number))) == SessionPing(sequence=number)


# --- our own mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (SessionPing(sequence=-1), "session.ping.sequence: integer out of range"),
        (SessionPing(sequence=2**64), "session.ping.sequence: integer out of range"),
        (SessionPing(sequence=True), "session.ping.sequence: not an integer"),
        (SessionPing(sequence=1.0), "session.ping.sequence: not an integer"),  # type: ignore[arg-type]
        (SessionPing(sequence=None), "session.ping.sequence: not an integer"),  # type: ignore[arg-type]
        (SessionWelcome(version=1, store="s", heartbeat_s=float("nan")), "not a finite number"),
        (SessionWelcome(version=1, store="s", heartbeat_s=True), "not a finite number"),
        (ProtocolFault(reason="x" * 4097), "reason: 4097 characters, at most 4096"),
        (ProtocolFault(reason="\ud800"), "surrogates not allowed"),
        (dataclasses.replace(HELLO, boot_id=bytes(17)), "boot_id: 17 bytes, at most 16"),
        (dataclasses.replace(HELLO, boot_id="x" * 16), "boot_id: not bytes"),  # type: ignore[arg-type]
        (dataclasses.replace(HELLO, versions=[1]), "versions: not a list"),  # type: ignore[arg-type]
        (dataclasses.replace(HELLO, versions=(1,) * 17), "versions: 17 elements, at most 16"),
        (dataclasses.replace(HELLO, name=NodeName("n" * 129)), "name: 129 characters"),
        (dataclasses.replace(DONE, ledger=(HELLO,)), "ledger: not a LedgerEntry"),  # type: ignore[arg-type]
        (
            dataclasses.replace(DONE, ledger=(dataclasses.replace(ENTRY, position=-1),)),
            "LedgerEntry.position: integer out of range",
        ),
        (
            OperatorReply(request=1, document=bytes(MESSAGE_BYTES_MAX)),
            "operator.reply: 1048616 bytes, at most 1048576",
        ),
    ],
)
def test_we_do_not_send_what_breaks_the_protocol(message: Any, told: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        codec.encode(message)
    assert told in caught.value.message


def test_a_large_answer_passes_where_it_is_allowed() -> None:
    reply = OperatorReply(request=1, document=bytes(REPLY_BYTES_MAX - 4096))
    encoded = codec.encode(reply, bytes_max=REPLY_BYTES_MAX)
    assert codec.decode(encoded, bytes_max=REPLY_BYTES_MAX) == reply
    with pytest.raises(RemoteProtocolError, match="at most 1048576"):
        codec.decode(encoded)


# --- theirs: the table of malformed msgpack ------------------------------------------------------

PING = [SessionPing.kind, {"sequence": 1}]


def raw_pair(key: bytes, value: bytes, count: int = 1) -> bytes:
    """A ping whose map is written by hand."""
    head = bytes(msgpack.packb(SessionPing.kind))
    return b"\x92" + head + bytes([0x80 + count]) + (key + value) * count


SEQUENCE = msgpack.packb("sequence")

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "depth of 1023": b"\x91" * 1023 + b"\x01",
    "depth of a million": b"\x91" * 1_000_000 + b"\x01",
    "maps in maps": b"\x81\xa1a" * 5000 + b"\x01",
    "array of four billion": b"\xdd\xff\xff\xff\xff",
    "array of four billion inside": b"\x92\xac" + b"session.ping" + b"\xdd\xff\xff\xff\xff",
    "thousand nested array headers": struct.pack(">BI", 0xDD, 2**28) * 1000,
    "nested headers at the limit": struct.pack(">BI", 0xDD, codec.ELEMENTS_MAX) * 1000,
    "map of four billion": b"\xdf\xff\xff\xff\xff",
    "text of four billion": b"\xdb\xff\xff\xff\xff",
    "bytes of four billion": b"\xc6\xff\xff\xff\xff",
    "a number as map key": raw_pair(b"\x05", b"\x01"),
    "bytes as map key": raw_pair(b"\xc4\x01a", b"\x01"),
    "the same key twice": raw_pair(SEQUENCE, b"\x01", 2),
    "trailing bytes": msgpack.packb(PING) + b"\x00",
    "a second message": msgpack.packb(PING) * 2,
    "extension type": raw_pair(SEQUENCE, b"\xd4\x05\x00"),
    "timestamp": raw_pair(SEQUENCE, b"\xd6\xff\x00\x00\x00\x00"),
    "not a number": msgpack.packb(["session.welcome", {"version": 1, "store": "s", "heartbeat_s": float("nan")}]),
    "infinity": msgpack.packb(["session.welcome", {"version": 1, "store": "s", "heartbeat_s": float("inf")}]),
    "true for one": raw_pair(SEQUENCE, b"\xc3"),
    "one as float": raw_pair(SEQUENCE, msgpack.packb(1.0)),
    "one as text": raw_pair(SEQUENCE, b"\xa11"),
    "minus one": raw_pair(SEQUENCE, b"\xff"),
    "nil": raw_pair(SEQUENCE, b"\xc0"),
    "text that is no UTF-8": raw_pair(SEQUENCE, b"\xa1\xff"),
    "bytes for text": msgpack.packb([ProtocolFault.kind, {"reason": b"x"}]),
    "text for bytes": msgpack.packb([OperatorCall.kind, {"request": 1, "verb": "v", "arguments": "x"}]),
    "a map for a list": msgpack.packb(["session.hello", {**dataclasses.asdict(HELLO), "versions": {}}]),
    "no pair": msgpack.packb([SessionPing.kind]),
    "a map": msgpack.packb({"kind": SessionPing.kind, "sequence": 1}),
    "kind in bytes": msgpack.packb([b"session.ping", {"sequence": 1}]),
    "unknown kind": msgpack.packb(["session.pang", {"sequence": 1}]),
    "fields in a list": msgpack.packb([SessionPing.kind, [1]]),
    "no field": msgpack.packb([SessionPing.kind, {}]),
    "another field": msgpack.packb([SessionPing.kind, {"sequenz": 1}]),
    "one field more": msgpack.packb([SessionPing.kind, {"sequence": 1, "extra": 1}]),
    "too long a text": msgpack.packb([ProtocolFault.kind, {"reason": "x" * 4097}]),
    "reserved byte": b"\xc1",
}  # fmt: skip


MEMORY_BYTES_MAX = codec.ELEMENTS_MAX * 8 * 1024 + 8 * 1024 * 1024
"""What nested headers can cost, and some room for the allocator."""


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_input_is_one_clear_error(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown <= max(2 * len(data), MEMORY_BYTES_MAX)
    # The error can be sent back and logged: it is short and quotes no payload.
    assert len(caught.value.message) < 200


def test_an_unknown_field_of_a_nested_record_is_an_error() -> None:
    kind, fields = msgpack.unpackb(codec.encode(DONE))
    fields["ledger"][0]["bonus"] = 1
    with pytest.raises(RemoteProtocolError, match="ledger: has an unknown field"):
        codec.decode(msgpack.packb([kind, fields]))


def test_the_name_of_an_unknown_kind_is_shortened() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(msgpack.packb(["x" * 60_000, {}]))
    assert len(caught.value.message) < 100


# --- the specification itself --------------------------------------------------------------------


def test_kinds_are_noun_dot_verb_and_unique() -> None:
    kinds = [cls.kind for cls in messages.ALL]
    assert len(set(kinds)) == len(kinds)
    for kind in kinds:
        noun, _, verb = kind.partition(".")
        assert noun.isalpha()
        assert verb.isalpha()


def test_every_message_class_is_in_the_list() -> None:
    defined = {
        thing
        for thing in vars(messages).values()
        if isinstance(thing, type) and issubclass(thing, messages.Message)
    }
    assert set(messages.ALL) == defined - {messages.Message}


def test_the_largest_field_of_every_message_to_the_controller_fits_into_a_frame() -> None:
    """A single legal field must never be too large to send (many large ones together may be)."""
    for cls in messages.ALL:
        if cls is OperatorReply:
            continue  # goes to ctl, with a limit of its own
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            hint = hints[field.name]
            if get_args(hint)[:1] == (bytes,) and hint == Annotated[bytes, get_args(hint)[1]]:
                assert get_args(hint)[1].most < MESSAGE_BYTES_MAX - 4096


def test_messages_without_fields_have_an_empty_map() -> None:
    assert msgpack.unpackb(codec.encode(SessionUnknown())) == ["session.unknown", {}]


def test_a_full_work_item_fits_into_a_frame() -> None:
    item = WorkItem(
        item=ItemId(2**63),
        job=JobId(2**63),
        epoch=Epoch(2**63),
        lease_s=15.0,
        parameter_list=bytes(messages.PARAMETER_LIST_BYTES_MAX),
        units=(),
    )
    assert len(codec.encode(item)) < MESSAGE_BYTES_MAX
    fence = UnitFence(request=1, designator=Designator(bytes(8)), epoch=Epoch(1))
    assert codec.decode(codec.encode(fence)) == fence
