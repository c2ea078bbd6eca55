"""Planted faults: the system without one of its guards.  A simulator that does not notice proves nothing.

Each takes one guard away, at every place where it stands: a second guard behind the first would hide the first one's
loss (defence in depth), and what is to be shown is that the guard as such is needed and looked after.  `bias` is what a
run is about, so that the situation that the guard is for comes about in tens of seeds and not in tens of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from backplane.ids import BackupId, Designator, Epoch, JobId, VolumeId, VolumeTag
from backplane.tape_format.retention import FOREVER
from backplane.wire.grants import Grant
from backplane.wire.messages import CartridgeState, TapeErase, VolumePublish, VolumeState
from controller.catalog.store import BackupRow, CartridgeRow
from controller.core.allocation import state_of, why_kept
from controller.core.chain import NoParent, Reading, change_map, choose_parent
from controller.core.extent_runs import ExtentRuns
from controller.core.registry import Registry
from controller.core.restore_lanes import deal_cartridges
from storage_node.access import Access
from storage_node.core.admission import Admission, Request, Session
from storage_node.core.floors import WHOLE_UNIT, Floor
from storage_node.core.retention import EraseFacts
from storage_node.core.volume_state import VolumeBook
from storage_node.disk_control import DiskControl
from storage_node.node_clock import NodeClock
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import CartridgeInfo
from storage_node.tape.drive import Drive, Outcome
from storage_node.tape.library import CartridgeFacts, CartridgeStatus
from storage_node.tape_keeping import permit_erase
from storage_node.tape_media import erase_facts
from tests.simulation.media import SimulatedDrive
from tests.simulation.storage_process import Rules
from tests.simulation.world import Bias

WRITTEN: Final = ("writable", "full")


class NoFenceCheck(Admission):
    """Lets every epoch in."""

    def _epoch_is_current(self, grant: Grant, number: int) -> bool:
        return True


class NoPositionCheck(Admission):
    """Believes that the tape is wherever the sender believes it to be."""

    def _position_matches(self, session: Session, request: Request, position: int) -> bool:
        return True


class BlindDrive(SimulatedDrive):
    """Does not compare positions either."""

    def _ready(self, expected_position: int | None = None) -> Cartridge | Outcome:
        return super()._ready(None)


class RewritingDrive(SimulatedDrive):
    """Takes a cartridge that can be written once for one that can be written again."""

    def allow_overwrite(self, object_number: int | None) -> Outcome:
        """Permit overwriting."""
        with self._as_rewritable():
            return super().allow_overwrite(object_number)

    def _ready_to_write(self, expected_position: int | None) -> Cartridge | Outcome:
        with self._as_rewritable():
            return super()._ready_to_write(expected_position)

    @contextmanager
    def _as_rewritable(self) -> Iterator[None]:
        if self._cartridge is None:
            yield
            return
        info = self._cartridge.info
        self._cartridge.info = replace(info, is_worm=False)
        yield
        self._cartridge.info = info


class NoBootCheck(Admission):
    """Takes requests that were made for another life of the node."""

    def _boot_matches(self, request: Request) -> bool:
        return True


class NoFence(Access):
    """Raises no floor while a volume is published."""

    is_publishing = False

    def fence(self, designator: Designator, epoch: Epoch, lane: int = WHOLE_UNIT) -> None:
        """Raise the floor, or do not."""
        if not self.is_publishing:
            super().fence(designator, epoch, lane)


class PublishesAtOnce(DiskControl):
    """Publishes without a fence, and lets movers write online volumes that nobody has reserved."""

    def check_writer(self, volume: VolumeId, job: JobId) -> None:
        """Let everybody write."""

    def publish(self, message: VolumePublish) -> VolumeState:
        """Set the volume online, whoever may still be writing it."""
        access: Any = self.access
        access.is_publishing = True
        try:
            return super().publish(message)
        finally:
            access.is_publishing = False


class TrustingBook(VolumeBook):
    """Does not ask for a fence either."""

    def _may_publish(self, *, epoch: Epoch, floor: Floor) -> bool:
        return True


def keeps_nothing(
    row: CartridgeRow, _registry: object, *, statuses: tuple[str, ...] = WRITTEN, **_: object
) -> str:
    """Stand for `why_kept`: whatever is on a cartridge, nobody wants it."""
    return "" if row.status in statuses else row.status


def keeps_no_retention(row: CartridgeRow, registry: Registry, **how: Any) -> str:
    """Stand for `why_kept`: every retention is over."""
    return why_kept(row, registry, **how | {"wall": FOREVER})


def asks_no_controller(message: TapeErase, facts: EraseFacts, clock: NodeClock) -> None:
    """Stand for `permit_erase`: what the controller's clock says does not count."""
    permit_erase(replace(message, now=""), facts, clock)


