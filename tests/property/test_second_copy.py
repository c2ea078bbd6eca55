"""Random volumes on random cartridges with up to two copies, and random damage on all of them.

The model knows of each record who could still read it.  A restore brings back exactly what anybody can read, and with
`--keep-going` what nobody can is zeros and listed, record by record.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.core import planner
from tests.site.disk import BLOCK
from tests.site.rows import data_records as records
from tests.site.site import Site, check_end, connected, content

BLOCKS = 40
TAGS = tuple(f"LTO0{number:02}L8" for number in range(1, 41))

capacities = st.lists(st.sampled_from([9, 10, 12, 10**6]), min_size=9, max_size=9)
lbas = st.sets(st.integers(0, BLOCKS - 1), max_size=BLOCKS - 1).map(
    lambda away: set(range(BLOCKS)) - away
)
damages = st.lists(st.sets(st.integers(0, 19), max_size=16), min_size=3, max_size=3)


def filled(data: set[int], room: list[int], copies: int) -> Site:
    """Back a volume up, and copy it so often; backups 1 to 1 + copies."""
    site = connected(drives=2, tags=TAGS, records=2)
    for tag, capacity in zip(TAGS, room, strict=False):
        site.tapes[tag].capacity = capacity
    site.make_volume("vol", blocks=BLOCKS, data=content(*data))
    jobs = [site.submit("backup", volume="vol", raw=True)]
    site.run()
    for _ in range(copies):
        jobs.append(site.submit("copy", backup=1))
        site.run()
    for job in jobs:
        check_end(site, job)
    return site


def damage(site: Site, backup: int, bad: set[int]) -> set[int]:
    """Make records of a backup's stream unreadable; returns those that it has."""
    number, done = 0, set()
    for part in site.machine.registry.parts_of(backup):
        for record in range(part.records):
            if number in bad:
                site.tapes[part.tag].bad.add(part.data_object + record)
                done.add(number)
            number += 1
    return done


@given(lbas, capacities, st.integers(0, 2), damages, st.integers(1, 2), st.data())
def test_what_anybody_can_read_comes_back_and_nothing_else_is_a_hole(
    data: set[int],
    room: list[int],
    copies: int,
    bad: list[set[int]],
    list_records: int,
    more: st.DataObject,
) -> None:
    was = planner.LIST_BYTES_MAX
    planner.LIST_BYTES_MAX = list_records * 2 * BLOCK  # type: ignore[misc]
    try:
        site = filled(data, room, copies)
        for number in range(2, copies + 2):
            assert records(site, number) == records(site, 1)
        lost = set(range(len(records(site, 1))))
        for number in range(1, copies + 2):
            lost &= damage(site, number, bad[number - 1])
        asked = more.draw(st.integers(1, copies + 1))
        result = restored(site, asked, "partial" if lost else "completed")
    finally:
        planner.LIST_BYTES_MAX = was  # type: ignore[misc]
    ordered = sorted(data)
    holes = {lba for record in lost for lba in ordered[2 * record : 2 * record + 2]}
    assert site.disk.by_name("new").data == content(*(data - holes))
    told = result.get("holes", {"extents": []})["extents"]
    assert {lba for first, count in told for lba in range(first, first + count)} == holes


def restored(site: Site, backup: int, state: str) -> Any:
    job = site.submit("restore", backup=backup, new="new", keep_going=True)
    site.run()
    check_end(site, job, state)
    return json.loads(site.job(job).result)
