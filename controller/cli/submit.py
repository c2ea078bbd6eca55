"""`ctl submit`: start a backup, a restore, a verification or a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import click

from backplane.errors import BackupError, UsageError
from backplane.file_map.pattern import spelled
from controller.cli.client import connect, new_token
from controller.cli.follow import Caller, follow_jobs, worst
from controller.cli.options import DURATION, Group, Settings
from controller.cli.placing import run_place
from controller.cli.render import Screen
from controller.cli.restore_files import run_restore_files

VIEW_MEANS: Final = ("auto", "snapshot", "clone", "mirror", "hold")
LEVELS: Final = ("full", "differential", "incremental", "auto")


@click.group(cls=Group)
def submit() -> None:
    """Start a backup, a restore, a verification or a second copy.

    Without --wait the job's number is printed and the job goes on by itself.
    """


_wait = click.option(
    "--wait", is_flag=True, help="Watch the job until it ends; exit with the job's code."
)


@submit.command(
    examples=[
        "ctl submit backup vol1 --wait",
        "ctl submit backup vol1 --inactivity 10s --sync-timeout 5m",
        "ctl submit backup data log --group --wait",
        "ctl submit backup vol1 --level incremental",
        "ctl submit backup vol1 --path 'home/**' --exclude '*.iso'",
        "ctl submit backup vol1 --raw",
        "ctl submit backup vol1 --pool weekly --drives 2",
    ]
)
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@click.option(
    "--group",
    "is_group",
    is_flag=True,
    help="View all volumes in one instant, or none; then each is a backup of its own.",
)
@click.option(
    "--inactivity",
    "quiet_s",
    type=DURATION,
    help="Write inactivity period: how long the volume must be quiet before its static view is made. "
    "[default: what the volume says]",
)
@click.option(
    "--sync-timeout",
    "sync_timeout_s",
    type=DURATION,
    help="How long to wait for that quiet; then the job fails and the volume is as before. "
    "[default: what the volume says]",
)
@click.option(
    "--view",
    type=click.Choice(VIEW_MEANS),
    default=VIEW_MEANS[0],
    show_default=True,
    help="How the static view is made; with auto the disk node chooses.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[0],
    show_default=True,
    help="What is copied: all that is allocated, what has changed since the last full backup, or since the last backup "
    "of any level; with auto the last of these if it is possible. What is not possible is a full backup instead, and "
    "the job says why.",
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATTERN",
    help="Copy only files that match, and what is needed to find them: `home/**` is a place, `*.iso` a name anywhere, "
    "a folder is all that is in it. May be given several times.",
)
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="PATTERN",
    help="Leave out the contents of files that match; without --path all others are copied. May be given several "
    "times.",
)
@click.option(
    "--raw",
    "is_raw",
    is_flag=True,
    help="Do not map blocks to files: for what cannot be mapped, such as an encrypted volume or a leg of a RAID.",
)
@click.option("--pool", default="", help="Pool of the cartridges.  [default: default]")
@click.option(
    "--drives",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Write to so many drives at once, a stretch of the volume to each; fewer if there is little to copy.",
)
@click.option(
    "--no-wait-media",
    is_flag=True,
    help="Fail with exit code 7 if no cartridge is there, instead of asking for one and waiting.",
)
@_wait
@click.pass_obj
def backup(
    settings: Settings,
    volumes: tuple[str, ...],
    is_group: bool,
    quiet_s: float | None,
    sync_timeout_s: float | None,
    view: str,
    level: str,
    paths: tuple[str, ...],
    excludes: tuple[str, ...],
    is_raw: bool,
    pool: str,
    drives: int,
    no_wait_media: bool,
    wait: bool,
) -> int:
    """Back up each VOLUME to tape.

    Several volumes are several jobs, each with an instant and an end of its own; with --group all are viewed in one
    instant.  The exit code is that of the worst.

    The blocks of a volume are mapped to its files, and what no file system uses is not copied.  A backup of chosen
    files is always a full one, and no other stands on it.
    """
    options: dict[str, object] = {"view": view, "level": level}
    if paths or excludes:
        options |= {"paths": [*map(spelled, paths)], "excludes": [*map(spelled, excludes)]}
    if is_raw:
        options["raw"] = True
    if pool:
        options["pool"] = pool
    if drives != 1:
        options["drives"] = drives
    if no_wait_media:
        options["no_wait_media"] = True
    if quiet_s is not None:
        options["quiet_s"] = quiet_s
    if sync_timeout_s is not None:
        options["sync_timeout_s"] = sync_timeout_s
    with _connect(settings) as client:
        if is_group and len(volumes) > 1:
            jobs = run_group(client, volumes=volumes, **options)
            return _finish(client, jobs, settings=settings, wait=wait)
        jobs, refusals = [], list[BackupError]()
        for volume in volumes:
            try:
                jobs.append(run_backup(client, volume=volume, **options))
            except BackupError as error:
                if len(volumes) == 1:
                    raise
                refusals.append(error)
                Screen(settings.output).talk(f"ctl: {volume} is not backed up: {error}")
        refused = [int(error.exit_code) for error in refusals]
        if not jobs:
            return worst(refused)
        return worst([*refused, _finish(client, jobs, settings=settings, wait=wait)])


@submit.command(
    examples=[
        "ctl submit restore vol1/latest --new vol1-copy --wait",
        "ctl submit restore vol1/2026-01-11T10:43:48Z --to vol1 --force",
        "ctl submit restore 3 --to vol2",
        "ctl submit restore 3 --new what-is-left --keep-going --wait",
        "ctl submit restore 3 --new copy --drives 2 --wait",
        "ctl submit restore vol1/latest --path 'home/ada/**' --new ada --wait",
        "ctl submit restore vol1/latest --path 'home/ada/**' --new ada --drives 2",
        "ctl submit restore vol1/latest --path etc/fstab --out /tmp/found",
        "ctl submit restore vol1/latest --path 'home/ada/thesis.tex' --wait",
        "ctl submit restore vol1/latest --path 'images/*.iso' --into /mnt/vol1/found",
    ]
)
@click.argument("backup", metavar="BACKUP")
@click.option("--to", metavar="VOLUME", default="", help="Restore onto this existing volume.")
@click.option("--new", metavar="NAME", default="", help="Restore to a new volume of this name.")
@click.option("--force", is_flag=True, help="With --to: overwrite what is on the volume.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATTERN",
    help="Restore only files that match: `home/**` is a place, `*.iso` a name anywhere, a folder is all that is in it. "
    "May be given several times.",
)
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files that match. May be given several times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="FOLDER",
    help="With --path: make the files in this folder, here, with their attributes. Waits until they are there.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="FOLDER",
    help="With --path: make the files in this folder of a mounted ext4 or XFS on a volume, here; movers write large "
    "ones beneath it. Nothing that is there is overwritten. Waits until they are there.",
)
@click.option(
    "--volume",
    default="",
    metavar="NAME",
    help="With --into: the volume that is mounted there. [default: the one that the backup is of]",
)
@click.option(
    "--no-check",
    "is_unchecked",
    is_flag=True,
    help="With --path: do not read the records once more to compare them with what was restored.",
)
@click.option(
    "--keep-going",
    "is_going_on",
    is_flag=True,
    help="Bring back everything that can be read: a damaged record or a missing cartridge leaves zeros, which are "
    "listed by LBA and by file, and the exit code is 3.",
)
@click.option(
    "--drives",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Read so many cartridges at once, each in a drive of its own; not with --into, nor for files that go back to "
    "where they were. [default: as many as the backup was written with; of a second copy, all that it is on]",
)
@_wait
@click.pass_obj
def restore(
    settings: Settings,
    backup: str,
    to: str,
    new: str,
    force: bool,
    paths: tuple[str, ...],
    excludes: tuple[str, ...],
    out: Path | None,
    into: Path | None,
    volume: str,
    is_unchecked: bool,
    is_going_on: bool,
    drives: int | None,
    wait: bool,
) -> int:
    """Restore BACKUP from tape: a volume, or files.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME as `ctl backup list` shows it.  A volume that is restored is
    offline until all data are there.

    Files come back in one of four ways.  With --new (or --to) to a volume of their own, which can be mounted and has
    the names of all files, but only the contents of those.  With --out to a folder on this machine.  With --into to
    a folder of a file system that is mounted here: movers write large files beneath it.  With none of these to where
    they were, if the volume is not in use and a fresh map proves that they still own the same blocks.  What does
    not come back is listed, and the exit code is 3.
    """
    going: dict[str, object] = {"keep_going": True} if is_going_on else {}
    files = {
        "paths": [*map(spelled, paths)],
        "excludes": [*map(spelled, excludes)],
        "check": not is_unchecked,
        **going,
    }
    if drives is not None:
        files["drives"] = going["drives"] = drives
    check_target(to=to, new=new, force=force, has_files=bool(paths or excludes), out=out, into=into)
    if volume and into is None:
        raise UsageError("--volume goes with --into", hint="--to names the volume that is written")
    if is_unchecked and not (paths or excludes):
        raise UsageError("--no-check goes with --path: only files are compared after a restore")
    if (drives or 1) > 1 and not (to or new or out):
        what = "files are put back in place" if into is None else "--into has files written"
        raise UsageError(
            f"--drives {drives}: {what} by one job, which alone may write to a volume that is online, and reads one "
            "cartridge after the other",
            hint="leave --drives out, or restore to a volume with --new NAME or to a folder with --out FOLDER",
        )
    with _connect(settings) as client:
        if out is not None:
            screen = Screen(settings.output)
            return run_restore_files(client, backup=backup, out=out, files=files, screen=screen)
        if into is not None:
            screen = Screen(settings.output)
            return run_place(
                client, backup=backup, into=into, volume=volume, files=files, screen=screen
            )
        chosen = files if paths or excludes else {}
        job = run_restore(client, backup=backup, to=to, new=new, force=force, **(chosen or going))
        if chosen:
            Screen(settings.output).talk(way_words(job, to=to, new=new))
        return _finish(client, [job], settings=settings, wait=wait)


@submit.command(
    examples=[
        "ctl submit verify vol1/latest --wait",
        "ctl submit verify --tape LTO001L8 --sample 200",
        "ctl submit verify --pool weekly --sample 5%",
    ]
)
@click.argument("backup", metavar="[BACKUP]", default="")
@click.option("--tape", "tag", metavar="TAG", default="", help="Verify all that is on a cartridge.")
@click.option(
    "--pool", metavar="NAME", default="", help="Verify all that is on the cartridges of a pool."
)
@click.option(
    "--sample",
    metavar="N%|COUNT",
    default="",
    help="Read only so many records of each part, chosen by chance, and always its first and its last. "
    "[default: every record]",
)
@_wait
@click.pass_obj
def verify(settings: Settings, backup: str, tag: str, pool: str, sample: str, wait: bool) -> int:
    """Read a backup, a cartridge or a pool from tape and check every record, or a sample.

    Damage is listed by LBA and by file, stays known with the backups, and ends with exit code 8.  A verification of
    a pool passes over cartridges that are not in a library; then its exit code is 3.
    """
    if sum(map(bool, (backup, tag, pool))) != 1:
        raise UsageError(
            "a verification needs one thing to read", hint="BACKUP, --tape TAG or --pool NAME"
        )
    what = {"backup": backup, "tag": tag, "pool": pool, "sample": sample}
    with _connect(settings) as client:
        job = run_verify(client, **{name: value for name, value in what.items() if value})
        return _finish(client, [job], settings=settings, wait=wait)


@submit.command(
    examples=[
        "ctl submit copy vol1/latest --pool offsite --wait",
        "ctl submit copy 12 --pool offsite --no-wait-media",
    ]
)
@click.argument("backup", metavar="BACKUP")
@click.option("--pool", metavar="NAME", default="", help="Pool of the copy. [default: default]")
@click.option(
    "--no-wait-media",
    "no_wait_media",
    is_flag=True,
    help="Fail if there is no cartridge to write on, instead of waiting for one.",
)
@_wait
@click.pass_obj
def copy(settings: Settings, backup: str, pool: str, no_wait_media: bool, wait: bool) -> int:
    """Make a second copy of BACKUP: from tape to tape, by movers, on other cartridges.

    The copy is a backup of its own, with the same time and level.  Whatever cannot be read of one is read of the
    other, without being asked for.  Two drives are needed at once.
    """
    options: dict[str, object] = {"pool": pool} if pool else {}
    if no_wait_media:
        options["no_wait_media"] = True
    with _connect(settings) as client:
        job = _submit(client, kind="copy", backup=backup, **options)
        return _finish(client, [job], settings=settings, wait=wait)


def check_target(
    *,
    to: str,
    new: str,
    force: bool,
    has_files: bool = False,
    out: Path | None = None,
    into: Path | None = None,
) -> None:
    """Refuse a restore that names no target, two targets, or forces nothing."""
    if out is not None or into is not None:
        if (out is not None and into is not None) or to or new or force:
            name = "--out" if into is None else "--into"
            raise UsageError(f"{name} is a target of its own", hint="give one target and no more")
        if not has_files:
            name = "--out" if into is None else "--into"
            raise UsageError(f"{name} makes files", hint="say which with --path PATTERN")
        return
    if has_files and not to and not new:
        if force:
            raise UsageError("--force goes with --to: in place nothing else is overwritten")
        return
    if bool(to) == bool(new):
        raise UsageError(
            "a restore needs one target", hint="give --to VOLUME or --new NAME, or --path"
        )
    if force and not to:
        raise UsageError("--force goes with --to: a new volume has nothing to overwrite")


def way_words(job: int, *, to: str, new: str) -> str:
    """Say which way a restore of files goes."""
    if to or new:
        return f"job {job} restores the files on volume {to or new}, among the names of all others"
    return f"job {job} puts the files back in place, onto the volume that they came from"


def run_backup(client: Caller, *, volume: str, **options: object) -> int:
    """Submit a backup and return its job."""
    return _submit(client, kind="backup", volume=volume, **options)


def run_group(client: Caller, *, volumes: Sequence[str], **options: object) -> list[int]:
    """Submit the backup of a group and return its jobs, one per volume."""
    answer = client.call(
        "job.submit", token=new_token(), kind="backup", group=list(volumes), **options
    )
    return [int(job) for job in answer["jobs"]]


def run_restore(
    client: Caller, *, backup: str, to: str, new: str, force: bool, **files: object
) -> int:
    """Submit a restore and return its job."""
    return _submit(client, kind="restore", backup=backup, to=to, new=new, force=force, **files)


def run_verify(client: Caller, **what: str) -> int:
    """Submit a verification and return its job."""
    return _submit(client, kind="verify", **what)


class _Recorder:
    """Stands for the controller while somebody only wants to know what a command would submit."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Take down a submission."""
        if verb != "job.submit":
            raise UsageError("this needs a workstation, and cannot be submitted by a clock")
        self.submitted.append({k: v for k, v in arguments.items() if k != "token"})
        return {"job": 0, "jobs": [0]}


