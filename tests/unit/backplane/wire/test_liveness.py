"""Pings and expiry."""

from __future__ import annotations

from backplane.wire.liveness import SILENT_HEARTBEATS_MAX, Liveness


def test_a_ping_is_due_after_one_idle_heartbeat() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    assert not liveness.is_ping_due(11.9)
    assert liveness.is_ping_due(12.0)
    assert liveness.ping_at == 12.0


def test_talk_in_both_directions_needs_no_ping() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    liveness.on_sent(11.0)
    liveness.on_heard(11.5)
    assert liveness.ping_at == 13.0


def test_who_talks_without_being_answered_has_to_ping() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    for moment in (10.5, 11.0, 11.5, 12.0):
        liveness.on_sent(moment)
    assert liveness.is_ping_due(12.0)
    liveness.on_pinged(12.0)
    assert not liveness.is_ping_due(13.9)


def test_who_listens_without_talking_has_to_ping() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    liveness.on_heard(11.9)
    assert liveness.is_ping_due(12.0)


def test_silence_of_three_heartbeats_is_the_end() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    assert liveness.expires_at == 10.0 + SILENT_HEARTBEATS_MAX * 2.0
    assert not liveness.is_expired(15.9)
    assert liveness.is_expired(16.0)
    liveness.on_heard(16.0)
    assert not liveness.is_expired(21.9)


def test_words_that_arrive_out_of_order_never_turn_time_back() -> None:
    liveness = Liveness(heartbeat_s=2.0, now=10.0)
    liveness.on_heard(15.0)
    liveness.on_heard(12.0)
    assert liveness.heard == 15.0
