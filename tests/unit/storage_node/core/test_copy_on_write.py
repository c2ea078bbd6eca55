"""Granules, plans and the journal, without files."""

from __future__ import annotations

import pytest

from storage_node.core.copy_on_write import (
    ENTRY_BYTES,
    GRANULE_BYTES,
    HEADER_BYTES,
    OPEN,
    PENDING,
    STORED,
    ZEROS,
    DamagedJournalError,
    GranuleMap,
    JournalHeader,
    JournalWriter,
    Run,
    Saved,
    Source,
    granules_of,
    merged,
    read_header,
    read_journal,
    split_by_content,
    split_by_data,
)

G = GRANULE_BYTES
SIZE = 10 * G + 512
HEADER = JournalHeader(view="view-1", boot_id="boot-1", size_bytes=SIZE, reserve_bytes=1 << 30)


def a_journal(*saved: Saved, protected: list[tuple[int, int]] | None = None) -> bytes:
    writer, beginning = JournalWriter.begin(HEADER, protected or [(0, 11)])
    return beginning + writer.entries(saved)


def test_only_granules_that_hold_protected_bytes_are_saved() -> None:
    runs = granules_of([(3 * G - 1, 3 * G + 1), (5 * G, 5 * G + 1), (9, 9)], size_bytes=SIZE)
    assert runs == [(2, 2), (5, 1)]
    granules = GranuleMap(SIZE, runs)
    assert list(granules.states) == [OPEN, OPEN, PENDING, PENDING, OPEN, PENDING] + [OPEN] * 5
    assert list(granules.pending(0, 11)) == [(2, 2), (5, 1)]
    assert list(granules.pending(3, 5)) == [(3, 1)]


def test_runs_that_touch_are_one_and_stay_within_the_volume() -> None:
    found = granules_of([(4 * G, 5 * G), (0, 1), (G, 2 * G), (9 * G, 99 * G)], size_bytes=SIZE)
    assert found == [(0, 2), (4, 1), (9, 2)]


