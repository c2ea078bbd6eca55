"""`ctl tape forget`: what is lost is shown first, and consent is to just that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import NotFoundError, RetainedError

LOSS: dict[str, Any] = {
    "backup": 12,
    "name": "vol1/2026-01-11T10:43:48Z",
    "level": "incremental",
    "parent": 11,
    "copy_of": 0,
    "parts": 1,
    "parts_total": 2,
    "stream_bytes": 3_000_000_000,
    "outcome": "partial",
    "words": "1 of 2 parts are left: --keep-going restores what is on them",
}

PAGE = """\
BACKUP  NAME                       LEVEL              PARTS ON IT         DATA ON IT  WITHOUT IT
    12  vol1/2026-01-11T10:43:48Z  incremental on 11       1 of 2  2.79GiB (3.00 GB)  \
1 of 2 parts are left: --keep-going restores what is on them
and 4 more
used now by job 7
schedule weekly names it, and can submit nothing any more: ctl schedule delete weekly
"""


@pytest.fixture
def lost(controller: Any) -> Any:
    document = {
        "tag": "LTO001L8",
        "node": "tape",
        "is_node_online": True,
        "backups": [LOSS],
        "backups_count": 5,
        "consent": "c" * 64,
        "jobs": [7],
        "schedules": ["weekly"],
    }
    controller.answers["tape.losses"] = document
    controller.answers["tape.forget"] = document | {"forgotten": True}
    return controller


def test_a_dry_run_shows_what_would_be_lost_and_forgets_nothing(lost: Any, ctl: Any) -> None:
    code, out, err = ctl("tape", "forget", "LTO001L8", "--dry-run", "--retained")
    assert (code, out, err) == (0, PAGE + "would forget LTO001L8\n", "")
    assert lost.calls == [("tape.losses", {"tag": "LTO001L8", "retained": True})]


def test_what_is_lost_is_accepted_by_what_was_shown(lost: Any, ctl: Any) -> None:
    assert ctl("tape", "forget", "LTO001L8", "--yes") == (0, PAGE + "forgotten: LTO001L8\n", "")
    assert lost.arguments("tape.forget") == {
        "tag": "LTO001L8",
        "consent": "c" * 64,
        "retained": False,
        "unseen": True,
    }
    code, out, _ = ctl("tape", "forget", "LTO001L8", "--yes", "--output", "json")
    assert (code, json.loads(out)["backups"]) == (0, [LOSS])


def test_nobody_there_to_accept_it_forgets_nothing(lost: Any, ctl: Any) -> None:
    code, out, err = ctl("tape", "forget", "LTO001L8")
    assert (code, out) == (5, "")
    assert err.startswith(PAGE)
    assert "--yes confirms it" in err
    assert [verb for verb, _ in lost.calls] == ["tape.losses"]


def test_what_nobody_needs_goes_without_a_question_if_its_node_is_here(lost: Any, ctl: Any) -> None:
    nothing = {"backups": [], "backups_count": 0, "consent": "", "jobs": [], "schedules": []}
    for verb in ("tape.losses", "tape.forget"):
        lost.answers[verb] = lost.answers[verb] | nothing
    told = "no backup needs what is on it\nforgotten: LTO001L8\n"
    assert ctl("tape", "forget", "LTO001L8") == (0, told, "")
    lost.answers["tape.losses"] = lost.answers["tape.losses"] | {"is_node_online": False}
    code, _, err = ctl("tape", "forget", "LTO001L8")
    assert code == 5
    assert "storage node tape is away: nobody can see that LTO001L8 is not in its library" in err
    assert ctl("tape", "forget", "LTO001L8", "--yes")[:2] == (0, told)


def test_a_second_time_there_is_nothing_to_forget(controller: Any, ctl: Any) -> None:
    controller.answers["tape.losses"] = NotFoundError("no cartridge has the barcode 'LTO001L8'")
    controller.answers["tape.forget"] = {"forgotten": False, "backups": [], "backups_count": 0}
    code, out, _ = ctl("tape", "forget", "LTO001L8")
    assert (code, out) == (
        0,
        "no cartridge has the barcode LTO001L8: nothing was to be forgotten\n",
    )
    assert ctl("tape", "forget", "LTO001L8", "--dry-run")[0] == 4


def test_a_refusal_is_told_as_it_is(controller: Any, ctl: Any) -> None:
    controller.answers["tape.losses"] = RetainedError(
        "cartridge LTO001L8 is held: lawsuit 7", hint="ctl tape unprotect LTO001L8 first"
    )
    code, _, err = ctl("tape", "forget", "LTO001L8", "--yes")
    assert code == 5
    assert "is held: lawsuit 7" in err
    assert [verb for verb, _ in controller.calls] == ["tape.losses"]
