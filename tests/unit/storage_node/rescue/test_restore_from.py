"""Volumes and files out of cartridges alone: chains, one file, damage, and targets that are never half written."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backplane.errors import (
    ExitCode,
    MediaNeededError,
    MediumError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from backplane.file_map.header import pack_header
from backplane.file_map.model import FileExtent, Kind
from backplane.tape_format import RecordType
from backplane.testing.file_rows import make_file, make_row
from backplane.testing.packed_map import PackedMap
from backplane.testing.tape_content import VOLUME
from storage_node.__main__ import main
from storage_node.rescue.restore_from import (
    Reassembly,
    find_backup,
    list_backups,
    parts_by_backup,
    scratch_file,
    whole_or_nothing,
)
from storage_node.rescue.shelf import shelved
from storage_node.tape.library import TapeLibrary
from tests.site.cartridges import BLOCK, RECORD, Writer, image_with

FULL, CHILD, OTHER = "f" * 32, "c" * 32, "0" * 32
FIRST, SECOND = ((0, 3), (10, 30), (5, 1)), ((100, 9), (2047, 1))
CHANGED, ZEROS = ((11, 2), (300, 17)), ((0, 2), (2000, 5))


@pytest.fixture
def library(tmp_path: Path) -> Iterator[TapeLibrary]:
    with TapeLibrary(tmp_path / "library") as made:
        yield made


class Set:
    """A full backup on two cartridges and an incremental on a third."""

    def __init__(self, library: TapeLibrary) -> None:
        self.image = image_with(FIRST, SECOND, seed=1)
        later = bytearray(image_with(CHANGED, seed=4, before=self.image))
        for lba, count in ZEROS:
            later[lba * BLOCK : (lba + count) * BLOCK] = bytes(count * BLOCK)
        self.later = bytes(later)
        one, two, three = (Writer(library, f"TAPE0{n}L8", str(n) * 32) for n in (1, 2, 3))
        one.part(OTHER, image_with(((0, 20),), seed=2), ((0, 20),))
        one.part(FULL, self.image, FIRST, is_last=False, backup=7)
        start = sum(count for _, count in FIRST) * BLOCK
        second = {"part": 2, "stream_start": start, "backup": 7}
        other = (OTHER, "5" * 32, "TAPE05L8")
        needs = ((FULL, "1" * 32, "TAPE01L8"), (FULL, "2" * 32, "TAPE02L8"), other)
        two.part(FULL, self.image, SECOND, **second, in_header={"needs": needs})
        facts = {"level": "incremental", "parent_uuid": FULL, "zero_extents": ZEROS, "backup": 8}
        three.part(CHILD, self.later, CHANGED, **facts, in_header={"needs": needs})
        self.folders = [one.folder, two.folder, three.folder]


@pytest.fixture
def written(library: TapeLibrary) -> Set:
    return Set(library)


@contextmanager
def reassembly(
    folders: Sequence[Path], backup: str, tmp_path: Path, *, keeps_going: bool = False
) -> Iterator[tuple[Reassembly, list[str]]]:
    told: list[str] = []
    with shelved(folders, scratch=tmp_path) as shelf:
        yield Reassembly(shelf, backup, keeps_going=keeps_going, tell=told.append), told


def restored(folders: Sequence[Path], backup: str, tmp_path: Path) -> bytes:
    target = tmp_path / f"image-{backup}"
    with (
        reassembly(folders, backup, tmp_path) as (made, _),
        whole_or_nothing(target, is_forced=False) as descriptor,
    ):
        made.write(descriptor)
    return target.read_bytes()


def damage(folder: Path, content: bytes) -> None:
    """Flip a bit of the record that begins like this."""
    data = folder / "data"
    raw = bytearray(data.read_bytes())
    at = raw.find(content[:64])
    assert at > 0
    raw[at] ^= 1
    data.write_bytes(raw)


# --- volumes -------------------------------------------------------------------------------------


def test_a_chain_is_laid_over_each_other_from_cartridges_in_any_order(
    written: Set, tmp_path: Path
) -> None:
    assert restored(written.folders, "7", tmp_path) == written.image
    assert restored(written.folders[::-1], "8", tmp_path) == written.later


def test_a_restored_volume_is_sparse(written: Set, tmp_path: Path) -> None:
    restored(written.folders, "7", tmp_path)
    facts = (tmp_path / "image-7").stat()
    assert facts.st_size == VOLUME.blocks * BLOCK
    assert facts.st_blocks * 512 < facts.st_size // 2


def test_what_is_missing_is_told_before_anything_is_written(written: Set, tmp_path: Path) -> None:
    one, two, three = written.folders
    for folders, name, told in (
        ([one], "7", "goes on behind part 1, on another cartridge"),
        ([two], "7", f"part 1 is not .*: bring cartridge TAPE01L8 .UUID {'1' * 32}. .--keep"),
        (
            [three],
            "8",
            r"backup f+, on which backup 8 stands, .*: bring cartridge TAPE01L8 .*, TAPE02L8 \(UUID 2+\) \(--keep",
        ),
        ([three, two], "8", r"backup 7 is not complete: part 1 .* TAPE01L8 \(UUID 1+\) "),
        ([one, three], "8", "backup 7 is not complete: it goes on behind part 1"),
    ):
        with (
            pytest.raises(MediaNeededError, match=told) as caught,
            reassembly(folders, name, tmp_path),
        ):
            pass
        assert caught.value.exit_code == ExitCode.MEDIA_NEEDED


def test_with_keep_going_a_missing_cartridge_costs_what_was_on_it(
    written: Set, tmp_path: Path
) -> None:
    _, _, three = written.folders
    with (
        reassembly([three], "8", tmp_path, keeps_going=True) as (made, _),
        scratch_file(tmp_path) as descriptor,
    ):
        made.write(descriptor)
        found = os.pread(descriptor, len(written.later), 0)
    assert found == image_with(CHANGED, seed=4)
    assert len(made.losses.reasons) == 1
    assert "TAPE01L8" in made.losses.reasons[0]


def test_a_cartridge_from_before_headers_named_others_is_named_by_its_uuid(
    library: TapeLibrary, tmp_path: Path
) -> None:
    writer = Writer(library, "TAPE09L8", "9" * 32)
    image, told = image_with(FIRST, seed=1), {"previous_cartridge": "8" * 32}
    writer.part(FULL, image, FIRST, part=2, backup=7, in_header=told)
    with shelved([writer.folder], scratch=tmp_path) as shelf:
        lines = list_backups(shelf)
    assert lines[1].endswith(
        f"part 1 is not on these cartridges: bring cartridge the one with UUID {'8' * 32}"
    )


def test_copies_alone_are_enough(library: TapeLibrary, tmp_path: Path) -> None:
    """The originals are gone: their copies name them, and what stands on them does."""
    made = Set(library)
    copies = Writer(library, "COPY01L8", "a" * 32)
    whole = (*FIRST, *SECOND)
    copies.part("e" * 32, made.image, whole, backup=9, copy_of_uuid=FULL)
    facts = {"level": "incremental", "parent_uuid": FULL, "zero_extents": ZEROS, "backup": 10}
    copies.part("b" * 32, made.later, CHANGED, **facts, copy_of_uuid=CHILD)
    assert restored([copies.folder], "10", tmp_path) == made.later
    assert restored([copies.folder, made.folders[2]], "8", tmp_path) == made.later
    # Also rather than an original of which a cartridge is missing.
    (tmp_path / "image-8").unlink()
    assert restored([*made.folders[1:], copies.folder], "8", tmp_path) == made.later
    assert restored([made.folders[1], copies.folder], "7", tmp_path) == made.image


def in_two_lanes(library: TapeLibrary) -> tuple[bytes, list[Path]]:
    """A backup over two drives at once: the last part of each lane says that it is the last."""
    image = image_with(FIRST, SECOND, seed=5)
    one, two = Writer(library, "LANE01L8", "a" * 32), Writer(library, "LANE02L8", "b" * 32)
    one.part(FULL, image, FIRST, lanes=2)
    start = sum(count for _, count in FIRST) * BLOCK
    two.part(FULL, image, SECOND, part=2, lane=1, lanes=2, stream_start=start)
    return image, [one.folder, two.folder]


def test_a_backup_in_lanes_needs_the_cartridges_of_all_of_them(
    library: TapeLibrary, tmp_path: Path
) -> None:
    image, folders = in_two_lanes(library)
    assert restored(folders, FULL, tmp_path) == image
    for folder in folders:
        with pytest.raises(MediaNeededError, match="is not complete"):
            restored([folder], FULL, tmp_path)


# --- damaged trailers and headers ------------------------------------------------------------------


def spoil(folder: Path, kind: RecordType, *, number: int = -1) -> None:
    """Flip a bit in the JSON of a part header or trailer: of the last one, or of another."""
    data = folder / "data"
    raw = bytearray(data.read_bytes())
    places = [
        each.start()
        for each in re.finditer(rb"SDVMETA\0\0" + bytes([kind]), raw)
        if raw[each.start() + 44 : each.start() + 46] == b"\0\1"  # The first record of each.
    ]
    raw[places[number] + 70] ^= 1
    data.write_bytes(raw)


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["restore-from", *map(str, arguments)])


def test_a_part_whose_trailer_is_damaged_comes_back_by_its_header(
    written: Set, tmp_path: Path
) -> None:
    """Nothing else on the cartridge tells of it: it is restored, and what nobody vouches for is said."""
    spoil(written.folders[1], RecordType.PART_TRAILER)
    listed = command(written.folders[1], "--list")
    assert listed.exit_code == 0
    assert "cartridge TAPE02L8: objects 4 to " in listed.stderr
    assert "1 parts were found there from header to header" in listed.stderr
    assert "the trailer of part 2 of backup 7 is damaged: its data are taken" in listed.stderr
    assert f"backup 7 ({FULL}) of home" in listed.stdout
    assert "    the trailer of part 2 is damaged\n" in listed.stdout
    done = command(*written.folders, "--backup", "8", "--out", tmp_path / "image")
    assert done.exit_code == ExitCode.PARTIAL
    assert "not certain: cartridge TAPE02L8: part 2 of backup 7: the trailer" in done.stderr
    assert "nothing but the drive vouches for its records" in done.stderr
    assert "missing:" not in done.stderr
    assert (tmp_path / "image").read_bytes() == written.later


def test_a_damaged_trailer_is_made_up_for_by_the_directory_of_a_later_one(
    written: Set, tmp_path: Path
) -> None:
    """The header, the directory and the drive's checksums agree: nothing is uncertain."""
    spoil(written.folders[0], RecordType.PART_TRAILER, number=0)
    done = command(written.folders[0], "--backup", OTHER, "--out", tmp_path / "image")
    assert (done.exit_code, "not certain" in done.stderr) == (0, False)
    assert (tmp_path / "image").read_bytes() == image_with(((0, 20),), seed=2)


