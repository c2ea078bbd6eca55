"""`ctl map explain`, in both directions."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from backplane.errors import ExitCode, NotFoundError, UsageError
from backplane.file_map.model import ExtentFlag, FileExtent, Kind
from backplane.testing.file_rows import make_file, make_row
from backplane.testing.packed_map import VOLUME_BYTES, MapCaller, PackedMap
from controller.cli import map as map_command
from controller.cli.map import find_map, run_explain, run_explain_path
from controller.cli.options import Output
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Screen

ROWS = [
    make_row(b"", Kind.DIRECTORY),
    make_file(b"a", FileExtent(0, 4096, 4096), FileExtent(8192, 16384, 4096)),
    make_file(b"b\n", FileExtent(0, 4608, 512, int(ExtentFlag.SHARED))),
    make_file(
        b"packed", FileExtent(0, 20480, 131072, int(ExtentFlag.COMPRESSED), 700, 131072, 0, "zlib")
    ),
    make_file(b"u", FileExtent(0, -1, 4096, int(ExtentFlag.UNWRITTEN))),
]
RUNS = [(0, 8192), (16384, 24576)]
MAP = PackedMap(ROWS, RUNS)


class Run:
    """One run of a command."""

    def __init__(self, output: Output = "table") -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.screen = Screen(
            output, stdout=self.out, stderr=self.err, is_terminal=False, has_colour=False
        )
        self.code = -1

    def explain(self, lba: int, count: int = 1, packed: PackedMap = MAP) -> str:
        remote = RemoteMap(MapCaller(packed), str(packed.backup))
        self.code = run_explain(remote, lba, count, screen=self.screen)
        return self.out.getvalue()

    def path(self, path: str, packed: PackedMap = MAP) -> str:
        remote = RemoteMap(MapCaller(packed), str(packed.backup))
        self.code = run_explain_path(remote, path, screen=self.screen)
        return self.out.getvalue()


TABLE = """\
LBA  BLOCKS  VOLUME BYTE  BYTES  FILE BYTE  FLAGS   PATH
  7       1         3584    512          -  -       (in use, by no file: metadata of the file system)
  8       2         4096   1024          0  -       a
  9       1         4608    512          0  shared  b\\x0a
