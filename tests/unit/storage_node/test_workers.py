"""Workers: order within a key, overlap between keys, limits, ends."""

import threading

import pytest

from backplane.errors import BusyError
from storage_node.workers import KeyedWorkers


def test_the_same_key_runs_in_order_and_never_twice_at_once() -> None:
    workers = KeyedWorkers(threads=4)
    done: list[int] = []
    inside = threading.Lock()
    end = threading.Event()

    def run(number: int) -> None:
        assert inside.acquire(blocking=False)
        done.append(number)
        inside.release()
        if number == 199:
            end.set()

    for number in range(200):
        workers.submit("key", lambda number=number: run(number))  # type: ignore[misc]
    assert end.wait(10)
    workers.close()
    assert done == list(range(200))


def test_different_keys_run_side_by_side() -> None:
    workers = KeyedWorkers(threads=2)
    meeting = threading.Barrier(3)

    def meet() -> None:
        meeting.wait(10)

    for key in "ab":
        workers.submit(key, meet)
    meeting.wait(10)
    workers.close()


def test_too_many_waiting_requests_are_refused() -> None:
    workers = KeyedWorkers(threads=1, waiting_max=2)
    gate, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        gate.wait(10)

    workers.submit("a", block)
    assert begun.wait(10)
    workers.submit("a", block)
    with pytest.raises(BusyError):
        workers.submit("b", block)
    gate.set()
    workers.close()


def test_a_crash_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    workers = KeyedWorkers(threads=1)
    end = threading.Event()

    def crash() -> None:
        raise ZeroDivisionError

    workers.submit("a", crash)
    workers.submit("a", end.set)
    assert end.wait(10)
    workers.close()
    assert "crashed" in caplog.text


def test_closing_finishes_what_runs_and_forgets_what_waits() -> None:
    workers = KeyedWorkers(threads=1)
    gate, begun, late = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        gate.wait(10)

    workers.submit("a", block)
    workers.submit("b", late.set)
    assert begun.wait(10)
    closer = threading.Thread(target=workers.close)
    closer.start()
    while not workers._is_closing:
        begun.wait(0.001)
    gate.set()
    closer.join()
    assert not late.is_set()
