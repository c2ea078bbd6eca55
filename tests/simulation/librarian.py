"""Who looks after the tapes: prunes backups, labels and handles cartridges and drives, and brings what jobs ask for.

A second operator at a terminal of its own, so that a call that waits for a node holds up nobody else.  During the
chaos it does what comes to its mind; afterwards it tidies up: every drive is up, every cartridge is in its slot,
nothing is held, and whoever waits for a cartridge gets a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from backplane.testing.simulator import Simulation
from tests.simulation.workload import OperatorHost

LOOK_S: Final = 4.0
"""Before a call that was refused is made again."""

TRIES_MAX: Final = 30
NEW_MAX: Final = 20
"""New cartridges of one seed; the library has room for them."""

NEW_BYTES: Final = 1 << 26
CLEANER: Final = "CLN001L1"
"""The barcode of a cleaning cartridge."""

COPIES: Final = "copies"
"""The pool of second copies."""

_FOR_POOL: Final = re.compile(r"waiting: (scratch|a) cartridge for pool ")
_FOR_TAG: Final = re.compile(r"waiting: cartridge (\S+) \(")


@dataclass(frozen=True, slots=True)
class Habits:
    """How often things are done, per second, and how pools take cartridges."""

    prunes: float = 0.0
    hands: float = 0.0
    """Something is done with a cartridge or a drive."""
    labels: float = 0.0
    """A cartridge is to be labelled, whatever is on it: what somebody may want has to be refused."""
    news: float = 1.0
    """Probability that a job that is seen waiting for a cartridge gets a new one; it always does in the end."""
    worm: float = 0.0
    """Share of the new ones that can be written only once, as long as it is not tidied up."""
    allocation: str = "continue"
    retain: str = "0"


@dataclass(slots=True)
class Librarian:
    """The second operator."""

    simulation: Simulation
    operator: OperatorHost
    habits: Habits
    drives: list[str]
    tags: list[str]
    _is_tidy: bool = False
    _new: int = 0
    _down: set[str] = field(default_factory=set)
    _held: set[str] = field(default_factory=set)
    _away: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        """Make the pools."""
        habits = self.habits
        how = {"allocation": habits.allocation, "retain": habits.retain}
        self._call("pool.set", name="default", **how)
        self._call("pool.create", name=COPIES, scratch=True, **how)

    def start(self) -> None:
        """Work, until `tidy_up`."""
        self.simulation.after(1.0, self._second)

    def tidy_up(self) -> None:
        """The last fault is over."""
        self._is_tidy = True
        for drive in sorted(self._down):
            self._insist("drive.up", drive=drive)
        for tag in sorted(self._held):
            self._insist("tape.unprotect", tag=tag)
        for tag in sorted(self._away):
            self._insist("tape.import", tag=tag)

    def _insist(self, verb: str, *, tries: int = TRIES_MAX, **arguments: Any) -> None:
        """Call again while it is refused: the node of the library may be away still."""

        def done(document: dict[str, Any] | None) -> None:
            if document is None and tries:
                again = partial(self._insist, verb, tries=tries - 1, **arguments)
                self.simulation.after(LOOK_S, again)

        self.operator.call(verb, done, **arguments)

    def _call(self, verb: str, **arguments: Any) -> None:
        def done(document: dict[str, Any] | None) -> None:
            if document is not None:
                self.simulation.probe(f"operator: {verb}")

        self.operator.call(verb, done, **arguments)

    # --- by whim ---------------------------------------------------------------------------------

    def _second(self) -> None:
        if self._is_tidy:
            return
        if self.simulation.chance(self.habits.prunes):
            self.operator.call("backup.list", self._prune, volume="")
        if self.simulation.chance(self.habits.hands):
            self._handle()
        if self.simulation.chance(self.habits.labels):
            self._label()
        self.simulation.after(1.0, self._second)

    def _prune(self, document: dict[str, Any] | None) -> None:
        random = self.simulation.random
        found = [] if document is None else document["backups"]
        numbers = [str(each["backup"]) for each in found if each["state"] == "completed"]
        if numbers:
            chosen = random.sample(numbers, random.randint(1, len(numbers)))
            self._call("backup.prune", backups=chosen)

    def _label(self) -> None:
        random = self.simulation.random
        self._call(
            "job.submit",
            token=random.randbytes(8).hex(),
            kind="label",
            tag=random.choice(self.tags),
            pool=random.choice(("", "default", COPIES)),
            force=random.random() < 0.5,
        )

    def _handle(self) -> None:
        random = self.simulation.random
        tag, drive = random.choice(self.tags), random.choice(self.drives)
        match random.randrange(10):
            case 0 | 1:
                self._call("tape.unload", name=random.choice((tag, drive)))
            case 2:
                self._call("tape.load", tag=tag, drive=random.choice(("", drive)))
            case 3:
                self._away.add(tag)
                self._call("tape.export", tag=tag)
            case 4:
                self._call("tape.import", tag=tag)
            case 5:
                self._down.add(drive)
                self._call("drive.down", drive=drive, reason="it squeaks")
                back = random.uniform(1.0, 20.0)
                self.simulation.after(back, lambda: self._call("drive.up", drive=drive))
            case 6:
                self._held.add(tag)
                self._call("tape.protect", tag=tag, reason="the auditors come")
            case 7:
                self._call("tape.scan", node="")
            case _:
                # Refused where there is none.
                self._call("tape.load", tag=CLEANER, drive=drive)

    # --- what jobs ask for -----------------------------------------------------------------------

    def look(self, document: dict[str, Any] | None) -> None:
        """Look at what the other operator has been told of all jobs."""
        for job in [] if document is None else document["jobs"]:
            if job["exit_code"] is not None:
                continue
            if _FOR_POOL.match(job["reason"]):
                self.simulation.probe("a job asks for a cartridge")
                if self._is_tidy or self.simulation.chance(self.habits.news):
                    self._bring_new()
                    return  # One at a time: it may do for all.
            if found := _FOR_TAG.match(job["reason"]):
                self.simulation.probe("a job asks for one cartridge")
                self._call("tape.import", tag=found[1])

    def _bring_new(self) -> None:
        if self._new < NEW_MAX:
            self._new += 1
            tag = f"NEW{self._new:03}L8"
            self.tags.append(tag)
            is_worm = not self._is_tidy and self.simulation.chance(self.habits.worm)
            self._call("tape.add", tag=tag, capacity_bytes=NEW_BYTES, node="", worm=is_worm)
