"""Rows from records written by hand: what ntfs-3g never makes, and what damage leaves."""

import struct
from collections.abc import Mapping

import pytest

from backplane.file_map.model import ExtentFlag, FileRow, Identity, Kind
from backplane.testing.ntfs_records import (
    DIRECTORY,
    IN_USE,
    RECORD_BYTES,
    attribute,
    clustered,
    file_name,
    list_entry,
    record,
    reference,
    standard,
    volume,
)
from storage_node.mapping.ntfs import NtfsReader
from storage_node.mapping.reader import BytesSource

ROOT = reference(5, 5)


def mapped(
    records: Mapping[int, bytes], clusters: Mapping[int, bytes] | None = None
) -> tuple[dict[bytes, FileRow], list[str]]:
    reader = NtfsReader(BytesSource(volume(records, clusters=clusters)))
    rows = list(reader.rows())
    assert len({row.path for row in rows}) == len(rows)
    return {row.path: row for row in rows}, reader.problems


def file(
    number: int, *more: bytes, name: str = "file", parent: int = ROOT, links: int = 1
) -> bytes:
    made = [standard(), file_name(parent, name), *more]
    return record(number, made or [attribute(0x80, b"")], links=links)


def folder(number: int, name: str, parent: int = ROOT, *more: bytes) -> bytes:
    return record(number, [standard(), file_name(parent, name), *more], flags=DIRECTORY)


def one(*more: bytes) -> FileRow:
    rows, problems = mapped({64: file(64, *more)})
    assert not problems
    return rows[b"file"]


# --- names -------------------------------------------------------------------------------------------------------


def test_files_that_come_before_their_directories_get_their_paths() -> None:
    rows, problems = mapped(
        {
            64: file(64, attribute(0x80, b"a"), parent=reference(80)),
            70: file(70, attribute(0x80, b"b"), parent=reference(5, 5)),
            80: folder(80, "inner", reference(90)),
            90: folder(90, "outer"),
        }
    )
    assert rows.keys() == {b"", b"file", b"outer", b"outer/inner", b"outer/inner/file"}
    assert not problems
    assert not any(row.error for row in rows.values())


def test_a_file_has_a_row_for_each_name_but_dos_names() -> None:
    names = [
        file_name(ROOT, "a long name", space=1),
        file_name(ROOT, "ALONGN~1", space=2),
        file_name(reference(70), "another", space=0),
        file_name(ROOT, "THIRD", space=3),
    ]
    made = record(64, [standard(), *names, attribute(0x80, b"x")], links=4)
    rows, _ = mapped({64: made, 70: folder(70, "folder")})
    assert rows.keys() == {b"", b"folder", b"a long name", b"folder/another", b"THIRD"}
    assert {row.links for row in rows.values() if row.kind == Kind.FILE} == {3}
    assert not any(row.error for row in rows.values())


def test_a_dos_name_is_better_than_none() -> None:
    made = record(64, [standard(), file_name(ROOT, "ONLY~1", space=2), attribute(0x80, b"")])
    assert b"ONLY~1" in mapped({64: made})[0]


def test_a_file_without_a_name_is_lost() -> None:
    rows, _ = mapped({64: record(64, [standard(), attribute(0x80, b"")], links=0)})
    assert rows[b"?64"].error == "it has no name"


def test_names_that_are_missing_are_told() -> None:
    rows, _ = mapped({64: file(64, attribute(0x80, b""), links=3)})
    assert rows[b"file"].error == "3 names are counted, 1 are there"


@pytest.mark.parametrize(
    ("name", "path"), [("a/b", b"a?b"), ("..", b"??"), ("a\0", b"a?"), ("", b"?")]
)
def test_a_name_that_no_path_can_hold_is_told(name: str, path: bytes) -> None:
    rows, _ = mapped({64: file(64, attribute(0x80, b""), name=name)})
    assert "characters that no name may have" in rows[path].error


def test_what_belongs_to_the_file_system_is_no_row() -> None:
    rows, problems = mapped(
        {
            11: record(11, [standard(), file_name(ROOT, "$Extend")], flags=DIRECTORY, sequence=11),
            24: file(24, attribute(0x80, b""), name="$Quota", parent=reference(11, 11)),
            64: file(64, attribute(0x80, b""), name="$Txf", parent=reference(70)),
            70: folder(70, "$RmMetadata", reference(11, 11)),
        }
    )
    assert rows.keys() == {b""}
    assert not problems


def test_orphans_are_told() -> None:
    rows, _ = mapped({64: file(64, attribute(0x80, b""), parent=reference(99))})
    assert rows[b"?64/file"].error == "its directory, record 99, is not there"


