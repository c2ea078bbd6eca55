"""Start a mover: `mover-node --config FILE`."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import secrets
import sys
from pathlib import Path

import click

from backplane import crc
from backplane.errors import BackupError, ConfigError
from backplane.runtime import failpoints
from backplane.runtime.config import load_config
from backplane.runtime.keys import KeyPair, load_key_pair, load_public_key
from backplane.runtime.logs import setup_logs
from backplane.runtime.loop import Loop
from backplane.runtime.signals import SignalHandlers
from backplane.transport.zeromq import DealerEndpoint
from mover_node.config import NAME_OF_KEY, MoverConfig
from mover_node.service import MoverService

_logger = logging.getLogger("mover-node")


def identity(config: MoverConfig) -> KeyPair:
    """Load the mover's key; raises `ConfigError` if it is not that of a mover of the configured name."""
    keys = load_key_pair(config.key_file)
    if keys.role != "mover":
        raise ConfigError([f"{config.key_file}: a key of role {keys.role!r}, not of a mover"])
    if config.name not in (NAME_OF_KEY, keys.name):
        raise ConfigError([f"name: {config.name!r}, but the key belongs to {keys.name!r}"])
    return keys


def run(config: MoverConfig) -> None:
    """Run until a signal says stop, or the controller refuses us."""
    keys = identity(config)
    controller = load_public_key(config.controller_key_file)
    if config.state_folder is not None:
        config.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    crc.load()  # now, and not in the middle of the first job
    loop = Loop()
    try:
        endpoint = DealerEndpoint(
            config.controller, keys=keys, server_key=controller.public, now=loop.now
        )
        try:
            service = MoverService(
                config,
                loop=loop,
                endpoint=endpoint,
                keys=keys,
                boot_id=secrets.token_bytes(16),
                program=f"mover-node {importlib.metadata.version('serverless-backup')}",
            )
            with SignalHandlers(loop, on_stop=service.drain, on_dump=service.dump):
                service.start()
                _logger.info("started", extra={"mover": keys.name, "controller": config.controller})
                try:
                    loop.run()
                finally:
                    service.close()
            if service.refusal is not None:
                raise service.refusal
            _logger.info("stopped")
        finally:
            if config.ready_file is not None:
                config.ready_file.unlink(missing_ok=True)
            endpoint.close()
    finally:
        loop.close()


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The TOML file of this mover.",
)
@click.option("--check-config", is_flag=True, help="Say what is wrong with the file, and exit.")
def main(config_file: Path, check_config: bool) -> None:
    """Carry out EXTENDED COPY parameter lists: blocks from disk nodes to tape nodes, and back."""
    if not __debug__:
        sys.exit("mover-node: refuses to run under python -O: its assertions guard the data")
    os.umask(0o077)
    try:
        config = load_config(MoverConfig, config_file, env_prefix="MOVER_NODE")
        if check_config:
            return
        name = identity(config).name
        setup_logs(name, level=config.log_level, format=config.log_format, file=config.log_file)
        if armed := failpoints.arm():
            _logger.warning("failpoints are armed: %s", ", ".join(armed))
        run(config)
    except BackupError as error:
        click.echo(f"mover-node: {error}", err=True)
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
