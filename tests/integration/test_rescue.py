"""`deploy/rescue/read-cartridge.sh`: volumes come back with nothing of ours but the cartridges and a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.tape_format import encode_part_trailer
from backplane.testing.cluster import LocalCluster
from backplane.testing.tape_content import MOMENT
from storage_node.tape.library import TapeLibrary
from tests.site.cartridges import BLOCK, RECORD, Writer, image_with

SCRIPT = Path(__file__).parents[2] / "deploy" / "rescue" / "read-cartridge.sh"
LINES_MAX = 200
TOOLS = ("sh", "dd", "od", "mktemp", "rm", "zstd")
FULL, CHILD, OTHER = "f" * 32, "c" * 32, "0" * 32
FIRST, SECOND = ((0, 3), (10, 30), (5, 1)), ((100, 9), (2047, 1))
"""Extents of a full backup on two cartridges: they cross records, and the last ones are padded."""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program with nothing on its path but what it says it needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)

    def made(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "sh"), str(SCRIPT), *map(str, arguments)],
            env={"PATH": str(folder), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return made


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def library(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TapeLibrary]:
    if request.param and not shutil.which("zstd"):
        pytest.skip("no zstd here")
    with TapeLibrary(tmp_path / "library", is_compressing=request.param) as made:
        yield made


@pytest.fixture
def written(library: TapeLibrary) -> tuple[bytes, list[Path]]:
    """A full backup on two cartridges; before it another backup, and a part that was interrupted."""
    image = image_with(FIRST, SECOND, seed=1)
    # One record that a drive compresses.
    image = image[: 10 * BLOCK] + b"the same, again " * (20 * BLOCK // 16) + image[30 * BLOCK :]
    one, two = Writer(library, "TAPE01L8", "1" * 32), Writer(library, "TAPE02L8", "2" * 32)
    one.part(OTHER, image_with(((0, 20),), seed=2), ((0, 20),))
    one.part(FULL, image_with(FIRST, seed=3), FIRST, is_cut=True)
    one.part(FULL, image, FIRST, is_last=False)
    start = sum(count for _, count in FIRST) * BLOCK
    two.part(FULL, image, SECOND, part=2, stream_start=start)
    return image, [one.folder, two.folder]


def in_two_lanes(library: TapeLibrary) -> tuple[bytes, tuple[Writer, Writer]]:
    """A backup over two drives at once."""
    image = image_with(FIRST, SECOND, seed=6)
    one, two = Writer(library, "LANE01L8", "a" * 32), Writer(library, "LANE02L8", "b" * 32)
    one.part(FULL, image, FIRST, lanes=2)
    start = sum(count for _, count in FIRST) * BLOCK
    two.part(FULL, image, SECOND, part=2, lane=1, lanes=2, stream_start=start)
    return image, (one, two)


def test_it_stays_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < LINES_MAX


def test_it_lists_what_is_committed(run: Any, written: Any) -> None:
    done = run("list", *written[1])
    assert (done.returncode, done.stderr) == (0, "")
    one, two = (str(folder) for folder in written[1])
    assert done.stdout.splitlines() == [
        one,
        f"  {OTHER} part 1 of home, full, {MOMENT}",
        f"  {FULL} part 1 of home, full, {MOMENT}",
        two,
        f"  {FULL} part 2 of home, full, {MOMENT}",
    ]


def test_a_backup_on_two_cartridges_comes_back_byte_exact(
    run: Any, written: Any, tmp_path: Path
) -> None:
    image, cartridges = written
    target = tmp_path / "image"
    done = run("restore", FULL, target, *cartridges)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}: backup {FULL}, 2 part(s)\n"
    assert target.read_bytes() == image
    assert not list(tmp_path.glob("tmp.*")), "nothing is left behind"


def test_an_incremental_is_laid_over_its_parent(
    run: Any, written: Any, library: TapeLibrary, tmp_path: Path
) -> None:
    image, cartridges = written
    changed = ((11, 2), (300, 17))
    zeros = ((0, 2), (2000, 5))
    later = bytearray(image_with(changed, seed=4, before=image))
    for lba, count in zeros:
        later[lba * BLOCK : (lba + count) * BLOCK] = bytes(count * BLOCK)
    three = Writer(library, "TAPE03L8", "3" * 32)
    facts = {"level": "incremental", "parent_uuid": FULL, "zero_extents": zeros}
    three.part(CHILD, bytes(later), changed, **facts)
    assert f"{CHILD} part 1 of home, incremental on {FULL}" in run("list", three.folder).stdout
    target = tmp_path / "image"
    alone = run("restore", CHILD, target, three.folder)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert f"restore the parent {FULL} into it first" in alone.stderr
    assert run("restore", FULL, target, *cartridges).returncode == 0
    assert run("restore", CHILD, target, three.folder).returncode == 0
    assert target.read_bytes() == bytes(later)


def test_a_backup_over_two_drives_needs_the_cartridges_of_both(
    run: Any, library: TapeLibrary, tmp_path: Path
) -> None:
    image, (one, two) = in_two_lanes(library)
    done = run("restore", FULL, tmp_path / "image", two.folder, one.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "image").read_bytes() == image
    # The only part there is says that it is the last, and its number is 1: only `lanes` tells that there are more.
    for number, each in enumerate((one, two)):
        done = run("restore", FULL, tmp_path / f"half-{number}", each.folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is not complete: 1 part(s)" in done.stderr


def test_a_trailer_without_its_filemark_commits_nothing(run: Any, library: TapeLibrary) -> None:
    one = Writer(library, "TAPE01L8", "1" * 32)
    one.part(FULL, image_with(FIRST, seed=1), FIRST)
    one.part(OTHER, image_with(FIRST, seed=2), FIRST, is_committed=False)
    listed = [line.split()[0] for line in run("list", one.folder).stdout.splitlines()]
    assert listed[1:] == [FULL]
    one.part(CHILD, image_with(SECOND, seed=3), SECOND)
    listed = [line.split()[0] for line in run("list", one.folder).stdout.splitlines()]
    assert listed[1:] == [FULL, CHILD]


def test_data_that_look_like_a_trailer_are_none(run: Any, library: TapeLibrary) -> None:
    one = Writer(library, "TAPE01L8", "1" * 32)
    one.part(FULL, image_with(FIRST, seed=1), FIRST)
    assert one.trailer is not None
    (forged,) = encode_part_trailer(one.trailer)
    assert len(forged) <= RECORD, "one record of data, with a filemark on both sides"
    one.part(OTHER, forged + bytes(RECORD - len(forged)), ((0, RECORD // BLOCK),))
    done = run("list", one.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [FULL, OTHER]


@pytest.mark.parametrize(
    ("cartridges", "told"),
    [
        (
            slice(0, 1),
            "is not complete: 1 part(s) were there; bring the cartridge with what follow",
        ),
        (slice(1, 2), "is not complete: 1 part(s) were there; bring the cartridge with part 1\n"),
    ],
)
def test_a_missing_cartridge_is_told(
    run: Any, written: Any, tmp_path: Path, cartridges: slice, told: str
) -> None:
    done = run("restore", FULL, tmp_path / "image", *written[1][cartridges])
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr


def test_what_makes_no_sense_is_refused(run: Any, written: Any, tmp_path: Path) -> None:
    cartridges, target = written[1], tmp_path / "image"
    assert run().returncode == 2
    assert run("eat", cartridges[0]).returncode == 2
    assert run("restore", FULL, target).returncode == 2
    assert "no backup 77" in run("restore", "77", target, *cartridges).stderr
    assert not target.exists()
    assert "cannot be read" in run("list", tmp_path / "nothing").stderr
    empty = tmp_path / "EMPTY1L8"
    empty.mkdir()
    assert "no file called data" in run("list", empty).stderr
    entry = bytes([1, 1, 0, 0, 0, 0, 0, 100]) + bytes(24)
    (empty / "data").write_bytes(entry + b"\1" * 100)
    assert "does not begin with VOL1" in run("list", empty).stderr
    target.write_bytes(b"mine")
    done = run("restore", FULL, target, *cartridges)
    assert (done.returncode, target.read_bytes()) == (1, b"mine")
    assert "is there already" in done.stderr


def entries_of(folder: Path) -> list[tuple[int, int, int]]:
    """Where each object of a cartridge begins, the bytes it is stored in if it is compressed, and its length."""
    data, at = (folder / "data").read_bytes(), 0
    found = []
    while at < len(data):
        taken, length = number(data[at + 2 : at + 5]), number(data[at + 5 : at + 8])
        found.append((at, taken, length))
        at += 32 + (taken or length)
    return found


def spoil(folder: Path, at: int) -> None:
    with (folder / "data").open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ 0xFF]))


def compressed_record(folder: Path) -> int:
    """Where the last record of data that is compressed begins."""
    return [at for at, taken, length in entries_of(folder) if taken and length == RECORD][-1]


@pytest.mark.parametrize("library", [True], ids=["compressed"], indirect=True)
def test_a_damaged_record_costs_no_more_than_itself(run: Any, written: Any, tmp_path: Path) -> None:
    image, cartridges = written
    spoil(cartridges[0], compressed_record(cartridges[0]) + 32 + 8)
    assert len(run("list", *cartridges).stdout.splitlines()) == 5
    target = tmp_path / "image"
    done = run("restore", FULL, target, *cartridges)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is damaged: zeros in its place" in done.stderr
    assert "is not complete: 1 record(s) are damaged" in done.stderr
    wrong = [at for at, (a, b) in enumerate(zip(target.read_bytes(), image, strict=True)) if a != b]
    assert 0 < len(wrong) <= RECORD
    assert {target.read_bytes()[at] for at in wrong} == {0}


def test_an_entry_that_makes_no_sense_is_told(run: Any, written: Any) -> None:
    folder = written[1][0]
    at, _, _ = entries_of(folder)[-2]
    spoil(folder, at)
    done = run("list", folder)
    told = f"{folder}: nothing is read from object {len(entries_of(folder)) - 2} on"
    assert told in done.stderr


@pytest.mark.parametrize("library", [True], ids=["compressed"], indirect=True)
def test_without_zstd_it_says_that_it_is_needed(run: Any, written: Any, tmp_path: Path) -> None:
    _, cartridges = written
    compressed_record(cartridges[0])
    (tmp_path / "bin" / "zstd").unlink()
    done = run("restore", FULL, tmp_path / "image", *cartridges)
    assert done.returncode == 1
    assert f"{cartridges[0]}: object" in done.stderr
    assert "is compressed: zstd is needed" in done.stderr


# --- what the first record says --------------------------------------------------------------------


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def objects_of(folder: Path) -> list[bytes | None]:
    """Records and filemarks (None) of a virtual cartridge, as its first record explains them."""
    data, at = (folder / "data").read_bytes(), 0
    objects: list[bytes | None] = []
    while at < len(data):
        kind, taken, length = data[at], number(data[at + 2 : at + 5]), number(data[at + 5 : at + 8])
        at += 32
        if kind == 2:
            objects.append(None)
            continue
        assert kind == 1
        record = data[at : at + (taken or length)]
        at += taken or length
        if taken:
            record = subprocess.run(["zstd", "-dcq"], input=record, stdout=-1, check=True).stdout
        objects.append(record)
    return objects


def trailers_of(objects: list[bytes | None]) -> Iterator[dict[str, Any]]:
    for at, record in enumerate(objects):
        is_trailer = record and record[:10] == b"SDVMETA\0\0\3" and number(record[32:40]) == at
        if not record or not is_trailer:
            continue
        pieces = objects[at : at + number(record[46:48])]
        if objects[at - 1] is not None or objects[at + len(pieces)] is not None:
            continue
        yield json.loads(b"".join(p[64 : 64 + number(p[40:44])] for p in pieces if p))


def test_a_stranger_who_knows_only_the_text_gets_a_backup_over_two_drives_back(
    library: TapeLibrary,
) -> None:
    """The text of record 0 is all that this reader was written from: it says enough, and what it says is so."""
    image, writers = in_two_lanes(library)
    made, ends, wanted = bytearray(), 0, 0
    for objects in (objects_of(writer.folder) for writer in writers):
        assert objects[0] is not None
        assert b'"lanes"' in objects[0]
        assert b'its file "data" has 32 bytes' in objects[0]
        for trailer in trailers_of(objects):
            volume, at = trailer["volume"], trailer["data_object"]
            block = volume["block_bytes"]
            made = made or bytearray(volume["blocks"] * block)
            stream = b"".join(record or b"" for record in objects[at : at + trailer["records"]])
            for lba, blocks in trailer["extents"]:
                made[lba * block : (lba + blocks) * block] = stream[: blocks * block]
                stream = stream[blocks * block :]
            ends, wanted = ends + trailer["is_last"], trailer["lanes"]
    assert ends == wanted == 2
    assert made == image


@pytest.mark.processes
def test_a_real_backup_comes_back_without_any_of_our_programs(
    run: Any, new_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    cluster = new_cluster()
    cluster.up()
    source = tmp_path / "source"
    source.write_bytes(image_with(((0, 700), (9000, 5000)), seed=5, before=bytes(16 << 20)))
    cluster.ctl("volume", "create", "vol", "--from", str(source))
    assert cluster.finish("backup", "vol")["state"] == "completed"
    folders = [path.parent for path in cluster.state.glob("**/data")]
    cartridges = [path for path in folders if (path / "cartridge.json").exists()]
    cluster.down()
    listed = [run("list", path).stdout for path in cartridges]
    (uuid,) = [
        line.split()[0] for text in listed for line in text.splitlines() if " part 1 " in line
    ]
    (used,) = [path for path, text in zip(cartridges, listed, strict=True) if uuid in text]
    done = run("restore", uuid, tmp_path / "image", used)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "image").read_bytes() == source.read_bytes()
