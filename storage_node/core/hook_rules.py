"""Commands around the making of a view: what they are, and what consistency they give.

A view is `crash` consistent by itself: what a power cut would leave.  A command that runs before it can make more of
it: freeze the file system, or let a database come to rest.  Which of the two is declared beside the command, because
nobody can see it from the outside; it holds only if that command succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Consistency = Literal["crash", "file-system", "application"]
Phase = Literal["before", "after"]

HOOK_TIMEOUT_S_MAX: Final = 600.0
"""Workstations may stand still from the one command to the end of the other."""
HOOK_WORDS_MAX: Final = 64
HOOK_OUTPUT_BYTES_MAX: Final = 4096
"""The end of what a command says is kept: errors come last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command and its arguments; no shell reads them.

    If it fails, `on_error` says whether the view fails with it ("fail") or is made all the same ("warn").
    """

    command: tuple[str, ...]
    timeout_s: float = 30.0
    on_error: Literal["fail", "warn"] = "fail"

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise ValueError("command: names no program")
        if len(self.command) > HOOK_WORDS_MAX:
            raise ValueError(f"command: more than {HOOK_WORDS_MAX} words")
        if any("\0" in word for word in self.command):
            raise ValueError("command: a zero byte")
        if not 0 < self.timeout_s <= HOOK_TIMEOUT_S_MAX:
            raise ValueError(f"timeout_s: more than 0 and at most {HOOK_TIMEOUT_S_MAX:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPair:
    """The commands of one volume.  `after` takes back what `before` did, so it runs whenever `before` was started."""

    before: Hook | None = None
    after: Hook | None = None
    consistency: Consistency = "crash"

    def __post_init__(self) -> None:
        if self.consistency != "crash" and self.before is None:
            raise ValueError(
                f"consistency: nothing runs before the view to make it {self.consistency}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HookResult:
    """How a command ended; `reason` says for people why it is not good."""

    is_ok: bool
    output: str = ""
    seconds: float = 0.0
    reason: str = ""
    was_started: bool = True


def hook_environment(*, volume: str, view: str, job: int) -> dict[str, str]:
    """Return what every command of a view is told; the phase comes in addition."""
    return {"SB_VOLUME": volume, "SB_VIEW": view, "SB_JOB": str(job)}


def needs_after(pair: HookPair, before: HookResult | None) -> bool:
    """Say whether `after` has to run; None is a `before` that never came to an end.

    A `before` that failed or was killed may have done its work, so it is taken back.  One that could not even be
    started has done nothing, and taking back what was not done may be an error of its own.
    """
    return pair.after is not None and (before is None or before.was_started)


def consistency_reached(pair: HookPair, before: HookResult | None) -> Consistency:
    """Say what a view has become; None is no command before it."""
    return pair.consistency if before is not None and before.is_ok else "crash"
