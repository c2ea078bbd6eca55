"""`ctl backup files`, `find` and `diff`: with a controller that is a table, and through the whole program."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from backplane.errors import ExitCode, NotFoundError, UsageError
from backplane.file_map.model import FileExtent, Kind
from backplane.testing.clock import ManualClock
from backplane.testing.file_rows import make_file, make_row, ordinary_tree
from backplane.testing.packed_map import MapCaller, PackedMap
from controller.cli.file_questions import Moment, path_of, run_diff, run_files, run_find
from controller.cli.options import Output
from controller.cli.render import Screen

ROWS = [
    make_row(b"", Kind.DIRECTORY),
    make_row(b"home", Kind.DIRECTORY),
    make_file(b"home/a.txt", FileExtent(0, 4096, 4096), size=12),
    make_row(b"home/caf\xe9", size=9),
    make_row(b"home/empty", Kind.DIRECTORY),
    make_row(b"home/sub", Kind.DIRECTORY),
    make_row(b"home/sub/b.txt"),
    make_row(b"home.txt"),
]
COMPLETE = PackedMap(ROWS)
TORN = PackedMap(ROWS, backup=4, reasons=("inode 7: \x1b torn", *(f"r{n}" for n in range(9))))
BACKUPS = [
    {
        "backup": number,
        "volume": volume,
        "name": f"{volume}/2026-01-{number:02}T00:00:00Z",
        "created": f"2026-01-{number:02}T00:00:00Z",
        "map_state": state,
    }
    for number, volume, state in (
        (5, "vol2", "raw"),
        (4, "vol1", "incomplete"),
        (3, "vol1", "complete"),
        (2, "vol2", "none"),
        (1, "vol1", "complete"),
    )
]
OLD = PackedMap([make_row(b"old.txt")], backup=1)


class Run:
    """One run of a command: its exit code, and what it wrote."""

    def __init__(self, output: Output = "table", *, is_terminal: bool = False) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.screen = Screen(
            output,
            stdout=self.out,
            stderr=self.err,
            is_terminal=is_terminal,
            has_colour=False,
        )
        self.code = -1

    def __call__(self, function: Any, *arguments: Any, **named: Any) -> list[str]:
        with redirect_stdout(self.out):
            self.code = function(*arguments, screen=self.screen, **named)
        return self.out.getvalue().splitlines()


def listed(path: str = "", caller: MapCaller | None = None, **options: bool) -> list[str]:
    given = {"is_long": False, "is_recursive": False} | options
    return Run()(run_files, caller or MapCaller(COMPLETE), "3", path, **given)


# --- files -----------------------------------------------------------------------------------------


def test_the_top_is_listed() -> None:
    assert listed() == listed("/") == ["home/", "home.txt"]


def test_a_directory_is_listed() -> None:
    assert (
        listed("home")
        == listed("/home//")
        == [
            "home/a.txt",
            "home/caf\\xe9",
            "home/empty/",
            "home/sub/",
        ]
    )
    assert listed("home/sub", is_recursive=True) == ["home/sub/b.txt"]
    assert len(listed("", is_recursive=True)) == len(ROWS) - 1


def test_a_long_listing_has_the_facts() -> None:
    (line,) = listed("home/a.txt", is_long=True)
    assert line.startswith("-rw-r--r--   1  1000  1000             12 ")
    assert line.endswith(" home/a.txt")


def test_a_name_that_is_no_text_can_be_asked_for() -> None:
    assert listed("home/caf\udce9") == ["home/caf\\xe9"]


def test_an_empty_directory_is_not_nothing() -> None:
    assert listed("home/empty") == []


@pytest.mark.parametrize("path", ["nothing", "home/sub/b.txt/c", "hom"])
def test_what_is_not_there_is_not_found(path: str) -> None:
    with pytest.raises(NotFoundError, match="in backup 3"):
        listed(path)


@pytest.mark.parametrize("path", ["..", "home/../etc", "./home", "a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="no path"):
        path_of(path)


def test_files_as_json() -> None:
    run = Run("json")
    lines = run(run_files, MapCaller(COMPLETE), "3", "home/sub", is_long=False, is_recursive=False)
    document = json.loads("\n".join(lines))
    assert document["files"][0]["path"] == "home/sub/b.txt"
    del document["files"]
    assert document == {
        "backup": 3,
        "volume": "vol1",
        "path": "home/sub",
        "is_complete": True,
        "reasons": [],
    }


def test_an_incomplete_map_is_a_warning_with_its_reasons() -> None:
    run = Run("jsonl")
    lines = run(run_files, MapCaller(TORN), "4", "home", is_long=False, is_recursive=False)
    assert [json.loads(line)["path"] for line in lines][:1] == ["home/a.txt"]
    assert run.code == ExitCode.PARTIAL
    assert run.err.getvalue() == (
        "the map of backup 4 is not complete: inode 7: \\x1b torn; r0; r1; r2; r3; 5 more\n"
    )
    missing = Run()
    with pytest.raises(NotFoundError):
        missing(run_files, MapCaller(TORN), "4", "x", is_long=False, is_recursive=False)
    assert "not complete" in missing.err.getvalue()


# --- find ------------------------------------------------------------------------------------------


def searched(
    pattern: str, volume: str = "", since: datetime | None = None, output: Output = "table"
) -> tuple[Run, list[str], MapCaller]:
    caller = MapCaller(COMPLETE, TORN, OLD, backups=BACKUPS)
    run = Run(output)
    return run, run(run_find, caller, pattern, volume=volume, since=since), caller


def test_files_are_found_in_all_backups_newest_first() -> None:
    run, lines, _ = searched("*.txt")
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [
        *(("4", name) for name in ("home/a.txt", "home/sub/b.txt", "home.txt")),
        *(("3", name) for name in ("home/a.txt", "home/sub/b.txt", "home.txt")),
        ("1", "old.txt"),
    ]
    assert "vol1/2026-01-04T00:00:00Z" in lines[0]
    assert run.code == ExitCode.PARTIAL, "one of the maps is not complete"
    assert run.err.getvalue().startswith("2 of 5 backups have no map of files\n")


def test_only_pages_below_the_pattern_are_read() -> None:
    _, lines, caller = searched("home/sub/*")
    assert len(lines) == 2
    asked = {arguments["under"] for verb, arguments in caller.calls if verb == "map.pages"}
    assert asked == {"home/sub"}


def test_backups_can_be_chosen_by_volume_and_time() -> None:
    _, lines, caller = searched("old.txt", since=datetime(2026, 1, 1, tzinfo=UTC))
    assert len(lines) == 1
    with pytest.raises(NotFoundError, match="in 2 backups"):
        searched("old.txt", since=datetime(2026, 1, 2, tzinfo=UTC))
    with pytest.raises(NotFoundError, match="in 0 backups"):
        searched("a.txt", volume="vol2")
    with pytest.raises(NotFoundError, match="no backup is of volume vol9"):
        searched("a.txt", volume="vol9")
    assert caller.calls[0] == ("backup.list", {"volume": ""})


def test_a_backup_that_has_lost_its_map_is_counted_as_without() -> None:
    caller = MapCaller(COMPLETE, backups=BACKUPS[2:])
    run = Run()
    assert len(run(run_find, caller, "a.txt", volume="", since=None)) == 1
    assert "2 of 3 backups have no map" in run.err.getvalue()


def test_found_files_as_json() -> None:
    _, lines, _ = searched("a.txt", output="json")
    document = json.loads("\n".join(lines))
    assert [(row["backup"], row["path"]) for row in document["found"]] == [
        (4, "home/a.txt"),
        (3, "home/a.txt"),
    ]
    assert (document["searched"], document["without_map"]) == (3, 2)


def test_a_pattern_that_means_nothing_is_refused_before_anything_is_asked() -> None:
    caller = MapCaller()
    with pytest.raises(UsageError):
        Run()(run_find, caller, "../x", volume="", since=None)
    assert caller.calls == []


def test_a_long_search_says_how_far_it_is_on_a_terminal_only() -> None:
    for is_terminal in (True, False):
        run = Run(is_terminal=is_terminal)
        caller = MapCaller(PackedMap(ordinary_tree(2500)), backups=BACKUPS[2:3])
        with pytest.raises(NotFoundError):
            run(run_find, caller, "*.nothing", volume="", since=None)
        assert ("backup 3 (1 of 1): 2,000 paths, 0 found" in run.err.getvalue()) == is_terminal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04", datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_date_or_a_time(text: str, expected: datetime) -> None:
    assert Moment(ManualClock()).convert(text, None, None) == expected


def test_a_moment_is_how_long_ago() -> None:
    clock = ManualClock()
    moment = Moment(clock)
    assert moment.convert("2 weeks", None, None) == clock.wall() - timedelta(days=14)
    for text in ("yesterday", "9999999999 weeks"):
        with pytest.raises(click.BadParameter, match="neither a time nor a duration"):
            moment.convert(text, None, None)


# --- diff ------------------------------------------------------------------------------------------

NEWER = PackedMap(
    [*ROWS[:2], ROWS[2]._replace(size=13, mode=0o600), *ROWS[4:], make_row(b"new\n")], backup=6
)


def test_two_backups_are_compared() -> None:
    run = Run()
    lines = run(run_diff, MapCaller(COMPLETE, NEWER), "3", "6")
    assert lines == ["M home/a.txt  (size, content, mode)", "- home/caf\\xe9", "+ new\\x0a"]
    assert run.code == ExitCode.OK
    assert run.err.getvalue() == (
        "what was written in place is judged by its time of modification: no chain\n"
    )


@pytest.mark.parametrize(("lba", "lines"), [(8, ["~ home/a.txt  (nearby)"]), (16, [])])
def test_blocks_that_were_written_in_place_tell_what_times_do_not(
    lba: int, lines: list[str]
) -> None:
    caller = MapCaller(COMPLETE, PackedMap(ROWS, backup=6))
    caller.changes = {"is_known": True, "reason": "", "block_bytes": 512, "extents": [[lba, 1]]}
    for before, after in (("3", "6"), ("6", "3")):
        run = Run()
        assert run(run_diff, caller, before, after) == lines
        assert run.err.getvalue() == ""
    asked = [arguments for verb, arguments in caller.calls if verb == "backup.changes"]
    assert asked == [{"before": "3", "after": "6"}] * 2


def test_changes_as_json_lines_have_both_rows() -> None:
    lines = Run("jsonl")(run_diff, MapCaller(COMPLETE, NEWER), "3", "6")
    changed, removed, added = map(json.loads, lines)
    assert (changed["change"], changed["what"]) == ("changed", ["size", "content", "mode"])
    assert (changed["before"]["size"], changed["after"]["size"]) == (12, 13)
    assert (removed["change"], removed["path_hex"]) == ("removed", b"home/caf\xe9".hex())
    assert removed["after"] is None
    assert added["before"] is None


def test_a_comparison_with_an_incomplete_map_is_partial() -> None:
    run = Run("json")
    lines = run(run_diff, MapCaller(COMPLETE, TORN), "3", "4")
    assert json.loads("\n".join(lines)) == {
        "before": 3,
        "after": 4,
        "volume": "vol1",
        "changes": [],
        "is_complete": False,
        "changed_blocks_known": False,
    }
    assert run.code == ExitCode.PARTIAL


def test_backups_of_two_volumes_cannot_be_compared() -> None:
    other = PackedMap(ROWS, backup=9, volume="vol2")
    with pytest.raises(UsageError, match="is of volume vol1, backup 9 of vol2"):
        Run()(run_diff, MapCaller(COMPLETE, other), "3", "9")


# --- the whole program -----------------------------------------------------------------------------


@pytest.fixture
def mapped(controller: Any) -> Any:
    """A controller that has one map."""
    controller.answers["map.header"] = COMPLETE.header_document()
    controller.answers["map.pages"] = COMPLETE.pages_document
    controller.answers["backup.list"] = {"backups": BACKUPS[2:3]}
    controller.answers["backup.changes"] = {
        "is_known": True,
        "reason": "",
        "block_bytes": 512,
        "extents": [],
    }
    return controller


@pytest.mark.usefixtures("mapped")
def test_the_commands_answer(ctl: Any) -> None:
    assert ctl("backup", "files", "vol1/latest") == (0, "home/\nhome.txt\n", "")
    assert ctl("backup", "files", "3", "home/sub", "--recursive")[1] == "home/sub/b.txt\n"
    code, out, _ = ctl("backup", "find", "b.txt", "--since", "2026-01-01")
    assert (code, out.split()[-1]) == (0, "home/sub/b.txt")
    assert ctl("backup", "diff", "3", "3") == (0, "", "")


@pytest.mark.usefixtures("mapped")
def test_the_commands_end_with_documented_codes(ctl: Any) -> None:
    assert ctl("backup", "files", "3", "nothing")[0] == ExitCode.NOT_FOUND
    assert ctl("backup", "find", "nothing")[0] == ExitCode.NOT_FOUND
    assert ctl("backup", "find", "b.txt", "--since", "soon")[0] == ExitCode.USAGE
    assert ctl("backup", "files", "3", "../x")[0] == ExitCode.USAGE
