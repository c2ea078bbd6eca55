"""Shared by all tests: options, hypothesis profiles, and the check that a test cleans up after itself.

Options: `--seeds N` (simulator seeds per test), `--rewrite` (scenarios and golden files are written anew instead of
compared; read the diff), `--kind memory,processes` (where a story that can run in both runs).

Hypothesis: the profile `short` is the default and draws the same examples every time, so that a commit that passed
passes again; `long` (`HYPOTHESIS_PROFILE=long`) looks for new ones.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

SETTLE_S = 2.0
"""How long a test's threads, children and descriptors may take to go after its end."""

KINDS = ("memory", "processes")

# Hundreds of files are imported by each worker and by each process that tests start: compiled once, also where the
# environment says that nothing is to be written.  `.gitignore` and `make clean` know the folders.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# On Debian these are not on the PATH of an ordinary user, who may run most of what is there all the same.
for _folder in ("/usr/local/sbin", "/usr/sbin", "/sbin"):
    if _folder not in os.environ.get("PATH", os.defpath).split(os.pathsep):
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{_folder}"

# Whoever starts a run in the background (a shell with `&`, nohup, a build service) may have signals ignored, which
# all children inherit: tests that send them would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

settings.register_profile(
    "short",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", parent=settings.get_profile("short"), max_examples=200)
settings.register_profile(
    "long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("serverless backup")
    group.addoption("--seeds", type=int, default=200, help="simulator seeds per test (default 200)")
    group.addoption("--rewrite", action="store_true", help="write expected files anew")
    group.addoption(
        "--kind", default=",".join(KINDS), help="where stories run: memory, processes, or both"
    )


# --- several workers -----------------------------------------------------------------------------

FIRST = (
    "integration/test_compose.py",
    "simulation/test_simulation.py",
    "property/test_controller_storm.py",
    "integration/test_placement.py",
    "integration/test_ctl_local.py",
    "fault/test_kills_and_pauses.py",
    "integration/test_whole_way.py",
    "integration/test_backup_and_restore.py",
    "integration/test_static_views.py",
    "integration/test_mapping.py",
    "integration",
    "fault",
    "packaging",
    "simulation",
    "unit/storage_node/mapping/test_xfs_replay.py",
    "unit/storage_node/mapping/test_opinion.py",
    "property",
    "tidy",
    "unit/storage_node",
)
"""What takes long begins first, so that short tests are left for the end and no core waits there for another; what
waits for clocks is mixed with what computes.  Everything else comes after these."""

for _name in FIRST:
    assert (TESTS / _name).exists(), f"{_name} is no longer there: take it out of FIRST"

WHOLE_FILES = tuple(f"tests/{folder}/" for folder in ("property", "scenarios", "tidy", "unit"))
"""Where a worker gets whole files: there are thousands of tests, and a message for each is work for nothing."""


# While tests are collected nothing becomes garbage that is worth a search among so much that does not.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Have each worker begin to collect at another file.

    All of them collect everything.  What the first has compiled is read by the others, but only if they do not compile
    the same file at the same time, as they do if all begin at the first one.
    """
    if not hasattr(config, "workerinput") or not all(Path(each).is_dir() for each in config.args):
        return
    files = sorted({str(path) for each in config.args for path in Path(each).rglob("test_*.py")})
    number = int(config.workerinput["workerid"].removeprefix("gw"))
    wanted = len(files) * number // config.workerinput["workercount"]
    places = [_whole_folder(Path(each)) for each in files]
    borders = [at for at in range(len(files)) if at == 0 or places[at] != places[at - 1]]
    begin = max(border for border in borders if border <= wanted)
    config.args = files[begin:] + files[:begin]


def _whole_folder(path: Path) -> tuple[str, ...]:
    """Name the folder of a test that must not be collected in two pieces: the second would lack its `conftest.py`."""
    parts = path.resolve().relative_to(TESTS).parts
    return parts[:2] if parts[0] == "unit" else parts[:1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files where tests are short, and in the order that we have chosen."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        """Groups; where there are none, files or single tests."""

        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            is_alone = scope == nodeid and nodeid.startswith(WHOLE_FILES)
            return nodeid.partition("::")[0] if is_alone else scope

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@cache
def _order(place: Path) -> tuple[int, str]:
    path = place.relative_to(TESTS).as_posix()
    places = [
        place for place, name in enumerate(FIRST) if path == name or path.startswith(f"{name}/")
    ]
    return min(places, default=len(FIRST)), path


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which puts the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests together that share a fixture of their module: apart, each worker would make it for itself.

    Where the fixture has parameters, those of one parameter belong together.  Other groups are named by their tests.
    The order is the same in each worker, wherever it began to collect.
    """
    items.sort(key=lambda item: _order(item.path))
    for item in items:
        if item.get_closest_marker("xdist_group") or not isinstance(item, pytest.Function):
            continue
        found = item._fixtureinfo.name2fixturedefs
        shared = sorted(name for name, each in found.items() if each[-1].scope == "module")
        if shared:
            places = item.callspec.indices if hasattr(item, "callspec") else {}
            words = [item.path.stem, *(str(places[name]) for name in shared if name in places)]
            item.add_marker(pytest.mark.xdist_group(" ".join(words)))


def pytest_collection_finish() -> None:
    """Leave what has been collected out of every later search for garbage: it stays to the end, and it is millions."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Iterator[Any]:
    """Remove the folders of a module's fixture with the fixture, unless a test has failed meanwhile.

    What lies in them are images of disks: at the end of the run it would be gigabytes.
    """
    if fixturedef.scope != "module" or "tmp_path_factory" not in fixturedef.argnames:
        return (yield)
    factory = request.getfixturevalue("tmp_path_factory")
    made: list[Path] = []
    failed = request.session.testsfailed

    def make(*arguments: Any, **options: Any) -> Path:
        made.append(type(factory).mktemp(factory, *arguments, **options))
        return made[-1]

    def remove() -> None:
        if request.session.testsfailed == failed:
            for folder in made:
                shutil.rmtree(folder)

    fixturedef.addfinalizer(remove)  # before the fixture's own, so it comes after them
    factory.mktemp = make
    try:
        return (yield)
    finally:
        del factory.mktemp


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    """The seeds that a simulation test runs."""
    return range(request.config.getoption("--seeds"))


@pytest.fixture
def is_rewriting(request: pytest.FixtureRequest) -> bool:
    """Whether expected files are to be written anew."""
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture
def kinds(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Where stories run."""
    wanted = tuple(request.config.getoption("--kind").split(","))
    assert set(wanted) <= set(KINDS), f"--kind takes {', '.join(KINDS)}"
    return wanted


def _threads() -> set[str]:
    return {f"thread {thread.name}" for thread in threading.enumerate()}


def _children() -> set[str]:
    # /proc directly: psutil would look at every process of the machine, twice per test.
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            for pid in (task / "children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.add(f"process {pid} {command[:200].decode(errors='replace')}")
                if b" tests.site.warm " in command:  # which starts daemons for us
                    theirs = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                    found.update(f"process {each} started by {pid}" for each in theirs)
        except OSError:
            continue  # gone while we look
    return found


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"descriptor {entry.name} {entry.readlink()}")
        except OSError:
            continue  # the listing's own descriptor
    return found


def _snapshot() -> set[str]:
    return _threads() | _children() | _descriptors()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a child process, a socket or an open file behind.

    Fixtures of a wider scope are set up before this one, so what they hold is not counted.
    """
    before = _snapshot()
    yield
    left = _snapshot() - before
    end = time.monotonic() + SETTLE_S
    while left and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)  # threads and children end in their own time
        left = _snapshot() - before
    if left:
        pytest.fail(f"{request.node.name} left behind: {'; '.join(sorted(left))}")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: unix socket addresses are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        yield Path(folder)