_recorder: ContextVar[_Recorder | None] = ContextVar("_recorder", default=None)


@contextmanager
def _connect(settings: Settings) -> Iterator[Any]:
    recorder = _recorder.get()
    if recorder is not None:
        yield recorder
        return
    with connect(settings) as client:
        yield client


def recorded(command: Sequence[str]) -> list[dict[str, Any]]:
    """Return the arguments of each job that `ctl submit` would submit with these words, and submit none."""
    if "--wait" in command:
        raise UsageError("nobody waits for what the clock submits", hint="leave --wait out")
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        submit.main([*command], prog_name="ctl submit", standalone_mode=False, obj=Settings())
    except click.ClickException as error:
        raise UsageError(f"submit {' '.join(command)}: {error.format_message()}") from error
    finally:
        _recorder.reset(token)
    return recorder.submitted


def _submit(client: Caller, **arguments: object) -> int:
    # The token makes the call idempotent: sent again after a lost reply, it names the same job.
    return int(client.call("job.submit", token=new_token(), **arguments)["job"])


def _finish(client: Caller, jobs: Sequence[int], *, settings: Settings, wait: bool) -> int:
    if _recorder.get() is not None:
        return 0
    screen = Screen(settings.output)
    if wait:
        return follow_jobs(client, jobs, screen=screen)
    if len(jobs) == 1:
        [job] = jobs
        screen.show({"job": job}, table=lambda: f"job {job}")
    else:
        rows = [{"job": job} for job in jobs]
        screen.show(
            {"jobs": rows}, table=lambda: "\n".join(f"job {job}" for job in jobs), rows="jobs"
        )
    for job in jobs:
        screen.talk(f"watch it with `ctl job wait {job}`")
    return 0
