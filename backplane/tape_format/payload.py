"""Frozen dataclasses <-> canonical JSON: sorted keys, no spaces, ASCII, integers only.

`schema` says what a text must be.  A text is decoded as it comes, record by record, and never needed whole: a list is
taken item by item, a list of numbers goes straight into machine words.  So what a hostile text of 128 MiB costs is
bounded by the limits of its fields, which are compared before anything is made of it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar, cast, get_origin

from backplane.errors import VolumeError
from backplane.tape_format.packed import PackedNumbers, PackedPairs
from backplane.tape_format.record import PAYLOAD_BYTES_MAX
from backplane.tape_format.schema import (
    ITEM_TEXT_BYTES_MAX,
    VERSION_MAX,
    Rule,
    checked,
    require_fields,
    rules_of,
)
from backplane.units import KIB

_STEP_BYTES: Final = 64 * KIB
"""Of text are looked at in one step."""

T = TypeVar("T")
_Wait: TypeAlias = Generator[None, None, T]
"""Yields while it needs more text."""


def encode_payload(value: object) -> bytes:
    """Return the canonical JSON text of a dataclass; raises `VolumeError` if it would be beyond a limit."""
    cls: type = type(value)
    for name, rule in rules_of(cls, VERSION_MAX).items():
        if rule.is_long or rule.is_list:
            count = len(getattr(value, name))
            if count > rule.items_max:
                raise VolumeError(f"{name}: {count} items, at most {rule.items_max}")
    plain = _plain(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode_payload(data: bytes, cls: type[T], *, version: int = VERSION_MAX) -> T:
    """Decode a JSON text of a record version into a dataclass; raises `VolumeError` for anything else."""
    feed = PayloadFeed(cls, version=version)
    feed.feed(data)
    return feed.finish()


class PayloadFeed(Generic[T]):
    """A JSON text that becomes a dataclass, as it comes.

    Lists of numbers `without` which somebody can do are checked to be JSON, and left empty.
    """

    def __init__(
        self, cls: type[T], *, version: int = VERSION_MAX, without: Collection[str] = ()
    ) -> None:
        self._cls, self._version, self._without = cls, version, without
        self._text, self._at, self._taken = "", 0, 0
        self._is_ended = False
        self._made: T | None = None
        self._parser = self._object()
        self._go_on()

    def feed(self, data: bytes) -> None:
        """Take the next piece of the text; raises `VolumeError`."""
        if self._taken + len(data) > PAYLOAD_BYTES_MAX:
            raise VolumeError(f"metadata of more than {PAYLOAD_BYTES_MAX} bytes")
        for start in range(0, len(data), _STEP_BYTES):
            if self._made is not None:
                self._refuse("there is more behind the end")
            try:
                piece = data[start : start + _STEP_BYTES].decode("ascii")
            except UnicodeDecodeError as error:
                raise VolumeError(f"{self._cls.__name__}: no valid JSON: {error.reason}") from error
            self._text, self._at = self._text[self._at :] + piece, 0
            self._taken += len(piece)
            self._go_on()

    def finish(self) -> T:
        """No text follows; raises `VolumeError` if it is not whole."""
        self._is_ended = True
        if self._made is None:
            self._go_on()
        assert self._made is not None
        if self._at < len(self._text):
            self._refuse("there is more behind the end")
        return self._made

    def _go_on(self) -> None:
        try:
            next(self._parser)
        except StopIteration as done:
            self._made = cast("T", done.value)

    def _refuse(self, why: str) -> NoReturn:
        raise VolumeError(f"{self._cls.__name__}: no valid JSON: {why}")

    # --- the text --------------------------------------------------------------------------------

    @property
    def _position(self) -> int:
        """How much of the text was looked at."""
        return self._taken - len(self._text) + self._at

    def _more(self) -> _Wait[None]:
        if self._is_ended:
            self._refuse("it ends early")
        yield

    def _peek(self) -> _Wait[str]:
        while self._at >= len(self._text):
            yield from self._more()
        return self._text[self._at]

    def _pass(self, wanted: str, path: str) -> _Wait[str]:
        """Pass one of these characters."""
        found = yield from self._peek()
        if found not in wanted:
            self._refuse(f"{path}: {' or '.join(wanted)} expected, and there is {found!r}")
        self._at += 1
        return found

    def _value(self, path: str, text_bytes_max: int) -> _Wait[object]:
        """Take one value of at most so much text, a bit more if it is there at once."""
        while True:
            left = len(self._text) - self._at
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # Half a value looks like this, too.
                if self._is_ended:
                    raise VolumeError(f"{path}: no valid JSON: {error}") from error
            else:
                # A number may go on in the next piece.
                if end < len(self._text) or self._is_ended:
                    if end - self._at > text_bytes_max:
                        self._refuse(f"{path} has more than {text_bytes_max} bytes")
                    self._at = end
                    return value
            if left > text_bytes_max:
                self._refuse(f"{path} is none, or has more than {text_bytes_max} bytes")
            yield from self._more()

    # --- values ----------------------------------------------------------------------------------

    def _object(self) -> _Wait[T]:
        plain: type = self._cls
        cls, path = self._cls, self._cls.__name__
        rules = rules_of(plain, self._version)
        found: dict[str, object] = {}
        mark = yield from self._pass("{", path)
        while mark != "}":
            yield from self._quote(path)
            name = yield from self._value(path, ITEM_TEXT_BYTES_MAX)
            assert isinstance(name, str)
            if name in found:
                self._refuse(f"an object with the same key twice: {name}")
            if name not in rules:
                require_fields({name, *rules}, plain, path, self._version)
            yield from self._pass(":", path)
            found[name] = yield from self._field(name, rules[name], f"{path}.{name}")
            mark = yield from self._pass(",}", path)
        require_fields(found.keys(), plain, path, self._version)
        return cls(**found)

    def _quote(self, path: str) -> _Wait[None]:
        if (yield from self._peek()) != '"':
            self._refuse(f"{path}: no name of a field")

    def _field(self, name: str, rule: Rule, path: str) -> _Wait[object]:
        if rule.is_long:
            return (yield from self._long(rule, path, is_kept=name not in self._without))
        if rule.is_list:
            return (yield from self._list(rule, path))
        if rule.hint is str and (yield from self._peek()) != '"':
            raise VolumeError(f"{path} is no str")  # Only a text may be as long as some are.
        value = yield from self._value(path, rule.text_bytes_max)
        return checked(rule.hint, value, path, self._version)

    def _list(self, rule: Rule, path: str) -> _Wait[tuple[object, ...]]:
        """Take a list, item by item."""
        items: list[object] = []
        yield from self._pass("[", path)
        begin, item = self._position, rule.item
        mark = "]" if (yield from self._peek()) == "]" else ","
        self._at += mark == "]"
        while mark != "]":
            if len(items) == rule.items_max:
                raise VolumeError(f"{path}: more than {rule.items_max} items")
            raw = yield from self._value(path, ITEM_TEXT_BYTES_MAX)
            if self._position - begin > rule.text_bytes_max:
                raise VolumeError(f"{path}: more than {rule.text_bytes_max} bytes")
            items.append(checked(item, raw, path, self._version))
            mark = yield from self._pass(",]", path)
        return tuple(items)

    def _long(self, rule: Rule, path: str, *, is_kept: bool) -> _Wait[object]:
        """Take a list of numbers, or of pairs of them, as many as are there at a time."""
        is_pairs = get_origin(rule.item) is tuple
        width, closing = (2, "]]") if is_pairs else (1, "]")
        words, count = array("Q"), 0
        yield from self._pass("[", path)
        while True:
            first = yield from self._peek()
            if first == "]" and not count:
                self._at += 1
                break
            # Pairs end in "]]", and are apart by "],"; a piece with anything else in it is no list of them.
            end = self._text.find(closing, self._at)
            is_last = end >= 0
            comma = end if is_last else self._text.rfind(closing[1:] + ",", self._at)
            if comma < 0:
                if len(self._text) - self._at > ITEM_TEXT_BYTES_MAX:
                    self._refuse(f"{path} is no list of numbers")
                yield from self._more()
                continue
            stop = comma + width - 1
            numbers = self._numbers(self._text[self._at : stop], path, is_pairs=is_pairs)
            count += len(numbers) // width
            if count > rule.items_max:
                raise VolumeError(f"{path}: more than {rule.items_max} items")
            if is_kept:
                words.extend(numbers)
            self._at = stop + 1
            if is_last:
                break
        return PackedPairs(words) if is_pairs else PackedNumbers(words)

    def _numbers(self, piece: str, path: str, *, is_pairs: bool) -> array[int]:
        """Return the numbers of a piece of a list."""
        try:
            items = json.loads(f"[{piece}]", parse_float=_refuse_number)
            if is_pairs:
                if set(map(type, items)) != {list} or set(map(len, items)) != {2}:
                    raise VolumeError(f"{path} is no list of pairs")
                items = list(chain.from_iterable(items))
            if set(map(type, items)) != {int}:
                raise VolumeError(f"{path}: something is no integer")
            return array("Q", items)
        except OverflowError as error:
            raise VolumeError(f"{path}: a number is negative, or too large") from error
        except (ValueError, RecursionError) as error:
            raise VolumeError(f"{path}: no valid JSON: {error}") from error


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"number {text[:40]}")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object with the same key twice")
    return found


_DECODER: Final = json.JSONDecoder(
    parse_float=_refuse_number, parse_constant=_refuse_number, object_pairs_hook=_object_of
)


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, PackedNumbers | PackedPairs):
        return _listed(value)
    if isinstance(value, tuple):
        # Lists of numbers are what trailers are made of: json takes tuples as they are.
        is_numbers = all(type(item) is int for item in value)
        return value if is_numbers else [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _listed(values: Iterable[object]) -> list[object]:
    return list(values)
