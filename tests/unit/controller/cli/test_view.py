from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import BusyError, NotQuietError, UnreachableError

PAGE = """\
  View:         abababababababababababababababab
  Volume:       vol1
  Means:        snapshot
  State:        active
  Consistency:  crash
  Created:      2026-01-11 10:50:00
  Read it at:   nbd://10.0.0.5:10809/vol1%40abababababababababababababababab
"""

LIST = """\
VIEW                              VOLUME  JOB      MEANS     STATE         USED  CREATED              NODE
abababababababababababababababab  vol1    by hand  snapshot  active        1MiB  2026-01-11 10:50:00  disk
cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd  -       7        mirror    broken: full    0B  -                    disk
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    first = documents["view"]
    second = first | {
        "view": "cd" * 16,
        "volume": "",
        "job": 7,
        "means": "mirror",
        "state": "broken",
        "reason": "full",
        "used_bytes": 0,
        "created": "",
    }
    controller.answers["view.list"] = {"views": [first, second]}
    assert ctl("view", "list") == (0, LIST, "")


def test_list_as_json_lines_gives_a_line_per_view(
    controller: Any, ctl: Any, documents: Any
) -> None:
    views = [documents["view"], documents["view"] | {"view": "cd" * 16}]
    controller.answers["view.list"] = {"views": views}
    _, out, _ = ctl("view", "list", "--output", "jsonl")
    assert [json.loads(line) for line in out.splitlines()] == views
    _, out, _ = ctl("view", "list", "--output", "json")
    assert json.loads(out) == {"views": views}


def test_where_there_are_no_views_the_table_says_so(controller: Any, ctl: Any) -> None:
    controller.answers["view.list"] = {"views": []}
    assert ctl("view", "list") == (0, "no static views\n", "")


def test_create_prints_where_the_view_is_read(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["view.create"] = documents["view"]
    assert ctl("view", "create", "vol1") == (0, PAGE, "")
    arguments = controller.arguments("view.create")
    assert arguments.pop("token")
    assert arguments == {
        "name": "vol1",
        "means": "auto",
        "quiet_s": 0.0,
        "sync_timeout_s": 10.0,
        "ttl_s": 86400.0,
    }


def test_create_passes_on_what_was_asked_for(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["view.create"] = documents["view"]
    code, out, _ = ctl(
        *("view", "create", "vol1", "--view", "clone", "--inactivity", "3s"),
        *("--sync-timeout", "40s", "--ttl", "1h", "--output", "json"),
    )
    assert (code, json.loads(out)) == (0, documents["view"])
    arguments = controller.arguments("view.create")
    assert arguments["means"] == "clone"
    assert (arguments["quiet_s"], arguments["sync_timeout_s"]) == (3.0, 40.0)
    assert arguments["ttl_s"] == 3600.0


def test_every_call_has_a_token_of_its_own_and_keeps_it_when_it_is_sent_again(
    controller: Any, ctl: Any, documents: Any
) -> None:
    controller.answers["view.create"] = documents["view"]
    controller.lost_calls = 1
    ctl("view", "create", "vol1")
    ctl("view", "create", "vol1")
    tokens = [arguments["token"] for _, arguments in controller.calls]
    assert len(tokens) == 3
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize(
    "arguments", [(), ("vol1", "--view", "magic"), ("vol1", "--ttl", "for ever"), ("vol1", "x")]
)
def test_what_makes_no_sense_is_refused_before_any_call(
    controller: Any, ctl: Any, arguments: tuple[str, ...]
) -> None:
    code, out, err = ctl("view", "create", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("ctl: ")
    assert controller.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotQuietError("vol1 is busy"), 6), (UnreachableError("the node is away"), 9)],
)
def test_a_view_that_was_not_made_has_the_exit_code_of_its_reason(
    controller: Any, ctl: Any, error: Any, code: int
) -> None:
    controller.answers["view.create"] = error
    assert ctl("view", "create", "vol1") == (code, "", f"ctl: {error.message}\n")


def test_release_names_the_view(controller: Any, ctl: Any) -> None:
    controller.answers["view.release"] = {}
    assert ctl("view", "release", "ab" * 16) == (0, f"released {'ab' * 16}\n", "")
    assert controller.arguments("view.release") == {"view": "ab" * 16}
    _, out, _ = ctl("view", "release", "ab" * 16, "--output", "json")
    assert json.loads(out) == {"view": "ab" * 16}


def test_the_view_of_a_running_job_stays(controller: Any, ctl: Any) -> None:
    controller.answers["view.release"] = BusyError("it belongs to job 7", hint="cancel the job")
    assert ctl("view", "release", "ab") == (
        5,
        "",
        "ctl: it belongs to job 7\nhint: cancel the job\n",
    )
