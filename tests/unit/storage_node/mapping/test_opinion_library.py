"""What the library says, as rows: its own inventions left out, its failures as errors of what they hit."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.testing.disk_images import missing, run
from backplane.units import MIB
from storage_node.mapping.opinion_compare import CONTENT, Content, data_runs
from storage_node.mapping.reader import BytesSource, DamagedError

pytest.importorskip("pytsk3", reason="needs pytsk3 (pip install '.[second-opinion]')")

from storage_node.mapping.opinion import FILE_SYSTEMS
from storage_node.mapping.opinion_library import TYPES, LibraryReader

CONTENTS = {"small": b"ten bytes.", "large": bytes(range(256)) * 300, "empty": b""}


def tree(folder: Path) -> Path:
    (folder / "home").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / "home" / name).write_bytes(content)
    return folder


def ext4(folder: Path, *options: str) -> Path:
    if lack := missing("mkfs.ext4"):
        pytest.skip(lack)
    files = tree(folder / "tree")
    (files / "short").symlink_to("home/small")
    (files / "long").symlink_to("x" * 60)
    with (files / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"end")
    image = folder / "image"
    image.write_bytes(b"\xa5" * (24 * MIB))
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", *options, "-d", files, image)
    return image


def fat32(folder: Path) -> Path:
    if lack := missing("mkfs.fat", "mcopy"):
        pytest.skip(lack)
    image = folder / "image"
    image.write_bytes(b"\xa5" * (40 * MIB))
    run("mkfs.fat", "-F", "32", "-s", "1", "-n", "A LABEL", image)
    run("mcopy", "-s", "-i", image, tree(folder / "tree") / "home", "::/")
    return image


def ntfs(folder: Path) -> Path:
    if lack := missing("mkntfs", "ntfscp"):
        pytest.skip(lack)
    files = tree(folder / "tree")
    image = folder / "image"
    image.write_bytes(b"\xa5" * (8 * MIB))
    run("mkntfs", "-q", "-F", "-f", "-L", "A LABEL", image)
    for name in ("small", "large"):
        run("ntfscp", image, files / "home" / name, name)
    run("ntfscp", "-N", "stream", image, files / "home" / "large", "small")
    return image


def exfat(folder: Path) -> Path:
    if lack := missing("mkfs.exfat"):
        pytest.skip(lack)
    image = folder / "image"
    image.write_bytes(b"\xa5" * (8 * MIB))
    run("mkfs.exfat", "-L", "ALABEL", image)
    return image


def rows_of(data: bytes, kind: str) -> dict[str, FileRow]:
    reader = LibraryReader(BytesSource(data), kind)
    rows = list(reader.rows())
    assert reader.problems == []
    assert not [row for row in rows if row.error]
    found = {row.path.decode(): row for row in rows}
    assert len(found) == len(rows)
    return found


def content(data: bytes, row: FileRow) -> bytes:
    made = bytearray(row.size)
    for file_byte, volume_byte, count in data_runs(row):
        made[file_byte : file_byte + count] = data[volume_byte : volume_byte + count]
    return bytes(made)


def test_every_file_system_that_is_promised_can_be_opened() -> None:
    assert TYPES.keys() == FILE_SYSTEMS


def test_ext4_is_listed_with_its_data_and_nothing_else(tmp_path: Path) -> None:
    data = ext4(tmp_path).read_bytes()
    rows = rows_of(data, "ext4")
    names = {"", "lost+found", "home", "short", "long", "sparse"}
    assert rows.keys() == names | {f"home/{name}" for name in CONTENTS}
    for name, expected in CONTENTS.items():
        assert content(data, rows[f"home/{name}"]) == expected
    assert content(data, rows["sparse"]) == bytes(3 * MIB) + b"end"
    assert rows["home"].kind == Kind.DIRECTORY
    assert rows["home"].extents == ()
    assert (rows["short"].kind, rows["short"].target) == (Kind.SYMLINK, b"home/small")


def test_inline_content_of_ext4_is_said_to_be_inline(tmp_path: Path) -> None:
    rows = rows_of(ext4(tmp_path, "-O", "inline_data", "-I", "256").read_bytes(), "ext4")
    assert rows["home/small"].xattrs == ((CONTENT, Content.INLINE.encode()),)
    assert rows["home/large"].xattrs == ()


def test_the_tables_and_the_label_of_fat_are_no_files(tmp_path: Path) -> None:
    data = fat32(tmp_path).read_bytes()
    rows = rows_of(data, "fat32")
    assert rows.keys() == {"", "home"} | {f"home/{name}" for name in CONTENTS}
    for name, expected in CONTENTS.items():
        assert content(data, rows[f"home/{name}"]) == expected


def test_deleted_names_are_no_files(tmp_path: Path) -> None:
    image = fat32(tmp_path)
    run("mdel", "-i", image, "::/home/large")
    assert "home/large" not in rows_of(image.read_bytes(), "fat32")


def test_the_metadata_of_ntfs_are_no_files_and_streams_are(tmp_path: Path) -> None:
    data = ntfs(tmp_path).read_bytes()
    rows = rows_of(data, "ntfs")
    assert rows.keys() == {"", "small", "large", "small:stream"}
    assert rows["small"].xattrs == ((CONTENT, Content.INLINE.encode()),)
    assert content(data, rows["large"]) == content(data, rows["small:stream"]) == CONTENTS["large"]


def test_the_metadata_of_exfat_are_no_files(tmp_path: Path) -> None:
    assert rows_of(exfat(tmp_path).read_bytes(), "exfat").keys() == {""}


def test_no_extent_of_the_library_is_marked_as_anything_but_data(tmp_path: Path) -> None:
    rows = rows_of(ext4(tmp_path).read_bytes(), "ext4")
    assert {extent.flags for row in rows.values() for extent in row.extents} == {ExtentFlag(0)}


@pytest.mark.parametrize("kind", sorted(FILE_SYSTEMS))
def test_what_the_library_cannot_open_is_damaged(kind: str) -> None:
    with pytest.raises(DamagedError, match="the library does not open it"):
        LibraryReader(BytesSource(bytes(MIB)), kind)


class Holed(BytesSource):
    """Some bytes cannot be read, from some time on."""

    bad: range = range(0)

    def read(self, offset: int, count: int) -> bytes:
        if offset < self.bad.stop and self.bad.start < offset + count:
            raise DamagedError("it cannot be read")
        return super().read(offset, count)


def test_a_volume_that_cannot_be_read_is_not_opened(tmp_path: Path) -> None:
    source = Holed(ext4(tmp_path).read_bytes())
    source.bad = range(source.size_bytes)
    with pytest.raises(DamagedError, match="it cannot be read"):
        LibraryReader(source, "ext4")


def test_reads_that_fail_later_are_told_and_end_nothing(tmp_path: Path) -> None:
    source = Holed(ext4(tmp_path).read_bytes())
    reader = LibraryReader(source, "ext4")
    source.bad = range(source.size_bytes)
    rows = list(reader.rows())
    assert rows[0].path == b""
    assert reader.problems or [row for row in rows if row.error]
