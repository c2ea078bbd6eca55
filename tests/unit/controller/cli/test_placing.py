"""Which way each file goes into a mounted file system, and what happens to it when something fails on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from backplane.crc import crc32c
from backplane.errors import (
    BackupError,
    BusyError,
    ExitCode,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, FileSystem, Identity, Kind
from backplane.file_map.selection import Selection
from backplane.testing.packed_map import MapCaller, PackedMap
from backplane.units import MIB
from controller.cli import placing
from controller.cli.placer import PlacerLostError, Refusal
from controller.cli.placing import _batches, _exactly, refuse_placing, run_place
from controller.cli.render import Screen


def row(path: bytes, kind: Kind = Kind.FILE, size: int = 0, **fields: Any) -> FileRow:
    facts: dict[str, Any] = {
        "path": path,
        "kind": kind,
        "size": size,
        "mode": 0o755 if kind is Kind.DIRECTORY else 0o644,  # ordinary users need to enter
        "uid": -1,
        "gid": -1,
        "mtime_ns": 10**18,
        "atime_ns": 10**18,
        "ctime_ns": 0,
        "birth_ns": 0,
        "links": 1,
        "identity": Identity(0, crc32c(path), 0),
        "extents": (FileExtent(0, 4096, size),) if size else (),
    }
    return FileRow(**(facts | fields))


PARTS = ("p1", "p2")
LINKED: dict[str, Any] = {"links": 2, "identity": Identity(0, 1, 0)}
ROWS = [
    row(b"", Kind.DIRECTORY),
    row(b"home", Kind.DIRECTORY),
    row(b"home/big", size=2 * MIB),
    row(b"home/empty"),
    row(b"home/linked", size=MIB, **LINKED),
    row(b"home/other", size=MIB, **LINKED),
    row(b"home/secret", extents=(FileExtent(0, 0, 512, int(ExtentFlag.ENCRYPTED)),), size=512),
    row(b"home/small", size=100),
    row(b"iso", size=2 * MIB),
]


class Controller(MapCaller):
    """A controller with one backup, whose job ends as a test wants it."""

    def __init__(
        self, rows: Sequence[FileRow] = ROWS, systems: tuple[FileSystem, ...] = ()
    ) -> None:
        super().__init__(PackedMap(rows, file_systems=systems))
        self.states = ["copying", "completed"]
        self.result: dict[str, Any] = {"is_fenced": True}
        self.error: BackupError | None = None
        self.lost: set[str] = set()
        self.placed: list[str] = []

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        match verb:
            case "job.submit":
                self.calls.append((verb, arguments))
                if self.error is not None:
                    raise self.error
                self.placed = list(arguments["placed"])
                return {"job": 7}
            case "volume.show":
                if arguments["name"] != "vol2":
                    raise NotFoundError("no volume is named that")
                return {}
            case "restore.renew":
                self.calls.append((verb, arguments))
                return {}
            case "job.cancel":
                self.calls.append((verb, arguments))
                self.states = ["cancelled"]
                return {}
            case "job.show":
                return self._show()
            case _:
                return super().call(verb, **arguments)

    def _show(self) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        placed = [{"from": path, "crc32c": 5} for path in self.placed if path not in self.lost]
        listed = [{"path": path, "reason": "it is lost"} for path in self.lost]
        files = {"listed": listed}
        return {
            **dict.fromkeys(("percent_done", "seconds_elapsed", "seconds_remaining"), 0.0),
            **dict.fromkeys(("total_bytes", "bytes_done", "error_count", "seconds_copying"), 0),
            "job": 7,
            "kind": "restore",
            "state": state,
            "reason": "why not",
            "backup": 0,
            "next_item": 0,
            "items": [],
            "result": self.result
            | ({"placed": placed, "files": files} if state == "completed" else {}),
        }

    def submitted(self) -> dict[str, Any]:
        (arguments,) = [arguments for verb, arguments in self.calls if verb == "job.submit"]
        return arguments

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.calls if not verb.startswith("map.")]


class FakePlacer:
    """Holds files in a folder, and fails where a test wants it."""

    refusals: ClassVar[dict[str, str]] = {}
    """By the operation, or by the operation and the beginning of a name."""
    troubles: ClassVar[list[str]] = []
    lost_at = ""
    story: ClassVar[list[str]] = []

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_exposed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.story.append("closed, exposed" if self.is_exposed else "closed")

    def _do(self, what: str, path: bytes = b"") -> None:
        name = os.fsdecode(path).rpartition("/")[2].partition(".")[0]
        self.story.append(f"{what} {name}".strip())
        if self.lost_at == what:
            raise PlacerLostError
        for key in (what, f"{what} {name}"):
            if key in self.refusals:
                raise Refusal(self.refusals[key])

    def prepare(self, temporary: bytes, size: int) -> tuple[str, str]:
        self._do("prepare", temporary)
        (self.folder / os.fsdecode(temporary)).write_bytes(bytes(size))
        return "digest", f"mounted/{os.fsdecode(temporary)}"

    def expose(self) -> None:
        self.is_exposed = True
        self._do("expose")

    def fenced(self) -> None:
        self.is_exposed = False
        self._do("fenced")

    def verify(self, temporary: bytes, row: FileRow, *, digest: str, crc: int) -> int:
        assert (digest, crc) == ("digest", 5)
        self._do("verify", temporary)
        (self.folder / os.fsdecode(temporary)).rename(self.folder / os.fsdecode(row.path))
        return 0

    def abandon(self, temporary: bytes) -> None:
        self._do("abandon", temporary)
        (self.folder / os.fsdecode(temporary)).unlink()

    def trouble(self) -> str:
        return self.troubles.pop(0) if self.troubles else ""


class Bench:
    """A folder, a controller, and what `ctl` prints."""

    def __init__(self, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.into = into
        self.controller = Controller()
        self.staged: list[dict[str, Any]] = []
        self.not_staged: dict[str, str] = {}
        self.told = ""
        self.document: dict[str, Any] = {}
        for name, value in (("refusals", {}), ("troubles", []), ("story", []), ("lost_at", "")):
            monkeypatch.setattr(FakePlacer, name, value)
        monkeypatch.setattr(placing, "Placer", FakePlacer)
        monkeypatch.setattr(placing, "POLL_S", 0.0)
        monkeypatch.setattr(placing, "staged", self._staged)
        monkeypatch.setattr(placing, "bytes_of", self._bytes_of)
        monkeypatch.setattr(placing, "lost_of", lambda _: self.not_staged)

    @contextmanager
    def _staged(self, _c: Any, _b: int, files: Any, _s: Any) -> Iterator[tuple[int, str]]:
        self.staged.append(files)
        yield 8, "staging"

    @contextmanager
    def _bytes_of(self, _client: Any, _name: str) -> Iterator[Any]:
        yield lambda _, count: (yield b"w" * count)

    def run(self, *paths: str, volume: str = "") -> int:
        bench = self

        class Shown(Screen):
            def show(self, document: Any, *, table: Any, rows: str = "") -> None:
                bench.document = json.loads(json.dumps(document))
                bench.told += table()

            def talk(self, text: str) -> None:
                bench.told += text + "\n"

        files = {"paths": list(paths or ("home",)), "excludes": [], "check": True}
        return run_place(
            self.controller,  # type: ignore[arg-type]
            backup="3",
            into=self.into,
            volume=volume,
            files=files,
            screen=Shown("json"),
        )

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.into)) for path in self.into.rglob("*"))

    def ways(self) -> dict[str, str]:
        return {
            each["path"]: each["way"] + (f": {each['reason']}" if "reason" in each else "")
            for each in self.document["ways"]
        }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


ALL = ["home", "home/big", "home/empty", "home/linked", "home/other", "home/small"]


def test_large_files_are_placed_others_written_and_links_made(bench: Bench) -> None:
    assert bench.run(volume="vol2") == ExitCode.PARTIAL
    assert bench.names() == ALL
    assert bench.ways() == {
        "home/big": "placed",
        "home/linked": "placed",
        "home/empty": "written: it is small",
        "home/small": "written: it is small",
    }
    asked = bench.controller.submitted()
    assert asked["placed"] == ["home/big", "home/linked"]
    assert (asked["backup"], asked["to"], asked["kind"]) == ("3", "vol2", "restore")
    assert all(path.startswith("mounted/home/") for path in asked["onto"])
    assert [each["paths"] for each in bench.staged] == [["/home/small"]]
    assert (bench.into / "home/small").read_bytes() == b"w" * 100
    assert (bench.into / "home/other").stat().st_nlink == 2
    assert bench.document["listed"] == [
        {
            "path": "home/secret",
            "reason": "it is encrypted: it can be brought back with its volume only",
        }
    ]
    assert (bench.document["placed"], bench.document["written"]) == (2, 2)
    assert bench.document["jobs"] == [7, 8]


def test_files_of_two_partitions_with_the_same_numbers_are_two_files(bench: Bench) -> None:
    first = row(b"p1/a", size=MIB, **LINKED)
    empty = row(b"p1/none", links=2, identity=Identity(0, 2, 0))
    rows = [first, empty, first._replace(path=b"p2/a"), empty._replace(path=b"p2/none")]
    bench.controller = Controller(
        [row(b"p1", Kind.DIRECTORY), *rows[:2], row(b"p2", Kind.DIRECTORY), *rows[2:]],
        tuple(FileSystem("ext4", each, "", "", 4096, 1 << 30, "clean", "") for each in PARTS),
    )
    assert bench.run("**") == ExitCode.OK
    assert bench.controller.submitted()["placed"] == ["p1/a", "p2/a"]
    for name in ("a", "none"):
        first_inode, second_inode = ((bench.into / p / name).stat().st_ino for p in PARTS)
        assert first_inode != second_inode


def test_blocks_are_exposed_before_the_job_and_verified_when_it_is_fenced(bench: Bench) -> None:
    bench.run("home/big")
    assert FakePlacer.story == ["prepare big", "expose", "fenced", "verify big", "closed"]
    assert bench.controller.verbs() == ["job.submit", "restore.renew"]
    assert bench.staged == []


def test_what_cannot_be_prepared_is_written(bench: Bench) -> None:
    FakePlacer.refusals["prepare big"] = "files cannot be placed in btrfs"
    bench.run("home/big", "iso")
    assert bench.ways() == {
        "home/big": "written: files cannot be placed in btrfs",
        "iso": "placed",
    }
    assert bench.staged[0]["paths"] == ["/home/big"]


def test_where_nothing_can_be_prepared_there_is_no_job(bench: Bench) -> None:
    FakePlacer.refusals["prepare"] = "it is btrfs"
    assert bench.run("home/big") == ExitCode.OK
    assert bench.controller.verbs() == []
    assert FakePlacer.story == ["prepare big", "closed"]
    assert (bench.into / "home/big").read_bytes() == b"w" * 2 * MIB


def test_what_cannot_be_verified_is_abandoned_and_written(bench: Bench) -> None:
    FakePlacer.refusals["verify big"] = "the file reads with CRC32C 1"
    bench.controller.lost = {"iso"}
    assert bench.run("home/big", "iso") == ExitCode.OK
    assert bench.ways() == {
        "home/big": "written: the file reads with CRC32C 1",
        "iso": "written: it is lost",
    }
    assert bench.names() == ["home", "home/big", "iso"]
    assert FakePlacer.story[-4:] == ["verify big", "abandon big", "abandon iso", "closed"]


def test_what_is_lost_on_both_ways_is_listed(bench: Bench) -> None:
    bench.controller.lost = {"home/big"}
    bench.not_staged = {"home/big": "a record is damaged"}
    assert bench.run("home/big") == ExitCode.PARTIAL
    assert bench.document["listed"] == [{"path": "home/big", "reason": "a record is damaged"}]
    assert bench.names() == ["home"]


def test_a_job_that_is_refused_leaves_no_prepared_file(bench: Bench) -> None:
    bench.controller.error = BusyError("volume vol1 is used by job 4")
    assert bench.run("home/big") == ExitCode.OK
    assert bench.ways() == {"home/big": "written: volume vol1 is used by job 4"}
    assert "abandon big" in FakePlacer.story


def test_a_submission_that_nobody_answers_leaves_the_files_to_their_holder(bench: Bench) -> None:
    bench.controller.error = UnreachableError("no controller")
    with pytest.raises(UnreachableError):
        bench.run("home/big")
    assert FakePlacer.story == ["prepare big", "expose", "closed, exposed"]
    assert "movers may still be writing" in bench.told


def test_a_job_of_which_nobody_knows_that_it_is_fenced_leaves_them_too(bench: Bench) -> None:
    bench.controller.states = ["failed"]
    bench.controller.result = {}
    with pytest.raises(BackupError, match="may still be writing"):
        bench.run("home/big")
    assert FakePlacer.story[-1] == "closed, exposed"


def test_a_broken_lease_stops_the_job_before_the_blocks_are_given_up(bench: Bench) -> None:
    FakePlacer.troubles[:] = ["", "somebody else has opened it"]
    bench.controller.states = ["copying"]
    bench.run("home/big")
    assert bench.controller.verbs() == ["job.submit", "restore.renew", "job.cancel"]
    assert FakePlacer.story == ["prepare big", "expose", "fenced", "abandon big", "closed"]
    assert bench.ways() == {"home/big": "written: somebody else has opened it"}


def test_why_a_job_has_failed_is_said_of_its_files(bench: Bench) -> None:
    bench.controller.states = ["failed"]
    bench.run("home/big")
    assert bench.ways() == {"home/big": "written: job 7 failed: why not"}


def test_a_prepared_file_that_cannot_be_removed_is_told_and_the_rest_goes_on(bench: Bench) -> None:
    FakePlacer.refusals.update({"verify big": "it reads wrong", "abandon": "Read-only file system"})
    assert bench.run("home/big", "iso") == ExitCode.OK
    assert bench.ways() == {"home/big": "written: it reads wrong", "iso": "placed"}
    assert ".restoring is left: Read-only file system" in bench.told


def test_a_volume_that_is_not_there_is_found_out_before_anything_is_made(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="no volume"):
        bench.run("home/small", volume="vol9")
    assert bench.names() == []


def test_a_holder_that_dies_stops_the_job_and_leaves_nothing(bench: Bench) -> None:
    FakePlacer.lost_at = "fenced"
    FakePlacer.troubles[:] = ["it has ended"] * 3
    bench.controller.states = ["copying"]
    bench.run("home/big")
    assert "job.cancel" in bench.controller.verbs()
    assert bench.names() == ["home", "home/big"]
    assert "nobody holds the prepared files" in bench.ways()["home/big"]


def test_an_interruption_cancels_the_job_and_waits_until_it_is_fenced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_detail: object) -> str:
        raise KeyboardInterrupt

    bench.controller.states = ["copying"]
    monkeypatch.setattr(placing, "status_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.run("home/big")
    assert bench.controller.verbs()[-1] == "job.cancel"
    assert FakePlacer.story == ["prepare big", "expose", "fenced", "closed"]


def test_nothing_that_exists_is_overwritten_or_copied_for_nothing(bench: Bench) -> None:
    (bench.into / "home").mkdir()
    (bench.into / "home/big").write_text("mine")
    assert bench.run("home/big") == ExitCode.PARTIAL
    assert (bench.into / "home/big").read_text() == "mine"
    assert bench.document["listed"] == [{"path": "home/big", "reason": "File exists"}]
    assert bench.controller.verbs() == []
    assert bench.staged == []


def test_a_pattern_that_means_nothing_and_a_folder_that_is_not_there_are_refused(
    bench: Bench,
) -> None:
    with pytest.raises(NotFoundError, match="nothing that matches nowhere"):
        bench.run("nowhere")
    bench.into = bench.into / "gone"
    with pytest.raises(RefusedError, match=r"cannot make files.*name a folder that is there"):
        bench.run()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (row(b"a", size=MIB - 1), "it is small"),
        (row(b"a\xff", size=MIB), "its path is no text"),
        (row(b"a", size=4 * MIB, extents=(FileExtent(0, 0, MIB),)), "mostly holes"),
        (row(b"a", size=MIB, extents=(FileExtent(0, 0, MIB, int(ExtentFlag.INLINE)),)), "plain"),
        (row(b"a", size=MIB, extents=(FileExtent(0, 0, MIB, int(ExtentFlag.SHARED)),)), ""),
    ],
)
def test_files_that_are_not_worth_it_or_not_plain_are_written(made: FileRow, reason: str) -> None:
    assert reason in refuse_placing(made)
    assert bool(reason) == bool(refuse_placing(made))


def test_batches_are_limited_in_files_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "BATCH_BYTES_MAX", 5 * MIB)
    monkeypatch.setattr(placing, "BATCH_FILES_MAX", 3)
    sizes = [9, 1, 1, 1, 1, 4, 1]
    rows = [row(b"a", size=size * MIB) for size in sizes]
    assert [[each.size // MIB for each in batch] for batch in _batches(rows)] == [
        [9],
        [1, 1, 1],
        [1, 4],
        [1],
    ]


def test_patterns_pick_exactly_these_paths() -> None:
    odd = [b"a*b", b"home/[x]?", b"back\\slash", b"!no", b"n\xff", rb"n\xff"]
    patterns = _exactly(odd)
    assert patterns is not None
    selection = Selection(paths=tuple(patterns["paths"]))
    for path in odd:
        assert selection.picks(row(path))
        assert not selection.picks(row(b"sub/" + path))
    assert not selection.picks(row(b"aXb"))
    assert _exactly([b"x"] * 257) is None
