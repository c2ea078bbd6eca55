"""Logs of XFS, applied in memory: real ones against the kernel's recovery, and forged ones for what is rare."""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
from pathlib import Path

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow
from backplane.testing import xfs_forge as forge
from backplane.testing import xfs_images as images
from backplane.testing import xfs_trees as trees
from backplane.testing.xfs_forge import ForgedVolume
from backplane.testing.xfs_images import FileSource, differences, kernel_truth, make_image, mounted
from backplane.units import MIB
from storage_node.mapping import xfs_replay
from storage_node.mapping.reader import BytesSource, MappingError, UnsupportedError
from storage_node.mapping.xfs import XfsReader
from storage_node.mapping.xfs_replay import Replayed, replay
from storage_node.mapping.xfs_superblock import read_geometry

needs_mounts = pytest.mark.skipif(
    bool(images.missing_for_mounts()), reason=images.missing_for_mounts()
)
TREE_BYTES = 128 * MIB


def read_all(image: Path) -> tuple[list[FileRow], XfsReader]:
    with FileSource(image) as source:
        reader = XfsReader(source)
        return list(reader.rows()), reader


# --- real logs ---------------------------------------------------------------------------------


def recovered(copy: Path, tmp_path: Path) -> dict[bytes, images.Truth]:
    """Let the kernel recover a second copy, and return what it shows then."""
    second = tmp_path / "second.img"
    images.run("cp", "--sparse=always", copy, second)
    with mounted(second, tmp_path / "mount"):
        pass
    with mounted(second, tmp_path / "mount", "ro") as top:
        truth = kernel_truth(top)
    second.unlink()
    return truth


