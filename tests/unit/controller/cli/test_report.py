from __future__ import annotations

from typing import Any

import pytest

from controller.cli.follow import fetch_job
from controller.cli.report import FILES_SHOWN_MAX, ITEMS_SHOWN_MAX, job_report, termination

REPORT = """\
  JobId:               7
  Job:                 backup: vol1
  State:               completed
  Volume:              vol1
  Backup:              3
  Scheduled time:      2026-01-11 10:43:40
  Start time:          2026-01-11 10:43:41
  End time:            2026-01-11 10:43:48
  Elapsed time:        7s
  Bytes:               3,221,225,472 (3GiB) of 3,221,225,472 (3GiB)
  Rate:                1GiB/s while copying (3s)
  Written to tape:     3GiB (3.22 GB)
  Under-runs:          0
  Cartridge(s):        LTO001L8
  Mover(s):            mover-1
  Work items:          1
  Controller payload:  0 bytes
  Errors:              0

  Ledger (balanced):
    planned    3,221,225,472  3GiB
    read       3,221,225,472  3GiB
    written    3,221,225,472  3GiB
    padded                 0  0B
    discarded              0  0B
    residual               0  0B

  LOGICAL UNIT  ROLE  DESIGNATOR                 READ        WRITTEN  PADDED  DISCARDED  RECORDS R  RECORDS W  FILEMARKS
  vol1          disk  3aabbccddeeff001  3,221,225,472              0       0          0          0          0          0
  drive-0       tape  3aabbccddeeff002              0  3,221,225,472       0          0          0      3,072          1

  Work items:
  ITEM  PURPOSE  STATE  MOVER    ATTEMPT  EPOCH  STATUS  SEGMENTS  PLANNED  SECONDS  SENSE
    11  data     done   mover-1        1      5  00h            3     3GiB     1.25  -

  Termination:  Backup OK"""


@pytest.fixture(autouse=True)
def _in_utc(state: Any) -> None:
    """Times are shown as local time; the fixture sets the zone."""


def test_the_whole_report(documents: Any) -> None:
    assert job_report(documents["detail"] | {"tags": ["LTO001L8"]}) == REPORT


@pytest.mark.parametrize(("written", "told"), [(["B", "A", "B"], "B, A"), ([], "-")])
def test_a_lane_names_the_cartridges_that_it_has_written_itself(
    documents: Any, written: list[str], told: str
) -> None:
    """Its backup is on those of the other lanes as well."""
    result = {"tags": written} if written else {}
    shown = documents["detail"] | {"kind": "lane", "backup": 3, "result": result, "next_item": 0}

    class Client:
        def call(self, verb: str, **arguments: Any) -> Any:
            assert verb == "job.show", "nobody asks for the whole backup"
            return dict(shown)

    detail = fetch_job(Client(), 4)
    assert detail["tags"] == list(dict.fromkeys(written))
    lines = job_report(detail).splitlines()
    assert [line.split(": ")[1].strip() for line in lines if "Cartridge(s)" in line] == [told]


def test_a_restore_names_the_cartridges_of_its_chain_and_not_of_its_backup(documents: Any) -> None:
    detail = documents["detail"] | {"tags": ["B"], "result": {"needs": ["A", "B"]}}
    assert "Cartridge(s):        B\n" in job_report(detail), "a backup names what it wrote"
    assert "Cartridge(s):        A, B\n" in job_report(detail | {"kind": "restore"})


def test_a_lane_of_a_restore_names_the_cartridges_that_it_reads(documents: Any) -> None:
    lane = documents["detail"] | {
        "kind": "restore-lane",
        "tags": ["A", "B"],
        "result": {"needs": ["B"]},
    }
    assert "Cartridge(s):        B\n" in job_report(lane)


def test_a_ledger_that_does_not_balance_cannot_be_overlooked(documents: Any) -> None:
    detail = documents["detail"]
    detail["ledger"]["is_balanced"] = False
    assert "Ledger (NOT BALANCED)" in job_report(detail)


