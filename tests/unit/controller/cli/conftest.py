"""A controller that only answers, over a real encrypted socket, and `ctl` called as a person calls it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from backplane import crc
from backplane.errors import BackupError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.runtime.keys import KeyPair, KeyTable, ensure_key_pair
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport import stream
from backplane.transport.base import Received
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire import grants
from backplane.wire.frames import Entry, Header, Opcode, Protection, Status, decode_entries
from backplane.wire.messages import (
    Message,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
)
from controller.cli import main
from controller.operator_verbs import parse_arguments


class FakeController:
    """Answers each verb with what the test put into `answers`; checks the arguments as the real one does."""

    def __init__(self, state: Path) -> None:
        self.answers: dict[str, Any] = {"backup.show": {"tags": ["LTO001L8"]}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.lost_calls = 0
        """So many calls are ignored, as if they or their answers had been lost."""
        self.forgotten_calls = 0
        """So many calls are answered by a controller that has restarted."""
        self.refusal: SessionRefused | None = None
        self.is_mute = False
        keys = ensure_key_pair(state / "keys", role="controller", name="controller")
        ensure_key_pair(state / "keys", role="operator", name="operator")
        table = KeyTable(state / "keys" / "authorized")
        self._endpoint = RouterEndpoint("tcp://127.0.0.1:*", keys=keys, table=table.is_authorized)
        self.address = self._endpoint.address
        self._known: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-controller")
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        self._thread.join()
        self._endpoint.close()

    def arguments(self, verb: str) -> dict[str, Any]:
        """Return the arguments of the one call of that verb."""
        (found,) = [arguments for name, arguments in self.calls if name == verb]
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            received = self._endpoint.receive()
            if received is None:
                select.select([self._endpoint.fileno()], [], [], 0.005)
            elif not self.is_mute:
                for message in self._answers_to(received):
                    self._endpoint.send(message, peer=received.peer)

    def _answers_to(self, received: Received) -> list[Message]:
        match received.message:
            case SessionHello(role="operator"):
                if self.refusal is not None:
                    return [self.refusal]
                self._known.add(received.peer)
                return [SessionWelcome(version=1, store="0" * 32, heartbeat_s=2.0)]
            case SessionPing(sequence=sequence) if received.peer in self._known:
                return [SessionPong(sequence=sequence)]
            case OperatorCall() as call if received.peer in self._known:
                return self._carry_out(call, received.peer)
        return [SessionUnknown()]

    def _carry_out(self, call: OperatorCall, peer: bytes) -> list[Message]:
        arguments = parse_arguments(call.verb, call.arguments)
        self.calls.append((call.verb, json.loads(call.arguments)))
        if self.forgotten_calls:
            self.forgotten_calls -= 1
            self._known.discard(peer)
            return [SessionUnknown()]
        if self.lost_calls:
            self.lost_calls -= 1
            return []
        answer = self.answers[call.verb]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        try:
            if callable(answer):
                answer = answer(arguments)
            if isinstance(answer, BackupError):
                raise answer
        except BackupError as error:
            failed = OperatorFailed(
                request=call.request,
                error=error.kind,
                reason=error.message,
                hint=error.hint,
                exit_code=int(error.exit_code),
            )
            return [failed]
        document = json.dumps(answer).encode()
        # Answered twice: a doubled message must never be taken for the answer to the next call.
        return [OperatorReply(request=call.request, document=document)] * 2


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that no environment variable contradicts, in a time zone that everybody has."""
    for name in list(os.environ):
        if name.startswith("CTL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def controller(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    """A fake controller that the state folder names."""
    monkeypatch.setattr("controller.cli.client.RESEND_S", 0.1)
    fake = FakeController(state)
    record = {
        "address": fake.address,
        "controller_public_key": "",
        "movers": 1,
        "processes": [],
    }
    (state / "local.json").write_text(json.dumps(record))
    yield fake
    fake.close()


Ctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctl(state: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run `ctl` in this process; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--state", str(state), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class FakeDiskNode:
    """One logical unit in memory, behind the real handshake; can damage what it carries."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.requests: list[tuple[Opcode, tuple[Entry, ...]]] = []
        self.damaged_writes = 0
        """So many writes are refused with a failed guard check, as if damaged on the way."""
        self.damaged_reads = 0
        """So many reads arrive with a flipped byte."""
        self.failing: Opcode | None = None
        self.keys = KeyPair(*_new_keys(), role="storage", name="disk")
        self.controller_keys = KeyPair(*_new_keys(), role="controller", name="controller")
        self._boot_id = bytes(range(16))
        self._listener, self.address = stream.listen("tcp://127.0.0.1:0")
        self._thread = threading.Thread(target=self._serve, name="fake-disk-node")
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def channel(self, holder: str) -> dict[str, Any]:
        """Return the channel document by which the holder of a key (hexadecimal) may use the unit."""
        body = grants.encode_grant(
            grants.Grant(
                node=NodeName("disk"),
                designator=Designator(bytes.fromhex("3aabbccddeeff001")),
                rights=grants.Rights.READ | grants.Rights.WRITE,
                extents=((0, len(self.content) // 512),),
                position=0,
                job=JobId(0),
                item=ItemId(0),
                epoch=Epoch(1),
                holder=bytes.fromhex(holder),
                ttl_s=60.0,
                bytes_max=1 << 40,
            )
        )
        shared = grants.agree(self.controller_keys.secret, self.keys.public)
        return {
            "designator": "3aabbccddeeff001",
            "addresses": [self.address],
            "node_key": self.keys.public.hex(),
            "grant": body.hex(),
            "tag": grants.grant_tag(body, key=grants.grant_key(shared)).hex(),
        }

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(BackupError):
                connection, _ = stream.serve_handshake(
                    sock,
                    boot_id=self._boot_id,
                    secret_key=self.keys.secret,
                    controller_key=self.controller_keys.public,
                    admit=lambda _grant: stream.Opened(
                        boot_id=self._boot_id, peripheral_device_type=0, block_bytes=512
                    ),
                )
                while True:
                    self._answer(connection)

    def _answer(self, connection: stream.Connection) -> None:
        header, extra = connection.receive_header()
        entries = decode_entries(extra)
        self.requests.append((header.opcode, entries))
        data, sense = b"", b""
        match header.opcode:
            case Opcode.WRITE:
                data_in = connection.receive_data(header.length)
                assert crc.crc32c(data_in) == header.crc32c
                if self.damaged_writes:
                    self.damaged_writes -= 1
                    sense = Sense(key=SenseKey.ABORTED_COMMAND, asc=0x10, ascq=0x01).encode_fixed()
                else:
                    self._store(entries, data_in)
            case Opcode.READ:
                data = b"".join(
                    bytes(self.content[e.byte_address : e.byte_address + e.byte_count])
                    for e in entries
                )
        if header.opcode is self.failing:
            data, sense = b"", Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0x00).encode_fixed()
        checksum = crc.crc32c(data)
        if data and self.damaged_reads:
            self.damaged_reads -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        connection.send(
            Header(
                opcode=header.opcode,
                is_reply=True,
                sequence=header.sequence,
                status=Status.CHECK_CONDITION if sense else Status.GOOD,
                protection=Protection.CRC32C if data else Protection.NONE,
                length=len(data),
                crc32c=checksum,
                extra=len(sense),
                boot=connection.boot,
            ),
            extra=sense,
            data=data or None,
        )

    def _store(self, entries: tuple[Entry, ...], data: bytearray) -> None:
        for entry in entries:
            part, data = data[: entry.byte_count], data[entry.byte_count :]
            self.content[entry.byte_address : entry.byte_address + entry.byte_count] = part


def _new_keys() -> tuple[bytes, bytes]:
    private = X25519PrivateKey.generate()
    return private.public_key().public_bytes_raw(), private.private_bytes_raw()


@pytest.fixture
def disk_node() -> Iterator[FakeDiskNode]:
    """A fake disk node with a unit of 3 MiB and one block."""
    node = FakeDiskNode(3 * 1024 * 1024 + 512)
    yield node
    node.close()


@pytest.fixture
def documents() -> dict[str, Any]:
    """One document of each kind, as the operator interface describes it."""
    item = {
        "item": 11,
        "purpose": "data",
        "state": "done",
        "attempt": 1,
        "mover": "mover-1",
        "epoch": 5,
        "parameter_list": "010000000040",
        "status": "00h",
        "sense": "",
        "sense_text": "",
        "segments": 3,
        "seconds": 1.25,
        "planned_bytes": 3221225472,
        "ledger": [],
        "detail": "",
    }
    job = {
        "job": 7,
        "kind": "backup",
        "state": "completed",
        "reason": "",
        "subject": "vol1",
        "volume": "vol1",
        "backup": 3,
        "submitted": "2026-01-11T10:43:40Z",
        "started": "2026-01-11T10:43:41Z",
        "ended": "2026-01-11T10:43:48Z",
        "total_bytes": 3221225472,
        "bytes_done": 3221225472,
        "percent_done": 1.0,
        "seconds_elapsed": 7.0,
        "seconds_remaining": 0.0,
        "seconds_copying": 3.0,
        "error_count": 0,
        "exit_code": 0,
    }
    device = {
        "designator": "3aabbccddeeff001",
        "name": "vol1",
        "role": "disk",
        "bytes_read": 3221225472,
        "bytes_written": 0,
        "bytes_padded": 0,
        "bytes_discarded": 0,
        "records_read": 0,
        "records_written": 0,
        "filemarks_written": 0,
        "rereads": 0,
    }
    tape = device | {
        "designator": "3aabbccddeeff002",
        "name": "drive-0",
        "role": "tape",
        "bytes_read": 0,
        "bytes_written": 3221225472,
        "records_written": 3072,
        "filemarks_written": 1,
    }
    backup = {
        "backup": 3,
        "name": "vol1/2026-01-11T10:43:48Z",
        "volume": "vol1",
        "volume_id": "0123456789abcdef0123456789abcdef",
        "job": 7,
        "created": "2026-01-11T10:43:48Z",
        "size_bytes": 4294967296,
        "blocks": 8388608,
        "block_bytes": 512,
        "stream_bytes": 3221225472,
        "parts": 1,
        "tags": ["LTO001L8"],
        "state": "completed",
        "consistency": "crash",
        "view_means": "hold",
        "pool": "weekly",
        "level": "full",
        "parent": 0,
        "chain": [3],
        "needs": ["LTO001L8"],
        "broken": "",
        "tracking": "",
        "generation": 0,
    }
    part = {
        "part": 1,
        "backup": 3,
        "volume": "vol1",
        "tag": "LTO001L8",
        "sequence": 1,
        "header_object": 3,
        "data_object": 4,
        "trailer_object": 3077,
        "records": 3072,
        "record_bytes": 1048576,
        "stream_bytes": 3221225472,
        "root": "ab",
    }
    cartridge = {
        "tag": "LTO001L8",
        "cartridge": "fedcba9876543210fedcba9876543210",
        "node": "tape",
        "status": "writable",
        "detail": "",
        "location": "drive-0",
        "vault": "",
        "pool": "weekly",
        "hold": "",
        "retain_until": "2026-02-10T10:43:48Z",
        "first_written": "2026-01-11T10:43:48Z",
        "last_written": "2026-01-11T10:43:48Z",
        "record_bytes": 6442450944,
        "loads": 2,
        "alerts": ["media"],
        "read_errors": 1,
        "write_errors": 0,
        "is_worm": False,
        "is_out_of_space": False,
        "is_used_known": True,
        "is_write_protected": False,
        "capacity_bytes": 12 * 10**12,
        "used_bytes": 3221225472,
        "end": 3079,
        "parts": 1,
        "generation": 1,
    }
    volume = {
        "name": "vol1",
        "volume": "0123456789abcdef0123456789abcdef",
        "designator": "3aabbccddeeff001",
        "node": "disk",
        "node_state": "online",
        "state": "online",
        "size_bytes": 4294967296,
        "blocks": 8388608,
        "block_bytes": 512,
        "used_bytes": 3221225472,
        "held_by": 0,
        "is_empty": False,
        "path": "/srv/vol1.img",
        "created": "2026-01-11T10:40:00Z",
    }
    return {
        "job": job,
        "detail": job
        | {
            "items": [item],
            "items_total": 1,
            "next_item": 0,
            "ledger": {
                "controller_payload_bytes": 0,
                "planned_bytes": 3221225472,
                "read_bytes": 3221225472,
                "written_bytes": 3221225472,
                "padded_bytes": 0,
                "discarded_bytes": 0,
                "residual_bytes": 0,
                "is_balanced": True,
                "devices": [device, tape],
            },
            "movers": ["mover-1"],
            "result": {"backup": 3},
        },
        "item": item,
        "backup": backup,
        "backup_detail": backup | {"parts_detail": [part], "extents_count": 12, "zero_bytes": 0},
        "part": part,
        "cartridge": cartridge,
        "drive": {
            "drive": "drive-0",
            "node": "tape",
            "name": "tape/drive-0",
            "designator": "3aabbccddeeff002",
            "state": "Transferring",
            "reason": "",
            "is_down": False,
            "since": "",
            "tag": "LTO001L8",
            "job": 7,
            "medium": "loaded",
            "product": "LTO-9",
            "serial": "1234",
            "alerts": [],
            "loads": 3,
            "needs_cleaning": False,
            "read_errors": 0,
            "write_errors": 0,
            "usage": None,
        },
        "pool": {
            "name": "weekly",
            "retain": "30d",
            "retain_s": 2592000,
            "allocation": "every:7d",
            "scratch": True,
            "created": "2026-01-11T10:40:00Z",
            "cartridges": 1,
            "tags": ["LTO001L8"],
            "backups": 2,
        },
        "volume": volume,
        "view": {
            "view": "ab" * 16,
            "volume": "vol1",
            "node": "disk",
            "job": 0,
            "means": "snapshot",
            "state": "active",
            "reason": "",
            "used_bytes": 1048576,
            "created": "2026-01-11T10:50:00Z",
            "consistency": "crash",
            "nbd": [f"nbd://10.0.0.5:10809/vol1%40{'ab' * 16}"],
        },
        "node": {
            "name": "disk",
            "roles": ["disk"],
            "state": "online",
            "since": "2026-01-11T10:00:00Z",
            "addresses": ["tcp://127.0.0.1:4711"],
            "volumes": 1,
            "cartridges": 0,
            "drives": 0,
        },
        "mover": {
            "name": "mover-1",
            "state": "busy",
            "since": "2026-01-11T10:00:00Z",
            "item": 11,
            "job": 7,
            "bytes_read": 1048576,
            "bytes_written": 0,
        },
        "status": {
            "version": "0.1.0",
            "store": "0" * 32,
            "started": "2026-01-11T10:00:00Z",
            "payload_bytes": 0,
            "jobs_active": 1,
            "epoch": 5,
        },
    }
