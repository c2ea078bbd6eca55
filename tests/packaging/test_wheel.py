"""What a user installs: the wheel holds everything that the programs need, and nothing else.

The wheel is built and installed without a network; its dependencies are those of the test's own environment.
The installed programs run from an empty directory, because in the checkout every forgotten file is found.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backplane", "controller", "mover_node", "storage_node")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DAEMONS = ("controller", "mover-node", "storage-node")


pytestmark = pytest.mark.xdist_group("wheel")  # built and installed once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; returns its folder of programs."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    probe = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    packages = Path(probe.stdout.strip())
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    # The dependencies, but not the editable checkout: a path that a .pth file adds has its own .pth files ignored.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Migrations, templates and py.typed are the ones that get forgotten."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= names


def test_the_wheel_asks_for_what_the_project_asks_for(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    lines = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:") and "extra" not in line
    ]
    assert len(lines) == len(PROJECT["dependencies"])
    assert "Requires-Python: >=3.11" in metadata


@pytest.mark.parametrize("program", [*PROJECT["scripts"]])
def test_an_installed_program_shows_its_help_from_an_empty_directory(
    installed: Path, tmp_path: Path, program: str
) -> None:
    done = run([installed / program, "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout or "usage" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_imported_from_the_installation(
    installed: Path, tmp_path: Path, package: str
) -> None:
    """Guards the tests above: they must not have found the checkout."""
    done = run(
        [installed / "python", "-c", f"import {package}; print({package}.__file__)"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_the_migrations_are_found_in_the_installation(installed: Path, tmp_path: Path) -> None:
    code = (
        "import controller.catalog.migrations as m, pathlib\n"
        "folders = [pathlib.Path(p) for p in m.__path__]\n"
        "print(len([f for p in folders for f in (p / 'versions').glob('*.py')]))"
    )
    done = run([installed / "python", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


@pytest.mark.parametrize("program", DAEMONS)
def test_a_daemon_refuses_a_configuration_that_is_not_there(
    installed: Path, tmp_path: Path, program: str
) -> None:
    done = run([installed / program, "--config", tmp_path / "none.toml"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "none.toml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("controller.__main__", ["--config", "none.toml"]),
        ("mover_node.__main__", ["--config", "none.toml"]),
        ("storage_node.__main__", ["--config", "none.toml"]),
        ("controller.cli", ["job", "list"]),
    ],
)
def test_a_program_refuses_to_start_without_assertions(
    installed: Path, tmp_path: Path, module: str, arguments: list[str]
) -> None:
    """Assertions state invariants; under -O a broken one would write to tape."""
    code = (
        "import sys, importlib\n"
        f"sys.argv = ['program', *{arguments!r}]\n"
        f"sys.exit(importlib.import_module({module!r}).main())"
    )
    done = run([installed / "python", "-O", "-c", code], tmp_path)
    assert done.returncode != 0
    assert "-O" in done.stderr
