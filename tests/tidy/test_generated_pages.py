"""Parts of pages that are written by this test from the code: drawings of machines, bytes of work items.

`pytest tests/tidy/test_generated_pages.py --rewrite` writes them anew; read the diff.  A generated part stands between
`<!-- NAME: written by tests/tidy/test_generated_pages.py --rewrite -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backplane.ids import Designator
from controller.cli import decode
from controller.core import job, planner, tape_lists
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns
from mover_node.core import machine

DOCS = Path(__file__).resolve().parents[2] / "docs"
DISK = Designator(bytes.fromhex("3a11000000000001"))
TAPE = Designator(bytes.fromhex("3b22000000000002"))
PART = planner.PartData(
    runs=ExtentRuns([(0, 16), (256, 4096)]),
    block_bytes=512,
    record_bytes=1024 * 1024,
    stream_start=0,
    stream_bytes=4112 * 512,
)
PICKS = planner.PartPicks(
    picks=Picks([(0, 0, 16), (16, 256, 4096)]),
    block_bytes=PART.block_bytes,
    record_bytes=PART.record_bytes,
    stream_start=0,
    stream_bytes=PART.stream_bytes,
)


# --- machines ------------------------------------------------------------------------------------


def drawing(arrows: list[tuple[str, str, str]], *, first: str, happy: str, failed: str) -> str:
    names = {name: name.replace("-", "_") for arrow in arrows for name in arrow[:2]}
    lines = ["```mermaid", "stateDiagram-v2"]
    # A name with a dash is no identifier of mermaid's.
    lines += [f'    state "{name}" as {alias}' for name, alias in names.items() if name != alias]
    lines.append(f"    [*] --> {names[first]}")
    lines += [
        f"    {names[old]} --> {names[new]}{f': {why}' if why else ''}" for old, new, why in arrows
    ]
    lines += [f"    class {names[happy]} happy", "    classDef happy fill:#cfc"]
    if failed:
        lines += [f"    class {names[failed]} failed", "    classDef failed fill:#fcc"]
    return "\n".join([*lines, "```"])


def job_drawing() -> str:
    """The happy way; every state that has not ended may also end as failed, cancelled or partial."""
    bad_ends = {job.JobState.FAILED, job.JobState.CANCELLED, job.JobState.PARTIAL}
    arrows = [
        (old.value, new.value, "")
        for old, following in job.TRANSITIONS.items()
        for new in job.JobState
        if new in following and new not in bad_ends
    ]
    everywhere = [old for old, following in job.TRANSITIONS.items() if bad_ends <= following]
    assert {old for old in job.TRANSITIONS if old not in job.ENDED} == set(everywhere)
    arrows += [
        ("copying", bad.value, "as from every state before an end")
        for bad in job.JobState
        if bad in bad_ends
    ]
    return drawing(arrows, first="queued", happy="completed", failed="failed")


def item_drawing() -> str:
    arrows = [
        (old.value, new.value, event.__name__)
        for old, row in machine.TRANSITIONS.items()
        for event, new in row.items()
    ]
    return drawing(arrows, first="running", happy="kept", failed="")


# --- work items ----------------------------------------------------------------------------------


def example(planned: planner.PlannedList) -> str:
    data = planned.parameter_list
    digits = [data[at : at + 16].hex(" ") for at in range(0, len(data), 16)]
    told = decode.page(decode.decode(data, "lid1"))
    return "\n".join(
        ["```", *(f"{16 * n:4}  {line}" for n, line in enumerate(digits)), "```", ""]
    ) + ("\n".join(["", "```", *(line.rstrip() for line in told.splitlines()), "```"]))


def backup_example() -> str:
    return example(planner.plan_data(PART, first=0, disk=DISK, tape=TAPE, identifier=7))


def restore_example() -> str:
    return example(
        planner.plan_restore(PICKS, first=0, data_object=5, disk=DISK, tape=TAPE, identifier=8)
    )


def verify_example() -> str:
    return example(
        tape_lists.plan_verify(
            [(0, 3)], record_bytes=1024 * 1024, data_object=5, tape=TAPE, identifier=9
        )
    )


def metadata_example() -> str:
    objects: list[planner.MetadataObject] = [
        b"first record",
        b"second",
        planner.Mark(is_synchronous=True),
    ]
    return example(planner.plan_metadata(objects, first=0, tape=TAPE, identifier=10))


PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("state-machines/job.md", "drawing"): job_drawing,
    ("state-machines/mover-item.md", "drawing"): item_drawing,
    ("work-item.md", "backup list"): backup_example,
    ("work-item.md", "restore list"): restore_example,
    ("work-item.md", "verify list"): verify_example,
    ("work-item.md", "metadata list"): metadata_example,
}


@pytest.mark.parametrize(("page", "name"), PARTS, ids=lambda value: value.replace(" ", "-"))
def test_a_generated_part_is_not_stale(page: str, name: str, is_rewriting: bool) -> None:
    path = DOCS / page
    text = path.read_text(encoding="utf-8")
    begin = f"<!-- {name}: written by tests/tidy/test_generated_pages.py --rewrite -->\n"
    end = f"\n<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    written, closed, after = rest.partition(end)
    assert found
    assert closed
    fresh = PARTS[page, name]()
    if is_rewriting:
        path.write_text(before + begin + fresh + end + after, encoding="utf-8")
        return
    assert written == fresh, "run this test with --rewrite and read the diff"
