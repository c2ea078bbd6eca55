"""What lanes leave on a volume, whoever comes late: every block is what the last restore says, and stays so.

A story is one restore in two lanes, ended wherever it stands, and another one of a newer backup onto the same volume,
also in two lanes.  Meanwhile movers die half way, controller and disk node restart, and any write that ever was made to
the volume is made once more, by a mover that was away: from a lane that has ended, from the lane beside, from the
restore before.  Whether it is let in is the disk node's business; what it may do is judged here:

    a block has one lane        no two lanes of a restore write it
    nothing comes back          what is right stays right, whatever comes late
    nothing is written behind   once a volume was published, not even the same again

The drive is left out: whoever comes late has read everything before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import planner
from controller.core.chain import Reading
from tests.site import mover
from tests.site.disk import BLOCK, DiskNode
from tests.site.site import connected

TAGS = ("LTO001L8", "LTO002L8", "LTO003L8", "LTO004L8")
BLOCKS = 32
OLD, NEW = (
    {lba: bytes([kind, lba]) * (BLOCK // 2) for lba in range(BLOCKS) if lba % gap}
    for kind, gap in ((1, 5), (2, 7))
)

Story = Sequence[tuple[Any, ...]]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("go"), st.integers(1, 25)),
        st.tuples(st.just("late"), st.integers(0, 40)),
        st.tuples(st.just("late"), st.integers(0, 40)),
        st.tuples(st.just("kill"), st.integers(0, 3)),
        st.tuples(st.sampled_from(("restart", "restart disk", "come back", "cancel lane"))),
    ),
    max_size=14,
)
STORIES = st.tuples(STEPS, STEPS)


@dataclass(frozen=True)
class Write:
    """What a mover wrote once, and may write again."""

    unit: bytes
    epoch: int
    lane: int
    leader: int
    blocks: dict[int, bytes]


class Player:
    """A site with two backups of a volume in two lanes each, and all that was ever written to another one."""

    def __init__(self) -> None:
        self.site = connected(drives=4, tags=TAGS)
        self.site.connect_mover("m2")
        self.site.machine.stretch_bytes_min = 1
        volume = self.site.make_volume("vol")
        for data in (OLD, NEW):
            volume.data = dict(data)
            job = self.site.submit("backup", volume="vol", drives=2)
            self.site.run()
            assert self.site.job(job).state == "completed", self.site.job(job).reason
        self.writes: list[Write] = []
        self.owners: dict[tuple[int, int], int] = {}

    def wrote(self, execution: mover.Execution, segment: Any) -> None:
        unit = execution.list.cscds[segment.destination_cscd_descriptor_id].designator
        first = segment.block_device_logical_block_address
        target = self.site.disk.by_unit(unit)
        span = range(first, first + segment.number_of_bytes // BLOCK)
        plan = json.loads(self.site.job(execution.work.item.job).plan)
        lane = execution.uses[unit].lane
        assert lane == plan["lane"]
        epoch = execution.work.item.epoch
        blocks = {lba: target.data[lba] for lba in span}
        self.writes.append(Write(unit, epoch, lane, plan["leader"], blocks))
        for lba in span:
            owner = self.owners.setdefault((plan["leader"], lba), lane)
            assert owner == lane, f"block {lba} is written by lanes {owner} and {lane}"

    def late(self, ago: int) -> None:
        """A mover that was away makes a write again."""
        if not self.writes:
            return
        write = self.writes[-1 - ago % len(self.writes)]
        target = self.site.disk.by_unit(write.unit)
        refusal = self.site.disk.opened(write.unit, write.epoch, lane=write.lane, is_writer=True)
        if not refusal:
            assert target.row.state != "online", "written behind the publication"
            target.data.update(write.blocks)

    def step(self, job: int, name: str, *numbers: int) -> None:
        site = self.site
        match name:
            case "go":
                site.settle(steps=numbers[0])
            case "late":
                self.late(numbers[0])
            case "kill":
                site.lose_after = [numbers[0]]
            case "come back":
                self.come_back()
            case "restart":
                site.restart()
            case "restart disk":
                site.restart_node("disk")
            case "cancel lane":
                lanes = [
                    n for n, each in site.machine.jobs.items() if each.plan.get("leader") == job
                ]
                for lane in lanes[:1]:
                    site.begin_call("job.cancel", job=lane)

    def come_back(self) -> None:
        for each in [each for each in self.site.movers.values() if not each.is_alive]:
            self.site.connect_mover(each.name, boot=bytes([each.boot[0] + 1]) * 16)

    def end(self) -> None:
        """Let everything come to its end."""
        self.site.lose_after = []
        while self.site.machine.jobs:
            self.come_back()
            self.site.run(60)

    def play(self, story: tuple[Story, Story]) -> None:
        first, second = story
        job = self.site.submit("restore", backup=1, new="copy", drives=2)
        for each in first:
            self.step(job, *each)
        if job in self.site.machine.jobs:
            self.site.begin_call("job.cancel", job=job)
        self.end()
        copy = [v for v in self.site.disk.volumes.values() if v.row.name == "copy"]
        where = {"to": "copy", "force": True} if copy else {"new": "copy"}
        job = self.site.submit("restore", backup=2, drives=2, **where)
        for each in second:
            self.step(job, *each)
        self.end()
        target = self.site.disk.by_name("copy")
        for ago in range(len(self.writes)):
            self.late(ago)
        if self.site.job(job).state == "completed":
            assert target.data == NEW
        else:
            assert "cancelled" in self.site.job(job).reason, self.site.job(job).reason
            assert target.row.state == "restore-failed"


@contextmanager
def told() -> Iterator[Player]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "LIST_BYTES_MAX", 2 * 4 * BLOCK)
        player = Player()
        restore = mover.Execution._restore

        def watched(self: mover.Execution, segment: Any) -> None:
            restore(self, segment)
            player.wrote(self, segment)

        patch.setattr(mover.Execution, "_restore", watched)
        yield player


@settings(max_examples=max(10, settings.default.max_examples // 4))
@given(STORIES)
def test_whoever_comes_late_every_block_is_what_the_last_restore_says(
    story: tuple[Story, Story],
) -> None:
    with told() as player:
        player.play(story)


# --- what keeps it so can be taken away, and is then missed ---------------------------------------

HALF_WAY: Final = tuple(("go", 12) for _ in range(4))
PLAIN: Final[tuple[Story, Story]] = (HALF_WAY, ())
LATE: Final[tuple[Story, Story]] = (HALF_WAY, (*HALF_WAY, *(("late", n) for n in range(12))))


def lets_lanes_in(self: DiskNode, unit: bytes, epoch: int, *, lane: int, is_writer: bool) -> str:
    """A fence of the whole unit that ends no lane."""
    return "" if lane else "stale"


def deals_all_to_each(readings: Sequence[Reading], tags: Any) -> list[Reading]:
    """A leader that gives each lane everything."""
    return list(readings)


def ends_at_once(*_: Any) -> bool:
    """A leader that waits for none of its lanes."""
    return True


def test_the_stories_by_themselves_are_about_something() -> None:
    for story in (PLAIN, LATE):
        with told() as player:
            player.play(story)
            leaders = {write.leader for write in player.writes}
            assert len(leaders) == 2, "there is something of the first restore to come back"
            assert {write.lane for write in player.writes} == {1, 2}


@pytest.mark.parametrize(
    ("where", "planted", "story", "words"),
    [
        ("tests.site.disk.DiskNode.opened", lets_lanes_in, PLAIN, "written behind"),
        ("controller.core.restore_lanes.of_cartridges", deals_all_to_each, PLAIN, "by lanes"),
        ("controller.core.restore_lanes.all_ended", ends_at_once, PLAIN, "0 bytes were restored"),
    ],
)
def test_what_is_missing_is_missed(where: str, planted: Any, story: Any, words: str) -> None:
    with told() as player, pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, planted)
        with pytest.raises(AssertionError, match=words):
            player.play(story)