def test_records_that_are_not_those_of_the_directory_are_uncertain(
    library: TapeLibrary, tmp_path: Path
) -> None:
    one = Writer(library, "TAPE01L8", "1" * 32)
    image = image_with(FIRST, seed=1)
    one.part(FULL, image, FIRST, backup=7)
    assert one.trailer is not None
    entry = replace(one.trailer.directory[0], root="0" * 64)
    one.trailer = replace(one.trailer, directory=(entry,))
    one.part(OTHER, image_with(((0, 20),), seed=2), ((0, 20),))
    spoil(one.folder, RecordType.PART_TRAILER, number=0)
    done = command(one.folder, "--backup", "7", "--out", tmp_path / "image")
    assert done.exit_code == ExitCode.PARTIAL
    assert "its records are not those that the directory lists" in done.stderr
    assert (tmp_path / "image").read_bytes() == image


def test_a_part_without_header_and_trailer_is_lost_and_the_rest_is_not(
    written: Set, tmp_path: Path
) -> None:
    one, two, three = written.folders
    spoil(two, RecordType.PART_TRAILER)
    spoil(two, RecordType.PART_HEADER)
    listed = command(two, "--list")
    assert listed.stdout == "no backup is on these cartridges\n"
    assert "0 parts were found there from header to header" in listed.stderr
    # Of a part that a directory lists it is known what is lost.
    spoil(one, RecordType.PART_TRAILER, number=0)
    spoil(one, RecordType.PART_HEADER, number=0)
    out = tmp_path / "image"
    done = command(one, three, "--backup", OTHER, "--out", out)
    assert done.exit_code == ExitCode.DAMAGED
    assert "part 1 of backup 1: neither its trailer can be read" in done.stderr
    assert not out.exists()
    assert command(one, "--backup", "7", "--out", out, "--keep-going").exit_code == 3