def test_directories_in_a_loop_end() -> None:
    rows, _ = mapped({64: folder(64, "a", reference(65)), 65: folder(65, "b", reference(64))})
    assert rows.keys() == {b"", b"?64/a", b"?65/b"}
    assert "in a loop" in rows[b"?64/a"].error


def test_a_directory_in_several_records_is_known_to_its_children() -> None:
    entries = [
        list_entry(0x10, reference(70), instance=1),
        list_entry(0x30, reference(80), instance=2),
    ]
    base = [standard(), attribute(0x20, b"".join(entries))]
    rows, _ = mapped(
        {
            64: file(64, attribute(0x80, b""), parent=reference(70)),
            70: record(70, base, flags=DIRECTORY),
            80: record(80, [file_name(ROOT, "folder")], base=reference(70)),
            90: file(90, attribute(0x80, b""), name="late", parent=reference(70)),
        }
    )
    assert rows.keys() == {b"", b"folder", b"folder/file", b"folder/late"}
    assert not any(row.error for row in rows.values())


# --- attributes --------------------------------------------------------------------------------------------------


def test_times_are_nanoseconds_since_1970() -> None:
    ticks = (116444736000000000, 116444736000000001, 0, 200000000000000000)
    made = [standard(times=ticks, flags=1), file_name(ROOT, "file"), attribute(0x80, b"")]
    row = mapped({64: record(64, made)})[0][b"file"]
    assert (row.birth_ns, row.mtime_ns) == (0, 100)
    assert row.ctime_ns == -11644473600 * 1_000_000_000
    assert row.atime_ns == 8355526400 * 1_000_000_000
    assert dict(row.xattrs)[b"system.ntfs_attrib_be"] == b"\0\0\0\1"
    assert (row.mode, row.uid, row.gid) == (0o644, -1, -1)
    assert row.identity == Identity(0, 64, 1)


def test_missing_standard_information_is_told() -> None:
    made = record(64, [file_name(ROOT, "file"), attribute(0x80, b"")])
    assert "standard information" in mapped({64: made})[0][b"file"].error


def test_the_descriptor_of_the_table_wins() -> None:
    made = [
        standard(security=300),
        file_name(ROOT, "file"),
        attribute(0x50, b"own"),
        attribute(0x80, b""),
    ]
    rows, _ = mapped({64: record(64, made)})
    assert rows[b"file"].error == "its security descriptor 300 is missing"
    assert dict(rows[b"file"].xattrs)[b"system.ntfs_acl"] == b"own"


def test_attributes_are_in_the_order_of_their_names() -> None:
    row = one(
        attribute(0x40, bytes(range(16))),
        attribute(0x50, b"descriptor"),
        attribute(0x80, b""),
        attribute(0xE0, b"extended"),
    )
    assert row.xattrs == (
        (b"system.ntfs_acl", b"descriptor"),
        (b"system.ntfs_attrib_be", b"\0\0\0 "),
        (b"system.ntfs_ea", b"extended"),
        (b"system.ntfs_object_id", bytes(range(16))),
    )


def test_an_attribute_that_is_too_long_is_told() -> None:
    row = one(attribute(0x80, b""), clustered(0xE0, [(400, 200)], 200 * 512))
    assert row.error == "attribute E0h: metadata of 102400 bytes, 102400 written"


# --- content -----------------------------------------------------------------------------------------------------


def test_content_in_the_record_goes_around_the_fixups() -> None:
    row = one(attribute(0x80, bytes(range(250)) * 2))
    assert [extent.flags for extent in row.extents] == [ExtentFlag.INLINE] * len(row.extents)
    assert [extent.byte_count for extent in row.extents][1] == 2
    assert sum(extent.byte_count for extent in row.extents) == row.size == 500


def test_a_file_without_data_is_told_and_an_empty_one_is_not() -> None:
    assert one(attribute(0x80, b"")).extents == ()
    assert one().error == "it has no data attribute"


def test_clusters_that_cannot_be_are_told_and_the_size_is_kept() -> None:
    row = one(clustered(0x80, [(1999, 5)], 2000))
    assert (row.size, row.extents) == (2000, ())
    assert "leaves the volume" in row.error


def test_two_contents_of_one_name_are_told() -> None:
    assert "a part of it is in a record" in one(attribute(0x80, b"a"), attribute(0x80, b"b")).error


def test_directories_own_their_index() -> None:
    index = clustered(0xA0, [(400, 8)], 4096, name="$I30")
    row = mapped({64: folder(64, "folder", ROOT, index)})[0][b"folder"]
    assert (row.kind, row.size, row.mode) == (Kind.DIRECTORY, 4096, 0o755)
    assert row.extents[0].volume_byte == 400 * 512


