"""`ctl keys`: identities of processes and operators."""

from __future__ import annotations

from pathlib import Path

import click

from backplane.errors import RefusedError
from backplane.runtime.keys import ROLES, create_key_pair, ensure_key_pair
from controller.cli import render
from controller.cli.options import PATH, Group, Settings
from controller.cli.render import Screen


@click.group(cls=Group)
def keys() -> None:
    """Make the keys by which processes know each other."""


@keys.command(
    examples=[
        "ctl keys create --folder /etc/serverless-backup/keys --role mover --name mover-1",
        "ctl keys create --folder ~/.config/serverless-backup --role operator --name alice",
    ]
)
@click.option("--folder", type=PATH, required=True, help="Where the key files go.")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the key's holder is.")
@click.option("--name", required=True, help="Name of the process or operator.")
@click.option(
    "--if-missing", is_flag=True, help="A key of this role and name that exists is kept: done."
)
@click.pass_obj
def create(settings: Settings, folder: Path, role: str, name: str, if_missing: bool) -> None:
    """Make a key pair.  A key that exists is never overwritten.

    Writes FOLDER/NAME.secret (mode 0600, for its holder only) and FOLDER/authorized/NAME.public.  The controller admits
    the keys of its authorized folder, and drops a connection when the file is removed.
    """
    document = run_create(folder, role=role, name=name, is_kept=if_missing)
    Screen(settings.output).show(
        document,
        table=lambda: render.block([(key, value) for key, value in document.items()]),
    )


def run_create(folder: Path, *, role: str, name: str, is_kept: bool) -> dict[str, str]:
    """Make a key pair and describe it; the secret is not shown."""
    make = ensure_key_pair if is_kept else create_key_pair
    try:
        pair = make(folder, role=role, name=name)
    except OSError as error:
        raise RefusedError(f"cannot write keys to {folder}: {error.strerror}") from error
    return {
        "role": pair.role,
        "name": pair.name,
        "public_key": pair.public.hex(),
        "secret_file": str(folder / f"{pair.name}.secret"),
        "public_file": str(folder / "authorized" / f"{pair.name}.public"),
    }
