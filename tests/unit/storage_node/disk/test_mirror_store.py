"""The file of a leg: what is found again, and what is not believed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import UsageError
from storage_node.core.mirror import GRANULE_BYTES, FoundLeg, LegState, granules
from storage_node.disk.mirror_store import LegStore, check_name, read_legs, write_legs
from storage_node.state_file import DamagedStateError, StateError

SIZE = 100 * GRANULE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "b.leg"


def opened(path: Path, *, boot_id: str = "two", size: int = SIZE) -> FoundLeg | None:
    """Return what a start finds; leave the file as it was."""
    kept = path.read_bytes()
    store, found = LegStore.open(path, size_bytes=size, boot_id=boot_id)
    if found is None:
        assert store.changed.count() == granules(size), "a new file has all bits set"
    store.abandon()
    path.write_bytes(kept)
    return found


@pytest.fixture
def store(path: Path) -> Iterator[LegStore]:
    store = LegStore.create(path, size_bytes=SIZE, boot_id="one")
    store.changed.clear_range(0, store.changed.bits)
    yield store
    store.abandon()


def test_state_reason_slots_and_bits_are_found_without_any_closing(
    store: LegStore, path: Path
) -> None:
    store.record(LegState.SPLIT, "a long reason")
    store.record(LegState.IN_SYNC, "für dich")
    store.enter(0, 5, 7)
    store.enter(255, 1 << 40, (1 << 40) + 1)
    store.enter(3, 100, 200)
    store.leave(3)
    store.changed.set_range(3, 99)
    found = opened(path)
    assert found == FoundLeg(
        state=LegState.IN_SYNC,
        reason="für dich",
        boot_id="one",
        was_closed=False,
        in_flight=((5, 7), (1 << 40, (1 << 40) + 1)),
    )
    again, _ = LegStore.open(path, size_bytes=SIZE, boot_id="two")
    assert list(again.changed.runs()) == [(3, 99)]
    again.abandon()


def test_a_closed_file_says_so_until_the_next_begin(path: Path) -> None:
    store = LegStore.create(path, size_bytes=SIZE, boot_id="one")
    store.close()
    found = opened(path)
    assert found is not None
    assert found.was_closed
    store, _ = LegStore.open(path, size_bytes=SIZE, boot_id="two")
    store.begin(size_bytes=SIZE, boot_id="two")
    found = opened(path)
    assert found is not None
    assert (found.was_closed, found.boot_id) == (False, "two")
    store.abandon()


def test_any_flipped_bit_of_a_closed_file_is_noticed(path: Path) -> None:
    LegStore.create(path, size_bytes=SIZE, boot_id="one").close()
    data = path.read_bytes()
    places = [*range(80), 90, 1000, 4092, 4095, 4096, 8191, *range(8192, len(data))]
    for place in places:
        if place == 65:  # "closed" itself: without it, the file counts under its own boot id only
            continue
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert opened(path) is None, place
    path.write_bytes(data)
    assert opened(path) is not None


def test_a_file_for_another_size_or_of_another_length_is_not_believed(path: Path) -> None:
    LegStore.create(path, size_bytes=SIZE, boot_id="one").close()
    assert opened(path, size=SIZE - 512) is None
    path.write_bytes(path.read_bytes() + b"x")
    assert opened(path) is None


def test_slots_can_be_forgotten(store: LegStore) -> None:
    assert not store.is_in_flight
    store.enter(255, 1, 2)
    assert store.is_in_flight
    store.clear_slots()
    assert not store.is_in_flight


def test_the_file_has_no_holes(store: LegStore, path: Path) -> None:
    """A store into a hole of a full file system would kill the process."""
    status = path.stat()
    assert status.st_blocks * 512 >= status.st_size


def test_a_full_file_system_is_an_error_while_making_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StateError, match="full"):
        LegStore.create(path, size_bytes=SIZE, boot_id="one")
    assert not path.exists()


def test_a_long_reason_is_cut(store: LegStore, path: Path) -> None:
    store.record(LegState.FAILED, "x" * 5000)
    found = opened(path)
    assert found is not None
    assert found.reason == "x" * 1024


def test_a_removed_file_is_gone(path: Path) -> None:
    LegStore.create(path, size_bytes=SIZE, boot_id="one").remove()
    assert not path.exists()


def test_the_list_of_legs_is_kept(tmp_path: Path) -> None:
    assert read_legs(tmp_path) == {}
    write_legs(tmp_path, {"b": "/b", "c-1": "/c"})
    assert read_legs(tmp_path) == {"b": "/b", "c-1": "/c"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2, "legs": {}}',
        '{"version": 1, "legs": []}',
        '{"version": 1, "legs": {"../b": "/b"}}',
        '{"version": 1, "legs": {"b": 5}}',
    ],
)
def test_a_list_that_makes_no_sense_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "legs.json").write_text(text)
    with pytest.raises(DamagedStateError):
        read_legs(tmp_path)


def test_names_are_names_of_files_as_well() -> None:
    check_name("backup-2")
    for name in ("", ".", "a/b", "-a", "A", "x" * 33, "b\n"):
        with pytest.raises(UsageError):
            check_name(name)
