"""Commands around a view: bounded in time and output, nothing left behind, never only the first of two."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backplane.runtime.clock import SystemClock
from backplane.runtime.supervise import Identity
from backplane.testing.loop_mounts import mount_image
from storage_node import hooks
from storage_node.core.hook_rules import HOOK_OUTPUT_BYTES_MAX, Hook, HookPair, HookResult
from storage_node.hooks import HookError, HookRound, around_view, run_hook, run_leftover

ENVIRONMENT = {"SB_VOLUME": "vol", "SB_VIEW": "7a", "SB_JOB": "9"}
LONG_S = 60.0
"""Longer than any test may take."""


def script(text: str, *, timeout_s: float = LONG_S) -> Hook:
    return Hook(command=("sh", "-c", text), timeout_s=timeout_s)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Identity.of(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} was left behind"


class JumpingClock(SystemClock):
    """The timeout comes when the command says that it is ready, and not before, however slow the machine is."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready
        self._calls = 0

    def monotonic(self) -> float:
        # The first two calls are the starts of the command and of the timeout: a fast command is ready by then.
        self._calls += 1
        jumped = self._calls > 2 and self.ready.exists()
        return super().monotonic() + (10 * LONG_S if jumped else 0)


@pytest.fixture
def clock(tmp_path: Path) -> JumpingClock:
    return JumpingClock(tmp_path / "ready")


def run_too_long(text: str, clock: JumpingClock) -> HookResult:
    """Run a script that says `$READY` when it may be timed out; what it says last wakes up who looks at the clock."""
    text = text.replace("$READY", f"echo ready; touch {clock.ready}; echo")
    return run_hook(script(text), {}, clock=clock)


# --- one command ---------------------------------------------------------------------------------


def test_a_command_is_told_its_environment_and_what_it_says_is_kept() -> None:
    result = run_hook(script("echo $SB_VOLUME $SB_VIEW $SB_JOB; echo bad >&2"), ENVIRONMENT)
    assert result.is_ok
    assert result.output == "vol 7a 9\nbad\n"
    assert (result.reason, result.was_started) == ("", True)
    assert 0 < result.seconds < LONG_S


def test_no_shell_reads_the_words() -> None:
    result = run_hook(Hook(command=("echo", "$SB_VOLUME;", "a b", "*")), ENVIRONMENT)
    assert result.output == "$SB_VOLUME; a b *\n"


def test_there_is_nothing_to_read() -> None:
    assert run_hook(Hook(command=("cat",), timeout_s=LONG_S), {}).is_ok


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo why; exit 3", "ended with status 3"),
        ("echo why; kill -SEGV $$", "was ended by SIGSEGV"),
        ("echo why; kill -40 $$", "was ended by signal 40"),
    ],
)
def test_a_bad_end_has_a_reason(text: str, reason: str) -> None:
    result = run_hook(script(text), {})
    assert (result.is_ok, result.reason, result.output) == (False, reason, "why\n")
    assert result.was_started


@pytest.mark.parametrize("command", ["/no/such/program", "/dev/null"])
def test_a_program_that_cannot_be_started_did_nothing(command: str) -> None:
    result = run_hook(Hook(command=(command,)), {})
    assert (result.is_ok, result.was_started) == (False, False)
    assert command in result.reason


def test_a_machine_without_descriptors_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", pipe)
    result = run_hook(script("true"), {})
    assert (result.is_ok, result.was_started) == (False, False)


def test_the_end_of_much_output_is_kept_and_nobody_waits_for_us() -> None:
    result = run_hook(script("head -c 1000000 /dev/zero | tr '\\0' x; printf end"), {})
    assert result.is_ok
    assert result.output == "x" * (HOOK_OUTPUT_BYTES_MAX - 3) + "end"


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert run_hook(script("printf 'a\\377b'"), {}).output == "a\ufffdb"


def test_a_command_that_takes_too_long_may_clean_up(clock: JumpingClock) -> None:
    text = "trap 'echo cleaned; exit 0' TERM; $READY; while :; do sleep 0.05; done"
    result = run_too_long(text, clock)
    assert (result.is_ok, result.reason) == (False, "did not end within 60 s")
    assert result.output.startswith("ready\n")
    assert result.output.endswith("cleaned\n")


def test_a_command_that_ignores_being_asked_is_killed(
    clock: JumpingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "TERM_GRACE_S", 0.2)
    text = "trap '' TERM; echo $$; $READY; while :; do sleep 0.05; done"
    result = run_too_long(text, clock)
    assert (result.is_ok, result.reason) == (False, "did not end within 60 s")
    wait_until_gone(int(result.output.split()[0]))


def test_a_stopped_command_is_ended(clock: JumpingClock) -> None:
    result = run_too_long("echo $$; $READY; kill -STOP $$; sleep 1000", clock)
    assert not result.is_ok
    wait_until_gone(int(result.output.split()[0]))


