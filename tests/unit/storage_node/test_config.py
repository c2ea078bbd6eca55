"""The settings of a storage node."""

from pathlib import Path

import pytest

from backplane.errors import ConfigError
from backplane.runtime.config import load_config
from storage_node.config import StorageNodeConfig

LEAST = """
config_version = 1
name = "node-1"
roles = ["disk"]
controller = "tcp://127.0.0.1:7747"
controller_key_file = "controller.public"
key_file = "node.secret"
state_folder = "state"
"""


def load(folder: Path, text: str) -> StorageNodeConfig:
    (folder / "node.toml").write_text(text)
    return load_config(
        StorageNodeConfig, folder / "node.toml", env_prefix="STORAGE_NODE", environ={}
    )


def test_the_least_configuration_has_sensible_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert config.roles == ("disk",)
    assert config.listen == ("tcp://127.0.0.1:0",)
    assert config.library == tmp_path / "state" / "library"
    assert config.attach_paths == ()
    assert config.drives == 1
    assert (config.drive_model, config.drive_model_speed) == ("none", 0.0)


def test_everything_can_be_set(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        LEAST.replace('["disk"]', '["disk", "tape"]')
        + """
listen = ["unix:///run/node", "tcp://0.0.0.0:7800"]
advertise = ["tcp://node-1:7800"]
attach_paths = ["/dev/vg0", "images"]
library_folder = "/srv/library"
drives = 2
drive_model = "lto9"
drive_model_speed = 10
connections_max = 8
ready_file = "ready"
log_level = "debug"
log_format = "json"
log_file = "log"
""",
    )
    assert config.library == Path("/srv/library")
    assert config.attach_paths == (Path("/dev/vg0"), tmp_path / "images")
    assert (config.drive_model, config.drive_model_speed) == ("lto9", 10.0)
    assert config.advertise == ("tcp://node-1:7800",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("roles = []", "roles"),
        ('roles = ["disk", "disk"]', "roles"),
        ('roles = ["disc"]', "must be one of disk, tape"),
        ("listen = []", "listen"),
        ('listen = ["tcp://0.0.0.0:7800"]', "advertise: needed"),
        ("drives = 0", "drives"),
        ('drive_model = "dlt"', "must be one of"),
        ("drive_model_speed = 1", "is of no use without a drive_model"),
        ('drive_model = "lto9"\ndrive_model_speed = -1', "drive_model_speed"),
        ("connections_max = 0", "connections_max"),
        ("colour = 1", "unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, told: str) -> None:
    text = LEAST.replace('roles = ["disk"]', "") if line.startswith("roles") else LEAST
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, f"{text}\n{line}\n")


TAPE = LEAST.replace('["disk"]', '["tape"]')
DEVICES = 'tape_devices = ["/dev/nst0", "/dev/nst1"]'


def test_real_devices_take_the_place_of_the_virtual_library(tmp_path: Path) -> None:
    config = load(tmp_path, f'{TAPE}\n{DEVICES}\nchanger_device = "/dev/sg3"\n')
    assert config.tape_devices == (Path("/dev/nst0"), Path("/dev/nst1"))
    assert config.changer_device == Path("/dev/sg3")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('changer_device = "/dev/sg3"', "with which tape_devices"),
        (f"{DEVICES}\nroles = ['disk']", "tape_devices: only a node with the tape role"),
        ('tape_devices = ["/dev/nst0", "/dev/nst0"]', "a device twice"),
        (f"{DEVICES}\ndrives = 2", "drives: of a virtual library"),
        (f"{DEVICES}\nslots = 20", "slots: of a virtual library"),
        (f"{DEVICES}\nio_slots = 2", "io_slots: of a virtual library"),
        (f'{DEVICES}\nlibrary_folder = "/x"', "library_folder: of a virtual library"),
        (f"{DEVICES}\ncompression = false", "compression: of a virtual library"),
        (f'{DEVICES}\ndrive_model = "lto9"', "drive_model: of a virtual library"),
        (f"tape_devices = {[f'/dev/nst{n}' for n in range(65)]}", "at most 64"),
    ],
)
def test_what_real_devices_have_no_use_for_is_refused(
    tmp_path: Path, lines: str, told: str
) -> None:
    text = TAPE.replace('roles = ["tape"]', "") if "roles" in lines else TAPE
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, f"{text}\n{lines}\n")
