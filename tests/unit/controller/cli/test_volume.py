from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RefusedError
from backplane.wire.frames import Opcode
from controller.cli.volume import volume_extents

PAGE = """\
  Volume:        vol1
  State:         online
  Size:          4,294,967,296 (4GiB)
  Used:          3,221,225,472 (3GiB)
  Blocks:        8,388,608 of 512 bytes
  Held by:       -
  Empty:         no
  Node:          disk (online)
  Path on node:  /srv/vol1.img
  Identifier:    0123456789abcdef0123456789abcdef
  Designator:    3aabbccddeeff001
  Created:       2026-01-11 10:40:00
"""

LIST = """\
VOLUME  STATE      SIZE  USED  BLOCK  HELD BY  NODE  DESIGNATOR
vol1    online     4GiB  3GiB    512  -        disk  3aabbccddeeff001
vol2    restoring  4GiB    0B    512  job 8    disk  3aabbccddeeff002
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    first = documents["volume"]
    second = first | {
        "name": "vol2",
        "state": "restoring",
        "used_bytes": 0,
        "held_by": 8,
        "designator": "3aabbccddeeff002",
    }
    controller.answers["volume.list"] = {"volumes": [first, second]}
    assert ctl("volume", "list") == (0, LIST, "")


def test_show_as_a_page(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.show"] = documents["volume"]
    assert ctl("volume", "show", "vol1") == (0, PAGE, "")


USED = """\
  Created:       2026-01-11 10:40:00
  Connections:   2, when the node last told
  Last write:    12 s ago by 10.0.0.7
  NBD:           nbd+unix:///vol1?socket=/run/nbd.sock
  NBD:           nbd://10.0.0.5:10809/vol1
  As a file:     nbdfuse mnt 'nbd+unix:///vol1?socket=/run/nbd.sock'
  As a device:   nbdublk /dev/ublkb0 'nbd+unix:///vol1?socket=/run/nbd.sock'
  Mirror leg:    leg1: in-sync
  Mirror leg:    far: failed
