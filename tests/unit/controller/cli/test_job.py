from __future__ import annotations

import json
from typing import Any

from backplane.errors import NotFoundError

LIST = """\
JOB  KIND    STATE      SUBJECT  SUBMITTED            ELAPSED  DONE  BYTES  REASON
  7  backup  completed  vol1     2026-01-11 10:43:40     0:07  100%   3GiB  -
"""


def test_list_as_a_table(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["job.list"] = {"jobs": [documents["job"]]}
    assert ctl("job", "list") == (0, LIST, "")
    assert controller.arguments("job.list") == {"limit": 50, "state": ""}


def test_list_as_json_and_as_json_lines(controller: Any, ctl: Any, documents: Any) -> None:
    jobs = [documents["job"], documents["job"] | {"job": 8}]
    controller.answers["job.list"] = {"jobs": jobs}
    code, out, _ = ctl("job", "list", "--output", "json")
    assert (code, json.loads(out)) == (0, {"jobs": jobs})
    code, out, _ = ctl("--output", "jsonl", "job", "list")
    assert [json.loads(line) for line in out.splitlines()] == jobs


def test_list_passes_its_filters_on(controller: Any, ctl: Any) -> None:
    controller.answers["job.list"] = {"jobs": []}
    assert ctl("job", "list", "--only", "copying", "--limit", "3") == (0, "no jobs\n", "")
    assert controller.arguments("job.list") == {"limit": 3, "state": "copying"}


def test_show_collects_all_pages_of_items(controller: Any, ctl: Any, documents: Any) -> None:
    detail, item = documents["detail"], documents["item"]
    first = detail | {"items": [item], "items_total": 2, "next_item": 11}
    second = detail | {"items": [item | {"item": 12}], "items_total": 2, "next_item": 0}
    controller.answers["job.show"] = lambda arguments: (
        second if arguments["items_from"] == 11 else first
    )
    code, out, _ = ctl("job", "show", "7", "--output", "json")
    shown = json.loads(out)
    assert code == 0
    assert [each["item"] for each in shown["items"]] == [11, 12]
    assert shown["items"][0]["parameter_list"] == "010000000040"
    assert shown["ledger"]["controller_payload_bytes"] == 0


def test_an_unknown_job_is_exit_code_4(controller: Any, ctl: Any) -> None:
    controller.answers["job.show"] = NotFoundError("no job 9", hint="ctl job list")
    code, out, err = ctl("job", "show", "9")
    assert (code, out, err) == (4, "", "ctl: no job 9\nhint: ctl job list\n")


def test_log_as_text_asks_until_nothing_new_comes(controller: Any, ctl: Any) -> None:
    events = [
        {"sequence": 1, "time": "2026-01-11T10:43:40Z", "level": "info", "text": "queued"},
        {"sequence": 2, "time": "2026-01-11T10:43:41Z", "level": "warning", "text": "no drive"},
    ]
    controller.answers["job.log"] = lambda arguments: {
        "events": [e for e in events if e["sequence"] > arguments["after"]][:1]
    }
    code, out, _ = ctl("job", "log", "7")
    assert code == 0
    assert out == ("2026-01-11 10:43:40  info     queued\n2026-01-11 10:43:41  warning  no drive\n")


def test_log_follows_until_the_job_has_ended(controller: Any, ctl: Any, documents: Any) -> None:
    event = {"sequence": 1, "time": "2026-01-11T10:43:40Z", "level": "info", "text": "queued"}
    running = documents["detail"] | {"state": "copying"}
    controller.answers["job.show"] = [running, documents["detail"]]
    controller.answers["job.log"] = [
        {"events": [event]},
        {"events": []},
        {"events": [event | {"sequence": 2, "text": "completed"}]},
        {"events": []},
    ]
    code, out, _ = ctl("job", "log", "7", "--follow", "--output", "jsonl")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["queued", "completed"]


def test_cancel_says_the_new_state(controller: Any, ctl: Any) -> None:
    controller.answers["job.cancel"] = {"job": 7, "state": "cancelled"}
    assert ctl("job", "cancel", "7") == (0, "job 7 cancelled\n", "")


def test_wait_ends_with_the_code_of_the_job(controller: Any, ctl: Any, documents: Any) -> None:
    ended = documents["detail"] | {
        "state": "failed",
        "reason": "vol1 was not quiet for 3s within 80s",
        "exit_code": 6,
    }
    controller.answers["job.show"] = [documents["detail"] | {"state": "waiting-quiet"}, ended]
    code, out, err = ctl("job", "wait", "7")
    assert code == 6
    assert "*** Backup Error *** (vol1 was not quiet for 3s within 80s)" in out
    assert err == "ctl: job 7 failed: vol1 was not quiet for 3s within 80s\n"
