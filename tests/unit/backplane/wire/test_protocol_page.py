"""The table of messages in docs/protocol.md is written from messages.py; `--rewrite` renews it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

from backplane.wire import frames, messages
from backplane.wire.codec import IDENTIFIER_BYTES_MAX, IDENTIFIER_CHARACTERS_MAX
from backplane.wire.messages import Limit
from backplane.wire.session import SPOKEN

PAGE = Path(__file__).parents[4] / "docs" / "protocol.md"
BEGIN = "--rewrite -->\n"
END = "<!-- end of messages -->"
WORDS = {int: "integer", float: "number", bool: "boolean", str: "text", bytes: "bytes"}
DEFAULTS = {str: IDENTIFIER_CHARACTERS_MAX, bytes: IDENTIFIER_BYTES_MAX}


def type_in_words(annotation: Any, records: dict[str, type]) -> str:
    limit = ""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, found = typing.get_args(annotation)
            assert isinstance(found, Limit)
            limit = limit or f" <= {found.most}"
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        else:
            break
    if typing.get_origin(annotation) is tuple:
        return f"[{type_in_words(typing.get_args(annotation)[0], records)}]{limit}"
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        records[annotation.__name__] = annotation
        return f"{annotation.__name__}"
    if annotation in DEFAULTS:
        limit = limit or f" <= {DEFAULTS[annotation]}"
    return WORDS[annotation] + limit


def fields_in_words(cls: type, records: dict[str, type]) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    told = [
        f"`{field.name}` {type_in_words(hints[field.name], records)}"
        for field in dataclasses.fields(cls)
    ]
    return ", ".join(told) or "none"


def sender(cls: type[messages.Message]) -> str:
    for role, spoken in SPOKEN.items():
        if cls in spoken:
            return role
    return "peer" if cls in (messages.SessionHello, messages.SessionPing) else "controller"


def first_sentences(cls: type) -> str:
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def table() -> str:
    records: dict[str, type] = {}
    lines = ["", "| Kind | Sent by | Fields | Meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{cls.kind}` | {sender(cls)} | {fields_in_words(cls, records)} | {first_sentences(cls)} |"
        for cls in messages.ALL
    ]
    lines += ["", "Records inside messages:", "", "| Record | Fields | Meaning |", "|---|---|---|"]
    lines += [
        f"| {name} | {fields_in_words(cls, {})} | {first_sentences(cls)} |"
        for name, cls in sorted(records.items())
    ]
    return "\n".join([*lines, "", ""])


def test_the_table_of_messages_is_not_stale(is_rewriting: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    written, end, after = rest.partition(END)
    assert found
    assert end
    if is_rewriting:
        PAGE.write_text(before + found + table() + end + after, encoding="utf-8")
        return
    assert written == table(), "run this test with --rewrite and read the diff"


def test_every_opcode_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for opcode in frames.Opcode:
        assert f"| {opcode.name} | {opcode.value:02X}h |" in page
