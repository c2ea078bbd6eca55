"""What any catalog promises, for every implementation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError
from controller.catalog.store import ENDED_STATES, KEYS, Catalog, DropRow, Snapshot, TakeStore

ABSURD = 10**30
"""A number that people may ask for and no database can hold."""


def everything(catalog: Catalog) -> dict[str, Any]:
    """All that can be seen of jobs and backups 1 and 2."""
    return {
        "snapshot": catalog.load(),
        "jobs": catalog.jobs(limit=100),
        "items": [catalog.items(job, first=0, limit=100) for job in (1, 2)],
        "events": [catalog.events(job, after=-1, limit=100) for job in (1, 2)],
        "extents": [catalog.extents(backup) for backup in (1, 2)],
        "maps": [(catalog.map_header(n), list(catalog.map_pages(n))) for n in (1, 2)],
    }


def test_a_new_catalog_is_empty_and_has_a_uuid_that_stays(place: Any) -> None:
    store = place.catalog.store
    assert len(bytes.fromhex(store)) == 16
    assert place.catalog.load() == Snapshot(store=store)
    assert place.reopen().store == store


def test_rows_of_every_type_come_back_as_they_were(place: Any, rows: Any) -> None:
    assert {type(row) for row in rows.one_of_each()} == set(KEYS)
    place.catalog.commit(rows.one_of_each())
    for is_reopened in (False, True):
        catalog = place.reopen() if is_reopened else place.catalog
        assert catalog.load() == Snapshot(
            store=catalog.store,
            counters={"epoch": 1},
            nodes=(rows.node(),),
            volumes=(rows.volume(),),
            cartridges=(rows.cartridge(),),
            jobs=(rows.job(),),
            items=(rows.item(),),
            backups=(rows.backup(),),
            parts=(rows.part(),),
            pools=(rows.pool(),),
            drives=(rows.drive(),),
            schedules=(rows.schedule(),),
            event_sequences={1: 1},
        )
        assert catalog.extents(1) == rows.extents().packed
        assert catalog.map_header(1) == rows.map_header().packed
        assert list(catalog.map_pages(1)) == [rows.map_page()]
        assert catalog.events(1, after=0, limit=9) == [rows.event()]


def test_extreme_values_come_back_as_they_were(place: Any, rows: Any) -> None:
    job = rows.job(
        planned_bytes=2**63 - 1,
        done_bytes=-(2**63),
        seconds_copying=1e-300,
        reason="\U0001f4fc'\"%\n",
    )
    item = rows.item(
        movers=("mover-1", "", 'a"b', "ü"), parameter_list=bytes(range(256)), seconds=1e300
    )
    place.catalog.commit([job, item, rows.counter(value=2**63 - 1)])
    catalog = place.reopen()
    assert catalog.job(1) == job
    assert catalog.items(1, first=0, limit=1) == [item]
    assert catalog.load().counters == {"epoch": 2**63 - 1}


def test_a_row_replaces_the_row_with_its_key_and_no_other(place: Any, rows: Any) -> None:
    place.catalog.commit([rows.part(part=1), rows.part(part=2), rows.backup()])
    place.catalog.commit([rows.part(part=2, tag="LTO002L8")])
    assert place.reopen().load().parts == (
        rows.part(part=1),
        rows.part(part=2, tag="LTO002L8"),
    )


def test_a_job_that_changes_keeps_its_items(catalog: Catalog, rows: Any) -> None:
    """An upsert that deletes and inserts would lose or refuse them."""
    catalog.commit([rows.job(), rows.item()])
    catalog.commit([rows.job(state="committing")])
    assert catalog.items(1, first=0, limit=9) == [rows.item()]


def test_the_last_row_with_a_key_wins_within_a_commit(catalog: Catalog, rows: Any) -> None:
    catalog.commit(
        [
            rows.job(state="queued"),
            rows.job(state="copying"),
            rows.event(),
            rows.counter(value=5),
            rows.job(state="committing"),
            rows.counter(value=6),
        ]
    )
    assert [row.state for row in catalog.jobs(limit=9)] == ["committing"]
    assert catalog.load().counters == {"epoch": 6}


def test_an_owner_may_come_after_what_it_owns_in_a_commit(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.item(), rows.part(), rows.extents(), rows.backup(), rows.job()])
    assert catalog.item_count(1) == 1


def test_an_empty_commit_does_nothing(catalog: Catalog) -> None:
    catalog.commit([])
    assert catalog.load() == Snapshot(store=catalog.store)


@pytest.mark.parametrize("kind", ["item", "part", "extents", "map_header"])
def test_a_row_without_its_owner_is_a_bug_and_nothing_of_the_commit_is_stored(
    place: Any, rows: Any, kind: str
) -> None:
    place.catalog.commit([rows.counter()])
    with pytest.raises(AssertionError):
        place.catalog.commit([rows.counter(value=2), rows.event(), getattr(rows, kind)()])
    catalog = place.reopen()
    assert catalog.load().counters == {"epoch": 1}
    assert catalog.events(1, after=0, limit=9) == []


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, None])
def test_a_value_that_no_column_holds_is_a_bug_and_nothing_is_stored(
    place: Any, rows: Any, value: Any
) -> None:
    with pytest.raises(AssertionError):
        place.catalog.commit([rows.event(), rows.counter(value=value)])
    assert place.reopen().events(1, after=0, limit=9) == []


def test_after_a_failed_commit_every_call_fails(place: Any, rows: Any) -> None:
    """The core is ahead of the catalog now; only a new start brings them together."""
    catalog = place.catalog
    with pytest.raises(AssertionError):
        catalog.commit([rows.item()])
    calls = [
        lambda: catalog.commit([rows.counter()]),
        lambda: catalog.commit([]),
        catalog.load,
        lambda: catalog.jobs(limit=1),
        lambda: catalog.job(1),
        lambda: catalog.job_by_token("t"),
        lambda: catalog.items(1, first=0, limit=1),
        lambda: catalog.item_count(1),
        lambda: catalog.events(1, after=0, limit=1),
        lambda: catalog.extents(1),
        lambda: catalog.map_header(1),
        lambda: catalog.map_page(1, 0),
        lambda: list(catalog.map_pages(1)),
    ]
    for call in calls:
        with pytest.raises(BackupError, match="not used any more"):
            call()
    place.reopen().commit([rows.counter()])


def test_load_leaves_out_what_has_ended(catalog: Catalog, rows: Any) -> None:
    states = ["queued", "waiting-quiet", *sorted(ENDED_STATES), "committing"]
    for job, state in enumerate(states, start=1):
        catalog.commit(
            [
                rows.job(job, state=state),
                rows.item(10 * job, job),
                rows.item(10 * job + 1, job, state="completed"),
                rows.event(1, job),
                rows.event(job, job),
            ]
        )
    snapshot = catalog.load()
    live = [1, 2, len(states)]
    assert [row.job for row in snapshot.jobs] == live
    assert [row.item for row in snapshot.items] == [
        1 * 10,
        11,
        20,
        21,
        live[2] * 10,
        live[2] * 10 + 1,
    ]
    assert snapshot.event_sequences == {job: job for job in live}


def test_a_live_job_without_a_log_has_no_sequence(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.job(1), rows.job(2), rows.event(7, 2)])
    assert catalog.load().event_sequences == {2: 7}


def test_jobs_are_listed_newest_first(catalog: Catalog, rows: Any) -> None:
    made = [rows.job(job, state="failed" if job % 2 else "copying") for job in (1, 10, 2, 3)]
    catalog.commit(made)
    assert [row.job for row in catalog.jobs(limit=9)] == [10, 3, 2, 1]
    assert [row.job for row in catalog.jobs(limit=2)] == [10, 3]
    assert [row.job for row in catalog.jobs(limit=9, state="failed")] == [3, 1]
    assert [row.job for row in catalog.jobs(limit=1, state="failed")] == [3]
    assert catalog.jobs(limit=9, state="completed") == []
    assert catalog.jobs(limit=0) == []
    assert catalog.jobs(limit=-1) == []
    assert len(catalog.jobs(limit=ABSURD)) == 4


def test_a_job_is_found_by_number_or_not_at_all(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.job(7)])
    assert catalog.job(7) == rows.job(7)
    assert [catalog.job(job) for job in (0, -1, 8, ABSURD, -ABSURD)] == [None] * 5


def test_a_job_is_found_by_its_token(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.job(1, token=""), rows.job(2, token="x"), rows.job(3, token="x")])
    assert catalog.job_by_token("x") == rows.job(2, token="x")
    assert catalog.job_by_token("y") is None
    assert catalog.job_by_token("") is None, "jobs without a token are not one another"


def test_items_of_a_job_come_in_pages(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.job(1), rows.job(2)])
    catalog.commit([rows.item(item, 1 + item % 2) for item in (6, 2, 4, 3, 8, 5)])
    assert [row.item for row in catalog.items(1, first=0, limit=9)] == [2, 4, 6, 8]
    assert [row.item for row in catalog.items(1, first=4, limit=2)] == [4, 6]
    assert [row.item for row in catalog.items(1, first=5, limit=9)] == [6, 8]
    assert catalog.items(1, first=9, limit=9) == []
    assert catalog.items(3, first=0, limit=9) == []
    assert catalog.items(ABSURD, first=0, limit=9) == []
    assert catalog.items(1, first=ABSURD, limit=9) == []
    assert [catalog.item_count(job) for job in (1, 2, 3, ABSURD)] == [4, 2, 0, 0]


def test_log_lines_of_a_job_come_in_pages(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.event(sequence, 1) for sequence in (3, 1, 2, 0)] + [rows.event(9, 2)])
    assert [row.sequence for row in catalog.events(1, after=-1, limit=9)] == [0, 1, 2, 3]
    assert [row.sequence for row in catalog.events(1, after=1, limit=1)] == [2]
    assert catalog.events(1, after=3, limit=9) == []
    assert catalog.events(1, after=ABSURD, limit=9) == []
    assert catalog.events(ABSURD, after=0, limit=9) == []


def test_extents_of_an_unknown_backup_are_none(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.backup(), rows.extents(packed=b"")])
    assert catalog.extents(1) == b""
    assert catalog.extents(2) is None
    assert catalog.extents(ABSURD) is None


def test_queries_are_repeatable_and_change_nothing(place: Any, rows: Any) -> None:
    place.catalog.commit(rows.one_of_each())
    before = everything(place.catalog)
    assert everything(place.catalog) == before
    assert everything(place.reopen()) == before


def test_a_closed_catalog_is_unusable_and_may_be_closed_again(catalog: Catalog, rows: Any) -> None:
    catalog.close()
    catalog.close()
    with pytest.raises(AssertionError, match="closed"):
        catalog.load()
    with pytest.raises(AssertionError, match="closed"):
        catalog.commit([rows.counter()])


def test_rows_that_were_read_are_frozen_values(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.job()])
    (job,) = catalog.jobs(limit=1)
    assert replace(job, state="failed") != rows.job()
    assert catalog.job(1) == rows.job()
    assert hash(job) == hash(rows.job())


def test_a_pool_that_is_dropped_is_gone_and_one_that_never_was_may_be_dropped(
    place: Any, rows: Any
) -> None:
    catalog = place.catalog
    catalog.commit([rows.pool("a"), rows.pool("b")])
    catalog.commit([DropRow(row=rows.pool("a", retain_s=0)), DropRow(row=rows.pool("c"))])
    assert [row.pool for row in catalog.load().pools] == ["b"]
    catalog.commit([DropRow(row=rows.pool("b")), rows.pool("b"), rows.pool("d")])
    catalog.commit([rows.pool("e"), DropRow(row=rows.pool("e"))])
    assert [row.pool for row in place.reopen().load().pools] == ["b", "d"]


def test_a_catalog_takes_over_the_uuid_of_another_with_whatever_comes_along(
    place: Any, rows: Any
) -> None:
    catalog = place.catalog
    before = catalog.store
    catalog.commit([TakeStore(store="c" * 32), rows.pool("a"), TakeStore(store="d" * 32)])
    assert catalog.store == catalog.load().store == "d" * 32 != before
    found = place.reopen()
    assert (found.store, found.load().store) == ("d" * 32, "d" * 32)
    assert [row.pool for row in found.load().pools] == ["a"]


def test_the_size_counts_rows_but_not_what_there_is_most_of(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.pool("a"), rows.pool("b"), rows.job()])
    counted = catalog.size().rows
    assert (counted["PoolRow"], counted["JobRow"], counted["PartRow"]) == (2, 1, 0)
    assert not counted.keys() & {"MapPageRow", "EventRow"}
