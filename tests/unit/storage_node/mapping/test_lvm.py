"""LVM2: labels, copies of metadata, and what a logical volume is made of; the tools of LVM2 are the last judge."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from backplane.testing.disk_images import damaged, missing, run
from backplane.testing.lvm_images import (
    AREA_AT,
    AREA_BYTES,
    DATA_AT,
    EXTENT_BYTES,
    Segment,
    group_text,
    physical_volume,
    write_area,
)
from storage_node.mapping.lvm import (
    LogicalVolume,
    PhysicalVolume,
    logical_volumes,
    read_physical_volume,
    recognise_lvm,
)
from storage_node.mapping.reader import BytesSource, DamagedError, MappingError
from storage_node.mapping.windows import Window

EXTENTS = 32
PV_BYTES = DATA_AT + EXTENTS * EXTENT_BYTES
ONE = {"pv0": EXTENTS}
BOTH = {"pv0": EXTENTS, "pv1": EXTENTS}
LINEAR = {"root": [Segment(4, [("pv0", 2)])]}


def extent(disk: int, number: int, count: int = 1) -> tuple[int, int]:
    """Where an extent is, when the physical volumes lie one behind the other."""
    return disk * PV_BYTES + DATA_AT + number * EXTENT_BYTES, count * EXTENT_BYTES


def found(*disks: bytes | bytearray) -> list[PhysicalVolume]:
    source = BytesSource(b"".join(disks))
    windows = [Window(source, [(at * PV_BYTES, PV_BYTES)]) for at in range(len(disks))]
    return [read_physical_volume(window, f"disk {at}") for at, window in enumerate(windows)]


def read(
    logical: Mapping[str, Sequence[Segment]],
    physical: Mapping[str, int] = BOTH,
    hidden: Sequence[str] = (),
    status: Mapping[str, str] | None = None,
) -> tuple[dict[str, LogicalVolume], list[str]]:
    """Read a group that lies on one or two physical volumes."""
    text = group_text("vg", physical, logical, hidden=hidden, status=status)
    disks = [physical_volume(name, PV_BYTES, text) for name in physical]
    volumes, notes = logical_volumes(found(*disks))
    return {one.name: one for one in volumes}, notes


def places(volume: LogicalVolume) -> list[tuple[int, int]]:
    assert volume.window is not None, volume.refused
    return volume.window.translate(0, volume.window.size_bytes)


def test_a_linear_volume_is_where_its_extents_are() -> None:
    volumes, notes = read(LINEAR, ONE)
    assert places(volumes["root"]) == [extent(0, 2, 4)]
    assert notes == []
    assert volumes["root"].prefix == "vg-root"


def test_hyphens_in_names_are_doubled_as_the_device_mapper_does() -> None:
    assert LogicalVolume("a-b", "c", None).prefix == "a--b-c"
    assert LogicalVolume("a", "b-c", None).prefix == "a-b--c"


def test_segments_follow_one_another_over_both_physical_volumes() -> None:
    volumes, _ = read(
        {"root": [Segment(3, [("pv1", 7)]), Segment(2, [("pv0", 0)]), Segment(1, [("pv1", 10)])]}
    )
    assert places(volumes["root"]) == [extent(1, 7, 3), extent(0, 0, 2), extent(1, 10)]


def test_stripes_are_dealt_in_turn() -> None:
    volumes, _ = read({"fast": [Segment(4, [("pv0", 1), ("pv1", 5)], stripe_sectors=64)]})
    unit = 64 * 512
    first, second = extent(0, 1)[0], extent(1, 5)[0]
    expected = []
    for step in range(2 * EXTENT_BYTES // unit):
        expected += [(first + step * unit, unit), (second + step * unit, unit)]
    assert places(volumes["fast"]) == expected


def test_stripes_that_do_not_divide_an_extent_are_refused() -> None:
    volumes, _ = read({"odd": [Segment(4, [("pv0", 1), ("pv1", 5)], stripe_sectors=100)]})
    assert "stripes" in volumes["odd"].refused


def test_the_label_may_be_in_any_of_the_first_four_sectors() -> None:
    text = group_text("vg", ONE, LINEAR)
    for sector in range(4):
        disk = physical_volume("pv0", PV_BYTES, text, label_sector=sector)
        assert recognise_lvm(BytesSource(disk))
        assert logical_volumes(found(disk))[0][0].window is not None
    assert not recognise_lvm(BytesSource(physical_volume("pv0", PV_BYTES, text, label_sector=4)))


@pytest.mark.parametrize("size", [0, 100, 511, 512, 1024])
def test_what_is_too_small_has_no_label(size: int) -> None:
    assert not recognise_lvm(BytesSource(bytes(size)))


@pytest.mark.parametrize("place", [512 + 8, 512 + 20, 512 + 40, 512 + 80, 1023])
def test_a_label_with_a_wrong_checksum_is_damage(place: int) -> None:
    disk = physical_volume("pv0", PV_BYTES, group_text("vg", ONE, LINEAR))
    disk[place] ^= 1
    with pytest.raises(DamagedError):
        found(disk)


@pytest.mark.parametrize("place", [AREA_AT + 100, AREA_AT + 40, AREA_AT + 520])
def test_metadata_with_a_wrong_checksum_are_told(place: int) -> None:
    disk = physical_volume("pv0", PV_BYTES, group_text("vg", ONE, LINEAR))
    disk[place] ^= 1
    (one,) = found(disk)
    assert "checksum" in one.defect
    volumes, notes = logical_volumes([one])
    assert volumes == []
    assert notes == [f"disk 0: {one.defect}"]


def test_the_text_goes_on_at_the_beginning_of_its_ring() -> None:
    text = group_text("vg", ONE, LINEAR)
    disk = physical_volume("pv0", PV_BYTES, text, ring_at=AREA_BYTES - 200)
    assert disk[AREA_AT + AREA_BYTES - 200 :].startswith(b"# made")
    volumes, notes = logical_volumes(found(disk))
    assert (len(volumes), notes) == (1, [])


@pytest.mark.parametrize("ring_at", [8, AREA_BYTES])
def test_a_text_outside_of_its_ring_is_damage(ring_at: int) -> None:
    disk = physical_volume("pv0", PV_BYTES, "x", ring_at=512)
    write_area(disk, "x", ring_at=ring_at)
    assert "metadata" in found(disk)[0].defect


def test_the_newest_copy_counts() -> None:
    old = group_text("vg", BOTH, LINEAR, seqno=7)
    new = group_text("vg", BOTH, {"home": [Segment(1, [("pv1", 0)])]}, seqno=8)
    for first, second in ((old, new), (new, old)):
        disks = found(
            physical_volume("pv0", PV_BYTES, first), physical_volume("pv1", PV_BYTES, second)
        )
        volumes, notes = logical_volumes(disks)
        assert [one.name for one in volumes] == ["home"]
        assert notes == []


def test_the_newest_of_two_areas_of_one_physical_volume_counts() -> None:
    old = group_text("vg", ONE, {"root": [Segment(4, [("pv0", 9)])]}, seqno=7)
    new = group_text("vg", ONE, LINEAR, seqno=8)
    for first, second in ((old, new), (new, old)):
        disk = physical_volume("pv0", PV_BYTES, first, second=second)
        volumes, notes = logical_volumes(found(disk))
        assert places(volumes[0]) == [extent(0, 2, 4)]
        assert notes == []


def test_two_different_copies_of_the_same_age_are_believed_neither() -> None:
    one = group_text("vg", BOTH, LINEAR, seqno=7)
    two = group_text("vg", BOTH, {"root": [Segment(4, [("pv0", 3)])]}, seqno=7)
    disks = found(physical_volume("pv0", PV_BYTES, one), physical_volume("pv1", PV_BYTES, two))
    volumes, notes = logical_volumes(disks)
    assert volumes == []
    assert "two different copies" in notes[0]


def test_one_right_copy_is_enough() -> None:
    text = group_text("vg", BOTH, LINEAR)
    broken = physical_volume("pv0", PV_BYTES, text)
    broken[AREA_AT + 600] ^= 1
    disks = found(broken, physical_volume("pv1", PV_BYTES, text))
    volumes, notes = logical_volumes(disks)
    assert places(volumes[0]) == [extent(0, 2, 4)]
    assert len(notes) == 1
    assert "checksum" in notes[0]


@pytest.mark.parametrize("text", [None, "ignored"])
def test_a_physical_volume_without_metadata_is_known_to_its_group(text: str | None) -> None:
    other = physical_volume("pv0", PV_BYTES, text, flags=1)
    disks = found(other, physical_volume("pv1", PV_BYTES, group_text("vg", BOTH, LINEAR)))
    volumes, notes = logical_volumes(disks)
    assert places(volumes[0]) == [extent(0, 2, 4)]
    assert notes == []


def test_a_physical_volume_of_nobody_is_told() -> None:
    volumes, notes = logical_volumes(found(physical_volume("pv0", PV_BYTES, None)))
    assert volumes == []
    assert "without a known volume group" in notes[0]


def test_a_volume_with_a_part_on_another_disk_is_refused_by_name() -> None:
    text = group_text(
        "vg",
        BOTH,
        {
            "root": [Segment(1, [("pv0", 0)]), Segment(1, [("pv1", 0)])],
            "home": [Segment(1, [("pv0", 1)])],
        },
    )
    volumes, notes = logical_volumes(found(physical_volume("pv0", PV_BYTES, text)))
    root, home = volumes
    assert "physical volume pv1, which is not here" in root.refused
    assert places(home) == [extent(0, 1)]
    assert notes == []


@pytest.mark.parametrize(
    "kind",
    [
        "thin",
        "thin-pool",
        "raid1",
        "raid5",
        "mirror",
        "cache",
        "writecache",
        "vdo",
        "error",
        "zero",
    ],
)
def test_what_is_no_list_of_places_is_refused_by_its_type(kind: str) -> None:
    volumes, _ = read(
        {"x": [Segment(1, [("pv0", 0)], kind=kind)], "home": [Segment(1, [("pv0", 1)])]}
    )
    assert kind in volumes["x"].refused
    assert volumes["home"].window is not None


def test_a_snapshot_is_refused_and_its_origin_is_read() -> None:
    link = Segment(2, [], kind="snapshot", more='chunk_size = 8 origin = "root" cow_store = "snap"')
    volumes, _ = read(
        {"root": LINEAR["root"], "snap": [Segment(2, [("pv0", 10)])], "snapshot0": [link]}
    )
    assert places(volumes["root"]) == [extent(0, 2, 4)]
    assert volumes["snap"].refused == "LVM2 snapshot of root"
    assert "snapshot0" not in volumes


def test_a_snapshot_that_is_being_merged_makes_its_origin_unreadable() -> None:
    link = Segment(2, [], kind="snapshot", more='origin = "root" merging_store = "snap"')
    volumes, _ = read(
        {"root": LINEAR["root"], "snap": [Segment(2, [("pv0", 10)])], "snapshot0": [link]}
    )
    assert "merged" in volumes["root"].refused


def test_a_volume_that_is_being_moved_is_refused() -> None:
    volumes, _ = read(
        {"root": [Segment(1, [("pvmove0", 0)])], "home": LINEAR["root"]}, status={"home": "LOCKED"}
    )
    assert "another logical volume" in volumes["root"].refused
    assert "LOCKED" in volumes["home"].refused


def test_hidden_volumes_are_not_shown() -> None:
    volumes, _ = read(
        {"root": LINEAR["root"], "pool_tdata": [Segment(1, [("pv0", 9)])]}, hidden=["pool_tdata"]
    )
    assert list(volumes) == ["root"]


@pytest.mark.parametrize(
    ("logical", "reason"),
    [
        ({"a": [Segment(4, [("pv0", 2)])], "b": [Segment(1, [("pv0", 5)])]}, "belongs to"),
        ({"a": [Segment(1, [("pv0", 5)]), Segment(1, [("pv0", 5)])]}, "belongs to"),
    ],
)
def test_no_extent_belongs_to_two(logical: dict[str, list[Segment]], reason: str) -> None:
    volumes, notes = read(logical)
    assert volumes == {}
    assert reason in notes[0]


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(1, [("pv0", EXTENTS)])],
        [Segment(2, [("pv0", EXTENTS - 1)])],
        [Segment(1, [("pv0", -1)])],
        [Segment(3, [("pv0", 0), ("pv1", 0)])],
        [Segment(1, [])],
        [Segment(0, [("pv0", 0)])],
        [],
    ],
)
def test_segments_that_cannot_be_are_refused(segments: list[Segment]) -> None:
    volumes, _ = read({"a": segments, "b": [Segment(1, [("pv1", 1)])]})
    assert volumes["a"].window is None
    assert volumes["b"].window is not None


def test_a_group_larger_than_its_partition_is_refused() -> None:
    volumes, notes = read(LINEAR, {"pv0": EXTENTS + 1})
    assert volumes == {}
    assert "larger than its partition" in notes[0]


def test_a_cloned_physical_volume_is_refused() -> None:
    disk = physical_volume("pv0", PV_BYTES, group_text("vg", ONE, LINEAR))
    volumes, notes = logical_volumes(found(disk, disk))
    assert volumes == []
    assert "2 times" in notes[0]


@pytest.mark.parametrize("name", ["a/b", ".", "..", "x" * 200, "a:b"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(name: str) -> None:
    text = group_text(name, ONE, LINEAR)
    volumes, notes = logical_volumes(found(physical_volume("pv0", PV_BYTES, text)))
    assert volumes == []
    assert notes


def test_no_damage_moves_an_extent() -> None:
    """Whatever happens to label and metadata: the same places, or told."""
    text = group_text("vg", ONE, {"root": [Segment(4, [("pv0", 2)]), Segment(2, [("pv0", 9)])]})
    disk = bytes(physical_volume("pv0", PV_BYTES, text))
    for one in damaged(disk, [(0, 2048), (AREA_AT, AREA_AT + 512 + len(text))], count=400, seed=4):
        source = BytesSource(one.data)
        try:
            if not recognise_lvm(source):
                continue
            volumes, notes = logical_volumes([read_physical_volume(Window.whole(source), "x")])
        except MappingError:
            continue
        if volumes:
            assert places(volumes[0]) == [extent(0, 2, 4), extent(0, 9, 2)], one.what
        else:
            assert notes, one.what


def test_metadata_from_anybody_give_windows_inside_or_an_error() -> None:
    """The text itself is hostile, with a checksum that is right."""
    chance = random.Random(5)
    text = group_text(
        "vg", ONE, {"root": [Segment(4, [("pv0", 2)])], "b": [Segment(1, [("pv0", 8)])]}
    )
    for _ in range(300):
        digits = [match.span() for match in re.finditer(r"\d+", text)]
        first, end = chance.choice(digits)
        value = chance.choice(("0", "1", "31", "33", "4294967296", "18446744073709551615"))
        disk = physical_volume("pv0", PV_BYTES, text[:first] + value + text[end:])
        volumes, _ = logical_volumes(found(disk))
        for volume in volumes:
            if volume.window is not None:
                ends = [at + count for at, count in places(volume)]
                assert max(ends) <= PV_BYTES


# --- the tools of LVM2 -----------------------------------------------------------------------------

LVM_CONF = """
devices {{ dir="/dev" scan=["/dev"] filter=[{accepted}, "r|.*|"] use_devicesfile=0 }}
activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}
global {{ event_activation=0 use_lvmpolld=0 locking_dir="{folder}/lock" system_id_source="none" }}
backup {{ backup=0 archive=0 }}
"""


def lvm_reason() -> str:
    if os.geteuid() != 0:
        return "needs root: LVM2 takes block devices only"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    return missing("lvcreate", "losetup")


@contextmanager
def loop_devices(images: Sequence[Path]) -> Iterator[list[str]]:
    devices: list[str] = []
    try:
        devices += [run("losetup", "--find", "--show", image).strip() for image in images]
        yield devices
    finally:
        for device in devices:
            run("losetup", "--detach", device)


@pytest.mark.skipif(bool(lvm_reason()), reason=lvm_reason())
def test_volumes_of_lvm2_itself_are_where_lvm2_says(tmp_path: Path) -> None:
    images = [tmp_path / "one", tmp_path / "two"]
    for image in images:
        image.write_bytes(bytes(64 << 20))
    (tmp_path / "lock").mkdir()
    lvm = shutil.which("lvm")
    assert lvm is not None
    with loop_devices(images) as devices:
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        conf = tmp_path / "lvm.conf"
        conf.write_text(LVM_CONF.format(accepted=accepted, folder=tmp_path))

        def call(*words: str) -> str:
            return run(
                "env", f"LVM_SYSTEM_DIR={tmp_path}", "LVM_SUPPRESS_FD_WARNINGS=1", lvm, *words
            )

        quiet = ("--driverloaded", "n", "-an", "-Zn", "-Wn")
        call("pvcreate", "-qq", *devices)
        call("vgcreate", "-qq", "-s", "1M", "0vg-a", *devices)
        for words in (
            ("-l", "10", "-n", "root", "0vg-a", devices[1]),
            ("-l", "10", "-i", "2", "-I", "64k", "-n", "fast", "0vg-a"),
            ("-l", "9", "-n", "home", "0vg-a", devices[0]),
        ):
            call("lvcreate", *quiet, *words)
        call("lvremove", "--driverloaded", "n", "-y", "0vg-a/home")
        call("lvextend", "--driverloaded", "n", "-l", "+60", "0vg-a/root")
        said = call(
            *("lvs", "--driverloaded", "n", "--segments", "--noheadings", "--units", "b"),
            *("--nosuffix", "-o", "lv_name,seg_start,seg_size,seg_pe_ranges,stripes,stripe_size"),
        )
    sizes = images[0].stat().st_size
    source = BytesSource(images[0].read_bytes() + images[1].read_bytes())
    halves = [Window(source, [(0, sizes)]), Window(source, [(sizes, sizes)])]
    volumes, notes = logical_volumes(
        [read_physical_volume(half, f"disk {at}") for at, half in enumerate(halves)]
    )
    assert notes == []
    expected: dict[str, list[tuple[int, int]]] = {}
    lines = [line for line in said.splitlines() if re.match(r"\s+(root|fast) ", line)]
    for line in lines:
        name, _, size, *ranges, stripes, stripe = line.split()
        starts = []
        for one in ranges:
            device, first = re.fullmatch(r"(.*):(\d+)-\d+", one).groups()  # type: ignore[union-attr]
            starts.append(devices.index(device) * sizes + (1 + int(first)) * (1 << 20))
        unit = int(stripe) if int(stripes) > 1 else int(size)
        for at in range(0, int(size) // int(stripes), unit):
            expected.setdefault(name, []).extend((start + at, unit) for start in starts)
    assert len(lines) >= 3
    assert {one.name for one in volumes} == set(expected) == {"root", "fast"}
    for volume in volumes:
        wanted = Window(source, expected[volume.name])
        assert places(volume) == wanted.translate(0, wanted.size_bytes)
        assert volume.prefix == f"0vg--a-{volume.name}"
