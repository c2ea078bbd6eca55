"""Sets of exFAT directory entries: checksums one by one and all at once, and sets that are torn."""

from __future__ import annotations

import random

import pytest

from backplane.file_map.model import FileRow, Kind
from backplane.testing.exfat_image import ExfatFile, ExfatImage, entry_set, with_checksum
from storage_node.mapping.exfat import ExfatReader
from storage_node.mapping.exfat_entries import Entry, Sets, set_checksum, set_checksums
from storage_node.mapping.fat_rows import EMPTY_FILE
from storage_node.mapping.reader import BytesSource, DamagedError


def plain(name: str, number: int = 0) -> bytes:
    return entry_set(name, 0x20, 3, 10 + number, 100, 100)


def read(data: bytes, piece: int = 1 << 20) -> tuple[list[Entry], Sets]:
    sets = Sets()
    found: list[Entry] = []
    for at in range(0, len(data), piece):
        found += [Entry(*fields) for fields in sets.feed(data[at : at + piece])]
    sets.end()
    return sorted(found, key=lambda entry: entry.at), sets


@pytest.mark.parametrize("entries", [3, 4, 19])
def test_all_checksums_at_once_are_those_one_by_one(entries: int) -> None:
    chance = random.Random(entries)
    sets = [chance.randbytes(32 * entries) for _ in range(50)]
    sets += [bytes(32 * entries), b"\xff" * 32 * entries]
    for count in (1, 2, len(sets)):
        found = set_checksums(b"".join(sets[:count]), 32 * entries)
        assert list(found) == [set_checksum(raw) for raw in sets[:count]]


@pytest.mark.parametrize("piece", [32, 96, 4096])
def test_names_of_every_length_are_read_whatever_the_pieces(piece: int) -> None:
    names = ["x" * count for count in range(1, 256)] + ["ä" * 255, "lone \udc00", "𝄞"]
    found, sets = read(b"".join(plain(name, at) for at, name in enumerate(names)), piece)
    assert [one.name for one in found] == [name.encode("utf-8", "surrogatepass") for name in names]
    assert [one.first for one in found] == [10 + at for at in range(len(names))]
    assert not [one for one in found if one.error]
    assert sets.defects == []


@pytest.mark.parametrize("count", [1, 40])
def test_a_wrong_checksum_is_told_in_its_own_entry_only(count: int) -> None:
    sets = [bytearray(plain(f"file {at:4}", at)) for at in range(count + 2)]
    sets[1][50] ^= 4
    found, _ = read(b"".join(sets))
    assert [bool(one.error) for one in found] == [at == 1 for at in range(count + 2)]
    assert "checksum" in found[1].error


@pytest.mark.parametrize("number", [1, 19, 0x83, 4])
def test_a_set_among_others_like_it_may_have_another_length(number: int) -> None:
    """Its entries look like those of its neighbours; only how many it has is wrong."""
    sets = [bytearray(plain(f"file {at:24}", at)) for at in range(9)]
    sets[4][1] = number
    found, told = read(b"".join(sets))
    assert [one.first for one in found if not one.error] == [10, 11, 12, 13, 15, 16, 17, 18]
    assert told.defects
    assert 14 not in [one.first for one in found]


@pytest.mark.parametrize(
    "odd", ["a/b", "..", "nul\0", "\ud834\udd1e", "\ud834", "dir ä", "𝄞" * 7 + "x", "ä" * 15]
)
def test_an_odd_name_changes_none_of_the_others(odd: str) -> None:
    names = [f"f {at:13}" for at in range(20)]
    names[7] = odd
    found, _ = read(b"".join(plain(name, at) for at, name in enumerate(names)))
    (alone,), _ = read(plain(odd, 7))
    assert [one.name.decode() for one in found if one.first != 17] == [*names[:7], *names[8:]]
    assert not any(one.error for one in found if one.first != 17)
    assert [(one.name, one.error) for one in found if one.first == 17] == [
        (alone.name, alone.error)
    ]


@pytest.mark.parametrize("characters", [0, 15, 31, 200])
@pytest.mark.parametrize("length", [19, 30])
def test_a_length_that_is_not_that_of_its_neighbours_is_told(length: int, characters: int) -> None:
    sets = [bytearray(plain(f"{at:{length}}", at)) for at in range(20)]
    sets[3][35] = characters
    found, _ = read(b"".join(with_checksum(bytes(raw)) for raw in sets))
    assert [one.first for one in found if one.error] == [13]
    assert [len(one.name) for one in found if not one.error] == [length] * 19


def test_a_name_does_not_go_on_in_what_may_be_ignored() -> None:
    raw = bytearray(plain("15 characters..") + b"\xe0\0" + "more of it".encode("utf-16-le")).ljust(
        128, b"\0"
    )
    raw[1] += 1
    raw[35] = 20
    (one,), _ = read(with_checksum(bytes(raw)))
    assert one.name == b"15 characters.."
    assert "length" in one.error


