"""What operators see of libraries: drives and what they do, and what is asked of operators.  Pure.

The states of a drive are those of CTA, the tape archive of CERN, because tape people know them:

    Down          an operator has taken it out of service; nobody gets it
    Up            free
    Starting      a job has claimed it and has not used it yet
    Mounting      a cartridge is being put in, the label and the last trailer are being read
    Unmounting    a cartridge that another job has left in it is being taken out, and the next one put in
    Transferring  movers may read and write
    Unloading     an operator's call takes the cartridge out
    CleaningUp    its job has ended and fences it
    Unknown       its node is away

A drive that is put down while a job has it goes on with what it does, and is Down when the job gives it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from backplane.errors import NotFoundError, UsageError
from backplane.ids import Designator, Epoch, JobId, NodeName
from backplane.scsi.tape_alert import words_of
from backplane.wire.messages import DriveState
from controller.core.allocation import is_request
from controller.core.job import Job
from controller.core.registry import Registry

DOWN: Final = "Down"
UP: Final = "Up"
STARTING: Final = "Starting"
MOUNTING: Final = "Mounting"
UNMOUNTING: Final = "Unmounting"
TRANSFERRING: Final = "Transferring"
UNLOADING: Final = "Unloading"
CLEANING_UP: Final = "CleaningUp"
UNKNOWN: Final = "Unknown"

UNSEEN: Final = "unknown"
"""State of the medium of a drive of which its node has not told."""

DRIVE_EXAMPLE: Final = "drive-0"
DRIVE_NAME: Final = re.compile(r"drive-\d{1,2}", re.ASCII)


def known_drives(registry: Registry) -> list[tuple[NodeName, DriveState]]:
    """Return all drives in order: those that nodes have told of, and those of which only an operator has."""
    found = {
        (node.row.name, state.drive): state
        for node in registry.nodes.values()
        for state in node.drives.values()
    }
    for key in registry.drives:
        found.setdefault(key, unseen_drive(key[1]))
    return [(node, found[node, drive]) for node, drive in sorted(found)]


def unseen_drive(drive: str) -> DriveState:
    """Return the state of a drive of which its node has not told, since we began or at all."""
    return DriveState(
        drive=drive, designator=Designator(b""), state=UNSEEN, loaded="", epoch=Epoch(0)
    )


def drive_to_set(registry: Registry, name: str) -> tuple[NodeName, DriveState]:
    """Find a drive to say something of, also one of a tape node that is away: `find_drive`, and its `NODE/DRIVE`.

    What is said is remembered, and holds when the node is back; so it has to be one that could be there.
    """
    node_name, _, drive = name.rpartition("/")
    known = registry.nodes.get(NodeName(node_name))
    if known is not None and not known.is_online and "tape" in known.row.roles:
        is_told = drive in known.drives or (known.row.name, drive) in registry.drives
        if not is_told and not known.drives and DRIVE_NAME.fullmatch(drive):
            return known.row.name, unseen_drive(drive)
    return find_drive(registry, name)


def find_drive(registry: Registry, name: str) -> tuple[NodeName, DriveState]:
    """Find a drive by `NODE/DRIVE`, or by its name alone if only one node has one that is called so."""
    node_name, _, drive_name = name.rpartition("/")
    found = [
        (node, state)
        for node, state in known_drives(registry)
        if state.drive == drive_name and node_name in ("", node)
    ]
    if not found:
        away = [
            node.row.name
            for node in registry.nodes.values()
            if "tape" in node.row.roles and not node.is_online and not node.drives
        ]
        hint = "ctl drive list shows them"
        if away:
            hint += f"; one of {min(away)}, which is away, is called {min(away)}/{DRIVE_EXAMPLE}"
        raise NotFoundError(f"no drive is called {name!r}", hint=hint)
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} nodes have a drive {name}", hint=f"NODE/{name}; ctl drive list"
        )
    return found[0]


def activity_of(
    registry: Registry, jobs: Mapping[JobId, Job], node: NodeName, drive: str
) -> tuple[str, str]:
    """Return the state of a drive, and the reason for it."""
    known = registry.nodes.get(node)
    row = registry.drives.get((node, drive))
    said = row.reason if row is not None and row.is_down else ""
    if known is None or not known.is_online:
        return UNKNOWN, said or f"storage node {node} is away"
    holder = registry.drive_claims.get((node, drive))
    if holder is not None:
        job = jobs.get(holder)
        if job is not None and "ending" in job.plan:
            return CLEANING_UP, said
        return registry.drive_activity.get((node, drive), STARTING), said
    if row is not None and row.is_down and drive in known.drives:
        return DOWN, said
    by_hand = registry.drives_by_hand.get((node, drive), "")
    if by_hand:
        return (UNLOADING if by_hand.startswith("unload") else MOUNTING), by_hand
    state = known.drives.get(drive)
    if state is None:
        return UNKNOWN, f"storage node {node} has no such drive"
    if state.needs_cleaning:
        return UP, "asks for a cleaning cartridge"
    return UP, "the last write failed" if state.state == "error" else ""


def drive_documents(registry: Registry, jobs: Mapping[JobId, Job]) -> list[dict[str, Any]]:
    """Describe all drives."""
    return [
        drive_document(registry, jobs, node, state)
        for node, state in known_drives(registry)
        # Of one that is up, or was never there, there is nothing to tell.
        if state.state != UNSEEN or registry.drives[node, state.drive].is_down
    ]


def drive_document(
    registry: Registry, jobs: Mapping[JobId, Job], node: NodeName, state: DriveState
) -> dict[str, Any]:
    """Describe a drive."""
    activity, reason = activity_of(registry, jobs, node, state.drive)
    row = registry.drives.get((node, state.drive))
    return {
        "drive": state.drive,
        "node": node,
        "name": f"{node}/{state.drive}",
        "designator": state.designator.hex(),
        "state": activity,
        "reason": reason,
        "is_down": row is not None and row.is_down,
        "since": row.since if row is not None else "",
        "tag": state.loaded,
        "job": registry.drive_claims.get((node, state.drive), 0),
        "medium": state.state,
        "product": state.product,
        "serial": state.serial,
        "alerts": list(words_of(state.alerts)),
        "loads": state.loads,
        "needs_cleaning": state.needs_cleaning,
        "read_errors": state.read_errors,
        "write_errors": state.write_errors,
        "usage": asdict(state.usage[0]) if state.usage else None,
    }


def request_documents(jobs: Mapping[JobId, Job]) -> list[dict[str, Any]]:
    """Describe what jobs ask of operators."""
    return [
        {"job": job.row.job, "request": job.row.reason.removeprefix("waiting: ")}
        for job in sorted(jobs.values(), key=lambda each: each.row.job)
        if not job.has_ended and is_request(job.row.reason)
    ]


def status_document(registry: Registry, jobs: Mapping[JobId, Job]) -> dict[str, Any]:
    """Describe the libraries at a glance: drives, requests, and how many cartridges have which status."""
    statuses: dict[str, int] = {}
    for row in registry.cartridges.values():
        statuses[row.status] = statuses.get(row.status, 0) + 1
    return {
        "drives": drive_documents(registry, jobs),
        "requests": request_documents(jobs),
        "cartridges": dict(sorted(statuses.items())),
    }
