"""What a node's inventory sets in motion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import JobId, NodeName, ViewId
from backplane.wire.messages import NodeInventory, ViewMember
from controller.core import effects as core
from tests.site.site import DATA, Site, backed_up, check_end, connected, restored
from tests.site.tape import TapeNode


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


def test_a_barcode_at_two_nodes_is_an_alarm_once_and_stays_where_it_was(site: Site) -> None:
    other = TapeNode.with_drives(1, tags=("LTO001L8",))
    site.feed(
        core.PeerReady(name=NodeName("other"), role="storage", boot_id=b"o" * 16, key=b"k" * 32)
    )
    for _ in range(3):
        tell(site, "other", other.inventory())
    assert site.alarms == ["barcode LTO001L8 is at tape and at other: not used"]
    assert site.machine.registry.cartridges["LTO001L8"].node == "tape"  # type: ignore[index]


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
