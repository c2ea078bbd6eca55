"""The change tracker against sets: random writes, views, restarts, power cuts, resets; nothing is ever missing."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.errors import NotFoundError
from storage_node.core import change_tracking
from storage_node.core.change_tracking import GRANULE_BYTES as GRANULE
from storage_node.core.change_tracking import Point
from storage_node.disk.change_store import ChangeTracker

SIZE = 40 * GRANULE - 512
BYTE = st.integers(0, SIZE - 1)
ACTION = st.one_of(
    st.tuples(st.just("write"), BYTE, st.integers(1, 3 * GRANULE)),
    st.tuples(st.just("write"), BYTE, st.integers(1, 3 * GRANULE)),
    st.tuples(st.just("view")),
    st.tuples(st.just("view")),
    st.sampled_from(
        [
            ("kill",),
            ("power cut",),
            ("clean restart",),
            ("reset",),
            ("tidy",),
            ("forget", 1),
            ("forget", 2),
        ]
    ),
)


class Model:
    """Everything that was ever written, by history and generation, and every view."""

    def __init__(self) -> None:
        self.written: dict[Point, set[int]] = {}
        self.views: list[Point] = []

    def write(self, tracker: ChangeTracker, start: int, end: int) -> None:
        now = Point(tracker.tracking, tracker.generation)
        self.written.setdefault(now, set()).update(range(start // GRANULE, -(-end // GRANULE)))

    def between(self, since: Point, up_to: int) -> set[int]:
        generations = range(since.generation + 1, up_to + 1)
        return set().union(
            *(self.written.get(Point(since.tracking, number), set()) for number in generations)
        )

    def check(self, tracker: ChangeTracker, *, spans_max: int, forgotten: int) -> None:
        for since, up_to in itertools.combinations_with_replacement(self.views, 2):
            if since.tracking != up_to.tracking:
                continue
            try:
                runs = list(tracker.changed_since(since, up_to.generation))
            except NotFoundError:
                assert since.tracking != tracker.tracking or since.generation < forgotten
                continue
            found = {
                granule
                for start, end in runs
                for granule in range(start // GRANULE, -(-end // GRANULE))
            }
            assert since.tracking == tracker.tracking, "a history that was lost has answered"
            expected = self.between(since, up_to.generation)
            assert found >= expected, "under-reported"
            if len(self.views) <= spans_max:
                assert found == expected
            assert all(0 <= start < end <= SIZE for start, end in runs)


@given(st.lists(ACTION, max_size=40), st.sampled_from([2, 32]))
@example([("view",), ("write", 0, 1), ("kill",), ("write", GRANULE, 1), ("view",)], 32)
@example([("view",), ("write", 0, 1), ("power cut",), ("write", GRANULE, 1), ("view",)], 32)
@example([("view",), ("write", 0, 1), ("clean restart",), ("write", GRANULE, 1), ("view",)], 32)
@example([("view",), ("write", 0, 1), ("view",), ("write", GRANULE, 1), ("view",), ("view",)], 2)
def test_no_change_is_ever_missing(
    actions: list[tuple[str, int, int] | tuple[str, int] | tuple[str]], spans_max: int
) -> None:
    ids = (f"{number:032x}" for number in itertools.count(1))
    boots = (f"boot-{number}" for number in itertools.count(1))
    boot = next(boots)
    model, forgotten = Model(), 0
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_tracking, "SPANS_MAX", spans_max)

        def start() -> ChangeTracker:
            return ChangeTracker.open(
                Path(folder), size_bytes=SIZE, boot_id=boot, new_id=lambda: next(ids)
            )

        tracker = start()
        for action in actions:
            before = tracker.tracking
            match action:
                case ("write", first, count):
                    end = min(SIZE, first + count)
                    tracker.mark(first, end)
                    model.write(tracker, first, end)
                case ("view",):
                    model.views.append(tracker.turn())
                case ("kill",):
                    tracker._close_files()
                    tracker = start()
                    assert tracker.tracking == before
                case ("power cut",):
                    tracker._close_files()
                    boot = next(boots)
                    tracker = start()
                    assert tracker.tracking != before
                case ("clean restart",):
                    tracker.close()
                    boot = next(boots)
                    tracker = start()
                    assert tracker.tracking == before
                case ("reset",):
                    tracker.reset("the volume was restored")
                    assert tracker.tracking != before
                case ("tidy",):
                    tracker.tidy()
                case ("forget", back):
                    tracker.forget_before(tracker.generation - back)
                    forgotten = max(forgotten, tracker.generation - back)
            if tracker.tracking != before:
                forgotten = 0
            model.check(tracker, spans_max=spans_max, forgotten=forgotten)
        tracker.close()