@needs_mounts
@pytest.mark.parametrize("options", [(), ("-b", "size=1024", "-l", "su=256k")], ids=["", "1 KiB"])
def test_copies_of_a_mounted_volume_are_what_the_kernel_recovers(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    image = make_image(tmp_path / "live.img", *options, size_bytes=TREE_BYTES)
    copies: dict[str, Path] = {}

    def take(name: str) -> None:
        copies[name] = tmp_path / f"{name}.img"
        images.run("cp", "--sparse=always", image, copies[name])

    with mounted(image, tmp_path / "mount") as top:
        trees.make_tree(top)
        with (top / "deleted and open").open("wb") as held:
            held.write(bytes(50_000))
            os.fsync(held.fileno())
            (top / "deleted and open").unlink()
            take("power cut")
            images.run("sync", "-f", top)
            take("synced")
            images.run("fsfreeze", "-f", top)
            try:
                take("frozen")
            finally:
                images.run("fsfreeze", "-u", top)
            shutil.rmtree(top / "names" / "700")
            for number in range(300):
                trees.write(top / f"again {number}", trees.data(number, number * 31))
            images.run("sync", "-f", top)
            take("changed")
    states = {}
    for name, copy in copies.items():
        rows, reader = read_all(copy)
        states[name] = reader.facts.state
        truth = recovered(copy, tmp_path)
        assert differences(rows, truth, copy, is_recovered=True) == [], name
        assert len(rows) > 2000
        assert reader.problems == []
        with FileSource(copy) as source:
            target = tmp_path / "restored.img"
            images.copy_runs(copy, target, XfsReader(source).allocated())
        truth = recovered(target, tmp_path)
        assert differences(rows, truth, target, is_recovered=True) == [], name
        copy.unlink()
        target.unlink()
    image.unlink()
    expected = {"power cut": "replayed", "synced": "replayed", "changed": "replayed"}
    assert states == {**expected, "frozen": "clean"}


@needs_mounts
def test_snapshots_under_load_are_what_the_kernel_recovers(tmp_path: Path) -> None:
    """The volume's file lies on another XFS, so that a copy of it is one moment.  The log is small: it wraps."""
    host = make_image(tmp_path / "host.img", size_bytes=512 * MIB)
    with mounted(host, tmp_path / "host") as host_top:
        options = ("-l", "size=13m", "-m", "rmapbt=1")
        image = make_image(host_top / "live.img", *options, size_bytes=160 * MIB)
        copies = []
        with mounted(image, tmp_path / "live") as top:
            stop = threading.Event()
            work = [
                threading.Thread(target=trees.keep_busy, args=(top / f"{seed}", seed, stop))
                for seed in range(2)
            ]
            for thread in work:
                thread.start()
            try:
                for number in range(4):
                    stop.wait(0.7)
                    copies.append(host_top / f"copy {number}.img")
                    images.run("cp", "--reflink=always", image, copies[-1])
            finally:
                stop.set()
                for thread in work:
                    thread.join()
        states = set()
        for copy in copies:
            rows, reader = read_all(copy)
            states.add(reader.facts.state)
            truth = recovered(copy, tmp_path)
            assert differences(rows, truth, copy, is_recovered=True) == []
            assert reader.problems == []
        assert "replayed" in states
    host.unlink()


@needs_mounts
def test_damage_of_a_log_never_ends_a_reading(tmp_path: Path) -> None:
    """What was changed near the head looks as if it had never been written; all else is told."""
    image = make_image(tmp_path / "small.img")
    with mounted(image, tmp_path / "mount") as top:
        trees.make_small_tree(top)
        for number in range(15):
            (top / f"{number}").touch()
            images.run("sync", "-f", top)
        images.run("cp", "--sparse=always", image, tmp_path / "dirty.img")
    right = (tmp_path / "dirty.img").read_bytes()
    data = bytearray(right)
    assert state_of(data) == "replayed"
    first, end = images.log_bytes(right)
    used = [at for at in range(first, end, 512) if int.from_bytes(right[at : at + 4], "big") == 1]
    chance = random.Random(5)
    states = set()
    for number in range(60):
        at = chance.choice(used)
        data[at : at + 512] = chance.randbytes(512) if number % 2 else bytes(512)
        states.add(state_of(data))
        data[at : at + 512] = right[at : at + 512]
    assert {"replayed", "dirty"} <= states


def state_of(data: bytes | bytearray) -> str:
    """Return the state of a volume that may be damaged, having read all of it."""
    try:
        reader = XfsReader(BytesSource(data))
        for row in reader.rows():
            for extent in row.extents:
                assert 0 <= extent.volume_byte < extent.volume_byte + extent.byte_count <= len(data)
    except MappingError:
        return "refused"
    assert (reader.facts.state == "dirty") <= bool(reader.problems)
    return reader.facts.state


# --- forged logs -------------------------------------------------------------------------------

FILE = 65
CORE = 1
DATA_EXTENTS = 4
DATA_ROOT = 8
FILE_MODE = 0o100644


def volume(*, version: int = 5) -> ForgedVolume:
    """Return a volume with a file in it, and a log that was closed."""
    made = ForgedVolume(version=version)
    made.add_directory(forge.ROOT, [(b"file", FILE, 1)])
    made.add_inode(FILE, FILE_MODE, forge.extent(0, 100, 2), size=5000, count=1)
    return made


def replayed(made: ForgedVolume) -> Replayed:
    source = BytesSource(bytes(made.image()))
    return replay(source, read_geometry(source.read, source.size_bytes))


def file_row(made: ForgedVolume, path: bytes = b"file") -> FileRow:
    reader = XfsReader(BytesSource(bytes(made.image())))
    rows = {row.path: row for row in reader.rows()}
    assert reader.problems == []
    return rows[path]


def logged(
    made: ForgedVolume,
    number: int,
    fork: bytes,
    *,
    fields: int = CORE | DATA_EXTENTS,
    **changes: int,
) -> list[bytes]:
    """Return an item that changes an inode to what `add_inode` would make."""
    other = ForgedVolume(version=made.version)
    other.add_inode(number, FILE_MODE, fork, **changes)  # type: ignore[arg-type]
    core = forge.host_core(other.inodes[number], is_v5=made.is_v5)
    return forge.inode_item(number, core, fork, fields=fields)


@pytest.mark.parametrize("version", [4, 5])
def test_an_inode_becomes_what_the_log_says(version: int) -> None:
    made = volume(version=version)
    made.log.transaction(logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1, links=1))
    row = file_row(made)
    assert (row.size, row.extents) == (9000, (FileExtent(0, 110 * 4096, 3 * 4096),))
    assert row.uid == 1000
    assert row.mtime_ns == file_row(volume(version=version)).mtime_ns
    assert replayed(made).state == "replayed"


