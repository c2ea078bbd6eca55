"""Job states follow each other by the table, and nothing leaves an end."""

from __future__ import annotations

import itertools

import pytest

from backplane.errors import InvalidTransition
from backplane.ids import BackupId, JobId, ViewId, VolumeId
from controller.catalog.store import ENDED_STATES, JobRow
from controller.core.job import ENDED, STORY_LENGTH_MAX, TRANSITIONS, Job, JobState


def row(state: str = "queued") -> JobRow:
    return JobRow(
        job=JobId(1),
        kind="backup",
        state=state,
        reason="",
        token="t",
        subject="vol",
        volume_name="vol",
        volume=VolumeId("0" * 32),
        backup=BackupId(0),
        view=ViewId(""),
        submitted="",
        started="",
        ended="",
        planned_bytes=0,
        done_bytes=0,
        error_count=0,
        exit_code=-1,
        seconds_copying=0.0,
        is_cancelled=False,
        plan='{"part": 1}',
        result="{}",
    )


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, JobState)))
def test_every_pair_of_states_is_either_in_the_table_or_refused(
    old: JobState, new: JobState
) -> None:
    job = Job.from_row(row(old.value))
    if new is old or new in TRANSITIONS[old]:
        job.enter(new)
        assert job.state is new
    else:
        with pytest.raises(InvalidTransition, match=f"enter {new.value} in state {old.value}"):
            job.enter(new)
        assert job.state is old


def test_a_backup_goes_the_way_that_the_design_draws() -> None:
    job = Job.from_row(row())
    for state in ("waiting-quiet", "viewing", "mapping", "copying", "committing", "completed"):
        job.enter(JobState(state))
    assert job.has_ended


def test_the_ends_are_those_that_the_catalog_knows() -> None:
    assert {state.value for state in ENDED} == ENDED_STATES


def test_a_new_reason_in_the_same_state_is_no_step_of_the_story() -> None:
    job = Job.from_row(row())
    job.enter(JobState.QUEUED, reason="waiting: a drive")
    assert job.row.reason == "waiting: a drive"
    assert job.story == []


def test_the_story_is_bounded() -> None:
    job = Job.from_row(row())
    job.story = ["x"] * STORY_LENGTH_MAX
    job.enter(JobState.COPYING)
    assert len(job.story) == STORY_LENGTH_MAX
    assert job.story[-1] == "queued -> copying"


def test_plan_and_result_survive_the_way_through_a_row() -> None:
    job = Job.from_row(row())
    job.plan["tag"] = "LTO001L8"
    job.result["backup"] = 3
    again = Job.from_row(job.to_row())
    assert again.plan == {"part": 1, "tag": "LTO001L8"}
    assert again.result == {"backup": 3}
