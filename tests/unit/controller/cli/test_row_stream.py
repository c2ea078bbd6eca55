"""Output that grows while it is found."""

from __future__ import annotations

import io
import json

import pytest

from controller.cli.options import Output
from controller.cli.render import Screen
from controller.cli.row_stream import RowStream


def written(output: Output, count: int) -> str:
    stdout = io.StringIO()
    screen = Screen(output, stdout=stdout, stderr=io.StringIO(), is_terminal=False)
    stream = RowStream[int](
        screen,
        {"backup": 3, "name": "ä"},
        "rows",
        line=lambda row: f"line {row}",
        document=lambda row: {"row": row},
        stdout=stdout,
    )
    for number in range(count):
        stream.row(number)
    assert stream.count == count
    stream.finish({"is_complete": True, "reasons": []})
    return stdout.getvalue()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_json_document_is_one(count: int) -> None:
    text = written("json", count)
    assert json.loads(text) == {
        "backup": 3,
        "name": "ä",
        "rows": [{"row": number} for number in range(count)],
        "is_complete": True,
        "reasons": [],
    }
    assert text.startswith('{\n  "backup": 3,\n')
    assert text.endswith("\n}\n")


def test_lines_are_nothing_but_rows() -> None:
    assert written("table", 2) == "line 0\nline 1\n"
    assert written("jsonl", 2) == '{"row": 0}\n{"row": 1}\n'
    assert written("table", 0) == written("jsonl", 0) == ""


def test_progress_is_removed_before_a_row_is_written() -> None:
    terminal = io.StringIO()
    screen = Screen("table", stdout=terminal, stderr=terminal, is_terminal=True, has_colour=False)
    stream = RowStream[str](screen, {}, "rows", line=str, document=lambda _: {}, stdout=terminal)
    screen.progress("1,000 paths")
    stream.row("a")
    screen.progress("2,000 paths")
    stream.finish({})
    assert terminal.getvalue() == "\r\x1b[K1,000 paths\r\x1b[Ka\n\r\x1b[K2,000 paths\r\x1b[K"
