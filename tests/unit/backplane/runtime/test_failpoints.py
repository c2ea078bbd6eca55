"""Failpoints do nothing unless armed, and exactly what they are armed for."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backplane.errors import ConfigError
from backplane.runtime import failpoints


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_an_unarmed_failpoint_is_passed() -> None:
    failpoints.arm("")
    failpoints.passed("anything")


def test_the_nth_pass_raises_and_only_that_one() -> None:
    assert failpoints.arm("disk.write:2=raise:EIO") == ("disk.write",)
    failpoints.passed("disk.write")
    failpoints.passed("other")
    with pytest.raises(OSError, match=r"failpoint disk\.write"):
        failpoints.passed("disk.write")
    failpoints.passed("disk.write")


def test_a_plus_repeats_from_there_on() -> None:
    failpoints.arm("x:2+=raise:ENOSPC")
    failpoints.passed("x")
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            failpoints.passed("x")


@pytest.mark.parametrize("text", ["x", "x:0=exit", "x:y=exit", "=exit", "x=jump", "x=raise:EWHAT"])
def test_a_mistake_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="SB_FAILPOINTS"):
        failpoints.arm(text)


def test_exit_kills_the_process_like_a_signal() -> None:
    program = (
        "from backplane.runtime import failpoints as f; f.arm(); f.passed('a'); print('alive')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"SB_FAILPOINTS": "a=exit"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b""
