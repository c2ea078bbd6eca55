"""Replay of journals: what the reader sees of a dirty copy is what a kernel makes of another copy."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.testing import ext_images
from backplane.testing.ext_images import (
    copy_sparse,
    debugfs,
    differences,
    image_bytes,
    make_volume,
    mounted,
    run,
    tree_truth,
)
from backplane.testing.file_truth import content_pieces
from backplane.units import KIB, MIB
from storage_node.mapping.ext import ExtReader
from storage_node.mapping.ext_blocks import Run
from storage_node.mapping.ext_journal import COPIES_MAX, JournalFile, Replay
from storage_node.mapping.ext_journal_format import crc32_big
from storage_node.mapping.ext_overlay import JOURNAL_MAGIC
from storage_node.mapping.reader import (
    BytesSource,
    DamagedError,
    MappingError,
    UnsupportedError,
)

needs_mount = pytest.mark.skipif(
    bool(ext_images.missing(needs_mount=True)), reason=ext_images.missing(needs_mount=True)
)
needs_tools = pytest.mark.skipif(bool(ext_images.missing()), reason=ext_images.missing())

BLOCK = 1024
UUID = bytes(range(16))
SEED = crc32c(UUID)
RING = range(1, 40)
HOME = 100
"""Blocks of the volume; the journal lies behind them, at its end."""


# --- what the kernel leaves ----------------------------------------------------------------------

DIRTY = {
    "checksums of the third kind": (("-t", "ext4"), ""),
    "blocks of 1 KiB": (("-t", "ext4", "-b", "1024", "-O", "inline_data"), ""),
    "no checksums": (("-t", "ext4", "-O", "^metadata_csum,^64bit"), ""),
    "checksums of transactions": (("-t", "ext4", "-O", "^metadata_csum"), ",journal_checksum"),
    "asynchronous commits": (
        ("-t", "ext4", "-O", "^metadata_csum"),
        ",data=writeback,journal_async_commit",
    ),
    "data in the journal": (("-t", "ext4"), ",data=journal"),
    "data in the journal of ext3": (("-t", "ext3"), ",data=journal"),
}


def work(root: Path, generator: random.Random, steps: int) -> None:
    """Change files at random; some contents begin like a block of the journal."""
    for step in range(steps):
        choice = generator.random()
        names = sorted(root.glob("file-*"))
        if choice < 0.5 or len(names) < 3:
            head = JOURNAL_MAGIC if generator.random() < 0.3 else b""
            content = head + generator.randbytes(generator.choice((10, 100, 5000, 30_000)))
            (root / f"file-{step}-{generator.random()}").write_bytes(content)
            continue
        place = generator.choice(names)
        if choice < 0.65:
            place.unlink()
        elif choice < 0.75:
            place.rename(root / f"file-moved-{generator.random()}")
        elif choice < 0.85:
            with place.open("ab") as opened:
                opened.write(generator.randbytes(3000))
                opened.flush()
                os.fsync(opened.fileno())
        elif choice < 0.9:
            os.setxattr(place, "user.x", generator.randbytes(generator.choice((5, 500))))
        elif choice < 0.95:
            os.truncate(place, generator.randrange(20_000))
        else:
            os.link(place, root / f"file-linked-{generator.random()}")


def compare_with_kernel(copy: Path, folder: Path, *, state: str) -> list[FileRow]:
    """Read a copy, let the kernel recover another one, and compare."""
    second = copy_sparse(copy, copy.with_suffix(".second"))
    with mounted(second, folder) as root:
        truth = tree_truth(root)
    second.unlink()
    with image_bytes(copy) as content, memoryview(content) as data:
        reader = ExtReader(BytesSource(data))
        rows = list(reader.rows())
        assert differences(rows, truth, BytesSource(data).read) == []
        assert reader.problems == []
        assert reader.facts.state == state
        reader = None  # type: ignore[assignment]  # its view of the mapping
    return rows


@needs_mount
@pytest.mark.parametrize("name", DIRTY)
def test_a_dirty_copy_is_read_as_the_kernel_recovers_it(name: str, tmp_path: Path) -> None:
    options, mount_options = DIRTY[name]
    generator = random.Random(name)
    image = make_volume(tmp_path / "image", 48 * MIB, *options, "-J", "size=8")
    folder = tmp_path / "mounted"
    with mounted(image, folder, "noatime" + mount_options) as root:
        work(root, generator, 150)
        cut = copy_sparse(image, tmp_path / "cut")
        os.sync()
        work(root, generator, 150)
        os.sync()
        synced = copy_sparse(image, tmp_path / "synced")
        work(root, generator, 50)
        run("fsfreeze", "-f", str(root))
        try:
            frozen = copy_sparse(image, tmp_path / "frozen")
        finally:
            run("fsfreeze", "-u", str(root))
    rows = compare_with_kernel(cut, folder, state="replayed")
    rows += compare_with_kernel(synced, folder, state="replayed")
    compare_with_kernel(frozen, folder, state="clean")
    flags = {extent.flags for row in rows if row.kind == Kind.FILE for extent in row.extents}
    if "data=journal" in mount_options:
        assert {ExtentFlag.JOURNAL, ExtentFlag.JOURNAL | ExtentFlag.ESCAPED} <= flags
    for leftover in (image, cut, synced, frozen):
        leftover.unlink()


@needs_mount
def test_fast_commits_are_told_and_not_replayed(tmp_path: Path) -> None:
    image = make_volume(tmp_path / "image", 96 * MIB, "-t", "ext4", "-O", "fast_commit")
    # No transaction may end by itself between the fast commit and the copy: it would take the fast commit's place.
    with mounted(image, tmp_path / "mounted", "commit=300") as root:
        (root / "first").write_bytes(b"of a transaction")
        os.sync()
        with (root / "first").open("ab") as opened:
            opened.write(b", and of a fast commit")
            opened.flush()
            os.fsync(opened.fileno())
        cut = copy_sparse(image, tmp_path / "cut")
    reader = ExtReader(BytesSource(cut.read_bytes()))
    assert reader.facts.state == "dirty"
    assert any("fast commits" in problem for problem in reader.problems)
    clean = ExtReader(BytesSource(image.read_bytes()))
    assert (clean.facts.state, clean.problems) == ("clean", [])


# --- what debugfs writes into a journal ----------------------------------------------------------


@needs_tools
@pytest.mark.parametrize("open_options", ["", "-c -v 2", "-c -v 3"])
def test_a_block_of_a_file_in_the_journal_is_found_there(open_options: str, tmp_path: Path) -> None:
    """The newest copy, one that had to be escaped, one that was revoked and one that was revoked and written again."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"".join(b"%d" % number * BLOCK for number in range(8)))
    image = make_volume(
        tmp_path / "image", 16 * MIB, "-t", "ext4", "-b", "1024", "-J", "size=4", tree=tree
    )
    said = debugfs(image, "blocks /file").splitlines()[-1].split()
    blocks = [int(number) for number in said]
    for name, content in (
        ("old", b"o" * BLOCK * 3),
        ("new", b"n" * BLOCK),
        ("escaped", JOURNAL_MAGIC + b"e" * (BLOCK - 4)),
    ):
        (tmp_path / name).write_bytes(content)
    debugfs(
        image,
        f"jo {open_options}",
        f"jw -b {blocks[1]},{blocks[3]},{blocks[4]} {tmp_path}/old",
        f"jw -b {blocks[1]} {tmp_path}/new",
        f"jw -b {blocks[2]} {tmp_path}/escaped",
        f"jw -r {blocks[3]},{blocks[4]}",
        f"jw -b {blocks[4]} {tmp_path}/new",
        "jc",
    )
    content = image.read_bytes()
    reader = ExtReader(BytesSource(content))
    row = next(row for row in reader.rows() if row.path == b"file")
    assert (reader.facts.state, reader.problems) == ("replayed", [])
    found = b"".join(content_pieces(row, BytesSource(content).read))
    pieces = [found[at : at + BLOCK] for at in range(0, len(found), BLOCK)]
    assert pieces[0] == b"0" * BLOCK
    assert pieces[1] == b"n" * BLOCK
    assert pieces[2] == JOURNAL_MAGIC + b"e" * (BLOCK - 4)
    assert pieces[3] == b"3" * BLOCK
    assert pieces[4] == b"n" * BLOCK
    debugfs(image, "jr", f"dump /file {tmp_path}/recovered")
    assert (tmp_path / "recovered").read_bytes() == found
    flags = [extent.flags for extent in row.extents]
    assert flags.count(ExtentFlag.JOURNAL | ExtentFlag.ESCAPED) == 1
    assert flags.count(ExtentFlag.JOURNAL) == 2


