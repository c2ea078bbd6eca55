"""Control messages <-> bytes: msgpack `[kind, {field: value}]`, driven by the annotations in messages.py.

Decoding is total: any bytes give a message or `RemoteProtocolError`.  Each class is compiled once, on import, into
a tree of shapes, one per annotation; a shape checks a value on its way out (`dump`) and in (`load`).  All fields are
required and none may be added: an evolving message gets a new protocol version instead of optional surprises.

Types are exact on the way in, because Python is generous: `True == 1` passes `isinstance(x, int)`, and a
float where a count belongs rounds silently above 2**53.  An error names kind and field but never quotes the value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Final, Protocol, get_args, get_origin, get_type_hints

from backplane.errors import LocalProtocolError, RemoteProtocolError
from backplane.wire import messages
from backplane.wire.messages import MESSAGE_BYTES_MAX, Limit, Message
from backplane.wire.packing import PackingError, pack, unpack

IDENTIFIER_CHARACTERS_MAX: Final = 128
"""Most characters of a str field that has no `Limit` of its own (identifiers of ids.py)."""

IDENTIFIER_BYTES_MAX: Final = 64
"""Most bytes of a bytes field that has no `Limit` of its own."""

ELEMENTS_MAX: Final = 2048
"""Most elements of any tuple.  msgpack reserves what an array's header announces before it sees an element, so nested
headers cost memory: this bounds it to 17 MB for the worst message."""

_INTEGER_END: Final = 2**64
_KIND_SHOWN_MAX: Final = 40


class _MismatchError(ValueError):
    """A value does not fit its field; becomes a local or a remote error at the border."""


class _Shape(Protocol):
    """One annotation, compiled."""

    def dump(self, value: Any, where: str) -> Any:
        """Return what msgpack is to pack."""

    def load(self, value: Any, where: str) -> Any:
        """Return the field's value for what msgpack unpacked."""


class _Integer:
    def dump(self, value: Any, where: str) -> int:
        # An IntEnum is welcome on the way out, a bool never is.
        if not isinstance(value, int) or isinstance(value, bool):
            raise _MismatchError(f"{where}: not an integer")
        return self.load(int(value), where)

    def load(self, value: Any, where: str) -> int:
        if type(value) is not int:
            raise _MismatchError(f"{where}: not an integer")
        if not 0 <= value < _INTEGER_END:
            raise _MismatchError(f"{where}: integer out of range")
        return value


class _Float:
    def dump(self, value: Any, where: str) -> float:
        # The type system lets an int stand for a float; the wire does not.
        return self.load(float(value) if type(value) is int else value, where)

    def load(self, value: Any, where: str) -> float:
        if type(value) is not float or not math.isfinite(value):
            raise _MismatchError(f"{where}: not a finite number")
        return value


