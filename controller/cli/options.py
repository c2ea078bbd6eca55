"""What all commands of `ctl` share: settings, the options that set them, and the form of a help page.

A shared option may stand before or after the subcommand (`ctl --output json job list`, `ctl job list --output json`);
the last one given wins.  Environment variables are read at the outermost level only, so that they never
override an option that was typed further out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import click

from backplane.errors import BackupError, ExitCode
from backplane.units import parse_duration, parse_size

Output: TypeAlias = Literal["table", "json", "jsonl"]
OUTPUTS: Final = ("table", "json", "jsonl")
TIMEOUT_S: Final = 30.0
"""How long the controller may be silent before `ctl` gives up; longer than its restart takes."""

FIRST_CONTACT_S: Final = 10.0
"""The same before it was ever heard: it is probably not there, or does not know our key."""

EXIT_CODES: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "the command makes no sense as written",
    ExitCode.PARTIAL: "done, with warnings (partial)",
    ExitCode.NOT_FOUND: "what was named does not exist",
    ExitCode.REFUSED: "refused: it would overwrite, is protected, in use or not authorized",
    ExitCode.NOT_QUIET: "the volume did not become quiet within the sync timeout",
    ExitCode.MEDIA_NEEDED: "no cartridge can take the data",
    ExitCode.DAMAGED: "damage was found",
    ExitCode.NO_CONTROLLER: "no contact with the controller",
    ExitCode.INTERRUPTED: "interrupted",
}


def default_state_folder() -> Path:
    """Return where a local cluster keeps its state unless told otherwise (XDG base directories)."""
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share"
    return base / "serverless-backup"


@dataclass(slots=True)
class Settings:
    """The values of the shared options of one call of `ctl`."""

    state: Path = field(default_factory=default_state_folder)
    controller: str = ""
    key: Path | None = None
    controller_key: Path | None = None
    output: Output = "table"
    timeout_s: float | None = None


class Quantity(click.ParamType[float]):
    """An option type that reads sizes or durations with their units."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a text; a default that is a number already stays what it is."""
        if isinstance(value, int | float):
            return value
        try:
            return self._parse(value)
        except BackupError as error:
            self.fail(str(error), param, ctx)


class Setting(Quantity):
    """A quantity, or `default`: what is set further up holds again."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; the word passes as it is."""
        return value if value == "default" else super().convert(value, param, ctx)


CARTRIDGE_BYTES_MIN: Final = 64 * 1024 * 1024
"""Capacity of the smallest virtual cartridge; the controller refuses less."""

SIZE: Final = Quantity("size", parse_size)
DURATION: Final = Quantity("duration", parse_duration)
DURATION_OR_DEFAULT: Final = Setting("duration|default", parse_duration)
PATH: Final = click.Path(path_type=Path)


def _store(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None and not ctx.resilient_parsing:
        setattr(ctx.ensure_object(Settings), param.name, value)


class SharedOption(click.Option):
    """An option of all commands; its value goes to the `Settings`, not to the command."""

    def __init__(self, name: str, attribute: str, **rest: Any) -> None:
        # Eager: the output mode is known before any other option can be found wrong.
        super().__init__(
            [name, attribute], expose_value=False, is_eager=True, callback=_store, **rest
        )


def shared_options(*, is_outermost: bool) -> list[click.Parameter]:
    """Return fresh shared options; the outermost ones also read the environment."""

    def variable(name: str) -> str | None:
        return name if is_outermost else None

    return [
        SharedOption(
            "--state",
            "state",
            type=PATH,
            envvar=variable("CTL_STATE"),
            help="State folder of a local cluster; also where its address and keys are found. [env: CTL_STATE]",
        ),
        SharedOption(
            "--controller",
            "controller",
            metavar="ADDRESS",
            envvar=variable("CTL_CONTROLLER"),
            help="Address of the controller, tcp://HOST:PORT. [env: CTL_CONTROLLER]",
        ),
        SharedOption(
            "--key",
            "key",
            type=PATH,
            envvar=variable("CTL_KEY"),
            help="Secret key file of this operator. [env: CTL_KEY]",
        ),
        SharedOption(
            "--controller-key",
            "controller_key",
            type=PATH,
            envvar=variable("CTL_CONTROLLER_KEY"),
            help="Public key file of the controller. [env: CTL_CONTROLLER_KEY]",
        ),
        SharedOption(
            "--output",
            "output",
            type=click.Choice(OUTPUTS),
            envvar=variable("CTL_OUTPUT"),
            help="Form of the data on standard output. [env: CTL_OUTPUT; default: table]",
        ),
        SharedOption(
            "--timeout",
            "timeout_s",
            type=DURATION,
            envvar=variable("CTL_TIMEOUT"),
            help=f"How long the controller may be silent. [env: CTL_TIMEOUT; default: "
            f"{FIRST_CONTACT_S:.0f}s for the first contact, {TIMEOUT_S:.0f}s afterwards]",
        ),
    ]


class _Page(click.Command):
    """A help page: own options, shared options, examples, exit codes."""

    examples: Sequence[str] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the shared ones."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                (shared if isinstance(param, SharedOption) else own).append(record)
        for title, records in (("Options", own), ("Shared options", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write examples and exit codes."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in EXIT_CODES.items()])


class Command(_Page):
    """A command with shared options and examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.examples = examples
        self.params.extend(shared_options(is_outermost=False))


SENTENCE_CHARACTERS_MAX: Final = 400
"""No first sentence of a command's help is longer."""


class Group(_Page, click.Group):
    """A noun; its verbs are `Command`s."""

    command_class = Command
    group_class = type

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str] = (),
        is_outermost: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(*args, **rest)
        self.examples = examples
        self.params.extend(shared_options(is_outermost=is_outermost))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write options and verbs."""
        _Page.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each verb with its first sentence, all of it: click would cut it off at the end of the line."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(SENTENCE_CHARACTERS_MAX))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def output_wanted(arguments: Sequence[str]) -> str:
    """Find the output mode of a command line that could not be parsed, for the report of its error."""
    wanted = os.environ.get("CTL_OUTPUT", "table")
    for index, argument in enumerate(arguments):
        if argument.startswith("--output="):
            wanted = argument.removeprefix("--output=")
        elif argument == "--output" and index + 1 < len(arguments):
            wanted = arguments[index + 1]
    return wanted