def test_what_lists_that_failed_have_moved_is_told_apart(documents: Any) -> None:
    detail = documents["detail"]
    for device in detail["ledger"]["devices"]:
        device.update(again_read=0, again_written=0)
    assert "AGAIN" not in job_report(detail)
    detail["ledger"]["devices"][0]["again_read"] = 4096
    report = job_report(detail)
    assert "FILEMARKS  READ AGAIN\n" in report
    assert "          0       4,096\n" in report
    assert "WRITTEN AGAIN" not in report
    assert "AGAIN: moved by lists that failed and by later ones once more; not in the" in report


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"state": "failed", "reason": "no mover"}, "*** Backup Error *** (no mover)"),
        ({"state": "partial", "reason": "2 files"}, "Backup OK -- with warnings (2 files)"),
        ({"state": "cancelled", "kind": "restore"}, "Restore Canceled"),
        ({"state": "queued", "reason": "no drive"}, "not ended: queued (no drive)"),
    ],
)
def test_the_last_line_says_how_it_ended(documents: Any, changes: Any, line: str) -> None:
    assert termination(documents["detail"] | changes) == line


def test_damage_is_listed_by_lba(documents: Any) -> None:
    detail = documents["detail"]
    detail["result"]["damage"] = [
        {
            "first_lba": 2048,
            "last_lba": 4095,
            "blocks": 8,
            "tag": "LTO001L8",
            "object": 17,
            "reason": "wrong checksum",
        }
    ]
    assert "     2048      4095       8  LTO001L8       17  wrong checksum" in job_report(detail)


def test_damage_names_the_first_files_in_it_and_what_was_read_instead(documents: Any) -> None:
    detail = documents["detail"]
    entry = {"first_lba": 8, "last_lba": 9, "blocks": 2, "tag": "A", "object": 7, "reason": "gone"}
    files = {"count": 5, "listed": ["a", "b", "c", "d"]}
    detail["result"] = {"damage": [entry | {"files": files, "instead": "backup 4 on B"}]}
    text = job_report(detail)
    assert "FILES            READ INSTEAD   REASON" in text
    assert "a, b, c, 2 more  backup 4 on B  gone" in text
    detail["result"] = {"damage": [entry], "damaged_records": 1200}
    text = job_report(detail)
    assert "FILES" not in text
    assert "READ INSTEAD" not in text
    assert "... and 1199 more; --output json has 1" in text


def test_holes_and_the_files_in_them_are_named(documents: Any) -> None:
    detail = documents["detail"] | {"kind": "restore", "state": "partial"}
    hit = {"backup": 3, "count": 60, "listed": [f"f{n:02}" for n in range(55)], "has_more": True}
    holes = {"count": 22, "blocks": 40, "block_bytes": 512, "extents": [[8, 2]] * 22}
    detail["result"] = {
        "holes": holes,
        "hit": [hit, hit | {"listed": []}],
        "warnings": ["backup 3 is known to be damaged: object 6"],
        "unreadable": ["cartridge LTO002L8 is not there"],
    }
    text = job_report(detail)
    assert "Holes:               20,480 (20KiB) are zeros: LBA 8-9, 8-9" in text
    assert "8-9 and 2 more\n" in text
    holes["is_coarse"] = True
    assert "8-9 and 2 more (the nearest as one: ctl job log has each)" in job_report(detail)
    detail["result"] = {
        "sample": {"asked": "5%", "seed": "ab", "records": 1234, "of": 20000},
        "skipped": [{"tag": "A", "reason": "cartridge A is not in the library of tape"}],
    }
    told = job_report(detail)
    assert "Sample:              1,234 of 20,000 records (5% of each part), seed ab" in told
    assert "Not verified:        cartridge A is not in the library of tape" in told
    assert "Warning:             backup 3 is known to be damaged: object 6" in text
    assert "Not readable:        cartridge LTO002L8 is not there" in text
    assert "  Damaged files of backup 3:\n    f00\n" in text
    assert "    ... and 10 more\n    (and blocks that no file has)" in text
    assert text.count("Damaged files") == 1