def test_sets_of_several_forms_are_told_apart() -> None:
    vendor = b"\xe0" + bytes(31)
    raw = bytearray(plain("a name") + vendor)
    raw[1] += 1
    longer = plain("a name that is as long as the set")
    data = (plain("one") + with_checksum(bytes(raw)) + longer + longer) * 3
    found, sets = read(data)
    assert [one.at for one in found] == sorted(one.at for one in found)
    names = [b"one", b"a name", *[b"a name that is as long as the set"] * 2] * 3
    assert [(one.name, one.error) for one in found] == [(name, "") for name in names]
    assert sets.defects == []


def test_what_is_deleted_or_behind_the_end_is_not_read() -> None:
    deleted = bytearray(plain("deleted"))
    for at in range(0, len(deleted), 32):
        deleted[at] &= 0x7F
    rest = changed(50, 1) + b"\x85\x02\xc0"
    found, sets = read(plain("one") + deleted + plain("two") + bytes(32) + rest)
    assert [one.name for one in found] == [b"one", b"two"]
    assert sets.has_ended
    assert sets.defects == []


def test_a_file_behind_the_end_is_told() -> None:
    stale = changed(50, 1) * 3
    found, sets = read(plain("one") + bytes(64) + stale)
    assert [one.name for one in found] == [b"one"]
    assert sets.defects == []
    found, sets = read(plain("one") + bytes(64) + stale + plain("two"))
    assert "behind its end" in sets.defects[0]


def changed(at: int, value: int) -> bytes:
    raw = bytearray(plain("a name"))
    raw[at] = value
    return bytes(raw)


@pytest.mark.parametrize(
    "data",
    [
        changed(1, 0),
        changed(1, 1),
        changed(1, 19),
        changed(1, 255),
        changed(32, 0xC1),
        changed(64, 0xC0),
        changed(64, 0x41),
        changed(1, 5),
        plain("a name")[:64],
        plain("a name")[32:],
        b"\x86" + bytes(31),
        b"\x85\x03" + bytes(30) + plain("other"),
    ],
)
def test_a_torn_set_is_told(data: bytes) -> None:
    _, sets = read(data)
    assert sets.defects


def test_entries_that_may_be_ignored_are() -> None:
    vendor = b"\xe0" + bytes(31)
    raw = bytearray(plain("a name") + vendor + vendor)
    raw[1] += 2
    guid = b"\xa0" + bytes(31)
    found, sets = read(guid + with_checksum(bytes(raw)))
    assert [(one.name, one.error) for one in found] == [(b"a name", "")]
    assert sets.defects == []


@pytest.mark.parametrize(
    ("name", "shown"), [("a/b", b"a?b"), ("a\0b", b"a?b"), ("..", b"?"), (".", b"?")]
)
def test_names_that_cannot_be_part_of_a_path_are_told(name: str, shown: bytes) -> None:
    (one,), _ = read(plain(name))
    assert one.name == shown
    assert "name" in one.error


@pytest.mark.parametrize("characters", [0, 16, 255])
def test_a_name_of_another_length_is_told(characters: int) -> None:
    raw = bytearray(plain("a name"))
    raw[35] = characters
    (one,), _ = read(with_checksum(bytes(raw)))
    assert "length" in one.error


def test_singles_are_kept_for_the_root() -> None:
    _, sets = read(b"\x81" + bytes(31) + b"\x83" + bytes(31) + b"\x03" + bytes(31))
    assert [raw[0] for raw in sets.singles] == [0x81, 0x83]


def test_noise_crashes_nothing() -> None:
    chance = random.Random(8)
    for _ in range(200):
        kinds = chance.choices((0x85, 0xC0, 0xC1, 0xE0, 0x05, 0x81, 0xFF), k=40)
        data = b"".join(bytes([kind]) + chance.randbytes(31) for kind in kinds)
        found, _ = read(data, chance.choice((32, 64, 1280)))
        assert all(one.error for one in found)


# --- files of one cluster, and of none -------------------------------------------------------------


LAST_IN_USE = 0xFF
"""The last bits of the bitmap: who counts from the end finds them."""


def of_one_cluster(
    changes: dict[str, dict[int, bytes]], *, is_sealed: bool = True
) -> tuple[list[FileRow], ExfatReader]:
    """Return the rows of small files `a`, `b`, `c`, of an empty one and a folder, some entries changed."""
    files = [ExfatFile(f"small {name}", name.encode() * 100) for name in "abc"]
    files += [ExfatFile("empty", b""), ExfatFile("folder/inside", b"inside")]
    data = bytearray(ExfatImage(6 << 20, cluster_bytes=512).build(files))
    for name, bytes_at in changes.items():
        start = data.index(name.encode("utf-16-le")) - 66
        size = 32 * (1 + data[start + 1])
        for at, value in bytes_at.items():
            data[start + at : start + at + len(value)] = value
        if is_sealed:
            data[start : start + size] = with_checksum(bytes(data[start : start + size]))
    reader = ExfatReader(BytesSource(bytes(data)))
    reader._bitmap.bits[-1] = LAST_IN_USE
    return sorted(reader.rows()), reader


