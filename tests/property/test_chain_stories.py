"""Random stories of a volume through the whole controller: levels, trims, full cartridges, dead movers, lost histories.

Whatever happened, every backup that is completed gives back the volume as it was when its view was made.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.site.disk import BLOCK
from tests.site.site import Site, check_end, connected, restored

BLOCKS = 16
LBAS = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8)

STEPS = st.one_of(
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
        self.backups: dict[int, dict[int, bytes]] = {}

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

    def do_backup(self, level: str) -> None:
        job = self.site.submit("backup", volume="vol", level=level)
        self.site.run()
        check_end(self.site, job)
        self.backups[self.site.job(job).backup] = dict(self.volume.data)
        self.revive()

    def revive(self) -> None:
        self.site.lose_after.clear()
        for number, mover in enumerate(self.site.movers.values()):
            if not mover.is_alive:
                self.moment += 1
                self.site.connect_mover(mover.name, boot=bytes([self.moment, number]) * 8)


@given(st.lists(STEPS, max_size=14))
def test_every_completed_backup_gives_back_the_volume_as_it_was(
    steps: list[tuple[str, object]],
) -> None:
    story = Story()
    story.do_write(list(range(BLOCKS)))
    for what, argument in [("backup", "full"), *steps, ("backup", "incremental")]:
        story.do(what, argument)
    for number, (backup, data) in enumerate(story.backups.items()):
        assert restored(story.site, backup, name=f"copy{number}") == data
    assert not any("map of changes" in alarm for alarm in story.site.alarms), "nobody has lied"