"""


def test_show_tells_who_uses_a_volume_and_how_a_workstation_does(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["volume.show"] = documents["volume"] | {
        "connections": 2,
        "idle_s": 12.3,
        "last_writer": "10.0.0.7",
        "is_read_only": False,
        "nbd": ["nbd+unix:///vol1?socket=/run/nbd.sock", "nbd://10.0.0.5:10809/vol1"],
        "legs": [{"leg": "leg1", "state": "in-sync"}, {"leg": "far", "state": "failed"}],
    }
    code, out, _ = ctl("volume", "show", "vol1")
    assert code == 0
    assert out.endswith(USED)


def test_a_volume_that_nobody_uses_says_nothing_of_it(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["volume.show"] = documents["volume"] | {
        "connections": 0,
        "idle_s": -1.0,
        "last_writer": "10.0.0.7",  # Before the node was started; nobody knows when.
        "is_read_only": False,
        "nbd": [],
        "legs": [],
    }
    assert ctl("volume", "show", "vol1") == (0, PAGE, "")


def test_a_volume_whose_flush_has_failed_says_what_to_do(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["volume.show"] = documents["volume"] | {"is_read_only": True}
    _, out, _ = ctl("volume", "show", "vol1")
    assert "Read-only:     a flush has failed; look at the disk, restart the node\n" in out


def test_create_an_empty_volume(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.create"] = documents["volume"]
    code, out, _ = ctl("volume", "create", "vol1", "--size", "4GiB", "--block-size", "4096")
    assert (code, out) == (0, PAGE)
    arguments = controller.arguments("volume.create")
    del arguments["token"]
    assert arguments == {
        "name": "vol1",
        "size_bytes": 4294967296,
        "block_bytes": 4096,
        "node": "",
    }


def test_attach_names_a_path_of_the_node(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.attach"] = documents["volume"]
    assert ctl("volume", "create", "v", "--attach", "/dev/sdb", "--node", "disk")[0] == 0
    arguments = controller.arguments("volume.attach")
    assert (arguments["path"], arguments["node"]) == ("/dev/sdb", "disk")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--size", "1GiB", "--attach", "/dev/sdb"),
        ("--size", "1000"),
        ("--size", "0"),
        ("--size", "much"),
    ],
)
def test_a_volume_without_a_sensible_origin_is_a_usage_error(
    controller: Any, ctl: Any, arguments: tuple[str, ...]
) -> None:
    code, out, err = ctl("volume", "create", "v", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("ctl: ")
    assert controller.calls == []


def prepare_import(controller: Any, disk_node: Any, volume: Any) -> None:
    controller.answers["volume.import_begin"] = lambda arguments: {
        "volume": volume,
        "channel": disk_node.channel(arguments["holder"]),
    }
    controller.answers["volume.import_end"] = volume


def test_from_an_image_sends_its_data_and_not_its_holes(
    controller: Any, ctl: Any, documents: Any, disk_node: Any, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(3 * 1024 * 1024 + 100)
        file.seek(1024 * 1024)
        file.write(b"middle" * 1000)
        file.seek(3 * 1024 * 1024)
        file.write(b"end")
    prepare_import(controller, disk_node, documents["volume"])
    code, out, err = ctl("volume", "create", "vol1", "--from", str(image))
    assert (code, out) == (0, PAGE)
    assert (
        err
        == f"{image} is filled up with 412 zero bytes to a whole number of blocks of 512 bytes\n"
    )
    assert bytes(disk_node.content) == image.read_bytes() + bytes(412)
    written = sum(e.byte_count for _, entries in disk_node.requests for e in entries)
    assert written < 256 * 1024
    assert disk_node.requests[-1][0].name == "FLUSH"
    begun = controller.arguments("volume.import_begin")
    assert (begun["size_bytes"], begun["block_bytes"]) == (3 * 1024 * 1024 + 512, 512)
    assert controller.arguments("volume.import_end") == {"name": "vol1", "ok": True}


def test_an_import_that_fails_leaves_no_volume(
    controller: Any, ctl: Any, documents: Any, disk_node: Any, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(8192))
    disk_node.failing = Opcode.WRITE
    prepare_import(controller, disk_node, documents["volume"])
    code, out, err = ctl("volume", "create", "vol1", "--from", str(image))
    assert (code, out) == (1, "")
    assert "writing byte 0" in err
    assert controller.arguments("volume.import_end") == {"name": "vol1", "ok": False}


@pytest.mark.parametrize(("name", "code"), [("missing.img", 4), (".", 2), ("empty.img", 2)])
def test_what_is_no_image_is_refused_before_any_call(
    controller: Any, ctl: Any, tmp_path: Path, name: str, code: int
) -> None:
    (tmp_path / "empty.img").write_bytes(b"")
    assert ctl("volume", "create", "vol1", "--from", str(tmp_path / name))[0] == code
    assert controller.calls == []


def prepare_export(controller: Any, disk_node: Any, *, extents: Any) -> None:
    blocks = len(disk_node.content) // 512
    controller.answers["volume.export_begin"] = lambda arguments: {
        "volume": {},
        "channel": disk_node.channel(arguments["holder"]),
        "view": "ab" * 16,
        "blocks": blocks,
        "block_bytes": 512,
    }
    controller.answers["volume.extents"] = extents
    controller.answers["volume.export_end"] = {}


def test_export_writes_a_sparse_file_and_ends_the_view(
    controller: Any, ctl: Any, disk_node: Any, tmp_path: Path
) -> None:
    blocks = len(disk_node.content) // 512
    disk_node.content[2048 * 512 : 2050 * 512] = os.urandom(1024)
    pages = [
        {"extents": [[0, 8]], "next_lba": 2048},
        {"extents": [[2048, 2]], "next_lba": blocks},
    ]
    prepare_export(controller, disk_node, extents=pages)
    target = tmp_path / "out.img"
    code, out, err = ctl("volume", "export", "vol1", str(target), "--output", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes_received"] == 10 * 512
    assert target.read_bytes() == bytes(disk_node.content)
    assert target.stat().st_blocks * 512 < 100_000
    assert controller.arguments("volume.export_end") == {"view": "ab" * 16}
    starts = [a["start_lba"] for verb, a in controller.calls if verb == "volume.extents"]
    assert starts == [0, 2048]


def test_export_never_overwrites_without_force(
    controller: Any, ctl: Any, disk_node: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out.img"
    target.write_text("precious")
    blocks = len(disk_node.content) // 512
    prepare_export(controller, disk_node, extents={"extents": [], "next_lba": blocks})
    code, _, err = ctl("volume", "export", "vol1", str(target))
    assert code == 5
    assert err == f"ctl: {target} exists already\nhint: --force overwrites it\n"
    assert target.read_text() == "precious"
    assert controller.calls == []
    assert ctl("volume", "export", "vol1", str(target), "--force")[0] == 0
    assert target.stat().st_size == len(disk_node.content)


def test_an_export_that_fails_leaves_no_file_and_no_view(
    controller: Any, ctl: Any, disk_node: Any, tmp_path: Path
) -> None:
    prepare_export(controller, disk_node, extents=RefusedError("gone"))
    code, _, err = ctl("volume", "export", "vol1", str(tmp_path / "out.img"))
    assert (code, err) == (5, "ctl: gone\n")
    assert list(tmp_path.glob("*img*")) == []
    assert [verb for verb, _ in controller.calls].count("volume.export_end") == 1


def test_a_list_of_extents_that_does_not_go_on_is_an_error() -> None:
    class Stuck:
        def call(self, verb: str, **arguments: object) -> dict[str, Any]:
            return {"extents": [], "next_lba": 0}

    with pytest.raises(Exception, match="does not go on"):
        list(volume_extents(Stuck(), "3a", blocks=8))


def test_delete_asks_and_without_a_terminal_needs_yes(
    controller: Any, ctl: Any, documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.answers["volume.show"] = documents["volume"]
    controller.answers["volume.delete"] = {}
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        code, out, err = ctl("volume", "delete", "vol1")
    assert (code, out) == (5, "")
    assert "--yes" in err
    assert [verb for verb, _ in controller.calls] == ["volume.show"]
    assert ctl("volume", "delete", "vol1", "--yes", "--force") == (
        0,
        "deleted volume vol1, 3GiB used\n",
        "",
    )
    assert controller.arguments("volume.delete") == {"name": "vol1", "force": True}


def test_delete_dry_run_deletes_nothing(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.show"] = documents["volume"]
    code, out, _ = ctl("volume", "delete", "vol1", "--dry-run")
    assert (code, out) == (0, "would delete volume vol1, 3GiB used\n")
    assert [verb for verb, _ in controller.calls] == ["volume.show"]


# --- quiet ----------------------------------------------------------------------------------------


def test_settings_are_set_and_given_back(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["volume.set"] = documents["volume"] | {
        "quiet_s": 5.0,
        "quiet_from": "volume vol1",
        "sync_timeout_s": 80.0,
        "sync_timeout_from": "controller",
    }
    code, out, _ = ctl("volume", "set", "vol1", "--inactivity", "5s", "--sync-timeout", "default")
    assert code == 0
    assert controller.arguments("volume.set") == {
        "name": "vol1",
        "quiet_s": 5.0,
        "reset": ["sync_timeout_s"],
    }
    assert "Inactivity:    5 s (volume vol1)\n" in out
    assert "Sync timeout:  80 s (controller)\n" in out


def test_setting_nothing_or_nonsense_is_refused_before_any_call(ctl: Any) -> None:
    code, _, err = ctl("volume", "set", "vol1")
    assert code == 2
    assert err.startswith("ctl: nothing to set\nhint: give --inactivity or --sync-timeout")
    assert ctl("volume", "set", "vol1", "--inactivity", "soon")[0] == 2


def history(**changes: Any) -> dict[str, Any]:
    none = {"waits": 0, "found": 0, "median_wait_s": 0.0, "writers": []}
    return {
        "volume": "vol1",
        "zone": "CET (UTC+01:00)",
        "in_force": {"quiet_s": 3.0, "sync_timeout_s": 80.0},
        "since": "",
        "quiet_s": [],
        "hours": [],
        **none,
    } | changes


def test_the_history_of_quiet_is_told_by_the_controllers_hours(controller: Any, ctl: Any) -> None:
    some = {"waits": 4, "found": 3, "median_wait_s": 4.25, "writers": ["10.0.0.7"]}
    hours = [
        {"hour": 2, "waits": 3, "found": 3, "median_wait_s": 4.25, "writers": []},
        {"hour": 14, "waits": 1, "found": 0, "median_wait_s": 0.0, "writers": ["10.0.0.7", "db"]},
    ]
    controller.answers["volume.quiet"] = history(
        **some, since="2026-01-11T10:43:41Z", quiet_s=[3.0, 5.0], hours=hours
    )
    code, out, _ = ctl("volume", "quiet", "vol1")
    assert code == 0
    assert "In force:     3 s without writes within 80 s\n" in out
    assert "Asked for:    3 s, 5 s\n" in out
    assert "Found:        3 of 4 times\n" in out
    assert "Median wait:  4.2 s\n" in out
    assert "CET (UTC+01:00), the controller's time zone\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["02", "3", "3", "100%", "4.2", "s", "-"] in lines
    assert ["14", "1", "0", "0%", "-", "10.0.0.7,", "db"] in lines
    _, out, _ = ctl("volume", "quiet", "vol1", "--output", "jsonl")
    assert [json.loads(line)["hour"] for line in out.splitlines()] == [2, 14]


def test_a_volume_that_was_never_waited_for_says_so(controller: Any, ctl: Any) -> None:
    controller.answers["volume.quiet"] = history()
    code, out, _ = ctl("volume", "quiet", "vol1")
    assert code == 0
    assert out.endswith("no waits yet\n")