def test_a_blank_cartridge_is_refused_as_damaged_is(library: TapeLibrary) -> None:
    library.add("BLANK1L8", capacity_bytes=1 << 20, created="2026-01-11T10:43:48Z")
    done = command(library.folder / "BLANK1L8", "--list")
    assert done.exit_code == ExitCode.DAMAGED
    assert "BLANK1L8 has no label of ours: blank" in done.stderr


def test_a_part_of_a_chain_that_cannot_be_read_is_left_out_only_with_keep_going(
    library: TapeLibrary, tmp_path: Path
) -> None:
    image = image_with(FIRST, seed=1)
    later = image_with(CHANGED, seed=4, before=image)
    one = Writer(library, "TAPE01L8", "1" * 32)
    one.part(FULL, image, FIRST, backup=7)
    facts = {"level": "incremental", "parent_uuid": FULL, "backup": 8}
    one.part(CHILD, later, CHANGED, **facts)
    one.part(OTHER, image_with(((0, 20),), seed=2), ((0, 20),), backup=9)
    spoil(one.folder, RecordType.PART_TRAILER, number=0)
    spoil(one.folder, RecordType.PART_HEADER, number=0)
    out = tmp_path / "image"
    done = command(one.folder, "--backup", "8", "--out", out)
    assert (done.exit_code, out.exists()) == (ExitCode.DAMAGED, False)
    done = command(one.folder, "--backup", "8", "--out", out, "--keep-going")
    assert done.exit_code == ExitCode.PARTIAL
    assert "missing: cartridge TAPE01L8: part 1 of backup 7: neither" in done.stderr
    assert out.read_bytes() == image_with(CHANGED, seed=4)


