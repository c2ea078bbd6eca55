"""The ledger balances, or says so."""

from __future__ import annotations

import pytest

from mover_node.core.ledger import Ledger
from mover_node.core.pieces import INLINE


def test_two_descriptors_of_one_unit_share_an_account() -> None:
    ledger = Ledger([b"disk", b"tape", b"disk"])
    ledger.of(0).bytes_read = 5
    assert ledger.of(2).bytes_read == 5
    assert len(ledger.entries()) == 2


def test_what_was_read_is_written_or_discarded() -> None:
    ledger = Ledger([b"disk", b"tape"])
    ledger.of(0).bytes_read = 100
    ledger.of(1).bytes_written = 90
    with pytest.raises(AssertionError):
        ledger.check()
    ledger.discard({0: 10})
    ledger.check()
    assert ledger.of(0).bytes_discarded == 10
    assert ledger.totals() == (100, 90)


def test_inline_data_that_go_nowhere_belong_to_no_unit() -> None:
    ledger = Ledger([b"tape"])
    ledger.inline_bytes = 7
    ledger.discard({INLINE: 7})
    ledger.check()
    assert ledger.of(0).bytes_discarded == 0
