"""`ctl debug`: look at what goes over the wire."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click

from backplane.errors import UsageError
from backplane.scsi.copy_status import DISK_PARAMETERS, MOVER_PARAMETERS, WIDEST_PARAMETERS
from backplane.units import format_size
from controller.cli import decode as decoding
from controller.cli.decode import KINDS, Document
from controller.cli.options import PATH, Group, Settings
from controller.cli.render import Screen

INPUT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Longest input; the largest parameter list of a work item is below 1 MiB."""

_LIMITS: Final = {
    "any": WIDEST_PARAMETERS,
    "mover": MOVER_PARAMETERS,
    "disk": DISK_PARAMETERS,
}
_BETWEEN_DIGITS: Final = re.compile(r"0[xX]|[\s:,_-]+")
_NOT_HEX: Final = re.compile(r"[^0-9a-fA-F]")


@click.group(cls=Group)
def debug() -> None:
    """Look at what goes over the wire."""


@debug.command(
    examples=[
        "ctl debug decode --hex '83 00 00 00 00 00 00 00 00 00 00 00 00 74 00 00'",
        "ctl debug decode list.bin --as lid1 --limits mover --output json",
        "ctl debug decode sense.hex --as sense",
    ]
)
@click.argument("file", required=False, type=PATH)
@click.option("--hex", "hex_digits", metavar="H", help="The bytes as hex digits, instead of FILE.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(("auto", *KINDS)),
    default="auto",
    show_default=True,
    help="What the bytes are.",
)
@click.option(
    "--limits",
    type=click.Choice(tuple(_LIMITS)),
    default="any",
    show_default=True,
    help="Whose limits a parameter list is checked against: of our mover, of a disk, or none.",
)
@click.pass_obj
def decode(
    settings: Settings, file: Path | None, hex_digits: str | None, kind: str, limits: str
) -> None:
    """Show a copy command, its parameter list, status or sense data in words.

    FILE holds the bytes themselves, or hex digits as text; - is standard input.  Between hex digits there may be
    blanks, line ends, colons, commas, dashes and 0x.

    A parameter list that a copy manager would refuse is an error: exit code 1, and the message names the sense data
    that the copy manager would answer with.  So are bytes that are not what --as says.  Hex digits that cannot be
    read, and a FILE that cannot, are exit code 2.
    """
    data = _input(file, hex_digits)
    document = run_decode(data, kind=kind, limits=limits)
    screen = Screen(settings.output)
    if settings.output == "jsonl":
        for line in decoding.lines(document):
            screen.line(line)
    else:
        screen.show(document, table=lambda: decoding.page(document))


def run_decode(data: bytes, *, kind: str = "auto", limits: str = "any") -> Document:
    """Decode bytes of a kind, or of the kind that they look like."""
    if kind == "auto":
        return decoding.decode_anything(data, limits=_LIMITS[limits])
    return decoding.decode(data, kind, limits=_LIMITS[limits])


def _input(file: Path | None, hex_digits: str | None) -> bytes:
    if (file is None) == (hex_digits is None):
        raise UsageError("give either --hex or a FILE", hint="- as FILE reads standard input")
    if hex_digits is not None:
        return bytes_of_hex(hex_digits)
    assert file is not None
    data = _read(file)
    if len(data) > INPUT_BYTES_MAX:
        raise UsageError(f"{file}: longer than {format_size(INPUT_BYTES_MAX)}")
    text = _hex_text(data)
    return data if text is None else bytes_of_hex(text)


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    try:
        with file.open("rb") as stream:
            return stream.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def _hex_text(data: bytes) -> str | None:
    """Return the content of a file of hex digits; None if the file holds the bytes themselves.

    No parameter list, sense data or reply consists of printable hex digits only, so there is no doubt.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if text.strip() and not _NOT_HEX.search(_BETWEEN_DIGITS.sub("", text)) else None


def bytes_of_hex(text: str) -> bytes:
    """Return the bytes that hex digits stand for; raises `UsageError`."""
    digits = _BETWEEN_DIGITS.sub("", text)
    wrong = _NOT_HEX.search(digits)
    if wrong:
        raise UsageError(f"{wrong.group()!r} is no hex digit")
    if len(digits) % 2:
        raise UsageError(f"{len(digits)} hex digits: the last byte has only one")
    return bytes.fromhex(digits)
