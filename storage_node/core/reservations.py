"""Volumes that belong to one job for a while, and to no workstation.

    free --reserve (nobody is connected)--> reserved by a job --unreserve, or time is over and nobody writes--> free

A reservation keeps workstations away from a volume that stays online, while files are put back onto it; and only the
job that has it may write there, whatever grants say.  Which blocks it may write is a matter of grants and fences, as
always.  Nothing of it is kept over a restart of the node: whoever wants to go on reserves again, and proves again that
what he writes is still what he takes it for, because a workstation may have been there in between.

A *shared* reservation lets workstations stay: files are written beneath the file system of one that holds them for the
job.  It holds them for so long and no longer, so the time of such a reservation is strict: when it is over the job may
not write, whoever else is there, and nothing prolongs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from backplane.errors import BusyError, RefusedError, UsageError
from backplane.ids import JobId, VolumeId

RESERVED_S_MAX: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class _Reservation:
    job: JobId
    ttl_s: float
    until_s: float
    is_shared: bool = False


class Reservations:
    """Who has which volume.  Not thread-safe."""

    def __init__(self) -> None:
        self._held: dict[VolumeId, _Reservation] = {}

    def reserve(
        self,
        volume: VolumeId,
        job: JobId,
        *,
        ttl_s: float,
        connections: int,
        has_writer: bool,
        now: float,
        is_shared: bool = False,
    ) -> None:
        """Reserve a volume, or prolong that; raises `BusyError` if it is used or reserved by another job."""
        if not 0 < ttl_s <= RESERVED_S_MAX:
            raise UsageError(
                f"a reservation lasts longer than 0 and at most {RESERVED_S_MAX:.0f} s"
            )
        self.check(volume, has_writer=has_writer, now=now, job=job)
        if connections and not is_shared:
            # One workstation may have several connections.
            told = f"workstations have {connections} connections"
            raise BusyError(
                told if connections > 1 else "1 workstation is connected",
                hint="unmount the volume and disconnect, or restore to another place",
            )
        self._held[volume] = _Reservation(job, ttl_s, now + ttl_s, is_shared)

    def require(self, volume: VolumeId, job: JobId, *, now: float) -> None:
        """Raise `RefusedError` unless a job has the volume, without a gap since it reserved it."""
        held = self._held.get(volume)
        if held is None or held.job != job:
            raise RefusedError(f"job {job} has not reserved the volume")
        if held.is_shared and now >= held.until_s:
            raise RefusedError(f"the time is over for which job {job} had reserved the volume")

    def prolong(self, volume: VolumeId, job: JobId, *, now: float) -> None:
        """Let a reservation last as long as when it was made; raises `RefusedError` if the job has it no more.

        One whose time was over, but which nobody has ended, goes on: nobody was there.
        """
        self.require(volume, job, now=now)
        held = self._held[volume]
        self._held[volume] = replace(held, until_s=now + held.ttl_s)

    def unreserve(self, volume: VolumeId, job: JobId) -> None:
        """Give a volume back; what another job has, or nobody, is left as it is."""
        held = self._held.get(volume)
        if held is not None and held.job == job:
            del self._held[volume]

    def check(
        self, volume: VolumeId, *, has_writer: bool, now: float, job: JobId | None = None
    ) -> None:
        """Raise `BusyError` if somebody else has the volume; `has_writer`: a mover may still write it.

        Without a `job` it is a workstation that asks.
        """
        held = self._held.get(volume)
        if held is None or held.job == job or (held.is_shared and job is None):
            return
        if now >= held.until_s and not has_writer:
            del self._held[volume]
            return
        raise BusyError(
            f"job {held.job} puts files back onto the volume", hint="wait until it has ended"
        )
