"""A node's rules and data server in this process, and a data client with grants for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from backplane.crc import crc32c
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.runtime.clock import SystemClock
from backplane.scsi.sense import Sense
from backplane.transport.stream import Channel, Reply, open_unit
from backplane.wire import grants
from backplane.wire.frames import Entry, Opcode
from backplane.wire.grants import Grant, Rights
from storage_node.access import Access
from storage_node.core.admission import Admission
from storage_node.data_server import DataServer, LogicalUnit, NodeKeys
from storage_node.floor_store import FloorStore
from storage_node.state_file import StateError

BOOT = bytes(range(16))


@dataclass
class Keys:
    """A raw key pair."""

    secret: bytes
    public: bytes

    @classmethod
    def new(cls) -> Keys:
        key = X25519PrivateKey.generate()
        return cls(key.private_bytes_raw(), key.public_key().public_bytes_raw())


@dataclass
class Bench:
    """The rules of a node without its control plane."""

    folder: Path
    access: Access
    store: FloorStore
    server: DataServer
    controller: Keys
    node: Keys
    mover: Keys
    fatal: list[StateError]
    units: dict[Designator, LogicalUnit] = field(default_factory=dict)
    address: str = ""

    def grant(self, unit: Designator, rights: Rights, **changes: Any) -> Grant:
        """Make a grant that is good unless changed."""
        given = Grant(
            node=NodeName("node-1"),
            designator=unit,
            rights=rights,
            extents=() if rights & Rights.APPEND else ((0, 64),),
            position=0,
            job=JobId(1),
            item=ItemId(2),
            epoch=Epoch(5),
            holder=self.mover.public,
            ttl_s=60.0,
            bytes_max=1 << 30,
        )
        return replace(given, **changes)

    def open(self, grant: Grant) -> Channel:
        """Open a unit over the socket."""
        if not self.address:
            (self.address,) = self.server.start([f"unix://{self.folder}/s"])
        body = grants.encode_grant(grant)
        key = grants.grant_key(grants.agree(self.controller.secret, self.node.public))
        return open_unit(
            [self.address],
            node_key=self.node.public,
            body=body,
            tag=grants.grant_tag(body, key=key),
            secret_key=self.mover.secret,
            timeout_s=10.0,
        )


@pytest.fixture
def bench(short_folder: Path) -> Iterator[Bench]:
    """Rules, floors and a data server; the test adds units."""
    fatal: list[StateError] = []
    keys = [Keys.new() for _ in range(3)]
    with FloorStore(short_folder / "floors") as store:
        access = Access(
            Admission(node=NodeName("node-1"), boot_id=BOOT, floors=store.floors),
            store,
            monotonic=SystemClock().monotonic,
            on_fatal=fatal.append,
        )
        units: dict[Designator, LogicalUnit] = {}
        server = DataServer(
            keys=NodeKeys(boot_id=BOOT, secret_key=keys[1].secret, controller_key=keys[0].public),
            access=access,
            unit=units.get,
            connections_max=4,
        )
        yield Bench(short_folder, access, store, server, *keys, fatal, units)
        server.close()


@pytest.fixture
def ask() -> Callable[..., tuple[Reply, bytes]]:
    """Send one request and take its answer, with the checksum of its data compared."""

    def send(channel: Channel, opcode: Opcode, **fields: Any) -> tuple[Reply, bytes]:
        entries: list[Entry] = fields.pop("entries", [])
        if opcode is Opcode.READ and "length" not in fields:
            fields["length"] = sum(entry.byte_count for entry in entries)
        channel.request(opcode, entries=entries, **fields)
        reply = channel.reply()
        data = bytes(channel.receive_data(reply.header.data_bytes))
        if data:
            assert reply.header.crc32c == crc32c(data)
        return reply, data

    return send


@pytest.fixture
def triple() -> Callable[[Reply], tuple[int, ...]]:
    """Return key, ASC and ASCQ of a reply that is not good."""

    def of(reply: Reply) -> tuple[int, ...]:
        assert not reply.is_good
        return tuple(Sense.decode(reply.sense).triple)

    return of
