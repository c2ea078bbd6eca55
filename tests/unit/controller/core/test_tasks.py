"""Wishes: granted, refused, withdrawn; each task waits for exactly one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError, BusyError, RemoteProtocolError, UnreachableError
from backplane.ids import ItemId, NodeName
from backplane.wire.messages import (
    NodeReply,
    UnitFence,
    UnitFenced,
    ViewRelease,
    WorkRevoked,
)
from controller.catalog.store import ItemRow, Row
from controller.core.dispatcher import Dispatcher
from controller.core.effects import (
    Alarm,
    Effect,
    ExtentsFetched,
    FetchExtents,
    FetchMap,
    MapFetched,
    Send,
)
from controller.core.extent_runs import ExtentRuns
from controller.core.job import Job
from controller.core.procedure import (
    Ask,
    Claim,
    Extents,
    MapPiece,
    NotYet,
    Procedure,
    Run,
    Signal,
    Wish,
)
from controller.core.registry import Node, Registry
from controller.core.tasks import CALL_TIMEOUT_S, RESEND_S, Task, Tasks
from tests.site.site import connected

DISK = NodeName("disk")


class Desk:
    """The machine, as far as tasks need it."""

    def __init__(self) -> None:
        site = connected()
        site.make_volume("vol")
        number = site.submit("backup", volume="vol")
        self.job: Job = site.machine.jobs[number]  # type: ignore[index]
        self.registry: Registry = site.machine.registry
        self.dispatcher = Dispatcher(lease_s=15.0)
        self.now = 0.0
        self.effects: list[Effect] = []
        self.rows: list[Row] = []
        self.reasons: list[str] = []
        self.failed: list[BackupError] = []
        self.given: list[Any] = []

    def record(self, *rows: Row) -> None:
        self.rows += rows

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def give_reason(self, job: Job, reason: str) -> None:
        job.update(reason=reason)
        self.reasons.append(reason)

    def task_failed(self, task: Task, error: BackupError) -> None:
        self.failed.append(error)

    @property
    def node(self) -> Node:
        return self.registry.nodes[DISK]

    def wants(self, *wishes: Wish) -> Procedure:
        for wish in wishes:
            self.given.append((yield wish))

    def sent(self) -> list[Any]:
        return [effect.message for effect in self.effects if isinstance(effect, Send)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def tasks(desk: Desk) -> Tasks:
    made = Tasks(desk)
    made.begin_requests_at(100)
    return made


def release(*, gives_up: bool = False) -> Ask:
    return Ask(
        node=DISK,
        make=lambda request: ViewRelease(request=request, view="v"),  # type: ignore[arg-type]
        what="release the view",
        gives_up=gives_up,
    )


def fence() -> Ask:
    return Ask(
        node=DISK,
        make=lambda request: UnitFence(request=request, designator=b"d", epoch=1),  # type: ignore[arg-type]
        what="fence it",
    )


def reply(request: int = 101) -> NodeReply:
    return NodeReply(request=request, boot_id=b"")


def fenced(request: int = 101) -> UnitFenced:
    return UnitFenced(request=request, designator=b"d", epoch=1, boot_id=b"", position=0)  # type: ignore[arg-type]


def item(number: int = 1, *, state: str = "planned", movers: tuple[str, ...] = ()) -> ItemRow:
    return ItemRow(
        item=ItemId(number),
        job=1,  # type: ignore[arg-type]
        purpose="data",
        state=state,
        attempt=0,
        movers=movers,
        epoch=0,  # type: ignore[arg-type]
        parameter_list=b"",
        planned_bytes=0,
        status=-1,
        sense=b"",
        segments=0,
        seconds=0.0,
        ledger="[]",
        detail="",
    )


# --- asking ---------------------------------------------------------------------------------------


def test_an_answer_is_granted_once_and_a_double_is_nobodys(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(release()), job=desk.job)
    tasks.run()
    assert desk.sent() == [ViewRelease(request=101, view="v")]  # type: ignore[arg-type]
    assert not tasks.waits_for(101, node=NodeName("tape")), "of the node that was asked only"
    assert tasks.waits_for(101, node=DISK)
    tasks.answered(reply())
    assert not tasks.waits_for(101, node=DISK)
    tasks.run()
    assert desk.given == [reply()]
    assert tasks.all() == []


def test_an_answer_of_the_wrong_kind_is_refused(desk: Desk, tasks: Tasks) -> None:
    for ask, answer in ((release(), fenced()), (fence(), reply(102))):
        tasks.spawn(desk.wants(ask), job=desk.job)
        tasks.run()
        tasks.answered(answer)
        tasks.run()
    assert [type(error) for error in desk.failed] == [RemoteProtocolError] * 2


def test_a_fence_is_answered_by_fenced(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(fence()), job=desk.job)
    tasks.run()
    tasks.answered(fenced())
    tasks.run()
    assert desk.given == [fenced()]


def test_a_request_is_repeated_with_its_number_until_it_is_answered(
    desk: Desk, tasks: Tasks
) -> None:
    desk.job.update(reason="")
    tasks.spawn(desk.wants(release()), job=desk.job)
    tasks.run()
    assert tasks.deadline() == RESEND_S
    desk.now = RESEND_S
    tasks.tick()
    assert [message.request for message in desk.sent()] == [101, 101]
    assert desk.job.row.reason == "waiting: storage node disk to release the view"
    assert tasks.deadline() == 2 * RESEND_S


def test_a_request_that_is_repeated_says_why_once(desk: Desk, tasks: Tasks) -> None:
    desk.job.update(reason="")
    tasks.spawn(desk.wants(release()), job=desk.job)
    tasks.run()
    for number in range(1, 5):
        desk.now = number * RESEND_S
        tasks.tick()
    assert len(desk.sent()) == 5
    assert desk.reasons == ["waiting: storage node disk to release the view"]


def test_a_node_that_takes_too_long_is_told_of_once(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(replace(release(), slow_s=600.0), release()), job=desk.job)
    tasks.run()

    def alarms(until: float) -> list[str]:
        while desk.now < until:
            desk.now += RESEND_S
            tasks.tick()
        return [effect.text for effect in desk.effects if isinstance(effect, Alarm)]

    assert alarms(597) == []
    told = "storage node disk takes longer than 10m to release the view: look at its library"
    assert alarms(600) == alarms(2000) == [told]
    # The next request has a time of its own, which is no time at all.
    tasks.answered(reply())
    tasks.run()
    assert alarms(4000) == [told]


def test_a_node_that_is_away_is_waited_for_without_a_deadline(desk: Desk, tasks: Tasks) -> None:
    desk.node.is_online = False
    tasks.spawn(desk.wants(release()), job=desk.job)
    tasks.run()
    assert (desk.sent(), tasks.deadline()) == ([], None)
    assert desk.job.row.reason == "waiting: storage node disk is away"
    desk.node.is_online = True
    tasks.node_is_here(DISK)
    assert len(desk.sent()) == 1
    assert desk.job.row.reason == ""


def test_a_node_that_is_away_is_not_waited_for_by_a_clean_up(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(release(gives_up=True)), job=desk.job)
    tasks.run()
    desk.node.is_online = False
    tasks.node_is_away(DISK)
    tasks.run()
    assert [type(error) for error in desk.failed] == [UnreachableError]


def test_a_call_waits_for_a_node_a_minute_at_most(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(release()), call=5)
    tasks.run()
    desk.now = CALL_TIMEOUT_S
    tasks.tick()
    tasks.run()
    assert str(desk.failed[0]) == "release the view: no answer within 60 s"


# --- items ----------------------------------------------------------------------------------------


def test_an_item_is_offered_and_its_end_is_granted(desk: Desk, tasks: Tasks) -> None:
    tasks.spawn(desk.wants(Run(row=item(), uses=())), job=desk.job)
    tasks.run()
    assert set(desk.dispatcher.ready) == {1}
    desk.dispatcher.request(NodeName("m1"), 1)
    ((row, _, _),) = desk.dispatcher.assign(now=0.0, next_epoch=lambda: 7)  # type: ignore[arg-type,return-value]
    tasks.check()
    del desk.dispatcher.leases[row.item]
    tasks.item_ended(row)
    tasks.run()
    assert desk.given == [row]


def test_an_interrupted_job_revokes_its_item_wherever_it_is(desk: Desk, tasks: Tasks) -> None:
    for is_leased in (False, True):
        tasks.spawn(desk.wants(Run(row=item(2 if is_leased else 1), uses=())), job=desk.job)
        tasks.run()
        if is_leased:
            desk.dispatcher.request(NodeName("m1"), 1)
            desk.dispatcher.assign(now=0.0, next_epoch=lambda: 7)  # type: ignore[arg-type,return-value]
        tasks.interrupt(desk.job, BusyError("stop"))
        tasks.run()
    assert not desk.dispatcher.ready
    assert not desk.dispatcher.leases
    states = [(row.item, row.state) for row in desk.rows if isinstance(row, ItemRow)]
    assert states == [(1, "revoked"), (2, "revoked")]
    assert desk.sent() == [WorkRevoked(item=2, epoch=7, reason="cancelled")]  # type: ignore[arg-type]
    assert len(desk.failed) == 2


def test_an_item_of_an_earlier_life_that_ends_before_it_is_waited_for_is_kept(
    desk: Desk, tasks: Tasks
) -> None:
    leased = item(state="leased", movers=("m1",))
    desk.dispatcher.adopt(leased, now=0.0)
    tasks.adopted[leased.item] = leased
    tasks.check()
    del desk.dispatcher.leases[leased.item]
    done = item(state="done", movers=("m1",))
    tasks.item_ended(done)
    tasks.spawn(desk.wants(Run(row=leased, uses=())), job=desk.job)
    tasks.run()
    tasks.run()
    assert desk.given == [done]
    tasks.check()


def test_items_that_a_job_will_not_wait_for_any_more_are_revoked(desk: Desk, tasks: Tasks) -> None:
    leased = item(state="leased", movers=("m1",))
    desk.dispatcher.adopt(leased, now=0.0)
    tasks.adopted[leased.item] = leased
    tasks.drop_adopted(desk.job)
    assert not desk.dispatcher.leases
    assert [row.state for row in desk.rows if isinstance(row, ItemRow)] == ["revoked"]
    tasks.check()


# --- claims, signals, extents ---------------------------------------------------------------------


def test_a_claim_is_tried_until_it_is_granted_and_its_reason_is_shown_and_taken_back(
    desk: Desk, tasks: Tasks
) -> None:
    results: list[Any] = [NotYet("waiting: a drive"), NotYet("waiting: a drive"), "drive-0"]
    tasks.spawn(desk.wants(Claim(attempt=lambda: results.pop(0))), job=desk.job)
    tasks.run()
    assert desk.job.row.reason == "waiting: a drive"
    tasks.run()
    tasks.run()
    tasks.run()
    assert desk.given == ["drive-0"]
    assert desk.job.row.reason == ""


def test_a_claim_that_can_never_be_granted_is_refused(desk: Desk, tasks: Tasks) -> None:
    def attempt() -> None:
        raise BusyError("never")

    tasks.spawn(desk.wants(Claim(attempt=attempt)), job=desk.job)
    tasks.run()
    tasks.run()
    assert str(desk.failed[0]) == "never"


def test_the_first_task_that_claims_is_served_first(desk: Desk, tasks: Tasks) -> None:
    taken: list[str] = []

    def claim(name: str) -> Claim:
        def attempt() -> bool | NotYet:
            if taken:
                return NotYet("taken")
            taken.append(name)
            return True

        return Claim(attempt=attempt)

    tasks.spawn(desk.wants(claim("first")), job=desk.job)
    tasks.spawn(desk.wants(claim("second")))
    tasks.run()
    assert taken == ["first"]


def test_a_signal_wakes_who_waits_for_it_and_time_wakes_everybody(desk: Desk, tasks: Tasks) -> None:
    for _ in range(2):
        tasks.spawn(desk.wants(Signal(name="done", timeout_s=5.0)), job=desk.job)
    tasks.run()
    assert tasks.signal("done", "yes")
    assert not tasks.signal("other", "yes")
    desk.now = 5.0
    tasks.tick()
    tasks.run()
    assert desk.given == ["yes", None]
    assert not tasks.signal("done", "yes")


def test_extents_reach_the_job_that_asked_for_them(desk: Desk, tasks: Tasks) -> None:
    wish = Extents(backup=3)  # type: ignore[arg-type]
    tasks.spawn(desk.wants(wish), job=desk.job)
    tasks.run()
    assert desk.effects == [FetchExtents(job=desk.job.row.job, backup=3)]  # type: ignore[arg-type]
    runs = ExtentRuns([(1, 2)])
    job = desk.job.row.job
    tasks.extents_fetched(ExtentsFetched(job=99, backup=3, runs=runs))  # type: ignore[arg-type]
    tasks.extents_fetched(ExtentsFetched(job=job, backup=4, runs=runs))  # type: ignore[arg-type]
    assert not tasks.run()
    tasks.extents_fetched(ExtentsFetched(job=job, backup=3, runs=runs))  # type: ignore[arg-type]
    tasks.run()
    assert desk.given == [runs]


@pytest.mark.parametrize("page", [None, 0, 5])
def test_a_piece_of_a_map_reaches_the_job_that_asked_for_it(
    desk: Desk, tasks: Tasks, page: int | None
) -> None:
    tasks.spawn(desk.wants(MapPiece(backup=3, page=page)), job=desk.job)  # type: ignore[arg-type]
    tasks.run()
    job = desk.job.row.job
    assert desk.effects == [FetchMap(job=job, backup=3, page=page)]  # type: ignore[arg-type]
    others = [(99, 3, page), (job, 4, page), (job, 3, 1), (job, 3, 0 if page is None else None)]
    for other, backup, number in others:
        tasks.map_fetched(MapFetched(job=other, backup=backup, page=number, packed=b"no"))  # type: ignore[arg-type]
    assert not tasks.run()
    tasks.map_fetched(MapFetched(job=job, backup=3, page=page, packed=b"yes"))  # type: ignore[arg-type]
    tasks.run()
    assert desk.given == [b"yes"]
