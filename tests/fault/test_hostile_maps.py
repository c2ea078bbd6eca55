"""A parser that somebody has taken over: whatever it does, the node says what it was, and nothing is left of it.

The parsers are real processes that have given up what the real one gives up (tests/site/mapping_parser.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, MediumError, RefusedError
from backplane.file_map.header import MapHeader, unpack_header
from backplane.file_map.model import FileRow
from backplane.file_map.packed import join_rows, join_runs
from backplane.ids import ViewId
from backplane.runtime.clock import SystemClock
from backplane.units import MIB
from storage_node.mapping import read_server, sandbox
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import Mapper
from tests.site.mapping_parser import BLOCK, GOOD, MemoryView, parser, running

pytestmark = pytest.mark.fault

VIEW = ViewId("11" * 16)
HOUR_S = 3600.0


class Attack:
    """One mapping of a small view by a hostile parser."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "maps"
        self.mark = uuid.uuid4().hex

    def mapper(self, mode: str, **rules: Any) -> Mapper:
        return Mapper(
            self.folder,
            rules=MappingRules(**{"seconds_max": HOUR_S, **rules}),
            clock=SystemClock(),
            parser=parser(mode, self.mark),
        )

    def fails(self, mode: str, **rules: Any) -> BackupError:
        with pytest.raises(BackupError) as caught:
            self.mapper(mode, **rules).mapping(VIEW, MemoryView()).run()
        assert list(self.folder.iterdir()) == []
        return caught.value

    def maps(self, mode: str, view: MemoryView | None = None) -> tuple[MapHeader, list[FileRow]]:
        mapper = self.mapper(mode)
        header = unpack_header(mapper.mapping(VIEW, view or MemoryView()).run())
        file = mapper.folder.open(VIEW)
        pages = [file.page(number) for number in range(file.page_count)]
        for begin, end in join_runs(pages[header.row_pages :]):
            assert 0 <= begin < end <= header.volume_bytes
        rows = list(join_rows(pages[: header.row_pages]))
        for each in rows:
            for extent in each.extents:
                assert extent.volume_byte >= 0
                assert extent.volume_byte + extent.byte_count <= header.volume_bytes
        return header, rows


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    made = Attack(tmp_path)
    yield made
    assert running(made.mark) == [], "a parser has outlived its mapping"


NONSENSE = {
    "garbage": "the parser",
    "huge_frame": "a frame of 4294967295 bytes",
    "lying_batch": "shorter than what it says",
    "overlapping_runs": "overlaps another",
    "segfault": "the parser ended with SIGSEGV",
    "vanish": "the parser ended with status 0",
    "reads_outside": "asked for 512 bytes at 1048576",
    "reads_too_much": "asked for 4294967295 bytes",
}


@pytest.mark.parametrize(("mode", "told"), NONSENSE.items())
def test_a_parser_that_talks_nonsense_is_ended_by_name(
    attack: Attack, mode: str, told: str
) -> None:
    found = attack.fails(mode)
    assert type(found) is MediumError
    assert told in found.message


@pytest.mark.parametrize("mode", ["sleeps", "stubborn", "spins", "endless", "takes_no_answers"])
def test_a_parser_that_does_not_end_is_ended(attack: Attack, mode: str) -> None:
    found = attack.fails(mode, seconds_max=2.0)
    assert type(found) is MediumError
    assert "longer than 2 s" in found.message


def test_a_parser_that_takes_all_memory_gets_none(attack: Attack) -> None:
    found = attack.fails("allocates", memory_bytes_max=100 * MIB)
    assert type(found) is MediumError
    assert f"more than {100 * MIB} bytes of memory" in found.message


@pytest.mark.parametrize(("limit", "told"), [("reads_max", "reads"), ("read_bytes_max", "bytes")])
def test_a_parser_that_reads_without_end_is_ended(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, limit: str, told: str
) -> None:
    monkeypatch.setattr(read_server, limit, lambda _: 20_000)
    found = attack.fails("reads_forever")
    assert type(found) is MediumError
    assert f"20000 {told}" in found.message.replace("to read ", "")


def test_a_parser_can_do_nothing_but_talk(attack: Attack) -> None:
    """It tries all else, and crashes if anything succeeds."""
    header, rows = attack.maps("escapes")
    assert header.is_complete
    assert len(rows) == len(GOOD)
    assert not Path("/tmp/escaped").exists()


def test_an_extent_outside_of_the_view_is_in_no_map(attack: Attack) -> None:
    header, rows = attack.maps("outside")
    assert not header.is_complete
    [evil] = [row for row in rows if row.error]
    assert (evil.path, evil.extents) == (b"evil", ())


@pytest.mark.parametrize(
    ("mode", "blamed"), [("stolen", {b"a/c", b"evil"}), ("unallocated", {b"evil"})]
)
def test_blocks_of_others_are_not_given_away_in_silence(
    attack: Attack, mode: str, blamed: set[bytes]
) -> None:
    header, rows = attack.maps(mode)
    assert not header.is_complete
    assert {row.path for row in rows if row.error} == blamed


def test_no_room_is_told_and_leaves_room(attack: Attack, tmp_path: Path) -> None:
    """A volume may have more names than the node has space; what the node needs itself is left."""
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root")
    attack.folder.mkdir()
    size = "258m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(attack.folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        mapper = attack.mapper("endless")
        with pytest.raises(RefusedError, match="no room for a file map: only"):
            mapper.mapping(VIEW, MemoryView()).run()
        assert list(attack.folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(attack.folder)], check=True)


def test_a_parser_killed_by_somebody_else_is_told(attack: Attack) -> None:
    def kill() -> None:
        pause = threading.Event()
        while not (found := running(attack.mark)):
            pause.wait(0.01)
        os.kill(found[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = attack.fails("sleeps")
    killer.join()
    assert "the parser ended with SIGKILL" in found.message


NODE = """
import sys
from pathlib import Path
from backplane.ids import ViewId
from backplane.runtime.clock import SystemClock
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import Mapper
from tests.site.mapping_parser import MemoryView, parser

folder, mode, mark, begun = sys.argv[1:]


class Begun(MemoryView):
    def read_into(self, byte_address, buffer):
        Path(begun).touch()
        super().read_into(byte_address, buffer)


mapper = Mapper(Path(folder), rules=MappingRules(), clock=SystemClock(), parser=parser(mode, mark))
mapper.mapping(ViewId("11" * 16), Begun()).run()
"""


@pytest.mark.parametrize("mode", ["sleeps", "stubborn", "spins", "endless", "takes_no_answers"])
def test_nothing_outlives_a_node_that_is_killed(attack: Attack, mode: str) -> None:
    attack.folder.mkdir()
    begun, pause = attack.folder.with_name("begun"), threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", NODE, str(attack.folder), mode, attack.mark, str(begun)],
        env=sandbox.python_environment(),
    ) as node:
        while not begun.exists():
            assert node.poll() is None
            pause.wait(0.01)
        node.send_signal(signal.SIGKILL)
    for _ in range(1000):
        if not running(attack.mark):
            break
        pause.wait(0.01)
    assert running(attack.mark) == []
    # What has a name goes with the sweep at the start; what was put aside never had one.
    mapper = attack.mapper(mode)
    assert mapper.folder.sweep(set()) in ([], [f".{VIEW}.new"])


def test_ten_thousand_rows_come_through_sorted_and_whole(attack: Attack) -> None:
    count = 10_000
    header, rows = attack.maps("many", MemoryView((count + 1) * BLOCK))
    assert header.is_complete
    assert header.files == count
    assert len({row.path for row in rows}) == header.rows
