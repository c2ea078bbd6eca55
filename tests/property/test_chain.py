"""Laying a chain of backups over each other, against a volume that is kept block by block.

The model writes and trims single blocks, and its file system takes blocks into use and frees them, with or without
writing them.  It keeps the whole volume as it was at each backup.  A backup is known only by its streams of blocks
and its maps, as they would be on tape; what its file systems use is known only if it was mapped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from controller.core.chain import FULL, Overlay, Picks, change_map, everything
from controller.core.extent_runs import ExtentRuns, intersect

BLOCKS = 24

WRITE = st.tuples(st.just("write"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
TRIM = st.tuples(st.just("trim"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
USE = st.tuples(st.just("use"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
FREE = st.tuples(st.just("free"), st.integers(0, BLOCKS - 1), st.integers(1, 6))
LEVELS = st.sampled_from(["full", "differential", "incremental"])
BACKUP = st.tuples(st.just("backup"), LEVELS, st.none())
MAPPED = st.tuples(st.just("backup with a map"), LEVELS, st.none())
BEGIN = st.tuples(st.just("begin"), st.sets(st.integers(0, BLOCKS - 1)), st.none())
"""The blocks that are in use at first, in a volume of which every block was written."""
STEPS = st.lists(st.one_of(WRITE, TRIM, USE, FREE, BACKUP, MAPPED, MAPPED), max_size=40)
STORIES = st.builds(lambda begin, steps: [begin, *steps], BEGIN, STEPS)


@dataclass
class Member:
    """A backup: its maps, its stream, and (for the test alone) the volume that it is of."""

    runs: ExtentRuns
    stream: list[int]
    parent: Member | None
    volume: dict[int, int]
    used: set[int]
    """What was in use, or every block if nobody looked."""
    changed_at: int


@dataclass
class Model:
    """A volume with blocks that are numbers, all different; a block that is not there is zero."""

    volume: dict[int, int] = field(default_factory=dict)
    changes: list[tuple[int, int]] = field(default_factory=list)
    """(moment, LBA) of every write and trim."""
    used: set[int] = field(default_factory=lambda: set(range(BLOCKS)))
    members: list[Member] = field(default_factory=list)
    moment: int = 0

    def act(self, what: str, lba: object, blocks: int | None) -> None:
        if what.startswith("backup"):
            self.backup(str(lba), is_mapped=what != "backup")
            return
        if what == "begin":
            assert isinstance(lba, set)
            self.act("write", 0, BLOCKS)
            self.used = set(lba)
            self.backup(FULL, is_mapped=True)
            return
        assert isinstance(lba, int)
        assert blocks is not None
        for each in range(lba, min(BLOCKS, lba + blocks)):
            if what == "use":
                self.used.add(each)  # Whatever is in it, from whenever.
                continue
            if what == "free":
                self.used.discard(each)
                continue
            self.moment += 1
            self.changes.append((self.moment, each))
            if what == "write":
                self.volume[each] = self.moment
            else:
                self.volume.pop(each, None)

    def backup(self, level: str, *, is_mapped: bool) -> None:
        parents = [m for m in self.members if level != "differential" or m.runs.zeros is None]
        allocated = runs_of(self.volume)
        used = set(self.used) if is_mapped else set(range(BLOCKS))
        if level == FULL or not parents:
            parent, runs = None, intersect(allocated, runs_of(used))
        else:
            parent = parents[-1]
            runs = change_map(
                allocated,
                runs_of({lba for at, lba in self.changes if at > parent.changed_at}),
                used=runs_of(used),
                known=runs_of(parent.used),
            )
        stream = [self.volume[lba + n] for lba, blocks in runs for n in range(blocks)]
        self.members.append(Member(runs, stream, parent, dict(self.volume), used, self.moment))


def runs_of(blocks: dict[int, int] | set[int]) -> ExtentRuns:
    return ExtentRuns((lba, 1) for lba in sorted(blocks))


def chain_of(member: Member) -> list[Member]:
    chain = [member]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    return chain


def told(story: list[tuple[str, object, int | None]]) -> Model:
    model = Model()
    for each in story:
        model.act(*each)
    return model


def restored(member: Member) -> dict[int, int]:
    found: dict[int, int] = {}
    chain = chain_of(member)
    for each, picks in zip(chain, map(Overlay().take, [m.runs for m in chain]), strict=True):
        for position, lba, blocks in picks.slice(0, each.runs.total_blocks):
            for n in range(blocks):
                assert lba + n not in found, "a block is written once"
                found[lba + n] = each.stream[position + n]
    return found


@given(STORIES)
def test_every_backup_of_every_chain_restores_all_that_was_in_use_as_it_was(
    story: list[tuple[str, object, int | None]],
) -> None:
    for member in told(story).members:
        found = restored(member)
        for lba in member.used:
            assert found.get(lba) == member.volume.get(lba), lba


@given(STORIES)
def test_nothing_is_declared_zero_that_is_not_zero_and_nothing_free_is_copied(
    story: list[tuple[str, object, int | None]],
) -> None:
    for member in told(story).members:
        assert not blocks_of(member.runs.zeros or ExtentRuns()) & member.volume.keys()
        assert blocks_of(member.runs) <= member.used & member.volume.keys()


@given(STORIES)
def test_with_all_in_use_a_map_changes_nothing(
    story: list[tuple[str, object, int | None]],
) -> None:
    plain = [(what[:6] if what.startswith("backup") else what, a, b) for what, a, b in story]
    written: list[tuple[str, object, int | None]] = [("begin", set(range(BLOCKS)), None)]
    written += [each for each in plain if each[0] not in ("begin", "use", "free")]
    mapped = [("backup with a map", *each[1:]) if each[0] == "backup" else each for each in written]
    for one, other in zip(told(written).members, told(mapped).members, strict=True):
        assert one.runs == other.runs


@given(STORIES)
def test_no_block_is_taken_that_a_newer_member_says_anything_about(
    story: list[tuple[str, object, int | None]],
) -> None:
    for member in told(story).members:
        chain = chain_of(member)
        known: set[int] = set()
        for each, picks in zip(chain, map(Overlay().take, [m.runs for m in chain]), strict=True):
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


def test_everything_of_a_volume_is_one_extent_or_none() -> None:
    assert list(everything(7)) == [(0, 7)]
    assert list(everything(0)) == []


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
