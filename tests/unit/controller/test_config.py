"""Settings of the controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.errors import ConfigError
from backplane.runtime.config import load_config
from controller.config import ControllerConfig
from controller.core.dispatcher import LEASE_S

LEAST = """
config_version = 1
key_file = "k.secret"
authorized_folder = "authorized"
state_folder = "state"
"""


def load(folder: Path, text: str) -> ControllerConfig:
    path = folder / "controller.toml"
    path.write_text(text)
    return load_config(ControllerConfig, path, env_prefix="CONTROLLER", environ={})


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert config.listen.startswith("tcp://127.0.0.1:"), "loopback, until somebody decides"
    assert (config.lease, config.heartbeat) == (LEASE_S, 2.0)
    assert (config.inactivity_s, config.sync_timeout_s) == (3.0, 80.0)
    assert (config.ready_file, config.log_file) == (None, None)


def test_relative_paths_count_from_the_files_folder(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST).key_file == tmp_path / "k.secret"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = 'config_version = 1\nlease = "soon"\nlog_level = "loud"\nlisten = 5\nnonsense = 1\n'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    told = "\n".join(caught.value.findings)
    for name in ("lease", "log_level", "listen", "nonsense", "key_file", "state_folder"):
        assert f": {name}: " in told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lease", "100ms"),
        ("lease", "0s"),
        ("heartbeat", "0s"),
        ("heartbeat", "1h"),
        ("inactivity_s", "61m"),
        ("sync_timeout_s", "25h"),
    ],
)
def test_times_that_no_cluster_can_live_with_are_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        load(tmp_path, f'{LEAST}{key} = "{value}"\n')
