"""Rules that no linter knows, kept by reading the source.

Each rule says why it exists and, where it bans something, what to use instead.  Exceptions are named here with
their reason; an exception that is no longer needed fails as well, so the lists cannot rot.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backplane", "controller", "mover_node", "storage_node")
LINES_MAX = 600
TEST_LINES_MAX = 1000
"""Tests may be longer: they are lists of cases, read one at a time."""

LONG_FILES = {
    "backplane/wire/messages.py": "a table: one class per control message, the specification itself",
    "backplane/transport/stream.py": "both ends of one handshake, which are read side by side",
}
"""Files over their limit, each with its reason."""

NO_TEST_OF_ITS_OWN = {
    "backplane/ids.py": "NewTypes only; nothing runs",
    "backplane/transport/base.py": "a Protocol; every implementation passes testing/contracts/endpoint.py",
    "controller/catalog/store.py": "rows and a Protocol; tests/unit/controller/catalog runs every store",
    "mover_node/core/commands.py": "dataclasses only; nothing runs",
    "storage_node/tape/equipment.py": "Protocols; test_tape_control and test_tape_devices run both libraries",
    "mover_node/streams/base.py": "Protocols; every stream passes the tests of the executor",
    "controller/__main__.py": "started by every test with real processes",
    "mover_node/__main__.py": "started by every test with real processes",
    "storage_node/__main__.py": "started by every test with real processes",
}
"""Modules without tests/unit/<path>/test_<name>.py, each with its reason."""

NO_TEST_NEEDED = ("*/__init__.py", "controller/catalog/migrations/*", "backplane/testing/*")
"""Package files, migrations (run by every catalog test) and the fakes (used by every other test)."""


@dataclass(frozen=True)
class Ban:
    """Calls that may stand only in their home."""

    names: tuple[str, ...]
    homes: tuple[str, ...]
    instead: str


BANS = (
    Ban(
        names=(
            "time.time",
            "time.time_ns",
            "time.monotonic",
            "time.monotonic_ns",
            "time.perf_counter",
            "time.process_time",
            "datetime.datetime.now",
            "datetime.datetime.utcnow",
            "datetime.datetime.today",
            "datetime.date.today",
        ),
        homes=("backplane/runtime/*", "backplane/testing/*", "controller/cli/*"),
        instead="take `now` as an argument, or a backplane.runtime.clock.Clock at an edge",
    ),
    Ban(
        names=("time.sleep",),
        homes=("backplane/runtime/*", "backplane/testing/*", "controller/cli/*"),
        instead="wait for an event with a timeout, so that stopping need not wait for the clock",
    ),
    Ban(
        names=("random.*",),
        homes=(
            "backplane/runtime/*",
            "backplane/testing/*",
            "backplane/transport/faulty.py",
            "mover_node/service.py",  # the shell that hands its core a source of jitter
        ),
        instead="take the value or a callable as an argument: a seed must reproduce everything",
    ),
    Ban(
        names=("os.urandom", "secrets.*", "uuid.uuid1", "uuid.uuid4"),
        homes=(
            "backplane/runtime/*",
            "backplane/testing/*",
            "backplane/transport/stream.py",
            "controller/catalog/*",
            "controller/cli/*",
            "*/__main__.py",
            "controller/service.py",
            "storage_node/service.py",
            "storage_node/disk/*",
            "storage_node/tape/*",
        ),
        instead="identifiers are made by the shell and passed in",
    ),
    Ban(
        names=("os.environ", "os.getenv", "os.putenv"),
        homes=("backplane/runtime/*", "backplane/testing/*", "controller/cli/*"),
        instead="configuration is read once, by backplane.runtime.config",
    ),
    Ban(
        names=("os.system", "os.popen", "os.fork", "pickle.*", "marshal.*", "eval", "exec"),
        homes=(),
        instead="programs are started by backplane.runtime.supervise; data are decoded with limits",
    ),
    Ban(
        names=("subprocess.*",),
        homes=("backplane/runtime/supervise.py", "backplane/testing/*", "controller/cli/*"),
        instead="backplane.runtime.supervise, which also stops what it started",
    ),
    Ban(
        names=("print", "input", "sys.stdout", "sys.stderr"),
        homes=("controller/cli/*", "*/__main__.py", "backplane/runtime/*"),
        instead="daemons log; only command lines talk",
    ),
    Ban(
        names=("logging.basicConfig",),
        homes=(),
        instead="backplane.runtime.logs.setup_logs",
    ),
    Ban(
        names=("os._exit", "sys.exit", "exit", "quit"),
        homes=("controller/cli/*", "*/__main__.py", "backplane/runtime/*"),
        instead="raise a BackupError; the program's edge knows the exit code",
    ),
)


def sources() -> list[Path]:
    """Every module of the four packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def tracked_files() -> list[Path]:
    """Every file that belongs to the project: git's own list, or the folders when there is no repository."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if listed.returncode == 0:
            names = [name for name in listed.stdout.decode().split("\0") if name]
            return [ROOT / name for name in names if (ROOT / name).is_file()]
    folders = (*PACKAGES, "deploy", "docs", "tests")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def those_that_say(words: str, paths: Iterable[Path]) -> Iterator[tuple[Path, ast.Module]]:
    """Parse the files in whose text a pattern is found: to parse all costs seconds."""
    for path in paths:
        if re.search(words, path.read_text(encoding="utf-8")):
            yield path, parse(path)


def imported_names(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Map each name that an import binds to the dotted name behind it."""
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` for an attribute chain over a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return None if left is None else f"{left}.{node.attr}"
    return None


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, full dotted name) of everything imported or built in that the module touches."""
    nodes = list(ast.walk(tree))
    bound = imported_names(nodes)
    names = [node for node in nodes if isinstance(node, (ast.Name, ast.Attribute))]
    assigned = {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assigned |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in names:
        name = dotted(node)
        if name is None:
            continue
        first, _, rest = name.partition(".")
        if first in bound:
            yield node.lineno, bound[first] + (f".{rest}" if rest else "")
        elif not rest and first not in assigned:
            yield node.lineno, first


def violations(path: str, tree: ast.Module) -> list[str]:
    """Return one line per banned use in a module that is not its home."""
    bans = [ban for ban in BANS if not any(fnmatch.fnmatchcase(path, home) for home in ban.homes)]
    return [
        f"{path}:{line}: {name} - {ban.instead}"
        for line, name in uses(tree)
        for ban in bans
        if any(fnmatch.fnmatchcase(name, banned) for banned in ban.names)
    ]


def test_banned_calls_stay_in_their_homes() -> None:
    found = [line for path in sources() for line in violations(relative(path), parse(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.time()",
        "from time import monotonic\nmonotonic()",
        "import time as t\nstarted = t.monotonic()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime as d\nd.datetime.now(d.UTC)",
        "import random\nrandom.Random(3)",
        "import os\nkey = os.urandom(32)",
        "from os import environ\nenviron['HOME']",
        "print('hello')",
        "import uuid\nuuid.uuid4().hex",
    ],
)
def test_the_search_for_banned_calls_finds_them(code: str) -> None:
    """The rule above passes for the wrong reason if this search is blind."""
    assert violations("controller/core/somewhere.py", ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "def handle(event, *, now): return now",
        "class Clock:\n    def time(self): return self.time()",
        "import time\nlimit: time.struct_time",
        "def show(input, print): return input + print",
    ],
)
def test_the_search_for_banned_calls_leaves_innocent_code_alone(code: str) -> None:
    assert not violations("controller/core/somewhere.py", ast.parse(code))


def test_files_stay_short_enough_to_be_read_in_one_sitting() -> None:
    """Six hundred lines are two rooms in one."""
    limits = dict.fromkeys([*sources(), *(ROOT / "deploy").rglob("*.py")], LINES_MAX)
    limits |= dict.fromkeys((ROOT / "tests").rglob("*.py"), TEST_LINES_MAX)
    long = {
        relative(path)
        for path, limit in limits.items()
        if len(path.read_text(encoding="utf-8").splitlines()) > limit
    }
    assert long - LONG_FILES.keys() == set(), "split these, or name them in LONG_FILES"
    assert LONG_FILES.keys() - long == set(), "no longer long: remove from LONG_FILES"


def test_every_module_says_what_it_is_for() -> None:
    """The first thing a reader meets is the purpose; for a package, what belongs into it."""
    silent = [relative(path) for path in sources() if not ast.get_docstring(parse(path))]
    assert not silent, f"no docstring at the top of: {', '.join(silent)}"


def test_imports_are_absolute() -> None:
    """A module that moves must not silently import its new neighbours."""
    found = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in those_that_say(r"\bfrom\s*\.", sources())
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not found


def test_tests_do_not_import_each_other() -> None:
    """A test that lives on another test's helpers breaks when that test is renamed; shared things go to conftest.py
    or to backplane.testing."""
    found = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in those_that_say(
            r"\bfrom\s*\.|\.test_", sorted((ROOT / "tests").rglob("*.py"))
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (
            node.level
            or ((node.module or "").startswith("tests.") and ".test_" in f"{node.module}.")
        )
    ]
    assert not found


def test_every_module_has_a_test_file_of_its_own() -> None:
    """Coverage by accident is no coverage: whoever changes a module finds its tests by its name."""
    missing = set()
    for path in sources():
        name = relative(path)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in NO_TEST_NEEDED):
            continue
        test = (
            ROOT
            / "tests"
            / "unit"
            / path.relative_to(ROOT).parent
            / f"test_{path.stem.strip('_')}.py"
        )
        if not test.is_file():
            missing.add(name)
    assert missing - NO_TEST_OF_ITS_OWN.keys() == set(), (
        "write one, or name it in NO_TEST_OF_ITS_OWN"
    )
    assert NO_TEST_OF_ITS_OWN.keys() - missing == set(), (
        "has a test now: remove from NO_TEST_OF_ITS_OWN"
    )


def test_every_unit_test_belongs_to_a_module() -> None:
    """A test file whose module was renamed tests nothing that anybody will look for."""
    orphans = []
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        folder = path.relative_to(ROOT / "tests" / "unit").parent
        stem = path.stem.removeprefix("test_")
        candidates = (
            f"{stem}.py",
            f"_{stem}.py",
            f"__{stem}__.py",
            f"{stem}/__init__.py",
            "__init__.py",
        )
        if not any((ROOT / folder / candidate).is_file() for candidate in candidates):
            orphans.append(relative(path))
    assert not orphans


FORBIDDEN_FILE_NAMES = ("utils", "helpers", "common", "misc", "manager", "util", "helper")


def test_no_file_has_a_name_that_says_nothing() -> None:
    """What has no better name than `utils` belongs to the code that uses it."""
    assert not [relative(path) for path in sources() if path.stem in FORBIDDEN_FILE_NAMES]


def test_no_path_of_the_developers_machine_is_in_the_project() -> None:
    """Paths of one machine work on one machine."""
    needles = [f"{ROOT}/".encode()]
    home = Path.home()
    if len(home.parts) > 1:
        needles.append(f"{home}/".encode())
    found = [
        relative(path)
        for path in tracked_files()
        if is_text(path) and any(needle in path.read_bytes() for needle in needles)
    ]
    assert not found


@pytest.mark.parametrize(
    "mark", ["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"]
)
def test_nothing_is_left_for_later(mark: str) -> None:
    """Work that is not done belongs into an issue, where somebody sees it."""
    found = [
        relative(path)
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".sh", ""}
        # A contract suite asks its subclasses for what they test.
        and not path.is_relative_to(ROOT / "backplane" / "testing" / "contracts")
        and "golden" not in path.parts
        and path.name != "LICENSE"
        and is_text(path)
        and mark.encode() in path.read_bytes()
    ]
    assert not found


def test_typing_is_never_switched_off_without_a_reason() -> None:
    """`type: ignore` needs its code and a bare `noqa` hides what comes later."""
    bare_ignore, bare_noqa = "type: " + "ignore\n", "# no" + "qa\n"
    found = [
        relative(path)
        for path in sources()
        if bare_ignore in path.read_text(encoding="utf-8")
        or bare_noqa in path.read_text(encoding="utf-8")
    ]
    assert not found


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_declares_its_types(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_import_contracts_hold() -> None:
    """The layers of ARCHITECTURE.md are kept by .importlinter, and this keeps .importlinter in the test run."""
    command = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
