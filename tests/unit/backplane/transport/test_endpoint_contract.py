"""The endpoint contract over every endpoint."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.runtime.keys import KeyPair, KeyTable, create_key_pair
from backplane.testing.contracts.endpoint import EndpointContract, Network
from backplane.transport.base import Endpoint
from backplane.transport.faulty import Faults, FaultyEndpoint
from backplane.transport.memory import MemoryRouter
from backplane.transport.zeromq import DealerEndpoint, RouterEndpoint


class MemoryNetwork:
    def __init__(self) -> None:
        self.keys = {"anna": b"a" * 32, "bert": b"b" * 32}
        self.table = set(self.keys.values())
        self.router: Endpoint = MemoryRouter(table=self.table.__contains__)
        self.router_key = bytes(32)
        self.made: list[Endpoint] = [self.router]

    def connect(self, key: bytes) -> Endpoint:
        assert isinstance(self.made[0], MemoryRouter)
        dealer = self.made[0].connect(key)
        self.made.append(dealer)
        return dealer

    def dealer(self, name: str) -> Endpoint:
        return self.connect(self.keys[name])

    def stranger(self) -> Endpoint:
        return self.connect(b"s" * 32)

    def key_of(self, name: str) -> bytes:
        return self.keys[name]

    def revoke(self, name: str) -> None:
        self.table.remove(self.keys[name])

    def close(self) -> None:
        for endpoint in self.made:
            endpoint.close()


class FaultlessNetwork(MemoryNetwork):
    """Through the layer of faults, with none switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.router = self.wrap(self.router)

    def wrap(self, endpoint: Endpoint) -> Endpoint:
        return FaultyEndpoint(
            endpoint, faults=Faults(), random=random.Random(1), now=time.monotonic
        )

    def connect(self, key: bytes) -> Endpoint:
        return self.wrap(super().connect(key))


class ZeroMQNetwork:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = create_key_pair(folder, role="controller", name="controller")
        self.keys = {
            name: create_key_pair(folder, role="mover", name=name) for name in ("anna", "bert")
        }
        self.alien = create_key_pair(folder / "elsewhere", role="mover", name="anna")
        table = KeyTable(folder / "authorized")
        self.router = RouterEndpoint(
            "tcp://127.0.0.1:0", keys=self.server, table=table.is_authorized
        )
        self.router_key = self.server.public
        self.made: list[Endpoint] = [self.router]

    def connect(self, keys: KeyPair) -> Endpoint:
        dealer = DealerEndpoint(self.router.address, keys=keys, server_key=self.server.public)
        self.made.append(dealer)
        return dealer

    def dealer(self, name: str) -> Endpoint:
        return self.connect(self.keys[name])

    def stranger(self) -> Endpoint:
        return self.connect(self.alien)

    def key_of(self, name: str) -> bytes:
        return self.keys[name].public

    def revoke(self, name: str) -> None:
        (self.folder / "authorized" / f"{name}.public").unlink()

    def close(self) -> None:
        for endpoint in reversed(self.made):
            endpoint.close()


class TestMemory(EndpointContract):
    @pytest.fixture(autouse=True)
    def _network(self) -> Iterator[None]:
        self.network = MemoryNetwork()
        yield
        self.network.close()

    def make_network(self) -> Network:
        return self.network


class TestFaultless(EndpointContract):
    @pytest.fixture(autouse=True)
    def _network(self) -> Iterator[None]:
        self.network = FaultlessNetwork()
        yield
        self.network.close()

    def make_network(self) -> Network:
        return self.network


class TestZeroMQ(EndpointContract):
    @pytest.fixture(autouse=True)
    def _network(self, tmp_path: Path) -> Iterator[None]:
        self.network = ZeroMQNetwork(tmp_path / "keys")
        yield
        self.network.close()

    def make_network(self) -> Network:
        return self.network
