"""Names of backups."""

from __future__ import annotations

import pytest

from backplane.errors import NotFoundError
from backplane.ids import BackupId
from controller.core.backup_names import find_backup
from tests.site.rows import backup

DAYS = ("2026-01-11T00:00:00Z", "2026-01-12T00:00:00Z")
ROWS = {
    row.backup: row
    for row in (
        backup(1, created=DAYS[0]),
        backup(2, created=DAYS[1]),
        backup(3, created=DAYS[0], copy_of=BackupId(1)),
        backup(4, created=DAYS[1], state="failed"),
        backup(5, created=DAYS[0], volume_name="a/b"),
    )
}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("3", 3),
        ("4", 4),
        ("vol/latest", 2),
        (f"vol/{DAYS[0]}", 1),
        (f"vol/{DAYS[1]}", 2),
        ("a/b/latest", 5),
    ],
)
def test_a_backup_is_found_by_number_or_by_volume_and_time(name: str, number: int) -> None:
    assert find_backup(ROWS, name).backup == number


def test_a_copy_has_the_name_of_an_original_that_is_gone() -> None:
    rest = {number: row for number, row in ROWS.items() if number != 1}
    assert find_backup(rest, f"vol/{DAYS[0]}").backup == 3
    assert find_backup(rest, "vol/latest").backup == 2


@pytest.mark.parametrize("name", ["", "9", "vol", "vol/", "/latest", "latest", "٣", "1" * 30])
def test_what_is_the_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(NotFoundError, match="no backup is called"):
        find_backup(ROWS, name)
