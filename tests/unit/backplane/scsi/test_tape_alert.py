"""TapeAlert flags as a number and in words."""

from __future__ import annotations

import pytest

from backplane.scsi.tape_alert import FLAGS, WORDS, TapeAlert, flags_of, words_of


def test_flag_n_is_bit_n_minus_1() -> None:
    assert flags_of([]) == 0
    assert flags_of([1]) == 1
    assert flags_of([TapeAlert.CLEAN_PERIODIC]) == 1 << 20
    assert flags_of([TapeAlert.CLEAN_NOW, TapeAlert.CLEAN_NOW, 64]) == 1 << 19 | 1 << 63


def test_words_come_in_order_and_unknown_flags_by_their_number() -> None:
    assert words_of(0) == ()
    assert words_of(flags_of([64, 5, 3])) == ("hard error", "read failure", "flag 64")
    assert len(words_of(2**64 - 1)) == FLAGS


def test_every_flag_of_ours_has_a_word() -> None:
    assert {int(alert) for alert in TapeAlert} <= WORDS.keys()


def test_a_flag_that_does_not_exist_is_a_bug() -> None:
    for alert in (0, 65):
        with pytest.raises(AssertionError):
            flags_of([alert])
