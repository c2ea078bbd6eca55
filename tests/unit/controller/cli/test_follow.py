from __future__ import annotations

import io
import json
import os
import signal
from typing import Any

import pytest

from backplane.errors import NotFoundError
from controller.cli.follow import follow_job, follow_jobs, status_line, watch_job, worst
from controller.cli.render import Screen


class Teller:
    """Answers job.show with one document after the other; the last one for ever."""

    def __init__(self, *details: Any) -> None:
        self._details = list(details)
        self.asked = 0

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        if verb == "backup.show":
            raise NotFoundError("no such backup")
        assert verb == "job.show"
        self.asked += 1
        detail = self._details.pop(0) if len(self._details) > 1 else self._details[0]
        if isinstance(detail, BaseException):
            raise detail
        if callable(detail):
            return detail()  # type: ignore[no-any-return]
        return dict(detail)


def a_screen(output: Any = "table", *, is_terminal: bool = False) -> tuple[Screen, Any, Any]:
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(output, stdout=out, stderr=err, has_colour=False, is_terminal=is_terminal)
    return screen, out, err


def copying(documents: Any, **changes: Any) -> Any:
    return (
        documents["detail"]
        | {
            "state": "copying",
            "exit_code": None,
            "bytes_done": 1073741824,
            "percent_done": 1 / 3,
            "seconds_copying": 2.0,
            "seconds_remaining": 65.0,
        }
        | changes
    )


def test_on_a_terminal_the_line_is_redrawn_and_removed_before_the_report(documents: Any) -> None:
    screen, out, err = a_screen(is_terminal=True)
    teller = Teller(copying(documents), documents["detail"])
    assert follow_job(teller, 7, screen=screen, poll_s=0.0) == 0
    lines = err.getvalue().split("\r\x1b[K")
    assert lines == [
        "",
        "job 7 copying  [########................]  33%  1GiB of 3GiB  512MiB/s  eta 1:05",
        "",
    ]
    assert "Termination:  Backup OK" in out.getvalue()


def test_on_a_pipe_nothing_is_said_before_the_report(documents: Any) -> None:
    screen, out, err = a_screen()
    follow_job(Teller(copying(documents), documents["detail"]), 7, screen=screen, poll_s=0.0)
    assert err.getvalue() == ""
    assert out.getvalue().count("JobId") == 1


@pytest.mark.parametrize("output", ["table", "json"])
def test_on_a_pipe_a_long_wait_is_told_once(documents: Any, output: Any) -> None:
    waiting = copying(documents, reason="waiting: cartridge LTO009L8 (in vault bank-3)")
    short = copying(documents, reason="waiting: storage node tape to load cartridge LTO009L8")
    reading = copying(documents, reason="reading LTO009L8 (1 of 2): 3 parts")
    looks = [short, *[waiting] * 30, *[reading] * 30, *[waiting] * 30]
    screen, _, err = a_screen(output)
    follow_job(Teller(*looks, documents["detail"]), 7, screen=screen, poll_s=0.0)
    assert err.getvalue() == "ctl: job 7 is waiting: cartridge LTO009L8 (in vault bank-3)\n"


@pytest.mark.parametrize(("output", "is_terminal"), [("jsonl", False), ("table", True)])
def test_who_sees_every_state_is_not_told_twice(
    documents: Any, output: Any, is_terminal: bool
) -> None:
    looks = [copying(documents, reason="waiting: cartridge LTO009L8 (in vault bank-3)")] * 30
    screen, _, err = a_screen(output, is_terminal=is_terminal)
    follow_job(Teller(*looks, documents["detail"]), 7, screen=screen, poll_s=0.0)
    assert "ctl: job 7 is waiting" not in err.getvalue()


