"""From rows to a map: sorted, each path once, compared with each other and with what is allocated, and counted."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backplane.file_map.header import MapHeader, map_digest, pack_header, unpack_header
from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, FileSystem, Identity, Kind
from backplane.file_map.packed import join_rows, join_runs
from backplane.file_map.paths import path_key
from backplane.ids import ViewId
from backplane.wire.packing import pack
from storage_node.mapping import build as module
from storage_node.mapping.build import MapBuilder
from storage_node.mapping.map_file import MapFile, MapFolder, MapWriter
from storage_node.mapping.row_codec import RowFormatError, encode_rows
from storage_node.mapping.spool import BLOCK_ELEMENTS, Spool
from storage_node.mapping.stream import UnbelievableError, encode_runs
from tests.site.mapping_parser import BLOCK, FILE_SYSTEM, GOOD, ROOT, row, synthetic

VOLUME = 256 * BLOCK
RUNS = [(0, 5 * BLOCK)]
VIEW = ViewId("11" * 16)


class Built:
    """A finished map."""

    def __init__(self, header: MapHeader, file: MapFile) -> None:
        self.header = header
        pages = [file.page(number) for number in range(file.page_count)]
        assert len(pages) == header.row_pages + header.run_pages
        assert header.digest == map_digest(pages)
        assert unpack_header(file.header) == header
        self.rows = list(join_rows(pages[: header.row_pages]))
        self.runs = list(join_runs(pages[header.row_pages :]))
        assert header.rows == len(self.rows)

    @property
    def errors(self) -> dict[str, str]:
        return {each.path.decode(): each.error for each in self.rows if each.error}


def build(
    folder: Path,
    *batches: Sequence[FileRow],
    runs: Sequence[ByteRun] = RUNS,
    systems: Sequence[FileSystem] = (FILE_SYSTEM,),
    reasons: Sequence[str] = (),
    volume_bytes: int = VOLUME,
    sort_bytes: int = 1 << 20,
) -> Built:
    maps = MapFolder(folder)
    with tempfile.TemporaryFile() as spool:
        builder = MapBuilder(
            volume_bytes,
            512,
            spool=Spool(spool.fileno(), bytes_max=1 << 30),
            sort_bytes=sort_bytes,
        )
        for batch in batches:
            builder.add_rows(encode_rows(batch))
        builder.add_runs(encode_runs(runs))
        builder.add_facts(facts(systems))
        for reason in reasons:
            builder.add_reason(reason)
        with open(maps.new(VIEW), "wb") as file:
            writer = MapWriter(file.fileno())
            header = builder.finish(writer)
            writer.finish(pack_header(header))
    return Built(header, maps.publish(VIEW))


def facts(systems: Sequence[FileSystem], notes: Sequence[str] = ()) -> bytes:
    return pack([[[*system[:-1], list(system.features)] for system in systems], list(notes)])


def test_a_map_has_what_the_parser_has_said_in_order(tmp_path: Path) -> None:
    built = build(tmp_path, GOOD[2:], GOOD[:2], runs=[(0, 2 * BLOCK), (2 * BLOCK, 9 * BLOCK)])
    assert built.rows == sorted(GOOD, key=lambda row: path_key(row.path))
    assert built.runs == [(0, 2 * BLOCK), (2 * BLOCK, 9 * BLOCK)]
    header = built.header
    assert header.file_systems == (FILE_SYSTEM,)
    assert (header.rows, header.files, header.file_bytes) == (4, 2, 3 * BLOCK)
    assert (header.volume_bytes, header.block_bytes) == (VOLUME, 512)
    assert (header.is_complete, header.reasons) == (True, ())


@pytest.mark.parametrize("sort_bytes", [1, 200_000, 1 << 30])
def test_many_rows_come_out_sorted_however_little_memory_there_is(
    tmp_path: Path, sort_bytes: int
) -> None:
    rows = list(synthetic(2500))
    random.Random(1).shuffle(rows)
    volume_bytes = 2600 * BLOCK
    batches = [rows[at : at + 100] for at in range(0, len(rows), 100)]
    built = build(
        tmp_path,
        *batches,
        runs=[(0, volume_bytes)],
        volume_bytes=volume_bytes,
        sort_bytes=sort_bytes,
    )
    assert built.rows == sorted(rows, key=lambda row: path_key(row.path))
    assert built.header.is_complete, built.header.reasons


def test_a_file_with_two_names_is_counted_once(tmp_path: Path) -> None:
    one = row("one", (BLOCK, BLOCK), links=2, inode=7)
    two = one._replace(path=b"two")
    other = row("z", (2 * BLOCK, BLOCK), links=2, inode=8)
    built = build(tmp_path, [ROOT, one, two, other])
    assert (built.header.rows, built.header.files) == (4, 2)
    assert built.header.file_bytes == 2 * BLOCK
    assert built.errors == {}


def test_what_is_no_regular_file_is_not_counted_as_one(tmp_path: Path) -> None:
    link = row("link", kind=Kind.SYMLINK, size=99, target=b"a", links=2)
    built = build(tmp_path, [ROOT, link, row("pipe", kind=Kind.FIFO, size=0)])
    assert (built.header.rows, built.header.files, built.header.file_bytes) == (3, 0, 0)


def test_two_files_with_the_same_blocks_get_an_error_and_the_map_a_reason(tmp_path: Path) -> None:
    thief = row("thief", (4 * BLOCK, BLOCK))
    built = build(tmp_path, GOOD, [thief])
    assert built.errors.keys() == {"a/c", "thief"}
    assert not built.header.is_complete
    assert "1 places are claimed by several files" in built.header.reasons[0]
    assert built.rows[-1].extents == thief.extents, "what it claims is kept, to be looked at"


def test_files_that_share_may_share(tmp_path: Path) -> None:
    def flagged(path: str, begin: int) -> FileRow:
        found = row(path, (begin, BLOCK))
        extents = tuple(e._replace(flags=int(ExtentFlag.SHARED)) for e in found.extents)
        return found._replace(extents=extents)

    built = build(tmp_path, [ROOT, flagged("x", BLOCK), flagged("y", BLOCK)])
    assert built.header.is_complete
    assert built.errors == {}


def test_a_file_in_free_space_gets_an_error_and_the_map_a_reason(tmp_path: Path) -> None:
    built = build(tmp_path, GOOD, [row("lost", (8 * BLOCK, BLOCK))])
    assert built.errors.keys() == {"lost"}
    assert "not allocated" in built.header.reasons[0]


def test_where_the_allocation_is_not_known_no_file_is_blamed_for_it(tmp_path: Path) -> None:
    built = build(
        tmp_path, GOOD, [row("lost", (8 * BLOCK, BLOCK))], reasons=["a bitmap is damaged"]
    )
    assert built.errors == {}
    assert built.header.reasons[0] == "a bitmap is damaged"
    assert "not allocated" in built.header.reasons[1]


def test_a_path_that_occurs_twice_is_kept_once_with_an_error(tmp_path: Path) -> None:
    twice = [row("b", (6 * BLOCK, BLOCK)), row("b", (7 * BLOCK, BLOCK)), row("b/c")]
    built = build(tmp_path, GOOD, twice[:1], twice[1:], runs=[(0, 9 * BLOCK)])
    assert [each.path for each in built.rows] == [b"", b"a", b"a/c", b"b", b"b/c"]
    assert built.rows[3].extents == GOOD[1].extents
    assert built.errors["b"] == "its path occurs twice"
    assert not built.header.is_complete


def test_a_path_that_occurs_twice_is_found_wherever_a_block_of_the_sort_ends(
    tmp_path: Path,
) -> None:
    for count in range(BLOCK_ELEMENTS - 3, BLOCK_ELEMENTS + 1):
        rows = [row(f"f{at:04}") for at in range(count)]
        built = build(tmp_path, [ROOT, *rows, row("z"), row("z"), row("z")])
        assert built.header.rows == count + 2
        assert built.errors == {"z": "its path occurs twice"}


def test_a_file_below_no_directory_gets_an_error(tmp_path: Path) -> None:
    strays = [row("x/y/z"), row("b/c"), row("a/d")]
    built = build(tmp_path, GOOD, strays)
    assert built.errors == dict.fromkeys(("x/y/z", "b/c"), "its directory is not in the map")


def test_a_directory_is_found_above_whatever_lies_between(tmp_path: Path) -> None:
    """`-` and `.` sort before `/`, but what is below a directory comes before its neighbours."""
    rows = [row(path) for path in ("d", "d-e", "d.e", "d/a", "d/a/b", "d/a-b", "d/b", "d0")]
    built = build(tmp_path, [ROOT, *rows])
    assert built.errors == {}


def test_paths_of_several_file_systems_are_below_their_prefixes(tmp_path: Path) -> None:
    systems = [FILE_SYSTEM._replace(prefix="p1"), FILE_SYSTEM._replace(prefix="vg0-root")]
    rows = [row("p1"), row("p1/a"), row("vg0-root"), row("vg0-root/a"), row("p2"), row("p2/a")]
    built = build(tmp_path, rows, systems=systems)
    assert built.errors.keys() == {"p2"}


def test_an_extent_outside_is_refused_and_makes_the_map_incomplete(tmp_path: Path) -> None:
    built = build(tmp_path, GOOD, [row("evil", (VOLUME, BLOCK))])
    assert built.errors == {"evil": "an extent outside of the volume"}
    assert built.rows[-1].extents == ()
    assert not built.header.is_complete


def test_reasons_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    built = build(tmp_path, GOOD, reasons=[f"reason {at}" for at in range(5000)] + [""])
    assert not built.header.is_complete
    assert built.header.reasons[0] == "reason 0"
    assert len(built.header.reasons) <= 100


@pytest.fixture
def builder() -> Iterator[MapBuilder]:
    with tempfile.TemporaryFile() as spool:
        yield MapBuilder(VOLUME, 512, spool=Spool(spool.fileno(), bytes_max=1 << 20))


@pytest.mark.parametrize(
    "runs", [[(0, 2), (1, 3)], [(4, 5), (2, 3)], [(3, 3)], [(5, 4)], [(0, VOLUME + 1)]]
)
def test_runs_that_overlap_or_lie_outside_are_refused(
    builder: MapBuilder, runs: list[ByteRun]
) -> None:
    with pytest.raises(UnbelievableError, match="allocated run"):
        builder.add_runs(encode_runs(runs))


def test_runs_are_compared_over_all_batches(builder: MapBuilder) -> None:
    builder.add_runs(encode_runs([(0, 10)]))
    builder.add_runs(b"")
    with pytest.raises(UnbelievableError):
        builder.add_runs(encode_runs([(9, 20)]))


def test_what_is_no_batch_is_refused(builder: MapBuilder) -> None:
    with pytest.raises(RowFormatError):
        builder.add_rows(b"garbage")
    with pytest.raises(RowFormatError):
        builder.add_facts(b"garbage")


def test_more_rows_than_any_volume_has_are_refused(
    builder: MapBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 3)
    with pytest.raises(UnbelievableError, match="more than 3 rows"):
        builder.add_rows(encode_rows(GOOD))


def test_a_map_of_nothing_is_none(builder: MapBuilder) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(UnbelievableError, match="no file system"):
        builder.finish(MapWriter(file.fileno()))


def test_so_much_that_is_contested_is_believed_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_node.mapping.claims.CONTESTED_MAX", 1)
    rows = [row(f"f{at}", ((6 + 2 * at) * BLOCK, BLOCK)) for at in range(2)]
    with pytest.raises(UnbelievableError, match="places"):
        build(tmp_path, [ROOT, *rows])


def test_notes_are_handed_on_and_facts_are_bounded(builder: MapBuilder) -> None:
    long = FILE_SYSTEM._replace(label="l" * 900, features=tuple(map(str, range(500))))
    assert builder.add_facts(facts([long], ["partition 3: LUKS2"])) == ["partition 3: LUKS2"]
    with pytest.raises(UnbelievableError, match="file systems"):
        builder.add_facts(facts([FILE_SYSTEM] * 200))


def test_the_identity_of_a_file_is_its_tree_and_its_inode(tmp_path: Path) -> None:
    """Subvolumes count their inodes each from the beginning."""
    one = row("one", (BLOCK, BLOCK), links=2, identity=Identity(5, 7, 0))
    two = row("two", (2 * BLOCK, BLOCK), links=2, identity=Identity(6, 7, 0))
    assert build(tmp_path, [ROOT, one, two]).header.files == 2
