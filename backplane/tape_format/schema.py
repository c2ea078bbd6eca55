"""What a JSON value has to be to become a field of a dataclass: the annotations are the schema.

int, str, bool, tuple[X, ...], tuple[X, Y], Sequence of integers or of pairs of them (which may be long, and become
machine words), nested dataclasses, and `Json` for what is carried without being understood.  Every field is required,
no other is allowed: a new field is a new record version.  A field that came later says so (`metadata={"since": 2}`): in
a payload of an older version it must be missing, and gets its default.

What a field may take is in its metadata, or one of the defaults here: `text_bytes_max` of JSON text altogether (for a
long list `items_max` alone counts), `items_max` of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

from backplane.errors import VolumeError
from backplane.units import KIB, MIB

Json: TypeAlias = object
"""Any JSON value without fractions: str, int, bool, None, tuple (for a list), Mapping with str keys."""

INTEGER_MAX: Final = (1 << 64) - 1
VERSION_MAX: Final = 0xFFFF
"""A payload of this version has every field that there is: what is written now."""

LONG_ITEMS_MAX: Final = 16 * MIB
"""Items of a long list of numbers: 128 MiB of words."""
ITEMS_MAX: Final = 100_000
"""Items of any other list."""
ITEM_TEXT_BYTES_MAX: Final = 64 * KIB
"""JSON text of one item of a list, or of a value that is no list.  Python needs up to 25 times as much for it."""
LIST_TEXT_BYTES_MAX: Final = 64 * MIB
"""JSON text of a list that is not one of numbers."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field of a payload is, and how much of it there may be."""

    hint: Any
    items_max: int
    text_bytes_max: int

    @property
    def is_long(self) -> bool:
        """Whether it is a list of numbers, or of pairs of them, that becomes machine words."""
        return get_origin(self.hint) is Sequence

    @property
    def is_list(self) -> bool:
        """Whether it is a list of which each item is looked at by itself."""
        arguments = get_args(self.hint)
        return get_origin(self.hint) is tuple and len(arguments) == 2 and arguments[1] is ...

    @property
    def item(self) -> Any:
        """What the items of a list are."""
        return get_args(self.hint)[0]


@cache
def rules_of(cls: type, version: int) -> dict[str, Rule]:
    """Return the fields that a payload of some version has."""
    hints = get_type_hints(cls)
    found = {}
    for field in fields(cls):  # No class variables.
        if field.metadata.get("since", 1) > version:
            continue
        rule = Rule(hints[field.name], 0, 0)
        items = LONG_ITEMS_MAX if rule.is_long else ITEMS_MAX
        text = LIST_TEXT_BYTES_MAX if rule.is_list else ITEM_TEXT_BYTES_MAX
        found[field.name] = Rule(
            rule.hint,
            field.metadata.get("items_max", items),
            field.metadata.get("text_bytes_max", text),
        )
    return found


def require_fields(names: AbstractSet[str], cls: type, path: str, version: int) -> None:
    """Raise `VolumeError` unless these are the names of all fields."""
    wrong = names ^ rules_of(cls, version).keys()
    if wrong:
        told = ", ".join(name[:40] for name in sorted(wrong)[:5])
        raise VolumeError(f"{path}: missing or unknown fields: {told}")


def checked(hint: Any, raw: object, path: str, version: int) -> object:
    """Return what a JSON value means; raises `VolumeError` if it is something else than the hint says."""
    if hint is int:
        if type(raw) is int and -INTEGER_MAX <= raw <= INTEGER_MAX:
            return raw
        raise VolumeError(f"{path} is no integer")
    if hint is str or hint is bool:
        if type(raw) is hint:
            return raw
        raise VolumeError(f"{path} is no {hint.__name__}")
    assert get_origin(hint) is not Sequence, "a long list stands in a payload itself"
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
        return tuple(checked(arguments[0], item, path, version) for item in raw)
    if len(raw) != len(arguments):
        raise VolumeError(f"{path} has {len(raw)} items, not {len(arguments)}")
    return tuple(
        checked(hint, item, path, version) for hint, item in zip(arguments, raw, strict=True)
    )


def _checked_object(cls: type, raw: object, path: str, version: int) -> object:
    if not isinstance(raw, dict):
        raise VolumeError(f"{path} is no object")
    require_fields(raw.keys(), cls, path, version)
    rules = rules_of(cls, version)
    return cls(
        **{
            name: checked(rule.hint, raw[name], f"{path}.{name}", version)
            for name, rule in rules.items()
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
