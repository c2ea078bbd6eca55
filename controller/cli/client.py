"""Request and reply to the controller, for `ctl`.

One DEALER endpoint, polled in a plain loop.  A call is sent again until it is answered or the controller has been
silent for too long (a pong breaks the silence: some calls wait for a storage node).  Calls are idempotent, those
that make something by the token they carry; so a lost reply, a restart of the controller and a doubled call all end
the same way.

    hello --> welcome --> call --> reply | failed
                ^           |
                +-- unknown-+      the controller restarted: hello again, then the same call again
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import select
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from backplane.errors import (
    BackupError,
    ExitCode,
    NotAuthorizedError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
    error_from_kind,
)
from backplane.ids import NodeName
from backplane.runtime.clock import Clock, SystemClock
from backplane.runtime.keys import KeyPair, load_key_pair, load_public_key
from backplane.transport.base import Endpoint
from backplane.transport.stream import parse_address
from backplane.transport.zeromq import DealerEndpoint, HandshakeFailure
from backplane.units import format_duration
from backplane.wire.messages import (
    PROTOCOL_VERSIONS,
    Message,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    ProtocolFault,
    SessionHello,
    SessionPing,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
)
from controller.cli.options import FIRST_CONTACT_S, TIMEOUT_S, Settings

RESEND_S: Final = 1.0
"""How often an unanswered message is sent again."""

CALL_S_MAX: Final = 600.0
"""How long a controller that lives may take for one call; its own limits are far below."""

CONNECTING_S: Final = 0.02
"""How often to try while there is no connection."""

POLL_S: Final = 0.1
"""Longest wait for the descriptor: ZeroMQ's is edge-triggered, so an edge that was missed costs this much."""

PROBE_S: Final = 1.0
"""How long to try whether anything listens at the controller's address, to word the error."""

HANGUPS_MAX: Final = 3
"""A ZeroMQ socket that hangs up so often has another key than we think; one that stops does it once or twice."""

ZMTP_SIGNATURE: Final = (b"\xff", b"\x7f")
"""The first and the tenth byte that ZeroMQ sends to whoever connects (RFC 23)."""

ZMTP_SIGNATURE_BYTES: Final = 10


class ControllerError(BackupError):
    """An error of the controller whose exit code is not the one that its kind has here."""

    def __init__(self, message: str, *, hint: str, code: ExitCode) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def exit_code_of(error: BackupError) -> ExitCode:
    """Return the code that `ctl` ends with."""
    return error.code if isinstance(error, ControllerError) else error.exit_code


class Client:
    """A session with the controller.  Not thread-safe."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        boot_id: bytes,
        address: str,
        timeout_s: float,
        first_contact_s: float | None = None,
        keys: KeyPair | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._hello = SessionHello(
            role="operator",
            name=NodeName(name),
            versions=PROTOCOL_VERSIONS,
            boot_id=boot_id,
            program=f"ctl {program_version()}",
        )
        self._keys = keys
        self._clock = clock if clock is not None else SystemClock()
        self._is_welcome = False
        self._has_news = False
        self._request = 0
        self.address = address
        self._timeout_s = timeout_s
        # How long the controller may be silent, now.
        self._patience_s = timeout_s if first_contact_s is None else first_contact_s

    @property
    def keys(self) -> KeyPair:
        """The operator's key pair; grants for `ctl` name its public half as their holder."""
        assert self._keys is not None
        return self._keys

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Carry out a verb and return its document; raises the error that the controller names.

        Raises `UnreachableError` when the controller has been silent for too long.
        """
        self._request += 1
        encoded = json.dumps(arguments, separators=(",", ":")).encode()
        call = OperatorCall(request=self._request, verb=verb, arguments=encoded)
        begun = heard_at = send_at = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            if now - heard_at >= self._patience_s:
                raise unreachable(self.address, waited_s=self._patience_s)
            if now - begun >= CALL_S_MAX:
                raise UnreachableError(f"the controller lives, but did not answer {verb}")
            if now >= send_at:
                is_sent = self._endpoint.send(call if self._is_welcome else self._hello)
                # A call may have to wait for a storage node; the pong says that the controller is there meanwhile.
                self._endpoint.send(SessionPing(sequence=self._request))
                # Not sent means not connected yet: a matter of milliseconds when the controller is there.
                send_at = now + (RESEND_S if is_sent else CONNECTING_S)
            received = self._endpoint.receive()
            if received is None:
                self._wait(min(send_at, heard_at + self._patience_s) - now)
                continue
            heard_at = now
            answer = self._take(received.message)
            if answer is not None:
                return answer
            if self._has_news:
                send_at = now

    def close(self) -> None:
        """End the session."""
        self._endpoint.close()

    def _take(self, message: Message | RemoteProtocolError) -> dict[str, Any] | None:
        """Handle one message; return the document if it answers the current call."""
        was_welcome, self._has_news = self._is_welcome, False
        match message:
            case SessionWelcome():
                self._is_welcome, self._patience_s = True, self._timeout_s
                self._has_news = not was_welcome
            case SessionUnknown():
                self._is_welcome = False
                self._has_news = was_welcome
            case SessionRefused(reason=reason, hint=hint):
                raise NotAuthorizedError(reason, hint=hint)
            case ProtocolFault(reason=reason):
                raise RemoteProtocolError(f"the controller did not understand: {reason}")
            case RemoteProtocolError():
                raise message
            case OperatorReply(request=request, document=document) if request == self._request:
                return _document(document)
            case OperatorFailed(request=request) if request == self._request:
                raise _failure(message)
            case _:
                pass  # an answer to a call that was answered already, or a pong
        return None

    def _wait(self, seconds: float) -> None:
        select.select([self._endpoint.fileno()], [], [], max(0.0, min(seconds, POLL_S)))


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise RemoteProtocolError(f"the controller's answer is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise RemoteProtocolError("the controller's answer is no JSON object")
    return cast("dict[str, Any]", document)


def _failure(message: OperatorFailed) -> BackupError:
    error = error_from_kind(message.error, message.reason, hint=message.hint)
    try:
        code = ExitCode(message.exit_code)
    except ValueError:
        code = ExitCode.FAILED
    if error.exit_code == code:
        return error
    return ControllerError(message.reason, hint=message.hint, code=code)


def new_token() -> str:
    """Return a new name for a request, so that sending it twice does it once."""
    return str(uuid.uuid4())


def program_version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("serverless-backup")
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout"


def unreachable(address: str, *, waited_s: float) -> UnreachableError:
    """Word the absence of the controller: nothing listens there, or what listens says nothing."""
    if _greeting(address) is not None:
        return UnreachableError(
            f"something listens at {address}, but gave no answer in {format_duration(waited_s)}",
            hint="the controller is busy, stopped or about to start, or this is not its address",
        )
    return UnreachableError(
        f"no controller at {address} (tried for {format_duration(waited_s)})",
        hint="is it running, and is the address right? `ctl local status` shows a local cluster",
    )


def _greeting(address: str) -> bytes | None:
    """Return what is said to whoever connects there, up to the length of ZeroMQ's signature; None if nobody listens."""
    try:
        family, where = parse_address(address)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(PROBE_S)
            sock.connect(where)
            said = b""
            with contextlib.suppress(OSError):
                while len(said) < ZMTP_SIGNATURE_BYTES:
                    more = sock.recv(ZMTP_SIGNATURE_BYTES - len(said))
                    if not more:
                        break
                    said += more
            return said
    except (OSError, UsageError):
        return None


