"""Checkers: what must hold of a site, judged by somebody who shares no code with it.

They see facts (`tests/simulation/facts.py`): rows and messages as values, bytes as media took them.  They parse tapes
with a reader of their own.  Nothing here imports the system.

    backups    I1, I2   what is catalogued reads back from the medium, now and later; nothing is committed twice
    fences     I3       nothing below a fence that was told reaches a medium
    epochs     I4       epochs only grow, are durable before they are used, and are used once
    drives     I14      no drive and no cartridge has two users, and in the end none
    jobs       I5, I12  jobs never vanish, never go back, and end for a reason
    volumes    I6, I10  online means wholly restored and then only what the workstation wrote; views do not change
    ledgers    I13      byte counts conserve
"""

from tests.simulation.checkers.backups import BackupChecker
from tests.simulation.checkers.drives import DriveChecker
from tests.simulation.checkers.epochs import EpochChecker
from tests.simulation.checkers.fences import FenceChecker
from tests.simulation.checkers.interface import Checker, Violation, Window
from tests.simulation.checkers.jobs import JobChecker
from tests.simulation.checkers.ledgers import LedgerChecker
from tests.simulation.checkers.volumes import VolumeChecker

__all__ = ["Checker", "Violation", "Window", "all_checkers"]


def all_checkers(window: Window) -> list[Checker]:
    """Return one of each, for one run."""
    return [
        FenceChecker(),
        EpochChecker(),
        JobChecker(),
        DriveChecker(),
        VolumeChecker(window),
        BackupChecker(window),
        LedgerChecker(),
    ]