def test_only_committed_transactions_count() -> None:
    made = volume()
    item = logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1)
    made.log.record(forge.transaction(item)[:-1])
    assert file_row(made).size == 5000


def test_an_inode_that_is_newer_on_the_volume_stays() -> None:
    made = volume()
    place = made.log.place
    item = logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1)
    made.log.transaction(item)
    for written, size in ((place - 1, 9000), (place, 9000), (place + 1, 5000)):
        made.add_inode(FILE, FILE_MODE, forge.extent(0, 100, 2), size=5000, count=1, place=written)
        assert file_row(made).size == size


def test_an_old_inode_counts_how_often_it_was_written() -> None:
    made = volume(version=4)
    item = logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1)
    core = bytearray(item[1])
    core[30:32] = (5).to_bytes(2, "little")
    made.log.transaction([item[0], bytes(core), item[2]])
    for written, size in ((4, 9000), (5, 9000), (6, 5000), (0xFFFF, 9000)):
        raw = bytearray(made.inodes[FILE])
        raw[30:32] = written.to_bytes(2, "big")
        made.inodes[FILE] = bytes(raw)
        assert file_row(made).size == size


def test_an_item_in_the_packed_layout_of_32_bit_machines_is_read() -> None:
    made = volume()
    item = logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1)
    item = forge.inode_item(FILE, item[1], item[2], fields=5, is_short=True)
    made.log.transaction(item)
    assert file_row(made).size == 9000


