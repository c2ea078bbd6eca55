"""What a node's inventory sets in motion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import JobId, NodeName, ViewId
from backplane.wire.messages import NodeInventory, ViewMember
from controller.core import effects as core
from controller.core.allocation import is_request
from tests.site.site import DATA, Site, backed_up, check_end, connected, restored
from tests.site.tape import Tape, TapeNode


def tell(site: Site, name: str, inventory: NodeInventory) -> None:
    site.feed(core.FromPeer(name=NodeName(name), message=inventory))


def changed(site: Site, **changes: Any) -> NodeInventory:
    """The tape node's inventory with its first cartridge changed."""
    inventory = site.tape.inventory()
    first, *others = inventory.cartridges
    return replace(inventory, cartridges=(replace(first, **changes), *others))


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("blank", "blank"),
        ("writable", "foreign"),
        ("full", "foreign"),
        ("foreign", "foreign"),
        ("error", "error"),
    ],
)
def test_a_new_cartridge_with_data_is_never_ours_to_write(found: str, kept: str) -> None:
    site = Site()
    site.connect("disk")
    site.feed(
        core.PeerReady(name=NodeName("tape"), role="storage", boot_id=site.tape.boot, key=b"k" * 32)
    )
    tell(site, "tape", changed(site, status=found))
    assert site.machine.registry.cartridges["LTO001L8"].status == kept  # type: ignore[index]


def test_what_is_known_of_a_cartridge_is_not_changed_by_an_inventory(site: Site) -> None:
    backed_up(site)
    before = site.machine.registry.cartridges["LTO001L8"]  # type: ignore[index]
    tell(site, "tape", changed(site, status="error", detail="?"))
    assert site.machine.registry.cartridges["LTO001L8"] == before  # type: ignore[index]


# --- never the wrong cartridge ---------------------------------------------------------------------


def tell_of_another_node(site: Site, *tapes: Tape, name: str = "other") -> TapeNode:
    """A second tape node comes, with cartridges."""
    other = TapeNode(name=name, boot=b"o" * 16)
    for tape in tapes:
        other.put(tape)
    site.feed(
        core.PeerReady(name=NodeName(name), role="storage", boot_id=other.boot, key=b"k" * 32)
    )
    tell(site, name, other.inventory())
    return other


def row_of(site: Site, tag: str = "LTO001L8") -> Any:
    return site.machine.registry.cartridges[tag]  # type: ignore[index]


def test_a_barcode_at_two_nodes_is_quarantined_with_one_alarm(site: Site) -> None:
    backed_up(site)
    other = tell_of_another_node(site, Tape("LTO001L8"))
    for _ in range(3):
        tell(site, "other", other.inventory())
        tell(site, "tape", site.tape.inventory())
    assert row_of(site).status == "quarantined"
    assert row_of(site).detail == "barcode LTO001L8 is at other and at tape"
    (alarm,) = site.alarms
    assert "barcode LTO001L8 is at other and at tape" in alarm
    assert "ctl tape set-status" in alarm


def test_nobody_writes_or_reads_a_cartridge_in_quarantine(site: Site) -> None:
    backup = backed_up(site)
    tell_of_another_node(site, Tape("LTO001L8"))
    again = site.submit("backup", volume="vol")
    restore = site.submit("restore", backup=backup, new="copy")
    site.run(120)
    assert site.machine.registry.parts_of(int(site.job(again).backup))[0].tag == "LTO002L8"
    reason = site.job(restore).reason
    assert "waiting: cartridge LTO001L8 is quarantined: barcode" in reason
    assert reason.endswith("; if it is the right one: ctl tape set-status LTO001L8 STATUS")
    assert is_request(reason), "ctl tape status lists it"
    tell(site, "other", TapeNode(name="other", boot=b"o" * 16).inventory())
    site.call("tape.set", tag="LTO001L8", status="writable", node="", pool="")
    site.run()
    check_end(site, restore)


def test_a_barcode_that_one_node_reports_twice_is_quarantined(site: Site) -> None:
    inventory = site.tape.inventory()
    first, *_ = inventory.cartridges
    twice = replace(inventory, cartridges=(*inventory.cartridges, replace(first, end=5)))
    tell(site, "tape", twice)
    assert row_of(site).status == "quarantined"
    assert row_of(site).detail == "barcode LTO001L8 is on 2 cartridges at tape"


