"""Checksums by object number: written, learned, forgotten."""

from __future__ import annotations

import random

from storage_node.core.record_sums import FILEMARK, RecordSums


def test_what_was_put_is_found_and_nothing_else() -> None:
    sums = RecordSums()
    assert sums.of(0) is None
    sums.put_records(5, [50, 60, 70])
    sums.put_filemark(8)
    sums.put_record(9, 90)
    assert [sums.of(n) for n in range(4, 11)] == [None, 50, 60, 70, FILEMARK, 90, None]


def test_what_is_known_is_not_replaced_by_what_is_said_later() -> None:
    """What was written counts: a record that reads as something else is damaged, and no news."""
    sums = RecordSums()
    sums.put_record(3, 33)
    sums.put_record(3, 34)
    sums.put_filemark(3)
    assert sums.of(3) == 33


def test_what_is_overwritten_is_forgotten_with_all_behind_it() -> None:
    sums = RecordSums()
    sums.put_records(0, [1, 2, 3])
    sums.put_filemark(3)
    sums.put_records(4, [5, 6])
    sums.cut(2)
    assert [sums.of(n) for n in range(6)] == [1, 2, None, None, None, None]
    sums.put_record(2, 9)
    assert [sums.of(n) for n in range(4)] == [1, 2, 9, None]
    sums.cut(0)
    assert [sums.of(n) for n in range(4)] == [None] * 4


def test_against_a_dictionary() -> None:
    chance = random.Random(7)
    for _ in range(200):
        sums, model = RecordSums(), dict[int, int]()
        for _ in range(60):
            number = chance.randrange(30)
            match chance.randrange(8):
                case 0:
                    sums.cut(number)
                    model = {key: value for key, value in model.items() if key < number}
                case 1:
                    sums.put_filemark(number)
                    model.setdefault(number, FILEMARK)
                case _:
                    crc = chance.getrandbits(32)
                    sums.put_record(number, crc)
                    model.setdefault(number, crc)
            assert [sums.of(n) for n in range(31)] == [model.get(n) for n in range(31)]
