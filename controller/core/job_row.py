"""The row of a job that was just submitted."""

from __future__ import annotations

import json
from typing import Any

from backplane.ids import BackupId, JobId, ViewId, VolumeId
from controller.catalog.store import JobRow, VolumeRow
from controller.core import documents
from controller.core.desk import Desk
from controller.core.job import JobState


def submitted_document(row: JobRow) -> dict[str, Any]:
    """Return the answer to a submission: its job, and with a group the `jobs` of all its volumes."""
    group = json.loads(row.plan).get("group")
    return {"job": row.job, "jobs": group} if group else {"job": row.job}


def job_row(
    desk: Desk,
    kind: str,
    token: str,
    *,
    subject: str,
    volume: VolumeRow | None,
    backup: BackupId = BackupId(0),  # noqa: B008 - a number
    view: str = "",
    plan: dict[str, Any],
) -> JobRow:
    return JobRow(
        job=JobId(desk.next_number("job")),
        kind=kind,
        state=JobState.QUEUED.value,
        reason="",
        token=token,
        subject=subject,
        volume_name=volume.name if volume is not None else "",
        volume=volume.volume if volume is not None else VolumeId(""),
        backup=backup,
        view=ViewId(view),
        submitted=desk.wall,
        started="",
        ended="",
        planned_bytes=0,
        done_bytes=0,
        error_count=0,
        exit_code=-1,
        seconds_copying=0.0,
        is_cancelled=False,
        plan=documents.json_text(plan),
        result="{}",
    )