def test_a_read_goes_where_each_granule_is() -> None:
    granules = GranuleMap(SIZE, [(1, 10)])
    granules.record(Saved(3, 2, 0))
    granules.record(Saved(6, 1, 2))
    granules.record(Saved(5, 1, 3))
    granules.record(Saved(8, 1, None))
    assert granules.plan(G // 2, SIZE - 1) == [
        Run(G // 2, G, Source.NOWHERE, G // 2),
        Run(G, 3 * G, Source.LIVE, G),
        Run(3 * G, 5 * G, Source.STORE, 0),
        Run(5 * G, 6 * G, Source.STORE, 3 * G),
        Run(6 * G, 7 * G, Source.STORE, 2 * G),
        Run(7 * G, 8 * G, Source.LIVE, 7 * G),
        Run(8 * G, 9 * G, Source.ZEROS, 8 * G),
        Run(9 * G, SIZE - 1, Source.LIVE, 9 * G),
    ]
    assert granules.plan(3 * G + 7, 4 * G + 9) == [Run(3 * G + 7, 4 * G + 9, Source.STORE, 7)]
    assert granules.plan(G + 5, G + 5) == []
    assert granules.plan(G + 5, G + 6) == [Run(G + 5, G + 6, Source.LIVE, G + 5)]


def test_a_granule_is_saved_once() -> None:
    granules = GranuleMap(SIZE, [(0, 11)])
    granules.record(Saved(0, 2, 0))
    with pytest.raises(AssertionError):
        granules.record(Saved(1, 1, 2))
    with pytest.raises(AssertionError):
        granules.record(Saved(2, 1, 5))


def test_a_run_is_divided_at_its_holes() -> None:
    extents = [(0, 10), (4 * G + 1, 4 * G + 2), (5 * G, 5 * G + 1), (8 * G - 1, 20 * G)]
    assert list(split_by_data(2, 8, extents, size_bytes=30 * G)) == [
        (2, 2, False),
        (4, 2, True),
        (6, 1, False),
        (7, 3, True),
    ]
    assert list(split_by_data(2, 8, [], size_bytes=30 * G)) == [(2, 8, False)]
    assert list(split_by_data(2, 8, [(0, 30 * G)], size_bytes=30 * G)) == [(2, 8, True)]


def test_a_granule_of_zeros_is_found_to_the_last_byte() -> None:
    content = bytearray(4 * G)
    content[2 * G - 1] = content[3 * G + 100] = 1
    assert split_by_content(5, content, 4 * G) == [
        (5, 1, False),
        (6, 1, True),
        (7, 1, False),
        (8, 1, True),
    ]
    # The last granule of the volume is short; what an earlier save left behind it in the buffer is not its own.
    assert split_by_content(5, content, 3 * G + 100) == [(5, 1, False), (6, 1, True), (7, 2, False)]


def test_what_two_writers_want_is_saved_once() -> None:
    assert merged([(5, 6)]) == [(5, 6)]
    assert merged([(7, 9), (1, 3), (2, 5), (8, 9), (5, 6)]) == [(1, 6), (7, 9)]


def test_a_journal_is_read_back_as_it_was_written() -> None:
    data = a_journal(Saved(1, 3, 0), Saved(7, 1, None), Saved(10, 1, 3), protected=[(1, 3), (7, 4)])
    journal = read_journal(data)
    assert journal.header == read_header(data) == HEADER
    assert journal.valid_bytes == len(data)
    expected = [OPEN, STORED, STORED, STORED, OPEN, OPEN, OPEN, ZEROS, PENDING, PENDING, STORED]
    assert list(journal.granules.states) == expected
    assert journal.granules.slots == {1: 0, 2: 1, 3: 2, 10: 3}
    assert journal.granules.next_slot == 4
    assert journal.granules.store_bytes_min() == 3 * G + 512
    again = read_journal(data + journal.writer.entries([Saved(8, 1, 4)]))
    assert again.granules.slots[8] == 4


def test_a_torn_last_entry_never_happened() -> None:
    whole = a_journal(Saved(1, 1, 0))
    for cut in range(1, ENTRY_BYTES):
        journal = read_journal(a_journal(Saved(1, 1, 0), Saved(2, 1, 1))[: len(whole) + cut])
        assert journal.valid_bytes == len(whole)
        assert list(journal.granules.slots) == [1]


def test_a_journal_without_all_of_its_beginning_is_damaged() -> None:
    beginning = a_journal(protected=[(0, 1), (4, 1)])
    assert len(beginning) == HEADER_BYTES + 2 * ENTRY_BYTES
    for cut in range(len(beginning)):
        with pytest.raises(DamagedJournalError):
            read_journal(beginning[:cut])


def test_any_flipped_bit_is_damage() -> None:
    data = a_journal(Saved(1, 1, 0), Saved(2, 1, None))
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= 1 << index % 8
        with pytest.raises(DamagedJournalError):
            read_journal(bytes(damaged))


def test_entries_of_another_journal_or_place_do_not_fit() -> None:
    other = JournalHeader(view="view-2", boot_id="boot-1", size_bytes=SIZE, reserve_bytes=1 << 30)
    writer, beginning = JournalWriter.begin(other, [(0, 11)])
    stranger = beginning + writer.entries([Saved(1, 1, 0)])
    with pytest.raises(DamagedJournalError):
        read_journal(a_journal() + stranger[-ENTRY_BYTES:])
    data = a_journal(Saved(1, 1, 0), Saved(2, 1, 1))
    for wrong in (
        data[: -2 * ENTRY_BYTES] + data[-ENTRY_BYTES:],
        data + data[-ENTRY_BYTES:],
        data[: -2 * ENTRY_BYTES] + data[-ENTRY_BYTES:] + data[-2 * ENTRY_BYTES : -ENTRY_BYTES],
    ):
        with pytest.raises(DamagedJournalError):
            read_journal(wrong)


def test_what_is_promised_no_longer_is_read_back() -> None:
    data = a_journal(Saved(1, 1, 0), protected=[(1, 3), (7, 4)])
    journal = read_journal(data)
    opened = list(journal.granules.outside([(2, 1), (8, 1)]))
    assert opened == [(3, 1), (7, 1), (9, 2)]
    again = read_journal(data + journal.writer.narrowing(opened))
    expected = [OPEN, STORED, PENDING, OPEN, OPEN, OPEN, OPEN, OPEN, PENDING, OPEN, OPEN]
    assert list(again.granules.states) == expected
    journal.granules.uncover(opened)
    assert list(journal.granules.states) == expected
    assert list(again.granules.outside([])) == [(2, 1), (8, 1)]


@pytest.mark.parametrize("run", [(0, 1), (1, 1), (10, 2), (1 << 60, 1), (2, 0)])
def test_only_what_is_promised_can_be_promised_no_longer(run: tuple[int, int]) -> None:
    data = a_journal(Saved(1, 1, 0), protected=[(1, 10)])
    writer = read_journal(data).writer
    with pytest.raises(DamagedJournalError):
        read_journal(data + writer.narrowing([run]))


@pytest.mark.parametrize(
    "wrong",
    [
        [Saved(0, 1, None)],
        [Saved(10, 2, None)],
        [Saved(1 << 60, 1, None)],
        [Saved(1, 0, None)],
        [Saved(1, 1, 1)],
        [Saved(1, 2, 0), Saved(2, 1, 2)],
        [Saved(1, 2, None), Saved(2, 1, 0)],
    ],
)
def test_entries_that_contradict_each_other_are_damage(wrong: list[Saved]) -> None:
    with pytest.raises(DamagedJournalError):
        read_journal(a_journal(*wrong, protected=[(1, 10)]))
