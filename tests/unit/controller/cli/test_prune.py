from __future__ import annotations

import json
from typing import Any

import pytest

RULES = ("--keep-last", "1")


def line(backup: int, *reasons: str, parent: int = 0) -> dict[str, Any]:
    return {
        "backup": backup,
        "volume": "vol1",
        "pool": "default",
        "level": "incremental" if parent else "full",
        "parent": parent,
        "created": f"2026-01-1{backup}T10:00:00Z",
        "stream_bytes": 1_000_000,
        "is_kept": bool(reasons),
        "reasons": list(reasons),
    }


@pytest.fixture
def three(controller: Any) -> Any:
    """Two backups that are kept, and one that is not."""
    lines = [line(3, "last 1 of 1", parent=2), line(2, "backup 3 stands on it"), line(1)]
    controller.answers["backup.retention"] = {"zone": "CET (UTC+01:00)", "backups": lines}
    controller.answers["backup.prune"] = {"pruned": [1], "kept": []}
    return controller


def test_the_preview_explains_each_line_and_prunes_nothing(three: Any, ctl: Any) -> None:
    code, out, err = ctl("backup", "prune", "vol1", *RULES, "--keep-within", "2 days", "--dry-run")
    rows = [row.split() for row in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(row[0], row[1]) for row in rows[1:4]] == [("3", "vol1"), ("2", "vol1"), ("1", "vol1")]
    assert " ".join(rows[1]).endswith("keep last 1 of 1")
    assert " ".join(rows[2]).endswith("keep backup 3 stands on it")
    assert " ".join(rows[3]).endswith("prune no rule keeps it")
    assert out.splitlines()[-1].startswith("keep 2, prune 1 (")
    assert out.endswith("; periods are those of the controller's time, CET (UTC+01:00)\n")
    asked = three.arguments("backup.retention")
    assert (asked["volumes"], asked["last"], asked["within_s"]) == (["vol1"], 1, 172_800)
    assert [verb for verb, _ in three.calls] == ["backup.retention"]


def test_what_no_rule_keeps_is_pruned_when_it_is_confirmed(three: Any, ctl: Any) -> None:
    code, out, err = ctl("backup", "prune", *RULES, "--yes", "--pool", "default")
    assert (code, err) == (0, "")
    assert three.arguments("backup.retention")["pool"] == "default"
    assert three.arguments("backup.prune") == {"backups": ["1"]}
    assert out.splitlines()[-1].startswith("keep 2, pruned 1 (")


def test_nobody_there_to_confirm_prunes_nothing(three: Any, ctl: Any) -> None:
    code, out, err = ctl("backup", "prune", *RULES)
    assert (code, out) == (5, "")
    assert "no rule keeps it" in err
    assert "--yes confirms it" in err
    assert [verb for verb, _ in three.calls] == ["backup.retention"]


def test_what_changed_since_the_preview_is_told_with_exit_code_3(three: Any, ctl: Any) -> None:
    reason = "used by job 7 (restore)"
    three.answers["backup.prune"] = {"pruned": [], "kept": [{"backup": 1, "reason": reason}]}
    code, out, _ = ctl("backup", "prune", *RULES, "--yes", "--output", "json")
    rows = json.loads(out)["backups"]
    assert (code, rows[2]["is_kept"], rows[2]["reasons"]) == (3, True, [reason])


def test_without_a_rule_nothing_is_asked(controller: Any, ctl: Any) -> None:
    code, _, err = ctl("backup", "prune", "--yes")
    assert (code, controller.calls) == (2, [])
    assert "no rule says what is kept" in err


def test_a_rule_that_keeps_less_than_nothing_is_named(controller: Any, ctl: Any) -> None:
    code, _, err = ctl("backup", "prune", "--keep-last", "-1", "--yes")
    assert (code, controller.calls) == (2, [])
    assert "--keep-last" in err


def test_many_go_in_several_calls_newest_first(controller: Any, ctl: Any) -> None:
    lines = [line(1) | {"backup": number} for number in range(1200, 0, -1)]
    controller.answers["backup.retention"] = {"zone": "CET (UTC+01:00)", "backups": lines}
    controller.answers["backup.prune"] = lambda given: {"pruned": given["backups"], "kept": []}
    assert ctl("backup", "prune", *RULES, "--yes")[0] == 0
    asked = [given["backups"] for verb, given in controller.calls if verb == "backup.prune"]
    assert [len(each) for each in asked] == [500, 500, 200]
    assert [number for each in asked for number in each] == [str(n) for n in range(1200, 0, -1)]


@pytest.mark.parametrize(("verb", "is_protected"), [("protect", True), ("unprotect", False)])
def test_a_backup_is_protected_by_any_of_its_names(
    controller: Any, ctl: Any, verb: str, is_protected: bool
) -> None:
    controller.answers["backup.show"] = {"backup": 12}
    controller.answers["backup.protect"] = {"backup": 12, "protected": is_protected}
    words = "backup 12 is protected\n" if is_protected else "backup 12 is not protected\n"
    assert ctl("backup", verb, "vol1/latest") == (0, words, "")
    assert controller.arguments("backup.protect") == {"backup": 12, "protected": is_protected}


def test_a_copy_says_of_what_it_is_one(controller: Any, ctl: Any) -> None:
    lines = [line(3, "last 1 of 1") | {"copy_of": 1}]
    controller.answers["backup.retention"] = {"zone": "UTC (UTC+00:00)", "backups": lines}
    assert "full, copy of 1" in ctl("backup", "prune", *RULES, "--dry-run")[1]
