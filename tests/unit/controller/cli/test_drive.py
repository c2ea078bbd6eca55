"""`ctl drive`."""

from __future__ import annotations

from typing import Any

TABLE = """\
DRIVE         STATE         CARTRIDGE  JOB  LOADS  PRODUCT  SERIAL  REASON
tape/drive-0  Transferring  LTO001L8     7      3  LTO-9    1234    -
"""


def test_list_shows_what_each_drive_does(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["drive.list"] = {"drives": [documents["drive"]]}
    assert ctl("drive", "list") == (0, TABLE, "")
    controller.answers["drive.list"] = {"drives": []}
    assert ctl("drive", "list") == (0, "no drives; no tape node is here\n", "")


def test_down_needs_a_reason_and_up_does_not(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers |= {"drive.down": documents["drive"], "drive.up": documents["drive"]}
    assert ctl("drive", "down", "drive-0")[0] == 2
    assert ctl("drive", "down", "drive-0", "--reason", "squeaks") == (0, TABLE, "")
    assert controller.arguments("drive.down") == {"drive": "drive-0", "reason": "squeaks"}
    assert ctl("drive", "up", "tape/drive-0") == (0, TABLE, "")
    assert controller.arguments("drive.up") == {"drive": "tape/drive-0"}
