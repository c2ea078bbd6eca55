"""Imports and exports: grants for the operator's own program, and what is held until it says that it is done."""

from __future__ import annotations

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
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    NodeFailed,
    NodeReply,
    ViewExtents,
    VolumeCreate,
    VolumePublish,
)
from controller.core import effects as core
from tests.site.disk import BLOCK
from tests.site.site import DATA, OPERATOR, Site, backed_up, check_end, first_record, ledger

IMPORT = {
    "token": "T",
    "name": "new",
    "size_bytes": 8 * BLOCK,
    "block_bytes": BLOCK,
    "node": "",
    "holder": "",
}


def begin_import(site: Site, **changes: Any) -> int:
    call = site.begin_call("volume.import_begin", **(IMPORT | changes))
    site.settle()
    return call


def begin_export(site: Site, *, token: str = "T") -> int:
    call = site.begin_call("volume.export_begin", token=token, name="vol", holder="")
    site.settle()
    return call


# --- import ---------------------------------------------------------------------------------------


def test_an_import_is_granted_writing_to_the_whole_new_volume_and_nothing_else(
    site: Site,
) -> None:
    call = begin_import(site)
    answer = site.granted[call]
    (use,) = answer.uses
    volume = site.disk.by_name("new")
    assert (use.designator, use.node) == (volume.row.designator, "disk")
    assert (use.rights, use.extents) == (Rights.READ | Rights.WRITE, ((0, 8),))
    assert answer.holder == OPERATOR
    assert answer.epoch == site.machine.counter("epoch") > 0
    assert answer.document["volume"]["state"] == "importing"


def test_an_import_is_published_when_the_operator_says_that_it_is_done(site: Site) -> None:
    begin_import(site)
    answer = site.call("volume.import_end", name="new", ok=True)
    assert answer["state"] == "online"
    check_end(site, 1)
    assert site.job(1).kind == "import"
    assert ledger(site, 1)["residual_bytes"] == 0, "no mover counts what ctl has moved itself"


def test_an_import_that_the_operator_gives_up_leaves_no_volume(site: Site) -> None:
    begin_import(site)
    site.call("volume.import_end", name="new", ok=False)
    site.run()
    check_end(site, 1, "cancelled")
    assert not site.volumes
    with pytest.raises(NotFoundError):
        site.machine.registry.volume_by_name("new")


def test_the_end_of_an_import_can_be_said_again(site: Site) -> None:
    begin_import(site)
    first = site.call("volume.import_end", name="new", ok=True)
    assert site.call("volume.import_end", name="new", ok=True) == first
    with pytest.raises(NotFoundError):
        site.call("volume.import_end", name="other", ok=True)


def test_the_end_of_what_is_no_import_is_refused(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    backup = backed_up(site, name="b")
    site.tapes["LTO001L8"].bad = {first_record(site, backup)}
    site.submit("restore", backup=backup, new="copy")
    site.run()
    with pytest.raises(RefusedError, match="is not being imported"):
        site.call("volume.import_end", name="copy", ok=True)


def test_an_operator_who_cannot_be_given_a_volume_is_told_at_once_why(site: Site) -> None:
    site.begin_call("volume.import_begin", **IMPORT)
    (target, asked) = site.wire.pop()
    assert isinstance(asked, VolumeCreate)
    failed = NodeFailed(request=asked.request, error="refused", reason="no space", hint="")
    site.feed(core.FromPeer(name=NodeName(target), message=failed))
    site.settle()
    with pytest.raises(BackupError, match="job 1 has failed: no space"):
        site.answer_of(site.call_number)
    check_end(site, 1, "failed")


def test_an_operator_whose_end_cannot_be_published_is_told_why(site: Site) -> None:
    begin_import(site)
    call = site.begin_call("volume.import_end", name="new", ok=True)
    (target, asked) = site.wire.pop()
    assert isinstance(asked, VolumePublish)
    failed = NodeFailed(request=asked.request, error="medium", reason="cannot flush", hint="")
    site.feed(core.FromPeer(name=NodeName(target), message=failed))
    site.settle()
    with pytest.raises(BackupError, match="cannot flush"):
        site.answer_of(call)


def test_a_begin_that_is_repeated_gets_the_same_volume_with_a_new_grant(site: Site) -> None:
    first = begin_import(site)
    site.restart()
    second = begin_import(site)
    told = site.granted
    assert told[first].document["volume"]["volume"] == told[second].document["volume"]["volume"]
    assert told[first].epoch < told[second].epoch
    assert len(site.volumes) == 1


def test_an_import_whose_node_does_not_answer_is_given_up_with_the_call(site: Site) -> None:
    call = site.begin_call("volume.import_begin", **IMPORT)
    site.wire.clear()
    site.away.add("disk")  # It hangs: still connected, but deaf.
    while call not in site.refusals:
        deadline = site.machine.deadline()
        assert deadline is not None
        site.now = deadline
        site.feed(core.Tick())
        site.settle()
    assert isinstance(site.refusals[call], UnreachableError)
    assert site.now == 60.0
    site.disconnect("disk")
    site.settle()
    assert site.job(1).state == "cancelled"


def test_an_import_that_nobody_ends_is_dropped_after_a_day(site: Site) -> None:
    begin_import(site)
    site.run(25 * 3600.0)
    check_end(site, 1, "failed")
    assert "not finished within a day" in site.job(1).reason
    assert not site.volumes


def test_an_import_whose_node_was_away_when_it_was_dropped_is_deleted_there_later(
    site: Site,
) -> None:
    begin_import(site)
    site.disconnect("disk")
    site.begin_call("job.cancel", job=1)
    site.settle()
    assert site.job(1).state == "cancelled"
    assert site.volumes
    site.connect("disk")
    site.settle()
    assert not site.volumes


def test_an_import_that_is_cancelled_tells_the_operator_who_ends_it(site: Site) -> None:
    begin_import(site)
    call = site.begin_call("volume.import_end", name="new", ok=True)
    site.begin_call("job.cancel", job=1)
    site.run()
    with pytest.raises(BackupError, match="has cancelled"):
        site.answer_of(call)
    assert not site.volumes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size_bytes": 1000}, UsageError),
        ({"size_bytes": 0}, UsageError),
        ({"size_bytes": 2**62}, UsageError),
        ({"block_bytes": 1000}, UsageError),
        ({"name": "../x"}, UsageError),
        ({"name": "vol"}, RefusedError),
        ({"node": "nix"}, NotFoundError),
    ],
)
def test_an_import_that_makes_no_sense_is_refused(
    site: Site, changes: dict[str, Any], error: type[BackupError]
) -> None:
    site.make_volume("vol")
    call = begin_import(site, **changes)
    with pytest.raises(error):
        site.answer_of(call)
    assert not site.machine.jobs


