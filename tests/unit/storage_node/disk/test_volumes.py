"""Volumes and views on disk: whole or not there, found again, and nothing attached from elsewhere."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError, NotFoundError, RefusedError
from backplane.ids import Designator, Epoch, JobId, ViewId, VolumeId
from storage_node.core.volume_state import (
    DropView,
    DropVolume,
    MakeVolume,
    RecordView,
    RecordVolume,
    State,
    ViewRecord,
    VolumeRecord,
)
from storage_node.disk.volumes import VolumeStore
from storage_node.state_file import StateError

RECORD = VolumeRecord(
    volume=VolumeId("11" * 16),
    name="vol",
    designator=Designator(b"\x30abcdefg"),
    size_bytes=8192,
    block_bytes=512,
    path="",
    state=State.RESTORING,
    job=JobId(3),
    epoch=Epoch(4),
    is_empty=False,
    needs_discard=True,
)
VIEW = ViewRecord(
    view=ViewId("33" * 16),
    volume=RECORD.volume,
    job=JobId(5),
    designator=Designator(b"\x30viewvie"),
    ttl_s=1.5,
    created="2026-01-11T10:43:48+00:00",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VolumeStore]:
    found = VolumeStore(
        tmp_path, attach_paths=[tmp_path / "images"], boot_id="a" * 36, new_id=lambda: "cd" * 16
    )
    yield found
    found.close()


def again(closed: VolumeStore, folder: Path) -> tuple[list[VolumeRecord], list[ViewRecord]]:
    """What a new process finds: the old one has gone, and its locks with it."""
    closed.close()
    store = VolumeStore(folder, boot_id="a" * 36, new_id=lambda: "cd" * 16)
    try:
        return store.load()
    finally:
        store.close()


def test_volumes_and_views_are_found_again(store: VolumeStore, tmp_path: Path) -> None:
    store.perform(MakeVolume(RECORD))
    store.perform(RecordView(VIEW))
    store.devices[RECORD.volume].write(0, memoryview(b"x"))
    assert again(store, tmp_path) == ([RECORD], [VIEW])
    store.perform(DropView(VIEW))
    store.perform(DropView(VIEW))
    assert again(store, tmp_path) == ([RECORD], [])
    store.perform(DropVolume(RECORD))
    store.perform(DropVolume(RECORD))
    assert again(store, tmp_path) == ([], [])
    assert not list((tmp_path / "volumes").iterdir())


def test_a_record_is_replaced_as_a_whole(store: VolumeStore, tmp_path: Path) -> None:
    store.perform(MakeVolume(RECORD))
    folder = tmp_path / "volumes" / RECORD.volume
    before = (folder / "volume.json").stat().st_ino
    store.perform(RecordVolume(RECORD))
    assert (folder / "volume.json").stat().st_ino != before
    assert sorted(path.name for path in folder.iterdir()) == ["changes", "data.img", "volume.json"]


def test_what_a_crash_left_unfinished_is_swept_away(store: VolumeStore, tmp_path: Path) -> None:
    store.perform(MakeVolume(RECORD))
    half = tmp_path / "volumes" / ".pending-half"
    shutil.copytree(tmp_path / "volumes" / RECORD.volume, half)
    (tmp_path / "views" / ".x.json.new").write_text("half")
    assert again(store, tmp_path) == ([RECORD], [])
    assert not half.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "volume": 7}', "\0"]
)
def test_what_cannot_be_understood_is_left_alone(
    store: VolumeStore, tmp_path: Path, content: str
) -> None:
    store.perform(MakeVolume(RECORD))
    store.perform(RecordView(VIEW))
    file = tmp_path / "volumes" / RECORD.volume / "volume.json"
    file.write_text(content)
    assert again(store, tmp_path) == ([], [])
    assert file.read_text() == content
    assert (file.parent / "data.img").exists()


def test_a_view_file_that_is_none_is_left_alone(store: VolumeStore, tmp_path: Path) -> None:
    store.perform(MakeVolume(RECORD))
    (tmp_path / "views" / "x.json").write_text('{"version": 1}')
    assert again(store, tmp_path) == ([RECORD], [])


def test_data_of_another_size_are_not_taken_for_the_volume(
    store: VolumeStore, tmp_path: Path
) -> None:
    store.perform(MakeVolume(RECORD))
    with (tmp_path / "volumes" / RECORD.volume / "data.img").open("ab") as file:
        file.write(bytes(512))
    assert again(store, tmp_path) == ([], [])


def test_a_volume_that_cannot_be_made_leaves_nothing(store: VolumeStore, tmp_path: Path) -> None:
    (tmp_path / "volumes" / RECORD.volume).mkdir()
    (tmp_path / "volumes" / RECORD.volume / "in the way").touch()
    with pytest.raises(BackupError) as caught:
        store.perform(MakeVolume(RECORD))
    assert not isinstance(caught.value, StateError)
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [RECORD.volume]


def test_a_record_that_cannot_be_written_is_fatal(store: VolumeStore) -> None:
    with pytest.raises(StateError):
        store.perform(RecordVolume(RECORD))


def test_only_what_lies_below_an_allowed_folder_is_attached(
    store: VolumeStore, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "disk.img").write_bytes(bytes(4096))
    (tmp_path / "secret").write_bytes(bytes(4096))
    (images / "link").symlink_to(tmp_path / "secret")
    assert store.resolve(str(images / "disk.img")) == images / "disk.img"
    for path in (images / "link", images / ".." / "secret", tmp_path / "secret", "disk.img"):
        with pytest.raises(RefusedError, match="may not attach"):
            store.resolve(str(path))
    with pytest.raises(NotFoundError):
        store.resolve(str(images / "gone"))
    assert store.probe(images / "disk.img", block_bytes=512) == 4096


def test_an_attached_image_outlives_its_volume(store: VolumeStore, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"image".ljust(8192))
    record = VolumeRecord(
        **{**{f: getattr(RECORD, f) for f in RECORD.__slots__}, "path": str(image)}
    )
    store.perform(MakeVolume(record))
    assert store.path(record) == image
    assert again(store, tmp_path) == ([record], [])
    store.perform(DropVolume(record))
    assert image.read_bytes().startswith(b"image")


def test_the_record_is_plain_json(store: VolumeStore, tmp_path: Path) -> None:
    store.perform(MakeVolume(RECORD))
    file = tmp_path / "volumes" / RECORD.volume / "volume.json"
    assert json.loads(file.read_text())["state"] == "restoring"
    assert store.path(RECORD) == file.parent / "data.img"
