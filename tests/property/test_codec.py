"""The codec is total: any bytes give a message or `RemoteProtocolError`; and every message survives the trip.

Strategies are generated from the annotations of messages.py, independently of the codec's own reading of them, so a
field that the codec would drop, round or limit wrongly shows up here.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import RemoteProtocolError
from backplane.wire import codec, messages
from backplane.wire.messages import Limit, Message

SMALL = 6
"""Generated fields stay small; the limits themselves are tested one by one in the unit tests."""


def strategy_of(annotation: Any, most: int = SMALL) -> st.SearchStrategy[Any]:
    if hasattr(annotation, "__supertype__"):
        return strategy_of(annotation.__supertype__, most)
    if typing.get_origin(annotation) is typing.Annotated:
        inner, limit = typing.get_args(annotation)
        assert isinstance(limit, Limit)
        return strategy_of(inner, min(most, limit.most))
    if typing.get_origin(annotation) is tuple:
        element = strategy_of(typing.get_args(annotation)[0])
        return st.lists(element, max_size=min(3, most)).map(tuple)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        fields = {f.name: strategy_of(hints[f.name]) for f in dataclasses.fields(annotation)}
        return st.builds(annotation, **fields)
    simple = {
        int: st.integers(0, 2**64 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=most),
        bytes: st.binary(max_size=most),
    }
    return simple[annotation]


any_message = st.one_of([strategy_of(cls) for cls in messages.ALL])


@pytest.mark.parametrize("cls", messages.ALL, ids=lambda cls: cls.kind)
def test_every_message_survives_the_trip(cls: type[Message]) -> None:
    @given(strategy_of(cls))
    def check(message: Message) -> None:
        decoded = codec.decode(codec.encode(message))
        assert type(decoded) is cls
        assert decoded == message

    check()


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        codec.decode(data)
    except RemoteProtocolError:
        return


@given(any_message, st.data())
def test_a_truncated_message_is_an_error(message: Message, data: st.DataObject) -> None:
    encoded = codec.encode(message)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(RemoteProtocolError):
        codec.decode(encoded[:cut])


@given(any_message, st.data())
def test_a_changed_byte_never_crashes(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(message))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = codec.decode(bytes(encoded))
    except RemoteProtocolError:
        return
    # What passes is a message in every respect: it can be sent on.
    assert codec.decode(codec.encode(decoded)) == decoded


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)


@given(plain, st.sampled_from(messages.ALL), plain)
def test_any_other_value_is_an_error(value: Any, cls: type[Message], fields: Any) -> None:
    for confused in (value, [cls.kind, fields], [value, {}], [cls.kind, {}, value]):
        try:
            message = codec.decode(msgpack.packb(confused))
        except RemoteProtocolError:
            continue
        assert confused == [cls.kind, {}]
        assert dataclasses.fields(message) == ()  # type: ignore[arg-type]


@given(any_message, plain, st.data())
def test_a_field_of_a_wrong_type_is_an_error(
    message: Message, value: Any, data: st.DataObject
) -> None:
    kind, fields = msgpack.unpackb(codec.encode(message))
    if not fields:
        return
    name = data.draw(st.sampled_from(sorted(fields)))
    if type(value) is type(fields[name]):
        return
    with pytest.raises(RemoteProtocolError):
        codec.decode(msgpack.packb([kind, {**fields, name: value}]))
