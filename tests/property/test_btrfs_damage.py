"""Damaged and hostile volumes of btrfs: random, seeded, and every outcome is right or told.

With a checksum over every node no damage may be silent.  Who forges volumes makes right checksums too: then nothing
may crash, and nothing lead outside of the volume.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.crc import crc32c
from backplane.file_map.model import ExtentFlag, FileRow
from backplane.testing import btrfs_images as images
from storage_node.mapping.btrfs import BtrfsReader
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError

NODE_BYTES = 4096


def written_tree(folder: Path) -> Path:
    """A tree with a little of most things, for a volume that nobody mounts."""
    folder.mkdir()
    for index in range(120):
        path = folder / f"folder {index % 5}" / "inner" / f"file {index}"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(images.noise(index * 83, index))
    (folder / "link").symlink_to("target")
    (folder / "folder 1" / "again").hardlink_to(folder / "folder 1" / "inner" / "file 1")
    return folder


class Healthy(NamedTuple):
    """An image with one copy of everything, and its rows."""

    data: bytes
    rows: dict[bytes, FileRow]
    nodes: list[int]
    """Where the nodes lie."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    if images.missing():
        pytest.skip(images.missing())
    folder = tmp_path_factory.mktemp("healthy")
    tree = written_tree(folder / "tree")
    options = ("-m", "single", "-n", str(NODE_BYTES), "--rootdir", tree)
    data = images.make_volume(folder / "image", 64 * images.MIB, *options).read_bytes()
    rows, reader = map_bytes(data)
    nodes: list[int] = []
    chunks = reader._chunks
    for root in (*reader._roots.subvolumes.values(), reader._roots.extent_root):
        assert root is not None
        for _ in reader._tree.walk(root, visited=nodes.append):
            pass
    superblock = reader._superblock
    nodes += [superblock.root, superblock.chunk_root]  # the last of them are the most important
    places = [chunks.places(node, NODE_BYTES, kind=~0)[0] for node in nodes]
    return Healthy(data, rows, places)


def map_bytes(data: bytes | bytearray) -> tuple[dict[bytes, FileRow], BtrfsReader]:
    reader = BtrfsReader(BytesSource(data))
    rows = {}
    for row in reader.rows():
        rows[row.path] = row
        for extent in row.extents:
            end = extent.volume_byte + (extent.stored_bytes or extent.byte_count)
            assert 0 <= extent.volume_byte < end <= len(data)
    last = 0
    for start, end in reader.allocated():
        assert last <= start < end <= len(data)
        last = end
    return rows, reader


def mutate(data: bytearray, place: int, rng: random.Random) -> None:
    """Damage a node, or a superblock, in one of the ways in which media do."""
    at = place + rng.randrange(NODE_BYTES)
    kind = rng.randrange(6)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        at = min(at, place + NODE_BYTES - 4)
        data[at : at + 4] = rng.choice((bytes(4), b"\xff" * 4, rng.randbytes(4)))
    elif kind == 3:
        fill = rng.choice((b"\0", b"\xff", rng.randbytes(NODE_BYTES)))
        data[place : place + NODE_BYTES] = (fill * NODE_BYTES)[:NODE_BYTES]
    elif kind == 4:
        data[place + 512 : place + 1024] = bytes(512)
    else:
        other = rng.randrange(16, len(data) // NODE_BYTES) * NODE_BYTES
        data[place : place + NODE_BYTES] = data[other : other + NODE_BYTES]


def test_no_damage_of_a_node_is_silent(healthy: Healthy) -> None:
    """Every outcome is right or told: a wrong row has an error, a missing one is behind a problem."""
    rng = random.Random(20)
    outcomes = {"same": 0, "told": 0, "refused": 0}
    places = [*healthy.nodes, images.SUPERBLOCK_PLACE]
    data = bytearray(healthy.data)
    for _ in range(250):
        place = rng.choice(places)
        whole = data[place : place + NODE_BYTES]
        mutate(data, place, rng)
        outcomes[outcome_of(data, healthy)] += 1
        data[place : place + NODE_BYTES] = whole
    assert data == healthy.data
    assert outcomes["told"] > 100, outcomes
    assert outcomes["refused"], outcomes


def outcome_of(data: bytearray, healthy: Healthy) -> str:
    """Compare a damaged image with the healthy one."""
    try:
        rows, reader = map_bytes(data)
    except (DamagedError, UnsupportedError):
        assert data != healthy.data
        return "refused"
    wrong = {path for path, row in rows.items() if row != healthy.rows.get(path)}
    # What is unknown may be shared, and says so: that is no wrong place.
    silent = {p for p in wrong if not rows[p].error and not is_only_shared(p, rows, healthy)}
    assert not silent, silent
    if reader.problems:
        return "told"
    assert rows == healthy.rows
    return "same"


def is_only_shared(path: bytes, rows: dict[bytes, FileRow], healthy: Healthy) -> bool:
    if path not in healthy.rows:
        return False
    shared = int(ExtentFlag.SHARED)
    before, after = (
        row._replace(extents=tuple(e._replace(flags=e.flags | shared) for e in row.extents))
        for row in (healthy.rows[path], rows[path])
    )
    return before == after


def test_bytes_that_somebody_has_chosen_neither_crash_nor_lead_outside(healthy: Healthy) -> None:
    """As above, but with a right checksum each time: the checks behind it must hold."""
    rng = random.Random(21)
    outcomes = {"mapped": 0, "refused": 0}
    data = bytearray(healthy.data)
    for _ in range(300):
        changed = []
        for _ in range(rng.randrange(1, 4)):
            place = rng.choice((*healthy.nodes, *healthy.nodes[-2:] * 10))
            changed.append(place)
            forge_node(data, place, rng)
        try:
            map_bytes(data)
        except (DamagedError, UnsupportedError):
            outcomes["refused"] += 1
        else:
            outcomes["mapped"] += 1
        for place in changed:
            data[place : place + NODE_BYTES] = healthy.data[place : place + NODE_BYTES]
    assert min(outcomes.values()) > 2, outcomes


def forge_node(data: bytearray, place: int, rng: random.Random) -> None:
    """Change something in a node, and give it a right checksum."""
    if rng.random() < 0.7:
        # A number somewhere in an item, or in the table of items.
        at = place + rng.randrange(32, NODE_BYTES - 8)
        value = rng.choice((0, 1, 255, 1 << 31, 1 << 63, (1 << 64) - 1, rng.getrandbits(64)))
        count = rng.choice((1, 2, 4, 8))
        data[at : at + count] = value.to_bytes(8, "little")[:count]
    else:
        mutate(data, place, rng)
    data[place : place + 4] = crc32c(data[place + 32 : place + NODE_BYTES]).to_bytes(4, "little")
