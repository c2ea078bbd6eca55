"""What drives count: loads, cleanings, and that they ask for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.errors import MediumError, VolumeError
from backplane.scsi.tape_alert import words_of
from storage_node.tape.drive_counters import (
    LOADS_CLEAN_NOW,
    LOADS_PER_CLEANING,
    CounterFile,
    DriveCounters,
)


def test_a_drive_asks_for_cleaning_after_so_many_loads_until_it_is_cleaned() -> None:
    counters = DriveCounters()
    for _ in range(LOADS_PER_CLEANING - 1):
        counters = counters.loaded()
    assert (counters.needs_cleaning, counters.alerts) == (False, 0)
    counters = counters.loaded()
    assert (counters.needs_cleaning, counters.alerts) == (True, 1 << 20)
    counters = counters.cleaned()
    assert counters == DriveCounters(loads=LOADS_PER_CLEANING, cleanings=1)
    assert (counters.needs_cleaning, counters.alerts) == (False, 0)


def test_a_drive_that_nobody_cleans_asks_with_another_word() -> None:
    counters = DriveCounters(loads_since_cleaning=LOADS_CLEAN_NOW - 1)
    assert words_of(counters.alerts) == ("clean periodic",)
    assert words_of(counters.loaded().alerts) == ("clean now", "clean periodic")


def test_errors_of_a_load_are_added() -> None:
    counters = DriveCounters(read_errors=1).unloaded(read_errors=2, write_errors=3)
    assert (counters.read_errors, counters.write_errors) == (3, 3)


def test_counters_survive(tmp_path: Path) -> None:
    path = tmp_path / "drives.json"
    file = CounterFile(path)
    assert file.of("drive-0") == DriveCounters()
    file.set("drive-1", file.of("drive-1").loaded())
    again = CounterFile(path)
    assert again.of("drive-1") == DriveCounters(loads=1, loads_since_cleaning=1)
    assert again.of("drive-0") == DriveCounters()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 2, "drives": {}}',
        '{"format_version": 1, "drives": []}',
        '{"format_version": 1, "drives": {"drive-0": 7}}',
        '{"format_version": 1, "drives": {"drive-0": {"loads": "1"}}}',
        '{"format_version": 1, "drives": {"drive-0": {"loads": -1}}}',
        '{"format_version": 1, "drives": {"drive-0": {"miles": 1}}}',
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "drives.json"
    path.write_text(content)
    with pytest.raises(VolumeError, match="delete it"):
        CounterFile(path)


def test_counters_that_cannot_be_kept_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediumError):
        CounterFile(tmp_path / "gone" / "drives.json").set("drive-0", DriveCounters())