@dataclass(frozen=True, slots=True)
class Contact:
    """Where the controller is and with which keys to speak to it."""

    address: str
    key_file: Path
    controller_key: bytes
    controller_key_file: Path


def find_contact(settings: Settings) -> Contact:
    """Complete the settings from the state folder of a local cluster."""
    address, controller_key = settings.controller, settings.controller_key
    if not address:
        path = settings.state / "local.json"
        try:
            address = json.loads(path.read_bytes())["address"]
        except FileNotFoundError as error:
            raise UnreachableError(
                f"no cluster is known in {settings.state}",
                hint="start one with `ctl local up`, or name one with --controller, --key and --controller-key",
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{path} cannot be read: {error}") from error
    keys = settings.state / "keys"
    controller_key_file = controller_key or keys / "authorized" / "controller.public"
    return Contact(
        address=address,
        key_file=settings.key or keys / "operator.secret",
        controller_key=load_public_key(controller_key_file).public,
        controller_key_file=controller_key_file,
    )


@dataclass(frozen=True, slots=True)
class Knocking:
    """What `ctl` makes of handshakes that fail: an error at once where waiting cannot help, and silence elsewhere."""

    contact: Contact
    keys: KeyPair

    def __call__(self, failure: HandshakeFailure, count: int) -> None:
        """Raise `NotAuthorizedError` or `UnreachableError`, or return if the next attempt may succeed."""
        address = self.contact.address
        if failure is HandshakeFailure.NOT_ADMITTED:
            raise NotAuthorizedError(
                f"the controller at {address} does not know the key {self.keys.public.hex()[:16]}... "
                f"({self.contact.key_file})",
                hint=f"its authorized folder needs {self.keys.name}.public; or is it another key that it knows?",
            )
        greeting = _greeting(address)
        if not greeting:
            return  # a proxy in front of a controller that starts accepts connections, and drops them
        if not is_zeromq(greeting):
            raise UnreachableError(
                f"what listens at {address} is no controller", hint="is the address right?"
            )
        if count >= HANGUPS_MAX:
            raise UnreachableError(
                f"what listens at {address} has not the key that {self.contact.controller_key_file} says",
                hint="is the address right, and is that file the controller's .public file as it is now?",
            )


def is_zeromq(greeting: bytes) -> bool:
    """Tell whether these are the first bytes of a ZeroMQ socket, as far as they go."""
    first, tenth = ZMTP_SIGNATURE
    return greeting[:1] == first and greeting[9:10] in (tenth, b"")


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[Client]:
    """Open a session with the controller that the settings name."""
    contact = find_contact(settings)
    keys = load_key_pair(contact.key_file)
    endpoint = DealerEndpoint(
        contact.address,
        keys=keys,
        server_key=contact.controller_key,
        on_failure=Knocking(contact, keys),
    )
    client = Client(
        endpoint,
        name=keys.name,
        boot_id=uuid.uuid4().bytes,
        address=contact.address,
        timeout_s=TIMEOUT_S if settings.timeout_s is None else settings.timeout_s,
        first_contact_s=FIRST_CONTACT_S if settings.timeout_s is None else settings.timeout_s,
        keys=keys,
    )
    try:
        yield client
    finally:
        client.close()
