"""Start a storage node: `storage-node --config FILE`; or prepare files (`place`), or map an image (`map`).

Each command imports for itself what the others do not need: the node takes four fifths of what imports cost, and `ctl`
starts `place` for each restore.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import click

from backplane.errors import BackupError, ExitCode, RefusedError
from backplane.runtime.clock import SystemClock
from storage_node.mapping.limits import MappingRules
from storage_node.placing.prepared import opened_folder
from storage_node.placing.session import HOLD_S, Session

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
    from backplane.runtime import failpoints
    from backplane.runtime.config import load_config
    from backplane.runtime.logs import setup_logs
    from storage_node.config import StorageNodeConfig
    from storage_node.service import run

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


@main.command("restore-from")
@click.argument(
    "cartridges", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path)
)
@click.option("--list", "is_list", is_flag=True, help="Only say which backups are there.")
@click.option("--backup", default="", help="Number of the backup, or the beginning of its UUID.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The file that is written."
)
@click.option("--path", default="", help="One file of the volume, instead of all of it.")
@click.option("--keep-going", "keeps_going", is_flag=True, help="Also if something is damaged.")
@click.option("--force", is_flag=True, help="Replace what is there already.")
def restore_from(
    cartridges: tuple[Path, ...],
    is_list: bool,
    backup: str,
    out: Path | None,
    path: str,
    keeps_going: bool,
    force: bool,
) -> None:
    """Restore a volume, or a file, from the folders of CARTRIDGES: no controller, no catalog, no keys.

    Cartridges are only read.  All that a backup stands on has to be among them; what is missing is said before anything
    is written.

    \b
    Exit codes: 0 all is there; 1 failed; 2 usage; 3 done, but what was damaged is missing (zeros), or a part came back
    of which the trailer is damaged: that is listed; 4 no such backup or file; 5 refused; 7 a cartridge is missing, it
    is named; 8 damaged, or not a cartridge.
    """
    if not is_list and (not backup or out is None):
        raise click.UsageError("--backup and --out are needed, or --list.")
    from storage_node.rescue.restore_from import (
        Reassembly,
        list_backups,
        scratch_file,
        whole_or_nothing,
    )
    from storage_node.rescue.shelf import shelved

    def tell(line: str) -> None:
        click.echo(line, err=True)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="restore-from-") as scratch,
            shelved(cartridges, scratch=Path(scratch)) as shelf,
        ):
            for words in (words for cartridge in shelf for words in cartridge.left_out()):
                tell(words)
            if is_list:
                for line in list_backups(shelf) or ["no backup is on these cartridges"]:
                    click.echo(line)
                return
            assert out is not None
            made = Reassembly(shelf, backup, keeps_going=keeps_going, tell=tell)
            with whole_or_nothing(out, is_forced=force) as descriptor:
                if path:
                    row = made.find_file(path)
                    with scratch_file(out.parent) as volume:
                        made.write_file(descriptor, row, volume)
                else:
                    made.write(descriptor)
    except (OSError, BackupError) as error:
        click.echo(f"storage-node: {error}", err=True)
        sys.exit(int(error.exit_code) if isinstance(error, BackupError) else 1)
    for reason in made.losses.reasons:
        click.echo(f"missing: {reason}", err=True)
    for doubt in made.doubts:
        click.echo(f"not certain: {doubt}", err=True)
    if made.losses.reasons or made.doubts:
        sys.exit(int(ExitCode.PARTIAL))


@main.command("accept-clock")
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The TOML file of the node.",
)
@click.option("--yes", is_flag=True, help="The clock is right: the node is to believe it.")
def accept_clock(config_file: Path, yes: bool) -> None:
    """Say whether this node believes the clock of its machine, and have it do so once somebody has looked at it.

    A clock that has leapt forward would end retentions early, so none ends by it until then.  Run it where the node
    runs, and as the same user; the node takes it up within seconds.

    \b
    Exit codes: 0 the clock is believed, or will be; 1 failed; 2 usage; 4 no node with a library has run here;
    5 the clock is not believed, and --yes was not said.
    """
    from backplane.runtime.config import load_config
    from storage_node.config import StorageNodeConfig
    from storage_node.core.time_line import written
    from storage_node.node_clock import accept, kept_doubt, kernel_boot_id

    try:
        config = load_config(StorageNodeConfig, config_file, env_prefix="STORAGE_NODE")
        clock, boot = SystemClock(), kernel_boot_id()
        doubt = kept_doubt(config.state_folder, clock, boot=boot)
        if not doubt:
            click.echo(f"believed: the clock is at {written(clock.wall())}")
        elif yes:
            accept(config.state_folder, clock, boot=boot)
            click.echo(f"accepted: the clock is at {written(clock.wall())}")
        else:
            raise RefusedError(f"not believed: {doubt}", hint="look at the clock; then --yes")
    except BackupError as error:
        click.echo(f"storage-node: {error}", err=True)
        sys.exit(int(error.exit_code))


@main.command("map")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--second-opinion", is_flag=True, help="Compare with what the library pytsk3 says.")
@click.option(
    "--seconds-max",
    type=click.FloatRange(min=1),
    default=MappingRules().seconds_max,
    show_default=True,
    help="What our readers, and the library for each file system, may take.",
)
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def map_image(image: Path, second_opinion: bool, seconds_max: float, output: str) -> None:
    """Say what is on an image file or block device, which is only read: file systems, files, what is allocated.

    \b
    Exit codes: 0 mapped, and nothing speaks against it; 1 failed; 2 usage; 3 the second opinion differs, or the
    library failed; 4 no such image, or nothing known on it; 5 recognised and not readable, or the library is not
    installed; 8 damaged.
    """
    from storage_node.mapping.opinion import survey
    from storage_node.mapping.opinion_report import as_json, as_text

    rules = MappingRules(seconds_max=seconds_max)
    try:
        found = survey(image, rules=rules, clock=SystemClock(), has_opinion=second_opinion)
    except BackupError as error:
        click.echo(f"storage-node: {error}", err=True)
        sys.exit(int(error.exit_code))
    click.echo(as_json(found) if output == "json" else as_text(found))
    sys.exit(int(found.exit_code))


if __name__ == "__main__":
    main()
