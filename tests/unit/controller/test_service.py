"""The controller process over endpoints in memory: sessions, calls, grants, and commits that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from backplane.errors import BackupError, MediumError
from backplane.ids import BackupId, Designator, Epoch, ItemId, JobId, NodeName
from backplane.runtime.keys import KeyPair
from backplane.runtime.loop import Loop
from backplane.testing.clock import ManualClock
from backplane.transport.memory import MemoryDealer, MemoryRouter
from backplane.wire import grants
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
    TapeLoad,
    ViewCreate,
    ViewWaiting,
    VolumeCreate,
    WorkItem,
    WorkRequest,
)
from backplane.wire.session import Authorized
from controller import service as service_module
from controller.catalog.identity import CatalogIdentity
from controller.catalog.memory import MemoryCatalog
from controller.catalog.store import MapHeaderRow, MapPageRow, TakeStore
from controller.core import effects
from controller.core.inactivity import Inactivity
from controller.service import ControllerService
from tests.site.disk import DiskNode
from tests.site.tape import TapeNode

BLOCK = 512
HEARTBEAT_S = 2.0


def key_pair(role: str, name: str) -> KeyPair:
    private = X25519PrivateKey.generate()
    return KeyPair(private.public_key().public_bytes_raw(), private.private_bytes_raw(), role, name)


class Table:
    """Who may connect."""

    def __init__(self) -> None:
        self.known: dict[bytes, Authorized] = {}

    def add(self, keys: KeyPair) -> None:
        self.known[keys.public] = Authorized(role=keys.role, name=keys.name)

    def lookup(self, key: bytes) -> Authorized | None:
        return self.known.get(key)


class Peer:
    """One peer, played by hand."""

    def __init__(self, world: World, role: str, name: str) -> None:
        self.world = world
        self.keys = key_pair(role, name)
        world.table.add(self.keys)
        self.boot_id = name.encode().ljust(16, b"-")
        self.heard: list[Message] = []
        self.connect()

    def connect(self) -> None:
        self.dealer: MemoryDealer = self.world.router.connect(self.keys.public)
        self.world.dealers.append(self.dealer)

    def say(self, message: Message) -> None:
        assert self.dealer.send(message)
        self.world.turn()

    def hello(self) -> None:
        self.say(
            SessionHello(
                role=self.keys.role,
                name=self.keys.name,  # type: ignore[arg-type]
                versions=(1,),
                boot_id=self.boot_id,
                program="test",
            )
        )

    def listen(self) -> None:
        while (received := self.dealer.receive()) is not None:
            assert isinstance(received.message, Message)
            self.heard.append(received.message)

    def last(self, kind: type) -> Any:
        found = [message for message in self.heard if isinstance(message, kind)]
        assert found, f"no {kind.__name__} in {self.heard}"
        return found[-1]

    def call(self, verb: str, *, request: int = 1, **arguments: object) -> Any:
        self.say(OperatorCall(request=request, verb=verb, arguments=json.dumps(arguments).encode()))
        answer = self.heard[-1]
        if isinstance(answer, OperatorReply):
            return json.loads(answer.document)
        return answer


class World:
    """A controller and its peers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.loop = Loop(clock=self.clock)
        self.table = Table()
        self.router = MemoryRouter(table=lambda key: self.table.lookup(key) is not None)
        self.catalog = MemoryCatalog()
        self.keys = key_pair("controller", "controller")
        self.dealers: list[MemoryDealer] = []
        self.peers: list[Peer] = []
        self.disk, self.tape = DiskNode(), TapeNode.with_drives(1, tags=("LTO001L8",))
        self.inactivity = Inactivity()
        self.start()

    def start(self) -> None:
        self.service = ControllerService(
            loop=self.loop,
            endpoint=self.router,  # type: ignore[arg-type]
            keys=self.keys,
            table=self.table,  # type: ignore[arg-type]
            catalog=self.catalog,
            version="1.2.3",
            lease_s=15.0,
            heartbeat_s=HEARTBEAT_S,
            inactivity=self.inactivity,
        )
        self.service.start()

    def restart(self) -> None:
        self.loop.close()
        self.loop = Loop(clock=self.clock)
        self.catalog = self.catalog.reopen()
        self.start()

    def peer(self, role: str, name: str) -> Peer:
        made = Peer(self, role, name)
        self.peers.append(made)
        made.hello()
        return made

    def turn(self) -> None:
        """Let the controller do everything that it has to do."""
        while self.loop.run_once():
            pass
        for peer in self.peers:
            peer.listen()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    def node(self, fake: DiskNode | TapeNode) -> Peer:
        """Connect a node that answers by itself from here on."""
        made = self.peer("storage", fake.name)
        inventory = fake.inventory()
        made.say(with_key(inventory, made.keys.public))
        return made

    def serve(self, peer: Peer, fake: DiskNode | TapeNode) -> None:
        """Let a node answer everything that it was asked."""
        asked = [m for m in peer.heard if hasattr(m, "request")]
        peer.heard = []
        for message in asked:
            try:
                answer = fake.answer(message)
            except BackupError as error:
                answer = NodeFailed(
                    request=message.request,
                    error=error.kind,
                    reason=error.message,
                    hint=error.hint,
                )
            peer.say(answer)

    def close(self) -> None:
        for dealer in self.dealers:
            dealer.close()
        self.router.close()
        self.loop.close()


