"""The documents cannot drift: what the code offers must be on its page, and what a page promises must exist."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest

from backplane.errors import ExitCode
from backplane.runtime.config import load_config
from backplane.wire import messages
from controller.config import ControllerConfig
from mover_node.config import MoverConfig
from storage_node.config import StorageNodeConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
CORES = ("backplane.wire", "controller.core", "mover_node.core", "storage_node.core")
MACHINES = {
    "storage_node.core.mirror": "mirror-leg.md",
    "backplane.wire.peer_session": "peer-session.md",
    "controller.core.job": "job.md",
    "mover_node.core.machine": "mover-item.md",
}
"""The page of each machine in docs/state-machines."""
CONFIGS = {
    "controller": "controller.config",
    "mover-node": "mover_node.config",
    "storage-node": "storage_node.config",
}


def page(name: str) -> str:
    path = DOCS / name
    assert path.is_file(), f"docs/{name} is missing"
    return path.read_text(encoding="utf-8")


# --- the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", messages.ALL, ids=lambda cls: cls.kind)
def test_every_control_message_is_in_the_protocol(message: type[messages.Message]) -> None:
    assert f"`{message.kind}`" in page("protocol.md")


def test_every_exit_code_is_documented() -> None:
    text = page("cli.md")
    missing = [
        f"{code.name} ({code})" for code in ExitCode if not re.search(rf"\b{int(code)}\b", text)
    ]
    assert not missing


# --- the command line ----------------------------------------------------------------------------


def root_command() -> click.Group:
    """The click group behind `ctl`, whatever it is called in its module."""
    module = importlib.import_module("controller.cli")
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    assert groups, "controller.cli has no click group"
    (root,) = [
        group for group in groups if not any(group in other.commands.values() for other in groups)
    ]
    return root


def commands(
    group: click.Group, path: tuple[str, ...] = ("ctl",)
) -> Iterator[tuple[str, click.Command]]:
    """Yield ("ctl job show", command) for everything that can be run."""
    # Not `group.commands`: a noun is loaded when somebody asks for it.
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield " ".join((*path, name)), command


def test_every_command_and_option_is_in_the_reference() -> None:
    text = page("cli.md")
    missing = []
    for name, command in commands(root_command()):
        _, found, section = text.partition(f"`{name}")
        if not found:
            missing.append(name)
            continue
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                missing += [
                    f"{name} {option}" for option in parameter.opts if option not in section
                ]
    assert not missing, f"docs/cli.md does not have: {', '.join(missing)}"


def test_every_command_says_what_it_does() -> None:
    assert len(list(commands(root_command()))) > 50, "else the tests here look at nothing"
    silent = [
        name for name, command in commands(root_command()) if not (command.help or "").strip()
    ]
    assert not silent


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_shows_only_commands_that_exist(path: Path) -> None:
    """A tutorial that fails at its second line loses its reader."""
    known = {name for name, _ in commands(root_command())}
    nouns = {" ".join(name.split()[:2]) for name in known}
    groups = {" ".join(name.split()[:-1]) for name in known}
    unknown = []
    for line in code_lines(path.read_text(encoding="utf-8")):
        for noun, verb, below in re.findall(
            r"(?:^|[\s/`])ctl ([a-z]+)(?: ([a-z-]+[a-z]))?(?: ([a-z-]+[a-z]))?", line
        ):
            shown = f"ctl {noun} {verb}".strip()
            if verb and shown in groups:
                if not below:
                    continue
                shown = f"{shown} {below}"
            if f"ctl {noun}" not in nouns or (
                verb and f"ctl {noun}" not in known and shown not in known
            ):
                unknown.append(shown)
    assert not unknown


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_shows_only_make_targets_that_exist(path: Path) -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    shown = {
        name
        for line in code_lines(path.read_text(encoding="utf-8"))
        for name in re.findall(r"(?:^|[\s`])make ([a-z]+)", line)
    }
    assert not shown - targets


def code_lines(text: str) -> Iterator[str]:
    """Yield the lines of fenced blocks and the pieces of inline code."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced:
            yield line
        else:
            yield from re.findall(r"`[^`]+`", line)


# --- state machines ------------------------------------------------------------------------------


def machines() -> dict[str, ModuleType]:
    """Every pure module with a transition table."""
    found = {}
    for package_name in CORES:
        package = importlib.import_module(package_name)
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package_name}.{info.name}")
            if hasattr(module, "TRANSITIONS"):
                found[module.__name__] = module
    return found


