"""A catalog that is older than the tapes, and what it may not do until that is mended.

Nodes remember the highest epoch that they have seen.  One that this catalog never gave means that the catalog is a copy
from before, or a new one: there are backups on tape that it does not know.  It would give their numbers a second time,
and call cartridges free that are not.  So until `ctl catalog rebuild --all` has read the cartridges, or an operator has
said that nothing is missing (`ctl catalog accept`), nothing is written to any tape, and neither backups nor cartridges
are forgotten.  Restores and verifications go on.

Two counters say so, and survive restarts: `behind` is how often it was noticed, `caught-up` how often it was mended.
"""

from __future__ import annotations

from typing import Any, Final

from backplane.errors import RefusedError
from controller.core.desk import Desk
from controller.core.effects import Call

BEHIND: Final = "behind"
CAUGHT_UP: Final = "caught-up"

KINDS: Final = frozenset({"backup", "lane", "copy", "label"})
"""Jobs that write to tapes."""
VERBS: Final = frozenset({"backup.prune", "tape.forget"})

RECIPE: Final = "ctl catalog rebuild --all reads the cartridges; ctl catalog accept says that nothing is missing"


def is_behind(desk: Desk) -> bool:
    """Say whether there are backups on tape that the catalog may not know."""
    return desk.counter(BEHIND) > desk.counter(CAUGHT_UP)


def fall_behind(desk: Desk) -> None:
    """Note that the catalog is older than the tapes, and stop the jobs that would write to them."""
    if not is_behind(desk):
        desk.reach(BEHIND, desk.counter(CAUGHT_UP) + 1)
    for job in list(desk.jobs.values()):
        if job.row.kind in KINDS and not job.has_ended:
            desk.interrupt(job, refusal())


def catch_up(desk: Desk) -> None:
    """Note that the catalog knows what is on the tapes."""
    if is_behind(desk):
        desk.reach(CAUGHT_UP, desk.counter(BEHIND))


def refusal() -> RefusedError:
    """Return what is answered to whoever would write."""
    return RefusedError("the catalog is older than the tapes", hint=RECIPE)


def require_current(desk: Desk, verb: str, arguments: dict[str, Any]) -> None:
    """Raise `RefusedError` if a verb may not be carried out now."""
    is_writing = verb in VERBS or (verb == "job.submit" and arguments["kind"] in KINDS)
    if is_writing and is_behind(desk):
        raise refusal()


def accept(desk: Desk, call: Call) -> None:
    """Take an operator's word that nothing is missing."""
    was_behind = is_behind(desk)
    catch_up(desk)
    desk.answer(call.call, {"was_behind": was_behind})