def test_a_command_that_cannot_be_watched_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def pidfd_open(pid: int) -> int:
        raise OSError(24, "Too many open files", str(pid))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", pidfd_open)
        result = run_hook(script("sleep 1000"), {})
    assert (result.is_ok, result.was_started) == (False, True)
    assert "cannot be watched" in result.reason


@pytest.mark.parametrize(("end", "is_ok"), [("exit 0", True), ("exit 1", False)])
def test_nothing_is_left_in_the_background(end: str, is_ok: bool) -> None:
    """The grandchild ignores SIGTERM, so that only being killed ends it."""
    result = run_hook(script(f"(trap '' TERM; sleep 1000) & echo $!; {end}"), {})
    assert result.is_ok is is_ok
    wait_until_gone(int(result.output))


def test_nothing_is_left_in_the_background_after_the_timeout(clock: JumpingClock) -> None:
    result = run_too_long("(trap '' TERM; sleep 1000) & echo $!; $READY; wait", clock)
    assert not result.is_ok
    wait_until_gone(int(result.output.split()[0]))


def test_who_leaves_the_group_and_writes_for_ever_holds_nobody_up() -> None:
    result = run_hook(script("setsid yes & echo $!"), {})
    assert result.is_ok
    assert result.seconds < LONG_S


def test_a_command_that_does_not_die_is_told_and_collected_later(
    clock: JumpingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "TERM_GRACE_S", 0.05)
        patch.setattr(hooks, "KILL_TIMEOUT_S", 0.05)
        patch.setattr(os, "killpg", lambda *_: None)
        result = run_too_long("echo $$; $READY; exec sleep 1000", clock)
    assert not result.is_ok
    assert "does not die" in result.reason
    [stuck] = hooks._stuck
    assert stuck.pid == int(result.output.split()[0])
    stuck.signal(signal.SIGKILL)
    assert stuck.wait(timeout_s=LONG_S) == -signal.SIGKILL
    assert run_hook(script("true"), {}).is_ok
    assert hooks._stuck == []


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_left_open() -> None:
    before = open_descriptors()
    run_hook(script("true"), {})
    run_hook(script("sleep 1000", timeout_s=0.1), {})
    run_hook(Hook(command=("/no/such/program",)), {})
    assert open_descriptors() == before


# --- around a view -------------------------------------------------------------------------------

BEFORE, AFTER = Hook(command=("freeze",)), Hook(command=("thaw",))
LAX_BEFORE = Hook(command=("freeze",), on_error="warn")
LAX_AFTER = Hook(command=("thaw",), on_error="warn")
PAIR = HookPair(before=BEFORE, after=AFTER, consistency="file-system")
GOOD = HookResult(is_ok=True)
BAD = HookResult(is_ok=False, reason="ended with status 1", output="much\nbusy\n")
NEVER_RAN = HookResult(is_ok=False, reason="did not run", was_started=False)


class Story:
    """A runner that runs nothing and keeps what it was asked to run."""

    def __init__(self, **results: HookResult | BaseException) -> None:
        self._results = results
        self.lines: list[str] = []
        self.outcome = HookRound()

    def __call__(self, hook: Hook, environment: Mapping[str, str]) -> HookResult:
        assert {key: environment[key] for key in ENVIRONMENT} == ENVIRONMENT
        self.lines.append(f"{hook.command[0]} {environment['SB_PHASE']}")
        result = self._results.get(hook.command[0], GOOD)
        if isinstance(result, BaseException):
            raise result
        return result


def make_view(pair: HookPair, story: Story, error: BaseException | None = None) -> HookRound:
    """Make a view, or fail to."""
    with around_view(pair, ENVIRONMENT, run=story) as outcome:
        story.outcome = outcome
        story.lines.append("view")
        if error is not None:
            raise error
    return outcome


BOTH = ["freeze before", "view", "thaw after"]


def test_the_view_is_made_between_the_two() -> None:
    story = Story()
    with around_view(PAIR, ENVIRONMENT, run=story) as outcome:
        story.lines.append("view")
        assert outcome.consistency == "file-system"
    assert story.lines == BOTH
    assert outcome.warnings() == []


def test_what_was_frozen_is_thawed_when_the_view_fails() -> None:
    story = Story()
    with pytest.raises(KeyboardInterrupt):
        make_view(PAIR, story, KeyboardInterrupt())
    assert story.lines == BOTH


def test_a_thaw_that_fails_does_not_hide_why_the_view_failed() -> None:
    with pytest.raises(RuntimeError, match="no view") as caught:
        make_view(PAIR, Story(thaw=BAD), RuntimeError("no view"))
    assert caught.value.__notes__ == ["the command after the view ended with status 1: busy"]


def test_a_command_that_has_to_succeed_prevents_the_view_and_is_taken_back() -> None:
    story = Story(freeze=BAD)
    with pytest.raises(HookError, match="before the view ended with status 1: busy"):
        make_view(PAIR, story)
    assert story.lines == ["freeze before", "thaw after"]


def test_a_command_that_was_never_started_is_not_taken_back() -> None:
    story = Story(freeze=NEVER_RAN)
    with pytest.raises(HookError):
        make_view(PAIR, story)
    assert story.lines == ["freeze before"]


