"""A survey with real processes: the library agrees, differs, or fails by name, and nothing is left of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import ExitCode, NotFoundError, RefusedError
from backplane.file_map.model import FileSystem
from backplane.runtime.clock import SystemClock
from backplane.testing.disk_images import GptEntry, gpt_disk, missing, run
from backplane.units import MIB
from storage_node.mapping.image import Image
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import Mapper
from storage_node.mapping.opinion import (
    LIBRARY,
    REQUIREMENT,
    Opinion,
    Outcome,
    Survey,
    opinion_of,
    survey,
)
from storage_node.mapping.opinion_compare import What
from tests.site import mapping_parser

ROOT = Path(__file__).resolve().parents[4]
HAS_LIBRARY = importlib.util.find_spec(LIBRARY) is not None
with_library = pytest.mark.skipif(
    not HAS_LIBRARY, reason="needs pytsk3 (pip install '.[second-opinion]')"
)
needs_fat = pytest.mark.skipif(
    bool(missing("mkfs.fat", "mcopy")), reason=missing("mkfs.fat", "mcopy")
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Maps of a survey are gone when it is over."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def surveyed(image: Path, **options: Any) -> Survey:
    return survey(image, rules=MappingRules(), clock=SystemClock(), **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "home" / "empty").mkdir(parents=True)
    for number in range(40):
        content = bytes([number]) * (number * 997)
        (root / "home" / f"A long name of file {number}.txt").write_bytes(content)
    return root


def ext4(image: Path, tree: Path) -> None:
    (tree / "short").symlink_to("home/f")
    with (tree / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    image.write_bytes(b"\xa5" * (24 * MIB))
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-d", tree, image)
    for name in ("short", "sparse"):
        (tree / name).unlink()


def fat32(image: Path, tree: Path) -> None:
    image.write_bytes(b"\xa5" * (40 * MIB))
    run("mkfs.fat", "-F", "32", "-s", "1", "-n", "A LABEL", image)
    run("mcopy", "-s", "-i", image, tree / "home", "::")


def ntfs(image: Path, tree: Path) -> None:
    image.write_bytes(b"\xa5" * (12 * MIB))
    run("mkntfs", "-q", "-F", "-f", image)
    for path in (tree / "home").glob("*.txt"):
        run("ntfscp", image, path, path.name)


IMAGES = {
    "ext4": (ext4, ("mkfs.ext4",), 46),
    "fat32": (fat32, ("mkfs.fat", "mcopy"), 43),
    "ntfs": (ntfs, ("mkntfs", "ntfscp"), 41),
}
"""How to make one, with which tools, and how many paths it has."""


def made(kind: str, image: Path, tree: Path) -> Path:
    make, tools, _ = IMAGES[kind]
    if lack := missing(*tools):
        pytest.skip(lack)
    make(image, tree)
    return image


# --- with the library ------------------------------------------------------------------------------


@with_library
@pytest.mark.parametrize("kind", IMAGES)
def test_the_library_agrees_about_every_path_and_byte(
    kind: str, tmp_path: Path, tree: Path
) -> None:
    found = surveyed(made(kind, tmp_path / "image", tree), has_opinion=True)
    assert found.header.is_complete
    assert 0 < found.allocated_bytes < found.header.volume_bytes
    (opinion,) = found.opinions
    comparison = opinion.comparison
    assert comparison is not None
    assert comparison.differences == []
    assert (opinion.outcome, opinion.reasons) == (Outcome.AGREES, ())
    assert comparison.paths == found.header.rows == IMAGES[kind][2]
    assert comparison.data_compared + comparison.data_left == found.header.files
    assert comparison.data_compared > 30
    assert found.exit_code == ExitCode.OK


@with_library
def test_partitions_are_compared_each_for_itself(tmp_path: Path, tree: Path) -> None:
    """The file of the third partition is at the same place of its window as that of the second: only a right
    translation agrees about both."""
    parts = [
        made(kind, tmp_path / name, tree).read_bytes()
        for kind, name in (("fat32", "a"), ("ntfs", "b"), ("ntfs", "c"))
    ]
    entries, at = [], 2048
    for part in parts:
        entries.append(GptEntry(at, at + len(part) // 512 - 1))
        at = entries[-1].last + 1
    disk = gpt_disk(at + 2048, entries)
    for entry, part in zip(entries, parts, strict=True):
        disk[entry.first * 512 : (entry.last + 1) * 512] = part
    image = tmp_path / "disk"
    image.write_bytes(disk)
    found = surveyed(image, has_opinion=True)
    told = [(one.file_system.prefix, one.file_system.kind, one.outcome) for one in found.opinions]
    assert told == [
        ("p1", "fat32", Outcome.AGREES),
        ("p2", "ntfs", Outcome.AGREES),
        ("p3", "ntfs", Outcome.AGREES),
    ]


@with_library
def test_a_known_defect_of_the_library_is_found_and_nothing_else(
    tmp_path: Path, tree: Path
) -> None:
    """Targets of symbolic links over 59 bytes come back empty (docs/mapping.md)."""
    (tree / "home" / "long").symlink_to("x" * 60)
    (opinion,) = surveyed(made("ext4", tmp_path / "image", tree), has_opinion=True).opinions
    assert opinion.outcome == Outcome.DIFFERS
    assert opinion.comparison is not None
    ((path, what, ours, _),) = opinion.comparison.differences
    assert (path, what, ours) == (b"home/long", What.TARGET, "x" * 60)


@with_library
def test_the_command_tells_and_ends_with_the_code_of_the_outcome(
    tmp_path: Path, tree: Path
) -> None:
    (tree / "home" / "long").symlink_to("x" * 60)
    image = made("ext4", tmp_path / "image", tree)

    def told(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "storage_node", "map", str(image), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    code, text = told("--second-opinion")
    assert code == 3
    assert "ext4: pytsk3 differs: 47 paths in both" in text
    code, text = told("--output", "json")
    assert code == 0
    assert (json.loads(text)["rows"], json.loads(text)["second_opinions"]) == (47, [])


# --- with others in its place ----------------------------------------------------------------------


def fake(mode: str, mark: str) -> list[str]:
    """Return the command of a library that does what a parser of tests does: it is told one thing more."""
    place = str(Path(mapping_parser.__file__).resolve())
    code = f"import runpy, sys; m = runpy.run_path({place!r}); m['run'](m[{mode!r}], sys.argv[2:])"
    return [sys.executable, "-P", "-c", f"{code} # :{mark}"]


class Ward:
    """A FAT that our readers map, and a library that does what it likes."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.mark = uuid.uuid4().hex

    def asked(self, mode: str, **rules: Any) -> Opinion:
        mapper = Mapper(
            self.folder / "maps",
            rules=MappingRules(**rules),
            clock=SystemClock(),
            parser=[*fake(mode, self.mark), ""],
        )
        system = FileSystem("ext4", "", "", "", 512, 0, "clean", "whole volume")
        with Image(self.image) as image:
            return opinion_of(mapper, image, system, [])


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    if lack := missing("mkfs.fat"):
        pytest.skip(lack)
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MIB))
    run("mkfs.fat", "-F", "12", image)
    made = Ward(image, tmp_path)
    yield made
    assert mapping_parser.running(made.mark) == [], "a library has outlived its opinion"


