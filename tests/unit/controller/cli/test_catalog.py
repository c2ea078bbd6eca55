"""`ctl catalog`: what is asked of the controller, and the exit codes."""

from __future__ import annotations

from typing import Any

import pytest

SHOWN = {
    "store": "a" * 32,
    "path": "/var/lib/controller/catalog.sqlite",
    "bytes": 3 * 1024 * 1024,
    "rows": {"backup": 12, "part": 30},
    "is_behind": False,
    "hint": "",
}

PAGE = """\
  Catalog:  /var/lib/controller/catalog.sqlite
  Store:    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  Size:     3MiB
  State:    ok

  Backup:  12
  Part:    30
"""

TABLE = """\
CARTRIDGE  VERDICT  PARTS  END  ON TAPE  DETAIL
LTO001L8   ok           3   40       40  -
LTO002L8   away         1   20        -  in no library that is connected
"""


def line(tag: str, verdict: str, **facts: Any) -> dict[str, Any]:
    made = {"tag": tag, "verdict": verdict, "detail": "", "parts": 3, "end": 40, "end_on_tape": 40}
    return made | facts


def test_show_says_where_it_is_and_what_is_in_it(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.show"] = SHOWN
    assert ctl("catalog", "show") == (0, PAGE, "")


def test_show_says_that_it_is_older_than_the_tapes(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.show"] = SHOWN | {"is_behind": True, "hint": "the recipe"}
    _, out, _ = ctl("catalog", "show")
    assert "State:    older than the tapes: the recipe" in out


def test_check_lists_all_cartridges(controller: Any, ctl: Any) -> None:
    away = {"parts": 1, "end": 20, "end_on_tape": None}
    controller.answers["catalog.check"] = {
        "is_behind": False,
        "hint": "",
        "cartridges": [
            line("LTO001L8", "ok"),
            line("LTO002L8", "away", detail="in no library that is connected", **away),
        ],
    }
    assert ctl("catalog", "check") == (0, TABLE, "")


@pytest.mark.parametrize(
    ("verdicts", "is_behind", "code"),
    [
        (["ok", "tail", "away", "blank"], False, 0),
        (["ok", "unknown"], False, 3),
        (["ok"], True, 3),
        (["unknown", "shorter"], True, 8),
        (["another"], False, 8),
    ],
)
def test_the_exit_code_of_a_check_is_that_of_the_worst(
    controller: Any, ctl: Any, verdicts: list[str], is_behind: bool, code: int
) -> None:
    controller.answers["catalog.check"] = {
        "is_behind": is_behind,
        "hint": "the recipe" if is_behind else "",
        "cartridges": [line(f"LTO00{n}L8", verdict) for n, verdict in enumerate(verdicts)],
    }
    found, _, err = ctl("catalog", "check")
    assert found == code
    assert ("the recipe" in err) == is_behind


def test_rebuild_names_cartridges_or_all(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.rebuild"] = {"job": 4}
    asked = ("catalog", "rebuild", "--from", "LTO001L8", "--from", "LTO002L8", "--adopt")
    assert ctl(*asked) == (0, "job 4\n", "")
    arguments = controller.arguments("catalog.rebuild")
    assert arguments.pop("token")
    assert arguments == {
        "tags": ["LTO001L8", "LTO002L8"],
        "all": False,
        "adopt": True,
        "with_pruned": False,
    }


def test_rebuild_of_all(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.rebuild"] = {"job": 4}
    assert ctl("catalog", "rebuild", "--all")[0] == 0
    arguments = controller.arguments("catalog.rebuild")
    assert (arguments["tags"], arguments["all"], arguments["adopt"]) == ([], True, False)
    assert not arguments["with_pruned"]


def test_a_rebuild_with_what_was_pruned(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.rebuild"] = {"job": 4}
    assert ctl("catalog", "rebuild", "--all", "--with-pruned")[0] == 0
    assert controller.arguments("catalog.rebuild")["with_pruned"]


@pytest.mark.parametrize("asked", [(), ("--all", "--from", "LTO001L8")])
def test_rebuild_of_nothing_or_of_both_is_refused(
    controller: Any, ctl: Any, asked: tuple[str, ...]
) -> None:
    code, _, err = ctl("catalog", "rebuild", *asked)
    assert code == 2
    assert "either --from CARTRIDGE or --all" in err
    assert not controller.calls


def test_accept_has_to_be_confirmed(controller: Any, ctl: Any) -> None:
    controller.answers["catalog.accept"] = {"was_behind": True}
    assert ctl("catalog", "accept")[0] == 5
    assert not controller.calls
    assert ctl("catalog", "accept", "--yes") == (0, "accepted\n", "")