def with_key(inventory: NodeInventory, key: bytes) -> NodeInventory:
    return replace(inventory, public_key=key)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def operator(world: World) -> Peer:
    return world.peer("operator", "admin")


# --- sessions -------------------------------------------------------------------------------------


def test_a_peer_is_welcomed_with_the_catalogs_name_and_the_heartbeat(world: World) -> None:
    peer = world.peer("mover", "m1")
    welcome = peer.last(SessionWelcome)
    assert (welcome.store, welcome.heartbeat_s) == (world.catalog.store, HEARTBEAT_S)


def test_a_catalog_that_takes_over_another_name_is_remembered_before_and_after(
    world: World, operator: Peer, tmp_path: Path
) -> None:
    """A crash between the two leaves a file that names both."""
    lost = MemoryCatalog(store="d" * 32)
    seen: list[tuple[str, ...]] = []

    class Watched(CatalogIdentity):
        def remember(self, *stores: str) -> None:
            super().remember(*stores)
            seen.append((world.catalog.store, *self.stores()))

    own = world.catalog.store
    world.service._identity = Watched(tmp_path / "catalog.sqlite")
    world.service._perform([effects.Record(rows=(TakeStore(store=lost.store),))])
    assert seen == [(own, lost.store, own), (lost.store, lost.store)]
    assert world.peer("mover", "m1").last(SessionWelcome).store == lost.store
    operator.call("catalog.show", request=7)
    assert operator.last(OperatorReply).request == 7


def test_a_peer_that_the_controller_does_not_know_any_more_says_hello_again(world: World) -> None:
    peer = world.peer("mover", "m1")
    world.advance(10 * HEARTBEAT_S)
    peer.say(SessionPing(sequence=1))
    assert type(peer.heard[-1]) is SessionUnknown
    peer.hello()
    peer.say(SessionPing(sequence=2))
    assert peer.heard[-1] == SessionPong(sequence=2)


def test_a_mover_that_is_silent_for_too_long_is_away(world: World, operator: Peer) -> None:
    world.peer("mover", "m1")
    assert operator.call("mover.list")["movers"][0]["state"] == "idle"
    for request in range(2, 8):
        world.advance(HEARTBEAT_S)
        told = operator.call("mover.list", request=request)["movers"][0]["state"]
    assert told == "away"


def test_a_node_whose_inventory_names_another_key_is_not_believed(
    world: World, operator: Peer
) -> None:
    """Grants are made for that key: a stranger's would make them worthless, a bad one would stop us."""
    node = world.peer("storage", "disk")
    for key in (bytes(32), operator.keys.public, b"short"):
        node.say(with_key(world.disk.inventory(), key))
    assert operator.call("node.list")["nodes"] == []
    node.say(with_key(world.disk.inventory(), node.keys.public))
    assert operator.call("node.list", request=2)["nodes"][0]["state"] == "online"


