"""One mapping with real processes: the map, or why there is none, and nothing else."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError, MediumError, NotFoundError, RefusedError
from backplane.file_map.header import unpack_header
from backplane.file_map.packed import join_rows
from backplane.file_map.paths import path_key
from backplane.ids import ViewId
from backplane.runtime.clock import SystemClock
from storage_node.mapping import sandbox
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import CancelledError, Mapper
from tests.site.mapping_parser import GOOD, MemoryView, parser, running

VIEW = ViewId("11" * 16)


class Bench:
    """Mappings of views in memory by parsers that do as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "maps"
        self.mark = uuid.uuid4().hex

    def mapper(self, mode: str = "", **rules: Any) -> Mapper:
        return Mapper(
            self.folder,
            rules=MappingRules(**{"seconds_max": 60.0, **rules}),
            clock=SystemClock(),
            parser=parser(mode, self.mark) if mode else (),
        )

    def left(self) -> list[str]:
        """Return the processes and files that are left, but for finished maps."""
        files = [path.name for path in self.folder.iterdir() if path.suffix != ".map"]
        return [*map(str, running(self.mark)), *files]

    def fails(self, mode: str, device: MemoryView | None = None, **rules: Any) -> BackupError:
        """Map, which has to fail."""
        mapper = self.mapper(mode, **rules)
        with pytest.raises(BackupError) as caught:
            mapper.mapping(VIEW, device or MemoryView()).run()
        with pytest.raises(NotFoundError):
            mapper.folder.open(VIEW)
        assert self.left() == []
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_view_is_mapped(bench: Bench) -> None:
    mapper = bench.mapper("good")
    mapping = mapper.mapping(VIEW, MemoryView())
    header = unpack_header(mapping.run())
    assert (header.rows, header.files, header.is_complete) == (4, 2, True)
    assert (header.reads, header.bytes_read) == (2, 8192)
    assert (header.volume_bytes, header.block_bytes) == (1 << 20, 512)
    assert (mapping.rows, mapping.bytes_read) == (4, 8192)
    file = mapper.folder.open(VIEW)
    rows = list(join_rows(map(file.page, range(header.row_pages))))
    assert rows == sorted(GOOD, key=lambda row: path_key(row.path))
    assert bench.left() == []


def test_an_incomplete_map_says_why(bench: Bench) -> None:
    header = unpack_header(bench.mapper("incomplete").mapping(VIEW, MemoryView()).run())
    assert (header.is_complete, header.reasons) == (False, ("a bitmap is damaged",))


def test_a_read_that_failed_makes_a_map_incomplete_whatever_the_parser_says(bench: Bench) -> None:
    device = MemoryView(bad_byte=9000)
    header = unpack_header(bench.mapper("tolerant").mapping(VIEW, device).run())
    assert not header.is_complete
    assert header.reasons == ("1 reads failed, the first: byte 9000 cannot be read",)


@pytest.mark.parametrize(
    ("mode", "error", "told"),
    [
        ("unsupported", RefusedError, "cannot be mapped: LUKS2 encryption"),
        ("damaged", MediumError, "the superblock is damaged"),
        ("crash", MediumError, "the parser crashed: ZeroDivisionError: of our own"),
    ],
)
def test_a_failure_is_told_as_what_it_is(
    bench: Bench, mode: str, error: type[BackupError], told: str
) -> None:
    found = bench.fails(mode)
    assert type(found) is error
    assert told in found.message
    assert "--raw" in found.hint


def test_a_view_that_cannot_be_read_is_told_with_the_first_failure(bench: Bench) -> None:
    found = bench.fails("unread", MemoryView(bad_byte=100))
    assert type(found) is MediumError
    assert "byte 100 cannot be read" in found.message


def test_the_real_parser_knows_nothing_of_zeros(bench: Bench) -> None:
    found = bench.fails("")
    assert type(found) is NotFoundError
    assert "no known file system" in found.message


def waiting(bench: Bench) -> bool:
    return bool(running(bench.mark))


@pytest.mark.parametrize("is_begun", [lambda _: True, waiting], ids=["at once", "while it parses"])
def test_a_mapping_that_is_cancelled_ends(bench: Bench, is_begun: Callable[[Bench], bool]) -> None:
    mapping = bench.mapper("sleeps").mapping(VIEW, MemoryView())
    found: list[BackupError] = []

    def run() -> None:
        try:
            mapping.run()
        except BackupError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pause = threading.Event()
    while not is_begun(bench):
        pause.wait(0.01)
    mapping.cancel()
    mapping.cancel()
    thread.join()
    assert [type(error) for error in found] == [CancelledError]
    assert bench.left() == []


def test_a_mapping_that_was_cancelled_before_does_not_begin(bench: Bench) -> None:
    mapping = bench.mapper("good").mapping(VIEW, MemoryView())
    mapping.cancel()
    with pytest.raises(CancelledError):
        mapping.run()
    assert bench.left() == []


def test_the_time_is_over_at_the_end_of_the_time(bench: Bench) -> None:
    found = bench.fails("sleeps", seconds_max=1.0)
    assert type(found) is MediumError
    assert "longer than 1 s" in found.message
    assert "mapping_seconds_max" in found.hint


def test_a_builder_that_does_not_start_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "python", lambda _: ["/bin/false"])
    found = bench.fails("good")
    assert "the mapping's builder failed: status 1" in found.message


def test_a_parser_that_does_not_start_is_told(bench: Bench) -> None:
    mapper = bench.mapper("good")
    mapper.parser = ["/bin/false"]
    with pytest.raises(MediumError, match="the parser ended with status 1"):
        mapper.mapping(VIEW, MemoryView()).run()
    mapper.parser = ["/nowhere"]
    with pytest.raises(BackupError, match="No such file"):
        mapper.mapping(VIEW, MemoryView()).run()
    assert bench.left() == []


def test_a_folder_that_is_gone_is_told(bench: Bench) -> None:
    mapper = bench.mapper("good")
    bench.folder.rmdir()
    with pytest.raises(BackupError, match="cannot keep a file map: No such file"):
        mapper.mapping(VIEW, MemoryView()).run()


def test_a_view_with_another_name_than_an_identifier_is_not_mapped(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="no static view"):
        bench.mapper("good").mapping(ViewId("../x"), MemoryView()).run()
