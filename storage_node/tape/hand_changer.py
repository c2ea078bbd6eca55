"""Drives that a person loads: a `Changer` that has drives for elements, and moves nothing.

What is in them is told by whoever has looked: a cartridge is then in its drive until it is given out, and nowhere after
that, which is on somebody's shelf.
"""

from __future__ import annotations

from typing import Final

from backplane.errors import RefusedError
from storage_node.core.changer import REMOVAL_PREVENTED, ElementStatus

BY_HAND: Final = "put it into a drive, and then: ctl tape scan"


class HandChanger:
    """Implements `Changer`."""

    def __init__(self, drives: int) -> None:
        self._tags = {f"drive-{number}": "" for number in range(drives)}
        self._held: set[str] = set()

    def put(self, drive: str, tag: str) -> None:
        """Take down what somebody has put into a drive; "" for nothing."""
        self._tags[drive] = tag

    def initialize(self) -> None:
        """Look into every element: nobody here has eyes."""

    def elements(self) -> tuple[ElementStatus, ...]:
        """Return the drives."""
        return tuple(
            ElementStatus(element=name, tag=tag, is_removal_prevented=name in self._held)
            for name, tag in self._tags.items()
        )

    def move(self, source: str, destination: str) -> str:
        """Raise `RefusedError`: there is nobody to do it."""
        raise RefusedError(
            f"there is no changer: nothing moves from {source} to {destination}",
            hint=BY_HAND,
            sense=REMOVAL_PREVENTED,
        )

    def prevent(self, drive: str, *, is_prevented: bool) -> None:
        """Say whether a drive holds on to its cartridge."""
        if is_prevented:
            self._held.add(drive)
        else:
            self._held.discard(drive)
