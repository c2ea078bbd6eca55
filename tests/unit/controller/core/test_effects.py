"""Events and effects are values."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from controller.core import effects

EVENTS = typing.get_args(effects.Event)
EFFECTS = typing.get_args(effects.Effect)


@pytest.mark.parametrize("cls", [*EVENTS, *EFFECTS], ids=lambda cls: cls.__name__)
def test_events_and_effects_cannot_be_changed_and_are_built_by_name(cls: type) -> None:
    assert dataclasses.is_dataclass(cls)
    parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls.__doc__, "says when it happens, or what is to be done"


def test_every_class_of_the_module_is_an_event_an_effect_or_a_part_of_one() -> None:
    known = {*EVENTS, *EFFECTS, effects.UnitUse}
    found = {
        value
        for value in vars(effects).values()
        if dataclasses.is_dataclass(value) and value.__module__ == effects.__name__
    }
    assert found == known