FAILURES = {
    "segfault": "ended with SIGSEGV",
    "vanish": "ended with status 0",
    "crash": "crashed: ZeroDivisionError: of our own",
    "damaged": "the superblock is damaged",
    "huge_frame": "sent what is no map",
    "reads_outside": "asked for 512 bytes at 4194304",
}


@pytest.mark.parametrize(("mode", "told"), FAILURES.items())
def test_a_library_that_fails_costs_its_opinion_and_is_named(
    ward: Ward, mode: str, told: str
) -> None:
    found = surveyed(ward.image, has_opinion=True, library=fake(mode, ward.mark))
    assert found.header.is_complete
    (opinion,) = found.opinions
    assert opinion.outcome == Outcome.FAILED
    assert told in opinion.reasons[0]
    assert found.exit_code == ExitCode.PARTIAL


@pytest.mark.parametrize("mode", ["sleeps", "stubborn", "spins", "endless"])
def test_a_library_that_hangs_is_ended(ward: Ward, mode: str) -> None:
    opinion = ward.asked(mode, seconds_max=1.5)
    assert opinion.outcome == Outcome.FAILED
    assert "longer than 1.5 s" in opinion.reasons[0]


def test_a_library_that_takes_all_memory_gets_none(ward: Ward) -> None:
    opinion = ward.asked("allocates", memory_bytes_max=100 * MIB)
    assert opinion.outcome == Outcome.FAILED
    assert "bytes of memory" in opinion.reasons[0]


def test_a_library_with_other_files_differs(ward: Ward) -> None:
    found = surveyed(ward.image, has_opinion=True, library=fake("good", ward.mark))
    (opinion,) = found.opinions
    assert opinion.outcome == Outcome.DIFFERS
    assert opinion.comparison is not None
    assert opinion.comparison.counts == {What.ONLY_LIBRARY: 3}
    assert opinion.comparison.paths == 1
    assert found.exit_code == ExitCode.PARTIAL


def test_what_a_library_does_not_know_it_is_not_asked(ward: Ward) -> None:
    mapper = Mapper(ward.folder / "maps", rules=MappingRules(), clock=SystemClock(), parser=["no"])
    system = FileSystem("xfs", "", "", "", 512, 0, "clean", "whole volume")
    with Image(ward.image) as image:
        assert opinion_of(mapper, image, system, []) == Opinion(system, Outcome.NONE)


# --- without ---------------------------------------------------------------------------------------


@needs_fat
def test_a_map_needs_no_library(tmp_path: Path, tree: Path) -> None:
    found = surveyed(made("fat32", tmp_path / "image", tree), library=["never-started"])
    assert found.opinions == ()
    assert found.header.rows == 43
    assert found.exit_code == ExitCode.OK


def test_a_library_that_is_not_installed_is_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RefusedError) as caught:
        surveyed(tmp_path / "image", has_opinion=True)
    assert "needs pytsk3, which is not installed" in caught.value.message
    assert caught.value.hint == f"pip install '{REQUIREMENT}'"


def test_what_is_asked_for_is_what_the_project_names() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert extras["second-opinion"] == [REQUIREMENT]
    assert REQUIREMENT in extras["dev"]


def test_an_image_with_nothing_on_it_is_told_as_that(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with pytest.raises(NotFoundError, match="nothing to map"):
        surveyed(image)
