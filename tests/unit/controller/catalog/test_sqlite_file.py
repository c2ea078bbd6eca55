"""The database file: one owner, whole or refused, durable from its name on."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from backplane.errors import BusyError, MediumError
from controller.catalog.sqlite_file import (
    FileLock,
    connect,
    create_if_missing,
    make_durable,
    translate,
)


def test_a_lock_has_one_holder_and_can_be_given_back(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "catalog.lock")
    with pytest.raises(BusyError):
        FileLock(tmp_path / "catalog.lock")
    lock.release()
    lock.release()
    again = FileLock(tmp_path / "catalog.lock")
    again.release()


def test_a_new_file_is_for_its_owner_only_and_an_old_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_if_missing(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"kept")
    create_if_missing(path)
    assert path.read_bytes() == b"kept"


def test_every_commit_waits_for_the_medium(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_if_missing(path)
    raw = connect(path)
    try:
        make_durable(raw)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    finally:
        raw.close()


def test_what_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database, but long enough to be looked at" * 20)
    with pytest.raises((sqlite3.DatabaseError, MediumError)) as caught:
        connect(path)
    error = caught.value
    told = error if isinstance(error, MediumError) else translate(error, path)
    assert isinstance(told, MediumError)
    assert str(path) in str(told)


def test_a_database_that_another_program_has_open_is_busy_and_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    holder = sqlite3.connect(path, isolation_level=None)
    other = sqlite3.connect(path, timeout=0)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("SELECT * FROM sqlite_master")
        assert isinstance(translate(caught.value, path), BusyError)
    finally:
        holder.close()
        other.close()
