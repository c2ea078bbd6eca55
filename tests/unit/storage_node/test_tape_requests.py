"""Which tape requests wait for each other, which change something, and what each one answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import Epoch, VolumeTag
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
from storage_node.tape_requests import TapeMessage, tape_work

TAG, DRIVE = VolumeTag("SDV001L8"), "drive-0"
STATE = CartridgeState(
    tag=TAG,
    cartridge="",  # type: ignore[arg-type]
    status="blank",
    detail="",
    capacity_bytes=1,
    used_bytes=0,
    end=0,
    generation=1,
)


EMPTY = NodeReply(request=7, boot_id=b"")


class Role:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> Any:
            self.asked.append(name)
            return {
                "add": STATE,
                "move": STATE,
                "retain": replace(EMPTY, cartridges=(STATE,)),
                "scan": None,
                "digest": (b"d", 9),
                "sample": b"s",
                "attributes": b"a",
                "metadata": NodeReply(request=0, boot_id=b"", records=b"m"),
            }.get(name, NodeReply(request=7, boot_id=b"", end=5))

        return answer


@pytest.mark.parametrize(
    ("message", "key", "kind", "answer"),
    [
        (TapeLoad(request=7, drive=DRIVE, tag=TAG, epoch=Epoch(1)), DRIVE, "change", {"end": 5}),
        (TapeUnload(request=7, drive=DRIVE, epoch=Epoch(1)), DRIVE, "change", {"end": 5}),
        (TapeErase(request=7, drive=DRIVE, tag=TAG, epoch=Epoch(1)), DRIVE, "change", {"end": 5}),
        (TapeScan(request=7), "library", "change", {}),
        (TapeAdd(request=7, tag=TAG, capacity_bytes=1), TAG, "change", {"cartridges": (STATE,)}),
        (TapeMove(request=7, tag=TAG, to="io"), TAG, "change", {"cartridges": (STATE,)}),
        (
            TapeRetain(request=7, tag=TAG, retain_until="", is_held=True),
            TAG,
            "change",
            {"cartridges": (STATE,)},
        ),
        (
            TapeDigest(request=7, drive=DRIVE, start=0, end=9),
            DRIVE,
            "read",
            {"digests": b"d", "next_object": 9},
        ),
        (TapeSample(request=7, drive=DRIVE, ranges=b""), DRIVE, "long", {"digests": b"s"}),
        (TapeMetadata(request=7, drive=DRIVE, start=4), DRIVE, "long", {"records": b"m"}),
        (TapeAttributes(request=7, tag=TAG), TAG, "read", {"attributes": b"a"}),
    ],
)
def test_each_request_has_its_key_and_its_answer(
    message: TapeMessage, key: str, kind: str, answer: dict[str, Any]
) -> None:
    role = Role()
    work = tape_work(message, lambda: role)  # type: ignore[arg-type, return-value]
    assert not role.asked
    assert (work.key, work.is_change, work.is_long) == (
        ("tape", key),
        kind == "change",
        kind == "long",
    )
    assert work.run() == NodeReply(request=7, boot_id=b"", **answer)
    assert role.asked == [message.kind.removeprefix("tape.")]
