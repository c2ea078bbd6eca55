"""The boot sector of NTFS: which numbers are believed, and where its copies are."""

import pytest

from backplane.testing.ntfs_records import CLUSTERS, boot_sector, volume
from storage_node.mapping.ntfs_boot import Geometry, boot_copies, is_boot_sector, read_geometry
from storage_node.mapping.reader import BytesSource, DamagedError

SIZE = CLUSTERS * 512


def geometry(sector: bytes, size: int = SIZE + 512) -> Geometry:
    return read_geometry(BytesSource(sector.ljust(size, b"\0")))


def test_numbers_are_those_of_the_sector() -> None:
    found = geometry(boot_sector())
    assert (found.sector_bytes, found.cluster_bytes, found.record_bytes) == (512, 512, 1024)
    assert (found.cluster_count, found.size_bytes) == (CLUSTERS, SIZE)
    assert (found.mft_byte, found.mirror_byte) == (4 * 512, 1500 * 512)


def test_large_clusters_are_told_as_a_negative_power() -> None:
    sector = boot_sector(per_cluster=256 - 12, sectors=40960, mft=1, mirror=2)
    assert geometry(sector, 40961 * 512).cluster_bytes == 2 * 1024 * 1024


def test_records_may_be_told_in_clusters() -> None:
    assert geometry(boot_sector(per_record=2)).record_bytes == 1024


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sector_bytes": 0}, "sectors of 0"),
        ({"sector_bytes": 513}, "sectors of 513"),
        ({"sector_bytes": 8192}, "sectors of 8192"),
        ({"per_cluster": 0}, "clusters of 0"),
        ({"per_cluster": 3}, "clusters of 1536"),
        ({"per_cluster": 129}, "clusters of"),
        ({"per_cluster": 256 - 13}, "clusters of 4194304"),
        ({"sectors": 0}, "tells of 0 bytes"),
        ({"sectors": CLUSTERS + 2}, "bytes in"),
        ({"sectors": 1 << 63}, "bytes in"),
        ({"mft": 0}, "cluster 0"),
        ({"mft": CLUSTERS}, "$MFT is said"),
        ({"mirror": CLUSTERS}, "$MFTMirr is said"),
        ({"per_record": 0}, "records of 1 bytes"),
        ({"per_record": -8}, "records of 256"),
        ({"per_record": -13}, "records of 8192"),
        ({"per_record": 127}, "records of"),
        ({"per_record": -128}, "records of"),
    ],
)
def test_numbers_that_cannot_be_are_refused(change: dict[str, int], reason: str) -> None:
    with pytest.raises(DamagedError) as caught:
        geometry(boot_sector(**change))
    assert reason in caught.value.reason


def test_another_sector_is_none() -> None:
    assert not is_boot_sector(bytes(512))
    assert not is_boot_sector(boot_sector()[:100])
    with pytest.raises(DamagedError, match="no boot sector"):
        geometry(bytes(512))


def copies(image: bytes) -> tuple[list[tuple[int, int]], list[str]]:
    source = BytesSource(image)
    return boot_copies(source, read_geometry(source))


def test_the_copy_is_behind_the_last_sector() -> None:
    assert copies(volume({})) == ([(SIZE, SIZE + 512)], [])


def test_where_there_is_no_sector_behind_there_is_no_copy() -> None:
    assert copies(volume({})[:SIZE]) == ([], [])


def test_a_copy_in_the_last_sector_of_a_larger_place_is_found() -> None:
    image = volume({}) + bytes(4096)
    assert copies(image) == ([(SIZE, SIZE + 512)], [])
    image[-512:] = boot_sector()
    end = len(image)
    assert copies(image) == ([(SIZE, SIZE + 512), (end - 512, end)], [])


def test_neighbouring_copies_are_one_run() -> None:
    assert copies(volume({}) + boot_sector()) == ([(SIZE, SIZE + 1024)], [])


def test_a_copy_that_says_something_else_is_a_problem() -> None:
    image = volume({})
    image[SIZE : SIZE + 512] = boot_sector(mirror=77)
    _, problems = copies(image)
    assert problems == [f"the boot sector differs from its copy at byte {SIZE}"]
