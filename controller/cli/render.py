"""Rendering: documents of the operator interface to tables, JSON and JSON lines; progress lines; errors.

The functions are pure: a document goes in, text comes out.  Only `Screen` writes: data to standard output, talk to
standard error.  Times are RFC 3339 UTC in data and local time in tables; sizes are IEC, with decimal TB beside
them where cartridges are concerned, because that is how cartridges are sold.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO, TypeAlias

from backplane.errors import BackupError, ConfigError, ExitCode
from backplane.units import format_size
from controller.cli.options import Output

Document: TypeAlias = Mapping[str, Any]

BAR_CHARACTERS: Final = 24
_ESCAPES: Final = {"good": "\x1b[32m", "warning": "\x1b[33m", "bad": "\x1b[31m"}
_RESET: Final = "\x1b[0m"
_CLEAR_LINE: Final = "\r\x1b[K"
_MOODS: Final = {
    "completed": "good",
    "online": "good",
    "writable": "good",
    "running": "good",
    "partial": "warning",
    "away": "warning",
    "restoring": "warning",
    "importing": "warning",
    "offline": "warning",
    "full": "warning",
    "failed": "bad",
    "restore-failed": "bad",
    "error": "bad",
    "missing": "bad",
    "foreign": "bad",
    "dead": "bad",
}
"""Which words of a state column are good news; all others stay uncoloured."""


class Screen:
    """Where `ctl` writes."""

    def __init__(
        self,
        output: Output = "table",
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        has_colour: bool | None = None,
        is_terminal: bool | None = None,
    ) -> None:
        self.output = output
        self._stdout = stdout if stdout is not None else sys.stdout
        self._stderr = stderr if stderr is not None else sys.stderr
        self.is_terminal = self._stderr.isatty() if is_terminal is None else is_terminal
        self.has_colour = (
            self._stdout.isatty() and not os.environ.get("NO_COLOR")
            if has_colour is None
            else has_colour
        )
        self._has_progress = False

    def show(self, document: Document, *, table: Callable[[], str], rows: str = "") -> None:
        """Write a document in the chosen form; JSON lines give one line per element of `rows`."""
        if self.output == "table":
            self._write(self._painted(table()))
        elif self.output == "json":
            self._write(json.dumps(document, indent=2, ensure_ascii=False))
        elif rows:
            for row in document[rows]:
                self.line(row)
        else:
            self.line(document)

    def line(self, document: Document) -> None:
        """Write one JSON line at once: somebody may be following."""
        self._write(json.dumps(document, ensure_ascii=False))
        self._stdout.flush()

    def talk(self, text: str) -> None:
        """Say something that is no data."""
        self.end_progress()
        self._stderr.write(f"{text}\n")
        self._stderr.flush()

    def failure(self, message: str, *, code: int, hint: str = "") -> None:
        """Say how the command failed; programs that read JSON get an object as well."""
        self.talk(f"ctl: {message}" + (f"\nhint: {hint}" if hint else ""))
        if self.output != "table":
            self.talk(json.dumps(error_document(message, code=code, hint=hint)))

    def error(self, error: BackupError, *, code: int) -> None:
        """Say what went wrong."""
        findings = error.findings if isinstance(error, ConfigError) else (error.message,)
        self.failure("\nctl: ".join(findings), code=code, hint=error.hint)

    @property
    def shows_progress(self) -> bool:
        """Whether a person looks at a progress line."""
        return self.is_terminal and self.output == "table"

    def progress(self, text: str) -> None:
        """Replace the progress line; silent unless a person looks at it."""
        if self.shows_progress:
            self._stderr.write(f"{_CLEAR_LINE}{text}")
            self._stderr.flush()
            self._has_progress = True

    def end_progress(self) -> None:
        """Remove the progress line."""
        if self._has_progress:
            self._stderr.write(_CLEAR_LINE)
            self._stderr.flush()
            self._has_progress = False

    def _write(self, text: str) -> None:
        self.end_progress()
        if text:
            self._stdout.write(f"{text}\n")

    def _painted(self, text: str) -> str:
        return paint(text) if self.has_colour else text


def paint(text: str) -> str:
    """Colour the state words of a table.

    Words are replaced only where two spaces or the line's ends delimit them, as columns are.
    """
    lines = []
    for line in text.split("\n"):
        cells = line.split("  ")
        for index, cell in enumerate(cells):
            word = cell.strip()
            mood = _MOODS.get(word)
            if mood is not None:
                cells[index] = cell.replace(word, f"{_ESCAPES[mood]}{word}{_RESET}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def table(
    columns: Sequence[tuple[str, Callable[[Document], str]]],
    rows: Sequence[Document],
    *,
    right: Sequence[str] = (),
    empty: str = "",
) -> str:
    """Lay out rows under their headings; columns named in `right` are right-aligned."""
    if not rows and empty:
        return empty
    cells = [[title for title, _ in columns]]
    cells += [[value(row) for _, value in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = []
    for line in cells:
        parts = [
            text.rjust(width) if title in right else text.ljust(width)
            for (title, _), text, width in zip(columns, line, widths, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def block(pairs: Sequence[tuple[str, str]], *, indent: str = "  ") -> str:
    """Lay out `Name:  value` lines."""
    width = max((len(name) for name, _ in pairs), default=0) + 1
    return "\n".join(f"{indent}{name + ':':{width}}  {value}".rstrip() for name, value in pairs)


def text_of(key: str) -> Callable[[Document], str]:
    """Return a column that shows a field as it is; nothing is shown as `-`."""
    return lambda row: _text(row.get(key))


def size_of(key: str) -> Callable[[Document], str]:
    """Return a column that shows a byte count."""
    return lambda row: format_size(row[key])


def time_of(key: str) -> Callable[[Document], str]:
    """Return a column that shows a time."""
    return lambda row: local_time(row[key])


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "-"
    return str(value)


def local_time(text: str) -> str:
    """Show an RFC 3339 time as local time, `-` if it has not come yet."""
    if not text:
        return "-"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def exact_size(count: int) -> str:
    """Show a byte count in full and in IEC units: `3,221,225,472 (3.0 GiB)`."""
    return f"{count:,} ({format_size(count)})" if count >= 1024 else f"{count:,}"


def tape_size(count: int) -> str:
    """Show a byte count of tape in IEC and in decimal units: `1.8 TiB (2.00 TB)`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{format_size(count)} ({count / size:.2f} {unit})"
    return f"{format_size(count)} ({count / 10**6:.2f} MB)" if count else "0B"


def clock_time(seconds: float) -> str:
    """Show a span as `0:05`, `12:34` or `1:02:03`."""
    minutes, left = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def rate(byte_count: float, seconds: float) -> str:
    """Show a throughput, `-` when it is not known."""
    return f"{format_size(int(byte_count / seconds))}/s" if seconds > 0 else "-"


def bar(fraction: float) -> str:
    """Draw how much is done."""
    filled = int(min(max(fraction, 0.0), 1.0) * BAR_CHARACTERS)
    return f"[{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}]"


def progress_line(*, what: str, done: int, total: int, seconds: float) -> str:
    """Draw the progress of a transfer that `ctl` itself carries out."""
    fraction = done / total if total else 1.0
    parts = [bar(fraction), f"{fraction:4.0%}", f"{format_size(done)} of {format_size(total)}"]
    return f"{what} {' '.join(parts)}  {rate(done, seconds)}"


def error_document(message: str, *, code: ExitCode | int, hint: str = "") -> Document:
    """Return the JSON form of the end of a command that failed."""
    return {"message_type": "exit_error", "code": int(code), "message": message, "hint": hint}
