"""Requests about tapes: which of them wait for each other, and what each one answers.

Those about one drive run in order, and those about one cartridge; the library's own lock does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from backplane.wire.messages import (
    CartridgeState,
    NodeReply,
    TapeAdd,
    TapeAttributes,
    TapeDigest,
    TapeErase,
    TapeLoad,
    TapeMetadata,
    TapeMove,
    TapeRetain,
    TapeSample,
    TapeScan,
    TapeUnload,
)
from storage_node.tape_control import TapeControl

TapeMessage = (
    TapeAdd
    | TapeAttributes
    | TapeDigest
    | TapeErase
    | TapeLoad
    | TapeMetadata
    | TapeMove
    | TapeRetain
    | TapeSample
    | TapeScan
    | TapeUnload
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeWork:
    """What to do, after all with the same `key`.  `is_change`: an inventory follows; `is_long`: doubles add nothing."""

    key: Hashable
    run: Callable[[], NodeReply]
    is_change: bool = False
    is_long: bool = False


def tape_work(message: TapeMessage, role: Callable[[], TapeControl]) -> TapeWork:
    """Return the work of a request; `role` returns the tape role when the work is done, or raises."""
    empty = NodeReply(request=message.request, boot_id=b"")

    def change(key: str, work: Callable[[TapeControl], NodeReply]) -> TapeWork:
        return TapeWork(key=("tape", key), run=lambda: work(role()), is_change=True)

    def cartridge(key: str, work: Callable[[TapeControl], CartridgeState]) -> TapeWork:
        return change(key, lambda tape: replace(empty, cartridges=(work(tape),)))

    def read(key: str, work: Callable[[TapeControl], NodeReply], *, is_long: bool) -> TapeWork:
        return TapeWork(key=("tape", key), run=lambda: work(role()), is_long=is_long)

    match message:
        case TapeLoad():
            return change(message.drive, lambda tape: tape.load(message))
        case TapeUnload():
            return change(message.drive, lambda tape: tape.unload(message))
        case TapeErase():
            return change(message.drive, lambda tape: tape.erase(message))
        case TapeScan():
            return change("library", lambda tape: _scan(tape, empty))
        case TapeAdd():
            return cartridge(message.tag, lambda tape: tape.add(message))
        case TapeMove():
            return cartridge(message.tag, lambda tape: tape.move(message))
        case TapeRetain():
            return change(message.tag, lambda tape: tape.retain(message))
        case TapeDigest():
            return read(message.drive, lambda tape: _digest(tape, message, empty), is_long=False)
        case TapeSample():
            return read(
                message.drive,
                lambda tape: replace(empty, digests=tape.sample(message.drive, message.ranges)),
                is_long=True,
            )
        case TapeMetadata():
            return read(
                message.drive,
                lambda tape: replace(
                    tape.metadata(message.drive, message.start), request=message.request
                ),
                is_long=True,
            )
        case TapeAttributes():
            return read(
                message.tag,
                lambda tape: replace(empty, attributes=tape.attributes(message.tag)),
                is_long=False,
            )


def _scan(tape: TapeControl, empty: NodeReply) -> NodeReply:
    tape.scan()
    return empty


def _digest(tape: TapeControl, message: TapeDigest, empty: NodeReply) -> NodeReply:
    digests, following = tape.digest(message.drive, message.start, message.end)
    return replace(empty, digests=digests, next_object=following)
