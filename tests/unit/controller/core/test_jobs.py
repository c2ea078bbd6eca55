"""Which procedure a job runs, and what operators may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from controller.core import jobs
from tests.site.site import DATA, Site, backed_up, check_end


def test_the_same_token_gives_the_same_job(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    first = site.submit("backup", volume="vol", token="same")
    assert site.submit("backup", volume="vol", token="same") == first


def test_jobs_are_numbered_from_one_and_never_again_from_there(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    assert site.submit("backup", volume="vol") == 1
    site.restart()
    assert site.submit("backup", volume="vol") == 2


def test_what_does_not_exist_is_refused_by_name(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no volume is named 'nix'"):
        site.submit("backup", volume="nix")
    with pytest.raises(NotFoundError, match="no completed backup has number 7"):
        site.submit("verify", backup=7)
    with pytest.raises(UsageError, match="no kind of job is called 'dance'"):
        site.submit("dance")
    assert not site.machine.jobs


def test_a_volume_that_is_not_online_is_refused_at_once(site: Site) -> None:
    site.begin_call(
        "volume.import_begin",
        token="T",
        name="new",
        size_bytes=4096,
        block_bytes=512,
        node="",
        holder="",
    )
    site.settle()
    with pytest.raises(BusyError, match="volume new is importing"):
        site.submit("backup", volume="new")


def test_a_backup_of_a_volume_whose_node_is_away_is_taken_and_waits(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.disconnect("disk")
    job = site.submit("backup", volume="vol")
    assert site.job(job).reason == "waiting: storage node disk is away"
    site.connect("disk")
    site.run()
    check_end(site, job)


def test_a_restore_to_a_volume_in_use_is_refused_at_once(site: Site) -> None:
    backup = backed_up(site)
    site.make_volume("target")
    site.submit("backup", volume="target")
    with pytest.raises(BusyError, match="volume target is used by job 2"):
        site.submit("restore", backup=backup, to="target")


def test_subjects_are_words_for_people(site: Site) -> None:
    backup = backed_up(site)
    new = site.submit("restore", backup=backup, new="copy")
    site.run()
    verify = site.submit("verify", backup=backup)
    site.run()
    site.make_volume("old")
    some = [
        site.submit("restore", backup=backup, excludes=["x"], **where)
        for where in ({"new": "a"}, {"new": "b", "staging": True}, {"to": "old"}, {})
    ]
    assert [site.job(job).subject for job in (1, new, verify, *some)] == [
        "vol",
        "backup 1 -> new volume copy",
        "backup 1",
        "files of backup 1 -> new volume a",
        "files of backup 1 -> staging volume b",
        "files of backup 1 -> volume old",
        "files of backup 1 -> in place on volume vol",
    ]


def test_files_that_make_no_sense_are_refused_before_anything_happens(site: Site) -> None:
    backup = backed_up(site)
    with pytest.raises(UsageError, match="files have to be chosen"):
        site.submit("restore", backup=backup, new="x", staging=True)
    for where in ({}, {"to": "vol", "force": True}):
        with pytest.raises(UsageError, match="files are staged on a new volume"):
            site.submit("restore", backup=backup, paths=["a"], staging=True, **where)
    with pytest.raises(UsageError, match="pattern"):
        site.submit("restore", backup=backup, paths=[""], new="x")
    raw = site.submit("backup", volume="vol", raw=True)
    site.run()
    number = site.job(raw).backup
    with pytest.raises(RefusedError, match=f"backup {number} has no map of its files"):
        site.submit("restore", backup=number, paths=["a"], new="x")
    assert not site.machine.jobs
    assert [volume.row.name for volume in site.volumes.values()] == ["vol"]


@pytest.mark.parametrize("kind", ["backup", "restore", "verify", "import", "export"])
def test_every_kind_of_job_has_a_procedure_and_a_clean_up(site: Site, kind: str) -> None:
    backed_up(site)
    job: Any = type("J", (), {"row": type("R", (), {"kind": kind}), "plan": {}})
    assert jobs.begin(site.machine, job) is not None
    assert jobs.clean_up(site.machine, job) is not None


def test_files_in_place_have_a_procedure_and_a_clean_up_of_their_own(site: Site) -> None:
    row = type("R", (), {"kind": "restore"})
    job: Any = type("J", (), {"row": row, "plan": {"way": "in-place"}})
    begun: Any = jobs.begin(site.machine, job)
    assert begun.__qualname__ == "restore_in_place"
    assert jobs.clean_up(site.machine, job) is not None


def test_a_kind_that_the_catalog_should_not_have_is_a_bug(site: Site) -> None:
    job: Any = type("J", (), {"row": type("R", (), {"kind": "dance"}), "plan": {}})
    with pytest.raises(AssertionError, match="unknown kind of job"):
        jobs.begin(site.machine, job)


def test_a_job_that_has_ended_cannot_be_cancelled(site: Site) -> None:
    backed_up(site)
    with pytest.raises(NotFoundError, match="no active job has number 1"):
        site.call("job.cancel", job=1)


def test_a_level_that_does_not_exist_is_refused(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    with pytest.raises(UsageError, match="no level is called 'half'"):
        site.submit("backup", volume="vol", level="half")
