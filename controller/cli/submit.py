"""`ctl submit`: start a backup, a restore or a verification."""

from __future__ import annotations

import click

from backplane.errors import UsageError
from controller.cli.client import connect, new_token
from controller.cli.follow import Caller, follow_job
from controller.cli.options import DURATION, Group, Settings
from controller.cli.render import Screen

QUIET_S = 3.0
SYNC_TIMEOUT_S = 80.0


@click.group(cls=Group)
def submit() -> None:
    """Start a backup, a restore or a verification.

    Without --wait the job's number is printed and the job goes on by itself.
    """


_wait = click.option(
    "--wait", is_flag=True, help="Watch the job until it ends; exit with the job's code."
)


@submit.command(
    examples=[
        "ctl submit backup vol1 --wait",
        "ctl submit backup vol1 --inactivity 10s --sync-timeout 5m",
    ]
)
@click.argument("volume")
@click.option(
    "--inactivity",
    "quiet_s",
    type=DURATION,
    default=f"{QUIET_S:.0f}s",
    show_default=True,
    help="Write inactivity period: how long the volume must be quiet before its static view is made.",
)
@click.option(
    "--sync-timeout",
    "sync_timeout_s",
    type=DURATION,
    default=f"{SYNC_TIMEOUT_S:.0f}s",
    show_default=True,
    help="How long to wait for that quiet; then the job fails and the volume is as before.",
)
@_wait
@click.pass_obj
def backup(
    settings: Settings, volume: str, quiet_s: float, sync_timeout_s: float, wait: bool
) -> int:
    """Back up VOLUME to tape."""
    with connect(settings) as client:
        job = run_backup(client, volume=volume, quiet_s=quiet_s, sync_timeout_s=sync_timeout_s)
        return _finish(client, job, settings=settings, wait=wait)


@submit.command(
    examples=[
        "ctl submit restore vol1/latest --new vol1-copy --wait",
        "ctl submit restore vol1/2026-01-11T10:43:48Z --to vol1 --force",
        "ctl submit restore 3 --to vol2",
    ]
)
@click.argument("backup", metavar="BACKUP")
@click.option("--to", metavar="VOLUME", default="", help="Restore onto this existing volume.")
@click.option("--new", metavar="NAME", default="", help="Restore to a new volume of this name.")
@click.option("--force", is_flag=True, help="With --to: overwrite what is on the volume.")
@_wait
@click.pass_obj
def restore(settings: Settings, backup: str, to: str, new: str, force: bool, wait: bool) -> int:
    """Restore BACKUP from tape, onto a volume or to a new one.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME as `ctl backup list` shows it.  The volume is offline until all
    data are there.
    """
    check_target(to=to, new=new, force=force)
    with connect(settings) as client:
        job = run_restore(client, backup=backup, to=to, new=new, force=force)
        return _finish(client, job, settings=settings, wait=wait)


@submit.command(examples=["ctl submit verify vol1/latest --wait"])
@click.argument("backup", metavar="BACKUP")
@_wait
@click.pass_obj
def verify(settings: Settings, backup: str, wait: bool) -> int:
    """Read BACKUP from tape and check every record.

    Damage is listed by LBA and ends with exit code 8.
    """
    with connect(settings) as client:
        return _finish(client, run_verify(client, backup=backup), settings=settings, wait=wait)


def check_target(*, to: str, new: str, force: bool) -> None:
    """Refuse a restore that names no target, two targets, or forces nothing."""
    if bool(to) == bool(new):
        raise UsageError("a restore needs one target", hint="give either --to VOLUME or --new NAME")
    if force and not to:
        raise UsageError("--force goes with --to: a new volume has nothing to overwrite")


def run_backup(client: Caller, *, volume: str, quiet_s: float, sync_timeout_s: float) -> int:
    """Submit a backup and return its job."""
    return _submit(
        client, kind="backup", volume=volume, quiet_s=quiet_s, sync_timeout_s=sync_timeout_s
    )


def run_restore(client: Caller, *, backup: str, to: str, new: str, force: bool) -> int:
    """Submit a restore and return its job."""
    return _submit(client, kind="restore", backup=backup, to=to, new=new, force=force)


def run_verify(client: Caller, *, backup: str) -> int:
    """Submit a verification and return its job."""
    return _submit(client, kind="verify", backup=backup)


def _submit(client: Caller, **arguments: object) -> int:
    # The token makes the call idempotent: sent again after a lost reply, it names the same job.
    return int(client.call("job.submit", token=new_token(), **arguments)["job"])


def _finish(client: Caller, job: int, *, settings: Settings, wait: bool) -> int:
    screen = Screen(settings.output)
    if wait:
        return follow_job(client, job, screen=screen)
    screen.show({"job": job}, table=lambda: f"job {job}")
    screen.talk(f"watch it with `ctl job wait {job}`")
    return 0