def test_a_mover_and_a_node_may_have_the_same_name(world: World, operator: Peer) -> None:
    node = world.node(world.disk)
    mover = world.peer("mover", "disk")
    mover.say(WorkRequest(credit=1))
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    assert isinstance(node.heard[-1], VolumeCreate)
    assert not [m for m in mover.heard if isinstance(m, VolumeCreate)]


# --- calls ----------------------------------------------------------------------------------------


def test_reading_verbs_are_answered_at_once(operator: Peer, world: World) -> None:
    status = operator.call("controller.status")
    assert status["version"] == "1.2.3"
    assert (status["payload_bytes"], status["store"]) == (0, world.catalog.store)


def test_a_call_that_is_refused_is_told_why_with_the_exit_code(operator: Peer) -> None:
    failed = operator.call("volume.show", name="nix")
    assert isinstance(failed, OperatorFailed)
    assert (failed.error, failed.exit_code) == ("not-found", 4)
    assert failed.hint
    failed = operator.call("no.verb", request=2)
    assert (failed.error, failed.exit_code) == ("usage", 2)


def test_a_call_that_is_sent_again_gets_the_kept_answer_and_is_done_once(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    (first,) = [m for m in operator.heard if isinstance(m, OperatorReply)]
    again = operator.call("volume.create", token="U", name="other", size_bytes=4096)
    assert again == json.loads(first.document), "the number says which call it is"
    assert len(world.disk.volumes) == 1


def test_a_call_that_is_sent_again_while_it_is_carried_out_is_carried_out_once(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    for _ in range(3):
        operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    assert len([m for m in node.heard if isinstance(m, VolumeCreate)]) == 1
    world.serve(node, world.disk)
    assert len([m for m in operator.heard if isinstance(m, OperatorReply)]) == 1


def test_an_answer_follows_an_operator_who_has_reconnected(world: World, operator: Peer) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    operator.dealer.close()
    operator.connect()
    operator.hello()
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    assert operator.last(OperatorReply).request == 1


def test_nobody_is_given_the_answers_of_another(world: World, operator: Peer) -> None:
    """A boot id and a request number can be guessed; the key cannot."""
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    other = world.peer("operator", "other")
    other.boot_id = operator.boot_id
    other.hello()
    told = other.call("volume.list")
    assert "volumes" in told


def test_only_so_many_answers_are_kept(
    world: World, operator: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "ANSWERS_KEPT_MAX", 2)
    for request in range(1, 6):
        operator.call("volume.export_end", request=request, view="x")
    assert len(world.service._answered) == 2


def test_an_answer_too_large_for_a_message_is_refused_and_not_the_end(
    operator: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "DOCUMENT_BYTES_MAX", 20)
    failed = operator.call("controller.status")
    assert "larger than a message can be" in failed.reason
    monkeypatch.undo()
    assert operator.call("controller.status", request=2)["jobs_active"] == 0


def test_a_submit_that_is_repeated_after_the_job_has_ended_finds_it(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    submit: dict[str, Any] = {"token": "J", "kind": "backup", "volume": "vol"}
    assert operator.call("job.submit", request=2, **submit) == {"job": 1}
    world.disk.never_quiet.update(world.disk.volumes)
    world.serve(node, world.disk)
    world.serve(node, world.disk)
    assert operator.call("job.show", request=3, job=1)["state"] == "failed"
    assert operator.call("job.submit", request=4, **submit) == {"job": 1}
    assert operator.call("job.cancel", request=5, job=1) == {"job": 1, "state": "failed"}
    assert operator.call("job.show", request=6, job=1)["exit_code"] == 6


def test_a_group_that_is_submitted_again_after_its_end_is_the_same_group(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    for number, name in enumerate("ab"):
        operator.call("volume.create", request=number, token=name, name=name, size_bytes=4096)
        world.serve(node, world.disk)
    submit: dict[str, Any] = {"token": "J", "kind": "backup", "group": ["a", "b"]}
    assert operator.call("job.submit", request=2, **submit) == {"job": 1, "jobs": [1, 2]}
    world.disk.never_quiet.update(world.disk.volumes)
    for _ in range(4):
        world.serve(node, world.disk)
    assert operator.call("job.show", request=3, job=2)["exit_code"] == 6
    assert operator.call("job.submit", request=4, **submit) == {"job": 1, "jobs": [1, 2]}


def test_what_the_controller_is_configured_with_holds_for_volumes_without_settings(
    world: World,
) -> None:
    world.inactivity = Inactivity(quiet_s=7.0, sync_timeout_s=70.0)
    world.restart()
    operator, node = world.peer("operator", "ops"), world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    asked = node.heard[-1]
    assert isinstance(asked, ViewCreate)
    assert (asked.quiet_s, asked.timeout_s) == (7.0, 70.0)


def test_what_a_node_tells_of_a_wait_reaches_people_and_not_the_catalog(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    asked = node.heard[-1]
    assert isinstance(asked, ViewCreate)
    node.say(ViewWaiting(view=asked.view, waited_s=5.0, idle_s=1.5, last_writer="10.0.0.7"))
    told = operator.call("job.show", request=3, job=1)
    assert "5 s are over; quiet for 1.5 s, last written by 10.0.0.7" in told["reason"]
    assert told["wait"]["last_writer"] == "10.0.0.7"
    [line] = operator.call("job.list", request=4)["jobs"]
    assert line["reason"] == told["reason"]
    [row] = world.catalog.jobs(limit=1)
    assert row.reason == "waiting: 3 s without writes within 80 s"


# --- grants ---------------------------------------------------------------------------------------


def check_grant(world: World, node: Peer, body: bytes, tag: bytes, holder: Peer) -> grants.Grant:
    """What the node would do: its own key, and the controller's public one."""
    key = grants.grant_key(grants.agree(node.keys.secret, world.keys.public))
    assert grants.grant_tag(body, key=key) == tag
    grant = grants.decode_grant(body)
    assert (grant.node, grant.holder) == (node.keys.name, holder.keys.public)
    return grant


def test_a_grant_for_import_is_for_the_key_that_asks_and_verifies_at_its_node(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    operator.call(
        "volume.import_begin",
        token="T",
        name="new",
        size_bytes=4096,
        holder=operator.keys.public.hex(),
    )
    world.serve(node, world.disk)
    channel = json.loads(operator.last(OperatorReply).document)["channel"]
    body, tag = bytes.fromhex(channel["grant"]), bytes.fromhex(channel["tag"])
    grant = check_grant(world, node, body, tag, operator)
    assert grant.rights == Rights.READ | Rights.WRITE
    assert (grant.extents, grant.designator.hex()) == (((0, 8),), channel["designator"])
    assert channel["node_key"] == node.keys.public.hex()
    assert channel["addresses"] == ["tcp://127.0.0.1:1"]


@pytest.mark.parametrize("holder", ["", "00" * 32])
def test_a_grant_is_made_for_no_other_key(world: World, operator: Peer, holder: str) -> None:
    world.node(world.disk)
    failed = operator.call(
        "volume.import_begin", token="T", name="new", size_bytes=4096, holder=holder
    )
    assert (failed.error, failed.exit_code) == ("denied", 5)
    assert operator.call("volume.list", request=2) == {"volumes": []}


def test_a_work_item_brings_a_grant_for_every_unit_and_its_mover_only(
    world: World, operator: Peer
) -> None:
    disk, tape = world.node(world.disk), world.node(world.tape)
    mover = world.peer("mover", "m1")
    mover.say(WorkRequest(credit=1))
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(disk, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    for _ in range(8):
        world.serve(disk, world.disk)
        world.serve(tape, world.tape)
    work = mover.last(WorkItem)
    (unit,) = work.units
    grant = check_grant(world, tape, unit.grant, unit.tag, mover)
    assert (grant.rights, grant.position, grant.epoch) == (Rights.APPEND, 0, work.epoch)
    assert (grant.job, grant.item) == (1, work.item)
    assert grant.bytes_max < 2**30


@pytest.mark.parametrize("lane", [0, 3])
def test_the_lane_of_a_use_is_in_its_grant(world: World, lane: int) -> None:
    node, mover = world.node(world.disk), world.peer("mover", "m1")
    use = effects.UnitUse(
        designator=Designator(b"\x30disk..."),
        node=NodeName(node.keys.name),
        rights=Rights.WRITE,
        extents=((0, 1),),
        position=0,
        bytes_max=1,
        lane=lane,
    )
    unit = world.service._resolve(
        use, holder=mover.keys.public, job=JobId(1), item=ItemId(2), epoch=Epoch(3)
    )
    assert check_grant(world, node, unit.grant, unit.tag, mover).lane == lane


# --- revoked keys ---------------------------------------------------------------------------------


def test_an_operator_whose_key_is_revoked_gets_no_more_answers(
    world: World, operator: Peer
) -> None:
    del world.table.known[operator.keys.public]
    operator.say(SessionPing(sequence=1))
    assert isinstance(operator.heard[-1], SessionRefused)
    operator.say(OperatorCall(request=1, verb="volume.list", arguments=b"{}"))
    assert not [m for m in operator.heard if isinstance(m, OperatorReply)]


def test_a_key_that_is_revoked_while_its_call_waits_gets_no_grant(
    world: World, operator: Peer
) -> None:
    node = world.node(world.disk)
    holder = operator.keys.public.hex()
    operator.call("volume.import_begin", token="T", name="new", size_bytes=4096, holder=holder)
    del world.table.known[operator.keys.public]
    world.serve(node, world.disk)
    assert operator.last(OperatorFailed).error == "denied"
    assert not [m for m in operator.heard if isinstance(m, OperatorReply)]


def test_a_mover_whose_key_is_revoked_gets_no_work(world: World, operator: Peer) -> None:
    disk, tape = world.node(world.disk), world.node(world.tape)
    mover = world.peer("mover", "m1")
    mover.say(WorkRequest(credit=1))
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(disk, world.disk)
    del world.table.known[mover.keys.public]
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    for _ in range(8):
        world.serve(disk, world.disk)
        world.serve(tape, world.tape)
    assert not [m for m in mover.heard if isinstance(m, WorkItem)]
    assert world.service._machine.dispatcher.leases, "its lease ends by itself"


# --- durability -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_commit_that_fails_ends_the_service_and_nothing_is_sent(
    world: World, operator: Peer, is_stored: bool
) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    node.heard.clear()
    world.catalog.fail_next_commit(is_stored=is_stored)
    call = {"token": "J", "kind": "backup", "volume": "vol"}
    message = OperatorCall(request=2, verb="job.submit", arguments=json.dumps(call).encode())
    assert operator.dealer.send(message)
    with pytest.raises(MediumError, match="planned failure"):
        world.turn()
    for peer in world.peers:
        peer.listen()
    assert not [m for m in node.heard if isinstance(m, ViewCreate)]
    assert operator.last(OperatorReply).request == 1


def test_jobs_go_on_after_a_restart_and_operators_find_them(world: World, operator: Peer) -> None:
    node = world.node(world.disk)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(node, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    world.restart()
    operator.say(SessionPing(sequence=1))
    assert isinstance(operator.heard[-1], SessionUnknown)
    operator.hello()
    job = operator.call("job.show", request=3, job=1)
    assert (job["state"], job["reason"]) == ("waiting-quiet", "waiting: storage node disk is away")
    node.hello()
    node.say(with_key(world.disk.inventory(), node.keys.public))
    assert isinstance(node.heard[-1], ViewCreate)


def test_a_lease_ends_by_the_controllers_own_clock(world: World, operator: Peer) -> None:
    disk, tape = world.node(world.disk), world.node(world.tape)
    mover = world.peer("mover", "m1")
    mover.say(WorkRequest(credit=1))
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(disk, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    for _ in range(8):
        world.serve(disk, world.disk)
        world.serve(tape, world.tape)
    assert world.service._machine.dispatcher.leases
    for second in range(16):
        world.advance(1.0)
        for peer in world.peers:
            peer.say(SessionPing(sequence=second))
    assert not world.service._machine.dispatcher.leases
    (item,) = world.catalog.items(JobId(1), first=0, limit=9)  # type: ignore[arg-type]
    assert (item.state, item.detail) == ("lost", "the mover's lease has expired")


def test_extents_are_fetched_from_the_catalog_for_a_job_that_goes_on(
    world: World, operator: Peer
) -> None:
    disk, tape = world.node(world.disk), world.node(world.tape)
    operator.call("volume.create", token="T", name="vol", size_bytes=4096)
    world.serve(disk, world.disk)
    operator.call("job.submit", request=2, token="J", kind="backup", volume="vol")
    for _ in range(6):
        world.serve(disk, world.disk)
    assert operator.call("job.show", request=3, job=1)["state"] == "copying"
    world.restart()
    for peer, fake in ((disk, world.disk), (tape, world.tape)):
        peer.hello()
        peer.say(with_key(fake.inventory(), peer.keys.public))
    assert [m for m in tape.heard if isinstance(m, TapeLoad)], "it has its extents and goes on"


@pytest.mark.parametrize(
    ("page", "packed"), [(None, b"header"), (0, b"page"), (1, None), (None, None)]
)
def test_a_piece_of_a_map_is_fetched_from_the_catalog(
    world: World, monkeypatch: pytest.MonkeyPatch, page: int | None, packed: bytes | None
) -> None:
    row = MapPageRow(
        backup=BackupId(3),
        page=0,
        is_run=False,
        first_path=b"",
        last_path=b"",
        rows=1,
        packed=b"page",
    )
    world.catalog._tables[MapHeaderRow][3] = MapHeaderRow(backup=BackupId(3), packed=b"header")
    world.catalog.commit([row])
    fed: list[effects.Event] = []
    monkeypatch.setattr(world.service, "_feed", fed.append)
    backup = BackupId(3 if packed is not None or page is not None else 4)
    world.service._perform([effects.FetchMap(job=JobId(1), backup=backup, page=page)])
    assert fed == [], "the answer is an event of its own"
    world.turn()
    told = effects.MapFetched(job=JobId(1), backup=backup, page=page, packed=packed)
    assert fed == [told]


def test_the_state_is_logged_on_demand(
    world: World, operator: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    world.node(world.disk)
    with caplog.at_level("INFO", logger="controller.service"):
        world.service.dump()
    told = [record.message for record in caplog.records]
    assert told == ["session", "session"]


def test_an_answer_that_nobody_waits_for_is_dropped(world: World) -> None:
    node = world.node(world.disk)
    node.say(NodeReply(request=12345, boot_id=b"x" * 16))
    assert not world.service._machine.jobs


# --- schedules ------------------------------------------------------------------------------------


def test_a_schedule_is_checked_kept_whole_and_completed_by_a_later_release(
    world: World, operator: Peer
) -> None:
    submitted = json.dumps({"kind": "verify", "pool": "default"})
    made = operator.call("schedule.create", name="scrub", calendar="daily", arguments=submitted)
    kept = json.loads(made["arguments"])
    assert (kept["kind"], kept["level"]) == ("verify", "full")
    failed = operator.call(
        "schedule.create", request=2, name="x", calendar="daily", arguments='{"nix": 1}'
    )
    assert (failed.error, failed.exit_code) == ("usage", 2)
    (row,) = world.catalog.load().schedules
    world.restart()
    assert world.catalog.load().schedules == (row,)
    shown = world.peer("operator", "back").call("schedule.show", name="scrub")
    assert json.loads(shown["arguments"]) == kept
    world.catalog.commit([replace(row, arguments=submitted)])  # As one that knew no levels kept it.
    world.restart()
    shown = world.peer("operator", "again").call("schedule.show", name="scrub")
    assert json.loads(shown["arguments"]) == kept