def test_one_label_under_two_barcodes_quarantines_both(site: Site) -> None:
    backed_up(site)
    site.tape.put(Tape("LTO009L8", objects=list(site.tapes["LTO001L8"].objects)))
    site.connect("tape")
    for tag in ("LTO001L8", "LTO009L8"):
        assert row_of(site, tag).status == "quarantined"
        assert row_of(site, tag).detail.startswith("LTO001L8 and LTO009L8 have one label")
    assert len(site.alarms) == 1


def test_the_right_one_of_two_stays_in_use_when_the_other_was_taken_away(site: Site) -> None:
    backed_up(site)
    site.tape.put(Tape("LTO009L8", objects=list(site.tapes["LTO001L8"].objects)))
    site.connect("tape")
    site.call("tape.set", tag="LTO001L8", status="writable", node="", pool="")
    tell(site, "tape", site.tape.inventory())
    assert row_of(site).status == "quarantined", "its twin is still here"
    copy = site.tape.take_out("LTO009L8")
    tell(site, "tape", site.tape.inventory())
    assert row_of(site).status == "quarantined", "nobody has said that it is the right one"
    site.call("tape.set", tag="LTO001L8", status="writable", node="", pool="")
    tell(site, "tape", site.tape.inventory())
    assert row_of(site).status == "writable"
    assert row_of(site, "LTO009L8").status == "quarantined"
    site.restart()  # The disk node is back first: of the tape node nothing is known yet.
    tell_of_another_node(site, Tape("LTO010L8"))
    assert row_of(site).status == "writable", "what an operator has said outlives a restart"
    site.tape.put(copy)
    tell(site, "tape", site.tape.inventory())
    assert row_of(site).status == "quarantined"


def test_a_cartridge_that_was_swapped_is_found_before_anybody_loads_it(site: Site) -> None:
    backed_up(site)
    other = connected()
    other.ids = iter(range(10**6, 2 * 10**6))  # type: ignore[assignment]
    backed_up(other)
    site.tapes["LTO001L8"].objects = list(other.tapes["LTO001L8"].objects)
    site.connect("tape")
    assert row_of(site).status == "quarantined"
    assert "is on another cartridge" in row_of(site).detail


def test_a_cartridge_that_was_carried_to_another_library_is_at_home_there(site: Site) -> None:
    backup = backed_up(site)
    carried = site.tape.take_out("LTO001L8")
    site.connect("tape")
    tell_of_another_node(site, carried)
    assert (row_of(site).node, row_of(site).status) == ("other", "writable")
    assert site.alarms == []
    assert backup


def test_another_cartridge_in_its_place_is_not(site: Site) -> None:
    backed_up(site)
    site.tape.take_out("LTO001L8")
    site.connect("tape")
    tell_of_another_node(site, Tape("LTO001L8"))
    assert (row_of(site).node, row_of(site).status) == ("tape", "quarantined")
    assert "on another cartridge than it was at tape" in row_of(site).detail


def test_while_its_home_is_away_nobody_can_say_and_a_person_is_told_once(site: Site) -> None:
    backed_up(site)
    carried = site.tapes["LTO001L8"]
    site.disconnect("tape")
    other = tell_of_another_node(site, carried)
    tell(site, "other", other.inventory())
    assert (row_of(site).node, row_of(site).status) == ("tape", "writable")
    (alarm,) = site.alarms
    assert "ctl tape set-status LTO001L8 writable --node other" in alarm
    site.call("tape.set", tag="LTO001L8", status="writable", node="other", pool="")
    assert row_of(site).node == "other"


def test_a_cartridge_that_this_catalog_has_forgotten_names_the_recipe() -> None:
    site = connected()
    backed_up(site)
    lost = connected(tags=())
    lost.tape.put(site.tapes["LTO001L8"])
    lost.connect("tape")
    assert row_of(lost).status == "foreign"
    assert "ctl catalog rebuild --from LTO001L8" in row_of(lost).detail


def test_a_cartridge_of_another_catalog_says_so(site: Site) -> None:
    more = replace(
        site.tape.inventory().cartridges[0],
        tag="LTO077L8",  # type: ignore[arg-type]
        cartridge="c" * 32,  # type: ignore[arg-type]
        status="full",
        store="d" * 32,
    )
    inventory = site.tape.inventory()
    tell(site, "tape", replace(inventory, cartridges=(*inventory.cartridges, more)))
    assert row_of(site, "LTO077L8").status == "foreign"
    assert row_of(site, "LTO077L8").detail == f"has data of another catalog ({'d' * 32})"


