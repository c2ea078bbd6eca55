"""Files out of a backup into a folder: what is asked of the controller, and what is left when something fails."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    CopyError,
    ExitCode,
    MediumError,
    NotFoundError,
    RefusedError,
)
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, FileSystem, Identity, Kind
from backplane.runtime.keys import create_key_pair
from backplane.testing.packed_map import MapCaller, PackedMap
from backplane.wire.frames import Opcode
from controller.cli import restore_files
from controller.cli.file_folder import FileFolder
from controller.cli.render import Screen
from controller.cli.restore_files import VolumeReader, run_restore_files

MIB = 1024 * 1024


def row(path: bytes, kind: Kind = Kind.FILE, *extents: FileExtent, **fields: Any) -> FileRow:
    facts: dict[str, Any] = {
        "path": path,
        "kind": kind,
        "size": sum(each.byte_count for each in extents),
        "mode": 0o750,
        "uid": -1,
        "gid": -1,
        "mtime_ns": 9_000_000_000,
        "atime_ns": 0,
        "ctime_ns": 0,
        "birth_ns": 0,
        "links": 1,
        "identity": Identity(0, 7, 0),
        "extents": extents,
    }
    return FileRow(**(facts | fields))


ODD = b"home/a\\b\x1b"
"""A name that people are told in one way by the controller and in another by ctl."""

ROWS = [
    row(b"", Kind.DIRECTORY),
    row(b"etc", Kind.DIRECTORY),
    row(b"etc/fstab", Kind.FILE, FileExtent(0, 512, 700)),
    row(b"home", Kind.DIRECTORY),
    row(b"home/a", Kind.DIRECTORY),
    row(b"home/a/big", Kind.FILE, FileExtent(0, 1024, 2 * MIB + 100)),
    row(ODD, Kind.FILE, FileExtent(0, 4096, 512)),
    row(b"home/secret", Kind.FILE, FileExtent(0, 0, 512, int(ExtentFlag.ENCRYPTED))),
    row(b"other", Kind.DIRECTORY),
]


class Controller(MapCaller):
    """A controller with one backup, whose job ends as a test wants it."""

    def __init__(self, disk_node: Any, tmp_path: Path, **changes: Any) -> None:
        super().__init__(PackedMap(ROWS, **changes))
        self.keys = create_key_pair(tmp_path / "keys", role="operator", name="operator")
        self.disk_node = disk_node
        self.job: dict[str, Any] = {"state": "completed", "reason": "", "exit_code": 0}
        self.files: dict[str, Any] = {"failed": 0, "listed": []}
        self.deletions: list[BackupError | None] = []
        """How the next attempts to delete the volume end."""

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        match verb:
            case "job.submit":
                answer: dict[str, Any] = {"job": 7}
            case "job.show":
                answer = self.job | {
                    "job": 7,
                    "kind": "restore",
                    "backup": 0,
                    "next_item": 0,
                    "items": [],
                    "result": {"files": self.files},
                }
            case "job.cancel":
                self.calls.append((verb, arguments))
                raise NotFoundError("it has ended")
            case "volume.export_begin":
                answer = {"view": "v", "channel": self.disk_node.channel(arguments["holder"])}
            case "volume.export_end":
                answer = {}
            case "volume.delete":
                answer = {}
                error = self.deletions.pop(0) if self.deletions else None
                if error is not None:
                    self.calls.append((verb, arguments))
                    raise error
            case _:
                return super().call(verb, **arguments)
        self.calls.append((verb, arguments))
        return answer

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.calls if not verb.startswith("map.")]


@pytest.fixture
def controller(disk_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(restore_files, "POLL_S", 0.0)
    for at in range(len(disk_node.content)):
        disk_node.content[at] = at % 251
    return Controller(disk_node, tmp_path)


def at(first: int, count: int) -> bytes:
    return bytes(n % 251 for n in range(first, first + count))


class Shown(Screen):
    """A screen that keeps what is told."""

    def __init__(self) -> None:
        super().__init__("json")
        self.told = io.StringIO()

    def talk(self, text: str) -> None:
        self.told.write(text + "\n")


def run(
    controller: Controller, out: Path, *paths: str, excludes: tuple[str, ...] = ()
) -> tuple[int, str]:
    files = {"paths": list(paths), "excludes": list(excludes), "check": True}
    screen = Shown()
    client: Any = controller
    code = run_restore_files(client, backup="3", out=out, files=files, screen=screen)
    return code, screen.told.getvalue()


# --- the whole way -------------------------------------------------------------------------------


def test_files_are_copied_to_a_volume_read_from_it_and_the_volume_is_deleted(
    controller: Controller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, told = run(controller, out, "etc", "home/a")
    assert code == 0
    assert (out / "etc/fstab").read_bytes() == at(512, 700)
    assert (out / "home/a/big").read_bytes() == at(1024, 2 * MIB + 100)
    assert sorted(path.name for path in out.iterdir()) == ["etc", "home"]
    assert (out / "home").stat().st_mtime_ns == 9_000_000_000, "folders on the way are dressed too"
    assert controller.verbs() == [
        "job.submit", "job.show", "job.show", "job.show", "volume.export_begin",
        "volume.export_end", "job.cancel", "volume.delete",
    ]  # fmt: skip
    submitted = dict(controller.calls)["job.submit"]
    name = submitted.pop("new")
    assert name.startswith("files-of-3-")
    assert submitted.pop("token")
    assert submitted == {
        "kind": "restore", "backup": "3", "staging": True,
        "paths": ["etc", "home/a"], "excludes": [], "check": True,
    }  # fmt: skip
    assert dict(controller.calls)["volume.delete"] == {"name": name, "force": True}
    assert f"job 7 copies the files' blocks to the staging volume {name}" in told
    document = json.loads(capsys.readouterr().out)
    assert (document["files"], document["bytes"], document["failed"]) == (2, 2 * MIB + 800, 0)
    assert (document["backup"], document["job"], document["folder"]) == (3, 7, str(out))


def test_nothing_that_matches_ends_before_anything_is_made(
    controller: Controller, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="backup 3 has nothing that matches nix") as caught:
        run(controller, tmp_path / "out", "nix")
    assert caught.value.exit_code == 4
    assert controller.verbs() == []
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_refused_before_a_job_is_submitted(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "keep").touch()
    with pytest.raises(RefusedError, match="is not empty"):
        run(controller, tmp_path, "etc")
    assert controller.verbs() == []


@pytest.mark.parametrize(("state", "code"), [("failed", 5), ("cancelled", 130), ("failed", None)])
def test_a_job_that_brings_nothing_ends_with_its_code_and_leaves_no_volume(
    controller: Controller, tmp_path: Path, state: str, code: int | None
) -> None:
    controller.job = {"state": state, "reason": "because", "exit_code": code}
    with pytest.raises(BackupError, match=f"job 7 has {state}: because") as caught:
        run(controller, tmp_path / "out", "etc")
    assert caught.value.exit_code == (ExitCode.FAILED if code is None else code)
    assert controller.verbs()[-2:] == ["job.cancel", "volume.delete"]
    assert not (tmp_path / "out").exists()


def test_the_file_systems_of_the_map_tell_files_apart(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Folder(FileFolder):
        def __init__(self, folder: Path, file_systems: Any = ()) -> None:
            seen.extend(file_systems)
            super().__init__(folder, file_systems)

    monkeypatch.setattr(restore_files, "FileFolder", Folder)
    systems = tuple(FileSystem("xfs", each, "", "", 512, 1, "clean", "") for each in ("p1", "p2"))
    controller.maps["3"] = PackedMap(ROWS, file_systems=systems)
    run(controller, tmp_path / "out", "etc")
    assert tuple(seen) == systems


def test_files_that_did_not_come_back_from_tape_are_listed_and_not_made(
    controller: Controller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their blocks on the staging volume are zeros: made of them, a file would look whole."""
    told = r"home/a\\b\x1b"
    listed = [{"path": told, "reason": "blocks lost"}, {"path": "home/gone", "reason": "gone"}]
    controller.job["state"] = "partial"
    controller.files = {"failed": 2, "listed": listed}
    code, _ = run(controller, tmp_path / "out", "home")
    assert code == 3
    document = json.loads(capsys.readouterr().out)
    reasons = {each["path"]: each["reason"] for each in document["listed"]}
    assert reasons.pop("home/secret").startswith("it is encrypted")
    assert reasons == {"home/a\\\\b\\x1b": "blocks lost", "home/gone": "gone"}
    assert [path.name for path in (tmp_path / "out/home").iterdir()] == ["a"]


