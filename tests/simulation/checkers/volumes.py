"""I6, I10: online means wholly restored, and from then on only the workstation's writes; views do not change."""

from __future__ import annotations

from typing import Any

from tests.simulation.checkers.interface import Violation, Window, kind
from tests.simulation.facts import (
    BlocksWritten,
    Committed,
    ViewDropped,
    ViewKept,
    VolumeDropped,
    VolumeKept,
)


class VolumeChecker:
    """Keeps a model of every volume that is online: what was restored into it, and what was written since."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._jobs: dict[int, Any] = {}
        self._job_of_backup: dict[int, int] = {}
        self._copied: dict[int, int] = {}
        self._views: dict[str, tuple[str, bytes]] = {}
        self._held: dict[str, set[str]] = {}
        self._state: dict[str, tuple[str, int]] = {}
        self._models: dict[str, bytearray] = {}

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Committed(rows=rows):
                for row in rows:
                    if kind(row) == "JobRow":
                        self._jobs[row.job] = row
                    elif kind(row) == "BackupRow":
                        self._job_of_backup[row.backup] = row.job
                        self._copied[row.backup] = self._copied.get(row.copy_of, row.backup)
            case VolumeKept():
                self._keep(fact)
            case VolumeDropped(volume=volume):
                self._models.pop(volume, None)
                self._state.pop(volume, None)
            case ViewKept(view=view, volume=volume, content=content):
                self._views[view] = (volume, content)
                self._held.setdefault(volume, set()).add(view)
                self._compare(volume, content, "when it was viewed")
            case ViewDropped(view=view):
                if view in self._views:
                    self._held[self._views[view][0]].discard(view)
            case BlocksWritten():
                self._write(fact)
            case _:
                pass

    def _keep(self, fact: VolumeKept) -> None:
        old, job = self._state.get(fact.volume, ("", 0))
        self._state[fact.volume] = (fact.state, fact.job)
        if fact.state != "online":
            self._models.pop(fact.volume, None)
            return
        if not old:
            self._models[fact.volume] = bytearray(len(fact.content))
        elif old != "online":
            self._models[fact.volume] = self._restored(fact.volume, job, len(fact.content))
        self._compare(fact.volume, fact.content, f"when it came from {old or 'nowhere'}")

    def _restored(self, volume: str, job: int, size: int) -> bytearray:
        row = self._jobs.get(job)
        if row is None or row.kind != "restore":
            raise Violation(
                "I10", f"volume {volume} is published by job {job}, which is no restore"
            )
        view = self._jobs[self._job_of_backup[self._copied[row.backup]]].view
        content = self._views[view][1]
        return bytearray(content.ljust(size, b"\0"))

    def _compare(self, volume: str, content: bytes, when: str) -> None:
        model = self._models[volume]
        if model != content:
            wrong = [
                at // 512
                for at in range(0, len(model), 512)
                if model[at : at + 512] != content[at : at + 512]
            ]
            raise Violation("I10", f"volume {volume} is wrong {when}: blocks {wrong}")

    def _write(self, fact: BlocksWritten) -> None:
        state, _ = self._state[fact.volume]
        if self._held.get(fact.volume):
            raise Violation("I6", f"volume {fact.volume} is written while a view holds it")
        if state == "online":
            if fact.origin is not None:
                raise Violation(
                    "I10",
                    f"volume {fact.volume} is online and is written by item {fact.origin.item}, "
                    f"epoch {fact.origin.epoch}",
                )
            end = fact.byte_address + len(fact.data)
            self._models[fact.volume][fact.byte_address : end] = fact.data
        elif fact.origin is None:
            raise Violation("I10", f"the workstation writes volume {fact.volume}, which is {state}")

    def finish(self) -> None:
        """Compare every volume that is online with its model."""
        for volume in sorted(self._models):
            self._compare(volume, self._window.volume(volume), "at the end")
