"""How `ctl` begins and ends: the glance at everything, usage errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
import pytest

from controller.cli import ctl as ctl_group
from controller.cli import main
from controller.cli.client import Client

STATUS = """\
  Controller:          0.1.0
  Store:               00000000000000000000000000000000
  Started:             2026-01-11 10:00:00
  Active jobs:         1
  Epoch:               5
  Controller payload:  0 bytes

NODE  ROLES  STATE   SINCE                VOLUMES  DRIVES  CARTRIDGES  ADDRESSES
disk  disk   online  2026-01-11 10:00:00        1       0           0  tcp://127.0.0.1:4711

MOVER    STATE  SINCE                JOB  ITEM  READ  WRITTEN
mover-1  busy   2026-01-11 10:00:00    7    11  1MiB       0B
"""


def test_status_shows_everything_at_a_glance(controller: Any, ctl: Any, documents: Any) -> None:
    controller.answers |= {
        "controller.status": documents["status"],
        "node.list": {"nodes": [documents["node"]]},
        "mover.list": {"movers": [documents["mover"]]},
    }
    assert ctl("status") == (0, STATUS, "")


NOT_NEEDED = {
    "_awscrt",
    "asyncio",
    "backplane.scsi.segment",
    "controller.catalog.store",
    "controller.cli.debug",
    "sqlalchemy",
}


def test_a_command_loads_what_it_needs_and_no_more() -> None:
    """`ctl` is started for every command, and most of its time is the loading of modules."""
    script = """
import sys
from controller.cli import main
code = main(["volume", "list", "--state", "/nowhere"])
print(code, *sorted(sys.modules))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, *loaded = done.stdout.split()
    assert (code, "controller.cli.volume" in loaded) == ("9", True)
    assert NOT_NEEDED & set(loaded) == set()


def test_a_noun_that_is_none_is_answered_with_one_that_is_like_it(ctl: Any) -> None:
    code, _, err = ctl("volum", "list")
    assert code == 2
    assert "No such command 'volum'" in err
    assert "volume" in err


def test_every_noun_is_loaded_by_its_name() -> None:
    with click.Context(ctl_group) as context:
        for name in ctl_group.list_commands(context):
            command = ctl_group.get_command(context, name)
            assert command is not None
            assert command.name == name


def test_a_wrong_word_is_a_usage_error_that_helps(ctl: Any) -> None:
    code, out, err = ctl("job", "lst")
    assert (code, out) == (2, "")
    assert "Did you mean 'list'?" in err
    assert "`ctl job --help`" in err


def test_a_usage_error_of_a_program_is_json_as_well(ctl: Any) -> None:
    code, _, err = ctl("job", "lst", "--output", "json")
    assert code == 2
    assert json.loads(err.splitlines()[-1])["message_type"] == "exit_error"


def test_no_arguments_show_the_help_and_are_a_usage_error(
    ctl: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: ctl")


def test_help_is_data(ctl: Any) -> None:
    code, out, err = ctl("job", "show", "--help")
    assert (code, err) == (0, "")
    assert "parameter list in hexadecimal" in " ".join(out.split())


def test_version(ctl: Any) -> None:
    code, out, _ = ctl("--version")
    assert code == 0
    assert out.startswith("ctl ")


def test_without_a_controller_the_exit_code_is_9(ctl: Any) -> None:
    code, out, err = ctl("job", "list", "--output", "jsonl")
    assert (code, out) == (9, "")
    assert json.loads(err.splitlines()[-1])["code"] == 9


def test_nobody_listens(controller: Any, ctl: Any) -> None:
    address = controller.address
    controller.close()
    code, _, err = ctl("job", "list", "--timeout", "100ms")
    assert code == 9
    assert err.startswith(f"ctl: no controller at {address}")


def test_an_interrupt_is_130(ctl: Any, controller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "call", interrupt)
    # The line break ends the line on which the terminal shows ^C.
    assert ctl("job", "list") == (130, "", "\nctl: interrupted\n")
