"""Output that grows while it is found: lines, JSON lines, or one JSON document that is never whole in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Generic, TextIO, TypeVar

from controller.cli.render import Document, Screen

T = TypeVar("T")


class RowStream(Generic[T]):
    """Writes rows one by one.  A JSON document has the fields of `head`, the rows, then those of `finish`."""

    def __init__(
        self,
        screen: Screen,
        head: Document,
        rows: str,
        *,
        line: Callable[[T], str],
        document: Callable[[T], Document],
        stdout: TextIO | None = None,
    ) -> None:
        self._screen = screen
        self._stdout = stdout if stdout is not None else sys.stdout
        self._head = head
        self._rows = rows
        self._line = line
        self._document = document
        self.count = 0
        """Rows so far."""

    def row(self, row: T) -> None:
        """Write a row, in the form that is wanted."""
        if self._screen.output == "jsonl":
            self._screen.line(self._document(row))
        elif self._screen.output == "json":
            text = json.dumps(self._document(row), ensure_ascii=False)
            self._write((",\n    " if self.count else self._opening()) + text)
        else:
            self._write(f"{self._line(row)}\n")
        self.count += 1

    def finish(self, tail: Document) -> None:
        """End a JSON document; lines need no end."""
        if self._screen.output == "json":
            end_of_rows = "\n  ]" if self.count else f"{self._opening().rstrip()}]"
            fields = "".join(f",\n  {_field(name, value)}" for name, value in tail.items())
            self._write(f"{end_of_rows}{fields}\n}}\n")
        self._screen.end_progress()

    def _opening(self) -> str:
        fields = "".join(f"  {_field(name, value)},\n" for name, value in self._head.items())
        return f"{{\n{fields}  {json.dumps(self._rows)}: [\n    "

    def _write(self, text: str) -> None:
        self._screen.end_progress()
        self._stdout.write(text)


def _field(name: str, value: object) -> str:
    return f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
