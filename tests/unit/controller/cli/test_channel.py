"""The data channel of `ctl`: opened by a grant, and every reply that is not good becomes an error by its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backplane.errors import BackupError, CopyError, MediumError, NotAuthorizedError
from backplane.runtime.keys import create_key_pair
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport.stream import Reply
from backplane.wire.frames import Entry, Header, Opcode, Protection, Status
from controller.cli.channel import UnreadableError, check_reply, opened


def reply(sense: bytes = b"", status: int = Status.CHECK_CONDITION) -> Reply:
    header = Header(
        opcode=Opcode.READ,
        is_reply=True,
        sequence=1,
        status=status,
        protection=Protection.NONE,
        extra=len(sense),
    )
    return Reply(header, sense)


def sense(key: SenseKey, asc: int, ascq: int = 0) -> bytes:
    return Sense(key=key, asc=asc, ascq=ascq).encode_fixed()


def test_a_good_reply_is_no_error() -> None:
    check_reply(reply(status=Status.GOOD), what="reading")


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (sense(SenseKey.ILLEGAL_REQUEST, 0x26, 0x15), NotAuthorizedError, "refused the grant"),
        (sense(SenseKey.MEDIUM_ERROR, 0x11), UnreadableError, "UNRECOVERED READ ERROR"),
        (sense(SenseKey.ABORTED_COMMAND, 0x10, 1), CopyError, "ABORTED COMMAND"),
        (b"", CopyError, "status 02h"),
    ],
)
def test_a_bad_reply_raises_what_its_sense_says(
    told: bytes, kind: type[BackupError], words: str
) -> None:
    with pytest.raises(kind, match=f"reading byte 7: .*{words}"):
        check_reply(reply(told), what="reading byte 7")


def test_a_block_that_cannot_be_read_is_damage_and_no_end_of_the_channel() -> None:
    assert issubclass(UnreadableError, MediumError)
    assert UnreadableError("x").exit_code == CopyError.exit_code


def test_the_unit_that_the_controller_names_is_opened(disk_node: Any, tmp_path: Any) -> None:
    keys = create_key_pair(tmp_path / "keys", role="operator", name="operator")
    client: Any = SimpleNamespace(keys=keys)
    with opened(client, disk_node.channel(keys.public.hex())) as channel:
        channel.request(Opcode.READ, entries=[Entry(0, 512)], length=512)
        assert channel.reply().is_good
        assert channel.receive_data(512) == bytes(512)
