"""msgpack with every limit set; the only file that imports it.

`unpack` turns any bytes into plain values (list, dict with str keys, str, bytes, int, float, bool, None) or
raises `PackingError`.  What it refuses, beyond what msgpack refuses by itself: extension types, NaN and
infinities, nesting deeper than `DEPTH_MAX`, duplicate keys (msgpack lets the last one win silently), trailing bytes.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgpack

DEPTH_MAX: Final = 8
ARRAY_LENGTH_MAX: Final = 16384
MAP_LENGTH_MAX: Final = 64
STRING_BYTES_MAX: Final = 64 * 1024
BINARY_BYTES_MAX: Final = 1024 * 1024


class PackingError(ValueError):
    """The bytes are not one value within our limits."""


def pack(value: Any) -> bytes:
    """Encode plain values."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(
    data: bytes,
    *,
    binary_bytes_max: int = BINARY_BYTES_MAX,
    array_length_max: int = ARRAY_LENGTH_MAX,
) -> Any:
    """Decode one value or raise `PackingError`."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            max_array_len=array_length_max,
            max_map_len=MAP_LENGTH_MAX,
            max_str_len=STRING_BYTES_MAX,
            max_bin_len=binary_bytes_max,
            max_ext_len=0,
            object_pairs_hook=_pairs,
        )
    except PackingError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise PackingError(f"not a msgpack value within limits: {type(error).__name__}") from error
    _check(value, DEPTH_MAX)
    return value


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise PackingError("map key is not a string")
        if key in found:
            raise PackingError("duplicate map key")
        found[key] = value
    return found


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise PackingError(f"nested deeper than {DEPTH_MAX}")
    kind = type(value)
    if kind is list:
        for element in value:
            _check(element, depth - 1)
    elif kind is dict:
        for element in value.values():
            _check(element, depth - 1)
    elif kind is float:
        if not math.isfinite(value):
            raise PackingError("number is not finite")
    elif kind not in (str, bytes, int, bool, type(None)):
        raise PackingError(f"type {kind.__name__} is not allowed")
