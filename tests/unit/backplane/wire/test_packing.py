"""msgpack with every limit: any bytes give a value within them, or `PackingError`."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.wire import packing
from backplane.wire.packing import PackingError, pack, unpack

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def nesting(value: object) -> int:
    if isinstance(value, list):
        return 1 + max((nesting(inner) for inner in value), default=0)
    if isinstance(value, dict):
        return 1 + max((nesting(inner) for inner in value.values()), default=0)
    return 0


@given(VALUES)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    if nesting(value) <= packing.DEPTH_MAX:
        assert unpack(pack(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_the_one_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except PackingError:
        return
    assert nesting(value) <= packing.DEPTH_MAX


@given(VALUES, st.data())
def test_a_value_that_was_cut_short_is_refused(value: object, data: st.DataObject) -> None:
    packed = pack(value)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(PackingError):
        unpack(packed[:cut])


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


REFUSED = {
    "trailing-bytes": pack(1) + pack(2),
    "nothing": b"",
    "not-a-number": pack(math.nan),
    "infinity": pack(-math.inf),
    "nan-inside": pack({"a": [1.0, math.nan]}),
    "extension-type": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "number-as-key": msgpack.packb({1: 2}),
    "bytes-as-key": msgpack.packb({b"a": 2}),
    "key-twice": b"\x82\xa1a\x01\xa1a\x02",
    "text-that-is-not-utf-8": b"\xa2\xff\xfe",
    "deep": pack(nested(packing.DEPTH_MAX + 2)),
    "very-deep": b"\x91" * 100_000 + b"\xc0",
    "long-list": pack([0] * (packing.ARRAY_LENGTH_MAX + 1)),
    "long-map": pack({str(n): 0 for n in range(packing.MAP_LENGTH_MAX + 1)}),
    "long-text": pack("x" * (packing.STRING_BYTES_MAX + 1)),
    "long-bytes": pack(bytes(packing.BINARY_BYTES_MAX + 1)),
    "list-that-promises-more-than-there-is": b"\xdd\xff\xff\xff\xff",
    "bytes-that-promise-more-than-there-are": b"\xc6\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_outside_the_limits_is_refused(data: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(data)


def test_the_limits_themselves_are_allowed() -> None:
    for value in (
        nested(packing.DEPTH_MAX),
        [0] * packing.ARRAY_LENGTH_MAX,
        {str(n): 0 for n in range(packing.MAP_LENGTH_MAX)},
        "x" * packing.STRING_BYTES_MAX,
        bytes(packing.BINARY_BYTES_MAX),
    ):
        assert unpack(pack(value)) == value