"""


def test_blocks_are_explained() -> None:
    assert Run().explain(7, 3) == TABLE


def owners_of(lba: int, count: int = 1) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Run("json").explain(lba, count))
    return document


def test_a_block_may_belong_to_nobody() -> None:
    document = owners_of(16)
    assert document["owners"] == []
    assert document["others"] == [
        {
            "lba": 16,
            "blocks": 1,
            "volume_byte": 8192,
            "byte_count": 512,
            "state": "not-allocated",
        }
    ]
    assert "(not in use)" in Run().explain(16)


def test_a_part_of_a_file_says_which() -> None:
    (owner,) = owners_of(34)["owners"]
    assert (owner["path"], owner["file_byte"], owner["size"]) == ("a", 9216, 12288)


def test_of_a_compressed_unit_the_whole_is_said_and_the_rest_of_its_blocks_too() -> None:
    document = owners_of(40, 2)
    (owner,) = document["owners"]
    assert (owner["path"], owner["volume_byte"], owner["byte_count"]) == ("packed", 20480, 700)
    (other,) = document["others"]
    assert (other["volume_byte"], other["byte_count"]) == (21180, 324)
    assert other["state"] == "metadata"


def test_every_byte_that_was_asked_for_is_explained_once() -> None:
    document = owners_of(0, 60)
    pieces = [*document["others"], *document["owners"]]
    covered = sum(piece["byte_count"] for piece in pieces if piece.get("path") != "b\n")
    assert covered == 60 * 512


def test_the_volume_has_an_end() -> None:
    last = VOLUME_BYTES // 512 - 1
    assert Run().explain(last)
    with pytest.raises(UsageError, match=f"blocks 0 to {last}"):
        Run().explain(last, 2)


def test_too_many_owners_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_command, "OWNERS_MAX", 1)
    with pytest.raises(UsageError, match="fewer blocks"):
        Run().explain(8, 2)


def test_an_incomplete_map_is_partial() -> None:
    torn = PackedMap(ROWS, RUNS, reasons=("inode 7",))
    run = Run()
    run.explain(8, packed=torn)
    assert run.code == ExitCode.PARTIAL
    run.path("a", packed=torn)
    assert run.code == ExitCode.PARTIAL
    with pytest.raises(NotFoundError):
        run.path("nothing", packed=torn)
    assert run.err.getvalue().count("not complete: inode 7") == 3


# --- from a file to blocks -------------------------------------------------------------------------


def test_the_extents_of_a_file_are_shown() -> None:
    run = Run()
    lines = run.path("/a").splitlines()
    assert lines[0].endswith("h    a")
    assert lines[2:] == [
        "FILE BYTE  BYTES  LBA  BLOCKS  VOLUME BYTE  STORED  FLAGS",
        "        0   4096    8       8         4096       -  -",
        "     8192   4096   32       8        16384       -  -",
    ]
    assert run.code == ExitCode.OK


def test_extents_with_flags_say_them() -> None:
    assert (
        Run().path("packed").splitlines()[-1].endswith("2        20480     700  compressed, zlib")
    )
    assert "       -  unwritten" in Run().path("u")
    assert "no extents" in Run().path("")


def test_the_extents_of_a_file_as_json() -> None:
    document = json.loads(Run("json").path("a"))
    assert (document["backup"], document["volume"], document["path"]) == (3, "vol1", "a")
    assert [extent["lba"] for extent in document["extents"]] == [8, 32]


def test_a_file_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no c in backup 3"):
        Run().path("c")


# --- which map -------------------------------------------------------------------------------------


def backup(number: int, state: str) -> dict[str, Any]:
    return {"backup": number, "volume": "vol1", "name": f"vol1/{number}", "map_state": state}


def test_of_a_volume_the_newest_map_is_asked_and_said() -> None:
    run = Run()
    backups = [backup(7, "raw"), backup(6, "complete"), backup(3, "complete")]
    caller = MapCaller(MAP, backups=backups)
    assert find_map(caller, "vol1", screen=run.screen).backup == 3, "that of 6 is gone"
    assert run.err.getvalue() == "as in backup 3 (vol1/3)\n"


def test_a_backup_is_asked_by_its_number_or_name() -> None:
    run, caller = Run(), MapCaller(MAP)
    caller.maps["vol1/latest"] = MAP
    for target in ("3", "vol1/latest"):
        assert find_map(caller, target, screen=run.screen).backup == 3
    assert run.err.getvalue() == ""


def test_a_volume_without_maps_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="volume vol1"):
        find_map(MapCaller(backups=[backup(1, "none")]), "vol1", screen=Run().screen)


# --- the whole program -----------------------------------------------------------------------------


def test_the_command_answers(controller: Any, ctl: Any) -> None:
    controller.answers["map.header"] = MAP.header_document()
    controller.answers["map.pages"] = MAP.pages_document
    controller.answers["backup.list"] = {"backups": [backup(3, "complete")]}
    code, out, err = ctl("map", "explain", "vol1", "8", "--count", "2")
    assert (code, err) == (0, "as in backup 3 (vol1/3)\n")
    assert "a\n" in out
    assert ctl("map", "explain", "3", "--path", "a")[0] == 0
    assert ctl("map", "explain", "3", "--path", "x")[0] == ExitCode.NOT_FOUND


@pytest.mark.parametrize("arguments", [("3",), ("3", "8", "--path", "a"), ("3", "-1"), ("3", "x")])
def test_a_command_that_makes_no_sense_is_refused(ctl: Any, arguments: tuple[str, ...]) -> None:
    assert ctl("map", "explain", *arguments)[0] == ExitCode.USAGE