def test_files_that_did_not_come_back_are_listed_with_their_reasons(documents: Any) -> None:
    detail = documents["detail"] | {"kind": "restore", "state": "partial"}
    listed = [{"path": "home/a", "reason": "lost"}, {"path": "z", "reason": "it is encrypted"}]
    files = {"restored": 5, "bytes": 4096, "failed": 2, "listed": listed}
    detail["result"] = {"files": files, "way": "in-place"}
    text = job_report(detail)
    assert "Files go:            in place, onto the volume that they came from\n" in text
    assert "Files:               5 restored, 4,096 (4KiB); 2 not restored\n" in text
    assert "  Not restored:\n  PATH    REASON\n  home/a  lost\n  z       it is encrypted" in text
    assert "more" not in text


@pytest.mark.parametrize("state", ["failed", "cancelled", "copying"])
def test_files_of_a_restore_that_has_not_ended_well_are_not_said_to_be_restored(
    documents: Any, state: str
) -> None:
    files = {"restored": 5, "bytes": 4096, "failed": 2, "listed": []}
    result = {"files": files, "way": "in-place", "attention": "files may be a mixture"}
    text = job_report(documents["detail"] | {"state": state, "result": result})
    assert "Files:               5 to be restored, 4,096 (4KiB)\n" in text
    assert "Attention:           files may be a mixture\n" in text


def test_more_files_than_fit_are_counted(documents: Any) -> None:
    detail = documents["detail"] | {"kind": "restore", "state": "partial"}
    listed = [{"path": f"{n}", "reason": "lost"} for n in range(FILES_SHOWN_MAX + 10)]
    files = {"restored": 0, "bytes": 0, "failed": len(listed), "listed": listed}
    detail["result"] = {"files": files, "way": "volume"}
    assert "... and 10 more; --output json has them" in job_report(detail)
    files["failed"] = 5000
    text = job_report(detail)
    assert f"... and {5000 - FILES_SHOWN_MAX} more\n" in text


def test_more_items_than_fit_are_counted(documents: Any) -> None:
    detail = documents["detail"]
    detail["items"] *= ITEMS_SHOWN_MAX + 5
    detail["items_total"] = ITEMS_SHOWN_MAX + 5
    assert "... and 5 more; --output json has them all" in job_report(detail)


def test_a_job_that_has_done_nothing_yet_has_a_report(documents: Any) -> None:
    detail = documents["detail"] | {
        "items": [],
        "items_total": 0,
        "state": "queued",
        "started": "",
        "ended": "",
        "backup": 0,
        "result": {},
        "seconds_copying": 0.0,
        "bytes_done": 0,
    }
    detail["ledger"]["devices"] = []
    report = job_report(detail)
    assert "Start time:          -" in report
    assert "Rate:                - while copying (0s)" in report


def test_an_import_has_no_ledger_because_no_mover_took_part(documents: Any) -> None:
    detail = documents["detail"] | {"kind": "import", "items": [], "items_total": 0}
    report = job_report(detail)
    assert "Ledger" not in report
    assert report.endswith("Termination:  Import OK")


