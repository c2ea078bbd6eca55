"""Laying a chain of backups over each other, against a volume that is kept block by block.

The model writes and trims single blocks, and keeps the whole volume as it was at each backup.  A backup is known only
by its streams of blocks and its maps, as they would be on tape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from controller.core.chain import FULL, Picks, change_map, lay_over
from controller.core.extent_runs import ExtentRuns

BLOCKS = 24

WRITE = st.tuples(st.just("write"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
TRIM = st.tuples(st.just("trim"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
BACKUP = st.tuples(
    st.just("backup"), st.sampled_from(["full", "differential", "incremental"]), st.none()
)
STORIES = st.lists(st.one_of(WRITE, TRIM, BACKUP), max_size=40)


@dataclass
class Member:
    """A backup: its maps, its stream, and (for the test alone) the volume that it is of."""

    runs: ExtentRuns
    stream: list[int]
    parent: Member | None
    volume: dict[int, int]
    changed_at: int


@dataclass
class Model:
    """A volume with blocks that are numbers, all different; a block that is not there is zero."""

    volume: dict[int, int] = field(default_factory=dict)
    changes: list[tuple[int, int]] = field(default_factory=list)
    """(moment, LBA) of every write and trim."""
    members: list[Member] = field(default_factory=list)
    moment: int = 0

    def act(self, what: str, lba: object, blocks: int | None) -> None:
        if what == "backup":
            self.backup(str(lba))
            return
        assert isinstance(lba, int)
        assert blocks is not None
        for each in range(lba, min(BLOCKS, lba + blocks)):
            self.moment += 1
            self.changes.append((self.moment, each))
            if what == "write":
                self.volume[each] = self.moment
            else:
                self.volume.pop(each, None)

    def backup(self, level: str) -> None:
        parents = [m for m in self.members if level != "differential" or m.runs.zeros is None]
        allocated = runs_of(self.volume)
        if level == FULL or not parents:
            parent, runs = None, allocated
        else:
            parent = parents[-1]
            runs = change_map(
                allocated, runs_of({lba for at, lba in self.changes if at > parent.changed_at})
            )
        stream = [self.volume[lba + n] for lba, blocks in runs for n in range(blocks)]
        self.members.append(Member(runs, stream, parent, dict(self.volume), self.moment))


def runs_of(blocks: dict[int, int] | set[int]) -> ExtentRuns:
    return ExtentRuns((lba, 1) for lba in sorted(blocks))


def chain_of(member: Member) -> list[Member]:
    chain = [member]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain


def told(story: list[tuple[str, object, int | None]]) -> Model:
    model = Model()
    model.backup(FULL)
    for each in story:
        model.act(*each)
    return model


@given(STORIES)
def test_every_backup_of_every_chain_restores_the_volume_as_it_was(
    story: list[tuple[str, object, int | None]],
) -> None:
    for member in told(story).members:
        chain = chain_of(member)
        restored: dict[int, int] = {}
        for each, picks in zip(chain, lay_over([m.runs for m in chain]), strict=True):
            for position, lba, blocks in picks.slice(0, each.runs.total_blocks):
                for n in range(blocks):
                    assert lba + n not in restored, "a block is written once"
                    restored[lba + n] = each.stream[position + n]
        assert restored == member.volume


@given(STORIES)
def test_no_block_is_taken_that_a_newer_member_says_anything_about(
    story: list[tuple[str, object, int | None]],
) -> None:
    for member in told(story).members:
        chain = chain_of(member)
        known: set[int] = set()
        for each, picks in zip(chain, lay_over([m.runs for m in chain]), strict=True):
            mine = blocks_of(each.runs)
            taken = [
                lba + n
                for _, lba, blocks in picks.slice(0, each.runs.total_blocks)
                for n in range(blocks)
            ]
            assert taken == sorted(mine - known)
            assert picks.total_blocks == len(taken)
            known |= mine | blocks_of(each.runs.zeros or ExtentRuns())


def blocks_of(runs: ExtentRuns) -> set[int]:
    return {lba + n for lba, blocks in runs for n in range(blocks)}


PIECES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=12)


@given(PIECES, st.integers(0, 90), st.integers(0, 90))
def test_picks_are_cut_and_counted_like_single_blocks(
    pieces: list[tuple[int, int]], one: int, other: int
) -> None:
    """(gap, blocks) in the stream; the LBA is the position and a hundred, so that a mistake shows."""
    found, position = [], 0
    for gap, blocks in pieces:
        found.append((position + gap, position + gap + 100, blocks))
        position += gap + blocks
    picks = Picks(found)
    single = [start + n for start, _, blocks in found for n in range(blocks)]
    first, end = sorted((one, other))
    cut = list(picks.slice(first, end))
    assert [p + n for p, _, blocks in cut for n in range(blocks)] == [
        p for p in single if first <= p < end
    ]
    assert all(lba == p + 100 and blocks > 0 for p, lba, blocks in cut)
    assert picks.before(end) == sum(p < end for p in single)
