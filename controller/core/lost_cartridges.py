"""Taking a cartridge out of the catalog that was destroyed, or that nobody will ever find: what it costs, and doing it.

Nothing is erased by this: the catalog only stops to count on what was on it.  Its row goes, the rows of its parts stay
as history, and are `gone` from then on, as those of a cartridge that was labelled anew are.  So everything that chooses
where to read (`copies`), what to stand on (`chain`) and what to keep (`prune`) goes another way, or says what it lacks.

    backup has a part on it          another copy has the same     then
    yes                              all of it                     restored from that copy, as before
    yes, and others elsewhere        no                            lacks a part: --keep-going restores the rest
    yes, all of it                   no                            nothing of it is left
    no, but it stands on such a one  no                            its chain is broken
    no, it is read from such a one   no                            it is lost with it

Whoever asks brings the `consent` that stands for the losses as they were shown: if they are others by now, nothing
happens.
What is in a library is not lost, what is held or retained is not given up by mistake, what a job works with is busy.

Should the cartridge turn up again, an inventory finds a label of this catalog that the catalog does not know: it is
`foreign`, nobody writes it, and `ctl catalog rebuild --from TAG` makes all good that was said of it here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backplane.errors import BusyError, RefusedError, RetainedError, VolumeError
from backplane.ids import BackupId, VolumeTag
from controller.catalog.store import BackupRow, CartridgeRow, DropRow
from controller.core.allocation import place_of, state_of
from controller.core.chain import chain_of, is_lost, why_broken
from controller.core.copies import Families, families, is_gone, others_of, parts_of
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.job import Job
from controller.core.library import check_unused
from controller.core.lineage import children_of, origin
from controller.core.prune import is_living, users_of
from controller.core.registry import Registry

WHOLE: Final = "whole"
PARTIAL: Final = "partial"
LOST: Final = "lost"
CHAIN: Final = "chain"
"""What becomes of a backup, as the module has it."""

NAMED_MAX: Final = 8
"""Backups that one sentence names."""

LISTED_MAX: Final = 1000
"""Backups that a document lists; all are counted, and all are in the consent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A backup that loses something with a cartridge: `parts` of its own, or what it stands on."""

    row: BackupRow
    parts: int
    parts_total: int
    stream_bytes: int
    outcome: str
    words: str

    def document(self) -> dict[str, Any]:
        """Describe it."""
        return {
            "backup": self.row.backup,
            "name": f"{self.row.volume_name}/{self.row.created}",
            "level": self.row.level,
            "parent": self.row.parent,
            "copy_of": self.row.copy_of,
            "parts": self.parts,
            "parts_total": self.parts_total,
            "stream_bytes": self.stream_bytes,
            "outcome": self.outcome,
            "words": self.words,
        }


def without(registry: Registry, tag: VolumeTag) -> Registry:
    """Return a registry for looking at only, in which there is no such cartridge."""
    after = copy.copy(registry)
    after.cartridges = {key: row for key, row in registry.cartridges.items() if key != tag}
    return after


def losses(registry: Registry, backups: Mapping[BackupId, BackupRow], tag: VolumeTag) -> list[Loss]:
    """Return the backups that somebody may want, and that have less without a cartridge than with it; by number."""
    after, known = without(registry, tag), families(backups)
    on_it: dict[BackupId, list[int]] = {}
    for part in registry.parts_on(tag):
        row = backups.get(part.backup)
        if row is not None and is_living(row):
            on_it.setdefault(row.backup, []).append(part.stream_bytes)
    found = [
        _own_loss(backups[number], sizes, after, backups, known) for number, sizes in on_it.items()
    ]
    for row, other in _relying_on(on_it, backups, known):
        was_whole = not _why_broken(row, registry, backups, known)
        if was_whole and _why_broken(row, after, backups, known):
            found.append(_others_loss(row, backups[other], after))
    return sorted(found, key=lambda each: each.row.backup)


def _others_loss(row: BackupRow, other: BackupRow, after: Registry) -> Loss:
    """Return what a backup loses that has nothing on the cartridge itself."""
    outcome, words = CHAIN, f"its chain is broken: it stands on backup {other.backup}"
    if origin(row) == origin(other):
        outcome = LOST if is_lost(row, after) else PARTIAL
        words = f"what it lacks is read from backup {other.backup} now, and nothing else has it"
    return Loss(
        row=row,
        parts=0,
        parts_total=len(list(parts_of(row, after))),
        stream_bytes=0,
        outcome=outcome,
        words=words,
    )


def _own_loss(
    row: BackupRow,
    sizes: list[int],
    after: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> Loss:
    parts = list(parts_of(row, after))
    left = sum(not is_gone(part, after) for part in parts)
    others = others_of(row, backups, known)
    outcome = PARTIAL
    words = f"{left} of {len(parts)} parts are left: --keep-going restores what is on them"
    if others and not _why_broken(row, after, backups, known):
        outcome, words = WHOLE, f"can still be restored: {_copies_in_words(others)}"
    elif not left and not any(_has_parts(backups[each], after) for each in others):
        outcome, words = LOST, "nothing of it is left"
    elif not left:
        words = f"only what is left of {_copies_in_words(others)}: --keep-going restores that"
    return Loss(
        row=row,
        parts=len(sizes),
        parts_total=len(parts),
        stream_bytes=sum(sizes),
        outcome=outcome,
        words=words,
    )


def _has_parts(row: BackupRow, registry: Registry) -> bool:
    return any(not is_gone(part, registry) for part in parts_of(row, registry))


def _copies_in_words(others: list[BackupId]) -> str:
    names = ", ".join(map(str, others[:NAMED_MAX]))
    return f"backup {names} of the same data" if len(others) == 1 else f"backups {names} of it"


def _relying_on(
    on_it: Mapping[BackupId, object], backups: Mapping[BackupId, BackupRow], known: Families
) -> Iterator[tuple[BackupRow, BackupId]]:
    """Yield all that stand on some backups, or are their copies, and are none of them; each with the other one."""
    children = children_of(backups)
    seen, todo = set(on_it), list(on_it)
    while todo:
        number = todo.pop()
        row = backups[number]
        others = [backups[each] for each in others_of(row, backups, known)]
        for each in [*others, *children.get(origin(row), ())]:
            if each.backup not in seen and each.state == "completed":
                seen.add(each.backup)
                todo.append(each.backup)
                yield each, number


def _why_broken(
    row: BackupRow,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> str:
    try:
        return why_broken(chain_of(row, backups), registry, backups, known)
    except VolumeError as error:
        return error.message


def consent_to(found: Sequence[Loss]) -> str:
    """Return what stands for having been shown these losses; empty if there are none."""
    told = ", ".join(f"{each.row.backup} {each.outcome}" for each in found)
    return hashlib.sha256(told.encode()).hexdigest() if told else ""


# --- verbs ---------------------------------------------------------------------------------------


def losses_document(desk: Desk, tag: str, *, is_despite_retention: bool) -> dict[str, Any]:
    """Say what taking a cartridge out of the catalog would cost; raises what refuses it, whatever it costs."""
    row = desk.registry.cartridge(tag)
    _require_forgettable(desk, row, is_despite_retention=is_despite_retention)
    return _document(desk, row, losses(desk.registry, desk.backups, row.tag))


def forget(desk: Desk, call: Call) -> None:
    """Take a cartridge out of the catalog.  One that is not in it is no error: it may have been asked for twice.

    `unseen` says that its node need not be there to say that it does not have it.
    """
    arguments = call.arguments
    row = desk.registry.cartridges.get(VolumeTag(arguments["tag"]))
    if row is None:
        nothing = {"tag": arguments["tag"], "forgotten": False, "backups": [], "backups_count": 0}
        desk.answer(call.call, nothing)
        return
    _require_forgettable(desk, row, is_despite_retention=arguments["retained"])
    if not desk.registry.is_online(row.node) and not arguments["unseen"]:
        raise BusyError(
            f"storage node {row.node} is away: nobody can see that cartridge {row.tag} is not in its library",
            hint="start it; or ctl tape forget asks, and with --yes does not",
        )
    found = losses(desk.registry, desk.backups, row.tag)
    if arguments["consent"] != consent_to(found):
        names = ", ".join(f"{each.row.backup} ({each.words})" for each in found[:NAMED_MAX])
        more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
        raise RefusedError(
            f"cartridge {row.tag} has what backups need: {names or 'none any more'}{more}",
            hint=f"ctl tape forget {row.tag} --dry-run shows all of it, --yes accepts it",
        )
    document = _document(desk, row, found)
    desk.record(DropRow(row=row))
    desk.registry.kept.pop(row.tag, None)
    if found:
        names = ", ".join(str(each.row.backup) for each in found[:NAMED_MAX])
        more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
        desk.alarm(
            f"cartridge {row.tag} was taken out of the catalog, with data of backups {names}{more}"
        )
    for job in _jobs_that_use(desk, found):
        desk.log(job, "warning", f"cartridge {row.tag} was taken out of the catalog by an operator")
    desk.answer(call.call, document | {"forgotten": True})


def _require_forgettable(desk: Desk, row: CartridgeRow, *, is_despite_retention: bool) -> None:
    state = state_of(desk.registry, row)
    if state is not None:
        raise RefusedError(
            f"cartridge {row.tag} is at {state.element or 'a place'} of node {row.node}: "
            "what is in a library is not lost",
            hint=f"ctl tape retire {row.tag}; or ctl tape export {row.tag}, take it out, ctl tape scan",
        )
    check_unused(desk, row)
    for job in desk.jobs.values():
        _require_unused_by(job, row, desk)
    if row.hold:
        raise RetainedError(
            f"cartridge {row.tag} is held: {row.hold}", hint=f"ctl tape unprotect {row.tag} first"
        )
    if row.retain_until > desk.wall and not is_despite_retention:
        raise RetainedError(
            f"cartridge {row.tag} is retained until {row.retain_until}",
            hint="--retained says that it is destroyed, or lost for good, all the same",
        )


def _require_unused_by(job: Job, row: CartridgeRow, desk: Desk) -> None:
    """Raise `BusyError` for a job that counts on the cartridge and could not go on without it."""
    backup = desk.backups.get(job.row.backup)
    is_writing = backup is not None and backup.state == "building"
    parts = desk.registry.parts_of(job.row.backup) if is_writing else []
    has_begun = any(part.tag == row.tag and part.cartridge == row.cartridge for part in parts)
    if job.row.kind == "rebuild":
        has_begun = row.tag in job.plan["tags"][job.plan["at"] :]
    if has_begun and not job.has_ended:
        what = "reads it" if job.row.kind == "rebuild" else "has written a part on it"
        raise BusyError(
            f"job {job.row.job} ({job.row.kind}) {what}: cartridge {row.tag}",
            hint="wait, or cancel the job",
        )


def _document(desk: Desk, row: CartridgeRow, found: list[Loss]) -> dict[str, Any]:
    return {
        "tag": row.tag,
        "cartridge": row.cartridge,
        "status": row.status,
        "location": place_of(row, None),
        "node": row.node,
        "is_node_online": desk.registry.is_online(row.node),
        "retain_until": row.retain_until,
        "backups": [each.document() for each in found[:LISTED_MAX]],
        "backups_count": len(found),
        "consent": consent_to(found),
        "jobs": [job.row.job for job in _jobs_that_use(desk, found)],
        "schedules": _schedules_for(desk.registry, row),
    }


def _jobs_that_use(desk: Desk, found: list[Loss]) -> list[Job]:
    """Return the active jobs that read a backup which loses something, or may come to stand on it."""
    lost = {each.row.backup for each in found}
    return [
        job
        for number, job in sorted(desk.jobs.items())
        if lost & users_of(desk.backups, {number: job}).keys()
    ]


def _schedules_for(registry: Registry, row: CartridgeRow) -> list[str]:
    """Return the schedules that name the cartridge: nothing will come of them."""
    return sorted(
        each.schedule
        for each in registry.schedules.values()
        if json.loads(each.arguments).get("tag") == row.tag
    )
