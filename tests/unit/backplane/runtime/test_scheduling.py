"""Only the thread that asks for it is scheduled for throughput, and a refusal changes nothing."""

from __future__ import annotations

import os
import threading

import pytest

from backplane.runtime.scheduling import prefer_throughput


def policy_in_a_thread() -> int:
    found: list[int] = []

    def run() -> None:
        prefer_throughput()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_the_thread_that_asks_is_scheduled_in_batches_and_no_other() -> None:
    before = os.sched_getscheduler(0)
    assert policy_in_a_thread() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before


def test_where_it_is_forbidden_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "forbidden")

    before = os.sched_getscheduler(0)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert policy_in_a_thread() == before