def test_streams_are_files_with_one_link_under_each_name() -> None:
    names = [file_name(ROOT, "a"), file_name(ROOT, "b")]
    streams = [attribute(0x80, b"1", name="one"), clustered(0x80, [(400, 1)], 9, name="t/o")]
    made = record(64, [standard(), *names, attribute(0x80, b"itself"), *streams], links=2)
    rows, _ = mapped({64: made})
    assert rows.keys() == {b"", b"a", b"b", b"a:one", b"b:one", b"a:t?o", b"b:t?o"}
    stream = rows[b"b:one"]
    assert (stream.kind, stream.size, stream.links) == (Kind.FILE, 1, 1)
    assert stream.identity == rows[b"a"].identity
    assert not stream.xattrs
    assert rows[b"a:t?o"].size == 9
    assert "characters" in rows[b"a:t?o"].error
    assert not rows[b"a"].error


def test_the_root_has_streams_as_well() -> None:
    made = [standard(), file_name(ROOT, "."), attribute(0x80, b"x", name="stream")]
    rows, _ = mapped({5: record(5, made, flags=DIRECTORY, sequence=5)})
    assert rows[b":stream"].size == 1


def test_a_stream_with_a_damaged_list_leaves_its_file_alone() -> None:
    rows, _ = mapped(
        {64: file(64, attribute(0x80, b"x"), clustered(0x80, [(1999, 9)], 9, name="s"))}
    )
    assert "leaves the volume" in rows[b"file:s"].error
    assert not rows[b"file"].error


def test_a_name_and_a_stream_may_be_longer_together_than_a_component() -> None:
    name, stream = "\u6f22" * 200, "\u6f22" * 150
    rows, _ = mapped(
        {64: file(64, attribute(0x80, b""), attribute(0x80, b"", name=stream), name=name)}
    )
    assert rows[b"?64:" + stream.encode()].error == "its path is too long"
    stream = stream[:140]
    rows, _ = mapped(
        {64: file(64, attribute(0x80, b""), attribute(0x80, b"", name=stream), name=name)}
    )
    assert not rows[f"{name}:{stream}".encode()].error


def test_a_long_link_of_interix_is_read_where_it_is() -> None:
    target = "a/long/target" * 40
    data = b"IntxLNK\1" + target.encode("utf-16-le")
    made = [
        standard(flags=0x24),
        file_name(ROOT, "link"),
        clustered(0x80, [(400, 3)], len(data)),
    ]
    rows, _ = mapped({64: record(64, made)}, {400: data})
    row = rows[b"link"]
    assert (row.kind, row.target, row.mode) == (Kind.SYMLINK, target.encode(), 0o777)
    assert (row.size, row.extents) == (len(target), ())


def test_links_of_windows_keep_their_data_for_the_curious() -> None:
    text = "..\\there".encode("utf-16-le")
    head = struct.pack("<IHHHHHHI", 0xA000000C, 12 + len(text), 0, 0, len(text), 0, 0, 1)
    row = one(attribute(0x80, b""), attribute(0xC0, head + text))
    assert (row.kind, row.target) == (Kind.SYMLINK, b"../there")
    assert dict(row.xattrs)[b"system.ntfs_reparse_data"] == head + text


# --- records that are damaged --------------------------------------------------------------------------------------


def test_a_damaged_record_is_a_row_of_its_own() -> None:
    torn = bytearray(file(64, attribute(0x80, b"")))
    torn[511] ^= 1
    rows, problems = mapped({64: bytes(torn), 65: b"BAAD" + bytes(RECORD_BYTES - 4)})
    assert (rows[b"?64"].kind, rows[b"?64"].identity.inode) == (Kind.OTHER, 64)
    assert "torn" in rows[b"?64"].error
    assert rows[b"?65"].error == "it is marked as bad"
    assert len(problems) == 2


def test_a_record_that_the_bitmap_does_not_know_is_mapped_and_told() -> None:
    image = volume({64: file(64, attribute(0x80, b""))})
    place = 1530 * 512 + 8
    image[place] ^= 1
    reader = NtfsReader(BytesSource(image))
    assert {row.path for row in reader.rows()} == {b"", b"file"}
    assert reader.problems == ["record 64 is used, and the bitmap of $MFT says unused"]


def test_a_record_of_a_file_that_does_not_name_it_is_nothing() -> None:
    rows, problems = mapped(
        {64: record(64, [file_name(ROOT, "x")], base=reference(70), flags=IN_USE)}
    )
    assert rows.keys() == {b""}
    assert not problems
