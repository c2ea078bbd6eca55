"""The database and the dictionaries hold the same after any commits."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, get_type_hints

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.catalog.memory import MemoryCatalog
from controller.catalog.sql import SqlCatalog
from controller.catalog.store import (
    ENDED_STATES,
    KEYS,
    CartridgeRow,
    Catalog,
    CopyMap,
    DropMap,
    DropRow,
    PoolRow,
)

SMALL = st.integers(0, 3)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    str: TEXTS,
    bytes: st.binary(max_size=8),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(TEXTS, max_size=3).map(tuple),
}
OF_NAME = {
    **dict.fromkeys(("job", "item", "backup", "part", "sequence", "page"), SMALL),
    **dict.fromkeys(
        ("first_path", "last_path"), st.sampled_from([b"", b"a", b"a\0b", b"a\1", b"b"])
    ),
    **dict.fromkeys(
        ("token", "name", "tag", "volume", "pool"), st.sampled_from(["", "a", "B", "ä", "z"])
    ),
    "state": st.sampled_from(["queued", "copying", *sorted(ENDED_STATES)]),
}


UNDER = [(0, b""), (2, b""), (0, b"a"), (1, b"a/b"), (0, b"c")]


def rows_of(kind: type) -> st.SearchStrategy[Any]:
    """Any row of a type, with few different keys."""
    hints = get_type_hints(kind)
    plain = {name: getattr(hint, "__supertype__", hint) for name, hint in hints.items()}
    return st.builds(kind, **{n: OF_NAME.get(n, OF_TYPE[hint]) for n, hint in plain.items()})


ROWS = st.one_of(
    [rows_of(kind) for kind in KEYS]
    + [
        st.builds(DropMap, backup=SMALL),
        st.builds(DropRow, row=rows_of(PoolRow) | rows_of(CartridgeRow)),
    ]
    + [
        st.tuples(SMALL, SMALL)
        .filter(lambda pair: pair[0] != pair[1])
        .map(lambda pair: CopyMap(backup=pair[0], source=pair[1]))
    ]
)


def everything(catalog: Catalog) -> list[Any]:
    """All answers that the two can be compared by, but for the UUID."""
    snapshot = catalog.load()
    named = {name: getattr(snapshot, name) for name in snapshot.__slots__ if name != "store"}
    return [
        named,
        [catalog.jobs(limit=limit, state=state) for limit in (1, 9) for state in ("", "failed")],
        [catalog.job_by_token(token) for token in ("", "a", "B", "ä", "z")],
        [
            (
                catalog.job(number),
                catalog.items(number, first=1, limit=2),
                catalog.item_count(number),
                catalog.events(number, after=0, limit=2),
                catalog.extents(number),
                catalog.map_header(number),
                catalog.map_page(number, 1),
                [list(catalog.map_pages(number, first=n, under=p)) for n, p in UNDER],
            )
            for number in range(4)
        ],
    ]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(ROWS, max_size=8), min_size=1, max_size=3))
def test_any_commits_give_the_same_answers(rows: Any, commits: list[list[Any]]) -> None:
    # Every job and backup that a row may name exists from the start.
    owners = [make(number) for make in (rows.job, rows.backup) for number in range(4)]
    memory = MemoryCatalog()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(SqlCatalog.open(Path(folder) / "catalog")) as catalog,
    ):
        for commit in [owners, *commits]:
            memory.commit(commit)
            catalog.commit(commit)
        assert everything(catalog) == everything(memory)
