"""Volumes that are found again at their nodes."""

from __future__ import annotations

from dataclasses import replace

from backplane.ids import NodeName, VolumeId
from controller.core.rebuild_volumes import HOMELESS, adopt_volumes
from tests.site.site import Site


def disk(site: Site) -> object:
    return site.machine.registry.nodes[NodeName("disk")]


def forget(site: Site, known_as: str, **changes: object) -> VolumeId:
    """Leave nothing of a volume but what cartridges would tell."""
    registry = site.machine.registry
    row = registry.volume_by_name(known_as)
    registry.volumes[row.volume] = replace(row, node=HOMELESS, is_deleted=True, **changes)  # type: ignore[arg-type]
    return row.volume


def test_a_volume_that_only_cartridges_told_of_gets_its_home_and_its_present_name(
    site: Site,
) -> None:
    site.make_volume("vol", blocks=32)
    volume = forget(site, "vol", name="former", blocks=8)
    assert adopt_volumes(site.machine, disk(site), unknown=False) == ["volume vol is at disk"]  # type: ignore[arg-type]
    row = site.machine.registry.volumes[volume]
    assert (row.name, row.node, row.blocks, row.is_deleted) == ("vol", "disk", 32, False)
    assert adopt_volumes(site.machine, disk(site), unknown=True) == []  # type: ignore[arg-type]


def test_a_volume_that_was_deleted_stays_so(site: Site) -> None:
    site.make_volume("vol")
    row = site.machine.registry.volume_by_name("vol")
    site.machine.registry.volumes[row.volume] = replace(row, is_deleted=True)
    assert adopt_volumes(site.machine, disk(site), unknown=True) == []  # type: ignore[arg-type]


def test_a_volume_that_nobody_told_of_is_only_taken_when_that_is_wanted(site: Site) -> None:
    site.make_volume("vol")
    site.make_volume("half")
    known = site.machine.registry.volumes
    volumes = {row.name: row.volume for row in known.values()}
    node = disk(site)
    states = node.volumes  # type: ignore[attr-defined]
    states[volumes["half"]] = replace(states[volumes["half"]], state="importing")
    known.clear()
    assert adopt_volumes(site.machine, node, unknown=False) == []  # type: ignore[arg-type]
    adopt_volumes(site.machine, node, unknown=True)  # type: ignore[arg-type]
    assert [row.name for row in known.values()] == ["vol"]


def test_a_name_that_is_taken_is_not_given_twice(site: Site) -> None:
    site.make_volume("vol")
    site.make_volume("other")
    forget(site, "vol")
    registry = site.machine.registry
    other = registry.volume_by_name("other")
    registry.volumes[other.volume] = replace(other, name="vol")
    told = adopt_volumes(site.machine, disk(site), unknown=False)  # type: ignore[arg-type]
    assert told == ["volume vol of disk has a name that is taken"]
