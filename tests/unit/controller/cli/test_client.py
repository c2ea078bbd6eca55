from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    ExitCode,
    NotAuthorizedError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
)
from backplane.runtime.keys import create_key_pair
from backplane.testing.clock import ManualClock
from backplane.transport.base import Received
from backplane.wire.messages import (
    Message,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    ProtocolFault,
    SessionHello,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
)
from controller.cli.client import Client, connect, exit_code_of, find_contact
from controller.cli.options import Settings

WELCOME = SessionWelcome(version=1, store="0" * 32, heartbeat_s=2.0)


class ScriptedEndpoint:
    """Answers the n-th message it gets with the n-th entry of a script; time passes with every wait."""

    def __init__(self, *script: list[Any] | None) -> None:
        self.sent: list[Message] = []
        self._script = list(script)
        self._arrived: list[Any] = []
        self._wakeup = threading.Event()
        self.is_connected = True

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        if not self.is_connected:
            return False
        if isinstance(message, SessionHello | OperatorCall):
            self.sent.append(message)
            self._arrived += (self._script.pop(0) if self._script else None) or []
        return True

    def receive(self) -> Received | None:
        return Received(b"", b"", self._arrived.pop(0)) if self._arrived else None

    @property
    def pollable(self) -> Any:
        return None

    def fileno(self) -> int:
        raise AssertionError("the tests' client does not wait on a descriptor")

    def close(self) -> None:
        pass


class PatientClient(Client):
    """A client whose waiting is the passing of a manual clock."""

    clock: ManualClock

    @property
    def waited_s(self) -> float:
        return self.clock.monotonic() - 1000.0

    def _wait(self, seconds: float) -> None:
        self.clock.advance(max(seconds, 0.001))


def a_client(
    endpoint: ScriptedEndpoint, *, timeout_s: float = 5.0, first_contact_s: float | None = None
) -> PatientClient:
    clock = ManualClock(start=1000.0)
    client = PatientClient(
        endpoint,
        name="operator",
        boot_id=bytes(16),
        address="tcp://127.0.0.1:1",
        timeout_s=timeout_s,
        first_contact_s=first_contact_s,
        clock=clock,
    )
    client.clock = clock
    return client


def reply(request: int, document: object) -> OperatorReply:
    return OperatorReply(request=request, document=json.dumps(document).encode())


def test_it_says_hello_once_and_then_calls() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [reply(1, {"a": 1})], [reply(2, {"b": 2})])
    client = a_client(endpoint)
    assert client.call("node.list") == {"a": 1}
    assert client.call("job.show", job=7) == {"b": 2}
    hello, first, second = endpoint.sent
    assert isinstance(hello, SessionHello)
    assert hello.role == "operator"
    assert isinstance(first, OperatorCall)
    assert isinstance(second, OperatorCall)
    assert (second.verb, json.loads(second.arguments)) == ("job.show", {"job": 7})


def test_a_lost_call_is_sent_again_with_the_same_number() -> None:
    endpoint = ScriptedEndpoint([WELCOME], None, None, [reply(1, {})])
    a_client(endpoint).call("node.list")
    calls = [message for message in endpoint.sent if isinstance(message, OperatorCall)]
    assert [call.request for call in calls] == [1, 1, 1]


def test_a_controller_that_restarted_is_greeted_again_and_then_asked_again() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [SessionUnknown()], [WELCOME], [reply(1, {"a": 1})])
    assert a_client(endpoint).call("node.list") == {"a": 1}
    kinds = [message.kind for message in endpoint.sent]
    assert kinds == ["session.hello", "operator.call", "session.hello", "operator.call"]


def test_an_answer_to_an_earlier_call_is_not_taken_for_this_one() -> None:
    endpoint = ScriptedEndpoint(
        [WELCOME], [reply(1, {"a": 1})], [reply(1, {"a": 1}), WELCOME, reply(2, {"b": 2})]
    )
    client = a_client(endpoint)
    client.call("node.list")
    assert client.call("mover.list") == {"b": 2}


def test_silence_ends_with_exit_code_9_and_a_hint() -> None:
    endpoint = ScriptedEndpoint()
    client = a_client(endpoint, timeout_s=5.0)
    with pytest.raises(UnreachableError) as caught:
        client.call("node.list")
    assert caught.value.exit_code == ExitCode.NO_CONTROLLER
    assert "tcp://127.0.0.1:1" in caught.value.message
    assert caught.value.hint
    assert 5.0 <= client.waited_s < 6.0


def test_who_was_never_heard_is_given_up_sooner_than_who_restarts() -> None:
    never = a_client(ScriptedEndpoint(), timeout_s=30.0, first_contact_s=10.0)
    with pytest.raises(UnreachableError, match="10s"):
        never.call("node.list")
    assert 10.0 <= never.waited_s < 11.0
    gone = a_client(
        ScriptedEndpoint([WELCOME], [reply(1, {})]), timeout_s=30.0, first_contact_s=10.0
    )
    gone.call("node.list")
    with pytest.raises(UnreachableError, match="30s"):
        gone.call("node.list")


def test_while_the_controller_is_heard_a_call_may_take_longer_than_the_timeout() -> None:
    pong = SessionPong(sequence=1)
    endpoint = ScriptedEndpoint([WELCOME], *([[pong]] * 8), [reply(1, {"a": 1})])
    client = a_client(endpoint, timeout_s=3.0)
    assert client.call("node.list") == {"a": 1}
    assert client.waited_s > 6.0


def test_before_there_is_a_connection_it_tries_again_at_once() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [reply(1, {})])
    endpoint.is_connected = False
    client = a_client(endpoint)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        client.clock.advance(seconds)
        endpoint.is_connected = len(waits) >= 3

    client._wait = wait  # type: ignore[method-assign]
    client.call("node.list")
    assert sum(waits) < 0.1