def believes_everything(*_: object) -> datetime:
    """Stand for `TimeLine.ceiling`: no time is too late."""
    return datetime.max.replace(tzinfo=UTC)


def stands_under_nothing(_backups: object) -> dict[BackupId, list[BackupRow]]:
    """Stand for `children_of`: nothing stands on anything."""
    return {}


def nobody_reads(*_: object) -> dict[BackupId, str]:
    """Stand for `users_of`: no job uses any backup."""
    return {}


def trusts_every_history(
    level: str, *, tracking: str, generation: int, backups: dict[BackupId, BackupRow], **how: Any
) -> BackupRow | NoParent:
    """Stand for `choose_parent`: takes what it knows of an old history for the same of the one that there is."""
    same = {
        number: replace(row, tracking=tracking, generation=min(row.generation, generation - 1) or 1)
        for number, row in backups.items()
    }
    return choose_parent(level, tracking=tracking, generation=generation, backups=same, **how)


def compares_nothing(*_: object) -> list[object]:
    """Stand for `untouched`: no sample is taken again."""
    return []


def forgets_what_was_given_back(*runs: ExtentRuns, **how: ExtentRuns) -> ExtentRuns:
    """Stand for `change_map`: what was given back is as it was in the parent."""
    found = change_map(*runs, **how)
    found.zeros = ExtentRuns()
    return found


def sees_no_worm(registry: Registry, row: CartridgeRow) -> CartridgeState | None:
    """Stand for `state_of`: every cartridge can be written again."""
    state = state_of(registry, row)
    return None if state is None else replace(state, is_worm=False)


def reads_no_worm(cartridge: Cartridge, drive: Drive) -> EraseFacts:
    """Stand for `erase_facts`, likewise."""
    return replace(erase_facts(cartridge, drive), is_worm=False)


def is_any_tag(_text: str) -> bool:
    """Stand for `is_cleaning_tag`: a barcode says nothing."""
    return False


def takes_blank(tag: str, info: CartridgeInfo) -> CartridgeFacts:
    """Stand for `_cleaning_facts`: there is a tape in it, and nothing on that."""
    return CartridgeFacts(
        tag=tag,
        status=CartridgeStatus.BLANK,
        serial=info.serial,
        capacity_bytes=info.capacity_bytes,
        load_count=info.load_count,
    )


def ends_at_once(*_: object) -> bool:
    """Stand for `all_ended`: a leader that does not wait for its lanes."""
    return True


def forgets_a_cartridge(readings: Sequence[Reading], drives: int) -> list[list[VolumeTag]]:
    """Stand for `deal_cartridges`: nobody gets what the last lane should have read first."""
    *lanes, last = deal_cartridges(readings, drives) or [[]]
    return [*lanes, last[1:]]


def _erases_all(*_: object, **__: object) -> str:
    return ""


