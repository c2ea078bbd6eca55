from __future__ import annotations

import json
from typing import Any

from backplane.errors import NotFoundError
from backplane.file_map.model import FileSystem
from backplane.testing.file_rows import ordinary_tree
from backplane.testing.packed_map import PackedMap

LIST = (
    "BACKUP  NAME                       LEVEL  STATE      CREATED              "
    "VOLUME SIZE            DATA  PARTS  POOL    NEEDS\n"
    "     3  vol1/2026-01-11T10:43:48Z  full   completed  2026-01-11 10:43:48  "
    "       4GiB  3GiB (3.22 GB)      1  weekly  LTO001L8\n"
)

PAGE = """\
  Backup:         3
  Name:           vol1/2026-01-11T10:43:48Z
  State:          completed
  Level:          full
  Chain:          3
  Restore needs:  LTO001L8
  Volume:         vol1 (0123456789abcdef0123456789abcdef)
  Job:            7
  Created:        2026-01-11 10:43:48
  Volume size:    4,294,967,296 (4GiB)
  Blocks:         8,388,608 of 512 bytes
  Data:           3GiB (3.22 GB)
  Extents:        12
  Given back:     0
  Consistency:    crash
  Static view:    hold
  Pool:           weekly
  Cartridges:     LTO001L8
  Map of files:   none

PART  CARTRIDGE  SEQUENCE  HEADER  DATA  TRAILER  RECORDS  RECORD           BYTES
   1  LTO001L8          1       3     4     3077     3072    1MiB  3GiB (3.22 GB)
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["backup.list"] = {"backups": [documents["backup"]]}
    assert ctl("backup", "list", "--volume", "vol1") == (0, LIST, "")
    assert controller.arguments("backup.list") == {"volume": "vol1"}


def test_an_empty_list_says_so_in_words_but_not_in_data(controller: Any, ctl: Any) -> None:
    controller.answers["backup.list"] = {"backups": []}
    assert ctl("backup", "list")[1] == "no backups\n"
    assert ctl("backup", "list", "--output", "jsonl")[1] == ""
    assert json.loads(ctl("backup", "list", "--output", "json")[1]) == {"backups": []}


def test_show_as_a_page(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["backup.show"] = documents["backup_detail"]
    assert ctl("backup", "show", "vol1/latest") == (0, PAGE, "")
    assert controller.arguments("backup.show") == {"backup": "vol1/latest"}


def test_a_backup_that_stands_on_others_says_so(controller: Any, ctl: Any, documents: Any) -> None:
    changes = {"level": "incremental", "parent": 2, "chain": [3, 2, 1], "needs": ["A", "B"]}
    controller.answers["backup.list"] = {"backups": [documents["backup"] | changes]}
    row = ctl("backup", "list")[1].splitlines()[1]
    assert "incremental on 2  completed" in row
    assert row.endswith("  A, B")
    controller.answers["backup.show"] = documents["backup_detail"] | changes
    told = ctl("backup", "show", "3")[1]
    assert "Level:          incremental on 2\n" in told
    assert "Chain:          3, 2, 1\n" in told
    assert "Restore needs:  A, B\n" in told


def test_what_stands_in_and_what_was_erased_are_said(
    controller: Any, ctl: Any, documents: Any
) -> None:
    stands_in = {"copy_of": 2, "is_stand_in": True, "copies": []}
    detail = documents["backup_detail"] | stands_in
    detail["parts_detail"][0]["is_gone"] = True
    tag = detail["parts_detail"][0]["tag"]
    controller.answers["backup.show"] = detail
    told = ctl("backup", "show", "3")[1]
    assert "copy of 2, which is gone\n" in told
    assert "Stands in:      for backup 2, which is gone; it is the only one left\n" in told
    assert f"{tag} (erased)" in told
    controller.answers["backup.show"] = detail | {"copies": [9]}
    told = ctl("backup", "show", "3")[1]
    assert "for backup 2, which is gone\n" in told
    controller.answers["backup.show"] = detail | {"is_stand_in": False}
    assert "gone" not in ctl("backup", "show", "3")[1]


def test_a_pruned_backup_is_shown_although_its_map_is_gone(
    controller: Any, ctl: Any, documents: Any
) -> None:
    def no_map(_: Any) -> Any:
        raise NotFoundError("backup 3 has no map of files: it is pruned")

    detail = documents["backup_detail"] | {"state": "pruned", "map_state": "complete"}
    controller.answers |= {"backup.show": detail, "map.header": no_map}
    code, told, _ = ctl("backup", "show", "3")
    assert code == 0
    assert "Map of files:   none any more, the backup is pruned\n" in told
    detail["state"] = "failed"
    assert "Map of files:   none\n" in ctl("backup", "show", "3")[1]


def test_a_second_copy_names_its_original_and_an_original_its_copies_and_its_damage(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["backup.list"] = {"backups": [documents["backup"] | {"copy_of": 12}]}
    assert "  full, copy of 12  completed" in ctl("backup", "list")[1]
    changes = {"copies": [13, 17], "damage": "object 6"}
    controller.answers["backup.show"] = documents["backup_detail"] | changes
    told = ctl("backup", "show", "3")[1]
    assert "Copies:         13, 17\n" in told
    assert "Damage:         object 6\n" in told


def test_a_chain_that_cannot_be_restored_says_why(
    controller: Any, ctl: Any, documents: Any
) -> None:
    changes = {"broken": "cartridge A is in error"}
    controller.answers["backup.list"] = {"backups": [documents["backup"] | changes]}
    assert "broken: cartridge A is in error" in ctl("backup", "list")[1]


EXT4 = FileSystem(
    kind="ext4",
    prefix="p1",
    label="home\x1b",
    uuid="0f4c7e36",
    block_bytes=4096,
    size_bytes=1 << 30,
    state="replayed",
    place="partition 1 of a GPT",
)


def test_a_backup_with_a_map_says_what_is_in_it(controller: Any, ctl: Any, documents: Any) -> None:
    packed = PackedMap(ordinary_tree(9), file_systems=(EXT4, EXT4._replace(prefix="", label="")))
    selection = {"paths": ["home/**"], "excludes": ["*.iso", "tmp"]}
    changes = {"map_state": "complete", "files": 9, "selection": selection}
    controller.answers["backup.show"] = documents["backup_detail"] | changes
    controller.answers["map.header"] = packed.header_document()
    told = ctl("backup", "show", "vol1/latest")[1]
    assert "Map of files:   9 files of " in told
    assert (
        "File system:    p1/ is ext4 home\\x1b, replayed, 1,073,741,824 (1GiB), partition" in told
    )
    assert "File system:    ext4, replayed, " in told
    assert "Chosen files:   home/**, without *.iso, tmp\n" in told
    assert controller.arguments("map.header") == {"backup": "3"}
    document = json.loads(ctl("backup", "show", "3", "--output", "json")[1])
    assert (document["map"]["files"], document["map"]["is_complete"]) == (9, True)
    assert document["map"]["file_systems"][0]["label"] == "home\\x1b"


def test_a_map_that_is_not_complete_says_why(controller: Any, ctl: Any, documents: Any) -> None:
    packed = PackedMap(ordinary_tree(9), reasons=("inode 7 is torn", "and so is 8"))
    changes = {"map_state": "incomplete", "selection": {"paths": ["a"], "excludes": []}}
    controller.answers["backup.show"] = documents["backup_detail"] | changes
    controller.answers["map.header"] = packed.header_document()
    told = ctl("backup", "show", "3")[1]
    assert "Map incomplete:  inode 7 is torn\n  Map incomplete:  and so is 8\n" in told
    assert "Chosen files:    a\n" in told


def test_a_backup_without_a_map_says_so(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["backup.show"] = documents["backup_detail"] | {"map_state": "raw"}
    assert "Map of files:   none, backed up with --raw\n" in ctl("backup", "show", "3")[1]
    assert json.loads(ctl("backup", "show", "3", "--output", "json")[1])["map"] is None
