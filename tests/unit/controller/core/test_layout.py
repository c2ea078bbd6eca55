"""What a restore reads, and from which cartridges."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.ids import BackupId, CartridgeId, VolumeTag
from controller.catalog.store import PartRow
from controller.core.chain import Picks, Reading
from controller.core.layout import of_cartridges
from tests.site.rebuilding import rebuild
from tests.site.rows import backup
from tests.site.site import DATA, Site, backed_up, check_end, connected, content


def reading(tag: str, picks: Picks, *, start: int, blocks: int) -> Reading:
    part = PartRow(
        backup=BackupId(1),
        part=1,
        tag=VolumeTag(tag),
        cartridge=CartridgeId("c" * 32),
        sequence=1,
        header_object=1,
        data_object=3,
        trailer_object=9,
        end=12,
        records=1,
        stream_start=start * 512,
        stream_bytes=blocks * 512,
        root="",
        is_last=True,
        created="",
    )
    return Reading(backup(1), part, picks)


def test_readings_of_some_cartridges_hold_nothing_of_the_others() -> None:
    picks = Picks([(0, 100, 10), (20, 300, 10)])
    one = reading("A", picks, start=0, blocks=24)
    two = reading("B", picks, start=24, blocks=40)
    [found] = of_cartridges([one, two], ["B"])
    assert found.part is two.part
    assert list(found.picks.slice(0, 100)) == [(24, 304, 6)]
    assert found.blocks == two.blocks == 6
    assert sum(each.blocks for each in of_cartridges([one, two], ["A", "B"])) == 20
    assert of_cartridges([one, two], ["C"]) == []


def test_a_restore_names_the_cartridges_and_what_it_stands_on(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    site.submit("backup", volume="vol")
    site.run()
    volume.write({5: b"n" * 512})
    site.submit("backup", volume="vol", level="auto")
    site.run()
    job = site.submit("restore", backup=2, new="copy")
    site.run()
    result: dict[str, Any] = json.loads(site.job(job).result)
    assert (result["needs"], result["parents"]) == (["LTO001L8"], [1])
    assert "cartridges needed, in order: LTO001L8" in site.log(job)


def test_a_part_that_the_catalog_does_not_know_ends_the_restore(site: Site) -> None:
    backed_up(site)
    del site.machine.registry.parts[BackupId(1), 1]
    job = site.submit("restore", backup=1, new="copy")
    site.run()
    assert site.job(job).state == "failed"
    assert "parts of backup 1, or of one under it, are not in the catalog" in site.job(job).reason


def made(site: Site, kind: str, **arguments: Any) -> int:
    job = site.submit(kind, **arguments)
    site.run()
    check_end(site, job)
    return int(site.job(job).backup)


@pytest.mark.parametrize("drives", [1, 2])
def test_an_original_that_comes_back_half_way_does_not_change_what_is_read(drives: int) -> None:
    """Its parts are others, and fewer, than those of the copy: counted on from there, one would be left out."""
    site = connected(drives=3, tags=tuple(f"LTO00{number}L8" for number in range(1, 6)))
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    site.tapes["LTO003L8"].capacity = 8
    for number, (kind, arguments) in enumerate(
        (
            ("backup", {"volume": "vol"}),
            ("backup", {"volume": "vol", "level": "incremental"}),
            ("copy", {"backup": 1}),
            ("copy", {"backup": 2}),
        ),
        1,
    ):
        assert made(site, kind, **arguments) == number
        volume.write(content(12, 13))
        for part in site.machine.registry.parts_of(number):
            site.set_cartridge(part.tag, status="full")
    tags = [[part.tag[5:6] for part in site.machine.registry.parts_of(n)] for n in (1, 2, 3, 4)]
    assert tags == [["1"], ["2"], ["3", "4"], ["5"]]
    site.call("backup.prune", backups=["1", "2"])
    away = site.tapes.pop("LTO005L8")
    site.connect("tape")
    job = site.submit("restore", backup=4, new="copy", drives=drives)
    site.run(60)
    rebuild(site, "LTO001L8", with_pruned=True)
    assert site.machine.backups[BackupId(1)].state == "completed"
    site.restart()
    site.tapes["LTO005L8"] = away
    site.connect("tape")
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    assert site.disk.by_name("copy").data == volume.data