# --- export ---------------------------------------------------------------------------------------


def test_an_export_is_granted_reading_of_a_static_view(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    call = begin_export(site)
    (use,) = site.granted[call].uses
    view = site.disk.views[site.answer_of(call)["view"]]
    assert (use.designator, use.rights, use.extents) == (
        view.designator,
        Rights.READ,
        ((0, 64),),
    )
    site.call("volume.export_end", view=view.view)
    site.settle()
    check_end(site, 1)


def test_an_export_holds_its_volume_against_others(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    begin_export(site)
    with pytest.raises(BusyError, match="used by job 1"):
        site.answer_of(begin_export(site, token="U"))
    with pytest.raises(BusyError, match="used by job 1"):
        site.call("volume.delete", name="vol", force=True)
    job = site.submit("backup", volume="vol")
    assert site.job(job).reason == "waiting: volume vol is used by job 1"


def test_an_export_that_is_begun_again_gets_the_same_view(site: Site) -> None:
    """The operator's first call was answered into the void, and the controller has restarted since."""
    site.make_volume("vol", data=DATA)
    first = begin_export(site)
    site.restart()
    second = begin_export(site)
    assert site.answer_of(first)["view"] == site.answer_of(second)["view"]
    assert len(site.disk.views) == 1


def test_an_export_whose_end_comes_while_its_node_is_away_is_completed(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    view = site.answer_of(begin_export(site))["view"]
    site.disconnect("disk")
    site.call("volume.export_end", view=view)
    assert site.job(1).state == "completed"
    site.connect("disk")
    site.settle()
    assert not site.disk.views


def test_an_export_that_nobody_ends_has_failed_after_a_day(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    begin_export(site)
    site.run(25 * 3600.0)
    check_end(site, 1, "failed")
    assert "not finished within a day" in site.job(1).reason


def test_the_end_of_an_unknown_view_is_as_good_as_done(site: Site) -> None:
    assert site.call("volume.export_end", view="nix") == {}


def test_a_volume_that_never_gets_quiet_cannot_be_exported_and_the_operator_is_told(
    site: Site,
) -> None:
    volume = site.make_volume("vol", data=DATA)
    site.disk.never_quiet.add(volume.row.volume)
    with pytest.raises(BackupError, match="without writes"):
        site.answer_of(begin_export(site))
    check_end(site, 1, "failed")


# --- extents --------------------------------------------------------------------------------------


def test_extents_of_a_view_are_answered_in_pages(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    call = begin_export(site)
    (use,) = site.granted[call].uses
    answer = site.call("volume.extents", designator=use.designator.hex(), start_lba=31)
    assert answer["extents"] == [[lba, 1] for lba in sorted(DATA) if lba >= 31]


def test_extents_of_nothing_are_not_found(site: Site) -> None:
    with pytest.raises(NotFoundError):
        site.call("volume.extents", designator="00" * 8, start_lba=0)


def test_half_an_extent_is_a_nodes_mistake_and_told_as_such(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    unit = volume.row.designator.hex()
    call = site.begin_call("volume.extents", designator=unit, start_lba=0)
    (target, asked) = site.wire.pop()
    assert isinstance(asked, ViewExtents)
    half = NodeReply(request=asked.request, boot_id=b"b" * 16, extents=b"half", next_lba=64)
    site.feed(core.FromPeer(name=NodeName(target), message=half))
    with pytest.raises(RemoteProtocolError, match="half an extent"):
        site.answer_of(call)
