"""The list of control messages agrees with itself: kinds, completeness, form."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from backplane.wire import messages


def test_every_message_class_is_in_the_list() -> None:
    """A class that is not in `ALL` is a message that nobody can decode."""
    classes = {
        value
        for value in vars(messages).values()
        if inspect.isclass(value)
        and issubclass(value, messages.Message)
        and value is not messages.Message
    }
    assert classes == set(messages.ALL)
    assert len(messages.ALL) == len(classes)


def test_no_two_messages_have_the_same_kind() -> None:
    kinds = [cls.kind for cls in messages.ALL]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("cls", messages.ALL, ids=lambda cls: cls.kind)
def test_a_message_is_noun_verb_frozen_slotted_and_says_its_obligations(
    cls: type[messages.Message],
) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z]+", cls.kind)
    fields: dict[str, dataclasses.Field[object]] = vars(cls)["__dataclass_fields__"]
    assert all(field.kw_only for field in fields.values())
    # A frozen dataclass gets a hash; one that can change has None there.
    assert vars(cls)["__hash__"] is not None
    assert "__dict__" not in dir(cls)
    assert (cls.__doc__ or "").strip().endswith(".")


def test_a_parameter_list_leaves_room_for_its_grants() -> None:
    assert messages.PARAMETER_LIST_BYTES_MAX < messages.MESSAGE_BYTES_MAX < messages.REPLY_BYTES_MAX
