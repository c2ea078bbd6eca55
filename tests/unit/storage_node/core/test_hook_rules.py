"""What commands around a view may look like, and what they make of it."""

from typing import Any

import pytest

from storage_node.core.hook_rules import (
    HOOK_TIMEOUT_S_MAX,
    Hook,
    HookPair,
    HookResult,
    consistency_reached,
    hook_environment,
    needs_after,
)

HOOK = Hook(command=("true",))
GOOD = HookResult(is_ok=True)
BAD = HookResult(is_ok=False, reason="ended with status 1")
NEVER_RAN = HookResult(is_ok=False, reason="did not run", was_started=False)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"command": ()}, "command"),
        ({"command": ("",)}, "command"),
        ({"command": ("echo",) * 65}, "command"),
        ({"command": ("echo", "a\0b")}, "command"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"timeout_s": HOOK_TIMEOUT_S_MAX + 1}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Hook(**{"command": ("true",), **settings})


def test_consistency_needs_a_command_that_makes_it() -> None:
    HookPair(after=HOOK)
    HookPair(before=HOOK, consistency="application")
    with pytest.raises(ValueError, match="file-system"):
        HookPair(after=HOOK, consistency="file-system")


@pytest.mark.parametrize(
    ("before", "reached"),
    [(GOOD, "file-system"), (BAD, "crash"), (NEVER_RAN, "crash"), (None, "crash")],
)
def test_only_a_good_command_makes_more_of_a_view(before: HookResult | None, reached: str) -> None:
    pair = HookPair(before=HOOK, after=HOOK, consistency="file-system")
    assert consistency_reached(pair, before) == reached


@pytest.mark.parametrize(
    ("before", "needed"), [(GOOD, True), (BAD, True), (NEVER_RAN, False), (None, True)]
)
def test_what_may_have_been_done_is_taken_back(before: HookResult | None, needed: bool) -> None:
    assert needs_after(HookPair(before=HOOK, after=HOOK), before) is needed
    assert not needs_after(HookPair(before=HOOK), before)


def test_commands_are_told_what_they_run_for() -> None:
    assert hook_environment(volume="vol", view="7a", job=9) == {
        "SB_VOLUME": "vol",
        "SB_VIEW": "7a",
        "SB_JOB": "9",
    }