def test_every_machine_has_its_page() -> None:
    assert machines().keys() == MACHINES.keys()


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_is_on_the_page_of_its_machine(name: str) -> None:
    text = page(f"state-machines/{MACHINES[name]}")
    states = [state.value for state in importlib.import_module(name).TRANSITIONS]
    assert not [state for state in states if f"| {state} |" not in text]


# --- configuration -------------------------------------------------------------------------------


def config_classes(module_name: str) -> list[type]:
    module = importlib.import_module(module_name)
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module_name
    ]


@pytest.mark.parametrize("role", CONFIGS)
def test_every_configuration_key_is_documented_and_in_the_example(role: str) -> None:
    """An administrator learns keys from the annotated example, and looks them up in docs/config.md."""
    # What a table has inside is shown where the table is, in whatever form that takes.
    keys = {
        field.name
        for cls in config_classes(CONFIGS[role])
        if cls.__name__.endswith("Config")
        for field in fields(cls)
    }
    assert keys, f"{CONFIGS[role]} has no configuration classes"
    reference = page("config.md")
    example = (ROOT / "deploy" / "config" / f"{role}.toml").read_text(encoding="utf-8")
    missing = [f"docs/config.md: {key}" for key in sorted(keys) if f"`{key}`" not in reference]
    missing += [
        f"deploy/config/{role}.toml: {key}"
        for key in sorted(keys)
        if not re.search(rf"^(# ?)?(\[+)?{key}\b", example, re.MULTILINE)
    ]
    assert not missing


EXAMPLES = {
    "controller.toml": ControllerConfig,
    "storage-node.toml": StorageNodeConfig,
    "mover-node.toml": MoverConfig,
    "compose/controller.toml": ControllerConfig,
    "compose/disk.toml": StorageNodeConfig,
    "compose/tape.toml": StorageNodeConfig,
    "compose/mover.toml": MoverConfig,
}


def test_every_example_configuration_is_tried() -> None:
    folder = ROOT / "deploy" / "config"
    assert {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.toml")
    } == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("is_uncommented", [False, True], ids=["as-it-is", "uncommented"])
def test_an_example_configuration_is_accepted(
    name: str, is_uncommented: bool, tmp_path: Path
) -> None:
    """Also with every default written out: a commented line with a wrong type helps nobody."""
    text = (ROOT / "deploy" / "config" / name).read_text(encoding="utf-8")
    if is_uncommented:
        text = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    file = tmp_path / Path(name).name
    file.write_text(text, encoding="utf-8")
    load_config(EXAMPLES[name], file, env_prefix="TEST_OF_EXAMPLES")


# --- pages ---------------------------------------------------------------------------------------

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    broken = []
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        if not (path.parent / target.partition("#")[0]).exists():
            broken.append(target)
    assert not broken


def test_the_code_map_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = [
        folder.relative_to(ROOT).as_posix()
        for top in ("backplane", "controller", "mover_node", "storage_node")
        for folder in sorted({path.parent for path in (ROOT / top).rglob("*.py")})
        if not fnmatch.fnmatch(folder.as_posix(), "*/migrations*")
    ]
    assert folders
    assert not [folder for folder in folders if f"`{folder}" not in text]


def test_every_dependency_has_its_reason() -> None:
    """A dependency is a debt; ARCHITECTURE.md says what each one buys."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["second-opinion"]]
    names = [re.split(r"[<>=\[ ]", line)[0] for line in lines]
    assert not [name for name in names if f"**{name}**" not in text]


GLOSSARY = (
    "additional sense", "application client", "backup mirror", "byte ledger", "cartridge", "CAT", "commit",
    "controller", "copy manager", "credit", "CSCD descriptor", "data plane", "designator", "early warning",
    "end of data", "epoch", "extent", "fence", "filemark", "grant", "lease", "list identifier", "logical block",
    "logical unit", "mover", "object number", "parameter list", "part", "programmable early warning", "record",
    "residual", "segment descriptor", "sense key", "static view", "sync timeout", "trailer", "volume", "volume tag",
    "work item", "write inactivity period",
)  # fmt: skip


def test_the_vocabulary_is_in_the_glossary() -> None:
    text = page("glossary.md").lower()
    assert not [word for word in GLOSSARY if f"**{word.lower()}**" not in text]
