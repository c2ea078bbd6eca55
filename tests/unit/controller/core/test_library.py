"""By hand: loading, unloading, bringing in and out, looking; drives that are down; whose a drive is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from backplane.ids import NodeName
from backplane.wire.messages import TapeLoad, TapeUnload
from controller.core import effects as core
from controller.core.allocation import is_request
from controller.core.documents import cartridge_document
from controller.core.library_documents import drive_documents, status_document
from tests.site.site import DATA, Site, backed_up, check_end, connected, restored
from tests.site.tape import TapeNode

TAG = "LTO001L8"


def drive(site: Site, number: int = 0) -> dict[str, Any]:
    return drive_documents(site.machine.registry, site.machine.jobs)[number]


def at_work(site: Site) -> int:
    """A job that copies."""
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.items(job, "data"):
        site.deliver(*site.wire.pop(0))
    return job


def test_a_cartridge_is_put_into_a_free_drive_and_taken_out_again(site: Site) -> None:
    told = site.call("tape.load", tag=TAG, drive="")
    assert told["location"] == "drive-0"
    assert site.tape.drives["drive-0"].loaded == TAG
    told = site.call("tape.unload", name=TAG)
    assert (told["name"], told["tag"], told["state"]) == ("tape/drive-0", "", "Up")
    assert site.tape.drives["drive-0"].loaded == ""
    assert not site.machine.registry.drives_by_hand


def test_a_drive_is_named_with_its_node_or_alone() -> None:
    site = connected(drives=2)
    assert site.call("tape.load", tag=TAG, drive="drive-1")["location"] == "drive-1"
    with pytest.raises(BusyError, match="LTO001L8 is in drive drive-1"):
        site.call("tape.load", tag=TAG, drive="tape/drive-0")
    assert site.call("tape.load", tag=TAG, drive="")["location"] == "drive-1", "it is there"
    assert site.call("tape.unload", name="tape/drive-1")["tag"] == ""
    assert site.call("tape.unload", name="drive-1")["tag"] == "", "an empty drive is no error"
    assert site.call("tape.unload", name=TAG)["location"] == "slot-0", "nor is one in a slot"
    with pytest.raises(NotFoundError, match="no drive is called 'drive-9'"):
        site.call("tape.load", tag=TAG, drive="drive-9")
    with pytest.raises(NotFoundError, match="no drive is called 'LTO999L8'"):
        site.call("tape.unload", name="LTO999L8")


def test_a_name_that_two_nodes_have_needs_the_node(site: Site) -> None:
    other = TapeNode.with_drives(1, tags=("LTO100L8",))
    site.feed(
        core.PeerReady(name=NodeName("tape2"), role="storage", boot_id=other.boot, key=b"k" * 32)
    )
    site.feed(core.FromPeer(name=NodeName("tape2"), message=other.inventory()))
    with pytest.raises(UsageError, match="2 nodes have a drive drive-0"):
        site.call("drive.up", drive="drive-0")
    with pytest.raises(RefusedError, match="LTO001L8 is at tape, not at tape2"):
        site.call("tape.load", tag=TAG, drive="tape2/drive-0")


def test_the_drive_of_a_job_is_the_jobs(site: Site) -> None:
    job = at_work(site)
    words = f"used by job {job}"
    for verb, arguments in (
        ("tape.load", {"tag": TAG, "drive": ""}),
        ("tape.load", {"tag": "LTO002L8", "drive": "drive-0"}),
        ("tape.unload", {"name": TAG}),
        ("tape.unload", {"name": "drive-0"}),
        ("tape.export", {"tag": TAG}),
        ("tape.import", {"tag": TAG}),
        ("tape.set", {"tag": TAG, "status": "retired", "node": "", "pool": ""}),
    ):
        with pytest.raises(BusyError, match=words):
            site.call_now(verb, **arguments)
    with pytest.raises(BusyError, match="no drive of tape is free"):
        site.call_now("tape.load", tag="LTO002L8", drive="")
    site.run()
    check_end(site, job)


def test_no_job_gets_a_drive_while_an_operator_uses_it(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    call = site.begin_call("tape.load", tag="LTO002L8", drive="drive-0")
    (pair,) = [pair for pair in site.wire if isinstance(pair[1], TapeLoad)]
    site.wire.remove(pair)
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason == (
        "waiting: a free drive at tape (drive-0 is in use: load LTO002L8)"
    )
    with pytest.raises(BusyError, match="is in use: load LTO002L8"):
        site.call_now("tape.unload", name="drive-0")
    assert drive(site)["state"] == "Mounting"
    site.wire.append(pair)
    site.run()
    check_end(site, job)
    assert site.answers[call]


def test_a_call_that_fails_gives_the_drive_back(site: Site) -> None:
    site.tapes[TAG].unreadable = "index damaged"
    with pytest.raises(Exception, match="index damaged"):
        site.call("tape.load", tag=TAG, drive="")
    assert not site.machine.registry.drives_by_hand


def test_export_and_import_bring_a_cartridge_out_and_in(site: Site) -> None:
    backed_up(site)
    site.call("tape.load", tag=TAG, drive="")
    site.call("tape.vault", tag=TAG, vault="cellar")
    assert site.call("tape.export", tag=TAG)["location"] == "io-0"
    away = site.tape.take_out(TAG)
    site.connect("tape")
    row = site.machine.registry.cartridge(TAG)
    assert cartridge_document(site.machine.registry, row)["location"] == "vault cellar"
    with pytest.raises(NotFoundError, match="is in no library: vault cellar"):
        site.call("tape.load", tag=TAG, drive="")
    site.tape.put(away)
    away.element = "io-0"
    site.connect("tape")
    told = site.call("tape.import", tag=TAG)
    assert (told["location"], told["vault"]) == ("slot-0", ""), "it has come back from there"


def test_a_restore_asks_for_the_cartridge_that_is_away_and_goes_on_when_it_comes(
    site: Site,
) -> None:
    backup = backed_up(site)
    site.call("tape.vault", tag=TAG, vault="cellar")
    away = site.tape.take_out(TAG)
    site.connect("tape")
    job = site.submit("restore", backup=backup, new="copy")
    site.run(3600)
    assert site.job(job).reason == "waiting: cartridge LTO001L8 (in vault cellar)"
    assert "cartridges needed, in order: LTO001L8 (in vault cellar)" in site.log(job)
    assert json.loads(site.job(job).result)["needs"] == ["LTO001L8"]
    told = status_document(site.machine.registry, site.machine.jobs)
    assert told["requests"] == [{"job": job, "request": "cartridge LTO001L8 (in vault cellar)"}]
    site.tape.put(away)
    site.connect("tape")
    site.run()
    check_end(site, job)
    assert status_document(site.machine.registry, site.machine.jobs)["requests"] == []


def test_libraries_look_again_when_they_are_asked(site: Site) -> None:
    assert site.call("tape.scan", node="") == {"nodes": ["tape"]}
    with pytest.raises(NotFoundError):
        site.call("tape.scan", node="nowhere")


def test_nothing_is_done_with_what_is_in_quarantine(site: Site) -> None:
    site.set_cartridge(TAG, status="quarantined", detail="two of them")
    with pytest.raises(RefusedError, match="is quarantined: two of them"):
        site.call("tape.load", tag=TAG, drive="")


# --- drives that are down --------------------------------------------------------------------------


def test_a_drive_that_is_down_is_given_to_nobody_until_it_is_up(site: Site) -> None:
    told = site.call("drive.down", drive="drive-0", reason="it squeaks")
    assert (told["state"], told["reason"]) == ("Down", "it squeaks")
    site.restart()
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run(600)
    assert site.job(job).reason == ("waiting: a free drive at tape (drive-0 is down: it squeaks)")
    with pytest.raises(RefusedError, match="drive-0 is down: it squeaks"):
        site.call("tape.load", tag=TAG, drive="drive-0")
    with pytest.raises(BusyError, match="no drive of tape is free"):
        site.call("tape.load", tag=TAG, drive="")
    assert site.call("drive.up", drive="drive-0")["state"] == "Up"
    site.run()
    check_end(site, job)


def test_what_is_said_of_a_drive_while_its_node_is_away_holds_when_it_is_back(site: Site) -> None:
    site.disconnect("tape")
    told = site.call("drive.down", drive="drive-0", reason="it squeaks")
    assert (told["state"], told["reason"], told["is_down"]) == ("Unknown", "it squeaks", True)
    site.connect("tape")
    assert (drive(site)["state"], drive(site)["reason"]) == ("Down", "it squeaks")
    site.disconnect("tape")
    assert not site.call("drive.up", drive="tape/drive-0")["is_down"]
    site.connect("tape")
    assert drive(site)["state"] == "Up"


def test_a_drive_of_a_node_that_was_not_heard_since_the_start_is_put_down_by_its_whole_name(
    site: Site,
) -> None:
    site.away.add("tape")
    site.restart()
    with pytest.raises(NotFoundError, match="'drive-0'") as refused:
        site.call("drive.down", drive="drive-0", reason="it squeaks")
    assert "tape/drive-0" in refused.value.hint
    for name in ("tape/drive", "tape/drive-x", "disk/drive-0", "other/drive-0"):
        with pytest.raises(NotFoundError):
            site.call("drive.down", drive=name, reason="it squeaks")
    told = site.call("drive.down", drive="tape/drive-0", reason="it squeaks")
    assert (told["name"], told["state"], told["medium"]) == ("tape/drive-0", "Unknown", "unknown")
    assert [row["reason"] for row in drive_documents(site.machine.registry, {})] == ["it squeaks"]
    # Known by now, so its name alone is enough; and it survives the controller.
    site.restart()
    assert site.call("drive.down", drive="drive-0", reason="still")["is_down"]
    site.connect("tape")
    site.settle()
    assert (drive(site)["state"], drive(site)["reason"]) == ("Down", "still")
    site.call("drive.up", drive="drive-0")
    assert drive(site)["state"] == "Up"


def test_a_drive_that_its_node_does_not_have_is_told_until_it_is_let_go(site: Site) -> None:
    site.away.add("tape")
    site.restart()
    site.call("drive.down", drive="tape/drive-7", reason="it squeaks")
    site.connect("tape")
    site.settle()
    one, other = drive_documents(site.machine.registry, {})
    assert (one["name"], one["state"]) == ("tape/drive-0", "Up")
    assert (other["name"], other["state"]) == ("tape/drive-7", "Unknown")
    assert other["reason"] == "storage node tape has no such drive"
    site.call("drive.up", drive="drive-7")
    assert len(drive_documents(site.machine.registry, {})) == 1
    with pytest.raises(NotFoundError, match="drive-8"):
        site.call("drive.down", drive="tape/drive-8", reason="the node is here and lacks it")


def test_a_job_keeps_the_drive_that_is_put_down_to_the_end(site: Site) -> None:
    job = at_work(site)
    told = site.call_now("drive.down", drive="drive-0", reason="later")
    assert (told["state"], told["reason"], told["job"]) == ("Transferring", "later", job)
    site.run()
    check_end(site, job)
    assert (drive(site)["state"], drive(site)["job"]) == ("Down", 0)


def test_a_cartridge_in_a_drive_that_is_down_has_to_be_taken_out(site: Site) -> None:
    site = connected(drives=2)
    backup = backed_up(site)
    held = next(name for name, each in site.tape.drives.items() if each.loaded == TAG)
    site.call("drive.down", drive=held, reason="jammed")
    job = site.submit("restore", backup=backup, new="copy")
    site.run(60)
    assert site.job(job).reason == (
        f"waiting: cartridge LTO001L8 is in drive {held}, which is down: jammed"
    )
    site.begin_call("tape.unload", name=TAG)
    site.run()
    check_end(site, job)
    assert restored(site, backup, name="again") == DATA


def test_a_drive_says_what_it_does() -> None:
    site = connected()
    site.make_volume("vol", data=DATA)
    seen: list[str] = []

    def look() -> None:
        state = drive(site)["state"]
        if seen[-1:] != [state]:
            seen.append(state)

    look()
    site.submit("backup", volume="vol")
    while site.wire:
        site.deliver(*site.wire.pop(0))
        look()
    assert seen == ["Up", "Mounting", "Transferring", "Mounting", "Up"], "the last is the read-back"
    site.begin_call("tape.unload", name=TAG)
    assert isinstance(site.wire[-1][1], TapeUnload)
    assert drive(site)["state"] == "Unloading"
    site.settle()
    site.disconnect("tape")
    assert (drive(site)["state"], drive(site)["reason"]) == (
        "Unknown",
        "storage node tape is away",
    )


def test_a_cartridge_that_has_to_make_room_is_unmounted(site: Site) -> None:
    site.call("tape.load", tag="LTO002L8", drive="")
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    while drive(site)["job"] == 0:
        site.deliver(*site.wire.pop(0))
    assert drive(site)["state"] == "Unmounting"


def test_a_cartridge_that_a_job_has_chosen_stays_where_it_is_before_it_is_loaded(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while "tag" not in site.machine.jobs[job].plan:  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    assert site.tape.drives["drive-0"].loaded == ""
    with pytest.raises(BusyError, match=f"cartridge LTO001L8 is used by job {job}"):
        site.call_now("tape.export", tag=TAG)


def test_a_job_that_finds_its_cartridge_at_the_door_asks_for_it_and_goes_on(site: Site) -> None:
    """It was brought there behind our back: the answer to an export was lost with an earlier controller."""
    site.make_volume("vol", data=DATA)
    site.tapes[TAG].element = "io-1"
    job = site.submit("backup", volume="vol")
    site.run(20)
    words = "waiting: cartridge LTO001L8 (at the door: ctl tape import LTO001L8)"
    assert site.job(job).reason.startswith(words)
    assert is_request(site.job(job).reason)
    site.call("tape.import", tag=TAG)
    site.run()
    check_end(site, job)


# --- jobs for one drive --------------------------------------------------------------------------


def used_by(site: Site, job: int) -> set[str]:
    """Let a job run to its end; return the drives that it has had."""
    found = set()
    for _ in range(2000):
        if not site.wire:
            break
        claims = site.machine.registry.drive_claims.items()
        found |= {name for (_, name), holder in claims if holder == job}
        site.deliver(*site.wire.pop(0))
    site.run()
    return found


def test_a_job_for_one_drive_uses_no_other() -> None:
    site = connected(drives=2)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", drive="drive-1")
    assert used_by(site, job) == {"drive-1"}
    check_end(site, job)
    again = site.submit("verify", backup=int(site.job(job).backup), drive="tape/drive-1")
    assert used_by(site, again) == {"drive-1"}
    check_end(site, again)
    assert not site.machine.registry.pinned


def test_a_job_for_one_drive_waits_for_it_also_over_a_restart() -> None:
    site = connected(drives=2)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", drive="drive-1")
    site.call("drive.down", drive="drive-1", reason="it squeaks")
    site.restart()
    site.run(60)
    reason = site.job(job).reason
    assert reason == "waiting: drive drive-1 at tape (drive-1 is down: it squeaks)"
    site.call("drive.up", drive="drive-1")
    site.run()
    check_end(site, job)
    assert site.tape.drives["drive-0"].loaded == ""
    # A cartridge in the other drive is not fetched from there by force: an operator is told.
    site.call("tape.unload", name="drive-1")
    site.call("tape.load", tag=TAG, drive="drive-0")
    verify = site.submit("verify", backup=int(site.job(job).backup), drive="drive-1")
    site.run(60)
    assert site.job(verify).reason == (
        f"waiting: cartridge {TAG} is in drive drive-0, which is not tape/drive-1, for which the job is"
    )
    site.call("tape.unload", name=TAG)
    site.run()
    check_end(site, verify)


def test_a_drive_that_cannot_be_had_is_refused_with_the_job() -> None:
    site = connected(drives=2)
    site.make_volume("vol", data=DATA)
    with pytest.raises(NotFoundError, match="drive-7"):
        site.submit("backup", volume="vol", drive="drive-7")
    with pytest.raises(UsageError, match="several"):
        site.submit("backup", volume="vol", drive="drive-0", drives=2)
    with pytest.raises(UsageError, match="takes any drive"):
        site.submit("label", tag=TAG, drive="drive-0")
    site.call("drive.down", drive="drive-0", reason="it squeaks")
    with pytest.raises(RefusedError, match="it squeaks"):
        site.submit("backup", volume="vol", drive="drive-0")
