"""What was restored is compared with the cartridge: what errs is found, and what cannot be read is not believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.wire.messages import TapeSample, ViewSample
from controller.core import file_check
from controller.core.chain import Picks
from controller.core.file_check import _batches
from controller.core.planner import PartPicks
from tests.site.disk import Volume
from tests.site.site import DATA, Site, check_end, content, first_record

TABLE = {"a": (10, 11, 30, 31), "b": (32, 33, 34), "c": (35, 36, 50)}


@pytest.fixture
def volume(site: Site) -> Volume:
    made = site.make_volume("vol", data=DATA)
    made.files.table = dict(TABLE)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    return made


def run(site: Site, state: str = "completed", **arguments: Any) -> list[str]:
    """Restore all files to a staging volume; returns those that are said not to have come back."""
    asked: dict[str, Any] = {"backup": 1, "new": "copy", "paths": ["?"], "staging": True}
    job = site.submit("restore", **(asked | arguments))
    site.run()
    check_end(site, job, state)
    listed = json.loads(site.job(job).result)["files"]["listed"]
    return [each["path"] for each in listed]


def samples(site: Site) -> list[Any]:
    """Return a list to which all messages of a check will be appended."""
    seen: list[Any] = []
    deliver = site.deliver

    def listen(target: str, message: Any) -> None:
        if isinstance(message, TapeSample | ViewSample):
            seen.append(message)
        deliver(target, message)

    site.deliver = listen  # type: ignore[method-assign]
    return seen


def test_what_is_right_is_found_right_by_one_question_to_each_side(
    site: Site, volume: Volume
) -> None:
    seen = samples(site)
    assert run(site) == []
    assert [type(message) for message in seen] == [TapeSample, ViewSample]
    wanted = {lba for lbas in TABLE.values() for lba in lbas}
    assert site.disk.by_name("copy").data == content(*wanted)


def test_without_a_check_nothing_is_asked_and_nothing_is_found(site: Site, volume: Volume) -> None:
    seen = samples(site)
    site.disk.misdirected = {33: 34}
    assert run(site, check=False) == []
    assert seen == []


def test_a_block_that_went_to_another_place_is_found(site: Site, volume: Volume) -> None:
    site.disk.misdirected = {33: 34}
    assert run(site, "partial") == ["b"], "c is in the same piece, and right"
    site.disk.misdirected = {10: 50, 50: 10}
    assert run(site, "partial", new="other") == ["a", "c"]


def test_too_much_that_differs_is_not_looked_at_piece_by_piece(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_check, "NARROWED_MAX", 0)
    site.disk.misdirected = {33: 34}
    assert run(site, "partial") == ["b", "c"]


def test_a_record_that_can_no_longer_be_read_costs_its_files_only(
    site: Site, volume: Volume
) -> None:
    """It could be read a minute ago, but nobody can say any more that what came of it is right."""

    def damage(work: Any) -> None:
        deliver = site.deliver

        def later(target: str, message: Any) -> None:
            if isinstance(message, TapeSample):
                site.tapes["LTO001L8"].bad = {first_record(site, 1) + 1}
            deliver(target, message)

        site.deliver = later  # type: ignore[method-assign]

    site.before_work = damage
    assert run(site, "partial") == ["a"]


def test_a_block_of_the_target_that_cannot_be_read_costs_its_files_only(
    site: Site, volume: Volume
) -> None:
    site.disk.bad_lbas = {35}
    assert run(site, "partial") == ["c"]


def test_a_drive_that_is_empty_after_a_restart_of_its_node_is_loaded_again(
    site: Site, volume: Volume
) -> None:
    seen = samples(site)
    job = site.submit("restore", backup=1, new="copy", paths=["?"], staging=True)
    while not isinstance(site.wire[0][1], TapeSample):
        site.deliver(*site.wire.pop(0))
    site.restart_node("tape")
    site.run()
    check_end(site, job)
    assert [type(message) for message in seen].count(ViewSample) == 1


def test_a_check_that_was_interrupted_is_done_and_nothing_is_copied_twice(
    site: Site, volume: Volume
) -> None:
    site.disk.misdirected = {33: 34}
    job = site.submit("restore", backup=1, new="copy", paths=["?"], staging=True)
    while not isinstance(site.wire[0][1], ViewSample):
        site.deliver(*site.wire.pop(0))
    site.restart()
    site.run()
    check_end(site, job, "partial")
    assert len(site.items(job)) == 1
    assert json.loads(site.job(job).result)["files"]["failed"] == 1


def test_more_that_differs_than_can_be_remembered_ends_the_job(
    site: Site, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.restoring.LOST_EXTENTS_MAX", 1)
    site.disk.misdirected = {33: 34, 50: 36, 10: 11}
    job = site.submit("restore", backup=1, new="copy", paths=["?"], staging=True)
    site.run()
    check_end(site, job, "failed")
    assert "more than 1 pieces cannot be restored" in site.job(job).reason
    assert site.disk.by_name("copy").row.state == "restore-failed"


def test_a_check_is_cut_by_pieces_by_bytes_and_by_records(monkeypatch: pytest.MonkeyPatch) -> None:
    content = PartPicks(
        picks=Picks([(0, 100, 3), (3, 50, 9), (16, 10, 1), (20, 11, 1), (24, 12, 1)]),
        block_bytes=512,
        record_bytes=2048,
        stream_start=0,
        stream_bytes=28 * 512,
    )
    whole = [
        (0, 0, 100, 1536), (0, 1536, 50, 512), (1, 0, 51, 2048), (2, 0, 55, 2048),
        (4, 0, 10, 512), (5, 0, 11, 512), (6, 0, 12, 512),
    ]  # fmt: skip
    assert list(_batches(content, 0, 7)) == [whole]
    assert list(_batches(content, 1, 3)) == [whole[2:4]]
    for name, limit, sizes in (
        ("RANGES_PER_CHECK", 3, [3, 3, 1]),
        ("BYTES_PER_CHECK", 4096, [3, 4]),
        ("RECORDS_BYTES_PER_CHECK", 2 * 2048, [3, 2, 2]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(file_check, name, limit)
            batches = list(_batches(content, 0, 7))
        assert [len(batch) for batch in batches] == sizes, name
        assert [piece for batch in batches for piece in batch] == whole