class _Boolean:
    def dump(self, value: Any, where: str) -> bool:
        return self.load(value, where)

    def load(self, value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise _MismatchError(f"{where}: not true or false")
        return value


class _Text:
    def __init__(self, most: int) -> None:
        self._most = most

    def dump(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise _MismatchError(f"{where}: not text")
        return self.load(str.__str__(value), where)

    def load(self, value: Any, where: str) -> str:
        if type(value) is not str:
            raise _MismatchError(f"{where}: not text")
        if len(value) > self._most:
            raise _MismatchError(f"{where}: {len(value)} characters, at most {self._most}")
        return value


class _Bytes:
    def __init__(self, most: int) -> None:
        self._most = most

    def dump(self, value: Any, where: str) -> bytes:
        return self.load(value, where)

    def load(self, value: Any, where: str) -> bytes:
        if type(value) is not bytes:
            raise _MismatchError(f"{where}: not bytes")
        if len(value) > self._most:
            raise _MismatchError(f"{where}: {len(value)} bytes, at most {self._most}")
        return value


class _Tuple:
    def __init__(self, element: _Shape, most: int) -> None:
        self._element = element
        self._most = most

    def dump(self, value: Any, where: str) -> list[Any]:
        self._check(value, tuple, where)
        dump = self._element.dump
        return [dump(element, where) for element in value]

    def load(self, value: Any, where: str) -> tuple[Any, ...]:
        self._check(value, list, where)
        load = self._element.load
        return tuple([load(element, where) for element in value])

    def _check(self, value: Any, kind: type[Any], where: str) -> None:
        if type(value) is not kind:
            raise _MismatchError(f"{where}: not a list")
        if len(value) > self._most:
            raise _MismatchError(f"{where}: {len(value)} elements, at most {self._most}")


class _Record:
    """A frozen dataclass: a message or a part of one."""

    def __init__(self, cls: type) -> None:
        assert dataclasses.is_dataclass(cls)
        self._cls: Callable[..., Any] = cls
        self._type = cls
        name = getattr(cls, "kind", cls.__name__)
        hints = get_type_hints(cls, include_extras=True)
        self._fields = tuple(
            (field.name, f"{name}.{field.name}", _shape(hints[field.name], f"{name}.{field.name}"))
            for field in dataclasses.fields(cls)
        )
        self._names = frozenset(field[0] for field in self._fields)

    def dump(self, value: Any, where: str) -> dict[str, Any]:
        if type(value) is not self._type:
            raise _MismatchError(f"{where}: not a {self._type.__name__}")
        return {
            name: shape.dump(getattr(value, name), inner) for name, inner, shape in self._fields
        }

    def load(self, value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise _MismatchError(f"{where}: not a map of fields")
        if value.keys() != self._names:
            missing = sorted(self._names - value.keys())
            found = f"lacks {missing[0]}" if missing else "has an unknown field"
            raise _MismatchError(f"{where}: {found}")
        return self._cls(
            **{name: shape.load(value[name], inner) for name, inner, shape in self._fields}
        )


_SIMPLE: Final[dict[Any, Callable[[], _Shape]]] = {
    int: _Integer,
    float: _Float,
    bool: _Boolean,
}


def _shape(annotation: Any, where: str) -> _Shape:
    """Compile an annotation.  A kind of field that the codec does not know is a bug in messages.py."""
    limit: Limit | None = None
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            # The outermost limit is the field's own; a NewType below may carry a wider one.
            limit = limit or next((e for e in extras if isinstance(e, Limit)), None)
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        else:
            break
    simple = _SIMPLE.get(annotation)
    if simple is not None:
        return simple()
    if annotation is str:
        return _Text(limit.most if limit else IDENTIFIER_CHARACTERS_MAX)
    if annotation is bytes:
        return _Bytes(limit.most if limit else IDENTIFIER_BYTES_MAX)
    if get_origin(annotation) is tuple:
        element, more = get_args(annotation)
        assert more is Ellipsis, f"{where}: only tuples of any length"
        assert limit is not None, f"{where}: a tuple needs a limit"
        assert limit.most <= ELEMENTS_MAX, f"{where}: more than {ELEMENTS_MAX} elements"
        return _Tuple(_shape(element, where), limit.most)
    assert dataclasses.is_dataclass(annotation), f"{where}: the codec knows no {annotation}"
    assert isinstance(annotation, type)
    return _Record(annotation)


_RECORDS: Final[dict[str, _Record]] = {cls.kind: _Record(cls) for cls in messages.ALL}
assert len(_RECORDS) == len(messages.ALL), "two messages share a kind"


def encode(message: Message, *, bytes_max: int = MESSAGE_BYTES_MAX) -> bytes:
    """Return the bytes of a message; raises `LocalProtocolError` if it breaks a type or a limit."""
    record = _RECORDS.get(message.kind)
    assert record is not None, f"{message.kind} is not in messages.ALL"
    try:
        data = pack([message.kind, record.dump(message, message.kind)])
    except (_MismatchError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"cannot send {error}") from error
    if len(data) > bytes_max:
        raise LocalProtocolError(
            f"cannot send {message.kind}: {len(data)} bytes, at most {bytes_max}"
        )
    return data


def decode(data: bytes, *, bytes_max: int = MESSAGE_BYTES_MAX) -> Message:
    """Return the message in the bytes; raises `RemoteProtocolError` for anything else."""
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"message of {len(data)} bytes, at most {bytes_max}")
    try:
        value = unpack(data, binary_bytes_max=bytes_max, array_length_max=ELEMENTS_MAX)
    except PackingError as error:
        raise RemoteProtocolError(str(error)) from error
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise RemoteProtocolError("not a [kind, fields] pair")
    kind, fields = value
    record = _RECORDS.get(kind)
    if record is None:
        raise RemoteProtocolError(f"unknown kind of message {kind[:_KIND_SHOWN_MAX]!r}")
    try:
        message: Message = record.load(fields, kind)
    except _MismatchError as error:
        raise RemoteProtocolError(str(error)) from error
    return message
