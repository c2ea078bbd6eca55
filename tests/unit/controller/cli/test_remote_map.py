"""Maps from the controller: read page by page, and believed only as far as they agree with themselves."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import NotFoundError, RemoteProtocolError
from backplane.file_map.damage import MapDamagedError
from backplane.testing.file_rows import ordinary_tree
from backplane.testing.packed_map import MapCaller, PackedMap
from controller.cli.remote_map import RemoteMap

ROWS = ordinary_tree(4500)
RUNS = [(at * 8192, at * 8192 + 4096) for at in range(20_000)]
MAP = PackedMap(ROWS, RUNS)


class Altered(MapCaller):
    """A controller whose answers are changed on their way."""

    def __init__(self, change: Any) -> None:
        super().__init__(MAP)
        self._change = change

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        document = super().call(verb, **arguments)
        self._change(verb, document)
        return document


def test_all_rows_and_all_runs_come_back() -> None:
    caller = MapCaller(MAP)
    remote = RemoteMap(caller, "3")
    assert (remote.backup, remote.volume, remote.header) == (3, "vol1", MAP.header)
    assert list(remote.rows()) == ROWS
    assert list(remote.runs()) == RUNS


def test_pages_are_asked_for_as_they_are_needed() -> None:
    caller = MapCaller(MAP)
    rows = RemoteMap(caller, "3").rows()
    next(rows)
    assert [verb for verb, _ in caller.calls] == ["map.header", "map.pages"]
    list(rows)
    assert [arguments["first"] for verb, arguments in caller.calls[1:]] == [0, 2, 4]


def test_only_pages_that_may_have_the_path_are_asked_for() -> None:
    caller = MapCaller(MAP)
    path = ROWS[-1].path
    rows = list(RemoteMap(caller, "3").rows(path))
    assert ROWS[-1] in rows
    assert len(rows) < 1000
    assert caller.calls[1:] == [("map.pages", {"backup": "3", "first": 0, "under": path.decode()})]


def test_a_path_that_is_no_text_is_asked_for_by_what_is_above_it() -> None:
    caller = MapCaller(MAP)
    list(RemoteMap(caller, "3").rows(b"srv/caf\xe9/x"))
    assert caller.calls[-1][1]["under"] == "srv"
    list(RemoteMap(caller, "3").rows(b"\xe9"))
    assert caller.calls[-1][1]["under"] == ""


def test_latest_stays_the_same_backup() -> None:
    caller = MapCaller(MAP)
    caller.maps["vol1/latest"] = MAP
    list(RemoteMap(caller, "vol1/latest").rows())
    assert {arguments["backup"] for verb, arguments in caller.calls[1:]} == {"3"}


def test_how_far_it_is_is_told() -> None:
    heard: list[int] = []
    list(RemoteMap(MapCaller(MAP), "3").rows(heard=heard.append))
    assert heard == [1000, 2000, 3000, 4000]


def test_a_backup_without_a_map_is_not_found() -> None:
    with pytest.raises(NotFoundError):
        RemoteMap(MapCaller(), "3")


def test_an_empty_map_has_no_rows() -> None:
    remote = RemoteMap(MapCaller(PackedMap([])), "3")
    assert list(remote.rows()) == []
    assert list(remote.runs()) == []


# --- answers that cannot be ------------------------------------------------------------------------


def lost_page(verb: str, document: dict[str, Any]) -> None:
    if verb == "map.pages":
        del document["pages"][:1]


def swapped_pages(verb: str, document: dict[str, Any]) -> None:
    if verb == "map.pages":
        document["pages"].reverse()


def early_end(verb: str, document: dict[str, Any]) -> None:
    if verb == "map.pages":
        document["next"] = None


def damaged_page(verb: str, document: dict[str, Any]) -> None:
    if verb == "map.pages":
        packed = document["pages"][0]["packed"]
        document["pages"][0]["packed"] = packed[:100] + "AAAA" + packed[104:]


@pytest.mark.parametrize("change", [lost_page, swapped_pages, early_end, damaged_page])
def test_pages_that_are_not_those_of_the_header_are_damage(change: Any) -> None:
    with pytest.raises(MapDamagedError):
        list(RemoteMap(Altered(change), "3").rows())


def test_rows_that_are_fewer_than_the_header_says_are_damage() -> None:
    fewer = PackedMap(ROWS[:-1])
    fewer.header = fewer.header._replace(rows=len(ROWS))
    with pytest.raises(MapDamagedError, match="rows; its header says"):
        list(RemoteMap(MapCaller(fewer), "3").rows())


def field(name: str, value: object, verb: str = "map.pages") -> Any:
    def change(of: str, document: dict[str, Any]) -> None:
        if of == verb:
            document[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        field("packed", 1, "map.header"),
        field("packed", "?", "map.header"),
        field("packed", None, "map.header"),
        field("backup", "3", "map.header"),
        field("volume", None, "map.header"),
        field("pages", None),
        field("pages", [1]),
        field("pages", [{"page": True, "packed": ""}]),
        field("pages", [{"page": 0}]),
        field("next", 0),
        field("next", "2"),
    ],
)
def test_an_answer_that_is_none_is_a_fault_of_the_controller(change: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        list(RemoteMap(Altered(change), "3").rows())
