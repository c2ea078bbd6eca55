"""Pruning: what changed since the preview keeps a backup, and nothing that is used is ever pruned."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError
from backplane.ids import BackupId
from controller.core.prune import users_of
from controller.operator_interface import OperatorInterface
from tests.site.arguments import parse
from tests.site.site import Site, backed_up, connected


def state(site: Site, number: int) -> str:
    return site.machine.backups[BackupId(number)].state


def prune(site: Site, *numbers: int) -> dict[str, Any]:
    return site.call("backup.prune", backups=[str(number) for number in numbers])


def preview(site: Site, **arguments: Any) -> dict[str, Any]:
    interface = OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)
    document = interface.read(
        "backup.retention", parse("backup.retention", arguments), wall=site.wall
    )
    assert document is not None
    return document


@pytest.fixture
def three(site: Site) -> Site:
    """A volume with three full backups."""
    backed_up(site)
    for _ in range(2):
        site.submit("backup", volume="vol")
        site.run()
    assert [state(site, number) for number in (1, 2, 3)] == ["completed"] * 3
    return site


def stands_on(site: Site, child: int, parent: int) -> None:
    row = site.machine.backups[BackupId(child)]
    row = replace(row, level="incremental", parent=BackupId(parent))
    site.machine.backups[row.backup] = row


def test_what_is_pruned_is_gone_for_good(three: Site) -> None:
    assert prune(three, 1, 2) == {"pruned": [1, 2], "kept": []}
    assert [state(three, number) for number in (1, 2, 3)] == ["pruned", "pruned", "completed"]
    three.restart()
    assert [state(three, number) for number in (1, 2, 3)] == ["pruned", "pruned", "completed"]
    with pytest.raises(NotFoundError):
        three.submit("verify", backup=1)
    assert prune(three, 1) == {"pruned": [1], "kept": []}


def test_a_number_that_is_no_backup_prunes_nothing(three: Site) -> None:
    with pytest.raises(NotFoundError, match="number 9"):
        prune(three, 1, 9)
    assert state(three, 1) == "completed"
    with pytest.raises(NotFoundError):
        three.call("backup.prune", backups=["1; drop"])


def test_what_something_stands_on_is_kept_unless_that_goes_with_it(three: Site) -> None:
    stands_on(three, 3, 2)
    assert prune(three, 2) == {
        "pruned": [],
        "kept": [{"backup": 2, "reason": "backup 3 stands on it"}],
    }
    assert prune(three, 2, 3) == {"pruned": [2, 3], "kept": []}


def test_what_stays_keeps_all_that_it_stands_on(three: Site) -> None:
    stands_on(three, 3, 2)
    stands_on(three, 2, 1)
    three.call("backup.protect", backup=3, protected=True)
    found = prune(three, 1, 2, 3)
    assert found["pruned"] == []
    assert [(each["backup"], each["reason"]) for each in found["kept"]] == [
        (3, "protected"),
        (2, "backup 3 stands on it"),
        (1, "backup 2 stands on it"),
    ]
    three.call("backup.protect", backup=3, protected=False)
    assert prune(three, 1, 2, 3)["pruned"] == [1, 2, 3]
    with pytest.raises(RefusedError, match="is pruned"):
        three.call("backup.protect", backup=3, protected=True)


def test_a_backup_that_a_job_reads_is_kept_with_its_chain(three: Site) -> None:
    stands_on(three, 2, 1)
    job = three.submit("verify", backup=2)
    assert [each["reason"] for each in prune(three, 1, 2)["kept"]] == [
        f"used by job {job} (verify)"
    ] * 2
    three.run()
    assert prune(three, 1, 2)["pruned"] == [1, 2]


def test_a_backup_that_has_not_chosen_its_parent_keeps_all_of_its_volume(three: Site) -> None:
    job = three.submit("backup", volume="vol", level="incremental")
    users = users_of(three.machine.backups, three.machine.jobs)
    assert users == {BackupId(n): f"used by job {job} (backup)" for n in (1, 2, 3)}
    assert prune(three, 1)["pruned"] == []


def test_a_full_backup_that_waits_keeps_nothing(three: Site) -> None:
    three.submit("backup", volume="vol")
    assert users_of(three.machine.backups, three.machine.jobs) == {}
    assert prune(three, 1)["pruned"] == [1]


def test_the_preview_says_what_would_happen_and_changes_nothing(three: Site) -> None:
    stands_on(three, 3, 2)
    document = preview(three, last=1)
    assert re.fullmatch(r".+ \(UTC[+-]\d\d:\d\d\)", document["zone"])
    lines = document["backups"]
    assert {each["copy_of"] for each in lines} == {0}
    assert [(each["backup"], each["is_kept"], each["reasons"]) for each in lines] == [
        (3, True, ["last 1 of 1"]),
        (2, True, ["backup 3 stands on it"]),
        (1, False, []),
    ]
    assert state(three, 1) == "completed"
    with pytest.raises(NotFoundError, match="'elsewhere'"):
        preview(three, last=1, pool="elsewhere")
    with pytest.raises(NotFoundError, match="'attic'"):
        preview(three, last=1, volumes=["attic"])


def test_a_verify_of_a_cartridge_uses_all_that_is_on_it(three: Site) -> None:
    tag = three.machine.registry.parts[1, 1].tag
    job = three.submit("verify", tag=tag)
    assert [each["reason"] for each in prune(three, 1, 3)["kept"]] == [
        f"used by job {job} (verify)"
    ] * 2
    three.run()
    assert prune(three, 1, 3)["pruned"] == [1, 3]


def test_copies_are_counted_for_themselves(three: Site) -> None:
    row = three.machine.backups[BackupId(3)]
    three.machine.backups[BackupId(3)] = replace(row, copy_of=BackupId(2))
    lines = preview(three, last=1)["backups"]
    assert [(each["backup"], each["is_kept"]) for each in lines] == [
        (3, True),
        (2, True),
        (1, False),
    ]


def test_a_job_keeps_all_copies_that_it_may_come_to_read() -> None:
    site = connected(drives=2)
    backed_up(site)
    job = site.submit("copy", backup=1)
    assert prune(site, 1)["kept"] == [{"backup": 1, "reason": f"used by job {job} (copy)"}]
    site.run()
    job = site.submit("restore", backup=1, new="other")
    assert [each["reason"] for each in prune(site, 1, 2)["kept"]] == [
        f"used by job {job} (restore)"
    ] * 2
    site.run()
    assert prune(site, 1, 2)["pruned"] == [1, 2]