def test_more_losses_than_are_listed_end_it(controller: Controller, tmp_path: Path) -> None:
    controller.files = {"failed": 2, "listed": [{"path": "etc/fstab", "reason": "x"}]}
    with pytest.raises(BackupError, match="2 files cannot be restored, more than are listed"):
        run(controller, tmp_path / "out", "etc")
    assert controller.verbs()[-1] == "volume.delete"


def test_an_incomplete_map_is_said(disk_node: Any, tmp_path: Path) -> None:
    controller = Controller(disk_node, tmp_path, reasons=("inode 7 is damaged",))
    _, told = run(controller, tmp_path / "out", "etc")
    assert "the map of backup 3 is incomplete: inode 7 is damaged" in told


def test_a_volume_that_is_held_is_deleted_when_it_is_not_any_more(
    controller: Controller, tmp_path: Path
) -> None:
    controller.deletions = [BusyError("held"), BusyError("held"), None]
    _, told = run(controller, tmp_path / "out", "etc")
    assert controller.verbs().count("volume.delete") == 3
    assert "is left" not in told


def test_a_volume_that_cannot_be_deleted_is_named(controller: Controller, tmp_path: Path) -> None:
    controller.deletions = [BusyError("held by job 9")] * restore_files.DELETE_TRIES_MAX
    _, told = run(controller, tmp_path / "out", "etc")
    assert "is left: held by job 9" in told


