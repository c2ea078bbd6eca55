"""Random stories of a volume through the whole controller: levels, trims, full cartridges, dead movers, lost histories,
blocks that files take and free without writing them, and backups with maps, without, and of chosen files.

Whatever happened, every backup that is completed gives back what was in use of the volume when its view was made.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.core.extent_runs import ExtentRuns
from tests.site.disk import BLOCK
from tests.site.site import Site, check_end, connected, restored

BLOCKS = 16
LBAS = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8)

STEPS = st.one_of(
    st.tuples(st.just("free"), LBAS),
    st.tuples(st.just("use"), LBAS),
    st.tuples(st.just("raw"), st.sampled_from(["full", "incremental"])),
    st.tuples(st.just("doubt"), st.booleans()),
    st.tuples(st.just("choose"), st.sampled_from(["a", "b/**", "*"])),
    st.tuples(st.just("write"), LBAS),
    st.tuples(st.just("trim"), LBAS),
    st.tuples(st.just("backup"), st.sampled_from(["incremental", "auto"])),
    st.tuples(st.just("backup"), st.sampled_from(["full", "differential", "incremental", "auto"])),
    st.tuples(st.just("warn"), st.integers(1, 6)),
    st.tuples(st.just("die"), st.integers(0, 5)),
    st.tuples(st.just("forget"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)
TAGS = tuple(f"LTO{number:03}L8" for number in range(1, 9))


class Story:
    """A site with one volume, and what the volume was at each backup."""

    def __init__(self) -> None:
        self.site: Site = connected(tags=TAGS)
        self.site.connect_mover("m2")
        self.volume = self.site.make_volume("vol", blocks=BLOCKS)
        self.volume.track("h0")
        self.histories = 0
        self.moment = 0
        self.volume.files.table = {"a": (1, 2, 3), "b/c": (7, 9, 11), "b/d": (12,)}
        self.volume.files.rows_per_page = 2
        self.backups: dict[int, tuple[dict[int, bytes], set[int]]] = {}
        """What the volume was, and which of its blocks the backup has to bring back."""

    def do(self, what: str, argument: object) -> None:
        getattr(self, f"do_{what}")(argument)

    def do_write(self, lbas: list[int]) -> None:
        self.moment += 1
        self.volume.write({lba: bytes([self.moment, lba]) * (BLOCK // 2) for lba in lbas})

    def do_trim(self, lbas: list[int]) -> None:
        self.volume.trim(*lbas)

    def do_warn(self, records: int) -> None:
        """The cartridge in use is nearly full."""
        for tape in self.site.tapes.values():
            if tape.objects:
                tape.capacity = min(tape.capacity, len(tape.objects) + records)

    def do_die(self, objects: int) -> None:
        self.site.lose_after = [objects]

    def do_forget(self, _: None) -> None:
        self.histories += 1
        self.volume.track(f"h{self.histories}")

    def do_restart(self, _: None) -> None:
        self.site.restart()

    def do_free(self, lbas: list[int]) -> None:
        self.volume.files.free |= set(lbas)

    def do_use(self, lbas: list[int]) -> None:
        self.volume.files.free -= set(lbas)

    def do_doubt(self, is_doubtful: bool) -> None:
        self.volume.files.reasons = ("something is damaged",) if is_doubtful else ()

    def do_raw(self, level: str) -> None:
        self.back_up(set(range(BLOCKS)), level=level, raw=True)

    def do_choose(self, pattern: str) -> None:
        if self.volume.files.reasons:
            return
        table = self.volume.files.table
        picked = {"a": {"a"}, "b/**": {"b/c", "b/d"}, "*": set(table)}[pattern]
        left = {lba for path, lbas in table.items() if path not in picked for lba in lbas}
        used = set(range(BLOCKS)) - self.volume.files.free - left
        self.back_up(used, paths=[pattern], nothing_else=True)

    def do_backup(self, level: str) -> None:
        is_known = not self.volume.files.reasons
        self.back_up(
            set(range(BLOCKS)) - (self.volume.files.free if is_known else set()), level=level
        )

    def back_up(self, used: set[int], *, nothing_else: bool = False, **arguments: Any) -> None:
        job = self.site.submit("backup", volume="vol", **arguments)
        self.site.run()
        check_end(self.site, job)
        backup = self.site.job(job).backup
        self.backups[backup] = dict(self.volume.data), used
        packed = self.site.catalog.extents(backup)
        assert packed is not None
        runs = ExtentRuns.unpack(packed)
        assert blocks_of(runs) <= used & self.volume.data.keys(), "copied and not in use"
        assert not blocks_of(runs.zeros) & self.volume.data.keys(), "declared zero and is not"
        assert not nothing_else or blocks_of(runs) == used & self.volume.data.keys()
        self.revive()

    def revive(self) -> None:
        self.site.lose_after.clear()
        for number, mover in enumerate(self.site.movers.values()):
            if not mover.is_alive:
                self.moment += 1
                self.site.connect_mover(mover.name, boot=bytes([self.moment, number]) * 8)


def blocks_of(runs: ExtentRuns | None) -> set[int]:
    return {lba + n for lba, blocks in runs or () for n in range(blocks)}


FREE = st.sets(st.integers(0, BLOCKS - 1))


@given(FREE, st.lists(STEPS, max_size=14), FREE)
def test_every_completed_backup_gives_back_what_was_in_use_of_the_volume(
    free: set[int], steps: list[tuple[str, object]], rewritten: set[int]
) -> None:
    """It begins with blocks that are free and hold something, and ends when files own all of them."""
    story = Story()
    story.do_write(list(range(BLOCKS)))
    story.do_free(sorted(free))
    begin, end = [("backup", "full")], [("backup", "incremental")]
    for what, argument in [*begin, *steps, ("write", sorted(rewritten)), *end]:
        story.do(what, argument)
    for what, argument in [("use", list(range(BLOCKS))), *end]:
        story.do(what, argument)
    for number, (backup, (data, used)) in enumerate(story.backups.items()):
        found = restored(story.site, backup, name=f"copy{number}")
        assert {lba: found.get(lba) for lba in used} == {lba: data.get(lba) for lba in used}
    assert not any("map of changes" in alarm for alarm in story.site.alarms), "nobody has lied"