def test_a_blank_cartridge_that_was_written_elsewhere_is_none_of_ours_to_write(site: Site) -> None:
    site.tapes["LTO001L8"].objects = [b"somebody's"]
    site.connect("tape")
    assert row_of(site).status == "foreign"
    assert [alarm for alarm in site.alarms if "was blank and is foreign now" in alarm]


def test_a_node_that_does_not_keep_what_the_catalog_keeps_is_told_again(site: Site) -> None:
    backed_up(site)
    site.set_cartridge("LTO001L8", retain_until="2026-03-01T00:00:00Z", hold="lawsuit")
    site.connect("tape")
    site.settle()
    assert site.tapes["LTO001L8"].retain_until == "2026-03-01T00:00:00Z"
    assert site.tapes["LTO001L8"].is_held
    tell(site, "tape", site.tape.inventory())
    assert not site.wire


def test_how_many_cleanings_are_left_follows_the_node(site: Site) -> None:
    site.set_cartridge("LTO001L8", status="cleaning", detail="50 cleanings left")
    tell(site, "tape", changed(site, status="cleaning", detail="49 cleanings left"))
    assert row_of(site).detail == "49 cleanings left"


def test_a_capacity_larger_than_the_catalog_can_keep_is_cut(site: Site) -> None:
    inventory = site.tape.inventory()
    more = replace(inventory.cartridges[0], tag="LTO077L8", capacity_bytes=2**64 - 1)  # type: ignore[arg-type]
    tell(site, "tape", replace(inventory, cartridges=(*inventory.cartridges, more)))
    row = site.machine.registry.cartridges["LTO077L8"]  # type: ignore[index]
    assert row.capacity_bytes == 2**63 - 1


def test_an_old_copy_of_the_catalog_goes_on_behind_the_epochs_that_nodes_have_seen() -> None:
    """Otherwise every fence refuses the controller until its counter has caught up."""
    site = connected()
    backup = backed_up(site)
    old = site.catalog.reopen()
    site.catalog = old.reopen()
    site.restart()
    for name in ("a", "b", "c"):
        assert restored(site, backup, name=name) == DATA
    given = site.machine.counter("epoch")
    site.catalog = old
    site.restart()
    assert [alarm for alarm in site.alarms if "it is an old copy" in alarm]
    assert site.machine.counter("epoch") >= given - 1
    site.call_now("catalog.accept")
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)


def test_an_epoch_that_nobody_can_have_given_is_not_believed(site: Site) -> None:
    inventory = site.tape.inventory()
    (drive,) = inventory.drives
    mad = replace(drive, epoch=2**64 - 1)  # type: ignore[arg-type]
    tell(site, "tape", replace(inventory, drives=(mad,)))
    assert site.machine.counter("epoch") < 1000
    assert site.alarms == []


def test_an_inventory_of_a_node_that_is_at_work_does_not_ask_it_everything_again(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    before = list(site.wire)
    tell(site, "disk", site.disk.inventory())
    assert site.wire == before


# --- views that are left over ---------------------------------------------------------------------


def test_a_view_made_by_hand_survives_the_inventories_of_its_node(site: Site) -> None:
    site.make_volume("vol")
    made = site.call(
        "view.create",
        token="T",
        name="vol",
        means="auto",
        quiet_s=0.0,
        sync_timeout_s=10.0,
        ttl_s=60.0,
    )
    site.connect("disk")
    site.restart_node("disk")
    site.restart()
    site.settle()
    assert list(site.disk.views) == [made["view"]]


def test_the_view_of_a_job_that_has_ended_is_released_when_its_node_is_back(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.machine.registry.nodes[NodeName("disk")].views:
        site.deliver(*site.wire.pop(0))
    assert [view.job for view in site.disk.views.values()] == [job]
    site.disconnect("disk")
    site.call("job.cancel", job=job)
    site.run()
    assert site.job(job).state == "cancelled"
    assert site.disk.views, "nobody could reach it"
    site.connect("disk")
    site.settle()
    assert not site.disk.views


def test_the_view_of_a_job_that_nobody_knows_is_released(site: Site) -> None:
    """An old copy of the catalog: the job was submitted after it."""
    volume = site.make_volume("vol")
    site.disk._make_view(ViewMember(view=ViewId("ab" * 16), volume=volume.row.volume), job=JobId(9))
    site.connect("disk")
    site.settle()
    assert not site.disk.views
