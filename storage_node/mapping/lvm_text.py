"""The text in which LVM2 keeps what it knows of a volume group.

    vg0 {                                   a section: name, and what is in the braces
        seqno = 3                           a number, a "string" with \\ before what would end it, or
        status = ["RESIZEABLE", "READ"]     a list of these; # begins a comment
    }

Everything is counted: the text comes from the volume, and whoever wrote it may not have been LVM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from storage_node.mapping.reader import DamagedError

DEPTH_MAX: Final = 8
VALUES_MAX: Final = 500_000
"""Most names, numbers and strings of one text."""

Value = int | str | list["Value"] | dict[str, "Value"]
Section = dict[str, Value]

_TOKEN: Final = re.compile(
    r"""[ \t\r\n]+ | \#[^\n]*
      | (?P<word>[A-Za-z0-9_.+-]+)
      | "(?P<string>[^"\\]*+(?:\\.[^"\\]*+)*+)"
      | (?P<mark>[{}\[\]=,])""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def parse_text(text: str) -> Section:
    """Return the whole text as a section of nested dictionaries; `DamagedError` if it is not such a text."""
    parser = _Parser(text)
    return parser.section(depth=0)


def section(holder: Section, name: str) -> Section:
    """Return a section that must be there."""
    value = holder.get(name)
    if not isinstance(value, dict):
        raise DamagedError(f"LVM2 metadata: no section {name}")
    return value


def number(holder: Section, name: str, *, least: int = 0) -> int:
    """Return a number that must be there."""
    value = holder.get(name)
    if not isinstance(value, int) or value < least:
        raise DamagedError(f"LVM2 metadata: {name} is no number of at least {least}")
    return value


def string(holder: Section, name: str) -> str:
    """Return a string that must be there."""
    value = holder.get(name)
    if not isinstance(value, str):
        raise DamagedError(f"LVM2 metadata: {name} is no string")
    return value


def strings(holder: Section, name: str) -> list[str]:
    """Return a list of strings, or []."""
    value = holder.get(name)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


class _Parser:
    """One pass over the tokens, with one token looked at ahead."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next: tuple[str, str] = ("end", "")
        self._values = 0
        self._take()

    def _take(self) -> tuple[str, str]:
        token, self._next = self._next, next(self._tokens, ("end", ""))
        self._values += 1
        if self._values > VALUES_MAX:
            raise DamagedError(f"LVM2 metadata: more than {VALUES_MAX} values")
        return token

    def section(self, depth: int) -> Section:
        """Read what is in one pair of braces, or at depth 0 the whole text."""
        if depth > DEPTH_MAX:
            raise DamagedError(f"LVM2 metadata: nested deeper than {DEPTH_MAX}")
        found: Section = {}
        ending = ("mark", "}") if depth else ("end", "")
        while self._next != ending:
            kind, name = self._take()
            if kind != "word":
                raise DamagedError(f"LVM2 metadata: {name[:20]!r} where a name is expected")
            if name in found:
                raise DamagedError(f"LVM2 metadata: {name[:20]!r} stands there twice")
            mark = self._take()
            if mark == ("mark", "="):
                found[name] = self._value(depth + 1)
            elif mark == ("mark", "{"):
                found[name] = self.section(depth + 1)
            else:
                raise DamagedError(f"LVM2 metadata: neither = nor {{ behind {name[:20]!r}")
        self._take()
        return found

    def _value(self, depth: int) -> Value:
        if depth > DEPTH_MAX:
            raise DamagedError(f"LVM2 metadata: nested deeper than {DEPTH_MAX}")
        kind, text = self._take()
        if kind == "string":
            return text
        if kind == "word":
            return _whole(text)
        if (kind, text) != ("mark", "["):
            raise DamagedError(f"LVM2 metadata: {text[:20]!r} where a value is expected")
        found: list[Value] = []
        while self._next != ("mark", "]"):
            found.append(self._value(depth + 1))
            if self._next == ("mark", ","):
                self._take()
            elif self._next != ("mark", "]"):
                raise DamagedError("LVM2 metadata: a list without an end")
        self._take()
        return found


def _whole(text: str) -> int:
    """Names may begin with a digit, so that only the place tells a name from a number."""
    if _NUMBER.fullmatch(text) is None:
        raise DamagedError(f"LVM2 metadata: {text[:20]!r} is no number")
    return int(text.partition(".")[0])


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise DamagedError(f"LVM2 metadata: not understood at character {at}")
        at = match.end()
        kind = match.lastgroup
        if kind == "string":
            yield kind, _ESCAPED.sub(r"\1", match["string"])
        elif kind is not None:
            yield kind, match[kind]
