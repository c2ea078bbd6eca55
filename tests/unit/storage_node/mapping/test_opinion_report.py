"""A survey for people, and for programs."""

from __future__ import annotations

import json

from backplane.errors import ExitCode
from backplane.file_map.header import MapHeader
from backplane.file_map.model import FileSystem
from storage_node.mapping import opinion_report
from storage_node.mapping.opinion import Opinion, Outcome, Survey
from storage_node.mapping.opinion_compare import Comparison, Difference, What
from storage_node.mapping.opinion_report import as_json, as_text

EXT4 = FileSystem("ext4", "p1", "a\x1b[31mlabel", "uuid", 4096, 1 << 20, "clean", "partition 1")
XFS = FileSystem("xfs", "p2", "", "uuid", 4096, 1 << 21, "replayed", "partition 2")


def header(*reasons: str) -> MapHeader:
    return MapHeader(
        format_version=1,
        volume_bytes=4 << 20,
        block_bytes=512,
        file_systems=(EXT4, XFS),
        rows=7,
        files=5,
        file_bytes=12345,
        row_pages=1,
        run_pages=1,
        is_complete=not reasons,
        reasons=reasons,
        reads=11,
        bytes_read=22222,
        digest="00" * 32,
    )


def survey(*opinions: Opinion, reasons: tuple[str, ...] = ()) -> Survey:
    return Survey("disk.img", header(*reasons), 3 << 20, opinions)


def differing(*differences: Difference) -> Opinion:
    comparison = Comparison(paths=9, data_compared=4, data_left=2)
    for one in differences:
        comparison.add(one)
    return Opinion(EXT4, Outcome.DIFFERS, ("it is odd",), comparison)


def test_the_facts_of_a_map_are_told() -> None:
    text = as_text(survey(reasons=("a bitmap is damaged",)))
    for fact in (
        "volume     4MiB (4194304 bytes)",
        "paths      7",
        "files      5, 12.0KiB (12345 bytes)",
        "allocated  3MiB (3145728 bytes)",
        "reads      11, 21.7KiB (22222 bytes)",
        "complete   no\n  a bitmap is damaged",
        "p2      replayed  2MiB",
    ):
        assert fact in text
    assert "second opinion" not in text
    assert "complete   yes" in as_text(survey())


def test_each_outcome_is_told() -> None:
    agrees = Opinion(EXT4, Outcome.AGREES, (), Comparison(paths=3, data_compared=2))
    failed = Opinion(EXT4, Outcome.FAILED, ("the parser ended with SIGSEGV",))
    lines = as_text(survey(agrees, failed, Opinion(XFS, Outcome.NONE))).splitlines()
    assert "p1, ext4: pytsk3 agrees: 3 paths in both, data of 2 files compared" in lines
    assert "p1, ext4: pytsk3 failed: the parser ended with SIGSEGV" in lines
    assert "p2, xfs: no second opinion for xfs" in lines


def test_differences_are_told_with_both_sides() -> None:
    found = differing(
        Difference(b"a", What.SIZE, "5", "6"),
        Difference(b"l", What.TARGET, "x", ""),
        Difference(b"o", What.ONLY_OURS, ours="fifo"),
        Difference(b"", What.KIND, "directory", "file of 3 bytes"),
    )
    lines = as_text(survey(found)).splitlines()
    assert lines[-6].endswith(
        "; of 2 not (inline, compressed, ...); 1 x size; 1 x target; 1 x only ours; 1 x kind"
    )
    assert lines[-5:] == [
        "  pytsk3: it is odd",
        "  size: a: ours 5; pytsk3 6",
        "  target: l: ours x; pytsk3 nothing",
        "  only ours: o: fifo",
        "  kind: /: ours directory; pytsk3 file of 3 bytes",
    ]  # fmt: skip


def test_a_journal_that_the_library_has_not_replayed_is_named() -> None:
    opinion = differing()._replace(file_system=XFS._replace(kind="ext4"))
    assert "the file system is replayed: pytsk3 reads it without its journal" in as_text(
        survey(opinion)
    )


def test_many_differences_are_cut_with_their_number() -> None:
    many = [Difference(b"%d" % number, What.SIZE, "1", "2") for number in range(1500)]
    lines = as_text(survey(differing(*many))).splitlines()
    assert lines[-1] == f"  and {1500 - opinion_report.SHOWN_MAX} more"
    assert lines[-2].startswith(f"  size: {opinion_report.SHOWN_MAX - 1}:")


def test_nothing_of_the_volume_reaches_a_terminal_as_a_command() -> None:
    evil = Difference(b"\x1b[2J\n\xff", What.ERROR, "\x07", "x" * 1000)
    text = as_text(survey(differing(evil), reasons=("\x1b]0;title\x07",)))
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "?[2J?\\xff" in text
    assert max(map(len, text.splitlines())) < 500


def test_programs_get_everything_as_one_object() -> None:
    found = differing(Difference(b"a\xff", What.SIZE, "5", "6"))
    document = json.loads(as_json(survey(found, Opinion(XFS, Outcome.NONE))))
    assert document["allocated_bytes"] == 3 << 20
    assert document["rows"] == 7
    assert document["file_systems"][1]["state"] == "replayed"
    assert document["second_opinions"] == [
        {
            "library": "pytsk3",
            "prefix": "p1",
            "kind": "ext4",
            "outcome": "differs",
            "reasons": ["it is odd"],
            "paths": 9,
            "data_compared": 4,
            "data_left": 2,
            "counts": {"size": 1},
            "differences": [{"path": "a\udcff", "what": "size", "ours": "5", "library": "6"}],
        },
        {"library": "pytsk3", "prefix": "p2", "kind": "xfs", "outcome": "none", "reasons": []},
    ]


def test_the_exit_code_says_whether_anything_speaks_against_the_map() -> None:
    agrees = Opinion(EXT4, Outcome.AGREES, (), Comparison())
    none, failed = Opinion(XFS, Outcome.NONE), Opinion(EXT4, Outcome.FAILED, ("why",))
    assert survey().exit_code == survey(agrees, none).exit_code == ExitCode.OK
    assert survey(agrees, differing()).exit_code == ExitCode.PARTIAL
    assert survey(failed, agrees).exit_code == ExitCode.PARTIAL
