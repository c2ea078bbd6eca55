"""The text of LVM2's metadata: what it means, and what is refused."""

from __future__ import annotations

import random

import pytest

from backplane.testing.lvm_images import Segment, group_text
from storage_node.mapping import lvm_text
from storage_node.mapping.lvm_text import number, parse_text, section, string, strings
from storage_node.mapping.reader import DamagedError

TEXT = """
# a comment { with } marks
0vg-a {  # names may begin with a digit
    seqno = 12
    size = -5
    ratio = 1.5
    word = "with \\"quotes\\", a \\\\ and # no comment"
    none = []
    list = ["a", 1, ["b"]]
    inner { deep { x = 1 } }
}
contents = "Text"
"""


def test_everything_that_the_text_may_have_is_read() -> None:
    found = parse_text(TEXT)
    assert found == {
        "0vg-a": {
            "seqno": 12,
            "size": -5,
            "ratio": 1,
            "word": 'with "quotes", a \\ and # no comment',
            "none": [],
            "list": ["a", 1, ["b"]],
            "inner": {"deep": {"x": 1}},
        },
        "contents": "Text",
    }


def test_values_are_asked_for_by_kind() -> None:
    group = section(parse_text(TEXT), "0vg-a")
    assert number(group, "seqno") == 12
    assert string(section(parse_text('a { b = "c" }'), "a"), "b") == "c"
    assert strings(group, "list") == ["a"]
    assert strings(group, "seqno") == []
    for ask in (
        lambda: number(group, "word"),
        lambda: number(group, "size"),
        lambda: string(group, "seqno"),
        lambda: section(group, "seqno"),
        lambda: number(group, "missing"),
        lambda: section(group, "missing"),
    ):
        with pytest.raises(DamagedError):
            ask()


@pytest.mark.parametrize(
    "text",
    [
        "a {",
        "a }",
        "a = ",
        "a = {",
        "a = [1",
        "a = [1 2]",
        'a = "open',
        "a = word",
        "a = 99999999999999999999999999",
        "a 1",
        "= 1",
        "a = 1 a = 2",
        '"a" = 1',
        "a = \x01",
        "a { b { c { d { e { f { g { h { i { j = 1 } } } } } } } } }",
        "a = [[[[[[[[[[1]]]]]]]]]]",
        '"' + "\\" * 99_999,
    ],
)
def test_what_is_no_such_text_is_refused(text: str) -> None:
    with pytest.raises(DamagedError):
        parse_text(text)


def test_a_text_without_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvm_text, "VALUES_MAX", 1000)
    with pytest.raises(DamagedError, match="more than 1000"):
        parse_text("a = [" + "1," * 2000 + "]")


def test_a_string_of_megabytes_is_read() -> None:
    assert parse_text('a = "' + "x\\\\" * 1_000_000 + '"') == {"a": "x\\" * 1_000_000}


def test_no_damage_to_a_text_does_more_than_refuse_it() -> None:
    chance = random.Random(3)
    text = group_text("vg", {"pv0": 10}, {"root": [Segment(5, [("pv0", 0)])]})
    for _ in range(500):
        at = chance.randrange(len(text))
        with_damage = (
            text[:at] + chance.choice('{}[]=,"#\\0a\n ') + text[at + chance.randrange(3) :]
        )
        try:
            parse_text(with_damage)
        except DamagedError:
            continue
