"""The tally of a part: which of its data records the movers' ledgers account for, and what the tape says to that.

    told        records of the part that ended items have reported
    on tape     records of the part that the drive holds, seen after each load

The two differ when a mover dies after it wrote and before it reported (the tape has more), or when a tape node dies
before what it had acknowledged was durable (the tape has less).  The difference is kept as *observed*, so the ledger of
the job still adds up.  Records of a part that is given up (its cartridge went bad) are *repeated* elsewhere.
"""

from __future__ import annotations

from typing import Any, Protocol


class Counted(Protocol):
    """How records of a part are counted: what each takes on tape, and what of it came from the source unpadded."""

    @property
    def record_bytes(self) -> int:
        """Bytes of a record on tape."""

    def bytes_before(self, record: int) -> int:
        """Bytes from the source that stand in the records before `record`."""


class Tally:
    """Counts in a job's plan, where a restart finds them."""

    def __init__(self, plan: dict[str, Any], data: Counted) -> None:
        self._plan, self._data = plan, data

    @property
    def told(self) -> int:
        """Records of the part that are accounted for."""
        return int(self._plan.get("told", 0))

    def count(self, records: int) -> None:
        """An item reports records that it has written."""
        self._plan["told"] = self.told + records

    def see(self, records: int) -> int:
        """The tape holds this many records of the part; returns by how many that differs from what was told."""
        difference = records - self.told
        if difference:
            written = difference * self._data.record_bytes
            data = self._data.bytes_before(records) - self._data.bytes_before(self.told)
            self._add("observed_bytes", written)
            self._add("observed_padded", written - data)
            self._plan["told"] = records
        return difference

    def give_up(self) -> None:
        """The part is written anew on another cartridge."""
        self._add("repeated_bytes", self._data.bytes_before(self.told))
        self._plan["told"] = 0

    def commit(self) -> None:
        """The part is committed; the next one begins."""
        self._plan["told"] = 0

    def _add(self, name: str, count: int) -> None:
        self._plan[name] = self._plan.get(name, 0) + count
