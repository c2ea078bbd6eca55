"""Patterns that pick paths, in the way of .gitignore and rsync.

    *.iso          the last component is called like this, in any directory: no slash, no place
    home/**        everything below `home` at the top; `home` itself is not meant
    home           anything called `home`, and, where patterns pick files, everything below it
    /home          the one at the top
    var/*/cache    `*` and `?` stay within a component, `**` goes over any number of them
    a[0-9].txt     one of these characters; `[!0-9]` none of these
    build/         only a directory
    \\*             a backslash takes the meaning from what follows
    \\xff           a byte that is no text; `\\x0a` and `\\u0085` are characters: names may be written as they are shown

A pattern is text; a path is decoded as UTF-8, and each byte that is none counts as one character, which the same byte
in a pattern matches (it came from a command line in the same way).

A pattern becomes a regular expression that never goes back: for each star the first place where the rest up to the
next star of its kind fits is as good as any later one.  So a hostile file name costs no more than its length.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Final

from backplane.errors import UsageError

PATTERN_CHARACTERS_MAX: Final = 4096
_ANY_COMPONENTS: Final = "**"
_BYTES: Final = 0xDC00
"""What `surrogateescape` adds to a byte that is no text."""

_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)


class Pattern:
    """A compiled pattern."""

    __slots__ = ("_matches", "picking", "text", "under")

    def __init__(self, text: str) -> None:
        """Compile; raises `UsageError` if the text means nothing."""
        plain = _unescaped(text)
        expression, is_directory_only = _expression(plain)
        self.text = text
        self._matches = re.compile(
            expression + (r"/\Z" if is_directory_only else r"/?\Z"), re.DOTALL
        )
        self.picking = expression + ("/" if is_directory_only else r"(?:/|\Z)")
        """What `AnyOf` puts together."""
        self.under = _literal_beginning(plain)
        """A path: whatever the pattern means is that, or below it.  Other pages need not be read."""

    def matches(self, path: bytes, *, is_directory: bool = False) -> bool:
        """Tell whether the pattern means exactly this path."""
        return self._matches.match(_subject(path, is_directory)) is not None


class AnyOf:
    """Patterns as those who pick files understand them: with a directory, all that is in it."""

    __slots__ = ("_picks",)

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        expression = "|".join(f"(?:{pattern.picking})" for pattern in patterns)
        self._picks = re.compile(expression, re.DOTALL) if expression else None

    def picks(self, path: bytes, *, is_directory: bool = False) -> bool:
        """Tell whether a pattern means this path, or a directory above it."""
        return self._picks is not None and bool(self._picks.match(_subject(path, is_directory)))


def spelled(text: str) -> str:
    """Return a pattern from a command line as text that can be sent: bytes that are none are spelled out."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - _BYTES:02x}", text)


def _unescaped(text: str) -> str:
    """Return a pattern with the characters that its numbers mean; whatever they are, they stand for themselves."""

    def character(found: re.Match[str]) -> str:
        byte, short, long, other = found.groups()
        if other is not None:
            return found[0]
        number = int(byte or short or long, 16)
        if number in (0, ord("/")) or number > sys.maxunicode:
            raise UsageError(f"{found[0]} in a pattern is no character of a name")
        return chr(_BYTES + number) if byte and number >= 0x80 else "\\" + chr(number)

    return _ESCAPE.sub(character, text)


def _subject(path: bytes, is_directory: bool) -> str:
    text = path.decode("utf-8", "surrogateescape")
    return text + "/" if is_directory and text else text


def _expression(text: str) -> tuple[str, bool]:
    """Return a regular expression for the beginning of a path, and whether a directory must follow."""
    components = _components(text)
    groups = _groups(components)
    if len(groups) == 1:
        return _group(groups[0]), text.endswith("/")
    first, *middle, last = groups
    expression = f"{_group(first)}/" if first else ""
    for group in middle:
        expression += f"(?>(?:[^/]+/)*?{_group(group)}/)"
    expression += f"(?:[^/]+/)*?{_group(last)}" if last else ".+"
    return expression, text.endswith("/")


def _components(text: str) -> list[str]:
    if not text or len(text) > PATTERN_CHARACTERS_MAX or "\0" in text:
        raise UsageError(f"no pattern has {len(text)} characters or a zero byte: {text[:100]!r}")
    components = [component for component in text.split("/") if component]
    if not components:
        raise UsageError(f"the pattern {text!r} names nothing", hint="`**` means everything")
    if "." in components or ".." in components:
        raise UsageError(f"the pattern {text!r} is relative", hint="paths begin at the top")
    if "/" not in text.rstrip("/"):
        components.insert(0, _ANY_COMPONENTS)
    return components


def _literal_beginning(text: str) -> bytes:
    beginning = []
    for component in _components(text):
        if set(component) & set("*?[\\"):
            break
        beginning.append(component.encode("utf-8", "surrogateescape"))
    return b"/".join(beginning)


def _groups(components: list[str]) -> list[list[str]]:
    """Return what stands before, between and behind the `**`; never two empty groups beside each other."""
    groups: list[list[str]] = [[]]
    for component in components:
        if component != _ANY_COMPONENTS:
            groups[-1].append(component)
        elif len(groups) == 1 or groups[-1]:
            groups.append([])
    return groups


def _group(components: list[str]) -> str:
    return "/".join(map(_component, components))


def _component(text: str) -> str:
    """Return the expression of one component; what follows it must be a slash or the end."""
    first, *more = _between_stars(text)
    if not more:
        return first
    *middle, last = more
    first = first or "(?=[^/])"  # a star may stand for nothing, a component may not
    return first + "".join(f"(?>[^/]*?{part})" for part in middle if part) + f"[^/]*{last}"


def _between_stars(text: str) -> list[str]:
    parts = [""]
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            parts.append("")
        elif character == "?":
            parts[-1] += "[^/]"
        elif character == "[" and (end := _class_end(text, at)):
            parts[-1] += _class(text[at:end])
            at = end + 1
        elif character == "\\":
            if at == len(text):
                raise UsageError(f"the pattern {text!r} ends with a backslash")
            parts[-1] += re.escape(text[at])
            at += 1
        else:
            parts[-1] += re.escape(character)
    return parts


def _class_end(text: str, at: int) -> int:
    """Return where the `]` is that ends a class, or 0: then the `[` is a bracket and nothing more."""
    at += text[at : at + 1] in ("!", "^")
    at += text[at : at + 1] == "]"
    while at < len(text):
        if text[at] == "]":
            return at
        at += 2 if text[at] == "\\" else 1
    return 0


def _class(text: str) -> str:
    is_negated = text[0] in "!^"
    members = re.findall(r"\\?(.)(?:(-)\\?(.))?", text[is_negated:], re.DOTALL)
    parts = []
    for first, dash, last in members:
        if dash and first > last:
            raise UsageError(f"the range {first}-{last} in a pattern is empty")
        parts.append(re.escape(first) + (f"-{re.escape(last)}" if dash else ""))
    return f"(?!/)[{'^' if is_negated else ''}{''.join(parts)}]"