@needs_tools
@pytest.mark.parametrize("open_options", ["", "-c -v 3"])
def test_no_damage_in_a_journal_breaks_the_reader(open_options: str, tmp_path: Path) -> None:
    """With checksums, a file is what it was before a transaction or after it, or something is told."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"0" * 8 * BLOCK)
    image = make_volume(
        tmp_path / "image", 8 * MIB, "-t", "ext4", "-b", "1024", "-J", "size=1", tree=tree
    )
    blocks = debugfs(image, "blocks /file").splitlines()[-1].split()
    contents = [b"0" * 8]
    requests = []
    for number in range(1, 7):
        (tmp_path / f"{number}").write_bytes(b"%d" % number * BLOCK * 2)
        requests.append(f"jw -b {blocks[number - 1]},{blocks[number]} {tmp_path}/{number}")
        before = contents[-1]
        contents.append(before[: number - 1] + b"%d" % number * 2 + before[number + 1 :])
    debugfs(image, f"jo {open_options}", *requests, "jc")
    journal = [int(block) for block in debugfs(image, "blocks <8>").splitlines()[-1].split()]
    content = image.read_bytes()
    generator = random.Random(9)
    assert file_of(content) == (contents[-1], [])
    seen = set()
    for _ in range(150):
        target = bytearray(content)
        at = generator.choice(journal[:24]) * BLOCK + generator.randrange(BLOCK)
        if generator.random() < 0.3:
            at = at // BLOCK * BLOCK + generator.randrange(32)
        size = generator.choice((1, 1, 4, BLOCK))
        target[at : at + size] = generator.randbytes(len(target[at : at + size]))
        try:
            found, problems = file_of(bytes(target))
        except MappingError as error:
            seen.add(type(error))
            continue
        seen.add(bool(problems))
        assert problems or found in contents or not open_options
    assert seen >= {True, False, DamagedError} if open_options else False in seen


def file_of(content: bytes) -> tuple[bytes, list[str]]:
    """The first byte of each block of the file in a volume, and what is told."""
    source = BytesSource(content)
    reader = ExtReader(source)
    rows = list(reader.rows())
    for row in rows:
        for extent in row.extents:
            assert 0 <= extent.volume_byte <= len(content) - extent.byte_count
    found = next((row for row in rows if row.path == b"file"), None)
    whole = b"".join(content_pieces(found, source.read)) if found else b""
    return whole[::BLOCK], reader.problems


@needs_tools
def test_the_superblock_is_that_of_the_journal(tmp_path: Path) -> None:
    image = make_volume(
        tmp_path / "image", 16 * MIB, "-t", "ext4", "-b", "1024", "-J", "size=4", "-L", "before"
    )
    superblock = bytearray(image.read_bytes()[1024:2048])
    superblock[120:136] = b"after".ljust(16, b"\0")
    superblock[1020:1024] = (crc32c(superblock[:1020]) ^ 0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "superblock").write_bytes(superblock)
    debugfs(image, "jo", f"jw -b 1 {tmp_path}/superblock", "jc")
    assert ExtReader(BytesSource(image.read_bytes())).facts.label == "after"


# --- journals made by hand -----------------------------------------------------------------------


class Forge:
    """Writes a journal, block by block, with checksums of the third kind or none."""

    def __init__(self, *, has_sums: bool = True, incompatible: int = 0, start: int = 1) -> None:
        self.has_sums = has_sums
        self.incompatible = incompatible | 0x2 | (0x10 if has_sums else 0)
        self.start = start
        self.blocks = [bytes(BLOCK)] * RING.stop
        self.at = start
        self.seconds = 1000
        self.put_superblock()

    def put_superblock(self, **changes: int) -> None:
        fields = {
            "kind": 4,
            "block_bytes": BLOCK,
            "count": RING.stop,
            "first": RING.start,
            "sequence": 7,
            "start": self.start,
            "incompatible": self.incompatible,
            "read_only": 0,
            "compatible": 0,
            "sum_kind": 4,
        } | changes
        block = bytearray(BLOCK)
        struct.pack_into(
            ">4s11I16s",
            block,
            0,
            JOURNAL_MAGIC,
            fields["kind"],
            0,
            fields["block_bytes"],
            fields["count"],
            fields["first"],
            fields["sequence"],
            fields["start"],
            0,
            fields["compatible"],
            fields["incompatible"],
            fields["read_only"],
            UUID,
        )
        block[0x50] = fields["sum_kind"]
        block[0xFC:0x100] = (crc32c(block) ^ 0xFFFFFFFF).to_bytes(4, "big")
        self.blocks[0] = bytes(block)

    def put(self, block: bytes) -> int:
        at = self.at
        self.blocks[at] = block.ljust(BLOCK, b"\0")
        self.at = at + 1 if at + 1 < RING.stop else RING.start
        return at

    def sealed(self, block: bytes) -> bytes:
        """A descriptor or a list of revoked blocks with the checksum in its last bytes."""
        if not self.has_sums:
            return block
        block = block.ljust(BLOCK, b"\0")
        value = crc32c(block, start=SEED) ^ 0xFFFFFFFF
        return block[:-4] + value.to_bytes(4, "big")

    def header(self, kind: int, sequence: int) -> bytes:
        return struct.pack(">4sII", JOURNAL_MAGIC, kind, sequence)

    def change(self, sequence: int, *homes: int, fill: bytes = b"n") -> list[int]:
        """A descriptor, and the blocks that it is for."""
        copies = [fill * BLOCK for _ in homes]
        tags = b""
        for index, (home, copy) in enumerate(zip(homes, copies, strict=True)):
            flags = 2 | (8 if index == len(homes) - 1 else 0)
            value = crc32c(sequence.to_bytes(4, "big") + copy, start=SEED) ^ 0xFFFFFFFF
            low, high = home & 0xFFFFFFFF, home >> 32
            if self.has_sums:
                tags += struct.pack(">IIII", low, flags, high, value)
            else:
                tags += struct.pack(">IHHI", low, 0, flags, high)
        self.put(self.sealed(self.header(1, sequence) + tags))
        return [self.put(copy) for copy in copies]

    def revoke(self, sequence: int, *homes: int) -> int:
        entries = b"".join(home.to_bytes(8, "big") for home in homes)
        head = self.header(5, sequence) + (16 + len(entries)).to_bytes(4, "big")
        return self.put(self.sealed(head + entries))

    def commit(self, sequence: int, seconds: int = 0) -> int:
        self.seconds += 1
        block = bytearray(self.header(2, sequence).ljust(BLOCK, b"\0"))
        block[48:56] = (seconds or self.seconds).to_bytes(8, "big")
        if self.has_sums:
            value = crc32c(block, start=SEED) ^ 0xFFFFFFFF
            block[16:20] = value.to_bytes(4, "big")
        return self.put(bytes(block))

    def flip(self, at: int, byte: int = 100) -> None:
        """Damage one block."""
        block = bytearray(self.blocks[at])
        block[byte] ^= 1
        self.blocks[at] = bytes(block)

    def replay(self) -> Replay:
        content = bytes(HOME * BLOCK) + b"".join(self.blocks)
        runs = [Run(0, HOME, 5, False), Run(5, HOME + 5, len(self.blocks) - 5, False)]
        return Replay(JournalFile(BytesSource(content), BLOCK, runs), HOME)


def places(replay: Replay) -> dict[int, int]:
    """Which block of the journal wins for which block of the volume."""
    return {block: (copy >> 1) // BLOCK - HOME for block, copy in replay.run().items()}


@pytest.mark.parametrize("has_sums", [True, False])
def test_the_newest_committed_copy_wins(has_sums: bool) -> None:
    forge = Forge(has_sums=has_sums)
    forge.change(7, 11, 12)
    forge.commit(7)
    newest = forge.change(8, 12, 13)
    forge.commit(8)
    forge.change(9, 11, 12, 13, 14)
    replay = forge.replay()
    assert places(replay) == {11: 2, 12: newest[0], 13: newest[1]}
    assert (replay.transactions, replay.problems) == (2, [])


def test_a_revoke_cancels_copies_of_its_transaction_and_before() -> None:
    forge = Forge()
    forge.change(7, 11, 12, 13)
    forge.commit(7)
    forge.change(8, 12)
    forge.revoke(8, 11, 12)
    forge.commit(8)
    later = forge.change(9, 11)
    forge.commit(9)
    replay = forge.replay()
    assert places(replay) == {11: later[0], 13: 4}
    assert replay.problems == []


def test_the_log_goes_on_at_the_beginning_of_the_ring() -> None:
    forge = Forge(start=RING.stop - 2)
    copies = forge.change(7, 11, 12, 13)
    forge.commit(7)
    assert copies == [RING.stop - 1, 1, 2]
    assert places(forge.replay()) == dict(zip((11, 12, 13), copies, strict=True))


def test_what_lies_behind_the_log_from_before_is_not_replayed() -> None:
    forge = Forge()
    kept = forge.change(7, 11)
    forge.commit(7)
    forge.change(6, 12)
    forge.commit(6)
    replay = forge.replay()
    assert places(replay) == {11: kept[0]}
    assert replay.problems == []


def test_the_oldest_checksum_is_one_of_the_whole_transaction() -> None:
    forge = Forge(has_sums=False)
    forge.put_superblock(compatible=1)
    copies = forge.change(7, 11, 12)
    value = 0xFFFFFFFF
    for at in range(copies[0] - 1, copies[-1] + 1):
        value = crc32_big(forge.blocks[at], value)
    commit = forge.commit(7)
    block = bytearray(forge.blocks[commit])
    block[12:20] = struct.pack(">BBxxI", 1, 4, value)
    forge.blocks[commit] = bytes(block)
    assert list(places(forge.replay())) == [11, 12]
    forge.flip(copies[1])
    replay = forge.replay()
    assert places(replay) == {}
    assert replay.problems == ["transaction 7 of the journal is damaged"]


def test_nothing_is_replayed_from_an_empty_log() -> None:
    forge = Forge()
    forge.change(7, 11)
    forge.commit(7)
    forge.put_superblock(start=0)
    replay = forge.replay()
    assert (replay.run(), replay.transactions, replay.problems) == ({}, 0, [])


def test_a_committed_transaction_with_a_wrong_checksum_is_damage_and_ends_the_log() -> None:
    for damage in ("commit", "descriptor", "revoke"):
        forge = Forge()
        kept = forge.change(7, 11)
        forge.commit(7)
        descriptor = forge.at
        forge.change(8, 12)
        revoke = forge.revoke(8, 11)
        commit = forge.commit(8)
        forge.flip({"commit": commit, "descriptor": descriptor, "revoke": revoke}[damage], 30)
        replay = forge.replay()
        assert places(replay) == {11: kept[0]}, damage
        assert replay.problems == ["transaction 8 of the journal is damaged"], damage


def test_what_an_earlier_life_of_the_journal_has_left_is_not_damage() -> None:
    forge = Forge()
    forge.change(7, 11)
    forge.commit(7)
    forge.change(8, 12)
    stale = forge.commit(8, seconds=5)
    forge.flip(stale, 30)
    replay = forge.replay()
    assert (list(places(replay)), replay.problems) == ([11], [])


def test_an_asynchronous_commit_that_was_torn_is_the_end_of_the_log() -> None:
    forge = Forge(incompatible=0x4)
    forge.change(7, 11)
    forge.commit(7)
    forge.change(8, 12)
    torn = forge.commit(8)
    forge.flip(torn, 30)
    replay = forge.replay()
    assert (list(places(replay)), replay.problems) == ([11], [])
    forge.change(9, 13)
    replay = forge.replay()
    assert list(places(replay)) == [11]
    assert replay.problems == ["transaction 8 of the journal is damaged"]


def test_a_copy_that_fails_its_checksum_is_left_out_and_told() -> None:
    forge = Forge()
    copies = forge.change(7, 11, 12)
    forge.commit(7)
    forge.flip(copies[0])
    replay = forge.replay()
    assert list(places(replay)) == [12]
    assert replay.problems == ["1 blocks in the journal fail their checksums, the first block 11"]


@pytest.mark.parametrize("byte", [0, 7, 11])
def test_a_log_that_goes_on_behind_a_damaged_header_is_damaged(byte: int) -> None:
    """Its magic, its kind, or its sequence: without more it looks like the end of the log."""
    forge = Forge()
    forge.change(7, 11)
    forge.commit(7)
    damaged = forge.at
    forge.change(8, 12)
    forge.commit(8)
    forge.change(9, 13)
    forge.commit(9)
    forge.flip(damaged, byte)
    replay = forge.replay()
    assert list(places(replay)) == [11]
    assert replay.problems == ["transaction 8 of the journal is damaged"]


def test_copies_of_blocks_that_the_volume_has_not_are_told() -> None:
    forge = Forge()
    forge.change(7, 11, HOME, 1 << 40)
    forge.commit(7)
    replay = forge.replay()
    assert list(places(replay)) == [11]
    assert replay.problems == ["the journal changes 2 blocks outside of the volume"]


def test_a_transaction_without_end_ends_with_the_ring() -> None:
    forge = Forge(has_sums=False)
    for at in RING:
        forge.blocks[at] = forge.header(5, 7).ljust(BLOCK, b"\0")
    replay = forge.replay()
    assert replay.run() == {}
    forge.blocks[RING.start] = forge.header(1, 7) + struct.pack(">IHHI", 11, 0, 2, 0) * 84
    replay = forge.replay()
    assert replay.run() == {}
    assert replay.problems == ["the journal has a transaction that is longer than its log"]


def test_more_copies_than_can_be_remembered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_node.mapping.ext_journal.COPIES_MAX", 2)
    assert COPIES_MAX > 2
    forge = Forge()
    forge.change(7, 11, 12, 13)
    forge.commit(7)
    with pytest.raises(UnsupportedError, match="more than 2 blocks"):
        forge.replay().run()


def test_a_journal_with_a_hole_has_no_blocks_behind_it() -> None:
    content = bytes(64 * KIB)
    file = JournalFile(BytesSource(content), BLOCK, [Run(0, 3, 4, False), Run(5, 9, 9, False)])
    assert file.length == 4
    with pytest.raises(DamagedError, match="no blocks"):
        Replay(JournalFile(BytesSource(content), BLOCK, []), 10)
