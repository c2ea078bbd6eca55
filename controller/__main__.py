"""Start a controller: `controller --config FILE`."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shlex
import sys
from pathlib import Path

import click

from backplane.errors import BackupError, ConfigError
from backplane.runtime import failpoints
from backplane.runtime.config import load_config
from backplane.runtime.keys import KeyTable, load_key_pair
from backplane.runtime.logs import setup_logs
from backplane.runtime.loop import Loop
from backplane.runtime.signals import SignalHandlers
from backplane.transport.zeromq import RouterEndpoint
from controller.catalog.identity import CatalogIdentity
from controller.catalog.sql import SqlCatalog
from controller.config import ControllerConfig
from controller.core.inactivity import Inactivity
from controller.service import ControllerService

_logger = logging.getLogger("controller")


DATA_CHANNELS = "backplane.transport.stream"
"""The code that moves payload.  A controller that has it loaded is not the one whose reports say 0 bytes."""


def open_catalog(place: Path, *, is_new: bool, command: str) -> tuple[SqlCatalog, CatalogIdentity]:
    """Open the catalog that belongs here; with `is_new` an empty one, in place of one that is lost.

    `command` is what starts this controller with an empty one.
    """
    identity = CatalogIdentity(place, command=command)
    if is_new:
        identity.begin_anew()
    else:
        identity.require_catalog()
    catalog = SqlCatalog.open(place)
    try:
        identity.check(catalog.store)
        identity.remember(catalog.store)
    except BackupError:
        catalog.close()
        raise
    return catalog, identity


def run(
    config: ControllerConfig, *, is_new: bool = False, command: str = "controller --new-catalog"
) -> None:
    """Run until a signal says stop; `command` is what starts this controller with an empty catalog."""
    assert DATA_CHANNELS not in sys.modules
    keys = load_key_pair(config.key_file)
    if keys.role != "controller":
        # Every other process would refuse us, and say that it is somebody else's key.
        raise ConfigError([f"{config.key_file}: the key of {keys.role} {keys.name!r}"])
    try:
        config.state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"{config.state_folder}: {error.strerror}"]) from error
    table = KeyTable(config.authorized_folder)
    place = config.state_folder / "catalog.sqlite"
    catalog, identity = open_catalog(place, is_new=is_new, command=command)
    if is_new:
        _logger.warning("the catalog is empty: `ctl catalog rebuild --all --wait` fills it again")
    loop = Loop()
    try:
        endpoint = RouterEndpoint(
            config.listen, keys=keys, table=lambda key: table.lookup(key) is not None
        )
        try:
            service = ControllerService(
                loop=loop,
                endpoint=endpoint,
                keys=keys,
                table=table,
                catalog=catalog,
                version=importlib.metadata.version("serverless-backup"),
                lease_s=config.lease,
                heartbeat_s=config.heartbeat,
                inactivity=Inactivity(
                    quiet_s=config.inactivity_s, sync_timeout_s=config.sync_timeout_s
                ),
                identity=identity,
                stretch_bytes_min=config.stretch_bytes_min,
            )
            service.start()
            _logger.info("serving", extra={"address": endpoint.address, "store": catalog.store})
            with SignalHandlers(loop, on_stop=loop.stop, on_dump=service.dump):
                if config.ready_file is not None:
                    config.ready_file.write_text(endpoint.address + "\n")
                loop.run()
            _logger.info("stopped")
        finally:
            if config.ready_file is not None:
                config.ready_file.unlink(missing_ok=True)
            endpoint.close()
    finally:
        loop.close()
        catalog.close()


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The TOML file of this controller.",
)
@click.option("--check-config", is_flag=True, help="Say what is wrong with the file, and exit.")
@click.option(
    "--new-catalog",
    "is_new",
    is_flag=True,
    help="Start with an empty catalog in place of one that is lost; `ctl catalog rebuild --all` fills it again.",
)
def main(config_file: Path, check_config: bool, is_new: bool) -> None:
    """Plan backups and restores; hand work items to movers; keep the catalog."""
    if not __debug__:
        sys.exit("controller: refuses to run under python -O: its assertions guard the data")
    os.umask(0o077)
    try:
        config = load_config(ControllerConfig, config_file, env_prefix="CONTROLLER")
        if check_config:
            return
        setup_logs(
            config.name, level=config.log_level, format=config.log_format, file=config.log_file
        )
        if armed := failpoints.arm():
            _logger.warning("failpoints are armed: %s", ", ".join(armed))
        command = f"controller --config {shlex.quote(str(config_file))} --new-catalog"
        run(config, is_new=is_new, command=command)
    except BackupError as error:
        click.echo(f"controller: {error}", err=True)
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
