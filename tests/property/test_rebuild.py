"""Random stories of volumes, levels, maps, full cartridges and failed jobs: whatever happened, a catalog that is read
back from the cartridges has what the lost one had.

And whatever a tape holds, a rebuild ends with words and not with a crash.
"""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.site.disk import BLOCK, Volume
from tests.site.rebuilding import facts, lose_catalog, rebuild
from tests.site.site import Site, connected

BLOCKS = 16
NAMES = st.sampled_from(["one", "two"])
LBAS = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8)
LEVELS = st.sampled_from(["full", "differential", "incremental", "auto"])
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, LBAS),
    st.tuples(st.just("trim"), NAMES, LBAS),
    st.tuples(st.just("backup"), NAMES, LEVELS),
    st.tuples(st.just("raw"), NAMES, LEVELS),
    st.tuples(st.just("choose"), NAMES, st.sampled_from(["a", "b/**"])),
    st.tuples(st.just("warn"), NAMES, st.integers(1, 6)),
    st.tuples(st.just("fail"), NAMES, st.integers(0, 12)),
)
TAGS = tuple(f"LTO{number:03}L8" for number in range(1, 9))


class Story:
    """A site with two volumes."""

    def __init__(self) -> None:
        self.site: Site = connected(tags=TAGS)
        self.moment = 0
        self.volumes: dict[str, Volume] = {}
        for name in ("one", "two"):
            volume = self.site.make_volume(name, blocks=BLOCKS)
            volume.track(f"h-{name}")
            volume.files = replace(
                volume.files, table={"a": (1, 2, 3), "b/c": (7, 9), "b/d": (12,)}, rows_per_page=2
            )
            self.volumes[name] = volume

    def do(self, what: str, name: str, argument: object) -> None:
        getattr(self, f"do_{what}")(name, argument)

    def do_write(self, name: str, lbas: list[int]) -> None:
        self.moment += 1
        self.volumes[name].write({lba: bytes([self.moment, lba]) * (BLOCK // 2) for lba in lbas})

    def do_trim(self, name: str, lbas: list[int]) -> None:
        self.volumes[name].trim(*lbas)

    def do_backup(self, name: str, level: str, **arguments: object) -> None:
        self.site.submit("backup", volume=name, level=level, **arguments)
        self.site.run()

    def do_raw(self, name: str, level: str) -> None:
        self.do_backup(name, level, raw=True)

    def do_choose(self, name: str, pattern: str) -> None:
        self.do_backup(name, "full", paths=[pattern])

    def do_warn(self, name: str, objects: int) -> None:
        """The cartridges that are in use have room for so many objects more."""
        for tape in self.site.tapes.values():
            if tape.objects:
                tape.capacity = len(tape.objects) + objects

    def do_fail(self, name: str, steps: int) -> None:
        """A job is cancelled somewhere on its way."""
        job = self.site.submit("backup", volume=name)
        self.site.settle(steps=steps)
        if job in self.site.machine.jobs:
            self.site.call_now("job.cancel", job=job)
        self.site.run()


@given(
    steps=st.lists(STEPS, min_size=2, max_size=12),
    order=st.permutations(TAGS),
    deaths=st.lists(st.integers(1, 40), max_size=2),
)
def test_a_rebuilt_catalog_has_what_the_lost_one_had(
    steps: list[tuple[str, str, object]], order: list[str], deaths: list[int]
) -> None:
    story = Story()
    story.do("write", "one", [1, 2, 3, 7])
    for step in steps:
        story.do(*step)
    site = story.site
    before = facts(site)
    written = [tag for tag in order if site.tapes[tag].objects]
    if not written:
        return
    lose_catalog(site)
    for tag in written:
        for stop in deaths:
            site.call_now(
                "catalog.rebuild",
                token=f"{tag}{stop}",
                tags=[tag],
                all=False,
                adopt=False,
                with_pruned=False,
            )
            site.settle(steps=stop)
            site.restart()
            site.run()
        job = rebuild(site, tag)
        assert job.state in ("completed", "partial"), job.reason
        assert not json.loads(job.result)["failed"]
    after = facts(site, before["backups"])
    assert after == before
    once = facts(site)
    rebuild(site, *written)
    assert facts(site) == once
    # Whatever came back can be read: nothing is called complete that is not.
    for number in before["backups"]:
        check = site.submit("verify", backup=number)
        site.run()
        assert site.job(check).state == "completed", site.job(check).reason


@given(
    spoilt=st.lists(st.tuples(st.integers(4, 60), st.binary(max_size=80)), max_size=8),
    cut=st.integers(4, 60),
)
def test_whatever_a_tape_holds_a_rebuild_ends_with_words(
    spoilt: list[tuple[int, bytes]], cut: int
) -> None:
    story = Story()
    story.do("write", "one", [1, 2, 3, 7, 9])
    for level in ("full", "incremental"):
        story.do("backup", "one", level)
        story.do("write", "one", [5])
    site = story.site
    before = facts(site)
    tape = site.tapes[TAGS[0]]
    for place, content in spoilt:
        if place < len(tape.objects):
            kept = tape.objects[place] or b""
            tape.objects[place] = (content + kept[len(content) :]) or b"x"
    del tape.objects[cut:]
    tape.durable = len(tape.objects)
    lose_catalog(site)
    job = rebuild(site, TAGS[0])
    assert job.exit_code in (0, 1, 3, 5, 8)
    for number, row in facts(site)["backups"].items():
        was = before["backups"][number]
        assert (row.backup_uuid, row.stream_bytes) == (was.backup_uuid, was.stream_bytes)
