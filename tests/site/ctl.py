"""`ctl` without a process of its own: for stories of so many commands that starting interpreters would be most of it.

It is the same program from `main` on: arguments in, exit code and two texts out.  That the installed command does the
same is for the tests that start it.
"""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from controller.cli import main


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its JSON document."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Ctl:
    """Speaks with the cluster of a state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def run(self, *arguments: str, output: str = "json") -> Done:
        """Run a command to its end, whatever that is."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["--state", str(self._state), *arguments, "--output", output])
        return Done(code, out.getvalue(), err.getvalue())

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run a command that has to succeed; return its document."""
        done = self.run(*arguments)
        assert done.code == 0, f"ctl {' '.join(arguments)} -> {done}"
        return done.document if done.out.strip() else {}

    def backup(self, volume: str, *options: str) -> dict[str, Any]:
        """Back a volume up and return the job, however it has ended."""
        return self.run(
            "submit", "backup", volume, *options, "--inactivity", "0s", "--wait"
        ).document
