"""`ctl`: the command line of Serverless Backup, one file per noun.

Each command has three parts: its declaration (help, examples, options), a `run_` function with plain arguments where
there is more to do than one call, and rendering.  Everything that goes wrong ends here, in `main`: one line
with the reason, one with a hint, and a documented exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, cast

import click

from backplane.errors import BackupError, ExitCode
from controller.cli import render
from controller.cli.client import connect, exit_code_of, program_version
from controller.cli.mover import mover_table
from controller.cli.node import node_table
from controller.cli.options import Group, Output, Settings, output_wanted
from controller.cli.render import Document, Screen

NOUNS: Final = {
    "submit": "submit",
    "job": "job",
    "backup": "backup",
    "map": "map_",
    "volume": "volume",
    "view": "view",
    "tape": "tape",
    "pool": "pool",
    "schedule": "schedule",
    "drive": "drive",
    "node": "node",
    "mover": "mover",
    "catalog": "catalog",
    "keys": "keys",
    "local": "local",
    "debug": "debug",
}
"""Each noun, which is also the name of its file, and what the command is called there."""


class Nouns(Group):
    """All nouns; a file is loaded when its noun is asked for, because a command needs one of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, loaded or not."""
        return sorted({*super().list_commands(ctx), *NOUNS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None if there is none of that name."""
        if cmd_name not in self.commands:
            # A name that is none is answered with those that are like it, so then all are loaded.
            for noun in [cmd_name] if cmd_name in NOUNS else NOUNS:
                module = importlib.import_module(f"controller.cli.{noun}")
                self.add_command(getattr(module, NOUNS[noun]))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=Nouns,
    is_outermost=True,
    examples=[
        "ctl local up --detach",
        "ctl volume create vol1 --from disk.img",
        "ctl submit backup vol1 --wait",
        "ctl submit restore vol1/latest --new vol1-copy --wait",
    ],
)
@click.version_option(program_version(), prog_name="ctl", message="%(prog)s %(version)s")
def ctl() -> None:
    """Back up volumes to tape and restore them, without the data passing through a server.

    Data go to standard output, in the form chosen by --output; messages go to standard error.  Shared options may stand
    before or after the subcommand.
    """


@ctl.command(examples=["ctl status", "ctl status --output json"])
@click.pass_obj
def status(settings: Settings) -> None:
    """Show the controller, the storage nodes and the movers at a glance."""
    with connect(settings) as client:
        document = {
            **client.call("controller.status"),
            **client.call("node.list"),
            **client.call("mover.list"),
        }
    Screen(settings.output).show(document, table=lambda: status_page(document))


def status_page(document: Document) -> str:
    """Render the state of a cluster."""
    facts = render.block(
        [
            ("Controller", str(document["version"])),
            ("Store", str(document["store"])),
            ("Started", render.local_time(document["started"])),
            ("Active jobs", str(document["jobs_active"])),
            ("Epoch", str(document["epoch"])),
            ("Controller payload", f"{document['payload_bytes']} bytes"),
        ]
    )
    return f"{facts}\n\n{node_table(document)}\n\n{mover_table(document)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ctl` and return its exit code."""
    if not __debug__:
        sys.stderr.write("ctl: does not run under python -O: assertions are part of it\n")
        return ExitCode.USAGE
    given = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings()
    try:
        code = ctl.main(args=given, prog_name="ctl", standalone_mode=False, obj=settings)
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return error.exit_code
    except click.ClickException as error:
        return _usage(error, given)
    except (click.Abort, KeyboardInterrupt):
        _error_screen(settings.output).failure("interrupted", code=ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing more to say, and nothing to say it with.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except BackupError as error:
        code = exit_code_of(error)
        _error_screen(settings.output).error(error, code=code)
        return int(code)


def _usage(error: click.ClickException, arguments: Sequence[str]) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"`{error.ctx.command_path} --help` shows how it is used"
    wanted = output_wanted(arguments)
    screen = _error_screen("json" if wanted in ("json", "jsonl") else "table")
    screen.failure(error.format_message(), code=error.exit_code, hint=hint)
    return error.exit_code


def _error_screen(output: str) -> Screen:
    return Screen(cast("Output", output))
