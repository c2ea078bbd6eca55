"""What a node says to a request to keep a cartridge, or to erase one: its own clock, and its own record, decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeVar

from backplane.errors import RefusedError, RetainedError
from backplane.tape_format.retention import retain_until
from backplane.wire.messages import TapeErase, TapeRetain
from storage_node.access import audit
from storage_node.core.retention import EraseFacts, erase_refusal, kept_because, latest, moment
from storage_node.core.time_line import later, written
from storage_node.node_clock import NodeClock
from storage_node.tape.medium_facts import MediumFacts

Facts = TypeVar("Facts", bound=MediumFacts)
_ROUNDED_UP_S: Final = 0.999_999


def retained(
    info: Facts, message: TapeRetain, clock: NodeClock, *, written_last: str = ""
) -> Facts:
    """Return the facts of a cartridge that is kept as asked, and for as long; retention is only ever extended.

    It lasts from the latest of all times that are known: the node's, the controller's, and that of the last trailer
    (`written_last`, RFC 3339, "" for none).  Raises `UsageError` for what is no moment.
    """
    times = (written(later(clock.latest(), _ROUNDED_UP_S)), message.now, written_last)
    reckoned = retain_until(message.retain_s, latest(times))
    until = latest((info.retain_until, message.retain_until, reckoned))
    changed = replace(info, retain_until=until, is_held=message.is_held)
    if changed != info:
        facts = {"cartridge": info.tag, "until": until, "held": message.is_held}
        told = {"controller": message.now, "clock": written(clock.wall())} if message.now else {}
        audit.info("retained", extra=facts | told)
    return changed


def permit_erase(message: TapeErase, facts: EraseFacts, clock: NodeClock) -> None:
    """Raise `RetainedError` or `RefusedError` unless a cartridge may be erased; either is in the audit."""
    now, doubt = clock.earliest()
    if message.now:
        now = min(
            now, moment(message.now)
        )  # Who asks must think that the retention is over as well.
    reason = erase_refusal(facts, now=now, is_forced=message.is_forced, doubt=doubt)
    told = {
        "request": message.kind,
        "cartridge": message.tag,
        "drive": message.drive,
        "epoch": message.epoch,
        "forced": message.is_forced,
    }
    if not reason:
        audit.info("erased", extra=told)
        return
    audit.warning("refused", extra=told | {"reason": reason})
    if kept_because(facts, now=now, doubt=doubt):
        raise RetainedError(reason)
    is_matter_of_force = not erase_refusal(facts, now=now, is_forced=True)
    raise RefusedError(reason, hint="--force erases it all the same" if is_matter_of_force else "")