def test_an_undamaged_copy_is_taken_rather_than_an_original_with_a_damaged_trailer(
    written: Set, library: TapeLibrary, tmp_path: Path
) -> None:
    copies = Writer(library, "COPY01L8", "a" * 32)
    copies.part("e" * 32, written.image, (*FIRST, *SECOND), backup=9, copy_of_uuid=FULL)
    spoil(written.folders[1], RecordType.PART_TRAILER)
    folders = [*written.folders, copies.folder]
    done = command(*folders, "--backup", "8", "--out", tmp_path / "image")
    assert (done.exit_code, "not certain" in done.stderr) == (0, False)
    assert (tmp_path / "image").read_bytes() == written.later


def test_what_was_never_committed_is_told_and_left_out(library: TapeLibrary) -> None:
    one = Writer(library, "TAPE01L8", "1" * 32)
    one.part(OTHER, image_with(((0, 20),), seed=2), ((0, 20),))
    assert command(one.folder, "--list").stderr == ""
    one.part(FULL, image_with(FIRST, seed=3), FIRST, is_cut=True, backup=7)
    listed = command(one.folder, "--list")
    assert "0 parts were found there" in listed.stderr
    assert "part 1 of backup 7 (volume home) was never committed and is left" in listed.stderr
    assert FULL not in listed.stdout


def test_backups_are_named_by_number_or_uuid(written: Set, tmp_path: Path) -> None:
    with shelved(written.folders, scratch=tmp_path) as shelf:
        found = parts_by_backup(shelf)
        assert find_backup("7", found) == FULL
        assert find_backup("CCC", found) == CHILD
        with pytest.raises(NotFoundError, match="no backup 99"):
            find_backup("99", found)
        with pytest.raises(NotFoundError):
            find_backup("", found)
        double = found | {FULL[:-1] + "0": found[FULL]}
        with pytest.raises(UsageError, match="more than one backup"):
            find_backup("ff", double)
        lines = list_backups(shelf[1:])
    assert lines[0].startswith(f"backup 7 ({FULL}) of home, ")
    assert lines[1].startswith("    part 1 is not on these cartridges: bring cartridge TAPE01L8")
    assert f"incremental on {FULL}" in lines[2]
    assert lines[2].endswith("on TAPE03L8")


