"""What a library has from its drives, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.errors import NotFoundError
from storage_node.tape.drive_bank import DriveBank
from storage_node.tape.drive_counters import CounterFile, DriveCounters


@pytest.fixture
def bank(tmp_path: Path) -> DriveBank[str]:
    return DriveBank(iter(("left", "right")), CounterFile(tmp_path / "drives.json"))


def test_a_drive_has_its_number_and_no_other(bank: DriveBank[str]) -> None:
    assert bank.drives == ("left", "right")
    assert [bank._drive(number) for number in (0, 1)] == ["left", "right"]
    for number in (-1, 2):
        with pytest.raises(NotFoundError, match=f"there is no drive {number}"):
            bank._drive(number)


def test_errors_are_added_to_those_of_their_drive_and_survive(
    bank: DriveBank[str], tmp_path: Path
) -> None:
    bank.count_errors(1, read_errors=0, write_errors=0)
    assert not (tmp_path / "drives.json").exists(), "nothing to write down"
    for _ in range(2):
        bank.count_errors(1, read_errors=2, write_errors=1)
    again = DriveBank[str]((), CounterFile(tmp_path / "drives.json"))
    assert again.counters(1) == DriveCounters(read_errors=4, write_errors=2)
    assert again.counters(0) == DriveCounters()