def interrupt(*_: Any, **__: Any) -> bool:
    raise KeyboardInterrupt


def stop_watching(*_: Any, **__: Any) -> bool:
    return False


@pytest.mark.parametrize(
    ("name", "how"),
    [("watch_job", interrupt), ("watch_job", stop_watching), ("_fill", interrupt)],
)
def test_an_interruption_leaves_neither_a_volume_nor_half_a_file(
    controller: Controller,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    how: Callable[..., bool],
) -> None:
    monkeypatch.setattr(restore_files, name, how)
    with pytest.raises(KeyboardInterrupt):
        run(controller, tmp_path / "out", "etc")
    assert controller.verbs()[-2:] == ["job.cancel", "volume.delete"]
    assert not (tmp_path / "out").exists()


def test_a_node_that_cannot_read_a_block_costs_its_file_and_no_other(
    controller: Controller, disk_node: Any, tmp_path: Path
) -> None:
    disk_node.failing = Opcode.READ
    code, _ = run(controller, tmp_path / "out", "etc")
    assert code == 3
    assert controller.verbs()[-1] == "volume.delete"


# --- reading a volume ----------------------------------------------------------------------------


@pytest.fixture
def reader(controller: Controller, disk_node: Any) -> Any:
    client: Any = controller
    with restore_files.opened(client, disk_node.channel(client.keys.public.hex())) as channel:
        yield VolumeReader(channel)


def test_bytes_come_in_order_several_requests_ahead(reader: VolumeReader, disk_node: Any) -> None:
    pieces = list(reader(100, 3 * MIB - 200))
    assert b"".join(pieces) == at(100, 3 * MIB - 200)
    assert [len(piece) for piece in pieces] == [MIB, MIB, MIB - 200]
    assert list(reader(0, 0)) == []


def test_data_that_arrive_damaged_are_asked_for_again_and_nothing_gets_out_of_order(
    reader: VolumeReader, disk_node: Any
) -> None:
    disk_node.damaged_reads = 2
    assert b"".join(reader(0, 3 * MIB)) == at(0, 3 * MIB)
    assert b"".join(reader(7, 9)) == at(7, 9)


def test_a_way_that_always_damages_ends_this_reading_and_not_the_next(
    reader: VolumeReader, disk_node: Any
) -> None:
    disk_node.damaged_reads = 1000
    with pytest.raises(MediumError, match="bytes 0 to 1048575 arrived with a wrong checksum"):
        list(reader(0, 3 * MIB))
    disk_node.damaged_reads = 0
    assert b"".join(reader(512, 1024)) == at(512, 1024)


def test_a_reading_that_is_given_up_leaves_nothing_for_the_next(reader: VolumeReader) -> None:
    begun = reader(0, 3 * MIB)
    next(begun)
    begun.close()
    assert b"".join(reader(512, 1024)) == at(512, 1024)


def test_a_node_that_answers_with_other_bytes_than_were_asked_for_ends_it(
    reader: VolumeReader, disk_node: Any
) -> None:
    size = len(disk_node.content)
    with pytest.raises(CopyError, match="answered a read of 1024 bytes with 512"):
        list(reader(size - 512, 1024))
