"""The mover's machine: pulling work, keeping leases, reporting results."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from backplane.errors import InvalidTransition
from backplane.ids import Epoch, ItemId, JobId
from backplane.scsi.cscd import stream_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import RegisterKey, VerifyCscd
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Status
from backplane.wire.messages import (
    WorkAcknowledged,
    WorkDone,
    WorkExtended,
    WorkItem,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from mover_node.core.abort import Ended as ListEnded
from mover_node.core.abort import aborted
from mover_node.core.machine import (
    REPORT_MAX_S,
    RESULTS_KEPT_MAX,
    TRANSITIONS,
    UNACKNOWLEDGED_MAX,
    Abort,
    Connected,
    Disconnected,
    Drain,
    Ended,
    Event,
    Exit,
    ItemState,
    Measured,
    MoverMachine,
    Send,
    Start,
    StopItem,
    Tick,
)

GOOD_LIST = ParameterList(
    list_identifier=1,
    cscds=(stream_cscd(bytes(8)),),
    segments=(VerifyCscd(source_cscd_descriptor_id=0),),
).encode()
REFUSED_LIST = ParameterList(
    list_identifier=1,
    cscds=(stream_cscd(bytes(8)),),
    segments=(RegisterKey(destination_cscd_descriptor_id=0, reservation_key=1),),
).encode()
LEASE = 10.0


class Story:
    """A machine, a clock, and what came out."""

    def __init__(self, **options: Any) -> None:
        self.machine = MoverMachine(jitter=lambda: 1.0, **options)
        self.now = 100.0

    def tell(self, event: Event) -> list[Any]:
        effects = self.machine.handle(event, now=self.now)
        self.machine.check()
        return [effect.message if isinstance(effect, Send) else effect for effect in effects]

    def until(self, when: float) -> list[tuple[float, Any]]:
        """Let time pass; return what happened when."""
        found = []
        while (deadline := self.machine.deadline()) is not None and deadline <= when:
            self.now = max(self.now, deadline)
            found += [(self.now, effect) for effect in self.tell(Tick())]
        self.now = when
        return found

    def running(self, **options: Any) -> None:
        self.tell(Connected())
        self.tell(item(**options))


def item(number: int = 1, epoch: int = 5, data: bytes = GOOD_LIST) -> WorkItem:
    return WorkItem(
        item=ItemId(number),
        job=JobId(1),
        epoch=Epoch(epoch),
        lease_s=LEASE,
        parameter_list=data,
        units=(),
    )


def ended(number: int = 1, epoch: int = 5, how: ListEnded | None = None) -> Ended:
    return Ended(ItemId(number), Epoch(epoch), how or ListEnded(Status.GOOD, b"", 1, ""), ())


def acknowledged(number: int = 1, epoch: int = 5) -> WorkAcknowledged:
    return WorkAcknowledged(item=ItemId(number), epoch=Epoch(epoch))


def extended(sequence: int, number: int = 1, epoch: int = 5) -> WorkExtended:
    return WorkExtended(item=ItemId(number), epoch=Epoch(epoch), sequence=sequence, lease_s=LEASE)


def revoked(number: int = 1, epoch: int = 5) -> WorkRevoked:
    return WorkRevoked(item=ItemId(number), epoch=Epoch(epoch), reason="cancelled")


def test_work_is_asked_for_when_connected_and_again_until_it_comes() -> None:
    story = Story()
    assert story.machine.deadline() is None
    assert story.tell(Connected()) == [WorkRequest(credit=1)]
    assert [effect for _, effect in story.until(111.0)] == [WorkRequest(credit=1)] * 2
    story.tell(Disconnected())
    assert story.until(200.0) == []


def test_an_item_is_started_once_and_nothing_more_is_asked_for() -> None:
    story = Story()
    story.tell(Connected())
    start, progress = story.tell(item())
    assert isinstance(start, Start)
    assert len(start.parameters.segments) == 1
    assert progress == WorkProgress(
        item=ItemId(1), epoch=Epoch(5), sequence=1, segment=0, bytes_read=0, bytes_written=0
    )
    assert story.tell(item()) == []
    assert not [e for _, e in story.until(104.0) if isinstance(e, WorkRequest)]


def test_progress_is_reported_every_fifth_of_the_lease_with_what_was_measured() -> None:
    story = Story()
    story.running()
    story.tell(Measured(ItemId(1), Epoch(5), 3, 4000, 2000))
    reports = [(when, e) for when, e in story.until(105.0) if isinstance(e, WorkProgress)]
    assert [when for when, _ in reports] == [102.0, 104.0]
    assert (reports[0][1].segment, reports[0][1].bytes_read) == (3, 4000)
    assert [e.sequence for _, e in reports] == [2, 3]


def test_an_item_is_stopped_at_four_fifths_of_a_lease_that_nobody_extends() -> None:
    story = Story()
    story.running()
    stops = [(when, e) for when, e in story.until(120.0) if isinstance(e, Abort)]
    assert [(when, e.reason) for when, e in stops] == [
        (108.0, "the lease was not extended in time")
    ]
    done, request = story.tell(ended(how=aborted(1, "lease")))
    assert isinstance(done, WorkDone)
    sense = Sense.decode(done.sense)
    assert done.status == Status.TASK_ABORTED
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x2F, 0x02)
    assert request == WorkRequest(credit=1)


def test_a_lease_counts_from_the_sending_of_the_progress_that_was_answered() -> None:
    """An answer that took 5 seconds does not extend the lease by those 5 seconds."""
    story = Story()
    story.running()
    story.until(107.0)  # progress 4 went out at 106
    story.tell(extended(4))
    story.tell(extended(2))  # late: an older answer never shortens the lease
    stops = [when for when, e in story.until(130.0) if isinstance(e, Abort)]
    assert stops == [114.0]


def test_a_lease_also_ends_without_a_session() -> None:
    story = Story()
    story.running()
    story.tell(Disconnected())
    assert [(when, type(e)) for when, e in story.until(130.0)] == [(108.0, Abort)]


def test_an_answer_to_a_progress_that_was_never_sent_extends_nothing() -> None:
    story = Story()
    story.running()
    story.tell(extended(77))
    assert [when for when, e in story.until(130.0) if isinstance(e, Abort)] == [108.0]


def test_a_result_is_repeated_with_growing_pauses_until_it_is_acknowledged() -> None:
    story = Story()
    story.running()
    assert isinstance(story.tell(ended())[0], WorkDone)
    times = [when for when, e in story.until(110.0) if isinstance(e, WorkDone)]
    assert times == [100.5, 101.5, 103.5, 107.5]
    story.tell(acknowledged())
    assert not [e for _, e in story.until(300.0) if isinstance(e, WorkDone)]


def test_pauses_between_reports_are_bounded() -> None:
    story = Story()
    story.running()
    story.tell(ended())
    times = [when for when, e in story.until(600.0) if isinstance(e, WorkDone)]
    assert max(b - a for a, b in itertools.pairwise(times)) == REPORT_MAX_S


def test_an_unacknowledged_result_is_told_again_in_the_next_session() -> None:
    story = Story()
    story.running()
    story.tell(Disconnected())
    assert story.tell(ended()) == []
    told = story.tell(Connected())
    assert [type(message) for message in told] == [WorkDone, WorkRequest]


def test_a_doubled_item_is_answered_with_the_kept_result_and_not_executed_again() -> None:
    story = Story()
    story.running()
    (done, _) = story.tell(ended())
    assert story.tell(item()) == [done]
    story.tell(acknowledged())
    assert story.tell(item()) == [done]
    story.tell(acknowledged())  # doubled, too


def test_the_same_item_under_a_new_epoch_is_a_new_item() -> None:
    story = Story()
    story.running()
    story.tell(ended())
    assert any(isinstance(e, Start) for e in story.tell(item(epoch=6)))


def test_kept_results_are_bounded() -> None:
    story = Story()
    story.tell(Connected())
    for number in range(RESULTS_KEPT_MAX + 10):
        story.tell(item(number))
        story.tell(ended(number))
        story.tell(acknowledged(number))
    assert len(story.machine.describe()) == RESULTS_KEPT_MAX


def test_a_controller_that_acknowledges_nothing_gets_no_more_requests() -> None:
    story = Story()
    story.tell(Connected())
    for number in range(UNACKNOWLEDGED_MAX):
        story.tell(item(number))
        story.tell(ended(number))
    assert not [e for _, e in story.until(200.0) if isinstance(e, WorkRequest)]


def test_a_list_that_is_refused_is_answered_at_once() -> None:
    story = Story()
    story.tell(Connected())
    done, request = story.tell(item(data=REFUSED_LIST))
    assert (done.status, done.segments, done.ledger) == (Status.CHECK_CONDITION, 0, ())
    sense = Sense.decode(done.sense)
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.ILLEGAL_REQUEST, 0x26, 0x09)
    assert request == WorkRequest(credit=1)


def test_a_list_of_rubbish_is_refused_and_an_empty_one_is_good() -> None:
    story = Story()
    story.tell(Connected())
    assert story.tell(item(1, data=b"\xff" * 40))[0].status == Status.CHECK_CONDITION
    assert story.tell(item(2, data=b""))[0].status == Status.GOOD


def test_a_revoked_item_is_stopped_and_reported_as_aborted() -> None:
    story = Story()
    story.running()
    assert story.tell(revoked()) == [Abort(ItemId(1), Epoch(5), "cancelled")]
    assert story.tell(revoked()) == []
    (done, _) = story.tell(ended(how=aborted(1, "cancelled")))
    assert done.status == Status.TASK_ABORTED
    assert story.tell(revoked()) == [done]


def test_an_unknown_item_that_is_revoked_is_reported_as_aborted() -> None:
    story = Story()
    story.tell(Connected())
    (done,) = story.tell(revoked(9))
    assert (done.item, done.status, done.segments) == (9, Status.TASK_ABORTED, 0)


def test_an_item_that_was_good_in_spite_of_a_late_stop_is_reported_as_good() -> None:
    story = Story()
    story.running()
    story.tell(revoked())
    assert story.tell(ended())[0].status == Status.GOOD


def test_draining_takes_back_the_credit_and_refuses_what_still_comes() -> None:
    story = Story()
    story.running()
    assert story.tell(Drain(5.0)) == [WorkRequest(credit=0)]
    (done,) = story.tell(item(2))
    assert done.status == Status.BUSY
    story.tell(acknowledged(2))
    story.tell(ended())
    assert story.tell(acknowledged())[-1] == Exit("drained")
    assert story.machine.deadline() is None


def test_draining_stops_what_runs_too_long_and_leaves_without_acknowledgement() -> None:
    story = Story()
    story.running()
    story.tell(Drain(5.0))
    stops = [(when, e) for when, e in story.until(106.0) if isinstance(e, Abort)]
    assert [when for when, _ in stops] == [105.0]
    told = story.tell(ended(how=aborted(1, "stop")))
    assert isinstance(told[-1], Exit)
    assert isinstance(told[-2], WorkDone)


def test_an_idle_mover_drains_at_once() -> None:
    assert Story().tell(Drain(5.0)) == [Exit("drained")]


def test_several_items_at_once_are_asked_for_if_configured() -> None:
    story = Story(items_max=3)
    assert story.tell(Connected()) == [WorkRequest(credit=3)]
    story.tell(item(1))
    story.now += 5
    assert WorkRequest(credit=2) in story.tell(Tick())


def test_every_item_reaches_a_state_that_is_kept() -> None:
    assert set(TRANSITIONS) == set(ItemState)
    assert TRANSITIONS[ItemState.KEPT] == {}
    assert {StopItem, Ended} <= set(TRANSITIONS[ItemState.RUNNING])


def test_an_item_cannot_end_twice() -> None:
    story = Story()
    story.running()
    story.tell(ended())
    with pytest.raises(InvalidTransition):
        story.tell(ended())
