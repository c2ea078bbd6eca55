"""Documents for operators, and the ledger that has to balance."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import BackupId, JobId, NodeName, ViewId, VolumeId, VolumeTag
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.messages import LegState, ViewState
from controller.core import documents
from tests.site.site import DATA, Site, backed_up, first_record, ledger


@pytest.fixture
def job(site: Site) -> Any:
    backed_up(site)
    return site.job(1)


def entry(unit: str, **columns: int) -> dict[str, Any]:
    zero = dict.fromkeys(documents._COLUMNS, 0)
    return {"designator": unit, "position": 0} | zero | columns


def book(job: Any, items: list[Any], **changes: Any) -> dict[str, Any]:
    names = {"d1": ("vol", "disk"), "e1": ("tape/drive-0", "tape")}
    return documents.ledger_document(replace(job, **changes), items, names=names)


def data_item(site: Site, state: str, *, read: int, written: int, padded: int = 0) -> Any:
    ledger_of_item = [
        entry("d1", bytes_read=read),
        entry("e1", bytes_written=written, bytes_padded=padded, records_written=written // 2048),
    ]
    (row,) = site.items(1, "data")
    return replace(row, state=state, ledger=json.dumps(ledger_of_item))


# --- ledger ---------------------------------------------------------------------------------------


def test_the_controllers_own_count_is_nothing(site: Site, job: Any) -> None:
    assert ledger(site, 1)["controller_payload_bytes"] == 0


def test_devices_are_named_and_summed_over_all_items(site: Site, job: Any) -> None:
    items = [data_item(site, "done", read=4096, written=4096)] * 2
    tape = next(d for d in book(job, items)["devices"] if d["designator"] == "e1")
    assert (tape["name"], tape["role"]) == ("tape/drive-0", "tape")
    assert (tape["bytes_written"], tape["records_written"]) == (8192, 4)


def test_bytes_that_are_missing_are_residual_and_unbalance_a_completed_job(
    site: Site, job: Any
) -> None:
    items = [data_item(site, "done", read=4096, written=4096)]
    found = book(job, items)
    assert (found["residual_bytes"], found["is_balanced"]) == (7680 - 4096, False)
    assert book(job, items, state="failed")["is_balanced"], "a failed job need not be complete"


def test_padding_that_is_not_accounted_for_unbalances_any_job(site: Site, job: Any) -> None:
    items = [data_item(site, "done", read=7680, written=8192)]
    assert not book(job, items, state="failed")["is_balanced"]
    items = [data_item(site, "done", read=7680, written=8192, padded=512)]
    assert book(job, items)["is_balanced"]


def test_what_was_read_ahead_and_never_written_does_not_count(site: Site, job: Any) -> None:
    items = [
        data_item(site, "failed", read=7680, written=4096),
        data_item(site, "done", read=3584, written=4096, padded=512),
    ]
    found = book(job, items)
    assert (found["read_bytes"], found["is_balanced"]) == (7680, True)


def net(found: dict[str, Any]) -> tuple[int, int]:
    """Return what all units have read and written, without what was moved again."""
    read = sum(each["bytes_read"] - each["again_read"] for each in found["devices"])
    return read, sum(each["bytes_written"] - each["again_written"] for each in found["devices"])


def test_what_a_list_that_failed_has_read_ahead_is_shown_at_its_unit(site: Site, job: Any) -> None:
    items = [
        data_item(site, "failed", read=7680, written=4096),
        data_item(site, "done", read=3584, written=4096, padded=512),
    ]
    found = book(job, items)
    assert net(found) == (found["read_bytes"], found["written_bytes"]) == (7680, 8192)
    assert [each["again_read"] for each in found["devices"]] == [3584, 0]
    assert (found["again_read_bytes"], found["again_written_bytes"]) == (3584, 0)


@pytest.mark.parametrize("options", [{"keep_going": True}, {"paths": ["a"], "staging": True}])
def test_a_restore_over_damage_adds_up_unit_by_unit(site: Site, options: dict[str, Any]) -> None:
    made = site.make_volume("vol", data=DATA)
    made.files.table = {"a": tuple(sorted(DATA))}
    site.submit("backup", volume="vol")
    site.run()
    site.tapes["LTO001L8"].bad.add(first_record(site, 1) + 1)
    number = site.submit("restore", backup=1, new="new", **options)
    site.run()
    assert site.job(number).state == "partial"
    found = ledger(site, number)
    assert found["again_read_bytes"] == found["again_written_bytes"] == 2048
    assert net(found) == (found["read_bytes"], found["written_bytes"])
    assert found["read_bytes"] == found["written_bytes"] + found["discarded_bytes"]


def test_a_verification_over_damage_adds_up_unit_by_unit(site: Site) -> None:
    backed_up(site)
    site.tapes["LTO001L8"].bad.add(first_record(site, 1) + 1)
    number = site.submit("verify", backup=1)
    site.run()
    found = ledger(site, number)
    assert net(found) == (found["read_bytes"], 0)


def test_lists_of_metadata_are_counted_apart(site: Site, job: Any) -> None:
    (item,) = site.items(1, "label")
    ledger_of_item = [entry("e1", bytes_written=600)]
    label = replace(item, ledger=json.dumps(ledger_of_item))
    found = book(job, [label, data_item(site, "done", read=7680, written=8192, padded=512)])
    assert (found["metadata_bytes"], found["written_bytes"]) == (600, 8192)
    assert found["is_balanced"]


@pytest.mark.parametrize("kind", ["import", "export"])
def test_what_operators_move_themselves_is_no_residual_of_movers(job: Any, kind: str) -> None:
    found = book(job, [], kind=kind)
    assert (found["residual_bytes"], found["is_balanced"]) == (0, True)


# --- jobs -----------------------------------------------------------------------------------------


def test_a_running_job_shows_what_its_item_has_moved_so_far(job: Any) -> None:
    running = replace(job, exit_code=-1, state="copying", ended="", done_bytes=1000)
    told = documents.job_document(running, wall=running.started, in_flight_bytes=920)
    assert (told["bytes_done"], told["percent_done"], told["exit_code"]) == (1920, 0.25, None)
    told = documents.job_document(running, wall=running.started, in_flight_bytes=10**9)
    assert told["percent_done"] == 1.0


def test_the_time_that_remains_follows_from_the_time_that_passed(job: Any) -> None:
    running = replace(job, exit_code=-1, ended="", done_bytes=1920, started="2026-01-11T00:00:00Z")
    told = documents.job_document(running, wall="2026-01-11T00:00:10Z")
    assert (told["seconds_elapsed"], told["seconds_remaining"]) == (10.0, 30.0)


def test_a_job_whose_clock_was_set_back_has_taken_no_time(job: Any) -> None:
    running = replace(job, exit_code=-1, ended="", started="2026-01-11T00:00:10Z")
    told = documents.job_document(running, wall="2026-01-11T00:00:00Z")
    assert told["seconds_elapsed"] == 0.0


def test_an_ended_job_is_what_it_is(job: Any) -> None:
    told = documents.job_document(job, wall="2030-01-01T00:00:00Z")
    assert (told["percent_done"], told["exit_code"], told["seconds_remaining"]) == (1.0, 0, 0.0)
    nothing = replace(job, planned_bytes=0, done_bytes=0)
    assert documents.job_document(nothing, wall="")["percent_done"] == 1.0
    failed = replace(nothing, state="failed", exit_code=1)
    assert documents.job_document(failed, wall="")["percent_done"] == 0.0


def test_an_item_is_shown_with_its_list_and_its_sense_in_words(site: Site, job: Any) -> None:
    row = site.items(1, "data")[0]
    told = documents.item_document(row)
    assert bytes.fromhex(told["parameter_list"]) == row.parameter_list
    assert (told["status"], told["mover"], told["sense_text"]) == ("00h", "m1", "")
    sense = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11)
    told = documents.item_document(replace(row, status=2, sense=sense.encode_fixed()))
    assert told["status"] == "02h"
    assert "MEDIUM ERROR" in told["sense_text"]
    told = documents.item_document(replace(row, status=-1, movers=(), sense=b"\xff\xff"))
    assert (told["status"], told["mover"]) == ("", "")
    assert told["sense_text"] == "no sense data that can be decoded"


# --- volumes and cartridges -----------------------------------------------------------------------


def test_a_volume_is_as_its_node_says_or_away_or_missing(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    row = site.machine.registry.volume_by_name("vol")
    site.connect("disk")
    told = documents.volume_document(site.machine.registry, row)
    assert (told["state"], told["node_state"], told["is_empty"]) == ("online", "online", False)
    site.disconnect("disk")
    told = documents.volume_document(site.machine.registry, row)
    assert (told["state"], told["node_state"]) == ("away", "away")
    del site.volumes[volume.row.volume]
    site.connect("disk")
    assert documents.volume_document(site.machine.registry, row)["state"] == "missing"


def told_of(site: Site, **state: Any) -> dict[str, Any]:
    """What operators see of a volume whose node says this of it."""
    volume = site.make_volume("vol")
    volume.row = replace(volume.row, **state)
    site.connect("disk")
    registry = site.machine.registry
    return documents.volume_document(registry, registry.volume_by_name("vol"))


def test_a_volume_says_who_uses_it(site: Site) -> None:
    told = told_of(site, idle_s=2.5, last_writer="10.0.0.7", connections=3, is_read_only=True)
    assert (told["idle_s"], told["last_writer"]) == (2.5, "10.0.0.7")
    assert (told["connections"], told["is_read_only"]) == (3, True)
    site.disconnect("disk")
    registry = site.machine.registry
    told = documents.volume_document(registry, registry.volume_by_name("vol"))
    assert (told["idle_s"], told["last_writer"]) == (-1.0, "")
    assert (told["connections"], told["is_read_only"]) == (0, False)
    assert (told["nbd"], told["legs"]) == ([], []), "nobody reaches it there"


def test_a_writers_name_cannot_write_to_the_operators_terminal(site: Site) -> None:
    """It comes from a workstation."""
    told = told_of(site, last_writer="\x1b[2Jx" + "y" * 100)
    assert told["last_writer"] == "?[2Jx" + "y" * 59


def test_a_volume_shows_the_legs_of_its_mirror(site: Site) -> None:
    leg = LegState(
        name="far",
        path="/mnt/far",
        state="failed",
        reason="no space",
        bytes_left=512,
        bytes_total=4096,
    )
    assert told_of(site, legs=(leg,))["legs"] == [
        {
            "leg": "far",
            "path": "/mnt/far",
            "state": "failed",
            "reason": "no space",
            "bytes_left": 512,
            "bytes_total": 4096,
        }
    ]


@pytest.mark.parametrize(
    ("address", "name", "uri"),
    [
        ("tcp://10.0.0.5:10809", "vol", "nbd://10.0.0.5:10809/vol"),
        ("tcp://[fe80::1]:10809", "vol", "nbd://[fe80::1]:10809/vol"),
        ("unix:///run/nbd.sock", "vol", "nbd+unix:///vol?socket=/run/nbd.sock"),
        ("unix:///run/a b&c", "vol", "nbd+unix:///vol?socket=/run/a%20b%26c"),
        ("tcp://10.0.0.5:10809", "größe", "nbd://10.0.0.5:10809/gr%C3%B6%C3%9Fe"),
    ],
)
def test_a_volume_says_where_it_is_reached_over_nbd(
    site: Site, address: str, name: str, uri: str
) -> None:
    site.disk.nbd_addresses = (address,)
    site.make_volume(name)
    site.connect("disk")
    registry = site.machine.registry
    told = documents.volume_document(registry, registry.volume_by_name(name))
    assert told["nbd"] == [uri]


def test_a_static_view_is_told_with_where_it_is_read(site: Site) -> None:
    volume = site.make_volume("vol")
    site.disk.nbd_addresses = ("unix:///run/nbd.sock", "tcp://10.0.0.5:10809")
    view = ViewState(
        view=ViewId("ab" * 16),
        volume=volume.row.volume,
        job=JobId(0),
        designator=volume.row.designator,
        blocks=64,
        block_bytes=512,
        means="snapshot",
        state="broken",
        reason="no space",
        used_bytes=4096,
        created="2026-01-11T10:50:00Z",
        consistency="file-system",
    )
    site.connect("disk")
    registry = site.machine.registry
    told = documents.static_view_document(registry, NodeName("disk"), view)
    export = f"vol%40{view.view}"
    assert told == {
        "view": view.view,
        "volume": "vol",
        "node": "disk",
        "job": 0,
        "means": "snapshot",
        "state": "broken",
        "reason": "no space",
        "used_bytes": 4096,
        "created": "2026-01-11T10:50:00Z",
        "consistency": "file-system",
        "nbd": [f"nbd+unix:///{export}?socket=/run/nbd.sock", f"nbd://10.0.0.5:10809/{export}"],
    }
    stranger = replace(view, volume=VolumeId("cd" * 16))
    told = documents.static_view_document(registry, NodeName("disk"), stranger)
    assert (told["volume"], told["nbd"]) == ("", []), "its export has the volume's name"


def test_a_cartridge_has_a_status_and_a_location(site: Site, job: Any) -> None:
    registry = site.machine.registry
    row = registry.cartridge("LTO001L8")
    told = documents.cartridge_document(registry, row)
    assert (told["status"], told["location"], told["parts"]) == (
        "writable",
        "drive-0",
        1,
    )
    other = documents.cartridge_document(registry, registry.cartridge("LTO002L8"))
    assert (other["status"], other["location"]) == ("blank", "slot-1")
    site.disconnect("tape")
    told = documents.cartridge_document(registry, row)
    assert (told["status"], told["location"]) == ("writable", "offline")
    site.tape.tapes.pop("LTO001L8")
    site.connect("tape")
    told = documents.cartridge_document(registry, row)
    assert (told["status"], told["location"]) == ("writable", "offline")
    away = documents.cartridge_document(registry, replace(row, vault="cellar"))
    assert away["location"] == "vault cellar"


def test_what_only_the_node_of_a_cartridge_knows_is_told(site: Site, job: Any) -> None:
    registry = site.machine.registry
    row = registry.cartridge("LTO001L8")
    tape = site.tapes["LTO001L8"]
    tape.retain_until, tape.is_held, tape.is_write_protected = "2026-03-01T00:00:00Z", True, True
    site.connect("tape")
    told = documents.cartridge_document(registry, row)
    assert (told["retain_until"], told["hold"]) == ("2026-03-01T00:00:00Z", "its node says so")
    assert told["is_write_protected"]
    ours = replace(row, hold="lawsuit", retain_until="2026-04-01T00:00:00Z")
    told = documents.cartridge_document(registry, ours)
    assert (told["retain_until"], told["hold"]) == ("2026-04-01T00:00:00Z", "lawsuit")


def test_a_cartridge_that_no_library_has_is_as_full_as_its_parts(site: Site, job: Any) -> None:
    registry = site.machine.registry
    row = registry.cartridge("LTO001L8")
    assert documents.cartridge_document(registry, row)["is_used_known"]
    site.tapes.pop("LTO001L8")
    site.connect("tape")
    told = documents.cartridge_document(registry, replace(row, vault="cellar"))
    assert (told["used_bytes"], told["record_bytes"], told["is_used_known"]) == (7680, 7680, False)


def test_a_backup_is_named_by_its_volume_and_time(site: Site, job: Any) -> None:
    row = site.machine.backups[1]  # type: ignore[index]
    registry = site.machine.registry
    told = documents.backup_document(row, registry, site.machine.backups)
    assert told["name"] == f"vol/{row.created}"
    assert (told["tags"], told["parts"], told["size_bytes"]) == (["LTO001L8"], 1, 64 * 512)
    assert (told["level"], told["parent"], told["chain"]) == ("full", 0, [1])
    assert (told["needs"], told["broken"]) == (["LTO001L8"], "")
    part = documents.part_document(registry.parts_of(1)[0], row, registry)
    assert (part["records"], part["stream_bytes"], part["volume"]) == (4, 7680, "vol")


def test_a_part_of_a_cartridge_that_was_erased_since_is_history(site: Site, job: Any) -> None:
    registry, row = site.machine.registry, site.machine.backups[BackupId(1)]
    (part,) = registry.parts_of(1)
    assert not documents.part_document(part, row, registry)["is_gone"]
    site.set_cartridge("LTO001L8", cartridge="", status="blank")
    told = documents.part_document(part, row, site.machine.registry)
    assert (told["is_gone"], told["tag"], told["records"]) == (True, "LTO001L8", 4)


def test_a_backup_says_what_a_restore_of_it_needs_and_what_keeps_it_from_that(
    site: Site, job: Any
) -> None:
    registry, first = site.machine.registry, site.machine.backups[1]  # type: ignore[index]
    later = replace(first, backup=BackupId(2), level="incremental", parent=first.backup)
    backups = {first.backup: first, later.backup: later}
    registry.parts[2, 1] = replace(
        registry.parts[1, 1], backup=later.backup, tag=VolumeTag("LTO002L8")
    )
    told = documents.backup_document(later, registry, backups)
    assert (told["level"], told["parent"], told["chain"]) == ("incremental", 1, [2, 1])
    assert (told["tags"], told["needs"]) == (["LTO002L8"], ["LTO001L8", "LTO002L8"])
    assert "cartridge LTO002L8" in told["broken"], "the cartridge has no label yet"
    del backups[first.backup]
    told = documents.backup_document(later, registry, backups)
    assert told["broken"] == "backup 2 stands on 1, which is not there"
    assert told["chain"] == [2]


def test_nodes_and_movers_are_listed_with_what_they_do(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    while not site.machine.dispatcher.leases:
        site.deliver(*site.wire.pop(0))
    (mover,) = documents.mover_documents(site.machine.registry)
    assert (mover["state"], mover["job"]) == ("busy", 1)
    site.run()
    site.lose_mover("m1")
    (mover,) = documents.mover_documents(site.machine.registry)
    assert mover["state"] == "away"
    disk, tape = documents.node_documents(site.machine.registry)
    assert (disk["name"], disk["volumes"], disk["drives"]) == ("disk", 1, 0)
    assert (tape["cartridges"], tape["drives"], tape["state"]) == (2, 1, "online")