def test_damage_stops_it_and_with_keep_going_is_zeros_and_told(
    written: Set, tmp_path: Path
) -> None:
    damage(written.folders[0], written.image[:BLOCK])
    with (
        pytest.raises(MediumError, match=r"object .* of the volume are lost"),
        reassembly(written.folders, "7", tmp_path) as (made, _),
        scratch_file(tmp_path) as descriptor,
    ):
        made.write(descriptor)
    with (
        reassembly(written.folders, "7", tmp_path, keeps_going=True) as (made, _),
        scratch_file(tmp_path) as descriptor,
    ):
        made.write(descriptor)
        found = os.pread(descriptor, len(written.image), 0)
    # The first record held blocks 0 to 2 and 10 to 14.
    lost = bytearray(written.image)
    for lba, count in ((0, 3), (10, 5)):
        lost[lba * BLOCK : (lba + count) * BLOCK] = bytes(count * BLOCK)
    assert found == bytes(lost)
    assert made.losses.runs == [(0, 3 * BLOCK), (10 * BLOCK, 15 * BLOCK)]
    assert "TAPE01L8: object" in made.losses.reasons[0]


def test_damage_in_a_newer_backup_never_leaves_what_an_older_one_says(
    written: Set, tmp_path: Path
) -> None:
    damage(written.folders[2], written.later[11 * BLOCK : 12 * BLOCK])
    with (
        reassembly(written.folders, "8", tmp_path, keeps_going=True) as (made, _),
        scratch_file(tmp_path) as descriptor,
    ):
        made.write(descriptor)
        assert os.pread(descriptor, 2 * BLOCK, 11 * BLOCK) == bytes(2 * BLOCK)
    assert (11 * BLOCK, 13 * BLOCK) in made.losses.runs


# --- one file ------------------------------------------------------------------------------------

FILES = ((0, 8), (16, 8), (500, 40))
"""Blocks that files own; the volume has others in use."""


