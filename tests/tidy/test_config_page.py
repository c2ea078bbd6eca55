"""docs/config.md tells the truth about every key: its default and its limits are those of the code."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from backplane.runtime.config import Between, Duration, Size
from backplane.units import format_duration, format_size
from controller.config import ControllerConfig
from mover_node.config import MoverConfig
from storage_node.config import StorageNodeConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"
CLASSES: dict[str, type[Any]] = {
    "controller": ControllerConfig,
    "storage-node": StorageNodeConfig,
    "mover-node": MoverConfig,
}
WORDS: dict[str, str] = {
    "log_file": "standard error",
    "advertise": "what we listen on",
    "library_folder": "`library` in the state folder",
}
"""Defaults that words say better than a value."""


def sections() -> dict[str, dict[str, tuple[str, str]]]:
    """Return (type, default) by key, by section."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = part.splitlines()[0].strip()
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", part, re.MULTILINE)
        found[name] = {key: (kind, default) for key, kind, default in rows}
    return found


def rows_of(role: str) -> dict[str, tuple[str, str]]:
    return sections()["All processes"] | sections()[role]


FIELDS = [(role, field) for role, cls in CLASSES.items() for field in dataclasses.fields(cls)]


def hint(role: str, name: str) -> Any:
    return typing.get_type_hints(CLASSES[role], include_extras=True)[name]


def marker(annotation: Any) -> Between | Duration | Size | None:
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next(e for e in typing.get_args(annotation) if isinstance(e, Between | Duration | Size))


def expected_default(role: str, field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.name in WORDS:
        return WORDS[field.name]
    value = field.default
    if value is None or value == ():
        return "none"
    match marker(hint(role, field.name)):
        case Duration():
            return f"`{format_duration(value)}`"
        case Size():
            return f"`{format_size(value).replace(' ', '')}`"
        case Between():
            return str(value)
    if isinstance(value, tuple):
        inner = ", ".join(f'"{part}"' for part in value)
        return f"`[{inner}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


@pytest.mark.parametrize(("role", "field"), FIELDS, ids=lambda v: getattr(v, "name", v))
def test_every_key_is_on_the_page_with_its_default(
    role: str, field: dataclasses.Field[Any]
) -> None:
    rows = rows_of(role)
    assert field.name in rows, f"{role}: {field.name} is missing"
    assert rows[field.name][1] == expected_default(role, field)


@pytest.mark.parametrize(("role", "field"), FIELDS, ids=lambda v: getattr(v, "name", v))
def test_every_key_is_on_the_page_with_what_it_may_be(
    role: str, field: dataclasses.Field[Any]
) -> None:
    kind = rows_of(role)[field.name][0]
    annotation = hint(role, field.name)
    limits = marker(annotation)
    if isinstance(limits, Between):
        assert kind == f"{limits.least:g} to {limits.most:g}"
    elif isinstance(limits, Duration) and limits.most_s < math.inf:
        least = f"`{format_duration(limits.least_s)}`" if limits.least_s else "0"
        assert kind == f"{least} to `{format_duration(limits.most_s)}`"
    elif typing.get_origin(annotation) is Literal:
        assert kind == ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    elif annotation is Path or annotation == Path | None:
        assert kind == "path"


@pytest.mark.parametrize("role", CLASSES)
def test_no_key_is_on_the_page_that_does_not_exist(role: str) -> None:
    known = {field.name for field in dataclasses.fields(CLASSES[role])}
    assert not sections()[role].keys() - known
