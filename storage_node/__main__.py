"""Start a storage node: `storage-node --config FILE`."""

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
from storage_node.service import run

_logger = logging.getLogger("storage_node")


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The TOML file of this node.",
)
@click.option("--check-config", is_flag=True, help="Say what is wrong with the file, and exit.")
def main(config_file: Path, check_config: bool) -> None:
    """Serve volumes and static views (disk role) and a tape library (tape role) to movers."""
    if not __debug__:
        sys.exit("storage-node: refuses to run under python -O: its assertions guard the data")
    os.umask(0o077)
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


if __name__ == "__main__":
    main()