def test_the_root_of_a_tree_is_packed_into_the_inode() -> None:
    made = volume()
    records = b"".join(forge.extent(number * 2, 110 + number, 1) for number in range(30))
    head = struct.pack(
        ">4sHHQQQQ16sQII", b"BMA3", 0, 30, 2**64 - 1, 2**64 - 1, 105 * 8, 0, forge.UUID, FILE, 0, 0
    )
    made.blocks[105] = forge.sealed((head + records).ljust(4096, b"\0"), 64)
    # As the log has it: a block with room for two entries, of which one is used.
    root = struct.pack(">4sHH", b"BMA3", 1, 1).ljust(72, b"\0") + struct.pack(">QQQQ", 0, 0, 105, 0)
    other = ForgedVolume()
    other.add_inode(FILE, FILE_MODE, b"", form=3, size=60 * 4096, count=30)
    core = forge.host_core(other.inodes[FILE])
    made.log.transaction(forge.inode_item(FILE, core, root, fields=CORE | DATA_ROOT))
    row = file_row(made)
    assert [extent.volume_byte // 4096 for extent in row.extents] == list(range(110, 140))


def test_new_inodes_are_made_and_then_filled() -> None:
    made = volume()
    made.log.transaction(forge.create_item(120, 8))
    overlay = replayed(made).overlay
    raw = overlay.whole(120 * 4096 + 512, 512)
    assert raw is not None
    assert raw[:2] == b"IN"
    assert int.from_bytes(raw[152:160], "big") == 120 * 8 + 1
    assert int.from_bytes(raw[92:96], "big") == 99
    assert raw[160:176] == forge.UUID


def test_new_inodes_that_were_removed_again_are_not_made() -> None:
    made = volume()
    made.log.transaction(forge.create_item(8, 8))
    made.log.transaction(forge.cancel_item(64, 64))
    assert file_row(made).size == 5000


def test_many_extents_are_counted_elsewhere_in_the_log_as_well() -> None:
    made = volume()
    other = ForgedVolume()
    other.add_inode(FILE, FILE_MODE, forge.extent(0, 110, 3), size=9000, flags2=0x18)
    raw = bytearray(other.inodes[FILE])
    raw[24:32], raw[76:80] = (1).to_bytes(8, "big"), bytes(4)
    core = forge.host_core(bytes(raw))
    made.log.transaction(
        forge.inode_item(FILE, core, forge.extent(0, 110, 3), fields=CORE | DATA_EXTENTS)
    )
    assert file_row(made).extents == (FileExtent(0, 110 * 4096, 3 * 4096),)


def test_a_device_number_is_in_the_item_itself() -> None:
    made = ForgedVolume()
    made.add_directory(forge.ROOT, [(b"file", FILE, 3)])
    made.add_inode(FILE, 0o020644, bytes(4), form=0)
    core = forge.host_core(made.inodes[FILE])
    made.log.transaction(
        forge.inode_item(FILE, core, fields=CORE | 0x10, device=259 << 18 | 70_000)
    )
    assert file_row(made).device == 259 << 32 | 70_000


@pytest.mark.parametrize("is_given", [True, False])
def test_a_tree_that_the_log_gave_to_another_file_is_read(is_given: bool) -> None:
    made = ForgedVolume()
    made.add_directory(forge.ROOT, [(b"file", FILE, 1)])
    head = struct.pack(">4sHHQQQQ16sQII", b"BMA3", 0, 1, 0, 0, 105 * 8, 0, forge.UUID, 99, 0, 0)
    made.blocks[105] = forge.sealed((head + forge.extent(0, 110, 1)).ljust(4096, b"\0"), 64)
    # The fork has 336 bytes: room for 20 keys, then as many pointers.
    root = struct.pack(">HH160xQ", 1, 1, 105)
    made.add_inode(FILE, FILE_MODE, root, form=3, size=4096, count=1)
    core = forge.host_core(made.inodes[FILE])
    made.log.transaction(forge.inode_item(FILE, core, fields=CORE | 0x200 * is_given))
    assert bool(file_row(made).error) != is_given
    assert bool(file_row(made).extents) == is_given


def test_a_log_that_changes_too_much_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    made = volume()
    made.log.transaction(space_item(200))
    monkeypatch.setattr(xfs_replay, "OVERLAY_BYTES_MAX", 512)
    assert replayed(made).state == "replayed"
    monkeypatch.setattr(xfs_replay, "OVERLAY_BYTES_MAX", 511)
    assert replayed(made).state == "dirty"
    assert "511 bytes" in replayed(made).reason


def space_block(count: int) -> bytes:
    """Return a block of the tree of free space that says so many blocks are free."""
    made = ForgedVolume()
    return made.tree_block(1, b"AB3B", struct.pack(">II", forge.FREE_BLOCK, count), 1)


def space_of(made: ForgedVolume) -> int:
    reader = XfsReader(BytesSource(bytes(made.image())))
    return sum(end - first for first, end in reader.allocated()) // 4096


def space_item(count: int) -> list[bytes]:
    # The checksum and the counters of the header are as they were: only the record is logged.
    return forge.buffer_item(8, 8, {0: space_block(count)[:128]})


def test_a_buffer_is_changed_where_the_log_says_so() -> None:
    made = volume()
    assert space_of(made) == forge.FREE_BLOCK
    made.log.transaction(space_item(200))
    assert space_of(made) == forge.BLOCKS - 200
    overlay = replayed(made).overlay
    assert overlay.covers(4096, 512)
    assert not overlay.covers(4096 + 512, 512)


@pytest.mark.parametrize("version", [4, 5])
def test_a_buffer_that_is_newer_on_the_volume_stays(version: int) -> None:
    """Version 4 does not say when a block was written, so there the log is always right."""
    made = volume(version=version)
    place = made.log.place
    if version == 5:
        made.log.transaction(space_item(200))
    else:
        made.log.transaction(
            forge.buffer_item(
                8, 8, {0: made.tree_block(1, b"AB3B", struct.pack(">II", 256, 200), 1)[:128]}
            )
        )
    for written, free in ((place - 1, 200), (place, 256), (place + 1, 256)):
        block = bytearray(
            ForgedVolume(version=version).tree_block(1, b"AB3B", struct.pack(">II", 256, 256), 1)
        )
        if version == 5:
            block[24:32] = written.to_bytes(8, "big")
            made.blocks[1] = forge.sealed(block, 52)
        assert space_of(made) == forge.BLOCKS - (free if version == 5 else 200)


def test_a_block_of_another_file_system_is_never_newer() -> None:
    made = volume()
    place = made.log.place
    whole = {at: space_block(200)[at : at + 4096] for at in (0,)}
    made.log.transaction(forge.buffer_item(8, 8, whole))
    block = bytearray(space_block(256))
    block[24:32] = (place + 5).to_bytes(8, "big")
    block[32:48] = bytes(16)
    made.blocks[1] = forge.sealed(block, 52)
    assert space_of(made) == forge.BLOCKS - 200


def test_a_cancelled_buffer_is_left_alone_until_it_is_used_again() -> None:
    made = volume()
    made.log.transaction(space_item(200))
    made.log.transaction(forge.cancel_item(8, 8))
    assert space_of(made) == forge.FREE_BLOCK
    made.log.transaction(space_item(150))
    assert space_of(made) == forge.BLOCKS - 150
    made.log.transaction(forge.cancel_item(8, 8))
    assert space_of(made) == forge.FREE_BLOCK


def test_cancelled_blocks_are_not_read() -> None:
    """They may hold a file's data by now."""
    made = volume()
    made.log.transaction(forge.buffer_item(800, 8, {0: bytes(128)}))
    made.log.transaction(forge.cancel_item(800, 8))
    reads = []

    class Watched(BytesSource):
        def read(self, offset: int, count: int) -> bytes:
            reads.append((offset, count))
            return super().read(offset, count)

    list(XfsReader(Watched(bytes(made.image()))).rows())
    assert not any(offset < 808 * 512 and offset + count > 800 * 512 for offset, count in reads)


def test_inodes_that_the_log_changed_are_not_read_one_by_one() -> None:
    made = volume()
    entries = [(b"file %d" % number, number, 1) for number in range(65, 90)]
    made.add_directory(forge.ROOT, entries[:12])
    for _, number, _ in entries:
        made.add_inode(number, FILE_MODE)
        _, core, _ = logged(made, number, b"", size=9000)
        made.log.transaction(forge.inode_item(number, core, fields=CORE))
    reads = []

    class Watched(BytesSource):
        def read(self, offset: int, count: int) -> bytes:
            reads.append((offset, count))
            return super().read(offset, count)

    rows = list(XfsReader(Watched(bytes(made.image()))).rows())
    assert {row.size for row in rows if row.path} == {9000}
    first = 8 * 4096
    at_inodes = [offset for offset, _ in reads if first <= offset < first + 64 * 512]
    assert len(at_inodes) < 8


def test_inodes_of_a_cancelled_cluster_are_left_alone() -> None:
    made = volume()
    made.log.transaction(logged(made, FILE, forge.extent(0, 110, 3), size=9000, count=1))
    made.log.transaction(forge.cancel_item(64, 64))
    assert file_row(made).size == 5000


def test_what_is_logged_of_buffers_of_inodes_and_quotas_is_not_applied() -> None:
    made = volume()
    for flags in (1, 4, 8, 16):
        made.log.transaction(forge.buffer_item(64, 64, {512: bytes(128)}, flags=flags))
    assert file_row(made).size == 5000


def test_a_log_of_superblocks_only_is_that_of_a_frozen_volume() -> None:
    made = volume()
    made.log.transaction(forge.buffer_item(0, 1, {0: made.superblock()[:128]}))
    assert replayed(made).state == "clean"
    made.log.transaction(space_item(200))
    assert replayed(made).state == "replayed"


def test_a_superblock_that_grew_in_the_log_counts() -> None:
    made = volume()
    grown = bytearray(made.superblock())
    grown[108:120] = b"a new label!"
    made.log.transaction(forge.buffer_item(0, 1, {0: bytes(grown)}))
    assert XfsReader(BytesSource(bytes(made.image()))).facts.label == "a new label!"


def test_an_extent_that_is_still_to_be_mapped_is_mapped() -> None:
    made = volume()
    made.log.transaction(
        forge.map_intent(
            7, (FILE, 101, 1, 1, 2), (FILE, 130, 1, 2, 1), (FILE, 140, 9, 1, 1 | 1 << 30)
        )
    )
    assert file_row(made).extents == (
        FileExtent(0, 100 * 4096, 4096),
        FileExtent(4096, 130 * 4096, 8192),
        FileExtent(9 * 4096, 140 * 4096, 4096, int(ExtentFlag.UNWRITTEN)),
    )


def test_an_intent_that_was_done_is_forgotten() -> None:
    made = volume()
    made.log.transaction(forge.map_intent(7, (FILE, 101, 1, 1, 2)))
    made.log.transaction(forge.done_item(0x1244, 7))
    assert file_row(made).extents == (FileExtent(0, 100 * 4096, 8192),)


def test_an_extent_that_is_still_to_be_shared_is_shared() -> None:
    made = volume()
    made.add_inode(FILE, FILE_MODE, forge.extent(0, 100, 2), size=5000, count=1, flags2=0x8 | 0x2)
    made.log.transaction(forge.share_intent(7, (101, 1, 1)))
    made.log.transaction(forge.share_intent(8, (100, 1, 2)))
    assert [extent.flags for extent in file_row(made).extents] == [0, ExtentFlag.SHARED]


@pytest.mark.parametrize("kind", [0x1246, 0x1248])
def test_a_file_whose_change_is_unfinished_is_not_told_as_right(kind: int) -> None:
    made = volume()
    made.log.transaction([struct.pack("<HHIQQQ", kind, 1, 0, 9, FILE, FILE)])
    assert "unfinished" in file_row(made).error


def test_a_log_of_another_byte_order_is_refused() -> None:
    made = volume()
    made.log.byte_order = 2
    made.log.transaction(space_item(200))
    with pytest.raises(UnsupportedError, match="byte order"):
        replayed(made)
    # Nothing of it is in another order if there is nothing to apply.
    made.log.unmount()
    assert replayed(made).state == "clean"


def test_unknown_features_of_a_log_are_refused_if_it_has_something_to_say() -> None:
    made = volume()
    made.log_incompatible = 0x10
    assert replayed(made).state == "clean"
    made.log.transaction(space_item(200))
    with pytest.raises(UnsupportedError, match="0x10"):
        replayed(made)


BAD_ITEMS = {
    "an unknown kind": [struct.pack("<HHQ", 0x1300, 1, 0)],
    "a buffer behind the end": forge.buffer_item(forge.BLOCKS * 8, 8, {0: bytes(128)}),
    "an inode in another place": forge.inode_item(
        FILE, bytes(176), bytes(16), fields=5, cluster=(72, 64)
    ),
    "an inode in the place of another": forge.inode_item(
        FILE, b"NI" + bytes(174), bytes(16), fields=5, at=0
    ),
    "an inode where none is": forge.inode_item(90, bytes(176), bytes(16), fields=5),
    "inodes of another size": forge.create_item(120, 8, inodes=32),
    "inodes in another group": forge.create_item(120, 8, group=3),
}


@pytest.mark.parametrize("item", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_log_that_cannot_be_applied_leaves_the_volume_as_it_is(item: list[bytes]) -> None:
    made = volume()
    made.log.transaction(space_item(200))
    made.log.transaction(item)
    reader = XfsReader(BytesSource(bytes(made.image())))
    assert {row.path: row.size for row in reader.rows()}[b"file"] == 5000
    assert reader.facts.state == "dirty"
    assert reader.problems[0].startswith("the log cannot be applied: ")
    assert sum(end - first for first, end in reader.allocated()) == forge.FREE_BLOCK * 4096


def test_a_block_that_was_damaged_before_the_log_changed_it_is_told() -> None:
    made = volume()
    made.log.transaction(space_item(200))
    block = bytearray(space_block(256))
    block[4000] ^= 1
    made.blocks[1] = bytes(block)
    reader = XfsReader(BytesSource(bytes(made.image())))
    list(reader.allocated())
    assert any("before the log was replayed" in text for text in reader.problems)
