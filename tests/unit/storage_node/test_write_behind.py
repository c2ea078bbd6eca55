"""One worker behind a connection: in order, two buffers, errors brought home, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from backplane.errors import BackupError
from storage_node.write_behind import WriteBehind

WAIT_S = 10


class Errors:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def errors() -> Errors:
    return Errors()


@pytest.fixture
def behind(errors: Errors) -> Iterator[WriteBehind]:
    made = WriteBehind(on_error=errors)
    yield made
    made.close()


def test_work_is_done_in_order_and_settling_waits_for_all_of_it(behind: WriteBehind) -> None:
    done: list[int] = []
    for number in range(50):
        behind.buffer(1)
        behind.submit(partial(done.append, number))
    behind.settle()
    assert done == list(range(50))


def test_a_buffer_is_not_lent_again_before_its_work_is_done(behind: WriteBehind) -> None:
    gate, seen = threading.Event(), []

    def keep(data: memoryview) -> None:
        assert gate.wait(WAIT_S)
        seen.append(bytes(data))

    for content in (b"first", b"other"):
        data = behind.buffer(5)
        data[:] = content
        behind.submit(partial(keep, data))
    lent = threading.Event()

    def borrow() -> None:
        behind.buffer(5)[:] = b"third"
        lent.set()

    thread = threading.Thread(target=borrow)
    thread.start()
    assert not lent.wait(0.05), "a third buffer was lent while two are in use"
    gate.set()
    assert lent.wait(WAIT_S)
    thread.join()
    behind.settle()
    assert seen == [b"first", b"other"]


def test_an_error_ends_the_work_and_is_raised_where_the_next_request_is(
    behind: WriteBehind, errors: Errors
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise BackupError("the peer is gone")

    behind.buffer(1)
    behind.submit(fail)
    with pytest.raises(BackupError, match="the peer is gone"):
        behind.settle()
    with pytest.raises(BackupError, match="the peer is gone"):
        behind.buffer(1)
    with pytest.raises(BackupError, match="the peer is gone"):
        behind.submit(partial(done.append, "never"))
    assert (done, errors.count) == ([], 1)


def test_closing_does_what_was_submitted_and_ends_the_thread() -> None:
    behind = WriteBehind(on_error=Errors())
    before = threading.active_count()
    done: list[int] = []
    for number in range(2):
        behind.buffer(1)
        behind.submit(partial(done.append, number))
    behind.close()
    assert done == [0, 1]
    assert threading.active_count() == before
    WriteBehind(on_error=Errors()).close()  # One that was never used has nothing to end.
