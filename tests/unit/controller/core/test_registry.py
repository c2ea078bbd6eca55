"""Who and what is there, and who has claimed it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backplane.errors import BusyError, NotFoundError
from backplane.ids import Designator, JobId, NodeName, VolumeTag
from backplane.wire.messages import DriveState
from controller.catalog.store import DropRow, NodeRow
from controller.core.registry import Node, Registry
from tests.site.site import DATA, Site, backed_up

TAPE = NodeName("tape")
ONE, TWO = JobId(1), JobId(2)


def drive(name: str, *, loaded: str = "", state: str = "") -> DriveState:
    return DriveState(
        drive=name,
        designator=Designator(name.encode().ljust(8)),
        state=state or ("loaded" if loaded else "empty"),
        loaded=loaded,
        epoch=0,  # type: ignore[arg-type]
    )


def registry(*drives: DriveState) -> Registry:
    made = Registry()
    row = NodeRow(
        name=TAPE,
        public_key=b"",
        addresses=(),
        roles=("tape",),
        boot_id=b"",
        seen="",
    )
    made.nodes[TAPE] = Node(row=row, is_online=True, drives={d.drive: d for d in drives})
    return made


def found(of: Registry, job: JobId = ONE, prefer: str = "") -> str | None:
    drive = of.free_drive(TAPE, job=job, prefer=prefer)
    return drive.name if drive else None


def test_the_drive_that_holds_the_cartridge_comes_first_then_an_empty_one() -> None:
    made = registry(drive("d0", loaded="A"), drive("d1"), drive("d2", loaded="B"))
    assert found(made, prefer="B") == "d2"
    assert found(made, prefer="C") == "d1"


def test_a_drive_in_error_comes_last_but_is_not_lost() -> None:
    """Its error is a failed write; the next load ends it."""
    made = registry(drive("d0", loaded="A", state="error"), drive("d1", loaded="B"))
    assert found(made, prefer="C") == "d1"
    made.claim_drive(TWO, TAPE, "d1")
    assert found(made, prefer="C") == "d0"


def test_a_claimed_drive_is_free_for_its_own_job_only() -> None:
    made = registry(drive("d0"))
    made.claim_drive(ONE, TAPE, "d0")
    assert (found(made, ONE), found(made, TWO)) == ("d0", None)
    made.release(ONE)
    assert found(made, TWO) == "d0"


def test_a_job_has_one_drive_at_a_time() -> None:
    made = registry(drive("d0"), drive("d1"))
    made.claim_drive(ONE, TAPE, "d0")
    made.claim_drive(ONE, TAPE, "d1")
    assert made.drive_claims == {(TAPE, "d1"): ONE}


def test_a_job_has_one_drive_for_each_of_its_seats_and_neither_is_free_for_the_other() -> None:
    made = registry(drive("d0", loaded="A"), drive("d1"), drive("d2"))
    made.claim_drive(ONE, TAPE, "d0", seat="source")
    assert (found(made, ONE, prefer="A"), found(made, TWO)) == ("d1", "d1")
    asked = made.why_not_from_drive(TAPE, VolumeTag("A"), job=ONE)
    assert asked == "is in drive d0, which is in use"
    assert not made.why_not_from_drive(TAPE, VolumeTag("A"), job=ONE, seat="source")
    made.claim_drive(ONE, TAPE, "d1")
    made.claim_drive(ONE, TAPE, "d2", seat="source")
    assert made.drive_claims == {(TAPE, "d1"): ONE, (TAPE, "d2"): ONE}
    made.release_drives(ONE, seat="source")
    assert made.drive_claims == {(TAPE, "d1"): ONE}
    assert made.may_claim((TAPE, "d2"), job=TWO)
    made.release(ONE)
    assert not made.drive_claims


def test_a_cartridge_in_the_drive_of_another_job_is_in_use() -> None:
    made = registry(drive("d0", loaded="A"), drive("d1"))
    made.claim_drive(TWO, TAPE, "d0")
    assert "in drive d0, which is in use" in made.why_not_from_drive(TAPE, VolumeTag("A"), job=ONE)
    assert not made.why_not_from_drive(TAPE, VolumeTag("A"), job=TWO)
    assert not made.why_not_from_drive(TAPE, VolumeTag("B"), job=ONE)


def test_a_node_that_nobody_has_met_has_no_drive() -> None:
    assert Registry().free_drive(TAPE, job=ONE) is None


def test_nodes_are_found_by_role_and_name_if_they_are_connected() -> None:
    made = registry()
    assert made.online_node("tape").row.name == TAPE
    assert made.online_node("tape", name="tape").row.name == TAPE
    with pytest.raises(BusyError, match="a storage node of the disk role is away"):
        made.online_node("disk")
    with pytest.raises(NotFoundError, match="no storage node is named 'nix'"):
        made.online_node("tape", name="nix")
    made.nodes[TAPE].is_online = False
    with pytest.raises(BusyError, match="storage node tape is away"):
        made.online_node("tape", name="tape")


def test_a_reserved_name_is_taken_for_all_but_its_own_call() -> None:
    made = Registry()
    with made.reserving("vol", token="T"):
        assert made.is_reserved("vol", token="U")
        assert not made.is_reserved("vol", token="T")
        assert not made.is_reserved("other", token="U")
    assert not made.is_reserved("vol", token="U")


def test_a_name_is_given_back_also_when_making_the_volume_fails() -> None:
    made = Registry()
    with pytest.raises(BusyError), made.reserving("vol", token="T"):
        raise BusyError("no")
    assert not made.is_reserved("vol", token="U")


def test_a_deleted_volume_has_no_name(site: Site) -> None:
    site.make_volume("vol")
    registry_ = site.machine.registry
    row = registry_.volume_by_name("vol")
    registry_.volumes[row.volume] = replace(row, is_deleted=True)
    with pytest.raises(NotFoundError, match="no volume is named 'vol'"):
        registry_.volume_by_name("vol")


def test_a_volume_whose_node_is_away_has_no_state(site: Site) -> None:
    site.make_volume("vol")
    row = site.machine.registry.volume_by_name("vol")
    assert site.machine.registry.volume_state(row.volume) is not None
    site.disconnect("disk")
    assert site.machine.registry.volume_state(row.volume) is None


def test_units_are_found_by_their_designators(site: Site) -> None:
    volume = site.make_volume("vol")
    assert site.machine.registry.node_of_unit(volume.row.designator) == "disk"
    with pytest.raises(NotFoundError, match="no logical unit"):
        site.machine.registry.node_of_unit(b"nix")


def test_parts_are_listed_by_cartridge_and_by_backup(site: Site) -> None:
    site.tapes["LTO001L8"].capacity = 8
    backup = backed_up(site, DATA)
    of = site.machine.registry
    assert [part.part for part in of.parts_of(backup)] == [1, 2]
    assert [part.part for part in of.parts_on(VolumeTag("LTO002L8"))] == [2]
    last = of.last_part(VolumeTag("LTO002L8"))
    assert last is not None
    assert last.is_last
    with pytest.raises(NotFoundError, match="no cartridge has the barcode 'nix'"):
        of.cartridge("nix")


def test_a_cartridge_that_leaves_the_catalog_changes_what_is_where(site: Site) -> None:
    backed_up(site)
    of = site.machine.registry
    row, before = of.cartridges[VolumeTag("LTO001L8")], of.lineage
    assert of.parts_on(row.tag)
    of.remember(DropRow(row=row))
    assert (row.tag in of.cartridges, of.parts_on(row.tag)) == (False, [])
    assert of.lineage > before
