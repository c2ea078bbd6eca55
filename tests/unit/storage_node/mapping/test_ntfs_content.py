"""Metadata that lie in clusters: read across runs, in bounded reads, and never where nothing was written."""

import pytest

from backplane.testing.ntfs_records import attribute, boot_sector, clustered, record
from storage_node.mapping.ntfs_boot import read_geometry
from storage_node.mapping.ntfs_content import PROBLEMS_MAX, ClusterContent, note, value_of
from storage_node.mapping.ntfs_record import Attribute, parse_record
from storage_node.mapping.ntfs_runs import HOLE, Stream
from storage_node.mapping.reader import READ_BYTES_MAX, BytesSource, DamagedError

DATA = bytes(n // 512 % 251 for n in range(2000 * 512))
SOURCE = BytesSource(boot_sector() + DATA[512:])
GEOMETRY = read_geometry(SOURCE)


def content(runs: list[tuple[int, int, int]], initialized: int) -> ClusterContent:
    return ClusterContent(SOURCE, Stream(initialized, initialized, 0, 0, runs), GEOMETRY)


def test_a_range_is_put_together_from_its_runs() -> None:
    found = content([(0, 100, 2), (2, 50, 3), (5, 700, 1)], 3000)
    whole = DATA[51200:52224] + DATA[25600:27136] + DATA[358400:358912]
    assert found.read(0, 3000) == whole[:3000]
    assert found.read(1000, 100) == whole[1000:1100]
    assert found.read(2600, 1) == whole[2600:2601]
    assert found.read(10, 0) == b""
    assert found.places(1000, 600) == [(52200, 24), (25600, 576)]


@pytest.mark.parametrize(("offset", "count"), [(0, 3001), (2999, 2), (-1, 1), (4000, 0)])
def test_what_was_never_written_is_not_read(offset: int, count: int) -> None:
    with pytest.raises(DamagedError):
        content([(0, 100, 20)], 3000).read(offset, count)


def test_a_hole_in_metadata_is_damage() -> None:
    found = content([(0, 100, 1), (1, HOLE, 1), (2, 102, 1)], 1536)
    assert found.read(0, 512)
    with pytest.raises(DamagedError, match="hole"):
        found.read(0, 513)


def test_no_read_is_longer_than_a_read_may_be() -> None:
    class Asked:
        size_bytes = 1 << 40
        counts: list[int] = []  # noqa: RUF012 - one source, one test

        def read(self, offset: int, count: int) -> bytes:
            self.counts.append(count)
            return bytes(count)

    source = Asked()
    stream = Stream(20 << 20, 20 << 20, 0, 0, [(0, 100, 20 << 11)])
    large = GEOMETRY._replace(size_bytes=1 << 40)
    assert len(ClusterContent(source, stream, large).read(0, 20 << 20)) == 20 << 20
    assert max(source.counts) == READ_BYTES_MAX


def test_compressed_metadata_are_refused() -> None:
    with pytest.raises(DamagedError, match="compressed"):
        ClusterContent(SOURCE, Stream(512, 512, 1, 16, [(0, 100, 16)]), GEOMETRY)


def test_metadata_larger_than_the_volume_are_refused() -> None:
    """A hole costs nothing, so a stream may claim any size."""
    with pytest.raises(DamagedError, match="more than the volume has"):
        content([(0, 100, 1), (1, HOLE, 1 << 40)], 1 << 40)


def made(*attributes: bytes) -> list[Attribute]:
    return parse_record(record(64, attributes), 64).attributes


def test_a_value_is_found_wherever_it_is() -> None:
    assert value_of(SOURCE, GEOMETRY, made(attribute(0xC0, b"here")), 100) == b"here"
    elsewhere = made(clustered(0xC0, [(100, 2)], 600))
    assert value_of(SOURCE, GEOMETRY, elsewhere, 600) == DATA[51200:51800]


@pytest.mark.parametrize(
    "attributes",
    [
        [attribute(0xC0, b"x" * 101)],
        [clustered(0xC0, [(100, 2)], 600)],
        [clustered(0xC0, [(100, 2)], 90, initialized=80)],
        [attribute(0xC0, b"x"), attribute(0xC0, b"x")],
    ],
)
def test_a_value_that_is_too_long_or_not_whole_is_refused(attributes: list[bytes]) -> None:
    with pytest.raises(DamagedError):
        value_of(SOURCE, GEOMETRY, made(*attributes), 100)


def test_problems_are_told_once_and_have_an_end() -> None:
    problems: list[str] = []
    for number in range(2 * PROBLEMS_MAX):
        note(problems, f"{number}")
        note(problems, "0")
    assert len(problems) == PROBLEMS_MAX
    assert problems.count("0") == 1
