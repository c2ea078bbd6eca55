"""Signals become calls in the loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from backplane.runtime.loop import Loop
from backplane.runtime.signals import SignalHandlers


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_a_call_in_the_loop(loop: Loop, number: signal.Signals) -> None:
    def on_stop() -> None:
        assert threading.current_thread() is threading.main_thread()
        calls.append("stop")
        loop.stop()

    calls: list[str] = []
    with SignalHandlers(loop, on_stop=on_stop, on_dump=lambda: calls.append("dump")):
        loop.after(0.0, lambda: send(number))
        loop.run()
    assert calls == ["stop"]


def test_a_second_request_ends_the_loop_at_once(loop: Loop) -> None:
    drained: list[int] = []
    with SignalHandlers(loop, on_stop=lambda: drained.append(1), on_dump=lambda: None):
        loop.after(0.0, lambda: send(signal.SIGTERM))
        loop.after(0.01, lambda: send(signal.SIGTERM))
        loop.run()
    assert drained == [1]


def test_a_dump_is_asked_for_as_often_as_wanted(loop: Loop) -> None:
    dumps: list[int] = []
    with SignalHandlers(loop, on_stop=loop.stop, on_dump=lambda: dumps.append(1)):
        for _ in range(3):
            send(signal.SIGUSR1)
        loop.after(0.01, lambda: send(signal.SIGTERM))
        loop.run()
    assert dumps == [1, 1, 1]


def test_a_signal_wakes_a_waiting_loop(loop: Loop) -> None:
    """Without the wake-up descriptor it would be seen only when the poll ends."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGTERM))
    with SignalHandlers(loop, on_stop=loop.stop, on_dump=lambda: None):
        timer.start()
        loop.run()
    timer.join()


def test_the_earlier_handlers_come_back(loop: Loop) -> None:
    earlier = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with SignalHandlers(loop, on_stop=loop.stop, on_dump=lambda: None):
        assert signal.getsignal(signal.SIGTERM) != earlier[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == earlier
    assert signal.set_wakeup_fd(-1) == -1
