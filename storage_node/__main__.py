"""Start a storage node: `storage-node --config FILE`; or prepare files: `storage-node place --folder DIR`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from backplane.errors import BackupError
from backplane.runtime import failpoints
from backplane.runtime.config import load_config
from backplane.runtime.logs import setup_logs
from storage_node.config import StorageNodeConfig
from storage_node.placing.prepared import opened_folder
from storage_node.placing.session import HOLD_S, Session
from storage_node.service import run

_logger = logging.getLogger("storage_node")


@click.group(context_settings={"help_option_names": ["--help"]}, invoke_without_command=True)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The TOML file of this node.",
)
@click.option("--check-config", is_flag=True, help="Say what is wrong with the file, and exit.")
@click.pass_context
def main(context: click.Context, config_file: Path | None, check_config: bool) -> None:
    """Serve volumes and static views (disk role) and a tape library (tape role) to movers."""
    if not __debug__:
        sys.exit("storage-node: refuses to run under python -O: its assertions guard the data")
    os.umask(0o077)
    if context.invoked_subcommand is not None:
        return
    if config_file is None:
        raise click.UsageError("Missing option '--config'.")
    try:
        config = load_config(StorageNodeConfig, config_file, env_prefix="STORAGE_NODE")
        if check_config:
            return
        setup_logs(
            config.name, level=config.log_level, format=config.log_format, file=config.log_file
        )
        if armed := failpoints.arm():
            _logger.warning("failpoints are armed: %s", ", ".join(armed))
        run(config)
    except BackupError as error:
        click.echo(f"storage-node: {error}", err=True)
        sys.exit(int(error.exit_code))


@main.command()
@click.option(
    "--folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where files are to be: a folder of a mounted ext4 or XFS on a volume.",
)
@click.option(
    "--hold",
    "hold_s",
    type=click.FloatRange(0, 86400),
    default=HOLD_S,
    show_default=True,
    help="Seconds to keep files that movers may be writing, if the caller is gone.",
)
def place(folder: Path, hold_s: float) -> None:
    """Prepare files for `ctl submit restore --into`, which starts this and speaks to it in JSON lines.

    It needs no configuration, no keys and no network.  It ends with its caller, and leaves no file unverified.
    """
    try:
        with opened_folder(os.fsencode(folder)) as descriptor:
            Session(descriptor, sys.stdin.fileno(), sys.stdout.fileno(), hold_s=hold_s).run()
    except (OSError, BackupError) as error:
        click.echo(f"storage-node: {error}", err=True)
        sys.exit(int(error.exit_code) if isinstance(error, BackupError) else 1)


if __name__ == "__main__":
    main()