def test_a_command_that_was_interrupted_is_taken_back() -> None:
    story = Story(freeze=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        make_view(PAIR, story)
    assert story.lines == ["freeze before", "thaw after"]


def test_a_warning_costs_the_consistency_and_not_the_view() -> None:
    story = Story(freeze=BAD)
    pair = HookPair(before=LAX_BEFORE, after=AFTER, consistency="application")
    outcome = make_view(pair, story)
    assert story.lines == BOTH
    assert outcome.consistency == "crash"
    assert outcome.warnings() == ["the command before the view ended with status 1: busy"]


def test_a_thaw_that_fails_is_never_silent() -> None:
    story, lax = Story(thaw=BAD), Story(thaw=BAD)
    with pytest.raises(HookError, match="after the view"):
        make_view(PAIR, story)
    make_view(HookPair(before=BEFORE, after=LAX_AFTER, consistency="file-system"), lax)
    for outcome in (story.outcome, lax.outcome):
        assert outcome.consistency == "file-system"
        assert outcome.warnings() == ["the command after the view ended with status 1: busy"]


def test_one_of_the_two_is_enough() -> None:
    story = Story()
    for pair in (HookPair(before=BEFORE), HookPair(after=AFTER), HookPair()):
        with around_view(pair, ENVIRONMENT, run=story) as outcome:
            assert outcome.consistency == "crash"
    assert story.lines == ["freeze before", "thaw after"]


# --- a node that ends in between -----------------------------------------------------------------


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "frozen.json"


def test_the_marker_is_there_while_something_may_be_frozen(marker: Path) -> None:
    class Looking(Story):
        def __call__(self, hook: Hook, environment: Mapping[str, str]) -> HookResult:
            assert marker.exists()
            return super().__call__(hook, environment)

    story = Looking()
    with around_view(PAIR, ENVIRONMENT, marker=marker, run=story):
        assert marker.exists()
    assert not marker.exists()
    assert run_leftover(PAIR, marker, run=story) is None
    assert story.lines == ["freeze before", "thaw after"]


def test_the_next_start_thaws_what_the_last_run_left_frozen(marker: Path, tmp_path: Path) -> None:
    with around_view(PAIR, ENVIRONMENT, marker=marker, run=Story()):
        left = shutil.copy(marker, tmp_path / "left.json")  # what a killed node leaves
    story = Story(thaw=BAD)
    assert run_leftover(PAIR, left, run=story) == BAD
    assert story.lines == ["thaw after"]
    assert run_leftover(PAIR, left, run=story) is None


def test_what_could_not_be_thawed_is_tried_again_at_the_next_start(marker: Path) -> None:
    pair = HookPair(before=BEFORE, after=LAX_AFTER)
    with around_view(pair, ENVIRONMENT, marker=marker, run=Story(thaw=BAD)):
        pass
    assert run_leftover(pair, marker, run=Story()) == GOOD


def test_a_marker_that_cannot_be_read_still_thaws(marker: Path) -> None:
    marker.write_text("half")
    asked: list[Mapping[str, str]] = []

    def run(hook: Hook, environment: Mapping[str, str]) -> HookResult:
        asked.append(environment)
        assert hook is AFTER
        return GOOD

    assert run_leftover(PAIR, marker, run=run) == GOOD
    assert asked == [{"SB_PHASE": "after"}]


def test_nothing_is_marked_that_would_not_be_taken_back(marker: Path) -> None:
    with around_view(HookPair(before=BEFORE), ENVIRONMENT, marker=marker, run=Story()):
        assert not marker.exists()


# --- a real file system --------------------------------------------------------------------------


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[Path]:
    """Yield a mounted ext4."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    image.write_bytes(bytes(8 * 1024 * 1024))
    for tool in ("mkfs.ext4", "mount", "fsfreeze"):
        if shutil.which(tool) is None:
            pytest.skip(f"file system: {tool} is not installed")
    subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True, check=True)
    done = mount_image(image, folder)
    if done.returncode:
        pytest.skip(f"file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Should the test have failed: a frozen file system cannot be unmounted.
        subprocess.run(["fsfreeze", "-u", str(folder)], capture_output=True, check=False)
        subprocess.run(["umount", str(folder)], check=True)


def test_a_real_file_system_is_frozen_for_the_view_only(file_system: Path) -> None:
    pair = HookPair(
        before=Hook(command=("fsfreeze", "-f", str(file_system))),
        after=Hook(command=("fsfreeze", "-u", str(file_system))),
        consistency="file-system",
    )
    writer = threading.Thread(target=(file_system / "file").write_text, args=("x",), daemon=True)
    with contextlib.suppress(RuntimeError), around_view(pair, ENVIRONMENT) as outcome:
        assert outcome.consistency == "file-system"
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        raise RuntimeError("no view")
    writer.join(LONG_S)
    assert not writer.is_alive()
    assert (file_system / "file").read_text() == "x"
