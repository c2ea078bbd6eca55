"""What is done when a storage node says what it has: new media get rows, leftovers are tidied up.

A job whose node was away when it ended could not release its view there, or delete a volume that never was finished.
The node's next inventory shows both, and both are asked for then.

A cartridge is known by the UUID in its label; its barcode is only where to look.  If one barcode is on two cartridges,
or two barcodes have one UUID, nobody can say which is which: they are quarantined, and neither written nor read, until
an operator says.

An inventory also says which epochs its units have seen.  One that we never gave means that the catalog is an old copy:
epochs go on behind it, or every fence would refuse us for ever, a person is told, and nothing is written to any tape
until that is mended (`catalog_age`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from backplane.errors import NotFoundError, UnreachableError
from backplane.ids import CartridgeId, VolumeTag
from backplane.wire.messages import CartridgeState, NodeInventory
from controller.catalog.store import CartridgeRow
from controller.core.allocation import disk_is_full, state_of
from controller.core.catalog_age import fall_behind
from controller.core.desk import Desk
from controller.core.media import ask_retain, tag_claims
from controller.core.procedure import Ask, Procedure
from controller.core.rebuild_volumes import adopt_volumes
from controller.core.registry import Node
from controller.core.views import ask_release_view
from controller.core.volumes import ask_delete, leftovers

NUMBER_MAX: Final = (1 << 63) - 1
"""What the catalog can keep; the wire can carry twice as much."""

EPOCH_MAX: Final = 1 << 62
"""An epoch beyond this was never given by anybody: no controller lives that long."""


class Arrivals:
    """Looks through inventories."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tidying: set[str] = set()
        self._full_disks: set[str] = set()
        self._doubled: set[tuple[str, str]] = set()

    def on_inventory(self, node: Node, inventory: NodeInventory) -> None:
        """Take note of everything that a node has."""
        self._compare_epochs(node)
        self.adopt_media(node)
        self._look_at_disk(node)
        counted = Counter(state.tag for state in inventory.cartridges)
        for tag in sorted(tag for tag, count in counted.items() if count > 1):
            self.quarantine(
                [tag], f"barcode {tag} is on {counted[tag]} cartridges at {node.row.name}"
            )
        adopt_volumes(self._desk, node, unknown=False)
        self._tidy_up(node)

    def _look_at_disk(self, node: Node) -> None:
        """Raise one alarm when the disk under a virtual library gets full, and another one only if it does so again."""
        name = node.row.name
        if not any(state.is_out_of_space for state in node.cartridges.values()):
            self._full_disks.discard(name)
        elif name not in self._full_disks:
            self._full_disks.add(name)
            self._desk.alarm(f"{disk_is_full(name)}: cartridges there have room, and take nothing")

    def _compare_epochs(self, node: Node) -> None:
        seen = [state.epoch for state in node.volumes.values()]
        seen += [state.epoch for state in node.drives.values()]
        highest = max((epoch for epoch in seen if epoch < EPOCH_MAX), default=0)
        ours = self._desk.counter("epoch")
        if highest > ours:
            self._desk.reach("epoch", highest)
            self._desk.alarm(
                f"storage node {node.row.name} has seen epoch {highest}, this catalog gave {ours}: "
                "it is an old copy; backups made after it are on tape, but not in it",
            )
            fall_behind(self._desk)

    def adopt_media(self, node: Node) -> None:
        """Give rows to cartridges that are new in the library; see that all others are what they are taken for."""
        claims = tag_claims(self._desk)
        for state in node.cartridges.values():
            known = self._desk.registry.cartridges.get(state.tag)
            if known is None:
                self._adopt(state, node)
            elif self._is_at_home(known, state, node):
                if (
                    state.tag not in claims
                ):  # Who writes a label knows better than what was seen before.
                    self._compare(known, state)
                self._retain(self._desk.registry.cartridges[state.tag], state)
        self._find_twins(node)

    def _adopt(self, state: CartridgeState, node: Node) -> None:
        status, detail = state.status, state.detail
        if status in ("writable", "full"):
            # Somebody else's data, or a catalog older than the tape: never to be written by us.
            status, detail = "foreign", self._whose(state)
        self._desk.record(
            CartridgeRow(
                tag=state.tag,
                cartridge=state.cartridge if status != "blank" else CartridgeId(""),
                node=node.row.name,
                status=status,
                detail=detail,
                end=0,
                sequence=0,
                capacity_bytes=min(state.capacity_bytes, NUMBER_MAX),
                created=self._desk.wall,
                pool=self._desk.registry.pools_of_new.pop(state.tag, ""),
            )
        )

    def _whose(self, state: CartridgeState) -> str:
        if state.store == self._desk.store:
            parts = self._desk.registry.parts.values()
            backups = {each.backup for each in parts if each.cartridge == state.cartridge}
            if backups:
                whose = f"backup {min(backups)}" if len(backups) == 1 else f"{len(backups)} backups"
                return (
                    f"it was forgotten, and has parts of {whose}: "
                    f"ctl catalog rebuild --from {state.tag}"
                )
            return (
                "labelled by this catalog, which does not know it any more: "
                f"ctl catalog rebuild --from {state.tag}"
            )
        if state.store:
            return f"has data of another catalog ({state.store})"
        return "has data that this catalog does not know"

    # --- never the wrong cartridge ---

    def _is_at_home(self, known: CartridgeRow, state: CartridgeState, node: Node) -> bool:
        """Say whether a cartridge is where the catalog has it; notes it if it was brought here from elsewhere."""
        registry, here = self._desk.registry, node.row.name
        others = [
            other
            for other in registry.nodes.values()
            if other is not node and other.is_online and state.tag in other.cartridges
        ]
        if others:
            names = " and at ".join(sorted({here, *(other.row.name for other in others)}))
            self.quarantine([state.tag], f"barcode {state.tag} is at {names}")
            return False
        if known.node == here:
            return True
        home = registry.nodes.get(known.node)
        if home is None or not home.is_online:
            if (
                state.tag,
                here,
            ) not in self._doubled:  # Every inventory says it again; a person is told once.
                self._doubled.add((state.tag, here))
                self._desk.alarm(
                    f"barcode {state.tag} is at {here}, and at {known.node} when that was last seen: not used; "
                    f"if it was moved: ctl tape set-status {state.tag} {known.status} --node {here}"
                )
            return False
        if known.cartridge != state.cartridge:
            why = (
                f"barcode {state.tag} is at {here} on another cartridge than it was at {known.node}"
            )
            self.quarantine([state.tag], why)
            return False
        self._desk.record(replace(known, node=here))
        return True

    def _compare(self, known: CartridgeRow, state: CartridgeState) -> None:
        """Compare what a cartridge is with what the catalog takes it for."""
        if known.status == "blank" and not known.cartridge:
            if state.status not in ("blank", "cleaning"):
                status = "error" if state.status == "error" else "foreign"
                detail = (
                    state.detail if state.status in ("error", "foreign") else self._whose(state)
                )
                self._desk.record(
                    replace(known, status=status, detail=detail, cartridge=state.cartridge)
                )
                self._desk.alarm(f"cartridge {known.tag} was blank and is {status} now: {detail}")
        elif known.status == state.status == "cleaning":
            if known.detail != state.detail:  # How many cleanings are left.
                self._desk.record(replace(known, detail=state.detail))
        elif known.status in ("error", "retired"):
            return  # A person has been told of it, and nobody writes it.
        elif state.cartridge and known.cartridge and state.cartridge != known.cartridge:
            self.quarantine(
                [known.tag],
                f"barcode {known.tag} is on another cartridge: its label says {state.cartridge}, "
                f"the catalog {known.cartridge}",
            )

    def _find_twins(self, node: Node) -> None:
        """Two barcodes with one label: one of them is a copy, and nobody can say which."""
        tags: dict[CartridgeId, set[VolumeTag]] = {}
        for row in self._desk.registry.cartridges.values():
            if row.cartridge and not self._was_taken_away(row):
                tags.setdefault(row.cartridge, set()).add(row.tag)
        for state in node.cartridges.values():
            if state.cartridge:
                tags.setdefault(state.cartridge, set()).add(state.tag)
        for cartridge, found in tags.items():
            if len(found) > 1:
                names = " and ".join(sorted(found))
                self.quarantine(sorted(found), f"{names} have one label, {cartridge}")

    def _was_taken_away(self, row: CartridgeRow) -> bool:
        """Say whether it is a twin in no library: then an operator may say that the other one is right.

        Also while its node is away, as all are when a controller starts: should the twin be there after all, the
        inventory that has it quarantines both again.
        """
        return row.status == "quarantined" and state_of(self._desk.registry, row) is None

    def quarantine(self, tags: Iterable[VolumeTag], why: str) -> None:
        """Let nobody use cartridges until an operator says which is which; a person is told once."""
        rows = [self._desk.registry.cartridges[tag] for tag in tags]
        fresh = [row for row in rows if row.status != "quarantined"]
        if fresh:
            self._desk.record(*(replace(row, status="quarantined", detail=why) for row in fresh))
            self._desk.alarm(
                f"{why}: not used until ctl tape set-status says which is the right one"
            )

    def _retain(self, known: CartridgeRow, state: CartridgeState) -> None:
        """Have the node keep what the catalog keeps: it was told while the cartridge was away, or has forgotten."""
        is_short = known.retain_until > max(state.retain_until, self._desk.wall)
        if is_short or (known.hold and not state.is_held):
            ask = ask_retain(self._desk.registry, known.tag, gives_up=True)
            self._tidy(f"retain {known.tag}", ask)

    def _tidy_up(self, node: Node) -> None:
        name = node.row.name
        active = {job.row.view for job in self._desk.jobs.values() if not job.has_ended}
        for view, state in node.views.items():
            # A view that was made by hand has no job: its time to live, or an operator, ends it.
            if state.job and view not in active:
                self._tidy(view, ask_release_view(name, view))
        for row in leftovers(self._desk, name):
            self._tidy(row.volume, ask_delete(row, gives_up=True))

    def _tidy(self, what: str, ask: Ask) -> None:
        if what not in self._tidying:
            self._tidying.add(what)
            self._desk.spawn(self._asked(what, ask))

    def _asked(self, what: str, ask: Ask) -> Procedure:
        try:
            yield ask
        except (UnreachableError, NotFoundError):
            return  # Gone, or the node is: its next inventory brings us back here.
        finally:
            self._tidying.discard(what)
