"""The exception tree that every role shares.

An error knows four things where it is *defined*, not where it is caught: the SCSI sense triple that
crosses the wire, whether trying again can help, the exit code of ``ctl`` and, per instance, a hint that
says what a person can do.  `InvalidTransition` is no `BackupError`: it is a bug, and bugs crash.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, NamedTuple


class ExitCode(IntEnum):
    """Exit codes of ``ctl``; listed in the help of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    NOT_FOUND = 4
    REFUSED = 5
    NOT_QUIET = 6
    MEDIA_NEEDED = 7
    DAMAGED = 8
    NO_CONTROLLER = 9
    INTERRUPTED = 130


class SenseTriple(NamedTuple):
    """Sense key, additional sense code and qualifier (SPC-4 4.5)."""

    key: int
    asc: int
    ascq: int


class BackupError(Exception):
    """Base of all errors that are answers, not bugs."""

    kind: ClassVar[str] = "failed"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    default_sense: ClassVar[SenseTriple] = SenseTriple(0x0B, 0x00, 0x00)

    def __init__(self, message: str, *, hint: str = "", sense: SenseTriple | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sense = sense if sense is not None else self.default_sense

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ProtocolError(BackupError):
    """A peer and we do not agree about the protocol."""

    kind = "protocol"


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: our bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol: answer once, drop, count."""


class CopyError(BackupError):
    """A copy operation ended with CHECK CONDITION; its sense says why."""

    kind = "copy"


class MediumError(BackupError):
    """The medium cannot be read or written: damage, I/O error, wrong checksum."""

    kind = "medium"
    default_sense = SenseTriple(0x03, 0x11, 0x00)
    exit_code = ExitCode.DAMAGED


class VolumeError(BackupError):
    """The cartridge or volume is not what was asked for: wrong label, shorter than the catalog."""

    kind = "volume"
    default_sense = SenseTriple(0x03, 0x30, 0x00)


class MediaNeededError(BackupError):
    """No cartridge can take the data."""

    kind = "media"
    exit_code = ExitCode.MEDIA_NEEDED


class NotFoundError(BackupError):
    """The thing that was named does not exist."""

    kind = "not-found"
    exit_code = ExitCode.NOT_FOUND
    default_sense = SenseTriple(0x05, 0x25, 0x00)


class SourceEmptyError(NotFoundError):
    """A cartridge is not in the element where it should be: somebody has taken it out (SMC: source element empty)."""

    kind = "source-empty"
    default_sense = SenseTriple(0x05, 0x3B, 0x0E)


class RefusedError(BackupError):
    """It would overwrite or lose something, or a rule forbids it."""

    kind = "refused"
    exit_code = ExitCode.REFUSED
    default_sense = SenseTriple(0x07, 0x27, 0x00)


class NotAuthorizedError(RefusedError):
    """The grant does not cover this.  One error for every reason, so that nothing can be probed.

    26h/15h COPY SOURCE OR COPY DESTINATION NOT AUTHORIZED.
    """

    kind = "denied"
    default_sense = SenseTriple(0x05, 0x26, 0x15)


class StaleError(RefusedError):
    """A newer epoch owns the logical unit, or the node has restarted: the sender must stop."""

    kind = "stale"
    default_sense = SenseTriple(0x06, 0x29, 0x00)


class RetainedError(RefusedError):
    """A retention or a hold lasts: it has to be kept for now, and nothing is wrong with it."""

    kind = "retained"


class BusyError(BackupError):
    """Somebody else uses it; waiting helps."""

    kind = "busy"
    retryable = True
    exit_code = ExitCode.REFUSED
    default_sense = SenseTriple(0x02, 0x04, 0x07)


class NotReadyError(BusyError):
    """A drive does not get ready with a cartridge, or does not let go of one; trying again may help, then a person."""

    kind = "not-ready"
    default_sense = SenseTriple(0x02, 0x04, 0x00)


class UnreachableError(BackupError):
    """A node or the controller cannot be reached; waiting may help."""

    kind = "unreachable"
    retryable = True
    exit_code = ExitCode.NO_CONTROLLER
    default_sense = SenseTriple(0x02, 0x04, 0x00)


class ConfigError(BackupError):
    """All mistakes of a configuration at once, each with file and key."""

    kind = "config"
    exit_code = ExitCode.USAGE

    def __init__(self, findings: list[str], *, hint: str = "") -> None:
        self.findings = tuple(findings)
        super().__init__("; ".join(findings), hint=hint)


class NotQuietError(BackupError):
    """The period of write inactivity did not come within the sync timeout."""

    kind = "not-quiet"
    exit_code = ExitCode.NOT_QUIET


class UsageError(BackupError):
    """The request makes no sense as written."""

    kind = "usage"
    exit_code = ExitCode.USAGE
    default_sense = SenseTriple(0x05, 0x24, 0x00)


class InvalidTransition(AssertionError):  # noqa: N818 - a bug is no "error" that is answered
    """A state machine met an event that its table does not have: a bug, always."""

    def __init__(
        self, *, machine: str, state: str, event: str, story: tuple[str, ...] = ()
    ) -> None:
        self.story = story
        told = "; ".join(story) if story else "nothing before"
        super().__init__(f"{machine}: {event} in state {state} (story: {told})")


def _all_kinds(root: type[BackupError]) -> dict[str, type[BackupError]]:
    found = {root.kind: root}
    for child in root.__subclasses__():
        for kind, cls in _all_kinds(child).items():
            found.setdefault(kind, cls)
    return found


def error_from_kind(kind: str, message: str, *, hint: str = "") -> BackupError:
    """Rebuild an error that crossed the wire as (kind, message, hint)."""
    cls = _all_kinds(BackupError).get(kind, BackupError)
    if issubclass(cls, ConfigError):
        return ConfigError([message], hint=hint)
    return cls(message, hint=hint)