def _lets_anybody(*_: object, **__: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Planted:
    """One missing guard."""

    name: str
    what: str
    rules: Rules
    bias: Bias
    noticed_as: tuple[str, ...]
    """Invariants that may be the first to break."""
    seeds_max: int
    """The simulator has to notice within so many seeds; about five times what it took."""
    seed_first: int = 0
    """From this one on: the one that noticed it first when that was measured last, to save the time of the others."""


LATE: Final = Bias(
    late=(0.1, 0.3),
    late_restart=(0.0,),
    double=(0.0, 0.02),
    drop=(0.0,),
    crash=(0.0,),
    pause=(0.0, 0.02),
    cut=(0.0,),
    commit=(0.0,),
    point=(0.0,),
    read_error=(0.0,),
    flush_error=(0.0,),
    jump=(0.0,),
    first_backup=1.0,
    restores=0.9,
    labels=(0.0,),
)
"""Packets that arrive when the world has moved on, and little else."""

RECYCLING: Final = Bias(
    late=(0.0,),
    damage=(0.0,),
    read_error=(0.0,),
    flush_error=(0.0,),
    first_backup=1.0,
    restores=0.2,
    copies=(0.0, 0.1),
    prunes=(0.3,),
    labels=(0.0,),
    scarce=1.0,
)
"""Cartridges that run out, and are used again."""

LEAPING: Final = replace(RECYCLING, retains=("60s",), jump=(0.05,), jumps_s=(3e7,), jumpers=(1.0,))
"""The same, and each clock leaps once, by a year; what was written before is retained for longer than all faults."""

CHAINS: Final = replace(RECYCLING, scarce=0.0, chains=(0.9,), lanes=(0.0, 0.2), labels=(0.0,))
"""Backups that stand on each other, and are forgotten."""

IN_LANES: Final = replace(LATE, late=(0.0, 0.1), lanes=(0.9,), reads=(0.5,))
"""Restores from several drives at once."""

PLANTED: Final = {
    planted.name: planted
    for planted in (
        Planted(
            name="no-fence-check",
            what="nodes do not compare the epoch of a session with the floor",
            rules=Rules(admission=NoFenceCheck),
            bias=LATE,
            noticed_as=("I3",),
            seeds_max=20,
            seed_first=1,
        ),
        Planted(
            name="no-position-check",
            what="neither the rules nor the drive compare the position of an append with the tape's",
            rules=Rules(admission=NoPositionCheck, drive=BlindDrive),
            bias=replace(LATE, double=(0.05,), damage=(0.02,), restores=0.2),
            noticed_as=("I1", "I2", "I10", "I13"),
            seeds_max=40,
            seed_first=4,
        ),
        Planted(
            name="no-boot-check",
            what="nodes do not compare the boot id of a request with their own",
            rules=Rules(admission=NoBootCheck),
            bias=replace(LATE, late=(0.3,), late_restart=(1.0,), data_s=(0.2,)),
            noticed_as=("I3", "I10"),
            seeds_max=100,
            seed_first=8,
        ),
        Planted(
            name="no-publish-after-fence",
            what="the node sets a restored volume online without raising the floor, and lets anybody write it",
            rules=Rules(access=NoFence, disk_control=PublishesAtOnce, book=TrustingBook),
            bias=LATE,
            noticed_as=("I3", "I10"),
            seeds_max=40,
        ),
        Planted(
            name="no-kept-check",
            what="the controller erases cartridges although backups are on them",
            rules=Rules(
                patches=tuple(
                    (f"controller.core.{module}.why_kept", keeps_nothing)
                    for module in ("allocation", "cartridge_writer")
                )
            ),
            bias=RECYCLING,
            noticed_as=("I1",),
            seeds_max=40,
            seed_first=3,
        ),
        Planted(
            name="no-label-check",
            what="operators may have any cartridge labelled, whatever is on it",
            rules=Rules(
                patches=tuple(
                    (f"controller.core.{module}.why_kept", keeps_nothing)
                    for module in ("labelling", "cartridge_writer")
                )
            ),
            bias=replace(RECYCLING, scarce=0.0, labels=(0.2,)),
            noticed_as=("I1", "I12"),
            seeds_max=40,
        ),
        Planted(
            name="no-retention-check",
            what="neither the controller nor the node minds the retention of a cartridge",
            rules=Rules(
                patches=(
                    ("storage_node.tape_keeping.erase_refusal", _erases_all),
                    ("controller.core.allocation.why_kept", keeps_no_retention),
                    ("controller.core.cartridge_writer.why_kept", keeps_no_retention),
                )
            ),
            bias=replace(RECYCLING, retains=("60s",)),
            noticed_as=("I1",),
            seeds_max=40,
            seed_first=2,
        ),
        Planted(
            name="no-node-clock",
            what="the node does not mind retention, and the controller's clock jumps",
            rules=Rules(patches=(("storage_node.tape_keeping.erase_refusal", _erases_all),)),
            bias=LEAPING,
            noticed_as=("I1",),
            seeds_max=100,
            seed_first=1,
        ),
        Planted(
            name="no-controller-clock",
            what="the controller does not mind retention, and the node believes clocks that have leapt",
            rules=Rules(
                patches=(
                    ("storage_node.core.time_line.TimeLine.ceiling", believes_everything),
                    ("storage_node.tape_control.permit_erase", asks_no_controller),
                    ("controller.core.allocation.why_kept", keeps_no_retention),
                    ("controller.core.cartridge_writer.why_kept", keeps_no_retention),
                )
            ),
            bias=LEAPING,
            noticed_as=("I1",),
            seeds_max=100,
            seed_first=10,
        ),
        Planted(
            name="no-leap-check",
            what="the node believes a clock that has leapt, and the controller's leaps as well",
            rules=Rules(
                patches=(("storage_node.core.time_line.TimeLine.ceiling", believes_everything),)
            ),
            bias=LEAPING,
            noticed_as=("I1",),
            seeds_max=100,
            seed_first=10,
        ),
        Planted(
            name="no-worm-check",
            what="neither controller nor node nor drive mind that a cartridge can be written only once",
            rules=Rules(
                drive=RewritingDrive,
                patches=(
                    ("controller.core.allocation.state_of", sees_no_worm),
                    ("controller.core.part_writer.state_of", sees_no_worm),
                    ("storage_node.tape_control.erase_facts", reads_no_worm),
                ),
            ),
            bias=replace(RECYCLING, worm=(0.7,)),
            noticed_as=("I1",),
            seeds_max=40,
        ),
        Planted(
            name="no-cleaning-check",
            what="a cleaning cartridge is taken for a blank one",
            rules=Rules(
                patches=(
                    ("storage_node.tape.library._cleaning_facts", takes_blank),
                    ("storage_node.tape_control.is_cleaning_tag", is_any_tag),
                )
            ),
            bias=replace(RECYCLING, cleaning=1.0),
            noticed_as=("I14",),
            seeds_max=40,
        ),
        Planted(
            name="no-chain-check",
            what="backups are forgotten although others stand on them",
            rules=Rules(patches=(("controller.core.prune.children_of", stands_under_nothing),)),
            bias=CHAINS,
            noticed_as=("I1",),
            seeds_max=40,
            seed_first=1,
        ),
        Planted(
            name="no-reader-check",
            what="backups are forgotten while jobs read them",
            rules=Rules(patches=(("controller.core.prune.users_of", nobody_reads),)),
            bias=replace(CHAINS, restores=0.7),
            noticed_as=("I1",),
            seeds_max=40,
            seed_first=3,
        ),
        Planted(
            name="no-history-check",
            what="backups stand on others of a history of changes that was lost since",
            rules=Rules(
                patches=(
                    ("controller.core.mapping.choose_parent", trusts_every_history),
                    ("controller.core.mapping.untouched", compares_nothing),
                )
            ),
            bias=replace(CHAINS, crash=(0.05,), restores=0.1),
            noticed_as=("I1",),
            seeds_max=40,
        ),
        Planted(
            name="no-zeros",
            what="incremental backups do not say what was given back",
            rules=Rules(
                patches=(("controller.core.mapping.change_map", forgets_what_was_given_back),)
            ),
            bias=CHAINS,
            noticed_as=("I1",),
            seeds_max=40,
            seed_first=2,
        ),
        Planted(
            name="no-drive-claim",
            what="jobs take drives that others have",
            rules=Rules(patches=(("controller.core.registry.Registry.may_claim", _lets_anybody),)),
            bias=Bias(),
            noticed_as=("I14",),
            seeds_max=40,
        ),
        Planted(
            name="no-wait-for-lanes",
            what="a restore publishes its volume before all lanes have ended",
            rules=Rules(patches=(("controller.core.restore_lanes.all_ended", ends_at_once),)),
            bias=IN_LANES,
            noticed_as=("I10", "I13", "I12"),
            seeds_max=20,
        ),
        Planted(
            name="no-full-deal",
            what="a cartridge of a restore over several drives is dealt to no lane",
            rules=Rules(
                patches=(("controller.core.restore_lanes.deal_cartridges", forgets_a_cartridge),)
            ),
            bias=IN_LANES,
            noticed_as=("I10", "I13", "I12"),
            seeds_max=20,
        ),
    )
}
"""All of them, by name."""
