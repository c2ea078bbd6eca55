"""The process: what it refuses to start with, and that it leaves nothing behind."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, ConfigError, RefusedError
from backplane.ids import Designator
from backplane.runtime.clock import SystemClock
from backplane.runtime.keys import create_key_pair
from backplane.runtime.loop import Loop
from backplane.wire.messages import SessionRefused
from storage_node import service
from storage_node.config import StorageNodeConfig
from storage_node.service import StorageNode, run
from storage_node.state_file import StateError


@pytest.fixture
def config(short_folder: Path) -> StorageNodeConfig:
    keys = short_folder / "keys"
    create_key_pair(keys, role="storage", name="node-1")
    create_key_pair(keys, role="mover", name="mover-1")
    create_key_pair(keys, role="controller", name="controller")
    return made(short_folder)


def made(folder: Path, **changes: Any) -> StorageNodeConfig:
    values: dict[str, Any] = {
        "name": "node-1",
        "roles": ("disk", "tape"),
        "controller": "tcp://127.0.0.1:1",
        "controller_key_file": folder / "keys" / "authorized" / "controller.public",
        "key_file": folder / "keys" / "node-1.secret",
        "state_folder": folder / "state",
        "listen": (f"unix://{folder}/s",),
    }
    return StorageNodeConfig(**{**values, **changes})


def opened(config: StorageNodeConfig, stack: ExitStack) -> StorageNode:
    loop = Loop()
    stack.callback(loop.close)
    return StorageNode(config, loop=loop, stack=stack, clock=SystemClock())


def test_a_node_opens_and_leaves_nothing_behind(config: StorageNodeConfig) -> None:
    """The leak check of all tests looks for threads, sockets and files."""
    for _ in range(2):
        with ExitStack() as stack:
            config.state_folder.mkdir(exist_ok=True)
            node = opened(config, stack)
            assert node._unit(Designator(b"\x30unknown")) is None
            (drive,) = node._tape.units if node._tape else ()
            assert node._unit(drive) is not None
            node._dump()


def test_a_role_that_is_not_asked_for_is_not_there(
    config: StorageNodeConfig, short_folder: Path
) -> None:
    config.state_folder.mkdir()
    with ExitStack() as stack:
        node = opened(made(short_folder, roles=("disk",)), stack)
        assert node._tape is None
        assert node._unit(Designator(b"\x30unknown")) is None
    assert not (short_folder / "state" / "library").exists()
    with ExitStack() as stack:
        node = opened(made(short_folder, roles=("tape",)), stack)
        assert node._disk is None
        node._dump()


def test_a_state_folder_in_use_is_refused(config: StorageNodeConfig) -> None:
    with service._locked(config.state_folder), pytest.raises(RefusedError, match="in use"):
        run(config)


def test_a_state_folder_that_cannot_be_made_is_named(
    config: StorageNodeConfig, short_folder: Path
) -> None:
    (short_folder / "file").touch()
    with pytest.raises(RefusedError, match="cannot use state folder"):
        run(made(short_folder, state_folder=short_folder / "file" / "state"))


@pytest.mark.parametrize("name", ["mover-1", "controller"])
def test_a_key_of_another_role_is_refused(
    config: StorageNodeConfig, short_folder: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="belongs to"):
        run(made(short_folder, key_file=short_folder / "keys" / f"{name}.secret"))


def test_damaged_floors_stop_the_start(config: StorageNodeConfig) -> None:
    config.state_folder.mkdir()
    (config.state_folder / "floors").write_bytes(b"x" * 128)
    with pytest.raises(BackupError, match="damaged"):
        run(config)


def test_a_taken_address_stops_the_start(config: StorageNodeConfig, short_folder: Path) -> None:
    with pytest.raises(BackupError, match="cannot listen"):
        run(made(short_folder, listen=(f"unix://{short_folder}/none/s",)))


def test_what_makes_the_node_unable_to_go_on_ends_it(config: StorageNodeConfig) -> None:
    for told, found in (
        (lambda node: node._on_fatal(StateError("disk broke")), "disk broke"),
        (lambda node: node._on_refused(SessionRefused(reason="no", hint="go")), "refused us: no"),
    ):
        with ExitStack() as stack:
            config.state_folder.mkdir(exist_ok=True)
            node = opened(config, stack)
            node._loop.post(lambda node=node, told=told: told(node))  # type: ignore[misc]
            with pytest.raises(BackupError, match=found):
                node.run()


def test_the_ready_file_goes_with_the_node(config: StorageNodeConfig, short_folder: Path) -> None:
    ready = short_folder / "ready"
    ready.touch()
    with ExitStack() as stack:
        config.state_folder.mkdir()
        node = opened(made(short_folder, ready_file=ready), stack)
        node._loop.stop()
        node.run()
    assert not ready.exists()


def test_a_node_with_real_devices_says_which_one_is_not_there(
    config: StorageNodeConfig, short_folder: Path
) -> None:
    config.state_folder.mkdir()
    missing = short_folder / "nst0"
    for changes in ({}, {"changer_device": short_folder / "sg0"}):
        real = made(short_folder, roles=("tape",), tape_devices=(missing,), **changes)
        first = changes.get("changer_device", missing)
        with ExitStack() as stack, pytest.raises(BackupError, match=f"{first}: No such file"):
            opened(real, stack)
