"""The error tree: what each class knows, and what survives a trip over the wire."""

from __future__ import annotations

import pytest

from backplane.errors import (
    BackupError,
    ConfigError,
    CopyError,
    ExitCode,
    InvalidTransition,
    LocalProtocolError,
    MediumError,
    NotAuthorizedError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    SenseTriple,
    StaleError,
    UnreachableError,
    UsageError,
    error_from_kind,
)


def test_an_error_tells_its_hint_to_people() -> None:
    assert str(NotFoundError("no volume x")) == "no volume x"
    told = str(NotFoundError("no volume x", hint="`ctl volume list` shows them"))
    assert told == "no volume x (`ctl volume list` shows them)"


def test_an_error_has_the_sense_of_its_class_unless_it_is_given_another_one() -> None:
    assert NotAuthorizedError("no").sense == SenseTriple(0x05, 0x26, 0x15)
    assert CopyError("no", sense=SenseTriple(0x0A, 0x0D, 0x02)).sense == (0x0A, 0x0D, 0x02)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackupError("x"), 1),
        (UsageError("x"), 2),
        (ConfigError(["x"]), 2),
        (NotFoundError("x"), 4),
        (RefusedError("x"), 5),
        (StaleError("x"), 5),
        (MediumError("x"), 8),
        (UnreachableError("x"), 9),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_exit_code_belongs_to_the_class(error: BackupError, code: int) -> None:
    assert error.exit_code == code


def test_only_what_waiting_can_help_is_retryable() -> None:
    assert UnreachableError("x").retryable
    assert not RefusedError("x").retryable


def test_all_findings_of_a_configuration_are_told_at_once() -> None:
    error = ConfigError(["a.toml: lease: no duration", "a.toml: listen: missing"])
    assert error.findings == ("a.toml: lease: no duration", "a.toml: listen: missing")
    assert str(error) == "a.toml: lease: no duration; a.toml: listen: missing"


def every_class() -> list[type[BackupError]]:
    """The classes of this tree; tests and edges may have more."""
    found, waiting = [], [BackupError]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__ == "backplane.errors":
            found.append(cls)
    return found


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_an_error_is_rebuilt_from_its_kind(cls: type[BackupError]) -> None:
    """An error that crossed the wire exits with the same code and is retried, or not, in the same way."""
    rebuilt = error_from_kind(cls.kind, "message", hint="hint")
    assert (rebuilt.message, rebuilt.hint) == ("message", "hint")
    assert rebuilt.exit_code == cls.exit_code
    assert rebuilt.retryable == cls.retryable
    assert rebuilt.sense == cls.default_sense


def test_a_kind_from_a_newer_peer_is_still_an_error() -> None:
    rebuilt = error_from_kind("not-invented-yet", "message")
    assert type(rebuilt) is BackupError
    assert rebuilt.exit_code is ExitCode.FAILED


def test_our_own_protocol_mistakes_are_protocol_errors() -> None:
    assert issubclass(LocalProtocolError, ProtocolError)


def test_an_invalid_transition_is_a_bug_and_tells_its_story() -> None:
    bug = InvalidTransition(
        machine="job 3", state="queued", event="Ended", story=("made", "queued")
    )
    assert not isinstance(bug, BackupError)
    assert isinstance(bug, AssertionError)
    assert str(bug) == "job 3: Ended in state queued (story: made; queued)"
    assert bug.story == ("made", "queued")
