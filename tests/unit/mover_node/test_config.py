"""The configuration of a mover, and its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from backplane.errors import ConfigError
from backplane.runtime.config import load_config
from backplane.runtime.keys import create_key_pair
from backplane.units import MIB
from mover_node.__main__ import identity, main
from mover_node.config import MoverConfig


def write(folder: Path, more: str = "", *, role: str = "mover") -> Path:
    create_key_pair(folder / "keys", role=role, name="m7")
    file = folder / "mover.toml"
    file.write_text(
        'config_version = 1\ncontroller = "tcp://127.0.0.1:1"\n'
        'controller_key_file = "keys/authorized/m7.public"\nkey_file = "keys/m7.secret"\n' + more
    )
    return file


def load(file: Path) -> MoverConfig:
    return load_config(MoverConfig, file, env_prefix="MOVER_NODE", environ={})


def test_the_defaults_are_those_of_the_reference_pages(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    assert (config.relay, config.items) == ("auto", 1)
    assert config.in_flight.bytes_max == 16 * MIB
    assert (config.in_flight.reads_max, config.in_flight.writes_max) == (8, 4)
    assert config.in_flight.store_bytes_max == 64 * MIB


def test_nothing_has_to_be_held_back_for_a_tape(tmp_path: Path) -> None:
    config = load(write(tmp_path, "stream_buffer = 0\n"))
    assert config.in_flight.store_bytes_max == 0


def test_the_name_auto_is_that_of_the_key(tmp_path: Path) -> None:
    """Several movers share one file; each has a key of its own."""
    assert identity(load(write(tmp_path))).name == "m7"


def test_another_name_than_that_of_the_key_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to 'm7'"):
        identity(load(write(tmp_path, 'name = "m8"\n')))


def test_a_key_of_another_role_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not of a mover"):
        identity(load(write(tmp_path, role="storage")))


def test_check_config_names_all_mistakes_and_exits_2(tmp_path: Path) -> None:
    file = write(tmp_path, 'relay = "tunnel"\nitems = 0\nspeed = 3\n')
    result = CliRunner().invoke(main, ["--config", str(file), "--check-config"])
    assert result.exit_code == 2
    for key in ("relay", "items", "speed"):
        assert key in result.output


def test_check_config_accepts_what_is_right(tmp_path: Path) -> None:
    file = write(tmp_path, 'name = "m7"\nbytes_in_flight = "32MiB"\n')
    assert CliRunner().invoke(main, ["--config", str(file), "--check-config"]).exit_code == 0
