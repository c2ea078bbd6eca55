from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from backplane.errors import ExitCode
from controller.cli import ctl as root
from controller.cli.options import (
    EXIT_CODES,
    Command,
    Group,
    Settings,
    default_state_folder,
    output_wanted,
)


@click.group(cls=Group, is_outermost=True)
def program() -> None:
    """A program."""


@program.group(cls=Group)
def noun() -> None:
    """A noun."""


@noun.command(examples=["program noun verb"])
@click.pass_obj
def verb(settings: Settings) -> int:
    """Do it."""
    return id(settings)


def settings_of(*arguments: str) -> Settings:
    settings = Settings()
    given = program.main(args=list(arguments), standalone_mode=False, obj=settings)
    assert given == id(settings)
    return settings


@pytest.fixture(autouse=True)
def _without_environment(state: Path) -> None:
    """The fixture removes what a developer's shell may have set."""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_shared_option_may_stand_anywhere(place: int) -> None:
    words = ["noun", "verb"]
    words[place:place] = ["--output", "json"]
    assert settings_of(*words).output == "json"


def test_the_last_one_given_wins() -> None:
    settings = settings_of("--output", "json", "noun", "verb", "--output", "jsonl")
    assert settings.output == "jsonl"


def test_the_environment_is_beaten_by_an_option_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CTL_OUTPUT", "jsonl")
    monkeypatch.setenv("CTL_STATE", "/from/environment")
    assert settings_of("noun", "verb").output == "jsonl"
    assert settings_of("--output", "json", "noun", "verb").output == "json"
    assert settings_of("noun", "verb", "--output", "json").output == "json"
    assert settings_of("noun", "verb").state == Path("/from/environment")


def test_defaults() -> None:
    settings = settings_of("noun", "verb")
    assert settings == Settings()
    assert (settings.output, settings.timeout_s) == ("table", None)


def test_a_timeout_has_a_unit() -> None:
    assert settings_of("noun", "verb", "--timeout", "2m").timeout_s == 120.0


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_state_folder() == Path("/data/serverless-backup")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/alice")
    assert default_state_folder() == Path("/home/alice/.local/share/serverless-backup")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["job", "lst"], "table"),
        (["--output=json", "lst"], "json"),
        (["lst", "--output", "jsonl"], "jsonl"),
        (["lst", "--output"], "table"),
    ],
)
def test_the_output_of_a_command_line_that_cannot_be_parsed(
    arguments: list[str], wanted: str
) -> None:
    assert output_wanted(arguments) == wanted


def all_commands(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        found.append((f"{path} {name}", command))
        if isinstance(command, click.Group):
            found += all_commands(command, f"{path} {name}")
    return found


@pytest.mark.parametrize(("path", "command"), all_commands(root, "ctl"), ids=str)
def test_every_help_page_lists_exit_codes_and_shared_options(path: str, command: Any) -> None:
    page = command.get_help(click.Context(command, info_name=path))
    assert "Exit codes:" in page
    for code in ExitCode:
        assert f"\n  {int(code)} " in page
    assert "--output" in page
    assert isinstance(command, Group) or command.examples, "every command has an example"


@pytest.mark.parametrize("noun", [None, "tape", "catalog", "local"])
def test_no_sentence_about_a_command_is_cut_off(noun: str | None) -> None:
    """Whoever looks for a verb reads the list, and not one page after the other."""
    context = click.Context(root, info_name="ctl")
    group = root if noun is None else root.get_command(context, noun)
    assert isinstance(group, click.Group)
    text = group.get_help(context)
    listed = text[text.index("Commands:") : text.index("Exit codes:")]
    assert "..." not in listed
    assert all(len(line) <= 80 for line in listed.splitlines())


def test_every_exit_code_is_explained() -> None:
    assert set(EXIT_CODES) == set(ExitCode)


def test_commands_and_groups_are_ours() -> None:
    """A plain click command would lack the shared options."""
    for path, command in all_commands(root, "ctl"):
        assert isinstance(command, Command | Group), path
