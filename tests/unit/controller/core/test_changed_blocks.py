"""Which blocks may differ between two backups: pure, and as an operator is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import BackupId, JobId, VolumeId
from controller.catalog.store import BackupRow
from controller.core import changed_blocks
from controller.core.changed_blocks import changed_between
from controller.core.extent_runs import ExtentRuns
from controller.operator_interface import OperatorInterface
from controller.operator_verbs import parse_arguments
from tests.site.site import DATA, Site


def backup(number: int, *, parent: int = 0, **changes: Any) -> BackupRow:
    row = BackupRow(
        backup=BackupId(number),
        backup_uuid=f"{number:032x}",
        job=JobId(number),
        volume=VolumeId(bytes(16)),
        volume_name="vol",
        blocks=64,
        block_bytes=512,
        record_bytes=2048,
        stream_bytes=8192,
        state="completed",
        created="",
        consistency="crash",
        view_means="snapshot",
        detail="{}",
        level="incremental" if parent else "full",
        parent=BackupId(parent),
    )
    return replace(row, **changes)


def runs(*extents: tuple[int, int], zeros: tuple[tuple[int, int], ...] = ()) -> ExtentRuns:
    made = ExtentRuns(extents)
    made.zeros = ExtentRuns(zeros)
    return made


CHAIN = [backup(1), backup(2, parent=1), backup(3, parent=2), backup(4)]
EXTENTS = {
    1: runs((0, 64)),
    2: runs((4, 2), zeros=((10, 1),)),
    3: runs((5, 3), (20, 1)),
    4: runs((0, 64)),
}


def changed(before: int, after: int, *rows: BackupRow) -> tuple[list[tuple[int, int]], str]:
    backups = {row.backup: row for row in (*CHAIN, *rows)}
    found, why_not = changed_between(
        backups[BackupId(before)],
        backups[BackupId(after)],
        backups=backups,
        extents_of=lambda number: EXTENTS.get(int(number)),
    )
    return list(found), why_not


def test_what_later_members_say_anything_about_may_differ() -> None:
    assert changed(2, 3) == ([(5, 3), (20, 1)], "")
    assert changed(1, 2) == ([(4, 2), (10, 1)], "")
    assert changed(1, 3) == ([(4, 4), (10, 1), (20, 1)], "")


def test_nothing_differs_from_itself() -> None:
    assert changed(3, 3) == changed(1, 1) == ([], "")


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4), (4, 3)])
def test_nothing_is_known_of_backups_that_do_not_stand_on_each_other(
    before: int, after: int
) -> None:
    assert changed(before, after) == ([], f"backup {after} does not stand on backup {before}")


def test_nothing_is_known_beyond_chosen_files() -> None:
    chosen = backup(3, parent=2, selection='{"paths": ["a"]}')
    assert changed(1, 3, chosen) == ([], "backup 3 does not have every change")
    assert changed(1, 2, chosen)[1] == ""


def test_nothing_is_known_without_extents_or_without_a_parent() -> None:
    assert changed(1, 5, backup(5, parent=1)) == ([], "backup 5 does not have every change")
    assert changed(1, 9, backup(9, parent=8))[1]


def test_too_many_runs_are_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_blocks, "RUNS_MAX", 2)
    assert changed(1, 3) == ([], "more than 2 runs of blocks have changed")
    assert changed(2, 3)[1] == ""


def test_an_operator_is_told(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    for token in "AB":
        site.submit("backup", volume="vol", token=token)
        site.run()
    interface = OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)

    def read(before: str, after: str) -> dict[str, Any]:
        raw = json.dumps({"before": before, "after": after}).encode()
        arguments = parse_arguments("backup.changes", raw)
        document = interface.read("backup.changes", arguments, wall=site.wall)
        assert document is not None
        return document

    same = read("2", "vol/latest")
    assert (same["before"], same["after"], same["is_known"]) == (2, 2, True)
    assert (same["extents"], same["block_bytes"]) == ([], 512)
    other = read("1", "2")
    assert (other["is_known"], other["reason"]) == (
        False,
        "backup 2 does not stand on backup 1",
    )
