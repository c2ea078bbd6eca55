"""Arguments of operators' calls: whatever comes, they are of the table's types and within its limits, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from controller.operator_verbs import VERBS, Argument, parse_arguments, scheduled_arguments
from tests.site.arguments import good, parse

PAGE = Path(__file__).parents[3] / "docs" / "operator-interface.md"
WRONG: dict[type, list[Any]] = {
    str: [1, None, [], {}, True],
    int: ["1", None, 1.0, True, []],
    float: ["1", None, True, []],
    bool: [0, 1, "true", None],
    list: ["x", 1, None, {}, True, [1], ["x", None], [["x"]]],
}
OUT_OF_RANGE: dict[type, list[Any]] = {
    str: ["x" * 4097, "\ud800", "a\0b"],
    int: [-1, 2**63, 10**400],
    float: [-0.5, 86401.0, 10**400, float("nan"), float("inf")],
    bool: [],
    list: [["x" * 4097], ["x", "\ud800"], ["x"] * 1001],
}
ARGUMENTS = [
    (verb, name, argument) for verb, schema in VERBS.items() for name, argument in schema.items()
]


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_right_arguments_pass_as_they_are(verb: str) -> None:
    assert parse(verb, good(verb)) == good(verb)


@pytest.mark.parametrize(("verb", "name", "argument"), ARGUMENTS)
def test_an_argument_of_the_wrong_type_is_refused_by_name(
    verb: str, name: str, argument: Argument
) -> None:
    for value in WRONG[argument.kind]:
        with pytest.raises(UsageError, match=rf"{verb}: argument {name} has to be"):
            parse(verb, good(verb) | {name: value})


@pytest.mark.parametrize(("verb", "name", "argument"), ARGUMENTS)
def test_an_argument_out_of_range_is_refused_by_name(
    verb: str, name: str, argument: Argument
) -> None:
    for value in OUT_OF_RANGE[argument.kind]:
        with pytest.raises(UsageError, match=rf"{verb}: argument {name} is"):
            parse(verb, good(verb) | {name: value})


@pytest.mark.parametrize(("verb", "name", "argument"), ARGUMENTS)
def test_an_argument_that_is_missing_is_refused_or_has_its_default(
    verb: str, name: str, argument: Argument
) -> None:
    left = good(verb)
    del left[name]
    if argument.default is None:
        with pytest.raises(UsageError, match=f"{verb}: argument {name} is missing"):
            parse(verb, left)
    else:
        assert parse(verb, left)[name] == argument.default


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_argument_is_refused_by_name(verb: str) -> None:
    with pytest.raises(UsageError, match=f"{verb}: unknown argument extra"):
        parse(verb, good(verb) | {"extra": 1})


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no verb 'tape\.eat'"):
        parse("tape.eat", {})


@pytest.mark.parametrize(
    "raw", [b"[]", b"1", b"null", b"{", b"\xff\xfe", b'{"a":', b"[" * 100_000, b"9" * 5000]
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match="the arguments are no"):
        parse_arguments("node.list", raw)


def test_no_arguments_are_none() -> None:
    assert parse_arguments("node.list", b"") == {}


def test_an_empty_token_is_no_token() -> None:
    """Two calls without one would be the same call."""
    with pytest.raises(UsageError, match="token is empty"):
        parse("volume.create", good("volume.create") | {"token": ""})


@pytest.mark.parametrize("text", ["", "0123", "0123456789ABCDEF", "0123456789abcdefg"])
def test_a_designator_is_sixteen_small_hexadecimal_digits(text: str) -> None:
    with pytest.raises(UsageError, match="16 hexadecimal digits"):
        parse("volume.extents", {"designator": text})


@given(raw=st.binary(max_size=200), verb=st.sampled_from(sorted(VERBS)))
def test_any_bytes_give_arguments_or_a_usage_error(raw: bytes, verb: str) -> None:
    try:
        found = parse_arguments(verb, raw)
    except UsageError:
        return
    assert set(found) == set(VERBS[verb])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    verb=st.sampled_from(sorted(VERBS)),
    data=st.data(),
)
def test_any_values_give_arguments_or_a_usage_error(verb: str, data: st.DataObject) -> None:
    given_ = {name: data.draw(json_values) for name in VERBS[verb]}
    try:
        found = parse(verb, given_)
    except UsageError:
        return
    for name, argument in VERBS[verb].items():
        assert type(found[name]) is argument.kind


def test_every_verb_and_argument_is_on_its_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for verb, schema in VERBS.items():
        line = re.search(rf"^\| `{re.escape(verb)}` \|.*$", text, re.MULTILINE)
        assert line, f"{verb} is not on the page"
        missing = [name for name in schema if f"`{name}`" not in line.group()]
        assert not missing, f"{verb}: {missing}"


def test_what_a_schedule_submits_is_checked_and_complete() -> None:
    found = scheduled_arguments('{"kind": "verify", "pool": "weekly"}')
    assert set(found) == set(VERBS["job.submit"]) - {"token"}
    assert (found["pool"], found["level"]) == ("weekly", "full")


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "verify", "pool": "weekly"}',
        '{"kind": "backup", "volume": "vol1", "quiet_s": 0, "sync_timeout_s": 7.5}',
    ],
)
def test_what_was_stored_of_a_schedule_can_be_read_again(text: str) -> None:
    found = scheduled_arguments(text)
    assert scheduled_arguments(json.dumps(found)) == found


def test_a_time_that_is_none_is_still_refused_in_a_schedule() -> None:
    with pytest.raises(UsageError, match="argument quiet_s is out of range"):
        scheduled_arguments('{"kind": "backup", "volume": "vol1", "quiet_s": -2.0}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "without a token"),
        ('{"kind": "verify", "token": "t"}', "without a token"),
        ('{"kind": "verify", "nix": 1}', "unknown argument nix"),
        ("{}", "argument kind is missing"),
    ],
)
def test_what_a_schedule_cannot_submit_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        scheduled_arguments(text)