def test_files_of_one_cluster_are_read() -> None:
    rows, reader = of_one_cluster({})
    assert reader.problems == []
    assert not any(row.error for row in rows)
    found = {row.path: row for row in rows}
    assert found[b"empty"].extents == ()
    (first,), (second,) = found[b"small a"].extents, found[b"small b"].extents
    assert (second.volume_byte - first.volume_byte, second.byte_count) == (512, 512)
    assert found[b"folder"].kind == Kind.DIRECTORY
    assert b"folder/inside" in found


def first_of(name: bytes) -> int:
    (row,) = [row for row in of_one_cluster({})[0] if row.path == name]
    return row.identity.inode


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (0, "on the volume"),
        (1, "on the volume"),
        (6 << 20, "on the volume"),
        (0xFFFFFFFF, "on the volume"),
        (-1, "belongs to two"),
    ],
)
def test_the_cluster_of_a_small_file_is_checked(first: int, reason: str) -> None:
    cluster = first_of(b"small a") if first < 0 else first
    rows, reader = of_one_cluster({"small b": {52: cluster.to_bytes(4, "little")}})
    wrong = [row for row in rows if row.error]
    assert [row.path for row in wrong] == [b"small b"]
    assert wrong[0].extents == ()
    assert bool(reader.problems) is (first < 0)


def test_the_last_cluster_is_one() -> None:
    _, reader = of_one_cluster({})
    behind = reader._heap.clusters + 2
    errors = []
    for first in (behind - 1, behind):
        rows, _ = of_one_cluster({"small b": {52: first.to_bytes(4, "little")}})
        errors += [row.error for row in rows if row.error]
    assert errors == ["its clusters are not all on the volume"]


def test_a_small_file_whose_cluster_is_free_is_told() -> None:
    _, reader = of_one_cluster({})
    at = first_of(b"small b") - 2
    reader._bitmap.bits[at >> 3] &= ~(1 << (at & 7))
    errors = {row.path: row.error for row in reader.rows() if row.error}
    assert errors == {b"small b": "some of its clusters are free in the bitmap"}


def test_a_small_file_without_the_flag_is_looked_up_in_the_table() -> None:
    rows, _ = of_one_cluster({"small b": {33: b"\1"}})
    assert [row.path for row in rows if row.error] == [b"small b"]


def test_an_empty_folder_is_one() -> None:
    rows, reader = of_one_cluster({"empty": {4: b"\x10"}})
    assert [row.kind for row in rows if row.path == b"empty"] == [Kind.DIRECTORY]
    assert reader.problems == []


@pytest.mark.parametrize("name", ["empty", "small b"])
def test_a_wrong_checksum_of_a_small_file_is_told(name: str) -> None:
    rows, _ = of_one_cluster({name: {8: b"\x77"}}, is_sealed=False)
    assert [(row.path, row.extents) for row in rows if row.error] == [(name.encode(), ())]
    assert all("checksum" in row.error for row in rows if row.error)


# --- a directory in many places --------------------------------------------------------------------

EMPTY_FILES = [ExfatFile(f"dir/{number:02}", b"") for number in range(60)]


class Torn(BytesSource):
    """A source with a place that cannot be read."""

    bad = -1

    def read(self, offset: int, count: int) -> bytes:
        if offset <= self.bad < offset + count:
            raise DamagedError("a bad sector")
        return super().read(offset, count)


class Scattered(ExfatImage):
    """An image whose directories lie in clusters that do not follow one another."""

    def _take(self, size: int, *, scattered: bool) -> list[int]:
        return super()._take(size, scattered=True)


def scattered_image() -> bytes:
    return Scattered(6 << 20, cluster_bytes=512).build(EMPTY_FILES)


def test_an_empty_file_is_known_by_its_entry_wherever_its_directory_is() -> None:
    data = scattered_image()
    rows = {row.path: row for row in ExfatReader(BytesSource(data)).rows()}
    assert rows.keys() == {b"", b"dir", *(file.path.encode() for file in EMPTY_FILES)}
    for file in EMPTY_FILES:
        at = rows[file.path.encode()].identity.inode - EMPTY_FILE
        # An entry of type 85h; its name may lie behind the end of its cluster.
        assert data[at] == 0x85
        name = file.path[4:].encode("utf-16-le")
        assert (at + 66) // 512 > at // 512 or data[at + 66 : at + 70] == name


def test_what_lies_before_a_place_that_cannot_be_read_is_told() -> None:
    source = Torn(scattered_image())
    whole = list(ExfatReader(source).rows())
    source.bad = whole[40].identity.inode - EMPTY_FILE
    found: list[FileRow] = []
    with pytest.raises(DamagedError, match="bad sector"):
        found.extend(ExfatReader(source).rows())
    assert 20 < len(found) < 41
    assert found == whole[: len(found)]