def test_a_job_that_waits_says_for_what(documents: Any) -> None:
    detail = documents["detail"] | {
        "state": "queued",
        "reason": "waiting: cartridge LTO002L8",
        "bytes_done": 0,
        "seconds_elapsed": 61.0,
    }
    assert status_line(detail) == "job 7 queued  1:01  waiting: cartridge LTO002L8"


def test_json_lines_are_written_only_when_something_changed(documents: Any) -> None:
    screen, out, _ = a_screen("jsonl")
    teller = Teller(copying(documents), copying(documents), documents["detail"])
    follow_job(teller, 7, screen=screen, poll_s=0.0)
    kinds = [json.loads(line)["message_type"] for line in out.getvalue().splitlines()]
    assert kinds == ["status", "summary"]


def test_a_failed_job_ends_with_its_code_and_an_error_line(documents: Any) -> None:
    screen, out, err = a_screen("jsonl")
    failed = documents["detail"] | {"state": "failed", "reason": "tape is full", "exit_code": 7}
    assert follow_job(Teller(failed), 7, screen=screen, poll_s=0.0) == 7
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["message_type"] for line in lines] == ["error", "summary"]
    told, as_json = err.getvalue().splitlines()
    assert told == "ctl: job 7 failed: tape is full"
    assert json.loads(as_json) == {
        "message_type": "exit_error",
        "code": 7,
        "message": "job 7 failed: tape is full",
        "hint": "",
    }


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("cancelled", 1), ("failed", 1)])
def test_a_job_that_ended_without_a_code_has_one_all_the_same(
    documents: Any, state: str, code: int
) -> None:
    screen, _, _ = a_screen()
    ended = documents["detail"] | {"state": state, "exit_code": None}
    assert follow_job(Teller(ended), 7, screen=screen, poll_s=0.0) == code


def test_who_cancels_an_interrupted_job_does_not_say_that_it_goes_on(documents: Any) -> None:
    screen, _, err = a_screen()
    teller = Teller(copying(documents), KeyboardInterrupt())
    assert not watch_job(teller, 7, screen=screen, poll_s=0.0, goes_on=False)
    assert "goes on" not in err.getvalue()


def test_an_interrupt_leaves_the_job_running_and_says_how_to_cancel_it(documents: Any) -> None:
    screen, out, err = a_screen()
    teller = Teller(copying(documents), KeyboardInterrupt())
    assert follow_job(teller, 7, screen=screen, poll_s=0.0) == 130
    assert "ctl: job 7 goes on" in err.getvalue()
    assert "ctl job cancel 7" in err.getvalue()
    assert out.getvalue() == ""


def test_sigusr1_prints_the_state(documents: Any) -> None:
    screen, _, err = a_screen()
    before = signal.getsignal(signal.SIGUSR1)

    def signalled() -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return copying(documents)

    follow_job(
        Teller(copying(documents), signalled, documents["detail"]), 7, screen=screen, poll_s=0.0
    )
    assert "job 7 copying" in err.getvalue()
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([0, 3, 0], 3), ([3, 1], 1), ([6, 1, 3], 6), ([0, 130, 8], 130)],
)
def test_the_worst_of_several_codes(codes: list[int], expected: int) -> None:
    assert worst(codes) == expected


def test_several_jobs_are_followed_one_after_the_other(documents: Any) -> None:
    screen, out, _ = a_screen("jsonl")
    good = documents["detail"]
    partial = good | {"job": 8, "state": "partial", "exit_code": 3, "reason": "damage"}
    teller = Teller(copying(documents), good, good, partial)
    assert follow_jobs(teller, [7, 8], screen=screen, poll_s=0.0) == 3
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["job"] for line in lines if line["message_type"] == "summary"] == [7, 8]


def test_who_does_not_want_to_see_more_sees_no_further_job(documents: Any) -> None:
    screen, _, _ = a_screen()
    teller = Teller(KeyboardInterrupt())
    assert follow_jobs(teller, [7, 8], screen=screen, poll_s=0.0) == 130
    assert teller.asked == 1
