"""What operators see: rows and live state as JSON documents.  Pure; `docs/operator-interface.md` describes them.

The ledger of a job is made here, from what every mover counted per logical unit:

    backup     read (disk) + padded = written (tape)      residual = planned - (written - padded - repeated)
    restore    read (tape) - discarded = written (disk)   residual = planned - written
    verify     read (tape) = discarded                    residual = planned - read

What movers reported counts, and *observed* is the difference between that and what the tape was seen to hold: records
of a mover that died before it could report, less those that a tape node lost before they were durable.  *Repeated* is
what was written on a cartridge that was given up, and again elsewhere.  The controller's own payload count is 0 because
it opens no data channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from backplane.errors import VolumeError
from backplane.ids import BackupId, NodeName
from backplane.scsi.sense import Sense, SenseError
from backplane.scsi.tape_alert import words_of
from backplane.wire.messages import LedgerEntry, ViewState
from controller.catalog.store import BackupRow, CartridgeRow, ItemRow, JobRow, PartRow, VolumeRow
from controller.core.allocation import place_of, state_of
from controller.core.chain import chain_of, needed_tags, why_broken
from controller.core.copies import Families, families, is_gone, parts_of
from controller.core.damage import damage_of
from controller.core.inactivity import in_force
from controller.core.lineage import COMPLETED, is_head, origin
from controller.core.prune import is_living
from controller.core.quiet_waits import writer_name
from controller.core.registry import Registry

_COLUMNS: Final = (
    "bytes_read",
    "bytes_written",
    "bytes_padded",
    "bytes_discarded",
    "records_read",
    "records_written",
    "filemarks_written",
    "rereads",
    "under_runs",
)

DATA_PURPOSES: Final = frozenset({"data", "restore", "verify"})


def json_text(value: dict[str, Any]) -> str:
    """Return the JSON text of a plan."""
    return json.dumps(value, sort_keys=True)


def deleted(row: VolumeRow) -> VolumeRow:
    """Return the row of a volume that is gone; backups go on naming it."""
    return replace(row, is_deleted=True)


def volume_document(registry: Registry, row: VolumeRow) -> dict[str, Any]:
    """Describe a volume."""
    state = registry.volume_state(row.volume)
    online = registry.is_online(row.node)
    return {
        "name": row.name,
        "volume": row.volume,
        "designator": row.designator.hex(),
        "node": row.node,
        "node_state": "online" if online else "away",
        "state": state.state if state is not None else ("missing" if online else "away"),
        "size_bytes": row.blocks * row.block_bytes,
        "blocks": row.blocks,
        "block_bytes": row.block_bytes,
        "used_bytes": state.used_bytes if state is not None else 0,
        "held_by": state.held_by if state is not None else 0,
        "is_empty": state.is_empty if state is not None else False,
        "path": state.path if state is not None else "",
        "created": row.created,
        **in_force(registry.inactivity, [row]).plan(),
        "idle_s": state.idle_s if state is not None else -1.0,
        "last_writer": writer_name(state.last_writer) if state is not None else "",
        "connections": state.connections if state is not None else 0,
        "is_read_only": state.is_read_only if state is not None else False,
        "nbd": _nbd_uris(registry, row.node, row.name),
        "legs": [
            {
                "leg": leg.name,
                "path": leg.path,
                "state": leg.state,
                "reason": leg.reason,
                "bytes_left": leg.bytes_left,
                "bytes_total": leg.bytes_total,
            }
            for leg in (state.legs if state is not None else ())
        ],
    }


def static_view_document(registry: Registry, node: NodeName, view: ViewState) -> dict[str, Any]:
    """Describe a static view."""
    row = registry.volumes.get(view.volume)
    name = row.name if row is not None else ""
    return {
        "view": view.view,
        "volume": name,
        "node": node,
        "job": view.job,
        "means": view.means,
        "state": view.state,
        "reason": view.reason,
        "used_bytes": view.used_bytes,
        "created": view.created,
        "consistency": view.consistency,
        "nbd": _nbd_uris(registry, node, f"{name}@{view.view}") if name else [],
    }


def _nbd_uris(registry: Registry, node: NodeName, export: str) -> list[str]:
    """Return where an export is, in the NBD project's URI format."""
    known = registry.nodes.get(node)
    uris = []
    for address in known.nbd_addresses if known is not None and known.is_online else ():
        scheme, _, rest = address.partition("://")
        if scheme == "unix":
            uris.append(f"nbd+unix:///{quote(export)}?socket={quote(rest)}")
        else:
            uris.append(f"nbd://{rest}/{quote(export)}")
    return uris


