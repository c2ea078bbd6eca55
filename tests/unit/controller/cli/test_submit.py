from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from controller.cli.submit import LEVELS, check_target
from controller.core.chain import LEVELS_ASKED


def test_backup_prints_the_job_and_how_to_watch_it(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    assert ctl("submit", "backup", "vol1") == (0, "job 7\n", "watch it with `ctl job wait 7`\n")
    arguments = controller.arguments("job.submit")
    assert len(arguments.pop("token")) == 36
    assert arguments == {"kind": "backup", "volume": "vol1", "view": "auto", "level": "full"}, (
        "what is not said is what the volume says"
    )


def test_backup_takes_durations_as_people_write_them(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    ctl("submit", "backup", "vol1", "--inactivity", "500ms", "--sync-timeout", "5m")
    arguments = controller.arguments("job.submit")
    assert (arguments["quiet_s"], arguments["sync_timeout_s"]) == (0.5, 300.0)


def test_backup_of_chosen_files_sends_the_patterns_in_order(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    patterns = ("--path", "home/**", "--exclude", "*.iso", "--path", "etc", "--exclude", "cache/")
    assert ctl("submit", "backup", "vol1", *patterns)[0] == 0
    arguments = controller.arguments("job.submit")
    assert arguments["paths"] == ["home/**", "etc"]
    assert arguments["excludes"] == ["*.iso", "cache/"]
    assert "raw" not in arguments


def test_a_raw_backup_says_so(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    assert ctl("submit", "backup", "vol1", "--raw")[0] == 0
    arguments = controller.arguments("job.submit")
    assert arguments["raw"] is True
    assert "paths" not in arguments


def test_a_call_whose_answer_was_lost_is_sent_with_the_same_token(
    controller: Any, ctl: Any
) -> None:
    """A lost reply must not start a second backup."""
    controller.answers["job.submit"] = {"job": 7}
    controller.lost_calls = 1
    assert ctl("submit", "backup", "vol1")[0] == 0
    tokens = {arguments["token"] for _, arguments in controller.calls}
    assert len(controller.calls) == 2
    assert len(tokens) == 1


def test_restore_to_a_new_volume(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 8}
    assert ctl("submit", "restore", "vol1/latest", "--new", "copy")[0] == 0
    arguments = controller.arguments("job.submit")
    assert {k: arguments[k] for k in ("kind", "backup", "to", "new", "force")} == {
        "kind": "restore",
        "backup": "vol1/latest",
        "to": "",
        "new": "copy",
        "force": False,
    }


def test_a_restore_is_told_to_keep_going_only_if_somebody_says_so(
    controller: Any, ctl: Any
) -> None:
    controller.answers["job.submit"] = {"job": 8}
    ctl("submit", "restore", "3", "--new", "copy")
    assert "keep_going" not in controller.arguments("job.submit")
    controller.calls.clear()
    ctl("submit", "restore", "3", "--new", "copy", "--keep-going")
    assert controller.arguments("job.submit")["keep_going"] is True
    controller.calls.clear()
    ctl("submit", "restore", "3", "--new", "copy", "--path", "home", "--keep-going")
    assert controller.arguments("job.submit")["keep_going"] is True


def test_how_many_drives_a_restore_reads_is_left_to_the_controller_unless_it_is_said(
    controller: Any, ctl: Any
) -> None:
    controller.answers["job.submit"] = {"job": 8}
    ctl("submit", "restore", "3", "--new", "copy")
    assert "drives" not in controller.arguments("job.submit")
    for drives in (1, 3):
        controller.calls.clear()
        ctl("submit", "restore", "3", "--new", "copy", "--drives", str(drives))
        assert controller.arguments("job.submit")["drives"] == drives
    controller.calls.clear()
    chosen = ("submit", "restore", "3", "--new", "copy", "--path", "home")
    assert ctl(*chosen, "--drives", "2")[0] == 0
    assert controller.arguments("job.submit")["drives"] == 2
    controller.calls.clear()
    for kind in (chosen, ("submit", "backup", "vol")):
        code, _, err = ctl(*kind, "--drives", "0")
        assert (code, controller.calls) == (2, [])
        assert "0 is not in the range" in err


@pytest.mark.parametrize(
    ("where", "words"),
    [((), "files are put back in place"), (("--into", "/mnt"), "--into has files written")],
)
def test_files_that_go_onto_a_volume_that_is_online_are_read_from_one_drive(
    controller: Any, ctl: Any, where: tuple[str, ...], words: str
) -> None:
    code, _, err = ctl("submit", "restore", "3", "--path", "home", *where, "--drives", "2")
    assert (code, controller.calls) == (2, [])
    assert f"--drives 2: {words} by one job, which alone may write" in " ".join(err.split())
    assert "--out FOLDER" in err


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ((), "job 8 puts the files back in place, onto the volume that they came from"),
        (("--new", "ada"), "job 8 restores the files on volume ada, among the names of all others"),
        (("--to", "old"), "job 8 restores the files on volume old, among the names of all others"),
    ],
)
def test_a_restore_of_files_says_which_way_it_goes(
    controller: Any, ctl: Any, where: tuple[str, ...], words: str
) -> None:
    controller.answers["job.submit"] = {"job": 8}
    code, out, err = ctl("submit", "restore", "3", "--path", "a", "--exclude", "*.o", *where)
    assert (code, out) == (0, "job 8\n")
    assert err.splitlines() == [words, "watch it with `ctl job wait 8`"]
    arguments = controller.arguments("job.submit")
    assert (arguments["paths"], arguments["excludes"], arguments["check"]) == (["a"], ["*.o"], True)


def test_a_restore_of_a_volume_sends_nothing_about_files(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 8}
    ctl("submit", "restore", "3", "--new", "copy")
    assert not {"paths", "excludes", "check"} & set(controller.arguments("job.submit"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("3",),
        ("3", "--to", "a", "--new", "b"),
        ("3", "--new", "b", "--force"),
        ("3", "--path", "a", "--force"),
        ("3", "--new", "b", "--no-check"),
        ("3", "--out", "folder"),
        ("3", "--out", "folder", "--path", "a", "--new", "b"),
        ("3", "--out", "folder", "--path", "a", "--force"),
    ],
)
def test_a_restore_that_makes_no_sense_is_refused_before_any_call(
    ctl: Any, arguments: tuple[str, ...]
) -> None:
    code, out, err = ctl("submit", "restore", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("ctl: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("no backup 99"), 4),
        (RefusedError("vol2 is smaller than the backup"), 5),
        (RefusedError("vol2 is not empty", hint="--force overwrites it"), 5),
        (BusyError("vol2 is held by job 6"), 5),
    ],
)
def test_what_the_controller_refuses_ends_with_its_code(
    controller: Any, ctl: Any, error: Any, code: int
) -> None:
    controller.answers["job.submit"] = error
    got, out, err = ctl("submit", "restore", "99", "--to", "vol2")
    assert (got, out) == (code, "")
    assert err.splitlines()[0] == f"ctl: {error.message}"


def test_verify_waits_and_ends_with_code_8_if_there_is_damage(
    controller: Any, ctl: Any, documents: Any
) -> None:
    damage = [
        {
            "first_lba": 2048,
            "blocks": 8,
            "tag": "LTO001L8",
            "object": 17,
            "reason": "wrong checksum",
        }
    ]
    controller.answers["job.submit"] = {"job": 9}
    controller.answers["job.show"] = documents["detail"] | {
        "job": 9,
        "kind": "verify",
        "state": "failed",
        "reason": "8 blocks are damaged",
        "exit_code": 8,
        "result": {"backup": 3, "damage": damage},
    }
    code, out, err = ctl("submit", "verify", "3", "--wait")
    assert code == 8
    assert "     2048      2055       8  LTO001L8       17  wrong checksum" in out
    assert "*** Verify Error *** (8 blocks are damaged)" in out
    assert err == "ctl: job 9 failed: 8 blocks are damaged\n"


def test_wait_as_json_lines_tells_status_and_summary(
    controller: Any, ctl: Any, documents: Any
) -> None:
    detail = documents["detail"]
    controller.answers["job.submit"] = {"job": 7}
    controller.answers["job.show"] = [
        detail | {"state": "queued", "reason": "waiting: no mover", "exit_code": None},
        detail | {"state": "copying", "bytes_done": 1048576, "percent_done": 0.1},
        detail,
    ]
    code, out, err = ctl("submit", "backup", "vol1", "--wait", "--output", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [line["message_type"] for line in lines] == ["status", "status", "summary"]
    assert lines[0]["reason"] == "waiting: no mover"
    assert lines[1] == {
        "message_type": "status",
        "job": 7,
        "kind": "backup",
        "state": "copying",
        "reason": "",
        "percent_done": 0.1,
        "seconds_elapsed": 7.0,
        "seconds_remaining": 0.0,
        "total_bytes": 3221225472,
        "bytes_done": 1048576,
        "error_count": 0,
    }
    assert lines[2]["ledger"]["is_balanced"] is True


def test_wait_as_json_prints_one_document(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    controller.answers["job.show"] = documents["detail"]
    code, out, _ = ctl("submit", "backup", "vol1", "--wait", "--output", "json")
    assert code == 0
    assert json.loads(out) == documents["detail"] | {"tags": ["LTO001L8"]}


@pytest.mark.parametrize("level", ["full", "differential", "incremental", "auto"])
def test_a_backup_is_asked_for_at_a_level(controller: Any, ctl: Any, level: str) -> None:
    controller.answers["job.submit"] = {"job": 7}
    assert ctl("submit", "backup", "vol1", "--level", level)[0] == 0
    assert controller.arguments("job.submit")["level"] == level


def test_a_level_that_does_not_exist_is_refused_before_the_call(controller: Any, ctl: Any) -> None:
    code, _, told = ctl("submit", "backup", "vol1", "--level", "half")
    assert code == 2
    assert "--level" in told


def test_the_levels_are_those_that_the_core_knows() -> None:
    assert LEVELS == LEVELS_ASKED


# --- several volumes ------------------------------------------------------------------------------


def numbered(*jobs: int) -> list[dict[str, int]]:
    return [{"job": job} for job in jobs]


def test_several_volumes_are_several_calls_with_a_token_each(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = numbered(7, 8, 9)
    code, out, err = ctl("submit", "backup", "a", "b", "c", "--view", "hold")
    assert (code, out) == (0, "job 7\njob 8\njob 9\n")
    assert "watch it with `ctl job wait 8`" in err
    said = [arguments for _, arguments in controller.calls]
    assert [each["volume"] for each in said] == ["a", "b", "c"]
    assert {each["view"] for each in said} == {"hold"}
    assert len({each["token"] for each in said}) == 3


def test_a_group_is_one_call(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7, "jobs": [7, 8]}
    code, out, _ = ctl("submit", "backup", "a", "b", "--group", "--output", "json")
    assert (code, json.loads(out)) == (0, {"jobs": [{"job": 7}, {"job": 8}]})
    arguments = controller.arguments("job.submit")
    assert arguments["group"] == ["a", "b"]
    assert "volume" not in arguments


def test_a_group_of_one_is_a_backup_like_any_other(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 7}
    assert ctl("submit", "backup", "a", "--group")[:2] == (0, "job 7\n")
    assert controller.arguments("job.submit")["volume"] == "a"


def test_a_volume_that_is_refused_does_not_keep_the_others_from_their_backup(
    controller: Any, ctl: Any
) -> None:
    controller.answers["job.submit"] = [
        {"job": 7},
        NotFoundError("no volume is named 'b'"),
        {"job": 9},
    ]
    code, out, err = ctl("submit", "backup", "a", "b", "c")
    assert (code, out) == (4, "job 7\njob 9\n")
    assert "ctl: b is not backed up: no volume is named 'b'" in err


def test_if_all_are_refused_nothing_is_printed_and_the_worst_counts(
    controller: Any, ctl: Any
) -> None:
    controller.answers["job.submit"] = [NotFoundError("nix"), RefusedError("no")]
    code, out, _ = ctl("submit", "backup", "a", "b")
    assert (code, out) == (5, "")


def test_a_group_on_two_nodes_ends_with_the_controllers_words(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = RefusedError(
        "here: a on one, b on two", hint="without --group"
    )
    code, _, err = ctl("submit", "backup", "a", "b", "--group")
    assert code == 5
    assert err == "ctl: here: a on one, b on two\nhint: without --group\n"


def test_waiting_for_several_ends_with_the_code_of_the_worst_and_one_document(
    controller: Any, ctl: Any, documents: Any
) -> None:
    good = documents["detail"]
    bad = good | {"job": 8, "state": "failed", "reason": "no 3 s without writes", "exit_code": 6}
    controller.answers["job.submit"] = {"job": 7, "jobs": [7, 8]}
    controller.answers["job.show"] = lambda arguments: good if arguments["job"] == 7 else bad
    code, out, err = ctl("submit", "backup", "a", "b", "--group", "--wait", "--output", "json")
    assert code == 6
    assert [job["job"] for job in json.loads(out)["jobs"]] == [7, 8]
    assert "no 3 s without writes" in err
    code, out, _ = ctl("submit", "backup", "a", "b", "--group", "--wait")
    assert code == 6
    assert out.count("Termination:") == 2


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"into": Path("/mnt"), "has_files": False}, "--into makes files"),
        ({"into": Path("/mnt"), "to": "vol2"}, "--into is a target of its own"),
        ({"into": Path("/mnt"), "new": "copy"}, "--into is a target of its own"),
        ({"into": Path("/mnt"), "force": True}, "--into is a target of its own"),
        ({"into": Path("/mnt"), "out": Path("/tmp/x")}, "is a target of its own"),
    ],
)
def test_a_mounted_folder_is_a_target_of_its_own(target: dict[str, Any], words: str) -> None:
    facts = {"to": "", "new": "", "force": False, "has_files": True} | target
    with pytest.raises(UsageError, match=words):
        check_target(**facts)
    check_target(to="", new="", force=False, has_files=True, into=Path("/mnt"))


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (["3"], {"backup": "3"}),
        (["vol/latest", "--sample", "5%"], {"backup": "vol/latest", "sample": "5%"}),
        (["--tape", "LTO001L8"], {"tag": "LTO001L8"}),
        (["--pool", "weekly", "--sample", "200"], {"pool": "weekly", "sample": "200"}),
    ],
)
def test_a_verification_is_of_what_was_named(
    controller: Any, ctl: Any, asked: list[str], sent: dict[str, str]
) -> None:
    controller.answers["job.submit"] = {"job": 8}
    assert ctl("submit", "verify", *asked)[0] == 0
    arguments = controller.arguments("job.submit")
    arguments.pop("token")
    assert arguments == {"kind": "verify"} | sent


@pytest.mark.parametrize("asked", [[], ["3", "--tape", "A"], ["--tape", "A", "--pool", "P"]])
def test_a_verification_of_nothing_or_of_two_things_is_refused(ctl: Any, asked: list[str]) -> None:
    code, _, err = ctl("submit", "verify", *asked)
    assert code == 2
    assert "BACKUP, --tape TAG or --pool NAME" in err


def test_a_copy_goes_to_a_pool(controller: Any, ctl: Any) -> None:
    controller.answers["job.submit"] = {"job": 8}
    assert ctl("submit", "copy", "vol1/latest", "--pool", "offsite")[0] == 0
    arguments = controller.arguments("job.submit")
    arguments.pop("token")
    assert arguments == {"kind": "copy", "backup": "vol1/latest", "pool": "offsite"}
    controller.calls.clear()
    ctl("submit", "copy", "12", "--no-wait-media")
    assert controller.arguments("job.submit")["no_wait_media"] is True
    assert "pool" not in controller.arguments("job.submit")