def test_a_backup_says_what_it_waited_for_and_how_it_was_viewed(documents: Any) -> None:
    wait = {
        "quiet_s": 5.0,
        "quiet_from": "volume vol1",
        "sync_timeout_s": 80.0,
        "sync_timeout_from": "controller",
        "asked": "2026-01-11T10:43:41Z",
        "waited_s": 12.34,
        "idle_s": -1.0,
        "last_writer": "10.0.0.7",
    }
    view = {"asked": "auto", "means": "snapshot", "time": "2026-01-11T10:43:44Z"}
    text = job_report(documents["detail"] | {"wait": wait, "view": view, "group": [7, 8]})
    assert "  Group:               jobs 7, 8\n" in text
    assert "  Inactivity:          5 s (volume vol1)\n" in text
    assert "  Sync timeout:        80 s (controller)\n" in text
    assert "  Waited for quiet:    12.3 s, last written by 10.0.0.7\n" in text
    assert "  Static view:         snapshot (asked for: auto)\n" in text
    queued = job_report(
        documents["detail"]
        | {"wait": wait | {"asked": "", "last_writer": ""}, "view": view | {"means": ""}}
    )
    assert "Waited" not in queued
    assert "none yet (asked for: auto)" in queued


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (None, []),
        ({"state": "raw"}, ["Map of files:        none: asked for with --raw"]),
        (
            {"state": "none", "why": "nothing to map\x1b"},
            ["Map of files:        none: nothing to map\\x1b"],
        ),
        (
            {
                "state": "incomplete",
                "files": 1200,
                "file_systems": [{"kind": "ext4", "state": "clean"}],
                "reasons": [f"inode {number} is damaged" for number in range(9)],
            },
            [
                "Map of files:        incomplete, 1,200 files in ext4 clean",
                *(f"Map incomplete:      inode {number} is damaged" for number in range(5)),
            ],
        ),
    ],
)
def test_a_report_says_what_became_of_the_map(documents: Any, found: Any, lines: list[str]) -> None:
    told = job_report(documents["detail"] | {"result": {"map": found} if found else {}})
    assert [line.strip() for line in told.splitlines() if "Map" in line] == lines


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ({"level": "full"}, ["Level:               full"]),
        (
            {"level": "full", "fallback": "no history"},
            ["Level:               full", "Full because:        no history"],
        ),
        ({"level": "incremental", "parent": 2}, ["Level:               incremental on backup 2"]),
        (
            {"level": "incremental", "parents": [2, 1], "needs": ["A", "B"]},
            [
                "Level:               incremental",
                "Stands on:           2, 1",
                "Restore needs:       A, B",
            ],
        ),
    ],
)
def test_a_report_says_the_level_and_why_it_is_not_another(
    documents: Any, result: Any, lines: list[str]
) -> None:
    told = job_report(documents["detail"] | {"result": result})
    assert [line.strip() for line in told.splitlines()][5 : 5 + len(lines)] == lines


def test_a_rebuild_says_what_it_read_and_what_it_did_not_take_in(documents: Any) -> None:
    line = {"tag": "LTO001L8", "way": "trailers", "parts": 3, "new_parts": 2, "left_out": 1}
    result = {
        "cartridges": [line, line | {"tag": "LTO002L8", "way": "wreck"}],
        "backups": 2,
        "parts": 4,
        "maps": 1,
        "failed": ["LTO003L8: was labelled by another catalog"],
        "refused": [],
        "incomplete": [f"vol1/2026-01-11T10:43:4{n % 10}Z lacks part {n}" for n in range(60)],
        "notes": ["backup 9 stands on 8"],
    }
    detail = documents["detail"] | {"kind": "rebuild", "result": result, "tags": []}
    text = job_report(detail)
    assert "  New in the catalog:  2 backups, 4 parts, 1 maps of files\n" in text
    assert "  Cartridge(s):        LTO001L8, LTO002L8\n" in text
    assert ["LTO002L8", "wreck", "3", "2", "1"] in [row.split() for row in text.splitlines()]
    assert "  Cartridges left out:\n    LTO003L8: was labelled by another catalog\n" in text
    assert "Refused" not in text
    assert text.count(" lacks part ") == 50
    assert "    ... and 10 more; --output json has them\n" in text
    assert "  Notes:\n    backup 9 stands on 8\n" in text


def test_a_backup_over_several_drives_names_the_jobs_of_its_lanes(documents: Any) -> None:
    text = job_report(documents["detail"] | {"lanes": [8, 9]})
    assert text.count("  Lanes:               jobs 8, 9\n") == 1
    assert "Lanes" not in job_report(documents["detail"])


def test_a_verification_names_the_cartridges_that_it_read(documents: Any) -> None:
    result = {"tags": ["LTO001L8", "LTO004L8"]}
    text = job_report(documents["detail"] | {"kind": "verify", "tags": [], "result": result})
    assert "  Cartridge(s):        LTO001L8, LTO004L8\n" in text
