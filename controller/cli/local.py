"""`ctl local`: a whole cluster as real processes on this machine, in one folder.

In the foreground `up` owns the state folder until it ends; detached, only while it starts.  `down` asks a
foreground `up` to end first, because that one stops what it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import click

from backplane.errors import ExitCode, RefusedError, UnreachableError, UsageError
from backplane.runtime.clock import SystemClock
from backplane.units import format_size
from controller.cli import render
from controller.cli.client import connect
from controller.cli.cluster import READY_TIMEOUT_S, STOP_GRACE_S, Cluster, DaemonState, Talk
from controller.cli.follow import Caller
from controller.cli.options import CARTRIDGE_BYTES_MIN, SIZE, Group, Settings
from controller.cli.render import Document, Screen
from controller.cli.state_folder import MOVERS_MAX, Daemon, StateFolder

MOVERS: Final = 1
CARTRIDGES: Final = 4
CARTRIDGES_MAX: Final = 999
CAPACITY: Final = "16GiB"
DRIVES: Final = 1
DRIVES_MAX: Final = 64
NO_MODEL: Final = "none"
TAPE_MODELS: Final = (NO_MODEL, "lto7", "lto8", "lto9")
RETURN_S: Final = 5.0
"""How long processes that ran before may take to find a controller that was started anew."""

WATCH_S: Final = 1.0
POLL_S: Final = 0.1
STARTING: Final = "starting a cluster"
SERVING: Final = "serving in the foreground"


Greeting: TypeAlias = Callable[[Settings, Sequence[Daemon]], None]
END_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@click.group(cls=Group)
def local() -> None:
    """Run a whole cluster on this machine.

    One controller, one disk node, one tape node and some movers, as real processes on loopback, with keys, ports
    and state in one folder (--state).
    """


@local.command(
    examples=[
        "ctl local up --movers 2",
        "ctl local up --state /tmp/trial --detach",
        "ctl local up --tape-model lto9",
        "ctl local up --movers 2 --drives 2",
    ]
)
@click.option(
    "--movers",
    type=click.IntRange(1, MOVERS_MAX),
    help=f"Number of movers. [default: as many as before, at first {MOVERS}]",
)
@click.option(
    "--drives",
    type=click.IntRange(1, DRIVES_MAX),
    help=f"Number of drives of the tape node. [default: as many as before, at first {DRIVES}]",
)
@click.option("--detach", is_flag=True, help="Return when everything serves.")
@click.option(
    "--cartridges",
    type=click.IntRange(0, CARTRIDGES_MAX),
    default=CARTRIDGES,
    show_default=True,
    help="Blank cartridges to add if the library is empty.",
)
@click.option(
    "--capacity",
    type=SIZE,
    default=CAPACITY,
    show_default=True,
    help="Capacity of each, at least 64MiB.",
)
@click.option(
    "--tape-model",
    type=click.Choice(TAPE_MODELS),
    help="Drive that the tape node keeps account for: load, locate and streaming times, back-hitches."
    " [default: as before, at first none]",
)
@click.pass_obj
def up(
    settings: Settings,
    movers: int | None,
    drives: int | None,
    detach: bool,
    cartridges: int,
    capacity: float,
    tape_model: str | None,
) -> int:
    """Start the cluster; or what is missing of it.

    Without --detach it stays in the foreground and stops everything on Ctrl-C or SIGTERM.  A cluster that runs
    already is left alone, except that --movers changes the number of its movers.
    """
    return run_up(
        settings,
        movers=movers,
        drives=drives,
        is_detached=detach,
        cartridges=cartridges,
        capacity_bytes=int(capacity),
        tape_model="" if tape_model == NO_MODEL else tape_model,
        screen=Screen(settings.output),
    )


@local.command(examples=["ctl local down"])
@click.pass_obj
def down(settings: Settings) -> None:
    """Stop the cluster.  Its data stay; `ctl local up` starts it again."""
    state = state_folder(settings)
    screen = Screen(settings.output)
    stopped = run_down(state, screen=screen)
    document = {"state_folder": str(state.path), "stopped": stopped}
    screen.show(
        document,
        table=lambda: f"stopped {', '.join(stopped)}" if stopped else "nothing was running",
    )


@local.command(examples=["ctl local status"])
@click.pass_obj
def status(settings: Settings) -> int:
    """Show the processes of the cluster; exit code 9 unless all of them run."""
    document = run_status(state_folder(settings))
    screen = Screen(settings.output)
    screen.show(document, table=lambda: status_page(document))
    if not document["is_running"]:
        screen.talk("start what is missing with `ctl local up`")
        return ExitCode.NO_CONTROLLER
    return ExitCode.OK


def state_folder(settings: Settings) -> StateFolder:
    """Return the state folder that the settings name, as an absolute path."""
    # Absolute, because the path of a configuration file is how a process is recognised.
    return StateFolder(Path(os.path.abspath(settings.state)))  # noqa: PTH100 - no symlinks resolved


def run_up(
    settings: Settings,
    *,
    movers: int | None,
    is_detached: bool,
    cartridges: int,
    capacity_bytes: int,
    screen: Screen,
    cluster: Cluster | None = None,
    greet: Greeting | None = None,
    tape_model: str | None = None,
    drives: int | None = None,
) -> int:
    """Start a cluster; stay with it unless detached.

    `greet` speaks with the controller when the processes serve; by default it waits until every node is known and
    fills an empty library.
    """
    if settings.controller or settings.key or settings.controller_key:
        raise UsageError("`ctl local up` makes its own controller and keys: leave --controller out")
    if cartridges and capacity_bytes < CARTRIDGE_BYTES_MIN:
        # The controller would say so as well, but only when all of it has been started.
        raise UsageError(f"a cartridge has at least {format_size(CARTRIDGE_BYTES_MIN)}")
    state = state_folder(settings)
    state.create()
    cluster = cluster if cluster is not None else Cluster(state)
    try:
        with state.locked(STARTING if is_detached else SERVING), _interrupted_by(*END_SIGNALS):
            if movers is None:
                known = state.record()
                movers = known.movers if known is not None else MOVERS
            started = cluster.start(movers, talk=screen.talk, tape_model=tape_model, drives=drives)
            try:
                if greet is not None:
                    greet(settings, state.daemons(movers))
                else:
                    with connect(settings) as client:
                        wait_until_known(
                            client, state.daemons(movers), started=set(started), talk=screen.talk
                        )
                        fill_library(
                            client, count=cartridges, capacity_bytes=capacity_bytes, screen=screen
                        )
            except BaseException:
                cluster.stop(set(started))
                raise
            document = run_status(state, cluster=cluster) | {"started": started}
            screen.show(document, table=lambda: status_page(document))
            if not is_detached:
                _serve(cluster, movers, screen=screen)
    finally:
        cluster.release()
    return ExitCode.OK


def run_down(state: StateFolder, *, screen: Screen, cluster: Cluster | None = None) -> list[str]:
    """Stop a cluster and return the names of what was stopped."""
    if not state.path.is_dir():
        return []
    cluster = cluster if cluster is not None else Cluster(state)
    before = set(cluster.living())
    _end_foreground(state, screen=screen)
    with state.locked("stopping the cluster"):
        cluster.stop()
    return sorted(before)


def run_status(state: StateFolder, *, cluster: Cluster | None = None) -> dict[str, Any]:
    """Return what a cluster consists of and what of it runs."""
    record = state.record() if state.path.is_dir() else None
    cluster = cluster if cluster is not None else Cluster(state)
    states = cluster.look(record.movers) if record is not None else []
    return {
        "state_folder": str(state.path),
        "address": record.address if record is not None else "",
        "is_running": bool(states) and all(s.word == "running" for s in states),
        "processes": [_process_document(s) for s in states],
    }


def status_page(document: Document) -> str:
    """Render the processes of a cluster."""
    facts = render.block(
        [("State folder", document["state_folder"]), ("Controller", document["address"] or "-")]
    )
    columns = [
        ("PROCESS", render.text_of("name")),
        ("ROLE", render.text_of("role")),
        ("STATE", render.text_of("state")),
        ("PID", lambda row: str(row["pid"] or "-")),
        ("LOG", render.text_of("log")),
    ]
    processes = render.table(
        columns, document["processes"], right=("PID",), empty="  no cluster was ever started here"
    )
    return f"{facts}\n\n{processes}"


def _process_document(state: DaemonState) -> Document:
    return {
        "name": state.daemon.name,
        "role": state.daemon.role,
        "state": state.word,
        "pid": state.process.pid if state.process is not None else 0,
        "log": str(state.daemon.log_file),
    }


def wait_until_known(
    client: Caller, daemons: Sequence[Daemon], *, started: set[str], talk: Talk
) -> None:
    """Wait until the controller has the inventory of every node: serving comes a moment before it.

    A process that ran already and is not heard (it may be paused) is only told of: what was started now is sound.
    """
    names = {daemon.name for daemon in daemons if daemon.role != "controller"}
    clock = SystemClock()
    begun = clock.monotonic()
    while True:
        known = [*client.call("node.list")["nodes"], *client.call("mover.list")["movers"]]
        away = names - {each["name"] for each in known if each["state"] != "away"}
        waited_s = clock.monotonic() - begun
        if not away:
            return
        if not away & started and waited_s >= RETURN_S:
            talk(f"the controller does not hear {', '.join(sorted(away))}")
            return
        if waited_s >= READY_TIMEOUT_S:
            missing = ", ".join(sorted(away & started))
            raise UnreachableError(f"the controller has not heard of {missing}")
        threading.Event().wait(POLL_S)


def fill_library(client: Caller, *, count: int, capacity_bytes: int, screen: Screen) -> None:
    """Add cartridges to an empty library, so that the first backup has somewhere to go."""
    if not count or client.call("tape.list")["cartridges"]:
        return
    for number in range(1, count + 1):
        client.call("tape.add", tag=f"LTO{number:03}L8", capacity_bytes=capacity_bytes, node="tape")
    screen.talk(f"added {count} blank cartridges of {format_size(capacity_bytes)}")


def _serve(cluster: Cluster, movers: int, *, screen: Screen) -> None:
    """Stay until a signal comes, say when a process ends by itself; then stop everything."""
    told: set[str] = set()
    try:
        screen.talk("the cluster runs until Ctrl-C")
        while True:
            threading.Event().wait(WATCH_S)
            dead = {s.daemon.name for s in cluster.look(movers) if s.process is None}
            for name in sorted(dead - told):
                screen.talk(f"{name} has ended by itself; stop and start again to have it back")
            told = dead
    except KeyboardInterrupt:
        screen.talk("stopping the cluster")
    finally:
        with _ignored(
            signal.SIGINT, *END_SIGNALS
        ):  # stopping takes a bounded time; half of it helps nobody
            cluster.stop()


@contextlib.contextmanager
def _interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Let signals do what Ctrl-C does: raise, so that whatever was begun is unwound; but not those that are ignored.

    (`nohup` has hangups ignored, so that what it starts outlives its terminal.)
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = tuple(each for each in signals if signal.getsignal(each) is not signal.SIG_IGN)
    with _handled(interrupt, heard):
        yield


@contextlib.contextmanager
def _ignored(*signals: signal.Signals) -> Iterator[None]:
    with _handled(signal.SIG_IGN, signals):
        yield


@contextlib.contextmanager
def _handled(handler: Any, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets the signals
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _end_foreground(state: StateFolder, *, screen: Screen) -> None:
    """Ask a `ctl local up` that serves in the foreground to end, and wait until it has."""
    owner = state.owner()
    if owner is None or owner[1] != SERVING:
        return
    screen.talk(f"asking `ctl local up` (pid {owner[0]}) to end")
    with contextlib.suppress(ProcessLookupError):
        os.kill(owner[0], signal.SIGTERM)
    clock = SystemClock()
    deadline = clock.monotonic() + 4 * STOP_GRACE_S
    while state.owner() == owner:
        if clock.monotonic() >= deadline:
            raise RefusedError(f"`ctl local up` (pid {owner[0]}) does not end")
        threading.Event().wait(POLL_S)
