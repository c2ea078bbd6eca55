"""Who has a volume to himself, and for how long."""

from __future__ import annotations

import pytest

from backplane.errors import BusyError, RefusedError, UsageError
from backplane.ids import JobId, VolumeId
from storage_node.core.reservations import RESERVED_S_MAX, Reservations

VOLUME, OTHER = VolumeId("11" * 16), VolumeId("22" * 16)
JOB, STRANGER = JobId(7), JobId(8)


@pytest.fixture
def held() -> Reservations:
    made = Reservations()
    reserve(made)
    return made


def reserve(
    made: Reservations, job: JobId = JOB, *, now: float = 0.0, connections: int = 0
) -> None:
    made.reserve(VOLUME, job, ttl_s=60.0, connections=connections, has_writer=False, now=now)


def is_free(made: Reservations, *, now: float = 0.0, has_writer: bool = False) -> bool:
    try:
        made.check(VOLUME, now=now, has_writer=has_writer)
    except BusyError:
        return False
    return True


def test_a_reserved_volume_is_nobody_elses(held: Reservations) -> None:
    assert not is_free(held)
    held.check(OTHER, now=0.0, has_writer=False)
    with pytest.raises(BusyError, match="job 7"):
        reserve(held, STRANGER)
    held.check(VOLUME, now=0.0, has_writer=False, job=JOB)


def test_a_volume_is_given_back_by_its_job_alone(held: Reservations) -> None:
    held.unreserve(VOLUME, STRANGER)
    assert not is_free(held)
    held.unreserve(VOLUME, JOB)
    held.unreserve(VOLUME, JOB)
    assert is_free(held)


def test_a_volume_in_use_is_not_reserved() -> None:
    made = Reservations()
    with pytest.raises(BusyError, match="1 workstation is"):
        reserve(made, connections=1)
    assert is_free(made)


def test_a_reservation_ends_by_itself(held: Reservations) -> None:
    assert not is_free(held, now=59.9)
    assert is_free(held, now=60.0)
    assert is_free(held, now=0.0)


def test_a_reservation_is_prolonged(held: Reservations) -> None:
    reserve(held, now=50.0)
    assert not is_free(held, now=109.0)


def test_a_reservation_does_not_end_while_a_mover_may_write(held: Reservations) -> None:
    assert not is_free(held, now=1000.0, has_writer=True)
    assert is_free(held, now=1000.0)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, RESERVED_S_MAX + 1, float("nan")])
def test_a_reservation_has_an_end(ttl_s: float) -> None:
    with pytest.raises(UsageError):
        Reservations().reserve(VOLUME, JOB, ttl_s=ttl_s, connections=0, has_writer=False, now=0.0)


# --- shared --------------------------------------------------------------------------------------


def share(made: Reservations, job: JobId = JOB, *, now: float = 0.0, ttl_s: float = 30.0) -> None:
    made.reserve(VOLUME, job, ttl_s=ttl_s, connections=2, has_writer=True, now=now, is_shared=True)


def test_a_shared_reservation_lets_workstations_stay_and_come_and_keeps_jobs_away() -> None:
    made = Reservations()
    share(made)
    assert is_free(made)
    for other in (share, reserve):
        with pytest.raises(BusyError, match="job 7"):
            other(made, STRANGER)
    made.require(VOLUME, JOB, now=29.0)


def test_the_time_of_a_shared_reservation_is_strict_and_does_not_come_back() -> None:
    """Who has held the files beneath which a job writes does so no longer."""
    made = Reservations()
    share(made)
    made.prolong(VOLUME, JOB, now=20.0)
    made.require(VOLUME, JOB, now=49.9)
    with pytest.raises(RefusedError, match="time is over"):
        made.require(VOLUME, JOB, now=50.0)
    with pytest.raises(RefusedError, match="time is over"):
        made.prolong(VOLUME, JOB, now=50.0)


def test_a_shared_reservation_that_is_over_is_anothers_when_nobody_writes() -> None:
    made = Reservations()
    share(made)
    with pytest.raises(BusyError):
        made.check(VOLUME, job=STRANGER, now=30.0, has_writer=True)
    made.check(VOLUME, job=STRANGER, now=30.0, has_writer=False)


def test_only_the_job_that_has_a_volume_may_do_what_needs_it(held: Reservations) -> None:
    held.require(VOLUME, JOB, now=0.0)
    for volume, job in ((VOLUME, STRANGER), (OTHER, JOB)):
        with pytest.raises(RefusedError, match=f"job {job} has not reserved the volume"):
            held.require(volume, job, now=0.0)
    held.unreserve(VOLUME, JOB)
    with pytest.raises(RefusedError):
        held.require(VOLUME, JOB, now=0.0)


def test_who_has_a_volume_begins_its_time_anew(held: Reservations) -> None:
    held.prolong(VOLUME, JOB, now=50.0)
    assert not is_free(held, now=109.9)
    assert is_free(held, now=110.0)
    with pytest.raises(RefusedError):
        held.prolong(VOLUME, JOB, now=111.0)


def test_a_reservation_whose_time_is_over_goes_on_if_nobody_came(held: Reservations) -> None:
    held.prolong(VOLUME, JOB, now=1000.0)
    assert not is_free(held, now=1059.0)


def test_nobody_prolongs_what_another_has(held: Reservations) -> None:
    with pytest.raises(RefusedError):
        held.prolong(VOLUME, STRANGER, now=1.0)