def cartridge_document(registry: Registry, row: CartridgeRow) -> dict[str, Any]:
    """Describe a cartridge: its status (what may be done with it) and its location (where it is)."""
    state = state_of(registry, row)
    if state is None:
        # No library says what it takes there: what the catalog has on it, which compression makes less.
        data = sum(part.stream_bytes for part in registry.parts_on(row.tag))
        used, records = data, data
    else:
        used, records = state.used_bytes, state.record_bytes
    is_held_there = state is not None and state.is_held
    return {
        "tag": row.tag,
        "cartridge": row.cartridge,
        "node": row.node,
        "status": row.status,
        "detail": row.detail or registry.missing.get(row.tag, ""),
        "location": place_of(row, state),
        "vault": row.vault,
        "pool": row.pool,
        "hold": row.hold or ("its node says so" if is_held_there else ""),
        "retain_until": max(row.retain_until, state.retain_until if state is not None else ""),
        "first_written": row.first_written,
        "last_written": row.last_written,
        "capacity_bytes": row.capacity_bytes,
        "used_bytes": used,
        "record_bytes": records,
        "is_used_known": state is not None,
        "end": state.end if state is not None else row.end,
        "parts": row.sequence,
        "generation": state.generation if state is not None else 0,
        "loads": state.loads if state is not None else 0,
        "alerts": list(words_of(state.alerts)) if state is not None else [],
        "read_errors": state.read_errors if state is not None else 0,
        "write_errors": state.write_errors if state is not None else 0,
        "is_worm": state is not None and state.is_worm,
        "is_write_protected": state is not None and state.is_write_protected,
        "is_out_of_space": state is not None and state.is_out_of_space,
    }


def part_document(part: PartRow, backup: BackupRow, registry: Registry) -> dict[str, Any]:
    """Describe a committed part; also one of which the cartridge was erased or forgotten since: that is its history."""
    is_away = is_gone(part, registry)
    # What somebody may want is never erased; another cartridge may have the barcode by now.
    is_forgotten = part.tag not in registry.cartridges or is_living(backup)
    return {
        "is_gone": is_away,
        "is_forgotten": is_away and is_forgotten,
        "backup": part.backup,
        "volume": backup.volume_name,
        "part": part.part,
        "tag": part.tag,
        "sequence": part.sequence,
        "header_object": part.header_object,
        "data_object": part.data_object,
        "trailer_object": part.trailer_object,
        "records": part.records,
        "record_bytes": backup.record_bytes,
        "stream_start": part.stream_start,
        "stream_bytes": part.stream_bytes,
        "root": part.root,
        "created": part.created,
    }


def backup_document(
    row: BackupRow,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families | None = None,
) -> dict[str, Any]:
    """Describe a backup, and what a restore of it needs: the backups on which it stands, and their cartridges."""
    parts = list(parts_of(row, registry))
    known = families(backups) if known is None else known
    try:
        chain = chain_of(row, backups)
        broken = why_broken(chain, registry, backups, known)
    except VolumeError as error:
        chain, broken = [row], error.message
    return {
        "backup": row.backup,
        "name": f"{row.volume_name}/{row.created}",
        "uuid": row.backup_uuid,
        "volume": row.volume_name,
        "volume_id": row.volume,
        "job": row.job,
        "created": row.created,
        "size_bytes": row.blocks * row.block_bytes,
        "blocks": row.blocks,
        "block_bytes": row.block_bytes,
        "stream_bytes": row.stream_bytes,
        "parts": len(parts),
        "tags": list(dict.fromkeys(part.tag for part in parts)),
        "state": row.state,
        "pool": row.pool,
        "consistency": row.consistency,
        "view_means": row.view_means,
        "level": row.level,
        "parent": row.parent,
        "chain": [member.backup for member in chain],
        "needs": needed_tags(chain, registry, backups, known),
        "broken": broken,
        "damage": damage_of(row),
        "copy_of": row.copy_of,
        "is_stand_in": bool(row.copy_of) and row.state == COMPLETED and is_head(row, backups),
        "copies": [each for each in known.get(origin(row), ()) if each != row.backup],
        "tracking": row.tracking,
        "generation": row.generation,
        "map_state": row.map_state,
        "files": row.files,
        "selection": json.loads(row.selection) if row.selection else None,
    }


