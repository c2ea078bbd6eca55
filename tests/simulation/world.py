"""One seed: a site, its users, its faults and its checkers, from the first boot to the last late packet.

    set up ---- chaos (20 to 60 s) ---- heal ---- every job ends (liveness) ---- late packets land ---- checks

Which faults there are, and how many, is drawn first (swarm: each probability is zero, low or high), so that a seed
is about some faults and not about a grey mixture of all.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final
from unittest import mock

from backplane.testing.simulated_network import Chaos, Network, NetworkFaults, Rates, Switchboard
from backplane.testing.simulator import Process, Simulation
from controller.catalog.store import BackupRow, CartridgeRow, ItemRow, JobRow, PartRow
from storage_node.tape.cartridge_info import CartridgeInfo, new_cartridge_info
from tests.simulation.checkers import Checker, Violation, Window, all_checkers
from tests.simulation.checkers.clocks import LEAP_S
from tests.simulation.controller_process import CatalogFaults, ControllerHost
from tests.simulation.facts import ClockSet, Committed, Fact, Told, WormMade
from tests.simulation.librarian import CLEANER, COPIES, Habits, Librarian
from tests.simulation.media import MediaFaults, Shelf
from tests.simulation.mover_process import MoverHost
from tests.simulation.storage_process import Rules, StorageHost
from tests.simulation.workload import BLOCK_BYTES, OperatorHost, Workstation

LEASE_S: Final = 5.0
HEARTBEAT_S: Final = 2.0
SET_UP_S: Final = 30.0
LIVENESS_S: Final = 400.0
"""Every job has to end within this time after the faults have."""

JUMPS_S: Final = (0.0, 0.0, 20.0, -20.0, 3600.0, -3600.0, 3e7, -3e7)
"""What the time of day is wrong by after a jump; twenty seconds are longer than a retention here, and 3e7 a year."""

SETTLE_S: Final = 20.0
POLL_S: Final = 3.0
RECORD_BYTES: Final = (1024, 2048, 4096)
LEVELS: Final = ("incremental", "incremental", "differential", "auto")
NEVER: Final = 1e9


@dataclass(frozen=True, slots=True)
class Bias:
    """What a run should be about; the default leaves it to the seed."""

    late: tuple[float, ...] = (0.0, 0.02, 0.1)
    late_leases: tuple[float, float] = (1.0, 8.0)
    late_restart: tuple[float, ...] = (0.0, 0.5)
    double: tuple[float, ...] = (0.0, 0.01, 0.1)
    damage: tuple[float, ...] = (0.0, 0.005, 0.03)
    drop: tuple[float, ...] = (0.0, 0.01, 0.1)
    latency_s: tuple[float, ...] = (0.001, 0.01, 0.1)
    crash: tuple[float, ...] = (0.0, 0.01, 0.05)
    pause: tuple[float, ...] = (0.0, 0.02, 0.08)
    cut: tuple[float, ...] = (0.0, 0.05)
    commit: tuple[float, ...] = (0.0, 0.002, 0.02)
    """A commit is the controller's last, before or after it took effect."""
    point: tuple[float, ...] = (0.0, 0.003, 0.02)
    """A node dies between two durable steps."""
    jump: tuple[float, ...] = (0.0, 0.0, 0.05)
    """The time of day of a host jumps, per second, and is wrong by one of `jumps_s` then."""
    jumps_s: tuple[float, ...] = JUMPS_S
    jumpers: tuple[float, ...] = (0.0, 1.0)
    """Whether a host is one of those whose clock jumps."""
    read_error: tuple[float, ...] = (0.0, 0.0, 0.005)
    flush_error: tuple[float, ...] = (0.0, 0.0, 0.02)
    data_s: tuple[float, ...] = (0.002, 0.02, 0.2)
    """What a data request takes at a node."""
    first_backup: float = 0.7
    """A backup is made in peace, before anything goes wrong: there is something to restore."""
    restores: float = 0.6
    """Share of restores among the jobs, as soon as there is a backup."""
    chains: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Share of backups that are to stand on another one, if they can."""
    lanes: tuple[float, ...] = (0.0, 0.2, 0.8)
    """Share of backups that are written on several drives at once."""
    reads: tuple[float, ...] = (0.0, 0.2, 0.8)
    """Share of restores for which an operator says from how many drives; the others are left to the controller."""
    copies: tuple[float, ...] = (0.0, 0.1, 0.3)
    """Share of second copies among the jobs."""
    prunes: tuple[float, ...] = (0.0, 0.02, 0.2)
    hands: tuple[float, ...] = (0.0, 0.02, 0.2)
    """See `Habits`."""
    labels: tuple[float, ...] = (0.0, 0.0, 0.1)
    """Labels that the librarian has written, per second."""
    retains: tuple[str, ...] = ("0", "0", "15s")
    worm: tuple[float, ...] = (0.0, 0.0, 0.3)
    """Share of cartridges that can be written only once."""
    cleaning: float = 0.5
    """There is a cleaning cartridge in the library."""
    scarce: float = 0.4
    """There are few cartridges: what nobody wants any more is used again."""


NONE: Final = (0.0,)
QUIET: Final = Bias(
    late=NONE,
    double=NONE,
    damage=NONE,
    drop=NONE,
    crash=NONE,
    pause=NONE,
    cut=NONE,
    commit=NONE,
    point=NONE,
    jump=NONE,
    read_error=NONE,
    flush_error=NONE,
)
"""No faults at all."""


@dataclass(slots=True)
class Verdict:
    """How a seed went."""

    seed: int
    trace_hash: str
    probes: dict[str, int]
    events: int
    simulated_s: float
    violation: Violation | None = None
    story: list[str] = field(default_factory=list)
    """The end of the trace, if something is wrong."""


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, *, rules: Rules | None = None, bias: Bias | None = None) -> None:
        self.simulation = Simulation(seed)
        self._rules = rules or Rules()
        self._bias = bias or Bias()
        self._random = self.simulation.random
        self.network = Network(self.simulation, NetworkFaults())
        self.switchboard = Switchboard(self.network)
        self._media = MediaFaults()
        self._catalog_faults = CatalogFaults()
        self.processes: list[Process] = []
        self.hosts: dict[str, StorageHost] = {}
        self.jobs_told: dict[int, str] = {}
        self.ended: set[int] = set()
        self._volumes: list[dict[str, Any]] = []
        self._restored: list[str] = []
        self._levels: dict[int, str] = {}
        self._jumps: dict[str, float] = {}
        self._submits = 0
        self._chains = self._random.choice(self._bias.chains)
        self._lanes = self._random.choice(self._bias.lanes)
        self._reads = self._random.choice(self._bias.reads)
        self._copies = self._random.choice(self._bias.copies)
        self._worm = self._random.choice(self._bias.worm)
        self._is_scarce = self._random.random() < self._bias.scarce
        self._build()
        self.checkers: list[Checker] = all_checkers(Window(self._durable, self._content))

    # --- building --------------------------------------------------------------------------------

    def _process(self, name: str, host: Any, *, on_crash: Any = None) -> Process:
        process = Process(
            self.simulation,
            name,
            boot=host.boot,
            on_crash=on_crash or (lambda: None),
            offset_s=self._random.uniform(0.0, 1e6),
            rate=self._random.uniform(0.99, 1.01),
        )
        self.processes.append(process)
        return process

    def _build(self) -> None:
        random = self._random
        self.controller = ControllerHost(
            network=self.network,
            switchboard=self.switchboard,
            faults=self._catalog_faults,
            emit=self.emit,
            lease_s=LEASE_S,
            heartbeat_s=HEARTBEAT_S,
            record_bytes=random.choice(RECORD_BYTES),
        )
        self.controller.process = self._process("controller", self.controller)
        roles: dict[str, tuple[str, ...]] = {"node-d": ("disk",), "node-t": ("tape",)}
        if random.random() < 0.2:
            roles = {"node-a": ("disk", "tape")}
        for name, has in roles.items():
            host = StorageHost(
                name=name,
                network=self.network,
                switchboard=self.switchboard,
                faults=self._media,
                emit=self.emit,
                roles=has,
                rules=self._rules,
                data_s=random.choice(self._bias.data_s),
            )
            host.attach(self._process(name, host, on_crash=host.crash))
            self.hosts[name] = host
            if "disk" in has:
                self.disk = host
            if "tape" in has:
                self.tape = host
                self._fill_library(host)
        for number in range(random.choice((1, 2, 3))):
            self._add_mover(f"m{number + 1}")
        self.operator = OperatorHost(self.simulation, self.switchboard, self.emit)
        self.librarian = Librarian(
            self.simulation,
            OperatorHost(self.simulation, self.switchboard, self.emit, name="operator-2"),
            self._habits(),
            drives=sorted(self.tape.drives),
            tags=sorted(self.tape.shelves),
        )
        self.workstation = Workstation(self.disk, random.choice((0.02, 0.1, 0.3)))

    def _add_mover(self, name: str) -> None:
        host = MoverHost(self.network, self.switchboard, self.hosts)
        host.process = self._process(name, host, on_crash=host.crash)

    def _habits(self) -> Habits:
        random, bias = self._random, self._bias
        habits = Habits(
            prunes=random.choice(bias.prunes),
            worm=self._worm,
            hands=random.choice(bias.hands),
            # Nothing is drawn where nothing is left open: the same seeds as before there were labels.
            labels=random.choice(bias.labels) if any(bias.labels) else 0.0,
        )
        if not self._is_scarce:
            return habits
        return replace(
            habits,
            prunes=max(habits.prunes, *bias.prunes),
            news=random.choice((0.0, 0.1)),
            allocation=random.choice(("continue", "always")),
            retain=random.choice(bias.retains),
        )

    def _fill_library(self, host: StorageHost) -> None:
        random = self._random
        drives = random.choice((1, 2, 2, 3))
        host.drives = {f"drive-{n}": random.randbytes(16).hex() for n in range(drives)}
        for number in range(random.choice((2, 3)) if self._is_scarce else 6):
            # The first ones may end early; there is always room in the last ones.
            is_small = number < 2 and random.random() < 0.6
            host.shelves[f"LTO{number:03}L8"] = Shelf(
                host.site,
                CartridgeInfo(
                    serial=random.randbytes(16).hex(),
                    tag=f"LTO{number:03}L8",
                    created="2026-01-11T00:00:00Z",
                    capacity_bytes=random.randint(10_000, 60_000) if is_small else 1 << 24,
                    early_warning_bytes=random.choice((1_000, 8_000)) if is_small else 1 << 16,
                    programmable_early_warning_bytes=random.choice((0, 1_000)),
                    is_worm=random.random() < self._worm,
                ),
            )
        if random.random() < self._bias.cleaning:
            serial = random.randbytes(16).hex()
            info = new_cartridge_info(
                serial=serial, tag=CLEANER, created="2026-01-11T00:00:00Z", capacity_bytes=1 << 26
            )
            info = replace(info, cleanings_left=random.choice((1, 3)))
            host.shelves[CLEANER] = Shelf(host.site, info)

    # --- facts -----------------------------------------------------------------------------------

    def emit(self, fact: Fact) -> None:
        """Show a fact to all checkers."""
        for checker in self.checkers:
            checker.see(fact, self.simulation.now)
        if isinstance(fact, Told):
            self._learn(fact)
        elif isinstance(fact, Committed):
            self._probe(fact)

    def _learn(self, fact: Told) -> None:
        if fact.verb == "job.submit":
            self.jobs_told[fact.document["job"]] = fact.arguments["kind"]
        if fact.verb == "job.list":
            self.ended |= {j["job"] for j in fact.document["jobs"] if j["exit_code"] is not None}

    def _probe(self, fact: Committed) -> None:
        """Count what jobs, items and parts come to."""
        for row in fact.rows:
            match row:
                case JobRow() if row.exit_code >= 0:
                    self.simulation.probe(f"{row.kind} {row.state}")
                    if row.kind == "restore" and row.state == "completed":
                        level = self._levels.get(row.backup, "full")
                        self.simulation.probe(f"restore of a backup: {level}")
                case ItemRow(state="lost" | "failed" | "revoked"):
                    self.simulation.probe(f"item {row.state}")
                case PartRow(is_last=False):
                    self.simulation.probe("part continued on another cartridge")
                case CartridgeRow(status="full" | "worm" | "error"):
                    self.simulation.probe(f"cartridge {row.status}")
                case BackupRow(state="pruned"):
                    self.simulation.probe("backup pruned")
                case BackupRow(state="completed"):
                    self.simulation.probe(f"backup completed: {row.level}")
                    self._levels[row.backup] = row.level
                case _:
                    pass

    def _durable(self, tag: str) -> bytes:
        return bytes(self.tape.shelves[tag].data.durable)

    def _content(self, volume: str) -> bytes:
        return self.disk.volumes.devices[volume].durable_content()  # type: ignore[index]

    # --- the course ------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Live through the seed."""
        violation = None
        try:
            self._set_up()
            self._chaos()
            self._heal()
            for checker in self.checkers:
                checker.finish()
        except Violation as found:
            violation = found
        except AssertionError as error:
            violation = Violation("assertion", f"{type(error).__name__}: {error}")
            violation.__cause__ = error
        return Verdict(
            seed=self.simulation.seed,
            trace_hash=self.simulation.trace_hash,
            probes=dict(sorted(self.simulation.probes.items())),
            events=self.simulation.events,
            simulated_s=self.simulation.now,
            violation=violation,
            story=list(self.simulation.story) if violation is not None else [],
        )

    def _set_up(self) -> None:
        operators = [self.operator.process, self.librarian.operator.process]
        for tag, shelf in self.tape.shelves.items():
            if shelf.info.is_worm:
                self.emit(WormMade(tag))
        for process in [*self.processes, *operators]:
            process.boot()
        made: list[dict[str, Any]] = []
        self.simulation.run(3.0)
        self.librarian.prepare()
        for number in range(2):
            blocks = self._random.randint(16, 64)
            self.operator.call(
                "volume.create",
                lambda document: made.append(document or {}),
                token=f"volume {number}",
                name=f"v{number}",
                size_bytes=blocks * BLOCK_BYTES,
                block_bytes=BLOCK_BYTES,
                node="",
            )
        self.simulation.run(SET_UP_S, stop=lambda: len(made) == 2)
        assert all(made), f"no volumes were made: {self.operator.refusals}"
        self._volumes = made
        for document in made:
            self.workstation.use(
                document["volume"], document["blocks"], fill=self._random.choice((0.3, 0.9))
            )
        self.workstation.start()
        if self._random.random() < self._bias.first_backup:
            self._submit_backup()
            self.simulation.run(self.simulation.now + 10.0)
            if self._random.random() < self._chains:
                self._submit_backup()
                self.simulation.run(self.simulation.now + 8.0)

    def _chaos(self) -> None:
        random, bias, pick = self._random, self._bias, self._random.choice
        self.network.faults = NetworkFaults(
            drop=pick(bias.drop),
            double=pick(bias.double),
            latency_s=pick(bias.latency_s),
            late=pick(bias.late),
            late_s=(LEASE_S * bias.late_leases[0], LEASE_S * bias.late_leases[1]),
            late_restart=pick(bias.late_restart),
            damage=pick(bias.damage),
        )
        media = self._media
        media.disk_read, media.tape_read = pick(bias.read_error), pick(bias.read_error)
        media.disk_flush, media.tape_flush = pick(bias.flush_error), pick(bias.flush_error)
        faults = self._catalog_faults
        faults.before, faults.after = pick(bias.commit), pick(bias.commit)
        faults.commit_s = pick((0.001, 0.01))
        point = pick(bias.point)
        for host in self.hosts.values():
            host.process.crash_at_points = point
        crash, pause = pick(bias.crash), pick(bias.pause)
        names = [process.name for process in self.processes]
        chaos = Chaos(
            self.network,
            self.processes,
            Rates(
                crash={name: crash * pick((0.0, 1.0)) for name in names},
                pause={name: pause * pick((0.0, 1.0)) for name in names},
                pause_s=(0.2 * LEASE_S, 3 * LEASE_S),
                cut=pick(bias.cut),
            ),
        )
        jump = pick(bias.jump)
        self._jumps = {name: jump * pick(bias.jumpers) for name in names}
        self._jump_clocks()
        end = self.simulation.now + random.uniform(20.0, 60.0)
        for _ in range(random.randint(2, 5)):
            self.simulation.after(random.uniform(0.0, end - self.simulation.now), self._submit)
        if random.random() < 0.2:
            self.simulation.after(random.uniform(5.0, 40.0), self._cancel)
        self._submit()
        self._poll()
        self.librarian.start()
        self.simulation.run(end)
        chaos.stop()

    def _jump_clocks(self) -> None:
        for process in self.processes:
            if self.simulation.chance(self._jumps[process.name]):
                self._set_clock(process, self._random.choice(self._bias.jumps_s))
        if any(self._jumps.values()):
            self.simulation.after(1.0, self._jump_clocks)

    def _set_clock(self, process: Process, offset_s: float) -> None:
        if offset_s != process.wall_offset_s:
            ahead = offset_s > process.wall_offset_s
            self.simulation.probe(f"clock jumps {'ahead' if ahead else 'back'}")
            self.simulation.note(f"{process.name}'s clock is wrong by {offset_s:g}")
        process.wall_offset_s = offset_s
        if process is self.controller.process:
            self.emit(ClockSet("controller", offset_s))
        elif process is self.tape.process:
            self.emit(ClockSet("library", offset_s))

    def _heal(self) -> None:
        self.network.heal()
        self._jumps = dict.fromkeys(self._jumps, 0.0)
        if self._random.random() < 0.5:  # Or they stay wrong, and nothing may wait for that.
            for process in self.processes:
                self._set_clock(process, 0.0)
        for name in ("disk_read", "disk_flush", "tape_read", "tape_flush"):
            setattr(self._media, name, 0.0)
        self._catalog_faults.before = self._catalog_faults.after = 0.0
        self.workstation.busy = min(self.workstation.busy, 0.02)
        for process in self.processes:
            process.crash_at_points = 0.0
        self.librarian.tidy_up()
        deadline = self.simulation.now + LIVENESS_S
        self.simulation.run(deadline, stop=self._all_have_ended)
        late = [f"job {job} ({self.jobs_told[job]})" for job in self._running()]
        if late or self._submits:
            raise Violation("I12", f"not ended {LIVENESS_S:.0f} s after the last fault: {late}")
        last = max(self.network.last_arrival, self.simulation.now) + SETTLE_S
        self.simulation.run(last)
        self.workstation.is_on = False
        self.simulation.run(last + 2.0)
        self._judge_claims()

    def _judge_claims(self) -> None:
        """Whoever has ended has no drive any more, and nobody handles one."""
        registry = self.controller.service._machine.registry
        for what in ("drive_claims", "drive_seats", "drives_by_hand", "volume_claims"):
            left = getattr(registry, what)
            if left:
                raise Violation("I14", f"{what} at the end: {left}")

    def _running(self) -> list[int]:
        return sorted(set(self.jobs_told) - self.ended)

    def _all_have_ended(self) -> bool:
        return not self._submits and not self._running()

    # --- the operator's day ----------------------------------------------------------------------

    def _poll(self) -> None:
        self.operator.call("job.list", self.librarian.look, limit=100, state="")
        self.simulation.after(POLL_S, self._poll)

    def _submit(self) -> None:
        if self._random.random() < 0.15:
            self._with_backup(self._submit_verify)
        elif len(self.tape.drives) > 1 and self._random.random() < self._copies:
            self._with_backup(self._submit_copy)
        elif self._random.random() < self._bias.restores:
            self._with_backup(self._submit_restore)
        else:
            self._submit_backup()

    def _with_backup(self, submit: Any) -> None:
        def listed(document: dict[str, Any] | None) -> None:
            found = [] if document is None else document["backups"]
            found = [each for each in found if each["state"] == "completed"]
            members = [each for each in found if each["level"] != "full"]
            if members and self._random.random() < self._chains:
                found = members
            if found:
                submit(self._random.choice(found))
            else:
                self._submit_backup()

        self.operator.call("backup.list", listed, volume="")

    def _job(self, kind: str, **arguments: Any) -> None:
        self._submits += 1

        def answered(_: dict[str, Any] | None) -> None:
            self._submits -= 1

        token = self._random.randbytes(8).hex()
        self.operator.call("job.submit", answered, token=token, kind=kind, **arguments)

    def _submit_backup(self) -> None:
        random = self._random
        level = random.choice(LEVELS) if random.random() < self._chains else "full"
        # Chains grow where the backups are.
        volume = (
            self._volumes[0] if random.random() < self._chains else random.choice(self._volumes)
        )
        self._job(
            "backup",
            volume=volume["name"],
            level=level,
            quiet_s=random.choice((0.0, 1.0, 3.0)),
            sync_timeout_s=random.choice((5.0, 80.0)),
            drives=random.choice((2, 3)) if random.random() < self._lanes else 1,
        )

    def _submit_restore(self, backup: dict[str, Any]) -> None:
        drives = self._random.choice((1, 2, 2, 3)) if self._random.random() < self._reads else 0
        how = {"backup": str(backup["backup"]), "drives": drives}
        if self._restored and self._random.random() < 0.5:
            # Over what an earlier restore has left, or over the workstation's own volume.
            name = self._random.choice([*self._restored, backup["volume"]])
            self._job("restore", **how, to=name, force=True)
            return
        name = f"r{len(self._restored)}"
        self._restored.append(name)
        self._job("restore", **how, new=name)

    def _submit_verify(self, backup: dict[str, Any]) -> None:
        scope = self._random.choice(("backup", "backup", "tag", "pool"))
        if scope == "backup":
            self._job("verify", backup=str(backup["backup"]))
        elif scope == "tag":
            self._job("verify", tag=backup["tags"][0])
        else:
            self._job("verify", pool=backup["pool"])

    def _submit_copy(self, backup: dict[str, Any]) -> None:
        pool = self._random.choice((COPIES, COPIES, "default"))
        self._job("copy", backup=str(backup["backup"]), pool=pool)

    def _cancel(self) -> None:
        def listed(document: dict[str, Any] | None) -> None:
            found = [] if document is None else document["jobs"]
            running = [each["job"] for each in found if each["exit_code"] is None]
            if running:  # Lanes are jobs as well.
                self.operator.call("job.cancel", job=self._random.choice(running))

        self.operator.call("job.list", listed, limit=100, state="")


def run_seed(seed: int, *, rules: Rules | None = None, bias: Bias | None = None) -> Verdict:
    """Run one seed."""
    with ExitStack() as stack:
        # An hour would be longer than any retention here.
        stack.enter_context(mock.patch("storage_node.core.time_line.LEAP_MAX_S", LEAP_S))
        for target, replacement in rules.patches if rules is not None else ():
            stack.enter_context(mock.patch(target, replacement))
        return World(seed, rules=rules, bias=bias).run()
