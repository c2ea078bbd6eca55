"""Volumes and cartridges on an operator's word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from backplane.ids import NodeName
from backplane.wire.messages import NodeReply, VolumeAttach, VolumeCreate
from controller.core import effects as core
from tests.site.disk import BLOCK
from tests.site.site import DATA, Site, backed_up, content

CREATE = {
    "token": "T",
    "name": "vol",
    "size_bytes": 8 * BLOCK,
    "block_bytes": BLOCK,
    "node": "",
}


def create(site: Site, **changes: Any) -> dict[str, Any]:
    return site.call("volume.create", **(CREATE | changes))


# --- create ---------------------------------------------------------------------------------------


def test_a_volume_gets_its_row_when_its_node_has_made_it(site: Site) -> None:
    site.begin_call("volume.create", **CREATE)
    assert not site.machine.registry.volumes
    site.settle()
    assert site.machine.registry.volume_by_name("vol").blocks == 8


def test_the_same_token_makes_one_volume_whatever_happens(site: Site) -> None:
    first = create(site)
    assert create(site) == first
    site.restart()
    assert create(site)["volume"] == first["volume"]
    assert len(site.volumes) == 1


def test_a_volume_that_was_made_while_nobody_lived_to_record_it_is_found_by_its_token(
    site: Site,
) -> None:
    site.begin_call("volume.create", **CREATE)
    target, asked = site.wire.pop()
    site.disk.answer(asked)  # The node has it; the answer is lost, and so are we.
    assert target == "disk"
    site.restart()
    create(site)
    assert len(site.volumes) == 1


def test_two_calls_cannot_make_two_volumes_of_one_name(site: Site) -> None:
    first = site.begin_call("volume.create", **CREATE)
    second = site.begin_call("volume.create", **(CREATE | {"token": "U"}))
    site.settle()
    assert site.answer_of(first)["name"] == "vol"
    with pytest.raises(RefusedError, match="is being made"):
        site.answer_of(second)
    site.call("volume.delete", name="vol", force=False)
    assert create(site, token="V")["name"] == "vol"


def test_a_name_is_free_again_when_its_volume_could_not_be_made(site: Site) -> None:
    site.begin_call("volume.create", **CREATE)
    site.disconnect("disk")
    with pytest.raises(UnreachableError):
        site.answer_of(site.call_number)
    site.wire.clear()
    site.connect("disk")
    assert create(site, token="U")["name"] == "vol"


def test_a_call_that_is_repeated_after_its_volume_was_deleted_does_not_bring_it_back(
    site: Site,
) -> None:
    create(site)
    site.call("volume.delete", name="vol", force=False)
    with pytest.raises(RefusedError, match="deleted since"):
        create(site)
    with pytest.raises(RefusedError, match="deleted since"):
        site.call("volume.attach", token="T", name="vol", path="/x", block_bytes=BLOCK, node="")
    assert not site.volumes


def test_a_node_that_does_not_answer_within_a_minute_is_told_to_the_operator(site: Site) -> None:
    call = site.begin_call("volume.create", **CREATE)
    site.away.add("disk")
    while call not in site.refusals:
        deadline = site.machine.deadline()
        assert deadline is not None
        site.now = deadline
        site.feed(core.Tick())
        site.settle()
    assert site.now == 60.0
    with pytest.raises(UnreachableError, match="create volume vol: no answer within 60 s"):
        site.answer_of(call)


@pytest.mark.parametrize(
    ("name", "is_good"),
    [
        ("vol", True),
        ("a-b_c.9", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        (".hidden", False),
        ("-option", False),
        ("a/b", False),
        ("a b", False),
        ("a\nb", False),
    ],
)
def test_names(site: Site, name: str, is_good: bool) -> None:
    if is_good:
        assert create(site, name=name)["name"] == name
    else:
        with pytest.raises(UsageError, match="is no name for a volume"):
            create(site, name=name)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size_bytes": 0}, UsageError),
        ({"size_bytes": 8 * BLOCK + 1}, UsageError),
        ({"size_bytes": 2**60}, UsageError),
        ({"block_bytes": 100}, UsageError),
        ({"node": "nix"}, NotFoundError),
        ({"node": "tape"}, BusyError),
    ],
)
def test_a_volume_that_makes_no_sense_is_refused(
    site: Site, changes: dict[str, Any], error: type[BackupError]
) -> None:
    with pytest.raises(error):
        create(site, **changes)


def test_without_a_disk_node_no_volume_is_made(site: Site) -> None:
    site.disconnect("disk")
    with pytest.raises(BusyError, match="a storage node of the disk role is away"):
        create(site)


# --- attach ---------------------------------------------------------------------------------------


def test_an_attached_volume_has_the_size_that_its_node_found(site: Site) -> None:
    answer = site.call(
        "volume.attach", token="T", name="disk1", path="/dev/x", block_bytes=BLOCK, node=""
    )
    assert (answer["blocks"], answer["name"]) == (32, "disk1")
    again = site.call(
        "volume.attach", token="T", name="disk1", path="/dev/x", block_bytes=BLOCK, node=""
    )
    assert again == answer


@pytest.mark.parametrize("wrong", ["nothing", "blocks", "designator"])
def test_a_node_that_attaches_something_else_is_not_believed(site: Site, wrong: str) -> None:
    call = site.begin_call(
        "volume.attach", token="T", name="disk1", path="/dev/x", block_bytes=BLOCK, node=""
    )
    _, asked = site.wire.pop()
    assert isinstance(asked, VolumeAttach)
    reply = site.disk.answer(asked)
    (state,) = reply.volumes
    changed: dict[str, Any] = {
        "nothing": (),
        "blocks": (replace(state, blocks=2**62),),
        "designator": (replace(state, designator=b"12345678"),),
    }
    answer = NodeReply(request=asked.request, boot_id=b"b" * 16, volumes=changed[wrong])
    site.feed(core.FromPeer(name=NodeName("disk"), message=answer))
    with pytest.raises(RemoteProtocolError, match="attached something else"):
        site.answer_of(call)
    assert not site.machine.registry.volumes


# --- delete ---------------------------------------------------------------------------------------


def test_a_volume_with_data_is_deleted_only_by_force(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.connect("disk")
    with pytest.raises(RefusedError, match="not empty"):
        site.call("volume.delete", name="vol", force=False)
    assert site.call("volume.delete", name="vol", force=True) == {}
    assert not site.volumes


def test_a_volume_in_use_is_not_deleted(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    with pytest.raises(BusyError, match="used by job 1"):
        site.call("volume.delete", name="vol", force=True)


def test_a_volume_whose_node_is_away_is_not_deleted(site: Site) -> None:
    site.make_volume("vol")
    site.disconnect("disk")
    with pytest.raises(UnreachableError):
        site.call("volume.delete", name="vol", force=True)
    assert site.machine.registry.volume_by_name("vol").name == "vol"


def test_a_backup_outlives_its_volume(site: Site) -> None:
    backup = backed_up(site)
    site.connect("disk")
    site.call("volume.delete", name="vol", force=True)
    job = site.submit("restore", backup=backup, new="vol")
    site.run()
    assert site.job(job).state == "completed"
    assert site.disk.by_name("vol").data == DATA


def test_a_node_that_has_a_deleted_volume_with_data_keeps_it(site: Site) -> None:
    """Deleting again what was deleted once is for leftovers that nobody can miss."""
    volume = site.make_volume("vol")
    site.call("volume.delete", name="vol", force=False)
    volume.data.update(content(1))
    site.volumes[volume.row.volume] = volume
    site.connect("disk")
    site.settle()
    assert site.volumes


# --- cartridges -----------------------------------------------------------------------------------


def test_a_cartridge_is_added_to_a_library_and_found_in_it(site: Site) -> None:
    answer = site.call(
        "tape.add", tag="LTO009L8", capacity_bytes=2**30, node="", pool="", worm=False
    )
    assert (answer["status"], answer["location"]) == ("blank", "slot-2")
    with pytest.raises(RefusedError, match="a cartridge has the barcode LTO009L8"):
        site.call("tape.add", tag="LTO009L8", capacity_bytes=2**30, node="", pool="", worm=False)


@pytest.mark.parametrize("tag", ["", "short", "lto009l8", "LTO-09L8", "LTO009L8X", "LTÖ009L8"])
def test_barcodes_that_are_none(site: Site, tag: str) -> None:
    with pytest.raises(UsageError, match="is no barcode"):
        site.call("tape.add", tag=tag, capacity_bytes=2**30, node="", pool="", worm=False)


@pytest.mark.parametrize("capacity", [0, 1000, 2**60])
def test_a_cartridge_of_no_sensible_size_is_refused(site: Site, capacity: int) -> None:
    with pytest.raises(UsageError):
        site.call("tape.add", tag="LTO009L8", capacity_bytes=capacity, node="", pool="", worm=False)


def test_a_request_to_create_names_everything_the_node_needs(site: Site) -> None:
    site.begin_call("volume.create", **CREATE)
    _, asked = site.wire.pop()
    assert isinstance(asked, VolumeCreate)
    assert (asked.name, asked.size_bytes, asked.block_bytes, asked.state) == (
        "vol",
        8 * BLOCK,
        BLOCK,
        "online",
    )


def test_a_cartridge_may_be_given_to_a_pool_when_it_is_added(site: Site) -> None:
    site.call("pool.create", name="weekly", retain="0", allocation="continue", scratch=False)
    add = {"capacity_bytes": 2**30, "node": "", "worm": False}
    answer = site.call("tape.add", tag="LTO009L8", pool="weekly", **add)
    assert answer["pool"] == "weekly"
    with pytest.raises(NotFoundError, match="no pool is named 'monthly'"):
        site.call("tape.add", tag="LTO010L8", pool="monthly", **add)
    assert not site.machine.registry.pools_of_new
