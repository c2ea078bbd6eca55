"""What is done when a storage node says what it has: new media get rows, leftovers are tidied up.

A job whose node was away when it ended could not release its view there, or delete a volume that never was finished.
The node's next inventory shows both, and both are asked for then.

An inventory also says which epochs its units have seen.  One that we never gave means that the catalog is an old copy:
epochs go on behind it, or every fence would refuse us for ever, a person is told, and nothing is written to any tape
until that is mended (`catalog_age`).
"""

from __future__ import annotations

from typing import Final

from backplane.errors import NotFoundError, UnreachableError
from backplane.ids import CartridgeId
from controller.catalog.store import CartridgeRow
from controller.core.catalog_age import fall_behind
from controller.core.desk import Desk
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
        self._doubled: set[tuple[str, str]] = set()

    def on_inventory(self, node: Node) -> None:
        """Take note of everything that a node has."""
        self._compare_epochs(node)
        self.adopt_media(node)
        adopt_volumes(self._desk, node, unknown=False)
        self._tidy_up(node)

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
        """Give rows to cartridges that are new in the library."""
        for state in node.cartridges.values():
            known = self._desk.registry.cartridges.get(state.tag)
            if known is not None:
                self._check_home(known, node)
                continue
            status, detail = state.status, state.detail
            if status in ("writable", "full"):
                # Somebody else's data, or a catalog older than the tape: never to be written by us.
                status, detail = "foreign", "has data that this catalog does not know"
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
                )
            )

    def _check_home(self, known: CartridgeRow, node: Node) -> None:
        here = (known.tag, node.row.name)
        if known.node == node.row.name or here in self._doubled:
            return
        self._doubled.add(here)  # Every inventory says it again; a person is told once.
        self._desk.alarm(f"barcode {known.tag} is at {known.node} and at {node.row.name}: not used")

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
