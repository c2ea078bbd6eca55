"""The same words about the same thing are said now and then; other words, and other things, at once."""

from __future__ import annotations

import itertools

from storage_node.core.repeated_words import AGAIN_MAX_S, AGAIN_S, THINGS_MAX, RepeatedWords

FENCE = "a request has been inside the logical unit for 60 s"


def test_what_is_said_every_three_seconds_is_in_the_log_now_and_then_and_counted() -> None:
    words = RepeatedWords()
    said = {
        now: left
        for now in range(0, 600, 3)
        if (left := words.left_out("drive-0", FENCE, now=now)) is not None
    }
    assert said == {0: 0, 60: 19, 180: 39, 420: 79}


def test_it_is_never_left_out_for_longer_than_an_hour() -> None:
    words = RepeatedWords()
    said = [now for now in range(0, 36000, 60) if words.left_out("d", FENCE, now=now) is not None]
    pauses = [after - before for before, after in itertools.pairwise(said)]
    assert pauses[:3] == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert max(pauses) == AGAIN_MAX_S == pauses[-1]


def test_other_words_and_other_things_are_said_at_once() -> None:
    words = RepeatedWords()
    assert words.left_out("drive-0", FENCE, now=0) == 0
    assert words.left_out("drive-0", FENCE, now=3) is None
    assert words.left_out("drive-1", FENCE, now=3) == 0
    assert words.left_out("drive-0", "drive-0 is empty", now=6) == 0
    assert words.left_out("drive-0", FENCE, now=9) == 0, "it has changed, and changed back"


def test_what_was_not_heard_for_a_minute_is_new() -> None:
    words = RepeatedWords()
    for now in range(0, 200, 3):
        words.left_out("drive-0", FENCE, now=now)
    assert words.left_out("drive-0", FENCE, now=198 + AGAIN_S) is None
    assert words.left_out("drive-0", FENCE, now=199 + 2 * AGAIN_S) == 0


def test_no_more_things_are_remembered_than_there_is_a_limit_for() -> None:
    words = RepeatedWords()
    for number in range(THINGS_MAX):
        assert words.left_out(number, FENCE, now=0) == 0
    assert words.left_out(0, FENCE, now=1) is None, "which makes it the one that was heard of last"
    assert words.left_out("one more", FENCE, now=1) == 0
    assert words.left_out(0, FENCE, now=1) is None
    assert words.left_out(1, FENCE, now=1) == 0, "it was forgotten"
