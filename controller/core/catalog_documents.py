"""What operators see of the catalog itself: how large it is, and whether the cartridges agree with it.  Pure.

A check compares what the nodes say of their cartridges with the catalog's rows; nothing is loaded for it.

    ok        ends where the catalog says
    tail      longer: what follows the last part that is known is no harm if a job left it, and parts that the catalog
              does not know if not
    shorter   parts that the catalog knows are not there any more
    another   another cartridge than the catalog's of this barcode
    unknown   a cartridge of ours with parts that the catalog does not know at all
    away      in no library now
    blank, foreign, error, ...   what the catalog says of a cartridge that it compares with nothing
"""

from __future__ import annotations

from typing import Any, Final

from controller.catalog.store import CartridgeRow, Size
from controller.core.allocation import state_of
from controller.core.catalog_age import RECIPE, is_behind
from controller.core.desk import Desk

OK: Final = "ok"
TAIL: Final = "tail"
SHORTER: Final = "shorter"
ANOTHER: Final = "another"
UNKNOWN: Final = "unknown"
AWAY: Final = "away"

COMPARED: Final = ("writable", "full", "error", "retired", "worm")
"""Statuses of cartridges with parts."""


def show_document(desk: Desk, size: Size) -> dict[str, Any]:
    """Describe the catalog."""
    return {
        "store": desk.store,
        "path": size.place,
        "bytes": size.bytes,
        "rows": {name.removesuffix("Row").lower(): count for name, count in size.rows.items()},
        "is_behind": is_behind(desk),
        "hint": RECIPE if is_behind(desk) else "",
    }


def check_document(desk: Desk) -> dict[str, Any]:
    """Compare all cartridges with the catalog."""
    rows = sorted(desk.registry.cartridges.values(), key=lambda row: row.tag)
    return {
        "is_behind": is_behind(desk),
        "hint": RECIPE if is_behind(desk) else "",
        "cartridges": [_line(desk, row) for row in rows],
    }


def _line(desk: Desk, row: CartridgeRow) -> dict[str, Any]:
    state = state_of(desk.registry, row)
    verdict, detail = _verdict(desk, row)
    return {
        "tag": row.tag,
        "verdict": verdict,
        "detail": detail,
        "parts": row.sequence,
        "end": row.end,
        "end_on_tape": state.end if state is not None else None,
    }


def _verdict(desk: Desk, row: CartridgeRow) -> tuple[str, str]:
    state = state_of(desk.registry, row)
    if state is None:
        return AWAY, "in no library that is connected"
    if row.status == "foreign" and state.cartridge:
        whose = "" if state.store in ("", desk.store) else f" of catalog {state.store}"
        return UNKNOWN, f"a cartridge{whose}: ctl catalog rebuild --from {row.tag}"
    if state.cartridge and row.cartridge and state.cartridge != row.cartridge:
        return ANOTHER, f"its label says {state.cartridge}, the catalog {row.cartridge}"
    if row.status not in COMPARED:
        return row.status, row.detail
    if state.end < row.end:
        return SHORTER, f"it ends at object {state.end}, parts reach to {row.end}"
    if state.end > row.end:
        return TAIL, f"{state.end - row.end} objects behind the last part that the catalog knows"
    return OK, row.detail