def view_document(plan: dict[str, Any]) -> dict[str, Any]:
    """Describe how a backup's static view was asked for and made; empty for other jobs."""
    if "means" not in plan:
        return {}
    return {
        "asked": plan["means"],
        "means": plan.get("view_means", ""),
        "time": plan.get("view_time", ""),
    }


def _seconds_between(start: str, end: str) -> float:
    if not start or not end:
        return 0.0
    passed = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return max(0.0, passed)  # The clock on the wall may be set back.


def job_document(row: JobRow, *, wall: str, in_flight_bytes: int = 0) -> dict[str, Any]:
    """Describe a job in a line; `in_flight_bytes` is what its running item has moved so far."""
    ended = row.exit_code >= 0
    done = min(row.planned_bytes, row.done_bytes + (0 if ended else in_flight_bytes))
    if ended and row.exit_code == 0:
        done = row.planned_bytes
    elapsed = _seconds_between(row.started, row.ended or wall)
    part = (
        done / row.planned_bytes
        if row.planned_bytes
        else (1.0 if row.state == "completed" else 0.0)
    )
    return {
        "job": row.job,
        "kind": row.kind,
        "state": row.state,
        "reason": row.reason,
        "subject": row.subject,
        "volume": row.volume_name,
        "backup": row.backup,
        "submitted": row.submitted,
        "started": row.started,
        "ended": row.ended,
        "total_bytes": row.planned_bytes,
        "bytes_done": done,
        "percent_done": round(part, 6),
        "seconds_elapsed": elapsed,
        "seconds_remaining": 0.0
        if ended or not done
        else elapsed * (row.planned_bytes - done) / done,
        "seconds_copying": row.seconds_copying,
        "error_count": row.error_count,
        "exit_code": row.exit_code if ended else None,
    }


def sense_text(sense: bytes) -> str:
    """Return sense data in words; they came from a mover and may be anything."""
    if not sense:
        return ""
    try:
        return Sense.decode(sense).describe()
    except SenseError:
        return "no sense data that can be decoded"


def item_document(row: ItemRow) -> dict[str, Any]:
    """Describe a work item, the parameter list itself included."""
    return {
        "item": row.item,
        "purpose": row.purpose,
        "state": row.state,
        "attempt": row.attempt,
        "mover": row.movers[-1] if row.movers else "",
        "epoch": row.epoch,
        "parameter_list": row.parameter_list.hex(),
        "status": f"{row.status:02X}h" if row.status >= 0 else "",
        "sense": row.sense.hex(),
        "sense_text": sense_text(row.sense),
        "segments": row.segments,
        "seconds": row.seconds,
        "planned_bytes": row.planned_bytes,
        "ledger": json.loads(row.ledger),
        "detail": row.detail,
    }


def ledger_text(ledger: tuple[LedgerEntry, ...]) -> str:
    """Return a mover's ledger as the JSON text that an item's row keeps."""
    return json.dumps(
        [
            {"designator": entry.designator.hex(), "position": entry.position}
            | {column: getattr(entry, column) for column in _COLUMNS}
            for entry in ledger
        ]
    )


def _counted(item: ItemRow, moved: Mapping[str, int]) -> dict[str, int]:
    """Return what of an item's bytes counts for its job; the rest was moved again by a later item."""
    none = dict.fromkeys(moved, 0)
    if item.state == "done":
        return {**moved}
    if item.state != "failed" or item.purpose == "restore":
        return none
    if item.purpose == "verify":
        return none | {"read": moved["discarded"], "discarded": moved["discarded"]}
    # What was read ahead and did not reach the tape is read again by the next item.
    read = moved["written"] - moved["padded"]
    return none | {"read": read, "written": moved["written"], "padded": moved["padded"]}


def _note_again(
    devices: Mapping[str, dict[str, Any]],
    entries: Iterable[Mapping[str, Any]],
    column: str,
    excess: int,
) -> None:
    """Write down at its logical units what an item has read or written and a later one did again."""
    for entry in entries:
        here = min(max(0, excess), entry[f"bytes_{column}"])
        devices[entry["designator"]][f"again_{column}"] += here
        excess -= here


