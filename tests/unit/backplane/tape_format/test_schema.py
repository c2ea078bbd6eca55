"""What the annotations of a dataclass say of a JSON value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from backplane.errors import VolumeError
from backplane.tape_format.content import (
    DIRECTORY_MAX,
    EXTENTS_MAX,
    RESULTS_TEXT_BYTES_MAX,
    PartTrailer,
    VolumeFacts,
)
from backplane.tape_format.schema import (
    INTEGER_MAX,
    ITEM_TEXT_BYTES_MAX,
    LONG_ITEMS_MAX,
    VERSION_MAX,
    checked,
    require_fields,
    rules_of,
)


@dataclass(frozen=True)
class Carrier:
    """Fields of every kind."""

    name: str
    numbers: Sequence[int]
    names: tuple[str, ...] = field(default=(), metadata={"since": 3, "items_max": 7})


def test_rules_are_those_of_the_annotations_and_of_the_version() -> None:
    rules = rules_of(Carrier, 2)
    assert list(rules) == ["name", "numbers"]
    assert (rules["numbers"].is_long, rules["numbers"].items_max) == (True, LONG_ITEMS_MAX)
    assert rules["name"].text_bytes_max == ITEM_TEXT_BYTES_MAX
    names = rules_of(Carrier, VERSION_MAX)["names"]
    assert (names.is_list, names.is_long, names.item, names.items_max) == (True, False, str, 7)


def test_what_may_be_long_in_a_trailer_has_a_limit() -> None:
    rules = rules_of(PartTrailer, VERSION_MAX)
    assert {name for name, rule in rules.items() if rule.is_long} == {
        *("extents", "zero_extents", "record_crc32c")
    }
    assert rules["extents"].items_max == rules["zero_extents"].items_max == EXTENTS_MAX
    assert rules["directory"].items_max == DIRECTORY_MAX
    assert rules["results"].text_bytes_max == RESULTS_TEXT_BYTES_MAX


def test_missing_and_unknown_fields_are_named() -> None:
    require_fields({"name", "numbers"}, Carrier, "here", 1)
    for names in ({"name"}, {"name", "numbers", "names"}):
        with pytest.raises(VolumeError, match="here: missing or unknown fields: n"):
            require_fields(names, Carrier, "here", 1)


@pytest.mark.parametrize(
    ("hint", "raw"),
    [
        *((int, raw) for raw in (True, "1", None, INTEGER_MAX + 1, -INTEGER_MAX - 1)),
        *((str, raw) for raw in (1, None, [])),
        *((tuple[int, str], raw) for raw in ([1], [1, "a", 2], ["a", 1], {})),
        *((tuple[int, ...], raw) for raw in (["a"], 5)),
        *((VolumeFacts, raw) for raw in ({}, [], {"id": "x"})),
        *((object, raw) for raw in (1.5, [1.5], {"a": 1.5})),
    ],
)
def test_a_value_of_another_kind_is_refused(hint: object, raw: object) -> None:
    with pytest.raises(VolumeError, match="here"):
        checked(hint, raw, "here", VERSION_MAX)


def test_values_come_back_frozen() -> None:
    assert checked(tuple[int, str], [1, "a"], "here", 1) == (1, "a")
    assert checked(object, [1, {"a": [None]}], "here", 1) == (1, {"a": (None,)})
