"""Names and paths of files as people can be told them: nothing that a terminal would obey, and no two alike."""

from __future__ import annotations

from typing import Final

PATH_SHOWN_MAX: Final = 200


def shown(path: bytes) -> str:
    """Return a path, or the beginning of a long one, as people can be told."""
    return printable_name(path[:PATH_SHOWN_MAX]) or "/"


def printable_name(name: bytes) -> str:
    """Return a name or path so that it can be printed, and no two of them in the same way."""
    return printable(name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return a text with what cannot be printed written as numbers."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