def failed(error: str, *, exit_code: int) -> OperatorFailed:
    return OperatorFailed(request=1, error=error, reason="why", hint="do", exit_code=exit_code)


def test_the_controllers_error_comes_back_as_its_class() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [failed("not-found", exit_code=4)])
    with pytest.raises(NotFoundError) as caught:
        a_client(endpoint).call("job.show", job=9)
    assert (caught.value.message, caught.value.hint) == ("why", "do")
    assert exit_code_of(caught.value) == 4


def test_an_error_that_this_ctl_does_not_know_keeps_its_exit_code() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [failed("new-kind", exit_code=7)])
    with pytest.raises(BackupError) as caught:
        a_client(endpoint).call("node.list")
    assert exit_code_of(caught.value) == ExitCode.MEDIA_NEEDED


def test_an_exit_code_that_does_not_exist_is_a_plain_failure() -> None:
    endpoint = ScriptedEndpoint([WELCOME], [failed("new-kind", exit_code=77)])
    with pytest.raises(BackupError) as caught:
        a_client(endpoint).call("node.list")
    assert exit_code_of(caught.value) == ExitCode.FAILED


def test_a_refused_session_says_why() -> None:
    endpoint = ScriptedEndpoint([SessionRefused(reason="no common version", hint="upgrade")])
    with pytest.raises(NotAuthorizedError, match="no common version"):
        a_client(endpoint).call("node.list")


@pytest.mark.parametrize(
    "answer",
    [
        ProtocolFault(reason="no such kind"),
        RemoteProtocolError("rubbish"),
        OperatorReply(request=1, document=b"{"),
        OperatorReply(request=1, document=b"[1]"),
    ],
)
def test_an_answer_that_is_none_is_a_protocol_error(answer: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        a_client(ScriptedEndpoint([WELCOME], [answer])).call("node.list")


def test_over_a_real_socket_lost_calls_and_restarts_do_not_show(
    controller: Any, state: Path
) -> None:
    controller.answers["node.list"] = {"nodes": []}
    controller.lost_calls, controller.forgotten_calls = 1, 1
    with connect(Settings(state=state)) as client:
        assert client.call("node.list") == {"nodes": []}
        assert client.call("node.list") == {"nodes": []}


def test_a_key_that_the_controller_does_not_know_is_refused_at_once(
    controller: Any, state: Path, tmp_path: Path
) -> None:
    create_key_pair(tmp_path / "other", role="operator", name="stranger")
    settings = Settings(state=state, key=tmp_path / "other" / "stranger.secret", timeout_s=60)
    begun = time.monotonic()
    with connect(settings) as client, pytest.raises(NotAuthorizedError) as caught:
        client.call("node.list")
    assert time.monotonic() - begun < 30
    assert "stranger.secret" in caught.value.message
    assert "stranger.public" in caught.value.hint


def test_another_controllers_key_is_told_at_once(
    controller: Any, state: Path, tmp_path: Path
) -> None:
    create_key_pair(tmp_path, role="controller", name="another")
    wrong = tmp_path / "authorized" / "another.public"
    settings = Settings(state=state, controller_key=wrong, timeout_s=60)
    begun = time.monotonic()
    with connect(settings) as client, pytest.raises(UnreachableError, match="has not the key") as e:
        client.call("node.list")
    assert time.monotonic() - begun < 30
    assert str(wrong) in e.value.message


@contextlib.contextmanager
def a_stranger(greeting: bytes) -> Iterator[str]:
    """Something that listens, greets and hangs up; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        is_ending = threading.Event()

        def serve() -> None:
            while not is_ending.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            is_ending.set()
            thread.join()


def test_what_is_no_controller_is_told_at_once(controller: Any, state: Path) -> None:
    with a_stranger(b"NBDMAGICIHAVEOPT") as address:
        settings = Settings(state=state, controller=address, timeout_s=60)
        with connect(settings) as client, pytest.raises(UnreachableError, match="is no controller"):
            client.call("node.list")


def test_a_door_whose_controller_is_about_to_start_is_waited_for(
    controller: Any, state: Path
) -> None:
    """As a container engine does it: connections are accepted, and dropped at once."""
    with a_stranger(b"") as address:
        settings = Settings(state=state, controller=address, timeout_s=0.8)
        with connect(settings) as client, pytest.raises(UnreachableError, match="no answer in"):
            client.call("node.list")


def test_no_cluster_in_the_state_folder_is_no_contact(state: Path) -> None:
    with pytest.raises(UnreachableError, match="no cluster is known") as caught:
        find_contact(Settings(state=state))
    assert "ctl local up" in caught.value.hint


def test_a_torn_record_is_refused_by_name(state: Path) -> None:
    (state / "local.json").write_text("{")
    with pytest.raises(RefusedError, match=r"local\.json"):
        find_contact(Settings(state=state))


def test_settings_from_outside_beat_the_state_folder(state: Path, tmp_path: Path) -> None:
    create_key_pair(tmp_path / "outside", role="controller", name="controller")
    contact = find_contact(
        Settings(
            state=state,
            controller="tcp://backup.example:7420",
            key=tmp_path / "me.secret",
            controller_key=tmp_path / "outside" / "authorized" / "controller.public",
        )
    )
    assert contact.address == "tcp://backup.example:7420"
    assert contact.key_file == tmp_path / "me.secret"


def test_a_missing_key_file_is_not_found(state: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        find_contact(
            Settings(
                state=state, controller="tcp://127.0.0.1:1", controller_key=tmp_path / "no.public"
            )
        )