@pytest.fixture
def mapped(library: TapeLibrary) -> tuple[Path, bytes]:
    """A backup with a map: a file in two pieces with a hole and a tail, one compressed, a folder."""

    image = bytearray(image_with(FILES, seed=9))
    raw = b"the same words, " * 4096
    packed = zlib.compress(raw)
    at = 500 * BLOCK
    image[at : at + len(packed)] = packed
    stored = -(-len(packed) // BLOCK) * BLOCK
    rows = [
        make_row(b"", Kind.DIRECTORY),
        make_row(b"dir", Kind.DIRECTORY),
        replace_size(
            make_file(
                b"dir/two pieces",
                FileExtent(0, 16 * BLOCK, 4 * BLOCK),
                FileExtent(8 * BLOCK, 2 * BLOCK, 2 * BLOCK),
            ),
            10 * BLOCK - 100,
        ),
        make_file(b"packed", FileExtent(0, at, len(raw), 4, stored, len(raw), 0, "zlib")),
        replace_size(make_file(b"vast", FileExtent(0, 0, BLOCK)), 1 << 63),
    ]
    runs = [(lba * BLOCK, (lba + count) * BLOCK) for lba, count in FILES]
    one = Writer(library, "TAPE01L8", "1" * 32)
    made = PackedMap(rows, runs)
    one.part(FULL, bytes(image), FILES, map_items=[pack_header(made.header), *made.pages])
    return one.folder, bytes(image)


def replace_size(row: Any, size: int) -> Any:
    return row._replace(size=size)


def one_file(folder: Path, path: str, tmp_path: Path) -> tuple[bytes, list[str]]:
    target = tmp_path / "file"
    target.unlink(missing_ok=True)
    with (
        reassembly([folder], "f", tmp_path) as (made, told),
        whole_or_nothing(target, is_forced=False) as descriptor,
        scratch_file(tmp_path) as volume,
    ):
        made.write_file(descriptor, made.find_file(path), volume)
    return target.read_bytes(), told


def test_one_file_is_put_together_and_only_its_records_are_read(
    mapped: tuple[Path, bytes], tmp_path: Path
) -> None:
    folder, image = mapped
    content, told = one_file(folder, "/dir/two pieces", tmp_path)
    expected = image[16 * BLOCK : 20 * BLOCK] + bytes(4 * BLOCK) + image[2 * BLOCK : 4 * BLOCK]
    assert content == expected[:-100]
    records = -(-sum(count for _, count in FILES) * BLOCK // RECORD)
    assert told == [f"cartridge TAPE01L8: part 1 of backup 1, 2 of {records} records read"]


def test_a_compressed_file_is_decompressed(mapped: tuple[Path, bytes], tmp_path: Path) -> None:
    assert one_file(mapped[0], "packed", tmp_path)[0] == b"the same words, " * 4096


def test_what_is_no_file_is_refused_by_name(
    mapped: tuple[Path, bytes], written_alone: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no file nowhere is in backup 1"):
        one_file(mapped[0], "nowhere", tmp_path)
    with pytest.raises(RefusedError, match="dir is a directory"):
        one_file(mapped[0], "dir", tmp_path)
    with pytest.raises(RefusedError, match=f"vast cannot come back as a file: .* has {1 << 63}"):
        one_file(mapped[0], "vast", tmp_path)
    with pytest.raises(NotFoundError, match="no map of its files"):
        one_file(written_alone, "dir", tmp_path)
    assert not (tmp_path / "file").exists()


@pytest.fixture
def written_alone(library: TapeLibrary) -> Path:
    made = Writer(library, "TAPE09L8", "9" * 32)
    made.part(FULL, image_with(FIRST, seed=1), FIRST)
    return made.folder


# --- targets -------------------------------------------------------------------------------------


def test_a_target_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "image"

    def torn() -> None:
        with whole_or_nothing(target, is_forced=False) as descriptor:
            os.write(descriptor, b"half")
            raise MediumError("torn")

    with pytest.raises(MediumError):
        torn()
    assert list(tmp_path.iterdir()) == []
    with whole_or_nothing(target, is_forced=False) as descriptor:
        os.write(descriptor, b"first")
    with (
        pytest.raises(RefusedError, match="is there already"),
        whole_or_nothing(target, is_forced=False),
    ):
        pass
    with whole_or_nothing(target, is_forced=True) as descriptor:
        assert target.read_bytes() == b"first"
        os.write(descriptor, b"second")
    assert target.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [target]


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["restore-from", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_restores_and_ends_with_its_exit_codes(written: Set, tmp_path: Path) -> None:
    target = tmp_path / "out.img"
    assert run(*written.folders, "--list")[0] == 0
    assert run(*written.folders, "--backup", "8")[0] == 2
    assert run(*written.folders, "--backup", "8", "--out", target)[0] == 0
    assert target.read_bytes() == written.later
    code, told = run(*written.folders, "--backup", "8", "--out", target)
    assert (code, "--force replaces it" in told) == (5, True)
    assert run(*written.folders, "--backup", "99", "--out", target, "--force")[0] == 4
    damage(written.folders[0], written.image[:BLOCK])
    code, told = run(*written.folders, "--backup", "8", "--out", target, "--force")
    assert (code, "--keep-going" in told) == (8, True)
    assert target.read_bytes() == written.later, "what was there stays"
    code, told = run(*written.folders, "--backup", "8", "--out", target, "--force", "--keep-going")
    assert (code, "missing: cartridge TAPE01L8" in told) == (3, True)


def test_the_parameters_of_a_selection_are_kept_to(library: TapeLibrary, tmp_path: Path) -> None:
    made = Writer(library, "TAPE01L8", "1" * 32)
    rows = [make_row(b"", Kind.DIRECTORY), make_file(b"a", FileExtent(0, 0, BLOCK))]
    packed = PackedMap(rows, [(0, BLOCK)])
    made.part(
        FULL,
        image_with(((0, 1),), seed=1),
        ((0, 1),),
        map_items=[pack_header(packed.header), *packed.pages],
        selection=json.dumps({"paths": ["b"], "excludes": []}),
    )
    with pytest.raises(RefusedError, match="a is not among the files that were chosen"):
        one_file(made.folder, "a", tmp_path)
