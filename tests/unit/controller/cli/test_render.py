from __future__ import annotations

import io
import json
from typing import Any

import pytest

from backplane.errors import ConfigError, NotFoundError
from controller.cli import render
from controller.cli.render import Screen


def a_screen(output: Any, **options: Any) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    options = {"has_colour": False, "is_terminal": False} | options
    return Screen(output, stdout=out, stderr=err, **options), out, err


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    columns = [("NAME", render.text_of("name")), ("N", render.text_of("n"))]
    rows = [{"name": "a", "n": 1}, {"name": "longer", "n": 100}]
    assert render.table(columns, rows, right=("N",)) == ("NAME      N\na         1\nlonger  100")


@pytest.mark.parametrize(
    ("value", "text"),
    [("", "-"), (None, "-"), (0, "0"), (True, "yes"), (["a", "b"], "a, b"), ([], "-")],
)
def test_nothing_is_shown_as_a_dash(value: object, text: str) -> None:
    assert render.text_of("key")({"key": value}) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (512, "512B (0.00 MB)"),
        (12 * 10**12, "10.9TiB (12.00 TB)"),
        (2 * 10**9, "1.86GiB (2.00 GB)"),
    ],
)
def test_tape_sizes_have_a_decimal_twin(count: int, text: str) -> None:
    assert render.tape_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_spans_read_like_a_clock(seconds: float, text: str) -> None:
    assert render.clock_time(seconds) == text


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_bar_is_always_equally_wide(fraction: float) -> None:
    assert len(render.bar(fraction)) == render.BAR_CHARACTERS + 2


def test_a_progress_line_of_an_empty_transfer_is_complete() -> None:
    line = render.progress_line(what="importing v", done=0, total=0, seconds=0.0)
    assert line == f"importing v [{'#' * 24}] 100% 0B of 0B  -"


def test_only_state_words_are_coloured_and_only_whole_ones() -> None:
    painted = render.paint("vol1  online  online-backup  failed")
    assert painted == "vol1  \x1b[32monline\x1b[0m  online-backup  \x1b[31mfailed\x1b[0m"


def test_colour_never_reaches_json() -> None:
    screen, out, _ = a_screen("json", has_colour=True)
    screen.show({"state": "failed"}, table=lambda: "unused")
    assert json.loads(out.getvalue()) == {"state": "failed"}
    assert "\x1b" not in out.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen("table", stdout=Terminal()).has_colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Screen("table", stdout=Terminal()).has_colour
    assert not Screen("table", stdout=io.StringIO()).has_colour


def test_json_keeps_large_numbers_and_letters_of_all_languages() -> None:
    screen, out, _ = a_screen("json")
    screen.show({"bytes": 2**63 - 1, "name": "Büro"}, table=str)
    assert json.loads(out.getvalue()) == {"bytes": 2**63 - 1, "name": "Büro"}
    assert "Büro" in out.getvalue()


def test_json_lines_give_one_line_per_row_or_one_for_the_document() -> None:
    screen, out, _ = a_screen("jsonl")
    screen.show({"rows": [{"a": 1}, {"a": 2}]}, table=str, rows="rows")
    screen.show({"b": 3}, table=str)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"a": 1},
        {"a": 2},
        {"b": 3},
    ]


def test_progress_is_for_people_only() -> None:
    for output, is_terminal in (("table", False), ("json", True), ("jsonl", True)):
        screen, out, err = a_screen(output, is_terminal=is_terminal)
        screen.progress("50%")
        assert (out.getvalue(), err.getvalue()) == ("", "")


def test_talk_does_not_run_into_the_progress_line() -> None:
    screen, _, err = a_screen("table", is_terminal=True)
    screen.progress("50%")
    screen.talk("hello")
    assert err.getvalue() == "\r\x1b[K50%\r\x1b[Khello\n"


def test_an_error_is_a_line_with_a_hint_and_in_json_an_object_as_well() -> None:
    error = NotFoundError("no volume vol9", hint="ctl volume list")
    screen, out, err = a_screen("json")
    screen.error(error, code=4)
    first, second, third = err.getvalue().splitlines()
    assert (first, second) == ("ctl: no volume vol9", "hint: ctl volume list")
    assert json.loads(third) == {
        "message_type": "exit_error",
        "code": 4,
        "message": "no volume vol9",
        "hint": "ctl volume list",
    }
    assert out.getvalue() == ""


def test_all_findings_of_a_configuration_are_shown() -> None:
    screen, _, err = a_screen("table")
    screen.error(ConfigError(["a.toml: x: missing", "a.toml: y: wrong"]), code=2)
    assert err.getvalue() == "ctl: a.toml: x: missing\nctl: a.toml: y: wrong\n"
