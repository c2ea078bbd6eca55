"""Which spans answer which question, and what the record on the disk may look like."""

from dataclasses import replace

import pytest

from backplane.errors import MediumError, NotFoundError, UsageError
from storage_node.core.change_tracking import SPANS_MAX, History, Point, Record, Span

ID = "0123456789abcdef" * 2
OTHER = "f" * 32


def history_of(generations: int) -> History:
    history = History(tracking=ID, reason="first")
    for _ in range(generations - 1):
        history = history.turned()
    return history


def numbers(spans: tuple[Span, ...]) -> list[tuple[int, int]]:
    return [(span.first, span.last) for span in spans]


def test_a_question_is_answered_by_the_generations_after_the_one_and_up_to_the_other() -> None:
    history = history_of(6)
    assert numbers(history.spans_between(Point(ID, 2), 4)) == [(3, 3), (4, 4)]
    assert numbers(history.spans_between(Point(ID, 4), 4)) == []
    assert numbers(history.spans_between(Point(ID, 4), 6)) == [(5, 5)]


def test_merged_generations_answer_for_each_other() -> None:
    history = history_of(6)
    history = history.merged((history.spans[1], history.spans[2]), 7)
    assert numbers(history.spans) == [(1, 1), (2, 3), (4, 4), (5, 5)]
    assert history.spans[1].checksum == 7
    assert numbers(history.spans_between(Point(ID, 2), 4)) == [(2, 3), (4, 4)]
    assert numbers(history.spans_between(Point(ID, 1), 2)) == [(2, 3)]
    assert history.oldest == 0


def test_what_was_forgotten_is_lost_and_what_comes_after_is_not() -> None:
    history = history_of(6).forgotten(3)
    assert numbers(history.spans) == [(4, 4), (5, 5)]
    assert history.oldest == 3
    assert numbers(history.spans_between(Point(ID, 3), 5)) == [(4, 4), (5, 5)]
    with pytest.raises(NotFoundError, match="generations up to 3 are not kept"):
        history.spans_between(Point(ID, 2), 5)
    assert history.forgotten(99).generation == 6
    assert history.forgotten(99).oldest == 5


def test_a_merged_span_is_forgotten_only_as_a_whole() -> None:
    history = history_of(5)
    history = history.merged((history.spans[0], history.spans[1]), 7).forgotten(1)
    assert numbers(history.spans) == [(1, 2), (3, 3), (4, 4)]


def test_another_history_is_lost_with_the_reason_why() -> None:
    history = History(tracking=ID, reason="the volume was restored", generation=9)
    with pytest.raises(NotFoundError, match="history lost: the volume was restored"):
        history.spans_between(Point(OTHER, 8), 9)


@pytest.mark.parametrize(("since", "up_to"), [(0, 3), (4, 3), (2, 7), (7, 7), (-1, 2)])
def test_a_question_about_generations_that_never_were_is_refused(since: int, up_to: int) -> None:
    with pytest.raises(UsageError):
        history_of(6).spans_between(Point(ID, since), up_to)


def test_the_oldest_two_are_merged_when_there_are_too_many() -> None:
    history = history_of(SPANS_MAX + 1)
    assert history.merge_due() is None
    history = history.turned()
    assert history.merge_due() == (Span(first=1, last=1), Span(first=2, last=2))


@pytest.mark.parametrize(
    "spans",
    [
        (Span(first=1, last=1),),
        (Span(first=1, last=1), Span(first=3, last=4)),
        (Span(first=1, last=3), Span(first=3, last=4)),
        (Span(first=1, last=9),),
    ],
)
def test_spans_with_gaps_are_no_history(spans: tuple[Span, ...]) -> None:
    with pytest.raises(ValueError, match="gaps"):
        History(tracking=ID, reason="", generation=5, spans=spans)


def test_names_of_histories_are_hexadecimal() -> None:
    with pytest.raises(ValueError, match="names no history"):
        History(tracking="../../../../../../../../etc/pass", reason="")


RECORD = Record(
    history=history_of(4).merged((Span(first=1, last=1), Span(first=2, last=2)), 0xFFFFFFFF),
    size_bytes=1 << 40,
    boot_id="boot-1",
    closed_checksum=None,
)


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (RECORD, replace(RECORD, closed_checksum=0)):
        assert Record.decode(record.encode()) == record


def test_a_record_that_is_cut_or_flipped_anywhere_is_damaged() -> None:
    good = RECORD.encode()
    for cut in range(len(good)):
        with pytest.raises(MediumError):
            Record.decode(good[:cut])
    for at in range(len(good)):
        with pytest.raises(MediumError):
            Record.decode(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
    with pytest.raises(MediumError):
        Record.decode(good + b"\n")
