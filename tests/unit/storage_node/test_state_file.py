"""Small durable files."""

from pathlib import Path

import pytest

from storage_node.state_file import (
    DamagedStateError,
    StateError,
    read_json,
    sync_folder,
    write_file,
    write_json,
)


def test_a_file_is_replaced_and_leaves_no_other(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": [2]})
    assert read_json(tmp_path / "x.json") == {"a": [2]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600


def test_what_a_crash_left_beside_it_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".x.json.new").write_bytes(b"half")
    write_json(tmp_path / "x.json", {})
    assert read_json(tmp_path / "x.json") == {}


def test_a_failure_to_write_is_final(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        write_file(tmp_path / "gone" / "x", b"")
    (tmp_path / "x").mkdir()
    with pytest.raises(StateError):
        write_file(tmp_path / "x", b"")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedStateError):
        read_json(tmp_path / "x")
    with pytest.raises(DamagedStateError):
        read_json(tmp_path / "gone")


def test_a_folder_can_be_synchronised(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(OSError, match="gone"):
        sync_folder(tmp_path / "gone")
