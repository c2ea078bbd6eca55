"""A folder in which files can be prepared, if the tests run on a file system that allows it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError
from storage_node.placing.prepared import opened_folder, prepare
from storage_node.placing.surroundings import check_surroundings, find_mount


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """An open folder on ext4 or XFS.  Who breaks a lease of these tests does not end them with SIGIO."""
    before = signal.signal(signal.SIGIO, lambda *_: None)
    with opened_folder(os.fsencode(tmp_path)) as descriptor:
        try:
            check_surroundings(find_mount(descriptor))
            prepare(descriptor, b"probe", 1, lambda: None).drop()
        except (OSError, BackupError) as error:
            pytest.skip(f"{tmp_path} is no place to prepare files: {error}")
        yield descriptor
    signal.signal(signal.SIGIO, before)
