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


def test_alerts_and_errors_are_shown_when_there_are_any(
    controller: Any, ctl: Any, documents: Any
) -> None:
    worn = documents["drive"] | {
        "alerts": ["hard error", "media", "read failure"],
        "read_errors": 12,
    }
    controller.answers["drive.list"] = {"drives": [worn, documents["drive"]]}
    lines = ctl("drive", "list")[1].splitlines()
    heads = lines[0].replace(" ERRORS", "_ERRORS").split()
    assert heads[-5:] == ["SERIAL", "ALERTS", "READ_ERRORS", "WRITE_ERRORS", "REASON"]
    assert "hard error, media, read failure           12             0  -" in lines[1]
    assert lines[2].split()[-4:] == ["-", "0", "0", "-"]


USAGE = {
    "model": "lto9",
    "loads": 2,
    "load_s": 88.0,
    "locates": 3,
    "locate_s": 130.0,
    "rewind_s": 62.0,
    "streaming_s": 5.0,
    "synchronisations": 4,
    "back_hitches": 1,
    "back_hitch_s": 3.0,
    "bytes_written": 10**9,
    "bytes_read": 10**9,
}


def test_what_a_real_drive_would_have_spent_is_shown(
    controller: Any, ctl: Any, documents: Any
) -> None:
    real = documents["drive"] | {"usage": USAGE}
    other = documents["drive"] | {"name": "tape/drive-1"}
    controller.answers["drive.list"] = {"drives": [real, other]}
    lines = ctl("drive", "list")[1].splitlines()
    start = lines.index("what a real drive would have spent since the node started:")
    heads, values = lines[start + 1], lines[start + 2]
    assert heads.split()[:4] == ["DRIVE", "MODEL", "LOADS", "LOADING"]
    assert values.split()[:4] == ["tape/drive-0", "lto9", "2", "88s"]
    assert values.split()[-3:] == ["1", "3s", "400"]
    assert len(lines) == start + 3
    idle = documents["drive"] | {"usage": USAGE | {"streaming_s": 0.0}}
    controller.answers["drive.list"] = {"drives": [idle]}
    assert ctl("drive", "list")[1].splitlines()[-1].split()[-1] == "-"


def test_down_needs_a_reason_and_up_does_not(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers |= {"drive.down": documents["drive"], "drive.up": documents["drive"]}
    assert ctl("drive", "down", "drive-0")[0] == 2
    assert ctl("drive", "down", "drive-0", "--reason", "squeaks") == (0, TABLE, "")
    assert controller.arguments("drive.down") == {"drive": "drive-0", "reason": "squeaks"}
    assert ctl("drive", "up", "tape/drive-0") == (0, TABLE, "")
    assert controller.arguments("drive.up") == {"drive": "tape/drive-0"}