def ledger_document(
    job: JobRow, items: Iterable[ItemRow], *, names: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """Sum the ledgers of a job's items.  `names` maps designators (hex) to (name, role).

    `devices` has all that the movers counted.  Of that, `again_read` and `again_written` are not in the sums: a list
    that failed had moved them, and a later list did again.
    """
    devices: dict[str, dict[str, Any]] = {}
    total = dict.fromkeys(("read", "written", "padded", "discarded"), 0)
    metadata_written = 0
    for item in items:
        entries = json.loads(item.ledger)
        for entry in entries:
            name, role = names.get(entry["designator"], ("", ""))
            device = devices.setdefault(
                entry["designator"],
                {
                    "designator": entry["designator"],
                    "name": name,
                    "role": role,
                    **dict.fromkeys(_COLUMNS, 0),
                    "again_read": 0,
                    "again_written": 0,
                },
            )
            for column in _COLUMNS:
                device[column] += entry.get(column, 0)  # rows of earlier releases lack some
        moved = {column: sum(entry[f"bytes_{column}"] for entry in entries) for column in total}
        if item.purpose not in DATA_PURPOSES:
            metadata_written += moved["written"]
            continue
        counted = _counted(item, moved)
        for column in total:
            total[column] += counted[column]
        for column in ("read", "written"):
            _note_again(devices, entries, column, moved[column] - counted[column])
    plan = json.loads(job.plan)
    observed, repeated = plan.get("observed_bytes", 0), plan.get("repeated_bytes", 0)
    total["read"] += observed - plan.get("observed_padded", 0)
    total["padded"] += plan.get("observed_padded", 0)
    total["written"] += observed
    planned = job.planned_bytes
    if job.kind in ("import", "export"):
        planned = residual = 0  # The operator's own program moves the bytes; no mover counts them.
        balances = True
    elif job.kind == "verify":
        residual = job.planned_bytes - total["discarded"]
        balances = total["read"] == total["discarded"] + total["written"]
    elif job.kind in ("restore", "restore-lane"):
        residual = job.planned_bytes - (total["written"] - repeated)
        balances = total["read"] == total["discarded"] + total["written"]
    else:
        residual = job.planned_bytes - (total["written"] - total["padded"] - repeated)
        balances = total["read"] + total["padded"] == total["written"]
    return {
        # Not counted but certain: the program has no code for data channels (.importlinter, controller.__main__).
        "controller_payload_bytes": 0,
        "planned_bytes": planned,
        "read_bytes": total["read"],
        "written_bytes": total["written"],
        "padded_bytes": total["padded"],
        "discarded_bytes": total["discarded"],
        "observed_bytes": observed,
        "repeated_bytes": repeated,
        "again_read_bytes": sum(device["again_read"] for device in devices.values()),
        "again_written_bytes": sum(device["again_written"] for device in devices.values()),
        "metadata_bytes": metadata_written,
        "residual_bytes": residual,
        "is_balanced": balances and (residual == 0 or job.state != "completed"),
        "devices": list(devices.values()),
    }


def mover_documents(registry: Registry) -> list[dict[str, Any]]:
    """Describe all movers."""
    return [
        {
            "name": mover.name,
            "state": ("busy" if mover.item else "idle") if mover.is_online else "away",
            "since": mover.since,
            "item": mover.item,
            "job": mover.job,
            "bytes_read": mover.bytes_read,
            "bytes_written": mover.bytes_written,
        }
        for mover in sorted(registry.movers.values(), key=lambda each: each.name)
    ]


def node_documents(registry: Registry) -> list[dict[str, Any]]:
    """Describe all storage nodes."""
    return [
        {
            "name": node.row.name,
            "roles": list(node.row.roles),
            "state": "online" if node.is_online else "away",
            "since": node.since,
            "addresses": list(node.row.addresses),
            "volumes": sum(
                row.node == node.row.name and not row.is_deleted
                for row in registry.volumes.values()
            ),
            "cartridges": sum(row.node == node.row.name for row in registry.cartridges.values()),
            "drives": len(node.drives),
        }
        for node in sorted(registry.nodes.values(), key=lambda each: each.row.name)
    ]
