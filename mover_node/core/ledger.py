"""What moved where: the byte counts of one work item, per logical unit.

For every item  read + padded + inline = written + discarded,  summed over its units, whatever its end was; `inline`
is what 04h and 05h segments brought.  Bytes that were read ahead but not used, bytes read only to be merged into a
partial block, and second attempts count nowhere but in `rereads`.
"""

from __future__ import annotations

from dataclasses import dataclass

from backplane.ids import Designator
from backplane.wire.messages import LedgerEntry


@dataclass(slots=True)
class Account:
    """The counts of one logical unit."""

    designator: bytes
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_padded: int = 0
    bytes_discarded: int = 0
    records_read: int = 0
    records_written: int = 0
    filemarks_written: int = 0
    rereads: int = 0
    position: int = 0
    under_runs: int = 0

    def entry(self) -> LedgerEntry:
        """Return it as it is reported."""
        return LedgerEntry(
            designator=Designator(self.designator),
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            bytes_padded=self.bytes_padded,
            bytes_discarded=self.bytes_discarded,
            records_read=self.records_read,
            records_written=self.records_written,
            filemarks_written=self.filemarks_written,
            rereads=self.rereads,
            position=self.position,
            under_runs=self.under_runs,
        )


class Ledger:
    """The accounts of all units of one list, by CSCD id; two ids of one unit share an account."""

    def __init__(self, designators: list[bytes]) -> None:
        accounts = {designator: Account(designator) for designator in designators}
        self._by_cscd = [accounts[designator] for designator in designators]
        self._accounts = list(accounts.values())
        self.inline_bytes = 0
        self._unowned_bytes_discarded = 0

    def of(self, cscd: int) -> Account:
        """Return the account of a CSCD."""
        return self._by_cscd[cscd]

    def discard(self, dropped: dict[int, int]) -> None:
        """Count bytes that went nowhere, by the CSCD they were read from."""
        for cscd, count in dropped.items():
            if 0 <= cscd < len(self._by_cscd):
                self._by_cscd[cscd].bytes_discarded += count
            else:
                self._unowned_bytes_discarded += count

    def totals(self) -> tuple[int, int]:
        """Return bytes read and bytes written so far."""
        return (
            sum(account.bytes_read for account in self._accounts),
            sum(account.bytes_written for account in self._accounts),
        )

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Return all accounts, as they are reported."""
        return tuple(account.entry() for account in self._accounts)

    def check(self) -> None:
        """Assert that nothing was lost or doubled."""
        gained = sum(a.bytes_read + a.bytes_padded for a in self._accounts) + self.inline_bytes
        spent = sum(a.bytes_written + a.bytes_discarded for a in self._accounts)
        assert gained == spent + self._unowned_bytes_discarded, (gained, spent)
