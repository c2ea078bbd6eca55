"""What all checkers have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class Violation(Exception):  # noqa: N818 - what it is called everywhere
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


@dataclass(frozen=True, slots=True)
class Window:
    """A look at the media, as a loss of power at this moment would leave them."""

    tape: Callable[[str], bytes]
    """The data file of the cartridge with this barcode."""
    volume: Callable[[str], bytes]
    """The content of a volume."""


class Checker(Protocol):
    """Sees every fact as it happens; raises `Violation`."""

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""

    def finish(self) -> None:
        """Judge the end of the run."""


def kind(row: object) -> str:
    """Return the name of a row's or message's type: all that is known of it here."""
    return type(row).__name__
