"""A volume that goes over two drives and comes back over two, with real processes.

Movers are slowed down for the restore, a quarter of a second for each record, so that what has to happen at the same
time can be seen happening at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster

pytestmark = pytest.mark.processes

MIB = 1024 * 1024
IMAGE_BYTES = 12 * MIB
SLOWLY = "mover.transfer:1+=sleep:0.25"


class Story:
    """A cluster with backup 1 of a volume, written over two drives, and movers that take their time from here on."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        for node, text in (
            ("tape", "drives = 2\n"),
            ("controller", 'stretch_bytes_min = "1MiB"\n'),
        ):
            folder = cluster.state / node / "conf.d"
            folder.mkdir(parents=True)
            (folder / "drives.toml").write_text(text)
        cluster.up(movers=2)
        self.image = random.Random(1).randbytes(IMAGE_BYTES)
        path = cluster.folder / "image"
        path.write_bytes(self.image)
        cluster.ctl("volume", "create", "vol", "--from", str(path))
        job = cluster.finish("backup", "vol", "--drives", "2")
        assert job["state"] == "completed", (job["reason"], cluster.logs())
        self.backup = str(job["result"]["backup"])
        self.tags = cluster.ctl("backup", "show", self.backup)["tags"]
        assert len(set(self.tags)) == 2
        for mover in ("mover-1", "mover-2"):
            cluster.kill(mover)
        cluster.up(failpoints=SLOWLY)

    def restore(self, *options: str) -> tuple[int, list[int]]:
        """Begin a restore; returns its job and those of its lanes, once both are copying at the same time."""
        number = self.cluster.submit("restore", self.backup, "--new", "copy", *options)
        lanes = self.cluster.wait_until(lambda: self.cluster.job(number)["lanes"], what="lanes")
        self.cluster.wait_until(lambda: self._are_at_work(lanes), what="both lanes to copy")
        return number, lanes

    def _are_at_work(self, lanes: list[int]) -> bool:
        """Say whether each lane has a mover and a drive in one and the same answer."""
        movers = {row["job"] for row in self.cluster.ctl("mover", "list")["movers"]}
        drives = {row["job"] for row in self.cluster.ctl("drive", "list")["drives"]}
        return movers == drives == set(lanes)

    def ended(self, number: int, state: str = "completed") -> dict[str, Any]:
        job = self.cluster.wait_job(number)
        assert job["state"] == state, (job["reason"], self.cluster.logs())
        assert job["ledger"]["is_balanced"], job["ledger"]
        return job

    @property
    def restored(self) -> bytes:
        return self.cluster.volume_file("copy").read_bytes()


@pytest.fixture
def story(new_cluster: Callable[..., LocalCluster]) -> Story:
    return Story(new_cluster())


def test_what_two_drives_wrote_is_read_from_both_at_once(story: Story) -> None:
    number, lanes = story.restore()
    job = story.ended(number)
    assert story.restored == story.image
    assert sorted(job["result"]["needs"]) == sorted(story.tags)
    assert job["ledger"]["written_bytes"] == job["bytes_done"] == IMAGE_BYTES
    assert job["movers"] == ["mover-1", "mover-2"]
    moved = 0
    for lane in map(story.cluster.job, lanes):
        assert (lane["kind"], lane["state"]) == ("restore-lane", "completed")
        assert lane["ledger"]["is_balanced"]
        moved += lane["ledger"]["written_bytes"]
    assert moved == IMAGE_BYTES
    # The next one is told to take one drive.
    alone = story.cluster.finish("restore", story.backup, "--to=copy", "--force", "--drives=1")
    assert (alone["state"], alone["lanes"]) == ("completed", [])
    assert story.restored == story.image


def test_a_mover_that_dies_in_a_lane_costs_that_lane_a_list_and_the_other_nothing(
    story: Story,
) -> None:
    number, lanes = story.restore()
    story.cluster.kill("mover-1")
    story.ended(number)
    assert story.restored == story.image
    states = [[item["state"] for item in story.cluster.job(lane)["items"]] for lane in lanes]
    assert sorted("lost" in each for each in states) == [False, True], states
    assert all(state in ("done", "lost") for each in states for state in each), states


def test_the_controller_dies_while_both_lanes_copy(story: Story) -> None:
    number, _ = story.restore()
    story.cluster.kill("controller")
    story.cluster.up()
    story.ended(number)
    assert story.restored == story.image


def test_a_damaged_record_in_one_lane_is_a_hole_with_keep_going(story: Story) -> None:
    part = story.cluster.ctl("backup", "show", story.backup)["parts_detail"][1]
    wanted = story.image[part["stream_start"] + MIB :][:64]
    flip(story.cluster, wanted, tag=part["tag"])
    number, lanes = story.restore("--keep-going")
    job = story.ended(number, "partial")
    assert job["exit_code"] == 3
    expected = bytearray(story.image)
    for lba, blocks in job["result"]["holes"]["extents"]:
        expected[lba * 512 : (lba + blocks) * 512] = bytes(blocks * 512)
    assert wanted not in expected
    assert story.restored == expected
    assert [each["tag"] for each in job["result"]["damage"]] == [part["tag"]]
    assert [story.cluster.job(lane)["state"] for lane in lanes] == ["completed", "partial"]


def test_a_lane_that_is_cancelled_ends_the_restore(story: Story) -> None:
    number, lanes = story.restore()
    story.cluster.ctl("job", "cancel", str(lanes[0]))
    job = story.ended(number, "failed")
    assert "lane 1 of the restore has failed: cancelled by an operator" in job["reason"]
    assert [story.cluster.job(lane)["state"] for lane in lanes] == ["cancelled", "cancelled"]
    assert story.cluster.ctl("volume", "show", "copy")["state"] == "restore-failed"


def flip(cluster: LocalCluster, wanted: bytes, *, tag: str) -> None:
    """Invert a bit of a record on a cartridge while nobody looks."""
    cluster.kill("tape")
    [data] = [
        path
        for path in (cluster.state / "tape" / "library").rglob("*")
        if path.is_file() and tag in str(path) and wanted in path.read_bytes()
    ]
    content = bytearray(data.read_bytes())
    content[content.index(wanted) + 7] ^= 0x40
    data.write_bytes(content)
    cluster.up()
