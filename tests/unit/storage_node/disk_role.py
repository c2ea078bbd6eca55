"""The disk role over a folder, without sockets: volumes, views and their rules, on a clock that is set."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backplane.ids import Designator, Epoch, JobId, NodeName, ViewId, VolumeId
from backplane.scsi.designator import designator_of
from backplane.testing.clock import ManualClock
from backplane.wire.frames import Opcode, boot_bits
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    ViewCreate,
    ViewExtents,
    ViewMember,
    ViewState,
    VolumeCreate,
    VolumeMirror,
    VolumeOffline,
    VolumePublish,
    VolumeState,
)
from storage_node.access import Access
from storage_node.core.admission import Admission, Request
from storage_node.core.hook_rules import HookPair
from storage_node.core.write_inactivity import AskAgain, QuietWait
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.static_views import SnapshotRules, ViewMaker
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_control import NO_HOOKS, DiskControl
from storage_node.view_control import ViewControl

VOLUME = VolumeId("11" * 16)
VIEW = ViewId("33" * 16)
UNIT = designator_of(VOLUME)
VIEW_UNIT = designator_of(VIEW)
SIZE = 64 * 512
WRITE = Request(opcode=Opcode.WRITE, boot=boot_bits(bytes(range(16))))


class Node:
    """The disk role over a folder; `restart` opens it anew."""

    def __init__(
        self, bench: Any, *, kernel: str = "a" * 36, hooks: Mapping[str, HookPair] = NO_HOOKS
    ) -> None:
        self.bench = bench
        self.kernel = kernel
        self.folder: Path = bench.folder
        self.clock = ManualClock()
        bench.access = Access(
            Admission(node=NodeName("node-1"), boot_id=bytes(range(16)), floors=bench.store.floors),
            bench.store,
            monotonic=self.clock.monotonic,
            on_fatal=bench.fatal.append,
        )
        self.store = VolumeStore(
            self.folder,
            attach_paths=[self.folder / "images"],
            boot_id=self.kernel,
            new_id=lambda: uuid.uuid4().hex,
        )
        maker = ViewMaker(self.folder, boot_id=self.kernel, rules=SnapshotRules())
        self.disk = DiskControl(
            self.store,
            bench.access,
            clock=self.clock,
            maker=maker,
            hooks=hooks,
            on_fatal=bench.fatal.append,
        )
        self.views = ViewControl(self.disk)

    def restart(self, *, kernel: str = "", hooks: Mapping[str, HookPair] = NO_HOOKS) -> Node:
        self.close()
        return Node(self.bench, kernel=kernel or self.kernel, hooks=hooks)

    def close(self) -> None:
        self.disk.close()
        self.store.close()

    def create(
        self,
        state: str = "online",
        volume: VolumeId = VOLUME,
        *,
        name: str = "vol",
        size_bytes: int = SIZE,
    ) -> VolumeState:
        return self.disk.create(
            VolumeCreate(
                request=1,
                volume=volume,
                name=name,
                size_bytes=size_bytes,
                block_bytes=512,
                state=state,
            )
        )

    def write(self, data: bytes, at: int = 0, *, epoch: int = 5) -> None:
        """Write as a data channel does."""
        access, unit = self.bench.access, self.disk.units[UNIT]
        session = access.open(self.bench.grant(UNIT, Rights.WRITE, epoch=Epoch(epoch)))
        access.enter(session, WRITE)
        unit.device.write(at, memoryview(data))
        access.leave(session, has_written=True)
        access.close(session)

    def offline(self, *, epoch: int = 10, job: int = 4, is_forced: bool = True) -> VolumeState:
        return self.disk.offline(
            VolumeOffline(
                request=1, volume=VOLUME, job=JobId(job), epoch=Epoch(epoch), is_forced=is_forced
            )
        )

    def publish(self, state: str = "online", *, epoch: int = 20, job: int = 4) -> VolumeState:
        return self.disk.publish(
            VolumePublish(request=1, volume=VOLUME, job=JobId(job), epoch=Epoch(epoch), state=state)
        )

    def put(self, data: bytes, at: int = 0, *, volume: VolumeId = VOLUME, writer: str = "") -> None:
        """Write as a workstation does."""
        self.disk.live[volume].write(at, memoryview(data), writer=writer)

    def mirror(self, action: str, leg: str = "b", *, path: str = "") -> VolumeState:
        return self.disk.mirror(
            VolumeMirror(request=1, volume=VOLUME, action=action, leg=leg, path=path)
        )

    def make(
        self,
        means: str = "snapshot",
        *,
        view: ViewId = VIEW,
        volume: VolumeId = VOLUME,
        group: Iterable[tuple[ViewId, VolumeId]] = (),
        quiet_s: float = 0.0,
        timeout_s: float = 80.0,
        asked_s: float | None = None,
        protected: bytes = b"",
    ) -> tuple[ViewState, ...] | AskAgain:
        """Ask for views, once."""
        message = ViewCreate(
            request=1,
            view=view,
            volume=volume,
            job=JobId(7),
            quiet_s=quiet_s,
            timeout_s=timeout_s,
            ttl_s=9.0,
            means=means,
            protected=protected,
            group=tuple(ViewMember(view=v, volume=of) for v, of in group),
        )
        asked = self.clock.monotonic() if asked_s is None else asked_s
        return self.views.create(
            message, QuietWait(asked_s=asked, quiet_s=quiet_s, timeout_s=timeout_s)
        )

    def extents(
        self, unit: Designator, start: int = 0, most: int = 999, *, since: tuple[str, int] = ("", 0)
    ) -> tuple[list[tuple[int, int]], int]:
        """Ask for one page of (LBA, blocks)."""
        packed, following = self.views.extents(
            ViewExtents(
                request=1,
                designator=unit,
                start_lba=start,
                extents_max=most,
                tracking=since[0],
                since_generation=since[1],
            )
        )
        return [(lba, blocks) for lba, blocks in struct.iter_unpack(">QQ", packed)], following

    def seen(self, unit: Designator = VIEW_UNIT) -> bytes:
        """Read all of a volume or view as a data channel does."""
        device = self.disk.units[unit].device
        buffer = bytearray(b"\xa5" * device.size_bytes)
        device.read_into(0, memoryview(buffer))
        return bytes(buffer)

    def view(self, *, quiet_s: float = 3.0, asked_s: float | None = None, ttl_s: float = 9.0,
             view: ViewId = VIEW, means: str = "hold") -> ViewState | AskAgain:  # fmt: skip
        message = ViewCreate(
            request=1, view=view, volume=VOLUME, job=JobId(7), quiet_s=quiet_s, timeout_s=80.0,
            ttl_s=ttl_s, means=means,
        )  # fmt: skip
        asked = self.clock.monotonic() if asked_s is None else asked_s
        answer = self.views.create(
            message, QuietWait(asked_s=asked, quiet_s=quiet_s, timeout_s=80.0)
        )
        return answer if isinstance(answer, AskAgain) else answer[0]

    def break_device(self, *faults: Fault) -> None:
        live = self.disk.live[VOLUME]
        live.device = FaultyDevice(live.device, faults)

    def content(self) -> bytes:
        return (self.folder / "volumes" / VOLUME / "data.img").read_bytes()
