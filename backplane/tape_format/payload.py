"""Frozen dataclasses <-> canonical JSON: sorted keys, no spaces, ASCII, integers only.

The annotations of a dataclass are its schema: int, str, bool, tuple[X, ...], tuple[X, Y], nested dataclasses, and
`Json` for what is carried without being understood.  Every field is required, no other is allowed: a new field is a
new record version.  A field that came later says so (`metadata={"since": 2}`): in a payload of an older version it must
be missing, and gets its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import (
    Any,
    Final,
    NoReturn,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from backplane.errors import VolumeError

Json: TypeAlias = object
"""Any JSON value without fractions: str, int, bool, None, tuple (for a list), Mapping with str keys."""

INTEGER_MAX: Final = (1 << 64) - 1
VERSION_MAX: Final = 0xFFFF
"""A payload of this version has every field that there is: what is written now."""

T = TypeVar("T")


def encode_payload(value: object) -> bytes:
    """Return the canonical JSON text of a dataclass."""
    plain = _plain(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode_payload(data: bytes, cls: type[T], *, version: int = VERSION_MAX) -> T:
    """Decode a JSON text of a record version into a dataclass; raises `VolumeError` for anything else."""
    try:
        raw = json.loads(
            data,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            object_pairs_hook=_object,
        )
        return cast("T", _checked(cls, raw, cls.__name__, version))
    except (ValueError, RecursionError) as error:
        raise VolumeError(f"{cls.__name__}: no valid JSON: {error}") from error


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"number {text}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object with the same key twice")
    return found


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        # Lists of numbers are what trailers are made of: json takes tuples as they are.
        is_numbers = all(type(item) is int for item in value)
        return value if is_numbers else [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@cache
def _schema(cls: type, version: int) -> dict[str, Any]:
    hints = get_type_hints(cls)
    known = [field for field in fields(cls) if field.metadata.get("since", 1) <= version]
    return {field.name: hints[field.name] for field in known}  # no class variables


def _checked(hint: Any, raw: object, path: str, version: int) -> object:
    if hint is int:
        if type(raw) is int and -INTEGER_MAX <= raw <= INTEGER_MAX:
            return raw
        raise VolumeError(f"{path} is no integer")
    if hint is str or hint is bool:
        if type(raw) is hint:
            return raw
        raise VolumeError(f"{path} is no {hint.__name__}")
    if get_origin(hint) is tuple:
        return _checked_list(get_args(hint), raw, path, version)
    if isinstance(hint, type) and is_dataclass(hint):
        return _checked_object(hint, raw, path, version)
    return _checked_json(raw, path)


def _checked_list(
    arguments: tuple[Any, ...], raw: object, path: str, version: int
) -> tuple[object, ...]:
    if not isinstance(raw, list):
        raise VolumeError(f"{path} is no list")
    if arguments[-1] is ...:
        if arguments[0] is int and all(type(item) is int for item in raw):
            if any(abs(item) > INTEGER_MAX for item in raw):
                raise VolumeError(f"{path}: a number is too large")
            return tuple(raw)
        return tuple(_checked(arguments[0], item, path, version) for item in raw)
    if len(raw) != len(arguments):
        raise VolumeError(f"{path} has {len(raw)} items, not {len(arguments)}")
    return tuple(
        _checked(hint, item, path, version) for hint, item in zip(arguments, raw, strict=True)
    )


def _checked_object(cls: type, raw: object, path: str, version: int) -> object:
    if not isinstance(raw, dict):
        raise VolumeError(f"{path} is no object")
    schema = _schema(cls, version)
    wrong = raw.keys() ^ schema.keys()
    if wrong:
        raise VolumeError(f"{path}: missing or unknown fields: {', '.join(sorted(wrong)[:5])}")
    return cls(
        **{
            name: _checked(hint, raw[name], f"{path}.{name}", version)
            for name, hint in schema.items()
        }
    )


def _checked_json(raw: object, path: str) -> object:
    if raw is None or type(raw) in (str, int, bool):
        return raw
    if isinstance(raw, list):
        return tuple(_checked_json(item, path) for item in raw)
    if isinstance(raw, dict):
        return {key: _checked_json(item, path) for key, item in raw.items()}
    raise VolumeError(f"{path} is no JSON value")
