"""`ctl pool`."""

from __future__ import annotations

from typing import Any

TABLE = """\
POOL    RETAIN  ALLOCATION  SCRATCH  CARTRIDGES  BACKUPS
weekly  30d     every:7d    yes               1        2
"""
PAGE = """\
  Pool:           weekly
  Retain:         30d
  Allocation:     every:7d
  Takes scratch:  yes
  Created:        2026-01-11 10:40:00
  Backups:        2
  Cartridges:     LTO001L8
"""


def test_list_and_show(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["pool.list"] = {"pools": [documents["pool"]]}
    controller.answers["pool.show"] = documents["pool"]
    assert ctl("pool", "list") == (0, TABLE, "")
    assert ctl("pool", "show", "weekly") == (0, PAGE, "")


def test_create_says_all_settings(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["pool.create"] = documents["pool"]
    code, out, _ = ctl("pool", "create", "weekly", "--retain", "30d", "--no-scratch")
    assert (code, out) == (0, TABLE)
    assert controller.arguments("pool.create") == {
        "name": "weekly",
        "retain": "30d",
        "allocation": "continue",
        "scratch": False,
    }


def test_set_says_only_what_is_given(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["pool.set"] = documents["pool"]
    assert ctl("pool", "set", "weekly", "--scratch") == (0, TABLE, "")
    assert controller.arguments("pool.set") == {
        "name": "weekly",
        "retain": "",
        "allocation": "",
        "scratch": "yes",
    }


def test_set_with_nothing_to_set_is_a_mistake(ctl: Any) -> None:
    code, _, err = ctl("pool", "set", "weekly")
    assert code == 2
    assert "nothing to set" in err


def test_delete(controller: Any, ctl: Any) -> None:
    controller.answers["pool.delete"] = {}
    assert ctl("pool", "delete", "weekly") == (0, "pool weekly is deleted\n", "")
