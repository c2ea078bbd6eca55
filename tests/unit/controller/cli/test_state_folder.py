from __future__ import annotations

import json
import multiprocessing
import os
import tomllib
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from backplane.errors import BackupError, RefusedError
from backplane.runtime.config import load_config
from backplane.runtime.keys import KeyTable, load_key_pair
from controller.cli.state_folder import Record, StateFolder, toml, write_whole
from controller.config import ControllerConfig
from storage_node.config import StorageNodeConfig


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "cluster")
    made.create()
    return made


def test_it_is_for_its_owner_only(folder: StateFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_refused(folder: StateFolder) -> None:
    folder.path.chmod(0o777)
    with pytest.raises(RefusedError, match="others may write") as caught:
        folder.create()
    assert "chmod 700" in caught.value.hint


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="cannot use"):
        StateFolder(tmp_path / "file").create()


def test_daemons_start_with_the_controller(folder: StateFolder) -> None:
    names = [daemon.name for daemon in folder.daemons(2)]
    assert names == ["controller", "disk", "tape", "mover-1", "mover-2"]


def test_every_daemon_gets_a_key_that_the_controller_knows(folder: StateFolder) -> None:
    public = folder.make_keys(folder.daemons(1))
    table = KeyTable(folder.keys / "authorized")
    for name, role in (("disk", "storage"), ("tape", "storage"), ("mover-1", "mover")):
        pair = load_key_pair(folder.keys / f"{name}.secret")
        known = table.lookup(pair.public)
        assert known is not None
        assert (known.role, known.name) == (role, name)
    assert load_key_pair(folder.keys / "controller.secret").public.hex() == public
    assert load_key_pair(folder.keys / "operator.secret").role == "operator"
    assert folder.make_keys(folder.daemons(1)) == public, "keys are kept"


def test_the_configurations_are_what_the_daemons_read(folder: StateFolder) -> None:
    daemons = folder.daemons(1)
    folder.write_configs(daemons, address="tcp://127.0.0.1:4711")
    controller = load_config(
        ControllerConfig, daemons[0].config_file, env_prefix="CONTROLLER", environ={}
    )
    assert controller.listen == "tcp://127.0.0.1:4711"
    assert controller.ready_file == daemons[0].ready_file
    disk, tape = (
        load_config(StorageNodeConfig, daemon.config_file, env_prefix="STORAGE_NODE", environ={})
        for daemon in daemons[1:3]
    )
    assert (disk.roles, tape.roles) == (("disk",), ("tape",))
    assert disk.controller == tape.controller == "tcp://127.0.0.1:4711"
    assert disk.listen == (f"unix://{folder.path}/disk/data.sock", "tcp://127.0.0.1:0")


def test_only_the_tape_node_has_a_model_of_a_drive(folder: StateFolder) -> None:
    daemons = folder.daemons(1)
    for model in ("lto9", ""):
        folder.write_configs(daemons, address="tcp://127.0.0.1:4711", tape_model=model)
        disk, tape = (
            load_config(
                StorageNodeConfig, daemon.config_file, env_prefix="STORAGE_NODE", environ={}
            )
            for daemon in daemons[1:3]
        )
        assert (disk.drive_model, tape.drive_model) == ("none", model or "none")


def test_too_long_a_path_for_a_unix_socket_leaves_tcp(tmp_path: Path) -> None:
    long = StateFolder(tmp_path / ("x" * 100))
    config = long.config_of(long.daemons(1)[1], address="tcp://127.0.0.1:1")
    assert config["listen"] == ["tcp://127.0.0.1:0"]


def test_a_record_comes_back_as_it_was_stored(folder: StateFolder) -> None:
    assert folder.record() is None
    record = Record("tcp://127.0.0.1:1", "ab", 2, ({"name": "disk", "pid": 7},), "lto9", 3)
    folder.store(record)
    assert folder.record() == record
    assert json.loads(folder.record_file.read_text())["address"] == "tcp://127.0.0.1:1"


def test_a_record_of_before_there_were_models_has_none_and_one_drive(folder: StateFolder) -> None:
    folder.store(Record("tcp://127.0.0.1:1", "ab", 2))
    values = json.loads(folder.record_file.read_text())
    del values["tape_model"], values["drives"]
    folder.record_file.write_text(json.dumps(values))
    assert folder.record() == Record("tcp://127.0.0.1:1", "ab", 2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "a"}'])
def test_a_torn_record_is_refused_with_a_way_out(folder: StateFolder, text: str) -> None:
    folder.record_file.write_text(text)
    with pytest.raises(RefusedError, match=r"local\.json") as caught:
        folder.record()
    assert "ctl local down" in caught.value.hint


def hold(path: Path, ready: Connection) -> None:
    with StateFolder(path).locked("serving"):
        ready.send(os.getpid())
        ready.recv()


def test_a_second_owner_is_told_who_the_first_one_is(folder: StateFolder) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder.path, theirs))
    process.start()
    try:
        pid = ours.recv()
        assert folder.owner() == (pid, "serving")
        with (
            pytest.raises(RefusedError, match=rf"in use by pid {pid} \(serving\)"),
            folder.locked("starting"),
        ):
            pass
    finally:
        ours.send("end")
        process.join()
        for each in (ours, theirs):
            each.close()
        process.close()
    assert folder.owner() is None
    with folder.locked("starting"):
        pass


def test_nobody_owns_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "no").owner() is None


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "one")
    write_whole(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=f"cannot write {tmp_path}/no/a: No such file"):
        write_whole(tmp_path / "no" / "a", "one")


@pytest.mark.parametrize("value", ['a "quoted" \\ path', "Büro/日本/\U0001f600", "tab\there"])
def test_any_path_survives_toml(value: str) -> None:
    assert tomllib.loads(toml({"path": value, "list": [value], "n": 1})) == {
        "path": value,
        "list": [value],
        "n": 1,
    }
