"""What operators say of cartridges: held, retired, of a pool, in a vault, right after all."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.ids import NodeName
from controller.catalog.store import CartridgeRow
from controller.core import documents
from controller.core.allocation import is_unused, state_of
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.library import check_unused
from controller.core.media import ask_retain
from controller.core.procedure import Procedure

SETTABLE: Final = ("blank", "writable", "full", "error", "retired", "cleaning")
"""Statuses that an operator may give; the others are found, not given."""

REASON_CHARACTERS_MAX: Final = 200
VAULT_CHARACTERS_MAX: Final = 64


def protect(desk: Desk, call: Call) -> None:
    """Hold a cartridge: it is not erased, whatever its retention says, until somebody lets it go.

    The catalog holds it at once.  Its node is told, now or when the cartridge is in a library again.
    """
    row = desk.registry.cartridge(call.arguments["tag"])
    reason = call.arguments["reason"].strip()
    if not reason or len(reason) > REASON_CHARACTERS_MAX:
        raise UsageError(f"a hold has a reason of 1 to {REASON_CHARACTERS_MAX} characters")
    for job in desk.jobs.values():
        if job.plan.get("erase") and job.plan.get("tag") == row.tag:
            raise RefusedError(f"job {job.row.job} is about to erase cartridge {row.tag}")
    row = replace(row, hold=reason)
    desk.record(row)
    if state_of(desk.registry, row) is None:
        _answer(desk, call, row)
    else:
        desk.spawn(_tell(desk, call, row, lets_go=False), call=call.call)


def unprotect(desk: Desk, call: Call) -> None:
    """Let a cartridge go.

    If its node does not hear of it, because it is away or in no library, the cartridge stays held there, which keeps it
    as well as before: it is let go once more when it is back.
    """
    row = replace(desk.registry.cartridge(call.arguments["tag"]), hold="")
    desk.record(row)
    if state_of(desk.registry, row) is None:
        _answer(desk, call, row)
    else:
        desk.spawn(_tell(desk, call, row, lets_go=True), call=call.call)


def _tell(desk: Desk, call: Call, row: CartridgeRow, *, lets_go: bool) -> Procedure:
    yield ask_retain(desk.registry, row.tag, lets_go=lets_go)
    _answer(desk, call, desk.registry.cartridge(row.tag))


def set_cartridge(desk: Desk, call: Call) -> None:
    """Change the status, the home or the pool of a cartridge; what is empty stays."""
    arguments = call.arguments
    row = desk.registry.cartridge(arguments["tag"])
    check_unused(desk, row)
    if arguments["node"]:
        row = _at_home(desk, row, arguments["node"])
    if arguments["pool"]:
        if row.status == "cleaning":
            raise RefusedError(
                f"cartridge {row.tag} is a cleaning cartridge: it belongs to no pool"
            )
        if not is_unused(row):
            raise RefusedError(
                f"cartridge {row.tag} has data of pool {row.pool or '-'}",
                hint="a cartridge changes its pool only when it is labelled",
            )
        pool = "" if arguments["pool"] == "scratch" else desk.registry.pool(arguments["pool"]).pool
        row = replace(row, pool=pool)
    if arguments["status"]:
        row = _with_status(desk, row, arguments["status"])
    desk.record(row)
    _answer(desk, call, row)


def _at_home(desk: Desk, row: CartridgeRow, name: str) -> CartridgeRow:
    node = desk.registry.online_node("tape", name=name)
    state = node.cartridges.get(row.tag)
    if state is None:
        raise NotFoundError(f"storage node {name} has no cartridge {row.tag}")
    if state.cartridge != row.cartridge:
        raise RefusedError(
            f"cartridge {row.tag} at {name} is another one: its label says "
            f"{state.cartridge or 'nothing'}, the catalog {row.cartridge or 'nothing'}"
        )
    return replace(row, node=NodeName(node.row.name))


def _with_status(desk: Desk, row: CartridgeRow, status: str) -> CartridgeRow:
    if status not in SETTABLE:
        raise UsageError(f"{status!r} is no status to give", hint=f"one of {', '.join(SETTABLE)}")
    state = state_of(desk.registry, row)
    is_cleaner = state is not None and state.status == "cleaning"
    if state is not None and is_cleaner and status == "cleaning":
        return replace(row, status=status, detail=state.detail)
    if status == "cleaning":
        raise RefusedError(
            f"cartridge {row.tag} is not known to be a cleaning cartridge",
            hint="its barcode would begin with CLN, and it would be in a library",
        )
    if is_cleaner and status not in ("error", "retired"):
        raise RefusedError(f"cartridge {row.tag} is a cleaning cartridge", hint="status cleaning")
    if row.status in ("foreign", "cleaning", "worm") and status not in ("error", "retired"):
        raise RefusedError(
            f"cartridge {row.tag} is {row.status}",
            hint="ctl tape label makes one of ours" if row.status == "foreign" else "",
        )
    if status in ("writable", "full") and not (row.cartridge and row.end):
        raise RefusedError(
            f"cartridge {row.tag} has no label of ours",
            hint="status blank, if nothing is on it; else ctl tape label --force",
        )
    if status == "blank" and (row.end or state is None or state.status != "blank"):
        raise RefusedError(
            f"cartridge {row.tag} is not known to be blank",
            hint="ctl tape label erases it, if nobody wants what is on it, and labels it anew",
        )
    detail = "" if status in ("writable", "blank") else "said by an operator"
    return replace(row, status=status, detail=detail)


def set_vault(desk: Desk, call: Call) -> None:
    """Say where a cartridge is when no library has it; empty takes it back."""
    row = desk.registry.cartridge(call.arguments["tag"])
    vault = call.arguments["vault"].strip()
    if len(vault) > VAULT_CHARACTERS_MAX or not (vault.isprintable() and "(" not in vault):
        raise UsageError(f"a vault has a name of at most {VAULT_CHARACTERS_MAX} plain characters")
    row = replace(row, vault=vault)
    desk.record(row)
    _answer(desk, call, row)


def _answer(desk: Desk, call: Call, row: CartridgeRow) -> None:
    desk.answer(call.call, documents.cartridge_document(desk.registry, row))
